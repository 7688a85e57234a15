// origin.cpp - covers >>origin: which origins may read, which headers tell browsers and caches so
// (Fetch standard 3.2), and which origins are refused when they are configured. "fault n" in a name
// is a fault of the library that this one succeeds.
#include "sse.hpp"

#include <doctest/doctest.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace std::string_view_literals;

namespace {

/// The value of that header line of a decision, which must not occur twice.
std::optional<std::string> header(const sse::cors_decision& decision, std::string_view name) {
    std::optional<std::string> value;
    std::string_view left = decision.headers;
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
void check_readable(const sse::cors_decision& decision, std::string_view origin) {
    CAPTURE(decision.headers);
    CAPTURE(origin);
    CHECK(decision.allowed);
    const auto grant = header(decision, "Access-Control-Allow-Origin");
    REQUIRE(grant);
    if (*grant == "*") return;
    CHECK(*grant == origin);
    CHECK(header(decision, "Vary") == "Origin");
}

/// The stream does not start, and nothing in the answer says otherwise.
void check_refused(const sse::cors_decision& decision) {
    CAPTURE(decision.headers);
    CHECK(!decision.allowed);
    CHECK(decision.headers.find("Access-Control-") == std::string::npos);
    CHECK(header(decision, "Vary") == "Origin");
}

sse::cors_decision decide(std::vector<std::string> allowed,
                          std::optional<std::string_view> origin) {
    return sse::decide_cors({.origin = sse::origins(std::move(allowed))}, origin);
}

/// The text of the std::invalid_argument that configuring this origin throws.
std::string complaint(std::string origin) {
    try {
        (void)sse::origins({"https://app.example", std::move(origin)});
    } catch (const std::invalid_argument& e) { return e.what(); }
    return "no complaint";
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

} // namespace

TEST_CASE("without a matcher every origin may read") {
    for (const auto origin : {"https://app.example"sv, "http://localhost:8080"sv, "null"sv}) {
        const auto decision = sse::decide_cors({}, origin);
        check_readable(decision, origin);
        CHECK(decision.headers == "Access-Control-Allow-Origin: *\r\n");
    }
}

TEST_CASE(
    "without a matcher the answer is the same with and without an origin, so it may be cached") {
    CHECK(sse::decide_cors({}, std::nullopt).headers ==
          sse::decide_cors({}, "https://app.example").headers);
    CHECK(sse::decide_cors({}, std::nullopt).allowed);
}

TEST_CASE("fault 10: a listed origin is granted by name, and caches are told that it matters") {
    const std::vector<std::string> list = {"https://app.example", "http://localhost:8080"};
    for (const std::string& origin : list) {
        const auto decision = decide(list, origin);
        check_readable(decision, origin);
        CHECK(header(decision, "Access-Control-Allow-Origin") == origin);
    }
}

TEST_CASE("an origin that is not listed is refused, and caches are told that it matters") {
    for (const auto origin :
         {"https://other.example"sv, "https://app.example.evil"sv, "https://evil-app.example"sv,
          "https://app.exampl"sv, "http://app.example"sv, "https://app.example:444"sv,
          "https://sub.app.example"sv, "null"sv, "*"sv, ""sv, "https://"sv}) {
        CAPTURE(origin);
        check_refused(decide({"https://app.example"}, origin));
    }
}

TEST_CASE("a request without an origin is served, but its answer still varies by origin") {
    const auto decision = decide({"https://app.example"}, std::nullopt);
    CHECK(decision.allowed);
    CHECK(header(decision, "Vary") == "Origin");
    CHECK(!header(decision, "Access-Control-Allow-Origin"));
}

TEST_CASE("an empty list refuses every origin") {
    check_refused(decide({}, "https://app.example"));
    check_refused(decide({}, "null"));
    CHECK(decide({}, std::nullopt).allowed);
}

TEST_CASE("a star in the list lets every origin read") {
    for (const auto origin : {"https://app.example"sv, "http://localhost:8080"sv, "null"sv}) {
        check_readable(decide({"*"}, origin), origin);
        check_readable(decide({"https://other.example", "*"}, origin), origin);
    }
}

TEST_CASE("null may read only where it is listed") {
    check_refused(decide({"https://app.example"}, "null"));
    check_readable(decide({"null"}, "null"), "null");
    check_refused(decide({"null"}, "https://app.example"));
}

TEST_CASE("a matcher of the program decides, and sees the origin as it was sent") {
    std::string seen;
    const sse::cors_options cors{.origin = [&](std::string_view origin) {
        seen = origin;
        return origin.ends_with(".example.com");
    }};
    check_readable(sse::decide_cors(cors, "https://a.example.com"), "https://a.example.com");
    CHECK(seen == "https://a.example.com");
    check_refused(sse::decide_cors(cors, "https://example.org"));
    CHECK(seen == "https://example.org");
    seen = "nobody asked";
    CHECK(sse::decide_cors(cors, std::nullopt).allowed);
    CHECK(seen == "nobody asked");
}

TEST_CASE("no decision lets browsers send credentials") {
    CHECK(!header(sse::decide_cors({}, "https://app.example"), "Access-Control-Allow-Credentials"));
    CHECK(!header(decide({"*"}, "https://app.example"), "Access-Control-Allow-Credentials"));
    CHECK(!header(decide({"https://app.example"}, "https://app.example"),
                  "Access-Control-Allow-Credentials"));
}

TEST_CASE("origins takes every kind of origin that browsers send") {
    for (const std::string origin :
         {"https://app.example", "http://app.example:8080", "https://127.0.0.1:8443",
          "http://[::1]:8080", "https://xn--mnchen-3ya.example", "http://localhost",
          "chrome-extension://abcdefghijklmnop", "https://a_b.example", "https://app.example:80",
          "http://app.example:443", "http://app.example:65535"}) {
        CAPTURE(origin);
        CHECK(complaint(origin) == "no complaint");
        check_readable(decide({origin}, origin), origin);
    }
}

TEST_CASE("what is no origin is refused when it is configured, with a hint") {
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
    check_not_an_origin("NULL");
    check_not_an_origin("https://[::1");
    check_not_an_origin("**");
}

TEST_CASE("fault 9: a pattern is refused: it would look like a permission and match nothing") {
    check_not_an_origin("*.example.com");
    check_not_an_origin("https://*.example.com");
    check_not_an_origin("https://*");
    check_not_an_origin("https://app.example:*");
}

TEST_CASE("a spelling that browsers never send is refused: it would match nothing") {
    check_not_an_origin("HTTPS://app.example"); // URL standard: scheme and host in lower case,
    check_not_an_origin("https://App.Example");
    check_not_an_origin("https://app.example:443"); // the scheme's default port left out,
    check_not_an_origin("http://app.example:80");
    check_not_an_origin("https://app.example:"); // ports as short as possible, up to 65535,
    check_not_an_origin("https://app.example:08443");
    check_not_an_origin("https://app.example:65536");
    check_not_an_origin("https://app%2eexample");          // hosts decoded,
    check_not_an_origin("https://m\xC3\xBCnchen.example"); // and names in Punycode.
}
