// bus.cpp - what a bus costs a server: the same server with file_log, Redis and NATS beside one
// without a bus, and Redis and NATS beside bare loops on their own libraries. Starts redis-server
// and nats-server itself, on loopback, in temporary folders; bench/run.sh --bus runs it. From the
// folder of sse.hpp, without what there is no library for:
//
//   flags="-DSSE_ENABLE_REDIS -lhiredis -DSSE_ENABLE_NATS -lnats"
//   g++ -O2 -std=c++20 -pthread -I. bench/bus.cpp -o bus $flags
//   ./bus --quick                to see that it works, and that nothing is lost
//   ./bus --rounds 10 --json bus.json
//
// - Fan-out: messages of the same moment go to a client in one write, so that a busy server needs
//   less for each; what a write takes says more there than what a delivery does. In each round a
//   fresh server for each contender, all with their clients; then one after the other publishes for
//   a second, again and again, so that each is compared with what the machine did just before and
//   after. "None again" is one more server without a bus: as far as its ratio is from 1, so far can
//   that of the others be by chance. A server publishes with try_publish(), from a thread of its
//   own.
// - Latency: one message at a time, 2 ms apart, until the last of a few clients has it; and bare
//   loops that publish on one connection and read on another.
// - Publishing: what a bus confirms in a second with its queue half full, beside loops that have as
//   much under way: two batches of 512 by Redis, 4,096 messages by NATS.
//
// The server, or who publishes, has the first core; clients, Redis and NATS have the last.
#include "load.hpp"
#include "publisher.hpp"

#include "../tests/support/temporary_folder.hpp"

#if defined(SSE_ENABLE_REDIS)
#include "../tests/support/redis_server.hpp"
#endif
#if defined(SSE_ENABLE_NATS)
#include "../tests/support/nats_server.hpp"
#endif

#include <filesystem>
#include <mutex>

namespace {

using bench::contender;
using bench::placement;
using bench::scenario;

struct settings {
    std::uint64_t rounds = 5;
    std::uint64_t turns = 4;
    double seconds = 1;
    std::uint64_t clients = 1'000;
    std::uint64_t few = 10;
    std::uint64_t messages = 100;
    std::uint64_t payload = 100;
    std::string only, json;
    bool quick = false;
    // Of a server, which this program starts as another process.
    std::string serve, where;
    std::uint64_t rate = 0, burst = 0;
};

// Where the messages are //////////////////////////////////////////////////////////////////////////

/// Keeps the messages of one server, in a place that was empty before.
class keeper {
public:
    keeper() = default;
    keeper(const keeper&) = delete;
    keeper& operator=(const keeper&) = delete;
    virtual ~keeper() = default;
    virtual std::string where() const { return "-"; }
    virtual pid_t process() const { return 0; } ///< 0: none of its own.
};

class folder final : public keeper {
public:
    std::string where() const override { return folder_.path().string(); }

private:
    support::temporary_folder folder_{"sse-bus"};
};

#if defined(SSE_ENABLE_REDIS)
class redis final : public keeper {
public:
    std::string where() const override { return server_.address(); }
    pid_t process() const override { return server_.process(); }
    int port() const { return server_.port(); }

private:
    redis_server server_;
};
#endif

#if defined(SSE_ENABLE_NATS)
class nats final : public keeper {
public:
    nats() { server_.start(); }
    std::string where() const override { return server_.url(); }
    pid_t process() const override { return server_.process(); }

private:
    support::nats_server server_;
};
#endif

/// A way to keep messages.
struct way {
    std::string name;
    std::function<std::unique_ptr<keeper>()> make;
};

/// What there is here. Says what there is not.
std::vector<way> all_ways() {
    std::vector<way> ways{{"none", [] { return std::make_unique<keeper>(); }},
                          {"none again", [] { return std::make_unique<keeper>(); }},
                          {"file_log", [] { return std::make_unique<folder>(); }}};
    const auto add = [&](const char* name, const char* missing, auto make) {
        if (missing == nullptr)
            ways.push_back({name, make});
        else
            std::printf("# no %s: there is no %s\n", name, missing);
    };
#if defined(SSE_ENABLE_REDIS)
    add("Redis", redis_server::is_installed() ? nullptr : "redis-server",
        [] { return std::make_unique<redis>(); });
#else
    add("Redis", "libhiredis-dev", nullptr);
#endif
#if defined(SSE_ENABLE_NATS)
    add("NATS", support::find_nats_server().empty() ? "nats-server" : nullptr,
        [] { return std::make_unique<nats>(); });
#else
    add("NATS", "libnats-dev", nullptr);
#endif
    return ways;
}

std::shared_ptr<sse::bus> make_bus(const std::string& name, const std::string& where) {
    if (name == "file_log") return sse::file_log(where);
#if defined(SSE_ENABLE_REDIS)
    if (name == "Redis") {
        sse::redis_options options;
        options.addresses = {where};
        return sse::redis_bus(options);
    }
#endif
#if defined(SSE_ENABLE_NATS)
    if (name == "NATS") {
        sse::nats_options options;
        options.servers = {where};
        return sse::nats_bus(options);
    }
#endif
    return nullptr;
}

// Cores ///////////////////////////////////////////////////////////////////////////////////////////

placement place(bool client_polls) {
    const std::vector<int> cores = bench::allowed_cores();
    placement made;
    made.spin = client_polls && cores.size() > 1;
    if (cores.size() < 2) return made;
    made.server.assign(1, cores.front());
    made.client.assign(1, cores.back());
    return made;
}

void pin_to(const std::vector<int>& cores) {
    if (!cores.empty()) bench::pin(cores);
}

/// Started on the core of clients and of all that keeps messages; what follows is on the server's.
template <class Make>
auto apart(const Make& make) {
    const placement cores = place(false);
    pin_to(cores.client);
    auto made = make();
    pin_to(cores.server);
    return made;
}

// The server //////////////////////////////////////////////////////////////////////////////////////

constexpr const char* worker_name = "bench worker";

/// As bench::library_server, but with a bus; and its worker's thread has a name to be found by.
class bus_server {
public:
    explicit bus_server(const settings& set)
        : conductor_(set.rate, set.burst, set.payload), server_(options_of(set)) {}

