// ring.cpp - covers >>ring: what one thread sees of broadcast_ring, what a publisher sees that is
// overtaken in the middle, and a long run of many threads in which every value is accounted for;
// and what it is for, one frame in the hands of several threads. Every interleaving of tiny rings
// is explored in ring_model.cpp.
#include "sse.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace ring_test {

namespace {

using ring = sse::detail::broadcast_ring<int>;

/// The text of the std::invalid_argument that the constructor throws.
std::string complaint(std::size_t capacity, std::size_t readers) {
    try {
        ring made(capacity, readers);
    } catch (const std::invalid_argument& e) { return e.what(); }
    return "no complaint";
}

template <class Ring>
void check_published(Ring& r, int value, std::uint64_t sequence) {
    CHECK(r.try_publish(value) == std::optional<std::uint64_t>(sequence));
}

template <class Ring>
void check_no_room(Ring& r) {
    const std::uint64_t before = r.published();
    CHECK(r.full());
    CHECK(r.try_publish(-1) == std::nullopt);
    CHECK(r.published() == before);
}

template <class Ring>
void check_reads(Ring& r, std::size_t reader, int value) {
    CHECK(r.try_read(reader) == std::optional<int>(value));
}

template <class Ring>
void check_nothing_to_read(Ring& r, std::size_t reader) {
    CHECK(r.try_read(reader) == std::nullopt);
}

} // namespace

// ---- one thread ---------------------------------------------------------------------------------

TEST_CASE("a ring's capacity must be a power of two") {
    for (const std::size_t bad : {0U, 3U, 5U, 6U, 7U, 12U, 1000U}) {
        CAPTURE(bad);
        CHECK(complaint(bad, 1) ==
              "sse::broadcast_ring: capacity must be a power of two, not " + std::to_string(bad));
    }
    constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
    CHECK(complaint(huge, 1).find(std::to_string(huge)) != std::string::npos);
    for (const std::size_t good : {1U, 2U, 4U, 8U, 1024U}) {
        CAPTURE(good);
        CHECK(ring(good, 1).capacity() == good);
    }
}

TEST_CASE("a ring needs a reader") {
    CHECK(complaint(4, 0) == "sse::broadcast_ring: needs at least one reader");
}

TEST_CASE("a ring stays where it is") {
    static_assert(!std::is_copy_constructible_v<ring> && !std::is_copy_assignable_v<ring>);
    static_assert(!std::is_move_constructible_v<ring> && !std::is_move_assignable_v<ring>);
}

TEST_CASE("a new ring is empty") {
    ring r(4, 2);
    CHECK(r.published() == 0);
    CHECK(!r.full());
    check_nothing_to_read(r, 0);
    check_nothing_to_read(r, 1);
}

TEST_CASE("sequence numbers count from zero without gaps") {
    ring r(4, 1);
    for (std::uint64_t n = 0; n < 100; ++n) {
        CAPTURE(n);
        check_published(r, static_cast<int>(n), n);
        CHECK(r.published() == n + 1);
        check_reads(r, 0, static_cast<int>(n));
    }
}

TEST_CASE("each reader sees every value in the same order, at its own pace") {
    ring r(4, 3);
    check_published(r, 10, 0);
    check_published(r, 11, 1);
    check_reads(r, 0, 10);
    check_reads(r, 0, 11);
    check_nothing_to_read(r, 0);
    check_published(r, 12, 2);
    for (const std::size_t reader : {1U, 2U}) {
        CAPTURE(reader);
        check_reads(r, reader, 10);
        check_reads(r, reader, 11);
        check_reads(r, reader, 12);
        check_nothing_to_read(r, reader);
    }
    check_reads(r, 0, 12);
    check_nothing_to_read(r, 0);
}

TEST_CASE(
    "there is no room when the slowest reader is a capacity behind, and room when it has read") {
    ring r(2, 2);
    check_published(r, 0, 0);
    CHECK(!r.full());
    check_published(r, 1, 1);
    check_no_room(r);
    check_reads(r, 0, 0);
    check_reads(r, 0, 1);
    check_no_room(r); // reader 1 has seen nothing yet
    check_reads(r, 1, 0);
    CHECK(!r.full());
    check_published(r, 2, 2);
    check_no_room(r);
    check_reads(r, 1, 1);
    check_published(r, 3, 3);
    check_no_room(r);
}

TEST_CASE("an attempt without room changes nothing for the readers") {
    ring r(2, 1);
    check_published(r, 0, 0);
    check_published(r, 1, 1);
    for (int i = 0; i < 10; ++i) check_no_room(r);
    check_reads(r, 0, 0);
    check_reads(r, 0, 1);
    check_nothing_to_read(r, 0);
}

