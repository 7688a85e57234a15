// stream.cpp - covers >>stream, >>connection: what a route's coroutine can do with its client, and
// what happens to it.
#include "support/server.hpp"

#include <asio/detached.hpp>

#include <doctest/doctest.h>

#include <thread>

namespace stream_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

using handler_result = asio::awaitable<void>;

/// A server with one route, GET /route unless told otherwise.
struct route_server : running_server {
    explicit route_server(sse::handler run, sse::options o = with_threads(1),
                          std::string method = "GET", std::string pattern = "/route")
        : running_server(std::move(o), [&](sse::server& s) {
              s.route(std::move(method), std::move(pattern), std::move(run));
          }) {}
};

asio::awaitable<void> wait_for(sse::stream& client, std::chrono::milliseconds time) {
    asio::steady_timer timer(client.get_executor(), time);
    co_await timer.async_wait(asio::use_awaitable);
}

/// A handler that says hello, waits for an hour, and counts its end, however that comes.
sse::handler greet_and_wait(std::atomic<int>& ended) {
    return [&ended](sse::stream& client) -> handler_result {
        struct on_end {
            std::atomic<int>& count;
            ~on_end() { ++count; }
        } guard{ended};
        co_await client.send({.data = "hello"});
        co_await wait_for(client, 1h);
    };
}

std::string code_of(std::exception_ptr failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const std::system_error& e) {
        return e.code().message();
    } catch (const std::exception& e) { return e.what(); }
}

/// Collects what handlers threw.
struct error_log {
    std::mutex mutex;
    std::vector<std::string> texts;

    void attach(sse::options& o) {
        o.hooks.on_error = [this](std::exception_ptr failure) {
            const std::lock_guard lock(mutex);
            texts.push_back(code_of(failure));
        };
    }
    std::size_t size() {
        const std::lock_guard lock(mutex);
        return texts.size();
    }
};

} // namespace

