// A bus in memory, shared by the servers of a test, which can lose, double, cut, stall and rewind.
// Nothing of it is timed: what happens happens when the test says so, or at once.
#pragma once

#include "sse.hpp"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
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
    };
    struct state {
        std::string epoch = "memory00";
        std::vector<entry> all;                       ///< In their order.
        std::uint64_t newest = 0;                     ///< Number.
        std::uint64_t begin = 0;                      ///< Everything up to this number was dropped.
        std::uint64_t generation = 0;                 ///< Of epochs.
        sse::gap_reason why = sse::gap_reason::epoch; ///< Of the last change of the epoch.
        bool is_down = false;
        unsigned replies_to_lose = 0; ///< Of the next publishes: stored, and stored again.
        std::uint64_t step = 1;       ///< From number to number.
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
            ++s.generation;
            s.epoch = "memory" + std::to_string(10 + s.generation);
            s.why = why;
            s.begin = s.newest = 0;
            s.all.clear();
        });
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
            if (s.is_down) {
                p.failed = sse::errc::bus_down;
                return;
            }
            p.whole = epoch == s.epoch && after >= s.begin;
            for (const auto& e : s.all) {
                if (epoch != s.epoch || p.records.size() == messages) break;
                if (e.number <= std::max(after, s.begin)) continue;
                p.records.push_back({e.number, e.time, e.bytes});
            }
        });
        done(std::move(p));
    }

    void detach() noexcept override {
        store_->with([&](memory_store::state&) { ended_ = true; });
        if (reader_.joinable()) reader_.join();
    }

    /// While it is stalled, this server is told nothing new.
    void stall(bool on) {
        store_->with([&](memory_store::state&) { stalled_ = on; });
    }

private:
    void read_all() {
        constexpr std::uint64_t none = ~std::uint64_t{0};
        std::uint64_t generation = none;
        std::uint64_t last = 0; // number
        std::size_t at = 0;
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
            } else if (generation != s.generation) {
                at = 0;
                last = s.begin;
                if (generation == none) last = std::max(last, first_wanted(s) - 1);
                generation = s.generation;
                tell([&, name = s.epoch, why = s.why] { sink_->epoch(name, last, why); });
            } else if (last < s.begin) {
                last = s.begin;
                tell([&, to = last] { sink_->hole(to); });
            } else if (at < s.all.size()) {
                const memory_store::entry e = s.all[at++];
                if (e.number == 0 ? !ready : e.number <= last) continue;
                if (e.number != 0) last = e.number;
                tell([&] {
                    if (e.number == 0) return sink_->passing(e.bytes);
                    sink_->message({e.number, e.time, e.bytes});
                });
            } else if (!ready) {
                ready = true;
                tell([&] { sink_->ready(); });
            } else {
                store_->changed_.wait(lock);
            }
        }
    }

    std::uint64_t first_wanted(const memory_store::state& s) const {
        std::size_t count = 0;
        std::uint64_t first = s.newest + 1;
        for (auto e = s.all.rbegin(); e != s.all.rend() && count < kept_.messages; ++e) {
            if (e->number == 0) continue;
            first = e->number;
            ++count;
        }
        return first;
    }

    const std::shared_ptr<memory_store> store_;
    sink* sink_ = nullptr;
    history kept_;
    std::thread reader_;
    bool stalled_ = false; // these under the mutex of the store
    bool ended_ = false;
};

} // namespace support
