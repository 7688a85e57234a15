// replay.cpp - covers >>feed: nothing lost, from outside: ids, resuming, gaps, history, snapshots,
// clients that fall behind.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <map>
#include <set>
#include <thread>

namespace replay_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// Options with which deadlines are looked at every few milliseconds.
sse::options watchful(std::size_t threads = 1) {
    sse::options o = with_threads(threads);
    o.timeouts.body = 40ms;
    return o;
}

std::string text(std::uint64_t n) { return std::to_string(n); }
std::uint64_t number(std::string_view digits) {
    std::uint64_t n = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), n);
    if (digits.empty() || parsed.ptr != digits.data() + digits.size()) {
        throw std::runtime_error("not a number: " + show(digits));
    }
    return n;
}

std::string epoch_of(const std::string& id) { return id.substr(0, id.rfind('-')); }
std::uint64_t place_of(const std::string& id) { return number(id.substr(id.rfind('-') + 1)); }
std::string id_of(const sse::server& server, std::uint64_t n) {
    return epoch_of(server.last_id()) + "-" + text(n);
}

header_list resuming(std::string id) { return {{"Last-Event-ID", std::move(id)}}; }

/// The id that a stream is given at once.
std::string first_id(event_client& client) {
    client.next_comment();
    return client.decoder().last_event_id();
}

/// The data of all events up to the one that says "end".
std::string all_until_end(event_client& client) {
    std::string all;
    for (auto event = client.next(); event.data != "end"; event = client.next()) {
        all += event.data + ",";
    }
    return all;
}

std::string numbers(std::uint64_t first, std::uint64_t last) {
    std::string all;
    for (std::uint64_t n = first; n <= last; ++n) all += text(n) + ",";
    return all;
}

/// A flat JSON object, as strict as RFC 8259; what is not a string is kept as it stands.
std::map<std::string, std::string> parse_json(const std::string& json) {
    std::size_t at = 0;
    const auto fail = [&] { throw std::runtime_error("bad JSON: " + show(json)); };
    const auto expect = [&](char c) {
        if (at >= json.size() || json[at++] != c) fail();
    };
    const auto string = [&] {
        std::string out;
        expect('"');
        while (at < json.size() && json[at] != '"') {
            if (static_cast<unsigned char>(json[at]) < 0x20) fail();
            if (json[at] != '\\') {
                out += json[at++];
                continue;
            }
            const std::size_t kind = std::string_view("\"\\/bfnrtu").find(json[++at]);
            if (kind == std::string_view::npos) fail();
            if (kind < 8) {
                out += "\"\\/\b\f\n\r\t"[kind];
                ++at;
            } else {
                if (at + 5 > json.size()) fail();
                const int code = std::stoi(json.substr(at + 1, 4), nullptr, 16);
                if (code < 0x80) {
                    out += static_cast<char>(code);
                } else {
                    out += "(U+" + json.substr(at + 1, 4) + ")";
                }
                at += 5;
            }
        }
        expect('"');
        return out;
    };
    std::map<std::string, std::string> fields;
    if (!support::is_utf8(json)) fail();
    expect('{');
    do {
        const std::string name = string();
        expect(':');
        if (at < json.size() && json[at] == '"') {
            fields[name] = string();
        } else {
            const std::size_t end = json.find_first_of(",}", at);
            if (end == std::string::npos) fail();
            fields[name] = json.substr(at, end - at);
            number(fields[name]);
            at = end;
        }
    } while (at < json.size() && json[at++] == ',');
    if (at != json.size() || json.back() != '}') fail();
    return fields;
}

void check_gap(const decoded& event, const std::string& reason, const std::string& from,
               const std::string& to) {
    CHECK(event.type == "gap");
    auto fields = parse_json(event.data);
    CHECK(fields["reason"] == reason);
    CHECK(fields["from"] == from);
    CHECK(fields["to"] == to);
}

/// Whether in the end this is kept for a topic, by each worker. More may be for a moment: bounds
/// are looked at when messages come, and a few times a second.
bool eventually_kept(const sse::server& server, const std::string& topic,
                     const std::string& expected) {
    return eventually([&] {
        event_client one(server.port(), "/subscribe" + topic + "?from=oldest");
        event_client two(server.port(), "/subscribe" + topic + "?from=oldest");
        return all_until_end(one) == expected && all_until_end(two) == expected;
    });
}

std::uint64_t only_stream(const sse::server& server) {
    const auto all = server.streams();
    REQUIRE(all.size() == 1);
    return all.front().id;
}

/// Messages of 50 kB, so that a client that does not read is behind soon.
std::string large(std::uint64_t n) {
    std::string data = text(n) + " ";
    data += support::incompressible(50'000 - data.size());
    return data;
}
std::uint64_t number_of(const decoded& event) {
    return number(event.data.substr(0, event.data.find(' ')));
}

/// Publishes large messages, each once the reader has the one before: it is never behind.
void publish_large(sse::server& server, event_client& reader, std::uint64_t first,
                   std::uint64_t last, std::uint64_t keys = 0) {
    for (std::uint64_t n = first; n <= last; ++n) {
        const std::string key = keys == 0 ? "" : text(n % keys);
        const std::string data = large(n);
        server.publish("/t", {.data = data, .key = key});
        REQUIRE(number_of(reader.next()) == n);
    }
}

constexpr std::uint64_t many = 300; // 15 MB: more than the sockets of a client take in

sse::options small_history(sse::lag_policy policy) {
    sse::options o = watchful();
    o.history.messages = 16;
    o.history.lag = policy;
    o.timeouts.publish = 20s;
    return o;
}

struct lagging_server : running_server {
    using running_server::running_server;
    event_client reader{port(), "/subscribe/t"};
    event_client stuck{port(), "/subscribe/t", {}, {.receive_buffer = 4096}};
};

/// Whether the worker has had so many turns.
void let_it_work(const sse::server& server, int turns = 50) {
    for (int i = 0; i < turns; ++i) http_get(server.port(), "/health");
}

} // namespace

