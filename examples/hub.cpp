// hub.cpp - a ready-made hub with a live page. Run: hub --demo, then open the URL it prints.
//
//   GET  /                     the live page (hub_page.hpp)
//   GET  /subscribe/<topic>    the events of a topic and of everything below it
//   POST /publish/<topic>      publishes, for whoever knows the token
//   GET  /health               built into the server
//
// Every message has an id, and who comes back with it misses nothing. The hub publishes its own
// counters on /hub/stats, as ephemeral event `stats`, once a second.
// `hub --help` lists every flag (hub_options.hpp); publishing from a shell is described at its end.
#include "sse.hpp"

#include "hub_demo.hpp"
#include "hub_options.hpp"
#include "hub_page.hpp"
#include "json.hpp"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/signal_set.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using hub_options::settings;
using hub_options::usage_error;
using std::chrono::milliseconds;

// >>publish //////////////////////////////////////////////////////////////////////////////////////
// POST /publish/<topic>: who may, what is in the body, what is answered.

struct publication {
    std::string event = {}, data = {};
    std::optional<std::string> id = {};
    std::string key = {};
    bool ephemeral = false;
};

struct answer {
    int status;
    std::string type, body;
};

answer refusal(int status, const std::string& reason) {
    return {status, "text/plain; charset=utf-8", reason + "\n"};
}

struct bad_body : std::runtime_error {
    explicit bad_body(const std::string& reason, int answered = 400)
        : std::runtime_error(reason), status(answered) {}
    int status;
};

bool same_ignoring_case(std::string_view a, std::string_view b) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [&](char x, char y) { return lower(x) == lower(y); });
}

// Takes as long for a token that is wrong in its first character as for one wrong in its last, so
// that the answer's time does not tell how much of a guess was right.
bool same_secret(std::string_view given, std::string_view secret) {
    std::size_t different = given.size() ^ secret.size();
    for (std::size_t i = 0; i < given.size(); ++i)
        different |= static_cast<unsigned char>(given[i] ^ secret[i % secret.size()]);
    return different == 0;
}

bool holds_token(const sse::request& request, std::string_view token) {
    constexpr std::string_view scheme = "Bearer ";
    const std::string_view given = request.header("Authorization").value_or("");
    return same_ignoring_case(given.substr(0, scheme.size()), scheme) &&
           same_secret(given.substr(scheme.size()), token);
}

// A form's "a+b%21" is "a b!".
std::string form_text(std::string_view raw) {
    std::string text;
    for (std::size_t i = 0; i < raw.size(); ++i) {
        if (raw[i] != '%') {
            text.push_back(raw[i] == '+' ? ' ' : raw[i]);
            continue;
        }
        const std::string_view hex = raw.substr(i + 1, 2);
        unsigned code = 0;
        const auto [end, wrong] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
        if (wrong != std::errc() || hex.size() < 2 || end != hex.data() + 2)
            throw bad_body("the form has '%" + std::string(hex) +
                           "': after a percent sign stand "
                           "two hexadecimal digits; curl --data-urlencode writes them");
        text.push_back(static_cast<char>(code));
        i += 2;
    }
    return text;
}

std::vector<std::pair<std::string, std::string>> form_fields(std::string_view body) {
    std::vector<std::pair<std::string, std::string>> fields;
    while (!body.empty()) {
        const std::string_view field = body.substr(0, body.find('&'));
        body.remove_prefix(std::min(body.size(), field.size() + 1));
        const std::size_t equals = std::min(field.find('='), field.size());
        const std::string_view value = field.substr(std::min(equals + 1, field.size()));
        if (!field.empty())
            fields.emplace_back(form_text(field.substr(0, equals)), form_text(value));
    }
    return fields;
}

std::vector<std::pair<std::string, std::string>> json_fields(std::string_view body) {
    std::vector<std::pair<std::string, std::string>> fields;
    for (json::member& each : json::read_object(body)) {
        const bool is_text = each.name == "event" || each.name == "id" || each.name == "key";
        if (!each.is_string && is_text)
            throw bad_body("\"" + each.name + "\" is " + std::string(each.value.substr(0, 40)) +
                           "; give a string in double quotes");
        fields.emplace_back(std::move(each.name),
                            each.is_string ? std::move(each.text) : std::string(each.value));
    }
    return fields;
}

