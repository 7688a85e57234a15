// trials.hpp - what a soak tries beside the storm, each for itself: a log that nobody reads or that
// has no room, a closed terminal, a limit that is reached, finite responses in the midst of a
// drain, thousands that catch up at once, a child process that outlives its server.
//
// A trial says what went wrong, and counts what it did: one that did nothing has failed.
#pragma once

#include "client.hpp"
#include "handlers.hpp"
#include "server.hpp"
#include "swarm.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace support {

/// A program that lives on with what it has inherited, until this ends.
class straggler {
public:
    /// Returns once the program runs: until then it has also what it is not to inherit.
    straggler() : program_({"/bin/sh", "-c", "echo runs; exec sleep 86400"}) {
        program_.read_line();
        program_.close_output();
    }

private:
    process program_;
};

class trials {
public:
    /// The program of the hub; empty: what needs it is left out.
    explicit trials(std::string hub) : hub_(std::move(hub)) {}

    void run() {
        if (hub_.empty()) {
            row("the hub", "left out: EXAMPLES must name the directory of the built hub");
        } else {
            for (const log_kind kind : {log_kind::unread, log_kind::abandoned, log_kind::full})
                attempt("a hub with a log", [&] { hub_with_log(kind); });
            row("hubs with a log that is not read, was left, is full",
                count(hubs_) + ", ended by SIGHUP; messages delivered " + count(delivered_) +
                    ", lines left out and counted " + count(left_out_));
            attempt("a limit", [&] { limit_is_reached(); });
        }
        attempt("a drain", [&] { finite_responses_in_a_drain(); });
        attempt("a catch-up", [&] { thousands_catch_up(); });
    }

    const std::vector<std::string>& faults() const { return faults_; }
    const std::vector<std::pair<std::string, std::string>>& rows() const { return rows_; }

private:
    using clock = std::chrono::steady_clock;

    enum class log_kind { unread, abandoned, full };

    static std::string count(std::uint64_t n) { return std::to_string(n); }
    static std::string count_of(std::chrono::milliseconds time) {
        return count(static_cast<std::uint64_t>(time.count()));
    }
    void row(std::string name, std::string value) {
        rows_.emplace_back(std::move(name), std::move(value));
    }
    void require(bool right, const std::string& otherwise) {
        if (!right) faults_.push_back(otherwise);
    }
    template <class Trial>
    void attempt(const std::string& name, Trial trial) {
        try {
            trial();
        } catch (const std::exception& e) { faults_.push_back(name + ": " + e.what()); }
    }

    static process start_hub(const std::string& command) {
        return process({"/bin/sh", "-c", "exec " + command});
    }
    static void publish(std::uint16_t port, const std::string& text) {
        const auto told = http_request(
            port, "POST", "/publish/trial",
            {{"Authorization", "Bearer secret"}, {"Content-Type", "text/plain"}}, text);
        if (told.status != 202) throw bad_response("publishing got " + std::to_string(told.status));
    }
    /// Requests whose path fills a log.
    static void fill_log(std::uint16_t port, int requests) {
        const std::string target = "/" + std::string(8000, 'x');
        for (int i = 0; i < requests; ++i) std::ignore = http_get(port, target);
    }

