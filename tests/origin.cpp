// origin.cpp - covers >>cors, >>origin: who may read answers from another origin, and what caches
// are told (Fetch standard 3.2): matchers made from callables, lists and patterns, which settings
// are refused, and the header lines to the byte. "fault n" in a name is a fault of the library that
// this one succeeds.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace origin_test {

using namespace std::string_literals;
using namespace std::string_view_literals;
using sse::detail::check_cors;
using sse::detail::cors_headers;
using sse::detail::preflight_headers;

namespace {

/// What a request of that origin gets, decided as a server does.
struct decision {
    bool allowed = true;
    std::string headers;
};

decision decide(const sse::cors_options& cors, std::optional<std::string_view> origin) {
    const sse::request request;
    decision d;
    if (origin) d.allowed = cors.origin.test(*origin, request);
    d.headers = cors_headers(cors, origin, d.allowed);
    return d;
}

decision decide_by_list(const std::vector<std::string>& allowed,
                        std::optional<std::string_view> origin) {
    return decide({.origin = sse::origins(allowed)}, origin);
}

bool matches(const std::vector<std::string>& allowed, std::string_view origin) {
    return sse::origins(allowed).test(origin, sse::request());
}

/// The value of that header line of a decision, which must not occur twice.
std::optional<std::string> header(const decision& d, std::string_view name) {
    std::optional<std::string> value;
    std::string_view left = d.headers;
    while (!left.empty()) {
        const std::size_t end = left.find("\r\n");
        REQUIRE(end != left.npos);
        const std::string_view line = left.substr(0, end);
        left.remove_prefix(end + 2);
        const std::size_t colon = line.find(": ");
        REQUIRE(colon != line.npos);
        if (line.substr(0, colon) != name) continue;
        CHECK(!value);
        value = line.substr(colon + 2);
    }
    return value;
}

/// A browser lets a page of that origin read the stream, and a shared cache cannot spoil it.
void check_readable(const decision& d, std::string_view origin) {
    CAPTURE(d.headers);
    CAPTURE(origin);
    CHECK(d.allowed);
    const auto grant = header(d, "Access-Control-Allow-Origin");
    REQUIRE(grant);
    if (*grant == "*") {
        CHECK(!header(d, "Vary"));
        return;
    }
    CHECK(*grant == origin);
    CHECK(header(d, "Vary") == "Origin");
}

/// The stream does not start, and nothing in the response says otherwise.
void check_refused(const decision& d) {
    CAPTURE(d.headers);
    CHECK(!d.allowed);
    CHECK(d.headers == "Vary: Origin\r\n");
}

/// The text of the std::invalid_argument that f throws.
template <class F>
std::string complaint_of(F&& f) {
    try {
        f();
    } catch (const std::invalid_argument& e) { return e.what(); }
    return "no complaint";
}

/// The same of configuring this origin.
std::string complaint(const std::string& origin) {
    return complaint_of([&] { (void)sse::origins({"https://app.example", origin}); });
}

void check_not_an_origin(const std::string& text) {
    CAPTURE(text);
    const std::string said = complaint(text);
    CAPTURE(said);
    if (said == "no complaint") {
        FAIL_CHECK("was taken for an origin");
        return;
    }
    CHECK(said.find("sse::origins") != said.npos);
    CHECK(said.find("'" + text + "'") != said.npos); // which of the list it was
    CHECK(said.find("scheme://host") != said.npos);  // what to write instead
}

/// What a matcher that is a coroutine says in the end.
bool asked(const sse::origin_matcher& matcher, std::string_view origin,
           const sse::request& request) {
    REQUIRE(matcher.is_coroutine());
    asio::io_context io;
    std::optional<bool> answer;
    std::exception_ptr thrown;
    asio::co_spawn(io, matcher.ask(origin, request), [&](std::exception_ptr e, bool granted) {
        thrown = e;
        answer = granted;
    });
    io.run();
    if (thrown) std::rethrow_exception(thrown);
    REQUIRE(answer);
    return *answer;
}

bool is_example(std::string_view origin) { return origin.ends_with(".example"); }

} // namespace

// ---- matchers -----------------------------------------------------------------------------------

TEST_CASE("a matcher made of nothing matches every origin") {
    const sse::request request;
    for (const sse::origin_matcher& matcher : {sse::origin_matcher(), sse::any_origin()}) {
        CHECK(matcher.matches_any());
        CHECK(!matcher.is_coroutine());
        for (const auto origin : {"https://app.example"sv, "null"sv, ""sv}) {
            CHECK(matcher.test(origin, request));
        }
    }
    CHECK(sse::cors_options().origin.matches_any());
}

