// presence.cpp - covers >>stream: who is there: streams by id and by user, listings, revocation,
// and the reason of each end.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <asio/detached.hpp>
#include <asio/use_future.hpp>

#include <doctest/doctest.h>

#include <future>
#include <map>
#include <set>
#include <thread>

namespace presence_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

sse::options watchful(std::size_t threads = 1) {
    sse::options o = with_threads(threads);
    o.timeouts.body = 40ms; // deadlines are looked at every few milliseconds
    return o;
}

/// What the hooks were told.
struct register_of_streams {
    std::mutex mutex;
    std::map<std::uint64_t, int> connected;
    std::map<std::uint64_t, std::vector<sse::end_reason>> ended;
    std::vector<sse::stream_info> infos;

    void attach(sse::options& o) {
        o.hooks.on_connect = [this](sse::stream& s) {
            const std::lock_guard lock(mutex);
            ++connected[s.id()];
        };
        o.hooks.on_disconnect = [this](const sse::stream_info& info, sse::end_reason why) {
            const std::lock_guard lock(mutex);
            ended[info.id].push_back(why);
            infos.push_back(info);
        };
    }
    std::size_t ends() {
        const std::lock_guard lock(mutex);
        std::size_t n = 0;
        for (const auto& [id, reasons] : ended) n += reasons.size();
        return n;
    }
    /// All were told of once at both ends, for these reasons in any order.
    void check(std::multiset<sse::end_reason> expected) {
        CHECK(eventually([&] { return ends() >= expected.size(); }));
        const std::lock_guard lock(mutex);
        CHECK(connected.size() == expected.size());
        std::multiset<sse::end_reason> seen;
        for (const auto& [id, count] : connected) {
            CHECK(count == 1);
            CHECK(ended[id].size() == 1);
            for (const auto why : ended[id]) seen.insert(why);
        }
        std::string names;
        for (const auto why : seen) names.append(to_string(why)).append(", ");
        CAPTURE(names);
        CHECK(seen == expected);
    }
};

/// The user that the request's header names: a stand-in for a session.
void users_by_header(sse::options& o) {
    o.hooks.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
        co_return sse::access::grant({.user = std::string(r.header("X-User").value_or(""))});
    };
}

std::unique_ptr<event_client> client_of(const sse::server& server, const std::string& user,
                                        const std::string& target = "/subscribe/t",
                                        const std::string& last_id = {}) {
    header_list headers{{"X-User", user}};
    if (!last_id.empty()) headers.emplace_back("Last-Event-ID", last_id);
    return std::make_unique<event_client>(server.port(), target, headers);
}

std::string until_end(event_client& client) {
    std::string all;
    for (auto event = client.next(); event.data != "end"; event = client.next()) {
        all += event.data + ",";
    }
    return all;
}

std::string large(std::size_t size = 50'000) { return support::incompressible(size); }

} // namespace

