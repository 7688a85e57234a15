// admin.cpp - covers >>admin: who may administrate, what is listed, and how streams are ended.
#include "examples/json.hpp"
#include "support/handlers.hpp"
#include "support/memory_bus.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <map>
#include <set>

namespace admin_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

const header_list staff{{"Authorization", "Bearer staff"}};

asio::awaitable<sse::access> staff_only(const sse::request& r) {
    if (r.header("Authorization") == "Bearer staff") co_return sse::access::grant();
    co_return sse::access::refuse(401, "Log in first\n");
}

/// The user of a client is what its query says.
sse::options users_by_query(std::size_t threads = 1) {
    sse::options o = with_threads(threads);
    o.timeouts.body = 40ms; // deadlines are looked at every few milliseconds
    o.hooks.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
        std::string user = r.query_value("user").value_or("");
        co_return sse::access::grant({.user = std::move(user)});
    };
    return o;
}

struct admin_server : running_server {
    explicit admin_server(sse::options o = users_by_query(), sse::admin_options how = {})
        : running_server(std::move(o), [&](sse::server& s) { sse::admin(s, staff_only, how); }) {}
};

using object = std::vector<json::member>;

/// The elements of an array, as written.
std::vector<std::string> elements(std::string_view array) {
    REQUIRE(array.starts_with('['));
    REQUIRE(array.ends_with(']'));
    array = array.substr(1, array.size() - 2);
    std::vector<std::string> all;
    int depth = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < array.size(); ++i) {
        if (all.empty()) all.emplace_back();
        const char c = array[i];
        if (!quoted && depth == 0 && c == ',') {
            all.emplace_back();
            continue;
        }
        all.back() += c;
        if (quoted && c == '\\')
            all.back() += array[++i];
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == '{' || c == '['))
            ++depth;
        else if (!quoted && (c == '}' || c == ']'))
            --depth;
    }
    return all;
}

std::vector<std::string> texts(std::string_view array) {
    std::vector<std::string> all;
    for (const std::string& one : elements(array)) {
        const std::string wrapped = "{\"text\":" + one + "}";
        all.push_back(json::text(json::read_object(wrapped), "text"));
    }
    return all;
}

std::uint64_t number(const object& of, std::string_view name) {
    const std::string_view raw = json::raw(of, name);
    CAPTURE(name);
    REQUIRE(!raw.empty());
    REQUIRE(raw.find_first_not_of("0123456789") == raw.npos);
    return std::stoull(std::string(raw));
}

struct listed_stream {
    std::uint64_t id = 0;
    std::string user = {};
    std::vector<std::string> topics = {};
    std::string node = {};
    std::uint64_t behind = 0;
};

/// Text that lasts as long as the objects read from it.
std::vector<listed_stream> streams_of(const object& page) {
    std::vector<listed_stream> all;
    for (const std::string& one : elements(json::raw(page, "streams"))) {
        const object read = json::read_object(one);
        CHECK(json::text(read, "client") == "127.0.0.1");
        for (const char* name : {"age_ms", "behind_bytes", "behind_ms"}) number(read, name);
        all.push_back({number(read, "id"), json::text(read, "user"),
                       texts(json::raw(read, "topics")), json::text(read, "node"),
                       number(read, "behind")});
    }
    return all;
}

/// Views of what is read must not outlive the response, so the whole is kept.
struct page {
    page(const sse::server& server, const std::string& target)
        : got(http_get(server.port(), target, staff)) {
        CAPTURE(got.body);
        REQUIRE(got.status == 200);
        CHECK(got.header("Content-Type") == "application/json");
        CHECK(got.header("Cache-Control") == "no-store");
        read = json::read_object(got.body);
        if (json::find(read, "next")) streams = streams_of(read);
    }
    std::string users() const {
        std::multiset<std::string> all;
        for (const auto& one : streams) all.insert(one.user);
        std::string text;
        for (const auto& one : all) text += (text.empty() ? "" : " ") + one;
        return text;
    }
    response got;
    object read;
    std::vector<listed_stream> streams;
};

std::string users(const sse::server& server, const std::string& query = "") {
    return page(server, "/admin/streams" + query).users();
}

