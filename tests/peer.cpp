// peer.cpp - covers >>peer: who a client is behind trusted proxies (X-Forwarded-For, RFC 7239,
// X-Real-IP, the PROXY protocol), what counts as one client, and whether a host is this machine.
// Addresses of documentation stand for clients (RFC 5737, RFC 3849), private ones for proxies.
#include "sse.hpp"

#include "support/bytes.hpp"
#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peer_test {

using namespace std::string_literals;
using namespace std::string_view_literals;
using namespace sse::detail;
using support::escaped;

namespace {

address at(const std::string& text) { return asio::ip::make_address(text); }

/// The address as text, or what stands for none.
std::string shown(const std::optional<address>& a) { return a ? a->to_string() : "none"; }

} // namespace

// ---- addresses ----------------------------------------------------------------------------------

TEST_CASE("IPv4 in IPv6 becomes plain IPv4, and all else stays") {
    CHECK(without_mapping(at("::ffff:192.0.2.1")) == at("192.0.2.1"));
    CHECK(without_mapping(at("::ffff:c000:201")) == at("192.0.2.1"));
    CHECK(without_mapping(at("::ffff:0.0.0.0")) == at("0.0.0.0"));
    for (const std::string text : {"192.0.2.1", "2001:db8::1", "::1", "::", "::192.0.2.1",
                                   "64:ff9b::192.0.2.1", "::fffe:192.0.2.1", "1::ffff:192.0.2.1"}) {
        CAPTURE(text);
        CHECK(without_mapping(at(text)) == at(text));
    }
}

TEST_CASE("limits by address count an IPv4 address, and a /64 of IPv6") {
    CHECK(counting_prefix(at("192.0.2.1")) == at("192.0.2.1"));
    CHECK(counting_prefix(at("192.0.2.1")) != counting_prefix(at("192.0.2.2")));
    CHECK(counting_prefix(at("2001:db8:1:2::1")) == at("2001:db8:1:2::"));
    CHECK(counting_prefix(at("2001:db8:1:2:ffff:ffff:ffff:ffff")) ==
          counting_prefix(at("2001:db8:1:2::")));
    CHECK(counting_prefix(at("2001:db8:1:3::1")) != counting_prefix(at("2001:db8:1:2::1")));
    CHECK(counting_prefix(at("2001:db8:1:2:8000::")) == counting_prefix(at("2001:db8:1:2:7fff::")));
    CHECK(counting_prefix(without_mapping(at("::ffff:192.0.2.1"))) == at("192.0.2.1"));
}

TEST_CASE("what an address counts as does not know the interface it came by") {
    asio::ip::address_v6 scoped = at("2001:db8::1").to_v6();
    scoped.scope_id(7);
    CHECK(counting_prefix(scoped) == counting_prefix(at("2001:db8::1")));
}

TEST_CASE("neighbours on a link count one by one, and apart from those of another link") {
    CHECK(counting_prefix(at("fe80::1")) != counting_prefix(at("fe80::2")));
    CHECK(counting_prefix(at("febf::1:0:0:1")) != counting_prefix(at("febf::1:0:0:2")));
    asio::ip::address_v6 there = at("fe80::1").to_v6();
    there.scope_id(7);
    CHECK(counting_prefix(there) == counting_prefix(there));
    CHECK(counting_prefix(there) != counting_prefix(at("fe80::1")));
    CHECK(counting_prefix(at("fec0::1")) == counting_prefix(at("fec0::2")));
}

// ---- blocks -------------------------------------------------------------------------------------

namespace {

struct block_case {
    std::string block;
    std::vector<std::string> inside;
    std::vector<std::string> outside;
};

void check_block(const block_case& c) {
    const address_block block(c.block);
    CAPTURE(c.block);
    for (const std::string& one : c.inside) {
        CAPTURE(one);
        CHECK(block.contains(at(one)));
    }
    for (const std::string& one : c.outside) {
        CAPTURE(one);
        CHECK(!block.contains(at(one)));
    }
}

/// The text of the std::invalid_argument that making this block throws.
std::string complaint(const std::string& text) {
    try {
        static_cast<void>(address_block(text));
    } catch (const std::invalid_argument& e) { return e.what(); }
    return "no complaint";
}

void check_not_a_block(const std::string& text) {
    CAPTURE(text);
    const std::string said = complaint(text);
    CAPTURE(said);
    if (said == "no complaint") {
        FAIL_CHECK("was taken for a block");
        return;
    }
    CHECK(said.find("sse::options::proxy.trusted") != said.npos);
    CHECK(said.find("'" + text + "'") != said.npos); // which of the list it was
    CHECK(said.find("10.0.0.0/8") != said.npos);     // what to write instead
}

} // namespace

TEST_CASE("a block contains the addresses that begin with its bits") {
    check_block({"10.0.0.0/8",
                 {"10.0.0.0", "10.0.0.1", "10.255.255.255"},
                 {"9.255.255.255", "11.0.0.0", "110.0.0.1", "::ffff:10.0.0.1", "a00::"}});
    check_block({"172.16.0.0/12", {"172.16.0.0", "172.31.255.255"}, {"172.15.0.0", "172.32.0.0"}});
    check_block({"192.168.1.128/25", {"192.168.1.128", "192.168.1.255"}, {"192.168.1.127"}});
    check_block({"192.0.2.4/31", {"192.0.2.4", "192.0.2.5"}, {"192.0.2.3", "192.0.2.6"}});
    check_block({"fd00::/8", {"fd00::1", "fdff:ffff::"}, {"fc00::", "fe00::", "253.0.0.0"}});
    check_block({"2001:db8::/33",
                 {"2001:db8::", "2001:db8:7fff:ffff::"},
                 {"2001:db8:8000::", "2001:db9::"}});
    check_block({"fe80::/10", {"fe80::1", "febf::"}, {"fec0::", "fe7f::"}});
}

TEST_CASE("one address is a block too") {
    for (const std::string text : {"192.0.2.1", "192.0.2.1/32"}) {
        check_block({text, {"192.0.2.1"}, {"192.0.2.0", "192.0.2.2", "::1"}});
    }
    for (const std::string text : {"::1", "::1/128", "0:0:0:0:0:0:0:1"}) {
        check_block({text, {"::1"}, {"::", "::2", "0.0.0.1", "127.0.0.1"}});
    }
}

TEST_CASE("a block of no bits contains its whole family, and not the other") {
    check_block({"0.0.0.0/0", {"0.0.0.0", "127.0.0.1", "255.255.255.255"}, {"::", "::1"}});
    check_block({"::/0", {"::", "::1", "ffff::"}, {"0.0.0.0", "127.0.0.1"}});
}

TEST_CASE("bits after the length of a block do not matter") {
    check_block({"10.1.2.3/8", {"10.0.0.0", "10.255.0.1"}, {"11.1.2.3"}});
    check_block({"2001:db8::1/32", {"2001:db8:ffff::"}, {"2001:db9::1"}});
}

