// record.cpp - covers >>record: a message as bytes for a bus and back, what servers tell each
// other, what is neither, and the tokens by which a message that came twice is known.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

namespace record_test {

using namespace std::string_view_literals;
using sse::message;
using sse::detail::decode_notice;
using sse::detail::decode_record;
using sse::detail::decode_streams;
using sse::detail::encode_notice;
using sse::detail::encode_record;
using sse::detail::frame;
using sse::detail::notice;
using sse::detail::put_stream;
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

void check_same(const sse::stream_info& a, const sse::stream_info& b) {
    CHECK(a.id == b.id);
    CHECK(a.user == b.user);
    CHECK(a.topics == b.topics);
    CHECK(a.client == b.client);
    CHECK(a.age == b.age);
    CHECK(a.lag.messages == b.lag.messages);
    CHECK(a.lag.bytes == b.lag.bytes);
    CHECK(a.lag.age == b.lag.age);
    CHECK(a.node == b.node);
}

/// Any bytes: no record, or what a program could have published.
void check_record(std::string_view bytes) {
    const auto r = decode_record(bytes);
    if (!r) return;
    CHECK(!check(r->content));
    const std::string again = encode_record(*r);
    CHECK(again.size() <= bytes.size()); // numbers may come with more bytes than they need
    const auto same = decode_record(again);
    REQUIRE(same);
    check_same(*same, *r);
}

/// Any bytes as the streams of a notice.
void check_streams(std::string_view bytes) {
    const auto streams = decode_streams(bytes, "node");
    if (!streams) return;
    std::string again;
    for (const auto& one : *streams) {
        CHECK(sse::detail::is_stream_id(one.id));
        put_stream(again, one);
    }
    const auto same = decode_streams(again, "node");
    REQUIRE(same);
    REQUIRE(same->size() == streams->size());
    for (std::size_t i = 0; i < same->size(); ++i) check_same(same->at(i), streams->at(i));
}

/// Any bytes: no notice, or what a server could have told. Returns which.
bool check_notice(std::string_view bytes) {
    const auto n = decode_notice(bytes);
    if (!n) return false;
    CHECK(sse::detail::is_notice(bytes));
    CHECK(!decode_record(bytes));
    CHECK(sse::detail::is_node_name(n->name));
    const std::string again = encode_notice(*n);
    CHECK(again.size() <= bytes.size());
    const auto same = decode_notice(again);
    REQUIRE(same);
    CHECK(encode_notice(*same) == again);
    check_streams(n->streams);
    return true;
}

sse::stream_info some_stream() {
    return {.id = (1ull << 53) - 1,
            .user = "anna/b",
            .topics = {"/", "/chat/7"},
            .client = asio::ip::make_address("2001:db8::7"),
            .age = std::chrono::hours(1'000),
            .lag = {3, 1'000'000, std::chrono::milliseconds(7)},
            .node = "hub-1"};
}

std::string streams_of(std::initializer_list<sse::stream_info> all) {
    std::string bytes;
    for (const auto& one : all) put_stream(bytes, one);
    return bytes;
}

/// One of each kind.
std::vector<std::string> notices() {
    using kind = notice::kind;
    const std::string streams = streams_of({some_stream(), {.id = 1}});
    const notice all[] = {
        {.what = kind::here, .node = 1, .name = "hub 1"},
        {.what = kind::gone, .node = ~0ull, .name = std::string_view()},
        {.what = kind::end_stream, .node = 1, .number = 77},
        {.what = kind::end_user, .node = 1, .user = "anna/b"},
        {.what = kind::ask, .node = 1, .number = 5, .user = "anna", .topic = "/chat"},
        {.what = kind::part, .node = 2, .to = 1, .number = 5, .part = 300, .streams = streams},
        {.what = kind::last_part, .node = 2, .to = 1, .number = 5, .part = 301},
    };
    std::vector<std::string> bytes;
    for (const notice& one : all) bytes.push_back(encode_notice(one));
    return bytes;
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

TEST_CASE("what a program could not publish is not a record") {
    const auto is_read = [](frame::kind what, std::string_view topic, const message& m) {
        return decode_record(encode_record({what, topic, m, {}})).has_value();
    };
    CHECK(is_read(frame::kind::topic, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::topic, "t", {.data = "x"}));
    CHECK(!is_read(frame::kind::topic, "/t/../u", {.data = "x"}));
    CHECK(!is_read(frame::kind::everyone, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::user, "/t", {.data = "x"}));
    CHECK(!is_read(frame::kind::user, "\x1f", {.data = "x"}));
    CHECK(is_read(frame::kind::stream, "7", {.data = "x", .ephemeral = true}));
    CHECK(is_read(frame::kind::stream, "9007199254740991", {.data = "x", .ephemeral = true}));
    CHECK(!is_read(frame::kind::stream, "9007199254740992", {.data = "x", .ephemeral = true}));
    CHECK(!is_read(frame::kind::stream, "7", {.data = "x"}));
    for (const char* id : {"", "0", "-7", "7x", "/7"}) {
        CHECK(!is_read(frame::kind::stream, id, {.data = "x", .ephemeral = true}));
    }
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
        check_record(bytes);
    }
}

TEST_CASE("what servers tell each other comes out as it went in; cut anywhere it is nothing") {
    for (const std::string& bytes : notices()) {
        CHECK(sse::detail::is_notice(bytes));
        CHECK(!decode_record(bytes));
        const auto n = decode_notice(bytes);
        REQUIRE(n);
        CHECK(encode_notice(*n) == bytes);
        for (std::size_t size = 0; size < bytes.size(); ++size) {
            REQUIRE(!decode_notice(std::string_view(bytes).substr(0, size)));
        }
        CHECK(!decode_notice(bytes + "x"));
    }
    CHECK(!sse::detail::is_notice(encode_record({frame::kind::mark, "/t", {.data = "x"}, {}})));
    CHECK(!sse::detail::is_notice("\1"));
}

TEST_CASE("streams come out as they went in; cut within one they are none") {
    const std::string bytes = streams_of({some_stream(), {.id = 1}, some_stream()});
    const auto all = decode_streams(bytes, "hub-1");
    REQUIRE(all);
    REQUIRE(all->size() == 3);
    check_same(all->at(0), some_stream());
    check_same(all->at(1), {.id = 1, .node = "hub-1"});
    check_same(all->at(2), some_stream());
    std::size_t whole = 0; // cut between two
    for (std::size_t size = 0; size < bytes.size(); ++size) {
        const auto some = decode_streams(std::string_view(bytes).substr(0, size), "hub-1");
        if (some) check_same(some->empty() ? some_stream() : some->front(), some_stream());
        whole += some ? 1 : 0;
    }
    CHECK(whole == 3); // none, one, two
}

TEST_CASE("topics that would fill a notice are cut, the stream remains") {
    sse::stream_info s = some_stream();
    s.topics.assign(128, "/" + std::string(1'000, 'x'));
    const std::string bytes = streams_of({s});
    CHECK(bytes.size() < sse::detail::max_part);
    const auto all = decode_streams(bytes, "hub-1");
    REQUIRE(all);
    CHECK(all->at(0).topics.size() > 50);
    CHECK(all->at(0).topics.size() < 128);
    CHECK(all->at(0).user == s.user);
}

TEST_CASE("what no server could tell is not a notice") {
    using kind = notice::kind;
    const auto is_read = [](const notice& n) {
        return decode_notice(encode_notice(n)).has_value();
    };
    CHECK(is_read({.what = kind::here, .name = std::string(64, 'x')}));
    CHECK(!is_read({.what = kind::here, .name = std::string(65, 'x')}));
    CHECK(!is_read({.what = kind::here, .name = "a\nb"}));
    CHECK(!is_read({.what = kind::here, .name = "\xc3\xa4"}));
    CHECK(!is_read({.what = kind::here, .streams = "x"}));
    CHECK(!is_read({.what = kind::end_stream}));
    CHECK(!is_read({.what = kind::end_stream, .number = 1ull << 53}));
    CHECK(!is_read({.what = kind::end_user}));
    CHECK(!is_read({.what = kind::end_user, .user = "a\nb"}));
    CHECK(is_read({.what = kind::ask, .topic = "/t"}));
    CHECK(!is_read({.what = kind::ask, .topic = "t"}));
    CHECK(!is_read({.what = kind::ask, .topic = "/t/../u"}));
    CHECK(!is_read({.what = static_cast<kind>(static_cast<int>(kind::last_part) + 1)}));
    CHECK(!is_read({.what = static_cast<kind>(15)}));
    const auto is_stream = [](const sse::stream_info& s) {
        return decode_streams(streams_of({s}), "").has_value();
    };
    CHECK(is_stream({.id = 1}));
    CHECK(!is_stream({.id = 0}));
    CHECK(!is_stream({.id = 1ull << 53}));
    CHECK(!is_stream({.id = 1, .user = "a\nb"}));
    CHECK(is_stream({.id = 1, .topics = {"/t"}}));
    for (const char* topic : {"", "t", "/t/", "//", "/\x1f"}) {
        CHECK(!is_stream({.id = 1, .topics = {topic}}));
    }
    CHECK(!is_stream({.id = 1, .age = std::chrono::milliseconds(1ll << 51)}));
    CHECK(!decode_streams("\1\0\0\0\0\0\3x.y\0"sv, "")); // no address
    CHECK(!decode_streams("\1\0\0\0\0\0\7"
                          "0.0.0.0\xff\xff\xff\xff\xff\xff\1"sv,
                          "")); // more topics than memory holds
}

TEST_CASE("notices that are changed at random are read as something valid or not at all") {
    support::dice dice(20261201);
    const auto all = notices();
    int read = 0;
    for (int i = 0; i < 50'000; ++i) {
        std::string bytes = all[dice.below(all.size())];
        for (std::size_t n = dice.between(1, 4); n > 0; --n)
            bytes[dice.below(bytes.size())] = dice.byte();
        read += check_notice(bytes) ? 1 : 0;
    }
    CHECK(read > 1'000);
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
