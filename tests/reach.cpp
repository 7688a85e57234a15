// reach.cpp - covers >>listen: how a server is reached: several addresses at once, unix-domain
// sockets with their files and credentials, by its own client, curl and nginx too, sockets that
// systemd opens, and sockets that go from one process to the next.
#include "support/free_port.hpp"
#include "support/server.hpp"
#include "support/temporary_folder.hpp"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include <sys/stat.h>
#include <sys/un.h>

namespace reach_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

connect_options at(const std::string& host) {
    connect_options o;
    o.host = host;
    return o;
}

/// The text of what the call throws; empty if it throws nothing.
template <class F>
std::string reason(F&& call) {
    try {
        call();
    } catch (const std::exception& e) { return e.what(); }
    return {};
}

std::string loopback(const sse::server& server, std::size_t which) {
    return "127.0.0.1:" + std::to_string(port_in(server.addresses().at(which)));
}

// ---- unix-domain sockets

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path.size() < sizeof address.sun_path);
    std::memcpy(address.sun_path, path.data(), path.size());
    if (path.starts_with('@')) address.sun_path[0] = '\0';
    return address;
}

socklen_t size_of(const std::string& path) {
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
}

/// Whether somebody listens there: 0, or why not.
int connect_error(const std::string& path) {
    const descriptor one(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un at = address_of(path);
    return ::connect(one.get(), reinterpret_cast<const sockaddr*>(&at), size_of(path)) == 0 ? 0
                                                                                            : errno;
}

/// From a socket that may have a path of its own.
connection connected(const std::string& path, const std::string& from = {}) {
    descriptor one(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!from.empty()) {
        const sockaddr_un own = address_of(from);
        REQUIRE(::bind(one.get(), reinterpret_cast<const sockaddr*>(&own), size_of(from)) == 0);
    }
    const sockaddr_un at = address_of(path);
    if (::connect(one.get(), reinterpret_cast<const sockaddr*>(&at), size_of(path)) != 0) {
        throw_errno("connect to " + path);
    }
    ::fcntl(one.get(), F_SETFL, O_NONBLOCK);
    return connection(std::move(one));
}

/// Once somebody listens there: the file is there before that.
connection connected_at_last(const std::string& path) {
    std::optional<connection> made;
    REQUIRE(eventually([&] {
        try {
            made.emplace(connected(path));
        } catch (const std::system_error&) {}
        return made.has_value();
    }));
    return *std::move(made);
}

bool exists(const std::string& path) {
    struct stat found {};
    return ::lstat(path.c_str(), &found) == 0;
}

unsigned mode_of(const std::string& path) {
    struct stat found {};
    REQUIRE(::stat(path.c_str(), &found) == 0);
    return found.st_mode & 0777U;
}

/// What a dead server leaves: a file at which nobody listens.
void leave_socket(const std::string& path) {
    const descriptor one(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un at = address_of(path);
    REQUIRE(::bind(one.get(), reinterpret_cast<const sockaddr*>(&at), size_of(path)) == 0);
}

/// A route that says what it knows of its client.
void add_who(sse::server& server) {
    server.route("GET", "/who", [](sse::stream& client) -> asio::awaitable<void> {
        const sse::request& r = client.request();
        std::string text = r.client.to_string() + " ";
        text += r.credentials ? std::to_string(r.credentials->user) + ":" +
                                    std::to_string(r.credentials->group) + ":" +
                                    std::to_string(r.credentials->process)
                              : "nobody";
        co_await client.respond(200, "text/plain", text);
    });
}

std::string myself() {
    return std::to_string(::getuid()) + ":" + std::to_string(::getgid()) + ":" +
           std::to_string(::getpid());
}

/// A server at the socket "s" of a folder of its own.
struct server_at_socket {
    explicit server_at_socket(sse::options o = with_threads(1)) : server(std::move(o)) {
        add_who(server);
        server.start("unix:" + path);
    }
    temporary_folder folder{"sse-reach"};
    const std::string path = folder / "s";
    sse::server server;
};

/// The path of a program, or nothing, which is told.
std::optional<std::string> program_at(const std::string& name) {
    for (const std::string folder : {"/usr/bin/", "/usr/sbin/", "/usr/local/bin/"}) {
        if (::access((folder + name).c_str(), X_OK) == 0) return folder + name;
    }
    MESSAGE("not run: there is no " << name);
    return std::nullopt;
}

std::string example(const std::string& name) {
    const char* const directory = std::getenv("EXAMPLES");
    REQUIRE_MESSAGE(directory, "EXAMPLES must name the directory of the built examples");
    return std::string(directory) + "/" + name;
}

/// A variable of the environment, for the time of a test.
class variable {
public:
    variable(std::string name, const std::string& value) : name_(std::move(name)) {
        ::setenv(name_.c_str(), value.c_str(), 1);
    }
    ~variable() { ::unsetenv(name_.c_str()); }
    variable(const variable&) = delete;
    variable& operator=(const variable&) = delete;

private:
    const std::string name_;
};

/// What a service tells systemd.
class notifications {
public:
    explicit notifications(const std::string& path)
        : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
        const sockaddr_un at = address_of(path);
        REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&at), size_of(path)) == 0);
    }
    std::string next() {
        REQUIRE(wait_for(socket_.get(), POLLIN, patience));
        std::array<char, 1024> text{};
        const ssize_t size = ::recv(socket_.get(), text.data(), text.size(), 0);
        REQUIRE(size > 0);
        return {text.data(), static_cast<std::size_t>(size)};
    }
    /// Skips those of a watchdog.
    std::string next_state() {
        std::string one = next();
        while (one == "WATCHDOG=1") one = next();
        return one;
    }

