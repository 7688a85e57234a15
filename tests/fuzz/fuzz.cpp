// fuzz.cpp - libFuzzer targets for all that reads what others wrote. One program, since each costs
// the header again; the name it is called by is the target. Run them by: tests/run.sh fuzz
//
// The rules are those of the tests next door: their files are included, their cases left out, and
// what they CHECK ends the program. Each target looks for more than a crash: the same outcome
// however the bytes are cut, an outcome that a slow and plain reading of the rules has too, or
// values that come back as they went in.
//
// Inputs are text wherever they can be, so that seeds can be read and words be put in: see seeds/,
// one a line, as printf %b takes them.
#define DOCTEST_CONFIG_DISABLE
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

namespace fuzz {

[[noreturn]] inline void broken(const char* file, int line, const char* rule) {
    std::fprintf(stderr, "%s:%d: broken: %s\n", file, line, rule);
    std::abort();
}

} // namespace fuzz

#undef CHECK
#undef REQUIRE
#define CHECK(...)                                                                                 \
    ((__VA_ARGS__) ? static_cast<void>(0) : ::fuzz::broken(__FILE__, __LINE__, #__VA_ARGS__))
#define REQUIRE(...) CHECK(__VA_ARGS__)

#include "../body.cpp"
#include "../feed.cpp"
#include "../filelog.cpp"
#include "../head.cpp"
#include "../parser.cpp"
#include "../peer.cpp"
#include "../publish.cpp"
#include "../record.cpp"
#include "../secure.cpp"
#include "../topic.cpp"
#include "../../examples/hub_options.hpp"
#include "../../examples/json.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <regex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// The parser's own buffer: an explicit instantiation may name what is private.
namespace sse {

std::size_t bytes_held(const event_parser& parser);

template <std::string event_parser::*Input>
struct open_event_parser {
    friend std::size_t bytes_held(const event_parser& parser) { return (parser.*Input).size(); }
};
template struct open_event_parser<&event_parser::input_>;

} // namespace sse

namespace fuzz {

using namespace std::string_literals;
using namespace std::string_view_literals;
using namespace sse::detail;
using parser_test::decode_utf8;
using support::byte_by_byte;
using support::random_ends;

namespace {

constexpr std::size_t longest_input = 2000; // a rule of the tests may cost its square

/// Places to cut at and the like: other ones for other bytes, and the same in each run.
support::dice dice_of(std::string_view bytes) {
    return support::dice(std::hash<std::string_view>()(bytes));
}

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts(1);
    for (const char c : text) {
        if (c == separator) {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

template <class Keep>
std::string only(std::string_view text, Keep keep) {
    std::string out;
    std::copy_if(text.begin(), text.end(), std::back_inserter(out), keep);
    return out;
}

/// Whether f throws std::invalid_argument.
template <class F>
bool is_refused(F&& f) {
    try {
        f();
        return false;
    } catch (const std::invalid_argument&) { return true; }
}

// ---- HTTP ---------------------------------------------------------------------------------------

/// The head of a request.
void head(std::string_view bytes) {
    auto dice = dice_of(bytes);
    head_test::check_verdict(dice, std::string(bytes), head_test::default_limit);
    head_test::check_verdict(dice, std::string(bytes), dice.below(bytes.size() + 2));
    if (bytes.find_first_of("\r\n") == bytes.npos) head_test::check_codings(bytes);
}

/// The body by its decoder: all of it, and what is left of the bytes.
std::pair<std::string, std::string> read_body(body_decoder decoder, std::string_view bytes,
                                              const std::vector<std::size_t>& ends) {
    std::string body, rest;
    std::size_t at = 0;
    auto progress = body_decoder::progress::need_more;
    for (const std::size_t end : ends) {
        rest.append(bytes.substr(at, end - at));
        at = end;
        progress = decoder.feed(rest);
        body += decoder.take();
        const bool waits = progress == body_decoder::progress::need_more;
        if (waits) CHECK(rest.size() < body_test::longest_line); // more is never held
    }
    if (progress == body_decoder::progress::refused) return {"refused", ""};
    return {body, rest};
}

/// The response of a server, as the client reads it: head and body.
void answer(std::string_view bytes) {
    sse::detail::head_parser delimiter(16 * 1024);
    if (delimiter.feed(bytes) != sse::detail::head_parser::progress::complete) return;
    const std::string text(delimiter.head(bytes));
    received_head head;
    if (!head.parse(text)) return;
    CHECK((head.status >= 100 && head.status <= 999));

    std::string again = text.substr(0, text.find("\r\n")) + "\r\n";
    for (const auto& [name, value] : head.fields) {
        again.append(name).append(": ").append(value).append("\r\n");
    }
    received_head same;
    CHECK(same.parse(again + "\r\n"));
    CHECK(same.status == head.status);
    CHECK(same.framing.length == head.framing.length);
    CHECK(same.framing.chunked == head.framing.chunked);
    CHECK(same.unknown_coding.empty() == head.unknown_coding.empty());
    CHECK(same.fields.size() == head.fields.size());
    for (std::size_t i = 0; i < same.fields.size(); ++i) {
        CHECK(same.fields[i].name == head.fields[i].name);
        CHECK(same.fields[i].value == head.fields[i].value);
    }

    auto dice = dice_of(bytes);
    const auto behind = bytes.substr(delimiter.size());
    const auto whole = read_body(head.decoder(), behind, {behind.size()});
    CHECK(read_body(head.decoder(), behind, byte_by_byte(behind.size())).first == whole.first);
    CHECK(read_body(head.decoder(), behind, random_ends(dice, behind.size())).first == whole.first);
}

/// Bytes in chunks, by a writer that often takes a part only.
std::string in_chunks(support::dice& dice, std::string_view body) {
    chunked_encoder encoder;
    std::string out;
    const auto write = [&](std::span<const asio::const_buffer> buffers) {
        std::size_t room = dice.below(dice.one_in(2) ? 4 : 200);
        const std::size_t before = out.size();
        for (const asio::const_buffer& one : buffers) {
            const std::size_t n = std::min(room, one.size());
            out.append(static_cast<const char*>(one.data()), n);
            room -= n;
        }
        return std::optional(out.size() - before);
    };
    const auto write_all = [&](std::string_view left) {
        while (!left.empty()) {
            const std::size_t cut = dice.below(left.size() + 1);
            const std::array<asio::const_buffer, 2> buffers{asio::buffer(left.substr(0, cut)),
                                                            asio::buffer(left.substr(cut))};
            const auto taken = encoder.write(buffers, write);
            CHECK(taken && *taken <= left.size());
            left.remove_prefix(*taken);
        }
    };
    write_all(body);
    encoder.end();
    write_all(chunked_encoder::last_chunk);
    return out;
}

/// The body of a request.
void body(std::string_view bytes) {
    auto dice = dice_of(bytes);
    body_test::check_random(dice, std::string(bytes), body_test::default_limit);
    body_test::check_random(dice, std::string(bytes), dice.below(40));

    const std::size_t size = dice.below(bytes.size() + 1);
    const std::pair of_size(std::string(bytes.substr(0, size)), std::string(bytes.substr(size)));
    for (const auto& ends : {std::vector{bytes.size()}, random_ends(dice, bytes.size())}) {
        CHECK(read_body(body_decoder::of_size(size), bytes, ends) == of_size);
    }
    const std::string chunks = in_chunks(dice, bytes);
    CHECK(body_test::slowly_decoded(chunks) == std::pair(std::string(bytes), ""s));
}

// ---- the event stream ---------------------------------------------------------------------------

/// An event stream, as a client reads it.
void events(std::string_view bytes) {
    using parser_test::parse;
    auto dice = dice_of(bytes);
    const auto whole = parse(bytes, {bytes.size()});
    support::event_stream_decoder oracle;
    oracle.feed(bytes);
    CHECK(whole.events == parser_test::expected_of(bytes));
    CHECK(whole.last_event_id == decode_utf8(oracle.last_event_id()));
    CHECK(whole.comments == oracle.take_comments().size());
    CHECK(parse(bytes, byte_by_byte(bytes.size())) == whole);
    CHECK(parse(bytes, random_ends(dice, bytes.size())) == whole);

    const sse::event_parser::limits tight{16};
    const auto bounded = parse(bytes, {bytes.size()}, tight);
    const auto again = parse(bytes, random_ends(dice, bytes.size()), tight);
    CHECK(again.events == bounded.events);
    CHECK(again.refused == bounded.refused);
    for (const auto& event : bounded.events) {
        CHECK(event.data.size() + event.id.size() <= tight.max_event);
    }
    if (!bounded.refused) CHECK(bounded.events == whole.events);

    sse::event_parser parser(tight);
    std::vector<support::decoded> ignored;
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
        parser.feed(bytes.substr(at, 8));
        if (!parser_test::drain(parser, ignored)) break;
        CHECK(sse::bytes_held(parser) <= 2 * (tight.max_event + 7) + 8);
    }
}

/// What comes of messages: of the two decoders, one is not part of the library.
struct expectation {
    std::vector<support::decoded> events;
    std::string id;
    std::optional<std::chrono::milliseconds> retry;
    std::size_t comments = 0;

    void add(const sse::message& m) {
        if (m.id) id = *m.id;
        if (m.retry) retry = m.retry;
        if (!m.comment.empty()) comments += split(with_plain_breaks(m.comment), '\n').size();
        if (!m.data && m.event.empty()) return;
        const std::string type(m.event.empty() ? "message" : m.event);
        events.push_back({type, with_plain_breaks(m.data.value_or("")), id});
    }

    static std::string with_plain_breaks(std::string_view text) {
        std::string out;
        for (std::size_t i = 0; i < text.size(); ++i) {
            if (text.substr(i, 2) == "\r\n") continue;
            out += text[i] == '\r' ? '\n' : text[i];
        }
        return out;
    }
};

/// Messages in fields: RS, one of "eidrc", its text; "." publishes what came so far.
void encode(std::string_view bytes) {
    std::string stream;
    expectation expected;
    const std::vector<std::string> fields = split(bytes, '\x1e');
    sse::message m;
    const auto publish = [&] {
        const std::error_code wrong = sse::check(m);
        if (m.id && !support::comes_back(std::string(*m.id))) CHECK(wrong);
        if (m.retry && m.retry->count() > 2'147'483'647) CHECK(wrong);
        if (wrong == sse::errc::bad_id) CHECK(!support::comes_back(std::string(*m.id)));
        try {
            stream += sse::encode(m);
            CHECK(!wrong);
            expected.add(m);
        } catch (const std::system_error& refused) { CHECK(refused.code() == wrong); }
        m = {};
    };
    for (const std::string& field : fields) {
        if (field.empty()) continue;
        const auto value = std::string_view(field).substr(1);
        std::int64_t number = 0;
        switch (field.front()) {
        case 'e': m.event = value; break;
        case 'd': m.data = value; break;
        case 'i': m.id = value; break;
        case 'c': m.comment = value; break;
        case 'r':
            std::from_chars(value.data(), value.data() + value.size(), number);
            m.retry = std::chrono::milliseconds(number);
            break;
        default: publish();
        }
    }
    publish();

    CHECK(support::decode_event_stream(stream) == expected.events);
    for (auto& event : expected.events) {
        event = {decode_utf8(event.type), decode_utf8(event.data), decode_utf8(event.id)};
    }
    auto dice = dice_of(bytes);
    for (const auto& ends : {std::vector{stream.size()}, random_ends(dice, stream.size())}) {
        const auto got = parser_test::parse(stream, ends);
        CHECK(got.events == expected.events);
        CHECK(got.last_event_id == decode_utf8(expected.id));
        CHECK(got.retry == expected.retry);
        CHECK(got.comments == expected.comments);
        CHECK(!got.refused);
    }
}

// ---- who may read -------------------------------------------------------------------------------

const std::string scheme_rule = "[a-z][a-z0-9+.-]*";
const std::string host_rule = R"([a-z0-9!$&'+._~(),;=-]+)";
const std::string port_rule = "(:[1-9][0-9]{0,4})?";

struct slow_origin {
    std::string scheme, host, port;
};

bool is_port_to_name(const std::string& scheme, const std::string& port) {
    const std::string own = scheme == "http" ? ":80" : scheme == "https" ? ":443" : "";
    return port.empty() || (port != own && std::stoi(port.substr(1)) <= 65535);
}

std::optional<slow_origin> slowly_split(const std::string& text) {
    static const std::regex rule("(" + scheme_rule + ")://(" + host_rule + "|\\[([0-9a-f:.]+)\\])" +
                                 port_rule);
    std::smatch part;
    if (!std::regex_match(text, part, rule) || !is_port_to_name(part[1], part[4])) return {};
    std::array<unsigned char, 16> address{};
    if (part[3].matched && inet_pton(AF_INET6, part[3].str().c_str(), address.data()) != 1)
        return {};
    return slow_origin{part[1], part[2], part[4]};
}

/// Whether an entry of a list of origins matches. Nothing: it can match none.
std::optional<bool> slowly_matches(const std::string& entry, const std::string& origin) {
    static const std::regex rule("(?:(" + scheme_rule + ")://)?\\*(\\." + host_rule + ")" +
                                 port_rule);
    if (entry == "null" || slowly_split(entry)) return entry == origin;
    std::smatch part;
    if (!std::regex_match(entry, part, rule)) return {};
    const std::string scheme = part[1], end = part[2], port = part[3];
    if (!is_port_to_name(scheme.empty() ? "https" : scheme, port)) return {};
    const auto given = slowly_split(origin);
    if (!given || given->port != port) return false;
    if (scheme.empty() ? given->scheme != "http" && given->scheme != "https"
                       : given->scheme != scheme) {
        return false;
    }
    return given->host.size() > end.size() && given->host.ends_with(end);
}

/// A list of origins, one a line, and in the last line who asks.
void origin(std::string_view bytes) {
    if (bytes.size() > 200) return; // std::regex is recursive
    std::vector<std::string> list = split(bytes, '\n');
    const std::string asking = std::move(list.back());
    list.pop_back();
    bool valid = true, expected = false;
    for (const std::string& entry : list) {
        const auto matches = entry == "*" ? true : slowly_matches(entry, asking);
        valid = valid && matches;
        expected = expected || matches.value_or(false);
    }
    sse::origin_matcher matcher;
    CHECK(is_refused([&] { matcher = sse::origins(list); }) != valid);
    const sse::request request;
    if (valid) CHECK(matcher.test(asking, request) == expected);

    const auto parts = slowly_split(asking);
    const bool local =
        parts && (parts->scheme == "http" || parts->scheme == "https") &&
        (parts->host == "localhost" || parts->host == "127.0.0.1" || parts->host == "[::1]");
    CHECK(sse::localhost_origins().test(asking, request) == local);
}

// ---- who asks -----------------------------------------------------------------------------------

/// The head of the PROXY protocol.
void proxy(std::string_view bytes) {
    const proxy_head head = peer_test::read_in_every_way(std::string(bytes));
    if (head.outcome != proxy_head::progress::complete) return;
    CHECK((head.size <= bytes.size() && head.size >= 15));
    CHECK((!head.from || head.from == without_mapping(*head.from)));
}

/// Headers of proxies: what a client sent, and a host that it named, in two lines.
void forwarded(std::string_view bytes) {
    const auto in_value = [](char c) { return c == '\t' || (c != 0x7f && (c < 0 || c >= ' ')); };
    const auto in_host = [](char c) { return is_host_name({&c, 1}) || c == ':' || c == '%'; };
    const std::size_t end = std::min(bytes.find('\n'), bytes.size());
    const std::string sent = only(bytes.substr(0, end), in_value);
    peer_test::check_not_forged(sent, "\"" + only(bytes.substr(end), in_host) + "\"");

    if (const auto address = read_address(sent)) {
        const std::string text = address->to_string();
        CHECK(read_address(text) == address);
        CHECK(read_address((address->is_v6() ? "[" + text + "]" : text) + ":80") == address);
        CHECK(address_block(text).contains(*address));
    }
    is_refused([&] { address_block block(sent); });
}

// ---- topics and routes --------------------------------------------------------------------------

std::optional<std::string> slow_topic(std::string_view text) {
    if (text.empty() || text == "/") return "";
    std::vector<std::string> segments = split(text, '/');
    if (segments.front().empty()) segments.erase(segments.begin());
    if (segments.back().empty()) segments.pop_back();
    if (segments.empty() || segments.size() > 32) return std::nullopt;
    std::string out;
    for (const std::string& segment : segments) {
        const bool dots = segment == "." || segment == "..";
        if (segment.empty() || dots) return std::nullopt;
        for (const char c : segment) {
            if (static_cast<unsigned char>(c) < 32 || c == 127) return std::nullopt;
        }
        out += "/" + segment;
    }
    return out;
}

/// One subscription a line, "+topic", or the end of one, "-" and any text; others are published to.
void topic(std::string_view bytes) {
    using topic_test::subscriber;
    std::array<subscriber, 3> people;
    topic_test::tree tree;
    topic_test::reference truth;
    const auto end = [&](std::size_t number) {
        const auto gone =
            std::next(truth.subscriptions.begin(),
                      static_cast<std::ptrdiff_t>(number % truth.subscriptions.size()));
        topic_test::unsubscribe(tree, gone->first, *gone->second);
        truth.subscriptions.erase(gone);
    };
    std::string before;
    for (const std::string& line : split(bytes, '\n')) {
        const bool come = line.starts_with('+'), go = line.starts_with('-');
        const auto text = std::string_view(line).substr(come || go ? 1 : 0);
        const auto topic = canonical_topic(text);
        CHECK(topic == slow_topic(text));
        if (go && !truth.subscriptions.empty()) {
            end(text.size());
        } else if (topic && come) {
            subscriber& who = people[truth.subscriptions.size() % people.size()];
            topic_test::subscribe(tree, *topic, who);
            truth.subscriptions.emplace(*topic, &who);
        }
        const std::string published = topic.value_or("");
        CHECK(canonical_topic(published) == published);
        CHECK(topic_test::who_sees(tree, published) == truth.who_sees(published));
        CHECK(tree.empty() == truth.subscriptions.empty());
        CHECK(topic_test::nodes_of(tree) == truth.nodes());
        CHECK(covers(published, before) == topic_test::sees(published, before));
        CHECK(covers(before, published) == topic_test::sees(before, published));
        before = published;
    }
    while (!truth.subscriptions.empty()) end(0);
    CHECK(tree.empty());
}

bool slowly_fits(const std::string& pattern, const std::string& path) {
    const std::vector<std::string> wanted = split(pattern, '/'), given = split(path, '/');
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (i >= given.size()) return false;
        if (wanted[i] == "*") return true;
        const bool name = wanted[i].size() > 2 && wanted[i][0] == '{';
        if (name ? given[i].empty() : wanted[i] != given[i]) return false;
    }
    return wanted.size() == given.size();
}

/// Two patterns of routes and paths, one a line.
void route(std::string_view bytes) {
    const std::vector<std::string> lines = split(bytes, '\n');
    if (lines.size() < 2) return;
    std::optional<path_pattern> one, other;
    is_refused([&] { one.emplace(lines[0]); });
    is_refused([&] { other.emplace(lines[1]); });
    if (!one || !other) return;
    CHECK(one->covers(*one));
    for (std::size_t i = 2; i < lines.size(); ++i) {
        std::vector<std::pair<std::string_view, std::string_view>> values;
        std::string_view rest;
        const std::string path = "/" + lines[i];
        const bool fits = one->matches(path, values, rest);
        CHECK(fits == slowly_fits(lines[0], path));
        for (const auto& [name, value] : values) CHECK((!fits || !value.empty()));
        if (fits && lines[0].ends_with("/*")) CHECK(path.ends_with("/" + std::string(rest)));
        if (other->matches(path, values, rest) && one->covers(*other)) CHECK(fits);
    }
}

// ---- texts --------------------------------------------------------------------------------------

/// Escapes undone, by the number that two digits are. Nothing: one of them is broken, or is a NUL.
std::optional<std::string> slowly_unescaped(std::string_view text, bool form) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const std::string digits(text.substr(i, 3).substr(1));
        if (text[i] == '+' && form) {
            out += ' ';
        } else if (text[i] != '%') {
            out += text[i];
        } else if (digits.size() == 2 &&
                   digits.find_first_not_of("0123456789abcdefABCDEF") == digits.npos) {
            out += static_cast<char>(static_cast<unsigned char>(std::stoi(digits, nullptr, 16)));
            if (out.back() == '\0' && !form) return std::nullopt;
            i += 2;
        } else if (form) {
            out += '%';
        } else {
            return std::nullopt;
        }
    }
    return out;
}

std::string escaped_whole(std::string_view text) {
    std::string out;
    char escape[4];
    for (const char c : text) {
        std::snprintf(escape, sizeof escape, "%%%02x", static_cast<unsigned char>(c));
        out += escape;
    }
    return out;
}

/// Queries and forms, JSON, ids. The first line is a name, the rest a query.
void text(std::string_view bytes) {
    CHECK(percent_decode(bytes) == slowly_unescaped(bytes, false));
    CHECK(form_decode(bytes) == slowly_unescaped(bytes, true));
    CHECK(form_decode(escaped_whole(bytes)) == bytes);

    const std::size_t end = std::min(bytes.find('\n'), bytes.size());
    const std::string name(bytes.substr(0, end));
    const auto query = bytes.substr(std::min(end + 1, bytes.size()));
    std::vector<std::string> expected;
    for (const std::string& pair : split(query, '&')) {
        const std::size_t equals = std::min(pair.find('='), pair.size());
        const auto value = std::string_view(pair).substr(std::min(equals + 1, pair.size()));
        if (pair.empty() || slowly_unescaped(pair.substr(0, equals), true) != name) continue;
        expected.push_back(*slowly_unescaped(value, true));
    }
    CHECK(form_values(query, name) == expected);
    CHECK(form_values(escaped_whole(name) + "=" + escaped_whole(query), name) ==
          std::vector{std::string(query)});

    const std::string json = json_string(bytes);
    CHECK((json.size() >= 2 && json.front() == '"' && json.back() == '"'));
    CHECK(decode_utf8(json) == json);
    for (std::size_t i = 1; i + 1 < json.size(); ++i) {
        CHECK((json[i] < 0 || json[i] >= ' '));
        CHECK(json[i] != '"');
        if (json[i] == '\\') ++i;
    }
    const auto id = parse_id(bytes);
    if (id) CHECK(parse_id(make_id(id->first, id->second)) == id);
    CHECK(parse_id(make_id(name, bytes.size())) == std::pair(std::string_view(name), bytes.size()));
}

/// RFC 3986 5.2.4, step by step.
std::string slowly_without_dots(std::string in) {
    std::string out;
    while (!in.empty()) {
        if (in.starts_with("/./")) {
            in.erase(0, 2);
        } else if (in == "/.") {
            in = "/";
        } else if (in.starts_with("/../") || in == "/..") {
            in.replace(0, std::min<std::size_t>(in.size(), 4), "/");
            out.erase(std::min(out.rfind('/'), out.size()));
        } else {
            const std::size_t end = std::min(in.find('/', 1), in.size());
            out += in.substr(0, end);
            in.erase(0, end);
        }
    }
    return out;
}

/// A URL, and in the second line where its server redirects to.
void url(std::string_view bytes) {
    const std::size_t end = std::min(bytes.find('\n'), bytes.size());
    const std::string reference(bytes.substr(std::min(end + 1, bytes.size())));
    CHECK(remove_dot_segments("/" + reference) == slowly_without_dots("/" + reference));
    http_url base;
    if (is_refused([&] { base = read_http_url(bytes.substr(0, end)); })) return;
    const http_url again = read_http_url(base.text());
    CHECK((again.same_origin(base) && again.target == base.target));
    CHECK(!base.host_to_resolve().empty());
    http_url next;
    const std::string location = escape_url(resolve_reference(base, reference));
    if (is_refused([&] { next = read_http_url(location); })) {
        CHECK(reference.find_first_of(":/") != reference.npos); // else it is a path of this server
        return;
    }
    CHECK(next.target.starts_with('/'));
    CHECK(read_http_url(next.text()).target == next.target);
}

// ---- what a bus sends ---------------------------------------------------------------------------

/// A record: a message as bytes.
void record(std::string_view bytes) {
    const auto r = decode_record(bytes);
    if (!r) return;
    CHECK(!sse::check(r->content));
    const std::string again = encode_record(*r);
    CHECK(again.size() <= bytes.size());
    const auto same = decode_record(again);
    REQUIRE(same);
    CHECK((same->what == r->what && same->topic == r->topic && same->content.id == r->content.id));
    CHECK((same->mark.node == r->mark.node && same->mark.count == r->mark.count));
    CHECK((same->content.data == r->content.data && same->content.retry == r->content.retry));
    CHECK(encode_record(*same) == again);
    const std::size_t cut = dice_of(bytes).below(again.size());
    CHECK(!decode_record(std::string_view(again).substr(0, cut)));
}

/// What servers tell each other, and streams of a listing.
void notices(std::string_view bytes) {
    record_test::check_notice(bytes);
    record_test::check_streams(bytes);
}

/// NATS: the list of epochs, and what the server says of a message.
void nats(std::string_view bytes) {
    const nats_epochs list = parse_nats_epochs(bytes);
    if (!list.empty()) CHECK(parse_nats_epochs(format_nats_epochs(list)) == list);
    for (std::size_t i = 1; i < list.size(); ++i) CHECK(list[i - 1].begin <= list[i].begin);
    const nats_ack ack = parse_nats_ack(bytes);
    if (ack.number != 0) CHECK((ack.error == 0 && ack.reason.empty()));
    CHECK((ack.error >= 0 && ack.error <= 99'999 && ack.reason.size() <= 500));
}

/// A reply of Redis. A line is an element: `[` begins an array and `]` ends it, `~` is nil, `:` a
/// number; any other is a text.
class reply_reader {
public:
    explicit reply_reader(std::string_view bytes) : lines_(split(bytes, '\n')) {
        root_.type = REDIS_REPLY_ARRAY;
        fill(root_);
    }
    redisReply& root() { return root_; }

private:
    void fill(redisReply& of) {
        auto& list = lists_.emplace_back();
        while (at_ < lines_.size() && lines_[at_] != "]") {
            std::string& line = lines_[at_++];
            redisReply& r = replies_.emplace_back();
            list.push_back(&r);
            r.type = line == "~" ? REDIS_REPLY_NIL : REDIS_REPLY_STRING;
            r.integer = static_cast<long long>(line.size());
            if (line.starts_with(":")) r.type = REDIS_REPLY_INTEGER;
            if (r.type == REDIS_REPLY_STRING) r.str = line.data(), r.len = line.size();
            if (line != "[") continue;
            r.str = nullptr;
            r.type = REDIS_REPLY_ARRAY;
            fill(r);
        }
        if (at_ < lines_.size()) ++at_;
        of.element = list.data();
        of.elements = list.size();
    }

    std::vector<std::string> lines_;
    std::size_t at_ = 0;
    redisReply root_{};
    std::deque<redisReply> replies_; // neither moves what it has
    std::deque<std::vector<redisReply*>> lists_;
};

/// Redis: entries of the stream, and the list of marks.
void redis(std::string_view bytes) {
    reply_reader reader(bytes);
    const redisReply& all = reader.root();
    const auto marks = parse_marks(all);
    for (std::size_t i = 0; i < all.elements; ++i) {
        try {
            const redis_entry e(element_of(all, i));
            CHECK(redis_id::parse(e.id.text()) == e.id);
            CHECK(!(e.message && e.mark));
            const redis_mark* const m = mark_of(marks, e.id);
            const std::uint64_t number = m ? m->number(e.id) : 0;
            if (number != 0) CHECK(m->id(number) == e.id);
            if (m && number != 0) CHECK((m->number(e.id.before()) < number));
        } catch (const redis_trouble& wrong) { CHECK(*wrong.what() != 0); }
    }
    try {
        throw_redis_error(bytes);
    } catch (const redis_trouble& e) { CHECK(e.what()); }
}

// ---- command lines ------------------------------------------------------------------------------

/// What a flag of the hub makes of a value: how it reads (nothing: refused), and what arrived.
struct flag_rule {
    std::function<std::optional<std::string>(const std::string&)> read;
    std::function<std::vector<std::string>(const hub_options::settings&)> arrived;
};

bool is_of(const std::string& text, std::string_view characters) {
    return !text.empty() && text.find_first_not_of(characters) == text.npos;
}

std::string without_zeros(std::string digits) {
    return digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
}

std::optional<std::string> slowly_counted(const std::string& text, std::uint64_t highest) {
    if (!is_of(text, "0123456789")) return std::nullopt;
    const std::string number = without_zeros(text), most = std::to_string(highest);
    if (std::pair(number.size(), number) > std::pair(most.size(), most)) return std::nullopt;
    return number;
}

std::optional<std::string> slow_thousandths(const std::string& text) {
    const std::vector<std::string> parts = split(text, '.');
    if (parts.size() > 2 || parts[0].empty() || parts[0].size() > 9) return std::nullopt;
    const std::string decimals = parts.size() == 2 ? parts[1] : "";
    if (decimals.size() > 3 || !is_of(parts[0] + decimals, "0123456789")) return std::nullopt;
    return without_zeros(parts[0] + decimals + std::string(3 - decimals.size(), '0'));
}

std::optional<std::string> slow_history(const std::string& text) {
    const std::size_t equals = text.rfind('=');
    if (equals == text.npos) return std::nullopt;
    const auto number = slowly_counted(text.substr(equals + 1), SIZE_MAX);
    if (!number) return std::nullopt;
    return text.substr(0, equals + 1) + *number;
}

std::optional<std::string> slow_token(const std::string& text) {
    const std::string_view refused = "\" ,";
    for (const char c : text) {
        if (c <= ' ' || c > '~' || refused.find(c) != refused.npos) return std::nullopt;
    }
    return text.empty() ? std::nullopt : std::optional(text);
}

std::string with_commas(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : ",") + part;
    return all;
}

std::optional<std::string> slow_list(const std::string& text) {
    const bool has_empty_part = ("," + text + ",").find(",,") != text.npos;
    return has_empty_part ? std::nullopt : std::optional(text);
}

std::optional<std::string> slow_name(const std::string& text) {
    const bool fits = text.size() <= 64 && is_of(text, "abcdefghijklmnopqrstuvwxyz0123456789-._"
                                                       "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    return fits ? std::optional(text) : std::nullopt;
}

template <class Get>
flag_rule switch_rule(Get get) {
    return {nullptr, [get](const hub_options::settings& s) {
                return std::vector<std::string>{get(s) ? "given" : ""};
            }};
}

template <class Get>
flag_rule text_rule(Get get) {
    return {[](const std::string& text) { return std::optional(text); },
            [get](const hub_options::settings& s) { return std::vector<std::string>{get(s)}; }};
}

template <class Get>
flag_rule list_rule(Get get) {
    return {[](const std::string& text) { return std::optional(text); }, get};
}

/// One of these words, that stand in the order of their values.
template <class Get>
flag_rule word_rule(std::vector<std::string> words, Get get) {
    return {[words](const std::string& text) {
                const bool known = std::find(words.begin(), words.end(), text) != words.end();
                return known ? std::optional(text) : std::nullopt;
            },
            [words, get](const hub_options::settings& s) {
                return std::vector<std::string>{words.at(static_cast<std::size_t>(get(s)))};
            }};
}

template <class Get>
flag_rule count_rule(Get get) {
    return {[](const std::string& text) { return slowly_counted(text, SIZE_MAX); },
            [get](const hub_options::settings& s) {
                return std::vector{std::to_string(get(s.options))};
            }};
}

template <class Get>
flag_rule time_rule(Get get) {
    return {slow_thousandths, [get](const hub_options::settings& s) {
                return std::vector{std::to_string(get(s.options).count())};
            }};
}

const std::map<std::string_view, flag_rule>& flag_rules() {
    using hub_options::settings;
    using o = sse::options;
    static std::map<std::string_view, flag_rule> rules{
        {"address", text_rule([](const settings& s) { return s.address; })},
        {"port", text_rule([](const settings& s) { return std::to_string(s.port); })},
        {"listen", list_rule([](const settings& s) { return s.listen; })},
        {"socket-mode", text_rule([](const settings& s) {
             std::ostringstream octal;
             octal << std::oct << s.options.unix_socket.mode;
             return octal.str();
         })},
        {"socket-owner", text_rule([](const settings& s) { return s.options.unix_socket.owner; })},
        {"threads", count_rule([](const o& of) { return of.threads; })},
        {"prefix", text_rule([](const settings& s) { return s.options.prefix; })},
        {"heartbeat", time_rule([](const o& of) { return of.heartbeat; })},
        {"heartbeat-ids",
         word_rule({"off", "on"}, [](const settings& s) { return s.options.heartbeat_ids; })},
        {"compress", word_rule({"off", "on"}, [](const settings& s) { return s.compress; })},
        {"allow-origin", list_rule([](const settings& s) { return s.allowed; })},
        {"allow-credentials",
         switch_rule([](const settings& s) { return s.options.cors.credentials; })},
        {"foreign-origins",
         word_rule({"omit", "refuse"}, [](const settings& s) { return s.options.cors.refuse; })},
        {"allow-method", list_rule([](const settings& s) { return s.options.cors.methods; })},
        {"allow-header", list_rule([](const settings& s) { return s.options.cors.headers; })},
        {"expose-header", list_rule([](const settings& s) { return s.options.cors.exposed; })},
        {"preflight-age", text_rule([](const settings& s) {
             return std::to_string(s.options.cors.max_age.count());
         })},
        {"subscribe-token", text_rule([](const settings& s) { return s.subscribe_token; })},
        {"host", list_rule([](const settings& s) { return s.options.hosts; })},
        {"trusted-proxy", list_rule([](const settings& s) { return s.options.proxy.trusted; })},
        {"forwarded", word_rule({"x-forwarded-for", "forwarded", "x-real-ip"},
                                [](const settings& s) { return s.options.proxy.forwarded; })},
        {"proxy-protocol", switch_rule([](const settings& s) { return s.options.proxy.protocol; })},
        {"header-timeout", time_rule([](const o& of) { return of.timeouts.header; })},
        {"body-timeout", time_rule([](const o& of) { return of.timeouts.body; })},
        {"idle-timeout", time_rule([](const o& of) { return of.timeouts.idle; })},
        {"max-stream-age", time_rule([](const o& of) { return of.timeouts.stream_age; })},
        {"stall-timeout", time_rule([](const o& of) { return of.timeouts.stall; })},
        {"coalesce", time_rule([](const o& of) { return of.coalesce; })},
        {"publish-timeout", time_rule([](const o& of) { return of.timeouts.publish; })},
        {"shutdown-timeout", time_rule([](const o& of) { return of.timeouts.shutdown; })},
        {"drain-window", time_rule([](const o& of) { return of.drain_window; })},
        {"max-connections", count_rule([](const o& of) { return of.limits.connections; })},
        {"max-connections-per-ip",
         count_rule([](const o& of) { return of.limits.connections_per_ip; })},
        {"connect-rate-per-ip",
         count_rule([](const o& of) { return of.limits.connect_rate_per_ip; })},
        {"over-limit",
         word_rule({"hard", "soft"}, [](const settings& s) { return s.options.limits.over; })},
        {"retry-after", time_rule([](const o& of) { return of.limits.retry_after; })},
        {"max-header-lines", count_rule([](const o& of) { return of.limits.header_lines; })},
        {"max-head-bytes", count_rule([](const o& of) { return of.limits.head_bytes; })},
        {"max-body-bytes", count_rule([](const o& of) { return of.limits.body_bytes; })},
        {"ring-capacity", count_rule([](const o& of) { return of.ring_capacity; })},
        {"history", count_rule([](const o& of) { return of.history.messages; })},
        {"history-bytes", count_rule([](const o& of) { return of.history.bytes; })},
        {"history-age", time_rule([](const o& of) { return of.history.age; })},
        {"history-for", list_rule([](const settings& s) {
             std::vector<std::string> all;
             for (const sse::topic_history& of : s.options.history.topics) {
                 all.push_back(of.topic + "=" + std::to_string(of.messages));
             }
             return all;
         })},
        {"gap-event", text_rule([](const settings& s) { return s.options.history.gap_event; })},
        {"lag", word_rule({"disconnect", "skip", "conflate", "hold-back"},
                          [](const settings& s) { return s.options.history.lag; })},
        {"max-unsent-bytes", count_rule([](const o& of) { return of.limits.unsent_bytes; })},
        {"max-topics", count_rule([](const o& of) { return of.limits.topics; })},
        {"health", text_rule([](const settings& s) { return s.options.health; })},
        {"log", word_rule({"debug", "info", "warning", "error", "off"},
                          [](const settings& s) {
                              return static_cast<int>(s.log_from.value_or(sse::log_level{4}));
                          })},
        {"log-dir", text_rule([](const settings& s) { return s.log_dir; })},
        {"redis", text_rule([](const settings& s) { return with_commas(s.redis); })},
        {"nats", text_rule([](const settings& s) { return with_commas(s.nats); })},
        {"tls-cert", text_rule([](const settings& s) { return s.tls_cert; })},
        {"tls-key", text_rule([](const settings& s) { return s.tls_key; })},
        {"tls-client-ca", text_rule([](const settings& s) { return s.tls_client_ca; })},
        {"tls-client-crl", text_rule([](const settings& s) { return s.tls_client_crl; })},
        {"metrics", text_rule([](const settings& s) { return s.metrics; })},
        {"name", text_rule([](const settings& s) { return s.options.node; })},
        {"publish-token", text_rule([](const settings& s) { return s.token; })},
        {"admin-token", text_rule([](const settings& s) { return s.admin_token; })},
        {"redis-keeps-all", switch_rule([](const settings& s) { return s.redis_keeps_all; })},
        {"demo", switch_rule([](const settings& s) { return s.demo; })},
        {"version", switch_rule([](const settings& s) { return s.version; })},
        {"help", switch_rule([](const settings& s) { return s.help; })},
    };
    rules["address"].read = rules["log-dir"].read = [](const std::string& text) {
        return text.empty() ? std::nullopt : std::optional(text);
    };
    rules["listen"].read = rules["address"].read;
    rules["socket-mode"].read = [](const std::string& text) {
        const std::string digits = is_of(text, "01234567") ? without_zeros(text) : "";
        return digits.empty() || digits.size() > 3 ? std::nullopt : std::optional(digits);
    };
    rules["redis"].read = rules["nats"].read = slow_list;
    rules["name"].read = slow_name;
    rules["port"].read = [](const std::string& text) { return slowly_counted(text, 65535); };
    rules["preflight-age"].read = [](const std::string& text) {
        return slowly_counted(text, 4294967295);
    };
    rules["allow-origin"].read = [](const std::string& text) {
        return is_refused([&] { sse::origins({text}); }) ? std::nullopt : std::optional(text);
    };
    rules["history-for"].read = slow_history;
    rules["subscribe-token"].read = rules["publish-token"].read = slow_token;
    rules["admin-token"].read = slow_token;
    return rules;
}

/// What the arguments give, flag by flag, up to the first that is wrong; how a refusal begins.
struct slow_flags {
    std::map<std::string, std::vector<std::string>> given;
    std::string fault;

    explicit slow_flags(const std::vector<std::string>& arguments) {
        for (std::size_t i = 0; i < arguments.size() && fault.empty(); ++i) {
            read(arguments[i], i + 1 < arguments.size() ? &arguments[i + 1] : nullptr, i);
        }
    }

private:
    void read(const std::string& argument, const std::string* next, std::size_t& at) {
        const std::size_t equals = std::min(argument.find('='), argument.size());
        const std::string named = argument.substr(0, equals);
        if (argument == "-h") {
            given["help"].push_back("given");
            return;
        }
        if (!argument.starts_with("--") || argument == "--") {
            fault = "unexpected argument '" + argument + "'; ";
            return;
        }
        const auto rule = flag_rules().find(named.substr(2));
        if (rule == flag_rules().end()) {
            fault = "there is no " + named; // and a suggestion, if one is near
            return;
        }
        std::vector<std::string>& values = given[named.substr(2)];
        const bool attached = equals < argument.size();
        if (!rule->second.read) {
            if (attached) fault = named + " is a switch ";
            values.push_back("given");
            return;
        }
        if (!attached && (!next || next->starts_with("--"))) {
            fault = named + " needs a value: ";
            return;
        }
        const std::string value = attached ? argument.substr(equals + 1) : *next;
        if (!attached) ++at;
        const auto read = rule->second.read(value);
        if (!read) fault = named + " cannot be '" + value + "': use ";
        values.push_back(read.value_or(""));
    }
};

/// A command line of the hub, an argument a line.
void flags(std::string_view bytes) {
    static const hub_options::settings untouched;
    CHECK(flag_rules().size() == hub_options::flags().size());
    std::vector<std::string> arguments = split(only(bytes, [](char c) { return c != '\0'; }), '\n');
    const slow_flags expected(arguments);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    try {
        const hub_options::settings chosen = hub_options::read_flags(argv);
        CHECK(expected.fault.empty());
        for (const hub_options::flag& flag : hub_options::flags()) {
            const flag_rule& rule = flag_rules().at(flag.name);
            const auto found = expected.given.find(std::string(flag.name));
            std::vector<std::string> values =
                found == expected.given.end() ? rule.arrived(untouched) : found->second;
            if (flag.help.find("may be repeated") == flag.help.npos) values = {values.back()};
            CHECK(rule.arrived(chosen) == values);
        }
    } catch (const hub_options::usage_error& refused) {
        CHECK(!expected.fault.empty());
        CHECK(std::string_view(refused.what()).starts_with(expected.fault));
        CHECK(std::string_view(refused.what()).size() >= expected.fault.size());
    }
}

// ---- what is published over HTTP ----------------------------------------------------------------

/// JSON, as the examples' reader has it, which also looks for names that come twice in what is
/// nested, and counts depth otherwise.
void json(std::string_view bytes) {
    const auto read = publish_test::read_json(bytes);
    std::vector<::json::member> slow;
    std::string fault;
    try {
        slow = ::json::read_object(bytes);
    } catch (const ::json::error& wrong) { fault = wrong.what(); }
    if (!read) CHECK((!fault.empty() || slow.size() > json_reader::max_members));
    if (!fault.empty()) {
        CHECK((!read || fault.find("a second member named") != fault.npos ||
               fault.find("nested") != fault.npos));
        return;
    }
    if (!read) return;
    CHECK(read->size() == slow.size());
    for (std::size_t i = 0; i < slow.size(); ++i) {
        const json_item& fast = (*read)[i];
        CHECK(fast.name == slow[i].name);
        CHECK(fast.raw == slow[i].value);
        CHECK((fast.is == json_item::type::string) == slow[i].is_string);
        CHECK(fast.text == (slow[i].is_string ? slow[i].text : ""));
        if (slow[i].is_string) { // what was read is told again
            const auto again = json_reader("{\"x\":" + json_string(fast.text) + "}").object();
            CHECK(again.at(0).text == fast.text);
        }
        if (fast.is == json_item::type::object) {
            publish_test::read_json(fast.raw); // it may have a name twice
        } else if (fast.is == json_item::type::array) {
            std::string joined;
            for (const json_item& each : json_reader(fast.raw).array()) joined += each.raw;
            const auto is_space = [](char c) {
                return c == ' ' || c == '\t' || c == '\n' || c == '\r';
            };
            CHECK(only(joined, [&](char c) { return !is_space(c) && c != ','; }) ==
                  only(fast.raw.substr(1, fast.raw.size() - 2),
                       [&](char c) { return !is_space(c) && c != ','; }));
        }
    }
}

/// A body, whose first character says of which type; of lines, each alone is the same.
void posts(std::string_view bytes) {
    if (bytes.empty()) return;
    const auto type = static_cast<body_type>(static_cast<unsigned char>(bytes.front()) % 4);
    const auto read = [](body_type of,
                         std::string_view body) -> std::optional<std::vector<posted>> {
        try {
            return read_posts(of, std::string(body), "/t", 3);
        } catch (const refused_post& wrong) {
            CHECK((wrong.status == 400 || wrong.status == 413));
            return std::nullopt;
        }
    };
    const auto bytes_of = [](const posted& p) {
        return encode_record({frame::kind::topic, p.topic, p.view(), {}});
    };
    const std::string_view body = bytes.substr(1);
    const auto all = read(type, body);
    if (all) {
        CHECK((!all->empty() && all->size() <= (type == body_type::lines ? 3u : 1u)));
        for (const posted& each : *all) {
            CHECK(!sse::check(each.view()));
            CHECK(canonical_topic(each.topic) == each.topic);
            CHECK(decode_record(bytes_of(each)).has_value());
        }
    }
    if (type != body_type::lines || body.starts_with("\xef\xbb\xbf")) return;
    std::vector<std::string> expected;
    bool valid = true;
    for (const std::string& line : split(body, '\n')) {
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        const auto one = read(body_type::json, line);
        valid = valid && one && !line.starts_with("\xef\xbb\xbf");
        if (one) expected.push_back(bytes_of(one->front()));
    }
    CHECK(all.has_value() == (valid && !expected.empty() && expected.size() <= 3));
    for (std::size_t i = 0; all && i < all->size(); ++i) CHECK(bytes_of((*all)[i]) == expected[i]);
}

/// Base64url, by a table.
std::string slow_base64url(std::string_view bytes) {
    constexpr std::string_view digits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    std::string bits, out;
    for (const char c : bytes) {
        for (int i = 7; i >= 0; --i)
            bits += (static_cast<unsigned char>(c) >> i & 1) != 0 ? '1' : '0';
    }
    while (bits.size() % 6 != 0) bits += '0';
    for (std::size_t at = 0; at < bits.size(); at += 6) {
        out += digits[std::stoul(bits.substr(at, 6), nullptr, 2)];
    }
    return out;
}

/// A JSON Web Token; and a header and a payload, the first two lines, as one.
void token(std::string_view bytes) {
    if (const auto decoded = base64url_decode(bytes)) CHECK(slow_base64url(*decoded) == bytes);
    CHECK(base64url_decode(slow_base64url(bytes)) == bytes);
    const std::vector<std::string> lines = split(bytes, '\n');
    const std::string payload = lines.size() > 1 ? lines[1] : "";
    const std::string made = slow_base64url(lines[0]) + "." + slow_base64url(payload) + ".c2ln";
    for (const std::string& text : {std::string(bytes), made}) {
        try {
            const jwt_parts parts = parse_jwt(text);
            const std::vector<std::string> three = split(text, '.');
            CHECK(three.size() == 3);
            CHECK(slow_base64url(parts.payload) == three[1]);
            CHECK(slow_base64url(parts.signature) == three[2]);
            CHECK(parts.covered == three[0] + "." + three[1]);
            const auto header = json_reader(*base64url_decode(three[0])).object();
            CHECK(find_member(header, "alg")->text == parts.algorithm);
            CHECK(!find_member(header, "crit"));
        } catch (const std::runtime_error&) {
            const auto members = publish_test::read_json(lines[0]);
            const auto is_text = [&](const char* name) {
                const json_item* const found = find_member(*members, name);
                return found && found->is == json_item::type::string;
            };
            const bool fits = text == made && members && is_text("alg") &&
                              (!find_member(*members, "kid") || is_text("kid")) &&
                              !find_member(*members, "crit") && !find_member(*members, "b64");
            CHECK(!fits);
        }
    }
    if (const auto claims = publish_test::read_json(bytes)) {
        try {
            const auto time = jwt_time(*claims, "exp");
            CHECK((!time || time->time_since_epoch() >= std::chrono::seconds(0)));
            for (const std::string& topic : jwt_list(*claims, "publish")) {
                CHECK(claim_covers(topic, "/a/b") >= claim_covers(topic, "/a"));
            }
        } catch (const std::runtime_error&) {} // it has other things there
    }
}

// ---- whole connections --------------------------------------------------------------------------

/// A server and its client on one thread: nothing happens but what is asked for.
class wire {
public:
    wire() : server_(io_, settings()) {
        server_.route("POST", "/echo", [](sse::stream& client) -> asio::awaitable<void> {
            const std::string body = co_await client.body();
            co_await client.respond(200, "text/plain", body);
        });
        server_.route("GET", "/count/{to}", [](sse::stream& client) -> asio::awaitable<void> {
            for (std::size_t n = 0; n < client.request().path_value("to").size(); ++n) {
                co_await client.send({.data = std::to_string(n)});
            }
        });
        server_.start("127.0.0.1:0");
    }
    ~wire() {
        server_.stop();
        io_.run();
    }

    /// All that the server says to bytes that are sent in these pieces.
    std::string answer_to(std::string_view bytes, const std::vector<std::size_t>& ends) {
        asio::ip::tcp::socket socket(io_);
        socket.connect({asio::ip::address_v4::loopback(), server_.port()});
        socket.set_option(asio::socket_base::linger(true, 0)); // no port stays in use
        std::string answers;
        bool over = false;
        asio::error_code failed;
        std::array<char, 4096> buffer;
        std::function<void()> read = [&] {
            socket.async_read_some(asio::buffer(buffer),
                                   [&](const asio::error_code& end, std::size_t size) {
                                       answers.append(buffer.data(), size);
                                       over = static_cast<bool>(end);
                                       if (!over) read();
                                   });
        };
        read();
        std::size_t at = 0;
        for (const std::size_t end : ends) {
            asio::write(socket, asio::buffer(bytes.substr(at, end - at)), failed);
            at = end;
            io_.poll();
        }
        socket.shutdown(socket.shutdown_send, failed);
        while (!over) io_.run_one();
        socket.close(failed);
        while (server_.counters().connections > 0) io_.run_one();
        return without_dates(std::move(answers));
    }

private:
    static sse::options settings() {
        sse::options o;
        o.limits.head_bytes = 512;
        o.limits.body_bytes = 64;
        o.hooks.on_error = [](std::exception_ptr) {}; // bodies that are refused
        return o;
    }
    static std::string without_dates(std::string answers) {
        constexpr std::string_view date = "\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT";
        for (std::size_t at = 0; (at = answers.find(date.substr(0, 8), at)) != answers.npos;) {
            answers.erase(at, date.size());
        }
        return answers;
    }

    asio::io_context io_;
    sse::server server_;
};

/// All that a client sends to a server.
void connection(std::string_view bytes) {
    static wire server;
    auto dice = dice_of(bytes);
    const std::string whole = server.answer_to(bytes, {bytes.size()});
    CHECK((whole.empty() || whole.starts_with("HTTP/1.1 ")));
    CHECK(server.answer_to(bytes, random_ends(dice, bytes.size(), 200)) == whole);
}

// ---- TLS ----------------------------------------------------------------------------------------

/// What happens to the bytes of a session between its ends: see tests/secure.cpp.
void secure(std::string_view bytes) { secure_test::line(bytes).play(); }

// ---- deliveries ---------------------------------------------------------------------------------

/// A schedule of what publishers, clients and the network do: its bytes are the throws of the dice.
void feed(std::string_view bytes) {
    feed_test::world world(feed_test::luck(1, bytes));
    const std::string& fault = world.play();
    if (!fault.empty()) std::fprintf(stderr, "%s\n", fault.c_str());
    CHECK(fault.empty());
}

// ---- the log in files ---------------------------------------------------------------------------

/// A segment, from its header on; and one whose messages are the lines.
void filelog(std::string_view bytes) {
    log_segment header;
    if (header.parse(bytes) == log_segment::verdict::good) {
        log_segment again;
        CHECK(again.parse(header.header()) == log_segment::verdict::good);
        CHECK(again.file_name() == header.file_name());
    }
    auto dice = dice_of(bytes);
    const std::string_view rest = bytes.substr(std::min(bytes.size(), log_segment::header_size));
    for (const std::string_view one : {bytes, rest}) {
        filelog_test::check_scan(one, 1);
        filelog_test::check_scan(filelog_test::with_checksums(std::string(one)), 1);
    }
    filelog_test::check_torn(dice, split(bytes, '\n'));
}

// ---- the program --------------------------------------------------------------------------------

using target = void (*)(std::string_view);

const std::map<std::string_view, target> targets = {
    {"answer", answer},   {"body", body},     {"connection", connection},
    {"encode", encode},   {"events", events}, {"feed", feed},
    {"filelog", filelog}, {"flags", flags},   {"forwarded", forwarded},
    {"head", head},       {"nats", nats},     {"notices", notices},
    {"json", json},       {"origin", origin}, {"posts", posts},
    {"proxy", proxy},     {"record", record}, {"redis", redis},
    {"route", route},     {"secure", secure}, {"text", text},
    {"token", token},     {"topic", topic},   {"url", url},
};

target chosen = nullptr;

} // namespace

} // namespace fuzz

extern "C" int LLVMFuzzerInitialize(int*, char*** argv) {
    const std::string_view path = **argv;
    const auto found = fuzz::targets.find(path.substr(path.rfind('/') + 1));
    if (found == fuzz::targets.end()) {
        for (const auto& [name, run] : fuzz::targets) std::puts(name.data());
        std::exit(0);
    }
    fuzz::chosen = found->second;
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size > fuzz::longest_input) return -1;
    fuzz::chosen({reinterpret_cast<const char*>(data), size});
    return 0;
}
