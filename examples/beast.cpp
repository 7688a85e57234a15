// beast.cpp - a Boost.Beast server that leaves /events/... to sse.hpp, on the same port. Run it,
// then open http://localhost:8080/, or: curl -N http://localhost:8080/events/clock
//
// Beast hands over the descriptor of the socket and the bytes that it has read. The event streams
// have threads of their own, see beast_events.cpp.
#include "beast_events.hpp"
#include "program.hpp"

// Boost 1.74 does not detect the coroutines of clang with libstdc++, and does not include
// <utility>.
#if defined(__clang__) && !defined(BOOST_ASIO_HAS_CO_AWAIT)
#define BOOST_ASIO_HAS_CO_AWAIT 1
#define BOOST_ASIO_HAS_STD_COROUTINE 1
#endif
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <iostream>
#include <sstream>

namespace beast = boost::beast;
namespace http = beast::http;
namespace net = boost::asio;
using net::ip::tcp;

constexpr const char* page = R"page(<!doctype html>
<html lang="en"><meta charset="utf-8"><title>beast</title>
<h1>The page is Beast's, the time is sse.hpp's</h1><p id="time"></p>
<script>
new EventSource("/events/clock").onmessage = event => {
    document.getElementById("time").textContent = event.data;
};
</script>
)page";

void hand_over(beast::tcp_stream& stream, const http::request_header<>& head,
               const beast::flat_buffer& read_ahead, event_streams& events) {
    std::ostringstream received; // the head as bytes again, then what came after it
    received << head << beast::buffers_to_string(read_ahead.data());
    events.adopt(stream.release_socket().release(), received.str());
}

net::awaitable<void> serve(beast::tcp_stream stream, event_streams& events) {
    beast::flat_buffer buffer;
    for (bool more = true; more;) {
        http::request_parser<http::string_body> parser;
        stream.expires_after(std::chrono::seconds(30));
        co_await http::async_read_header(stream, buffer, parser, net::use_awaitable);
        const auto& request = parser.get();
        if (request.target().starts_with("/events/"))
            co_return hand_over(stream, request.base(), buffer, events);
        co_await http::async_read(stream, buffer, parser, net::use_awaitable);

        const auto status = request.target() == "/" ? http::status::ok : http::status::not_found;
        http::response<http::string_body> answer(status, request.version());
        answer.set(http::field::content_type, "text/html; charset=utf-8");
        answer.body() = status == http::status::ok ? page : "<!doctype html>Nothing is here";
        answer.keep_alive(request.keep_alive());
        answer.prepare_payload();
        more = answer.keep_alive();
        co_await http::async_write(stream, answer, net::use_awaitable);
    }
}

net::awaitable<void> listen(tcp::acceptor& acceptor, event_streams& events) {
    for (;;) {
        tcp::socket socket = co_await acceptor.async_accept(net::use_awaitable);
        beast::tcp_stream stream(std::move(socket));
        net::co_spawn(acceptor.get_executor(), serve(std::move(stream), events),
                      net::detached); // it throws when its client disconnects
    }
}

tcp::endpoint read_address(const std::string& text) {
    const std::size_t colon = std::min(text.rfind(':'), text.size());
    const char* const end = text.data() + text.size();
    std::uint16_t port = 0;
    boost::system::error_code wrong;
    const auto ip = net::ip::make_address(text.substr(0, colon), wrong);
    const auto digits = std::from_chars(std::min(text.data() + colon + 1, end), end, port);
    if (wrong || digits.ec != std::errc() || digits.ptr != end)
        throw std::invalid_argument("'" + text + "' is not an address; 127.0.0.1:8080 is one");
    return {ip, port};
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "beast [ADDRESS]", [&] {
        const tcp::endpoint where = read_address(argc > 1 ? argv[1] : "127.0.0.1:8080");
        event_streams events;
        net::io_context io(1);
        tcp::acceptor acceptor(io, where);
        std::cout << "http://localhost:" << acceptor.local_endpoint().port() << "/" << std::endl;
        net::co_spawn(io, listen(acceptor, events), [](std::exception_ptr failed) {
            if (failed) std::rethrow_exception(failed);
        });
        net::signal_set signals(io, SIGINT, SIGTERM);
        signals.async_wait([&](auto...) { io.stop(); });
        io.run();
    });
}
