// handlers.cpp - covers >>stream: streams that begin and end on a connection that goes on, bodies
// in pieces, and what a handler learns of its client.
#include "support/bytes.hpp"
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <asio/experimental/awaitable_operators.hpp>
#include <asio/thread_pool.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdio>
#include <future>
#include <limits>
#include <list>
#include <mutex>
#include <thread>

namespace handlers_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

using routes = std::vector<std::tuple<std::string, std::string, sse::handler>>;

struct routes_server : running_server {
    explicit routes_server(const routes& all, sse::options o = with_threads(1))
        : running_server(std::move(o), [&](sse::server& s) {
              for (const auto& [method, pattern, run] : all) s.route(method, pattern, run);
          }) {}
};

/// A route that responds with its body's size, for the requests between streams.
std::tuple<std::string, std::string, sse::handler> plain_route() {
    return {"POST", "/plain", [](sse::stream& client) -> handler_result {
                const std::string body = co_await client.body();
                const std::string size = std::to_string(body.size());
                co_await client.respond(200, "text/plain", size);
            }};
}

/// Sends so many messages with their number.
sse::handler counts_to(int end) {
    return [end](sse::stream& client) -> handler_result {
        for (int n = 0; n < end; ++n) co_await client.send({.data = std::to_string(n)});
    };
}

/// The README's recipe for work that blocks.
asio::awaitable<std::string> query(std::string name) { co_return "rows of " + name; }

/// What errors were thrown, by the name of their code.
struct error_log {
    std::mutex mutex;
    std::vector<std::string> texts;

    void attach(sse::options& o) {
        o.hooks.on_error = [this](std::exception_ptr failure) {
            const std::lock_guard lock(mutex);
            try {
                std::rethrow_exception(failure);
            } catch (const std::exception& e) { texts.emplace_back(e.what()); }
        };
    }
    std::size_t size() {
        const std::lock_guard lock(mutex);
        return texts.size();
    }
};

// ---- chunks as they are on the wire -------------------------------------------------------------

/// The size of the next chunk. Throws for what RFC 9112 7.1 does not allow a sender.
std::size_t read_chunk_size(connection& peer, deadline until = patience) {
    std::string line = peer.read_through("\r\n", until);
    line.resize(line.size() - 2);
    if (line.empty() || line.find_first_not_of("0123456789abcdef") != line.npos)
        throw bad_response("no size of a chunk: " + show(line));
    if (line.size() > 1 && line.starts_with('0')) throw bad_response("size " + show(line));
    return std::stoul(line, nullptr, 16);
}

/// The next chunk; empty: the last one.
std::string read_chunk(connection& peer, deadline until = patience) {
    const std::size_t size = read_chunk_size(peer, until);
    std::string bytes = peer.read_exactly(size + 2, until);
    if (!bytes.ends_with("\r\n")) throw bad_response("after a chunk: " + show(bytes));
    bytes.resize(size);
    return bytes;
}

/// Chunks up to the last one; what follows stays in received().
std::vector<std::string> read_chunks(connection& peer, deadline until = patience) {
    std::vector<std::string> all;
    for (std::string chunk = read_chunk(peer, until); !chunk.empty();
         chunk = read_chunk(peer, until)) {
        all.push_back(std::move(chunk));
    }
    return all;
}

std::string joined(const std::vector<std::string>& chunks) {
    std::string all;
    for (const std::string& chunk : chunks) all += chunk;
    return all;
}

/// The data of all events of a chunked stream whose head was read, each followed by a comma.
std::string read_data(connection& peer, deadline until = patience) {
    std::string all;
    for (const decoded& event : decode_event_stream(joined(read_chunks(peer, until)))) {
        all.append(event.data).append(",");
    }
    return all;
}

constexpr std::string_view last_chunk = "0\r\n\r\n";
constexpr std::string_view begin_comment = ":\n"; // what begin() sends with the head

/// The head of a stream that its last chunk will end.
bool is_chunked_stream(const response& head) {
    return head.status == 200 && head.header("Content-Type") == "text/event-stream" &&
           head.header("Transfer-Encoding") == "chunked" && !head.header("Content-Length") &&
           !head.header("Connection");
}

/// One whole stream on a connection that goes on: its data.
std::string stream_on(connection& peer, std::string_view target, std::string_view method = "GET",
                      std::string_view body = {}) {
    peer.send_request(method, target, {}, body);
    const response head = peer.read_head();
    if (!is_chunked_stream(head)) return "no chunked stream: " + std::to_string(head.status);
    return read_data(peer);
}

/// The status of a GET, whatever its body is.
int head_status(std::uint16_t port, std::string_view target) {
    connection peer(port);
    peer.send_request("GET", target);
    return peer.read_head().status;
}

/// Feeds what a connection receives to a decoder, chunk by chunk, until so many events came.
class chunked_events {
public:
    explicit chunked_events(connection& peer) : peer_(peer) {}

    decoded next(deadline until = patience) {
        while (events_.empty()) {
            const std::string chunk = read_chunk(peer_, until);
            if (chunk.empty()) throw connection_ended("the last chunk came before an event");
            decoder_.feed(chunk);
            for (decoded& event : decoder_.take_events()) events_.push_back(std::move(event));
            for (std::string& c : decoder_.take_comments()) comments_.push_back(std::move(c));
        }
        decoded event = std::move(events_.front());
        events_.pop_front();
        return event;
    }
    std::size_t comments() const { return comments_.size(); }
    bool between_events() const { return decoder_.between_events(); }

private:
    connection& peer_;
    event_stream_decoder decoder_;
    std::deque<decoded> events_;
    std::vector<std::string> comments_;
};

} // namespace

