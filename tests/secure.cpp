// secure.cpp - covers >>secure: One session of TLS against OpenSSL, between bytes and bytes: what
// either end sends is delivered in pieces, or with some of it changed, left out, repeated, moved,
// put in or cut off, as a schedule says. Random schedules here; the fuzzer finds its own.
//
// Built with SSE_ENABLE_TLS. Sockets are a pair without a network, and randomness is a sequence, so
// that a schedule does the same in each run.
#include "support/bytes.hpp"
#include "support/dice.hpp"
#include "support/tls_end.hpp"
#include "sse.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <openssl/rand.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

// What a session keeps for a socket that is full: an explicit instantiation may name what is
// private.
namespace sse::detail {

std::size_t bytes_kept(const tls_session& session);

template <std::string tls_session::*Rest>
struct open_tls_session {
    friend std::size_t bytes_kept(const tls_session& session) { return (session.*Rest).size(); }
};
template struct open_tls_session<&tls_session::rest_>;

} // namespace sse::detail

namespace secure_test {

using namespace support;
using sse::detail::tls_session;

namespace {

/// In place of OpenSSL's random numbers, a sequence that begins anew.
class repeatable_randomness {
public:
    explicit repeatable_randomness(std::uint64_t seed) {
        static const RAND_METHOD method = {nullptr, fill, nullptr, nullptr, fill, [] { return 1; }};
        engine().seed(seed);
        use(&method);
    }
    ~repeatable_randomness() { use(nullptr); }
    repeatable_randomness(const repeatable_randomness&) = delete;
    repeatable_randomness& operator=(const repeatable_randomness&) = delete;

private:
    static std::mt19937_64& engine() {
        static std::mt19937_64 one;
        return one;
    }
    static int fill(unsigned char* to, int size) {
        std::generate_n(to, size, [] { return static_cast<unsigned char>(engine()() % 256); });
        return 1;
    }
    // OpenSSL 3 would rather have a provider: a hundred lines for these.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    static void use(const RAND_METHOD* method) { RAND_set_rand_method(method); }
#pragma GCC diagnostic pop
};

/// Sessions get other keys so often.
class records_of_a_key {
public:
    explicit records_of_a_key(std::uint64_t count) { tls_session::records_of_a_key = count; }
    ~records_of_a_key() { tls_session::records_of_a_key = usual_; }
    records_of_a_key(const records_of_a_key&) = delete;
    records_of_a_key& operator=(const records_of_a_key&) = delete;

private:
    const std::uint64_t usual_ = tls_session::records_of_a_key;
};

/// Two sockets that are connected.
class socket_pair {
public:
    explicit socket_pair(bool narrow) {
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_.data()) == 0);
        const int size = 4096;
        if (narrow) ::setsockopt(ends_[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    }
    ~socket_pair() {
        for (const int one : ends_) ::close(one);
    }
    socket_pair(const socket_pair&) = delete;
    socket_pair& operator=(const socket_pair&) = delete;
    int here() const { return ends_[0]; }
    int there() const { return ends_[1]; }

private:
    std::array<int, 2> ends_{};
};

/// What an end sends: any part of it, none like another.
std::string text_between(std::uint64_t first, std::uint64_t last) {
    std::string text;
    for (std::uint64_t at = first; at < last; ++at) {
        text += static_cast<char>(static_cast<std::uint32_t>(at) * 2654435761U >> 24U);
    }
    return text;
}

/// What all sessions have in common. The certificate is the same in each run.
struct common {
    const authority ca{"sse test CA"};
    const identity server =
        ca.issue({.begins = since_today(1'700'000'000), .ends = since_today(4'000'000'000)});
    const sse::detail::tls_acceptor acceptor{[this] {
        sse::options o;
        o.tls.certificate = server.certificate;
        o.tls.key = server.key;
        return o;
    }()};
    const sse::detail::tls_context client = sse::detail::make_client_context({.ca = ca.file()});