TEST_SUITE("ids") {
    TEST_CASE("each published message has its place in the order as its id, in the first line") {
        running_server server(with_threads(2));
        connection peer(server.port());
        peer.send_request("GET", "/subscribe/t");
        peer.read_head();
        const std::string zero = server.last_id();
        REQUIRE(zero.size() == 10);
        CHECK(zero.ends_with("-0"));
        CHECK(epoch_of(zero).find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz") ==
              std::string::npos);
        CHECK(peer.read_through("\n\n") == ":\nid: " + zero + "\n\n");
        CHECK(server.publish("/t", {.event = "e", .data = "one"}) == 1);
        CHECK(server.publish("/other", {.data = "two"}) == 2);
        CHECK(server.broadcast({.data = "three"}) == 3);
        CHECK(server.last_id() == id_of(server, 3));
        CHECK(peer.read_through("\n\n") == "id: " + id_of(server, 1) + "\nevent: e\ndata: one\n\n");
        CHECK(peer.read_through("\n\n") == "id: " + id_of(server, 3) + "\ndata: three\n\n");
        CHECK(server.publish("/t", {.data = "own", .id = "mine"}) == 4);
        CHECK(server.publish("/t", {.data = "now", .ephemeral = true}) == 5);
        CHECK(server.publish("/t", {.data = "six"}) == 6);
        CHECK(peer.read_through("\n\n") == "id: mine\ndata: own\n\n");
        CHECK(peer.read_through("\n\n") == "data: now\n\n");
        CHECK(peer.read_through("\n\n") == "id: " + id_of(server, 6) + "\ndata: six\n\n");
        CHECK(server.try_publish("/t", {.data = "x", .id = "y", .ephemeral = true}) ==
              sse::errc::ephemeral_id);
    }

    TEST_CASE("from several threads too, an id is what publish returned, and ids are in order") {
        running_server server(with_threads(2));
        event_client a(server.port(), "/subscribe/t"), b(server.port(), "/subscribe/t");
        std::map<std::string, std::uint64_t> returned;
        std::mutex mutex;
        std::vector<std::thread> threads;
        for (int t = 0; t < 3; ++t) {
            threads.emplace_back([&, t] {
                for (int n = 0; n < 200; ++n) {
                    const std::string data = std::to_string(t) + "." + std::to_string(n);
                    const auto place = server.publish("/t", {.data = data});
                    const std::lock_guard lock(mutex);
                    returned[data] = place;
                }
            });
        }
        for (auto& t : threads) t.join();
        for (event_client* client : {&a, &b}) {
            for (std::uint64_t n = 1; n <= 600; ++n) {
                const auto event = client->next();
                REQUIRE(event.id == id_of(server, n));
                REQUIRE(returned.at(event.data) == n);
            }
        }
    }

    TEST_CASE("each server object has an epoch of its own") {
        std::set<std::string> epochs;
        for (int i = 0; i < 20; ++i) {
            epochs.insert(epoch_of(sse::server(with_threads(1)).last_id()));
        }
        CHECK(epochs.size() == 20);
    }

    TEST_CASE("a stream has an id to come back with before its first message") {
        running_server server;
        server.publish("/other", {.data = "x"});
        event_client early(server.port(), "/subscribe/t");
        CHECK(first_id(early) == id_of(server, 1));
        early.close();
        server.publish("/t", {.data = "meanwhile"});
        event_client again(server.port(), "/subscribe/t", resuming(id_of(server, 1)));
        CHECK(again.next() == decoded{"message", "meanwhile", id_of(server, 2)});
    }

    TEST_CASE("also before what its handler sends at once, which has none") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/greets", [](sse::stream& client) -> handler_result {
                client.subscribe("/t");
                const sse::message hello{.data = "hello"};
                co_await client.send(hello);
                co_await wait_an_hour(client);
            });
        });
        server.publish("/other", {.data = "x"});
        for (const header_list& headers : {header_list{}, resuming(id_of(server, 1))}) {
            event_client client(server.port(), "/greets", headers);
            CHECK(client.next() == decoded{"message", "hello", id_of(server, 1)});
        }
        event_client strange(server.port(), "/greets", resuming("of-another-server"));
        const decoded gap = strange.next();
        CHECK(gap.type == "gap");
        CHECK(strange.next() == decoded{"message", "hello", gap.id});
    }
}

