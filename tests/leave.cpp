// leave.cpp - covers >>exchange: clients that leave while their bytes are unread, and what plain
// responses say about the connection they come on.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace leave_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// How a client leaves.
enum class way { close, reset, half_close };

void leave(connection& peer, way how) {
    if (how == way::close) peer.close();
    if (how == way::reset) peer.reset();
    if (how == way::half_close) peer.finish_sending();
}

/// What waits for an hour counts itself before and after.
struct waiting {
    std::atomic<int> begun{0}, ended{0};
    handler_result operator()(sse::stream& client) {
        const count_end guard{ended};
        ++begun;
        co_await client.sleep_for(1h);
    }
};

std::string with_body(std::string_view target, std::string_view fields, std::string_view body) {
    return "POST " + std::string(target) + " HTTP/1.1\r\nHost: localhost\r\n" +
           std::string(fields) + "\r\n" + std::string(body);
}

} // namespace

TEST_SUITE("leave") {
    TEST_CASE("a client is seen to leave, whatever it sent that is still unread") {
        waiting waits;
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        o.hooks.authorize = [&](const sse::request&) -> asio::awaitable<sse::access> {
            const count_end guard{waits.ended};
            ++waits.begun;
            asio::steady_timer timer(co_await asio::this_coro::executor, 1h);
            co_await timer.async_wait(asio::use_awaitable);
            co_return sse::access::grant();
        };
        sse::group_options guarded;
        guarded.authorize = o.hooks.authorize;
        running_server server(o, [&](sse::server& s) {
            s.route("POST", "/unread",
                    [&](sse::stream& c) -> handler_result { co_await waits(c); });
            s.route("POST", "/some", [&](sse::stream& c) -> handler_result {
                const std::string piece = co_await c.body_some();
                co_await waits(c);
            });
            s.route("POST", "/whole", [&](sse::stream& c) -> handler_result {
                const std::string body = co_await c.body();
                co_await waits(c);
            });
            s.route("POST", "/broken", [&](sse::stream& c) -> handler_result {
                try {
                    const std::string body = co_await c.body();
                } catch (const std::system_error&) {}
                co_await waits(c);
            });
            s.fallback([&](sse::stream& c) -> handler_result { co_await waits(c); });
            auto group = s.group("/group", guarded);
            group.route("POST", "/x", [](sse::stream&) -> handler_result { co_return; });
        });
        const std::string big(100'000, 'x');
        const std::string many(900, 'y');
        std::string form = "topic=a";
        const std::vector<std::string> requests = {
            with_body("/unread", "Content-Length: 2\r\n", "{}"),
            with_body("/unread", "Content-Length: 2\r\n", "{}\r\n"),
            with_body("/unread", "Content-Length: 2\r\n", "{}\r\nGET / HT"),
            with_body("/unread", "Content-Length: 5\r\n", "{}"),
            with_body("/unread", "Connection: close\r\nContent-Length: 2\r\n",
                      "{}GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            with_body("/unread", "Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"),
            with_body("/unread", "Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n"),
            with_body("/unread", "", "\r\n"),
            with_body("/unread", "Content-Length: 100000\r\n", big),
            with_body("/unread", "Content-Length: 100000\r\n", big + "\r\n"),
            with_body("/unread", "Content-Length: 200000\r\n", big),
            with_body("/some", "Content-Length: 2\r\n", "{}"),
            with_body("/some", "Content-Length: 1000\r\n", many),
            with_body("/some", "Content-Length: 100000\r\n", big),
            with_body("/whole", "Content-Length: 2\r\n", "{}\r\n"),
            with_body("/group/x", "Content-Length: 2\r\n", "{}"),
            with_body("/elsewhere", "Content-Length: 2\r\n", "{}"),
            with_body("/subscribe", "Content-Length: 7\r\n", form + "\r\n"),
            "GET /subscribe/a HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n",
        };
        for (std::size_t i = 0; i < requests.size(); ++i) {
            const std::string& request = requests[i];
            CAPTURE(i);
            for (const way how : {way::close, way::reset, way::half_close}) {
                CAPTURE(int(how));
                const int before = waits.begun;
                connection peer(server.port());
                peer.send(request);
                REQUIRE(eventually([&] { return waits.begun == before + 1; }));
                leave(peer, how);
                CHECK(eventually([&] { return waits.ended == before + 1; }));
                CHECK(eventually([&] { return server.counters().connections == 0; }));
            }
        }
        {
            CAPTURE("cut within the body");
            connection peer(server.port());
            peer.send(with_body("/broken", "Content-Length: 5\r\n", "{}"));
            peer.finish_sending();
            CHECK(eventually([&] { return server.counters().connections == 0; }));
        }
        CHECK(errors.count == 0);
    }

    TEST_CASE("a client that leaves while the origin matcher waits ends its connection") {
        std::atomic<int> asked{0}, ended{0};
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        o.cors.origin = sse::origin_matcher(
            [&](std::string_view, const sse::request&) -> asio::awaitable<bool> {
                const count_end guard{ended};
                ++asked;
                asio::steady_timer timer(co_await asio::this_coro::executor, 1h);
                co_await timer.async_wait(asio::use_awaitable);
                co_return true;
            });
        running_server server(o);
        connection peer(server.port());
        peer.send(with_body("/health", "Origin: https://a.example\r\nContent-Length: 2\r\n", "{}"));
        REQUIRE(eventually([&] { return asked == 1; }));
        peer.close();
        CHECK(eventually([&] { return ended == 1; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(errors.count == 0);
    }

    TEST_CASE("what a client asked before its end is answered, however much of it is unread") {
        std::atomic<bool> go{false};
        std::atomic<int> begun{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("POST", "/slow", [&](sse::stream& client) -> handler_result {
                ++begun;
                co_await until(client, go);
                const std::string body = co_await client.body();
                const std::string size = std::to_string(body.size());
                co_await client.respond(200, "text/plain", size);
            });
        });
        for (const std::size_t size : {std::size_t{2}, std::size_t{100'000}}) {
            CAPTURE(size);
            go = false;
            const int before = begun;
            connection peer(server.port());
            peer.send(with_body("/slow", "Content-Length: " + std::to_string(size) + "\r\n",
                                std::string(size, 'x')) +
                      with_body("/slow", "Content-Length: 1\r\n", "x"));
            peer.finish_sending();
            REQUIRE(eventually([&] { return begun == before + 1; }));
            std::this_thread::sleep_for(600ms); // the sweep has looked: nothing else shows it
            go = true;
            CHECK(peer.read_response().body == std::to_string(size));
            CHECK(peer.read_response().body == "1");
            CHECK(peer.read_to_end().empty());
        }
    }

    TEST_CASE("a handler that outlives its client answers one that only ended its side") {
        std::atomic<bool> go{false};
        std::atomic<int> begun{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("POST", "/slow", [&](sse::stream& client) -> handler_result {
                client.keep_running();
                ++begun;
                co_await until(client, go);
                const std::string body = co_await client.body();
                const std::string size = std::to_string(body.size());
                co_await client.respond(200, "text/plain", size);
            });
        });
        connection peer(server.port());
        peer.send(with_body("/slow", "Content-Length: 100000\r\n", std::string(100'000, 'x')));
        peer.finish_sending();
        REQUIRE(eventually([&] { return begun == 1; }));
        std::this_thread::sleep_for(600ms); // the sweep has looked: nothing else shows it
        go = true;
        CHECK(peer.read_response().body == "100000");
    }

    TEST_CASE("empty lines between requests leave the connection idle") {
        sse::options o = with_threads(1);
        o.timeouts.header = 40ms;
        o.timeouts.idle = 400ms;
        running_server server(o, [](sse::server& s) {
            s.route("POST", "/x", [](sse::stream& client) -> handler_result {
                const std::string body = co_await client.body();
                co_await client.respond(202, "text/plain", "");
            });
        });
        const auto idle_after_one = [&](std::optional<connection>& peer) {
            peer.emplace(server.port());
            peer->send(with_body("/x", "Content-Length: 2\r\n", "{}\r\n\r\n"));
            return peer->read_response().status == 202;
        };
        std::optional<connection> idle, goes_on;
        REQUIRE(in_time([&] { return idle_after_one(idle); }));
        REQUIRE(in_time([&] {
            if (!idle_after_one(goes_on)) return false;
            goes_on->send("\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
            if (goes_on->read_response().status != 200) return false;
            goes_on->send("\r\nGET"); // a head that has begun has its own deadline
            return goes_on->read_response().status == 408;
        }));
        CHECK(idle->read_to_end().empty());
    }

    TEST_CASE("each plain response to HTTP/1.0 says whether the connection goes on") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/x", [](sse::stream& client) -> handler_result {
                co_await client.respond(200, "text/plain", "x");
            });
            s.route("GET", "/nothing", [](sse::stream&) -> handler_result { co_return; });
        });
        const auto ask = [](connection& peer, std::string_view method, std::string_view target,
                            std::string_view version, std::string_view fields) {
            peer.send(std::string(method) + " " + std::string(target) + " HTTP/" +
                      std::string(version) + "\r\nHost: localhost\r\n" + std::string(fields) +
                      "\r\n");
            return peer.read_response(method).header("Connection");
        };
        for (const auto& [method, target] : {std::pair("GET", "/x"),
                                             {"HEAD", "/x"},
                                             {"GET", "/health"},
                                             {"GET", "/nothing"},
                                             {"GET", "/missing"},
                                             {"POST", "/x"},
                                             {"OPTIONS", "/x"}}) {
            CAPTURE(method);
            CAPTURE(target);
            connection kept(server.port()), closed(server.port()), modern(server.port());
            for (int twice = 0; twice < 2; ++twice) {
                CHECK(ask(kept, method, target, "1.0", "Connection: Keep-Alive\r\n") ==
                      "keep-alive");
            }
            CHECK(ask(closed, method, target, "1.0", "") == "close");
            CHECK(!ask(modern, method, target, "1.1", "Connection: keep-alive\r\n"));
            CHECK(ask(modern, method, target, "1.1", "Connection: x\r\nConnection: close\r\n") ==
                  "close");
        }
    }

    TEST_CASE("lines of one name are one list") {
        running_server server;
        const auto status = [&](const header_list& headers) {
            connection peer(server.port());
            peer.send_request("GET", "/subscribe/a", headers);
            return peer.read_head().status;
        };
        CHECK(status({{"Accept", "application/json"}, {"Accept", "text/event-stream"}}) == 200);
        CHECK(status({{"Accept", "text/event-stream"}, {"Accept", "application/json"}}) == 200);
        CHECK(status({{"Accept", ""}, {"Accept", "text/*;q=0.1"}}) == 200);
        CHECK(status({{"Accept", "application/json"}, {"Accept", "text/html"}}) == 406);
        CHECK(status({{"Accept", ""}}) == 200);

        connection peer(server.port());
        peer.send("POST /subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\nExpect: "
                  "x\r\nExpect: 100-Continue\r\n\r\n");
        CHECK(peer.read_head().status == 100);
        connection old(server.port());
        old.send("POST /subscribe HTTP/1.0\r\nHost: localhost\r\nContent-Length: 7\r\nExpect: "
                 "100-continue\r\n\r\n");
        old.send("topic=a");
        CHECK(old.read_head().status == 200);
    }

    TEST_CASE("over a limit an EventSource is refused softly, on whatever line it says so") {
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        o.limits.over = sse::refusal::soft;
        running_server server(o);
        event_client one(server.port());
        connection peer(server.port());
        peer.send_request("GET", "/subscribe/",
                          {{"Accept", "application/json"}, {"Accept", "Text/Event-Stream;q=1"}});
        CHECK(peer.read_head().status == 200);
    }

    TEST_CASE("a client comes back by any name that polyfills have for its last event id") {
        running_server server;
        server.publish("/a", {.data = "1", .id = "one"});
        server.publish("/a", {.data = "2", .id = "two"});
        const auto first_data = [&](std::string_view request) {
            connection peer(server.port());
            peer.send(request);
            CHECK(peer.read_head().status == 200);
            const std::string bytes = peer.read_through("data: 2\n");
            return without_ids(bytes.substr(bytes.find("\ndata: ") + 1));
        };
        for (const char* const name :
             {"lastEventId", "lastEventID", "last_event_id", "Last-Event-ID", "last-event-id",
              "LastEventId", "lasteventid", "evs_last_event_id", "Last%2DEvent%2DID"}) {
            CAPTURE(name);
            const std::string pair = std::string(name) + "=one";
            CHECK(first_data("GET /subscribe/a?" + pair + " HTTP/1.1\r\nHost: localhost\r\n\r\n") ==
                  "data: 2\n");
            const std::string form = "topic=a&" + pair;
            CHECK(first_data(with_body("/subscribe",
                                       "Content-Length: " + std::to_string(form.size()) + "\r\n",
                                       form)) == "data: 2\n");
        }
        // The header wins.
        CHECK(first_data("GET /subscribe/a?lastEventId=two HTTP/1.1\r\nHost: localhost\r\n"
                         "Last-Event-ID: one\r\n\r\n") == "data: 2\n");
    }

    TEST_CASE("headers that the server writes itself are refused, and what would break a line") {
        std::vector<std::string> refused;
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/x", [&](sse::stream& client) -> handler_result {
                const auto note = [&](std::string_view name, std::string_view value) {
                    try {
                        client.add_header(name, value);
                    } catch (const std::invalid_argument& e) { refused.emplace_back(e.what()); }
                };
                for (const char* const name :
                     {"Content-Length", "transfer-encoding", "Connection", "Keep-Alive", "Upgrade",
                      "Trailer", "Date", "Content-Type", "Cache-Control", "X-Accel-Buffering"}) {
                    note(name, "1");
                }
                for (const char control : {'\x01', '\x0b', '\x1b', '\x7f'}) {
                    note("X", std::string(1, control));
                    try {
                        co_await client.respond(200, std::string("a/b") + control, "");
                    } catch (const std::invalid_argument& e) { refused.emplace_back(e.what()); }
                }
                try {
                    co_await client.respond(200, std::string_view("a/b\0", 4), "");
                } catch (const std::invalid_argument& e) { refused.emplace_back(e.what()); }
                client.add_header("X-Tab", "a\tb");
                co_await client.respond(200, "text/plain", "");
            });
        });
        const auto answer = http_get(server.port(), "/x");
        CHECK(refused.size() == 19);
        REQUIRE(!refused.empty());
        CHECK(refused.front() == "sse::stream::add_header: Content-Length is written by the server "
                                 "itself; the type of a plain response is an argument of "
                                 "respond()");
        CHECK(answer.status == 200);
        CHECK(answer.header_lines("Content-Length") == 1);
        CHECK(answer.header("X-Tab") == "a\tb");
    }

    TEST_CASE("a peer that the system gives up is told from one that left") {
        using sse::detail::reason_of;
        CHECK(reason_of(asio::error::timed_out) == sse::end_reason::unreachable);
        CHECK(reason_of(asio::error::host_unreachable) == sse::end_reason::unreachable);
        CHECK(reason_of(asio::error::network_unreachable) == sse::end_reason::unreachable);
        CHECK(reason_of(asio::error::connection_reset) == sse::end_reason::client_left);
        CHECK(reason_of(asio::error::broken_pipe) == sse::end_reason::client_left);
        CHECK(reason_of(asio::error::eof) == sse::end_reason::client_left);
        CHECK(to_string(sse::end_reason::unreachable) == "unreachable");
    }

    TEST_CASE("each status of the registry has its phrase") {
        using sse::detail::reason_phrase;
        CHECK(reason_phrase(402) == "Payment Required");
        CHECK(reason_phrase(410) == "Gone");
        CHECK(reason_phrase(412) == "Precondition Failed");
        CHECK(reason_phrase(502) == "Bad Gateway");
        CHECK(reason_phrase(504) == "Gateway Timeout");
        CHECK(reason_phrase(599) == "Status");
    }

    TEST_CASE("a cookie is found by its name, as it was sent") {
        const auto cookie = [](std::string_view fields, std::string_view name) {
            sse::request r;
            const std::string head = "GET / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n";
            CHECK(r.parse(head).status == 0);
            const auto found = r.cookie(name);
            return found ? std::string(*found) : "none";
        };
        CHECK(cookie("Cookie: sid=1\r\n", "sid") == "1");
        CHECK(cookie("cookie: a=b; sid=x=y==\r\n", "sid") == "x=y==");
        CHECK(cookie("Cookie: xsid=1; sid=2; sid=3\r\n", "sid") == "2");
        CHECK(cookie("Cookie: a=1\r\nCookie: sid=2\r\n", "sid") == "2");
        CHECK(cookie("Cookie: sid=\"a b\"\r\n", "sid") == "\"a b\"");
        CHECK(cookie("Cookie: sid=%20+\r\n", "sid") == "%20+");
        CHECK(cookie("Cookie: sid=\r\n", "sid").empty());
        CHECK(cookie("Cookie: a=1;sid=2 ;\r\n", "sid") == "2");
        CHECK(cookie("Cookie: SID=1; sid\r\n", "sid") == "none");
        CHECK(cookie("", "sid") == "none");
    }

    TEST_CASE("two lines of what is not a list are refused") {
        for (const char* const name : {"Origin", "authorization", "Content-Type", "Last-Event-ID",
                                       "Access-Control-Request-Method"}) {
            CAPTURE(name);
            const std::string line = std::string(name) + ": a\r\n";
            sse::request once, twice;
            CHECK(once.parse("GET / HTTP/1.1\r\nHost: a\r\n" + line + "\r\n").status == 0);
            CHECK(twice.parse("GET / HTTP/1.1\r\nHost: a\r\n" + line + line + "\r\n").status ==
                  400);
        }
    }
}

} // namespace leave_test
