// embed.cpp - covers >>lifecycle: a server on the program's own io_context, and connections that
// another server read from first.
#include "support/bytes.hpp"
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <asio/co_spawn.hpp>
#include <asio/redirect_error.hpp>
#include <asio/use_future.hpp>

#include <doctest/doctest.h>

#include <future>
#include <thread>

namespace embed_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

using tcp = asio::ip::tcp;

/// Routes that the tests use.
void add_short_routes(sse::server& s) {
    s.route("POST", "/plain", [](sse::stream& client) -> handler_result {
        const std::string body = co_await client.body();
        const std::string size = std::to_string(body.size());
        co_await client.respond(200, "text/plain", size);
    });
    s.route("GET", "/count", [](sse::stream& client) -> handler_result {
        for (int n = 0; n < 3; ++n) co_await client.send({.data = std::to_string(n)});
    });
    s.route("GET", "/live", [](sse::stream& client) -> handler_result {
        client.subscribe("/news");
        co_await client.send({.data = "welcome"});
    });
}

void add_routes(sse::server& s) {
    add_short_routes(s);
    s.route("GET", "/wait", [](sse::stream& client) -> handler_result {
        client.begin();
        co_await client.sleep_for(1h);
    });
}

/// A context of the program's own with a server on it, run by a thread.
struct embedded {
    asio::io_context io;
    sse::server server;
    std::thread thread;

    explicit embedded(const sse::options& o = {},
                      const std::function<void(sse::server&)>& prepare = add_routes)
        : server(io, with_tls_by_default(o)) {
        prepare(server);
        server.start("127.0.0.1:0");
        thread = std::thread([this] { io.run(); });
    }
    ~embedded() {
        server.stop();
        thread.join();
    }
    std::uint16_t port() const { return server.port(); }
};

/// Another server: accepts, and leaves it to the test what it reads.
struct front_door {
    asio::io_context io;
    tcp::acceptor acceptor{io, tcp::endpoint(asio::ip::address_v4::loopback(), 0)};

    std::uint16_t port() const { return acceptor.local_endpoint().port(); }
    tcp::socket accept() { return acceptor.accept(); }
    static std::string read(tcp::socket& socket, std::size_t size) {
        std::string bytes(size, '\0');
        std::size_t at = 0;
        while (at < size) at += socket.read_some(asio::buffer(bytes.data() + at, size - at));
        return bytes;
    }
};

/// A server without a listener of its own.
struct back_room : sse::server {
    explicit back_room(sse::options o = with_threads(1),
                       const std::function<void(sse::server&)>& prepare = add_routes)
        : sse::server(std::move(o)) {
        prepare(*this);
        start();
    }
};

/// Reads so much from a socket, and hands both over.
void hand_over(sse::server& to, tcp::socket socket, std::size_t size) {
    std::string received = front_door::read(socket, size);
    to.adopt(std::move(socket), std::move(received));
}

std::string get(const std::string& target, const std::string& headers = "") {
    return "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n";
}

} // namespace

