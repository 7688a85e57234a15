// soak.cpp - covers >>worker: a long storm: clients come and go, are cut, stall and read slowly,
// publishers publish in bursts, and servers are started anew on the same port, while every message
// is accounted for and nothing may grow.
//
// SOAK_DURATION_SEC=1800 SOAK_CLIENTS=200 SOAK_MSG_PER_SEC=300 SOAK_REPORT_SEC=10 build/tests/soak
//
// `soak tls` is a storm over TLS for half of that time, without the trials.
//
// Records are audited every second, and then forgotten. At checkpoints, every 5 to 30 seconds, the
// storm rests: all clients come to the newest message, so that what they got adds up with what was
// published; connections, descriptors and threads are counted. Then it goes on with other dice, and
// a tenth of the clients replaced. Between two checkpoints the server is stopped, or drained, and
// the next one starts, with the other lag policy.
//
// Before the storm come the trials of support/trials.hpp, for some seconds. In the storm a program
// is started beside each server, and outlives it with what it has inherited.
//
// Memory is looked at there too, once what is free was given back to the system: otherwise how the
// allocator scatters blocks would be in it. The checkpoints of the first quarter are warm-up. The
// median of the first half of the others is compared with that of the second half: a leak goes on
// in all of them, and no single one decides. Under a sanitizer this says nothing, and is left out.
#include "support/handlers.hpp"
#include "support/press.hpp"
#include "support/setting.hpp"
#include "support/trials.hpp"

#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <tuple>

#include <malloc.h>

namespace soak_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

// ---- what is asked for --------------------------------------------------------------------------

struct settings {
    bool wanted = setting("SOAK", 1, 0, 1) == 1;
    std::chrono::seconds duration{setting("SOAK_DURATION_SEC", 30, 10, 30 * 24 * 3600)};
    std::size_t clients = setting("SOAK_CLIENTS", 200, 1, 10'000);
    std::size_t messages_per_second = setting("SOAK_MSG_PER_SEC", 300, 1, 100'000);
    std::chrono::seconds report{setting("SOAK_REPORT_SEC", 10, 1, 24 * 3600)};
    std::uint64_t seed = setting("SSE_TEST_SEED", 1, 0, std::numeric_limits<std::uint64_t>::max());
    bool tls = false;

    /// Half a second's: some clients come back too late.
    std::size_t history() const { return std::max<std::size_t>(messages_per_second / 2, 16); }
    std::chrono::milliseconds between_checkpoints() const {
        return std::clamp<std::chrono::milliseconds>(duration / 6, 5s, 30s);
    }
};

// ---- what is measured ---------------------------------------------------------------------------

std::size_t thread_count() {
    std::size_t count = 0;
    DIR* const directory = ::opendir("/proc/self/task");
    if (directory == nullptr) throw_errno("list threads");
    while (const dirent* entry = ::readdir(directory))
        if (entry->d_name[0] != '.') ++count;
    ::closedir(directory);
    return count;
}

/// What must come back to what it was.
struct resources {
    std::size_t descriptors = open_descriptors();
    std::size_t threads = thread_count();

    friend bool operator==(const resources&, const resources&) = default;
};

std::string to_string(const resources& r) {
    return std::to_string(r.descriptors) + " descriptors and " + std::to_string(r.threads) +
           " threads";
}

double megabytes(std::size_t bytes) { return static_cast<double>(bytes) / 1e6; }

std::size_t median(std::vector<std::size_t> of) {
    const auto middle = of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2);
    std::nth_element(of.begin(), middle, of.end());
    return *middle;
}

/// How much more memory the later checkpoints had than the earlier ones, without the warm-up.
std::int64_t growth(const std::vector<std::size_t>& samples) {
    const auto warm = samples.begin() + static_cast<std::ptrdiff_t>((samples.size() + 3) / 4);
    const auto middle = warm + (samples.end() - warm) / 2;
    if (warm == middle) return 0;
    return static_cast<std::int64_t>(median({middle, samples.end()})) -
           static_cast<std::int64_t>(median({warm, middle}));
}

/// A twentieth, or 4 MB: less is the allocator's and the kernel's.
std::int64_t allowed_growth(const std::vector<std::size_t>& samples) {
    return std::max<std::int64_t>(static_cast<std::int64_t>(samples.front() / 20), 4'000'000);
}

// ---- the server ---------------------------------------------------------------------------------

/// What the servers told of their streams, and of handlers that failed.
struct tales {
    static constexpr std::size_t reasons = static_cast<std::size_t>(sse::end_reason::failed) + 1;
    std::atomic<std::uint64_t> begun{0};
    std::array<std::atomic<std::uint64_t>, reasons> ended{};
    std::atomic<std::uint64_t> failures{0};

