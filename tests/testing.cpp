// testing.cpp - covers >>testing, >>seams, >>simulation: what the test kit promises, by its own
// means.
#include "sse.hpp"

#include <asio/thread_pool.hpp>
#include <doctest/doctest.h>

#include <set>
#include <thread>

namespace {

using namespace std::chrono_literals;
using sse::testing::outcome;
using sse::testing::simulation;

asio::awaitable<void> count(sse::stream& client) {
    for (int n = 1; n <= 3; ++n) {
        co_await client.send({.event = "count", .data = std::to_string(n)});
        co_await client.sleep_for(100ms);
    }
    co_await client.send({.event = "done"});
}

/// The data of events, one after the other.
std::string data_of(const std::vector<sse::event>& events) {
    std::string all;
    for (const auto& e : events) all += (all.empty() ? "" : " ") + e.data;
    return all;
}

std::string published(sse::server& to, int first, int last) {
    std::string all;
    for (int n = first; n <= last; ++n) {
        to.publish("/news", {.data = std::to_string(n)});
        all += (n == first ? "" : " ") + std::to_string(n);
    }
    return all;
}

} // namespace

TEST_SUITE("testing") {
    TEST_CASE("a handler's events come as values, and its waits by the test's clock") {
        simulation world;
        world.server().route("GET", "/count", count);
        auto client = world.get("/count");
        for (int n = 1; n <= 3; ++n) {
            const auto event = client.next();
            REQUIRE(event);
            CHECK(event->type == "count");
            CHECK(event->data == std::to_string(n));
            CHECK(!client.next());
            world.advance(99'999us);
            CHECK(!client.next());
            world.advance(1us);
        }
        CHECK(client.next()->type == "done");
        CHECK(client.state() == outcome::complete);
        CHECK(client.status() == 200);
        CHECK(client.header("content-type") == "text/event-stream");
        CHECK(world.elapsed() == 300ms);
    }

    TEST_CASE("the test kit runs in no time, and without a thread") {
        simulation world;
        world.server().route("GET", "/wait", [](sse::stream& client) -> asio::awaitable<void> {
            co_await client.sleep_for(std::chrono::hours(1));
            co_await client.send({.data = "an hour"});
        });
        std::thread::id handled_by;
        world.server().route("GET", "/thread", [&](sse::stream& client) -> asio::awaitable<void> {
            handled_by = std::this_thread::get_id();
            co_await client.respond(200, "text/plain", "here\n");
        });
        auto waiting = world.get("/wait");
        auto asking = world.get("/thread");
        CHECK(asking.body() == "here\n");
        CHECK(handled_by == std::this_thread::get_id());
        CHECK(!waiting.next());
        const auto began = std::chrono::steady_clock::now();
        world.advance(std::chrono::hours(1));
        CHECK(waiting.next()->data == "an hour");
        CHECK(std::chrono::steady_clock::now() - began < std::chrono::hours(1));
    }

    TEST_CASE("a finite response has status, headers and body") {
        simulation world;
        world.server().route("POST", "/room/{name}", [](sse::stream& c) -> asio::awaitable<void> {
            const auto& r = c.request();
            std::string told(r.method);
            told.append(" ").append(r.path_value("name"));
            told.append(" ").append(r.query_value("x").value_or("none"));
            told.append(" ").append(r.header("X-Token").value_or("none"));
            told.append(" ").append(r.client.to_string()).append(" ");
            told += co_await c.body();
            c.add_header("X-Said", "yes");
            co_await c.respond(202, "text/plain", told);
        });
        auto client = world.open({.method = "POST",
                                  .target = "/room/blue%20one?x=1",
                                  .headers = {{"X-Token", "t"}},
                                  .body = "hello",
                                  .address = asio::ip::make_address("10.1.2.3")});
        CHECK(client.status() == 202);
        CHECK(client.body() == "POST blue one 1 t 10.1.2.3 hello");
        CHECK(client.header("x-said") == "yes");
        CHECK(!client.header("x-other"));
        CHECK(client.state() == outcome::complete);
        CHECK(world.get("/nowhere").status() == 404);
        auto head = world.open({.method = "HEAD", .target = "/health"});
        CHECK(head.status() == 200);
        CHECK(head.body().empty());
        CHECK(head.state() == outcome::complete);
    }

    TEST_CASE("ids, retry times and comments are told") {
        simulation world;
        world.server().route("GET", "/", [](sse::stream& client) -> asio::awaitable<void> {
            co_await client.send({.data = "a\nb", .id = "7"});
            co_await client.send({.retry = 1500ms});
            co_await client.send({.comment = "psst"});
            co_await client.send({.data = "c"});
            co_await client.closed();
        });
        auto client = world.get("/");
        CHECK(client.last_event_id() == "7");
        const auto events = client.events();
        REQUIRE(events.size() == 2);
        CHECK(events[0].data == "a\nb");
        CHECK(events[0].last_event_id == "7");
        CHECK(events[1].data == "c");
        CHECK(client.events().empty());
        CHECK(client.retry() == 1500ms);
        CHECK(client.comments() == std::vector<std::string>{"psst"});
        CHECK(client.comments().empty());
        CHECK(client.state() == outcome::open);
    }

    TEST_CASE("what is published reaches those who follow, by topics and users") {
        simulation world;
        world.server().route("GET", "/me", [](sse::stream& client) -> asio::awaitable<void> {
            client.set_user("ann");
            client.subscribe("/news");
            co_return;
        });
        auto follower = world.get("/subscribe/news");
        auto other = world.get("/subscribe/sports");
        auto ann = world.get("/me");
        world.settle(); // they are there from now on
        world.server().publish("/news/today", {.event = "note", .data = "rain"});
        world.server().send_to_user("ann", {.data = "for ann"});
        CHECK(data_of(follower.events()) == "rain");
        CHECK(data_of(ann.events()) == "rain for ann");
        CHECK(other.events().empty());
        CHECK(world.await(world.server().async_streams()).size() == 3);
        CHECK(world.server().counters().streams == 3);
    }

    TEST_CASE("a client that comes back gets what it missed") {
        simulation world;
        auto client = world.get("/subscribe/news");
        world.settle();
        published(world.server(), 1, 2);
        CHECK(client.next()->data == "1");
        published(world.server(), 3, 3); // what came and was not read stays
        client.reconnect();
        world.settle();
        published(world.server(), 4, 4);
        CHECK(data_of(client.events()) == "2 3 4");
        client.leave();
        published(world.server(), 5, 6);
        client.reconnect();
        CHECK(data_of(client.events()) == "5 6");
        auto later =
            world.open({.target = "/subscribe/news", .last_event_id = world.server().last_id()});
        published(world.server(), 7, 7);
        CHECK(data_of(later.events()) == "7");
    }

    TEST_CASE("a client that leaves cancels its handler, however it leaves") {
        simulation world;
        std::string ended;
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            try {
                co_await client.send({.data = "hello"});
                co_await client.sleep_for(1h);
            } catch (const std::system_error& e) {
                ended = sse::client_gone(e.code()) ? "gone" : e.what();
                throw;
            }
        });
        auto client = world.get("/");
        CHECK(client.next()->data == "hello");
        CHECK(ended.empty());
        SUBCASE("it closes the connection") { client.leave(); }
        SUBCASE("it vanishes") { client.reset(); }
        SUBCASE("it closes its sending side") { client.half_close(); }
        SUBCASE("it is destroyed") { const auto end = std::move(client); }
        world.settle();
        CHECK(ended == "gone");
        CHECK(world.server().counters().connections == 0);
        CHECK(world.take_failures().empty());
    }

    TEST_CASE("a handler that keeps running learns at its sends that the client is gone") {
        simulation world;
        std::string ended;
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            client.keep_running();
            try {
                for (;;) {
                    co_await client.send({.data = "tick"});
                    co_await client.sleep_for(1s);
                }
            } catch (const std::system_error& e) {
                ended = e.code() == sse::errc::closed ? "closed" : e.what();
            }
        });
        auto client = world.get("/");
        CHECK(client.next()->data == "tick");
        SUBCASE("it has left") { client.leave(); }
        SUBCASE("it has vanished") { client.reset(); }
        world.advance(3s);
        CHECK(ended == "closed");
    }

    TEST_CASE("a handler waits for a client that does not read") {
        simulation world;
        int sent = 0;
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            for (; sent < 10; ++sent) co_await client.send({.data = std::string(1'000, 'x')});
        });
        world.server().route("GET", "/wait", [&](sse::stream& client) -> asio::awaitable<void> {
            client.begin();
            co_await client.sleep_for(1s);
            for (; sent < 10; ++sent) co_await client.send({.data = std::string(1'000, 'x')});
        });
        auto client = world.get("/wait");
        client.stop_reading(2'500);
        world.advance(1s);
        CHECK(sent == 2);
        CHECK(client.events().size() == 2);
        world.advance(1s);
        CHECK(sent == 2);
        client.read_on();
        CHECK(client.events().size() == 8);
        CHECK(sent == 10);
        CHECK(client.state() == outcome::complete);
    }

    TEST_CASE("a client that falls behind gets what its lag policy says") {
        sse::options o;
        o.history.messages = 4;
        SUBCASE("it is disconnected, and told of the gap when it comes back") {
            simulation world(o);
            auto client = world.get("/subscribe/news");
            published(world.server(), 1, 1);
            CHECK(!client.next()); // it came after that
            client.stop_reading();
            for (int n = 2; n <= 20; ++n) {
                published(world.server(), n, n);
                world.settle();
            }
            world.advance(1s);
            CHECK(client.state() == outcome::closed);
            CHECK(world.server().counters().lagged == 1);
            client.reconnect();
            const auto events = client.events();
            REQUIRE(!events.empty());
            CHECK(events.front().type == "gap");
            CHECK(events.front().data.find("too_old") != std::string::npos);
            CHECK(events.back().data == "20");
        }
        SUBCASE("it is told of the gap in its stream") {
            o.history.lag = sse::lag_policy::skip;
            simulation world(o);
            auto client = world.get("/subscribe/news");
            CHECK(!client.next());
            client.stop_reading();
            for (int n = 1; n <= 20; ++n) {
                published(world.server(), n, n);
                world.settle();
            }
            client.read_on();
            published(world.server(), 21, 21);
            const auto events = client.events();
            REQUIRE(events.size() == 2);
            CHECK(events[0].type == "gap");
            CHECK(events[0].data.find("lapped") != std::string::npos);
            CHECK(events[1].data == "21");
            CHECK(client.state() == outcome::open);
            CHECK(world.server().counters().gaps == 1);
        }
    }

    TEST_CASE("heartbeats and deadlines go by the clock") {
        simulation world({.heartbeat = 15s, .timeouts = {.body = 7s, .stall = 40s}});
        world.server().route("POST", "/", [](sse::stream& client) -> asio::awaitable<void> {
            const std::string body = co_await client.body();
            co_await client.respond(200, "text/plain", body);
        });
        SUBCASE("a silent stream gets comments") {
            auto client = world.get("/subscribe/");
            CHECK(client.comments() == std::vector<std::string>{""});
            world.advance(14s);
            CHECK(client.comments().empty());
            world.advance(2s);
            CHECK(client.comments().size() == 1);
            world.advance(1min);
            CHECK(client.comments().size() >= 3);
            CHECK(client.state() == outcome::open);
        }
        SUBCASE("a client that takes nothing is disconnected") {
            auto client = world.get("/subscribe/news");
            CHECK(client.status() == 200);
            client.stop_reading();
            published(world.server(), 1, 1);
            world.advance(39s);
            CHECK(client.state() == outcome::open);
            world.advance(2s);
            CHECK(client.state() == outcome::closed);
        }
        SUBCASE("a body that does not come gets 408") {
            auto client =
                world.open({.method = "POST", .headers = {{"Content-Length", "5"}}, .body = "he"});
            world.advance(6s);
            CHECK(client.status() == 0);
            world.advance(2s);
            CHECK(client.status() == 408);
        }
        SUBCASE("a body may come in pieces") {
            auto client =
                world.open({.method = "POST", .headers = {{"Content-Length", "5"}}, .body = "he"});
            world.advance(6s);
            client.write("llo");
            CHECK(client.status() == 200);
            CHECK(client.body() == "hello");
        }
    }

    TEST_CASE("a stream that ends after a time does so on time, in a server that has much of it") {
        simulation world; // its deadlines are looked at every half second
        world.server().route("GET", "/", [](sse::stream& client) -> asio::awaitable<void> {
            client.end_after(150ms);
            client.subscribe("/t");
            co_return;
        });
        auto other = world.get("/subscribe/t");
        for (int n = 0; n < 10; ++n) {
            auto client = world.get("/");
            world.advance(149ms);
            CHECK(client.state() == outcome::open);
            world.advance(2ms);
            CHECK(client.state() == outcome::closed);
        }
        CHECK(other.state() == outcome::open);
    }

    TEST_CASE("the ends of streams, the history and jobs go by the clock") {
        sse::options o;
        o.heartbeat = 0s;
        o.history.age = 10min;
        o.hooks.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
            sse::access::terms t;
            if (r.query_value("short")) t.valid_for = 30s;
            co_return sse::access::grant(std::move(t));
        };
        simulation world(o);
        sse::jobs jobs({.keep = 5min});
        world.server().route("GET", "/jobs/{id}", [&](sse::stream& client) {
            return jobs.serve(client, client.request().path_value("id"));
        });
        const auto at = [](const sse::testing::simulation& w) {
            const auto now = std::chrono::system_clock::now() + w.elapsed();
            return std::to_string(
                std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count());
        };
        auto brief = world.get("/subscribe/?short=1");
        auto follower = world.get("/subscribe/");
        CHECK(follower.status() == 200);
        world.advance(29s);
        CHECK(brief.state() == outcome::open);
        world.advance(2s);
        CHECK(brief.state() == outcome::closed);
        CHECK(follower.state() == outcome::open);

        world.server().broadcast({.data = "old"});
        world.advance(2min);
        const std::string then = at(world);
        world.advance(2min);
        world.server().broadcast({.data = "new"});
        CHECK(data_of(world.get("/subscribe/?since=" + then).events()) == "new");
        CHECK(data_of(world.get("/subscribe/?from=oldest").events()) == "old new");
        world.advance(7min);
        CHECK(data_of(world.get("/subscribe/?from=oldest").events()) == "new");

        jobs.start("42").finish({.event = "result", .data = "7"});
        world.advance(4min);
        CHECK(world.get("/jobs/42").next()->data == "7");
        world.advance(2min);
        CHECK(world.get("/jobs/42").status() == 404);
    }

    TEST_CASE("what falls due on the way happens at its time, in order") {
        simulation world;
        std::vector<std::pair<std::string, std::chrono::nanoseconds>> seen;
        const auto sleeper = [&](const char* name, std::chrono::milliseconds time) {
            return [&, name, time](sse::stream& client) -> asio::awaitable<void> {
                for (int i = 0; i < 2; ++i) {
                    co_await client.sleep_for(time);
                    seen.emplace_back(name, world.elapsed());
                }
            };
        };
        world.server().route("GET", "/a", sleeper("a", 30ms));
        world.server().route("GET", "/b", sleeper("b", 20ms));
        auto a = world.get("/a");
        auto b = world.get("/b");
        world.settle();
        world.advance(1min);
        const std::vector<std::pair<std::string, std::chrono::nanoseconds>> wanted = {
            {"b", 20ms}, {"a", 30ms}, {"b", 40ms}, {"a", 60ms}};
        CHECK(seen == wanted);
        CHECK(a.status() == 204);
        CHECK(world.elapsed() == 1min);
        CHECK_THROWS_AS(world.advance(-1ms), std::invalid_argument);
    }

    TEST_CASE("many that sleep wake together, each late by less than a millisecond") {
        simulation world;
        std::set<std::chrono::nanoseconds> wakes;
        std::chrono::nanoseconds latest = 0ns;
        int handlers = 0;
        world.server().route("GET", "/sleep", [&](sse::stream& client) -> asio::awaitable<void> {
            const auto time = 10ms + handlers++ * 50us;
            const auto end = world.elapsed() + time;
            co_await client.sleep_for(time);
            CHECK(world.elapsed() >= end);
            latest = std::max(latest, world.elapsed() - end);
            wakes.insert(world.elapsed());
        });
        std::vector<sse::testing::client> clients;
        for (int i = 0; i < 200; ++i) clients.push_back(world.get("/sleep"));
        world.settle();
        world.advance(1s);
        CHECK(latest < 1ms);
        CHECK(wakes.size() > 10);
        CHECK(wakes.size() < 16); // of 200, within 10 ms
    }

    TEST_CASE("what handlers throw is there for the test") {
        sse::options o;
        int told = 0;
        o.hooks.on_error = [&](std::exception_ptr) { ++told; };
        simulation world(o);
        world.server().route("GET", "/bad", [](sse::stream&) -> asio::awaitable<void> {
            throw std::out_of_range("no such room");
            co_return;
        });
        world.server().route("GET", "/late", [](sse::stream& client) -> asio::awaitable<void> {
            co_await client.send({.data = "begun"});
            throw std::runtime_error("late");
        });
        CHECK_NOTHROW(world.rethrow_failure());
        auto bad = world.get("/bad");
        CHECK(bad.status() == 500);
        auto late = world.get("/late");
        CHECK(late.next()->data == "begun");
        CHECK(late.state() == outcome::closed); // without the last chunk
        CHECK_THROWS_AS(world.rethrow_failure(), std::out_of_range);
        CHECK(world.take_failures().size() == 1);
        CHECK(world.take_failures().empty());
        CHECK(told == 2);
    }

    TEST_CASE("coroutines are awaited, by the clock if they need it") {
        simulation world({.timeouts = {.shutdown = 10ms}});
        const auto plus = [](int n) -> asio::awaitable<int> { co_return n + 1; };
        const auto nothing = []() -> asio::awaitable<void> { co_return; };
        const auto fails = []() -> asio::awaitable<void> {
            throw std::out_of_range("no");
            co_return;
        };
        const auto waits = []() -> asio::awaitable<void> {
            asio::steady_timer never(co_await asio::this_coro::executor, 1h);
            co_await never.async_wait(asio::use_awaitable);
        };
        CHECK(world.await(plus(1)) == 2);
        world.await(nothing());
        CHECK_THROWS_AS(world.await(fails()), std::out_of_range);
        CHECK_THROWS_AS(world.await(waits(), 1s, 1ms), std::runtime_error);

        auto client = world.get("/subscribe/news");
        CHECK(client.status() == 200);
        published(world.server(), 1, 1);
        sse::drain_options how;
        how.window = 30s;
        how.farewell = sse::message{.event = "bye"};
        const auto before = world.elapsed();
        const auto done = world.await(world.server().async_drain(how), 1min);
        CHECK(done.closed == 1);
        CHECK(done.cut == 0);
        CHECK(world.elapsed() - before <= 31s);
        const auto events = client.events();
        REQUIRE(events.size() == 2);
        CHECK(events[0].data == "1");
        CHECK(events[1].type == "bye");
        CHECK(client.state() == outcome::closed);
        auto late = world.get("/subscribe/news");
        CHECK(late.state() == outcome::closed);
        CHECK(late.status() == 0);
    }

    TEST_CASE("what other threads do is waited for in real time") {
        simulation world;
        asio::thread_pool pool(1);
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            const auto query = []() -> asio::awaitable<std::string> { co_return "row"; };
            const std::string row = co_await asio::co_spawn(pool, query(), asio::use_awaitable);
            co_await client.respond(200, "text/plain", row);
        });
        auto client = world.get("/");
        CHECK(world.run_until([&] { return client.status() == 200; }, 0s, 30s));
        CHECK(client.body() == "row");
        CHECK(!world.run_until([] { return false; }, 1s, 1ms));
        CHECK(world.elapsed() == 1s);
        pool.join();
    }

    TEST_CASE("a handler that sends without an end waits for its client") {
        simulation world;
        int sent = 0;
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            const std::string kilobyte(1'000, 'x');
            for (;; ++sent) co_await client.send({.data = kilobyte});
        });
        auto client = world.get("/");
        const std::size_t first = client.events().size();
        CHECK(first > 1'000);
        CHECK(first < 1'100);
        for (std::size_t i = 0; i < 2 * first; ++i) REQUIRE(client.next());
        CHECK(sent < 5'000);
    }

    TEST_CASE("a finite response may be long") {
        simulation world;
        const std::string text(5'000'000, 'x');
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            co_await client.respond(200, "text/plain", text);
        });
        auto client = world.get("/");
        CHECK(client.body() == text);
        CHECK(client.state() == outcome::complete);
    }

    TEST_CASE("a handler that never rests is reported instead of running for ever") {
        simulation world;
        world.server().route("GET", "/", [](sse::stream& client) -> asio::awaitable<void> {
            for (;;) co_await asio::post(client.get_executor(), asio::use_awaitable);
        });
        auto client = world.get("/");
        CHECK_THROWS_AS(world.settle(), std::runtime_error);
        client.leave();
        CHECK_NOTHROW(world.settle());
    }

    TEST_CASE("a thread has one simulation at a time, others have theirs") {
        {
            simulation world;
            CHECK_THROWS_AS(simulation(), std::logic_error);
            world.advance(5s);
            std::chrono::nanoseconds other{1};
            std::thread([&] {
                simulation theirs;
                other = theirs.elapsed();
            }).join();
            CHECK(other == 0s);
        }
        CHECK_THROWS_AS(simulation({.heartbeat = -1s}), std::invalid_argument);
        simulation again;
        CHECK(again.elapsed() == 0s);
    }

    TEST_CASE("handlers end with their simulation, clients may outlive it") {
        int ended = 0;
        struct at_end {
            int& count;
            ~at_end() { ++count; }
        };
        std::optional<sse::testing::client> left;
        {
            simulation world;
            world.server().route("GET", "/polite", [&](sse::stream& c) -> asio::awaitable<void> {
                const at_end end{ended};
                co_await c.send({.data = "hello"});
                co_await c.sleep_for(1h);
            });
            world.server().route("GET", "/slow", [&](sse::stream& c) -> asio::awaitable<void> {
                const at_end end{ended};
                c.keep_running();
                try {
                    co_await c.sleep_for(1h);
                } catch (const std::system_error&) {}
                co_await c.sleep_for(4s); // timeouts.shutdown is 5 s
            });
            left.emplace(world.get("/polite"));
            auto slow = world.get("/slow");
            CHECK(left->next()->data == "hello");
            CHECK(ended == 0);
        }
        CHECK(ended == 2);
        left.reset();
    }

    TEST_CASE("limits apply to simulated clients as to others") {
        simulation world({.limits = {.connections = 2, .connections_per_ip = 1}});
        world.server().route("POST", "/", [](sse::stream& client) -> asio::awaitable<void> {
            static_cast<void>(co_await client.body());
        });
        const auto from = [](const char* address) {
            sse::testing::client_request r;
            r.target = "/subscribe/";
            r.address = asio::ip::make_address(address);
            return r;
        };
        auto a = world.open(from("10.0.0.1"));
        CHECK(a.status() == 200);
        CHECK(world.open(from("10.0.0.1")).status() == 429);
        auto b = world.open(from("10.0.0.2"));
        CHECK(b.status() == 200);
        CHECK(world.open(from("10.0.0.3")).status() == 503);
        // Of those over a limit so many are told of it at a time; the others are closed at once.
        std::vector<sse::testing::client> refused;
        for (int i = 0; i < 256; ++i) {
            refused.push_back(world.open({.method = "POST", .headers = {{"Content-Length", "5"}}}));
        }
        CHECK(refused.back().state() == outcome::open);
        auto last = world.open({.method = "POST", .headers = {{"Content-Length", "5"}}});
        CHECK(last.state() == outcome::closed);
        CHECK(last.status() == 0);
        refused.clear();
        a.leave();
        CHECK(world.open(from("10.0.0.1")).status() == 200);
    }

    TEST_CASE("hosts and proxies are believed as over sockets") {
        sse::options o;
        o.hosts = {"events.example"};
        o.proxy.trusted = {"127.0.0.1"};
        simulation world(o);
        std::string client_address;
        world.server().route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
            client_address = client.request().client.to_string();
            co_await client.respond(200, "text/plain", "yes\n");
        });
        CHECK(world.get("/").status() == 421);
        CHECK(world.open({.headers = {{"Host", "events.example"}, {"X-Forwarded-For", "10.9.8.7"}}})
                  .status() == 200);
        CHECK(client_address == "10.9.8.7");
    }

    TEST_CASE("options of threads, signals and the PROXY protocol do not apply") {
        sse::options o;
        o.threads = 4;
        o.proxy.protocol = true;
        o.handle_signals = true;
        o.drain_window = 1s;
        simulation world(o);
        CHECK(world.get("/health").status() == 200);
        CHECK(world.await(world.server().async_measure()).workers == 1);
    }

    TEST_CASE("a server with threads of its own goes on by the real clock, over sockets") {
        simulation world;
        sse::server real({.threads = 1});
        real.route("GET", "/", count);
        real.start("127.0.0.1:0");
        world.advance(1h);
        const std::string url = "http://127.0.0.1:" + std::to_string(real.port()) + "/";
        std::string got;
        asio::io_context io;
        sse::client source(io, url, {.reconnect = false});
        const auto read = [&]() -> asio::awaitable<void> {
            while (const auto event = co_await source.next()) got += event->data + event->type;
        };
        std::exception_ptr failed;
        asio::co_spawn(io, read(), [&](std::exception_ptr e) { failed = e; });
        io.run();
        CHECK(!failed);
        CHECK(got == "1count2count3countdone");
        CHECK(world.elapsed() == 1h);
    }
}
