// hub.cpp - a ready-made hub with a live page. Run: hub --demo, then open the URL it prints.
//
//   GET  /                     the live page (hub_page.hpp)
//   GET  /subscribe/<topic>    the events of a topic and of everything below it
//   POST /publish/<topic>      publishes, for whoever knows the token
//   GET  /health               built into the server
//
// Every message has an id, and who comes back with it misses nothing. The hub publishes its own
// counters on /hub/stats, as ephemeral event `stats`, once a second.
// `hub --help` lists every flag; publishing from a shell is described at its end.
#include "sse.hpp"

#include "hub_demo.hpp"
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
#include <functional>
#include <iomanip>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using std::chrono::milliseconds;

// >>flags ////////////////////////////////////////////////////////////////////////////////////////
// The command line: one table, from which reading and --help follow.

struct settings {
    sse::options options;
    std::string address = "127.0.0.1";
    std::uint16_t port = 8080;
    std::vector<std::string> allowed;       // origins; empty: any
    std::string token;                      // empty: publishing over HTTP is off
    std::optional<sse::log_level> log_from; // empty: quiet
    std::string subscribe_token;            // empty: anyone may subscribe
    bool demo = false;
    bool help = false;
};

// What is wrong with the command line, and what would be right.
struct usage_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct flag {
    std::string_view name;
    std::string_view argument; // empty: a switch, which takes no value
    std::string help;          // with the default
    std::function<void(settings&, std::string_view value)> set;
};

template <class Number>
Number whole_number(std::string_view text, Number highest = std::numeric_limits<Number>::max()) {
    Number number = 0;
    const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (wrong != std::errc() || end != text.data() + text.size() || number > highest)
        throw usage_error("give a whole number from 0 to " + std::to_string(highest));
    return number;
}

milliseconds seconds(std::string_view text) {
    const std::size_t dot = text.find('.');
    const std::string_view whole = text.substr(0, dot);
    std::string thousandths(dot == text.npos ? "" : text.substr(dot + 1));
    const bool fits = !whole.empty() && whole.size() <= 9 && thousandths.size() <= 3;
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (!fits || !std::all_of(whole.begin(), whole.end(), is_digit) ||
        !std::all_of(thousandths.begin(), thousandths.end(), is_digit))
        throw usage_error("give seconds, with at most three decimals, as in 15 or 0.5");
    thousandths.resize(3, '0');
    return milliseconds(std::stoll(std::string(whole) + thousandths));
}

std::string in_seconds(milliseconds time) {
    std::ostringstream out;
    out << static_cast<double>(time.count()) / 1000;
    return out.str();
}

void allow_origin(settings& chosen, std::string_view origin) {
    chosen.allowed.emplace_back(origin);
    try {
        sse::origins({chosen.allowed.back()});
    } catch (const std::invalid_argument&) {
        throw usage_error("give * or scheme://host or scheme://host:port, in lower case and "
                          "without a path, as in https://app.example");
    }
}

void check_token(std::string_view token) {
    // RFC 6750 lets a bearer token have these; with a space or a comma it could never arrive.
    const auto fits = [](char c) { return c > ' ' && c < '\x7f' && c != ',' && c != '"'; };
    if (token.empty() || !std::all_of(token.begin(), token.end(), fits))
        throw usage_error("give a secret of letters, digits and signs, without spaces, for "
                          "example the output of: openssl rand -hex 16");
}

// One of a few words.
template <class Value>
Value one_of(std::string_view text,
             std::initializer_list<std::pair<std::string_view, Value>> words) {
    std::string known;
    for (const auto& [word, value] : words) {
        if (word == text) return value;
        known.append(known.empty() ? "give " : " or ").append(word);
    }
    throw usage_error(known);
}

void history_for(settings& chosen, std::string_view value) {
    const std::size_t equals = value.rfind('='); // a topic may have one, a number has none
    if (equals == value.npos) throw usage_error("give a topic and a number, as in /prices=1000");
    sse::topic_history bound;
    bound.topic = value.substr(0, equals);
    bound.frames = whole_number<std::size_t>(value.substr(equals + 1));
    chosen.options.histories.push_back(std::move(bound));
}

flag list_flag(std::string_view name, std::string_view argument, std::string help,
               std::vector<std::string> sse::options::*member) {
    return {name, argument, std::move(help) + "; may be repeated",
            [member](settings& chosen, std::string_view value) {
                (chosen.options.*member).emplace_back(value);
            }};
}