    std::uint64_t all_ended() const {
        std::uint64_t sum = 0;
        for (const auto& each : ended) sum += each;
        return sum;
    }
    std::uint64_t of(sse::end_reason why) const { return ended[static_cast<std::size_t>(why)]; }
};

sse::options server_options(const settings& asked, tales& told) {
    sse::options o = with_threads(2);
    o.history.messages = asked.history();
    o.heartbeat = 100ms;
    o.timeouts.stall = 1s;
    o.limits.connections = 0;
#if defined(SSE_ENABLE_TLS)
    if (asked.tls) {
        o.tls.certificate = test_server().certificate;
        o.tls.key = test_server().key;
    }
#endif
    o.hooks.on_connect = [&told](sse::stream&) { ++told.begun; };
    o.hooks.on_disconnect = [&told](const sse::stream_info&, sse::end_reason why) {
        ++told.ended[static_cast<std::size_t>(why)];
    };
    o.hooks.on_error = [&told](std::exception_ptr) { ++told.failures; };
    return o;
}

handler_result send_note(sse::stream& client, int number) {
    const std::string text = std::to_string(number);
    co_await client.send({.event = "note", .data = text});
}

/// A handler for each client, that sends notes between the messages until it leaves.
handler_result notes(sse::stream& client) {
    client.subscribe("/a");
    for (int n = 0;; ++n) {
        co_await send_note(client, n);
        co_await client.sleep_for(50ms);
    }
}

/// The stream lives on without its handler.
handler_result notes_first(sse::stream& client) {
    client.subscribe("/b");
    for (int n = 0; n < 3; ++n) co_await send_note(client, n);
}

/// While the storm rests no stream ends by itself, or the clients would never all be there at once.
std::atomic<bool> at_rest{false};

/// The server ends it; its client comes back.
handler_result notes_and_an_end(sse::stream& client) {
    const bool closes = client.request().query_value("close").has_value();
    client.subscribe("/");
    if (!closes && !at_rest) client.end_after(2s);
    for (int n = 0; n < 20; ++n) {
        co_await send_note(client, n);
        co_await client.sleep_for(50ms);
    }
    if (closes && !at_rest) client.close();
}

void add_handlers(sse::server& server) {
    server.route("GET", "/notes", notes);
    server.route("GET", "/notes/first", notes_first);
    server.route("GET", "/notes/end", notes_and_an_end);
}

std::vector<follower> kinds_with_handlers() {
    std::vector<follower> kinds = all_kinds;
    kinds.push_back({"/notes", {"/a"}});
    kinds.push_back({"/notes/first", {"/b"}});
    kinds.push_back({"/notes/end", {"/"}});
    kinds.push_back({"/notes/end?close=1", {"/"}});
    return kinds;
}

// ---- the soak -----------------------------------------------------------------------------------

class soak {
public:
    explicit soak(const settings& asked)
        : asked_(asked), server_(server_options(asked, told_), 4096, add_handlers),
          trials_(hub_program()) {}

    /// Whether all was right.
    bool run() {
        const auto start = clock::now();
        if (!asked_.tls) trials_.run();
        for (const std::string& what : trials_.faults()) fault(what);
        if (!eventually([&] { return resources() == before_all_; }))
            fault("after the trials there are " + to_string(resources()) + ", and there were " +
                  to_string(before_all_));
        const auto passed = std::chrono::ceil<std::chrono::seconds>(clock::now() - start);
        storm_lasts_ = std::max(asked_.duration - passed, asked_.duration / 2);
        server_.start();
        weather();
        if (!eventually([&] { return server_.counters().connections == 0; }))
            fault("connections are left behind by clients that are gone");
        server_.stop();
        if (!eventually([&] { return resources() == before_all_; }))
            fault("in the end there are " + to_string(resources()) + ", and there were " +
                  to_string(before_all_));
        judge();
        summarize();
        return faults_ == 0;
    }

private:
    using clock = storm::clock;

    static std::string hub_program() {
        const char* const examples = std::getenv("EXAMPLES");
        return examples ? std::string(examples) + "/hub" : std::string();
    }

    void fault(const std::string& what) {
        if (++faults_ > 20) return;
        std::printf("FAULT %s\n", what.c_str());
        std::fflush(stdout);
    }

    // The storm.

