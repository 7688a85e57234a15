// wheel.cpp - covers >>wheel: the timing wheel against a sorted list of deadlines.
#include "support/dice.hpp"

#include "sse.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

using sse::detail::deadline_wheel;

namespace wheel_test {

namespace {

struct sleeper : deadline_wheel::entry {
    bool woken = false;
};

/// Wakes all in the ring; each must be due, and none before an earlier one.
void wake_all(deadline_wheel::link& ring, deadline_wheel::tick now) {
    deadline_wheel::tick last = 0;
    while (!ring.is_alone()) {
        auto& one = static_cast<sleeper&>(*ring.after);
        one.unlink();
        CHECK(one.due <= now);
        CHECK(one.due >= last);
        last = one.due;
        one.woken = true;
    }
}

} // namespace

TEST_SUITE("wheel") {

    TEST_CASE("who sleeps is woken at its tick, not earlier and not later") {
        deadline_wheel wheel;
        deadline_wheel::link ring;
        CHECK(!wheel.next());
        std::vector<sleeper> all(9);
        const std::vector<deadline_wheel::tick> ticks = {
            1, 63, 64, 65, 4'095, 4'096, 1'000'000, (deadline_wheel::tick{1} << 36) - 1, 7'000};
        for (std::size_t i = 0; i < all.size(); ++i) wheel.add(all[i], ticks[i]);
        for (std::size_t i = 0; i < all.size(); ++i) {
            wheel.advance(ticks[i] - 1, ring);
            wake_all(ring, ticks[i] - 1);
            if (i == 8) continue; // long over
            CHECK_FALSE(all[i].woken);
            const auto next = wheel.next();
            REQUIRE(next);
            CHECK(*next <= ticks[i]);
            wheel.advance(ticks[i], ring);
            wake_all(ring, ticks[i]);
            CHECK(all[i].woken);
        }
        CHECK(all[8].woken);
        CHECK(!wheel.next());
    }

    TEST_CASE("what is due already waits for the next tick") {
        deadline_wheel wheel;
        deadline_wheel::link ring;
        wheel.advance(1'000, ring);
        sleeper one, other;
        wheel.add(one, 5);
        wheel.add(other, 1'000);
        wheel.advance(1'000, ring);
        CHECK(ring.is_alone());
        CHECK(wheel.next() == 1'001);
        wheel.advance(1'001, ring);
        wake_all(ring, 1'001);
        CHECK(one.woken);
        CHECK(other.woken);
    }

    TEST_CASE("who sleeps longer than the wheel turns is still woken at its tick") {
        deadline_wheel wheel;
        deadline_wheel::link ring;
        constexpr deadline_wheel::tick far = (deadline_wheel::tick{5} << 36) + 12'345;
        sleeper one, longest;
        wheel.add(one, far);
        wheel.add(longest, ~deadline_wheel::tick{0});
        int steps = 0;
        while (!one.woken) {
            const auto next = wheel.next();
            REQUIRE(next);
            REQUIRE(*next <= far);
            wheel.advance(*next, ring);
            wake_all(ring, *next);
            REQUIRE(++steps < 1'000);
        }
        CHECK(wheel.next());
        CHECK_FALSE(longest.woken);
    }

    TEST_CASE("random sleeps, early ends and steps of the clock agree with a sorted list") {
        support::dice dice(20);
        for (int round = 0; round < 200; ++round) {
            deadline_wheel wheel;
            deadline_wheel::link ring;
            std::vector<std::unique_ptr<sleeper>> all;
            deadline_wheel::tick now = dice.one_in(2) ? 0 : dice.below(1u << 30);
            wheel.advance(now, ring);
            for (int step = 0; step < 200; ++step) {
                const std::size_t choice = dice.below(10);
                if (choice < 6) {
                    auto one = std::make_unique<sleeper>();
                    wheel.add(*one, now + dice.below(std::size_t{1} << dice.below(31)));
                    all.push_back(std::move(one));
                } else if (choice < 7 && !all.empty()) { // destroyed while it sleeps
                    all.erase(all.begin() + static_cast<std::ptrdiff_t>(dice.below(all.size())));
                } else {
                    const auto next = wheel.next();
                    now = next && dice.one_in(2)
                              ? *next
                              : now + dice.below(std::size_t{1} << dice.below(25));
                    wheel.advance(now, ring);
                    wake_all(ring, now);
                }
                const deadline_wheel::tick* earliest = nullptr;
                for (const auto& one : all) {
                    if (one->woken) continue;
                    REQUIRE(one->due > now);
                    if (!earliest || one->due < *earliest) earliest = &one->due;
                }
                if (earliest) {
                    REQUIRE(wheel.next());
                    REQUIRE(*wheel.next() <= *earliest);
                    REQUIRE(*wheel.next() > now);
                }
                std::erase_if(all, [](const auto& one) { return one->woken; });
            }
        }
    }
}

} // namespace wheel_test
