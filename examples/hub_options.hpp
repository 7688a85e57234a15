// hub_options.hpp - the command line of hub.cpp: one table, from which flags are read and --help is
// made.
//
// Reading has no effect beyond the settings that it returns, so that a fuzzer may try any flags:
// tests/fuzz/fuzz.cpp.
#pragma once

#include "sse.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iomanip>
#include <limits>
#include <numeric>
#include <optional>
#include <ostream>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace hub_options {

using std::chrono::milliseconds;

struct settings {
    sse::options options;
    std::string address = "127.0.0.1";
    std::uint16_t port = 8080;
    std::vector<std::string> listen;  // instead of these two
    std::vector<std::string> allowed; // origins; empty: any
    std::string token;                // empty: publishing over HTTP is off
    std::optional<sse::log_level> log_from = sse::log_level::warning; // empty: quiet
    std::string subscribe_token;                                      // empty: anyone may subscribe
    std::string admin_token;                                          // empty: nobody may
    std::string metrics;                                              // path; empty: none
    bool compress = false;
    std::string log_dir;            // at most one of these three is not empty
    std::vector<std::string> redis; // addresses
    bool redis_keeps_all = false;
    std::vector<std::string> nats; // URLs
    std::string tls_cert;          // files; empty: no TLS
    std::string tls_key;
    std::string tls_client_ca;
    std::string tls_client_crl;
    bool demo = false;
    bool help = false;
    bool version = false;
    std::set<std::string_view> replaced; // flags whose list is no longer the default

    struct given_flag {
        const struct flag* which;
        std::string value;
    };
    std::vector<given_flag> given; // in the order given
};

// Says what is wrong with the command line, and how to correct it.
struct usage_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct flag {
    std::string_view name;
    std::string_view argument; // empty: a switch, which takes no value
    std::string help;          // including the default
    std::function<void(settings&, std::string_view value)> set;
    std::string_view member = {}; // of sse::options, as sse::bad_option names it
};

template <class Number>
Number whole_number(std::string_view text, Number highest = std::numeric_limits<Number>::max()) {
    Number number = 0;
    const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (wrong != std::errc() || end != text.data() + text.size() || number > highest)
        throw usage_error("use a whole number from 0 to " + std::to_string(highest));
    return number;
}

inline milliseconds seconds(std::string_view text) {
    const std::size_t dot = text.find('.');
    const std::string_view whole = text.substr(0, dot);
    std::string thousandths(dot == text.npos ? "" : text.substr(dot + 1));
    const bool fits = !whole.empty() && whole.size() <= 9 && thousandths.size() <= 3;
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (!fits || !std::all_of(whole.begin(), whole.end(), is_digit) ||
        !std::all_of(thousandths.begin(), thousandths.end(), is_digit))
        throw usage_error("use seconds, with at most three decimals, such as 15 or 0.5");
    thousandths.resize(3, '0');
    return milliseconds(std::stoll(std::string(whole) + thousandths));
}

inline std::string in_seconds(milliseconds time) {
    std::ostringstream out;
    out << static_cast<double>(time.count()) / 1000;
    return out.str();
}

inline void allow_origin(settings& chosen, std::string_view origin) {
    chosen.allowed.emplace_back(origin);
    try {
        sse::origins({chosen.allowed.back()});
    } catch (const std::invalid_argument&) {
        throw usage_error("use * or scheme://host or scheme://host:port, in lower case and "
                          "without a path, such as https://app.example");
    }
}

inline void check_token(std::string_view token) {
    // More than RFC 6750 lists is allowed, but a token with a space or a comma could never arrive.
    const auto fits = [](char c) { return c > ' ' && c < '\x7f' && c != ',' && c != '"'; };
    if (token.empty() || !std::all_of(token.begin(), token.end(), fits))
        throw usage_error("use a secret of letters, digits and punctuation, without spaces, for "
                          "example the output of: openssl rand -hex 16");
}

