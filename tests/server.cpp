// server.cpp - covers >>error, >>options, >>lifecycle, >>server, >>facade: the server from outside:
// start and stop, endpoints, publishing.
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <asio/detached.hpp>
#include <doctest/doctest.h>

#include <cmath>
#include <csignal>
#include <ctime>
#include <memory>
#include <set>
#include <thread>

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

namespace server_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

template <class Change>
std::string refusal_of(Change&& change) {
    sse::options o;
    change(o);
    try {
        const sse::server refused(std::move(o));
    } catch (const std::invalid_argument& e) { return e.what(); }
    return "accepted";
}

void check_code(sse::errc expected, const std::function<void()>& call) {
    try {
        call();
        FAIL_CHECK("nothing was thrown");
    } catch (const std::system_error& e) { CHECK(e.code() == expected); }
}

/// A program that lives until it is destroyed, started as a handler might start one.
class child_program {
public:
    child_program() {
        std::string name = "sleep", time = "600";
        char* arguments[] = {name.data(), time.data(), nullptr};
        REQUIRE(::posix_spawnp(&pid_, "sleep", nullptr, nullptr, arguments, environ) == 0);
    }
    child_program(const child_program&) = delete;
    child_program& operator=(const child_program&) = delete;
    ~child_program() {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

private:
    pid_t pid_ = 0;
};

/// The descriptors that a program started now would get, as "7 socket:[12]".
std::set<std::string> inherited() {
    std::set<std::string> found;
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/fd"), &::closedir);
    if (!folder) return found;
    while (const dirent* const entry = ::readdir(folder.get())) {
        const int fd = std::atoi(entry->d_name);
        const int flags = entry->d_name[0] == '.' ? -1 : ::fcntl(fd, F_GETFD);
        if (flags < 0 || (flags & FD_CLOEXEC) != 0) continue;
        char what[200] = "";
        const auto path = "/proc/self/fd/" + std::to_string(fd);
        if (::readlink(path.c_str(), what, sizeof what - 1) < 0) continue;
        found.insert(std::string(entry->d_name) + " " + what);
    }
    return found;
}

} // namespace