TEST_CASE("what is not a block is refused when it is configured, with a hint") {
    for (const std::string text : {"",
                                   "/",
                                   "/8",
                                   "10.0.0.0/",
                                   "10.0.0.0/33",
                                   "::/129",
                                   "10.0.0.0/-1",
                                   "10.0.0.0/+8",
                                   "10.0.0.0/ 8",
                                   "10.0.0.0/8 ",
                                   " 10.0.0.0/8",
                                   "10.0.0.0/8/8",
                                   "10.0.0.0//8",
                                   "10.0.0.0/0x8",
                                   "10.0.0.0/8.0",
                                   "10.0.0.0/255.0.0.0",
                                   "10.0.0.0/4294967304",
                                   "10.0.0.0/18446744073709551624",
                                   "10.0.0/8",
                                   "10/8",
                                   "10.0.0.0.0/8",
                                   "256.0.0.0/8",
                                   "10.0.0.*",
                                   "10.0.0.1:80",
                                   "[::1]",
                                   "[::1]/128",
                                   "[::]/0",
                                   "::1::/64",
                                   "12345::/16",
                                   "localhost",
                                   "example.com",
                                   "*",
                                   "any",
                                   "10.0.0.0/8,192.168.0.0/16",
                                   "10.0.0.1-9"}) {
        check_not_a_block(text);
    }
}

TEST_CASE("a block of IPv4 in IPv6 matches its clients or is refused, for they count as IPv4") {
    // Dual-stack logs show ::ffff:10.0.0.1. Taken and never matched, it would trust no proxy.
    for (const std::string text : {"::ffff:10.0.0.1", "::ffff:10.0.0.0/104"}) {
        CAPTURE(text);
        if (complaint(text) != "no complaint") continue;
        CHECK(address_block(text).contains(without_mapping(at("::ffff:10.0.0.1"))));
    }
}

TEST_CASE("a list of blocks contains what one of them contains") {
    const std::vector<address_block> blocks = {address_block("10.0.0.0/8"), address_block("::1")};
    CHECK(contained(blocks, at("10.1.2.3")));
    CHECK(contained(blocks, at("::1")));
    CHECK(!contained(blocks, at("192.0.2.1")));
    CHECK(!contained({}, at("10.1.2.3")));
}

TEST_CASE("a block contains a random address exactly when their first bits are the same") {
    support::dice dice(20250220);
    const auto bits_of = [](const auto& bytes) {
        std::string bits;
        for (const unsigned char byte : bytes) {
            for (int i = 7; i >= 0; --i) bits += (byte >> i) % 2 == 0 ? '0' : '1';
        }
        return bits;
    };
    const auto check_family = [&](auto bytes) { // any address of the family
        for (auto& byte : bytes) byte = static_cast<unsigned char>(dice.byte());
        auto other = bytes;
        const std::size_t bits = bytes.size() * 8;
        if (!dice.one_in(4)) {
            const std::size_t flipped = dice.below(bits);
            other[flipped / 8] =
                static_cast<unsigned char>(other[flipped / 8] ^ (0x80U >> (flipped % 8)));
        }
        const std::size_t length = dice.below(bits + 1);
        const auto make = [](const auto& b) {
            if constexpr (sizeof(b) == 4) {
                return address(asio::ip::address_v4(b));
            } else {
                return address(asio::ip::address_v6(b));
            }
        };
        const std::string text = make(bytes).to_string() + "/" + std::to_string(length);
        CAPTURE(text);
        CHECK(address_block(text).contains(make(other)) ==
              (bits_of(bytes).substr(0, length) == bits_of(other).substr(0, length)));
    };
    for (int round = 0; round < 3000; ++round) {
        check_family(asio::ip::address_v4::bytes_type{});
        auto v6 = asio::ip::address_v6::bytes_type{};
        check_family(v6);
    }
}

// ---- text ---------------------------------------------------------------------------------------

TEST_CASE("an address is read with a port or without, IPv6 with brackets or without") {
    for (const auto& [text, expected] :
         std::initializer_list<std::pair<std::string_view, std::string_view>>{
             {"192.0.2.1", "192.0.2.1"},
             {"192.0.2.1:80", "192.0.2.1"},
             {"192.0.2.1:65535", "192.0.2.1"},
             {"2001:db8::1", "2001:db8::1"},
             {"2001:DB8::1", "2001:db8::1"},
             {"2001:db8:0:0:0:0:0:1", "2001:db8::1"},
             {"[2001:db8::1]", "2001:db8::1"},
             {"[2001:db8::1]:80", "2001:db8::1"},
             {"::1:80", "::1:80"}, // no port: without brackets it is part of the address
             {"::ffff:192.0.2.1", "192.0.2.1"},
             {"[::ffff:192.0.2.1]:80", "192.0.2.1"},
             {"::", "::"},
         }) {
        CAPTURE(text);
        CHECK(read_address(text) == at(std::string(expected)));
    }
}

TEST_CASE("what is not an address gives none") {
    for (const auto text : {""sv,
                            " "sv,
                            "unknown"sv,
                            "_hidden"sv,
                            "-"sv,
                            "localhost"sv,
                            "example.com"sv,
                            "192.0.2"sv,
                            "192.0.2.256"sv,
                            "192.0.2.1.1"sv,
                            "192.0.2.01"sv,
                            "0xc0000201"sv,
                            "3221225985"sv,
                            "192.0.2.1:"sv,
                            "192.0.2.1:x"sv,
                            "192.0.2.1:-1"sv,
                            "192.0.2.1:80:80"sv,
                            " 192.0.2.1"sv,
                            "192.0.2.1 "sv,
                            "192.0.2.1/32"sv,
                            "\"192.0.2.1\""sv,
                            "[192.0.2.1]"sv,
                            "[192.0.2.1]:80"sv,
                            "[]"sv,
                            "[]:80"sv,
                            "["sv,
                            "]"sv,
                            ":"sv,
                            ":80"sv,
                            "[::1"sv,
                            "::1]"sv,
                            "::1]:80"sv,
                            "[[::1]]"sv,
                            "[::1]80"sv,
                            "[::1]:"sv,
                            "[::1]:x"sv,
                            "[::1]]:80"sv,
                            "x[::1]:80"sv,
                            "x::1]"sv,
                            "[::1]x"sv,
                            ":::"sv,
                            "1::2::3"sv,
                            "12345::"sv,
                            "1:2:3:4:5:6:7:8:9"sv,
                            "fe80::1%1"sv,
                            "[fe80::1%1]:80"sv,
                            "192.0.2.1%1"sv,
                            "::1%lo"sv,
                            "192.0.2.1,192.0.2.2"sv}) {
        CAPTURE(text);
        CHECK(shown(read_address(text)) == "none");
    }
}

TEST_CASE("an address does not end at a NUL") { // the reader below takes C strings
    CHECK(shown(read_address("192.0.2.1\0"sv)) == "none");
    CHECK(shown(read_address("192.0.2.1\0.evil"sv)) == "none");
    CHECK(shown(read_address("[2001:db8::1\0x]:80"sv)) == "none");
}

// ---- headers ------------------------------------------------------------------------------------

