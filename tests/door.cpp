// The front door: who may come in, from where, how many, how long. "fault N" names the fault of the
// library that we succeed which the case keeps out.
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <list>
#include <thread>

namespace door_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

bool has(const std::string& text, std::string_view part) { return text.find(part) != text.npos; }

response head_of(std::uint16_t port, const header_list& headers,
                 const std::string& target = "/subscribe/a") {
    connection peer(port);
    peer.send_request("GET", target, headers);
    return peer.read_head();
}

/// What the log hook got.
struct journal {
    struct line {
        sse::log_level level;
        std::string what, method, path, client, detail;
        int status;
    };

    void attach(sse::options& o) {
        o.hooks.log = [this](const sse::log_entry& e) {
            const std::lock_guard lock(mutex);
            lines.push_back({e.level, std::string(e.what), std::string(e.method),
                             std::string(e.path), e.client.to_string(), std::string(e.detail),
                             e.status});
        };
    }
    std::vector<line> taken() {
        const std::lock_guard lock(mutex);
        return lines;
    }
    [[nodiscard]] bool comes(std::string_view what) {
        return eventually([&] {
            const auto now = taken();
            return std::any_of(now.begin(), now.end(),
                               [&](const line& l) { return l.what == what; });
        });
    }

    std::mutex mutex;
    std::vector<line> lines;
};

} // namespace

TEST_SUITE("cross-origin") {
    TEST_CASE("faults 9 and 10: sub-domains by whole labels, echoed, varied, refused otherwise") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"*.example.com", "http://localhost:3000"});
        running_server server(o);
        for (const char* good :
             {"https://app.example.com", "http://a.b.example.com", "http://localhost:3000"}) {
            const auto head = head_of(server.port(), {{"Origin", good}});
            CHECK(head.status == 200);
            CHECK(head.header("Access-Control-Allow-Origin") == good);
            CHECK(head.header("Vary") == "Origin");
        }
        for (const char* bad : {"https://example.com", "https://evilexample.com", "null",
                                "https://app.example.com.evil", "https://app.example.com:444"}) {
            CAPTURE(bad);
            const auto head = head_of(server.port(), {{"Origin", bad}});
            CHECK(head.status == 403);
            CHECK_FALSE(head.header("Access-Control-Allow-Origin"));
            CHECK_FALSE(head.header("Access-Control-Allow-Methods"));
            CHECK(head.header("Vary") == "Origin");
        }
    }

    TEST_CASE("without refusal a stranger gets a stream that its browser keeps from the page") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"https://app.example"});
        o.cors.refuse = false;
        running_server server(o);
        const auto head = head_of(server.port(), {{"Origin", "https://evil.example"}});
        CHECK(head.status == 200);
        CHECK_FALSE(head.header("Access-Control-Allow-Origin"));
        const auto preflight = http_request(
            server.port(), "OPTIONS", "/subscribe/a",
            {{"Origin", "https://evil.example"}, {"Access-Control-Request-Method", "GET"}});
        CHECK_FALSE(preflight.header("Access-Control-Allow-Methods"));
    }

    TEST_CASE("methods, headers, exposed headers, credentials and age are as the options say") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::localhost_origins();
        o.cors.credentials = true;
        o.cors.methods = {"GET"};
        o.cors.headers = {"X-Token"};
        o.cors.exposed = {"X-Trace"};
        o.cors.max_age = 60s;
        running_server server(o);
        const header_list asked{{"Origin", "http://localhost:5173"},
                                {"Access-Control-Request-Method", "GET"}};
        const auto preflight = http_request(server.port(), "OPTIONS", "/subscribe/a", asked);
        CHECK(preflight.status == 204);
        CHECK(preflight.header("Access-Control-Allow-Origin") == "http://localhost:5173");
        CHECK(preflight.header("Access-Control-Allow-Credentials") == "true");
        CHECK(preflight.header("Access-Control-Allow-Methods") == "GET");
        CHECK(preflight.header("Access-Control-Allow-Headers") == "X-Token");
        CHECK(preflight.header("Access-Control-Max-Age") == "60");
        CHECK(preflight.header("Vary") == "Origin");
        const auto head = head_of(server.port(), asked);
        CHECK(head.header("Access-Control-Expose-Headers") == "X-Trace");
        CHECK(head.header("Access-Control-Allow-Credentials") == "true");
    }

    TEST_CASE("credentials for every origin are refused at construction") {
        sse::options o = with_threads(1);
        o.cors.credentials = true;
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        o.cors.origin = sse::origins({"https://app.example", "*"});
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        o.cors.origin = sse::origins({"https://app.example"});
        CHECK_NOTHROW(sse::server{o});
    }

    TEST_CASE("fault 8: a dynamic matcher decides, with the request or as a coroutine") {
        sse::options o = with_threads(1);
        std::atomic<bool> tenant{false};
        o.cors.origin = [&](std::string_view origin, const sse::request& r) {
            return tenant && origin == "https://new.example" && r.query_value("tenant") == "7";
        };
        running_server with_request(o);
        const header_list origin{{"Origin", "https://new.example"}};
        CHECK(head_of(with_request.port(), origin, "/subscribe/?tenant=7").status == 403);
        tenant = true;
        CHECK(head_of(with_request.port(), origin, "/subscribe/?tenant=7").status == 200);
        CHECK(head_of(with_request.port(), origin, "/subscribe/?tenant=8").status == 403);

        o.cors.origin = [](std::string_view asked) -> asio::awaitable<bool> {
            asio::steady_timer database(co_await asio::this_coro::executor, 5ms);
            co_await database.async_wait(asio::use_awaitable);
            co_return asked == "https://new.example";
        };
        running_server with_coroutine(o);
        CHECK(head_of(with_coroutine.port(), origin).status == 200);
        CHECK(head_of(with_coroutine.port(), {{"Origin", "https://x.example"}}).status == 403);
    }
}

