// fanout.cpp - covers >>worker: many clients: every one gets every message once and in order, and
// leaves nothing behind.
#include "support/allocated.hpp"
#include "support/server.hpp"
#include "support/swarm.hpp"

#include <doctest/doctest.h>

#include <csignal>
#include <memory>
#include <random>
#include <thread>

namespace fanout_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// Publishes numbers from 1 on, each padded to `size` bytes, at a steady rate.
void publish_numbers(sse::server& server, std::uint64_t count, double per_second,
                     std::size_t size) {
    const auto start = std::chrono::steady_clock::now();
    for (std::uint64_t n = 1; n <= count; ++n) {
        std::this_thread::sleep_until(
            start + std::chrono::duration_cast<std::chrono::nanoseconds>(
                        std::chrono::duration<double>(static_cast<double>(n) / per_second)));
        std::string data = std::to_string(n) + " ";
        data.resize(size, 'x');
        server.broadcast({.data = data});
    }
}

void check_thousand_clients(std::size_t threads) {
    constexpr std::uint64_t messages = memory_is_meaningful ? 2'000 : 200; // fewer by a sanitizer
    running_server server(with_threads(threads));
    swarm clients(server.port(), {.clients = 1000});
    REQUIRE(clients.connect());
    std::thread publisher([&] { publish_numbers(server, messages, 200, 100); });
    const bool complete = clients.run_until_all_saw(messages, 120s);
    publisher.join();
    CHECK(complete);
    CHECK(clients.all_saw_exactly(1, messages));
    CHECK(eventually([&] { return server.counters().delivered == messages * 1000; }));
    CHECK(server.counters().lagged == 0);
}

/// What each of so many clients costs the server once it has its head; they cost this process
/// nothing else.
std::size_t bytes_for_each(running_server& server, std::string_view target, std::size_t count) {
    const std::string request =
        "GET " + std::string(target) + " HTTP/1.1\r\nHost: localhost\r\n\r\n";
    std::vector<descriptor> clients;
    clients.reserve(count);
    const auto all_are_here = [&] { return server.counters().streams == clients.size(); };
    const auto connect = [&] {
        connection one(server.port());
        one.send(request);
        clients.emplace_back(::dup(one.native_handle()));
    };
    constexpr std::size_t first = 500; // what they need is not counted
    while (clients.size() < first) connect();
    REQUIRE(eventually(all_are_here));
    const std::size_t before = allocated_bytes();
    while (clients.size() < count) connect();
    REQUIRE(eventually(all_are_here));
    CHECK(http_get(server.port(), "/health").status == 200); // all of them are served by now
    return (allocated_bytes() - before) / (count - first);
}

} // namespace

