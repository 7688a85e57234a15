// nats.cpp - covers >>natsbus, >>nats: One order for several nodes by NATS JetStream: what comes of
// each failure, with a nats-server that the test starts, kills, freezes and empties; and a cluster
// of three of them. Built with SSE_ENABLE_NATS.
#include "support/nats_server.hpp"
#include "support/recording_sink.hpp"
#include "support/sanitizers.hpp"

#include "sse.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <random>
#include <sstream>

namespace nats_test {

using namespace std::chrono_literals;
using namespace support;
using sse::errc;

namespace {

/// Whether there is a server to test with.
bool can_run() {
    if (!find_nats_server().empty()) return true;
    MESSAGE("not run: there is no nats-server");
    return false;
}

sse::nats_options options_for(const std::string& url) {
    sse::nats_options o;
    o.servers = {url};
    o.reply_timeout = 1s;
    o.check_interval = 50ms;
    return o;
}

struct result {
    std::error_code error;
    std::uint64_t number = 0;
};

/// A node: an engine with its sink.
class node {
public:
    explicit node(const sse::nats_options& o, const sse::bus::history& kept = {1000, 0, 0ms})
        : bus(sse::nats_bus(o)) {
        bus->attach(sink, kept);
    }
    explicit node(const nats_server& server, const sse::bus::history& kept = {1000, 0, 0ms})
        : node(options_for(server.url()), kept) {}
    ~node() { bus->detach(); }

    std::future<result> publish(const std::string& text, bool store = true,
                                std::chrono::milliseconds patience = 20s) const {
        auto promise = std::make_shared<std::promise<result>>();
        auto future = promise->get_future();
        bus->publish(text, store, patience, [promise](std::error_code e, std::uint64_t n) {
            promise->set_value({e, n});
        });
        return future;
    }
    /// Publishes them and waits; returns the number of the last.
    std::uint64_t store(const std::string& prefix, int count) const {
        std::vector<std::future<result>> all;
        for (int i = 0; i < count; ++i) all.push_back(publish(prefix + std::to_string(i)));
        std::uint64_t number = 0;
        for (auto& one : all) {
            REQUIRE(one.wait_for(30s) == std::future_status::ready);
            const auto [error, n] = one.get();
            REQUIRE_MESSAGE(!error, error.message());
            REQUIRE(n > number);
            number = n;
        }
        return number;
    }
    bool is_ready() {
        return sink.wait_until([](const auto& s) { return s.is_ready; });
    }
    bool has(std::size_t messages) {
        return sink.wait_until([&](const auto& s) { return s.messages.size() >= messages; });
    }
    bool has_text(const std::string& text) {
        return sink.wait_until(
            [&](const auto& s) { return !s.messages.empty() && s.messages.back().bytes == text; });
    }
    bool is_up(bool up) {
        return sink.wait_until([&](const auto& s) { return s.is_up == up; });
    }
    bool was_told(const std::string& begin) {
        return sink.wait_until([&](const auto& s) {
            return std::any_of(s.events.begin(), s.events.end(),
                               [&](const auto& e) { return e.starts_with(begin); });
        });
    }
    std::vector<std::string> texts() {
        std::vector<std::string> all;
        for (const auto& m : sink.now().messages) all.push_back(m.bytes);
        return all;
    }
    /// How often something that begins so was told.
    std::size_t count(const std::string& begin) {
        const auto events = sink.now().events;
        return static_cast<std::size_t>(std::count_if(
            events.begin(), events.end(), [&](const auto& e) { return e.starts_with(begin); }));
    }
    /// All but the messages; for people.
    std::string told() {
        std::string all;
        const auto now = sink.now();
        for (const auto& event : now.events) all += "  " + event + '\n';
        for (const auto& why : now.whys) all += "  " + why + '\n';
        return all;
    }
    /// How many epochs were told in turn. The same one again only says how far its numbers are.
    std::size_t epochs() {
        std::size_t count = 0;
        std::string last;
        for (const auto& event : sink.now().events) {
            if (!event.starts_with("epoch ")) continue;
            const auto word = event.substr(6, 8);
            if (word != last) ++count;
            last = word;
        }
        return count;
    }
    sse::bus::page read(const std::string& epoch, std::uint64_t after, std::size_t n) const {
        auto promise = std::make_shared<std::promise<sse::bus::page>>();
        auto future = promise->get_future();
        bus->read(epoch, after, n,
                  [promise](sse::bus::page p) { promise->set_value(std::move(p)); });
        REQUIRE(future.wait_for(30s) == std::future_status::ready);
        return future.get();
    }