using clients = std::map<std::string, std::unique_ptr<event_client>>;

/// Of each a user by this name, who follows these topics.
clients open(const sse::server& server,
             std::initializer_list<std::pair<const char*, const char*>> users_and_topics) {
    clients all;
    for (const auto& [user, topics] : users_and_topics) {
        all[user] = std::make_unique<event_client>(
            server.port(), "/subscribe?user=" + std::string(user) + "&" + topics);
    }
    return all;
}

/// Everyone's stream but those of `ended` lives.
void check_ended(sse::server& server, clients& all, const std::set<std::string>& ended) {
    for (const auto& [user, client] : all) {
        CAPTURE(user);
        if (ended.count(user) > 0) CHECK_FALSE(client->next_or_end());
    }
    server.broadcast({.data = "still here"});
    for (const auto& [user, client] : all) {
        CAPTURE(user);
        if (ended.count(user) == 0) CHECK(client->next().data == "still here");
    }
}

const std::pair<const char*, const char*> routes[] = {{"GET", "/admin/status"},
                                                      {"HEAD", "/admin/status"},
                                                      {"GET", "/admin/streams"},
                                                      {"GET", "/admin/topics"},
                                                      {"GET", "/admin/live"},
                                                      {"DELETE", "/admin/streams/1"},
                                                      {"DELETE", "/admin/streams?user=ann"},
                                                      {"POST", "/admin/drain"}};

} // namespace