TEST_CASE("a ring of one place hands over one value at a time") {
    ring r(1, 2);
    for (int n = 0; n < 10; ++n) {
        CAPTURE(n);
        check_published(r, n, static_cast<std::uint64_t>(n));
        check_no_room(r);
        check_reads(r, 0, n);
        check_no_room(r);
        check_reads(r, 1, n);
        CHECK(!r.full());
    }
}

TEST_CASE("values survive many times round the ring at every fill level") {
    constexpr int capacity = 4;
    for (int fill = 1; fill <= capacity; ++fill) {
        CAPTURE(fill);
        ring r(capacity, 2);
        int published = 0;
        int read = 0;
        while (published < 10 * capacity) {
            for (; published - read < fill; ++published) {
                check_published(r, published, static_cast<std::uint64_t>(published));
            }
            CHECK(r.full() == (fill == capacity));
            check_reads(r, 0, read);
            check_reads(r, 1, read);
            ++read;
        }
    }
}

TEST_CASE("a stale value is never read a second time after a round") {
    ring r(2, 1);
    check_published(r, 0, 0);
    check_published(r, 1, 1);
    check_reads(r, 0, 0);
    check_reads(r, 0, 1);
    check_nothing_to_read(r, 0); // the place of 0 again, which still holds it
    check_published(r, 2, 2);
    check_reads(r, 0, 2);
    check_nothing_to_read(r, 0);
}

TEST_CASE("one publisher is told to wake a reader that sleeps, and none while it is awake") {
    sse::detail::sleeper<> reader;
    CHECK(!reader.must_wake());
    reader.prepare_to_sleep();
    CHECK(reader.must_wake());
    CHECK(!reader.must_wake());
    reader.prepare_to_sleep();
    reader.wake();
    CHECK(!reader.must_wake());
}

// ---- overtaken ----------------------------------------------------------------------------------

namespace {

std::function<void()> meanwhile; // what the other threads do right after the next load

template <class T>
class interrupted : public std::atomic<T> {
public:
    using std::atomic<T>::atomic;
    T load(std::memory_order order) const noexcept {
        const T value = std::atomic<T>::load(order);
        if (const auto others = std::exchange(meanwhile, nullptr)) others();
        return value;
    }
};

using interrupted_ring = sse::detail::broadcast_ring<int, interrupted>;

/// Values come and are read at once: there is never more than one in the ring.
void pass_through(interrupted_ring& r, std::uint64_t count) {
    while (count-- > 0) {
        const auto sequence = r.try_publish(0);
        REQUIRE(sequence);
        REQUIRE(r.try_read(0));
    }
}

} // namespace

TEST_CASE("a publisher that others overtake finds its place, however far they went") {
    for (const std::uint64_t others : {1U, 2U, 3U, 4U, 5U, 9U}) {
        CAPTURE(others);
        interrupted_ring r(2, 1);
        meanwhile = [&] { pass_through(r, others); };
        check_published(r, 7, others);
        check_reads(r, 0, 7);
    }
}

TEST_CASE("a publisher is told of no room when others took the last place before it") {
    interrupted_ring r(2, 1);
    meanwhile = [&] {
        check_published(r, 0, 0);
        check_published(r, 1, 1);
    };
    CHECK(r.try_publish(2) == std::nullopt);
    check_reads(r, 0, 0);
    check_reads(r, 0, 1);
    check_nothing_to_read(r, 0);
}

TEST_CASE("a ring that is never full is never called full, whoever moves while one looks") {
    for (const std::uint64_t others : {1U, 2U, 3U, 4U, 5U, 9U}) {
        CAPTURE(others);
        interrupted_ring r(4, 1);
        pass_through(r, 3);
        meanwhile = [&] { pass_through(r, others); };
        CHECK(!r.full());
    }
}

// ---- many threads -------------------------------------------------------------------------------

namespace {

constexpr std::uint32_t publishers = 4;
constexpr std::size_t readers = 3;

/// Wider than a machine word, so that a value torn between two publishers would be seen.
struct entry {
    std::uint32_t publisher = 0;
    std::uint32_t number = 0;
    std::uint64_t check = 0;