// The first use replaces the default.
flag cors_flag(std::string_view name, std::string_view argument, std::string help,
               std::vector<std::string> sse::cors_options::*member) {
    return {name, argument, std::move(help) + "; may be repeated",
            [member](settings& chosen, std::string_view value) {
                std::vector<std::string>& list = chosen.options.cors.*member;
                if (list == sse::cors_options().*member) list.clear();
                list.emplace_back(value);
            }};
}

flag time_flag(std::string_view name, std::string help, milliseconds sse::options::*member) {
    return {name, "SECONDS", std::move(help) + " (" + in_seconds(sse::options().*member) + ")",
            [member](settings& chosen, std::string_view value) {
                chosen.options.*member = seconds(value);
            }};
}

flag size_flag(std::string_view name, std::string help, std::size_t sse::options::*member) {
    return {name, "NUMBER", std::move(help) + " (" + std::to_string(sse::options().*member) + ")",
            [member](settings& chosen, std::string_view value) {
                chosen.options.*member = whole_number<std::size_t>(value);
            }};
}

const std::vector<flag>& flags() {
    using options = sse::options;
    static const std::vector<flag> table{
        {"address", "ADDRESS", "address to listen on, IPv4 or IPv6 (127.0.0.1)",
         [](settings& chosen, std::string_view value) {
             if (value.empty()) throw usage_error("give an address; 0.0.0.0 or :: means all");
             chosen.address = value;
         }},
        {"port", "PORT", "port to listen on; 0: any free one (8080)",
         [](settings& chosen, std::string_view value) {
             chosen.port = whole_number<std::uint16_t>(value);
         }},
        size_flag("threads", "worker threads; 0: one for each core", &options::threads),
        {"prefix", "PATH", "path that clients subscribe under (" + options().prefix + ")",
         [](settings& chosen, std::string_view value) { chosen.options.prefix = value; }},
        time_flag("heartbeat", "silence before a comment is sent; 0: off", &options::heartbeat),
        {"heartbeat-ids", "on|off", "whether a heartbeat tells the newest id (on)",
         [](settings& chosen, std::string_view value) {
             chosen.options.heartbeat_ids = one_of<bool>(value, {{"on", true}, {"off", false}});
         }},
        {"allow-origin", "ORIGIN",
         "web origin whose pages may read; * for any; may be repeated (*)", allow_origin},
        {"allow-credentials", "", "lets cookies come along from the allowed origins (off)",
         [](settings& chosen, std::string_view) { chosen.options.cors.credentials = true; }},
        {"strange-origins", "WHAT",
         "refuse: 403 for other origins; omit: an answer without permission (refuse)",
         [](settings& chosen, std::string_view value) {
             chosen.options.cors.refuse = one_of<bool>(value, {{"refuse", true}, {"omit", false}});
         }},
        cors_flag("allow-method", "METHOD", "method that a preflight allows (what is served)",
                  &sse::cors_options::methods),
        cors_flag("allow-header", "NAME",
                  "request header that a preflight allows (Authorization, Cache-Control, "
                  "Content-Type, Last-Event-ID)",
                  &sse::cors_options::headers),
        cors_flag("expose-header", "NAME", "answer header that pages may read (none)",
                  &sse::cors_options::exposed),
        {"preflight-age", "SECONDS", "how long a preflight holds; 0: the browser decides (7200)",
         [](settings& chosen, std::string_view value) {
             chosen.options.cors.max_age = std::chrono::floor<std::chrono::seconds>(seconds(value));
         }},
        {"subscribe-token", "TOKEN",
         "lets in holders of TOKEN only, as 'Authorization: Bearer' or ?token= (anyone)",
         [](settings& chosen, std::string_view value) {
             check_token(value);
             chosen.subscribe_token = value;
         }},
        list_flag("host", "HOST",
                  "host that requests may name; * for any (on loopback its own names, else *)",
                  &options::hosts),
        list_flag("trusted-proxy", "ADDRESS",
                  "proxy, or block as 10.0.0.0/8, that is believed on its clients (none)",
                  &options::trusted_proxies),
        {"forwarded", "HEADER",
         "where it names them: x-forwarded-for, forwarded or x-real-ip (x-forwarded-for)",
         [](settings& chosen, std::string_view value) {
             using by = sse::forwarded_by;
             chosen.options.forwarded = one_of<by>(value, {{"x-forwarded-for", by::x_forwarded_for},
                                                           {"forwarded", by::forwarded},
                                                           {"x-real-ip", by::x_real_ip}});
         }},
        {"proxy-protocol", "", "connections begin with the PROXY protocol's head (off)",
         [](settings& chosen, std::string_view) { chosen.options.proxy_protocol = true; }},
        time_flag("header-timeout", "time for the whole request head", &options::header_timeout),
        time_flag("body-timeout", "time for a request's body", &options::body_timeout),
        time_flag("idle-timeout", "time between two requests of a connection",
                  &options::idle_timeout),
        time_flag("max-stream-age", "age at which a stream ends, so that it reconnects; 0: never",
                  &options::max_stream_age),
        time_flag("stall-timeout", "time a client may take no byte", &options::stall_timeout),
        time_flag("coalesce", "time a message may wait for more, to go out with them; 0: none",
                  &options::coalesce),
        time_flag("publish-timeout", "time a publisher may wait for room",
                  &options::publish_timeout),
        time_flag("shutdown-timeout", "time that a stop may take", &options::shutdown_timeout),
        time_flag("drain-window", "time over which a stop spreads its clients' return; 0: at once",
                  &options::drain_window),
        size_flag("max-connections", "connections at once; 0: no limit", &options::max_connections),
        size_flag("max-connections-per-ip", "connections of one address; 0: no limit",
                  &options::max_connections_per_ip),
        size_flag("connect-rate-per-ip", "new connections a second of one address; 0: no limit",
                  &options::connect_rate_per_ip),
        {"over-limit", "KIND", "hard: 503 or 429; soft: sends EventSources away for a while (hard)",
         [](settings& chosen, std::string_view value) {
             using kind = sse::refusal;
             chosen.options.over_limit =
                 one_of<kind>(value, {{"hard", kind::hard}, {"soft", kind::soft}});
         }},
        time_flag("retry-after", "when a refused client may come again", &options::retry_after),
        size_flag("max-header-lines", "lines of a request head", &options::max_header_lines),
        size_flag("max-head-bytes", "bytes of a request head", &options::max_head_bytes),
        size_flag("max-body-bytes", "bytes of a published body", &options::max_body_bytes),
        size_flag("ring-capacity", "messages between publishers and workers, a power of two",
                  &options::ring_capacity),
        size_flag("history", "messages kept, for clients that come back or lag behind",
                  &options::history),
        size_flag("history-bytes", "bytes of them that are kept", &options::history_bytes),
        time_flag("history-age", "how long a message is kept; 0: as long as there is room",
                  &options::history_age),
        {"history-for", "TOPIC=NUMBER",
         "messages kept of a topic and of what is below it; may be repeated", history_for},
        {"gap-event", "NAME",
         "event that says what cannot be sent any more (" + options().gap_event + ")",
         [](settings& chosen, std::string_view value) { chosen.options.gap_event = value; }},
        {"lag", "WHAT",
         "for a client behind the history: disconnect, skip, conflate or hold-back (disconnect)",
         [](settings& chosen, std::string_view value) {
             using policy = sse::lag_policy;
             chosen.options.lag = one_of<policy>(value, {{"disconnect", policy::disconnect},
                                                         {"skip", policy::skip},
                                                         {"conflate", policy::conflate},
                                                         {"hold-back", policy::hold_back}});
         }},
        size_flag("max-unsent-bytes", "bytes of the history that may wait for one client; 0: all",
                  &options::max_unsent_bytes),
        size_flag("max-topics", "topics that one stream may follow", &options::max_topics),
        {"health", "PATH", "path of the count of streams; '' for none (/health)",
         [](settings& chosen, std::string_view value) { chosen.options.health = value; }},
        {"log", "LEVEL",
         "prints what happens from this level on: debug, info, warning or error (off)",
         [](settings& chosen, std::string_view value) {
             using level = sse::log_level;
             chosen.log_from = one_of<level>(value, {{"info", level::info},
                                                     {"warning", level::warning},
                                                     {"debug", level::debug},
                                                     {"error", level::error}});
         }},
        {"publish-token", "TOKEN", "turns on POST /publish/<topic> for holders of TOKEN (off)",
         [](settings& chosen, std::string_view value) {
             check_token(value);
             chosen.token = value;
         }},
        {"demo", "", "publishes an invented feed: prices, chat, build, sensors (off)",
         [](settings& chosen, std::string_view) { chosen.demo = true; }},
        {"help", "", "prints this", [](settings& chosen, std::string_view) { chosen.help = true; }},
    };
    return table;
}

