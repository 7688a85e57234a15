// hub.cpp - a ready-made hub with a live page. Run: hub --demo, then open the URL it prints.
//
//   GET  /                     the live page (hub_page.hpp)
//   GET  /subscribe/<topic>    the events of a topic and of everything below it
//   POST /publish/<topic>      publishes, for whoever knows the token
//   GET  /health               built into the server
//   GET  the path of --metrics for Prometheus
//   GET  /admin/               with --admin-token the page of who is there (hub_admin_page.hpp),
//   and
//                              below it the routes of sse::admin
//   GET  /sse.js               the page script of sse.hpp, for pages of your own
//   GET  /hub/stats            the hub's own counters, once a second, as event `stats`; with
//                              ?topic= also the events of that topic, which is what the page reads
//
// Every message has an id, and a client that comes back with it misses nothing.
// `hub --help` lists every flag (hub_options.hpp); publishing from a shell is described at its end.
#include "sse.hpp"

#include "hub_admin_page.hpp"
#include "hub_demo.hpp"
#include "hub_log.hpp"
#include "hub_options.hpp"
#include "hub_page.hpp"
#include "json.hpp"
#include "program.hpp"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/host_name.hpp>
#include <asio/signal_set.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
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
// POST /publish/<topic>: who may publish.

bool same_ignoring_case(std::string_view a, std::string_view b) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [&](char x, char y) { return lower(x) == lower(y); });
}

// Takes as long for a token that is wrong in its first character as for one wrong in its last, so
// that the response time does not reveal how much of a guess was correct.
bool same_secret(std::string_view given, std::string_view secret) {
    std::size_t different = given.size() ^ secret.size();
    for (std::size_t i = 0; i < given.size(); ++i)
        different |= static_cast<unsigned char>(given[i] ^ secret[i % secret.size()]);
    return different == 0;
}

bool holds_token(const sse::request& request, std::string_view token) {
    constexpr std::string_view scheme = "Bearer ";
    const std::string_view given = request.header("Authorization").value_or("");
    if (!same_ignoring_case(given.substr(0, scheme.size()), scheme)) return false;
    const std::size_t first = given.find_first_not_of(' ', scheme.size()); // RFC 9110 11.4: 1*SP
    return first != given.npos && same_secret(given.substr(first), token);
}

// What publish_endpoint() asks. Who holds the token may publish to every topic.
asio::awaitable<sse::access> let_publish(const sse::request& request, const std::string& token) {
    if (token.empty())
        co_return sse::access::refuse(
            404, "publishing is off; start the hub with --publish-token TOKEN\n");
    if (holds_token(request, token)) co_return sse::access::grant();
    co_return sse::access::refuse(401,
                                  "the token is missing or wrong; send the header 'Authorization: "
                                  "Bearer TOKEN' with the token that the hub was started with\n",
                                  {{"WWW-Authenticate", "Bearer"}});
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
    page = filled(std::move(page), "{{gap}}", chosen.options.history.gap_event);
    return filled(std::move(page), "{{publish}}", chosen.token.empty() ? "off" : "on");
}

asio::awaitable<void> send_page(const std::string& page, sse::stream& client) {
    std::string body = page;
    co_await client.respond(200, "text/html; charset=utf-8", std::move(body));
}

// >>stats ////////////////////////////////////////////////////////////////////////////////////////

// The name tells which of several hubs serves this stream.
std::string stats(const sse::server& server, const std::string& node) {
    using counters = sse::counters;
    constexpr std::pair<const char*, std::uint64_t counters::*> shown[] = {
        {"connections", &counters::connections},
        {"streams", &counters::streams},
        {"published", &counters::published},
        {"delivered", &counters::delivered},
        {"bytes", &counters::bytes},
        {"lagged", &counters::lagged},
        {"unreachable", &counters::unreachable},
        {"gaps", &counters::gaps},
        {"conflated", &counters::conflated},
    };
    const counters now = server.counters();
    std::string json = "{\"node\":" + json::quoted(node);
    for (const auto& [name, member] : shown)
        json += ",\"" + std::string(name) + "\":" + std::to_string(now.*member);
    return json + '}';
}

// Sent to the clients of this route, not published: other subscribers have no use for it, and it
// would count itself among the messages.
asio::awaitable<void> send_stats(const sse::server& server, const std::string& node,
                                 sse::stream& client) {
    for (const std::string& topic : client.request().query_values("topic")) client.subscribe(topic);
    for (;;) {
        const std::string json = stats(server, node);
        co_await client.send({.event = "stats", .data = json});
        co_await client.sleep_for(milliseconds(1000));
    }
}