    void run() {
        server_.start("127.0.0.1:0");
        conductor_.announce(server_.port());
        std::array<pollfd, 2> waited{
            {{conductor_.commands(), POLLIN, 0}, {conductor_.tick(), POLLIN, 0}}};
        while (!conductor_.ended() &&
               poll(waited.data(), waited.size(), conductor_.hurries() ? 0 : -1) >= 0) {
            conductor_.obey();
            conductor_.publish_due([this](std::string_view line, auto) {
                return !server_.try_publish("/bench", {.data = line});
            });
        }
        server_.stop();
        server_.join();
    }

private:
    static sse::options options_of(const settings& set) {
        sse::options options;
        options.threads = 1;
        options.limits.connections = 0;
        options.heartbeat = std::chrono::milliseconds(0);
        options.bus = make_bus(set.serve, set.where);
        options.hooks.on_connect = [](sse::stream&) {
            thread_local const int named = pthread_setname_np(pthread_self(), worker_name);
            (void)named;
        };
        options.hooks.log = [](const sse::log_entry& entry) {
            if (entry.level < sse::log_level::warning) return;
            std::fprintf(stderr, "sse: %.*s: %.*s\n", static_cast<int>(entry.what.size()),
                         entry.what.data(), static_cast<int>(entry.detail.size()),
                         entry.detail.data());
        };
        return options;
    }

    bench::conductor conductor_;
    sse::server server_;
};

/// Of the workers of another process. The kernel counts the one that is running up to its last
/// clock tick.
double workers_us(pid_t process) {
    double sum = 0;
    const std::string tasks = "/proc/" + std::to_string(process) + "/task";
    for (const auto& task : std::filesystem::directory_iterator(tasks)) {
        std::string name;
        std::getline(std::ifstream(task.path() / "comm"), name);
        double nanoseconds = 0;
        if (name == worker_name) std::ifstream(task.path() / "schedstat") >> nanoseconds;
        sum += nanoseconds / 1e3;
    }
    if (sum == 0) throw std::runtime_error("no worker's processor time in " + tasks);
    return sum;
}

double process_us(pid_t process) {
    const auto used = bench::process_time(process);
    return used.user_us + used.system_us;
}

// Servers in turn /////////////////////////////////////////////////////////////////////////////////

struct turn {
    double deliveries = 0;          // a second
    double worker = 0, process = 0; // us a delivery
    double a_write = 0;             // us of the worker
    double in_a_write = 0;          // messages
    double p50 = 0, p99 = 0;        // us
};

struct faults {
    std::uint64_t lost = 0, duplicates = 0, out_of_order = 0, disconnected = 0;
    bool ended_well = true;

    bool sound() const {
        return lost + duplicates + out_of_order + disconnected == 0 && ended_well;
    }
};

/// A server with its clients.
class site {
public:
    site(const scenario& what, const way& of, const placement& cores)
        : keeper_(of.make()), who_{of.name, true, "/subscribe/bench", command(of)},
          server_(what, who_, cores), client_(what, who_, cores, server_),
          process_(client_.meet().process), what_(what) {
        client_.connect_all(what.clients);
    }