    recording_sink sink;
    std::shared_ptr<sse::bus> bus;
};

result wait_for(std::future<result> f) {
    REQUIRE(f.wait_for(30s) == std::future_status::ready);
    return f.get();
}

/// Both were told the same messages, in the same order, under the same ids.
void check_same(node& a, node& b) {
    const auto x = a.sink.now(), y = b.sink.now();
    REQUIRE(x.messages.size() == y.messages.size());
    for (std::size_t i = 0; i < x.messages.size(); ++i) {
        CHECK(x.messages[i].epoch == y.messages[i].epoch);
        CHECK(x.messages[i].number == y.messages[i].number);
        CHECK(x.messages[i].bytes == y.messages[i].bytes);
    }
}

std::string why_not(const sse::nats_options& o) {
    try {
        const node n(o);
    } catch (const std::exception& e) { return e.what(); }
    return "nothing was thrown";
}

} // namespace

TEST_CASE("an option that cannot work is named when the bus is made") {
    const auto refused = [](auto&& change) {
        sse::nats_options o;
        change(o);
        try {
            sse::nats_bus(o);
        } catch (const std::invalid_argument& e) {
            const std::string text = e.what();
            return text.substr(0, text.find(':', text.rfind("::") + 2));
        }
        return std::string("nothing");
    };
    using options = sse::nats_options;
    CHECK(refused([](options&) {}) == "nothing");
    CHECK(refused([](options& o) { o.servers.clear(); }) == "sse::nats_options::servers");
    CHECK(refused([](options& o) { o.servers = {"nats://a b"}; }) == "sse::nats_options::servers");
    for (const char* bad : {"wss://127.0.0.1", "https://127.0.0.1", "://127.0.0.1:4222"})
        CHECK(refused([&](options& o) { o.servers = {bad}; }) == "sse::nats_options::servers");
    for (const char* good : {"tls", "tls:4222", "NATS://127.0.0.1", "tls://u:p@127.0.0.1"})
        CHECK(refused([&](options& o) { o.servers = {good}; }) == "nothing");
    CHECK(refused([](options& o) { o.password = "x"; }) == "sse::nats_options::password");
    CHECK(refused([](options& o) { o.user = "x", o.token = "y"; }) == "sse::nats_options::user");
    CHECK(refused([](options& o) { o.stream = "a.b"; }) == "sse::nats_options::stream");
    for (const char* bad : {"", ".a", "a.", "a..b", "a.*", ">", "a b"})
        CHECK(refused([&](options& o) { o.prefix = bad; }) == "sse::nats_options::prefix");
    CHECK(refused([](options& o) { o.replicas = 2; }) == "sse::nats_options::replicas");
    CHECK(refused([](options& o) { o.max_messages = 999; }) == "sse::nats_options::max_messages");
    CHECK(refused([](options& o) { o.max_bytes = 5; }) == "sse::nats_options::max_bytes");
    CHECK(refused([](options& o) { o.max_age = 59s; }) == "sse::nats_options::max_age");
    CHECK(refused([](options& o) { o.connect_timeout = 9ms; }) ==
          "sse::nats_options::connect_timeout");
    CHECK(refused([](options& o) { o.reply_timeout = 61s; }) == "sse::nats_options::reply_timeout");
    CHECK(refused([](options& o) { o.check_interval = 0ms; }) ==
          "sse::nats_options::check_interval");
    CHECK(refused([](options& o) { o.max_pending = 0; }) == "sse::nats_options::max_pending");
    CHECK(refused([](options& o) { o.max_pending_bytes = 1; }) ==
          "sse::nats_options::max_pending_bytes");
}

TEST_CASE("what a server confirms is read as it is meant") {
    using sse::detail::parse_nats_ack;
    CHECK(parse_nats_ack(R"({"stream":"SSE", "seq":5})").number == 5);
    CHECK(parse_nats_ack(R"({"stream":"error","seq":7,"duplicate": true})").number == 7);
    const auto refused = parse_nats_ack(
        R"({"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"SSE","seq":0})");
    CHECK(refused.number == 0);
    CHECK(refused.error == 10077);
    CHECK(refused.reason == "maximum messages exceeded");
    for (const char* bad :
         {"", "{", "\"seq\":", "{\"seq\":-1}", "{\"seq\":99999999999999999999999}",
          "{\"error\":", "{\"error\":{\"description\":\"x"})
        CHECK(parse_nats_ack(bad).number == 0);
}

TEST_CASE("a list of epochs is read as it was written, and nothing else is") {
    using namespace sse::detail;
    const nats_epochs list{{"aaaaaaaa", 1, false}, {"bbbbbbb1", 99, true}, {"cccccccc", 99, true}};
    CHECK(parse_nats_epochs(format_nats_epochs(list)) == list);
    for (const char* bad :
         {"", "sse epochs 2\naaaaaaaa 1 epoch\n", "sse epochs 1\naaaaaaa 1 epoch\n",
          "sse epochs 1\naaaaaaaA 1 epoch\n", "sse epochs 1\naaaaaaaa x epoch\n",
          "sse epochs 1\naaaaaaaa 0 epoch\n", "sse epochs 1\naaaaaaaa 1 other\n",
          "sse epochs 1\naaaaaaaa 9 epoch\nbbbbbbbb 8 rewound\n"})
        CHECK(parse_nats_epochs(bad).empty());
}

TEST_CASE("a place goes back to where another epoch begins, and forgets all if no epoch is known") {
    using namespace sse::detail;
    nats_place place;
    CHECK(place.adopt({{"aaaaaaaa", 1, false}}) == nats_place::change::anew);
    place.restart(0);
    const auto first = place.enter(3);
    REQUIRE(first);
    CHECK(first->word == "aaaaaaaa");
    CHECK(first->after == 2);
    for (std::uint64_t n = 1; n <= 100; ++n) place.pass(n, n);
    CHECK(place.adopt({{"aaaaaaaa", 1, false}, {"bbbbbbbb", 99, true}}) ==
          nats_place::change::reread);
    CHECK(place.position() == 98);
    const auto second = place.enter(99);
    REQUIRE(second);
    CHECK(second->word == "bbbbbbbb");
    CHECK(second->after == 98);
    CHECK(second->why == sse::gap_reason::rewound);
    CHECK_FALSE(place.enter(100));
    const auto cut = place.cut(40); // the second epoch is lost with the rest
    REQUIRE(cut.size() == 2);
    CHECK(cut[0].word == "aaaaaaaa");
    CHECK(cut[1].begin == 41);
    CHECK(place.adopt(cut) == nats_place::change::reread);
    CHECK(place.position() == 40);
    CHECK(place.enter(41)->word == cut[1].word);
    CHECK(place.adopt({{"dddddddd", 1, false}}) == nats_place::change::anew);
}

