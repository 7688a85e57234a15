// jobs.cpp - covers >>job, >>joblog: work that continues on its own, and viewers that attach, leave
// and come back.
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <set>
#include <thread>

namespace jobs_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// Jobs that are looked at under /jobs/<name>.
sse::handler views(sse::jobs& all) {
    return [&all](sse::stream& client) {
        return all.serve(client, client.request().path_value("id"));
    };
}

struct jobs_server {
    sse::jobs jobs;
    running_server server;

    explicit jobs_server(sse::job_options j = {}, sse::options o = with_threads(1))
        : jobs(std::move(j)), server(std::move(o), [this](sse::server& s) {
              s.route("GET", "/jobs/{id}", views(jobs));
          }) {}
    std::uint16_t port() const { return server.port(); }
    /// A viewer that comes with an id; "": with none.
    event_client view(const std::string& name, const std::string& id = "",
                      const connect_options& options = {}) {
        header_list headers;
        if (!id.empty()) headers.emplace_back("Last-Event-ID", id);
        return event_client(port(), "/jobs/" + name, headers, options);
    }
    int status(const std::string& name, const std::string& id = "") {
        connection peer(port());
        header_list headers;
        if (!id.empty()) headers.emplace_back("Last-Event-ID", id);
        peer.send_request("GET", "/jobs/" + name, headers);
        return peer.read_head().status;
    }
};

std::string text(std::size_t n) { return std::to_string(n); }

/// Data and types of all events up to the end of the stream: "1,2,done;".
std::string all_of(event_client& client) {
    std::string all;
    while (const auto event = client.next_or_end()) {
        all += event->type == "message" ? event->data + "," : event->type + ";";
    }
    return all;
}

sse::errc code_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const std::system_error& e) { return static_cast<sse::errc>(e.code().value()); }
    return sse::errc{};
}

/// The number in an id or a gap's word for one, `<epoch>-<number>`.
std::size_t number_in(std::string_view id) {
    return std::stoul(std::string(id.substr(id.rfind('-') + 1)));
}

/// What a gap tells: its "to" as a number.
std::size_t end_of_gap(const decoded& event) {
    const std::size_t at = event.data.find(R"("to":")");
    if (at == std::string::npos) throw std::runtime_error("no gap: " + event.data);
    const std::string_view id = std::string_view(event.data).substr(at + 6);
    return number_in(id.substr(0, id.find('"')));
}

sse::job_options keeping(std::size_t messages) {
    sse::job_options o;
    o.history = messages;
    return o;
}

} // namespace

