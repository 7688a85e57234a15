// main.cpp - what starts the test programs. With -r=tap they tell meson of each case, in the Test
// Anything Protocol; doctest's own report is then on the error output. A case that cannot run here
// says MESSAGE("not run: " ...) and returns: it is then counted as skipped, with the reason.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <iostream>
#include <mutex>
#include <string>
#include <string_view>

namespace {

constexpr std::string_view not_run = "not run: ";

struct tap_reporter : doctest::ConsoleReporter {
    explicit tap_reporter(const doctest::ContextOptions& options)
        : doctest::ConsoleReporter(options, std::cerr) {}

    void test_case_start(const doctest::TestCaseData& one) override {
        ConsoleReporter::test_case_start(one);
        why_not_.clear();
    }
    void log_message(const doctest::MessageData& said) override { // on any thread
        ConsoleReporter::log_message(said);
        const std::string text = said.m_string.c_str();
        const std::lock_guard lock(telling_);
        if (text.starts_with(not_run)) why_not_ = text.substr(not_run.size());
    }
    void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
        ConsoleReporter::test_case_end(stats);
        const bool passed = stats.testCaseSuccess;
        std::cout << (passed ? "ok " : "not ok ") << ++ended_ << " - " << tc->m_name;
        if (passed && !why_not_.empty()) std::cout << " # SKIP " << why_not_;
        std::cout << std::endl;
    }
    void test_run_end(const doctest::TestRunStats& stats) override {
        ConsoleReporter::test_run_end(stats);
        if (ended_ > 0) {
            std::cout << "1.." << ended_ << std::endl;
        } else {
            std::cout << "Bail out! no case goes by these filters" << std::endl;
        }
    }

private:
    int ended_ = 0;
    std::mutex telling_;
    std::string why_not_;
};

REGISTER_REPORTER("tap", 1, tap_reporter);

} // namespace
