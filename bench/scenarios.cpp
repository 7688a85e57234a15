// scenarios.cpp - what streams cost: sse.hpp beside the floor, a bare epoll loop, and beside
// rivals. bench/run.sh runs the whole set. By hand, from the folder of sse.hpp:
//
//   g++ -O2 -std=c++20 -pthread -I. bench/scenarios.cpp -o scenarios && ./scenarios --quick
//   ./scenarios --only fan-out,burst --details            more figures of these
//   ./scenarios --only fan-out --clients 10000 --rate 2   the same with other numbers
//
// A scenario is a series of rounds, a round one leg for each contender: floor, sse, floor, sse, ...
// In each leg this process is the client and starts a fresh server; the two talk over 127.0.0.1
// and, for commands, over a socket pair:
//
//   client                                       server
//   connect all, read the response heads         accept, answer
//   start -------------------------------------> publish `<seq> <send_ns> <padding>`
//   warm up, read for --seconds                  ... at the rate
//     or read until everybody has the burst      ... or a burst, as fast as possible
//   stop --------------------------------------> no more messages; the last seq is told
//   read until everybody has the last message
//
// Deliveries, latency and processor time are those of the window, or of the bursts; lost, repeated
// and out of order messages are counted from the first message to the last. Processor time and
// memory are the server's, as the kernel counts them.
#include "chart.hpp"
#include "load.hpp"

#include <limits>

namespace {

using bench::contender;
using bench::placement;
using bench::scenario;

struct settings {
    std::string only;
    std::uint64_t rounds = 0;
    double seconds = 0;
    std::uint64_t clients = 0, payload = 0, rate = 0, burst = 0, behind = 0,
                  threads = 0; // 0: the scenario's
    std::string rivals, rivals_each;
    std::string json, svg;
    bool quick = false;
    bool scaling = false;
    bool tls = false;
    bool compress = false;
    bool details = false;
    bool markdown = false;
    bool pin = true;
    bool spin = true;
};

// One leg /////////////////////////////////////////////////////////////////////////////////////////

constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

struct leg {
    double published = unknown, deliveries = unknown;             // a second
    double span = unknown;                                        // ms
    double p50 = unknown, p99 = unknown, p999 = unknown;          // us
    double processor = unknown, user = unknown, system = unknown; // us a delivery
    double a_write = unknown;                                     // us
    double bytes = unknown;                                       // a delivery
    double deflate = unknown;                                     // us a message
    double memory = unknown;                                      // bytes a client
    double growth = unknown;                                      // KiB in the window
    double peak = unknown;                                        // MiB above its beginning
    double churned = unknown;                                     // a second
    double server_disturbed = 0, client_disturbed = 0; // % of its cores that somebody else used
    std::uint64_t lost = 0, duplicates = 0, out_of_order = 0, disconnected = 0, unanswered = 0;
    std::string failure;

    bool sound() const {
        return failure.empty() && lost + duplicates + out_of_order + disconnected == 0;
    }
    bool calm() const {
        return server_disturbed <= bench::tolerable && client_disturbed <= bench::tolerable;
    }
};

/// One server, its clients, and what is found out about both.
class run_of_leg {
public:
    run_of_leg(const scenario& what, const contender& who, const placement& cores)
        : what_(what), who_(who), cores_(cores), server_(what, who, cores),
          client_(what, who, cores, server_), process_(client_.meet().process) {
        // A server that cannot publish by itself was started by a program that does it for it.
        if (is_helped() && !who.behind_nginx && !cores.client.empty())
            bench::pin(cores.client, server_.child());
    }

    leg run() {
        // One client comes and goes first, so that code pages and allocator arenas which any first
        // client makes resident are not charged to each of the clients.
        client_.connect_all(1);
        client_.close_all();
        client_.read_for(0.1);
        before_ = resident();
        client_.connect_all(what_.clients);
        client_.read_for(0.1);
        result_.memory = (resident() - before_) / static_cast<double>(what_.clients);
        if (what_.bursts > 0)
            measure_bursts();
        else if (what_.wants_replay)
            measure_return();
        else
            measure_rate();
        finish();
        return result_;
    }

private:
    using command = bench::conductor;

    /// What is known at an edge of the window.
    struct edge {
        std::uint64_t published = 0;
        std::uint64_t churned = 0;
        std::uint64_t segments = 0;
        std::uint64_t bytes = 0;
        std::uint64_t deflated = 0; // calls of deflate()
        double deflate_ns = 0;      // of one
        double resident = 0;
        bench::processor_time server, client;
        double server_busy_us = 0, client_busy_us = 0; // of the cores, whoever used them
        std::uint64_t at = 0;
    };

    bool is_helped() const { return process_ != server_.child(); }
    double resident() const {
        const std::uint64_t more = who_.behind_nginx ? bench::resident_bytes(server_.child()) : 0;
        return static_cast<double>(bench::resident_bytes(process_) + more);
    }

    edge reach_edge() {
        edge now;
        now.resident = resident();
        now.churned = client_.churned();
        now.server_busy_us = bench::busy_us(cores_.server);
        now.client_busy_us = bench::busy_us(cores_.client);
        now.published = client_.ask(command::ask);
        std::istringstream(client_.told()) >> now.deflated >> now.deflate_ns;
        now.bytes = client_.bytes();
        now.client = bench::process_time();
        now.server = bench::process_time(process_);
        if (is_helped()) {
            bench::processor_time& whose = who_.behind_nginx ? now.server : now.client;
            whose = whose + bench::process_time(server_.child());
        }
        now.at = bench::now_ns();
        if (what_.churn == 0) now.segments = client_.segments(); // who leaves takes them along
        return now;
    }

