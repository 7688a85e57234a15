// body.cpp - covers >>head: chunks read and written, the limit on header lines and the values in a
// query. Each case of the tables names its rule, mostly a section of RFC 9112; "ours" where the
// standard leaves the choice. Every chunked body is fed whole, byte by byte and cut in two at every
// place, and must end the same: verdict, body, and what is left in the input.
#include "sse.hpp"

#include "support/bytes.hpp"
#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <span>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace body_test {

using namespace std::string_literals;
using namespace std::string_view_literals;
using support::byte_by_byte;
using support::escaped;
using support::in_every_way;
using support::random_ends;

namespace {

using sse::detail::body_decoder;
using progress = body_decoder::progress;

constexpr std::size_t default_limit = 1024 * 1024;
constexpr std::size_t longest_line = 1024;  // of a size, an extension, a trailer, with its CR LF
constexpr std::size_t most_framing = 16384; // beside a quarter of the body

// ---- decoding -----------------------------------------------------------------------------------

/// All that a chunked body came to.
struct outcome {
    progress verdict = progress::need_more;
    int status = 0; ///< Of the refusal; 0: none.
    std::string reason;
    std::string body;
    std::string rest; ///< What is left in the input: of the next request, or an unfinished line.

    friend bool operator==(const outcome&, const outcome&) = default;
    friend std::ostream& operator<<(std::ostream& out, const outcome& o) {
        if (o.status != 0) return out << o.status << ' ' << o.reason;
        return out << (o.verdict == progress::complete ? "complete" : "more bytes wanted")
                   << " body '" << escaped(o.body.substr(0, 200)) << "' rest '"
                   << escaped(o.rest.substr(0, 200)) << '\'';
    }
};

/// What becomes of bytes that arrive in pieces which end at these places, the last at their end.
outcome decode(std::string_view bytes, const std::vector<std::size_t>& ends, std::size_t limit) {
    auto decoder = body_decoder::of_chunks(limit);
    outcome o;
    std::size_t at = 0;
    for (const std::size_t end : ends) {
        o.rest.append(bytes.substr(at, end - at));
        o.rest.shrink_to_fit(); // so that the address sanitizer sees a look beyond it
        at = end;
        const progress before = std::exchange(o.verdict, decoder.feed(o.rest));
        if (before != progress::need_more) CHECK(o.verdict == before);
    }
    o.status = decoder.refusal().status;
    o.reason = decoder.refusal().reason;
    CHECK((o.verdict == progress::refused) == (o.status != 0));
    CHECK((o.status == 0) == o.reason.empty());
    if (o.status != 0) {
        o.rest.clear(); // after a refusal nobody looks at it again
        return o;
    }
    o.body = decoder.take();
    return o;
}

outcome decode(std::string_view bytes, std::size_t limit = default_limit) {
    return decode(bytes, {bytes.size()}, limit);
}

outcome decode_in_every_way(std::string_view bytes, std::size_t limit = default_limit) {
    return in_every_way(bytes, [limit](std::string_view all, const std::vector<std::size_t>& ends) {
        return decode(all, ends, limit);
    });
}

// ---- cases --------------------------------------------------------------------------------------

/// What a case of a table must come to.
struct expected {
    int status = 0;    ///< Of the refusal; 0: accepted.
    int or_status = 0; ///< Another status that is as good.
    bool incomplete = false;
    std::string_view body = "";
    std::string_view rest = "";
};

struct body_case {
    std::string_view rule;
    std::string bytes;
    expected want = {};
};

/// A body of five bytes whose chunk has this line.
std::string sized(std::string_view line) { return std::string(line) + "\r\nabcde\r\n0\r\n\r\n"; }

/// An empty body with this trailer line, or lines.
std::string trailed(std::string_view lines) { return "0\r\n" + std::string(lines) + "\r\n\r\n"; }

void check_case(const body_case& c) {
    const std::string bytes = escaped(c.bytes.substr(0, 200));
    CAPTURE(c.rule);
    CAPTURE(bytes);
    const outcome got = decode_in_every_way(c.bytes);
    CAPTURE(got);
    if (c.want.status != 0) {
        const bool either = got.status == c.want.status ||
                            (c.want.or_status != 0 && got.status == c.want.or_status);
        if (!either) CHECK(got.status == c.want.status);
        return;
    }
    CHECK(got.verdict == (c.want.incomplete ? progress::need_more : progress::complete));
    if (c.want.incomplete) return;
    CHECK(got.body == c.want.body);
    CHECK(got.rest == c.want.rest);
}

void check_table(std::initializer_list<body_case> table) {
    for (const body_case& c : table) check_case(c);
}

void check_status(const outcome& got, int status) {
    CAPTURE(got);
    CHECK(got.status == status);
    CHECK((got.verdict == progress::complete) == (status == 0));
}

} // namespace

TEST_CASE("a chunked body is the data of its chunks up to the one of size 0") {
    check_table({
        {"9112 7.1", "0\r\n\r\n"},
        {"9112 7.1", "5\r\nabcde\r\n0\r\n\r\n", {.body = "abcde"}},
        {"9112 7.1", "1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", {.body = "abcdef"}},
        {"9112 7.1 any byte", "4\r\n\0\r\n\xff\r\n0\r\n\r\n"s, {.body = "\0\r\n\xff"sv}},
        {"9112 7.1 data like an end", "7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", {.body = "\r\n0\r\n\r\n"}},
        {"9112 7.1 data like a size", "3\r\n5\r\n\r\n0\r\n\r\n", {.body = "5\r\n"}},
    });
}

