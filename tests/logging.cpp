// logging.cpp - covers >>exchange: what the log hook gets, the server's own endpoints and its
// heartbeat.
#include "support/journal.hpp"

#include <doctest/doctest.h>

#include <map>
#include <memory>

namespace logging_test {

using namespace std::chrono_literals;
using namespace support;

TEST_SUITE("endpoints of one's own") {
    TEST_CASE("the documented mounts work: /events, /custom-sse, beside other routes") {
        for (const char* mount : {"/events", "/custom-sse"}) {
            sse::options o = with_threads(1);
            o.prefix = mount;
            running_server server(o, [](sse::server& s) {
                s.route("GET", "/", [](sse::stream& client) -> asio::awaitable<void> {
                    co_await client.respond(200, "text/html", "<p>the program's own page");
                });
            });
            event_client all(server.port(), std::string(mount) + "/");
            event_client one(server.port(), std::string(mount) + "/pets");
            CHECK(http_get(server.port(), "/").body == "<p>the program's own page");
            server.publish("/pets", {.data = "cat"});
            CHECK(all.next().data == "cat");
            CHECK(one.next().data == "cat");
        }
    }

    TEST_CASE("the health path is an option and can be left out") {
        sse::options o = with_threads(1);
        o.health = "/internal/live";
        running_server moved(o);
        CHECK(http_get(moved.port(), "/internal/live").status == 200);
        CHECK(http_get(moved.port(), "/health").status == 404);
        o.health = "";
        running_server without(o);
        CHECK(http_get(without.port(), "/health").status == 404);
        o.health = "no-slash";
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
    }

    TEST_CASE("the heartbeat comes in silence, not under traffic") {
        sse::options o = with_threads(1);
        o.heartbeat = 60ms;
        o.heartbeat_ids = false; // then a comment is a heartbeat
        running_server server(o);
        connection client(server.port());
        client.send_request("GET", "/subscribe/");
        CHECK(client.read_head().status == 200);
        using clock = std::chrono::steady_clock;
        const auto start = clock::now();
        auto last = start;
        int messages = 0;
        // Several heartbeats long, and so many messages that traffic is what keeps them away.
        for (; clock::now() - start < 400ms || messages <= 10; ++messages) {
            const auto published = clock::now();
            server.broadcast({.data = "x"});
            const std::string text = client.read_through("data: x\n\n");
            const auto now = clock::now();
            // A comment is right only where this test itself was kept from publishing for so long.
            if (text.find(':') == 0) CHECK(now - last >= 60ms);
            last = published;
        }
    }
}

TEST_SUITE("log") {
    TEST_CASE("requests and ends are logged with fields, a query never") {
        sse::options o = with_threads(1);
        journal log;
        log.attach(o);
        running_server server(o);
        { event_client client(server.port(), "/subscribe/a?token=secret"); }
        http_get(server.port(), "/none?token=secret");
        CHECK(log.comes("stream closed"));
        std::map<std::string, int> seen;
        for (const auto& l : log.taken()) {
            ++seen[l.what];
            CHECK_FALSE(has(l.path + l.detail + l.method, "secret"));
            CHECK(l.client == "127.0.0.1");
        }
        CHECK(seen["connected"] == 2);
        CHECK(seen["disconnected"] >= 1);
        CHECK(seen["request"] == 2);
        CHECK(seen["stream closed"] == 1);
        const auto lines = log.taken();
        CHECK(lines[0].what == "connected");
        CHECK(lines[0].level == sse::log_level::debug);
        CHECK(lines[1].level == sse::log_level::info);
        CHECK(lines[1].path == "/subscribe/a");
        CHECK(lines[1].status == 200);
    }

    TEST_CASE("behind a proxy all lines of a client in the log name its own address") {
        sse::options o = with_threads(1);
        o.proxy.trusted = {"127.0.0.1"};
        journal log;
        log.attach(o);
        running_server server(o);
        connection silent(server.port());
        const header_list forwarded{{"X-Forwarded-For", "203.0.113.9"}};
        { event_client client(server.port(), "/subscribe/a", forwarded); }
        {
            connection idle(server.port());
            CHECK(idle.request("GET", "/health", forwarded).status == 200);
        }
        std::map<std::string, int> seen;
        CHECK(eventually([&] {
            seen.clear();
            for (const auto& l : log.taken()) ++seen[l.what];
            return seen["disconnected"] == 2;
        }));
        for (const auto& l : log.taken()) {
            CAPTURE(l.what);
            CHECK(l.client == "203.0.113.9");
        }
        CHECK(seen["connected"] == 2); // not the one that says nothing: it might be anybody's
    }

    TEST_CASE("who is refused without a response, for there are too many, is in the log") {
        sse::options o = with_threads(1);
        o.limits.connections_per_ip = 1;
        journal log;
        log.attach(o);
        running_server server(o);
        const connect_options mute{.tls = false}; // each would be refused once it has asked
        std::vector<std::unique_ptr<connection>> silent;
        while (silent.size() < 300)
            silent.push_back(std::make_unique<connection>(server.port(), mute));
        CHECK(log.comes("refused"));
        for (const auto& l : log.taken()) {
            if (l.what != "refused") continue;
            CHECK(l.level == sse::log_level::warning);
            CHECK(l.client == "127.0.0.1");
            CHECK(has(l.detail, "too many"));
        }
    }

    TEST_CASE("a health path where streams are found is refused") {
        for (const std::string path : {"/subscribe", "/a/b"}) {
            sse::options o = with_threads(1);
            o.health = path;
            if (path != "/subscribe") o.prefix = path;
            CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        }
        sse::options o = with_threads(1);
        o.prefix = "/health/ready";
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        o.prefix = "/a";
        o.health = "/a/up";
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        o.health = "/ab/up";
        CHECK_NOTHROW(sse::server{o});
        o.prefix = "/"; // all paths but this one
        CHECK_NOTHROW(sse::server{o});
    }

    TEST_CASE("who is served over a limit counts as one refused only once a stream is refused") {
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        running_server server(o);
        event_client one(server.port());
        for (int n = 0; n < 3; ++n) CHECK(http_get(server.port(), "/health").status == 200);
        CHECK(server.counters().refused == 0);
        connection kept(server.port());
        CHECK(kept.request("GET", "/subscribe/").status == 503);
        CHECK(server.counters().refused == 1);
    }
}

} // namespace logging_test
