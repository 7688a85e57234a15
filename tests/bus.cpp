// bus.cpp - covers >>bus, >>cluster, >>relay: several servers on one bus, in memory: one order, ids
// that are valid on each of them and after a restart, what clients are told when the bus loses
// something, and streams that are reached, listed and ended from every server.
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/memory_bus.hpp"
#include "support/server.hpp"

#include <asio/use_future.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <map>
#include <set>
#include <thread>

namespace bus_test {

using namespace std::chrono_literals;
using namespace support;
using sse::errc;
using sse::gap_reason;

namespace {

sse::options on(const std::shared_ptr<memory_store>& store, std::size_t threads = 1) {
    sse::options o = with_threads(threads);
    o.bus = std::make_shared<memory_bus>(store);
    o.timeouts.body = 40ms; // so that deadlines are looked at every few milliseconds
    return o;
}

header_list resuming(std::string id) { return {{"Last-Event-ID", std::move(id)}}; }

/// The next event: its data, or what a gap says.
std::string text_of(const decoded& event) {
    if (event.type != "gap") return event.data;
    const std::size_t at = event.data.find("\"reason\":\"") + 10;
    return "[" + event.data.substr(at, event.data.find('"', at) - at) + "]";
}

/// The next so many, separated by spaces.
std::string next(event_client& client, std::size_t count) {
    std::string all;
    for (; count > 0; --count) all += (all.empty() ? "" : " ") + text_of(client.next());
    return all;
}

void publish(sse::server& server, int first, int last) {
    for (int n = first; n <= last; ++n) server.publish("/t", {.data = std::to_string(n)});
}

std::error_code failure_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const std::system_error& e) { return e.code(); }
    return {};
}

std::string id_of(const std::shared_ptr<memory_store>& store, int n) {
    return store->with([](const auto& s) { return s.epoch; }) + "-" + std::to_string(n);
}

} // namespace

TEST_SUITE_BEGIN("bus");

TEST_CASE("what is published comes back from the bus, with its number and the bus's epoch") {
    const auto store = std::make_shared<memory_store>();
    running_server server(on(store));
    event_client client(server.port(), "/subscribe/t");
    CHECK(server.publish("/t", {.event = "e", .data = "one"}) == 1);
    CHECK(server.broadcast({.data = "two"}) == 2);
    const decoded first = client.next();
    CHECK(first.type == "e");
    CHECK(first.id == "memory00-1");
    CHECK(first.data == "one");
    CHECK(client.next().id == "memory00-2");
    CHECK(server.last_id() == "memory00-2");
    CHECK(!server.try_publish("/t", {.data = "three"}));
    CHECK(client.next().data == "three");
}

TEST_CASE("an id older than the server's history is served from the bus, then from the history") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    o.history.messages = 10;
    {
        running_server before(o);
        for (int n = 1; n <= 1'000; ++n) {
            before.publish(n % 2 == 0 ? "/t" : "/u", {.data = std::to_string(n)});
        }
    }
    const auto numbers = [](event_client& client, int from, int to, int step) {
        for (int n = from; n <= to; n += step) {
            const decoded event = client.next();
            REQUIRE(event.data == std::to_string(n));
            REQUIRE(event.id == "memory00-" + std::to_string(n));
        }
    };
    sse::options small = on(store, 2);
    small.history.messages = 10;
    running_server server(small);
    event_client plain(server.port(), "/subscribe/t", resuming("memory00-5"));
    numbers(plain, 6, 1'000, 2);
    event_client several(server.port(), "/subscribe?topic=/t&topic=/u", resuming("memory00-1"));
    numbers(several, 2, 1'000, 1);
    event_client all(server.port(), "/subscribe", resuming("memory00-0"));
    numbers(all, 1, 1'000, 1);
    server.publish("/t", {.data = "1001"});
    numbers(plain, 1'001, 1'001, 1);
    numbers(several, 1'001, 1'001, 1);
    numbers(all, 1'001, 1'001, 1);
    // The server's own log forgets too: what it has dropped since comes from the bus as well.
    for (int n = 1'002; n <= 1'100; ++n) server.publish("/t", {.data = std::to_string(n)});
    event_client again(server.port(), "/subscribe/t", resuming("memory00-1001"));
    numbers(again, 1'002, 1'100, 1);
}

TEST_CASE("from the bus: many clients at once, while messages go on") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store, 2);
    o.history.messages = 10;
    running_server server(o);
    for (int n = 1; n <= 600; ++n) server.publish("/t", {.data = std::to_string(n)});
    std::vector<std::unique_ptr<event_client>> clients;
    for (int i = 0; i < 60; ++i) {
        clients.push_back(std::make_unique<event_client>(
            server.port(), "/subscribe/t", resuming("memory00-" + std::to_string(i * 9))));
        server.publish("/t", {.data = std::to_string(601 + i)});
    }
    for (int i = 0; i < 60; ++i) {
        for (int n = i * 9 + 1; n <= 660; ++n) {
            REQUIRE(clients[static_cast<std::size_t>(i)]->next().data == std::to_string(n));
        }
    }
}

TEST_CASE("from the bus: a held subscription delivers nothing of it before the snapshot") {
    sse::options o = on(std::make_shared<memory_store>());
    o.history.messages = 10;
    std::atomic<bool> came{false};
    running_server server(o, [&](sse::server& s) {
        s.route("GET", "/held", [&](sse::stream& client) -> handler_result {
            client.subscribe("/t", {.from = sse::start::after("memory00-5"),
                                    .filter = [&](const sse::published&) { return came = true; },
                                    .held = true});
            while (!came) co_await client.sleep_for(1ms);
            co_await client.send({.data = "snapshot"});
            client.resume();
            co_await client.closed();
        });
    });
    event_client live(server.port(), "/subscribe/t");
    publish(server, 1, 50);
    while (live.next().data != "50") {} // so its history has left the others behind
    event_client client(server.port(), "/held");
    CHECK(next(client, 1) == "snapshot");
    publish(server, 51, 51);
    for (int n = 6; n <= 51; ++n) REQUIRE(next(client, 1) == std::to_string(n));
}

