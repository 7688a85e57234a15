// dice.hpp - random numbers for tests. The seed is fixed, and printed: a failure can be repeated.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <random>
#include <string>
#include <string_view>

namespace support {

/// The same throws on every machine, since the distributions of the standard library are not used.
/// SSE_TEST_SEED=n in the environment takes the place of the seed, for longer searches.
class dice {
public:
    explicit dice(std::uint64_t seed) : seed_(chosen(seed)), engine_(seed_) {
        MESSAGE("seed ", seed_);
    }

    std::uint64_t seed() const { return seed_; }

    std::size_t below(std::size_t end) { return static_cast<std::size_t>(engine_() % end); }
    std::size_t between(std::size_t first, std::size_t last) {
        return first + below(last - first + 1);
    }
    bool one_in(std::size_t n) { return below(n) == 0; }
    char byte() { return static_cast<char>(static_cast<unsigned char>(below(256))); }

    template <class Container>
    const auto& one_of(const Container& choices) {
        return choices[below(std::size(choices))];
    }
    char one_of(std::string_view choices) { return choices[below(choices.size())]; }

    /// Bytes of every kind, but every other one from `often`, so that the rare meets the rare.
    std::string bytes(std::size_t at_most, std::string_view often) {
        std::string out;
        for (std::size_t left = below(at_most + 1); left > 0; --left) {
            out += one_in(2) ? one_of(often) : byte();
        }
        return out;
    }

private:
    static std::uint64_t chosen(std::uint64_t seed) {
        const char* const asked = std::getenv("SSE_TEST_SEED");
        return asked ? std::strtoull(asked, nullptr, 10) : seed;
    }

    std::uint64_t seed_;
    std::mt19937_64 engine_;
};

} // namespace support
