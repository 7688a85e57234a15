// bench.hpp - what the benchmark programs share: flags, clocks, cores, the stamped line, a steady
// tick, a server that is told what to publish, medians, table, JSON, the machine in words. Linux
// only; knows nothing of sse.hpp.
#pragma once

#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace bench {

[[noreturn]] inline void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

inline int checked(int result, const char* what) {
    if (result < 0) throw_errno(what);
    return result;
}

// Flags ///////////////////////////////////////////////////////////////////////////////////////////

/// `--name value`, `--name=value` and switches. A bad flag says what is wrong and exits with 2.
class flags {
public:
    flags(std::string program, std::string summary)
        : program_(std::move(program)), summary_(std::move(summary)) {}

    template <class Number>
    void number(std::string name, Number& target, Number least, Number most, std::string help);
    void text(std::string name, std::string& target, std::string help);
    void toggle(std::string name, bool& target, bool value, std::string help);

    void parse(int count, char** values) const;
    [[noreturn]] void reject(const std::string& reason) const;

private:
    struct flag {
        std::string name;
        std::string help;
        bool takes_value;
        std::function<bool(std::string_view)> set;
        std::string wanted;
    };

    const flag& find(std::string_view name) const;
    [[noreturn]] void print_help() const;

    std::string program_;
    std::string summary_;
    std::vector<flag> flags_;
};

template <class Number>
std::string shortest(Number value) {
    std::array<char, 64> text;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
    return std::string(text.data(), end);
}

template <class Number>
void flags::number(std::string name, Number& target, Number least, Number most, std::string help) {
    auto set = [&target, least, most](std::string_view text) {
        Number value{};
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc{} || end != text.data() + text.size()) return false;
        if (!(value >= least && value <= most)) return false; // so written that NaN is refused
        target = value;
        return true;
    };
    const char* kind = std::is_floating_point_v<Number> ? "a number" : "a whole number";
    help += " (" + shortest(target) + ")";
    flags_.push_back({std::move(name), std::move(help), true, std::move(set),
                      std::string(kind) + " from " + shortest(least) + " to " + shortest(most)});
}

inline void flags::text(std::string name, std::string& target, std::string help) {
    auto set = [&target](std::string_view value) {
        target = value;
        return !value.empty();
    };
    flags_.push_back({std::move(name), std::move(help), true, std::move(set), "a value"});
}

inline void flags::toggle(std::string name, bool& target, bool value, std::string help) {
    auto set = [&target, value](std::string_view) {
        target = value;
        return true;
    };
    flags_.push_back({std::move(name), std::move(help), false, std::move(set), {}});
}

inline const flags::flag& flags::find(std::string_view name) const {
    for (const flag& each : flags_)
        if (each.name == name) return each;
    reject("there is no flag '" + std::string(name) + "'");
}

inline void flags::parse(int count, char** values) const {
    for (int at = 1; at < count; ++at) {
        const std::string_view word = values[at];
        if (word == "--help" || word == "-h") print_help();
        const auto equals = word.find('=');
        const bool joined = equals != word.npos;
        const flag& found = find(word.substr(0, equals));
        if (joined && !found.takes_value) reject(found.name + " takes no value");
        if (found.takes_value && !joined && at + 1 == count)
            reject(found.name + " wants " + found.wanted);
        const std::string_view value = joined              ? word.substr(equals + 1)
                                       : found.takes_value ? std::string_view(values[++at])
                                                           : std::string_view();
        if (!found.set(value))
            reject(found.name + " wants " + found.wanted + ", not '" + std::string(value) + "'");
    }
}

inline void flags::reject(const std::string& reason) const {
    std::fprintf(stderr, "%s: %s; see --help\n", program_.c_str(), reason.c_str());
    std::exit(2);
}

inline void flags::print_help() const {
    std::printf("%s: %s\n\n", program_.c_str(), summary_.c_str());
    for (const flag& each : flags_) {
        const std::string shape = each.name + (each.takes_value ? " X" : "");
        std::printf("  %-14s %s\n", shape.c_str(), each.help.c_str());
    }
    std::exit(0);
}