TEST_SUITE("viewers") {
    TEST_CASE("a viewer gets what a job has sent, then what it sends, and its end") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        job.send({.data = "0"});
        job.send({.event = "log", .data = "1"});
        event_client early = s.view("a");
        CHECK(early.head().header("Transfer-Encoding") == "chunked");
        CHECK(early.next().data == "0");
        const decoded log = early.next();
        CHECK(log.type == "log");
        job.send({.data = "2"});
        CHECK(early.next().data == "2");
        event_client late = s.view("a");
        job.finish();
        CHECK(early.next().type == "done");
        CHECK(early.wait_for_close() == ending::last_chunk);
        CHECK(all_of(late) == "0,log;2,done;");
        CHECK(late.wait_for_close() == ending::last_chunk);
        event_client too_late = s.view("a"); // it is kept
        CHECK(all_of(too_late) == "0,log;2,done;");
    }

    TEST_CASE("a viewer's connection serves the next request after the end of a job") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        job.finish({.data = "all"});
        connection peer(s.port());
        for (int n = 0; n < 2; ++n) {
            peer.send_request("GET", "/jobs/a");
            CHECK(peer.read_head().status == 200);
            const std::string body = peer.read_through("\r\n0\r\n\r\n");
            CHECK(body.find("data: all") != std::string::npos);
            CHECK(peer.request("GET", "/health").status == 200);
            CHECK(peer.request("GET", "/jobs/none").status == 404);
        }
    }

    TEST_CASE("who comes back with an id gets what is behind it, of every id that there was") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        for (std::size_t n = 0; n < 10; ++n) job.send({.data = text(n)});
        job.finish();
        event_client first = s.view("a");
        std::vector<std::string> ids;
        while (const auto event = first.next_or_end()) ids.push_back(event->id);
        REQUIRE(ids.size() == 11);
        CHECK(std::set(ids.begin(), ids.end()).size() == 11);
        for (std::size_t n = 0; n < 10; ++n) {
            event_client again = s.view("a", ids[n]);
            std::string expected;
            for (std::size_t k = n + 1; k < 10; ++k) expected += text(k) + ",";
            CHECK(all_of(again) == expected + "done;");
        }
        CHECK(s.status("a", ids[10]) == 204); // which ends an EventSource for good
        CHECK(http_get(s.port(), "/jobs/a?lastEventId=" + ids[10]).status == 204);
        event_client by_query(s.port(), "/jobs/a?lastEventId=" + ids[8]);
        CHECK(all_of(by_query) == "9,done;");
    }

    TEST_CASE("who has had all that there is of a running job waits for more") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        job.send({.data = "0"});
        const std::string id = s.view("a").next().id;
        event_client again = s.view("a", id);
        job.send({.data = "1"});
        CHECK(again.next().data == "1");
        // A job that has sent nothing is followed from its beginning.
        sse::job empty = s.jobs.start("empty");
        event_client waiting = s.view("empty");
        empty.send({.data = "first"});
        CHECK(waiting.next().data == "first");
    }

    TEST_CASE("an id of something else is told as a gap, and all that is kept comes") {
        jobs_server s;
        sse::job a = s.jobs.start("a"), b = s.jobs.start("b");
        a.send({.data = "a0"});
        for (int n = 0; n < 3; ++n) b.send({.data = "b"});
        a.finish();
        const std::string of_b = s.view("b").next(3).back().id;
        const std::string of_a = s.view("a").next(2).back().id;
        s.server.broadcast({.data = "x"});
        std::string beyond = of_a.substr(0, of_a.rfind('-')) + "-77";
        for (const std::string& id : {of_b, std::string("mine"), std::string("-"), beyond,
                                      s.server.last_id(), of_a + "0000000000000000000000"}) {
            CAPTURE(id);
            event_client viewer = s.view("a", id);
            const decoded gap = viewer.next();
            CHECK(gap.type == "gap");
            CHECK(gap.data.find(id) != std::string::npos);
            CHECK(all_of(viewer) == "a0,done;");
        }
    }

    TEST_CASE("an id that a gap event carries is one to come back with") {
        sse::job_options o = keeping(3);
        o.gap_event = "lost";
        jobs_server s(o);
        sse::job job = s.jobs.start("a");
        for (std::size_t n = 0; n < 10; ++n) job.send({.data = text(n)});
        event_client viewer = s.view("a", "unknown");
        const decoded gap = viewer.next();
        CHECK(gap.type == "lost");
        CHECK(end_of_gap(gap) == 7);
        CHECK(number_in(gap.id) == 7);
        event_client again = s.view("a", gap.id);
        CHECK(again.next().data == "7");
        CHECK(viewer.next().data == "7");
    }

    TEST_CASE("viewers are counted while they are there") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        CHECK(job.viewers() == 0);
        job.send({.data = "0"});
        std::vector<event_client> all;
        for (std::size_t n = 1; n <= 5; ++n) {
            all.push_back(s.view("a"));
            CHECK(all.back().next().data == "0");
            CHECK(job.viewers() == n);
        }
        all[0].reset();
        all[1].close();
        CHECK(eventually([&] { return job.viewers() == 3; }));
        connection head(s.port());
        head.send_request("HEAD", "/jobs/a");
        CHECK(head.read_head().status == 200);
        CHECK(head.read_to_end().empty());
        CHECK(eventually([&] { return job.viewers() == 3; }));
        job.finish();
        CHECK(eventually([&] { return job.viewers() == 0; }));
        CHECK(eventually([&] { return s.server.counters().streams == 0; }));
    }

    TEST_CASE("a viewer whose job is silent gets heartbeats, which change no id") {
        sse::options o = with_threads(1);
        o.heartbeat = 15ms;
        jobs_server s({}, o);
        sse::job job = s.jobs.start("a");
        job.send({.data = "0"});
        event_client viewer = s.view("a");
        const std::string id = viewer.next().id;
        s.server.broadcast({.data = "not of the job"});
        for (int n = 0; n < 3; ++n) CHECK(viewer.next_comment().empty());
        CHECK(viewer.decoder().last_event_id() == id);
        job.finish();
        CHECK(viewer.next().type == "done");
    }

    TEST_CASE("a handler may say more before it serves a job") {
        sse::jobs jobs;
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/jobs/{id}", [&](sse::stream& client) -> handler_result {
                client.add_header("X-Job", client.request().path_value("id"));
                co_await client.send({.event = "hello", .data = ""});
                co_await jobs.serve(client, client.request().path_value("id"));
                co_await client.send({.event = "bye", .data = ""});
            });
        });
        sse::job job = jobs.start("a");
        job.finish({.data = "x"});
        event_client viewer(server.port(), "/jobs/a");
        CHECK(viewer.head().header("X-Job") == "a");
        CHECK(viewer.next().type == "hello");
        CHECK(viewer.next().data == "x");
        CHECK(viewer.next().type == "bye");
        CHECK(viewer.wait_for_close() == ending::last_chunk);
    }
}

