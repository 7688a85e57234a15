// publish.cpp - covers >>publishing, >>json, >>endpoint: what is published over HTTP, by whom, and
// what happens to requests that come again.
#include "support/journal.hpp"
#include "support/memory_bus.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <set>

namespace publish_test {

using namespace std::chrono_literals;
using namespace support;

using sse::detail::json_error;
using sse::detail::json_item;
using sse::detail::json_reader;

/// What json_reader says of a text: its members, or that it refuses.
inline std::optional<std::vector<json_item>> read_json(std::string_view text) {
    try {
        return json_reader(text).object();
    } catch (const json_error&) { return std::nullopt; }
}

namespace {

const std::string json = "application/json";
const std::string lines = "application/x-ndjson";
const std::string form = "application/x-www-form-urlencoded";
const std::string text = "text/plain";

/// Everyone with a name may publish below /<name> and to /all. The name is the token.
asio::awaitable<sse::access> by_name(const sse::request& r) {
    const std::string token(r.header("Authorization").value_or(""));
    if (!token.starts_with("Bearer ")) {
        co_return sse::access::refuse(401, "who?\n", {{"WWW-Authenticate", "Bearer"}});
    }
    const std::string name = token.substr(7);
    for (const std::string& topic : r.topics) {
        if (topic == "/all" || topic == "/" + name || topic.starts_with("/" + name + "/")) continue;
        co_return sse::access::refuse(403, "not to " + topic + "\n");
    }
    co_return sse::access::grant({.user = name, .headers = {{"X-Publisher", name}}});
}

struct publish_server : running_server {
    explicit publish_server(sse::publish_options how = {}, sse::options o = with_threads(1))
        : running_server(std::move(o), [&](sse::server& s) {
              s.route("POST", "/publish/*", sse::publish_endpoint(s, by_name, how));
              s.route("POST", "/batch", sse::publish_endpoint(s, by_name, how));
          }) {}

    response post(const std::string& target, const std::string& type, const std::string& body,
                  header_list more = {}) {
        header_list all{{"Authorization", "Bearer ann"}, {"Content-Type", type}};
        for (const auto& [name, value] : more) {
            std::erase_if(all, [&](const auto& one) { return one.first == name; });
            all.emplace_back(name, value);
        }
        return http_request(port(), "POST", target, all, body);
    }
    /// Checks that nothing is published, and says why.
    std::string refusal(int status, const std::string& type, const std::string& body,
                        header_list more = {}, const std::string& target = "/publish/ann") {
        const auto before = counters().published;
        const auto got = post(target, type, body, std::move(more));
        CHECK_MESSAGE(got.status == status, got.body);
        CHECK(counters().published == before);
        return got.body;
    }
};

/// A memory_bus that takes so many messages, and none after that until it is told to.
class full_bus final : public sse::bus {
public:
    full_bus(std::shared_ptr<memory_store> store, int room)
        : inner_(std::move(store)), room_(room) {}

    void attach(sink& to, const history& kept) override { inner_.attach(to, kept); }
    void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                 published done) override {
        if (store && --room_ < 0) return done(sse::errc::bus_refused, 0);
        inner_.publish(std::move(bytes), store, patience, std::move(done));
    }
    void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
              std::function<void(page)> done) override {
        inner_.read(epoch, after, messages, std::move(done));
    }
    void detach() noexcept override { inner_.detach(); }
    void make_room() { room_ = 1000; }

private:
    memory_bus inner_;
    std::atomic<int> room_;
};

/// A memory_bus that confirms its first message when it is told to.
class slow_bus final : public sse::bus {
public:
    explicit slow_bus(std::shared_ptr<memory_store> store) : inner_(std::move(store)) {}

