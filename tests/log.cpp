// log.cpp - covers >>frame, >>log: a message as shared immutable bytes, its names, its references,
// and the bounded history of a worker. What the history does at random is compared with a model
// that keeps everything and looks through all of it. Leaks, early releases and names that outlive
// their frame are for the address sanitizer to see.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace log_test {

using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace std::string_view_literals;
using sse::detail::frame;
using sse::detail::frame_log;
using sse::detail::frame_ref;
using sse::detail::make_frame;
using sse::detail::make_raw_frame;
using sse::detail::topic_bits;
using sse::detail::topic_set;
using sse::detail::user_topic;
using histories = std::vector<sse::topic_history>;
using loss = frame_log::loss;

// ---- frame --------------------------------------------------------------------------------------

TEST_CASE("a frame holds its names and the message as it stands in the stream") {
    const sse::message m{.event = "price", .data = "1\n2", .id = "7", .key = "gold"};
    const frame_ref f = make_frame(frame::kind::topic, "/metals", m);
    CHECK(f->type() == frame::kind::topic);
    CHECK(f->topic() == "/metals");
    CHECK(f->key() == "gold");
    CHECK(f->event() == "price");
    CHECK(f->own_id() == "7");
    CHECK(f->bytes() == sse::encode(m));
    CHECK(f->message() == sse::encode(m));
    CHECK(!f->ephemeral());
}

TEST_CASE("a frame for everyone has no topic, and only the names that were given") {
    const frame_ref f = make_frame(frame::kind::everyone, {}, {.data = "x"});
    CHECK(f->type() == frame::kind::everyone);
    CHECK(f->topic().empty());
    CHECK(f->key().empty());
    CHECK(f->event().empty());
    CHECK(f->own_id().empty());
    CHECK(f->bytes() == "data: x\n\n");
}

TEST_CASE("a raw frame holds the bytes as they are") {
    const frame_ref f = make_raw_frame("HTTP/1.1 200 OK\r\n\0\xff"sv);
    CHECK(f->type() == frame::kind::raw);
    CHECK(f->topic().empty());
    CHECK(!f->has_id());
    CHECK(f->bytes() == "HTTP/1.1 200 OK\r\n\0\xff"sv);
    CHECK(f->message() == f->bytes());
    CHECK(make_raw_frame("")->bytes().empty());
}

TEST_CASE("a frame does not need the texts that it was made of") {
    frame_ref f;
    {
        const std::string topic = "/a/topic/that/lives/on/the/heap";
        const std::string key = "a key that lives on the heap, too";
        const std::string data(1000, 'x');
        f = make_frame(frame::kind::topic, topic, {.data = data, .key = key});
    }
    CHECK(f->topic() == "/a/topic/that/lives/on/the/heap");
    CHECK(f->key() == "a key that lives on the heap, too");
    CHECK(f->bytes() == "data: " + std::string(1000, 'x') + "\n\n");
}

TEST_CASE("frames of every size hold their names and their bytes apart, stamped or not") {
    for (std::size_t shape = 0; shape < 3 * 3 * 3 * 3 * 4 * 2; ++shape) {
        CAPTURE(shape);
        std::size_t rest = shape;
        const auto take = [&](std::size_t n) { return std::exchange(rest, rest / n) % n; };
        const std::string topic(take(3) * 9, 't'), key(take(3), 'k'), event(take(3) * 4, 'e');
        const std::string own_id(take(3), 'i'), bytes(take(4) * 7, 'b');
        const bool wants_id = take(2) == 1;
        const frame::names names{topic, key, event, own_id};
        const frame_ref f(frame::make(frame::kind::topic, names, bytes.size(), wants_id));
        std::copy(bytes.begin(), bytes.end(), f->writable());
        for (const bool stamped : {false, true}) {
            if (stamped) f->stamp("01234567", ~std::uint64_t{0}); // the longest there is
            CHECK(f->topic() == topic);
            CHECK(f->key() == key);
            CHECK(f->event() == event);
            CHECK(f->own_id() == own_id);
            CHECK(f->message() == bytes);
            CHECK(f->bytes().size() == bytes.size() + (stamped && wants_id ? 34 : 0));
        }
    }
}