namespace {

using lines = std::vector<std::pair<std::string, std::string>>;

/// Proxies of the private networks, and of this machine.
const std::vector<address_block>& proxies() {
    static const std::vector<address_block> blocks = {
        address_block("10.0.0.0/8"), address_block("fd00::/8"), address_block("127.0.0.1")};
    return blocks;
}

std::string client(const lines& headers, const std::string& peer, sse::forwarded_by source,
                   const std::vector<address_block>& trusted = proxies()) {
    sse::request request;
    for (const auto& [name, value] : headers) request.fields.push_back({name, value});
    return client_address(request, at(peer), trusted, source).to_string();
}

/// The client by X-Forwarded-For with these values, behind a trusted proxy.
std::string by_list(const std::vector<std::string>& values, const std::string& peer = "10.0.0.1") {
    lines headers = {{"Host", "a"}};
    for (const std::string& value : values) headers.emplace_back("X-Forwarded-For", value);
    return client(headers, peer, sse::forwarded_by::x_forwarded_for);
}

/// The same by Forwarded.
std::string by_forwarded(const std::vector<std::string>& values,
                         const std::string& peer = "10.0.0.1") {
    lines headers = {{"Host", "a"}};
    for (const std::string& value : values) headers.emplace_back("Forwarded", value);
    return client(headers, peer, sse::forwarded_by::forwarded);
}

} // namespace

TEST_CASE("without a header the client is the peer") {
    for (const auto source : {sse::forwarded_by::x_forwarded_for, sse::forwarded_by::forwarded,
                              sse::forwarded_by::x_real_ip}) {
        CHECK(client({}, "192.0.2.1", source) == "192.0.2.1");
        CHECK(client({}, "10.0.0.1", source) == "10.0.0.1");
        CHECK(client({}, "2001:db8::1", source) == "2001:db8::1");
        CHECK(client({}, "::ffff:192.0.2.1", source) == "192.0.2.1");
    }
}

TEST_CASE("a peer that is not trusted is the client, whatever its headers say") {
    const lines headers = {{"X-Forwarded-For", "203.0.113.9"},
                           {"Forwarded", "for=203.0.113.9"},
                           {"X-Real-IP", "203.0.113.9"}};
    for (const auto source : {sse::forwarded_by::x_forwarded_for, sse::forwarded_by::forwarded,
                              sse::forwarded_by::x_real_ip}) {
        CHECK(client(headers, "192.0.2.1", source) == "192.0.2.1");
        CHECK(client(headers, "2001:db8::1", source) == "2001:db8::1");
        CHECK(client(headers, "10.0.0.1", source, {}) == "10.0.0.1"); // nobody is trusted
    }
}

TEST_CASE("only the header that was chosen is read") {
    const lines headers = {{"X-Forwarded-For", "203.0.113.1"}, {"Forwarded", "for=203.0.113.2"},
                           {"X-Real-IP", "203.0.113.3"},       {"X-Forwarded", "203.0.113.4"},
                           {"X_Forwarded_For", "203.0.113.5"}, {"X-Forwarded-For-", "203.0.113.6"},
                           {"Client-IP", "203.0.113.7"}};
    CHECK(client(headers, "10.0.0.1", sse::forwarded_by::x_forwarded_for) == "203.0.113.1");
    CHECK(client(headers, "10.0.0.1", sse::forwarded_by::forwarded) == "203.0.113.2");
    CHECK(client(headers, "10.0.0.1", sse::forwarded_by::x_real_ip) == "203.0.113.3");
    CHECK(sse::options().proxy.forwarded == sse::forwarded_by::x_forwarded_for);
}

TEST_CASE("header names have no case") {
    CHECK(client({{"x-forwarded-for", "203.0.113.9"}}, "10.0.0.1",
                 sse::forwarded_by::x_forwarded_for) == "203.0.113.9");
    CHECK(client({{"FORWARDED", "FOR=203.0.113.9"}}, "10.0.0.1", sse::forwarded_by::forwarded) ==
          "203.0.113.9");
    CHECK(client({{"x-real-ip", "203.0.113.9"}}, "10.0.0.1", sse::forwarded_by::x_real_ip) ==
          "203.0.113.9");
}

TEST_CASE("X-Forwarded-For is walked from its end to the first hop that is not trusted") {
    CHECK(by_list({"203.0.113.9"}) == "203.0.113.9");
    CHECK(by_list({"203.0.113.9, 10.0.0.2"}) == "203.0.113.9");
    CHECK(by_list({"203.0.113.9,10.0.0.3,10.0.0.2"}) == "203.0.113.9");
    CHECK(by_list({"203.0.113.9, fd00::2"}) == "203.0.113.9");
    CHECK(by_list({"203.0.113.9, 192.0.2.7"}) == "192.0.2.7");
    CHECK(by_list({"203.0.113.9, 192.0.2.7, 10.0.0.2"}) == "192.0.2.7");
    CHECK(by_list({"203.0.113.9, 10.0.0.3, 192.0.2.7, 10.0.0.2"}) == "192.0.2.7");
}

TEST_CASE("what a client itself puts on the left is never believed") {
    CHECK(by_list({"127.0.0.1, 203.0.113.9"}) == "203.0.113.9");
    CHECK(by_list({"10.0.0.5, 203.0.113.9"}) == "203.0.113.9");
    CHECK(by_list({"::1, 192.0.2.1, garbage, 203.0.113.9, 10.0.0.2"}) == "203.0.113.9");
    CHECK(by_list({"\", 203.0.113.9"}) == "203.0.113.9");
    CHECK(by_list({"127.0.0.1", "203.0.113.9"}) == "203.0.113.9");
}

TEST_CASE("when all hops are trusted the first of them is the client") {
    CHECK(by_list({"10.0.0.9"}) == "10.0.0.9");
    CHECK(by_list({"10.0.0.9, 10.0.0.3, fd00::2"}) == "10.0.0.9");
}

TEST_CASE("several lines of X-Forwarded-For are one list") { // RFC 9110 5.3
    CHECK(by_list({"203.0.113.9", "10.0.0.2"}) == "203.0.113.9");
    CHECK(by_list({"203.0.113.9, 192.0.2.7", "10.0.0.3", "10.0.0.2"}) == "192.0.2.7");
    CHECK(by_list({"203.0.113.9", "", "10.0.0.2", ""}) == "203.0.113.9");
}

TEST_CASE("X-Forwarded-For may have ports, brackets, white space and empty elements") {
    CHECK(by_list({"203.0.113.9:4711, 10.0.0.2:80"}) == "203.0.113.9");
    CHECK(by_list({"2001:db8::9, 10.0.0.2"}) == "2001:db8::9");
    CHECK(by_list({"[2001:db8::9]:4711,[fd00::2]"}) == "2001:db8::9");
    CHECK(by_list({" \t203.0.113.9 \t, \t10.0.0.2\t "}) == "203.0.113.9");
    CHECK(by_list({",203.0.113.9,, ,10.0.0.2,"}) == "203.0.113.9"); // RFC 9110 5.6.1.2
    CHECK(by_list({","}) == "10.0.0.1");
}

