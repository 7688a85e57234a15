// parser.cpp - covers >>event, >>parser: the event stream format as a client reads it: events, ids,
// times, bounds, however the bytes are cut.
#include "support/bytes.hpp"
#include "support/event_stream.hpp"

#include "sse.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <iterator>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace parser_test {

using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace support;

namespace {

/// What a parser makes of bytes: all that a program can see.
struct outcome {
    std::vector<decoded> events = {};
    std::string last_event_id = {};
    std::optional<std::chrono::milliseconds> retry = {};
    std::uint64_t comments = 0;
    bool refused = false;

    friend bool operator==(const outcome&, const outcome&) = default;
    friend std::ostream& operator<<(std::ostream& out, const outcome& o) {
        for (const decoded& event : o.events) out << event << " ";
        out << "last id \"" << o.last_event_id << "\", retry " << (o.retry ? o.retry->count() : -1);
        return out << ", " << o.comments << " comments" << (o.refused ? ", refused" : "");
    }
};

/// Takes all events there are. False: a bound was passed.
bool drain(sse::event_parser& parser, std::vector<decoded>& events) {
    try {
        while (auto event = parser.next()) {
            events.push_back({event->type, event->data, event->last_event_id});
        }
        return true;
    } catch (const std::system_error& e) {
        CHECK(e.code() == sse::errc::event_too_large);
        return false;
    }
}

outcome parse(std::string_view bytes, const std::vector<std::size_t>& ends,
              sse::event_parser::limits limits = {}) {
    sse::event_parser parser(limits);
    outcome o;
    std::size_t at = 0;
    for (const std::size_t end : ends) {
        parser.feed(bytes.substr(at, end - at));
        at = end;
        o.refused = !drain(parser, o.events) || o.refused;
    }
    o.last_event_id = parser.last_event_id();
    o.retry = parser.retry();
    o.comments = parser.comments();
    return o;
}

/// Parses the bytes whole, cut in two at every place, and byte by byte: each time the same.
outcome parse_every_way(std::string_view bytes, sse::event_parser::limits limits = {}) {
    CAPTURE(escaped(bytes));
    const outcome whole = parse(bytes, {bytes.size()}, limits);
    for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
        CAPTURE(cut);
        REQUIRE(parse(bytes, {cut, bytes.size()}, limits) == whole);
    }
    REQUIRE(parse(bytes, byte_by_byte(bytes.size()), limits) == whole);
    return whole;
}

std::vector<decoded> events_of(std::string_view bytes) { return parse_every_way(bytes).events; }

decoded message_of(std::string data, std::string id = "") {
    return {"message", std::move(data), std::move(id)};
}

std::vector<decoded> messages_of(const std::vector<std::string>& texts) {
    std::vector<decoded> all;
    for (const std::string& text : texts) all.push_back(message_of(text));
    return all;
}

/// What an UTF-8 decoder makes of bytes, along the Encoding standard's 8.1.1, state by state.
std::string decode_utf8(std::string_view bytes) {
    std::string out, held;
    std::size_t needed = 0;
    unsigned lower = 0x80, upper = 0xbf;
    const auto replace = [&] {
        out += "\xef\xbf\xbd";
        held.clear();
        needed = 0;
        lower = 0x80;
        upper = 0xbf;
    };
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const auto byte = static_cast<unsigned char>(bytes[i]);
        if (needed == 0) {
            held = bytes[i];
            if (byte < 0x80) {
                out += held;
            } else if (byte >= 0xc2 && byte <= 0xdf) {
                needed = 1;
            } else if (byte >= 0xe0 && byte <= 0xef) {
                if (byte == 0xe0) lower = 0xa0;
                if (byte == 0xed) upper = 0x9f;
                needed = 2;
            } else if (byte >= 0xf0 && byte <= 0xf4) {
                if (byte == 0xf0) lower = 0x90;
                if (byte == 0xf4) upper = 0x8f;
                needed = 3;
            } else {
                replace();
            }
        } else if (byte < lower || byte > upper) {
            replace();
            --i; // the byte is looked at again
        } else {
            lower = 0x80;
            upper = 0xbf;
            held += bytes[i];
            if (--needed == 0) out += held;
        }
    }
    if (needed != 0) replace();
    return out;
}