TEST_SUITE("start and stop") {
    TEST_CASE("options that cannot work are refused at construction, by name") {
        CHECK(has(refusal_of([](auto& o) { o.ring_capacity = 1000; }),
                  "ring_capacity must be a power"));
        CHECK(has(refusal_of([](auto& o) { o.ring_capacity = 0; }), "ring_capacity"));
        CHECK(has(refusal_of([](auto& o) { o.ring_capacity = 1ull << 60; }), "ring_capacity"));
        CHECK(has(refusal_of([](auto& o) { o.prefix = "events"; }), "prefix must be a path"));
        CHECK(has(refusal_of([](auto& o) { o.prefix = "/a//b"; }), "'/a//b'"));
        CHECK(has(refusal_of([](auto& o) { o.heartbeat = -1ms; }), "heartbeat"));
        CHECK(has(refusal_of([](auto& o) { o.timeouts.header = 0ms; }), "timeouts.header "));
        CHECK(has(refusal_of([](auto& o) { o.timeouts.stall = 0ms; }), "timeouts.stall "));
        CHECK(has(refusal_of([](auto& o) { o.timeouts.publish = -1ms; }), "timeouts.publish "));
        CHECK(has(refusal_of([](auto& o) { o.coalesce = -1ms; }), "coalesce"));
        CHECK(has(refusal_of([](auto& o) { o.coalesce = 61s; }), "coalesce"));
        CHECK(has(refusal_of([](auto& o) { o.timeouts.shutdown = -1ms; }), "timeouts.shutdown "));
        CHECK(has(refusal_of([](auto& o) { o.limits.head_bytes = 10; }), "limits.head_bytes "));
        CHECK(has(refusal_of([](auto& o) { o.history.messages = 0; }), "history.messages "));
        CHECK(has(refusal_of([](auto& o) { o.history.bytes = 0; }), "history.bytes "));
        CHECK(has(refusal_of([](auto& o) { o.threads = 5000; }), "threads"));
        CHECK(refusal_of([](auto&) {}) == "accepted");
    }

    TEST_CASE("a refused option is named by its member, with the reason apart") {
        const auto refused = [](auto&& change) {
            sse::options o = with_threads(1);
            change(o);
            try {
                const sse::server server(o);
            } catch (const sse::bad_option& why) { return why; }
            FAIL("was accepted");
            return sse::bad_option("");
        };
        const auto time = refused([](auto& o) { o.limits.retry_after = 0ms; });
        CHECK(time.member() == "limits.retry_after");
        CHECK(time.reason() == "must be more than 0 ms");
        CHECK(std::string(time.what()) ==
              "sse::options::limits.retry_after must be more than 0 ms");
        const auto list = refused([](auto& o) { o.proxy.trusted = {"::1", "nobody"}; });
        CHECK(list.member() == "proxy.trusted");
        CHECK(list.reason().starts_with("'nobody' is not an IP address"));
        CHECK(refused([](auto& o) { o.hosts = {"a b"}; }).member() == "hosts");
        CHECK(refused([](auto& o) { o.cors.methods = {"a b"}; }).member() == "cors.methods");
        CHECK(refused([](auto& o) { o.cors.credentials = true; }).member() == "cors.credentials");
        CHECK(refused([](auto& o) { o.history.topics = {{"a//b"}}; }).member() == "history.topics");
        CHECK(refused([](auto& o) { o.health = o.prefix; }).member() == "health");
        CHECK(sse::bad_option("alone").member() == "alone");
        CHECK(sse::bad_option("alone").reason().empty());
    }

    TEST_CASE("port 0 takes a free port, which can be asked") {
        const running_server server;
        CHECK(server.port() != 0);
        CHECK(server.endpoint().address().to_string() == "127.0.0.1");
        CHECK(http_get(server.port(), "/health").status == 200);
    }

    TEST_CASE("a server listens on IPv6, on a name and on every address") {
        sse::server six(with_threads(1)), name(with_threads(1)), all(with_threads(1));
        six.start("[::1]:0");
        connection peer(six.port(), {.host = "::1"});
        CHECK(peer.request("GET", "/health").status == 200);
        name.start("localhost:0");
        CHECK(name.endpoint().address().is_loopback());
        all.start(":0");
        CHECK(http_get(all.port(), "/health").status == 200);
    }

    TEST_CASE("what is not an address is refused with the way to write one") {
        for (const char* wrong : {"", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", ":99999"}) {
            CAPTURE(wrong);
            sse::server server(with_threads(1));
            try {
                server.start(wrong);
                FAIL_CHECK("accepted");
            } catch (const std::invalid_argument& e) { CHECK(has(e.what(), "write host:port")); }
        }
    }

    TEST_CASE("a port in use is reported, and the server can still be destroyed") {
        const running_server first;
        sse::server second(with_threads(1));
        const std::string taken = "127.0.0.1:" + std::to_string(first.port());
        try {
            second.start(taken);
            FAIL_CHECK("accepted");
        } catch (const std::system_error& e) {
            CHECK(e.code() == asio::error::address_in_use);
            CHECK(has(e.what(), taken));
        }
    }

    TEST_CASE("a listening socket of the program's own is served") {
        asio::io_context io;
        asio::ip::tcp::acceptor listener(io, {asio::ip::address_v4::loopback(), 0});
        const auto port = listener.local_endpoint().port();
        sse::server server(with_threads(1));
        server.start(std::move(listener));
        CHECK(server.port() == port);
        CHECK(http_get(port, "/health").status == 200);
    }

    TEST_CASE("a program started by this one holds neither the port nor a connection") {
        auto server = std::make_unique<running_server>();
        const std::uint16_t port = server->port();
        event_client client(port);
        const child_program child;
        server->stop();
        server->join();
        CHECK(client.wait_for_close() == ending::fin); // nobody else keeps it open
        server.reset();
        // Nobody listens. The system lets us go on before it has closed what the program must not
        // have.
        CHECK(eventually([&] {
            try {
                connection{port, {.tls = false}};
                return false;
            } catch (const std::system_error&) { return true; }
        }));
    }

    TEST_CASE("no descriptor that the library makes or takes over is inherited") {
        const auto before = inherited();
        sse::options o = with_threads(2);
        o.handle_signals = true;
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/file", sse::file("/proc/self/fdinfo/0")); // opened and read
        });
        event_client client(server.port());
        CHECK(http_get(server.port(), "/file").status == 200);

        asio::io_context context;
        const std::string where = "127.0.0.1:" + std::to_string(server.port()) + "/subscribe";
        sse::client_options trusting;
#if defined(SSE_ENABLE_TLS)
        if (tls_by_default) trusting.tls.ca = test_authority().file();
#endif
        sse::client events(context.get_executor(),
                           (tls_by_default ? "https://" : "http://") + where, trusting);
        asio::co_spawn(context, events.next(), asio::detached);
        REQUIRE(eventually([&] { // and its connection is open
            context.poll();
            return server.counters().streams == 2;
        }));

        asio::ip::tcp::acceptor own(context, {asio::ip::make_address("127.0.0.1"), 0});
        ::fcntl(own.native_handle(), F_SETFD, 0);
        sse::server second(with_threads(1));
        second.start(std::move(own));
        asio::ip::tcp::acceptor other(context, {asio::ip::make_address("127.0.0.1"), 0});
        ::fcntl(other.native_handle(), F_SETFD, FD_CLOEXEC);
        connection caller(other.local_endpoint().port(), {.tls = false}); // as adopt() wants it
        asio::ip::tcp::socket accepted = other.accept();                  // without the flag
        second.adopt(std::move(accepted), "GET /health HTTP/1.1\r\nHost: localhost\r\n");
        REQUIRE(eventually([&] { return second.counters().connections == 1; }));
        CHECK(inherited() == before);
    }

    TEST_CASE("a server runs once") {
        running_server server;
        CHECK_THROWS_AS(server.start("127.0.0.1:0"), std::logic_error);
        CHECK_THROWS_AS(
            server.route("GET", "/late", [](sse::stream&) -> asio::awaitable<void> { co_return; }),
            std::logic_error);
        sse::server unstarted(with_threads(1));
        CHECK_THROWS_AS(unstarted.port(), std::logic_error);
        unstarted.stop();
        check_code(sse::errc::stopped, [&] { unstarted.start("127.0.0.1:0"); });
    }

    TEST_CASE("stop ends while clients connect, called twice and from several threads") {
        for (int round = 0; round < 5; ++round) {
            running_server server(with_threads(2));
            const auto port = server.port();
            std::atomic<bool> go_on{true};
            std::vector<std::thread> clients;
            for (int i = 0; i < 4; ++i) {
                clients.emplace_back([&] {
                    while (go_on) {
                        try {
                            event_client client(port);
                        } catch (const std::exception&) {
                            // refused or cut: what a stopping server does
                        }
                    }
                });
            }
            CHECK(eventually([&] { return server.counters().accepted >= 50; }));
            std::thread other([&] { server.stop(); });
            server.stop();
            server.stop();
            other.join();
            server.join();
            go_on = false;
            for (auto& c : clients) c.join();
            CHECK(server.counters().streams == 0);
        }
    }

    TEST_CASE("what was published before stop reaches the clients") {
        running_server server(with_threads(2));
        std::vector<event_client> clients;
        for (int i = 0; i < 10; ++i) clients.emplace_back(server.port());
        for (int n = 0; n < 1000; ++n) server.broadcast({.data = std::to_string(n)});
        server.stop();
        for (auto& client : clients) {
            for (int n = 0; n < 1000; ++n) REQUIRE(client.next().data == std::to_string(n));
            CHECK(client.wait_for_close() == ending::fin);
        }
    }

    TEST_CASE("after stop nothing is accepted and publishers are told at once") {
        running_server server;
        const auto port = server.port();
        server.stop();
        check_code(sse::errc::stopped, [&] { server.broadcast({.data = "x"}); });
        check_code(sse::errc::stopped, [&] { server.publish("/t", {.data = "x"}); });
        CHECK(server.try_broadcast({.data = "x"}) == sse::errc::stopped);
        server.join();
        CHECK_THROWS(connection(port));
        server.stop();
        server.join();
    }

    TEST_CASE("stop and join from a handler: stop works, join says that it would wait for itself") {
        std::atomic<bool> told{false};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("POST", "/stop", [&](sse::stream& client) -> asio::awaitable<void> {
                try {
                    s.join();
                } catch (const std::system_error& e) {
                    told = e.code() == std::errc::resource_deadlock_would_occur;
                }
                co_await client.respond(202, "text/plain", "stopping\n");
                s.stop();
            });
        });
        CHECK(http_request(server.port(), "POST", "/stop").status == 202);
        server.join();
        CHECK(told);
    }

    TEST_CASE("one that is destroyed on a thread of its own ends the program, and says why") {
        int ends[2];
        REQUIRE(::pipe(ends) == 0);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            ::dup2(ends[1], STDERR_FILENO);
            std::signal(SIGABRT, [](int) { ::_exit(7); });
            auto server = std::make_unique<sse::server>(with_threads(1));
            server->route("GET", "/end", [&](sse::stream&) -> asio::awaitable<void> {
                server.reset();
                co_return;
            });
            server->start("127.0.0.1:0");
            connection peer(server->port());
            peer.send("GET /end HTTP/1.1\r\nHost: localhost\r\n\r\n");
            for (;;) ::pause();
        }
        ::close(ends[1]);
        std::string said;
        char some[512];
        for (ssize_t n; (n = ::read(ends[0], some, sizeof some)) > 0;) {
            said.append(some, static_cast<std::size_t>(n));
        }
        ::close(ends[0]);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 7));
        CHECK(said.find("called on a thread of the server itself") != std::string::npos);
    }

    TEST_CASE("a handler may throw what is not an exception class") {
        error_count failures;
        sse::options o = with_threads(1);
        failures.attach(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/odd", [](sse::stream&) -> asio::awaitable<void> {
                throw 7;
                co_return;
            });
        });
        CHECK(http_request(server.port(), "GET", "/odd").status == 500);
        CHECK(failures.count == 1);
        CHECK(http_request(server.port(), "GET", "/health").status == 200);
    }

    TEST_CASE("32 threads publish while it stops: each call publishes or says that it stopped") {
        for (int round = 0; round < 10; ++round) {
            running_server server(with_threads(2));
            event_client reader(server.port());
            std::atomic<int> published{0}, stopped{0}, other{0};
            std::vector<std::thread> publishers;
            for (int i = 0; i < 32; ++i) {
                publishers.emplace_back([&] {
                    for (std::error_code wrong; wrong != sse::errc::stopped;) {
                        wrong = server.try_publish("/a", {.data = "x"});
                        published += wrong ? 0 : 1;
                        stopped += wrong == sse::errc::stopped ? 1 : 0;
                        other +=
                            wrong && wrong != sse::errc::stopped && wrong != sse::errc::no_room;
                    }
                });
            }
            reader.next();
            server.stop();
            for (std::thread& t : publishers) t.join();
            server.join();
            CHECK(published > 0);
            CHECK(stopped == 32);
            CHECK(other == 0);
        }
    }

    TEST_CASE("SIGTERM ends serve() when the program asks for it") {
        sse::options o = with_threads(2);
        o.handle_signals = true;
        sse::server server(o);
        std::thread main_thread([&] { server.serve("127.0.0.1:0"); });
        REQUIRE(eventually([&] {
            try {
                return server.port() != 0;
            } catch (const std::logic_error&) { return false; }
        }));
        event_client client(server.port());
        ::kill(::getpid(), SIGTERM);
        CHECK(client.wait_for_close() == ending::fin);
        main_thread.join();
    }