// Returns the value of one of a few words.
template <class Value>
Value one_of(std::string_view text,
             std::initializer_list<std::pair<std::string_view, Value>> words) {
    std::string known;
    for (const auto& [word, value] : words) {
        if (word == text) return value;
        known.append(known.empty() ? "use " : " or ").append(word);
    }
    throw usage_error(known);
}

inline void history_for(settings& chosen, std::string_view value) {
    const std::size_t equals = value.rfind('='); // a topic may contain one, a number cannot
    if (equals == value.npos) throw usage_error("use a topic and a number, such as /prices=1000");
    sse::topic_history bound;
    bound.topic = value.substr(0, equals);
    bound.messages = whole_number<std::size_t>(value.substr(equals + 1));
    chosen.options.history.topics.push_back(std::move(bound));
}

inline std::vector<std::string> with_commas(std::string_view value, const std::string& example) {
    std::vector<std::string> all;
    for (std::size_t at = 0; at <= value.size(); at += all.back().size() + 1) {
        all.emplace_back(value.substr(at, value.find(',', at) - at));
        if (all.back().empty())
            throw usage_error("use one or several, with commas between them, such as " + example);
    }
    return all;
}

// It is shown on a page and in JSON.
inline void check_name(std::string_view name) {
    const auto fits = [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
               c == '.' || c == '_' || c == '-';
    };
    if (name.empty() || name.size() > 64 || !std::all_of(name.begin(), name.end(), fits))
        throw usage_error("use 1 to 64 letters, digits, '.', '_' and '-', such as hub-1");
}

template <class Get> // the member of an sse::options
flag list_flag(std::string_view name, std::string_view argument, std::string help,
               std::string_view member, Get get) {
    return {name, argument, std::move(help) + "; may be repeated",
            [get](settings& chosen, std::string_view value) {
                get(chosen.options).emplace_back(value);
            },
            member};
}

// The first use replaces the default list.
template <class Get>
flag cors_flag(std::string_view name, std::string_view argument, std::string help,
               std::string_view member, Get get) {
    return {name, argument, std::move(help) + "; may be repeated",
            [name, get](settings& chosen, std::string_view value) {
                std::vector<std::string>& list = get(chosen.options);
                if (chosen.replaced.insert(name).second) list.clear();
                list.emplace_back(value);
            },
            member};
}

template <class Get>
flag time_flag(std::string_view name, std::string help, std::string_view member, Get get) {
    sse::options standard;
    return {
        name, "SECONDS", std::move(help) + " (" + in_seconds(get(standard)) + ")",
        [get](settings& chosen, std::string_view value) { get(chosen.options) = seconds(value); },
        member};
}

template <class Get>
flag size_flag(std::string_view name, std::string help, std::string_view member, Get get) {
    sse::options standard;
    return {name, "NUMBER", std::move(help) + " (" + std::to_string(get(standard)) + ")",
            [get](settings& chosen, std::string_view value) {
                get(chosen.options) = whole_number<std::size_t>(value);
            },
            member};
}

