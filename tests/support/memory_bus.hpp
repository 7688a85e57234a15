// A bus in memory, shared by the servers of a test, which can lose, double, cut, stall and rewind.
// Nothing of it is timed: what happens happens when the test says so, or at once.
#pragma once

#include "sse.hpp"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace support {

/// What all servers share: the order, and what is kept of it.
class memory_store {
public:
    struct entry {
        std::uint64_t number; ///< 0: it is passed on, not kept.
        std::string bytes;
        std::chrono::system_clock::time_point time;
        std::string epoch = {};                       ///< Of a mark: what follows is of this one.
        std::uint64_t after = 0;                      ///< Of a mark.
        sse::gap_reason why = sse::gap_reason::epoch; ///< Of a mark.
        bool is_mark() const { return !epoch.empty(); }
    };
    struct state {
        std::string epoch = "memory00";
        std::vector<entry> all{{0, {}, {}, "memory00"}}; ///< In their order.
        std::uint64_t newest = 0;                        ///< Number.
        std::uint64_t begin = 0; ///< Everything up to this number was dropped.
        struct loss {
            std::size_t kept;     ///< How many of `all` it left,
            std::uint64_t number; ///< up to this number.
        };
        std::vector<loss> losses;
        bool is_down = false;
        unsigned replies_to_lose = 0; ///< Of the next publishes: stored, and stored again.
        std::uint64_t step = 1;       ///< From number to number.

        /// The last one of this number. Places in `all` tell nothing: servers greet each other.
        entry& numbered(std::uint64_t number) {
            const auto found = std::find_if(all.rbegin(), all.rend(), [&](const entry& e) {
                return e.number == number && !e.is_mark();
            });
            if (number == 0 || found == all.rend()) throw std::out_of_range("no such message");
            return *found;
        }
    };

    template <class F>
    auto with(F&& f) {
        const std::lock_guard lock(mutex_);
        struct notifier {
            ~notifier() { of.notify_all(); }
            std::condition_variable& of;
        } const after{changed_};
        return f(state_);
    }

    /// Forgets all of it, and begins a new epoch.
    void lose(sse::gap_reason why) {
        with([&](state& s) {
            s.all.clear();
            begin_epoch(s, 0, why);
        });
    }
    /// Forgets what is above this number, and begins a new epoch.
    void cut(std::uint64_t above) {
        with([&](state& s) {
            std::erase_if(s.all, [&](const entry& e) { return e.number > above; });
            begin_epoch(s, above, sse::gap_reason::rewound);
        });
    }
    /// Stores the bytes of a record again, as a publisher does that got no reply.
    void repeat(const std::string& bytes) {
        with([&](state& s) { s.all.push_back({s.newest += s.step, bytes, {}}); });
    }
    /// Drops the oldest ones.
    void trim(std::uint64_t upto) {
        with([&](state& s) { s.begin = std::max(s.begin, upto); });
    }
    void set_down(bool down) {
        with([&](state& s) { s.is_down = down; });
    }

private:
    friend class memory_bus;

    static void begin_epoch(state& s, std::uint64_t kept, sse::gap_reason why) {
        s.losses.push_back({s.all.size(), kept});
        s.newest = kept;
        s.begin = std::min(s.begin, kept);
        s.epoch = "memory" + std::to_string(10 + s.losses.size());
        s.all.push_back({0, {}, {}, s.epoch, kept, why});
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    state state_;
};

/// One server's end of it.
class memory_bus final : public sse::bus {
public:
    explicit memory_bus(std::shared_ptr<memory_store> store) : store_(std::move(store)) {}
    ~memory_bus() override { memory_bus::detach(); }

    void attach(sink& to, const history& kept) override {
        sink_ = &to;
        kept_ = kept;
        reader_ = std::thread([this] { read_all(); });
    }

    void publish(std::string bytes, bool store, std::chrono::milliseconds,
                 published done) override {
        std::error_code failed;
        std::uint64_t number = 0;
        store_->with([&](memory_store::state& s) {
            if (s.is_down) {
                failed = sse::errc::bus_down;
                return;
            }
            const int times = s.replies_to_lose > 0 ? 2 : 1; // what is not confirmed is repeated
            if (times == 2) --s.replies_to_lose;
            for (int i = 0; i < times; ++i) {
                if (store) number = s.newest += s.step;
                s.all.push_back({number, bytes, std::chrono::system_clock::now()});
            }
        });
        done(failed, number);
    }