publication from_fields(std::vector<std::pair<std::string, std::string>> fields) {
    publication result;
    std::optional<std::string> event, data, key, ephemeral;
    const std::pair<std::string_view, std::optional<std::string>*> known[] = {
        {"event", &event},
        {"data", &data},
        {"id", &result.id},
        {"key", &key},
        {"ephemeral", &ephemeral}};
    for (auto& [name, value] : fields) {
        std::optional<std::string>* field = nullptr;
        for (const auto& [known_name, place] : known)
            if (name == known_name) field = place;
        if (!field)
            throw bad_body("there is no field \"" + name +
                           "\"; the fields are event, data, id, key and ephemeral");
        if (*field) throw bad_body("the field \"" + name + "\" came twice; give it once");
        *field = std::move(value);
    }
    if (!data)
        throw bad_body("there is no data, and a browser drops an event without; give data, as in "
                       "event=chat&data=hello");
    result.event = event.value_or("");
    result.data = *std::move(data);
    result.key = key.value_or("");
    result.ephemeral = ephemeral == "true";
    if (ephemeral && !result.ephemeral && ephemeral != "false")
        throw bad_body("ephemeral is '" + *ephemeral + "'; give true or false");
    return result;
}

publication read_publication(std::string_view content_type, std::string body) {
    std::string_view type = content_type.substr(0, content_type.find(';'));
    while (type.ends_with(' ') || type.ends_with('\t')) type.remove_suffix(1);
    if (same_ignoring_case(type, "application/x-www-form-urlencoded"))
        return from_fields(form_fields(body));
    if (same_ignoring_case(type, "application/json")) return from_fields(json_fields(body));
    if (same_ignoring_case(type, "text/plain")) return {.data = std::move(body)};
    throw bad_body("Content-Type '" + std::string(type) +
                       "' is not known here; send "
                       "application/x-www-form-urlencoded, application/json or text/plain",
                   415);
}

// The publication, or the refusal that explains why it is none.
std::pair<publication, std::optional<answer>> try_read(std::string_view content_type,
                                                       std::string body) {
    try {
        publication read = read_publication(content_type, std::move(body));
        return {std::move(read), std::nullopt};
    } catch (const bad_body& wrong) {
        return {{}, refusal(wrong.status, wrong.what())};
    } catch (const json::error& wrong) { return {{}, refusal(400, wrong.what())}; }
}

int status_for(const std::error_code& failure) {
    if (failure == sse::errc::body_timeout) return 408;
    if (failure == sse::errc::body_too_large) return 413;
    if (failure == sse::errc::no_room || failure == sse::errc::stopped) return 503;
    return 400; // an event name, an id or a topic that the wire cannot carry
}

// What the server calls the message, for a client that wants to go on after it.
std::string id_of(const sse::server& server, std::uint64_t sequence) {
    const std::string newest = server.last_id();
    return newest.substr(0, newest.rfind('-') + 1) + std::to_string(sequence);
}

answer accepted(const sse::server& server, const sse::message& message, std::uint64_t sequence) {
    std::string json = "{\"seq\":" + std::to_string(sequence);
    if (!message.id && !message.ephemeral) json += ",\"id\":\"" + id_of(server, sequence) + '"';
    return {202, "application/json", json + "}\n"};
}

asio::awaitable<answer> publish(sse::server& server, const std::string& token,
                                sse::stream& client) {
    if (token.empty())
        co_return refusal(404, "publishing is off; start the hub with --publish-token TOKEN");
    if (!holds_token(client.request(), token))
        co_return refusal(401, "the token is missing or wrong; send the header 'Authorization: "
                               "Bearer TOKEN' with the token that the hub was started with");
    const std::string topic = "/" + std::string(client.request().rest);
    const std::string type(client.request().header("Content-Type").value_or(""));
    try {
        std::string body = co_await client.body();
        const auto [read, refused] = try_read(type, std::move(body));
        if (refused) co_return *refused;
        sse::message message{.event = read.event, .data = read.data};
        if (read.id) message.id = *read.id;
        message.key = read.key;
        message.ephemeral = read.ephemeral;
        const std::uint64_t sequence = co_await server.async_publish(topic, message);
        co_return accepted(server, message, sequence);
    } catch (const std::system_error& wrong) {
        co_return refusal(status_for(wrong.code()), wrong.what());
    }
}

