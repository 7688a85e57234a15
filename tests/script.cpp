// script.cpp - covers >>script: the page script as a browser gets it. What it does in a browser:
// tests/browser/tabs.mjs.
#include "support/server.hpp"

#include <doctest/doctest.h>

namespace script_test {

using namespace support;

namespace {

struct script_server : running_server {
    script_server()
        : running_server(with_threads(1),
                         [](sse::server& s) { s.route("GET", "/sse.js", sse::script()); }) {}
};

} // namespace

TEST_SUITE("page script") {
    TEST_CASE("a module is served, to be kept and asked about") {
        script_server server;
        const response got = http_get(server.port(), "/sse.js");
        CHECK(got.status == 200);
        CHECK(got.header("Content-Type") == "text/javascript; charset=utf-8");
        CHECK(got.header("Cache-Control") == "no-cache");
        CHECK(has(got.body, "export function connect(url"));
        CHECK(got.body.find_first_not_of("\n\r ") == got.body.find("// sse.js"));
        CHECK(std::all_of(got.body.begin(), got.body.end(),
                          [](char c) { return c == '\n' || (c >= ' ' && c <= '~'); }));
    }

    TEST_CASE("whoever has it gets 304 without a body") {
        script_server server;
        const std::string tag = http_get(server.port(), "/sse.js").header("ETag").value();
        CHECK(tag.size() > 2);
        for (const std::string& known : {tag, "W/" + tag, "\"other\", " + tag, std::string("*")}) {
            CAPTURE(known);
            const response got = http_get(server.port(), "/sse.js", {{"If-None-Match", known}});
            CHECK(got.status == 304);
            CHECK(got.body.empty());
            CHECK(got.header("ETag") == tag);
            CHECK(got.header("Cache-Control") == "no-cache");
        }
        for (const std::string& known : {std::string("\"other\""), std::string("")}) {
            CAPTURE(known);
            CHECK(http_get(server.port(), "/sse.js", {{"If-None-Match", known}}).status == 200);
        }
    }

    TEST_CASE("other responses are not kept") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/", [](sse::stream& client) -> asio::awaitable<void> {
                client.add_header("X-Note", "Cache-Control: none");
                co_await client.respond(200, "text/plain", "text");
            });
        });
        const response got = http_get(server.port(), "/");
        CHECK(got.header("Cache-Control") == "no-store");
        CHECK(got.header_lines("Cache-Control") == 1);
    }
}

} // namespace script_test
