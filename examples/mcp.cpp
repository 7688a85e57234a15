// mcp.cpp - a Model Context Protocol server, streamable HTTP, with one tool: a countdown that
// reports its progress. Run it, then: npx @modelcontextprotocol/inspector,
// http://localhost:8080/mcp
//
// The response to a request is an event stream: notifications while it is worked on, and its result
// at the end. Pages from other machines are refused by their Origin.
//
// Two revisions are spoken, each as the request says. By 2026-07-28 there is no session: a request
// tells all by itself, and who closes its stream cancels it. By 2025-11-25 and older ones a session
// begins with initialize. A call goes on without its client, who resumes its stream by GET with the
// last event ID: the call runs once. GET without one opens the session's own stream.
#include "sse.hpp"

#include "json.hpp"
#include "program.hpp"

#include <iostream>
#include <mutex>
#include <random>
#include <set>

using namespace std::chrono_literals;

constexpr std::string_view current = "2026-07-28"; // the revision without sessions

constexpr std::string_view tools =
    R"("tools":[{"name":"count_down","description":"Counts down to zero","inputSchema":)"
    R"({"type":"object","properties":{"from":{"type":"integer","minimum":1,"maximum":100}},)"
    R"("required":["from"]}}])";

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

// What a request to call a tool is about.
struct call {
    std::string id;
    std::string progress_token; // empty: it does not ask for progress
    int from = 0;
    bool tells_type = false; // of its result
    std::string wrong;       // why it is refused; otherwise empty
};

call read_call(std::string id, const std::vector<json::member>& params, bool tells_type) {
    call made{std::move(id),
              std::string(json::raw(json::object(params, "_meta"), "progressToken")),
              0,
              tells_type,
              {}};
    const auto from = json::raw(json::object(params, "arguments"), "from");
    const auto [end, bad] = std::from_chars(from.data(), from.data() + from.size(), made.from);
    if (json::text(params, "name") != "count_down") {
        made.wrong = "the only tool is count_down";
    } else if (bad != std::errc() || end != from.data() + from.size() || made.from < 1 ||
               made.from > 100) {
        made.wrong = "from is a whole number from 1 to 100";
    }
    return made;
}

std::string progress_of(const call& c, int n) {
    return notification("notifications/progress",
                        R"({"progressToken":)" + c.progress_token + R"(,"progress":)" +
                            std::to_string(n) + R"(,"total":)" + std::to_string(c.from) + "}");
}

std::string result_of(const call& c) {
    const std::string text = "Lift-off after " + std::to_string(c.from);
    return result(c.id, (c.tells_type ? R"({"resultType":"complete",)" : "{") +
                            (R"("content":[{"type":"text","text":)" + json::quoted(text) + "}]}"));
}

const std::string ended =
    notification("notifications/message", R"({"level":"info","data":"a countdown ended"})");

// ---- 2026-07-28: one request, one stream ----

// The text of a header that may be in Base64, as =?base64?...?=; nullopt if that is broken.
std::optional<std::string> decoded(std::string_view text) {
    constexpr std::string_view before = "=?base64?", after = "?=";
    constexpr std::string_view digits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (text.size() < before.size() + after.size() || !text.starts_with(before) ||
        !text.ends_with(after)) {
        return std::string(text);
    }
    text = text.substr(before.size(), text.size() - before.size() - after.size());
    if (text.size() % 4 != 0) return std::nullopt;
    for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
    std::string made;
    unsigned bits = 0;
    int count = 0; // of bits that are not in `made` yet
    for (const char c : text) {
        const auto digit = digits.find(c);
        if (digit == digits.npos) return std::nullopt;
        bits = (bits << 6 | static_cast<unsigned>(digit)) & 0xfff;
        count += 6;
        if (count < 8) continue;
        count -= 8;
        made += static_cast<char>(bits >> count & 0xff);
    }
    return made;
}

