// proxy.cpp - a gateway to a model's API, which keeps its key. Run it with PROXY_KEY set, then:
// curl -N http://localhost:8080/v1/chat/completions -d
// '{"model":"...","messages":[...],"stream":true}'
//
// Tokens go to the client as they come. When the client disconnects, the handler is cancelled, and
// with it the request to the model: nothing is generated for a client that is gone. The upstream is
// another one with: proxy 127.0.0.1:8080 https://api.example/v1/chat/completions
#include "sse.hpp"

#include "program.hpp"

#include <cstdlib>
#include <iostream>

struct model {
    std::string url = "https://api.openai.com/v1/chat/completions";
    std::string key;
};

// Nothing of the client's own headers: its key, if it has one, is meant for this gateway.
sse::client_options question(std::string body, const std::string& key) {
    sse::client_options how;
    how.method = "POST";
    how.headers = {{"Content-Type", "application/json"}};
    if (!key.empty()) how.headers.emplace_back("Authorization", "Bearer " + key);
    how.body = std::move(body);
    return how;
}

// The model's own response, if it made one that is not a stream: a refusal, or a whole response.
asio::awaitable<void> pass_on(sse::stream& client, const sse::client& upstream,
                              std::error_code failed) {
    const std::string type(upstream.header("Content-Type").value_or("text/plain"));
    const std::string& text = upstream.error_body();
    const bool is_whole = text.size() < 64 * 1024; // of more, the client has only a part
    if (failed == sse::errc::bad_content_type && is_whole) {
        co_await client.respond(200, type, text);
    } else if (failed == sse::errc::bad_status && is_whole && upstream.status() >= 400) {
        co_await client.respond(upstream.status(), type, text);
    } else {
        std::cerr << "proxy: " << failed.message() << std::endl;
        co_await client.respond(502, "text/plain", "The model cannot be reached\n");
    }
}

asio::awaitable<void> complete(sse::stream& client, const model& asked) {
    const std::string body = co_await client.body();
    sse::client upstream(client.get_executor(), asked.url, question(body, asked.key));
    bool begun = false;
    std::error_code failed;
    try {
        for (;;) {
            const std::optional<sse::event> event = co_await upstream.next();
            if (!event) break;
            const bool unnamed = event->type == "message";
            const std::string_view type = unnamed ? std::string_view() : event->type;
            co_await client.send({.event = type, .data = event->data});
            begun = true;
        }
    } catch (const std::system_error& e) {
        if (begun || sse::client_gone(e.code())) throw; // the response is cut: that is its end
        failed = e.code();
    }
    if (failed) co_await pass_on(client, upstream, failed);
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "proxy [ADDRESS] [URL]", [&] {
        model asked;
        if (argc > 2) asked.url = argv[2];
        if (const char* const key = std::getenv("PROXY_KEY")) asked.key = key;
        asio::io_context unused;
        const sse::client check(unused, asked.url); // throws for what is no URL of a model
        sse::server server({.handle_signals = true});
        server.route("POST", "/v1/chat/completions",
                     [asked](sse::stream& client) { return complete(client, asked); });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/v1/" << std::endl;
        server.join();
    });
}