    void weather() {
        press publishers(server_, {.messages_per_second = asked_.messages_per_second,
                                   .seed = asked_.seed,
                                   .bursts = true});
        storm clients(server_.port(), {.clients = asked_.clients,
                                       .seed = asked_.seed,
                                       .tls = asked_.tls,
                                       .kinds = kinds_with_handlers(),
                                       .newest = [this] { return server_.newest(); }});
        publishers_ = &publishers;
        clients_ = &clients;
        before_clients_ = resources();
        for (std::size_t i = 0; i < clients.size(); ++i) accounts_.push_back(new_account(i));
        newcomers_ = clients.size();
        begin_ = last_report_ = clock::now();
        const auto end = begin_ + storm_lasts_;
        for (auto until = begin_; until < end;) {
            const auto from = until;
            until = std::min<clock::time_point>(end, from + asked_.between_checkpoints());
            go_on_until(from + (until - from) / 2);
            start_next_server();
            go_on_until(until);
            rest();
            if (until < end) go_on_with_newcomers();
        }
        connects_ = clients.connects();
        notes_ = clients.notes();
        for (std::size_t i = 0; i < times_.size(); ++i)
            times_[i] = clients.times(static_cast<mischief>(i));
        std::ignore = publishers.end(published_);
        if (!publishers.trouble().empty()) fault("a publisher ended: " + publishers.trouble());
    }

    /// False when the limit passed first.
    template <class Condition>
    bool run_until(Condition&& condition, deadline limit) {
        return clients_->run_until(
            [&] {
                watch();
                return condition();
            },
            limit);
    }

    void go_on_until(clock::time_point time) {
        (void)run_until([] { return false; }, time - clock::now());
    }

    void start_next_server() {
        server_.set_lag(restarts_ % 2 == 0 ? sse::lag_policy::skip : sse::lag_policy::disconnect);
        const bool drains = restarts_ / 2 % 2 == 0;
        // It lives on while the next server starts, and has inherited what this one has open.
        straggler_ = std::make_unique<straggler>();
        ++stragglers_;
        auto done = std::async(std::launch::async, [&] {
            if (drains) {
                (void)server_.drain(
                    {.window = 500ms, .farewell = {{.event = "farewell"}}, .retry = 20ms});
            } else {
                server_.stop();
            }
            server_.start();
        });
        const auto is_done = [&] { return done.wait_for(0s) == std::future_status::ready; };
        if (!run_until(is_done, 60s)) fault("the next server does not start");
        done.get();
        ++restarts_;
    }

    /// A checkpoint.
    void rest() {
        at_rest = true;
        clients_->calm();
        const event_id end = publishers_->pause(published_);
        if (!run_until([&] { return clients_->count_at(end) == clients_->size(); }, 60s))
            fault("clients do not catch up to " + to_string(end) + clients_->describe_others(end));
        audit_records();
        for (account& each : accounts_) {
            each.audit->settle(end);
            look_for_faults(each);
        }
        published_.forget_older_runs();
        const std::size_t count = clients_->size();
        const resources wanted{before_clients_.descriptors + 2 * count, before_clients_.threads};
        const auto all_back = [&] {
            const sse::counters now = server_.counters();
            return now.connections == count && now.streams == count && resources() == wanted;
        };
        if (!run_until(all_back, 20s)) {
            const sse::counters now = server_.counters();
            fault("at rest " + std::to_string(count) + " clients have " +
                  std::to_string(now.connections) + " connections, " + std::to_string(now.streams) +
                  " streams and " + to_string(resources()) + " instead of " + to_string(wanted));
        }
        descriptors_.push_back(resources().descriptors);
        ::malloc_trim(0);
        memory_.push_back(resident_bytes());
    }

    void go_on_with_newcomers() {
        for (std::size_t i = memory_.size() % 10; i < clients_->size(); i += 10) {
            add(past_, accounts_[i].audit->result());
            clients_->replace(i);
            accounts_[i] = new_account(i);
            ++newcomers_;
        }
        at_rest = false;
        clients_->stir();
        publishers_->go_on();
    }

    // The books.

    struct account {
        std::unique_ptr<auditor> audit;
        std::size_t told = 0; // of its faults
    };

    account new_account(std::size_t client) const {
        return {std::make_unique<auditor>(published_, clients_->topics(client), asked_.history())};
    }

    void look_for_faults(account& one) {
        const std::vector<std::string>& found = one.audit->result().faults;
        for (; one.told < found.size(); ++one.told)
            fault("client " + std::to_string(&one - accounts_.data()) + " of " +
                  clients_->topics(static_cast<std::size_t>(&one - accounts_.data())).front() +
                  ": " + found[one.told]);
    }

