// client.cpp - reads an event stream as curl reads a file, and reconnects when it breaks. Run:
// client http://localhost:8080/subscribe/ [-X METHOD] [-H 'Name: value'] [-d BODY] [--once]
//
// Prints each event in the format of the stream. --once: does not reconnect. For https, PEM files:
// --cacert whom to trust, --crlfile whom no longer, --cert and --key who it is, named as by curl.
// Exit status: 0 the stream ended for good, 1 the network failed, 2 wrong arguments, 3 the response
// is not an event stream.
#include "sse.hpp"

#include "program.hpp"

#include <iostream>

struct wish {
    std::string url;
    sse::client_options options;
};

wish read_arguments(const std::vector<std::string>& words) {
    wish w;
    const auto value = [&](std::size_t& at) {
        if (++at == words.size()) throw std::invalid_argument(words[at - 1] + " needs a value");
        return words[at];
    };
    for (std::size_t at = 0; at < words.size(); ++at) {
        if (words[at] == "-X") {
            w.options.method = value(at);
        } else if (words[at] == "-d") {
            w.options.body = value(at);
            if (w.options.method == "GET") w.options.method = "POST";
        } else if (words[at] == "-H") {
            const std::string line = value(at);
            const auto colon = line.find(':'), start = line.find_first_not_of(' ', colon + 1);
            if (start == line.npos) throw std::invalid_argument("-H wants 'Name: value'");
            w.options.headers.emplace_back(line.substr(0, colon), line.substr(start));
        } else if (words[at] == "--once") {
            w.options.reconnect = false;
#if defined(SSE_ENABLE_TLS)
        } else if (words[at] == "--cacert") {
            w.options.tls.ca = value(at);
        } else if (words[at] == "--crlfile") {
            w.options.tls.crl = value(at);
        } else if (words[at] == "--cert") {
            w.options.tls.certificate = value(at);
        } else if (words[at] == "--key") {
            w.options.tls.key = value(at);
#endif
        } else if (words[at].starts_with("-") || !w.url.empty()) {
            throw std::invalid_argument("unexpected " + words[at]);
        } else {
            w.url = words[at];
        }
    }
    return w;
}

void print(const sse::event& e) {
    if (e.type != "message") std::cout << "event: " << e.type << '\n';
    if (!e.last_event_id.empty()) std::cout << "id: " << e.last_event_id << '\n';
    std::string_view left = e.data;
    for (std::size_t end; (end = left.find('\n')) != left.npos; left.remove_prefix(end + 1))
        std::cout << "data: " << left.substr(0, end) << '\n';
    std::cout << "data: " << left << '\n' << std::endl;
}

asio::awaitable<void> read(sse::client& client) {
    for (;;) {
        const std::optional<sse::event> e = co_await client.next();
        if (!e) co_return;
        print(*e);
        if (!std::cout) throw std::system_error(errno, std::generic_category(), "standard output");
    }
}

constexpr std::string_view usage =
    "usage: client URL [-X METHOD] [-H 'Name: value'] [-d BODY] [--once]\n"
#if defined(SSE_ENABLE_TLS)
    "              [--cacert FILE] [--crlfile FILE] [--cert FILE --key FILE]\n"
#endif
    ;

int main(int argc, char** argv) {
    program::keep_standard_descriptors(); // SIGPIPE ends it, as any program in a pipe
    try {
        if (argc == 2 && (argv[1] == std::string("--help") || argv[1] == std::string("-h"))) {
            std::cout << usage;
            return 0;
        }
        const wish asked = read_arguments({argv + 1, argv + argc});
        asio::io_context io;
        sse::client client(io.get_executor(), asked.url, asked.options);
        int status = 0;
        asio::co_spawn(io, read(client), [&](std::exception_ptr failed) {
            try {
                if (failed) std::rethrow_exception(failed);
            } catch (const std::system_error& error) {
                std::cerr << "client: " << error.what() << '\n' << client.error_body();
                const bool is_answer = error.code() == sse::errc::bad_status ||
                                       error.code() == sse::errc::bad_content_type;
                status = is_answer ? 3 : 1;
            }
        });
        io.run();
        return status;
    } catch (const std::invalid_argument& wrong) {
        std::cerr << "client: " << wrong.what() << '\n' << usage;
        return 2;
    }
}