TEST_CASE("a stamped frame begins with the server's own id, as long as its number is") {
    constexpr std::array<std::uint64_t, 6> numbers{
        1, 9, 10, 99, 4'294'967'296, std::numeric_limits<std::uint64_t>::max()};
    for (const std::uint64_t number : numbers) {
        CAPTURE(number);
        const frame_ref f = make_frame(frame::kind::topic, "/a",
                                       {.event = "e", .data = "1\n2", .comment = "c", .key = "k"});
        const std::string message(f->bytes());
        CHECK(!f->has_id());
        f->stamp("w3xk5ab0", number);
        CHECK(f->bytes() == "id: w3xk5ab0-" + std::to_string(number) + "\n" + message);
        CHECK(f->message() == message);
        CHECK(f->has_id());
        CHECK(f->own_id().empty());
        CHECK(f->topic() == "/a");
        CHECK(f->key() == "k");
        CHECK(f->event() == "e");
    }
}

TEST_CASE("no id is put before one of the program's own, nor where nobody can resume") {
    const auto stays = [](const frame_ref& f) {
        const std::string bytes(f->bytes());
        f->stamp("w3xk5ab0", 12);
        CHECK(f->bytes() == bytes);
        CHECK(f->message() == bytes);
    };
    const frame_ref own = make_frame(frame::kind::topic, "/a", {.data = "x", .id = "mine"});
    stays(own);
    CHECK(own->has_id());
    const frame_ref reset = make_frame(frame::kind::topic, "/a", {.data = "x", .id = ""});
    stays(reset);
    CHECK(!reset->has_id()); // it stands for no place: the client has none to come back to
    const frame_ref cursor =
        make_frame(frame::kind::everyone, {}, {.data = "x", .ephemeral = true});
    stays(cursor);
    CHECK(!cursor->has_id());
    const frame_ref one = make_frame(frame::kind::stream, {}, {.data = "x"});
    stays(one);
    CHECK(!one->has_id());
    stays(make_raw_frame("x"));
}

TEST_CASE("a frame is ephemeral when its message is, or when it is for one stream alone") {
    CHECK(make_frame(frame::kind::topic, "/a", {.data = "x", .ephemeral = true})->ephemeral());
    CHECK(!make_frame(frame::kind::user, user_topic("u"), {.data = "x"})->ephemeral());
    const frame_ref f = make_frame(frame::kind::stream, {}, {.data = "x", .id = "mine"});
    f->set_stream(17);
    CHECK(f->ephemeral());
    CHECK(f->stream() == 17);
    CHECK(f->own_id() == "mine");
}

TEST_CASE("a bad message makes no frame") {
    const auto make = [](const sse::message& m) { (void)make_frame(frame::kind::topic, "/a", m); };
    CHECK_THROWS_AS(make({.event = "a\nb"}), std::system_error);
    CHECK_THROWS_AS(make({.id = "a\rb"}), std::system_error);
    CHECK_THROWS_AS(make({}), std::system_error);
    CHECK_THROWS_AS(make({.key = "k"}), std::system_error); // a key alone says nothing
    CHECK_THROWS_AS(make({.data = "x", .id = "1", .ephemeral = true}), std::system_error);
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
    frame* const given = f.detach();
    CHECK(!f);
    const frame_ref adopted(given);
    CHECK(adopted->bytes() == "handed over");
}

TEST_CASE("a frame lives until each of its announced holders has dropped it") {
    frame* const shared = make_raw_frame("for three workers").detach();
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

// ---- log ----------------------------------------------------------------------------------------

namespace {

/// A frame of that many bytes.
frame_ref frame_of(std::size_t size) { return make_raw_frame(std::string(size, 'x')); }

frame_ref on(std::string_view topic, sse::message m = {}) {
    if (!m.data) m.data = "x"; // 9 bytes
    return make_frame(frame::kind::topic, topic, m);
}

frame_ref keyed(std::string_view key, std::string_view topic = "/a") {
    return on(topic, {.key = key});
}

void push(frame_log& log, frame_ref f, std::uint32_t now = 0) {
    const std::size_t size = f->bytes().size();
    CHECK(log.push_from([&] { return std::move(f); }, now) == size);
}

void push_numbers(frame_log& log, std::uint64_t first, std::uint64_t end) {
    for (std::uint64_t n = first; n < end; ++n) push(log, make_raw_frame(std::to_string(n)));
}

struct lost {
    std::uint64_t sequence;
    loss kind;
    friend auto operator<=>(const lost&, const lost&) = default;
};

std::string text(const std::vector<lost>& all) {
    std::string out;
    for (const lost& one : all) {
        out += out.empty() ? "" : ", ";
        out += std::to_string(one.sequence) + (one.kind == loss::each ? " each" : " anyone");
    }
    return out;
}

/// What the log told of. What it tells of is still there, for the last time.
std::vector<lost> trim_to(frame_log& log, std::uint64_t keep, std::uint32_t now) {
    std::vector<lost> all;
    log.trim(keep, now, [&](const frame& f, std::uint64_t sequence, loss kind) {
        if (log.ref(sequence).get() != &f) FAIL_CHECK("told of another frame, or too late");
        all.push_back({sequence, kind});
    });
    return all;
}

std::string trim(frame_log& log, std::uint64_t keep, std::uint32_t now = 0) {
    return text(trim_to(log, keep, now));
}
std::string trim(frame_log& log) { return trim(log, log.end()); }

/// The sequences that are kept, from the first on.
std::string kept(const frame_log& log, bool newest = false) {
    std::string out;
    for (std::uint64_t at = log.next(0, newest); at < log.end(); at = log.next(at + 1, newest)) {
        out += (out.empty() ? "" : " ") + std::to_string(at);
    }
    return out;
}
std::string kept_or_newest(const frame_log& log) { return kept(log, true); }

/// All of [begin, end) is kept, and nothing else.
void check_holds(const frame_log& log, std::uint64_t begin, std::uint64_t end) {
    CHECK(log.end() == end);
    CHECK(log.next(0) == begin);
    CHECK(log.previous(begin) == std::nullopt);
    for (std::uint64_t n = begin; n < end; ++n) {
        CHECK(log.next(n) == n);
        CHECK(log.previous(n + 1) == n);
    }
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

TEST_CASE("a new log is empty") {
    const frame_log log(histories{{.messages = 4}});
    check_holds(log, 0, 0);
    CHECK(log.bytes_from(0) == 0);
    CHECK(log.first_since(7) == 0);
    CHECK(log.horizon_of("").hides(loss::each, 0) == 0);
    CHECK(!log.find_id(""));
}

TEST_CASE("a log numbers its frames from zero, and says how large they are") {
    frame_log log(histories{{.messages = 10}});
    push_numbers(log, 0, 5);
    check_holds_numbers(log, 0, 5);
    CHECK(log.push_from([] { return frame_of(17); }, 0) == 17u);
    CHECK(log.push_from([] { return frame_of(0); }, 0) == 0u);
    check_holds(log, 0, 7);
}

TEST_CASE("a log appends nothing when there is nothing to take") {
    frame_log log(histories{{.messages = 10}});
    CHECK(log.push_from([] { return frame_ref(); }, 0) == std::nullopt);
    check_holds(log, 0, 0);
    push_numbers(log, 0, 2);
    CHECK(log.push_from([]() -> frame* { return nullptr; }, 0) == std::nullopt);
    check_holds_numbers(log, 0, 2);
}

// ---- bounds -------------------------------------------------------------------------------------

TEST_CASE("a log forgets the oldest frames over its number, and the others keep theirs") {
    frame_log log(histories{{.messages = 3}});
    push_numbers(log, 0, 5);
    check_holds_numbers(log, 0, 5); // nothing is forgotten before it is asked
    CHECK(trim(log) == "0 anyone, 1 anyone");
    check_holds_numbers(log, 2, 5);
    push_numbers(log, 5, 105);
    trim(log);
    check_holds_numbers(log, 102, 105);
}

TEST_CASE("a log forgets the oldest frames over its bytes") {
    frame_log log(histories{{.messages = 1000, .bytes = 100}});
    for (int i = 0; i < 4; ++i) push(log, frame_of(25));
    CHECK(trim(log) == ""); // 100 bytes are within 100
    push(log, frame_of(1));
    CHECK(trim(log) == "0 anyone");
    check_holds(log, 1, 5);
    push(log, frame_of(99));
    CHECK(trim(log) == "1 anyone, 2 anyone, 3 anyone");
    check_holds(log, 4, 6);
    push(log, frame_of(101)); // too large for any log: not even it stays
    trim(log);
    check_holds(log, 7, 7);
}

TEST_CASE("a log counts the bytes of messages with their ids, not of names") {
    frame_log log(histories{{.messages = 10, .bytes = 9 + 23}});
    push(log, keyed("a key of which nothing is sent", "/" + std::string(50, 't')));
    frame_ref stamped = on("/a");
    stamped->stamp("w3xk5ab0", 123456789); // 23 bytes more
    push(log, std::move(stamped));
    CHECK(trim(log) == "0 each");
    push(log, frame_of(0));
    CHECK(trim(log) == "");
    CHECK(log.bytes_from(1) == 9 + 23);
}

TEST_CASE("a log forgets what is too old, whether or not something comes") {
    frame_log log(histories{{.messages = 10, .age = 100ms}});
    push(log, frame_of(1), 1000);
    push(log, frame_of(1), 1000);
    push(log, frame_of(1), 1050);
    CHECK(trim(log, 3, 1099) == "");
    CHECK(trim(log, 3, 1101) == "0 anyone, 1 anyone");
    check_holds(log, 2, 3);
    CHECK(trim(log, 3, 100'000) == "2 anyone");
    check_holds(log, 3, 3);
}

TEST_CASE("a log forgets by age while its clock wraps") {
    frame_log log(histories{{.messages = 10, .age = 100ms}});
    const std::uint32_t start = 0u - 50; // 50 ms before the clock is 0
    push(log, frame_of(1), start);
    push(log, frame_of(1), start + 60);
    CHECK(trim(log, 2, start + 99) == "");
    CHECK(trim(log, 2, start + 101) == "0 anyone");
    CHECK(trim(log, 2, start + 161) == "1 anyone");
}

TEST_CASE("a log without an age never forgets by it") {
    frame_log log(histories{{.messages = 10}});
    push(log, frame_of(1), 0);
    CHECK(trim(log, 1, 0x7fff'ffff) == "");
    CHECK(trim(log, 1, 0xffff'ffff) == "");
    check_holds(log, 0, 1);
}

TEST_CASE("a log keeps what it is asked to keep, whatever its bounds") {
    frame_log log(histories{{.messages = 2, .bytes = 3}});
    push_numbers(log, 0, 10);
    trim(log, 0);
    check_holds_numbers(log, 0, 10);
    trim(log, 4);
    check_holds_numbers(log, 4, 10);
    trim(log, 3); // long forgotten: no reason to forget more, or to fail
    check_holds_numbers(log, 4, 10);
    trim(log, 9);
    check_holds_numbers(log, 8, 10); // 2 frames are within the bounds
}

TEST_CASE("a log keeps what it is asked to keep, however old") {
    frame_log log(histories{{.messages = 10, .age = 10ms}});
    push_numbers(log, 0, 4);
    CHECK(trim(log, 0, 1000) == "");
    CHECK(trim(log, 2, 1000) == "0 anyone, 1 anyone");
    check_holds_numbers(log, 2, 4);
    CHECK(trim(log, 4, 1000) == "2 anyone, 3 anyone");
}

TEST_CASE("a log that may keep more than it is asked to keeps it") {
    frame_log log(histories{{.messages = 5}});
    push_numbers(log, 0, 4);
    trim(log);
    check_holds_numbers(log, 0, 4);
}

TEST_CASE("a log of no size forgets all that nobody needs") {
    frame_log log(histories{{.messages = 0, .bytes = 0}});
    push_numbers(log, 0, 3);
    trim(log, 2);
    check_holds_numbers(log, 2, 3);
    trim(log, 3);
    check_holds(log, 3, 3);
    push_numbers(log, 3, 5);
    check_holds_numbers(log, 3, 5);
}

TEST_CASE("a frame outlives its place in the log for who still refers to it") {
    frame_log log(histories{{.messages = 1}});
    push_numbers(log, 0, 1);
    const frame_ref half_sent = log.ref(0);
    push_numbers(log, 1, 3);
    trim(log);
    check_holds_numbers(log, 2, 3);
    CHECK(half_sent->bytes() == "0");
}

// ---- bounds by topic ----------------------------------------------------------------------------

TEST_CASE("a topic with bounds of its own keeps more than the server does") {
    frame_log log(histories{{.messages = 2}, {.topic = "/rare", .messages = 4}});
    CHECK(log.has_bounds_by_topic());
    for (int i = 0; i < 4; ++i) push(log, on("/rare"));
    for (int i = 0; i < 100; ++i) push(log, on("/often"));
    trim(log);
    CHECK(kept(log) == "0 1 2 3 102 103");
    CHECK(log.begin() > 50); // what stays long costs nothing for all that came since
    push(log, on("/rare"));
    CHECK(trim(log) == "0 anyone");
    CHECK(kept(log) == "1 2 3 102 103 104");
    CHECK(log[1].topic() == "/rare");
    CHECK(log.ref(3)->topic() == "/rare");
}

TEST_CASE("a topic with bounds of its own keeps less than the server does, and takes no room") {
    frame_log log(histories{{.messages = 3}, {.topic = "/noise", .messages = 1}});
    for (int i = 0; i < 3; ++i) push(log, on("/a"));
    for (int i = 0; i < 10; ++i) push(log, on("/noise"));
    trim(log);
    CHECK(kept(log) == "0 1 2 12");
    push(log, on("/a"));
    CHECK(trim(log) == "0 anyone");
    CHECK(kept(log) == "1 2 12 13");
}

TEST_CASE("a topic whose bound is nothing is not kept") {
    frame_log log(histories{{.messages = 3}, {.topic = "/noise", .messages = 0}});
    push(log, on("/noise"));
    push(log, on("/a"));
    push(log, on("/noise"));
    CHECK(trim(log, 2) == "0 anyone");
    CHECK(kept(log) == "1 2"); // not yet had by everyone
    CHECK(trim(log, 3) == "2 anyone");
    CHECK(kept(log) == "1");
}

TEST_CASE("topics have bounds of bytes and of age of their own") {
    frame_log log(histories{{.messages = 10, .age = 50ms},
                            {.topic = "/small", .messages = 10, .bytes = 18},
                            {.topic = "/brief", .messages = 10, .age = 10ms},
                            {.topic = "/long", .messages = 10}});
    for (int i = 0; i < 3; ++i) push(log, on("/small"));
    push(log, on("/brief"));
    push(log, on("/long"));
    push(log, on("/other"));
    CHECK(trim(log, 6, 0) == "0 anyone");
    CHECK(trim(log, 6, 11) == "3 anyone");
    CHECK(trim(log, 6, 51) == "5 anyone");
    CHECK(kept(log) == "1 2 4");
}

TEST_CASE("of several bounds the nearest counts, by whole segments") {
    for (const bool turned : {false, true}) { // however they are ordered
        histories all{
            {.messages = 1}, {.topic = "/a", .messages = 2}, {.topic = "/a/b", .messages = 3}};
        if (turned) std::swap(all[1], all[2]);
        frame_log log(all);
        CHECK(log.bounds().messages == 1);
        for (const char* const topic : {"/a", "/a/b", "/a/b/c", "/ab", "/a/bc", ""}) {
            for (int i = 0; i < 4; ++i) push(log, on(topic));
        }
        trim(log);
        // "/a" and "/a/bc" share one bound, "/a/b" and "/a/b/c" another, "/ab" and "" the server's.
        CHECK(kept(log) == "9 10 11 18 19 23");
    }
}

TEST_CASE("what is not published to a topic is within the server's bounds") {
    frame_log log(histories{{.messages = 1}, {.topic = "/a", .messages = 5}});
    push(log, make_frame(frame::kind::everyone, {}, {.data = "x"}));
    push(log, make_frame(frame::kind::user, user_topic("a"), {.data = "x"}));
    CHECK(trim(log) == "0 anyone");
    push(log, on("/a"));
    push(log, on("/b"));
    CHECK(trim(log) == "1 anyone");
    CHECK(kept(log) == "2 3");
}

// ---- ephemeral messages -------------------------------------------------------------------------

TEST_CASE("ephemeral messages push no others out, however many they are") {
    frame_log log(histories{{.messages = 2}, {.topic = "/a", .messages = 2}});
    CHECK(log.is_plain());
    push(log, on("/a"));
    push(log, on("/b"));
    CHECK(log.is_plain());
    for (int i = 0; i < 50; ++i) push(log, on("/a", {.ephemeral = true}));
    CHECK(!log.is_plain());
    for (int i = 0; i < 50; ++i) push(log, make_frame(frame::kind::stream, {}, {.data = "x"}));
    trim(log);
    CHECK(kept(log) == "0 1 100 101");                   // as many again of them
    CHECK(log.horizon_of("").hides(loss::each, 0) == 0); // nothing that could be replayed
}

TEST_CASE("ephemeral messages with keys push out none that is the newest of its key") {
    frame_log log(histories{{.messages = 2}});
    push(log, keyed("gold"));
    push(log, keyed("tin"));
    push(log, on("/b"));
    push(log, on("/b"));
    CHECK(trim(log) == "0 each, 1 each");
    for (const char* const key : {"1", "2", "3", "4", "5", "6"}) {
        push(log, on("/a", {.key = key, .ephemeral = true}));
    }
    trim(log);
    CHECK(log.next(0, true) == 0);
    CHECK(log.next(1, true) == 1);
    CHECK(log.horizon_of("/a").hides(loss::anyone, 0) == 0);
}

TEST_CASE("an ephemeral message supersedes none that may be replayed") {
    // Who comes back gets no ephemeral ones: it would have neither, and not be told.
    frame_log log(histories{{.messages = 2}});
    push(log, keyed("gold"));
    push(log, on("/a", {.key = "gold", .ephemeral = true}));
    CHECK(!log.superseded(0));
    push(log, on("/a", {.key = "gold", .ephemeral = true}));
    CHECK(log.superseded(1)); // but one of its own
    push(log, on("/b"));
    push(log, on("/b"));
    CHECK(trim(log, 3) == "0 each");
    CHECK(log.next(0, true) == 0);
}

// ---- own ids ------------------------------------------------------------------------------------

TEST_CASE("a log finds the message to which the program gave an id") {
    frame_log log(histories{{.messages = 10}});
    push(log, on("/a"));
    push(log, on("/a", {.id = "x"}));
    push(log, on("/b", {.id = "y"}));
    push(log, on("/b", {.id = ""}));
    CHECK(log.find_id("x") == 1u);
    CHECK(log.find_id("y") == 2u);
    CHECK(!log.find_id("z"));
    CHECK(!log.find_id(""));
}

TEST_CASE("of two messages with one id the first is found, as long as it is kept") {
    frame_log log(histories{{.messages = 2}});
    push(log, on("/a", {.id = "x"}));
    push(log, on("/a", {.id = "x"}));
    CHECK(log.find_id("x") == 0u); // who resumes after it misses nothing
    push(log, on("/a"));
    trim(log);
    CHECK(!log.find_id("x"));
    push(log, on("/a", {.id = "x"}));
    CHECK(log.find_id("x") == 3u); // and its name is that of a frame that lives
    trim(log);
    CHECK(log.find_id("x") == 3u); // though another of that id was forgotten
}

TEST_CASE("an id is forgotten with its message") {
    frame_log log(histories{{.messages = 1}, {.topic = "/long", .messages = 5}});
    push(log, on("/long", {.id = "stays"}));
    push(log, on("/a", {.id = "goes"}));
    push(log, on("/a", {.id = "kept for its key", .key = "k"}));
    for (int i = 0; i < 20; ++i) push(log, on("/a"));
    trim(log);
    CHECK(log.find_id("stays") == 0u);
    CHECK(!log.find_id("goes"));
    CHECK(!log.find_id("kept for its key")); // those between it and what is kept are gone
}

TEST_CASE("ids of what is not replayed are not found") {
    frame_log log(histories{{.messages = 5}});
    push(log, make_frame(frame::kind::stream, {}, {.data = "x", .id = "x"}));
    CHECK(!log.find_id("x"));
    push(log, on("/a", {.id = "x"}));
    CHECK(log.find_id("x") == 1u);
}

// ---- keys ---------------------------------------------------------------------------------------

TEST_CASE("a message is superseded by a newer one of its topic and key") {
    frame_log log(histories{{.messages = 10}});
    push(log, keyed("gold"));
    push(log, keyed("tin"));
    push(log, keyed("gold", "/b"));
    push(log, keyed(""));
    push(log, keyed(""));
    push(log, keyed("gold"));
    CHECK(log.superseded(0));
    for (const std::uint64_t n : {1u, 2u, 3u, 4u, 5u}) CHECK(!log.superseded(n));
    push(log, keyed("gold"));
    CHECK(log.superseded(5));
    CHECK(kept(log) == "0 1 2 3 4 5 6"); // for those who want each
}

TEST_CASE("a message supersedes none that others get") {
    frame_log log(histories{{.messages = 10}});
    push(log, make_frame(frame::kind::everyone, {}, {.data = "x", .key = "k"}));
    push(log, on("", {.key = "k"})); // the root's own subscribers get it, and no others
    CHECK(!log.superseded(0));
    const frame_ref alone = make_frame(frame::kind::stream, {}, {.data = "x", .key = "k"});
    alone->set_stream(1);
    push(log, alone);
    CHECK(!log.superseded(0));
    CHECK(!log.superseded(1));
    push(log, make_frame(frame::kind::user, user_topic("u"), {.data = "x", .key = "k"}));
    push(log, make_frame(frame::kind::user, user_topic("v"), {.data = "x", .key = "k"}));
    CHECK(!log.superseded(3));
    push(log, make_frame(frame::kind::everyone, {}, {.data = "x", .key = "k"}));
    CHECK(log.superseded(0));
    CHECK(!log.superseded(1));
}

TEST_CASE("the newest of its key stays beside the bounds, for those who want only that") {
    frame_log log(histories{{.messages = 2}});
    push(log, keyed("gold"));
    push(log, keyed("gold"));
    push(log, keyed("tin"));
    push(log, on("/a"));
    push(log, on("/a"));
    CHECK(trim(log) == "0 each, 1 each, 2 each"); // who wants the newest has lost nothing
    CHECK(kept(log) == "3 4");
    CHECK(kept_or_newest(log) == "1 2 3 4");
    CHECK(log[1].key() == "gold");
    CHECK(log.previous(3) == std::nullopt);
}

TEST_CASE("one that was kept for its key goes when a newer one comes") {
    frame_log log(histories{{.messages = 1}});
    push(log, keyed("gold"));
    push(log, on("/a"));
    CHECK(trim(log) == "0 each");
    CHECK(kept_or_newest(log) == "0 1");
    push(log, keyed("gold"));
    CHECK(kept_or_newest(log) == "1 2"); // it was told of when its bounds let go of it
    CHECK(trim(log) == "1 anyone");
    for (int i = 0; i < 20; ++i) push(log, on("/a"));
    trim(log);
    CHECK(kept_or_newest(log) == "2 22"); // out of the window
    push(log, keyed("gold"));
    CHECK(kept_or_newest(log) == "22 23");
    push(log, keyed("gold"));
    CHECK(log.superseded(23)); // by the name of a frame that lives
}

TEST_CASE("the newest of too many keys are lost to anyone, the oldest first") {
    frame_log log(histories{{.messages = 2}});
    for (const char* const key : {"1", "2", "3", "4"}) push(log, keyed(key));
    CHECK(trim(log) == "0 each, 1 each");
    push(log, keyed("5"));
    CHECK(trim(log) == "2 each, 0 anyone");
    CHECK(kept_or_newest(log) == "1 2 3 4");
    CHECK(log.horizon_of("/a").hides(loss::each, 0) == 3);
    CHECK(log.horizon_of("/a").hides(loss::anyone, 0) == 1);
    push(log, keyed("1"));
    push(log, keyed("1"));
    CHECK(log.superseded(5)); // forgotten keys may come again
    CHECK(trim(log) == "3 each, 4 each, 1 anyone, 2 anyone");
    CHECK(kept_or_newest(log) == "3 4 5 6");
}

TEST_CASE("those kept for their key are as many bytes as the server keeps, too") {
    frame_log log(histories{{.messages = 10, .bytes = 20}, {.topic = "/a", .messages = 0}});
    for (const char* const key : {"1", "2", "3"}) push(log, keyed(key)); // 9 bytes each
    CHECK(trim(log) == "0 each, 1 each, 2 each, 0 anyone");
    CHECK(kept_or_newest(log) == "1 2");
}

TEST_CASE("a log that shall keep more than it has keeps what it has for its key") {
    frame_log log(histories{{.messages = 1}});
    push(log, keyed("1"));
    push(log, keyed("2"));
    CHECK(trim(log, 2) == "0 each");
    push(log, keyed("3"));
    push(log, on("/a"));
    CHECK(trim(log, 0) == ""); // somebody came who waits for all since
    CHECK(kept_or_newest(log) == "0 1 2 3");
    CHECK(trim(log, 2) == "1 each, 0 anyone");
    CHECK(trim(log, 1) == "");
    CHECK(trim(log, 4) == "2 each, 1 anyone");
    CHECK(kept_or_newest(log) == "2 3");
}

// ---- places -------------------------------------------------------------------------------------

namespace {

/// Keeps 1, 3 (for its key), 5 and 6 before its window, and 8 and 9 of 10 in it. Frame n came at
/// 100 n and has n bytes more than 9.
frame_log log_with_gaps() {
    frame_log log(histories{{.messages = 1}, {.topic = "/long", .messages = 10}});
    for (std::size_t n = 0; n < 10; ++n) {
        const std::string data(n + 1, 'x');
        const bool stays = n == 1 || n == 5 || n == 6 || n == 8;
        const std::string_view key = n == 3 ? "k" : "";
        push(log, on(stays ? "/long" : "/a", {.data = data, .key = key}),
             static_cast<std::uint32_t>(100 * n));
    }
    trim(log, log.end(), 900);
    return log;
}

/// The last 6,000 of 10,000 messages, to 1,000 topics in turn.
frame_log log_of_topics() {
    frame_log log(histories{{"", 6'000, 1 << 20, 0ms}});
    for (int n = 0; n < 10'000; ++n) push(log, on("/t/" + std::to_string(n % 1'000)));
    trim(log);
    return log;
}

} // namespace

TEST_CASE("a log that is searched for a topic leaves out most of the others, from the second time "
          "on") {
    frame_log log = log_of_topics();
    const auto search = [&](std::string_view topic) {
        std::vector<std::uint64_t> found;
        std::size_t looks = 0;
        const topic_set only(topic_bits(topic, false));
        const auto next = [&](std::uint64_t at) { return log.next_for(only, at); };
        for (std::uint64_t at = next(0); at < log.end(); at = next(at + 1), ++looks) {
            if (log[at].topic() == topic) found.push_back(at);
        }
        return std::pair(found, looks);
    };
    std::vector<std::uint64_t> due;
    for (std::uint64_t n = 4'007; n < 10'000; n += 1'000) due.push_back(n);
    CHECK(search("/t/7") == std::pair(due, std::size_t{6'000})); // and notes whose each is
    const auto [found, looks] = search("/t/7");
    CHECK(found == due);
    CHECK(looks < 200);
    CHECK(search("/none").second < 200);

    for (int n = 0; n < 500; ++n) push(log, on("/t/7"));
    trim(log); // the notes move with the frames
    std::erase_if(due, [&](std::uint64_t n) { return n < log.next(0); });
    for (std::uint64_t n = 10'000; n < 10'500; ++n) due.push_back(n);
    CHECK(search("/t/7").first == due);
    CHECK(search("/t/8").first == std::vector<std::uint64_t>{5'008, 6'008, 7'008, 8'008, 9'008});
}

TEST_CASE("a log that is searched backwards for a topic leaves out most of the others, from the "
          "second time on") {
    const frame_log log = log_of_topics();
    const auto search = [&](std::string_view topic) {
        std::vector<std::uint64_t> found;
        std::size_t looks = 0;
        const topic_set only(topic_bits(topic, false));
        for (auto at = log.previous(log.end(), only); at; at = log.previous(*at, only), ++looks) {
            if (log[*at].topic() == topic) found.push_back(*at);
        }
        return std::pair(found, looks);
    };
    const std::vector<std::uint64_t> due{9'007, 8'007, 7'007, 6'007, 5'007, 4'007};
    CHECK(search("/t/7") == std::pair(due, std::size_t{6'000})); // and notes whose each is
    const auto [found, looks] = search("/t/7");
    CHECK(found == due);
    CHECK(looks < 200);
    CHECK(search("/none").second < 200);
    const topic_set all_of_them;
    CHECK(log.previous(log.end(), all_of_them) == 9'999u);
}

TEST_CASE("a log that is searched for a topic does not search all of itself in one call") {
    frame_log log(histories{{"", 10'000, 1 << 20, 0ms}});
    for (int n = 0; n < 10'000; ++n) push(log, on("/a"));
    const topic_set other(topic_bits("/b", false));
    for (std::uint64_t at = 0; at < log.end(); ++at) CHECK(log.next_for(other, at) == at);
    CHECK(log.next_for(other, 0) == 1'024);
    CHECK(log.next_for(other, 9'500) == log.end());
}

TEST_CASE("a log steps forwards and backwards over what it forgot") {
    const frame_log log = log_with_gaps();
    CHECK(log.begin() > 3); // so that both of its parts are walked through
    CHECK(log.begin() <= 8);
    CHECK(kept(log) == "1 5 6 8 9");
    CHECK(kept_or_newest(log) == "1 3 5 6 8 9");
    CHECK(log.next(2) == 5);
    CHECK(log.next(2, true) == 3);
    CHECK(log.next(7) == 8);
    CHECK(log.next(10) == 10);
    CHECK(log.next(11) == 10);
    CHECK(log.previous(100) == 9u);
    CHECK(log.previous(9) == 8u);
    CHECK(log.previous(8) == 6u);
    CHECK(log.previous(6) == 5u);
    CHECK(log.previous(5) == 1u);
    CHECK(log.previous(1) == std::nullopt);
    CHECK(log.previous(0) == std::nullopt);
}

TEST_CASE("a log finds what came since a time") {
    const frame_log log = log_with_gaps();
    CHECK(log.next(log.first_since(0)) == 1);
    CHECK(log.next(log.first_since(100)) == 1);
    CHECK(log.next(log.first_since(101)) == 5);
    CHECK(log.next(log.first_since(101), true) == 3);
    CHECK(log.next(log.first_since(500)) == 5);
    CHECK(log.next(log.first_since(501)) == 6);
    CHECK(log.next(log.first_since(601)) == 8);
    CHECK(log.first_since(900) == 9);
    CHECK(log.first_since(901) == 10);
    CHECK(log.first_since(0u - 100) <= 1); // before the clock was 0
}

TEST_CASE("a log finds what came since a time while its clock wraps") {
    frame_log log(histories{{.messages = 10}});
    for (std::uint32_t n = 0; n < 4; ++n) push(log, frame_of(1), n * 100 - 150);
    CHECK(log.first_since(0u - 151) == 0);
    CHECK(log.first_since(0u - 149) == 1);
    CHECK(log.first_since(0u - 1) == 2);
    CHECK(log.first_since(50) == 2);
    CHECK(log.first_since(51) == 3);
    CHECK(log.first_since(151) == 4);
}

TEST_CASE("a log finds what came since a time also when the oldest came months ago") {
    constexpr std::uint32_t hour = 3'600'000;
    frame_log log(histories{{.messages = 10}});
    push(log, frame_of(1), 0);
    std::uint32_t now = 0;
    for (int hours = 0; hours < 24 * 70; ++hours) { // its owner comes by all the time
        now += hour;
        CHECK(trim(log, log.end(), now) == "");
        if (hours % 240 == 0) CHECK(log.first_since(now - hour / 2) == 1);
    }
    push(log, frame_of(1), now);
    CHECK(log.first_since(now) == 1);
    CHECK(log.first_since(now - hour) == 1);
    CHECK(log.first_since(now + 1) == 2);
}

TEST_CASE("a log knows the bytes and the time of what it keeps, in either of its parts") {
    const frame_log log = log_with_gaps();
    std::uint64_t bytes = 0; // from n on
    for (std::uint64_t n = 10; n-- > 0;) {
        CAPTURE(n);
        bytes += 9 + n;
        if (log.next(n, true) != n) continue; // forgotten: then it knows it only nearly
        CHECK(log.bytes_from(n) == bytes);
        CHECK(log.time_of(n) == 100 * n);
    }
    CHECK(log.bytes_from(10) == 0);
    CHECK(log.bytes_from(11) == 0);
    CHECK(log.bytes_from(0) >= bytes - 9);
    CHECK(log.bytes_from(0) <= bytes);
}

TEST_CASE("a log that forgot everything still says when a message came, as nearly as it knows") {
    frame_log log(histories{{.messages = 10, .age = 10ms}});
    push(log, frame_of(1), 100);
    push(log, frame_of(1), 105);
    trim(log, 2, 500);
    check_holds(log, 2, 2);
    for (const std::uint64_t n : {0u, 1u}) { // asked for the lag of who stands there
        CHECK(log.time_of(n) >= 100);
        CHECK(log.time_of(n) <= 500);
        CHECK(log.bytes_from(n) <= 2);
    }
}

TEST_CASE("a log says before which place something for a topic is missing") {
    frame_log log(histories{{.messages = 2},
                            {.topic = "/a", .messages = 1},
                            {.topic = "/a/b", .messages = 1},
                            {.topic = "/c/d", .messages = 1}});
    const auto missing = [&](std::string_view topic, loss kind = loss::each) {
        return log.horizon_of(topic).hides(kind, 0);
    };
    for (const char* const topic : {"/a", "/a/b", "/c/d", "/x", "/y"}) {
        for (int i = 0; i < 2; ++i) push(log, on(topic)); // 0 1, 2 3, 4 5, 6 7, 8 9
    }
    trim(log);
    CHECK(missing("/a/b/c") == 3);
    CHECK(missing("/a/b") == 3);
    CHECK(missing("/a") == 3); // what is below it, too
    CHECK(missing("/a/x") == 1);
    CHECK(missing("/ab") == 8); // the server's own bounds let go of 6 and 7
    CHECK(missing("/c/d/e") == 5);
    CHECK(missing("/c") == 8);
    CHECK(missing("") == 8);
    CHECK(missing(user_topic("a")) == 8);
    CHECK(missing("/a/b", loss::anyone) == 3);
}

TEST_CASE("a log says how far back who wants only the newest of each key has lost nothing") {
    frame_log log(histories{{.messages = 2}});
    const auto missing = [&](loss kind) { return log.horizon_of("/a").hides(kind, 0); };
    for (const char* const key : {"1", "1", "2", "3", "3"}) push(log, keyed(key));
    CHECK(trim(log) == "0 each, 1 each, 2 each");
    CHECK(missing(loss::each) == 3);
    CHECK(missing(loss::anyone) == 0);
    push(log, on("/a"));
    push(log, on("/a"));
    CHECK(trim(log) == "3 each, 4 each, 1 anyone");
    CHECK(missing(loss::each) == 5);
    CHECK(missing(loss::anyone) == 2);
    push(log, on("/a"));
    CHECK(trim(log) == "5 anyone");
    CHECK(missing(loss::each) == 6);
    CHECK(missing(loss::anyone) == 6);
}

// ---- all of it at random ------------------------------------------------------------------------

namespace {

/// What a log promises, by looking through everything that ever came.
class slow_log {
public:
    struct item {
        frame::kind what;
        std::string topic, key, own_id, bytes;
        bool ephemeral = false;
        std::uint64_t time = 0;
        std::size_t shelf = 0; // whose bounds are for it
        bool within = true;    // of them
        bool for_key = false;  // it is out of them, but stays as the newest of its key
        bool superseded = false;
        bool is_named = false;  // its id is its alone: none that had it was there when it came
        bool forgotten = false; // lost to those who want each
        bool dropped = false;   // lost to anyone
    };

    explicit slow_log(histories bounds) : bounds_(std::move(bounds)) {}

    void push(const frame& f, std::uint64_t time) {
        item made{f.type(),
                  std::string(f.topic()),
                  std::string(f.key()),
                  std::string(f.own_id()),
                  std::string(f.bytes()),
                  f.ephemeral(),
                  time};
        made.shelf = shelf_of(made);
        for (item& old : all) {
            if (!replaces(made, old)) continue;
            old.superseded = true;
            old.for_key = false;
        }
        made.is_named = !made.own_id.empty() && !made.ephemeral && !find(made.own_id);
        all.push_back(std::move(made));
    }

    std::vector<lost> trim(std::uint64_t keep, std::uint64_t now) {
        std::vector<lost> out;
        for (std::size_t shelf = 0; shelf <= bounds_.size(); ++shelf) {
            const sse::topic_history& most = bounds_[shelf == bounds_.size() ? 0 : shelf];
            for (std::uint64_t n = 0; n < std::min<std::uint64_t>(keep, all.size()); ++n) {
                item& oldest = all[n];
                if (oldest.shelf != shelf || !oldest.within) continue;
                const auto age = static_cast<std::int64_t>(now - oldest.time);
                const bool old = most.age.count() != 0 && age >= most.age.count();
                const auto [frames, bytes] =
                    sum([&](const item& one) { return one.shelf == shelf && one.within; });
                if (frames <= most.messages && bytes <= most.bytes && !old) break;
                oldest.within = false;
                oldest.forgotten = true;
                oldest.for_key = has_key(oldest) && !oldest.superseded && !oldest.ephemeral;
                oldest.dropped = !oldest.for_key && !oldest.superseded;
                out.push_back({n, oldest.dropped ? loss::anyone : loss::each});
            }
        }
        for (std::uint64_t n = 0; n < std::min<std::uint64_t>(keep, all.size()); ++n) {
            const auto [frames, bytes] = sum([](const item& one) { return one.for_key; });
            if (frames <= bounds_[0].messages && bytes <= bounds_[0].bytes) break;
            if (!all[n].for_key) continue;
            all[n].for_key = false;
            all[n].dropped = true;
            out.push_back({n, loss::anyone});
        }
        return out;
    }

    /// How the log differs from this, or nothing. `base` is the time of the first frame.
    std::string difference(const frame_log& log, std::uint64_t base) const {
        const std::uint64_t end = all.size();
        if (log.end() != end) return "end";
        if (log.begin() > end) return "begin";
        std::optional<std::uint64_t> previous;
        for (std::uint64_t n = 0; n <= end + 1; ++n) {
            const std::string here = " at " + std::to_string(n);
            if (log.next(n) != next(n, false)) return "next" + here;
            if (log.next(n, true) != next(n, true)) return "next newest" + here;
            if (log.previous(n) != previous) return "previous" + here;
            if (n < end && all[n].within) previous = n;
            if (n >= end) continue;
            if (!is_near(log, n)) return "bytes or time" + here;
            if (!all[n].within && !all[n].for_key) continue;
            if (log[n].bytes() != all[n].bytes) return "bytes" + here;
            if (log.superseded(n) != all[n].superseded) return "superseded" + here;
        }
        for (const char* const id : {"", "x", "y", "z"}) {
            if (log.find_id(id) != find(id)) return "id "s + id;
        }
        const std::uint64_t last = all.empty() ? base : all.back().time;
        for (std::uint64_t t = base - 1; t <= last + 1; ++t) {
            if (!starts_at(t, log.first_since(static_cast<std::uint32_t>(t)))) {
                return "since " + std::to_string(t - base);
            }
        }
        for (const char* const topic :
             {"", "/a", "/ab", "/a/b", "/a/b/c", "/a/b/c/d", "/c", "/c/d", "/e", "\x1fu"}) {
            if (log.horizon_of(topic).hides(loss::each, 0) != missing(topic, &item::forgotten) ||
                log.horizon_of(topic).hides(loss::anyone, 0) != missing(topic, &item::dropped)) {
                return "missing for "s + topic;
            }
        }
        const std::string found = difference_of_searches(log);
        if (!found.empty()) return found;
        const bool plain = std::none_of(all.begin(), all.end(), [](const item& one) {
            return one.ephemeral || one.what == frame::kind::user;
        });
        return log.is_plain() == plain ? "" : "plain";
    }

    std::vector<item> all;

private:
    /// A search for topics may find more than what is for them, but nothing that is not kept.
    std::string difference_of_searches(const frame_log& log) const {
        const std::vector<std::vector<std::string>> searches{{"/a"},         {"/a/b"},  {"\x1fu"},
                                                             {"/c/d", "/e"}, {"/none"}, {"/a", ""}};
        for (const bool newest : {false, true}) {
            for (const auto& topics : searches) {
                topic_set some;
                for (const std::string& topic : topics) some.add(topic_bits(topic, false));
                for (std::uint64_t n = 0; n <= all.size(); ++n) {
                    std::uint64_t due = next(n, newest);
                    while (due < all.size() && !is_for(all[due], topics)) {
                        due = next(due + 1, newest);
                    }
                    const std::uint64_t found = log.next_for(some, n, newest);
                    if (found < n || found > due || found != next(found, newest)) {
                        return "search for " + topics.front() + " at " + std::to_string(n);
                    }
                    if (newest) continue;
                    std::optional<std::uint64_t> last = log.previous(n);
                    while (last && !is_for(all[*last], topics)) last = log.previous(*last);
                    const auto back = log.previous(n, some);
                    if (back ? *back >= n || back < last || next(*back, false) != *back
                             : last.has_value()) {
                        return "search back for " + topics.front() + " at " + std::to_string(n);
                    }
                }
            }
        }
        return {};
    }
    static bool is_for(const item& one, const std::vector<std::string>& topics) {
        if (one.what != frame::kind::topic && one.what != frame::kind::user) return true;
        return std::any_of(topics.begin(), topics.end(),
                           [&](const auto& topic) { return is_below(one.topic, topic); });
    }

    static bool is_below(std::string_view topic, std::string_view above) {
        return topic == above || topic.starts_with(std::string(above) + "/");
    }
    /// What is for one stream has no name that others could have.
    static bool has_key(const item& one) {
        return !one.key.empty() && one.what != frame::kind::stream;
    }
    /// Who gets the newer one got, or would have got, the older one.
    static bool replaces(const item& newer, const item& older) {
        return has_key(newer) && has_key(older) && newer.what == older.what &&
               newer.topic == older.topic && newer.key == older.key &&
               newer.ephemeral == older.ephemeral;
    }

    std::size_t shelf_of_topic(std::string_view topic) const {
        std::size_t nearest = 0;
        for (std::size_t i = 1; i < bounds_.size(); ++i) {
            if (is_below(topic, bounds_[i].topic) &&
                bounds_[i].topic.size() > bounds_[nearest].topic.size()) {
                nearest = i;
            }
        }
        return nearest;
    }
    std::size_t shelf_of(const item& one) const {
        if (one.ephemeral) return bounds_.size();
        return one.what == frame::kind::topic ? shelf_of_topic(one.topic) : 0;
    }

    template <class Which>
    std::pair<std::size_t, std::size_t> sum(Which which) const {
        std::pair<std::size_t, std::size_t> out;
        for (const item& one : all) {
            if (!which(one)) continue;
            ++out.first;
            out.second += one.bytes.size();
        }
        return out;
    }

    std::uint64_t next(std::uint64_t from, bool newest) const {
        while (from < all.size() && !all[from].within && !(newest && all[from].for_key)) ++from;
        return std::min<std::uint64_t>(from, all.size());
    }

    std::optional<std::uint64_t> find(std::string_view id) const {
        for (std::uint64_t n = 0; n < all.size(); ++n) {
            if (all[n].is_named && all[n].within && all[n].own_id == id) return n;
        }
        return std::nullopt;
    }

    /// What is forgotten counts as if it were the next that is not, or anything between.
    bool is_near(const frame_log& log, std::uint64_t n) const {
        const std::uint64_t follows = next(n, true);
        const auto bytes_from = [&](std::uint64_t from) {
            std::uint64_t bytes = 0;
            for (; from < all.size(); ++from) bytes += all[from].bytes.size();
            return bytes;
        };
        const std::uint64_t bytes = log.bytes_from(n);
        if (bytes < bytes_from(follows) || bytes > bytes_from(n)) return false;
        const std::uint64_t latest = all[std::min<std::uint64_t>(follows, all.size() - 1)].time;
        const std::uint32_t since = log.time_of(n) - static_cast<std::uint32_t>(all[n].time);
        return since <= latest - all[n].time;
    }

    bool starts_at(std::uint64_t time, std::uint64_t place) const {
        for (std::uint64_t n = 0; n < all.size(); ++n) {
            const bool there = all[n].within || all[n].for_key;
            if (there && (all[n].time >= time) != (n >= place)) return false;
        }
        return place <= all.size();
    }

    std::uint64_t missing(std::string_view topic, bool item::*mark) const {
        std::vector<std::size_t> shelves{shelf_of_topic(topic)};
        for (std::size_t i = 1; i < bounds_.size(); ++i) {
            if (is_below(bounds_[i].topic, topic)) shelves.push_back(i);
        }
        std::uint64_t out = 0;
        for (std::uint64_t n = 0; n < all.size(); ++n) {
            const bool concerns =
                std::find(shelves.begin(), shelves.end(), all[n].shelf) != shelves.end();
            if (concerns && all[n].*mark) out = n + 1;
        }
        return out;
    }

    histories bounds_; // the server's own first
};

} // namespace

TEST_CASE("a log agrees with a slow one over random messages, bounds and times") {
    support::dice dice(20250124);
    constexpr std::array topics{"", "/a", "/ab", "/a/b", "/a/b/c", "/c", "/c/d", "/e"};
    constexpr std::array keys{"", "", "k", "l", "m"};
    constexpr std::array ids{"", "x", "y", "z"};
    constexpr std::array<std::size_t, 5> bytes{0, 15, 60, 200, 100'000};
    constexpr std::array ages{0ms, 0ms, 3ms, 10ms, 30ms};
    const auto any_bounds = [&](std::string topic) {
        return sse::topic_history{std::move(topic), dice.below(8), dice.one_of(bytes),
                                  dice.one_of(ages)};
    };
    const auto any_frame = [&](std::uint64_t number) {
        const std::string data(dice.below(30), static_cast<char>('a' + number % 26));
        sse::message m{.data = data, .key = dice.one_of(keys), .ephemeral = dice.one_in(5)};
        if (!m.ephemeral && dice.one_in(3)) m.id = dice.one_of(ids);
        frame_ref f;
        if (dice.one_in(8)) {
            f = make_frame(frame::kind::everyone, {}, m);
        } else if (dice.one_in(8)) {
            f = make_frame(frame::kind::user, user_topic(dice.one_in(2) ? "u" : "v"), m);
        } else if (dice.one_in(8)) {
            f = make_frame(frame::kind::stream, {}, m);
        } else {
            f = make_frame(frame::kind::topic, dice.one_of(topics), m);
        }
        if (dice.one_in(2)) f->stamp("w3xk5ab0", number + 1);
        return f;
    };
    for (int round = 0; round < 1'000; ++round) {
        CAPTURE(round);
        histories bounds{any_bounds("")};
        for (const char* const topic : {"/a/b/c", "/a", "/c", "/a/b"}) {
            if (dice.one_in(3)) bounds.push_back(any_bounds(topic));
        }
        frame_log log(bounds);
        slow_log model(bounds);
        const std::uint64_t base = dice.one_in(2) ? 0x1'0000'0000 - dice.below(40) : 0x1'0000'0001;
        std::uint64_t now = base;
        for (std::size_t step = 0, steps = dice.below(60); step < steps; ++step) {
            CAPTURE(step);
            now += dice.one_in(3) ? dice.below(5) : 0;
            if (!dice.one_in(3)) {
                const frame_ref f = any_frame(log.end());
                model.push(*f, now);
                (void)log.push_from([&] { return f; }, static_cast<std::uint32_t>(now));
            } else { // what must be kept may grow again: one subscribes to what was
                const auto end = static_cast<std::size_t>(log.end());
                const std::uint64_t keep = dice.one_in(2) ? end : dice.below(end + 1);
                std::vector<lost> told = trim_to(log, keep, static_cast<std::uint32_t>(now));
                std::vector<lost> expected = model.trim(keep, now);
                std::sort(told.begin(), told.end());
                std::sort(expected.begin(), expected.end());
                if (told != expected) REQUIRE(text(told) == text(expected));
            }
            const std::string difference = model.difference(log, base);
            if (!difference.empty()) REQUIRE(difference == "");
        }
    }
}

} // namespace log_test
