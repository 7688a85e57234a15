// The examples as a user starts them, and the hub with curl and with 10,000 clients.
#include "support/client.hpp"
#include "support/script_server.hpp"
#include "support/swarm.hpp"
#include "support/temporary_folder.hpp"

#include <asio/ip/host_name.hpp>
#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>

namespace examples_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

std::string example(const std::string& name) {
    const char* const directory = std::getenv("EXAMPLES");
    REQUIRE_MESSAGE(directory, "EXAMPLES must name the directory of the built examples");
    return std::string(directory) + "/" + name;
}

/// A hub on a free port, with the flags given.
struct running_hub : process {
    explicit running_hub(std::vector<std::string> flags = {})
        : process(with_port(std::move(flags))), port(port_in(read_line())) {}

    static std::vector<std::string> with_port(std::vector<std::string> flags) {
        std::vector<std::string> command{example("hub"), "--port", "0"};
        command.insert(command.end(), flags.begin(), flags.end());
        return command;
    }
    response publish(const std::string& topic, const std::string& type, const std::string& body,
                     const std::string& token = "secret") {
        return http_request(port, "POST", "/publish/" + topic,
                            {{"Authorization", "Bearer " + token}, {"Content-Type", type}}, body);
    }

    const std::uint16_t port;
};

/// A hub that is started by a shell, which says where its output goes; stdout must stay a pipe.
struct hub_in_shell : process {
    explicit hub_in_shell(const std::string& flags_and_redirections, const std::string& before = "")
        : process({"/bin/sh", "-c",
                   before + "exec " + example("hub") + " --port 0 " + flags_and_redirections}),
          port(port_in(read_line())) {}

    /// So many requests, each of which leaves some eight kilobytes in a log.
    void fill_log(int requests) const {
        const std::string target = "/" + std::string(8000, 'x');
        for (int i = 0; i < requests; ++i) REQUIRE(http_get(port, target).status == 404);
    }
    void check_ends_on(int number) {
        signal(number);
        CHECK(wait_for_exit().code == 0);
    }

    const std::uint16_t port;
};

/// A named pipe that is there for the time of a test. It has a reader from the start, that need not
/// read.
struct named_pipe {
    named_pipe() : path("/tmp/sse-test-pipe-" + std::to_string(::getpid())) {
        ::unlink(path.c_str());
        REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
        reader = descriptor(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
        REQUIRE(reader);
    }
    ~named_pipe() { ::unlink(path.c_str()); }
    /// Reads until a text has come.
    bool brings(std::string_view text) {
        std::string seen;
        return eventually([&] {
            char bytes[64 * 1024];
            const ssize_t n = ::read(reader.get(), bytes, sizeof bytes);
            if (n > 0) seen.append(bytes, static_cast<std::size_t>(n));
            return has(seen, text);
        });
    }

    const std::string path;
    descriptor reader;
};

/// An example that takes its address as its first argument.
struct running_example : process {
    explicit running_example(const std::string& name, std::vector<std::string> more = {})
        : process(with_address(name, std::move(more))), port(port_in(read_line())) {}

    static std::vector<std::string> with_address(const std::string& name,
                                                 std::vector<std::string> more) {
        std::vector<std::string> command{example(name), "127.0.0.1:0"};
        command.insert(command.end(), more.begin(), more.end());
        return command;
    }
    std::string url(const std::string& path) const {
        return "http://127.0.0.1:" + std::to_string(port) + path;
    }
    void check_ends_on_signal() {
        signal(SIGINT);
        CHECK(wait_for_exit().code == 0);
    }

    const std::uint16_t port;
};

const std::string form = "application/x-www-form-urlencoded";

/// The ids of the events in the text of a stream, in order.
std::vector<std::string> ids_in(const std::string& text) {
    std::vector<std::string> ids;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with("id: ")) ids.push_back(line.substr(4));
    }
    return ids;
}

/// Runs a program that must end by itself: its status, and what it says with stderr joined.
std::pair<int, std::string> run(const std::string& command) {
    process shell({"/bin/sh", "-c", command + " 2>&1"});
    std::string text = shell.read_to_end();
    return {shell.wait_for_exit().code.value_or(-1), text};
}

/// What curl prints when it is given these arguments, and that it says all is well.
std::string curl(const std::string& arguments) {
    const auto [status, text] = run("curl -sSN --max-time 10 " + arguments);
    CHECK_MESSAGE(status == 0, text);
    return text;
}

std::vector<std::string> data_of(const std::vector<decoded>& events) {
    std::vector<std::string> all;
    for (const decoded& event : events) all.push_back(event.data);
    return all;
}

/// A file that is there for the time of a test.
struct scratch_file {
    scratch_file() : path("/tmp/sse-test-" + std::to_string(::getpid())) { replace(""); }
    ~scratch_file() { ::unlink(path.c_str()); }
    void append(const std::string& text) { std::ofstream(path, std::ios::app) << text; }
    void replace(const std::string& text) { // as log rotation does: by another file
        std::ofstream(path + ".new") << text;
        REQUIRE(std::rename((path + ".new").c_str(), path.c_str()) == 0);
    }
    void cut() { std::ofstream(path, std::ios::trunc); }
    const std::string path;
};

} // namespace