    static std::chrono::seconds since_today(std::int64_t when) {
        return std::chrono::seconds(when - std::time(nullptr));
    }
};

const common& shared() {
    static const common made = [] {
        const repeatable_randomness from(1);
        return common();
    }();
    return made;
}

/// A tls_session and an end by OpenSSL, and what is between them. Of a schedule the first bytes say
/// who is there: `c`, the session is a client, else a server; `2`, TLS 1.2; `n`, a narrow socket;
/// `k`, new keys with every third record. The rest is what happens, by a letter, small for what the
/// session receives and capital for what it sends, and a number n, the next byte:
///   p n   n * n bytes of text are sent            d n   n bytes are delivered
///   f n   a bit is changed                        o n   n + 1 bytes are left out
///   r n   n + 1 bytes are repeated                s n   n + 1 bytes change places with the next
///   i n   n bytes of the schedule are put in      e n   nothing comes behind the next n bytes
///   g     the end says that nothing follows       k, K  the peer changes its keys, or both
/// Any other byte delivers as many bytes in both directions.
class line {
public:
    explicit line(std::string_view schedule)
        : randomness_((shared(), std::hash<std::string_view>()(schedule))),
          random_(std::hash<std::string_view>()(schedule)), schedule_(schedule),
          is_client_(next() == 'c'), newest_(next() == '2' ? TLS1_2_VERSION : TLS1_3_VERSION),
          is_narrow_(next() == 'n'), keys_(next() == 'k' ? 3 : 1'000'000), sockets_(is_narrow_),
          peer_({.is_server = is_client_,
                 .newest = newest_,
                 .ca = shared().ca.file(),
                 .own = is_client_ ? shared().server : identity()}) {
        session_ = is_client_ ? std::make_unique<tls_session>(*shared().client, sockets_.here(),
                                                              "localhost")
                              : shared().acceptor.accept(sockets_.here());
    }

    /// All of the schedule, and then what is still on its way.
    void play() {
        ask_peer([] {});
        run();
        while (!schedule_.empty()) {
            step(static_cast<char>(next()));
            run();
        }
        for (bool goes_on = true; goes_on;) {
            run();
            goes_on = deliver_to_session(all);
            goes_on = deliver_to_peer(all) || goes_on;
        }
        check_arrived();
        to_session_.is_over = true;
        deliver_to_session(all);
        run();
        check_end();
    }

private:
    static constexpr std::size_t all = SIZE_MAX;
    static constexpr std::uint64_t most_text = 200'000; // that an end sends
    static constexpr int most_changes = 300;            // of keys: more than 1,000 are refused
    static constexpr std::size_t most_kept = std::size_t{21} * 1024;

    /// From one end to the other.
    struct direction {
        std::string bytes = {};                   // on their way
        std::uint64_t text = 0;                   // that is to be sent
        std::uint64_t received = 0;               // of it, all of it right
        std::uint64_t delivered = 0;              // of bytes
        std::optional<std::uint64_t> harmed = {}; // from which byte on
        bool is_over = false;                     // nothing comes behind `bytes`
        bool has_ended = false;                   // it was said that nothing follows

        void harm(std::size_t at) {
            if (!harmed) harmed = delivered + at;
        }
    };

    unsigned char next() {
        if (schedule_.empty()) return 0;
        const auto byte = static_cast<unsigned char>(schedule_.front());
        schedule_.remove_prefix(1);
        return byte;
    }

    // ---- what happens

    void step(char what) {
        const bool to_peer = what >= 'A' && what <= 'Z';
        direction& on = to_peer ? to_peer_ : to_session_;
        switch (to_peer ? what - 'A' + 'a' : what) {
        case 'p': return send_text(on, next());
        case 'd': deliver(on, next()); return;
        case 'g': return to_peer ? end_session() : end_peer();
        case 'k': return change_keys(to_peer);
        case 'f': return flip(on, next());
        case 'o': return leave_out(on, next() + std::size_t{1});
        case 'r': return repeat(on, next() + std::size_t{1});
        case 's': return swap(on, next() + std::size_t{1});
        case 'i': return put_in(on, next());
        case 'e': return cut(on, next());
        default:
            deliver(to_session_, static_cast<unsigned char>(what));
            deliver(to_peer_, static_cast<unsigned char>(what));
        }
    }