TEST_CASE("what the bus no longer has either, or more than one client may have, is a gap") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    o.history.messages = 10;
    o.history.from_bus = 300;
    running_server server(o);
    event_client live(server.port(), "/subscribe/t");
    for (int n = 1; n <= 1'000; ++n) server.publish("/t", {.data = std::to_string(n)});
    while (live.next().data != "1000") {} // so its history has left the others behind
    event_client far(server.port(), "/subscribe/t", resuming("memory00-100"));
    const decoded first = far.next();
    CHECK(first.data == "101"); // some pages, then it is enough
    decoded event = far.next();
    int last = 101;
    for (; event.type != "gap"; event = far.next()) REQUIRE(event.data == std::to_string(++last));
    CHECK(last >= 400);
    CHECK(last < 900);
    CAPTURE(event.data);
    CAPTURE(last);
    CHECK(event.data.find("\"too_old\",\"from\":\"memory00-" + std::to_string(last) + "\"") !=
          std::string::npos);
    CHECK(next(far, 1) == "991");
    store->trim(950);
    event_client trimmed(server.port(), "/subscribe/t", resuming("memory00-940"));
    CHECK(next(trimmed, 2) == "[too_old] 991");
    event_client kept(server.port(), "/subscribe/t", resuming("memory00-960"));
    CHECK(next(kept, 2) == "961 962");
    sse::options none = on(store);
    none.history.messages = 10;
    none.history.from_bus = 0;
    running_server other(none);
    event_client without(other.port(), "/subscribe/t", resuming("memory00-960"));
    CHECK(next(without, 2) == "[too_old] 991");
}

TEST_CASE("an id whose place the history has forgotten is not replaced by an older one") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    o.history.messages = 10;
    o.history.topics = {{"/kept", 100}};
    running_server server(o);
    event_client steady(server.port(), "/subscribe/t");
    publish(server, 1, 20);
    server.publish("/kept", {.data = "21"});
    publish(server, 22, 40);
    REQUIRE(next(steady, 39).ends_with(" 40"));
    store->trim(18);
    event_client client(server.port(), "/subscribe/kept", resuming("memory00-15"));
    const decoded gap = client.next();
    CHECK(text_of(gap) == "[too_old]");
    CHECK(gap.id == "memory00-15"); // with an older one it would get more than it lacks
    CHECK(next(client, 1) == "21");
}

TEST_CASE("numbers that no message has are not a gap") {
    const auto store = std::make_shared<memory_store>();
    store->with([](auto& s) { s.newest = 5; });
    running_server server(on(store));
    event_client client(server.port(), "/subscribe/t", resuming("memory00-3"));
    server.publish("/t", {.data = "6"});
    CHECK(next(client, 1) == "6");
}

TEST_CASE("several servers have one order, and a client goes on at another with the id it has") {
    const auto store = std::make_shared<memory_store>();
    store->with([](auto& s) { s.step = 10; }); // numbers need not be dense
    running_server a(on(store, 2)), b(on(store, 2));
    event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    for (int n = 1; n <= 6; ++n) publish(n % 2 == 0 ? a : b, n, n);
    CHECK(next(at_a, 6) == "1 2 3 4 5 6");
    CHECK(next(at_b, 6) == "1 2 3 4 5 6");
    CHECK(at_a.decoder().last_event_id() == "memory00-60");
    event_client moved(b.port(), "/subscribe/t", resuming("memory00-30"));
    CHECK(next(moved, 3) == "4 5 6");
    b.publish("/t", {.data = "7"});
    CHECK(next(moved, 1) == "7");
    CHECK(next(at_a, 1) == "7");
}

TEST_CASE("a server that starts has the history, within its bounds") {
    const auto store = std::make_shared<memory_store>();
    { publish(*std::make_unique<running_server>(on(store)), 1, 30); }
    sse::options o = on(store);
    o.history.messages = 10;
    running_server server(o);
    event_client oldest(server.port(), "/subscribe/t?from=oldest");
    CHECK(next(oldest, 10) == "21 22 23 24 25 26 27 28 29 30");
    event_client last(server.port(), "/subscribe/t?last=2");
    CHECK(next(last, 2) == "29 30");
    event_client resumed(server.port(), "/subscribe/t", resuming("memory00-25"));
    CHECK(next(resumed, 5) == "26 27 28 29 30");
    event_client edge(server.port(), "/subscribe/t", resuming("memory00-20"));
    CHECK(next(edge, 1) == "21");
    event_client since(server.port(), "/subscribe/t?since=1");
    CHECK(next(since, 1) == "21");
}

TEST_CASE("history.age counts from when the bus stored a message") {
    const auto store = std::make_shared<memory_store>();
    { publish(*std::make_unique<running_server>(on(store)), 1, 4); }
    store->with([](auto& s) {
        s.numbered(1).time -= 2h;
        s.numbered(2).time -= 2h;
    });
    sse::options o = on(store);
    o.history.age = 1h;
    running_server server(o);
    event_client client(server.port(), "/subscribe/t?from=oldest");
    CHECK(next(client, 2) == "3 4");
    const auto an_hour_ago = std::chrono::duration_cast<std::chrono::seconds>(
                                 (std::chrono::system_clock::now() - 50min).time_since_epoch())
                                 .count();
    event_client since(server.port(), "/subscribe/t?since=" + std::to_string(an_hour_ago));
    CHECK(next(since, 2) == "3 4");
}

TEST_CASE("with the bus away at the start clients wait, and then get what they missed") {
    const auto store = std::make_shared<memory_store>();
    { publish(*std::make_unique<running_server>(on(store)), 1, 5); }
    store->set_down(true);
    running_server server(on(store));
    CHECK(server.last_id().empty());
    event_client resumed(server.port(), "/subscribe/t", resuming("memory00-3"));
    event_client fresh(server.port(), "/subscribe/t");
    event_client oldest(server.port(), "/subscribe/t?from=oldest");
    CHECK(failure_of([&] { server.publish("/t", {.data = "x"}); }) == errc::bus_down);
    CHECK(server.try_publish("/t", {.data = "x"}) == errc::bus_down);
    CHECK(eventually([&] {
        const std::string health = http_get(server.port(), "/health").body;
        return health.find("Bus: down: the test took it away\n") != health.npos;
    }));
    store->set_down(false);
    CHECK(next(resumed, 2) == "4 5");
    CHECK(next(oldest, 5) == "1 2 3 4 5");
    publish(server, 6, 6);
    CHECK(next(fresh, 1) == "6");
    CHECK(next(resumed, 1) == "6");
    CHECK(http_get(server.port(), "/health").body.find("Bus: up\n") != std::string::npos);
}

TEST_CASE("while the bus is away streams stay open, publishing fails, and nothing is lost") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    std::mutex mutex;
    std::vector<std::string> warned;
    const auto has_warned = [&](const std::string& of) {
        const std::lock_guard lock(mutex);
        return std::find(warned.begin(), warned.end(), of) != warned.end();
    };
    o.hooks.log = [&](const sse::log_entry& e) {
        const std::lock_guard lock(mutex);
        if (e.what == "bus" && e.level == sse::log_level::warning) warned.emplace_back(e.detail);
    };
    running_server server(o);
    event_client client(server.port(), "/subscribe/t");
    publish(server, 1, 1);
    CHECK(next(client, 1) == "1");
    CHECK(!has_warned("up"));
    store->set_down(true);
    CHECK(failure_of([&] { publish(server, 2, 2); }) == errc::bus_down);
    CHECK(eventually([&] { return has_warned("down: the test took it away"); }));
    event_client meanwhile(server.port(), "/subscribe/t", resuming("memory00-0"));
    CHECK(next(meanwhile, 1) == "1");
    store->set_down(false);
    publish(server, 3, 3);
    CHECK(next(client, 1) == "3");
    CHECK(next(meanwhile, 1) == "3");
    CHECK(eventually([&] { return has_warned("up"); }));
}

