// authorize.cpp - covers >>peer, >>exchange: who may come in: authorize, hosts, trusted proxies,
// the PROXY protocol.
#include "support/journal.hpp"

#include <doctest/doctest.h>

namespace authorize_test {

using namespace std::chrono_literals;
using namespace support;

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

    TEST_CASE("X-Forwarded-For is nobody's word unless the peer is a trusted proxy") {
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

    TEST_CASE("limits by address count clients, not proxies and not what they claim") {
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

    // Its header would come before the handshake: the server refuses to start.
    TEST_CASE("the PROXY protocol names the client, and a connection without it ends" *
              doctest::skip(tls_by_default)) {
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
        v1.send(get); // one thread: by the response, the server has read these
        CHECK(v1.read_response().body == "5.6.7.8");
        v2.send(v2_head.substr(20) + get);
        CHECK(v2.read_response().body == "5.6.7.9");
        connection without(server.port());
        without.send(get);
        CHECK(without.read_to_end().empty());
    }
}

} // namespace authorize_test
