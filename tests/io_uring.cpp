// io_uring.cpp - covers >>worker: What many clients get goes out by io_uring, as far as the kernel
// allows it: the same promises. Built with SSE_ENABLE_IO_URING and run with SUPPORT_OVER=io_uring,
// as tests/fanout.cpp and tests/storm.cpp are once more.
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

namespace io_uring_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// Whether the kernel lets this process have rings; otherwise there is nothing to test.
bool kernel_allows() {
    if (sse::detail::send_ring(true).is_open()) return true;
    MESSAGE("not run: the kernel allows no io_uring here");
    return false;
}

/// How many requests the rings of this process were given.
std::uint64_t submitted() {
    std::uint64_t sum = 0;
    for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
        std::error_code gone;
        const auto target = std::filesystem::read_symlink(file.path(), gone);
        if (target != "anon_inode:[io_uring]") continue;
        std::ifstream info("/proc/self/fdinfo/" + file.path().filename().string());
        for (std::string name, value; info >> name >> value;) {
            if (name == "SqTail:") sum += std::stoull(value, nullptr, 0);
        }
    }
    return sum;
}

/// From now on the kernel refuses a system call to this thread, and to those that it starts.
bool forbid(long call) {
    std::array<sock_filter, 4> program{{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    const sock_fprog all{static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) == 0;
}

std::vector<event_client> clients_of(const sse::server& server, std::size_t count) {
    std::vector<event_client> clients;
    for (std::size_t i = 0; i < count; ++i) clients.emplace_back(server.port(), "/subscribe/a");
    return clients;
}

/// The kernel refuses a system call to a server: its clients notice nothing, who listens is told.
void check_refused(long call) {
    std::mutex mutex;
    std::vector<std::string> told;
    sse::options o = with_threads(2);
    o.timeouts.body = 40ms; // the word comes with the sweep, which is as frequent
    o.hooks.log = [&](const sse::log_entry& entry) {
        const std::lock_guard lock(mutex);
        if (entry.what == "no io_uring") told.emplace_back(entry.detail);
    };
    if (!forbid(call)) {
        MESSAGE("not run: the kernel takes no filter here");
        return;
    }
    running_server server(o);
    auto clients = clients_of(server, 100);
    for (int n = 0; n < 20; ++n) {
        server.publish("/a", {.data = std::to_string(n)});
        for (auto& client : clients) CHECK(client.next().data == std::to_string(n));
    }
    const auto count = [&] {
        const std::lock_guard lock(mutex);
        return told.size();
    };
    CHECK(eventually([&] { return count() == 1; }));
    CHECK(told.at(0) == std::generic_category().message(EPERM));
    CHECK(eventually([&] { return server.counters().delivered == 100 * 20; }));
    server.stop();
    server.join();
    CHECK(count() == 1);
}

} // namespace

TEST_SUITE("io_uring" * doctest::skip(!io_uring_by_default)) {
    TEST_CASE("a ring says of each socket how much it took") {
        if (!kernel_allows()) return;
        sse::detail::send_ring ring(true);
        struct pair {
            descriptor near, far;
        };
        std::array<pair, sse::detail::send_ring::max_sends> pairs;
        std::array<int, pairs.size()> sockets;
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            int ends[2];
            REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
            pairs[i] = {descriptor(ends[0]), descriptor(ends[1])};
            const int size = 4096;
            ::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
            sockets[i] = ends[0];
            if (i % 4 == 1) pairs[i].far.close();
            if (i % 4 == 2) {
                while (::send(ends[0], "x", 1, MSG_DONTWAIT) == 1) {}
            }
        }
        const auto sent = [&](std::size_t bytes) {
            std::array<std::size_t, pairs.size()> taken;
            taken.fill(12345);
            ring.send(sockets, std::string(bytes, 'y'), taken);
            return taken;
        };
        const auto small = sent(100);
        for (std::size_t i = 0; i < small.size(); ++i) {
            CAPTURE(i);
            CHECK(small[i] == (i % 4 == 1 || i % 4 == 2 ? 0 : 100));
        }
        const auto large = sent(1 << 20);
        for (std::size_t i = 0; i < large.size(); ++i) {
            CAPTURE(i);
            const bool takes_none = i % 4 == 1 || i % 4 == 2;
            CHECK((large[i] == 0) == takes_none);
            CHECK(large[i] < (1 << 20));
        }
        CHECK(ring.is_open());
        CHECK(!ring.take_refusal());
    }

    TEST_CASE("what many clients get goes through the ring; nothing does when it is not wanted") {
        if (!kernel_allows()) return;
        for (const bool wanted : {true, false}) {
            CAPTURE(wanted);
            sse::options o = with_threads(1);
            o.io_uring = wanted;
            running_server server(o);
            auto clients = clients_of(server, 100);
            server.publish("/a", {.data = "all are here"});
            for (auto& client : clients) REQUIRE(client.next().data == "all are here");
            const auto before = submitted();
            server.publish("/a", {.data = "x"});
            for (auto& client : clients) REQUIRE(client.next().data == "x");
            CHECK(submitted() - before == (wanted ? 100 : 0));
        }
    }

    TEST_CASE("clients that take nothing for a while get everything once and in order after it") {
        if (!kernel_allows()) return;
        sse::options o = with_threads(1);
        o.timeouts.stall = 10min; // however slow this machine is
        running_server server(o);
        auto clients = clients_of(server, 30);
        const std::string data(100'000, 'x');
        constexpr int messages = 100; // 10 MB: more than the buffers of two sockets hold
        for (int n = 0; n < messages; ++n) {
            server.publish("/a", {.data = std::to_string(n) + " " + data});
            // Some take all at once, some a part, some nothing.
            for (std::size_t i = 0; i < clients.size(); i += 3) {
                REQUIRE(std::stoi(clients[i].next().data) == n);
                if (n < messages / 2) REQUIRE(std::stoi(clients[i + 1].next().data) == n);
            }
        }
        CHECK(server.counters().delivered < clients.size() * messages); // some were cut
        for (std::size_t i = 0; i < clients.size(); ++i) {
            const int first = i % 3 == 0 ? messages : i % 3 == 1 ? messages / 2 : 0;
            for (int n = first; n < messages; ++n) {
                REQUIRE(std::stoi(clients[i].next().data) == n);
            }
        }
        server.publish("/a", {.data = "last"});
        for (auto& client : clients) CHECK(client.next().data == "last");
        CHECK(eventually(
            [&] { return server.counters().delivered == clients.size() * (messages + 1); }));
    }

    TEST_CASE("where the kernel gives no ring, everything goes out without") {
        std::thread(check_refused, SYS_io_uring_setup).join();
    }

    TEST_CASE("where it gives one and lets nobody enter it, everything goes out without") {
        if (!kernel_allows()) return;
        std::thread(check_refused, SYS_io_uring_enter).join();
    }
}

} // namespace io_uring_test