void print_help(std::ostream& out) {
    out << "hub: a Server-Sent Events hub with a live page at /\n\n"
           "Usage: hub [--flag value | --flag=value]...    (default in brackets)\n\n";
    for (const flag& each : flags()) {
        const std::string left = "--" + std::string(each.name) +
                                 (each.argument.empty() ? "" : " " + std::string(each.argument));
        out << "  " << std::left << std::setw(33) << left << each.help << '\n';
    }
    out << R"(
Subscribe:
  curl -N http://localhost:8080/subscribe/           everything
  curl -N http://localhost:8080/subscribe/demo/chat  one topic and what is below it
  curl -N 'http://localhost:8080/subscribe/?topic=demo/chat&topic=demo/build'    several
  Add ?last=20, ?from=oldest or ?since=UNIX-SECONDS for what is kept of the past. A client that
  comes back with the header Last-Event-ID, as a browser does, goes on after that message; what
  cannot be sent any more is announced by one event `gap`.

Publish, with hub --publish-token $TOKEN: POST /publish/<topic>, as a form, JSON or plain text.
  A="Authorization: Bearer $TOKEN"
  curl -H "$A" -d event=chat --data-urlencode 'data=2 + 2 = 4' http://localhost:8080/publish/room
  curl -H "$A" --json '{"event":"price","data":{"ACME":128.4}}' http://localhost:8080/publish/room
  curl -H "$A" -H 'Content-Type: text/plain' --data-binary @log http://localhost:8080/publish/room
  Fields: data (required), event, id (the hub gives one unless you do), key (with --lag conflate
  a slow client gets the newest message of each), ephemeral (true: no id, never sent again).
  JSON data that is no string is sent as its JSON text.
  Answers: 202 {"seq":N,"id":"..."}, without id if the message has none or brought its own; 400
  and 415 with the reason, 401 for a wrong token, 404 when it is off.

Ctrl-C or SIGTERM lets the clients go, within --drain-window if that is given, and ends with
status 0; a wrong flag ends with status 2.
)";
}