TEST_SUITE("finite streams") {
    TEST_CASE("a stream that its handler ends is chunked, and its connection serves another") {
        routes_server server({{"GET", "/count", counts_to(3)}, plain_route()});
        connection peer(server.port());
        for (int n = 0; n < 3; ++n) {
            peer.send_request("GET", "/count");
            const auto head = peer.read_head();
            CHECK(is_chunked_stream(head));
            CHECK(head.header("Cache-Control") == "no-cache, no-transform");
            CHECK(head.header_lines("Transfer-Encoding") == 1);
            CHECK(read_data(peer) == "0,1,2,");
            CHECK(peer.received().empty());
            CHECK(peer.request("POST", "/plain", {}, "four").body == "4");
            CHECK(peer.request("GET", "/health").body == "Active connections: 0\n");
        }
        CHECK(server.counters().accepted == 1);
    }

    TEST_CASE("a stream may have no message at all") {
        routes_server server({{"GET", "/empty", [](sse::stream& client) -> handler_result {
                                   client.begin();
                                   co_return;
                               }}});
        connection peer(server.port());
        for (int n = 0; n < 2; ++n) {
            peer.send_request("GET", "/empty");
            CHECK(is_chunked_stream(peer.read_head()));
            CHECK(joined(read_chunks(peer)) == begin_comment);
        }
        CHECK(peer.received().empty());
    }

    TEST_CASE("begin sends the head before there is a message, and once") {
        std::atomic<bool> go{false};
        routes_server server({{"GET", "/later", [&](sse::stream& client) -> handler_result {
                                   client.add_header("X-Model", "m");
                                   client.begin();
                                   client.begin();
                                   co_await until(client, go);
                                   co_await client.send({.data = "late"});
                                   client.begin();
                               }}});
        connection peer(server.port());
        peer.send_request("GET", "/later");
        const auto head = peer.read_head();
        CHECK(is_chunked_stream(head));
        CHECK(head.header("X-Model") == "m");
        CHECK(read_chunk(peer) == begin_comment);
        CHECK(peer.received().empty());
        CHECK(server.counters().streams == 1);
        go = true;
        CHECK(read_data(peer) == "late,");
    }

    TEST_CASE("after a stream no more waits than a head may have, and the connection ends") {
        std::atomic<bool> go{false};
        sse::options o = with_threads(1);
        o.limits.head_bytes = 512;
        routes_server server({{"GET", "/later",
                               [&](sse::stream& client) -> handler_result {
                                   client.begin();
                                   co_await until(client, go);
                                   co_await client.send({.data = "late"});
                               }},
                              {"GET", "/plain",
                               [](sse::stream& client) -> handler_result {
                                   co_await client.respond(200, "text/plain", "");
                               }}},
                             o);
        connection peer(server.port());
        peer.send_request("GET", "/later");
        peer.read_head();
        for (int n = 0; n < 20; ++n) peer.send_request("GET", "/plain");
        connection other(server.port()); // one thread: by its response, all that is read
        other.send_request("GET", "/plain");
        CHECK(other.read_response().status == 200);
        go = true;
        CHECK(read_data(peer) == "late,");
        CHECK(peer.read_to_end().empty());
    }

    TEST_CASE("begin rules out a plain response and headers, and a response rules out a stream") {
        error_log errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        std::atomic<int> refused{0};
        const auto is_refused = [&](auto&& call) {
            try {
                call();
            } catch (const std::logic_error&) { ++refused; }
        };
        routes_server server({{"GET", "/begun",
                               [&](sse::stream& client) -> handler_result {
                                   client.begin();
                                   is_refused([&] { client.add_header("X", "y"); });
                                   co_await client.respond(200, "text/plain", "no");
                               }},
                              {"GET", "/answered",
                               [&](sse::stream& client) -> handler_result {
                                   co_await client.respond(200, "text/plain", "yes");
                                   is_refused([&] { client.begin(); });
                                   is_refused(
                                       [&] { static_cast<void>(client.try_send({.data = "x"})); });
                                   co_await client.send({.data = "x"});
                               }}},
                             o);
        connection begun(server.port());
        begun.send_request("GET", "/begun");
        CHECK(is_chunked_stream(begun.read_head()));
        CHECK_FALSE(begun.read_to_end().ends_with(last_chunk)); // for it failed
        connection answered(server.port());
        CHECK(answered.request("GET", "/answered").body == "yes");
        CHECK(answered.request("GET", "/health").status == 200);
        CHECK(eventually([&] { return errors.size() == 2; }));
        CHECK(refused == 3);
    }

    TEST_CASE("to HTTP/1.0, or where the connection is to close, the end of it ends the stream") {
        routes_server server({{"GET", "/count", counts_to(3)}, {"POST", "/count", counts_to(3)}});
        const std::string requests[] = {
            "GET /count HTTP/1.0\r\n\r\n",
            "GET /count HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "GET /count HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "GET /count HTTP/1.1\r\nHost: localhost\r\nConnection: x, Close\r\n\r\n",
            // A body that nobody reads stands between this stream and the next request.
            "POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody",
        };
        for (const std::string& request : requests) {
            CAPTURE(request);
            connection peer(server.port());
            peer.send(request);
            const auto head = peer.read_head();
            CHECK(head.status == 200);
            CHECK_FALSE(head.header("Transfer-Encoding"));
            CHECK(head.header("Connection") == "close");
            const std::string all = peer.read_to_end();
            CHECK(peer.ended() == ending::fin);
            CHECK(decode_event_stream(all).size() == 3);
            CHECK(all.ends_with("data: 2\n\n"));
        }
    }

    TEST_CASE("a stream that begins with subscribe ends with its connection") {
        routes_server server({{"GET", "/live", [](sse::stream& client) -> handler_result {
                                   client.subscribe("/news");
                                   co_await client.send({.data = "welcome"});
                               }}});
        event_client client(server.port(), "/live");
        CHECK_FALSE(client.head().header("Transfer-Encoding"));
        CHECK(client.head().header("Connection") == "close");
        CHECK(client.next().data == "welcome");
    }

    TEST_CASE("requests that came while a stream was open are served after it, in order") {
        std::atomic<bool> go{false};
        routes_server server({{"GET", "/wait",
                               [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "begun"});
                                   co_await until(client, go);
                                   co_await client.send({.data = "done"});
                               }},
                              {"GET", "/count", counts_to(2)},
                              {"GET", "/live",
                               [](sse::stream& client) -> handler_result {
                                   client.subscribe("/news");
                                   co_return;
                               }},
                              plain_route()});
        connection peer(server.port());
        peer.send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"); // with the request
        CHECK(is_chunked_stream(peer.read_head()));
        chunked_events events(peer);
        CHECK(events.next().data == "begun");
        const std::string rest = "lth HTTP/1.1\r\nHost: localhost\r\n\r\n"
                                 "POST /plain HTTP/1.1\r\nHost: localhost\r\n"
                                 "Content-Length: 5\r\n\r\nabcde"
                                 "GET /count HTTP/1.1\r\nHost: localhost\r\n\r\n"
                                 "HEAD /count HTTP/1.1\r\nHost: localhost\r\n\r\n"
                                 "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for (const char byte : rest) peer.send(std::string_view(&byte, 1));
        go = true;
        CHECK(events.next().data == "done");
        CHECK(read_chunk(peer).empty());
        CHECK(peer.read_response().body == "Active connections: 0\n");
        CHECK(peer.read_response().body == "5");
        CHECK(is_chunked_stream(peer.read_head()));
        CHECK(read_data(peer) == "0,1,");
    }

    TEST_CASE("a subscription that follows streams on its connection gets all that is its own") {
        routes_server server({{"GET", "/count", counts_to(3)},
                              {"GET", "/live", [](sse::stream& client) -> handler_result {
                                   client.subscribe("/news");
                                   co_return;
                               }}});
        server.publish("/news", {.data = "one"});
        const std::string id = server.last_id();
        connection peer(server.port());
        CHECK(stream_on(peer, "/count") == "0,1,2,");
        server.publish("/news", {.data = "two"});
        CHECK(stream_on(peer, "/count") == "0,1,2,");
        peer.send_request("GET", "/live", {{"Last-Event-ID", id}});
        CHECK(peer.read_head().header("Connection") == "close");
        CHECK(without_ids(peer.read_through("two\n\n")) == "data: two\n\n");
        server.publish("/news", {.data = "three"});
        CHECK(without_ids(peer.read_through("three\n\n")) == "data: three\n\n");
    }

    TEST_CASE("blocking work in a pool comes back to the handler's own thread") {
        asio::thread_pool pool(2);
        routes_server server({{"GET", "/show/{name}", [&](sse::stream& client) -> handler_result {
                                   std::string name(client.request().path_value("name"));
                                   const auto before = std::this_thread::get_id();
                                   for (int n = 0; n < 20; ++n) {
                                       const std::string rows = co_await asio::co_spawn(
                                           pool, query(name), asio::use_awaitable);
                                       const bool same = std::this_thread::get_id() == before;
                                       const std::string text = rows + (same ? "" : ", elsewhere");
                                       co_await client.send({.data = text});
                                   }
                               }}});
        connection peer(server.port());
        std::string expected;
        for (int n = 0; n < 20; ++n) expected += "rows of a,";
        CHECK(stream_on(peer, "/show/a") == expected);
    }

    TEST_CASE("a stream that is used off its worker's thread says so, and nothing is done") {
        asio::thread_pool pool(1);
        std::mutex mutex;
        std::vector<std::string> wrong;
        routes_server server(
            {{"GET", "/hop", [&](sse::stream& client) -> handler_result {
                  co_await client.send({.data = "first"});
                  co_await asio::post(asio::bind_executor(pool, asio::use_awaitable));
                  const std::pair<const char*, std::function<void()>> calls[] = {
                      {"send", [&] { (void)client.send({.data = "x"}); }},
                      {"send several", [&] { (void)client.send(std::span<const sse::message>()); }},
                      {"try_send", [&] { (void)client.try_send({.data = "x"}); }},
                      {"begin", [&] { client.begin(); }},
                      {"subscribe", [&] { client.subscribe("/a"); }},
                      {"unsubscribe", [&] { (void)client.unsubscribe("/a"); }},
                      {"release", [&] { client.resume(); }},
                      {"close", [&] { client.close(); }},
                      {"respond", [&] { (void)client.respond(200, "text/plain", "x"); }},
                      {"add_header", [&] { client.add_header("X", "y"); }},
                      {"end_after", [&] { client.end_after(1s); }},
                      {"set_user", [&] { client.set_user("ann"); }},
                      {"id", [&] { (void)client.id(); }},
                      {"closed", [&] { (void)client.closed(); }},
                      {"keep_running", [&] { client.keep_running(); }}};
                  for (const auto& [name, call] : calls) {
                      std::string what = std::string(name) + ": ";
                      try {
                          call();
                          what += "done";
                      } catch (const std::system_error& e) {
                          what += e.code() == sse::errc::wrong_thread ? "wrong thread" : e.what();
                      } catch (const std::exception& e) { what += e.what(); }
                      const std::lock_guard lock(mutex);
                      wrong.push_back(what);
                  }
                  co_await asio::post(
                      asio::bind_executor(client.get_executor(), asio::use_awaitable));
                  co_await client.send({.data = "last"});
              }}});
        connection peer(server.port());
        CHECK(stream_on(peer, "/hop") == "first,last,");
        const std::lock_guard lock(mutex);
        CHECK(wrong.size() == 15);
        for (const std::string& what : wrong) {
            CHECK_MESSAGE(what.ends_with(": wrong thread"), what);
        }
    }

    TEST_CASE("a worker that a handler held for over a second is told to the log") {
        std::mutex mutex;
        std::vector<std::string> held;
        sse::options o = with_threads(1);
        o.heartbeat = 40ms;
        o.hooks.log = [&](const sse::log_entry& entry) {
            if (entry.what != "worker held") return;
            const std::lock_guard lock(mutex);
            held.push_back(std::string(entry.detail));
            CHECK(entry.duration >= 1s);
            CHECK(entry.level == sse::log_level::warning);
        };
        routes_server server({{"GET", "/block",
                               [&](sse::stream& client) -> handler_result {
                                   std::this_thread::sleep_for(1200ms);
                                   co_await client.respond(200, "text/plain", "x");
                               }}},
                             o);
        CHECK(http_get(server.port(), "/block").status == 200);
        REQUIRE(eventually([&] {
            const std::lock_guard lock(mutex);
            return !held.empty();
        }));
        CHECK(held.front().find("thread pool") != std::string::npos);
    }

    TEST_CASE("resume_or continues after the client's id, or starts as it says without one") {
        routes_server server(
            {{"GET", "/live", [](sse::stream& client) -> handler_result {
                  client.subscribe("/news", {.from = sse::start::resume_or(sse::start::last(2))});
                  co_return;
              }}});
        std::vector<std::string> ids;
        for (int n = 1; n <= 4; ++n) {
            server.publish("/news", {.data = std::to_string(n)});
            ids.push_back(server.last_id());
        }
        event_client fresh(server.port(), "/live");
        CHECK(fresh.next().data == "3");
        CHECK(fresh.next().data == "4");
        event_client back(server.port(), "/live", {{"Last-Event-ID", ids[0]}});
        CHECK(back.next().data == "2");
        event_client by_query(server.port(), "/live?lastEventId=" + ids[2]);
        CHECK(by_query.next().data == "4");
    }

    TEST_CASE("each stream of a connection has a name of its own, and a beginning and an end") {
        std::mutex mutex;
        std::vector<std::uint64_t> names;
        std::atomic<int> connected{0};
        std::vector<sse::end_reason> ends;
        sse::options o = with_threads(1);
        o.hooks.on_connect = [&](sse::stream&) { ++connected; };
        o.hooks.on_disconnect = [&](const sse::stream_info&, sse::end_reason why) {
            const std::lock_guard lock(mutex);
            ends.push_back(why);
        };
        routes_server server({{"GET", "/name",
                               [&](sse::stream& client) -> handler_result {
                                   client.set_user("ann");
                                   const std::lock_guard lock(mutex);
                                   names.push_back(client.id());
                                   co_await client.send({.data = "x"});
                               }},
                              {"GET", "/who",
                               [](sse::stream& client) -> handler_result {
                                   const std::string user(client.user());
                                   co_await client.send({.data = "user " + user});
                               }}},
                             o);
        connection peer(server.port());
        CHECK(stream_on(peer, "/name") == "x,");
        CHECK(server.counters().streams == 0);
        server.send_to(names.at(0), {.data = "too late"});
        server.send_to_user("ann", {.data = "too late"});
        server.broadcast({.data = "too late"});
        CHECK(stream_on(peer, "/who") == "user ,");
        CHECK(stream_on(peer, "/name") == "x,");
        CHECK(names.at(0) != names.at(1));
        CHECK(connected == 3);
        const std::lock_guard lock(mutex);
        CHECK(ends == std::vector<sse::end_reason>(3, sse::end_reason::ended));
    }

    TEST_CASE("HEAD of a finite stream gets its head only, and the connection may go on") {
        std::atomic<int> told{0};
        routes_server server({{"GET", "/begin",
                               [&](sse::stream& client) -> handler_result {
                                   try {
                                       client.begin();
                                   } catch (const std::system_error& e) {
                                       told += e.code() == sse::errc::closed &&
                                               sse::client_gone(e.code());
                                   }
                                   co_return;
                               }},
                              {"GET", "/try", [&](sse::stream& client) -> handler_result {
                                   told += !client.try_send({.data = "x"});
                                   co_return;
                               }}});
        for (const char* const target : {"/begin", "/try"}) {
            CAPTURE(target);
            connection peer(server.port());
            peer.send_request("HEAD", target);
            CHECK(peer.read_head().header("Content-Type") == "text/event-stream");
            CHECK(peer.read_to_end().empty());
        }
        CHECK(told == 2);
    }

    TEST_CASE("an exception before the head is a 500, after it the last chunk stays out") {
        error_log errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        routes_server server({{"GET", "/before",
                               [](sse::stream&) -> handler_result {
                                   throw std::runtime_error("before");
                                   co_return;
                               }},
                              {"GET", "/begun",
                               [](sse::stream& client) -> handler_result {
                                   client.begin();
                                   throw std::runtime_error("begun");
                                   co_return;
                               }},
                              {"GET", "/after",
                               [](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "one"});
                                   co_await client.send({.data = "two"});
                                   throw std::runtime_error("after");
                               }},
                              {"GET", "/tried",
                               [](sse::stream& client) -> handler_result {
                                   client.begin();
                                   static_cast<void>(client.try_send({.data = "one"}));
                                   throw std::runtime_error("tried");
                                   co_return;
                               }}},
                             o);
        connection peer(server.port());
        CHECK(peer.request("GET", "/before").status == 500);
        peer.send_request("GET", "/begun");
        CHECK(is_chunked_stream(peer.read_head()));
        CHECK_FALSE(peer.read_to_end().ends_with(last_chunk));
        CHECK(peer.ended() == ending::fin);
        connection second(server.port());
        second.send_request("GET", "/after");
        CHECK(is_chunked_stream(second.read_head()));
        chunked_events events(second);
        CHECK(events.next().data == "one");
        CHECK(events.next().data == "two");
        CHECK(second.read_to_end().empty());
        connection third(server.port());
        third.send_request("GET", "/tried");
        CHECK(is_chunked_stream(third.read_head()));
        CHECK_FALSE(third.read_to_end().ends_with(last_chunk));
        CHECK(eventually([&] { return errors.size() == 4; }));
        CHECK(server.counters().streams == 0);
    }

    TEST_CASE("close ends a finite stream with its last chunk, and its handler is cancelled") {
        std::atomic<int> ended{0};
        routes_server server({{"GET", "/close", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   co_await client.send({.data = "last"});
                                   client.close();
                                   CHECK_FALSE(client.open());
                                   co_await client.sleep_for(1h);
                               }}});
        connection peer(server.port());
        CHECK(stream_on(peer, "/close") == "last,");
        CHECK(eventually([&] { return ended == 1; }));
    }

    TEST_CASE("time between two streams of a connection is not of the next one's age") {
        sse::options o = with_threads(1);
        o.timeouts.stream_age = 150ms;
        routes_server server({{"GET", "/some",
                               [&](sse::stream& client) -> handler_result {
                                   for (int n = 0; n < 4; ++n) {
                                       co_await client.send({.data = std::to_string(n)});
                                       co_await client.sleep_for(15ms);
                                   }
                               }}},
                             o);
        CHECK(in_time([&] { // each in less than its age, all in more
            connection peer(server.port());
            for (int n = 0; n < 4; ++n) {
                if (stream_on(peer, "/some") != "0,1,2,3,") return false;
            }
            return true;
        }));
    }

    TEST_CASE("heartbeats of a finite stream are chunks too") {
        sse::options o = with_threads(1);
        o.heartbeat = 15ms;
        std::atomic<bool> go{false};
        routes_server server({{"GET", "/think",
                               [&](sse::stream& client) -> handler_result {
                                   client.begin();
                                   co_await until(client, go);
                                   co_await client.send({.data = "thought"});
                               }}},
                             o);
        connection peer(server.port());
        peer.send_request("GET", "/think");
        CHECK(is_chunked_stream(peer.read_head()));
        for (int n = 0; n < 3; ++n) {
            const std::string chunk = read_chunk(peer);
            CHECK(chunk.starts_with(":"));
            CHECK(decode_event_stream(chunk).empty());
        }
        go = true;
        CHECK(read_data(peer) == "thought,");
        CHECK(peer.request("GET", "/health").status == 200);
    }

    TEST_CASE("a client that talks too much into its stream is closed after it, not served") {
        std::atomic<bool> go{false};
        routes_server server({{"GET", "/wait", [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "begun"});
                                   co_await until(client, go);
                                   co_await client.send({.data = "done"});
                               }}});
        connection peer(server.port());
        peer.send_request("GET", "/wait");
        CHECK(is_chunked_stream(peer.read_head()));
        chunked_events events(peer);
        CHECK(events.next().data == "begun");
        peer.send(std::string(40'000, 'x')); // more than the head of a request may have
        go = true;
        CHECK(events.next().data == "done");
        CHECK(read_chunk(peer).empty());
        const std::string rest = peer.read_to_end(); // a refusal, if it was read only after the end
        CHECK((rest.empty() || rest.starts_with("HTTP/1.1 4")));
    }

    TEST_CASE("a client is seen to leave, however much it had sent after its request") {
        std::atomic<int> ended{0}, begun{0};
        routes_server server({{"GET", "/wait", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.begin();
                                   ++begun;
                                   co_await client.sleep_for(1h);
                               }}});
        for (const std::size_t behind : {0u, 100u, 15'000u, 20'000u, 60'000u, 200'000u}) {
            CAPTURE(behind);
            connection peer(server.port());
            const int before = begun;
            peer.send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n" + std::string(behind, 'x'));
            REQUIRE(eventually([&] { return begun == before + 1; }));
            peer.reset();
            CHECK(eventually([&] { return ended == begun; }, 2s));
        }
    }
}

