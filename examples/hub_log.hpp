// hub_log.hpp - the lines that hub.cpp prints. A log must not hold up what it reports on.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <cerrno>

#include <poll.h>
#include <unistd.h>

namespace hub_log {

constexpr int standard_output = 1, standard_error = 2;

// Writes lines to a descriptor in order, on a thread of its own. A pipe that nobody reads, or a
// slow disk, blocks only that thread: when too many lines wait, further ones are dropped until all
// of these are written. As soon as a line can be written again, it reports how many were dropped or
// could not be written.
class writer {
public:
    explicit writer(int descriptor, std::size_t most_bytes = 1024 * 1024)
        : state_(std::make_shared<state>()) {
        state_->descriptor = descriptor;
        state_->most_bytes = most_bytes;
        // Detached, since it may be blocked for good when the program ends; it therefore shares the
        // state.
        std::thread([s = state_] { run(*s); }).detach();
    }

    // Waits up to a second for the remaining lines to be written. A program that should end must
    // not wait for longer.
    ~writer() {
        std::unique_lock lock(state_->mutex);
        state_->ending = true;
        state_->changed.notify_all();
        state_->changed.wait_for(lock, std::chrono::seconds(1), [&] { return state_->ended; });
    }
    writer(const writer&) = delete;
    writer& operator=(const writer&) = delete;

    // Never waits for the descriptor. Thread safety: any thread.
    void write(std::string line) {
        line += '\n';
        const std::lock_guard lock(state_->mutex);
        if (state_->dropped > 0 || state_->bytes + line.size() > state_->most_bytes) {
            ++state_->dropped;
            return;
        }
        state_->bytes += line.size();
        state_->lines.push_back(std::move(line));
        state_->changed.notify_all();
    }

private:
    struct state {
        std::mutex mutex;
        std::condition_variable changed;
        int descriptor = standard_error;
        std::deque<std::string> lines;
        std::size_t bytes = 0; // of the lines, including the one being written
        std::size_t most_bytes = 0;
        std::uint64_t dropped = 0;
        bool ending = false;
        bool ended = false;
    };

    static void run(state& s) {
        std::uint64_t lost = 0;
        bool torn = false; // a line was partly written
        const auto put = [&](const std::string& line) {
            if (torn && !write_all(s.descriptor, "\n", torn)) return false;
            return write_all(s.descriptor, line, torn);
        };
        const auto tell_lost = [&] {
            if (lost > 0 && put("hub: lines that could not be written and are left out: " +
                                std::to_string(lost) + "\n"))
                lost = 0;
        };
        std::unique_lock lock(s.mutex);
        for (;;) {
            s.changed.wait(lock, [&] { return s.ending || s.dropped > 0 || !s.lines.empty(); });
            if (s.lines.empty()) {
                lost += std::exchange(s.dropped, 0);
                lock.unlock();
                tell_lost();
                lock.lock();
                if (s.ending && s.lines.empty()) break;
                continue;
            }
            const std::string line = std::move(s.lines.front());
            s.lines.pop_front();
            lock.unlock();
            tell_lost();
            if (!put(line)) ++lost;
            lock.lock();
            s.bytes -= line.size();
        }
        s.ended = true;
        s.changed.notify_all();
    }

    static bool write_all(int descriptor, std::string_view text, bool& torn) {
        const std::size_t whole = text.size();
        while (!text.empty()) {
            const ssize_t written = ::write(descriptor, text.data(), text.size());
            if (written > 0) {
                text.remove_prefix(static_cast<std::size_t>(written));
            } else if (written < 0 && errno == EAGAIN) { // another process made it non-blocking
                pollfd room{descriptor, POLLOUT, 0};
                ::poll(&room, 1, -1);
            } else if (written == 0 || errno != EINTR) {
                torn = torn || text.size() < whole;
                return false;
            }
        }
        torn = false;
        return true;
    }

    std::shared_ptr<state> state_;
};

// Passes one line of each kind per second. Of the others it keeps the newest and the count, which
// follow when the second is over. Thread safety: any thread.
class once_a_second {
public:
    using clock = std::chrono::steady_clock;

    // Adds a line and returns the lines that are due now.
    std::vector<std::string> add(const std::string& kind, std::string line,
                                 clock::time_point now = clock::now()) {
        const std::lock_guard lock(mutex_);
        waiting& one = kinds_[kind];
        ++one.count;
        one.newest = std::move(line);
        std::vector<std::string> due;
        take_due(one, now, due);
        return due;
    }

    std::vector<std::string> due(clock::time_point now = clock::now()) {
        const std::lock_guard lock(mutex_);
        std::vector<std::string> due;
        for (auto& [kind, one] : kinds_) take_due(one, now, due);
        return due;
    }

private:
    struct waiting {
        clock::time_point told = clock::time_point::min();
        std::uint64_t count = 0;
        std::string newest;
    };

    static void take_due(waiting& one, clock::time_point now, std::vector<std::string>& due) {
        const bool waits =
            one.told != clock::time_point::min() && now - one.told < std::chrono::seconds(1);
        if (one.count == 0 || waits) return;
        due.push_back(std::move(one.newest));
        if (one.count > 1) due.back() += ", " + std::to_string(one.count) + " times";
        one = {now, 0, {}};
    }

    std::mutex mutex_;
    std::map<std::string, waiting> kinds_;
};

} // namespace hub_log
