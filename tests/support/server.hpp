// What the end-to-end tests say about servers.
#pragma once

#include "sse.hpp"

#include "client.hpp"

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <string>

namespace support {

/// As the tests are to have it: see support::is_over().
inline sse::options with_tls_by_default(sse::options o) {
    if (!io_uring_by_default) o.io_uring = false;
#if defined(SSE_ENABLE_TLS)
    if (tls_by_default && o.tls.certificate.empty()) {
        o.tls.certificate = test_server().certificate;
        o.tls.key = test_server().key;
    }
#endif
#if defined(SSE_ENABLE_ZLIB)
    if (gzip_by_default) o.compress = true;
#endif
    return o;
}

/// Text that fills the buffers on its way by gzip too, where what repeats would not: another one
/// each time.
inline std::string incompressible(std::size_t size) {
    static std::atomic<std::uint64_t> calls{0};
    std::mt19937_64 engine(++calls);
    std::string text(size + 8, '\0');
    for (std::size_t at = 0; at < size; at += 8) { // eight at once, of '0' to 'o'
        const std::uint64_t bits = (engine() & 0x3f3f3f3f3f3f3f3f) + 0x3030303030303030;
        std::memcpy(text.data() + at, &bits, 8);
    }
    text.resize(size);
    return text;
}

/// So short a time for a request head, and over TLS for the handshake that it begins with.
inline std::chrono::milliseconds with_handshake(std::chrono::milliseconds head) {
    return tls_by_default ? head + 1s : head;
}

inline sse::options with_threads(std::size_t threads) {
    sse::options o;
    o.threads = threads;
    return with_tls_by_default(std::move(o));
}

/// A server on a free loopback port. Routes are added before the start, by `prepare`.
struct running_server : sse::server {
    explicit running_server(sse::options o = with_threads(1),
                            const std::function<void(sse::server&)>& prepare = {})
        : sse::server(with_tls_by_default(std::move(o))) {
        if (prepare) prepare(*this);
        start("127.0.0.1:0");
    }
};

/// The bytes of a stream without the ids of the server, and without the blocks that have nothing
/// else.
inline std::string without_ids(std::string_view stream) {
    std::string kept;
    while (!stream.empty()) {
        const auto line = stream.substr(0, stream.find('\n') + 1);
        stream.remove_prefix(line.size());
        if (line.starts_with("id: ") || line == ":\n") continue;
        if (line == "\n" && (kept.empty() || kept.ends_with("\n\n"))) continue;
        kept.append(line);
    }
    return kept;
}

/// One thread waits until another has opened it.
class gate {
public:
    void open() {
        const std::lock_guard lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }
    [[nodiscard]] bool wait(std::chrono::seconds limit = patience) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, limit, [this] { return open_; });
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool open_ = false;
};

/// Ends all streams of a server that drains now, not each at a random time within the window: it
/// may be longer than any machine needs, and nobody waits for it.
[[nodiscard]] inline bool send_away_now(sse::server& server) {
    for (const auto& one : server.streams()) {
        const bool ends = eventually([&] {
            bool drains = false;
            gate asked;
            server.post_to(one.id, [&](sse::stream& client) {
                drains = client.draining();
                if (drains) client.end_after(1ms);
                asked.open();
            });
            return asked.wait() && drains;
        });
        if (!ends) return false;
    }
    return true;
}

} // namespace support