TEST_CASE("a chunk size is hexadecimal digits of any case and nothing else") {
    check_table({
        {"9112 7.1 HEXDIG", "a\r\n0123456789\r\n0\r\n\r\n", {.body = "0123456789"}},
        {"9112 7.1 HEXDIG", "A\r\n0123456789\r\n0\r\n\r\n", {.body = "0123456789"}},
        {"9112 7.1 HEXDIG", "f\r\n0123456789abcde\r\n0\r\n\r\n", {.body = "0123456789abcde"}},
        {"9112 7.1 HEXDIG", "F\r\n0123456789abcde\r\n0\r\n\r\n", {.body = "0123456789abcde"}},
        {"9112 7.1 two digits",
         "1B\r\nabcdefghijklmnopqrstuvwxyz.\r\n0\r\n\r\n",
         {.body = "abcdefghijklmnopqrstuvwxyz."}},
        {"9112 7.1 not decimal",
         "10\r\n0123456789abcdef\r\n0\r\n\r\n",
         {.body = "0123456789abcdef"}},
        {"9112 7.1 leading zero", sized("05"), {.body = "abcde"}},
        {"9112 7.1 leading zeros", sized("000000000000005"), {.body = "abcde"}},
        {"9112 7.1 last-chunk is 1*\"0\"", "000\r\n\r\n"},
        {"9112 7.1 empty", sized(""), {.status = 400}},
        {"9112 7.1 empty", "\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 no 0x", sized("0x5"), {.status = 400}},
        {"9112 7.1 no 0x", sized("0X5"), {.status = 400}},
        {"9112 7.1 no 0x", sized("x5"), {.status = 400}},
        {"9112 7.1 no h", sized("5h"), {.status = 400}},
        {"9112 7.1 no sign", sized("+5"), {.status = 400}},
        {"9112 7.1 no sign", sized("-5"), {.status = 400}},
        {"9112 7.1 no sign", "-0\r\n\r\n", {.status = 400}},
        {"9112 7.1 no sign", "+0\r\n\r\n", {.status = 400}},
        {"9112 7.1 no separator", sized("_5"), {.status = 400}},
        {"9112 7.1 no separator", sized("0_5"), {.status = 400}},
        {"9112 7.1 no separator", sized("5_"), {.status = 400}},
        {"9112 7.1 no separator", sized("0,5"), {.status = 400}},
        {"9112 7.1 no fraction", sized("5.0"), {.status = 400}},
        {"9112 7.1 no space before", sized(" 5"), {.status = 400}},
        {"9112 7.1 no space before", sized("\t5"), {.status = 400}},
        {"9112 7.1 no space after", sized("5 "), {.status = 400}},
        {"9112 7.1 no space after", sized("5\t"), {.status = 400}},
        {"9112 7.1 no space after", "0 \r\n\r\n", {.status = 400}},
        {"9112 7.1 no space between", sized("0 5"), {.status = 400}},
        {"9112 7.1 no VT", sized("\v5"), {.status = 400}},
        {"9112 7.1 no FF", sized("5\f"), {.status = 400}},
        {"9112 7.1 no NUL", sized("5\0"s), {.status = 400}},
        {"9112 7.1 no NUL", sized("\0"s + "5"), {.status = 400}},
        {"9112 7.1 no NBSP", sized("5\xA0"), {.status = 400}},
        {"9112 7.1 not quoted", sized("\"5\""), {.status = 400}},
        {"9112 7.1 not encoded", sized("%35"), {.status = 400}},
        {"9112 7.1 ASCII digits", sized("\xEF\xBC\x95"), {.status = 400}},
        {"9112 7.1 a to f", sized("g"), {.status = 400}},
        {"9112 7.1 a comment is none", sized("5(a)"), {.status = 400}},
    });
}

TEST_CASE("a chunk size that a number cannot hold is refused, never wrapped around") {
    check_table({
        {"9112 7.1 2^32 + 5", sized("100000005"), {.status = 413}},
        {"9112 7.1 2^31", sized("80000000"), {.status = 413}},
        {"9112 7.1 15 digits", sized("fffffffffffffff"), {.status = 413}},
        {"9112 7.1 2^63 + 5", sized("8000000000000005"), {.status = 400, .or_status = 413}},
        {"9112 7.1 -1 as 64 bits", sized("FFFFFFFFFFFFFFFF"), {.status = 400, .or_status = 413}},
        {"9112 7.1 2^64", sized("10000000000000000"), {.status = 400, .or_status = 413}},
        {"9112 7.1 2^64 + 5", sized("10000000000000005"), {.status = 400, .or_status = 413}},
        {"9112 7.1 2^128 + 5",
         sized("100000000000000000000000000000005"),
         {.status = 400, .or_status = 413}},
        {"ours: 15 digits", sized("0000000000000005"), {.status = 400}},
        {"ours: 15 digits", std::string(16, '0') + "\r\n\r\n", {.status = 400}},
        {"ours: 15 digits", sized(std::string(400, '0') + "5"), {.status = 400}},
        {"ours: 15 digits", sized(std::string(400, 'f')), {.status = 400, .or_status = 413}},
    });
}