    void hub_with_log(log_kind kind) {
        const std::string pipe = "/tmp/sse-soak-" + std::to_string(::getpid());
        ::unlink(pipe.c_str());
        if (::mkfifo(pipe.c_str(), 0600) != 0) throw_errno("mkfifo");
        descriptor reader(::open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
        process hub({"/bin/sh", "-c",
                     "exec '" + hub_ + "' --port 0 --publish-token secret --log debug 2>" +
                         (kind == log_kind::full ? "/dev/full" : pipe)});
        const std::uint16_t port = port_in(hub.read_line());
        ::unlink(pipe.c_str());
        if (kind == log_kind::abandoned) reader.close();

        constexpr std::uint64_t messages = 50;
        swarm clients(port, {.clients = 50, .target = "/subscribe/trial"});
        require(clients.connect(std::chrono::seconds(30)), "clients get no streams of a hub");
        for (std::uint64_t n = 1; n <= messages; ++n) {
            fill_log(port, kind == log_kind::unread ? 4 : 1);
            publish(port, std::to_string(n));
        }
        require(clients.run_until_all_saw(messages, std::chrono::seconds(30)) &&
                    clients.all_saw_exactly(1, messages),
                "clients of a hub with a log of kind " + count(static_cast<std::uint64_t>(kind)) +
                    ": " + clients.describe());
        delivered_ += clients.events();
        if (kind == log_kind::unread) left_out_ += read_left_out(reader.get());
        if (kind == log_kind::unread) fill_log(port, 20);

        hub.signal(SIGHUP);
        require(clients.run_until_all_closed(std::chrono::seconds(30)),
                "a closed terminal leaves clients of a hub without an end");
        require(hub.read_line() == "hub: disconnected 50 clients",
                "a hub ends without its last word");
        require(hub.wait_for_exit(std::chrono::seconds(30)).code == 0,
                "a hub does not end well on SIGHUP");
        ++hubs_;
    }

    /// What the log says, once it is read, of lines that it has not.
    static std::uint64_t read_left_out(int log) {
        constexpr std::string_view words = "could not be written and are left out: ";
        std::string seen;
        const bool told = eventually([&] {
            char bytes[64 * 1024];
            const ssize_t n = ::read(log, bytes, sizeof bytes);
            if (n > 0) seen.append(bytes, static_cast<std::size_t>(n));
            const std::size_t at = seen.find(words);
            return at != seen.npos && seen.find('\n', at) != seen.npos;
        });
        if (!told) throw timed_out("the log does not say that lines are missing");
        return std::stoull(seen.substr(seen.find(words) + words.size()));
    }

    void limit_is_reached() {
        constexpr std::size_t limit = 20, all = 60;
        process hub =
            start_hub("'" + hub_ + "' --port 0 --publish-token secret --max-connections " +
                      count(limit) + " 2>&1");
        const std::uint16_t port = port_in(hub.read_line());
        {
            swarm crowd(port, {.clients = all, .target = "/subscribe/trial"});
            std::ignore = crowd.run([&] { return crowd.open() + crowd.lost() == all; },
                                    std::chrono::seconds(30), true);
            const std::size_t refused = crowd.count_unless(
                [](const subscriber_record& each) { return each.status != 503; });
            require(crowd.open() == limit && refused == all - limit,
                    "at a limit of 20 streams: " + crowd.describe());
            crowd.leave(true);
        }
        const auto again = [&] { // once the hub has seen them leave
            swarm next(port, {.clients = limit, .target = "/subscribe/trial"});
            const bool all_in = next.connect(std::chrono::seconds(5));
            next.leave(true);
            return all_in;
        };
        require(eventually(again), "nobody gets in though all have left");
        hub.signal(SIGTERM);
        std::istringstream lines(hub.read_to_end());
        std::uint64_t told = 0;
        for (std::string line; std::getline(lines, line);) {
            if (line.find("refused") == line.npos) continue;
            told += line.ends_with(" times") ? std::stoull(line.substr(line.rfind(", ") + 2)) : 1;
        }
        require(told >= all - limit, "the log tells of " + count(told) + " refused clients");
        row("a limit that is reached", count(limit) + " served, " + count(told) +
                                           " refused and in the log, then " + count(limit) +
                                           " others served");
    }

    /// Each is whole, or its client can tell that it is not.
    void finite_responses_in_a_drain() {
        constexpr std::size_t all = 40, events = 20;
        running_server server(with_threads(2), [](sse::server& made) {
            made.route("GET", "/finite", [](sse::stream& client) -> handler_result {
                for (std::size_t n = 1; n <= events; ++n) {
                    const std::string text = std::to_string(n);
                    co_await client.send({.data = text});
                    co_await client.sleep_for(std::chrono::milliseconds(50));
                }
                co_await client.send({.data = "done"});
            });
        });
        std::vector<std::unique_ptr<event_client>> clients;
        while (clients.size() < all) {
            clients.push_back(std::make_unique<event_client>(server.port(), "/finite"));
            std::ignore = clients.back()->next();
        }
        std::thread stop([&] {
            std::ignore = server.drain(sse::drain_options{.window = std::chrono::seconds(4)});
        });
        std::size_t whole = 0;
        for (auto& client : clients) {
            std::string last;
            while (const auto event = client->next_or_end()) last = event->data;
            if (last == "done" && client->wait_for_close() == ending::last_chunk) ++whole;
        }
        stop.join();
        require(whole == all, "of " + count(all) + " finite responses " + count(whole) +
                                  " were whole in a drain with time for all of them");
        row("finite responses in a drain", count(whole) + " of " + count(all) + " whole");
    }

    /// Reads streams as fast as they come, and knows only their size and whether their last event
    /// came: who parses them all would be slower than the server, which is what is on trial.
    class fast_readers {
    public:
        fast_readers(std::uint16_t port, std::size_t count, const std::string& target,
                     std::string last)
            : last_(std::move(last)), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
            while (readers_.size() < count) {
                connection one(port);
                readers_.push_back({descriptor(::fcntl(one.native_handle(), F_DUPFD_CLOEXEC, 0))});
                epoll_event wanted{EPOLLIN, {}};
                wanted.data.u64 = readers_.size() - 1;
                ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, readers_.back().socket.get(), &wanted);
            }
            const std::string request = "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n\r\n";
            for (reader& each : readers_)
                if (::send(each.socket.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0)
                    throw_errno("send");
        }

        /// False when the deadline passed, or a stream ended.
        bool read_all(deadline until) {
            while (complete_ < readers_.size()) {
                std::array<epoll_event, 256> events;
                const int count = ::epoll_wait(epoll_.get(), events.data(), 256, 100);
                for (int i = 0; i < count; ++i)
                    if (!read(readers_[events[static_cast<std::size_t>(i)].data.u64])) return false;
                if (until.passed()) return false;
            }
            return true;
        }
        std::uint64_t bytes() const {
            std::uint64_t sum = 0;
            for (const reader& each : readers_) sum += each.bytes;
            return sum;
        }
        bool all_got_the_same() const {
            return std::all_of(readers_.begin(), readers_.end(), [&](const reader& each) {
                return each.bytes == readers_.front().bytes;
            });
        }

    private:
        struct reader {
            descriptor socket;
            std::uint64_t bytes = 0;
            std::string tail = {}; // as long as the last event, which may come in pieces
        };

        bool read(reader& one) {
            const ssize_t n = ::recv(one.socket.get(), buffer_.data(), buffer_.size(), 0);
            if (n < 0) return errno == EAGAIN;
            if (n == 0) return false;
            one.bytes += static_cast<std::uint64_t>(n);
            const std::string_view got(buffer_.data(), static_cast<std::size_t>(n));
            one.tail.append(got.substr(got.size() - std::min(got.size(), last_.size())));
            if (one.tail.size() > last_.size()) one.tail.erase(0, one.tail.size() - last_.size());
            if (one.tail == last_) ++complete_;
            return true;
        }

        std::string last_;
        descriptor epoll_;
        std::vector<reader> readers_;
        std::size_t complete_ = 0;
        std::array<char, 256 * 1024> buffer_{};
    };