TEST_SUITE("resume") {
    TEST_CASE("a client that comes back gets what it missed, once, on whichever thread it lands") {
        for (const std::size_t threads : {1u, 2u, 4u}) {
            CAPTURE(threads);
            running_server server(with_threads(threads));
            for (int n = 1; n <= 30; ++n) {
                server.publish(n % 3 == 0 ? "/other" : "/t/deep", {.data = std::to_string(n)});
            }
            server.publish("/t", {.data = "end"});
            std::vector<std::unique_ptr<event_client>> clients;
            for (std::uint64_t after = 0; after < 12; ++after) {
                clients.push_back(std::make_unique<event_client>(
                    server.port(), "/subscribe/t", resuming(id_of(server, 10 + after))));
            }
            for (std::uint64_t after = 0; after < 12; ++after) {
                std::string expected;
                for (std::uint64_t n = 11 + after; n <= 30; ++n) {
                    if (n % 3 != 0) expected += text(n) + ",";
                }
                CHECK(all_until_end(*clients[after]) == expected);
            }
            std::set<std::uint64_t> workers;
            for (const auto& one : server.streams()) workers.insert(one.id % threads);
            CHECK(workers.size() == threads);
        }
    }

    TEST_CASE("the id comes by header, by lastEventId or by last_event_id, the header first") {
        running_server server(with_threads(2));
        for (int n = 1; n <= 9; ++n) server.publish("/t", {.data = std::to_string(n)});
        server.publish("/t", {.data = "end"});
        const auto from = [&](const std::string& query, const header_list& headers = {}) {
            event_client client(server.port(), "/subscribe/t" + query, headers);
            return all_until_end(client);
        };
        CHECK(from("", resuming(id_of(server, 7))) == "8,9,");
        CHECK(from("?lastEventId=" + id_of(server, 6)) == "7,8,9,");
        CHECK(from("?last_event_id=" + id_of(server, 5)) == "6,7,8,9,");
        CHECK(from("?lastEventId=" + id_of(server, 2) + "&last_event_id=" + id_of(server, 3),
                   resuming(id_of(server, 8))) == "9,");
        CHECK(from("?&&x=&lastEventId&lastEventId=&" + ("lastEventId=" + id_of(server, 4)) + "&") ==
              "5,6,7,8,9,");
        CHECK(from("", resuming(id_of(server, 0))) == numbers(1, 9));
    }

    TEST_CASE("an id of the program's own serves to resume, also by what a snapshot told") {
        running_server server(with_threads(2));
        for (int n = 1; n <= 9; ++n) {
            const std::string id = "own/" + std::to_string(n);
            server.publish("/t", {.data = std::to_string(n), .id = std::string_view(id)});
        }
        const std::string snapshot = server.last_id();
        server.publish("/t", {.data = "10"});
        server.publish("/t", {.data = "end"});
        for (int i = 0; i < 4; ++i) {
            event_client own(server.port(), "/subscribe/t", resuming("own/7"));
            CHECK(all_until_end(own) == "8,9,10,");
            event_client after(server.port(), "/subscribe/t?lastEventId=" + snapshot);
            CHECK(all_until_end(after) == "10,");
        }
    }

    TEST_CASE("ephemeral messages reach who is there, and are not replayed") {
        running_server server;
        event_client here(server.port(), "/subscribe/t");
        server.publish("/t", {.data = "1"});
        server.publish("/t", {.data = "gone", .ephemeral = true});
        server.publish("/t", {.data = "3"});
        server.publish("/t", {.data = "end"});
        CHECK(all_until_end(here) == "1,gone,3,");
        event_client later(server.port(), "/subscribe/t", resuming(id_of(server, 0)));
        CHECK(all_until_end(later) == "1,3,");
        event_client oldest(server.port(), "/subscribe/t?from=oldest");
        CHECK(all_until_end(oldest) == "1,3,");
    }

    TEST_CASE("a stream starts with the oldest, the last n, a time, or now; an id wins") {
        running_server server(with_threads(2));
        const auto start = std::chrono::system_clock::now();
        for (int n = 1; n <= 10; ++n) {
            server.publish("/other", {.data = "other"});
            server.publish("/t", {.data = std::to_string(n)});
        }
        const auto seconds = [&](std::chrono::seconds offset) {
            return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(
                                      (start + offset).time_since_epoch())
                                      .count());
        };
        const auto what = [&](const std::string& query, const header_list& headers = {}) {
            event_client client(server.port(), "/subscribe/t?" + query, headers);
            server.publish("/t", {.data = "end"});
            return all_until_end(client);
        };
        // What "end" adds for those who come later is cut off from what the others see.
        CHECK(what("from=now").empty());
        {
            event_client client(server.port(), "/subscribe/t?from=oldest");
            CHECK(all_until_end(client) == numbers(1, 10));
        }
        {
            event_client client(server.port(), "/subscribe/t?last=4"); // 8, 9, 10, end
            CHECK(all_until_end(client) == numbers(8, 10));
        }
        CHECK(what("last=0").empty());
        {
            event_client client(server.port(), "/subscribe/t?since=" + seconds(-3600s));
            CHECK(all_until_end(client) == numbers(1, 10));
        }
        CHECK(what("since=" + seconds(3600s)).empty());
        {
            event_client client(server.port(), "/subscribe/t?last=1000");
            CHECK(all_until_end(client) == numbers(1, 10));
        }
        const std::string since = "since=" + seconds(-3600s);
        for (const std::string& query :
             {std::string("from=oldest"), std::string("last=9"), std::string("from=now"), since}) {
            CAPTURE(query);
            event_client client(server.port(), "/subscribe/t?" + query,
                                resuming(id_of(server, 14)));
            CHECK(all_until_end(client) == numbers(8, 10));
        }
        event_client by_query(server.port(),
                              "/subscribe/t?from=oldest&lastEventId=" + id_of(server, 18));
        CHECK(all_until_end(by_query) == "10,");
    }

    TEST_CASE("a start that cannot be understood is refused") {
        running_server server;
        for (const char* query : {"from=", "from=Oldest", "last=", "last=-1", "last=x", "last=1.5",
                                  "last=99999999999999999999", "since=", "since=yesterday",
                                  "since=-5", "since=1000000000000000"}) {
            CAPTURE(query);
            CHECK(http_get(server.port(), "/subscribe/t?" + std::string(query)).status == 400);
            CHECK(http_get(server.port(), "/subscribe/t?" + std::string(query),
                           resuming(id_of(server, 0)))
                      .status == 400);
        }
        CHECK(server.counters().streams == 0);
    }

    TEST_CASE("what was published just before, by the same thread, counts for where it starts") {
        sse::server* self = nullptr;
        std::atomic<int> kind{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            self = &s;
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                for (int n = 1; n <= 9; ++n) {
                    const std::string id = "own" + std::to_string(n);
                    self->publish("/t", {.data = std::to_string(n), .id = std::string_view(id)});
                }
                self->publish("/t", {.data = "end"});
                sse::subscribe_options how;
                if (kind == 0) how.from = sse::start::last(3);
                if (kind == 1) how.from = sse::start::since(std::chrono::system_clock::now() - 1h);
                if (kind == 2) how.from = sse::start::after("own4");
                client.subscribe("/t", std::move(how));
                co_return;
            });
        });
        event_client other(server.port(), "/subscribe/other"); // so that the thread is awake
        {
            event_client client(server.port(), "/route");
            CHECK(all_until_end(client) == "8,9,");
        }
        kind = 1;
        {
            event_client client(server.port(), "/route");
            CHECK(all_until_end(client).starts_with(numbers(1, 9)));
        }
        kind = 2;
        running_server second(with_threads(1), [&](sse::server& s) {
            self = &s;
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                self->publish("/t", {.data = "1", .id = "own1"});
                self->publish("/t", {.data = "2", .id = "own2"});
                self->publish("/t", {.data = "end"});
                client.subscribe("/t", {.from = sse::start::after("own1")});
                co_return;
            });
        });
        event_client another(second.port(), "/subscribe/other");
        event_client client(second.port(), "/route");
        CHECK(all_until_end(client) == "2,");
    }
}