TEST_CASE("a matcher is made from any callable that takes the origin") {
    struct counting { // a call may change it
        int calls = 0;
        bool operator()(std::string_view) { return ++calls == 1; }
    };
    const sse::request request;
    const sse::origin_matcher from_function(&is_example);
    const sse::origin_matcher from_lambda([](std::string_view o) { return is_example(o); });
    const sse::origin_matcher from_std(std::function<bool(std::string_view)>{is_example});
    for (const auto* matcher : {&from_function, &from_lambda, &from_std}) {
        CHECK(!matcher->matches_any());
        CHECK(!matcher->is_coroutine());
        CHECK(matcher->test("https://app.example", request));
        CHECK(!matcher->test("https://app.example.evil", request));
    }
    const sse::origin_matcher once{counting()};
    CHECK(once.test("a", request));
    CHECK(!once.test("a", request));
}

TEST_CASE("a matcher may look at the request too") {
    const sse::origin_matcher matcher([](std::string_view origin, const sse::request& r) {
        return r.path == "/open" || is_example(origin);
    });
    CHECK(!matcher.matches_any());
    CHECK(!matcher.is_coroutine());
    sse::request open;
    REQUIRE(open.parse("GET /open HTTP/1.1\r\nHost: a\r\n\r\n").status == 0);
    sse::request other;
    REQUIRE(other.parse("GET /other HTTP/1.1\r\nHost: a\r\n\r\n").status == 0);
    CHECK(matcher.test("https://other.com", open));
    CHECK(!matcher.test("https://other.com", other));
    CHECK(matcher.test("https://app.example", other));
}

TEST_CASE("a matcher may be a coroutine, with the request or without") {
    const sse::request request;
    const sse::origin_matcher of_origin(
        [](std::string_view origin) -> asio::awaitable<bool> { co_return is_example(origin); });
    const sse::origin_matcher of_both([](std::string_view origin,
                                         const sse::request& r) -> asio::awaitable<bool> {
        auto timer =
            asio::steady_timer(co_await asio::this_coro::executor, std::chrono::milliseconds(0));
        co_await timer.async_wait(asio::use_awaitable); // it may take its time
        co_return is_example(origin) && r.method.empty();
    });
    for (const auto* matcher : {&of_origin, &of_both}) {
        CHECK(!matcher->matches_any());
        CHECK(matcher->is_coroutine());
        CHECK(asked(*matcher, "https://app.example", request));
        CHECK(!asked(*matcher, "https://app.example.evil", request));
    }
    sse::request post;
    REQUIRE(post.parse("POST / HTTP/1.1\r\nHost: a\r\n\r\n").status == 0);
    CHECK(!asked(of_both, "https://app.example", post));
}

TEST_CASE("a coroutine may be called by several requests at once") {
    asio::io_context io;
    asio::steady_timer never(io, std::chrono::hours(1));
    const sse::request request;
    const sse::origin_matcher matcher([&](std::string_view o) -> asio::awaitable<bool> {
        asio::error_code cancelled;
        co_await never.async_wait(asio::redirect_error(asio::use_awaitable, cancelled));
        co_return is_example(o);
    });
    std::vector<int> granted;
    for (int i = 0; i < 4; ++i) {
        const auto origin = i % 2 == 0 ? "https://app.example"sv : "https://app.com"sv;
        asio::co_spawn(io, matcher.ask(origin, request), [&, i](std::exception_ptr e, bool yes) {
            CHECK(!e);
            if (yes) granted.push_back(i);
        });
    }
    asio::post(io, [&] { never.cancel(); });
    io.run();
    CHECK(granted == std::vector<int>{0, 2});
}

TEST_CASE("what a matcher throws comes out of it") {
    const sse::request request;
    const sse::origin_matcher plain(
        [](std::string_view) -> bool { throw std::runtime_error("no database"); });
    CHECK_THROWS_AS(plain.test("https://app.example", request), std::runtime_error);
    const sse::origin_matcher coroutine([](std::string_view origin) -> asio::awaitable<bool> {
        if (!origin.empty()) throw std::runtime_error("no database");
        co_return true;
    });
    CHECK_THROWS_AS(asked(coroutine, "https://app.example", request), std::runtime_error);
}

TEST_CASE("a copy of a matcher decides alike, and lives on alone") {
    const sse::request request;
    auto list = std::make_unique<sse::origin_matcher>(
        sse::origins({"https://app.example", "https://*.example.com"}));
    const sse::origin_matcher copy = *list;
    list.reset();
    CHECK(!copy.matches_any());
    CHECK(copy.test("https://app.example", request));
    CHECK(copy.test("https://a.example.com", request));
    CHECK(!copy.test("https://example.com", request));
}