// Clocks, processor time, memory //////////////////////////////////////////////////////////////////

inline std::uint64_t clock_ns(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(time.tv_nsec);
}

inline std::uint64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }
inline std::uint64_t thread_cpu_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

struct processor_time {
    double user_us = 0;
    double system_us = 0;
};

inline processor_time operator+(const processor_time& a, const processor_time& b) {
    return {a.user_us + b.user_us, a.system_us + b.system_us};
}
inline processor_time operator-(const processor_time& a, const processor_time& b) {
    return {a.user_us - b.user_us, a.system_us - b.system_us};
}

/// Of this process with all its threads. The sum is exact, the kernel splits it by clock ticks.
inline processor_time process_time() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto microseconds = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec);
    };
    return {microseconds(usage.ru_utime), microseconds(usage.ru_stime)};
}

/// Of another process. The sum comes from its clock, the split from its ticks. Throws
/// std::system_error when it is gone.
inline processor_time process_time(pid_t process) {
    clockid_t clock{};
    if (const int error = clock_getcpuclockid(process, &clock); error != 0)
        throw std::system_error(error, std::generic_category(), "clock_getcpuclockid");
    const double total = static_cast<double>(clock_ns(clock)) / 1e3;
    std::ifstream stat("/proc/" + std::to_string(process) + "/stat");
    std::string word; // the name before the state may have spaces, and ends with the last ')'
    while (stat >> word && !word.ends_with(')')) {}
    for (int skipped = 3; skipped < 14; ++skipped) stat >> word;
    double user = 0, system = 0;
    stat >> user >> system;
    const double part = user + system > 0 ? user / (user + system) : 0;
    return {total * part, total - total * part};
}

/// What a file of a process in /proc says after `field`, in bytes.
inline std::uint64_t memory_of(pid_t process, const std::string& file, std::string_view field) {
    std::ifstream in("/proc/" + std::to_string(process) + "/" + file);
    std::string word;
    std::uint64_t kilobytes = 0;
    while (in >> word)
        if (word == field && in >> kilobytes) return kilobytes * 1024;
    throw std::runtime_error("cannot read the memory of process " + std::to_string(process));
}

/// Resident bytes of a process. smaps_rollup walks the pages; the counter in statm is kept per core
/// and may be off by hundreds of kilobytes, which is a lot over 1,000 clients.
inline std::uint64_t resident_bytes(pid_t process) {
    return memory_of(process, "smaps_rollup", "Rss:");
}

/// The most that was resident since restart_peak().
inline std::uint64_t peak_bytes(pid_t process) { return memory_of(process, "status", "VmHWM:"); }

inline void restart_peak(pid_t process) {
    std::ofstream("/proc/" + std::to_string(process) + "/clear_refs") << 5;
}

/// As many open files as the hard limit allows; returns that number.
inline std::uint64_t raise_file_limit() {
    rlimit limit{};
    checked(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    checked(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
    return limit.rlim_cur;
}

// Cores ///////////////////////////////////////////////////////////////////////////////////////////

inline std::vector<int> allowed_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    checked(sched_getaffinity(0, sizeof set, &set), "sched_getaffinity");
    std::vector<int> cores;
    for (int core = 0; core < CPU_SETSIZE; ++core)
        if (CPU_ISSET(static_cast<unsigned>(core), &set)) cores.push_back(core);
    return cores;
}

/// This process, or another one.
inline void pin(const std::vector<int>& cores, pid_t process = 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int core : cores) CPU_SET(static_cast<unsigned>(core), &set);
    checked(sched_setaffinity(process, sizeof set, &set), "sched_setaffinity");
}

