// crowd.hpp - clients that come back to another node each time, and books that know the truth.
//
// Publishers number their messages themselves: "<publisher> <count>" at the beginning of the data.
// So what is lost, doubled or out of order is found twice: by ids, from what the others got between
// two ids, and without them, from counts that are missing although they were acknowledged. Of other
// servers the ids are not read, and the counts alone decide.
// With SUPPORT_OVER=gzip every other client takes gzip. Linux (epoll). Shares no code with sse.hpp.
#pragma once

#include "client.hpp"

#include <array>
#include <atomic>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>

#include <sys/epoll.h>

namespace support {

/// What a node tells of its publishers, in one write of a pipe.
struct receipt {
    enum class kind : std::uint32_t { acknowledged, refused };
    kind what = kind::acknowledged;
    std::uint32_t publisher = 0;
    std::uint32_t count = 0;
    std::uint32_t padding = 0;
    std::uint64_t number = 0; ///< As publish() returned it.
};

/// Messages are of one of these topics in turn, by their count.
inline constexpr std::uint32_t topic_count = 4;

/// What went wrong. Each must be 0.
enum class wrong : std::uint8_t {
    lost,    ///< Not received, and no gap was told at that place.
    doubled, ///< Received a second time.
    order,   ///< After a message that others got later.
    ids,     ///< One id for two messages, or two for one; or another than publish() returned.
    gaps,    ///< A gap that nothing explains, or that does not begin where the client was.
    other,   ///< What should not be published was; no stream; nodes that do not start.
    count
};

class crowd {
public:
    using clock = std::chrono::steady_clock;

    struct settings {
        std::size_t clients = 300;
        std::vector<std::uint16_t> ports; ///< Of the nodes.
        std::string path = "/subscribe/j";
        /// Otherwise they are given back as they came, and all clients follow all messages.
        bool reads_ids = true;
        bool gaps_are_allowed = false;
        /// What was sent again, since its reply was lost. Then publish() returns the second number,
        /// and clients may have got the first.
        bool may_be_stored_twice = false;
        std::chrono::milliseconds stay{3000}; ///< A client leaves after this time on the average.
        std::uint64_t seed = 1;
    };

    struct totals {
        std::uint64_t deliveries = 0, connections = 0, refused = 0, told_missing = 0;
        std::uint64_t by_gzip = 0; ///< Of the connections.
        std::uint64_t copies = 0;  ///< publish() returned the number of a copy.
        std::uint64_t again = 0; ///< Received again after a gap `rewound`: the bus lost the first.
        std::uint64_t messages_lost = 0;           ///< To one client or more, though acknowledged.
        std::map<std::string, std::uint64_t> gaps; // by reason
        std::array<std::uint64_t, static_cast<std::size_t>(wrong::count)> faults{};

        std::uint64_t of(wrong what) const { return faults[static_cast<std::size_t>(what)]; }
        std::uint64_t all_faults() const {
            std::uint64_t sum = 0;
            for (const std::uint64_t each : faults) sum += each;
            return sum;
        }
    };

    explicit crowd(settings s)
        : asked_(std::move(s)), random_(asked_.seed), clients_(asked_.clients),
          epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        if (!epoll_) throw_errno("epoll_create1");
        for (std::size_t i = 0; i < clients_.size(); ++i) {
            client& c = clients_[i];
            c.number = i;
            c.node = i % asked_.ports.size();
            if (asked_.reads_ids && i % 5 == 0)
                c.topic = static_cast<std::uint32_t>(i / 5 % topic_count);
        }
        thread_ = std::thread([this] { run(); });
    }
    ~crowd() { stop(); }
    crowd(const crowd&) = delete;
    crowd& operator=(const crowd&) = delete;

    // Any thread.