TEST_CASE("what is not a matcher does not compile") {
    static_assert(std::is_constructible_v<sse::origin_matcher, bool (*)(std::string_view)>);
    static_assert(std::is_convertible_v<bool (*)(std::string_view), sse::origin_matcher>);
    static_assert(!std::is_constructible_v<sse::origin_matcher, bool>);
    static_assert(!std::is_constructible_v<sse::origin_matcher, std::string>);
    static_assert(!std::is_constructible_v<sse::origin_matcher, std::vector<std::string>>);
    static_assert(!std::is_constructible_v<sse::origin_matcher, bool (*)()>);
    static_assert(!std::is_constructible_v<sse::origin_matcher, bool (*)(int)>);
    static_assert(std::is_copy_constructible_v<sse::origin_matcher>);
    static_assert(std::is_copy_assignable_v<sse::origin_matcher>);
}

// ---- lists --------------------------------------------------------------------------------------

TEST_CASE("without a matcher every origin may read") {
    for (const auto origin : {"https://app.example"sv, "http://localhost:8080"sv, "null"sv}) {
        const auto d = decide({}, origin);
        check_readable(d, origin);
        CHECK(d.headers == "Access-Control-Allow-Origin: *\r\n");
    }
}

TEST_CASE(
    "without a matcher the response is the same with and without an origin, so it may be cached") {
    CHECK(decide({}, std::nullopt).headers == decide({}, "https://app.example").headers);
    CHECK(decide({}, std::nullopt).allowed);
    CHECK(sse::cors_options().refuse); // a page that may not read gets no stream
}

TEST_CASE("a listed origin is granted by name, and caches are told that it matters") {
    const std::vector<std::string> list = {"https://app.example", "http://localhost:8080"};
    for (const std::string& origin : list) {
        const auto d = decide_by_list(list, origin);
        check_readable(d, origin);
        CHECK(header(d, "Access-Control-Allow-Origin") == origin);
    }
}

TEST_CASE("an origin that is not listed is refused, and caches are told that it matters") {
    for (const auto origin :
         {"https://other.example"sv, "https://app.example.evil"sv, "https://evil-app.example"sv,
          "https://app.exampl"sv, "http://app.example"sv, "https://app.example:444"sv,
          "https://sub.app.example"sv, "null"sv, "*"sv, ""sv, "https://"sv}) {
        CAPTURE(origin);
        check_refused(decide_by_list({"https://app.example"}, origin));
    }
}

TEST_CASE("a request without an origin is served, but its response still varies by origin") {
    const auto d = decide_by_list({"https://app.example"}, std::nullopt);
    CHECK(d.allowed);
    CHECK(d.headers == "Vary: Origin\r\n");
}

TEST_CASE("an empty list refuses every origin") {
    check_refused(decide_by_list({}, "https://app.example"));
    check_refused(decide_by_list({}, "null"));
    CHECK(decide_by_list({}, std::nullopt).allowed);
    CHECK(!sse::origins({}).matches_any());
}

TEST_CASE("a star in the list lets every origin read") {
    for (const auto origin : {"https://app.example"sv, "http://localhost:8080"sv, "null"sv}) {
        check_readable(decide_by_list({"*"}, origin), origin);
        check_readable(decide_by_list({"https://other.example", "*"}, origin), origin);
    }
    CHECK(sse::origins({"*"}).matches_any());
    // A star beside it does not hide a mistake.
    CHECK_THROWS_AS((void)sse::origins({"*", "app.example"}), std::invalid_argument);
}

TEST_CASE("null may read only where it is listed") {
    check_refused(decide_by_list({"https://app.example"}, "null"));
    check_readable(decide_by_list({"null"}, "null"), "null");
    check_refused(decide_by_list({"null"}, "https://app.example"));
    check_refused(decide_by_list({"*.example.com", "https://*.null"}, "null"));
}

TEST_CASE("a matcher of the program decides, and sees the origin as it was sent") {
    std::string seen;
    const sse::cors_options cors{.origin = [&](std::string_view origin) {
        seen = origin;
        return origin.ends_with(".example.com");
    }};
    check_readable(decide(cors, "https://a.example.com"), "https://a.example.com");
    CHECK(seen == "https://a.example.com");
    check_refused(decide(cors, "https://example.org"));
    CHECK(seen == "https://example.org");
}

TEST_CASE("origins takes every kind of origin that browsers send") {
    for (const std::string origin :
         {"https://app.example", "http://app.example:8080", "https://127.0.0.1:8443",
          "http://[::1]:8080", "https://xn--mnchen-3ya.example", "http://localhost",
          "chrome-extension://abcdefghijklmnop", "https://a_b.example", "https://app.example:80",
          "http://app.example:443", "http://app.example:65535", "z+1-2.9://a", "az0://a"}) {
        CAPTURE(origin);
        CHECK(complaint(origin) == "no complaint");
        check_readable(decide_by_list({origin}, origin), origin);
    }
}