#if defined(SIGHUP)
    TEST_CASE("a closed terminal ends a server that takes signals, unless the program decides") {
        using action = void (*)(int);
        const auto starts = [](action program) {
            std::signal(SIGHUP, program);
            sse::options o = with_threads(1);
            o.handle_signals = true;
            return std::make_unique<running_server>(o);
        };
        const action before = std::signal(SIGHUP, SIG_DFL);
        {
            const auto first = starts(SIG_DFL);
            running_server second([] {
                sse::options o = with_threads(1);
                o.handle_signals = true;
                return o;
            }());
            event_client a(first->port()), b(second.port());
            ::kill(::getpid(), SIGHUP);
            CHECK(a.wait_for_close() == ending::fin);
            CHECK(b.wait_for_close() == ending::fin);
        }
        static std::atomic<int> read_anew{0};
        for (const action program : {action(SIG_IGN), action([](int) { ++read_anew; })}) {
            const auto server = starts(program);
            event_client client(server->port());
            ::kill(::getpid(), SIGHUP);
            server->publish("/x", {.data = "goes on"});
            CHECK(client.next().data == "goes on");
        }
        CHECK(eventually([] { return read_anew == 1; }));
        std::signal(SIGHUP, before);
    }
#endif

    TEST_CASE("serve() takes a listener that the program has made") {
        asio::io_context io;
        asio::ip::tcp::acceptor listener(io, {asio::ip::address_v4::loopback(), 0});
        const auto port = listener.local_endpoint().port();
        sse::server server(with_threads(1));
        std::thread main_thread([&] { server.serve(std::move(listener)); });
        event_client client(port); // what the kernel has accepted waits for the server
        server.publish("/x", {.data = "hello"});
        CHECK(client.next().data == "hello");
        server.stop();
        CHECK(client.wait_for_close() == ending::fin);
        main_thread.join();
    }

    TEST_CASE("a handler that ignores its cancellation is destroyed after the shutdown time") {
        sse::options o = with_threads(1);
        o.timeouts.shutdown = 20ms;
        auto alive = std::make_shared<int>(0);
        {
            running_server server(o, [&](sse::server& s) {
                s.route("GET", "/stubborn", [alive](sse::stream& client) -> asio::awaitable<void> {
                    const auto held = alive;
                    asio::steady_timer timer(client.get_executor(), 1h);
                    for (;;) {
                        asio::error_code ignored;
                        co_await asio::this_coro::throw_if_cancelled(false);
                        co_await timer.async_wait(
                            asio::redirect_error(asio::use_awaitable, ignored));
                        timer.expires_after(1h);
                        *held += 1;
                        if (ignored) co_await client.send({.data = "started"});
                    }
                });
            });
            connection peer(server.port());
            peer.send("GET /stubborn HTTP/1.1\r\nHost: localhost\r\n\r\n");
            CHECK(eventually([&] { return alive.use_count() > 2; }));
        }
        CHECK(alive.use_count() == 1);
    }

    TEST_CASE("two servers live in one program and know nothing of each other") {
        running_server a, b;
        event_client to_a(a.port()), to_b(b.port());
        a.broadcast({.data = "a"});
        b.broadcast({.data = "b"});
        CHECK(to_a.next().data == "a");
        CHECK(to_b.next().data == "b");
        a.stop();
        a.join();
        b.broadcast({.data = "c"});
        CHECK(to_b.next().data == "c");
    }
}

