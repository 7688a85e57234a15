// test_your_handler.cpp - handlers in a unit test: no socket, no port, no sleep. Run it; or
// compile it: g++ -std=c++20 -DSSE_TESTING test_your_handler.cpp -pthread
#include "sse.hpp"

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

using namespace std::chrono_literals;

// ---- what is tested, and would stand in a header ----

// GET /count sends ten numbers, ten a second.
asio::awaitable<void> count(sse::stream& client) {
    for (int n = 1; n <= 10; ++n) {
        co_await client.send({.event = "count", .data = std::to_string(n)});
        co_await client.sleep_for(100ms);
    }
    co_await client.send({.event = "done"});
}

// A room whose visitors hear what is said, and who says it. It outlives its server, whose handlers
// use it to their end.
class room {
public:
    void open_on(sse::server& server) {
        server_ = &server;
        server.route("GET", "/room", [this](sse::stream& client) { return enter(client); });
        server.route("POST", "/room", [this](sse::stream& client) { return say(client); });
    }
    int visitors = 0;

private:
    struct leave_at_end {
        room& of;
        ~leave_at_end() { --of.visitors; }
    };
    asio::awaitable<void> enter(sse::stream& client) {
        client.subscribe("/said");
        ++visitors;
        const leave_at_end here{*this};
        co_await client.closed();
    }
    asio::awaitable<void> say(sse::stream& client) {
        const std::string name(client.request().header("X-Name").value_or(""));
        if (name.empty()) throw std::invalid_argument("nobody said it");
        const std::string text = name + ": " + co_await client.body();
        co_await server_->async_publish("/said", {.data = text});
        co_await client.respond(202, "text/plain", "said\n");
    }
    sse::server* server_ = nullptr;
};

// ---- its tests ----

TEST_CASE("count sends ten numbers in a second, then says that it is done") {
    sse::testing::simulation world;
    world.server().route("GET", "/count", count);
    auto client = world.get("/count");
    CHECK(client.next().value().data == "1");
    CHECK(!client.next()); // the next one needs time
    world.advance(1s);
    const auto events = client.events();
    REQUIRE(events.size() == 10);
    CHECK(events[8].data == "10");
    CHECK(events[9].type == "done");
    CHECK(client.state() == sse::testing::outcome::complete);
}

TEST_CASE("what one says all in the room hear, and those who come back") {
    room chat; // before the world, so that it is there to its end
    sse::testing::simulation world;
    chat.open_on(world.server());
    auto ann = world.get("/room");
    auto bob = world.get("/room");
    world.settle();
    CHECK(chat.visitors == 2);

    const auto say = [&](const std::string& text) {
        return world
            .open(
                {.method = "POST", .target = "/room", .headers = {{"X-Name", "ann"}}, .body = text})
            .status();
    };
    CHECK(say("hello") == 202);
    CHECK(ann.next().value().data == "ann: hello");
    CHECK(bob.next().value().data == "ann: hello");

    bob.leave();
    CHECK(say("where is bob?") == 202);
    CHECK(chat.visitors == 1);
    bob.reconnect();
    CHECK(bob.next().value().data == "ann: where is bob?");
    CHECK(chat.visitors == 2);
}

TEST_CASE("who has no name cannot speak") {
    room chat; // before the world, so that it is there to its end
    sse::testing::simulation world;
    chat.open_on(world.server());
    auto client = world.open({.method = "POST", .target = "/room", .body = "boo"});
    CHECK(client.status() == 500);
    CHECK_THROWS_AS(world.rethrow_failure(), std::invalid_argument);
}

TEST_CASE("a slow visitor loses what the history no longer has, and is told") {
    room chat;
    sse::testing::simulation world({.history = {.messages = 8}});
    chat.open_on(world.server());
    auto bob = world.get("/room");
    world.settle();
    bob.stop_reading();
    for (int n = 1; n <= 100; ++n) {
        world.server().publish("/said", {.data = std::to_string(n)});
        world.settle();
    }
    world.advance(1s);
    CHECK(bob.state() == sse::testing::outcome::closed);
    bob.reconnect();
    CHECK(bob.next().value().type == "gap");
    CHECK(bob.events().back().data == "100");
}
