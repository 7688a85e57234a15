// press.hpp - what runs against the clients of storm.hpp: servers, one after the other on one port,
// and who publishes to the one that runs.
//
//   support::service server(options);
//   server.start();
//   support::press publishers(server, {.seed = 1});
//   ...
//   const support::event_id end = publishers.end(published); // who has come to it has had
//   everything
#pragma once

#include "server.hpp"
#include "storm.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace support {

/// A port that stays ours while nobody listens: else a client that connects meanwhile could be
/// given the very port that it connects to, and would talk to itself.
class reserved_port {
public:
    reserved_port() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP)) {
        const int yes = 1;
        ::setsockopt(socket_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        const socket_address any("127.0.0.1", 0);
        if (::bind(socket_.get(), any.get(), any.size()) != 0) throw_errno("bind");
        sockaddr_in address{};
        socklen_t size = sizeof address;
        ::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size);
        number_ = ntohs(address.sin_port);
    }
    std::uint16_t number() const { return number_; }

    /// Without a server, as scripted: to each connection its stream, and then the end. What the
    /// requests had as Last-Event-ID.
    std::vector<std::string> serve(const std::vector<std::string>& streams) {
        std::vector<std::string> asked;
        if (::listen(socket_.get(), 16) != 0) throw_errno("listen");
        for (const std::string& stream : streams) {
            if (!wait_for(socket_.get(), POLLIN, patience)) throw timed_out("nobody connected");
            connection peer(descriptor(
                ::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)));
            const std::string head = peer.read_through("\r\n\r\n");
            constexpr std::string_view name = "Last-Event-ID: ";
            const std::size_t at = head.find(name);
            asked.push_back(at == head.npos ? "none"
                                            : head.substr(at + name.size(),
                                                          head.find('\r', at) - at - name.size()));
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + stream);
        }
        return asked;
    }

private:
    descriptor socket_;
    std::uint16_t number_ = 0;
};

/// One server after the other on one port. Each is a run of the ledger, and has its epoch.
class service {
public:
    struct running {
        std::shared_ptr<sse::server> server; ///< Empty: none runs.
        std::size_t run = 0;
    };

    /// `send_buffer` is what the system takes for a client that does not read; 0: as it likes.
    /// `prepare` adds routes to each server.
    explicit service(sse::options o, int send_buffer = 0,
                     std::function<void(sse::server&)> prepare = {})
        : options_(with_tls_by_default(std::move(o))), send_buffer_(send_buffer),
          prepare_(std::move(prepare)) {}
    ~service() {
        if (current().server) stop();
    }

    void start() {
        auto server = std::make_shared<sse::server>(options_);
        if (prepare_) prepare_(*server);
        const auto id = parse_event_id(server->last_id());
        if (!id || id->place != 0) throw std::runtime_error("begins with " + server->last_id());
        {
            const std::lock_guard lock(mutex_);
            epochs_.push_back(id->epoch);
            returned_ = 0;
            // Known before it listens: a client with a head of it may ask for its newest id.
            current_ = {server, epochs_.size() - 1};
        }
        if (send_buffer_ == 0) {
            server->start("127.0.0.1:" + std::to_string(port()));
        } else {
            asio::io_context io;
            asio::ip::tcp::acceptor listener(io);
            listener.open(asio::ip::tcp::v4());
            listener.set_option(asio::socket_base::reuse_address(true));
            listener.set_option(asio::socket_base::send_buffer_size(send_buffer_)); // inherited
            listener.bind({asio::ip::address_v4::loopback(), port()});
            listener.listen();
            server->start(std::move(listener));
        }
    }

    void stop() {
        const auto server = current().server;
        server->stop();
        server->join();
        forget(*server);
    }
    sse::drain_result drain(const sse::drain_options& options) {
        const auto server = current().server;
        const sse::drain_result result = server->drain(options);
        server->join();
        forget(*server);
        return result;
    }

    running current() const {
        const std::lock_guard lock(mutex_);
        return current_;
    }
    std::string newest() const {
        const auto server = current().server;
        return server ? server->last_id() : std::string();
    }
    std::uint16_t port() const { return port_.number(); }
    /// Of the newest server.
    std::string epoch() const {
        const std::lock_guard lock(mutex_);
        return epochs_.back();
    }
    std::vector<std::string> epochs() const {
        const std::lock_guard lock(mutex_);
        return epochs_;
    }
    /// For those that start from now on.
    void set_lag(sse::lag_policy policy) { options_.history.lag = policy; }

