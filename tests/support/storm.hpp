// storm.hpp - clients that behave as EventSource does, are cut at random moments and keep a record;
// and the audit that compares a record with what was published.
//
//   support::ledger published;                       // filled by who publishes
//   support::storm clients(port, {.clients = 200, .seed = random.seed(), .kinds = kinds});
//   REQUIRE(clients.run_until([&] { return clients.count_at(end) == clients.size(); }, 60s));
//   CHECK(support::audit(clients.record(7), published, rules).faults.empty());
//
// The audit knows values only, no sockets: tests/storm.cpp shows that it finds what is wrong. Linux
// (epoll). Shares no code with sse.hpp.
#pragma once

#include "client.hpp"
#include "event_stream.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/epoll.h>

namespace support {

// ---- what was published -------------------------------------------------------------------------

/// `<epoch>-<place>`: a server's start, and a place in the order of what it published.
struct event_id {
    std::string epoch;
    std::uint64_t place = 0;

    friend bool operator==(const event_id&, const event_id&) = default;
};

inline std::string to_string(const event_id& id) {
    return id.epoch + "-" + std::to_string(id.place);
}

/// Nothing for what a server would not write: 8 characters [0-9a-z], a minus, a decimal number.
inline std::optional<event_id> parse_event_id(std::string_view text) {
    if (text.size() < 10 || text[8] != '-') return std::nullopt;
    const std::string_view epoch = text.substr(0, 8), digits = text.substr(9);
    if (epoch.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz") != epoch.npos ||
        digits.find_first_not_of("0123456789") != digits.npos ||
        (digits.size() > 1 && digits.front() == '0'))
        return std::nullopt;
    std::uint64_t place = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), place);
    if (result.ec != std::errc{}) return std::nullopt;
    return event_id{std::string(epoch), place};
}

/// What tells one message from all others of a test, in its data too.
struct message_key {
    std::uint8_t run = 0; ///< Which of the server's starts.
    std::uint8_t publisher = 0;
    std::uint32_t number = 0; ///< Of this publisher, in all runs.

    friend bool operator==(const message_key&, const message_key&) = default;
};

/// "<run>:<publisher>:<number>:" and a padding whose length follows from the number.
inline std::string data_of(message_key key) {
    std::string data = std::to_string(key.run) + ":" + std::to_string(key.publisher) + ":" +
                       std::to_string(key.number) + ":";
    data.append(key.number * 7919u % 401u, 'x');
    return data;
}

/// Nothing when the data is not, to the last byte, what data_of() makes.
inline std::optional<message_key> parse_data(std::string_view data) {
    std::array<std::uint32_t, 3> numbers{};
    const char* at = data.data();
    const char* const end = at + data.size();
    for (std::uint32_t& number : numbers) {
        const auto result = std::from_chars(at, end, number);
        if (result.ec != std::errc{} || result.ptr == end || *result.ptr != ':')
            return std::nullopt;
        at = result.ptr + 1;
    }
    const message_key key{static_cast<std::uint8_t>(numbers[0]),
                          static_cast<std::uint8_t>(numbers[1]), numbers[2]};
    if (data_of(key) != data) return std::nullopt;
    return key;
}

struct published_message {
    std::uint64_t place = 0; ///< What publish() returned.
    std::string topic;       ///< Empty: for everyone.
    message_key key;
};

/// Whether a message of this topic is for a client that follows those.
inline bool follows(const std::vector<std::string>& followed, std::string_view topic) {
    return topic.empty() ||
           std::any_of(followed.begin(), followed.end(), [&](const std::string& each) {
               return each == "/" || topic == each ||
                      (topic.size() > each.size() && topic.starts_with(each) &&
                       topic[each.size()] == '/');
           });
}

/// All that was published, by the starts of the server, oldest first.
struct ledger {
    struct run {
        std::string epoch;
        std::vector<published_message> messages; ///< By their places: the one with place n at n-1.
    };
    std::vector<run> runs;
    std::size_t forgotten = 0; ///< Runs before these.

    /// When all clients have come to the newest run.
    void forget_older_runs() {
        forgotten += runs.size() - 1;
        runs.erase(runs.begin(), runs.end() - 1);
    }

    /// Why this cannot be what a server has published, or nothing: places are 1, 2, 3 and so on.
    std::string fault() const {
        for (const run& each : runs)
            for (std::size_t i = 0; i < each.messages.size(); ++i)
                if (each.messages[i].place != i + 1)
                    return "message " + std::to_string(i + 1) + " of epoch " + each.epoch +
                           " got place " + std::to_string(each.messages[i].place);
        return {};
    }

    std::size_t size() const {
        std::size_t sum = 0;
        for (const run& each : runs) sum += each.messages.size();
        return sum;
    }
};

// ---- what a client saw --------------------------------------------------------------------------

/// The data of a gap event.
struct gap_notice {
    std::string reason;
    std::string from;
    std::string to;
    std::optional<std::uint64_t> missed;
};