    void measure_rate() {
        client_.ask(command::start);
        if (what_.burst > 0) client_.read_until(what_.burst);
        client_.let_come_and_leave(true);
        client_.read_for(what_.warmup);
        const edge from = reach_edge();
        client_.counts().in_window = true;
        client_.read_for(what_.seconds);
        const edge to = reach_edge();
        client_.counts().in_window = false;
        client_.let_come_and_leave(false);
        fill_figures(from, to);
        result_.deliveries = rate(client_.counts().deliveries, from, to);
        result_.published = rate(to.published - from.published, from, to);
        if (what_.churn > 0) result_.churned = rate(to.churned - from.churned, from, to);
        if (what_.says != bench::content::padding) compare_sizes(from, to);
    }

    /// A compressor takes its memory with its first bytes, so that is of the end.
    void compare_sizes(const edge& from, const edge& to) {
        result_.memory = (to.resident - before_) / static_cast<double>(what_.clients);
        result_.bytes = static_cast<double>(to.bytes - from.bytes) /
                        static_cast<double>(client_.counts().deliveries);
        if (to.deflated > from.deflated)
            result_.deflate = to.deflate_ns / 1e3 *
                              static_cast<double>(to.deflated - from.deflated) /
                              static_cast<double>(to.published - from.published);
    }

    void measure_bursts() {
        const edge from = reach_edge();
        client_.counts().in_window = true;
        std::vector<double> spans;
        std::uint64_t published = 0;
        for (std::uint64_t count = 0; count < what_.bursts; ++count) {
            const std::uint64_t start = bench::now_ns();
            client_.ask(command::start);
            published += what_.burst;
            const auto end = client_.read_until(published);
            if (!end) break;
            spans.push_back(static_cast<double>(*end - start) / 1e6);
        }
        client_.counts().in_window = false;
        fill_figures(from, reach_edge());
        if (spans.size() < what_.bursts) return; // what is lost tells why
        result_.span = bench::median(spans);
        result_.deliveries = static_cast<double>(what_.burst * what_.reach()) / result_.span * 1e3;
    }

    /// How long those that are behind take, and what the steady ones notice of it.
    void measure_return() {
        client_.ask(command::start);
        client_.read_until(what_.burst);
        client_.read_for(what_.warmup);
        const edge from = reach_edge();
        bench::restart_peak(process_);
        client_.counts().in_window = client_.counts_of_behind().in_window = true;
        if (what_.behind == 0) {
            client_.read_for(what_.seconds);
        } else {
            const std::uint64_t start = bench::now_ns();
            const auto end = client_.let_return(what_.burst);
            if (!end) result_.failure = "not everybody caught up in time";
            if (end) result_.span = static_cast<double>(*end - start) / 1e6;
        }
        client_.counts().in_window = client_.counts_of_behind().in_window = false;
        fill_figures(from, reach_edge());
        const double peak = static_cast<double>(bench::peak_bytes(process_));
        result_.peak = std::max(0.0, peak - from.resident) / 1024 / 1024;
    }

    static double rate(std::uint64_t count, const edge& from, const edge& to) {
        return static_cast<double>(count) * 1e9 / static_cast<double>(to.at - from.at);
    }

    void fill_figures(const edge& from, const edge& to) {
        const bench::tally& counts = client_.counts();
        const double seconds = static_cast<double>(to.at - from.at) / 1e9;
        const double deliveries =
            static_cast<double>(counts.deliveries + client_.counts_of_behind().deliveries);
        result_.p50 = counts.latency.quantile(0.50) / 1e3;
        result_.p99 = counts.latency.quantile(0.99) / 1e3;
        result_.p999 = counts.latency.quantile(0.999) / 1e3;
        const bench::processor_time own = to.server - from.server;
        result_.user = own.user_us / deliveries;
        result_.system = own.system_us / deliveries;
        result_.processor = result_.user + result_.system;
        if (to.segments > from.segments)
            result_.a_write =
                (own.user_us + own.system_us) / static_cast<double>(to.segments - from.segments);
        result_.growth = (to.resident - from.resident) / 1024;
        result_.server_disturbed = bench::used_by_others(to.server_busy_us - from.server_busy_us,
                                                         own, seconds, cores_.server.size());
        result_.client_disturbed =
            bench::used_by_others(to.client_busy_us - from.client_busy_us, to.client - from.client,
                                  seconds, cores_.client.size());
    }

    void finish() {
        const std::uint64_t published = client_.ask(command::stop);
        client_.read_until(published);
        client_.read_for(0.05); // a duplicate would come now
        result_.lost = client_.expected(published) - client_.received();
        result_.duplicates = client_.counts().duplicates;
        result_.out_of_order = client_.counts().out_of_order;
        if (what_.behind > 0) {
            result_.duplicates += client_.counts_of_behind().duplicates;
            result_.out_of_order += client_.counts_of_behind().out_of_order;
        }
        result_.disconnected = client_.disconnected();
        result_.unanswered = client_.unanswered();
        client_.close_all();
        if (!server_.end()) result_.failure = "it did not end well";
    }

