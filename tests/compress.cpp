// compress.cpp - covers >>compress: what is compressed once for many is read by each of them, event
// by event, whatever else each is sent and however little it takes at a time. Read by zlib itself.
// Built with SSE_ENABLE_ZLIB.
#include "sse.hpp"

#include "support/allocated.hpp"
#include "support/client.hpp"
#include "support/dice.hpp"
#include "support/gzip_reader.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>
#include <zlib.h>

namespace compress_test {

namespace {

using namespace std::string_literals;
using sse::detail::chunked_encoder;
using sse::detail::crc_product;
using sse::detail::crc_shift;
using sse::detail::gzip_stream;
using sse::detail::shared_block;
using sse::detail::shared_window;
using support::event_client;
using support::gzip_reader;
using support::header_list;
using support::http_request;
using support::running_server;

/// One client, which takes as many bytes at a time as it is told to. If its body is chunked, it
/// takes chunks of its gzip stream.
class client {
    // What the stream asks for.
    auto writer() {
        return [this](std::span<const asio::const_buffer> from) -> std::optional<std::size_t> {
            if (!chunked_) return receive(from);
            return chunks_.write(from, [this](auto framed) { return receive(framed); });
        };
    }
    std::optional<std::size_t> receive(std::span<const asio::const_buffer> from) {
        std::size_t n = 0;
        for (const asio::const_buffer& one : from) {
            const std::size_t part = std::min(one.size(), room_);
            raw_.append(static_cast<const char*>(one.data()), part);
            room_ -= part;
            n += part;
        }
        return n;
    }
    auto rest() {
        return [this](bool make) -> gzip_stream::remainder* {
            return make || rest_.of ? &rest_ : nullptr;
        };
    }

public:
    static constexpr std::size_t all = ~std::size_t{0};

    explicit client(bool chunked = false) : chunked_(chunked) {
        stream_.begin(head.size() + gzip_stream::header.size());
        chunks_.pass(head.size());
        offer(std::string(head) + std::string(gzip_stream::header));
        expected_.clear(); // it is not part of the stream's text
    }

    /// Offers text for it alone.
    void offer(std::string_view text) {
        waiting_.append(text);
        expected_.append(text);
    }
    /// Takes what waits, as far as so many bytes.
    void take(std::size_t most) {
        room_ = most;
        while (!waiting_.empty() && room_ > 0) {
            // In two buffers, as frames are.
            const std::size_t half = waiting_.size() / 2;
            const std::string_view text = waiting_;
            const asio::const_buffer both[] = {asio::buffer(text.substr(0, half)),
                                               asio::buffer(text.substr(half))};
            const auto n = stream_.write(both, rest(), writer());
            REQUIRE(n);
            waiting_.erase(0, *n);
        }
    }
    /// Is offered what all are: as it is shared if it can take that, or alone. Returns whether it
    /// was shared.
    bool share(std::string_view text, const shared_block& b, std::size_t most) {
        if (!is_idle() || !stream_.can_take(b)) {
            offer(text);
            take(most);
            return false;
        }
        room_ = most;
        const auto n = stream_.write(b, rest(), writer());
        REQUIRE(n);
        expected_.append(text);
        waiting_ = text.substr(*n);
        return true;
    }
    void end() {
        take(all);
        write_end(stream_.end());
        CHECK(!stream_.is_on());
        if (!chunked_) return;
        chunks_.end();
        write_end(chunked_encoder::last_chunk);
    }
    bool is_idle() const noexcept { return waiting_.empty(); }
    /// What it is kept of a block that it has taken a part of.
    const gzip_stream::remainder& kept() const noexcept { return rest_; }
    std::size_t bytes() const noexcept { return raw_.size(); }

    /// Everything that it was sent is read, as soon as it has all of it.
    void check() {
        if (raw_.size() < head.size()) return;
        CHECK(raw_.substr(0, head.size()) == head);
        std::string body = raw_.substr(std::max(read_, head.size()));
        read_ = raw_.size();
        if (chunked_) body = body_.feed(body);
        got_ += reader_.read(body);
        CHECK(expected_.starts_with(got_));
        if (is_idle()) CHECK(got_.size() == expected_.size());
    }
    void check_end() {
        end();
        check();
        CHECK(reader_.ended()); // with the right sum and size, or zlib would not
        CHECK(body_.ended() == chunked_);
    }

private:
    static constexpr std::string_view head = "HTTP/1.1 200 OK\r\n\r\n";

    void write_end(std::string_view bytes) {
        room_ = all;
        const asio::const_buffer whole = asio::buffer(bytes);
        REQUIRE(writer()({&whole, 1}) == bytes.size());
    }

