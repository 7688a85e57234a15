// hand_over.cpp - a hub hands over to the next one under load, again and again: nobody is refused,
// each client comes back once for each hand-over, has every message once and in order, and is told
// of no gap.
//
// HAND_OVER_CLIENTS=5000 EXAMPLES=build/examples build/tests/hand_over
//
// The hub is that of the examples with a log in files, and SIGUSR2 makes it hand over. It runs in
// processes of its own, as it does in production; the clients are one thread of this one. Each
// follows one topic of many, and comes back as an EventSource does: after the time that the stream
// told, with its last id. Messages are published over HTTP, in requests of what is due, each on a
// connection of its own. A client knows the next message of its topic, so it sees at once what is
// lost, doubled or out of order.
//
// Nothing is judged by time. Publishing waits while a client is further behind than half of what
// the hub keeps in memory, so a machine that is too slow for the load gets less of it, and says so.
// It fails if for a minute nothing happens at all.
#include "support/client.hpp"
#include "support/event_stream.hpp"
#include "support/setting.hpp"
#include "support/temporary_folder.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <mutex>
#include <thread>

#include <sys/epoll.h>
#include <sys/prctl.h>

namespace hand_over_test {

using namespace std::chrono_literals;
using namespace support;
using clock = std::chrono::steady_clock;

namespace {

// ---- what is asked for --------------------------------------------------------------------------

struct settings {
    bool wanted = setting("HAND_OVER", 1, 0, 1) == 1;
    std::size_t clients = setting("HAND_OVER_CLIENTS", 500, 1, 9'000);
    std::size_t topics = setting("HAND_OVER_TOPICS", 50, 1, 10'000);
    std::size_t messages_per_second = setting("HAND_OVER_MSG_PER_SEC", 1000, 1, 100'000);
    std::size_t times = setting("HAND_OVER_TIMES", 2, 1, 1000);
    std::chrono::seconds between{setting("HAND_OVER_SEC", 2, 1, 3600)}; ///< Two of them.
    std::string hub;
};

/// Messages that a client may be behind; the hub keeps twice as many in memory.
constexpr std::uint64_t most_behind = 8 * 1024;

/// What takes longer than this does not happen any more.
constexpr std::chrono::seconds stuck = 60s;

double seconds_of(clock::duration time) { return std::chrono::duration<double>(time).count(); }

/// Of all threads. The first ones are shown.
class fault_list {
public:
    void add(const std::string& what) {
        const std::lock_guard lock(telling_);
        if (++count_ > 20) return;
        std::printf("FAULT %s\n", what.c_str());
        std::fflush(stdout);
    }
    std::uint64_t count() const { return count_; }

private:
    std::mutex telling_;
    std::atomic<std::uint64_t> count_{0};
};

// ---- the hubs -----------------------------------------------------------------------------------

/// The first hub, and those that it is replaced by. They become children of this process, which
/// must be a reaper of orphans.
class hub_line {
public:
    hub_line(const settings& asked, const std::string& log_folder)
        : first_({asked.hub, "--port", "0", "--publish-token", "secret", "--log-dir", log_folder,
                  "--history", std::to_string(2 * most_behind)}),
          port_(port_in(first_.read_line())), newest_(first_.pid()) {}
    ~hub_line() {
        if (newest_ == first_.pid()) return;
        ::kill(newest_, SIGKILL);
        while (::waitpid(newest_, nullptr, 0) < 0 && errno == EINTR) {}
    }
    hub_line(const hub_line&) = delete;
    hub_line& operator=(const hub_line&) = delete;

    std::uint16_t port() const { return port_; }

    /// Returns, once the former hub has ended, after what time the next one was there.
    clock::duration replace() {
        const auto begin = clock::now();
        const pid_t former = newest_;
        send(SIGUSR2);
        const std::string line = first_.read_line_with("handed over to process ", 10 * stuck);
        newest_ = static_cast<pid_t>(std::stol(line.substr(line.rfind(' '))));
        const auto taken = clock::now() - begin;
        wait_for(former);
        return taken;
    }
    void end() {
        send(SIGTERM);
        wait_for(newest_);
        newest_ = first_.pid();
    }

private:
    void send(int number) const {
        if (::kill(newest_, number) != 0) throw_errno("kill");
    }
    void wait_for(pid_t hub) {
        exit_status status;
        if (hub == first_.pid()) {
            status = first_.wait_for_exit(10 * stuck);
        } else {
            int raw = 0;
            if (!eventually([&] { return ::waitpid(hub, &raw, WNOHANG) == hub; }, 10 * stuck))
                throw timed_out("hub " + std::to_string(hub) + " does not end");
            if (WIFEXITED(raw)) status.code = WEXITSTATUS(raw);
        }
        if (status.code != 0) throw bad_response("hub " + std::to_string(hub) + " has failed");
    }

    process first_; // the output of all comes by it
    std::uint16_t port_;
    pid_t newest_;
};

// ---- the clients --------------------------------------------------------------------------------

class follower_crowd {
public:
    follower_crowd(const settings& asked, std::uint16_t port, fault_list& faults)
        : asked_(asked), port_(port), faults_(faults), clients_(asked.clients),
          epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        if (!epoll_) throw_errno("epoll_create1");
        for (std::size_t i = 0; i < clients_.size(); ++i) clients_[i].topic = i % asked.topics;
    }

    // Of the thread that runs it.

    /// False: for so long nothing came.
    template <class Condition>
    bool run_until(Condition&& condition) {
        auto last = clock::now();
        std::uint64_t before = events_;
        while (!condition()) {
            step();
            if (std::exchange(before, events_) != events_) last = clock::now();
            if (clock::now() - last > stuck) return false;
        }
        return true;
    }
    /// Streams that end are not opened again.
    void stay_away() { coming_back_ = false; }

    bool all_are_open() const { return open_ == clients_.size(); }
    bool all_are_gone() const { return open_ == 0 && under_way_ == 0; }
    bool all_have(std::uint64_t published) const {
        return std::all_of(clients_.begin(), clients_.end(),
                           [&](const client& c) { return position(c) >= published; });
    }
    std::uint64_t deliveries() const { return deliveries_; }
    /// How long each was without a stream, from the end of one to the next one's head.
    std::vector<clock::duration>& absences() { return absences_; }

    /// After so many hand-overs.
    void judge(std::uint64_t published, std::size_t hand_overs) {
        for (const client& c : clients_) {
            if (position(c) < published)
                fault(c, "has no message from " + std::to_string(c.next) + " on");
            if (c.streams != hand_overs + 1)
                fault(c, "had " + std::to_string(c.streams) + " streams, with " +
                             std::to_string(hand_overs) + " hand-overs");
        }
    }

    // Of any thread.

    /// The first message that some client has not got yet.
    std::uint64_t slowest() const { return slowest_; }

private:
    enum class state { away, connecting, head, open };

    struct client {
        std::size_t topic = 0;
        state now = state::away;
        descriptor socket;
        std::string head;
        event_stream_decoder decoder;
        std::string id;
        std::chrono::milliseconds retry = 3s; // as a browser's
        clock::time_point back{};             // when it comes, while it is away
        clock::time_point left{};
        std::uint64_t next = 0; // message of its topic
        std::size_t streams = 0;
    };

    /// In the order of all messages: what it waits for.
    std::uint64_t position(const client& c) const { return c.next * asked_.topics + c.topic; }

    void fault(const client& c, const std::string& what) {
        faults_.add("client " + std::to_string(&c - clients_.data()) + " " + what);
    }

    void step() {
        come_back();
        epoll_event ready[512];
        const int count = ::epoll_wait(epoll_.get(), ready, 512, 10);
        if (count < 0 && errno != EINTR) throw_errno("epoll_wait");
        for (int i = 0; i < count; ++i) {
            client& c = *static_cast<client*>(ready[i].data.ptr);
            if (c.now == state::connecting)
                request(c);
            else
                receive(c);
        }
    }
    void come_back() {
        const auto now = clock::now();
        if (now < next_look_) return;
        next_look_ = now + 10ms;
        std::uint64_t slowest = UINT64_MAX;
        for (client& c : clients_) {
            // More at once than the queue of a listening socket holds would wait for a second SYN.
            if (c.now == state::away && coming_back_ && now >= c.back && under_way_ < 256)
                connect(c);
            slowest = std::min(slowest, position(c));
        }
        slowest_ = slowest;
    }

    void connect(client& c) {
        c.socket =
            descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!c.socket) throw_errno("socket of a client");
        c.now = state::connecting;
        ++under_way_;
        c.head.clear();
        c.decoder = {};
        const socket_address peer("127.0.0.1", port_);
        if (::connect(c.socket.get(), peer.get(), peer.size()) != 0 && errno != EINPROGRESS)
            return refused(c, std::string("cannot connect: ") + std::strerror(errno));
        watch(c, EPOLL_CTL_ADD, EPOLLOUT);
    }
    void watch(client& c, int operation, std::uint32_t events) {
        epoll_event wanted{};
        wanted.events = events;
        wanted.data.ptr = &c;
        if (::epoll_ctl(epoll_.get(), operation, c.socket.get(), &wanted) != 0)
            throw_errno("epoll_ctl");
    }
    void request(client& c) {
        std::string text = "GET /subscribe/load/" + std::to_string(c.topic) +
                           " HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n";
        if (!c.id.empty()) text += "Last-Event-ID: " + c.id + "\r\n";
        text += "\r\n";
        const ssize_t sent = ::send(c.socket.get(), text.data(), text.size(), MSG_NOSIGNAL);
        if (sent < 0) return refused(c, std::string("is refused: ") + std::strerror(errno));
        if (sent != static_cast<ssize_t>(text.size())) throw bad_response("half a request");
        c.now = state::head;
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    }
    void refused(client& c, const std::string& how) {
        fault(c, how);
        leave(c);
    }
    void leave(client& c) {
        if (c.now == state::open) {
            --open_;
            c.left = clock::now();
        } else {
            --under_way_;
        }
        c.socket.close();
        c.now = state::away;
        c.back = clock::now() + c.retry;
        ++events_;
    }
    void receive(client& c) {
        char bytes[64 * 1024];
        const ssize_t size = ::recv(c.socket.get(), bytes, sizeof bytes, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (size <= 0) {
            const char* const how = size < 0 ? std::strerror(errno) : "the end";
            if (c.now == state::head) return refused(c, std::string("gets no response: ") + how);
            if (size < 0) fault(c, std::string("is cut: ") + how);
            return leave(c);
        }
        std::string_view rest(bytes, static_cast<std::size_t>(size));
        if (c.now != state::head) return take(c, rest);
        c.head += rest;
        const std::size_t end = c.head.find("\r\n\r\n");
        if (end == c.head.npos) return;
        if (c.head.compare(8, 5, " 200 ") != 0)
            return refused(c, "gets " + c.head.substr(0, c.head.find('\r')));
        c.now = state::open;
        --under_way_;
        ++open_;
        ++events_;
        if (++c.streams > 1) absences_.push_back(clock::now() - c.left);
        take(c, c.head.substr(end + 4));
    }
    void take(client& c, std::string_view bytes) {
        c.decoder.feed(bytes);
        for (const decoded& e : c.decoder.take_events()) {
            if (e.type != "message") {
                fault(c, "gets '" + e.type + "' at " + std::to_string(c.next) + ": " + e.data);
                continue;
            }
            ++deliveries_;
            ++events_;
            const std::uint64_t number = std::stoull(e.data);
            if (number != c.next)
                fault(c, "gets " + e.data + " instead of " + std::to_string(c.next));
            c.next = number + 1;
        }
        (void)c.decoder.take_comments();
        if (!c.decoder.last_event_id().empty()) c.id = c.decoder.last_event_id();
        if (const auto time = c.decoder.reconnection_time())
            c.retry = std::chrono::milliseconds(*time);
    }

    const settings& asked_;
    const std::uint16_t port_;
    fault_list& faults_;
    std::vector<client> clients_; // never resized: epoll holds pointers into it
    descriptor epoll_;
    std::size_t open_ = 0, under_way_ = 0;
    std::uint64_t deliveries_ = 0, events_ = 0;
    bool coming_back_ = true;
    clock::time_point next_look_{};
    std::vector<clock::duration> absences_;
    std::atomic<std::uint64_t> slowest_{0};
};

// ---- the publisher ------------------------------------------------------------------------------

/// Message n is of topic n modulo the topics, and tells its number there.
class publisher {
public:
    publisher(const settings& asked, std::uint16_t port, const follower_crowd& crowd,
              fault_list& faults)
        : asked_(asked), port_(port), crowd_(crowd), faults_(faults), thread_([this] { run(); }) {}
    ~publisher() { stop(); }
    publisher(const publisher&) = delete;
    publisher& operator=(const publisher&) = delete;

    /// The number of messages.
    std::uint64_t stop() {
        ending_ = true;
        if (thread_.joinable()) thread_.join();
        return published_;
    }
    std::uint64_t published() const { return published_; }
    bool has_failed() const { return has_failed_; }
    // Once it was stopped.
    std::uint64_t asked_again() const { return asked_again_; }
    clock::duration waited() const { return waited_; }

private:
    void run() {
        try {
            auto next = clock::now(); // when the next message is due
            while (!ending_) {
                const auto from = clock::now();
                while (!ending_ && is_far_ahead()) std::this_thread::sleep_for(1ms);
                const auto now = clock::now();
                waited_ += now - from;
                next = std::max(next, now - 800ms); // what was missed is not made up for
                const auto late = seconds_of(std::max<clock::duration>(now - next, 0s));
                const auto count = std::min<std::size_t>(
                    1 + static_cast<std::size_t>(late *
                                                 static_cast<double>(asked_.messages_per_second)),
                    1000); // a request takes no more
                if (publish(count))
                    next += std::chrono::nanoseconds(1s) * count / asked_.messages_per_second;
                std::this_thread::sleep_until(std::max(next, now + 10ms));
            }
        } catch (const std::exception& e) {
            has_failed_ = true;
            faults_.add(std::string("a publisher does not know what became of its messages: ") +
                        e.what());
        }
    }
    bool is_far_ahead() const {
        const std::uint64_t slowest = crowd_.slowest();
        return published_ > slowest && published_ - slowest > most_behind;
    }
    /// False: the hub lets go, and takes nothing more.
    bool publish(std::size_t count) {
        std::string body;
        for (std::uint64_t n = published_; n < published_ + count; ++n)
            body += "{\"topic\":\"/load/" + std::to_string(n % asked_.topics) +
                    "\",\"data\":" + std::to_string(n / asked_.topics) + "}\n";
        const header_list headers{{"Authorization", "Bearer secret"},
                                  {"Content-Type", "application/x-ndjson"}};
        const response r = http_request(port_, "POST", "/publish/load", headers, body, 10 * stuck);
        if (r.status != 202 && r.status != 503)
            throw bad_response("status " + std::to_string(r.status) + ": " + r.body);
        published_ += r.status == 202 ? count : published_of(r.body);
        if (r.status == 503) ++asked_again_;
        return r.status == 202;
    }
    /// A hub that lets go amid a request says "18 of 20 messages were published, not message 19: "
    /// and why, of a request with one message why alone. The next hub does not know of it.
    static std::size_t published_of(const std::string& refusal) {
        std::size_t first = 0;
        std::from_chars(refusal.data(), refusal.data() + refusal.size(), first);
        if (first > 0 && !has(refusal, ", not message " + std::to_string(first + 1) + ": "))
            throw bad_response("not the first ones were published: " + refusal);
        return first;
    }

    const settings& asked_;
    const std::uint16_t port_;
    const follower_crowd& crowd_;
    fault_list& faults_;
    std::atomic<bool> ending_{false}, has_failed_{false};
    std::atomic<std::uint64_t> published_{0};
    std::uint64_t asked_again_ = 0;
    clock::duration waited_{};
    std::thread thread_;
};

// ---- the trial ----------------------------------------------------------------------------------

class trial {
public:
    explicit trial(const settings& asked)
        : asked_(asked), hubs_(asked, folder_ / "log"), crowd_(asked, hubs_.port(), faults_) {}

    /// Whether all was right.
    bool run() {
        if (run_until([&] { return crowd_.all_are_open(); }, "come")) load();
        crowd_.stay_away();
        auto ended = std::async(std::launch::async, [&] { hubs_.end(); });
        run_until([&] { return is_done(ended) && crowd_.all_are_gone(); }, "see the last hub end");
        ended.get();
        show();
        return faults_.count() == 0;
    }

private:
    static bool is_done(const std::future<void>& work) {
        return work.wait_for(0s) == std::future_status::ready;
    }
    template <class Condition>
    bool run_until(Condition&& condition, const char* what) {
        if (crowd_.run_until(condition)) return true;
        faults_.add(std::string("clients do not ") + what);
        return false;
    }

    void load() {
        publisher messages(asked_, hubs_.port(), crowd_, faults_);
        const auto begin = clock::now();
        for (std::size_t n = 0; n <= asked_.times; ++n) {
            const std::uint64_t enough =
                messages.published() +
                asked_.messages_per_second * static_cast<std::uint64_t>(asked_.between.count());
            run_until([&] { return messages.published() >= enough || messages.has_failed(); },
                      "see messages published");
            if (n == asked_.times) break;
            auto done = std::async(std::launch::async, [&] { taken_.push_back(hubs_.replace()); });
            run_until([&] { return is_done(done); }, "see a hand-over end");
            done.get();
            run_until([&] { return crowd_.all_are_open(); }, "come back");
        }
        published_ = messages.stop();
        lasted_ = clock::now() - begin;
        waited_ = messages.waited();
        asked_again_ = messages.asked_again();
        run_until([&] { return crowd_.all_have(published_); }, "get the last messages");
        crowd_.judge(published_, asked_.times);
    }

    static void row(const char* name, const std::string& value) {
        std::printf("| %s | %s |\n", name, value.c_str());
    }
    static std::string as_seconds(clock::duration time) {
        char text[32];
        std::snprintf(text, sizeof text, "%.2f s", seconds_of(time));
        return text;
    }
    void show() {
        std::vector<clock::duration>& away = crowd_.absences();
        std::sort(away.begin(), away.end());
        const double lasted = seconds_of(lasted_);
        const auto rate = [&](std::uint64_t count) {
            return lasted > 0 ? with_commas(static_cast<std::uint64_t>(static_cast<double>(count) /
                                                                       lasted)) +
                                    "/s"
                              : std::string("none");
        };
        std::printf("\n| hand-over | %s clients, %zu topics |\n|---|---|\n",
                    with_commas(asked_.clients).c_str(), asked_.topics);
        row("messages", with_commas(published_) + ", " + rate(published_));
        row("deliveries", with_commas(crowd_.deliveries()) + ", " + rate(crowd_.deliveries()));
        row("publishing waited for clients", as_seconds(waited_));
        row("requests to publish that were told to come again", with_commas(asked_again_));
        std::string taken;
        for (const clock::duration each : taken_)
            taken += (taken.empty() ? "" : ", ") + as_seconds(each);
        row("until the next hub was there", taken);
        if (!away.empty())
            row("a client was away: median, longest",
                as_seconds(away[away.size() / 2]) + ", " + as_seconds(away.back()));
        row("refused, lost, doubled, out of order, gaps, further reconnections",
            with_commas(faults_.count()));
        std::printf("\n");
    }

    const settings& asked_;
    temporary_folder folder_{"sse-hand-over"};
    fault_list faults_;
    hub_line hubs_;
    follower_crowd crowd_;
    std::vector<clock::duration> taken_;
    std::uint64_t published_ = 0, asked_again_ = 0;
    clock::duration lasted_{}, waited_{};
};

int run() {
    settings asked;
    const char* const examples = std::getenv("EXAMPLES");
    if (!asked.wanted || !examples) {
        std::printf("hand-over: left out, since %s\n",
                    asked.wanted ? "EXAMPLES does not name the folder of the hub"
                                 : "HAND_OVER is 0");
        return 77; // not run
    }
    asked.hub = std::string(examples) + "/hub";
    const std::size_t needed = asked.clients + 100, limit = raise_descriptor_limit();
    if (limit < needed)
        throw std::invalid_argument("HAND_OVER_CLIENTS needs " + std::to_string(needed) +
                                    " open files, and the system allows " + std::to_string(limit));
    if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) throw_errno("become a reaper of orphans");
    const bool passed = trial(asked).run();
    std::printf(passed ? "hand-over: passed\n" : "hand-over: failed\n");
    return passed ? 0 : 1;
}

} // namespace

} // namespace hand_over_test

int main() {
    try {
        return hand_over_test::run();
    } catch (const std::exception& e) {
        std::fprintf(stderr, "hand-over: %s\n", e.what());
        return 2;
    }
}
