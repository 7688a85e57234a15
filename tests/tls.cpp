// tls.cpp - covers >>tls, >>secure: Both ends over TLS: what peers do to a handshake and to
// records, certificates that change, slow clients, ends that are cut. Built with SSE_ENABLE_TLS;
// the certificates are made by the test.
#include "support/dice.hpp"
#include "support/handlers.hpp"
#include "support/journal.hpp"
#include "support/script_server.hpp"
#include "support/server.hpp"

#include <asio/detached.hpp>
#include <asio/read.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include <dlfcn.h>
#include <netdb.h>
#include <strings.h>

// Hosts below sse.example are this machine: no other name of it has two dots.
extern "C" int getaddrinfo(const char* node, const char* service, const addrinfo* hints,
                           addrinfo** found) {
    static const auto real =
        reinterpret_cast<decltype(&getaddrinfo)>(::dlsym(RTLD_NEXT, "getaddrinfo"));
    constexpr std::string_view ours = "sse.example";
    const std::size_t size = node ? std::strlen(node) : 0;
    const bool here =
        size >= ours.size() && ::strcasecmp(node + size - ours.size(), ours.data()) == 0;
    return real(here ? "127.0.0.1" : node, service, hints, found);
}

namespace tls_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

sse::tls_options tls_of(const identity& who) {
    sse::tls_options o;
    o.certificate = who.certificate;
    o.key = who.key;
    return o;
}

connect_options secure() {
    connect_options o;
    o.tls = true;
    return o;
}

connect_options in_the_open() {
    connect_options o;
    o.tls = false;
    return o;
}

/// Why TLS failed, as the log says.
class failures {
public:
    void attach(sse::options& o) {
        o.hooks.log = [this](const sse::log_entry& entry) {
            if (entry.what != "TLS failed") return;
            const std::lock_guard lock(mutex_);
            texts_.emplace_back(entry.detail);
        };
    }
    std::vector<std::string> all() {
        const std::lock_guard lock(mutex_);
        return texts_;
    }
    bool wait_for(std::string_view text) {
        return eventually([&] {
            const auto now = all();
            return std::count(now.begin(), now.end(), text) > 0;
        });
    }

private:
    std::mutex mutex_;
    std::vector<std::string> texts_;
};

/// A server that speaks TLS, and what went wrong there.
struct tls_server {
    failures failed;
    running_server server;

    explicit tls_server(sse::options o = with_threads(1),
                        const std::function<void(sse::server&)>& prepare = {})
        : server(prepared(std::move(o), failed), prepare) {}
    std::uint16_t port() const { return server.port(); }

private:
    static sse::options prepared(sse::options o, failures& failed) {
        if (o.tls.certificate.empty()) {
            o.tls.certificate = test_server().certificate;
            o.tls.key = test_server().key;
        }
        failed.attach(o);
        return o;
    }
};

/// The first flight of a client.
std::string client_hello(const tls_wish& wish = {}) {
    tls_end end(wish);
    end.open("");
    return end.take_output();
}

response http_get_securely(std::uint16_t port, std::string_view target) {
    connection c(port, secure());
    return c.request("GET", target);
}

/// The same key in another file.
std::string with_password(const std::string& key) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> from(BIO_new_file(key.c_str(), "r"), BIO_free);
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> read(
        PEM_read_bio_PrivateKey(from.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
    const std::string file = key + ".encrypted";
    const std::unique_ptr<BIO, decltype(&BIO_free)> to(BIO_new_file(file.c_str(), "w"), BIO_free);
    unsigned char password[] = "secret";
    REQUIRE(PEM_write_bio_PrivateKey(to.get(), read.get(), EVP_aes_128_cbc(), password, 6, nullptr,
                                     nullptr) == 1);
    return file;
}

std::string subject_of_peer(connection& c) {
    char text[200] = "";
    X509* const peer = SSL_get0_peer_certificate(c.tls().native_handle());
    X509_NAME_get_text_by_NID(X509_get_subject_name(peer), NID_commonName, text, sizeof text);
    return text;
}

} // namespace

// ---- the server ---------------------------------------------------------------------------------

