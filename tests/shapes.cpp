// shapes.cpp - covers >>exchange: Every shape of call that the README and the examples show, in
// co_await expressions, with temporaries: g++ 11 and 12 destroy some of these twice in code that is
// written otherwise. To be run under the address sanitizer, with each compiler.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <asio/use_future.hpp>

#include <doctest/doctest.h>

#include <future>
#include <string>
#include <vector>

namespace shapes_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

// Longer than what a std::string keeps within itself.
std::string text(int n) { return "a text of some length, number " + std::to_string(n); }

/// Ten of its numbers are nothing that a compiler could fold.
template <class F>
void repeat(F&& f) {
    for (int n = 0; n < 10; ++n) f(n);
}

handler_result sends(sse::stream& client) {
    co_await client.send({.data = text(1)});
    co_await client.send({.event = "e", .data = text(2), .id = std::to_string(2)});
    co_await client.send({.event = std::string("e") + "f", .data = text(3), .retry = 100ms});
    co_await client.send({.comment = text(4)});
    co_await client.send({.data = "literal"});
    const std::string named = text(5);
    const sse::message both[] = {{.data = named}, {.event = "e", .data = "b"}};
    co_await client.send(both);
    const std::vector<sse::message> many(3, {.data = named});
    co_await client.send(many);
    const bool taken = client.try_send({.data = text(6)});
    CHECK(taken);
    co_await client.sleep_for(1ms);
    for (int n = 0; n < 3; ++n) co_await client.send({.data = std::to_string(n) + text(n)});
}

handler_result answers(sse::stream& client) {
    const std::string whole = co_await client.body();
    client.add_header("X-Text", text(7));
    co_await client.respond(200, "text/plain", whole + text(8));
}

handler_result answers_by_pieces(sse::stream& client) {
    std::size_t size = 0;
    for (;;) {
        const std::string piece = co_await client.body_some();
        if (piece.empty()) break;
        size += piece.size();
    }
    co_await client.respond(200, "text/plain", std::to_string(size) + text(8));
}

handler_result snapshot(sse::stream& client) {
    client.subscribe("/shapes", {.held = true});
    co_await client.send({.event = "snapshot", .data = text(9)});
    client.resume();
    co_await client.closed();
}

handler_result throws(sse::stream& client) {
    co_await client.send({.data = text(10)});
    throw std::runtime_error(text(11));
}

std::string url(const sse::server& server, const std::string& path) {
    return "http://127.0.0.1:" + std::to_string(server.port()) + path;
}

/// The data of all events of an address, joined.
asio::awaitable<std::string> read_all(std::string address) {
    sse::client_options options;
    options.reconnect = false;
    const auto here = co_await asio::this_coro::executor;
    sse::client source(here, address, options);
    std::string all;
    for (;;) {
        const auto event = co_await source.next();
        if (!event) break;
        all += event->type + ":" + event->data + "\n";
    }
    co_return all;
}

/// Runs a coroutine to its end. What it gives, or throws.
template <class T>
T run(asio::awaitable<T> work) {
    asio::io_context io;
    std::future<T> result = asio::co_spawn(io, std::move(work), asio::use_future);
    io.run();
    return result.get();
}

} // namespace

