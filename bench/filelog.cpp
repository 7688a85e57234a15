// filelog.cpp - what the log in files stores in a second, and how long it takes to start. Beside it
// SQLite in WAL mode, with a transaction for each message, as what a file of a B-tree costs. From
// the folder of sse.hpp; without libsqlite3-dev leave out the last two words of the first line:
//
//   g++ -O2 -std=c++20 -pthread -I. bench/filelog.cpp -o filelog -DBENCH_SQLITE -lsqlite3
//   ./filelog --seconds 20 --folder /somewhere/on/a/disk
//
// One publisher keeps the queue of the log half full; counted is what was confirmed, until all was.
// With one message at a time, it waits for each to be confirmed before it publishes the next. Each
// row begins with an empty folder. The start is from attach() to the last record of the history,
// with a sink that looks at each; first with the files in the memory of the system, as after the
// restart of a program, then, where the program may drop them, from the disk.
#include "bench.hpp"
#include "publisher.hpp"

#include <filesystem>
#include <memory>

#if defined(BENCH_SQLITE)
#include <sqlite3.h>
#endif

namespace {

namespace fs = std::filesystem;

struct settings {
    double seconds = 20;
    std::uint64_t rounds = 3;
    std::uint64_t bytes = 100;
    std::uint64_t records = 1'000'000;
    std::string folder = fs::temp_directory_path().string();
    std::string json;
};

constexpr std::size_t queue_bytes = 16 * 1024 * 1024;

/// A log in an empty folder of its own.
class fresh_log {
public:
    fresh_log(const settings& set, sse::file_sync sync)
        : folder_(fs::path(set.folder) / "sse-bench-filelog"),
          publisher_(make(folder_, sync), set.bytes) {}
    ~fresh_log() {
        publisher_.close();
        std::error_code ignored;
        fs::remove_all(folder_, ignored);
    }

    bench::publisher& publisher() noexcept { return publisher_; }
    const fs::path& folder() const { return folder_; }

private:
    static std::shared_ptr<sse::bus> make(const fs::path& folder, sse::file_sync sync) {
        fs::remove_all(folder);
        return sse::file_log(
            folder.string(),
            {.sync = sync, .bytes = std::uint64_t{1} << 40, .queue_bytes = queue_bytes});
    }

    fs::path folder_;
    bench::publisher publisher_;
};

/// Messages a second.
double measure(const settings& set, sse::file_sync sync, bool one_at_a_time, double seconds) {
    fresh_log log(set, sync);
    const std::uint64_t most =
        one_at_a_time ? 1 : std::max<std::uint64_t>(2, queue_bytes / 2 / (set.bytes + 24));
    const std::uint64_t start = bench::now_ns();
    const std::uint64_t end = start + static_cast<std::uint64_t>(seconds * 1e9);
    do {
        for (int i = 0; i < (one_at_a_time ? 1 : 64); ++i) log.publisher().publish(most);
    } while (bench::now_ns() < end);
    const auto count = static_cast<double>(log.publisher().wait_for_all());
    return count / (static_cast<double>(bench::now_ns() - start) / 1e9);
}

/// Drops what the system keeps of these files in its memory.
void drop_from_memory(const fs::path& folder) {
    for (const auto& each : fs::directory_iterator(folder)) {
        const int file = ::open(each.path().c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) continue;
        ::fdatasync(file);
        ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        ::close(file);
    }
}

struct start_times {
    double attach_s = 0; ///< Until attach() has returned.
    double ready_s = 0;  ///< Until the history was told.
};

start_times start(const fs::path& folder, std::uint64_t records) {
    bench::counting_sink sink;
    start_times times;
    const std::uint64_t begin = bench::now_ns();
    const auto log = sse::file_log(folder.string());
    log->attach(sink, {.messages = records, .bytes = std::size_t{1} << 40});
    times.attach_s = static_cast<double>(bench::now_ns() - begin) / 1e9;
    sink.wait_until_ready();
    times.ready_s = static_cast<double>(bench::now_ns() - begin) / 1e9;
    log->detach();
    if (sink.count != records)
        throw std::runtime_error("the history has " + std::to_string(sink.count) + " records");
    return times;
}

#if defined(BENCH_SQLITE)

/// Transactions a second, each with one message.
class sqlite_file {
public:
    explicit sqlite_file(const settings& set)
        : path_((fs::path(set.folder) / "sse-bench-filelog.sqlite").string()) {
        remove();
        check(sqlite3_open(path_.c_str(), &file_));
        run("PRAGMA journal_mode=WAL");
        run("PRAGMA synchronous=NORMAL");
        run("CREATE TABLE messages (number INTEGER PRIMARY KEY, bytes BLOB)");
        check(sqlite3_prepare_v2(file_, "INSERT INTO messages (bytes) VALUES (?)", -1, &insert_,
                                 nullptr));
    }
    ~sqlite_file() {
        sqlite3_finalize(insert_);
        sqlite3_close(file_);
        remove();
    }
    sqlite_file(const sqlite_file&) = delete;
    sqlite_file& operator=(const sqlite_file&) = delete;

