// ring.cpp - what one publish costs the publisher: the broadcast ring beside a mutex with one
// std::deque for each reader. From the folder of sse.hpp:
//
//   g++ -O2 -std=c++20 -pthread -I. bench/ring.cpp -o ring && ./ring
//   ./ring --seconds 20 --json ring.json
//
// Counted is the processor time of the publishing threads (CLOCK_THREAD_CPUTIME_ID) over the values
// published, lost races and the kernel's part of a lock included. A publisher that meets a full
// queue stops its clock, gives the core away until the slowest reader has emptied half of it, and
// goes on: `full` counts how often. Each reader checks that every publisher's values came, all of
// them, in their order.
//
// A reader takes what is there, up to 4,096 values, then is busy for some microseconds: a worker
// sends at least once before it looks again, which takes it longer. With 0 readers one comes when
// the publishers have filled the queue, and empties it while they rest. Publisher n runs on core n,
// reader n on the n-th from the end, round and round: so they do meet, the same way each time.
#include "bench.hpp"

#include "sse.hpp"

#include <atomic>
#include <barrier>
#include <deque>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>

namespace {

struct settings {
    double seconds = 10;
    std::uint64_t rounds = 9;
    std::uint64_t capacity = 16'384;
    double busy_us = 5;
    std::string json;
};

constexpr std::uint64_t publisher_counts[] = {1, 2, 4};
constexpr std::uint64_t reader_counts[] = {0, 1, 2};
constexpr std::uint64_t batch = 4'096; // as many as a worker takes at once

class ring {
public:
    ring(std::size_t capacity, std::size_t readers) : ring_(capacity, readers) {}

    bool try_publish(std::uint64_t value) { return ring_.try_publish(value).has_value(); }

    template <class F>
    std::uint64_t read(std::size_t number, F&& f) {
        for (std::uint64_t count = 0; count < batch; ++count) {
            const std::optional<std::uint64_t> value = ring_.try_read(number);
            if (!value) return count;
            f(*value);
        }
        return batch;
    }

private:
    sse::detail::broadcast_ring<std::uint64_t> ring_;
};

// The rival: one lock, so that all readers see one order; bounded like the ring. A reader takes all
// that is there at once, the kindest way for the publishers.
class locked_queues {
public:
    locked_queues(std::size_t capacity, std::size_t readers)
        : capacity_(capacity), readers_(readers) {}

    bool try_publish(std::uint64_t value) {
        const std::lock_guard lock(mutex_);
        for (const reader& each : readers_)
            if (each.waiting.size() >= capacity_) return false;
        for (reader& each : readers_) each.waiting.push_back(value);
        return true;
    }

    template <class F>
    std::uint64_t read(std::size_t number, F&& f) {
        reader& self = readers_[number];
        {
            const std::lock_guard lock(mutex_);
            self.taken.swap(self.waiting);
        }
        const std::uint64_t count = self.taken.size();
        for (const std::uint64_t value : self.taken) f(value);
        self.taken.clear();
        return count;
    }

private:
    struct alignas(128) reader {
        std::deque<std::uint64_t> waiting; // guarded by mutex_
        std::deque<std::uint64_t> taken;   // the reader's own
    };

    std::mutex mutex_;
    std::size_t capacity_;
    std::vector<reader> readers_;
};

struct alignas(128) publisher_result {
    std::uint64_t published = 0;
    std::uint64_t cpu_ns = 0;
    std::uint64_t full = 0;
};

struct alignas(128) reader_result {
    std::atomic<std::uint64_t> read{0};
    std::vector<std::uint64_t> next = {}; // of each publisher
    bool in_order = true;
};

struct outcome {
    double ns = 0; // of publisher processor time for each value
    std::uint64_t published = 0;
    std::uint64_t full = 0;
    bool sound = true;
};

/// Publishers and readers over one queue for a while.
template <class Queue>
class contest {
public:
    contest(const settings& set, std::uint64_t publishers, std::uint64_t readers)
        : capacity_(set.capacity), busy_ns_(static_cast<std::uint64_t>(set.busy_us * 1e3)),
          apart_(readers == 0), queue_(capacity_, std::max<std::uint64_t>(readers, 1)),
          publishers_(publishers), readers_(std::max<std::uint64_t>(readers, 1)) {
        for (reader_result& each : readers_) each.next.resize(publishers);
    }

    outcome run(double seconds) {
        end_ns_ = bench::now_ns() + static_cast<std::uint64_t>(seconds * 1e9);
        std::vector<std::thread> reading, publishing;
        for (std::size_t at = 0; at < readers_.size() && !apart_; ++at)
            reading.emplace_back([this, at] { read_all(at); });
        for (std::size_t at = 0; at < publishers_.size(); ++at)
            publishing.emplace_back([this, at] { publish(at); });
        for (std::thread& each : publishing) each.join();
        ended_.store(true, std::memory_order_release); // pairs with the acquire in read_all()
        for (std::thread& each : reading) each.join();
        if (apart_) read_rest();
        return sum_up();
    }

private:
    static constexpr std::uint64_t burst = 2'048; // between looks at the clock, which cost 0.3 us
    static constexpr unsigned number_bits = 48;

