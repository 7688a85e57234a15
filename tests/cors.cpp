// cors.cpp - covers >>cors, >>origin, >>exchange: the CORS decision over real sockets: whose pages
// may read.
#include "support/journal.hpp"

#include <doctest/doctest.h>

#include <map>

namespace cors_test {

using namespace std::chrono_literals;
using namespace support;

TEST_SUITE("cross-origin") {
    TEST_CASE("sub-domains by whole labels, echoed, varied, refused otherwise") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"*.example.com", "http://localhost:3000"});
        running_server server(o);
        for (const char* good :
             {"https://app.example.com", "http://a.b.example.com", "http://localhost:3000"}) {
            const auto head = head_of(server.port(), {{"Origin", good}});
            CHECK(head.status == 200);
            CHECK(head.header("Access-Control-Allow-Origin") == good);
            CHECK(head.header("Vary") == "Origin");
        }
        for (const char* bad : {"https://example.com", "https://evilexample.com", "null",
                                "https://app.example.com.evil", "https://app.example.com:444"}) {
            CAPTURE(bad);
            const auto head = head_of(server.port(), {{"Origin", bad}});
            CHECK(head.status == 403);
            CHECK_FALSE(head.header("Access-Control-Allow-Origin"));
            CHECK_FALSE(head.header("Access-Control-Allow-Methods"));
            CHECK(head.header("Vary") == "Origin");
        }
    }

    TEST_CASE("without refusal a stranger gets a stream that its browser keeps from the page") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"https://app.example"});
        o.cors.refuse = false;
        running_server server(o);
        const auto head = head_of(server.port(), {{"Origin", "https://evil.example"}});
        CHECK(head.status == 200);
        CHECK_FALSE(head.header("Access-Control-Allow-Origin"));
        const auto preflight = http_request(
            server.port(), "OPTIONS", "/subscribe/a",
            {{"Origin", "https://evil.example"}, {"Access-Control-Request-Method", "GET"}});
        CHECK_FALSE(preflight.header("Access-Control-Allow-Methods"));
    }

    TEST_CASE("methods, headers, exposed headers, credentials and age are as the options say") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::localhost_origins();
        o.cors.credentials = true;
        o.cors.methods = {"GET"};
        o.cors.headers = {"X-Token"};
        o.cors.exposed = {"X-Trace"};
        o.cors.max_age = 60s;
        running_server server(o);
        const header_list asked{{"Origin", "http://localhost:5173"},
                                {"Access-Control-Request-Method", "GET"}};
        const auto preflight = http_request(server.port(), "OPTIONS", "/subscribe/a", asked);
        CHECK(preflight.status == 204);
        CHECK(preflight.header("Access-Control-Allow-Origin") == "http://localhost:5173");
        CHECK(preflight.header("Access-Control-Allow-Credentials") == "true");
        CHECK(preflight.header("Access-Control-Allow-Methods") == "GET");
        CHECK(preflight.header("Access-Control-Allow-Headers") == "X-Token");
        CHECK(preflight.header("Access-Control-Max-Age") == "60");
        CHECK(preflight.header("Vary") == "Origin");
        const auto head = head_of(server.port(), asked);
        CHECK(head.header("Access-Control-Expose-Headers") == "X-Trace");
        CHECK(head.header("Access-Control-Allow-Credentials") == "true");
    }

    TEST_CASE("credentials for every origin are refused at construction") {
        sse::options o = with_threads(1);
        o.cors.credentials = true;
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        o.cors.origin = sse::origins({"https://app.example", "*"});
        CHECK_THROWS_AS(sse::server{o}, std::invalid_argument);
        o.cors.origin = sse::origins({"https://app.example"});
        CHECK_NOTHROW(sse::server{o});
    }

    TEST_CASE("a dynamic matcher decides, with the request or as a coroutine") {
        sse::options o = with_threads(1);
        std::atomic<bool> tenant{false};
        o.cors.origin = [&](std::string_view origin, const sse::request& r) {
            return tenant && origin == "https://new.example" && r.query_value("tenant") == "7";
        };
        running_server with_request(o);
        const header_list origin{{"Origin", "https://new.example"}};
        CHECK(head_of(with_request.port(), origin, "/subscribe/?tenant=7").status == 403);
        tenant = true;
        CHECK(head_of(with_request.port(), origin, "/subscribe/?tenant=7").status == 200);
        CHECK(head_of(with_request.port(), origin, "/subscribe/?tenant=8").status == 403);

        o.cors.origin = [](std::string_view asked) -> asio::awaitable<bool> {
            asio::steady_timer database(co_await asio::this_coro::executor, 5ms);
            co_await database.async_wait(asio::use_awaitable);
            co_return asked == "https://new.example";
        };
        running_server with_coroutine(o);
        CHECK(head_of(with_coroutine.port(), origin).status == 200);
        CHECK(head_of(with_coroutine.port(), {{"Origin", "https://x.example"}}).status == 403);
    }
}

TEST_SUITE("matchers that fail") {
    TEST_CASE("a matcher that throws gives 500 and is reported; the server continues") {
        sse::options o = with_threads(1);
        journal log;
        log.attach(o);
        o.cors.origin = [](std::string_view) -> bool { throw std::runtime_error("no table"); };
        running_server server(o);
        CHECK(head_of(server.port(), {{"Origin", "https://a.example"}}).status == 500);
        CHECK(log.comes("handler failed"));
        CHECK(head_of(server.port(), {}).status == 200);
    }
}

} // namespace cors_test