    const bool chunked_;
    chunked_encoder chunks_;
    gzip_stream stream_;
    gzip_stream::remainder rest_;
    std::string waiting_;
    std::string expected_;
    std::string raw_;
    std::size_t room_ = 0;
    std::size_t read_ = 0;
    support::chunk_reader body_;
    gzip_reader reader_;
    std::string got_;
};

/// What one publishes: numbers that change a little each time.
std::string price(support::dice& dice, int n) {
    static const char* const names[] = {"AAPL", "MSFT", "GOOG", "AMZN", "NVDA"};
    return "id: 3kd92ab1-" + std::to_string(100'000 + n) + "\ndata: {\"symbol\":\"" +
           names[dice.below(5)] + "\",\"price\":" + std::to_string(100 + dice.below(50)) + "." +
           std::to_string(10 + dice.below(90)) +
           ",\"volume\":" + std::to_string(dice.below(90'000)) +
           ",\"time\":\"2026-01-01T12:00:" + std::to_string(10 + n % 50) + "Z\"}\n\n";
}

std::string noise(support::dice& dice, std::size_t size) {
    std::string text;
    while (text.size() < size) text += dice.byte();
    return text;
}

} // namespace

TEST_CASE("the sum of two texts is found from their sums") {
    support::dice dice(20260101);
    for (int i = 0; i < 500; ++i) {
        const std::string a = noise(dice, dice.below(300));
        const std::string b = noise(dice, dice.below(i < 450 ? 300 : 100'000));
        const auto sum = [](const std::string& text) {
            return static_cast<std::uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(text.data()),
                                                    static_cast<uInt>(text.size())));
        };
        REQUIRE((crc_product(crc_shift(b.size()), sum(a)) ^ sum(b)) == sum(a + b));
    }
}

TEST_CASE("a stream of which nothing is shared is read, and ends") {
    client one;
    one.take(client::all);
    one.check();
    for (const auto& text : {"data: 1\n\n"s, ":\n\n"s, std::string(200'000, 'a'), "data: 2\n\n"s}) {
        one.offer(text);
        one.take(client::all);
        one.check();
    }
    one.check_end();
    client empty;
    empty.check_end();
}

TEST_CASE("who comes late waits for a fresh block, and then gets the same as the others") {
    shared_window window;
    std::string out;
    support::dice dice(20260102);
    client early;
    early.take(client::all);
    std::optional<client> late;
    std::uint64_t number = 0;
    std::size_t text_size = 0;
    std::size_t alone = 0;
    std::size_t shared = 0;
    for (int n = 0; n < 1000; ++n) {
        if (n == 10) {
            late.emplace();
            late->take(client::all);
        }
        const std::string text = price(dice, n);
        const shared_block b = window.compress(text, ++number, out);
        CHECK(early.share(text, b, client::all));
        early.check();
        text_size += text.size();
        if (!late) continue;
        const bool was_shared = late->share(text, b, client::all);
        CHECK(was_shared == (shared > 0 || b.after == 0));
        ++(was_shared ? shared : alone);
        late->check();
    }
    CHECK(alone > 100);
    CHECK(shared > alone);
    CHECK(text_size > 3 * shared_window::fresh_after); // fresh blocks did come
    CHECK(early.bytes() * 100 < text_size * 32);
    early.check_end();
    late->check_end();
}

TEST_CASE("after a piece of its own a client gets nothing that refers to what is before it") {
    shared_window window;
    std::string out;
    client one;
    one.take(client::all);
    const std::string text = "data: the same again and again\n\n";
    CHECK(one.share(text, window.compress(text, 1, out), client::all));
    const shared_block second = window.compress(text, 2, out);
    CHECK(second.bytes.size() < 15);
    CHECK(one.share(text, second, client::all));
    one.offer(":\n\n");
    one.take(client::all);
    CHECK(!one.share(text, window.compress(text, 3, out), client::all));
    CHECK(!one.share(text, window.compress(text, 4, out), client::all));
    window.restart();
    const shared_block fresh = window.compress(text, 5, out);
    CHECK(fresh.after == 0);
    CHECK(fresh.bytes.size() > 15); // the window was forgotten
    CHECK(one.share(text, fresh, client::all));
    CHECK(one.share(text, window.compress(text, 6, out), client::all));
    one.check_end();
}

TEST_CASE("a client that missed a block, or was of another group, gets none that refers to it") {
    shared_window a, b;
    std::string out;
    client one;
    one.take(client::all);
    CHECK(one.share("data: a\n\n", a.compress("data: a\n\n", 1, out), client::all));
    a.compress("data: b\n\n", 2, out);
    CHECK(!one.share("data: c\n\n", a.compress("data: c\n\n", 3, out), client::all));
    b.compress("data: a\n\n", 4, out);
    CHECK(!one.share("data: c\n\n", b.compress("data: c\n\n", 5, out), client::all));
    one.check_end();
}

TEST_CASE("a block of which a client took nothing is offered again, alone") {
    shared_window window;
    std::string out;
    client one;
    one.take(client::all);
    CHECK(one.share("data: a\n\n", window.compress("data: a\n\n", 1, out), 0));
    CHECK(!one.is_idle());
    CHECK(!one.share("data: b\n\n", window.compress("data: b\n\n", 2, out), client::all));
    one.check();
    one.check_end();
}

TEST_CASE("what clients have yet to take of a shared block is kept once for all of them") {
    shared_window window;
    std::string out;
    support::dice dice(20260106);
    const std::string text = noise(dice, 1'000'000);
    std::vector<std::unique_ptr<client>> clients;
    for (int i = 0; i < 5; ++i) {
        clients.push_back(std::make_unique<client>());
        clients.back()->take(client::all);
    }
    const shared_block first = window.compress(text, 1, out);
    for (std::size_t i = 0; i < clients.size(); ++i) {
        CHECK(clients[i]->share(text, first, 1 + 1000 * i));
        CHECK(clients[i]->kept().of.get() == clients.front()->kept().of.get());
        CHECK(clients[i]->kept().at == 1 + 1000 * i);
    }
    window.compress(text, 2, out); // the bytes of the first are gone from there
    for (const auto& one : clients) {
        one->take(client::all);
        CHECK(!one->kept().of);
        one->check_end();
    }
}

TEST_CASE("large texts are compressed whole, however much larger they become") {
    shared_window window;
    std::string out;
    support::dice dice(20260103);
    client one;
    one.take(client::all);
    std::uint64_t number = 0;
    for (const std::size_t size : {1u, 3000u, 32'768u, 262'144u, 3'000'000u}) {
        const std::string text = noise(dice, size);
        CHECK(one.share(text, window.compress(text, ++number, out), client::all));
        one.check();
    }
    one.check_end();
}

TEST_CASE("whatever clients take, miss and are sent alone, each reads all of it, as it comes") {
    support::dice dice(20260104);
    const int schedules = 60;
    std::size_t shared = 0;
    std::size_t cut = 0;
    for (int i = 0; i < schedules; ++i) {
        shared_window window;
        std::string out;
        std::uint64_t number = 0;
        std::vector<std::unique_ptr<client>> clients;
        const std::size_t slow = dice.below(3) == 0 ? 5 : 400;
        const auto room = [&] { return dice.one_in(3) ? dice.below(slow) : client::all; };
        for (int step = 0; step < 400; ++step) {
            const auto act = dice.below(20);
            if (act < 12) {
                const std::string text =
                    dice.one_in(20) ? noise(dice, 1 + dice.below(40'000)) : price(dice, step);
                const shared_block b = window.compress(text, ++number, out);
                std::size_t takers = 0;
                for (auto& one : clients) {
                    if (dice.one_in(30)) continue; // its subscription skips
                    takers += one->share(text, b, room());
                }
                shared += takers;
                if (takers * 2 < clients.size()) window.restart();
            } else if (act == 12 && clients.size() < 5) {
                clients.push_back(std::make_unique<client>(dice.one_in(2)));
            } else if (act == 13 && !clients.empty()) {
                const std::size_t which = dice.below(clients.size());
                clients[which]->check_end();
                clients.erase(clients.begin() + static_cast<std::ptrdiff_t>(which));
            } else if (!clients.empty()) {
                client& one = *clients[dice.below(clients.size())];
                if (act < 16) one.offer(act == 14 ? ":\n\n" : "data: for you alone\n\n");
                one.take(room());
            }
            for (auto& one : clients) {
                one->check();
                cut += !one->is_idle();
            }
        }
        for (auto& one : clients) one->check_end();
    }
    CHECK(shared > 1000); // else the schedules are badly chosen
    CHECK(cut > 1000);
}

// ---- servers ------------------------------------------------------------------------------------

namespace {

const header_list wants_gzip = {{"Accept-Encoding", "gzip, deflate, br"}};

sse::options compressing() {
    sse::options o = support::with_threads(1);
    o.compress = true;
    return o;
}

} // namespace

TEST_CASE("clients of a topic read the same from few bytes, and what others get as it is") {
    running_server server(compressing());
    event_client a(server.port(), "/subscribe/prices", wants_gzip);
    event_client b(server.port(), "/subscribe/prices", wants_gzip);
    event_client plain(server.port(), "/subscribe/prices");
    CHECK(a.head().header("Content-Encoding") == "gzip");
    CHECK(a.head().header("Vary") == "Accept-Encoding");
    CHECK(plain.head().header("Content-Encoding") == std::nullopt);
    CHECK(plain.head().header("Vary") == "Accept-Encoding");
    support::dice dice(20260105);
    for (int n = 0; n < 700; ++n) {
        const std::string text = price(dice, n);
        const std::string data = text.substr(text.find("data: ") + 6, text.size());
        server.publish("prices", {.data = data.substr(0, data.find('\n'))});
        const auto first = a.next(); // event by event
        CHECK(b.next().data == first.data);
        CHECK(plain.next().data == first.data);
    }
    CHECK(a.body_bytes() * 100 < plain.body_bytes() * 40);
    CHECK(b.body_bytes() * 100 < plain.body_bytes() * 40);
    server.stop();
    for (event_client* one : {&a, &b}) {
        one->wait_for_close();
        CHECK(one->gzip_ended());
    }
}

namespace {

/// Many clients of a server of one thread, with little room on the way to each. They cost this
/// process nothing but what the server has for them.
class crowd {
public:
    crowd() {
        sockets_.reserve(2'000);
        sse::options o = compressing();
        o.heartbeat = std::chrono::milliseconds(0);
        o.history.messages = few;
        server_.emplace(o);
        asio::ip::tcp::acceptor listener(io_, {asio::ip::address_v4::loopback(), 0});
        listener.set_option(asio::socket_base::send_buffer_size(1));
        port_ = listener.local_endpoint().port();
        server_->start(std::move(listener));
    }

    void join(std::size_t count, const header_list& headers) {
        for (; count > 0; --count) {
            support::connection one(port_, {.receive_buffer = 4096});
            one.send_request("GET", "/subscribe/a", headers);
            sockets_.emplace_back(::dup(one.native_handle()));
        }
        REQUIRE(
            support::eventually([&] { return server_->counters().streams == sockets_.size(); }));
        let_it_work(); // all of them are served by now
        read();
    }
    /// Each of them gets it whole.
    void publish(const std::string& text) {
        due_ += sockets_.size();
        server_->publish("/a", {.data = text});
        let_it_work();
        if (text.size() > 10'000) CHECK(server_->counters().delivered < due_); // it was cut
        REQUIRE(support::eventually([&] {
            read();
            return server_->counters().delivered == due_;
        }));
    }
    /// As many as are kept.
    void publish_few() {
        for (std::uint64_t n = 0; n < few; ++n) publish("the same words again and again");
    }

private:
    static constexpr std::uint64_t few = 4;

    void let_it_work() const { CHECK(support::http_get(port_, "/health").status == 200); }
    void read() {
        static char bytes[16 * 1024];
        for (const support::descriptor& one : sockets_) {
            while (::recv(one.get(), bytes, sizeof bytes, 0) > 0) {}
        }
    }

    asio::io_context io_;
    std::optional<sse::server> server_;
    std::uint16_t port_ = 0;
    std::uint64_t due_ = 0;
    std::vector<support::descriptor> sockets_;
};

} // namespace

TEST_CASE("a client by gzip costs what another does, also after it has had a part of a block") {
    if (!support::memory_is_meaningful) return;
    support::raise_descriptor_limit();
    constexpr std::size_t count = 1'000;
    std::size_t plain = 0;
    for (const header_list& headers : {header_list{}, wants_gzip}) {
        crowd clients;
        clients.join(64, headers); // what the first ones need is not counted
        clients.publish_few();
        const std::size_t before = support::allocated_bytes();
        const auto each = [&] {
            return (std::max(support::allocated_bytes(), before) - before) / count;
        };
        clients.join(count, headers);
        if (headers.empty()) plain = each();
        clients.publish_few();
        CHECK(support::eventually([&] { return each() <= plain + 16; }));
        clients.publish(support::incompressible(30'000));
        clients.publish_few();
        CHECK(support::eventually([&] { return each() <= plain + 16; }));
    }
}

TEST_CASE("after a message to one client alone that one goes on, and later shares again") {
    std::atomic<std::uint64_t> id{0};
    running_server server(compressing(), [&](sse::server& s) {
        s.route("GET", "/mine", [&](sse::stream& client) -> asio::awaitable<void> {
            client.subscribe("a");
            id = client.id();
            co_await client.send({.data = "for you alone"});
        });
    });
    event_client a(server.port(), "/mine", wants_gzip);
    CHECK(a.is_gzip());
    CHECK(a.next().data == "for you alone");
    event_client b(server.port(), "/subscribe/a", wants_gzip);
    std::size_t alone = 0;
    for (int n = 0; n < 1200; ++n) {
        const std::string text = "the same words again, message " + std::to_string(n);
        server.publish("a", {.data = text});
        for (event_client* one : {&a, &b}) CHECK(one->next().data == text);
        if (n == 100) {
            server.send_to(id, {.data = "for one"});
            CHECK(a.next().data == "for one");
        }
        if (n == 500) alone = a.body_bytes();
    }
    const std::size_t of_last = a.body_bytes() - alone;
    CHECK(alone > 200 * 60);       // it shared nothing for a while: texts and ids are 60 bytes
    CHECK(of_last < 700 * 60 / 2); // but then it did
    server.broadcast({.data = "last"});
    for (event_client* one : {&a, &b}) CHECK(one->next().data == "last");
}

TEST_CASE("gzip is for streams of one topic, without a filter or a user") {
    running_server server(compressing(), [](sse::server& s) {
        s.route("GET", "/filtered", [](sse::stream& client) -> asio::awaitable<void> {
            client.subscribe("a", {.filter = [](const sse::published&) { return true; }});
            co_return;
        });
        s.route("GET", "/user", [](sse::stream& client) -> asio::awaitable<void> {
            client.set_user("alice");
            client.subscribe("a");
            co_return;
        });
        s.route("GET", "/own", [](sse::stream& client) -> asio::awaitable<void> {
            co_await client.send({.data = "1"});
        });
    });
    for (const char* target : {"/filtered", "/user", "/own", "/subscribe?topic=a&topic=b"}) {
        CAPTURE(target);
        CHECK(!event_client(server.port(), target, wants_gzip).is_gzip());
        const auto head = http_request(server.port(), "HEAD", target, wants_gzip);
        CHECK(head.header("Content-Encoding") == std::nullopt);
    }
    for (const char* codings : {"", "br", "gzip;q=0", "identity, gzip;q=0.5"}) {
        CAPTURE(codings);
        event_client one(server.port(), "/subscribe/a", {{"Accept-Encoding", codings}});
        CHECK(!one.is_gzip());
        CHECK(one.head().header("Vary") == "Accept-Encoding");
    }
    CHECK(event_client(server.port(), "/subscribe/a", wants_gzip).is_gzip());
    running_server off;
    event_client one(off.port(), "/subscribe/a", wants_gzip);
    CHECK(!one.is_gzip());
    CHECK(one.head().header("Vary") == std::nullopt);
}

TEST_CASE("HEAD tells of gzip, and has no body") {
    running_server server(compressing());
    const auto head = http_request(server.port(), "HEAD", "/subscribe/a", wants_gzip);
    CHECK(head.status == 200);
    CHECK(head.header("Content-Encoding") == "gzip");
    CHECK(head.header("Vary") == "Accept-Encoding");
    CHECK(head.body.empty());
}

TEST_CASE("a gzip stream that is closed has its end, in chunks before the last one") {
    running_server server(compressing(), [](sse::server& s) {
        s.route("GET", "/a", [](sse::stream& client) -> asio::awaitable<void> {
            client.subscribe("a");
            co_await client.send({.data = "1"});
            client.close();
        });
    });
    event_client chunked(server.port(), "/a", {{"Accept-Encoding", "gzip"}, {"X-Varnish", "1"}});
    CHECK(chunked.next().data == "1");
    CHECK(chunked.wait_for_close() == support::ending::last_chunk);
    CHECK(chunked.gzip_ended());
    event_client closed(server.port(), "/a", wants_gzip);
    CHECK(closed.next().data == "1");
    CHECK(closed.wait_for_close() == support::ending::fin);
    CHECK(closed.gzip_ended());
}

TEST_CASE("a stream that is cut has no end of gzip") {
    running_server server(compressing(), [](sse::server& s) {
        s.route("GET", "/a", [](sse::stream& client) -> asio::awaitable<void> {
            client.subscribe("a");
            co_await client.send({.data = "1"});
            throw std::runtime_error("cut");
        });
    });
    event_client one(server.port(), "/a", wants_gzip);
    CHECK(one.next().data == "1");
    one.wait_for_close();
    CHECK(!one.gzip_ended());
}

} // namespace compress_test