TEST_CASE("what is not an origin is refused when it is configured, with a hint") {
    check_not_an_origin("");
    check_not_an_origin("app.example");
    check_not_an_origin("//app.example");
    check_not_an_origin("https://");
    check_not_an_origin("https:app.example");
    check_not_an_origin("https:/app.example");
    check_not_an_origin("://app.example");
    check_not_an_origin("https://app.example/"); // the usual mistake
    check_not_an_origin("https://app.example/path");
    check_not_an_origin("https://app.example?query");
    check_not_an_origin("https://app.example#fragment");
    check_not_an_origin("https://user@app.example");
    check_not_an_origin("https://app.example:port");
    check_not_an_origin("https://app.example https://b.example");
    check_not_an_origin("https://app.example,https://b.example");
    check_not_an_origin("https://app.example ");
    check_not_an_origin(" https://app.example");
    check_not_an_origin("https://app.example\r\nX-Forged: yes");
    check_not_an_origin("ht tps://app.example");
    check_not_an_origin("1https://app.example");
    for (const std::string bad : {"{", "a{", "a:", "a_", "a~", "aA"}) {
        check_not_an_origin(bad + "://app.example");
    }
    check_not_an_origin("NULL");
    check_not_an_origin("https://[::1");
    check_not_an_origin("https://[fe80::1%eth0]");
    check_not_an_origin("**");
    CHECK(complaint("https://[::1\0]"s) != "no complaint"); // which a NUL cuts off
}

TEST_CASE("a spelling that browsers never send is refused: it would match nothing") {
    check_not_an_origin("HTTPS://app.example"); // URL standard: scheme and host in lower case,
    check_not_an_origin("https://App.Example");
    check_not_an_origin("https://app.example:443"); // the scheme's default port left out,
    check_not_an_origin("http://app.example:80");
    check_not_an_origin("https://app.example:"); // ports as short as possible, up to 65535,
    check_not_an_origin("https://app.example:08443");
    check_not_an_origin("https://app.example:65536");
    check_not_an_origin("https://app.example:123456");
    check_not_an_origin("https://app%2eexample");          // hosts decoded,
    check_not_an_origin("https://m\xC3\xBCnchen.example"); // and names in Punycode.
}

// ---- patterns -----------------------------------------------------------------------------------

TEST_CASE("a pattern stands for every sub-domain by http and https, on the scheme's own port") {
    for (const auto origin :
         {"https://a.example.com"sv, "http://a.example.com"sv, "https://a.b.example.com"sv,
          "https://example.com.example.com"sv, "https://xn--mnchen-3ya.example.com"sv,
          "https://a_b.example.com"sv, "https://0.example.com"sv}) {
        check_readable(decide_by_list({"*.example.com"}, origin), origin);
    }
}

TEST_CASE("a pattern matches by whole labels, and not the domain itself") {
    for (const auto origin : {"https://example.com"sv,
                              "https://.example.com"sv,
                              "https://evilexample.com"sv,
                              "https://evil-example.com"sv,
                              "https://a.example.com.evil"sv,
                              "https://a.example.co"sv,
                              "https://a.example.comx"sv,
                              "https://a.example.com."sv,
                              "https://aexample.com"sv,
                              "https://a.example-com"sv,
                              "https://a.example.com:8443"sv,
                              "http://a.example.com:443"sv,
                              "wss://a.example.com"sv,
                              "ftp://a.example.com"sv,
                              "chrome-extension://a.example.com"sv,
                              "null"sv,
                              ""sv,
                              "*.example.com"sv,
                              "https://*.example.com"sv,
                              "a.example.com"sv,
                              "//a.example.com"sv}) {
        CAPTURE(origin);
        check_refused(decide_by_list({"*.example.com"}, origin));
    }
}

TEST_CASE("a pattern with a scheme and a port means these alone") {
    const std::vector<std::string> list = {"https://*.example.com:8443"};
    check_readable(decide_by_list(list, "https://a.example.com:8443"),
                   "https://a.example.com:8443");
    check_readable(decide_by_list(list, "https://a.b.example.com:8443"),
                   "https://a.b.example.com:8443");
    for (const auto origin :
         {"http://a.example.com:8443"sv, "https://a.example.com"sv, "https://a.example.com:443"sv,
          "https://a.example.com:844"sv, "https://a.example.com:84430"sv,
          "https://a.example.com:08443"sv, "https://example.com:8443"sv,
          "https://evilexample.com:8443"sv, "https://a.example.com:8443."sv,
          "https://evil.com:8443.example.com:8443"sv, "https://a.example.com:8443:8443"sv}) {
        CAPTURE(origin);
        check_refused(decide_by_list(list, origin));
    }
}