inline const std::vector<flag>& flags() {
    using options = sse::options;
    static const std::vector<flag> table{
        {"address", "ADDRESS", "address to listen on, IPv4 or IPv6 (127.0.0.1)",
         [](settings& chosen, std::string_view value) {
             if (value.empty()) throw usage_error("use an address; 0.0.0.0 or :: means all");
             chosen.address = value;
         }},
        {"port", "PORT", "port to listen on; 0: any free one (8080)",
         [](settings& chosen, std::string_view value) {
             chosen.port = whole_number<std::uint16_t>(value);
         }},
        {"listen", "WHERE",
         "instead of these two: HOST:PORT, unix:/run/hub.sock, systemd: for the sockets that "
         "systemd has opened, or with TLS http://HOST:PORT for one without; may be repeated",
         [](settings& chosen, std::string_view value) {
             if (value.empty())
                 throw usage_error("use a place such as 127.0.0.1:8080 or unix:/run/hub.sock");
             chosen.listen.emplace_back(value);
         }},
        {"socket-mode", "OCTAL", "mode of the file of such a unix: socket (0660)",
         [](settings& chosen, std::string_view value) {
             unsigned mode = 0;
             const auto [end, wrong] =
                 std::from_chars(value.data(), value.data() + value.size(), mode, 8);
             if (wrong != std::errc() || end != value.data() + value.size() || mode > 0777)
                 throw usage_error("use an octal number from 0 to 777, such as 660");
             chosen.options.unix_socket.mode = mode;
         },
         "unix_socket.mode"},
        {"socket-owner", "USER:GROUP",
         "whom that file is given to, such as :www-data (to the user who started it)",
         [](settings& chosen, std::string_view value) { chosen.options.unix_socket.owner = value; },
         "unix_socket.owner"},
        size_flag(
            "threads", "worker threads; 0: one for each core", "threads",
            [](sse::options & o) -> auto& { return o.threads; }),
        {"prefix", "PATH", "path that clients subscribe under (" + options().prefix + ")",
         [](settings& chosen, std::string_view value) { chosen.options.prefix = value; }, "prefix"},
        time_flag(
            "heartbeat", "silence before a comment is sent; 0: off", "heartbeat",
            [](sse::options & o) -> auto& { return o.heartbeat; }),
        {"heartbeat-ids", "on|off", "whether a heartbeat carries the newest id (on)",
         [](settings& chosen, std::string_view value) {
             chosen.options.heartbeat_ids = one_of<bool>(value, {{"on", true}, {"off", false}});
         },
         "heartbeat_ids"},
        {"compress", "on|off",
         "gzip for streams of one topic, compressed once for all; not where secrets and what "
         "others write share a topic (off)",
         [](settings& chosen, std::string_view value) {
             chosen.compress = one_of<bool>(value, {{"on", true}, {"off", false}});
         }},
        {"allow-origin", "ORIGIN",
         "web origin whose pages may read; * for any; may be repeated (*)", allow_origin,
         "cors.origin"},
        {"allow-credentials", "", "lets the allowed origins send cookies (off)",
         [](settings& chosen, std::string_view) { chosen.options.cors.credentials = true; },
         "cors.credentials"},
        {"foreign-origins", "WHAT",
         "refuse: 403 for other origins; omit: a response without CORS headers (refuse)",
         [](settings& chosen, std::string_view value) {
             chosen.options.cors.refuse = one_of<bool>(value, {{"refuse", true}, {"omit", false}});
         },
         "cors.refuse"},
        cors_flag(
            "allow-method", "METHOD", "method that a preflight allows (what is served)",
            "cors.methods", [](sse::options & o) -> auto& { return o.cors.methods; }),
        cors_flag(
            "allow-header", "NAME",
            "request header that a preflight allows (Authorization, Cache-Control, "
            "Content-Type, Last-Event-ID)",
            "cors.headers", [](sse::options & o) -> auto& { return o.cors.headers; }),
        cors_flag(
            "expose-header", "NAME", "response header that pages may read (none)", "cors.exposed",
            [](sse::options & o) -> auto& { return o.cors.exposed; }),
        {"preflight-age", "SECONDS",
         "how long browsers cache a preflight; 0: the browser decides (7200)",
         [](settings& chosen, std::string_view value) {
             chosen.options.cors.max_age = std::chrono::seconds(whole_number<std::uint32_t>(value));
         },
         "cors.max_age"},
        {"subscribe-token", "TOKEN",
         "admits only holders of TOKEN, by 'Authorization: Bearer' or ?token= (anyone)",
         [](settings& chosen, std::string_view value) {
             check_token(value);
             chosen.subscribe_token = value;
         }},
        {"tls-cert", "FILE",
         "certificate, PEM, with those up to its CA: the hub speaks https alone (none)",
         [](settings& chosen, std::string_view value) { chosen.tls_cert = value; },
         "tls.certificate"},
        {"tls-key", "FILE", "its private key, PEM, without a password",
         [](settings& chosen, std::string_view value) { chosen.tls_key = value; }, "tls.key"},
        {"tls-client-ca", "FILE", "CAs, PEM, one of which must have signed a client's certificate",
         [](settings& chosen, std::string_view value) { chosen.tls_client_ca = value; },
         "tls.client_ca"},
        {"tls-client-crl", "FILE", "PEM, a revocation list of each of those CAs, and in date",
         [](settings& chosen, std::string_view value) { chosen.tls_client_crl = value; },
         "tls.client_crl"},
        list_flag(
            "host", "HOST",
            "host that requests may name; * for any (on loopback its own names, else *)", "hosts",
            [](sse::options & o) -> auto& { return o.hosts; }),
        list_flag(
            "trusted-proxy", "ADDRESS",
            "proxy, or block such as 10.0.0.0/8, whose forwarding headers are trusted (none)",
            "proxy.trusted", [](sse::options & o) -> auto& { return o.proxy.trusted; }),
        {"forwarded", "HEADER",
         "which of them it sets: x-forwarded-for, forwarded or x-real-ip (x-forwarded-for)",
         [](settings& chosen, std::string_view value) {
             using by = sse::forwarded_by;
             chosen.options.proxy.forwarded =
                 one_of<by>(value, {{"x-forwarded-for", by::x_forwarded_for},
                                    {"forwarded", by::forwarded},
                                    {"x-real-ip", by::x_real_ip}});
         },
         "proxy.forwarded"},
        {"proxy-protocol", "", "connections begin with a PROXY protocol header (off)",
         [](settings& chosen, std::string_view) { chosen.options.proxy.protocol = true; },
         "proxy.protocol"},
        time_flag(
            "header-timeout", "time for the whole request head", "timeouts.header",
            [](sse::options & o) -> auto& { return o.timeouts.header; }),
        time_flag(
            "body-timeout", "time for a request's body", "timeouts.body",
            [](sse::options & o) -> auto& { return o.timeouts.body; }),
        time_flag(
            "idle-timeout", "time between two requests of a connection", "timeouts.idle",
            [](sse::options & o) -> auto& { return o.timeouts.idle; }),
        time_flag(
            "max-stream-age", "age at which a stream ends, so that its client reconnects; 0: never",
            "timeouts.stream_age", [](sse::options & o) -> auto& { return o.timeouts.stream_age; }),
        time_flag(
            "stall-timeout", "disconnect a client that reads nothing for this long",
            "timeouts.stall", [](sse::options & o) -> auto& { return o.timeouts.stall; }),
        time_flag(
            "coalesce", "time a message may wait for others, to be sent with them; 0: none",
            "coalesce", [](sse::options & o) -> auto& { return o.coalesce; }),
        time_flag(
            "publish-timeout", "time a publisher may wait for room", "timeouts.publish",
            [](sse::options & o) -> auto& { return o.timeouts.publish; }),
        time_flag(
            "shutdown-timeout", "time that handlers have to end after a stop", "timeouts.shutdown",
            [](sse::options & o) -> auto& { return o.timeouts.shutdown; }),
        time_flag(
            "drain-window", "time over which a stop disconnects the clients; 0: at once",
            "drain_window", [](sse::options & o) -> auto& { return o.drain_window; }),
        size_flag(
            "max-connections", "connections at once, then streams are refused; 0: no limit",
            "limits.connections", [](sse::options & o) -> auto& { return o.limits.connections; }),
        size_flag(
            "max-connections-per-ip", "the same for one address; 0: no limit",
            "limits.connections_per_ip",
            [](sse::options & o) -> auto& { return o.limits.connections_per_ip; }),
        size_flag(
            "connect-rate-per-ip", "new connections per second from one address; 0: no limit",
            "limits.connect_rate_per_ip",
            [](sse::options & o) -> auto& { return o.limits.connect_rate_per_ip; }),
        {"over-limit", "KIND",
         "hard: 503 or 429; soft: asks EventSource clients to retry later (hard)",
         [](settings& chosen, std::string_view value) {
             using kind = sse::refusal;
             chosen.options.limits.over =
                 one_of<kind>(value, {{"hard", kind::hard}, {"soft", kind::soft}});
         },
         "limits.over"},
        time_flag(
            "retry-after", "when a refused client may retry", "limits.retry_after",
            [](sse::options & o) -> auto& { return o.limits.retry_after; }),
        size_flag(
            "max-header-lines", "lines of a request head", "limits.header_lines",
            [](sse::options & o) -> auto& { return o.limits.header_lines; }),
        size_flag(
            "max-head-bytes", "bytes of a request head", "limits.head_bytes",
            [](sse::options & o) -> auto& { return o.limits.head_bytes; }),
        size_flag(
            "max-body-bytes", "bytes of a published body", "limits.body_bytes",
            [](sse::options & o) -> auto& { return o.limits.body_bytes; }),
        size_flag(
            "ring-capacity", "messages between publishers and workers, a power of two",
            "ring_capacity", [](sse::options & o) -> auto& { return o.ring_capacity; }),
        size_flag(
            "history", "messages kept, for clients that reconnect or fall behind",
            "history.messages", [](sse::options & o) -> auto& { return o.history.messages; }),
        size_flag(
            "history-bytes", "bytes of these messages", "history.bytes",
            [](sse::options & o) -> auto& { return o.history.bytes; }),
        time_flag(
            "history-age", "how long a message is kept; 0: as long as there is room", "history.age",
            [](sse::options & o) -> auto& { return o.history.age; }),
        {"history-for", "TOPIC=NUMBER",
         "messages kept of a topic and of what is below it; may be repeated", history_for,
         "history.topics"},
        {"gap-event", "NAME",
         "name of the event that reports missed messages (" + options().history.gap_event + ")",
         [](settings& chosen, std::string_view value) { chosen.options.history.gap_event = value; },
         "history.gap_event"},
        {"lag", "WHAT",
         "for a client that falls behind the history: disconnect, skip, conflate or hold-back "
         "(disconnect)",
         [](settings& chosen, std::string_view value) {
             using policy = sse::lag_policy;
             chosen.options.history.lag = one_of<policy>(value, {{"disconnect", policy::disconnect},
                                                                 {"skip", policy::skip},
                                                                 {"conflate", policy::conflate},
                                                                 {"hold-back", policy::hold_back}});
         },
         "history.lag"},
        {"log-dir", "DIR", "folder for the messages: then they are there after a restart (none)",
         [](settings& chosen, std::string_view value) {
             if (value.empty()) throw usage_error("use a folder; it is made if it is missing");
             chosen.log_dir = value;
         }},
        {"redis", "ADDRESS,...",
         "Redis that orders and keeps the messages of several hubs, and others to fail over to "
         "(none)",
         [](settings& chosen, std::string_view value) {
             chosen.redis = with_commas(value, "10.0.0.1:6379,10.0.0.2:6379");
         }},
        {"redis-keeps-all", "",
         "Redis has appendfsync always, and none of its replicas is ever promoted: clients are not "
         "told of its restart",
         [](settings& chosen, std::string_view) { chosen.redis_keeps_all = true; }},
        {"nats", "URL,...", "the same with the JetStream of a NATS server, or of a cluster (none)",
         [](settings& chosen, std::string_view value) {
             chosen.nats = with_commas(value, "nats://10.0.0.1:4222,nats://10.0.0.2:4222");
         }},
        {"name", "NAME", "what the page calls this hub, one of several (the name of the host)",
         [](settings& chosen, std::string_view value) {
             check_name(value);
             chosen.options.node = value;
         },
         "node"},
        size_flag(
            "max-unsent-bytes", "bytes of history that a client may be behind; 0: all",
            "limits.unsent_bytes", [](sse::options & o) -> auto& { return o.limits.unsent_bytes; }),
        size_flag(
            "max-topics", "topics that one stream may follow", "limits.topics",
            [](sse::options & o) -> auto& { return o.limits.topics; }),
        {"health", "PATH",
         "path of the health endpoint, and with /ready of the readiness one; '' for none "
         "(/health)",
         [](settings& chosen, std::string_view value) { chosen.options.health = value; }, "health"},
        {"metrics", "PATH", "path of the metrics, for Prometheus, such as /metrics (none)",
         [](settings& chosen, std::string_view value) { chosen.metrics = value; }},
        {"log", "LEVEL",
         "lowest level that is logged: debug, info, warning, error or off (warning)",
         [](settings& chosen, std::string_view value) {
             using level = std::optional<sse::log_level>;
             chosen.log_from = one_of<level>(value, {{"info", sse::log_level::info},
                                                     {"warning", sse::log_level::warning},
                                                     {"debug", sse::log_level::debug},
                                                     {"error", sse::log_level::error},
                                                     {"off", std::nullopt}});
         }},
        {"publish-token", "TOKEN", "turns on POST /publish/<topic> for holders of TOKEN (off)",
         [](settings& chosen, std::string_view value) {
             check_token(value);
             chosen.token = value;
         }},
        {"admin-token", "TOKEN",
         "turns on the page /admin/, where holders of TOKEN see and end streams (off)",
         [](settings& chosen, std::string_view value) {
             check_token(value);
             chosen.admin_token = value;
         }},
        {"demo", "", "publishes an invented feed: prices, chat, build, sensors (off)",
         [](settings& chosen, std::string_view) { chosen.demo = true; }},
        {"version", "", "prints the version",
         [](settings& chosen, std::string_view) { chosen.version = true; }},
        {"help", "", "prints this; -h too",
         [](settings& chosen, std::string_view) { chosen.help = true; }},
    };
    return table;
}