/// Microseconds for which these cores were not idle, whoever used them; by clock ticks.
inline double busy_us(const std::vector<int>& cores) {
    std::ifstream stat("/proc/stat");
    double ticks = 0;
    for (std::string line; std::getline(stat, line);) {
        std::istringstream words(line);
        std::string name;
        words >> name;
        const auto is_name = [&](int core) { return name == "cpu" + std::to_string(core); };
        if (std::none_of(cores.begin(), cores.end(), is_name)) continue;
        double user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, softirq = 0, steal = 0;
        words >> user >> nice >> system >> idle >> wait >> irq >> softirq >> steal;
        ticks += user + nice + system + irq + softirq + steal;
    }
    return ticks * 1e6 / static_cast<double>(sysconf(_SC_CLK_TCK));
}

constexpr double tolerable = 10; // percent of a core that other programs may have used

/// How much of these cores others used, in percent of one. NaN without cores, that is when nothing
/// is pinned. Ticks are coarse, hence the 0.
inline double used_by_others(double busy_us, const processor_time& own, double seconds,
                             std::size_t cores) {
    if (cores == 0) return std::nan("");
    const double used = busy_us - own.user_us - own.system_us;
    return std::max(0.0, used / (seconds * 1e4 * static_cast<double>(cores)));
}

/// The same for the cores of this process, since this was made.
class disturbance {
public:
    double percent() const {
        const double seconds = static_cast<double>(now_ns() - start_) / 1e9;
        return used_by_others(busy_us(cores_) - busy_us_, process_time() - own_, seconds,
                              cores_.size());
    }

private:
    const std::vector<int> cores_ = allowed_cores();
    const double busy_us_ = busy_us(cores_);
    const processor_time own_ = process_time();
    const std::uint64_t start_ = now_ns();
};

inline void print_disturbed() {
    std::printf("DISTURBED: other programs used more than %.0f %% of a core. Run it again when the "
                "machine\nis quiet.\n",
                tolerable);
}

// What is published ///////////////////////////////////////////////////////////////////////////////

/// What messages say: so many bytes of padding, or texts such as programs send, each another one.
enum class content : std::uint8_t { padding, prices, chat, fragments };

constexpr const char* name_of(content what) {
    constexpr const char* names[] = {"padding", "prices in JSON", "chat in JSON",
                                     "fragments of HTML"};
    return names[static_cast<std::size_t>(what)];
}

/// The text of a message by its number, the same on every run. One line; padding has none.
class text_maker {
public:
    explicit text_maker(content what) : what_(what) {}

    std::string make(std::uint64_t seq) {
        state_ = seq;
        switch (what_) {
        case content::prices: return price();
        case content::chat: return chat(seq);
        case content::fragments: return fragment(seq);
        case content::padding: break;
        }
        return {};
    }

private:
    std::string price() {
        constexpr const char* symbols[] = {"AAPL", "ADBE", "AMZN", "CSCO", "GOOG", "IBM",
                                           "INTC", "META", "MSFT", "NVDA", "ORCL", "TSLA"};
        const std::size_t which = below(std::size(symbols));
        const std::uint64_t cents = 10'000 + which * 3'100 + below(200);
        return std::string(R"({"symbol":")") + symbols[which] + R"(","bid":)" + decimal(cents) +
               R"(,"ask":)" + decimal(cents + 1 + below(4)) + R"(,"volume":)" +
               std::to_string(100 * (1 + below(500))) + R"(,"change":)" + decimal(below(500)) + "}";
    }

    std::string chat(std::uint64_t seq) {
        const std::string who = person();
        return R"({"type":"message","id":)" + std::to_string(700'000 + seq) +
               R"(,"room":"general","from":{"id":)" + std::to_string(1'000 + who.size() * 37) +
               R"(,"name":")" + who + R"("},"text":")" + words(4 + below(16)) +
               R"(","mentions":[],"edited":false})";
    }

    std::string fragment(std::uint64_t seq) {
        const std::string number = std::to_string(700'000 + seq), who = person();
        return R"(<li id="comment-)" + number + R"(" class="comment unread"><img class="avatar" )" +
               R"(src="/avatars/)" + who + R"(.png" width="32" height="32" alt=""><div )" +
               R"(class="comment-body"><a class="author" href="/users/)" + who + R"(">)" + who +
               R"(</a><p>)" + words(6 + below(24)) + R"(</p><button class="reply" )" +
               R"(hx-get="/comments/)" + number + R"(/reply" hx-target="#comment-)" + number +
               R"(">Reply</button></div></li>)";
    }