TEST_CASE("a pattern may lack the scheme or the port") {
    CHECK(matches({"https://*.example.com"}, "https://a.example.com"));
    CHECK(!matches({"https://*.example.com"}, "http://a.example.com"));
    CHECK(!matches({"https://*.example.com"}, "https://a.example.com:8443"));
    CHECK(matches({"*.example.com:8443"}, "http://a.example.com:8443"));
    CHECK(matches({"*.example.com:8443"}, "https://a.example.com:8443"));
    CHECK(!matches({"*.example.com:8443"}, "https://a.example.com"));
    CHECK(matches({"*.localhost"}, "http://app.localhost"));
    CHECK(matches({"app-scheme://*.example"}, "app-scheme://a.example"));
}

TEST_CASE("what only looks like a sub-domain does not match a pattern") {
    const std::string list = "*.example.com";
    for (const auto origin : {"https://evil.com/.example.com"sv,
                              "https://evil.com?.example.com"sv,
                              "https://evil.com#.example.com"sv,
                              "https://evil.com\\.example.com"sv,
                              "https://evil.com:80.example.com"sv,
                              "https://evil.com@a.example.com"sv,
                              "https://a.example.com@evil.com"sv,
                              "https://evil.com%2f.example.com"sv,
                              "https://evil.com%00.example.com"sv,
                              "https://evil.com\0.example.com"sv,
                              "https://evil.com .example.com"sv,
                              "https://evil.com\t.example.com"sv,
                              "https://evil.com https://a.example.com"sv,
                              "https://[::1].example.com"sv,
                              "https://[::1]a.example.com"sv,
                              "https://a.example.com:"sv,
                              "https://a.example.com:x"sv,
                              "https://A.example.com"sv,
                              "https://a.EXAMPLE.com"sv,
                              "HTTPS://a.example.com"sv,
                              "https://\xC3\xA9.example.com"sv,
                              " https://a.example.com"sv,
                              "https://a.example.com "sv,
                              "https://a.example.com/"sv,
                              "https:a.example.com"sv,
                              "://a.example.com"sv,
                              "https://evil.com://a.example.com"sv}) {
        CAPTURE(origin);
        CHECK(!matches({list}, origin));
    }
}

TEST_CASE("what looks like a pattern and is none is refused when it is configured") {
    check_not_an_origin("https://*");
    check_not_an_origin("*.");
    check_not_an_origin("https://*.");
    check_not_an_origin("*.:8443");
    check_not_an_origin("*example.com");
    check_not_an_origin("https://*example.com");
    check_not_an_origin("a.*.example.com");
    check_not_an_origin("https://a.*.example.com");
    check_not_an_origin("https://a*.example.com");
    check_not_an_origin("*.*.example.com");
    check_not_an_origin("https://*.*");
    check_not_an_origin("https://example.*");
    check_not_an_origin("https://app.example:*");
    check_not_an_origin("*.example.com:*");
    check_not_an_origin("*://app.example");
    check_not_an_origin("*://*.example.com");
    check_not_an_origin("http*://*.example.com");
    check_not_an_origin("//*.example.com");
    check_not_an_origin("*.example.com/");
    check_not_an_origin("https://*.example.com/");
    check_not_an_origin("*.example.com:443"); // no origin names the scheme's own port
    check_not_an_origin("https://*.example.com:443");
    check_not_an_origin("http://*.example.com:80");
    check_not_an_origin("https://*.example.com:");
    check_not_an_origin("https://*.example.com:65536");
    check_not_an_origin("HTTPS://*.example.com");
    check_not_an_origin("*.Example.com");
    check_not_an_origin("*.m\xC3\xBCnchen.example");
    check_not_an_origin("*.[::1]");
    check_not_an_origin("*.example.com,*.example.org");
    check_not_an_origin(" *.example.com");
    check_not_an_origin("*.example.com ");
}

namespace {

/// An origin or a pattern in its parts, so that the reference need not read text.
struct parts {
    std::string scheme; ///< Of a pattern also empty: http and https.
    bool star = false;
    std::vector<std::string> labels;
    std::string port; ///< Empty: the scheme's own.