    /// Publishes at the rate.
    turn publish_for(double seconds) {
        client_.ask(bench::conductor::start);
        client_.read_for(std::min(0.2, seconds / 2));
        const edge from = reach_edge();
        client_.counts().latency = {};
        client_.counts().in_window = true;
        client_.read_for(seconds);
        const edge to = reach_edge();
        client_.counts().in_window = false;
        published_ = client_.ask(bench::conductor::stop);
        client_.read_until(published_);
        const auto deliveries = static_cast<double>(to.deliveries - from.deliveries);
        const auto writes = static_cast<double>(to.writes - from.writes);
        return {deliveries * 1e9 / static_cast<double>(to.at - from.at),
                (to.worker - from.worker) / deliveries,
                (to.process - from.process) / deliveries,
                (to.worker - from.worker) / writes,
                deliveries / writes,
                client_.counts().latency.quantile(0.50) / 1e3,
                client_.counts().latency.quantile(0.99) / 1e3};
    }

    /// So many messages, one at a time, each until the last client has it.
    turn publish_each(std::uint64_t messages) {
        bench::histogram latency;
        for (std::uint64_t n = 0; n < messages; ++n) {
            client_.ask(bench::conductor::start); // a burst of one
            if (!client_.read_until(++published_)) break;
            latency.add(client_.counts().newest);
            client_.read_for(pause);
        }
        return {.p50 = latency.quantile(0.50) / 1e3, .p99 = latency.quantile(0.99) / 1e3};
    }

    faults finish() {
        client_.read_for(0.05); // a duplicate would come now
        const bench::tally& counts = client_.counts();
        faults found{published_ * what_.reach() - counts.received, counts.duplicates,
                     counts.out_of_order, client_.disconnected(), true};
        client_.close_all();
        found.ended_well = server_.end();
        return found;
    }

    static constexpr double pause = 0.002; // seconds

private:
    struct edge {
        std::uint64_t deliveries = 0, writes = 0;
        double worker = 0, process = 0;
        std::uint64_t at = 0;
    };

    std::vector<std::string> command(const way& of) const {
        return {"/proc/self/exe", "--serve", of.name, "--where", keeper_->where()};
    }

    edge reach_edge() {
        client_.ask(bench::conductor::ask);
        return {client_.counts().deliveries, client_.segments(), workers_us(process_),
                process_us(process_), bench::now_ns()};
    }

    std::unique_ptr<keeper> keeper_;
    contender who_;
    bench::server_process server_;
    bench::load client_;
    pid_t process_;
    const scenario& what_;
    std::uint64_t published_ = 0;
};

// Bare round trips ////////////////////////////////////////////////////////////////////////////////

/// Publishes with `send()` and waits until another thread's `receive()` has returned, one after the
/// other.
template <class Send, class Receive>
turn round_trips(std::uint64_t messages, Send send, Receive receive) {
    bench::histogram latency;
    std::atomic<std::uint64_t> arrived_at = 0;
    std::thread reader([&] {
        for (std::uint64_t n = 0; n < messages; ++n) {
            receive();
            arrived_at = bench::now_ns();
            arrived_at.notify_one();
        }
    });
    for (std::uint64_t n = 0; n < messages; ++n) {
        poll(nullptr, 0, static_cast<int>(site::pause * 1e3));
        arrived_at = 0;
        const std::uint64_t sent_at = bench::now_ns();
        send();
        arrived_at.wait(0);
        latency.add(arrived_at - sent_at);
    }
    reader.join();
    return {.p50 = latency.quantile(0.50) / 1e3, .p99 = latency.quantile(0.99) / 1e3};
}

#if defined(SSE_ENABLE_REDIS)

using redis_connection = std::unique_ptr<redisContext, void (*)(redisContext*)>;

redis_connection connect(const redis& to) {
    redis_connection made(redisConnect("127.0.0.1", to.port()), &redisFree);
    if (!made || made->err) throw std::runtime_error("no connection to Redis");
    return made;
}

redis_server::reply checked(void* reply) {
    redis_server::reply got(static_cast<redisReply*>(reply), &freeReplyObject);
    if (!got || got->type == REDIS_REPLY_ERROR || got->type == REDIS_REPLY_NIL)
        throw std::runtime_error("Redis refused a command");
    return got;
}

void add_one(redisContext& to, const std::string& text) {
    checked(redisCommand(&to, "XADD messages * m %b", text.data(), text.size()));
}

turn redis_round_trips(const settings& set) {
    const auto keeper = apart([] { return std::make_unique<redis>(); });
    const auto out = connect(*keeper), in = connect(*keeper);
    const std::string text(set.payload, 'x');
    std::string last = "0-0";
    return round_trips(
        set.messages, [&] { add_one(*out, text); },
        [&] {
            const auto got = checked(
                redisCommand(in.get(), "XREAD BLOCK 10000 STREAMS messages %s", last.data()));
            last = got->element[0]->element[1]->element[0]->element[0]->str;
        });
}

#endif

#if defined(SSE_ENABLE_NATS)

void check(natsStatus status) {
    if (status != NATS_OK)
        throw std::runtime_error(std::string("NATS: ") + natsStatus_GetText(status));
}

/// A connection, and a stream for the subject `bench`.
class nats_client {
public:
    nats_client(const nats& to, std::int64_t most_pending) {
        jsOptions options;
        check(jsOptions_Init(&options));
        options.PublishAsync.MaxPending = most_pending;
        options.PublishAsync.StallWait = 10'000;
        check(natsConnection_ConnectTo(&connection_, to.where().c_str()));
        check(natsConnection_JetStream(&stream_, connection_, &options));
    }
    ~nats_client() {
        jsCtx_Destroy(stream_);
        natsConnection_Destroy(connection_);
    }
    nats_client(const nats_client&) = delete;
    nats_client& operator=(const nats_client&) = delete;

