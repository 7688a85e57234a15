#!/usr/bin/env bash
# After SSL_write said WANT_WRITE, the record is already sealed: the next call must offer at least as
# many bytes, what they are is ignored, and SSL_MODE_ENABLE_PARTIAL_WRITE changes nothing of it.
#
# Library    OpenSSL 3.0, Debian 12's packages `libssl3` and `libssl-dev` 3.0.22-1~deb12u2. Needs
#            apt-get, gcc and libc6-dev.
# Guess      With ENABLE_PARTIAL_WRITE and ACCEPT_MOVING_WRITE_BUFFER a call that would have blocked
#            has taken nothing, as with send(): what is offered next is up to the caller, as is how much.
# Behaviour  The call has taken one record of at most 16 KiB, and owes it. A retry with fewer bytes is a
#            fatal "bad length". A retry with other bytes is accepted, and the old ones arrive.
# Seen       a retry with fewer bytes: -1, "bad length"
#            a retry with other bytes: accepted; the peer read the old bytes only
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libssl-dev=3.0.22-1~deb12u2 libssl3=3.0.22-1~deb12u2 \
    openssl=3.0.22-1~deb12u2 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
multi=$(gcc -print-multiarch)
export LD_LIBRARY_PATH=$PWD/usr/lib/$multi
usr/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
    -config usr/lib/ssl/openssl.cnf -keyout key.pem -out cert.pem 2>/dev/null ||
    usr/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 \
        -subj /CN=localhost -keyout key.pem -out cert.pem 2>/dev/null

cat >try.c <<'C'
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static char as[16000], bs[16000], buffer[65536];

/* A connection whose socket is full, so that the last SSL_write of 16,000 "a" owes its record. */
static void full_connection(SSL_CTX* context, SSL** server, SSL** client) {
    int fds[2], size = 4096;
    socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    for (int i = 0; i < 2; ++i) fcntl(fds[i], F_SETFL, O_NONBLOCK);
    *server = SSL_new(context);
    *client = SSL_new(context);
    SSL_set_fd(*server, fds[0]);
    SSL_set_fd(*client, fds[1]);
    SSL_set_accept_state(*server);
    SSL_set_connect_state(*client);
    for (int i = 0; i < 100 && !(SSL_is_init_finished(*server) && SSL_is_init_finished(*client)); ++i) {
        SSL_do_handshake(*client);
        SSL_do_handshake(*server);
    }
    while (SSL_read(*client, buffer, sizeof buffer) > 0) {}
    while (SSL_write(*server, as, sizeof as) > 0) {}
}

int main(void) {
    memset(as, 'a', sizeof as);
    memset(bs, 'b', sizeof bs);
    SSL_CTX* context = SSL_CTX_new(TLS_method());
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (SSL_CTX_use_certificate_file(context, "cert.pem", SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, "key.pem", SSL_FILETYPE_PEM) != 1) return 2;
    printf("%s\n", OpenSSL_version(OPENSSL_VERSION));

    SSL *server, *client;
    full_connection(context, &server, &client);
    ERR_clear_error();
    int taken = SSL_write(server, as, 100);
    const char* reason = ERR_reason_error_string(ERR_peek_error());
    printf("a retry with fewer bytes: %d, \"%s\"\n", taken, reason ? reason : "");
    int right = taken == -1 && reason && strcmp(reason, "bad length") == 0;

    full_connection(context, &server, &client);
    long got_a = 0, got_b = 0, others = 0;
    int accepted = 0;
    for (int round = 0; round < 1000; ++round) {
        int n = SSL_read(client, buffer, sizeof buffer);
        for (int i = 0; i < n; ++i) ++*(buffer[i] == 'a' ? &got_a : buffer[i] == 'b' ? &got_b : &others);
        if (!accepted && SSL_write(server, bs, sizeof bs) == sizeof bs) accepted = 1;
    }
    printf("a retry with other bytes: %s; the peer read %s\n", accepted ? "accepted" : "refused",
           got_b == 0 ? "the old bytes only" : "new bytes");
    return right && accepted && got_b == 0 && got_a % sizeof as == 0 ? 0 : 1;
}
C
gcc -O1 -Wall -I usr/include -I "usr/include/$multi" try.c -L "usr/lib/$multi" -lssl -lcrypto -o try
timeout 60 ./try || { echo "the behaviour has changed" >&2; exit 1; }
