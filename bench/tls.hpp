// tls.hpp - TLS as a bare loop over OpenSSL has it, for the floor and for the client of all
// streams; and nginx that speaks it in front of a server. Where SSE_ENABLE_TLS is defined.
#pragma once

#include "bench.hpp"

#include "../tests/support/certificates.hpp"
#include "../tests/support/free_port.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <memory>

#include <openssl/err.h>
#include <openssl/ssl.h>

namespace bench {

struct ssl_free {
    void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
    void operator()(SSL* p) const { SSL_free(p); }
};

/// Bytes as send() and recv() take them: -1 with EAGAIN where they would wait. Every handshake is a
/// whole one.
class tls_socket {
public:
    tls_socket() = default;
    /// A server's has the settings that sse.hpp has.
    tls_socket(int fd, bool is_server) : ssl_(SSL_new(context(is_server))) {
        SSL_set_fd(ssl_.get(), fd);
        if (is_server)
            SSL_set_accept_state(ssl_.get());
        else
            SSL_set_connect_state(ssl_.get());
    }

    explicit operator bool() const noexcept { return ssl_ != nullptr; }
    /// Goes on with the handshake; 1 once it is complete.
    int shake_hands() {
        return attempt([&] { return SSL_do_handshake(ssl_.get()); });
    }
    ssize_t send(const char* bytes, std::size_t size) {
        return attempt([&] { return SSL_write(ssl_.get(), bytes, static_cast<int>(size)); });
    }
    ssize_t receive(char* to, std::size_t size) {
        return attempt([&] { return SSL_read(ssl_.get(), to, static_cast<int>(size)); });
    }

private:
    static SSL_CTX* context(bool is_server) {
        static const std::unique_ptr<SSL_CTX, ssl_free> made[] = {make(false), make(true)};
        return made[is_server].get();
    }

    static std::unique_ptr<SSL_CTX, ssl_free> make(bool is_server) {
        signal(SIGPIPE, SIG_IGN); // OpenSSL's own sockets raise it
        std::unique_ptr<SSL_CTX, ssl_free> made(
            SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method()));
        SSL_CTX_set_min_proto_version(made.get(), TLS1_2_VERSION);
        SSL_CTX_set_session_cache_mode(made.get(), SSL_SESS_CACHE_OFF);
        SSL_CTX_set_mode(made.get(), SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                         SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        if (!is_server) {
            SSL_CTX_set_read_ahead(made.get(), 1);
            return made;
        }
        const support::identity& own = support::test_server();
        if (SSL_CTX_use_certificate_chain_file(made.get(), own.certificate.c_str()) != 1 ||
            SSL_CTX_use_PrivateKey_file(made.get(), own.key.c_str(), SSL_FILETYPE_PEM) != 1)
            throw std::runtime_error("OpenSSL does not take the certificate");
        return made;
    }

    template <class Operation>
    int attempt(Operation operation) {
        ERR_clear_error(); // what another connection has left would be taken for the cause
        const int result = operation();
        if (result > 0) return result;
        const int why = SSL_get_error(ssl_.get(), result);
        if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) return 0;
        errno = EAGAIN;
        return -1;
    }

    std::unique_ptr<SSL, ssl_free> ssl_;
};

/// nginx, one process, that speaks TLS in front of a server of this port.
class nginx_front {
public:
    static constexpr const char* program = "/usr/sbin/nginx";

    explicit nginx_front(std::uint16_t behind) {
        port_ = support::free_port();
        const std::string home = support::certificate_folder().string();
        const std::string settings = home + "/nginx-" + std::to_string(port_);
        std::ofstream(settings) << text(home, behind);
        std::string words[] = {"setpriv", "--pdeathsig", "KILL", program, "-e",
                               "stderr",  "-p",          home,   "-c",    settings};
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        if (const int failed =
                posix_spawnp(&child_, arguments[0], nullptr, nullptr, arguments.data(), environ))
            throw std::system_error(failed, std::generic_category(), "setpriv");
        for (int tries = 0; tries < 10'000 && !answers();
             ++tries) { // nothing tells that it listens
            if (waitpid(child_, nullptr, WNOHANG) == child_)
                throw std::runtime_error("nginx ended");
            poll(nullptr, 0, 1);
        }
    }
    ~nginx_front() {
        kill(child_, SIGKILL);
        waitpid(child_, nullptr, 0);
    }
    nginx_front(const nginx_front&) = delete;
    nginx_front& operator=(const nginx_front&) = delete;

    std::uint16_t port() const noexcept { return port_; }
    pid_t process() const noexcept { return child_; }

private:
    // As examples/proxies/nginx.conf, with TLS as sse.hpp has it.
    static std::string text_of_server(const support::identity& own) {
        return "ssl_certificate " + own.certificate + "; ssl_certificate_key " + own.key +
               "; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache off;\n";
    }
    std::string text(const std::string& home, std::uint16_t behind) const {
        std::string temporary;
        for (const char* const kind : {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"})
            temporary += std::string(kind) + "_temp_path " + home + "/" + kind + ";\n";
        return "daemon off; master_process off; worker_processes 1; pid " + home +
               "/nginx.pid; error_log stderr crit;\n" +
               "worker_rlimit_nofile 20000; events { worker_connections 20000; }\n"
               "http { access_log off;\n" +
               temporary + "server { listen 127.0.0.1:" + std::to_string(port_) +
               " ssl backlog=4096;\n" + text_of_server(support::test_server()) +
               "location / { proxy_pass http://127.0.0.1:" + std::to_string(behind) +
               ";\nproxy_http_version 1.1; proxy_set_header Connection \"\"; "
               "proxy_set_header Host $http_host; proxy_read_timeout 600s; } } }\n";
    }

    static sockaddr_in loopback(std::uint16_t port) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons(port);
        return address;
    }

    bool answers() const {
        const int fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        const sockaddr_in address = loopback(port_);
        const bool done =
            connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
        close(fd);
        return done;
    }

    std::uint16_t port_ = 0;
    pid_t child_ = -1;
};

} // namespace bench