TEST_CASE("the bus lost everything: each client is told, in order, and once") {
    const auto store = std::make_shared<memory_store>();
    running_server server(on(store));
    event_client plain(server.port(), "/subscribe/t");
    event_client several(server.port(), "/subscribe?topic=/t&topic=/u");
    publish(server, 1, 2);
    CHECK(next(plain, 2) == "1 2");
    CHECK(next(several, 2) == "1 2");
    store->lose(gap_reason::epoch);
    publish(server, 3, 3);
    const decoded told = plain.next();
    CHECK(told.type == "gap");
    CHECK(told.data == R"({"reason":"epoch","from":"memory00-2","to":"memory11-0"})");
    CHECK(told.id == "memory11-0");
    CHECK(plain.next().id == "memory11-1");
    CHECK(next(several, 2) == "[epoch] 3");
    // Who comes back with an id of before passes the same place; who has one of now does not.
    event_client before(server.port(), "/subscribe/t", resuming("memory00-1"));
    CHECK(next(before, 3) == "2 [epoch] 3");
    event_client after(server.port(), "/subscribe/t", resuming("memory11-0"));
    CHECK(next(after, 1) == "3");
    // Who has more of the old epoch than is left is told no older id of it first.
    connection beyond(server.port());
    beyond.send_request("GET", "/subscribe/t", resuming("memory00-9"));
    CHECK(beyond.read_head().status == 200);
    CHECK(beyond.read_through("id: ").find("gap") != std::string::npos);
    CHECK(beyond.read_through("\n\n").find("memory11-0") != std::string::npos);
    event_client oldest(server.port(), "/subscribe/t?from=oldest");
    CHECK(next(oldest, 4) == "1 2 [epoch] 3");
    // A server that has never seen the old epoch says that it does not know it.
    running_server other(on(store));
    event_client elsewhere(other.port(), "/subscribe/t", resuming("memory00-1"));
    CHECK(next(elsewhere, 2) == "[epoch] 3");
}

TEST_CASE("a client that is behind is told of the loss at its place") {
    const auto store = std::make_shared<memory_store>();
    running_server server(on(store));
    event_client live(server.port(), "/subscribe/t");
    publish(server, 1, 3);
    CHECK(next(live, 3) == "1 2 3"); // so it has read them
    store->lose(gap_reason::rewound);
    publish(server, 4, 5);
    CHECK(next(live, 3) == "[rewound] 4 5");
    store->lose(gap_reason::epoch);
    publish(server, 6, 6);
    event_client client(server.port(), "/subscribe/t?from=oldest");
    CHECK(next(client, 8) == "1 2 3 [rewound] 4 5 [epoch] 6");
}

TEST_CASE("an id of an ended epoch that the history has left is told what it missed since") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    o.history.messages = 3;
    running_server server(o);
    event_client live(server.port(), "/subscribe/t");
    publish(server, 1, 6);
    CHECK(next(live, 6) == "1 2 3 4 5 6");
    store->lose(gap_reason::rewound);
    for (int n = 7; n <= 40; ++n) {
        publish(server, n, n);
        CHECK(next(live, n == 7 ? 2 : 1) == (n == 7 ? "[rewound] 7" : std::to_string(n)));
    }
    event_client back(server.port(), "/subscribe/t", resuming("memory00-3"));
    const std::string first = next(back, 1);
    CHECK((first == "[epoch]" || first == "[too_old]"));
    CHECK(next(back, 1) == "38");
}

TEST_CASE("the gap hook runs for what the bus lost, once for each client") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    std::atomic<int> runs{0};
    o.hooks.on_gap = [&runs](sse::stream& s, const sse::gap& g) -> asio::awaitable<void> {
        ++runs;
        const std::string text = "snapshot after " + std::string(to_string(g.reason));
        co_await s.send({.data = text});
    };
    running_server server(o);
    event_client client(server.port(), "/subscribe/t");
    publish(server, 1, 1);
    CHECK(next(client, 1) == "1");
    store->lose(gap_reason::rewound);
    publish(server, 2, 2);
    CHECK(next(client, 2) == "snapshot after rewound 2");
    CHECK(runs == 1);
}

TEST_CASE("what the bus dropped before this server read it is told as a gap") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    running_server a(o), b(on(store));
    event_client client(a.port(), "/subscribe/t");
    publish(b, 1, 2);
    CHECK(next(client, 2) == "1 2");
    engine->stall(true);
    publish(b, 3, 9);
    store->trim(7);
    engine->stall(false);
    CHECK(next(client, 3) == "[too_old] 8 9");
    CHECK(client.decoder().last_event_id() == "memory00-9");
    event_client at_hole(a.port(), "/subscribe/t", resuming("memory00-4"));
    CHECK(next(at_hole, 3) == "[too_old] 8 9");
    event_client at_its_end(a.port(), "/subscribe/t", resuming("memory00-7"));
    CHECK(next(at_its_end, 2) == "8 9");
}

TEST_CASE("a message that the bus stored twice reaches clients once") {
    const auto store = std::make_shared<memory_store>();
    running_server a(on(store)), b(on(store));
    event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    store->with([](auto& s) { s.replies_to_lose = 2; });
    publish(a, 1, 3);
    CHECK(next(at_a, 3) == "1 2 3");
    CHECK(next(at_b, 3) == "1 2 3");
    CHECK(at_a.decoder().last_event_id() == at_b.decoder().last_event_id());
}

TEST_CASE("a message that the bus lost, and stores when its publisher repeats it, is not taken for "
          "a copy") {
    const auto store = std::make_shared<memory_store>();
    running_server a(on(store)), b(on(store));
    event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    publish(a, 1, 3);
    CHECK(next(at_a, 3) == "1 2 3");
    CHECK(next(at_b, 3) == "1 2 3");
    const auto [kept, lost] =
        store->with([](auto& s) { return std::pair(s.numbered(2).bytes, s.numbered(3).bytes); });
    store->cut(2);
    store->repeat(kept); // its reply was lost too, but not the message
    store->repeat(lost);
    publish(a, 4, 4);
    CHECK(next(at_a, 3) == "[rewound] 3 4");
    CHECK(next(at_b, 3) == "[rewound] 3 4");
    // Who did not see the first copy gets the second.
    event_client other(b.port(), "/subscribe/t", resuming("memory11-2"));
    CHECK(next(other, 2) == "3 4");
    event_client before(b.port(), "/subscribe/t", resuming("memory00-1"));
    CHECK(next(before, 5) == "2 3 [rewound] 3 4"); // it was stored under that id, once
}