    std::string text() const {
        std::string host = star ? "*" : "";
        for (const std::string& label : labels) host.append(host.empty() ? "" : ".").append(label);
        return (scheme.empty() ? "" : scheme + "://") + host + (port.empty() ? "" : ":" + port);
    }
};

constexpr std::string_view labels[] = {"a",        "b",  "example", "example", "com", "com",
                                       "xexample", "co", "comx",    "org",     "x-a", "a-b"};
constexpr std::string_view schemes[] = {"https", "https", "http", "http", "ws", "app"};
constexpr std::string_view ports[] = {"", "", "", "8443", "8443", "844", "84", "3"};

parts random_parts(support::dice& dice, bool pattern) {
    parts p;
    p.star = pattern && !dice.one_in(4);
    p.scheme = p.star && dice.one_in(2) ? ""sv : dice.one_of(schemes);
    for (std::size_t left = dice.between(1, pattern ? 2 : 4); left > 0; --left) {
        p.labels.emplace_back(dice.one_of(labels));
    }
    p.port = dice.one_of(ports);
    return p;
}

/// An origin that the pattern matches, often with one part changed.
parts random_origin_near(support::dice& dice, const parts& pattern) {
    parts p = pattern;
    if (p.scheme.empty()) p.scheme = dice.one_in(2) ? "http" : "https";
    if (std::exchange(p.star, false)) {
        for (std::size_t left = dice.below(3); left > 0; --left) {
            p.labels.insert(p.labels.begin(), std::string(dice.one_of(labels)));
        }
    }
    switch (dice.below(8)) {
    case 0: p.scheme = dice.one_of(schemes); break;
    case 1: p.port = dice.one_of(ports); break;
    case 2: p.labels[dice.below(p.labels.size())] = dice.one_of(labels); break;
    case 3: p.labels.front() += dice.one_of(labels); break;
    case 4: p.labels.emplace_back(dice.one_of(labels)); break;
    default: break;
    }
    return p;
}

bool slowly_matches(const parts& pattern, const parts& origin) {
    if (pattern.port != origin.port) return false;
    if (pattern.scheme.empty() ? origin.scheme != "http" && origin.scheme != "https"
                               : origin.scheme != pattern.scheme) {
        return false;
    }
    if (!pattern.star) return origin.labels == pattern.labels;
    if (origin.labels.size() <= pattern.labels.size()) return false;
    return std::equal(pattern.labels.rbegin(), pattern.labels.rend(), origin.labels.rbegin());
}

} // namespace

TEST_CASE("patterns match random origins as a slow reference says") {
    support::dice dice(20250210);
    std::size_t matched = 0;
    for (int round = 0; round < 20'000; ++round) {
        std::vector<parts> allowed;
        std::vector<std::string> list;
        for (std::size_t left = dice.between(1, 4); left > 0; --left) {
            allowed.push_back(random_parts(dice, true));
            list.push_back(allowed.back().text());
        }
        const parts origin = dice.one_in(2) ? random_parts(dice, false)
                                            : random_origin_near(dice, dice.one_of(allowed));
        const bool expected = std::any_of(allowed.begin(), allowed.end(), [&](const parts& one) {
            return slowly_matches(one, origin);
        });
        const std::string text = origin.text();
        CAPTURE(list.front());
        CAPTURE(text);
        CHECK(matches(list, text) == expected);
        matched += expected;
    }
    CHECK(matched > 4000); // else the labels are badly chosen
}

TEST_CASE("a byte that no origin has keeps any origin from matching, wherever it stands") {
    support::dice dice(20250211);
    for (int round = 0; round < 4000; ++round) {
        const parts pattern = random_parts(dice, true);
        parts origin = pattern;
        if (origin.scheme.empty()) origin.scheme = "https";
        if (std::exchange(origin.star, false)) origin.labels.insert(origin.labels.begin(), "a");
        std::string text = origin.text();
        CHECK(matches({pattern.text()}, text));
        const char c = dice.one_of("/@?#\\ %A*:[]\0\t\r\n\x7f\x80\xff"sv);
        text.insert(dice.below(text.size() + 1), 1, c);
        CAPTURE(text);
        CHECK(!matches({pattern.text()}, text));
    }
}

TEST_CASE("localhost_origins are the pages that this machine serves, on any port") {
    const sse::request request;
    const auto matcher = sse::localhost_origins();
    CHECK(!matcher.matches_any());
    for (const auto origin :
         {"http://localhost"sv, "https://localhost"sv, "http://localhost:3000"sv,
          "https://localhost:8443"sv, "http://127.0.0.1"sv, "http://127.0.0.1:8080"sv,
          "http://[::1]"sv, "https://[::1]:8443"sv}) {
        CAPTURE(origin);
        CHECK(matcher.test(origin, request));
    }
    for (const auto origin : {"http://localhost.evil"sv,
                              "http://evil.localhost.com"sv,
                              "http://evillocalhost"sv,
                              "http://localhost.evil:3000"sv,
                              "http://localhost:3000.evil"sv,
                              "http://localhost@evil"sv,
                              "http://127.0.0.1.evil"sv,
                              "http://127.0.0.10"sv,
                              "http://127.0.0.1@evil"sv,
                              "http://[::1].evil"sv,
                              "http://[::2]"sv,
                              "http://0.0.0.0"sv,
                              "http://192.168.0.1"sv,
                              "ftp://localhost"sv,
                              "chrome-extension://localhost"sv,
                              "http://localhost:"sv,
                              "http://localhost/"sv,
                              "http://LOCALHOST"sv,
                              "localhost"sv,
                              "null"sv,
                              ""sv,
                              "file://"sv,
                              "http://localhost:80"sv,
                              "http://localhost:99999"sv}) {
        CAPTURE(origin);
        CHECK(!matcher.test(origin, request));
    }
}

