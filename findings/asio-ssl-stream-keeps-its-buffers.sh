#!/usr/bin/env bash
# An idle asio::ssl::stream keeps about 83 KB of heap, six times what OpenSSL itself needs for the
# same connection, and SSL_MODE_RELEASE_BUFFERS, which Asio sets by itself, does not lower it.
#
# Library    standalone Asio 1.22.1 (`libasio-dev` 1:1.22.1-1) with OpenSSL 3.0 (`libssl-dev`
#            3.0.22-1~deb12u2), both of Debian 12. Needs apt-get, g++.
# Guess      asio::ssl::stream is a thin wrapper: an idle connection costs what an SSL object costs, and
#            with SSL_MODE_RELEASE_BUFFERS the two record buffers of 16 KB are given back.
# Behaviour  Each stream has two vectors of 17 KB and a BIO pair with two rings of 17 KB of its own,
#            allocated in the constructor and kept for life. OpenSSL's buffers are given back; these
#            are not OpenSSL's.
# Seen       (heap of one end after the handshake, in KB: the difference over 50 connections)
#            SSL on a descriptor, RELEASE_BUFFERS: 14
#            asio::ssl::stream: 83
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libasio-dev=1:1.22.1-1 libssl-dev=3.0.22-1~deb12u2 \
    libssl3=3.0.22-1~deb12u2 openssl=3.0.22-1~deb12u2 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
multi=$(gcc -print-multiarch)
export LD_LIBRARY_PATH=$PWD/usr/lib/$multi
usr/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 \
    -subj /CN=localhost -keyout key.pem -out cert.pem 2>/dev/null

cat >try.cpp <<'CPP'
#include <asio.hpp>
#include <asio/ssl.hpp>
#include <fcntl.h>
#include <malloc.h>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>
#include <sys/socket.h>

using local = asio::local::stream_protocol;
constexpr int count = 50;

// The other end lives in OpenSSL alone, the same in both measurements, and is counted out.
static SSL* client_of(SSL_CTX* context, int fd) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    SSL* client = SSL_new(context);
    SSL_set_fd(client, fd);
    SSL_set_connect_state(client);
    return client;
}

static long per_connection(SSL_CTX* context, asio::ssl::context* wrapped) {
    asio::io_context io;
    std::vector<std::unique_ptr<asio::ssl::stream<local::socket>>> streams;
    std::vector<SSL*> servers, clients;
    std::vector<int> ends;
    long client_bytes = 0;
    const size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (int i = 0; i < count; ++i) {
        int fds[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
        SSL* client = client_of(context, fds[1]);
        clients.push_back(client);
        bool done = false;
        SSL* server = nullptr;
        if (wrapped) {
            streams.push_back(std::make_unique<asio::ssl::stream<local::socket>>(
                local::socket(io, local(), fds[0]), *wrapped));
            streams.back()->async_handshake(asio::ssl::stream_base::server,
                                            [&](asio::error_code failed) { done = !failed; });
        } else {
            fcntl(fds[0], F_SETFL, O_NONBLOCK);
            server = SSL_new(context);
            SSL_set_fd(server, fds[0]);
            SSL_set_accept_state(server);
            servers.push_back(server);
        }
        for (int turn = 0; turn < 1000 && !(done && SSL_is_init_finished(client)); ++turn) {
            SSL_do_handshake(client);
            if (server) done = SSL_do_handshake(server) == 1;
            io.restart();
            io.poll();
        }
        char nothing[1];
        SSL_read(client, nothing, 1); // the session tickets
        ends.push_back(fds[1]);
    }
    const size_t both = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (SSL* client : clients) SSL_free(client);
    client_bytes = static_cast<long>(both - mallinfo2().uordblks - mallinfo2().hblkhd);
    const long all = static_cast<long>(both - before) - client_bytes;
    for (SSL* server : servers) SSL_free(server);
    return all / count / 1024;
}

int main() {
    asio::ssl::context wrapped(asio::ssl::context::tls);
    wrapped.use_certificate_chain_file("cert.pem");
    wrapped.use_private_key_file("key.pem", asio::ssl::context::pem);
    SSL_CTX* context = wrapped.native_handle();
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    per_connection(context, nullptr); // what is made once
    const long plain = per_connection(context, nullptr);
    per_connection(context, &wrapped);
    const long asio_stream = per_connection(context, &wrapped);
    std::printf("SSL on a descriptor, RELEASE_BUFFERS: %ld\nasio::ssl::stream: %ld\n", plain, asio_stream);
    return asio_stream > 4 * plain && asio_stream > 60 ? 0 : 1;
}
CPP
g++ -std=c++17 -O0 -I usr/include -I "usr/include/$multi" try.cpp -L "usr/lib/$multi" -lssl -lcrypto \
    -pthread -o try
timeout 60 ./try || { echo "the behaviour has changed" >&2; exit 1; }