/// The events by the tests' own decoder, with its bytes decoded.
std::vector<decoded> expected_of(std::string_view bytes) {
    std::vector<decoded> all = decode_event_stream(bytes);
    for (decoded& event : all) {
        event = {decode_utf8(event.type), decode_utf8(event.data), decode_utf8(event.id)};
    }
    return all;
}

const std::string_view words[] = {
    "data",      "data:", "data: ", "event:", "event: ", "id:",    "id: 7",        "retry:",
    "retry: 12", ":",     "\n",     "\r",     "\r\n",    "\n\n",   "\xef\xbb\xbf", "\xe2\x82\xac",
    "\xe2\x82",  "\xf0",  " ",      "x",      "Data:",   "foo: b", "\xff",         "1"};

std::string random_stream(dice& dice, std::size_t at_most) {
    std::string bytes;
    for (std::size_t n = dice.below(at_most); n > 0; --n) {
        if (dice.one_in(10)) {
            bytes += dice.byte();
        } else {
            bytes += dice.one_of(words);
        }
    }
    return bytes;
}

} // namespace

TEST_SUITE("event parser: lines") {
    TEST_CASE("lines end in LF, CR or CRLF, in any mixture") {
        CHECK(events_of("data: a\ndata: b\rdata: c\r\ndata: d\n\n") == messages_of({"a\nb\nc\nd"}));
        for (const std::string end : {"\n\n", "\r\r", "\r\n\r\n", "\r\n\n", "\n\r", "\r\r\n"}) {
            CHECK(events_of("data: one" + end + "data: two" + end) == messages_of({"one", "two"}));
        }
        CHECK(events_of("data: x\n\n\r\r\r\n\n\n") == messages_of({"x"}));
    }

    TEST_CASE("a CR fires the event at once; the LF after it, whenever it comes, adds no line") {
        sse::event_parser parser;
        parser.feed("data: now\r\r");
        REQUIRE(parser.next());
        parser.feed("\n");
        CHECK(!parser.next());
        parser.feed("data: a\r");
        parser.feed("\n");
        parser.feed("data: b\r\n");
        CHECK(!parser.next());
        parser.feed("\r");
        CHECK(parser.next()->data == "a\nb");
    }

    TEST_CASE("one byte order mark at the start is skipped; another one spoils its line") {
        CHECK(events_of("\xef\xbb\xbf"
                        "data: a\n\n") == messages_of({"a"}));
        CHECK(events_of("\xef\xbb\xbf\xef\xbb\xbf"
                        "data: a\n\ndata: b\n\n") == messages_of({"b"}));
        CHECK(events_of("data: a\n\n\xef\xbb\xbf"
                        "data: b\n\ndata: c\n\n") == messages_of({"a", "c"}));
        CHECK(events_of("\xef\xbb"
                        "data: a\n\ndata: b\n\n") == messages_of({"b"}));
        CHECK(events_of("\xef\xbb\xbf\n\xef\xbb\xbf\n").empty());
    }

    TEST_CASE("comments are skipped, also between the lines of an event, of any length") {
        const std::string long_one = ":" + std::string(3'000, 'x');
        const outcome o = parse_every_way("data: 1\r:\0zero\n:\r\ndata: 2\n"s + long_one +
                                          "\rdata: 3\n:data: no\r" + long_one + "\ndata: 4\n\n");
        CHECK(o.events == messages_of({"1\n2\n3\n4"}));
        CHECK(o.comments == 5);
    }

    TEST_CASE("what no blank line ends is not an event") {
        CHECK(events_of("data: a\n\ndata: b").size() == 1);
        CHECK(events_of("data: a\n\ndata: b\n").size() == 1);
        CHECK(events_of("").empty());
    }
}

TEST_SUITE("event parser: fields") {
    TEST_CASE("an empty data field fires an event, no data field fires none") {
        CHECK(events_of("data:\n\ndata\n\ndata: \n\n") == messages_of({"", "", ""}));
        CHECK(events_of("data\ndata\n\ndata:\ndata:\ndata:\n\n") == messages_of({"\n", "\n\n"}));
        CHECK(events_of("event: a\n\nid: 1\n\n: c\n\nfoo: b\n\n\n\n").empty());
    }

    TEST_CASE("exactly one space after the colon is dropped, and nothing else") {
        CHECK(events_of("data:\ta\ndata:  b\ndata: \ndata:c \n\n") ==
              messages_of({"\ta\n b\n\nc "}));
        CHECK(events_of("event:  a\ndata: b: c\n\n") == std::vector<decoded>{{" a", "b: c", ""}});
    }

    TEST_CASE("field names count byte for byte") {
        CHECK(events_of("data: a\nData: b\n data: c\ndata : d\ndata\0: e\n\0data: f\nda-ta: g\n"
                        "datax\ndat: h\ndata_i\ndataa: j\ndata: z\n\n"s) == messages_of({"a\nz"}));
        CHECK(events_of("EVENT: a\nevent : b\nevents: c\nid2: d\nretry2: 1\ndata: z\n\n") ==
              messages_of({"z"}));
    }

    TEST_CASE("unknown fields and stray text are ignored, also within an event") {
        CHECK(events_of("data: a\n data\ndata\ncolour: red\nno colon at all\n:c\ndata: b\n\n") ==
              messages_of({"a\n\nb"}));
    }

    TEST_CASE("a NUL in data is data") {
        CHECK(events_of("data:\0\ndata: a\0b\n\n"s) == messages_of({"\0\na\0b"s}));
    }

    TEST_CASE("the type is that of one event alone; an empty one is message; the last one counts") {
        CHECK(events_of("event: t\ndata: a\n\ndata: b\n\n") ==
              std::vector<decoded>{{"t", "a", ""}, message_of("b")});
        CHECK(events_of("event: t\n\ndata: b\n\n") == messages_of({"b"}));
        CHECK(events_of("event: t\nevent: u\ndata: b\n\n") == std::vector<decoded>{{"u", "b", ""}});
        CHECK(events_of("event: t\nevent\ndata: b\n\nevent: \ndata: c\n\n") ==
              messages_of({"b", "c"}));
    }
}

TEST_SUITE("event parser: ids and times") {
    TEST_CASE("an id stays for the events after it until another one, or an empty one") {
        CHECK(events_of("id: 1\ndata: a\n\ndata: b\n\nid: \xe2\x80\xa6\ndata: c\n\nid\ndata: d\n\n"
                        "data: e\n\n") == std::vector<decoded>{message_of("a", "1"),
                                                               message_of("b", "1"),
                                                               message_of("c", "\xe2\x80\xa6"),
                                                               message_of("d"), message_of("e")});
    }

    TEST_CASE("an id counts at its blank line, with or without data, and not before") {
        CHECK(parse_every_way("id: 1\n\n").last_event_id == "1");
        CHECK(parse_every_way("id: 1\ndata: a\n\nid: 2\ndata: b\n").last_event_id == "1");
        CHECK(events_of("id: 1\n\ndata: a\n\n") == std::vector<decoded>{message_of("a", "1")});
        CHECK(events_of("data: a\nid: 1\nid: 2\n\n") == std::vector<decoded>{message_of("a", "2")});
    }

    TEST_CASE("an id with a NUL is ignored as a whole") {
        CHECK(
            events_of("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\nid: \0003\ndata: c\n\n"s) ==
            std::vector<decoded>{message_of("a", "1"), message_of("b", "1"), message_of("c", "1")});
    }

    TEST_CASE("a stream resumed after an id gives it to events without one") {
        sse::event_parser parser({}, "41");
        CHECK(parser.last_event_id() == "41");
        parser.feed("data: a\n\nid: 42\ndata: b\n\n");
        CHECK(parser.next()->last_event_id == "41");
        CHECK(parser.next()->last_event_id == "42");
        CHECK(parser.last_event_id() == "42");
    }

    TEST_CASE("a retry time is digits alone, and counts without a blank line") {
        CHECK(parse_every_way("retry: 1500\n").retry == 1500ms);
        CHECK(parse_every_way("retry:0\n").retry == 0ms);
        CHECK(parse_every_way("retry: 007\n").retry == 7ms);
        CHECK(!parse_every_way("retry: 1500").retry);
        for (const std::string bad :
             {"1x", "x1", "-1", "+1", " 1", "1 ", "1.5", "0x10", "", "1e3", "\xd9\xa1", "1\t"}) {
            CAPTURE(bad);
            CHECK(parse_every_way("retry: 30\nretry: " + bad + "\n\n").retry == 30ms);
        }
        CHECK(parse_every_way("retry: 30\nretry\nretry:\n\n").retry == 30ms);
    }

    TEST_CASE("a retry time no clock could wait for is the longest one") {
        constexpr auto longest = sse::event_parser::max_retry;
        for (const std::string many :
             {"9223372036854775807", "9223372036854775808", "99999999999999999999999999"}) {
            CHECK(parse_every_way("retry: " + many + "\n").retry == longest);
        }
        CHECK(parse_every_way("retry: " + std::to_string(longest.count() - 1) + "\n").retry ==
              longest - 1ms);
        // A clock can still be asked for it.
        CHECK(std::chrono::steady_clock::now() + longest > std::chrono::steady_clock::now());
    }

    TEST_CASE("the end of a stream drops what is unfinished and keeps the id and the time") {
        sse::event_parser parser;
        parser.feed("id: 1\nretry: 5\ndata: a\n\nid: 2\nevent: t\ndata: lost\r");
        CHECK(parser.next()->data == "a");
        CHECK(!parser.next());
        parser.finish();
        CHECK(parser.last_event_id() == "1");
        CHECK(parser.retry() == 5ms);
        parser.feed("\n\n"); // no second half of the CR: blank lines, with nothing before them
        CHECK(!parser.next());
        CHECK(parser.last_event_id() == "1");
        parser.feed("data: b\n\n");
        const auto event = parser.next();
        REQUIRE(event);
        CHECK(event->type == "message");
        CHECK(event->data == "b");
        CHECK(event->last_event_id == "1");
    }

    TEST_CASE("each stream may begin with a byte order mark") {
        sse::event_parser parser;
        for (const char* rest : {"", "\xef", "\xef\xbb", ": cut", "dat"}) {
            parser.feed("\xef\xbb\xbf"
                        "data: a\n\n");
            REQUIRE(parser.next());
            parser.feed(rest);
            CHECK(!parser.next());
            parser.finish();
        }
    }
}

TEST_SUITE("event parser: UTF-8") {
    TEST_CASE("what is UTF-8 comes as it is") {
        const std::string text =
            "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf"
            "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf \xe4\xbd\xa0\xe5\xa5\xbd";
        CHECK(events_of("event: " + text + "\nid: " + text + "\ndata: " + text + "\n\n") ==
              std::vector<decoded>{{text, text, text}});
    }

    TEST_CASE("each broken character becomes one U+FFFD, as decoders of the web do it") {
        const std::string mark = "\xef\xbf\xbd";
        const std::vector<std::pair<std::string, std::string>> broken = {
            {"\x80", mark},
            {"\xff", mark},
            {"\xc0\xaf", mark + mark}, // overlong
            {"\xe2\x82", mark},        // cut short
            {"\xe2\x82"
             "a",
             mark + "a"},
            {"\xe2"
             "a",
             mark + "a"},
            {"\xf0\x90\x80", mark},
            {"\xf4\x8f", mark},
            {"\xf4\x8f"
             "a",
             mark + "a"},
            {"\xed\xa0\x80", mark + mark + mark}, // a surrogate
            {"\xf4\x90\x80\x80", mark + mark + mark + mark},
            {"\xe2\xe2\x82\xac", mark + "\xe2\x82\xac"},
        };
        for (const auto& one : broken) {
            const auto& bytes = one.first;
            const auto& text = one.second;
            CAPTURE(escaped(bytes));
            CHECK(decode_utf8(bytes) == text); // the oracle itself
            CHECK(events_of("event: " + bytes + "\nid: " + bytes + "\ndata: " + bytes + "\n\n") ==
                  std::vector<decoded>{{text, text, text}});
        }
    }

    TEST_CASE("all pairs of bytes are decoded as the Encoding standard says") {
        for (unsigned first = 0x80; first < 0x100; ++first) {
            std::string stream, expected;
            for (unsigned second = 0; second < 0x100; ++second) {
                if (second == '\r' || second == '\n') continue;
                const std::string text = {static_cast<char>(first), static_cast<char>(second),
                                          '\x80', '\xbf', 'z'};
                stream += "data:" + text + "\n";
                expected += (expected.empty() ? "" : "\n") + decode_utf8(text);
            }
            sse::event_parser parser;
            parser.feed(stream + "\n");
            REQUIRE(parser.next()->data == expected);
        }
    }
}

TEST_SUITE("event parser: bounds") {
    constexpr sse::event_parser::limits small{30};

    TEST_CASE("an event in one line may be as large as max_event, and no larger") {
        const std::string fits = "data:" + std::string(30, 'x');
        CHECK(parse_every_way("data: " + std::string(30, 'x') + "\n\n", small).events.size() == 1);
        CHECK(parse_every_way("event: " + std::string(30, 'x') + "\n", small).refused == false);
        CHECK(parse_every_way(fits + "\n\n", small).events.size() == 1);
        CHECK(parse_every_way(fits + "x\n\n", small).refused);
        CHECK(parse_every_way(fits + "xxx", small).refused); // without waiting for its end
        CHECK(!parse_every_way(fits, small).refused);
        const outcome o =
            parse_every_way("data: before\n\n" + fits + "x\n\ndata: behind\n\n", small);
        CHECK(o.refused);
        CHECK(o.events == messages_of({"before"}));
    }

    TEST_CASE("by default an event has 16 MiB at most") {
        CHECK(sse::event_parser::limits().max_event == 16'777'216);
    }

    TEST_CASE("comments and unknown fields of any length pass") {
        const std::string long_text(1'000, 'x');
        for (const std::string name :
             {":", ": ", "foo:", "", "data", "Data:", "retryy:", "datax"}) {
            CAPTURE(name);
            const outcome o = parse_every_way(
                "data: a\n" + name + long_text + "\ndata: b\n\n" + name + long_text, small);
            CHECK(!o.refused);
            CHECK(o.events == messages_of({"a\nb"}));
        }
    }

    TEST_CASE("an event may be as large as max_event: data, type and id") {
        CHECK(parse_every_way("data:0123456789\ndata:0123456789\ndata:01234567\n\n", small)
                  .events.size() == 1);
        CHECK(
            parse_every_way("data:0123456789\ndata:0123456789\ndata:012345678\n\n", small).refused);
        CHECK(parse_every_way("id:0123456789\nevent:0123456789\ndata:0123456789\n\n", small)
                  .events.size() == 1);
        CHECK(parse_every_way("id:0123456789\ndata:0123456789\nevent:01234567890\n\n", small)
                  .refused);
        CHECK(parse_every_way("data:0123456789\nevent:0123456789\nid:01234567890\n\n", small)
                  .refused);
        std::string empty_lines;
        for (int i = 0; i < 32; ++i) empty_lines += "data\n";
        CHECK(parse_every_way(empty_lines + "\n", small).refused);
        // U+FFFD is larger than what it stands for.
        CHECK(parse_every_way("data:\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\n\n", small)
                  .events.size() == 1);
        CHECK(parse_every_way("data:\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\n\n", small)
                  .refused);
    }

    TEST_CASE("who is refused stays refused until the stream ends, and says why") {
        sse::event_parser parser(small);
        parser.feed("data: 0123456789012345678901234567890123456789");
        for (int i = 0; i < 2; ++i) {
            try {
                parser.next();
                FAIL("must throw");
            } catch (const std::system_error& e) {
                CHECK(e.code() == sse::errc::event_too_large);
                CHECK(std::string(e.what()).find("max_event") != std::string::npos);
            }
            parser.feed("\n\ndata: a\n\n");
        }
        parser.finish();
        parser.feed("data: a\n\n");
        CHECK(parser.next()->data == "a");
    }

    TEST_CASE("a large event in many small pieces costs no more than one in a single piece") {
        // 8 MiB in pieces of 16 bytes: with a search from the start for each piece, or a buffer
        // moved for each, this would take minutes.
        sse::event_parser parser({16 * 1024 * 1024});
        const std::string piece(16, 'x');
        parser.feed("data: ");
        for (int i = 0; i < 512 * 1024; ++i) {
            parser.feed(piece);
            REQUIRE(!parser.next());
        }
        parser.feed("\n\n");
        CHECK(parser.next()->data.size() == 8 * 1024 * 1024);
    }

    TEST_CASE("many events in one piece, taken a few at a time while more is fed, are all there") {
        sse::event_parser parser;
        std::size_t seen = 0, fed = 0;
        for (int round = 0; round < 1'000; ++round) {
            std::string piece;
            for (int i = 0; i < 10; ++i) piece += "data: " + std::to_string(fed++) + "\r\n\r\n";
            parser.feed(piece);
            for (int i = 0; i < 7; ++i) REQUIRE(parser.next()->data == std::to_string(seen++));
        }
        while (const auto event = parser.next()) REQUIRE(event->data == std::to_string(seen++));
        CHECK(seen == fed);
    }
}

TEST_SUITE("event parser: at random") {
    TEST_CASE("random bytes are parsed as the standard says, however they are cut") {
        dice dice(1);
        for (int round = 0; round < 10'000; ++round) {
            const std::string bytes = random_stream(dice, 60);
            CAPTURE(escaped(bytes));
            const outcome whole = parse(bytes, {bytes.size()});
            event_stream_decoder oracle;
            oracle.feed(bytes);
            REQUIRE(whole.events == expected_of(bytes));
            REQUIRE(whole.last_event_id == decode_utf8(oracle.last_event_id()));
            REQUIRE(whole.comments == oracle.take_comments().size());
            REQUIRE(parse(bytes, byte_by_byte(bytes.size())) == whole);
            REQUIRE(parse(bytes, random_ends(dice, bytes.size())) == whole);
        }
    }

    TEST_CASE("random bytes pass no bound, and are refused or not however they are cut") {
        dice dice(2);
        const sse::event_parser::limits tight{16};
        for (int round = 0; round < 10'000; ++round) {
            const std::string bytes = random_stream(dice, 60);
            CAPTURE(escaped(bytes));
            const outcome whole = parse(bytes, {bytes.size()}, tight);
            for (const decoded& event : whole.events) {
                REQUIRE(event.data.size() + event.id.size() <= tight.max_event);
            }
            const outcome again = parse(bytes, random_ends(dice, bytes.size(), 5), tight);
            REQUIRE(again.events == whole.events);
            REQUIRE(again.refused == whole.refused);
        }
    }

    TEST_CASE("what encode() writes comes back, whatever a message holds") {
        dice dice(3);
        for (int round = 0; round < 5'000; ++round) {
            std::string stream;
            std::vector<decoded> expected;
            std::string last_id;
            for (std::size_t n = dice.below(5); n > 0; --n) {
                const std::string data = dice.bytes(40, "\r\n: ");
                const std::string type = dice.one_in(2) ? "t" + std::to_string(dice.below(9)) : "";
                const std::string id = std::to_string(dice.below(100));
                const std::string comment = dice.one_in(3) ? dice.bytes(10, "\r\n:") : "";
                sse::message m{.event = type, .data = data, .comment = comment};
                if (dice.one_in(2)) m.id = last_id = id;
                stream += sse::encode(m);
                std::string text; // breaks of every kind arrive as LF
                for (std::size_t i = 0; i < data.size(); ++i) {
                    if (data[i] == '\r' && i + 1 < data.size() && data[i + 1] == '\n') continue;
                    text += data[i] == '\r' ? '\n' : data[i];
                }
                expected.push_back({type.empty() ? "message" : type, decode_utf8(text), last_id});
            }
            CAPTURE(escaped(stream));
            REQUIRE(parse(stream, {stream.size()}).events == expected);
            REQUIRE(parse(stream, random_ends(dice, stream.size())).events == expected);
        }
    }
}

} // namespace parser_test