TEST_CASE("clients get events and responses over TLS 1.3 and 1.2") {
    tls_server server;
    for (const int version : {TLS1_3_VERSION, TLS1_2_VERSION}) {
        CAPTURE(version);
        connection c(server.port(), in_the_open());
        c.secure({.newest = version});
        CHECK(SSL_version(c.tls().native_handle()) == version);
        CHECK(c.request("GET", "/health").status == 200);
        CHECK(c.request("GET", "/nowhere").status == 404);

        event_client stream(server.port(), "/subscribe", {}, secure());
        server.server.broadcast({.data = "hello"});
        CHECK(stream.next().data == "hello");
    }
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("http/1.1 is agreed on where a client offers it, and another protocol is not") {
    tls_server server;
    for (const char* const offered : {"http/1.1", "h2"}) {
        connection c(server.port(), in_the_open());
        c.secure({.protocols = offered});
        const unsigned char* chosen = nullptr;
        unsigned size = 0;
        SSL_get0_alpn_selected(c.tls().native_handle(), &chosen, &size);
        const std::string text(reinterpret_cast<const char*>(chosen), size);
        CHECK(text == (std::string(offered) == "http/1.1" ? "http/1.1" : ""));
    }
}

TEST_CASE("a handshake that comes byte by byte is one") {
    tls_server server;
    connection c(server.port(), in_the_open());
    tls_end end;
    std::string came;
    while (!end.is_established()) {
        end.open(std::exchange(came, {}));
        for (const char byte : end.take_output()) c.send({&byte, 1});
        if (end.is_established()) break;
        c.receive_some();
        came = c.read_until([](const std::string&) { return true; });
    }
    for (const char byte : end.seal("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")) {
        c.send({&byte, 1});
    }
    std::string text = end.open(came);
    while (!has(text, "\r\n\r\n")) {
        c.receive_some();
        text += end.open(c.read_until([](const std::string&) { return true; }));
    }
    CHECK(has(text, "HTTP/1.1 200"));
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("an adopted connection goes on without TLS, on a server that speaks it") {
    tls_server server;
    asio::io_context io;
    asio::ip::tcp::acceptor door(io, {asio::ip::address_v4::loopback(), 0});
    connection c(door.local_endpoint().port(), in_the_open());
    asio::ip::tcp::socket socket = door.accept();
    std::string begun = "GET /subscribe HTTP/1.1\r\n";
    c.send(begun);
    asio::read(socket, asio::buffer(begun));
    server.server.adopt(std::move(socket), std::move(begun));
    c.send("Host: localhost\r\n\r\n");
    CHECK(c.read_head().status == 200);
    server.server.broadcast({.data = "in the open"});
    CHECK(has(c.read_through("in the open\n"), "data: "));
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("plain HTTP on the port of TLS is told so, in plain text") {
    tls_server server;
    for (const char* const method : {"GET", "DELETE", "OPTIONS", "POST"}) {
        connection c(server.port(), in_the_open());
        const response answer = c.request(method, "/subscribe");
        CHECK(answer.status == 400);
        CHECK(answer.body == "TLS is spoken here: use https\n");
        CHECK(c.wait_for_close() == ending::fin);
    }
    CHECK(server.failed.wait_for("plain HTTP"));
    CHECK(eventually([&] { return server.server.counters().tls_failures == 4; }));
    CHECK(server.server.counters().streams == 0);
}

TEST_CASE("of several addresses one that begins with http:// speaks no TLS") {
    sse::options o = with_threads(1);
    o.tls = tls_of(test_server());
    sse::server server(std::move(o));
    server.start({"127.0.0.1:0", "http://127.0.0.1:0"});
    const auto addresses = server.addresses();
    REQUIRE(addresses.size() == 2);
    CHECK(addresses[1].starts_with("http://127.0.0.1:"));
    const std::uint16_t plain = port_in(addresses[1]);
    CHECK(plain != server.port());
    event_client open(plain, "/subscribe", {}, in_the_open());
    event_client safe(server.port(), "/subscribe", {}, secure());
    server.broadcast({.data = "to both"});
    CHECK(open.next().data == "to both");
    CHECK(safe.next().data == "to both");
    connection wrong(server.port(), in_the_open());
    CHECK(has(wrong.request("GET", "/health").body, "TLS is spoken here"));
}

TEST_CASE("versions and ciphers that are too old are refused, with the reason in the log") {
    tls_server server;
    const auto refuses = [&](const tls_wish& wish) {
        connection c(server.port(), in_the_open());
        CHECK_THROWS_AS(c.secure(wish), tls_failure);
    };
    refuses({.oldest = TLS1_VERSION, .newest = TLS1_VERSION});
    CHECK(server.failed.wait_for("unsupported protocol"));
    refuses({.oldest = TLS1_1_VERSION, .newest = TLS1_1_VERSION});
    refuses({.newest = TLS1_2_VERSION, .ciphers = "AES128-SHA"});
    CHECK(server.failed.wait_for("no shared cipher"));
    CHECK(eventually([&] { return server.server.counters().tls_failures == 3; }));

    sse::options o = with_threads(1);
    o.tls.oldest = sse::tls_version::tls_1_3;
    tls_server strict(o);
    connection c(strict.port(), in_the_open());
    CHECK_THROWS_AS(c.secure({.newest = TLS1_2_VERSION}), tls_failure);
    CHECK(strict.failed.wait_for("unsupported protocol"));
}

TEST_CASE("a handshake that is left is counted, and a connection without a byte is not") {
    tls_server server;
    const std::string hello = client_hello();
    for (const std::size_t size : {std::size_t{1}, hello.size() / 2, hello.size()}) {
        connection c(server.port(), in_the_open());
        c.send(std::string_view(hello).substr(0, size));
        c.finish_sending();
        c.wait_for_close();
    }
    CHECK(eventually([&] { return server.server.counters().tls_failures == 3; }));
    CHECK(server.failed.wait_for("the connection ended during the handshake"));
    connection(server.port(), in_the_open()).close();
    CHECK(eventually([&] {
        const auto now = server.server.counters();
        return now.accepted == 4 && now.connections == 0;
    }));
    CHECK(server.server.counters().tls_failures == 3);
}

TEST_CASE("a handshake that fails is told from a lost one, though the client takes no alert") {
    journal log;
    sse::options o = with_threads(1);
    o.tls = tls_of(test_server());
    log.attach(o);
    std::atomic<int> accepted{0};
    std::atomic<bool> goes_on{false};
    o.hooks.log = [&, keep = o.hooks.log](const sse::log_entry& entry) {
        keep(entry);
        if (entry.what != "connected" || ++accepted < 2) return;
        CHECK(eventually([&] { return goes_on.load(); }));
    };
    running_server server(o);
    connection wrong(server.port(), in_the_open());
    wrong.send(client_hello());
    REQUIRE(wrong.receive_some()); // the server awaits the rest
    connection busy(server.port(), in_the_open());
    REQUIRE(eventually([&] { return accepted == 2; })); // the worker is held there
    wrong.send("this is not a record");
    wrong.reset();
    goes_on = true;
    REQUIRE(log.comes("disconnected"));
    CHECK(log.comes("TLS failed"));
    for (const journal::line& line : log.taken()) CHECK(line.client == "127.0.0.1");
    CHECK(server.counters().tls_failures == 1);
}

TEST_CASE("a handshake that is too slow is ended, and nobody waits for it") {
    sse::options o = with_threads(1);
    o.tls.handshake = 200ms;
    tls_server server(o);
    connection slow(server.port(), in_the_open());
    slow.send(client_hello().substr(0, 100));
    std::optional<event_client> other;
    REQUIRE(in_time([&] {
        other.emplace(server.port(), "/subscribe", header_list{}, secure());
        return true;
    }));
    server.server.broadcast({.data = "meanwhile"});
    CHECK(other->next().data == "meanwhile");
    slow.wait_for_close();
    CHECK(server.failed.wait_for("the handshake took too long"));
    server.server.broadcast({.data = "after"});
    CHECK(other->next().data == "after");
}

TEST_CASE("bytes that are not TLS, and records that are too large, end the connection") {
    tls_server server;
    std::minstd_rand random(7);
    std::string noise(200'000, '\0');
    for (char& byte : noise) byte = static_cast<char>(random() % 256);
    const std::string beginnings[] = {std::string("\0\0\0\0", 4), "{\"a\":", "\x16\x03\x01\xff\xff",
                                      "\x16\x03\x01\x3f\xff\x01\x00\x3f\xf0"};
    std::uint64_t count = 0;
    for (const std::string& first : beginnings) {
        connection c(server.port(), in_the_open());
        static_cast<void>(c.try_send(first + noise));
        c.finish_sending();
        c.wait_for_close();
        CHECK(eventually([&] { return server.server.counters().tls_failures == count + 1; }));
        ++count;
    }
    CHECK(http_get_securely(server.port(), "/health").status == 200);
}

TEST_CASE("a record that is broken ends its stream, and no other") {
    tls_server server;
    event_client stream(server.port(), "/subscribe", {}, secure());
    event_client other(server.port(), "/subscribe", {}, secure());
    std::string record = stream.socket().tls().seal("anything");
    record.back() = static_cast<char>(record.back() ^ 1);
    CHECK(stream.socket().try_send_raw(record));
    CHECK(server.failed.wait_for("decryption failed or bad record mac"));
    server.server.broadcast({.data = "on"});
    CHECK(other.next().data == "on");
}

TEST_CASE("whatever is cut, changed, left out or repeated of a session, it ends alone") {
    tls_server server;
    event_client steady(server.port(), "/subscribe", {}, secure());
    dice random(20261129);
    enum class harm : std::uint8_t { none, flip, cut, leave_out, repeat };
    for (int round = 0; round < 1'000; ++round) {
        const auto what = static_cast<harm>(random.below(5));
        std::size_t left = random.below(900); // bytes before the harm; the first are a handshake
        bool is_harmed = false;
        CAPTURE(static_cast<int>(what));
        CAPTURE(left);
        connection c(server.port(), in_the_open());
        const auto send = [&](std::string bytes) {
            const std::size_t at = left;
            left -= std::min(left, bytes.size());
            is_harmed = what != harm::none && at < bytes.size();
            if (is_harmed) {
                if (what == harm::flip) bytes[at] = static_cast<char>(bytes[at] ^ 1);
                if (what == harm::cut) bytes.resize(at);
                if (what == harm::leave_out) bytes.erase(at, 1);
                if (what == harm::repeat) bytes.insert(at, bytes.substr(0, at + 1));
            }
            return c.try_send(bytes) && !is_harmed;
        };
        tls_end end({.newest = random.one_in(2) ? TLS1_2_VERSION : TLS1_3_VERSION});
        std::string came;
        bool goes_on = true;
        while (goes_on && !end.is_established()) {
            end.open(came);
            goes_on = send(end.take_output());
            if (!goes_on || end.is_established()) break;
            REQUIRE(c.receive_some());
            came = c.read_until([](const std::string&) { return true; });
        }
        const std::string request = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for (int n = 0; n < 8 && goes_on; ++n) goes_on = send(end.seal(request));
        c.finish_sending();
        while (c.receive_some()) {}
        const bool answered = goes_on && has(end.open(c.received()), "HTTP/1.1 200");
        if (what == harm::none) CHECK(answered);
        if (round % 50 == 0) {
            server.server.broadcast({.data = std::to_string(round)});
            CHECK(steady.next().data == std::to_string(round));
        }
    }
    CHECK(eventually([&] { return server.server.counters().connections == 1; }));
    CHECK(server.server.counters().tls_failures > 100);
}

TEST_CASE("limits by address count from accept on, before any handshake") {
    sse::options o = with_threads(1);
    o.limits.connections_per_ip = 1;
    tls_server server(o);
    connection silent(server.port(), in_the_open());
    CHECK(eventually([&] { return server.server.counters().accepted == 1; }));
    connection second(server.port(), secure());
    CHECK(second.request("GET", "/subscribe").status == 429);
}

TEST_CASE("a client is known by its certificate") {
    const authority sensors("Sensors");
    const authority strangers("Strangers");
    const identity sensor = sensors.issue({.name = "sensor 7, \"east\"", .alternatives = ""});
    const identity stranger = strangers.issue({.name = "sensor 7", .alternatives = ""});
    const auto ask = [](std::uint16_t port, const identity& own, int newest) {
        connection c(port, in_the_open());
        c.secure({.newest = newest, .own = own});
        return c.request("GET", "/who").body;
    };
    const auto prepare = [](sse::server& s) {
        s.route("GET", "/who", [](sse::stream& client) -> handler_result {
            return client.respond(200, "text/plain", "<" + client.request().client_subject + ">");
        });
    };
    sse::options o = with_threads(1);
    o.tls.client_ca = sensors.file();
    for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
        CAPTURE(version);
        tls_server server(o, prepare);
        CHECK(ask(server.port(), sensor, version) == R"(<CN=sensor 7\, \"east\">)");
        CHECK_THROWS(ask(server.port(), {}, version));
        CHECK(server.failed.wait_for("peer did not return a certificate"));
        CHECK_THROWS(ask(server.port(), stranger, version));
        CHECK(eventually([&] { return server.server.counters().tls_failures == 2; }));
    }
    o.tls.client_may_be_unknown = true;
    tls_server open(o, prepare);
    CHECK(ask(open.port(), {}, TLS1_3_VERSION) == "<>");
    CHECK(ask(open.port(), sensor, TLS1_3_VERSION) == R"(<CN=sensor 7\, \"east\">)");
    CHECK_THROWS(ask(open.port(), stranger, TLS1_3_VERSION));
}

TEST_CASE("certificates change under open streams") {
    tls_server server;
    event_client before(server.port(), "/subscribe", {}, secure());
    CHECK(subject_of_peer(before.socket()) == "localhost");
    const identity next =
        test_authority().issue({.name = "renewed", .alternatives = "DNS:localhost", .rsa = true});
    server.server.reload_tls(tls_of(next));
    event_client after(server.port(), "/subscribe", {}, secure());
    CHECK(subject_of_peer(after.socket()) == "renewed");
    server.server.broadcast({.data = "both"});
    CHECK(before.next().data == "both");
    CHECK(after.next().data == "both");

    // The same files again, with another content.
    std::filesystem::copy_file(test_server().certificate, next.certificate,
                               std::filesystem::copy_options::overwrite_existing);
    CHECK_THROWS_AS(server.server.reload_tls(), sse::bad_option);
    connection same(server.port(), secure());
    CHECK(subject_of_peer(same) == "renewed");
    std::filesystem::copy_file(test_server().key, next.key,
                               std::filesystem::copy_options::overwrite_existing);
    server.server.reload_tls();
    connection back(server.port(), secure());
    CHECK(subject_of_peer(back) == "localhost");

    running_server without(with_threads(1));
    if (!tls_by_default) CHECK_THROWS_AS(without.reload_tls(), std::logic_error);
}

TEST_CASE("a certificate that has expired takes the place of none that has not") {
    tls_server server;
    const identity old = test_authority().issue({.begins = -48h, .ends = -24h});
    const identity older = test_authority().issue({.begins = -72h, .ends = -48h});
    CHECK_THROWS_WITH_AS(server.server.reload_tls(tls_of(old)),
                         doctest::Contains("has expired, and the present one has not"),
                         sse::bad_option);
    CHECK(connection(server.port(), secure()).request("GET", "/health").status == 200);

    sse::options o = with_threads(1);
    o.tls = tls_of(old);
    tls_server late(o);
    CHECK_NOTHROW(late.server.reload_tls(tls_of(older)));
    CHECK_NOTHROW(late.server.reload_tls(tls_of(test_server())));
    CHECK(connection(late.port(), secure()).request("GET", "/health").status == 200);
}

TEST_CASE("the log has a warning of a certificate that has expired, or is not valid yet") {
    const identity old = test_authority().issue({.begins = -48h, .ends = -24h});
    const identity early = test_authority().issue({.begins = 24h, .ends = 48h});
    journal log;
    sse::options o = with_threads(1);
    o.tls = tls_of(old);
    log.attach(o);
    running_server server(o);
    REQUIRE(log.comes("certificate"));
    server.reload_tls(tls_of(early));
    server.reload_tls(tls_of(test_server()));
    server.stop();
    server.join();
    std::vector<std::string> warnings;
    for (const auto& line : log.taken()) {
        if (line.what != "certificate") continue;
        CHECK(line.level == sse::log_level::warning);
        warnings.push_back(line.detail);
    }
    REQUIRE(warnings.size() == 2);
    CHECK(warnings[0].starts_with("'" + old.certificate + "' has expired"));
    CHECK(warnings[1].starts_with("'" + early.certificate + "' is not valid yet"));
}

TEST_CASE("the warning of a certificate comes on a thread of the server, which it may ask") {
    const identity old = test_authority().issue({.begins = -48h, .ends = -24h});
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> here{0}, there{0};
    sse::options o = with_threads(1);
    o.tls = tls_of(old);
    sse::server* asked = nullptr;
    o.hooks.log = [&](const sse::log_entry& e) {
        if (e.what != "certificate") return;
        if (std::this_thread::get_id() == caller) {
            ++here;
        } else if (asked->endpoint().port() != 0) {
            ++there;
        }
    };
    sse::server server(o);
    asked = &server;
    server.start("127.0.0.1:0");
    CHECK(eventually([&] { return here + there == 1; }));
    server.reload_tls();
    CHECK(eventually([&] { return here + there == 2; }));
    CHECK(here == 0);
    server.stop();
    server.join();
}

TEST_CASE("certificates change under thousands of streams, and none of them ends") {
    const std::size_t count = memory_is_meaningful ? 5'000 : 300;
    REQUIRE(raise_descriptor_limit() > 2 * count + 100);
    sse::options o = with_threads(2);
    o.limits.connections = 0;
    tls_server server(o);
    std::vector<std::unique_ptr<event_client>> streams;
    constexpr std::size_t generations = 5;
    for (std::size_t n = 0; n < generations; ++n) {
        const std::string name = "generation " + std::to_string(n);
        server.server.reload_tls(tls_of(test_authority().issue({.name = name})));
        while (streams.size() < count / generations * (n + 1)) {
            streams.push_back(std::make_unique<event_client>(server.port(), "/subscribe",
                                                             header_list{}, secure()));
            REQUIRE(subject_of_peer(streams.back()->socket()) == name);
        }
        server.server.broadcast({.data = std::to_string(n)});
    }
    for (std::size_t i = 0; i < streams.size(); ++i) {
        for (std::size_t n = i / (count / generations); n < generations; ++n) {
            REQUIRE(streams[i]->next().data == std::to_string(n));
        }
    }
    CHECK(server.server.counters().streams == count);
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("certificates change while clients connect from other threads") {
    sse::options o = with_threads(2);
    tls_server server(o);
    const identity other = test_authority().issue({.name = "other"});
    std::atomic<bool> done{false};
    std::thread changes([&] {
        for (int n = 0; !done; ++n) server.server.reload_tls(tls_of(n % 2 ? other : test_server()));
    });
    for (int n = 0; n < 50; ++n) CHECK(http_get_securely(server.port(), "/health").status == 200);
    done = true;
    changes.join();
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("files that cannot work are refused with the reason and the remedy") {
    const identity good = test_authority().issue({});
    const identity other = test_authority().issue({});
    const auto reason = [](sse::tls_options tls) {
        sse::options o = with_threads(1);
        o.tls = std::move(tls);
        try {
            sse::server server(o);
        } catch (const sse::bad_option& e) { return std::string(e.member()) + "|" + e.what(); }
        return std::string();
    };
    const auto says = [](const std::string& said, std::string_view member,
                         std::initializer_list<std::string_view> parts) {
        CAPTURE(said);
        CHECK(said.starts_with(std::string(member) + "|"));
        for (const std::string_view part : parts) CHECK(has(said, part));
    };
    const std::string missing = (certificate_folder() / "missing.pem").string();
    const std::string empty = (certificate_folder() / "empty.pem").string();
    std::ofstream(empty).flush();
    sse::tls_options tls = tls_of(good);
    CHECK(reason(tls).empty());
    tls.certificate = missing;
    says(reason(tls), "tls.certificate", {missing, "No such file"});
    tls.certificate = empty;
    says(reason(tls), "tls.certificate", {empty, "no start line"});
    tls.certificate.clear();
    says(reason(tls), "tls.certificate", {"give the file"});
    tls = tls_of(good);
    tls.key.clear();
    says(reason(tls), "tls.key", {"private key"});
    tls.key = missing;
    says(reason(tls), "tls.key", {missing, "No such file"});
    tls.key = other.key;
    says(reason(tls), "tls.key", {"key values mismatch", "first certificate in"});
    tls.key = test_authority().issue({.rsa = true}).key;
    says(reason(tls), "tls.key", {"key type mismatch", "first certificate in"});
    tls.key = with_password(good.key);
    says(reason(tls), "tls.key", {"without a password"});
    tls = tls_of(good);
    tls.client_may_be_unknown = true;
    says(reason(tls), "tls.client_may_be_unknown", {"client_ca"});
    sse::server running([&] {
        sse::options o = with_threads(1);
        o.tls = tls_of(good);
        return o;
    }());
    CHECK_THROWS_AS(running.reload_tls(tls), sse::bad_option);
    tls.certificate.clear();
    tls.key.clear();
    says(reason(tls), "tls.certificate", {"give the file"});
    tls = tls_of(good);
    tls.client_ca = missing;
    says(reason(tls), "tls.client_ca", {missing, "No such file"});
    tls.client_ca = empty;
    says(reason(tls), "tls.client_ca", {empty});
    tls.client_ca.clear();
    tls.client_crl = missing;
    says(reason(tls), "tls.client_crl", {"needs client_ca"});
    tls.client_ca = test_authority().file();
    says(reason(tls), "tls.client_crl", {missing, "No such file"});
    tls.client_crl = empty;
    says(reason(tls), "tls.client_crl", {empty, "no start line"});
    tls = tls_of(good);
    tls.handshake = 0ms;
    says(reason(tls), "tls.handshake", {"more than 0"});

    sse::options o = with_threads(1);
    o.tls = tls_of(good);
    o.proxy.protocol = true;
    CHECK_THROWS_AS(sse::server{o}, sse::bad_option);
}

// ---- records, slow clients ----------------------------------------------------------------------

TEST_CASE("messages of many records arrive as they were, at a fast client and at a slow one") {
    sse::options o = with_threads(1);
    o.timeouts.stall = 60s;
    tls_server server(o);
    connect_options narrow = secure();
    narrow.receive_buffer = 4096;
    event_client slow(server.port(), "/subscribe", {}, narrow);
    event_client fast(server.port(), "/subscribe", {}, secure());
    std::minstd_rand random(11);
    std::vector<std::string> sent;
    for (const std::size_t size :
         {1u, 16'000u, 16'384u, 16'385u, 100'000u, 1'000'000u, 7u, 300'000u}) {
        std::string text(size, ' ');
        for (char& c : text) c = static_cast<char>('a' + random() % 26);
        server.server.broadcast({.data = text});
        sent.push_back(std::move(text));
    }
    for (const std::string& text : sent) CHECK((fast.next().data == text));
    for (const std::string& text : sent) CHECK((slow.next().data == text));
}

TEST_CASE("a slow client has a position and one record, and is told what it missed") {
    sse::options o = with_threads(1);
    o.history.messages = 32;
    o.history.lag = sse::lag_policy::skip;
    o.timeouts.stall = 60s;
    tls_server server(o);
    connect_options narrow = secure();
    narrow.receive_buffer = 64 * 1024;
    event_client slow(server.port(), "/subscribe", {}, narrow);
    event_client fast(server.port(), "/subscribe", {}, secure());
    std::minstd_rand random(3);
    int last = 0;
    std::size_t gaps = 0;
    // The log moves on under a record that has begun, at ever other places.
    for (int round = 0; round < 3; ++round) {
        const int until = last + 500; // more than the system buffers
        for (int n = last + 1; n <= until; ++n) {
            std::string text = std::to_string(n) + " ";
            text.append(random() % 30'000, 'x');
            server.server.broadcast({.data = text});
            CHECK((fast.next().data == text));
        }
        for (int seen = last; seen < until;) {
            const decoded event = slow.next();
            const int at = std::stoi(event.id.substr(event.id.rfind('-') + 1));
            if (event.type == "gap") {
                ++gaps;
            } else {
                CHECK(at == seen + 1);
                CHECK(event.data.starts_with(std::to_string(at) + " "));
                CHECK((event.data.find_first_not_of('x', event.data.find(' ') + 1) ==
                       std::string::npos));
            }
            seen = at;
        }
        last = until;
    }
    CHECK(gaps > 0);
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("a client that reads nothing is given up, whatever TLS keeps for it") {
    sse::options o = with_threads(1);
    o.timeouts.stall = 300ms;
    o.history.lag = sse::lag_policy::skip;
    tls_server server(o);
    connect_options narrow = secure();
    narrow.receive_buffer = 4096;
    event_client stuck(server.port(), "/subscribe", {}, narrow);
    for (int n = 0; n < 200; ++n) server.server.broadcast({.data = std::string(50'000, 'x')});
    CHECK(eventually([&] { return server.server.counters().streams == 0; }));
    CHECK(server.server.counters().lagged == 1);
}

TEST_CASE("keys may change in both directions, and not for ever") {
    tls_server server;
    event_client stream(server.port(), "/subscribe", {}, secure());
    connection& peer = stream.socket();
    for (int n = 0; n < 20; ++n) {
        REQUIRE(peer.try_send_raw(peer.tls().change_keys(true)));
        server.server.broadcast({.data = std::to_string(n)});
        CHECK(stream.next().data == std::to_string(n));
    }
    CHECK(server.server.counters().tls_failures == 0);
    for (int n = 0; n < 2'000 && peer.try_send_raw(peer.tls().change_keys(true)); ++n) {}
    CHECK(server.failed.wait_for("more than 1,000 records without data"));
}

TEST_CASE("a long stream gets other keys on its way") {
    struct shorter {
        shorter() { sse::detail::tls_session::records_of_a_key = 3; }
        ~shorter() { sse::detail::tls_session::records_of_a_key = usual; }
        const std::uint64_t usual = sse::detail::tls_session::records_of_a_key;
    } const keys;
    tls_server server;
    event_client stream(server.port(), "/subscribe", {}, secure());
    int changes = 0;
    SSL* const ssl = stream.socket().tls().native_handle();
    SSL_set_msg_callback(
        ssl, [](int written, int, int type, const void* bytes, std::size_t, SSL*, void* count) {
            const auto kind = *static_cast<const unsigned char*>(bytes);
            if (written == 0 && type == SSL3_RT_HANDSHAKE && kind == SSL3_MT_KEY_UPDATE) {
                ++*static_cast<int*>(count);
            }
        });
    SSL_set_msg_callback_arg(ssl, &changes);
    for (int n = 0; n < 60; ++n) {
        server.server.broadcast({.data = std::to_string(n)});
        CHECK(stream.next().data == std::to_string(n));
    }
    CHECK(changes >= 15);
}

TEST_CASE("another handshake within a connection is refused") {
    tls_server server;
    connection c(server.port(), in_the_open());
    c.secure({.newest = TLS1_2_VERSION});
    SSL* const ssl = c.tls().native_handle();
    REQUIRE(SSL_renegotiate(ssl) == 1);
    SSL_do_handshake(ssl);
    CHECK(c.try_send_raw(c.tls().take_output()));
    CHECK_THROWS_AS(c.receive_some(), tls_failure);
    CHECK(http_get_securely(server.port(), "/health").status == 200);
}

// ---- ends ---------------------------------------------------------------------------------------

TEST_CASE("a drain ends streams with close_notify, and what is cut has none") {
    gate begun;
    const auto prepare = [&](sse::server& s) {
        s.route("GET", "/endless", [&](sse::stream& client) -> handler_result {
            co_await client.send({.data = "begun"});
            begun.open();
            co_await wait_an_hour(client);
        });
    };
    sse::options o = with_threads(1);
    tls_server server(o, prepare);
    event_client stream(server.port(), "/subscribe", {}, secure());
    event_client cut(server.port(), "/endless", {{"Connection", "close"}}, secure());
    REQUIRE(begun.wait());
    server.server.broadcast({.data = "last"});
    const sse::drain_result result = server.server.drain({.window = 300ms});
    CHECK(result.closed == 1);
    CHECK(result.cut == 1);
    CHECK(stream.next().data == "last");
    CHECK(stream.wait_for_close() == ending::fin);
    CHECK(stream.socket().tls().is_whole());
    CHECK(cut.next().data == "begun");
    cut.wait_for_close();
    CHECK_FALSE(cut.socket().tls().is_whole());
}

TEST_CASE("a stop ends streams with their reconnection time, and with close_notify") {
    tls_server server;
    event_client stream(server.port(), "/subscribe", {}, secure());
    server.server.stop();
    stream.wait_for_close();
    CHECK(stream.decoder().reconnection_time());
    CHECK(stream.socket().tls().is_whole());
}

TEST_CASE("connections in their handshake hold up neither a drain nor a stop") {
    for (const bool drains : {true, false}) {
        CAPTURE(drains);
        tls_server server;
        const std::string hello = client_hello();
        std::vector<std::unique_ptr<connection>> begun;
        for (const std::size_t size : {std::size_t{0}, hello.size() / 2, hello.size()}) {
            begun.push_back(std::make_unique<connection>(server.port(), in_the_open()));
            begun.back()->send(hello.substr(0, size));
        }
        event_client stream(server.port(), "/subscribe", {}, secure());
        CHECK(eventually([&] { return server.server.counters().connections == 4; }));
        if (drains) {
            CHECK(server.server.drain({.window = 100ms}).closed == 1);
        } else {
            server.server.stop();
        }
        stream.wait_for_close();
        CHECK(stream.socket().tls().is_whole());
        for (const auto& one : begun) one->wait_for_close();
        server.server.join();
        CHECK(server.server.counters().connections == 0);
    }
}

TEST_CASE("a client that says with or without TLS that nothing follows is answered") {
    tls_server server;
    for (const bool says_goodbye : {true, false}) {
        CAPTURE(says_goodbye);
        connection c(server.port(), secure());
        c.send_request("GET", "/health", {{"Connection", "close"}});
        if (says_goodbye) {
            CHECK(c.try_send_raw(c.tls().say_goodbye()));
        } else {
            ::shutdown(c.native_handle(), SHUT_WR);
        }
        CHECK(c.read_response().status == 200);
        CHECK(c.wait_for_close() == ending::fin);
        CHECK(c.tls().is_whole());
    }
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("an end that comes with the last bytes is met, though the connection stays open") {
    tls_server server;
    connection asks(server.port(), secure());
    const std::string request = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    std::string both = asks.tls().seal(request);
    both += asks.tls().say_goodbye();
    REQUIRE(asks.try_send_raw(both));
    CHECK(asks.read_response().status == 200);
    CHECK(asks.wait_for_close() == ending::fin);

    event_client reads(server.port(), "/subscribe", {}, secure());
    both = reads.socket().tls().seal("noise");
    both += reads.socket().tls().say_goodbye();
    REQUIRE(reads.socket().try_send_raw(both));
    CHECK(eventually([&] { return server.server.counters().streams == 0; }));
}

TEST_CASE("a handshake on the port of plain HTTP is answered as a bad request") {
    running_server server;
    connection c(server.port(), in_the_open());
    c.send(client_hello());
    CHECK(c.read_through("\r\n").starts_with("HTTP/1.1 400"));
}

TEST_CASE("a request and its body in records of one byte are read like others") {
    tls_server server(with_threads(1), [](sse::server& s) {
        s.route("POST", "/echo", [](sse::stream& client) -> handler_result {
            const std::string body = co_await client.body();
            co_await client.respond(200, "text/plain", body);
        });
    });
    const std::string body(5'000, 'b');
    const std::string request =
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) +
        "\r\n\r\n" + body;
    connection c(server.port(), secure());
    std::string sealed;
    for (const char byte : request) sealed += c.tls().seal({&byte, 1});
    CHECK(c.try_send_raw(sealed));
    CHECK(c.read_response().body == body);
}

// ---- the client ---------------------------------------------------------------------------------

namespace {

constexpr std::string_view stream_head =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

sse::client_options trusting(const std::string& ca = test_authority().file()) {
    sse::client_options o;
    o.tls.ca = ca;
    o.max_attempts = 1;
    o.retry = 1ms;
    return o;
}

/// What a client has received until it was over.
struct received {
    std::vector<std::string> events;
    std::error_code failed;
    std::string why;
};

received receive(const std::string& url, sse::client_options o, std::size_t most = 1'000) {
    asio::io_context io;
    received all;
    auto read = [](std::string from, sse::client_options how, std::size_t count,
                   received& into) -> asio::awaitable<void> {
        sse::client source(co_await asio::this_coro::executor, from, std::move(how));
        while (into.events.size() < count) {
            std::optional<sse::event> event = co_await source.next();
            if (!event) co_return;
            into.events.push_back(std::move(event->data));
        }
    };
    asio::co_spawn(io, read(url, std::move(o), most, all), [&](std::exception_ptr failure) {
        try {
            if (failure) std::rethrow_exception(failure);
        } catch (const std::system_error& e) {
            all.failed = e.code();
            all.why = e.what();
        } catch (const std::exception& e) { all.why = e.what(); }
    });
    io.run_for(patience);
    return all;
}

std::string url_of(std::uint16_t port, const std::string& host = "localhost") {
    return "https://" + host + ":" + std::to_string(port) + "/subscribe";
}

/// What comes from a server with this certificate.
received receive_from(const identity& own, sse::client_options o,
                      const std::string& host = "localhost", int newest = TLS1_3_VERSION) {
    scene one{.bytes = std::string(stream_head) + "data: 1\n\n"};
    one.tls = tls_wish{.is_server = true, .newest = newest, .own = own};
    script_server server({one});
    return receive(url_of(server.port(), host), std::move(o), 1);
}

} // namespace

TEST_CASE("a client receives events by https, of a name and of an address") {
    tls_server server;
    for (const char* const host : {"localhost", "127.0.0.1", "LOCALHOST", "localhost."}) {
        CAPTURE(host);
        asio::io_context io;
        sse::client source(io, url_of(server.port(), host), trusting());
        std::string data;
        auto read = [&]() -> asio::awaitable<void> {
            auto event = co_await source.next();
            data = event ? event->data : "none";
        };
        asio::co_spawn(io, read(), asio::detached);
        std::thread publisher([&] {
            CHECK(eventually([&] { return server.server.counters().streams > 0; }));
            server.server.broadcast({.data = "hello"});
        });
        io.run_for(patience);
        publisher.join();
        CHECK(data == "hello");
        source.close();
        CHECK(eventually([&] { return server.server.counters().streams == 0; }));
    }
    CHECK(server.server.counters().tls_failures == 0);
}

TEST_CASE("a client trusts whom it should, and says why it does not") {
    const auto refused = [](const received& what, std::string_view why) {
        CAPTURE(what.why);
        CHECK(what.events.empty());
        CHECK(what.failed == sse::errc::bad_certificate);
        CHECK(has(what.why, why));
    };
    const authority& ca = test_authority();
    CHECK(receive_from(ca.issue({}), trusting()).events.size() == 1);
    CHECK(receive_from(ca.issue({}), trusting(), "localhost", TLS1_2_VERSION).events.size() == 1);
    CHECK(receive_from(ca.issue({.alternatives = "IP:127.0.0.1"}), trusting(), "127.0.0.1")
              .events.size() == 1);

    refused(receive_from(ca.issue({.name = "localhost", .alternatives = "DNS:other.example"}),
                         trusting()),
            "hostname mismatch");
    refused(receive_from(ca.issue({.alternatives = "DNS:localhost"}), trusting(), "127.0.0.1"),
            "IP address mismatch");
    refused(receive_from(ca.issue({.alternatives = "DNS:l*"}), trusting()), "hostname mismatch");
    refused(receive_from(ca.issue({.begins = -48h, .ends = -24h}), trusting()), "expired");
    refused(receive_from(ca.issue({.begins = 24h, .ends = 48h}), trusting()), "not yet valid");
    refused(receive_from(authority("Other CA").issue({}), trusting()), "local issuer");

    // The subject names nobody, a wildcard one whole label.
    refused(receive_from(ca.issue({.alternatives = "IP:127.0.0.1"}), trusting()),
            "hostname mismatch");
    refused(receive_from(ca.issue({.alternatives = ""}), trusting()), "hostname mismatch");
    const struct {
        std::string name, host;
        bool matches;
    } names[] = {
        {"*.sse.example", "a.sse.example", true},    {"*.sse.example", "A.SSE.example", true},
        {"*.sse.example", "sse.example", false},     {"*.sse.example", "a.b.sse.example", false},
        {"a*.sse.example", "ab.sse.example", false}, {"a.*.example", "a.sse.example", false},
        {"*.example", "sse.example", false},         {"*", "localhost", false},
    };
    for (const auto& [name, host, matches] : names) {
        CAPTURE(name);
        CAPTURE(host);
        const received got =
            receive_from(ca.issue({.alternatives = "DNS:" + name}), trusting(), host);
        if (matches) {
            CHECK(got.events.size() == 1);
        } else {
            refused(got, "hostname mismatch");
        }
    }

    // The system does not know this CA, until it does.
    sse::client_options system = trusting();
    system.tls.ca.clear();
    refused(receive_from(ca.issue({}), system), "local issuer");
    REQUIRE(::setenv("SSL_CERT_FILE", ca.file().c_str(), 1) == 0);
    CHECK(receive_from(ca.issue({}), system).events.size() == 1);
    ::unsetenv("SSL_CERT_FILE");

    const authority between("Between", &ca);
    const identity chained = between.issue({});
    CHECK(receive_from(chained, trusting()).events.size() == 1);
    identity cut = ca.issue({});
    cut.key = chained.key;
    std::ifstream whole(chained.certificate);
    std::string pem(std::istreambuf_iterator<char>(whole), {});
    const std::string end = "-----END CERTIFICATE-----\n";
    std::ofstream(cut.certificate) << pem.substr(0, pem.find(end) + end.size());
    refused(receive_from(cut, trusting()), "local issuer");

    sse::client_options anybody = trusting();
    anybody.tls.insecure_trust_anybody = true;
    CHECK(receive_from(authority("Other CA").issue({.alternatives = "DNS:x"}), anybody)
              .events.size() == 1);
}

namespace {

std::string joined(const std::vector<std::string>& files) {
    static int count = 0;
    const std::string to =
        (certificate_folder() / ("lists" + std::to_string(++count) + ".pem")).string();
    std::ofstream out(to);
    for (const std::string& each : files) out << std::ifstream(each).rdbuf();
    return to;
}

} // namespace

TEST_CASE("who is revoked is refused by both ends, and so is who is on no list in date") {
    const authority root("Root"), between("Between", &root), closed("Closed", &root);
    const identity good = between.issue({}), lost = between.issue({}), other = closed.issue({});
    const std::string lists =
        joined({root.list_revoked({closed.file()}), between.list_revoked({lost.certificate}),
                closed.list_revoked({})});
    const std::string few = root.list_revoked({});
    const std::string old = joined({root.list_revoked({}, -1h), between.list_revoked({}, -1h)});
    const struct {
        identity who;
        std::string list, why;
    } cases[] = {
        {good, "", ""},
        {lost, "", ""},
        {good, lists, ""},
        {lost, lists, "certificate revoked"},
        {other, lists, "certificate revoked"},
        {good, few, "unable to get certificate CRL"},
        {good, old, "CRL has expired"},
    };
    for (const auto& [who, list, why] : cases) {
        CAPTURE(why);
        sse::client_options o = trusting(root.file());
        o.tls.crl = list;
        const received got = receive_from(who, o);
        CAPTURE(got.why);
        CHECK(got.events.size() == (why.empty() ? 1 : 0));
        CHECK(has(got.why, why));
        CHECK(got.failed == (why.empty() ? std::error_code() : sse::errc::bad_certificate));

        sse::options served = with_threads(1);
        served.tls.client_ca = root.file();
        served.tls.client_crl = list;
        tls_server server(served);
        connection c(server.port(), in_the_open());
        if (why.empty()) {
            c.secure({.own = who});
            CHECK(c.request("GET", "/health").status == 200);
        } else {
            CHECK_THROWS(c.secure({.newest = TLS1_2_VERSION, .own = who}));
            CHECK(server.failed.wait_for(why));
        }
    }
}

TEST_CASE("a list that is read again is for who connects from then on") {
    const authority root("Root");
    const identity one = root.issue({});
    sse::options o = with_threads(1);
    o.tls.client_ca = root.file();
    o.tls.client_crl = joined({root.list_revoked({})});
    const std::string list = o.tls.client_crl;
    tls_server server(o);
    sse::client_options known = trusting();
    known.tls.certificate = one.certificate;
    known.tls.key = one.key;
    connection open(server.port(), in_the_open());
    open.secure({.own = one});
    CHECK(open.request("GET", "/health").status == 200);
    std::filesystem::copy_file(root.list_revoked({one.certificate}), list,
                               std::filesystem::copy_options::overwrite_existing);
    server.server.reload_tls();
    CHECK(open.request("GET", "/health").status == 200);
    const received got = receive(url_of(server.port()), known, 1);
    CAPTURE(got.why);
    CHECK(got.failed == sse::errc::tls_failed);
    CHECK(has(got.why, "certificate revoked"));
    CHECK(server.failed.wait_for("certificate revoked"));
}

TEST_CASE("a server that is too old, or speaks no TLS, is told from one that is not trusted") {
    const received old = receive_from({}, trusting(), "localhost", TLS1_1_VERSION);
    CAPTURE(old.why);
    CHECK(old.failed == sse::errc::tls_failed);

    script_server plain({{.bytes = "HTTP/1.1 400 Bad Request\r\n\r\n", .read_request = false}});
    const received none = receive(url_of(plain.port()), trusting());
    CHECK(none.failed == sse::errc::tls_failed);
    CHECK(has(none.why, "wrong version number"));
    CHECK(has(none.why, "it may speak none at this port"));

    script_server leaves({{.bytes = "", .read_request = false}});
    const received left = receive(url_of(leaves.port()), trusting());
    CHECK(left.failed == sse::errc::tls_failed);
    CHECK(has(left.why, "the connection ended during the handshake"));
}

TEST_CASE("a client shows its own certificate where it is asked for one") {
    const authority sensors("Sensors");
    const identity sensor = sensors.issue({.name = "sensor 7", .alternatives = ""});
    sse::options o = with_threads(1);
    o.tls.client_ca = sensors.file();
    tls_server server(o, [](sse::server& s) {
        s.route("GET", "/subscribe", [](sse::stream& client) -> handler_result {
            co_await client.send({.data = client.request().client_subject});
        });
    });
    sse::client_options known = trusting();
    known.tls.certificate = sensor.certificate;
    known.tls.key = sensor.key;
    CHECK(receive(url_of(server.port()), known, 1).events ==
          std::vector<std::string>{"CN=sensor 7"});
    const received unknown = receive(url_of(server.port()), trusting(), 1);
    CAPTURE(unknown.why);
    CHECK(unknown.failed == sse::errc::tls_failed);
    CHECK(has(unknown.why, "certificate required"));
}

TEST_CASE("a stream that was cut is told from one that is whole") {
    const std::string chunked = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                                "Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
    const std::string until_close = std::string(stream_head) + "data: 1\n\n";
    const struct {
        std::string bytes;
        bool says_goodbye;
        bool whole;
    } cases[] = {{until_close, true, true},
                 {until_close, false, false},
                 {chunked, true, false},
                 {chunked + "0\r\n\r\n", false, true},
                 {chunked + "0\r\n\r\n", true, true}};
    for (const auto& one : cases) {
        CAPTURE(one.bytes);
        CAPTURE(one.says_goodbye);
        scene played{.bytes = one.bytes};
        played.tls = tls_wish{.is_server = true};
        played.says_goodbye = one.says_goodbye;
        script_server server({played});
        sse::client_options o = trusting();
        o.reconnect = false;
        const received all = receive(url_of(server.port()), o);
        CHECK(all.events == std::vector<std::string>{"1"});
        CHECK(all.failed == (one.whole ? std::error_code() : sse::errc::bad_response));
    }
}

TEST_CASE("a client follows a redirect from http to https, and sends no secret back to http") {
    scene secure_end{.bytes = std::string(stream_head) + "data: 1\n\n"};
    secure_end.tls = tls_wish{.is_server = true};
    script_server there({secure_end});
    script_server here({{.bytes = "HTTP/1.1 307 Temporary Redirect\r\nLocation: " +
                                  url_of(there.port()) + "\r\nContent-Length: 0\r\n\r\n"}});
    CHECK(receive(here.url(), trusting(), 1).events.size() == 1);

    script_server in_the_clear({{.bytes = std::string(stream_head) + "data: 1\n\n"}});
    scene downgrade{.bytes = "HTTP/1.1 307 Temporary Redirect\r\nLocation: " + in_the_clear.url() +
                             "\r\nContent-Length: 0\r\n\r\n"};
    downgrade.tls = tls_wish{.is_server = true};
    script_server first({downgrade});
    sse::client_options o = trusting();
    o.headers = {{"Authorization", "Bearer secret"}};
    o.trust_redirects = true;
    CHECK(receive(url_of(first.port()), o, 1).events.size() == 1);
    CHECK(has(first.requests().at(0), "secret"));
    CHECK_FALSE(has(in_the_clear.requests().at(0), "secret"));
}

TEST_CASE("a client's large request and a server's large events pass in many records") {
    std::string body(1'000'000, 'b');
    tls_server server({.threads = 1}, [&](sse::server& s) {
        s.route("POST", "/subscribe", [&](sse::stream& client) -> handler_result {
            const std::string text = co_await client.body();
            co_await client.send({.data = text == body ? "whole" : "broken"});
            co_await client.send({.data = text});
        });
    });
    sse::client_options o = trusting();
    o.method = "POST";
    o.body = body;
    const received all = receive(url_of(server.port()), o);
    CHECK_FALSE(all.failed);
    REQUIRE(all.events.size() == 2);
    CHECK(all.events[0] == "whole");
    CHECK((all.events[1] == body));
}

TEST_CASE("a client is cancelled in a handshake, and its time for that is bounded") {
    sse::client_options o = trusting();
    o.connect_timeout = 100ms;
    scene held{.end = scene::then::hold, .read_request = false};
    script_server server({held});
    const received late = receive(url_of(server.port()), o);
    CHECK(late.failed == sse::errc::timed_out);

    script_server other({held});
    asio::io_context io;
    sse::client source(io, url_of(other.port()), trusting());
    bool ended = false;
    auto read = [&]() -> asio::awaitable<void> {
        const auto event = co_await source.next();
        ended = !event;
    };
    asio::co_spawn(io, read(), asio::detached);
    CHECK(eventually([&] {
        io.poll();
        return other.connections() == 1;
    }));
    source.close();
    io.run_for(patience);
    CHECK(ended);
}

TEST_CASE("a server that changes keys or offers tickets for ever is left") {
    scene flood{.end = scene::then::hold};
    flood.tls = tls_wish{.is_server = true};
    flood.key_updates = 3'000;
    script_server server({flood});
    const received all = receive(url_of(server.port()), trusting());
    CHECK(all.failed == sse::errc::tls_failed);
    CHECK(has(all.why, "more than 1,000 records without data"));
}

TEST_CASE("a client's files that cannot work are refused where it is made") {
    const auto reason = [](sse::client_tls_options tls) {
        asio::io_context io;
        sse::client_options o;
        o.tls = std::move(tls);
        try {
            sse::client source(io, "http://localhost/", o);
        } catch (const std::invalid_argument& e) { return std::string(e.what()); }
        return std::string();
    };
    const std::string missing = (certificate_folder() / "missing.pem").string();
    CHECK(has(reason({.ca = missing}), "sse::client_options::tls.ca: '" + missing));
    CHECK(has(reason({.certificate = missing}), "tls.certificate: '" + missing));
    CHECK(has(reason({.crl = missing}), "tls.crl: '" + missing));
    CHECK(has(reason({.crl = test_server().key}), "no start line"));
    CHECK(has(reason({.certificate = test_server().certificate}), "tls.key"));
    CHECK(has(reason({.key = test_server().key}), "tls.certificate"));
    CHECK(reason({.certificate = test_server().certificate, .key = test_server().key}).empty());
}

// ---- the hub ------------------------------------------------------------------------------------

TEST_CASE("the hub speaks TLS, and reads its certificate again at SIGHUP") {
    const char* const folder = std::getenv("EXAMPLES");
    if (!folder) {
        MESSAGE("not run: EXAMPLES names no directory with the built hub");
        return;
    }
    const identity files = test_authority().issue({.name = "first"});
    const auto replace = [](const std::string& by, const std::string& file) {
        std::filesystem::copy_file(by, file, std::filesystem::copy_options::overwrite_existing);
    };
    process hub({std::string(folder) + "/hub", "--port", "0", "--tls-cert", files.certificate,
                 "--tls-key", files.key});
    const std::string line = hub.read_line();
    CHECK(line.starts_with("hub: open https://127.0.0.1:"));
    const std::uint16_t port = port_in(line);
    CHECK(has(http_get_securely(port, "/").body, "<!doctype html>"));
    event_client stream(port, "/subscribe", {}, secure());
    CHECK(subject_of_peer(stream.socket()) == "first");

    const identity second = test_authority().issue({.name = "second"});
    replace(second.certificate, files.certificate);
    replace(second.key, files.key);
    hub.signal(SIGHUP);
    CHECK(hub.read_line() == "hub: read the certificate again");
    connection later(port, secure());
    CHECK(subject_of_peer(later) == "second");
    hub.signal(SIGTERM);
    stream.wait_for_close();
    CHECK(hub.read_line() == "hub: disconnected 1 client");
    CHECK(hub.wait_for_exit().code == 0);
}

} // namespace tls_test