/// Nothing for what is not, to the byte, {"reason":"..","from":"..","to":".."} with, at the end,
/// perhaps ,"missed":.. too. No text in it has anything to escape.
inline std::optional<gap_notice> parse_gap(std::string_view data) {
    gap_notice gap;
    std::string* const texts[] = {&gap.reason, &gap.from, &gap.to};
    const std::string_view names[] = {R"({"reason":")", R"(,"from":")", R"(,"to":")"};
    for (std::size_t i = 0; i < 3; ++i) {
        if (!data.starts_with(names[i])) return std::nullopt;
        data.remove_prefix(names[i].size());
        const std::size_t end = data.find('"');
        if (end == data.npos) return std::nullopt;
        *texts[i] = data.substr(0, end);
        data.remove_prefix(end + 1);
    }
    if (data == "}") return gap;
    constexpr std::string_view missed = R"(,"missed":)";
    if (!data.starts_with(missed) || !data.ends_with('}')) return std::nullopt;
    data.remove_prefix(missed.size());
    const char* const last = data.data() + data.size() - 1;
    const auto result = std::from_chars(data.data(), last, gap.missed.emplace());
    if (result.ec != std::errc{} || result.ptr != last) return std::nullopt;
    return gap;
}

/// One client's life, in order. What cannot be right, whatever was published, is a fault at once.
class client_record {
public:
    enum class kind : std::uint8_t { opened, message, moved, gap };
    /// 16 bytes: a minute of storm has millions of them.
    struct step {
        kind what;
        std::uint8_t epoch;  ///< Of `epochs`; with a place for messages and moves.
        std::uint32_t place; ///< For the others, an index of `openings` or `gaps`.
        message_key key;
    };
    static_assert(sizeof(step) == 16);
    struct opening {
        std::string asked;  ///< The id that the client sent.
        std::string before; ///< The newest id before it connected, or empty.
        std::string head;   ///< The newest id once it had its head, or empty.
    };
    struct gap_seen {
        gap_notice notice;
        std::string id;     ///< The event's own.
        std::string newest; ///< The newest id then, or empty: no server ran.
    };
    /// How the server ended a connection; that the client did so is not kept.
    struct ended {
        ending how;
        bool had_farewell;
        std::optional<std::uint64_t> retry;
        std::chrono::steady_clock::time_point when;
    };

    std::vector<step> steps;
    std::vector<std::string> epochs;
    std::vector<opening> openings;
    std::vector<gap_seen> gaps;
    std::vector<ended> endings;
    std::vector<std::string> faults;

    void opened(opening o) {
        add(kind::opened, 0, openings.size());
        openings.push_back(std::move(o));
    }

    void saw_message(const decoded& event) {
        const auto id = parse_event_id(event.id);
        const auto key = parse_data(event.data);
        if (!id) return fault("no id of a server: \"" + event.id + "\"");
        if (!key) return fault("data that nobody published: " + show(event.data, 100));
        add(kind::message, epoch_index(id->epoch), id->place, *key);
    }

    /// The last event id has changed without an event.
    void moved(const std::string& text) {
        const auto id = parse_event_id(text);
        if (!id) return fault("the id became \"" + text + "\"");
        add(kind::moved, epoch_index(id->epoch), id->place);
    }

    void saw_gap(const decoded& event, std::string newest) {
        auto notice = parse_gap(event.data);
        if (!notice) return fault("a gap that says " + show(event.data, 200));
        add(kind::gap, 0, gaps.size());
        gaps.push_back({*std::move(notice), event.id, std::move(newest)});
    }

    void fault(std::string what) {
        if (faults.size() < 5) faults.push_back(std::move(what));
    }

    /// Once it was audited. What comes next goes on from there.
    void forget() {
        steps.clear();
        epochs.clear();
        openings.clear();
        gaps.clear();
        endings.clear();
        faults.clear();
    }

    /// The steps around this one, for a failed check.
    std::string describe(std::size_t around) const {
        std::string text;
        for (std::size_t i = around - std::min<std::size_t>(around, 8);
             i < std::min(around + 3, steps.size()); ++i) {
            const step& each = steps[i];
            text += i == around ? "\n  > " : "\n    ";
            if (each.what == kind::opened) {
                const opening& o = openings[each.place];
                text += "opened with \"" + o.asked + "\", newest " + o.before + " to " + o.head;
            } else if (each.what == kind::gap) {
                const gap_seen& g = gaps[each.place];
                text += "gap " + g.notice.reason + " from " + g.notice.from + " to " + g.notice.to +
                        ", id " + g.id + ", newest " + g.newest;
            } else {
                text += each.what == kind::moved ? "moved to " : "message ";
                text += epochs[each.epoch] + "-" + std::to_string(each.place);
            }
        }
        return text;
    }

private:
    void add(kind what, std::uint8_t epoch, std::uint64_t place, message_key key = {}) {
        steps.push_back({what, epoch, static_cast<std::uint32_t>(place), key});
    }

    std::uint8_t epoch_index(const std::string& epoch) {
        const auto found = std::find(epochs.rbegin(), epochs.rend(), epoch);
        if (found != epochs.rend()) return static_cast<std::uint8_t>(epochs.rend() - found - 1);
        epochs.push_back(epoch);
        return static_cast<std::uint8_t>(epochs.size() - 1);
    }
};

// ---- the audit ----------------------------------------------------------------------------------