TEST_SUITE("streams by name") {
    TEST_CASE("a message to one stream reaches it alone, in order with all other publishing") {
        running_server server(with_threads(2));
        event_client a(server.port(), "/subscribe/t"), b(server.port(), "/subscribe/t"),
            c(server.port(), "/subscribe/t");
        const auto all = server.streams();
        REQUIRE(all.size() == 3);
        std::set<std::uint64_t> ids;
        for (const auto& one : all) {
            CHECK(one.id != 0);
            ids.insert(one.id);
        }
        CHECK(ids.size() == 3);
        for (int n = 0; n < 100; ++n) {
            server.broadcast({.data = std::to_string(n)});
            const std::string data = "to " + std::to_string(all[0].id) + " " + std::to_string(n);
            CHECK(server.send_to(all[0].id, {.data = data}) == 2 * static_cast<unsigned>(n) + 2);
        }
        server.broadcast({.data = "end"});
        int chosen = 0;
        for (event_client* client : {&a, &b, &c}) {
            std::string plain, named;
            for (int n = 0; n < 100; ++n) {
                const std::string to = "to " + std::to_string(all[0].id) + " ";
                plain += std::to_string(n) + ",";
                named += std::to_string(n) + "," + to + std::to_string(n) + ",";
            }
            const std::string seen = until_end(*client);
            chosen += seen == named ? 1 : 0;
            CHECK((seen == named || seen == plain));
        }
        CHECK(chosen == 1);
    }

    TEST_CASE(
        "a message to one stream has no id and is not replayed; to nobody it is not an error") {
        running_server server;
        connection peer(server.port());
        peer.send_request("GET", "/subscribe/t");
        peer.read_head();
        peer.read_through("\n\n");
        const auto id = server.streams().at(0).id;
        server.send_to(id, {.data = "private"});
        CHECK(peer.read_through("\n\n") == "data: private\n\n");
        const std::string before = server.last_id();
        CHECK(before.ends_with("-1"));
        CHECK(server.send_to(id + 1000, {.data = "nobody"}) == 2);
        CHECK(server.send_to(0, {.data = "nobody"}) == 3);
        CHECK_THROWS_AS(server.send_to(id, {}), std::system_error);
        server.broadcast({.data = "end"});
        event_client again(server.port(), "/subscribe/t",
                           {{"Last-Event-ID", before.substr(0, 9) + "0"}});
        CHECK(until_end(again).empty());
    }

    TEST_CASE("it reaches a handler's stream that subscribes to nothing") {
        std::atomic<std::uint64_t> id{0};
        std::atomic<bool> done{false};
        running_server server(with_threads(2), [&](sse::server& s) {
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                co_await client.send({.data = "hello"});
                id = client.id();
                co_await until(client, done);
                co_await client.send({.data = "bye"});
            });
        });
        event_client other(server.port(), "/subscribe/t"); // the handler lands elsewhere
        event_client client(server.port(), "/route");
        CHECK(client.next().data == "hello");
        REQUIRE(eventually([&] { return id != 0; }));
        for (int n = 0; n < 10; ++n) {
            server.broadcast({.data = "not for it"});
            server.send_to(id, {.data = std::to_string(n)});
        }
        for (int n = 0; n < 10; ++n) CHECK(client.next().data == std::to_string(n));
        done = true;
        CHECK(client.next().data == "bye");
        CHECK(client.wait_for_close() == ending::last_chunk);
    }

    TEST_CASE(
        "a message to a stream that has not begun, or gives a plain response, spoils nothing") {
        std::atomic<std::uint64_t> id{0};
        std::atomic<bool> done{false};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/plain", [&](sse::stream& client) -> handler_result {
                id = client.id();
                co_await until(client, done);
                co_await client.respond(200, "text/plain", "whole\n");
            });
            s.route("GET", "/stream", [&](sse::stream& client) -> handler_result {
                id = client.id();
                co_await until(client, done);
                co_await client.send({.data = "first"});
            });
        });
        event_client other(server.port(), "/subscribe/t");
        for (const char* target : {"/plain", "/stream"}) {
            CAPTURE(target);
            id = 0;
            done = false;
            connection peer(server.port());
            peer.send_request("GET", target);
            REQUIRE(eventually([&] { return id != 0; }));
            server.send_to(id, {.data = "too early"});
            server.broadcast({.data = "sent"});
            CHECK(other.next().data == "sent");
            http_get(server.port(), "/health"); // the worker had turns
            done = true;
            const auto head = peer.read_head();
            CHECK(head.status == 200);
            if (std::string_view(target) == "/plain") {
                CHECK(peer.read_exactly(6) == "whole\n");
                // The same connection is another request's now, perhaps of another client's.
                server.send_to(id, {.data = "too late"});
                server.broadcast({.data = "sent"});
                CHECK(other.next().data == "sent");
                CHECK(peer.request("GET", "/health").status == 200);
                CHECK(peer.received().empty());
            }
        }
    }

    TEST_CASE("a name that a handler asks for after its client has left is nobody's") {
        std::atomic<std::uint64_t> id{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                co_await client.send({.data = "hello"});
                try {
                    co_await wait_an_hour(client);
                } catch (const std::exception&) {}
                id = client.id();
            });
        });
        {
            event_client client(server.port(), "/route");
            client.next();
        }
        REQUIRE(eventually([&] { return id != 0; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        std::atomic<int> calls{0};
        server.post_to(id, [&](sse::stream& s) {
            ++calls;
            s.topics();
        });
        server.send_to(id, {.data = "gone"});
        CHECK(server.streams().empty()); // behind the call
        CHECK(calls == 0);
    }

    TEST_CASE("post_to runs on the stream's thread, what it throws ends that stream") {
        error_count errors;
        sse::options o = with_threads(2);
        errors.attach(o);
        running_server server(o);
        event_client a(server.port(), "/subscribe/a"), b(server.port(), "/subscribe/b");
        const auto all = server.streams();
        std::mutex mutex;
        std::set<std::thread::id> threads;
        for (const auto& one : all) {
            server.post_to(one.id, [&](sse::stream& s) {
                const std::lock_guard lock(mutex);
                threads.insert(std::this_thread::get_id());
                CHECK(s.open());
            });
        }
        CHECK(server.streams().size() == 2); // behind the calls
        CHECK(threads.size() == 2);
        CHECK(threads.count(std::this_thread::get_id()) == 0);
        for (const auto& one : all) {
            if (one.topics == std::vector<std::string>{"/a"}) {
                server.post_to(one.id, [](sse::stream&) { throw std::runtime_error("broken"); });
            }
        }
        CHECK_FALSE(a.next_or_end());
        CHECK(errors.count == 1);
        server.broadcast({.data = "on"});
        CHECK(b.next().data == "on");
        CHECK_THROWS_AS(server.post_to(1, nullptr), std::invalid_argument);
    }
}

TEST_SUITE("users") {
    TEST_CASE("all streams of a user get what is sent to it, on every thread, and nobody else") {
        sse::options o = with_threads(3);
        users_by_header(o);
        running_server server(o);
        std::vector<std::unique_ptr<event_client>> ann, others;
        for (int i = 0; i < 4; ++i) ann.push_back(client_of(server, "ann"));
        for (const char* user : {"", "ann/b", "an", "annn", "Ann", "b"}) {
            others.push_back(client_of(server, user));
            others.push_back(client_of(server, user, "/subscribe"));
            others.push_back(client_of(server, user, "/subscribe?topic=ann&topic=%20ann"));
        }
        std::string expected;
        for (int n = 0; n < 20; ++n) {
            server.broadcast({.data = "all"});
            const auto place = server.send_to_user("ann", {.data = std::to_string(n)});
            CHECK(server.last_id().ends_with("-" + std::to_string(place)));
            expected += "all," + std::to_string(n) + ",";
        }
        server.send_to_user("nobody", {.data = "x"});
        server.broadcast({.data = "end"});
        for (auto& client : ann) CHECK(until_end(*client) == expected);
        std::string plain;
        for (int n = 0; n < 20; ++n) plain += "all,";
        for (auto& client : others) CHECK(until_end(*client) == plain);
    }

    TEST_CASE("a name with a slash is a name like any other") {
        sse::options o = with_threads(1);
        users_by_header(o);
        running_server server(o);
        const auto a = client_of(server, "a"), ab = client_of(server, "a/b"),
                   slash = client_of(server, "/a"), end = client_of(server, "a/");
        for (const char* user : {"a", "a/b", "/a", "a/", "b"}) {
            server.send_to_user(user, {.data = user});
        }
        server.broadcast({.data = "end"});
        CHECK(until_end(*a) == "a,");
        CHECK(until_end(*ab) == "a/b,");
        CHECK(until_end(*slash) == "/a,");
        CHECK(until_end(*end) == "a/,");
        for (const char* bad : {"", "a\nb",
                                "a\x1f"
                                "b",
                                "\x7f"}) {
            try {
                server.send_to_user(bad, {.data = "x"});
                FAIL_CHECK("accepted");
            } catch (const std::system_error& e) { CHECK(e.code() == sse::errc::bad_key); }
        }
    }

    TEST_CASE("who comes back gets what was sent to its user meanwhile, others do not") {
        sse::options o = with_threads(2);
        users_by_header(o);
        running_server server(o);
        server.send_to_user("ann", {.data = "1"});
        const std::string id = server.last_id();
        server.publish("/t", {.data = "2"});
        server.send_to_user("ann", {.data = "3"});
        server.send_to_user("bob", {.data = "4"});
        server.publish("/other", {.data = "5"});
        server.broadcast({.data = "end"});
        for (int i = 0; i < 2; ++i) {
            CHECK(until_end(*client_of(server, "ann", "/subscribe/t", id)) == "2,3,");
            CHECK(until_end(*client_of(server, "bob", "/subscribe/t", id)) == "2,4,");
            CHECK(until_end(*client_of(server, "", "/subscribe/t", id)) == "2,");
            CHECK(until_end(*client_of(server, "", "/subscribe", id)) == "2,5,");
            CHECK(until_end(*client_of(server, "ann/x", "/subscribe?from=oldest")) == "2,5,");
        }
    }

    TEST_CASE("the user of an open stream can change") {
        running_server server(with_threads(2));
        event_client client(server.port(), "/subscribe/t");
        const auto id = server.streams().at(0).id;
        const auto become = [&](std::string user) {
            gate done;
            server.post_to(id, [&](sse::stream& s) {
                s.set_user(user);
                CHECK(s.user() == user);
                done.open();
            });
            REQUIRE(done.wait());
        };
        server.send_to_user("ann", {.data = "0"});
        become("ann");
        CHECK(server.streams().at(0).user == "ann");
        CHECK(server.streams().at(0).topics == std::vector<std::string>{"/t"});
        server.send_to_user("ann", {.data = "1"});
        become("bob");
        server.send_to_user("ann", {.data = "2"});
        server.send_to_user("bob", {.data = "3"});
        become("ann");
        server.send_to_user("bob", {.data = "4"});
        server.send_to_user("ann", {.data = "5"});
        server.broadcast({.data = "end"});
        CHECK(until_end(client) == "1,3,5,");
    }

    TEST_CASE("the user of a request is not that of the next on the same connection") {
        sse::options o = with_threads(1);
        users_by_header(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/me", [](sse::stream& client) -> handler_result {
                client.set_user("ann");
                co_await client.respond(200, "text/plain", "ann\n");
            });
        });
        for (const bool by_route : {false, true}) {
            CAPTURE(by_route);
            connection shared(server.port()); // as a proxy shares it between its clients
            if (by_route) {
                CHECK(shared.request("GET", "/me").status == 200);
            } else {
                CHECK(shared
                          .request("GET", "/subscribe/t",
                                   {{"X-User", "ann"}, {"Accept", "text/html"}})
                          .status == 406);
            }
            shared.send_request("GET", "/subscribe/t");
            CHECK(shared.read_head().status == 200);
            CHECK(server.streams().at(0).user.empty());
            server.send_to_user("ann", {.data = "for ann"});
            server.broadcast({.data = "end"});
            CHECK(shared.read_through("data: end").find("for ann") == std::string::npos);
            shared.close();
            CHECK(eventually([&] { return server.counters().connections == 0; }));
        }
    }
}

