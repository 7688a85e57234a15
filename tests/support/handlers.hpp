// handlers.hpp - what handlers of several test files do, and what is counted of them.
#pragma once

#include "sse.hpp"

#include <atomic>
#include <chrono>
#include <exception>

namespace support {

using handler_result = asio::awaitable<void>;

/// How often the program was told of a failure.
struct error_count {
    std::atomic<int> count{0};
    void attach(sse::options& o) {
        o.hooks.on_error = [this](std::exception_ptr) { ++count; };
    }
};

/// Counts the end of a coroutine, however that comes.
struct count_end {
    std::atomic<int>& count;
    ~count_end() { ++count; }
};

/// Suspends the handler of a stream until another thread says so.
inline handler_result until(sse::stream& client, std::atomic<bool>& flag) {
    asio::steady_timer timer(client.get_executor());
    while (!flag) {
        timer.expires_after(std::chrono::milliseconds(1));
        co_await timer.async_wait(asio::use_awaitable);
    }
}

inline handler_result wait_an_hour(sse::stream& client) {
    asio::steady_timer timer(client.get_executor(), std::chrono::hours(1));
    co_await timer.async_wait(asio::use_awaitable);
}

} // namespace support