    std::string person() {
        constexpr const char* names[] = {"amara", "bruno", "chloe", "dmitri", "elif",  "farah",
                                         "goran", "hana",  "ivan",  "jonas",  "keiko", "liam"};
        return names[below(std::size(names))];
    }

    std::string words(std::uint64_t count) {
        constexpr const char* some[] = {
            "the",    "build", "is",    "green",   "again",   "can",   "someone",  "look",
            "at",     "this",  "after", "lunch",   "I",       "think", "we",       "should",
            "wait",   "for",   "next",  "release", "because", "of",    "that",     "change",
            "in",     "queue", "and",   "it",      "works",   "on",    "my",       "machine",
            "thanks", "all",   "good",  "now",     "please",  "merge", "tomorrow", "morning"};
        std::string text;
        for (; count > 0; --count)
            text += some[below(std::size(some))] + std::string(count > 1, ' ');
        return text;
    }

    static std::string decimal(std::uint64_t hundredths) {
        const std::string rest = std::to_string(100 + hundredths % 100);
        return std::to_string(hundredths / 100) + "." + rest.substr(1);
    }

    std::uint64_t below(std::uint64_t end) { // by splitmix64
        std::uint64_t z = state_ += 0x9e37'79b9'7f4a'7c15;
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        return (z ^ (z >> 31)) % end;
    }

    content what_;
    std::uint64_t state_ = 0;
};

/// Makes `<seq> <send_ns> <padding>` in place: the padding is written once, the numbers before it.
class stamped_line {
public:
    explicit stamped_line(std::size_t padding) : text_(numbers + padding, 'x') {}

    /// In place of the padding.
    void say(std::string_view text) { text_.replace(numbers, text_.npos, text); }

    /// Stamps now. The view is good until the next call.
    std::string_view make(std::uint64_t seq) { return make(seq, now_ns()); }
    std::string_view make(std::uint64_t seq, std::uint64_t stamp) {
        char* at = text_.data() + numbers;
        *--at = ' ';
        at = write_before(at, stamp);
        *--at = ' ';
        at = write_before(at, seq);
        return {at, static_cast<std::size_t>(text_.data() + text_.size() - at)};
    }

private:
    static constexpr std::size_t numbers = 2 * (20 + 1); // 20 digits are the longest 64-bit number

    static char* write_before(char* at, std::uint64_t number) {
        do *--at = static_cast<char>('0' + number % 10);
        while ((number /= 10) != 0);
        return at;
    }

    std::string text_;
};

