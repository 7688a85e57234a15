// chat.cpp - a chat room with a page that shows who is in it. Run it, then open
// http://localhost:8080/ twice
//
// GET /room?name=Ann is the stream: the last messages, then new ones, and whenever somebody comes
// or goes, event `here` with the names. POST /say takes {"name": "Ann", "text": "hello"}.
#include "sse.hpp"

#include "json.hpp"
#include "program.hpp"

#include <iostream>

// The names of those present, by stream. Streams begin and end on several threads.
class presence {
public:
    void add(std::uint64_t stream, std::string name) {
        const std::lock_guard lock(mutex_);
        names_[stream] = std::move(name);
    }
    bool remove(std::uint64_t stream) {
        const std::lock_guard lock(mutex_);
        return names_.erase(stream) > 0;
    }
    std::string as_json() const {
        const std::lock_guard lock(mutex_);
        std::string list;
        for (const auto& [stream, name] : names_)
            list.append(list.empty() ? "" : ",").append(json::quoted(name));
        return "[" + list + "]";
    }

private:
    mutable std::mutex mutex_;
    std::map<std::uint64_t, std::string> names_;
};

// Ephemeral, only for those who are here now: whoever comes back gets a new list.
void tell_who_is_here(sse::server& server, const presence& here) {
    const std::string names = here.as_json();
    const std::error_code stopped =
        server.try_publish("/room", {.event = "here", .data = names, .ephemeral = true});
    if (stopped) return;
}

bool is_fit(std::string_view text, std::size_t most) {
    return !text.empty() && text.size() <= most;
}

asio::awaitable<void> enter(sse::server& server, presence& here, sse::stream& client) {
    const std::string name = client.request().query_value("name").value_or("");
    if (!is_fit(name, 40))
        co_return co_await client.respond(400, "text/plain", "a name has 1 to 40 bytes\n");
    client.subscribe("/room", {.from = sse::start::resume_or(sse::start::last(50))});
    here.add(client.id(), name);
    tell_who_is_here(server, here);
}

asio::awaitable<void> say(sse::server& server, sse::stream& client) {
    const std::string body = co_await client.body();
    std::string line, wrong;
    try {
        const auto said = json::read_object(body);
        const std::string name = json::text(said, "name"), text = json::text(said, "text");
        if (is_fit(name, 40) && is_fit(text, 2000))
            line = R"({"name":)" + json::quoted(name) + R"(,"text":)" + json::quoted(text) + "}";
        else
            wrong = R"(send {"name": "Ann", "text": "hello"})";
    } catch (const json::error& e) { wrong = e.what(); }
    if (!wrong.empty()) co_return co_await client.respond(400, "text/plain", wrong + "\n");
    co_await server.async_publish("/room", {.event = "line", .data = line});
    co_await client.respond(204, "text/plain", "");
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "chat [ADDRESS] [PAGE]", [&] {
        presence here;
        sse::server* room = nullptr;
        sse::options options;
        options.handle_signals = true;
        options.cors.origin = sse::localhost_origins(); // or any site's page could post
        options.hooks.on_disconnect = [&](const sse::stream_info& gone, sse::end_reason) {
            if (here.remove(gone.id)) tell_who_is_here(*room, here);
        };
        sse::server server(options);
        room = &server;
        server.route("GET", "/", sse::file(argc > 2 ? argv[2] : "examples/chat.html"));
        server.route("GET", "/sse.js", sse::script());
        server.route("GET", "/room",
                     [&](sse::stream& client) { return enter(server, here, client); });
        server.route("POST", "/say", [&](sse::stream& client) { return say(server, client); });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/" << std::endl;
        server.join();
    });
}
