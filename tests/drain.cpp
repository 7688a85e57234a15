// drain.cpp - covers >>lifecycle: drain() and async_drain() disconnect every client with all that
// is due to it.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <asio/use_future.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <future>
#include <set>
#include <thread>

namespace drain_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

using steady = std::chrono::steady_clock;

std::string text(std::uint64_t n) { return std::to_string(n); }

void check_code(std::error_code expected, const std::function<void()>& call) {
    try {
        call();
        FAIL_CHECK("nothing was thrown");
    } catch (const std::system_error& e) { CHECK(e.code() == expected); }
}

/// async_drain() awaited on a context of the program's own.
class draining {
public:
    explicit draining(sse::server& server, const sse::drain_options& how = {})
        : result_(asio::co_spawn(io_, server.async_drain(how), asio::use_future)),
          thread_([this] { io_.run(); }) {}
    draining(const draining&) = delete;
    draining& operator=(const draining&) = delete;
    ~draining() { thread_.join(); }

    bool done() const { return result_.wait_for(0s) == std::future_status::ready; }
    sse::drain_result get() {
        REQUIRE(result_.wait_for(patience) == std::future_status::ready);
        return result_.get();
    }

private:
    asio::io_context io_;
    std::future<sse::drain_result> result_;
    std::thread thread_;
};

/// A client that reads all that comes on a thread of its own, until its stream ends.
class reading {
public:
    explicit reading(std::uint16_t port, const std::string& target = "/subscribe/t",
                     const connect_options& options = {})
        : client_(port, target, {}, options), thread_([this] { read(); }) {}
    reading(const reading&) = delete;
    reading& operator=(const reading&) = delete;
    ~reading() {
        if (thread_.joinable()) thread_.join();
    }

    void join() { thread_.join(); }
    // After join().
    std::vector<decoded> events;
    std::string failure;
    steady::time_point end{};
    std::optional<std::uint64_t> retry() const { return client_.decoder().reconnection_time(); }
    bool whole() const { return client_.decoder().between_events(); }

private:
    void read() {
        try {
            while (auto event = client_.next_or_end(60s)) events.push_back(*std::move(event));
        } catch (const std::exception& e) { failure = e.what(); }
        end = steady::now();
    }

    event_client client_;
    std::thread thread_;
};

/// A handler that says hello, waits for an hour, and counts its end, however that comes.
sse::handler greet_and_wait(std::atomic<int>& ended) {
    return [&ended](sse::stream& client) -> handler_result {
        const count_end guard{ended};
        co_await client.send({.data = "hello"});
        co_await wait_an_hour(client);
    };
}

void leave_once_it_drains(sse::stream& client) {
    if (client.draining()) return client.end_after(1ms);
    asio::post(client.get_executor(), [&client] { leave_once_it_drains(client); });
}

std::string large(std::size_t size = 50'000) { return support::incompressible(size); }

/// Publishers have to wait for a client that does not read, for an hour if need be.
struct held_server : running_server {
    held_server()
        : running_server([] {
              sse::options o = with_threads(1);
              o.history.messages = 16;
              o.history.lag = sse::lag_policy::hold_back;
              o.timeouts.stall = 1h;
              o.timeouts.publish = 1h;
              return o;
          }()) {
        for (int n = 0; n < 1000 && !try_publish("/t", {.data = large()}); ++n) {
            http_get(port(), "/health");
        }
        for (int n = 0; n < 50; ++n) http_get(port(), "/health");
        REQUIRE(try_publish("/t", {.data = "x"}) == sse::errc::no_room);
    }
    event_client stuck{port(), "/subscribe/t", {}, {.receive_buffer = 4096}};
};

} // namespace

