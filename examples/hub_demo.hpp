// hub_demo.hpp - what `hub --demo` publishes: invented prices, a chat, a build, sensors.
//
//   /demo/prices/<symbol>   price    in waves, one to a dozen a second
//   /demo/chat/lobby        chat     now and then
//   /demo/build/<number>    build    a burst of progress, then a rest
//   /demo/sensor/<room>     sensor   one a second
#pragma once

#include "sse.hpp"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace demo {

using std::chrono::milliseconds;

// Publishes once and returns after how long to call it again.
using feed = std::function<milliseconds(sse::server&)>;

inline double between(double low, double high) {
    static std::mt19937 dice{std::random_device{}()}; // only the main thread runs feeds
    return std::uniform_real_distribution<double>(low, high)(dice);
}

inline std::size_t below(std::size_t limit) {
    return static_cast<std::size_t>(between(0, static_cast<double>(limit))) % limit;
}

// A random pause of this many seconds on average, as between independent visitors.
inline milliseconds now_and_then(double seconds) {
    return milliseconds(1 + static_cast<long>(-1000 * seconds * std::log(between(1e-3, 1))));
}

// Builds one JSON object. The feeds below use only plain ASCII without quotes, so nothing here
// needs escaping; a program that publishes other people's text has to escape it.
class object {
public:
    object& text(std::string_view name, std::string_view value) {
        return put(name, '"' + std::string(value) + '"');
    }
    object& number(std::string_view name, double value, int digits = 0) {
        std::array<char, 32> buffer{};
        std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
        return put(name, buffer.data());
    }
    std::string str() const { return "{" + members_ + "}"; }

private:
    object& put(std::string_view name, std::string_view value) {
        if (!members_.empty()) members_ += ',';
        members_.append(1, '"').append(name).append("\":").append(value);
        return *this;
    }

    std::string members_;
};

// The demo drops an event rather than wait for room: the result is ignored on purpose.
inline void publish(sse::server& server, const std::string& topic, const sse::message& message) {
    static_cast<void>(server.try_publish(topic, message));
}

class prices {
public:
    milliseconds operator()(sse::server& server) {
        quote& chosen = quotes_[below(quotes_.size())];
        const double change = between(-.004, .004) * chosen.price;
        chosen.price += change;
        const std::string json = object()
                                     .text("symbol", chosen.symbol)
                                     .number("price", chosen.price, 2)
                                     .number("change", change, 2)
                                     .str();
        const std::string topic = "/demo/prices/" + std::string(chosen.symbol);
        publish(server, topic, {.event = "price", .data = json});
        angle_ += .06;
        return now_and_then(.32 + .24 * std::sin(angle_));
    }

private:
    struct quote {
        std::string_view symbol;
        double price;
    };
    std::array<quote, 4> quotes_{
        {{"ACME", 128.4}, {"GLOBEX", 51.2}, {"INITECH", 7.95}, {"UMBRELLA", 310.6}}};
    double angle_ = 0;
};

class chat {
public:
    milliseconds operator()(sse::server& server) {
        const line& said = lines_[next_++ % lines_.size()];
        const std::string json = object().text("from", said.from).text("text", said.text).str();
        publish(server, "/demo/chat/lobby", {.event = "chat", .data = json});
        return milliseconds(900) + now_and_then(1.8);
    }

private:
    struct line {
        std::string_view from, text;
    };
    std::array<line, 12> lines_{{
        {"Ada", "Good morning. Who moved the price feed?"},
        {"Grace", "It moved itself, it is a random walk."},
        {"Linus", "Build is running, nobody touch main."},
        {"Ada", "I touched main."},
        {"Linus", "..."},
        {"Grace", "Greenhouse is warm again, somebody open a window."},
        {"Edsger", "A window is a side effect."},
        {"Ada", "Pull the network cable and watch the strip chart."},
        {"Grace", "It came back by itself. I like this."},
        {"Linus", "Same stream in my shell: curl -N and done."},
        {"Edsger", "Simplicity is prerequisite for reliability."},
        {"Ada", "Tests are green. Tea?"},
    }};
    std::size_t next_ = 0;
};

class build {
public:
    milliseconds operator()(sse::server& server) {
        percent_ = std::min(percent_ + between(2, 9), 100.);
        const bool done = percent_ >= 100;
        const std::string_view step = done            ? "passed"
                                      : percent_ < 12 ? "configure"
                                      : percent_ < 70 ? "compile"
                                                      : "test";
        const std::string json =
            object().number("build", number_).text("step", step).number("percent", percent_).str();
        const std::string topic = "/demo/build/" + std::to_string(number_);
        publish(server, topic, {.event = "build", .data = json});
        if (!done) return now_and_then(.22);
        percent_ = 0;
        ++number_;
        return milliseconds(2500) + now_and_then(2);
    }

private:
    int number_ = 1042;
    double percent_ = 0;
};

class sensor {
public:
    sensor(std::string_view room, double celsius) : room_(room), celsius_(celsius) {}

    milliseconds operator()(sse::server& server) {
        celsius_ += between(-.15, .15);
        const std::string json = object()
                                     .text("room", room_)
                                     .number("celsius", celsius_, 1)
                                     .number("humidity", between(41, 47))
                                     .str();
        const std::string topic = "/demo/sensor/" + std::string(room_);
        publish(server, topic, {.event = "sensor", .data = json});
        return milliseconds(1000);
    }

private:
    std::string_view room_;
    double celsius_;
};

inline std::vector<feed> feeds() {
    return {prices(), chat(), build(), sensor("greenhouse", 27.5), sensor("cellar", 11.2)};
}

} // namespace demo