TEST_CASE("two nodes are told the same messages in the same order, their own too") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    REQUIRE(a.is_ready());
    REQUIRE(b.is_ready());
    std::thread other([&] { b.store("b", 500); });
    a.store("a", 500);
    other.join();
    REQUIRE(a.has(1000));
    REQUIRE(b.has(1000));
    check_same(a, b);
    CHECK(a.sink.now().is_up == true);
    CHECK(a.epochs() == 1);
    CHECK(a.count("hole") == 0);
    CHECK(a.sink.now().epoch.size() == 8);
}

TEST_CASE("nodes that start at once make one stream, and one epoch") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    std::vector<std::future<std::unique_ptr<node>>> starting;
    for (int i = 0; i < 4; ++i) {
        starting.push_back(
            std::async(std::launch::async, [&] { return std::make_unique<node>(server); }));
    }
    std::vector<std::unique_ptr<node>> all;
    for (auto& one : starting) all.push_back(one.get());
    for (const auto& n : all) REQUIRE(n->is_ready());
    for (std::size_t i = 0; i < all.size(); ++i) all[i]->store(std::to_string(i) + "-", 5);
    for (const auto& n : all) {
        REQUIRE(n->has(20));
        CHECK(n->epochs() == 1);
        check_same(*n, *all.front());
    }
}

/// The JetStream of a nats-server that has none: what it replies to requests about the stream.
class scripted_stream {
public:
    /// `infos`: the replies to requests for the stream, in turn; the last is repeated.
    scripted_stream(const std::string& url, std::vector<std::string> infos, std::string creation)
        : infos_(std::move(infos)), creation_(std::move(creation)) {
        if (natsConnection_ConnectTo(&connection_, url.c_str()) != NATS_OK ||
            natsConnection_Subscribe(&subscription_, connection_, "$JS.API.STREAM.*.SSE", reply,
                                     this) != NATS_OK ||
            natsConnection_Flush(connection_) != NATS_OK)
            throw std::runtime_error("no connection to " + url);
    }
    ~scripted_stream() {
        natsConnection_Destroy(connection_); // all replies have been received
        natsSubscription_Destroy(subscription_);
    }
    scripted_stream(const scripted_stream&) = delete;
    scripted_stream& operator=(const scripted_stream&) = delete;

private:
    static void reply(natsConnection* to, natsSubscription*, natsMsg* request, void* self) {
        auto& own = *static_cast<scripted_stream*>(self);
        const bool creates =
            std::string_view(natsMsg_GetSubject(request)).find("CREATE") != std::string_view::npos;
        const std::string& text =
            creates ? own.creation_ : own.infos_[std::min(own.asked_++, own.infos_.size() - 1)];
        natsConnection_PublishString(to, natsMsg_GetReply(request), text.c_str());
        natsMsg_Destroy(request);
    }

    std::vector<std::string> infos_;
    std::string creation_;
    std::size_t asked_ = 0;
    natsConnection* connection_ = nullptr;
    natsSubscription* subscription_ = nullptr;
};

// nats-server 2.9.10 says this now and then of the same stream, made by two nodes at once.
TEST_CASE("the stream that another node makes at the same moment is not taken for a foreign one") {
    if (!can_run()) return;
    nats_server server({}, false);
    server.start();
    const auto error = [](int status, int code, const std::string& text) {
        return R"({"error":{"code":)" + std::to_string(status) + R"(,"err_code":)" +
               std::to_string(code) + R"(,"description":")" + text + R"("}})";
    };
    const std::string none = error(404, 10059, "stream not found");
    const std::string overlap = error(400, 10065, "subjects overlap with an existing stream");
    const std::string there =
        R"({"config":{"name":"SSE","subjects":["sse.epoch","sse.log"],"retention":"limits"},)"
        R"("created":"2026-01-01T00:00:00Z","state":{"first_seq":1,"last_seq":7,"messages":7}})";
    const auto options = options_for(server.url());
    sse::detail::nats_link link(options);
    {
        const scripted_stream other_was_faster(server.url(), {none, there}, overlap);
        CHECK(link.examine_or_make().last == 7);
    }
    const scripted_stream foreign(server.url(), {none}, overlap);
    CHECK(why_not(options).find("subjects overlap with an existing stream (10065); another stream "
                                "has these subjects") != std::string::npos);
}