    void publish(std::size_t self) {
        bench::pin({cores_[self % cores_.size()]});
        publisher_result& result = publishers_[self];
        const std::uint64_t mark = static_cast<std::uint64_t>(self) << number_bits;
        do { // at least once, however long the core was another's
            const std::uint64_t until = result.published + burst;
            const std::uint64_t start = bench::thread_cpu_ns();
            while (result.published < until && queue_.try_publish(mark | result.published))
                ++result.published;
            result.cpu_ns += bench::thread_cpu_ns() - start;
            if (result.published == until) continue;
            ++result.full;
            if (apart_)
                all_rest_.arrive_and_wait();
            else
                wait_for_room();
        } while (bench::now_ns() < end_ns_);
        if (apart_) all_rest_.arrive_and_drop();
    }

    void wait_for_room() const {
        const std::uint64_t wanted = slowest() + capacity_ / 2;
        do std::this_thread::yield();
        while (slowest() < wanted && bench::now_ns() < end_ns_);
    }

    std::uint64_t slowest() const {
        std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
        for (const reader_result& each : readers_)
            least = std::min(least, each.read.load(std::memory_order_relaxed));
        return least;
    }

    std::uint64_t read(std::size_t self) {
        reader_result& result = readers_[self];
        const std::uint64_t count = queue_.read(self, [&](std::uint64_t value) {
            result.in_order &= result.next.at(value >> number_bits)++ == (value & number_mask);
        });
        result.read.fetch_add(count, std::memory_order_relaxed);
        return count;
    }

    void read_rest() {
        while (read(0) > 0) {}
    }

    void read_all(std::size_t self) {
        bench::pin({cores_[cores_.size() - 1 - self % cores_.size()]});
        for (;;) {
            const bool ended = ended_.load(std::memory_order_acquire);
            if (read(self) == 0) {
                if (ended) return;
                std::this_thread::yield();
            }
            const std::uint64_t until = bench::now_ns() + busy_ns_;
            while (bench::now_ns() < until) {}
        }
    }

    outcome sum_up() const {
        outcome result;
        std::uint64_t cpu_ns = 0;
        for (const publisher_result& each : publishers_) {
            result.published += each.published;
            result.full += each.full;
            cpu_ns += each.cpu_ns;
        }
        for (const reader_result& each : readers_)
            result.sound &= each.in_order && each.read.load() == result.published;
        result.ns = static_cast<double>(cpu_ns) / static_cast<double>(result.published);
        return result;
    }

    static constexpr std::uint64_t number_mask = (std::uint64_t{1} << number_bits) - 1;

    struct emptying {
        contest* of;
        void operator()() noexcept { of->read_rest(); }
    };