TEST_SUITE("call shapes") {
    TEST_CASE("messages of temporaries, alone and several") {
        running_server server(with_threads(1), [](sse::server& s) { s.route("GET", "/s", sends); });
        repeat([&](int) {
            const std::string all = run(read_all(url(server, "/s")));
            CHECK(all.starts_with("message:" + text(1) + "\ne:" + text(2) + "\nef:" + text(3)));
            CHECK(all.ends_with("message:2" + text(2) + "\n"));
        });
    }

    TEST_CASE("bodies and answers of temporaries") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("POST", "/a", answers);
            s.route("POST", "/b", answers_by_pieces);
        });
        repeat([&](int n) {
            connection peer(server.port());
            CHECK(peer.request("POST", "/a", {}, text(n)).body == text(n) + text(8));
            CHECK(peer.request("POST", "/b", {}, text(n)).body ==
                  std::to_string(text(n).size()) + text(8));
        });
    }

    TEST_CASE("publishing from a coroutine, with temporaries") {
        running_server server(with_threads(1));
        event_client client(server.port(), "/subscribe/shapes");
        const auto publish = [](sse::server& to, int n) -> asio::awaitable<std::uint64_t> {
            co_await to.async_publish("/shapes/" + std::to_string(n), {.data = text(n)});
            co_return co_await to.async_broadcast({.event = "all", .data = text(n + 1)});
        };
        repeat([&](int n) {
            run(publish(server, n));
            CHECK(client.next().data == text(n));
            CHECK(client.next().data == text(n + 1));
        });
    }

    TEST_CASE("a snapshot between subscribing and releasing") {
        running_server server(with_threads(1),
                              [](sse::server& s) { s.route("GET", "/s", snapshot); });
        repeat([&](int n) {
            event_client client(server.port(), "/s");
            CHECK(client.next().data == text(9));
            server.publish("/shapes", {.data = text(n)});
            CHECK(client.next().data == text(n));
        });
    }

    TEST_CASE("a handler that throws what owns memory") {
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        running_server server(o, [](sse::server& s) { s.route("GET", "/s", throws); });
        repeat([&](int) { CHECK_THROWS_AS(run(read_all(url(server, "/s"))), std::system_error); });
        CHECK(eventually([&] { return errors.count == 10; }));
    }

    TEST_CASE("authorize, an origin that is asked for, and on_gap") {
        sse::options o = with_threads(1);
        o.history.messages = 4;
        o.cors.origin = [](std::string_view origin) -> asio::awaitable<bool> {
            co_return origin.size() > 20;
        };
        o.hooks.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
            if (r.query_value("no")) co_return sse::access::refuse(401, text(12));
            co_return sse::access::grant(
                {.topics = {"/shapes/of/a/longer/name"}, .headers = {{"X-Granted", text(13)}}});
        };
        o.hooks.on_gap = [](sse::stream& client, const sse::gap& g) -> handler_result {
            co_await client.send({.event = "mended", .data = text(14) + g.from});
        };
        running_server server(o);
        repeat([&](int n) {
            CHECK(http_get(server.port(), "/subscribe/?no=1").body == text(12));
            const header_list headers{{"Origin", "https://some.long.name.example"},
                                      {"Last-Event-ID", "nobody-" + std::to_string(n)}};
            event_client client(server.port(), "/subscribe/", headers);
            CHECK(client.head().header("X-Granted") == text(13));
            CHECK(client.next().data.starts_with(text(14) + "nobody-"));
        });
    }

    TEST_CASE("a client made in the same expression as co_await") {
        running_server server(with_threads(1), [](sse::server& s) { s.route("GET", "/s", sends); });
        const auto reads = [](std::string address) -> asio::awaitable<std::string> {
            sse::client source(co_await asio::this_coro::executor, address + "/s");
            const auto event = co_await source.next();
            co_return event ? event->data : std::string();
        };
        repeat([&](int) { CHECK(run(reads(url(server, ""))) == text(1)); });
    }

    TEST_CASE("jobs, groups, a drain") {
        sse::jobs jobs;
        running_server server(with_threads(1), [&](sse::server& s) {
            sse::route_group group = s.group("/g", {.max_requests = 10});
            group.route("GET", "/jobs/{id}", [&](sse::stream& client) {
                return jobs.serve(client, client.request().path_value("id"));
            });
        });
        sse::job job = jobs.start("a-job-with-a-name-of-some-length");
        for (int n = 0; n < 10; ++n) job.send({.data = text(n), .key = text(n % 3)});
        job.finish({.event = "done", .data = text(20)});
        repeat([&](int) {
            const std::string all =
                run(read_all(url(server, "/g/jobs/a-job-with-a-name-of-some-length")));
            CHECK(all == "message:" + text(7) + "\nmessage:" + text(8) + "\nmessage:" + text(9) +
                             "\ndone:" + text(20) + "\n");
        });
        const auto drain = [](sse::server& which) -> asio::awaitable<sse::drain_result> {
            co_return co_await which.async_drain(
                {.window = 50ms, .farewell = sse::message{.event = "bye", .data = text(21)}});
        };
        event_client client(server.port());
        CHECK(run(drain(server)).closed == 1);
        CHECK(client.next().data == text(21));
    }
}

} // namespace shapes_test
