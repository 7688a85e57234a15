// ring_model.cpp - covers >>ring: every interleaving of a tiny broadcast_ring, with the real code
// of the library.
//
// The ring takes its atomics as a template parameter. Here it gets model_atomic, whose operations
// ask an explorer which thread goes on; the explorer runs a scenario again and again until it has
// seen all answers. Threads are fibers of one thread (ucontext): to change between them takes
// 0.25 us, a hand-over between real threads 4 to 30 us, and there are millions of changes.
//
// What is searched:
// - All schedules of sequentially consistent memory, or all with at most so many preemptions.
// - Where a limit says so, up to so many loads of an execution that get less than the newest store,
//   as weaker memory allows. An atomic keeps all its stores; a thread knows for each atomic how far
//   it has got at least, and gets what others know by acquiring what they release. Sequentially
//   consistent operations see each other in the order in which they run. A read-modify-write always
//   sees the newest. Not explored: a compare_exchange that fails because what it sees is stale; a
//   store that takes its place before others that ran earlier.
// - Orders that are too weak are also found where they guard a value: each thread, atomic and value
//   carries a vector clock, only release/acquire pairs join clocks, and two accesses to a value
//   that no chain of joins orders are a data race, reported in whatever order they happened to run.
//   For that reason plain accesses need not be scheduling points: without a race they commute.
// - Schedules that lead to a state seen before are cut off. A state is what every thread has got
//   from its operations so far, and the memory, all clocks included.
// - No endless search: a reader or a publisher gives up after a bounded number of failed tries.
//
// Last in the file: rings that are broken on purpose, each in one place, which must be found out,
// and the library's own with each of its memory orders made weaker.
#include "sse.hpp"

#include "support/sanitizers.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ucontext.h>

// Sanitizers follow the stack, so they want to be told when it changes.
#if defined(SUPPORT_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SUPPORT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace ring_model_test {

namespace {

#if defined(__OPTIMIZE__)
constexpr bool slow_build = support::with_address_sanitizer || support::with_thread_sanitizer;
#else
constexpr bool slow_build = true;
#endif

// ---- fibers -------------------------------------------------------------------------------------

/// A few stacks to switch between. Fiber 0 is the one that made this object.
class fibers {
public:
    fibers(std::size_t count, std::function<void(std::size_t)> body)
        : body_(std::move(body)), all_(count + 1) {
#if defined(SUPPORT_TSAN)
        all_[0].tsan = __tsan_get_current_fiber();
#endif
        for (std::size_t i = 1; i <= count; ++i) {
            prepare(all_[i]);
#if defined(SUPPORT_TSAN)
            all_[i].tsan = __tsan_create_fiber(0);
#endif
        }
    }

    fibers(const fibers&) = delete;
    fibers& operator=(const fibers&) = delete;

    ~fibers() {
#if defined(SUPPORT_TSAN)
        for (std::size_t i = 1; i < all_.size(); ++i) __tsan_destroy_fiber(all_[i].tsan);
#endif
    }

    void switch_to(std::size_t target) {
        one& from = all_[std::exchange(running_, target)];
        one& to = all_[target];
        entering_ = this;
#if defined(SUPPORT_ASAN)
        const void* const bottom = target == 0 ? main_bottom_ : to.stack.get();
        __sanitizer_start_switch_fiber(&from.fake_stack, bottom,
                                       target == 0 ? main_size_ : stack_size);
#endif
#if defined(SUPPORT_TSAN)
        __tsan_switch_to_fiber(to.tsan, 0);
#endif
        ::swapcontext(&from.context, &to.context);
#if defined(SUPPORT_ASAN)
        __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
    }

private:
    struct one {
        ucontext_t context{};
        std::unique_ptr<char[]> stack;
#if defined(SUPPORT_ASAN)
        void* fake_stack = nullptr;
#endif
#if defined(SUPPORT_TSAN)
        void* tsan = nullptr;
#endif
    };

    static constexpr std::size_t stack_size = 128 * 1024;

    // makecontext passes nothing but ints, so the object travels by a static pointer.
    static void prepare(one& fiber) {
        fiber.stack = std::make_unique<char[]>(stack_size);
        ::getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_size;
        fiber.context.uc_link = nullptr;
        ::makecontext(&fiber.context, &fibers::enter, 0);
    }

    static void enter() {
        fibers& self = *entering_;
#if defined(SUPPORT_ASAN)
        const void* bottom = nullptr;
        std::size_t size = 0;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
        if (self.main_bottom_ == nullptr) { // the first fiber to start is started by fiber 0
            self.main_bottom_ = bottom;
            self.main_size_ = size;
        }
#endif
        self.body_(self.running_); // never returns
    }

    static inline fibers* entering_ = nullptr;

