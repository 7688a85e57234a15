// beast_events.cpp - the event streams of beast.cpp: a server with threads but no listener of its
// own, whose connections come from another server.
#include "beast_events.hpp"

#include "sse.hpp"

using namespace std::chrono_literals;

struct event_streams::state {
    sse::server server{{.prefix = "/events"}};
    std::jthread clock;
};

event_streams::event_streams() : state_(std::make_unique<state>()) {
    state_->server.start();
    state_->clock = std::jthread([&server = state_->server](const std::stop_token& stop) {
        for (; !stop.stop_requested(); std::this_thread::sleep_for(200ms)) {
            const std::time_t now = std::time(nullptr);
            const std::string_view text(std::ctime(&now), 24);
            if (server.try_publish("/clock", {.data = text})) break; // the server was stopped
        }
    });
}

event_streams::~event_streams() { state_->server.stop(); }

void event_streams::adopt(int socket, std::string received) {
    state_->server.adopt(socket, std::move(received));
}