    /// Clients that know where they are, and so may miss nothing from now on.
    std::size_t positioned() const { return positioned_; }
    /// From now on clients stay where they are, and are counted once they got this message, which
    /// is of publisher 0, or a later one of it.
    void calm(std::uint32_t last) { last_ = last; }
    std::size_t arrived() const { return arrived_; }
    std::uint64_t deliveries() const { return deliveries_; }
    std::uint64_t faults() const { return faults_; }
    void fault(wrong what, const std::string& text) {
        const std::lock_guard lock(telling_);
        tell(what, text, nullptr);
    }

    /// Clients that did not get the last message, in words.
    std::string describe_missing() const {
        std::string text;
        int shown = 0;
        for (const client& c : clients_) {
            if (has_arrived(c) || ++shown > 5) continue;
            text += "\n  " + describe(c) + history(c);
        }
        return text;
    }

    /// Ends it. Then what follows may be called.
    void stop() {
        if (!thread_.joinable()) return;
        ending_ = true;
        thread_.join();
    }

    /// Compares what clients got with what publishers were told.
    const totals& judge(const std::vector<receipt>& receipts) {
        std::map<std::uint32_t, std::map<std::uint32_t, std::uint64_t>> acknowledged;
        for (const receipt& r : receipts) {
            if (r.what == receipt::kind::refused)
                check_refused(r);
            else
                check_number(r);
            if (r.what == receipt::kind::acknowledged)
                acknowledged[r.publisher][r.count] = r.number;
        }
        for (const hole& h : holes_) check_hole(h, acknowledged[h.publisher]);
        for (const disorder& d : disorders_) check_disorder(d, acknowledged[d.publisher]);
        for (client& c : clients_) {
            for (const auto& [publisher, all] : acknowledged) check_end(c, publisher, all);
            check_late(c);
        }
        sum_.deliveries = deliveries_;
        sum_.messages_lost = lost_.size();
        return sum_;
    }

private:
    // ---- the books ------------------------------------------------------------------------------

    struct place {
        std::size_t era = none; // of eras_
        std::uint64_t number = 0;
        static constexpr std::size_t none = ~std::size_t{0};
    };
    struct entry {
        std::uint32_t publisher = 0, count = 0;
        std::set<std::size_t> seen; // by these clients, if it is late
        bool late = false;          // some had been told of a greater number before
    };
    struct era {
        std::string name;
        std::map<std::uint64_t, entry> entries;
        std::uint64_t greatest = 0; // that any client was told
    };
    struct interval {
        place from, to;
    };
    struct trace { // of a publisher, at a client
        std::uint32_t last = 0;
        std::uint32_t rewound = 0; // the last before a gap of that reason
        std::size_t gaps = 0;      // told to the client before that
        std::vector<bool> seen;
    };
    struct hole {
        std::size_t client;
        std::uint32_t publisher, from, to;
        std::string where;
    };
    struct disorder {
        std::size_t client;
        std::uint32_t publisher, count, after;
    };

    enum class state : std::uint8_t { away, connecting, head, open };
    struct client {
        std::size_t number = 0, node = 0;
        std::optional<std::uint32_t> topic; // otherwise all
        state now = state::away;
        clock::time_point until{}; // then it comes, or leaves
        descriptor socket;
        std::string head;
        event_stream_decoder decoder;
#if defined(SSE_ENABLE_ZLIB)
        std::unique_ptr<gzip_reader> gzip;
#endif
        std::string id; // of the last event
        std::optional<place> at;
        std::set<std::size_t> left; // eras
        std::size_t gaps = 0;
        std::vector<interval> told; // gaps
        std::vector<trace> traces;  // by publishers
        std::deque<std::string> events;
    };

    /// What publisher 0 publishes is for all.
    static bool is_for(const client& c, std::uint32_t publisher, std::uint32_t count) {
        return !c.topic || publisher == 0 || *c.topic == count % topic_count;
    }
    static bool is_for(const client& c, const entry& one) {
        return is_for(c, one.publisher, one.count);
    }

