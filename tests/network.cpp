// network.cpp - covers >>worker: What a network does that loopback never does: it goes down without
// a word, loses packets, delays them, and clients stop reading for a minute.
//
// A program of its own, since it takes more than a minute, in which it does nothing but wait. It
// makes two network namespaces for its threads, which end with them, and is itself the link between
// them: what it does not carry from one tun device to the other is lost. It needs root, or user
// namespaces, and /dev/net/tun; without them it is skipped, and says why. Linux only.
// Its output is in the Test Anything Protocol.
#include "support/server.hpp"

#include <asio/detached.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

// linux/if_tun.h and linux/if.h do not go with net/if.h in old headers.
#include <linux/if_tun.h>

namespace network_test {

using namespace std::chrono_literals;
using namespace support;
using steady = std::chrono::steady_clock;

const char* const server_host = "10.77.0.1";
const char* const client_host = "10.77.0.2";

// ---- the link -----------------------------------------------------------------------------------

/// What it does to the connections of one server.
struct link_rule {
    bool up = true;
    double loss = 0;
    std::chrono::milliseconds delay{0}; ///< In each direction.
};

class link {
public:
    link(descriptor a, descriptor b) : ends_{std::move(a), std::move(b)} {
        carrier_ = std::thread([this] { carry(); });
    }
    link(const link&) = delete;
    link& operator=(const link&) = delete;
    ~link() {
        ending_ = true;
        carrier_.join();
    }

    void set(std::uint16_t port, link_rule rule) {
        const std::lock_guard lock(mutex_);
        rules_[port] = rule;
    }
    steady::time_point cut(std::uint16_t port) {
        set(port, {.up = false});
        return steady::now();
    }

private:
    struct packet {
        std::size_t to;
        std::string bytes;
    };

    /// By the port of a TCP packet in IPv4 that is the server's.
    link_rule rule_of(std::string_view bytes, bool from_server) {
        const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
        const std::size_t head = bytes.empty() ? 0 : (byte(0) & 15u) * 4;
        if (bytes.size() < head + 4 || head < 20 || byte(9) != IPPROTO_TCP) return {};
        const std::size_t at = head + (from_server ? 0 : 2);
        const std::lock_guard lock(mutex_);
        const auto found = rules_.find(static_cast<std::uint16_t>(byte(at) * 256u + byte(at + 1)));
        return found == rules_.end() ? link_rule() : found->second;
    }