TEST_SUITE("gaps") {
    TEST_CASE("an id of another start is told as such, before the oldest that is kept") {
        std::string old;
        {
            running_server first;
            first.publish("/t", {.data = "lost"});
            old = first.last_id();
        }
        running_server second(with_threads(2));
        second.publish("/t", {.data = "1"});
        second.publish("/t", {.data = "end"});
        event_client client(second.port(), "/subscribe/t", resuming(old));
        const auto event = client.next();
        check_gap(event, "epoch", old, id_of(second, 0));
        CHECK(event.id == id_of(second, 0));
        CHECK(all_until_end(client) == "1,");
        CHECK(second.counters().gaps == 1);
    }

    TEST_CASE("an id that was never given is told as unknown, in valid JSON, whatever it is") {
        running_server server;
        server.publish("/t", {.data = "1"});
        server.publish("/t", {.data = "end"});
        const std::string epoch = epoch_of(server.last_id());
        const auto check_header = [&](const std::string& id) {
            CAPTURE(show(id));
            event_client client(server.port(), "/subscribe/t", resuming(id));
            check_gap(client.next(), "unknown", id, epoch + "-0");
            CHECK(all_until_end(client) == "1,");
        };
        for (const std::string& id :
             {std::string("garbage"), std::string("-"), epoch, epoch + "-", epoch + "-x",
              epoch + "-3", epoch + "-99999999999999999999999999", epoch + "--1", epoch + "-1 1",
              std::string("1"), std::string("\"}{\\"), std::string(5000, 'x'), "x" + epoch + "-1",
              std::string("\xc3\xa4\xe2\x82\xac"), std::string("a\tb")}) {
            check_header(id);
        }
        const auto check_query = [&](const std::string& encoded, const std::string& id) {
            CAPTURE(encoded);
            event_client client(server.port(), "/subscribe/t?lastEventId=" + encoded);
            auto fields = parse_json(client.next().data);
            CHECK(fields["reason"] == "unknown");
            CHECK(fields["from"] == id);
            CHECK(all_until_end(client) == "1,");
        };
        check_query("%22%5c%0a%0d%01", "\"\\\n\r\x01");
        check_query("%00", std::string(1, '\0'));
        check_query("%7f%1f", "\x7f\x1f");
    }

    TEST_CASE("an id that is no UTF-8 is told in JSON that is") {
        running_server server;
        for (const char* encoded : {"%ff", "%c3", "a%e2%82b", "%c0%80", "%ed%a0%80"}) {
            CAPTURE(encoded);
            event_client client(server.port(), "/subscribe/t?lastEventId=" + std::string(encoded));
            CHECK(parse_json(client.next().data)["reason"] == "unknown");
        }
        event_client by_header(server.port(), "/subscribe/t", resuming("\xff\xfe"));
        CHECK(parse_json(by_header.next().data)["reason"] == "unknown");
    }

    TEST_CASE("what the history has let go of is told with its bounds and their number") {
        sse::options o = watchful(2);
        o.history.messages = 10;
        running_server server(o);
        for (int n = 1; n <= 50; ++n) server.broadcast({.data = std::to_string(n)});
        server.broadcast({.data = "end"});
        REQUIRE(eventually_kept(server, "/", numbers(42, 50)));
        for (int i = 0; i < 4; ++i) { // on both threads
            event_client client(server.port(), "/subscribe", resuming(id_of(server, 20)));
            const auto event = client.next();
            check_gap(event, "too_old", id_of(server, 20), id_of(server, 41));
            CHECK(parse_json(event.data)["missed"] == "21");
            CHECK(place_of(event.id) <= 41);
            CHECK(place_of(event.id) >= 20);
            CHECK(all_until_end(client) == numbers(42, 50));
        }
        event_client near(server.port(), "/subscribe", resuming(id_of(server, 41)));
        CHECK(all_until_end(near) == numbers(42, 50)); // just kept: no gap
    }

    TEST_CASE("with several topics there is one word of a gap, and each message once") {
        sse::options o = watchful(2);
        o.history.messages = 12;
        running_server server(o);
        const char* topics[] = {"/a", "/b", "/c", "/a/b"};
        std::string expected;
        for (int n = 0; n < 100; ++n) {
            server.publish(topics[n % 4], {.data = std::to_string(n)});
            if (n >= 89) expected += std::to_string(n) + ",";
        }
        server.broadcast({.data = "end"});
        REQUIRE(eventually_kept(server, "/", expected));
        const std::string target = "/subscribe?topic=a&topic=b&topic=c&topic=a/b";
        for (const std::string& id : {id_of(server, 5), std::string("garbage"),
                                      std::string("aaaaaaaa-12"), id_of(server, 0)}) {
            CAPTURE(id);
            const auto gaps = server.counters().gaps;
            event_client client(server.port(), target, resuming(id));
            CHECK(client.next().type == "gap");
            CHECK(all_until_end(client) == expected);
            CHECK(server.counters().gaps == gaps + 1);
        }
    }

    TEST_CASE("the gap event has the name that the options give it") {
        sse::options o = with_threads(1);
        o.history.gap_event = "x-missed";
        running_server server(o);
        event_client client(server.port(), "/subscribe/t", resuming("garbage"));
        CHECK(client.next().type == "x-missed");
    }

    TEST_CASE("who is told of a gap can come back with the id of that word") {
        running_server server;
        server.publish("/t", {.data = "1"});
        server.publish("/t", {.data = "end"});
        std::string id;
        {
            event_client client(server.port(), "/subscribe/t", resuming("garbage"));
            id = client.next().id;
        }
        event_client again(server.port(), "/subscribe/t", resuming(id));
        CHECK(all_until_end(again) == "1,");
    }
}