TEST_CASE("a client that is ahead of its new server waits for it, and gets nothing twice") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    running_server a(on(store)), b(o);
    event_client at_a(a.port(), "/subscribe/t");
    event_client at_b(b.port(), "/subscribe/t");
    publish(a, 1, 2);
    CHECK(next(at_b, 2) == "1 2");
    engine->stall(true);
    publish(a, 3, 5);
    CHECK(next(at_a, 5) == "1 2 3 4 5");
    event_client moved(b.port(), "/subscribe/t", resuming("memory00-4"));
    event_client several(b.port(), "/subscribe?topic=/t&topic=/u", resuming("memory00-5"));
    engine->stall(false);
    CHECK(next(moved, 1) == "5");
    publish(a, 6, 6);
    CHECK(next(moved, 1) == "6");
    CHECK(next(several, 1) == "6");
    CHECK(next(at_b, 4) == "3 4 5 6");
}

TEST_CASE("a client that has an epoch which its new server has not read yet waits for that too") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    running_server a(on(store)), b(o);
    event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    publish(a, 1, 3);
    CHECK(next(at_a, 3) == "1 2 3");
    CHECK(next(at_b, 3) == "1 2 3");
    engine->stall(true);
    store->lose(gap_reason::rewound);
    publish(a, 4, 5);
    CHECK(next(at_a, 3) == "[rewound] 4 5");
    event_client begun(b.port(), "/subscribe/t", resuming("memory11-0"));
    event_client later(b.port(), "/subscribe/t", resuming("memory11-1"));
    event_client all(b.port(), "/subscribe/t", resuming("memory11-2"));
    CHECK(next(begun, 2) == "4 5"); // from the bus: it has read on meanwhile
    CHECK(next(later, 1) == "5");
    engine->stall(false);
    publish(a, 6, 6);
    CHECK(next(begun, 1) == "6");
    CHECK(next(later, 1) == "6");
    CHECK(next(all, 1) == "6");
    CHECK(next(at_b, 4) == "[rewound] 4 5 6");
}

TEST_CASE("an id that is not in the bus yet when its server learns the epoch waits as well") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    running_server a(on(store)), b(o);
    event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    publish(a, 1, 1);
    CHECK(next(at_a, 1) == "1");
    CHECK(next(at_b, 1) == "1");
    engine->stall(true);
    engine->hold_reads();
    store->lose(gap_reason::rewound);
    publish(a, 2, 3);
    CHECK(next(at_a, 3) == "[rewound] 2 3");
    event_client moved(b.port(), "/subscribe/t", resuming("memory11-2"));
    CHECK(eventually([&] { return engine->held() == 1; })); // its epoch is not known here
    engine->stop_at(1);
    engine->stall(false);
    CHECK(next(at_b, 2) == "[rewound] 2"); // now it is
    engine->let_reads_go();                // and nothing follows the id
    engine->stop_at(100);
    publish(a, 4, 4);
    CHECK(next(at_b, 2) == "3 4");
    CHECK(next(moved, 1) == "4");
}

TEST_CASE("an id that the bus has lost waits until its server has read what is left") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    running_server a(on(store)), b(o);
    event_client at_a(a.port(), "/subscribe/t"), at_b(b.port(), "/subscribe/t");
    publish(a, 1, 2);
    CHECK(next(at_b, 2) == "1 2");
    engine->stall(true);
    publish(a, 3, 5);
    CHECK(next(at_a, 5) == "1 2 3 4 5");
    store->cut(4);
    event_client moved(b.port(), "/subscribe/t", resuming("memory00-5"));
    const std::size_t asked = engine->reads();
    CHECK(eventually([&] { return engine->reads() > asked; })); // it has waited for long
    engine->stall(false);
    publish(a, 6, 6);
    CHECK(next(moved, 2) == "[rewound] 6"); // and not 3 and 4 again
    CHECK(next(at_b, 4) == "3 4 [rewound] 6");
}

TEST_CASE("an id that the bus never gave does not hold a client for good") {
    const auto store = std::make_shared<memory_store>();
    running_server server(on(store));
    publish(server, 1, 2);
    event_client forged(server.port(), "/subscribe/t", resuming("memory00-1000"));
    event_client own(server.port(), "/subscribe/t", resuming("some-id"));
    CHECK(next(forged, 1) == "[unknown]");
    publish(server, 3, 3);
    CHECK(next(forged, 1) == "3"); // it may have had the others
    CHECK(next(own, 4) == "[unknown] 1 2 3");
}

TEST_CASE("users, broadcasts, ephemeral messages and own ids reach the other server") {
    const auto store = std::make_shared<memory_store>();
    const auto with_user = [](sse::options o) {
        o.hooks.authorize = [](const sse::request&) -> asio::awaitable<sse::access> {
            sse::access::terms t;
            t.user = "anna";
            co_return sse::access::grant(std::move(t));
        };
        return o;
    };
    running_server a(on(store)), b(with_user(on(store)));
    event_client client(b.port(), "/subscribe/t");
    a.send_to_user("anna", {.data = "private"});
    a.send_to_user("otto", {.data = "not hers"});
    CHECK(a.publish("/t", {.data = "passing", .ephemeral = true}) == 0);
    CHECK(next(client, 2) == "private passing");
    a.broadcast({.data = "all", .id = "own/1"});
    CHECK(client.next().id == "own/1");
    publish(a, 4, 4);
    CHECK(next(client, 1) == "4");
    event_client back(a.port(), "/subscribe/t", resuming("own/1"));
    CHECK(next(back, 1) == "4");
    CHECK(failure_of([&] { a.publish("/t", {.data = "x", .id = id_of(store, 9)}); }) ==
          errc::reserved_id);
}

TEST_CASE("a handler may publish and wait, although its worker must take what comes back") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    o.ring_capacity = 2;
    o.history.messages = 100;
    running_server server(o, [](sse::server& s) {
        s.route("GET", "/go", [&s](sse::stream& client) -> asio::awaitable<void> {
            for (int n = 1; n <= 20; ++n) s.publish("/t", {.data = "sync"});
            for (int n = 1; n <= 20; ++n) {
                const std::uint64_t number = co_await s.async_publish("/t", {.data = "async"});
                if (number == 0) co_return;
            }
            const std::string text = s.last_id();
            co_await client.respond(200, "text/plain", text);
        });
    });
    event_client client(server.port(), "/subscribe/t");
    CHECK(http_get(server.port(), "/go").status == 200);
    for (int n = 1; n <= 40; ++n) CHECK(client.next().data == (n <= 20 ? "sync" : "async"));
}