TEST_SUITE("chunks") {
    TEST_CASE("several messages go out in one write, each as it is") {
        routes_server server(
            {{"GET", "/pair", [](sse::stream& client) -> handler_result {
                  client.begin();
                  const sse::message both[] = {{.data = "a"}, {.event = "e", .data = "b\nc"}};
                  co_await client.send(both);
                  const std::vector<sse::message> many(50, {.data = "m"});
                  co_await client.send(many);
                  co_await client.send(std::span<const sse::message>());
              }}});
        connection peer(server.port());
        peer.send_request("GET", "/pair");
        CHECK(is_chunked_stream(peer.read_head()));
        auto chunks = read_chunks(peer);
        if (chunks.front().starts_with(begin_comment))
            chunks.front().erase(0, begin_comment.size());
        if (chunks.front().empty()) chunks.erase(chunks.begin());
        REQUIRE(chunks.size() == 2);
        CHECK(chunks[0] == "data: a\n\nevent: e\ndata: b\ndata: c\n\n");
        CHECK(decode_event_stream(chunks[1]).size() == 50);
    }

    TEST_CASE("of several messages with a bad one among them none is sent") {
        std::atomic<bool> told{false};
        routes_server server(
            {{"GET", "/pair", [&](sse::stream& client) -> handler_result {
                  const sse::message both[] = {{.data = "a"}, {.event = "e\n", .data = "b"}};
                  try {
                      co_await client.send(both);
                  } catch (const std::system_error& e) { told = e.code() == sse::errc::bad_event; }
                  co_await client.respond(200, "text/plain", "nothing yet");
              }}});
        CHECK(http_get(server.port(), "/pair").body == "nothing yet"); // not even the head
        CHECK(told);
    }

    TEST_CASE("10,000 messages, sent one by one or many at once, arrive in order") {
        routes_server server({{"GET", "/one", counts_to(10'000)},
                              {"GET", "/many", [](sse::stream& client) -> handler_result {
                                   std::vector<std::string> texts;
                                   for (int n = 0; n < 10'000; ++n)
                                       texts.push_back(std::to_string(n));
                                   std::vector<sse::message> all;
                                   for (const std::string& text : texts)
                                       all.push_back({.data = text});
                                   co_await client.send(all);
                               }}});
        std::string expected;
        for (int n = 0; n < 10'000; ++n) expected += std::to_string(n) + ",";
        connection peer(server.port());
        CHECK((stream_on(peer, "/one") == expected));
        CHECK((stream_on(peer, "/many") == expected));
    }

    TEST_CASE("a stream ends whose last bytes took the whole turn of its client") {
        // A turn is a mebibyte: what is larger may end just with it, and nothing is written then
        // that would wake the end.
        routes_server server({{"GET", "/large", [](sse::stream& client) -> handler_result {
                                   const std::string large(1'200'000, 'x');
                                   co_await client.send({.data = large});
                               }}});
        connection peer(server.port());
        for (int n = 0; n < 60; ++n) {
            peer.send_request("GET", "/large");
            CHECK(is_chunked_stream(peer.read_head()));
            peer.read_through("\r\n0\r\n\r\n");
        }
    }

    TEST_CASE("chunks are right however little the client takes at a time") {
        dice dice(61);
        for (const std::size_t largest : {40u, 3'000u, 400'000u}) {
            CAPTURE(largest);
            std::vector<std::size_t> sizes;
            std::size_t total = 0;
            const std::size_t least = largest < 1000 ? 200'000 : 7'000'000;
            while (total < least) total += sizes.emplace_back(dice.between(0, largest));
            routes_server server({{"GET", "/sizes",
                                   [&](sse::stream& client) -> handler_result {
                                       std::vector<std::string> texts;
                                       for (std::size_t n = 0; n < sizes.size(); ++n) {
                                           const char fill = static_cast<char>('a' + n % 26);
                                           texts.emplace_back(sizes[n], fill);
                                       }
                                       for (std::size_t n = 0; n < texts.size();) {
                                           std::vector<sse::message> some;
                                           for (std::size_t k = 0; k < n % 7 + 1; ++k) {
                                               if (n < texts.size())
                                                   some.push_back({.data = texts[n++]});
                                           }
                                           co_await client.send(some);
                                       }
                                   }},
                                  plain_route()});
            connection peer(server.port(), {.receive_buffer = 4096});
            peer.send_request("GET", "/sizes");
            CHECK(is_chunked_stream(peer.read_head()));
            // Byte by byte at first, and now and then not at all.
            int taken = 0;
            const auto whole = [&](const std::string& bytes) {
                return bytes.ends_with("\r\n0\r\n\r\n");
            };
            while (!whole(peer.received())) {
                if (dice.one_in(500)) std::this_thread::sleep_for(1ms);
                const std::size_t most = ++taken < 3'000  ? 1
                                         : dice.one_in(4) ? dice.between(1, 9)
                                                          : 8192;
                REQUIRE(peer.receive_piece(patience, most));
            }
            const std::string bytes = peer.read_until(whole);
            chunk_reader reader;
            const auto events = decode_event_stream(reader.feed(bytes));
            CHECK(reader.ended());
            CHECK(reader.rest().empty());
            REQUIRE(events.size() == sizes.size());
            bool right = true;
            for (std::size_t n = 0; n < sizes.size(); ++n) {
                right = right &&
                        events[n].data == std::string(sizes[n], static_cast<char>('a' + n % 26));
            }
            CHECK(right);
            CHECK(peer.request("POST", "/plain", {}, "abc").body == "3");
        }
    }

    TEST_CASE("a subscription on a chunked stream adds live messages between its own") {
        const std::string own(120'000, 'o'), live(80'000, 'l');
        std::atomic<bool> subscribed{false}, go{false};
        routes_server server({{"GET", "/both", [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "first"});
                                   client.subscribe("/live");
                                   subscribed = true;
                                   for (int n = 0; n < 30; ++n)
                                       co_await client.send({.event = "own", .data = own});
                                   co_await client.send({.event = "own", .data = "end"});
                                   go = true;
                               }}});
        connection peer(server.port(), {.receive_buffer = 4096});
        peer.send_request("GET", "/both");
        CHECK(is_chunked_stream(peer.read_head()));
        chunked_events events(peer);
        CHECK(events.next().data == "first");
        REQUIRE(eventually([&] { return subscribed.load(); }));
        for (int n = 0; n < 30; ++n) server.publish("/live", {.event = "live", .data = live});
        server.publish("/live", {.event = "live", .data = "end"});
        int own_seen = 0, live_seen = 0, ends = 0;
        std::string last_id;
        while (ends < 2) {
            const decoded event = events.next();
            if (event.data == "end") {
                ++ends;
            } else if (event.type == "own") {
                REQUIRE((event.data == own));
                ++own_seen;
            } else {
                REQUIRE((event.data == live));
                CHECK(event.id != last_id); // each live message has its own
                ++live_seen;
            }
            if (event.type == "live") last_id = event.id;
        }
        CHECK(own_seen == 30);
        CHECK(live_seen == 30);
        CHECK(last_id == server.last_id());
        // It lives on when its handler has returned, and each message is a chunk.
        REQUIRE(eventually([&] { return go.load(); }));
        server.publish("/live", {.data = "later"});
        CHECK(events.next().data == "later");
        CHECK(server.counters().streams == 1);
        server.revoke(server.streams().at(0).id);
        CHECK_FALSE(peer.read_to_end().ends_with("0\r\n\r\n")); // cut, not ended
    }

    TEST_CASE("a chunked stream that subscribes resumes after an id, with the gap told") {
        sse::options o = with_threads(1);
        o.history.messages = 4;
        o.heartbeat = 20ms;
        std::atomic<bool> subscribed{false};
        routes_server server({{"GET", "/both",
                               [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "first"});
                                   client.subscribe("/live");
                                   subscribed = true;
                               }}},
                             o);
        event_client early(server.port(), "/both");
        CHECK(early.head().header("Transfer-Encoding") == "chunked");
        CHECK(early.next().data == "first");
        REQUIRE(eventually([&] { return subscribed.load(); }));
        server.publish("/live", {.data = "0"});
        const std::string id = early.next().id;
        for (int n = 1; n < 20; ++n) {
            server.publish("/live", {.data = std::to_string(n)});
            CHECK(early.next().data == std::to_string(n));
        }
        early.next_comment();
        event_client late(server.port(), "/both", {{"Last-Event-ID", id}});
        std::vector<std::string> seen;
        for (decoded e = late.next(); e.data != "19"; e = late.next()) {
            seen.push_back(e.type == "message" ? e.data : e.type);
        }
        CHECK(std::count(seen.begin(), seen.end(), "gap") == 1);
        CHECK(std::count(seen.begin(), seen.end(), "first") == 1);
        CHECK(seen.back() == "18");
        late.next_comment();
    }

    TEST_CASE(
        "drain gives a farewell and the last chunk to chunked streams whose handler returned") {
        std::atomic<int> ended{0};
        routes_server server({{"GET", "/wait",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   co_await client.send({.data = "begun"});
                                   co_await client.sleep_for(1h);
                               }},
                              {"GET", "/both",
                               [](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "begun"});
                                   client.subscribe("/live");
                               }}},
                             with_threads(1));
        std::vector<connection> peers;
        for (const char* const target : {"/both", "/wait", "/both", "/wait"}) {
            peers.emplace_back(server.port());
            peers.back().send_request("GET", target);
            CHECK(is_chunked_stream(peers.back().read_head()));
            const std::string chunk = read_chunk(peers.back());
            CHECK(chunk == "data: begun\n\n");
        }
        sse::drain_options how;
        how.window = 300ms;
        how.farewell = sse::message{.event = "bye", .data = "come again"};
        server.drain(how);
        for (std::size_t i = 0; i < peers.size(); ++i) {
            if (i % 2 == 0) {
                const auto events = decode_event_stream(joined(read_chunks(peers[i])));
                REQUIRE(events.size() == 1);
                CHECK(events[0].type == "bye");
            }
            CHECK(peers[i].read_to_end().empty()); // a handler that has not returned is cut
            CHECK(peers[i].ended() == ending::fin);
        }
        server.join();
        CHECK(ended == 2);
    }

    TEST_CASE("stop ends chunked streams and their handlers") {
        std::atomic<int> ended{0};
        routes_server server({{"GET", "/wait", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   co_await client.send({.data = "begun"});
                                   co_await client.closed();
                               }}});
        connection a(server.port()), b(server.port());
        for (connection* const peer : {&a, &b}) {
            peer->send_request("GET", "/wait");
            CHECK(is_chunked_stream(peer->read_head()));
            CHECK(read_chunk(*peer) == "data: begun\n\n");
        }
        server.stop();
        server.join();
        CHECK(ended == 2);
        CHECK(a.wait_for_close() == ending::fin);
    }

    TEST_CASE("handlers that sleep go on when their time is over, and not before") {
        using clock = std::chrono::steady_clock;
        std::atomic<int> early{0};
        routes_server server({{"GET", "/sleep", [&](sse::stream& client) -> handler_result {
                                   const std::chrono::microseconds time(
                                       std::stoi(std::string(client.request().query)));
                                   for (int n = 0; n < 5; ++n) {
                                       const auto end = clock::now() + time;
                                       co_await client.sleep_for(time);
                                       early += clock::now() < end;
                                   }
                                   co_await client.respond(200, "text/plain", "rested");
                               }}});
        std::list<connection> peers;
        for (int n = 0; n < 200; ++n) {
            connection& peer = peers.emplace_back(server.port());
            peer.send_request("GET", "/sleep?" + std::to_string(n * 137 % 20'000));
        }
        for (connection& peer : peers) CHECK(peer.read_response().body == "rested");
        CHECK(early == 0);
    }

    TEST_CASE(
        "a sleep ends early for what the program awaits beside it, and when the client goes") {
        using namespace asio::experimental::awaitable_operators;
        std::atomic<int> first{0}, ended{0};
        std::promise<std::error_code> cut;
        routes_server server({{"GET", "/sleep", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   for (int n = 0; n < 100; ++n) {
                                       const auto which = co_await (client.sleep_for(1h) ||
                                                                    client.sleep_for(100us));
                                       first += which.index() == 1;
                                   }
                                   co_await client.send({.data = "now"});
                                   try {
                                       co_await client.sleep_for(std::chrono::nanoseconds::max());
                                   } catch (const std::system_error& e) { cut.set_value(e.code()); }
                               }}});
        {
            connection peer(server.port());
            peer.send_request("GET", "/sleep");
            peer.read_head();
            CHECK(read_chunk(peer) == "data: now\n\n");
        }
        CHECK(cut.get_future().get() == asio::error::operation_aborted);
        CHECK(first == 100);
        REQUIRE(eventually([&] { return ended == 1; }));
    }

    TEST_CASE("to sleep for no time lets others have a turn") {
        std::atomic<int> turns{0};
        std::atomic<bool> other{false};
        routes_server server({{"GET", "/spin",
                               [&](sse::stream& client) -> handler_result {
                                   while (!other) {
                                       co_await client.sleep_for(turns % 2 ? 0ns : -1ns);
                                       ++turns;
                                   }
                                   co_await client.respond(200, "text/plain", "done");
                               }},
                              {"GET", "/other", [&](sse::stream& client) -> handler_result {
                                   other = true;
                                   co_await client.respond(200, "text/plain", "other");
                               }}});
        connection spinning(server.port());
        spinning.send_request("GET", "/spin");
        REQUIRE(eventually([&] { return turns > 10; }));
        connection next(server.port());
        next.send_request("GET", "/other");
        CHECK(next.read_response().body == "other");
        CHECK(spinning.read_response().body == "done");
    }

    TEST_CASE("handlers that sleep are destroyed with the program's context") {
        std::atomic<int> ended{0};
        std::optional<asio::io_context> io(std::in_place);
        auto server = std::make_unique<sse::server>(*io, with_tls_by_default({}));
        server->route("GET", "/sleep", [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            co_await client.send({.data = "begun"});
            co_await client.sleep_for(1h);
        });
        server->start("127.0.0.1:0");
        std::vector<connection> peers;
        std::thread runs([&] { io->run(); });
        for (int n = 0; n < 3; ++n) {
            peers.emplace_back(server->port());
            peers.back().send_request("GET", "/sleep");
            peers.back().read_head();
            CHECK(read_chunk(peers.back()) == "data: begun\n\n");
        }
        io->stop();
        runs.join();
        CHECK(ended == 0);
        server.reset();
        io.reset();
        CHECK(ended == 3);
    }

    TEST_CASE("a heartbeat that finds no room does not mix with the last chunk") {
        // What the system takes for a client that does not read is a certain number of bytes, when
        // its buffers have a fixed size. Of streams that end just below it some leave no room, or
        // only a part of it, for the heartbeat that comes after them.
        sse::options o = with_threads(1);
        o.heartbeat = 20ms;
        std::atomic<int> taken{0}, waiting{0};
        // Whether all of it is taken in the end: the client's system acknowledges late.
        const auto fits = [](sse::stream& client,
                             const std::string& text) -> asio::awaitable<bool> {
            for (int tries = 0; tries < 60; ++tries) {
                if (client.try_send({.data = text})) co_return true;
                co_await client.sleep_for(2ms);
            }
            co_return false;
        };
        sse::server server(o);
        server.route("GET", "/fill", [&](sse::stream& client) -> handler_result {
            const std::string query(client.request().query);
            const std::string text(100, 'x'), small;
            client.begin();
            co_await client.sleep_for(1ms);
            if (query == "probe") {
                for (;;) {
                    const bool fit = co_await fits(client, text);
                    if (!fit) break;
                    ++taken;
                }
                ++waiting;
                co_await client.sleep_for(1h);
            }
            for (int n = 0; n < taken - 3; ++n) {
                const bool fit = co_await fits(client, text);
                if (!fit) break;
            }
            for (int n = std::stoi(query); n > 0; --n) {
                const bool fit = co_await fits(client, small);
                if (!fit) break;
            }
            co_await client.sleep_for(60ms); // three heartbeats
            ++waiting;
        });
        asio::io_context io;
        asio::ip::tcp::acceptor listener(io, {asio::ip::address_v4::loopback(), 0});
        listener.set_option(asio::socket_base::send_buffer_size(1));
        const std::uint16_t port = listener.local_endpoint().port();
        server.start(std::move(listener));
        {
            connection probe(port, {.receive_buffer = 4096});
            probe.send_request("GET", "/fill?probe");
            REQUIRE(eventually([&] { return waiting == 1; }));
        }
        std::list<connection> peers;
        for (int small = 0; small < 40; ++small) {
            connection& peer = peers.emplace_back(port, connect_options{.receive_buffer = 4096});
            peer.send_request("GET", "/fill?" + std::to_string(small));
        }
        const int all = 1 + static_cast<int>(peers.size());
        REQUIRE(eventually([&] { return waiting == all; }));
        for (connection& peer : peers) {
            CHECK(is_chunked_stream(peer.read_head()));
            try {
                CHECK(decode_event_stream(joined(read_chunks(peer))).size() >= 2);
            } catch (const std::exception& e) { FAIL_CHECK(e.what()); }
        }
        server.stop();
    }

    TEST_CASE("a farewell stands after the chunk that a slow client has in part") {
        const std::string large(7'000'000, 'x');
        routes_server server({{"GET", "/much", [&](sse::stream& client) -> handler_result {
                                   client.subscribe("/t");
                                   co_return;
                               }}});
        connection peer(server.port(), {.receive_buffer = 4096});
        peer.send("GET /much HTTP/1.1\r\nHost: localhost\r\nX-Varnish: 1\r\n\r\n"); // chunked
        CHECK(is_chunked_stream(peer.read_head()));
        server.publish("/t", {.data = large});
        CHECK(eventually([&] { return server.counters().bytes > 10'000; }));
        std::thread stopper([&] {
            sse::drain_options how;
            how.window = 60s;
            how.farewell = sse::message{.event = "bye", .data = "bye"};
            server.drain(how);
        });
        CHECK(send_away_now(server));
        std::string all;
        try {
            all = joined(read_chunks(peer));
            CHECK(peer.read_to_end().empty());
        } catch (const std::exception& e) { FAIL_CHECK(e.what()); }
        stopper.join();
        const auto events = decode_event_stream(all);
        REQUIRE(events.size() == 2);
        CHECK(events.back().type == "bye");
        CHECK((events.front().data == large));
    }

    TEST_CASE("a chunked subscription that falls behind is told the gap between whole chunks") {
        sse::options o = with_threads(1);
        o.history.bytes = 600'000;
        o.history.messages = 100;
        std::atomic<bool> subscribed{false};
        routes_server server({{"GET", "/both",
                               [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "first"});
                                   sse::subscribe_options how;
                                   how.lag = sse::lag_policy::skip;
                                   client.subscribe("/live", how);
                                   subscribed = true;
                               }}},
                             o);
        connection peer(server.port(), {.receive_buffer = 4096});
        peer.send_request("GET", "/both");
        CHECK(is_chunked_stream(peer.read_head()));
        chunked_events events(peer);
        CHECK(events.next().data == "first");
        REQUIRE(eventually([&] { return subscribed.load(); }));
        const std::string padding(90'000, 'p');
        constexpr int messages = 100;
        for (int n = 0; n < messages; ++n) {
            const std::string data = std::to_string(n) + " " + padding;
            server.publish("/live", {.data = data});
            if (n % 20 == 19) CHECK(events.next().data.size() > padding.size());
            http_get(server.port(), "/health"); // the worker had its turn
        }
        int last = 4; // five of them were read
        decoded e = events.next();
        for (; e.type != "gap"; e = events.next()) {
            CHECK(std::stoi(e.data) == ++last);
            CHECK(e.data.size() == std::to_string(last).size() + 1 + padding.size());
        }
        CHECK(last < messages - 1);
        server.publish("/live", {.data = "live again"});
        CHECK(events.next().data == "live again");
        CHECK(events.between_events());
    }

    TEST_CASE("a client that takes nothing is disconnected, in the middle of a chunk too") {
        sse::options o = with_threads(1);
        o.timeouts.stall = 100ms;
        std::atomic<int> ended{0};
        routes_server server({{"GET", "/much",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   const std::string large(500'000, 'x');
                                   for (;;) co_await client.send({.data = large});
                               }}},
                             o);
        connection stuck(server.port(), {.receive_buffer = 4096});
        stuck.send_request("GET", "/much");
        CHECK(eventually([&] { return ended == 1; }));
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(server.counters().lagged == 1);
    }
}

TEST_SUITE("bodies") {
    /// What body_some gave, piece by piece.
    struct pieces {
        std::mutex mutex;
        std::vector<std::string> all;
        void add(const std::string& piece) {
            const std::lock_guard lock(mutex);
            all.push_back(piece);
        }
        std::size_t count() {
            const std::lock_guard lock(mutex);
            return all.size();
        }
        std::string text() {
            const std::lock_guard lock(mutex);
            return joined(all);
        }
        handler_result read(sse::stream& client) {
            for (;;) {
                const std::string piece = co_await client.body_some();
                if (piece.empty()) break;
                add(piece);
            }
            const std::string again = co_await client.body_some(); // the end stays the end
            const std::string whole = co_await client.body();
            const std::string sizes = std::to_string(again.size() + whole.size());
            co_await client.respond(200, "text/plain", sizes);
        }
        std::tuple<std::string, std::string, sse::handler> route() {
            return {"POST", "/some", [this](sse::stream& client) { return read(client); }};
        }
    };

    TEST_CASE("a body is given in the pieces in which it comes") {
        pieces got;
        routes_server server({got.route(), plain_route()});
        connection peer(server.port());
        peer.send("POST /some HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n");
        const std::vector<std::string> sent{"a", "bcd", "efghi"};
        for (std::size_t n = 0; n < sent.size(); ++n) {
            peer.send(sent[n]);
            REQUIRE(eventually([&] { return got.count() == n + 1; }));
        }
        CHECK(peer.read_response().body == "0");
        CHECK(got.all == sent);
        CHECK(peer.request("POST", "/plain", {}, "abc").body == "3");
    }

    TEST_CASE("chunks of a body are given without their framing, however they are cut") {
        dice dice(62);
        for (int round = 0; round < 12; ++round) {
            pieces got;
            routes_server server({got.route(), plain_route()});
            std::string whole, bytes;
            for (std::size_t n = dice.between(0, 12); n > 0; --n) {
                const std::string chunk(dice.between(1, 400), dice.one_of("abcdef"));
                char size[20];
                std::snprintf(size, sizeof size, "%zX", chunk.size());
                whole += chunk;
                bytes.append(size).append(dice.one_in(3) ? ";x=y" : "").append("\r\n");
                bytes.append(chunk).append("\r\n");
            }
            bytes += dice.one_in(2) ? "0\r\n\r\n" : "0\r\nTrailer: x\r\n\r\n";
            bytes += "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"; // pipelined
            connection peer(server.port());
            peer.send("POST /some HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                      "\r\n");
            std::size_t at = 0;
            for (const std::size_t end : random_ends(dice, bytes.size(), 60)) {
                peer.send(std::string_view(bytes).substr(at, end - at));
                at = end;
            }
            CHECK(peer.read_response().body == "0");
            CHECK(peer.read_response().status == 200);
            CHECK((got.text() == whole));
        }
    }

    TEST_CASE("a body that is read in part and then whole gives each byte once") {
        routes_server server({{"POST", "/mixed", [](sse::stream& client) -> handler_result {
                                   const std::string first = co_await client.body_some();
                                   const std::string rest = co_await client.body();
                                   const std::string all = first + rest;
                                   co_await client.respond(200, "text/plain", all);
                               }}});
        connection peer(server.port());
        std::string text(300'000, 'x');
        for (std::size_t n = 0; n < text.size(); ++n) text[n] = static_cast<char>('a' + n % 26);
        CHECK((peer.request("POST", "/mixed", {}, text).body == text));
        CHECK(peer.request("POST", "/mixed", {}, "a").body == "a");
        CHECK(peer.request("POST", "/mixed").body.empty());
    }

    TEST_CASE("a body of any length passes through pieces that are small") {
        sse::options o = with_threads(1);
        o.limits.head_bytes = 4096;
        o.limits.body_bytes = 32 * 1024 * 1024;
        std::atomic<std::size_t> largest{0};
        routes_server server({{"POST", "/count",
                               [&](sse::stream& client) -> handler_result {
                                   std::size_t total = 0;
                                   for (;;) {
                                       const std::string piece = co_await client.body_some();
                                       if (piece.empty()) break;
                                       total += piece.size();
                                       largest = std::max(largest.load(), piece.size());
                                   }
                                   const std::string text = std::to_string(total);
                                   co_await client.respond(200, "text/plain", text);
                               }}},
                             o);
        const std::string large(20'000'000, 'x');
        CHECK(http_request(server.port(), "POST", "/count", {}, large).body == "20000000");
        CHECK(largest < 1'000'000);
    }

    TEST_CASE("a body in pieces that is cut short, too large or too late gets 400, 413 or 408") {
        sse::options o = with_threads(1);
        o.limits.body_bytes = 10;
        pieces got;
        routes_server patient({got.route()}, o);
        o.timeouts.body = 80ms;
        routes_server hasty({got.route()}, o);
        const auto response_to = [](connection& peer, const std::string& rest, bool cut) {
            peer.send("POST /some HTTP/1.1\r\nHost: localhost\r\n" + rest);
            if (cut) peer.finish_sending();
            return peer.read_response().status;
        };
        const auto status_of = [&](const std::string& rest, bool cut) {
            connection peer(patient.port());
            return response_to(peer, rest, cut);
        };
        const auto late_status_of = [&](const std::string& rest) {
            connection peer(hasty.port());
            return response_to(peer, rest, false);
        };
        const std::string chunked = "Transfer-Encoding: chunked\r\n\r\n";
        CHECK(status_of("Content-Length: 11\r\n\r\n0123456789X", false) == 413);
        CHECK(status_of("Content-Length: 11\r\n\r\n", false) == 413); // before it comes
        CHECK(status_of(chunked + "8\r\nabcdefgh\r\n3\r\nijk\r\n0\r\n\r\n", false) == 413);
        CHECK(status_of("Content-Length: 5\r\n\r\nab", true) == 400);
        CHECK(status_of("Content-Length: 5\r\n\r\n", true) == 400);
        CHECK(status_of(chunked + "3\r\nabc\r\n", true) == 400);
        CHECK(status_of(chunked + "3\r\nabcd\r\n", false) == 400);
        CHECK(status_of(chunked + "x\r\n", false) == 400);
        CHECK(late_status_of("Content-Length: 5\r\n\r\nab") == 408);
        CHECK(late_status_of(chunked + "3\r\na") == 408);
        CHECK(late_status_of(chunked + "3\r\nabc\r\n0\r\n") == 408);
    }

    TEST_CASE("each piece of a body has its own time, the time that the handler takes has none") {
        sse::options o = with_threads(1);
        o.timeouts.body = 1s;
        pieces got;
        routes_server server({got.route(),
                              {"POST", "/slow",
                               [](sse::stream& client) -> handler_result {
                                   const std::string first = co_await client.body_some();
                                   co_await client.sleep_for(1200ms);
                                   const std::string rest = co_await client.body();
                                   const std::string all = first + rest;
                                   co_await client.respond(200, "text/plain", all);
                               }}},
                             o);
        CHECK(in_time([&] { // each piece is
            connection peer(server.port());
            peer.send("POST /some HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n");
            for (int n = 0; n < 6; ++n) { // one and a half seconds in all
                asio::io_context clock;
                asio::steady_timer(clock, 250ms).wait();
                peer.send("x");
            }
            return peer.read_response().status == 200;
        }));
        connection slow(server.port());
        slow.send("POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nabcdef");
        CHECK(slow.read_response().body == "abcdef");
    }

    TEST_CASE("who waits for a 100 gets it once, when the first piece is asked for") {
        std::atomic<bool> go{false};
        pieces got;
        routes_server server({got.route(),
                              {"POST", "/gated",
                               [&](sse::stream& client) {
                                   return [](sse::stream& c, std::atomic<bool>& f,
                                             pieces& p) -> handler_result {
                                       co_await until(c, f);
                                       co_await p.read(c);
                                   }(client, go, got);
                               }},
                              {"POST", "/never", [](sse::stream& client) -> handler_result {
                                   co_await client.respond(200, "text/plain", "no need");
                               }}});
        const std::string head = " HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
        connection peer(server.port());
        peer.send("POST /gated" + head + "Content-Length: 4\r\n\r\n");
        CHECK(http_get(server.port(), "/health").status == 200);
        CHECK_THROWS_AS(peer.receive_some(30ms), timed_out); // nobody has asked yet
        go = true;
        CHECK(peer.read_head().status == 100);
        peer.send("ab");
        REQUIRE(eventually([&] { return got.text() == "ab"; }));
        peer.send("cd");
        CHECK(peer.read_response().status == 200); // and no second 100 before it
        peer.send("POST /some" + head + "Transfer-Encoding: chunked\r\n\r\n");
        CHECK(peer.read_head().status == 100);
        peer.send("1\r\ne\r\n0\r\n\r\n");
        CHECK(peer.read_response().status == 200);
        CHECK(got.text() == "abcde");
        peer.send("POST /some" + head + "Content-Length: 1\r\n\r\nf"); // it did not wait
        CHECK(peer.read_response().status == 200);
        peer.send("POST /never" + head + "Content-Length: 1\r\n\r\n");
        CHECK(peer.read_response().body == "no need");
        CHECK(peer.read_to_end().empty()); // whether the body comes cannot be known
    }

    TEST_CASE(
        "a stream may follow a body that was read in pieces, and the connection is used again") {
        routes_server server({{"POST", "/echo", [](sse::stream& client) -> handler_result {
                                   std::string all;
                                   for (;;) {
                                       const std::string piece = co_await client.body_some();
                                       if (piece.empty()) break;
                                       all += piece;
                                   }
                                   for (const char c : all)
                                       co_await client.send({.data = std::string_view(&c, 1)});
                               }}});
        connection peer(server.port());
        for (int n = 0; n < 3; ++n) CHECK(stream_on(peer, "/echo", "POST", "abc") == "a,b,c,");
    }

    TEST_CASE("a body is read before its stream begins, not behind that") {
        std::atomic<int> refused{0};
        routes_server server({{"POST", "/echo", [&](sse::stream& client) -> handler_result {
                                   client.begin();
                                   try {
                                       const std::string piece = co_await client.body_some();
                                       co_await client.send({.data = piece});
                                   } catch (const std::logic_error&) { ++refused; }
                                   co_await client.send({.data = "end"});
                               }}});
        for (const bool at_once : {false, true}) {
            CAPTURE(at_once);
            connection peer(server.port());
            const std::string head =
                "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n";
            peer.send(at_once ? head + "abcdef" : head);
            CHECK(peer.read_head().header("Connection") == "close");
            CHECK(peer.read_to_end() == std::string(begin_comment) + "data: end\n\n");
        }
        CHECK(refused == 2);
    }

    TEST_CASE("nothing of a response follows a stream that its handler has closed") {
        std::atomic<int> refused{0};
        routes_server server({{"POST", "/once", [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "all"});
                                   client.close();
                                   try {
                                       co_await client.body();
                                   } catch (const std::logic_error&) { ++refused; }
                                   try {
                                       client.add_header("X-Late", "1");
                                   } catch (const std::logic_error&) { ++refused; }
                                   try {
                                       co_await client.respond(200, "text/plain", "more");
                                   } catch (const std::logic_error&) { ++refused; }
                               }}});
        connection peer(server.port());
        peer.send("POST /once HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n");
        CHECK(peer.read_head().header("Connection") == "close");
        CHECK(peer.read_to_end() == "data: all\n\n");
        CHECK(refused == 3);
    }

    TEST_CASE("a connection takes no way back from its end, and none around its handler") {
        using sse::detail::may_follow;
        using sse::detail::phase;
        constexpr std::array all{phase::head,      phase::handling, phase::body,  phase::streaming,
                                 phase::lingering, phase::lost,     phase::closed};
        for (const phase next : all) {
            CAPTURE(static_cast<int>(next));
            CHECK_FALSE(may_follow(phase::closed, next));
            CHECK(may_follow(phase::lost, next) == (next == phase::closed));
            const bool is_end =
                next == phase::lingering || next == phase::lost || next == phase::closed;
            CHECK(may_follow(phase::lingering, next) == is_end);
            CHECK(may_follow(phase::body, next) == (next != phase::head));
        }
        CHECK(may_follow(phase::handling, phase::head)); // the next request
        CHECK(may_follow(phase::streaming, phase::handling));
        CHECK_FALSE(may_follow(phase::streaming, phase::head));
        CHECK_FALSE(may_follow(phase::streaming, phase::body));
        CHECK_FALSE(may_follow(phase::head, phase::streaming));
        CHECK_FALSE(may_follow(phase::head, phase::lost)); // no handler runs
    }
}

TEST_SUITE("what a handler learns") {
    TEST_CASE("try_send queues nothing while what was sent before still waits") {
        std::atomic<int> taken{0}, refused{0}, sent{0};
        routes_server server({{"GET", "/tries", [&](sse::stream& client) -> handler_result {
                                   const std::string large(300'000, 'x');
                                   co_await client.send({.data = "first"});
                                   for (int n = 0; n < 100; ++n) {
                                       if (client.try_send({.data = large})) {
                                           ++taken;
                                       } else {
                                           ++refused;
                                       }
                                   }
                                   // What was taken is sent before this is.
                                   co_await client.send({.data = "waited"});
                                   ++sent;
                                   if (client.try_send({.data = "room again"})) ++taken;
                                   co_await client.send({.data = "end"});
                               }}});
        connection peer(server.port(), {.receive_buffer = 4096});
        peer.send_request("GET", "/tries");
        CHECK(is_chunked_stream(peer.read_head()));
        REQUIRE(eventually([&] { return refused > 0 && refused + taken == 100; }));
        CHECK(sent == 0);
        const int large = taken;
        CHECK(large >= 1);
        chunked_events events(peer);
        CHECK(events.next().data == "first");
        for (int n = 0; n < large; ++n) CHECK(events.next().data.size() == 300'000);
        CHECK(events.next().data == "waited");
        CHECK(events.next().data == "room again");
        CHECK(events.next().data == "end");
        CHECK(read_chunk(peer).empty());
    }

    TEST_CASE("try_send to a client that takes it all sends all") {
        std::atomic<int> refused{0};
        routes_server server({{"GET", "/tries", [&](sse::stream& client) -> handler_result {
                                   client.begin();
                                   for (int n = 0; n < 100; ++n) {
                                       if (!client.try_send({.data = std::to_string(n)})) ++refused;
                                       co_await client.sleep_for(100us);
                                   }
                               }}});
        connection peer(server.port());
        std::string expected;
        for (int n = 0; n < 100; ++n) expected += std::to_string(n) + ",";
        CHECK(stream_on(peer, "/tries") == expected);
        CHECK(refused == 0);
    }

    TEST_CASE("try_send throws for a message that cannot be sent, and begins nothing") {
        std::atomic<bool> told{false};
        routes_server server({{"GET", "/bad", [&](sse::stream& client) -> handler_result {
                                   try {
                                       static_cast<void>(
                                           client.try_send({.event = "a\nb", .data = "x"}));
                                   } catch (const std::system_error& e) {
                                       told = e.code() == sse::errc::bad_event;
                                   }
                                   co_await client.respond(200, "text/plain", "plain");
                               }}});
        CHECK(http_get(server.port(), "/bad").body == "plain");
        CHECK(told);
    }

    TEST_CASE("what the last try_send took is sent before the stream ends") {
        const std::string large(900'000, 'x');
        routes_server server({{"GET", "/last", [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "first"});
                                   CHECK(client.try_send({.data = large}));
                               }}});
        connection peer(server.port(), {.receive_buffer = 4096});
        for (int n = 0; n < 2; ++n) CHECK((stream_on(peer, "/last") == "first," + large + ","));
    }

    TEST_CASE("of 100 token streams whose clients leave at random, those that stay get all") {
        constexpr int clients = 100, tokens = 60;
        std::atomic<int> begun{0}, ended{0}, finished{0};
        error_count errors;
        sse::options o = with_threads(2);
        errors.attach(o);
        const auto send_tokens = [&](sse::stream& client, int count) -> handler_result {
            const count_end guard{ended};
            ++begun;
            for (int n = 0; n < count; ++n) {
                co_await client.send({.data = std::to_string(n)});
                co_await client.sleep_for(1ms);
            }
            ++finished;
        };
        constexpr int endless = std::numeric_limits<int>::max();
        routes_server server(
            {{"GET", "/tokens", [&](sse::stream& client) { return send_tokens(client, tokens); }},
             {"GET", "/endless",
              [&](sse::stream& client) { return send_tokens(client, endless); }}},
            o);
        dice dice(63);
        std::list<connection> stay, leave;
        for (int n = 0; n < clients; ++n) {
            if (dice.one_in(2))
                stay.emplace_back(server.port()).send_request("GET", "/tokens");
            else
                leave.emplace_back(server.port()).send_request("GET", "/endless");
        }
        while (!leave.empty()) {
            connection& peer = leave.front();
            const std::size_t most = dice.below(300);
            while (peer.received().size() < most) REQUIRE(peer.receive_some());
            if (dice.one_in(2)) peer.reset();
            leave.pop_front();
        }
        const int staying = static_cast<int>(stay.size());
        for (connection& peer : stay) {
            CHECK(is_chunked_stream(peer.read_head()));
            std::string all;
            for (int n = 0; n < tokens; ++n) all += std::to_string(n) + ",";
            CHECK(read_data(peer) == all);
        }
        CHECK(eventually([&] { return ended == begun; }));
        CHECK(finished == staying);
        CHECK(errors.count == 0);
        CHECK(server.counters().streams == 0);
    }

    TEST_CASE("each handler has ended soon after its client left, the others go on") {
        std::atomic<int> ended{0}, begun{0};
        routes_server server({{"GET", "/sleep",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.begin();
                                   ++begun;
                                   co_await client.sleep_for(1h);
                               }},
                              {"GET", "/closed",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.begin();
                                   ++begun;
                                   co_await client.closed();
                               }},
                              {"POST", "/body", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   ++begun;
                                   const std::string first = co_await client.body_some();
                                   const std::string second = co_await client.body_some();
                               }}});
        std::list<connection> peers;
        for (int n = 0; n < 30; ++n) {
            connection& peer = peers.emplace_back(server.port());
            if (n % 3 < 2) peer.send_request("GET", n % 3 == 0 ? "/sleep" : "/closed");
            if (n % 3 == 2)
                peer.send("POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na");
        }
        REQUIRE(eventually([&] { return begun == 30; }));
        for (int n = 1; n <= 30; ++n) {
            if (n % 2 == 0) peers.front().reset();
            peers.pop_front();
            REQUIRE(eventually([&] { return ended == n; }, 2s));
        }
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("keep_running holds for its own request, not for the next one of the connection") {
        std::atomic<int> began{0}, ended{0};
        routes_server server({{"GET", "/keeps",
                               [](sse::stream& client) -> handler_result {
                                   client.keep_running();
                                   co_await client.respond(200, "text/plain", "kept");
                               }},
                              {"GET", "/waits", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   ++began;
                                   co_await client.sleep_for(1h);
                               }}});
        connection peer(server.port());
        peer.send_request("GET", "/keeps");
        CHECK(peer.read_response().body == "kept");
        peer.send_request("GET", "/waits");
        CHECK(eventually([&] { return began == 1; }));
        peer.close();
        CHECK(eventually([&] { return ended == 1; }));
    }

    TEST_CASE("closed completes when the client is gone, and when the stream has ended") {
        std::atomic<int> seen{0}, ended{0};
        routes_server server({{"GET", "/waits",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.keep_running();
                                   client.begin();
                                   co_await client.closed();
                                   if (!client.open()) ++seen;
                                   co_await client.closed(); // still is
                                   ++seen;
                               }},
                              {"GET", "/closes", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.keep_running();
                                   co_await client.send({.data = "x"});
                                   client.close();
                                   co_await client.closed();
                                   ++seen;
                               }}});
        for (const bool by_reset : {false, true}) {
            connection peer(server.port());
            peer.send_request("GET", "/waits");
            CHECK(is_chunked_stream(peer.read_head()));
            CHECK(seen == (by_reset ? 2 : 0));
            if (by_reset) peer.reset();
            peer.close();
            CHECK(eventually([&] { return seen == (by_reset ? 4 : 2); }));
        }
        connection peer(server.port());
        CHECK(stream_on(peer, "/closes") == "x,");
        CHECK(eventually([&] { return seen == 5; }));
        CHECK(eventually([&] { return ended == 3; }));
    }

    TEST_CASE("closed, sleep_for and body_some are cancelled by the program's own timeout") {
        std::atomic<int> cancelled{0};
        routes_server server(
            {{"POST", "/waits", [&](sse::stream& client) -> handler_result {
                  for (int which = 0; which < 3; ++which) {
                      asio::cancellation_signal stop;
                      asio::steady_timer timer(client.get_executor(), 5ms);
                      timer.async_wait([&stop](asio::error_code) {
                          stop.emit(asio::cancellation_type::terminal);
                      });
                      const auto wait = [](sse::stream& c, int n) -> handler_result {
                          if (n == 0) co_await c.sleep_for(1h);
                          if (n == 1) co_await c.closed();
                          if (n == 2) { const std::string piece = co_await c.body_some(); }
                      };
                      try {
                          co_await asio::co_spawn(
                              client.get_executor(), wait(client, which),
                              asio::bind_cancellation_slot(stop.slot(), asio::use_awaitable));
                      } catch (const std::system_error& e) {
                          cancelled += e.code() == asio::error::operation_aborted &&
                                       sse::client_gone(e.code());
                      }
                  }
                  co_await client.respond(200, "text/plain", "done");
              }}});
        connection peer(server.port());
        peer.send("POST /waits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n");
        CHECK(peer.read_response().body == "done");
        CHECK(cancelled == 3);
    }

    TEST_CASE("closed races with work: who is first ends the other") {
        using namespace asio::experimental::awaitable_operators;
        std::atomic<int> left{0}, done{0}, ended{0};
        routes_server server({{"GET", "/race", [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.keep_running();
                                   const auto work = [](sse::stream& c) -> handler_result {
                                       for (int n = 0; n < 5; ++n) {
                                           co_await c.send({.data = std::to_string(n)});
                                           co_await c.sleep_for(1ms);
                                       }
                                       if (c.request().query == "long") co_await c.sleep_for(1h);
                                   };
                                   const auto first = co_await (client.closed() || work(client));
                                   if (first.index() == 0) {
                                       ++left;
                                   } else {
                                       ++done;
                                       co_await client.send({.data = "end"});
                                   }
                               }}});
        connection peer(server.port());
        for (int n = 0; n < 2; ++n) CHECK(stream_on(peer, "/race") == "0,1,2,3,4,end,");
        CHECK(done == 2);
        CHECK(left == 0);
        peer.send_request("GET", "/race?long");
        CHECK(is_chunked_stream(peer.read_head()));
        for (int n = 0; n < 5; ++n) CHECK(read_chunk(peer).starts_with("data: "));
        peer.reset();
        CHECK(eventually([&] { return left == 1 && ended == 3; }));
    }

    TEST_CASE("what a handler asks of a client that has left is errc::closed") {
        std::atomic<bool> left{false};
        std::atomic<int> closed{0};
        routes_server server({{"POST", "/work", [&](sse::stream& client) -> handler_result {
                                   client.keep_running();
                                   const std::string first = co_await client.body_some();
                                   co_await until(client, left);
                                   for (int which = 0; which < 4; ++which) {
                                       try {
                                           if (which == 0)
                                               co_await client.respond(200, "text/plain", "x");
                                           if (which == 1) {
                                               const std::string more = co_await client.body_some();
                                           }
                                           if (which == 2) client.begin();
                                           if (which == 3) client.subscribe("/x");
                                       } catch (const std::system_error& e) {
                                           closed += e.code() == sse::errc::closed;
                                       }
                                   }
                                   closed += !client.try_send({.data = "x"});
                                   closed += !client.open();
                               }}});
        connection peer(server.port());
        peer.send("POST /work HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na");
        REQUIRE(eventually([&] { return server.counters().connections == 1; }));
        http_get(server.port(), "/health"); // it has been read by now, or is a part of the rest
        peer.reset();
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        left = true;
        CHECK(eventually([&] { return closed == 6; }));
    }

    TEST_CASE("a stream that is ended under a handler that outlives it ends in order") {
        sse::options o = with_threads(1);
        o.timeouts.stream_age = 60ms;
        std::atomic<bool> go{false};
        std::atomic<int> ended{0}, told{0};
        routes_server server({{"GET", "/work",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.keep_running();
                                   co_await client.send({.data = "x"});
                                   co_await client.closed();
                                   ++told;
                                   co_await until(client, go);
                               }}},
                             o);
        connection peer(server.port());
        peer.send_request("GET", "/work");
        CHECK(is_chunked_stream(peer.read_head()));
        CHECK(read_chunk(peer) == "data: x\n\n");
        CHECK(peer.read_to_end().empty()); // no last chunk, and no wait for the handler
        CHECK(eventually([&] { return told == 1; }));
        CHECK(ended == 0);
        go = true;
        CHECK(eventually([&] { return ended == 1; }));
        peer.close();
        CHECK(eventually([&] { return server.counters().connections == 0; }));
    }

    TEST_CASE("a connection that is idle after a stream is closed in time, not sooner") {
        sse::options o = with_threads(1);
        o.timeouts.idle = 500ms;
        o.timeouts.header = with_handshake(500ms);
        routes_server server({{"GET", "/long",
                               [&](sse::stream& client) -> handler_result {
                                   client.begin();
                                   co_await client.sleep_for(700ms);
                                   co_await client.send({.data = "x"});
                               }}},
                             o);
        std::optional<connection> peer;
        CHECK(in_time([&] {
            peer.emplace(server.port());
            if (stream_on(*peer, "/long") != "x,") return false;
            peer->send("GET /long HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he");
            if (!is_chunked_stream(peer->read_head()) || read_data(*peer) != "x,") return false;
            peer->send("alth HTTP/1.1\r\nHost: localhost\r\n\r\n"); // its time begins here
            return peer->read_response().status == 200;
        }));
        CHECK(peer->read_to_end().empty());
    }

    TEST_CASE("a message to a stream by its name reaches one that a handler holds open") {
        std::atomic<std::uint64_t> name{0};
        std::atomic<bool> go{false};
        routes_server server({{"GET", "/named", [&](sse::stream& client) -> handler_result {
                                   co_await client.send({.data = "begun"});
                                   name = client.id();
                                   co_await until(client, go);
                               }}});
        connection peer(server.port());
        peer.send_request("GET", "/named");
        CHECK(is_chunked_stream(peer.read_head()));
        CHECK(read_chunk(peer) == "data: begun\n\n");
        REQUIRE(eventually([&] { return name != 0; }));
        server.send_to(name, {.data = "for you"});
        CHECK(read_chunk(peer) == "data: for you\n\n");
        go = true;
        CHECK(read_chunk(peer).empty());
        server.send_to(name, {.data = "too late"});
        CHECK(peer.request("GET", "/health").status == 200);
    }

    TEST_CASE("a client that leaves before it has its response cancels the handler") {
        std::atomic<int> begun{0}, ended{0};
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        const auto waits = [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            ++begun;
            co_await client.sleep_for(1h);
        };
        const auto is_told = [&](sse::stream& client) -> handler_result {
            const count_end guard{ended};
            ++begun;
            co_await client.closed();
        };
        routes_server server({{"GET", "/waits", waits}, {"GET", "/is-told", is_told}}, o);
        int asked = 0;
        for (const char* const target : {"/waits", "/is-told"}) {
            CAPTURE(target);
            for (int way = 0; way < 3; ++way) {
                CAPTURE(way);
                connection peer(server.port());
                peer.send_request("GET", target);
                REQUIRE(eventually([&] { return begun == asked + 1; }));
                if (way == 0) peer.close();
                if (way == 1) peer.reset();
                if (way == 2) peer.finish_sending();
                CHECK(eventually([&] { return ended == asked + 1; }));
                const bool is_cancelled = std::string_view(target) == "/waits";
                if (way == 2 && is_cancelled) CHECK(peer.read_to_end().empty());
                ++asked;
            }
        }
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(errors.count == 0);
    }

    TEST_CASE("a client that has sent all it will is answered by a handler that outlives it") {
        std::atomic<bool> go{false};
        std::atomic<int> begun{0};
        routes_server server({{"GET", "/slow", [&](sse::stream& client) -> handler_result {
                                   client.keep_running();
                                   ++begun;
                                   co_await until(client, go);
                                   co_await client.respond(200, "text/plain", "here");
                               }}});
        connection peer(server.port());
        peer.send_request("GET", "/slow");
        REQUIRE(eventually([&] { return begun == 1; }));
        peer.finish_sending();
        go = true;
        CHECK(peer.read_response().body == "here");
    }

    TEST_CASE("requests that were sent before the client closed its side are answered") {
        std::atomic<bool> go{false};
        std::atomic<int> begun{0};
        routes_server server({{"GET", "/slow", [&](sse::stream& client) -> handler_result {
                                   ++begun;
                                   co_await until(client, go);
                                   co_await client.respond(200, "text/plain", "here");
                               }}});
        connection peer(server.port());
        const std::string one = "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n";
        peer.send(one + one);
        REQUIRE(eventually([&] { return begun == 1; }));
        peer.finish_sending();
        go = true;
        CHECK(peer.read_response().body == "here");
        CHECK(peer.read_response().body == "here");
    }

    TEST_CASE("a handler that outlives its client goes on, and is told") {
        std::atomic<bool> left{false};
        std::atomic<int> told{0}, steps{0}, ended{0};
        error_count errors;
        sse::options o = with_threads(1);
        errors.attach(o);
        routes_server server({{"GET", "/work",
                               [&](sse::stream& client) -> handler_result {
                                   const count_end guard{ended};
                                   client.keep_running();
                                   co_await client.send({.data = "begun"});
                                   co_await until(client, left);
                                   while (client.open()) co_await client.sleep_for(1ms);
                                   for (int n = 0; n < 5; ++n) {
                                       co_await client.sleep_for(1ms);
                                       ++steps;
                                   }
                                   told += !client.try_send({.data = "x"});
                                   try {
                                       co_await client.send({.data = "x"});
                                   } catch (const std::system_error& e) {
                                       told += e.code() == sse::errc::closed;
                                   }
                                   try {
                                       client.subscribe("/x");
                                   } catch (const std::system_error& e) {
                                       told += e.code() == sse::errc::closed;
                                   }
                                   told += client.request().path == "/work"; // it is still there
                                   co_await client.closed();
                                   co_await client.sleep_for(1ms);
                                   ++steps;
                               }}},
                             o);
        for (const bool by_reset : {true, false}) {
            steps = told = 0;
            left = false;
            connection peer(server.port());
            peer.send_request("GET", "/work");
            CHECK(is_chunked_stream(peer.read_head()));
            CHECK(read_chunk(peer) == "data: begun\n\n");
            if (by_reset) peer.reset();
            peer.close();
            CHECK(eventually([&] { return server.counters().connections == 0; }));
            left = true;
            CHECK(eventually([&] { return steps == 6; }));
            CHECK(told == 4);
        }
        CHECK(eventually([&] { return ended == 2; }));
        CHECK(errors.count == 0);
    }

    TEST_CASE("a handler that outlives its client counts for its group until it ends") {
        std::atomic<bool> go{false};
        std::atomic<int> ended{0};
        running_server server(with_threads(1), [&](sse::server& s) {
            sse::group_options one;
            one.max_requests = 1;
            s.group("/g", one).route("GET", "/work", [&](sse::stream& client) -> handler_result {
                const count_end guard{ended};
                client.keep_running();
                client.begin();
                co_await until(client, go);
            });
        });
        {
            connection peer(server.port());
            peer.send_request("GET", "/g/work");
            CHECK(peer.read_head().status == 200);
        }
        CHECK(eventually([&] { return server.counters().connections == 0; }));
        CHECK(head_status(server.port(), "/g/work") == 503);
        go = true;
        CHECK(eventually([&] { return ended == 1; }));
        CHECK(eventually([&] { return head_status(server.port(), "/g/work") == 200; }));
    }

    TEST_CASE("stop and drain cancel handlers that outlive their clients") {
        for (const bool drained : {false, true}) {
            for (const bool client_left : {false, true}) {
                CAPTURE(drained);
                CAPTURE(client_left);
                std::atomic<int> ended{0};
                sse::options o = with_threads(1);
                o.timeouts.shutdown = 1h; // what is not cancelled is not destroyed either
                routes_server server({{"GET", "/work",
                                       [&](sse::stream& client) -> handler_result {
                                           const count_end guard{ended};
                                           client.keep_running();
                                           client.begin();
                                           co_await client.sleep_for(1h);
                                       }},
                                      {"GET", "/other", counts_to(1)}},
                                     o);
                connection peer(server.port());
                peer.send_request("GET", "/work");
                CHECK(peer.read_head().status == 200);
                if (client_left) {
                    peer.reset();
                    CHECK(eventually([&] { return server.counters().connections == 0; }));
                    CHECK(head_status(server.port(), "/other") == 200);
                }
                CHECK(ended == 0);
                if (drained) {
                    server.drain(sse::drain_options{.window = 100ms});
                } else {
                    server.stop();
                }
                CHECK(eventually([&] { return ended == 1; }));
                server.join();
            }
        }
    }

    TEST_CASE("a handler that nothing ends is destroyed with its server") {
        std::atomic<int> begun{0}, ended{0};
        sse::options o = with_threads(1);
        o.timeouts.shutdown = 10ms;
        {
            routes_server server({{"GET", "/work",
                                   [&](sse::stream& client) -> handler_result {
                                       const count_end guard{ended};
                                       co_await asio::this_coro::reset_cancellation_state(
                                           asio::disable_cancellation());
                                       client.keep_running();
                                       client.begin();
                                       ++begun;
                                       co_await client.sleep_for(1h);
                                   }}},
                                 o);
            connection peer(server.port());
            peer.send_request("GET", "/work");
            REQUIRE(eventually([&] { return begun == 1; }));
        }
        CHECK(ended == 1);
    }

    TEST_CASE("calls that belong to a running handler are refused after its end, without a crash") {
        std::atomic<int> refused{0};
        routes_server server({{"GET", "/live", [&](sse::stream& client) -> handler_result {
                                   client.subscribe("/x");
                                   co_return;
                               }}});
        event_client client(server.port(), "/live");
        std::uint64_t id = 0;
        REQUIRE(eventually([&] {
            const auto streams = server.streams();
            if (!streams.empty()) id = streams[0].id;
            return id != 0;
        }));
        std::atomic<bool> done{false};
        // The exchange may not have ended yet when the head has come: ask until it has.
        const auto ask = [&] {
            done = false;
            refused = 0;
            server.post_to(id, [&](sse::stream& s) {
                try {
                    s.keep_running();
                } catch (const std::logic_error&) { ++refused; }
                try {
                    refused += !s.try_send({.data = "x"});
                } catch (const std::logic_error&) { ++refused; }
                try {
                    static_cast<void>(s.request());
                } catch (const std::logic_error&) { ++refused; }
                done = true;
            });
            return eventually([&] { return done.load(); }) && refused == 3;
        };
        CHECK(eventually(ask));
        server.publish("/x", {.data = "goes on"});
        CHECK(client.next().data == "goes on");
    }

    TEST_CASE("what no response can have is refused, and the request can still be answered") {
        std::vector<std::string> refusals;
        const auto note = [&](auto&& call) {
            try {
                call();
                refusals.emplace_back("none");
            } catch (const std::invalid_argument& e) { refusals.emplace_back(e.what()); }
        };
        routes_server server({{"GET", "/wrong", [&](sse::stream& client) -> handler_result {
                                   const auto answer = [&](int status, std::string_view type) {
                                       static_cast<void>(client.respond(status, type, "no"));
                                   };
                                   note([&] { client.add_header("X Y", "z"); });
                                   note([&] { client.add_header("X", "y\r\nZ: z"); });
                                   note([&] { client.add_header("X", {"\0", 1}); });
                                   note([&] { client.end_after(0ms); });
                                   note([&] { client.end_after(21 * 24h + 1ms); });
                                   note([&] { answer(199, "text/plain"); });
                                   note([&] { answer(600, "text/plain"); });
                                   note([&] { answer(200, "text/plain\r\nX: y"); });
                                   co_await client.respond(200, "text/plain", "right");
                               }}});
        const response got = http_get(server.port(), "/wrong");
        CHECK(got.body == "right");
        CHECK(!got.header("X"));
        CHECK(!got.header("Z"));
        const std::vector<std::string_view> expected{
            "add_header: 'X Y'", "add_header: 'X'", "add_header: 'X'", "end_after:",
            "end_after:",        "not 199",         "not 600",         "content type"};
        REQUIRE(refusals.size() == expected.size());
        for (std::size_t i = 0; i < expected.size(); ++i) {
            CHECK_MESSAGE(refusals[i].find(expected[i]) != std::string::npos, refusals[i]);
        }
    }

    TEST_CASE("a response carries the phrase of its status") {
        routes_server server({{"GET", "/{status}", [](sse::stream& client) -> handler_result {
                                   const int status = std::stoi(
                                       std::string(client.request().path_value("status")));
                                   co_await client.respond(status, "text/plain", "");
                               }}});
        for (const std::string_view line : {"200 OK",
                                            "201 Created",
                                            "202 Accepted",
                                            "204 No Content",
                                            "301 Moved Permanently",
                                            "302 Found",
                                            "303 See Other",
                                            "304 Not Modified",
                                            "307 Temporary Redirect",
                                            "308 Permanent Redirect",
                                            "400 Bad Request",
                                            "401 Unauthorized",
                                            "403 Forbidden",
                                            "404 Not Found",
                                            "405 Method Not Allowed",
                                            "406 Not Acceptable",
                                            "408 Request Timeout",
                                            "409 Conflict",
                                            "411 Length Required",
                                            "413 Content Too Large",
                                            "414 URI Too Long",
                                            "415 Unsupported Media Type",
                                            "421 Misdirected Request",
                                            "422 Unprocessable Content",
                                            "429 Too Many Requests",
                                            "431 Request Header Fields Too Large",
                                            "500 Internal Server Error",
                                            "501 Not Implemented",
                                            "503 Service Unavailable",
                                            "505 HTTP Version Not Supported",
                                            "299 Status"}) {
            CAPTURE(line);
            connection peer(server.port());
            peer.send_request("GET", "/" + std::string(line.substr(0, 3)));
            CHECK(peer.read_through("\r\n") == "HTTP/1.1 " + std::string(line) + "\r\n");
        }
    }

    TEST_CASE("a stream tells its handler what the server knows of it") {
        sse::stream_info info;
        routes_server server({{"GET", "/info", [&](sse::stream& client) -> handler_result {
                                   client.subscribe("/news");
                                   info = client.info();
                                   client.close();
                                   co_return;
                               }}});
        event_client client(server.port(), "/info");
        client.wait_for_close();
        CHECK(info.id != 0);
        CHECK(info.topics == std::vector<std::string>{"/news"});
        CHECK(info.client.to_string() == "127.0.0.1");
        CHECK(info.age < 10s);
    }
}

} // namespace handlers_test