struct audit_rules {
    std::vector<std::string> followed; ///< Topics, as in ledger; "/" is everything.
    std::size_t history = 0;           ///< Messages that the server keeps at least.
    event_id end;                      ///< The client has caught up to here.
};

struct verdict {
    std::vector<std::string> faults;              ///< The first few.
    std::uint64_t due = 0;                        ///< Messages for this client, counted by places.
    std::uint64_t messages = 0;                   ///< Received.
    std::uint64_t replayed = 0;                   ///< Of these, published before it connected.
    std::map<std::string, std::uint64_t> missing; ///< Messages that gaps account for, by reason.
    std::uint64_t unaccounted = 0;                ///< Messages neither received nor within a gap.
    std::uint64_t moves = 0;                      ///< Ids without an event.
    std::map<std::string, std::uint64_t> gaps;    ///< By reason.

    std::uint64_t all_missing() const {
        std::uint64_t sum = 0;
        for (const auto& [reason, count] : missing) sum += count;
        return sum;
    }
};

/// Follows one record with a cursor: the id up to which everything is accounted for. A record that
/// grows is followed piece by piece, and may forget each piece.
class auditor {
public:
    auditor(const ledger& published, std::vector<std::string> followed, std::size_t history)
        : published_(published), followed_(std::move(followed)), history_(history) {}

    /// All steps of a record, or of its next piece. The ledger has all messages of them.
    void follow(const client_record& record) {
        record_ = &record;
        for (const std::string& what : record.faults) keep(what);
        for (at_ = 0; at_ < record.steps.size(); ++at_) {
            const client_record::step& step = record.steps[at_];
            switch (step.what) {
            case client_record::kind::opened: open(record.openings[step.place]); break;
            case client_record::kind::message: take_message(id_of(step), step.key); break;
            case client_record::kind::moved: move(id_of(step)); break;
            case client_record::kind::gap: take_gap(record.gaps[step.place]); break;
            }
        }
    }

    /// The client has caught up to this id: all that was for it so far has come, or lies in a gap.
    void settle(const event_id& end) {
        if (!cursor_) return fault("it never got an id");
        if (cursor_->epoch != end.epoch)
            return fault("it ended in another epoch, at " + to_string(*cursor_));
        account_through(end.place, "at the end");
        settle_due(end.place);
        const std::uint64_t sum = result_.messages + result_.all_missing() + result_.unaccounted;
        if (result_.due != sum)
            fault(std::to_string(result_.due) + " were due to it, but " +
                  std::to_string(result_.messages) + " received, " +
                  std::to_string(result_.all_missing()) + " missing and " +
                  std::to_string(result_.unaccounted) + " unaccounted for");
    }

    const verdict& result() const { return result_; }

private:
    using message_list = std::vector<published_message>;

    event_id id_of(const client_record::step& step) const {
        return {record_->epochs[step.epoch], step.place};
    }

    void keep(std::string what) {
        if (result_.faults.size() < 5) result_.faults.push_back(std::move(what));
    }

    void fault(const std::string& what) {
        keep(what + (result_.faults.empty() && record_ ? record_->describe(at_) : ""));
    }

    const message_list* messages_of(const std::string& epoch) const {
        for (const ledger::run& run : published_.runs)
            if (run.epoch == epoch) return &run.messages;
        return nullptr;
    }

    /// How many messages for this client have places in (after, through]; `first` is one of them.
    std::uint64_t wanted(const std::string& epoch, std::uint64_t after, std::uint64_t through,
                         std::uint64_t& first) const {
        const message_list* const all = messages_of(epoch);
        std::uint64_t count = 0;
        for (std::uint64_t i = after; all && i < std::min<std::uint64_t>(through, all->size());
             ++i) {
            if (!follows(followed_, (*all)[i].topic)) continue;
            if (count++ == 0) first = i + 1;
        }
        return count;
    }
    std::uint64_t wanted(const std::string& epoch, std::uint64_t after,
                         std::uint64_t through) const {
        std::uint64_t first = 0;
        return wanted(epoch, after, through, first);
    }

    static constexpr auto all_of_it = std::numeric_limits<std::uint64_t>::max();

    /// Counts what was due to it in its epoch up to a place.
    void settle_due(std::uint64_t through) {
        result_.due += wanted(settled_.epoch, settled_.place, through);
        settled_.place = through;
    }
    void begin(const event_id& id) { cursor_ = settled_ = id; }

    void open(const client_record::opening& o) {
        opening_ = o;
        fresh_ = true;
        const auto asked = parse_event_id(o.asked);
        if (!asked && cursor_)
            fault("it came back without its id");
        else if (asked && cursor_ && *asked != *cursor_)
            fault("it came back with " + o.asked);
        else if (asked && !cursor_)
            begin(*asked); // an id that it was given; with none, it begins with what comes
    }

    void take_message(const event_id& id, message_key key) {
        ++result_.messages;
        const message_list* const all = messages_of(id.epoch);
        if (!all) return fault("a message of an unknown epoch, " + to_string(id));
        if (id.place == 0 || id.place > all->size())
            return fault("a message that was never published, " + to_string(id));
        const published_message& message = (*all)[id.place - 1];
        if (message.key != key)
            fault("under " + to_string(id) + " came " + show(data_of(key), 40) + " instead of " +
                  show(data_of(message.key), 40));
        if (!follows(followed_, message.topic))
            fault("a message of topic " + message.topic + ", which it does not follow");
        const auto before = parse_event_id(opening_.before);
        if (before && before->epoch == id.epoch && id.place <= before->place) ++result_.replayed;
        // What lies in a gap has come all the same.
        if (cursor_ && id.epoch == excused_.epoch && id.place > cursor_->place &&
            id.place <= excused_.place)
            --result_.missing[excused_by_];
        advance(id, true);
    }