    void carry() {
        std::mt19937 dice(1); // NOLINT: the same losses each time, as far as timing allows
        std::uniform_real_distribution<double> chance(0, 1);
        std::multimap<steady::time_point, packet> under_way;
        std::string buffer(70'000, '\0');
        while (!ending_) {
            auto wait = 20ms;
            if (!under_way.empty()) {
                const auto left = under_way.begin()->first - steady::now();
                wait = std::clamp(std::chrono::ceil<std::chrono::milliseconds>(left), 0ms, wait);
            }
            pollfd both[] = {{ends_[0].get(), POLLIN, 0}, {ends_[1].get(), POLLIN, 0}};
            ::poll(both, 2, static_cast<int>(wait.count()));
            for (std::size_t from : {0u, 1u}) {
                for (int i = 0; i < 64; ++i) {
                    const auto n = ::read(ends_[from].get(), buffer.data(), buffer.size());
                    if (n <= 0) break;
                    std::string bytes(buffer, 0, static_cast<std::size_t>(n));
                    const link_rule rule = rule_of(bytes, from == 0);
                    if (!rule.up || chance(dice) < rule.loss) continue;
                    under_way.emplace(steady::now() + rule.delay, packet{1 - from, bytes});
                }
            }
            while (!under_way.empty() && under_way.begin()->first <= steady::now()) {
                const packet& first = under_way.begin()->second;
                // A full queue loses the packet, as queues do.
                static_cast<void>(
                    !::write(ends_[first.to].get(), first.bytes.data(), first.bytes.size()));
                under_way.erase(under_way.begin());
            }
        }
    }

    descriptor ends_[2]; ///< The server's first.
    std::mutex mutex_;
    std::map<std::uint16_t, link_rule> rules_;
    std::atomic<bool> ending_{false};
    std::thread carrier_;
};

/// The tun device "sse" of this thread's namespace, with this address.
descriptor make_device(const char* address) {
    descriptor device(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!device) throw_errno("/dev/net/tun");
    const descriptor control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, "sse");
    const auto ask = [&](int fd, unsigned long what, const char* name) {
        if (::ioctl(fd, what, &request) != 0) throw_errno(name);
    };
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    ask(device.get(), TUNSETIFF, "TUNSETIFF");
    const auto set = [&](unsigned long what, const char* to, const char* name) {
        const socket_address where(to, 0);
        std::memcpy(&request.ifr_addr, where.get(), sizeof(sockaddr_in));
        ask(control.get(), what, name);
    };
    set(SIOCSIFADDR, address, "SIOCSIFADDR");
    set(SIOCSIFNETMASK, "255.255.255.0", "SIOCSIFNETMASK");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ask(control.get(), SIOCSIFFLAGS, "SIOCSIFFLAGS");
    return device;
}

/// Lets a user without rights make network namespaces, where the system does.
void become_root_of_a_user_namespace() {
    const auto user = ::geteuid();
    const auto group = ::getegid();
    if (user == 0) return;
    if (::unshare(CLONE_NEWUSER) != 0) throw_errno("no root, and no user namespace");
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/uid_map") << "0 " << user << " 1";
    std::ofstream("/proc/self/gid_map") << "0 " << group << " 1";
}

descriptor namespace_here() {
    descriptor here(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    if (!here) throw_errno("/proc/thread-self/ns/net");
    return here;
}

/// This thread, and those that it starts, are on the client's side; servers are made on the other.
struct two_namespaces {
    two_namespaces() {
        become_root_of_a_user_namespace();
        enter_new();
        server_side = namespace_here();
        descriptor servers = make_device(server_host);
        enter_new();
        between.emplace(std::move(servers), make_device(client_host));
    }

    static void enter_new() {
        if (::unshare(CLONE_NEWNET) != 0) throw_errno("no network namespace");
    }
    /// Sockets and threads that `make` makes are on the server's side.
    void there(const std::function<void()>& make) const {
        std::exception_ptr failed;
        std::thread([&] {
            try {
                if (::setns(server_side.get(), CLONE_NEWNET) != 0) throw_errno("setns");
                make();
            } catch (...) { failed = std::current_exception(); }
        }).join();
        if (failed) std::rethrow_exception(failed);
    }

    descriptor server_side;
    std::optional<link> between;
};

// ---- scenarios ----------------------------------------------------------------------------------

std::mutex output;
int passed = 0;
int failed = 0;

void say(bool right, const std::string& name, const std::string& figure) {
    const std::lock_guard lock(output);
    (right ? passed : failed) += 1;
    std::printf("%s %d - %s: %s\n", right ? "ok" : "not ok", passed + failed, name.c_str(),
                figure.c_str());
    std::fflush(stdout);
}

std::string seconds(steady::duration time) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f s", std::chrono::duration<double>(time).count());
    return text;
}

struct remote_server {
    remote_server(two_namespaces& network, sse::options o,
                  const std::function<void(sse::server&)>& prepare = {})
        : server(std::move(o)) {
        if (prepare) prepare(server);
        network.there([&] { server.start(std::string(server_host) + ":0"); });
        port = server.port();
    }
    sse::server server;
    std::uint16_t port = 0;
};

const connect_options over_there{.host = server_host};

/// Until the server has let go of its only client.
void time_to_notice(two_namespaces& network, remote_server& at, const std::string& name) {
    const auto down = network.between->cut(at.port);
    const bool gone = eventually([&] { return at.server.counters().connections == 0; }, 100s);
    const auto took = steady::now() - down;
    say(gone && took < 90s, name, gone ? "gone after " + seconds(took) : "still there");
}

void idle_stream(two_namespaces& network) {
    sse::options o = with_threads(1);
    o.heartbeat = 0ms;
    remote_server at(network, o);
    const event_client client(at.port, "/subscribe", {}, over_there);
    time_to_notice(network, at, "link down under an idle stream without heartbeats");
}

void stream_with_heartbeats(two_namespaces& network) {
    remote_server at(network, with_threads(1));
    const event_client client(at.port, "/subscribe", {}, over_there);
    time_to_notice(network, at, "link down under an idle stream with heartbeats");
}

void busy_stream(two_namespaces& network) {
    remote_server at(network, with_threads(1));
    const event_client client(at.port, "/subscribe", {}, over_there);
    std::atomic<bool> done{false};
    std::thread publisher([&] {
        while (!done) {
            at.server.broadcast({.data = "x"});
            std::this_thread::sleep_for(100ms);
        }
    });
    time_to_notice(network, at, "link down under a stream with data");
    done = true;
    publisher.join();
}

void waiting_handler(two_namespaces& network) {
    std::atomic<bool> cancelled{false};
    remote_server at(network, with_threads(1), [&](sse::server& s) {
        s.route("GET", "/wait", [&](sse::stream& client) -> asio::awaitable<void> {
            try {
                co_await client.sleep_for(10min);
            } catch (...) {
                cancelled = true;
                throw;
            }
        });
    });
    connection client(at.port, over_there);
    client.send_request("GET", "/wait");
    if (!eventually([&] { return at.server.counters().connections == 1; })) return;
    std::this_thread::sleep_for(1s); // until its request has arrived, or nothing is tested
    time_to_notice(network, at, "link down under a handler that waits");
    const bool told = eventually([&] { return cancelled.load(); });
    say(told, "that handler", told ? "was cancelled" : "was not cancelled");
}

void event_source(two_namespaces& network) {
    sse::options o = with_threads(1);
    o.heartbeat = 0ms;
    remote_server at(network, o);
    asio::io_context context;
    const std::string url =
        "http://" + std::string(server_host) + ":" + std::to_string(at.port) + "/subscribe";
    sse::client_options how;
    how.reconnect = false;
    sse::client events(context.get_executor(), url, how);
    std::atomic<bool> begun{false}, ended{false};
    const auto read_all = [&]() -> asio::awaitable<void> {
        while (co_await events.next()) begun = true;
    };
    asio::co_spawn(context, read_all(), [&](std::exception_ptr) { ended = true; });
    std::thread runner([&] { context.run_for(150s); });
    const bool open = eventually([&] {
        if (at.server.counters().streams == 1 && !begun) at.server.broadcast({.data = "x"});
        return begun.load();
    });
    const auto down = network.between->cut(at.port);
    const bool noticed = open && eventually([&] { return ended.load(); }, 100s);
    const auto took = steady::now() - down;
    say(noticed && took < 90s, "link down under an sse::client without silence_timeout",
        noticed ? "its connection ended after " + seconds(took) : "it still waits");
    context.stop();
    runner.join();
}

void bad_link(two_namespaces& network) {
    constexpr int messages = 800;
    remote_server at(network, with_threads(1));
    network.between->set(at.port, {.loss = 0.05, .delay = 200ms});
    event_client client(at.port, "/subscribe", {}, {.host = server_host, .until = 60s});
    const auto now = [] {
        return std::chrono::duration_cast<std::chrono::milliseconds>(
                   steady::now().time_since_epoch())
            .count();
    };
    std::thread publisher([&] {
        for (int i = 0; i < messages; ++i) {
            at.server.broadcast({.data = std::to_string(i) + " " + std::to_string(now())});
            std::this_thread::sleep_for(50ms);
        }
    });
    std::vector<long long> delays;
    int in_order = 0;
    try {
        for (int i = 0; i < messages; ++i) {
            const std::string data = client.next(40s).data;
            if (std::atoi(data.c_str()) == i) ++in_order;
            delays.push_back(now() - std::atoll(data.c_str() + data.find(' ')));
        }
    } catch (const std::exception& e) { std::printf("# %s\n", e.what()); }
    publisher.join();
    std::sort(delays.begin(), delays.end());
    const std::size_t n = delays.size();
    say(in_order == messages, "5 % loss and 200 ms of delay each way",
        std::to_string(in_order) + " of " + std::to_string(messages) + " messages in order, " +
            (n == 0 ? ""
                    : "median " + std::to_string(delays[n / 2]) + " ms, 99 % within " +
                          std::to_string(delays[n * 99 / 100]) + " ms, the last after " +
                          std::to_string(delays[n - 1]) + " ms"));
}

/// A client that stops reading for a minute.
void zero_window(two_namespaces& network, std::chrono::milliseconds stall, bool is_cut) {
    constexpr int messages = 16;
    const std::string payload(1024 * 1024, 'x');
    sse::options o = with_threads(1);
    o.timeouts.stall = stall;
    std::atomic<bool> as_stalled{false};
    o.hooks.on_disconnect = [&](const sse::stream_info&, sse::end_reason why) {
        as_stalled = why == sse::end_reason::stalled;
    };
    remote_server at(network, o);
    event_client client(at.port, "/subscribe", {},
                        {.host = server_host, .receive_buffer = 16 * 1024});
    for (int i = 0; i < messages; ++i) at.server.broadcast({.data = payload});
    const auto begun = steady::now();
    const bool gone =
        eventually([&] { return at.server.counters().connections == 0; }, is_cut ? 90s : 62s);
    const auto took = steady::now() - begun;
    const std::string name = "a window of zero, stall_timeout " + seconds(stall);
    if (is_cut) {
        return say(gone && as_stalled, name,
                   (gone ? "cut after " + seconds(took) : std::string("still there")) +
                       (as_stalled ? "" : ", not by us"));
    }
    int got = 0;
    try {
        while (got < messages && client.next(60s).data == payload) ++got;
    } catch (const std::exception& e) { std::printf("# %s\n", e.what()); }
    say(!gone && got == messages, name,
        gone ? "cut after " + seconds(took)
             : "all " + std::to_string(got) + " messages after " + seconds(took));
}

int run() {
    std::optional<two_namespaces> network;
    try {
        network.emplace();
    } catch (const std::exception& e) {
        std::printf("1..0 # SKIP this system does not allow it: %s\n", e.what());
        return 0;
    }
    const std::vector<std::function<void()>> all = {
        [&] { idle_stream(*network); },
        [&] { stream_with_heartbeats(*network); },
        [&] { busy_stream(*network); },
        [&] { waiting_handler(*network); },
        [&] { event_source(*network); },
        [&] { bad_link(*network); },
        [&] { zero_window(*network, 30s, true); },
        [&] { zero_window(*network, 5min, false); },
    };
    std::vector<std::thread> threads;
    for (const auto& each : all) {
        threads.emplace_back([&each] {
            try {
                each();
            } catch (const std::exception& e) { say(false, "a scenario threw", e.what()); }
        });
    }
    for (std::thread& each : threads) each.join();
    std::printf("1..%d\n", passed + failed);
    return failed == 0 ? 0 : 1;
}

} // namespace network_test

int main() { return network_test::run(); }