TEST_CASE("what cannot work with a bus is refused, and a bus that cannot work ends the start") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = on(store);
    o.history.lag = sse::lag_policy::hold_back;
    CHECK_THROWS_WITH_AS(sse::server{o},
                         "sse::options::history.lag: hold_back makes publishers wait, but with a "
                         "bus they are on other servers too; choose disconnect, skip or conflate",
                         sse::bad_option);
    struct broken final : sse::bus {
        void attach(sink&, const history&) override { throw std::runtime_error("no such folder"); }
        void publish(std::string, bool, std::chrono::milliseconds, published) override {}
        void read(std::string_view, std::uint64_t, std::size_t,
                  std::function<void(page)>) override {}
        void detach() noexcept override {}
    };
    sse::options bad = with_threads(2);
    bad.bus = std::make_shared<broken>();
    sse::server server(bad);
    CHECK(failure_of([&] { server.publish("/t", {.data = "before the start"}); }) ==
          errc::bus_down);
    CHECK_THROWS_WITH(server.start("127.0.0.1:0"), "no such folder");
}

TEST_CASE("on contexts of the program: the history comes, streams end, all is detached") {
    const auto store = std::make_shared<memory_store>();
    { publish(*std::make_unique<running_server>(on(store)), 1, 3); }
    auto io = std::make_unique<asio::io_context>();
    auto server = std::make_unique<sse::server>(*io, on(store));
    server->start("127.0.0.1:0");
    std::thread runs([&] { io->run(); });
    event_client client(server->port(), "/subscribe/t?from=oldest");
    CHECK(next(client, 3) == "1 2 3");
    publish(*server, 4, 4);
    CHECK(next(client, 1) == "4");
    server->stop();
    runs.join();
    server.reset();
    io.reset();
    CHECK(store.use_count() == 1);
}

TEST_CASE("clients that move between servers, while the bus stalls, doubles and is away") {
    dice dice(1611);
    const auto store = std::make_shared<memory_store>();
    constexpr std::size_t servers = 3, clients = 24;
    constexpr int messages = 1'500;
    std::vector<std::shared_ptr<memory_bus>> engines;
    std::vector<std::unique_ptr<running_server>> all;
    for (std::size_t i = 0; i < servers; ++i) {
        sse::options o = on(store, 2);
        engines.push_back(std::static_pointer_cast<memory_bus>(o.bus));
        all.push_back(std::make_unique<running_server>(std::move(o)));
    }
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (std::size_t i = 0; i < clients; ++i) {
        threads.emplace_back([&, seed = dice.below(1'000'000)] {
            std::minstd_rand random(static_cast<unsigned>(seed + 1));
            std::string id = "memory00-0";
            int had = 0;
            while (had < messages) {
                event_client client(all[random() % servers]->port(), "/subscribe/t", resuming(id));
                for (auto left = random() % 200 + 1; left > 0 && had < messages; --left) {
                    const decoded event = client.next();
                    if (event.data != std::to_string(had + 1)) {
                        ++wrong;
                        return;
                    }
                    ++had;
                    id = event.id;
                }
            }
        });
    }
    for (int n = 1; n <= messages; ++n) {
        if (dice.one_in(40)) store->with([](auto& s) { s.replies_to_lose = 1; });
        if (dice.one_in(30)) engines[dice.below(servers)]->stall(true);
        if (dice.one_in(10)) engines[dice.below(servers)]->stall(false);
        if (dice.one_in(100)) {
            store->set_down(true);
            CHECK(failure_of([&] { publish(*all[0], n, n); }) == errc::bus_down);
            store->set_down(false);
        }
        if (dice.one_in(2)) {
            CHECK(!all[dice.below(servers)]->try_publish("/t", {.data = std::to_string(n)}));
        } else {
            publish(*all[dice.below(servers)], n, n);
        }
    }
    for (auto& one : engines) one->stall(false);
    for (auto& one : threads) one.join();
    CHECK(wrong == 0);
}

TEST_SUITE_END();

namespace {

using sse::detail::notice;

/// A server of several, whose clients' header names their user.
sse::options node(const std::shared_ptr<memory_store>& store, std::string name,
                  std::size_t threads = 1) {
    sse::options o = on(store, threads);
    o.node = std::move(name);
    o.hooks.authorize = [](const sse::request& r) -> asio::awaitable<sse::access> {
        co_return sse::access::grant({.user = std::string(r.header("X-User").value_or(""))});
    };
    return o;
}

std::unique_ptr<event_client> client_of(const sse::server& server, const std::string& user,
                                        const std::string& target = "/subscribe/t") {
    return std::make_unique<event_client>(server.port(), target, header_list{{"X-User", user}});
}

/// Such as "anna@a otto@b", sorted.
std::string names_of(const std::vector<sse::stream_info>& all) {
    std::multiset<std::string> names;
    for (const auto& one : all) names.insert(one.user + "@" + one.node);
    std::string text;
    for (const auto& one : names) text += (text.empty() ? "" : " ") + one;
    return text;
}

std::string names_of(const sse::server& server, const sse::stream_filter& which = {}) {
    return names_of(server.streams(which));
}

std::uint64_t id_at(const sse::server& server, const std::string& user) {
    const auto found = server.streams({.user = user, .here = true});
    REQUIRE(found.size() == 1);
    return found[0].id;
}

/// What somebody else on the bus says.
void say(const std::shared_ptr<memory_store>& store, const std::string& bytes) {
    store->with([&](auto& s) { s.all.push_back({0, bytes, std::chrono::system_clock::now()}); });
}

std::vector<notice> said(const std::shared_ptr<memory_store>& store, notice::kind what,
                         std::vector<std::string>& kept) {
    kept = store->with([](const auto& s) {
        std::vector<std::string> all;
        for (const auto& one : s.all) all.push_back(one.bytes);
        return all;
    });
    std::vector<notice> found;
    for (const std::string& bytes : kept) {
        const auto n = sse::detail::decode_notice(bytes);
        if (n && n->what == what) found.push_back(*n);
    }
    return found;
}

} // namespace

TEST_SUITE_BEGIN("cluster");

TEST_CASE("ids of streams are below 2^53, and those of no two servers are the same") {
    const auto store = std::make_shared<memory_store>();
    std::set<std::uint64_t> ids, servers;
    for (const std::size_t threads : {1u, 2u, 3u}) {
        running_server server(on(store, threads));
        std::vector<std::unique_ptr<event_client>> clients;
        for (int i = 0; i < 20; ++i) {
            clients.push_back(std::make_unique<event_client>(server.port(), "/subscribe/t"));
        }
        for (const auto& one : server.streams({.here = true})) {
            CHECK(one.id != 0);
            CHECK(one.id < 1ull << 53);
            CHECK(one.node.size() == 8);
            ids.insert(one.id);
            servers.insert(one.id >> 33);
            server.send_to(one.id, {.data = "yours"}); // its worker is found by its id
        }
        for (auto& client : clients) CHECK(client->next().data == "yours");
    }
    CHECK(ids.size() == 60);
    CHECK(servers.size() == 3);
}