TEST_CASE("an entry that cannot be read stops the walk at the hop before") {
    for (const std::string bad :
         {"unknown", "garbage", "_hidden", "203.0.113", "203.0.113.9.9", "203.0.113.9 10.0.0.2",
          "203.0.113.9;10.0.0.2", "for=203.0.113.9", "\"203.0.113.9\"", "fe80::1%1",
          "203.0.113.9:x", "[203.0.113.9]", "999.0.0.1", "localhost"}) {
        CAPTURE(bad);
        CHECK(by_list({bad}) == "10.0.0.1");
        CHECK(by_list({"203.0.113.9, " + bad}) == "10.0.0.1");
        CHECK(by_list({"203.0.113.9, " + bad + ", 10.0.0.2"}) == "10.0.0.2");
        CHECK(by_list({bad + ", 203.0.113.9, 10.0.0.2"}) == "203.0.113.9");
    }
}

TEST_CASE("IPv4 in IPv6 is IPv4 as a peer and as a hop") {
    CHECK(by_list({"203.0.113.9"}, "::ffff:10.0.0.1") == "203.0.113.9");
    CHECK(by_list({"::ffff:203.0.113.9, ::ffff:10.0.0.2"}) == "203.0.113.9");
    CHECK(by_list({"203.0.113.9"}, "::ffff:192.0.2.1") == "192.0.2.1");
    CHECK(by_forwarded({"for=\"[::ffff:203.0.113.9]\""}, "::ffff:10.0.0.1") == "203.0.113.9");
    CHECK(client({{"X-Real-IP", "::ffff:203.0.113.9"}}, "::ffff:10.0.0.1",
                 sse::forwarded_by::x_real_ip) == "203.0.113.9");
}

TEST_CASE("X-Real-IP is one address of a trusted proxy") {
    const auto by_real_ip = [](const std::vector<std::string>& values, const std::string& peer) {
        lines headers;
        for (const std::string& value : values) headers.emplace_back("X-Real-IP", value);
        return client(headers, peer, sse::forwarded_by::x_real_ip);
    };
    CHECK(by_real_ip({"203.0.113.9"}, "10.0.0.1") == "203.0.113.9");
    CHECK(by_real_ip({"2001:db8::9"}, "10.0.0.1") == "2001:db8::9");
    CHECK(by_real_ip({"203.0.113.9"}, "192.0.2.1") == "192.0.2.1");
    CHECK(by_real_ip({"10.0.0.9"}, "10.0.0.1") == "10.0.0.9"); // a trusted hop, but the only one
    // Two mean that the proxy did not overwrite what came: none is believed.
    CHECK(by_real_ip({"203.0.113.9", "203.0.113.9"}, "10.0.0.1") == "10.0.0.1");
    CHECK(by_real_ip({"127.0.0.1", "203.0.113.9"}, "10.0.0.1") == "10.0.0.1");
    CHECK(by_real_ip({"127.0.0.1, 203.0.113.9"}, "10.0.0.1") == "10.0.0.1");
    for (const std::string bad : {"", "unknown", "203.0.113", "203.0.113.9 x"}) {
        CHECK(by_real_ip({bad}, "10.0.0.1") == "10.0.0.1");
    }
}

