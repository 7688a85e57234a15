// beast.cpp - the usual design, with Boost.Beast: for each client a coroutine and a queue of shared
// messages, each of which it writes with co_await async_write. With --topics a message is for the
// client of its topic alone; with --each each coroutine makes its own, and sleeps between them.
// Obeys as bench::conductor does.
#include "../bench.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include <deque>
#include <memory>
#include <unordered_set>

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;

using message = std::shared_ptr<const std::string>;

struct session {
    explicit session(tcp::socket s) : socket(std::move(s)), wake(socket.get_executor()) {
        wake.expires_at(asio::steady_timer::time_point::max());
    }
    tcp::socket socket;
    asio::steady_timer wake;
    std::deque<message> queue;
    bool closed = false;
};

class server {
public:
    server(bench::conductor& conductor, std::uint64_t payload, std::uint64_t each,
           std::uint64_t topics)
        : conductor_(conductor), payload_(payload), each_(each), followers_(topics),
          acceptor_(io_, {asio::ip::address_v4::loopback(), 0}),
          commands_(io_, dup(conductor.commands())), tick_(io_, dup(conductor.tick())) {
        if (each == 0) return;
        conductor_.published = [this](bool go_on) {
            sends_ = go_on;
            return sent_;
        };
    }

    void run() {
        conductor_.announce(acceptor_.local_endpoint().port());
        asio::co_spawn(io_, accept(), asio::detached);
        asio::co_spawn(io_, obey(), asio::detached);
        asio::co_spawn(io_, publish_due(), asio::detached);
        io_.run();
    }

private:
    asio::awaitable<void> accept() {
        for (;;) {
            auto one =
                std::make_shared<session>(co_await acceptor_.async_accept(asio::use_awaitable));
            one->socket.set_option(tcp::no_delay(true));
            asio::co_spawn(io_, serve(one), asio::detached);
        }
    }

    asio::awaitable<void> serve(std::shared_ptr<session> one) {
        error_code failed;
        const auto token = [&] { return asio::redirect_error(asio::use_awaitable, failed); };
        beast::flat_buffer buffer;
        http::request<http::empty_body> request;
        co_await http::async_read(one->socket, buffer, request, token());
        http::response<http::empty_body> response(http::status::ok, request.version());
        response.set(http::field::content_type, "text/event-stream");
        response.set(http::field::cache_control, "no-store");
        response.keep_alive(false);
        http::response_serializer<http::empty_body> head(response);
        if (!failed) co_await http::async_write_header(one->socket, head, token());
        sessions_.insert(one);
        if (!followers_.empty()) followers_[topic_of(std::string(request.target()))] = one;
        asio::co_spawn(io_, watch(one), asio::detached);
        if (each_ > 0) co_await send_and_sleep(one, failed);
        while (!failed && !one->closed) {
            if (one->queue.empty()) {
                error_code woken; // by cancel()
                co_await one->wake.async_wait(asio::redirect_error(asio::use_awaitable, woken));
                continue;
            }
            const message next = std::move(one->queue.front());
            one->queue.pop_front();
            co_await asio::async_write(one->socket, asio::buffer(*next), token());
        }
        sessions_.erase(one);
        one->socket.close(failed);
    }

    // What a handler of an LLM's tokens does.
    asio::awaitable<void> send_and_sleep(std::shared_ptr<session> one, error_code& failed) {
        using clock = std::chrono::steady_clock;
        const std::chrono::nanoseconds period =
            std::chrono::nanoseconds(std::chrono::seconds(1)) / each_;
        bench::stamped_line line(payload_);
        std::string event;
        std::uint64_t seq = 0;
        auto next = clock::now() + sessions_.size() * std::chrono::nanoseconds(7'919'000) % period;
        for (;; next += period) {
            error_code woken;
            one->wake.expires_at(next);
            co_await one->wake.async_wait(asio::redirect_error(asio::use_awaitable, woken));
            if (failed || one->closed) co_return;
            if (!sends_) continue;
            const auto stamp = static_cast<std::uint64_t>(next.time_since_epoch().count());
            event.assign("data: ").append(line.make(++seq, stamp)).append("\n\n");
            co_await asio::async_write(one->socket, asio::buffer(event),
                                       asio::redirect_error(asio::use_awaitable, failed));
            ++sent_;
        }
    }

    /// The number at the end of the target.
    std::size_t topic_of(const std::string& target) const {
        const char* const number = target.c_str() + target.rfind('/') + 1;
        return static_cast<std::size_t>(std::atoi(number)) % followers_.size();
    }

    static void push(session& to, const message& next) {
        to.queue.push_back(next);
        to.wake.cancel();
    }

    // Until the client leaves.
    static asio::awaitable<void> watch(std::shared_ptr<session> one) {
        std::array<char, 64> ignored;
        error_code failed;
        while (!failed)
            co_await one->socket.async_read_some(asio::buffer(ignored),
                                                 asio::redirect_error(asio::use_awaitable, failed));
        one->closed = true;
        one->wake.cancel();
    }

    asio::awaitable<void> obey() {
        while (!conductor_.ended()) {
            co_await commands_.async_wait(asio::posix::descriptor_base::wait_read,
                                          asio::use_awaitable);
            conductor_.obey();
            publish(); // a burst begins
        }
        io_.stop();
    }

    asio::awaitable<void> publish_due() {
        for (;;) {
            co_await tick_.async_wait(asio::posix::descriptor_base::wait_read, asio::use_awaitable);
            publish();
        }
    }

    void publish() {
        do
            conductor_.publish_due([this](std::string_view line, std::uint64_t seq) {
                const auto next =
                    std::make_shared<const std::string>("data: " + std::string(line) + "\n\n");
                if (followers_.empty()) {
                    for (const auto& one : sessions_) push(*one, next);
                } else if (const auto one = followers_[seq % followers_.size()].lock()) {
                    push(*one, next);
                }
                return true;
            });
        while (conductor_.hurries());
    }

    bench::conductor& conductor_;
    std::uint64_t payload_;
    std::uint64_t each_; // messages a second of each coroutine's own; 0: none
    bool sends_ = false;
    std::uint64_t sent_ = 0;
    std::vector<std::weak_ptr<session>> followers_; // by topic
    asio::io_context io_{1};
    tcp::acceptor acceptor_;
    asio::posix::stream_descriptor commands_;
    asio::posix::stream_descriptor tick_;
    std::unordered_set<std::shared_ptr<session>> sessions_;
};

} // namespace

int main(int count, char** values) {
    std::uint64_t rate = 0, burst = 0, payload = 100, each = 0, topics = 0;
    bench::flags flags("beast", "a Boost.Beast server, one coroutine and queue for each client.");
    flags.number<std::uint64_t>("--rate", rate, 0, 1'000'000, "messages a second");
    flags.number<std::uint64_t>("--burst", burst, 0, 1'000'000, "messages at once");
    flags.number<std::uint64_t>("--payload", payload, 0, 1 << 20, "bytes after the stamp");
    flags.number<std::uint64_t>("--each", each, 0, 1'000'000,
                                "messages a second to each client by its own coroutine");
    flags.number<std::uint64_t>("--topics", topics, 0, 1'000'000,
                                "clients that get each message in turn; 0: all get each");
    flags.parse(count, values);
    bench::raise_file_limit();
    bench::conductor conductor(rate, burst, payload);
    server(conductor, payload, each, topics).run();
}
