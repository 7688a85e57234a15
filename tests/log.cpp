// log.cpp - covers >>frame and >>log: a message as shared immutable bytes, its references, and the
// bounded history of a worker. Leaks and early releases are for the address sanitizer to see.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace std::string_literals;
using namespace std::string_view_literals;
using sse::detail::frame;
using sse::detail::frame_log;
using sse::detail::frame_ref;
using sse::detail::make_frame;
using sse::detail::make_raw_frame;

// ---- frame --------------------------------------------------------------------------------------

TEST_CASE("a frame holds its topic and the message as it stands in the stream") {
    const sse::message m{.event = "price", .data = "1\n2", .id = "7"};
    const frame_ref f = make_frame(frame::kind::topic, "/metals/gold", m);
    CHECK(f->what() == frame::kind::topic);
    CHECK(f->topic() == "/metals/gold");
    CHECK(f->bytes() == sse::encode(m));
}

TEST_CASE("a frame for everyone has no topic") {
    const frame_ref f = make_frame(frame::kind::everyone, {}, {.data = "x"});
    CHECK(f->what() == frame::kind::everyone);
    CHECK(f->topic().empty());
    CHECK(f->bytes() == "data: x\n\n");
}

TEST_CASE("a raw frame holds the bytes as they are") {
    const frame_ref f = make_raw_frame("HTTP/1.1 200 OK\r\n\0\xff"sv);
    CHECK(f->what() == frame::kind::raw);
    CHECK(f->topic().empty());
    CHECK(f->bytes() == "HTTP/1.1 200 OK\r\n\0\xff"sv);
    CHECK(make_raw_frame("")->bytes().empty());
}

TEST_CASE("a frame does not need the texts that it was made of") {
    frame_ref f;
    {
        const std::string topic = "/a/topic/that/lives/on/the/heap";
        const std::string data(1000, 'x');
        f = make_frame(frame::kind::topic, topic, {.data = data});
    }
    CHECK(f->topic() == "/a/topic/that/lives/on/the/heap");
    CHECK(f->bytes() == "data: " + std::string(1000, 'x') + "\n\n");
}

TEST_CASE("frames of every size hold their topic and their bytes apart") {
    for (std::size_t topic_size = 0; topic_size < 20; ++topic_size) {
        for (std::size_t size = 0; size < 20; ++size) {
            const std::string topic(topic_size, 't');
            const frame_ref f(frame::make(frame::kind::topic, topic, size));
            for (std::size_t i = 0; i < size; ++i) f->writable()[i] = 'b';
            CHECK(f->topic() == topic);
            CHECK(f->bytes() == std::string(size, 'b'));
        }
    }
}

TEST_CASE("a bad message makes no frame") {
    const auto make = [](const sse::message& m) { (void)make_frame(frame::kind::topic, "/a", m); };
    CHECK_THROWS_AS(make({.event = "a\nb"}), std::system_error);
    CHECK_THROWS_AS(make({.id = "a\rb"}), std::system_error);
    CHECK_THROWS_AS(make({}), std::system_error);
}

// ---- references ---------------------------------------------------------------------------------

TEST_CASE("an empty reference refers to nothing and may be copied and moved") {
    frame_ref none;
    CHECK(!none);
    CHECK(none.get() == nullptr);
    const frame_ref copy = none; // NOLINT: the copy is the test
    const frame_ref moved = std::move(none);
    CHECK(!copy);
    CHECK(!moved);
}

TEST_CASE("a copied reference keeps the frame alive, a moved one passes it on") {
    frame_ref first = make_raw_frame("shared");
    frame* const address = first.get();
    frame_ref second = first;
    CHECK(second.get() == address);
    first = frame_ref();
    CHECK(second->bytes() == "shared");
    frame_ref third = std::move(second);
    CHECK(!second); // NOLINT: a moved-from reference is empty, and the library relies on it
    CHECK(third.get() == address);
    CHECK((*third).bytes() == "shared");
    third = make_raw_frame("other");
    CHECK(third->bytes() == "other");
}

TEST_CASE("a reference assigned to itself stays") {
    frame_ref f = make_raw_frame("mine");
    const frame_ref& same = f;
    f = same;
    CHECK(f->bytes() == "mine");
}

TEST_CASE("a released reference leaves the frame to its caller") {
    frame_ref f = make_raw_frame("handed over");
    frame* const given = f.release();
    CHECK(!f);
    const frame_ref adopted(given);
    CHECK(adopted->bytes() == "handed over");
}

TEST_CASE("a frame lives until each of its announced holders has dropped it") {
    frame* const shared = make_raw_frame("for three workers").release();
    shared->set_references(3);
    std::vector<frame_ref> workers;
    for (int i = 0; i < 3; ++i) workers.emplace_back(shared);
    workers.pop_back();
    workers.pop_back();
    CHECK(workers.front()->bytes() == "for three workers");
}

TEST_CASE("a default reference is cheap and cannot throw when it moves") {
    static_assert(sizeof(frame_ref) == sizeof(void*));
    static_assert(std::is_nothrow_move_constructible_v<frame_ref>);
    static_assert(std::is_nothrow_copy_constructible_v<frame_ref>);
    static_assert(!std::is_copy_constructible_v<frame> && !std::is_copy_assignable_v<frame>);
}

TEST_CASE("threads: workers may copy and drop references to one frame at the same time") {
    for (int round = 0; round < 200; ++round) {
        frame_ref first = make_raw_frame("shared by threads");
        std::vector<std::thread> workers;
        for (int w = 0; w < 3; ++w) {
            workers.emplace_back([mine = first] {
                for (int i = 0; i < 100; ++i) {
                    const frame_ref copy = mine;
                    if (copy->bytes().size() != 17) FAIL_CHECK("changed");
                }
            });
        }
        first = frame_ref();
        for (std::thread& w : workers) w.join();
    }
}