TEST_CASE("the history comes first, the newest within its bounds, and then the node is ready") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    {
        node a(server);
        a.store("m", 300);
    }
    node all(server), some(server, {10, 0, 0ms}), few(server, {1000, 500, 0ms}),
        young(server, {1000, 0, 1ms});
    REQUIRE(all.is_ready());
    CHECK(all.sink.now().messages.size() == 300);
    REQUIRE(some.is_ready());
    // A list of epochs may be among the newest ten.
    CHECK(some.texts().size() <= 10);
    CHECK(some.texts().size() >= 9);
    CHECK(some.texts().back() == "m299");
    CHECK(some.count("epoch " + all.sink.now().epoch + " after " +
                     std::to_string(some.sink.now().messages[0].number - 1)) == 1);
    REQUIRE(few.is_ready());
    CHECK(few.texts().size() > 1);
    CHECK(few.texts().size() < 50);
    REQUIRE(young.is_ready());
    CHECK(young.texts().empty());
    all.store("new", 1);
    REQUIRE(young.has_text("new0"));
    CHECK(young.sink.now().epoch == all.sink.now().epoch);
    const auto time = young.sink.now().messages[0].time;
    CHECK(std::chrono::abs(std::chrono::system_clock::now() - time) < 1min);
}

TEST_CASE("a long history is read on as the server is told that it was read") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    sse::nats_options o = options_for(server.url());
    o.check_interval = 60s; // a check would begin anew where nothing comes any more
    const sse::bus::history all{1000, 0, 0ms};
    node a(o, all);
    constexpr std::size_t count = 100; // 50 MB: a server sends 32 MB of its own accord
    for (std::size_t i = 0; i < count; i += 10) {
        std::vector<std::future<result>> some;
        for (int n = 0; n < 10; ++n) some.push_back(a.publish(std::string(512 * 1024, 'x')));
        for (auto& one : some) REQUIRE(!wait_for(std::move(one)).error);
    }
    node b(o, all);
    REQUIRE(b.has(count));
    REQUIRE(a.has(count));
    CHECK(b.count("hole") == 0);
}

TEST_CASE("what is not stored reaches the nodes that are there, the own once") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    REQUIRE(a.is_ready());
    REQUIRE(b.is_ready());
    for (int i = 0; i < 100; ++i) {
        const auto [error, number] = wait_for(a.publish("p" + std::to_string(i), false));
        CHECK(!error);
        CHECK(number == 0);
    }
    REQUIRE(a.has(100));
    REQUIRE(b.has(100));
    check_same(a, b);
    node late(server);
    REQUIRE(late.is_ready());
    CHECK(late.texts().empty());
}

TEST_CASE("a bus that is down at the start is tried until it is there") {
    if (!can_run()) return;
    nats_server server;
    node a(server);
    REQUIRE(a.is_up(false));
    CHECK(a.sink.now().why.find("is nats-server running") != std::string::npos);
    CHECK(wait_for(a.publish("x", true, 0ms)).error == errc::bus_down);
    CHECK(wait_for(a.publish("x", false, 100ms)).error == errc::bus_down);
    CHECK(a.read("aaaaaaaa", 0, 1).failed == errc::bus_down);
    auto patient = a.publish("patient");
    server.start();
    REQUIRE(a.is_up(true));
    REQUIRE(a.is_ready());
    CHECK(!wait_for(std::move(patient)).error);
    REQUIRE(a.has_text("patient"));
}

TEST_CASE(
    "a server that is killed and restarted keeps the order: nothing is told but its absence") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    a.store("first", 100);
    server.kill();
    REQUIRE(a.is_up(false));
    CHECK(wait_for(a.publish("refused", true, 10ms)).error == errc::bus_down);
    auto patient = a.publish("patient");
    server.start();
    CHECK(!wait_for(std::move(patient)).error);
    b.store("second", 100);
    REQUIRE(a.has(201));
    REQUIRE(b.has(201));
    check_same(a, b);
    CHECK(a.epochs() == 1);
    CHECK(a.count("hole") == 0);
}

TEST_CASE("what was in flight when the server was killed is stored once") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    REQUIRE(a.is_ready());
    for (int round = 0; round < 3; ++round) {
        std::vector<std::future<result>> all;
        for (int i = 0; i < 3000; ++i) all.push_back(a.publish(std::to_string(round * 3000 + i)));
        all[100].wait();
        server.kill();
        server.start();
        for (auto& one : all) CHECK(!wait_for(std::move(one)).error);
    }
    REQUIRE(a.has(9000));
    const auto texts = a.texts();
    REQUIRE(texts.size() == 9000);
    for (std::size_t i = 0; i < texts.size(); ++i) REQUIRE(texts[i] == std::to_string(i));
}

TEST_CASE("a server that lost everything begins a new epoch on every node") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    a.store("old", 10);
    REQUIRE(a.has(10));
    REQUIRE(b.has(10));
    const auto before = a.sink.now().epoch;
    server.kill();
    server.lose_everything();
    server.start();
    a.store("new", 1);
    REQUIRE(a.has_text("new0"));
    REQUIRE(b.has_text("new0"));
    CHECK(a.epochs() == 2);
    CHECK(b.epochs() == 2);
    CHECK(a.sink.now().epoch == b.sink.now().epoch);
    CHECK(a.sink.now().epoch != before);
    CHECK(a.sink.now().events.back().find("rewound") == std::string::npos);
    check_same(a, b);
}

TEST_CASE("a stream that is deleted and made anew is noticed while the connection lives") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    a.store("old", 10);
    REQUIRE(a.has(10));
    REQUIRE(b.has(10));
    nats_operator tools(server.url());
    REQUIRE(tools.remove());
    tools.make({"sse.log", "sse.epoch"}); // unless a node was faster
    for (int i = 0; i < 30; ++i) {        // more than before; it is not there at once
        REQUIRE(eventually([&] { return tools.publish("other" + std::to_string(i)); }));
    }
    REQUIRE(a.has_text("other29"));
    REQUIRE(b.has_text("other29"));
    CHECK(a.epochs() == 2);
    check_same(a, b);
    node c(server);
    REQUIRE(c.is_ready());
    CHECK(c.sink.now().epoch == a.sink.now().epoch);
    CHECK(c.sink.now().messages.back().number == a.sink.now().messages.back().number);
}

