// tokens.cpp - a model's response token by token, as OpenAI's API sends it. Run it, then: curl -N
// http://localhost:8080/v1/chat/completions -d '{"model":"parrot","messages":[],"stream":true}'
//
// Or point any OpenAI client at it: new OpenAI({baseURL: "http://localhost:8080/v1", apiKey: "-"}).
// The responses are chunked, so that a connection serves one call after another. When the client
// disconnects, the handler is cancelled: no tokens are generated for a client that is gone.
#include "sse.hpp"

#include "json.hpp"
#include "program.hpp"

#include <ctime>
#include <iostream>

using namespace std::chrono_literals;

constexpr std::string_view known_text =
    "Server-Sent Events are a plain response that does not end: the server writes a line, the "
    "client "
    "reads a line, and nobody has to ask twice. A model speaks that way too, one token after the "
    "other, long before it knows how its sentence is going to end.";

// Stands in for a model, and knows one text. A real one works on threads of its own.
class parrot {
public:
    explicit parrot(std::size_t most) : most_(most) {}

    std::string_view next() { // empty at the end
        const auto token = said_ < most_ ? left_.substr(0, left_.find(' ', 1)) : "";
        left_.remove_prefix(token.size());
        said_ += !token.empty();
        return token;
    }
    std::size_t said() const { return said_; }
    std::string_view finish_reason() const { return left_.empty() ? "stop" : "length"; }
    std::string usage() const {
        const std::string n = std::to_string(said_);
        return R"({"prompt_tokens":0,"completion_tokens":)" + n + R"(,"total_tokens":)" + n + "}";
    }

private:
    std::string_view left_ = known_text;
    std::size_t said_ = 0, most_;
};

struct wish {
    std::string refusal; // as JSON; empty if accepted
    int status = 400;
    bool stream = false, usage = false;
    std::size_t most = 1000;
};

std::string error(std::string_view message, std::string_view code = "") {
    return R"({"error":{"message":)" + json::quoted(message) +
           R"(,"type":"invalid_request_error","param":null,"code":)" +
           (code.empty() ? "null" : json::quoted(code)) + "}}\n";
}

wish read_wish(std::string_view body) {
    wish w;
    try {
        const auto asked = json::read_object(body);
        w.stream = json::raw(asked, "stream") == "true";
        w.usage = json::raw(json::object(asked, "stream_options"), "include_usage") == "true";
        for (const char* const name : {"max_tokens", "max_completion_tokens"})
            if (const auto n = json::raw(asked, name); !n.empty() && n != "null")
                std::from_chars(n.data(), n.data() + n.size(), w.most);
        if (!json::raw(asked, "messages").starts_with('['))
            w.refusal = error("you must provide messages, an array");
        if (json::text(asked, "model") != "parrot") {
            w.status = 404;
            w.refusal = error("the only model here is parrot", "model_not_found");
        }
    } catch (const json::error& wrong) { w.refusal = error(wrong.what()); }
    return w;
}

// Prints how it ended, even if the coroutine is cancelled: then its co_await throws.
struct report {
    explicit report(const parrot& p) : model(p) {}
    ~report() {
        const std::string how = done ? "finished after " : "stopped after ";
        std::cout << how + std::to_string(model.said()) + " tokens\n" << std::flush;
    }
    const parrot& model;
    bool done = false;
};

std::string chunk(const std::string& head, std::string_view delta, std::string_view finish) {
    return head + R"("object":"chat.completion.chunk","choices":[{"index":0,"delta":{)" +
           std::string(delta) + R"(},"finish_reason":)" + std::string(finish) + "}]}";
}

asio::awaitable<void> complete(sse::stream& client) {
    const wish asked = read_wish(co_await client.body());
    if (!asked.refusal.empty())
        co_return co_await client.respond(asked.status, "application/json", asked.refusal);

    parrot model(asked.most);
    report end(model);
    const std::string head = R"({"id":"chatcmpl-)" + std::to_string(client.id()) +
                             R"(","created":)" + std::to_string(std::time(nullptr)) +
                             R"(,"model":"parrot",)";
    std::string whole;
    if (asked.stream)
        co_await client.send({.data = chunk(head, R"("role":"assistant","content":"")", "null")});
    for (std::string_view token; !(token = model.next()).empty();) {
        co_await client.sleep_for(20ms); // a model would think here
        whole += token;
        if (asked.stream) {
            const std::string delta = R"("content":)" + json::quoted(token);
            co_await client.send({.data = chunk(head, delta, "null")});
        }
    }
    const std::string finish = json::quoted(model.finish_reason());
    end.done = true;
    if (!asked.stream) {
        const std::string answer =
            head + R"("object":"chat.completion","choices":[{"index":0,"message":)" +
            R"({"role":"assistant","refusal":null,"content":)" + json::quoted(whole) +
            R"(},"logprobs":null,"finish_reason":)" + finish + R"(}],"usage":)" + model.usage() +
            "}\n";
        co_return co_await client.respond(200, "application/json", answer);
    }
    co_await client.send({.data = chunk(head, "", finish)});
    if (asked.usage) {
        const std::string usage = head + R"("object":"chat.completion.chunk","choices":[],)" +
                                  R"("usage":)" + model.usage() + "}";
        co_await client.send({.data = usage});
    }
    co_await client.send({.data = "[DONE]"});
}

asio::awaitable<void> models(sse::stream& client) {
    co_await client.respond(200, "application/json",
                            R"({"object":"list","data":[{"id":"parrot","object":"model",)"
                            R"("created":0,"owned_by":"examples"}]})"
                            "\n");
}

asio::awaitable<void> unknown(sse::stream& client) {
    const std::string text = error("there is no " + std::string(client.request().path));
    co_await client.respond(404, "application/json", text);
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "tokens [ADDRESS]", [&] {
        sse::server server({.handle_signals = true});
        server.route("POST", "/v1/chat/completions", complete);
        server.route("GET", "/v1/models", models);
        server.fallback(unknown);
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/v1/" << std::endl;
        server.join();
    });
}