    double measure(std::uint64_t bytes, double seconds) {
        const std::string message(bytes, 'x');
        const std::uint64_t start = bench::now_ns();
        const std::uint64_t end = start + static_cast<std::uint64_t>(seconds * 1e9);
        double count = 0;
        do {
            check(sqlite3_bind_blob(insert_, 1, message.data(), static_cast<int>(bytes),
                                    SQLITE_STATIC));
            if (sqlite3_step(insert_) != SQLITE_DONE) fail();
            check(sqlite3_reset(insert_));
            ++count;
        } while (bench::now_ns() < end);
        return count / (static_cast<double>(bench::now_ns() - start) / 1e9);
    }

private:
    void run(const char* sql) { check(sqlite3_exec(file_, sql, nullptr, nullptr, nullptr)); }
    void check(int status) {
        if (status != SQLITE_OK) fail();
    }
    [[noreturn]] void fail() {
        throw std::runtime_error(std::string("SQLite: ") + sqlite3_errmsg(file_));
    }
    void remove() const {
        for (const char* end : {"", "-wal", "-shm"}) fs::remove(path_ + end);
    }

    std::string path_;
    sqlite3* file_ = nullptr;
    sqlite3_stmt* insert_ = nullptr;
};

#endif

struct row {
    std::string name;
    std::function<double(double seconds)> measure;
    std::vector<double> rounds = {};
};

std::vector<row> make_rows(const settings& set) {
    using sse::file_sync;
    std::vector<row> rows;
    const auto add = [&](std::string name, file_sync sync, bool one) {
        rows.push_back({std::move(name), [&set, sync, one](double seconds) {
                            return measure(set, sync, one, seconds);
                        }});
    };
    add("interval (10 ms)", file_sync::interval, false);
    add("none", file_sync::none, false);
    add("each", file_sync::each, false);
    add("interval, one at a time", file_sync::interval, true);
    add("none, one at a time", file_sync::none, true);
    add("each, one at a time", file_sync::each, true);
#if defined(BENCH_SQLITE)
    rows.push_back({"SQLite, WAL, NORMAL", [&set](double seconds) {
                        return sqlite_file(set).measure(set.bytes, seconds);
                    }});
#endif
    return rows;
}

struct results {
    std::vector<row> rows;
    start_times cached{}, from_disk{};
};

results run_rounds(const settings& set) {
    results all{make_rows(set)};
    const double slice = set.seconds / static_cast<double>(set.rounds * all.rows.size());
    for (std::uint64_t number = 1; number <= set.rounds; ++number) {
        bench::progress("round " + std::to_string(number) + " of " + std::to_string(set.rounds));
        for (row& each : all.rows) each.rounds.push_back(each.measure(slice));
    }
    bench::progress("start");
    fresh_log log(set, sse::file_sync::none);
    for (std::uint64_t i = 0; i < set.records; ++i) log.publisher().publish(50'000);
    log.publisher().wait_for_all();
    log.publisher().close();
    all.cached = start(log.folder(), set.records);
    drop_from_memory(log.folder());
    all.from_disk = start(log.folder(), set.records);
    bench::end_progress();
    return all;
}

void print(const settings& set, const results& all) {
    const double rival = bench::median(all.rows.back().rounds);
    bench::table table;
    table.row({"file_sync", "messages a second", "to the last row"});
    for (const row& each : all.rows) {
        const double value = bench::median(each.rounds);
        table.row({each.name, bench::grouped(value, 0), bench::grouped(value / rival, 1)});
    }
    std::printf("\n");
    table.print();
    std::printf(
        "\nstart with %s records: %.2f s (attach() %.2f s); from the disk %.2f s (%.2f s)\n",
        bench::grouped(static_cast<double>(set.records), 0).c_str(), all.cached.ready_s,
        all.cached.attach_s, all.from_disk.ready_s, all.from_disk.attach_s);
}

void write_json(const settings& set, const std::vector<bench::fact>& facts, const results& all) {
    bench::json out;
    out.field("benchmark", "filelog");
    bench::write_facts(out, facts);
    out.open("settings").field("seconds", set.seconds).field("rounds", set.rounds);
    out.field("bytes", set.bytes).field("records", set.records).close().open("rows", '[');
    for (const row& each : all.rows) {
        out.open("").field("name", each.name);
        out.field("median", bench::median(each.rounds)).open("rounds", '[');
        for (const double value : each.rounds) out.field("", value);
        out.close().close();
    }
    out.close().open("start");
    out.field("ready_s", all.cached.ready_s).field("attach_s", all.cached.attach_s);
    out.field("from_disk_ready_s", all.from_disk.ready_s);
    out.field("from_disk_attach_s", all.from_disk.attach_s).close().write(set.json);
}

settings parse(int count, char** values) {
    settings set;
    bench::flags flags("filelog", "what the log in files stores, beside SQLite.");
    flags.number("--seconds", set.seconds, 0.1, 600.0, "for all rows together");
    flags.number<std::uint64_t>("--rounds", set.rounds, 1, 100, "of all rows in turn");
    flags.number<std::uint64_t>("--bytes", set.bytes, 1, 1 << 20, "of a message");
    flags.number<std::uint64_t>("--records", set.records, 1, 100'000'000, "to start with");
    flags.text("--folder", set.folder, "where to write (" + set.folder + ")");
    flags.text("--json", set.json, "also write all rounds to this file");
    flags.parse(count, values);
    return set;
}

} // namespace

int main(int count, char** values) {
    const settings set = parse(count, values);
    return bench::run_program("filelog", [&] {
        auto facts = bench::describe_machine();
        facts.emplace_back("messages", std::to_string(set.bytes) + " bytes, in " + set.folder);
        bench::print_facts(facts);
        const results all = run_rounds(set);
        print(set, all);
        write_json(set, facts, all);
        return 0;
    });
}
