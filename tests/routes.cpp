// routes.cpp - covers >>hub, >>exchange: which handler a path reaches, what the groups around it
// decide first, and who is counted.
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <list>
#include <mutex>

namespace routes_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// Answers with this text.
sse::handler says(std::string text) {
    return [text = std::move(text)](sse::stream& client) -> handler_result {
        co_await client.respond(200, "text/plain", text);
    };
}

/// Answers with the names of the pattern, what they stand for, and the rest.
handler_result tell_values(sse::stream& client) {
    std::string text;
    for (const auto& [name, value] : client.request().path_values) {
        text.append(name).append("=").append(value).append(";");
    }
    text.append("*=").append(client.request().rest);
    co_await client.respond(200, "text/plain", text);
}

/// The response to a GET: its body, or the status when that is not 200.
std::string got(std::uint16_t port, std::string_view target) {
    const response answer = http_get(port, target);
    return answer.status == 200 ? answer.body : std::to_string(answer.status);
}

std::string allowed(std::uint16_t port, std::string_view method, std::string_view target) {
    const response answer = http_request(port, method, target);
    return std::to_string(answer.status) + " " + answer.header("Allow").value_or("nothing");
}

/// A file that is there while the test runs.
struct temporary_file {
    std::string path;
    temporary_file(const std::string& name, std::string_view text)
        : path(std::filesystem::temp_directory_path() /
               ("sse_routes_" + std::to_string(::getpid()) + "_" + name)) {
        write(text);
    }
    ~temporary_file() { std::remove(path.c_str()); }
    void write(std::string_view text) const { std::ofstream(path, std::ios::binary) << text; }
};

sse::group_options at_most(std::size_t requests) {
    sse::group_options o;
    o.max_requests = requests;
    return o;
}

/// True once a GET is let in: what was served before has been counted out.
[[nodiscard]] bool comes_in(std::uint16_t port, std::string_view target) {
    return eventually([&] { return http_get(port, target).status == 200; });
}

} // namespace