    void attach(sink& to, const history& kept) override { inner_.attach(to, kept); }
    void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                 published done) override {
        if (!store || first_.exchange(false) == false) {
            return inner_.publish(std::move(bytes), store, patience, std::move(done));
        }
        inner_.publish(
            std::move(bytes), store, patience,
            [this, done = std::move(done)](std::error_code failed, std::uint64_t number) {
                const std::lock_guard lock(mutex_);
                waiting_ = [=] { done(failed, number); };
            });
    }
    void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
              std::function<void(page)> done) override {
        inner_.read(epoch, after, messages, std::move(done));
    }
    void detach() noexcept override { inner_.detach(); }
    bool waits() {
        const std::lock_guard lock(mutex_);
        return static_cast<bool>(waiting_);
    }
    void confirm() {
        const std::lock_guard lock(mutex_);
        waiting_();
    }

private:
    memory_bus inner_;
    std::atomic<bool> first_{true};
    std::mutex mutex_;
    std::function<void()> waiting_;
};

/// Its first publication waits until the bus confirms it.
struct slow_server {
    const std::shared_ptr<slow_bus> bus =
        std::make_shared<slow_bus>(std::make_shared<memory_store>());
    publish_server server{{}, with_bus(bus)};
    const header_list key{{"Idempotency-Key", "\"k\""}};

    /// The request that waits: "x", with the key.
    connection request() const {
        connection first(server.port());
        first.send_request("POST", "/publish/ann",
                           {{"Authorization", "Bearer ann"}, {"Content-Type", text}, key.front()},
                           "x");
        REQUIRE(eventually([&] { return bus->waits(); }));
        return first;
    }
    response repeat(const std::string& body = "x") {
        return server.post("/publish/ann", text, body, key);
    }

private:
    static sse::options with_bus(std::shared_ptr<sse::bus> one) {
        sse::options o = with_threads(1);
        o.bus = std::move(one);
        return o;
    }
};

std::size_t count_lines(std::string_view body) {
    return static_cast<std::size_t>(std::count(body.begin(), body.end(), '\n'));
}

} // namespace