    void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
              std::function<void(page)> done) override {
        page p;
        store_->with([&](memory_store::state& s) {
            ++reads_;
            if (s.is_down) {
                p.failed = sse::errc::bus_down;
                return;
            }
            bool is_it = false;
            p.whole = false;
            for (const auto& e : s.all) {
                if (e.is_mark()) is_it = e.epoch == epoch;
                p.whole |= is_it && after >= s.begin;
                if (!is_it || e.number <= std::max(after, s.begin)) continue;
                if (p.records.size() == messages) break;
                p.records.push_back({e.number, e.time, e.bytes});
            }
        });
        const bool held = store_->with([&](memory_store::state&) {
            if (holds_reads_) held_.emplace_back([=, p = std::move(p)] { done(p); });
            return holds_reads_;
        });
        if (!held) done(std::move(p));
    }

    void detach() noexcept override {
        store_->with([&](memory_store::state&) { ended_ = true; });
        if (reader_.joinable()) reader_.join();
    }

    /// While it is stalled, this server is told nothing new.
    void stall(bool on) {
        store_->with([&](memory_store::state&) { stalled_ = on; });
    }

    /// This server is told nothing beyond this number.
    void stop_at(std::uint64_t number) {
        store_->with([&](memory_store::state&) { stop_at_ = number; });
    }
    /// What is read is held back, from now on, until it is let go.
    void hold_reads() {
        store_->with([&](memory_store::state&) { holds_reads_ = true; });
    }
    std::size_t held() {
        return store_->with([&](memory_store::state&) { return held_.size(); });
    }
    void let_reads_go() {
        std::vector<std::function<void()>> all;
        store_->with([&](memory_store::state&) {
            holds_reads_ = false;
            all.swap(held_);
        });
        for (const auto& each : all) each();
    }
    std::size_t reads() {
        return store_->with([&](memory_store::state&) { return reads_; });
    }

private:
    void read_all() {
        constexpr std::size_t none = ~std::size_t{0};
        std::size_t losses = none; // it knows of
        std::uint64_t last = 0;    // number
        std::size_t at = 0;        // in `all`
        std::optional<bool> up;
        bool ready = false;
        std::unique_lock lock(store_->mutex_);
        const auto& s = store_->state_;
        const auto tell = [&](auto&& f) {
            lock.unlock();
            f();
            lock.lock();
        };
        while (!ended_) {
            if (up != !s.is_down) {
                up = !s.is_down;
                tell([&] { sink_->health(*up, *up ? "" : "the test took it away"); });
            } else if (s.is_down || stalled_) {
                store_->changed_.wait(lock);
            } else if (losses == none) {
                losses = s.losses.size();
                at = first_wanted(s);
                std::size_t mark = at - 1;
                for (; !s.all[mark].is_mark(); --mark) last = std::max(last, s.all[mark].number);
                const memory_store::entry begin = s.all[mark];
                last = std::max({last, begin.after, s.begin});
                tell([&] { sink_->epoch(begin.epoch, last, begin.why); });
            } else if (losses != s.losses.size()) {
                const auto [kept, number] = s.losses[losses++];
                if (last <= number && at <= kept) continue; // it was told nothing that is lost
                at = kept;
                last = number;
                tell([&, above = last] { sink_->lost(above); });
            } else if (last < s.begin) {
                last = s.begin;
                tell([&, to = last] { sink_->hole(to); });
            } else if (at < s.all.size() && s.all[at].number <= stop_at_) {
                const memory_store::entry e = s.all[at++];
                if (e.is_mark()) {
                    last = e.after;
                    tell([&] { sink_->epoch(e.epoch, e.after, e.why); });
                    continue;
                }
                if (e.number == 0 ? !ready : e.number <= last) continue;
                if (e.number != 0) last = e.number;
                tell([&] {
                    if (e.number == 0) return sink_->passing(e.bytes);
                    sink_->message({e.number, e.time, e.bytes});
                });
            } else if (!ready && at == s.all.size()) {
                ready = true;
                tell([&] { sink_->ready(); });
            } else {
                store_->changed_.wait(lock);
            }
        }
    }

    /// Where the history begins in `all`, after a mark.
    std::size_t first_wanted(const memory_store::state& s) const {
        std::size_t count = 0;
        std::size_t first = s.all.size();
        for (std::size_t i = s.all.size(); i > 1 && count < kept_.messages; --i) {
            if (s.all[i - 1].number == 0) continue;
            first = i - 1;
            ++count;
        }
        return count < kept_.messages ? 1 : first;
    }

    const std::shared_ptr<memory_store> store_;
    sink* sink_ = nullptr;
    history kept_;
    std::thread reader_;
    bool stalled_ = false; // these under the mutex of the store
    std::uint64_t stop_at_ = ~std::uint64_t{0};
    std::size_t reads_ = 0;
    bool holds_reads_ = false;
    std::vector<std::function<void()>> held_;
    bool ended_ = false;
};

} // namespace support