    std::size_t era_of(std::string_view name) {
        for (std::size_t i = 0; i < eras_.size(); ++i)
            if (eras_[i].name == name) return i;
        eras_.push_back({std::string(name), {}, 0});
        return eras_.size() - 1;
    }
    std::optional<place> place_of(std::string_view id) {
        const std::size_t dash = id.rfind('-');
        if (dash == id.npos || dash != 8) return std::nullopt;
        std::uint64_t number = 0;
        const char* const end = id.data() + id.size();
        const auto parsed = std::from_chars(id.data() + dash + 1, end, number);
        if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
        return place{era_of(id.substr(0, dash)), number};
    }
    std::string to_string(const place& p) const {
        return eras_[p.era].name + "-" + std::to_string(p.number);
    }

    /// What others got after where the client is, up to there, is lost to it.
    void pass(client& c, std::uint64_t to, bool told) {
        era& e = eras_[c.at->era];
        auto it = e.entries.upper_bound(c.at->number);
        for (; it != e.entries.end() && it->first <= to; ++it) {
            if (!is_for(c, it->second)) continue;
            if (told)
                ++sum_.told_missing;
            else
                wrong_at(c, wrong::lost,
                         "did not get " + text_of(it->second) + " with id " + e.name + "-" +
                             std::to_string(it->first));
        }
        e.greatest = std::max(e.greatest, to);
    }

    /// The client is there now, and was told nothing of another place.
    void move(client& c, const place& to, bool to_message) {
        if (!c.at) {
            c.at = to;
            eras_[to.era].greatest = std::max(eras_[to.era].greatest, to.number);
            ++positioned_;
            return;
        }
        if (to.era != c.at->era) {
            wrong_at(c, wrong::gaps,
                     "came from " + to_string(*c.at) + " to " + to_string(to) + " without a gap");
            enter(c, to);
            return;
        }
        if (to.number < c.at->number || (to_message && to.number == c.at->number)) {
            wrong_at(c, wrong::order, "got " + to_string(to) + " after " + to_string(*c.at));
            return;
        }
        pass(c, to_message ? to.number - 1 : to.number, false);
        eras_[to.era].greatest = std::max(eras_[to.era].greatest, to.number);
        c.at = to;
    }
    void enter(client& c, const place& to) {
        if (c.at->era != to.era) c.left.insert(c.at->era);
        if (c.left.contains(to.era))
            wrong_at(c, wrong::order, "came back to the epoch of " + to_string(to));
        c.at = to;
        eras_[to.era].greatest = std::max(eras_[to.era].greatest, to.number);
    }

    void on_gap(client& c, const decoded& e) {
        ++sum_.gaps[word_of(e.data, "reason")];
        ++c.gaps;
        if (word_of(e.data, "reason") == "rewound")
            for (trace& t : c.traces) t.rewound = t.last;
        if (!asked_.reads_ids) return;
        if (!asked_.gaps_are_allowed) wrong_at(c, wrong::gaps, "was told " + e.data);
        const auto from = place_of(word_of(e.data, "from")), to = place_of(word_of(e.data, "to"));
        if (!to || e.id != word_of(e.data, "to")) {
            wrong_at(c, wrong::gaps, "was told a gap without its end: " + e.data + ", id " + e.id);
            return;
        }
        if (!c.at) {
            move(c, *to, false);
            return;
        }
        if (from && from->era == c.at->era) pass(c, from->number, false);
        if (to->era == c.at->era && to->number < c.at->number)
            wrong_at(c, wrong::order, "was told a gap that ends before " + to_string(*c.at));
        if (to->era == c.at->era) pass(c, to->number, true);
        c.told.push_back({*c.at, *to});
        enter(c, *to);
    }
    static std::string word_of(std::string_view json, const std::string& name) {
        const std::string key = "\"" + name + "\":\"";
        const std::size_t at = json.find(key);
        if (at == json.npos) return {};
        const std::size_t begin = at + key.size();
        return std::string(json.substr(begin, json.find('"', begin) - begin));
    }