    static entry make(std::uint32_t publisher, std::uint32_t number) {
        return {publisher, number, ~(std::uint64_t{publisher} << 32 | number)};
    }
    bool whole() const { return *this == make(publisher, number); }
    friend bool operator==(const entry&, const entry&) = default;
};

/// What all threads saw of one run.
struct recording {
    std::vector<std::vector<std::uint64_t>> sequences; ///< Of each publisher's values.
    std::vector<std::vector<entry>> seen;              ///< By each reader.
    std::uint64_t published = 0;
    std::size_t refusals = 0; ///< Attempts that found no room.
};

recording run_threads(std::size_t capacity, std::uint32_t each) {
    sse::detail::broadcast_ring<entry> shared(capacity, readers);
    recording out;
    out.sequences.resize(publishers);
    out.seen.resize(readers);
    std::atomic<std::size_t> refusals{0};
    std::atomic<bool> go{false};
    // Only a broken ring comes near it; then the recordings are too short and the checks say so.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    const auto give_up = [&] { return std::chrono::steady_clock::now() > deadline; };

    std::vector<std::thread> threads;
    for (std::uint32_t p = 0; p < publishers; ++p) {
        threads.emplace_back([&, p] {
            while (!go) std::this_thread::yield();
            std::size_t refused = 0;
            for (std::uint32_t n = 0; n < each;) {
                if (const auto sequence = shared.try_publish(entry::make(p, n))) {
                    out.sequences[p].push_back(*sequence);
                    ++n;
                } else {
                    ++refused;
                    if (give_up()) break;
                    std::this_thread::yield();
                }
            }
            refusals += refused;
        });
    }
    for (std::size_t r = 0; r < readers; ++r) {
        threads.emplace_back([&, r] {
            while (!go) std::this_thread::yield();
            while (out.seen[r].size() < std::size_t{publishers} * each) {
                if (const auto value = shared.try_read(r)) {
                    out.seen[r].push_back(*value);
                } else {
                    if (give_up()) break;
                    std::this_thread::yield();
                }
            }
        });
    }
    go = true;
    for (std::thread& t : threads) t.join();
    for (std::size_t r = 0; r < readers; ++r) CHECK(!shared.try_read(r));
    CHECK(!shared.full());
    out.published = shared.published();
    out.refusals = refusals;
    return out;
}

/// Every value once, and the values of one publisher in the order in which it published them.
void check_complete(const std::vector<entry>& seen, std::uint32_t each) {
    std::vector<std::uint32_t> next(publishers, 0);
    std::size_t wrong = 0;
    for (const entry& e : seen) {
        if (!e.whole() || e.publisher >= publishers || e.number != next[e.publisher]++) ++wrong;
    }
    CHECK(wrong == 0);
    CHECK(next == std::vector<std::uint32_t>(publishers, each));
}

/// The sequence that a publisher was told is the place at which readers saw the value.
void check_sequences(const recording& run, const std::vector<entry>& seen) {
    std::size_t wrong = 0;
    for (std::uint32_t p = 0; p < publishers; ++p) {
        for (std::size_t n = 0; n < run.sequences[p].size(); ++n) {
            const auto at = static_cast<std::size_t>(run.sequences[p][n]);
            const bool right =
                at < seen.size() && seen[at] == entry::make(p, static_cast<std::uint32_t>(n));
            if (!right) ++wrong;
        }
    }
    CHECK(wrong == 0);
}

void check_nothing_lost_or_reordered(std::size_t capacity, std::uint32_t each) {
    const recording run = run_threads(capacity, each);
    CAPTURE(capacity);
    CHECK(run.published == std::uint64_t{publishers} * each);
    for (std::size_t r = 0; r < readers; ++r) {
        CAPTURE(r);
        check_complete(run.seen[r], each);
    }
    for (std::size_t r = 1; r < readers; ++r) {
        CAPTURE(r);
        CHECK((run.seen[r] == run.seen[0])); // in full; not printed
    }
    check_sequences(run, run.seen[0]);
    if (capacity < 100) CHECK(run.refusals > 0); // else the ring was never full
}

} // namespace

TEST_CASE("threads: a ring of two places loses, repeats and reorders nothing") {
    check_nothing_lost_or_reordered(2, 3'000);
}

TEST_CASE("threads: a ring of eight places loses, repeats and reorders nothing") {
    check_nothing_lost_or_reordered(8, 20'000);
}

TEST_CASE("threads: a roomy ring loses, repeats and reorders nothing") {
    check_nothing_lost_or_reordered(1024, 20'000);
}

TEST_CASE("threads: workers may copy and drop references to one frame at the same time") {
    for (int round = 0; round < 200; ++round) {
        sse::detail::frame_ref first = sse::detail::make_raw_frame("shared by threads");
        std::vector<std::thread> workers;
        for (int w = 0; w < 3; ++w) {
            workers.emplace_back([mine = first] {
                for (int i = 0; i < 100; ++i) {
                    const sse::detail::frame_ref copy = mine;
                    if (copy->bytes().size() != 17) FAIL_CHECK("changed");
                }
            });
        }
        first = {};
        for (std::thread& w : workers) w.join();
    }
}

} // namespace ring_test
