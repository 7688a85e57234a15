// redis.cpp - covers >>redisbus, >>redis: What is published through Redis comes back once, in one
// order, with one number, at every server; and what Redis loses is told. With a redis-server that
// each case starts, kills, freezes, cuts, and promotes. Built with SSE_ENABLE_REDIS.
#include "support/proxy.hpp"
#include "support/recording_sink.hpp"
#include "support/redis_server.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace redis_test {

using namespace std::chrono_literals;

namespace {

constexpr sse::bus::history plenty{100'000, 1'000'000'000, 0ms};

/// Whether there is a redis-server; otherwise there is nothing to test.
bool has_redis() {
    static const bool there = redis_server::is_installed();
    if (!there) MESSAGE("not run: there is no redis-server; install the package redis-server");
    return there;
}

/// What happened to a publication.
struct outcome {
    std::error_code failed;
    std::uint64_t number = 0;
};

/// Collects outcomes.
class outcomes {
public:
    sse::bus::published next() {
        return [this](std::error_code failed, std::uint64_t number) {
            const std::lock_guard lock(mutex_);
            all_.push_back({failed, number});
            changed_.notify_all();
        };
    }
    std::vector<outcome> wait_for(std::size_t count) {
        std::unique_lock lock(mutex_);
        CHECK(changed_.wait_for(lock, 30s, [&] { return all_.size() >= count; }));
        return all_;
    }
    std::size_t count() {
        const std::lock_guard lock(mutex_);
        return all_.size();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<outcome> all_;
};

sse::redis_options options_for(const redis_server& s) {
    sse::redis_options o;
    o.addresses = {s.address()};
    o.block = 100ms;
    return o;
}

/// May lose what it has confirmed, for all that anyone knows; but a kill takes nothing of it. With
/// everysec it may: a write waits for up to two seconds while the disk is slow.
const std::vector<std::string> unsure{"--appendonly", "yes", "--appendfsync", "no"};

/// For a Redis that writes all at once.
const std::vector<std::string> durable{"--appendonly", "yes", "--appendfsync", "always"};
sse::redis_options durable_options_for(const redis_server& s) {
    auto o = options_for(s);
    o.keeps_all = true;
    return o;
}

/// A server's end of the bus.
class node {
public:
    explicit node(sse::redis_options o, sse::bus::history kept = plenty)
        : bus_(sse::redis_bus(std::move(o))) {
        bus_->attach(sink, kept);
    }
    ~node() { bus_->detach(); }

    sse::bus& operator*() { return *bus_; }
    sse::bus* operator->() { return bus_.get(); }

    node& until_up() {
        REQUIRE(sink.wait_until([](auto& s) { return s.is_ready && s.is_up == true; }));
        return *this;
    }
    void publish(const std::string& bytes, outcomes& to, std::chrono::milliseconds patience = 20s,
                 bool store = true) {
        bus_->publish(bytes, store, patience, to.next());
    }
    outcome publish(const std::string& bytes, std::chrono::milliseconds patience = 20s,
                    bool store = true) {
        outcomes one;
        publish(bytes, one, patience, store);
        return one.wait_for(1).at(0);
    }
    sse::bus::page read(std::string_view epoch, std::uint64_t after, std::size_t messages) {
        std::promise<sse::bus::page> page;
        bus_->read(epoch, after, messages, [&](sse::bus::page p) { page.set_value(std::move(p)); });
        return page.get_future().get();
    }
    bool hears(const std::string& bytes) {
        return sink.wait_until(
            [&](auto& s) { return !s.messages.empty() && s.messages.back().bytes == bytes; });
    }
    /// All that was told, as "a b c".
    std::string told() {
        std::string all;
        for (const auto& m : sink.now().messages) all += (all.empty() ? "" : " ") + m.bytes;
        return all;
    }
    std::string first_epoch() {
        const auto s = sink.now();
        return s.messages.empty() ? s.epoch : s.messages.front().epoch;
    }
    /// How often the sink was told this.
    std::size_t events(std::string_view begin) {
        const auto s = sink.now();
        return static_cast<std::size_t>(std::count_if(
            s.events.begin(), s.events.end(), [&](auto& e) { return e.starts_with(begin); }));
    }
    bool was_told(std::string_view end) {
        return sink.wait_until([&](auto& s) {
            return std::any_of(s.events.begin(), s.events.end(),
                               [&](auto& e) { return e.ends_with(end); });
        });
    }