TEST_SUITE("endpoints") {
    TEST_CASE("the head of a stream keeps proxies from buffering, caching and changing it") {
        running_server server;
        event_client client(server.port(), "/subscribe/a");
        CHECK(client.head().header("Content-Type") == "text/event-stream");
        CHECK(client.head().header("Cache-Control") == "no-cache, no-transform");
        CHECK(client.head().header("X-Accel-Buffering") == "no");
        CHECK(client.head().header_lines("Access-Control-Allow-Origin") == 1);
    }

    TEST_CASE("every response is dated, as RFC 9110 5.6.7 writes dates") {
        running_server server;
        for (const char* path : {"/health", "/none"}) {
            const std::string date = http_get(server.port(), path).header("Date").value_or("");
            CAPTURE(date);
            REQUIRE(date.size() == std::string("Sun, 06 Nov 1994 08:49:37 GMT").size());
            std::tm parsed{};
            const char* const end = ::strptime(date.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parsed);
            REQUIRE(end != nullptr);
            CHECK(*end == '\0');
            CHECK(std::abs(std::difftime(::timegm(&parsed), std::time(nullptr))) < 60);
        }
        CHECK(sse::detail::http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    TEST_CASE("health counts the open streams") {
        running_server server;
        CHECK(http_get(server.port(), "/health").body == "Active connections: 0\n");
        event_client a(server.port()), b(server.port(), "/subscribe/");
        CHECK(http_get(server.port(), "/health").body == "Active connections: 2\n");
    }

    TEST_CASE("anything else is 404") {
        running_server server;
        for (const char* path : {"/", "/subscriber", "/healthy", "/health/", "/favicon.ico"}) {
            CAPTURE(path);
            CHECK(http_get(server.port(), path).status == 404);
        }
    }

    TEST_CASE("other methods get 405 with Allow and hold no slot; HEAD has no body") {
        running_server server;
        for (const char* method : {"PUT", "DELETE", "PATCH", "BREW"}) {
            CAPTURE(method);
            const auto answer = http_request(server.port(), method, "/subscribe/a");
            CHECK(answer.status == 405);
            CHECK(answer.header("Allow") == "GET, HEAD, POST, OPTIONS");
        }
        connection peer(server.port());
        peer.send("HEAD /subscribe/a HTTP/1.1\r\nHost: localhost\r\n\r\n");
        const auto head = peer.read_head();
        CHECK(head.status == 200);
        CHECK(head.header("Content-Type") == "text/event-stream");
        CHECK(peer.read_to_end().empty());
        CHECK(eventually([&] { return server.counters().streams == 0; }));
    }

    TEST_CASE("a client whose Accept excludes event streams gets 406, others a stream") {
        running_server server;
        const auto with = [&](const char* accept) {
            connection peer(server.port());
            peer.send("GET /subscribe HTTP/1.1\r\nHost: localhost\r\nAccept: " +
                      std::string(accept) + "\r\n\r\n");
            return peer.read_head().status;
        };
        CHECK(with("application/json") == 406);
        CHECK(with("text/html, image/*;q=0.5") == 406);
        CHECK(with("text/event-stream") == 200);
        CHECK(with("TEXT/*") == 200);
        CHECK(with("application/json, */*;q=0.1") == 200);
        CHECK(with("") == 200);
    }

    TEST_CASE("OPTIONS names the methods, and answers a preflight") {
        running_server server;
        const auto plain = http_request(server.port(), "OPTIONS", "/subscribe/a");
        CHECK(plain.status == 204);
        CHECK(plain.header("Allow") == "GET, HEAD, POST, OPTIONS");
        const auto preflight = http_request(server.port(), "OPTIONS", "/subscribe/a",
                                            {{"Origin", "https://app.example"},
                                             {"Access-Control-Request-Method", "GET"},
                                             {"Access-Control-Request-Headers", "Last-Event-ID"}});
        CHECK(preflight.status == 204);
        CHECK(preflight.header("Access-Control-Allow-Origin") == "*");
        CHECK(preflight.header("Access-Control-Allow-Methods") == "GET, HEAD, POST, OPTIONS");
        CHECK(has(preflight.header("Access-Control-Allow-Headers").value_or(""), "Last-Event-ID"));
        CHECK(http_request(server.port(), "OPTIONS", "*").status == 204);
        CHECK(http_request(server.port(), "OPTIONS", "/nothing").status == 404);
    }

    TEST_CASE("the prefix is an option, at the root too") {
        sse::options o = with_threads(1);
        o.prefix = "/events/live/";
        running_server server(o);
        event_client client(server.port(), "/events/live/pets");
        CHECK(http_get(server.port(), "/subscribe/pets").status == 404);
        server.publish("pets", {.data = "cat"});
        CHECK(client.next().data == "cat");

        o.prefix = "/";
        running_server root(o);
        event_client all(root.port(), "/"), one(root.port(), "/pets/cats");
        CHECK(http_get(root.port(), "/health").status == 200);
        root.publish("pets/cats", {.data = "tom"});
        CHECK(all.next().data == "tom");
        CHECK(one.next().data == "tom");
    }

    TEST_CASE(
        "CORS: everyone by default; a matcher echoes, refuses before the stream, and varies") {
        sse::options o = with_threads(1);
        o.cors.origin = [](std::string_view origin) { return origin == "https://app.example"; };
        o.hosts = {"*"};
        running_server server(o);
        const auto head_for = [&](const header_list& headers) {
            connection peer(server.port());
            peer.send_request("GET", "/subscribe/a", headers);
            return peer.read_head();
        };
        const auto friendly = head_for({{"Origin", "https://app.example"}});
        CHECK(friendly.status == 200);
        CHECK(friendly.header("Access-Control-Allow-Origin") == "https://app.example");
        CHECK(has(friendly.header("Vary").value_or(""), "Origin"));
        const auto foreign = head_for({{"Origin", "https://evil.example"}});
        CHECK(foreign.status == 403);
        CHECK(foreign.header("Vary") == "Origin");
        CHECK_FALSE(foreign.header("Access-Control-Allow-Origin"));
        const auto without = head_for({});
        CHECK(without.status == 200);
        CHECK(has(without.header("Vary").value_or(""), "Origin"));
        const auto own_page = head_for({{"Host", "me.example"}, {"Origin", "http://me.example"}});
        CHECK(own_page.status == 200);
        CHECK(eventually([&] { return server.counters().streams == 0; }));
    }

    TEST_CASE("a topic of the path is decoded once; what is not a topic is 400") {
        running_server server;
        event_client client(server.port(), "/subscribe/caf%C3%A9/a%20b");
        server.publish("/caf\xC3\xA9/a b", {.data = "hot"});
        CHECK(client.next().data == "hot");
        for (const char* path : {"/subscribe/../x", "/subscribe/a//b", "/subscribe/%0a",
                                 "/subscribe/%zz", "/subscribe/%00"}) {
            CAPTURE(path);
            CHECK(http_get(server.port(), path).status == 400);
        }
    }

    TEST_CASE("two requests in one packet are answered in their order on one connection") {
        running_server server;
        connection peer(server.port());
        peer.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /none HTTP/1.1\r\nHost: "
                  "localhost\r\n\r\n");
        CHECK(peer.read_response().status == 200);
        CHECK(peer.read_response().status == 404);
        CHECK(peer.request("GET", "/health").status == 200);
        CHECK(server.counters().accepted == 1);
    }

    TEST_CASE("a broken request gets one response that says why, then the end") {
        running_server server;
        connection peer(server.port());
        peer.send("GET /health HTTP/1.1\r\nHost : a\r\n\r\nGET /health HTTP/1.1\r\nHost: "
                  "localhost\r\n\r\n");
        const auto answer = peer.read_response();
        CHECK(answer.status == 400);
        CHECK(answer.header("Connection") == "close");
        CHECK(has(answer.body, "header name"));
        CHECK(peer.read_to_end().empty());
    }

    TEST_CASE("bytes that arrive on an open stream are thrown away") {
        running_server server;
        event_client client(server.port());
        client.socket().send(std::string(100'000, 'x'));
        server.broadcast({.data = "still here"});
        CHECK(client.next().data == "still here");
    }
}

TEST_SUITE("publishing") {
    TEST_CASE("broadcast reaches every subscriber, whatever it follows") {
        running_server server(with_threads(2));
        event_client root(server.port(), "/subscribe/"), a(server.port(), "/subscribe/a"),
            deep(server.port(), "/subscribe/x/y/z");
        server.broadcast({.event = "hello", .data = "all", .id = "7"});
        for (auto* client : {&root, &a, &deep}) {
            const auto event = client->next();
            CHECK(event.type == "hello");
            CHECK(event.data == "all");
            CHECK(event.id == "7");
        }
    }

    TEST_CASE("topics route by whole path segments and do not show on the wire") {
        running_server server(with_threads(2));
        event_client pets(server.port(), "/subscribe/pets");
        event_client cats(server.port(), "/subscribe/pets/cats");
        event_client shop(server.port(), "/subscribe/petshop");
        event_client root(server.port(), "/subscribe");
        connection raw(server.port());
        raw.send_request("GET", "/subscribe/pets");
        raw.read_head();
        server.publish("/pets/cats", {.data = "1"});
        server.publish("pets", {.data = "2"});
        server.publish("/petshop/", {.data = "3"});
        server.publish("/pets/cats/tom", {.data = "4"});
        server.publish("/", {.data = "5"});
        server.broadcast({.data = "end"});
        const auto all_of = [](event_client& client) {
            std::string seen;
            for (auto e = client.next(); e.data != "end"; e = client.next()) seen += e.data;
            return seen;
        };
        CHECK(all_of(pets) == "124");
        CHECK(all_of(cats) == "14");
        CHECK(all_of(shop) == "3");
        CHECK(all_of(root) == "12345");
        CHECK(without_ids(raw.read_through("end\n\n")) ==
              "data: 1\n\ndata: 2\n\ndata: 4\n\ndata: end\n\n");
    }

    TEST_CASE("a client that reconnects with any accepted id continues after it") {
        running_server server;
        dice dice(20251128);
        const std::string letters = "ab -%\"\\\xc2\x85\xe2\x82\xac\xf0\x9f\x98\x80\x01\x7f";
        std::set<std::string> ids{std::string(1024, 'x'), "a b",     "%20", "\"\\", "\xe2\x82\xac",
                                  "\xf0\x9f\x98\x80",     "\xc2\x85"};
        while (ids.size() < 60) ids.insert(dice.bytes(12, letters));
        int taken = 0;
        for (const std::string& id : ids) {
            const auto failed = server.try_publish("/a", {.data = "marked", .id = id});
            CHECK(failed == (support::comes_back(id) ? std::error_code() : sse::errc::bad_id));
            if (failed || id.empty()) continue;
            ++taken;
            server.publish("/a", {.data = "after"});
            CAPTURE(id);
            event_client back(server.port(), "/subscribe/a", {{"Last-Event-ID", id}});
            const auto next = back.next();
            CHECK(next.type + " " + next.data == "message after");
        }
        CHECK(taken > 5);
    }

    TEST_CASE("an id that looks like the server's own is refused, one of another server is taken") {
        running_server server;
        server.publish("/a", {.data = "1"});
        const std::string real = server.last_id();
        const std::string epoch = real.substr(0, real.rfind('-'));
        for (const char* const number : {"0", "1", "2", "02", "1000"}) {
            const std::string id = epoch + "-" + number;
            CAPTURE(id);
            check_code(sse::errc::reserved_id, [&] { server.publish("/a", {.id = id}); });
            check_code(sse::errc::reserved_id, [&] { server.broadcast({.id = id}); });
            check_code(sse::errc::reserved_id, [&] { server.send_to_user("ann", {.id = id}); });
            CHECK(server.try_publish("/a", {.id = id}) == sse::errc::reserved_id);
            CHECK(server.try_broadcast({.id = id}) == sse::errc::reserved_id);
        }
        CHECK(server.last_id() == real);
        const std::vector<std::string> good{"abcdefgh-2", epoch + "-x", epoch, "from " + real};
        for (const std::string& id : good) {
            server.publish("/a", {.data = "relayed", .id = id});
            server.publish("/a", {.data = "after"});
            CAPTURE(id);
            event_client back(server.port(), "/subscribe/a", {{"Last-Event-ID", id}});
            CHECK(back.next().data == "after");
        }
    }

    TEST_CASE("many publishers, one order, the same for every client on every worker") {
        running_server server(with_threads(2));
        std::vector<event_client> clients;
        for (int i = 0; i < 6; ++i) clients.emplace_back(server.port());
        constexpr int publishers = 4, each = 1000;
        std::vector<std::thread> threads;
        for (int p = 0; p < publishers; ++p) {
            threads.emplace_back([&server, p] {
                for (int n = 0; n < each; ++n) {
                    server.broadcast({.data = std::to_string(p) + " " + std::to_string(n)});
                }
            });
        }
        for (auto& t : threads) t.join();
        std::vector<std::string> first;
        for (auto& client : clients) {
            std::vector<std::string> seen;
            for (int i = 0; i < publishers * each; ++i) seen.push_back(client.next().data);
            if (first.empty()) first = seen;
            CHECK(seen == first);
        }
        std::vector<int> next(publishers, 0);
        for (const auto& one : first) {
            const int p = one[0] - '0';
            CHECK(std::stoi(one.substr(2)) == next[static_cast<std::size_t>(p)]++);
        }
    }

    TEST_CASE("a burst of 2000 messages loses and disconnects no client that reads") {
        running_server server(with_threads(2));
        std::vector<event_client> clients;
        for (int i = 0; i < 20; ++i) clients.emplace_back(server.port());
        for (int n = 0; n < 2000; ++n) server.broadcast({.data = std::to_string(n)});
        for (auto& client : clients) {
            for (int n = 0; n < 2000; ++n) REQUIRE(client.next().data == std::to_string(n));
        }
        CHECK(server.counters().lagged == 0);
    }

    TEST_CASE("a message that would forge fields is refused and nothing is sent") {
        running_server server;
        event_client client(server.port());
        check_code(sse::errc::bad_event, [&] { server.broadcast({.event = "a\revent: evil"}); });
        check_code(sse::errc::bad_event,
                   [&] { server.publish("/t", {.event = "a\nb", .data = "x"}); });
        check_code(sse::errc::bad_id, [&] { server.broadcast({.data = "x", .id = "1\n2"}); });
        CHECK(server.try_broadcast({.data = "x", .id = std::string_view("\0", 1)}) ==
              sse::errc::bad_id);
        check_code(sse::errc::empty_message, [&] { server.broadcast({}); });
        check_code(sse::errc::bad_topic, [&] { server.publish("/a/../b", {.data = "x"}); });
        CHECK(server.try_publish("a//b", {.data = "x"}) == sse::errc::bad_topic);
        CHECK(server.counters().published == 0);
        server.broadcast({.data = "a\revent: evil\r\nid: 9"});
        const auto event = client.next();
        CHECK(event.type == "message");
        CHECK(event.data == "a\nevent: evil\nid: 9");
        CHECK(event.id == server.last_id()); // the server's own, not the forged one
    }

    TEST_CASE("a leading space of the data arrives") {
        running_server server;
        event_client client(server.port());
        server.broadcast({.data = " indented\n  more"});
        CHECK(client.next().data == " indented\n  more");
    }

    TEST_CASE("a silent stream gets heartbeats and stays open") {
        sse::options o = with_threads(1);
        o.heartbeat = 20ms;
        o.timeouts.header = with_handshake(30ms);
        running_server server(o);
        std::optional<event_client> client;
        REQUIRE(in_time([&] {
            client.emplace(server.port());
            return true;
        }));
        for (int i = 0; i < 10; ++i) CHECK(client->next_comment().empty());
        server.broadcast({.data = "after the silence"});
        CHECK(client->next().data == "after the silence");
    }

    TEST_CASE("without a heartbeat nothing is sent into the silence") {
        sse::options o = with_threads(1);
        o.heartbeat = 0ms;
        o.timeouts.body = 20ms; // its 408 shows that several sweeps went by
        running_server server(o, [](sse::server& s) {
            s.route("POST", "/", [](sse::stream& client) -> asio::awaitable<void> {
                const std::string body = co_await client.body();
            });
        });
        connection client(server.port());
        client.send_request("GET", "/subscribe/");
        CHECK(client.read_head().status == 200);
        connection slow(server.port());
        slow.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n");
        CHECK(slow.read_response().status == 408);
        server.broadcast({.data = "x"});
        CHECK(without_ids(client.read_through("x\n\n")) == "data: x\n\n");
    }

    TEST_CASE("a full ring is told to the publisher, and nothing is lost of what it took") {
        sse::options o = with_threads(1);
        o.ring_capacity = 4;
        o.timeouts.publish = 10ms;
        gate entered, leave;
        running_server server(o, [&](sse::server& s) {
            s.route("POST", "/block", [&](sse::stream& client) -> asio::awaitable<void> {
                entered.open();
                const bool opened = leave.wait(); // what a program must not do: hold up the thread
                co_await client.respond(opened ? 200 : 500, "text/plain", "\n");
            });
        });
        event_client client(server.port());
        connection blocker(server.port());
        blocker.send("POST /block HTTP/1.1\r\nHost: localhost\r\n\r\n");
        REQUIRE(entered.wait());
        std::uint64_t accepted = 0;
        while (!server.try_broadcast({.data = std::to_string(accepted)})) ++accepted;
        CHECK(accepted == 4);
        CHECK(server.try_broadcast({.data = "x"}) == sse::errc::no_room);
        check_code(sse::errc::no_room, [&] { server.broadcast({.data = "x"}); });
        CHECK(server.counters().no_room >= 3);
        asio::io_context io; // one that waits in a coroutine of the program's own
        std::exception_ptr failure;
        asio::co_spawn(io, server.async_broadcast({.data = std::string("4")}),
                       [&](std::exception_ptr e, std::uint64_t) { failure = e; });
        std::thread waiter([&] { io.run(); });
        leave.open();
        waiter.join();
        CHECK_FALSE(failure);
        for (int n = 0; n < 5; ++n) CHECK(client.next().data == std::to_string(n));
        CHECK(blocker.read_response().status == 200);
    }

    TEST_CASE("stop wakes those who wait for room") {
        sse::options o = with_threads(1);
        o.ring_capacity = 2;
        o.timeouts.publish = 1h;
        sse::server server(o); // never started, so nobody makes room
        server.broadcast({.data = "0"});
        server.broadcast({.data = "1"});
        gate blocked;
        std::thread publisher([&] {
            blocked.open();
            check_code(sse::errc::stopped, [&] { server.broadcast({.data = "2"}); });
        });
        asio::io_context io;
        std::error_code code;
        asio::co_spawn(io, server.async_publish("/t", {.data = "3"}),
                       [&](std::exception_ptr e, std::uint64_t) {
                           try {
                               if (e) std::rethrow_exception(e);
                           } catch (const std::system_error& error) { code = error.code(); }
                       });
        CHECK(io.poll() > 0);
        CHECK(blocked.wait());
        CHECK(eventually([&] { return server.counters().no_room >= 2; }));
        server.stop();
        publisher.join();
        io.run();
        CHECK(code == sse::errc::stopped);
    }

    TEST_CASE("a handler may publish more than the ring holds without waiting for itself") {
        sse::options o = with_threads(2);
        o.ring_capacity = 4;
        running_server server(o, [](sse::server& s) {
            s.route("POST", "/flood", [&s](sse::stream& client) -> asio::awaitable<void> {
                for (int n = 0; n < 200; ++n) s.broadcast({.data = std::to_string(n)});
                for (int n = 200; n < 400; ++n) {
                    co_await s.async_broadcast({.data = std::to_string(n)});
                }
                co_await client.respond(200, "text/plain", "\n");
            });
        });
        event_client a(server.port()), b(server.port()), c(server.port());
        CHECK(http_request(server.port(), "POST", "/flood").status == 200);
        for (auto* client : {&a, &b, &c}) {
            for (int n = 0; n < 400; ++n) REQUIRE(client->next().data == std::to_string(n));
        }
    }

    TEST_CASE("a server without clients takes any number of messages") {
        sse::options o = with_threads(2);
        o.ring_capacity = 16;
        running_server server(o);
        for (int n = 0; n < 10'000; ++n) server.broadcast({.data = "nobody hears it"});
        CHECK(server.counters().published == 10'000);
        event_client late(server.port());
        server.broadcast({.data = "now"});
        CHECK(late.next().data == "now");
    }

    TEST_CASE(
        "without clients too, a publisher held up between its two stores stops nobody for good") {
        // Preempted there, one of many publishers leaves a hole that the workers stop at; whoever
        // fills it must wake them, though nobody else is there to be served.
        sse::options o = with_threads(2);
        o.ring_capacity = 64;
        o.timeouts.publish = 30s;
        running_server server(o);
        std::vector<std::thread> publishers;
        for (int p = 0; p < 8; ++p) {
            publishers.emplace_back([&] {
                for (int n = 0; n < 40'000; ++n) server.broadcast({.data = "x"});
            });
        }
        for (auto& p : publishers) p.join();
        CHECK(server.counters().published == 320'000);
    }

    TEST_CASE("a coroutine that waits for room outlives the server") {
        asio::io_context io;
        std::error_code code;
        {
            sse::options o = with_threads(1);
            o.ring_capacity = 2;
            sse::server server(o); // never started, so nobody makes room
            server.broadcast({.data = "0"});
            server.broadcast({.data = "1"});
            asio::co_spawn(io, server.async_broadcast({.data = "2"}),
                           [&](std::exception_ptr e, std::uint64_t) {
                               try {
                                   if (e) std::rethrow_exception(e);
                               } catch (const std::system_error& error) { code = error.code(); }
                           });
            io.poll();
        }
        io.run();
        CHECK(code == sse::errc::stopped);
    }

    TEST_CASE("the longest time that there is means: for ever") {
        sse::options o = with_threads(1);
        o.ring_capacity = 2;
        o.timeouts.publish = std::chrono::milliseconds::max();
        o.timeouts.shutdown = std::chrono::milliseconds::max();
        running_server server(o);
        for (int n = 0; n < 100; ++n) server.broadcast({.data = "x"});
        CHECK(server.counters().published == 100);
    }

    TEST_CASE("a handler that publishes without a pause does not make the history grow") {
        sse::options o = with_threads(1);
        o.history.messages = 100;
        running_server server(o, [](sse::server& s) {
            s.route("POST", "/flood", [&s](sse::stream& client) -> asio::awaitable<void> {
                for (int n = 0; n < 20'000; ++n) {
                    co_await s.async_broadcast({.data = std::to_string(n)});
                }
                co_await client.respond(200, "text/plain", "\n");
            });
        });
        event_client client(server.port());
        connection flood(server.port());
        flood.send("POST /flood HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for (int n = 0; n < 20'000; ++n) REQUIRE(client.next().data == std::to_string(n));
        CHECK(flood.read_response().status == 200);
    }

    TEST_CASE("what is published once a client has its head reaches it") {
        running_server server(with_threads(2));
        for (int n = 0; n < 300; ++n) {
            event_client client(server.port(), "/subscribe/now");
            server.publish("/now", {.data = std::to_string(n)});
            REQUIRE(client.next().data == std::to_string(n));
        }
    }

    TEST_CASE("counters are read from any thread while the server works") {
        running_server server(with_threads(2));
        std::atomic<bool> go_on{true};
        std::thread reader([&] {
            std::uint64_t last = 0;
            while (go_on) {
                const auto now = server.counters();
                CHECK(now.published >= last);
                last = now.published;
            }
        });
        event_client client(server.port());
        for (int n = 0; n < 2000; ++n) server.broadcast({.data = std::to_string(n)});
        for (int n = 0; n < 2000; ++n) client.next();
        go_on = false;
        reader.join();
        sse::counters sum;
        CHECK(eventually([&] { // they are counted once they are sent
            sum = server.counters();
            return sum.delivered == 2000;
        }));
        CHECK(sum.published == 2000);
        CHECK(sum.streams == 1);
        CHECK(eventually([&] { return server.counters().bytes > client.body_bytes(); }));
    }
}

TEST_SUITE("clients that come and go") {
    TEST_CASE("after any churn no stranger is removed and no ghost stays") {
        running_server server(with_threads(2));
        event_client steady(server.port());
        for (int round = 0; round < 200; ++round) {
            event_client passing(server.port(), round % 2 ? "/subscribe/x" : "/subscribe/");
            if (round % 3 == 0) server.broadcast({.data = std::to_string(round)});
            if (round % 4 == 0) passing.reset();
        }
        CHECK(eventually([&] { return server.counters().connections == 1; }));
        CHECK(server.counters().streams == 1);
        for (int round = 0; round < 200; round += 3) {
            CHECK(steady.next().data == std::to_string(round));
        }
    }

    TEST_CASE("a client that leaves is noticed at once, though nothing is written") {
        sse::options o = with_threads(1);
        o.heartbeat = 1h;
        running_server server(o);
        event_client a(server.port()), b(server.port());
        CHECK(server.counters().streams == 2);
        a.close();
        CHECK(eventually([&] { return server.counters().streams == 1; }));
        b.reset();
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        event_client c(server.port());
        c.socket().finish_sending(); // a half-closed client counts as gone
        CHECK(c.wait_for_close() == ending::fin);
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE(
        "a client that stops reading is cut when the history has moved past it, others are not") {
        sse::options o = with_threads(1);
        o.history.messages = 64;
        running_server server(o);
        event_client good(server.port());
        connection stuck(server.port(), {.receive_buffer = 4096});
        stuck.send_request("GET", "/subscribe/");
        CHECK(stuck.read_head().status == 200);
        const std::string payload(10'000, 'x');
        const deadline until = patience;
        while (server.counters().lagged == 0 && !until.passed()) {
            server.broadcast({.data = payload});
            CHECK(good.next().data == payload);
        }
        CHECK(server.counters().lagged == 1);
        CHECK(eventually([&] { return server.counters().streams == 1; }));
        server.broadcast({.data = "good goes on"});
        CHECK(good.next().data == "good goes on");
    }

    TEST_CASE("a client that takes in nothing is cut after the stall time") {
        sse::options o = with_threads(1);
        o.timeouts.stall = 50ms;
        running_server server(o);
        connection stuck(server.port(), {.receive_buffer = 4096});
        stuck.send_request("GET", "/subscribe/");
        CHECK(stuck.read_head().status == 200);
        server.broadcast({.data = std::string(8 * 1024 * 1024, 'x')});
        CHECK(eventually([&] { return server.counters().lagged == 1; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("a head that does not come in time is answered with 408, silence with the end") {
        sse::options o = with_threads(1);
        o.timeouts.header = with_handshake(40ms);
        running_server server(o);
        connection silent(server.port());
        response answer;
        REQUIRE(in_time([&] { // what has begun no head is silent
            connection half(server.port());
            half.send("GET /health HTTP/1.1\r\nHost:");
            answer = half.read_response();
            return true;
        }));
        CHECK(answer.status == 408);
        CHECK(answer.header("Connection") == "close");
        CHECK(silent.read_to_end().empty());
    }

    TEST_CASE("over the limit of connections: 503 with Retry-After, until one leaves") {
        sse::options o = with_threads(2);
        o.limits.connections = 3;
        running_server server(o);
        std::vector<event_client> three;
        for (int i = 0; i < 3; ++i) three.emplace_back(server.port());
        const auto refused = http_get(server.port(), "/subscribe/");
        CHECK(refused.status == 503);
        CHECK(refused.header("Retry-After"));
        CHECK(server.counters().refused == 1);
        three.pop_back();
        CHECK(eventually([&] { return server.counters().connections == 2; }));
        CHECK_NOTHROW(event_client(server.port()));
    }

    TEST_CASE("who is refused for his address takes no place from others") {
        sse::options o = with_threads(1);
        o.limits.connections = 10;
        o.limits.connections_per_ip = 2;
        running_server server(o);
        event_client a(server.port()), b(server.port());
        std::vector<connection> refused;
        for (int i = 0; i < 50; ++i) refused.emplace_back(server.port());
        REQUIRE(eventually([&] { return server.counters().accepted >= 52; }));
        CHECK_NOTHROW(event_client(server.port(), "/subscribe/", {}, {.source = "127.0.0.2"}));
    }

    TEST_CASE("a topic as deep as a head is long costs nothing: it is refused") {
        running_server server;
        std::string path = "/subscribe";
        for (int i = 0; i < 8000; ++i) path += "/a";
        CHECK(http_get(server.port(), path).status == 400);
        CHECK(server.try_publish(std::string(100, '/'), {.data = "x"}) == sse::errc::bad_topic);
        std::string deepest = "/subscribe";
        for (int i = 0; i < 32; ++i) deepest += "/a";
        event_client client(server.port(), deepest);
        server.publish(deepest.substr(10), {.data = "deep"});
        CHECK(client.next().data == "deep");
    }

    TEST_CASE("a client that reads slowly but steadily is not taken for a stalled one") {
        sse::options o = with_threads(1);
        o.timeouts.stall = 1500ms;
        const std::string data(12 * 1024 * 1024, 'x');
        CHECK(in_time([&] { // as long as nothing keeps this thread from reading for the stall time
            running_server server(o);
            connection slow(server.port(), {.receive_buffer = 16 * 1024});
            slow.send_request("GET", "/subscribe/");
            CHECK(slow.read_head().status == 200);
            server.broadcast({.data = data});
            // Far from the third of the system's buffer that makes it report room, in each of many
            // steps; yet never silent.
            const auto start = std::chrono::steady_clock::now();
            std::size_t taken = 0;
            while (std::chrono::steady_clock::now() - start < 4s) {
                taken += slow.read_exactly(8 * 1024).size();
                std::this_thread::sleep_for(20ms); // the client's pace is what is tested
            }
            if (server.counters().lagged != 0) return false;
            while (taken < data.size()) {
                const std::size_t most = std::min<std::size_t>(65'536, data.size() - taken);
                taken += slow.read_exactly(most).size();
            }
            return server.counters().streams == 1;
        }));
    }

    TEST_CASE("over the limit for an address: 429, while another address gets in") {
        sse::options o = with_threads(2);
        o.limits.connections_per_ip = 2;
        running_server server(o);
        event_client a(server.port()), b(server.port());
        CHECK(http_get(server.port(), "/subscribe/").status == 429);
        CHECK_NOTHROW(event_client(server.port(), "/subscribe/", {}, {.source = "127.0.0.2"}));
        a.close();
        CHECK(eventually([&] {
            try {
                event_client again(server.port());
                return true;
            } catch (const std::exception&) { return false; }
        }));
    }
}

} // namespace server_test
