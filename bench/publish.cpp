// publish.cpp - what one publish costs the thread that calls it: server::publish() beside a mutex
// with one std::deque of strings, which a thread empties and sends. From the folder of sse.hpp:
//
//   g++ -O2 -std=c++20 -pthread -I. bench/publish.cpp -o publish && ./publish
//   ./publish --seconds 20 --json publish.json
//
// Counted is the processor time of the publishing threads (CLOCK_THREAD_CPUTIME_ID) over the
// messages published. Both wait when there is no room, for the library's workers and for clients
// (lag_policy::hold_back), and what that costs the thread is counted too: so the column of messages
// a second says what clients and workers keep up with. Each client must get every message.
//
// Publisher n runs on core n, round and round, the workers and the clients' threads on the last
// core.
#include "bench.hpp"

#include "sse.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <barrier>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>

namespace {

struct settings {
    double seconds = 20;
    std::uint64_t rounds = 5;
    std::uint64_t payload = 100;
    std::string json;
};

constexpr std::uint64_t publisher_counts[] = {1, 2, 8};
constexpr std::uint64_t client_counts[] = {0, 1, 2};
constexpr char letter = '~'; // messages consist of it, and nothing else in a stream has it
constexpr std::size_t capacity = 16 * 1024; // as options::ring_capacity

sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    return address;
}

// Who is published to /////////////////////////////////////////////////////////////////////////////

class library {
public:
    explicit library(std::uint64_t clients) : server_(options_for(clients)) {
        server_.start("127.0.0.1:0");
    }
    ~library() {
        server_.stop();
        server_.join();
    }
    library(const library&) = delete;
    library& operator=(const library&) = delete;

    std::uint16_t port() { return server_.port(); }
    void accept_one() {}
    void publish(std::string_view text) {
        sse::message next;
        next.data = text;
        server_.publish("/bench", next);
    }

private:
    static sse::options options_for(std::uint64_t clients) {
        sse::options made;
        made.threads = std::max<std::uint64_t>(1, clients); // one for each
        made.heartbeat = std::chrono::milliseconds(0);
        made.timeouts.publish = std::chrono::seconds(60);
        made.ring_capacity = capacity;
        made.history.lag = sse::lag_policy::hold_back;
        return made;
    }

    sse::server server_;
};

/// One lock, and a thread that takes all that is there at once, the kindest way for the publishers,
/// and sends it to each client.
class locked_queue {
public:
    explicit locked_queue(std::uint64_t) {
        listener_ = bench::checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        bench::checked(bind(listener_, raw(), sizeof address_), "bind");
        bench::checked(listen(listener_, 16), "listen");
        socklen_t size = sizeof address_;
        bench::checked(getsockname(listener_, raw(), &size), "getsockname");
        thread_ = std::thread([this] { send_all(); });
    }
    ~locked_queue() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        some_.notify_one();
        thread_.join();
        for (const int fd : clients_) close(fd);
        close(listener_);
    }
    locked_queue(const locked_queue&) = delete;
    locked_queue& operator=(const locked_queue&) = delete;

    std::uint16_t port() const { return ntohs(address_.sin_port); }

    void accept_one() {
        constexpr std::string_view head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        const int fd = bench::checked(accept(listener_, nullptr, nullptr), "accept");
        if (send(fd, head.data(), head.size(), MSG_NOSIGNAL) < 0) bench::throw_errno("send");
        const std::lock_guard lock(mutex_);
        clients_.push_back(fd);
    }

    void publish(std::string_view text) {
        std::string event;
        event.reserve(text.size() + 8);
        event.append("data: ").append(text).append("\n\n");
        std::unique_lock lock(mutex_);
        room_.wait(lock, [&] { return waiting_.size() < capacity; });
        waiting_.push_back(std::move(event));
        if (waiting_.size() == 1) some_.notify_one();
    }

private:
    sockaddr* raw() { return reinterpret_cast<sockaddr*>(&address_); }

    void send_all() {
        std::deque<std::string> taken;
        std::vector<int> to;
        for (std::string joined;; joined.clear(), taken.clear()) {
            {
                std::unique_lock lock(mutex_);
                some_.wait(lock, [&] { return ended_ || !waiting_.empty(); });
                if (waiting_.empty()) return;
                taken.swap(waiting_);
                to = clients_;
            }
            room_.notify_all();
            if (to.empty()) continue;
            for (const std::string& each : taken) joined += each;
            for (const int fd : to) send_whole(fd, joined);
        }
    }

    static void send_whole(int fd, std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent <= 0) return; // the client will miss it
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        }
    }

    sockaddr_in address_ = loopback(0);
    int listener_ = -1;
    std::mutex mutex_;
    std::condition_variable some_, room_;
    std::deque<std::string> waiting_; // these are guarded by mutex_
    std::vector<int> clients_;
    bool ended_ = false;
    std::thread thread_;
};

// Who reads ///////////////////////////////////////////////////////////////////////////////////////

