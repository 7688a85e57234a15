// storm.cpp - covers >>worker: nothing is lost: 200 clients are cut at random moments under 1,000
// messages a second while the server is started anew, and each one's record is compared with what
// was published.
//
// STORM_SECONDS=60 in the environment makes the storm so long, for each lag policy; without it the
// storm is short. SSE_TEST_SEED=n throws other dice.
#include "support/dice.hpp"
#include "support/press.hpp"
#include "support/storm.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stop_token>
#include <thread>

namespace storm_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

// ---- the audit itself ---------------------------------------------------------------------------

const std::string first_epoch = "aaaaaaaa", second_epoch = "bbbbbbbb";

std::string id_of(const std::string& epoch, std::uint64_t place) {
    return epoch + "-" + std::to_string(place);
}

/// Two epochs with 10 messages each: /a, /b and everyone in turn.
ledger two_epochs() {
    ledger published;
    std::uint32_t number = 0;
    for (const std::string& epoch : {first_epoch, second_epoch}) {
        published.runs.push_back({epoch, {}});
        for (std::uint64_t place = 1; place <= 10; ++place) {
            const std::string topic = place % 3 == 1 ? "/a" : place % 3 == 2 ? "/b" : "";
            const auto run = static_cast<std::uint8_t>(published.runs.size() - 1);
            published.runs.back().messages.push_back({place, topic, {run, 1, number++}});
        }
    }
    return published;
}

/// A record written by hand, and what the audit says of it.
struct story {
    ledger published = two_epochs();
    client_record record;
    audit_rules rules{{"/"}, 4, {first_epoch, 10}};

    story& opened(const std::string& asked = "", const std::string& head = "") {
        record.opened({asked, "", head});
        return *this;
    }
    story& saw(const std::string& epoch, std::uint64_t place) {
        for (const ledger::run& run : published.runs) {
            if (run.epoch != epoch) continue;
            const message_key key = run.messages.at(place - 1).key;
            record.saw_message({"message", data_of(key), id_of(epoch, place)});
        }
        return *this;
    }
    story& saw(std::uint64_t first, std::uint64_t last) {
        for (std::uint64_t place = first; place <= last; ++place) saw(first_epoch, place);
        return *this;
    }
    story& moved(const std::string& id) {
        record.moved(id);
        return *this;
    }
    story& gap(const std::string& reason, const std::string& from, const std::string& to,
               const std::string& more = "", const std::string& newest = "") {
        const std::string data =
            R"({"reason":")" + reason + R"(","from":")" + from + R"(","to":")" + to + '"' + more;
        record.saw_gap({"gap", data + "}", to}, newest);
        return *this;
    }
    story& ends_in(const std::string& epoch, std::uint64_t place) {
        rules.end = {epoch, place};
        return *this;
    }
    story& follows(std::vector<std::string> topics) {
        rules.followed = std::move(topics);
        return *this;
    }
    std::vector<std::string> faults() const { return audit(record, published, rules).faults; }
    std::uint64_t unaccounted() const { return audit(record, published, rules).unaccounted; }
};

void check_right(const story& s) {
    const auto faults = s.faults();
    CHECK_MESSAGE(faults.empty(), (faults.empty() ? "" : faults.front()));
}

void check_fault(const story& s, std::string_view expected) {
    const auto faults = s.faults();
    const std::string first = faults.empty() ? "no fault was found" : faults.front();
    CHECK_MESSAGE(first.find(expected) != first.npos, first);
}

std::string first(std::uint64_t place) { return id_of(first_epoch, place); }
std::string second(std::uint64_t place) { return id_of(second_epoch, place); }

// ---- the storm ----------------------------------------------------------------------------------

// A sanitizer makes all of it several times slower: then less happens, and for a shorter time. TLS
// does for each client what is done once otherwise, and clients that are cut shake hands again.
constexpr bool with_sanitizer = !memory_is_meaningful;
const std::size_t messages_per_second = with_sanitizer || tls_by_default ? 200 : 500;
const std::size_t client_count = tls_by_default ? 50 : 200;

std::chrono::milliseconds storm_time() {
    const char* const asked = std::getenv("STORM_SECONDS");
    if (asked) return std::chrono::seconds(std::strtol(asked, nullptr, 10));
    return with_sanitizer ? 3s : 5s;
}