TEST_SUITE("many clients") {
    TEST_CASE("a client that waits costs half a kilobyte, one whose handler waits two") {
        if (!memory_is_meaningful) return;
        const auto costs = [](std::string_view target) { // each on a server of its own
            running_server server(with_threads(1), [](sse::server& s) {
                s.route("GET", "/closed", [](sse::stream& client) -> asio::awaitable<void> {
                    client.subscribe("/");
                    co_await client.closed();
                });
                s.route("GET", "/sleep", [](sse::stream& client) -> asio::awaitable<void> {
                    co_await client.send({.data = "x"});
                    co_await client.sleep_for(1h);
                });
            });
            const std::size_t each = bytes_for_each(server, target, 4000);
            MESSAGE(target << ": " << each << " bytes");
            return each;
        };
        CHECK(costs("/subscribe/") < 520);
        CHECK(costs("/closed") < 2112);
        CHECK(costs("/sleep") < 2368);
    }

    TEST_CASE("1,000 clients at 200 messages of 100 bytes a second for 10 s: each once, in order") {
        check_thousand_clients(1);
    }

    TEST_CASE("the same with two worker threads") { check_thousand_clients(2); }

    TEST_CASE("writing to clients that have left raises no SIGPIPE") {
        static std::atomic<int> raised{0};
        const auto before = std::signal(SIGPIPE, [](int) { ++raised; });
        running_server server(with_threads(1));
        for (int round = 0; round < 20; ++round) {
            std::vector<std::unique_ptr<event_client>> clients;
            while (clients.size() < 10)
                clients.push_back(std::make_unique<event_client>(server.port()));
            for (auto& client : clients) client->reset();
            for (int i = 0; i < 10; ++i) server.publish("/x", {.data = "for nobody"});
        }
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(raised == 0);
        std::signal(SIGPIPE, before);
    }

    TEST_CASE("coalesce: a message waits for more, but not while a quarter of the ring fills, nor "
              "when its stream or the server ends") {
        sse::options o = with_threads(1);
        o.coalesce = 1min; // what is awaited here comes before its end
        o.ring_capacity = 16;
        running_server server(o, [](sse::server& made) {
            made.route("GET", "/last", [&made](sse::stream& client) -> asio::awaitable<void> {
                client.subscribe("/");
                made.broadcast({.data = "before the end"});
                client.close();
                co_return;
            });
        });
        const auto let_worker_finish = [&] {
            CHECK(http_get(server.port(), "/health").status == 200); // it is one thread
        };
        event_client client(server.port());
        server.broadcast({.data = "1"}); // the first of a quarter
        CHECK(client.next().data == "1");
        let_worker_finish();
        for (const char* const data : {"2", "3", "4"}) server.broadcast({.data = data});
        let_worker_finish();
        CHECK(server.counters().delivered == 1);
        server.broadcast({.data = "5"});
        for (const char* const data : {"2", "3", "4", "5"}) CHECK(client.next().data == data);
        let_worker_finish();
        CHECK(server.counters().delivered == 5);
        event_client short_lived(server.port(), "/last");
        CHECK(short_lived.next().data == "before the end");
        CHECK(client.next().data == "before the end");
        server.broadcast({.data = "the last"});
        server.stop();
        CHECK(client.next().data == "the last");
    }

    TEST_CASE("clients that come and go during a flood see a run of numbers without a hole") {
        running_server server(with_threads(2));
        std::atomic<bool> go_on{true};
        std::thread publisher([&] {
            for (std::uint64_t n = 1; go_on; ++n) server.broadcast({.data = std::to_string(n)});
        });
        const auto seed = std::random_device()();
        MESSAGE("seed " << seed);
        std::mt19937 random(seed);
        for (int round = 0; round < 100; ++round) {
            event_client client(server.port());
            const auto wanted = std::uniform_int_distribution<int>(1, 500)(random);
            std::uint64_t last = std::stoull(client.next().data);
            for (int i = 1; i < wanted; ++i) REQUIRE(std::stoull(client.next().data) == ++last);
            if (round % 2) client.reset();
        }
        go_on = false;
        publisher.join();
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("many topics at once: each client gets its own and the broadcasts, in order") {
        running_server server(with_threads(2));
        constexpr int topics = 50, messages = 3000;
        std::vector<event_client> clients;
        for (int t = 0; t < topics; ++t) {
            clients.emplace_back(server.port(), "/subscribe/t/" + std::to_string(t));
        }
        const auto seed = std::random_device()();
        MESSAGE("seed " << seed);
        std::mt19937 random(seed);
        std::vector<std::vector<std::string>> expected(topics);
        for (int n = 0; n < messages; ++n) {
            const auto data = std::to_string(n);
            const auto t = std::uniform_int_distribution<std::size_t>(0, topics)(random);
            if (t == topics) {
                server.broadcast({.data = data});
                for (auto& one : expected) one.push_back(data);
            } else if (n % 3 == 0) {
                server.publish("/t/" + std::to_string(t) + "/deep/er", {.data = data});
                expected[t].push_back(data);
            } else {
                server.publish("/t/" + std::to_string(t), {.data = data});
                expected[t].push_back(data);
            }
        }
        for (std::size_t t = 0; t < topics; ++t) {
            for (const auto& data : expected[t]) REQUIRE(clients[t].next().data == data);
        }
    }

    TEST_CASE(
        "9,000 clients in one process connect, get one broadcast and leave: nothing stays behind") {
        // A client costs two descriptors here, its own and the server's, of 20,000 at most. The hub
        // is given 10,000 in tests/examples.cpp.
        if (raise_descriptor_limit() < 19'000) {
            MESSAGE("not run: this process may not open 19,000 files");
            return;
        }
        sse::options o = with_threads(2);
        o.limits.connections = 0;
        running_server server(o);
        const auto wave = [&](std::size_t count, std::uint64_t number) {
            swarm clients(server.port(), {.clients = count, .sources = 4});
            REQUIRE(clients.connect(120s));
            CHECK(server.counters().streams == count);
            server.broadcast({.data = std::to_string(number)});
            REQUIRE(clients.run_until_all_saw(number, 120s));
            CHECK(clients.all_saw_exactly(number, number));
            clients.leave(true);
            REQUIRE(eventually([&] { return server.counters().connections == 0; }, 60s));
        };
        wave(9'000, 1); // warms up allocators and tables
        const std::size_t descriptors = open_descriptors();
        const std::size_t memory = resident_bytes();
        wave(9'000, 2);
        CHECK(open_descriptors() == descriptors);
        if (memory_is_meaningful) CHECK(resident_bytes() < memory + 8 * 1024 * 1024);
        CHECK(server.counters().streams == 0);
        CHECK(http_get(server.port(), "/health").body == "Active connections: 0\n");
    }
}

} // namespace fanout_test