TEST_SUITE("examples") {
    TEST_CASE("clock tells the time to everyone and ends on Ctrl-C") {
        process clock({example("clock"), "127.0.0.1:0"});
        event_client client(port_in(clock.read_line()));
        const auto event = client.next();
        CHECK(event.type == "tick");
        CHECK(event.data.size() == 24);
        clock.signal(SIGINT);
        CHECK(clock.wait_for_exit().signal == SIGINT);
    }

    TEST_CASE("sysenv publishes env on a topic below the one that its page follows") {
        process sysenv({example("sysenv"), "127.0.0.1:0"});
        const auto port = port_in(sysenv.read_line());
        event_client client(port, "/subscribe/sysenv");
        const auto event = client.next();
        CHECK(event.type == "env");
        CHECK(event.data.starts_with("{"));
        const auto page = http_get(port, "/");
        CHECK(page.header("Content-Type") == "text/html; charset=utf-8");
        CHECK(has(page.body, "/subscribe/sysenv"));
        CHECK_FALSE(has(page.body, "innerHTML"));
    }

    TEST_CASE("the hub names every option in its help") {
        const auto [status, help] = run(example("hub") + " --help");
        CHECK(status == 0);
        for (const char* flag : {"--address",
                                 "--port",
                                 "--listen",
                                 "--socket-mode",
                                 "--socket-owner",
                                 "--threads",
                                 "--prefix",
                                 "--health",
                                 "--heartbeat",
                                 "--heartbeat-ids",
                                 "--compress",
                                 "--allow-origin",
                                 "--allow-credentials",
                                 "--foreign-origins",
                                 "--allow-method",
                                 "--allow-header",
                                 "--expose-header",
                                 "--preflight-age",
                                 "--subscribe-token",
                                 "--host",
                                 "--trusted-proxy",
                                 "--forwarded",
                                 "--proxy-protocol",
                                 "--header-timeout",
                                 "--body-timeout",
                                 "--idle-timeout",
                                 "--stall-timeout",
                                 "--max-stream-age",
                                 "--coalesce",
                                 "--publish-timeout",
                                 "--shutdown-timeout",
                                 "--drain-window",
                                 "--max-connections",
                                 "--max-connections-per-ip",
                                 "--connect-rate-per-ip",
                                 "--over-limit",
                                 "--retry-after",
                                 "--max-head-bytes",
                                 "--max-header-lines",
                                 "--max-body-bytes",
                                 "--max-unsent-bytes",
                                 "--ring-capacity",
                                 "--history",
                                 "--history-bytes",
                                 "--history-age",
                                 "--history-for",
                                 "--gap-event",
                                 "--lag",
                                 "--max-topics",
                                 "--metrics",
                                 "--log-dir",
                                 "--redis",
                                 "--redis-keeps-all",
                                 "--nats",
                                 "--tls-cert",
                                 "--tls-key",
                                 "--tls-client-ca",
                                 "--tls-client-crl",
                                 "--name",
                                 "--log",
                                 "--publish-token",
                                 "--admin-token",
                                 "--demo",
                                 "--version"}) {
            CAPTURE(flag);
            CHECK(has(help, std::string("  ") + flag + ' '));
        }
    }

    TEST_CASE("a bad flag says what is wrong and ends with status 2") {
        const auto check_refused = [](const std::string& flags, std::string_view reason) {
            CAPTURE(flags);
            const auto [status, text] = run(example("hub") + " " + flags);
            CHECK(status == 2);
            CHECK_MESSAGE(has(text, reason), text);
        };
        check_refused("--treads 2", "did you mean --threads?");
        check_refused("--port 70000", "--port cannot be '70000'");
        check_refused("--port", "--port needs a value");
        check_refused("--ring-capacity 1000", "power of two");
        check_refused("--preflight-age 0.5", "use a whole number"); // not 0: the browser decides
        check_refused("--heartbeat soon", "--heartbeat cannot be 'soon'");
        check_refused("--allow-origin https://app.example/", "without a path");
        check_refused("--over-limit medium", "use hard or soft");
        check_refused("--heartbeat-ids maybe", "use on or off");
        check_refused("--compress gzip", "use on or off");
        check_refused("--lag wait", "use disconnect or skip or conflate or hold-back");
        check_refused("--history-for /prices", "use a topic and a number");
        check_refused("--history-for /prices=many", "use a whole number");
        check_refused("--history-for a//b=5", "--history-for");
        check_refused("--trusted-proxy nobody", "--trusted-proxy");
        check_refused("--allow-credentials", "--allow-credentials needs --allow-origin");
        check_refused("--demo=yes", "switch");
        check_refused("--log-dir ''", "use a folder");
        check_refused("--redis 10.0.0.1:6379,,10.0.0.2:6379", "with commas between them");
        check_refused("--nats ''", "with commas between them");
        check_refused("--name 'a b'", "use 1 to 64 letters");
        check_refused("--port 0 --metrics metrics", "--metrics 'metrics': ");
        check_refused("--redis-keeps-all", "give its address with --redis");
        check_refused("--log-dir x --redis 127.0.0.1:1",
                      "--log-dir and --redis exclude each other");
        check_refused("--nats nats://h --redis h:1", "--redis and --nats exclude each other");
        check_refused("demo", "flags begin with --");
        check_refused("--listen ''", "use a place such as 127.0.0.1:8080 or unix:/run/hub.sock");
        check_refused("--listen :0 --port 0",
                      "--listen says where, and so do --address and --port");
        check_refused("--socket-mode 1777", "use an octal number from 0 to 777, such as 660");
        check_refused("--socket-mode 68", "use an octal number");
    }

    TEST_CASE("a certificate that the hub cannot take is told with what to do") {
        const auto [status, text] = run(example("hub") + " --tls-cert /nowhere --tls-key /nowhere");
        CHECK(status == 2);
        CHECK_MESSAGE((has(text, "--tls-cert '/nowhere': ") ||
                       has(text, "this hub was built without TLS; install libssl-dev")),
                      text);
    }

    TEST_CASE("a bus that the hub cannot take is told with what to do") {
        const auto [status, text] = run(example("hub") + " --redis nobody");
        CHECK(status == 2);
        CHECK_MESSAGE((has(text, "--redis: 'nobody' must be like host:6379") ||
                       has(text, "--redis: this hub was built without it; install libhiredis-dev")),
                      text);
        const auto [other, said] = run(example("hub") + " --nats 'a b'");
        CHECK(other == 2);
        CHECK_MESSAGE((has(said, "--nats: each is one URL") ||
                       has(said, "--nats: this hub was built without it; install libnats-dev")),
                      said);
        for (const std::string of : {"redis", "nats"}) {
            const auto [refused, why] = run(example("hub") + " --" + of + " user:hidden@host:1");
            CHECK(refused == 2);
            CHECK(has(why, "everyone on this machine could read the password"));
            CHECK(has(why, of == "redis" ? "SSE_HUB_REDIS_PASSWORD" : "SSE_HUB_NATS_PASSWORD"));
            CHECK_FALSE(has(why, "hidden")); // it may go to a log
        }
        const auto no_folder = run(example("hub") + " --port 0 --log-dir /dev/null/x");
        CHECK(no_folder.first == 1);
        CHECK(has(no_folder.second, "hub: /dev/null/x: "));
    }

    TEST_CASE("what the server finds wrong is told with the flag that was given, and its value") {
        const auto check_named = [](const std::string& flags, std::string_view start) {
            CAPTURE(flags);
            const auto [status, text] = run(example("hub") + " " + flags);
            CHECK(status == 2);
            CHECK_MESSAGE(text.starts_with("hub: " + std::string(start)), text);
            CHECK_FALSE(has(text, "sse::options"));
        };
        check_named("--allow-method 'a b'", "--allow-method 'a b': ");
        check_named("--expose-header X-A --expose-header 'x y'", "--expose-header 'x y': ");
        check_named("--allow-header x:", "--allow-header 'x:': ");
        check_named("--trusted-proxy ::1 --trusted-proxy nobody", "--trusted-proxy 'nobody': ");
        check_named("--history-for a//b=5", "--history-for 'a//b=5': ");
        check_named("--allow-credentials --port 0", "--allow-credentials needs --allow-origin");
        check_named("--port 0 --header-timeout 0", "--header-timeout '0': must be more than 0");
        check_named("--max-stream-age 99999999 --demo", "--max-stream-age '99999999': ");
        check_named("--prefix nothing", "--prefix 'nothing': ");
        check_named("--drain-window 86401", "--drain-window '86401': must be from 0 to a day");
    }

    TEST_CASE("a flag that does not exist brings a suggestion only if one is near") {
        const auto said = [](const std::string& flag) { return run(example("hub") + " " + flag); };
        CHECK(has(said("--prot 1").second, "did you mean --port?"));
        CHECK(has(said("--max-conections 1").second, "did you mean --max-connections?"));
        for (const std::string far : {"--bogus", "--x", "--verbose", "--tls"}) {
            CAPTURE(far);
            CHECK(said(far).first == 2);
            CHECK(has(said(far).second, "there is no " + far + "\n"));
        }
    }

    TEST_CASE("paths of the hub that collide are refused") {
        const std::string hub = example("hub");
        for (const std::string flags :
             {"--health /subscribe", "--prefix /live --health /live", "--prefix /publish",
              "--prefix /publish/x", "--prefix /", "--health /", "--health /publish",
              "--health /hub/stats", "--prefix /hub", "--metrics /publish",
              "--admin-token t --prefix /admin/x", "--admin-token t --metrics /admin"}) {
            CAPTURE(flags);
            const auto [status, text] = run("timeout 5 " + hub + " --port 0 " + flags);
            CHECK(status == 2);
            CHECK(has(text, "choose another"));
        }
    }

    TEST_CASE("the hub tells its help and its version, and when it cannot") {
        const std::string hub = example("hub");
        CHECK(run(hub + " -h") == run(hub + " --help"));
        const auto [status, version] = run(hub + " --version");
        CHECK(status == 0);
        CHECK(version.starts_with("hub "));
        CHECK(std::count(version.begin(), version.end(), '.') == 2);
        CHECK(run(hub + " --help >/dev/full").first == 1);
    }

    TEST_CASE("an address that cannot be listened on is told once, with what to do") {
        running_hub hub;
        const std::string port = std::to_string(hub.port);
        const auto [status, text] = run(example("hub") + " --port " + port);
        CHECK(status == 1);
        CHECK(has(text, "cannot listen on 127.0.0.1:" + port + ": Address already in use"));
        CHECK(has(text, "choose another --address or --port"));
        CHECK(text.find("listen") == text.rfind("listen"));
    }

    TEST_CASE("a hub whose log nobody reads serves on, counts what is left out, and ends in time") {
        named_pipe log;
        hub_in_shell hub("--log debug 2>" + log.path);
        event_client client(hub.port);
        hub.fill_log(200); // the pipe and the queue hold about half of it
        CHECK(log.brings("hub: lines that could not be written and are left out: "));
        hub.fill_log(30);
        hub.signal(SIGTERM);
        CHECK(hub.read_line() == "hub: disconnected 1 client");
        CHECK(hub.wait_for_exit().code == 0);
    }

    TEST_CASE("a hub ends on a signal though it shares one unread pipe for all it prints") {
        named_pipe log;
        process hub({"/bin/sh", "-c",
                     "exec " + example("hub") + " --port 0 --log debug >" + log.path + " 2>&1"});
        std::string line;
        REQUIRE(eventually([&] {
            char byte = 0;
            while (::read(log.reader.get(), &byte, 1) == 1 && byte != '\n') line += byte;
            return byte == '\n';
        }));
        const std::string target = "/" + std::string(8000, 'x');
        for (int i = 0; i < 20; ++i) CHECK(http_get(port_in(line), target).status == 404);
        hub.signal(SIGTERM);
        CHECK(hub.wait_for_exit().code == 0);
    }

    TEST_CASE("a hub outlives those who read its log and its output, and a full disk") {
        named_pipe log;
        hub_in_shell piped("--log debug 2>" + log.path);
        hub_in_shell full("--log debug 2>/dev/full");
        log.reader.close();
        for (hub_in_shell* hub : {&piped, &full}) {
            event_client client(hub->port);
            hub->fill_log(3);
            hub->close_output();
            hub->fill_log(1);
            hub->check_ends_on(SIGTERM);
        }
    }

    TEST_CASE("a hub that starts with closed descriptors gives their numbers to no socket") {
        hub_in_shell hub("--log debug <&- 2>&-");
        hub.fill_log(3);
        for (const char* const number : {"0", "2"}) {
            char target[64] = {};
            const std::string link = "/proc/" + std::to_string(hub.pid()) + "/fd/" + number;
            REQUIRE(::readlink(link.c_str(), target, sizeof target - 1) > 0);
            CHECK(std::string(target) == "/dev/null");
        }
        hub.check_ends_on(SIGTERM);
    }

    TEST_CASE("a closed terminal lets the hub's clients go, and nohup keeps it from that") {
        hub_in_shell hub("--drain-window 0.3");
        event_client client(hub.port);
        hub.signal(SIGUSR1); // is harmless
        hub.fill_log(1);
        hub.signal(SIGHUP);
        CHECK(client.wait_for_close() == ending::fin);
        hub.signal(SIGHUP); // the shell sends one too
        CHECK(hub.read_line() == "hub: disconnected 1 client");
        CHECK(hub.wait_for_exit().code == 0);

        hub_in_shell kept("", "trap '' HUP; ");
        kept.signal(SIGHUP);
        kept.fill_log(1);
        kept.check_ends_on(SIGTERM);
    }

    TEST_CASE("a second SIGTERM ends a drain") {
        hub_in_shell hub("--drain-window 3600");
        std::vector<std::unique_ptr<event_client>> clients;
        while (clients.size() < 20) clients.push_back(std::make_unique<event_client>(hub.port));
        hub.signal(SIGTERM);
        CHECK(eventually([&] {
            try {
                connection late(hub.port);
                return false;
            } catch (const std::system_error&) { return true; }
        }));
        hub.signal(SIGTERM);
        CHECK(hub.wait_for_exit().signal == SIGTERM);
    }

    TEST_CASE("what a limit refuses is in the hub's log by itself, once a second, with a count") {
        hub_in_shell hub("--max-connections 1 2>&1");
        event_client first(hub.port);
        const auto start = std::chrono::steady_clock::now();
        constexpr int refused = 40;
        for (int i = 0; i < refused; ++i) CHECK_THROWS_AS(event_client(hub.port), bad_response);
        hub.signal(SIGTERM);
        std::istringstream lines(hub.read_to_end());
        const auto passed = std::chrono::steady_clock::now() - start;
        int told = 0, count = 0;
        for (std::string line; std::getline(lines, line);) {
            if (!has(line, "refused GET /subscribe 503")) continue;
            ++told;
            const std::size_t comma = line.rfind(", ");
            count += line.ends_with(" times") ? std::stoi(line.substr(comma + 2)) : 1;
        }
        CHECK(count == refused);
        CHECK(told <= 2 + passed / 1s);
    }

    TEST_CASE("the hub's own counters go to those who ask for them, and count for nothing") {
        running_hub hub({"--publish-token", "secret", "--subscribe-token", "s3cret"});
        event_client everything(hub.port, "/subscribe/?token=s3cret");
        event_client page(hub.port, "/hub/stats?topic=/a&token=s3cret");
        for (int second = 0; second < 2; ++second) {
            const auto event = page.next();
            CHECK(event.type == "stats");
            CHECK(has(event.data, R"("streams":2,"published":0,)"));
        }
        CHECK(has(hub.publish("a", "text/plain", "x").body, R"("seq":1,)"));
        CHECK(everything.next().data == "x");
        decoded event = page.next();
        while (event.type == "stats") event = page.next();
        CHECK(event.data == "x");
        CHECK(http_get(hub.port, "/hub/stats").status == 401);
    }

    TEST_CASE(
        "every example has a help, and says by a line and its status what keeps it from work") {
        running_example other("clock");
        const std::string taken = "127.0.0.1:" + std::to_string(other.port);
        for (const std::string name : {"clock", "sysenv", "tokens", "proxy", "mcp", "job", "tail",
                                       "chat", "embed", "beast"}) {
            CAPTURE(name);
            if (::access(example(name).c_str(), X_OK) != 0 && name == "beast") continue;
            const std::string start = "timeout 5 " + example(name) + " ";
            const std::string file = name == "tail"    ? " /dev/null"
                                     : name == "proxy" ? " http://localhost:1/"
                                                       : "";
            const auto in_use = run(start + taken + file);
            CHECK(in_use.first == 1);
            CHECK(has(in_use.second, "in use"));
            const auto nonsense = run(start + "garbage" + file);
            CHECK(nonsense.first == (name == "clock" ? 1 : 2));
            CHECK(has(nonsense.second, "'garbage' is not an address"));
            if (name == "clock") continue; // the README's: it has no room for a help
            const auto help = run(start + "--help");
            CHECK(help.first == 0);
            CHECK(help.second.starts_with("usage: " + name + " "));
            CHECK(run(start + "--bogus" + file).first == 2);
            CHECK(run(start + "a b c").first == 2);
        }
        CHECK(run(example("client") + " --help").first == 0);
    }

    TEST_CASE("the gateway passes on what a model says, and its key to the model alone") {
        const std::string path = "/v1/chat/completions";
        running_example tokens("tokens");
        running_example proxy("proxy", {tokens.url(path)});
        const auto ask = [&](const std::string& body) {
            return curl(proxy.url(path) + " -d '" + body + "'");
        };
        CHECK(has(ask(R"({"model":"parrot","messages":[],"stream":true,"max_tokens":3})"),
                  "data: [DONE]"));
        CHECK(has(ask(R"({"model":"parrot","messages":[],"max_tokens":3})"),
                  R"("completion_tokens":3)"));
        CHECK(http_request(proxy.port, "POST", path, {}, R"({"model":"x","messages":[]})").status ==
              404);

        const std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        script_server model({{.bytes = head + "data: 1\n\n", .end = scene::then::hold},
                             {.bytes = head + "data: 2\n\n", .end = scene::then::hold}});
        REQUIRE(::setenv("PROXY_KEY", "of-the-gateway", 1) == 0);
        running_example keeper("proxy", {model.url(path)});
        ::unsetenv("PROXY_KEY");
        for (const std::string n : {"1", "2"}) { // the model answers one at a time
            connection client(keeper.port);
            client.send_request("POST", path, {{"Authorization", "Bearer of-the-client"}}, "{}");
            CHECK(has(client.read_through("data: " + n), "200 OK"));
        }
        for (const std::string& request : model.requests()) {
            CHECK(has(request, "Authorization: Bearer of-the-gateway"));
            CHECK_FALSE(has(request, "of-the-client"));
        }
        keeper.check_ends_on_signal();
    }

    TEST_CASE("an example outlives those who read what it prints") {
        running_example tokens("tokens");
        tokens.close_output();
        for (int i = 0; i < 3; ++i) {
            const std::string said =
                curl(tokens.url("/v1/chat/completions") +
                     R"( -d '{"model":"parrot","messages":[],"max_tokens":1}')");
            CHECK(has(said, R"("completion_tokens":1)"));
        }
        tokens.check_ends_on_signal();
    }

    TEST_CASE("sysenv writes whole numbers whole") {
        running_example sysenv("sysenv");
        event_client client(sysenv.port, "/subscribe/sysenv");
        const std::string data = client.next().data;
        CHECK(has(data, R"("memory_total":)"));
        CHECK_FALSE(has(data, ".000000"));
        CHECK_FALSE(has(data, "e+"));
    }

    TEST_CASE("the hub does what its flags say") {
        running_hub hub({"--prefix=/events", "--heartbeat", "0.02", "--allow-origin",
                         "https://app.example", "--max-connections-per-ip", "3"});
        event_client client(hub.port, "/events/", {{"Origin", "https://app.example"}});
        CHECK(client.head().header("Access-Control-Allow-Origin") == "https://app.example");
        CHECK(client.next_comment().empty());
        CHECK(http_get(hub.port, "/events/", {{"Origin", "https://evil.example"}}).status == 403);
        std::vector<event_client> more; // once the hub has seen the refused one leave
        while (more.size() < 2) {
            REQUIRE(eventually([&] {
                try {
                    more.emplace_back(hub.port, "/events/x");
                    return true;
                } catch (const bad_response&) { return false; }
            }));
        }
        CHECK(http_request(hub.port, "HEAD", "/events/x").status == 429);
        CHECK(http_get(hub.port, "/health").status == 200);
        hub.signal(SIGTERM);
        CHECK(has(hub.read_to_end(), "disconnected 3 clients"));
        CHECK(hub.wait_for_exit().code == 0);
    }

    TEST_CASE("the hub's flags for the front door do what they say") {
        running_hub hub({"--subscribe-token", "s3cret", "--trusted-proxy", "127.0.0.1",
                         "--allow-origin", "https://app.example", "--allow-credentials",
                         "--allow-header", "X-One", "--allow-header", "X-Two", "--preflight-age",
                         "30", "--foreign-origins", "omit", "--health", "/live",
                         "--max-header-lines", "20"});
        CHECK(http_get(hub.port, "/subscribe/").status == 401);
        CHECK(http_get(hub.port, "/subscribe/?token=wrong").status == 401);
        event_client by_query(hub.port, "/subscribe/?token=s3cret",
                              {{"Origin", "https://app.example"}});
        CHECK(by_query.head().header("Access-Control-Allow-Credentials") == "true");
        event_client by_header(
            hub.port, "/subscribe/",
            {{"Authorization", "Bearer s3cret"}, {"Origin", "https://other.example"}});
        CHECK_FALSE(by_header.head().header("Access-Control-Allow-Origin"));
        const auto preflight = http_request(
            hub.port, "OPTIONS", "/subscribe/",
            {{"Origin", "https://app.example"}, {"Access-Control-Request-Method", "GET"}});
        CHECK(preflight.header("Access-Control-Allow-Headers") == "X-One, X-Two");
        CHECK(preflight.header("Access-Control-Max-Age") == "30");
        CHECK(http_get(hub.port, "/health").status == 404);
        CHECK(has(http_get(hub.port, "/live").body, "connections: 2"));
        CHECK(http_get(hub.port, "/live", {{"Host", "evil.example"}}).status == 421);
    }

    TEST_CASE("the hub's flags for the history do what they say") {
        running_hub hub({"--publish-token", "secret", "--threads", "1", "--history", "4",
                         "--history-for", "/room=100", "--gap-event", "hole", "--max-topics", "2"});
        event_client all(hub.port, "/subscribe/?topic=room&topic=noise");
        for (const std::string topic : {"room", "noise"}) {
            for (int number = 1; number <= 10; ++number)
                REQUIRE(hub.publish(topic, "text/plain", std::to_string(number)).status == 202);
        }
        const auto seen = all.next(20);
        event_client room(hub.port, "/subscribe/room?from=oldest");
        CHECK(room.next().data == "1");
        CHECK(room.next(9).back().data == "10");
        event_client noise(hub.port, "/subscribe/noise?from=oldest");
        CHECK(noise.next().data == "7");

        event_client back(hub.port, "/subscribe/noise", {{"Last-Event-ID", seen[10].id}});
        const auto hole = back.next();
        CHECK(hole.type == "hole");
        CHECK(has(hole.data, R"("reason":"too_old")"));
        CHECK(back.next().data == "7");

        CHECK(http_get(hub.port, "/subscribe/?topic=a&topic=b&topic=c").status == 400);
    }

    TEST_CASE("with --log-dir a client goes on where it was when the hub was killed, or ended") {
        const temporary_folder folder("sse-test");
        const std::vector<std::string> flags{"--publish-token", "secret", "--log-dir",
                                             folder.path().string()};
        std::string first;
        {
            running_hub hub(flags);
            event_client client(hub.port, "/subscribe/room");
            REQUIRE(hub.publish("room", form, "data=one").status == 202);
            first = client.next().id;
            REQUIRE(hub.publish("room", form, "data=two").status == 202);
            hub.signal(SIGKILL);
            hub.wait_for_exit();
        }
        {
            running_hub hub(flags);
            event_client client(hub.port, "/subscribe/room", {{"Last-Event-ID", first}});
            CHECK(client.next().data == "two");
            const auto given = hub.publish("room", form, "data=three");
            const auto three = client.next();
            CHECK(three.data == "three");
            CHECK(has(given.body, R"(,"id":")" + three.id + "\"}"));
            hub.signal(SIGTERM);
            CHECK(hub.wait_for_exit().code == 0);
        }
        running_hub hub(flags);
        event_client client(hub.port, "/subscribe/room", {{"Last-Event-ID", first}});
        CHECK(data_of(client.next(2)) == std::vector<std::string>{"two", "three"});
        CHECK(eventually([&] { return has(http_get(hub.port, "/health").body, "Bus: up"); }));
        const auto second = run(example("hub") + " --port 0 --log-dir " + folder.path().string());
        CHECK(second.first == 1);
        CHECK(has(second.second, "another process or server has this log open"));
    }

    TEST_CASE("the hub says its name to those who ask for its counters") {
        running_hub named({"--name", "hub-1.example"});
        CHECK(event_client(named.port, "/hub/stats")
                  .next()
                  .data.starts_with(R"({"node":"hub-1.example","connections":)"));
        running_hub unnamed;
        CHECK(event_client(unnamed.port, "/hub/stats")
                  .next()
                  .data.starts_with(R"({"node":")" + asio::ip::host_name() + "\","));
    }

    TEST_CASE("the hub forgets what is older than --history-age") {
        running_hub hub({"--publish-token", "secret", "--history-age", "0.05"});
        REQUIRE(hub.publish("room", form, "data=old").status == 202);
        CHECK(eventually([&] {
            event_client client(hub.port, "/subscribe/room?from=oldest");
            REQUIRE(hub.publish("room", form, "data=new&ephemeral=true").status == 202);
            return client.next().data == "new";
        }));
    }

    TEST_CASE("a heartbeat of the hub tells the newest id unless --heartbeat-ids is off") {
        const auto id_after_heartbeats = [](const std::string& choice) {
            running_hub hub(
                {"--publish-token", "secret", "--heartbeat", "0.02", "--heartbeat-ids", choice});
            event_client client(hub.port, "/subscribe/quiet");
            REQUIRE(hub.publish("noise", form, "data=x").status == 202);
            for (int beats = 0; beats < 3; ++beats) CHECK(client.next_comment().empty());
            return client.decoder().last_event_id();
        };
        CHECK(has(id_after_heartbeats("on"), "-"));
        CHECK(id_after_heartbeats("off") == "");
    }

    TEST_CASE("a client that the history has left behind is treated as --lag says") {
        const std::string large(500'000, 'x'); // 60 of them are more than the sockets take
        const auto publish_last = [](running_hub& hub) {
            REQUIRE(hub.publish("room", form, "event=last&key=k&data=x").status == 202);
        };
        const auto types_heard_late = [&](const std::string& policy) {
            running_hub hub(
                {"--publish-token", "secret", "--threads", "1", "--history", "8", "--lag", policy});
            event_client slow(hub.port, "/subscribe/room");
            for (int number = 1; number <= 60; ++number)
                REQUIRE(hub.publish("room", form, "key=k&data=" + large).status == 202);
            if (policy == "conflate") publish_last(hub);
            std::vector<std::string> types;
            while (const auto event = slow.next_or_end()) {
                types.push_back(event->type);
                if (event->type == "gap") publish_last(hub);
                if (event->type == "last") break;
            }
            return types;
        };
        const auto count = [](const std::vector<std::string>& types, std::string_view wanted) {
            return std::count(types.begin(), types.end(), wanted);
        };
        const auto skipped = types_heard_late("skip");
        CHECK(count(skipped, "gap") == 1);
        CHECK(count(skipped, "last") == 1);
        const auto conflated = types_heard_late("conflate");
        CHECK(count(conflated, "gap") == 0);
        CHECK(count(conflated, "last") == 1);
        CHECK(conflated.size() < 60);
        const auto disconnected = types_heard_late("disconnect");
        CHECK(count(disconnected, "message") == std::ssize(disconnected));
    }

    TEST_CASE("on a signal the hub drains within --drain-window") {
        running_hub hub({"--drain-window", "0.2", "--retry-after", "1"});
        event_client client(hub.port);
        hub.signal(SIGTERM);
        client.wait_for_close();
        const auto retry = client.decoder().reconnection_time();
        REQUIRE(retry);
        CHECK(*retry >= 1000);
        CHECK(*retry <= 2000);
        CHECK(has(hub.read_to_end(), "disconnected 1 client"));
        CHECK(hub.wait_for_exit().code == 0);
    }

    TEST_CASE("the hub publishes what is posted with the token: form, JSON and text") {
        running_hub hub({"--publish-token", "secret"});
        event_client client(hub.port, "/subscribe/room");
        CHECK(hub.publish("room", form, "event=chat&data=2+%2B+2&id=7").status == 202);
        auto event = client.next();
        CHECK(event.type == "chat");
        CHECK(event.data == "2 + 2");
        CHECK(event.id == "7");
        CHECK(hub.publish("room/a", "application/json", R"({"data":{"n":[1,2]}})").status == 202);
        CHECK(client.next().data == R"({"n":[1,2]})");
        CHECK(hub.publish("room", "text/plain", "one\ntwo").status == 202);
        CHECK(client.next().data == "one\ntwo");
        CHECK(hub.publish("room", form, "event=a%0Ab&data=x").status == 400);
        CHECK(hub.publish("room", form, "event=x").status == 400);
        CHECK(hub.publish("room", "application/json", "{broken").status == 400);
        CHECK(hub.publish("a//b", "text/plain", "x").status == 400);
        CHECK(hub.publish("room", "image/png", "x").status == 415);
        const auto wrong = hub.publish("room", form, "data=x", "guess");
        CHECK(wrong.status == 401);
        CHECK(wrong.header("WWW-Authenticate") == "Bearer");

        const std::string lines = "{\"data\":\"three\"}\n{\"data\":4,\"topic\":\"room/b\"}\n";
        CHECK(hub.publish("room", "application/x-ndjson", lines).status == 202);
        CHECK(client.next().data == "three");
        CHECK(client.next().data == "4");
        const header_list once{{"Authorization", "Bearer secret"},
                               {"Content-Type", "text/plain"},
                               {"Idempotency-Key", "\"5\""}};
        const auto first = http_request(hub.port, "POST", "/publish/room", once, "five");
        const auto again = http_request(hub.port, "POST", "/publish/room", once, "five");
        CHECK(first.status == 202);
        CHECK(again.body == first.body);
        CHECK(client.next().data == "five");
        CHECK(hub.publish("room", "text/plain", "six").status == 202);
        CHECK(client.next().data == "six");
    }

    TEST_CASE("the hub answers with the id of a message, if the server gave it one") {
        running_hub hub({"--publish-token", "secret"});
        event_client client(hub.port, "/subscribe/room");
        const auto given = hub.publish("room", form, "data=one");
        const auto one = client.next();
        CHECK(has(one.id, "-"));
        CHECK(has(given.body, R"(,"id":")" + one.id + "\"}"));
        CHECK(has(given.body, R"({"seq":)" + one.id.substr(one.id.rfind('-') + 1) + ","));
        CHECK(has(hub.publish("room", form, "data=two&id=7").body, R"(,"id":"7"})"));
        CHECK(client.next().id == "7");
        const auto json = R"({"data":"three","key":"k","ephemeral":true})";
        CHECK_FALSE(has(hub.publish("room", "application/json", json).body, "id"));
        CHECK(client.next().id == "7"); // inherited: this one has none
        CHECK(hub.publish("room", form, "data=four&key=k&ephemeral=false").status == 202);
        CHECK(client.next().data == "four");

        event_client back(hub.port, "/subscribe/room", {{"Last-Event-ID", one.id}});
        CHECK(back.next().data == "two");
        CHECK(back.next().data == "four");
    }

    TEST_CASE("the hub says what is wrong with a key and with ephemeral") {
        running_hub hub({"--publish-token", "secret"});
        const auto check_refused = [&](const std::string& type, const std::string& body,
                                       std::string_view reason) {
            const auto answer = hub.publish("room", type, body);
            CHECK(answer.status == 400);
            CHECK_MESSAGE(has(answer.body, reason), answer.body);
        };
        check_refused(form, "data=x&ephemeral=yes", "use true or false");
        check_refused(form, "data=x&ephemeral=true&id=7", "ephemeral");
        check_refused("application/json", R"({"data":"x","key":7})", "use a string");
        check_refused(form, "data=x&keys=k",
                      "the fields are event, data, id, retry, key, ephemeral and topic");
        for (const std::string retry : {"", "-1", "1s", "2147483648", "1 "})
            check_refused(form, "data=x&retry=" + retry, "use milliseconds");
        const std::vector<std::string> bad_ids{"a%0Cb", "+a", "a+", "%7f", std::string(1025, 'a')};
        for (const std::string& id : bad_ids)
            check_refused(form, "data=x&id=" + id, "the id has a control character");
    }

    TEST_CASE("the hub publishes a retry time, and an id comes back in its response as JSON") {
        running_hub hub({"--publish-token", "secret"});
        event_client client(hub.port, "/subscribe/room");
        CHECK(hub.publish("room", form, "data=one&retry=1500").status == 202);
        CHECK(client.next().data == "one");
        CHECK(client.decoder().reconnection_time() == 1500);
        const auto given =
            hub.publish("room", "application/json", R"({"data":"two","retry":70,"id":"a\"\\"})");
        CHECK(has(given.body, R"(,"id":"a\"\\"})"));
        CHECK(client.next().id == R"(a"\)");
        CHECK(client.decoder().reconnection_time() == 70);
    }

    TEST_CASE("the hub refuses a body that its readers would get as garbage") {
        running_hub hub({"--publish-token", "secret"});
        event_client client(hub.port, "/subscribe/");
        const auto status = [&](const std::string& topic, const std::string& type,
                                const std::string& body, const std::string& coding = "") {
            std::vector<std::pair<std::string, std::string>> headers{
                {"Authorization", "Bearer secret"}, {"Content-Type", type}};
            if (!coding.empty()) headers.emplace_back("Content-Encoding", coding);
            return http_request(hub.port, "POST", "/publish/" + topic, headers, body).status;
        };
        for (const char* const coding : {"gzip", "br", "x-gzip", "gzip, identity"})
            CHECK(status("a", "text/plain", "x", coding) == 415);
        for (const char* const charset : {"iso-8859-1", "\"UTF-16\"", "", "windows-1252; a=b"}) {
            CHECK(status("a", std::string("text/plain; charset=") + charset, "x") == 415);
            CHECK(status("a", std::string("application/json;Charset=") + charset, "{}") == 415);
        }
        for (const char* const broken : {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\x80"}) {
            CHECK(status("a", "text/plain", broken) == 400);
            CHECK(status("a", form, std::string("data=") + broken) == 400);
        }
        CHECK(status("a", form, "data=%ff") == 400);
        CHECK(status("a", form, "data=x&%ff=x") == 400);
        CHECK(status("%ff", "text/plain", "x") == 400);
        CHECK(status("a", "text/plain; charset=\"utf-8\"", "\xc3\xa4", "identity") == 202);
        CHECK(client.next().data == "\xc3\xa4"); // and nothing before it
        CHECK(status("%c3%a4", "text/plain;format=flowed ; CHARSET=UTF-8", "two") == 202);
        CHECK(client.next().data == "two");
        CHECK(status("a", "application/json", "\xef\xbb\xbf{\"data\":\"three\"}") == 202);
        CHECK(client.next().data == "three");
    }

    TEST_CASE("without a token publishing over HTTP is off") {
        running_hub hub;
        CHECK(hub.publish("room", form, "data=x").status == 404);
    }

    TEST_CASE("without --admin-token nobody administrates the hub, with it its holders do") {
        const header_list wrong[] = {{},
                                     {{"Authorization", "Bearer secre"}},
                                     {{"Authorization", "Bearer secrets"}},
                                     {{"Authorization", "Basic secret"}},
                                     {{"Cookie", "token=secret"}}};
        const header_list right{{"Authorization", "Bearer secret"}};
        running_hub closed({"--publish-token", "secret", "--subscribe-token", "secret"});
        running_hub hub({"--admin-token", "secret", "--publish-token", "other", "--subscribe-token",
                         "third", "--drain-window", "600"});
        event_client follower(hub.port, "/subscribe/a?token=third");
        for (const auto& [method, target] :
             {std::pair("GET", "/admin/status"), std::pair("GET", "/admin/streams?limit=1"),
              std::pair("GET", "/admin/topics"), std::pair("GET", "/admin/live"),
              std::pair("DELETE", "/admin/streams?follows=a"), std::pair("POST", "/admin/drain")}) {
            CAPTURE(target);
            CHECK(http_request(closed.port, method, target, right).status == 404);
            for (const header_list& headers : wrong) {
                const response got = http_request(hub.port, method, target, headers);
                CHECK(got.status == 401);
                CHECK(got.header("WWW-Authenticate") == "Bearer");
            }
            const std::string in_query = std::string(target) + (has(target, "?") ? "&" : "?");
            CHECK(http_request(hub.port, method, in_query + "token=secret").status == 401);
        }
        for (const char* path : {"/admin", "/admin/"}) {
            CHECK(has(http_get(hub.port, path).body, "<!doctype html>"));
            CHECK(http_get(closed.port, path).status == 404);
        }
        CHECK(has(http_get(hub.port, "/admin/topics", right).body,
                  R"([{"topic":"/a","streams":1,"behind":0}])"));
        CHECK(http_request(hub.port, "DELETE", "/admin/streams?follows=a", right).body ==
              "{\"ending\":1}\n");
        CHECK(follower.wait_for_close() != ending::reset);
        const auto drained = http_request(hub.port, "POST", "/admin/drain?window=0", right);
        CHECK(drained.status == 202);
        CHECK(has(hub.read_line(), "disconnected"));
        CHECK(hub.wait_for_exit().code == 0);
    }

    TEST_CASE("curl -N shows events as they come") {
        running_hub hub({"--publish-token", "secret"});
        process curl({"/usr/bin/curl", "-sN",
                      "http://127.0.0.1:" + std::to_string(hub.port) + "/subscribe/room"});
        REQUIRE(
            eventually([&] { return has(http_get(hub.port, "/health").body, "connections: 1"); }));
        CHECK(hub.publish("room", form, "event=chat&data=hello").status == 202);
        CHECK(curl.read_line_with("event: ") == "event: chat");
        CHECK(curl.read_line() == "data: hello");
        hub.signal(SIGINT);
        CHECK(curl.wait_for_exit().code == 0);
    }

    TEST_CASE("the demo feed is lively: several event names within seconds") {
        running_hub hub({"--demo"});
        event_client client(hub.port);
        std::map<std::string, int> names;
        while (names.size() < 4) ++names[client.next().type];
        CHECK(names.size() == 4);
    }

    TEST_CASE("mercure serves what comes from Mercure: updates, selectors, private ones, ids") {
        if (::access(example("mercure").c_str(), X_OK) != 0) {
            MESSAGE("not run: mercure was not built, for want of libssl-dev");
            return;
        }
        // Of HS256, without an expiry: publish everything; and publish books, follow what is ann's.
        const std::string head = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.";
        const std::string all = head + "eyJtZXJjdXJlIjp7InB1Ymxpc2giOlsiKiJdfX0."
                                       "a8cjcSRUAcHdnGNMKifA4BK5epRXxQI0UBp2XpNrBdw";
        const std::string ann =
            head +
            "eyJtZXJjdXJlIjp7InB1Ymxpc2giOlsiaHR0cHM6Ly9leGFtcGxlLmNvbS9ib29rcy97aWR9Il0sInN1Y"
            "nNjcmliZSI6WyJodHRwczovL2V4YW1wbGUuY29tL3VzZXJzL2Fubi97eH0iXX19."
            "Rc86ffLiVS8dgmQiTQTqVZWGbPDfk5u5ks6psaxfm0c";
        process mercure({"/bin/sh", "-c",
                         "MERCURE_JWT_KEY='!ChangeThisMercureHubJWTSecretKey!' exec " +
                             example("mercure") + " 127.0.0.1:0"});
        const std::uint16_t port = port_in(mercure.read_line());
        const std::string hub = "/.well-known/mercure";
        const auto post = [&](const std::string& token, const std::string& body) {
            return http_request(port, "POST", hub,
                                {{"Authorization", "Bearer " + token}, {"Content-Type", form}},
                                body);
        };
        const std::string site = "https://example.com/";
        const header_list as_ann{{"Authorization", "Bearer " + ann}};
        event_client books(port, hub + "?topic=" + site + "books/%7Bid%7D");
        event_client one(port, hub + "?topic=" + site + "books/1");
        event_client hers(port, hub + "?topic=*", as_ann);
        event_client nobody(port, hub + "?topic=*");

        const auto said = post(all, "topic=" + site + "books/1&data=a%0Ab&type=new&retry=1500");
        CHECK(said.status == 200);
        for (event_client* const each : {&books, &one, &hers, &nobody}) {
            const auto update = each->next();
            CHECK(update.type == "new");
            CHECK(update.data == "a\nb");
            CHECK(update.id == said.body);
            CHECK(each->decoder().reconnection_time() == 1500);
        }
        CHECK(post(ann, "topic=" + site + "books/2&data=2&id=urn:x:2").body == "urn:x:2");
        CHECK(books.next().id == "urn:x:2");
        // No template reaches over a slash, and an update may have several topics.
        CHECK(post(all, "topic=" + site + "books/2/pages&data=no").status == 200);
        CHECK(post(all, "topic=" + site + "x&topic=" + site + "books/1&data=both").status == 200);
        CHECK(books.next().data == "both");
        CHECK(one.next().data == "both");
        for (const char* const data : {"2", "no", "both"}) CHECK(nobody.next().data == data);
        for (const char* const data : {"2", "no", "both"}) CHECK(hers.next().data == data);

        CHECK(post(all, "topic=" + site + "users/bob/1&data=bob&private=on").status == 200);
        CHECK(post(all, "topic=" + site + "users/ann/1&data=ann&private=on").status == 200);
        CHECK(post(all, "topic=end&data=end").status == 200);
        CHECK(hers.next().data == "ann");
        CHECK(hers.next().data == "end");
        CHECK(nobody.next().data == "end");

        event_client back(port, hub + "?topic=*&lastEventID=" + said.body, as_ann);
        for (const char* const data : {"2", "no", "both", "ann", "end"})
            CHECK(back.next().data == data);

        CHECK(post(ann, "topic=" + site + "users/ann/1&data=x").status == 403);
        CHECK(post(all.substr(0, all.size() - 2), "topic=a&data=x").status == 401);
        CHECK(post(all, "data=x").status == 400);
        CHECK(post(all, "topic=a&data=x&retry=soon").status == 400);
        CHECK(http_request(port, "POST", hub, {{"Cookie", "mercureAuthorization=" + all}},
                           "topic=a&data=x")
                  .status == 401);
        for (const auto& [target, status] :
             std::vector<std::pair<std::string, int>>{{hub, 400},
                                                      {hub + "?topic=%7B?x%7D", 400},
                                                      {hub + "?topic=a%7B", 400},
                                                      {hub + "?topic=a&authorization=x", 401},
                                                      {"/subscribe/private", 404},
                                                      {"/subscribe", 404}}) {
            CAPTURE(target);
            CHECK(http_get(port, target).status == status);
        }
    }

    TEST_CASE("tokens streams a completion, tells it in one piece, and refuses as OpenAI does") {
        running_example tokens("tokens");
        const auto ask = [&](const std::string& more) {
            return curl(tokens.url("/v1/chat/completions") +
                        R"( -w '%{http_code}' -d '{"model":"parrot","messages":[],)" + more + "}'");
        };
        const std::string stream = ask(R"("max_tokens":3,"stream":true)");
        CHECK(has(stream, R"("delta":{"role":"assistant")"));
        CHECK(has(stream, R"("delta":{"content":" Events"})"));
        CHECK(has(stream, R"("finish_reason":"length")"));
        CHECK(has(stream, "data: [DONE]\n\n200"));
        CHECK(tokens.read_line() == "finished after 3 tokens");
        const std::string whole = ask(R"("max_tokens":3)");
        CHECK(has(whole, R"("content":"Server-Sent Events are")"));
        CHECK(has(whole, R"("completion_tokens":3)"));
        CHECK(has(ask(R"("stream":maybe)"), "invalid_request_error"));
        CHECK(has(curl(tokens.url("/v1/models")), R"("id":"parrot")"));
        CHECK(has(curl(tokens.url("/v2")), R"({"error":{"message":"there is no /v2")"));
        tokens.check_ends_on_signal();
    }

    TEST_CASE("tokens stops when its client leaves") {
        running_example tokens("tokens");
        connection client(tokens.port);
        client.send_request("POST", "/v1/chat/completions", {},
                            R"({"model":"parrot","messages":[],"stream":true})");
        client.read_through(R"("content":"Server-Sent")");
        client.close();
        CHECK(tokens.read_line().starts_with("stopped after "));
    }

    TEST_CASE("mcp opens a session, counts down with progress, refuses strange pages") {
        running_example mcp("mcp");
        const auto post = [&](const std::string& body, const std::string& headers = "") {
            return curl("-i " + mcp.url("/mcp") + " " + headers + " --json '" + body + "'");
        };
        const std::string initialize =
            R"({"jsonrpc":"2.0","id":1,"method":"initialize","params":{}})";
        const std::string welcome = post(initialize);
        CHECK(has(welcome, R"("protocolVersion":"2025-11-25")"));
        const auto start = welcome.find("Mcp-Session-Id: ");
        REQUIRE(start != welcome.npos);
        const std::string session =
            "-H '" + welcome.substr(start, welcome.find('\r', start) - start) + "'";
        CHECK(has(post(R"({"jsonrpc":"2.0","method":"notifications/initialized"})", session),
                  " 202 Accepted"));
        const std::string result =
            post(R"({"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"count_down",)"
                 R"("arguments":{"from":2},"_meta":{"progressToken":"p"}}})",
                 session);
        CHECK(has(result, R"("params":{"progressToken":"p","progress":1,"total":2})"));
        CHECK(has(result, R"("id":"a","result":{"content":[{"type":"text","text":"Lift-off)"));
        CHECK(has(post(R"({"jsonrpc":"2.0","id":2,"method":"tools/list"})"), " 400 "));
        CHECK(has(post(initialize, "-H 'Origin: https://evil.example'"), " 403 "));

        // What came behind an event of a call, once more, for its session alone.
        const auto ids = ids_in(result);
        REQUIRE(ids.size() == 3);
        const auto resume = [&](const std::string& id) {
            return curl("-i " + mcp.url("/mcp") + " " + session + " -H 'Last-Event-ID: " + id +
                        "'");
        };
        const std::string rest = resume(ids[0]);
        CHECK(!has(rest, R"("progress":1,)"));
        CHECK(has(rest, R"("progress":2,)"));
        CHECK(has(rest, "Lift-off"));
        CHECK(ids_in(rest) == std::vector(ids.begin() + 1, ids.end()));
        CHECK(has(resume(ids[2]), " 204 "));
        CHECK(has(post(R"({"jsonrpc":"2.0","id":"a","method":"tools/call","params":)"
                       R"({"name":"count_down","arguments":{"from":1}}})",
                       session),
                  " 400 ")); // the id of that call
        const std::string other = post(initialize);
        const auto at = other.find("Mcp-Session-Id: ") + 16;
        connection stranger(mcp.port);
        stranger.send_request("GET", "/mcp",
                              {{"Mcp-Session-Id", other.substr(at, other.find('\r', at) - at)},
                               {"Last-Event-ID", ids[0]}});
        CHECK(!has(stranger.read_through("event: gap"), "progress"));

        // The revision without sessions.
        const std::string stateless =
            R"({"jsonrpc":"2.0","id":3,"method":"tools/list","params":{"_meta":{)"
            R"("io.modelcontextprotocol/protocolVersion":"2026-07-28",)"
            R"("io.modelcontextprotocol/clientCapabilities":{}}}})";
        const std::string version = "-H 'Mcp-Protocol-Version: 2026-07-28' ";
        const std::string tools = post(stateless, version + "-H 'Mcp-Method: tools/list'");
        CHECK(has(tools, R"("resultType":"complete")"));
        CHECK(has(tools, R"("name":"count_down")"));
        CHECK(!has(tools, "Mcp-Session-Id"));
        CHECK(has(post(stateless, version + "-H 'Mcp-Method: tools/call'"), R"("code":-32020)"));
        mcp.check_ends_on_signal();
    }

    TEST_CASE("the tests of test_your_handler pass, without a socket") {
        const auto passed = run("timeout 60 " + example("test_your_handler"));
        CHECK(passed.first == 0);
        CHECK(has(passed.second, "4 passed"));
        CHECK(run(example("test_your_handler") + " --help").first == 0);
    }

    TEST_CASE("job goes on without its client, and is there when it comes back") {
        running_example job("job");
        const auto started = http_request(job.port, "POST", "/jobs", {}, "x");
        CHECK(started.status == 202);
        const std::string path = started.header("Location").value_or("");
        CHECK(started.body == path + "\n");
        const auto until_knead = [&] {
            event_client client(job.port, path, {{"Connection", "close"}});
            for (;;) {
                const auto event = client.next();
                if (event.data == "now: knead") return event.id;
            }
        };
        const std::string id = until_knead();
        const std::string rest = curl(job.url(path) + " -H 'Last-Event-ID: " + id + "'");
        CHECK_FALSE(has(rest, "now: mix"));
        CHECK_FALSE(has(rest, "now: knead"));
        CHECK(has(rest, "data: now: rise\n"));
        CHECK(has(rest, "event: done\ndata: bread\n\n"));
        const std::string late = curl(job.url(path));
        CHECK(has(late, "data: now: mix\n"));
        CHECK_FALSE(has(late, "data: mix 10 %\n")); // a newer one replaced it
        CHECK(http_get(job.port, "/jobs/none").status == 404);
        CHECK(http_request(job.port, "DELETE", path).status == 404); // it is over
        const auto other = http_request(job.port, "POST", "/jobs", {}, "x");
        const std::string stopped = other.header("Location").value_or("");
        CHECK(http_request(job.port, "DELETE", stopped).status == 202);
        CHECK(has(curl(job.url(stopped)), "event: stopped\n"));
        job.check_ends_on_signal();
    }

    TEST_CASE("tail gives the last lines, then what is added, over rotation and truncation") {
        scratch_file log;
        log.append("1\n2\n3\n");
        running_example tail("tail", {log.path});
        event_client all(tail.port, "/?lines=1000");
        CHECK(data_of(all.next(3)) == std::vector<std::string>{"1", "2", "3"});
        event_client last(tail.port, "/?lines=2");
        CHECK(data_of(last.next(2)) == std::vector<std::string>{"2", "3"});
        log.append("4\rid: forged\n");
        const auto line = last.next();
        CHECK(line.data == "4\nid: forged");
        last.close();
        log.replace("first\n");
        CHECK(all.next(2).back().data == "first");
        log.cut();
        log.append("cut\n");
        CHECK(all.next().data == "cut");
        event_client back(tail.port, "/", {{"Last-Event-ID", line.id}});
        CHECK(data_of(back.next(2)) == std::vector<std::string>{"first", "cut"});
        CHECK(http_get(tail.port, "/?lines=many").status == 400);
        tail.check_ends_on_signal();
    }

    TEST_CASE("chat says what is posted to all, and who is here") {
        running_example chat("chat", {example("chat.html")});
        const auto page = http_get(chat.port, "/");
        CHECK(page.header("Content-Type") == "text/html; charset=utf-8");
        CHECK(has(page.body, "from \"/sse.js\""));
        CHECK(has(http_get(chat.port, "/sse.js").body, "export"));
        CHECK_FALSE(has(page.body, "innerHTML"));
        event_client ann(chat.port, "/room?name=Ann");
        CHECK(ann.next().data == R"(["Ann"])");
        event_client bob(chat.port, "/room?name=%22Bob%22");
        CHECK(ann.next().data == R"(["Ann","\"Bob\""])");
        CHECK(bob.next().type == "here");
        const std::string said = R"({"name":"Ann","text":"<b>1 < 2</b>\n"})";
        CHECK(http_request(chat.port, "POST", "/say", {}, said).status == 204);
        CHECK(ann.next().type == "line");
        CHECK(bob.next().data == R"({"name":"Ann","text":"<b>1 < 2</b>\u000a"})");
        bob.close();
        CHECK(ann.next().data == R"(["Ann"])");
        CHECK(http_request(chat.port, "POST", "/say", {}, "{}").status == 400);
        CHECK(http_get(chat.port, "/room").status == 400);
        chat.check_ends_on_signal();
    }

    TEST_CASE("embed serves on the program's own context, beside what it does anyway") {
        running_example embed("embed");
        event_client client(embed.port, "/subscribe/counter");
        CHECK(std::stoi(client.next().data) < 1000);
        CHECK(http_request(embed.port, "POST", "/add", {}, "x").status == 200);
        CHECK(std::stoi(client.next().data) >= 1000);
        embed.signal(SIGINT);
        CHECK(has(embed.read_to_end(), "counted to 1"));
        CHECK(embed.wait_for_exit().code == 0);
    }

    TEST_CASE("client prints events, and says by its status how it ended") {
        running_example clock("clock");
        process reader({example("client"), clock.url("/subscribe/")});
        CHECK(reader.read_line() == "event: tick");
        CHECK(has(reader.read_line(), "id: "));
        CHECK(reader.read_line().size() == 6 + 24);
        CHECK(reader.read_line() == "");

        running_example tokens("tokens");
        const std::string program = example("client") + " ";
        const auto [status, text] =
            run(program + tokens.url("/v1/chat/completions") +
                R"( -d '{"model":"parrot","messages":[],"max_tokens":1,"stream":true}')");
        CHECK(status == 0);
        CHECK(text.ends_with("data: [DONE]\n\n"));
        const auto refused = run(program + tokens.url("/nothing"));
        CHECK(refused.first == 3);
        CHECK(has(refused.second, "there is no /nothing"));
        CHECK(run(program).first == 2);
        CHECK(run(program + "http://127.0.0.1:1/ --once").first == 1);
        CHECK(run(program + "gopher://127.0.0.1/").first == 2);
    }

    TEST_CASE("beast serves a page and hands its event streams over, on one connection") {
        if (::access(example("beast").c_str(), X_OK) != 0) {
            MESSAGE("not run: beast was not built, for want of libboost-dev");
            return;
        }
        running_example beast("beast");
        connection client(beast.port);
        CHECK(has(client.request("GET", "/").body, "EventSource"));
        client.send_request("GET", "/events/clock");
        CHECK(client.read_head().header("Content-Type") == "text/event-stream");
        client.read_through("data: ");
        client.close();
        CHECK(http_get(beast.port, "/nothing").status == 404);
        CHECK(http_get(beast.port, "/events").status == 404);
        beast.check_ends_on_signal();
    }

    TEST_CASE("10,000 clients connect, get one broadcast, leave: the hub is as it was before") {
        if (raise_descriptor_limit() < 10'200) {
            MESSAGE("not run: this process may not open 10,200 files");
            return;
        }
        running_hub hub({"--publish-token", "secret", "--max-connections", "0"});
        const auto wave = [&](const std::string& number, std::uint64_t value) {
            swarm clients(hub.port, {.clients = 10'000, .target = "/subscribe/wave", .sources = 4});
            REQUIRE(clients.connect(120s));
            CHECK(hub.publish("wave", "text/plain", number).status == 202);
            REQUIRE(clients.run_until_all_saw(value, 120s));
            CHECK(clients.all_saw_exactly(value, value));
            clients.leave(true);
            REQUIRE(eventually(
                [&] { return has(http_get(hub.port, "/health").body, "connections: 0\n"); }, 60s));
        };
        wave("1", 1);
        const std::size_t descriptors = open_descriptors(hub.pid());
        const std::size_t memory = resident_bytes(hub.pid());
        wave("2", 2);
        CHECK(eventually([&] { return open_descriptors(hub.pid()) <= descriptors; }));
        if (memory_is_meaningful) { CHECK(resident_bytes(hub.pid()) < memory + 8 * 1024 * 1024); }
    }
}

} // namespace examples_test