    void move(const event_id& id) {
        ++result_.moves;
        advance(id, false);
    }

    /// Everything before a message, or up to a bare id, must be accounted for.
    void advance(const event_id& id, bool is_message) {
        fresh_ = false;
        if (!cursor_) begin_at(id, is_message);
        if (cursor_->epoch != id.epoch)
            return fault("the epoch became that of " + to_string(id) + " without a gap");
        if (id.place < cursor_->place) return fault("out of order: " + to_string(id));
        if (is_message && id.place == cursor_->place) return fault("twice: " + to_string(id));
        account_through(is_message ? id.place - 1 : id.place, "before " + to_string(id));
        cursor_ = id;
    }

    /// The first id of a client that came with none. It may begin anywhere up to the first message
    /// that was published after its head had come.
    void begin_at(const event_id& id, bool is_message) {
        const auto head = parse_event_id(opening_.head);
        event_id from{id.epoch, id.place - (is_message ? 1 : 0)};
        if (head && head->epoch == id.epoch) from.place = std::min(from.place, head->place);
        begin(from);
    }

    /// The place, or a later one up to which a gap has told that messages may be missing.
    std::uint64_t excused_through(const event_id& id) const {
        return excused_.epoch == id.epoch ? std::max(id.place, excused_.place) : id.place;
    }

    void account_through(std::uint64_t place, const std::string& where) {
        std::uint64_t first = 0;
        const std::uint64_t lost = wanted(cursor_->epoch, excused_through(*cursor_), place, first);
        if (lost == 0) return;
        result_.unaccounted += lost;
        fault(std::to_string(lost) + " unaccounted for " + where + ", the first is " +
              std::to_string(first));
    }

    /// The event's own id says from where the stream goes on. What is still kept of the messages up
    /// to `to` may follow, each in its order; those that do not are accounted for.
    void take_gap(const client_record::gap_seen& seen) {
        const gap_notice& gap = seen.notice;
        ++result_.gaps[gap.reason];
        const auto from = parse_event_id(gap.from), to = parse_event_id(gap.to);
        const auto id = parse_event_id(seen.id);
        const std::string name =
            "the gap " + gap.reason + " from " + gap.from + " to " + gap.to + " ";
        if (!from || !to) return fault(name + "has no such ids");
        if (!messages_of(to->epoch)) return fault(name + "goes to an unknown epoch");
        const bool came_first = fresh_;
        if (gap.reason == "epoch") {
            take_epoch_gap(name, *from, *to);
        } else if (gap.reason == "too_old" || gap.reason == "lapped") {
            take_gap_within(name, gap, *from, *to);
        } else {
            fault(name + "has no reason that can be here");
        }
        if (gap.reason != "lapped" && !came_first) fault(name + "is not the first of its stream");
        check_need(name, seen, *from, *to);
        const std::uint64_t least = from->epoch == to->epoch ? from->place : 0;
        if (!id || id->epoch != to->epoch || id->place < least || id->place > to->place)
            fault(name + "has the id " + seen.id);
        else
            cursor_ = id;
        excused_ = *to;
        excused_by_ = gap.reason;
        fresh_ = false;
    }

    void take_epoch_gap(const std::string& name, const event_id& from, const event_id& to) {
        if (!cursor_ || from != *cursor_) fault(name + "is from another id than the client's");
        const auto place_of = [&](const std::string& epoch) {
            return std::find_if(published_.runs.begin(), published_.runs.end(),
                                [&](const ledger::run& run) { return run.epoch == epoch; });
        };
        if (place_of(from.epoch) >= place_of(to.epoch))
            return fault(name + "does not go to a later start");
        if (!cursor_) return;
        account_for_epoch(cursor_->epoch, to);
    }

    /// The rest of the old epoch is missing, and what the new one had up to `to`.
    void account_for_epoch(const std::string& old, const event_id& to) {
        const std::uint64_t reached = excused_through(*cursor_);
        std::uint64_t& missing = result_.missing["epoch"];
        missing += wanted(old, reached, all_of_it) + wanted(to.epoch, 0, to.place);
        settle_due(all_of_it);
        settled_ = {to.epoch, 0};
    }

    void take_gap_within(const std::string& name, const gap_notice& gap, const event_id& from,
                         const event_id& to) {
        if (from.epoch != to.epoch) return fault(name + "crosses epochs");
        if (from.place >= to.place) fault(name + "is empty");
        advance(from, false); // it may begin after the client's id, if nothing for it lies between
        const std::uint64_t lost = wanted(to.epoch, from.place, to.place);
        result_.missing[gap.reason] += wanted(to.epoch, excused_through(from), to.place);
        if (gap.missed && *gap.missed != lost)
            fault(name + "says " + std::to_string(*gap.missed) + " missed instead of " +
                  std::to_string(lost));
    }

