// app.cpp - receives what its own server publishes, and says how it was built.
#include <sse.hpp>

#include <iostream>

asio::awaitable<void> receive(sse::server& server) {
    const std::string url = "http://127.0.0.1:" + std::to_string(server.port()) + "/subscribe/";
    sse::client source(co_await asio::this_coro::executor, url + "?from=oldest");
    const auto event = co_await source.next();
    std::cout << (event ? event->data : "nothing") << " by sse " SSE_VERSION_STRING
#if defined(SSE_ENABLE_TLS)
              << ", tls of " << OpenSSL_version(OPENSSL_VERSION)
#endif
#if defined(SSE_ENABLE_REDIS)
              << ", redis by hiredis " << HIREDIS_MAJOR
#endif
#if defined(SSE_ENABLE_NATS)
              << ", nats by nats.c " << nats_GetVersion()
#endif
#if defined(SSE_ENABLE_IO_URING)
              << ", io_uring"
#endif
#if defined(SSE_ENABLE_ZLIB)
              << ", zlib " << zlibVersion()
#endif
              << '\n';
}

int main() {
    sse::server server;
    server.start("127.0.0.1:0");
    server.broadcast({.data = "received"});
    asio::io_context io;
    asio::co_spawn(io, receive(server), [](std::exception_ptr failed) {
        if (failed) std::rethrow_exception(failed);
    });
    io.run();
}