// The number of single-character edits between two words.
std::size_t distance(std::string_view from, std::string_view to) {
    std::vector<std::size_t> row(to.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= from.size(); ++i) {
        std::size_t diagonal = std::exchange(row[0], i);
        for (std::size_t j = 1; j <= to.size(); ++j) {
            const std::size_t changed = diagonal + (from[i - 1] == to[j - 1] ? 0 : 1);
            diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, changed}));
        }
    }
    return row.back();
}

const flag& find_flag(std::string_view name) {
    const auto nearer = [&](const flag& a, const flag& b) {
        return distance(name, a.name) < distance(name, b.name);
    };
    const flag& nearest = *std::min_element(flags().begin(), flags().end(), nearer);
    if (nearest.name != name)
        throw usage_error("there is no --" + std::string(name) + "; did you mean --" +
                          std::string(nearest.name) + "?");
    return nearest;
}

settings read_flags(std::span<char*> arguments) {
    settings chosen;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string_view argument = arguments[i];
        if (!argument.starts_with("--") || argument.size() == 2)
            throw usage_error("'" + std::string(argument) + "' is no flag; flags begin with --");
        const std::size_t equals = argument.find('=');
        const flag& given = find_flag(argument.substr(0, equals).substr(2));
        std::optional<std::string_view> value;
        if (equals != argument.npos) value = argument.substr(equals + 1);
        const std::string named = "--" + std::string(given.name);
        if (given.argument.empty() && value)
            throw usage_error(named + " is a switch; give it without a value");
        if (!given.argument.empty() && !value) {
            if (i + 1 == arguments.size() || std::string_view(arguments[i + 1]).starts_with("--"))
                throw usage_error(named + " needs a value: " + named + " " +
                                  std::string(given.argument));
            value = arguments[++i];
        }
        try {
            given.set(chosen, value.value_or(""));
        } catch (const usage_error& wrong) {
            throw usage_error(named + " cannot be '" + std::string(value.value_or("")) +
                              "': " + wrong.what());
        }
    }
    return chosen;
}

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
    if (entry.duration.count() > 0) line << ' ' << in_seconds(entry.duration) << " s";
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
        settings chosen = read_flags(std::span(argv + 1, argv + argc));
        if (chosen.help) {
            print_help(std::cout);
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