    std::uint64_t capacity_;
    std::uint64_t busy_ns_;
    bool apart_; // publishers and reader, in time
    Queue queue_;
    std::vector<publisher_result> publishers_;
    std::vector<reader_result> readers_;
    std::vector<int> cores_ = bench::allowed_cores();
    std::barrier<emptying> all_rest_{static_cast<std::ptrdiff_t>(publishers_.size()), {this}};
    std::uint64_t end_ns_ = 0;
    alignas(128) std::atomic<bool> ended_{false};
};

/// One row of the table: a number of publishers and readers, both rivals, all rounds.
struct matchup {
    std::uint64_t publishers = 0;
    std::uint64_t readers = 0;
    std::vector<outcome> ring = {};
    std::vector<outcome> mutex = {};
};

double median_ns(const std::vector<outcome>& rounds) {
    std::vector<double> values;
    for (const outcome& each : rounds) values.push_back(each.ns);
    return bench::median(std::move(values));
}

double median_ratio(const matchup& from) {
    std::vector<double> values;
    for (std::size_t at = 0; at < from.ring.size(); ++at)
        values.push_back(from.mutex[at].ns / from.ring[at].ns);
    return bench::median(std::move(values));
}

std::string spread(const std::vector<outcome>& rounds) {
    const auto less = [](const outcome& a, const outcome& b) { return a.ns < b.ns; };
    const auto [least, most] = std::minmax_element(rounds.begin(), rounds.end(), less);
    return bench::grouped(least->ns, 1) + " - " + bench::grouped(most->ns, 1);
}

std::uint64_t sum(const std::vector<outcome>& rounds, std::uint64_t outcome::*what) {
    std::uint64_t total = 0;
    for (const outcome& each : rounds) total += each.*what;
    return total;
}

bool sound(const std::vector<outcome>& rounds) {
    return std::all_of(rounds.begin(), rounds.end(),
                       [](const outcome& each) { return each.sound; });
}

std::string millions(const std::vector<outcome>& rounds) {
    return bench::grouped(static_cast<double>(sum(rounds, &outcome::published)) / 1e6, 1);
}

void print_table(const std::vector<matchup>& rows) {
    bench::table table;
    table.row({"publishers, readers", "ring ns", "least - most", "mutex ns", "least - most",
               "mutex/ring", "ring M", "full", "mutex M", "full"});
    for (const matchup& each : rows)
        table.row({std::to_string(each.publishers) + ", " + std::to_string(each.readers),
                   bench::grouped(median_ns(each.ring), 1), spread(each.ring),
                   bench::grouped(median_ns(each.mutex), 1), spread(each.mutex),
                   bench::grouped(median_ratio(each), 2), millions(each.ring),
                   std::to_string(sum(each.ring, &outcome::full)), millions(each.mutex),
                   std::to_string(sum(each.mutex, &outcome::full))});
    std::printf("\n");
    table.print();
    std::printf(
        "\nns: publisher CPU for each value, median of the rounds; M: million values in all "
        "rounds;\nfull: how often a publisher found no room and yielded.\n");
}

void write_outcomes(bench::json& out, const char* key, const std::vector<outcome>& rounds) {
    out.open(key).field("median_ns", median_ns(rounds));
    out.field("published", sum(rounds, &outcome::published));
    out.field("full", sum(rounds, &outcome::full)).field("sound", sound(rounds));
    out.open("rounds_ns", '[');
    for (const outcome& each : rounds) out.field("", each.ns);
    out.close().close();
}

struct results {
    std::vector<matchup> rows = {};
    double disturbed = 0; // percent of all cores that other programs used
};

void write_json(const settings& set, const std::vector<bench::fact>& facts, const results& all) {
    bench::json out;
    out.field("benchmark", "ring").field("cores_used_by_others_percent", all.disturbed);
    bench::write_facts(out, facts);
    out.open("settings").field("seconds", set.seconds).field("rounds", set.rounds);
    out.field("capacity", set.capacity).field("busy_us", set.busy_us).close().open("rows", '[');
    for (const matchup& each : all.rows) {
        out.open("").field("publishers", each.publishers).field("readers", each.readers);
        write_outcomes(out, "ring", each.ring);
        write_outcomes(out, "mutex", each.mutex);
        out.field("mutex_over_ring", median_ratio(each)).close();
    }
    out.close().write(set.json);
}

settings parse(int count, char** values) {
    settings set;
    bench::flags flags("ring", "publish cost of the ring beside a mutex and deques.\n"
                               "Exits with 1 if a reader missed a value or saw a wrong order.");
    flags.number("--seconds", set.seconds, 0.1, 600.0, "for the whole run");
    flags.number<std::uint64_t>("--rounds", set.rounds, 1, 100, "of all rows, rivals in turn");
    flags.number<std::uint64_t>("--capacity", set.capacity, 2, 1 << 24, "places, a power of two");
    flags.number("--busy", set.busy_us, 0.0, 1e6, "microseconds of a reader between two looks");
    flags.text("--json", set.json, "also write all rounds to this file");
    flags.parse(count, values);
    if ((set.capacity & (set.capacity - 1)) != 0) flags.reject("--capacity wants a power of two");
    return set;
}

template <class Queue>
outcome compete(const settings& set, const matchup& row, double seconds) {
    return std::make_unique<contest<Queue>>(set, row.publishers, row.readers)->run(seconds);
}

std::vector<matchup> make_rows() {
    std::vector<matchup> rows;
    for (std::uint64_t publishers : publisher_counts)
        for (std::uint64_t readers : reader_counts) rows.push_back({publishers, readers});
    return rows;
}

results run_rounds(const settings& set) {
    results all{make_rows()};
    const double slice =
        set.seconds / static_cast<double>(set.rounds) / static_cast<double>(2 * all.rows.size());
    const bench::disturbance others;
    for (std::uint64_t number = 1; number <= set.rounds; ++number) {
        bench::progress("round " + std::to_string(number) + " of " + std::to_string(set.rounds));
        for (matchup& row : all.rows) {
            row.ring.push_back(compete<ring>(set, row, slice));
            row.mutex.push_back(compete<locked_queues>(set, row, slice));
        }
    }
    bench::end_progress();
    all.disturbed = others.percent();
    return all;
}

int run(const settings& set) {
    std::vector<bench::fact> facts = bench::describe_machine();
    facts.emplace_back("queues", std::to_string(set.capacity) + " places, 8-byte values");
    facts.emplace_back("readers", "busy for " + bench::shortest(set.busy_us) +
                                      " us between looks; "
                                      "0: the queue is filled, then emptied");
    facts.emplace_back("rounds", std::to_string(set.rounds) + ", ring and mutex in turn");
    bench::print_facts(facts);
    const results all = run_rounds(set);
    print_table(all.rows);
    if (all.disturbed > bench::tolerable) bench::print_disturbed();
    write_json(set, facts, all);
    const auto row_sound = [](const matchup& row) { return sound(row.ring) && sound(row.mutex); };
    if (std::all_of(all.rows.begin(), all.rows.end(), row_sound)) return 0;
    std::printf("NOT SOUND: a reader missed a value or saw a wrong order.\n");
    return 1;
}

} // namespace

int main(int count, char** values) {
    const settings set = parse(count, values);
    return bench::run_program("ring", [&] { return run(set); });
}