    void audit_records() {
        publishers_->collect(published_);
        if (const std::string what = published_.fault(); !what.empty()) fault(what);
        for (std::size_t i = 0; i < accounts_.size(); ++i) {
            accounts_[i].audit->follow(clients_->record(i));
            clients_->record(i).forget();
            look_for_faults(accounts_[i]);
        }
        next_audit_ = clock::now() + 1s;
    }

    static void add(verdict& sum, const verdict& one) {
        sum.due += one.due;
        sum.messages += one.messages;
        sum.replayed += one.replayed;
        sum.unaccounted += one.unaccounted;
        for (const auto& [reason, count] : one.missing) sum.missing[reason] += count;
        for (const auto& [reason, count] : one.gaps) sum.gaps[reason] += count;
    }

    /// Of all clients so far.
    verdict whole() const {
        verdict sum = past_;
        for (const account& each : accounts_) add(sum, each.audit->result());
        return sum;
    }

    // What is shown.

    void watch() {
        const auto now = clock::now();
        if (now >= next_audit_) audit_records();
        if (now - last_report_ >= asked_.report) report(now);
    }

    void report(clock::time_point now) {
        verdict sum = whole();
        const sse::counters counters = server_.counters();
        const double seconds = std::chrono::duration<double>(now - last_report_).count();
        const auto rate = [&](std::uint64_t all, std::uint64_t& before) {
            return static_cast<double>(all - std::exchange(before, all)) / seconds;
        };
        const resources used;
        std::printf(
            "%5.0f s  %llu connections  %llu streams  %.0f/s published  %.0f/s delivered  "
            "gaps: %llu epoch %llu too_old %llu lapped  %llu lost  %zu descriptors  "
            "%zu threads  %.1f MB\n",
            std::chrono::duration<double>(now - begin_).count(), number(counters.connections),
            number(counters.streams), rate(counters.published, published_before_),
            rate(sum.messages, received_before_), number(sum.gaps["epoch"]),
            number(sum.gaps["too_old"]), number(sum.gaps["lapped"]), number(sum.unaccounted),
            used.descriptors, used.threads, megabytes(resident_bytes()));
        std::fflush(stdout);
        last_report_ = now;
    }

    static unsigned long long number(std::uint64_t n) { return n; }

    void judge() {
        const verdict sum = whole();
        if (sum.messages == 0) fault("nobody received anything");
        if (sum.unaccounted != 0) fault(std::to_string(sum.unaccounted) + " messages were lost");
        if (server_.counters().delivered < sum.messages)
            fault("the servers delivered " + std::to_string(server_.counters().delivered) +
                  ", and clients received " + std::to_string(sum.messages));
        if (told_.begun != told_.all_ended())
            fault("of " + std::to_string(told_.begun) + " streams " +
                  std::to_string(told_.all_ended()) + " have ended");
        if (told_.failures != 0) fault(std::to_string(told_.failures) + " handlers failed");
        if (memory_is_meaningful && growth(memory_) > allowed_growth(memory_))
            fault("memory grew from the earlier checkpoints to the later ones by " +
                  std::to_string(growth(memory_)) + " bytes; that is more than " +
                  std::to_string(allowed_growth(memory_)));
        if (stragglers_ == 0) fault("no program outlived its server");
        if (asked_.clients < 50) return; // too few for all that could happen
        for (std::size_t i = 0; i < times_.size(); ++i)
            if (times_[i] == 0) fault("no client did mischief " + std::to_string(i));
    }

    static void row(const char* name, const std::string& value) {
        std::printf("| %s | %s |\n", name, value.c_str());
    }
    static std::string list(std::initializer_list<std::pair<const char*, std::uint64_t>> counts) {
        std::string text;
        for (const auto& [name, count] : counts) {
            if (!text.empty()) text += ", ";
            text += with_commas(count) + " " + name;
        }
        return text;
    }