TEST_SUITE("matchers that fail") {
    TEST_CASE("a matcher that throws answers 500 and is reported; the server goes on") {
        sse::options o = with_threads(1);
        journal log;
        log.attach(o);
        o.cors.origin = [](std::string_view) -> bool { throw std::runtime_error("no table"); };
        running_server server(o);
        CHECK(head_of(server.port(), {{"Origin", "https://a.example"}}).status == 500);
        CHECK(log.comes("handler failed"));
        CHECK(head_of(server.port(), {}).status == 200);
    }
}

TEST_SUITE("endpoints of one's own") {
    TEST_CASE("fault 7: the documented mounts work: /events, /custom-sse, beside other routes") {
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

    TEST_CASE("fault 26: the health path is an option and can be left out") {
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

    TEST_CASE("fault 15: the heartbeat comes in silence, not under traffic") {
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
        for (; clock::now() - start < 400ms; ++messages) { // several heartbeats long
            const auto published = clock::now();
            server.broadcast({.data = "x"});
            const std::string text = client.read_through("data: x\n\n");
            const auto now = clock::now();
            // A comment is right only where this test itself was kept from publishing for so long.
            if (text.find(':') == 0) CHECK(now - last >= 60ms);
            last = published;
        }
        CHECK(messages > 10);
    }
}

TEST_SUITE("who may come in") {
    TEST_CASE("authorize sees the request and lets in, refuses, or names topics and a time") {
        sse::options o = with_threads(1);
        o.hooks.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
            asio::steady_timer lookup(co_await asio::this_coro::executor, 1ms);
            co_await lookup.async_wait(asio::use_awaitable);
            if (r.header("Authorization") == "Bearer staff") co_return sse::access::grant();
            if (r.header("Cookie") == "session=ann") {
                co_return sse::access::grant(
                    {.topics = {"/users/ann", "/news"}, .headers = {{"X-User", "ann"}}});
            }
            if (r.query_value("token") == "short") {
                co_return sse::access::grant({.valid_for = 50ms});
            }
            if (r.path == "/subscribe/over") co_return sse::access::refuse(204);
            co_return sse::access::refuse(401, "Log in first\n", {{"WWW-Authenticate", "Bearer"}});
        };
        running_server server(o);
        const auto refused = http_get(server.port(), "/subscribe/a");
        CHECK(refused.status == 401);
        CHECK(refused.header("WWW-Authenticate") == "Bearer");
        CHECK(refused.body == "Log in first\n");
        CHECK(http_get(server.port(), "/subscribe/over").status == 204);
        CHECK(server.counters().streams == 0);

        event_client staff(server.port(), "/subscribe/a", {{"Authorization", "Bearer staff"}});
        event_client ann(server.port(), "/subscribe/a", {{"Cookie", "session=ann"}});
        CHECK(ann.head().header("X-User") == "ann");
        server.publish("/a", {.data = "1"});
        server.publish("/users/ann", {.data = "2"});
        server.publish("/news", {.data = "3"});
        CHECK(staff.next().data == "1");
        CHECK(ann.next().data == "2");
        CHECK(ann.next().data == "3");

        event_client brief(server.port(), "/subscribe/a?token=short");
        CHECK(brief.wait_for_close() == ending::fin);
    }

    TEST_CASE("access is granted or refused in so many words") {
        static_assert(!std::is_default_constructible_v<sse::access>);
        static_assert(!std::is_constructible_v<sse::access, int>);
        CHECK(sse::access::grant().granted());
        for (const int status : {204, 300, 401, 599}) {
            CHECK_FALSE(sse::access::refuse(status).granted());
        }
        for (const int status : {-1, 0, 100, 200, 203, 205, 299, 600}) {
            CHECK_THROWS_AS(sse::access::refuse(status), std::invalid_argument);
        }
    }

    TEST_CASE("an authorize hook that throws refuses with 500 and is reported") {
        sse::options o = with_threads(1);
        journal log;
        log.attach(o);
        o.hooks.authorize = [](const sse::request&) -> asio::awaitable<sse::access> {
            throw std::runtime_error("the database is away");
            co_return sse::access::grant();
        };
        running_server server(o);
        CHECK(http_get(server.port(), "/subscribe/a").status == 500);
        CHECK(log.comes("handler failed"));
        for (const auto& l : log.taken()) {
            if (l.what != "handler failed") continue;
            CHECK(l.method == "GET");
            CHECK(l.path == "/subscribe/a");
            CHECK(l.client == "127.0.0.1");
            CHECK(l.detail == "the database is away");
        }
        CHECK(server.counters().streams == 0);
    }

    TEST_CASE("on a loopback address only its own names are served: DNS rebinding finds 421") {
        running_server server;
        const auto port = ":" + std::to_string(server.port());
        const auto status = [&](const std::string& host) {
            return head_of(server.port(), {{"Host", host}}, "/health").status;
        };
        for (const auto& own : {"localhost" + port, "127.0.0.1" + port, std::string("[::1]:1"),
                                std::string("LOCALHOST")}) {
            CHECK(status(own) == 200);
        }
        for (const char* strange : {"evil.example", "localhost.evil.example",
                                    "127.0.0.1.evil.example", "evil.example:80"}) {
            CHECK(status(strange) == 421);
        }
        // The page of a stranger whose name points here: same origin by name, still refused.
        CHECK(head_of(server.port(), {{"Host", "evil.example"}, {"Origin", "http://evil.example"}})
                  .status == 421);
    }

    TEST_CASE("the hosts that are served are an option") {
        sse::options o = with_threads(1);
        o.hosts = {"events.example"};
        running_server named(o);
        CHECK(head_of(named.port(), {{"Host", "events.example:8080"}}, "/health").status == 200);
        CHECK(head_of(named.port(), {{"Host", "localhost"}}, "/health").status == 421);
        o.hosts = {"*"};
        running_server any(o);
        CHECK(head_of(any.port(), {{"Host", "whatever.example"}}, "/health").status == 200);
    }

    TEST_CASE("the address that start was given is served, however it is spelled") {
        sse::server odd(with_threads(1));
        odd.start("127.0.1.1:0");
        const auto status = [](sse::server& s, const char* own, const std::string& host) {
            connection one(s.port(), {.host = own});
            return one.request("GET", "/health", {{"Host", host}}).status;
        };
        for (const char* const host :
             {"127.0.1.1", "127.0.0.1:80", "localhost.", "a.localhost", "[::ffff:127.0.1.1]"}) {
            CAPTURE(host);
            CHECK(status(odd, "127.0.1.1", host) == 200);
        }
        CHECK(status(odd, "127.0.1.1", "evil.example") == 421);
        sse::options o = with_threads(1);
        o.hosts = {"events.example:8080", "*.test"};
        running_server named(o);
        CHECK(status(named, "127.0.0.1", "127.0.0.1") == 200);
        CHECK(status(named, "127.0.0.1", "events.example") == 200);
        CHECK(status(named, "127.0.0.1", "a.test") == 200);
        CHECK(status(named, "127.0.0.1", "127.0.0.2") == 421);
        o.hosts = {"http://events.example"};
        CHECK_THROWS_WITH_AS(sse::server{o}, doctest::Contains("'http://events.example'"),
                             std::invalid_argument);
    }

    TEST_CASE("a refusal names the host and the origin that were seen") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"https://other.example"});
        running_server server(o);
        const auto unknown = http_get(server.port(), "/health", {{"Host", "events.example:1"}});
        CHECK(unknown.status == 421);
        CHECK(unknown.body.find("\"events.example:1\"") != std::string::npos);
        const auto refused =
            http_get(server.port(), "/health",
                     {{"Host", "127.0.0.1:1"}, {"Origin", "https://events.example"}});
        CHECK(refused.status == 403);
        CHECK(refused.body.find("\"https://events.example\"") != std::string::npos);
        CHECK(refused.body.find("\"127.0.0.1:1\"") != std::string::npos);
    }

    TEST_CASE("X-Forwarded-Host of a trusted proxy counts in place of Host, of nobody else") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"https://other.example"});
        o.hosts = {"events.example"};
        const auto status = [](sse::server& s, const std::string& passed) {
            return http_get(s.port(), "/health",
                            {{"Host", "127.0.0.1"},
                             {"X-Forwarded-Host", passed},
                             {"Origin", "https://events.example"}})
                .status;
        };
        running_server direct(o);
        CHECK(status(direct, "events.example") == 403);
        o.proxy.trusted = {"127.0.0.1"};
        running_server behind(o);
        CHECK(status(behind, "events.example") == 200);
        CHECK(status(behind, "evil.example, events.example") == 200);
        CHECK(status(behind, "events.example, evil.example") == 421);
    }

    TEST_CASE("a trusted proxy that does not name its clients is warned of once") {
        std::mutex mutex;
        std::vector<std::string> said;
        sse::options o = with_threads(1);
        o.proxy.trusted = {"127.0.0.1"};
        o.hooks.log = [&](const sse::log_entry& e) {
            const std::lock_guard lock(mutex);
            if (e.what == "client unknown") said.emplace_back(e.detail);
        };
        running_server server(o);
        const auto warnings = [&] {
            const std::lock_guard lock(mutex);
            return said.size();
        };
        CHECK(http_get(server.port(), "/health").status == 200); // its own check names nobody
        CHECK(http_get(server.port(), "/x", {{"X-Forwarded-For", "1.2.3.4"}}).status == 404);
        CHECK(warnings() == 0);
        for (int i = 0; i < 3; ++i) CHECK(http_get(server.port(), "/x").status == 404);
        CHECK(warnings() == 1);
        CHECK(said.front().find("X-Forwarded-For") != std::string::npos);
    }

    TEST_CASE("fault 17: X-Forwarded-For is nobody's word unless the peer is a trusted proxy") {
        const auto asking = [&](sse::server& s) {
            s.route("GET", "/who", [&](sse::stream& client) -> asio::awaitable<void> {
                const std::string who = client.request().client.to_string();
                co_await client.respond(200, "text/plain", who);
            });
        };
        const header_list forged{{"X-Forwarded-For", "6.6.6.6, 9.9.9.9"}, {"X-Real-IP", "7.7.7.7"}};
        sse::options o = with_threads(1);
        running_server alone(o, asking);
        CHECK(http_get(alone.port(), "/who", forged).body == "127.0.0.1");
        o.proxy.trusted = {"127.0.0.0/8", "9.9.9.9"};
        running_server behind(o, asking);
        CHECK(http_get(behind.port(), "/who", forged).body == "6.6.6.6");
        CHECK(http_get(behind.port(), "/who").body == "127.0.0.1");
        o.proxy.forwarded = sse::forwarded_by::x_real_ip;
        running_server real(o, asking);
        CHECK(http_get(real.port(), "/who", forged).body == "7.7.7.7");
        o.proxy.forwarded = sse::forwarded_by::forwarded;
        running_server standard(o, asking);
        CHECK(http_get(standard.port(), "/who",
                       {{"Forwarded", "for=\"[2001:db8::1]:99\";proto=https"}})
                  .body == "2001:db8::1");
    }

    TEST_CASE("fault 17: limits by address count clients, not proxies and not what they claim") {
        sse::options o = with_threads(1);
        o.limits.connections_per_ip = 1;
        running_server direct(o);
        event_client one(direct.port());
        const auto stream_status = [](std::uint16_t port, const header_list& headers) {
            return http_request(port, "HEAD", "/subscribe/", headers).status;
        };
        CHECK(stream_status(direct.port(), {{"X-Forwarded-For", "1.2.3.4"}}) == 429);

        o.proxy.trusted = {"127.0.0.1"};
        running_server proxied(o);
        event_client a(proxied.port(), "/subscribe", {{"X-Forwarded-For", "1.1.1.1"}});
        event_client b(proxied.port(), "/subscribe", {{"X-Forwarded-For", "2.2.2.2"}});
        CHECK(stream_status(proxied.port(), {{"X-Forwarded-For", "1.1.1.1"}}) == 429);
        CHECK(stream_status(proxied.port(), {{"X-Forwarded-For", "8.8.8.8, 1.1.1.1"}}) == 429);
        a.close();
        CHECK(eventually([&] {
            return stream_status(proxied.port(), {{"X-Forwarded-For", "1.1.1.1"}}) == 200;
        }));
    }

    TEST_CASE("the PROXY protocol names the client, and a connection without it ends") {
        sse::options o = with_threads(1);
        o.proxy.protocol = true;
        o.proxy.trusted = {"127.0.0.1"};
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/who", [](sse::stream& client) -> asio::awaitable<void> {
                const std::string who = client.request().client.to_string();
                co_await client.respond(200, "text/plain", who);
            });
        });
        const std::string get = "GET /who HTTP/1.1\r\nHost: localhost\r\n\r\n";
        connection v1(server.port());
        v1.send("PROXY TCP4 5.6.7.8 127.0.0.1 4711 80\r\n" + get);
        CHECK(v1.read_response().body == "5.6.7.8");
        connection v2(server.port());
        const std::string v2_head(
            "\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x05\x06\x07\x09\x7f\x00\x00\x01"
            "\x12\x34\x00\x50",
            28);
        for (const char byte : v2_head.substr(0, 20)) v2.send(std::string(1, byte));
        v1.send(get); // one thread: by the answer, the server has read these
        CHECK(v1.read_response().body == "5.6.7.8");
        v2.send(v2_head.substr(20) + get);
        CHECK(v2.read_response().body == "5.6.7.9");
        connection without(server.port());
        without.send(get);
        CHECK(without.read_to_end().empty());
    }
}

