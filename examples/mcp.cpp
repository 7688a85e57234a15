// mcp.cpp - a Model Context Protocol server, streamable HTTP, with one tool: a countdown that
// reports its progress. Run it, then: npx @modelcontextprotocol/inspector,
// http://localhost:8080/mcp
//
// The response to a request is an event stream: notifications while it is worked on, and its result
// at the end. GET opens the session's own stream, which resumes by Last-Event-ID as every topic
// does. Pages from other machines are refused by their Origin.
#include "sse.hpp"

#include "json.hpp"
#include "program.hpp"

#include <iostream>
#include <mutex>
#include <random>
#include <set>

using namespace std::chrono_literals;

constexpr std::string_view tools =
    R"({"tools":[{"name":"count_down","description":"Counts down to zero","inputSchema":)"
    R"({"type":"object","properties":{"from":{"type":"integer","minimum":1,"maximum":100}},)"
    R"("required":["from"]}}]})";

// The sessions that were begun, by names that nobody can guess.
class session_list {
public:
    std::string add() {
        std::random_device dice;
        std::string name;
        for (int i = 0; i < 4; ++i) name += std::to_string(dice()) + (i < 3 ? "-" : "");
        const std::lock_guard lock(mutex_);
        return *names_.insert(name).first;
    }
    bool knows(const std::string& name) {
        const std::lock_guard lock(mutex_);
        return names_.contains(name);
    }
    void remove(const std::string& name) {
        const std::lock_guard lock(mutex_);
        names_.erase(name);
    }

private:
    std::mutex mutex_;
    std::set<std::string> names_;
};

session_list sessions;

std::string session_of(const sse::stream& client) {
    return std::string(client.request().header("Mcp-Session-Id").value_or(""));
}

// The status that refuses a request with this session; 0 if the session exists.
int refusal(const std::string& session) {
    return sessions.knows(session) ? 0 : session.empty() ? 400 : 404;
}

std::string notification(std::string_view method, const std::string& params) {
    return R"({"jsonrpc":"2.0","method":)" + json::quoted(method) + R"(,"params":)" + params + "}";
}

std::string result(std::string_view id, std::string_view value) {
    return R"({"jsonrpc":"2.0","id":)" + std::string(id) + R"(,"result":)" + std::string(value) +
           "}";
}

std::string failure(std::string_view id, int code, std::string_view message) {
    return R"({"jsonrpc":"2.0","id":)" + std::string(id.empty() ? "null" : id) +
           R"(,"error":{"code":)" + std::to_string(code) + R"(,"message":)" +
           json::quoted(message) + "}}";
}

std::string welcome(const std::vector<json::member>& params) {
    std::string version = json::text(params, "protocolVersion"); // ours if theirs is unknown
    if (version != "2025-03-26" && version != "2025-06-18") version = "2025-11-25";
    return R"({"protocolVersion":)" + json::quoted(version) +
           R"(,"capabilities":{"tools":{},"logging":{}},)"
           R"("serverInfo":{"name":"countdown","version":"0.1.0"}})";
}

asio::awaitable<void> count_down(sse::stream& client, std::string id,
                                 std::vector<json::member> params) {
    const auto from = json::raw(json::object(params, "arguments"), "from");
    const std::string token(json::raw(json::object(params, "_meta"), "progressToken"));
    int total = 0;
    const auto [end, wrong] = std::from_chars(from.data(), from.data() + from.size(), total);
    if (wrong != std::errc() || end != from.data() + from.size() || total < 1 || total > 100) {
        const std::string text = failure(id, -32602, "from is a whole number from 1 to 100");
        co_return co_await client.send({.data = text});
    }
    for (int n = 1; n <= total; ++n) {
        co_await client.sleep_for(50ms);
        if (token.empty()) continue; // progress was not asked for
        const std::string progress =
            notification("notifications/progress",
                         R"({"progressToken":)" + token + R"(,"progress":)" + std::to_string(n) +
                             R"(,"total":)" + std::to_string(total) + "}");
        co_await client.send({.data = progress});
    }
    const std::string text = "Lift-off after " + std::to_string(total);
    const std::string content =
        R"({"content":[{"type":"text","text":)" + json::quoted(text) + "}]}";
    co_await client.send({.data = result(id, content)});
}

// Takes one JSON-RPC message: a notification or a response gets 202, a request gets a stream.
asio::awaitable<void> take(sse::server& server, sse::stream& client) {
    const std::string body = co_await client.body();
    std::vector<json::member> call;
    std::string wrong;
    try {
        call = json::read_object(body);
    } catch (const json::error& e) { wrong = failure("", -32700, e.what()); }
    if (!wrong.empty()) co_return co_await client.respond(400, "application/json", wrong);

    const std::string method = json::text(call, "method"), id(json::raw(call, "id"));
    const auto params = json::object(call, "params");
    if (method == "initialize") {
        client.add_header("Mcp-Session-Id", sessions.add());
        co_return co_await client.send({.data = result(id, welcome(params))});
    }
    const std::string session = session_of(client);
    if (const int status = refusal(session)) {
        const std::string text = failure(id, -32600, "no such session; initialize first");
        co_return co_await client.respond(status, "application/json", text);
    }
    if (id.empty() || method.empty()) co_return co_await client.respond(202, "text/plain", "");

    if (method == "ping" || method == "logging/setLevel") {
        co_await client.send({.data = result(id, "{}")});
    } else if (method == "tools/list") {
        co_await client.send({.data = result(id, tools)});
    } else if (method == "tools/call" && json::text(params, "name") == "count_down") {
        co_await count_down(client, id, params);
        const std::string log =
            notification("notifications/message", R"({"level":"info","data":"a countdown ended"})");
        co_await server.async_publish("/mcp/" + session, {.data = log}); // on the session's stream
    } else if (method == "tools/call") {
        co_await client.send({.data = failure(id, -32602, "the only tool is count_down")});
    } else {
        co_await client.send({.data = failure(id, -32601, "no method " + method)});
    }
}

asio::awaitable<void> follow(sse::stream& client) {
    const std::string session = session_of(client);
    if (const int status = refusal(session))
        co_return co_await client.respond(status, "text/plain", "no such session\n");
    client.subscribe("/mcp/" + session);
}

asio::awaitable<void> leave(sse::server& server, sse::stream& client) {
    const std::string session = session_of(client), topic = "/mcp/" + session;
    if (const int status = refusal(session))
        co_return co_await client.respond(status, "text/plain", "no such session\n");
    sessions.remove(session);
    server.revoke_if([topic](const sse::stream_info& s) { return s.topics == std::vector{topic}; });
    co_await client.respond(204, "text/plain", "");
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "mcp [ADDRESS]", [&] {
        sse::options options;
        options.handle_signals = true;
        options.cors.origin = sse::localhost_origins();
        options.cors.headers = {"Content-Type", "Last-Event-ID", "Mcp-Session-Id",
                                "Mcp-Protocol-Version"};
        options.cors.exposed = {"Mcp-Session-Id"};
        sse::server server(options);
        server.route("POST", "/mcp", [&](sse::stream& client) { return take(server, client); });
        server.route("GET", "/mcp", follow);
        server.route("DELETE", "/mcp", [&](sse::stream& client) { return leave(server, client); });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/mcp" << std::endl;
        server.join();
    });
}