TEST_SUITE("listings") {
    TEST_CASE("a listing has each open stream with what is known of it") {
        sse::options o = with_threads(2);
        o.proxy.trusted = {"127.0.0.1"};
        users_by_header(o);
        running_server server(o);
        CHECK(server.streams().empty());
        event_client a(server.port(), "/subscribe?topic=a&topic=b/c",
                       {{"X-User", "ann"}, {"X-Forwarded-For", "10.1.2.3"}});
        event_client b(server.port(), "/subscribe/", {{"X-Forwarded-For", "10.1.2.4"}});
        connection idle(server.port());
        CHECK(idle.request("GET", "/health").status == 200); // no stream
        auto all = server.streams();
        REQUIRE(all.size() == 2);
        if (all[0].user != "ann") std::swap(all[0], all[1]);
        CHECK(all[0].topics == std::vector<std::string>{"/a", "/b/c"});
        CHECK(all[0].client.to_string() == "10.1.2.3");
        CHECK(all[0].lag.messages == 0);
        CHECK(all[0].age < 60s);
        CHECK(all[1].user.empty());
        CHECK(all[1].topics == std::vector<std::string>{"/"});
        CHECK(all[1].client.to_string() == "10.1.2.4");
        const auto id = all[0].id;
        CHECK(server.streams().size() == 2);
        a.close();
        CHECK(eventually([&] { return server.streams().size() == 1; }));
        CHECK(server.streams().at(0).id != id);
    }

    TEST_CASE("with a hook that wants to know, the client behind a proxy is listed too") {
        sse::options o = with_threads(1);
        o.proxy.trusted = {"127.0.0.1"};
        o.hooks.on_disconnect = [](const sse::stream_info&, sse::end_reason) {};
        running_server server(o);
        event_client a(server.port(), "/subscribe/t", {{"X-Forwarded-For", "10.1.2.3"}});
        CHECK(server.streams().at(0).client.to_string() == "10.1.2.3");
    }

    TEST_CASE("it is empty before the start and after the stop") {
        sse::server server(with_tls_by_default(with_threads(2)));
        CHECK(server.streams().empty());
        asio::io_context io;
        const auto ask = [&] {
            auto answer = asio::co_spawn(io, server.async_streams(), asio::use_future);
            io.restart();
            io.run_for(patience);
            REQUIRE(answer.wait_for(patience) == std::future_status::ready);
            return answer.get().size();
        };
        CHECK(ask() == 0);
        server.start("127.0.0.1:0");
        event_client client(server.port(), "/subscribe/t");
        CHECK(server.streams().size() == 1);
        CHECK(ask() == 1);
        server.stop();
        server.join();
        CHECK(server.streams().empty());
        CHECK(ask() == 0);
    }

    TEST_CASE("asked for while it stops, it answers all the same") {
        for (int round = 0; round < 20; ++round) {
            running_server server(with_threads(2));
            event_client client(server.port(), "/subscribe/t");
            std::thread asks([&] {
                for (int n = 0; n < 20; ++n) CHECK(server.streams().size() <= 1);
            });
            server.stop();
            asks.join();
        }
    }

    TEST_CASE("a handler awaits it; the blocking one refuses on a thread of the server") {
        sse::server* self = nullptr;
        running_server server(with_threads(2), [&](sse::server& s) {
            self = &s;
            s.route("GET", "/count", [&](sse::stream& client) -> handler_result {
                std::string answer;
                try {
                    static_cast<void>(self->streams());
                } catch (const std::system_error& e) {
                    answer = e.code() == std::errc::resource_deadlock_would_occur ? "refused " : "";
                }
                const auto all = co_await self->async_streams();
                answer += std::to_string(all.size());
                co_await client.respond(200, "text/plain", answer);
            });
        });
        event_client a(server.port(), "/subscribe/t"), b(server.port(), "/subscribe/t");
        CHECK(http_get(server.port(), "/count").body == "refused 2");
        CHECK(http_get(server.port(), "/count").body == "refused 2"); // of the other thread
    }
}