TEST_CASE("chunk extensions are ignored, but must be right") {
    check_table({
        {"9112 7.1.1", sized("5;a"), {.body = "abcde"}},
        {"9112 7.1.1", sized("5;a=b"), {.body = "abcde"}},
        {"9112 7.1.1", sized("5;a=b;c;d=\"e\""), {.body = "abcde"}},
        {"9112 7.1.1 quoted", sized("5;a=\"b;c\\\"d\""), {.body = "abcde"}},
        {"9112 7.1.1 obs-text", sized("5;a=\"\xC3\xA9\xFF\""), {.body = "abcde"}},
        {"9112 7.1.1 BWS", sized("5 ; a = b"), {.body = "abcde"}},
        {"9112 7.1.1 BWS", sized("5\t;\ta\t=\tb"), {.body = "abcde"}},
        {"9112 7.1.1 BWS", sized("5 ;a ;b"), {.body = "abcde"}},
        {"9112 7.1.1 of the last", "0;a=b\r\n\r\n"},
        {"9112 7.1.1 a size inside", sized("5;6"), {.body = "abcde"}},
        {"9112 7.1.1 quoted", sized("5;a=\"\";b"), {.body = "abcde"}},
        {"9112 7.1.1 blank at the end", sized("5;a=b\t"), {.status = 400}},
        {"9112 7.1.1 no name", sized("5;"), {.status = 400}},
        {"9112 7.1.1 no name", sized("5; "), {.status = 400}},
        {"9112 7.1.1 no name", sized("5;;a"), {.status = 400}},
        {"9112 7.1.1 no name", sized("5;=b"), {.status = 400}},
        {"9112 7.1.1 no value", sized("5;a="), {.status = 400}},
        {"9112 7.1.1 no token", sized("5;a=b/c"), {.status = 400}},
        {"9112 7.1.1 two values", sized("5;a=b=c"), {.status = 400}},
        {"9112 7.1.1 no semicolon", sized("5;a b"), {.status = 400}},
        {"9112 7.1.1 quote not closed", sized("5;a=\"b"), {.status = 400}},
        {"9112 7.1.1 quote not closed", sized("5;a=\"b\\\""), {.status = 400}},
        {"9112 7.1.1 after the quote", sized("5;a=\"b\"c"), {.status = 400}},
        {"9112 7.1.1 no semicolon", sized("5 a=b"), {.status = 400}},
        {"9112 7.1.1 no semicolon", sized("5=b"), {.status = 400}},
        {"9112 7.1.1 no semicolon", sized("5,a"), {.status = 400}},
        {"9112 7.1.1 no size", sized(";a=b"), {.status = 400}},
        {"9110 5.6.4 NUL", sized("5;a=\"\0\""s), {.status = 400}},
        {"9110 5.6.4 ESC", sized("5;a=\x1b"), {.status = 400}},
        {"9110 5.6.4 VT", sized("5;\va"), {.status = 400}},
        {"9110 5.6.4 DEL", sized("5;a=\x7f"), {.status = 400}},
        {"9112 7.1.1 TERM.EXT", sized("5;a\n"), {.status = 400}},
        {"9112 7.1.1 TERM.EXT", sized("5;\n"), {.status = 400}},
        {"9112 7.1.1 TERM.EXT", sized("5;a\r"), {.status = 400}},
        {"9112 7.1.1 EXT.TERM", sized("5;\rxx"), {.status = 400}},
        {"9112 7.1.1 EXT.TERM", sized("5;\nxx"), {.status = 400}},
        {"9112 7.1.1 EXT.TERM", "0;\n\r\nGET /b HTTP/1.1\r\n\r\n", {.status = 400}},
    });
}

TEST_CASE("data that is longer or shorter than its size is refused") {
    check_table({
        {"9112 7.1 longer", "3\r\nabcd\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 longer", "3\r\nabcdef\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 longer by CR LF", "3\r\nabc\r\n\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 longer by a chunk", "3\r\nabc0\r\n\r\n", {.status = 400}},
        {"9112 7.1 shorter by one", "3\r\nab\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 shorter by two", "3\r\na\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 shorter by three", "3\r\n\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1 the rest is data", "a\r\nabc\r\n0\r\n\r\n", {.incomplete = true}},
        {"9112 7.1 of size 0", "0\r\na\r\n0\r\n\r\n", {.status = 400}},
    });
}

TEST_CASE("the two bytes after the data are CR LF, not any two") {
    check_table({
        {"9112 7.1", "3\r\nabcXX0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabcXX\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc\rX0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabcX\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc  0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc \r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc;x\r\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc\n\n0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc\r\r0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc\n\r0\r\n\r\n", {.status = 400}},
        {"9112 7.1", "3\r\nabc\0\0X\r\n\r\n"s, {.status = 400}},
    });
}

TEST_CASE("every line of the framing ends in CR LF and nothing else") {
    const std::string whole = "3\r\nabc\r\n2;x=y\r\nde\r\n0;z\r\nX: y\r\nZ: w\r\n\r\n";
    REQUIRE(decode(whole).body == "abcde");
    std::size_t ends = 0;
    for (std::size_t at = whole.find("\r\n"); at != whole.npos; at = whole.find("\r\n", at + 2)) {
        ++ends;
        for (const auto instead : {"\n"sv, "\r"sv, "\r\r\n"sv, "\n\r"sv, "\n\r\n"sv, "\n\n"sv,
                                   "\r\0\n"sv, "\0\n"sv, "\v"sv}) {
            std::string bytes = whole;
            bytes.replace(at, 2, instead);
            bytes += "GET /b HTTP/1.1\r\nHost: a\r\n\r\n"; // none waits for more
            const std::string shown = escaped(bytes);
            CAPTURE(shown);
            check_status(decode_in_every_way(bytes), 400);
        }
    }
    CHECK(ends == 8);
}

TEST_CASE("a wrong end of a line is refused as soon as it is there") {
    for (const auto bytes : {"5\n"sv, "5\rx"sv, "\n"sv, "5;a\n"sv, "1\r\na\n"sv, "0\r\n\n"sv}) {
        CAPTURE(bytes);
        check_status(decode(std::string(bytes)), 400);
    }
}

TEST_CASE("a body that has not ended wants more") {
    check_table({
        {"9112 7.1", "", {.incomplete = true}},
        {"9112 7.1", "5", {.incomplete = true}},
        {"9112 7.1", "5\r", {.incomplete = true}},
        {"9112 7.1", "5;a", {.incomplete = true}},
        {"9112 7.1", "5\r\n", {.incomplete = true}},
        {"9112 7.1", "5\r\nabcd", {.incomplete = true}},
        {"9112 7.1", "5\r\nabcde", {.incomplete = true}},
        {"9112 7.1", "5\r\nabcde\r", {.incomplete = true}},
        {"9112 7.1", "5\r\nabcde\r\n", {.incomplete = true}},
        {"9112 7.1", "5\r\nabcde\r\n0", {.incomplete = true}},
        {"9112 7.1", "0\r\n", {.incomplete = true}},
        {"9112 7.1", "0\r\n\r", {.incomplete = true}},
        {"9112 7.1.2", "0\r\nX: y\r\n", {.incomplete = true}},
        {"9112 7.1.2", "0\r\nX: y\r\n\r", {.incomplete = true}},
    });
}