// ---- settings -----------------------------------------------------------------------------------

namespace {

std::string complaint_about(const sse::cors_options& cors) {
    return complaint_of([&] { check_cors(cors); });
}

void check_complaint(const sse::cors_options& cors, std::initializer_list<std::string_view> says) {
    const std::string said = complaint_about(cors);
    CAPTURE(said);
    CHECK(said.starts_with("sse::options::cors."));
    for (const auto part : says) {
        CAPTURE(part);
        CHECK(said.find(part) != said.npos);
    }
}

} // namespace

TEST_CASE("good settings are taken") {
    const auto list = sse::origins({"https://app.example"});
    CHECK(complaint_about({}) == "no complaint");
    CHECK(complaint_about({.origin = list}) == "no complaint");
    CHECK(complaint_about({.origin = list, .credentials = true}) == "no complaint");
    CHECK(complaint_about({.origin = sse::origins({}), .credentials = true}) == "no complaint");
    CHECK(complaint_about({.origin = &is_example, .credentials = true}) == "no complaint");
    CHECK(complaint_about({.origin = sse::localhost_origins(), .credentials = true}) ==
          "no complaint");
    CHECK(
        complaint_about({.methods = {"GET", "M-SEARCH"}, .headers = {"X-A"}, .exposed = {"X-B"}}) ==
        "no complaint");
    CHECK(complaint_about({.methods = {}, .headers = {}, .exposed = {}}) == "no complaint");
    CHECK(complaint_about({.methods = {"*"}, .headers = {"*"}, .exposed = {"*"}}) ==
          "no complaint");
    CHECK(complaint_about({.max_age = std::chrono::seconds(0)}) == "no complaint");
}

TEST_CASE("credentials are never sent to every origin") {
    check_complaint({.credentials = true}, {"credentials", "every origin"});
    check_complaint({.origin = sse::any_origin(), .credentials = true}, {"credentials"});
    check_complaint({.origin = sse::origins({"*"}), .credentials = true}, {"credentials"});
    check_complaint({.origin = sse::origins({"https://app.example", "*"}), .credentials = true},
                    {"credentials"});
}

TEST_CASE("a name that would break its header line is refused") {
    for (const std::string name :
         {"", " ", "X A", "X:", "X,Y", "X\r\nX-Forged: yes", "\"X\"", "X\xC3\xA9", "X\t"}) {
        CAPTURE(name);
        check_complaint({.methods = {"GET", name}}, {"methods", "'" + name + "'"});
        check_complaint({.headers = {"X-A", name}}, {"headers", "'" + name + "'"});
        check_complaint({.exposed = {"X-B", name}}, {"exposed", "'" + name + "'"});
    }
    check_complaint({.exposed = {"X\0"s}}, {"exposed"});
}

TEST_CASE("a star means nothing when credentials are sent, so it is refused") { // Fetch 3.2.5
    const auto list = sse::origins({"https://app.example"});
    check_complaint({.origin = list, .methods = {"*"}, .credentials = true}, {"methods", "*"});
    check_complaint({.origin = list, .headers = {"*"}, .credentials = true}, {"headers", "*"});
    check_complaint({.origin = list, .exposed = {"*"}, .credentials = true}, {"exposed", "*"});
}

TEST_CASE("a negative age is refused") {
    check_complaint({.max_age = std::chrono::seconds(-1)}, {"max_age"});
}

// ---- header lines -------------------------------------------------------------------------------

TEST_CASE("the lines of a response, to the byte") {
    const auto list = sse::origins({"https://app.example"});
    constexpr auto app = "https://app.example"sv;
    const sse::cors_options any;
    const sse::cors_options any_exposed{.exposed = {"X-A", "X-B"}};
    const sse::cors_options listed{.origin = list};
    const sse::cors_options credentials{.origin = list, .credentials = true};
    const sse::cors_options full{.origin = list, .exposed = {"X-A"}, .credentials = true};

    // Every origin: the response is the same for all, so it does not vary.
    for (const bool granted : {true, false}) {
        for (const auto origin : {std::optional(app), std::optional<std::string_view>()}) {
            CHECK(cors_headers(any, origin, granted) == "Access-Control-Allow-Origin: *\r\n");
            CHECK(cors_headers(any_exposed, origin, granted) ==
                  "Access-Control-Allow-Origin: *\r\n"
                  "Access-Control-Expose-Headers: X-A, X-B\r\n");
        }
    }
    CHECK(cors_headers(listed, app, true) ==
          "Vary: Origin\r\n"
          "Access-Control-Allow-Origin: https://app.example\r\n");
    CHECK(cors_headers(credentials, app, true) ==
          "Vary: Origin\r\n"
          "Access-Control-Allow-Origin: https://app.example\r\n"
          "Access-Control-Allow-Credentials: true\r\n");
    CHECK(cors_headers(full, app, true) == "Vary: Origin\r\n"
                                           "Access-Control-Allow-Origin: https://app.example\r\n"
                                           "Access-Control-Allow-Credentials: true\r\n"
                                           "Access-Control-Expose-Headers: X-A\r\n");
    CHECK(cors_headers(listed, "null", true) == "Vary: Origin\r\n"
                                                "Access-Control-Allow-Origin: null\r\n");
}

