// server.cpp - the bare benchmark server, for load tools of any origin. From the folder of sse.hpp:
//
//   g++ -O2 -std=c++20 -pthread -I. bench/server.cpp -o server
//   ./server --port 8080 --rate 200 --payload 100      200 messages a second, from the start
//   ./server --port 8080 --rate 0 --burst 100000       then: kill -USR2 <pid>, as often as you like
//   curl -N http://127.0.0.1:8080/
//
// Streams are served on `/` (a route with a handler) and `/subscribe/` (built in). The data line of
// message n is `<n> <send_ns> <padding>`: n counts 1, 2, 3 ... over the server's life, send_ns is
// CLOCK_MONOTONIC at the publish call. SIGINT and SIGTERM end it; the counters are printed then.
#include "bench.hpp"

#include "sse.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <cinttypes>
#include <exception>
#include <limits>

namespace {

struct settings {
    std::uint16_t port = 8080;
    std::uint64_t rate = 20;
    std::uint64_t payload = 100;
    std::uint64_t threads = 1;
    std::uint64_t burst = 0;
};

sse::options options_of(const settings& set) {
    sse::options options;
    options.threads = set.threads;
    options.limits.connections = 0;
    // A burst is published far faster than clients read it: what they have yet to get is kept here.
    options.history.messages = std::size_t{1} << 20;
    options.history.bytes = std::size_t{512} << 20;
    options.hooks.on_error = [](std::exception_ptr) {
        std::fputs("server: handler failed\n", stderr);
    };
    return options;
}

/// Publishes at a rate or in bursts, until a signal says stop.
class publisher {
public:
    // Signals are read from a descriptor, so nothing runs in a signal handler. The mask comes
    // before the server's threads, which inherit it.
    publisher(const settings& set, sse::server& server)
        : set_(set), server_(server), line_(set.payload), signals_(block_signals()) {}

    ~publisher() { close(signals_); }
    publisher(const publisher&) = delete;
    publisher& operator=(const publisher&) = delete;

    void run() {
        ticker_.start(set_.rate);
        std::array<pollfd, 2> waited{{{signals_, POLLIN, 0}, {ticker_.descriptor(), POLLIN, 0}}};
        while (!ended_) {
            const int patience = wanted_ > 0 ? 0 : -1;
            if (poll(waited.data(), waited.size(), patience) > 0 && waited[0].revents != 0) obey();
            wanted_ += ticker_.due();
            // A slice at a time, for a signal must be heard in the longest burst.
            for (int slice = 0; slice < 256 && wanted_ > 0 && !ended_; ++slice) publish();
        }
    }

    std::uint64_t waits() const noexcept { return waits_; }

private:
    static constexpr auto endless = std::numeric_limits<std::uint64_t>::max() / 2;

    static int block_signals() {
        sigset_t set;
        sigemptyset(&set);
        for (int signal : {SIGINT, SIGTERM, SIGUSR2}) sigaddset(&set, signal);
        pthread_sigmask(SIG_BLOCK, &set, nullptr);
        return bench::checked(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
    }

    void obey() {
        signalfd_siginfo info{};
        while (read(signals_, &info, sizeof info) == sizeof info)
            if (info.ssi_signo != SIGUSR2)
                ended_ = true;
            else if (set_.rate == 0)
                wanted_ = set_.burst == 0 ? endless : wanted_ + set_.burst;
    }

    // publish() waits for room a while; a message that found none stays wanted and is stamped anew.
    void publish() {
        try {
            server_.publish("/", {.data = line_.make(seq_ + 1)});
            ++seq_;
            --wanted_;
        } catch (const std::system_error& error) {
            if (error.code() != sse::errc::no_room) throw;
            ++waits_;
        }
    }

    const settings& set_;
    sse::server& server_;
    bench::ticker ticker_;
    bench::stamped_line line_;
    int signals_;
    std::uint64_t seq_ = 0;
    std::uint64_t wanted_ = 0;
    std::uint64_t waits_ = 0;
    bool ended_ = false;
};

void print_counters(const sse::counters& counters, std::uint64_t waits) {
    const auto print = [](const char* name, std::uint64_t value) {
        std::printf("%-12s %" PRIu64 "\n", name, value);
    };
    print("published", counters.published);
    print("no room", counters.no_room);
    print("gave up", waits);
    print("accepted", counters.accepted);
    print("refused", counters.refused);
    print("connections", counters.connections);
    print("streams", counters.streams);
    print("delivered", counters.delivered);
    print("bytes", counters.bytes);
    print("lagged", counters.lagged);
}

int run(const settings& set) {
    bench::raise_file_limit();
    sse::server server(options_of(set));
    publisher publisher(set, server);
    server.route("GET", "/", [](sse::stream& client) -> asio::awaitable<void> {
        client.subscribe("/");
        co_return;
    });
    server.start("127.0.0.1:" + std::to_string(set.port));
    std::printf("http://127.0.0.1:%d/ pid %d\n", server.port(), getpid());
    std::fflush(stdout);
    publisher.run();
    const sse::counters counters = server.counters(); // before the streams are closed
    server.stop();
    server.join();
    print_counters(counters, publisher.waits());
    return 0;
}

settings parse(int count, char** values) {
    settings set;
    bench::flags flags("server", "the bare benchmark server; listens on 127.0.0.1.");
    flags.number<std::uint16_t>("--port", set.port, 0, 65'535, "to listen on, 0: any free one");
    flags.number<std::uint64_t>("--rate", set.rate, 0, 1'000'000,
                                "messages a second; 0: bursts, one at each SIGUSR2");
    flags.number<std::uint64_t>("--payload", set.payload, 0, 1 << 20, "bytes after the stamp");
    flags.number<std::uint64_t>("--threads", set.threads, 0, 256, "workers; 0: one for each core");
    flags.number<std::uint64_t>("--burst", set.burst, 0, 1'000'000'000,
                                "messages in a burst, as fast as the ring takes them; 0: endless");
    flags.parse(count, values);
    return set;
}

} // namespace

int main(int count, char** values) {
    const settings set = parse(count, values);
    return bench::run_program("server", [&] { return run(set); });
}
