// ids.cpp - covers >>ids: which id stands for which position, without a bus and with one whose
// numbers have steps, whose epochs end, and which leaves holes.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <optional>
#include <string>
#include <vector>

namespace ids_test {

using sse::detail::frame;
using sse::detail::frame_ref;
using sse::detail::id_book;
using sse::detail::make_frame;
using sse::detail::make_mark;
using state = id_book::state;

namespace {

frame_ref numbered(std::uint64_t n) {
    frame_ref f = make_frame(frame::kind::topic, "/t", {.data = "x"});
    f->set_number(n);
    return f;
}

/// Marks and messages, written as "aaaaaaaa/5", with "!" if something was lost, and "7"; "-" is a
/// message without a number.
id_book book_of(const std::vector<std::string>& log) {
    id_book ids;
    for (const std::string& one : log) {
        const std::size_t slash = one.find('/');
        if (slash != one.npos) {
            const bool lost = one.ends_with('!');
            ids.append(*make_mark(one.substr(0, slash), std::stoull(one.substr(slash + 1)),
                                  lost ? "too_old" : ""));
        } else {
            ids.append(*numbered(one == "-" ? 0 : std::stoull(one)));
        }
    }
    return ids;
}

} // namespace

TEST_SUITE_BEGIN("ids");

TEST_CASE("without a bus the number is the position, in one epoch") {
    const id_book ids("epoch000");
    CHECK(!ids.has_bus());
    CHECK(ids.id_at(0) == "epoch000-0");
    CHECK(ids.id_at(7) == "epoch000-7");
    const auto known = ids.find("epoch000-5", 5);
    CHECK(known.what == state::known);
    CHECK(known.position == 5);
    CHECK(ids.find("epoch000-6", 5).what == state::unknown);
    CHECK(ids.find("epoch000-6", 5).position == 0);
    CHECK(ids.find("epoch001-5", 5).what == state::other_epoch);
    for (const char* const odd :
         {"", "-", "epoch000", "epoch000-", "epoch000-x", "epoch0-5", "5"}) {
        CAPTURE(odd);
        CHECK(ids.find(odd, 5).what == state::unknown);
    }
}

TEST_CASE("before the bus has told its epoch there are no ids, and none is known") {
    const id_book ids;
    CHECK(ids.has_bus());
    CHECK(ids.id_at(0).empty());
    CHECK(ids.find("aaaaaaaa-5", 0).what == state::other_epoch);
}

TEST_CASE("with a bus an id says the last number before the position") {
    // Positions:                0              1     2      3     4     5
    const id_book ids = book_of({"aaaaaaaa/100", "104", "-", "110", "111"});
    CHECK(ids.id_at(0) == "aaaaaaaa-100");
    CHECK(ids.id_at(1) == "aaaaaaaa-100");
    CHECK(ids.id_at(2) == "aaaaaaaa-104");
    CHECK(ids.id_at(3) == "aaaaaaaa-104");
    CHECK(ids.id_at(4) == "aaaaaaaa-110");
    CHECK(ids.id_at(5) == "aaaaaaaa-111");
    CHECK(ids.id_at(9) == "aaaaaaaa-111"); // what is still in the ring
    const auto position = [&](std::uint64_t n) {
        const auto found = ids.find("aaaaaaaa-" + std::to_string(n), 0);
        REQUIRE(found.what == state::known);
        return found.position;
    };
    CHECK(position(100) == 1);
    CHECK(position(103) == 1); // nobody was given it, but it lies there
    CHECK(position(104) == 3); // after the one without a number
    CHECK(position(109) == 3);
    CHECK(position(110) == 4);
    CHECK(position(111) == 5);
    CHECK(ids.find("aaaaaaaa-112", 0).what == state::ahead);
    CHECK(ids.find("aaaaaaaa-112", 0).position == 5);
    CHECK(ids.find("aaaaaaaa-99", 0).what == state::too_old);
    CHECK(ids.find("aaaaaaaa-99", 0).position == 1);
    CHECK(ids.find("bbbbbbbb-104", 0).what == state::other_epoch);
}

TEST_CASE("an id of an ended epoch leads to where it was, and beyond its end to the mark") {
    const id_book ids = book_of({"aaaaaaaa/0", "1", "2", "bbbbbbbb/0", "1", "2"});
    CHECK(ids.find("aaaaaaaa-1", 0).position == 2);
    CHECK(ids.find("aaaaaaaa-2", 0).position == 3); // before the mark, which is told
    CHECK(ids.find("aaaaaaaa-9", 0).what == state::known);
    CHECK(ids.find("aaaaaaaa-9", 0).position == 3);
    CHECK(ids.find("bbbbbbbb-0", 0).position == 4);
    CHECK(ids.find("bbbbbbbb-1", 0).position == 5);
    CHECK(ids.find("bbbbbbbb-3", 0).what == state::ahead);
    CHECK(ids.id_at(3) == "aaaaaaaa-2");
    CHECK(ids.id_at(4) == "bbbbbbbb-0");
}

TEST_CASE("an epoch in which nothing has come yet") {
    const id_book ids = book_of({"aaaaaaaa/0", "1", "bbbbbbbb/50"});
    CHECK(ids.find("bbbbbbbb-50", 0).position == 3);
    CHECK(ids.find("bbbbbbbb-51", 0).what == state::ahead);
    CHECK(ids.find("bbbbbbbb-49", 0).what == state::too_old);
    CHECK(ids.find("aaaaaaaa-7", 0).position == 2);
}

TEST_CASE("a hole in an epoch: ids before it lead before its mark, ids in it too") {
    const id_book ids = book_of({"aaaaaaaa/0", "1", "2", "aaaaaaaa/50!", "51"});
    CHECK(ids.find("aaaaaaaa-1", 0).position == 2);
    CHECK(ids.find("aaaaaaaa-2", 0).position == 3);
    CHECK(ids.find("aaaaaaaa-30", 0).position == 3);
    CHECK(ids.find("aaaaaaaa-50", 0).position == 4);
    CHECK(ids.find("aaaaaaaa-51", 0).position == 5);
}

TEST_CASE("the same epoch once more says that nothing else has numbers up to there") {
    const id_book ids = book_of({"aaaaaaaa/0", "aaaaaaaa/3", "5", "aaaaaaaa/9"});
    CHECK(ids.find("aaaaaaaa-0", 0).position == 1);
    CHECK(ids.find("aaaaaaaa-3", 0).position == 2);
    CHECK(ids.find("aaaaaaaa-4", 0).position == 2);
    CHECK(ids.find("aaaaaaaa-5", 0).position == 3);
    CHECK(ids.find("aaaaaaaa-9", 0).position == 4);
    CHECK(ids.find("aaaaaaaa-10", 0).what == state::ahead);
    CHECK(ids.id_at(2) == "aaaaaaaa-3");
    CHECK(ids.id_at(4) == "aaaaaaaa-9");
}

TEST_CASE("of positions that the log forgot the ids are older, never newer") {
    id_book ids = book_of({"aaaaaaaa/0", "10", "20", "30", "40"});
    ids.trim(3);
    CHECK(ids.id_at(3) == "aaaaaaaa-20");
    CHECK(ids.id_at(5) == "aaaaaaaa-40");
    CHECK(ids.id_at(1) == "aaaaaaaa-0");
    CHECK(ids.find("aaaaaaaa-30", 0).position == 4);
    const auto old = ids.find("aaaaaaaa-10", 0);
    CHECK(old.what == state::vague);
    CHECK(old.position == 1);
    CHECK(old.number == 10);
    ids.trim(100); // one number stays
    CHECK(ids.id_at(4) == "aaaaaaaa-0");
    CHECK(ids.id_at(5) == "aaaaaaaa-40");
    CHECK(ids.find("aaaaaaaa-40", 0).what == state::known);
}

TEST_CASE("at random: what is known leads right after the last message that is not newer") {
    support::dice dice(20261129);
    for (int round = 0; round < 300; ++round) {
        id_book ids;
        struct place {
            std::string epoch;
            std::uint64_t number; // of the last message up to it
        };
        std::vector<place> log;
        std::uint64_t number = dice.below(100);
        std::string epoch = "aaaaaaaa";
        std::uint64_t begin = 0;
        const auto mark = [&] {
            ids.append(*make_mark(epoch, number));
            log.push_back({epoch, number});
        };
        mark();
        for (std::size_t i = dice.below(60); i > 0; --i) {
            if (dice.one_in(20)) {
                ++epoch[0];
                number = dice.below(10);
                mark();
            } else if (dice.one_in(6)) {
                ids.append(*numbered(0));
                log.push_back({epoch, number});
            } else {
                number += dice.between(1, 3);
                ids.append(*numbered(number));
                log.push_back({epoch, number});
            }
            if (dice.one_in(15)) ids.trim(begin = dice.between(begin, log.size()));
        }
        for (std::uint64_t at = begin; at <= log.size(); ++at) {
            if (at == 0) continue;
            CAPTURE(at);
            const place& before = log[at - 1];
            const std::string id = before.epoch + "-" + std::to_string(before.number);
            if (at > begin) REQUIRE(ids.id_at(at) == id);
            const auto found = ids.find(id, 0);
            if (found.what == state::vague) continue;
            REQUIRE(found.what == state::known);
            const std::uint64_t from = std::min(found.position, at);
            for (std::uint64_t i = from; i < std::max(found.position, at); ++i) { // no number
                REQUIRE(log[i].epoch == before.epoch);
                REQUIRE(log[i].number == before.number);
            }
        }
    }
}

TEST_SUITE_END();

} // namespace ids_test
