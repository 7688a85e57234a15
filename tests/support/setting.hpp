// setting.hpp - a number that the environment gives a test program.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace support {

/// A whole number of the environment, or what holds without one.
inline std::uint64_t setting(const char* name, std::uint64_t usual, std::uint64_t least,
                             std::uint64_t most) {
    const char* const text = std::getenv(name);
    if (!text) return usual;
    const std::string_view digits = text;
    std::uint64_t value = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size() && value >= least &&
        value <= most)
        return value;
    throw std::invalid_argument(std::string(name) + " must be a whole number from " +
                                std::to_string(least) + " to " + std::to_string(most) + ", not '" +
                                text + "'");
}

} // namespace support
