// beast.cpp - the usual design, with Boost.Beast: for each client a coroutine and a queue of shared
// messages, each of which it writes with co_await async_write. Obeys as bench::conductor does.
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
    explicit server(bench::conductor& conductor)
        : conductor_(conductor), acceptor_(io_, {asio::ip::address_v4::loopback(), 0}),
          commands_(io_, dup(conductor.commands())), tick_(io_, dup(conductor.tick())) {}

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
        asio::co_spawn(io_, watch(one), asio::detached);
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
            conductor_.publish_due([this](std::string_view line, auto) {
                const auto next =
                    std::make_shared<const std::string>("data: " + std::string(line) + "\n\n");
                for (const auto& one : sessions_) {
                    one->queue.push_back(next);
                    one->wake.cancel();
                }
                return true;
            });
        while (conductor_.hurries());
    }

    bench::conductor& conductor_;
    asio::io_context io_{1};
    tcp::acceptor acceptor_;
    asio::posix::stream_descriptor commands_;
    asio::posix::stream_descriptor tick_;
    std::unordered_set<std::shared_ptr<session>> sessions_;
};

} // namespace

int main(int count, char** values) {
    std::uint64_t rate = 0, burst = 0, payload = 100;
    bench::flags flags("beast", "a Boost.Beast server, one coroutine and queue for each client.");
    flags.number<std::uint64_t>("--rate", rate, 0, 1'000'000, "messages a second");
    flags.number<std::uint64_t>("--burst", burst, 0, 1'000'000, "messages at once");
    flags.number<std::uint64_t>("--payload", payload, 0, 1 << 20, "bytes after the stamp");
    flags.parse(count, values);
    bench::raise_file_limit();
    bench::conductor conductor(rate, burst, payload);
    server(conductor).run();
}
