// reach.cpp - covers >>listen: how a server is reached: several addresses at once.
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <set>
#include <thread>

namespace reach_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

connect_options at(const std::string& host) {
    connect_options o;
    o.host = host;
    return o;
}

/// The text of what the call throws; empty if it throws nothing.
template <class F>
std::string reason(F&& call) {
    try {
        call();
    } catch (const std::exception& e) { return e.what(); }
    return {};
}

std::string loopback(const sse::server& server, std::size_t which) {
    return "127.0.0.1:" + std::to_string(port_in(server.addresses().at(which)));
}

} // namespace

TEST_SUITE("reach") {
    TEST_CASE("a server listens on several addresses, and its streams are one audience") {
        sse::server server(with_threads(2));
        server.start({"127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0"});
        const std::vector<std::string> addresses = server.addresses();
        REQUIRE(addresses.size() == 3);
        CHECK(addresses[0] == "127.0.0.1:" + std::to_string(server.port()));
        CHECK(addresses[2].starts_with("127.0.0.2:"));
        CHECK(std::set(addresses.begin(), addresses.end()).size() == 3);
        event_client first(port_in(addresses[0]));
        event_client second(port_in(addresses[1]));
        event_client third(port_in(addresses[2]), "/subscribe", {}, at("127.0.0.2"));
        server.broadcast({.data = "to all"});
        for (event_client* each : {&first, &second, &third}) CHECK(each->next().data == "to all");
        CHECK(server.counters().accepted == 3);
        server.stop();
        for (event_client* each : {&first, &second, &third}) each->wait_for_close();
        server.join();
        for (const std::string& one : addresses) {
            const auto host = one.substr(0, one.find(':'));
            CHECK_THROWS_AS(connection(port_in(one), at(host)), std::system_error);
        }
    }

    TEST_CASE("many clients on each of several addresses are spread over the workers") {
        constexpr std::size_t each = 100;
        sse::server server(with_threads(2));
        server.start({"127.0.0.1:0", "127.0.0.1:0"});
        std::vector<event_client> clients;
        for (std::size_t n = 0; n < 2 * each; ++n) {
            clients.emplace_back(port_in(server.addresses()[n % 2]));
        }
        std::vector<std::size_t> of_worker(2);
        for (const sse::stream_info& one : server.streams()) ++of_worker[one.id % 2];
        CHECK(of_worker == std::vector<std::size_t>{each, each});
        server.broadcast({.data = "x"});
        for (event_client& one : clients) CHECK(one.next().data == "x");
    }

    TEST_CASE("a server that cannot listen on one of its addresses listens on none") {
        sse::server first(with_threads(1));
        first.start("127.0.0.1:0");
        sse::server second(with_threads(1));
        sse::server third(with_threads(1));
        third.start("127.0.0.1:0");
        const std::string free = loopback(third, 0);
        third.stop();
        third.join();
        const std::string why = reason([&] { second.start({free, loopback(first, 0)}); });
        CHECK(why.starts_with("sse::server: cannot listen on '" + loopback(first, 0) + "': "));
        CHECK_THROWS_AS(connection(port_in(free)), std::system_error);
        CHECK(second.addresses().empty());
        second.start(free); // it may be tried again
        CHECK(http_get(second.port(), "/health").status == 200);
    }

    TEST_CASE("what is no address, and no address at all, are refused before anything is opened") {
        sse::server server(with_threads(1));
        CHECK_THROWS_AS(server.start({"127.0.0.1:0", "nothing"}), std::invalid_argument);
        CHECK_THROWS_AS(server.start("http://127.0.0.1:0/path"), std::invalid_argument);
        CHECK_THROWS_AS(server.start("https://127.0.0.1:0"), std::invalid_argument);
        const std::vector<std::string> none;
        CHECK(reason([&] { server.start(none); }) ==
              "sse::server::start: there is no address to listen on; give one, or none at all for "
              "adopt()");
        server.start({"http://127.0.0.1:0"}); // without a certificate it is the same
        CHECK(http_get(server.port(), "/health").status == 200);
    }

    TEST_CASE("hosts are checked on loopback addresses alone, unless the program names them") {
        const auto status = [](const sse::server& of, const std::string& host) {
            return http_get(of.port(), "/health", {{"Host", host}}).status;
        };
        sse::server both(with_threads(1));
        both.start({"127.0.0.1:0", "127.0.0.2:0"});
        CHECK(status(both, "127.0.0.2") == 200);
        CHECK(status(both, "localhost") == 200);
        CHECK(status(both, "evil.example") == 421);
        sse::server open(with_threads(1));
        open.start({"127.0.0.1:0", "0.0.0.0:0"});
        CHECK(status(open, "any.example") == 200);
        sse::options o = with_threads(1);
        o.hosts = {"app.example"};
        sse::server named(std::move(o));
        named.start({"127.0.0.1:0", "0.0.0.0:0"});
        CHECK(status(named, "app.example") == 200);
        CHECK(status(named, "127.0.0.1") == 200);
        CHECK(status(named, "evil.example") == 421);
    }
}

} // namespace reach_test
