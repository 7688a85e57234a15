// mercure.cpp - for those who come from Mercure: its requests, tokens and topics. Run it, then:
// MERCURE_JWT_KEY='!ChangeThisMercureHubJWTSecretKey!' mercure     (HS256; or PEM, see below)
// curl -gN 'http://localhost:8080/.well-known/mercure?topic=https://example.com/books/{id}'
// curl -H "Authorization: Bearer $TOKEN" -d topic=https://example.com/books/1 -d data=hello
//     http://localhost:8080/.well-known/mercure
//
// POST takes a form: topic (several times: one update of all of them), data, private, id, type,
// retry. The claim mercure.publish of the token must have each topic. GET follows ?topic=, several
// times; private updates come to those alone whose mercure.subscribe has one of their topics too. A
// client goes on after Last-Event-ID or ?lastEventID=, and its stream ends when its token expires.
//
// Topics are any text. A selector, in a query or a claim, is a topic, "*", or a template with
// simple variables: {id} stands for letters, digits and -._~% (RFC 6570 level 1). Other
// expressions, such as
// {?x} or {/x}, are refused. Not here: the subscription API, and discovery, which is up to the
// pages.
#include "sse.hpp"

#include "program.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

using texts = std::vector<std::string>;

// >>topics ///////////////////////////////////////////////////////////////////////////////////////
// An update is published to /public/<topic>/<topic>... or /private/..., each topic one segment.

bool is_value(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-._~%").find(c) != std::string_view::npos;
}

bool is_selector(std::string_view text) {
    for (; !text.empty(); text.remove_prefix(1)) {
        if (text.front() == '}') return false;
        if (text.front() != '{') continue;
        const std::size_t end = text.find('}');
        if (end == text.npos || end == 1) return false;
        const std::string_view name = text.substr(1, end - 1);
        const auto fits = [](char c) { return c == '_' || (is_value(c) && c != '-' && c != '~'); };
        if (!std::all_of(name.begin(), name.end(), fits)) return false;
        text.remove_prefix(end);
    }
    return true;
}

// Follows all ways to read the topic at once: no template makes it slow.
bool matches(std::string_view selector, std::string_view topic) {
    if (selector == "*" || selector == topic) return true;
    if (selector.find('{') == selector.npos || !is_selector(selector)) return false;
    std::vector<bool> at(topic.size() + 1); // the places that what was read of it may end at
    at[0] = true;
    while (!selector.empty()) {
        std::vector<bool> next(at.size());
        const bool variable = selector.front() == '{';
        for (std::size_t i = 0; i < at.size(); ++i) {
            const bool more = i > 0 && (variable ? next[i - 1] && is_value(topic[i - 1])
                                                 : at[i - 1] && topic[i - 1] == selector.front());
            next[i] = more || (variable && at[i]);
        }
        selector.remove_prefix(variable ? selector.find('}') + 1 : 1);
        at = std::move(next);
    }
    return at.back();
}

bool match_some(const texts& selectors, std::string_view topic) {
    return std::any_of(selectors.begin(), selectors.end(),
                       [&](const std::string& one) { return matches(one, topic); });
}

std::string segment_of(std::string_view topic) {
    constexpr std::string_view hex = "0123456789ABCDEF";
    std::string out;
    for (const char c : topic) {
        const auto code = static_cast<unsigned char>(c);
        const bool plain = code > 0x20 && code != 0x7f && c != '/' && c != '%' && c != '.';
        if (plain)
            out += c;
        else
            out.append("%").append(1, hex[code / 16]).append(1, hex[code % 16]);
    }
    return out;
}

// The topics of an update, of the path that it was published to.
texts topics_in(std::string_view path) {
    const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'A' + 10; };
    texts topics;
    path.remove_prefix(std::min(path.find('/', 1), path.size()));
    for (std::size_t i = 0; i < path.size(); ++i) {
        if (path[i] == '/') {
            topics.emplace_back();
        } else if (path[i] != '%') {
            topics.back() += path[i];
        } else {
            topics.back() += static_cast<char>(digit(path[i + 1]) * 16 + digit(path[i + 2]));
            i += 2;
        }
    }
    return topics;
}

// >>requests /////////////////////////////////////////////////////////////////////////////////////

struct refusal : std::runtime_error {
    refusal(int answered, const std::string& why) : std::runtime_error(why), status(answered) {}
    int status;
};

std::optional<std::string> field(const std::string& form, std::string_view name) {
    const texts values = sse::form_values(form, name);
    return values.empty() ? std::nullopt : std::optional(values.front());
}

