// message.cpp - covers >>error, >>message, >>encoding: the wire format to the byte, what is refused
// and how it is explained, and that every message arrives as it was sent: a decoder along the
// standard reads it back. Also that messages can be written straight into co_await expressions.
// "fault n" in a name is a fault of the library that this one succeeds.
#include "sse.hpp"

#include "support/dice.hpp"
#include "support/event_stream.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace message_test {

using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace {

/// What an EventSource gives its page for a text: every line break has become LF. One character at
/// a time, so that it shares no idea with the library.
std::string as_received(std::string_view sent) {
    std::string out;
    bool after_cr = false;
    for (const char c : sent) {
        if (!(c == '\n' && after_cr)) out += c == '\r' ? '\n' : c;
        after_cr = c == '\r';
    }
    return out;
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines(1);
    for (const char c : text) {
        if (c == '\n') {
            lines.emplace_back();
        } else {
            lines.back() += c;
        }
    }
    return lines;
}

/// The only event of a stream that consists of this message.
support::decoded received(const sse::message& m) {
    const auto events = support::decode_event_stream(sse::encode(m));
    REQUIRE(events.size() == 1);
    return events.front();
}

void check_refused(const sse::message& m, sse::errc why) {
    CHECK(sse::check(m) == why);
    std::string encoded;
    try {
        encoded = sse::encode(m);
        FAIL_CHECK("was encoded");
    } catch (const std::system_error& e) { CHECK(e.code() == why); }
    CHECK(encoded.empty());
    CHECK_THROWS_AS(sse::detail::make_frame(sse::detail::frame::kind::everyone, {}, m),
                    std::system_error);
}

/// What encode() says about a message that it refuses.
std::string complaint(const sse::message& m) {
    try {
        (void)sse::encode(m);
    } catch (const std::system_error& e) { return e.what(); }
    return "no complaint";
}

void check_mentions(const std::string& text, std::string_view part) {
    CAPTURE(text);
    CAPTURE(part);
    CHECK(text.find(part) != text.npos);
}

} // namespace

// ---- bytes --------------------------------------------------------------------------------------

TEST_CASE("each field has its line on the wire, with a space after the colon") {
    CHECK(sse::encode({.data = "gold"}) == "data: gold\n\n");
    CHECK(sse::encode({.event = "price", .data = "gold"}) == "event: price\ndata: gold\n\n");
    CHECK(sse::encode({.data = "gold", .id = "7"}) == "id: 7\ndata: gold\n\n");
    CHECK(sse::encode({.data = "gold", .retry = 1500ms}) == "retry: 1500\ndata: gold\n\n");
    CHECK(sse::encode({.data = "gold", .comment = "hello"}) == ": hello\ndata: gold\n\n");
}

TEST_CASE("a message with every field has them in a fixed order") {
    CHECK(sse::encode({.event = "price",
                       .data = "gold\nsilver",
                       .id = "7",
                       .retry = 0ms,
                       .comment = "two\nlines"}) ==
          ": two\n: lines\nevent: price\nid: 7\nretry: 0\ndata: gold\ndata: silver\n\n");
}

TEST_CASE("a message needs no data") {
    CHECK(sse::encode({.id = "7"}) == "id: 7\n\n");
    CHECK(sse::encode({.retry = 3s}) == "retry: 3000\n\n");
    CHECK(sse::encode({.comment = "still here"}) == ": still here\n\n");
}

TEST_CASE("an event without data is sent with empty data, since clients drop it otherwise") {
    CHECK(sse::encode({.event = "ping"}) == "event: ping\ndata: \n\n");
    CHECK(received({.event = "ping"}) == support::decoded{"ping", "", ""});
}

TEST_CASE("data that is empty is an event, data that is absent is none") {
    CHECK(sse::encode({.data = ""}) == "data: \n\n");
    CHECK(received({.data = ""}) == support::decoded{"message", "", ""});
    CHECK(support::decode_event_stream(sse::encode({.id = "7"})).empty());
    CHECK(support::decode_event_stream(sse::encode({.comment = "data: forged"})).empty());
}