    /// No gap takes away what the history still holds.
    void check_need(const std::string& name, const client_record::gap_seen& seen,
                    const event_id& from, const event_id& to) {
        const auto newest = parse_event_id(seen.newest);
        if (!newest || newest->epoch != to.epoch) return; // the server was stopped meanwhile
        const auto left = [&](std::uint64_t place) { return place + history_ > newest->place; };
        const bool lapped = seen.notice.reason == "lapped"; // goes on with the newest
        if (to.place > newest->place) fault(name + "goes beyond the newest, " + seen.newest);
        if (to.place > 0 && left(lapped ? from.place : to.place))
            fault(name + "was not needed, the newest is " + seen.newest);
    }

    const ledger& published_;
    std::vector<std::string> followed_;
    std::size_t history_;
    const client_record* record_ = nullptr; // in hand, with the step
    std::size_t at_ = 0;
    client_record::opening opening_;
    std::optional<event_id> cursor_;
    event_id settled_; // up to which `due` has been counted
    event_id excused_; // the end of the last gap
    std::string excused_by_;
    bool fresh_ = false; // nothing has come on this connection yet
    verdict result_;
};

inline verdict audit(const client_record& record, const ledger& published,
                     const audit_rules& rules) {
    auditor one(published, rules.followed, rules.history);
    one.follow(record);
    one.settle(rules.end);
    return one.result();
}

// ---- the clients --------------------------------------------------------------------------------

/// What a client follows: where it connects, and what of the ledger is for it.
struct follower {
    std::string target;
    std::vector<std::string> topics;
    bool given_newest = false; ///< Its address also says ?lastEventId= the newest id of the start.
};

enum class mischief : std::uint8_t {
    none,        ///< Reads on for a while, until the dice fall again.
    early_reset, ///< RST at about the time of the request.
    reset,       ///< RST.
    fin,         ///< FIN, both directions at once.
    half_close,  ///< FIN of its direction, reading on.
    cut_at_byte, ///< RST after so many bytes, within a line or a head.
    stall,       ///< Stops reading for a while.
    stall_reset, ///< The same, and then RST with all that waits unread.
    slow,        ///< Reads a little at a time.
    count_,
};

struct storm_options {
    std::size_t clients = 200;
    std::uint64_t seed = 1;
    bool faults = true; ///< Or else all read on, and only come back when they are ended.
    bool tls = tls_by_default;
    std::vector<follower> kinds;
    /// The id of the newest message of the server that runs, or empty. Called between reads.
    std::function<std::string()> newest = [] { return std::string(); };
};

/// All clients in the thread that calls run_until(). Each has dice of its own, so that what befalls
/// it is the same in each run with a seed, though not when.
class storm {
public:
    using clock = std::chrono::steady_clock;

    storm(std::uint16_t port, storm_options options)
        : options_(std::move(options)), peer_("127.0.0.1", port), clients_(options_.clients),
          epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        if (!epoll_) throw_errno("epoll_create1");
        for (std::size_t i = 0; i < clients_.size(); ++i) {
            clients_[i].kind = &options_.kinds[i % options_.kinds.size()];
            clients_[i].random.seed(options_.seed * 1'000'003 + i);
            clients_[i].due = clock::now() + std::chrono::milliseconds(below(clients_[i], 50));
        }
    }

    /// Until `condition()` holds, asked after each round of events; false: the deadline passed.
    template <class Condition>
    [[nodiscard]] bool run_until(Condition&& condition, deadline until) {
        while (!condition()) {
            if (until.passed()) return false;
            step(until);
        }
        return true;
    }

    void run_for(std::chrono::milliseconds time) {
        (void)run_until([] { return false; }, time);
    }

    /// Whether some client got a gap with this reason.
    bool was_told_of(std::string_view reason) const {
        return std::any_of(clients_.begin(), clients_.end(), [&](const client& each) {
            const auto& gaps = each.record.gaps;
            return std::any_of(gaps.begin(), gaps.end(),
                               [&](const auto& gap) { return gap.notice.reason == reason; });
        });
    }

    /// From now on all clients read, and stay.
    void calm() {
        options_.faults = false;
        for (client& each : clients_) {
            each.plan = mischief::none;
            if (!is_connected(each)) continue;
            if (each.half_closed) {
                leave(each, true);
            } else {
                read_on(each);
            }
        }
    }

    /// Ends calm().
    void stir() {
        options_.faults = true;
        for (client& each : clients_)
            if (is_connected(each)) choose_mischief(each);
        next_due_ = clock::time_point::min();
    }

    /// It leaves, and somebody else comes instead, who knows no id and has no record.
    void replace(std::size_t index) {
        client& each = clients_[index];
        if (each.now != state::waiting) leave(each, false);
        each.given.clear();
        each.last_id.clear();
        each.last.reset();
        each.retry.reset();
        each.record.forget();
        next_due_ = clock::time_point::min();
    }

    std::size_t size() const { return clients_.size(); }
    client_record& record(std::size_t index) { return clients_[index].record; }
    const client_record& record(std::size_t index) const { return clients_[index].record; }
    const std::vector<std::string>& topics(std::size_t index) const {
        return clients_[index].kind->topics;
    }
    std::size_t count_open() const {
        return count([](const client& each) { return each.now == state::open; });
    }
    /// Clients whose last id is of this epoch.
    std::size_t count_in(const std::string& epoch) const {
        return count([&](const client& each) { return each.last && each.last->epoch == epoch; });
    }
    /// Clients whose last id is this or a later one of the epoch.
    std::size_t count_at(const event_id& id) const {
        return count([&](const client& each) {
            return each.last && each.last->epoch == id.epoch && each.last->place >= id.place;
        });
    }

    /// How often the clients did this.
    std::uint64_t times(mischief what) const { return times_[static_cast<std::size_t>(what)]; }
    std::uint64_t connects() const { return connects_; }
    /// Connections that nobody accepted.
    std::uint64_t refused() const { return refused_; }
    std::uint64_t farewells() const { return farewells_; }
    /// Events named note: what a handler sends to its client alone, numbered on each connection.
    std::uint64_t notes() const { return notes_; }

    /// For a failed condition: where the clients stand that are not there.
    std::string describe_others(const event_id& id) const {
        static constexpr std::string_view names[] = {"waiting", "connecting", "handshake", "head",
                                                     "open"};
        std::string text;
        int shown = 0;
        for (std::size_t i = 0; i < clients_.size(); ++i) {
            const client& each = clients_[i];
            const bool there =
                each.last && each.last->epoch == id.epoch && each.last->place >= id.place;
            if (there || shown++ >= 5) continue;
            text += "\n  client " + std::to_string(i) + " of " + each.kind->target + ": " +
                    std::string(names[static_cast<std::size_t>(each.now)]) + ", last id \"" +
                    each.last_id + "\"";
            for (const std::string& what : each.record.faults) text += ", " + what;
        }
        return text;
    }

