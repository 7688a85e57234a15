// record.cpp - covers >>record: a message as bytes for a bus and back, what is no record, and the
// tokens by which one that came twice is known.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

namespace record_test {

using namespace std::string_view_literals;
using sse::message;
using sse::detail::decode_record;
using sse::detail::encode_record;
using sse::detail::frame;
using sse::detail::record;
using sse::detail::seen_tokens;

namespace {

void check_same(const record& a, const record& b) {
    CHECK(a.what == b.what);
    CHECK(a.topic == b.topic);
    CHECK(a.content.event == b.content.event);
    CHECK(a.content.data == b.content.data);
    CHECK(a.content.id == b.content.id);
    CHECK(a.content.retry == b.content.retry);
    CHECK(a.content.comment == b.content.comment);
    CHECK(a.content.key == b.content.key);
    CHECK(a.content.ephemeral == b.content.ephemeral);
    CHECK(a.mark.node == b.mark.node);
    CHECK(a.mark.count == b.mark.count);
}

void check_round_trip(const record& r) {
    const std::string bytes = encode_record(r);
    const auto back = decode_record(bytes);
    REQUIRE(back);
    check_same(*back, r);
    for (std::size_t size = 0; size < bytes.size(); ++size) { // cut anywhere it is none
        REQUIRE(!decode_record(std::string_view(bytes).substr(0, size)));
    }
    CHECK(!decode_record(bytes + "x"));
}

} // namespace

TEST_SUITE_BEGIN("record");

TEST_CASE("what is put in comes out") {
    check_round_trip({frame::kind::topic, "/prices/gold", {.data = "1"}, {1, 2}});
    check_round_trip({frame::kind::everyone, "", {.event = "e", .data = "a\nb", .key = "k"}, {}});
    check_round_trip({frame::kind::user,
                      "\x1f"
                      "anna",
                      {.comment = "c"},
                      {~0ull, ~0ull}});
    check_round_trip({frame::kind::topic,
                      "",
                      {.data = "", .id = "", .retry = std::chrono::milliseconds(70'000)},
                      {}});
    check_round_trip({frame::kind::topic, "/t", {.data = "x", .ephemeral = true}, {}});
    check_round_trip({frame::kind::topic, "/t", {.data = std::string(300, 'x')}, {}});
}

TEST_CASE("the bytes are those of version 1, which other versions of this library read") {
    const record r{frame::kind::topic, "/t", {.data = "x", .id = "7"}, {1, 0x0203}};
    CHECK(encode_record(r) == "\x01\x01\x03"
                              "\x01\0\0\0\0\0\0\0\x03\x02\0\0\0\0\0\0"
                              "\x02/t\0\0\0\x01"
                              "7\x01x"sv);
}

TEST_CASE("what a program could not publish is no record") {
    const auto is_read = [](frame::kind what, std::string_view topic, const message& m) {
        return decode_record(encode_record({what, topic, m, {}})).has_value();
    };
    CHECK(is_read(frame::kind::topic, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::topic, "t", {.data = "x"}));
    CHECK(!is_read(frame::kind::topic, "/t/../u", {.data = "x"}));
    CHECK(!is_read(frame::kind::everyone, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::user, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::user, "\x1f", {.data = "x"}));
    CHECK(!is_read(frame::kind::stream, "", {.data = "x"}));
    CHECK(!is_read(frame::kind::raw, "", {.data = "x"}));
    CHECK(!is_read(frame::kind::mark, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::topic, "/t", {}));
    CHECK(!is_read(frame::kind::topic, "/t", {.event = "a\nb"}));
    CHECK(!is_read(frame::kind::topic, "/t", {.data = "x", .id = "a\nb"}));
    CHECK(!is_read(frame::kind::topic, "/t", {.data = "x", .id = "7", .ephemeral = true}));
    CHECK(!is_read(frame::kind::topic, "/t",
                   {.retry = message::max_retry + std::chrono::milliseconds(1)}));
    std::string bytes = encode_record({frame::kind::topic, "/t", {.data = "x"}, {}});
    bytes[0] = 2; // a version to come
    CHECK(!decode_record(bytes));
    bytes[0] = 1;
    bytes[2] = 16; // a flag to come
    CHECK(!decode_record(bytes));
    CHECK(!decode_record(""));
}

TEST_CASE("bytes that are changed at random are read as something valid or not at all") {
    support::dice dice(20261130);
    const std::string whole = encode_record(
        {frame::kind::topic, "/prices/gold", {.event = "e", .data = "some text", .id = "77"}, {}});
    for (int i = 0; i < 20'000; ++i) {
        std::string bytes = whole;
        for (std::size_t n = dice.between(1, 4); n > 0; --n)
            bytes[dice.below(bytes.size())] = dice.byte();
        if (const auto r = decode_record(bytes)) {
            CHECK(!check(r->content));
            CHECK(encode_record(*r).size() <= bytes.size());
        }
    }
}

TEST_CASE("a token is new once") {
    seen_tokens seen;
    CHECK(seen.insert({1, 5}));
    CHECK(!seen.insert({1, 5}));
    CHECK(seen.insert({1, 4})); // out of order, but never seen
    CHECK(!seen.insert({1, 4}));
    CHECK(seen.insert({2, 5}));
    CHECK(seen.insert({1, 70'000}));
    CHECK(!seen.insert({1, 70'000}));
    CHECK(seen.insert({1, 69'999}));
    CHECK(seen.insert({1, 70'000 - 65'535}));
    CHECK(!seen.insert({1, 70'000 - 65'535}));
    CHECK(seen.insert({1, ~0ull}));
    CHECK(!seen.insert({1, ~0ull}));
    CHECK(seen.insert({1, ~0ull - 1}));
}

TEST_CASE("what the bus lost was not seen") {
    seen_tokens seen;
    CHECK(seen.insert({1, 1}, 10));
    CHECK(seen.insert({2, 1}, 11));
    CHECK(!seen.insert({2, 1}, 12));
    CHECK(seen.insert({1, 2}, 13));
    CHECK(seen.insert({1, 3})); // not stored
    seen.forget(10);
    CHECK(!seen.insert({1, 1}, 11));
    CHECK(seen.insert({2, 1}, 11));
    CHECK(seen.insert({1, 2}, 12));
    CHECK(!seen.insert({1, 3}));
    seen.next_epoch();
    seen.forget(0); // nothing of this one
    CHECK(!seen.insert({1, 2}, 1));
    CHECK(seen.insert({1, 4}, 1));
    CHECK(seen.insert({1, 100'000}, 2));
    seen.forget(0); // the first of them is out of the window
    CHECK(seen.insert({1, 100'000}, 1));
}

TEST_CASE("tokens of 256 starts of servers are remembered, the least recent is forgotten") {
    seen_tokens seen;
    for (std::uint64_t node = 0; node < 256; ++node) CHECK(seen.insert({node, 1}));
    CHECK(!seen.insert({0, 1})); // heard again: node 1 is now the least recent
    CHECK(seen.insert({256, 1}));
    CHECK(!seen.insert({0, 1}));
    CHECK(seen.insert({1, 1}));
}

TEST_SUITE_END();

} // namespace record_test