TEST_SUITE("revoke") {
    TEST_CASE("one stream is ended at once, or all that a predicate chooses") {
        register_of_streams seen;
        sse::options o = with_threads(2);
        users_by_header(o);
        seen.attach(o);
        running_server server(o);
        std::vector<std::unique_ptr<event_client>> ann, bob;
        for (int i = 0; i < 5; ++i) {
            ann.push_back(client_of(server, "ann"));
            bob.push_back(client_of(server, "bob"));
        }
        std::uint64_t chosen = 0;
        for (const auto& one : server.streams()) {
            if (one.user == "bob") chosen = one.id;
        }
        server.revoke(chosen);
        server.revoke(chosen + 1000); // nobody
        CHECK(eventually([&] { return server.counters().streams == 9; }));
        server.revoke_if([](const sse::stream_info& one) { return one.user == "ann"; });
        CHECK(eventually([&] { return server.counters().streams == 4; }));
        for (auto& client : ann) CHECK_FALSE(client->next_or_end());
        server.broadcast({.data = "x"});
        int left = 0;
        for (auto& client : bob) left += client->next_or_end() ? 1 : 0;
        CHECK(left == 4);
        bob.clear();
        using enum sse::end_reason;
        seen.check({revoked, revoked, revoked, revoked, revoked, revoked, client_left, client_left,
                    client_left, client_left});
        CHECK_THROWS_AS(server.revoke_if(nullptr), std::invalid_argument);
    }

    TEST_CASE("a handler's stream too: it is cancelled") {
        std::atomic<int> ended{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                const count_end guard{ended};
                co_await client.send({.data = "hello"});
                co_await wait_an_hour(client);
            });
        });
        event_client client(server.port(), "/route");
        client.next();
        server.revoke(server.streams().at(0).id);
        CHECK_FALSE(client.next_or_end());
        CHECK(eventually([&] { return ended == 1; }));
    }
}