TEST_CASE("without a bus ids count from one on") {
    sse::options o = with_threads(1);
    o.node = "alone";
    running_server server(o);
    event_client a(server.port(), "/subscribe/t");
    const auto all = server.streams();
    REQUIRE(all.size() == 1);
    CHECK(all[0].id == 1);
    CHECK(all[0].node == "alone");
    CHECK(all.missing.empty());
}

TEST_CASE("a name of a server is at most 64 printable characters") {
    for (const std::string& bad :
         {std::string(65, 'x'), std::string("a\nb"), std::string("\xe4")}) {
        sse::options o = with_threads(1);
        o.node = bad;
        CHECK_THROWS_AS(sse::server{o}, sse::bad_option);
    }
    sse::options o = with_threads(1);
    o.node = std::string(64, 'x');
    CHECK_NOTHROW(sse::server{o});
}

TEST_CASE("a message to a stream of another server reaches it alone, in the order of its sender") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a", 2)), b(node(store, "b", 2));
    const auto anna = client_of(a, "anna"), otto = client_of(b, "otto"), eve = client_of(b, "eve");
    const auto id = id_at(b, "otto");
    for (int n = 1; n <= 50; ++n) {
        CHECK(a.send_to(id, {.event = "e", .data = std::to_string(n), .key = "k"}) == 0);
        a.send_to_user("otto", {.data = "u" + std::to_string(n)});
    }
    CHECK(b.send_to(id, {.data = "from its own"}) == 0);
    a.send_to(id + 1'000'000, {.data = "nobody"});
    a.send_to(0, {.data = "nobody"});
    a.send_to(~0ull, {.data = "nobody"});
    a.broadcast({.data = "end"});
    std::string got, last;
    int own = 0;
    for (int i = 0; i < 102; ++i) {
        const decoded event = otto->next();
        if (event.type == "e") got += event.data + " ";
        own += event.data == "from its own" ? 1 : 0; // anywhere: it does not go over the bus
        last = event.data;
    }
    std::string expected;
    for (int n = 1; n <= 50; ++n) expected += std::to_string(n) + " ";
    CHECK(got == expected);
    CHECK(own == 1);
    CHECK(last == "end");
    CHECK(next(*anna, 1) == "end");
    CHECK(next(*eve, 1) == "end");
    CHECK(failure_of([&] { a.send_to(id, {.data = "x", .id = "7"}); }) == errc::ephemeral_id);
    store->set_down(true);
    CHECK(failure_of([&] { a.send_to(id, {.data = "x"}); }) == errc::bus_down);
    CHECK(b.send_to(id, {.data = "near"}) == 0); // needs no bus
    CHECK(next(*otto, 1) == "near");
}

TEST_CASE("a message to one stream that the bus brings twice reaches it once") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a")), b(node(store, "b"));
    const auto otto = client_of(b, "otto");
    const auto id = id_at(b, "otto");
    store->with([](auto& s) { s.replies_to_lose = 1; });
    a.send_to(id, {.data = "once"});
    a.send_to(id, {.data = "then"});
    CHECK(next(*otto, 2) == "once then");
}

TEST_CASE("two servers that give ids alike are both told of a stream, which hears it once") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a"));
    const auto anna = client_of(a, "anna");
    const auto id = id_at(a, "anna");
    const std::uint64_t same = (id >> 33) - 1; // such a node has the same number
    say(store, sse::detail::encode_notice({.node = same, .name = "twin"}));
    const auto has_twin = [&] { return a.streams().missing == std::vector<std::string>{"twin"}; };
    REQUIRE(eventually(has_twin));
    const auto passed_on = [&] {
        return store->with([&](const auto& s) {
            return std::count_if(s.all.begin(), s.all.end(), [&](const auto& one) {
                const auto r = sse::detail::decode_record(one.bytes);
                return r && r->topic == std::to_string(id);
            });
        });
    };
    a.send_to(id, {.data = "once"});
    CHECK(passed_on() == 1);
    a.publish("/t", {.data = "then"}); // behind what came back
    CHECK(next(*anna, 2) == "once then");
    a.revoke(id);
    CHECK_FALSE(anna->next_or_end());
    std::vector<std::string> kept;
    CHECK(said(store, notice::kind::end_stream, kept).size() == 1);
}

TEST_CASE("a stored record for one stream is none: it could have no id") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = node(store, "a");
    std::atomic<int> warnings{0};
    o.hooks.log = [&](const sse::log_entry& e) {
        if (e.detail.find("written by something else") != e.detail.npos) ++warnings;
    };
    running_server a(o);
    const auto anna = client_of(a, "anna");
    const std::string bytes = sse::detail::encode_record({sse::detail::frame::kind::stream,
                                                          std::to_string(id_at(a, "anna")),
                                                          {.data = "x", .ephemeral = true},
                                                          {1, 1}});
    store->with([&](auto& s) {
        s.all.push_back({s.newest += s.step, bytes, std::chrono::system_clock::now()});
    });
    publish(a, 2, 2);
    CHECK(next(*anna, 1) == "2");
    CHECK(warnings == 1);
}

TEST_CASE("streams of all servers are listed, with their server, by user and by topic") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a", 2)), b(node(store, "b", 2)), c(node(store, "c"));
    const auto anna = client_of(a, "anna"), anna_too = client_of(b, "anna", "/subscribe/chat/7"),
               otto = client_of(b, "otto", "/subscribe/chat"),
               eve = client_of(c, "eve", "/subscribe");
    for (const running_server* const one : {&a, &b, &c}) {
        const auto lists = [&](const sse::stream_filter& which, std::string_view names) {
            return eventually([&] { // one of them may take more than a second
                const auto all = one->streams(which);
                return names_of(all) == names && all.missing.empty();
            });
        };
        CHECK(lists({}, "anna@a anna@b eve@c otto@b"));
        CHECK(lists({.user = "anna"}, "anna@a anna@b"));
        CHECK(lists({.topic = "/chat/7"}, "anna@b eve@c otto@b"));
        CHECK(lists({.topic = "chat/77"}, "eve@c otto@b"));
        CHECK(lists({.topic = "/"}, "eve@c"));
        CHECK(lists({.user = "anna", .topic = "/chat/7"}, "anna@b"));
        CHECK(lists({.user = "nobody"}, ""));
    }
    CHECK(names_of(b, {.here = true}) == "anna@b otto@b");
    CHECK(names_of(b, {.user = "otto", .here = true}) == "otto@b");
    sse::stream_list all;
    REQUIRE(eventually([&] {
        all = a.streams({.user = "anna", .topic = "/chat/7"});
        return all.size() == 1;
    }));
    CHECK(all[0].id == b.streams({.user = "anna", .here = true}).at(0).id);
    CHECK(all[0].topics == std::vector<std::string>{"/chat/7"});
    CHECK(all[0].client.to_string() == "127.0.0.1");
    CHECK(all[0].age.count() >= 0);
    CHECK(failure_of([&] { a.streams({.topic = "/../x"}); }) == errc::bad_topic);
    CHECK(failure_of([&] { a.streams({.user = "a\nb"}); }) == errc::bad_key);
}

