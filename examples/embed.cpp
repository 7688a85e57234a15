// embed.cpp - the server on the program's own io_context. Run it, then: curl -N
// http://localhost:8080/subscribe/counter, and elsewhere: curl -d '' http://localhost:8080/add
//
// One thread runs the program's coroutines, the handlers and the streams, so they can share data,
// here a plain int, without a lock.
#include "sse.hpp"

#include "program.hpp"

#include <iostream>

using namespace std::chrono_literals;

// The program's own work.
asio::awaitable<void> count(sse::server& server, int& counter) {
    asio::steady_timer timer(co_await asio::this_coro::executor);
    for (;; ++counter) {
        const std::string text = std::to_string(counter);
        if (server.try_publish("/counter", {.data = text})) break; // the server was stopped
        timer.expires_after(200ms);
        co_await timer.async_wait(asio::use_awaitable);
    }
    std::cout << "counted to " << counter << std::endl;
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "embed [ADDRESS]", [&] {
        int counter = 0;
        asio::io_context io;
        sse::server server(io, {.handle_signals = true});
        server.route("POST", "/add", [&](sse::stream& client) -> asio::awaitable<void> {
            counter += 1000;
            co_await client.respond(200, "text/plain", std::to_string(counter) + "\n");
        });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/subscribe/counter" << std::endl;
        asio::co_spawn(io, count(server, counter), [](std::exception_ptr failed) {
            if (failed) std::rethrow_exception(failed);
        });
        io.run(); // until the signal: then no work is left
    });
}