    /// The highest place that a publisher of this run has been told.
    std::uint64_t returned() const { return returned_; }
    void has_returned(std::uint64_t place) {
        std::uint64_t known = returned_;
        while (known < place && !returned_.compare_exchange_weak(known, place)) {}
    }

    /// Summed over the servers so far; open connections and streams are those of the newest.
    sse::counters counters() const {
        const std::lock_guard lock(mutex_);
        return current_.server ? sum_of(stopped_, current_.server->counters()) : stopped_;
    }

private:
    static sse::counters sum_of(sse::counters sum, const sse::counters& newest) {
        sum.connections = newest.connections;
        sum.streams = newest.streams;
        sum.published += newest.published;
        sum.delivered += newest.delivered;
        sum.lagged += newest.lagged;
        sum.gaps += newest.gaps;
        return sum;
    }

    void forget(const sse::server& server) {
        const std::lock_guard lock(mutex_);
        stopped_ = sum_of(stopped_, server.counters());
        current_.server.reset(); // whoever still publishes destroys it
    }

    sse::options options_;
    int send_buffer_;
    std::function<void(sse::server&)> prepare_;
    reserved_port port_;
    mutable std::mutex mutex_;
    running current_;
    std::vector<std::string> epochs_;
    std::atomic<std::uint64_t> returned_{0};
    sse::counters stopped_;
};

struct published_in_run {
    std::size_t run; ///< Of all that the service has started.
    published_message message;
};

struct press_options {
    std::size_t messages_per_second = 1000;
    std::uint64_t seed = 1;
    /// Now and then up to half a second's messages come at once, after a pause for them.
    bool bursts = false;
};

/// Publishes on random topics, half of all messages, until it is stopped, to the server that runs.
class publisher {
public:
    publisher(service& target, std::uint8_t number, const press_options& options)
        : service_(target), number_(number), options_(options), random_(options.seed + number),
          pause_(std::chrono::nanoseconds(std::chrono::seconds(2)) /
                 static_cast<std::int64_t>(options.messages_per_second)),
          thread_([this](std::stop_token stop) { run(stop); }) {}

    void finish() {
        thread_.request_stop();
        if (thread_.joinable()) thread_.join();
    }
    /// What stopped it before its time, or empty. After finish().
    const std::string& trouble() const { return trouble_; }

    /// While another thread has it, nothing is being published here. It guards the next two.
    std::mutex& publishing() { return publishing_; }
    void hold(bool on) { held_ = on; }
    /// All that it has published since the last call.
    std::vector<published_in_run> take() { return std::exchange(messages_, {}); }

private:
    std::string topic() {
        const std::size_t throw_of_dice = random_() % 200;
        if (throw_of_dice == 0) return "/quiet";
        if (throw_of_dice < 20) return {}; // everyone
        if (throw_of_dice < 70) return "/a";
        if (throw_of_dice < 80) return "/a/deep";
        if (throw_of_dice < 120) return "/b";
        if (throw_of_dice < 180) return "/c/" + std::to_string(random_() % 10);
        return "/nobody/but/who/follows/all";
    }

    std::size_t next_count() {
        const std::size_t most = options_.messages_per_second / 4; // this one has half of them
        if (!options_.bursts || most == 0 || random_() % options_.messages_per_second != 0)
            return 1;
        return 1 + random_() % most;
    }

    void run(const std::stop_token& stop) {
        using namespace std::chrono_literals;
        try {
            auto due = std::chrono::steady_clock::now();
            while (!stop.stop_requested()) {
                const std::size_t count = next_count();
                due = std::max(due + pause_ * static_cast<std::int64_t>(count),
                               std::chrono::steady_clock::now() - 100ms);
                std::this_thread::sleep_until(due); // the rate, not a condition
                for (std::size_t i = 0; i < count && !stop.stop_requested(); ++i) publish_one();
            }
        } catch (const std::exception& e) { trouble_ = e.what(); }
    }