    void send_text(direction& on, std::uint64_t n) {
        if (!on.has_ended) on.text = std::min(on.text + n * n, most_text);
    }

    void flip(direction& on, std::size_t n) {
        if (on.bytes.empty()) return;
        const std::size_t at = n % on.bytes.size();
        on.bytes[at] = static_cast<char>(on.bytes[at] ^ (1 << n % 8));
        on.harm(at);
    }
    void leave_out(direction& on, std::size_t n) {
        if (!on.bytes.empty()) on.harm(0);
        on.bytes.erase(0, n);
    }
    void repeat(direction& on, std::size_t n) {
        const std::string first = on.bytes.substr(0, n);
        if (!first.empty()) on.harm(first.size());
        on.bytes.insert(0, first);
    }
    void swap(direction& on, std::size_t n) {
        if (on.bytes.size() <= n) return;
        on.harm(0);
        std::rotate(on.bytes.begin(), on.bytes.begin() + static_cast<std::ptrdiff_t>(n),
                    on.bytes.begin() +
                        static_cast<std::ptrdiff_t>(std::min(on.bytes.size(), 2 * n)));
    }
    void put_in(direction& on, std::size_t n) {
        const std::string_view bytes = schedule_.substr(0, n);
        schedule_.remove_prefix(bytes.size());
        if (on.is_over || bytes.empty()) return;
        on.harm(0);
        on.bytes.insert(0, bytes);
    }
    void cut(direction& on, std::size_t n) {
        on.bytes.resize(std::min(n, on.bytes.size()));
        on.harm(on.bytes.size());
        on.is_over = true;
    }

    // ---- the peer

    /// It may fail once something was harmed, and says so to the session.
    template <class Ask>
    void ask_peer(Ask ask) {
        if (peer_has_failed_) return;
        try {
            ask();
            const bool can_send = peer_.shake_hands() && peer_text_ < to_session_.text;
            if (can_send) {
                send(peer_.seal(text_between(peer_text_, to_session_.text)));
                peer_text_ = to_session_.text;
                const std::uint64_t end = to_session_.delivered + to_session_.bytes.size();
                if (!to_session_.harmed) records_.emplace_back(end, peer_text_);
            }
        } catch (const tls_failure&) {
            CHECK((to_peer_.harmed || to_session_.harmed));
            peer_has_failed_ = true;
        }
        send(peer_.take_output());
    }
    void send(const std::string& sealed) {
        if (!to_session_.is_over) to_session_.bytes += sealed;
    }
    void end_peer() {
        ask_peer([&] {
            if (!peer_.is_established() || to_session_.has_ended) return;
            to_session_.has_ended = true;
            send(peer_.say_goodbye());
        });
    }
    void change_keys(bool both) {
        ask_peer([&] {
            const bool can = peer_.is_established() && newest_ == TLS1_3_VERSION &&
                             !to_session_.has_ended && !peer_.is_whole();
            if (can && ++changes_ <= most_changes) send(peer_.change_keys(both));
        });
    }

    // ---- between them

    bool deliver(direction& on, std::size_t n) {
        return &on == &to_peer_ ? deliver_to_peer(n) : deliver_to_session(n);
    }

    bool deliver_to_session(std::size_t n) {
        direction& on = to_session_;
        const std::string_view bytes = std::string_view(on.bytes).substr(0, n);
        constexpr int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
        const auto sent = ::send(sockets_.there(), bytes.data(), bytes.size(), flags);
        if (sent > 0) on.bytes.erase(0, static_cast<std::size_t>(sent));
        if (sent > 0) on.delivered += static_cast<std::size_t>(sent);
        if (on.is_over && on.bytes.empty()) ::shutdown(sockets_.there(), SHUT_WR);
        return sent > 0;
    }