TEST_CASE("an id that is empty resets the last event id, an absent one leaves it alone") {
    CHECK(sse::encode({.data = "x", .id = ""}) == "id: \ndata: x\n\n");
    support::event_stream_decoder client;
    client.feed(sse::encode({.data = "first", .id = "7"}));
    client.feed(sse::encode({.data = "second"}));
    CHECK(client.last_event_id() == "7");
    client.feed(sse::encode({.data = "third", .id = ""}));
    CHECK(client.last_event_id().empty());
    CHECK(client.take_events() == std::vector<support::decoded>{{"message", "first", "7"},
                                                                {"message", "second", "7"},
                                                                {"message", "third", ""}});
}

TEST_CASE("the longest retry time is written in full") {
    CHECK(sse::encode({.retry = sse::message::max_retry}) == "retry: 2147483647\n\n");
}

TEST_CASE("a leading space belongs to the data and reaches the client") {
    CHECK(sse::encode({.data = " indented"}) == "data:  indented\n\n");
    CHECK(received({.data = " indented"}).data == " indented");
    CHECK(received({.data = "  twice\n three"}).data == "  twice\n three");
    CHECK(received({.data = " "}).data == " ");
    CHECK(received({.event = " spaced", .data = "x", .id = "7"}) ==
          support::decoded{" spaced", "x", "7"});
}

TEST_CASE("data is split at LF, at CR and at CRLF") {
    CHECK(sse::encode({.data = "a\nb"}) == "data: a\ndata: b\n\n");
    CHECK(sse::encode({.data = "a\rb"}) == "data: a\ndata: b\n\n");
    CHECK(sse::encode({.data = "a\r\nb"}) == "data: a\ndata: b\n\n");
    CHECK(sse::encode({.data = "a\n\rb"}) == "data: a\ndata: \ndata: b\n\n");
    CHECK(sse::encode({.data = "a\r\r\nb"}) == "data: a\ndata: \ndata: b\n\n");
    CHECK(sse::encode({.data = "a\n"}) == "data: a\ndata: \n\n");
    CHECK(sse::encode({.data = "\r\n"}) == "data: \ndata: \n\n");
    CHECK(sse::encode({.data = "\n\n"}) == "data: \ndata: \ndata: \n\n");
}

TEST_CASE("every mix of text, CR and LF arrives with each line break as one LF") {
    constexpr std::string_view letters = "a\r\n";
    std::vector<std::string> texts = {""};
    for (std::size_t i = 0; texts[i].size() < 7; ++i) { // all texts of up to 7 characters
        for (const char c : letters) texts.push_back(texts[i] + c);
    }
    for (const std::string& text : texts) {
        const support::decoded event = received({.data = text});
        if (event.data != as_received(text)) {
            CAPTURE(sse::encode({.data = text}));
            CHECK(event.data == as_received(text));
        }
        CHECK(event.type == "message");
    }
}

TEST_CASE("data cannot forge a field or an event") {
    for (const auto& line_break : {"\n"s, "\r"s, "\r\n"s, "\n\n"s, "\r\r"s, "\r\n\r\n"s}) {
        CAPTURE(line_break.size());
        const std::string attack = "x" + line_break + "event: evil" + line_break + "id: evil" +
                                   line_break + "retry: 1" + line_break + "data: evil";
        support::event_stream_decoder client;
        client.feed(sse::encode({.event = "good", .data = attack, .id = "1"}));
        CHECK(client.take_events() ==
              std::vector<support::decoded>{{"good", as_received(attack), "1"}});
        CHECK(!client.reconnection_time());
    }
}

TEST_CASE("a comment is split like data and cannot forge a field") {
    CHECK(sse::encode({.comment = "a\ndata: evil"}) == ": a\n: data: evil\n\n");
    CHECK(sse::encode({.comment = "a\rdata: evil"}) == ": a\n: data: evil\n\n");
    CHECK(sse::encode({.comment = "a\r\n\r\ndata: evil"}) == ": a\n: \n: data: evil\n\n");
}