    void on_message(client& c, const decoded& e) {
        ++deliveries_;
        std::uint32_t publisher = 0, count = 0;
        const char* const end = e.data.data() + e.data.size();
        auto parsed = std::from_chars(e.data.data(), end, publisher);
        if (parsed.ec == std::errc() && parsed.ptr != end)
            parsed = std::from_chars(parsed.ptr + 1, end, count);
        const auto at = asked_.reads_ids ? place_of(e.id) : place{};
        if (parsed.ec != std::errc() || count == 0 || !at) {
            wrong_at(c, wrong::other, "got what nobody published: " + e.data + ", id " + e.id);
            return;
        }
        if (!is_for(c, publisher, count))
            wrong_at(c, wrong::other, "got " + e.data + " of another topic");
        if (!asked_.reads_ids && c.traces.empty()) ++positioned_;
        if (take(c, publisher, count) && asked_.reads_ids) {
            move(c, *at, true);
            enter_in_books(c, *at, publisher, count);
        }
    }

    void enter_in_books(client& c, const place& at, std::uint32_t publisher, std::uint32_t count) {
        era& e = eras_[at.era];
        const auto [it, is_new] = e.entries.try_emplace(at.number);
        entry& one = it->second;
        if (is_new) {
            one.publisher = publisher;
            one.count = count;
            one.late = std::next(it) != e.entries.end() || at.number < e.greatest;
        } else if (one.publisher != publisher || one.count != count) {
            wrong_at(c, wrong::ids,
                     "got " + std::to_string(publisher) + " " + std::to_string(count) +
                         " with id " + to_string(at) + ", which others got with " + text_of(one));
        }
        if (one.late) one.seen.insert(c.number);
        auto& places = places_[publisher];
        if (places.size() <= count) places.resize(count + 1);
        place& known = places[count];
        if (known.era == place::none) {
            known = at;
        } else if (known.era == at.era && known.number != at.number) {
            wrong_at(c, wrong::ids,
                     "got " + e.name + "-" + std::to_string(at.number) +
                         " for what others got as " + to_string(known));
        } else if (known.era != at.era && !asked_.gaps_are_allowed) {
            wrong_at(c, wrong::ids,
                     "got " + to_string(at) + " for what others got as " + to_string(known));
        }
    }
    static std::string text_of(const entry& one) {
        return std::to_string(one.publisher) + " " + std::to_string(one.count);
    }

    /// By the publisher's own count. Whether it is the first time.
    bool take(client& c, std::uint32_t publisher, std::uint32_t count) {
        if (c.traces.size() <= publisher) c.traces.resize(publisher + 1);
        trace& t = c.traces[publisher];
        if (t.seen.size() <= count) t.seen.resize(count + 1024);
        const std::string name = std::to_string(publisher) + " " + std::to_string(count);
        if (t.seen[count] && count <= t.rewound) {
            ++sum_.again;
            return true;
        }
        if (t.seen[count]) {
            wrong_at(c, wrong::doubled, "got " + name + " again");
            return false;
        }
        t.seen[count] = true;
        if (count < t.last && !asked_.reads_ids) { // right if its publisher had given it up
            disorders_.push_back({c.number, publisher, count, t.last});
            return true;
        }
        if (count < t.last) {
            wrong_at(c, wrong::order, "got " + name + " after " + std::to_string(t.last));
            return true;
        }
        const bool is_told = c.gaps != t.gaps;
        if (count > t.last + (c.topic ? topic_count : 1) && !is_told)
            holes_.push_back(
                {c.number, publisher, t.last + 1, count - 1,
                 "before " + name + ", after id " + c.id + " at node " + std::to_string(c.node)});
        t.last = count;
        t.gaps = c.gaps;
        return true;
    }

