// main.cpp - what starts the test programs. With -r=tap they tell meson of each case, in the Test
// Anything Protocol; doctest's own report is then on the error output.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <iostream>

namespace {

struct tap_reporter : doctest::ConsoleReporter {
    explicit tap_reporter(const doctest::ContextOptions& options)
        : doctest::ConsoleReporter(options, std::cerr) {}

    void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
        ConsoleReporter::test_case_end(stats);
        std::cout << (stats.testCaseSuccess ? "ok " : "not ok ") << ++ended_ << " - " << tc->m_name
                  << std::endl;
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
};

REGISTER_REPORTER("tap", 1, tap_reporter);

} // namespace