/// Sums over all clients, and a failure for each record that is not right.
struct tally {
    std::uint64_t messages = 0, replayed = 0, moves = 0, missing = 0, unaccounted = 0;
    std::map<std::string, std::uint64_t> gaps;
    std::size_t bad_records = 0;
};

tally audit_all(const storm& clients, const ledger& published, std::size_t history, event_id end) {
    tally sum;
    for (std::size_t i = 0; i < clients.size(); ++i) {
        const verdict v = audit(clients.record(i), published, {clients.topics(i), history, end});
        sum.messages += v.messages;
        sum.replayed += v.replayed;
        sum.moves += v.moves;
        sum.missing += v.all_missing();
        sum.unaccounted += v.unaccounted;
        for (const auto& [reason, times] : v.gaps) sum.gaps[reason] += times;
        if (v.faults.empty()) continue;
        if (++sum.bad_records > 5) continue;
        CAPTURE(i);
        CAPTURE(clients.topics(i).front());
        for (const std::string& what : v.faults) FAIL_CHECK(what);
    }
    CHECK(sum.bad_records == 0);
    CHECK(sum.unaccounted == 0);
    return sum;
}

/// Starts the next server while the clients go on as they do.
void restart(service& server, storm& clients, const std::function<void()>& stop) {
    auto done = std::async(std::launch::async, [&] {
        stop();
        server.start();
    });
    const bool in_time =
        clients.run_until([&] { return done.wait_for(0s) == std::future_status::ready; }, 60s);
    done.get();
    REQUIRE(in_time);
}

/// Until each client has an id of the server that runs now. So each has one of every start, and a
/// gap to tell for each restart.
void wait_for_all(const service& server, storm& clients) {
    const bool all =
        clients.run_until([&] { return clients.count_in(server.epoch()) == clients.size(); }, 60s);
    REQUIRE_MESSAGE(all, clients.describe_others({server.epoch(), 0}));
}

void weather_the_storm(sse::lag_policy policy, std::uint64_t chosen_seed) {
    const std::uint64_t seed = dice(chosen_seed).seed();
    sse::options o = with_threads(2);
    o.history.lag = policy;
    o.history.messages = messages_per_second / 2; // half a second: some come back too late
    o.heartbeat = 100ms;
    o.limits.retry_after = 300ms; // who is cut each time it comes back must not need minutes
    service server(o, 4096);
    server.start();
    storm clients(server.port(),
                  {.clients = client_count, .seed = seed, .kinds = all_kinds, .newest = [&] {
                       return server.newest();
                   }});
    press publishers(server, {.messages_per_second = messages_per_second, .seed = seed});

    const auto begin = storm::clock::now();
    const auto run_through_third = [&](int n) {
        const auto end = begin + n * storm_time() / 3;
        clients.run_for(std::chrono::ceil<std::chrono::milliseconds>(end - storm::clock::now()));
        wait_for_all(server, clients);
    };
    run_through_third(1);
    restart(server, clients, [&] { server.stop(); });
    run_through_third(2);
    restart(server, clients, [&] {
        (void)server.drain({.window = 300ms, .farewell = {{.event = "farewell"}}, .retry = 20ms});
    });
    run_through_third(3);
    // What needs a slow client needs luck too, on a slow machine more of it.
    const bool met_all = clients.run_until(
        [&] {
            return clients.was_told_of("too_old") &&
                   (policy == sse::lag_policy::skip ? clients.was_told_of("lapped")
                                                    : server.counters().lagged >= 1);
        },
        60s);
    CHECK(met_all);

    clients.calm();
    ledger published;
    const event_id end = publishers.end(published);
    REQUIRE(publishers.trouble().empty());
    const bool caught_up =
        clients.run_until([&] { return clients.count_at(end) == clients.size(); }, 60s);
    CHECK_MESSAGE(caught_up, clients.describe_others(end));
    server.stop();

    CHECK(published.fault().empty());
    tally sum = audit_all(clients, published, o.history.messages, end);

    MESSAGE(published.size() << " published, " << sum.messages << " received, of them "
                             << sum.replayed << " replayed; " << clients.connects()
                             << " connections, " << clients.refused() << " refused, "
                             << clients.farewells() << " farewells, " << server.counters().lagged
                             << " closed for their lag; " << sum.moves
                             << " bare ids; gaps: " << sum.gaps["epoch"] << " epoch, "
                             << sum.gaps["too_old"] << " too old, " << sum.gaps["lapped"]
                             << " lapped, with " << sum.missing << " missing");
    // Otherwise it was not a storm. How much of each there is depends on how fast the machine is.
    CHECK(clients.times(mischief::early_reset) >= 1);
    CHECK(clients.times(mischief::reset) >= 1);
    CHECK(clients.times(mischief::fin) >= 1);
    CHECK(clients.times(mischief::half_close) >= 1);
    CHECK(clients.times(mischief::cut_at_byte) >= 1);
    CHECK(clients.times(mischief::stall) >= 1);
    CHECK(clients.times(mischief::stall_reset) >= 1);
    CHECK(clients.times(mischief::slow) >= 1);
    CHECK(clients.connects() >= 3 * client_count); // the first, and one for each restart
    CHECK(sum.replayed >= 1);
    CHECK(sum.moves >= 1);
    CHECK(sum.gaps["epoch"] == 2 * client_count); // every client, at every restart, once
    CHECK(sum.gaps["too_old"] >= 1);
    CHECK(sum.missing >= 1);
    CHECK(server.counters().gaps >= sum.gaps["epoch"] + sum.gaps["too_old"] + sum.gaps["lapped"]);
    if (policy == sse::lag_policy::skip) {
        CHECK(sum.gaps["lapped"] >= 1);
    } else {
        CHECK(sum.gaps["lapped"] == 0);
        CHECK(server.counters().lagged >= 1);
    }
}

} // namespace