TEST_CASE("a response that grants nothing says so to caches alone") {
    const auto list = sse::origins({"https://app.example"});
    const sse::cors_options full{.origin = list, .exposed = {"X-A"}, .credentials = true};
    for (const sse::cors_options& cors : {sse::cors_options{.origin = list}, full}) {
        CHECK(cors_headers(cors, std::nullopt, true) == "Vary: Origin\r\n");
        CHECK(cors_headers(cors, std::nullopt, false) == "Vary: Origin\r\n");
        CHECK(cors_headers(cors, "https://other.example", false) == "Vary: Origin\r\n");
    }
}

TEST_CASE("a response varies by origin exactly when the grant depends on it") {
    const std::vector<sse::origin_matcher> depends = {
        sse::origins({}),
        sse::origins({"https://app.example"}),
        sse::origins({"*.example"}),
        sse::localhost_origins(),
        &is_example,
        [](std::string_view, const sse::request&) { return true; },
        [](std::string_view) -> asio::awaitable<bool> { co_return true; },
    };
    for (const auto& matcher : depends) {
        for (const bool granted : {true, false}) {
            for (const bool credentials : {true, false}) {
                const sse::cors_options cors{.origin = matcher, .credentials = credentials};
                CHECK(cors_headers(cors, "https://a.example", granted)
                          .starts_with("Vary: Origin\r\n"));
                CHECK(cors_headers(cors, std::nullopt, granted) == "Vary: Origin\r\n");
            }
        }
    }
    for (const auto& matcher : {sse::origin_matcher(), sse::any_origin(), sse::origins({"*"})}) {
        const sse::cors_options cors{.origin = matcher};
        CHECK(cors_headers(cors, "https://a.example", true).find("Vary") == std::string::npos);
        CHECK(cors_headers(cors, std::nullopt, true).find("Vary") == std::string::npos);
    }
}

TEST_CASE("no response lets browsers send credentials unless it is asked for") {
    for (const sse::cors_options& cors :
         {sse::cors_options(), sse::cors_options{.origin = sse::origins({"*"})},
          sse::cors_options{.origin = sse::origins({"https://app.example"})}}) {
        CHECK(!header(decide(cors, "https://app.example"), "Access-Control-Allow-Credentials"));
    }
}

TEST_CASE("the lines of a preflight's response, to the byte") {
    CHECK(preflight_headers({}, "GET, HEAD, OPTIONS") ==
          "Access-Control-Allow-Methods: GET, HEAD, OPTIONS\r\n"
          "Access-Control-Allow-Headers: Authorization, Cache-Control, Content-Type, "
          "Last-Event-ID\r\n"
          "Access-Control-Max-Age: 7200\r\n");
    CHECK(
        preflight_headers(
            {.methods = {"PUT", "DELETE"}, .headers = {"X-A"}, .max_age = std::chrono::minutes(1)},
            "GET, OPTIONS") == "Access-Control-Allow-Methods: PUT, DELETE\r\n"
                               "Access-Control-Allow-Headers: X-A\r\n"
                               "Access-Control-Max-Age: 60\r\n");
    CHECK(preflight_headers({.methods = {"*"}, .headers = {"*"}}, "GET") ==
          "Access-Control-Allow-Methods: *\r\n"
          "Access-Control-Allow-Headers: *\r\n"
          "Access-Control-Max-Age: 7200\r\n");
    CHECK(preflight_headers({.headers = {}, .max_age = std::chrono::seconds(0)}, "OPTIONS") ==
          "Access-Control-Allow-Methods: OPTIONS\r\n");
    CHECK(preflight_headers({.headers = {}, .max_age = std::chrono::seconds(1)}, "GET") ==
          "Access-Control-Allow-Methods: GET\r\nAccess-Control-Max-Age: 1\r\n");
    // What pages may read is said of the response that they read (Fetch 3.2.3), not of a
    // preflight's.
    CHECK(preflight_headers({.exposed = {"X-A"}}, "GET").find("Expose") == std::string::npos);
}

} // namespace origin_test
