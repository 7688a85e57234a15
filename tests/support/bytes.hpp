// bytes.hpp - bytes for tests that feed them in pieces: shown in a failure, cut in every way.
#pragma once

#include "dice.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace support {

inline std::string escaped(std::string_view bytes) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string out;
    for (const char c : bytes) {
        const auto code = static_cast<unsigned char>(c);
        if (c == '\r') {
            out += "\\r";
        } else if (c == '\n') {
            out += "\\n";
        } else if (code < 0x20 || code > 0x7e) {
            out += {'\\', 'x', digits[code >> 4U], digits[code & 15U]};
        } else {
            out += c;
        }
    }
    return out;
}

/// Places where pieces of so many bytes end: one byte each.
inline std::vector<std::size_t> byte_by_byte(std::size_t size) {
    std::vector<std::size_t> ends(size);
    for (std::size_t i = 0; i < size; ++i) ends[i] = i + 1;
    return ends;
}

/// The same at random.
inline std::vector<std::size_t> random_ends(dice& dice, std::size_t size,
                                            std::size_t at_most = 20) {
    std::vector<std::size_t> ends;
    std::size_t at = 0;
    while (at < size) ends.push_back(at = std::min(size, at + dice.between(1, at_most)));
    return ends;
}

/// Feeds bytes whole, byte by byte and cut at every place, by feed(bytes, where the pieces end).
/// The outcome of the whole, which all others must equal.
template <class Feed>
auto in_every_way(std::string_view bytes, Feed feed) {
    const auto whole = feed(bytes, std::vector{bytes.size()});
    CHECK(feed(bytes, byte_by_byte(bytes.size())) == whole);
    for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
        const auto in_two = feed(bytes, std::vector{cut, bytes.size()});
        if (in_two == whole) continue;
        CAPTURE(cut);
        CHECK(in_two == whole);
    }
    return whole;
}

} // namespace support
