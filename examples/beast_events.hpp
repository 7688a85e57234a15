// beast_events.hpp - what beast.cpp knows of its event streams.
//
// Two files, since Boost.Asio and standalone Asio are two libraries that conflict in one
// translation unit: Boost before 1.75 and Asio define the same names in the global namespace.
#pragma once

#include <memory>
#include <string>

class event_streams {
public:
    event_streams();
    ~event_streams();

    // Serves the socket. `received` is what was already read from it, beginning with a request's
    // head.
    void adopt(int socket, std::string received);

private:
    struct state;
    std::unique_ptr<state> state_;
};