TEST_CASE("a stream that is deleted is made again") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    a.store("old", 10);
    REQUIRE(a.has(10));
    nats_operator tools(server.url());
    REQUIRE(tools.remove());
    a.store("new", 1);
    REQUIRE(a.has_text("new0"));
    REQUIRE(a.sink.wait_until([](const auto& s) { return s.epoch != s.messages[0].epoch; }));
}

TEST_CASE("the end of the stream is lost: the nodes say so, and give no number twice") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    a.store("kept", 50);
    REQUIRE(a.has(50));
    REQUIRE(b.has(50));
    server.kill();
    std::filesystem::copy(server.folder() / "js", server.folder() / "backup",
                          std::filesystem::copy_options::recursive);
    server.start();
    const auto last = a.store("lost", 20);
    REQUIRE(a.has(70));
    REQUIRE(b.has(70));
    const auto before = a.sink.now().epoch;
    server.kill();
    server.lose_everything();
    std::filesystem::copy(server.folder() / "backup", server.folder() / "js",
                          std::filesystem::copy_options::recursive);
    server.start();
    SUBCASE("and nobody wrote meanwhile") {}
    SUBCASE("and others have written at the same numbers") {
        nats_operator tools(server.url());
        for (int i = 0; i < 30; ++i) REQUIRE(tools.publish("other" + std::to_string(i)));
    }
    a.store("new", 5);
    REQUIRE(a.has_text("new4"));
    REQUIRE(b.has_text("new4"));
    const auto sa = a.sink.now();
    CHECK(sa.epoch != before);
    CHECK(sa.epoch == b.sink.now().epoch);
    CHECK(a.count("epoch " + sa.epoch + " after " + std::to_string(last - 20) + " rewound") == 1);
    CHECK(b.count("epoch " + sa.epoch + " after " + std::to_string(last - 20) + " rewound") == 1);
    CHECK(a.count("a number that") == 0);
    std::set<std::pair<std::string, std::uint64_t>> given;
    for (const auto& m : sa.messages) CHECK(given.emplace(m.epoch, m.number).second);
    // One that begins now knows both epochs.
    node c(server);
    REQUIRE(c.is_ready());
    const auto sc = c.sink.now();
    CHECK(sc.messages.front().epoch == before);
    CHECK(sc.messages.back().epoch == sa.epoch);
    CHECK(sc.messages.back().number == sa.messages.back().number);
    const auto page = c.read(before, 0, 1000);
    CHECK(page.records.size() == 50);
    CHECK(c.read(sa.epoch, 0, 1000).records.back().bytes == "new4");
}

TEST_CASE("a purge drops the history, and keeps epoch and numbers") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server), b(server);
    const auto last = a.store("old", 100);
    REQUIRE(b.has(100));
    nats_operator tools(server.url());
    REQUIRE(tools.purge());
    CHECK(a.store("new", 1) > last);
    REQUIRE(b.has_text("new0"));
    CHECK(b.epochs() == 1);
    node c(server);
    REQUIRE(c.is_ready());
    CHECK(c.sink.now().epoch == a.sink.now().epoch);
    CHECK(c.texts() == std::vector<std::string>{"new0"});
    const auto page = c.read(a.sink.now().epoch, 1, 10);
    CHECK_FALSE(page.whole);
    CHECK(page.records.size() == 1);
}

TEST_CASE("messages that are dropped before a node read them are a hole") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    nats_operator(server.url()).make({"sse.log", "sse.epoch"}, 1000);
    node a(server);
    const auto last = a.store("old", 10);
    REQUIRE(a.has(10));
    server.kill();
    REQUIRE(a.is_up(false));
    server.start_elsewhere();
    SUBCASE("by the bounds of the stream") {
        nats_operator tools(server.url());
        for (int i = 0; i < 1100; ++i) REQUIRE(tools.publish("m" + std::to_string(i)));
        server.start_at_home();
        REQUIRE(a.has_text("m1099"));
        // One more when the list of epochs, which was dropped too, was written again.
        CHECK(a.count("hole to " + std::to_string(last + 100)) +
                  a.count("hole to " + std::to_string(last + 101)) ==
              1);
    }
    SUBCASE("by a purge that nothing follows") {
        nats_operator tools(server.url());
        for (int i = 0; i < 5; ++i) REQUIRE(tools.publish("m" + std::to_string(i)));
        REQUIRE(tools.purge());
        server.start_at_home();
        CHECK(a.was_told("hole to " + std::to_string(last + 5)));
    }
    SUBCASE("one by one") {
        nats_operator tools(server.url());
        for (int i = 0; i < 5; ++i) REQUIRE(tools.publish("m" + std::to_string(i)));
        REQUIRE(tools.remove_message(last + 2));
        REQUIRE(tools.remove_message(last + 3));
        server.start_at_home();
        REQUIRE(a.has_text("m4"));
        CHECK(a.count("hole to " + std::to_string(last + 3)) == 1);
    }
    a.store("new", 1);
    REQUIRE(a.has_text("new0"));
    CHECK(a.count("hole") == 1);
    CHECK(a.epochs() == 1);
}

