// filelog.cpp - covers >>files, >>filelog: what a log in files keeps over restarts, crashes and
// faults
#include "support/dice.hpp"
#include "support/recording_sink.hpp"
#include "support/temporary_folder.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <set>

#if !defined(_WIN32)
#include <sys/wait.h>
#endif

// The fuzzer includes this file too.
namespace filelog_test {

using namespace std::chrono_literals;
using namespace std::string_literals;
using sse::detail::file_calls;
using sse::detail::file_log_bus;
using sse::detail::log_mark;
using sse::detail::log_record;
using sse::detail::log_segment;
namespace fs = std::filesystem;

/// A folder that is removed at the end.
struct temporary_folder : support::temporary_folder {
    temporary_folder() : support::temporary_folder("sse-filelog") {}
};

std::string contents(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// The segments, oldest first.
std::vector<std::string> segments(const std::string& folder) {
    std::vector<std::string> found;
    for (const auto& each : fs::directory_iterator(folder)) {
        if (each.path().extension() == ".log") found.push_back(each.path().string());
    }
    std::sort(found.begin(), found.end());
    return found;
}

constexpr sse::bus::history everything{1'000'000, 1'000'000'000, {}};

/// A log with its sink, and what the calls to it returned.
class attached {
public:
    explicit attached(const std::string& folder, sse::file_log_options options = {},
                      file_calls calls = {}, sse::bus::history kept = everything)
        : bus_(folder, options, std::move(calls)) {
        bus_.attach(sink, kept);
        const bool is_ready =
            sink.wait_until([](const auto& seen) { return seen.is_ready && seen.is_up; });
        REQUIRE(is_ready);
    }

    /// Publishes, and waits for the outcome.
    std::pair<std::error_code, std::uint64_t> publish(std::string bytes, bool store = true) {
        std::promise<std::pair<std::error_code, std::uint64_t>> result;
        bus_.publish(std::move(bytes), store, 1s, [&](std::error_code failed, std::uint64_t n) {
            result.set_value({failed, n});
        });
        return wait(result);
    }
    std::uint64_t stored(std::string bytes) {
        const auto [failed, number] = publish(std::move(bytes));
        CHECK_MESSAGE(!failed, failed.message());
        return number;
    }
    /// So many messages m1, m2 ..
    void fill(std::uint64_t from, std::uint64_t to) {
        for (std::uint64_t n = from; n <= to; ++n) CHECK(stored("m" + std::to_string(n)) == n);
    }

    sse::bus::page read(std::string_view epoch, std::uint64_t after, std::size_t messages = 1'000) {
        std::promise<sse::bus::page> result;
        bus_.read(epoch, after, messages,
                  [&](sse::bus::page found) { result.set_value(std::move(found)); });
        return wait(result);
    }

    std::string epoch() { return sink.now().epoch; }
    file_log_bus& bus() { return bus_; }
    void detach() { bus_.detach(); }

    recording_sink sink;

private:
    template <class T>
    static T wait(std::promise<T>& result) {
        auto future = result.get_future();
        if (future.wait_for(30s) != std::future_status::ready) std::abort();
        return future.get();
    }

    file_log_bus bus_;
};

/// The messages that a sink was told: epoch-number=bytes.
std::vector<std::string> told(recording_sink& sink) {
    std::vector<std::string> found;
    for (const auto& each : sink.now().messages) {
        found.push_back(each.epoch + "-" + std::to_string(each.number) + "=" + each.bytes);
    }
    return found;
}

std::vector<std::string> numbered(const std::string& epoch, std::uint64_t from, std::uint64_t to) {
    std::vector<std::string> found;
    for (std::uint64_t n = from; n <= to; ++n) {
        found.push_back(epoch + "-" + std::to_string(n) + "=m" + std::to_string(n));
    }
    return found;
}

template <class F>
std::string error_of(F&& f) {
    try {
        f();
        return "";
    } catch (const std::exception& e) { return e.what(); }
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// What is left in the folder when a machine or a program goes down: a copy before the end.
file_calls of_boot(const std::string& name) {
    file_calls calls;
    calls.boot = name;
    calls.born = [](int) { return 7; };
    return calls;
}

constexpr sse::file_log_options small{.segment_bytes = 4 * 1024, .bytes = 1024 * 1024};

sse::file_log_options synced(sse::file_sync how) {
    sse::file_log_options options;
    options.sync = how;
    return options;
}

/// A log of n messages whose process was killed: without a closing mark. Returns its epoch.
std::string leave_behind(const std::string& folder, const std::string& from, std::uint64_t n,
                         sse::file_sync how = sse::file_sync::interval,
                         const std::string& boot = "one") {
    attached log(from, synced(how), of_boot(boot));
    log.fill(1, n);
    fs::copy(from, folder, fs::copy_options::recursive);
    return log.epoch();
}

// ---- the format ---------------------------------------------------------------------------------

TEST_CASE("the checksum is CRC-32C") {
    CHECK(sse::detail::crc32c("123456789") == 0xe3069283u);
    CHECK(sse::detail::crc32c("") == 0);
    CHECK(sse::detail::crc32c(std::string(32, '\0')) == 0x8a9136aau);
    CHECK(sse::detail::crc32c("6789", sse::detail::crc32c("12345")) == 0xe3069283u);
}

TEST_CASE("a header and a mark come back as they were") {
    log_segment one{.serial = 7, .first = 300, .epoch = "abcdefgh", .previous = "12345678"};
    one.previous_last = 99;
    one.created = 1'700'000'000'000'000;
    log_segment again;
    CHECK(again.parse(one.header()) == log_segment::verdict::good);
    CHECK(again.header() == one.header());
    CHECK(one.file_name() == "0000000007-abcdefgh-00000000000000000300.log");

    const log_mark mark{log_mark::kind::closed, sse::file_sync::each, 5, std::string(36, 'b')};
    const auto parsed = log_mark::parse(log_record::parse(mark.encode()));
    REQUIRE(parsed);
    CHECK(parsed->encode() == mark.encode());
    CHECK(mark.encode().size() == log_mark::size);
}

TEST_CASE("each bit of a header, a mark and a record is under its checksum") {
    std::string record;
    log_record::append(record, 5, 6, "some bytes");
    for (std::size_t bit = 0; bit < 8 * record.size(); ++bit) {
        std::string flipped = record;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
        CHECK(log_record::parse(flipped).size == 0);
    }
    const std::string header = log_segment{.epoch = "abcdefgh"}.header();
    for (std::size_t bit = 0; bit < 8 * header.size(); ++bit) {
        std::string flipped = header;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
        CHECK(log_segment().parse(flipped) != log_segment::verdict::good);
    }
    CHECK(log_record::parse(std::string(100, '\0')).size == 0);
}

/// Reads what follows a header.
sse::detail::log_scan scan(std::string_view bytes, std::uint64_t first,
                           std::vector<std::string>* found = nullptr) {
    sse::detail::bytes_source from(bytes);
    constexpr auto all = std::numeric_limits<std::uint64_t>::max();
    return sse::detail::scan_segment(from, first, all, [&](const log_record& one) {
        if (found) found->emplace_back(one.bytes);
    });
}

/// What is read of any bytes is what writing it again gives.
void check_scan(std::string_view bytes, std::uint64_t first) {
    std::string again;
    std::uint64_t next = first;
    sse::detail::bytes_source from(bytes);
    for (;;) {
        const log_record one = sse::detail::next_record(from);
        if (one.size == 0 || (one.number != 0 && one.number != next)) break;
        const auto mark = log_mark::parse(one);
        if (one.number == 0 && !mark) break;
        if (one.number != 0) ++next;
        log_record::append(again, one.number, one.time, one.bytes);
        from.skip(one.size);
        if (mark && mark->what == log_mark::kind::continued) break;
    }
    CHECK(bytes.starts_with(again));
    const auto found = scan(bytes, first);
    CHECK(found.next == next);
    CHECK(found.end == log_segment::header_size + again.size());
    const sse::detail::log_tail tail(bytes.substr(again.size()), found.next);
    if (bytes.size() - again.size() < log_record::head_size) CHECK(tail.cut);
}

/// Sets the checksums of what looks like records, so that more than the first is read.
std::string with_checksums(std::string bytes) {
    for (std::size_t at = 0; at + log_record::head_size <= bytes.size();) {
        const std::string_view left = std::string_view(bytes).substr(at);
        const std::size_t length = sse::detail::little_endian<std::uint32_t>(left, 0);
        if (length > left.size() - log_record::head_size) break;
        char* const head = bytes.data() + at;
        const auto crc = sse::detail::crc32c(left.substr(log_record::head_size, length));
        sse::detail::put_little_endian(head + 4, crc);
        sse::detail::put_little_endian(head + 24, sse::detail::crc32c(left.substr(0, 24)));
        at += log_record::head_size + length;
    }
    return bytes;
}

/// A segment of these messages, cut anywhere, and with a bit flipped anywhere: the messages before
/// that are read, and one that follows is noticed.
void check_torn(support::dice& dice, const std::vector<std::string>& messages) {
    std::string whole = log_mark{}.encode();
    std::vector<std::size_t> ends;
    for (const std::string& each : messages) {
        log_record::append(whole, ends.size() + 1, 7, each);
        ends.push_back(whole.size());
    }
    const auto before = [&](std::size_t at) { // so many messages end at or before it
        return static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), at) -
                                        ends.begin());
    };
    const std::size_t size = log_mark::size + dice.below(whole.size() - log_mark::size + 1);
    std::vector<std::string> found, expected = messages;
    expected.resize(before(size));
    const auto torn = scan(std::string_view(whole).substr(0, size), 1, &found);
    CHECK(found == expected);
    const std::size_t end = torn.end - log_segment::header_size;
    CHECK(end <= size);
    const sse::detail::log_tail tail(std::string_view(whole).substr(end, size - end), torn.next);
    CHECK(tail.cut);

    if (messages.empty()) return;
    const std::size_t at = log_mark::size + dice.below(whole.size() - log_mark::size);
    whole[at] = static_cast<char>(whole[at] ^ (1 << dice.below(8)));
    const auto flipped = scan(whole, 1);
    CHECK(flipped.next == before(at) + 1);
    const sse::detail::log_tail rest(
        std::string_view(whole).substr(flipped.end - log_segment::header_size), flipped.next);
    if (before(at) + 1 < messages.size()) CHECK(rest.more_records);
}

TEST_CASE("random bytes, with and without checksums, are read as they would be written") {
    support::dice dice(1);
    for (int i = 0; i < 2'000; ++i) {
        const std::string bytes = dice.bytes(200, std::string_view("\0\0\0\0\0\0\1\2\x38", 9));
        check_scan(bytes, 1);
        check_scan(with_checksums(bytes), 1);
    }
}

TEST_CASE("a random segment that is cut or damaged anywhere is read up to there") {
    support::dice dice(1);
    for (int i = 0; i < 2'000; ++i) {
        std::vector<std::string> messages(dice.below(6));
        for (std::string& each : messages) each = dice.bytes(40, "ab");
        check_torn(dice, messages);
    }
}

// ---- restarts -----------------------------------------------------------------------------------

TEST_CASE("a log begins empty, numbers from 1, and says each message once") {
    const temporary_folder folder;
    attached log(folder / "a/b/c");
    log.fill(1, 3);
    CHECK(log.publish("passing", false) == std::pair(std::error_code(), std::uint64_t{0}));
    log.fill(4, 4);
    const auto seen = log.sink.now();
    CHECK(seen.events == std::vector{"epoch " + seen.epoch + " after 0 epoch", "ready"s, "up"s});
    auto expected = numbered(seen.epoch, 1, 3);
    expected.push_back(seen.epoch + "-0=passing");
    expected.push_back(seen.epoch + "-4=m4");
    CHECK(told(log.sink) == expected);
    CHECK(seen.epoch.size() == 8);
    CHECK(std::all_of(seen.epoch.begin(), seen.epoch.end(),
                      [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z'); }));
    CHECK(std::chrono::system_clock::now() - seen.messages[0].time < 1min);
}

TEST_CASE("after a restart the same epoch goes on, and the history is told") {
    const temporary_folder folder;
    std::string epoch;
    for (std::uint64_t round = 0; round < 20; ++round) {
        attached log(folder / "log", small);
        if (round == 0) epoch = log.epoch();
        CHECK(log.epoch() == epoch);
        CHECK(told(log.sink) == numbered(epoch, 1, round * 10));
        log.fill(round * 10 + 1, round * 10 + 10);
    }
    CHECK(segments(folder / "log").size() > 1);
}

TEST_CASE("the history is the newest messages within each of its bounds") {
    const temporary_folder folder;
    std::string epoch;
    {
        attached log(folder / "log", small);
        log.fill(1, 500);
        epoch = log.epoch();
    }
    const auto kept = [&](sse::bus::history bounds) {
        attached log(folder / "log", small, {}, bounds);
        const auto seen = log.sink.now();
        const std::uint64_t n = seen.messages.size();
        CHECK(told(log.sink) == numbered(epoch, 501 - n, 500));
        CHECK(seen.events.front() ==
              "epoch " + epoch + " after " + std::to_string(500 - n) + " epoch");
        return n;
    };
    for (std::size_t n : {0u, 1u, 2u, 50u, 99u, 100u, 101u, 250u, 499u, 500u}) {
        CHECK(kept({n, 1'000'000, {}}) == n);
    }
    CHECK(kept({1'000, 1'000'000, {}}) == 500);
    CHECK(kept({1'000, 0, {}}) == 0);
    CHECK(kept({1'000, 3, {}}) == 0);
    CHECK(kept({1'000, 4, {}}) == 1);
    CHECK(kept({1'000, 400, {}}) == 100);
    CHECK(kept({1'000, 1'000'000, 1h}) == 500);
    std::this_thread::sleep_for(2ms); // older than the bound
    CHECK(kept({1'000, 1'000'000, 1ms}) == 0);
}

TEST_CASE("a killed process: the same epoch goes on, though nothing was closed") {
    for (const auto how : {sse::file_sync::none, sse::file_sync::interval, sse::file_sync::each}) {
        const temporary_folder folder;
        const std::string epoch = leave_behind(folder / "log", folder / "first", 5, how);
        attached log(folder / "log", {}, of_boot("one"));
        CHECK(log.epoch() == epoch);
        CHECK(told(log.sink) == numbered(epoch, 1, 5));
        CHECK(log.sink.now().why.empty());
        log.fill(6, 7);
    }
}

TEST_CASE("a machine that went down: a new epoch, and the old one stays readable") {
    for (const auto how : {sse::file_sync::none, sse::file_sync::interval}) {
        const temporary_folder folder;
        const std::string before = leave_behind(folder / "log", folder / "first", 5, how);
        std::string epoch;
        {
            attached log(folder / "log", {}, of_boot("two"));
            epoch = log.epoch();
            CHECK(epoch != before);
            CHECK(has(log.sink.now().why, "machine went down"));
            CHECK(log.sink.now().events == std::vector{"epoch " + before + " after 0 epoch",
                                                       "epoch " + epoch + " after 0 rewound",
                                                       "ready"s, "up"s});
            log.fill(1, 3);
            CHECK(log.read(before, 2).records.size() == 3);
            CHECK(log.read(before, 5).records.empty());
        }
        attached log(folder / "log", {}, of_boot("three"));
        auto expected = numbered(before, 1, 5);
        for (const std::string& each : numbered(epoch, 1, 3)) expected.push_back(each);
        CHECK(told(log.sink) == expected);
        CHECK(log.sink.now().events.at(1) == "epoch " + epoch + " after 0 rewound");
        CHECK(log.read(before, 2).records.size() == 3);
        CHECK(log.read(epoch, 0).records.size() == 3);
        log.fill(4, 4);
    }
}

TEST_CASE("a machine that went down: where each was synced, or all was closed, the epoch goes on") {
    const temporary_folder folder;
    const std::string epoch =
        leave_behind(folder / "log", folder / "first", 5, sse::file_sync::each);
    {
        attached log(folder / "log", {}, of_boot("two"));
        CHECK(log.epoch() == epoch);
        log.fill(6, 6);
    }
    attached log(folder / "log", {}, of_boot("three"));
    CHECK(log.epoch() == epoch);
    CHECK(told(log.sink) == numbered(epoch, 1, 6));
}

TEST_CASE("no boot id is never that of the last start") {
    const temporary_folder folder;
    const std::string epoch =
        leave_behind(folder / "log", folder / "first", 5, sse::file_sync::interval, "");
    attached log(folder / "log", {}, of_boot(""));
    CHECK(log.epoch() != epoch);
}

TEST_CASE("a copy, such as one from a backup, begins a new epoch") {
    const temporary_folder folder;
    std::string epoch;
    {
        attached log(folder / "log");
        log.fill(1, 5);
        epoch = log.epoch();
    }
    const std::string path = segments(folder / "log").back();
    if (sse::detail::time_of_birth(
            sse::detail::file_handle(sse::detail::open_log_file(path, sse::detail::file_mode::read))
                .get()) == 0) {
        MESSAGE("not run: this file system does not know when a file was made");
        return;
    }
    fs::copy(folder / "log", folder / "copy", fs::copy_options::recursive);
    attached log(folder / "copy");
    CHECK(log.epoch() != epoch);
    CHECK(has(log.sink.now().why, "is a copy"));
    CHECK(told(log.sink) == numbered(epoch, 1, 5));
    fs::rename(folder / "log", folder / "moved");
    attached moved(folder / "moved");
    CHECK(moved.epoch() == epoch);
}

// ---- torn and damaged ---------------------------------------------------------------------------

TEST_CASE("a last record that is cut anywhere is cut off, and its number is given again") {
    const temporary_folder folder;
    const std::string epoch = leave_behind(folder / "log", folder / "first", 3);
    const std::string path = segments(folder / "log").back();
    const std::string whole = contents(path);
    const std::size_t last = whole.size() - log_record::head_size - 2;
    for (std::size_t size = last; size < whole.size(); ++size) {
        CAPTURE(size);
        fs::remove_all(folder / "cut");
        fs::copy(folder / "log", folder / "cut", fs::copy_options::recursive);
        fs::resize_file(segments(folder / "cut").back(), size);
        {
            attached log(folder / "cut", {}, of_boot("one"));
            CHECK(log.epoch() == epoch);
            CHECK(told(log.sink) == numbered(epoch, 1, 2));
            CHECK(has(log.sink.now().why, "cut off") == (size > last));
            log.fill(3, 4);
        }
        attached log(folder / "cut", {}, of_boot("one"));
        CHECK(told(log.sink) == numbered(epoch, 1, 4));
        CHECK(log.sink.now().why.empty());
    }
}

TEST_CASE("no flipped bit of a closed log goes unnoticed") {
    const temporary_folder folder;
    {
        attached log(folder / "log", {}, of_boot("one"));
        log.fill(1, 3);
    }
    const std::string path = segments(folder / "log").back();
    const std::string whole = contents(path);
    for (std::size_t bit = 0; bit < 8 * (whole.size() - log_mark::size); ++bit) {
        CAPTURE(bit);
        std::string flipped = whole;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
        write(path, flipped);
        recording_sink sink;
        file_log_bus log(folder / "log", {}, of_boot("one"));
        const std::string why = error_of([&] { log.attach(sink, everything); });
        CHECK(has(why, path));
        CHECK((has(why, "restore") || has(why, "newer version")));
    }
}

TEST_CASE("a flipped bit in the last record of a killed process: numbers are not given twice") {
    const temporary_folder folder;
    const std::string epoch = leave_behind(folder / "log", folder / "first", 3);
    const std::string path = segments(folder / "log").back();
    const std::string whole = contents(path);
    const std::size_t last = whole.size() - log_record::head_size - 2;
    for (std::size_t at = last; at < whole.size(); ++at) {
        CAPTURE(at);
        fs::remove_all(folder / "flipped");
        fs::copy(folder / "log", folder / "flipped", fs::copy_options::recursive);
        std::string flipped = whole;
        flipped[at] = static_cast<char>(flipped[at] ^ 1);
        write(segments(folder / "flipped").back(), flipped);
        attached log(folder / "flipped", {}, of_boot("one"));
        CHECK(log.epoch() != epoch);
        CHECK(told(log.sink) == numbered(epoch, 1, 2));
        CHECK(has(log.sink.now().why, "cut off"));
    }
}

TEST_CASE("a machine that went down may leave holes in what was not synced: a new epoch") {
    const temporary_folder folder;
    const std::string epoch = leave_behind(folder / "log", folder / "first", 6);
    const std::string path = segments(folder / "log").back();
    std::string holed = contents(path);
    const std::size_t record = log_record::head_size + 2;
    holed.replace(holed.size() - 3 * record, record, record, '\0'); // that of m4
    write(path, holed);
    {
        recording_sink sink;
        file_log_bus log(folder / "log", {}, of_boot("one"));
        const std::string why = error_of([&] { log.attach(sink, everything); });
        CHECK(has(why, "offset " + std::to_string(holed.size() - 3 * record)));
    }
    attached log(folder / "log", {}, of_boot("two"));
    CHECK(log.epoch() != epoch);
    CHECK(told(log.sink) == numbered(epoch, 1, 3));
}

TEST_CASE("damage in a segment that is not the last is an error if the history needs it") {
    const temporary_folder folder;
    std::string epoch;
    {
        attached log(folder / "log", small);
        log.fill(1, 500);
        epoch = log.epoch();
    }
    const auto paths = segments(folder / "log");
    REQUIRE(paths.size() >= 3);
    std::string damaged = contents(paths[1]);
    damaged[2'000] = static_cast<char>(damaged[2'000] ^ 4);
    write(paths[1], damaged);
    {
        recording_sink sink;
        file_log_bus log(folder / "log", small);
        const std::string why = error_of([&] { log.attach(sink, everything); });
        CHECK(has(why, paths[1] + ": damaged at offset"));
        CHECK(has(why, "move it and all before it out of the folder"));
    }
    attached log(folder / "log", small, {}, {10, 1'000, {}});
    CHECK(told(log.sink) == numbered(epoch, 491, 500));
    const auto page = log.read(epoch, 0, 500);
    CHECK(page.failed == sse::errc::bus_refused);
    const bool is_said = log.sink.wait_until([&](const auto& seen) { // for a moment only
        return std::any_of(seen.whys.begin(), seen.whys.end(), [&](const std::string& why) {
            return has(why, paths[1]) && has(why, "damaged at offset");
        });
    });
    CHECK(is_said);
    log.fill(501, 502);
}

TEST_CASE("a missing segment is an error, a missing oldest one is not") {
    const temporary_folder folder;
    std::string epoch;
    {
        attached log(folder / "log", small);
        log.fill(1, 500);
        epoch = log.epoch();
    }
    const auto paths = segments(folder / "log");
    REQUIRE(paths.size() >= 3);
    fs::rename(paths[1], folder / "aside");
    {
        recording_sink sink;
        file_log_bus log(folder / "log", small);
        const std::string why = error_of([&] { log.attach(sink, everything); });
        CHECK(has(why, paths[2] + ": the segment before it is missing"));
    }
    fs::remove(paths[0]);
    attached log(folder / "log", small);
    CHECK(log.epoch() == epoch);
    CHECK_FALSE(log.read(epoch, 0).whole);
}

TEST_CASE("without its newest segment a log begins a new epoch") {
    const temporary_folder folder;
    std::string epoch;
    {
        attached log(folder / "log", small);
        log.fill(1, 200);
        epoch = log.epoch();
    }
    fs::remove(segments(folder / "log").back());
    attached log(folder / "log", small);
    CHECK(log.epoch() != epoch);
    CHECK(has(log.sink.now().why, "the segment after it is missing"));
    log.fill(1, 1);
}

TEST_CASE("a segment whose making was cut short is left out") {
    const temporary_folder folder;
    const std::string epoch = leave_behind(folder / "log", folder / "first", 3);
    log_segment next{.serial = 2, .first = 4, .epoch = epoch};
    log_mark mark{.boot = "one"};
    const std::string start = next.header() + mark.encode();
    for (std::size_t size = 0; size <= start.size(); ++size) {
        CAPTURE(size);
        fs::remove_all(folder / "cut");
        fs::copy(folder / "log", folder / "cut", fs::copy_options::recursive);
        write(folder / "cut/" + next.file_name(), start.substr(0, size));
        attached log(folder / "cut", {}, of_boot("one"));
        CHECK(log.epoch() == epoch);
        CHECK(told(log.sink) == numbered(epoch, 1, 3));
        log.fill(4, 4);
        CHECK(segments(folder / "cut").size() == (size < start.size() ? 1 : 2));
    }
}

TEST_CASE("a newer version, a file in place of the folder, another log in it: errors by name") {
    const temporary_folder folder;
    {
        attached log(folder / "log");
        recording_sink sink;
        file_log_bus second(folder / "log", {});
        const std::string why = error_of([&] { second.attach(sink, everything); });
        CHECK(has(why, "another process or server has this log open"));
    }
    const std::string path = segments(folder / "log").back();
    std::string newer = contents(path);
    newer[8] = 2;
    write(path, newer);
    recording_sink sink;
    file_log_bus log(folder / "log", {});
    const std::string why = error_of([&] { log.attach(sink, everything); });
    CHECK(has(why, path + ": written by a newer version"));

    write(folder / "file", "x");
    file_log_bus in_file(folder / "file", {});
    CHECK(has(error_of([&] { in_file.attach(sink, everything); }), "give the path of a folder"));
}

TEST_CASE("options out of range name the member") {
    const auto refused = [](sse::file_log_options options) {
        return error_of([&] { sse::file_log("log", options); });
    };
    CHECK(has(refused({.interval = 0ms}), "file_log_options::interval"));
    CHECK(has(refused({.segment_bytes = 1}), "file_log_options::segment_bytes"));
    CHECK(has(refused({.bytes = 1}), "file_log_options::bytes"));
    CHECK(has(refused({.age = -1ms}), "file_log_options::age"));
    CHECK(has(refused({.queue_bytes = 1}), "file_log_options::queue_bytes"));
    CHECK(has(error_of([] { sse::file_log(""); }), "no name"));
    CHECK(refused({}).empty());
}

// ---- faults of the disk -------------------------------------------------------------------------

/// A disk whose calls fail as told. The calls go through when `fails` is 0.
struct bad_disk {
    std::atomic<int> fails_write{0}, fails_sync{0}, fails_truncate{0}, fails_create{0};
    std::atomic<std::size_t> room{std::numeric_limits<std::size_t>::max()};
    std::atomic<std::uint64_t> syncs{0}, writes{0};

    file_calls calls(const std::string& boot = "one") {
        file_calls real = of_boot(boot), made = real;
        made.create = [this, real](const std::string& path) {
            return fail(fails_create) ? -1 : real.create(path);
        };
        made.write = [this, real](int file, const char* from, std::size_t size,
                                  std::uint64_t at) -> std::ptrdiff_t {
            ++writes;
            if (fail(fails_write)) return -1;
            const std::size_t some = std::min(size, room.load());
            if (size > 0 && some == 0) {
                errno = ENOSPC;
                return -1;
            }
            const std::ptrdiff_t put = real.write(file, from, some, at);
            if (put > 0 && room != std::numeric_limits<std::size_t>::max())
                room -= static_cast<std::size_t>(put);
            return put;
        };
        made.sync = [this, real](int file) {
            ++syncs;
            return fail(fails_sync) ? -1 : real.sync(file);
        };
        made.truncate = [this, real](int file, std::uint64_t size) {
            return fail(fails_truncate) ? -1 : real.truncate(file, size);
        };
        return made;
    }

private:
    static bool fail(const std::atomic<int>& how) {
        if (how != 0) errno = how;
        return how != 0;
    }
};

TEST_CASE("a full disk refuses, wherever it is full, and works again once there is room") {
    for (std::size_t room = 0; room < 60; ++room) {
        CAPTURE(room);
        const temporary_folder folder;
        bad_disk disk;
        std::string epoch;
        {
            attached log(folder / "log", {}, disk.calls());
            epoch = log.epoch();
            log.fill(1, 2);
            disk.room = room;
            const std::string large(100, 'x');
            for (int i = 0; i < 3; ++i) {
                CHECK(log.publish(large).first == sse::errc::bus_refused);
            }
            CHECK_FALSE(*log.sink.now().is_up);
            CHECK(has(log.sink.now().why, "free space"));
            CHECK_FALSE(log.publish("passing", false).first);
            disk.room = std::numeric_limits<std::size_t>::max();
            log.fill(3, 4);
            CHECK(*log.sink.now().is_up);
            CHECK(log.read(epoch, 0).records.size() == 4);
        }
        attached log(folder / "log", {}, disk.calls());
        CHECK(told(log.sink) == numbered(epoch, 1, 4));
        CHECK(log.sink.now().why.empty());
    }
}

TEST_CASE("there is room again: health says so by itself") {
    const temporary_folder folder;
    bad_disk disk;
    attached log(folder / "log", {}, disk.calls());
    disk.room = 10;
    CHECK(log.publish("refused").first == sse::errc::bus_refused);
    disk.room = std::numeric_limits<std::size_t>::max();
    const bool is_up = log.sink.wait_until([](const auto& seen) { return *seen.is_up; });
    CHECK(is_up);
    log.fill(1, 1);
}

TEST_CASE("short writes are continued") {
    const temporary_folder folder;
    file_calls real = of_boot("one"), shorter = real;
    shorter.write = [real](int file, const char* from, std::size_t size, std::uint64_t at) {
        return real.write(file, from, std::min<std::size_t>(size, 3), at);
    };
    std::string epoch;
    {
        attached log(folder / "log", {}, shorter);
        log.fill(1, 20);
        epoch = log.epoch();
    }
    attached log(folder / "log", {}, of_boot("one"));
    CHECK(told(log.sink) == numbered(epoch, 1, 20));
}

TEST_CASE("a write that fails and cannot be taken back: what it left is never seen") {
    const temporary_folder folder;
    bad_disk disk;
    std::string epoch;
    {
        attached log(folder / "log", {}, disk.calls());
        epoch = log.epoch();
        log.fill(1, 2);
        disk.fails_truncate = EIO;
        disk.room = 150;
        CHECK(log.publish(std::string(200, 'x')).first == sse::errc::bus_refused);
        disk.room = std::numeric_limits<std::size_t>::max();
        log.fill(3, 4);
        CHECK(segments(folder / "log").size() == 2);
        CHECK(log.read(epoch, 0).records.size() == 4);
    }
    disk.fails_truncate = 0;
    attached log(folder / "log", {}, disk.calls());
    CHECK(log.epoch() == epoch);
    CHECK(told(log.sink) == numbered(epoch, 1, 4));
}

TEST_CASE("a sync that fails, with file_sync::each: refused, and the epoch goes on") {
    const temporary_folder folder;
    bad_disk disk;
    std::string epoch;
    {
        attached log(folder / "log", synced(sse::file_sync::each), disk.calls());
        epoch = log.epoch();
        log.fill(1, 2);
        disk.fails_sync = EIO;
        for (int i = 0; i < 3; ++i) CHECK(log.publish("x").first == sse::errc::bus_refused);
        CHECK_FALSE(*log.sink.now().is_up);
        CHECK(has(log.sink.now().why, "check the disk"));
        disk.fails_sync = 0;
        log.fill(3, 4);
        CHECK(*log.sink.now().is_up);
        CHECK(log.epoch() == epoch);
        CHECK(segments(folder / "log").size() == 2); // not the file that failed
    }
    attached log(folder / "log", {}, disk.calls("two"));
    CHECK(log.epoch() == epoch);
    CHECK(told(log.sink) == numbered(epoch, 1, 4));
}

TEST_CASE("a sync that fails, with file_sync::interval: a new epoch after what is on the disk") {
    const temporary_folder folder;
    bad_disk disk;
    std::string before, epoch;
    {
        attached log(folder / "log", {.interval = 1ms}, disk.calls());
        before = log.epoch();
        log.fill(1, 2);
        const auto syncs = [&] { return disk.syncs.load(); };
        for (auto had = syncs(); syncs() < had + 1;) log.publish("passing", false);
        // Wait until a page could be synced: nothing more is due.
        const auto had = syncs();
        log.stored("m3");
        while (syncs() == had) std::this_thread::yield();
        disk.fails_sync = EIO;
        log.publish("m4"); // refused if a sync of m3 was due
        const bool fails = log.sink.wait_until([](const auto& seen) { return !*seen.is_up; });
        CHECK(fails);
        CHECK(log.publish("x").first == sse::errc::bus_refused);
        disk.fails_sync = 0;
        CHECK(log.stored("m1") == 1);
        epoch = log.epoch();
        CHECK(epoch != before);
        CHECK(log.sink.now().events.back() == "up");
        const auto kept = log.read(before, 0);
        CHECK(kept.records.size() >= 2);
        CHECK(kept.records.size() <= 3);
    }
    attached log(folder / "log", {}, disk.calls("two"));
    CHECK(log.epoch() == epoch);
    const auto all = told(log.sink);
    CHECK(all.back() == epoch + "-1=m1");
    CHECK(all.size() <= 4);
}

TEST_CASE("a disk that is full at the start: the history is told, publishing works later") {
    const temporary_folder folder;
    const std::string before = leave_behind(folder / "log", folder / "first", 3);
    for (const std::string boot : {"one", "two"}) {
        CAPTURE(boot);
        bad_disk disk;
        disk.room = 5;
        attached log(folder / "log", {}, disk.calls(boot));
        CHECK(told(log.sink) == numbered(before, 1, 3));
        CHECK(log.publish("x").first == sse::errc::bus_refused);
        CHECK_FALSE(*log.sink.now().is_up);
        disk.room = std::numeric_limits<std::size_t>::max();
        CHECK(log.stored("x") == (boot == "one" ? 4 : 1));
        CHECK((log.epoch() == before) == (boot == "one"));
        if (boot == "one") { // as it was
            log.detach();
            fs::remove_all(folder / "log");
            fs::copy(folder / "first", folder / "log", fs::copy_options::recursive);
            fs::resize_file(segments(folder / "log").back(),
                            fs::file_size(segments(folder / "log").back()) - log_mark::size);
        }
    }
}

TEST_CASE("a disk that cannot be written at the first start is an error") {
    const temporary_folder folder;
    bad_disk disk;
    for (std::atomic<int>* each : {&disk.fails_create, &disk.fails_write, &disk.fails_sync}) {
        *each = ENOSPC;
        recording_sink sink;
        file_log_bus log(folder / "log", {}, disk.calls());
        CHECK(has(error_of([&] { log.attach(sink, everything); }), "free space"));
        *each = 0;
        CHECK(segments(folder / "log").empty());
    }
    attached log(folder / "log", {}, disk.calls());
    log.fill(1, 1);
}

// ---- retention and pages ------------------------------------------------------------------------

TEST_CASE("the oldest segments are deleted beyond the bound of bytes") {
    const temporary_folder folder;
    constexpr sse::file_log_options options{.segment_bytes = 4 * 1024, .bytes = 16 * 1024};
    std::string epoch;
    std::uint64_t oldest = 0;
    {
        attached log(folder / "log", options);
        epoch = log.epoch();
        log.fill(1, 2'000);
        const auto page = log.read(epoch, 0, 10);
        CHECK_FALSE(page.whole);
        REQUIRE(page.records.size() == 10);
        oldest = page.records[0].number;
        CHECK(oldest > 1);
        CHECK(log.read(epoch, oldest - 1, 10).whole);
        CHECK_FALSE(log.read(epoch, oldest - 2, 10).whole);
        std::uintmax_t sum = 0;
        for (const std::string& each : segments(folder / "log")) sum += fs::file_size(each);
        CHECK(sum <= options.bytes + options.segment_bytes);
        CHECK(sum > options.bytes / 2);
    }
    attached log(folder / "log", options);
    CHECK(told(log.sink) == numbered(epoch, oldest, 2'000));
}

TEST_CASE("segments are deleted by age") {
    const temporary_folder folder;
    attached log(folder / "log", {.segment_bytes = 4 * 1024, .age = 200ms});
    const std::string epoch = log.epoch();
    log.fill(1, 300);
    const auto deadline = std::chrono::steady_clock::now() + 30s;
    while (log.read(epoch, 0, 1).whole && std::chrono::steady_clock::now() < deadline) {
        log.stored("later");
    }
    CHECK_FALSE(log.read(epoch, 0, 1).whole);
    while (segments(folder / "log").size() > 1 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();
    }
    CHECK(segments(folder / "log").size() == 1); // never the one that is written
}

TEST_CASE("pages from any place are what was published") {
    const temporary_folder folder;
    attached log(folder / "log", small);
    log.fill(1, 700);
    const std::string epoch = log.epoch();
    support::dice dice(1);
    for (int i = 0; i < 200; ++i) {
        const std::uint64_t after = dice.below(720);
        const std::size_t most = dice.below(300);
        const auto page = log.read(epoch, after, most);
        CHECK_FALSE(page.failed);
        CHECK(page.whole);
        const std::uint64_t left = after < 700 ? 700 - after : 0;
        REQUIRE(page.records.size() == std::min<std::uint64_t>(most, left));
        for (std::size_t k = 0; k < page.records.size(); ++k) {
            CHECK(page.records[k].number == after + 1 + k);
            CHECK(page.records[k].bytes == "m" + std::to_string(after + 1 + k));
        }
    }
    for ([[maybe_unused]] const std::uint64_t after :
         {std::uint64_t{0}, ~std::uint64_t{0} - 1, ~std::uint64_t{0}})
        CHECK_FALSE(log.read("unknown0", after).whole);
    CHECK(log.read(epoch, std::numeric_limits<std::uint64_t>::max()).records.empty());
}

TEST_CASE("a page is bounded in bytes, but not below one record") {
    const temporary_folder folder;
    attached log(folder / "log");
    const std::string large(400 * 1024, 'x'), huge(3 * 1024 * 1024, 'y');
    for (int i = 0; i < 5; ++i) log.stored(large);
    log.stored(huge);
    CHECK(log.read(log.epoch(), 0).records.size() == 3);
    CHECK(log.read(log.epoch(), 3).records.size() == 3);
    REQUIRE(log.read(log.epoch(), 5).records.size() == 1);
    CHECK(log.read(log.epoch(), 5).records[0].bytes == huge);
}

// ---- threads and ends ---------------------------------------------------------------------------

TEST_CASE("the queue is bounded in bytes, and detach() answers all that waits") {
    const temporary_folder folder;
    std::atomic<bool> holds{true};
    file_calls real = of_boot("one"), held = real;
    std::atomic<int> writes{0};
    held.write = [&, real](int file, const char* from, std::size_t size, std::uint64_t at) {
        if (++writes > 1) holds.wait(true);
        return real.write(file, from, size, at);
    };
    std::atomic<int> stored{0}, full{0}, stopped{0};
    {
        attached log(folder / "log", {.queue_bytes = 64 * 1024}, held);
        for (int i = 0; i < 100; ++i) {
            log.bus().publish(std::string(1'000, 'x'), true, 1s,
                              [&](std::error_code failed, std::uint64_t) {
                                  if (!failed) ++stored;
                                  if (failed == sse::errc::no_room) ++full;
                              });
        }
        CHECK(full > 30);
        CHECK(full < 60);
        holds = false;
        holds.notify_all();
        log.detach();
        CHECK(stored + full == 100);
        log.bus().publish("x", true, 1s, [&](std::error_code failed, std::uint64_t) {
            if (failed == sse::errc::stopped) ++stopped;
        });
        log.bus().read(log.epoch(), 0, 1, [&](const sse::bus::page& found) {
            if (found.failed == sse::errc::stopped) ++stopped;
        });
        CHECK(stopped == 2);
        log.detach();
    }
    CHECK(stored > 0);
}

TEST_CASE("many publishers: one order, dense numbers, for each its own") {
    for (const auto how : {sse::file_sync::none, sse::file_sync::interval, sse::file_sync::each}) {
        const temporary_folder folder;
        constexpr int threads = 4, each = 500;
        sse::file_log_options options = synced(how);
        options.segment_bytes = 16 * 1024;
        std::string epoch;
        std::vector<std::string> live;
        {
            attached log(folder / "log", options);
            epoch = log.epoch();
            std::atomic<int> done{0};
            std::vector<std::thread> publishers;
            for (int t = 0; t < threads; ++t) {
                publishers.emplace_back([&, t] {
                    for (int i = 0; i < each; ++i) {
                        const std::string bytes = std::to_string(t) + ":" + std::to_string(i);
                        log.bus().publish(bytes, true, 1s,
                                          [&](std::error_code failed, std::uint64_t) {
                                              if (!failed) ++done;
                                          });
                        if (i % 50 == 0) log.read(epoch, 0, 10);
                    }
                });
            }
            for (std::thread& one : publishers) one.join();
            log.detach();
            CHECK(done == threads * each);
            live = told(log.sink);
            CHECK(live.size() == threads * each);
            CHECK(log.sink.now().events.size() == 3); // none of them about numbers
        }
        attached log(folder / "log", options);
        CHECK(told(log.sink) == live);
        std::array<int, threads> next{};
        for (const auto& message : log.sink.now().messages) {
            const auto t = static_cast<std::size_t>(message.bytes[0] - '0');
            CHECK(message.bytes.substr(2) == std::to_string(next[t]++));
        }
    }
}

TEST_CASE("what waits shares a write and a sync") {
    const temporary_folder folder;
    bad_disk disk;
    std::atomic<bool> holds{true};
    file_calls calls = disk.calls();
    calls.sync = [&, counted = calls.sync](int file) {
        if (disk.syncs > 1) holds.wait(true);
        return counted(file);
    };
    attached log(folder / "log", synced(sse::file_sync::each), calls);
    const std::uint64_t writes = disk.writes, syncs = disk.syncs;
    std::atomic<int> done{0};
    for (int i = 0; i < 1'000; ++i) {
        log.bus().publish("x", true, 1s, [&](std::error_code, std::uint64_t) { ++done; });
    }
    holds = false;
    holds.notify_all();
    log.stored("last");
    CHECK(done == 1'000);
    CHECK(disk.writes - writes <= 4);
    CHECK(disk.syncs - syncs <= 4);
}

/// Has no memory for every third call.
class short_of_memory final : public sse::bus::sink {
public:
    void epoch(std::string_view, std::uint64_t, sse::gap_reason) override { maybe(); }
    void message(const sse::bus::record& what) override {
        maybe();
        const std::lock_guard lock(mutex_);
        numbers_.push_back(what.number);
    }
    void passing(std::string_view) override {
        maybe();
        const std::lock_guard lock(mutex_);
        numbers_.push_back(0);
    }
    void lost(std::uint64_t) override {}
    void hole(std::uint64_t) override {}
    void ready() override { maybe(); }
    void health(bool up, std::string_view) override {
        maybe();
        is_up = up;
    }
    std::vector<std::uint64_t> numbers() {
        const std::lock_guard lock(mutex_);
        return numbers_;
    }
    std::atomic<bool> is_up{false};

private:
    void maybe() {
        if (++calls_ % 3 == 0) throw std::bad_alloc();
    }
    std::atomic<int> calls_{0};
    std::mutex mutex_;
    std::vector<std::uint64_t> numbers_;
};

TEST_CASE("a server that is short of memory is told again, and nothing twice") {
    const temporary_folder folder;
    for (const std::uint64_t before : {0u, 4u}) {
        short_of_memory sink;
        file_log_bus log(folder / "log", {});
        log.attach(sink, everything);
        std::atomic<int> done{0};
        for (int i = 0; i < 5; ++i) {
            log.publish("x", i != 2, 1s, [&](std::error_code failed, std::uint64_t) {
                if (!failed) ++done;
            });
        }
        const auto deadline = std::chrono::steady_clock::now() + 30s;
        while (!(done == 5 && sink.is_up) && std::chrono::steady_clock::now() < deadline) {
            std::this_thread::yield();
        }
        CHECK(sink.is_up);
        std::vector<std::uint64_t> expected;
        for (std::uint64_t n = 1; n <= before; ++n) expected.push_back(n);
        for (const std::uint64_t n : {1u, 2u, 0u, 3u, 4u}) expected.push_back(n ? before + n : 0);
        CHECK(sink.numbers() == expected);
    }
}

#if defined(__linux__)

/// A disk that fails at random, and remembers what is on it for certain: a machine that goes down
/// keeps that, and pieces of the rest.
class doubtful_disk {
public:
    explicit doubtful_disk(std::uint64_t seed) : dice_(seed) {}

    /// Of so many calls, one fails. 0: none does.
    void fail_one_in(std::size_t n) {
        const std::lock_guard lock(mutex_);
        one_in_ = n;
    }

    file_calls calls(const std::string& boot) {
        file_calls real = of_boot(boot), made = real;
        is_left_ = false;
        made.create = [this, real](const std::string& path) {
            const std::lock_guard lock(mutex_);
            if (fails()) return -1;
            if (!is_left_) on_disk_.erase(path);
            return real.create(path);
        };
        made.write = [this, real](int file, const char* from, std::size_t size,
                                  std::uint64_t at) -> std::ptrdiff_t {
            const std::lock_guard lock(mutex_);
            if (fails()) return -1;
            return real.write(file, from, dice_.one_in(2) ? size : (size + 1) / 2, at);
        };
        made.sync = [this](int file) {
            const std::lock_guard lock(mutex_);
            if (fails()) return -1;
            const std::string path = fs::read_symlink("/proc/self/fd/" + std::to_string(file));
            if (!is_left_) on_disk_[path] = contents(path);
            return 0;
        };
        made.truncate = [this, real](int file, std::uint64_t size) {
            const std::lock_guard lock(mutex_); // two faults at once leave what was refused
            return real.truncate(file, size);
        };
        return made;
    }

    /// What a program leaves that is killed now.
    void leave(const std::string& folder, const std::string& copy) {
        const std::lock_guard lock(mutex_);
        is_left_ = true;
        fs::remove_all(copy);
        fs::copy(folder, copy);
    }

    void lose_power(const std::string& folder) {
        for (const std::string& path : segments(folder)) {
            const std::string now = contents(path);
            const auto found = on_disk_.find(path);
            std::string left = found == on_disk_.end() ? "" : found->second;
            if (found == on_disk_.end() && dice_.one_in(2)) {
                fs::remove(path);
                continue;
            }
            const std::size_t end =
                now.size() > left.size() ? dice_.between(left.size(), now.size()) : 0;
            while (left.size() < end) {
                const std::size_t size = std::min<std::size_t>(end - left.size(), 16);
                left += dice_.one_in(2) ? now.substr(left.size(), size) : std::string(size, '\0');
            }
            write(path, left);
            on_disk_[path] = left;
        }
    }

private:
    bool fails() {
        if (one_in_ == 0 || !dice_.one_in(one_in_)) return false;
        errno = dice_.one_in(2) ? ENOSPC : EIO;
        return true;
    }

    support::dice dice_;
    std::mutex mutex_;
    std::size_t one_in_ = 0;
    bool is_left_ = false; // what happens now is not of this life any more
    std::map<std::string, std::string> on_disk_;
};

/// What clients have seen of a log.
class ledger {
public:
    /// All that a sink was told: no number has two messages, none that was refused is among them.
    void add(const recording_sink::seen& seen) {
        for (const auto& each : seen.messages) {
            const auto [found, is_new] = told_.try_emplace({each.epoch, each.number}, each.bytes);
            if (!is_new) CHECK(found->second == each.bytes);
            CHECK(refused_.count(each.bytes) == 0);
        }
    }
    void refuse(const std::string& bytes) { refused_.insert(bytes); }

    /// Of what was told, only the ends of former epochs may be missing in a history.
    void check_history(const recording_sink::seen& seen, bool may_lose) {
        std::map<std::string, std::uint64_t> last;
        for (const auto& each : seen.messages) {
            CHECK(each.number == last[each.epoch] + 1);
            last[each.epoch] = each.number;
        }
        for (const auto& [id, bytes] : told_) {
            if (id.second <= last[id.first]) continue;
            CHECK(may_lose);
            CHECK(id.first != seen.epoch);
        }
        // What is lost once does not come back: it is not looked for again.
        std::erase_if(told_,
                      [&](const auto& each) { return each.first.second > last[each.first.first]; });
    }

private:
    std::map<std::pair<std::string, std::uint64_t>, std::string> told_;
    std::set<std::string> refused_;
};

/// Publishes some messages at a time, and waits for all.
void publish_some(attached& log, support::dice& dice, ledger& all, int& serial) {
    const std::size_t count = dice.between(1, 6);
    std::vector<std::string> sent;
    std::vector<std::error_code> outcome(count);
    std::atomic<std::size_t> done{0};
    for (std::size_t i = 0; i < count; ++i) {
        sent.push_back("message " + std::to_string(++serial) + std::string(dice.below(60), 'x'));
        log.bus().publish(sent.back(), true, 1s, [&, i](std::error_code failed, std::uint64_t) {
            outcome[i] = failed;
            ++done;
        });
    }
    while (done < count) std::this_thread::yield();
    for (std::size_t i = 0; i < count; ++i) {
        if (!outcome[i]) continue;
        CHECK(outcome[i] == sse::errc::bus_refused);
        all.refuse(sent[i]);
    }
}

TEST_CASE(
    "random faults, ends and losses of power: nothing is lost untold, no number comes twice") {
    for (const auto how : {sse::file_sync::none, sse::file_sync::interval, sse::file_sync::each}) {
        CAPTURE(static_cast<int>(how));
        const temporary_folder folder;
        support::dice dice(static_cast<std::uint64_t>(how) + 1);
        doubtful_disk disk(dice.below(1'000'000));
        ledger all;
        sse::file_log_options options{.sync = how, .interval = 1ms, .segment_bytes = 4 * 1024};
        int serial = 0, boot = 0;
        bool may_lose = false;
        for (int round = 0; round < 30; ++round) {
            CAPTURE(round);
            const std::string path = folder / "log";
            {
                attached log(path, options, disk.calls("boot" + std::to_string(boot)));
                all.check_history(log.sink.now(), may_lose);
                may_lose = false;
                disk.fail_one_in(dice.one_in(2) ? 0 : dice.between(3, 12));
                for (std::size_t i = dice.below(12); i > 0; --i)
                    publish_some(log, dice, all, serial);
                disk.fail_one_in(0);
                all.add(log.sink.now());
                may_lose = how != sse::file_sync::each; // where a sync failed
                if (dice.one_in(3)) {
                    log.detach();
                    continue;
                }
                disk.leave(path, folder / "left");
                log.detach();
                all.add(log.sink.now());
            }
            fs::remove_all(path);
            fs::rename(folder / "left", path);
            if (dice.one_in(2)) {
                disk.lose_power(path);
                ++boot;
            }
        }
        CHECK(serial > 200);
    }
}

#endif

#if !defined(_WIN32)

/// Publishes and writes each confirmed number to the pipe, until it is killed.
[[noreturn]] void publish_until_killed(const std::string& folder, int pipe) {
    class quiet final : public sse::bus::sink {
        void epoch(std::string_view, std::uint64_t, sse::gap_reason) override {}
        void message(const sse::bus::record&) override {}
        void passing(std::string_view) override {}
        void lost(std::uint64_t) override {}
        void hole(std::uint64_t) override {}
        void ready() override {}
        void health(bool, std::string_view) override {}
    };
    quiet sink;
    file_log_bus log(folder, {.segment_bytes = 64 * 1024});
    log.attach(sink, {1, 1'000, {}});
    for (std::uint64_t i = 0;; ++i) {
        log.publish(std::to_string(i) + std::string(i % 300, 'x'), true, 1s,
                    [pipe](std::error_code failed, std::uint64_t number) {
                        if (!failed && ::write(pipe, &number, sizeof number) < 0) std::_Exit(1);
                    });
    }
}

TEST_CASE("kill -9 at any time loses nothing that was confirmed, and no number comes twice") {
    const temporary_folder folder;
    support::dice dice(std::random_device{}());
    std::uint64_t confirmed = 0;
    std::string epoch;
    for (int round = 0; round < 8; ++round) {
        std::array<int, 2> pipe{};
        REQUIRE(::pipe(pipe.data()) == 0);
        const pid_t child = ::fork();
        if (child == 0) publish_until_killed(folder / "log", pipe[1]);
        ::close(pipe[1]);
        const std::uint64_t until = confirmed + 1 + dice.below(3'000);
        std::uint64_t number = 0;
        bool killed = false;
        while (::read(pipe[0], &number, sizeof number) == sizeof number) {
            CHECK(number == confirmed + 1); // after a kill some may have been stored unconfirmed
            confirmed = number;
            if (number >= until && !std::exchange(killed, true)) ::kill(child, SIGKILL);
        }
        ::close(pipe[0]);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFSIGNALED(status));
        attached log(folder / "log", {.segment_bytes = 64 * 1024});
        const auto seen = log.sink.now();
        if (round == 0) epoch = seen.epoch;
        CHECK(seen.epoch == epoch);
        CHECK(seen.events.size() == 3);
        REQUIRE(seen.messages.size() >= confirmed);
        CHECK(seen.messages.front().number == 1);
        CHECK(seen.messages.back().number == seen.messages.size());
        confirmed = seen.messages.size();
    }
}

#endif

} // namespace filelog_test