asio::awaitable<void> answer_publish(sse::server& server, const std::string& token,
                                     sse::stream& client) {
    answer reply = co_await publish(server, token, client);
    if (reply.status == 401) client.add_header("WWW-Authenticate", "Bearer");
    co_await client.respond(reply.status, reply.type, reply.body);
}

// >>page /////////////////////////////////////////////////////////////////////////////////////////

std::string for_attribute(std::string_view text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
        case '&': out += "&amp;"; break;
        case '"': out += "&quot;"; break;
        case '<': out += "&lt;"; break;
        default: out.push_back(c);
        }
    }
    return out;
}

std::string filled(std::string page, std::string_view place, std::string_view text) {
    return page.replace(page.find(place), place.size(), for_attribute(text));
}

std::string page_for(const settings& chosen) {
    std::string page = filled(std::string(hub_page), "{{prefix}}", chosen.options.prefix);
    page = filled(std::move(page), "{{gap}}", chosen.options.gap_event);
    return filled(std::move(page), "{{publish}}", chosen.token.empty() ? "off" : "on");
}

asio::awaitable<void> send_page(const std::string& page, sse::stream& client) {
    std::string body = page;
    co_await client.respond(200, "text/html; charset=utf-8", std::move(body));
}

// >>run //////////////////////////////////////////////////////////////////////////////////////////
// The main thread publishes: the counters, and the demo's feeds. It sleeps in between.

milliseconds publish_stats(sse::server& server) {
    using counters = sse::counters;
    constexpr std::pair<const char*, std::uint64_t counters::*> shown[] = {
        {"connections", &counters::connections},
        {"streams", &counters::streams},
        {"published", &counters::published},
        {"delivered", &counters::delivered},
        {"bytes", &counters::bytes},
        {"lagged", &counters::lagged},
        {"gaps", &counters::gaps},
        {"conflated", &counters::conflated},
    };
    const counters now = server.counters();
    std::string json;
    for (const auto& [name, member] : shown)
        json += (json.empty() ? "{\"" : ",\"") + std::string(name) +
                "\":" + std::to_string(now.*member);
    json += '}';
    // Without room this reading is left out: the next one follows in a second. A reading of the
    // past is of no use to a client that comes back.
    const sse::message stats{.event = "stats", .data = json, .ephemeral = true};
    static_cast<void>(server.try_publish("/hub/stats", stats));
    return milliseconds(1000);
}

asio::awaitable<void> run_feed(sse::server& server, demo::feed feed) {
    asio::steady_timer timer(co_await asio::this_coro::executor);
    for (;;) {
        timer.expires_after(feed(server));
        co_await timer.async_wait(asio::use_awaitable);
    }
}

void rethrow(std::exception_ptr failure) {
    if (failure) std::rethrow_exception(failure);
}

// One line for each thing that happens; one write, since several threads log.
void log(const sse::log_entry& entry) {
    std::ostringstream line;
    line << "hub: " << entry.what;
    if (!entry.method.empty()) line << ' ' << entry.method;
    if (!entry.path.empty()) line << ' ' << entry.path;
    if (entry.status != 0) line << ' ' << entry.status;
    if (entry.duration.count() > 0) line << ' ' << hub_options::in_seconds(entry.duration) << " s";
    if (!entry.client.is_unspecified()) line << " from " << entry.client;
    if (!entry.detail.empty()) line << ": " << entry.detail;
    std::cerr << line.str() + "\n";
}

// The server names an option as a program does, sse::options::max_head_bytes; here it is a flag.
std::string as_flag(std::string complaint) {
    constexpr std::string_view option = "sse::options::";
    if (!complaint.starts_with(option)) return complaint;
    complaint.replace(0, option.size(), "--");
    std::replace(complaint.begin(), std::find(complaint.begin(), complaint.end(), ' '), '_', '-');
    for (const auto& [member, named] :
         {std::pair("--cors.", "--allow-"), std::pair("--trusted-proxies", "--trusted-proxy"),
          std::pair("--histories", "--history-for")}) {
        if (complaint.starts_with(member)) complaint.replace(0, std::string(member).size(), named);
    }
    return complaint;
}