    /// Those who come back from far behind get all of it, and whoever is there already does not
    /// wait for them.
    void thousands_catch_up() {
        constexpr std::uint64_t behind = 10'000;
        // Each costs two descriptors, since the server is in this program too.
        const std::size_t clients =
            std::min<std::size_t>(3000, (raise_descriptor_limit() - 200) / 2);
        sse::options o = with_threads(1);
        o.limits.connections = 0;
        o.heartbeat = std::chrono::milliseconds(0); // only those who wait long would get one
        running_server server(o);
        const std::string filling = " " + std::string(94, 'x');
        for (std::uint64_t n = 1; n <= behind; ++n)
            server.publish("/old", {.data = std::to_string(n) + filling});

        event_client steady(server.port(), "/subscribe/steady");
        std::atomic<bool> over{false};
        std::thread publisher([&] {
            while (!over) {
                const auto now = clock::now().time_since_epoch().count();
                const std::string text = std::to_string(now);
                std::ignore = server.try_publish("/steady", {.data = text, .ephemeral = true});
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
            }
        });
        // Of the steady client's messages, first without the others, then beside them.
        std::vector<clock::duration> quiet, waits;
        std::atomic<bool> crowded{false};
        std::thread reader([&] {
            try {
                while (const auto event = steady.next_or_end()) {
                    const clock::duration sent{std::stoll(event->data)};
                    (crowded ? waits : quiet).push_back(clock::now().time_since_epoch() - sent);
                }
            } catch (const std::exception&) {} // it waits in vain: there are too few then
        });
        std::this_thread::sleep_for(std::chrono::milliseconds(500)); // what is quiet
        crowded = true;
        fast_readers crowd(server.port(), clients, "/subscribe/old?from=oldest",
                           "data: " + count(behind) + filling + "\n\n");
        const bool all = crowd.read_all(std::chrono::seconds(60));
        over = true;
        publisher.join();
        server.stop();
        reader.join();
        require(all && crowd.all_got_the_same(), "not all who catch up at once get the same");
        if (std::min(quiet.size(), waits.size()) < 20)
            return require(false, "beside those who catch up nothing comes");
        const auto slow = [](std::vector<clock::duration>& times) { // one of a hundred is slower
            std::sort(times.begin(), times.end());
            return std::chrono::duration_cast<std::chrono::milliseconds>(
                times[times.size() * 99 / 100]);
        };
        const auto alone = slow(quiet), late = slow(waits);
        row("catching up at once",
            count(clients) + " clients, " + count(behind) + " messages each, " +
                count(crowd.bytes() / 1'000'000) + " MB; beside them 99 of 100 messages within " +
                count_of(late) + " ms, without them " + count_of(alone) + " ms");
    }

    std::string hub_;
    std::uint64_t hubs_ = 0, delivered_ = 0, left_out_ = 0;
    std::vector<std::string> faults_;
    std::vector<std::pair<std::string, std::string>> rows_;
};

} // namespace support