TEST_SUITE("JSON") {
    TEST_CASE("an object is read: its members decoded, what is nested as it came") {
        const auto members =
            json_reader(" {\"a\" : \"x\\n\\u00e4\\ud83d\\ude00\\/\" ,\"b\":[1, {\"c\":2}],"
                        "\"d\":-0.5e+3,\"e\":true,\"f\":null,\"\":{} }\r\n")
                .object();
        REQUIRE(members.size() == 6);
        CHECK(members[0].text == "x\n\xc3\xa4\xf0\x9f\x98\x80/");
        CHECK(members[1].raw == "[1, {\"c\":2}]");
        CHECK(members[1].is == json_item::type::array);
        CHECK(members[2].raw == "-0.5e+3");
        CHECK(members[2].is == json_item::type::number);
        CHECK(members[3].is == json_item::type::boolean);
        CHECK(members[4].is == json_item::type::null);
        CHECK(members[5].name.empty());
        CHECK(members[5].is == json_item::type::object);
        CHECK(json_reader("{}").object().empty());
        CHECK(json_reader("[\"a\",[\"b\"],3]").array().at(0).text == "a");
        CHECK(json_reader(" [ ] ").array().empty());
    }

    TEST_CASE("what is not JSON is refused, with its place") {
        for (const std::string_view wrong : {"",
                                             "{",
                                             "}",
                                             "[]",
                                             "1",
                                             "{a:1}",
                                             "{'a':1}",
                                             "{\"a\"}",
                                             "{\"a\":}",
                                             "{\"a\":1,}",
                                             "{,}",
                                             "{\"a\":1 \"b\":2}",
                                             "{\"a\":1}x",
                                             "{\"a\":1}{}",
                                             "{\"a\":01}",
                                             "{\"a\":+1}",
                                             "{\"a\":.5}",
                                             "{\"a\":1.}",
                                             "{\"a\":1e}",
                                             "{\"a\":-}",
                                             "{\"a\":tru}",
                                             "{\"a\":nan}",
                                             "{\"a\":\"\n\"}",
                                             "{\"a\":\"\\x\"}",
                                             "{\"a\":\"\\u12g4\"}",
                                             "{\"a\":\"\\ud800\"}",
                                             "{\"a\":\"\\udc00\"}",
                                             "{\"a\":\"\\ud800\\u0041\"}",
                                             "{\"a\":\"\xff\"}",
                                             "{\"a\":\"\xed\xa0\x80\"}",
                                             "{\"a\":\"x}",
                                             "{\"a\":\"\\",
                                             "{\"a\":\"\\u00",
                                             "{\"a\":[1,]}",
                                             "{\"a\":[1 2]}",
                                             "{\"a\":[}",
                                             "{\"a\":{\"b\"}}",
                                             "{\"a\":{\"b\":1,}}",
                                             "{\"a\":1,\"a\":2}",
                                             "{\"a\":1,\"\\u0061\":2}",
                                             "/**/{}",
                                             "\xef\xbb\xbf{}"}) {
            CAPTURE(wrong);
            CHECK_FALSE(read_json(wrong));
        }
        CHECK_THROWS_WITH_AS(json_reader("{\"a\" 1}").object(),
                             "the JSON is wrong at byte 6: expected ':' after the name of a member",
                             json_error);
        CHECK_THROWS_WITH_AS(json_reader("{\"a\":1").object(),
                             "the JSON is wrong at its end: expected ',' or '}' after a member",
                             json_error);
    }

    TEST_CASE("depth and members are bounded") {
        const auto nested = [](std::size_t depth) {
            return "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
        };
        CHECK(read_json(nested(64)));
        CHECK_FALSE(read_json(nested(65)));
        CHECK_FALSE(read_json("{\"a\":" + std::string(1'000'000, '[')));
        const auto wide = [](int members) {
            std::string out = "{\"x\":0";
            for (int i = 1; i < members; ++i) out += ",\"" + std::to_string(i) + "\":0";
            return out + "}";
        };
        CHECK(read_json(wide(64)));
        CHECK_FALSE(read_json(wide(65)));
        CHECK(read_json("{\"data\":" + wide(100'000) + "}"));
    }
}

TEST_SUITE("publishing over HTTP") {
    TEST_CASE("each type of body is published, and the response says what it became") {
        publish_server server;
        event_client client(server.port(), "/subscribe/ann");
        auto got = server.post("/publish/ann", json,
                               R"({"event":"chat","data":"one","retry":1500,"key":"k"})");
        CHECK(got.status == 202);
        CHECK(got.header("Content-Type") == "application/json");
        CHECK(got.header("X-Publisher") == "ann");
        CHECK(got.header_lines("X-Publisher") == 1);
        auto event = client.next();
        CHECK(event.type == "chat");
        CHECK(event.data == "one");
        CHECK(client.decoder().reconnection_time() == 1500);
        CHECK(got.body == R"({"seq":1,"id":")" + event.id + "\"}\n");

        got = server.post("/publish/ann/x", form, "event=a+b&data=2+%2B+2&id=7&retry=5");
        CHECK(got.body == "{\"seq\":2,\"id\":\"7\"}\n");
        event = client.next();
        CHECK(event.type == "a b");
        CHECK(event.data == "2 + 2");
        CHECK(event.id == "7");

        CHECK(server.post("/publish/ann", text + "; charset=utf-8", "a\nb").status == 202);
        CHECK(client.next().data == "a\nb");
        got = server.post("/publish/ann", json, R"({"data":{"n":[1, 2]},"ephemeral":true})");
        CHECK(got.body == "{\"seq\":4}\n");
        CHECK(client.next().data == R"({"n":[1, 2]})");
    }

    TEST_CASE("many messages in one request, to topics of their own, in their order") {
        publish_server server;
        event_client client(server.port(), "/subscribe/");
        const std::string body = "{\"data\":\"1\",\"topic\":\"/ann/a\"}\r\n"
                                 "\n"
                                 "  {\"data\":\"2\",\"topic\":\"all/\",\"id\":\"x\\\"y\"}\n"
                                 "{\"data\":3}";
        const auto got = server.post("/publish/ann", lines, body);
        CHECK(got.status == 202);
        CHECK(got.header("Content-Type") == lines);
        std::vector<decoded> events(3);
        for (auto& each : events) each = client.next();
        CHECK(events[0].data == "1");
        CHECK(events[1].data == "2");
        CHECK(events[2].data == "3");
        CHECK(got.body == R"({"seq":1,"id":")" + events[0].id + "\"}\n" +
                              R"({"seq":2,"id":"x\"y"})" + "\n" + R"({"seq":3,"id":")" +
                              events[2].id + "\"}\n");
        CHECK(server.streams({.topic = "/all"}).size() == 1);

        std::string many;
        for (int i = 0; i < 1000; ++i) many += "{\"data\":" + std::to_string(i) + "}\n";
        const auto all = server.post("/publish/ann", lines, many);
        CHECK(all.status == 202);
        CHECK(count_lines(all.body) == 1000);
        for (int i = 0; i < 1000; ++i) REQUIRE(client.next().data == std::to_string(i));
    }

    TEST_CASE("a request of which a part is wrong is published not at all, and the line is named") {
        publish_server server;
        const std::string good = "{\"data\":1}\n";
        for (const auto& [wrong, why] : std::vector<std::pair<std::string, std::string>>{
                 {"{broken", "line 3: the JSON is wrong at byte 2"},
                 {"[]", "line 3: the JSON is wrong at byte 1"},
                 {"{\"event\":\"x\"}", "line 3: there is no data"},
                 {"{\"data\":1,\"data\":2}", "line 3: the JSON is wrong"},
                 {"{\"data\":1,\"evnt\":\"x\"}", "line 3: there is no field \"evnt\""},
                 {"{\"data\":1,\"event\":5}", "line 3: \"event\" is 5; use a string"},
                 {"{\"data\":1,\"topic\":null}", "line 3: \"topic\" is null; use a string"},
                 {"{\"data\":1,\"retry\":-1}", "line 3: retry is '-1'"},
                 {"{\"data\":1,\"retry\":1.5}", "line 3: retry is '1.5'"},
                 {"{\"data\":1,\"ephemeral\":1}", "line 3: ephemeral is '1'"},
                 {"{\"data\":1,\"event\":\"a\\nb\"}", "line 3: the event name contains"},
                 {"{\"data\":1,\"id\":\" a\"}", "line 3: the id has a control character"},
                 {"{\"data\":1,\"ephemeral\":true,\"id\":\"a\"}",
                  "line 3: the message is ephemeral"},
                 {"{\"data\":1,\"topic\":\"/ann/../x\"}", "line 3: '/ann/../x': the topic has"},
                 {"{\"data\":\"\xff\"}", "line 3: the JSON is wrong at byte 10"}}) {
            CAPTURE(wrong);
            const auto said = server.refusal(400, lines, good + "\n" + wrong + "\n" + good);
            CHECK_MESSAGE(said.starts_with(why), said);
        }
        CHECK(has(server.refusal(400, lines, "\n \r\n"), "no message"));
        CHECK(has(server.refusal(400, lines, ""), "no message"));
        const std::string own = server.last_id();
        CHECK(has(server.refusal(400, lines, good + R"({"data":1,"id":")" + own + "\"}"),
                  "message 2: the id begins with this server's own epoch"));
        CHECK(has(server.refusal(400, json, ""), "at its end"));
        CHECK(has(server.refusal(400, form, "data=%zz"), "two hexadecimal digits"));
        CHECK(has(server.refusal(400, form, "data=%"), "two hexadecimal digits"));
        CHECK(has(server.refusal(400, form, "data=1&data=2"), "came twice"));
        CHECK(has(server.refusal(400, form, "data=%ff"), "is not UTF-8 at byte 1"));
        CHECK(has(server.refusal(400, text, "a\xc3"), "the body is not UTF-8 at byte 2"));
        std::string fields = "data=1";
        for (int i = 0; i < 65; ++i) fields += "&f" + std::to_string(i) + "=1";
        CHECK(has(server.refusal(400, form, fields), "more than 64 fields"));
    }

    TEST_CASE("what is too large or of another kind is refused") {
        sse::options o = with_threads(1);
        o.limits.body_bytes = 1000;
        publish_server server({.messages = 3}, o);
        const std::string good = "{\"data\":1}\n";
        CHECK(server.post("/publish/ann", lines, good + good + good).status == 202);
        CHECK(has(server.refusal(413, lines, good + good + good + good), "line 4: more than 3"));
        server.refusal(413, text, std::string(1001, 'x'));
        server.refusal(415, "image/png", "x");
        server.refusal(415, "", "x");
        server.refusal(415, text + "; charset=latin-1", "x");
        server.refusal(415, json, "{\"data\":1}", {{"Content-Encoding", "gzip"}});
        CHECK(http_get(server.port(), "/publish/ann").status == 405);
    }

    TEST_CASE("authorize is asked before the body is read, and again for topics that it names") {
        publish_server server;
        const auto denied = server.post("/publish/ann", text, "x", {{"Authorization", "none"}});
        CHECK(denied.status == 401);
        CHECK(denied.header("WWW-Authenticate") == "Bearer");
        CHECK(denied.header_lines("X-Publisher") == 0);

        connection peer(server.port()); // it is told without its body
        peer.send_request("POST", "/publish/bob",
                          {{"Authorization", "Bearer ann"}, {"Content-Length", "1000"}});
        CHECK(peer.read_head().status == 403);

        CHECK(server.refusal(403, text, "x", {}, "/publish/bob") == "not to /bob\n");
        CHECK(server.refusal(403, lines, "{\"data\":1}\n{\"data\":2,\"topic\":\"bob/1\"}") ==
              "not to /bob/1\n");
        CHECK(server.refusal(403, form, "data=1&topic=/annex") == "not to /annex\n");
        CHECK(server.refusal(403, json, "{\"data\":1}", {}, "/batch") == "not to \n"); // the root
        CHECK(server.post("/batch", json, R"({"data":1,"topic":"ann"})").status == 202);
        CHECK(server.post("/publish/", json, R"({"data":1,"topic":"ann"})").status == 202);
        server.refusal(400, text, "x", {}, "/publish/a//b");
    }

    TEST_CASE("a repeated request gets its first response, and nothing is published again") {
        publish_server server;
        for (const auto& [type, body] :
             {std::pair(json, std::string(R"({"data":"one"})")),
              std::pair(lines, std::string("{\"data\":1}\n{\"data\":2}\n"))}) {
            const header_list key{{"Idempotency-Key", "\"" + type + "\""}};
            const auto first = server.post("/publish/ann", type, body, key);
            CHECK(first.status == 202);
            const auto count = server.counters().published;
            const auto again = server.post("/publish/ann", type, body, key);
            CHECK(again.status == 202);
            CHECK(again.body == first.body);
            CHECK(again.header("Content-Type") == first.header("Content-Type"));
            CHECK(again.header("X-Publisher") == "ann");
            const auto bare = server.post("/publish/ann", type, body, {{"Idempotency-Key", type}});
            CHECK(bare.body == first.body);
            CHECK(server.counters().published == count);
        }
    }

    TEST_CASE("a key is of one publisher and one request") {
        publish_server server;
        const header_list key{{"Idempotency-Key", "\"k\""}};
        CHECK(server.post("/publish/all", text, "x", key).status == 202);
        CHECK(has(server.refusal(422, text, "y", key, "/publish/all"), "another request"));
        server.refusal(422, text, "x", key, "/publish/ann");
        server.refusal(422, lines, "{\"data\":\"x\"}\n{\"data\":\"x\"}", key, "/publish/all");
        const header_list bob{{"Idempotency-Key", "\"k\""}, {"Authorization", "Bearer bob"}};
        CHECK(server.post("/publish/all", text, "y", bob).status == 202);
        CHECK(server.counters().published == 2);
    }

    TEST_CASE("a request that was refused does not use up its key") {
        publish_server server;
        const header_list key{{"Idempotency-Key", "\"k\""}};
        server.refusal(400, json, "{", key);
        server.refusal(403, text, "x", key, "/publish/bob");
        CHECK(server.post("/publish/ann", text, "x", key).status == 202);
    }

    TEST_CASE("a key that is none is refused") {
        publish_server server;
        for (const std::string& wrong :
             {std::string(""), std::string("\"\""), std::string("a\"b"), std::string("a\\b"),
              std::string("\xc3\xa4"), std::string("\"a\", \"b\""), std::string(257, 'a')}) {
            CAPTURE(wrong);
            CHECK(has(server.refusal(400, text, "x", {{"Idempotency-Key", wrong}}),
                      "Idempotency-Key"));
        }
        connection peer(server.port());
        peer.send_request("POST", "/publish/ann",
                          {{"Authorization", "Bearer ann"},
                           {"Content-Type", text},
                           {"Content-Length", "1"},
                           {"Idempotency-Key", "a"},
                           {"Idempotency-Key", "b"}});
        peer.send("x");
        CHECK(peer.read_head().status == 400);
    }

    TEST_CASE("keys are forgotten by number, the oldest first") {
        publish_server server({.keys = 2});
        const auto post = [&](const std::string& key) {
            CHECK(server.post("/publish/ann", text, "x", {{"Idempotency-Key", key}}).status == 202);
            return server.counters().published;
        };
        CHECK(post("a") == 1);
        CHECK(post("b") == 2);
        CHECK(post("a") == 2);
        CHECK(post("c") == 3); // and a is forgotten
        CHECK(post("b") == 3);
        CHECK(post("a") == 4);
    }

    TEST_CASE("keys are forgotten by bytes and by age, but not while their request runs") {
        using sse::detail::post_memory;
        using verdict = post_memory::verdict;
        const auto start = post_memory::clock::now();
        post_memory memory({.keys = 100, .key_bytes = 2000, .key_age = 10s});
        post_memory::lines none;
        CHECK(memory.begin("runs", "p", none, start) == verdict::fresh);
        CHECK(memory.begin("runs", "p", none, start) == verdict::running);
        CHECK(memory.begin("runs", "q", none, start) == verdict::other);
        for (int i = 0; i < 100; ++i) {
            const std::string key = std::to_string(i);
            REQUIRE(memory.begin(key, "p", none, start) == verdict::fresh);
            memory.end(key, {std::string(500, 'x')}, start);
            REQUIRE(memory.size() <= 4); // that which runs, and two or three
        }
        post_memory::lines had;
        CHECK(memory.begin("99", "p", had, start + 9s) == verdict::done);
        CHECK(had == post_memory::lines{std::string(500, 'x')});
        CHECK(memory.begin("99", "p", none, start + 10s) == verdict::fresh);
        CHECK(memory.begin("runs", "p", none, start + 1h) == verdict::running);
        memory.end("runs", {"one\n", ""}, start + 1h);
        CHECK(memory.begin("runs", "p", had, start + 1h) == verdict::fresh); // the second is to do
        CHECK(had == post_memory::lines{"one\n", ""});
        memory.end("runs", {"", ""}, start + 1h);
        memory.end("99", {}, start + 1h);
        CHECK(memory.size() == 0);
        memory.end("unknown", {"x"}, start);
        CHECK(memory.size() == 0);
    }

    TEST_CASE("bounds that cannot work and a missing hook are refused") {
        sse::server server;
        const sse::authorizer any = [](const sse::request&) -> asio::awaitable<sse::access> {
            co_return sse::access::grant();
        };
        CHECK_THROWS_AS(sse::publish_endpoint(server, {}), std::invalid_argument);
        CHECK_THROWS_AS(sse::publish_endpoint(server, any, {.messages = 0}), std::invalid_argument);
        CHECK_THROWS_AS(sse::publish_endpoint(server, any, {.keys = 0}), std::invalid_argument);
        CHECK_THROWS_AS(sse::publish_endpoint(server, any, {.key_bytes = 0}),
                        std::invalid_argument);
        CHECK_THROWS_AS(sse::publish_endpoint(server, any, {.key_age = 0ms}),
                        std::invalid_argument);
    }

    TEST_CASE("the values of a form") {
        using values = std::vector<std::string>;
        CHECK(sse::form_values("a=1+2&b=%26&a=%3d&c&a", "a") == values{"1 2", "=", ""});
        CHECK(sse::form_values("a=1", "b").empty());
    }
}