    std::function<void(std::size_t)> body_;
    std::vector<one> all_;
    std::size_t running_ = 0;
#if defined(SUPPORT_ASAN)
    const void* main_bottom_ = nullptr;
    std::size_t main_size_ = 0;
#endif
};

// ---- explorer -----------------------------------------------------------------------------------

constexpr std::size_t max_threads = 5;
constexpr std::size_t max_locations = 24;

/// clock[t]: how far one knows of thread t.
using vector_clock = std::array<std::uint32_t, max_threads>;

void join(vector_clock& into, const vector_clock& other) {
    for (std::size_t i = 0; i < max_threads; ++i) into[i] = std::max(into[i], other[i]);
}

/// By location: the oldest store that one may still see.
using view = std::array<std::uint8_t, max_locations>;

void join(view& into, const view& other) {
    for (std::size_t i = 0; i < max_locations; ++i) into[i] = std::max(into[i], other[i]);
}

/// What is known of the past: of other threads, and of each location.
struct knowledge {
    vector_clock clock{};
    view seen{};
};

void join(knowledge& into, const knowledge& other) {
    join(into.clock, other.clock);
    join(into.seen, other.seen);
}

constexpr std::uint64_t mix(std::uint64_t seed, std::uint64_t value) {
    std::uint64_t x = (seed ^ (value + 0x9e3779b97f4a7c15U)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
}

std::uint64_t mix(std::uint64_t seed, const vector_clock& clock) {
    for (const std::uint32_t each : clock) seed = mix(seed, each);
    return seed;
}

std::uint64_t mix(std::uint64_t seed, const view& seen) {
    for (const std::uint64_t each : std::bit_cast<std::array<std::uint64_t, sizeof seen / 8>>(seen))
        seed = mix(seed, each);
    return seed;
}

enum class operation { load, store, modify };

/// A memory order of the code under test that is made weaker: that of these operations on the
/// locations from `first` to before `last`.
struct weakening {
    std::size_t first = 0;
    std::size_t last = 0;
    operation what{};
    std::memory_order to{};
};

/// What is explored: an object for each execution. run() is called once for each thread, as one;
/// check() after all have returned, outside of the exploration. Failures go to explorer::fail().
class scenario {
public:
    virtual ~scenario() = default;
    virtual std::size_t threads() const = 0;
    virtual void run(std::size_t thread) = 0;
    virtual void check() {}
};

struct exploration {
    std::uint64_t schedules = 0; ///< Executions.
    std::uint64_t states = 0;    ///< Different states in which there was a choice.
    std::uint64_t longest = 0;   ///< Operations of the longest execution.
    bool complete = false;       ///< Nothing is left to explore within the bounds.
    std::string failure;         ///< Empty: none.
    std::string trace;           ///< Of the failure: who did what.
    double seconds = 0;
};

class explorer {
public:
    struct limits {
        std::size_t preemptions = std::numeric_limits<std::size_t>::max();
        /// How often in one execution a compare_exchange_weak may fail for no reason.
        std::size_t spurious_failures = 0;
        /// How many loads in one execution may see less than the newest store.
        std::size_t stale_loads = 0;
        std::optional<weakening> weaker = std::nullopt;
        std::uint64_t schedules = 20'000'000;
        bool merge_states = true; ///< False to count schedules; finds nothing more.
        /// Do not look for data races; let plain accesses be scheduling points instead, so that
        /// their consequences come to light. Sees nothing of memory orders, and takes longer.
        bool interleave_values = false;
    };

    static explorer* active() { return active_; }

    template <class MakeScenario>
    exploration explore(limits bounds, MakeScenario&& make) {
        const auto begin = std::chrono::steady_clock::now();
        active_ = this;
        limits_ = bounds;
        exploration result;
        for (bool more = true; more && result.schedules < limits_.schedules;) {
            execute(make);
            if (learnt_writer_) {
                result = {};
                path_.clear();
                visited_.clear();
                continue;
            }
            ++result.schedules;
            result.longest = std::max<std::uint64_t>(result.longest, operations_);
            more = failure_.empty() && next_path();
        }
        result.failure = failure_;
        result.complete = failure_.empty() && path_.empty();
        if (!failure_.empty()) { // once more, with notes
            tracing_ = true;
            execute(make);
            result.trace = trace_.str();
        }
        active_ = nullptr;
        result.states = visited_.size();
        result.seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        return result;
    }

    // For scenarios.

    void fail(const std::string& why) {
        if (failure_.empty()) {
            failure_ = why;
            note_step("FAILED: " + why);
        }
        finishing_ = true;
    }

    /// After a failed try: to continue with another thread is then not a preemption.
    void yield() { yielding_ = true; }

    /// Between two calls the results of past operations no longer matter, only what `state` tells
    /// of the running thread. Lets more states be equal: without it a thread that got its result in
    /// another way would be another thread for ever.
    void at_rest(std::uint64_t state) {
        thread_state& self = threads_[running_];
        self.history = mix(mix(mix(6, running_), state), self.known.clock);
    }

    /// What a scenario remembers about a thread beyond the results of its operations belongs to
    /// the state; otherwise states would be taken for equal that are not.
    void set_mark(std::size_t thread, std::uint64_t value) { threads_[thread].mark = value; }

    // For model_atomic and model_value.

    bool looks_for_races() const { return !limits_.interleave_values; }
    bool has_stale_loads() const { return limits_.stale_loads > 0; }

    std::memory_order order(std::size_t location, operation what, std::memory_order stated) const {
        const auto& weaker = limits_.weaker;
        const bool meant =
            weaker && weaker->what == what && location >= weaker->first && location < weaker->last;
        return meant && stated != std::memory_order_relaxed ? weaker->to : stated;
    }
    bool exploring() const { return running_ != nobody; }
    std::size_t running() const { return running_; }
    std::size_t new_location() {
        writers_.resize(std::max(writers_.size(), locations_ + 1), nobody);
        return locations_++;
    }

    /// The scheduling point before an operation on a location. None is needed before a thread loads
    /// what it alone ever stores: that commutes with all that others do. Who stores to a location
    /// is found out on the way, and each time something new is found the search begins anew.
    void point(std::size_t location, bool stores) {
        ++operations_;
        std::size_t& writer = writers_[location];
        if (!stores && writer == running_) return;
        if (stores && writer != running_ && writer != many) {
            writer = writer == nobody ? running_ : many;
            learnt_writer_ = true;
            finishing_ = true; // the rest of the path was made with less knowledge
            path_.resize(depth_);
        }
        decide(true);
    }

    /// Whether a compare_exchange_weak that could succeed fails all the same.
    bool spurious_failure() {
        if (!exploring() || spurious_ == limits_.spurious_failures || finishing_) return false;
        const bool fails = pick(2) == 1;
        spurious_ += fails ? 1 : 0;
        return fails;
    }

    /// How many stores a load goes back, of so many that it may.
    std::size_t staleness(std::size_t most) {
        if (most == 0 || stale_ == limits_.stale_loads || finishing_) return 0;
        const std::size_t back = pick(most + 1);
        stale_ += back > 0 ? 1 : 0;
        return back;
    }

    knowledge& known() { return threads_[running_].known; }
    vector_clock& clock() { return known().clock; }

    /// Ends what this thread has done so far; what it does next is not covered by a clock that
    /// others have got from it.
    void advance_clock() { ++clock()[running_]; }

    /// The running thread has learnt `value`: from now on it may behave otherwise.
    void learn(std::uint64_t value) {
        if (exploring()) threads_[running_].history = mix(threads_[running_].history, value);
    }

    void learn(const vector_clock& clock) {
        if (exploring()) threads_[running_].history = mix(threads_[running_].history, clock);
    }

    /// A location's contents have changed. `was` and the result: its share in the hash of memory.
    std::uint64_t replace(std::uint64_t was, std::size_t location, std::uint64_t contents) {
        const std::uint64_t share = mix(mix(1, location), contents);
        memory_ ^= was ^ share;
        return share;
    }

    template <class... Parts>
    void note_step(const Parts&... parts) {
        if (!tracing_) return;
        trace_ << "\n  ";
        if (exploring()) trace_ << "thread " << running_ << ": ";
        (trace_ << ... << parts);
    }

private:
    static constexpr std::size_t nobody = std::numeric_limits<std::size_t>::max();
    static constexpr std::size_t many = nobody - 1;

    struct thread_state {
        bool done = false;
        std::uint64_t history = 0;
        std::uint64_t mark = 0;
        knowledge known{};
    };

    struct choice {
        std::size_t taken;
        std::size_t count;
    };

    template <class MakeScenario>
    void execute(MakeScenario& make) {
        locations_ = 0;
        memory_ = 0;
        depth_ = 0;
        operations_ = 0;
        preemptions_ = 0;
        spurious_ = 0;
        stale_ = 0;
        yielding_ = false;
        finishing_ = false;
        learnt_writer_ = false;
        failure_.clear();
        trace_.str("");

        const std::unique_ptr<scenario> run = make();
        scenario_ = run.get();
        count_ = scenario_->threads();
        if (count_ > max_threads) throw std::length_error("too many threads for the explorer");
        for (std::size_t i = 0; i < count_; ++i) {
            threads_[i] = {};
            threads_[i].history = mix(2, i);
            threads_[i].known.clock[i] = 1; // 0 stands for "before all threads"
        }
        decide(false);
        if (failure_.empty()) scenario_->check();
        scenario_ = nullptr;
    }

    // A fiber serves its thread in all executions. Each execution runs to its end, also when there
    // is nothing new to see in it, so no fiber ever has to be abandoned with a filled stack.
    void serve(std::size_t fiber) {
        for (;;) {
            learn(3); // started: that is a step by itself
            scenario_->run(fiber - 1);
            threads_[fiber - 1].done = true;
            decide(false);
        }
    }

    // Who goes on? The running thread calls this before its next operation, or when it is done.
    void decide(bool runnable) {
        std::array<std::size_t, max_threads> candidates{};
        std::size_t count = 0;
        const bool gives_way = std::exchange(yielding_, false);
        const bool free_choice = !runnable || gives_way;
        if (runnable) candidates[count++] = running_; // first: what needs no choice keeps running
        if (free_choice || finishing_ || preemptions_ < limits_.preemptions)
            for (std::size_t i = 0; i < count_; ++i)
                if (!threads_[i].done && i != running_) candidates[count++] = i;
        if (free_choice && runnable) // last: who gave way comes back when nobody else wants to go
            std::rotate(candidates.begin(), candidates.begin() + 1,
                        candidates.begin() + static_cast<std::ptrdiff_t>(count));
        if (count == 0) return go_on_with(nobody);
        const std::size_t next = candidates[count == 1 ? 0 : choose(count, runnable, free_choice)];
        if (runnable && !free_choice && next != running_) ++preemptions_;
        go_on_with(next);
    }

    std::size_t choose(std::size_t count, bool runnable, bool free_choice) {
        if (depth_ >= path_.size() && !finishing_ && !tracing_ && limits_.merge_states &&
            !is_new_state(runnable, free_choice))
            finishing_ = true;
        return pick(count);
    }

    // Follows the path; after its end takes the first way, and remembers that there are others.
    std::size_t pick(std::size_t count) {
        if (depth_ < path_.size()) {
            if (path_[depth_].count == count) return path_[depth_++].taken;
            path_.resize(depth_);
            fail("the scenario does something else when it is run again");
        }
        if (finishing_ || tracing_) return 0;
        path_.push_back({0, count});
        ++depth_;
        return 0;
    }

    // The next path in depth-first order; false when all have been taken.
    bool next_path() {
        while (!path_.empty() && path_.back().taken + 1 == path_.back().count) path_.pop_back();
        if (path_.empty()) return false;
        ++path_.back().taken;
        return true;
    }

    // With a bound on preemptions a state counts as seen only if it was reached with at least as
    // many left as now, and who runs matters, since it may go on for free.
    bool is_new_state(bool runnable, bool free_choice) {
        std::uint64_t key = mix(mix(memory_, spurious_), stale_);
        for (std::size_t i = 0; i < count_; ++i) {
            key = mix(mix(mix(key, threads_[i].history), threads_[i].mark), threads_[i].done);
            if (stale_ < limits_.stale_loads) key = mix(key, threads_[i].known.seen);
        }
        const bool bounded = limits_.preemptions != std::numeric_limits<std::size_t>::max();
        const std::size_t left = bounded ? limits_.preemptions - preemptions_ : 0;
        if (bounded) key = mix(mix(key, runnable ? running_ : nobody), free_choice);
        const auto [at, inserted] = visited_.try_emplace(key, left);
        if (inserted) return true;
        if (at->second >= left) return false;
        at->second = left;
        return true;
    }

    void go_on_with(std::size_t thread) {
        if (thread == running_) return;
        running_ = thread;
        fibers_.switch_to(thread == nobody ? 0 : thread + 1);
    }

    static inline explorer* active_ = nullptr;

    limits limits_;
    fibers fibers_{max_threads, [this](std::size_t fiber) { serve(fiber); }};
    std::unordered_map<std::uint64_t, std::size_t> visited_;
    std::vector<choice> path_;
    std::vector<std::size_t> writers_; // by location: nobody, one thread, or many

    scenario* scenario_ = nullptr; // from here on: of the current execution
    std::array<thread_state, max_threads> threads_{};
    std::size_t count_ = 0;
    std::size_t running_ = nobody;
    std::size_t locations_ = 0;
    std::uint64_t memory_ = 0;
    std::size_t depth_ = 0;
    std::size_t operations_ = 0;
    std::size_t preemptions_ = 0;
    std::size_t spurious_ = 0;
    std::size_t stale_ = 0;
    bool yielding_ = false;
    bool learnt_writer_ = false;
    bool finishing_ = false; // nothing new lies ahead, or it failed: only run to the end
    std::string failure_;
    bool tracing_ = false;
    std::ostringstream trace_;
};

// ---- model_atomic -------------------------------------------------------------------------------

constexpr bool acquires(std::memory_order order) {
    return order == std::memory_order_acquire || order == std::memory_order_consume ||
           order == std::memory_order_acq_rel || order == std::memory_order_seq_cst;
}

constexpr bool releases(std::memory_order order) {
    return order == std::memory_order_release || order == std::memory_order_acq_rel ||
           order == std::memory_order_seq_cst;
}

// What std::atomic does for a compare_exchange with one order.
constexpr std::memory_order failure_order(std::memory_order order) {
    if (order == std::memory_order_acq_rel) return std::memory_order_acquire;
    return order == std::memory_order_release ? std::memory_order_relaxed : order;
}

/// Stands in for std::atomic of integers. Outside of an exploration it is a plain variable.
template <class T>
class model_atomic {
    static_assert(std::is_integral_v<T>);

public:
    using value_type = T;
    static constexpr bool is_always_lock_free = true;

    model_atomic() noexcept : model_atomic(T{}) {}
    model_atomic(T value) noexcept : stores_{{value, {}}} {
        if (explorer* const world = explorer::active()) {
            location_ = world->new_location();
            remember(*world);
        }
    }
    model_atomic(const model_atomic&) = delete;
    model_atomic& operator=(const model_atomic&) = delete;

    bool is_lock_free() const noexcept { return true; }

    T load(std::memory_order order = std::memory_order_seq_cst) const noexcept {
        explorer* const world = explorer::active();
        if (world == nullptr || !world->exploring()) return newest().value;
        order = world->order(location_, operation::load, order);
        world->point(location_, false);
        const std::size_t at = newest_index() - world->staleness(newest_index() - floor(order));
        take(*world, at, order);
        const T value = stores_[at].value;
        world->note_step("load atomic ", location_, " = ", value, show(order),
                         at == newest_index() ? "" : " STALE");
        return value;
    }

    void store(T value, std::memory_order order = std::memory_order_seq_cst) noexcept {
        explorer* const world = explorer::active();
        if (world == nullptr || !world->exploring()) return set(world, {value, {}});
        order = world->order(location_, operation::store, order);
        world->point(location_, true);
        // A plain store begins anew: who reads it does not get what an earlier store released.
        give(*world, {value, {}}, order);
        world->learn(4);
        world->note_step("store atomic ", location_, " := ", value, show(order));
    }

    T exchange(T value, std::memory_order order = std::memory_order_seq_cst) noexcept {
        return modify(order, "exchange", [&](T) { return value; });
    }
    T fetch_add(T value, std::memory_order order = std::memory_order_seq_cst) noexcept {
        return modify(order, "fetch_add", [&](T was) { return static_cast<T>(was + value); });
    }
    T fetch_sub(T value, std::memory_order order = std::memory_order_seq_cst) noexcept {
        return modify(order, "fetch_sub", [&](T was) { return static_cast<T>(was - value); });
    }

    bool compare_exchange_strong(T& expected, T desired, std::memory_order success,
                                 std::memory_order failure) noexcept {
        return compare_exchange(expected, desired, success, failure, false);
    }
    bool compare_exchange_strong(T& expected, T desired,
                                 std::memory_order order = std::memory_order_seq_cst) noexcept {
        return compare_exchange(expected, desired, order, failure_order(order), false);
    }
    bool compare_exchange_weak(T& expected, T desired, std::memory_order success,
                               std::memory_order failure) noexcept {
        return compare_exchange(expected, desired, success, failure, true);
    }
    bool compare_exchange_weak(T& expected, T desired,
                               std::memory_order order = std::memory_order_seq_cst) noexcept {
        return compare_exchange(expected, desired, order, failure_order(order), true);
    }

    operator T() const noexcept { return load(); }
    T operator=(T value) noexcept {
        store(value);
        return value;
    }

private:
    struct stored {
        T value;
        knowledge released; // what a thread learns that acquires this value
    };

    template <class Function>
    T modify(std::memory_order order, const char* what, Function function) noexcept {
        explorer* const world = explorer::active();
        const T was = newest().value;
        if (world == nullptr || !world->exploring()) {
            set(world, {function(was), {}});
            return was;
        }
        return modify_at_point(*world, order, what, function);
    }

    template <class Function>
    T modify_at_point(explorer& world, std::memory_order order, const char* what,
                      Function function) noexcept {
        order = world.order(location_, operation::modify, order);
        world.point(location_, true);
        const T was = newest().value;
        take(world, newest_index(), order);
        give(world, {function(was), newest().released}, order);
        world.note_step(what, " atomic ", location_, " ", was, " -> ", newest().value, show(order));
        return was;
    }

    bool compare_exchange(T& expected, T desired, std::memory_order success,
                          std::memory_order failure, bool weak) noexcept {
        explorer* const world = explorer::active();
        if (world == nullptr || !world->exploring()) {
            const bool equal = newest().value == expected;
            if (equal)
                set(world, {desired, {}});
            else
                expected = newest().value;
            return equal;
        }
        success = world->order(location_, operation::modify, success);
        world->point(location_, true);
        const bool succeeds = newest().value == expected && !(weak && world->spurious_failure());
        world->learn(succeeds);
        take(*world, newest_index(), succeeds ? success : failure);
        if (succeeds) {
            give(*world, {desired, newest().released}, success);
            world->note_step("compare_exchange atomic ", location_, " ", expected, " -> ", desired,
                             show(success));
        } else {
            world->note_step("compare_exchange atomic ", location_, " failed at ", newest().value,
                             ", expected ", expected, show(failure));
            expected = newest().value;
        }
        return succeeds;
    }

    const stored& newest() const { return stores_.back(); }
    std::size_t newest_index() const { return stores_.size() - 1; }

    // The oldest store that the running thread may still see.
    std::size_t floor(std::memory_order order) const {
        const std::size_t known = explorer::active()->known().seen.at(location_);
        return order == std::memory_order_seq_cst ? std::max(known, consistent_) : known;
    }

    // The running thread reads the value.
    void take(explorer& world, std::size_t at, std::memory_order order) const {
        const stored& from = stores_[at];
        world.learn(static_cast<std::uint64_t>(from.value));
        see(world, at, order);
        if (acquires(order)) {
            join(world.known(), from.released);
            world.learn(from.released.clock);
        }
    }

    // The running thread writes it. A read-modify-write continues the release sequence: what was
    // released stays so.
    void give(explorer& world, stored next, std::memory_order order) {
        if (!world.has_stale_loads()) stores_.clear();
        see(world, stores_.size(), order);
        if (releases(order)) {
            join(next.released, world.known());
            world.advance_clock();
        }
        set(&world, next);
    }

    void see(explorer& world, std::size_t at, std::memory_order order) const {
        if (!world.has_stale_loads()) return;
        world.known().seen.at(location_) = static_cast<std::uint8_t>(at);
        if (order != std::memory_order_seq_cst || consistent_ >= at) return;
        consistent_ = at;
        remember(world);
    }

    void set(explorer* world, const stored& next) {
        if (world == nullptr || !world->exploring()) stores_.clear();
        stores_.push_back(next);
        if (world != nullptr) remember(*world);
    }

    void remember(explorer& world) const {
        std::uint64_t contents = consistent_;
        for (const stored& each : stores_) {
            contents =
                mix(mix(contents, static_cast<std::uint64_t>(each.value)), each.released.clock);
            if (world.has_stale_loads()) contents = mix(contents, each.released.seen);
        }
        share_ = world.replace(share_, location_, contents);
    }

    static const char* show(std::memory_order order) {
        return order == std::memory_order_relaxed   ? " (relaxed)"
               : order == std::memory_order_seq_cst ? ""
                                                    : " (acquire/release)";
    }

    std::vector<stored> stores_; // the last one, or all if a load may be stale
    std::size_t location_ = 0;
    mutable std::size_t consistent_ = 0; // no sequentially consistent load goes back behind this
    mutable std::uint64_t share_ = 0;
};

// ---- model_value --------------------------------------------------------------------------------

/// What the ring carries: a number in plain memory whose accesses are checked for races.
///
/// The ring asks for a trivially copyable type, so that copying cannot be observed by a copy
/// constructor. But a template is never a copy constructor, and for a source that is not const it
/// is the better match. The ring copies from such: its slot, and its parameter. Should it once be
/// written otherwise, accesses would pass unseen; for that reason ring_run::check() counts them.
class model_value {
public:
    /// A shared location when made while a scenario is set up, as the ring's slots are.
    model_value() noexcept {
        explorer* const world = explorer::active();
        if (world != nullptr && !world->exploring()) {
            location_ = static_cast<std::uint32_t>(world->new_location()) + 1;
            remember(*world);
        }
    }
    explicit model_value(std::uint32_t number) noexcept : number_(number) {}
    model_value(const model_value&) = default;
    model_value& operator=(const model_value&) = default;
    ~model_value() = default;

    template <std::same_as<model_value> Source>
    model_value(Source& source) noexcept : number_(source.read()) {}

    template <std::same_as<model_value> Source>
    model_value& operator=(Source& source) noexcept {
        write(source.read());
        return *this;
    }

    std::uint32_t number() const { return number_; }

    static inline std::uint64_t reads = 0; ///< Of shared locations, since the scenario's set-up.
    static inline std::uint64_t writes = 0;

private:
    std::uint32_t read() noexcept {
        explorer* const world = explorer::active();
        if (location_ == 0 || world == nullptr) return number_;
        ++reads;
        if (!world->exploring()) return number_;
        const std::size_t self = world->running();
        if (!world->looks_for_races())
            world->point(location_ - 1, false);
        else if (written_at_ > world->clock()[written_by_])
            world->fail("data race: thread " + std::to_string(self) + " reads what thread " +
                        std::to_string(written_by_) + " has written and not released to it");
        read_at_[self] = world->clock()[self];
        world->learn(number_);
        world->note_step("read value ", location_, " = ", number_);
        remember(*world);
        return number_;
    }

    void write(std::uint32_t number) noexcept {
        explorer* const world = explorer::active();
        if (location_ == 0 || world == nullptr) {
            number_ = number;
            return;
        }
        ++writes;
        if (world->exploring()) {
            const std::size_t self = world->running();
            if (world->looks_for_races())
                check_before_write(*world, self);
            else
                world->point(location_ - 1, true);
            world->learn(7);
            written_by_ = static_cast<std::uint32_t>(self);
            written_at_ = world->clock()[self];
        }
        number_ = number;
        world->note_step("write value ", location_, " := ", number_);
        remember(*world);
    }

    void check_before_write(explorer& world, std::size_t self) const {
        const vector_clock& known = world.clock();
        if (written_at_ > known[written_by_])
            world.fail("data race: threads " + std::to_string(self) + " and " +
                       std::to_string(written_by_) + " write the same slot");
        for (std::size_t i = 0; i < max_threads; ++i)
            if (read_at_[i] > known[i])
                world.fail("data race: thread " + std::to_string(self) +
                           " overwrites what thread " + std::to_string(i) +
                           " reads or has read without releasing it");
    }

    void remember(explorer& world) {
        share_ = world.replace(share_, location_ - 1,
                               mix(mix(mix(mix(5, number_), written_by_), written_at_), read_at_));
    }

    std::uint32_t number_ = 0;
    std::uint32_t location_ = 0; // 0: a local copy, nobody's business
    std::uint32_t written_by_ = 0;
    std::uint32_t written_at_ = 0;
    vector_clock read_at_{};
    std::uint64_t share_ = 0;
};
static_assert(std::is_trivially_copyable_v<model_value>);

// ---- a ring under exploration -------------------------------------------------------------------

struct ring_plan {
    std::size_t capacity = 2;
    std::vector<std::size_t> publishers; ///< How many values each publishes.
    std::vector<std::size_t> readers;    ///< How many values each reads while publishers run.
    std::size_t tries = 1;               ///< Failed tries after which a thread gives up.
    bool watcher = false;                ///< One more thread, which asks full() once.
};

/// Publishers are the first threads, then readers, then the watcher.
///
/// The oracle knows the ring from outside: which calls have begun and which have returned. From
/// that follow bounds for what a call may answer, whichever moment inside it counts. Where loads
/// may be stale a call may answer as it would have done before.
template <class Ring>
class ring_run : public scenario {
public:
    ring_run(explorer& world, const ring_plan& plan)
        : world_(world), plan_(plan), ring_(plan.capacity, plan.readers.size()),
          published_(plan.publishers.size()), read_(plan.readers.size()),
          reading_(plan.readers.size()), calls_(threads()) {
        model_value::reads = 0;
        model_value::writes = 0;
    }

    std::size_t threads() const override {
        return plan_.publishers.size() + plan_.readers.size() + (plan_.watcher ? 1 : 0);
    }

    void run(std::size_t thread) override {
        if (thread < plan_.publishers.size())
            publish(thread);
        else if (thread < plan_.publishers.size() + plan_.readers.size())
            read(thread, thread - plan_.publishers.size());
        else
            watch(thread);
    }

    void check() override {
        check_accesses();
        read_the_rest();
        check_order();
        check_still_works();
    }

private:
    using sequence = std::uint64_t;

    struct call {
        bool asks_for_room = false; // in try_publish() or full()
        bool publishes = false;     // in try_publish()
        bool saw_full = false;      // since it began there was a moment when the ring may be full
    };

    // Threads.

    void publish(std::size_t self) {
        std::size_t failed = 0;
        for (std::size_t n = 0; n < plan_.publishers[self] && failed < plan_.tries;) {
            const model_value value(static_cast<std::uint32_t>(100 * (self + 1) + n));
            begin_call(self, true);
            const std::optional<sequence> place = ring_.try_publish(value);
            const call ended = end_call(self);
            if (place) {
                published_[self].push_back({*place, value.number()});
                check_nothing_overwritten(*place);
                note_pressure();
                ++n;
            } else {
                if (!ended.saw_full && !world_.has_stale_loads())
                    world_.fail("try_publish found no room, but there was room all the time");
                ++failed;
                world_.yield();
            }
            std::uint64_t state = failed;
            for (const auto& [at, number] : published_[self]) state = mix(mix(state, at), number);
            world_.at_rest(state);
        }
    }

    void read(std::size_t self, std::size_t reader) {
        std::size_t failed = 0;
        std::vector<std::uint32_t>& values = read_[reader];
        while (values.size() < plan_.readers[reader] && failed < plan_.tries) {
            const bool is_there = was_published(values.size());
            world_.set_mark(self, is_there);
            reading_[reader] = 1;
            const std::optional<model_value> value = ring_.try_read(reader);
            reading_[reader] = 0;
            world_.set_mark(self, 0);
            if (value) {
                values.push_back(value->number());
            } else {
                if (is_there && !world_.has_stale_loads())
                    world_.fail("try_read found nothing, but the value was published before");
                ++failed;
                world_.yield();
            }
            std::uint64_t state = failed;
            for (const std::uint32_t number : values) state = mix(state, number);
            world_.at_rest(state);
        }
    }

    void watch([[maybe_unused]] std::size_t self) {
        if constexpr (requires(Ring & ring) { ring.full(); }) {
            begin_call(self, false);
            const bool full = ring_.full();
            if (!end_call(self).saw_full && full && !world_.has_stale_loads())
                world_.fail("full() says yes, but there was room all the time");
        }
    }

    // Bounds. A call that has begun may have taken effect; one that has returned has.

    std::size_t surely_read(std::size_t reader) const { return read_[reader].size(); }
    std::size_t perhaps_read(std::size_t reader) const {
        return read_[reader].size() + reading_[reader];
    }

    std::size_t surely_published() const {
        std::size_t sum = 0;
        for (const auto& one : published_) sum += one.size();
        return sum;
    }

    bool was_published(sequence place) const {
        for (const auto& one : published_)
            for (const auto& [at, value] : one)
                if (at == place) return true;
        return false;
    }

    void begin_call(std::size_t self, bool publishes) {
        calls_[self] = {true, publishes, false};
        note_pressure();
    }

    call end_call(std::size_t self) {
        world_.set_mark(self, 0);
        return std::exchange(calls_[self], {});
    }

    // Called whenever the ring may have become fuller: when a try begins, or has succeeded.
    void note_pressure() {
        std::size_t slowest = surely_read(0);
        for (std::size_t i = 1; i < read_.size(); ++i) slowest = std::min(slowest, surely_read(i));
        for (std::size_t self = 0; self < calls_.size(); ++self) {
            std::size_t claims = surely_published();
            for (std::size_t other = 0; other < calls_.size(); ++other)
                claims += other != self && calls_[other].publishes ? 1U : 0U;
            if (calls_[self].asks_for_room && claims >= slowest + plan_.capacity) {
                calls_[self].saw_full = true;
                world_.set_mark(self, 1);
            }
        }
    }

    // The place before this one in the same slot must be read, or be about to be.
    void check_nothing_overwritten(sequence place) {
        for (std::size_t i = 0; i < read_.size(); ++i)
            if (place >= perhaps_read(i) + plan_.capacity)
                world_.fail("sequence " + std::to_string(place) + " was published while reader " +
                            std::to_string(i) + " had read " + std::to_string(surely_read(i)));
    }

    // Afterwards.

    // The promise of model_value: each access of a slot was seen.
    void check_accesses() {
        std::size_t reads = 0;
        for (const auto& values : read_) reads += values.size();
        if (model_value::writes != surely_published() || model_value::reads < reads)
            world_.fail("the model did not see each access to a value; see model_value");
    }

    void read_the_rest() {
        const std::size_t total = surely_published();
        for (std::size_t i = 0; i < read_.size(); ++i)
            while (read_[i].size() <= total) {
                const std::optional<model_value> value = ring_.try_read(i);
                if (!value) break;
                read_[i].push_back(value->number());
            }
    }

    void check_order() {
        std::vector<std::optional<std::uint32_t>> order(surely_published());
        for (const auto& one : published_) {
            std::optional<sequence> last;
            for (const auto& [place, value] : one) {
                if (place >= order.size()) return world_.fail("a sequence was left out");
                if (order[place]) return world_.fail("a sequence was given twice");
                if (last && place < *last)
                    return world_.fail("a publisher's values changed their order");
                order[place] = value;
                last = place;
            }
        }
        for (std::size_t i = 0; i < read_.size(); ++i) {
            if (read_[i].size() != order.size())
                return world_.fail("reader " + std::to_string(i) + " got " +
                                   std::to_string(read_[i].size()) + " values of " +
                                   std::to_string(order.size()));
            for (std::size_t n = 0; n < order.size(); ++n)
                if (read_[i][n] != order[n])
                    return world_.fail("reader " + std::to_string(i) + " got " +
                                       std::to_string(read_[i][n]) + " for sequence " +
                                       std::to_string(n) + ", published was " +
                                       std::to_string(*order[n]));
        }
    }

    // All is read, so there is room for as many as there are slots, and for no more.
    void check_still_works() {
        const std::size_t total = surely_published();
        for (std::size_t n = 0; n < plan_.capacity; ++n)
            if (ring_.try_publish(model_value(static_cast<std::uint32_t>(n))) != total + n)
                return world_.fail("an empty ring has less room than its capacity");
        if (ring_.try_publish(model_value(0)))
            return world_.fail("an empty ring has more room than its capacity");
        for (std::size_t i = 0; i < read_.size(); ++i)
            for (std::size_t n = 0; n < plan_.capacity; ++n) {
                const std::optional<model_value> value = ring_.try_read(i);
                if (!value || value->number() != n)
                    return world_.fail("the ring lost a value after all threads had left");
            }
    }

    explorer& world_;
    const ring_plan& plan_;
    Ring ring_;
    std::vector<std::vector<std::pair<sequence, std::uint32_t>>> published_; // by publisher
    std::vector<std::vector<std::uint32_t>> read_;                           // by reader
    std::vector<std::size_t> reading_; // by reader: calls under way
    std::vector<call> calls_;          // by thread
};

using real_ring = sse::detail::broadcast_ring<model_value, model_atomic>;

template <class Ring = real_ring>
exploration explore_ring(const ring_plan& plan, explorer::limits bounds = {}) {
    explorer world;
    return world.explore(bounds, [&] { return std::make_unique<ring_run<Ring>>(world, plan); });
}

void check_sound(const exploration& result) {
    MESSAGE(result.schedules << " schedules, " << result.states << " states, up to "
                             << result.longest << " operations, " << result.seconds << " s");
    INFO(result.trace);
    CHECK(result.failure == "");
    CHECK(result.complete);
}

// ---- a reader that sleeps -----------------------------------------------------------------------

struct sleep_plan {
    std::size_t capacity = 2;
    std::vector<std::size_t> publishers; ///< How many values each publishes.
    bool asks_first = false;             ///< Fault: asks published() before it lies down.
    bool comes_back = true;              ///< Looks again by itself at what is claimed.
};

/// Publishers, and last a reader as worker::plan() is one: reads all, lies down, looks once more.
/// It must not sleep for ever while there is something to read.
class sleep_run : public scenario {
public:
    sleep_run(explorer& world, const sleep_plan& plan)
        : world_(world), plan_(plan), ring_(plan.capacity, 1) {}

    std::size_t threads() const override { return plan_.publishers.size() + 1; }

    void run(std::size_t thread) override {
        if (thread < plan_.publishers.size())
            publish(plan_.publishers[thread]);
        else
            while (!sleeps()) {}
    }

    void check() override {
        const bool unread = ring_.try_read(0).has_value();
        if (unread && !comes_back_ && wakes_.load() == 0)
            world_.fail("the reader sleeps, and nobody wakes it");
    }

private:
    void publish(std::size_t values) {
        while (values-- > 0 && ring_.try_publish(model_value(1)))
            if (sleep_.must_wake()) wakes_.fetch_add(1, std::memory_order_release);
    }

    bool sleeps() {
        read_all();
        const std::uint64_t claimed = plan_.asks_first ? ring_.published() : 0;
        sleep_.prepare_to_sleep();
        if (read_all()) {
            sleep_.wake();
            return false;
        }
        comes_back_ = plan_.comes_back && (plan_.asks_first ? claimed : ring_.published()) != read_;
        return wakes_.exchange(0, std::memory_order_acquire) == 0;
    }

    bool read_all() {
        const std::size_t before = read_;
        while (ring_.try_read(0)) ++read_;
        return read_ != before;
    }

    explorer& world_;
    const sleep_plan& plan_;
    real_ring ring_;
    sse::detail::sleeper<model_atomic> sleep_;
    model_atomic<int> wakes_{0}; // handed to the reader as by asio::post
    std::size_t read_ = 0;
    bool comes_back_ = false;
};

exploration explore_sleep(const sleep_plan& plan, explorer::limits bounds) {
    explorer world;
    return world.explore(bounds, [&] { return std::make_unique<sleep_run>(world, plan); });
}

// ---- the explorer itself ------------------------------------------------------------------------

/// Two threads that each load `count` times.
struct loads : scenario {
    explicit loads(std::size_t count) : count_(count) {}
    std::size_t threads() const override { return 2; }
    void run(std::size_t) override {
        for (std::size_t i = 0; i < count_; ++i) value_.load();
    }

private:
    std::size_t count_;
    model_atomic<int> value_{0};
};

/// Two threads count to two with a load and a store.
struct lost_update : scenario {
    explicit lost_update(explorer& world) : world_(world) {}
    std::size_t threads() const override { return 2; }
    void run(std::size_t) override { value_.store(value_.load() + 1); }
    void check() override {
        if (value_.load() != 2) world_.fail("lost");
    }

private:
    explorer& world_;
    model_atomic<int> value_{0};
};

/// Each of two threads stores to its own atomic and then loads the other's.
struct store_then_load : scenario {
    using outcomes = std::set<std::pair<int, int>>;

    explicit store_then_load(outcomes& seen, std::memory_order store = std::memory_order_seq_cst,
                             std::memory_order load = std::memory_order_seq_cst)
        : seen_(seen), store_(store), load_(load) {}
    std::size_t threads() const override { return 2; }
    void run(std::size_t self) override {
        values_[self].store(1, store_);
        got_[self] = values_[1 - self].load(load_);
    }
    void check() override { seen_.insert({got_[0], got_[1]}); }

private:
    outcomes& seen_;
    std::memory_order store_;
    std::memory_order load_;
    std::array<model_atomic<int>, 2> values_;
    std::array<int, 2> got_{};
};

/// One thread stores to an atomic, relaxed, and then to another; who sees that must see the first.
struct hand_over : scenario {
    hand_over(explorer& world, std::memory_order store, std::memory_order load)
        : world_(world), store_(store), load_(load) {}
    std::size_t threads() const override { return 2; }
    void run(std::size_t self) override {
        if (self == 0) {
            value_.store(1, std::memory_order_relaxed);
            flag_.store(1, store_);
        } else if (flag_.load(load_) == 1 && value_.load(std::memory_order_relaxed) != 1) {
            world_.fail("the first store was not there");
        }
    }

private:
    explorer& world_;
    std::memory_order store_;
    std::memory_order load_;
    model_atomic<int> value_{0};
    model_atomic<int> flag_{0};
};

TEST_CASE("the explorer runs every interleaving exactly once") {
    const auto schedules = [](std::size_t steps, std::size_t preemptions) {
        explorer world;
        return world
            .explore({.preemptions = preemptions, .merge_states = false},
                     [&] { return std::make_unique<loads>(steps); })
            .schedules;
    };
    // A thread's start is a step as well: 3 and 3 steps, 20 ways to merge them.
    constexpr std::size_t unbounded = std::numeric_limits<std::size_t>::max();
    CHECK(schedules(2, unbounded) == 20);
    CHECK(schedules(3, unbounded) == 70);
    CHECK(schedules(4, unbounded) == 252);
    // Without a preemption only the first thread is chosen; with one, also where it stops (before
    // one of its two loads, and then the other runs to its end).
    CHECK(schedules(2, 0) == 2);
    CHECK(schedules(2, 1) == 6);
}

TEST_CASE("the explorer sees each outcome of sequential consistency, merging states or not") {
    const auto explored = [](explorer::limits bounds, store_then_load::outcomes& seen) {
        explorer world;
        return world.explore(bounds, [&] { return std::make_unique<store_then_load>(seen); });
    };
    const store_then_load::outcomes expected{{0, 1}, {1, 0}, {1, 1}};
    store_then_load::outcomes all;
    store_then_load::outcomes merged;
    const std::uint64_t schedules = explored({.merge_states = false}, all).schedules;
    CHECK(all == expected);
    CHECK(explored({}, merged).schedules < schedules);
    CHECK(merged == expected);
}

TEST_CASE("with stale loads the explorer sees what is more in weaker memory, and no more") {
    const auto seen = [](std::memory_order store, std::memory_order load) {
        store_then_load::outcomes all;
        explorer world;
        world.explore({.stale_loads = 2},
                      [&] { return std::make_unique<store_then_load>(all, store, load); });
        return all.count({0, 0}) == 1;
    };
    constexpr auto relaxed = std::memory_order_relaxed, acquire = std::memory_order_acquire,
                   release = std::memory_order_release, seq_cst = std::memory_order_seq_cst;
    CHECK(!seen(seq_cst, seq_cst));
    CHECK(seen(release, acquire));
    CHECK(seen(release, seq_cst));
    CHECK(seen(seq_cst, acquire));
    CHECK(seen(relaxed, relaxed));

    const auto arrives = [](std::memory_order store, std::memory_order load) {
        explorer world;
        return world
            .explore({.stale_loads = 2},
                     [&] { return std::make_unique<hand_over>(world, store, load); })
            .failure.empty();
    };
    CHECK(arrives(release, acquire));
    CHECK(arrives(seq_cst, seq_cst));
    CHECK(!arrives(relaxed, acquire));
    CHECK(!arrives(release, relaxed));
}

TEST_CASE("the explorer finds a lost update, with one preemption and not without") {
    const auto explored = [](explorer::limits bounds) {
        explorer world;
        return world.explore(bounds, [&] { return std::make_unique<lost_update>(world); });
    };
    CHECK(explored({}).failure == "lost");
    CHECK(explored({.merge_states = false}).failure == "lost");
    CHECK(explored({.preemptions = 1}).failure == "lost");
    CHECK(explored({.preemptions = 0}).failure == "");
    const std::string trace = explored({}).trace;
    CAPTURE(trace);
    CHECK(trace.find("store atomic 0 := 1") != std::string::npos);
}

// ---- the ring of the library --------------------------------------------------------------------

TEST_CASE("every schedule of one publisher and one reader that wrap the ring many times") {
    check_sound(explore_ring({.capacity = 2, .publishers = {7}, .readers = {7}, .tries = 7}));
    check_sound(explore_ring({.capacity = 1, .publishers = {5}, .readers = {5}, .tries = 5}));
    check_sound(explore_ring({.capacity = 4, .publishers = {9}, .readers = {9}, .tries = 2}));
}

TEST_CASE("no schedule lets a publisher lap a reader that reads nothing") {
    for (const std::size_t capacity : {1U, 2U, 4U}) {
        CAPTURE(capacity);
        check_sound(explore_ring({.capacity = capacity,
                                  .publishers = {capacity + 2},
                                  .readers = {capacity + 2, 0},
                                  .tries = 2}));
    }
}

TEST_CASE("no schedule lets a publisher lap a slow reader") {
    check_sound(explore_ring({.publishers = {5}, .readers = {5, 1}, .tries = 3}));
    check_sound(explore_ring({.publishers = {5}, .readers = {5, 5}, .tries = 1}));
}

TEST_CASE("every schedule of two publishers and one reader") {
    check_sound(explore_ring({.capacity = 1, .publishers = {2, 1}, .readers = {3}, .tries = 2}));
    check_sound(explore_ring({.capacity = 2, .publishers = {2, 2}, .readers = {4}, .tries = 1}));
    check_sound(explore_ring({.capacity = 2, .publishers = {1, 3}, .readers = {3}, .tries = 2},
                             {.preemptions = 3}));
}

TEST_CASE("a weak compare and exchange may fail for no reason") {
    check_sound(explore_ring({.publishers = {2, 2}, .readers = {4}},
                             {.preemptions = 3, .spurious_failures = 1}));
}

TEST_CASE("three publishers and two readers, up to two preemptions") {
    check_sound(explore_ring({.publishers = {1, 1, 1}, .readers = {3, 3}}, {.preemptions = 2}));
}

TEST_CASE("two publishers and two readers at capacity two, every schedule") {
    // Some seconds, several times as many if instrumented; then three preemptions must do.
    explorer::limits bounds;
    if (slow_build) bounds.preemptions = 3;
    check_sound(explore_ring({.capacity = 2, .publishers = {2, 2}, .readers = {4, 4}}, bounds));
}

TEST_CASE("stale loads make no ring lose, repeat or overwrite") {
    check_sound(explore_ring({.capacity = 1, .publishers = {2, 1}, .readers = {3}, .tries = 2},
                             {.preemptions = slow_build ? 2U : 3U, .stale_loads = 2}));
    check_sound(explore_ring({.capacity = 2, .publishers = {2, 2}, .readers = {4, 4}},
                             {.preemptions = slow_build ? 1U : 2U, .stale_loads = 1}));
}

TEST_CASE("a reader that sleeps is woken, or comes back by itself") {
    check_sound(explore_sleep({.publishers = {2}}, {.stale_loads = 2}));
    check_sound(explore_sleep({.publishers = {1, 1}},
                              {.preemptions = slow_build ? 2U : 4U, .stale_loads = 2}));
    check_sound(explore_sleep({.capacity = 1, .publishers = {2}}, {.stale_loads = 2}));
    // Without stale loads nobody looks too early.
    check_sound(explore_sleep({.publishers = {1, 1}, .comes_back = false}, {}));
}

TEST_CASE("full() says yes only if a publisher would have found no room during the call") {
    check_sound(explore_ring(
        {.capacity = 2, .publishers = {1, 1}, .readers = {2}, .tries = 1, .watcher = true}));
    check_sound(explore_ring(
        {.capacity = 1, .publishers = {3}, .readers = {3}, .tries = 2, .watcher = true}));
}

// ---- negative control ---------------------------------------------------------------------------

enum class fault {
    none,
    sequence_before_value,  // handed over before it is there
    relaxed_sequence,       // handed over, but the value may arrive later
    cursor_before_value,    // given back before it was read
    relaxed_cursor,         // given back, but the read may happen later
    relaxed_gate,           // what one publisher knows of the readers does not reach the other
    one_too_many,           // room for one more than there are slots
    one_too_few,            // no room for as many as there are slots
    claim_without_exchange, // two publishers get one place
    first_reader_only,      // the others may be lapped
    old_gate_is_full,       // no room, without a look at where the readers are by now
    old_tail_is_full,       // no room, seen from a tail that has moved on
};

/// The ring in its smallest form, with one fault.
template <fault Fault>
class faulty_ring {
public:
    faulty_ring(std::size_t capacity, std::size_t readers) : slots_(capacity), cursors_(readers) {}

    std::optional<std::uint64_t> try_publish(model_value value) {
        const std::uint64_t room =
            capacity() + (Fault == fault::one_too_many) - (Fault == fault::one_too_few);
        std::uint64_t claimed = tail_.load(relaxed);
        for (;;) {
            if (claimed - gate_.load(acquire) >= room) {
                if (Fault == fault::old_gate_is_full && gate_.load(acquire) != 0)
                    return std::nullopt;
                const std::uint64_t reached = slowest();
                if (claimed - reached >= room) {
                    const std::uint64_t seen = std::exchange(claimed, tail_.load(relaxed));
                    if (seen == claimed || Fault == fault::old_tail_is_full) return std::nullopt;
                    continue;
                }
                raise_gate(reached);
            }
            if (claim(claimed)) break;
        }
        slot& place = slots_[claimed % capacity()];
        if (Fault != fault::sequence_before_value) place.value = value;
        place.sequence.store(claimed + 1, Fault == fault::relaxed_sequence ? relaxed : release);
        if (Fault == fault::sequence_before_value) place.value = value;
        return claimed;
    }

    std::optional<model_value> try_read(std::size_t reader) {
        model_atomic<std::uint64_t>& mine = cursors_[reader];
        const std::uint64_t next = mine.load(relaxed);
        slot& place = slots_[next % capacity()];
        if (place.sequence.load(acquire) != next + 1) return std::nullopt;
        if (Fault == fault::cursor_before_value) mine.store(next + 1, release);
        const model_value value = place.value;
        if (Fault != fault::cursor_before_value)
            mine.store(next + 1, Fault == fault::relaxed_cursor ? relaxed : release);
        return value;
    }

private:
    static constexpr auto relaxed = std::memory_order_relaxed;
    static constexpr auto acquire = std::memory_order_acquire;
    static constexpr auto release = std::memory_order_release;
    static constexpr auto acq_rel = std::memory_order_acq_rel;

    struct slot {
        model_atomic<std::uint64_t> sequence{0};
        model_value value{};
    };

    std::uint64_t capacity() const { return slots_.size(); }

    bool claim(std::uint64_t& place) {
        if (Fault != fault::claim_without_exchange)
            return tail_.compare_exchange_weak(place, place + 1, relaxed);
        const bool unmoved = tail_.load(relaxed) == place;
        if (unmoved)
            tail_.store(place + 1, relaxed);
        else
            place = tail_.load(relaxed);
        return unmoved;
    }

    void raise_gate(std::uint64_t to) {
        constexpr auto order = Fault == fault::relaxed_gate ? relaxed : acq_rel;
        std::uint64_t gate = gate_.load(relaxed);
        while (gate < to && !gate_.compare_exchange_weak(gate, to, order)) {}
    }

    std::uint64_t slowest() const {
        std::uint64_t least = cursors_[0].load(acquire);
        if (Fault != fault::first_reader_only)
            for (std::size_t i = 1; i < cursors_.size(); ++i)
                least = std::min(least, cursors_[i].load(acquire));
        return least;
    }

    std::vector<slot> slots_;
    std::vector<model_atomic<std::uint64_t>> cursors_;
    model_atomic<std::uint64_t> tail_{0};
    model_atomic<std::uint64_t> gate_{0};
};

const ring_plan two_by_two{.capacity = 2, .publishers = {2, 2}, .readers = {4, 4}};

template <fault Fault>
void check_found(const std::string& what, std::string_view symptom,
                 explorer::limits bounds = {.preemptions = 2}, const ring_plan& plan = two_by_two) {
    CAPTURE(what);
    const exploration result = explore_ring<faulty_ring<Fault>>(plan, bounds);
    MESSAGE(what << ": schedule " << result.schedules << ", " << result.failure);
    CHECK(result.failure.find(symptom) != std::string::npos);
    CHECK(result.trace.find("FAILED: " + result.failure) != std::string::npos);
}

TEST_CASE("the explorer has nothing against the small ring without a fault") {
    check_sound(explore_ring<faulty_ring<fault::none>>(two_by_two, {.preemptions = 2}));
    check_sound(explore_ring<faulty_ring<fault::none>>(
        two_by_two, {.preemptions = 2, .interleave_values = true}));
}

TEST_CASE("the explorer finds faults in what the calls answer") {
    const explorer::limits content{.preemptions = 2, .interleave_values = true};
    check_found<fault::sequence_before_value>("sequence before value", "for sequence", content);
    check_found<fault::cursor_before_value>("cursor before value", "for sequence", content);
    check_found<fault::claim_without_exchange>("claim without exchange", "given twice", content);
    check_found<fault::one_too_many>("one too many", "was published while", content);
    check_found<fault::first_reader_only>("first reader only", "reader 1", content);
    check_found<fault::one_too_few>("one too few", "there was room all the time", content);
    check_found<fault::old_gate_is_full>("old gate is full", "less room than", content);
    // One publisher must be overtaken by three values of the other, each of which is read at once.
    check_found<fault::old_tail_is_full>("old tail is full", "there was room all the time",
                                         {.preemptions = 3},
                                         {.publishers = {1, 3}, .readers = {3}, .tries = 2});
}

TEST_CASE("the explorer finds faults in the order of memory as data races") {
    check_found<fault::relaxed_sequence>("relaxed sequence", "data race");
    check_found<fault::relaxed_cursor>("relaxed cursor", "data race");
    check_found<fault::relaxed_gate>("relaxed gate", "data race");
    check_found<fault::sequence_before_value>("sequence before value", "data race");
    check_found<fault::cursor_before_value>("cursor before value", "data race");
    check_found<fault::claim_without_exchange>("claim without exchange", "data race");
    check_found<fault::one_too_many>("one too many", "data race");
}

// ---- weaker orders ------------------------------------------------------------------------------

/// The atomics of the ring at capacity 2 with two readers, or one and a sleeper, as the explorer
/// numbers them: each slot has a value, too.
constexpr std::size_t sequences = 0, cursors = 4;
constexpr std::size_t tail_of(std::size_t readers) { return cursors + readers; }
constexpr std::size_t gate_of(std::size_t readers) { return tail_of(readers) + 1; }
constexpr std::size_t awake = gate_of(1) + 1;

std::string weakened_ring(weakening by) {
    return explore_ring(two_by_two, {.preemptions = 2, .weaker = by}).failure;
}

std::string weakened_sleep(weakening by) {
    return explore_sleep({.publishers = {1}}, {.stale_loads = 2, .weaker = by}).failure;
}

TEST_CASE("each memory order of the ring is needed") {
    constexpr auto relaxed = std::memory_order_relaxed;
    const auto check_raced = [](const char* what, weakening by) {
        CAPTURE(what);
        CHECK(weakened_ring(by).find("data race") != std::string::npos);
    };
    using enum operation;
    check_raced("hand-over", {sequences, cursors, store, relaxed});
    check_raced("read", {sequences, cursors, load, relaxed});
    check_raced("giving back", {cursors, tail_of(2), store, relaxed});
    check_raced("looking at the readers", {cursors, tail_of(2), load, relaxed});
    check_raced("passing on where the readers are", {gate_of(2), gate_of(2) + 1, modify, relaxed});
    check_raced("looking at the gate", {gate_of(2), gate_of(2) + 1, load, relaxed});
}

TEST_CASE("each memory order of the sleep is needed") {
    const auto check_lost = [](const char* what, weakening by) {
        CAPTURE(what);
        CHECK(weakened_sleep(by) == "the reader sleeps, and nobody wakes it");
    };
    using enum operation;
    check_lost("claim", {tail_of(1), tail_of(1) + 1, modify, std::memory_order_acq_rel});
    check_lost("published()", {tail_of(1), tail_of(1) + 1, load, std::memory_order_acquire});
    check_lost("prepare_to_sleep()", {awake, awake + 1, store, std::memory_order_release});
    check_lost("must_wake()", {awake, awake + 1, load, std::memory_order_acquire});
}

TEST_CASE("the explorer finds a reader that sleeps when it must not") {
    const auto failure = [](const sleep_plan& plan) {
        return explore_sleep(plan, {.stale_loads = 2}).failure;
    };
    CHECK(failure({.publishers = {1}, .asks_first = true}).find("sleeps") != std::string::npos);
    CHECK(failure({.publishers = {1}, .comes_back = false}).find("sleeps") != std::string::npos);
}

} // namespace

} // namespace ring_model_test
