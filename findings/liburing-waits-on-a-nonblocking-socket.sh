#!/usr/bin/env bash
# A send by io_uring waits until a socket takes it although the socket is non-blocking, as those of Asio
# are. Only MSG_DONTWAIT keeps it from that.
#
# Library    liburing 2.3 (`liburing-dev` 2.3-3 of Debian 12) and standalone Asio 1.22.1 (`libasio-dev`
#            1:1.22.1-1), on Linux 6.18. Needs apt-get, g++, and a kernel that allows io_uring.
# Guess      O_NONBLOCK says it for every system call: a send to a socket whose buffer is full completes at
#            once with EAGAIN, and the program goes on with other clients.
# Behaviour  io_uring looks at the flags of the send alone. Without MSG_DONTWAIT the request stays in the
#            kernel, with a pointer to the program's bytes, until the peer reads or is gone. A program that
#            counts completions after io_uring_submit_and_wait() waits for its slowest client.
# Seen       non-blocking socket:        nothing after 200 ms; 1 byte once the peer reads
#            blocking, MSG_DONTWAIT:     -EAGAIN at once
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libasio-dev=1:1.22.1-1 liburing-dev=2.3-3 liburing2=2.3-3 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done

cat >try.cpp <<'CPP'
#include <asio.hpp>
#include <liburing.h>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

// Of TCP it would be the same, but there it is hard to say when a buffer is full.
struct sockets {
    asio::io_context io;
    asio::local::stream_protocol::socket peer{io}, full{io};
    sockets() {
        asio::local::connect_pair(peer, full);
        full.non_blocking(true);
        const std::vector<char> bytes(1 << 16);
        for (const std::size_t size : {bytes.size(), std::size_t(1)}) {
            asio::error_code failed;
            while (!failed) full.write_some(asio::buffer(bytes, size), failed);
        }
    }
};

// What a send of one byte has come to after this time, or nothing.
const char* result(io_uring& ring, int ms) {
    static char text[64];
    __kernel_timespec time{0, ms * 1'000'000LL};
    io_uring_cqe* done = nullptr;
    if (io_uring_wait_cqe_timeout(&ring, &done, &time) != 0) return "nothing";
    if (done->res < 0)
        std::snprintf(text, sizeof text, "%s", done->res == -EAGAIN ? "EAGAIN" : std::strerror(-done->res));
    else
        std::snprintf(text, sizeof text, "%d", done->res);
    io_uring_cqe_seen(&ring, done);
    return text;
}

int main() {
    io_uring ring;
    if (io_uring_queue_init(8, &ring, 0) != 0) return 77;
    sockets a, b;
    const auto send = [&](sockets& to, int flags) {
        io_uring_prep_send(io_uring_get_sqe(&ring), to.full.native_handle(), "x", 1, flags | MSG_NOSIGNAL);
        io_uring_submit(&ring);
    };
    send(a, 0);
    std::printf("non-blocking: %s\n", result(ring, 200));
    std::vector<char> read(1 << 20);
    a.peer.non_blocking(true);
    asio::error_code failed;
    while (!failed) a.peer.read_some(asio::buffer(read), failed);
    std::printf("after the peer has read: %s\n", result(ring, 900));
    b.full.non_blocking(false);
    send(b, MSG_DONTWAIT);
    std::printf("blocking, with MSG_DONTWAIT: %s\n", result(ring, 200));
    io_uring_queue_exit(&ring);
}
CPP
g++ -std=c++20 -DASIO_STANDALONE -Iusr/include try.cpp -pthread -Lusr/lib/x86_64-linux-gnu -luring -o try
status=0
LD_LIBRARY_PATH=usr/lib/x86_64-linux-gnu ./try >seen || status=$?
[ $status -ne 77 ] || { echo "the kernel allows no io_uring here"; exit 77; }
cat seen
diff seen - <<'END'
non-blocking: nothing
after the peer has read: 1
blocking, with MSG_DONTWAIT: EAGAIN
END