TEST_SUITE("publishing over HTTP, with a bus") {
    TEST_CASE("while the bus is away nothing is published, and the same request does it later") {
        auto store = std::make_shared<memory_store>();
        sse::options o = with_threads(1);
        o.bus = std::make_shared<memory_bus>(store);
        o.timeouts.publish = 50ms;
        publish_server server({}, o);
        event_client client(server.port(), "/subscribe/ann");
        const header_list key{{"Idempotency-Key", "\"k\""}};
        const std::string body = "{\"data\":1}\n{\"data\":2}\n{\"data\":3}\n";

        store->set_down(true);
        const auto away = server.post("/publish/ann", lines, body, key);
        CHECK(away.status == 503);
        CHECK_MESSAGE(has(away.body, "0 of 3 messages were published, not message 1: "), away.body);
        CHECK(server.post("/publish/ann", text, "x").status == 503);
        store->set_down(false);
        REQUIRE(eventually(
            [&] { return server.post("/publish/ann", lines, body, key).status == 202; }));
        for (const char* const data : {"1", "2", "3"}) CHECK(client.next().data == data);
        const auto again = server.post("/publish/ann", lines, body, key);
        CHECK(again.status == 202);
        CHECK(count_lines(again.body) == 3);
        CHECK(server.post("/publish/ann", text, "end").status == 202);
        const auto end = client.next();
        CHECK(end.data == "end");
        CHECK(has(end.id, "memory00-"));
    }

    TEST_CASE("what was published of a request is not published again when it is repeated") {
        const auto bus = std::make_shared<full_bus>(std::make_shared<memory_store>(), 2);
        sse::options o = with_threads(1);
        o.bus = bus;
        publish_server server({}, o);
        event_client client(server.port(), "/subscribe/ann");
        const header_list key{{"Idempotency-Key", "\"k\""}};
        const std::string body = "{\"data\":1}\n{\"data\":2}\n{\"data\":3}\n{\"data\":4}\n";
        const auto part = server.post("/publish/ann", lines, body, key);
        CHECK(part.status == 503);
        CHECK_MESSAGE(has(part.body, "2 of 4 messages were published, not message 3: "), part.body);
        CHECK(server.post("/publish/ann", lines, "{\"data\":1}", key).status == 422);
        bus->make_room();
        const auto all = server.post("/publish/ann", lines, body, key);
        CHECK(all.status == 202);
        std::string expected;
        for (const char* const data : {"1", "2", "3", "4"}) {
            const auto event = client.next();
            CHECK(event.data == data);
            const std::string number = event.id.substr(event.id.rfind('-') + 1);
            expected += R"({"seq":)" + number + R"(,"id":")" + event.id + "\"}\n";
        }
        CHECK(all.body == expected);
        CHECK(server.post("/publish/ann", lines, body, key).body == expected);
        CHECK(server.post("/publish/ann", text, "end").status == 202);
        CHECK(client.next().data == "end");
    }

    TEST_CASE("while a request runs, its repetition gets 409") {
        slow_server at;
        connection first = at.request();
        CHECK(at.repeat().status == 409);
        CHECK(at.repeat("y").status == 422);
        at.bus->confirm();
        const auto done = first.read_response();
        CHECK(done.status == 202);
        const auto again = at.repeat();
        CHECK(again.status == 202);
        CHECK(again.body == done.body);
    }

    TEST_CASE("a client that leaves before its response finds it when it comes again") {
        slow_server at;
        at.request().close();
        CHECK(at.repeat().status == 409);
        at.bus->confirm();
        response again;
        REQUIRE(eventually([&] {
            again = at.repeat();
            return again.status != 409;
        }));
        CHECK(again.status == 202);
        CHECK(has(again.body, "{\"seq\":1,"));
    }
}

} // namespace publish_test