/// Reads in a thread of its own until it has so much text of messages.
class client {
public:
    client(std::uint16_t port, std::function<void()> accept_one) {
        fd_ = bench::checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        const timeval look{0, 50'000};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &look, sizeof look);
        const sockaddr_in to = loopback(port);
        bench::checked(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to), "connect");
        constexpr std::string_view request = "GET /subscribe/bench HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                                             "Accept: text/event-stream\r\n\r\n";
        if (send(fd_, request.data(), request.size(), MSG_NOSIGNAL) < 0) bench::throw_errno("send");
        accept_one();
        read_head();
        thread_ = std::thread([this] { read_text(); });
    }
    ~client() {
        if (thread_.joinable()) has_all(0);
        close(fd_);
    }
    client(const client&) = delete;
    client& operator=(const client&) = delete;

    /// Waits until it has so many.
    bool has_all(std::uint64_t letters) {
        wanted_ = letters;
        thread_.join();
        return letters_ == letters;
    }

private:
    static constexpr std::uint64_t patience = 20; // seconds without a byte

    void read_head() {
        std::string head;
        const std::uint64_t limit = bench::now_ns() + patience * 1'000'000'000;
        while (!head.ends_with("\r\n\r\n")) {
            char next = 0;
            const ssize_t size = recv(fd_, &next, 1, 0);
            if (size == 1) head += next;
            if (size == 0 || bench::now_ns() > limit)
                throw std::runtime_error("a client got no event stream");
        }
        if (!head.starts_with("HTTP/1.1 200")) throw std::runtime_error("a client was refused");
    }

    void read_text() {
        std::vector<char> buffer(256 * 1024);
        std::uint64_t last = bench::now_ns();
        while (letters_ < wanted_ && bench::now_ns() - last < patience * 1'000'000'000) {
            const ssize_t size = recv(fd_, buffer.data(), buffer.size(), 0);
            if (size == 0) return;
            if (size < 0) continue;
            last = bench::now_ns();
            letters_ +=
                static_cast<std::uint64_t>(std::count(buffer.data(), buffer.data() + size, letter));
        }
    }

    int fd_ = -1;
    std::uint64_t letters_ = 0; // of the thread, until it has ended
    std::atomic<std::uint64_t> wanted_ = std::numeric_limits<std::uint64_t>::max();
    std::thread thread_;
};

// The contest /////////////////////////////////////////////////////////////////////////////////////

struct outcome {
    double ns = 0;   // of publisher processor time for each message
    double rate = 0; // messages a second
    bool sound = true;
};

struct alignas(128) publisher_result {
    std::uint64_t published = 0;
    std::uint64_t cpu_ns = 0;
};

template <class Target>
outcome compete(const settings& set, std::uint64_t publishers, std::uint64_t clients,
                double seconds) {
    constexpr std::uint64_t at_once = 64; // between looks at the clock
    const std::vector<int> cores = bench::allowed_cores();
    bench::pin({cores.back()}); // what is started now inherits it
    Target target(clients);
    std::deque<client> reading;
    for (std::uint64_t at = 0; at < clients; ++at)
        reading.emplace_back(target.port(), [&] { target.accept_one(); });
    std::vector<publisher_result> results(publishers);
    std::barrier all_start(static_cast<std::ptrdiff_t>(publishers + 1));
    std::atomic<std::uint64_t> end_ns = 0;
    std::vector<std::thread> publishing;
    for (std::uint64_t self = 0; self < publishers; ++self)
        publishing.emplace_back([&, self] {
            bench::pin({cores[self % cores.size()]});
            const std::string text(set.payload, letter);
            publisher_result& result = results[self];
            all_start.arrive_and_wait();
            const std::uint64_t start = bench::thread_cpu_ns();
            do // at least once, however long the core was another's
                for (std::uint64_t count = 0; count < at_once; ++count, ++result.published)
                    target.publish(text);
            while (bench::now_ns() < end_ns);
            result.cpu_ns = bench::thread_cpu_ns() - start;
        });
    const std::uint64_t start = bench::now_ns();
    end_ns = start + static_cast<std::uint64_t>(seconds * 1e9);
    all_start.arrive_and_wait();
    for (std::thread& each : publishing) each.join();
    const double took = static_cast<double>(bench::now_ns() - start) / 1e9;
    bench::pin(cores);

    std::uint64_t published = 0, cpu_ns = 0;
    for (const publisher_result& each : results) {
        published += each.published;
        cpu_ns += each.cpu_ns;
    }
    outcome found{static_cast<double>(cpu_ns) / static_cast<double>(published),
                  static_cast<double>(published) / took};
    for (client& each : reading) found.sound &= each.has_all(published * set.payload);
    return found;
}

/// One row of the table: publishers and clients, both contenders, all rounds.
struct matchup {
    std::uint64_t publishers = 0;
    std::uint64_t clients = 0;
    std::vector<outcome> sse = {};
    std::vector<outcome> mutex = {};
};

std::vector<double> values(const std::vector<outcome>& rounds, double outcome::*what) {
    std::vector<double> found;
    for (const outcome& each : rounds) found.push_back(each.*what);
    return found;
}

double median(const std::vector<outcome>& rounds, double outcome::*what) {
    return bench::median(values(rounds, what));
}