TEST_CASE("a frozen server is a dead one, until it is there again") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    a.store("before", 10);
    server.signal(SIGSTOP);
    const auto lost = wait_for(a.publish("lost", true, 100ms));
    CHECK(lost.error == errc::bus_timeout);
    REQUIRE(a.is_up(false));
    CHECK(wait_for(a.publish("x", true, 10ms)).error == errc::bus_down);
    server.signal(SIGCONT);
    REQUIRE(a.is_up(true));
    a.store("after", 10);
    REQUIRE(a.has_text("after9"));
    CHECK(a.epochs() == 1);
    CHECK(a.count("hole") == 0);
}

TEST_CASE("a node can be detached while the server is frozen") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    REQUIRE(a.is_ready());
    server.signal(SIGSTOP);
    std::vector<std::future<result>> all;
    for (int i = 0; i < 1000; ++i) all.push_back(a.publish("x" + std::to_string(i)));
    const auto begin = std::chrono::steady_clock::now();
    a.bus->detach();
    CHECK(std::chrono::steady_clock::now() - begin < 10s);
    for (auto& one : all) CHECK(wait_for(std::move(one)).error == errc::stopped);
    CHECK(wait_for(a.publish("y")).error == errc::stopped);
    CHECK(a.read("aaaaaaaa", 0, 1).failed == errc::stopped);
    a.bus->detach();
    server.signal(SIGCONT);
}

TEST_CASE("more than may wait is refused at once") {
    if (!can_run()) return;
    nats_server server;
    auto o = options_for(server.url());
    o.max_pending = 10;
    node a(o);
    std::vector<std::future<result>> all;
    for (int i = 0; i < 10; ++i) all.push_back(a.publish("x", true, 20s));
    CHECK(wait_for(a.publish("x", true, 20s)).error == errc::no_room);
    server.start();
    for (auto& one : all) CHECK(!wait_for(std::move(one)).error);
    CHECK(!wait_for(a.publish("x", true, 20s)).error);
}

TEST_CASE("what the server refuses is told with its reason") {
    if (!can_run()) return;
    nats_server server("max_payload: 1000");
    server.start();
    nats_operator tools(server.url());
    REQUIRE(tools.make({"sse.log", "sse.epoch"}, 5, true));
    node a(server);
    CHECK(wait_for(a.publish(std::string(2000, 'x'))).error == errc::bus_refused);
    CHECK(a.sink.wait_until([](const auto& s) { return s.why.find("max_payload") != s.why.npos; }));
    a.store("m", 4);
    CHECK(wait_for(a.publish("one more")).error == errc::bus_refused);
    CHECK(a.sink.wait_until(
        [](const auto& s) { return s.why.find("maximum messages exceeded") != s.why.npos; }));
    CHECK(a.sink.now().is_up == true);
}

TEST_CASE("what can never work is thrown when the bus is attached") {
    if (!can_run()) return;
    {
        nats_server server("authorization { user: u, password: p }");
        server.start();
        CHECK(why_not(options_for(server.url())).find("set user and password") !=
              std::string::npos);
        auto o = options_for(server.url());
        o.user = "u";
        o.password = "p";
        node a(o);
        CHECK(a.is_ready());
    }
    {
        nats_server server("authorization { token: t }");
        server.start();
        auto o = options_for(server.url());
        o.token = "wrong";
        CHECK(why_not(o).find("set user and password") != std::string::npos);
        o.token = "t";
        node a(o);
        CHECK(a.is_ready());
    }
    {
        nats_server server({}, false);
        server.start();
        CHECK(why_not(options_for(server.url())).find("-js") != std::string::npos);
    }
    nats_server server;
    server.start();
    auto o = options_for(server.url());
    o.replicas = 3;
    CHECK(why_not(o).find("fewer servers than replicas") != std::string::npos);
    o.replicas = 1;
    o.create = false;
    CHECK(why_not(o).find("there is no stream SSE") != std::string::npos);
    nats_operator tools(server.url());
    REQUIRE(tools.make({"sse.>"}));
    CHECK(why_not(o).find("other subjects") != std::string::npos);
    o.create = true;
    o.stream = "OTHER";
    CHECK(why_not(o).find("another stream has these subjects") != std::string::npos);
}

TEST_CASE("an address with tls:// connects over TLS or not at all") {
    if (!can_run()) return;
    const auto over_tls = [](const nats_server& server, const char* scheme = "tls") {
        auto o = options_for(scheme + server.url().substr(std::strlen("nats")));
        o.user = "u";
        o.password = "p";
        return o;
    };
    const std::string users = "authorization { user: u, password: p }\n";
    nats_server plain(users);
    plain.start();
    for (const char* scheme : {"tls", "TLS"}) {
        auto o = over_tls(plain, scheme);
        if (*scheme == 'T') o.servers.insert(o.servers.begin(), plain.url());
        node refused(o);
        REQUIRE(refused.is_up(false));
        CHECK(refused.sink.now().why.find("offers no TLS") != std::string::npos);
    }
    node in_the_open(over_tls(plain, "nats"));
    CHECK(in_the_open.is_ready());

    // nats.c 3.4 uses one SSL object in two threads: what its own thread did to it was seen as a
    // race with an earlier write, which was made under a lock.
    if (support::with_thread_sanitizer) return;
    const temporary_folder folder("nats_tls");
    const std::string key = folder / "key.pem", certificate = folder / "certificate.pem";
    const std::string make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
                             "-days 2 -subj /CN=nats -addext subjectAltName=IP:127.0.0.1 -keyout " +
                             key + " -out " + certificate + " 2>/dev/null";
    if (std::system(make.c_str()) != 0) {
        MESSAGE("not run: openssl is not installed");
        return;
    }
    nats_server secure(users + "tls { cert_file: \"" + certificate + "\", key_file: \"" + key +
                       "\" }");
    secure.start();
    node stranger(over_tls(secure));
    REQUIRE(stranger.is_up(false));
    CHECK(stranger.sink.now().why.find("SSL_CERT_FILE") != std::string::npos);
    REQUIRE(::setenv("SSL_CERT_FILE", certificate.c_str(), 1) == 0);
    node known(over_tls(secure));
    CHECK(known.is_ready());
    ::unsetenv("SSL_CERT_FILE");
    CHECK(!wait_for(known.publish("over TLS")).error);
}