// Why the headers of a request contradict its body, which others may have judged it by.
std::string mismatch(const sse::request& r, const std::string& version, const std::string& method,
                     const std::vector<json::member>& params) {
    if (r.header("Mcp-Protocol-Version").value_or("") != version)
        return "MCP-Protocol-Version is not that of the body";
    if (r.header("Mcp-Method").value_or("") != method) return "Mcp-Method is not that of the body";
    if (method == "tools/call" &&
        decoded(r.header("Mcp-Name").value_or("")) != json::text(params, "name"))
        return "Mcp-Name is not that of the body";
    return "";
}

asio::awaitable<void> take_current(sse::stream& client, const std::vector<json::member>& message,
                                   const std::string& version) {
    const std::string method = json::text(message, "method"), id(json::raw(message, "id"));
    const auto params = json::object(message, "params");
    const auto meta = json::object(params, "_meta");
    const std::string wrong = mismatch(client.request(), version, method, params);
    if (!wrong.empty()) {
        const std::string text = failure(id, -32020, "Header mismatch: " + wrong);
        co_return co_await client.respond(400, "application/json", text);
    }
    if (version != current) {
        const std::string text =
            R"({"jsonrpc":"2.0","id":)" + id +
            R"(,"error":{"code":-32022,"message":"Unsupported protocol version","data":{)"
            R"("supported":["2026-07-28","2025-11-25","2025-06-18","2025-03-26"],"requested":)" +
            json::quoted(version) + "}}}";
        co_return co_await client.respond(400, "application/json", text);
    }
    if (!json::find(meta, "io.modelcontextprotocol/clientCapabilities")) {
        const std::string text = failure(id, -32602, "_meta lacks clientCapabilities");
        co_return co_await client.respond(400, "application/json", text);
    }
    const std::string start =
        R"({"resultType":"complete","ttlMs":3600000,"cacheScope":"public",)"
        R"("_meta":{"io.modelcontextprotocol/serverInfo":{"name":"countdown","version":"0.1.0"}},)";
    if (method == "server/discover") {
        const std::string text =
            result(id, start + R"("supportedVersions":["2026-07-28"],"capabilities":)"
                               R"({"tools":{},"logging":{}}})");
        co_await client.respond(200, "application/json", text);
    } else if (method == "tools/list") {
        const std::string text = result(id, start + std::string(tools) + "}");
        co_await client.respond(200, "application/json", text);
    } else if (method == "tools/call") {
        const call wanted = read_call(id, params, true);
        const std::string bad = failure(id, -32602, wanted.wrong);
        if (!wanted.wrong.empty()) co_return co_await client.send({.data = bad});
        for (int n = 1; n <= wanted.from; ++n) {
            co_await client.sleep_for(50ms);
            if (wanted.progress_token.empty()) continue;
            const std::string progress = progress_of(wanted, n);
            co_await client.send({.data = progress});
        }
        const std::string level = json::text(meta, "io.modelcontextprotocol/logLevel");
        if (level == "debug" || level == "info") co_await client.send({.data = ended});
        const std::string text = result_of(wanted);
        co_await client.send({.data = text});
    } else {
        const std::string text = failure(id, -32601, "no method " + method);
        co_await client.respond(404, "application/json", text);
    }
}

// ---- 2025-11-25 and older: sessions, and calls that can be resumed ----

// Goes on whether or not its client is there.
asio::awaitable<void> count_down(sse::server& server, sse::job job, call wanted,
                                 std::string session) {
    asio::steady_timer pause(co_await asio::this_coro::executor);
    for (int n = 1; n <= wanted.from; ++n) {
        pause.expires_after(50ms);
        co_await pause.async_wait(asio::use_awaitable);
        if (job.stop_requested()) { // cancelled: it gets no response
            job.finish({.comment = "cancelled"});
            co_return;
        }
        if (!wanted.progress_token.empty()) job.send({.data = progress_of(wanted, n)});
    }
    job.finish({.data = result_of(wanted)});
    co_await server.async_publish("/mcp/" + session, {.data = ended}); // on the session's stream
}