TEST_CASE("Forwarded is walked from its end likewise") { // RFC 7239 4
    CHECK(by_forwarded({"for=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"For=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"for=\"203.0.113.9\""}) == "203.0.113.9");
    CHECK(by_forwarded({"for=\"203.0.113.9:4711\""}) == "203.0.113.9");
    CHECK(by_forwarded({"for=\"[2001:db8::9]\""}) == "2001:db8::9");
    CHECK(by_forwarded({"for=\"[2001:DB8::9]:4711\""}) == "2001:db8::9");
    CHECK(by_forwarded({"for=203.0.113.9, for=10.0.0.2"}) == "203.0.113.9");
    CHECK(by_forwarded({"for=203.0.113.9", "for=\"[fd00::2]:80\"", "for=10.0.0.2"}) ==
          "203.0.113.9");
    CHECK(by_forwarded({"for=203.0.113.9,for=192.0.2.7,for=10.0.0.2"}) == "192.0.2.7");
    CHECK(by_forwarded({"for=127.0.0.1", "for=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"for=203.0.113.9"}, "192.0.2.1") == "192.0.2.1");
    CHECK(by_forwarded({"for=10.0.0.9, for=10.0.0.2"}) == "10.0.0.9");
}

TEST_CASE("an element of Forwarded has several parameters in any order") {
    CHECK(by_forwarded({"for=203.0.113.9;proto=http;by=10.0.0.1"}) == "203.0.113.9");
    CHECK(by_forwarded({"proto=https;by=10.0.0.1;host=a.example;for=203.0.113.9"}) ==
          "203.0.113.9");
    CHECK(by_forwarded({"by=192.0.2.1;for=203.0.113.9;secret=x, proto=http;for=10.0.0.2"}) ==
          "203.0.113.9");
    CHECK(by_forwarded({"xfor=127.0.0.1;for=203.0.113.9;forx=127.0.0.1"}) == "203.0.113.9");
    CHECK(by_forwarded({";;for=203.0.113.9;"}) == "203.0.113.9");
    CHECK(by_forwarded({",for=203.0.113.9,"}) == "203.0.113.9");
}

TEST_CASE("what Forwarded hides stops the walk at the hop before") {
    for (const std::string bad :
         {"for=unknown", "for=_hidden", "for=\"_SEVKISEK\"", "for=\"_gazonk:80\"", "for=", "for",
          "for=\"\"", "for=\"", "for=\"203.0.113.8", "for=203.0.113.8\"", "proto=http",
          "by=203.0.113.8", "203.0.113.8", "for=\"[2001:db8::9\"", "for=[203.0.113.8]",
          "for=\"203.0.113.8\"x", "for='203.0.113.8'", "for=203.0.113.8 for=1"}) {
        CAPTURE(bad);
        CHECK(by_forwarded({bad}) == "10.0.0.1");
        CHECK(by_forwarded({"for=203.0.113.9", bad}) == "10.0.0.1");
        CHECK(by_forwarded({"for=203.0.113.9", bad, "for=10.0.0.2"}) == "10.0.0.2");
        CHECK(by_forwarded({bad, "for=203.0.113.9", "for=10.0.0.2"}) == "203.0.113.9");
    }
}

TEST_CASE("what stands in quotes parts neither elements nor parameters of Forwarded") {
    // A client chooses its Host, which may have commas, semicolons and "=" (RFC 3986 3.2.2), and a
    // proxy repeats it in quotes: it must not be taken for what the proxy says of the client.
    CHECK(by_forwarded({"for=203.0.113.9;host=\"a,for=127.0.0.1\""}) == "203.0.113.9");
    CHECK(by_forwarded({"for=203.0.113.9;host=\"a,for=127.0.0.1;b\""}) == "203.0.113.9");
    CHECK(by_forwarded({"for=203.0.113.9;host=\"a,for=127.0.0.1,b\""}) == "203.0.113.9");
    CHECK(by_forwarded({"host=\"a;for=127.0.0.1;b\";for=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"host=\"for=127.0.0.1;b\";for=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"host=\"a\\\";for=127.0.0.1;b\";for=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"host=\"a\\\\\";for=203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({"for=203.0.113.9;host=\"a\\\",for=127.0.0.1;b\""}) == "203.0.113.9");
}

// ---- random headers -----------------------------------------------------------------------------

TEST_CASE("a random list of hops gives the client that its trusted end names") {
    support::dice dice(20250221);
    constexpr std::string_view trusted[] = {"10.0.0.2", "10.1.2.3:80",     "[fd00::1]:8080",
                                            "fd00::2",  "::ffff:10.9.9.9", "127.0.0.1"};
    constexpr std::string_view strangers[] = {"203.0.113.9",         "2001:db8::9",
                                              "[2001:db8::1]:1",     "192.0.2.7:443",
                                              "::ffff:198.51.100.1", "11.0.0.1"};
    constexpr std::string_view broken[] = {"unknown", "x", "10.0.0", "[::1", "10.0.0.1:x", "%"};
    for (int round = 0; round < 4000; ++round) {
        // Built from its end, so that the client is known while it grows to the left.
        std::string expected = "10.0.0.1";
        bool walking = true;
        std::vector<std::string> values(1);
        for (std::size_t left = dice.below(6); left > 0; --left) {
            const auto kind = dice.below(6);
            const auto hop = std::string(kind == 0   ? dice.one_of(broken)
                                         : kind == 1 ? dice.one_of(strangers)
                                                     : dice.one_of(trusted));
            if (walking && kind != 0) expected = shown(read_address(hop));
            walking = walking && kind > 1;
            std::string& line = values.front();
            line = hop + (line.empty() ? "" : dice.one_in(2) ? "," : " ,\t") + line;
            if (dice.one_in(3)) values.insert(values.begin(), "");
        }
        CAPTURE(round);
        CAPTURE(values.front());
        CHECK(by_list(values) == expected);
        for (std::string& line : values) { // and the same hops by the other header
            std::string hops;
            for_each_element(line, [&](std::string_view hop) {
                hops.append(hops.empty() ? "" : ", ").append("proto=http;for=\"");
                hops.append(hop).append(dice.one_in(2) ? "\"" : "\";by=_b");
            });
            line = hops;
        }
        CHECK(by_forwarded(values) == expected);
    }
}

namespace {

/// The proxy saw 203.0.113.9, and its client sent the header and the host, which the proxy quotes.
void check_not_forged(const std::string& sent, const std::string& host) {
    CAPTURE(sent);
    CAPTURE(host);
    CHECK(by_list({sent, "203.0.113.9"}) == "203.0.113.9");
    CHECK(by_list({sent + ",203.0.113.9"}) == "203.0.113.9");
    CHECK(by_forwarded({sent, "for=203.0.113.9;host=" + host}) == "203.0.113.9");
    CHECK(by_forwarded({sent, "host=" + host + ";for=203.0.113.9;proto=http"}) == "203.0.113.9");
    // An open quote on the same line leaves nothing that can be read: then it is the proxy.
    for (const std::string& proxy_says :
         {",for=203.0.113.9;host=" + host, ", host=" + host + ";proto=http;for=203.0.113.9",
          ", for=\"203.0.113.9\""s}) {
        const std::string got = by_forwarded({sent + proxy_says});
        CAPTURE(got);
        CHECK((got == "203.0.113.9" || got == "10.0.0.1"));
    }
}

} // namespace

TEST_CASE("no bytes that a client sends make it anyone but the one whom its proxy saw") {
    support::dice dice(20250222);
    constexpr std::string_view words[] = {"for=",
                                          "127.0.0.1",
                                          "for=127.0.0.1",
                                          "for=\"127.0.0.1\"",
                                          "\"",
                                          "\\",
                                          ",",
                                          ";",
                                          "=",
                                          " ",
                                          "host=",
                                          "10.0.0.5",
                                          "\t",
                                          "[::1]",
                                          "x",
                                          "for=10.0.0.5"};
    constexpr std::string_view host_words[] = {
        "for=127.0.0.1", "for=",        "127.0.0.1", ",", ";", "=", "a", "(", "'", ".",
        "%2c",           "for=10.0.0.5"};
    const auto random = [&](const auto& from) {
        std::string out;
        for (std::size_t left = dice.below(8); left > 0; --left) out += dice.one_of(from);
        return out;
    };
    for (int round = 0; round < 6000; ++round) {
        const std::string sent = random(words);
        const std::string host = "\"" + random(host_words) + "\"";
        CAPTURE(round);
        check_not_forged(sent, host);
    }
}

// ---- the PROXY protocol -------------------------------------------------------------------------

namespace {

using progress = proxy_head::progress;

/// What a head of the PROXY protocol must come to.
struct expected {
    progress outcome = progress::complete;
    std::string_view from = "none";
};

struct proxy_case {
    std::string_view rule; ///< A section of HAProxy's proxy-protocol.txt, or "ours".
    std::string bytes;
    expected want = {};
};

constexpr expected refused{progress::refused};
constexpr expected incomplete{progress::need_more};

constexpr std::string_view request_behind = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

bool same(const proxy_head& a, const proxy_head& b) {
    return a.outcome == b.outcome && a.size == b.size && a.from == b.from;
}

/// The head whole. However it arrives, no piece of it gets another verdict than to wait, and
/// nothing after it changes it.
proxy_head read_in_every_way(const std::string& bytes) {
    const proxy_head whole = read_proxy_head(bytes);
    for (std::size_t size = 0; size < bytes.size(); ++size) {
        const std::vector<char> start(bytes.data(), bytes.data() + size); // of exactly its size
        const proxy_head part = read_proxy_head({start.data(), size});
        if (part.outcome == progress::need_more) {
            CHECK(part.size == 0);
            CHECK(!part.from);
            continue;
        }
        CAPTURE(size);
        CHECK(same(part, whole));
    }
    if (whole.outcome != progress::need_more) {
        CHECK(same(read_proxy_head(bytes + std::string(request_behind)), whole));
        CHECK(same(read_proxy_head(bytes + std::string(300, '\n')), whole));
    }
    CHECK((whole.outcome == progress::complete || (whole.size == 0 && !whole.from)));
    return whole;
}

void check_case(const proxy_case& c) {
    const std::string bytes = escaped(c.bytes.substr(0, 150));
    CAPTURE(c.rule);
    CAPTURE(bytes);
    const proxy_head got = read_in_every_way(c.bytes);
    CHECK(static_cast<int>(got.outcome) == static_cast<int>(c.want.outcome));
    if (got.outcome != progress::complete || c.want.outcome != progress::complete) return;
    CHECK(shown(got.from) == c.want.from);
    CHECK(got.size == c.bytes.size());
}

void check_table(std::initializer_list<proxy_case> table) {
    for (const proxy_case& c : table) check_case(c);
}

constexpr std::string_view signature("\r\n\r\n\0\r\nQUIT\n", 12);

/// A head of version 2.
std::string binary(int command, int family, std::string_view behind, std::size_t length) {
    std::string bytes(signature);
    for (const int byte :
         {command, family, static_cast<int>(length / 256), static_cast<int>(length % 256)}) {
        bytes += static_cast<char>(static_cast<unsigned char>(byte));
    }
    return bytes.append(behind);
}
std::string binary(int command, int family, std::string_view behind) {
    return binary(command, family, behind, behind.size());
}

/// 203.0.113.9:4711 to 10.0.0.1:80
const std::string addresses_v4 = "\xCB\x00\x71\x09\x0A\x00\x00\x01\x12\x67\x00\x50"s;

/// [2001:db8::9]:4711 to [fd00::1]:80
const std::string addresses_v6 = "\x20\x01\x0D\xB8\0\0\0\0\0\0\0\0\0\0\0\x09"
                                 "\xFD\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"
                                 "\x12\x67\x00\x50"s;

constexpr int local = 0x20;
constexpr int proxied = 0x21;
constexpr int tcp4 = 0x11;
constexpr int tcp6 = 0x21;

/// A head of version 1.
std::string words(std::string_view text) { return "PROXY " + std::string(text) + "\r\n"; }

} // namespace

TEST_CASE("a head of version 1 names who connected to the proxy") {
    check_table({
        {"2.1", words("TCP4 203.0.113.9 10.0.0.1 4711 80"), {.from = "203.0.113.9"}},
        {"2.1",
         words("TCP4 255.255.255.255 255.255.255.255 65535 65535"),
         {.from = "255.255.255.255"}},
        {"2.1", words("TCP4 0.0.0.0 0.0.0.0 0 0"), {.from = "0.0.0.0"}},
        {"2.1", words("TCP6 2001:db8::9 fd00::1 4711 80"), {.from = "2001:db8::9"}},
        {"2.1", words("TCP6 2001:DB8::9 FD00::1 4711 80"), {.from = "2001:db8::9"}},
        {"2.1",
         words("TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
               "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535"),
         {.from = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
        {"2.1 IPv4 in IPv6",
         words("TCP6 ::ffff:203.0.113.9 ::ffff:10.0.0.1 4711 80"),
         {.from = "203.0.113.9"}},
    });
}

TEST_CASE("a head of version 1 may say UNKNOWN, and then anything") {
    check_table({
        {"2.1 short form", "PROXY UNKNOWN\r\n"},
        {"2.1", words("UNKNOWN 203.0.113.9 10.0.0.1 4711 80")},
        {"2.1", words("UNKNOWN anything  at all")},
        {"2.1 the longest", words("UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
                                  "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535")},
        {"2.1 the whole word", words("UNKNOWNX"), refused},
        {"2.1 the whole word", words("UNKNOW"), refused},
        {"2.1 case matters", words("unknown"), refused},
    });
}

TEST_CASE("a head of version 1 that does not exactly match is refused") {
    check_table({
        {"2.1 case matters", "proxy TCP4 203.0.113.9 10.0.0.1 4711 80\r\n", refused},
        {"2.1 case matters", words("tcp4 203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1 the protocols", words("TCP5 203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1 the protocols", words("UDP4 203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1 the protocols", words("TCP 203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1 too few words", "PROXY\r\n", refused},
        {"2.1 too few words", words(""), refused},
        {"2.1 too few words", words("TCP4"), refused},
        {"2.1 too few words", words("TCP4 203.0.113.9"), refused},
        {"2.1 too few words", words("TCP4 203.0.113.9 10.0.0.1"), refused},
        {"2.1 too few words", words("TCP4 203.0.113.9 10.0.0.1 4711"), refused},
        {"2.1 too few words", words("TCP4 203.0.113.9 10.0.0.1 4711 "), refused},
        {"2.1 too many words", words("TCP4 203.0.113.9 10.0.0.1 4711 80 x"), refused},
        {"2.1 single spaces", "PROXY  TCP4 203.0.113.9 10.0.0.1 4711 80\r\n", refused},
        {"2.1 single spaces", words("TCP4  203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1 single spaces", words("TCP4 203.0.113.9 10.0.0.1 4711  80"), refused},
        {"2.1 no tab", "PROXY\tTCP4 203.0.113.9 10.0.0.1 4711 80\r\n", refused},
        {"2.1 no tab", words("TCP4\t203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1 no other host", words("TCP4 a.example 10.0.0.1 4711 80"), refused},
        {"2.1 no other host", words("TCP4 203.0.113.9 a.example 4711 80"), refused},
        {"2.1 four numbers", words("TCP4 203.0.113 10.0.0.1 4711 80"), refused},
        {"2.1 four numbers", words("TCP4 203.0.113.9 10.0.0.256 4711 80"), refused},
        {"2.1 no leading zeros", words("TCP4 203.0.113.09 10.0.0.1 4711 80"), refused},
        {"2.1 no zone", words("TCP6 fe80::1%1 fd00::1 4711 80"), refused},
        {"2.1 port", words("TCP4 203.0.113.9 10.0.0.1 x 80"), refused},
        {"2.1 port", words("TCP4 203.0.113.9 10.0.0.1 4711 x"), refused},
        {"2.1 port", words("TCP4 203.0.113.9 10.0.0.1 -1 80"), refused},
        {"2.1 port", words("TCP4 203.0.113.9 10.0.0.1 +1 80"), refused},
        {"2.1 port", words("TCP4 203.0.113.9 10.0.0.1 0x50 80"), refused},
    });
}

TEST_CASE("a head of version 1 ends in CR LF within 107 bytes") {
    const std::string good = "PROXY TCP4 203.0.113.9 10.0.0.1 4711 80";
    check_table({
        {"2.1 no bare LF", good + "\n" + std::string(request_behind), refused},
        {"2.1 no bare CR", good + "\r" + std::string(request_behind), refused},
        {"2.1 no CR CR LF", good + "\r\r\n", refused},
        {"2.1 not yet", good, incomplete},
        {"2.1 not yet", good + "\r", incomplete},
        {"2.1 not yet", good + "\n", incomplete},
        {"2.1 not yet", "", incomplete},
        {"2.1 not yet", "P", incomplete},
        {"2.1 not yet", "PROXY ", incomplete},
        {"2.1 not yet", "PROXY UNKNOWN", incomplete},
        {"2.1 107 bytes", words("UNKNOWN " + std::string(91, 'x'))},
        {"2.1 108 bytes", words("UNKNOWN " + std::string(92, 'x')), refused},
        {"2.1 106 so far", "PROXY " + std::string(100, 'x'), incomplete},
        {"2.1 107 so far", "PROXY " + std::string(101, 'x'), refused},
        {"2.1 endless", "PROXY UNKNOWN " + std::string(5000, 'x'), refused},
    });
}

TEST_CASE("a head of version 1 has addresses of the family that it says") {
    check_table({
        {"2.1", words("TCP4 2001:db8::9 fd00::1 4711 80"), refused},
        {"2.1", words("TCP6 203.0.113.9 10.0.0.1 4711 80"), refused},
        {"2.1", words("TCP4 203.0.113.9 fd00::1 4711 80"), refused},
        {"2.1", words("TCP6 2001:db8::9 10.0.0.1 4711 80"), refused},
    });
}

TEST_CASE("the addresses of a head of version 1 are nothing but addresses") {
    check_table({
        {"2.1 no port behind", words("TCP4 203.0.113.9:80 10.0.0.1 4711 80"), refused},
        {"2.1 no port behind", words("TCP4 203.0.113.9 10.0.0.1:80 4711 80"), refused},
        {"2.1 no port behind", words("TCP6 203.0.113.9:80 10.0.0.1:80 4711 80"), refused},
        {"2.1 no brackets", words("TCP6 [2001:db8::9] fd00::1 4711 80"), refused},
        {"2.1 no brackets", words("TCP6 [2001:db8::9]:80 [fd00::1]:80 4711 80"), refused},
        {"2.1 no NUL", words("TCP4 203.0.113.9\0x 10.0.0.1 4711 80"sv), refused},
        {"2.1 no NUL", words("TCP4 203.0.113.9 10.0.0.1\0 4711 80"sv), refused},
    });
}

TEST_CASE("the ports of a head of version 1 are numbers to 65535 without leading zeros") {
    check_table({
        {"2.1", words("TCP4 203.0.113.9 10.0.0.1 65536 80"), refused},
        {"2.1", words("TCP4 203.0.113.9 10.0.0.1 4711 99999"), refused},
        {"2.1", words("TCP4 203.0.113.9 10.0.0.1 4711 18446744073709551696"), refused},
        {"2.1", words("TCP4 203.0.113.9 10.0.0.1 04711 80"), refused},
        {"2.1", words("TCP4 203.0.113.9 10.0.0.1 4711 00"), refused},
    });
}

TEST_CASE("nothing stands between the last port and the end of a head of version 1") {
    check_table({{"2.1", words("TCP4 203.0.113.9 10.0.0.1 4711 80 "), refused}});
}

TEST_CASE("a head of version 2 names who connected to the proxy") {
    check_table({
        {"2.2", binary(proxied, tcp4, addresses_v4), {.from = "203.0.113.9"}},
        {"2.2", binary(proxied, tcp6, addresses_v6), {.from = "2001:db8::9"}},
        {"2.2 IPv4 in IPv6",
         binary(proxied, tcp6,
                "\0\0\0\0\0\0\0\0\0\0\xFF\xFF\xCB\x00\x71\x09"s + addresses_v6.substr(16)),
         {.from = "203.0.113.9"}},
        {"2.2 TLVs behind", // a NOOP, an authority
         binary(proxied, tcp4, addresses_v4 + "\x04\x00\x02xx\x02\x00\x09"s + "a.example"),
         {.from = "203.0.113.9"}},
        {"2.2 TLVs behind",
         binary(proxied, tcp6, addresses_v6 + "\x04\x00\x02xx"s),
         {.from = "2001:db8::9"}},
        {"2.2 TLVs not read",
         binary(proxied, tcp4, addresses_v4 + "\x04\xFF\xFFx"s),
         {.from = "203.0.113.9"}},
        {"2.2 line ends in it",
         binary(proxied, tcp4, "\r\n\r\n\r\n\r\n\r\n\r\n" + std::string(signature)),
         {.from = "13.10.13.10"}},
    });
}

TEST_CASE("a head of version 2 may be the proxy's own, or of a family without addresses") {
    check_table({
        {"2.2 LOCAL", binary(local, 0x00, "")},
        {"2.2 LOCAL, skipped", binary(local, tcp4, addresses_v4)},
        {"2.2 LOCAL, skipped", binary(local, 0x00, addresses_v4 + "\x04\x00\x02xx"s)},
        {"2.2 LOCAL, too short", binary(local, tcp4, "x")},
        {"2.2 LOCAL, family ignored", binary(local, 0xff, "x")},
        {"2.2 UNSPEC", binary(proxied, 0x00, "")},
        {"2.2 UNSPEC, skipped", binary(proxied, 0x00, addresses_v4)},
        {"2.2 UNIX", binary(proxied, 0x31, std::string(216, '/'))},
        {"2.2 UNIX", binary(proxied, 0x32, std::string(216, '/'))},
        {"2.2 UDP as UNSPEC", binary(proxied, 0x12, addresses_v4)},
        {"2.2 UDP as UNSPEC", binary(proxied, 0x22, addresses_v6)},
    });
}

TEST_CASE("a head of version 2 with another version or command is refused") {
    for (const int command : {0x00, 0x01, 0x10, 0x11, 0x22, 0x23, 0x2f, 0x30, 0x31, 0xa1, 0xff}) {
        CAPTURE(command);
        check_case({"2.2", binary(command, tcp4, addresses_v4), refused});
    }
}

TEST_CASE("a head of version 2 of a family or a protocol that is not specified is refused") {
    // "must be rejected as invalid by receivers"
    for (const int family : {0x03, 0x0f, 0x13, 0x1f, 0x23, 0x33, 0x40, 0x41, 0x81, 0xf1, 0xff}) {
        CAPTURE(family);
        check_case({"2.2", binary(proxied, family, std::string(216, 'x')), refused});
    }
}

TEST_CASE("a head of version 2 that is too short for its addresses is refused") {
    for (const std::size_t length : {0U, 1U, 4U, 11U}) {
        CAPTURE(length);
        check_case({"2.2", binary(proxied, tcp4, addresses_v4.substr(0, length)), refused});
    }
    for (const std::size_t length : {0U, 12U, 16U, 35U}) {
        CAPTURE(length);
        check_case({"2.2", binary(proxied, tcp6, addresses_v6.substr(0, length)), refused});
    }
}

TEST_CASE("a head of version 2 is waited for whole") {
    const std::string whole = binary(proxied, tcp4, addresses_v4 + "\x04\x00\x02xx"s);
    for (std::size_t size = 0; size < whole.size(); ++size) {
        check_case({"2.2", whole.substr(0, size), incomplete});
    }
}

TEST_CASE("a head of version 2 is of a kilobyte at most") {
    const auto of_size = [](std::size_t size) {
        return binary(proxied, tcp4, addresses_v4 + std::string(size - 12, 'x'));
    };
    check_table({
        {"ours", of_size(1024), {.from = "203.0.113.9"}},
        {"ours", of_size(1025), refused},
        {"ours: before it has come", binary(proxied, tcp4, addresses_v4, 1025), refused},
        {"ours: before it has come", binary(proxied, tcp4, addresses_v4, 65535), refused},
        {"ours: before it has come", binary(local, 0, "", 65535), refused},
    });
}

TEST_CASE("what is no PROXY protocol header is refused at its first wrong byte") {
    check_table({
        {"2", std::string(request_behind), refused},
        {"2", "G", refused},
        {"2", "PROX\r", refused},
        {"2", "PROXY\r", refused},
        {"2", "PROXYTCP4 ", refused},
        {"2", " PROXY TCP4 203.0.113.9 10.0.0.1 4711 80\r\n", refused},
        {"2", "\nPROXY UNKNOWN\r\n", refused},
        {"2", "\r\nPROXY UNKNOWN\r\n", refused},
        {"2", "\r\n\r\nGET", refused},
        {"2", "\x16\x03\x01", refused},
        {"2", "\0"s, refused},
    });
    const std::string whole = binary(proxied, tcp4, addresses_v4);
    for (std::size_t i = 0; i < signature.size(); ++i) {
        CAPTURE(i);
        std::string bytes = whole;
        bytes[i] ^= 1;
        check_case({"2.2 signature", bytes, refused});
        check_case({"2.2 signature", bytes.substr(0, i + 1), refused});
    }
}

TEST_CASE("what stands after a head of the PROXY protocol is left") {
    for (const std::string& head : {words("TCP4 203.0.113.9 10.0.0.1 4711 80"),
                                    binary(proxied, tcp4, addresses_v4), binary(local, 0, "")}) {
        // A second head is not the first's affair: as a request it is refused.
        for (const std::string& behind : {std::string(request_behind), head, "\r\n"s, "x"s}) {
            const proxy_head got = read_proxy_head(head + behind);
            CHECK((got.outcome == progress::complete));
            CHECK(got.size == head.size());
        }
    }
}

TEST_CASE("random heads of the PROXY protocol get one verdict under any split") {
    support::dice dice(20250223);
    const std::string heads[] = {words("TCP4 203.0.113.9 10.0.0.1 4711 80"),
                                 words("TCP6 2001:db8::9 fd00::1 4711 80"),
                                 words("UNKNOWN x"),
                                 binary(proxied, tcp4, addresses_v4 + "\x04\x00\x02xx"s),
                                 binary(proxied, tcp6, addresses_v6),
                                 binary(local, 0, "")};
    int complete = 0;
    for (int round = 0; round < 3000; ++round) {
        std::string bytes = dice.one_of(heads);
        for (std::size_t left = dice.below(4); left > 0; --left) {
            const std::size_t where = dice.below(bytes.size());
            const char c = dice.one_in(2) ? dice.one_of("\r\n 0:.fT4\0"sv) : dice.byte();
            switch (dice.below(3)) {
            case 0: bytes[where] = c; break;
            case 1: bytes.insert(where, 1, c); break;
            default: bytes.erase(where, 1); break;
            }
        }
        const std::string shown_bytes = escaped(bytes);
        CAPTURE(round);
        CAPTURE(shown_bytes);
        const proxy_head got = read_in_every_way(bytes);
        if (got.outcome != progress::complete) continue;
        ++complete;
        CHECK(got.size <= bytes.size());
        CHECK(got.size >= 15);
    }
    CHECK(complete > 500);
    for (int round = 0; round < 2000; ++round) {
        read_in_every_way(dice.bytes(60, "PROXY \r\n"));
        read_in_every_way(std::string(signature) + dice.bytes(60, "\x20\x21\x11\x00\x0c"sv));
    }
}

// ---- hosts --------------------------------------------------------------------------------------

TEST_CASE("a host is compared whole, in any case and on any port") {
    const std::vector<std::string> hosts = {"localhost", "127.0.0.1", "[::1]", "App.example"};
    for (const auto host :
         {"localhost"sv, "localhost:8080"sv, "localhost:"sv, "LocalHost:80"sv, "127.0.0.1"sv,
          "127.0.0.1:8080"sv, "[::1]"sv, "[::1]:8080"sv, "app.example"sv, "APP.EXAMPLE:443"sv}) {
        CAPTURE(host);
        CHECK(is_one_of_hosts(hosts, host));
    }
    for (const auto host : {"localhost.evil"sv,
                            "localhost.evil:8080"sv,
                            "evil.localhost"sv,
                            "evillocalhost"sv,
                            "localhos"sv,
                            "localhostx"sv,
                            "local"sv,
                            ""sv,
                            ":80"sv,
                            ":"sv,
                            "127.0.0.1.evil"sv,
                            "127.0.0.10"sv,
                            "127.0.0.1x:80"sv,
                            "27.0.0.1"sv,
                            "127.0.0.2"sv,
                            "[::1].evil"sv,
                            "[::1]evil:80"sv,
                            "[::2]"sv,
                            "[::1"sv,
                            "::1"sv,
                            "[::]"sv,
                            "evil:localhost"sv,
                            "evil@localhost"sv,
                            "sub.app.example"sv,
                            "app.example.evil"sv,
                            "example"sv,
                            "*"sv}) {
        CAPTURE(host);
        CHECK(!is_one_of_hosts(hosts, host));
    }
}

TEST_CASE("a host is known by each spelling: the dot of the root, names below, other zeros") {
    const std::vector<std::string> hosts = {"localhost", "*.example", "127.0.0.1", "[::1]"};
    for (const auto host : {"localhost."sv, "localhost.:80"sv, "a.example"sv, "a.b.EXAMPLE.:1"sv,
                            "[0:0:0:0:0:0:0:1]"sv, "[::ffff:127.0.0.1]:8080"sv}) {
        CAPTURE(host);
        CHECK(is_one_of_hosts(hosts, host));
    }
    for (const auto host : {"localhost.."sv, "."sv, "example"sv, ".example"sv, "aexample"sv,
                            "a.example.evil"sv, "[::2]"sv, "[127.0.0.1]"sv, "[::1%1]"sv}) {
        CAPTURE(host);
        CHECK(!is_one_of_hosts(hosts, host));
    }
}

TEST_CASE("a loopback host is localhost, a name below it, or a loopback address") {
    for (const auto host :
         {"localhost"sv, "LOCALHOST.:80"sv, "app.localhost:8080"sv, "127.0.0.1"sv, "127.9.8.7:1"sv,
          "[::1]:1"sv, "[0:0:0:0:0:0:0:1]"sv, "[::ffff:127.0.0.1]"sv}) {
        CAPTURE(host);
        CHECK(is_loopback_host(host));
    }
    for (const auto host : {"localhost.evil"sv, "evillocalhost"sv, "127.0.0.1.evil"sv,
                            "128.0.0.1"sv, "127.evil"sv, ""sv, "[::2]"sv, "0.0.0.0"sv}) {
        CAPTURE(host);
        CHECK(!is_loopback_host(host));
    }
}

TEST_CASE("an entry of the hosts is read as it is compared, and what matches nothing is none") {
    CHECK(read_host("name:8080") == "name");
    CHECK(read_host("Name.example.") == "Name.example");
    CHECK(read_host("*.example") == "*.example");
    CHECK(read_host("::1") == "[::1]");
    CHECK(read_host("[::1]:80") == "[::1]");
    CHECK(read_host("*") == "*");
    for (const auto text :
         {""sv, "http://name"sv, "name/"sv, "a b"sv, "*example"sv, "a.*.example"sv, "*."sv,
          "*:80"sv, "name:"sv, "name:http"sv, "u@name"sv, "::1%eth0"sv}) {
        CAPTURE(text);
        CHECK(!read_host(text));
    }
}

TEST_CASE("no host is one of none") {
    CHECK(!is_one_of_hosts({}, "localhost"));
    CHECK(!is_one_of_hosts({}, ""));
}

} // namespace peer_test
