// head.cpp - covers >>request, >>head: head_parser and request, from the bytes of a request head to
// what was asked or why it is refused. Each case of the tables names its rule, mostly a section of
// RFC 9112 or RFC 9110; "ours" where the standard leaves the choice. Every case is fed whole, byte
// by byte and cut in two at every place, and must end the same.
#include "sse.hpp"

#include "support/bytes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace head_test {

using namespace std::string_literals;
using namespace std::string_view_literals;
using support::byte_by_byte;
using support::escaped;
using support::in_every_way;
using support::random_ends;

namespace {

constexpr std::size_t default_limit = 16 * 1024;

// ---- reading ------------------------------------------------------------------------------------

/// All that a head came to. Holds its own copies: they are taken when the input is gone.
struct outcome {
    bool complete = false; ///< Neither refused nor in want of more bytes.
    int status = 0;        ///< Of the refusal; 0: none.
    std::string reason;
    std::size_t size = 0; ///< Bytes up to the end of the head.
    std::string method, target, path, query;
    std::vector<std::pair<std::string, std::string>> fields;
    std::uint64_t content_length = 0;
    bool chunked = false;
    bool keep_alive = false;

    friend bool operator==(const outcome&, const outcome&) = default;
    friend std::ostream& operator<<(std::ostream& out, const outcome& o) {
        if (o.status != 0) return out << o.status << ' ' << o.reason;
        if (!o.complete) return out << "more bytes wanted";
        out << escaped(o.method) << ' ' << escaped(o.target) << " path " << escaped(o.path)
            << " query " << escaped(o.query) << " length " << o.content_length
            << (o.chunked ? " chunked" : "") << (o.keep_alive ? " keep" : " close") << " size "
            << o.size;
        for (const auto& [name, value] : o.fields) {
            out << " [" << escaped(name) << ": " << escaped(value) << ']';
        }
        return out;
    }
};

/// Bytes in memory of exactly their size, so that the address sanitizer sees a look beyond them.
class exact_copy {
public:
    explicit exact_copy(std::string_view bytes)
        : bytes_(std::make_unique<char[]>(bytes.size())), size_(bytes.size()) {
        std::copy(bytes.begin(), bytes.end(), bytes_.get());
    }
    std::string_view view() const { return {bytes_.get(), size_}; }

private:
    std::unique_ptr<char[]> bytes_;
    std::size_t size_;
};

outcome outcome_of(const sse::request& r, sse::request::verdict v, std::size_t size) {
    outcome o;
    o.complete = v.status == 0;
    o.status = v.status;
    o.reason = v.reason;
    if (!o.complete) return o;
    o.size = size;
    o.method = r.method;
    o.target = r.target;
    o.path = r.path;
    o.query = r.query;
    for (const auto& f : r.fields) o.fields.emplace_back(f.name, f.value);
    o.content_length = r.content_length;
    o.chunked = r.chunked;
    o.keep_alive = r.keep_alive;
    return o;
}

/// What becomes of bytes that arrive in pieces which end at these places, the last at their end.
/// The input lies elsewhere after each piece, as in a growing buffer.
outcome read(std::string_view bytes, const std::vector<std::size_t>& ends, std::size_t limit) {
    sse::detail::head_parser parser(limit);
    sse::request request;
    for (const std::size_t end : ends) {
        const auto input = std::make_unique<exact_copy>(bytes.substr(0, end));
        const auto progress = parser.feed(input->view());
        if (progress == sse::detail::head_parser::progress::refused) {
            CHECK(parser.refusal().status != 0);
            return outcome_of(request, parser.refusal(), 0);
        }
        if (progress == sse::detail::head_parser::progress::need_more) continue;
        const auto head = std::make_unique<exact_copy>(parser.head(input->view()));
        CHECK(head->view().ends_with("\r\n\r\n"));
        const auto verdict = request.parse(head->view());
        CHECK((verdict.status == 0 || !verdict.reason.empty()));
        return outcome_of(request, verdict, parser.size());
    }
    return {};
}

outcome read(std::string_view bytes, std::size_t limit = default_limit) {
    return read(bytes, {bytes.size()}, limit);
}

outcome read_in_every_way(std::string_view bytes, std::size_t limit = default_limit) {
    return in_every_way(bytes, [limit](std::string_view all, const std::vector<std::size_t>& ends) {
        return read(all, ends, limit);
    });
}

// ---- cases --------------------------------------------------------------------------------------

/// What a case of a table must come to.
struct expected {
    int status = 0;    ///< Of the refusal; 0: accepted.
    int or_status = 0; ///< Another status that the standard allows.
    bool incomplete = false;
    std::string_view method = "GET";
    std::string_view path = "/";
    std::string_view query = "";
    std::uint64_t length = 0;
    bool chunked = false;
    bool keep_alive = true;
    std::size_t left = 0; ///< Bytes after the head.
};

struct head_case {
    std::string_view rule;
    std::string bytes;
    expected want = {};
};

/// A head with this request line.
std::string line(std::string_view request_line) {
    return std::string(request_line) + "\r\nHost: a\r\n\r\n";
}

/// A head with this field line, or lines.
std::string field(std::string_view lines) {
    return "GET / HTTP/1.1\r\nHost: a\r\n" + std::string(lines) + "\r\n\r\n";
}

/// The same of HTTP/1.0.
std::string old_field(std::string_view lines) {
    return "GET / HTTP/1.0\r\n" + std::string(lines) + "\r\n\r\n";
}

/// A head with this value of Host.
std::string host(std::string_view value) {
    return "GET / HTTP/1.1\r\nHost: " + std::string(value) + "\r\n\r\n";
}

void check_case(const head_case& c) {
    const std::string bytes = escaped(c.bytes);
    CAPTURE(c.rule);
    CAPTURE(bytes);
    const outcome got = read_in_every_way(c.bytes);
    CAPTURE(got);
    if (c.want.status != 0) {
        const bool either = got.status == c.want.status ||
                            (c.want.or_status != 0 && got.status == c.want.or_status);
        if (!either) CHECK(got.status == c.want.status);
        return;
    }
    CHECK(got.status == 0);
    CHECK(got.complete == !c.want.incomplete);
    if (!got.complete) return;
    CHECK(got.method == c.want.method);
    CHECK(got.path == c.want.path);
    CHECK(got.query == c.want.query);
    CHECK(got.content_length == c.want.length);
    CHECK(got.chunked == c.want.chunked);
    CHECK(got.keep_alive == c.want.keep_alive);
    CHECK(got.size == c.bytes.size() - c.want.left);
}

void check_table(std::initializer_list<head_case> table) {
    for (const head_case& c : table) check_case(c);
}

/// The fields of a head that must be accepted.
std::vector<std::pair<std::string, std::string>> fields_of(const std::string& bytes) {
    const outcome got = read_in_every_way(bytes);
    CAPTURE(got);
    CHECK(got.complete);
    return got.fields;
}

/// Whether a list of codings asks for gzip, as the server reads it and as a plain reading does.
bool check_codings(std::string_view list) {
    static const std::regex form(
        "([^; \t]*)[ \t]*(;[ \t]*[qQ]=(0(\\.[0-9]{0,3})?|1(\\.0{0,3})?))?");
    std::map<std::string, double> weights; // of the last of each name, but the best of gzip
    for (std::size_t at = 0; at <= list.size();) {
        const std::size_t end = std::min(list.find(',', at), list.size());
        std::string element(list.substr(at, end - at));
        at = end + 1;
        const auto blank = [](char c) { return c == ' ' || c == '\t'; };
        while (!element.empty() && blank(element.back())) element.pop_back();
        while (!element.empty() && blank(element.front())) element.erase(0, 1);
        std::smatch parts;
        const bool is_formed = std::regex_match(element, parts, form);
        std::string name = element.substr(0, element.find_first_of("; \t"));
        for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
        if (name == "x-gzip") name = "gzip";
        if (element.empty() || (!is_formed && name != "gzip")) continue;
        const double weight = !is_formed ? 0 : parts[3].matched ? std::stod(parts[3]) : 1;
        weights[name] =
            name == "gzip" && weights.contains(name) ? std::max(weights[name], weight) : weight;
    }
    const auto of = [&](const char* name) { return weights.contains(name) ? weights[name] : 0; };
    const double wanted = weights.contains("gzip") ? of("gzip") : of("*");
    const bool accepted = wanted > 0 && wanted >= of("identity");
    CAPTURE(list);
    CHECK(sse::detail::accepts_gzip({{"Accept-Encoding", list}}) == accepted);
    return accepted;
}

using fields = std::vector<std::pair<std::string, std::string>>;

} // namespace