TEST_CASE("the list of epochs outlives the bounds of the stream, and what is not a list") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    nats_operator tools(server.url());
    REQUIRE(tools.make({"sse.log", "sse.epoch"}, 1000));
    std::string epoch;
    {
        node a(server);
        for (int i = 0; i < 10; ++i) a.store("m", 400); // checks are in between
        REQUIRE(a.has(4000));
        epoch = a.sink.now().epoch;
        CHECK(a.epochs() == 1);
        CHECK(a.count("hole") == 0);
        REQUIRE(eventually([&] { return !tools.all("sse.epoch").empty(); }));
    }
    node b(server);
    REQUIRE(b.is_ready());
    CHECK(b.sink.now().epoch == epoch);
    REQUIRE(tools.publish("what is this", nullptr, "sse.epoch"));
    REQUIRE(eventually(
        [&] { return tools.all("sse.epoch").back().second.starts_with("sse epochs 1\n"); }));
    b.store("new", 1);
    REQUIRE(b.has_text("new0"));
    CHECK(b.epochs() == 1);
}

TEST_CASE("what is published twice with the same token is stored once") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    REQUIRE(a.is_ready());
    nats_operator tools(server.url());
    REQUIRE(tools.publish("once", "token"));
    REQUIRE(tools.publish("once", "token"));
    a.store("m", 1);
    REQUIRE(a.has_text("m0"));
    CHECK(a.texts() == std::vector<std::string>{"once", "m0"});
}

TEST_CASE("a message that comes while the end of the stream is read is not taken for a lost one") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    a.store("m", 1);
    REQUIRE(a.has(1));
    std::atomic<bool> ended{false};
    auto publishing = std::async(std::launch::async, [&] {
        for (int i = 0; i < 40; ++i) a.store(std::to_string(i) + "-", 50);
        ended = true;
    });
    std::size_t pages = 0, parts = 0;
    while (!ended) {
        const auto s = a.sink.now();
        const auto page = a.read(s.epoch, s.messages.back().number, 10);
        REQUIRE(!page.failed);
        ++pages;
        parts += page.whole ? 0 : 1;
    }
    publishing.get();
    CHECK(pages > 0);
    CHECK(parts == 0);
}

TEST_CASE("older messages are read in pages") {
    if (!can_run()) return;
    nats_server server;
    server.start();
    node a(server);
    const auto last = a.store("m", 500);
    REQUIRE(a.has(500));
    const auto s = a.sink.now();
    std::vector<std::string> all;
    for (std::uint64_t after = 0;;) {
        const auto page = a.read(s.epoch, after, 150);
        REQUIRE(!page.failed);
        CHECK(page.whole);
        if (page.records.empty()) break;
        for (const auto& r : page.records) all.push_back(r.bytes);
        after = page.records.back().number;
    }
    CHECK(all == a.texts());
    CHECK(a.read(s.epoch, last, 10).whole);
    CHECK_FALSE(a.read("zzzzzzzz", 0, 10).whole);
    nats_operator tools(server.url());
    REQUIRE(tools.remove_message(last - 1));
    const auto before = a.read(s.epoch, last - 3, 10);
    CHECK(before.records.size() == 1);
    const auto after = a.read(s.epoch, last - 2, 10);
    CHECK_FALSE(after.whole);
    CHECK(after.records.size() == 1);
}

