// tls_end.hpp - one end of TLS between bytes and bytes, without a socket: a test sends what comes
// out as it likes, cut, late, broken. By OpenSSL; it shares no code with sse.hpp.
#pragma once

#include "certificates.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include <openssl/err.h>
#include <openssl/ssl.h>

namespace support {

struct tls_failure : std::runtime_error {
    using runtime_error::runtime_error;
};

struct tls_wish {
    bool is_server = false;
    int oldest = TLS1_2_VERSION;
    int newest = TLS1_3_VERSION;
    std::string ca = {}; ///< Empty: test_authority().
    identity own = {};   ///< Empty for a client: none; for a server: test_server().
    std::string host = "localhost";
    std::string ciphers = {};           ///< Of TLS 1.2. Empty: those of OpenSSL.
    std::string protocols = "http/1.1"; ///< One that is offered; empty: none.

    friend bool operator==(const tls_wish&, const tls_wish&) = default;
};

class tls_end {
public:
    explicit tls_end(const tls_wish& wish = {}) : ssl_(SSL_new(context_of(wish).get())) {
        if (!ssl_) throw tls_failure(reason());
        in_ = BIO_new(BIO_s_mem());
        out_ = BIO_new(BIO_s_mem());
        BIO_set_mem_eof_return(in_, -1);
        SSL_set_bio(ssl_.get(), in_, out_);
        if (wish.is_server) {
            SSL_set_accept_state(ssl_.get());
            return;
        }
        SSL_set_connect_state(ssl_.get());
        SSL_set_tlsext_host_name(ssl_.get(), wish.host.c_str());
        SSL_set1_host(ssl_.get(), wish.host.c_str());
        if (wish.protocols.empty()) return;
        const std::string list = static_cast<char>(wish.protocols.size()) + wish.protocols;
        SSL_set_alpn_protos(ssl_.get(), reinterpret_cast<const unsigned char*>(list.data()),
                            static_cast<unsigned>(list.size()));
    }

    /// What came from the other end. Returns the plain text in it.
    std::string open(std::string_view bytes) {
        if (!bytes.empty()) BIO_write(in_, bytes.data(), static_cast<int>(bytes.size()));
        if (!shake_hands()) return {};
        std::string plain;
        for (char piece[16 * 1024];;) {
            const int n = SSL_read(ssl_.get(), piece, sizeof piece);
            if (n <= 0 && !settle(n)) return plain;
            if (n > 0) plain.append(piece, static_cast<std::size_t>(n));
        }
    }
    std::string seal(std::string_view plain) {
        const int n =
            plain.empty() ? 0 : SSL_write(ssl_.get(), plain.data(), static_cast<int>(plain.size()));
        if (n < static_cast<int>(plain.size())) settle(n);
        return take_output();
    }
    /// With a response, or without.
    std::string change_keys(bool both = false) {
        SSL_key_update(ssl_.get(), both ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
        SSL_do_handshake(ssl_.get());
        ERR_clear_error();
        return take_output();
    }
    std::string say_goodbye() {
        SSL_shutdown(ssl_.get());
        // Within a handshake it fails, and what failed is noted for the whole thread: the next end
        // would take it for its own.
        ERR_clear_error();
        return take_output();
    }
    /// What is to be sent to the other end.
    std::string take_output() {
        char* bytes = nullptr;
        const long size = BIO_get_mem_data(out_, &bytes);
        const std::string taken(bytes, static_cast<std::size_t>(size));
        BIO_reset(out_);
        return taken;
    }

    bool shake_hands() {
        if (SSL_is_init_finished(ssl_.get())) return true;
        const int result = SSL_do_handshake(ssl_.get());
        if (result != 1) settle(result);
        return result == 1;
    }
    bool is_established() const { return SSL_is_init_finished(ssl_.get()) == 1; }
    /// Whether the other end has said that nothing follows.
    bool is_whole() const { return SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN; }
    SSL* native_handle() const { return ssl_.get(); }

private:
    struct release {
        void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
        void operator()(SSL* p) const { SSL_free(p); }
    };

    using context = std::unique_ptr<SSL_CTX, release>;

    /// It takes as long to make as a handshake: the usual one is made once.
    static std::shared_ptr<SSL_CTX> context_of(const tls_wish& wish) {
        static const std::shared_ptr<SSL_CTX> usual = make_context({});
        return wish == tls_wish() ? usual : std::shared_ptr<SSL_CTX>(make_context(wish));
    }
    static context make_context(const tls_wish& wish) {
        context made(SSL_CTX_new(wish.is_server ? TLS_server_method() : TLS_client_method()));
        SSL_CTX* const c = made.get();
        SSL_CTX_set_security_level(c, 0); // old versions need it
        // It sends what the file has, and thousands need little memory.
        SSL_CTX_set_mode(c, SSL_MODE_NO_AUTO_CHAIN | SSL_MODE_RELEASE_BUFFERS);
        SSL_CTX_set_min_proto_version(c, wish.oldest);
        SSL_CTX_set_max_proto_version(c, wish.newest);
        if (!wish.ciphers.empty()) check(SSL_CTX_set_cipher_list(c, wish.ciphers.c_str()));
        const std::string& ca = wish.ca.empty() ? test_authority().file() : wish.ca;
        check(SSL_CTX_load_verify_locations(c, ca.c_str(), nullptr));
        if (!wish.is_server) SSL_CTX_set_verify(c, SSL_VERIFY_PEER, nullptr);
        const identity& own = wish.own.key.empty() && wish.is_server ? test_server() : wish.own;
        if (!own.key.empty()) {
            check(SSL_CTX_use_certificate_chain_file(c, own.certificate.c_str()));
            check(SSL_CTX_use_PrivateKey_file(c, own.key.c_str(), SSL_FILETYPE_PEM));
        }
        return made;
    }

    static void check(int good) {
        if (good != 1) throw tls_failure(reason());
    }
    static std::string reason() {
        const unsigned long code = ERR_get_error();
        ERR_clear_error();
        const char* const text = ERR_reason_error_string(code);
        return text ? text : "no reason";
    }
    /// Always false, unless it throws.
    bool settle(int result) {
        const int why = SSL_get_error(ssl_.get(), result);
        if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_ZERO_RETURN) return false;
        const long verdict = SSL_get_verify_result(ssl_.get());
        const std::string text = reason();
        throw tls_failure(verdict == X509_V_OK ? text : X509_verify_cert_error_string(verdict));
    }

    std::unique_ptr<SSL, release> ssl_; // keeps its context
    BIO* in_ = nullptr;                 // of ssl_
    BIO* out_ = nullptr;
};

} // namespace support
