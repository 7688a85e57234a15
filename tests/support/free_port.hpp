// A port for a program that takes no other, or that is to come back at the same one.
#pragma once

#include <arpa/inet.h>
#include <cstdint>
#include <random>
#include <set>
#include <sys/socket.h>
#include <unistd.h>

namespace support {

/// One that nobody has, and that this program was not given before. The system gives those from
/// 32768 on to connections: of these one could be taken while its program is down.
inline std::uint16_t free_port() {
    static std::set<std::uint16_t> given;
    static std::mt19937 random(std::random_device{}());
    for (;;) {
        const auto port =
            static_cast<std::uint16_t>(std::uniform_int_distribution<>(10'000, 32'000)(random));
        if (!given.insert(port).second) continue;
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        at.sin_port = htons(port);
        const bool is_free = ::bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0;
        ::close(fd);
        if (is_free) return port;
    }
}

} // namespace support