TEST_CASE("a request line is a method, a target and a version with single spaces between") {
    check_table({
        {"9112 3", line("GET / HTTP/1.1")},
        {"9112 3", line("HEAD / HTTP/1.1"), {.method = "HEAD"}},
        {"9112 3", line("POST /a HTTP/1.1"), {.method = "POST", .path = "/a"}},
        {"9110 9.1 case matters", line("get / HTTP/1.1"), {.method = "get"}},
        {"9110 9.1 any token", line("M-SEARCH / HTTP/1.1"), {.method = "M-SEARCH"}},
        {"9110 5.6.2 token", line("!#$%&'*+-.^_`|~09 / HTTP/1.1"), {.method = "!#$%&'*+-.^_`|~09"}},
        {"9110 5.6.2 token", line("GE(T / HTTP/1.1"), {.status = 400}},
        {"9110 5.6.2 token", line("GET: / HTTP/1.1"), {.status = 400}},
        {"9110 5.6.2 token", line("\"GET\" / HTTP/1.1"), {.status = 400}},
        {"9110 5.6.2 token", line("G\xC3\x84T / HTTP/1.1"), {.status = 400}},
        {"9112 3 no method", line("/ HTTP/1.1"), {.status = 400}},
        {"9112 3 no method", line(" / HTTP/1.1"), {.status = 400}},
        {"9112 3 no target", line("GET HTTP/1.1"), {.status = 400}},
        {"9112 3 no target", line("GET  HTTP/1.1"), {.status = 400}},
        {"9112 3 no version", line("GET /"), {.status = 400}},
        {"9112 3 no version", line("GET / "), {.status = 400}},
        {"9112 3 one word", line("GET"), {.status = 400}},
        {"9112 3 single space", line("GET  / HTTP/1.1"), {.status = 400}},
        {"9112 3 single space", line("GET /  HTTP/1.1"), {.status = 400}},
        {"9112 3 single space", line("GET / HTTP/1.1 "), {.status = 400}},
        {"9112 3 single space", line(" GET / HTTP/1.1"), {.status = 400}},
        {"9112 3 no tab", line("GET\t/\tHTTP/1.1"), {.status = 400}},
        {"9112 3 no tab", line("GET /\tHTTP/1.1"), {.status = 400}},
        {"9112 3 no VT", line("GET\v/ HTTP/1.1"), {.status = 400}},
        {"9112 3 no FF", line("GET /\fHTTP/1.1"), {.status = 400}},
        {"9112 3.2 no space in a target", line("GET /a b HTTP/1.1"), {.status = 400}},
        {"9112 2.3 case matters", line("GET / http/1.1"), {.status = 400}},
        {"9112 2.3 case matters", line("GET / Http/1.1"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/1.1x"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/1."), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/1"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/.1"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/11"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP/1,1"), {.status = 400}},
        {"9112 2.3", line("GET / HTTP 1.1"), {.status = 400}},
        {"9112 2.3 one digit each", line("GET / HTTP/1.10"), {.status = 400}},
        {"9112 2.3 one digit each", line("GET / HTTP/01.1"), {.status = 400}},
        {"9112 2.3 one digit each", line("GET / HTTP/1.1.1"), {.status = 400}},
        {"9112 2.3 digits", line("GET / HTTP/+.1"), {.status = 400}},
        {"9112 2.3 digits", line("GET / HTTP/1.a"), {.status = 400}},
        {"9112 2.3 digits", line("GET / HTTP/1.\xB2"), {.status = 400}},
        {"9112 2.3 the name", line("GET / HTTPS/1.1"), {.status = 400}},
        {"9112 2.3 the name", line("GET / ICY/1.1"), {.status = 400}},
        {"9110 2.5 higher minor", line("GET / HTTP/1.2")},
        {"9110 2.5 higher minor", line("GET / HTTP/1.9")},
        {"9110 15.6.6 other major", line("GET / HTTP/2.0"), {.status = 505}},
        {"9110 15.6.6 other major", line("GET / HTTP/3.0"), {.status = 505}},
        {"9110 15.6.6 other major", line("GET / HTTP/0.9"), {.status = 505}},
        {"9113 3.4 HTTP/2 by surprise", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {.status = 505}},
        {"9112 2.2 TLS by mistake",
         "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"s,
         {.status = 400}},
        {"9110 5.5 NUL", line("GET /\0 HTTP/1.1"sv), {.status = 400}},
        {"9110 5.5 NUL", line("G\0T / HTTP/1.1"sv), {.status = 400}},
    });
}

TEST_CASE("a target in origin-form is a path and perhaps a query") {
    check_table({
        {"9112 3.2.1", line("GET /a/b HTTP/1.1"), {.path = "/a/b"}},
        {"9112 3.2.1", line("GET /a/ HTTP/1.1"), {.path = "/a/"}},
        {"9112 3.2.1", line("GET /a?b=c&d HTTP/1.1"), {.path = "/a", .query = "b=c&d"}},
        {"3986 3.4 the first mark", line("GET /a?b?c HTTP/1.1"), {.path = "/a", .query = "b?c"}},
        {"3986 3.4 an empty query", line("GET /a? HTTP/1.1"), {.path = "/a"}},
        {"9112 3.2.1 not a host", line("GET //a/b HTTP/1.1"), {.path = "//a/b"}},
        {"3986 3.3 pchar", line("GET /:@!$&'()*+,;=-._~ HTTP/1.1"), {.path = "/:@!$&'()*+,;=-._~"}},
        {"3986 3.4 slash in a query",
         line("GET /a?http://b/ HTTP/1.1"),
         {.path = "/a", .query = "http://b/"}},
        {"9112 3.2.1 a path first", line("GET ?a HTTP/1.1"), {.status = 400}},
        {"9112 3.2.1 a path first", line("GET a/b HTTP/1.1"), {.status = 400}},
        {"9112 3.2.1 a path first", line("GET http HTTP/1.1"), {.status = 400}},
        {"9112 3.2.1 a path first", line("GET \\a HTTP/1.1"), {.status = 400}},
        {"9112 3.2 no fragment", line("GET /a#b HTTP/1.1"), {.status = 400}},
        {"9112 3.2 no fragment", line("GET /a?b#c HTTP/1.1"), {.status = 400}},
        {"3986 2 ASCII only", line("GET /caf\xC3\xA9 HTTP/1.1"), {.status = 400}},
        {"3986 2 ASCII only", line("GET /?\xFF HTTP/1.1"), {.status = 400}},
        {"3986 2 no DEL", line("GET /\x7f HTTP/1.1"), {.status = 400}},
        {"3986 2 no control", line("GET /\x01 HTTP/1.1"), {.status = 400}},
    });
}