// >>bus //////////////////////////////////////////////////////////////////////////////////////////
// What keeps the messages, if it is not the server's memory.

constexpr const char* redis_user = "SSE_HUB_REDIS_USER";
constexpr const char* redis_password = "SSE_HUB_REDIS_PASSWORD";
constexpr const char* nats_user = "SSE_HUB_NATS_USER";
constexpr const char* nats_password = "SSE_HUB_NATS_PASSWORD";
constexpr const char* nats_token = "SSE_HUB_NATS_TOKEN";
constexpr const char* nats_credentials = "SSE_HUB_NATS_CREDENTIALS";

// The library names its options; here these are a flag and variables.
std::string as_the_hub_says(std::string_view text) {
    constexpr std::pair<std::string_view, std::string_view> names[] = {
        {"sse::server: ", ""},
        {"sse::server::hand_over: ", ""},
        {"unix_socket.owner", "--socket-owner"},
        {"sse::redis_options::addresses: ", ""},
        {"sse::redis_options::keeps_all: ", "--redis-keeps-all: "},
        {"redis_options::keeps_all", "--redis-keeps-all"},
        {"sse::nats_options::servers: ", ""},
        {"redis_options::user and password", "SSE_HUB_REDIS_USER and SSE_HUB_REDIS_PASSWORD"},
        {"set user and password, token or credentials",
         "set SSE_HUB_NATS_USER and SSE_HUB_NATS_PASSWORD, SSE_HUB_NATS_TOKEN or "
         "SSE_HUB_NATS_CREDENTIALS"},
        {"redis_options::addresses", "--redis"},
        {"nats_options::servers", "--nats"},
        {"redis_options::user", redis_user},
        {"nats_options::user", nats_user},
        {"redis_options::password", redis_password},
        {"nats_options::password", nats_password},
        {"nats_options::token", nats_token},
        {"nats_options::credentials", nats_credentials},
        {"sse::SSE_HUB", "SSE_HUB"},
        {"set `user` too", "set SSE_HUB_NATS_USER too"},
    };
    std::string out(text);
    for (const auto& [option, name] : names) {
        for (std::size_t at; (at = out.find(option)) != out.npos;)
            out.replace(at, option.size(), name);
    }
    return out;
}

std::string from_environment(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
}

std::shared_ptr<sse::bus> redis_bus(const settings& chosen) {
#if defined(SSE_ENABLE_REDIS)
    sse::redis_options how;
    how.addresses = chosen.redis;
    how.keeps_all = chosen.redis_keeps_all;
    how.user = from_environment(redis_user);
    how.password = from_environment(redis_password);
    how.max_length = std::max<std::uint64_t>(how.max_length, chosen.options.history.messages);
    return sse::redis_bus(how);
#else
    static_cast<void>(chosen);
    throw usage_error("this hub was built without it; install libhiredis-dev and build it again");
#endif
}

std::shared_ptr<sse::bus> nats_bus(const settings& chosen) {
#if defined(SSE_ENABLE_NATS)
    sse::nats_options how;
    how.servers = chosen.nats;
    how.user = from_environment(nats_user);
    how.password = from_environment(nats_password);
    how.token = from_environment(nats_token);
    how.credentials = from_environment(nats_credentials);
    return sse::nats_bus(how);
#else
    static_cast<void>(chosen);
    throw usage_error("this hub was built without it; install libnats-dev and build it again");
#endif
}

std::shared_ptr<sse::bus> log_bus(const settings& chosen) { return sse::file_log(chosen.log_dir); }

void refuse_passwords(const std::vector<std::string>& servers, const std::string& variables) {
    for (const std::string& each : servers) {
        if (each.find('@') == each.npos) continue;
        throw usage_error("everyone on this machine could read the password; leave out what is "
                          "before the @, and set " +
                          variables);
    }
}

