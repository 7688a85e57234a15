// limits.cpp - covers >>hub: the limits and timeouts, and what they hold against.
#include "support/journal.hpp"

#include <doctest/doctest.h>

#include <fstream>
#include <list>
#include <map>
#include <memory>
#include <thread>

namespace limits_test {

using namespace std::chrono_literals;
using namespace support;

TEST_SUITE("limits") {
    TEST_CASE("at a limit streams are refused, and what is not a stream is served") {
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
        CHECK(eventually([&] { return http_get(server.port(), "/health").status == 429; }));
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

    TEST_CASE("a soft refusal sends an EventSource away for a while, not for good") {
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
        CHECK(eventually([&] { // as soon as they come faster than five in a second
            (http_get(server.port(), "/health").status == 200 ? served : refused) += 1;
            return refused > 0;
        }));
        CHECK(served >= 5);
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
        std::optional<connection> peer;
        REQUIRE(in_time([&] {
            peer.emplace(server.port());
            return peer->request("GET", "/health").status == 200 &&
                   peer->request("GET", "/health").status == 200;
        }));
        CHECK(peer->read_to_end().empty());
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
        o.timeouts.body = 200ms; // many sweeps a second
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

#if defined(__linux__)
    // A table that grows later stops a worker for an RCU grace period. That of a forked process is
    // as small as what is open. One of 4,096 has no room for that many connections and what else is
    // open.
    TEST_CASE("the table of descriptors has room for all connections from the start") {
        constexpr std::size_t connections = 4'096;
        if (raise_descriptor_limit() < 2 * connections) return;
        const auto slots = [] {
            std::ifstream status("/proc/self/status");
            const std::string key = "FDSize:";
            std::size_t size = 0;
            for (std::string line; std::getline(status, line);) {
                if (line.starts_with(key)) size = std::stoul(line.substr(key.size()));
            }
            return size;
        };
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            const std::size_t before = slots();
            sse::options o = with_threads(1);
            o.limits.connections = connections;
            running_server server(o);
            ::_exit(before == 0 || before > connections ? 1 : slots() <= connections ? 2 : 0);
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        CHECK(WEXITSTATUS(status) == 0);
    }
#endif

    // A client that speaks TLS would need more descriptors here, to read whom it trusts.
    TEST_CASE("the accept loop outlives a lack of descriptors" * doctest::skip(tls_by_default)) {
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

TEST_SUITE("under attack") {
    TEST_CASE("5,000 slow heads do not keep a new client from being served") {
        if (raise_descriptor_limit() < 12'000) return;
        // Handshakes take minutes under a sanitizer: then 1,000.
        const int attackers = tls_by_default && !memory_is_meaningful ? 1'000 : 5'000;
        sse::options o = with_threads(1);
        o.timeouts.header = 300s; // over TLS and under a sanitizer the first wait for long
        running_server server(o);
        std::vector<connection> slow;
        for (int i = 0; i < attackers; ++i) {
            slow.emplace_back(server.port(),
                              connect_options{.source = "127.0.0." + std::to_string(2 + i % 4)});
            slow.back().send("GET /subs");
        }
        CHECK(eventually([&] { return server.counters().connections == slow.size(); }));
        CHECK(eventually([&] { // in less than a second, but where the machine is busy
            const deadline soon = 1s;
            CHECK(http_get(server.port(), "/health").status == 200);
            return !soon.passed();
        }));
        event_client client(server.port());
        CHECK(eventually([&] {
            const deadline soon = 1s;
            server.broadcast({.data = "through"});
            CHECK(client.next().data == "through");
            return !soon.passed();
        }));
    }

    TEST_CASE("500 clients that never read hold back nobody and no memory") {
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
                if (n % 200 == 199) // memory depends on how many there are at once
                    REQUIRE(eventually([&] { return server.counters().connections == 0; }));
            }
        };
        storm(2'000); // warms up
        const std::size_t memory = resident_bytes();
        storm(memory_is_meaningful ? 18'000 : 4'000); // memory is what so many are for
        CHECK(server.counters().streams == 0);
        // The last of them may still wait to be accepted.
        CHECK(eventually([&] { return open_descriptors() == descriptors; }));
        if (memory_is_meaningful) CHECK(resident_bytes() < memory + 4 * 1024 * 1024);
        CHECK(http_get(server.port(), "/health").status == 200);
    }
}

} // namespace limits_test
