// jwt.cpp - covers >>jwt, >>token: which tokens are believed, and what their holders may follow and
// publish.
#include "support/journal.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>

namespace jwt_test {

using namespace std::chrono_literals;
using namespace support;
using clock = std::chrono::system_clock;
using algorithm = sse::jwt_algorithm;

namespace {

std::string base64url(std::string_view bytes) {
    constexpr std::string_view digits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    std::string out;
    for (std::size_t at = 0; at < bytes.size(); at += 3) {
        std::uint32_t bits = 0;
        for (std::size_t i = 0; i < 3; ++i) {
            bits =
                bits << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0);
        }
        const std::size_t digits_of_it = std::min<std::size_t>(bytes.size() - at, 3) + 1;
        for (std::size_t i = 0; i < digits_of_it; ++i) { out += digits[bits >> (18 - 6 * i) & 63]; }
    }
    return out;
}

/// Whoever makes tokens: a key of one kind, and what it signs.
class issuer {
public:
    explicit issuer(algorithm a) : algorithm_(a) {
        EVP_PKEY* made = nullptr;
        if (a == algorithm::rs256) made = EVP_RSA_gen(2048);
        if (a == algorithm::es256) made = EVP_EC_gen("P-256");
        if (a == algorithm::eddsa) made = EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519");
        key_.reset(made, EVP_PKEY_free);
    }
    /// What checks its tokens: the public key, or the secret.
    std::string key() const {
        if (!key_) return secret;
        const std::shared_ptr<BIO> out(BIO_new(BIO_s_mem()), BIO_free);
        REQUIRE(PEM_write_bio_PUBKEY(out.get(), key_.get()) == 1);
        char* text = nullptr;
        const long size = BIO_get_mem_data(out.get(), &text);
        return {text, static_cast<std::size_t>(size)};
    }
    sse::jwt_key for_checks(std::string id = "") const {
        return {algorithm_, key(), std::move(id)};
    }

    std::string sign(const std::string& payload, std::string header = "") const {
        constexpr const char* names[] = {"HS256", "RS256", "ES256", "EdDSA"};
        if (header.empty()) {
            header = R"({"alg":")" + std::string(names[static_cast<int>(algorithm_)]) + "\"}";
        }
        const std::string covered = base64url(header) + "." + base64url(payload);
        return covered + "." + base64url(signature_of(covered));
    }
    std::string signature_of(const std::string& covered) const {
        const auto* const bytes = reinterpret_cast<const unsigned char*>(covered.data());
        if (!key_) return hmac(secret, covered);
        const std::shared_ptr<EVP_MD_CTX> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
        const EVP_MD* const digest = algorithm_ == algorithm::eddsa ? nullptr : EVP_sha256();
        REQUIRE(EVP_DigestSignInit(context.get(), nullptr, digest, nullptr, key_.get()) == 1);
        std::string out(1024, '\0');
        std::size_t size = out.size();
        auto* const to = reinterpret_cast<unsigned char*>(out.data());
        REQUIRE(EVP_DigestSign(context.get(), to, &size, bytes, covered.size()) == 1);
        out.resize(size);
        if (algorithm_ != algorithm::es256) return out;
        const auto* der = reinterpret_cast<const unsigned char*>(out.data());
        const std::shared_ptr<ECDSA_SIG> both(d2i_ECDSA_SIG(nullptr, &der, static_cast<long>(size)),
                                              ECDSA_SIG_free);
        std::string raw(64, '\0');
        auto* const numbers = reinterpret_cast<unsigned char*>(raw.data());
        REQUIRE(BN_bn2binpad(ECDSA_SIG_get0_r(both.get()), numbers, 32) == 32);
        REQUIRE(BN_bn2binpad(ECDSA_SIG_get0_s(both.get()), numbers + 32, 32) == 32);
        return raw;
    }
    static std::string hmac(std::string_view key, std::string_view text) {
        std::string out(32, '\0');
        unsigned size = 0;
        HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
             reinterpret_cast<const unsigned char*>(text.data()), text.size(),
             reinterpret_cast<unsigned char*>(out.data()), &size);
        return out;
    }

    static inline const std::string secret = "a secret of thirty-two bytes or more";