TEST_CASE("data may hold any bytes, also NUL and what is no UTF-8") {
    CHECK(sse::encode({.data = "a\0b\xff"sv}) == "data: a\0b\xff\n\n"s);
    CHECK(received({.data = "\0"sv}).data == "\0"s);
    // A byte order mark that opens the stream would be eaten; the field name stands before it.
    CHECK(received({.data = "\xEF\xBB\xBFx"}).data == "\xEF\xBB\xBFx");
}

// ---- refusals -----------------------------------------------------------------------------------

TEST_CASE("an event name or an id with CR, LF or NUL is refused and nothing is encoded") {
    for (const char breaker : "\r\n\0"sv) {
        CAPTURE(static_cast<int>(breaker));
        const std::string alone(1, breaker);
        for (const std::string& text : {alone, alone + "x", "x" + alone, "x" + alone + "data: y"}) {
            check_refused({.event = text}, sse::errc::bad_event);
            check_refused({.event = text, .data = "good"}, sse::errc::bad_event);
            check_refused({.id = text}, sse::errc::bad_id);
            check_refused({.event = "good", .data = "good", .id = text}, sse::errc::bad_id);
        }
    }
}

TEST_CASE("an id that cannot come back in a header field is refused") {
    // Clients that use fetch send U+00FC as one byte, and end at U+65E5.
    std::vector<std::string> bad{" a",           "a ",       " ",
                                 "a\xff",        "\xc3",     "\xc3\xbc",
                                 "\xe6\x97\xa5", "\xc2\x85", std::string(1025, 'a')};
    for (int c = 0; c < 0x20; ++c) bad.push_back("a" + std::string(1, static_cast<char>(c)) + "b");
    bad.push_back("\x7f");
    bad.push_back("a\t");
    for (const std::string& id : bad) {
        CAPTURE(id);
        check_refused({.data = "x", .id = id}, sse::errc::bad_id);
    }
    check_mentions(complaint({.id = "a\f"}), "control character");
    check_mentions(complaint({.id = "a\f"}), "1024 bytes");
    for (const std::string& id :
         {""s, "a b"s, "7-%E2%82%AC"s, "~!\"#$&'()*+,/:;=?@[]"s, std::string(1024, 'a')}) {
        CAPTURE(id);
        CHECK(!sse::check({.data = "x", .id = id}));
    }
}