    void summarize() {
        verdict sum = whole();
        const auto did = [&](mischief what) { return times_[static_cast<std::size_t>(what)]; };
        std::printf("\n");
        row("time", with_commas(static_cast<std::uint64_t>(asked_.duration.count())) + " s, " +
                        list({{"servers", restarts_ + 1}, {"checkpoints", memory_.size()}}));
        row("clients", with_commas(asked_.clients) + " at a time, " +
                           list({{"in all", newcomers_}, {"connections", connects_}}));
        row("published", list({{"messages", server_.counters().published},
                               {"notes of handlers received", notes_}}));
        row("due to the clients", with_commas(sum.due));
        row("delivered", with_commas(sum.messages) + ", of them " + with_commas(sum.replayed) +
                             " when they came back");
        row("missing, and told", list({{"in gaps of an epoch", sum.missing["epoch"]},
                                       {"too old", sum.missing["too_old"]},
                                       {"lapped", sum.missing["lapped"]}}));
        row("lost", with_commas(sum.unaccounted));
        row("programs that outlived their server", with_commas(stragglers_));
        for (const auto& [name, value] : trials_.rows()) row(name.c_str(), value);
        row("gaps", list({{"epoch", sum.gaps["epoch"]},
                          {"too old", sum.gaps["too_old"]},
                          {"lapped", sum.gaps["lapped"]}}));
        row("cut by clients", list({{"RST", did(mischief::reset) + did(mischief::early_reset)},
                                    {"RST within a line", did(mischief::cut_at_byte)},
                                    {"RST after a stall", did(mischief::stall_reset)},
                                    {"FIN", did(mischief::fin)},
                                    {"half close", did(mischief::half_close)}}));
        row("held up by clients",
            list({{"stalls", did(mischief::stall)}, {"slow readers", did(mischief::slow)}}));
        row("ended by the server", list({{"stopped", told_.of(sse::end_reason::stopped)},
                                         {"drained", told_.of(sse::end_reason::drained)},
                                         {"cut", told_.of(sse::end_reason::cut)},
                                         {"lagged", told_.of(sse::end_reason::lagged)},
                                         {"stalled", told_.of(sse::end_reason::stalled)},
                                         {"expired", told_.of(sse::end_reason::expired)},
                                         {"by a handler", told_.of(sse::end_reason::ended)}}));
        row("descriptors at rest", three(descriptors_, with_commas));
        row("memory at rest", three(memory_, [](std::size_t bytes) {
                char text[32];
                std::snprintf(text, sizeof text, "%.1f MB", megabytes(bytes));
                return std::string(text);
            }));
        char text[80];
        std::snprintf(text, sizeof text, "%+.2f MB; up to %.2f MB are allowed",
                      static_cast<double>(growth(memory_)) / 1e6,
                      static_cast<double>(allowed_growth(memory_)) / 1e6);
        row("its growth after warm-up", memory_is_meaningful ? text : "not looked at");
        if (faults_ == 0) {
            std::printf("\nsoak: passed\n");
        } else {
            std::printf("\nsoak: %llu faults\n", number(faults_));
        }
    }

    /// At the start, in the middle and at the end.
    template <class Show>
    static std::string three(const std::vector<std::size_t>& samples, Show&& show) {
        return show(samples.front()) + ", " + show(samples[samples.size() / 2]) + ", " +
               show(samples.back());
    }

    settings asked_;
    tales told_;
    service server_;
    resources before_all_; // but the port
    resources before_clients_;
    trials trials_;
    std::chrono::seconds storm_lasts_{0};
    std::unique_ptr<straggler> straggler_; // that the last server has started
    std::uint64_t stragglers_ = 0;
    press* publishers_ = nullptr; // of weather()
    storm* clients_ = nullptr;

    ledger published_;
    std::vector<account> accounts_; // by clients
    verdict past_;                  // of clients that were replaced
    clock::time_point next_audit_ = clock::time_point::min();

    clock::time_point begin_, last_report_;
    std::uint64_t published_before_ = 0, received_before_ = 0; // at the last report
    std::uint64_t restarts_ = 0, newcomers_ = 0, connects_ = 0, notes_ = 0, faults_ = 0;
    std::array<std::uint64_t, static_cast<std::size_t>(mischief::count_)> times_{};
    std::vector<std::size_t> descriptors_, memory_; // at each checkpoint
};

int run(std::string_view how) {
    settings asked;
    asked.tls = how == "tls";
    if (asked.tls) asked.duration /= 2;
    if (!asked.wanted) {
        std::printf("soak: left out, since SOAK is 0\n");
        return 77; // not run
    }
    // Besides clients and server: connections that one side has left already, and the program's.
    const std::size_t needed = 4 * asked.clients + 100, limit = raise_descriptor_limit();
    if (limit < needed)
        throw std::invalid_argument("SOAK_CLIENTS needs " + std::to_string(needed) +
                                    " open files, and the system allows " + std::to_string(limit));
    std::printf("soak: %llu s, %zu clients, %zu messages/s, seed %llu\n",
                static_cast<unsigned long long>(asked.duration.count()), asked.clients,
                asked.messages_per_second, static_cast<unsigned long long>(asked.seed));
    return soak(asked).run() ? 0 : 1;
}

} // namespace

} // namespace soak_test

int main(int count, char** arguments) {
    try {
        return soak_test::run(count > 1 ? arguments[1] : "");
    } catch (const std::exception& e) {
        std::fprintf(stderr, "soak: %s\n", e.what());
        return 2;
    }
}
