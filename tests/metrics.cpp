// metrics.cpp - covers >>metrics: what a server measures, as its own handlers and Prometheus see
// it.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <map>
#include <set>

namespace metrics_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

struct sample {
    std::string name; ///< With its labels.
    double value = 0;
};

/// The text by the rules of its format: families in one piece, each with its help and type, names
/// and labels of the allowed characters, no sample twice.
std::map<std::string, double> read_metrics(const std::string& text, bool open) {
    std::map<std::string, double> samples;
    std::set<std::string> families;
    std::string family, type, helped;
    bool ended = false;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = text.find('\n', at);
        REQUIRE(end != text.npos); // the last line ends too
        const std::string line = text.substr(at, end - at);
        at = end + 1;
        REQUIRE(!ended);
        if (line == "# EOF") {
            ended = true;
        } else if (line.starts_with("# HELP ")) {
            helped = line.substr(7, line.find(' ', 7) - 7);
            CHECK(families.insert(helped).second);
        } else if (line.starts_with("# TYPE ")) {
            family = line.substr(7, line.find(' ', 7) - 7);
            type = line.substr(line.rfind(' ') + 1);
            CHECK(family == helped);
            if (type == "counter") CHECK(family.ends_with("_total") == !open);
        } else {
            const std::size_t space = line.rfind(' ');
            REQUIRE(space != line.npos);
            const std::string name = line.substr(0, space);
            const std::string plain = name.substr(0, name.find('{'));
            CHECK(plain.starts_with(family));
            CHECK(plain.find_first_not_of("abcdefghijklmnopqrstuvwxyz_") == plain.npos);
            if (type == "counter" && open) CHECK(plain == family + "_total");
            CHECK(samples.emplace(name, std::stod(line.substr(space + 1))).second);
        }
    }
    CHECK(ended == open);
    return samples;
}

std::map<std::string, double> scrape(std::uint16_t port, bool open = false) {
    const header_list accept{
        {"Accept", open ? "application/openmetrics-text;version=1.0.0,text/plain;q=0.5" : "*/*"}};
    const response got = http_get(port, "/metrics", accept);
    CHECK(got.status == 200);
    CHECK(got.header("Content-Type") ==
          (open ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                : "text/plain; version=0.0.4; charset=utf-8"));
    return read_metrics(got.body, open);
}

} // namespace

TEST_CASE("metrics: both formats say the same of streams, messages and ends") {
    for (const std::size_t threads : {std::size_t{1}, std::size_t{3}}) {
        running_server server(with_threads(threads),
                              [](sse::server& s) { s.route("GET", "/metrics", sse::metrics(s)); });
        event_client first(server.port(), "/subscribe/t");
        auto second = std::make_unique<event_client>(server.port(), "/subscribe/t");
        for (int i = 0; i < 10; ++i) server.publish("/t", {.data = "12345"});
        for (int i = 0; i < 10; ++i) {
            first.next();
            second->next();
        }
        second->close();
        CHECK(eventually([&] { return server.counters().streams == 1; }));
        for (const bool open : {false, true}) {
            CAPTURE(open);
            auto m = scrape(server.port(), open);
            CHECK(m.at("sse_workers") == threads);
            CHECK(m.at("sse_streams") == 1);
            CHECK(m.at("sse_connections") >= 2); // this one too
            CHECK(m.at("sse_messages_published_total") == 10);
            CHECK(m.at("sse_messages_delivered_total") == 20);
            CHECK(m.at("sse_sent_bytes_total") > 200);
            CHECK(m.at("sse_streams_ended_total{reason=\"client_left\"}") == 1);
            CHECK(m.at("sse_streams_ended_total{reason=\"revoked\"}") == 0);
            CHECK(m.at("sse_history_messages") == 10);
            CHECK(m.at("sse_history_bytes") >= 50);
            CHECK(m.at("sse_ring_capacity_messages") > 0);
            CHECK(m.at("sse_ring_used_messages") <= 10); // a worker without clients may sleep
            CHECK(m.at(open ? "sse_stream_lag_messages_bucket{le=\"0.0\"}"
                            : "sse_stream_lag_messages_bucket{le=\"0\"}") == 1);
            CHECK(m.at("sse_stream_lag_messages_bucket{le=\"+Inf\"}") == 1);
            CHECK(m.at(open ? "sse_stream_lag_messages_gcount" : "sse_stream_lag_messages_count") ==
                  1);
            CHECK(m.count("sse_bus_up") == 0);
            CHECK(m.at("sse_build_info{version=\"" SSE_VERSION_STRING "\"}") == 1);
        }
    }
}

TEST_CASE("metrics: a client that reads nothing is in the buckets of those that are behind") {
    sse::options o = with_threads(1);
    o.limits.unsent_bytes = 0;
    running_server server(o, [](sse::server& s) { s.route("GET", "/metrics", sse::metrics(s)); });
    event_client steady(server.port(), "/subscribe/t");
    event_client slow(server.port(), "/subscribe/t", {}, {.receive_buffer = 4096});
    const auto behind = [&] {
        auto m = scrape(server.port());
        return m.at("sse_stream_lag_messages_bucket{le=\"+Inf\"}") -
               m.at("sse_stream_lag_messages_bucket{le=\"10\"}");
    };
    int sent = 0;
    for (; sent < 1'000 && behind() == 0; ++sent) {
        const std::string data = support::incompressible(64 * 1024);
        server.publish("/t", {.data = data});
        steady.next();
    }
    CHECK(behind() == 1);
    CHECK(scrape(server.port()).at("sse_stream_lag_messages_sum") > 10);
}

TEST_CASE("metrics: every reason for which a stream ends is counted once") {
    sse::options o = with_threads(1);
    running_server server(o);
    const auto ended = [&](sse::end_reason why) {
        return server.counters().ended[static_cast<std::size_t>(why)];
    };
    event_client gone(server.port(), "/subscribe/t");
    gone.close();
    CHECK(eventually([&] { return ended(sse::end_reason::client_left) == 1; }));
    event_client revoked(server.port(), "/subscribe/t");
    server.revoke_if([](const sse::stream_info&) { return true; });
    revoked.wait_for_close();
    CHECK(eventually([&] { return ended(sse::end_reason::revoked) == 1; }));
    event_client drained(server.port(), "/subscribe/t");
    server.drain({.window = 10ms});
    drained.wait_for_close();
    CHECK(ended(sse::end_reason::drained) == 1);
    std::uint64_t all = 0;
    for (const std::uint64_t each : server.counters().ended) all += each;
    CHECK(all == 3);
    CHECK(server.counters().streams == 0);
}

} // namespace metrics_test