TEST_SUITE("administration") {
    TEST_CASE("without a guard there are no routes") {
        sse::server server;
        CHECK_THROWS_AS(sse::admin(server, {}), std::invalid_argument);
        CHECK_THROWS_AS(sse::admin(server, staff_only, {.prefix = "admin"}), std::invalid_argument);
        CHECK_THROWS_AS(sse::admin(server, staff_only, {.prefix = ""}), std::invalid_argument);
        server.start("127.0.0.1:0");
        CHECK_THROWS_AS(sse::admin(server, staff_only), std::logic_error);
        for (const auto& [method, target] : routes) {
            CHECK(http_request(server.port(), method, target, staff).status == 404);
        }
    }

    TEST_CASE("the guard is asked for each route, and whom it refuses changes nothing") {
        std::atomic<int> asked{0};
        running_server server(users_by_query(), [&](sse::server& s) {
            sse::admin(s, [&](const sse::request& r) {
                ++asked;
                return staff_only(r);
            });
        });
        clients all = open(server, {{"ann", "topic=a"}});
        const header_list wrong[] = {{},
                                     {{"Authorization", "Bearer other"}},
                                     {{"Authorization", "Bearer staff "}, {"Authorization", ""}},
                                     {{"Cookie", "Authorization=Bearer staff"}}};
        for (const auto& [method, target] : routes) {
            CAPTURE(method);
            CAPTURE(target);
            for (const header_list& headers : wrong) {
                const int before = asked;
                const response got = http_request(server.port(), method, target, headers);
                if (headers.size() < 2) {
                    CHECK(got.status == 401);
                    CHECK(asked == before + 1);
                } else {
                    CHECK(got.status >= 400);
                }
                CHECK_FALSE(has(got.body, "ann"));
            }
        }
        CHECK(http_get(server.port(), "/admin/streams/1", staff).status == 405);
        CHECK(http_get(server.port(), "/admin/other", staff).status == 404);
        check_ended(server, all, {});
    }

    TEST_CASE("a guard that throws lets nobody in") {
        error_count errors;
        sse::options o = users_by_query();
        errors.attach(o);
        running_server server(std::move(o), [&](sse::server& s) {
            sse::admin(s, [](const sse::request& r) -> asio::awaitable<sse::access> {
                if (!r.query.empty() || !r.method.empty()) throw std::runtime_error("no database");
                co_return sse::access::grant();
            });
        });
        clients all = open(server, {{"ann", "topic=a"}});
        for (const auto& [method, target] : routes) {
            CHECK(http_request(server.port(), method, target, staff).status == 500);
        }
        CHECK(errors.count == static_cast<int>(std::size(routes)));
        check_ended(server, all, {});
    }

    TEST_CASE("pages of other origins are refused, whatever they bring") {
        sse::options o = users_by_query();
        o.cors.origin = sse::any_origin(); // of the streams
        admin_server server(std::move(o));
        clients all = open(server, {{"ann", "topic=a"}});
        const std::string own = "http://localhost"; // the host that requests name
        for (const auto& [method, target] : routes) {
            CAPTURE(method);
            CAPTURE(target);
            for (const std::string& origin :
                 {std::string("https://evil.example"), std::string("null"), std::string(""),
                  std::string("http://127.0.0.1"), own + ":1", own + ".evil.example"}) {
                CAPTURE(origin);
                header_list headers = staff;
                headers.emplace_back("Origin", origin);
                CHECK(http_request(server.port(), method, target, headers).status == 403);
                CHECK_FALSE(
                    http_request(server.port(), "OPTIONS", target,
                                 {{"Origin", origin}, {"Access-Control-Request-Method", method}})
                        .header("Access-Control-Allow-Origin"));
            }
        }
        check_ended(server, all, {});
        header_list headers = staff;
        headers.emplace_back("Origin", own);
        CHECK(http_request(server.port(), "DELETE", "/admin/streams?user=ann", headers).status ==
              202);
        check_ended(server, all, {"ann"});
    }

    TEST_CASE("the group takes routes of the program's own, behind the same guard") {
        running_server server(with_threads(1), [](sse::server& s) {
            sse::route_group group = sse::admin(s, staff_only, {.prefix = "/internal/who"});
            group.route("GET", "/hello", [](sse::stream& client) {
                return client.respond(200, "text/plain", "hello\n");
            });
        });
        CHECK(http_get(server.port(), "/internal/who/hello").status == 401);
        CHECK(http_get(server.port(), "/internal/who/hello", staff).body == "hello\n");
        CHECK(http_get(server.port(), "/internal/who/status", staff).status == 200);
        CHECK(http_get(server.port(), "/admin/status", staff).status == 404);
    }

    TEST_CASE("streams are listed as they are, whatever their names hold") {
        sse::options o = users_by_query();
        o.node = "hub \"1\"";
        admin_server server(std::move(o));
        const std::pair<const char*, std::string> names[] = {
            {"%22%5C%3Cscript%3E", "\"\\<script>"},
            {"%C3%A9%E2%80%AE", "\xc3\xa9\xe2\x80\xae"},
            {"%FF%C0%80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, // not UTF-8
            {"%F0%9F%98%80", "\xf0\x9f\x98\x80"},
            {"%ED%A0%80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, // half of a surrogate pair
            {"a%2Fb%20c", "a/b c"}};
        for (const auto& [sent, shown] : names) {
            CAPTURE(sent);
            const std::string name = sent;
            event_client client(server.port(), "/subscribe?user=" + name + "&topic=x" + name);
            const page found(server, "/admin/streams?user=" + name);
            REQUIRE(found.streams.size() == 1);
            CHECK(found.streams[0].user == shown);
            CHECK(found.streams[0].topics == std::vector{"/x" + shown});
            CHECK(found.streams[0].node == "hub \"1\"");
            CHECK(found.streams[0].id == server.streams().at(0).id);
            CHECK(json::raw(found.read, "complete") == "true");
            CHECK(json::raw(found.read, "missing") == "[]");
            CHECK(json::raw(found.read, "next") == "null");
            const page topics(server, "/admin/topics");
            CHECK(json::raw(topics.read, "total") == "1");
            const std::string one = elements(json::raw(topics.read, "topics")).at(0);
            CHECK(json::text(json::read_object(one), "topic") == "/x" + shown);
            client.close();
            REQUIRE(eventually([&] { return server.counters().streams == 0; }));
        }
    }

    TEST_CASE("a list is narrowed by user, by what is published, and by what is followed") {
        admin_server server(users_by_query(2));
        const clients all = open(server, {{"ann", "topic=chat/7"},
                                          {"bob", "topic=chat"},
                                          {"cid", "topic=chat/7/x&topic=chat/8"},
                                          {"dan", ""},
                                          {"eve", "topic=chats"}});
        CHECK(users(server) == "ann bob cid dan eve");
        CHECK(users(server, "?user=bob") == "bob");
        CHECK(users(server, "?user=nobody") == "");
        CHECK(users(server, "?topic=/chat/7") == "ann bob dan");
        CHECK(users(server, "?topic=chat/7/x/y") == "ann bob cid dan");
        CHECK(users(server, "?topic=/") == "dan");
        CHECK(users(server, "?follows=/chat/7") == "ann");
        CHECK(users(server, "?follows=chat/8") == "cid");
        CHECK(users(server, "?follows=chat/9") == "");
        CHECK(users(server, "?follows=/") == "dan");
        CHECK(users(server, "?user=ann&topic=chat/7&here=1") == "ann");
        CHECK(users(server, "?user=ann&follows=chat") == "");
        const page topics(server, "/admin/topics?topic=/chat/7/x");
        CHECK(
            json::raw(topics.read, "topics") ==
            R"([{"topic":"/","streams":1,"behind":0},{"topic":"/chat","streams":1,"behind":0},)"
            R"({"topic":"/chat/7","streams":1,"behind":0},{"topic":"/chat/7/x","streams":1,"behind":0},)"
            R"({"topic":"/chat/8","streams":1,"behind":0}])");
    }

    TEST_CASE("pages have each stream once, by id") {
        constexpr std::size_t count = 1'100; // more than one step, and than one page
        admin_server server(users_by_query(2));
        std::vector<std::unique_ptr<event_client>> all;
        for (std::size_t i = 0; i < count; ++i) {
            all.push_back(std::make_unique<event_client>(
                server.port(), "/subscribe?topic=many&topic=t" + std::to_string(i % 3)));
        }
        for (const std::size_t limit : {1'000u, 367u, 100u}) {
            CAPTURE(limit);
            std::set<std::uint64_t> seen;
            std::string after = "0";
            std::size_t pages = 0;
            while (after != "null") {
                const page one(server,
                               "/admin/streams?limit=" + std::to_string(limit) + "&after=" + after);
                ++pages;
                CHECK(number(one.read, "total") == count);
                CHECK(one.streams.size() == std::min(limit, count - seen.size()));
                for (const auto& each : one.streams) {
                    CHECK((seen.empty() || each.id > *seen.rbegin()));
                    seen.insert(each.id);
                }
                after = json::raw(one.read, "next");
            }
            CHECK(seen.size() == count);
            CHECK(pages == (count + limit - 1) / limit);
        }
        CHECK(page(server, "/admin/streams").streams.size() == 100);
        const page topics(server, "/admin/topics?limit=2");
        CHECK(
            json::raw(topics.read, "topics") ==
            R"([{"topic":"/many","streams":1100,"behind":0},{"topic":"/t0","streams":367,"behind":0}])");
        CHECK(json::raw(topics.read, "total") == "4");
        CHECK(http_request(server.port(), "DELETE", "/admin/streams?follows=many", staff).body ==
              "{\"ending\":1100}\n");
        for (auto& each : all) CHECK_FALSE(each->next_or_end());
        CHECK(server.streams().empty());
    }

    TEST_CASE("those furthest behind come first if asked for") {
        sse::options o = users_by_query();
        o.timeouts.stall = 10min; // the silent one stays
        admin_server server(std::move(o));
        const clients before = open(server, {{"ann", "topic=b"}, {"bob", "topic=b"}});
        connection silent(server.port());
        silent.send_request("GET", "/subscribe?user=slow&topic=a");
        silent.read_head();
        const clients after = open(server, {{"zoe", "topic=b"}});
        const std::string large(1'000'000, 'x');
        for (int i = 0; i < 20; ++i) server.publish("/a", {.data = large});
        REQUIRE(eventually([&] {
            const auto all = server.streams();
            return std::count_if(all.begin(), all.end(),
                                 [](const auto& one) { return one.lag.messages > 0; }) == 1;
        }));
        page found(server, "/admin/streams?order=lag&limit=1");
        REQUIRE(found.streams.size() == 1);
        CHECK(found.streams[0].user == "slow");
        CHECK(found.streams[0].behind > 0);
        CHECK(number(found.read, "total") == 4);
        CHECK(json::raw(found.read, "next") == "null");
        const page all(server, "/admin/streams?order=lag");
        REQUIRE(all.streams.size() == 4);
        CHECK(all.streams[0].user == "slow");
        const page topics(server, "/admin/topics");
        const auto lines = elements(json::raw(topics.read, "topics"));
        CHECK(lines.at(0) == R"({"topic":"/b","streams":3,"behind":0})");
        CHECK(number(json::read_object(lines.at(1)), "behind") == all.streams[0].behind);
    }

    TEST_CASE("long topics do not make a list long") {
        admin_server server;
        std::string target = "/subscribe?user=ann";
        for (int i = 0; i < 100; ++i) {
            target += "&topic=" + std::to_string(i) + std::string(90, 'x');
        }
        event_client client(server.port(), target);
        const response got = http_get(server.port(), "/admin/streams", staff);
        CHECK(got.body.size() < 4'000);
        const std::string one = elements(json::raw(json::read_object(got.body), "streams")).at(0);
        const object read = json::read_object(one);
        const std::size_t shown = texts(json::raw(read, "topics")).size();
        CHECK(shown > 10);
        CHECK(number(read, "topics_left_out") == 100 - shown);
    }

    TEST_CASE("what a query cannot mean is refused, and ends nothing") {
        admin_server server;
        clients all = open(server, {{"ann", "topic=a"}});
        const std::pair<const char*, const char*> wrong[] = {
            {"GET", "/admin/streams?usr=ann"},
            {"GET", "/admin/streams?user="},
            {"GET", "/admin/streams?user=ann&user=bob"},
            {"GET", "/admin/streams?user=a%0Ab"},
            {"GET", "/admin/streams?topic=/../x"},
            {"GET", "/admin/streams?follows=a//b"},
            {"GET", "/admin/streams?limit=0"},
            {"GET", "/admin/streams?limit=1001"},
            {"GET", "/admin/streams?limit=-1"},
            {"GET", "/admin/streams?limit=10x"},
            {"GET", "/admin/streams?after=18446744073709551616"},
            {"GET", "/admin/streams?order=age"},
            {"GET", "/admin/streams?here=0"},
            {"GET", "/admin/topics?window=1"},
            {"GET", "/admin/status?user=ann"},
            {"GET", "/admin/live?limit=0"},
            {"GET", "/admin/live?topic=/../x"},
            {"GET", "/admin/live?user=a%0Ab"},
            {"DELETE", "/admin/streams"},
            {"DELETE", "/admin/streams?here=1"},
            {"DELETE", "/admin/streams?user="},
            {"DELETE", "/admin/streams?user"},
            {"DELETE", "/admin/streams?follows=&topic="},
            {"DELETE", "/admin/streams?user=ann&tpoic=b"},
            {"DELETE", "/admin/streams?user=ann&user=ann"},
            {"DELETE", "/admin/streams?user=ann&limit=1"},
            {"DELETE", "/admin/streams?topic=%2e%2e"},
            {"DELETE", "/admin/streams/1?user=ann"},
            {"POST", "/admin/drain?window=86401"},
            {"POST", "/admin/drain?window=now"},
            {"POST", "/admin/drain?windw=1"}};
        for (const auto& [method, target] : wrong) {
            CAPTURE(method);
            CAPTURE(target);
            const response got = http_request(server.port(), method, target, staff);
            CHECK(got.status == 400);
            CHECK(got.header("Content-Type") == "application/json");
            CHECK(json::text(json::read_object(got.body), "error").size() > 5);
        }
        for (const char* id : {"0", "x", "-1", "1x", "18446744073709551616"}) {
            CAPTURE(id);
            CHECK(http_request(server.port(), "DELETE", std::string("/admin/streams/") + id, staff)
                      .status == 404);
        }
        check_ended(server, all, {});
    }

    TEST_CASE("streams are ended one by one, by user, by what is published and what is followed") {
        admin_server server(users_by_query(2));
        const std::initializer_list<std::pair<const char*, const char*>> everyone{
            {"ann", "topic=chat/7"}, {"bob", "topic=chat"}, {"cid", "topic=chat/7/x"}, {"dan", ""}};
        const auto ends = [&](const std::string& target, const std::set<std::string>& who) {
            CAPTURE(target);
            clients all = open(server, everyone);
            const response got = http_request(server.port(), "DELETE", target, staff);
            CHECK(got.status == 202);
            CHECK(got.body == "{\"ending\":" + std::to_string(who.size()) + "}\n");
            check_ended(server, all, who);
            all.clear();
            REQUIRE(eventually([&] { return server.counters().streams == 0; }));
        };
        ends("/admin/streams?user=ann", {"ann"});
        ends("/admin/streams?user=nobody", {});
        ends("/admin/streams?topic=chat/7", {"ann", "bob", "dan"});
        ends("/admin/streams?follows=chat/7", {"ann"});
        ends("/admin/streams?follows=/", {"dan"});
        ends("/admin/streams?user=bob&topic=chat/7&here=1", {"bob"});
        ends("/admin/streams?user=cid&follows=chat", {});

        clients all = open(server, everyone);
        const std::uint64_t id = page(server, "/admin/streams?user=cid").streams.at(0).id;
        const std::string target = "/admin/streams/" + std::to_string(id);
        CHECK(http_request(server.port(), "DELETE", target, staff).status == 202);
        check_ended(server, all, {"cid"});
        CHECK(http_request(server.port(), "DELETE", target, staff).status == 202); // again
        const auto reason = static_cast<std::size_t>(sse::end_reason::revoked);
        CHECK(server.counters().ended[reason] == 1 + 3 + 1 + 1 + 1 + 1);
    }

    TEST_CASE("the status has what the server measures") {
        sse::options o = users_by_query(2);
        o.node = "hub-1";
        admin_server server(std::move(o));
        clients all = open(server, {{"ann", "topic=a"}, {"bob", "topic=b"}});
        server.publish("/a", {.data = "1"});
        CHECK(all["ann"]->next().data == "1");
        REQUIRE(eventually([&] { return server.counters().delivered == 1; }));
        const response got = http_get(server.port(), "/admin/status", staff);
        REQUIRE(got.status == 200);
        const object read = json::read_object(got.body);
        CHECK(json::text(read, "version") == SSE_VERSION_STRING);
        CHECK(json::text(read, "node") == "hub-1");
        CHECK(number(read, "workers") == 2);
        CHECK(number(read, "streams") == 2);
        CHECK(number(read, "published") == 1);
        CHECK(number(read, "delivered") == 1);
        CHECK(number(read, "history_messages") == 1);
        CHECK(json::raw(read, "draining") == "false");
        CHECK(json::raw(read, "bus_up") == "null");
        const auto lags = elements(json::raw(read, "lag"));
        CHECK(lags.size() == sse::measurements::lag_bounds.size() + 1);
        CHECK(lags.front() == R"({"up_to":0,"streams":2})");
        CHECK(lags.back() == R"({"streams":0})");
        CHECK(json::object(read, "ended").size() == sse::end_reasons);
    }

    TEST_CASE("a live stream tells of those who come and go") {
        admin_server server;
        event_client live(server.port(), "/admin/live?topic=chat/7", staff);
        const auto next_of = [&](std::string_view type) {
            for (;;) {
                const auto event = live.next();
                if (event.type == type) return event.data;
            }
        };
        const auto shows = [&](const std::string& who) {
            for (;;) {
                const std::string data = next_of("streams");
                std::string found;
                for (const auto& one : streams_of(json::read_object(data))) found += one.user;
                if (found == who) return true;
            }
        };
        CHECK(live.next().type == "status");
        CHECK(shows(""));
        {
            const clients all = open(server, {{"ann", "topic=chat/7"}, {"bob", "topic=chat/8"}});
            CHECK(shows("ann"));
            CHECK(has(next_of("topics"), R"({"topic":"/chat/7","streams":1,"behind":0})"));
            const std::string status = next_of("status");
            CHECK(number(json::read_object(status), "streams") == 3); // itself too
        }
        CHECK(shows(""));
    }

    TEST_CASE("no more than so many watch at once") {
        admin_server server(users_by_query(2));
        std::vector<std::unique_ptr<event_client>> watchers;
        for (int i = 0; i < 32; ++i) {
            watchers.push_back(std::make_unique<event_client>(server.port(), "/admin/live", staff));
        }
        CHECK(http_get(server.port(), "/admin/live", staff).status == 503);
        CHECK(http_get(server.port(), "/health").status == 200);
        watchers.pop_back();
        CHECK(eventually(
            [&] { return http_get(server.port(), "/admin/status", staff).status == 200; }));
    }

    TEST_CASE("a drain ends the server, after its response and what was published") {
        admin_server server(users_by_query(2));
        clients all = open(server, {{"ann", "topic=a"}, {"bob", "topic=a"}});
        event_client live(server.port(), "/admin/live", staff);
        server.publish("/a", {.data = "last"});
        const response got = http_request(server.port(), "POST", "/admin/drain?window=60", staff);
        CHECK(got.status == 202);
        CHECK(got.body == "{\"window_ms\":60000}\n");
        CHECK(send_away_now(server));
        for (auto& [user, client] : all) {
            CHECK(client->next().data == "last");
            CHECK_FALSE(client->next_or_end());
        }
        bool told = false;
        while (const auto event = live.next_or_end())
            told = told || has(event->data, "\"draining\":true");
        CHECK(told);
        live.close(); // the server waits for two seconds where a client does not
        for (auto& [user, client] : all) client->close();
        server.join();
        CHECK(server.try_broadcast({.data = "late"}) == sse::errc::stopped);
    }

    TEST_CASE("a program may drain by itself") {
        std::atomic<std::int64_t> window{-1};
        admin_server server(users_by_query(),
                            {.drain = [&](std::chrono::milliseconds w) { window = w.count(); }});
        clients all = open(server, {{"ann", "topic=a"}});
        CHECK(http_request(server.port(), "POST", "/admin/drain", staff).status == 202);
        CHECK(eventually([&] { return window == 5'000; }));
        CHECK(http_request(server.port(), "POST", "/admin/drain?window=0", staff).status == 202);
        CHECK(eventually([&] { return window == 0; }));
        check_ended(server, all, {});
    }

    TEST_CASE("with a bus one server lists and ends the streams of another") {
        const auto store = std::make_shared<memory_store>();
        const auto node = [&](const char* name) {
            sse::options o = users_by_query();
            o.bus = std::make_shared<memory_bus>(store);
            o.node = name;
            return o;
        };
        admin_server a(node("a")), b(node("b"));
        REQUIRE(eventually([&] { return a.streams().complete && b.streams().complete; }));
        clients here = open(a, {{"ann", "topic=t"}});
        clients there = open(b, {{"bob", "topic=t"}, {"cid", "topic=t"}, {"dan", "topic=u"}});
        const page found(a, "/admin/streams");
        CHECK(found.users() == "ann bob cid dan");
        CHECK(json::raw(found.read, "complete") == "true");
        CHECK(users(a, "?here=1") == "ann");
        const page status(a, "/admin/status");
        CHECK(json::raw(status.read, "bus_up") == "true");
        for (const auto& one : found.streams) {
            CHECK(one.node == (one.user == "ann" ? "a" : "b"));
            if (one.user != "cid") continue;
            const std::string target = "/admin/streams/" + std::to_string(one.id);
            CHECK(http_request(a.port(), "DELETE", target, staff).status == 202);
        }
        CHECK_FALSE(there["cid"]->next_or_end());
        CHECK(http_request(a.port(), "DELETE", "/admin/streams?follows=t", staff).body ==
              "{\"ending\":2}\n");
        CHECK_FALSE(here["ann"]->next_or_end());
        CHECK_FALSE(there["bob"]->next_or_end());
        CHECK(http_request(a.port(), "DELETE", "/admin/streams?user=dan", staff).status == 202);
        CHECK_FALSE(there["dan"]->next_or_end());
    }
}

} // namespace admin_test