private:
    algorithm algorithm_;
    std::shared_ptr<EVP_PKEY> key_; // none: the secret
};

const issuer& of(algorithm a) {
    static const std::array<issuer, 4> all{issuer(algorithm::hs256), issuer(algorithm::rs256),
                                           issuer(algorithm::es256), issuer(algorithm::eddsa)};
    return all[static_cast<std::size_t>(a)];
}

constexpr std::array<algorithm, 4> every{algorithm::hs256, algorithm::rs256, algorithm::es256,
                                         algorithm::eddsa};
const clock::time_point now{std::chrono::seconds(1'800'000'000)};
const std::string later = "1800000100";

std::string claims(const std::string& more = "") { return R"({"exp":)" + later + more + "}"; }

/// Why a token is refused; empty if it is believed.
std::string fault(const sse::jwt& tokens, std::string_view token, clock::time_point at = now) {
    try {
        tokens.check(token, at);
        return "";
    } catch (const sse::jwt_error& wrong) { return wrong.what(); }
}

sse::jwt_options with_secret() {
    sse::jwt_options o;
    o.keys = {of(algorithm::hs256).for_checks()};
    return o;
}

// RFC 7515 A.1 to A.3, and RFC 8037 A.4.
const std::string rfc_payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcG"
                                "xlLmNvbS9pc19yb290Ijp0cnVlfQ";
const std::string rfc_hs256 = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." + rfc_payload +
                              ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const std::string rfc_secret =
    "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
const std::string rfc_rs256 = "eyJhbGciOiJSUzI1NiJ9." + rfc_payload +
                              ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__"
                              "dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujG"
                              "bds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_"
                              "nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0G"
                              "arZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-"
                              "eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgG"
                              "Y9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
const std::string rfc_rsa = R"(-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAofgWCuLjybRlzo0tZWJj
NiuSfb4p4fAkd/wWJcyQoTbji9k0l8W26mPddxHmfHQp+Vaw+4qPCJrcS2mJPMEz
P1Pt0Bm4d4QlL+yRT+SFd2lZS+pCgNMsD1W/YpRPEwOWvG6b32690r2jZ47soMZo
9wGzjb/7OMg0LOL+bSf63kpaSHSXndS5z5rexMdbBYUsLA9e+KXBdQOS+UTo7WTB
EMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6/I5IhlJH7aGhyxX
FvUK+DWNmoudF8NAco9/h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXp
oQIDAQAB
-----END PUBLIC KEY-----
)";
const std::string rfc_es256 =
    "eyJhbGciOiJFUzI1NiJ9." + rfc_payload +
    ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQx"
    "fKTUJqPP3-Kg6NU1Q";
const std::string rfc_p256 = R"(-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
)";
const std::string rfc_eddsa = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_"
                              "MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIb"
                              "QR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
const std::string rfc_ed25519 = R"(-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
)";

} // namespace

