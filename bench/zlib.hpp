// zlib.hpp - gzip as a bare loop over zlib has it, a stream for each client: for the floor, and for
// the client of all streams. Also how long deflate() takes, whoever calls it in what is included
// below. Where SSE_ENABLE_ZLIB is defined.
#pragma once

#include "bench.hpp"

#include <memory>
#include <mutex>

#include <zlib.h>

namespace bench {

/// How often deflate() was called in this process, and the median of how long it took: other
/// programs that took the core meanwhile do not move it.
class deflate_times {
public:
    static deflate_times& here() {
        static deflate_times all;
        return all;
    }

    void add(std::uint64_t ns) {
        const std::lock_guard lock(mutex_);
        ++calls_;
        ns_.add(ns);
    }

    /// `<calls> <ns>`, read by the client.
    std::string report() const {
        const std::lock_guard lock(mutex_);
        return std::to_string(calls_) + " " + shortest(calls_ > 0 ? ns_.quantile(0.5) : 0.0);
    }

private:
    mutable std::mutex mutex_;
    std::uint64_t calls_ = 0;
    histogram ns_;
};

inline int timed_deflate(z_stream* stream, int flush) {
    const std::uint64_t start = now_ns();
    const int result = deflate(stream, flush);
    deflate_times::here().add(now_ns() - start);
    return result;
}

/// Compresses for one client.
class gzip_writer {
public:
    gzip_writer() {
        constexpr int gzip = 15 + 16;
        if (deflateInit2(&state_, Z_DEFAULT_COMPRESSION, Z_DEFLATED, gzip, 8, Z_DEFAULT_STRATEGY) !=
            Z_OK)
            throw std::bad_alloc();
    }
    ~gzip_writer() { deflateEnd(&state_); }
    gzip_writer(const gzip_writer&) = delete;
    gzip_writer& operator=(const gzip_writer&) = delete;

    /// Compresses so that the client can read all of it.
    void write(std::string_view text) {
        state_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(text.data()));
        state_.avail_in = static_cast<uInt>(text.size());
        do {
            std::array<char, 4096> part;
            state_.next_out = reinterpret_cast<Bytef*>(part.data());
            state_.avail_out = static_cast<uInt>(part.size());
            timed_deflate(&state_, Z_SYNC_FLUSH);
            waiting_.append(part.data(), part.size() - state_.avail_out);
        } while (state_.avail_out == 0);
    }

    std::string_view waiting() const noexcept { return waiting_; }
    void sent(std::size_t bytes) { waiting_.erase(0, bytes); }

private:
    z_stream state_{};
    std::string waiting_;
};

/// Expands what one client gets.
class gzip_reader {
public:
    gzip_reader() {
        if (inflateInit2(&state_, 15 + 16) != Z_OK) throw std::bad_alloc();
    }
    ~gzip_reader() { inflateEnd(&state_); }
    gzip_reader(const gzip_reader&) = delete;
    gzip_reader& operator=(const gzip_reader&) = delete;

    template <class Text>
    void read(std::string_view bytes, Text text) {
        state_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(bytes.data()));
        state_.avail_in = static_cast<uInt>(bytes.size());
        std::array<char, 16 * 1024> part;
        do {
            state_.next_out = reinterpret_cast<Bytef*>(part.data());
            state_.avail_out = static_cast<uInt>(part.size());
            const int result = inflate(&state_, Z_SYNC_FLUSH);
            if (result != Z_OK && result != Z_BUF_ERROR)
                throw std::runtime_error("a client received bytes that are not gzip");
            text(std::string_view(part.data(), part.size() - state_.avail_out));
        } while (state_.avail_out == 0);
    }

private:
    z_stream state_{};
};

} // namespace bench

#define deflate(stream, flush) bench::timed_deflate(stream, flush)