TEST_SUITE("storm") {
    TEST_CASE("the audit finds nothing in a record that is right") {
        check_right(story().opened().saw(1, 10));
        check_right(story().opened("", first(4)).saw(5, 10));
        check_right(story().opened("", first(9)).saw(5, 10)); // from an older message on: replayed
        check_right(story().opened().saw(1, 4).opened(first(4)).saw(5, 10));
        check_right(story().opened(first(7)).saw(8, 10)); // an id that it was given
        check_right(story().opened().opened().moved(first(6)).saw(7, 10));
        story a = story().follows({"/a"}); // 1, 4, 7, 10 and the broadcasts 3, 6, 9
        a.opened().saw(3, 4).moved(first(5)).saw(6, 7).saw(9, 10);
        check_right(a);
    }

    TEST_CASE("the audit finds a message that came twice") {
        check_fault(story().opened().saw(1, 5).saw(5, 10), "twice: aaaaaaaa-5");
        check_fault(story().opened().saw(1, 5).opened(first(5)).saw(5, 10), "twice: aaaaaaaa-5");
        check_fault(story().opened().moved(first(5)).saw(5, 10), "twice: aaaaaaaa-5");
    }

    TEST_CASE("the audit finds a hole, and says what is in it") {
        const story hole = story().opened().saw(1, 4).saw(7, 10);
        check_fault(hole, "2 unaccounted for before aaaaaaaa-7, the first is 5");
        CHECK(hole.unaccounted() == 2);
        check_fault(story().opened().saw(1, 4).opened(first(4)).saw(6, 10), "the first is 5");
        check_fault(story().opened().saw(1, 4).moved(first(5)).saw(6, 10), "the first is 5");
        check_fault(story().opened("", first(1)).saw(3, 10), "the first is 2");
        check_fault(story().opened("", first(1)).moved(first(2)).saw(3, 10), "the first is 2");
        check_fault(story().opened().saw(1, 9), "1 unaccounted for at the end");
        check_fault(story().opened(), "it never got an id");
        story b = story().follows({"/b"}); // 2, 5, 8 and 3, 6, 9
        b.opened().saw(2, 3).saw(6, 6).saw(8, 9);
        check_fault(b, "the first is 5");
        CHECK(b.unaccounted() == 1);
    }

    TEST_CASE("the audit finds a wrong order") {
        check_fault(story().opened().saw(1, 5).saw(4, 10), "out of order: aaaaaaaa-4");
        check_fault(story().opened().saw(1, 5).moved(first(3)).saw(6, 10),
                    "out of order: aaaaaaaa-3");
    }

    TEST_CASE("the audit finds a wrong epoch") {
        check_fault(story().opened().saw(1, 5).saw(second_epoch, 6), "without a gap");
        check_fault(story().opened().saw(1, 5).moved(second(0)), "without a gap");
        check_fault(story().opened().moved("cccccccc-1"), "in another epoch");
        check_fault(story().opened().saw(1, 10).ends_in(second_epoch, 10), "in another epoch");
    }

    TEST_CASE("the audit finds what was not published so, or not for this client") {
        story other;
        other.record.opened({});
        other.record.saw_message({"message", data_of({0, 1, 3}), first(3)});
        check_fault(other, "under aaaaaaaa-3 came");
        story torn;
        torn.record.opened({});
        torn.record.saw_message({"message", data_of({0, 1, 3}) + "x", first(4)});
        check_fault(torn, "data that nobody published");
        story beyond;
        beyond.record.opened({});
        beyond.record.saw_message({"message", data_of({0, 1, 3}), first(11)});
        check_fault(beyond, "never published");
        story nameless;
        nameless.record.opened({});
        nameless.record.saw_message({"message", data_of({0, 1, 3}), ""});
        check_fault(nameless, "no id of a server");
        check_fault(story().opened().saw(1, 5).moved(""), "the id became");
        check_fault(story().follows({"/b"}).opened().saw(3, 4), "a message of topic /a");
    }

    TEST_CASE("the audit finds a client that forgets its id or comes back with another") {
        check_fault(story().opened().saw(1, 5).opened().saw(6, 10), "without its id");
        check_fault(story().opened().saw(1, 5).opened(first(6)).saw(7, 10), "it came back with");
    }

    TEST_CASE("the audit takes a gap for what it says, and no more") {
        const auto too_old = [](std::uint64_t from, std::uint64_t to, const std::string& more = "",
                                const std::string& newest = "") {
            story s = story().opened().saw(1, 3).opened(first(3));
            return s.gap("too_old", first(from), first(to), more, newest);
        };
        check_right(too_old(3, 6).saw(7, 10));
        check_right(too_old(3, 6, R"(,"missed":3)").saw(7, 10));
        check_right(too_old(3, 6, "", first(10)).saw(7, 10));
        check_fault(too_old(3, 6, R"(,"missed":2)").saw(7, 10), "instead of 3");
        check_fault(too_old(3, 6).saw(8, 10), "the first is 7");
        check_fault(too_old(4, 6).saw(7, 10), "the first is 4"); // it begins too late
        check_fault(too_old(2, 6).saw(7, 10), "out of order");   // it takes back what was there
        check_fault(too_old(3, 6).saw(6, 6).saw(6, 10), "twice: aaaaaaaa-6");
        check_fault(too_old(3, 3).saw(4, 10), "is empty");
        check_fault(too_old(3, 7, "", first(10)).saw(8, 10), "was not needed"); // 4 are kept
        check_fault(too_old(3, 9, "", first(8)).saw(10, 10), "beyond the newest");
        check_fault(story().opened().saw(1, 3).gap("too_old", first(3), first(6)).saw(7, 10),
                    "not the first of its stream");
        check_right(story().opened().saw(1, 3).gap("lapped", first(3), first(9)).saw(10, 10));
        check_fault(story().opened().saw(1, 3).gap("lapped", first(3), second(9)).saw(10, 10),
                    "crosses epochs");
        check_fault(story().opened(first(3)).gap("unknown", first(3), first(6)).saw(7, 10),
                    "no reason that can be here");
        const auto with_id = [](const std::string& id) {
            story s = story().opened(first(3));
            s.record.saw_gap(
                {"gap", R"({"reason":"too_old","from":"aaaaaaaa-3","to":"aaaaaaaa-6"})", id}, "");
            return s;
        };
        check_right(with_id(first(3)).saw(5, 5).saw(7, 10)); // 5 is kept for some reason
        check_right(with_id(first(3)).opened(first(3)).saw(7, 10));
        check_fault(with_id(first(3)).saw(5, 5).saw(4, 10), "out of order: aaaaaaaa-4");
        check_fault(with_id(first(2)).saw(7, 10), "has the id aaaaaaaa-2");
        check_fault(with_id(first(7)).saw(8, 10), "has the id aaaaaaaa-7");
        check_fault(with_id(second(3)).saw(7, 10), "has the id bbbbbbbb-3");
        story garbled = story().opened(first(3));
        garbled.record.saw_gap({"gap", R"({"reason":"too_old"})", first(6)}, "");
        check_fault(garbled, "a gap that says");
    }

    TEST_CASE(
        "the audit wants one gap for a new epoch, from the client's own id to a later start") {
        const auto after = [](std::uint64_t from, const std::string& to,
                              const std::string& newest = "") {
            story s = story().ends_in(second_epoch, 10).opened().saw(1, 3).opened(first(3));
            return s.gap("epoch", first(from), to, "", newest);
        };
        const auto rest = [](story s, std::uint64_t place) {
            for (; place <= 10; ++place) s.saw(second_epoch, place);
            return s;
        };
        check_right(rest(after(3, second(0), second(10)), 1));
        check_right(rest(after(3, second(6), second(10)), 7));
        check_fault(rest(after(3, second(0)), 2), "the first is 1");
        check_fault(rest(after(3, second(7), second(10)), 8), "was not needed");
        check_fault(rest(after(2, second(0)), 1), "from another id than the client's");
        check_fault(rest(after(3, first(4)), 1), "does not go to a later start");
        check_fault(rest(after(3, "cccccccc-0"), 1), "unknown epoch");
    }

    TEST_CASE("the audit adds up: what was due to a client came, or lies in a gap") {
        story s = story().follows({"/a"}).ends_in(second_epoch, 10);
        s.opened("", first(0)).saw(1, 1).saw(3, 4);
        s.opened(first(4)).gap("too_old", first(4), first(7)).saw(9, 10);                 // 6, 7
        s.opened(first(10)).gap("epoch", first(10), second(4)).moved(second(5));          // 1, 3, 4
        s.saw(second_epoch, 6).gap("lapped", second(6), second(9)).saw(second_epoch, 10); // 7, 9
        check_right(s);
        verdict v = audit(s.record, s.published, s.rules);
        CHECK(v.due == 14);
        CHECK(v.messages == 7);
        CHECK(v.missing["too_old"] == 2);
        CHECK(v.missing["epoch"] == 3);
        CHECK(v.missing["lapped"] == 2);

        story early = story().ends_in(second_epoch, 10); // it had not come to the end of the first
        early.opened("", first(0)).saw(1, 3).opened(first(3)).gap("epoch", first(3), second(9));
        v = audit(early.saw(second_epoch, 10).record, early.published, early.rules);
        CHECK(v.due == 20);
        CHECK(v.missing["epoch"] == 16);
        CHECK(v.faults == std::vector<std::string>());
    }

    TEST_CASE("the audit follows a record that is forgotten piece by piece") {
        const auto tell = [](client_record& record, std::uint64_t place) {
            const std::string id = first(place);
            const message_key key{0, 1, static_cast<std::uint32_t>(place - 1)};
            record.saw_message({"message", data_of(key), id});
        };
        const ledger published = two_epochs();
        for (const std::uint64_t dropped : {0u, 1u, 5u, 6u, 10u}) {
            CAPTURE(dropped);
            client_record record;
            auditor one(published, {"/"}, 4);
            record.opened({"", "", first(0)});
            for (std::uint64_t place = 1; place <= 10; ++place) {
                if (place != dropped) tell(record, place);
                if (place % 3 != 0) continue;
                one.follow(record);
                record.forget();
            }
            one.follow(record);
            record.forget();
            one.settle({first_epoch, 10});
            CHECK(one.result().unaccounted == (dropped == 0 ? 0 : 1));
            CHECK(one.result().faults.empty() == (dropped == 0));
            CHECK(one.result().due == 10);
            CHECK(one.result().messages == (dropped == 0 ? 10 : 9));
        }
    }

    TEST_CASE("the audit keeps what a client itself found wrong, though it is forgotten there") {
        const ledger published = two_epochs();
        client_record record;
        auditor one(published, {"/"}, 4);
        record.fault("torn");
        one.follow(record);
        record.forget();
        one.follow(record);
        CHECK(one.result().faults == std::vector<std::string>{"torn"});
    }

    TEST_CASE("a client counts the notes of each connection") {
        reserved_port port;
        const std::string opens = "id: aaaaaaaa-1\n\n", zero = "event: note\ndata: 0\n\n",
                          one = "event: note\ndata: 1\n\n", two = "event: note\ndata: 2\n\n";
        auto asked = std::async(std::launch::async, [&] {
            return port.serve({opens + zero + one, opens + zero + two, opens + "data: cut o"});
        });
        storm clients(port.number(),
                      {.clients = 1, .faults = false, .tls = false, .kinds = {{"/a", {"/a"}}}});
        CHECK(clients.run_until([&] { return clients.record(0).endings.size() >= 3; }, patience));
        CHECK(asked.get() == std::vector<std::string>{"none", "aaaaaaaa-1", "aaaaaaaa-1"});
        CHECK(clients.notes() == 4);
        CHECK(clients.record(0).faults == std::vector<std::string>{"note \"2\" instead of 1"});
    }

    TEST_CASE("who takes a client's place has no id") {
        reserved_port port;
        auto asked = std::async(std::launch::async, [&] {
            return port.serve({"id: aaaaaaaa-1\n\n", "id: aaaaaaaa-2\n\n"});
        });
        storm clients(port.number(),
                      {.clients = 1, .faults = false, .tls = false, .kinds = {{"/a", {"/a"}}}});
        CHECK(clients.run_until([&] { return clients.record(0).endings.size() == 1; }, patience));
        clients.replace(0);
        CHECK(clients.record(0).steps.empty());
        CHECK(clients.run_until([&] { return clients.record(0).endings.size() == 1; }, patience));
        CHECK(asked.get() == std::vector<std::string>{"none", "none"});
    }

    TEST_CASE("the ledger finds a number that was given twice, or to nobody") {
        ledger published = two_epochs();
        CHECK(published.fault().empty());
        published.runs[1].messages[4].place = 4;
        CHECK(!published.fault().empty());
        published = two_epochs();
        published.runs[0].messages.erase(published.runs[0].messages.begin() + 4);
        CHECK(!published.fault().empty());
    }

    TEST_CASE("a client comes back with its last id, which a block without data moves too") {
        const std::string first_data = data_of({0, 1, 0}), second_data = data_of({0, 1, 1});
        reserved_port port;
        auto asked = std::async(std::launch::async, [&] {
            return port.serve({"id: aaaaaaaa-1\ndata: " + first_data +
                                   "\n\n:\nid: aaaaaaaa-2\n\nretry: 20\nid: aaaaaaaa-3\n",
                               "id: aaaaaaaa-3\ndata: " + second_data + "\n\ndata: cut o",
                               "id: aaaaaaaa-3\n\n"});
        });
        storm clients(port.number(),
                      {.clients = 1, .faults = false, .tls = false, .kinds = {{"/a", {"/a"}}}});
        CHECK(clients.run_until([&] { return clients.record(0).endings.size() >= 3; }, patience));
        CHECK(asked.get() == std::vector<std::string>{"none", "aaaaaaaa-2", "aaaaaaaa-3"});
        CHECK(clients.record(0).endings.at(0).how == ending::fin);
        CHECK(clients.record(0).endings.at(0).retry == 20u);
        ledger published;
        published.runs.push_back(
            {"aaaaaaaa", {{1, "/a", {0, 1, 0}}, {2, "/b", {0, 2, 0}}, {3, "/a", {0, 1, 1}}}});
        const audit_rules rules{{"/a"}, 100, {"aaaaaaaa", 3}};
        const verdict v = audit(clients.record(0), published, rules);
        CHECK(v.faults == std::vector<std::string>());
        CHECK(v.messages == 2);
        CHECK(v.moves == 1);
        published.runs[0].messages[1].topic = "/a"; // then it missed this one
        CHECK(audit(clients.record(0), published, rules).unaccounted == 1);
    }

    TEST_CASE("a client that is sent a block without an id first, on a stream that it resumes, has "
              "lost its own: by the standard the buffer begins empty") {
        reserved_port port;
        auto asked = std::async(std::launch::async, [&] {
            return port.serve({"id: aaaaaaaa-1\n\n", ":\n\n", ":\n\n"});
        });
        storm clients(port.number(),
                      {.clients = 1, .faults = false, .tls = false, .kinds = {{"/a", {"/a"}}}});
        CHECK(clients.run_until([&] { return clients.record(0).endings.size() >= 3; }, patience));
        CHECK(asked.get() == std::vector<std::string>{"none", "aaaaaaaa-1", "none"});
        CHECK(clients.record(0).faults == std::vector<std::string>{"the id became \"\""});
    }

    TEST_CASE("clients cut at random, those that lag are closed: every message accounted for") {
        weather_the_storm(sse::lag_policy::disconnect, 1);
    }

    TEST_CASE("clients cut at random, those that lag skip: every message accounted for") {
        weather_the_storm(sse::lag_policy::skip, 2);
    }

    TEST_CASE(
        "drain, then bind again, under load: who reads loses nothing and is told to come back") {
        const std::uint64_t seed = dice(3).seed();
        sse::options o = with_threads(2);
        o.heartbeat = 100ms;
        o.history.messages = 1 << 20; // all, however long a slow machine needs to come back
        o.history.bytes = 1 << 30;
        service server(o);
        server.start();
        storm clients(server.port(), {.clients = client_count,
                                      .seed = seed,
                                      .faults = false,
                                      .kinds = all_kinds,
                                      .newest = [&] { return server.newest(); }});
        press publishers(server, {.messages_per_second = messages_per_second, .seed = seed});
        wait_for_all(server, clients);
        clients.run_for(500ms);

        const std::string drained_epoch = server.epoch();
        std::uint64_t returned = 0; // what publish() had returned before the drain
        sse::drain_result drained{};
        const auto window = 1500ms, retry = 200ms;
        storm::clock::time_point begin;
        restart(server, clients, [&] {
            returned = server.returned();
            begin = storm::clock::now();
            drained = server.drain({.window = window,
                                    .farewell = {{.event = "farewell", .data = "soon"}},
                                    .retry = retry});
        });
        wait_for_all(server, clients);
        ledger published;
        const event_id end = publishers.end(published);
        REQUIRE(publishers.trouble().empty());
        const bool caught_up =
            clients.run_until([&] { return clients.count_at(end) == clients.size(); }, 60s);
        CHECK_MESSAGE(caught_up, clients.describe_others(end));

        CHECK(published.fault().empty());
        tally sum = audit_all(clients, published, o.history.messages, end);
        CHECK(sum.gaps["epoch"] == client_count);
        CHECK(sum.gaps.size() == 1);
        CHECK(drained.closed == client_count);
        CHECK(drained.cut == 0);
        REQUIRE(returned > 0);

        std::size_t early = 0;
        auto first_end = storm::clock::time_point::max(), last_end = begin;
        std::set<std::uint64_t> retries;
        for (std::size_t i = 0; i < clients.size(); ++i) {
            CAPTURE(i);
            const client_record& record = clients.record(i);
            REQUIRE(record.endings.size() == 1);
            const client_record::ended& ended = record.endings.front();
            CHECK(ended.how == ending::fin);
            CHECK(ended.had_farewell);
            REQUIRE(ended.retry);
            CHECK(*ended.retry >= 200);
            CHECK(*ended.retry <= 400);
            retries.insert(*ended.retry);
            first_end = std::min(first_end, ended.when);
            last_end = std::max(last_end, ended.when);
            if (ended.when < begin + window / 2) ++early;

            // The gap tells how far it had come: to the last one before the drain that was for it.
            REQUIRE(record.gaps.size() == 1);
            const auto from = parse_event_id(record.gaps.front().notice.from);
            REQUIRE(from);
            CHECK(from->epoch == drained_epoch);
            const auto& messages = published.runs.front().messages;
            for (std::uint64_t place = from->place + 1; place <= returned; ++place) {
                CAPTURE(place);
                CHECK_FALSE(follows(clients.topics(i), messages.at(place - 1).topic));
            }
            CHECK(record.gaps.front().notice.to == id_of(server.epoch(), 0));
        }
        MESSAGE(published.size() << " published, " << returned << " before the drain; closed "
                                 << early << " in the first half of the window, "
                                 << client_count - early << " after it, " << retries.size()
                                 << " different times to wait");
        CHECK(first_end >= begin);
        // Spread over four fifths of the window. Seen from a client that is held up it is less.
        if (!with_sanitizer) CHECK(last_end - first_end >= window / 4);
        CHECK(retries.size() >= 20);
    }
}

} // namespace storm_test