// An EventSource cannot send a header, so the token may stand in the query.
asio::awaitable<sse::access> let_in(const sse::request& request, const std::string& token) {
    const std::string asked = request.query_value("token").value_or("");
    if (holds_token(request, token) || same_secret(asked, token)) co_return sse::access{};
    sse::access no = sse::access::refuse(401, "the token is missing or wrong\n");
    no.headers.emplace_back("WWW-Authenticate", "Bearer");
    co_return no;
}

std::unique_ptr<sse::server> make_server(settings& chosen) {
    const bool any = std::count(chosen.allowed.begin(), chosen.allowed.end(), "*") > 0;
    try {
        if (!any && !chosen.allowed.empty())
            chosen.options.cors.origin = sse::origins(chosen.allowed);
        const auto from = chosen.log_from.value_or(sse::log_level::error);
        chosen.options.log = [from](const sse::log_entry& entry) {
            if (entry.level >= from) log(entry);
        };
        if (!chosen.subscribe_token.empty()) {
            chosen.options.authorize = [token = chosen.subscribe_token](const sse::request& r) {
                return let_in(r, token);
            };
        }
        return std::make_unique<sse::server>(chosen.options);
    } catch (const std::invalid_argument& refused) { throw usage_error(as_flag(refused.what())); }
}

std::string listen_address(const settings& chosen) {
    const bool bare_ipv6 =
        chosen.address.find(':') != std::string::npos && !chosen.address.starts_with('[');
    return (bare_ipv6 ? "[" + chosen.address + "]" : chosen.address) + ":" +
           std::to_string(chosen.port);
}

std::string url(const sse::server& server) {
    const asio::ip::tcp::endpoint at = server.endpoint();
    std::ostringstream out;
    out << "http://";
    if (at.address().is_unspecified())
        out << "localhost:" << at.port();
    else
        out << at;
    return out.str() + "/";
}

void listen(sse::server& server, const settings& chosen) {
    const std::string address = listen_address(chosen);
    try {
        server.start(address);
    } catch (const std::exception& failure) {
        throw std::runtime_error("cannot listen on " + address + ": " + failure.what() +
                                 "; choose another --address or --port");
    }
}

void run(sse::server& server, const settings& chosen) {
    server.route("GET", "/", [page = page_for(chosen)](sse::stream& client) {
        return send_page(page, client);
    });
    server.route("POST", "/publish/*",
                 [&](sse::stream& client) { return answer_publish(server, chosen.token, client); });

    asio::io_context io(1);
    asio::signal_set signals(io, SIGINT, SIGTERM);
    signals.async_wait([&](std::error_code, int) { io.stop(); });
    listen(server, chosen);
    std::cout << "hub: open " << url(server) << std::endl;

    asio::co_spawn(io, run_feed(server, publish_stats), rethrow);
    if (chosen.demo)
        for (demo::feed& feed : demo::feeds())
            asio::co_spawn(io, run_feed(server, std::move(feed)), rethrow);
    io.run();

    signals.clear(); // a second Ctrl-C ends the program at once
    const std::uint64_t clients = server.counters().streams;
    const milliseconds window = chosen.options.drain_window;
    const sse::drained gone = window.count() > 0 ? server.stop({.window = window}) : sse::drained{};
    server.stop();
    server.join();
    std::cout << "hub: let go of " << clients << (clients == 1 ? " client" : " clients");
    if (gone.cut > 0) std::cout << ", " << gone.cut << " of them cut off";
    std::cout << std::endl;
}

int main(int argc, char** argv) {
    try {
        settings chosen = hub_options::read_flags(std::span(argv + 1, argv + argc));
        if (chosen.help) {
            hub_options::print_help(std::cout);
            return 0;
        }
        const std::unique_ptr<sse::server> server = make_server(chosen);
        run(*server, chosen);
        return 0;
    } catch (const usage_error& wrong) {
        std::cerr << "hub: " << wrong.what() << "\nhub --help lists the flags.\n";
        return 2;
    } catch (const std::exception& failure) {
        std::cerr << "hub: " << failure.what() << '\n';
        return 1;
    }
}