asio::awaitable<std::string> publish(sse::server& server, const sse::jwt& tokens,
                                     sse::stream& client) {
    // A cookie would let any page publish for its visitor.
    if (!client.request().header("Authorization")) throw refusal(401, "a token is missing");
    const auto token = tokens.token_of(client.request());
    if (!token) throw refusal(401, "a token is missing");
    const texts allowed = tokens.check(*token).publish;
    const std::string form = co_await client.body();
    const bool is_private = field(form, "private").has_value();
    const texts topics = sse::form_values(form, "topic");
    if (topics.empty()) throw refusal(400, "topic is missing");
    std::string path = is_private ? "/private" : "/public";
    for (const std::string& topic : topics) {
        if (topic.empty()) throw refusal(400, "a topic is empty");
        if (!match_some(allowed, topic)) throw refusal(403, "the token is not for " + topic);
        path += "/" + segment_of(topic);
    }
    const auto id = field(form, "id"), retry = field(form, "retry");
    const std::string type = field(form, "type").value_or(""),
                      data = field(form, "data").value_or("");
    sse::message update{.event = type, .data = data};
    if (id && !id->empty()) update.id = *id;
    if (retry) {
        std::int64_t time = -1; // refused below, as what does not fit
        const char* const end = retry->data() + retry->size();
        if (std::from_chars(retry->data(), end, time).ptr != end) time = -1;
        update.retry = std::chrono::milliseconds(time);
    }
    if (const auto wrong = sse::check(update)) throw refusal(400, wrong.message());
    const std::uint64_t number = co_await server.async_publish(path, update);
    if (update.id) co_return *id;
    const std::string newest = server.last_id();
    co_return newest.substr(0, newest.rfind('-') + 1) + std::to_string(number);
}

asio::awaitable<void> take_update(sse::server& server, const sse::jwt& tokens,
                                  sse::stream& client) {
    int status = 200;
    std::string text;
    try {
        text = co_await publish(server, tokens, client);
    } catch (const refusal& wrong) {
        status = wrong.status;
        text = wrong.what();
    } catch (const sse::jwt_error&) {
        status = 401;
        text = "the token is not valid";
    } catch (const std::system_error& wrong) {
        if (sse::client_gone(wrong.code())) throw;
        status = wrong.code() == sse::errc::bad_topic || wrong.code() == sse::errc::reserved_id
                     ? 400
                     : 503;
        text = wrong.what();
    }
    if (status == 401) client.add_header("WWW-Authenticate", "Bearer");
    co_await client.respond(status, "text/plain; charset=utf-8", text);
}

/// Whether an update has a topic that one of the selectors matches, and one that is among its own.
std::function<bool(const sse::published&)> wants(texts selectors, std::optional<texts> own = {}) {
    return [selectors = std::move(selectors), own = std::move(own)](const sse::published& update) {
        const texts topics = topics_in(update.topic());
        const auto has_one_of = [&](const texts& patterns) {
            return std::any_of(topics.begin(), topics.end(), [&](const std::string& topic) {
                return match_some(patterns, topic);
            });
        };
        return has_one_of(selectors) && (!own || has_one_of(*own));
    };
}

asio::awaitable<void> follow(const sse::jwt& tokens, sse::stream& client) {
    const sse::request& r = client.request();
    const texts selectors = r.query_values("topic");
    std::string wrong;
    if (selectors.empty() || selectors.size() > 100) wrong = "give 1 to 100 topics\n";
    for (const std::string& one : selectors)
        if (!is_selector(one)) wrong = "of templates only variables such as {id} are known here\n";
    if (!wrong.empty()) co_return co_await client.respond(400, "text/plain", wrong);

    sse::jwt_claims claims;
    const auto token = tokens.token_of(r);
    bool valid = true;
    try {
        if (token) claims = tokens.check(*token);
    } catch (const sse::jwt_error&) { valid = false; }
    if (!valid) {
        client.add_header("WWW-Authenticate", "Bearer error=\"invalid_token\"");
        co_return co_await client.respond(401, "text/plain", "the token is not valid\n");
    }
    if (claims.expires) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            *claims.expires - std::chrono::system_clock::now());
        const std::chrono::milliseconds least(1), most = std::chrono::hours(24 * 21);
        client.end_after(std::clamp(left, least, most));
    }
    client.subscribe("/public", {.filter = wants(selectors)});
    if (claims.subscribe.empty()) co_return;
    client.subscribe("/private", {.filter = wants(selectors, claims.subscribe)});
}

sse::jwt_key key_of_environment() {
    const auto variable = [](const char* name) {
        const char* const value = std::getenv(name);
        return std::string(value ? value : "");
    };
    const std::string name = variable("MERCURE_JWT_ALG"), key = variable("MERCURE_JWT_KEY");
    const std::pair<std::string_view, sse::jwt_algorithm> known[] = {
        {"", sse::jwt_algorithm::hs256},
        {"HS256", sse::jwt_algorithm::hs256},
        {"RS256", sse::jwt_algorithm::rs256},
        {"ES256", sse::jwt_algorithm::es256},
        {"EdDSA", sse::jwt_algorithm::eddsa}};
    for (const auto& [one, algorithm] : known)
        if (one == name) return {algorithm, key};
    throw std::runtime_error("MERCURE_JWT_ALG is one of HS256, RS256, ES256 and EdDSA");
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "mercure [ADDRESS]", [&] {
        sse::jwt_options how;
        how.keys = {key_of_environment()};
        how.must_expire = false;             // as Mercure has it; better for you: true
        how.cookie = "mercureAuthorization"; // and it takes these two
        how.parameter = "authorization";
        const sse::jwt tokens(how);
        sse::options options;
        options.handle_signals = true;
        options.hooks.authorize = [](const sse::request&) -> asio::awaitable<sse::access> {
            co_return sse::access::refuse(404); // /subscribe would give what is private to anybody
        };
        sse::server server(options);
        server.route("GET", "/.well-known/mercure",
                     [&](sse::stream& client) { return follow(tokens, client); });
        server.route("POST", "/.well-known/mercure",
                     [&](sse::stream& client) { return take_update(server, tokens, client); });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/.well-known/mercure" << std::endl;
        server.join();
    });
}