/// Says how many messages are due at a steady rate; its descriptor is readable when some are.
/// What could not be published in time stays due, so a slow server does not lower the rate asked.
class ticker {
public:
    ticker()
        : fd_(checked(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd")) {}
    ~ticker() { close(fd_); }
    ticker(const ticker&) = delete;
    ticker& operator=(const ticker&) = delete;

    int descriptor() const noexcept { return fd_; }

    void start(std::uint64_t rate) {
        set(rate == 0 ? 0 : std::max<std::uint64_t>(1, second / rate));
    }
    void stop() { set(0); }

    std::uint64_t due() {
        std::uint64_t count = 0;
        return read(fd_, &count, sizeof count) == sizeof count ? count : 0;
    }

private:
    static constexpr std::uint64_t second = 1'000'000'000;

    void set(std::uint64_t period) {
        timespec time{};
        time.tv_sec = static_cast<time_t>(period / second);
        time.tv_nsec = static_cast<long>(period % second);
        const itimerspec timer{time, time};
        checked(timerfd_settime(fd_, 0, &timer, nullptr), "timerfd_settime");
    }

    int fd_;
};

/// What every server under measurement does alike: it obeys the client, and publishes a burst and
/// then at a rate. Commands are single bytes on descriptor 0, each answered on descriptor 1 by a
/// line with the number of messages so far. rivals/conductor.mjs is the same for Node.
class conductor {
public:
    enum command : char { ask = 'a', start = 's', stop = 'p', quit = 'q' };

    conductor(std::uint64_t rate, std::uint64_t burst, std::uint64_t payload,
              content what = content::padding)
        : rate_(rate), burst_(burst), what_(what), texts_(what), line_(payload) {}

    int commands() const noexcept { return STDIN_FILENO; }
    int tick() const noexcept { return ticker_.descriptor(); }
    bool ended() const noexcept { return ended_; }
    /// Whether there is something to publish without waiting for the tick.
    bool hurries() const noexcept { return hurried_ > 0; }

    /// The first line: where this process listens.
    void announce(std::uint16_t port) { announce(port, getpid()); }
    void announce(std::uint16_t port, pid_t process) {
        say(std::to_string(port) + " " + std::to_string(process));
    }

    /// Does nothing without a command: the one that epoll told of may have been taken by
    /// publish_due() since, and reading would then block the server.
    void obey() {
        pollfd waited{commands(), POLLIN, 0};
        if (poll(&waited, 1, 0) <= 0) return;
        char next = quit; // a client that is gone is as good as one that says quit
        if (read(commands(), &next, 1) != 1 || next == quit) {
            ended_ = true;
            return;
        }
        if (next == start) begin();
        if (next == stop) end();
        if (published) seq_ = published(publishing_);
        say(std::to_string(seq_) + (more ? " " + more() : std::string()));
    }

    /// For servers whose messages do not come from publish_due(): how many there are, once those
    /// who send them know whether they are to go on.
    std::function<std::uint64_t(bool)> published;
    /// What else is answered, behind that number.
    std::function<std::string()> more;

    /// Publishes what is due, of a burst so much that a command or a new client does not wait long:
    /// `publish(line, seq)` says whether it did. A message that was not published leaves its number
    /// to the next one.
    template <class Publish>
    void publish_due(Publish publish) {
        const std::uint64_t hurried = std::min(hurried_, most_at_once);
        for (std::uint64_t due = hurried + ticker_.due(); due > 0 && publishing_; --due) {
            if (what_ != content::padding) line_.say(texts_.make(seq_ + 1));
            const bool done = publish(line_.make(seq_ + 1), seq_ + 1);
            seq_ += done;
            if (hurried_ > 0) hurried_ -= done;
            if (due > 1) obey(); // a sample must not wait for all that is overdue
        }
    }

private:
    static constexpr std::uint64_t most_at_once = 256;

    void begin() {
        publishing_ = true;
        hurried_ += burst_;
        ticker_.start(rate_);
    }

    void end() {
        publishing_ = false;
        hurried_ = 0;
        ticker_.stop();
    }

    static void say(const std::string& text) {
        const std::string line = text + "\n";
        // A client that is gone is noticed at the next command.
        if (write(STDOUT_FILENO, line.data(), line.size()) < 0) return;
    }

    std::uint64_t rate_;
    std::uint64_t burst_;
    content what_;
    text_maker texts_;
    ticker ticker_;
    stamped_line line_;
    std::uint64_t seq_ = 0;
    std::uint64_t hurried_ = 0;
    bool publishing_ = false;
    bool ended_ = false;
};

// Figures /////////////////////////////////////////////////////////////////////////////////////////

inline double median(std::vector<double> values) {
    if (values.empty()) return std::nan("");
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// Counts by logarithm: 64 buckets for each power of two, so a figure is within 1.6 %.
class histogram {
public:
    void add(std::uint64_t value) {
        ++counts_[bucket_of(value)];
        ++total_;
    }

    double quantile(double part) const {
        const double wanted = part * static_cast<double>(total_);
        std::uint64_t seen = 0;
        for (std::size_t at = 0; at < counts_.size(); ++at) {
            seen += counts_[at];
            if (counts_[at] != 0 && static_cast<double>(seen) >= wanted) return middle_of(at);
        }
        return std::nan("");
    }

private:
    static constexpr unsigned bits = 6;
    static constexpr std::size_t per_octave = 1u << bits;

    static std::size_t bucket_of(std::uint64_t value) {
        if (value < per_octave) return static_cast<std::size_t>(value);
        const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - bits - 1;
        return per_octave * shift + static_cast<std::size_t>(value >> shift);
    }

    static double middle_of(std::size_t bucket) {
        if (bucket < 2 * per_octave) return static_cast<double>(bucket);
        const std::size_t shift = bucket / per_octave - 1;
        const double step = std::ldexp(1.0, static_cast<int>(shift));
        return (static_cast<double>(bucket % per_octave + per_octave) + 0.5) * step;
    }

    std::array<std::uint64_t, per_octave*(64 - bits + 1)> counts_{};
    std::uint64_t total_ = 0;
};

/// 1234567.891 with two digits is "1,234,567.89"; what is not a number is "-".
inline std::string grouped(double value, int digits) {
    if (!std::isfinite(value)) return "-";
    std::array<char, 64> text;
    std::snprintf(text.data(), text.size(), "%.*f", digits, value);
    std::string result = text.data();
    const auto is_digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
    std::size_t at = std::min(result.find('.'), result.size());
    while (at > 3 && is_digit(result[at - 4])) result.insert(at -= 3, 1, ',');
    return result;
}

/// Rows of cells; the first column stands left, the others right.
class table {
public:
    void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
    /// A line over the rows that follow.
    void heading(std::string text) { rows_.push_back({std::move(text)}); }

    void print() const {
        std::vector<std::size_t> widths;
        for (const auto& cells : rows_) {
            widths.resize(std::max(widths.size(), cells.size()));
            for (std::size_t at = 0; at < cells.size() && cells.size() > 1; ++at)
                widths[at] = std::max(widths[at], width(cells[at]));
        }
        for (const auto& cells : rows_) {
            if (cells.size() == 1) std::printf("\n");
            print(cells, widths);
        }
    }

    /// The first row is the head.
    void print_markdown() const {
        const std::size_t columns = rows_.front().size();
        for (std::size_t at = 0; at < rows_.size(); ++at) {
            std::string line = "|";
            for (std::size_t column = 0; column < columns; ++column) {
                const std::string text = column < rows_[at].size() ? rows_[at][column] : "";
                const bool bold = rows_[at].size() == 1 && column == 0;
                line += bold ? " **" + text + "** |" : text.empty() ? " |" : " " + text + " |";
            }
            std::printf("%s\n", line.c_str());
            if (at > 0) continue;
            line = "|---|";
            for (std::size_t column = 1; column < columns; ++column) line += "--:|";
            std::printf("%s\n", line.c_str());
        }
    }

private:
    using row_type = std::vector<std::string>;

    /// In characters, of UTF-8.
    static std::size_t width(const std::string& text) {
        const auto begins_one = [](char c) {
            return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
        };
        return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins_one));
    }

    static void print(const row_type& cells, const std::vector<std::size_t>& widths) {
        std::string line;
        for (std::size_t at = 0; at < cells.size(); ++at) {
            const std::string space(std::max(widths[at], width(cells[at])) - width(cells[at]), ' ');
            line += at == 0 ? cells[at] + space : "  " + space + cells[at];
        }
        line.erase(line.find_last_not_of(' ') + 1);
        std::printf("%s\n", line.c_str());
    }

    std::vector<row_type> rows_;
};

/// Writes JSON in the order of the calls. Inside an array keys are empty.
class json {
public:
    json() { text_ = "{"; }