TEST_SUITE("drain") {
    TEST_CASE("each stream gets a retry time and the farewell, and ends whole") {
        for (const std::size_t threads : {1u, 3u}) {
            CAPTURE(threads);
            running_server server(with_threads(threads));
            std::vector<std::unique_ptr<reading>> clients;
            for (int i = 0; i < 20; ++i) {
                clients.push_back(std::make_unique<reading>(server.port()));
            }
            server.publish("/t", {.data = "last"});
            sse::drain_result result;
            {
                std::string bye = "bye"; // the views are good for the call only
                sse::drain_options how{.window = 400ms, .retry = 2'000ms};
                how.farewell = sse::message{.event = "farewell", .data = std::string_view(bye)};
                draining drain(server, how);
                bye = "xxx";
                result = drain.get();
            }
            CHECK(result.closed == 20);
            CHECK(result.cut == 0);
            std::set<std::uint64_t> retries;
            for (auto& client : clients) {
                client->join();
                CHECK(client->failure.empty());
                CHECK(client->whole());
                REQUIRE(client->events.size() == 2);
                CHECK(client->events[0].data == "last");
                CHECK(client->events[1].type == "farewell");
                CHECK(client->events[1].data == "bye");
                CHECK(client->events[1].id == server.last_id()); // nothing moves it
                REQUIRE(client->retry().has_value());
                CHECK(*client->retry() >= 2'000);
                CHECK(*client->retry() <= 4'000);
                retries.insert(*client->retry());
            }
            CHECK(retries.size() > 5);
            CHECK(server.counters().streams == 0);
        }
    }

    TEST_CASE("the same by the blocking stop, without a farewell") {
        running_server server(with_threads(2));
        reading a(server.port()), b(server.port());
        const auto result = server.drain({.window = 200ms, .retry = 0ms});
        CHECK(result.closed == 2);
        CHECK(result.cut == 0);
        for (reading* client : {&a, &b}) {
            client->join();
            CHECK(client->events.empty());
            CHECK(client->retry() == 0);
        }
    }

    TEST_CASE("the ends are spread over the window") {
        constexpr auto window = 1'000ms;
        running_server server(with_threads(2));
        std::vector<std::unique_ptr<reading>> clients;
        for (int i = 0; i < 40; ++i) clients.push_back(std::make_unique<reading>(server.port()));
        const auto begin = steady::now();
        const auto result = server.drain({.window = window});
        CHECK(result.closed == 40);
        int early = 0, first_half = 0;
        for (auto& client : clients) {
            client->join();
            early += client->end - begin < window / 10 ? 1 : 0;
            first_half += client->end - begin < window / 2 ? 1 : 0;
        }
        MESSAGE(early, " of 40 in the first tenth, ", first_half, " in the first half");
        CHECK(early < 40);
    }

    TEST_CASE("what was published before reaches all who read, however much is in flight") {
        constexpr std::uint64_t count = 2'000;
        running_server server(with_threads(2));
        std::vector<std::unique_ptr<reading>> clients;
        for (int i = 0; i < 8; ++i) clients.push_back(std::make_unique<reading>(server.port()));
        // The workers are held up until the drain has begun, so all of it is in the ring by then.
        gate drained;
        for (const auto& one : server.streams()) {
            server.post_to(one.id, [&](sse::stream&) { CHECK(drained.wait()); });
        }
        const std::string pad(1'000, 'x');
        for (std::uint64_t n = 1; n <= count; ++n) {
            const std::string data = text(n) + " " + pad;
            server.publish("/t", {.data = std::string_view(data)});
        }
        sse::drain_result result;
        {
            draining drain(server, {.window = 5'000ms, .farewell = sse::message{.data = "bye"}});
            CHECK(eventually(
                [&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
            drained.open();
            result = drain.get();
        }
        std::uint64_t whole = 0;
        for (auto& client : clients) {
            client->join();
            if (client->events.empty() || client->events.back().data != "bye") continue;
            // Who was bidden farewell has had all before.
            CHECK(client->events.size() >= count + 1);
            for (std::size_t n = 0; n + 1 < client->events.size() && n < count; ++n) {
                REQUIRE(client->events[n].data.starts_with(text(n + 1) + " "));
            }
            ++whole;
        }
        CHECK(result.closed == whole);
        CHECK(result.closed + result.cut == 8);
        CHECK(whole > 0);
    }

    TEST_CASE("a slow reader has its time too") {
        running_server server(with_threads(1));
        connection slow(server.port(), {.receive_buffer = 4096});
        slow.send_request("GET", "/subscribe/t");
        slow.read_through("\nid: ");
        for (int n = 0; n < 200; ++n) server.publish("/t", {.data = large()});
        draining drain(server, {.window = 60s, .farewell = sse::message{.data = "bye"}});
        CHECK(send_away_now(server));
        const std::string all = slow.read_to_end(60s);
        CHECK(all.size() > 200 * 50'000);
        CHECK(all.ends_with("data: bye\n\n"));
        slow.close();
        const auto result = drain.get();
        CHECK(result.closed == 1);
        CHECK(result.cut == 0);
    }

    TEST_CASE("a farewell waits for what no worker has looked at yet") {
        constexpr std::size_t count = 6'000;
        sse::options o = with_threads(1);
        o.timeouts.body = 40ms; // deadlines are looked at every few milliseconds
        running_server server(o);
        std::vector<connection> clients;
        for (int i = 0; i < 3; ++i) {
            clients.emplace_back(server.port());
            clients.back().send_request("GET", "/subscribe/t");
            clients.back().read_through("\nid: ");
        }
        const auto streams = server.streams();
        gate drained;
        server.post_to(streams.at(0).id, [&](sse::stream&) { CHECK(drained.wait()); });
        const std::string data(8'000, 'x');
        for (std::size_t n = 0; n < count; ++n) {
            server.publish("/t", {.data = std::string_view(data)});
        }
        draining drain(server, {.window = 5min, .farewell = sse::message{.data = "bye"}});
        CHECK(
            eventually([&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
        // Their turn comes at once, when most of it is still in the ring.
        for (const auto& one : streams) server.post_to(one.id, leave_once_it_drains);
        drained.open();
        for (connection& client : clients) {
            const std::string all = client.read_to_end(60s);
            std::size_t seen = 0;
            for (std::size_t at = all.find("\nid: "); at != all.npos;
                 at = all.find("\nid: ", at + 1)) {
                ++seen;
            }
            CHECK(all.ends_with("data: bye\n\n"));
            CHECK(seen == server.counters().published);
            client.close();
        }
        CHECK(drain.get().closed == 3);
    }

    TEST_CASE("a client that does not read is cut at the end of the window, and counted") {
        running_server server(with_threads(2));
        event_client stuck(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        event_client reads(server.port(), "/subscribe/t");
        for (int n = 0; n < 200; ++n) {
            server.publish("/t", {.data = large()});
            reads.next();
        }
        const auto begin = steady::now();
        const auto result = server.drain({.window = 500ms});
        CHECK(steady::now() - begin >= 500ms);
        CHECK(result.closed == 1);
        CHECK(result.cut == 1);
        CHECK_FALSE(reads.next_or_end());
        CHECK(reads.decoder().reconnection_time().has_value());
        stuck.wait_for_close();
    }

    TEST_CASE("a window of nothing: who can take all at once gets all, the rest is cut") {
        running_server server(with_threads(1));
        event_client stuck(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        event_client a(server.port(), "/subscribe/t"), b(server.port(), "/subscribe/t");
        for (int n = 0; n < 200; ++n) {
            server.publish("/t", {.data = large()});
            a.next();
            b.next();
        }
        const auto result = server.drain({.window = 0ms, .farewell = sse::message{.data = "bye"}});
        CHECK(result.closed == 2);
        CHECK(result.cut == 1);
        for (event_client* client : {&a, &b}) {
            const auto last = client->next_or_end();
            CHECK((last && last->data == "bye"));
        }
    }

    TEST_CASE("with no clients it returns at once, also with those that are about to leave") {
        for (int round = 0; round < 10; ++round) {
            running_server server(with_threads(2));
            std::optional<event_client> leaves;
            if (round % 2 == 1) leaves.emplace(server.port());
            leaves.reset();
            const auto begin = steady::now();
            const auto result = server.drain({.window = 60s});
            CHECK(steady::now() - begin < 30s);
            CHECK(result.closed + result.cut <= 1);
        }
    }

    TEST_CASE("when the last client has gone it returns, before the window is over") {
        running_server server(with_threads(2));
        event_client a(server.port()), b(server.port());
        draining drain(server, {.window = 60s});
        CHECK(
            eventually([&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
        CHECK_FALSE(drain.done());
        a.close();
        b.reset();
        const auto result = drain.get();
        CHECK(result.closed + result.cut == 0);
    }

    TEST_CASE("options that cannot work are refused, and nothing begins") {
        running_server server;
        event_client client(server.port());
        const auto refused = [&](const sse::drain_options& how) {
            CHECK_THROWS_AS(static_cast<void>(server.async_drain(how)), std::invalid_argument);
            CHECK_THROWS_AS(server.drain(how), std::invalid_argument);
        };
        refused({.window = -1ms});
        refused({.window = 25h});
        refused({.retry = -1ms});
        refused({.retry = 25h});
        check_code(sse::errc::bad_event,
                   [&] { server.drain({.farewell = sse::message{.event = "a\nb", .data = "x"}}); });
        check_code(sse::errc::empty_message, [&] { server.drain({.farewell = sse::message{}}); });
        server.broadcast({.data = "goes on"});
        CHECK(client.next().data == "goes on");
    }
}

TEST_SUITE("drain and publishers") {
    TEST_CASE("publishing reports stopped at once") {
        running_server server;
        event_client client(server.port());
        draining drain(server, {.window = 60s});
        CHECK(eventually([&] { // until drain() runs
            return server.try_broadcast({.data = "x"}) == sse::errc::stopped;
        }));
        check_code(sse::errc::stopped, [&] { server.publish("/t", {.data = "x"}); });
        check_code(sse::errc::stopped, [&] { server.send_to(1, {.data = "x"}); });
        check_code(sse::errc::stopped, [&] { server.send_to_user("a", {.data = "x"}); });
        CHECK(server.try_publish("/t", {.data = "x"}) == sse::errc::stopped);
        CHECK_FALSE(drain.done());
        client.close();
        drain.get();
    }

    TEST_CASE("those that wait for room are told at once, blocked or suspended") {
        held_server server;
        std::atomic<int> told{0};
        std::thread blocked([&] {
            check_code(sse::errc::stopped, [&] { server.publish("/t", {.data = "x"}); });
            ++told;
        });
        asio::io_context io;
        const auto note = [&](std::exception_ptr failure, std::uint64_t) {
            check_code(sse::errc::stopped, [&] {
                if (failure) std::rethrow_exception(failure);
            });
            ++told;
        };
        asio::co_spawn(io, server.async_publish("/t", {.data = "x"}), note);
        std::thread runner([&] { io.run(); });
        const auto before = server.counters().no_room;
        CHECK(eventually([&] { return server.counters().no_room >= before; }));
        draining drain(server, {.window = 60s});
        CHECK(eventually([&] { return told == 2; }));
        CHECK_FALSE(drain.done()); // it was not the end of the window that told them
        server.stuck.reset();
        blocked.join();
        runner.join();
        drain.get();
    }

    TEST_CASE("each message whose publishing succeeded reaches a client that reads") {
        for (int round = 0; round < 5; ++round) {
            running_server server(with_threads(2));
            reading a(server.port()), b(server.port());
            std::vector<std::thread> publishers;
            std::atomic<std::uint64_t> published{0}, waiting{0};
            for (int i = 0; i < 2; ++i) {
                publishers.emplace_back([&] {
                    ++waiting;
                    while (!server.try_publish("/t", {.data = "x"})) {
                        ++published;
                        std::this_thread::yield();
                    }
                });
            }
            CHECK(eventually([&] { return waiting == 2 && published > 200; }));
            const auto result = server.drain({.window = 300ms});
            for (auto& t : publishers) t.join();
            CHECK(result.closed == 2);
            a.join();
            b.join();
            // One that each thread had begun when the drain began may be lost, as documented.
            CHECK(a.events.size() + 2 >= published);
            CHECK(a.events.size() <= published);
            CHECK(b.events.size() + 2 >= published);
        }
    }
}

TEST_SUITE("drain and handlers") {
    TEST_CASE("a handler that does not return within the window is cut, which nobody reports") {
        std::atomic<int> ended{0};
        error_count errors;
        sse::options o = with_threads(2);
        errors.attach(o);
        running_server server(
            o, [&](sse::server& s) { s.route("GET", "/route", greet_and_wait(ended)); });
        connection a(server.port()), b(server.port());
        for (connection* client : {&a, &b}) client->send_request("GET", "/route");
        CHECK(eventually([&] { return server.counters().delivered == 2; }));
        const auto result =
            server.drain({.window = 200ms, .farewell = sse::message{.data = "bye"}});
        CHECK(result.closed == 0);
        CHECK(result.cut == 2);
        CHECK(ended == 2);
        for (connection* client : {&a, &b}) {
            const std::string all = client->read_to_end();
            CHECK(all.ends_with("data: hello\n\n\r\n")); // no farewell, and no last chunk
        }
        CHECK(errors.count == 0);
    }

    TEST_CASE(
        "a handler that has an end comes to it within the window, and its response is whole") {
        std::atomic<bool> go_on{false};
        std::atomic<int> begun{0};
        running_server server(with_threads(2), [&](sse::server& s) {
            s.route("GET", "/finite", [&](sse::stream& client) -> handler_result {
                co_await client.send({.data = "part"});
                ++begun;
                co_await until(client, go_on);
                CHECK(client.draining());
                co_await client.send({.data = "done"});
            });
        });
        std::vector<std::unique_ptr<connection>> clients;
        for (int i = 0; i < 20; ++i) {
            clients.push_back(std::make_unique<connection>(server.port()));
            clients.back()->send(i % 2 ? "GET /finite HTTP/1.1\r\nHost: localhost\r\n\r\n"
                                       : "GET /finite HTTP/1.0\r\n\r\n");
        }
        REQUIRE(eventually([&] { return begun == 20; }));
        event_client follower(server.port(), "/subscribe/t");
        draining drain(server, {.window = 60s, .farewell = sse::message{.data = "bye"}});
        // The time comes for all of them; only the one that follows topics leaves then.
        CHECK(send_away_now(server));
        CHECK(follower.next().data == "bye");
        CHECK(server.counters().streams >= 20);
        go_on = true;
        for (std::size_t i = 0; i < clients.size(); ++i) {
            const std::string all = clients[i]->read_to_end();
            CAPTURE(all);
            CHECK(all.find("retry:") == all.npos);
            CHECK(all.ends_with(i % 2 ? "data: done\n\n\r\n0\r\n\r\n" : "data: done\n\n"));
            clients[i]->close();
        }
        follower.close();
        const auto result = drain.get();
        CHECK(result.closed == 21);
        CHECK(result.cut == 0);
    }

    TEST_CASE(
        "a response that is cut is not whole, though its handler returns before its client reads") {
        const std::string much(4'000'000, 'x');
        for (const bool by_drain : {false, true}) {
            CAPTURE(by_drain);
            std::atomic<int> ended{0};
            running_server server(with_threads(1), [&](sse::server& s) {
                s.route("GET", "/much", [&](sse::stream& client) -> handler_result {
                    const count_end guard{ended};
                    if (by_drain) {
                        client.subscribe("/t"); // what has no end of its own leaves at random
                    } else {
                        client.end_after(50ms);
                    }
                    client.try_send({.data = much});
                    while (client.open()) co_await client.sleep_for(1ms);
                });
            });
            connection peer(server.port(), {.receive_buffer = 4096});
            // Through Varnish, a stream that follows topics is chunked too.
            peer.send("GET /much HTTP/1.1\r\nHost: localhost\r\nX-Varnish: 1\r\n\r\n");
            CHECK(eventually([&] { return server.counters().bytes > 10'000; }));
            std::optional<draining> drain;
            if (by_drain) {
                drain.emplace(server, sse::drain_options{.window = 60s});
                CHECK(send_away_now(server));
            }
            CHECK(eventually([&] { return ended == 1; }));
            const std::string all = peer.read_to_end();
            CHECK(all.size() > much.size());
            CHECK_FALSE(all.ends_with("\r\n0\r\n\r\n"));
            peer.close();
        }
    }

    TEST_CASE("a response that begins during a drain shows whether it is whole") {
        std::atomic<int> waiting{0};
        std::atomic<int> sent{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/{kind}", [&](sse::stream& client) -> handler_result {
                ++waiting;
                while (!client.draining()) co_await client.sleep_for(1ms);
                co_await client.send({.data = "sent"});
                ++sent;
                if (client.request().path_value("kind") == "part") co_await wait_an_hour(client);
            });
        });
        connection part(server.port()), whole(server.port());
        part.send_request("GET", "/part");
        whole.send_request("GET", "/whole");
        REQUIRE(eventually([&] { return waiting == 2; }));
        draining drain(server, {.window = 1s});
        for (connection* const client : {&part, &whole}) {
            const response head = client->read_head();
            CHECK(head.header("Transfer-Encoding") == "chunked");
            CHECK(head.header("Connection") == "close");
        }
        CHECK(whole.read_to_end().ends_with("data: sent\n\n\r\n0\r\n\r\n"));
        CHECK(part.read_to_end().ends_with("data: sent\n\n\r\n"));
        part.close();
        whole.close();
        const auto result = drain.get();
        CHECK(sent == 2);
        CHECK(result.closed == 1);
        CHECK(result.cut == 1);
    }

    TEST_CASE("a handler that looks whether the server is draining ends its endless stream whole") {
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/endless", [&](sse::stream& client) -> handler_result {
                while (!client.draining()) {
                    co_await client.send({.data = "tick"});
                    co_await client.sleep_for(1ms);
                }
            });
        });
        event_client client(server.port(), "/endless");
        CHECK(client.next().data == "tick");
        draining drain(server, {.window = 60s});
        while (client.next_or_end()) {}
        client.close();
        const auto result = drain.get();
        CHECK(result.closed == 1);
        CHECK(result.cut == 0);
    }

    TEST_CASE(
        "a handler that follows topics too is sent away with the farewell, but not as whole") {
        std::atomic<int> ended{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/both", [&](sse::stream& client) -> handler_result {
                const count_end guard{ended};
                co_await client.send({.data = "hello"});
                client.subscribe("/t");
                co_await wait_an_hour(client);
            });
        });
        connection client(server.port());
        client.send_request("GET", "/both");
        client.read_through("hello");
        server.drain({.window = 300ms, .farewell = sse::message{.data = "bye"}});
        const std::string all = client.read_to_end();
        CHECK(all.ends_with("data: bye\n\n\r\n"));
        CHECK(ended == 1);
    }

    TEST_CASE("a handler that has not responded is cancelled late in the window, and gets 503") {
        std::atomic<int> begun{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/slow", [&](sse::stream& client) {
                ++begun;
                return wait_an_hour(client);
            });
        });
        connection peer(server.port());
        peer.send_request("GET", "/slow");
        REQUIRE(eventually([&] { return begun == 1; }));
        const auto begin = steady::now();
        draining drain(server, {.window = 1s});
        const auto response = peer.read_response();
        CHECK(response.status == 503);
        CHECK(response.body == "Going down\n");
        CHECK(response.header("Retry-After") == "5");
        CHECK(steady::now() - begin >= 750ms);
        peer.close();
        drain.get();
    }

    TEST_CASE("a snapshot that is not finished lets nothing of the tail through") {
        std::atomic<int> begun{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                client.subscribe("/t", {.held = true});
                ++begun;
                co_await wait_an_hour(client); // for what the snapshot is made of
                co_await client.send({.event = "snapshot", .data = "x"});
                client.resume();
            });
        });
        reading client(server.port(), "/route");
        REQUIRE(eventually([&] { return begun == 1; }));
        server.publish("/t", {.data = "tail"});
        server.drain({.window = 100ms});
        client.join();
        // With the id of "tail" it would come back, and never get what lies before.
        CHECK(client.events.empty());
    }

    TEST_CASE("a request that is under way is answered, on a connection that ends then") {
        std::atomic<int> begun{0};
        std::atomic<bool> go_on{false};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/slow", [&](sse::stream& client) -> handler_result {
                co_await asio::this_coro::throw_if_cancelled(false);
                co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
                ++begun;
                asio::steady_timer timer(client.get_executor());
                while (!go_on) {
                    timer.expires_after(1ms);
                    co_await timer.async_wait(asio::use_awaitable);
                }
                co_await client.respond(200, "text/plain", "done\n");
            });
        });
        connection peer(server.port());
        peer.send_request("GET", "/slow");
        REQUIRE(eventually([&] { return begun == 1; }));
        draining drain(server, {.window = 60s});
        CHECK(
            eventually([&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
        go_on = true;
        const auto answer = peer.read_response();
        CHECK(answer.status == 200);
        CHECK(answer.header("Connection") == "close");
        CHECK(peer.read_to_end().empty());
        peer.close();
        drain.get();
    }

    TEST_CASE("a handler of the server itself may drain it") {
        sse::server* self = nullptr;
        std::atomic<int> returned{0};
        running_server server(with_threads(2), [&](sse::server& s) {
            self = &s;
            s.route("GET", "/drain", [&](sse::stream& client) -> handler_result {
                co_await client.send({.data = "begun"});
                co_await self->async_drain({.window = 200ms});
                ++returned;
            });
            s.route("GET", "/stop", [&](sse::stream& client) -> handler_result {
                std::string answer = "accepted";
                try {
                    self->drain({.window = 1ms});
                } catch (const std::system_error& e) { answer = e.code().message(); }
                co_await client.respond(200, "text/plain", answer);
            });
        });
        CHECK(http_get(server.port(), "/stop").body ==
              std::make_error_code(std::errc::resource_deadlock_would_occur).message());
        reading other(server.port());
        reading client(server.port(), "/drain");
        auto joined = std::async(std::launch::async, [&] { server.join(); });
        CHECK(joined.wait_for(patience) == std::future_status::ready); // drain() stopped it
        server.stop();
        joined.get();
        client.join();
        other.join();
        CHECK(other.retry().has_value());
        CHECK(returned <= 1);
    }
}

TEST_SUITE("drain and connections") {
    TEST_CASE("new connections are refused, idle ones are closed") {
        running_server server(with_threads(2));
        connection idle(server.port()), silent(server.port());
        CHECK(idle.request("GET", "/health").status == 200);
        event_client client(server.port());
        const auto port = server.port();
        draining drain(server, {.window = 300ms});
        CHECK(eventually([&] {
            try {
                connection refused(port);
                return false;
            } catch (const connection_ended&) { // accepted, and ended in its handshake
                return false;
            } catch (const std::system_error&) { return true; }
        }));
        CHECK(idle.wait_for_close() == ending::fin);
        silent.wait_for_close();
        client.wait_for_close();
        drain.get();
    }

    TEST_CASE("a server that drains says that it is not ready, and that it lives") {
        running_server server(with_threads(1));
        CHECK(http_get(server.port(), "/health/ready").status == 200);
        // A request that has begun before the drain is answered in it.
        const auto begin = [&](connection& c, const std::string& target) {
            c.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET " + target +
                   " HTTP/1.1\r\nHost: localhost\r\n");
            CHECK(c.read_response().status == 200);
        };
        connection ready(server.port()), live(server.port());
        begin(ready, "/health/ready");
        begin(live, "/health");
        event_client client(server.port());
        draining drain(server, {.window = 1h});
        CHECK(
            eventually([&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
        ready.send("\r\n");
        live.send("\r\n");
        CHECK(ready.read_response().status == 503);
        CHECK(live.read_response().status == 200);
        server.stop();
        drain.get();
        client.wait_for_close();
    }

    TEST_CASE("idle connections alone are drained within the window") {
        running_server server(with_threads(1));
        connection idle(server.port());
        CHECK(idle.request("GET", "/health").status == 200);
        const auto result = server.drain({.window = 300ms});
        CHECK(result.closed == 0);
        CHECK(result.cut == 0);
        CHECK(idle.wait_for_close() == ending::fin);
    }

    TEST_CASE("stop() during a drain ends it at once") {
        running_server server(with_threads(2));
        event_client a(server.port()), b(server.port());
        draining drain(server, {.window = 1h});
        CHECK(
            eventually([&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
        server.stop();
        const auto result = drain.get();
        CHECK(result.closed + result.cut <= 2);
        server.join();
        a.wait_for_close();
        b.wait_for_close();
    }

    TEST_CASE("a second drain waits for the first, however short its own window") {
        sse::options o = with_threads(2);
        o.timeouts.shutdown = 50ms;
        running_server server(o);
        reading a(server.port()), b(server.port());
        draining first(server, {.window = 1'500ms});
        CHECK(
            eventually([&] { return server.try_broadcast({.data = "x"}) == sse::errc::stopped; }));
        draining second(server, {.window = 0ms});
        const auto third = server.drain({.window = 0ms});
        CHECK(third.closed == 2);
        CHECK(third.cut == 0);
        CHECK(first.get().closed == 2);
        CHECK(second.get().closed == 2);
        a.join();
        b.join();
        CHECK(a.retry().has_value());
        CHECK(b.retry().has_value());
    }

    TEST_CASE("before the start and after the end there is nothing to drain") {
        {
            sse::server server(with_threads(2));
            draining drain(server, {.window = 60s});
            const auto result = drain.get();
            CHECK(result.closed + result.cut == 0);
            check_code(sse::errc::stopped, [&] { server.start("127.0.0.1:0"); });
        }
        {
            sse::server server(with_threads(2));
            CHECK(server.drain({.window = 60s}).closed == 0);
        }
        {
            running_server server(with_threads(2));
            server.stop();
            server.join();
            CHECK(server.drain({.window = 60s}).closed == 0);
            draining drain(server, {.window = 60s});
            CHECK(drain.get().closed == 0);
        }
        {
            running_server server(with_threads(2)); // awaited by nobody: nothing happens
            { auto unused = server.async_drain(); }
            event_client client(server.port());
            server.broadcast({.data = "on"});
            CHECK(client.next().data == "on");
        }
    }

    TEST_CASE("the server may be destroyed right after it, and its port taken again") {
        std::uint16_t port = 0;
        for (int round = 0; round < 5; ++round) {
            std::optional<sse::server> server(std::in_place, with_tls_by_default(with_threads(2)));
            server->start("127.0.0.1:" + std::to_string(port));
            port = server->port();
            reading a(port), b(port);
            server->broadcast({.data = "x"});
            sse::drain_result result;
            if (round % 2 == 0) {
                draining drain(*server, {.window = 50ms});
                result = drain.get();
                server.reset();
            } else {
                result = server->drain({.window = 50ms});
                server.reset();
            }
            CHECK(result.closed == 2);
            a.join();
            b.join();
            CHECK(a.events.size() == 1);
        }
    }

    TEST_CASE("a termination signal drains, when the options say so") {
        sse::options o = with_threads(2);
        o.handle_signals = true;
        o.drain_window = 300ms;
        o.limits.retry_after = 3'000ms;
        running_server server(o);
        reading a(server.port()), b(server.port());
        server.publish("/t", {.data = "last"});
        std::raise(SIGTERM);
        server.join();
        for (reading* client : {&a, &b}) {
            client->join();
            REQUIRE(client->events.size() == 1);
            CHECK(client->events[0].data == "last");
            REQUIRE(client->retry().has_value()); // as after a stop
            CHECK(*client->retry() >= 3'000);
            CHECK(*client->retry() <= 6'000);
        }
        check_code(sse::errc::stopped, [&] { server.publish("/t", {.data = "x"}); });
    }

    TEST_CASE("a drain window below nothing or over a day is refused by the options") {
        for (const auto wrong : {-1ms, std::chrono::milliseconds(25h)}) {
            sse::options o = with_threads(1);
            o.drain_window = wrong;
            o.handle_signals = true;
            CHECK_THROWS_AS(sse::server(std::move(o)), sse::bad_option);
        }
    }

    TEST_CASE("a drain window that no signal would use is refused by the options") {
        sse::options o = with_threads(1);
        o.drain_window = 300ms;
        CHECK_THROWS_AS(sse::server{o}, sse::bad_option);
        o.handle_signals = true;
        const sse::server accepted(o);
    }
}

} // namespace drain_test