TEST_SUITE("on_gap") {
    /// Sends a snapshot when the test says so.
    struct mender {
        std::atomic<int> called{0};
        std::atomic<bool> go_on{false};
        void attach(sse::options& o) {
            o.hooks.on_gap = [this](sse::stream& client, const sse::gap& g) -> handler_result {
                const std::string reason(to_string(g.reason));
                ++called;
                co_await until(client, go_on);
                co_await client.send({.event = "snapshot", .data = reason});
            };
        }
    };

    TEST_CASE("at a reconnect the program's snapshot comes first, then the tail, however late") {
        mender program;
        sse::options o = with_threads(1);
        program.attach(o);
        running_server server(o);
        for (int n = 1; n <= 5; ++n) server.publish("/t", {.data = std::to_string(n)});
        event_client client(server.port(), "/subscribe/t", resuming("garbage"));
        event_client other(server.port(), "/subscribe/t");
        REQUIRE(eventually([&] { return program.called == 1; }));
        server.publish("/t", {.data = "6"});
        CHECK(other.next().data == "6"); // the worker has sent to all who may have it
        program.go_on = true;
        CHECK(client.next() == decoded{"snapshot", "unknown", ""});
        server.publish("/t", {.data = "end"});
        CHECK(all_until_end(client) == numbers(1, 6));
        CHECK(server.counters().gaps == 1);
    }

    TEST_CASE("two at once do not disturb each other, on a handler's stream either") {
        mender program;
        sse::options o = with_threads(1);
        program.attach(o);
        std::atomic<bool> handler_ends{false};
        running_server server(o, [&](sse::server& s) {
            s.route("GET", "/route", [&](sse::stream& client) -> handler_result {
                client.subscribe("/t");
                co_await until(client, handler_ends);
            });
        });
        server.publish("/t", {.data = "1"});
        event_client a(server.port(), "/subscribe/t", resuming("garbage"));
        event_client b(server.port(), "/route", resuming("aaaaaaaa-7"));
        REQUIRE(eventually([&] { return program.called == 2; }));
        handler_ends = true;
        let_it_work(server);
        program.go_on = true;
        CHECK(a.next().data == "unknown");
        CHECK(b.next().data == "epoch");
        server.publish("/t", {.data = "end"});
        CHECK(all_until_end(a) == "1,");
        CHECK(all_until_end(b) == "1,");
    }

    TEST_CASE("for an open stream that was lapped it runs as well, where nothing is served any "
              "more") {
        mender program;
        program.go_on = true;
        sse::options o = small_history(sse::lag_policy::skip);
        program.attach(o);
        lagging_server server(o);
        publish_large(server, server.reader, 1, many);
        // Where the system made room meanwhile, the stream was lapped before, too.
        const int early = program.called;
        std::uint64_t last = 0, published = many;
        int mended = 0;
        while (mended == 0 || last != published) {
            REQUIRE((mended > 0 || last != many)); // else nothing was skipped
            const auto event = server.stuck.next();
            if (event.type == "snapshot") {
                CHECK(event.data == "lapped");
                ++mended;
                server.publish("/t", {.data = text(++published)});
                continue;
            }
            if (mended > 0) {
                CHECK(number_of(event) > last);
            } else {
                CHECK(number_of(event) == last + 1);
            }
            last = number_of(event);
        }
        CHECK(mended <= early + 1);
        CHECK(program.called == mended);
    }

    TEST_CASE("one that throws ends its stream, and is reported") {
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        o.hooks.on_gap = [](sse::stream& client, const sse::gap&) -> handler_result {
            co_await client.send({.data = "begun"});
            throw std::runtime_error("broken");
        };
        running_server server(o);
        server.publish("/t", {.data = "1"});
        event_client steady(server.port(), "/subscribe/t");
        event_client client(server.port(), "/subscribe/t", resuming("garbage"));
        CHECK(client.next().data == "begun");
        CHECK_FALSE(client.next_or_end());
        CHECK(eventually([&] { return errors.count == 1; }));
        server.publish("/t", {.data = "2"});
        CHECK(steady.next().data == "2");
    }

    TEST_CASE("when its client leaves, it is cancelled") {
        std::atomic<int> begun{0}, ended{0};
        std::atomic<bool> never{false};
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        o.hooks.on_gap = [&](sse::stream& client, const sse::gap&) -> handler_result {
            struct on_end {
                std::atomic<int>& count;
                ~on_end() { ++count; }
            } guard{ended};
            ++begun;
            co_await until(client, never);
        };
        running_server server(o);
        event_client fin(server.port(), "/subscribe/t", resuming("garbage"));
        event_client rst(server.port(), "/subscribe/t", resuming("garbage"));
        REQUIRE(eventually([&] { return begun == 2; }));
        fin.close();
        CHECK(eventually([&] { return ended == 1; }));
        rst.reset();
        CHECK(eventually([&] { return ended == 2; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(errors.count == 0);
    }

    TEST_CASE("a stream that is ended meanwhile gets nothing that the snapshot should precede") {
        mender program;
        sse::options o = with_threads(1);
        program.attach(o);
        running_server server(o);
        server.publish("/t", {.data = "1"});
        event_client client(server.port(), "/subscribe/t", resuming("garbage"));
        REQUIRE(eventually([&] { return program.called == 1; }));
        server.post_to(only_stream(server), [](sse::stream& s) { s.close(); });
        CHECK_FALSE(client.next_or_end().has_value());
        // With the id of something after the gap it would never hear of it.
        CHECK(client.decoder().last_event_id().empty());
    }

    TEST_CASE("it runs once at a time for a stream, whose tail waits until it returns") {
        std::atomic<int> called{0}, running{0}, most{0};
        std::atomic<bool> ends{false};
        sse::options o = small_history(sse::lag_policy::skip);
        o.hooks.on_gap = [&](sse::stream& client, const sse::gap&) -> handler_result {
            ++called;
            most = std::max(most.load(), ++running);
            client.resume(); // that is for subscriptions made with `held`
            co_await until(client, ends);
            --running;
            co_await client.send({.event = "done"});
        };
        running_server server(o);
        event_client reader(server.port(), "/subscribe/t");
        event_client stuck(server.port(), "/subscribe/t", resuming("garbage"),
                           {.receive_buffer = 4096});
        REQUIRE(eventually([&] { return called == 1; }));
        publish_large(server, reader, 1, many); // the history moves past it meanwhile
        CHECK(called == 1);
        ends = true;
        CHECK(stuck.next().type == "done");
        // Else the second gap may cover what is published now.
        REQUIRE(eventually([&] { return called == 2; }));
        publish_large(server, reader, many + 1, many + 1);
        std::uint64_t last = 0;
        while (last != many + 1) {
            const auto event = stuck.next();
            if (event.type == "done") continue;
            CHECK(number_of(event) > last);
            last = number_of(event);
        }
        CHECK(called == 2); // once more for what went by
        CHECK(most == 1);
    }
}

TEST_SUITE("history") {
    TEST_CASE("it is bounded by messages and by bytes, the newest stay") {
        sse::options by_count = watchful(), by_bytes = watchful();
        by_count.history.messages = 5;
        by_bytes.history.bytes = 5 * 1'000 + 500;
        for (const sse::options& o : {by_count, by_bytes}) {
            running_server server(o);
            const std::string pad(900, 'x'); // with the id and the rest less than 1,000
            for (int n = 1; n <= 20; ++n)
                server.broadcast({.event = pad, .data = std::to_string(n)});
            server.broadcast({.event = pad, .data = "end"});
            CHECK(eventually_kept(server, "/", numbers(17, 20)));
        }
    }

    TEST_CASE("a topic with bounds of its own neither pushes others out nor is pushed out") {
        sse::options o = watchful(2);
        o.history.messages = 10;
        sse::topic_history rare, deeper;
        rare.topic = "/rare";
        rare.messages = 3;
        deeper.topic = "/rare/deeper/";
        deeper.messages = 5;
        o.history.topics = {rare, deeper};
        running_server server(o);
        const auto publish = [&](const char* topic, int n) {
            server.publish(topic, {.data = std::to_string(n)});
        };
        for (int n = 1; n <= 20; ++n) publish("/rare", n);
        for (int n = 21; n <= 40; ++n) publish("/rare/deeper", n);
        for (int n = 41; n <= 60; ++n) publish("/common", n);
        server.broadcast({.data = "end"});
        CHECK(eventually_kept(server, "/rare/deeper", numbers(36, 40)));
        event_client wide(server.port(), "/subscribe/rare?from=oldest");
        check_gap(wide.next(), "too_old", id_of(server, 17),
                  id_of(server, 35)); // 21 to 35 are gone
        CHECK(all_until_end(wide) == numbers(18, 20) + numbers(36, 40));
        CHECK(eventually_kept(server, "/common", numbers(52, 60))); // and "end"
        event_client resumed(server.port(), "/subscribe/rare/deeper", resuming(id_of(server, 35)));
        CHECK(all_until_end(resumed) == numbers(36, 40));
        event_client late(server.port(), "/subscribe/rare/deeper", resuming(id_of(server, 30)));
        check_gap(late.next(), "too_old", id_of(server, 30), id_of(server, 35));
    }

    TEST_CASE("messages over the age are forgotten, and that is told") {
        sse::options o = watchful(2);
        o.history.age = 100ms;
        running_server server(o);
        server.publish("/t", {.data = "1"});
        server.publish("/t", {.data = "2"});
        CHECK(eventually([&] {
            event_client client(server.port(), "/subscribe/t?from=oldest");
            server.broadcast({.data = "end"});
            return all_until_end(client).empty();
        }));
        event_client client(server.port(), "/subscribe/t", resuming(id_of(server, 1)));
        CHECK(client.next().type == "gap");
    }

    /// A quiet client through which the history goes by many times; then it comes back.
    decoded come_back_after_much(const sse::options& o) {
        running_server server(o);
        event_client quiet(server.port(), "/subscribe/quiet");
        event_client busy(server.port(), "/subscribe/busy");
        server.publish("/quiet", {.data = "first"});
        std::string id = quiet.next().id;
        for (int n = 1; n <= 400; ++n) {
            const auto place = server.publish("/busy", {.data = std::to_string(n)});
            busy.next();
            // As long as it takes the news as they come, it stays within the history.
            if (o.heartbeat_ids && n % 8 == 0) {
                CHECK(eventually([&] {
                    quiet.next_comment();
                    id = quiet.decoder().last_event_id();
                    return place_of(id) + 16 > place;
                }));
            }
        }
        quiet.close();
        server.publish("/quiet", {.data = "at last"});
        event_client again(server.port(), "/subscribe/quiet", resuming(id));
        return again.next();
    }

    TEST_CASE("a quiet client is told the newest id with its heartbeat, and loses nothing") {
        sse::options o = watchful();
        o.history.messages = 32;
        o.heartbeat = 10ms;
        CHECK(come_back_after_much(o).data == "at last");
    }

    TEST_CASE("without these it falls off the history, and is told so") {
        sse::options o = watchful();
        o.history.messages = 32;
        o.heartbeat = 10ms;
        o.heartbeat_ids = false;
        const auto event = come_back_after_much(o);
        CHECK(event.type == "gap");
        CHECK(parse_json(event.data)["reason"] == "too_old");
    }

    TEST_CASE("between heartbeats it is told before half of the history has gone by") {
        sse::options o = watchful();
        o.history.messages = 64;
        o.heartbeat = 0ms;
        running_server server(o);
        event_client quiet(server.port(), "/subscribe/quiet");
        first_id(quiet);
        for (int round = 1; round <= 8; ++round) {
            for (int n = 0; n < 40; ++n) server.publish("/busy", {.data = "x"});
            quiet.next_comment();
        }
        CHECK(place_of(quiet.decoder().last_event_id()) > 200);
    }
}

TEST_SUITE("snapshot and tail") {
    TEST_CASE("a held subscription loses nothing between the snapshot and the tail, and doubles "
              "nothing") {
        std::mutex mutex;
        std::uint64_t state = 0;
        running_server server(with_threads(2), [&](sse::server& s) {
            s.route("GET", "/prices", [&](sse::stream& client) -> handler_result {
                client.subscribe("/prices", {.held = true});
                std::string snapshot;
                {
                    const std::lock_guard lock(mutex);
                    snapshot = text(state);
                }
                co_await client.send({.event = "snapshot", .data = std::string_view(snapshot)});
                co_await asio::post(client.get_executor(), asio::use_awaitable);
                co_await client.send({.event = "more", .data = "of it"});
                client.resume();
            });
        });
        std::atomic<bool> go_on{true};
        std::vector<std::thread> publishers;
        for (int i = 0; i < 2; ++i) {
            publishers.emplace_back([&] {
                while (go_on) {
                    {
                        const std::lock_guard lock(mutex);
                        server.publish("/prices", {.data = text(++state)});
                    }
                    std::this_thread::yield();
                }
            });
        }
        for (int round = 0; round < 30; ++round) {
            event_client client(server.port(), "/prices");
            auto event = client.next();
            REQUIRE(event.type == "snapshot");
            const std::uint64_t seen = number(event.data);
            REQUIRE(client.next().type == "more");
            // The position was fixed before the snapshot was read, so some of the tail may be in
            // it already: those come first, and from then on each number once.
            std::uint64_t last = number(client.next().data);
            REQUIRE(last <= seen + 1);
            for (int n = 0; n < 50 || last <= seen; ++n) {
                const std::uint64_t next = number(client.next().data);
                REQUIRE(next == last + 1);
                last = next;
            }
        }
        go_on = false;
        for (auto& t : publishers) t.join();
    }

    TEST_CASE("with position and snapshot under one lock the two fit exactly") {
        std::mutex mutex;
        std::uint64_t state = 0;
        running_server server(with_threads(2), [&](sse::server& s) {
            s.route("GET", "/prices", [&](sse::stream& client) -> handler_result {
                std::string snapshot;
                {
                    const std::lock_guard lock(mutex);
                    client.subscribe("/prices", {.held = true});
                    snapshot = text(state);
                }
                co_await client.send({.event = "snapshot", .data = std::string_view(snapshot)});
                client.resume();
            });
        });
        std::atomic<bool> go_on{true};
        std::vector<std::thread> publishers;
        for (int i = 0; i < 2; ++i) {
            publishers.emplace_back([&] {
                while (go_on) {
                    {
                        const std::lock_guard lock(mutex);
                        if (!server.try_publish("/prices", {.data = text(state + 1)})) ++state;
                    }
                    std::this_thread::yield();
                }
            });
        }
        for (int round = 0; round < 30; ++round) {
            event_client client(server.port(), "/prices");
            const auto event = client.next();
            REQUIRE(event.type == "snapshot");
            std::uint64_t last = number(event.data);
            for (int n = 0; n < 50; ++n) REQUIRE(number(client.next().data) == ++last);
        }
        go_on = false;
        for (auto& t : publishers) t.join();
    }

    TEST_CASE("a handler that forgets resume() lets its stream go on when it returns") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/route", [](sse::stream& client) -> handler_result {
                client.subscribe("/t", {.held = true});
                co_await client.send({.data = "snapshot"});
            });
        });
        event_client client(server.port(), "/route");
        CHECK(client.next().data == "snapshot");
        server.publish("/t", {.data = "1"});
        CHECK(client.next().data == "1");
    }

    TEST_CASE("several subscriptions of one handler give each message once, in order") {
        running_server server(with_threads(1), [](sse::server& s) {
            s.route("GET", "/route", [](sse::stream& client) -> handler_result {
                client.subscribe("/a", {.from = sse::start::last(2)});
                client.subscribe("/b", {.from = sse::start::oldest()});
                client.subscribe("/b/c", {.held = true});
                co_await client.send({.data = "snapshot"});
                client.resume();
            });
        });
        for (int n = 1; n <= 8; ++n) {
            server.publish(n % 2 == 0 ? "/a" : "/b/c", {.data = std::to_string(n)});
        }
        event_client client(server.port(), "/route");
        CHECK(client.next().data == "snapshot");
        server.broadcast({.data = "9"});
        server.publish("/a", {.data = "end"});
        CHECK(all_until_end(client) == "1,3,5,6,7,8,9,");
    }

    TEST_CASE("another thread subscribes an open stream to more, and to less, by post_to") {
        running_server server(with_threads(2));
        event_client client(server.port(), "/subscribe/a");
        const std::uint64_t id = only_stream(server);
        std::atomic<int> results{0};
        server.publish("/b", {.data = "before"});
        server.post_to(id, [&](sse::stream& s) {
            s.subscribe("/b");
            results += s.topics() == std::vector<std::string>{"/a", "/b"} ? 1 : 0;
        });
        REQUIRE(eventually([&] { return results == 1; }));
        server.publish("/a", {.data = "1"});
        server.publish("/b", {.data = "2"});
        CHECK(client.next().data == "1");
        CHECK(client.next().data == "2");
        server.post_to(id, [&](sse::stream& s) {
            results += s.unsubscribe("/a") ? 10 : 0;
            results += s.unsubscribe("/a") ? 0 : 100;
        });
        REQUIRE(eventually([&] { return results == 111; }));
        server.publish("/a", {.data = "not this"});
        server.publish("/b", {.data = "3"});
        CHECK(client.next().data == "3");
        server.post_to(id, [](sse::stream& s) {
            s.subscribe("/c", {.from = sse::start::oldest(), .held = true});
        });
        server.publish("/c", {.data = "4"});
        server.post_to(id, [](sse::stream& s) { s.resume(); });
        CHECK(client.next().data == "4");
        server.post_to(id, [](sse::stream& s) { s.subscribe("no//topic"); }); // throws: it ends
        CHECK_FALSE(client.next_or_end());
    }

    TEST_CASE("a filter decides, and one that throws ends its stream only") {
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        running_server server(o, [](sse::server& s) {
            s.route("GET", "/even", [](sse::stream& client) -> handler_result {
                client.subscribe("/t", {.filter = [](const sse::published& m) {
                                     return m.topic() == "/t" && number(m.data()) % 2 == 0;
                                 }});
                co_return;
            });
            s.route("GET", "/broken", [](sse::stream& client) -> handler_result {
                client.subscribe("/t", {.filter = [](const sse::published& m) -> bool {
                                     if (m.data() == "3") throw std::runtime_error("three");
                                     return true;
                                 }});
                co_return;
            });
        });
        event_client even(server.port(), "/even"), broken(server.port(), "/broken"),
            plain(server.port(), "/subscribe/t");
        for (int n = 1; n <= 6; ++n) server.publish("/t", {.data = std::to_string(n)});
        CHECK(even.next().data == "2");
        CHECK(even.next().data == "4");
        CHECK(even.next().data == "6");
        for (int n = 1; n <= 6; ++n) CHECK(plain.next().data == std::to_string(n));
        CHECK(broken.wait_for_close() == ending::fin);
        CHECK(eventually([&] { return errors.count == 1; }));
        CHECK(server.counters().streams == 2);
    }
}