TEST_SUITE("limits") {
    TEST_CASE("at a limit streams are refused, and what is no stream is served") {
        for (const bool by_address : {false, true}) {
            CAPTURE(by_address);
            sse::options o = with_threads(1);
            (by_address ? o.limits.connections_per_ip : o.limits.connections) = 3;
            std::atomic<int> told{0};
            running_server server(o, [&](sse::server& s) {
                s.route("POST", "/publish", [&](sse::stream& client) -> asio::awaitable<void> {
                    const std::string text = co_await client.body();
                    s.broadcast({.data = text});
                    co_await client.respond(202, "text/plain", "");
                });
                s.route("GET", "/own", [&](sse::stream& client) -> asio::awaitable<void> {
                    try {
                        co_await client.send({.data = "x"});
                    } catch (const std::system_error& e) {
                        if (e.code() == sse::errc::over_limit) ++told;
                        throw;
                    }
                });
            });
            const int refused = by_address ? 429 : 503;
            std::list<event_client> subscribers;
            for (int n = 0; n < 3; ++n) subscribers.emplace_back(server.port());
            CHECK(http_get(server.port(), "/health").status == 200);
            const int ready = http_get(server.port(), "/health/ready").status;
            CHECK(ready == (by_address ? 200 : 503)); // others may still come
            const header_list preflight{{"Origin", "https://a.example"},
                                        {"Access-Control-Request-Method", "GET"}};
            CHECK(http_request(server.port(), "OPTIONS", "/subscribe/", preflight).status == 204);
            CHECK(http_request(server.port(), "POST", "/publish", {}, "news").status == 202);
            for (event_client& one : subscribers) CHECK(one.next().data == "news");
            for (const char* const target : {"/subscribe/", "/own"}) {
                const auto answer = http_get(server.port(), target);
                CHECK(answer.status == refused);
                CHECK(answer.header("Retry-After") == "5");
            }
            CHECK(told == 1);
            subscribers.pop_back();
            CHECK(
                eventually([&] { return http_get(server.port(), "/health/ready").status == 200; }));
            CHECK(eventually([&] { return server.counters().connections <= 2; }));
            subscribers.emplace_back(server.port());
        }
    }

    TEST_CASE("over the rate of new connections nothing is served") {
        sse::options o = with_threads(1);
        o.limits.connect_rate_per_ip = 2;
        running_server server(o);
        int refused = 0;
        for (int n = 0; n < 10; ++n) {
            if (http_get(server.port(), "/health").status == 429) ++refused;
        }
        CHECK(refused > 0);
    }

    TEST_CASE("a handler's own stream is refused softly too") {
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        o.limits.over = sse::refusal::soft;
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/own", [](sse::stream& client) -> asio::awaitable<void> {
                co_await client.send({.data = "x"});
            });
        });
        event_client first(server.port());
        connection peer(server.port());
        peer.send_request("GET", "/own", {{"Accept", "text/event-stream"}});
        CHECK(peer.read_head().status == 200);
        CHECK(peer.read_to_end().starts_with("retry: "));
    }

    TEST_CASE("an address is counted and its rate held while thousands of others come and go") {
        using book = sse::detail::address_book;
        const auto other = [](unsigned n) { return asio::ip::address_v4(0x0a000000U + n); };
        const auto stays = asio::ip::make_address("192.0.2.1");
        const auto comes_again = asio::ip::make_address("192.0.2.2");
        book all;
        auto now = book::clock::time_point(1h);
        const auto held = all.enter(stays, 1, 1, now);
        REQUIRE(held);
        for (unsigned round = 0; round < 4; ++round) {
            now += 2s;
            const auto place = all.enter(comes_again, 1, 1, now);
            REQUIRE(place); // at the full rate again
            all.leave(place);
            for (unsigned n = 0; n < 3000; ++n) {
                const auto one = all.enter(other(3000 * round + n), 1, 1, now + 500ms);
                REQUIRE(one);
                all.leave(one);
            }
            CHECK(!all.enter(comes_again, 1, 1, now + 500ms)); // half a place is none
            CHECK(!all.enter(stays, 1, 1, now));
        }
        all.leave(held);
        CHECK(all.enter(stays, 1, 1, now + 2s));
    }

    TEST_CASE("fault 16: a soft refusal sends an EventSource away for a while, not for good") {
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        o.limits.over = sse::refusal::soft;
        o.limits.retry_after = 2000ms;
        running_server server(o);
        event_client first(server.port());
        event_client second(server.port());
        CHECK(second.wait_for_close() == ending::fin);
        const auto retry = second.decoder().reconnection_time();
        REQUIRE(retry);
        CHECK(*retry >= 2000);
        CHECK(*retry <= 4000);
        CHECK(second.head().header("Access-Control-Allow-Origin") == "*");
        const auto fetched = http_get(server.port(), "/subscribe/");
        CHECK(fetched.status == 503);
        CHECK(fetched.header("Retry-After") == "2");
    }

    TEST_CASE("a soft refusal can be read by the pages that may read the stream, by no others") {
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        o.limits.over = sse::refusal::soft;
        o.cors.origin = sse::origins({"https://app.example"});
        running_server server(o);
        event_client first(server.port());
        event_client second(server.port(), "/subscribe", {{"Origin", "https://app.example"}});
        CHECK(second.head().header("Access-Control-Allow-Origin") == "https://app.example");
        CHECK(second.wait_for_close() == ending::fin);
        CHECK(head_of(server.port(), {{"Origin", "https://evil.example"}}).status == 403);
    }

    TEST_CASE("the rate of connections from one address is limited, others get in") {
        sse::options o = with_threads(1);
        o.limits.connect_rate_per_ip = 5;
        running_server server(o);
        int served = 0, refused = 0;
        for (int i = 0; i < 30; ++i) {
            (http_get(server.port(), "/health").status == 200 ? served : refused) += 1;
        }
        CHECK(served >= 5);
        CHECK(refused > 0);
        connection other(server.port(), {.source = "127.0.0.9"});
        CHECK(other.request("GET", "/health").status == 200);
        CHECK(eventually([&] { return http_get(server.port(), "/health").status == 200; }));
    }

    TEST_CASE("more header lines than allowed get 431") {
        sse::options o = with_threads(1);
        o.limits.header_lines = 3;
        running_server server(o);
        connection peer(server.port());
        peer.send("GET /health HTTP/1.1\r\nHost: localhost\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n");
        CHECK(peer.read_response().status == 431);
    }

    TEST_CASE("an idle connection is closed, one that sends a new head in time is not") {
        sse::options o = with_threads(1);
        o.timeouts.idle = 60ms;
        running_server server(o);
        connection peer(server.port());
        CHECK(peer.request("GET", "/health").status == 200);
        CHECK(peer.request("GET", "/health").status == 200);
        CHECK(peer.read_to_end().empty());
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("a chunked body is read; one that is broken, too large or late gets 400, 413, 408") {
        sse::options o = with_threads(1);
        o.limits.body_bytes = 10;
        o.timeouts.body = 60ms;
        running_server server(o, [](sse::server& s) {
            s.route("POST", "/echo", [](sse::stream& client) -> asio::awaitable<void> {
                const std::string text = co_await client.body();
                co_await client.respond(200, "text/plain", text);
            });
        });
        const auto answer_to = [&](const std::string& body) {
            connection peer(server.port());
            peer.send(
                "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" +
                body);
            return peer.read_response();
        };
        CHECK(answer_to("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n").body == "abcde");
        CHECK(answer_to("0x3\r\nabc\r\n0\r\n\r\n").status == 400);
        CHECK(answer_to("3\r\nabcX\r\n0\r\n\r\n").status == 400);
        CHECK(answer_to("b\r\nabcdefghijk\r\n0\r\n\r\n").status == 413);
        CHECK(answer_to("3\r\nab").status == 408);
        connection reused(server.port());
        reused.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                    "1\r\na\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        CHECK(reused.read_response().body == "a");
        CHECK(reused.read_response().status == 200);
    }

    TEST_CASE("a client for whom too many bytes wait is cut before the history has passed it") {
        sse::options o = with_threads(1);
        o.limits.unsent_bytes = 100'000;
        o.timeouts.header = 200ms; // several sweeps a second
        running_server server(o);
        connection stuck(server.port(), {.receive_buffer = 4096});
        stuck.send_request("GET", "/subscribe/");
        CHECK(stuck.read_head().status == 200);
        const std::string payload(50'000, 'x');
        event_client good(server.port());
        for (int n = 0; n < 400 && server.counters().lagged == 0; ++n) {
            server.broadcast({.data = payload});
            REQUIRE(good.next().data == payload);
        }
        CHECK(eventually([&] { return server.counters().lagged == 1; }));
        CHECK(server.counters().streams == 1);
    }

    TEST_CASE("a stream ends at its greatest age, and not all at once") {
        sse::options o = with_threads(1);
        o.timeouts.stream_age = 100ms;
        running_server server(o);
        event_client a(server.port()), b(server.port());
        CHECK(a.wait_for_close() == ending::fin);
        CHECK(b.wait_for_close() == ending::fin);
        CHECK(server.counters().streams == 0);
    }

    TEST_CASE("a client that keeps talking into its stream is cut off") {
        running_server server;
        event_client client(server.port());
        connection& peer = client.socket();
        const std::string noise(64 * 1024, 'x');
        bool cut = false;
        for (int i = 0; i < 100 && !cut; ++i) cut = !peer.try_send(noise);
        CHECK(cut);
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("the accept loop outlives a lack of descriptors") {
        sse::options o = with_threads(1);
        journal log;
        log.attach(o);
        running_server server(o);
        rlimit before{};
        REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
        connection waiting(server.port()); // its own descriptor exists before the lack
        CHECK(waiting.request("GET", "/health").status == 200);
        connection early(server.port());
        CHECK(early.request("GET", "/health").status == 200);
        const rlimit none{open_descriptors(), before.rlim_max};
        connection late(server.port());
        CHECK(late.request("GET", "/health").status == 200);
        REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
        // The kernel completes this connection; the server has no descriptor to accept it with.
        std::optional<std::string> problem;
        try {
            early.close();
            connection starved(server.port()); // takes the one that early gave back
            CHECK(log.comes("accept failed"));
            CHECK(server.counters().accept_failures > 0);
            ::setrlimit(RLIMIT_NOFILE, &before);
            CHECK(starved.request("GET", "/health").status == 200);
        } catch (const std::exception& e) { problem = e.what(); }
        ::setrlimit(RLIMIT_NOFILE, &before);
        CHECK(problem.value_or("") == "");
        CHECK(http_get(server.port(), "/health").status == 200);
    }
}

TEST_SUITE("log") {
    TEST_CASE("faults 22 and 27: requests and ends are logged with fields, a query never") {
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

    TEST_CASE("who is refused without an answer, for there are too many, is in the log") {
        sse::options o = with_threads(1);
        o.limits.connections_per_ip = 1;
        journal log;
        log.attach(o);
        running_server server(o);
        std::vector<std::unique_ptr<connection>> silent; // each would be refused once it has asked
        while (silent.size() < 300) silent.push_back(std::make_unique<connection>(server.port()));
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

TEST_SUITE("under attack") {
    TEST_CASE("5,000 slow heads do not keep a new client from being served") {
        if (raise_descriptor_limit() < 12'000) return;
        running_server server;
        std::vector<connection> slow;
        for (int i = 0; i < 5000; ++i) {
            slow.emplace_back(server.port(),
                              connect_options{.source = "127.0.0." + std::to_string(2 + i % 4)});
            slow.back().send("GET /subs");
        }
        CHECK(eventually([&] { return server.counters().connections >= 5000; }));
        CHECK(http_get(server.port(), "/health", {}, 1s).status == 200);
        event_client client(server.port());
        server.broadcast({.data = "through"});
        CHECK(client.next(1s).data == "through");
    }

    TEST_CASE("fault 18: 500 clients that never read hold back nobody and no memory") {
        sse::options o = with_threads(1);
        o.history.bytes = 4 * 1024 * 1024;
        running_server server(o);
        std::vector<connection> stuck;
        for (int i = 0; i < 500; ++i) {
            stuck.emplace_back(server.port(), connect_options{.receive_buffer = 4096});
            stuck.back().send_request("GET", "/subscribe/");
            CHECK(stuck.back().read_head().status == 200);
        }
        event_client good(server.port());
        const std::string payload(10'000, 'x');
        const std::size_t before = resident_bytes();
        for (int n = 0; n < 500; ++n) {
            server.broadcast({.data = payload});
            REQUIRE(good.next().data == payload);
        }
        if (memory_is_meaningful) CHECK(resident_bytes() < before + 16 * 1024 * 1024);
    }

    TEST_CASE("connects and resets by the thousand leave nothing behind") {
        running_server server(with_threads(2));
        const std::size_t descriptors = open_descriptors();
        const auto storm = [&](int count) {
            for (int n = 0; n < count; ++n) {
                connection peer(server.port());
                if (n % 3 == 1) peer.send("GET /subscribe/ HTTP/1.1\r\nHost: localhost\r\n\r\n");
                if (n % 3 == 2) peer.send("GET /sub");
                peer.reset();
            }
            REQUIRE(eventually([&] { return server.counters().connections == 0; }));
        };
        storm(2'000); // warms up
        const std::size_t memory = resident_bytes();
        storm(18'000);
        CHECK(server.counters().streams == 0);
        // The last of them may still wait to be accepted.
        CHECK(eventually([&] { return open_descriptors() == descriptors; }));
        if (memory_is_meaningful) CHECK(resident_bytes() < memory + 4 * 1024 * 1024);
        CHECK(http_get(server.port(), "/health").status == 200);
    }
}

} // namespace door_test
