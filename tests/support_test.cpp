// support_test.cpp - the tests' own tools: decoder, client, swarm, process. Knows nothing of
// sse.hpp: what the others believe in must not lean on what they test.
#include "support/client.hpp"
#include "support/event_stream.hpp"
#include "support/swarm.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace support_test {

namespace {

using namespace std::chrono_literals;
using namespace std::string_literals; // "\0"s has a length, "\0" has none
using support::decoded;

// ---- decoder ------------------------------------------------------------------------------------

std::vector<std::string> data_of(const std::vector<decoded>& events) {
    std::vector<std::string> all;
    for (const decoded& event : events) all.push_back(event.data);
    return all;
}

/// Feeds the stream whole, byte by byte, and in two pieces with the cut at every place.
void for_every_split(const std::string& stream,
                     const std::function<void(support::event_stream_decoder&)>& check) {
    for (std::size_t cut = 0; cut <= stream.size(); ++cut) {
        CAPTURE(cut);
        support::event_stream_decoder decoder;
        decoder.feed(std::string_view(stream).substr(0, cut));
        decoder.feed(std::string_view(stream).substr(cut));
        check(decoder);
    }
    support::event_stream_decoder decoder;
    for (const char& byte : stream) decoder.feed({&byte, 1});
    check(decoder);
}

void check_events(const std::string& stream, const std::vector<decoded>& expected) {
    INFO(support::show(stream));
    for_every_split(stream, [&](support::event_stream_decoder& decoder) {
        CHECK(decoder.take_events() == expected);
    });
}

void check_data(const std::string& stream, const std::vector<std::string>& expected) {
    INFO(support::show(stream));
    for_every_split(stream, [&](support::event_stream_decoder& decoder) {
        CHECK(data_of(decoder.take_events()) == expected);
    });
}

void check_last_id(const std::string& stream, const std::string& expected) {
    INFO(support::show(stream));
    for_every_split(stream, [&](support::event_stream_decoder& decoder) {
        CHECK(decoder.last_event_id() == expected);
    });
}

void check_retry(const std::string& stream, std::optional<std::uint64_t> expected) {
    INFO(support::show(stream));
    for_every_split(stream, [&](support::event_stream_decoder& decoder) {
        CHECK(decoder.reconnection_time() == expected);
    });
}

// The facts of these cases are those of web-platform-tests, eventsource/format-* and event-data.

TEST_CASE("data lines are joined by a line feed, and a data line alone makes an event") {
    check_data("data:a\ndata: b\n\n", {"a\nb"});
    check_data("data\n\n", {""});
    check_data("data:\n\n", {""});
    check_data("data: \n\n", {""});
    check_data("data\ndata\n\n", {"\n"});
    check_data("data:\n\ndata\ndata\n\ndata:x\n\n", {"", "\n", "x"});
}

TEST_CASE("a block without data is not an event") {
    check_data("\n\n\r\n\r\r", {});
    check_data(":\n\nunknown:x\n\nData:x\n\nevent:x\n\nid:x\n\n", {});
    check_data("data:a\n\n\n\n\ndata:b\n\n", {"a", "b"});
}

TEST_CASE("an event that no blank line ends is dropped") {
    check_data("data:a\n\nid:7\ndata:b", {"a"});
    check_data("data:a\n\nid:7\ndata:b\n", {"a"});
    check_last_id("data:a\n\nid:7\ndata:b\n", "");
    check_data("data:a", {});
}

TEST_CASE("lines end with CR, LF or CR LF, mixed as one likes") {
    for (const std::string end : {"\r", "\n", "\r\n"})
        check_data("data:a" + end + "data:b" + end + end + "data:c" + end + end, {"a\nb", "c"});
    check_data("data:a\r\ndata\ndata:b\r\n\r\n", {"a\n\nb"});
    check_data("data:a\n\rdata:b\r\r", {"a", "b"}); // LF CR is two ends
    check_data("data:a\r\n\ndata:b\n\r\n", {"a", "b"});
    check_data("data:a\r\n\r", {"a"}); // dispatched at the CR, whatever follows
}

TEST_CASE("other characters that look like line ends are data") {
    check_data("data:a\vb\fc\xC2\x85"
               "d\xE2\x80\xA8"
               "e\n\n",
               {"a\vb\fc\xC2\x85"
                "d\xE2\x80\xA8"
                "e"});
}

TEST_CASE("one space after the colon is taken away, nothing else") {
    check_data("data:\ta\rdata: \ndata:  b\n\n", {"\ta\n\n b"});
    check_data("data:a \n\n", {"a "});
    check_data("data: a: b\n\n", {"a: b"});
}

TEST_CASE("field names are compared exactly, and unknown fields ignored") {
    check_data("data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\n"
               "data:3\rdata:\r\n data:32\ndata:4\n\n"s,
               {"\0\n 2\n1\n3\n\n4"s});
    check_data("data:a\n data\ndata\nfoobar:x\njust text\n:a comment\ndata:b\n\n", {"a\n\nb"});
    check_data("data :x\n\n", {});
    check_events("EVENT:x\nEvent:x\ndata:a\n\n", {{"message", "a", ""}});
}

TEST_CASE("a null character is data like any other") { check_data("data:\0\n\n\n\n"s, {"\0"s}); }

TEST_CASE("one byte order mark at the beginning is skipped") {
    const std::string mark = "\xEF\xBB\xBF";
    check_data(mark + "data:1\n\n" + mark + "data:2\n\ndata:3\n\n", {"1", "3"});
    check_data(mark + mark + "data:1\n\ndata:2\n\n", {"2"});
    check_data("\n" + mark + "data:1\n\n", {});
    check_data("\xEF\xBB"
               "data:1\ndata:2\n\n",
               {"2"}); // not the whole mark: part of the line
    check_data(mark, {});
    check_data("data:" + mark + "\n\n", {mark});
}

TEST_CASE("bytes beyond ASCII pass as they are") {
    check_data("data:ok\xE2\x80\xA6\n\n", {"ok\xE2\x80\xA6"});
    check_data("data:\xFF\xC0\n\n", {"\xFF\xC0"});
}

TEST_CASE("comments are not data, of any length, and are kept apart") {
    const std::string length(2000, 'x');
    const std::string stream = "data:1\r:\0\n:\r\ndata:2\n:"s + length +
                               "\rdata:3\n:data:fail\r: " + length + "\ndata:4\n\n";
    support::event_stream_decoder decoder;
    decoder.feed(stream);
    CHECK(data_of(decoder.take_events()) == std::vector<std::string>{"1\n2\n3\n4"});
    CHECK(decoder.take_comments() ==
          std::vector<std::string>{"\0"s, "", length, "data:fail", " " + length});
    CHECK(decoder.take_comments().empty());
}

TEST_CASE("a type holds for its event only, and an empty one is message") {
    check_events("event:a\ndata:1\n\ndata:2\n\n", {{"a", "1", ""}, {"message", "2", ""}});
    check_events("event: \ndata:1\n\n", {{"message", "1", ""}});
    check_events("event:a\nevent\ndata:1\n\n", {{"message", "1", ""}});
    check_events("event:a\nevent: b \ndata:1\n\n", {{"b ", "1", ""}});
    check_events("event:a\n\ndata:1\n\n", {{"message", "1", ""}}); // gone with its empty block
}

TEST_CASE("an id holds until another one comes, and an empty one takes it away") {
    check_events("id:1\ndata:a\n\ndata:b\n\nid: 2\ndata:c\n\nid\ndata:d\n\ndata:e\n\n",
                 {{"message", "a", "1"},
                  {"message", "b", "1"},
                  {"message", "c", "2"},
                  {"message", "d", ""},
                  {"message", "e", ""}});
    check_events("data:a\nid:1\nid:2\n\n", {{"message", "a", "2"}});
}

TEST_CASE("an id with a null character is ignored") {
    check_events("id:1\ndata:a\n\nid:\0\ndata:b\n\nid:2\0\ndata:c\n\n"s,
                 {{"message", "a", "1"}, {"message", "b", "1"}, {"message", "c", "1"}});
}

TEST_CASE("the last event id is taken over at the blank line, with data or without") {
    check_last_id("id:1\n", "");
    check_last_id("id:1\n\n", "1");
    check_last_id("id:1\n\nid:2\n", "1");
    check_last_id("id:1\n\nid:2\n\n", "2");
    check_last_id("id:1\n\nid\n\n", "");
    check_events("id:1\n\ndata:a\n\n", {{"message", "a", "1"}});
}

TEST_CASE("retry is digits only, and holds at once") {
    check_retry("data:a\n\n", std::nullopt);
    check_retry("retry:3000\n", 3000);
    check_retry("retry: 0\n", 0);
    check_retry("retry:0005\n", 5);
    check_retry("retry:3000\nretry:1000x\ndata:x\n\n", 3000);
    for (const std::string bad : {"", " ", "  1", "-1", "+1", "1 ", "1.5", "0x1", "1e3", "\t1"})
        check_retry("retry:7\nretry:" + bad + "\n\n", 7);
    check_retry("retry\ndata:x\n\n", std::nullopt);
    check_retry("retry:18446744073709551615\n", UINT64_MAX);
    check_retry("retry:18446744073709551616\n", UINT64_MAX);
    check_retry("retry:99999999999999999999999\n", UINT64_MAX);
}

TEST_CASE("the decoder knows whether the stream stands between two events") {
    const auto between = [](std::string_view stream) {
        support::event_stream_decoder decoder;
        decoder.feed(stream);
        return decoder.between_events();
    };
    for (const std::string_view whole :
         {"", "\n", ":\n", ":\n\n", "data:a\n\n", "id:1\r\n\r", "data:a\n\n:b\n", "data:a\n:b\n\n"})
        CHECK_MESSAGE(between(whole), support::show(whole));
    for (const std::string_view cut :
         {"d", "data:a", "data:a\n", "id:1\n", "data:a\n\n:b", "data:a\n:b\n", "\xEF"})
        CHECK_MESSAGE(!between(cut), support::show(cut));
}

// ---- response heads -----------------------------------------------------------------------------

TEST_CASE("a response head is parsed, with headers of any case and of several lines") {
    const support::response head =
        support::parse_response_head("HTTP/1.1 404 Not Found\r\nContent-Type: \t text/plain \r\n"
                                     "vary: A\r\nVARY:B\r\nX:\r\n\r\n");
    CHECK(head.version == "HTTP/1.1");
    CHECK(head.status == 404);
    CHECK(head.reason == "Not Found");
    CHECK(head.header("content-type") == "text/plain");
    CHECK(head.header("Vary") == "A, B");
    CHECK(head.header_lines("Vary") == 2);
    CHECK(head.header("X") == "");
    CHECK_FALSE(head.header("Y").has_value());
    CHECK(support::parse_response_head("HTTP/1.1 200 \r\n\r\n").reason == "");
}

TEST_CASE("a response head that is not HTTP is refused") {
    for (const std::string_view bad :
         {"\r\n\r\n", "HTTP/1.1 200\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 \r\n\r\n",
          "http/1.1 200 OK\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\nA: b\n\n",
          "HTTP/1.1 200 OK\r\nA: b\n\r\n", "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
          "HTTP/1.1 200 OK\r\n: b\r\n\r\n", "HTTP/1.1 200 OK\r\nA\r\n\r\n",
          "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
          "HTTP/1.1 200 OK\r\nA: b\r\n", "HTTP/1.1 200 OK\r\n\r\nrest"}) {
        INFO(support::show(bad));
        CHECK_THROWS_AS(support::parse_response_head(bad), support::bad_response);
    }
}

// ---- client -------------------------------------------------------------------------------------

/// A server that follows scripts: the first connection the first, each in a thread of its own. What
/// a script throws is thrown again by finish().
class scripted_server {
public:
    using script = std::function<void(support::connection&)>;