private:
    using milliseconds = std::chrono::milliseconds;
    enum class state : std::uint8_t { waiting, connecting, handshake, head, open };

    struct client {
        const follower* kind = nullptr;
        std::mt19937_64 random;
        std::string given; // the id in its address, once it has one
        std::string last_id;
        std::optional<event_id> last; // the same, parsed
        std::optional<std::uint64_t> retry;
        client_record record;

        // Of one connection:
        descriptor socket;
#if defined(SSE_ENABLE_TLS)
        std::unique_ptr<tls_end> tls;
#endif
        state now = state::waiting;
        std::string head;
        event_stream_decoder decoder;
        bool at_line_start = true;
        bool had_farewell = false;
        std::uint64_t notes = 0;
        std::string before; // newest id when it connected
        mischief plan = mischief::none;
        bool acting = false; // the plan's time has come: it stalls, is slow, has closed its half
        bool half_closed = false;
        std::size_t bytes_left = 0; // until it is cut at a byte
        clock::time_point slow_until;
        clock::time_point due; // of the next thing that it does unasked
    };

    template <class Predicate>
    std::size_t count(Predicate&& is) const {
        return static_cast<std::size_t>(std::count_if(clients_.begin(), clients_.end(), is));
    }

    static bool is_connected(const client& each) {
        return each.now != state::waiting && each.now != state::connecting;
    }

    static std::size_t below(client& each, std::size_t end) {
        return static_cast<std::size_t>(each.random() % end);
    }
    static milliseconds between(client& each, std::size_t first, std::size_t last) {
        return milliseconds(first + below(each, last - first + 1));
    }

    void step(deadline until) {
        const auto now = clock::now();
        if (now >= next_due_) {
            next_due_ = clock::time_point::max();
            for (client& each : clients_) {
                if (each.due <= now) act(each, now);
                next_due_ = std::min(next_due_, each.due);
            }
        }
        epoll_event ready[256];
        const auto left = std::chrono::ceil<milliseconds>(next_due_ - clock::now()).count();
        const int timeout = static_cast<int>(std::clamp<std::int64_t>(left, 0, 20));
        const int count =
            ::epoll_wait(epoll_.get(), ready, 256, std::min(timeout, until.poll_timeout()));
        if (count < 0 && errno != EINTR) throw_errno("epoll_wait");
        for (int i = 0; i < count; ++i) {
            client& each = clients_[ready[i].data.u64];
            if (each.now == state::connecting)
                connected(each);
            else if (each.now != state::waiting)
                receive(each, buffer_.size());
            next_due_ = std::min(next_due_, each.due);
        }
    }

    void watch(client& each, int operation, std::uint32_t events) {
        epoll_event entry{};
        entry.events = events;
        entry.data.u64 = static_cast<std::uint64_t>(&each - clients_.data());
        if (::epoll_ctl(epoll_.get(), operation, each.socket.get(), &entry) != 0)
            throw_errno("epoll_ctl");
    }

    // Connecting.

    void connect(client& each) {
        each.due = clock::time_point::max();
        each.socket =
            descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!each.socket) throw_errno("socket");
        if (options_.faults) { // little room here, so that the server notices who does not read
            const int size = 4096;
            ::setsockopt(each.socket.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        }
        // As browsers do: where the server's kernel gave up on a stalled connection in silence, a
        // probe is answered with a reset.
        const int on = 1;
        ::setsockopt(each.socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        ::setsockopt(each.socket.get(), IPPROTO_TCP, TCP_KEEPIDLE, &on, sizeof on); // seconds
        ::setsockopt(each.socket.get(), IPPROTO_TCP, TCP_KEEPINTVL, &on, sizeof on);
        each.head.clear();
        each.decoder = {};
        each.at_line_start = true;
        each.had_farewell = each.acting = each.half_closed = false;
        each.notes = 0;
        each.before = options_.newest();
        if (each.kind->given_newest && each.given.empty() && each.last_id.empty())
            each.given = each.before;
        ++connects_;
        each.now = state::connecting;
        if (::connect(each.socket.get(), peer_.get(), peer_.size()) != 0 && errno != EINPROGRESS)
            throw_errno("connect");
        watch(each, EPOLL_CTL_ADD, EPOLLOUT);
    }

    void connected(client& each) {
        int error = 0;
        socklen_t size = sizeof error;
        ::getsockopt(each.socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0) {
            ++refused_;
            return come_back(each);
        }
        watch(each, EPOLL_CTL_MOD, EPOLLIN);
#if defined(SSE_ENABLE_TLS)
        if (options_.tls) {
            // Some before they have their stream, the others then: a handshake takes long where the
            // machine is busy, and hardly a client would come through.
            if (below(each, 4) == 0) choose_mischief(each);
            each.now = state::handshake;
            each.tls = std::make_unique<tls_end>();
            return take_sealed(each, {});
        }
#endif
        send_request(each);
    }

    void send_request(client& each) {
        std::string target = each.kind->target;
        if (!each.given.empty())
            target += (target.find('?') == target.npos ? "?" : "&") + ("lastEventId=" + each.given);
        std::string request = "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n" +
                              "Accept: text/event-stream\r\nCache-Control: no-store\r\n";
        if (!each.last_id.empty()) request += "Last-Event-ID: " + each.last_id + "\r\n";
        request += "\r\n";
        each.now = state::head;
#if defined(SSE_ENABLE_TLS)
        if (each.tls) request = each.tls->seal(request);
#endif
        if (!send(each, request)) return come_back(each);
        if (!options_.tls) choose_mischief(each);
    }

    static bool send(const client& each, std::string_view bytes) {
        const ssize_t sent = ::send(each.socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        return sent == static_cast<ssize_t>(bytes.size());
    }

#if defined(SSE_ENABLE_TLS)
    void take_sealed(client& each, std::string_view bytes) {
        try {
            const std::string plain = each.tls->open(bytes);
            const std::string answer = each.tls->take_output();
            if (!answer.empty() && !send(each, answer)) return come_back(each);
            if (each.now == state::handshake && each.tls->is_established()) send_request(each);
            take(each, plain);
        } catch (const tls_failure& why) {
            each.record.fault(std::string("TLS: ") + why.what());
            come_back(each);
        }
    }
#endif

    // Waits as EventSource does, for its reconnection time and perhaps longer; now and then so long
    // that the history moves on.
    void come_back(client& each) {
        each.socket.close();
#if defined(SSE_ENABLE_TLS)
        each.tls.reset();
#endif
        each.now = state::waiting;
        milliseconds wait(each.retry.value_or(0));
        wait += options_.faults && below(each, 8) == 0 ? between(each, 300, 1200)
                                                       : between(each, 1, 50);
        each.due = clock::now() + wait;
    }

    // Reading.

    void receive(client& each, std::size_t at_most) {
        const std::size_t room = std::min(at_most, buffer_.size());
        const ssize_t count = ::recv(each.socket.get(), buffer_.data(), room, 0);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (count <= 0) return ended(each, count == 0 ? ending::fin : ending::reset);
        std::string_view bytes(buffer_.data(), static_cast<std::size_t>(count));
        if (each.plan == mischief::cut_at_byte) {
            const bool cut = bytes.size() >= each.bytes_left;
            bytes = bytes.substr(0, each.bytes_left);
            each.bytes_left -= bytes.size();
            take_received(each, bytes);
            if (cut && each.now != state::waiting) leave(each, true);
            return;
        }
        take_received(each, bytes);
    }

    void take_received(client& each, std::string_view bytes) {
#if defined(SSE_ENABLE_TLS)
        if (each.tls) return take_sealed(each, bytes);
#endif
        take(each, bytes);
    }

    void take(client& each, std::string_view bytes) {
        if (each.now == state::head) {
            const std::size_t old = each.head.size();
            each.head += bytes;
            const std::size_t end = each.head.find("\r\n\r\n");
            if (end == each.head.npos) return;
            bytes.remove_prefix(end + 4 - old);
            each.head.resize(end + 4);
            take_head(each);
        }
        while (!bytes.empty()) {
            const std::size_t end = std::min(bytes.find('\n'), bytes.size() - 1) + 1;
            take_line(each, bytes.substr(0, end));
            bytes.remove_prefix(end);
        }
    }

    void take_head(client& each) {
        const response head = parse_response_head(each.head);
        if (head.status != 200) // an EventSource would never come back
            each.record.fault("status " + std::to_string(head.status));
        each.record.opened(
            {each.last_id.empty() ? each.given : each.last_id, each.before, options_.newest()});
        each.now = state::open;
        if (options_.tls && each.plan == mischief::none) choose_mischief(each);
    }

    // By lines, or pieces of one, so that each change of the last id is seen at its place.
    void take_line(client& each, std::string_view line) {
        const bool blank = each.at_line_start && line == "\n";
        each.at_line_start = line.ends_with('\n');
        each.decoder.feed(line);
        if (each.decoder.reconnection_time()) each.retry = each.decoder.reconnection_time();
        if (!blank) return;
        const std::vector<decoded> events = each.decoder.take_events();
        each.decoder.take_comments();
        const std::string& id = each.decoder.last_event_id();
        if (!events.empty() && events.front().type == "note") {
            if (events.front().data != std::to_string(each.notes))
                each.record.fault("note " + show(events.front().data, 40) + " instead of " +
                                  std::to_string(each.notes));
            ++each.notes;
            ++notes_;
            if (id != each.last_id) each.record.moved(id);
        } else if (events.empty() || events.front().type == "farewell") {
            each.had_farewell = each.had_farewell || !events.empty();
            farewells_ += events.size();
            if (id != each.last_id) each.record.moved(id);
        } else if (events.front().type == "gap") {
            each.record.saw_gap(events.front(), options_.newest());
        } else if (events.front().type == "message") {
            each.record.saw_message(events.front());
        } else {
            each.record.fault("an event of type " + events.front().type);
        }
        if (id == each.last_id) return;
        each.last_id = id;
        each.last = parse_event_id(id);
    }

    void ended(client& each, ending how) {
        if (each.now == state::open && !each.half_closed)
            each.record.endings.push_back(
                {how, each.had_farewell, each.decoder.reconnection_time(), clock::now()});
        come_back(each);
    }

    // Mischief.

    void choose_mischief(client& each) {
        each.plan = mischief::none;
        each.acting = false;
        each.due = clock::time_point::max();
        if (!options_.faults) return;
        each.plan = static_cast<mischief>(below(each, static_cast<std::size_t>(mischief::count_)));
        each.bytes_left = 1 + below(each, 20'000);
        const milliseconds wait = each.plan == mischief::early_reset ? between(each, 0, 3)
                                  : each.plan == mischief::none      ? between(each, 500, 3000)
                                                                     : between(each, 0, 1000);
        if (each.plan != mischief::cut_at_byte) each.due = clock::now() + wait;
        if (each.plan == mischief::cut_at_byte) ++times_[static_cast<std::size_t>(each.plan)];
    }

    void act(client& each, clock::time_point now) {
        if (each.now == state::waiting) return connect(each);
        if (!std::exchange(each.acting, true)) {
            ++times_[static_cast<std::size_t>(each.plan)];
            return begin(each, now);
        }
        switch (each.plan) {
        case mischief::half_close: leave(each, true); break;
        case mischief::stall: read_on(each); break;
        case mischief::stall_reset: leave(each, true); break;
        case mischief::slow: read_a_little(each, now); break;
        default: each.due = clock::time_point::max();
        }
    }

    void begin(client& each, clock::time_point now) {
        switch (each.plan) {
        case mischief::none: choose_mischief(each); break;
        case mischief::early_reset:
        case mischief::reset: leave(each, true); break;
        case mischief::fin:
            say_goodbye(each);
            leave(each, false);
            break;
        case mischief::half_close:
            say_goodbye(each);
            ::shutdown(each.socket.get(), SHUT_WR);
            each.half_closed = true;
            each.due = now + between(each, 50, 500);
            break;
        case mischief::stall:
        case mischief::stall_reset:
            watch(each, EPOLL_CTL_MOD, 0);
            each.due = now + between(each, 100, 1500);
            break;
        case mischief::slow:
            watch(each, EPOLL_CTL_MOD, 0);
            each.slow_until = now + between(each, 300, 2000);
            read_a_little(each, now);
            break;
        default: each.due = clock::time_point::max();
        }
    }

    void read_a_little(client& each, clock::time_point now) {
        if (now >= each.slow_until) return read_on(each);
        each.due = now + between(each, 10, 40);
        receive(each, 1 + below(each, 700));
    }

    void read_on(client& each) {
        watch(each, EPOLL_CTL_MOD, EPOLLIN);
        choose_mischief(each);
    }

    /// Over TLS, and by every other client.
    static void say_goodbye([[maybe_unused]] client& each) {
#if defined(SSE_ENABLE_TLS)
        if (each.tls && below(each, 2) == 0) std::ignore = send(each, each.tls->say_goodbye());
#endif
    }

    void leave(client& each, bool by_reset) {
        if (by_reset) {
            const linger at_once{1, 0};
            ::setsockopt(each.socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        }
        come_back(each);
    }

    storm_options options_;
    socket_address peer_;
    std::vector<client> clients_; // never resized
    descriptor epoll_;
    clock::time_point next_due_ = clock::time_point::min();
    std::array<std::uint64_t, static_cast<std::size_t>(mischief::count_)> times_{};
    std::uint64_t connects_ = 0;
    std::uint64_t refused_ = 0;
    std::uint64_t farewells_ = 0;
    std::uint64_t notes_ = 0;
    std::array<char, 16 * 1024> buffer_{};
};

} // namespace support