TEST_SUITE("routes") {
    TEST_CASE("a handler responds with a status, a type and a body, and sees the request") {
        route_server server([](sse::stream& client) -> handler_result {
            const auto& r = client.request();
            std::string seen(r.method);
            seen.append(" ").append(r.path).append(" ").append(r.query).append(" ");
            seen.append(r.header("x-colour").value_or("none"));
            co_await client.respond(201, "text/css", seen);
        });
        const auto answer = http_get(server.port(), "/route?a=%20b", {{"X-Colour", "red"}});
        CHECK(answer.status == 201);
        CHECK(answer.header("Content-Type") == "text/css");
        CHECK(answer.body == "GET /route a=%20b red");
        CHECK(http_request(server.port(), "HEAD", "/route").body.empty());
        CHECK(http_request(server.port(), "POST", "/route").status == 405);
    }

    TEST_CASE("a pattern that ends in a star tells what the star stands for; earlier routes win") {
        running_server server(with_threads(1), [](sse::server& s) {
            const auto say = [](std::string text) {
                return [text](sse::stream& client) -> handler_result {
                    const std::string all = text + ":" + std::string(client.request().rest);
                    co_await client.respond(200, "text/plain", all);
                };
            };
            s.route("GET", "/a/special", say("special"));
            s.route("GET", "/a/*", say("star"));
            s.route("GET", "/health", say("mine"));
        });
        CHECK(http_get(server.port(), "/a/special").body == "special:");
        CHECK(http_get(server.port(), "/a/b/c").body == "star:b/c");
        CHECK(http_get(server.port(), "/a/").body == "star:");
        CHECK(http_get(server.port(), "/a").status == 404);
        CHECK(http_get(server.port(), "/health").body == "mine:");
    }

    TEST_CASE("routes that cannot work are refused when they are added") {
        sse::server server(with_threads(1));
        const sse::handler nothing = [](sse::stream&) -> handler_result { co_return; };
        CHECK_THROWS_AS(server.route("GET", "no-slash", nothing), std::invalid_argument);
        CHECK_THROWS_AS(server.route("GET", "/a*", nothing), std::invalid_argument);
        CHECK_THROWS_AS(server.route("GET", "/a/*/b", nothing), std::invalid_argument);
        CHECK_THROWS_AS(server.route("G T", "/a", nothing), std::invalid_argument);
        CHECK_THROWS_AS(server.route("GET", "/a", nullptr), std::invalid_argument);
    }

    TEST_CASE("a body is read whole, also in pieces, also when the client asks first") {
        route_server server(
            [](sse::stream& client) -> handler_result {
                const std::string text = co_await client.body();
                co_await client.respond(200, "text/plain", text);
            },
            with_threads(1), "POST");
        CHECK(http_request(server.port(), "POST", "/route", {}, "hello").body == "hello");
        CHECK(http_request(server.port(), "POST", "/route").body.empty());
        const std::string large(700'000, 'y');
        CHECK(http_request(server.port(), "POST", "/route", {}, large).body == large);
        connection peer(server.port());
        peer.send("POST /route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: "
                  "100-continue\r\n\r\n");
        CHECK(peer.read_head().status == 100);
        for (const char* piece : {"a", "b", "c"}) peer.send(piece);
        CHECK(peer.read_response().body == "abc");
        CHECK(peer.request("POST", "/route", {}, "again").body == "again"); // the same connection
    }

    TEST_CASE("a body that is too large, cut short or too late gets 413, 400 or 408") {
        sse::options o = with_threads(1);
        o.limits.body_bytes = 10;
        const sse::handler takes_body = [](sse::stream& client) -> handler_result {
            const std::string text = co_await client.body();
            co_await client.respond(200, "text/plain", text);
        };
        route_server server(takes_body, o, "POST");
        o.timeouts.body = 100ms;
        route_server hasty(takes_body, o, "POST");
        CHECK(http_request(server.port(), "POST", "/route", {}, "0123456789").status == 200);
        CHECK(http_request(server.port(), "POST", "/route", {}, "01234567890").status == 413);
        connection late(hasty.port());
        late.send("POST /route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab");
        CHECK(late.read_response().status == 408);
        connection cut(server.port());
        cut.send("POST /route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab");
        cut.finish_sending();
        CHECK(cut.read_response().status == 400);
    }

    TEST_CASE("a connection goes on after a body of any size") {
        sse::options o = with_threads(1);
        o.limits.head_bytes = 1024;
        o.timeouts.idle = 1h;
        route_server server(
            [](sse::stream& client) -> handler_result {
                const std::string text = co_await client.body();
                co_await client.respond(200, "text/plain", std::to_string(text.size()));
            },
            o, "POST");
        connection peer(server.port());
        for (const std::size_t size : {1u, 1023u, 1024u, 1025u, 4096u, 100'000u}) {
            CHECK(peer.request("POST", "/route", {}, std::string(size, 'x')).body ==
                  std::to_string(size));
        }
    }

    TEST_CASE("a response before the body is read ends the connection, as it says") {
        sse::options o = with_threads(1);
        o.timeouts.idle = 1h;
        route_server server(
            [](sse::stream& client) -> handler_result {
                co_await client.respond(200, "text/plain", "first\n");
                const std::string late = co_await client.body();
                static_cast<void>(late);
            },
            o, "POST");
        connection peer(server.port());
        const auto answer = peer.request("POST", "/route", {}, "body");
        CHECK(answer.header("Connection") == "close");
        CHECK(peer.read_to_end().empty());
    }

    TEST_CASE("a head that fills its limit is refused at once") {
        sse::options o = with_threads(1);
        o.limits.head_bytes = 512;
        o.timeouts.header = 1h;
        running_server server(o);
        connection peer(server.port());
        peer.send("GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + std::string(600, 'x'));
        CHECK(peer.read_response().status == 431);
        connection exact(server.port());
        std::string head = "GET /health HTTP/1.1\r\nHost: localhost\r\nX: ";
        exact.send(head + std::string(512 - head.size(), 'x'));
        exact.send("x");
        CHECK(exact.read_response().status == 431);
    }

    TEST_CASE("a body that the handler leaves unread ends the connection") {
        route_server server(
            [](sse::stream& client) -> handler_result {
                co_await client.respond(200, "text/plain", "done\n");
            },
            with_threads(1), "POST");
        connection peer(server.port());
        const auto answer = peer.request("POST", "/route", {}, "GET /health HTTP/1.1\r\n\r\n");
        CHECK(answer.status == 200);
        CHECK(answer.header("Connection") == "close");
        CHECK(peer.read_to_end().empty());
    }

    TEST_CASE("a handler that says nothing responds with 204, which ends an EventSource") {
        route_server server([](sse::stream&) -> handler_result { co_return; });
        CHECK(http_get(server.port(), "/route").status == 204);
    }

    TEST_CASE("responding twice is an error of the program") {
        error_log errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        route_server server(
            [](sse::stream& client) -> handler_result {
                co_await client.respond(200, "text/plain", "one\n");
                co_await client.respond(200, "text/plain", "two\n");
            },
            o);
        CHECK(http_get(server.port(), "/route").body == "one\n");
        REQUIRE(eventually([&] { return errors.size() == 1; }));
        CHECK(errors.texts.front().find("already has its response") != std::string::npos);
    }
}

TEST_SUITE("streams") {
    TEST_CASE("a handler sends messages, temporaries and all, and its return ends the stream") {
        route_server server([](sse::stream& client) -> handler_result {
            for (int n = 0; n < 3; ++n) {
                co_await client.send(
                    {.event = "n", .data = std::to_string(n), .id = std::to_string(n)});
            }
            co_await client.send({.retry = 1500ms, .comment = "bye"});
        });
        event_client client(server.port(), "/route");
        for (int n = 0; n < 3; ++n) {
            const auto event = client.next();
            CHECK(event.type == "n");
            CHECK(event.data == std::to_string(n));
            CHECK(event.id == std::to_string(n));
        }
        CHECK(client.next_comment() == " bye");
        CHECK(client.wait_for_close() == ending::last_chunk);
        client.close();
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("a handler that subscribes and returns leaves a stream that lives on") {
        route_server server([](sse::stream& client) -> handler_result {
            client.subscribe("/news");
            co_await client.send({.data = "welcome"});
        });
        event_client client(server.port(), "/route");
        CHECK(client.next().data == "welcome");
        server.publish("/news/today", {.data = "rain"});
        server.publish("/weather", {.data = "not for it"});
        server.broadcast({.data = "all"});
        CHECK(client.next().data == "rain");
        CHECK(client.next().data == "all");
    }

    TEST_CASE("a stream of several topics gets each message once, in order") {
        route_server server([](sse::stream& client) -> handler_result {
            client.subscribe("/a");
            client.subscribe("/a/b");
            client.subscribe("/c");
            client.subscribe("/c");
            co_return;
        });
        event_client client(server.port(), "/route"), other(server.port(), "/subscribe/c");
        std::string expected;
        for (int n = 0; n < 400; ++n) {
            const char* topics[] = {"/a", "/a/b", "/c", "/d"};
            const auto* topic = topics[n % 4];
            if (n % 5 == 0) {
                server.broadcast({.data = std::to_string(n)});
            } else {
                server.publish(topic, {.data = std::to_string(n)});
            }
            if (n % 5 == 0 || n % 4 != 3) expected += std::to_string(n) + ",";
        }
        server.broadcast({.data = "end"});
        std::string seen;
        for (auto e = client.next(); e.data != "end"; e = client.next()) seen += e.data + ",";
        CHECK(seen == expected);
    }

    TEST_CASE("own and published messages never mix, however large and however slowly read") {
        const std::string own(300'000, 'o'), live(200'000, 'l');
        route_server server([&](sse::stream& client) -> handler_result {
            client.subscribe("/live");
            for (int n = 0; n < 20; ++n) co_await client.send({.event = "own", .data = own});
            co_await client.send({.event = "own", .data = "end"});
        });
        event_client client(server.port(), "/route", {}, {.receive_buffer = 4096});
        for (int n = 0; n < 20; ++n) server.publish("/live", {.event = "live", .data = live});
        server.publish("/live", {.event = "live", .data = "end"});
        int own_seen = 0, live_seen = 0, ends = 0;
        while (ends < 2) {
            const auto event = client.next();
            if (event.data == "end") {
                ++ends;
            } else if (event.type == "own") {
                CHECK(event.data == own);
                ++own_seen;
            } else {
                CHECK(event.data == live);
                ++live_seen;
            }
        }
        CHECK(own_seen == 20);
        CHECK(live_seen == 20);
    }

    TEST_CASE("send waits for a client that does not read") {
        std::atomic<int> sent{0};
        const std::string large(100'000, 'x');
        route_server server([&](sse::stream& client) -> handler_result {
            for (; sent < 1000; ++sent) co_await client.send({.data = large});
        });
        event_client client(server.port(), "/route", {}, {.receive_buffer = 4096});
        // The handler stops by itself long before its end: 1,000 of these do not fit into sockets.
        int before = -1;
        CHECK(eventually([&] {
            http_get(server.port(), "/health"); // the worker has had a turn in between
            return std::exchange(before, sent.load()) == sent.load();
        }));
        CHECK(sent < 1000);
        CHECK(http_get(server.port(), "/health").status == 200);
        for (int n = 0; n < 1000; ++n) REQUIRE(client.next(60s).data.size() == large.size());
    }

    TEST_CASE("a handler that never has to wait leaves turns to the others") {
        std::atomic<bool> enough{false};
        route_server server([&](sse::stream& client) -> handler_result {
            while (!enough) co_await client.send({.comment = "x"});
        });
        event_client greedy(server.port(), "/route");
        std::thread reader([&] {
            try {
                greedy.wait_for_close(60s);
            } catch (const std::exception&) {}
        });
        CHECK(http_get(server.port(), "/health").status == 200);
        enough = true;
        reader.join();
    }

    TEST_CASE("when the client leaves, its handler is cancelled in whatever it waits for") {
        std::atomic<int> ended{0};
        route_server server(greet_and_wait(ended));
        event_client by_fin(server.port(), "/route"), by_reset(server.port(), "/route");
        by_fin.next();
        by_reset.next();
        by_fin.close();
        CHECK(eventually([&] { return ended == 1; }));
        by_reset.reset();
        CHECK(eventually([&] { return ended == 2; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("stop cancels the handlers") {
        std::atomic<int> ended{0};
        route_server server(greet_and_wait(ended));
        event_client a(server.port(), "/route"), b(server.port(), "/route");
        a.next();
        b.next();
        server.stop();
        server.join();
        CHECK(ended == 2);
    }

    TEST_CASE("sending to a client that is gone throws errc::closed, which is nobody's error") {
        error_log errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        std::atomic<bool> told{false};
        route_server server(
            [&](sse::stream& client) -> handler_result {
                co_await asio::this_coro::throw_if_cancelled(false);
                try {
                    for (;;) {
                        co_await client.send({.data = "x"});
                        asio::error_code ignored;
                        asio::steady_timer timer(client.get_executor(), 1h);
                        co_await timer.async_wait(
                            asio::redirect_error(asio::use_awaitable, ignored));
                    }
                } catch (const std::system_error& e) {
                    told = e.code() == sse::errc::closed && !client.open();
                    throw;
                }
            },
            o);
        event_client client(server.port(), "/route");
        client.next();
        client.close();
        CHECK(eventually([&] { return told.load(); }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(errors.size() == 0);
    }

    TEST_CASE("what a handler throws ends that client only, and is reported") {
        error_log errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/before", [](sse::stream&) -> handler_result {
                throw std::runtime_error("broken before the head");
                co_return;
            });
            s.route("GET", "/after", [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "one"});
                throw std::runtime_error("broken in the stream");
            });
            s.route("GET", "/loop", [](sse::stream& client) -> handler_result {
                asio::post(client.get_executor(), [] { throw std::runtime_error("in the loop"); });
                co_await client.respond(200, "text/plain", "\n");
            });
        });
        event_client steady(server.port());
        CHECK(http_get(server.port(), "/before").status == 500);
        event_client broken(server.port(), "/after");
        CHECK(broken.next().data == "one");
        CHECK(broken.wait_for_close() == ending::fin);
        CHECK(http_get(server.port(), "/loop").status == 200);
        CHECK(eventually([&] { return errors.size() == 3; }));
        CHECK(errors.texts[0] == "broken before the head");
        CHECK(errors.texts[1] == "broken in the stream");
        CHECK(errors.texts[2] == "in the loop");
        server.broadcast({.data = "we go on"});
        CHECK(steady.next().data == "we go on");
    }

    TEST_CASE("a bad message in send is told to the handler, and nothing of it is sent") {
        std::atomic<bool> told{false};
        route_server server([&](sse::stream& client) -> handler_result {
            try {
                co_await client.send({.event = "a\nb", .data = "x"});
            } catch (const std::system_error& e) { told = e.code() == sse::errc::bad_event; }
            co_await client.send({.data = "good"});
        });
        event_client client(server.port(), "/route");
        CHECK(client.next().data == "good");
        CHECK(told);
    }

    TEST_CASE("HEAD of a streaming route gets the head only, and the handler is told") {
        std::atomic<bool> told{false};
        route_server server([&](sse::stream& client) -> handler_result {
            try {
                co_await client.send({.data = "x"});
            } catch (const std::system_error& e) { told = e.code() == sse::errc::closed; }
        });
        connection peer(server.port());
        peer.send_request("HEAD", "/route");
        CHECK(peer.read_head().header("Content-Type") == "text/event-stream");
        CHECK(peer.read_to_end().empty());
        CHECK(told);
    }

    TEST_CASE("after the head of a HEAD response nothing follows, whatever its handler tries") {
        std::atomic<int> attempts{0};
        std::atomic<bool> was_open{false};
        const auto try_all = [&](sse::stream& client) -> handler_result {
            for (; attempts < 5; ++attempts) {
                const bool sent = client.try_send({.data = "x"});
                was_open = was_open || sent || client.open();
                try {
                    co_await client.send({.data = "y"});
                } catch (const std::system_error& e) { CHECK(e.code() == sse::errc::closed); }
                try {
                    client.subscribe("/t");
                } catch (const std::system_error& e) { CHECK(e.code() == sse::errc::closed); }
                try {
                    client.begin();
                } catch (const std::system_error& e) { CHECK(e.code() == sse::errc::closed); }
            }
        };
        route_server server(try_all);
        connection peer(server.port());
        peer.send_request("HEAD", "/route");
        CHECK(peer.read_head().header("Content-Type") == "text/event-stream");
        CHECK(peer.read_to_end().empty());
        CHECK(attempts == 5);
        CHECK_FALSE(was_open);
        CHECK(server.counters().streams == 0);
    }

    TEST_CASE("begin sends a comment with the head, for proxies that hold a head without a body") {
        std::atomic<bool> go_on{false};
        route_server server([&](sse::stream& client) -> handler_result {
            client.begin();
            while (!go_on) co_await wait_for(client, 1ms);
            CHECK(client.try_send({.data = "first"})); // the comment is none of its messages
        });
        connection peer(server.port());
        peer.send_request("GET", "/route");
        peer.read_head();
        CHECK(peer.read_through(":\n").ends_with(":\n"));
        go_on = true;
        CHECK(peer.read_through("0\r\n\r\n").find("data: first\n\n") != std::string::npos);
    }

    TEST_CASE(
        "a stream that comes through Varnish is chunked, so that its first bytes are not held") {
        running_server server;
        connection peer(server.port());
        peer.send("GET /subscribe/ HTTP/1.1\r\nHost: localhost\r\nX-Varnish: 32770\r\n\r\n");
        CHECK(peer.read_head().header("Transfer-Encoding") == "chunked");
        server.broadcast({.data = "x"});
        CHECK(peer.read_through("data: x\n\n\r\n").find("\r\n") != std::string::npos);
        server.stop();
        CHECK(peer.read_to_end().ends_with("0\r\n\r\n")); // nobody's handler is cut short
    }

    TEST_CASE(
        "a deadline in the midst of a handler's response does not end it as if it were whole") {
        for (const bool by_handler : {true, false}) {
            CAPTURE(by_handler);
            std::atomic<int> ended{0};
            sse::options o = with_threads(1);
            if (!by_handler) o.timeouts.stream_age = 100ms;
            route_server server(
                [&](sse::stream& client) -> handler_result {
                    struct on_end {
                        std::atomic<int>& count;
                        ~on_end() { ++count; }
                    } guard{ended};
                    if (by_handler) client.end_after(100ms);
                    co_await client.send({.data = "part"});
                    co_await wait_for(client, 1h);
                },
                o);
            connection peer(server.port());
            peer.send_request("GET", "/route");
            CHECK(peer.read_to_end().ends_with("data: part\n\n\r\n"));
            CHECK(eventually([&] { return ended == 1; }));
        }
    }

    TEST_CASE("a handler that closes its stream ends it whole") {
        route_server server([](sse::stream& client) -> handler_result {
            co_await client.send({.data = "all"});
            client.close();
        });
        connection peer(server.port());
        peer.send_request("GET", "/route");
        CHECK(peer.read_through("0\r\n\r\n").find("data: all\n\n") != std::string::npos);
    }

    TEST_CASE("stop tells streams when to come back, and cuts what a handler has not finished") {
        sse::options o = with_threads(1);
        o.limits.retry_after = 4'000ms;
        route_server server(
            [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "part"});
                co_await wait_for(client, 1h);
            },
            o);
        event_client follower(server.port(), "/subscribe/t");
        connection part(server.port());
        part.send_request("GET", "/route");
        part.read_through("part\n\n");
        CHECK(eventually([&] { return server.counters().streams == 2; }));
        server.stop();
        CHECK_FALSE(follower.next_or_end());
        const auto retry = follower.decoder().reconnection_time();
        REQUIRE(retry);
        CHECK(*retry >= 4'000);
        CHECK(*retry <= 8'000);
        CHECK(part.read_to_end() == "\r\n"); // of its chunk
    }

    TEST_CASE("HTTP/1.0 clients get a stream that ends with the connection") {
        running_server server;
        connection peer(server.port());
        peer.send("GET /subscribe/ HTTP/1.0\r\n\r\n");
        const auto head = peer.read_head();
        CHECK(head.status == 200);
        CHECK_FALSE(head.header("Transfer-Encoding"));
        server.broadcast({.data = "old"});
        CHECK(without_ids(peer.read_through("old\n\n")) == "data: old\n\n");
    }

    TEST_CASE("a stream used after its handler has returned is an error of the program, no crash") {
        sse::options o = with_threads(1);
        std::atomic<int> refused{0};
        route_server server(
            [&](sse::stream& client) -> handler_result {
                client.subscribe("/x");
                asio::co_spawn(
                    client.get_executor(),
                    [](sse::stream& s, std::atomic<int>& n) -> handler_result {
                        asio::steady_timer later(s.get_executor(), 20ms);
                        co_await later.async_wait(asio::use_awaitable);
                        try {
                            co_await s.send({.data = "too late"});
                        } catch (const std::logic_error&) { ++n; }
                        try {
                            co_await s.respond(200, "text/plain", "too late");
                        } catch (const std::logic_error&) { ++n; }
                    }(client, refused),
                    asio::detached);
                co_return;
            },
            o);
        event_client client(server.port(), "/route"); // stays, so the stream does
        CHECK(eventually([&] { return refused == 2; }));
    }

    TEST_CASE("a heartbeat reaches a handler's silent stream too") {
        sse::options o = with_threads(1);
        o.heartbeat = 20ms;
        route_server server(
            [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "thinking"});
                co_await wait_for(client, 1h);
            },
            o);
        event_client client(server.port(), "/route");
        CHECK(client.next().data == "thinking");
        CHECK(client.next_comment().empty());
        CHECK(client.next_comment().empty());
    }
}

} // namespace stream_test