private:
    descriptor socket_;
};

} // namespace

TEST_SUITE("reach") {
    TEST_CASE("a server listens on several addresses, and its streams are one audience") {
        sse::server server(with_threads(2));
        server.start({"127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0"});
        const std::vector<std::string> addresses = server.addresses();
        REQUIRE(addresses.size() == 3);
        CHECK(addresses[0] == "127.0.0.1:" + std::to_string(server.port()));
        CHECK(addresses[2].starts_with("127.0.0.2:"));
        CHECK(std::set(addresses.begin(), addresses.end()).size() == 3);
        event_client first(port_in(addresses[0]));
        event_client second(port_in(addresses[1]));
        event_client third(port_in(addresses[2]), "/subscribe", {}, at("127.0.0.2"));
        server.broadcast({.data = "to all"});
        for (event_client* each : {&first, &second, &third}) CHECK(each->next().data == "to all");
        CHECK(server.counters().accepted == 3);
        server.stop();
        for (event_client* each : {&first, &second, &third}) each->wait_for_close();
        server.join();
        for (const std::string& one : addresses) {
            const auto host = one.substr(0, one.find(':'));
            CHECK_THROWS_AS(connection(port_in(one), at(host)), std::system_error);
        }
    }

    TEST_CASE("many clients on each of several addresses are spread over the workers") {
        constexpr std::size_t each = 100;
        sse::server server(with_threads(2));
        server.start({"127.0.0.1:0", "127.0.0.1:0"});
        std::vector<event_client> clients;
        for (std::size_t n = 0; n < 2 * each; ++n) {
            clients.emplace_back(port_in(server.addresses()[n % 2]));
        }
        std::vector<std::size_t> of_worker(2);
        for (const sse::stream_info& one : server.streams()) ++of_worker[one.id % 2];
        CHECK(of_worker == std::vector<std::size_t>{each, each});
        server.broadcast({.data = "x"});
        for (event_client& one : clients) CHECK(one.next().data == "x");
    }

    TEST_CASE("a server that cannot listen on one of its addresses listens on none") {
        sse::server first(with_threads(1));
        first.start("127.0.0.1:0");
        sse::server second(with_threads(1));
        sse::server third(with_threads(1));
        third.start("127.0.0.1:0");
        const std::string free = loopback(third, 0);
        third.stop();
        third.join();
        const std::string why = reason([&] { second.start({free, loopback(first, 0)}); });
        CHECK(why.starts_with("sse::server: cannot listen on '" + loopback(first, 0) + "': "));
        CHECK_THROWS_AS(connection(port_in(free)), std::system_error);
        CHECK(second.addresses().empty());
        second.start(free); // it may be tried again
        CHECK(http_get(second.port(), "/health").status == 200);
    }

    TEST_CASE(
        "what is not an address, and no address at all, are refused before anything is opened") {
        sse::server server(with_threads(1));
        CHECK_THROWS_AS(server.start({"127.0.0.1:0", "nothing"}), std::invalid_argument);
        CHECK_THROWS_AS(server.start("http://127.0.0.1:0/path"), std::invalid_argument);
        CHECK_THROWS_AS(server.start("https://127.0.0.1:0"), std::invalid_argument);
        const std::vector<std::string> none;
        CHECK(reason([&] { server.start(none); }) ==
              "sse::server::start: there is no address to listen on; give one, or none at all for "
              "adopt()");
        server.start({"http://127.0.0.1:0"}); // without a certificate it is the same
        CHECK(http_get(server.port(), "/health").status == 200);
    }

#if defined(__linux__)
    TEST_CASE(
        "a port is free as soon as its server has ended, whatever a child process still has") {
        for (const bool drains : {false, true}) {
            CAPTURE(drains);
            sse::server server(with_threads(1));
            server.start("127.0.0.1:0");
            const auto address = server.addresses().front();
            // As one that posix_spawn() starts: it has all that we have until its program begins.
            const pid_t child = ::fork();
            REQUIRE(child >= 0);
            if (child == 0) {
                for (;;) ::pause();
            }
            if (drains) {
                server.drain({.window = 0ms});
            } else {
                server.stop();
                server.join();
            }
            sse::server next(with_threads(1));
            CHECK_NOTHROW(next.start(address));
            ::kill(child, SIGKILL);
            CHECK(::waitpid(child, nullptr, 0) == child);
        }
    }
#endif

    TEST_CASE("hosts are checked on loopback addresses alone, unless the program names them") {
        const auto status = [](const sse::server& of, const std::string& host) {
            return http_get(of.port(), "/health", {{"Host", host}}).status;
        };
        sse::server both(with_threads(1));
        both.start({"127.0.0.1:0", "127.0.0.2:0"});
        CHECK(status(both, "127.0.0.2") == 200);
        CHECK(status(both, "localhost") == 200);
        CHECK(status(both, "evil.example") == 421);
        sse::server open(with_threads(1));
        open.start({"127.0.0.1:0", "0.0.0.0:0"});
        CHECK(status(open, "any.example") == 200);
        sse::options o = with_threads(1);
        o.hosts = {"app.example"};
        sse::server named(std::move(o));
        named.start({"127.0.0.1:0", "0.0.0.0:0"});
        CHECK(status(named, "app.example") == 200);
        CHECK(status(named, "127.0.0.1") == 200);
        CHECK(status(named, "evil.example") == 421);
    }

    TEST_CASE("a unix-domain socket serves streams and requests, and says whose process asks") {
        server_at_socket at;
        event_client stream(connected(at.path));
        at.server.broadcast({.data = "here"});
        CHECK(stream.next().data == "here");
        connection one = connected(at.path);
        CHECK(one.request("GET", "/who").body == "0.0.0.0 " + myself());
        CHECK(one.request("GET", "/who").body == "0.0.0.0 " + myself()); // on the same connection
        // Of a client that is bound to a path longer than any address of IP.
        connection bound = connected(at.path, at.folder / std::string(60, 'c'));
        CHECK(bound.request("GET", "/who").body == "0.0.0.0 " + myself());
        CHECK(at.server.addresses() == std::vector<std::string>{"unix:" + at.path});
        CHECK_THROWS_AS(at.server.endpoint(), std::logic_error);
        at.server.stop();
        CHECK(stream.wait_for_close() == ending::fin);
        at.server.join();
        CHECK_FALSE(exists(at.path));
    }

    TEST_CASE("clients of TCP have no credentials, also beside a unix-domain socket") {
        const temporary_folder folder("sse-reach");
        sse::server server(with_threads(2));
        add_who(server);
        server.start({"unix:" + (folder / "s"), "127.0.0.1:0"});
        CHECK(http_get(server.port(), "/who").body == "127.0.0.1 nobody");
        CHECK(connected(folder / "s").request("GET", "/who").body == "0.0.0.0 " + myself());
        event_client by_tcp(server.port());
        event_client by_file(connected(folder / "s"));
        server.broadcast({.data = "both"});
        CHECK(by_tcp.next().data == "both");
        CHECK(by_file.next().data == "both");
        // Whatever it calls the host: pages of others cannot connect there.
        CHECK(connected(folder / "s").request("GET", "/who", {{"Host", "any.example"}}).status ==
              200);
        CHECK(http_get(server.port(), "/who", {{"Host", "any.example"}}).status == 421);
    }

    TEST_CASE("the file of a socket has the mode and the owner that the options name") {
        CHECK(mode_of(server_at_socket().path) == 0660);
        sse::options o = with_threads(1);
        o.unix_socket.mode = 0600;
        o.unix_socket.owner =
            std::to_string(::getuid()) + ":" + std::to_string(::getgid()); // who may give it
        CHECK(mode_of(server_at_socket(std::move(o)).path) == 0600);
        sse::options of_nobody = with_threads(1);
        of_nobody.unix_socket.owner = "no such user";
        CHECK(reason([&] { server_at_socket(std::move(of_nobody)); })
                  .starts_with("sse::server: unix_socket.owner: there is no user 'no such user' in "
                               "/etc/passwd; "));
        sse::options too_much;
        too_much.unix_socket.mode = 01777;
        CHECK(has(reason([&] { sse::server(std::move(too_much)); }), "unix_socket.mode"));
        if (::getuid() != 0) return;
        sse::options given = with_threads(1);
        given.unix_socket.owner = "nobody:nogroup";
        server_at_socket at(std::move(given));
        struct stat found {};
        REQUIRE(::stat(at.path.c_str(), &found) == 0);
        CHECK(found.st_uid == 65534);
        CHECK(found.st_gid == 65534);
    }

    TEST_CASE("a file that a dead server left is replaced, and no other") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        leave_socket(path);
        REQUIRE(connect_error(path) == ECONNREFUSED);
        sse::server first(with_threads(1));
        first.start("unix:" + path);
        CHECK(connected(path).request("GET", "/health").status == 200);

        sse::server second(with_threads(1));
        CHECK(reason([&] { second.start("unix:" + path); })
                  .starts_with("sse::server: cannot listen on 'unix:" + path +
                               "': a server has this socket; stop it, or choose another path: "));
        CHECK(connected(path).request("GET", "/health").status == 200); // it has it still

        const std::string text = folder / "notes.txt";
        std::ofstream(text) << "precious";
        CHECK(has(reason([&] { second.start("unix:" + text); }), "is not a socket"));
        std::string kept;
        std::getline(std::ifstream(text) >> std::ws, kept);
        CHECK(kept == "precious");
        const std::string link = folder / "link";
        REQUIRE(::symlink("nowhere", link.c_str()) == 0);
        CHECK(has(reason([&] { second.start("unix:" + link); }), "is not a socket"));
        CHECK(has(reason([&] { second.start("unix:" + folder.path().string()); }),
                  "is not a socket"));
    }

    TEST_CASE("a server removes its own file and not that of another") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        sse::server first(with_threads(1));
        first.start("unix:" + path);
        REQUIRE(::unlink(path.c_str()) == 0);
        sse::server second(with_threads(1));
        second.start("unix:" + path);
        first.stop();
        first.join();
        CHECK(connected(path).request("GET", "/health").status == 200);
        second.drain({.window = 0ms});
        CHECK_FALSE(exists(path));
    }

    TEST_CASE("of servers that start at once on a stale file exactly one gets the socket") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        for (int round = 0; round < 20; ++round) {
            leave_socket(path);
            std::vector<std::unique_ptr<sse::server>> servers;
            for (int n = 0; n < 4; ++n) {
                servers.push_back(std::make_unique<sse::server>(with_threads(1)));
            }
            std::atomic<int> listening{0};
            std::vector<std::thread> starting;
            for (const auto& each : servers) {
                starting.emplace_back([&, server = each.get()] {
                    if (reason([&] { server->start("unix:" + path); }).empty()) ++listening;
                });
            }
            for (std::thread& each : starting) each.join();
            CHECK(listening == 1);
            CHECK(connect_error(path) == 0);
            servers.clear();
            CHECK_FALSE(exists(path));
        }
    }

    TEST_CASE("a path that cannot be is refused with the reason and the remedy") {
        sse::server server(with_threads(1));
        const auto why = [&](const std::string& address) {
            return reason([&] { server.start(address); });
        };
        CHECK(why("unix:/" + std::string(107, 'x')) ==
              "sse::server: 'unix:/" + std::string(107, 'x') +
                  "' has a path of 108 bytes, and systems take 107; choose a shorter one, such as "
                  "unix:/run/app.sock");
        CHECK(has(why("unix:app.sock"), "write the whole path"));
        CHECK(has(why("unix:8080"), "write the whole path"));
        CHECK(has(why("unix:"), "write the whole path"));
        CHECK(has(why("unix:@"), "has no path"));
        CHECK(has(why("unix:/a\nb"), "has no path"));
        CHECK_THROWS_AS(server.start(std::string("unix:/a\0b", 9)), std::invalid_argument);
        CHECK(has(why("unix:/no/such/folder/s"),
                  "there is no folder /no/such/folder; make it first: "));
        const temporary_folder folder("sse-reach");
        const std::string longest = folder.path().string() + "/";
        const std::string name(107 - longest.size(), 'x');
        server.start("unix:" + longest + name);
        CHECK(connected(longest + name).request("GET", "/health").status == 200);
    }

