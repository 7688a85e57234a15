// clock.cpp - the time, once a second. Run it, then: curl -N http://localhost:8080/subscribe/
#include "sse.hpp"

#include <ctime>
#include <iostream>
#include <thread>

int main(int argc, char** argv) try {
    sse::server server;
    server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
    std::cout << "http://localhost:" << server.port() << "/subscribe/" << std::endl;
    for (;;) {
        const std::time_t now = std::time(nullptr);
        server.broadcast({.event = "tick", .data = std::string_view(std::ctime(&now), 24)});
        std::this_thread::sleep_for(std::chrono::seconds(1));
    }
} catch (const std::exception& failure) { // such as: the port is taken
    std::cerr << "clock: " << failure.what() << '\n';
    return 1;
}