// Null if none was chosen.
std::shared_ptr<sse::bus> make_bus(const settings& chosen) {
    struct kind {
        std::string flag;
        bool given;
        std::shared_ptr<sse::bus> (*make)(const settings&);
    };
    const kind kinds[] = {{"--log-dir", !chosen.log_dir.empty(), log_bus},
                          {"--redis", !chosen.redis.empty(), redis_bus},
                          {"--nats", !chosen.nats.empty(), nats_bus}};
    const kind* one = nullptr;
    for (const kind& each : kinds) {
        if (!each.given) continue;
        if (one)
            throw usage_error(one->flag + " and " + each.flag +
                              " exclude each other: the messages are kept in one place");
        one = &each;
    }
    if (chosen.redis_keeps_all && chosen.redis.empty())
        throw usage_error("--redis-keeps-all says something of a Redis; give its address with "
                          "--redis");
    if (!one) return {};
    try {
        refuse_passwords(chosen.redis, std::string(redis_user) + " and " + redis_password);
        refuse_passwords(chosen.nats, std::string(nats_user) + " and " + nats_password);
        return one->make(chosen);
    } catch (const std::exception& wrong) {
        throw usage_error(one->flag + ": " + as_the_hub_says(wrong.what()));
    }
}

// >>log //////////////////////////////////////////////////////////////////////////////////////////

struct output {
    hub_log::writer said{hub_log::standard_output}, complaints{hub_log::standard_error};
    hub_log::once_a_second warnings;

    void say(std::string line) { said.write(std::move(line)); }
    void complain(std::string line) { complaints.write(std::move(line)); }
    void complain(std::vector<std::string> several) {
        for (std::string& line : several) complain(std::move(line));
    }
};

std::string line_of(const sse::log_entry& entry) {
    std::ostringstream line;
    line << "hub: " << entry.what;
    if (!entry.method.empty()) line << ' ' << entry.method;
    if (!entry.path.empty()) line << ' ' << entry.path;
    if (entry.status != 0) line << ' ' << entry.status;
    if (entry.duration.count() > 0) line << ' ' << hub_options::in_seconds(entry.duration) << " s";
    if (!entry.client.is_unspecified()) line << " from " << entry.client;
    if (!entry.detail.empty()) line << ": " << as_the_hub_says(entry.detail);
    return line.str();
}

void log(output& out, const sse::log_entry& entry) {
    if (entry.level < sse::log_level::warning) return out.complain(line_of(entry));
    const std::string kind = std::string(entry.what) + std::to_string(entry.status);
    out.complain(out.warnings.add(kind, line_of(entry)));
}

// >>run //////////////////////////////////////////////////////////////////////////////////////////
// The main thread publishes the demo's feeds, and sleeps in between.

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

// An EventSource cannot set a header field, so the token may also be in the query.
asio::awaitable<sse::access> let_in(const sse::request& request, const std::string& token) {
    const std::string asked = request.query_value("token").value_or("");
    if (holds_token(request, token) || same_secret(asked, token)) co_return sse::access::grant();
    co_return sse::access::refuse(401, "the token is missing or wrong\n",
                                  {{"WWW-Authenticate", "Bearer"}});
}

// By the header alone: what another page makes a browser send has no such field, and no log has it.
asio::awaitable<sse::access> let_administrate(const sse::request& request,
                                              const std::string& token) {
    if (holds_token(request, token)) co_return sse::access::grant();
    co_return sse::access::refuse(401,
                                  "the token is missing or wrong; send the header "
                                  "'Authorization: Bearer TOKEN' with that of --admin-token\n",
                                  {{"WWW-Authenticate", "Bearer"}});
}

void choose_origins(settings& chosen) {
    const bool any = std::count(chosen.allowed.begin(), chosen.allowed.end(), "*") > 0;
    if (chosen.options.cors.credentials && (any || chosen.allowed.empty())) {
        throw usage_error("--allow-credentials needs --allow-origin, with the origins that may "
                          "send them");
    }
    if (!any && !chosen.allowed.empty()) chosen.options.cors.origin = sse::origins(chosen.allowed);
}

// What the server says of an option, said of the flag that sets it.
std::string as_flag(const settings& chosen, const sse::bad_option& refused) {
    const auto& all = hub_options::flags();
    const auto sets = [&](const hub_options::flag& f) { return f.member == refused.member(); };
    const auto found = std::find_if(all.begin(), all.end(), sets);
    if (found == all.end()) return refused.what();
    std::string value; // the last one given, but of a list the one that the reason quotes
    for (const auto& each : chosen.given) {
        if (each.which != &*found || each.value.empty()) continue;
        value = " '" + each.value + "'";
        if (refused.reason().find(value.substr(1)) != std::string_view::npos) break;
    }
    return "--" + std::string(found->name) + value + ": " + std::string(refused.reason());
}

bool speaks_tls(const settings& chosen) {
    return !chosen.tls_cert.empty() || !chosen.tls_key.empty() || !chosen.tls_client_ca.empty() ||
           !chosen.tls_client_crl.empty();
}