TEST_CASE("a server that does not know yet who is there says that its list may lack some") {
    const auto store = std::make_shared<memory_store>();
    running_server b(node(store, "b"));
    const auto anna = client_of(b, "anna");
    CHECK(eventually([&] { return b.streams().complete; }));
    store->set_down(true);
    CHECK(eventually([&] { return !b.streams().complete; }));
    running_server a(node(store, "a"));
    CHECK(!a.streams({.user = "anna"}).complete); // and finds none
    CHECK(http_get(a.port(), "/health/ready").status == 503);
    CHECK(http_get(b.port(), "/health/ready").status == 200);
    store->set_down(false);
    REQUIRE(eventually([&] { return http_get(a.port(), "/health/ready").status == 200; }));
    bool was_complete = false;
    CHECK(eventually([&] {
        const auto found = a.streams({.user = "anna"});
        if (found.complete) CHECK(names_of(found) == "anna@b"); // never complete without her
        was_complete |= found.complete;
        return was_complete;
    }));
    CHECK(eventually([&] { return b.streams().complete; }));
    CHECK(a.streams({.user = "nobody"}).empty());
}

TEST_CASE("a handler lists the streams of all servers without holding up its worker") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a"), [](sse::server& s) {
        s.route("GET", "/who", [&s](sse::stream& client) -> asio::awaitable<void> {
            const sse::stream_list all = co_await s.async_streams();
            const std::string text = names_of(all);
            co_await client.respond(200, "text/plain", text);
        });
    });
    running_server b(node(store, "b"));
    const auto anna = client_of(a, "anna"), otto = client_of(b, "otto");
    CHECK(eventually([&] { return http_get(a.port(), "/who").body == "anna@a otto@b"; }));
}

TEST_CASE("whether it was the last stream of a user anywhere is known when it has ended") {
    const auto store = std::make_shared<memory_store>();
    asio::io_context io;
    auto working = asio::make_work_guard(io);
    std::thread runs([&] { io.run(); });
    std::mutex mutex;
    std::string left;
    int looks = 0;
    const auto watched = [&](sse::options o, std::unique_ptr<running_server>& server) {
        o.hooks.on_disconnect = [&](const sse::stream_info& one, sse::end_reason) {
            const auto look = [](sse::server& s,
                                 std::string user) -> asio::awaitable<sse::stream_list> {
                for (;;) {
                    sse::stream_list found = co_await s.async_streams({.user = user});
                    if (found.missing.empty()) co_return found;
                }
            };
            asio::co_spawn(io, look(*server, one.user),
                           [&, user = one.user](std::exception_ptr, sse::stream_list found) {
                               const std::lock_guard lock(mutex);
                               if (found.empty()) left += user + " has left ";
                               ++looks;
                           });
        };
        return o;
    };
    std::unique_ptr<running_server> a, b;
    a = std::make_unique<running_server>(watched(node(store, "a"), a));
    b = std::make_unique<running_server>(watched(node(store, "b"), b));
    auto anna = client_of(*a, "anna"), anna_too = client_of(*b, "anna"),
         otto = client_of(*a, "otto");
    const auto have_left = [&](int after, std::string_view names) {
        REQUIRE(eventually([&] {
            const std::lock_guard lock(mutex);
            return looks == after;
        }));
        const std::lock_guard lock(mutex);
        CHECK(left == names);
    };
    REQUIRE(eventually([&] { return names_of(*a) == "anna@a anna@b otto@a"; }));
    REQUIRE(eventually([&] { return names_of(*b) == "anna@a anna@b otto@a"; }));
    anna.reset();
    otto.reset();
    have_left(2, "otto has left ");
    anna_too.reset();
    have_left(3, "otto has left anna has left ");
    working.reset();
    runs.join();
}

TEST_CASE("a listing larger than a notice comes in parts, and whole") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a")), b(node(store, "b", 2));
    std::string topics = "/subscribe?topic=/t";
    for (int i = 0; i < 60; ++i) topics += "&topic=/" + std::to_string(i) + std::string(100, 'x');
    std::vector<std::unique_ptr<event_client>> clients;
    std::set<std::uint64_t> ids;
    for (int i = 0; i < 40; ++i) clients.push_back(client_of(b, "u" + std::to_string(i), topics));
    for (const auto& one : b.streams({.here = true})) ids.insert(one.id);
    CHECK(ids.size() == 40);
    sse::stream_list all;
    CHECK(eventually([&] {
        all = a.streams();
        return all.size() >= 40 && all.missing.empty();
    }));
    REQUIRE(all.size() == 40);
    for (const auto& one : all) {
        CHECK(ids.erase(one.id) == 1);
        CHECK(one.topics.size() == 61);
    }
    std::vector<std::string> kept;
    const auto parts = said(store, notice::kind::part, kept);
    CHECK(parts.size() >= 3);
    for (const notice& one : parts) CHECK(one.streams.size() <= sse::detail::max_part);
}

TEST_CASE("a server that does not answer is named, and the others are listed") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = node(store, "b");
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    running_server a(node(store, "a")), b(o), c(node(store, "c"));
    const auto anna = client_of(a, "anna"), otto = client_of(b, "otto"), eve = client_of(c, "eve");
    REQUIRE(eventually([&] { return names_of(a) == "anna@a eve@c otto@b"; }));
    engine->stall(true);
    CHECK(eventually([&] {
        const auto all = a.streams();
        return names_of(all) == "anna@a eve@c" && all.missing == std::vector<std::string>{"b"};
    }));
    asio::io_context io;
    auto listed = asio::co_spawn(io, a.async_streams(), asio::use_future);
    io.run();
    const auto missing = listed.get().missing;
    CHECK(std::count(missing.begin(), missing.end(), "b") == 1);
    engine->stall(false);
    CHECK(eventually([&] { return names_of(a) == "anna@a eve@c otto@b"; }));
}

TEST_CASE("a server that stops says so, and one that is silent is taken for gone") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a"));
    const auto anna = client_of(a, "anna");
    {
        running_server b(node(store, "b"));
        const auto otto = client_of(b, "otto");
        REQUIRE(eventually([&] { return names_of(a) == "anna@a otto@b"; }));
    }
    std::vector<std::string> kept;
    CHECK(said(store, notice::kind::gone, kept).size() == 1);
    CHECK(eventually([&] { return a.streams().missing.empty(); }));
    say(store, sse::detail::encode_notice({.node = 7, .name = "silent"}));
    bool was_known = false;
    CHECK(eventually([&] {
        const auto missing = a.streams().missing;
        was_known |= missing == std::vector<std::string>{"silent"};
        return was_known && missing.empty();
    }));
}