inline void print_help(std::ostream& out) {
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
  Add ?last=20, ?from=oldest or ?since=UNIX-SECONDS for messages of the past. A client that
  reconnects with the header Last-Event-ID, as a browser does, continues after that message; one
  event `gap` reports what is no longer kept.

Publish, with hub --publish-token $TOKEN: POST /publish/<topic>, as a form, JSON or plain text, or
many messages as application/x-ndjson: a JSON object on each line.
  A="Authorization: Bearer $TOKEN"
  curl -H "$A" -d event=chat --data-urlencode 'data=2 + 2 = 4' http://localhost:8080/publish/room
  curl -H "$A" --json '{"event":"price","data":{"ACME":128.4}}' http://localhost:8080/publish/room
  curl -H "$A" -H 'Content-Type: text/plain' --data-binary @log http://localhost:8080/publish/room
  Fields: data (required), event, id (by default the hub's own), retry (milliseconds until a
  client that lost its connection reconnects), key (with --lag conflate a slow client gets the
  newest message of each), ephemeral (true: no id, never sent again),
  topic (instead of the path's).
  JSON data other than a string is sent as its JSON text. Everything is UTF-8 and uncompressed.
  Responses: 202 {"seq":N,"id":"..."}, without id if the message is ephemeral, and such a line for
  each of many; 400, 413 and 415 with the reason, then nothing was published; 401 for a wrong token,
  404 if it is off. 503: it was not published, try again. 504: it may have been, as what keeps the
  messages did not confirm it. Idempotency-Key: "UUID" makes a repetition safe: it gets the first
  response, and nothing is published twice by this hub.

Administrate, with hub --admin-token $TOKEN: open http://localhost:8080/admin/, or
  A="Authorization: Bearer $TOKEN"
  curl -H "$A" 'http://localhost:8080/admin/streams?topic=/room'        who is there, a page at a time
  curl -H "$A" -X DELETE 'http://localhost:8080/admin/streams?user=ann'    ends her streams
  curl -H "$A" -X DELETE http://localhost:8080/admin/streams/17            ends one
  curl -H "$A" -X POST 'http://localhost:8080/admin/drain?window=30'       ends the hub
  Also GET /admin/status, /admin/topics, and /admin/live, an event stream of all. The token is taken
  from the header alone. sse.hpp describes them at admin().

Several hubs, and restarts: by default messages are kept in the hub's memory, and its clients may miss
some when it ends. With one of --log-dir, --redis and --nats they miss nothing: with --log-dir when
one hub is restarted, with the others also when they come back to another hub. Give all hubs the same
--publish-token and --history. Passwords are taken from the environment, as others see arguments:
  SSE_HUB_REDIS_USER, SSE_HUB_REDIS_PASSWORD             user: only if it is not the default one
  SSE_HUB_NATS_USER, SSE_HUB_NATS_PASSWORD, or
  SSE_HUB_NATS_TOKEN, or SSE_HUB_NATS_CREDENTIALS        the last one is the name of a file
/health says whether Redis, NATS or the disk works. examples/cluster.sh starts three hubs to try.

Ctrl-C, SIGTERM or a closed terminal (SIGHUP) disconnects the clients, over --drain-window if that is
given, and ends the hub with status 0; a second Ctrl-C or SIGTERM ends it at once. With --tls-cert,
SIGHUP reads the files of TLS again instead: a renewed certificate is for who connects from then on,
and one that cannot work is refused. SIGUSR1 is ignored. The status is 2 after a wrong flag, and 1
after a failure such as a port in use.

SIGUSR2 starts the hub anew, with the same flags and perhaps a newer program, and hands it the sockets:
nobody is refused. The clients of this one go over within --drain-window, or 2 seconds, and with one of
--log-dir, --redis and --nats miss nothing. If the new one cannot start, this one goes on.

Under systemd, with Type=notify, the hub tells when it is ready, reloads and stops, and with WatchdogSec=
that all its threads are alive: examples/hub.service and examples/hub.socket.

The log goes to stderr. Warnings and errors of one kind are printed at most once a second, with their
number. Lines that nobody reads are dropped and counted; they never block the hub.
)";
}