TEST_SUITE("connect and disconnect") {
    using enum sse::end_reason;

    TEST_CASE("client left, by FIN and by RST, before and after its handler returned") {
        register_of_streams seen;
        sse::options o = with_threads(2);
        seen.attach(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/route", [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "hello"});
                co_await wait_an_hour(client);
            });
        });
        event_client a(server.port()), b(server.port()), c(server.port(), "/route"),
            d(server.port(), "/route");
        a.close();
        b.reset();
        c.close();
        d.reset();
        seen.check({client_left, client_left, client_left, client_left});
        for (const auto& info : seen.infos) CHECK(info.client.is_loopback());
    }

    TEST_CASE("ended by its handler, by close(), and expired") {
        register_of_streams seen;
        sse::options o = watchful();
        seen.attach(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/returns", [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "hello"});
            });
            s.route("GET", "/closes", [](sse::stream& client) -> handler_result {
                client.subscribe("/t");
                client.close();
                co_await wait_an_hour(client);
            });
            s.route("GET", "/expires", [](sse::stream& client) -> handler_result {
                client.subscribe("/t");
                client.end_after(20ms);
                co_await wait_an_hour(client);
            });
            s.route("GET", "/expires-alone", [](sse::stream& client) -> handler_result {
                client.subscribe("/t");
                client.end_after(20ms);
                co_return;
            });
        });
        for (const char* target : {"/returns", "/closes", "/expires", "/expires-alone"}) {
            CAPTURE(target);
            event_client client(server.port(), target);
            CHECK(client.wait_for_close() != ending::reset);
        }
        seen.check({ended, ended, expired, expired});
    }

    TEST_CASE("a stream that ends by itself ends for its client and its handler without delay") {
        std::atomic<int> returned{0};
        running_server server(watchful(), [&](sse::server& s) {
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                const count_end guard{returned};
                client.subscribe("/t");
                client.close();
                co_await wait_an_hour(client);
            });
        });
        using clock = std::chrono::steady_clock;
        int clients = 0;
        // Never after the two seconds that a connection may linger; a busy machine may be as slow.
        CHECK(eventually([&] {
            const auto start = clock::now();
            event_client client(server.port(), "/route");
            CHECK(client.wait_for_close() == ending::fin);
            ++clients;
            CHECK(eventually([&] { return returned == clients; }));
            return clock::now() - start < 1500ms;
        }));
    }

    TEST_CASE("lagged and stalled") {
        register_of_streams lag_seen, stall_seen;
        sse::options lags = watchful(), stalls = watchful();
        lags.history.messages = 16;
        lag_seen.attach(lags);
        stalls.timeouts.stall = 100ms;
        stall_seen.attach(stalls);
        running_server lagging(lags), stalling(stalls);
        event_client a(lagging.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        event_client b(stalling.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        for (int n = 0; n < 300; ++n) {
            lagging.publish("/t", {.data = large()});
            stalling.publish("/t", {.data = large()});
        }
        lag_seen.check({lagged});
        stall_seen.check({stalled});
        CHECK(lagging.counters().lagged == 1);
        CHECK(stalling.counters().lagged == 1);
    }

    TEST_CASE("revoked, drained, cut and stopped") {
        register_of_streams seen;
        sse::options o = watchful();
        seen.attach(o);
        running_server server(o);
        event_client reads(server.port(), "/subscribe/t");
        event_client stuck(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        event_client revoked_one(server.port(), "/subscribe/revoked");
        server.revoke_if([](const sse::stream_info& one) { return one.topics[0] == "/revoked"; });
        CHECK_FALSE(revoked_one.next_or_end());
        for (int n = 0; n < 300; ++n) {
            server.publish("/t", {.data = large()});
            reads.next();
        }
        const auto result = server.drain({.window = 300ms});
        CHECK(result.closed == 1);
        CHECK(result.cut == 1);
        seen.check({sse::end_reason::revoked, drained, cut});

        register_of_streams at_stop;
        sse::options plain = with_threads(2);
        at_stop.attach(plain);
        running_server second(plain);
        event_client a(second.port()), b(second.port());
        second.stop();
        second.join();
        at_stop.check({stopped, stopped});
    }

    TEST_CASE("failed: a handler, a filter, post_to, on_gap, on_connect that throw") {
        register_of_streams seen;
        error_count errors;
        sse::options o = with_threads(1);
        seen.attach(o);
        errors.attach(o);
        const auto count = o.hooks.on_connect;
        o.hooks.on_connect = [count](sse::stream& s) {
            count(s);
            if (s.request().query_value("refuse")) throw std::runtime_error("on_connect");
        };
        o.hooks.on_gap = [](sse::stream&, const sse::gap&) -> handler_result {
            throw std::runtime_error("on_gap");
            co_return;
        };
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/handler", [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "hello"});
                throw std::runtime_error("handler");
            });
            s.route("GET", "/filter", [](sse::stream& client) -> handler_result {
                client.subscribe("/t", {.filter = [](const sse::published&) -> bool {
                                     throw std::runtime_error("filter");
                                 }});
                co_return;
            });
        });
        event_client handler(server.port(), "/handler");
        event_client filter(server.port(), "/filter");
        event_client by_run_on(server.port(), "/subscribe/post_to");
        event_client gap(server.port(), "/subscribe/gap", {{"Last-Event-ID", "garbage"}});
        event_client connect(server.port(), "/subscribe/connect?refuse=1");
        server.publish("/t", {.data = "x"});
        for (const auto& one : server.streams()) {
            if (one.topics == std::vector<std::string>{"/post_to"}) {
                server.post_to(one.id, [](sse::stream&) { throw std::runtime_error("post_to"); });
            }
        }
        for (event_client* client : {&handler, &filter, &by_run_on, &gap, &connect}) {
            client->wait_for_close();
            client->close();
        }
        seen.check({failed, failed, failed, failed, failed});
        CHECK(errors.count == 5);
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("HEAD, plain responses and refusals are not streams") {
        register_of_streams seen;
        sse::options o = with_threads(1);
        seen.attach(o);
        running_server server(o);
        CHECK(http_request(server.port(), "HEAD", "/subscribe/t").status == 200);
        CHECK(http_get(server.port(), "/health").status == 200);
        CHECK(http_get(server.port(), "/subscribe/a//b").status == 400);
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        seen.check({});
    }

    TEST_CASE("many streams that come and go are told of once each") {
        register_of_streams seen;
        sse::options o = with_threads(2);
        seen.attach(o);
        {
            running_server server(o);
            std::atomic<bool> go_on{true};
            std::thread publisher([&] {
                while (go_on) {
                    server.broadcast({.data = "x"});
                    std::this_thread::yield();
                }
            });
            for (int n = 0; n < 100; ++n) {
                event_client client(server.port());
                if (n % 3 == 0) client.next();
                if (n % 2 == 0) client.reset();
            }
            go_on = false;
            publisher.join();
            CHECK(eventually([&] { return server.counters().streams == 0; }));
        }
        CHECK(seen.connected.size() == 100);
        CHECK(seen.ends() == 100);
        for (const auto& [id, reasons] : seen.ended) CHECK(reasons.size() == 1);
    }

    TEST_CASE("what a connection was told before does not end its later requests") {
        running_server server(watchful(), [](sse::server& s) {
            s.route("GET", "/short", [](sse::stream& client) -> handler_result {
                client.end_after(20ms);
                co_await client.respond(200, "text/plain", "ok\n");
            });
        });
        connection peer(server.port());
        CHECK(peer.request("GET", "/short").status == 200);
        // The time of the first request passes while the connection is idle.
        const deadline passed(60ms);
        while (!passed.passed()) CHECK(http_get(server.port(), "/health").status == 200);
        peer.send_request("GET", "/subscribe/t");
        CHECK(peer.read_head().status == 200);
        server.publish("/t", {.data = "x"});
        CHECK(peer.read_through("data: x\n\n").ends_with("data: x\n\n"));
    }
}