// A call and its stream, which is named after its session and its id.
asio::awaitable<void> begin_call(sse::server& server, sse::jobs& jobs, sse::stream& client,
                                 call wanted, std::string session) {
    const std::string name = session + "/" + wanted.id;
    const std::string again = failure(wanted.id, -32600, "this id was used before");
    const std::string bad = failure(wanted.id, -32602, wanted.wrong);
    if (!wanted.wrong.empty()) co_return co_await client.send({.data = bad});
    if (jobs.known(name)) co_return co_await client.respond(400, "application/json", again);
    sse::job job = jobs.start(name);
    // An id to resume after, before there is anything to tell. Older clients do not expect it.
    if (client.request().header("Mcp-Protocol-Version") == "2025-11-25") job.send({.data = ""});
    auto work = count_down(server, std::move(job), std::move(wanted), session);
    asio::co_spawn(client.get_executor(), std::move(work), [](std::exception_ptr) {}); // it stops
    co_await jobs.serve(client, name);
}

// Takes one JSON-RPC message: a notification or a response gets 202, a request gets a stream.
asio::awaitable<void> take(sse::server& server, sse::jobs& jobs, sse::stream& client) {
    const std::string body = co_await client.body();
    std::vector<json::member> message;
    std::string wrong;
    try {
        message = json::read_object(body);
    } catch (const json::error& e) { wrong = failure("", -32700, e.what()); }
    if (!wrong.empty()) co_return co_await client.respond(400, "application/json", wrong);

    const std::string method = json::text(message, "method"), id(json::raw(message, "id"));
    const auto params = json::object(message, "params");
    const auto meta = json::object(params, "_meta");
    const std::string version = json::text(meta, "io.modelcontextprotocol/protocolVersion");
    if (!version.empty() && !id.empty()) {
        co_return co_await take_current(client, message, version);
    }
    if (client.request().header("Mcp-Protocol-Version") == current && !id.empty()) {
        const std::string text = failure(id, -32020, "Header mismatch: the body has no version");
        co_return co_await client.respond(400, "application/json", text);
    }
    if (method == "initialize") {
        client.add_header("Mcp-Session-Id", sessions.add());
        co_return co_await client.send({.data = result(id, welcome(params))});
    }
    const std::string session = session_of(client);
    if (const int status = refusal(session)) {
        const std::string text = failure(id, -32600, "no such session; initialize first");
        co_return co_await client.respond(status, "application/json", text);
    }
    if (method == "notifications/cancelled") {
        jobs.stop(session + "/" + std::string(json::raw(params, "requestId")));
    }
    if (id.empty() || method.empty()) co_return co_await client.respond(202, "text/plain", "");

    if (method == "ping" || method == "logging/setLevel") {
        co_await client.send({.data = result(id, "{}")});
    } else if (method == "tools/list") {
        co_await client.send({.data = result(id, "{" + std::string(tools) + "}")});
    } else if (method == "tools/call") {
        co_await begin_call(server, jobs, client, read_call(id, params, false), session);
    } else {
        co_await client.send({.data = failure(id, -32601, "no method " + method)});
    }
}

// The stream whose last event the client names: that of a call, or of the session.
asio::awaitable<void> follow(sse::jobs& jobs, sse::stream& client) {
    const std::string session = session_of(client);
    if (const int status = refusal(session))
        co_return co_await client.respond(status, "text/plain", "no such session\n");
    const std::string name = jobs.name_of(client.request().header("Last-Event-ID").value_or(""));
    if (name.starts_with(session + "/")) co_return co_await jobs.serve(client, name);
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
        options.cors.headers = {"Content-Type",         "Last-Event-ID", "Mcp-Session-Id",
                                "Mcp-Protocol-Version", "Mcp-Method",    "Mcp-Name"};
        options.cors.exposed = {"Mcp-Session-Id"};
        sse::jobs jobs({.keep = 5min}); // how long the stream of a call can be resumed
        sse::server server(options);
        server.route("POST", "/mcp",
                     [&](sse::stream& client) { return take(server, jobs, client); });
        server.route("GET", "/mcp", [&](sse::stream& client) { return follow(jobs, client); });
        server.route("DELETE", "/mcp", [&](sse::stream& client) { return leave(server, client); });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/mcp" << std::endl;
        server.join();
    });
}