TEST_SUITE("producers") {
    TEST_CASE("what a job may not send is refused, and nothing of it comes") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        CHECK_THROWS_AS(job.send({.data = "x", .id = "1"}), std::invalid_argument);
        CHECK_THROWS_AS(job.send({.data = "x", .id = ""}), std::invalid_argument);
        CHECK_THROWS_AS(job.finish({.data = "x", .id = "1"}), std::invalid_argument);
        CHECK(code_of([&] { job.send({.event = "a\nb"}); }) == sse::errc::bad_event);
        CHECK(code_of([&] { job.send({}); }) == sse::errc::empty_message);
        CHECK(code_of([&] { job.finish({}); }) == sse::errc::empty_message);
        job.send({.data = "0"}); // it still runs
        job.finish({.event = "end", .data = "1"});
        CHECK(code_of([&] { job.send({.data = "2"}); }) == sse::errc::closed);
        CHECK(code_of([&] { job.finish(); }) == sse::errc::closed);
        event_client viewer = s.view("a");
        CHECK(all_of(viewer) == "0,end;");
    }

    TEST_CASE("a job that is destroyed before its end is abandoned, one after it is not") {
        jobs_server s;
        std::optional<event_client> viewer;
        {
            sse::job job = s.jobs.start("a");
            job.send({.data = "0"});
            viewer.emplace(s.view("a"));
            CHECK(viewer->next().data == "0");
        }
        CHECK(viewer->next().type == "abandoned");
        CHECK(viewer->wait_for_close() == ending::last_chunk);
        { s.jobs.start("b").finish({.data = "b"}); }
        event_client b = s.view("b");
        CHECK(all_of(b) == "b,");
    }

    TEST_CASE("a stop reaches the producer, and a viewer that leaves does not") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        {
            event_client viewer = s.view("a");
            CHECK(eventually([&] { return job.viewers() == 1; }));
        }
        CHECK(eventually([&] { return job.viewers() == 0; }));
        CHECK_FALSE(job.stop_requested());
        CHECK_FALSE(s.jobs.stop("b"));
        CHECK(s.jobs.stop("a"));
        CHECK(s.jobs.stop("a"));
        CHECK(job.stop_requested());
        job.send({.data = "what it has"}); // it may say more before it ends
        job.finish({.event = "stopped"});
        event_client viewer = s.view("a");
        CHECK(all_of(viewer) == "what it has,stopped;");
        CHECK_FALSE(s.jobs.stop("a")); // it runs no more
    }

    TEST_CASE("a stop ends the wait of a producer that is a coroutine, also after the job") {
        sse::jobs jobs;
        asio::io_context io;
        auto job = std::make_unique<sse::job>(jobs.start("a"));
        int stopped = 0;
        const auto wait = [&] {
            asio::co_spawn(io, job->async_stop_requested(), [&](std::exception_ptr failed) {
                CHECK(!failed);
                ++stopped;
            });
        };
        wait();
        wait();
        io.poll();
        CHECK(stopped == 0);
        job->send({.data = "more"});
        io.poll();
        CHECK(stopped == 0);
        CHECK(jobs.stop("a"));
        io.restart();
        io.run_for(10s);
        CHECK(stopped == 2);
        wait(); // at once
        io.restart();
        io.run_for(10s);
        CHECK(stopped == 3);
        asio::cancellation_signal cancel;
        bool cancelled = false;
        auto other = std::make_unique<sse::job>(jobs.start("b"));
        asio::co_spawn(io, other->async_stop_requested(),
                       asio::bind_cancellation_slot(cancel.slot(), [&](std::exception_ptr failed) {
                           cancelled = failed != nullptr;
                       }));
        io.restart();
        io.poll();
        other.reset();
        cancel.emit(asio::cancellation_type::terminal);
        io.restart();
        io.run_for(10s);
        CHECK(cancelled);
    }

    TEST_CASE("a job that is moved goes on, and what another is moved over is abandoned") {
        jobs_server s;
        sse::job a = s.jobs.start("a");
        std::optional<sse::job> moved(std::move(a));
        moved->send({.data = "0"});
        event_client viewer = s.view("a");
        CHECK(viewer.next().data == "0");
        {
            sse::job b = s.jobs.start("b");
            *moved = std::move(b);
        }
        CHECK(viewer.next().type == "abandoned");
        moved->finish();
        event_client of_b = s.view("b");
        CHECK(all_of(of_b) == "done;");
    }

    TEST_CASE("a newer message of a key takes the place of the older, for who had not had it") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        event_client live = s.view("a");
        job.send({.data = "p1", .key = "progress"});
        CHECK(live.next().data == "p1");
        job.send({.data = "x"});
        job.send({.data = "other", .key = "o"});
        job.send({.data = "p2", .key = "progress"});
        CHECK(live.next().data == "x");
        CHECK(live.next().data == "other");
        CHECK(live.next().data == "p2");
        event_client late = s.view("a");
        CHECK(late.next().data == "x");
        CHECK(late.next().data == "other");
        const decoded p2 = late.next();
        CHECK(p2.data == "p2");
        job.send({.data = "p3", .key = "progress"});
        job.finish();
        CHECK(all_of(live) == "p3,done;");
        event_client again = s.view("a", p2.id);
        CHECK(all_of(again) == "p3,done;"); // and no gap: nothing was lost
    }

    TEST_CASE("of a key only the newest takes a place of the history") {
        jobs_server s(keeping(4));
        sse::job job = s.jobs.start("a");
        job.send({.data = "first"});
        for (std::size_t n = 0; n < 100; ++n) job.send({.data = text(n), .key = "k"});
        job.send({.data = "last"});
        job.finish();
        event_client viewer = s.view("a");
        CHECK(all_of(viewer) == "first,99,last,done;");
    }

    TEST_CASE("an ephemeral message is for who is there, and pushes out nothing") {
        jobs_server s(keeping(8));
        sse::job job = s.jobs.start("a");
        for (std::size_t n = 0; n < 4; ++n) job.send({.data = text(n)});
        event_client live = s.view("a");
        CHECK(live.next(4).back().data == "3");
        for (std::size_t n = 0; n < 100; ++n) {
            job.send({.data = "tick", .ephemeral = true});
            CHECK(live.next().data == "tick");
        }
        event_client late = s.view("a");
        job.send({.data = "4"});
        CHECK(live.next().data == "4");
        job.finish();
        CHECK(all_of(late) == "0,1,2,3,4,done;");
    }

    TEST_CASE("the last message comes to all, even if it is said to be ephemeral") {
        jobs_server s;
        sse::job job = s.jobs.start("a");
        job.send({.data = "0"});
        try {
            job.finish({.event = "end", .data = "x", .ephemeral = true});
        } catch (const std::invalid_argument&) { job.finish({.event = "end", .data = "x"}); }
        event_client late = s.view("a");
        CHECK(all_of(late) == "0,end;");
    }

    TEST_CASE("who comes too late for the oldest messages is told, by number and by bytes") {
        sse::job_options by_bytes;
        by_bytes.history_bytes = 400;
        for (const sse::job_options& o : {keeping(5), by_bytes}) {
            jobs_server s(o);
            sse::job job = s.jobs.start("a");
            for (std::size_t n = 0; n < 50; ++n) job.send({.data = text(n)});
            event_client viewer = s.view("a");
            const decoded gap = viewer.next();
            CHECK(gap.type == "gap");
            const std::size_t from = end_of_gap(gap);
            CHECK(from > 20);
            CHECK(from < 50);
            for (std::size_t n = from; n < 50; ++n) CHECK(viewer.next().data == text(n));
        }
    }

    TEST_CASE("one message is kept, however large it is") {
        sse::job_options o;
        o.history_bytes = 10;
        jobs_server s(o);
        sse::job job = s.jobs.start("a");
        const std::string large(100'000, 'x');
        job.send({.data = large});
        event_client viewer = s.view("a");
        CHECK((viewer.next().data == large));
        job.finish();
        CHECK(viewer.next().type == "done");
    }

    TEST_CASE("a viewer that is too slow is told what it lost, and holds back nobody") {
        jobs_server s(keeping(8));
        sse::job job = s.jobs.start("a");
        job.send({.data = "begin"});
        event_client slow = s.view("a", "", {.receive_buffer = 4096});
        event_client fast = s.view("a");
        CHECK(slow.next().data == "begin");
        CHECK(fast.next().data == "begin");
        const std::string padding(100'000, 'x');
        constexpr std::size_t messages = 120;
        for (std::size_t n = 1; n <= messages; ++n) {
            const std::string data = text(n) + " " + padding;
            job.send({.data = data});
            REQUIRE(fast.next().data.starts_with(text(n) + " "));
        }
        job.finish();
        CHECK(fast.next().type == "done");
        std::size_t expected = 1, gaps = 0, seen = 0;
        for (decoded e = slow.next(); e.type != "done"; e = slow.next()) {
            if (e.type == "gap") {
                ++gaps;
                CHECK(e.data.find("lapped") != std::string::npos);
                CHECK(end_of_gap(e) > expected);
                expected = end_of_gap(e);
            } else {
                REQUIRE(std::stoul(e.data) == expected);
                ++expected;
                ++seen;
            }
        }
        CHECK(expected == messages + 1);
        CHECK(gaps >= 1);
        CHECK(seen < messages);
    }
}

TEST_SUITE("names") {
    TEST_CASE("a name is taken while its job runs or is kept, then free again") {
        using clock = std::chrono::steady_clock;
        sse::job_options o;
        o.keep = 40ms;
        jobs_server s(o);
        std::optional<sse::job> job = s.jobs.start("a");
        CHECK(code_of([&] { s.jobs.start("a"); }) == sse::errc::job_exists);
        job->send({.data = "old"});
        const std::string id = s.view("a").next().id;
        const auto finished = clock::now();
        job->finish();
        CHECK(eventually([&] { return !s.jobs.known("a"); }));
        CHECK(clock::now() - finished >= 40ms);
        CHECK(s.status("a") == 404);
        CHECK(s.status("a", id) == 404);
        sse::job second = s.jobs.start("a");
        CHECK(s.jobs.known("a"));
        job.reset(); // the end of the old one is not that of the new one
        second.send({.data = "new"});
        event_client viewer = s.view("a", id);
        const decoded gap = viewer.next();
        CHECK(gap.type == "gap"); // what it knows is of another job
        CHECK(viewer.next().data == "new");
    }

    TEST_CASE("the ids of its messages name a job, as long as it is known") {
        sse::job_options o;
        o.keep = 40ms;
        jobs_server s(o);
        sse::job a = s.jobs.start("a"), b = s.jobs.start("b");
        a.send({.data = "0"});
        a.send({.data = "1"});
        b.send({.data = "0"});
        event_client of_a = s.view("a");
        CHECK(s.jobs.name_of(of_a.next().id) == "a");
        const std::string id = of_a.next().id;
        CHECK(s.jobs.name_of(id) == "a");
        CHECK(s.jobs.name_of(s.view("b").next().id) == "b");
        for (const std::string_view strange : {"", "-", "-1", "0", "a-1", "abcdefgh-1"}) {
            CAPTURE(strange);
            CHECK(s.jobs.name_of(strange).empty());
        }
        CHECK(s.jobs.name_of(id.substr(1)).empty());
        a.finish();
        CHECK(eventually([&] { return s.jobs.name_of(id).empty(); }));
    }

    TEST_CASE("a running job does not expire") {
        sse::job_options o;
        o.keep = 0ms;
        jobs_server s(o);
        sse::job job = s.jobs.start("a");
        job.send({.data = "0"});
        CHECK(s.jobs.known("a"));
        event_client viewer = s.view("a");
        CHECK(viewer.next().data == "0");
        job.finish();
        CHECK(viewer.next().type == "done"); // who is there gets the end
        CHECK_FALSE(s.jobs.known("a"));
        CHECK(s.status("a") == 404);
    }

    TEST_CASE("more jobs than may be at once are refused, unless finished ones make room") {
        sse::job_options o;
        o.max_jobs = 3;
        jobs_server s(o);
        sse::job a = s.jobs.start("a"), b = s.jobs.start("b"), c = s.jobs.start("c");
        CHECK(code_of([&] { s.jobs.start("d"); }) == sse::errc::too_many_jobs);
        CHECK_FALSE(s.jobs.known("d"));
        b.finish();
        a.finish();
        event_client viewer = s.view("b");
        sse::job d = s.jobs.start("d");
        CHECK(s.jobs.known("a"));
        CHECK_FALSE(s.jobs.known("b")); // it finished first
        CHECK(all_of(viewer) == "done;");
        CHECK(code_of([&] { s.jobs.start("a"); }) == sse::errc::job_exists);
        sse::job e = s.jobs.start("e");
        CHECK_FALSE(s.jobs.known("a"));
        CHECK(code_of([&] { s.jobs.start("f"); }) == sse::errc::too_many_jobs);
    }

    TEST_CASE("options that cannot work are refused") {
        const auto refused = [](auto change) {
            sse::job_options o;
            change(o);
            CHECK_THROWS_AS(sse::jobs{o}, std::invalid_argument);
        };
        refused([](sse::job_options& o) { o.history = 0; });
        refused([](sse::job_options& o) { o.history_bytes = 0; });
        refused([](sse::job_options& o) { o.max_jobs = 0; });
        refused([](sse::job_options& o) { o.keep = -1ms; });
        refused([](sse::job_options& o) { o.gap_event = "a\nb"; });
    }

    TEST_CASE("a name may be anything that a path can say") {
        jobs_server s;
        for (const char* const name : {"a b", "\xc3\xa9", "..", "%", "{id}"}) {
            sse::job job = s.jobs.start(name);
            job.finish({.data = name});
            std::string escaped;
            for (const char* c = name; *c; ++c) {
                char hex[4];
                std::snprintf(hex, sizeof hex, "%%%02X", static_cast<unsigned char>(*c));
                escaped += hex;
            }
            event_client viewer = s.view(escaped);
            CHECK(viewer.next().data == name);
        }
    }
}

TEST_SUITE("any thread, any order") {
    TEST_CASE("who comes back just when a job finishes gets its end, never a 204 before") {
        jobs_server s;
        int told = 0;
        for (std::size_t n = 0; n < 400; ++n) {
            const std::string name = text(n);
            sse::job job = s.jobs.start(name);
            job.send({.data = "0"});
            connection peer(s.port());
            peer.send_request("GET", "/jobs/" + name);
            const std::string begun = peer.read_through("\n\n\r\n");
            const std::size_t at = begun.find("id: ") + 4;
            const std::string id = begun.substr(at, begun.find('\n', at) - at);
            peer.reset();
            connection again(s.port());
            again.send("GET /jobs/" + name +
                       " HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: " + id + "\r\n\r\n");
            spin_for(n % 40 * 15us);
            job.finish();
            const response head = again.read_head();
            REQUIRE(head.status == 200);
            told += again.read_through("0\r\n\r\n").find("event: done") != std::string::npos;
        }
        CHECK(told == 400);
    }

    TEST_CASE("viewers that leave and come back at random miss nothing but what they are told") {
        struct way {
            std::size_t history;
            bool may_lose;
        };
        for (const way& w : {way{100'000, false}, way{40, true}}) {
            CAPTURE(w.history);
            jobs_server s(keeping(w.history), with_threads(2));
            constexpr std::size_t messages = 4'000, viewers = 6;
            sse::job job = s.jobs.start("a");
            std::atomic<std::size_t> gaps{0}, visits{0}, finished{0}, furthest{0};
            std::mutex mutex;
            std::vector<std::string> wrong;
            const auto watch = [&](std::uint64_t seed) {
                std::mt19937_64 random(seed);
                std::string id;
                std::size_t expected = 0;
                const auto say = [&](const std::string& what) {
                    const std::lock_guard lock(mutex);
                    wrong.push_back(what + " where " + text(expected) + " was expected");
                };
                try {
                    for (;;) {
                        ++visits;
                        event_client viewer = s.view("a", id);
                        for (std::size_t left = random() % 400; left > 0; --left) {
                            const decoded e = viewer.next();
                            id = e.id;
                            if (e.type == "done") {
                                if (expected != messages) say("done");
                                if (viewer.wait_for_close() != ending::last_chunk) say("no end");
                                if (s.status("a", id) != 204) say("no 204");
                                ++finished;
                                return;
                            }
                            std::size_t far = furthest;
                            while (far < expected &&
                                   !furthest.compare_exchange_weak(far, expected)) {}
                            if (e.type == "gap") {
                                ++gaps;
                                if (end_of_gap(e) <= expected) say("gap to " + e.data);
                                expected = end_of_gap(e);
                            } else if (e.data != text(expected++)) {
                                say(e.data);
                                return;
                            }
                        }
                        if (random() % 2 == 0) viewer.reset();
                    }
                } catch (const std::exception& e) { say(e.what()); }
            };
            std::vector<std::thread> threads;
            for (std::size_t n = 0; n < viewers; ++n) threads.emplace_back(watch, 71 + n);
            for (std::size_t n = 0; n < messages; ++n) {
                job.send({.data = text(n)});
                // One of them keeps up, so that the others meet a job that goes on.
                if (n % 50 == 49) CHECK(eventually([&] { return furthest + 100 > n; }));
            }
            job.finish();
            for (std::thread& t : threads) t.join();
            for (const std::string& what : wrong) FAIL_CHECK(what);
            CHECK(finished == viewers);
            CHECK(visits > 3 * viewers);
            if (!w.may_lose) CHECK(gaps == 0);
            if (w.may_lose) CHECK(gaps > 0);
            CHECK(eventually([&] { return job.viewers() == 0; }));
        }
    }

    TEST_CASE("ephemeral messages and those of a key keep their place between the others") {
        jobs_server s(keeping(100'000), with_threads(2));
        constexpr int messages = 1'500;
        sse::job job = s.jobs.start("a");
        std::mutex mutex;
        std::vector<std::string> wrong;
        // "p<n>" is kept, "e<n>" is ephemeral and "k<n>" has a key; each comes behind p<n - 1>.
        const auto watch = [&](std::uint64_t seed, bool stays) {
            std::mt19937_64 random(seed);
            std::string id;
            int expected = 0, ephemeral = 0, newest = -1;
            const auto say = [&](const std::string& what) {
                const std::lock_guard lock(mutex);
                wrong.push_back(what + " behind p" + std::to_string(expected - 1));
            };
            try {
                for (;;) {
                    event_client viewer = s.view("a", id);
                    std::size_t left = stays ? 1'000'000 : random() % 300;
                    for (; left > 0; --left) {
                        const decoded e = viewer.next();
                        id = e.id;
                        if (e.type == "done") {
                            if (expected != messages) say("done");
                            if (newest != messages - 1) say("newest " + std::to_string(newest));
                            if (stays && ephemeral != messages) say("not all ephemeral");
                            return;
                        }
                        const int number = std::stoi(e.data.substr(1));
                        if (e.data[0] == 'p' && number != expected++) say(e.data);
                        if (e.data[0] == 'e' && number != expected) say(e.data);
                        if (e.data[0] == 'k' && (number > expected || number <= newest))
                            say(e.data);
                        if (e.data[0] == 'e') ++ephemeral;
                        if (e.data[0] == 'k') newest = number;
                        if (e.type == "gap") say("gap");
                    }
                }
            } catch (const std::exception& e) { say(e.what()); }
        };
        std::vector<std::thread> threads;
        for (std::uint64_t n = 0; n < 4; ++n) threads.emplace_back(watch, 81 + n, n < 2);
        CHECK(eventually([&] { return job.viewers() == 4; }));
        for (int n = 0; n < messages; ++n) {
            const std::string number = std::to_string(n);
            const std::string e = "e" + number, k = "k" + number, p = "p" + number;
            job.send({.data = e, .ephemeral = true});
            job.send({.data = k, .key = "k"});
            job.send({.data = p});
        }
        job.finish();
        for (std::thread& t : threads) t.join();
        for (const std::string& what : wrong) FAIL_CHECK(what);
    }

    TEST_CASE("a job of several threads numbers its messages in one order for all") {
        jobs_server s({}, with_threads(2));
        sse::job job = s.jobs.start("a");
        std::vector<event_client> viewers;
        for (int n = 0; n < 3; ++n) viewers.push_back(s.view("a"));
        std::vector<std::thread> threads;
        for (std::size_t t = 0; t < 3; ++t) {
            threads.emplace_back([&, t] {
                for (std::size_t n = 0; n < 300; ++n) {
                    const std::string data = text(t) + ":" + text(n);
                    job.send({.data = data});
                }
            });
        }
        for (std::thread& t : threads) t.join();
        job.finish();
        const std::string first = all_of(viewers[0]);
        CHECK(first.ends_with(",done;"));
        CHECK(std::count(first.begin(), first.end(), ',') == 900);
        CHECK((all_of(viewers[1]) == first));
        CHECK((all_of(viewers[2]) == first));
    }

    TEST_CASE("jobs start and finish on many threads, and each viewer sees its own") {
        sse::job_options o;
        o.max_jobs = 50;
        jobs_server s(o, with_threads(2));
        std::atomic<int> right{0};
        std::vector<std::thread> threads;
        for (std::size_t t = 0; t < 4; ++t) {
            threads.emplace_back([&, t] {
                for (std::size_t n = 0; n < 40; ++n) {
                    const std::string name = text(t) + "-" + text(n);
                    sse::job job = s.jobs.start(name);
                    event_client viewer = s.view(name);
                    job.send({.data = name});
                    if (n % 2 == 0) job.finish();
                    if (viewer.next().data == name) ++right;
                    if (n % 2 == 0 && viewer.next().type == "done") ++right;
                }
            });
        }
        for (std::thread& t : threads) t.join();
        CHECK(right == 4 * 40 + 4 * 20);
    }

    TEST_CASE("a viewer goes on at another server, since a job belongs to none") {
        sse::jobs jobs;
        sse::job job = jobs.start("a");
        job.send({.data = "0"});
        std::string id;
        {
            running_server first(with_threads(1), [&](sse::server& s) {
                s.route("GET", "/jobs/{id}", views(jobs));
            });
            event_client viewer(first.port(), "/jobs/a");
            id = viewer.next().id;
            sse::drain_options how;
            how.window = 50ms;
            how.farewell = sse::message{.event = "moving", .data = "x"};
            first.drain(how);
            CHECK(viewer.next().type == "moving");
            CHECK(viewer.wait_for_close() != ending::reset);
            CHECK(viewer.decoder().last_event_id() == id); // the farewell has none
        }
        CHECK(job.viewers() == 0);
        job.send({.data = "1"});
        running_server second(with_threads(1),
                              [&](sse::server& s) { s.route("GET", "/jobs/{id}", views(jobs)); });
        event_client viewer(second.port(), "/jobs/a", {{"Last-Event-ID", id}});
        CHECK(viewer.next().data == "1");
        job.finish();
        CHECK(viewer.next().type == "done");
    }

    TEST_CASE("stop ends the viewers of a job that is silent, and the job goes on") {
        sse::jobs jobs;
        std::optional<sse::job> job = jobs.start("a");
        std::optional<running_server> server;
        server.emplace(with_threads(2),
                       [&](sse::server& s) { s.route("GET", "/jobs/{id}", views(jobs)); });
        std::vector<event_client> viewers;
        for (int n = 0; n < 6; ++n) viewers.emplace_back(server->port(), "/jobs/a");
        REQUIRE(eventually([&] { return job->viewers() == 6; }));
        server->stop();
        server->join();
        CHECK(job->viewers() == 0);
        server.reset();
        job->send({.data = "x"});
        job.reset();
        CHECK(jobs.known("a"));
    }

    TEST_CASE("messages that come while the server stops do no harm") {
        sse::jobs jobs;
        for (int round = 0; round < 20; ++round) {
            CAPTURE(round);
            sse::job job = jobs.start(text(static_cast<std::size_t>(round)));
            std::atomic<bool> enough{false};
            std::thread producer;
            {
                running_server server(with_threads(2), [&](sse::server& s) {
                    s.route("GET", "/jobs/{id}", views(jobs));
                });
                std::vector<event_client> viewers;
                for (int n = 0; n < 4; ++n)
                    viewers.emplace_back(server.port(), "/jobs/" + job.name());
                producer = std::thread([&] {
                    while (!enough) job.send({.data = "x"});
                });
                for (event_client& viewer : viewers) { // which may be too slow for it
                    const auto event = viewer.next();
                    CHECK((event.data == "x" || event.type == "gap"));
                }
            }
            enough = true;
            producer.join();
            CHECK(job.viewers() == 0);
        }
    }

    TEST_CASE("viewers that are there outlive the list of jobs, and the job outlives it too") {
        std::optional<sse::jobs> jobs(std::in_place);
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/jobs/{id}", [&](sse::stream& client) {
                return jobs->serve(client, client.request().path_value("id"));
            });
        });
        sse::job job = jobs->start("a");
        job.send({.data = "0"});
        event_client viewer(server.port(), "/jobs/a");
        CHECK(viewer.next().data == "0");
        jobs.reset();
        job.send({.data = "1"});
        CHECK(viewer.next().data == "1");
        job.finish();
        CHECK(viewer.next().type == "done");
    }

    TEST_CASE("work that a handler began goes on as a job when its client leaves") {
        sse::jobs jobs;
        std::atomic<bool> go{false};
        running_server server(with_threads(1), [&](sse::server& s) {
            s.route("GET", "/jobs/{id}", views(jobs));
            s.route("POST", "/jobs/{id}", [&](sse::stream& client) -> handler_result {
                client.keep_running();
                sse::job job = jobs.start(std::string(client.request().path_value("id")));
                job.send({.data = "0"});
                client.begin();
                co_await until(client, go);
                job.send({.data = "1"});
                job.finish();
            });
        });
        connection starter(server.port());
        starter.send_request("POST", "/jobs/a");
        CHECK(starter.read_head().status == 200);
        starter.reset();
        event_client viewer(server.port(), "/jobs/a");
        CHECK(viewer.next().data == "0");
        go = true;
        CHECK(all_of(viewer) == "1,done;");
    }
}

} // namespace jobs_test