TEST_CASE("a retry time that is negative, or too long for the clients, is refused") {
    check_refused({.data = "x", .retry = -1ms}, sse::errc::bad_retry);
    check_refused({.retry = std::chrono::milliseconds::min()}, sse::errc::bad_retry);
    CHECK(!sse::check({.retry = 2'147'483'647ms}));
    check_refused({.retry = 2'147'483'648ms}, sse::errc::bad_retry);
}

TEST_CASE("a message without any field is refused") {
    check_refused({}, sse::errc::empty_message);
    check_refused({.event = "", .comment = ""}, sse::errc::empty_message);
}

TEST_CASE("an ephemeral message with an id is refused: nobody can resume after it") {
    CHECK(sse::check({.data = "x", .id = "1", .ephemeral = true}) == sse::errc::ephemeral_id);
    CHECK(!sse::check({.data = "x", .ephemeral = true}));
}

TEST_CASE("a good message passes the check") {
    CHECK(!sse::check({.data = ""}));
    CHECK(!sse::check({.event = "e", .data = "a\r\n\0b"sv, .id = "", .retry = 0ms}));
    CHECK(!sse::check({.comment = "a\r\n\0b"sv}));
}

TEST_CASE("the exception of encode names the cause and the remedy") {
    const std::string event = complaint({.event = "a\rb"});
    check_mentions(event, "event name contains CR, LF or NUL");
    check_mentions(event, "remove them");
    const std::string id = complaint({.id = "a\nb"});
    check_mentions(id, "the id has a control character");
    check_mentions(id, "percent-encoded");
    const std::string retry = complaint({.retry = -5ms});
    check_mentions(retry, "retry time is negative");
    check_mentions(retry, "0 to 2147483647 ms");
    const std::string empty = complaint({});
    check_mentions(empty, "no field");
    check_mentions(empty, "set at least data");
    for (const std::string& text : {event, id, retry, empty}) check_mentions(text, "sse");
}

TEST_CASE("every error has a text of its own and compares by name") {
    CHECK(sse::error_category().name() == "sse"sv);
    std::set<std::string> texts;
    for (int code = 1; code <= static_cast<int>(sse::errc::not_acceptable); ++code) {
        const std::error_code error = static_cast<sse::errc>(code);
        CAPTURE(code);
        CHECK(error == static_cast<sse::errc>(code));
        CHECK(&error.category() == &sse::error_category());
        CHECK(error.message().find("unknown") == std::string::npos);
        CHECK(texts.insert(error.message()).second);
    }
    CHECK(static_cast<int>(sse::errc::closed) == 1); // 0 would mean success
    CHECK(std::error_code(999, sse::error_category()).message().find("999") != std::string::npos);
}

// ---- round trip ---------------------------------------------------------------------------------

namespace {

constexpr std::string_view troublemakers = "\r\n\r\n\0: \tdatevniry7\xEF\xBB\xBF"sv;

/// A message that owns its texts.
struct owned_message {
    std::string event, comment;
    std::optional<std::string> data, id;
    std::optional<std::chrono::milliseconds> retry;

    sse::message view() const {
        return {.event = event, .data = data, .id = id, .retry = retry, .comment = comment};
    }
};

std::string one_line(std::string text) {
    std::erase_if(text, [](char c) { return c == '\r' || c == '\n' || c == '\0'; });
    return text;
}

owned_message random_message(support::dice& dice) {
    owned_message m;
    do {
        if (dice.one_in(2)) m.event = one_line(dice.bytes(12, troublemakers));
        if (!dice.one_in(4)) m.data = dice.bytes(40, troublemakers);
        if (dice.one_in(2)) m.id = one_line(dice.bytes(6, troublemakers));
        if (dice.one_in(4)) m.retry = std::chrono::milliseconds(dice.below(1'000'000'000'000));
        if (dice.one_in(4)) m.comment = dice.bytes(20, troublemakers);
    } while (sse::check(m.view()));
    return m;
}

/// What clients of a stream of messages have to see.
struct expectation {
    std::vector<support::decoded> events;
    std::vector<std::string> comments;
    std::string last_event_id;
    std::optional<std::uint64_t> retry;

    void add(const owned_message& m) {
        if (m.id) last_event_id = *m.id;
        if (m.retry) retry = static_cast<std::uint64_t>(m.retry->count());
        if (m.data || !m.event.empty()) {
            events.push_back({m.event.empty() ? "message" : m.event,
                              as_received(m.data.value_or("")), last_event_id});
        }
        if (m.comment.empty()) return;
        for (const std::string& line : lines_of(as_received(m.comment))) {
            comments.push_back(" " + line);
        }
    }
};

void check_received(support::event_stream_decoder& client, const expectation& expected) {
    CHECK(client.take_events() == expected.events);
    CHECK(client.take_comments() == expected.comments);
    CHECK(client.last_event_id() == expected.last_event_id);
    CHECK(client.reconnection_time() == expected.retry);
    CHECK(client.between_events());
}

} // namespace

TEST_CASE("a client gets back what was encoded, however the bytes are cut") {
    support::dice dice(20250119);
    for (int round = 0; round < 1'000; ++round) {
        CAPTURE(round);
        std::string stream;
        expectation expected;
        for (std::size_t left = dice.between(1, 4); left > 0; --left) {
            const owned_message m = random_message(dice);
            stream += sse::encode(m.view());
            expected.add(m);
        }
        CHECK(stream.find('\r') == stream.npos);
        const std::string_view bytes = stream;

        support::event_stream_decoder whole;
        whole.feed(bytes);
        check_received(whole, expected);

        const std::size_t cut = dice.below(bytes.size() + 1);
        CAPTURE(cut);
        support::event_stream_decoder in_two;
        in_two.feed(bytes.substr(0, cut));
        in_two.feed(bytes.substr(cut));
        check_received(in_two, expected);
    }
}

TEST_CASE("whatever stands in event and id, check() accepts exactly what survives the wire") {
    support::dice dice(20250120);
    for (int round = 0; round < 5'000; ++round) {
        const std::string event = "e" + dice.bytes(8, "\r\n\0ab"sv);
        const std::string id = dice.bytes(8, "\r\n\0ab \x01\t\x7f\xc3\xa4"sv);
        const sse::message m{.event = event, .data = "x", .id = id};
        CAPTURE(round);
        if (one_line(event) != event) {
            CHECK(sse::check(m) == sse::errc::bad_event);
        } else if (!support::comes_back(id)) {
            CHECK(sse::check(m) == sse::errc::bad_id);
        } else {
            CHECK(received(m) == support::decoded{event, "x", id});
        }
    }
}

// ---- in coroutines ------------------------------------------------------------------------------

// g++ 11 and 12 destroy temporary aggregates that own memory twice when they stand in a co_await
// expression. A message owns nothing, so it may. Address sanitizer is the judge of these cases.
static_assert(std::is_aggregate_v<sse::message>);
static_assert(std::is_trivially_destructible_v<sse::message>);
static_assert(std::is_trivially_copyable_v<sse::message>);
static_assert(std::is_error_code_enum_v<sse::errc>);
static_assert(std::is_nothrow_invocable_r_v<std::error_code, decltype(sse::check), sse::message>);

namespace {

asio::awaitable<std::string> after_a_suspension(std::string bytes) {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return bytes;
}

/// Like the library's own: a plain function that encodes, then awaits.
asio::awaitable<std::string> send(const sse::message& m) {
    return after_a_suspension(sse::encode(m));
}

asio::awaitable<std::string> by_value(sse::message m) {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return sse::encode(m);
}

asio::awaitable<std::string> by_reference(const sse::message& m) {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return sse::encode(m);
}

asio::awaitable<std::string> by_rvalue(sse::message&& m) {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return sse::encode(m);
}

struct client {
    std::string name;
    asio::awaitable<std::string> send(sse::message m) {
        m.event = name;
        co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
        co_return sse::encode(m);
    }
};

template <class Message>
asio::awaitable<std::string> forwarded(Message&& m) {
    return send(std::forward<Message>(m));
}

/// Too long for the small string optimisation: a second free would be seen.
std::string text(int n) { return "a text that lives on the heap, number " + std::to_string(n); }

std::string on_the_wire(int n) { return "event: line\ndata: " + text(n) + "\n\n"; }

asio::awaitable<std::string> awaited_text(int n) {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return text(n);
}

/// Runs the coroutine to its end on a context of its own.
std::string result_of(asio::awaitable<std::string> (*coroutine)()) {
    asio::io_context context;
    std::string result;
    std::exception_ptr failure;
    asio::co_spawn(context, coroutine, [&](std::exception_ptr error, std::string bytes) {
        failure = error;
        result = std::move(bytes);
    });
    context.run();
    if (failure) std::rethrow_exception(failure);
    return result;
}

// The shapes, one to a coroutine.

asio::awaitable<std::string> to_a_plain_function() {
    const std::string bytes = co_await send({.event = "line", .data = text(1)});
    co_return bytes;
}

asio::awaitable<std::string> to_a_coroutine_by_value() {
    const std::string bytes = co_await by_value({.event = "line", .data = text(1)});
    co_return bytes;
}

asio::awaitable<std::string> to_a_coroutine_by_reference() {
    const std::string bytes = co_await by_reference({.event = "line", .data = text(1)});
    co_return bytes;
}

asio::awaitable<std::string> to_a_coroutine_by_rvalue() {
    const std::string bytes = co_await by_rvalue({.event = "line", .data = text(1)});
    co_return bytes;
}

asio::awaitable<std::string> to_a_template() {
    const std::string bytes = co_await forwarded(sse::message{.event = "line", .data = text(1)});
    co_return bytes;
}

asio::awaitable<std::string> to_a_member() {
    client member{"line"};
    const std::string bytes = co_await member.send({.data = text(1)});
    co_return bytes;
}

asio::awaitable<std::string> over_several_temporaries() {
    const std::string bytes = co_await by_value(
        {.event = std::string("li") + "ne", .data = text(1) + text(2), .id = text(3)});
    co_return bytes;
}

asio::awaitable<std::string> by_name() {
    const std::string data = text(1);
    const sse::message named{.event = "line", .data = data};
    const std::string first = co_await send(named);
    const std::string second = co_await by_value(named);
    co_return first + second;
}

asio::awaitable<std::string> without_keeping_the_result() {
    co_await by_value({.event = "line", .data = text(1)});
    co_return "went on";
}

asio::awaitable<std::string> with_an_awaited_field() {
    const std::string bytes = co_await send({.event = "line", .data = co_await awaited_text(1)});
    co_return bytes;
}

asio::awaitable<std::string> with_an_awaited_field_by_value() {
    const std::string bytes =
        co_await by_value({.event = "line", .data = co_await awaited_text(1)});
    co_return bytes;
}

asio::awaitable<std::string> with_an_awaited_message_inside() {
    const std::string bytes = co_await send({.data = co_await send({.data = text(1)})});
    co_return bytes;
}

asio::awaitable<std::string> with_an_encoded_message_inside() {
    const std::string bytes =
        co_await by_value({.data = sse::encode({.data = text(1), .id = text(2)})});
    co_return bytes;
}

asio::awaitable<std::string> in_a_loop() {
    std::string all;
    for (int n = 0; n < 100; ++n) {
        const std::string bytes = co_await by_value(
            {.data = text(n), .id = std::to_string(n), .retry = std::chrono::milliseconds(n)});
        all += bytes;
    }
    co_return all;
}

asio::awaitable<std::string> refused_at_once() {
    const std::string bytes = co_await send({.event = text(1) + "\n", .data = text(2)});
    co_return bytes;
}

asio::awaitable<std::string> refused_after_a_suspension() {
    const std::string bytes = co_await by_value({.event = text(1) + "\n", .data = text(2)});
    co_return bytes;
}

} // namespace

TEST_CASE("a message over temporaries may stand in a co_await expression") {
    CHECK(result_of(to_a_plain_function) == on_the_wire(1));
    CHECK(result_of(to_a_coroutine_by_value) == on_the_wire(1));
    CHECK(result_of(to_a_coroutine_by_reference) == on_the_wire(1));
    CHECK(result_of(to_a_coroutine_by_rvalue) == on_the_wire(1));
    CHECK(result_of(to_a_template) == on_the_wire(1));
    CHECK(result_of(to_a_member) == on_the_wire(1));
    CHECK(result_of(by_name) == on_the_wire(1) + on_the_wire(1));
    CHECK(result_of(without_keeping_the_result) == "went on");
    CHECK(result_of(over_several_temporaries) ==
          "event: line\nid: " + text(3) + "\ndata: " + text(1) + text(2) + "\n\n");
}

TEST_CASE("co_await expressions with messages may be nested") {
    CHECK(result_of(with_an_awaited_field) == on_the_wire(1));
    CHECK(result_of(with_an_awaited_field_by_value) == on_the_wire(1));
    CHECK(result_of(with_an_awaited_message_inside) ==
          "data: data: " + text(1) + "\ndata: \ndata: \n\n");
    CHECK(result_of(with_an_encoded_message_inside) ==
          "data: id: " + text(2) + "\ndata: data: " + text(1) + "\ndata: \ndata: \n\n");
}

TEST_CASE("messages may be awaited in a loop") {
    std::string expected;
    for (int n = 0; n < 100; ++n) {
        const std::string number = std::to_string(n);
        expected += "id: " + number + "\nretry: " + number + "\ndata: " + text(n) + "\n\n";
    }
    CHECK(result_of(in_a_loop) == expected);
}

TEST_CASE("a message that is refused inside a co_await expression throws there") {
    CHECK_THROWS_AS(result_of(refused_at_once), std::system_error);
    CHECK_THROWS_AS(result_of(refused_after_a_suspension), std::system_error);
}

} // namespace message_test