    json& open(std::string_view key, char bracket = '{') {
        start(key);
        text_ += bracket;
        fresh_ = true;
        closers_.push_back(bracket == '{' ? '}' : ']');
        return *this;
    }

    json& close() {
        text_ += closers_.back();
        closers_.pop_back();
        fresh_ = false;
        return *this;
    }

    json& field(std::string_view key, double value) {
        return raw(key, std::isfinite(value) ? shortest(value) : "null");
    }
    json& field(std::string_view key, std::uint64_t value) { return raw(key, shortest(value)); }
    json& field(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }
    json& field(std::string_view key, std::string_view value) { return raw(key, quoted(value)); }
    json& field(std::string_view key, const char* value) {
        return field(key, std::string_view(value)); // or a literal would be taken for a bool
    }

    /// Ends the document; an empty path writes nothing.
    void write(const std::string& path) {
        if (path.empty()) return;
        std::ofstream file(path);
        file << text_ << "}\n";
        file.flush();
        if (!file) throw std::runtime_error("cannot write " + path);
    }

private:
    void start(std::string_view key) {
        if (!fresh_) text_ += ',';
        fresh_ = false;
        text_ += "\n";
        text_.append(2 * (closers_.size() + 1), ' ');
        if (!key.empty()) text_ += quoted(key) + ": ";
    }