    explicit scripted_server(std::vector<script> scripts, const std::string& host = "127.0.0.1")
        : scripts_(std::move(scripts)) {
        const support::socket_address any(host, 0);
        listener_ = support::descriptor(
            ::socket(any.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
        if (::bind(listener_.get(), any.get(), any.size()) != 0 ||
            ::listen(listener_.get(), 128) != 0)
            support::throw_errno("listen");
        sockaddr_in6 address{}; // large enough for IPv4, whose port stands at the same place
        socklen_t size = sizeof address;
        ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
        port_ = ntohs(address.sin6_port);
        thread_ = std::thread([this] { run(); });
    }
    scripted_server(const scripted_server&) = delete;
    scripted_server& operator=(const scripted_server&) = delete;
    ~scripted_server() { join(); }

    std::uint16_t port() const { return port_; }

    void finish() {
        join();
        if (failure_) std::rethrow_exception(failure_);
    }

private:
    void run() {
        std::vector<std::thread> threads;
        try {
            for (const script& each : scripts_)
                threads.emplace_back([this, &each, peer = accept()]() mutable {
                    try {
                        each(peer);
                    } catch (...) { keep(std::current_exception()); }
                });
        } catch (...) { keep(std::current_exception()); }
        for (std::thread& each : threads) each.join();
    }

    support::connection accept() {
        if (!support::wait_for(listener_.get(), POLLIN, support::patience))
            throw std::runtime_error("nobody connected");
        return support::connection(support::descriptor(
            ::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)));
    }

    void keep(std::exception_ptr failure) {
        const std::lock_guard lock(mutex_);
        failure_ = std::move(failure);
    }

    void join() {
        if (thread_.joinable()) thread_.join();
    }

    std::vector<script> scripts_;
    support::descriptor listener_;
    std::uint16_t port_ = 0;
    std::thread thread_;
    std::mutex mutex_;
    std::exception_ptr failure_;
};

/// Reads one request head, then sends these pieces, and leaves in order.
scripted_server::script answer(std::vector<std::string> pieces) {
    return [pieces = std::move(pieces)](support::connection& peer) {
        peer.read_through("\r\n\r\n");
        for (const std::string& piece : pieces) peer.send(piece);
    };
}

const std::string stream_head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

template <class Error, class Function>
std::string message_of(Function&& function) {
    try {
        function();
    } catch (const Error& error) { return error.what(); }
    return "nothing was thrown";
}

TEST_CASE("a response ends with its Content-Length, and the connection is used again") {
    scripted_server server({[](support::connection& peer) {
        CHECK(peer.read_through("\r\n\r\n") == "GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
        CHECK(peer.read_through("\r\n\r\n") ==
              "POST /b HTTP/1.1\r\nhost: x\r\nContent-Length: 4\r\n\r\n");
        CHECK(peer.read_exactly(4) == "body");
        peer.send("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        CHECK(peer.read_through("\r\n\r\n").starts_with("HEAD /c "));
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
        CHECK(peer.wait_for_close() == support::ending::fin);
    }});
    {
        support::connection client(server.port());
        CHECK(client.request("GET", "/a").body == "one");
        CHECK(client.request("POST", "/b", {{"host", "x"}}, "body").status == 404);
        CHECK(client.request("HEAD", "/c").body == "");
    }
    server.finish();
}

TEST_CASE("a response without a length ends with the connection") {
    scripted_server server({answer({"HTTP/1.1 200 OK\r\n\r\n", "to the ", "end"})});
    CHECK(support::http_get(server.port(), "/").body == "to the end");
    server.finish();
}

TEST_CASE("a client of IPv6, and one with an address and a small buffer of its own") {
    scripted_server v6({answer({"HTTP/1.1 204 No Content\r\n\r\n"})}, "::1");
    support::connection six(v6.port(), {.host = "::1"});
    CHECK(six.request("GET", "/").status == 204);
    v6.finish();

    scripted_server v4({[](support::connection& peer) {
        sockaddr_in address{};
        socklen_t size = sizeof address;
        ::getpeername(peer.native_handle(), reinterpret_cast<sockaddr*>(&address), &size);
        CHECK(ntohl(address.sin_addr.s_addr) == 0x7f000003);
    }});
    support::connection client(v4.port(), {.source = "127.0.0.3", .receive_buffer = 4096});
    int buffer = 0;
    socklen_t size = sizeof buffer;
    ::getsockopt(client.native_handle(), SOL_SOCKET, SO_RCVBUF, &buffer, &size);
    CHECK(buffer <= 2 * 4096); // Linux doubles it
    v4.finish();
}

TEST_CASE("nobody listens: connecting fails at once") {
    std::uint16_t port = 0;
    {
        scripted_server server({});
        port = server.port();
    }
    CHECK_THROWS_AS(support::connection(port, {}), std::system_error);
}

TEST_CASE("a deadline names what was received") {
    scripted_server server({[](support::connection& peer) {
        peer.send("half a li");
        peer.wait_for_close();
    }});
    {
        support::connection client(server.port());
        const std::string message =
            message_of<support::timed_out>([&] { client.read_through("\r\n", 50ms); });
        CHECK_MESSAGE(message.find("half a li") != std::string::npos, message);
        CHECK(client.received() == "half a li");
    }
    server.finish();
}

TEST_CASE("an early end names what was received, and tells FIN from RST") {
    scripted_server server({
        [](support::connection& peer) { peer.send("by fin"); },
        [](support::connection& peer) {
            peer.send("by rst");
            peer.read_through("seen"); // a reset may overtake what the client has not read
            peer.reset();
        },
    });
    support::connection first(server.port());
    const std::string message =
        message_of<support::connection_ended>([&] { first.read_exactly(100); });
    CHECK_MESSAGE(message.find("by fin") != std::string::npos, message);
    CHECK(first.ended() == support::ending::fin);

    support::connection second(server.port());
    CHECK(second.read_exactly(6) == "by rst");
    second.send("seen");
    CHECK(second.wait_for_close() == support::ending::reset);
    CHECK_FALSE(second.try_send("x"));
    server.finish();
}

TEST_CASE("the peer sees how a client leaves") {
    scripted_server server({
        [](support::connection& peer) { CHECK(peer.wait_for_close() == support::ending::fin); },
        [](support::connection& peer) { CHECK(peer.wait_for_close() == support::ending::reset); },
        [](support::connection& peer) {
            CHECK(peer.wait_for_close() == support::ending::fin);
            peer.send("still here");
        },
    });
    support::connection(server.port()).close();
    support::connection(server.port()).reset();
    support::connection half(server.port());
    half.finish_sending();
    CHECK(half.read_to_end() == "still here");
    server.finish();
}

TEST_CASE("an event client yields events and comments, and then the end") {
    scripted_server server({[](support::connection& peer) {
        const std::string head = peer.read_through("\r\n\r\n");
        CHECK(head.starts_with("GET /subscribe/a HTTP/1.1\r\n"));
        CHECK(head.find("\r\nAccept: text/event-stream\r\n") != std::string::npos);
        CHECK(head.find("\r\nLast-Event-ID: 7\r\n") != std::string::npos);
        peer.send(stream_head + "id: 1\ndata: with the head\n\n");
        peer.send("event: x\nda");
        peer.send("ta: split\n\n:\n\ndata: third\n\n: bye\n\ndata: never ended\n");
    }});
    support::event_client client(server.port(), "/subscribe/a", {{"Last-Event-ID", "7"}});
    CHECK(client.head().status == 200);
    CHECK(client.next() == decoded{"message", "with the head", "1"});
    CHECK(client.next_comment() == ""); // passes an event, which is not lost
    CHECK(client.next() == decoded{"x", "split", "1"});
    CHECK(client.wait_for_close() == support::ending::fin);
    CHECK(client.next_comment() == " bye");
    CHECK(client.next().data == "third");
    CHECK_FALSE(client.next_or_end().has_value());
    CHECK_FALSE(client.decoder().between_events());
    const std::string message = message_of<support::connection_ended>([&] { client.next(); });
    CHECK_MESSAGE(message.find("never ended") != std::string::npos, message);
    server.finish();
}

TEST_CASE("an event client refuses what is not an event stream, and says what it was") {
    scripted_server server(
        {answer({"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/event-stream\r\n\r\n"}),
         answer({"HTTP/1.1 200 OK\r\nContent-Type: text/event-streams\r\n\r\n"}),
         answer({"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream;charset=UTF-8\r\n\r\n"})});
    const auto subscribe = [&] { support::event_client client(server.port()); };
    const std::string message = message_of<support::bad_response>(subscribe);
    CHECK_MESSAGE(message.find("503") != std::string::npos, message);
    CHECK_THROWS_AS(subscribe(), support::bad_response);
    CHECK_NOTHROW(subscribe());
    server.finish();
}

TEST_CASE("eventually() waits for a condition, and gives up at the deadline") {
    int asked = 0;
    CHECK(support::eventually([&] { return ++asked == 3; }));
    CHECK(asked == 3);
    CHECK_FALSE(support::eventually([] { return false; }, 5ms));
    CHECK(support::eventually([] { return true; }, 0ms));
}

TEST_CASE("in_time() tries again what was too late, and at the deadline says why") {
    int tries = 0;
    CHECK(support::in_time([&] {
        if (++tries == 1) throw support::connection_ended("too late");
        return tries == 3;
    }));
    CHECK(tries == 3);
    CHECK_FALSE(support::in_time([] { return false; }, 5ms));
    CHECK(message_of<support::bad_response>([] {
              static_cast<void>(
                  support::in_time([]() -> bool { throw support::bad_response("408"); }, 5ms));
          }) == "408");
}

// ---- swarm --------------------------------------------------------------------------------------

std::vector<std::uint64_t> numbers_in(std::string_view body, std::size_t& malformed) {
    support::number_parser parser;
    std::vector<std::uint64_t> numbers;
    malformed = 0;
    for (const char byte : stream_head + std::string(body)) {
        const auto outcome = parser.feed(byte);
        if (outcome == support::number_parser::outcome::number)
            numbers.push_back(parser.number());
        else if (outcome == support::number_parser::outcome::malformed)
            ++malformed;
    }
    CHECK(parser.status() == 200);
    return numbers;
}

TEST_CASE("the parser of the swarm reads the number of each event") {
    using numbers = std::vector<std::uint64_t>;
    const auto check = [](std::string_view body, const numbers& expected, std::size_t bad = 0) {
        INFO(support::show(body));
        std::size_t malformed = 0;
        CHECK(numbers_in(body, malformed) == expected);
        CHECK(malformed == bad);
    };
    check("data: 0\n\ndata:17\n\n", {0, 17});
    check("data: 5\r\n\r\ndata: 6\r\r", {5, 6});
    check("event: x\nid: 99\nretry: 9\ndata: 5 and more\n\n", {5});
    check(":\n\n: 4\n\nid: 3\n\n", {});
    check("datas: 5\n\n data: 5\n\nxdata: 5\n\ndat\n\n", {});
    check("data: 5\n", {}); // not ended
    check("data: x\n\ndata:\n\ndata: 5x\n\ndata:  5\n\ndata: -5\n\ndata: 5\ndata\n\n", {}, 6);
    check("data: 18446744073709551615\n\ndata: 18446744073709551616\n\n", {UINT64_MAX}, 1);
}

TEST_CASE("a record tells gaps, duplicates and disorder apart") {
    const auto record_of = [](const std::vector<std::uint64_t>& numbers) {
        support::subscriber_record record;
        for (const std::uint64_t number : numbers) record.saw(number);
        return record;
    };
    const auto good = record_of({5, 6, 7});
    CHECK(good.perfect());
    CHECK(good.first == 5);
    CHECK(good.last == 7);
    CHECK(good.count == 3);
    const auto bad = record_of({1, 2, 2, 5, 4, 6, 1});
    CHECK_FALSE(bad.perfect());
    CHECK(bad.duplicates == 1);
    CHECK(bad.gaps == 1);
    CHECK(bad.missing == 2);
    CHECK(bad.out_of_order == 2);
    CHECK(bad.last == 6);
}

TEST_CASE("a swarm of clients follows until all have seen a number, and says who has not") {
    const auto stay = [](support::connection& peer) {
        peer.read_through("\r\n\r\n");
        peer.send(stream_head + "data: 0\n\ndata: 1\n\n");
        CHECK(peer.wait_for_close() == support::ending::fin);
    };
    scripted_server server({stay, stay});
    support::swarm whole(server.port(), {.clients = 2, .sources = 2});
    CHECK(whole.connect());
    CHECK(whole.run_until_all_saw(1));
    CHECK(whole.all_saw_exactly(0, 1));
    CHECK(whole.events() == 4);
    CHECK(whole.open() == 2);
    whole.leave();
    server.finish();

    scripted_server second({answer({stream_head, "data: 0\n\ndata: 2\n\n"}),
                            answer({stream_head, "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 2\n\n"})});
    support::swarm holes(second.port(), {.clients = 2});
    CHECK(holes.run_until_all_closed());
    CHECK_FALSE(holes.all_saw_exactly(0, 2));
    CHECK(holes.count_unless([](const auto& record) { return record.perfect(); }) == 2);
    CHECK(holes.lost() == 2);
    CHECK_FALSE(holes.run_until_all_saw(3));
    const std::string text = holes.describe();
    CHECK_MESSAGE(text.find("duplicates 1, gaps 1 (1 missing)") != std::string::npos, text);
    second.finish();
}

TEST_CASE("a swarm notices a refusal") {
    scripted_server server({answer({"HTTP/1.1 503 Service Unavailable\r\n\r\n"})});
    support::swarm swarm(server.port(), {.clients = 1});
    CHECK_FALSE(swarm.connect());
    CHECK(swarm.record(0).status == 503);
    CHECK(swarm.record(0).now == support::subscriber_record::state::refused);
    server.finish();
}

// ---- process and resources ----------------------------------------------------------------------

TEST_CASE("a process tells its lines and how it ended") {
    support::process program(
        {"/bin/sh", "-c", "echo first; echo listening on http://127.0.0.1:4711/; exit 3"});
    CHECK(support::port_in(program.read_line_with("listening")) == 4711);
    CHECK_THROWS_AS(program.read_line(), support::connection_ended);
    CHECK(program.wait_for_exit() == support::exit_status{3, std::nullopt});
}

TEST_CASE("a process gets signals, with default handling") {
    support::process program({"/bin/sh", "-c", "echo ready; exec sleep 60"});
    CHECK(program.read_line() == "ready");
    CHECK_THROWS_AS(program.wait_for_exit(5ms), support::timed_out);
    program.signal(SIGTERM);
    CHECK(program.wait_for_exit() == support::exit_status{std::nullopt, SIGTERM});
}

TEST_CASE("a process that still runs is killed with its object") {
    pid_t pid = 0;
    {
        support::process program({"/bin/sh", "-c", "exec sleep 60"});
        pid = program.pid();
    }
    CHECK(::kill(pid, 0) == -1);
    CHECK_THROWS_AS(support::process({"/no/such/program"}), std::system_error);
}

TEST_CASE("a port is found behind the last colon that has one") {
    CHECK(support::port_in("listening on [::1]:8080") == 8080);
    CHECK(support::port_in("http://127.0.0.1:80/a:b") == 80);
    CHECK_THROWS_AS(support::port_in("port 80"), std::invalid_argument);
    CHECK_THROWS_AS(support::port_in("a:0 b:70000"), std::invalid_argument);
}

TEST_CASE("descriptors and memory of this process are counted") {
    const std::size_t before = support::open_descriptors();
    {
        const support::descriptor one(::dup(STDERR_FILENO));
        CHECK(support::open_descriptors() == before + 1);
    }
    CHECK(support::open_descriptors() == before);
    CHECK(support::resident_bytes() > 1024 * 1024);
}

} // namespace

} // namespace support_test