double median_ratio(const matchup& from) {
    std::vector<double> found;
    for (std::size_t at = 0; at < from.sse.size(); ++at)
        found.push_back(from.sse[at].ns / from.mutex[at].ns);
    return bench::median(std::move(found));
}

std::string spread(const std::vector<outcome>& rounds) {
    const std::vector<double> found = values(rounds, &outcome::ns);
    const auto [least, most] = std::minmax_element(found.begin(), found.end());
    return bench::grouped(*least, 0) + " - " + bench::grouped(*most, 0);
}

bool sound(const std::vector<outcome>& rounds) {
    return std::all_of(rounds.begin(), rounds.end(),
                       [](const outcome& each) { return each.sound; });
}

void print_table(const std::vector<matchup>& rows) {
    bench::table table;
    table.row({"publishers, clients", "sse ns", "least - most", "mutex ns", "least - most",
               "sse/mutex", "sse messages/s", "mutex messages/s"});
    for (const matchup& each : rows)
        table.row({std::to_string(each.publishers) + ", " + std::to_string(each.clients),
                   bench::grouped(median(each.sse, &outcome::ns), 0), spread(each.sse),
                   bench::grouped(median(each.mutex, &outcome::ns), 0), spread(each.mutex),
                   bench::grouped(median_ratio(each), 2),
                   bench::grouped(median(each.sse, &outcome::rate), 0),
                   bench::grouped(median(each.mutex, &outcome::rate), 0)});
    std::printf("\n");
    table.print();
    std::printf("\nns: publisher CPU for each message, median of the rounds; the ratio is the "
                "median of the\nrounds' own.\n");
}

void write_outcomes(bench::json& out, const char* key, const std::vector<outcome>& rounds) {
    out.open(key).field("median_ns", median(rounds, &outcome::ns));
    out.field("median_per_s", median(rounds, &outcome::rate)).field("sound", sound(rounds));
    out.open("rounds_ns", '[');
    for (const outcome& each : rounds) out.field("", each.ns);
    out.close().close();
}

void write_json(const settings& set, const std::vector<bench::fact>& facts,
                const std::vector<matchup>& rows, double disturbed) {
    bench::json out;
    out.field("benchmark", "publish").field("cores_used_by_others_percent", disturbed);
    bench::write_facts(out, facts);
    out.open("settings").field("seconds", set.seconds).field("rounds", set.rounds);
    out.field("payload", set.payload).close().open("rows", '[');
    for (const matchup& each : rows) {
        out.open("").field("publishers", each.publishers).field("clients", each.clients);
        write_outcomes(out, "sse", each.sse);
        write_outcomes(out, "mutex", each.mutex);
        out.field("sse_over_mutex", median_ratio(each)).close();
    }
    out.close().write(set.json);
}

settings parse(int count, char** values) {
    settings set;
    bench::flags flags("publish", "cost of server::publish() beside a mutex and a deque.\n"
                                  "Exits with 1 if a client missed a message.");
    flags.number("--seconds", set.seconds, 0.1, 600.0, "for the whole run");
    flags.number<std::uint64_t>("--rounds", set.rounds, 1, 100,
                                "of all rows, the contenders in turn");
    flags.number<std::uint64_t>("--payload", set.payload, 1, 1 << 20, "bytes of a message");
    flags.text("--json", set.json, "also write all rounds to this file");
    flags.parse(count, values);
    return set;
}

int run(const settings& set) {
    std::vector<bench::fact> facts = bench::describe_machine();
    facts.emplace_back("queues", std::to_string(capacity) + " messages of " +
                                     std::to_string(set.payload) + " bytes");
    facts.emplace_back("workers", "one for each client, at least one; the mutex has one thread");
    facts.emplace_back("rounds", std::to_string(set.rounds) + ", sse and mutex in turn");
    bench::print_facts(facts);
    std::vector<matchup> rows;
    for (const std::uint64_t publishers : publisher_counts)
        for (const std::uint64_t clients : client_counts) rows.push_back({publishers, clients});
    const double slice =
        set.seconds / static_cast<double>(set.rounds) / static_cast<double>(2 * rows.size());
    const bench::disturbance others;
    for (std::uint64_t number = 1; number <= set.rounds; ++number) {
        bench::progress("round " + std::to_string(number) + " of " + std::to_string(set.rounds));
        for (matchup& row : rows) {
            row.sse.push_back(compete<library>(set, row.publishers, row.clients, slice));
            row.mutex.push_back(compete<locked_queue>(set, row.publishers, row.clients, slice));
        }
    }
    bench::end_progress();
    const double disturbed = others.percent();
    print_table(rows);
    if (disturbed > bench::tolerable) bench::print_disturbed();
    write_json(set, facts, rows, disturbed);
    if (std::all_of(rows.begin(), rows.end(),
                    [](const matchup& each) { return sound(each.sse) && sound(each.mutex); }))
        return 0;
    std::printf("NOT SOUND: a client missed a message.\n");
    return 1;
}

} // namespace

int main(int count, char** values) {
    const settings set = parse(count, values);
    return bench::run_program("publish", [&] { return run(set); });
}