    recording_sink sink;

private:
    std::shared_ptr<sse::bus> bus_;
};

/// Same messages, under the same numbers of the same epochs; none twice; each above the last.
void check_alike(node& a, node& b) {
    const auto x = a.sink.now();
    const auto y = b.sink.now();
    REQUIRE(x.messages.size() == y.messages.size());
    for (std::size_t i = 0; i < x.messages.size(); ++i) {
        CHECK(x.messages[i].bytes == y.messages[i].bytes);
        CHECK(x.messages[i].number == y.messages[i].number);
        CHECK(x.messages[i].epoch == y.messages[i].epoch);
    }
    CHECK(a.events("a number that does not rise") == 0);
    CHECK(b.events("a number that does not rise") == 0);
}

} // namespace

// --- what works

TEST_CASE("an id of Redis is a number and back") {
    const sse::detail::redis_mark m{{1'000'000, 5}, 999'000, "abcdefgh", {}};
    CHECK(m.number({1'000'000, 5}) == ((std::uint64_t(1'000) << 24) | 5U));
    CHECK(m.id(m.number({1'234'567, 89})) == sse::detail::redis_id{1'234'567, 89});
    CHECK(m.number({998'999, 0}) == 0);
    CHECK(m.number({1'000'000, 1U << 24}) == 0);
    CHECK(m.number({std::uint64_t(1) << 41, 0}) == 0);
    using id = sse::detail::redis_id;
    CHECK(id::parse("12-34") == id{12, 34});
    CHECK(id{12, 34}.text() == "12-34");
    for (const char* wrong : {"", "-", "1", "1-", "-1", "1-2x", "x", "1--2"})
        CHECK(!id::parse(wrong));
    CHECK(id{5, 0}.before() == id{4, ~std::uint64_t(0)});
    CHECK(id{5, 7}.before() == id{5, 6});
    CHECK(id{}.before() == id{});
    using mark = sse::detail::redis_mark;
    CHECK(mark::parse("5-1 4 abcdefgh rewound @x:y")->base == 4);
    for (const char* wrong :
         {"", "5-1", "5-1 4 abc epoch @", "x 4 abcdefgh epoch @", "5-1 4 ABCDEFGH epoch @",
          "5-1 4x abcdefgh epoch @", "5-1 -9223372036854775808 abcdefgh epoch @"}) {
        CHECK(!mark::parse(wrong));
    }
    CHECK(m.number({~std::uint64_t(0), 1}) == 0);
}

TEST_CASE("options that cannot work are refused with their name") {
    const auto says = [](auto&& change) {
        sse::redis_options o;
        change(o);
        try {
            sse::redis_bus(o);
        } catch (const std::invalid_argument& e) { return std::string(e.what()); }
        return std::string();
    };
    CHECK(says([](auto&) {}).empty());
    CHECK(says([](auto& o) { o.addresses = {"[::1]:6379", "localhost:1"}; }).empty());
    const auto refuses = [&](const char* name, auto&& change) {
        CHECK(says(change).starts_with("sse::redis_options::" + std::string(name)));
    };
    for (const char* wrong :
         {"", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "::1:6379"}) {
        CAPTURE(wrong);
        refuses("addresses", [&](auto& o) { o.addresses = {wrong}; });
    }
    refuses("addresses", [](auto& o) { o.addresses = {}; });
    refuses("password", [](auto& o) { o.user = "bob"; });
    refuses("database", [](auto& o) { o.database = -1; });
    refuses("prefix", [](auto& o) { o.prefix = ""; });
    refuses("prefix", [](auto& o) { o.prefix = "a b"; });
    refuses("max_length", [](auto& o) { o.max_length = 0; });
    refuses("connect_timeout", [](auto& o) { o.connect_timeout = 0ms; });
    refuses("block", [](auto& o) { o.block = 11s; });
    refuses("wait_replicas", [](auto& o) { o.wait_replicas = 101; });
    refuses("wait_time", [](auto& o) { o.wait_time = 0ms; });
    refuses("queue_messages", [](auto& o) { o.queue_messages = 0; });
    refuses("queue_bytes", [](auto& o) { o.queue_bytes = 0; });
}

TEST_CASE("every server hears every message in one order, with the number of its publisher") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    node b(options_for(redis));
    a.until_up();
    b.until_up();
    outcomes from_a;
    outcomes from_b;
    for (int i = 0; i < 1'000; ++i) {
        a.publish("a" + std::to_string(i), from_a);
        b.publish("b" + std::to_string(i), from_b);
    }
    std::set<std::uint64_t> numbers;
    for (auto* all : {&from_a, &from_b}) {
        for (const auto& o : all->wait_for(1'000)) {
            CHECK(!o.failed);
            numbers.insert(o.number);
        }
    }
    CHECK(numbers.size() == 2'000);
    for (auto* n : {&a, &b}) {
        REQUIRE(n->sink.wait_until([](auto& s) { return s.messages.size() == 2'000; }));
        for (const auto& m : n->sink.now().messages) CHECK(numbers.count(m.number) == 1);
    }
    check_alike(a, b);
    const auto age = std::chrono::system_clock::now() - a.sink.now().messages.back().time;
    CHECK(age < 60s);
    CHECK(age > -1s);
    CHECK(a.events("epoch") == 1);
    CHECK(a.sink.now().epoch.size() == 8);
}

TEST_CASE("what is not stored reaches the servers that are there, without a number") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    node b(options_for(redis));
    a.until_up();
    b.until_up();
    const std::string bytes("\0any\r\nbytes\xff", 12);
    const auto o = a.publish(bytes, 20s, false);
    CHECK(!o.failed);
    CHECK(o.number == 0);
    CHECK(a.hears(bytes));
    CHECK(b.hears(bytes));
    CHECK(b.sink.now().messages.back().number == 0);
    node c(options_for(redis));
    c.until_up();
    CHECK(c.told().empty());
}

TEST_CASE("servers list, reach and end each other's streams") {
    if (!has_redis()) return;
    redis_server redis;
    const auto named = [&](const char* name) {
        sse::options o = support::with_threads(2);
        o.bus = sse::redis_bus(options_for(redis));
        o.node = name;
        return o;
    };
    support::running_server a(named("a")), b(named("b"));
    support::event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    sse::stream_list all;
    const auto is_complete = [&] {
        all = a.streams();
        return all.size() == 2 && all.missing.empty();
    };
    REQUIRE(support::eventually(is_complete));
    const auto id = b.streams({.here = true}).at(0).id;
    CHECK((all[0].id == id || all[1].id == id));
    a.send_to(id, {.data = "to b"});
    CHECK(at_b.next().data == "to b");
    a.revoke(id);
    CHECK_FALSE(at_b.next_or_end());
    a.publish("/t", {.data = "on"});
    CHECK(at_a.next().data == "on");
}

TEST_CASE("a server that starts is told the newest messages within its bounds") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    outcomes sent;
    for (int i = 0; i < 3'000; ++i) a.publish(std::to_string(10'000 + i), sent);
    const auto numbers = sent.wait_for(3'000);
    const auto kept_by = [&](sse::bus::history bounds) {
        node n(options_for(redis), bounds);
        n.until_up();
        const auto found = n.sink.now();
        CHECK(found.newest == numbers.back().number);
        CHECK(found.events.at(0).starts_with("epoch " + found.epoch));
        CHECK(n.events("epoch") == 1);
        for (std::size_t i = 0; i < found.messages.size(); ++i) {
            const std::size_t at = 3'000 - found.messages.size() + i;
            REQUIRE(found.messages[i].bytes == std::to_string(10'000 + at));
            REQUIRE(found.messages[i].number == numbers[at].number);
        }
        return found.messages.size();
    };
    CHECK(kept_by(plenty) == 3'000);
    CHECK(kept_by({1'234, 1'000'000, 0ms}) == 1'234);
    CHECK(kept_by({1, 1'000'000, 0ms}) == 1);
    CHECK(kept_by({0, 1'000'000, 0ms}) == 0);
    CHECK(kept_by({100'000, 5'004, 0ms}) == 1'000);
    CHECK(kept_by({100'000, 1'000'000, 1h}) == 3'000);
    CHECK(kept_by({100'000, 1'000'000, 1ms}) == 0);
    redis.command({"XTRIM", "sse:messages", "MAXLEN", "500"});
    CHECK(kept_by(plenty) == 500);
    CHECK(kept_by({500, 1'000'000, 0ms}) == 500);
    CHECK(kept_by({499, 1'000'000, 0ms}) == 499);
    redis.command({"XTRIM", "sse:messages", "MAXLEN", "0"});
    CHECK(kept_by(plenty) == 0);
    node b(options_for(redis));
    b.until_up();
    CHECK(a.publish("more").number > numbers.back().number);
    CHECK(a.hears("more"));
    CHECK(b.hears("more"));
    CHECK(a.events("epoch") == 1);
}

TEST_CASE("two prefixes are two buses, and a database is another") {
    if (!has_redis()) return;
    redis_server redis;
    auto other = options_for(redis);
    other.prefix = "other:";
    auto third = options_for(redis);
    third.database = 3;
    third.prefix = "third:";
    node a(options_for(redis));
    node b(other);
    node c(third);
    for (auto* n : {&a, &b, &c}) n->until_up();
    CHECK(!a.publish("for a").failed);
    CHECK(!b.publish("for b").failed);
    CHECK(!c.publish("for c").failed);
    CHECK(a.hears("for a"));
    CHECK(b.hears("for b"));
    CHECK(c.hears("for c"));
    CHECK(a.told() == "for a");
    CHECK(b.told() == "for b");
    CHECK(c.told() == "for c");
}

TEST_CASE("stored records are read again, also of an earlier epoch") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    std::vector<std::uint64_t> numbers;
    for (int i = 0; i < 10; ++i) numbers.push_back(a.publish(std::to_string(i)).number);
    REQUIRE(a.hears("9"));
    const auto epoch = a.sink.now().epoch;
    const auto bytes = [](const sse::bus::page& p) {
        std::string all;
        for (const auto& r : p.records) all += r.bytes;
        return all;
    };
    auto p = a.read(epoch, numbers[3], 4);
    CHECK(!p.failed);
    CHECK(p.whole);
    CHECK(bytes(p) == "4567");
    CHECK(p.records[0].number == numbers[4]);
    p = a.read(epoch, 0, 100);
    CHECK(p.whole);
    CHECK(bytes(p) == "0123456789");
    p = a.read(epoch, numbers[9], 100);
    CHECK(p.whole);
    CHECK(p.records.empty());
    p = a.read("00000000", 5, 100);
    CHECK(!p.failed);
    CHECK(!p.whole);
    CHECK(p.records.empty());

    redis.command({"XTRIM", "sse:messages", "MAXLEN", "5"});
    p = a.read(epoch, numbers[1], 100);
    CHECK(!p.whole);
    CHECK(bytes(p) == "56789");
    p = a.read(epoch, numbers[6], 100);
    CHECK(p.whole);
    CHECK(bytes(p) == "789");

    // Another epoch begins: the list lost its newest mark.
    redis.command({"DEL", "sse:epochs"});
    REQUIRE(a.sink.wait_until([&](auto& s) { return s.epoch != epoch; }));
    const auto later = a.publish("later").number;
    REQUIRE(a.hears("later"));
    p = a.read(a.sink.now().epoch, 0, 100);
    CHECK(bytes(p) == "later");
    CHECK(p.records.at(0).number == later);
}

TEST_CASE("detach() ends at once, and everything with it") {
    if (!has_redis()) return;
    redis_server redis;
    auto o = options_for(redis);
    o.block = 10s;
    node a(o);
    a.until_up();
    CHECK(!a.publish("x").failed);
    redis.freeze();
    outcomes sent;
    for (int i = 0; i < 100; ++i) a.publish("y", sent, 1h);
    bool is_read = false;
    a->read("abcdefgh", 1, 1, [&](sse::bus::page p) { is_read = p.failed == sse::errc::stopped; });
    const auto begin = std::chrono::steady_clock::now();
    a->detach();
    CHECK(std::chrono::steady_clock::now() - begin < 5s);
    CHECK(is_read);
    CHECK(sent.count() == 100);
    for (const auto& one : sent.wait_for(100)) CHECK(one.failed == sse::errc::stopped);
    a->detach();
    CHECK(a.publish("z").failed == sse::errc::stopped);
    CHECK(a.read("abcdefgh", 1, 1).failed == sse::errc::stopped);
    redis.thaw();
}

// --- what is wrong from the start

namespace {

std::string attach_throws(sse::redis_options o) {
    recording_sink sink;
    const auto bus = sse::redis_bus(std::move(o));
    try {
        bus->attach(sink, plenty);
    } catch (const std::runtime_error& e) {
        CHECK(sink.now().messages.empty());
        return e.what();
    }
    bus->detach();
    return {};
}

bool names(const std::string& text, const std::string& part) {
    CAPTURE(text);
    CAPTURE(part);
    const bool found = text.find(part) != std::string::npos;
    CHECK(found);
    return found;
}

} // namespace

TEST_CASE("attach() throws what can never work, with its remedy") {
    if (!has_redis()) return;
    redis_server redis;
    auto o = options_for(redis);

    o.password = "secret";
    names(attach_throws(o), "leave redis_options::password empty");
    redis.command({"CONFIG", "SET", "requirepass", "right"});
    redis.command({"AUTH", "right"});
    names(attach_throws(o), "correct redis_options::user and password");
    names(attach_throws(options_for(redis)), "set redis_options::password");
    o.password = "right";
    CHECK(attach_throws(o).empty());

    redis.command({"ACL", "SETUSER", "bob", "on", ">pw", "~other:*", "&*", "+@all"});
    auto bob = o;
    bob.user = "bob";
    bob.password = "pw";
    names(attach_throws(bob), "allow the user its keys");
    bob.prefix = "other:";
    CHECK(attach_throws(bob).empty());
    redis.command({"ACL", "SETUSER", "bob", "-info"});
    names(attach_throws(bob), "allow the user its keys");

    auto wrong = o;
    wrong.prefix = "typed:";
    redis.command({"SET", "typed:messages", "x"});
    names(attach_throws(wrong), "choose another redis_options::prefix");
    redis.command({"DEL", "typed:messages"});
    CHECK(attach_throws(wrong).empty());
    redis.command({"DEL", "typed:epochs"});
    redis.command({"SET", "typed:epochs", "x"});
    names(attach_throws(wrong), "choose another redis_options::prefix");

    wrong = o;
    wrong.database = 9'999;
    names(attach_throws(wrong), "correct redis_options::database");

    redis.command({"CONFIG", "SET", "maxmemory-policy", "allkeys-lru"});
    names(attach_throws(o), "set it to noeviction");
    redis.command({"CONFIG", "SET", "maxmemory-policy", "noeviction"});
    CHECK(attach_throws(o).empty());
}

TEST_CASE("a Redis that is away at the start is tried until it is there") {
    if (!has_redis()) return;
    redis_server redis;
    redis.kill();
    node a(options_for(redis));
    REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
    names(a.sink.now().why, "Connection refused; start Redis there");
    const auto begin = std::chrono::steady_clock::now();
    CHECK(a.publish("x", 200ms).failed == sse::errc::bus_down);
    CHECK(a.publish("x", 0ms).failed == sse::errc::bus_down);
    CHECK(a.publish("x", 0ms, false).failed == sse::errc::bus_down);
    CHECK(std::chrono::steady_clock::now() - begin < 10s);
    CHECK(a.read("abcdefgh", 1, 1).failed == sse::errc::bus_down);
    outcomes patient;
    a.publish("waits", patient, 30s);
    redis.start();
    CHECK(!patient.wait_for(1).at(0).failed);
    a.until_up();
    CHECK(a.hears("waits"));
    CHECK(a.told() == "waits");
}

TEST_CASE("a replica is not used") {
    if (!has_redis()) return;
    redis_server primary;
    redis_server replica;
    replica.follow(primary);
    auto o = options_for(replica);
    {
        node a(o);
        REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
        names(a.sink.now().why, "it is a replica");
    }
    o.addresses = {replica.address(), primary.address()};
    node a(o);
    a.until_up();
    CHECK(!a.publish("x").failed);
    CHECK(primary.text({"TYPE", "sse:messages"}) == "stream");
}

TEST_CASE("what waits to be sent is bounded") {
    if (!has_redis()) return;
    redis_server redis;
    redis.kill();
    auto o = options_for(redis);
    o.queue_messages = 10;
    o.queue_bytes = 1'000;
    node a(o);
    outcomes sent;
    for (int i = 0; i < 10; ++i) a.publish("x", sent, 30s);
    CHECK(a.publish("x").failed == sse::errc::no_room);
    redis.start();
    for (const auto& one : sent.wait_for(10)) CHECK(!one.failed);
    CHECK(!a.publish(std::string(5'000, 'x')).failed); // alone it may be larger
}

// --- the failure matrix

TEST_CASE("Redis restarts with all it had: nothing is lost, nothing is told") {
    if (!has_redis()) return;
    redis_server redis(durable);
    node a(durable_options_for(redis));
    node b(durable_options_for(redis));
    a.until_up();
    b.until_up();
    for (int round = 0; round < 3; ++round) {
        CHECK(!a.publish("before " + std::to_string(round)).failed);
        redis.kill();
        REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
        outcomes sent;
        a.publish("meanwhile " + std::to_string(round), sent);
        redis.start();
        CHECK(!sent.wait_for(1).at(0).failed);
        a.until_up();
        b.until_up();
    }
    CHECK(!b.publish("end").failed);
    CHECK(a.hears("end"));
    CHECK(b.hears("end"));
    CHECK(a.told() == "before 0 meanwhile 0 before 1 meanwhile 1 before 2 meanwhile 2 end");
    check_alike(a, b);
    CHECK(a.events("epoch") == 1);
    CHECK(a.events("hole") == 0);
    node c(durable_options_for(redis)); // which was not there
    c.until_up();
    check_alike(a, c);
}

TEST_CASE("Redis and all servers start again: nobody knows what was lost, and that is told") {
    if (!has_redis()) return;
    redis_server redis(unsure);
    std::string epoch;
    {
        node a(options_for(redis));
        a.until_up();
        CHECK(!a.publish("x").failed);
        epoch = a.sink.now().epoch;
    }
    { // of the servers alone: nothing
        node a(options_for(redis));
        a.until_up();
        CHECK(a.sink.now().epoch == epoch);
        CHECK(a.told() == "x");
    }
    redis.restart();
    node a(options_for(redis));
    a.until_up();
    CHECK(a.was_told(" rewound"));
    CHECK(a.events("lost above") == 0);
    CHECK(!a.publish("y").failed);
    CHECK(a.hears("y"));
    CHECK(a.told() == "x y");
    CHECK(a.first_epoch() == epoch);
    CHECK(a.sink.now().epoch != epoch);
}

TEST_CASE("Redis restarts, and may have lost what another server told: rewound, for all alike") {
    if (!has_redis()) return;
    redis_server redis(unsure);
    node a(options_for(redis));
    node b(options_for(redis));
    a.until_up();
    b.until_up();
    CHECK(!a.publish("before").failed);
    REQUIRE(b.hears("before"));
    redis.restart();
    CHECK(a.was_told(" rewound"));
    CHECK(b.was_told(" rewound"));
    CHECK(!b.publish("after").failed);
    REQUIRE(a.hears("after"));
    REQUIRE(b.hears("after"));
    check_alike(a, b);
    CHECK(a.told() == "before after");
    CHECK(a.events("epoch") == 2);
    CHECK(a.events("lost above") == 0); // what it had read is still there
}

TEST_CASE("keeps_all is refused where it is not true") {
    if (!has_redis()) return;
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"--appendonly", "yes", "--appendfsync", "everysec"},
          std::vector<std::string>{"--appendonly", "no", "--appendfsync", "always"}}) {
        redis_server redis(arguments);
        recording_sink sink;
        const auto bus = sse::redis_bus(durable_options_for(redis));
        CHECK_THROWS_WITH_AS(bus->attach(sink, plenty), doctest::Contains("appendfsync to always"),
                             std::runtime_error);
    }
    auto o = sse::redis_options();
    o.keeps_all = true;
    o.addresses = {"127.0.0.1:1", "127.0.0.1:2"};
    CHECK_THROWS_WITH_AS(sse::redis_bus(o), doctest::Contains("keeps_all: "),
                         std::invalid_argument);
}

TEST_CASE("Redis and all servers start again, but it writes all at once: nothing is told") {
    if (!has_redis()) return;
    redis_server redis(durable);
    const auto publish = [&](const std::string& bytes) {
        node a(durable_options_for(redis));
        a.until_up();
        CHECK(!a.publish(bytes).failed);
        REQUIRE(a.hears(bytes));
        CHECK(a.events("epoch") == 1);
        CHECK(a.events("a number that does not rise") == 0);
        return a.sink.now().epoch;
    };
    const auto epoch = publish("x");
    redis.restart();
    CHECK(publish("y") == epoch);
}

TEST_CASE("publishers are refused after their patience while Redis is away") {
    if (!has_redis()) return;
    redis_server redis({"--appendonly", "yes"});
    node a(options_for(redis));
    a.until_up();
    redis.kill();
    REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
    // Only the reader may have noticed: what is written before the writer does may have got there.
    while (a.publish("w", 100ms).failed == sse::errc::bus_timeout) {}
    outcomes sent;
    for (int i = 0; i < 50; ++i) a.publish("x", sent, 100ms, i % 2 == 0);
    for (const auto& one : sent.wait_for(50)) CHECK(one.failed == sse::errc::bus_down);
    CHECK(a.told().empty());
    redis.start();
    a.until_up();
    CHECK(!a.publish("y").failed);
    CHECK(a.hears("y"));
    CHECK(a.told() == "y");
}

TEST_CASE("Redis restarts empty: a new epoch") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    node b(options_for(redis));
    a.until_up();
    b.until_up();
    CHECK(!a.publish("x").failed);
    REQUIRE(b.hears("x"));
    redis.restart();
    CHECK(!b.publish("y").failed);
    CHECK(a.hears("y"));
    CHECK(b.hears("y"));
    CHECK(a.told() == "x y");
    check_alike(a, b);
    CHECK(a.events("epoch") == 2);
    CHECK(a.was_told(" epoch"));
    CHECK(a.events("hole") == 0);
    CHECK(a.first_epoch() != a.sink.now().epoch);
}

TEST_CASE("FLUSHALL, and DEL of either key: a new epoch") {
    if (!has_redis()) return;
    const std::vector<std::vector<std::string>> ways{{"FLUSHALL"},
                                                     {"DEL", "sse:messages"},
                                                     {"DEL", "sse:epochs"},
                                                     {"DEL", "sse:messages", "sse:epochs"}};
    for (const auto& way : ways) {
        CAPTURE(way.back());
        redis_server redis;
        node a(options_for(redis));
        node b(options_for(redis));
        a.until_up();
        b.until_up();
        CHECK(!a.publish("x").failed);
        REQUIRE(a.hears("x"));
        REQUIRE(b.hears("x"));
        redis.command(way);
        if (way.back() == "sse:epochs") { // the stream is there: found when it is quiet
            REQUIRE(a.sink.wait_until([&](auto& s) { return s.epoch != s.messages.at(0).epoch; }));
        }
        outcomes sent;
        for (int i = 0; i < 100; ++i) b.publish(std::to_string(i), sent);
        for (const auto& one : sent.wait_for(100)) CHECK(!one.failed);
        REQUIRE(a.sink.wait_until([](auto& s) { return s.messages.size() == 101; }));
        REQUIRE(b.sink.wait_until([](auto& s) { return s.messages.size() == 101; }));
        check_alike(a, b);
        CHECK(a.events("epoch") == 2);
        CHECK(b.events("epoch") == 2);
    }
}

TEST_CASE("Redis loses its tail: rewound, and no number twice") {
    if (!has_redis()) return;
    redis_server redis(durable);
    node a(durable_options_for(redis));
    a.until_up();
    {
        node b(durable_options_for(redis)); // it will have been told all but the last two
        b.until_up();
        CHECK(!a.publish("one").failed);
        REQUIRE(b.hears("one"));
        CHECK(b.publish("two").number > 0);
        REQUIRE(a.hears("two"));
    }
    CHECK(!a.publish("lost 1").failed);
    CHECK(!a.publish("lost 2").failed);
    REQUIRE(a.hears("lost 2"));
    const auto epoch = a.sink.now().epoch;
    const auto lost = a.sink.now().messages.at(2).number;
    redis.kill();
    redis.cut_append_only_file(150); // one entry has more than 100 bytes there, with its trim
    redis.start();
    REQUIRE(a.was_told(" rewound"));
    const auto kept = a.sink.now().messages.at(1).number;
    CHECK(a.events("lost above " + std::to_string(kept)) == 1);
    const auto o = a.publish("three");
    CHECK(!o.failed);
    REQUIRE(a.hears("three"));
    const auto s = a.sink.now();
    CHECK(s.epoch != epoch);
    CHECK(a.events("epoch") == 2);
    CHECK(a.events("a number that does not rise") == 0);
    CHECK(o.number == s.messages.back().number);
    node c(durable_options_for(redis));
    c.until_up();
    const auto later = c.sink.now();
    CHECK(later.messages.back().number == o.number);
    CHECK(later.messages.back().epoch == s.epoch);
    CHECK(later.messages.front().bytes == "one");
    CHECK(later.messages.front().epoch == epoch);
    // A client that saw what was lost comes back.
    const auto p = c.read(epoch, lost, 10);
    CHECK(!p.failed);
    for (const auto& r : p.records) CHECK(r.number > lost);
}

namespace {

/// A primary and a replica that lost the last entries of it, promoted, after `more` was stored.
struct lagging {
    redis_server primary;
    redis_server replica;

    lagging() { replica.follow(primary); }
    void lose(node& by, const std::function<void()>& more) {
        by.until_up();
        redis_server::wait_until("not replicated", [&] {
            return replica.text({"TYPE", "sse:messages"}) == "stream" &&
                   replica.command({"XLEN", "sse:messages"})->integer ==
                       primary.command({"XLEN", "sse:messages"})->integer;
        });
        replica.command({"REPLICAOF", "127.0.0.1", "1"}); // it hears nothing more
        more();
        primary.kill();
        replica.promote();
    }
    sse::redis_options options() const {
        auto o = options_for(primary);
        o.addresses = {primary.address(), replica.address()};
        return o;
    }
};

} // namespace

TEST_CASE("a replica without the last entries is promoted: rewound") {
    if (!has_redis()) return;
    lagging pair;
    node a(pair.options());
    a.until_up();
    CHECK(!a.publish("kept").failed);
    REQUIRE(a.hears("kept"));
    pair.lose(a, [&] {
        for (const char* m : {"lost 1", "lost 2", "lost 3"}) CHECK(!a.publish(m).failed);
        REQUIRE(a.hears("lost 3"));
    });
    REQUIRE(a.was_told(" rewound"));
    CHECK(!a.publish("after").failed);
    REQUIRE(a.hears("after"));
    CHECK(a.told() == "kept lost 1 lost 2 lost 3 after");
    CHECK(a.events("a number that does not rise") == 0);
    node b(pair.options());
    b.until_up();
    CHECK(b.told() == "kept after");
    CHECK(b.sink.now().messages.back().number == a.sink.now().messages.back().number);
}

TEST_CASE("what others add before the loss is noticed is told once, in order, alike") {
    if (!has_redis()) return;
    lagging pair;
    node b(pair.options());
    b.until_up();
    auto slow = pair.options();
    node a(slow);
    a.until_up();
    CHECK(!a.publish("kept").failed);
    REQUIRE(b.hears("kept"));
    REQUIRE(a.hears("kept"));
    const auto epoch = a.sink.now().epoch;
    pair.lose(b, [&] {
        a->publish("lost", true, 20s, [](std::error_code, std::uint64_t) {});
        REQUIRE(a.hears("lost"));
        b->detach(); // it does not know of the loss
    });
    // By hand, as another server would have done it: joins, and adds.
    node c(pair.options());
    c.until_up();
    outcomes sent;
    for (int i = 0; i < 10; ++i) c.publish(std::to_string(i), sent);
    sent.wait_for(10);
    REQUIRE(a.was_told(" rewound"));
    CHECK(!a.publish("end").failed);
    REQUIRE(a.hears("end"));
    REQUIRE(c.hears("end"));
    node d(pair.options());
    d.until_up();
    check_alike(c, d);
    auto x = a.sink.now().messages;
    const auto y = c.sink.now().messages;
    CHECK(a.events("a number that does not rise") == 0);
    REQUIRE(x.size() == y.size() + 1);
    x.erase(x.begin() + 1); // "lost"
    for (std::size_t i = 0; i < x.size(); ++i) {
        CHECK(x[i].bytes == y[i].bytes);
        CHECK(x[i].number == y[i].number);
        CHECK(x[i].epoch == y[i].epoch);
    }
}

TEST_CASE("the clock of the promoted server is behind: nobody is deaf, no number is given twice") {
    if (!has_redis()) return;
    lagging pair;
    node a(pair.options());
    a.until_up();
    CHECK(!a.publish("kept").failed);
    REQUIRE(a.hears("kept"));
    pair.lose(a, [&] { // as the primary's clock is an hour ahead
        const auto ahead = std::chrono::duration_cast<std::chrono::milliseconds>(
            (std::chrono::system_clock::now() + 1h).time_since_epoch());
        pair.primary.command(
            {"XADD", "sse:messages", std::to_string(ahead.count()) + "-0", "m", "ahead"});
        CHECK(!a.publish("lost").failed);
        REQUIRE(a.hears("lost"));
    });
    REQUIRE(a.was_told(" rewound"));
    CHECK(!a.publish("after").failed);
    REQUIRE(a.hears("after"));
    CHECK(a.told() == "kept ahead lost after");
    CHECK(a.events("a number that does not rise") == 0);
    CHECK(a.events("epoch") == 2);
}

TEST_CASE("a planned failover loses nothing, and tells that nobody knows that") {
    if (!has_redis()) return;
    redis_server primary;
    redis_server replica;
    replica.follow(primary);
    auto o = options_for(primary);
    o.addresses = {primary.address(), replica.address()};
    node a(o);
    node b(o);
    a.until_up();
    b.until_up();
    CHECK(!a.publish("before").failed);
    outcomes sent;
    std::thread busy([&] {
        for (int i = 0; i < 500; ++i) a.publish(std::to_string(i), sent);
    });
    primary.command({"FAILOVER", "TO", "127.0.0.1", std::to_string(replica.port())});
    busy.join();
    for (const auto& one : sent.wait_for(500)) CHECK(!one.failed);
    redis_server::wait_until("no failover", [&] { return replica.info_has("role:master"); });
    CHECK(!b.publish("after").failed);
    CHECK(a.hears("after"));
    CHECK(b.hears("after"));
    check_alike(a, b);
    std::set<std::string> heard;
    for (const auto& m : a.sink.now().messages) heard.insert(m.bytes);
    CHECK(heard.size() == 502);
    CHECK(a.events("epoch") == 2);
    CHECK(a.events("lost above") == 0);
    CHECK(a.events("hole") == 0);
    redis_server::wait_until("deaf", [&] { // once its connection is made again
        CHECK(!a.publish("not stored", 20s, false).failed);
        return b.sink.now().messages.back().bytes == "not stored";
    });
}

namespace {

/// Takes no further message until it is let go.
class slow_sink final : public sse::bus::sink {
public:
    explicit slow_sink(sse::bus::sink& to) : to_(to) {}
    void epoch(std::string_view name, std::uint64_t after, sse::gap_reason why) override {
        to_.epoch(name, after, why);
    }
    void message(const sse::bus::record& what) override {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return open_; });
        to_.message(what);
    }
    void passing(std::string_view bytes) override { to_.passing(bytes); }
    void lost(std::uint64_t above) override { to_.lost(above); }
    void hole(std::uint64_t to) override { to_.hole(to); }
    void ready() override { to_.ready(); }
    void health(bool up, std::string_view reason) override { to_.health(up, reason); }
    void open(bool yes) {
        const std::lock_guard lock(mutex_);
        open_ = yes;
        changed_.notify_all();
    }

private:
    sse::bus::sink& to_;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool open_ = true;
};

} // namespace

TEST_CASE("trimmed past a reader: a hole up to the first that is kept") {
    if (!has_redis()) return;
    redis_server redis;
    recording_sink seen;
    slow_sink slow(seen);
    auto o = options_for(redis);
    o.max_length = 100;
    const auto bus = sse::redis_bus(o);
    bus->attach(slow, plenty);
    node b(o);
    b.until_up();
    REQUIRE(seen.wait_until([](auto& s) { return s.is_ready; }));
    slow.open(false);
    CHECK(!b.publish("first").failed);
    outcomes sent;
    for (int i = 0; i < 5'000; ++i) b.publish(std::to_string(i), sent);
    sent.wait_for(5'000);
    slow.open(true);
    CHECK(seen.wait_until(
        [](auto& s) { return !s.messages.empty() && s.messages.back().bytes == "4999"; }));
    bus->detach();
    const auto s = seen.now();
    std::size_t holes = 0;
    for (const auto& e : s.events) {
        holes += e.starts_with("hole");
        CHECK(e != "a number that does not rise");
        CHECK(!e.ends_with("rewound"));
    }
    CHECK(holes == 1);
    CHECK(s.messages.at(0).bytes == "first");
    CHECK(s.messages.size() < 1'500);
}

TEST_CASE("a connection cut by Redis is made again; nothing is lost") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    node b(options_for(redis));
    a.until_up();
    b.until_up();
    outcomes sent;
    for (int i = 0; i < 2'000; ++i) {
        a.publish(std::to_string(i), sent);
        if (i % 200 == 0) {
            redis.command({"CLIENT", "KILL", "TYPE", "normal"});
            redis.command({"CLIENT", "KILL", "TYPE", "pubsub"});
        }
    }
    for (const auto& one : sent.wait_for(2'000)) CHECK(!one.failed);
    CHECK(!a.publish("end").failed);
    CHECK(a.hears("end"));
    CHECK(b.hears("end"));
    check_alike(a, b);
    std::set<std::string> heard; // some perhaps twice, under two numbers
    for (const auto& m : a.sink.now().messages) heard.insert(m.bytes);
    CHECK(heard.size() == 2'001);
    CHECK(a.events("epoch") == 1);
}

TEST_CASE("a frozen Redis is noticed, and what was sent is not lost") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    CHECK(!a.publish("x").failed);
    redis.freeze();
    const auto begin = std::chrono::steady_clock::now();
    CHECK(a.publish("y", 100ms).failed == sse::errc::bus_timeout);
    CHECK(a.publish("z", 100ms).failed == sse::errc::bus_down); // behind it, never sent
    CHECK(std::chrono::steady_clock::now() - begin < 5s);
    REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
    names(a.sink.now().why, "no response in time");
    redis.thaw();
    a.until_up();
    CHECK(!a.publish("end").failed);
    CHECK(a.hears("end"));
    CHECK(a.events("epoch") == 1);
    CHECK(a.told().starts_with("x y"));
}

TEST_CASE("Redis refuses messages: said at once, with the remedy, and again when it is over") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    CHECK(!a.publish("x").failed);
    struct way {
        std::vector<std::string> begin;
        std::vector<std::string> end;
        std::string remedy;
    };
    const std::vector<way> ways{
        {{"CONFIG", "SET", "maxmemory", "1"},
         {"CONFIG", "SET", "maxmemory", "0"},
         "raise maxmemory"},
        {{"CONFIG", "SET", "min-replicas-to-write", "1"},
         {"CONFIG", "SET", "min-replicas-to-write", "0"},
         "min-replicas-to-write"},
    };
    for (const auto& w : ways) {
        CAPTURE(w.remedy);
        redis.command(w.begin);
        CHECK(a.publish("refused").failed == sse::errc::bus_refused);
        REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
        names(a.sink.now().why, w.remedy);
        redis.command(w.end);
        REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == true; }));
        CHECK(!a.publish("y").failed);
    }
    CHECK(a.sink.wait_until([](auto& s) { return s.messages.size() == 3; }));
    CHECK(a.told() == "x y y");
}

TEST_CASE("Redis cannot write its files: refused with the remedy until it can") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    CHECK(!a.publish("x").failed);
    redis.command({"CONFIG", "SET", "save", "3600 1"});
    const auto save = [&](const std::string& result) {
        redis_server::wait_until("no snapshot", [&] {
            if (redis.info_has("rdb_bgsave_in_progress:0")) redis.command({"BGSAVE"});
            return redis.info_has("rdb_last_bgsave_status:" + result);
        });
    };
    std::filesystem::create_directory(redis.folder() / "dump.rdb"); // in the way
    save("err");
    CHECK(a.publish("refused").failed == sse::errc::bus_refused);
    REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
    names(a.sink.now().why, "look at its disk");
    std::filesystem::remove(redis.folder() / "dump.rdb");
    save("ok");
    REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == true; }));
    CHECK(!a.publish("y").failed);
    CHECK(a.hears("y"));
    CHECK(a.told() == "x y");
}

TEST_CASE("while Redis loads its files it is waited for") {
    if (!has_redis()) return;
    redis_server redis({"--rdbcompression", "no"});
    node a(options_for(redis));
    a.until_up();
    CHECK(!a.publish("x").failed);
    REQUIRE(a.hears("x"));
    for (int i = 0; i < 100; ++i) {
        redis.command({"SET", "key" + std::to_string(i), std::string(3'000, 'x')});
    }
    redis.command({"SAVE"});
    redis.kill();
    redis.arguments() = {"--key-load-delay", "20000", "--loading-process-events-interval-bytes",
                         "1024"};
    outcomes sent;
    a.publish("meanwhile", sent);
    redis.start(false);
    REQUIRE(a.sink.wait_until(
        [](auto& s) { return s.why.find("Redis reads its files") != std::string::npos; }));
    CHECK(!sent.wait_for(1).at(0).failed);
    a.until_up();
    CHECK(a.hears("meanwhile"));
    CHECK(a.told() == "x meanwhile");
    CHECK(a.events("epoch") == 2);
}

TEST_CASE("a setup that goes wrong later is said, and tried again") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    CHECK(!a.publish("x").failed);
    REQUIRE(a.hears("x"));
    redis.command({"SET", "sse:messages", "y"});
    REQUIRE(a.sink.wait_until([](auto& s) { return s.is_up == false; }));
    names(a.sink.now().why, "choose another redis_options::prefix");
    redis.command({"DEL", "sse:messages"});
    a.until_up();
    CHECK(!a.publish("z").failed);
    CHECK(a.hears("z"));
    CHECK(a.events("epoch") == 2);
    redis.command({"CONFIG", "SET", "requirepass", "secret"});
    redis.command({"AUTH", "secret"});
    redis.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
    REQUIRE(a.sink.wait_until(
        [](auto& s) { return s.why.find("set redis_options::password") != std::string::npos; }));
    redis.command({"CONFIG", "SET", "requirepass", ""});
    a.until_up();
    CHECK(!a.publish("w").failed);
    CHECK(a.events("epoch") == 2);
}

TEST_CASE("with wait_replicas a message counts when the replicas have it") {
    if (!has_redis()) return;
    redis_server primary;
    redis_server replica;
    replica.follow(primary);
    auto o = options_for(primary);
    o.wait_replicas = 1;
    o.wait_time = 2s;
    node a(o);
    a.until_up();
    CHECK(a.publish("x").number > 0);
    CHECK(!a.publish("not stored", 20s, false).failed);
    replica.freeze();
    CHECK(a.publish("y").failed == sse::errc::bus_timeout);
    replica.thaw();
    redis_server::wait_until("never confirmed", [&] { return !a.publish("z").failed; });
    CHECK(a.hears("z"));
}

TEST_CASE("the clock stands still: numbers go on before they have no room") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    const auto ahead = std::chrono::duration_cast<std::chrono::milliseconds>(
        (std::chrono::system_clock::now() + 1h).time_since_epoch());
    const auto ms = std::to_string(ahead.count());
    redis.command({"XADD", "sse:messages", ms + "-1", "m", "x"});
    redis.command({"XADD", "sse:messages", ms + "-8388600", "m", "y"});
    redis.command({"XADD", "sse:messages", ms + "-8388700", "m", "z"});
    REQUIRE(a.hears("z"));
    redis_server::wait_until("no mark", [&] {
        return redis.text({"LINDEX", "sse:epochs", "0"})
            .starts_with(std::to_string(ahead.count() + 1) + "-0 ");
    });
    CHECK(a.publish("after").number > 0);
    REQUIRE(a.hears("after"));
    CHECK(a.told() == "x y z after");
    CHECK(a.events("epoch") == 1);
    CHECK(a.events("a number that does not rise") == 0);
    // Where there is no room all the same, a new epoch says so.
    redis.command({"XADD", "sse:messages", std::to_string(ahead.count() + 1) + "-16777216", "m",
                   "no number"});
    REQUIRE(a.was_told(" rewound"));
    CHECK(!a.publish("end").failed);
    REQUIRE(a.hears("end"));
    CHECK(a.told() == "x y z after end");
}

TEST_CASE("what other programs add to the stream is left out") {
    if (!has_redis()) return;
    redis_server redis;
    node a(options_for(redis));
    a.until_up();
    redis.command({"XADD", "sse:messages", "*", "other", "field"});
    redis.command({"XADD", "sse:messages", "*", "m", "x", "y", "z"});
    redis.command({"XADD", "sse:messages", "*", "e", "x", "b", "y", "w", "z"});
    CHECK(!a.publish("end").failed);
    CHECK(a.hears("end"));
    CHECK(a.told() == "end");
}

// --- what stands between

TEST_CASE("replies that end at any byte") {
    if (!has_redis()) return;
    redis_server redis;
    proxy between(redis.port());
    auto o = options_for(redis);
    o.addresses = {"127.0.0.1:" + std::to_string(between.port())};
    o.block = 20ms;
    node direct(options_for(redis));
    direct.until_up();
    node a(o);
    a.until_up();
    outcomes sent;
    std::size_t count = 0;
    for (std::size_t cut = 1; cut < 7'000; cut += cut < 300 ? 29 : 511) {
        between.cut_after(cut);
        between.cut_all();
        a.publish(std::to_string(count++), sent, 60s);
        CHECK(between.wait_for_cuts(cut < 5'000 ? 3 : 1)); // later only who reads much gets there
        between.cut_after(0); // one that works, so that the next is tried soon
        a.publish(std::to_string(count++), sent, 60s);
        sent.wait_for(count);
    }
    between.cut_after(0);
    between.cut_all();
    for (const auto& one : sent.wait_for(count)) CHECK(!one.failed);
    CHECK(!a.publish("end", 60s).failed);
    CHECK(a.hears("end"));
    CHECK(direct.hears("end"));
    check_alike(a, direct);
    std::set<std::string> heard;
    for (const auto& m : a.sink.now().messages) heard.insert(m.bytes);
    CHECK(heard.size() == count + 1);
    CHECK(a.events("epoch") == 1);
    CHECK(a.events("hole") == 0);
}

TEST_CASE("what is not Redis is said, and tried again") {
    if (!has_redis()) return;
    redis_server redis;
    proxy between(redis.port());
    auto o = options_for(redis);
    o.addresses = {"127.0.0.1:" + std::to_string(between.port())};
    o.connect_timeout = 200ms;
    for (const char* reply :
         {"HTTP/1.1 400 Bad Request\r\n\r\n", "\r\n\r\n", "$-5\r\n", "*-7\r\n", ":x\r\n",
          "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", "+OK\r\n", ":1\r\n", "$-1\r\n",
          "*0\r\n", "*-1\r\n", "*1\r\n$-1\r\n", "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
          "-ERR unknown command\r\n", "$5\r\nab"}) {
        CAPTURE(std::string(reply));
        between.answer_with(reply);
        recording_sink sink;
        const auto bus = sse::redis_bus(o);
        try {
            bus->attach(sink, plenty);
            CHECK(sink.wait_until([](auto& s) { return s.is_up == false && !s.why.empty(); }));
        } catch (const std::runtime_error& e) { // what says that it never works
            CHECK(std::string(e.what()).find("Redis") != std::string::npos);
        }
        bus->detach();
        CHECK(sink.now().events == std::vector<std::string>(sink.now().events.size(), "down"));
    }
    between.answer_with("");
    node a(o);
    a.until_up();
    CHECK(!a.publish("x").failed);
}

// --- all of it at once

namespace {

/// Servers that publish all the time, while something happens to Redis.
class storm {
public:
    explicit storm(sse::redis_options o) {
        for (int i = 0; i < 3; ++i) nodes_.push_back(std::make_unique<node>(o));
        for (auto& n : nodes_) n->until_up();
        for (std::size_t i = 0; i < nodes_.size(); ++i) {
            publishers_.emplace_back([this, i] { publish(i); });
        }
    }
    ~storm() { stop(); }

    void stop() {
        over_ = true;
        for (auto& p : publishers_) p.join();
        publishers_.clear();
    }
    /// Waits until all is told to all.
    void settle() {
        stop();
        for (auto& n : nodes_) n->until_up();
        redis_server::wait_until("a message without an end", [&] { return answered_ == sent_; });
        CHECK(!nodes_[0]->publish("end").failed);
        for (auto& n : nodes_) {
            REQUIRE(n->sink.wait_until([](auto& s) {
                return std::any_of(s.messages.rbegin(), s.messages.rend(),
                                   [](auto& m) { return m.bytes == "end"; });
            }));
        }
    }
    /// Nowhere does a number belong to two messages, and numbers rise.
    void check_numbers() {
        std::map<std::pair<std::string, std::uint64_t>, std::string> all;
        for (auto& n : nodes_) {
            CHECK(n->events("a number that does not rise") == 0);
            for (const auto& m : n->sink.now().messages) {
                const auto [at, is_new] = all.try_emplace({m.epoch, m.number}, m.bytes);
                CHECK(at->second == m.bytes);
            }
        }
    }
    std::size_t missing(node& n) {
        std::set<std::string> heard;
        for (const auto& m : n.sink.now().messages) heard.insert(m.bytes);
        std::size_t count = 0;
        for (const auto& [number, bytes] : confirmed_) count += heard.count(bytes) == 0;
        return count;
    }
    /// Whether each publisher was told the number under which all were told its message.
    bool numbers_agree() {
        std::set<std::pair<std::uint64_t, std::string>> heard;
        for (const auto& m : nodes_[0]->sink.now().messages) heard.insert({m.number, m.bytes});
        return std::all_of(confirmed_.begin(), confirmed_.end(),
                           [&](const auto& c) { return heard.count(c) == 1; });
    }
    std::vector<std::unique_ptr<node>>& nodes() { return nodes_; }
    std::size_t confirmed() const { return confirmed_.size(); }

private:
    void publish(std::size_t who) {
        for (int i = 0; !over_; ++i) {
            const auto bytes = std::to_string(who) + "-" + std::to_string(i);
            ++sent_;
            (*nodes_[who])
                ->publish(bytes, true, 20s, [=, this](std::error_code failed, std::uint64_t n) {
                    const std::lock_guard lock(mutex_);
                    if (!failed) confirmed_.emplace_back(n, bytes);
                    ++answered_;
                });
            if (i % 4 == 0) std::this_thread::sleep_for(1ms);
        }
    }

    std::mutex mutex_;
    std::vector<std::pair<std::uint64_t, std::string>> confirmed_;
    std::vector<std::unique_ptr<node>> nodes_;
    std::vector<std::thread> publishers_;
    std::atomic<std::size_t> sent_{0};
    std::atomic<std::size_t> answered_{0};
    std::atomic<bool> over_{false};
};

} // namespace

TEST_CASE("Redis is killed, cut and frozen all the time: nothing is lost, all are told alike") {
    if (!has_redis()) return;
    redis_server redis(durable);
    storm all(durable_options_for(redis));
    for (int round = 0; round < 12; ++round) {
        std::this_thread::sleep_for(100ms);
        if (round % 3 == 0) redis.restart();
        if (round % 3 == 1) redis.command({"CLIENT", "KILL", "TYPE", "normal"});
        if (round % 3 != 2) continue;
        redis.freeze();
        std::this_thread::sleep_for(100ms);
        redis.thaw();
    }
    all.settle();
    all.check_numbers();
    CHECK(all.confirmed() > 100);
    CHECK(all.numbers_agree());
    for (auto& n : all.nodes()) {
        CHECK(all.missing(*n) == 0);
        CHECK(n->events("epoch") == 1);
        CHECK(n->events("hole") == 0);
    }
    check_alike(*all.nodes()[0], *all.nodes()[1]);
    check_alike(*all.nodes()[0], *all.nodes()[2]);
}

TEST_CASE("replicas that lag are promoted again and again: what is lost is told") {
    if (!has_redis()) return;
    redis_server one;
    redis_server two;
    two.follow(one);
    auto o = options_for(one);
    o.addresses = {one.address(), two.address()};
    storm all(o);
    redis_server* primary = &one;
    redis_server* replica = &two;
    for (int round = 0; round < 6; ++round) {
        std::this_thread::sleep_for(100ms);
        replica->command({"REPLICAOF", "127.0.0.1", "1"});
        std::this_thread::sleep_for(50ms);
        primary->kill();
        replica->promote();
        std::swap(primary, replica);
        std::this_thread::sleep_for(100ms);
        replica->arguments() = {"--replicaof", "127.0.0.1 " + std::to_string(primary->port())};
        replica->start();
        redis_server::wait_until("no replication",
                                 [&] { return replica->info_has("master_link_status:up"); });
    }
    all.settle();
    all.check_numbers();
    CHECK(all.confirmed() > 100);
    for (auto& n : all.nodes()) {
        CHECK((all.missing(*n) == 0 || n->events("epoch") > 1));
        CHECK(n->events("epoch") <= 8);
        CHECK(n->events("hole") == 0);
        CHECK(n->sink.now().epoch == all.nodes()[0]->sink.now().epoch);
    }
}

} // namespace redis_test