TEST_SUITE("tokens") {
    TEST_CASE("base64url has one text for each value") {
        using sse::detail::base64url_decode;
        std::string bytes;
        for (int i = 0; i < 300; ++i) {
            CHECK(base64url_decode(base64url(bytes)) == bytes);
            bytes += static_cast<char>(i * 7);
        }
        for (const std::string_view wrong :
             {"A", "AB=", "AA==", "A+", "A/", "AB", "AAB", "A A", "AAAAA"}) {
            CAPTURE(wrong);
            CHECK_FALSE(base64url_decode(wrong));
        }
    }

    TEST_CASE(
        "what the standards have as examples is believed, and not when a bit is another one") {
        const std::vector<std::tuple<algorithm, std::string, std::string>> examples{
            {algorithm::hs256, *sse::detail::base64url_decode(rfc_secret), rfc_hs256},
            {algorithm::rs256, rfc_rsa, rfc_rs256},
            {algorithm::es256, rfc_p256, rfc_es256}};
        const clock::time_point then{std::chrono::seconds(1'300'819'379)};
        for (const auto& [of_it, key, token] : examples) {
            CAPTURE(token);
            const sse::jwt tokens({.keys = {{of_it, key}}, .skew = 0s, .issuer = "joe"});
            CHECK(fault(tokens, token, then) == "");
            CHECK(fault(tokens, token, then + 1s) == "the token has expired");
            CHECK(tokens.check(token, then).expires == then + 1s);
            CHECK(has(tokens.check(token, then).payload, "is_root"));
            for (std::size_t at = 0; at < token.size(); at += 7) {
                std::string other = token;
                other[at] = other[at] == 'A' ? 'B' : 'A';
                if (other != token) CHECK_FALSE(fault(tokens, other, then).empty());
            }
        }
        // Its payload is no JSON: the signature is right.
        const sse::jwt tokens({.keys = {{algorithm::eddsa, rfc_ed25519}}});
        CHECK(has(fault(tokens, rfc_eddsa), "the JSON is wrong"));
        std::string other = rfc_eddsa;
        other[30] = other[30] == 'A' ? 'B' : 'A';
        CHECK(has(fault(tokens, other), "wrong signature"));
    }

    TEST_CASE("a token is checked with the keys of its algorithm, and with no other") {
        for (const algorithm signs : every) {
            for (const algorithm checks : every) {
                const sse::jwt tokens({.keys = {of(checks).for_checks()}});
                const std::string why = fault(tokens, of(signs).sign(claims()));
                CHECK((signs == checks ? why.empty() : has(why, "no key")));
            }
        }
        sse::jwt_options all;
        for (const algorithm each : every) all.keys.push_back(of(each).for_checks());
        const sse::jwt tokens(all);
        for (const algorithm each : every) {
            const std::string good = of(each).sign(claims());
            CHECK(fault(tokens, good) == "");
            const std::size_t end = good.rfind('.') + 1;
            CHECK(has(fault(tokens, good.substr(0, end)), "wrong signature"));
            CHECK(has(fault(tokens, good.substr(0, end) + base64url(std::string(64, '\0'))),
                      "wrong signature"));
            const issuer stranger(each);
            if (each != algorithm::hs256) {
                CHECK(has(fault(tokens, stranger.sign(claims())), "wrong signature"));
            }
            // A public key, taken for a secret.
            const std::string covered = base64url(R"({"alg":"HS256"})") + "." + base64url(claims());
            const std::string forged =
                covered + "." +
                base64url(
                    issuer::hmac(of(each).key() + (each == algorithm::hs256 ? "!" : ""), covered));
            CHECK(has(fault(tokens, forged), "wrong signature"));
        }
        for (const char* const name : {"none", "None", "NONE", "", "HS384", "HS512", "RS384",
                                       "PS256", "ES384", "hs256", "Ed25519", "HS256 "}) {
            const std::string header = R"({"alg":")" + std::string(name) + "\"}";
            CHECK(has(fault(tokens, of(algorithm::hs256).sign(claims(), header)), "no key"));
            CHECK(
                has(fault(tokens, base64url(header) + "." + base64url(claims()) + "."), "no key"));
        }
    }

    TEST_CASE("what is not a token is refused") {
        const sse::jwt tokens(with_secret());
        const issuer& by = of(algorithm::hs256);
        const std::string good = by.sign(claims());
        CHECK(fault(tokens, good) == "");
        for (const std::string& wrong : {std::string(""),
                                         std::string("."),
                                         std::string(".."),
                                         std::string("..."),
                                         good + ".",
                                         good + ".a",
                                         "." + good,
                                         good + "=",
                                         " " + good,
                                         good + "\n",
                                         std::string("a.b.c"),
                                         good.substr(0, good.rfind('.')),
                                         std::string(9000, 'a') + "..",
                                         by.sign("[]"),
                                         by.sign("{"),
                                         by.sign(""),
                                         by.sign(claims(",\"exp\":1")),
                                         by.sign(claims(), "{}"),
                                         by.sign(claims(), "{\"alg\":1}"),
                                         by.sign(claims(), R"({"alg":"HS256","alg":"HS256"})"),
                                         by.sign(claims(), R"({"alg":"HS256","crit":["exp"]})"),
                                         by.sign(claims(), R"({"alg":"HS256","b64":false})"),
                                         by.sign(claims(), R"({"alg":"HS256","kid":7})"),
                                         by.sign(R"({"exp":"1800000100"})"),
                                         by.sign(R"({"exp":-1})"),
                                         by.sign(R"({"exp":1e12})"),
                                         by.sign(R"({"exp":null})"),
                                         by.sign(R"({"exp":99999999999999999999})"),
                                         by.sign("{}"),
                                         by.sign(claims(R"(,"mercure":[])")),
                                         by.sign(claims(R"(,"mercure":{"publish":"*"})")),
                                         by.sign(claims(R"(,"mercure":{"publish":["*",1]})")),
                                         by.sign(claims(",\"sub\":1"))}) {
            CAPTURE(wrong);
            CHECK_FALSE(fault(tokens, wrong).empty());
        }
    }

    TEST_CASE("times hold, with the skew of the clocks and no more") {
        sse::jwt_options o = with_secret();
        o.skew = 10s;
        const sse::jwt tokens(o);
        const auto check = [&](const std::string& payload, clock::time_point at) {
            return fault(tokens, of(algorithm::hs256).sign(payload), at);
        };
        const clock::time_point exp = now + 100s;
        CHECK(check(claims(), exp + 9s) == "");
        CHECK(check(claims(), exp + 10s) == "the token has expired");
        CHECK(check(R"({"exp":1800000100.75})", exp + 9s) == "");
        CHECK(check(R"({"exp":9999999999})", exp) == "");
        CHECK(check(R"({"exp":1800000100000})", exp) == ""); // milliseconds: for ever, but no wrap
        CHECK(check(claims(R"(,"nbf":1800000010)"), now) == "");
        CHECK(check(claims(R"(,"nbf":1800000011)"), now) == "the token is not valid yet");
        CHECK(check(claims(R"(,"iat":1800000010)"), now) == "");
        CHECK(check(claims(R"(,"iat":1800000011)"), now) == "the token was issued in the future");
        CHECK(check("{}", now) == "the token has no exp");
        o.must_expire = false;
        CHECK(fault(sse::jwt(o), of(algorithm::hs256).sign("{}")) == "");
    }

    TEST_CASE("issuer and audience, if they are asked for") {
        sse::jwt_options o = with_secret();
        o.issuer = "joe";
        o.audience = "hub";
        const sse::jwt tokens(o);
        const auto check = [&](const std::string& more) {
            return fault(tokens, of(algorithm::hs256).sign(claims(more)));
        };
        CHECK(check(R"(,"iss":"joe","aud":"hub")") == "");
        CHECK(check(R"(,"iss":"joe","aud":["x","hub"])") == "");
        CHECK(has(check(R"(,"iss":"jim","aud":"hub")"), "issuer"));
        CHECK(has(check(R"(,"aud":"hub")"), "issuer"));
        CHECK(has(check(R"(,"iss":"joe")"), "audience"));
        CHECK(has(check(R"(,"iss":"joe","aud":["x"])"), "audience"));
        CHECK(has(check(R"(,"iss":"joe","aud":"hubs")"), "audience"));
    }

    TEST_CASE("a key with an id is for tokens that name it") {
        const std::string other(40, 'x');
        const sse::jwt tokens(
            {.keys = {{algorithm::hs256, other, "old"}, of(algorithm::hs256).for_checks("new")}});
        const issuer& by = of(algorithm::hs256);
        CHECK(fault(tokens, by.sign(claims(), R"({"alg":"HS256","kid":"new"})")) == "");
        CHECK(has(fault(tokens, by.sign(claims(), R"({"alg":"HS256","kid":"old"})")), "signature"));
        CHECK(has(fault(tokens, by.sign(claims(), R"({"alg":"HS256","kid":"x"})")), "no key"));
        CHECK(has(fault(tokens, by.sign(claims())), "no key"));
        const sse::jwt any({.keys = {{algorithm::hs256, other}, by.for_checks()}});
        CHECK(fault(any, by.sign(claims())) == "");
        CHECK(fault(any, by.sign(claims(), R"({"alg":"HS256","kid":"x"})")) == "");
    }

    TEST_CASE("keys of a wrong kind, short ones and other options are refused") {
        const auto refused = [](std::vector<sse::jwt_key> keys) {
            try {
                sse::jwt tokens({.keys = std::move(keys)});
                return std::string();
            } catch (const std::invalid_argument& wrong) { return std::string(wrong.what()); }
        };
        for (const algorithm wanted : every) {
            for (const algorithm given : every) {
                CHECK(refused({{wanted, of(given).key()}}).empty() == (wanted == given));
            }
            CHECK_FALSE(refused({{wanted, ""}}).empty());
            CHECK_FALSE(
                refused({{wanted, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"}})
                    .empty());
        }
        CHECK(has(refused({{algorithm::hs256, std::string(31, 'x')}}), "32 bytes"));
        CHECK(refused({{algorithm::hs256, std::string(32, 'x')}}).empty());
        const auto pem_of = [](EVP_PKEY* made) {
            const std::shared_ptr<EVP_PKEY> key(made, EVP_PKEY_free);
            const std::shared_ptr<BIO> out(BIO_new(BIO_s_mem()), BIO_free);
            REQUIRE(PEM_write_bio_PUBKEY(out.get(), key.get()) == 1);
            char* text = nullptr;
            const long size = BIO_get_mem_data(out.get(), &text);
            return std::string(text, static_cast<std::size_t>(size));
        };
        CHECK(has(refused({{algorithm::rs256, pem_of(EVP_RSA_gen(1024))}}), "2048 bits"));
        CHECK(has(refused({{algorithm::es256, pem_of(EVP_EC_gen("P-384"))}}), "P-256"));
        CHECK_THROWS_AS(sse::jwt({}), std::invalid_argument);
        CHECK_FALSE(
            refused(std::vector<sse::jwt_key>(17, of(algorithm::hs256).for_checks())).empty());
        for (const auto skew : {-1s, 301s}) {
            sse::jwt_options o = with_secret();
            o.skew = skew;
            CHECK_THROWS_AS(sse::jwt{o}, std::invalid_argument);
        }
    }

    TEST_CASE("topics of a claim: by whole segments, each with all below it") {
        using sse::detail::claim_covers;
        for (const auto& [pattern, topic] :
             std::vector<std::pair<std::string, std::string>>{{"*", ""},
                                                              {"*", "/a/b"},
                                                              {"/a", "/a"},
                                                              {"a/", "/a"},
                                                              {"/a", "/a/b"},
                                                              {"/a/{x}", "/a/1"},
                                                              {"/a/{x}", "/a/1/2"},
                                                              {"/{x}/b", "/a/b"}}) {
            CAPTURE(pattern);
            CAPTURE(topic);
            CHECK(claim_covers(pattern, topic));
        }
        for (const auto& [pattern, topic] :
             std::vector<std::pair<std::string, std::string>>{{"", ""},
                                                              {"", "/a"},
                                                              {"/", "/a"},
                                                              {"/a", ""},
                                                              {"/a", "/ab"},
                                                              {"/a/b", "/a"},
                                                              {"/a/{x}", "/a"},
                                                              {"/a/{x}", "/b/1"},
                                                              {"/{x}/b", "/a/c"},
                                                              {"/a/{}", "/a/1"},
                                                              {"/a/*", "/a/1"},
                                                              {"/a/../b", "/b"},
                                                              {"https://a/b", "/https:/a/b"}}) {
            CAPTURE(pattern);
            CAPTURE(topic);
            CHECK_FALSE(claim_covers(pattern, topic));
        }
    }
}

TEST_SUITE("tokens of clients") {
    /// A server whose streams and publishing want tokens.
    struct token_server {
        explicit token_server(sse::jwt_options o) : tokens(std::move(o)) {
            sse::options settings = with_threads(1);
            settings.hooks.authorize = tokens.followers();
            log.attach(settings);
            server = std::make_unique<running_server>(settings, [&](sse::server& s) {
                s.route("POST", "/publish/*", sse::publish_endpoint(s, tokens.publishers()));
            });
        }
        std::uint16_t port() const { return server->port(); }

        sse::jwt tokens;
        journal log;
        std::unique_ptr<running_server> server;
    };

    /// Of ann, who may follow /news and rooms, and publish to /rooms/1.
    std::string ann(std::chrono::milliseconds valid = 1h) {
        const auto until = std::chrono::duration_cast<std::chrono::milliseconds>(
                               (clock::now() + valid).time_since_epoch())
                               .count();
        return of(algorithm::hs256)
            .sign(R"({"sub":"ann","exp":)" + std::to_string(until / 1000) +
                  R"(,"mercure":{"subscribe":["/news","/rooms/{room}"],"publish":["/rooms/1"]}})");
    }

    TEST_CASE("a token admits to the topics that it names, as its subject") {
        token_server s(with_secret());
        const header_list with{{"Authorization", "bearer  " + ann()}};
        event_client client(s.port(), "/subscribe?topic=news&topic=rooms/7", with);
        CHECK(s.server->streams({.user = "ann"}).size() == 1);
        const auto status = [&](const std::string& target) {
            return http_get(s.port(), target, with).status;
        };
        CHECK(status("/subscribe") == 403);
        CHECK(status("/subscribe/rooms") == 403);
        CHECK(status("/subscribe?topic=news&topic=other") == 403);

        const auto post = [&](const std::string& topic, const std::string& token) {
            return http_request(
                s.port(), "POST", "/publish/" + topic,
                {{"Authorization", "Bearer " + token}, {"Content-Type", "text/plain"}}, "x");
        };
        CHECK(post("rooms/1", ann()).status == 202);
        const auto denied = post("rooms/2", ann());
        CHECK(denied.status == 403);
        CHECK(denied.header("WWW-Authenticate") == "Bearer error=\"insufficient_scope\"");
        CHECK(post("news", ann()).status == 403);
        CHECK(post("rooms/1", of(algorithm::hs256).sign(R"({"exp":9999999999})")).status == 403);
    }

    TEST_CASE("the reason of a refusal is in the log, and not told") {
        token_server s(with_secret());
        const auto none = http_get(s.port(), "/subscribe/news");
        CHECK(none.status == 401);
        CHECK(none.header("WWW-Authenticate") == "Bearer");
        const auto bad = http_get(s.port(), "/subscribe/news", {{"Authorization", "Bearer a.b.c"}});
        CHECK(bad.status == 401);
        CHECK(bad.header("WWW-Authenticate") == "Bearer error=\"invalid_token\"");
        CHECK(bad.body == "The token is not valid\n");
        const auto old =
            http_get(s.port(), "/subscribe/news", {{"Authorization", "Bearer " + ann(-1h)}});
        CHECK(old.status == 401);
        CHECK(old.body == bad.body);
        CHECK(eventually([&] {
            std::string all;
            for (const auto& line : s.log.taken()) all += line.detail + "\n";
            return has(all, "the token has a part that is not base64url") &&
                   has(all, "the token has expired");
        }));
    }

    TEST_CASE("a token may come in a cookie or a query, if it is told where") {
        const std::string token = ann();
        for (const bool on : {false, true}) {
            sse::jwt_options o = with_secret();
            if (on) o.cookie = "mercureAuthorization";
            if (on) o.parameter = "authorization";
            token_server s(o);
            const auto status = [&](const std::string& query, const header_list& headers) {
                connection peer(s.port());
                peer.send_request("GET", "/subscribe/news" + query, headers);
                return peer.read_head().status;
            };
            CHECK(status("?authorization=" + token, {}) == (on ? 200 : 401));
            CHECK(status("", {{"Cookie", "a=b; mercureAuthorization=" + token}}) ==
                  (on ? 200 : 401));
            CHECK(status("?authorization=" + token, {{"Authorization", "Bearer x"}}) == 401);
            CHECK(status("", {{"Authorization", "Basic x"}}) == 401);
        }
    }

    TEST_CASE("the stream ends when the token does") {
        sse::jwt_options o = with_secret();
        o.skew = 0s;
        token_server s(o);
        std::optional<event_client> client;
        REQUIRE(in_time([&] {
            const header_list token{{"Authorization", "Bearer " + ann(2500ms)}};
            client.emplace(s.port(), "/subscribe/news", token);
            return true;
        }));
        CHECK(client->wait_for_close() == ending::fin);
        CHECK(s.server->counters().ended[static_cast<std::size_t>(sse::end_reason::expired)] == 1);
    }
}

} // namespace jwt_test
