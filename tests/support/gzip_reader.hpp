// gzip_reader.hpp - reads a gzip stream as it comes, by zlib's own decoder. Throws for what is
// none.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include <zlib.h>

namespace support {

class gzip_reader {
public:
    gzip_reader() {
        constexpr int gzip_alone = 15 + 16; // window bits
        if (inflateInit2(&state_, gzip_alone) != Z_OK) throw std::runtime_error("no inflater");
    }
    gzip_reader(const gzip_reader&) = delete;
    gzip_reader& operator=(const gzip_reader&) = delete;
    ~gzip_reader() { inflateEnd(&state_); }

    /// What the stream says by these bytes: all of it that they tell.
    std::string read(std::string_view bytes) {
        if (bytes.empty()) return {};
        if (ended_) throw std::runtime_error("bytes after the end of a gzip stream");
        std::string text;
        state_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
        state_.avail_in = static_cast<uInt>(bytes.size());
        do {
            char room[1000];
            state_.next_out = reinterpret_cast<Bytef*>(room);
            state_.avail_out = sizeof(room);
            const int outcome = inflate(&state_, Z_SYNC_FLUSH);
            ended_ = outcome == Z_STREAM_END;
            if (outcome != Z_OK && outcome != Z_BUF_ERROR && !ended_)
                throw std::runtime_error(std::string("no gzip stream: ") +
                                         (state_.msg ? state_.msg : "?"));
            text.append(room, sizeof(room) - state_.avail_out);
        } while (state_.avail_out == 0 && !ended_);
        if (state_.avail_in != 0) throw std::runtime_error("bytes after the end of a gzip stream");
        return text;
    }
    /// Its end has come, with the right sum and size.
    bool ended() const noexcept { return ended_; }

private:
    z_stream state_{};
    bool ended_ = false;
};

} // namespace support