TEST_SUITE("a context of the program's own") {
    TEST_CASE("plain responses, streams and subscriptions are served there") {
        embedded e;
        connection peer(e.port());
        CHECK(peer.request("POST", "/plain", {}, "abc").body == "3");
        peer.send_request("GET", "/count");
        CHECK(peer.read_head().header("Transfer-Encoding") == "chunked");
        CHECK(decode_event_stream(peer.read_through("0\r\n\r\n")).size() >= 3);
        event_client client(e.port(), "/live");
        CHECK(client.next().data == "welcome");
        e.server.publish("/news", {.data = "from this thread"});
        CHECK(client.next().data == "from this thread");
        asio::post(e.io, [&] { e.server.publish("/news", {.data = "from its own"}); });
        CHECK(client.next().data == "from its own");
        CHECK(e.server.counters().streams == 1);
        CHECK(e.server.streams().size() == 1);
    }

    TEST_CASE("handlers run on the context, and may use what is the program's there unlocked") {
        std::atomic<bool> same{false};
        std::thread::id where;
        asio::io_context* context = nullptr;
        int counter = 0; // of the context's thread
        {
            embedded e({}, [&](sse::server& s) {
                s.route("GET", "/where", [&](sse::stream& client) -> handler_result {
                    same = std::this_thread::get_id() == where &&
                           &client.get_executor().context() == context;
                    const std::string text = std::to_string(++counter);
                    co_await client.respond(200, "text/plain", text);
                });
            });
            std::promise<void> known;
            asio::post(e.io, [&] {
                where = std::this_thread::get_id();
                context = &e.io;
                ++counter;
                known.set_value();
            });
            known.get_future().wait();
            CHECK(http_get(e.port(), "/where").body == "2");
        }
        CHECK(same);
    }

    TEST_CASE("run returns once stop was called and nothing else is left") {
        asio::io_context io;
        sse::server server(io, with_tls_by_default({}));
        add_routes(server);
        server.start("127.0.0.1:0");
        std::atomic<bool> returned{false};
        std::thread thread([&] {
            io.run();
            returned = true;
        });
        event_client client(server.port(), "/live"), waiting(server.port(), "/wait");
        CHECK(client.next().data == "welcome");
        asio::steady_timer other(io, 1h);
        asio::post(io, [&] { other.async_wait([](asio::error_code) {}); });
        server.stop();
        server.join(); // has no thread to wait for
        CHECK(client.wait_for_close() == ending::fin);
        CHECK(waiting.wait_for_close() == ending::fin);
        CHECK_FALSE(returned); // what is the program's goes on
        asio::post(io, [&] { other.cancel(); });
        thread.join();
        CHECK(returned);
    }

    TEST_CASE("stop may come from the context itself, before it runs, and twice") {
        {
            asio::io_context io;
            sse::server server(io, with_tls_by_default({}));
            server.start("127.0.0.1:0");
            asio::post(io, [&] { server.stop(); });
            io.run();
        }
        {
            asio::io_context io;
            sse::server server(io, with_tls_by_default({}));
            server.start("127.0.0.1:0");
            server.stop();
            server.stop();
            server.join();
            io.run();
        }
        {
            asio::io_context io;
            sse::server server(io, with_tls_by_default({}));
            add_routes(server);
            server.route("GET", "/stop", [&](sse::stream& client) -> handler_result {
                co_await client.respond(200, "text/plain", "stopping");
                server.stop();
            });
            server.start("127.0.0.1:0");
            std::thread thread([&] { io.run(); });
            CHECK(http_get(server.port(), "/stop").body == "stopping");
            thread.join();
        }
    }

    TEST_CASE("what the program does on the context fails to the program, handlers do not") {
        error_count errors;
        sse::options o;
        errors.attach(o);
        asio::io_context io;
        sse::server server(io, with_tls_by_default(o));
        add_routes(server);
        server.route("GET", "/throws", [](sse::stream&) -> handler_result {
            throw std::runtime_error("a handler's");
            co_return;
        });
        server.start("127.0.0.1:0");
        std::atomic<int> caught{0};
        std::thread thread([&] {
            for (;;) {
                try {
                    io.run();
                    return;
                } catch (const std::logic_error&) { ++caught; }
            }
        });
        CHECK(http_get(server.port(), "/throws").status == 500);
        asio::post(io, [] { throw std::logic_error("the program's"); });
        CHECK(eventually([&] { return caught == 1; }));
        CHECK(http_get(server.port(), "/health").status == 200);
        CHECK(errors.count == 1);
        server.stop();
        thread.join();
    }

    // One thread connects and runs the server: a handshake of TLS would need both at once.
    TEST_CASE("a context that is polled, paused and restarted serves in between" *
              doctest::skip(tls_by_default)) {
        asio::io_context io;
        sse::server server(io);
        add_routes(server);
        server.start("127.0.0.1:0");
        connection peer(server.port()); // waits in the queue
        peer.send_request("GET", "/health");
        const auto poll_until = [&](auto&& condition) {
            return eventually([&] {
                io.poll();
                return condition();
            });
        };
        CHECK(poll_until([&] { return server.counters().accepted == 1; }));
        CHECK(poll_until([&] {
            try {
                return peer.receive_some(0s);
            } catch (const timed_out&) { return false; }
        }));
        CHECK(peer.read_response().status == 200);
        io.stop();
        connection late(server.port());
        late.send_request("GET", "/health");
        io.poll();
        CHECK_THROWS_AS(late.receive_some(20ms), timed_out);
        io.restart();
        CHECK(poll_until([&] {
            try {
                return late.receive_some(0s);
            } catch (const timed_out&) { return false; }
        }));
        server.stop();
        io.run();
    }

    TEST_CASE("two contexts share the clients, and all get what is published, in one order") {
        asio::io_context a, b;
        sse::options o;
        o.threads = 7; // says nothing here
        sse::server server(std::vector<asio::io_context*>{&a, &b}, with_tls_by_default(o));
        std::mutex mutex;
        std::vector<std::thread::id> used;
        add_routes(server);
        server.route("GET", "/both", [&](sse::stream& client) -> handler_result {
            {
                const std::lock_guard lock(mutex);
                used.push_back(std::this_thread::get_id());
            }
            client.subscribe("/news");
            co_return;
        });
        server.start("127.0.0.1:0");
        std::thread on_a([&] { a.run(); }), on_b([&] { b.run(); });
        std::vector<event_client> clients;
        for (int n = 0; n < 6; ++n) clients.emplace_back(server.port(), "/both");
        std::sort(used.begin(), used.end());
        CHECK(std::unique(used.begin(), used.end()) - used.begin() == 2);
        for (asio::io_context* const where : {&a, &b}) {
            asio::post(*where, [&] {
                for (int n = 0; n < 300; ++n) server.publish("/news", {.data = std::to_string(n)});
            });
        }
        std::vector<std::string> orders;
        for (event_client& client : clients) {
            std::string& order = orders.emplace_back();
            for (int n = 0; n < 600; ++n) order += client.next().data + ",";
        }
        for (const std::string& order : orders) CHECK((order == orders[0]));
        server.stop();
        on_a.join();
        on_b.join();
    }

    TEST_CASE("two servers share a context, and one ends without the other") {
        asio::io_context io;
        sse::server first(io, with_tls_by_default({}));
        add_routes(first);
        first.start("127.0.0.1:0");
        std::optional<sse::server> second;
        second.emplace(io, with_tls_by_default({}));
        add_routes(*second);
        second->start("127.0.0.1:0");
        std::thread thread([&] { io.run(); });
        event_client of_first(first.port(), "/live"), of_second(second->port(), "/live");
        CHECK(of_first.next().data == "welcome");
        CHECK(of_second.next().data == "welcome");
        asio::post(io, [&] {
            first.publish("/news", {.data = "1"});
            second->publish("/news", {.data = "2"});
        });
        CHECK(of_first.next().data == "1");
        CHECK(of_second.next().data == "2");
        second.reset();
        CHECK(of_second.wait_for_close() == ending::fin);
        first.publish("/news", {.data = "goes on"});
        CHECK(of_first.next().data == "goes on");
        first.stop();
        thread.join();
    }

    TEST_CASE("drain is awaited on the context itself") {
        embedded e;
        event_client client(e.port(), "/live"), waiting(e.port(), "/wait");
        CHECK(client.next().data == "welcome");
        sse::drain_options how;
        how.window = 100ms;
        how.farewell = sse::message{.data = "bye"};
        auto done = asio::co_spawn(e.io, e.server.async_drain(how), asio::use_future);
        CHECK(client.next().data == "bye");
        REQUIRE(done.wait_for(patience) == std::future_status::ready);
        const auto result = done.get();
        CHECK(result.closed == 1);
        CHECK(result.cut == 1); // the handler that waits for ever
    }

    TEST_CASE("calls that would block the context's own thread are refused there") {
        embedded e;
        std::promise<int> refused;
        asio::post(e.io, [&] {
            int count = 0;
            try {
                static_cast<void>(e.server.streams());
            } catch (const std::system_error& error) {
                count += error.code() == std::errc::resource_deadlock_would_occur;
            }
            try {
                e.server.drain(sse::drain_options{});
            } catch (const std::system_error& error) {
                count += error.code() == std::errc::resource_deadlock_would_occur;
            }
            refused.set_value(count);
        });
        CHECK(refused.get_future().get() == 2);
        CHECK(http_get(e.port(), "/health").status == 200);
        auto listed = asio::co_spawn(e.io, e.server.async_streams(), asio::use_future);
        REQUIRE(listed.wait_for(patience) == std::future_status::ready);
        CHECK(listed.get().empty());
    }

    TEST_CASE("a ring that is full is emptied by who publishes on the context's thread") {
        sse::options o;
        o.ring_capacity = 16;
        embedded e(o);
        event_client client(e.port(), "/live");
        CHECK(client.next().data == "welcome");
        asio::post(e.io, [&] {
            for (int n = 0; n < 500; ++n) e.server.publish("/news", {.data = std::to_string(n)});
        });
        for (int n = 0; n < 500; ++n) REQUIRE(client.next().data == std::to_string(n));
    }

    TEST_CASE("contexts that cannot work are refused") {
        asio::io_context io;
        using contexts = std::vector<asio::io_context*>;
        CHECK_THROWS_AS(sse::server(contexts{}), std::invalid_argument);
        CHECK_THROWS_AS(sse::server(contexts{nullptr}), std::invalid_argument);
        CHECK_THROWS_AS(sse::server(contexts{&io, &io}), std::invalid_argument);
        sse::server server(io);
        server.start("127.0.0.1:0");
        CHECK_THROWS_AS(server.start("127.0.0.1:0"), std::logic_error);
        CHECK_THROWS_AS(server.start(), std::logic_error);
    }

    // As above: it connects before anybody runs the server.
    TEST_CASE("a server may be destroyed at any time before its context, run or not" *
              doctest::skip(tls_by_default)) {
        // How far it came, and what is done with the context behind it.
        for (const bool started : {false, true}) {
            for (const bool ran : {false, true}) {
                for (const bool post_to : {false, true}) {
                    CAPTURE(started);
                    CAPTURE(ran);
                    CAPTURE(post_to);
                    std::atomic<int> ended{0};
                    const std::size_t descriptors = open_descriptors();
                    {
                        auto io = std::make_unique<asio::io_context>();
                        auto server = std::make_unique<sse::server>(*io);
                        server->route("GET", "/wait", [&](sse::stream& client) -> handler_result {
                            const count_end guard{ended};
                            client.begin();
                            co_await client.sleep_for(1h);
                        });
                        server->route("GET", "/told", [&](sse::stream& client) -> handler_result {
                            const count_end guard{ended};
                            client.begin();
                            co_await client.closed();
                        });
                        add_short_routes(*server);
                        std::vector<connection> peers;
                        if (started) {
                            server->start("127.0.0.1:0");
                            for (const char* const target :
                                 {"/live", "/wait", "/told", "/none", "/hea"}) {
                                peers.emplace_back(server->port());
                                if (std::string_view(target) != "/hea")
                                    peers.back().send_request("GET", target);
                                else
                                    peers.back().send("GET /hea");
                            }
                        }
                        if (ran) {
                            REQUIRE(eventually([&] {
                                io->poll();
                                if (!started) return true;
                                io->restart();
                                return server->counters().streams == 3;
                            }));
                        }
                        io->restart();
                        server.reset();
                        if (post_to) io->run();
                        if (post_to && started && ran) CHECK(ended == 2);
                        io.reset();
                        if (started && ran) CHECK(ended == 2);
                        for (connection& peer : peers) CHECK_NOTHROW(peer.read_to_end());
                    }
                    CHECK(open_descriptors() == descriptors);
                }
            }
        }
    }

    TEST_CASE("a server may be destroyed on the context's own thread, while it serves") {
        std::atomic<int> ended{0};
        asio::io_context io;
        std::optional<sse::server> server(std::in_place, io, with_tls_by_default({}));
        server->route("GET", "/wait", [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            client.begin();
            co_await client.sleep_for(1h);
        });
        server->route("GET", "/outlive", [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            client.keep_running();
            client.begin();
            co_await client.sleep_for(1h);
        });
        add_short_routes(*server);
        server->start("127.0.0.1:0");
        const std::uint16_t port = server->port();
        std::thread thread([&] { io.run(); });
        event_client live(port, "/live"), waiting(port, "/wait"), working(port, "/outlive");
        CHECK(live.next().data == "welcome");
        asio::post(io, [&] { server.reset(); });
        thread.join(); // run returns when the handlers have ended
        CHECK(ended == 2);
        CHECK(live.wait_for_close() == ending::fin);
        CHECK(working.wait_for_close() == ending::fin);
    }

    TEST_CASE("a handler that outlives its client and its server ends before run returns") {
        std::atomic<int> ended{0};
        asio::io_context io;
        std::optional<sse::server> server(std::in_place, io, with_tls_by_default({}));
        server->route("GET", "/outlive", [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            client.keep_running();
            client.begin();
            co_await client.closed();
            co_await client.sleep_for(1h);
        });
        server->start("127.0.0.1:0");
        std::thread thread([&] { io.run(); });
        {
            connection peer(server->port());
            peer.send_request("GET", "/outlive");
            CHECK(peer.read_head().status == 200);
        }
        CHECK(eventually([&] { return server->counters().connections == 0; }));
        CHECK(ended == 0);
        server.reset();
        thread.join();
        CHECK(ended == 1);
    }

    TEST_CASE("publishing while nobody runs the context reports that there is no room") {
        asio::io_context io;
        sse::options o;
        o.ring_capacity = 16;
        o.timeouts.publish = 20ms;
        sse::server server(io, with_tls_by_default(o));
        add_routes(server);
        server.start("127.0.0.1:0");
        int published = 0;
        std::error_code failed;
        try {
            for (; published < 100; ++published) server.publish("/news", {.data = "x"});
        } catch (const std::system_error& e) { failed = e.code(); }
        CHECK(published == 16);
        CHECK(failed == sse::errc::no_room);
        io.poll(); // from now on there is room again
        CHECK_NOTHROW(server.publish("/news", {.data = "x"}));
        server.stop();
        io.restart();
        io.run();
    }

    TEST_CASE("jobs are produced and looked at on one thread") {
        sse::jobs jobs;
        embedded e({}, [&](sse::server& s) {
            s.route("GET", "/jobs/{id}", [&](sse::stream& client) {
                return jobs.serve(client, client.request().path_value("id"));
            });
        });
        sse::job job = jobs.start("a");
        const auto produce = [](sse::job& j) -> asio::awaitable<void> {
            asio::steady_timer timer(co_await asio::this_coro::executor);
            for (int n = 0; n < 20; ++n) {
                j.send({.data = std::to_string(n)});
                timer.expires_after(500us);
                co_await timer.async_wait(asio::use_awaitable);
            }
            j.finish();
        };
        auto done = asio::co_spawn(e.io, produce(job), asio::use_future);
        event_client viewer(e.port(), "/jobs/a");
        for (int n = 0; n < 20; ++n) CHECK(viewer.next().data == std::to_string(n));
        CHECK(viewer.next().type == "done");
        done.get();
    }

    TEST_CASE("a handler that takes its time after stop is waited for by run") {
        std::atomic<bool> go{false};
        std::atomic<int> ended{0}, begun{0};
        asio::io_context io;
        sse::options o;
        o.timeouts.shutdown = 1ms; // of the server's own threads
        sse::server server(io, with_tls_by_default(o));
        server.route("GET", "/slow", [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            co_await asio::this_coro::throw_if_cancelled(false);
            client.begin();
            ++begun;
            asio::steady_timer timer(client.get_executor());
            while (!go) {
                asio::error_code ignored;
                timer.expires_after(1ms);
                co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
            }
        });
        server.start("127.0.0.1:0");
        std::atomic<bool> returned{false};
        std::thread thread([&] {
            io.run();
            returned = true;
        });
        connection peer(server.port());
        peer.send_request("GET", "/slow");
        REQUIRE(eventually([&] { return begun == 1; }));
        server.stop();
        CHECK(peer.wait_for_close() == ending::fin);
        CHECK_FALSE(returned);
        CHECK(ended == 0);
        go = true;
        thread.join();
        CHECK(ended == 1);
    }
}