TEST_CASE("bytes after the end are left for the next request") {
    check_table({
        {"9112 9.3.2", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n", {.rest = "GET / HTTP/1.1\r\n\r\n"}},
        {"9112 9.3.2",
         sized("5") + "POST / HTTP/1.1\r\n",
         {.body = "abcde", .rest = "POST / HTTP/1.1\r\n"}},
        {"9112 9.3.2", trailed("X: y") + "G", {.rest = "G"}},
        {"9112 9.3.2 no second body", "0\r\n\r\n0\r\n\r\n", {.rest = "0\r\n\r\n"}},
        {"9112 9.3.2 not looked at", "0\r\n\r\n\n\r\0"s, {.rest = "\n\r\0"sv}},
        {"9112 2.2 empty lines", "0\r\n\r\n\r\n\r\nGET", {.rest = "\r\n\r\nGET"}},
    });
}

TEST_CASE("trailers are thrown away") { // RFC 9110 6.5.1: never merged into the head
    check_table({
        {"9112 7.1.2", trailed("X: y")},
        {"9112 7.1.2", "3\r\nabc\r\n" + trailed("X: y\r\nZ:"), {.body = "abc"}},
        {"9112 7.1.2 framing", trailed("Content-Length: 5") + "abcde", {.rest = "abcde"}},
        {"9112 7.1.2 framing", trailed("Transfer-Encoding: chunked") + "0", {.rest = "0"}},
        {"9112 7.1.2 a chunk in it", trailed("X: 5") + "abcde", {.rest = "abcde"}},
        {"9110 5.5 tab and obs-text", trailed("X: a\tb \xC3\xA9")},
        {"9110 5.5 NUL", trailed("X: \0"s), {.status = 400}},
        {"9110 5.5 BEL", trailed("X: \a"), {.status = 400}},
        {"9110 5.5 ESC", trailed("X: \x1b"), {.status = 400}},
        {"9110 5.5 VT", trailed("X: a\vb"), {.status = 400}},
        {"9110 5.5 DEL", trailed("X: \x7f"), {.status = 400}},
        {"9112 2.2 bare LF", trailed("X: a\nY: b"), {.status = 400}},
        {"9112 2.2 bare CR", trailed("X: a\rY: b"), {.status = 400}},
    });
}

TEST_CASE("a trailer that is not a header line is refused") {
    // RFC 9112 2.2: what does not match the grammar gets 400 and the end of the connection. Were it
    // taken, a lost empty line would swallow the next request as a trailer of this one.
    check_table({
        {"9112 7.1.2 a request", "0\r\n" + "GET /b HTTP/1.1\r\nHost: a\r\n\r\n"s, {.status = 400}},
        {"9112 5 no colon", trailed("X"), {.status = 400}},
        {"9112 5 no name", trailed(": y"), {.status = 400}},
        {"9112 5.1 space before the colon", trailed("X : y"), {.status = 400}},
        {"9112 5.2 folded", trailed("X: a\r\n b"), {.status = 400}},
        {"9112 5.2 folded", trailed("\tX: a"), {.status = 400}},
        {"9112 5.2 an empty line of spaces", trailed(" "), {.status = 400}},
        {"9110 5.6.2 token", trailed("X Y: a"), {.status = 400}},
        {"9110 5.6.2 token", trailed("X\xC3\xA9: a"), {.status = 400}},
    });
}

// ---- limits -------------------------------------------------------------------------------------

namespace {

std::string hex(std::size_t number) {
    std::string digits;
    do { digits.insert(digits.begin(), "0123456789abcdef"[number % 16]); } while (number /= 16);
    return digits;
}

std::string chunk(std::string_view data) {
    return hex(data.size()) + "\r\n" + std::string(data) + "\r\n";
}

/// A trailer line of so many bytes with its CR LF.
std::string trailer_of(std::size_t size) { return "X: " + std::string(size - 5, 'y') + "\r\n"; }

/// Trailers of so many bytes in all.
std::string trailers_of(std::size_t size) {
    std::string lines;
    for (; size > 2 * longest_line; size -= 512) lines += trailer_of(512);
    return lines + trailer_of(size / 2) + trailer_of(size - size / 2);
}

/// How many of endless bytes a decoder takes before it refuses.
std::size_t bytes_until_refused(std::string_view start, std::string_view again) {
    auto decoder = body_decoder::of_chunks(default_limit);
    std::string input(start);
    std::size_t fed = start.size();
    while (decoder.feed(input) == progress::need_more) {
        if (fed > 64 * 1024) {
            FAIL_CHECK("never refused");
            break;
        }
        CHECK(input.size() <= longest_line);
        input += again;
        fed += again.size();
    }
    CHECK(decoder.refusal().status == 400);
    return fed;
}

} // namespace

TEST_CASE("a body of exactly the limit is accepted, one byte more gets 413") {
    check_status(decode_in_every_way("5\r\nabcde\r\n0\r\n\r\n", 5), 0);
    check_status(decode_in_every_way("5\r\nabcde\r\n0\r\n\r\n", 4), 413);
    check_status(decode_in_every_way("2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", 5), 0);
    check_status(decode_in_every_way("2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", 4), 413);
    check_status(decode_in_every_way("5\r\nabcde\r\n1\r\nf\r\n0\r\n\r\n", 5), 413);
    check_status(decode_in_every_way("0\r\n\r\n", 0), 0);
    check_status(decode_in_every_way("1\r\na\r\n0\r\n\r\n", 0), 413);
    // The sum must not wrap around after a body that has begun.
    check_status(decode_in_every_way("5\r\nabcde\r\nfffffffffffffff\r\n", 5), 413);
}

TEST_CASE("a body over the limit is refused at its size, before its data") {
    check_status(decode_in_every_way("5\r\n", 4), 413);
    check_status(decode_in_every_way("2\r\nab\r\n3\r\n", 4), 413);
}

TEST_CASE("a large body in chunks of common sizes is accepted") {
    support::dice dice(20250205);
    for (const std::size_t size : {64U, 1000U, 4096U, 65536U}) {
        CAPTURE(size);
        const std::string data(size, 'd');
        std::string bytes;
        for (std::size_t sent = 0; sent + size <= default_limit; sent += size) {
            bytes += chunk(data);
        }
        bytes += "0\r\n\r\n";
        const outcome whole = decode(bytes);
        check_status(whole, 0);
        CHECK(whole.body.size() == default_limit / size * size);
        CHECK(decode(bytes, random_ends(dice, bytes.size(), 40'000), default_limit) == whole);
    }
}

TEST_CASE("a line of the framing is bounded") {
    const auto extended = [](std::size_t size) { return sized("5;" + std::string(size - 4, 'a')); };
    check_status(decode_in_every_way(extended(longest_line)), 0);
    check_status(decode_in_every_way(extended(longest_line + 1)), 400);
    check_status(decode_in_every_way("0\r\n" + trailer_of(longest_line) + "\r\n"), 0);
    check_status(decode_in_every_way("0\r\n" + trailer_of(longest_line + 1) + "\r\n"), 400);
}

TEST_CASE("a line that never ends is refused, and costs no more than its bound") {
    for (const auto start : {"5;"sv, "0;"sv, "000"sv, "fff"sv, "x"sv, "3\r\nabc"sv, "3\r\nabc "sv,
                             "0\r\nX: "sv, "0\r\n "sv}) {
        CAPTURE(start);
        CHECK(bytes_until_refused(start, "0") <= start.size() + longest_line + 1);
    }
}

TEST_CASE("a line is refused as soon as it is too long") {
    auto decoder = body_decoder::of_chunks(default_limit);
    std::string input = "5;" + std::string(longest_line - 3, 'a');
    CHECK(decoder.feed(input) == progress::need_more);
    CHECK(input.size() == longest_line - 1);
    input += 'a';
    CHECK(decoder.feed(input) == progress::refused);
    CHECK(input.empty());
}

TEST_CASE("framing is bounded in all, by what it frames") {
    // Of an empty body: the last size line, the trailers, the empty line.
    const auto framed = [](std::size_t size) { return "0\r\n" + trailers_of(size - 5) + "\r\n"; };
    CHECK(framed(most_framing).size() == most_framing);
    check_status(decode(framed(most_framing)), 0);
    check_status(decode(framed(most_framing + 1)), 400);
    CHECK(decode(framed(most_framing), byte_by_byte(most_framing), default_limit) ==
          decode(framed(most_framing)));
    // A body of 4000 bytes has a thousand more; its chunk has 5 + 2.
    const std::string data = chunk(std::string(4000, 'd'));
    check_status(decode(data + framed(most_framing + 1000 - 7)), 0);
    check_status(decode(data + framed(most_framing + 1000 - 6)), 400);
}

TEST_CASE("framing that goes on for ever is refused") {
    const std::size_t bound = most_framing + 2 * longest_line;
    CHECK(bytes_until_refused("0\r\n", "X: y\r\n") <= bound);
    CHECK(bytes_until_refused("0\r\n", trailer_of(longest_line)) <= bound);
    CHECK(bytes_until_refused("", "1;" + std::string(100, 'a') + "\r\nd\r\n") <= bound * 2);
    CHECK(bytes_until_refused("", "1\r\nd\r\n") <= bound * 2); // CVE-2023-39326
}

TEST_CASE("a thousand chunks of one byte are accepted") {
    std::string bytes;
    for (int i = 0; i < 1000; ++i) bytes += chunk("d");
    check_status(decode(bytes + "0\r\n\r\n"), 0);
}

TEST_CASE("a refused body stays refused, a complete one complete, whatever comes after it") {
    auto refused = body_decoder::of_chunks(default_limit);
    std::string input = "x\r\n";
    CHECK(refused.feed(input) == progress::refused);
    input = "0\r\n\r\n";
    CHECK(refused.feed(input) == progress::refused);
    CHECK(refused.refusal().status == 400);

    auto complete = body_decoder::of_chunks(default_limit);
    input = "1\r\na\r\n0\r\n\r\nx\r\n";
    CHECK(complete.feed(input) == progress::complete);
    CHECK(complete.feed(input) == progress::complete);
    CHECK(input == "x\r\n");
    CHECK(complete.refusal().status == 0);
    CHECK(complete.take() == "a");
}

// ---- random -------------------------------------------------------------------------------------

namespace {

/// The same by plain means: body and rest of bytes that hold a whole chunked body, else nothing.
/// Of the limits it knows only that on a line.
std::optional<std::pair<std::string, std::string>> slowly_decoded(std::string_view bytes) {
    const auto line = [&]() -> std::optional<std::string_view> {
        const std::size_t end = bytes.find("\r\n");
        if (end == bytes.npos || end + 2 > longest_line) return std::nullopt;
        const auto text = bytes.substr(0, end);
        bytes.remove_prefix(end + 2);
        for (const char c : text) {
            const int code = static_cast<unsigned char>(c);
            if ((code < 32 && c != '\t') || code == 127) return std::nullopt;
        }
        return text;
    };
    std::string body;
    for (;;) {
        const auto text = line();
        if (!text) return std::nullopt;
        std::size_t size = 0;
        std::size_t digits = 0;
        for (; digits < text->size(); ++digits) {
            const std::size_t value = "0123456789abcdefABCDEF"sv.find((*text)[digits]);
            if (value == text->npos) break;
            size = size * 16 + (value < 16 ? value : value - 6);
        }
        if (digits == 0 || digits > 15) return std::nullopt;
        static const std::regex extensions( // the grammar of RFC 9112 7.1.1 as it stands there
            "([ \\t]*;[ \\t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \\t]*=[ \\t]*("
            "[!#$%&'*+.^_`|~0-9A-Za-z-]+|\"([^\"\\\\]|\\\\[^])*\"))?)*");
        if (!std::regex_match(std::string(text->substr(digits)), extensions)) return std::nullopt;
        if (size == 0) break;
        if (bytes.size() < size) return std::nullopt;
        body += bytes.substr(0, size);
        bytes.remove_prefix(size);
        if (!bytes.starts_with("\r\n")) return std::nullopt;
        bytes.remove_prefix(2);
    }
    for (;;) {
        const auto text = line();
        if (!text) return std::nullopt;
        if (text->empty()) return std::pair(body, std::string(bytes));
        const std::size_t colon = text->find(':');
        if (colon == text->npos || colon == 0) return std::nullopt;
        for (const char c : text->substr(0, colon)) {
            const int code = static_cast<unsigned char>(c);
            if (code <= 32 || code >= 127 || "\"(),/;<=>?@[\\]{}"sv.find(c) != text->npos) {
                return std::nullopt;
            }
        }
    }
}

/// The outcome is the same under any split and what the slow decoder says. Whether it was accepted.
bool check_random(support::dice& dice, const std::string& bytes, std::size_t limit) {
    const std::string shown = escaped(bytes);
    CAPTURE(limit);
    CAPTURE(shown);
    const outcome whole = decode(bytes, limit);
    CHECK(decode(bytes, byte_by_byte(bytes.size()), limit) == whole);
    CHECK(decode(bytes, random_ends(dice, bytes.size()), limit) == whole);
    CHECK(decode(bytes, {dice.below(bytes.size() + 1), bytes.size()}, limit) == whole);
    CHECK(whole.body.size() <= limit);
    if (whole.status != 0) CHECK((whole.status == 400 || whole.status == 413));
    const auto slow = slowly_decoded(bytes);
    const bool complete = whole.verdict == progress::complete;
    if (slow && slow->first.size() <= limit) {
        CHECK(complete);
        CHECK(whole.body == slow->first);
        CHECK(whole.rest == slow->second);
    } else {
        CHECK(!complete);
    }
    return complete;
}

std::string random_size_line(support::dice& dice, std::size_t size) {
    std::string line = std::string(dice.one_in(3) ? dice.below(5) : 0, '0') + hex(size);
    if (dice.one_in(2)) {
        for (char& c : line) {
            if (c >= 'a' && c <= 'f') c = static_cast<char>(c - 32);
        }
    }
    if (dice.one_in(4)) line += dice.one_in(2) ? ";a=\"b\"" : " ; c";
    return line + "\r\n";
}

std::string random_chunking(support::dice& dice, std::string_view body) {
    std::string bytes;
    while (!body.empty()) {
        const std::size_t most = dice.one_in(4) ? 2 : dice.one_in(2) ? 20 : 2000;
        const auto data = body.substr(0, dice.between(1, most));
        body.remove_prefix(data.size());
        bytes.append(random_size_line(dice, data.size())).append(data).append("\r\n");
    }
    bytes += random_size_line(dice, 0);
    for (std::size_t left = dice.below(3); left > 0; --left) bytes += "X: y\r\n";
    return bytes + "\r\n";
}

} // namespace

TEST_CASE("random bodies come out of random chunkings as they went in") {
    support::dice dice(20250201);
    for (int round = 0; round < 1500; ++round) {
        const std::string body = dice.bytes(dice.one_in(3) ? 5000 : 100, "\r\n0;a");
        const std::string rest = dice.bytes(10, "\r\nG");
        const std::string bytes = random_chunking(dice, body) + rest;
        CAPTURE(round);
        const auto in_pieces = random_ends(dice, bytes.size(), dice.one_in(2) ? 10 : bytes.size());
        for (const outcome& got : {decode(bytes), decode(bytes, in_pieces, body.size())}) {
            check_status(got, 0);
            CHECK(got.body == body);
            CHECK(got.rest == rest);
        }
    }
}

TEST_CASE("a random chunking with a few bytes damaged is read as the slow decoder reads it") {
    support::dice dice(20250202);
    int accepted = 0;
    for (int round = 0; round < 6000; ++round) {
        std::string bytes = random_chunking(dice, dice.bytes(30, "\r\n0;a")) + "GET ";
        for (std::size_t left = dice.below(4); left > 0; --left) {
            const std::size_t at = dice.below(bytes.size());
            const char c = dice.one_in(2) ? dice.one_of("\r\n\t ;:0x-+_\0\x7f"sv) : dice.byte();
            switch (dice.below(3)) {
            case 0: bytes[at] = c; break;
            case 1: bytes.insert(at, 1, c); break;
            default: bytes.erase(at, 1); break;
            }
        }
        CAPTURE(round);
        accepted += check_random(dice, bytes, dice.one_in(4) ? dice.below(40) : default_limit);
    }
    CHECK(accepted > 1000); // else too much is damaged
}

TEST_CASE("random words of chunking are read as the slow decoder reads them") {
    constexpr std::string_view words[] = {
        "0",    "5",     "a",  "1", "2",  "\r\n", "\r\n",     "\r\n",         "\r\n",
        ";a=b", "abcde", "\r", " ", "\n", "\t",   "X: y\r\n", "0\r\n\r\n",    "5\r\nabcde\r\n",
        ":",    "0\r\n", "Y",  ",", "+",  "0x",   "1\r\na",   "2\r\n\r\n\r\n"};
    support::dice dice(20250203);
    int accepted = 0;
    for (int round = 0; round < 6000; ++round) {
        std::string bytes;
        for (std::size_t left = dice.below(10); left > 0; --left) bytes += dice.one_of(words);
        CAPTURE(round);
        accepted += check_random(dice, bytes, dice.one_in(4) ? dice.below(20) : default_limit);
    }
    CHECK(accepted > 100);
}

TEST_CASE("random bytes get the same verdict under any split as a chunked body") {
    support::dice dice(20250204);
    for (int round = 0; round < 4000; ++round) {
        CAPTURE(round);
        check_random(dice, dice.bytes(40, "0012f;\r\n\r\n"), default_limit);
    }
}

// ---- header lines -------------------------------------------------------------------------------

TEST_CASE("a head may have as many header lines as its reader allows, one more gets 431") {
    for (const std::size_t most : {1U, 2U, 7U, 100U, 300U}) {
        CAPTURE(most);
        std::string lines = "GET / HTTP/1.1\r\nHost: a\r\n";
        for (std::size_t i = 1; i < most; ++i) lines += "X: y\r\n";
        sse::request right;
        CHECK(right.parse(lines + "\r\n", most).status == 0);
        CHECK(right.fields.size() == most);
        sse::request wrong;
        CHECK(wrong.parse(lines + "X: y\r\n\r\n", most).status == 431);
    }
}

TEST_CASE("a hundred header lines are the default") {
    std::string lines = "GET / HTTP/1.1\r\nHost: a\r\n";
    for (int i = 1; i < 100; ++i) lines += "X: y\r\n";
    sse::request right;
    CHECK(right.parse(lines + "\r\n").status == 0);
    sse::request wrong;
    CHECK(wrong.parse(lines + "X: y\r\n\r\n").status == 431);
}

TEST_CASE("the host of a target in absolute-form is found though the header lines are used up") {
    sse::request request;
    CHECK(request.parse("GET http://b/ HTTP/1.0\r\nX: y\r\n\r\n", 1).status == 0);
    CHECK(request.header("Host") == std::optional("b"sv));
}

// ---- query --------------------------------------------------------------------------------------

namespace {

struct query_case {
    std::string_view query;
    std::string_view name;
    std::vector<std::string> values;
};

void check_query(const query_case& c) {
    CAPTURE(c.query);
    CAPTURE(c.name);
    sse::request request;
    request.query = c.query;
    CHECK(request.query_values(c.name) == c.values);
    const auto first = request.query_value(c.name);
    CHECK(first.has_value() == !c.values.empty());
    if (first && !c.values.empty()) CHECK(*first == c.values.front());
}

} // namespace

TEST_CASE("the values of a name in a query come in order") {
    for (const query_case& c : std::initializer_list<query_case>{
             {"a=1", "a", {"1"}},
             {"a=1&b=2", "a", {"1"}},
             {"a=1&b=2", "b", {"2"}},
             {"a=2&b=x&a=1&a=2", "a", {"2", "1", "2"}},
             {"", "a", {}},
             {"a=1", "b", {}},
             {"a=1", "A", {}},
             {"aa=1&xa=2", "a", {}},
             {"a=1", "", {}},
         }) {
        check_query(c);
    }
}

TEST_CASE("a query is taken apart as the URL standard takes forms apart") {
    for (const query_case& c : std::initializer_list<query_case>{
             {"a", "a", {""}},
             {"a=", "a", {""}},
             {"a&b", "b", {""}},
             {"=1", "", {"1"}},
             {"=", "", {""}},
             {"a=b=c", "a", {"b=c"}},
             {"a==", "a", {"="}},
             {"&&a=1&&&b=2&", "a", {"1"}},
             {"&&a=1&&&b=2&", "", {}}, // nothing between two marks is not a pair
             {"&", "", {}},
             {"a=1;b=2", "a", {"1;b=2"}}, // a semicolon has parted pairs in HTML 4 only
             {"a=1?b=2", "a", {"1?b=2"}},
             {"a=/x/y:z@", "a", {"/x/y:z@"}},
             {"a[]=1&a[]=2", "a[]", {"1", "2"}},
         }) {
        check_query(c);
    }
}

TEST_CASE("names and values of a query are decoded once, a broken escape stands for itself") {
    for (const query_case& c : std::initializer_list<query_case>{
             {"a=b+c", "a", {"b c"}},
             {"a+b=c", "a b", {"c"}},
             {"a=+", "a", {" "}},
             {"a=%2B%2b", "a", {"++"}},
             {"a=b%20c", "a", {"b c"}},
             {"%61=%62", "a", {"b"}},
             {"a=%26b%3D1", "a", {"&b=1"}}, // what an escape stands for parts nothing
             {"a=%26b%3D1", "b", {}},
             {"a%3D=1", "a=", {"1"}},
             {"a=caf%c3%A9", "a", {"caf\xC3\xA9"}},
             {"a=%2541", "a", {"%41"}},
             {"a=%25%34%31", "a", {"%41"}},
             {"a=%00b", "a", {"\0b"s}},
             {"a=%", "a", {"%"}},
             {"a=%4", "a", {"%4"}},
             {"a=%4&b", "a", {"%4"}},
             {"a=%zz", "a", {"%zz"}},
             {"a=%4g", "a", {"%4g"}},
             {"a=%+1", "a", {"% 1"}},
             {"a=%%41", "a", {"%A"}},
             {"%=1", "%", {"1"}},
         }) {
        check_query(c);
    }
}

TEST_CASE("the query of a request that came is what its values are found in") {
    sse::request request;
    CHECK(request
              .parse("GET /subscribe?topic=%2Fgold&topic=/sil+ver&last HTTP/1.1\r\nHost: a\r\n\r\n")
              .status == 0);
    CHECK(request.query_values("topic") == std::vector<std::string>{"/gold", "/sil ver"});
    CHECK(request.query_value("last") == "");
    CHECK(request.query_value("none") == std::nullopt);
}

// ---- chunks -------------------------------------------------------------------------------------

namespace {

using sse::detail::chunked_encoder;
using buffers = std::vector<asio::const_buffer>;

/// Takes at most so many bytes of a call, and notes how many buffers it was given.
struct short_writer {
    std::size_t room;
    std::string out = {};
    std::size_t most_buffers = 0;

    std::optional<std::size_t> operator()(std::span<const asio::const_buffer> given) {
        most_buffers = std::max(most_buffers, given.size());
        const std::size_t before = out.size();
        for (const asio::const_buffer& one : given) {
            const std::size_t n = std::min(one.size(), room - (out.size() - before));
            out.append(static_cast<const char*>(one.data()), n);
        }
        return out.size() - before;
    }
};

/// Text in buffers of this size.
buffers cut_up(std::string_view text, std::size_t size) {
    buffers pieces;
    for (; !text.empty(); text.remove_prefix(std::min(size, text.size()))) {
        pieces.push_back(asio::buffer(text.substr(0, size)));
    }
    return pieces;
}

/// Writes a head and a body, then the end, as a stream does: what was not taken is offered again.
std::string written(std::string_view head, std::string_view body, std::size_t room,
                    std::size_t piece) {
    chunked_encoder encoder;
    short_writer writer{room};
    const auto write_all = [&](std::string_view text) {
        while (!text.empty()) {
            const std::size_t before = writer.out.size();
            const auto taken = encoder.write(cut_up(text, piece), std::ref(writer));
            REQUIRE(taken);
            REQUIRE(*taken <= text.size());
            REQUIRE(writer.out.size() > before);
            text.remove_prefix(*taken);
        }
    };
    encoder.pass(head.size());
    write_all(std::string(head) + std::string(body));
    encoder.end();
    write_all(chunked_encoder::last_chunk);
    return writer.out;
}

} // namespace

TEST_CASE("what a writer takes whole is one chunk, after what was passed") {
    const std::string body = "hello, chunks of 26 bytes!";
    for (const std::size_t piece : {1u, 2u, 3u, 4u, 5u, 26u, 100u}) {
        CAPTURE(piece);
        CHECK(written("", body, 1000, piece) == "1a\r\n" + body + "\r\n0\r\n\r\n");
        CHECK(written("head", body, 1000, piece) == "head1a\r\n" + body + "\r\n0\r\n\r\n");
        CHECK(written("head", "", 1000, piece) == "head0\r\n\r\n");
    }
}

TEST_CASE("an empty buffer makes no chunk, which would end the body") {
    chunked_encoder encoder;
    short_writer writer{1000};
    CHECK(encoder.write(buffers{asio::buffer(""sv), asio::buffer(""sv)}, std::ref(writer)) == 0);
    CHECK(writer.out.empty());
    const buffers some{asio::buffer(""sv), asio::buffer("a"sv), asio::buffer(""sv),
                       asio::buffer("b"sv)};
    CHECK(encoder.write(some, std::ref(writer)) == 2);
    CHECK(writer.out == "2\r\nab\r\n");
}

TEST_CASE("a body comes out of its chunks, however little the writer takes") {
    const std::string body = "data: a\n\ndata: some more of it\n\n";
    for (const std::string head : {"", "HTTP/1.1 200 OK\r\n\r\n"}) {
        for (std::size_t room = 1; room < 70; ++room) {
            for (const std::size_t piece : {1u, 3u, 7u, 100u}) {
                CAPTURE(head.size());
                CAPTURE(room);
                CAPTURE(piece);
                const std::string all = written(head, body, room, piece);
                REQUIRE(all.starts_with(head));
                const outcome got = decode(all.substr(head.size()));
                CHECK(got.verdict == progress::complete);
                CHECK(got.body == body);
                CHECK(got.rest == "");
            }
        }
    }
}

TEST_CASE("a chunk has at most 64 KiB, so that no more of it is kept for a slow client") {
    const std::string body(200'000, 'x');
    const std::string most(65536, 'x');
    const std::string last(200'000 - 3 * 65536, 'x');
    for (const std::size_t piece : {1000u, 65536u, 70'000u, 200'000u}) {
        CAPTURE(piece);
        const auto all = written("head", body, 1'000'000, piece);
        const bool few = piece > 65536 / 50; // buffers, else they end a chunk
        if (few) {
            CHECK(all == "head10000\r\n" + most + "\r\n10000\r\n" + most + "\r\n10000\r\n" + most +
                             "\r\nd40\r\n" + last + "\r\n0\r\n\r\n");
        }
        CHECK(decode(all.substr(4)).body == body);
    }
}

TEST_CASE("no more buffers are given to the writer than Asio takes at a call") {
    const std::string body(500, 'x');
    for (const std::string head : {"", "h", "head"}) {
        CAPTURE(head);
        chunked_encoder encoder;
        short_writer writer{1000};
        encoder.pass(head.size());
        const std::string text = head + body;
        CHECK(encoder.write(cut_up(text, 1), std::ref(writer)) == text.size());
        CHECK(writer.most_buffers > 60);
        CHECK(writer.most_buffers <= 64);
        CHECK(decode(writer.out.substr(head.size()) + "0\r\n\r\n").body == body);
    }
}

TEST_CASE("a buffer may end the head and begin the body, as the last that a call has room for") {
    for (const std::size_t passed : {117u, 119u, 121u, 123u, 125u, 127u, 129u}) {
        CAPTURE(passed);
        const std::string head(passed, 'h');
        const std::string body(200, 'x');
        chunked_encoder encoder;
        short_writer writer{1000};
        encoder.pass(passed);
        CHECK(encoder.write(cut_up(head + body, 2), std::ref(writer)) == passed + body.size());
        CHECK(writer.most_buffers <= 64);
        CHECK(decode(writer.out.substr(passed) + "0\r\n\r\n").body == body);
    }
}

TEST_CASE("until the rest of a chunk is out, its last byte counts as not taken") {
    chunked_encoder encoder;
    const buffers body{asio::buffer("hello"sv)};
    short_writer some{4};
    CHECK(encoder.write(body, std::ref(some)) == 4); // "5\r\nh": the rest is kept
    const buffers owed{asio::buffer("o"sv)};
    CHECK(encoder.write(owed, std::ref(some)) == 0); // "ello"
    CHECK(encoder.write(owed, std::ref(some)) == 1); // CR LF
    CHECK(some.out == "5\r\nhello\r\n");
}

TEST_CASE("a broken writer ends a chunk, whole or the rest of one") {
    chunked_encoder encoder;
    const auto broken = [](std::span<const asio::const_buffer>) {
        return std::optional<std::size_t>();
    };
    const buffers body{asio::buffer("hello"sv)};
    CHECK(encoder.write(body, broken) == std::nullopt);
    CHECK(encoder.write(body, short_writer{4}) == 4);
    CHECK(encoder.write(body, broken) == std::nullopt);
}

TEST_CASE("a body by its length takes so many bytes and leaves the rest") {
    for (const std::size_t size : {0u, 1u, 2u, 5u, 6u}) {
        const std::string bytes = "abcdeGET / HTTP/1.1\r\n";
        for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
            CAPTURE(size);
            CAPTURE(cut);
            auto decoder = body_decoder::of_size(size);
            std::string input = bytes.substr(0, cut);
            CHECK((decoder.feed(input) == progress::complete) == (cut >= size));
            input += bytes.substr(cut);
            CHECK(decoder.feed(input) == progress::complete);
            CHECK(decoder.take() == bytes.substr(0, size));
            CHECK(input == bytes.substr(size));
        }
    }
}

TEST_CASE("an endless body may trickle, its trailers may not go on for ever") {
    auto decoder = body_decoder::of_chunks(body_decoder::endless);
    for (int n = 0; n < 20'000; ++n) {
        std::string chunk = "1\r\nx\r\n";
        REQUIRE(decoder.feed(chunk) == progress::need_more);
    }
    auto trailers = progress::need_more;
    for (int n = 0; n < 20'000 && trailers == progress::need_more; ++n) {
        std::string line = n == 0 ? "0\r\n" : "a: b\r\n";
        trailers = decoder.feed(line);
    }
    CHECK(trailers == progress::refused);
}

} // namespace body_test