TEST_CASE("while the bus is away a listing has what is here, and names the others at once") {
    const auto store = std::make_shared<memory_store>();
    running_server a(node(store, "a")), b(node(store, "b"));
    const auto anna = client_of(a, "anna"), otto = client_of(b, "otto");
    REQUIRE(eventually([&] { return names_of(a) == "anna@a otto@b"; }));
    store->set_down(true);
    const auto all = a.streams();
    CHECK(names_of(all) == "anna@a");
    CHECK(all.missing == std::vector<std::string>{"b"});
    store->set_down(false);
    CHECK(eventually([&] { return names_of(a) == "anna@a otto@b"; }));
}

TEST_CASE("a stream of another server, and all of a user, are ended from here") {
    const auto store = std::make_shared<memory_store>();
    std::atomic<int> revoked{0};
    const auto watched = [&](sse::options o) {
        o.hooks.on_disconnect = [&](const sse::stream_info&, sse::end_reason why) {
            if (why == sse::end_reason::revoked) ++revoked;
        };
        return o;
    };
    running_server a(watched(node(store, "a", 2))), b(watched(node(store, "b", 2)));
    const auto anna = client_of(a, "anna"), anna_too = client_of(b, "anna"),
               anna_three = client_of(b, "anna"), otto = client_of(b, "otto"),
               eve = client_of(b, "eve"), ann = client_of(a, "ann");
    a.revoke(id_at(b, "otto"));
    CHECK_FALSE(otto->next_or_end());
    a.revoke_user("anna");
    for (auto* client : {&anna, &anna_too, &anna_three}) CHECK_FALSE((*client)->next_or_end());
    CHECK(eventually([&] { return revoked == 4; }));
    a.broadcast({.data = "on"});
    CHECK(next(*eve, 1) == "on");
    CHECK(next(*ann, 1) == "on");
    CHECK(failure_of([&] { a.revoke_user(""); }) == errc::bad_key);
    const auto id = id_at(b, "eve");
    store->set_down(true);
    CHECK(failure_of([&] { a.revoke(id); }) == errc::bus_down);
    CHECK(failure_of([&] { a.revoke_user("ann"); }) == errc::bus_down);
    CHECK_FALSE(ann->next_or_end()); // what is here is ended all the same
    b.revoke(id);
    CHECK_FALSE(eve->next_or_end());
    CHECK(revoked == 6);
}

TEST_CASE("a server that stops, or has not begun, lists what is here") {
    const auto store = std::make_shared<memory_store>();
    sse::options o = node(store, "b");
    const auto engine = std::static_pointer_cast<memory_bus>(o.bus);
    sse::server early(node(store, "early"));
    CHECK(early.streams().empty());
    running_server b(o);
    const auto otto = client_of(b, "otto");
    asio::io_context io;
    std::future<sse::stream_list> listed;
    {
        running_server a(node(store, "a"));
        const auto anna = client_of(a, "anna");
        REQUIRE(eventually([&] { return names_of(a) == "anna@a otto@b"; }));
        engine->stall(true);
        listed = asio::co_spawn(io, a.async_streams(), asio::use_future);
        io.poll();
        a.stop();
        a.join();
        CHECK(a.streams().empty());
        CHECK(failure_of([&] { a.revoke_user("otto"); }) == errc::stopped);
    }
    io.run();
    CHECK(listed.get().missing == std::vector<std::string>{"b"});
    engine->stall(false);
}

TEST_CASE("hostile notices do no harm") {
    dice dice(20261202);
    const auto store = std::make_shared<memory_store>();
    sse::options o = node(store, "a", 2);
    std::atomic<int> warnings{0};
    o.hooks.log = [&](const sse::log_entry& e) {
        if (e.detail.find("written by something else") != e.detail.npos) ++warnings;
    };
    running_server a(o), b(node(store, "b"));
    const auto anna = client_of(a, "anna"), otto = client_of(b, "otto");
    REQUIRE(eventually([&] { return names_of(a) == "anna@a otto@b"; }));
    using kind = notice::kind;
    const auto id = id_at(a, "anna");
    std::string streams;
    sse::detail::put_stream(streams, {.id = 9, .user = "forged"});
    const notice some[] = {
        {.what = kind::end_stream, .node = 7, .number = id ^ 0xffffff00},
        {.what = kind::end_user, .node = 7, .user = "nobody"},
        {.what = kind::gone, .node = 7},
        {.what = kind::part, .node = 7, .to = 8, .number = 1, .streams = streams},
        {.what = kind::last_part, .node = 7, .number = 1, .streams = streams},
        {.what = kind::part, .node = 7, .number = 1, .streams = "rubbish"},
        {.what = kind::ask, .node = 7, .number = 1, .user = "anna"}};
    for (int i = 0; i < 2'000; ++i) {
        std::string bytes = sse::detail::encode_notice(some[dice.below(std::size(some))]);
        if (dice.one_in(2)) bytes.resize(dice.below(bytes.size()));
        for (std::size_t n = dice.below(3); n > 0 && bytes.size() > 2; --n) {
            bytes[2 + dice.below(bytes.size() - 2)] = dice.byte();
        }
        say(store, bytes);
    }
    a.broadcast({.data = "on"});
    CHECK(next(*anna, 1) == "on");
    CHECK(next(*otto, 1) == "on");
    CHECK(warnings > 500);
    CHECK(eventually([&] { return names_of(a) == "anna@a otto@b"; }));
    for (std::uint64_t n = 1; n <= 3'000; ++n) { // more servers than any bus has
        say(store, sse::detail::encode_notice({.node = n << 20, .name = "crowd"}));
    }
    a.broadcast({.data = "still"});
    CHECK(next(*anna, 1) == "still");
    CHECK(a.streams().missing.size() <= 1'000);
}

TEST_CASE("on contexts of the program: servers know each other, and the contexts end") {
    const auto store = std::make_shared<memory_store>();
    running_server b(node(store, "b"));
    const auto otto = client_of(b, "otto");
    auto io = std::make_unique<asio::io_context>();
    auto a = std::make_unique<sse::server>(*io, node(store, "a"));
    a->start("127.0.0.1:0");
    std::thread runs([&] { io->run(); });
    auto anna = client_of(*a, "anna");
    CHECK(eventually([&] { return names_of(b) == "anna@a otto@b"; }));
    CHECK(eventually([&] { return names_of(*a) == "anna@a otto@b"; }));
    a->stop();
    runs.join();
    CHECK(eventually([&] { return names_of(b) == "otto@b" && b.streams().missing.empty(); }));
    a.reset();
    io.reset();
}

TEST_SUITE_END();

} // namespace bus_test