    const scenario& what_;
    const contender& who_;
    const placement& cores_;
    bench::server_process server_;
    bench::load client_;
    pid_t process_;
    double before_ = 0; // resident without clients
    leg result_;
};

// The set /////////////////////////////////////////////////////////////////////////////////////////

struct figure {
    const char* key;
    const char* label;
    double leg::*value;
    int digits;
    bool more_is_better = false;
};

constexpr figure published{"published_per_s", "messages /s", &leg::published, 1};
constexpr figure deliveries{"deliveries_per_s", "deliveries /s", &leg::deliveries, 0, true};
constexpr figure span{"span_ms", "all have it after, ms", &leg::span, 1};
constexpr figure p50{"latency_p50_us", "latency p50, us", &leg::p50, 0};
constexpr figure p99{"latency_p99_us", "latency p99, us", &leg::p99, 0};
constexpr figure p999{"latency_p999_us", "latency p99.9, us", &leg::p999, 0};
constexpr figure cpu{"cpu_us_per_delivery", "server CPU, us a delivery", &leg::processor, 3};
constexpr figure user{"cpu_user_us_per_delivery", "of it user", &leg::user, 3};
constexpr figure kernel{"cpu_system_us_per_delivery", "of it system", &leg::system, 3};
constexpr figure a_write{"cpu_us_per_write", "server CPU, us a write", &leg::a_write, 2};
constexpr figure bytes{"bytes_per_delivery", "bytes a delivery", &leg::bytes, 1};
constexpr figure deflate_time{"deflate_us_per_message", "deflate(), us a message", &leg::deflate,
                              1};
constexpr figure memory{"memory_bytes_per_client", "memory, bytes a client", &leg::memory, 0};
constexpr figure growth{"memory_growth_kib", "memory growth, KiB", &leg::growth, 0};
constexpr figure peak{"memory_peak_mib", "memory peak, MiB", &leg::peak, 1};
constexpr figure churned{"connects_per_s", "connects /s", &leg::churned, 0};

constexpr const figure* all_figures[] = {
    &published, &deliveries, &span,  &p50,          &p99,    &p999,   &cpu,  &user,
    &kernel,    &a_write,    &bytes, &deflate_time, &memory, &growth, &peak, &churned};

// How far to trust the others.
constexpr figure disturbances[] = {
    {"server_core_used_by_others_percent", "others on server's core, %", &leg::server_disturbed, 1},
    {"client_core_used_by_others_percent", "others on client's core, %", &leg::client_disturbed, 1},
};

struct count {
    const char* key;
    const char* label;
    std::uint64_t leg::*value;
};

constexpr count counts[] = {
    {"lost", "lost or 20 s late", &leg::lost},
    {"duplicates", "duplicates", &leg::duplicates},
    {"out_of_order", "out of order", &leg::out_of_order},
    {"disconnected", "disconnected", &leg::disconnected},
    {"unanswered", "got no answer", &leg::unanswered},
};

/// A scenario, who takes part, and what is found.
struct contest {
    scenario what;
    std::vector<const figure*> shown;
    const figure* charted = nullptr;
    std::vector<contender> who;
    std::vector<std::vector<leg>> rounds = {}; // of each the legs of the contenders

    /// The rounds that count: those in which nobody else used the cores, if there are some.
    std::vector<const std::vector<leg>*> counted() const {
        std::vector<const std::vector<leg>*> calm, all;
        for (const auto& each : rounds) {
            all.push_back(&each);
            if (std::all_of(each.begin(), each.end(), [](const leg& l) { return l.calm(); }))
                calm.push_back(&each);
        }
        return calm.empty() ? all : calm;
    }
    bool calm() const {
        return std::all_of(counted().front()->begin(), counted().front()->end(),
                           [](const leg& each) { return each.calm(); });
    }
};

const contender floor_loop{"floor", true};
const contender uncoalesced{"uncoalesced"};
const contender library{"sse", true};
const contender library_handler{"sse handler", true, "/handler"};
const contender library_tokens{"sse", true, "/tokens"};
const contender library_alone{.name = "sse, one thread", .coalesces = true, .shares_thread = true};
const contender library_calm{"sse, no churn", true, "/subscribe/bench", {}, false};
const contender floor_undisturbed{"floor, none behind", true, "/subscribe/bench", {}, false};
const contender library_undisturbed{"sse, none behind", true, "/subscribe/bench", {}, false};
const contender library_unscraped{"sse, no scrapes", true, "/subscribe/bench", {}, false};
#if defined(SSE_ENABLE_IO_URING)
const std::vector<contender> both_ways{floor_loop, library, {"sse io_uring", true}};
#else
const std::vector<contender> both_ways{floor_loop, library};
#endif

std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts;
    std::istringstream in(text);
    for (std::string part; std::getline(in, part, at);) parts.push_back(part);
    return parts;
}

/// From `name=command,name=command`.
std::vector<contender> parse_rivals(const std::string& text) {
    std::vector<contender> rivals;
    for (const std::string& each : split(text, ',')) {
        const auto equals = std::min(each.find('='), each.size() - 1);
        rivals.push_back({each.substr(0, equals), false, "/subscribe/bench",
                          split(each.substr(equals + 1), ' ')});
    }
    return rivals;
}

