// publisher.hpp - publishes to a bus without a server, and counts what it confirms and tells.
#pragma once

#include "sse.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>

namespace bench {

/// Looks at what it is told. A bus that is down, or loses something, ends the program.
class counting_sink final : public sse::bus::sink {
public:
    void epoch(std::string_view, std::uint64_t, sse::gap_reason) override {}
    void message(const sse::bus::record& what) override {
        sum += static_cast<unsigned char>(what.bytes.back());
        count.fetch_add(1, std::memory_order_release);
        count.notify_all();
    }
    void passing(std::string_view) override {}
    void lost(std::uint64_t) override { give_up("the bus has lost what it had stored"); }
    void hole(std::uint64_t) override {
        give_up("the bus dropped messages before it had read them");
    }
    void ready() override {
        const std::lock_guard lock(mutex_);
        is_ready_ = true;
        changed_.notify_all();
    }
    void health(bool up, std::string_view reason) override {
        if (!up) give_up(reason);
    }

    void wait_until_ready() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return is_ready_; });
    }
    void wait_for(std::uint64_t messages) {
        for (std::uint64_t seen = count; seen < messages; seen = count) count.wait(seen);
    }
    [[noreturn]] static void give_up(std::string_view why) {
        std::fprintf(stderr, "bench: %.*s\n", static_cast<int>(why.size()), why.data());
        std::exit(1);
    }

    std::atomic<std::uint64_t> count = 0;
    std::uint64_t sum = 0;

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool is_ready_ = false;
};

/// Publishes messages of so many bytes. A message that is not stored ends the program.
class publisher {
public:
    publisher(std::shared_ptr<sse::bus> to, std::uint64_t bytes)
        : bus_(std::move(to)), message_(bytes, 'x') {
        bus_->attach(sink_, {});
        sink_.wait_until_ready();
    }
    ~publisher() { close(); }
    publisher(const publisher&) = delete;
    publisher& operator=(const publisher&) = delete;

    /// But no more than may wait: then it waits until half of them are confirmed.
    void publish(std::uint64_t most) {
        {
            std::unique_lock lock(mutex_);
            if (published_ - confirmed_ >= most)
                changed_.wait(lock, [&] { return published_ - confirmed_ <= most / 2; });
            ++published_;
        }
        bus_->publish(message_, true, std::chrono::seconds(10),
                      [this, most](std::error_code failed, std::uint64_t) {
                          const std::lock_guard lock(mutex_);
                          if (failed) sink_.give_up(failed.message());
                          ++confirmed_;
                          const std::uint64_t waiting = published_ - confirmed_;
                          if (waiting == most / 2 || waiting == 0) changed_.notify_all();
                      });
    }
    /// Until all is confirmed; says how many that are.
    std::uint64_t wait_for_all() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return confirmed_ == published_; });
        return confirmed_;
    }
    /// Until all was told, too.
    void wait_until_told() { sink_.wait_for(wait_for_all()); }
    void close() noexcept { bus_->detach(); }

private:
    std::shared_ptr<sse::bus> bus_;
    const std::string message_;
    counting_sink sink_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::uint64_t published_ = 0;
    std::uint64_t confirmed_ = 0;
};

} // namespace bench