    bool deliver_to_peer(std::size_t n) {
        direction& on = to_peer_;
        const std::string bytes = on.bytes.substr(0, n);
        on.bytes.erase(0, bytes.size());
        on.delivered += bytes.size();
        if (on.is_over && on.bytes.empty()) ::shutdown(sockets_.there(), SHUT_RD);
        if (!bytes.empty()) ask_peer([&] { check_text(on, peer_.open(bytes)); });
        return !bytes.empty();
    }

    /// What the session has sent is on its way. Of a narrow line it stays in the socket.
    void collect() {
        const std::size_t most = is_narrow_ ? 2'000 : 1'000'000;
        std::array<char, 16 * 1024> piece;
        for (;;) {
            const std::size_t room = std::min(piece.size(), most - to_peer_.bytes.size());
            const auto came = ::recv(sockets_.there(), piece.data(), room, MSG_DONTWAIT);
            if (came <= 0) return;
            if (to_peer_.is_over) continue;
            to_peer_.bytes.append(piece.data(), static_cast<std::size_t>(came));
        }
    }

    static void check_text(direction& on, std::string_view text) {
        CHECK(on.received + text.size() <= on.text);
        CHECK((text == text_between(on.received, on.received + text.size())));
        on.received += text.size();
    }

    // ---- the session