TEST_SUITE("handlers of clients that vanish") {
    /// A handler waits for something that never comes; its client leaves; how many have ended.
    void check_cancelled(const std::function<handler_result(sse::stream&)>& wait,
                         const std::string& method = "GET") {
        std::atomic<int> begun{0}, ended{0};
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        running_server server(o, [&](sse::server& s) {
            s.route(method, "/route", [&](sse::stream& client) -> handler_result {
                const count_end guard{ended};
                ++begun;
                co_await wait(client);
            });
        });
        connection fin(server.port()), rst(server.port());
        const std::string head =
            method + " /route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc";
        for (connection* peer : {&fin, &rst}) {
            if (method == "GET") {
                peer->send_request("GET", "/route");
            } else {
                peer->send(head);
            }
        }
        REQUIRE(eventually([&] { return begun == 2; }));
        rst.reset();
        CHECK(eventually([&] { return ended == 1; }));
        fin.close();
        CHECK(eventually([&] { return ended == 2; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(errors.count == 0);
    }

    TEST_CASE("one that waits for a timer within its stream") {
        check_cancelled([](sse::stream& client) -> handler_result {
            co_await client.send({.data = "hello"});
            co_await wait_an_hour(client);
        });
    }

    TEST_CASE("one that waits with a held subscription") {
        check_cancelled([](sse::stream& client) -> handler_result {
            client.subscribe("/t", {.held = true});
            co_await wait_an_hour(client);
        });
    }

    TEST_CASE("one that waits for a body that does not come") {
        check_cancelled(
            [](sse::stream& client) -> handler_result {
                static_cast<void>(co_await client.body());
            },
            "POST");
    }

    TEST_CASE("one that waits for another coroutine's work") {
        check_cancelled([](sse::stream& client) -> handler_result {
            co_await client.send({.data = "hello"});
            asio::steady_timer timer(client.get_executor(), 1h);
            co_await asio::co_spawn(
                client.get_executor(),
                [](asio::steady_timer& t) -> handler_result {
                    co_await t.async_wait(asio::use_awaitable);
                }(timer),
                asio::use_awaitable);
        });
    }

    TEST_CASE("one that waits for room to publish") {
        std::atomic<int> begun{0}, ended{0};
        sse::server* self = nullptr;
        sse::options o = with_threads(1);
        o.history.messages = 16;
        o.history.lag = sse::lag_policy::hold_back;
        o.timeouts.stall = 1h;
        o.timeouts.shutdown = 1s;
        running_server server(o, [&](sse::server& s) {
            self = &s;
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                const count_end guard{ended};
                co_await client.send({.data = "hello"});
                ++begun;
                co_await self->async_publish("/t", {.data = "x"});
            });
        });
        event_client stuck(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        for (int n = 0; n < 1000 && !server.try_publish("/t", {.data = large()}); ++n) {
            http_get(server.port(), "/health");
        }
        for (int n = 0; n < 50; ++n) http_get(server.port(), "/health");
        REQUIRE(server.try_publish("/t", {.data = "x"}) == sse::errc::no_room);
        {
            event_client client(server.port(), "/route");
            client.next();
            REQUIRE(eventually([&] { return begun == 1; }));
        }
        CHECK(eventually([&] { return server.counters().streams == 1; }));
        CHECK(eventually([&] { return ended == 1; }, 3s));
        CHECK(server.try_publish("/t", {.data = "x"}) == sse::errc::no_room); // it still is so
    }
}

} // namespace presence_test
