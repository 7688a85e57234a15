// setting.hpp - numbers that the environment gives a test program, and how it prints some.
#pragma once

#include <charconv>
#include <cstddef>
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

/// 1234567 as 1,234,567.
inline std::string with_commas(std::uint64_t number) {
    std::string text = std::to_string(number);
    for (std::size_t at = text.size(); at > 3;) text.insert(at -= 3, 1, ',');
    return text;
}

} // namespace support