namespace {

/// Three servers that know each other.
class cluster {
public:
    cluster() {
        // No server joins another one's cluster, whoever listens at a port by then.
        const auto name = std::to_string(std::random_device{}());
        std::vector<int> ports;
        std::string routes;
        for (int i = 0; i < 3; ++i) {
            ports.push_back(free_port());
            routes += "nats-route://127.0.0.1:" + std::to_string(ports.back()) + ",";
        }
        for (const int port : ports)
            servers_.push_back(std::make_unique<nats_server>(
                "server_name: s" + std::to_string(servers_.size()) + "\ncluster { name: c" + name +
                ", listen: \"127.0.0.1:" + std::to_string(port) + "\", routes: [" + routes +
                "] }"));
        for (const auto& server : servers_) server->launch();
        for (const auto& server : servers_) REQUIRE(eventually([&] { return server->accepts(); }));
    }
    sse::nats_options options() const {
        auto o = options_for("");
        o.servers.clear();
        for (const auto& server : servers_) o.servers.push_back(server->url());
        o.replicas = 3;
        o.reply_timeout = 2s;
        return o;
    }
    nats_server& server(const std::string& name) {
        return *servers_[static_cast<std::size_t>(name.at(1) - '0')];
    }
    void signal(int number) {
        for (const auto& server : servers_) server->signal(number);
    }
    /// What is not well, as the servers say.
    std::string complaints() const {
        std::string all;
        for (std::size_t i = 0; i < servers_.size(); ++i) {
            std::istringstream log(servers_[i]->said());
            for (std::string line; std::getline(log, line);)
                if (line.find("[INF]") == std::string::npos)
                    all += "s" + std::to_string(i) + ": " + line + '\n';
        }
        return all;
    }
    void start_what_is_down() {
        for (const auto& server : servers_)
            if (!server->accepts()) server->start();
    }
    /// Who leads the stream, as somebody else than `except` says.
    std::string leader(const std::string& except = {}) {
        for (std::size_t i = 0; i < servers_.size(); ++i) {
            if (except == "s" + std::to_string(i)) continue;
            try {
                const auto name = nats_operator(servers_[i]->url()).leader();
                if (!name.empty()) return name;
            } catch (const std::runtime_error&) {}
        }
        return {};
    }

private:
    std::vector<std::unique_ptr<nats_server>> servers_;
};

} // namespace

namespace {

/// Publishes from both nodes while something happens to the leader; all is confirmed in the end.
void publish_while(cluster& all, node& a, node& b, void (*happens)(nats_server&), int round = 0) {
    const auto text = [&](char by, int i) { return by + std::to_string(round * 500 + i); };
    std::string leader;
    REQUIRE(eventually([&] { return !(leader = all.leader()).empty(); }));
    std::vector<std::future<result>> some;
    for (int i = 0; i < 500; ++i) some.push_back(a.publish(text('a', i), true, 50s));
    some[10].wait();
    happens(all.server(leader));
    for (int i = 0; i < 500; ++i) some.push_back(b.publish(text('b', i), true, 50s));
    std::map<std::string, int> failures;
    for (auto& one : some) {
        REQUIRE(one.wait_for(60s) == std::future_status::ready);
        if (const auto error = one.get().error) ++failures[error.message()];
    }
    for (const auto& [why, count] : failures) FAIL_CHECK(why << ": " << count << " of 1000");
}

/// What it has of the epoch that it is in.
std::vector<recording_sink::entry> tail(node& n) {
    auto now = n.sink.now();
    std::erase_if(now.messages, [&](const auto& m) { return m.epoch != now.epoch; });
    return now.messages;
}

/// Publishes until both have a message under the same id: all that happened is found out then. Both
/// have the same.
void check_agree(node& a, node& b) {
    int round = 0;
    REQUIRE(eventually([&] {
        const auto last = "end" + std::to_string(round++);
        a.publish(last).wait();
        if (!a.has_text(last) || !b.has_text(last)) return false;
        const auto x = tail(a), y = tail(b);
        return x.back().epoch == y.back().epoch && x.back().number == y.back().number;
    }));
    for (auto* n : {&a, &b}) {
        std::set<std::pair<std::string, std::uint64_t>> given;
        for (const auto& m : n->sink.now().messages) CHECK(given.emplace(m.epoch, m.number).second);
    }
    const auto x = tail(a), y = tail(b);
    REQUIRE(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        CHECK(x[i].number == y[i].number);
        CHECK(x[i].bytes == y[i].bytes);
    }
}

} // namespace

// nats-server 2.9.10 may lose the order of its replicas in these two: what was read is not what is
// there. All nodes say so then, and give what is there once more. Where a leader is killed that
// happens in one of forty runs on a busy machine.

TEST_CASE("a cluster goes on when the leader of its stream is killed, and loses nothing") {
    if (!can_run()) return;
    cluster all;
    node a(all.options()), b(all.options());
    REQUIRE(a.is_ready());
    REQUIRE(b.is_ready());
    INFO("a was told:\n" << a.told() << "b was told:\n" << b.told() << all.complaints());
    for (int round = 0; round < 2; ++round) {
        publish_while(
            all, a, b, [](nats_server& leader) { leader.kill(); }, round);
        all.start_what_is_down();
    }
    check_agree(a, b);
    const bool in_order = a.count("lost") == 0 && b.count("lost") == 0;
    for (auto* n : {&a, &b}) {
        auto texts = n->texts();
        std::erase_if(texts, [](const auto& text) { return text.starts_with("end"); });
        CHECK(std::set(texts.begin(), texts.end()).size() == 2000);
        if (in_order) {
            CHECK(texts.size() == 2000);
            CHECK(n->epochs() == 1);
            CHECK(n->count("hole") == 0);
        } else {
            MESSAGE("the servers lost their order: " << texts.size() << " of 2000");
            CHECK(n->count("lost") > 0);
        }
    }
    if (in_order) check_same(a, b);
}

TEST_CASE("a cluster whose leader was frozen keeps the order, or all nodes say that it is lost") {
    if (!can_run()) return;
    cluster all;
    node a(all.options()), b(all.options());
    REQUIRE(a.is_ready());
    REQUIRE(b.is_ready());
    INFO("a was told:\n" << a.told() << "b was told:\n" << b.told() << all.complaints());
    publish_while(all, a, b, [](nats_server& leader) { leader.signal(SIGSTOP); });
    all.signal(SIGCONT);
    check_agree(a, b);
}

} // namespace nats_test