    json& raw(std::string_view key, const std::string& value) {
        start(key);
        text_ += value;
        return *this;
    }

    static std::string quoted(std::string_view value) {
        std::string result = "\"";
        for (char c : value) {
            if (c == '"' || c == '\\') result += '\\';
            result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
        }
        return result + '"';
    }

    std::string text_;
    std::string closers_;
    bool fresh_ = true;
};

// The machine /////////////////////////////////////////////////////////////////////////////////////

using fact = std::pair<std::string, std::string>;

inline std::string processor_name() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);)
        if (line.starts_with("model name")) {
            const auto colon = line.find(": ");
            if (colon != line.npos) return line.substr(colon + 2);
        }
    return "unknown processor";
}

inline std::string build_description() {
#ifdef __clang__
    std::string build = __VERSION__;
#else
    std::string build = "GCC " __VERSION__;
#endif
#ifdef __OPTIMIZE__
    build += ", optimised";
#else
    build += ", NOT OPTIMISED: figures of our code mean little";
#endif
#ifndef NDEBUG
    build += ", with assert()";
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    build += ", SANITIZER";
#endif
#ifdef BENCH_FLAGS // the build may tell its flags: -DBENCH_FLAGS='"-O2 -march=native"'
    build += ", " BENCH_FLAGS;
#endif
    return build;
}

inline std::string today() {
    const std::time_t now = std::time(nullptr);
    std::array<char, 32> text;
    std::strftime(text.data(), text.size(), "%Y-%m-%d", std::gmtime(&now));
    return text.data();
}

inline std::vector<fact> describe_machine() {
    utsname name{};
    uname(&name);
    return {{"machine", processor_name() + ", " +
                            std::to_string(std::thread::hardware_concurrency()) + " cores"},
            {"kernel", std::string(name.sysname) + " " + name.release + " " + name.machine},
            {"build", build_description()},
            {"date", today()}};
}

inline void print_facts(const std::vector<fact>& facts) {
    for (const auto& [name, value] : facts)
        std::printf("# %-10s %s\n", name.c_str(), value.c_str());
}

inline void write_facts(json& out, const std::vector<fact>& facts) {
    out.open("facts");
    for (const auto& [name, value] : facts) out.field(name, value);
    out.close();
}

/// On a terminal one line that is written over; elsewhere, say in a log, a line each.
inline void progress(const std::string& text) {
    const bool terminal = isatty(STDERR_FILENO) == 1;
    std::fprintf(stderr, terminal ? "\r\033[K%s" : "%s\n", text.c_str());
    std::fflush(stderr);
}

inline void end_progress() {
    if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "\r\033[K");
}

/// The status of a program that does this. If it throws, says why on stderr.
template <class Body>
int run_program(const char* name, Body body) {
    try {
        return body();
    } catch (const std::exception& error) {
        end_progress();
        std::fprintf(stderr, "%s: %s\n", name, error.what());
        return 1;
    }
}

} // namespace bench