TEST_CASE("a path is percent-decoded once, a query is left alone") {
    check_table({
        {"3986 2.1", line("GET /a%20b HTTP/1.1"), {.path = "/a b"}},
        {"3986 2.1", line("GET /%41%5a HTTP/1.1"), {.path = "/AZ"}},
        {"3986 2.1 any case", line("GET /%c3%A9 HTTP/1.1"), {.path = "/\xC3\xA9"}},
        {"3986 2.1 the last byte", line("GET /%ff HTTP/1.1"), {.path = "/\xFF"}},
        {"3986 2.1 an encoded mark", line("GET /a%3Fb HTTP/1.1"), {.path = "/a?b"}},
        {"3986 2.4 once", line("GET /%2541 HTTP/1.1"), {.path = "/%41"}},
        {"3986 2.4 once", line("GET /%25%34%31 HTTP/1.1"), {.path = "/%41"}},
        {"3986 2 not a form", line("GET /a+b HTTP/1.1"), {.path = "/a+b"}},
        {"ours: the query raw", line("GET /?a=%20%zz HTTP/1.1"), {.query = "a=%20%zz"}},
        {"3986 2.1", line("GET /% HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET /%4 HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET /%4?41 HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET /%zz HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET /%4g HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET /%+1 HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET /%%41 HTTP/1.1"), {.status = 400}},
        {"3986 7.3 no NUL", line("GET /%00 HTTP/1.1"), {.status = 400}},
        {"3986 7.3 no NUL", line("GET /a%00.html HTTP/1.1"), {.status = 400}},
    });
}

TEST_CASE("a target in absolute-form is accepted") {
    check_table({
        {"9112 3.2.2", line("GET http://a/b?c HTTP/1.1"), {.path = "/b", .query = "c"}},
        {"9112 3.2.2 no path", line("GET http://a HTTP/1.1")},
        {"9112 3.2.2 no path", line("GET http://a?b HTTP/1.1"), {.query = "b"}},
        {"3986 3.1 any case", line("GET HTTP://A/b HTTP/1.1"), {.path = "/b"}},
        {"9110 4.2.2", line("GET https://a/b HTTP/1.1"), {.path = "/b"}},
        {"9110 4.2.1 port", line("GET http://a:8080/b HTTP/1.1"), {.path = "/b"}},
        {"3986 3.2.3 empty port", line("GET http://a:/b HTTP/1.1"), {.path = "/b"}},
        {"3986 3.2.2 IPv4", line("GET http://127.0.0.1/b HTTP/1.1"), {.path = "/b"}},
        {"3986 3.2.2 IPv6", line("GET http://[::1]:8080/b HTTP/1.1"), {.path = "/b"}},
        {"9112 3.2.2 decoded too", line("GET http://a/%41 HTTP/1.1"), {.path = "/A"}},
        {"9112 3.2.2", "GET http://a/ HTTP/1.0\r\n\r\n", {.keep_alive = false}},
        {"9112 3.2 Host needed all the same", "GET http://a/ HTTP/1.1\r\n\r\n", {.status = 400}},
        {"9110 4.2.1 empty host", line("GET http:///b HTTP/1.1"), {.status = 400}},
        {"9110 4.2.1 empty host", line("GET http://:80/b HTTP/1.1"), {.status = 400}},
        {"9110 4.2.1 empty host", line("GET http://?b HTTP/1.1"), {.status = 400}},
        {"9110 4.2.4 user information", line("GET http://user@a/ HTTP/1.1"), {.status = 400}},
        {"9110 4.2.4 user information", line("GET http://a:80@b/ HTTP/1.1"), {.status = 400}},
        {"3986 3.2.3 port", line("GET http://a:x/ HTTP/1.1"), {.status = 400}},
        {"3986 3.2.2 IPv6", line("GET http://[::1/ HTTP/1.1"), {.status = 400}},
        {"3986 3.2.2 IPv6", line("GET http://::1/ HTTP/1.1"), {.status = 400}},
        {"9112 3.2.2 no fragment", line("GET http://a#b HTTP/1.1"), {.status = 400}},
        {"9112 3.2.2 no fragment", line("GET http://a/#b HTTP/1.1"), {.status = 400}},
        {"3986 2.1", line("GET http://a/%zz HTTP/1.1"), {.status = 400}},
        {"ours: no other scheme", line("GET ftp://a/ HTTP/1.1"), {.status = 400}},
        {"9110 4.2.1", line("GET http:/a HTTP/1.1"), {.status = 400}},
        {"9110 4.2.1", line("GET http:a HTTP/1.1"), {.status = 400}},
        {"9110 4.2.1", line("GET ://a/ HTTP/1.1"), {.status = 400}},
    });
}

TEST_CASE("the target * is for OPTIONS, and authority-form is for proxies") {
    check_table({
        {"9112 3.2.4", line("OPTIONS * HTTP/1.1"), {.method = "OPTIONS", .path = "*"}},
        {"9112 3.2.4", line("OPTIONS /a HTTP/1.1"), {.method = "OPTIONS", .path = "/a"}},
        {"9112 3.2.4 only OPTIONS", line("GET * HTTP/1.1"), {.status = 400}},
        {"9112 3.2.4 only OPTIONS", line("options * HTTP/1.1"), {.status = 400}},
        {"9112 3.2.4 only the star", line("OPTIONS *?a HTTP/1.1"), {.status = 400}},
        {"9112 3.2.4 only the star", line("OPTIONS ** HTTP/1.1"), {.status = 400}},
        {"9112 3.2.3 only CONNECT", line("GET a:80 HTTP/1.1"), {.status = 400}},
        {"ours: no tunnels", line("CONNECT a:80 HTTP/1.1"), {.status = 400, .or_status = 501}},
    });
}