TEST_SUITE("clients that fall behind") {
    TEST_CASE("disconnect: it is let go, counted, and told the gap when it comes back") {
        lagging_server server(small_history(sse::lag_policy::disconnect));
        publish_large(server, server.reader, 1, many);
        CHECK(eventually([&] { return server.counters().lagged == 1; }));
        std::uint64_t last = 0;
        std::string id;
        while (const auto event = server.stuck.next_or_end()) {
            REQUIRE(number_of(*event) == last + 1);
            last = number_of(*event);
            id = event->id;
        }
        CHECK(last < many);
        event_client again(server.port(), "/subscribe/t", resuming(id));
        const auto event = again.next();
        CHECK(parse_json(event.data)["reason"] == "too_old");
        CHECK(parse_json(event.data)["from"] == id);
        CHECK(number_of(again.next()) == place_of(parse_json(event.data)["to"]) + 1);
    }

    TEST_CASE("skip: it is told what it missed, once, and goes on live") {
        lagging_server server(small_history(sse::lag_policy::skip));
        publish_large(server, server.reader, 1, many);
        std::uint64_t last = 0, from = 0, to = 0;
        int gaps = 0;
        for (bool sent = false; last <= many;) {
            const auto event = server.stuck.next();
            if (event.type == "gap") {
                auto fields = parse_json(event.data);
                CHECK(fields["reason"] == "lapped");
                from = place_of(fields["from"]);
                to = place_of(fields["to"]);
                CHECK(place_of(event.id) == to);
                ++gaps;
            } else {
                REQUIRE(number_of(event) == (gaps != 0 && last < to ? to + 1 : last + 1));
                if (gaps == 0) CHECK(place_of(event.id) == number_of(event));
                last = number_of(event);
            }
            if (gaps == 1 && !std::exchange(sent, true)) {
                CHECK(from == last);
                server.publish("/t", {.data = text(many + 1)});
            }
        }
        CHECK(gaps == 1);
        CHECK(last == many + 1);
        CHECK(server.counters().gaps == 1);
        CHECK(server.counters().lagged == 0);
    }

    TEST_CASE("conflate: it gets the newest of each key, and nothing twice") {
        constexpr std::uint64_t keys = 5;
        lagging_server server(small_history(sse::lag_policy::conflate));
        publish_large(server, server.reader, 1, many, keys);
        std::map<std::uint64_t, std::uint64_t> newest;
        std::uint64_t last = 0, count = 0;
        server.publish("/t", {.data = text(many + 1), .key = "end"});
        while (last != many + 1) {
            const auto event = server.stuck.next();
            REQUIRE(event.type == "message");
            REQUIRE(number_of(event) > last);
            last = number_of(event);
            if (last <= many) newest[last % keys] = last;
            ++count;
        }
        for (std::uint64_t key = 0; key < keys; ++key) CHECK(newest[key] > many - keys);
        CHECK(count < many);
        CHECK(server.counters().conflated > 0);
        CHECK(server.counters().conflated + count <= many + 1);
        CHECK(server.counters().gaps == 0);
    }

    TEST_CASE("hold_back: publishers find no room until it reads again, and nothing is lost") {
        sse::options o = small_history(sse::lag_policy::hold_back);
        o.timeouts.stall = 60s;
        running_server server(o);
        event_client stuck(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        std::uint64_t published = 0;
        const auto publish_some = [&] {
            for (int n = 0; n < 20; ++n) {
                const std::string data = large(published + 1);
                const auto failed = server.try_publish("/t", {.data = std::string_view(data)});
                if (failed) {
                    CHECK(failed == sse::errc::no_room);
                    return false;
                }
                ++published;
            }
            return true;
        };
        for (int round = 0; round < 100 && publish_some(); ++round) let_it_work(server, 2);
        let_it_work(server);
        REQUIRE(server.try_publish("/t", {.data = "x"}) == sse::errc::no_room);
        std::thread waiting([&] { server.publish("/t", {.data = text(published + 1)}); });
        for (std::uint64_t n = 1; n <= published + 1; ++n) {
            const auto event = stuck.next();
            REQUIRE(event.type == "message");
            REQUIRE(number_of(event) == n);
        }
        waiting.join();
        CHECK(eventually([&] { return !server.try_publish("/t", {.data = "free"}); }));
        CHECK(stuck.next().data == "free");
        CHECK(server.counters().lagged == 0);
    }

    TEST_CASE("hold_back: one that never reads again is let go after stall_timeout") {
        sse::options o = small_history(sse::lag_policy::hold_back);
        o.timeouts.stall = 300ms;
        running_server server(o);
        event_client stuck(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
        for (std::uint64_t n = 1; n <= 2 * many; ++n) server.publish("/t", {.data = large(n)});
        CHECK(eventually([&] { return server.counters().streams == 0; }));
        CHECK(server.counters().lagged == 1);
        CHECK_FALSE(server.try_publish("/t", {.data = "free"}));
    }

    TEST_CASE("how far behind a stream is can be asked") {
        sse::options o = watchful();
        lagging_server server(o);
        publish_large(server, server.reader, 1, many);
        std::uint64_t id = 0;
        for (const auto& one : server.streams()) {
            if (one.lag.messages > 0) {
                CHECK(id == 0);
                id = one.id;
            }
        }
        REQUIRE(id != 0);
        sse::lag behind;
        gate asked;
        server.post_to(id, [&](sse::stream& s) {
            behind = s.lag();
            asked.open();
        });
        REQUIRE(asked.wait());
        CHECK(behind.messages > 0);
        CHECK(behind.messages < many);
        CHECK(behind.bytes > behind.messages * 50'000);
        CHECK(behind.bytes < behind.messages * 51'000);
        for (std::uint64_t n = 1; n <= many; ++n) server.stuck.next();
        CHECK(eventually([&] {
            const auto all = server.streams();
            return std::all_of(all.begin(), all.end(),
                               [](const auto& one) { return one.lag.messages == 0; });
        }));
    }

    TEST_CASE("max_unsent_bytes sends away who is so far behind, but skips or conflates where "
              "that was asked") {
        for (const auto policy : {sse::lag_policy::disconnect, sse::lag_policy::skip,
                                  sse::lag_policy::conflate, sse::lag_policy::hold_back}) {
            CAPTURE(static_cast<int>(policy));
            sse::options o = watchful();
            o.history.lag = policy;
            o.limits.unsent_bytes = 1'000'000;
            lagging_server server(o);
            publish_large(server, server.reader, 1, many, 3);
            const bool stays =
                policy == sse::lag_policy::skip || policy == sse::lag_policy::conflate;
            if (!stays) {
                CHECK(eventually([&] { return server.counters().lagged == 1; }));
                CHECK(server.counters().streams == 1);
                continue;
            }
            let_it_work(server);
            std::uint64_t last = 0, count = 0, gaps = 0;
            bool sent = false;
            while (last != many + 1) {
                if (!sent && (last == many || gaps == 1)) {
                    server.publish("/t", {.data = text(many + 1), .key = "end"});
                    sent = true;
                }
                const auto event = server.stuck.next();
                ++count;
                if (event.type == "gap") {
                    CHECK(parse_json(event.data)["reason"] == "lapped");
                    ++gaps;
                    continue;
                }
                REQUIRE(number_of(event) > last);
                last = number_of(event);
            }
            CHECK(count < many);
            CHECK((gaps != 0) == (policy == sse::lag_policy::skip));
            CHECK(server.counters().lagged == 0);
        }
    }
}

TEST_SUITE("topics of a request") {
    std::string seen_by(sse::server & server, event_client & client) {
        for (const char* topic : {"/a", "/b/c", "/d", "/e f"}) {
            server.publish(topic, {.data = topic});
        }
        server.broadcast({.data = "end"});
        return all_until_end(client);
    }

    TEST_CASE("it names them by its path, by ?topic=, or by both") {
        running_server server(with_threads(2));
        const auto seen = [&](const std::string& target) {
            event_client client(server.port(), target);
            return seen_by(server, client);
        };
        CHECK(seen("/subscribe") == "/a,/b/c,/d,/e f,");
        CHECK(seen("/subscribe/a") == "/a,");
        CHECK(seen("/subscribe/?topic=a&topic=%2Fb") == "/a,/b/c,");
        CHECK(seen("/subscribe?topic=d") == "/d,");
        CHECK(seen("/subscribe/a?topic=d&topic=a") == "/a,/d,");
        CHECK(seen("/subscribe?topic=e+f&topic=d") == "/d,/e f,");
        CHECK(seen("/subscribe?topic=e%20f") == "/e f,");
    }

    /// A stream that was asked for by POST.
    std::string posted(sse::server & server, const std::string& target, const std::string& type,
                       const std::string& body) {
        connection peer(server.port());
        peer.send_request("POST", target, {{"Content-Type", type}}, body);
        const auto head = peer.read_head();
        CHECK(head.status == 200);
        CHECK(head.header("Content-Type") == "text/event-stream");
        for (const char* topic : {"/a", "/b/c", "/d"}) server.publish(topic, {.data = topic});
        server.broadcast({.data = "end"});
        std::string all;
        for (const auto& event : decode_event_stream(peer.read_through("data: end\n\n"))) {
            if (event.data != "end") all += event.data + ",";
        }
        return all;
    }

    TEST_CASE("or by a body, a form or one on each line") {
        running_server server;
        const std::string form = "application/x-www-form-urlencoded";
        CHECK(posted(server, "/subscribe", form, "topic=a&other=d&topic=%2Fb%2Fc") == "/a,/b/c,");
        CHECK(posted(server, "/subscribe/", form + "; charset=utf-8", "topic=d") == "/d,");
        CHECK(posted(server, "/subscribe", "text/plain", "a\n/b\n") == "/a,/b/c,");
        CHECK(posted(server, "/subscribe", "text/plain; charset=utf-8", "a\r\n\r\nd") == "/a,/d,");
        CHECK(posted(server, "/subscribe/d", "text/plain", "a") == "/a,/d,");
        CHECK(posted(server, "/subscribe?topic=d", form, "topic=a") == "/a,/d,");
        const auto answer = http_request(server.port(), "POST", "/subscribe",
                                         {{"Content-Type", "text/plain"}}, "a\nb//c\n");
        CHECK(answer.status == 400);
    }

    TEST_CASE("as many as the limit allows, and not one more") {
        running_server server;
        const auto target = [](int count) {
            std::string made = "/subscribe?topic=t0";
            for (int n = 1; n < count; ++n) made += "&topic=t" + std::to_string(n);
            return made;
        };
        event_client most(server.port(), target(128));
        server.publish("/t127", {.data = "x"});
        CHECK(most.next().data == "x");
        CHECK(http_get(server.port(), target(129)).status == 400);
        std::string lines;
        for (int n = 0; n < 129; ++n) lines += "t" + std::to_string(n) + "\n";
        CHECK(http_request(server.port(), "POST", "/subscribe", {{"Content-Type", "text/plain"}},
                           lines)
                  .status == 400);
        CHECK(http_get(server.port(), "/subscribe/x" + target(128).substr(10)).status == 400);
        // Nor many that are deep: each segment costs memory.
        std::string deep = "/s";
        for (int i = 1; i < 32; ++i) deep += "/s";
        std::string form;
        for (int i = 0; i < 16; ++i) form += deep.substr(2) + "/" + std::to_string(i) + "\n";
        const auto too_deep = http_request(server.port(), "POST", "/subscribe",
                                           {{"Content-Type", "text/plain"}}, form + "one/more\n");
        CHECK(too_deep.status == 400);
        CHECK(too_deep.body == "Topics too deep; at most 512 segments in all\n");
        CHECK(server.counters().streams == 1);
    }

    TEST_CASE("one bad topic refuses all of them, and HEAD opens nothing") {
        std::atomic<int> connects{0};
        sse::options o = with_threads(1);
        o.hooks.on_connect = [&](sse::stream&) { ++connects; };
        running_server server(o);
        for (const char* bad : {"b//c", "..", "a/./b", "%01", ""}) {
            CAPTURE(bad);
            const std::string query = "topic=a&topic=" + std::string(bad);
            // An empty one is the root, as in a path.
            const int expected = *bad == '\0' ? 200 : 400;
            connection peer(server.port());
            peer.send_request("GET", "/subscribe?" + query);
            CHECK(peer.read_head().status == expected);
        }
        CHECK(connects == 1);
        connection peer(server.port());
        peer.send_request("HEAD", "/subscribe/a");
        const auto head = peer.read_head();
        CHECK(head.status == 200);
        CHECK(head.header("Content-Type") == "text/event-stream");
        CHECK(peer.read_to_end().empty());
        CHECK(eventually([&] { return server.counters().streams == 0; }));
        CHECK(server.counters().lagged == 0);
    }
}

} // namespace replay_test