// TLS is not spoken over them: see tls.cpp.
TEST_SUITE("adopted connections" * doctest::skip(tls_by_default)) {
    TEST_CASE("a request that another server read is answered, and the connection closed") {
        front_door door;
        back_room room;
        connection peer(door.port());
        tcp::socket socket = door.accept();
        const std::string request = get("/health");
        peer.send(request);
        std::string received = front_door::read(socket, request.size());
        room.adopt(std::move(socket), std::move(received));
        const auto answer = peer.read_response();
        CHECK(answer.status == 200);
        CHECK(answer.header("Connection") == "close");
        CHECK(peer.read_to_end().empty());
        CHECK(peer.ended() == ending::fin);
        CHECK(room.counters().accepted == 1);
        peer.close();
        CHECK(eventually([&] { return room.counters().connections == 0; }));
    }

    TEST_CASE("however much of a request was read already, the rest is read by this server") {
        front_door door;
        back_room room;
        const std::string request = "POST /plain HTTP/1.1\r\nHost: localhost\r\n"
                                    "Content-Length: 11\r\n\r\nhello world";
        for (std::size_t cut = 0; cut <= request.size(); cut += cut < 4 ? 1 : 3) {
            CAPTURE(cut);
            connection peer(door.port());
            tcp::socket socket = door.accept();
            peer.send(std::string_view(request).substr(0, cut));
            std::string received = front_door::read(socket, cut);
            room.adopt(std::move(socket), std::move(received));
            peer.send(std::string_view(request).substr(cut));
            const auto answer = peer.read_response();
            REQUIRE(answer.body == "11");
            CHECK(answer.header("Connection") == "close");
            CHECK(peer.read_to_end().empty());
        }
    }

    TEST_CASE("a large body is taken, partly from what was read") {
        front_door door;
        sse::options o = with_threads(1);
        o.limits.head_bytes = 1024;
        back_room room(o);
        const std::string body(900'000, 'x');
        const std::string head = "POST /plain HTTP/1.1\r\nHost: localhost\r\n"
                                 "Content-Length: 900000\r\n\r\n";
        for (const std::size_t read : {0u, 1u, 1'000u, 5'000u, 100'000u, 900'000u}) {
            CAPTURE(read);
            connection peer(door.port());
            tcp::socket socket = door.accept();
            peer.send(head);
            std::string received = front_door::read(socket, head.size());
            std::thread writer([&] { peer.send(body); });
            received += front_door::read(socket, read);
            room.adopt(std::move(socket), std::move(received));
            writer.join();
            CHECK(peer.read_response().body == "900000");
        }
    }

    TEST_CASE("what follows the request is not answered, but takes nothing from its response") {
        front_door door;
        back_room room;
        for (const char* const target : {"/health", "/count", "/none"}) {
            CAPTURE(target);
            connection peer(door.port());
            tcp::socket socket = door.accept();
            const std::string sent = get(target) + get("/health") + get("/health");
            peer.send(sent);
            std::string received = front_door::read(socket, get(target).size() + 20);
            room.adopt(std::move(socket), std::move(received));
            const std::string all = peer.read_to_end();
            CHECK(peer.ended() == ending::fin);
            const std::size_t at = all.find("\r\n\r\n") + 4;
            CHECK(parse_response_head(std::string_view(all).substr(0, at)).header("Connection") ==
                  "close");
            CHECK(all.find("HTTP/1.1", 1) == std::string::npos);
            if (std::string_view(target) == "/count")
                CHECK(decode_event_stream(std::string_view(all).substr(at)).size() == 3);
        }
    }

    TEST_CASE("a stream of an adopted connection is like any other") {
        front_door door;
        back_room room;
        connection peer(door.port());
        tcp::socket socket = door.accept();
        const std::string request = get("/live", "Last-Event-ID: unknown\r\n");
        peer.send(request);
        hand_over(room, std::move(socket), request.size());
        const auto head = peer.read_head();
        CHECK(head.header("Content-Type") == "text/event-stream");
        CHECK(head.header("Connection") == "close");
        CHECK_FALSE(head.header("Transfer-Encoding"));
        peer.read_through("welcome\n\n");
        room.publish("/news", {.data = "live"});
        peer.read_through("live\n\n");
        CHECK(room.streams().at(0).client.to_string() == "127.0.0.1");
        peer.reset();
        CHECK(eventually([&] { return room.counters().streams == 0; }));
    }

    TEST_CASE("a socket is taken by its handle, as of another library") {
        front_door door;
        back_room room;
        connection peer(door.port());
        tcp::socket socket = door.accept();
        const std::string request = get("/health");
        peer.send(request);
        std::string received = front_door::read(socket, request.size());
        const auto handle = socket.release();
        room.adopt(handle, std::move(received));
        CHECK(peer.read_response().status == 200);
    }

    TEST_CASE("an adopted connection of IPv6 is served too") {
        asio::io_context io;
        std::optional<tcp::acceptor> acceptor;
        try {
            acceptor.emplace(io, tcp::endpoint(asio::ip::address_v6::loopback(), 0));
        } catch (const std::system_error&) { return; } // this machine has none
        back_room room;
        connection peer(acceptor->local_endpoint().port(), {.host = "::1"});
        tcp::socket socket = acceptor->accept();
        const std::string request = get("/live");
        peer.send(request);
        hand_over(room, std::move(socket), request.size());
        CHECK(peer.read_head().status == 200);
        peer.read_through("welcome\n\n");
        CHECK(room.streams().at(0).client.to_string() == "::1");
    }

    TEST_CASE("what is not a request is refused as ever, also when it comes late or never") {
        front_door door;
        sse::options o = with_threads(1);
        back_room patient(o);
        o.timeouts.header = 80ms;
        back_room hasty(o);
        const auto status_of = [&](back_room& room, const std::string& read,
                                   const std::string& later) {
            connection peer(door.port());
            tcp::socket socket = door.accept();
            peer.send(read);
            hand_over(room, std::move(socket), read.size());
            if (!later.empty()) peer.send(later);
            const std::string all = peer.read_to_end();
            if (all.empty()) return 0;
            return parse_response_head(all.substr(0, all.find("\r\n\r\n") + 4)).status;
        };
        CHECK(status_of(patient, "GET /health HTTP/1.1\r\nHost : x\r\n\r\n", "") == 400);
        CHECK(status_of(patient, "nonsense", "\r\n\r\n") == 400);
        CHECK(status_of(hasty, "GET /health HT", "") == 408);
        CHECK(status_of(patient, get("/none"), "") == 404);
        CHECK(status_of(patient, get("/health", "X: " + std::string(20'000, 'x') + "\r\n"), "") ==
              431);
        static_cast<void>(status_of(hasty, "", "")); // nothing at all: closed in time
    }

    TEST_CASE("adopted connections are counted for the limits") {
        front_door door;
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        back_room room(o);
        const auto give = [&](connection& peer, const std::string& request) {
            tcp::socket socket = door.accept();
            peer.send(request);
            hand_over(room, std::move(socket), request.size());
        };
        connection first(door.port());
        give(first, get("/live"));
        CHECK(first.read_head().status == 200);
        connection second(door.port());
        give(second, get("/live"));
        CHECK(second.read_response().status == 503);
        connection plain(door.port());
        give(plain, get("/health"));
        CHECK(plain.read_response().status == 200);
        first.reset();
        CHECK(eventually([&] { return room.counters().connections <= 1; }));
        CHECK(eventually([&] {
            connection third(door.port());
            give(third, get("/live"));
            return third.read_head().status == 200;
        }));
    }

    TEST_CASE("a server that listens adopts beside that, on any thread") {
        front_door door;
        running_server server(with_threads(2), add_routes);
        std::atomic<int> right{0};
        std::mutex accepting;
        std::vector<std::thread> threads;
        for (int t = 0; t < 4; ++t) {
            threads.emplace_back([&] {
                for (int n = 0; n < 25; ++n) {
                    const std::string request = get("/health");
                    std::optional<connection> peer;
                    {
                        const std::lock_guard lock(accepting);
                        peer.emplace(door.port());
                        tcp::socket socket = door.accept();
                        peer->send(request);
                        hand_over(server, std::move(socket), request.size());
                    }
                    right += peer->read_response().status == 200;
                    right += http_get(server.port(), "/health").status == 200;
                }
            });
        }
        for (std::thread& t : threads) t.join();
        CHECK(right == 200);
    }

    TEST_CASE("a server on the program's context adopts what an acceptor there brings") {
        embedded e;
        tcp::acceptor acceptor(e.io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
        const auto front = [](tcp::acceptor& from, sse::server& to) -> asio::awaitable<void> {
            asio::error_code failed; // when the acceptor is closed
            while (from.is_open()) {
                tcp::socket socket =
                    co_await from.async_accept(asio::redirect_error(asio::use_awaitable, failed));
                if (failed) break;
                std::string received(64, '\0');
                const std::size_t n =
                    co_await socket.async_read_some(asio::buffer(received), asio::use_awaitable);
                received.resize(n);
                to.adopt(std::move(socket), std::move(received));
            }
        };
        auto ended = asio::co_spawn(e.io, front(acceptor, e.server), asio::use_future);
        const std::uint16_t port = acceptor.local_endpoint().port();
        for (int n = 0; n < 5; ++n) CHECK(http_get(port, "/health").status == 200);
        event_client client(port, "/live");
        CHECK(client.next().data == "welcome");
        e.server.publish("/news", {.data = "x"});
        CHECK(client.next().data == "x");
        asio::post(e.io, [&] { acceptor.close(); });
        CHECK_NOTHROW(ended.get());
    }

    TEST_CASE("adopt before the start or after the end is refused, and leaks nothing") {
        front_door door;
        const std::size_t descriptors = open_descriptors();
        {
            sse::server idle(with_threads(1));
            connection peer(door.port());
            tcp::socket socket = door.accept();
            CHECK_THROWS_AS(idle.adopt(std::move(socket), "GET"), std::logic_error);
        }
        for (const bool by_handle : {false, true}) {
            back_room room;
            room.stop();
            connection peer(door.port());
            tcp::socket socket = door.accept();
            const auto refused = [](const std::function<void()>& call) {
                try {
                    call();
                } catch (const std::system_error& e) { return e.code() == sse::errc::stopped; }
                return false;
            };
            if (by_handle) {
                const auto handle = socket.release();
                CHECK(refused([&] { room.adopt(handle, get("/health")); }));
                descriptor still_ours(handle);
                CHECK(::fcntl(handle, F_GETFD) >= 0);
            } else {
                CHECK(refused([&] { room.adopt(std::move(socket), get("/health")); }));
            }
        }
        CHECK(eventually([&] { return open_descriptors() == descriptors; }));
        back_room room;
        CHECK_THROWS_AS(room.adopt(-1, get("/health")), std::system_error);
        CHECK(room.counters().connections == 0);
        CHECK_THROWS_AS(static_cast<void>(room.port()), std::logic_error);
    }

    TEST_CASE("a socket that there is no room for is logged on a thread of the server") {
        front_door door;
        sse::options o = with_threads(1);
        o.limits.connections = 1;
        const std::thread::id caller = std::this_thread::get_id();
        std::atomic<int> here{0}, there{0};
        sse::server* asked = nullptr;
        o.hooks.log = [&](const sse::log_entry& e) {
            if (e.what != "refused") return;
            if (std::this_thread::get_id() == caller) {
                ++here;
            } else if (asked->addresses().empty()) { // needs what adopt() holds
                ++there;
            }
        };
        back_room room(o);
        asked = &room;
        std::vector<std::unique_ptr<connection>> peers;
        while (room.counters().refused == 0 && peers.size() < 300) {
            peers.push_back(std::make_unique<connection>(door.port()));
            room.adopt(door.accept(), "GET");
        }
        CHECK(room.counters().refused == 1);
        CHECK(eventually([&] { return here + there == 1; }));
        CHECK(here == 0);
    }

    TEST_CASE("stop and adopt at once lose no socket") {
        front_door door;
        const std::size_t descriptors = open_descriptors();
        for (int round = 0; round < 30; ++round) {
            back_room room(with_threads(2));
            std::vector<connection> peers;
            std::thread stopper([&] {
                spin_for(round * 10us);
                room.stop();
            });
            for (int n = 0; n < 10; ++n) {
                peers.emplace_back(door.port());
                tcp::socket socket = door.accept();
                try {
                    room.adopt(std::move(socket), get("/live"));
                } catch (const std::system_error& e) { CHECK(e.code() == sse::errc::stopped); }
            }
            stopper.join();
            room.join();
            for (connection& peer : peers) CHECK_NOTHROW(peer.read_to_end());
        }
        CHECK(eventually([&] { return open_descriptors() == descriptors; }));
    }
}

} // namespace embed_test