void use_tls(settings& chosen) {
    if (!speaks_tls(chosen)) return;
#if defined(SSE_ENABLE_TLS)
    chosen.options.tls.certificate = chosen.tls_cert;
    chosen.options.tls.key = chosen.tls_key;
    chosen.options.tls.client_ca = chosen.tls_client_ca;
    chosen.options.tls.client_crl = chosen.tls_client_crl;
#else
    throw usage_error("--tls-cert: this hub was built without TLS; install libssl-dev and build it "
                      "again");
#endif
}

void use_compression(settings& chosen) {
    if (!chosen.compress) return;
#if defined(SSE_ENABLE_ZLIB)
    chosen.options.compress = true;
#else
    throw usage_error("--compress: this hub was built without it; install zlib1g-dev and build it "
                      "again");
#endif
}

// For Type=notify-reload, which wants to know when.
void say_reloading() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    const auto time = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
    sse::notify_systemd("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(time));
}

// Tells systemd that the hub is alive, twice within the time in which it wants to know: only if
// each worker answers, since one that is blocked serves nobody.
asio::awaitable<void> feed_watchdog(sse::server& server) {
    std::uint64_t microseconds = 0;
    const std::string text = from_environment("WATCHDOG_USEC");
    std::from_chars(text.data(), text.data() + text.size(), microseconds);
    const std::string whose = from_environment("WATCHDOG_PID");
    if (microseconds == 0 || (!whose.empty() && whose != std::to_string(::getpid()))) co_return;
    asio::steady_timer timer(co_await asio::this_coro::executor);
    for (;;) {
        co_await server.async_measure();
        sse::notify_systemd("WATCHDOG=1");
        timer.expires_after(std::chrono::microseconds(microseconds / 2));
        co_await timer.async_wait(asio::use_awaitable);
    }
}

// Blocks its thread until the next hub is ready.
asio::awaitable<std::int64_t> hand_over(sse::server& server,
                                        const std::vector<std::string>& command) {
    co_return server.hand_over(command);
}

// At SIGUSR2 a new hub takes over. Returns once it has; if it cannot, this one goes on.
asio::awaitable<void> be_replaced(sse::server& server, const std::vector<std::string>& command,
                                  output& out) {
    asio::signal_set wanted(co_await asio::this_coro::executor, SIGUSR2);
    asio::thread_pool waiting(1);
    for (;;) {
        co_await wanted.async_wait(asio::use_awaitable);
        try {
            const std::int64_t process =
                co_await asio::co_spawn(waiting, hand_over(server, command), asio::use_awaitable);
            sse::notify_systemd("MAINPID=" + std::to_string(process));
            co_return out.say("hub: handed over to process " + std::to_string(process));
        } catch (const std::exception& failure) {
            out.complain("hub: goes on, since no other could take over: " +
                         as_the_hub_says(failure.what()));
        }
    }
}

// Reads the files again at each SIGHUP.
asio::awaitable<void> renew_tls(sse::server& server, const settings& chosen, output& out) {
    asio::signal_set hangup(co_await asio::this_coro::executor, SIGHUP);
    for (;;) {
        co_await hangup.async_wait(asio::use_awaitable);
#if defined(SSE_ENABLE_TLS)
        say_reloading();
        try {
            server.reload_tls();
            out.say("hub: read the certificate again");
        } catch (const sse::bad_option& refused) {
            out.complain("hub: the certificate stays as it was: " + as_flag(chosen, refused));
        }
        sse::notify_systemd("READY=1");
#else
        static_cast<void>(server), static_cast<void>(chosen), static_cast<void>(out);
#endif
    }
}

// The hub's own routes win over the server's, which would then be unreachable.
void check_paths(const settings& chosen) {
    std::vector<std::string> all{"/publish", "/hub"};
    if (!chosen.admin_token.empty()) all.emplace_back("/admin");
    const auto check = [&](std::string_view flag, std::string path) {
        while (path.ends_with('/')) path.pop_back();
        const bool is_page = path.empty();
        for (const std::string& own : all) {
            if (!is_page && path != own && !path.starts_with(own + "/")) continue;
            throw usage_error(std::string(flag) + " '" + path + (is_page ? "/" : "") + "': " +
                              (is_page ? "the page is there" : own + " is the hub's own path") +
                              "; choose another");
        }
    };
    check("--prefix", chosen.options.prefix);
    if (!chosen.options.health.empty()) check("--health", chosen.options.health);
    if (!chosen.metrics.empty()) check("--metrics", chosen.metrics);
}