/// The rivals, and those of them that send to one client alone, too.
std::vector<contest> whole_set(const std::vector<contender>& rivals,
                               const std::vector<contender>& rivals_each) {
    const auto with = [](const std::vector<contender>& more) {
        return [&more](std::vector<contender> who) {
            who.insert(who.end(), more.begin(), more.end());
            return who;
        };
    };
    const auto with_rivals = with(rivals), with_rivals_each = with(rivals_each);
    std::vector<contest> set{
        {{.name = "light", .clients = 100, .rate = 100},
         {&p50, &p99, &p999, &cpu},
         &p99,
         with_rivals(both_ways)},
        {{.name = "fan-out"}, {&cpu, &p50, &p99, &memory}, &cpu, with_rivals(both_ways)},
        {{.name = "saturation", .rate = 2'000},
         {&deliveries, &cpu, &p99},
         &deliveries,
         {floor_loop, library, uncoalesced}},
        {{.name = "burst", .clients = 100, .rate = 0, .burst = 30'000, .bursts = 3},
         {&deliveries, &cpu},
         &deliveries,
         with_rivals({floor_loop, library, uncoalesced})},
        {{.name = "idle", .clients = 10'000, .rate = 0, .burst = 1, .bursts = 5},
         {&memory, &span},
         &memory,
         with_rivals({floor_loop, library, library_handler})},
        {{.name = "churn", .clients = 100, .rate = 100, .churn = 500},
         {&cpu, &p99, &churned},
         &cpu,
         with_rivals({floor_loop, library, library_calm})},
        {{.name = "scrapes", .clients = 10'000, .rate = 2, .churn = 1, .churn_path = "/metrics"},
         {&p50, &p99, &p999, &cpu},
         nullptr,
         {library, library_unscraped}},
        {{.name = "slow readers", .payload = 1'000, .burst = 100, .unread = 50},
         {&cpu, &p99, &growth},
         &p99,
         with_rivals({floor_loop, library})},
        {{.name = "tokens", .rate = 0, .each = 20},
         {&cpu, &p50, &p99, &memory},
         &cpu,
         with_rivals_each({floor_loop, library_tokens})},
        {{.name = "tokens, fast", .rate = 0, .each = 50},
         {&cpu, &p50, &p99},
         nullptr,
         with_rivals_each({floor_loop, library_tokens})},
        {{.name = "personal", .clients = 10'000, .rate = 20'000, .topics = 10'000},
         {&cpu, &p50, &p99},
         &cpu,
         with_rivals_each({floor_loop, library, library_alone})},
        {{.name = "personal, 1,000", .clients = 1'000, .rate = 20'000, .topics = 1'000},
         {&cpu, &p50, &p99},
         nullptr,
         with_rivals_each({floor_loop, library, library_alone})},
        {{.name = "many topics", .rate = 200, .topics = 1'000, .follows = 100},
         {&cpu, &a_write, &p50, &p99, &memory},
         &cpu,
         {floor_loop, library}},
        {{.name = "replay",
          .clients = 500,
          .rate = 50,
          .burst = 10'000,
          .wants_replay = true,
          .behind = 5'000,
          .ids = true},
         {&span, &p50, &p99, &p999, &cpu, &peak},
         &span,
         {floor_loop, library, floor_undisturbed, library_undisturbed}},
    };
    if (!rivals.empty()) // what one write a message cannot do at 2,000 messages a second
        set.insert(set.begin() + 2, {{.name = "busy", .rate = 200},
                                     {&deliveries, &cpu, &p99},
                                     &deliveries,
                                     with_rivals({floor_loop, library})});
    return set;
}

#if defined(SSE_ENABLE_TLS)

std::vector<contest> tls_set() {
    const auto by = [](contender who) {
        who.secure = true;
        return who;
    };
    const contender floor = by(floor_loop), secure = by(library), calm = by(library_calm);
    contender plain = library, front = by({"nginx, sse plain", true});
    plain.name = "sse plain";
    front.behind_nginx = true;
    std::vector<contender> all{floor, secure, plain};
    if (access(bench::nginx_front::program, X_OK) == 0) all.push_back(front);
    return {
        {{.name = "fan-out"}, {&cpu, &a_write, &p50, &p99, &memory}, &cpu, all},
        {{.name = "burst", .clients = 100, .rate = 0, .burst = 20, .bursts = 30},
         {&deliveries, &cpu, &a_write},
         &cpu,
         all},
        {{.name = "large burst", .clients = 100, .rate = 0, .burst = 10'000, .bursts = 3},
         {&deliveries, &cpu},
         &cpu,
         all},
        {{.name = "churn", .clients = 100, .rate = 100, .churn = 500},
         {&cpu, &p99, &churned},
         &p99,
         {floor, secure, calm}},
    };
}

#endif

#if defined(SSE_ENABLE_ZLIB)

std::vector<contest> compress_set() {
    const auto compressing = [](contender who) {
        who.compresses = true;
        return who;
    };
    contender plain = library, each = compressing(floor_loop);
    plain.name = "sse plain";
    each.name = "floor, a stream each";
    const auto with = [&](std::string_view name, bench::content says) {
        return contest{{.name = name, .rate = 5, .says = says, .ids = true},
                       {&bytes, &cpu, &deflate_time, &p99, &memory},
                       &bytes,
                       {plain, compressing(library), floor_loop, each}};
    };
    return {with("prices", bench::content::prices), with("chat", bench::content::chat),
            with("fragments", bench::content::fragments)};
}

#endif

std::vector<contest> scaling_set() {
    std::vector<contest> set;
    const std::vector<contender> both{floor_loop, library};
    for (const std::uint64_t threads : {1u, 2u, 4u})
        set.push_back({{.name = "workers", .rate = 1'000, .threads = threads},
                       {&deliveries, &cpu, &p99},
                       nullptr,
                       {library}});
    for (const std::uint64_t clients :
         {10u, 100u, 1'000u, 10'000u, 19'000u}) // 20,000 files a process
        set.push_back({{.name = "clients", .clients = clients, .rate = 20'000 / clients},
                       {&cpu, &p99, &memory},
                       nullptr,
                       both});
    for (const std::uint64_t payload : {16u, 256u, 4'096u, 65'536u})
        set.push_back(
            {{.name = "payload", .clients = 100, .payload = payload}, {&cpu, &p99}, nullptr, both});
    for (const std::uint64_t topics :
         {1u, 10u, 1'000u, 100'000u}) // deliveries a second stay the same
        set.push_back({{.name = "topics",
                        .rate = 20'000 / std::max<std::uint64_t>(1, 1'000 / topics),
                        .topics = topics},
                       {&published, &cpu, &p99},
                       nullptr,
                       {library}});
    return set;
}

// The run /////////////////////////////////////////////////////////////////////////////////////////

/// The client on the last core, the server on as many others as it has workers. With one core
/// only, polling would starve the server.
placement place(const settings& set, std::uint64_t threads) {
    const std::vector<int> cores = bench::allowed_cores();
    placement made;
    made.spin = set.spin && cores.size() > 1;
    if (!set.pin || cores.size() < 2) return made;
    const auto workers = std::min<std::size_t>(threads, cores.size() - 1);
    made.server.assign(cores.begin(), cores.begin() + static_cast<std::ptrdiff_t>(workers));
    made.client.assign(1, cores.back());
    return made;
}

leg run_leg(scenario what, const contender& who, const placement& cores) {
    if (!who.meets_others) what.churn = what.behind = 0;
    // So that a burst takes those about as long who write each message by itself.
    if (!who.coalesces && what.bursts > 0) what.burst = std::max<std::uint64_t>(1, what.burst / 20);
    try {
        return run_of_leg(what, who, cores).run();
    } catch (const std::exception& error) {
        leg failed;
        failed.failure = error.what();
        return failed;
    }
}

void run_all(const settings& set, std::vector<contest>& contests) {
    const std::vector<int> everywhere = bench::allowed_cores();
    std::size_t legs = 0, done = 0;
    for (const contest& each : contests) legs += each.who.size() * set.rounds;
    for (contest& each : contests) {
        const placement cores = place(set, each.what.threads);
        if (!cores.client.empty()) bench::pin(cores.client);
        for (std::uint64_t round = 1; round <= set.rounds; ++round) {
            each.rounds.emplace_back();
            for (const contender& who : each.who) {
                bench::progress(std::to_string(++done) + " of " + std::to_string(legs) + ": " +
                                std::string(each.what.name) + ", round " + std::to_string(round) +
                                ", " + who.name);
                each.rounds.back().push_back(run_leg(each.what, who, cores));
            }
        }
        bench::pin(everywhere);
    }
    bench::end_progress();
}

// The report //////////////////////////////////////////////////////////////////////////////////////

std::string count_of(std::uint64_t n, const char* what) {
    return bench::grouped(static_cast<double>(n), 0) + what;
}

std::string describe(const scenario& what) {
    std::string text = count_of(what.clients, " clients");
    if (what.bursts > 0)
        text += what.burst == 1 ? ", now and then a message"
                                : ", bursts of " + count_of(what.burst, " messages");
    if (what.rate > 0) text += ", " + count_of(what.rate, " messages/s");
    if (what.each > 0) text += ", " + count_of(what.each, " messages/s to each by its handler");
    text += " of " + (what.says == bench::content::padding ? count_of(what.payload, " bytes")
                                                           : bench::name_of(what.says));
    if (what.unread > 0) text += ", " + count_of(what.unread, " read nothing");
    if (what.churn > 0 && what.churn_path.empty())
        text += ", " + count_of(what.churn, " connects/s");
    else if (what.churn > 0)
        text += ", " + count_of(what.churn, " GET/s of ") + std::string(what.churn_path);
    if (what.topics > 0) text += ", " + count_of(what.topics, " topics");
    if (what.follows > 0) text += ", " + count_of(what.follows, " to each");
    if (what.behind > 0)
        text += ", " + count_of(what.behind, " come ") + count_of(what.burst, " messages behind");
    if (what.threads > 1) text += ", " + count_of(what.threads, " workers");
    return text;
}

std::vector<double> values(const contest& from, std::size_t who, double leg::*what) {
    std::vector<double> found;
    for (const auto* round : from.counted())
        if (std::isfinite((*round)[who].*what)) found.push_back((*round)[who].*what);
    return found;
}

double median(const contest& from, std::size_t who, double leg::*what) {
    return bench::median(values(from, who, what));
}

std::uint64_t total(const contest& from, std::size_t who, std::uint64_t leg::*what) {
    std::uint64_t sum = 0;
    for (const auto& round : from.rounds) sum += round[who].*what;
    return sum;
}

// The two legs of a round met the same machine, so their ratio says more than that of the medians.
double ratio(const contest& from, std::size_t who, std::size_t base, double leg::*what) {
    std::vector<double> ratios;
    for (const auto* round : from.counted()) {
        const double ratio = (*round)[who].*what / ((*round)[base].*what);
        if (std::isfinite(ratio)) ratios.push_back(ratio);
    }
    return bench::median(std::move(ratios));
}

/// The median, and how far the rounds lie from it at most.
std::string cell(const contest& from, std::size_t who, const figure& what) {
    const std::vector<double> found = values(from, who, what.value);
    if (found.empty()) return "-";
    const double middle = bench::median(found);
    std::string text = bench::grouped(middle, what.digits);
    const auto [least, most] = std::minmax_element(found.begin(), found.end());
    const double off = std::max(*most - middle, middle - *least) / std::abs(middle) * 100;
    if (found.size() > 1 && std::isfinite(off)) text += " ±" + bench::grouped(off, 0) + "%";
    return text;
}

/// The columns: everybody who takes part somewhere.
std::vector<std::string> all_names(const std::vector<contest>& contests) {
    std::vector<std::string> names;
    for (const contest& each : contests)
        for (const contender& who : each.who)
            if (std::find(names.begin(), names.end(), who.name) == names.end())
                names.push_back(who.name);
    return names;
}

/// A row with a cell for each column: `make(who)` for those who take part, else nothing.
template <class Make>
std::vector<std::string> row(const contest& from, const std::vector<std::string>& names,
                             const std::string& label, Make make) {
    std::vector<std::string> cells{label};
    for (const std::string& name : names) {
        cells.emplace_back();
        for (std::size_t who = 0; who < from.who.size(); ++who)
            if (from.who[who].name == name) cells.back() = make(who);
    }
    return cells;
}

bool is_known(const contest& from, const figure& what) {
    for (std::size_t who = 0; who < from.who.size(); ++who)
        if (!values(from, who, what.value).empty()) return true;
    return false;
}

void add_rows(bench::table& table, const settings& set, const contest& from,
              const std::vector<std::string>& names) {
    table.heading(std::string(from.what.name) + ": " + describe(from.what) +
                  (from.calm() ? "" : " (disturbed)"));
    const auto is_shown = [&](const figure* one) {
        return set.details ||
               std::find(from.shown.begin(), from.shown.end(), one) != from.shown.end();
    };
    for (const figure* each : all_figures) {
        if (!is_shown(each) || !is_known(from, *each)) continue;
        auto cells =
            row(from, names, each->label, [&](std::size_t who) { return cell(from, who, *each); });
        const auto ours = std::find_if(from.who.begin(), from.who.end(), [](const contender& who) {
            return who.name == library.name;
        });
        const auto at = static_cast<std::size_t>(ours - from.who.begin());
        if (at != 0) cells.push_back(bench::grouped(ratio(from, at, 0, each->value), 2));
        table.row(std::move(cells));
    }
    for (const figure& each : disturbances)
        if (set.details)
            table.row(row(from, names, each.label,
                          [&](std::size_t who) { return cell(from, who, each); }));
    for (const count& each : counts) {
        const auto number = [&](std::size_t who) { return total(from, who, each.value); };
        bool any = false;
        for (std::size_t who = 0; who < from.who.size(); ++who) any |= number(who) != 0;
        if (any)
            table.row(row(from, names, each.label,
                          [&](std::size_t who) { return count_of(number(who), ""); }));
    }
}

void print_table(const settings& set, const std::vector<contest>& contests) {
    const std::vector<std::string> names = all_names(contests);
    std::vector<std::string> head{""};
    head.insert(head.end(), names.begin(), names.end());
    if (names.size() > 1) head.push_back("sse/" + names.front());
    bench::table table;
    table.row(std::move(head));
    for (const contest& each : contests) add_rows(table, set, each, names);
    std::printf("\n");
    set.markdown ? table.print_markdown() : table.print();
}

#if defined(SSE_ENABLE_ZLIB)

/// What compressing once saves, and what it costs, beside a stream for each client.
void print_compression(const settings& set, const std::vector<contest>& contests) {
    enum : std::size_t { plain, ours, floor, each }; // as compress_set() has them
    bench::table table;
    table.row({"", "bytes, % of plain", "a stream each", "CPU, sse/plain", "each/floor",
               "deflate(), each/sse"});
    for (const contest& from : contests) {
        const auto cell = [&](std::size_t who, std::size_t base, double leg::*what, double times,
                              int digits) {
            return bench::grouped(ratio(from, who, base, what) * times, digits);
        };
        table.row({std::string(from.what.name), cell(ours, plain, &leg::bytes, 100, 1),
                   cell(each, floor, &leg::bytes, 100, 1), cell(ours, plain, &leg::processor, 1, 2),
                   cell(each, floor, &leg::processor, 1, 2),
                   cell(each, ours, &leg::deflate, 1, 0)});
    }
    std::printf("\n");
    set.markdown ? table.print_markdown() : table.print();
}

#endif

bool sound(const std::vector<contest>& contests) {
    bool all = true;
    for (const contest& each : contests)
        for (const auto& round : each.rounds)
            for (std::size_t who = 0; who < round.size(); ++who)
                all &= each.who[who].program.empty() ? round[who].sound() : true;
    return all;
}

void print_remarks(const std::vector<contest>& contests) {
    std::printf("\nMedians of the rounds, ± how far the rounds lie from them; lost and so on are "
                "sums; the ratio is\nthe median of the rounds' own ratios.\n");
    bool all_calm = true;
    for (const contest& each : contests) {
        all_calm &= each.calm();
        for (const auto& round : each.rounds)
            for (std::size_t who = 0; who < round.size(); ++who)
                if (!round[who].failure.empty())
                    std::printf("%s, %s: %s\n", each.what.name.data(), each.who[who].name.c_str(),
                                round[who].failure.c_str());
    }
    if (!all_calm) bench::print_disturbed();
    if (!sound(contests))
        std::printf("NOT SOUND: a message went astray or a server did not end well.\n");
}

void write_leg(bench::json& out, const std::string& name, const leg& from) {
    out.open(name);
    for (const figure* each : all_figures) out.field(each->key, from.*each->value);
    for (const figure& each : disturbances) out.field(each.key, from.*each.value);
    for (const count& each : counts) out.field(each.key, from.*each.value);
    if (!from.failure.empty()) out.field("failure", from.failure);
    out.close();
}

void write_contest(bench::json& out, const contest& from) {
    const scenario& what = from.what;
    out.open("").field("name", what.name).field("description", describe(what));
    out.field("calm", from.calm()).field("clients", what.clients).field("payload", what.payload);
    out.field("rate", what.rate).field("burst", what.burst).field("bursts", what.bursts);
    out.field("behind", what.behind).field("follows", what.follows);
    out.field("unread", what.unread).field("churn", what.churn).field("topics", what.topics);
    out.field("threads", what.threads).field("seconds", what.seconds).open("medians");
    for (std::size_t who = 0; who < from.who.size(); ++who) {
        out.open(from.who[who].name);
        for (const figure* each : all_figures) out.field(each->key, median(from, who, each->value));
        out.close();
    }
    out.close().open("rounds", '[');
    for (const auto& round : from.rounds) {
        out.open("");
        for (std::size_t who = 0; who < round.size(); ++who)
            write_leg(out, from.who[who].name, round[who]);
        out.close();
    }
    out.close().close();
}

void write_json(const settings& set, const std::vector<bench::fact>& facts,
                const std::vector<contest>& contests) {
    bench::json out;
    out.field("benchmark", "scenarios").field("sound", sound(contests));
    bench::write_facts(out, facts);
    out.open("scenarios", '[');
    for (const contest& each : contests) write_contest(out, each);
    out.close().write(set.json);
}

void write_chart(const settings& set, const std::vector<bench::fact>& facts,
                 const std::vector<contest>& contests) {
    if (set.svg.empty()) return;
    std::string caption;
    for (const auto& [name, value] : facts)
        if (name == "machine" || name == "kernel" || name == "build" || name == "date")
            caption += (caption.empty() ? "" : "; ") + value;
    bench::chart chart(caption);
    for (const contest& each : contests) {
        if (each.charted == nullptr) continue;
        bench::panel panel{std::string(each.what.name) + ": " + each.charted->label +
                               (each.charted->more_is_better ? " (more is better)" : ""),
                           describe(each.what)};
        for (std::size_t who = 0; who < each.who.size(); ++who) {
            const double value = median(each, who, each.charted->value);
            const std::string& name = each.who[who].name;
            if (std::isfinite(value))
                panel.bars.push_back({name, std::max(0.0, value),
                                      bench::grouped(value, each.charted->digits),
                                      name.starts_with(library.name)});
        }
        chart.add(std::move(panel));
    }
    chart.write(set.svg);
}

std::string cores_text(const std::vector<int>& cores) {
    std::string text;
    for (int core : cores) text += (text.empty() ? "" : ",") + std::to_string(core);
    return text.empty() ? "any core" : "core " + text;
}

std::vector<bench::fact> describe_run(const settings& set) {
    std::vector<bench::fact> facts = bench::describe_machine();
    const placement cores = place(set, 1);
    facts.emplace_back("placement",
                       "server on " + cores_text(cores.server) + ", client on " +
                           cores_text(cores.client) + "; client " +
                           (cores.spin ? "polls: the server never pays for waking it"
                                       : "sleeps: the server's send() pays for waking it"));
    facts.emplace_back("floor", "a bare epoll loop, 1 thread: all that waits for a client in one "
                                "send(); uncoalesced: a send() each");
    facts.emplace_back("sse", "1 worker and 1 publisher unless said; ids, some 20 bytes a message, "
                              "which the floor sends in replay alone");
#if defined(SSE_ENABLE_TLS)
    if (set.tls)
        facts.emplace_back("TLS", std::string(OpenSSL_version(OPENSSL_VERSION)) +
                                      ", whole handshakes with P-256; the floor is a bare loop "
                                      "over it, nginx stands before a server without TLS, and "
                                      "both are counted");
#endif
#if defined(SSE_ENABLE_ZLIB)
    if (set.compress)
        facts.emplace_back("gzip", "zlib " + std::string(zlibVersion()) +
                                       ", its default level; the floor sends ids too, and has a "
                                       "stream for each client; deflate() is the median of its "
                                       "calls, times their number");
#endif
    facts.emplace_back("rounds", std::to_string(set.rounds) + ", the contenders in turn");
    return facts;
}

// The command line ////////////////////////////////////////////////////////////////////////////////

settings parse(int count, char** values, bench::flags& flags) {
    settings set;
    flags.text("--only", set.only, "these scenarios, by name, separated by commas");
    flags.toggle("--quick", set.quick, true, "one short round: to see that it works");
    flags.toggle("--scaling", set.scaling, true, "workers, clients, payload and topics instead");
#if defined(SSE_ENABLE_TLS)
    flags.toggle("--tls", set.tls, true, "over TLS instead, beside a bare loop over OpenSSL");
#endif
#if defined(SSE_ENABLE_ZLIB)
    flags.toggle("--compress", set.compress, true,
                 "by gzip instead, beside none and a stream of zlib for each client");
#endif
    flags.text("--rivals", set.rivals,
               "name=command,...: programs that obey as bench::conductor does");
    flags.text("--rivals-each", set.rivals_each,
               "those of them that also send to one client alone, by --each and --topics");
    flags.number<std::uint64_t>("--rounds", set.rounds, 0, 100, "of a leg for each; 0: 5, or 3");
    flags.number("--seconds", set.seconds, 0.0, 600.0, "measured in a leg; 0: 3");
    flags.number<std::uint64_t>("--clients", set.clients, 0, 1'000'000, "0: the scenario's");
    flags.number<std::uint64_t>("--payload", set.payload, 0, 1 << 20, "0: the scenario's");
    flags.number<std::uint64_t>("--rate", set.rate, 0, 1'000'000, "0: the scenario's");
    flags.number<std::uint64_t>("--burst", set.burst, 0, 1'000'000, "0: the scenario's");
    flags.number<std::uint64_t>("--behind", set.behind, 0, 1'000'000,
                                "clients of replay that come back; 0: 5,000, or 500 with --quick, "
                                "or so many for each of --clients");
    flags.number<std::uint64_t>("--threads", set.threads, 0, 256, "0: the scenario's");
    flags.toggle("--details", set.details, true, "print every figure");
    flags.toggle("--markdown", set.markdown, true, "print a table in Markdown");
    flags.toggle("--no-pin", set.pin, false, "leave the choice of cores to the kernel");
    flags.toggle("--no-spin", set.spin, false, "the client sleeps while nothing arrives");
    flags.text("--json", set.json, "also write all rounds to this file");
    flags.text("--svg", set.svg, "also draw the medians into this file");
    flags.parse(count, values);
    if (set.rounds == 0) set.rounds = set.quick ? 1 : set.scaling ? 3 : 5;
    if (set.seconds == 0) set.seconds = set.quick ? 1 : 3;
    return set;
}

void adjust(const settings& set, scenario& what) {
    const auto choose = [](std::uint64_t& target, std::uint64_t value) {
        if (value != 0) target = value;
    };
    if (set.clients != 0) what.unread = what.unread * set.clients / what.clients;
    if (set.clients != 0) what.behind = what.behind * set.clients / what.clients;
    if (set.quick) what.behind /= 10;
    if (what.behind != 0) choose(what.behind, set.behind);
    const bool has_topic_each = what.topics == what.clients;
    choose(what.clients, set.clients);
    if (has_topic_each) what.topics = what.clients;
    what.follows = std::min(what.follows, what.topics);
    choose(what.payload, set.payload);
    if (what.rate != 0) choose(what.rate, set.rate);
    if (what.burst > 1 && (what.bursts > 0 || what.behind > 0)) choose(what.burst, set.burst);
    choose(what.threads, set.threads);
    what.seconds = set.seconds;
    what.warmup = std::min(what.warmup, set.seconds / 3);
}

std::vector<contest> choose(const settings& set, const bench::flags& flags) {
    std::vector<contest> contests =
        set.scaling ? scaling_set()
                    : whole_set(parse_rivals(set.rivals), parse_rivals(set.rivals_each));
#if defined(SSE_ENABLE_TLS)
    if (set.tls) contests = tls_set();
#endif
#if defined(SSE_ENABLE_ZLIB)
    if (set.compress) contests = compress_set();
#endif
    const std::vector<std::string> wanted = split(set.only, ',');
    for (const std::string& name : wanted)
        if (std::none_of(contests.begin(), contests.end(),
                         [&](const contest& each) { return each.what.name == name; }))
            flags.reject("there is no scenario '" + name + "'");
    if (!wanted.empty())
        std::erase_if(contests, [&](const contest& each) {
            return std::find(wanted.begin(), wanted.end(), each.what.name) == wanted.end();
        });
    const std::uint64_t files = bench::raise_file_limit();
    for (contest& each : contests) {
        adjust(set, each.what);
        if (each.what.clients + each.what.behind + 512 > files)
            flags.reject(std::to_string(each.what.clients + each.what.behind) +
                         " clients need more open files than " + "the " + std::to_string(files) +
                         " that the hard limit allows");
        if (each.what.topics != 0 && each.what.clients % each.what.topics != 0 &&
            each.what.topics % each.what.clients != 0)
            flags.reject(
                "the number of topics must divide that of clients, or the other way round");
    }
    return contests;
}

int run(const settings& set, std::vector<contest> contests) {
    const std::vector<bench::fact> facts = describe_run(set);
    bench::print_facts(facts);
    run_all(set, contests);
    print_table(set, contests);
#if defined(SSE_ENABLE_ZLIB)
    if (set.compress) print_compression(set, contests);
#endif
    print_remarks(contests);
    write_json(set, facts, contests);
    write_chart(set, facts, contests);
    return sound(contests) ? 0 : 1;
}

} // namespace

int main(int count, char** values) {
    bench::flags flags("scenarios",
                       "sse.hpp beside a bare epoll loop, and beside rivals.\n"
                       "Exits with 1 if a message was lost, repeated or out of order.");
    const settings set = parse(count, values, flags);
    return bench::run_program("scenarios", [&] { return run(set, choose(set, flags)); });
}
