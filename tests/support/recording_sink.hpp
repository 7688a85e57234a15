// What a bus tells its server, written down, for tests of an engine alone.
#pragma once

#include "sse.hpp"

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

class recording_sink final : public sse::bus::sink {
public:
    struct entry {
        std::string epoch;
        std::uint64_t number; ///< 0: not stored.
        std::string bytes;
        std::chrono::system_clock::time_point time = {};
    };
    struct seen {
        std::vector<entry> messages;
        std::vector<std::string> events; ///< All calls but those of messages, in words.
        std::string epoch;
        std::uint64_t newest = 0;
        bool is_ready = false;
        std::optional<bool> is_up;
        std::string why;               ///< Of the last health().
        std::vector<std::string> whys; ///< Of each.
    };

    void epoch(std::string_view name, std::uint64_t after, sse::gap_reason why) override {
        note([&](seen& s) {
            const bool goes_on = name == s.epoch; // then it only says what is not to come
            if (!goes_on) {
                s.events.push_back("epoch " + std::string(name) + " after " +
                                   std::to_string(after) + " " + std::string(to_string(why)));
            }
            s.epoch = name;
            s.newest = after;
        });
    }
    void message(const sse::bus::record& what) override {
        note([&](seen& s) {
            s.messages.push_back({s.epoch, what.number, std::string(what.bytes), what.time});
            if (what.number <= s.newest) s.events.push_back("a number that does not rise");
            s.newest = what.number;
        });
    }
    void passing(std::string_view bytes) override {
        note([&](seen& s) { s.messages.push_back({s.epoch, 0, std::string(bytes)}); });
    }
    void lost(std::uint64_t above) override {
        note([&](seen& s) { s.events.push_back("lost above " + std::to_string(above)); });
    }
    void hole(std::uint64_t to) override {
        note([&](seen& s) {
            s.events.push_back("hole to " + std::to_string(to));
            s.newest = std::max(s.newest, to);
        });
    }
    void ready() override {
        note([](seen& s) {
            s.events.push_back("ready");
            s.is_ready = true;
        });
    }
    void health(bool up, std::string_view reason) override {
        note([&](seen& s) {
            s.events.push_back(up ? "up" : "down");
            s.is_up = up;
            s.why = reason;
            s.whys.emplace_back(reason);
        });
    }

    /// Waits until this is true of what was told so far, at most half a minute; returns whether it
    /// is.
    template <class F>
    bool wait_until(F&& is_true) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return is_true(seen_); });
    }
    seen now() {
        const std::lock_guard lock(mutex_);
        return seen_;
    }

private:
    template <class F>
    void note(F&& f) {
        const std::lock_guard lock(mutex_);
        f(seen_);
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    seen seen_;
};