std::string host_name() {
    std::error_code failed;
    return asio::ip::host_name(failed).substr(0, 64);
}

std::unique_ptr<sse::server> make_server(settings& chosen, output& out) {
    check_paths(chosen);
    const auto is_place = [](const auto& given) {
        return given.which->name == "address" || given.which->name == "port";
    };
    if (!chosen.listen.empty() && std::any_of(chosen.given.begin(), chosen.given.end(), is_place))
        throw usage_error("--listen says where, and so do --address and --port; use one of these");
    if (chosen.options.node.empty()) chosen.options.node = host_name();
    try {
        choose_origins(chosen);
        if (chosen.log_from) {
            chosen.options.hooks.log = [from = *chosen.log_from,
                                        &out](const sse::log_entry& entry) {
                if (entry.level >= from) log(out, entry);
            };
        }
        if (!chosen.subscribe_token.empty()) {
            chosen.options.hooks.authorize = [token =
                                                  chosen.subscribe_token](const sse::request& r) {
                return let_in(r, token);
            };
        }
        if (chosen.options.drain_window > std::chrono::hours(24)) {
            throw sse::bad_option("drain_window must be from 0 to a day");
        }
        use_tls(chosen);
        use_compression(chosen);
        chosen.options.bus = make_bus(chosen);
        sse::options options = chosen.options;
        options.drain_window = milliseconds(0); // the hub takes the signals itself
        return std::make_unique<sse::server>(std::move(options));
    } catch (const sse::bad_option& refused) { throw usage_error(as_flag(chosen, refused)); }
}

std::string listen_address(const settings& chosen) {
    const bool bare_ipv6 =
        chosen.address.find(':') != std::string::npos && !chosen.address.starts_with('[');
    return (bare_ipv6 ? "[" + chosen.address + "]" : chosen.address) + ":" +
           std::to_string(chosen.port);
}

// Where a browser finds it; of a unix-domain socket, what the server calls it.
std::string url_of(std::string address, const settings& chosen) {
    constexpr std::string_view plain = "http://";
    if (address.starts_with("unix:")) return address;
    const bool is_plain = address.starts_with(plain);
    if (is_plain) address.erase(0, plain.size());
    for (const std::string_view every : {"0.0.0.0:", "[::]:"}) {
        if (address.starts_with(every)) address.replace(0, every.size(), "localhost:");
    }
    return (speaks_tls(chosen) && !is_plain ? "https://" : "http://") + address + "/";
}

std::string urls(const sse::server& server, const settings& chosen) {
    std::string all;
    for (const std::string& each : server.addresses())
        all += (all.empty() ? "" : " or ") + url_of(each, chosen);
    return all;
}

// What is said of the code is about a message that is published, which none was yet.
[[noreturn]] void throw_without_code(const std::system_error& failure) {
    std::string text = failure.what();
    const std::string code = ": " + failure.code().message();
    if (text.ends_with(code)) text.resize(text.size() - code.size());
    throw std::runtime_error(text);
}

void listen(sse::server& server, const settings& chosen) {
    const std::string address = listen_address(chosen);
    try {
        if (chosen.listen.empty()) return server.start(address);
        return server.start(chosen.listen);
    } catch (const std::system_error& failure) {
        if (failure.code() == sse::errc::bus_refused) throw_without_code(failure);
        if (!chosen.listen.empty()) throw;
        throw std::runtime_error("cannot listen on " + address + ": " + failure.code().message() +
                                 "; choose another --address or --port");
    }
}

// SIGHUP comes when the terminal is closed: the hub then ends as on SIGTERM, unless it has a
// certificate to renew. If it was ignored at the start, as under nohup, it stays ignored. SIGUSR1
// means nothing here, and must not end the hub.
void take_signals(asio::signal_set& signals, const settings& chosen) {
    for (const int each : {SIGINT, SIGTERM}) signals.add(each);
    struct sigaction before {};
    if (!speaks_tls(chosen) && ::sigaction(SIGHUP, nullptr, &before) == 0 &&
        before.sa_handler != SIG_IGN)
        signals.add(SIGHUP);
    std::signal(SIGUSR1, SIG_IGN);
}