TEST_SUITE("patterns") {
    TEST_CASE("a name stands for one segment that is not empty") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/jobs/{id}/events", tell_values);
        });
        const std::pair<const char*, const char*> expected[] = {
            {"/jobs/7/events", "id=7;*="},
            {"/jobs/7/events?id=8", "id=7;*="},
            {"/jobs/a%20b/events", "id=a b;*="},
            {"/jobs/%7Bid%7D/events", "id={id};*="},
            {"/jobs/{id}/events", "id={id};*="},
            {"/jobs/*/events", "id=*;*="},
            {"/jobs/%2e%2E/events", "id=..;*="}, // no file system is behind it
            {"/jobs/../events", "id=..;*="},
            {"/jobs/%252F/events", "id=%2F;*="}, // decoded once
            {"/%6Aobs/7/events", "id=7;*="},
            {"/jobs%2F7/events", "id=7;*="}, // %2F is a slash
            {"/jobs/7%2F8/events", "404"},
            {"/jobs/%2F/events", "404"},
            {"/jobs//events", "404"},
            {"/jobs/events", "404"},
            {"/jobs/7", "404"},
            {"/jobs/7/", "404"},
            {"/jobs/7/events/", "404"},
            {"/jobs/7/events//", "404"},
            {"/jobs/7/8/events", "404"},
            {"//jobs/7/events", "404"},
            {"/jobs/7//events", "404"},
            {"/Jobs/7/events", "404"},
            {"/", "404"},
            {"//", "404"},
            {"/jobs/%00/events", "400"},
            {"/jobs/7%/events", "400"},
        };
        for (const auto& [target, answer] : expected) {
            CAPTURE(target);
            CHECK(got(server.port(), target) == answer);
        }
    }

    TEST_CASE("a path has several names, and a star after them takes the rest") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/{a}/x/{b}", tell_values);
            s.route("GET", "/files/{user}/*", tell_values);
            s.route("GET", "/{a}/{b}/{c}/{d}", tell_values);
        });
        const std::uint16_t port = server.port();
        CHECK(got(port, "/1/x/2") == "a=1;b=2;*=");
        CHECK(got(port, "/x/x/x") == "a=x;b=x;*=");
        CHECK(got(port, "/files/x/y") == "a=files;b=y;*=");
        CHECK(got(port, "/files/ann/a//b/") == "user=ann;*=a//b/");
        CHECK(got(port, "/files/ann/") == "user=ann;*=");
        CHECK(got(port, "/files/ann") == "404");
        CHECK(got(port, "/files//a") == "404");
        CHECK(got(port, "/1/2/3/4") == "a=1;b=2;c=3;d=4;*=");
        CHECK(got(port, "/1/2//4") == "404");
    }

    TEST_CASE("a pattern's slash at the end belongs to it") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/a", says("without"));
            s.route("GET", "/a/", says("with"));
            s.route("GET", "/b/{n}/", tell_values);
            s.route("GET", "/", says("root"));
        });
        CHECK(got(server.port(), "/a") == "without");
        CHECK(got(server.port(), "/a/") == "with");
        CHECK(got(server.port(), "/a//") == "404");
        CHECK(got(server.port(), "/b/1/") == "n=1;*=");
        CHECK(got(server.port(), "/b/1") == "404");
        CHECK(got(server.port(), "/b//") == "404");
        CHECK(got(server.port(), "/") == "root");
        CHECK(got(server.port(), "/?x") == "root");
        CHECK(got(server.port(), "//") == "404");
    }

    TEST_CASE("what an earlier pattern of another method stood for is forgotten") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("POST", "/a/*", says("posted"));
            s.route("POST", "/{x}/{y}", says("posted"));
            s.route("GET", "/a/{name}", tell_values);
            s.route("GET", "/a/b/c", tell_values);
            s.fallback(tell_values);
        });
        CHECK(got(server.port(), "/a/b") == "name=b;*=");
        CHECK(got(server.port(), "/a/b/c") == "*=");
        CHECK(got(server.port(), "/none") == "*=");
    }

    TEST_CASE("a name that the pattern does not have is an error of the program") {
        std::atomic<int> thrown{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/{id}/*", [&](sse::stream& client) -> handler_result {
                for (const char* const name : {"other", "", "ID", "id ", "*", "{id}"}) {
                    try {
                        static_cast<void>(client.request().path_value(name));
                    } catch (const std::out_of_range&) { ++thrown; }
                }
                const std::string id(client.request().path_value("id"));
                co_await client.respond(200, "text/plain", id);
            });
        });
        CHECK(got(server.port(), "/7/x") == "7");
        CHECK(thrown == 6);
    }

    TEST_CASE("patterns that cannot be meant are refused when they are added") {
        sse::server server(with_threads(1));
        // How others write /a/{id}.
        CHECK_THROWS_AS(server.route("GET", "/a/:id", says("")), std::invalid_argument);
        for (const char* const pattern :
             {"", "a", "{a}", "/{}", "/{a", "/a}", "/x{a}", "/{a}x", "/{a b}", "/{*}", "/{a/b}",
              "/{{a}}", "/a*", "/*a", "/*/a", "/*/", "/**", "/{a}/{a}", "/{a}/x/{b}/{a}/*"}) {
            CAPTURE(pattern);
            CHECK_THROWS_AS(server.route("GET", pattern, says("")), std::invalid_argument);
        }
        for (const char* const method : {"", "GE T", "get", "Post"}) {
            CAPTURE(method);
            CHECK_THROWS_AS(server.route(method, "/x", says("")), std::invalid_argument);
        }
        for (const char* const pattern : {"/{a-b}", "/x/{a}/y/{b}", "/{a}/{A}/*", "/v1/x:send"}) {
            CAPTURE(pattern);
            CHECK_NOTHROW(server.route("GET", pattern, says("")));
        }
    }

    TEST_CASE("a route that an earlier one hides is refused, the other way round it is not") {
        struct pair_of_routes {
            const char* method;
            const char* first;
            const char* other_method;
            const char* second;
            bool hidden;
        };
        const pair_of_routes pairs[] = {
            {"GET", "/a", "GET", "/a", true},          {"GET", "/a", "HEAD", "/a", true},
            {"HEAD", "/a", "GET", "/a", false},        {"GET", "/a", "POST", "/a", false},
            {"GET", "/a/{x}", "GET", "/a/b", true},    {"GET", "/a/{x}", "HEAD", "/a/b", true},
            {"GET", "/a/b", "GET", "/a/{x}", false},   {"GET", "/a/{x}", "GET", "/a/{y}", true},
            {"GET", "/a/{x}", "GET", "/a/", false},    {"GET", "/a/{x}", "GET", "/a/{x}/", false},
            {"GET", "/a/{x}", "GET", "/a/*", false},   {"GET", "/a/{x}", "GET", "/{y}/b", false},
            {"GET", "/a/*", "GET", "/a/{x}", true},    {"GET", "/a/*", "GET", "/a/b/c", true},
            {"GET", "/a/*", "GET", "/a/", true},       {"GET", "/a/*", "GET", "/a", false},
            {"GET", "/a/*", "GET", "/a/*", true},      {"GET", "/a/*", "GET", "/a/b/*", true},
            {"GET", "/a/b/*", "GET", "/a/*", false},   {"GET", "/a/*", "GET", "/{x}/*", false},
            {"GET", "/{x}/*", "GET", "/a/*", true},    {"GET", "/{x}/*", "GET", "//*", false},
            {"GET", "/*", "GET", "/", true},           {"GET", "/*", "GET", "/a/{b}/*", true},
            {"GET", "/*", "POST", "/a", false},        {"GET", "/{x}/{y}", "GET", "/a/{y}", true},
            {"GET", "/{x}/{y}", "GET", "/a//", false}, {"GET", "/{x}", "GET", "/", false},
            {"GET", "/a", "GET", "/a/", false},
        };
        for (const pair_of_routes& p : pairs) {
            CAPTURE(p.method);
            CAPTURE(p.first);
            CAPTURE(p.second);
            sse::server server(with_threads(1));
            server.route(p.method, p.first, says(""));
            bool refused = false;
            try {
                server.route(p.other_method, p.second, says(""));
            } catch (const std::invalid_argument&) { refused = true; }
            CHECK(refused == p.hidden);
        }
    }

    TEST_CASE("a hidden route is found across groups too, and its refusal changes nothing") {
        running_server server(with_threads(1), [](sse::server& s) {
            sse::route_group api = s.group("/api");
            api.route("GET", "/{name}", says("first"));
            CHECK_THROWS_AS(s.route("GET", "/api/x", says("second")), std::invalid_argument);
            CHECK_THROWS_AS(s.group("/api").route("GET", "/x", says("third")),
                            std::invalid_argument);
            api.route("POST", "/x", says("posted"));
        });
        CHECK(got(server.port(), "/api/x") == "first");
        CHECK(http_request(server.port(), "POST", "/api/x").body == "posted");
    }

    TEST_CASE("of random patterns, the first that fits wins, and only the hidden are refused") {
        // The model: a pattern and a path as lists of segments.
        const auto split = [](std::string_view path) {
            std::vector<std::string> segments;
            std::size_t at = 0;
            while (at != path.npos) {
                const std::size_t next = path.find('/', at + 1);
                segments.emplace_back(path.substr(at + 1, next - at - 1));
                at = next;
            }
            return segments;
        };
        const auto fits = [&](const std::string& pattern, const std::string& path) {
            const auto wanted = split(pattern), given = split(path);
            for (std::size_t i = 0; i < wanted.size(); ++i) {
                if (i >= given.size()) return false;
                if (wanted[i] == "*") return true;
                if (wanted[i].starts_with("{") ? given[i].empty() : wanted[i] != given[i])
                    return false;
            }
            return wanted.size() == given.size();
        };
        dice dice(51);
        const auto random_path = [&](bool is_pattern) {
            std::string path;
            for (std::size_t n = dice.between(1, 4); n > 0; --n) {
                path += "/";
                const std::size_t kind = dice.below(is_pattern ? 6 : 4);
                if (kind < 2) path += kind == 0 ? "a" : "b";
                if (kind == 2 && !is_pattern) path += "c";
                if (kind >= 4 && n > 1) path += "{v" + std::to_string(n) + "}";
                if (kind >= 4 && n == 1) path += "*";
            }
            return path;
        };
        for (int round = 0; round < 10; ++round) {
            std::vector<std::string> patterns, hidden;
            running_server server(with_threads(1), [&](sse::server& s) {
                for (int n = 0; n < 12; ++n) {
                    const std::string pattern = random_path(true);
                    try {
                        s.route("GET", pattern, says(pattern));
                        patterns.push_back(pattern);
                    } catch (const std::invalid_argument&) { hidden.push_back(pattern); }
                }
            });
            connection peer(server.port());
            for (int n = 0; n < 60; ++n) {
                const std::string path = random_path(false);
                std::string expected = "Not found\n";
                for (auto p = patterns.rbegin(); p != patterns.rend(); ++p) {
                    if (fits(*p, path)) expected = *p;
                }
                CAPTURE(path);
                REQUIRE(peer.request("GET", path).body == expected);
                for (const std::string& pattern : hidden) {
                    CAPTURE(pattern);
                    if (fits(pattern, path)) REQUIRE(expected != "Not found\n");
                }
            }
        }
    }
}

TEST_SUITE("methods") {
    TEST_CASE("405 names the methods of all patterns that fit, each once") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("POST", "/a/{x}", says("post"));
            s.route("GET", "/a/b", says("get"));
            s.route("DELETE", "/a/*", says("delete"));
            s.route("POST", "/a/*", says("post star"));
            s.route("PATCH", "/other", says("patch"));
        });
        const std::uint16_t port = server.port();
        CHECK(allowed(port, "PUT", "/a/b") == "405 POST, GET, HEAD, DELETE, OPTIONS");
        CHECK(allowed(port, "PUT", "/a/c") == "405 POST, DELETE, OPTIONS");
        CHECK(allowed(port, "PUT", "/a/c/d") == "405 DELETE, POST, OPTIONS");
        CHECK(allowed(port, "GET", "/a/c") == "405 POST, DELETE, OPTIONS");
        CHECK(allowed(port, "HEAD", "/a/c") == "405 POST, DELETE, OPTIONS");
        CHECK(allowed(port, "PUT", "/a") == "404 nothing");
        CHECK(allowed(port, "OPTIONS", "/a/b") == "204 POST, GET, HEAD, DELETE, OPTIONS");
        CHECK(allowed(port, "OPTIONS", "/a") == "404 nothing");
        CHECK(http_request(port, "GET", "/a/b").body == "get");
        CHECK(http_request(port, "POST", "/a/b").body == "post");
        CHECK(http_request(port, "POST", "/a/b/c").body == "post star");
        CHECK(http_request(port, "DELETE", "/a/b").body == "delete");
    }

    TEST_CASE("HEAD is served by a route of its own, else by that of GET") {
        running_server server(with_threads(1), [](sse::server& s) {
            const auto with_header = [](const char* value) {
                return [value](sse::stream& client) -> handler_result {
                    client.add_header("X-By", value);
                    co_await client.respond(200, "text/plain", "12345");
                };
            };
            s.route("HEAD", "/own", with_header("head"));
            s.route("GET", "/own", with_header("get"));
            s.route("GET", "/{any}", with_header("any"));
        });
        const auto own = http_request(server.port(), "HEAD", "/own");
        CHECK(own.header("X-By") == "head");
        CHECK(http_get(server.port(), "/own").header("X-By") == "get");
        connection peer(server.port());
        const auto any = peer.request("HEAD", "/x");
        CHECK(any.header("X-By") == "any");
        CHECK(any.header("Content-Length") == "5");
        CHECK(peer.request("GET", "/x").body == "12345"); // nothing was left of a body
    }

    TEST_CASE("methods are compared as they are, and unknown ones have routes too") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("PURGE", "/a", says("purged"));
            s.route("OPTIONS", "/own", says("my options"));
            s.route("GET", "/own", says("get"));
        });
        const std::uint16_t port = server.port();
        CHECK(http_request(port, "PURGE", "/a").body == "purged");
        CHECK(allowed(port, "purge", "/a") == "405 PURGE, OPTIONS");
        CHECK(http_request(port, "OPTIONS", "/own").body == "my options");
        CHECK(allowed(port, "PUT", "/own") == "405 OPTIONS, GET, HEAD, OPTIONS");
    }

    TEST_CASE("OPTIONS of a star asks for the server as a whole") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/*", says("all"));
            s.fallback(says("fallback"));
        });
        const auto answer = http_request(server.port(), "OPTIONS", "*");
        CHECK(answer.status == 204);
        CHECK(answer.body.empty());
    }

    TEST_CASE("routes, groups and a fallback are added before the start") {
        std::optional<sse::route_group> early;
        running_server server(with_threads(1), [&](sse::server& s) { early = s.group("/early"); });
        CHECK_THROWS_AS(server.route("GET", "/a", says("")), std::logic_error);
        CHECK_THROWS_AS(server.fallback(says("")), std::logic_error);
        CHECK_THROWS_AS(server.group("/a"), std::logic_error);
        CHECK_THROWS_AS(early->route("GET", "/a", says("")), std::logic_error);
        CHECK_THROWS_AS(early->group("/a"), std::logic_error);
        CHECK(got(server.port(), "/a") == "404");
        CHECK(got(server.port(), "/early/a") == "404");
    }
}

TEST_SUITE("fallback") {
    TEST_CASE("a fallback serves paths that no route knows, with any method; 405 stays") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/known", says("known"));
            s.fallback([](sse::stream& client) -> handler_result {
                const std::string body = co_await client.body();
                std::string text(client.request().method);
                text.append(" ").append(client.request().path).append(" ").append(body);
                co_await client.respond(404, "text/plain", text);
            });
        });
        const std::uint16_t port = server.port();
        CHECK(http_get(port, "/known").body == "known");
        CHECK(http_get(port, "/health").status == 200);
        CHECK(http_get(port, "/a/b?c").body == "GET /a/b ");
        CHECK(http_request(port, "POST", "/x", {}, "data").body == "POST /x data");
        CHECK(http_request(port, "PURGE", "/x").body == "PURGE /x ");
        CHECK(http_request(port, "OPTIONS", "/x").body == "OPTIONS /x ");
        CHECK(http_request(port, "HEAD", "/x").header("Content-Length") == "8");
        CHECK(allowed(port, "POST", "/known") == "405 GET, HEAD, OPTIONS");
    }

    TEST_CASE("a fallback may stream, and bounds and CORS of the server hold for it") {
        sse::options o = with_threads(1);
        o.limits.body_bytes = 4;
        o.cors.origin = sse::origins({"https://app.example"});
        running_server server(o, [](sse::server& s) {
            s.fallback([](sse::stream& client) -> handler_result {
                const std::string body = co_await client.body();
                client.subscribe("/any");
                co_await client.send({.data = body});
            });
        });
        event_client client(server.port(), "/nowhere", {{"Origin", "https://app.example"}});
        CHECK(client.head().header("Access-Control-Allow-Origin") == "https://app.example");
        CHECK(client.next().data.empty());
        server.publish("/any", {.data = "live"});
        CHECK(client.next().data == "live");
        CHECK(http_get(server.port(), "/no", {{"Origin", "https://evil.example"}}).status == 403);
        CHECK(http_request(server.port(), "POST", "/no", {}, "12345").status == 413);
    }
}

TEST_SUITE("file") {
    TEST_CASE("a file is read for each request, and its type follows the name") {
        const temporary_file page("page.html", "<p>one</p>");
        const temporary_file data("data.bin", std::string("\0\r\n\xff", 4));
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/", sse::file(page.path));
            s.route("GET", "/data/*", sse::file(data.path));
        });
        const auto first = http_get(server.port(), "/");
        CHECK(first.status == 200);
        CHECK(first.body == "<p>one</p>");
        CHECK(first.header("Content-Type") == "text/html; charset=utf-8");
        page.write("<p>two, and longer</p>");
        CHECK(http_get(server.port(), "/").body == "<p>two, and longer</p>");
        page.write("");
        CHECK(http_get(server.port(), "/").status == 200);
        CHECK(http_get(server.port(), "/").body.empty());
        CHECK(http_request(server.port(), "HEAD", "/data/x").header("Content-Length") == "4");
        const auto bytes = http_get(server.port(), "/data/x");
        CHECK(bytes.body == std::string("\0\r\n\xff", 4));
        CHECK(bytes.header("Content-Type") == "application/octet-stream");
        // The path of the request is not a path of the file system.
        CHECK(http_get(server.port(), "/data/../../etc/passwd").body == bytes.body);
    }

    TEST_CASE("what is not a file that can be read gets 404, and is nobody's error") {
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/none", sse::file("/nowhere/at/all.html"));
            s.route("GET", "/dir", sse::file(std::filesystem::temp_directory_path().string()));
            s.route("GET", "/empty", sse::file(""));
        });
        for (const char* const path : {"/none", "/dir", "/empty"}) {
            CAPTURE(path);
            const auto answer = http_get(server.port(), path);
            CHECK(answer.status == 404);
            CHECK(answer.header("Content-Type") == "text/plain; charset=utf-8");
            CHECK_FALSE(answer.body.empty());
        }
        CHECK(errors.count == 0);
    }
}

TEST_SUITE("groups") {
    TEST_CASE("a group's routes stand below its prefix, which may have names") {
        running_server server(with_threads(1), [](sse::server& s) {
            sse::route_group users = s.group("/users/{user}");
            users.route("GET", "", tell_values);
            users.route("GET", "/", says("slash"));
            users.route("GET", "/posts/{post}", tell_values);
            users.group("/v2").group("/{x}").route("GET", "/*", tell_values);
            CHECK_THROWS_AS(users.route("GET", "/a/{user}", says("")), std::invalid_argument);
            CHECK_THROWS_AS(users.route("GET", "a", says("")), std::invalid_argument);
            CHECK_THROWS_AS(users.group("/{user}"), std::invalid_argument);
        });
        const std::uint16_t port = server.port();
        CHECK(got(port, "/users/ann") == "user=ann;*=");
        CHECK(got(port, "/users/ann/") == "slash");
        CHECK(got(port, "/users/") == "404");
        CHECK(got(port, "/users/ann/posts/7") == "user=ann;post=7;*=");
        CHECK(got(port, "/users/ann/v2/x/y/z") == "user=ann;x=x;*=y/z");
        CHECK(got(port, "/posts/7") == "404");
    }

    TEST_CASE("prefixes that cannot work, and a CORS that cannot, are refused") {
        sse::server server(with_threads(1));
        for (const char* const prefix :
             {"", "/", "api", "/api/", "/api/*", "/*", "/a*", "/{}", "/{a}/{a}", "/{a}x"}) {
            CAPTURE(prefix);
            CHECK_THROWS_AS(server.group(prefix), std::invalid_argument);
        }
        sse::group_options o;
        o.cors.emplace().credentials = true; // together with every origin
        CHECK_THROWS_AS(server.group("/api", o), std::invalid_argument);
    }

    TEST_CASE("authorize is asked from the outermost group inwards, and its headers are given") {
        std::mutex mutex;
        std::string asked;
        const auto notes = [&](std::string name) {
            sse::group_options o;
            o.authorize = [&, name](const sse::request& r) -> asio::awaitable<sse::access> {
                const std::lock_guard lock(mutex);
                asked += name;
                co_return sse::access::grant(
                    {.headers = {{"X-" + name, std::string(r.path_value("id"))}}});
            };
            return o;
        };
        running_server server(with_threads(1), [&](sse::server& s) {
            sse::route_group a = s.group("/{id}", notes("A"));
            sse::route_group b = a.group("/b", notes("B"));
            sse::route_group c = b.group("/c").group("/d", notes("D"));
            a.route("GET", "/x", says("a"));
            b.route("GET", "/x", says("b"));
            c.route("GET", "/x", says("d"));
        });
        const auto inner = http_get(server.port(), "/7/b/c/d/x");
        CHECK(inner.body == "d");
        CHECK(inner.header("X-A") == "7");
        CHECK(inner.header("X-B") == "7");
        CHECK(inner.header("X-D") == "7");
        CHECK(asked == "ABD");
        asked.clear();
        CHECK(http_get(server.port(), "/7/b/x").body == "b");
        CHECK(asked == "AB");
        asked.clear();
        CHECK(http_get(server.port(), "/7/x").body == "a");
        CHECK(asked == "A");
        asked.clear(); // nobody needs to be let in to be told that there is nothing
        CHECK(http_get(server.port(), "/7/none").status == 404);
        CHECK(http_request(server.port(), "PUT", "/7/x").status == 405);
        CHECK(http_request(server.port(), "OPTIONS", "/7/x").status == 204);
        CHECK(http_get(server.port(), "/health").status == 200);
        CHECK(asked.empty());
    }

    TEST_CASE("who is refused gets that response, and nothing after it is asked or run") {
        std::atomic<int> inner{0}, run{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            sse::group_options outer;
            outer.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
                const std::string key(r.header("X-Key").value_or(""));
                if (key == "good")
                    co_return sse::access::grant({.headers = {{"X-Outer", "asked"}}});
                co_return sse::access::refuse(key == "over" ? 204 : 401, "Who are you?",
                                              {{"X-Outer", "asked"}, {"WWW-Authenticate", "Key"}});
            };
            sse::group_options within;
            within.authorize = [&](const sse::request&) -> asio::awaitable<sse::access> {
                ++inner;
                co_return sse::access::refuse(403, "Not you");
            };
            sse::route_group a = s.group("/a", outer);
            sse::handler counted = [&](sse::stream& client) -> handler_result {
                ++run;
                co_await client.respond(200, "text/plain", "in");
            };
            a.route("GET", "/x", counted);
            a.group("/b", within).route("GET", "/x", counted);
        });
        connection peer(server.port());
        const auto refused = peer.request("GET", "/a/b/x");
        CHECK(refused.status == 401);
        CHECK(refused.body == "Who are you?");
        CHECK(refused.header("WWW-Authenticate") == "Key");
        CHECK(refused.header_lines("X-Outer") == 1);
        CHECK(inner == 0);
        const auto over = peer.request("GET", "/a/x", {{"X-Key", "over"}});
        CHECK(over.status == 204);
        const auto second = peer.request("GET", "/a/b/x", {{"X-Key", "good"}});
        CHECK(second.status == 403);
        CHECK(second.body == "Not you");
        CHECK_FALSE(second.header("WWW-Authenticate")); // of an earlier request
        CHECK(second.header_lines("X-Outer") == 1);
        CHECK(inner == 1);
        CHECK(run == 0);
        CHECK(peer.request("GET", "/a/x", {{"X-Key", "good"}}).body == "in");
        CHECK(run == 1);
    }

    TEST_CASE("an authorize that throws lets nobody in, and is reported") {
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        running_server server(o, [](sse::server& s) {
            sse::group_options guard;
            guard.authorize = [](const sse::request&) -> asio::awaitable<sse::access> {
                throw std::runtime_error("no database");
                co_return sse::access::grant();
            };
            s.group("/a", guard).route("GET", "/x", says("in"));
        });
        connection peer(server.port());
        const auto answer = peer.request("GET", "/a/x");
        CHECK(answer.status == 500);
        CHECK(answer.body.find("database") == std::string::npos);
        CHECK(errors.count == 1);
        CHECK(peer.request("GET", "/health").status == 200);
    }

    TEST_CASE("an authorize may wait, and ends when its client leaves") {
        std::atomic<int> waiting{0}, ended{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            sse::group_options guard;
            guard.authorize = [&](const sse::request&) -> asio::awaitable<sse::access> {
                const count_end guard_of_end{ended};
                asio::steady_timer timer(co_await asio::this_coro::executor, 1h);
                ++waiting;
                co_await timer.async_wait(asio::use_awaitable);
                co_return sse::access::grant();
            };
            s.group("/a", guard).route("GET", "/x", says("in"));
        });
        connection peer(server.port());
        peer.send_request("GET", "/a/x");
        REQUIRE(eventually([&] { return waiting == 1; }));
        peer.reset();
        CHECK(eventually([&] { return ended == 1; }));
    }

    TEST_CASE("user, topics and the time that authorize gives hold for the stream, and only it") {
        sse::options o = with_threads(1);
        o.timeouts.body = 100ms; // many sweeps a second
        running_server server(o, [](sse::server& s) {
            sse::group_options guard;
            guard.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
                co_return sse::access::grant({.topics = {"/instead"},
                                              .user = std::string(r.header("X-User").value_or("")),
                                              .valid_for = r.header("X-Short") ? 150ms : 0ms});
            };
            sse::route_group a = s.group("/a", guard);
            a.route("GET", "/live", [](sse::stream& client) -> handler_result {
                const std::vector<std::string> topics = client.request().topics;
                for (const std::string& topic : topics) client.subscribe(topic);
                co_await client.send({.data = std::to_string(topics.size())});
            });
            a.route("GET", "/slow", [](sse::stream& client) -> handler_result {
                asio::steady_timer timer(client.get_executor(), 300ms);
                co_await timer.async_wait(asio::use_awaitable);
                co_await client.respond(200, "text/plain", "slow");
            });
        });
        event_client ann(server.port(), "/a/live", {{"X-User", "ann"}});
        CHECK(ann.next().data == "1");
        REQUIRE(in_time([&] { // before his time is over
            event_client bob(server.port(), "/a/live", {{"X-User", "bob"}, {"X-Short", "1"}});
            if (bob.next().data != "1") return false;
            server.send_to_user("ann", {.data = "for ann"});
            server.publish("/instead", {.data = "for both"});
            CHECK(ann.next().data == "for ann");
            CHECK(ann.next().data == "for both");
            const auto came = bob.next_or_end();
            if (came) CHECK(came->data == "for both");
            CHECK(bob.wait_for_close() == ending::fin);
            return came.has_value();
        }));
        server.publish("/instead", {.data = "she stays"});
        CHECK(ann.next().data == "she stays");
        // A plain response is not a stream: it takes the time that it takes, and so does what
        // follows.
        connection peer(server.port());
        CHECK(peer.request("GET", "/a/slow", {{"X-Short", "1"}}).body == "slow");
        CHECK(peer.request("GET", "/a/slow", {{"X-Short", "1"}}).body == "slow");
    }

    TEST_CASE("a group has its own CORS, the groups in it too unless they say") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"https://outside.example"});
        sse::group_options own, inner;
        own.cors.emplace();
        own.cors->origin = sse::origins({"https://api.example"});
        own.cors->credentials = true;
        own.cors->headers = {"X-Api"};
        own.cors->max_age = 7s;
        inner.cors.emplace(); // everyone
        running_server server(o, [&](sse::server& s) {
            s.route("GET", "/out", says("out"));
            sse::route_group api = s.group("/api", own);
            api.route("GET", "/x", says("x"));
            api.route("POST", "/x", says("posted"));
            api.group("/same").route("GET", "/x", says("same"));
            api.group("/open", inner).route("GET", "/x", says("open"));
        });
        const auto permitted = [&](std::string_view target, const std::string& origin) {
            const auto answer = http_get(server.port(), target, {{"Origin", origin}});
            return std::to_string(answer.status) + " " +
                   answer.header("Access-Control-Allow-Origin").value_or("-");
        };
        const std::string api = "https://api.example", outside = "https://outside.example";
        CHECK(permitted("/out", outside) == "200 " + outside);
        CHECK(permitted("/out", api) == "403 -");
        CHECK(permitted("/api/x", api) == "200 " + api);
        CHECK(permitted("/api/x", outside) == "403 -");
        CHECK(permitted("/api/same/x", api) == "200 " + api);
        CHECK(permitted("/api/same/x", outside) == "403 -");
        CHECK(permitted("/api/open/x", "https://any.example") == "200 *");
        CHECK(permitted("/api/none", outside) == "404 " + outside); // no route, no group
        const auto preflight = [&](std::string_view target, const std::string& origin,
                                   const std::string& method) {
            return http_request(server.port(), "OPTIONS", target,
                                {{"Origin", origin}, {"Access-Control-Request-Method", method}});
        };
        const auto answer = preflight("/api/x", api, "POST");
        CHECK(answer.status == 204);
        CHECK(answer.header("Access-Control-Allow-Origin") == api);
        CHECK(answer.header("Access-Control-Allow-Credentials") == "true");
        CHECK(answer.header("Access-Control-Allow-Methods") == "GET, HEAD, POST, OPTIONS");
        CHECK(answer.header("Access-Control-Allow-Headers") == "X-Api");
        CHECK(answer.header("Access-Control-Max-Age") == "7");
        const auto stranger = preflight("/api/x", outside, "GET");
        CHECK(stranger.status == 403);
        CHECK_FALSE(stranger.header("Access-Control-Allow-Methods"));
        CHECK(preflight("/api/open/x", outside, "GET").header("Access-Control-Allow-Origin") ==
              "*");
        // Also for the 405: a page may learn why.
        CHECK(http_request(server.port(), "PUT", "/api/x", {{"Origin", api}})
                  .header("Access-Control-Allow-Origin") == api);
    }

    TEST_CASE("a preflight is answered for the group of the method that it asks for") {
        sse::options o = with_threads(1);
        o.cors.origin = sse::origins({"https://outside.example"});
        sse::group_options own;
        own.cors.emplace();
        running_server server(o, [&](sse::server& s) {
            s.route("GET", "/api/{x}", says("narrow"));
            s.group("/api", own).route("POST", "/*", says("wide"));
        });
        const auto permitted = [&](const std::string& method) {
            const auto answer = http_request(
                server.port(), "OPTIONS", "/api/x",
                {{"Origin", "https://any.example"}, {"Access-Control-Request-Method", method}});
            return answer.header("Access-Control-Allow-Origin").value_or("-");
        };
        CHECK(permitted("POST") == "*");
        CHECK(permitted("GET") == "-");
        CHECK(permitted("HEAD") == "-");
        CHECK(permitted("PUT") == "-");
    }

    TEST_CASE("a preflight needs no authorization, and counts for no limit") {
        sse::group_options o = at_most(1);
        o.authorize = [](const sse::request&) -> asio::awaitable<sse::access> {
            co_return sse::access::refuse(401);
        };
        running_server server(with_threads(1), [&](sse::server& s) {
            s.group("/a", o).route("GET", "/x", says("x"));
        });
        connection peer(server.port());
        for (int n = 0; n < 3; ++n) {
            CHECK(peer.request("OPTIONS", "/a/x",
                               {{"Origin", "https://a.example"},
                                {"Access-Control-Request-Method", "GET"}})
                      .status == 204);
            CHECK(peer.request("GET", "/a/x").status == 401);
        }
    }

    TEST_CASE("the largest body is that of the nearest group that says") {
        sse::options o = with_threads(1);
        o.limits.body_bytes = 10;
        sse::group_options small, large, none;
        small.max_body_bytes = 3;
        large.max_body_bytes = 100'000;
        none.max_body_bytes = 0;
        running_server server(o, [&](sse::server& s) {
            const sse::handler echo = [](sse::stream& client) -> handler_result {
                const std::string body = co_await client.body();
                co_await client.respond(200, "text/plain", std::to_string(body.size()));
            };
            s.route("POST", "/x", echo);
            sse::route_group a = s.group("/small", small);
            a.route("POST", "/x", echo);
            a.group("/same").route("POST", "/x", echo);
            a.group("/large", large).route("POST", "/x", echo);
            a.group("/none", none).route("POST", "/x", echo);
        });
        const std::pair<const char*, std::size_t> limits[] = {{"/x", 10},
                                                              {"/small/x", 3},
                                                              {"/small/same/x", 3},
                                                              {"/small/large/x", 100'000},
                                                              {"/small/none/x", 0}};
        for (const auto& [target, limit] : limits) {
            CAPTURE(target);
            for (const bool chunked : {false, true}) {
                CAPTURE(chunked);
                const auto status_for = [&, path = target](std::size_t size) {
                    connection peer(server.port());
                    const std::string bytes(size, 'x');
                    if (!chunked) return peer.request("POST", path, {}, bytes).status;
                    char digits[20];
                    std::snprintf(digits, sizeof digits, "%zx", size);
                    std::string body;
                    if (size > 0) body = std::string(digits) + "\r\n" + bytes + "\r\n";
                    peer.send("POST " + std::string(path) +
                              " HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
                              "\r\n\r\n" +
                              body + "0\r\n\r\n");
                    return peer.read_response().status;
                };
                CHECK(status_for(limit) == 200);
                CHECK(status_for(limit + 1) == 413);
            }
        }
    }
}

TEST_SUITE("requests at once") {
    /// Routes of a group at /g that end in every way there is.
    struct counted_server {
        std::atomic<bool> go{false};
        std::atomic<int> waiting{0};
        error_count errors;
        std::optional<running_server> server;

        explicit counted_server(std::size_t most, sse::options o = with_threads(1)) {
            errors.attach(o);
            server.emplace(o, [&](sse::server& s) {
                sse::route_group g = s.group("/g", at_most(most));
                add_to(g);
                s.route("GET", "/free", says("free"));
            });
        }
        ~counted_server() { go = true; }

        void add_to(sse::route_group& g) {
            g.route("GET", "/plain", says("plain"));
            g.route("POST", "/body", [](sse::stream& client) -> handler_result {
                const std::string body = co_await client.body();
                co_await client.respond(200, "text/plain", body);
            });
            g.route("GET", "/nothing", [](sse::stream&) -> handler_result { co_return; });
            g.route("GET", "/wait", [this](sse::stream& client) -> handler_result {
                ++waiting;
                co_await until(client, go);
                co_await client.respond(200, "text/plain", "waited");
            });
            g.route("GET", "/live", [](sse::stream& client) -> handler_result {
                client.subscribe("/news");
                co_return;
            });
            g.route("GET", "/live-much", [](sse::stream& client) -> handler_result {
                client.subscribe("/news");
                const std::string large(2'000'000, 'x');
                co_await client.send({.data = large});
            });
            g.route("GET", "/live-closed", [](sse::stream& client) -> handler_result {
                client.subscribe("/news");
                client.close();
                co_return;
            });
            g.route("GET", "/live-behind", [this](sse::stream& client) -> handler_result {
                client.subscribe("/behind");
                for (int n = 0; n < 80; ++n) {
                    const std::string large = support::incompressible(100'000);
                    server->publish("/behind", {.data = large});
                }
                asio::steady_timer timer(client.get_executor());
                for (int n = 0; n < 100 && client.lag().messages == 0; ++n) {
                    timer.expires_after(1ms);
                    co_await timer.async_wait(asio::use_awaitable);
                }
                client.close();
                co_return;
            });
            g.route("GET", "/finite", [](sse::stream& client) -> handler_result {
                co_await client.send({.data = "one"});
            });
            g.route("GET", "/throws", [](sse::stream&) -> handler_result {
                throw std::runtime_error("before the head");
                co_return;
            });
            g.route("GET", "/live-throws", [](sse::stream& client) -> handler_result {
                client.subscribe("/news");
                co_await client.send({.data = "one"});
                throw std::runtime_error("in the stream");
            });
            g.route("GET", "/live-waits", [this](sse::stream& client) -> handler_result {
                client.subscribe("/news");
                ++waiting;
                co_await wait_an_hour(client);
            });
        }
        std::uint16_t port() const { return server->port(); }
        /// All that came in has gone: as many as may be are let in again, and not one more.
        void check_nothing_is_counted(std::size_t most) {
            REQUIRE(comes_in(port(), "/g/plain"));
            REQUIRE(eventually([&] { return server->counters().connections == 0; }));
            go = false;
            std::vector<event_client> streams;
            for (std::size_t n = 0; n < most; ++n) {
                REQUIRE(eventually([&] {
                    try {
                        streams.emplace_back(port(), "/g/live");
                        return true;
                    } catch (const bad_response&) { return false; }
                }));
            }
            CHECK(http_get(port(), "/g/plain").status == 503);
        }
    };

    TEST_CASE("one more than may be served at once gets 503, with the time to come again") {
        sse::options o = with_threads(1);
        o.limits.retry_after = 7000ms;
        counted_server server(2, o);
        connection a(server.port()), b(server.port()), c(server.port());
        a.send_request("GET", "/g/wait");
        b.send_request("GET", "/g/wait");
        REQUIRE(eventually([&] { return server.waiting == 2; }));
        const auto refused = c.request("GET", "/g/plain");
        CHECK(refused.status == 503);
        CHECK(refused.header("Retry-After") == "7");
        CHECK(c.request("GET", "/free").body == "free"); // and the connection goes on
        CHECK(c.request("GET", "/g/none").status == 404);
        CHECK(c.request("PUT", "/g/plain").status == 405);
        CHECK(c.request("GET", "/g/plain").status == 503);
        server.go = true;
        CHECK(a.read_response().body == "waited");
        CHECK(b.read_response().body == "waited");
        CHECK(c.request("GET", "/g/plain").body == "plain");
    }

    TEST_CASE("a stream that lives on is counted until it ends") {
        counted_server server(1);
        event_client client(server.port(), "/g/live");
        CHECK(http_get(server.port(), "/g/plain").status == 503);
        server.server->publish("/news", {.data = "still here"});
        CHECK(client.next().data == "still here");
        CHECK(http_get(server.port(), "/g/plain").status == 503);
        client.close();
        CHECK(comes_in(server.port(), "/g/plain"));
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a connection brings one request after the other to a group that serves one") {
        counted_server server(1);
        connection peer(server.port());
        for (int n = 0; n < 5; ++n) {
            CHECK(peer.request("GET", "/g/plain").body == "plain");
            CHECK(peer.request("GET", "/g/nothing").status == 204);
            CHECK(peer.request("POST", "/g/body", {}, "abc").body == "abc");
            CHECK(peer.request("GET", "/g/throws").status == 500);
        }
        std::string pipelined;
        for (int n = 0; n < 20; ++n)
            pipelined += "GET /g/plain HTTP/1.1\r\nHost: localhost\r\n\r\n";
        peer.send(pipelined);
        for (int n = 0; n < 20; ++n) CHECK(peer.read_response().body == "plain");
        peer.close();
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a stream that its handler closes is counted out") {
        counted_server server(1);
        {
            event_client client(server.port(), "/g/live-closed");
            client.wait_for_close();
        }
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a stream that its server ends is counted out") {
        counted_server server(1);
        event_client client(server.port(), "/g/live");
        const auto streams = server.server->streams();
        REQUIRE(streams.size() == 1);
        server.server->revoke(streams[0].id);
        CHECK(client.wait_for_close() == ending::fin);
        client.close();
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a handler that throws is counted out, before its head and after it") {
        counted_server server(1);
        CHECK(http_get(server.port(), "/g/throws").status == 500);
        CHECK(comes_in(server.port(), "/g/plain"));
        {
            event_client client(server.port(), "/g/live-throws");
            CHECK(client.next().data == "one");
            client.wait_for_close();
        }
        server.check_nothing_is_counted(1);
        CHECK(server.errors.count == 2);
    }

    TEST_CASE("a client that leaves is counted out, whatever its handler did") {
        counted_server server(1);
        for (const char* const target : {"/g/wait", "/g/live-waits"}) {
            CAPTURE(target);
            connection peer(server.port());
            const int before = server.waiting;
            peer.send_request("GET", target);
            REQUIRE(eventually([&] { return server.waiting == before + 1; }));
            CHECK(http_get(server.port(), "/g/plain").status == 503);
            peer.reset();
            CHECK(comes_in(server.port(), "/g/plain"));
        }
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a client that leaves before it took what its stream began with is counted out") {
        counted_server server(1);
        connection peer(server.port(), {.receive_buffer = 4096});
        peer.send_request("GET", "/g/live-much");
        CHECK(peer.read_head().status == 200);
        CHECK(http_get(server.port(), "/g/plain").status == 503);
        peer.reset();
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a stream that is to end behind what waits for it is counted out") {
        for (const bool leaves : {false, true}) {
            CAPTURE(leaves);
            counted_server server(1);
            event_client client(server.port(), "/g/live-behind", {}, {.receive_buffer = 4096});
            CHECK(http_get(server.port(), "/g/plain").status == 503);
            if (leaves) {
                client.reset();
            } else {
                CHECK(client.wait_for_close() == ending::fin);
                client.close();
            }
            server.check_nothing_is_counted(1);
        }
    }

    TEST_CASE("a client that leaves while its gap is mended is counted out") {
        std::atomic<int> mending{0};
        sse::options o = with_threads(1);
        o.hooks.on_gap = [&](sse::stream& client, const sse::gap&) -> handler_result {
            ++mending;
            co_await wait_an_hour(client);
        };
        counted_server server(1, o);
        event_client client(server.port(), "/g/live", {{"Last-Event-ID", "before-1"}});
        REQUIRE(eventually([&] { return mending == 1; }));
        client.reset();
        server.check_nothing_is_counted(1);
    }

    TEST_CASE("a stream that falls behind, or is too old, is counted out") {
        sse::options o = with_threads(1);
        o.timeouts.stream_age = 50ms;
        o.timeouts.body = 200ms; // many sweeps a second
        counted_server server(1, o);
        {
            event_client client(server.port(), "/g/live");
            CHECK(client.wait_for_close() == ending::fin);
        }
        CHECK(comes_in(server.port(), "/g/plain"));
        o.timeouts.stream_age = 0ms;
        o.history.bytes = 100'000;
        counted_server small(1, o);
        event_client stuck(small.port(), "/g/live", {}, {.receive_buffer = 4096});
        REQUIRE(eventually([&] {
            const std::string large = support::incompressible(50'000);
            small.server->publish("/news", {.data = large});
            return small.server->counters().lagged == 1;
        }));
        stuck.close();
        small.check_nothing_is_counted(1);
    }

    TEST_CASE("an inner group's requests count for those around it, refused ones for none") {
        std::atomic<bool> go{false};
        std::atomic<int> waiting{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            const sse::handler wait = [&](sse::stream& client) -> handler_result {
                ++waiting;
                co_await until(client, go);
                co_await client.respond(200, "text/plain", "waited");
            };
            sse::route_group outer = s.group("/o", at_most(2));
            sse::route_group inner = outer.group("/i", at_most(1));
            outer.route("GET", "/wait", wait);
            outer.route("GET", "/plain", says("plain"));
            inner.route("GET", "/wait", wait);
            inner.route("GET", "/plain", says("plain"));
        });
        const auto status = [&](const char* target) {
            return http_get(server.port(), target).status;
        };
        connection a(server.port()), b(server.port());
        a.send_request("GET", "/o/i/wait");
        REQUIRE(eventually([&] { return waiting == 1; }));
        for (int n = 0; n < 3; ++n) CHECK(status("/o/i/plain") == 503); // the inner one is full
        CHECK(status("/o/plain") == 200);                               // and none was counted here
        b.send_request("GET", "/o/wait");
        REQUIRE(eventually([&] { return waiting == 2; }));
        CHECK(status("/o/plain") == 503);
        a.reset();
        CHECK(comes_in(server.port(), "/o/i/plain"));
        connection c(server.port());
        c.send_request("GET", "/o/wait");
        REQUIRE(eventually([&] { return waiting == 3; }));
        for (int n = 0; n < 3; ++n) CHECK(status("/o/i/plain") == 503); // the outer one is full
        go = true;
        CHECK(b.read_response().body == "waited");
        CHECK(c.read_response().body == "waited");
        CHECK(comes_in(server.port(), "/o/i/plain"));
    }

    TEST_CASE("random requests that end in every way leave no count behind") {
        dice dice(52);
        sse::options o = with_threads(2);
        counted_server server(3, o);
        constexpr const char* targets[] = {"/g/plain",      "/g/nothing",    "/g/wait",
                                           "/g/live",       "/g/live-much",  "/g/live-closed",
                                           "/g/finite",     "/g/throws",     "/g/live-throws",
                                           "/g/live-waits", "/g/live-behind"};
        std::list<connection> open;
        for (int n = 0; n < 600; ++n) {
            connection& peer =
                open.emplace_back(server.port(), connect_options{.receive_buffer = 4096});
            const std::string target = dice.one_of(targets);
            peer.send_request("GET", target);
            if (target != "/g/wait" && dice.one_in(2)) REQUIRE(peer.receive_some());
            server.go = dice.one_in(2);
            while (open.size() > dice.below(6)) {
                if (dice.one_in(2)) open.front().reset();
                open.pop_front();
            }
        }
        server.go = true;
        open.clear();
        server.check_nothing_is_counted(3);
    }
}

TEST_SUITE("decisions without a connection") {
    using namespace sse::detail;

    struct decided {
        int status = 0; ///< 0: the route serves it.
        std::string lines;
        bool over_limit = false;
    };

    /// A site with a limit of one request under /few, and what it does with requests.
    struct small_site : site {
        explicit small_site(sse::options o) : site(std::move(o)) {
            group& few = groups.emplace_back();
            few.around = &groups.front();
            few.options.max_requests = 1;
            few.number = 1;
            const sse::handler run = [](sse::stream&) -> handler_result { co_return; };
            routes.push_back({"GET", path_pattern("/a/{id}"), run, &groups.front(), true});
            routes.push_back({"POST", path_pattern("/a/{id}"), run, &groups.front()});
            routes.push_back({"GET", path_pattern("/few/*"), run, &few});
        }

        decided operator()(std::string_view line, std::string_view fields = "Host: h\r\n",
                           limit_reached over = limit_reached::none, bool granted = true,
                           const char* peer = "192.0.2.1") {
            sse::request r;
            const std::string head =
                std::string(line) + " HTTP/1.1\r\n" + std::string(fields) + "\r\n";
            REQUIRE(r.parse(head).status == 0);
            const target to = find(r);
            const auto made = decide(r, asio::ip::make_address(peer), to, granted, over);
            if (!made) return {};
            return {made->status, made->lines, made->over_limit};
        }
    };

    TEST_CASE("a request is served, or told what its path has") {
        small_site of{sse::options()};
        CHECK(of("GET /a/1").status == 0);
        CHECK(of("HEAD /a/1").status == 0);
        CHECK(of("GET /b").status == 404);
        CHECK(of("PUT /a/1").status == 405);
        CHECK(of("PUT /a/1").lines == "Allow: GET, HEAD, POST, OPTIONS\r\n");
        CHECK(of("OPTIONS /a/1").status == 204);
        CHECK(of("OPTIONS *").lines == "Allow: OPTIONS\r\n");
        CHECK(of("OPTIONS /b").status == 404);
        of.fallback = [](sse::stream&) -> handler_result { co_return; };
        CHECK(of("GET /b").status == 0);
        CHECK(of("OPTIONS /b").status == 0);
        CHECK(of("OPTIONS *").status == 204);
        CHECK(of("PUT /a/1").status == 405);
    }

    TEST_CASE("a limit refuses what it is about, and no other request") {
        small_site of{sse::options()};
        for (const limit_reached over : {limit_reached::connections, limit_reached::per_address}) {
            const int status = over == limit_reached::connections ? 503 : 429;
            CHECK(of("GET /a/1", "Host: h\r\n", over).status == status);
            CHECK(of("GET /a/1", "Host: h\r\n", over).over_limit);
            CHECK(of("POST /a/1", "Host: h\r\n", over).status == 0);
            CHECK(of("GET /b", "Host: h\r\n", over).status == 404);
        }
        CHECK(of("POST /a/1", "Host: h\r\n", limit_reached::rate).status == 429);
        CHECK(of("GET /b", "Host: h\r\n", limit_reached::rate).status == 429);
        CHECK(of("GET /few/1").status == 0); // counted
        CHECK(of("GET /few/1").status == 503);
        CHECK(of("GET /few/1").lines == "Retry-After: 5\r\n");
        of.groups[1].leave();
        CHECK(of("GET /few/1").status == 0);
    }

    TEST_CASE("an unknown host comes before a strange origin, and that before the path") {
        sse::options o;
        o.hosts = {"good.example"};
        o.proxy.trusted = {"10.0.0.0/8"};
        o.cors.refuse = true;
        small_site of(o);
        const std::string good = "Host: good.example\r\n";
        const std::string origin = "Origin: http://bad.example\r\n";
        const auto refused = [&](const std::string& fields, const char* peer = "192.0.2.1") {
            return of("GET /b", fields, limit_reached::none, false, peer).status;
        };
        CHECK(refused("Host: bad.example\r\n" + origin) == 421);
        CHECK(refused(good + origin) == 403);
        CHECK(refused(good + "Origin: http://good.example\r\n") == 404);
        // Only a trusted proxy says for which host it asks.
        const std::string passed = "Host: inside\r\nX-Forwarded-Host: good.example\r\n";
        CHECK(refused(passed + origin) == 421);
        CHECK(refused(passed + origin, "10.0.0.1") == 403);
    }

    TEST_CASE("a handler that sent nothing leaves a response") {
        CHECK(site::response_after(false, {}).status == 204);
        CHECK(site::response_after(true, {}).status == 500);
        CHECK(site::response_after(true, sse::errc::body_too_large).status == 413);
        CHECK(site::response_after(true, sse::errc::body_timeout).status == 408);
        CHECK(site::response_after(true, sse::errc::bad_body).status == 400);
        CHECK(site::response_after(true, sse::errc::not_acceptable).status == 406);
        CHECK(site::response_after(true, asio::error::operation_aborted).status == 500);
    }
}

} // namespace routes_test
