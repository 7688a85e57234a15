// instructions.cpp - how many instructions the steps of a message take, counted by callgrind: the
// same on every run, so that a change that costs shows where time is too noisy. bench/run.sh
// --instructions runs it and compares with bench/instructions.txt. By hand:
//
//   valgrind --tool=callgrind --combine-dumps=yes build/bench/instructions
//
// Each step dumps its counts under `<name>/<operations>`. No sockets, a receiver takes all, but for
// the handler's step, whose client has room for all.
#include "sse.hpp"

#include <valgrind/callgrind.h>

namespace {

using sse::detail::feed;
using sse::detail::frame;
using sse::detail::frame_ref;
using sse::detail::make_frame;

constexpr std::size_t messages = 2'000;
constexpr std::size_t receivers = 1'000;
constexpr std::size_t together = 16; // messages that meet in a write

const std::string text(100, 'x');
const sse::message example{.data = text};

class receiver final : public sse::detail::receiver {
public:
    explicit receiver(feed& from) {
        from.subscribe(*this, "/bench", sse::start::now(), 0, sse::lag_policy::disconnect, {});
        from.flush(*this); // its first id
    }
    std::size_t taken = 0;

private:
    std::optional<std::size_t> write_some(std::span<const asio::const_buffer> bytes) override {
        const std::size_t size = asio::buffer_size(bytes);
        taken += size;
        return size;
    }
    void await_writable() override {}
    void yield() override {}
    void end(sse::end_reason) override {}
    void fail(std::exception_ptr) override {}
};

/// What `run` costs, over so many operations.
template <class Run>
void step(const char* name, std::size_t operations, Run run) {
    const std::string mark = std::string(name) + "/" + std::to_string(operations);
    CALLGRIND_ZERO_STATS;
    run();
    CALLGRIND_DUMP_STATS_AT(mark.c_str());
}

void encode() {
    step("encode", messages, [] {
        for (std::size_t n = 0; n < messages; ++n)
            make_frame(frame::kind::topic, "/bench", example);
    });
}

/// A whole call of the program; the workers do not run, and the ring holds it all.
void publish() {
    sse::options options;
    options.threads = 1;
    sse::server server(options);
    step("publish", messages, [&] {
        for (std::size_t n = 0; n < messages; ++n) {
            if (server.try_publish("/bench", example)) throw std::runtime_error("not published");
        }
    });
}

feed::settings feed_settings() {
    feed::settings made;
    made.histories.push_back({"", messages, 1 << 20, std::chrono::milliseconds(0)});
    made.epoch = "epoch000";
    made.gap_event = "gap";
    made.hold_publishers = [](bool) {};
    made.begin_catch_up = [] {};
    made.write_block = [](auto to, std::string_view bytes, std::span<std::size_t> taken) {
        for (std::size_t n = 0; n < to.size(); ++n) {
            static_cast<receiver*>(to[n])->taken += bytes.size();
            taken[n] = bytes.size();
        }
    };
    return made;
}

/// From the ring into the log, and from there to clients that keep up.
void drain_and_deliver() {
    sse::detail::broadcast_ring<frame*> ring(16'384, 1);
    feed feed(feed_settings());
    std::vector<std::unique_ptr<receiver>> clients;
    for (std::size_t n = 0; n < receivers; ++n) clients.push_back(std::make_unique<receiver>(feed));

    const auto fill = [&](std::size_t count) {
        for (std::size_t n = 0; n < count; ++n) {
            frame_ref made = make_frame(frame::kind::topic, "/bench", example);
            made->stamp("epoch000", ring.published() + 1);
            ring.try_publish(made.detach());
        }
    };
    const auto drain = [&] {
        feed.pull([&] { return ring.try_read(0).value_or(nullptr); }, ~std::size_t{0},
                  ~std::size_t{0});
    };
    const auto deliver = [&] {
        std::size_t budget = ~std::size_t{0};
        while (feed.plan())
            while (feed.work(budget)) {}
    };

    fill(messages);
    step("drain", messages, drain);
    deliver();
    fill(1);
    drain();
    step("deliver", receivers, deliver);
    fill(together);
    drain();
    step("deliver 16", receivers * together, deliver);

    for (const auto& client : clients) {
        if (client->taken != clients.front()->taken || client->taken < messages * text.size())
            throw std::runtime_error("not delivered");
    }
    for (const auto& client : clients) feed.remove(*client);
}

/// A handler that sends to its client, which takes it at once. The kernel's part is not counted.
void send_by_handler() {
    constexpr std::size_t count = 60; // the socket has room for
    const std::string mark = "send/" + std::to_string(count);
    asio::io_context io;
    sse::server server(io);
    bool sent = false;
    server.route("GET", "/", [&](sse::stream& client) -> asio::awaitable<void> {
        co_await client.send(example); // with the head
        CALLGRIND_ZERO_STATS;
        for (std::size_t n = 0; n < count; ++n) co_await client.send(example);
        CALLGRIND_DUMP_STATS_AT(mark.c_str());
        sent = true;
    });
    server.start("127.0.0.1:0");
    asio::ip::tcp::socket peer(io);
    peer.connect({asio::ip::address_v4::loopback(), server.port()});
    asio::write(peer, asio::buffer(std::string_view("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")));
    while (!sent) io.run_one();
}

} // namespace

int main() {
    encode();
    publish();
    drain_and_deliver();
    send_by_handler();
}