    void publish_one() {
        const std::lock_guard lock(publishing_);
        if (held_) return;
        const auto [server, run] = service_.current();
        if (!server) return; // between two runs
        const message_key key{static_cast<std::uint8_t>(run), number_, next_++};
        const std::string on = topic(), data = data_of(key);
        try {
            const std::uint64_t place = on.empty() ? server->broadcast({.data = data})
                                                   : server->publish(on, {.data = data});
            messages_.push_back({run, {place, on, key}});
            service_.has_returned(place);
        } catch (const std::system_error& e) {
            if (e.code() != sse::errc::stopped && e.code() != sse::errc::no_room) throw;
        }
    }

    service& service_;
    std::uint8_t number_;
    press_options options_;
    std::mt19937_64 random_;
    std::chrono::nanoseconds pause_;
    std::mutex publishing_;
    bool held_ = false;
    std::uint32_t next_ = 0;
    std::vector<published_in_run> messages_;
    std::string trouble_;
    std::jthread thread_; // last: it uses the others
};

/// The two publishers of a test.
class press {
public:
    press(service& target, const press_options& options)
        : service_(target), first_(target, 1, options), second_(target, 2, options) {}

    /// Adds to the ledger what was published since the last call: all that a client may have seen
    /// by now.
    void collect(ledger& published) {
        std::vector<published_in_run> fresh;
        {
            // Both at once, or a place of the one would be there without those of the other before.
            const std::scoped_lock quiet(first_.publishing(), second_.publishing());
            for (publisher* each : {&first_, &second_})
                for (published_in_run& one : each->take()) fresh.push_back(std::move(one));
        }
        std::sort(fresh.begin(), fresh.end(), [](const auto& a, const auto& b) {
            return std::tie(a.run, a.message.place) < std::tie(b.run, b.message.place);
        });
        const std::vector<std::string> epochs = service_.epochs();
        for (std::size_t n = published.forgotten + published.runs.size(); n < epochs.size(); ++n)
            published.runs.push_back({epochs[n], {}});
        for (published_in_run& one : fresh)
            published.runs.at(one.run - published.forgotten)
                .messages.push_back(std::move(one.message));
    }

    /// Nothing is published from now on, until go_on(), but one more message for everyone. Its id.
    event_id pause(ledger& published) {
        hold(true);
        collect(published);
        const auto [server, run] = service_.current();
        const message_key key{static_cast<std::uint8_t>(run), 3, pauses_++};
        const std::string data = data_of(key);
        const std::uint64_t place = server->broadcast({.data = data});
        published.runs.back().messages.push_back({place, "", key});
        return {service_.epoch(), place};
    }
    void go_on() { hold(false); }

    /// The same for good.
    event_id end(ledger& published) {
        first_.finish();
        second_.finish();
        return pause(published);
    }
    /// After end().
    std::string trouble() const { return first_.trouble() + second_.trouble(); }

private:
    void hold(bool on) {
        const std::scoped_lock quiet(first_.publishing(), second_.publishing());
        first_.hold(on);
        second_.hold(on);
    }

    service& service_;
    publisher first_, second_;
    std::uint32_t pauses_ = 0;
};

/// Followers of what publishers publish, in all ways.
inline const std::vector<follower> all_kinds = {
    {"/subscribe", {"/"}},
    {"/subscribe/a", {"/a"}},
    {"/subscribe/b", {"/b"}},
    {"/subscribe/c", {"/c"}},
    {"/subscribe/c/3", {"/c/3"}},
    {"/subscribe/?topic=a&topic=b", {"/a", "/b"}},
    {"/subscribe?topic=/c/1&topic=/c/2&topic=/quiet", {"/c/1", "/c/2", "/quiet"}},
    {"/subscribe/a?topic=c/5", {"/a", "/c/5"}},
    {"/subscribe/quiet", {"/quiet"}},
    {"/subscribe/?from=oldest", {"/"}},
    {"/subscribe/b?last=20", {"/b"}},
    {"/subscribe/quiet?from=oldest", {"/quiet"}},
    {"/subscribe/a/deep", {"/a/deep"}, true},
    {"/subscribe/", {"/"}, true},
    {"/subscribe/nothing/here", {"/nothing/here"}}, // broadcasts only
};

} // namespace support