    void make_stream() {
        const char* subject = "bench";
        jsStreamConfig config;
        check(jsStreamConfig_Init(&config));
        config.Name = "BENCH";
        config.Subjects = &subject;
        config.SubjectsLen = 1;
        check(js_AddStream(nullptr, stream_, &config, nullptr, nullptr));
    }
    void publish(const std::string& text) {
        check(js_Publish(nullptr, stream_, "bench", text.data(), static_cast<int>(text.size()),
                         nullptr, nullptr));
    }
    void publish_async(const std::string& text) {
        check(
            js_PublishAsync(stream_, "bench", text.data(), static_cast<int>(text.size()), nullptr));
    }
    void wait_for_all() { check(js_PublishAsyncComplete(stream_, nullptr)); }
    natsSubscription* follow() {
        jsSubOptions options;
        check(jsSubOptions_Init(&options));
        options.Ordered = true;
        natsSubscription* made = nullptr;
        check(js_SubscribeSync(&made, stream_, "bench", nullptr, &options, nullptr));
        return made;
    }

private:
    natsConnection* connection_ = nullptr;
    jsCtx* stream_ = nullptr;
};

turn nats_round_trips(const settings& set) {
    const auto keeper = apart([] { return std::make_unique<nats>(); });
    nats_client out(*keeper, 1), in(*keeper, 1);
    out.make_stream();
    const std::unique_ptr<natsSubscription, void (*)(natsSubscription*)> subscription(
        in.follow(), &natsSubscription_Destroy);
    const std::string text(set.payload, 'x');
    return round_trips(
        set.messages, [&] { out.publish(text); },
        [&] {
            natsMsg* got = nullptr;
            check(natsSubscription_NextMsg(&got, subscription.get(), 10'000));
            natsMsg_Destroy(got);
        });
}

#endif

// Publishing //////////////////////////////////////////////////////////////////////////////////////

struct pace {
    double messages = 0;        // confirmed a second
    double own = 0, keeper = 0; // us of processor time a message, of this process and of the other
};

/// What `publish()` costs, which is called again and again, and says how many more were confirmed;
/// then `finish()`, until all are.
template <class Publish, class Finish>
pace measure_pace(const keeper& with, double seconds, Publish publish, Finish finish) {
    const auto keeper_us = [&] { return with.process() ? process_us(with.process()) : 0; };
    const double own = process_us(getpid()), theirs = keeper_us();
    const std::uint64_t start = bench::now_ns(), end = bench::after(seconds);
    std::uint64_t count = 0;
    while (bench::now_ns() < end) count += publish();
    count += finish();
    const auto messages = static_cast<double>(count);
    return {messages * 1e9 / static_cast<double>(bench::now_ns() - start),
            (process_us(getpid()) - own) / messages, (keeper_us() - theirs) / messages};
}

/// The bus alone, without a server. It reads all that it has stored, as it does for a server.
pace publish_to_bus(const way& to, const settings& set) {
    constexpr std::uint64_t most = 16'384;
    const auto keeper = apart(to.make);
    bench::publisher publisher(make_bus(to.name, keeper->where()), set.payload);
    const pace found = measure_pace(
        *keeper, set.seconds,
        [&] {
            for (int n = 0; n < 64; ++n) publisher.publish(most);
            return std::uint64_t{0};
        },
        [&] { return publisher.wait_for_all(); });
    publisher.wait_until_told();
    return found;
}

#if defined(SSE_ENABLE_REDIS)

/// Reads a stream on a connection and thread of its own.
class redis_follower {
public:
    explicit redis_follower(const redis& of)
        : connection_(connect(of)), thread_([this] { run(); }) {}
    /// Returns once it has read all.
    ~redis_follower() {
        ends_ = true;
        thread_.join();
    }
    redis_follower(const redis_follower&) = delete;
    redis_follower& operator=(const redis_follower&) = delete;

private:
    void run() {
        std::string last = "0-0";
        for (;;) {
            const bool ends = ends_;
            const redis_server::reply got(
                static_cast<redisReply*>(
                    redisCommand(connection_.get(),
                                 "XREAD COUNT 1000 BLOCK 100 STREAMS messages %s", last.data())),
                &freeReplyObject);
            if (!got) throw std::runtime_error("Redis is gone");
            if (got->type == REDIS_REPLY_NIL && ends) return;
            if (got->type == REDIS_REPLY_NIL) continue;
            const redisReply& entries = *got->element[0]->element[1];
            last = entries.element[entries.elements - 1]->element[0]->str;
        }
    }

    redis_connection connection_;
    std::atomic<bool> ends_ = false;
    std::thread thread_;
};

pace publish_by_hiredis(const settings& set, bool read_back) {
    constexpr std::uint64_t batch = 512;
    const auto keeper = apart([] { return std::make_unique<redis>(); });
    const auto to = connect(*keeper);
    const std::string text(set.payload, 'x');
    std::array words{"XADD", "messages", "MAXLEN", "~", "100000", "*", "m", text.data()};
    const std::array<std::size_t, words.size()> sizes{4, 8, 6, 1, 6, 1, 1, text.size()};
    const auto send = [&] {
        for (std::uint64_t n = 0; n < batch; ++n)
            redisAppendCommandArgv(to.get(), static_cast<int>(words.size()), words.data(),
                                   sizes.data());
        for (int done = 0; !done;)
            if (redisBufferWrite(to.get(), &done) != REDIS_OK)
                throw std::runtime_error("Redis takes nothing");
    };
    const auto take = [&] {
        for (std::uint64_t n = 0; n < batch; ++n) {
            void* reply = nullptr;
            redisGetReply(to.get(), &reply);
            checked(reply);
        }
        return batch;
    };
    std::optional<redis_follower> follower;
    if (read_back) follower.emplace(*keeper);
    send();
    return measure_pace(
        *keeper, set.seconds,
        [&] {
            send();
            return take();
        },
        take);
}

#endif

#if defined(SSE_ENABLE_NATS)
pace publish_by_nats_c(const settings& set) {
    const auto keeper = apart([] { return std::make_unique<nats>(); });
    nats_client client(*keeper, 4'096);
    client.make_stream();
    const std::string text(set.payload, 'x');
    return measure_pace(
        *keeper, set.seconds,
        [&] {
            for (int n = 0; n < 64; ++n) client.publish_async(text);
            return std::uint64_t{64};
        },
        [&] {
            client.wait_for_all();
            return std::uint64_t{0};
        });
}
#endif

// The run /////////////////////////////////////////////////////////////////////////////////////////

/// A row of a table: a contender, and what was found in each turn.
template <class Found>
struct row {
    std::string name;
    std::vector<Found> found = {};
    std::string against = {}; // the row that it is compared with, by name
    faults wrong = {};

    double median(double Found::*what) const {
        std::vector<double> values;
        for (const Found& each : found) values.push_back(each.*what);
        return bench::median(std::move(values));
    }
};

constexpr const char* hiredis_both = "hiredis, reading too"; // as a server has to

/// The row of this name, or nullptr.
template <class Rows>
auto find(Rows& rows, const std::string& name) -> decltype(rows.data()) {
    for (auto& each : rows)
        if (each.name == name) return &each;
    return nullptr;
}

struct contest {
    scenario what;
    std::vector<row<turn>> rows = {};
};

struct results {
    std::vector<contest> fan_outs;
    std::vector<contest> latencies;
    std::vector<row<pace>> publishing;
};

void add_faults(faults& to, const faults& more) {
    to.lost += more.lost;
    to.duplicates += more.duplicates;
    to.out_of_order += more.out_of_order;
    to.disconnected += more.disconnected;
    to.ended_well &= more.ended_well;
}

/// A round: `turns` of each, the second time in the opposite order and so on.
template <class Turn>
void run_round(const scenario& what, const std::vector<way>& ways, const placement& cores,
               std::uint64_t turns, std::vector<row<turn>>& rows, Turn take_turn) {
    std::vector<std::unique_ptr<site>> sites;
    for (const way& each : ways) sites.push_back(std::make_unique<site>(what, each, cores));
    for (std::uint64_t number = 0; number < turns; ++number)
        for (std::size_t at = 0; at < sites.size(); ++at) {
            const std::size_t who = number % 2 == 0 ? at : sites.size() - 1 - at;
            find(rows, ways[who].name)->found.push_back(take_turn(*sites[who]));
        }
    for (std::size_t who = 0; who < sites.size(); ++who)
        add_faults(find(rows, ways[who].name)->wrong, sites[who]->finish());
}

void run_fan_out(const settings& set, const std::vector<way>& ways, std::uint64_t round,
                 contest& to) {
    bench::progress("round " + std::to_string(round) + ": " + std::to_string(to.what.rate) +
                    " messages a second");
    const placement cores = place(true);
    pin_to(cores.client);
    run_round(to.what, ways, cores, set.turns, to.rows,
              [&](site& one) { return one.publish_for(set.seconds); });
}

void run_latency(const settings& set, const std::vector<way>& ways, std::uint64_t round,
                 contest& to) {
    bench::progress("round " + std::to_string(round) + ": one message at a time, " +
                    std::to_string(to.what.clients) + " clients");
    const placement cores = place(false); // Redis and NATS need their core
    pin_to(cores.client);
    run_round(to.what, ways, cores, 1, to.rows,
              [&](site& one) { return one.publish_each(set.messages); });
#if defined(SSE_ENABLE_REDIS)
    if (auto* const bare = find(to.rows, "hiredis")) bare->found.push_back(redis_round_trips(set));
#endif
#if defined(SSE_ENABLE_NATS)
    if (auto* const bare = find(to.rows, "nats.c")) bare->found.push_back(nats_round_trips(set));
#endif
}

void run_publishing(const settings& set, const std::vector<way>& ways, std::uint64_t round,
                    std::vector<row<pace>>& rows) {
    bench::progress("round " + std::to_string(round) + ": publishing");
    for (auto& each : rows) {
        std::function<pace()> measure = [&] { return publish_to_bus(*find(ways, each.name), set); };
#if defined(SSE_ENABLE_REDIS)
        if (each.name == "hiredis") measure = [&] { return publish_by_hiredis(set, false); };
        if (each.name == hiredis_both) measure = [&] { return publish_by_hiredis(set, true); };
#endif
#if defined(SSE_ENABLE_NATS)
        if (each.name == "nats.c") measure = [&] { return publish_by_nats_c(set); };
#endif
        each.found.push_back(measure());
    }
}

/// The rows of these, and of the bare loops; each with the name of its bare loop.
std::vector<std::pair<std::string, std::string>> names_of(const std::vector<way>& ways) {
    std::vector<std::pair<std::string, std::string>> names;
    for (const way& each : ways) {
        const char* bare = each.name == "Redis" ? "hiredis" : each.name == "NATS" ? "nats.c" : "";
        names.emplace_back(each.name, bare);
        if (*bare != 0) names.emplace_back(bare, "");
    }
    return names;
}

results run_all(const settings& set) {
    const std::vector<way> ways = all_ways();
    std::vector<way> once = ways, buses = ways;
    std::erase_if(once, [](const way& each) { return each.name == "none again"; });
    std::erase_if(buses, [](const way& each) { return each.name.starts_with("none"); });
    results all;
    for (const std::uint64_t rate : {20u, 500u}) {
        all.fan_outs.push_back(
            {{.name = "fan-out", .clients = set.clients, .payload = set.payload, .rate = rate}});
        for (const way& each : ways) all.fan_outs.back().rows.push_back({each.name});
    }
    for (const std::uint64_t clients : {std::uint64_t{1}, set.few}) {
        all.latencies.push_back({{.name = "latency",
                                  .clients = clients,
                                  .payload = set.payload,
                                  .rate = 0,
                                  .burst = 1}});
        for (const auto& [name, bare] : names_of(once))
            all.latencies.back().rows.push_back({name, {}, bare});
    }
    for (const auto& [name, bare] : names_of(buses)) {
        all.publishing.push_back({name, {}, bare});
        if (name == "hiredis") all.publishing.push_back({hiredis_both, {}, name});
    }

    const auto runs = [&](const char* part) { return set.only.empty() || set.only == part; };
    for (std::uint64_t round = 1; round <= set.rounds; ++round) {
        if (runs("fan-out"))
            for (contest& each : all.fan_outs) run_fan_out(set, ways, round, each);
        if (runs("latency"))
            for (contest& each : all.latencies) run_latency(set, once, round, each);
        if (runs("publishing")) run_publishing(set, buses, round, all.publishing);
    }
    bench::end_progress();
    return all;
}

// The report //////////////////////////////////////////////////////////////////////////////////////

/// Of each turn to the turn of another in the same round: the median, and the quartiles.
std::string ratio(const row<turn>& of, const row<turn>& to, double turn::*what) {
    std::vector<double> ratios;
    for (std::size_t at = 0; at < of.found.size(); ++at)
        ratios.push_back(of.found[at].*what / (to.found[at].*what));
    std::sort(ratios.begin(), ratios.end());
    const std::size_t quarter = ratios.size() / 4;
    return bench::grouped(bench::median(ratios), 3) + " (" + bench::grouped(ratios[quarter], 2) +
           " to " + bench::grouped(ratios[ratios.size() - 1 - quarter], 2) + ")";
}

void print_fan_out(const contest& from) {
    bench::table table;
    table.row({"", "worker", "to none", "process", "to none", "in a write", "a write", "to none",
               "p50", "p99"});
    const auto& none = from.rows.front();
    for (const auto& each : from.rows)
        table.row({each.name, bench::grouped(each.median(&turn::worker), 3),
                   ratio(each, none, &turn::worker), bench::grouped(each.median(&turn::process), 3),
                   ratio(each, none, &turn::process),
                   bench::grouped(each.median(&turn::in_a_write), 1),
                   bench::grouped(each.median(&turn::a_write), 2),
                   ratio(each, none, &turn::a_write), bench::grouped(each.median(&turn::p50), 0),
                   bench::grouped(each.median(&turn::p99), 0)});
    std::printf("\n%llu clients, %llu messages a second of %llu bytes: us of processor time a "
                "delivery, of the worker\nand of the whole server; messages in a write, and the "
                "worker's us for one; latency in us\n\n",
                static_cast<unsigned long long>(from.what.clients),
                static_cast<unsigned long long>(from.what.rate),
                static_cast<unsigned long long>(from.what.payload));
    table.print();
}

void print_latency(const contest& from) {
    const auto& rows = from.rows;
    bench::table table;
    table.row({"", "p50", "beyond the bare one", "p99"});
    for (const auto& each : rows) {
        const auto* bare = find(rows, each.against);
        table.row(
            {each.name, bench::grouped(each.median(&turn::p50), 0),
             bare ? bench::grouped(each.median(&turn::p50) - bare->median(&turn::p50), 0) : "",
             bench::grouped(each.median(&turn::p99), 0)});
    }
    std::printf(
        "\nOne message at a time, until the last of %llu clients has it; bare: until it was "
        "read. In us\n\n",
        static_cast<unsigned long long>(from.what.clients));
    table.print();
}

void print_publishing(const settings& set, const std::vector<row<pace>>& rows) {
    bench::table table;
    table.row({"", "messages/s", "of the bare loop", "CPU", "of its server", "bare to it"});
    for (const auto& each : rows) {
        const auto* bare = find(rows, each.against);
        std::vector<double> ratios;
        for (std::size_t at = 0; bare && at < each.found.size(); ++at)
            ratios.push_back(each.found[at].messages / bare->found[at].messages);
        const double cpu = each.median(&pace::keeper);
        table.row({each.name, bench::grouped(each.median(&pace::messages), 0),
                   bare ? bench::grouped(bench::median(ratios), 2) : "",
                   bench::grouped(each.median(&pace::own), 2), bench::grouped(cpu, 2),
                   bare ? bench::grouped(bare->median(&pace::keeper) / cpu, 2) : ""});
    }
    std::printf(
        "\nPublishing messages of %llu bytes; us of processor time a message. The last column "
        "is what remains of\nthe bare loop's rate where the server of the bus is what "
        "limits it\n\n",
        static_cast<unsigned long long>(set.payload));
    table.print();
}

/// Whether nothing went astray. Says what did.
bool check_faults(const std::vector<row<turn>>& rows) {
    bool sound = true;
    for (const auto& each : rows) {
        if (each.wrong.sound()) continue;
        sound = false;
        std::printf(
            "NOT SOUND: %s: %llu lost, %llu twice, %llu out of order, %llu disconnected%s\n",
            each.name.c_str(), static_cast<unsigned long long>(each.wrong.lost),
            static_cast<unsigned long long>(each.wrong.duplicates),
            static_cast<unsigned long long>(each.wrong.out_of_order),
            static_cast<unsigned long long>(each.wrong.disconnected),
            each.wrong.ended_well ? "" : ", did not end well");
    }
    return sound;
}

bool report(const settings& set, const results& all) {
    bool sound = true;
    const auto show = [&](const std::vector<contest>& contests, auto print) {
        for (const contest& each : contests) {
            if (each.rows.front().found.empty()) continue;
            print(each);
            sound &= check_faults(each.rows);
        }
    };
    show(all.fan_outs, print_fan_out);
    show(all.latencies, print_latency);
    if (!all.publishing.front().found.empty()) print_publishing(set, all.publishing);
    std::printf("\nMedians of the turns; ratios are of turns that followed each other, with their "
                "quartiles.\n");
    return sound;
}

template <class Found>
void write_rows(bench::json& out, const std::vector<row<Found>>& rows,
                std::vector<std::pair<const char*, double Found::*>> figures) {
    for (const auto& each : rows) {
        out.open(each.name);
        for (const auto& [key, what] : figures) {
            out.open(key, '[');
            for (const Found& one : each.found) out.field("", one.*what);
            out.close();
        }
        out.close();
    }
}

void write_json(const settings& set, const std::vector<bench::fact>& facts, const results& all) {
    bench::json out;
    out.field("benchmark", "bus");
    bench::write_facts(out, facts);
    const std::vector<std::pair<const char*, double turn::*>> latency{
        {"latency_p50_us", &turn::p50}, {"latency_p99_us", &turn::p99}};
    auto figures = latency;
    figures.insert(figures.end(), {{"deliveries_per_s", &turn::deliveries},
                                   {"worker_us_per_delivery", &turn::worker},
                                   {"process_us_per_delivery", &turn::process},
                                   {"worker_us_per_write", &turn::a_write},
                                   {"messages_per_write", &turn::in_a_write}});
    for (const contest& each : all.fan_outs) {
        out.open("fan-out at " + std::to_string(each.what.rate));
        write_rows(out, each.rows, figures);
        out.close();
    }
    for (const contest& each : all.latencies) {
        out.open("one at a time, clients: " + std::to_string(each.what.clients));
        write_rows(out, each.rows, latency);
        out.close();
    }
    out.open("publishing");
    write_rows(out, all.publishing,
               {{"messages_per_s", &pace::messages},
                {"own_us_per_message", &pace::own},
                {"server_us_per_message", &pace::keeper}});
    out.close().write(set.json);
}

// The command line ////////////////////////////////////////////////////////////////////////////////

settings parse(int count, char** values) {
    settings set;
    bench::flags flags("bus", "what a bus costs a server.\n"
                              "Exits with 1 if a message was lost, repeated or out of order.");
    flags.toggle("--quick", set.quick, true, "one short round: to see that it works");
    flags.text("--only", set.only, "fan-out, latency or publishing");
    flags.number<std::uint64_t>("--rounds", set.rounds, 1, 100, "of fresh servers");
    flags.number<std::uint64_t>("--turns", set.turns, 1, 1'000, "of each in a round, fan-out");
    flags.number("--seconds", set.seconds, 0.05, 60.0, "of a turn");
    flags.number<std::uint64_t>("--clients", set.clients, 1, 100'000, "of each server, fan-out");
    flags.number<std::uint64_t>("--few", set.few, 1, 10'000, "clients, one message at a time");
    flags.number<std::uint64_t>("--messages", set.messages, 1, 100'000, "in a round of those");
    flags.number<std::uint64_t>("--payload", set.payload, 1, 1 << 20, "bytes of a message");
    flags.text("--json", set.json, "also write all turns to this file");
    flags.text("--serve", set.serve, "be a server with this bus; by this program itself");
    flags.text("--where", set.where, "where the messages of that server are");
    flags.number<std::uint64_t>("--rate", set.rate, 0, 1'000'000, "that it publishes");
    flags.number<std::uint64_t>("--burst", set.burst, 0, 1'000'000, "that it publishes at once");
    flags.parse(count, values);
    if (set.quick) {
        set.rounds = set.turns = 1;
        set.seconds = 0.2;
        set.clients = 50;
        set.messages = 20;
    }
    return set;
}

int run(const settings& set) {
    bench::raise_file_limit();
    auto facts = bench::describe_machine();
    facts.emplace_back("rounds", std::to_string(set.rounds) + ", of " + std::to_string(set.turns) +
                                     " turns for fan-out, " + bench::shortest(set.seconds) +
                                     " s each");
    bench::print_facts(facts);
    const results all = run_all(set);
    const bool sound = report(set, all);
    write_json(set, facts, all);
    return sound ? 0 : 1;
}

} // namespace

int main(int count, char** values) {
    const settings set = parse(count, values);
    return bench::run_program("bus", [&] {
        if (set.serve.empty()) return run(set);
        bus_server(set).run();
        return 0;
    });
}