void run(sse::server& server, const settings& chosen, const std::vector<std::string>& command,
         output& out) {
    server.route("GET", "/", [page = page_for(chosen)](sse::stream& client) {
        return send_page(page, client);
    });
    server.route("GET", "/sse.js", sse::script());
    const auto authorize = [&](const sse::request& r) { return let_publish(r, chosen.token); };
    server.route("POST", "/publish/*", sse::publish_endpoint(server, authorize));
    if (!chosen.metrics.empty()) {
        try {
            server.route("GET", chosen.metrics, sse::metrics(server));
        } catch (const std::invalid_argument& wrong) {
            throw usage_error("--metrics '" + chosen.metrics + "': " + wrong.what());
        }
    }
    server.group("/hub", {.authorize = chosen.options.hooks.authorize})
        .route("GET", "/stats", [&server, node = chosen.options.node](sse::stream& client) {
            return send_stats(server, node, client);
        });

    asio::io_context io(1);
    std::atomic<milliseconds::rep> window_asked{-1};
    if (!chosen.admin_token.empty()) {
        for (const char* const path : {"/admin", "/admin/"}) {
            server.route("GET", path, [](sse::stream& client) {
                return client.respond(200, "text/html; charset=utf-8", hub_admin_page);
            });
        }
        const auto guard = [token = chosen.admin_token](const sse::request& request) {
            return let_administrate(request, token);
        };
        sse::admin(server, guard, {.drain = [&](milliseconds window) {
                       window_asked = window.count();
                       io.stop();
                   }});
    }
    asio::signal_set signals(io);
    take_signals(signals, chosen);
    signals.async_wait([&](std::error_code, int) { io.stop(); });
    bool is_replaced = false;
    asio::co_spawn(io, be_replaced(server, command, out), [&](std::exception_ptr failure) {
        rethrow(failure);
        is_replaced = true;
        io.stop();
    });
    io.poll(); // from here on SIGUSR2 does not end the hub
    listen(server, chosen);
    out.say("hub: open " + urls(server, chosen));
    sse::notify_systemd("READY=1");
    asio::co_spawn(io, feed_watchdog(server), rethrow);

    asio::co_spawn(io,
                   run_feed(server,
                            [&](sse::server&) {
                                out.complain(out.warnings.due());
                                return milliseconds(1000);
                            }),
                   rethrow);
    if (speaks_tls(chosen)) asio::co_spawn(io, renew_tls(server, chosen, out), rethrow);
    if (chosen.demo)
        for (demo::feed& feed : demo::feeds())
            asio::co_spawn(io, run_feed(server, std::move(feed)), rethrow);
    io.run();

    // A second Ctrl-C or SIGTERM ends the program at once. A second SIGHUP does not: a shell that
    // exits sends another one.
    signals.clear();
    std::signal(SIGHUP, SIG_IGN);
    if (!is_replaced) sse::notify_systemd("STOPPING=1");
    const std::uint64_t clients = server.counters().streams;
    sse::drain_options how{.window = window_asked < 0 ? chosen.options.drain_window
                                                      : milliseconds(window_asked)};
    if (is_replaced) { // there is somebody to go to at once
        how.window = how.window.count() > 0 ? how.window : milliseconds(2000);
        how.retry = milliseconds(1000);
    }
    const sse::drain_result gone = how.window.count() > 0 ? server.drain(how) : sse::drain_result{};
    server.stop();
    server.join();
    out.complain(out.warnings.due(hub_log::once_a_second::clock::time_point::max()));
    out.say("hub: disconnected " + std::to_string(clients) +
            (clients == 1 ? " client" : " clients") +
            (gone.cut > 0 ? ", " + std::to_string(gone.cut) + " of them cut off" : ""));
}

int main(int argc, char** argv) {
    program::keep_standard_descriptors();
    program::survive_closed_output();
    output out;
    try {
        settings chosen = hub_options::read_flags(std::span(argv + 1, argv + argc));
        if (chosen.help) {
            hub_options::print_help(std::cout);
        } else if (chosen.version) {
            std::cout << "hub " SSE_VERSION_STRING "\n";
        } else {
            const std::unique_ptr<sse::server> server = make_server(chosen, out);
            run(*server, chosen, {argv, argv + argc}, out);
        }
        return std::cout.flush() ? 0 : 1;
    } catch (const usage_error& wrong) {
        out.complain("hub: " + std::string(wrong.what()) + "\nhub --help lists the flags.");
        return 2;
    } catch (const std::exception& failure) {
        out.complain("hub: " + as_the_hub_says(failure.what()));
        return 1;
    }
}