#if defined(__linux__)
    TEST_CASE("a name without a file is a socket too") {
        const std::string name = "@sse-reach-" + std::to_string(::getpid());
        {
            sse::server server(with_threads(1));
            server.start("unix:" + name);
            CHECK(connected(name).request("GET", "/health").status == 200);
            sse::server second(with_threads(1));
            CHECK(has(reason([&] { second.start("unix:" + name); }), "cannot listen on"));
        }
        CHECK(connect_error(name) == ECONNREFUSED);
    }
#endif

    TEST_CASE("limits by address count the clients of a socket by their user") {
        sse::options o = with_threads(1);
        o.limits.connections_per_ip = 2;
        const temporary_folder folder("sse-reach");
        sse::server server(std::move(o));
        server.start({"unix:" + (folder / "s"), "127.0.0.1:0"});
        event_client first(connected(folder / "s"));
        event_client second(connected(folder / "s"));
        CHECK(connected(folder / "s").request("GET", "/subscribe").status == 429);
        CHECK(connected(folder / "s").request("GET", "/health").status == 200);
        event_client by_tcp(server.port()); // counts apart
        first.close();
        CHECK(eventually(
            [&] { return connected(folder / "s").request("HEAD", "/subscribe").status != 429; }));
    }

    TEST_CASE("a proxy at a socket names its clients only if the options trust it") {
        const header_list forwarded{{"X-Forwarded-For", "203.0.113.9"}};
        {
            server_at_socket at;
            CHECK(connected(at.path).request("GET", "/who", forwarded).body ==
                  "0.0.0.0 " + myself());
        }
        sse::options o = with_threads(1);
        o.proxy.trusted = {"unix"};
        o.limits.connections_per_ip = 1;
        const temporary_folder folder("sse-reach");
        sse::server server(std::move(o));
        add_who(server);
        server.start({"unix:" + (folder / "s"), "127.0.0.1:0"});
        CHECK(connected(folder / "s").request("GET", "/who", forwarded).body ==
              "203.0.113.9 " + myself());
        CHECK(http_get(server.port(), "/who", forwarded).body == "127.0.0.1 nobody");
        event_client first(connected(folder / "s"), "/subscribe", forwarded);
        CHECK(connected(folder / "s").request("GET", "/subscribe", forwarded).status == 429);
        event_client other(connected(folder / "s"), "/subscribe",
                           {{"X-Forwarded-For", "203.0.113.10"}});
        // A hop that calls itself by the address of no client is not a proxy of this machine.
        CHECK(connected(folder / "s")
                  .request("GET", "/who", {{"X-Forwarded-For", "198.51.100.1, 203.0.113.11"}})
                  .body == "203.0.113.11 " + myself());
    }

    TEST_CASE("a client of TCP that is gone when its request is read is not a proxy at a socket") {
        std::mutex mutex;
        std::vector<std::string> clients;
        sse::options o = with_threads(1);
        o.proxy.trusted = {"unix"};
        o.hooks.log = [&](const sse::log_entry& entry) {
            if (entry.what != "request") return;
            const std::lock_guard lock(mutex);
            clients.push_back(entry.client.to_string());
        };
        asio::io_context io;
        sse::server server(io, std::move(o));
        server.start("127.0.0.1:0");
        connection peer(server.port());
        const auto run_until = [&](const auto& condition) {
            const auto until = deadline(patience);
            while (!condition() && !until.passed()) io.run_for(10ms);
            return condition();
        };
        REQUIRE(run_until([&] { return server.counters().connections == 1; }));
        while (io.poll() > 0) continue; // it waits, and asks who is there when a request comes
        peer.send_request("GET", "/health", {{"X-Forwarded-For", "203.0.113.9"}});
        peer.reset(); // before the server has looked
        REQUIRE(run_until([&] { return server.counters().connections == 0; }));
#if defined(__linux__) // others throw away what came before a reset
        REQUIRE(clients.size() == 1);
#endif
        for (const std::string& one : clients) CHECK(one != "203.0.113.9");
        server.stop();
        io.run_for(patience);
    }

    TEST_CASE("a socket that another process hands over with a request knows its peer") {
        sse::server server(with_threads(1));
        add_who(server);
        server.start();
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
        connection mine{descriptor(ends[0])};
        server.adopt(ends[1], "GET /who HTTP/1.1\r\nHost: a\r\n\r\n");
        CHECK(mine.read_response().body == "0.0.0.0 " + myself());
    }

    TEST_CASE("a client follows a server at a unix-domain socket over restarts") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        auto server = std::make_unique<sse::server>(with_threads(1));
        server->start("unix:" + path);
        asio::io_context io;
        sse::client_options how;
        how.retry = 10ms;
        sse::client source(io, "unix:" + path + ":/subscribe/room?x=1", how);
        CHECK(source.url() == "unix:" + path + ":/subscribe/room?x=1");
        const auto next = [&] {
            std::optional<sse::event> found;
            asio::co_spawn(io, source.next(), [&](std::exception_ptr failed, auto one) {
                if (failed) std::rethrow_exception(failed);
                found = std::move(one);
            });
            const auto until = deadline(patience);
            while (!found && !until.passed()) {
                io.restart();
                io.run_for(10ms);
                if (server) static_cast<void>(server->try_publish("/room", {.data = "x"}));
            }
            REQUIRE(found);
            return *found;
        };
        CHECK(next().data == "x");
        server.reset(); // the file goes: there is nothing to connect to
        server = std::make_unique<sse::server>(with_threads(1));
        server->start("unix:" + path);
        while (next().type != "gap") {} // another epoch
        CHECK(next().data == "x");
        CHECK(source.connections() == 2);
    }

    TEST_CASE("curl reads a stream at a unix-domain socket") {
        const auto curl = program_at("curl");
        if (!curl) return;
        server_at_socket at;
        process reader({*curl, "-sN", "--unix-socket", at.path, "http://localhost/subscribe"});
        REQUIRE(eventually([&] { return at.server.counters().streams == 1; }));
        at.server.broadcast({.event = "greeting", .data = "hello"});
        CHECK(reader.read_line_with("event: ") == "event: greeting");
        CHECK(reader.read_line() == "data: hello");
        process asking({*curl, "-s", "--unix-socket", at.path, "http://localhost/who"});
        CHECK(asking.read_to_end() == "0.0.0.0 " + std::to_string(::getuid()) + ":" +
                                          std::to_string(::getgid()) + ":" +
                                          std::to_string(asking.pid()));
    }

    TEST_CASE("nginx is a proxy for a unix-domain socket, and names its clients") {
        const auto nginx = program_at("nginx");
        if (!nginx) return;
        sse::options o = with_threads(1);
        o.proxy.trusted = {"unix"};
        o.unix_socket.mode = 0666; // its workers are another user's
        server_at_socket at(std::move(o));
        std::filesystem::permissions(at.folder.path(), std::filesystem::perms(0755));
        const std::string port = std::to_string(free_port());
        std::ofstream(at.folder / "nginx.conf")
            << "daemon off; pid " << at.folder / "pid"
            << "; error_log stderr crit;\n"
            << "events {}\n"
            << "http {\n"
            << "    access_log off;\n"
            << "    client_body_temp_path " << at.folder / "body"
            << ";\n"
            << "    proxy_temp_path " << at.folder / "proxy"
            << ";\n"
            << "    fastcgi_temp_path " << at.folder / "fastcgi"
            << ";\n"
            << "    uwsgi_temp_path " << at.folder / "uwsgi"
            << ";\n"
            << "    scgi_temp_path " << at.folder / "scgi"
            << ";\n"
            << "    upstream app { server unix:" << at.path << "; }\n"
            << "    server {\n"
            << "        listen 127.0.0.1:" << port << ";\n"
            << "        location / {\n"
            << "            proxy_pass http://app;\n"
            << "            proxy_http_version 1.1;\n"
            << "            proxy_set_header Host $host;\n"
            << "            proxy_set_header Connection '';\n"
            << "            proxy_set_header X-Forwarded-For $remote_addr;\n"
            << "            proxy_buffering off;\n"
            << "        }\n"
            << "    }\n"
            << "}\n";
        process proxy({*nginx, "-p", at.folder.path().string(), "-c", at.folder / "nginx.conf"});
        const std::uint16_t reached = port_in(":" + port);
        REQUIRE(eventually([&] {
            try {
                return http_get(reached, "/health").status == 200;
            } catch (const std::system_error&) { return false; } // it does not listen yet
        }));
        const std::string who = http_get(reached, "/who").body;
        CHECK(who.starts_with("127.0.0.1 "));
        CHECK_FALSE(has(who, "nobody")); // the proxy's own credentials
        event_client stream(reached);
        at.server.broadcast({.data = "through nginx"});
        CHECK(stream.next().data == "through nginx");
        proxy.signal(SIGTERM);
        CHECK(proxy.wait_for_exit().code == 0);
    }

    TEST_CASE("a client waits until a full queue has room, and gives up in time") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        descriptor listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        const sockaddr_un at = address_of(path);
        REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&at), size_of(path)) == 0);
        REQUIRE(::listen(listener.get(), 0) == 0);
        connection fills = connected(path);
        asio::io_context io;
        sse::client_options how;
        how.reconnect = false;
        how.connect_timeout = 100ms;
        sse::client source(io, "unix:" + path, how);
        std::error_code why;
        asio::co_spawn(io, source.next(), [&](std::exception_ptr failed, auto) {
            try {
                if (failed) std::rethrow_exception(failed);
            } catch (const std::system_error& e) { why = e.code(); }
        });
        io.run_for(patience);
        CHECK(why == sse::errc::timed_out);

        how.connect_timeout = 30s;
        sse::client patient(io, "unix:" + path, how);
        std::optional<sse::event> found;
        asio::co_spawn(io, patient.next(), [&](std::exception_ptr failed, auto one) {
            if (failed) std::rethrow_exception(failed);
            found = std::move(one);
        });
        io.restart();
        io.run_for(50ms); // it finds the queue full
        std::thread server([&] {
            const descriptor first(::accept(listener.get(), nullptr, nullptr));
            connection second{descriptor(::accept(listener.get(), nullptr, nullptr))};
            ::fcntl(second.native_handle(), F_SETFL, O_NONBLOCK);
            const std::string head = second.read_through("\r\n\r\n");
            CHECK(head.starts_with("GET / HTTP/1.1\r\nHost: localhost\r\n"));
            second.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
                        "data: served\n\n");
        });
        const auto until = deadline(patience);
        while (!found && !until.passed()) {
            io.restart();
            io.run_for(10ms);
        }
        server.join();
        REQUIRE(found);
        CHECK(found->data == "served");
    }

    TEST_CASE("a client's URL of a socket is refused if it can name none") {
        asio::io_context io;
        const auto why = [&](const std::string& url) {
            return reason([&] { sse::client(io, url); });
        };
        CHECK(has(why("unix:events"), "write the whole path"));
        CHECK(has(why("unix:/" + std::string(200, 'x') + ":/e"), "has a path of 201 bytes"));
        CHECK(why("unix:/run/a.sock:/events?topic=b#c").empty());
        CHECK(sse::client(io, "unix:/run/a.sock:/events#c").url() == "unix:/run/a.sock:/events");
        CHECK(sse::client(io, "unix:/run/a.sock").url() == "unix:/run/a.sock:/");
        CHECK(sse::client(io, "unix:/run/a.sock:?x").url() == "unix:/run/a.sock:/?x");
        CHECK(has(why("ftp://a/"), "must begin with http://, https:// or unix:/"));
    }

    TEST_CASE("a redirect stays at a socket if it names no host, and leads to none otherwise") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        sse::server server(with_threads(1));
        const auto redirect = [&](const std::string& from, const std::string& to) {
            server.route("GET", from, [to](sse::stream& client) -> asio::awaitable<void> {
                client.add_header("Location", to);
                co_await client.respond(307, "text/plain", "");
            });
        };
        server.route("GET", "/end", [](sse::stream& client) -> asio::awaitable<void> {
            const auto secret = client.request().header("X-Secret").value_or("none");
            co_await client.send({.data = secret});
        });
        redirect("/here", "/end");
        redirect("/to-socket", "unix:" + path + ":/end");
        redirect("/to-other", "unix:" + (folder / "other") + ":/end");
        server.start({"unix:" + path, "127.0.0.1:0"});
        const auto follow = [&](const std::string& url) {
            asio::io_context io;
            sse::client_options how;
            how.reconnect = false;
            how.headers = {{"X-Secret", "kept"}};
            sse::client source(io, url, how);
            std::string result;
            asio::co_spawn(io, source.next(), [&](std::exception_ptr failed, auto one) {
                try {
                    if (failed) std::rethrow_exception(failed);
                    result = one ? std::string(one->data) : "over";
                } catch (const std::exception& e) { result = e.what(); }
            });
            io.run_for(patience);
            return result;
        };
        const std::string by_tcp = "http://127.0.0.1:" + std::to_string(server.port());
        CHECK(follow("unix:" + path + ":/here") == "kept");
        CHECK(follow("unix:" + path + ":/to-socket") == "kept");
        CHECK(has(follow("unix:" + path + ":/to-other"), "a redirect must not lead to a socket"));
        CHECK(has(follow(by_tcp + "/to-socket"), "a redirect must not lead to a socket"));
    }

    TEST_CASE("systemd opens the sockets, and starts a server when somebody connects") {
        const auto activate = program_at("systemd-socket-activate");
        if (!activate) return;
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        const std::string port = std::to_string(free_port());
        process clock(
            {*activate, "-l", "127.0.0.1:" + port, "-l", path, example("clock"), "systemd:"});
        event_client first(connected_at_last(path)); // starts it
        CHECK(first.next().type == "tick");
        CHECK(port_in(clock.read_line()) == port_in(":" + port));
        event_client second(port_in(":" + port));
        CHECK(second.next().type == "tick");
        clock.signal(SIGTERM);
        clock.wait_for_exit();
        CHECK(exists(path)); // it is not the server's
    }

    TEST_CASE("of the sockets that systemd opens a server takes those of a name") {
        const auto activate = program_at("systemd-socket-activate");
        if (!activate) return;
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        const std::string port = std::to_string(free_port());
        process hub({*activate, "-l", path, "-l", "127.0.0.1:" + port, "--fdname=api:web",
                     example("hub"), "--listen", "systemd:web", "--listen", "127.0.0.1:0"});
        connection waits = connected_at_last(path); // starts it, and is served by nobody
        const std::string line = hub.read_line();
        CHECK(line.starts_with("hub: open http://127.0.0.1:" + port + "/ or http://127.0.0.1:"));
        CHECK(http_get(port_in(":" + port), "/health").status == 200);
        CHECK(http_get(port_in(line), "/health").status == 200);
        hub.signal(SIGTERM);
        hub.wait_for_exit();
        process other({*activate, "-l", "127.0.0.1:" + port, "--fdname=api", "/bin/sh", "-c",
                       "exec " + example("hub") + " --listen systemd:web 2>&1"});
        REQUIRE(eventually([&] {
            try {
                connection starts(port_in(":" + port));
                return true;
            } catch (const std::system_error&) { return false; }
        }));
        CHECK(has(other.read_line(),
                  "systemd has opened no socket of this name; it is "
                  "FileDescriptorName= in the .socket unit, and there are: api"));
    }

    TEST_CASE("what systemd has not opened, or not for this process, is told with the remedy") {
        sse::server server(with_threads(1));
        const auto why = [&] { return reason([&] { server.start("systemd:"); }); };
        const std::string none = "sse::server: cannot listen on 'systemd:': systemd has opened no "
                                 "socket for this process; start it by a .socket unit";
        CHECK(why().starts_with(none));
        const variable count("LISTEN_FDS", "1");
        CHECK(why().starts_with(none));
        const variable other("LISTEN_PID", "1");
        CHECK(why().starts_with(none));
    }

    TEST_CASE("systemd is told only if it wants to know") {
        CHECK_FALSE(sse::notify_systemd("READY=1"));
        const temporary_folder folder("sse-reach");
        const variable where("NOTIFY_SOCKET", folder / "notify");
        CHECK_FALSE(sse::notify_systemd("READY=1")); // nobody is there
        notifications told(folder / "notify");
        CHECK(sse::notify_systemd("READY=1\nSTATUS=well"));
        CHECK(told.next() == "READY=1\nSTATUS=well");
        const variable relative("NOTIFY_SOCKET", "notify");
        CHECK_FALSE(sse::notify_systemd("READY=1"));
#if defined(__linux__)
        const std::string name = "@sse-reach-notify-" + std::to_string(::getpid());
        notifications by_name(name);
        const variable abstract("NOTIFY_SOCKET", name);
        CHECK(sse::notify_systemd("STOPPING=1"));
        CHECK(by_name.next() == "STOPPING=1");
#endif
    }

    TEST_CASE("the hub tells systemd when it is ready, that it lives, and when it ends") {
        const temporary_folder folder("sse-reach");
        notifications told(folder / "notify");
        const variable where("NOTIFY_SOCKET", folder / "notify");
        const variable watchdog("WATCHDOG_USEC", "100000");
        process hub({example("hub"), "--listen", "unix:" + (folder / "s"), "--socket-mode", "600"});
        CHECK(hub.read_line() == "hub: open unix:" + (folder / "s"));
        CHECK(told.next() == "READY=1");
        CHECK(mode_of(folder / "s") == 0600);
        for (int n = 0; n < 3; ++n) CHECK(told.next() == "WATCHDOG=1");
        hub.signal(SIGTERM);
        CHECK(told.next_state() == "STOPPING=1");
        CHECK(hub.wait_for_exit().code == 0);
        CHECK_FALSE(exists(folder / "s"));
    }

    TEST_CASE("a server hands its sockets over only once it runs, and to a program that runs") {
        sse::server server(with_threads(1));
        CHECK_THROWS_AS(server.hand_over({"/bin/true"}), std::logic_error);
        server.start("127.0.0.1:0");
        CHECK_THROWS_AS(server.hand_over({}), std::invalid_argument);
        CHECK(reason([&] { server.hand_over({"/no/such/program"}); }) ==
              "sse::server::hand_over: cannot start '/no/such/program': No such file or directory");
        CHECK(has(reason([&] {
                      server.hand_over({"sh", "-c", "exit 3"});
                  }),
                  "'sh' ended with status 3 before it was ready; its output says why"));
        CHECK(has(reason([&] {
                      server.hand_over({"sh", "-c", "kill -9 $$"});
                  }),
                  "'sh' ended by signal 9 before it was ready"));
        CHECK(has(reason([&] {
                      server.hand_over({"sleep", "1000"}, 50ms);
                  }),
                  "'sleep' was not ready in time, and was killed"));
        CHECK(http_get(server.port(), "/health").status == 200);
        event_client stream(server.port());
        server.broadcast({.data = "as before"});
        CHECK(stream.next().data == "as before");
        server.stop();
        CHECK_THROWS_AS(server.hand_over({"/bin/true"}), std::system_error);
    }

    TEST_CASE(
        "a hub hands TCP and a unix-domain socket over, and its clients go on with their ids") {
        const temporary_folder folder("sse-reach");
        const std::string path = folder / "s";
        process first({example("hub"), "--listen", "127.0.0.1:0", "--listen", "unix:" + path,
                       "--publish-token", "secret", "--log-dir", folder / "log", "--drain-window",
                       "0.2"});
        const std::string opened = first.read_line();
        const std::uint16_t port = port_in(opened.substr(0, opened.find(" or ")));
        const header_list token{{"Authorization", "Bearer secret"}, {"Content-Type", "text/plain"}};
        const auto publish = [&](const std::string& text) {
            return http_request(port, "POST", "/publish/room", token, text).status;
        };
        event_client by_tcp(port, "/subscribe/room");
        event_client by_file(connected(path), "/subscribe/room");
        REQUIRE(publish("one") == 202);
        const std::string id = by_tcp.next().id;
        CHECK(by_file.next().id == id);

        first.signal(SIGUSR2);
        std::string handed, reopened;
        while (handed.empty() || reopened.empty()) { // by two processes, to one pipe
            const std::string line = first.read_line();
            if (has(line, "handed over to process ")) handed = line;
            if (line.starts_with("hub: open ")) reopened = line;
        }
        CHECK(reopened == opened);
        const auto successor = static_cast<pid_t>(std::stol(handed.substr(handed.rfind(' '))));
        struct ends_with { // which is not a child of ours
            pid_t process;
            ~ends_with() { ::kill(process, SIGTERM); }
        } const ended{successor};
        by_tcp.wait_for_close();
        by_file.wait_for_close();
        CHECK(publish("two") == 202);
        event_client again(port, "/subscribe/room", {{"Last-Event-ID", id}});
        CHECK(again.next().data == "two");
        event_client by_file_again(connected(path), "/subscribe/room", {{"Last-Event-ID", id}});
        CHECK(by_file_again.next().data == "two");
        CHECK(first.wait_for_exit().code == 0);
        CHECK(connected(path).request("GET", "/health").status == 200);
        ::kill(successor, SIGTERM);
        CHECK(eventually([&] { return !exists(path); })); // the next one has the file
    }

    TEST_CASE("two hand-overs under load lose nothing, refuse nobody and leave no gap") {
        constexpr std::size_t clients = 100, messages = 300;
        const temporary_folder folder("sse-reach");
        process hub({example("hub"), "--port", "0", "--publish-token", "secret", "--log-dir",
                     folder / "log", "--drain-window", "0.5"});
        const std::uint16_t port = port_in(hub.read_line());
        struct last_one { // which is not a child of ours
            pid_t process = 0;
            ~last_one() {
                if (process > 0) ::kill(process, SIGTERM);
            }
        } newest;

        asio::io_context io;
        std::vector<sse::client> sources;
        std::vector<std::vector<std::string>> got(clients);
        std::size_t gaps = 0, done = 0;
        const std::string url = "http://127.0.0.1:" + std::to_string(port) + "/subscribe/room";
        const auto follow = [&](std::size_t which) -> asio::awaitable<void> {
            for (;;) {
                const auto one = co_await sources[which].next();
                if (!one) break;
                if (one->type == "gap") ++gaps;
                if (one->type == "message") got[which].push_back(one->data);
                if (one->data == "end") break;
            }
            if (++done == clients) io.stop();
        };
        for (std::size_t n = 0; n < clients; ++n) sources.emplace_back(io, url);
        for (std::size_t n = 0; n < clients; ++n) {
            asio::co_spawn(io, follow(n), [](std::exception_ptr failed) {
                if (failed) std::rethrow_exception(failed);
            });
        }
        std::string failure; // of the thread that reads
        std::thread reading([&] { failure = reason([&] { io.run_for(4 * patience); }); });
        const header_list headers{{"Authorization", "Bearer secret"},
                                  {"Content-Type", "text/plain"}};
        std::vector<std::string> expected;
        const std::string refused = reason([&] {
            const auto streams = [&] { return http_get(port, "/health").body; };
            if (!eventually([&] {
                    return streams().starts_with("Active connections: " + std::to_string(clients));
                })) {
                throw timed_out("not all are there: " + streams());
            }
            const auto publish = [&](const std::string& text) {
                const auto put = [&] { // while one lets go, it takes nothing more
                    const int status =
                        http_request(port, "POST", "/publish/room", headers, text).status;
                    if (status != 202 && status != 503) {
                        throw bad_response("status " + std::to_string(status));
                    }
                    return status == 202;
                };
                if (!eventually(put)) throw timed_out("nobody takes " + text);
                expected.push_back(text);
            };
            for (std::size_t n = 0; n < messages; ++n) {
                publish(std::to_string(n));
                if (n == messages / 3) hub.signal(SIGUSR2);
                if (n != 2 * messages / 3) continue;
                const std::string line = hub.read_line_with("handed over to process ");
                newest.process = static_cast<pid_t>(std::stol(line.substr(line.rfind(' '))));
                hub.wait_for_exit();
                ::kill(newest.process, SIGUSR2);
            }
            publish("end");
        });
        reading.join();
        const std::string line = hub.read_line_with("handed over to process ");
        newest.process = static_cast<pid_t>(std::stol(line.substr(line.rfind(' '))));
        CHECK(refused.empty());
        CHECK(failure.empty());
        CHECK(done == clients);
        CHECK(gaps == 0);
        for (std::size_t n = 0; n < clients; ++n) {
            CAPTURE(n);
            CHECK(got[n] == expected);
        }
    }

    TEST_CASE("a hub goes on if the one that is to take over cannot") {
        const temporary_folder folder("sse-reach");
        const std::string copy = folder / "hub";
        std::filesystem::copy_file(example("hub"), copy);
        process hub({"/bin/sh", "-c", "exec " + copy + " --port 0 2>&1"});
        const std::uint16_t port = port_in(hub.read_line());
        event_client stream(port);
        std::filesystem::remove(copy);
        std::ofstream(copy) << "#!/bin/sh\nexit 7\n";
        std::filesystem::permissions(copy, std::filesystem::perms(0755));
        for (int n = 0; n < 2; ++n) {
            hub.signal(SIGUSR2);
            CHECK(
                has(hub.read_line_with("hub: goes on"), "ended with status 7 before it was ready"));
            CHECK(http_get(port, "/health").status == 200);
        }
        hub.signal(SIGTERM);
        CHECK(hub.read_line() == "hub: disconnected 1 client");
        CHECK(hub.wait_for_exit().code == 0);
    }
}

} // namespace reach_test