    /// Does what an event loop would do, and no more, until there is nothing to do.
    void run() {
        ask_peer([] {});
        for (int turn = 0; take_turn(); ++turn) CHECK(turn < 5'000);
    }

    bool take_turn() {
        collect();
        const int input = session_->reads_when_writable() ? POLLOUT : POLLIN;
        const int wanted = (is_over() ? 0 : input) | (waits_to_write_ ? POLLOUT : 0);
        pollfd socket{sockets_.here(), static_cast<short>(wanted), 0};
        ::poll(&socket, 1, 0);
        const auto is_ready = [&](int event) {
            return wanted & event && socket.revents & (event | POLLERR | POLLHUP);
        };
        const bool begins = is_client_ && !std::exchange(has_begun_, true);
        const bool reads = begins || (!is_over() && is_ready(input));
        if (reads) read();
        const bool writes = can_write() && (!waits_to_write_ || is_ready(POLLOUT));
        if (writes) write();
        CHECK(sse::detail::bytes_kept(*session_) <= most_kept);
        return reads || writes;
    }

    bool is_over() const { return static_cast<bool>(end_); }
    bool is_broken() const { return is_over() && end_ != asio::error::eof; }
    bool can_write() const {
        return session_->is_established() && !is_broken() && accepted_ < to_peer_.text;
    }

    void read() {
        asio::error_code failed;
        std::array<char, 64 * 1024> to;
        const std::size_t room = is_client_ ? 16 * 1024 : to.size();
        if (is_client_ && !session_->is_established()) {
            if (session_->shake_hands(failed)) return;
        } else {
            const std::size_t n = session_->read_some(asio::buffer(to, room), failed);
            check_text(to_session_, {to.data(), n});
        }
        if (!failed || sse::detail::would_block(failed)) return;
        end_ = failed;
        CHECK(session_->read_some(asio::buffer(to, room), failed) == 0);
        // Behind a cut the tickets of a handshake fail, which only the next call says.
        CHECK((failed == end_ || (to_peer_.is_over && failed == asio::error::broken_pipe)));
    }

    /// In buffers that are cut anywhere.
    void write() {
        const std::uint64_t last = std::min(to_peer_.text, accepted_ + 40'000);
        const std::string text = text_between(accepted_, last);
        std::array<asio::const_buffer, 3> buffers;
        std::string_view left = text;
        for (asio::const_buffer& one : buffers) {
            const bool is_last = &one == &buffers.back();
            one =
                asio::buffer(left.substr(0, is_last ? left.size() : random_() % (left.size() + 1)));
            left.remove_prefix(one.size());
        }
        asio::error_code failed;
        const std::size_t n = session_->write_some(buffers, failed);
        CHECK(n <= text.size());
        accepted_ += n;
        waits_to_write_ = n < text.size();
        if (failed && !sse::detail::would_block(failed)) end_ = failed;
    }

    void end_session() {
        const bool can = session_->is_established() && !is_broken() && !to_peer_.has_ended &&
                         accepted_ == to_peer_.text && sse::detail::bytes_kept(*session_) == 0;
        if (!can) return;
        session_->send_end();
        to_peer_.has_ended = true;
    }

    // ---- what must be so

    void check_arrived() const {
        const bool is_harmed = to_session_.harmed || to_peer_.harmed;
        if (!is_harmed) {
            CHECK(session_->is_established());
            CHECK(session_->failure().empty());
            CHECK(to_session_.received == to_session_.text);
            CHECK(peer_.is_whole() == to_peer_.has_ended);
        }
        if (to_peer_.harmed) return;
        for (const auto& [end, text] : records_) {
            if (end <= to_session_.harmed.value_or(end)) CHECK(to_session_.received >= text);
        }
        // The other direction goes on behind an end.
        if (session_->is_established() && !is_broken()) {
            CHECK(to_peer_.received == to_peer_.text);
        }
    }

    void check_end() const {
        CHECK(is_over());
        const bool is_whole =
            !is_broken() && session_->is_established() && !session_->is_truncated();
        if (is_whole) CHECK((to_session_.has_ended && to_session_.received == peer_text_));
        if (!to_session_.harmed && !to_peer_.harmed) CHECK(is_whole == to_session_.has_ended);
        const bool peer_is_whole = peer_.is_established() && peer_.is_whole();
        if (peer_is_whole) CHECK((to_peer_.has_ended && to_peer_.received == to_peer_.text));
    }

    const repeatable_randomness randomness_;
    std::minstd_rand random_;
    std::string_view schedule_;
    const bool is_client_; // the session
    const int newest_;
    const bool is_narrow_;
    const records_of_a_key keys_;
    const socket_pair sockets_;
    std::unique_ptr<tls_session> session_;
    tls_end peer_;
    direction to_session_;
    direction to_peer_;
    std::uint64_t peer_text_ = 0;                                  // that is sealed
    std::vector<std::pair<std::uint64_t, std::uint64_t>> records_; // ends of their bytes, and texts
    std::uint64_t accepted_ = 0; // of the session's text, by the session
    std::error_code end_;        // of what the session receives
    int changes_ = 0;
    bool peer_has_failed_ = false;
    bool has_begun_ = false;
    bool waits_to_write_ = false;
};

std::string random_schedule(dice& random, std::string_view letters) {
    std::string schedule;
    for (const std::string_view one : {"sc", "32", "wn", "-k"}) schedule += random.one_of(one);
    for (std::size_t n = random.below(60); n > 0; --n) {
        schedule += random.one_of(letters);
        schedule += random.one_in(3) ? static_cast<char>(random.below(5)) : random.byte();
    }
    return schedule;
}

void check_schedules(std::uint64_t seed, std::string_view letters, int count) {
    dice random(seed);
    for (int n = 0; n < count; ++n) {
        const std::string schedule = random_schedule(random, letters);
        CAPTURE(escaped(schedule));
        line(schedule).play();
    }
}

} // namespace

TEST_CASE("however a session is cut into pieces, all of it arrives, and its end") {
    check_schedules(20261130, "ppppPPPPddddDDDDkKgG", 500);
}

TEST_CASE("a session that ends anywhere gives what came before, and is told from a whole one") {
    check_schedules(20261131, "pppPPPdddDDDkKgGeE", 500);
}

TEST_CASE("a word of the end in plain text, before there are keys, is not taken for one") {
    for (const char end : {'s', 'c'}) {
        for (const char version : {'3', '2'}) {
            CAPTURE(end);
            CAPTURE(version);
            const std::string schedule{end, version, 'w', '-', 'i', 7, 0x15, 3, 3, 0, 2, 1, 0};
            line(schedule).play();
        }
    }
}

TEST_CASE("what was changed on its way, left out, repeated or put in is never taken for sent") {
    check_schedules(20261132, "ppppPPPPddddDDDDkKgGfFoOrRsSiIeE", 1'000);
}

} // namespace secure_test