TEST_CASE("lines end in CR LF and nothing else") {
    check_table({
        {"9112 2.2 bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 bare LF", "GET / HTTP/1.1\r\nHost: a\n\r\n", {.status = 400}},
        {"9112 2.2 bare LF", "GET / HTTP/1.1\r\nHost: a\r\n\n", {.status = 400}},
        {"9112 2.2 bare LF", "GET / HTTP/1.1\n\n", {.status = 400}},
        {"9112 2.2 bare LF", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 bare LF", field("X: a\nY: b"), {.status = 400}},
        {"9112 2.2 bare CR", "GET / HTTP/1.1\rHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 bare CR", "GET / HTTP/1.1\r\nHost: a\r\n\rX", {.status = 400}},
        {"9112 2.2 bare CR", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 bare CR", field("X: a\rY: b"), {.status = 400}},
        {"9112 2.2 bare CR", field("X\r: a"), {.status = 400}},
        {"9112 2.2 bare CR", field("X:\ra"), {.status = 400}},
        {"9112 2.2 CR CR LF", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 CR CR LF", field("X: a\r"), {.status = 400}},
        {"9112 2.2 LF CR", "GET / HTTP/1.1\n\rHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 empty lines before", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
        {"9112 2.2 empty lines before", "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
        {"9112 2.2 only empty ones", " \r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 only empty ones", "\t\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 not a head yet", "\r\n\r\n\r\n", {.incomplete = true}},
        {"9112 2.1 nothing yet", "", {.incomplete = true}},
        {"9112 2.1 no empty line yet", "GET / HTTP/1.1\r\nHost: a\r\n", {.incomplete = true}},
        {"9112 2.1 no empty line yet", "GET / HTTP/1.1\r\nHost: a\r\n\r", {.incomplete = true}},
        {"9112 9.3.2 the next request",
         line("GET / HTTP/1.1") + "GET /b HTTP/1.1\r\n",
         {.left = 17}},
        {"9112 6 the body", field("Content-Length: 2") + "\r\n", {.length = 2, .left = 2}},
        {"9112 6 no look at the body",
         field("Content-Length: 3") + "\0\n\r"s,
         {.length = 3, .left = 3}},
    });
}

TEST_CASE("a field line is a token, a colon and a value without control characters") {
    check_table({
        {"9112 5", field("X: a")},
        {"9112 5 no space", field("X:a")},
        {"9112 5 white space around", field("X: \t a \t ")},
        {"9110 5.5 empty value", field("X:")},
        {"9110 5.5 colon in a value", field("X: a:b")},
        {"9110 5.5 tab in a value", field("X: a\tb")},
        {"9110 5.5 obs-text", field("X: caf\xC3\xA9 \xFF\x80")},
        {"9110 5.6.2 token", field("!#$%&'*+-.^_`|~09: a")},
        {"9112 5.1 space before the colon", field("X : a"), {.status = 400}},
        {"9112 5.1 tab before the colon", field("X\t: a"), {.status = 400}},
        {"9112 5.1 hidden framing", field("Transfer-Encoding : chunked"), {.status = 400}},
        {"9112 5.2 folded", field("X: a\r\n b"), {.status = 400}},
        {"9112 5.2 folded", field("X: a\r\n\tb: c"), {.status = 400}},
        {"9112 5.2 folded framing", field("Transfer-Encoding:\r\n chunked"), {.status = 400}},
        {"9112 2.2 space before the first", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", {.status = 400}},
        {"9112 2.2 space before the first",
         "GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n",
         {.status = 400}},
        {"9112 5 no colon", field("X"), {.status = 400}},
        {"9112 5 no name", field(": a"), {.status = 400}},
        {"9110 5.6.2 token", field("X Y: a"), {.status = 400}},
        {"9110 5.6.2 token", field("X(Y): a"), {.status = 400}},
        {"9110 5.6.2 token", field("\"X\": a"), {.status = 400}},
        {"9110 5.6.2 token", field("X\xC3\xA9: a"), {.status = 400}},
        {"9110 5.6.2 token", field("X/Y: a"), {.status = 400}},
        {"9110 5.5 NUL", field("X: a\0b"sv), {.status = 400}},
        {"9110 5.5 NUL", field("X\0: a"sv), {.status = 400}},
        {"9110 5.5 BEL", field("X: \a"), {.status = 400}},
        {"9110 5.5 VT", field("X: a\vb"), {.status = 400}},
        {"9110 5.5 FF", field("X: a\f"), {.status = 400}},
        {"9110 5.5 ESC", field("X: \x1b[0m"), {.status = 400}},
        {"9110 5.5 DEL", field("X: a\x7f"), {.status = 400}},
    });
}

TEST_CASE("HTTP/1.1 needs exactly one Host, and a valid one") {
    check_table({
        {"9112 3.2", host("a")},
        {"9112 3.2", host("a.example:8080")},
        {"9112 3.2", host("127.0.0.1:8080")},
        {"9112 3.2 any case", "GET / HTTP/1.1\r\nhOsT: a\r\n\r\n"},
        {"9112 3.2 white space around", host("\t a \t")},
        {"9110 7.2 no authority", host("")},
        {"3986 3.2.2 IPv6", host("[::1]")},
        {"3986 3.2.2 IPv6", host("[::]:80")},
        {"3986 3.2.2 IPv6", host("[2001:db8:1:2:3:4:5:6]:80")},
        {"3986 3.2.2 IPv6", host("[::ffff:127.0.0.1]")},
        {"3986 3.2.2 reg-name", host("a_b~!$&'()*+;=%41")},
        {"3986 3.2.3 empty port", host("a:")},
        {"9112 3.2 none", "GET / HTTP/1.1\r\n\r\n", {.status = 400}},
        {"9112 3.2 none", "GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", {.status = 400}},
        {"9112 3.2 none, 1.0", "GET / HTTP/1.0\r\n\r\n", {.keep_alive = false}},
        {"9112 3.2 none, 1.2", "GET / HTTP/1.2\r\n\r\n", {.status = 400}},
        {"9112 3.2 two", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 3.2 two", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nhost: b\r\n\r\n", {.status = 400}},
        {"9112 3.2 two, 1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 3.2 two, one empty", "GET / HTTP/1.1\r\nHost:\r\nHost: a\r\n\r\n", {.status = 400}},
        {"9112 3.2 invalid", host("a b"), {.status = 400}},
        {"9112 3.2 invalid", host("a, b"), {.status = 400}},
        {"9112 3.2 invalid", host("a/b"), {.status = 400}},
        {"9112 3.2 invalid", host("a?b"), {.status = 400}},
        {"9112 3.2 invalid", host("a#b"), {.status = 400}},
        {"9112 3.2 invalid", host("a\\b"), {.status = 400}},
        {"9112 3.2 invalid", host("user@a"), {.status = 400}},
        {"9112 3.2 invalid", host("http://a"), {.status = 400}},
        {"9112 3.2 invalid", host("<a>"), {.status = 400}},
        {"9112 3.2 invalid", host("a|b"), {.status = 400}},
        {"9112 3.2 invalid", host("a^b"), {.status = 400}},
        {"9112 3.2 invalid", host("a`b"), {.status = 400}},
        {"9112 3.2 invalid", host("m\xC3\xBCnchen"), {.status = 400}},
        {"9112 3.2 invalid port", host("a:8x"), {.status = 400}},
        {"9112 3.2 invalid port", host("a:-1"), {.status = 400}},
        {"9112 3.2 invalid port", host("a:80:80"), {.status = 400}},
        {"9112 3.2 invalid port", host("a: 80"), {.status = 400}},
        {"9112 3.2 IPv6 unbracketed", host("::1"), {.status = 400}},
        {"9112 3.2 IPv6", host("[::1"), {.status = 400}},
        {"9112 3.2 IPv6", host("[]"), {.status = 400}},
        {"9112 3.2 IPv6", host("[::1]80"), {.status = 400}},
        {"9112 3.2 IPv6", host("[::g]"), {.status = 400}},
        {"9112 3.2 IPv6", host("[::1%eth0]"), {.status = 400}},
        {"9112 3.2, 1.0 too", "GET / HTTP/1.0\r\nHost: a b\r\n\r\n", {.status = 400}},
    });
}

TEST_CASE("a Host is valid by the grammar, not by its characters alone") {
    check_table({
        {"3986 2.1 a broken escape", host("a%zz"), {.status = 400}},
        {"3986 2.1 a broken escape", host("a%4"), {.status = 400}},
        {"3986 2.1 a broken escape", host("%"), {.status = 400}},
        {"3986 3.2.2 no address", host("[:::::]"), {.status = 400}},
        {"3986 3.2.2 five digits", host("[12345::]"), {.status = 400}},
        {"3986 3.2.2 nine groups", host("[1:2:3:4:5:6:7:8:9]"), {.status = 400}},
        {"3986 3.2.2 three groups", host("[1:2:3]"), {.status = 400}},
        {"3986 3.2.2 two gaps", host("[1::2::3]"), {.status = 400}},
        {"3986 3.2.2 IPv4 in brackets", host("[127.0.0.1]"), {.status = 400}},
        {"3986 3.2.2 one bracket", host("x::1]"), {.status = 400}},
        {"3986 3.2.2 one bracket", host("[::1x"), {.status = 400}},
    });
}

TEST_CASE("Content-Length is one number, however often it is said") {
    check_table({
        {"9110 8.6", field("Content-Length: 0")},
        {"9110 8.6", field("Content-Length: 5"), {.length = 5}},
        {"9110 8.6 any case", field("content-length:5"), {.length = 5}},
        {"9110 8.6 white space around", field("Content-Length: \t5 "), {.length = 5}},
        {"9110 8.6 large",
         field("Content-Length: 999999999999999999"),
         {.length = 999'999'999'999'999'999}},
        {"9110 8.6 leading zero", field("Content-Length: 05"), {.length = 5}},
        {"9110 8.6, 1.0", old_field("Content-Length: 5"), {.length = 5, .keep_alive = false}},
        {"9110 8.6 twice the same", field("Content-Length: 5\r\nContent-Length: 5"), {.length = 5}},
        {"9112 6.3 twice different",
         field("Content-Length: 5\r\nContent-Length: 6"),
         {.status = 400}},
        {"9112 6.3 twice different",
         field("Content-Length: 0\r\nX: y\r\ncontent-length: 6"),
         {.status = 400}},
        {"9112 6.3 once bad", field("Content-Length: 5\r\nContent-Length: x"), {.status = 400}},
        {"9112 6.3 list different", field("Content-Length: 5, 6"), {.status = 400}},
        {"ours: no list", field("Content-Length: 5, 5"), {.status = 400}},
        {"9112 6.3 empty", field("Content-Length:"), {.status = 400}},
        {"9112 6.3 sign", field("Content-Length: -5"), {.status = 400}},
        {"9112 6.3 sign", field("Content-Length: +5"), {.status = 400}},
        {"9112 6.3 hexadecimal", field("Content-Length: 0x5"), {.status = 400}},
        {"9112 6.3 hexadecimal", field("Content-Length: a"), {.status = 400}},
        {"9112 6.3 fraction", field("Content-Length: 5.0"), {.status = 400}},
        {"9112 6.3 exponent", field("Content-Length: 1e3"), {.status = 400}},
        {"9112 6.3 separator", field("Content-Length: 1_000"), {.status = 400}},
        {"9112 6.3 space inside", field("Content-Length: 1 0"), {.status = 400}},
        {"9112 6.3 junk after", field("Content-Length: 5;"), {.status = 400}},
        {"9112 6.3 quoted", field("Content-Length: \"5\""), {.status = 400}},
        {"9112 6.3 other digits", field("Content-Length: \xEF\xBC\x95"), {.status = 400}},
        {"ours: 18 digits", field("Content-Length: 1000000000000000000"), {.status = 400}},
        {"9110 8.6 overflow", field("Content-Length: 18446744073709551616"), {.status = 400}},
        {"9110 8.6 overflow", field("Content-Length: 18446744073709551621"), {.status = 400}},
        {"9110 8.6 overflow", field("Content-Length: 99999999999999999999"), {.status = 400}},
        {"9110 8.6 overflow", field("Content-Length: 1" + std::string(400, '0')), {.status = 400}},
    });
}

TEST_CASE("Transfer-Encoding is chunked and stands alone") {
    check_table({
        {"9112 6.1", field("Transfer-Encoding: chunked"), {.chunked = true}},
        {"9112 7 any case", field("transfer-encoding:ChUnKeD"), {.chunked = true}},
        {"9112 6.1 white space around", field("Transfer-Encoding: \tchunked "), {.chunked = true}},
        {"9112 6.1 unknown coding", field("Transfer-Encoding: gzip, chunked"), {.status = 501}},
        {"9112 6.1 unknown coding", field("Transfer-Encoding: foo, chunked"), {.status = 501}},
        {"9112 6.1, two lines",
         field("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
         {.status = 501, .or_status = 400}},
        {"9112 6.1 in HTTP/1.0", old_field("Transfer-Encoding: chunked"), {.status = 400}},
        {"9112 6.3 with a length",
         field("Transfer-Encoding: chunked\r\nContent-Length: 5"),
         {.status = 400}},
        {"9112 6.3 with a length",
         field("Content-Length: 5\r\nTransfer-Encoding: chunked"),
         {.status = 400}},
        {"9112 6.3 with a length",
         field("Content-Length: 0\r\nTransfer-Encoding: chunked"),
         {.status = 400}},
        {"9112 6.1 chunked twice",
         field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
         {.status = 400}},
        {"9112 6.1 chunked twice",
         field("Transfer-Encoding: chunked, chunked"),
         {.status = 400, .or_status = 501}},
        {"9112 7.1 no parameters",
         field("Transfer-Encoding: chunked;a=b"),
         {.status = 400, .or_status = 501}},
        {"ours: no empty elements",
         field("Transfer-Encoding: ,chunked"),
         {.status = 400, .or_status = 501}},
        {"9110 5.1 another field", field("Transfer_Encoding: chunked")},
        {"9110 5.1 another field", field("X-Transfer-Encoding: chunked")},
        {"9110 5.5 VT", field("Transfer-Encoding: \vchunked"), {.status = 400}},
        {"9110 5.5 NUL", field("Transfer-Encoding: chunked\0"sv), {.status = 400}},
    });
}

TEST_CASE("a request whose final transfer coding is not chunked has no known end: 400") {
    check_table({
        {"9112 6.3", field("Transfer-Encoding: gzip"), {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: identity"), {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: chunked, gzip"), {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: chunked, identity"), {.status = 400}},
        {"9112 6.3",
         field("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
         {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: xchunked"), {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: chunk"), {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: x chunked"), {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding: \"chunked\""), {.status = 400}},
        {"9112 6.3",
         field("Transfer-Encoding: \xA0"
               "chunked"),
         {.status = 400}},
        {"9112 6.3", field("Transfer-Encoding:"), {.status = 400}},
        {"9112 6.3 and a length",
         field("Content-Length: 5\r\nTransfer-Encoding: gzip"),
         {.status = 400}},
        {"9112 6.3 and a length",
         field("Transfer-Encoding: gzip\r\nContent-Length: 5"),
         {.status = 400}},
    });
}

TEST_CASE("a connection stays open by version and Connection") {
    check_table({
        {"9112 9.3 1.1", field("X: y")},
        {"9112 9.3 1.1", field("Connection: keep-alive")},
        {"9112 9.3 1.1", field("Connection: upgrade, x")},
        {"9112 9.3 1.1", field("Connection:")},
        {"9112 9.6 close", field("Connection: close"), {.keep_alive = false}},
        {"9112 9.6 any case", field("CONNECTION: CLOSE"), {.keep_alive = false}},
        {"9112 9.6 first of a list", field("Connection: close, x"), {.keep_alive = false}},
        {"9112 9.6 last of a list", field("Connection: x,y\t,\tclose"), {.keep_alive = false}},
        {"9110 5.6.1 empty elements", field("Connection: ,, ,close,"), {.keep_alive = false}},
        {"9112 9.6 any line",
         field("Connection: x\r\nConnection: close\r\nConnection: y"),
         {.keep_alive = false}},
        {"9112 9.6 close wins", field("Connection: keep-alive, close"), {.keep_alive = false}},
        {"9112 9.6 close wins",
         field("Connection: close\r\nConnection: keep-alive"),
         {.keep_alive = false}},
        {"9112 9.6 the whole word", field("Connection: closed")},
        {"9112 9.6 the whole word", field("Connection: x-close")},
        {"9112 9.6 the whole word", field("Connection: close x")},
        {"9112 9.6 this field", field("Proxy-Connection: close")},
        {"9112 9.3 1.0", old_field("X: y"), {.keep_alive = false}},
        {"9112 9.3 1.0", old_field("Connection: x"), {.keep_alive = false}},
        {"9112 9.3 1.0 asked for", old_field("Connection: keep-alive")},
        {"9112 9.3 1.0 asked for", old_field("Connection: x, Keep-Alive")},
        {"9112 9.6 1.0 close wins",
         old_field("Connection: keep-alive, close"),
         {.keep_alive = false}},
        {"9112 9.3 1.0 this field", old_field("Keep-Alive: timeout=5"), {.keep_alive = false}},
    });
}

// ---- fields -------------------------------------------------------------------------------------

TEST_CASE("fields keep their order, their spelling and their values without white space around") {
    CHECK(fields_of(field("b:2\r\nA: \t1 \t\r\nb: x  y\r\nEmpty:  ")) ==
          fields{{"Host", "a"}, {"b", "2"}, {"A", "1"}, {"b", "x  y"}, {"Empty", ""}});
    CHECK(fields_of(field("X: caf\xC3\xA9\tau lait")).back() ==
          std::pair<std::string, std::string>("X", "caf\xC3\xA9\tau lait"));
}

TEST_CASE("a header is found in any case, the first of its name") {
    sse::request request;
    CHECK(request.parse(field("Accept: one\r\naccept: two\r\nEmpty:")).status == 0);
    for (const auto name : {"Accept"sv, "accept"sv, "ACCEPT"sv, "aCCEPT"sv}) {
        CHECK(request.header(name) == std::optional("one"sv));
    }
    CHECK(request.header("Empty") == std::optional(""sv));
    CHECK(request.header("Accep") == std::nullopt);
    CHECK(request.header("Accept-") == std::nullopt);
    CHECK(request.header("") == std::nullopt);
}

TEST_CASE("the host of a target in absolute-form wins over the Host header") {
    // RFC 9112 3.2.2: an origin server MUST ignore the received Host field then. The header is all
    // that a program can ask for the host, and what same-origin is decided by.
    sse::request request;
    CHECK(request.parse("GET http://real.example:8080/a HTTP/1.1\r\nHost: other.example\r\n\r\n")
              .status == 0);
    CHECK(request.header("Host") == std::optional("real.example:8080"sv));
    sse::request old;
    CHECK(old.parse("GET http://real.example/a HTTP/1.0\r\n\r\n").status == 0);
    CHECK(old.header("Host") == std::optional("real.example"sv));
}

TEST_CASE("HEAD is told from other methods") {
    sse::request head;
    CHECK(head.parse(line("HEAD / HTTP/1.1")).status == 0);
    CHECK(head.is_head());
    sse::request other;
    CHECK(other.parse(line("head / HTTP/1.1")).status == 0);
    CHECK(!other.is_head());
}

TEST_CASE("a request that begins with its last line has no request line") {
    for (const auto head : {""sv, "\r\n"sv}) {
        sse::request request;
        CHECK(request.parse(head).status == 400);
    }
}

TEST_CASE("a line end that nothing stands before is refused at once") {
    CHECK(sse::detail::head_parser(100).feed("\n") == sse::detail::head_parser::progress::refused);
}

TEST_CASE("a target is checked by whoever reads a head, also for what ends a line elsewhere") {
    sse::request request;
    CHECK(request.parse(line("GET /\x7f HTTP/1.1")).status == 400);
}

TEST_CASE("a host is checked and cut from its port as it stands, without what is around it") {
    namespace d = sse::detail;
    CHECK(!d::is_host_name("[::1x"));
    CHECK(!d::is_host_name("x::1]"));
    CHECK(d::split_port(":80") == std::pair(""sv, ":80"sv));
    CHECK(d::split_port("a:80") == std::pair("a"sv, ":80"sv));
    CHECK(d::split_port("[::1]:80") == std::pair("[::1]"sv, ":80"sv));
}

TEST_CASE("a text is percent-decoded to its end, and nothing after it") {
    namespace d = sse::detail;
    const std::string text = "%41";
    CHECK(d::percent_decode(text) == "A");
    CHECK(d::percent_decode("%0a%a0") == "\n\xa0");
    CHECK(d::percent_decode(std::string_view(text).substr(0, 2)) == std::nullopt);
    CHECK(d::percent_decode(std::string_view(text).substr(0, 1)) == std::nullopt);
    CHECK(d::form_decode(text) == "A");
    CHECK(d::form_decode(std::string_view(text).substr(0, 2)) == "%4");
    CHECK(d::form_decode(std::string_view(text).substr(0, 1)) == "%");
}

TEST_CASE("a target keeps its spelling beside the decoded path") {
    const outcome got = read_in_every_way(line("GET /a%20b?c=%20 HTTP/1.1"));
    CHECK(got.target == "/a%20b?c=%20");
    CHECK(got.path == "/a b");
    CHECK(got.query == "c=%20");
}

TEST_CASE("for logs there is the target without its query, as it was sent") {
    sse::request request;
    CHECK(request.parse(line("GET /a%20b?token=secret HTTP/1.1")).status == 0);
    CHECK(request.target_path() == "/a%20b");
}

TEST_CASE("gzip is for clients that say so and like nothing less than bytes as they are") {
    const auto accepts = [](std::string_view lines) {
        sse::request request;
        CHECK(request.parse(field(std::string(lines))).status == 0);
        return sse::detail::accepts_gzip(request.fields);
    };
    for (const auto lines : {
             "Accept-Encoding: gzip"sv,                    // RFC 9110 12.5.3
             "accept-encoding: GZip"sv,                    // 8.4.1: codings in any case
             "Accept-Encoding: x-gzip"sv,                  // 8.4.1.3: the same coding
             "Accept-Encoding: gzip, deflate, br, zstd"sv, // Chromium, curl
             "Accept-Encoding: br;q=1.0, gzip;q=0.001"sv,
             "Accept-Encoding: gzip ; q=0.5 , identity;q=0.5"sv,
             "Accept-Encoding: gzip;Q=1.000"sv,
             "Accept-Encoding: *"sv,
             "Accept-Encoding: *;q=0.1, br;q=0"sv,
             "Accept-Encoding: br\r\nAccept-Encoding: gzip"sv, // 5.3: one list
             "Accept-Encoding: , gzip;q=0., , gzip"sv,
             "Accept-Encoding: gzip;q=0, x-gzip"sv,
         }) {
        CAPTURE(lines);
        CHECK(accepts(lines));
    }
    for (const auto lines : {
             "Accept: gzip"sv,
             "Accept-Encoding:"sv,
             "Accept-Encoding: identity"sv,
             "Accept-Encoding: br, deflate"sv,
             "Accept-Encoding: gzip;q=0"sv,
             "Accept-Encoding: gzip;q=0.000"sv,
             "Accept-Encoding: gzip;q=0, *"sv, // 12.5.3: "*" is what is not named
             "Accept-Encoding: *;q=0"sv,
             "Accept-Encoding: identity, gzip;q=0.9"sv,
             "Accept-Encoding: gzips"sv,
             "Accept-Encoding: gzip;q=1.001"sv, // no weights: 12.4.2
             "Accept-Encoding: gzip;q=2"sv,
             "Accept-Encoding: gzip;q=0.1234"sv,
             "Accept-Encoding: gzip;q=.5"sv,
             "Accept-Encoding: gzip;q=01"sv,
             "Accept-Encoding: gzip;q="sv,
             "Accept-Encoding: gzip;q"sv,
             "Accept-Encoding: gzip;q = 1"sv,
             "Accept-Encoding: gzip;level=9"sv,
             "Accept-Encoding: gzip q=1"sv,
             "Accept-Encoding: gzip;q=0.0000, *"sv, // it is named
             "Accept-Encoding: *, x-gzip;q=no"sv,
         }) {
        CAPTURE(lines);
        CHECK(!accepts(lines));
    }
}

TEST_CASE("random lists of codings are read as by a plain reading of the rules") {
    support::dice dice(11);
    constexpr std::array words{"gzip"sv, "x-gzip"sv, "identity"sv, "*"sv,  "br"sv, ";"sv,   ","sv,
                               "q="sv,   "0"sv,      "1"sv,        "0."sv, "00"sv, "5"sv,   " "sv,
                               ";q=0"sv, ";q=0.3"sv, "GZIP"sv,     "Q="sv, "1."sv, ".000"sv};
    std::size_t accepted = 0;
    for (int i = 0; i < 20'000; ++i) {
        std::string list;
        for (auto n = dice.below(9); n > 0; --n) list += words.at(dice.below(words.size()));
        accepted += check_codings(list);
    }
    CHECK(accepted > 500); // else the words are badly chosen
}

TEST_CASE("a client of HTTP/1.0 takes no chunks, any other does") {
    sse::request old;
    CHECK(old.parse("GET / HTTP/1.0\r\n\r\n").status == 0);
    CHECK(!old.accepts_chunked());
    sse::request usual;
    CHECK(usual.parse(line("GET / HTTP/1.1")).status == 0);
    CHECK(usual.accepts_chunked());
}

TEST_CASE("what a name of the route's pattern stands for is found by that name") {
    sse::request request;
    request.path_values = {{"a", "one"}, {"b", "two"}};
    CHECK(request.path_value("a") == "one");
    CHECK(request.path_value("b") == "two");
}

// ---- limits -------------------------------------------------------------------------------------

namespace {

/// A head of exactly that many bytes, filled up in its request line or in a field.
std::string head_with_line_of(std::size_t size) {
    const std::string frame = line("GET / HTTP/1.1");
    return line("GET /" + std::string(size - frame.size(), 'a') + " HTTP/1.1");
}

std::string head_with_field_of(std::size_t size) {
    const std::string frame = field("X: ");
    return field("X: " + std::string(size - frame.size(), 'a'));
}

std::string head_with_fields(std::size_t lines) {
    std::string head = "GET / HTTP/1.1\r\nHost: a\r\n";
    for (std::size_t i = 1; i < lines; ++i) head += "X" + std::to_string(i) + ": y\r\n";
    return head + "\r\n";
}

void check_status(const outcome& got, int status) {
    CAPTURE(got);
    CHECK(got.status == status);
    CHECK(got.complete == (status == 0));
}

} // namespace

TEST_CASE("a head of exactly the limit is accepted, one byte more is not") {
    for (const std::size_t limit : {100U, 200U, 500U}) {
        CAPTURE(limit);
        check_status(read_in_every_way(head_with_field_of(limit), limit), 0);
        check_status(read_in_every_way(head_with_field_of(limit + 1), limit), 431);
        check_status(read_in_every_way(head_with_line_of(limit), limit), 0);
    }
}

TEST_CASE("a request line over the limit gets 414, fields over the limit get 431") {
    check_status(read_in_every_way(head_with_line_of(300), 200), 414);          // RFC 9112 3
    check_status(read_in_every_way(head_with_field_of(300), 200), 431);         // RFC 6585 5
    check_status(read_in_every_way("GET /" + std::string(400, 'a'), 200), 414); // never ends
    check_status(read_in_every_way("GET / HTTP/1.1\r\nX: " + std::string(400, 'a'), 200), 431);
    check_status(read_in_every_way(std::string(400, 'G'), 200), 414);
}

TEST_CASE("empty lines before a request count, so they cannot go on for ever") {
    std::string lines;
    for (int i = 0; i < 60; ++i) lines += "\r\n";
    check_status(read_in_every_way(lines + line("GET / HTTP/1.1"), 200), 0);
    const outcome endless = read_in_every_way(lines + lines, 200);
    CHECK((endless.status == 414 || endless.status == 431));
}

TEST_CASE("what stands after a head does not count") {
    const std::string bytes = line("GET / HTTP/1.1") + std::string(400, 'x');
    check_status(read_in_every_way(bytes, 100), 0);
}

TEST_CASE("a request line of 8000 bytes is accepted by default") { // RFC 9112 3: SHOULD
    const std::string bytes = head_with_line_of(8000 + "\r\nHost: a\r\n\r\n"sv.size());
    const outcome whole = read(bytes);
    check_status(whole, 0);
    CHECK(whole.target.size() + "GET  HTTP/1.1"sv.size() == 8000);
    for (const std::size_t cut : {1U, 3U, 4U, 5U, 4000U, 7999U, 8000U, 8001U, 8002U, 8013U}) {
        CAPTURE(cut);
        CHECK(read(bytes, {cut, bytes.size()}, default_limit) == whole);
    }
}

TEST_CASE("a hundred header lines are accepted, one more gets 431") {
    for (const std::size_t lines : {1U, 99U, 100U}) {
        const outcome got = read(head_with_fields(lines));
        check_status(got, 0);
        CHECK(got.fields.size() == lines);
    }
    check_status(read(head_with_fields(101)), 431);
    check_status(read(head_with_fields(1000)), 431);
}

TEST_CASE("a refused head stays refused, whatever comes after it") {
    sse::detail::head_parser parser(default_limit);
    std::string bytes = "GET / HTTP/1.1\n";
    CHECK(parser.feed(bytes) == sse::detail::head_parser::progress::refused);
    bytes += line("GET / HTTP/1.1");
    CHECK(parser.feed(bytes) == sse::detail::head_parser::progress::refused);
    CHECK(parser.refusal().status == 400);
}

TEST_CASE("a parser that wants more may be fed the same bytes again") {
    const std::string bytes = line("GET / HTTP/1.1");
    const std::string_view all = bytes;
    sse::detail::head_parser parser(default_limit);
    for (std::size_t size = 0; size < all.size(); ++size) {
        CHECK(parser.feed(all.substr(0, size)) == sse::detail::head_parser::progress::need_more);
        CHECK(parser.feed(all.substr(0, size)) == sse::detail::head_parser::progress::need_more);
    }
    CHECK(parser.feed(all) == sse::detail::head_parser::progress::complete);
    CHECK(parser.head(all) == all);
    CHECK(parser.size() == all.size());
}

TEST_CASE("pipelined requests are read one after the other") {
    const std::string first = "\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    const std::string second = "GET /2 HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";
    std::string input = first + second + line("GET /3 HTTP/1.1");
    for (const auto path : {"/1"sv, "/2"sv, "/3"sv}) {
        const outcome got = read_in_every_way(input);
        CHECK(got.path == path);
        input.erase(0, got.size);
    }
    CHECK(input.empty());
}

// ---- random -------------------------------------------------------------------------------------

namespace {

constexpr std::string_view words[] = {"GET",
                                      "HEAD",
                                      "OPTIONS",
                                      " ",
                                      " ",
                                      "/",
                                      "/a%20b",
                                      "*",
                                      "http://a/b",
                                      "?q",
                                      "%",
                                      "%00",
                                      "#",
                                      " HTTP/1.1",
                                      " HTTP/1.0",
                                      " HTTP/2.0",
                                      "\r\n",
                                      "\r\n",
                                      "\r\n",
                                      "\r\n\r\n",
                                      "\r",
                                      "\n",
                                      "\t",
                                      ":",
                                      ": ",
                                      ",",
                                      "Host: a",
                                      "Host:",
                                      "Content-Length: 5",
                                      "Content-Length: ",
                                      "5",
                                      "-",
                                      "Transfer-Encoding: chunked",
                                      "chunked",
                                      "Connection: close",
                                      "keep-alive",
                                      "X: y",
                                      "[::1]",
                                      "GET / HTTP/1.1\r\nHost: a\r\n",
                                      "POST /x?y HTTP/1.0\r\nConnection: keep-alive\r\n"};

std::string random_words(support::dice& dice) {
    std::string out = dice.one_in(2) ? "" : "GET / HTTP/1.1\r\nHost: a\r\n";
    for (std::size_t left = dice.below(14); left > 0; --left) out += dice.one_of(words);
    return dice.one_in(2) ? out : out + "\r\n\r\n";
}

/// A good head with a few bytes changed, put in or taken out.
std::string random_damage(support::dice& dice) {
    std::string out = "GET /a%20b?c HTTP/1.1\r\nHost: a.example:80\r\nAccept: x, y\r\n"
                      "Connection: keep-alive\r\nContent-Length: 12\r\n\r\n";
    for (std::size_t left = dice.below(4); left > 0; --left) {
        const std::size_t at = dice.below(out.size());
        const char c = dice.one_in(2) ? dice.one_of("\r\n\t :,%/0\0\x7f"sv) : dice.byte();
        switch (dice.below(3)) {
        case 0: out[at] = c; break;
        case 1: out.insert(at, 1, c); break;
        default: out.erase(at, 1); break;
        }
    }
    return out;
}

/// An accepted head written anew from what was understood of it.
std::string rewritten(const outcome& o, std::string_view original) {
    const std::size_t version = original.find(" HTTP/1.");
    REQUIRE(version != original.npos);
    std::string head = o.method + ' ' + o.target;
    head += original.substr(version, " HTTP/1.1"sv.size());
    head += "\r\n";
    for (const auto& [name, value] : o.fields) head += name + ": " + value + "\r\n";
    return head + "\r\n";
}

/// The verdict on bytes is the same under any split and means what it says. Whether it is good.
bool check_verdict(support::dice& dice, const std::string& bytes, std::size_t limit) {
    const std::string shown = escaped(bytes);
    CAPTURE(limit);
    CAPTURE(shown);
    const outcome whole = read(bytes, limit);
    CHECK(read(bytes, byte_by_byte(bytes.size()), limit) == whole);
    CHECK(read(bytes, random_ends(dice, bytes.size()), limit) == whole);
    CHECK(read(bytes, {dice.below(bytes.size() + 1), bytes.size()}, limit) == whole);
    if (whole.status != 0) CHECK((whole.status >= 400 && whole.status <= 505));
    if (!whole.complete) return false;
    outcome again = read(rewritten(whole, bytes));
    again.size = whole.size; // white space and empty lines may be gone
    CHECK(again == whole);
    CHECK(std::string_view(bytes).substr(0, whole.size).ends_with("\r\n\r\n"));
    CHECK(whole.size <= limit);
    CHECK(!whole.path.empty());
    CHECK(whole.path.find('\0') == whole.path.npos);
    return true;
}

std::size_t check_random(support::dice& dice, std::string (*make)(support::dice&), int rounds) {
    std::size_t accepted = 0;
    for (int round = 0; round < rounds; ++round) {
        const std::string bytes = make(dice);
        const std::size_t limit = dice.one_in(4) ? dice.below(bytes.size() + 2) : default_limit;
        CAPTURE(round);
        accepted += check_verdict(dice, bytes, limit);
    }
    return accepted;
}

} // namespace

TEST_CASE("random bytes get the same verdict under any split") {
    support::dice dice(20250125);
    check_random(
        dice, [](support::dice& d) { return d.bytes(60, "GET / HTP1.:\r\n\r\n"); }, 4000);
}

TEST_CASE("random words of HTTP get the same verdict under any split") {
    support::dice dice(20250126);
    const std::size_t accepted = check_random(dice, random_words, 6000);
    CHECK(accepted > 100); // else the words are badly chosen
}

TEST_CASE("a good head with a few bytes damaged gets the same verdict under any split") {
    support::dice dice(20250127);
    const std::size_t accepted = check_random(dice, random_damage, 6000);
    CHECK(accepted > 1000);
}

} // namespace head_test