    void check_hole(const hole& h, const std::map<std::uint32_t, std::uint64_t>& acknowledged) {
        const client& c = clients_[h.client];
        for (auto it = acknowledged.lower_bound(h.from);
             it != acknowledged.end() && it->first <= h.to; ++it) {
            if (!is_for(c, h.publisher, it->first) || c.traces[h.publisher].seen[it->first])
                continue;
            lost_.emplace(h.publisher, it->first);
            wrong_at(c, wrong::lost,
                     "never got the acknowledged " + std::to_string(h.publisher) + " " +
                         std::to_string(it->first) + ": not " + h.where);
        }
    }
    void check_end(client& c, std::uint32_t publisher,
                   const std::map<std::uint32_t, std::uint64_t>& acknowledged) {
        if (c.traces.size() <= publisher) c.traces.resize(publisher + 1);
        const trace& t = c.traces[publisher];
        if (t.gaps != c.gaps) return; // told, at the latest then
        for (auto it = acknowledged.upper_bound(t.last); it != acknowledged.end(); ++it) {
            if (!is_for(c, publisher, it->first)) continue;
            lost_.emplace(publisher, it->first);
            wrong_at(c, wrong::lost,
                     "never got the acknowledged " + std::to_string(publisher) + " " +
                         std::to_string(it->first) + ": the last of this publisher was " +
                         std::to_string(t.last));
        }
    }
    void check_disorder(const disorder& d,
                        const std::map<std::uint32_t, std::uint64_t>& acknowledged) {
        if (!acknowledged.contains(d.count)) return;
        wrong_at(clients_[d.client], wrong::order,
                 "got " + std::to_string(d.publisher) + " " + std::to_string(d.count) + " after " +
                     std::to_string(d.after));
    }
    void check_refused(const receipt& r) {
        const place* const p = find(r);
        if (p) fault(wrong::other, "refused, and delivered nevertheless: " + text_of(r));
    }
    void check_number(const receipt& r) {
        const place* const p = find(r);
        if (!p || p->number == r.number) return;
        ++sum_.copies;
        if (asked_.may_be_stored_twice) return;
        fault(wrong::ids, "publish() returned " + std::to_string(r.number) + " for " + text_of(r) +
                              ", which clients got as " + to_string(*p));
    }
    const place* find(const receipt& r) const {
        const auto it = places_.find(r.publisher);
        if (it == places_.end() || it->second.size() <= r.count) return nullptr;
        const place& p = it->second[r.count];
        return p.era == place::none ? nullptr : &p;
    }
    static std::string text_of(const receipt& r) {
        return std::to_string(r.publisher) + " " + std::to_string(r.count);
    }

    /// What came to some after others had gone past it.
    void check_late(const client& c) {
        for (std::size_t i = 0; i < eras_.size(); ++i) {
            const bool was_there = c.left.contains(i) || (c.at && c.at->era == i);
            if (!was_there) continue;
            for (const auto& [number, one] : eras_[i].entries) {
                if (!one.late || one.seen.contains(c.number) || !is_for(c, one)) continue;
                if (!is_told(c, {i, number}))
                    wrong_at(c, wrong::lost,
                             "went past " + text_of(one) + ", which others got later with id " +
                                 to_string({i, number}));
            }
        }
    }
    static bool is_told(const client& c, const place& p) {
        return std::any_of(c.told.begin(), c.told.end(), [&](const interval& gap) {
            if (gap.from.era == p.era && gap.to.era == p.era)
                return p.number > gap.from.number && p.number <= gap.to.number;
            if (gap.from.era == p.era) return p.number > gap.from.number;
            return gap.to.era == p.era && p.number <= gap.to.number;
        });
    }

    // ---- what is told ---------------------------------------------------------------------------