// The number of single-character edits between two words.
inline std::size_t distance(std::string_view from, std::string_view to) {
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

inline const flag& find_flag(std::string_view name) {
    const auto nearer = [&](const flag& a, const flag& b) {
        return distance(name, a.name) < distance(name, b.name);
    };
    const flag& nearest = *std::min_element(flags().begin(), flags().end(), nearer);
    if (nearest.name == name) return nearest;
    // A typo, if the words are this near; beyond that, something else was meant.
    const std::size_t near = name.size() < 4 ? 1 : std::max<std::size_t>(2, name.size() / 4);
    throw usage_error("there is no --" + std::string(name) +
                      (distance(name, nearest.name) <= near
                           ? "; did you mean --" + std::string(nearest.name) + "?"
                           : ""));
}

inline settings read_flags(std::span<char*> arguments) {
    settings chosen;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string_view argument = arguments[i];
        const bool asks_for_help = argument == "-h";
        if (!asks_for_help && (!argument.starts_with("--") || argument.size() == 2))
            throw usage_error("unexpected argument '" + std::string(argument) +
                              "'; flags begin with --");
        const std::size_t equals = argument.find('=');
        const flag& given =
            find_flag(asks_for_help ? "help" : argument.substr(0, equals).substr(2));
        std::optional<std::string_view> value;
        if (equals != argument.npos) value = argument.substr(equals + 1);
        const std::string named = "--" + std::string(given.name);
        if (given.argument.empty() && value)
            throw usage_error(named + " is a switch and takes no value");
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
        chosen.given.push_back({&given, std::string(value.value_or(""))});
    }
    return chosen;
}

} // namespace hub_options
