#!/usr/bin/env bash
# A port cannot be bound again for some milliseconds after its acceptor was closed, if the process has just
# started a child: although the socket is FD_CLOEXEC, and posix_spawn() has returned.
#
# Library    standalone Asio 1.22.1 (`libasio-dev` 1:1.22.1-1 of Debian 12), glibc 2.36, Linux 6.18. Needs
#            apt-get, g++.
# Guess      posix_spawn() returns once the child runs its program; by then what is FD_CLOEXEC is closed
#            there. So with reuse_address the port is free as soon as close() has returned.
# Behaviour  The parent goes on as soon as the child has let go of its memory, which execve() does some
#            steps before it closes descriptors. Until then the child has the socket, which still listens,
#            and bind() says EADDRINUSE. What ends it for both is shutdown(SHUT_RD) before close(): by it
#            Linux stops listening at once.
# Seen       closed after a spawn:           mostly refused, in 300 rounds
#            with shutdown(SHUT_RD) first:   0 refused
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libasio-dev=1:1.22.1-1 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done

cat >try.cpp <<'CPP'
#include <asio.hpp>
#include <cstdio>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

// How often a port could not be bound again.
int refused(bool shuts_down) {
    using asio::ip::tcp;
    asio::io_context io;
    int count = 0;
    for (int round = 0; round < 300; ++round) {
        tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
        const auto where = acceptor.local_endpoint();
        ::fcntl(acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
        char name[] = "/bin/true";
        char* words[] = {name, nullptr};
        pid_t child = 0;
        if (::posix_spawn(&child, name, nullptr, nullptr, words, environ) != 0) return -1;
        if (shuts_down) ::shutdown(acceptor.native_handle(), SHUT_RD);
        acceptor.close();
        tcp::acceptor next(io);
        next.open(tcp::v4());
        next.set_option(tcp::acceptor::reuse_address(true));
        asio::error_code failed;
        next.bind(where, failed);
        if (failed == asio::error::address_in_use) ++count;
        ::waitpid(child, nullptr, 0);
    }
    return count;
}

int main() {
    const int closed = refused(false), shut_down = refused(true);
    std::printf("closed after a spawn: %d refused of 300\nwith shutdown first: %d\n", closed, shut_down);
    return closed > 0 && shut_down == 0 ? 0 : 1;
}
CPP
g++ -std=c++20 -DASIO_STANDALONE -Iusr/include try.cpp -pthread -o try
./try