    void wrong_at(const client& c, wrong what, const std::string& text) {
        const std::lock_guard lock(telling_);
        tell(what, "client " + std::to_string(c.number) + " " + text, &c);
    }
    void tell(wrong what, const std::string& text, const client* c) {
        static constexpr const char* names[] = {"lost", "doubled", "order", "ids", "gaps", "other"};
        const std::uint64_t before = sum_.faults[static_cast<std::size_t>(what)]++;
        ++faults_;
        if (before >= 5) return;
        std::printf("fault (%s, seed %llu): %s%s\n", names[static_cast<std::size_t>(what)],
                    static_cast<unsigned long long>(asked_.seed), text.c_str(),
                    c && before < 2 ? history(*c).c_str() : "");
        std::fflush(stdout);
    }
    static std::string history(const client& c) {
        std::string text;
        for (const std::string& each : c.events) text += "\n      " + each;
        return text;
    }
    std::string describe(const client& c) const {
        static constexpr const char* states[] = {"away", "connecting", "head", "open"};
        return "client " + std::to_string(c.number) + " is " +
               states[static_cast<std::size_t>(c.now)] + ", node " + std::to_string(c.node) +
               ", at " + c.id;
    }
    void note(client& c, std::string text) {
        if (c.events.size() == 16) c.events.pop_front();
        c.events.push_back(std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(
                                              clock::now() - begin_)
                                              .count()) +
                           " ms " + std::move(text));
    }

    // ---- the clients ----------------------------------------------------------------------------

    std::size_t below(std::size_t end) { return static_cast<std::size_t>(random_() % end); }
    std::chrono::milliseconds about(std::chrono::milliseconds time) {
        const auto most = static_cast<std::size_t>(2 * time.count());
        return std::chrono::milliseconds(below(most + 1));
    }
    bool has_arrived(const client& c) const {
        return !c.traces.empty() && last_ != 0 && c.traces[0].last >= last_;
    }

    void run() {
        while (!ending_) {
            const auto now = clock::now();
            std::size_t there = 0;
            for (client& c : clients_) {
                if (now >= c.until) act(c);
                there += has_arrived(c) ? 1 : 0;
            }
            arrived_ = there;
            step();
        }
        for (client& c : clients_) c.socket.close();
    }
    void act(client& c) {
        if (c.now == state::away) {
            connect(c);
        } else if (c.now != state::open) {
            leave(c, "no head in time", about(100ms));
        } else if (last_ == 0) {
            leave(c, "leaves", below(4) == 0 ? about(500ms) : 0ms);
        } else {
            c.until = clock::now() + 1h;
        }
    }
    void connect(client& c) {
        c.socket =
            descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!c.socket) throw_errno("socket of client " + std::to_string(c.number));
        const socket_address peer("127.0.0.1", asked_.ports[c.node]);
        note(c, "comes to node " + std::to_string(c.node) + " with " + c.id);
        c.now = state::connecting;
        c.until = clock::now() + 5s;
        c.head.clear();
        c.decoder = {};
        if (::connect(c.socket.get(), peer.get(), peer.size()) != 0 && errno != EINPROGRESS) {
            leave(c, "is refused", 50ms);
            return;
        }
        watch(c, EPOLL_CTL_ADD, EPOLLOUT);
    }
    void watch(client& c, int operation, std::uint32_t events) {
        epoll_event wanted{};
        wanted.events = events;
        wanted.data.ptr = &c;
        if (::epoll_ctl(epoll_.get(), operation, c.socket.get(), &wanted) != 0)
            throw_errno("epoll_ctl");
    }
    void leave(client& c, const char* why, std::chrono::milliseconds pause) {
        note(c, why);
        if (c.now != state::open) ++sum_.refused;
        if (c.socket && below(2) == 0) {
            const linger reset{1, 0};
            ::setsockopt(c.socket.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        }
        c.socket.close();
        c.now = state::away;
        c.until = clock::now() + pause;
        const std::size_t nodes = asked_.ports.size();
        if (nodes > 1) c.node = (c.node + 1 + below(nodes - 1)) % nodes;
    }
    void step() {
        epoll_event ready[512];
        const int count = ::epoll_wait(epoll_.get(), ready, 512, 10);
        if (count < 0 && errno != EINTR) throw_errno("epoll_wait");
        for (int i = 0; i < count; ++i) {
            client& c = *static_cast<client*>(ready[i].data.ptr);
            if (c.now == state::connecting)
                send_request(c);
            else if (c.now != state::away)
                receive(c);
        }
    }
    void send_request(client& c) {
        std::string request = "GET " + asked_.path;
        if (c.topic) request += "/" + std::to_string(*c.topic);
        request += " HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n";
        if (!c.id.empty()) request += "Last-Event-ID: " + c.id + "\r\n";
        if (takes_gzip(c)) request += "Accept-Encoding: gzip\r\n";
        request += "\r\n";
        const ssize_t sent = ::send(c.socket.get(), request.data(), request.size(), MSG_NOSIGNAL);
        if (sent != static_cast<ssize_t>(request.size())) {
            leave(c, "is refused", 50ms);
            return;
        }
        c.now = state::head;
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    }
    void receive(client& c) {
        char bytes[64 * 1024];
        const ssize_t size = ::recv(c.socket.get(), bytes, sizeof bytes, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (size <= 0) {
            leave(c, c.now == state::open ? "is disconnected" : "gets no response",
                  c.now == state::open ? 0ms : 50ms);
            return;
        }
        std::string_view rest(bytes, static_cast<std::size_t>(size));
        if (c.now == state::head) {
            c.head += rest;
            const std::size_t end = c.head.find("\r\n\r\n");
            if (end == c.head.npos) return;
            if (!c.head.starts_with("HTTP/1.1 200") && !c.head.starts_with("HTTP/1.0 200")) {
                const std::string line = c.head.substr(0, c.head.find('\r'));
                leave(c, line.c_str(), 50ms);
                return;
            }
            const std::string body = c.head.substr(end + 4);
            c.now = state::open;
            c.until = clock::now() + (last_ == 0 ? about(asked_.stay) : 1h);
            ++sum_.connections;
            expect_coding(c, c.head.find("\r\nContent-Encoding: gzip\r\n") != c.head.npos);
            take_bytes(c, body);
            return;
        }
        take_bytes(c, rest);
    }
    static bool takes_gzip(const client& c) { return gzip_by_default && c.number % 2 == 0; }
#if defined(SSE_ENABLE_ZLIB)
    void expect_coding(client& c, bool is_gzip) {
        c.gzip = is_gzip ? std::make_unique<gzip_reader>() : nullptr;
        sum_.by_gzip += is_gzip;
        if (asked_.reads_ids && is_gzip != takes_gzip(c))
            wrong_at(c, wrong::other, is_gzip ? "gets gzip unasked" : "gets no gzip");
    }
    static std::string decoded_bytes(client& c, std::string_view bytes) {
        return c.gzip ? c.gzip->read(bytes) : std::string(bytes);
    }
#else
    void expect_coding(client&, bool) {}
    static std::string_view decoded_bytes(client&, std::string_view bytes) { return bytes; }
#endif
    void take_bytes(client& c, std::string_view bytes) {
        c.decoder.feed(decoded_bytes(c, bytes));
        for (const decoded& e : c.decoder.take_events()) {
            note(c, (e.type == "message" ? "" : e.type + " ") + e.data + ", id " + e.id);
            if (e.type == "gap")
                on_gap(c, e);
            else if (asked_.reads_ids || e.type == "message")
                on_message(c, e);
            c.id = e.id;
        }
        (void)c.decoder.take_comments();
        const std::string& id = c.decoder.last_event_id();
        if (id.empty() || id == c.id) return;
        note(c, "id " + id);
        if (const auto at = asked_.reads_ids ? place_of(id) : std::nullopt)
            move(c, *at, false);
        else if (asked_.reads_ids)
            wrong_at(c, wrong::other, "got the id " + id);
        c.id = id;
    }

    settings asked_;
    std::mt19937_64 random_;
    std::vector<client> clients_;
    descriptor epoll_;
    const clock::time_point begin_ = clock::now();
    std::deque<era> eras_;
    std::map<std::uint32_t, std::vector<place>> places_; // by publisher and count
    std::vector<hole> holes_;
    std::vector<disorder> disorders_;
    std::set<std::pair<std::uint32_t, std::uint32_t>> lost_; // publishers and counts
    totals sum_;
    std::mutex telling_;
    std::atomic<std::size_t> positioned_{0}, arrived_{0};
    std::atomic<std::uint64_t> deliveries_{0}, faults_{0};
    std::atomic<std::uint32_t> last_{0};
    std::atomic<bool> ending_{false};
    std::thread thread_;
};

} // namespace support
