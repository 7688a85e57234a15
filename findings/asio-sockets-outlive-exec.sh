#!/usr/bin/env bash
# Asio sets close-on-exec on the descriptors that it needs for itself, and on none of those that it
# gives to the program: every listener, accepted and connecting socket goes on in child processes.
#
# Library    standalone Asio 1.22.1 (`libasio-dev` 1:1.22.1-1 of Debian 12). Needs apt-get, g++.
# Guess      A network library of today opens sockets with SOCK_CLOEXEC and accepts with accept4, as
#            Go, Python, Node and Rust's standard library do.
# Behaviour  epoll, the timer and the wake-up descriptor are made with the flag; acceptor, accepted
#            socket and client socket without it, and there is no option to ask for it. A program that
#            is started by the server keeps the port in use after the server has ended.
# Seen       epoll and others of Asio's own: close-on-exec
#            acceptor: inherited
#            accepted socket: inherited
#            client socket: inherited
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
#include <dirent.h>
#include <fcntl.h>
#include <set>
#include <cstdlib>

static bool stays(int fd) { return (fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0; }

static std::set<int> open_descriptors() {
    std::set<int> all;
    DIR* folder = opendir("/proc/self/fd");
    while (const dirent* one = readdir(folder)) {
        const int fd = std::atoi(one->d_name);
        if (fd > 2 && fd != dirfd(folder)) all.insert(fd);
    }
    closedir(folder);
    return all;
}

int main() {
    using asio::ip::tcp;
    const auto before = open_descriptors();
    asio::io_context io;
    asio::steady_timer timer(io);
    bool own = false;
    for (int fd : open_descriptors()) own = own || (before.count(fd) == 0 && stays(fd));
    tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
    tcp::socket client(io), accepted(io);
    acceptor.async_accept(accepted, [](asio::error_code) {});
    client.async_connect(acceptor.local_endpoint(), [](asio::error_code) {});
    io.run();
    const auto say = [](const char* what, bool yes) {
        std::printf("%s: %s\n", what, yes ? "inherited" : "close-on-exec");
        return yes;
    };
    const bool a = say("epoll and others of Asio's own", own);
    const bool b = say("acceptor", stays(acceptor.native_handle()));
    const bool c = say("accepted socket", stays(accepted.native_handle()));
    const bool d = say("client socket", stays(client.native_handle()));
    return !a && b && c && d && accepted.is_open() ? 0 : 1;
}
CPP
g++ -std=c++17 -O0 -I usr/include try.cpp -pthread -o try
timeout 60 ./try || { echo "the behaviour has changed" >&2; exit 1; }