// ---- log ----------------------------------------------------------------------------------------

namespace {

constexpr std::size_t no_bound = 1'000'000;

/// A frame of that many bytes.
frame_ref frame_of(std::size_t size) { return make_raw_frame(std::string(size, 'x')); }

void push_numbers(frame_log& log, std::uint64_t first, std::uint64_t end) {
    for (std::uint64_t n = first; n < end; ++n) log.push(make_raw_frame(std::to_string(n)));
}

void check_holds(const frame_log& log, std::uint64_t begin, std::uint64_t end) {
    CHECK(log.begin() == begin);
    CHECK(log.end() == end);
}

/// The frame of each sequence is the one that push_numbers() made for it.
void check_holds_numbers(const frame_log& log, std::uint64_t begin, std::uint64_t end) {
    check_holds(log, begin, end);
    for (std::uint64_t n = begin; n < end; ++n) {
        CHECK(log[n].bytes() == std::to_string(n));
        CHECK(log.ref(n)->bytes() == std::to_string(n));
    }
}

} // namespace

TEST_CASE("a new log is empty") { check_holds(frame_log(4, 100), 0, 0); }

TEST_CASE("a log numbers its frames from zero") {
    frame_log log(10, no_bound);
    push_numbers(log, 0, 5);
    check_holds_numbers(log, 0, 5);
}

TEST_CASE("a log forgets the oldest frames over its number, and the others keep theirs") {
    frame_log log(3, no_bound);
    push_numbers(log, 0, 5);
    check_holds_numbers(log, 0, 5); // nothing is forgotten before it is asked
    log.trim(log.end());
    check_holds_numbers(log, 2, 5);
    push_numbers(log, 5, 105);
    log.trim(log.end());
    check_holds_numbers(log, 102, 105);
}

TEST_CASE("a log forgets the oldest frames over its bytes") {
    frame_log log(no_bound, 100);
    for (int i = 0; i < 4; ++i) log.push(frame_of(25));
    log.trim(log.end());
    check_holds(log, 0, 4); // 100 bytes are within 100
    log.push(frame_of(1));
    log.trim(log.end());
    check_holds(log, 1, 5);
    log.push(frame_of(99));
    log.trim(log.end());
    check_holds(log, 4, 6);
    log.push(frame_of(101)); // too large for any log: not even it stays
    log.trim(log.end());
    check_holds(log, 7, 7);
}

TEST_CASE("a log counts the bytes of messages, not of topics") {
    frame_log log(no_bound, 18);
    for (int i = 0; i < 2; ++i) {
        log.push(make_frame(frame::kind::topic, std::string(50, 't'), {.data = "x"})); // 9 bytes
    }
    log.trim(log.end());
    check_holds(log, 0, 2);
}

TEST_CASE("a log keeps what it is asked to keep, whatever its bounds") {
    frame_log log(2, 3);
    push_numbers(log, 0, 10);
    log.trim(0);
    check_holds_numbers(log, 0, 10);
    log.trim(4);
    check_holds_numbers(log, 4, 10);
    log.trim(3); // long forgotten: no reason to forget more, or to fail
    check_holds_numbers(log, 4, 10);
    log.trim(9);
    check_holds_numbers(log, 8, 10); // 2 frames are within the bounds
}

TEST_CASE("a log that may keep more than it is asked to keeps it") {
    frame_log log(5, no_bound);
    push_numbers(log, 0, 4);
    log.trim(4);
    check_holds_numbers(log, 0, 4);
}

TEST_CASE("a log of no size forgets all that nobody needs") {
    frame_log log(0, 0);
    push_numbers(log, 0, 3);
    log.trim(2);
    check_holds_numbers(log, 2, 3);
    log.trim(3);
    check_holds(log, 3, 3);
    push_numbers(log, 3, 5);
    check_holds_numbers(log, 3, 5);
}

TEST_CASE("a frame outlives its place in the log for who still refers to it") {
    frame_log log(1, no_bound);
    push_numbers(log, 0, 1);
    const frame_ref half_sent = log.ref(0);
    push_numbers(log, 1, 3);
    log.trim(3);
    check_holds_numbers(log, 2, 3);
    CHECK(half_sent->bytes() == "0");
}

TEST_CASE("a log agrees with a slow reference over random operations") {
    support::dice dice(20250124);
    for (int round = 0; round < 100; ++round) {
        const std::size_t max_frames = dice.below(20);
        const std::size_t max_bytes = dice.below(200);
        frame_log log(max_frames, max_bytes);
        std::vector<std::size_t> sizes; // of all frames ever pushed
        std::size_t oldest = 0;         // the first one kept
        for (int step = 0; step < 200; ++step) {
            CAPTURE(round);
            CAPTURE(step);
            if (!dice.one_in(3)) {
                sizes.push_back(dice.below(30));
                log.push(frame_of(sizes.back()));
            } else {
                const std::size_t keep = dice.below(sizes.size() + 1);
                const auto fits = [&] {
                    std::size_t bytes = 0;
                    for (std::size_t i = oldest; i < sizes.size(); ++i) bytes += sizes[i];
                    return sizes.size() - oldest <= max_frames && bytes <= max_bytes;
                };
                while (oldest < keep && !fits()) ++oldest;
                log.trim(keep);
            }
            check_holds(log, oldest, sizes.size());
            if (oldest < sizes.size()) {
                const std::size_t any = dice.between(oldest, sizes.size() - 1);
                CHECK(log[any].bytes().size() == sizes[any]);
            }
        }
    }
}
