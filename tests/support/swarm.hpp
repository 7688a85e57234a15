// swarm.hpp - thousands of subscribers in one thread, each of which checks that it misses nothing.
//
//   support::swarm swarm(port, {.clients = 1000});
//   REQUIRE(swarm.connect());                       // every one has its 200 and an open stream
//   std::thread publisher([&] { ... broadcast({.data = "0"}), "1", "2", ... "1999" ... });
//   REQUIRE_MESSAGE(swarm.run_until_all_saw(1999), swarm.describe());
//
// Events are `data: <number>`, perhaps with a space and more text after it; other lines are passed
// over. Linux (epoll). Shares no code with sse.hpp and, since 10,000 full decoders would be slower
// than the server, none with event_stream.hpp: a client here is a few words of state and no memory.
#pragma once

#include "client.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/epoll.h>

namespace support {

/// What one client has seen. In order, complete and unrepeated: `perfect()`.
struct subscriber_record {
    enum class state { waiting, connecting, head, open, refused, disconnected, left };

    state now = state::waiting;
    int status = 0; ///< Of the response, once its head has come.
    std::optional<std::uint64_t> first;
    std::optional<std::uint64_t> last; ///< The highest number seen.
    std::uint64_t count = 0;           ///< Events with a number.
    std::uint64_t duplicates = 0;      ///< The number just seen, once more.
    std::uint64_t gaps = 0;            ///< Times that a number was more than one above the last.
    std::uint64_t missing = 0;         ///< Numbers skipped by these gaps.
    std::uint64_t out_of_order = 0;    ///< Numbers below the last: late, or repeated later.
    std::uint64_t malformed = 0;       ///< Events whose data did not begin with a number.

    void saw(std::uint64_t number) {
        ++count;
        if (!first) first = number;
        if (!last || number == *last + 1) {
            last = number;
        } else if (number > *last) {
            ++gaps;
            missing += number - *last - 1;
            last = number;
        } else if (number == *last) {
            ++duplicates;
        } else {
            ++out_of_order;
        }
    }

    bool perfect() const {
        return duplicates == 0 && gaps == 0 && out_of_order == 0 && malformed == 0;
    }
};

/// Splits what one client receives into head, lines and events, byte by byte. Keeps only the
/// number at the beginning of the data, so that an idle client costs a few words.
class number_parser {
public:
    enum class outcome { more, head_complete, number, malformed };

    outcome feed(char byte) {
        if (in_head_) return feed_head(byte);
        const bool second_half = after_cr_ && byte == '\n';
        after_cr_ = byte == '\r';
        if (second_half) return outcome::more;
        if (byte == '\r' || byte == '\n') return end_line();
        feed_line(byte);
        return outcome::more;
    }

    int status() const { return status_; }
    std::uint64_t number() const { return number_; }

private:
    // "HTTP/1.1 200 ...": the status stands at bytes 9 to 11; the head ends with the first empty
    // line. That the rest of the head is right is the business of other tests.
    outcome feed_head(char byte) {
        if (at_ >= 9 && at_ < 12) status_ = status_ * 10 + (byte - '0');
        ++at_;
        if (byte == '\r') return outcome::more;
        const bool empty_line = byte == '\n' && after_lf_;
        after_lf_ = byte == '\n';
        if (!empty_line) return outcome::more;
        in_head_ = false;
        at_ = 0;
        return outcome::head_complete;
    }

    // The name "data", a colon, one space that may be there, digits, and then only a space.
    void feed_line(char byte) {
        static constexpr std::string_view name = "data:";
        if (at_ < name.size()) {
            is_data_ = (at_ == 0 || is_data_) && byte == name[at_];
            if (is_data_ && byte == ':') begin_data();
        } else if (is_data_ && !(at_ == name.size() && byte == ' ')) {
            feed_data(byte);
        }
        if (at_ <= name.size()) // further on the position does not matter, and must not overflow
            ++at_;
    }

    void feed_data(char byte) {
        const bool digit = byte >= '0' && byte <= '9';
        if (value_ == value::done || value_ == value::bad) return;
        if (digit && !overflows(byte)) {
            number_ = number_ * 10 + static_cast<std::uint64_t>(byte - '0');
            value_ = value::digits;
        } else {
            value_ = value_ == value::digits && byte == ' ' ? value::done : value::bad;
        }
    }

    void begin_data() {
        value_ = has_data_ ? value::bad : value::none; // a second data line: not one of our events
        has_data_ = true;
        number_ = 0;
    }

    bool overflows(char digit) const {
        return number_ > (UINT64_MAX - static_cast<std::uint64_t>(digit - '0')) / 10;
    }

    outcome end_line() {
        const bool blank = at_ == 0;
        if (is_data_ && at_ == 4) // "data" without a colon is an empty data line
            begin_data();
        at_ = 0;
        is_data_ = false;
        if (!blank || !has_data_) return outcome::more;
        has_data_ = false;
        return value_ == value::digits || value_ == value::done ? outcome::number
                                                                : outcome::malformed;
    }

    enum class value : std::uint8_t { none, digits, done, bad };

    std::uint64_t number_ = 0;
    std::uint32_t at_ = 0; // position in the head, later in the line
    int status_ = 0;
    bool in_head_ = true;
    bool after_lf_ = false;
    bool after_cr_ = false;
    bool is_data_ = false;
    bool has_data_ = false;
    value value_ = value::none;
};

struct swarm_options {
    std::size_t clients = 1000;
    std::string target = "/subscribe";
    header_list headers = {};
    /// Source addresses 127.0.0.1, 127.0.0.2, ... in turn. One offers about 28,000 ports.
    std::size_t sources = 1;
    int receive_buffer = 0; ///< SO_RCVBUF of each client.
    /// Connections under way at a time: more than the server's accept queue holds would only wait
    /// for a repeated SYN, one second and more.
    std::size_t at_once = 256;
};

/// The process needs one descriptor for each client, and one more if the server lives in it too:
/// then stay at 9,500 clients under a limit of 20,000. See raise_descriptor_limit().
class swarm {
public:
    swarm(std::uint16_t port, swarm_options options)
        : options_(std::move(options)), port_(port), clients_(options_.clients),
          epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        if (!epoll_) throw_errno("epoll_create1");
        request_ = "GET " + options_.target +
                   " HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n";
        for (const auto& [name, value] : options_.headers)
            request_.append(name).append(": ").append(value).append("\r\n");
        request_ += "\r\n";
    }

    // Each function that runs returns true when its condition holds, and false when the deadline
    // passed or when the condition can no longer come true because clients were lost.

    /// Until every client has an open stream. Events that come meanwhile are counted as well.
    bool connect(deadline until = std::chrono::seconds(60)) {
        return run([this] { return open_ == clients_.size(); }, until);
    }

    /// Until every client has seen this number or a higher one.
    bool run_until_all_saw(std::uint64_t number, deadline until = std::chrono::seconds(60)) {
        target_ = number;
        reached_ = static_cast<std::size_t>(
            std::count_if(clients_.begin(), clients_.end(), [&](const client& each) {
                return each.record.last && *each.record.last >= number;
            }));
        const bool reached = run([this] { return reached_ == clients_.size(); }, until);
        target_.reset();
        return reached;
    }

    /// Until the server has ended every stream.
    bool run_until_all_closed(deadline until = std::chrono::seconds(60)) {
        return run([this] { return lost_ == clients_.size(); }, until, true);
    }

    /// Until `condition()` holds; it is asked after each round of events, so keep it cheap.
    template <class Condition>
    bool run(Condition&& condition, deadline until, bool losses_are_fine = false) {
        for (;;) {
            connect_more();
            if (condition()) return true;
            if (until.passed() || (lost_ > 0 && !losses_are_fine)) return false;
            step(until);
        }
    }

    /// All clients leave, by FIN, or by RST: then no port stays in TIME_WAIT.
    void leave(bool by_reset = false) {
        for (client& each : clients_) {
            if (each.socket && by_reset) make_close_a_reset(each);
            const bool had_a_stream = each.record.now == subscriber_record::state::open;
            each.socket.close();
            if (had_a_stream) each.record.now = subscriber_record::state::left;
        }
        open_ = 0;
    }

    std::size_t size() const { return clients_.size(); }
    std::size_t open() const { return open_; }
    /// Refused, or disconnected by the server.
    std::size_t lost() const { return lost_; }
    std::uint64_t events() const { return events_; }
    const subscriber_record& record(std::size_t index) const { return clients_[index].record; }

    /// Clients whose record does not satisfy `good(record)`.
    template <class Predicate>
    std::size_t count_unless(Predicate&& good) const {
        return static_cast<std::size_t>(
            std::count_if(clients_.begin(), clients_.end(),
                          [&](const client& each) { return !good(each.record); }));
    }

    /// Whether every client has each number from `first` to `last` once, in order, nothing else.
    bool all_saw_exactly(std::uint64_t first, std::uint64_t last) const {
        return count_unless([&](const subscriber_record& record) {
                   return record.perfect() && record.first == first && record.last == last &&
                          record.count == last - first + 1;
               }) == 0;
    }

    /// For a failed check: the sums, and the first clients that are not perfect.
    std::string describe() const {
        subscriber_record sum;
        std::string worst;
        int shown = 0;
        for (std::size_t index = 0; index < clients_.size(); ++index) {
            const subscriber_record& record = clients_[index].record;
            sum.count += record.count;
            sum.duplicates += record.duplicates;
            sum.gaps += record.gaps;
            sum.missing += record.missing;
            sum.out_of_order += record.out_of_order;
            sum.malformed += record.malformed;
            const bool behind = target_seen_by_most() > record.last.value_or(0);
            const bool lost = record.now != subscriber_record::state::open &&
                              record.now != subscriber_record::state::left;
            if ((!record.perfect() || behind || lost) && shown++ < 5)
                worst += "\n  client " + std::to_string(index) + ": " + describe(record);
        }
        return std::to_string(clients_.size()) + " clients, " + std::to_string(open_) + " open, " +
               std::to_string(lost_) + " lost; events " + std::to_string(sum.count) +
               ", duplicates " + std::to_string(sum.duplicates) + ", gaps " +
               std::to_string(sum.gaps) + " (" + std::to_string(sum.missing) +
               " missing), out of order " + std::to_string(sum.out_of_order) + ", malformed " +
               std::to_string(sum.malformed) + worst;
    }

private:
    using state = subscriber_record::state;

    struct client {
        descriptor socket;
        number_parser parser;
        subscriber_record record;
    };

    static std::string describe(const subscriber_record& record) {
        static constexpr std::string_view names[] = {"waiting", "connecting",   "head", "open",
                                                     "refused", "disconnected", "left"};
        const auto number = [](const std::optional<std::uint64_t>& value) {
            return value ? std::to_string(*value) : std::string("none");
        };
        return std::string(names[static_cast<std::size_t>(record.now)]) + ", status " +
               std::to_string(record.status) + ", first " + number(record.first) + ", last " +
               number(record.last) + ", count " + std::to_string(record.count) + ", duplicates " +
               std::to_string(record.duplicates) + ", gaps " + std::to_string(record.gaps) +
               ", out of order " + std::to_string(record.out_of_order) + ", malformed " +
               std::to_string(record.malformed);
    }

    std::uint64_t target_seen_by_most() const {
        std::uint64_t highest = 0;
        for (const client& each : clients_)
            highest = std::max(highest, each.record.last.value_or(0));
        return highest;
    }

    void connect_more() {
        while (started_ < clients_.size() && started_ - open_ - lost_ < options_.at_once)
            start(clients_[started_++]);
    }

    void start(client& each) {
        const std::size_t index = started_ - 1;
        each.socket =
            descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!each.socket) throw_errno("socket of client " + std::to_string(index));
        const int fd = each.socket.get();
        const int size = options_.receive_buffer;
        if (size != 0 && ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size) != 0)
            throw_errno("SO_RCVBUF");
        if (options_.sources > 1) {
            // Without this option each bind would take a port for itself, whatever the peer.
            const int yes = 1;
            ::setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
            const std::string host = "127.0.0." + std::to_string(1 + index % options_.sources);
            const socket_address source(host, 0);
            if (::bind(fd, source.get(), source.size()) != 0) throw_errno("bind to " + host);
        }
        const socket_address peer("127.0.0.1", port_);
        if (::connect(fd, peer.get(), peer.size()) != 0 && errno != EINPROGRESS)
            throw_errno("connect of client " + std::to_string(index));
        each.record.now = state::connecting;
        watch(each, EPOLL_CTL_ADD, EPOLLOUT);
    }

    void watch(client& each, int operation, std::uint32_t events) {
        epoll_event entry{};
        entry.events = events;
        entry.data.ptr = &each;
        if (::epoll_ctl(epoll_.get(), operation, each.socket.get(), &entry) != 0)
            throw_errno("epoll_ctl");
    }

    void step(deadline until) {
        epoll_event ready[512];
        // A limit, so that conditions on something else than our sockets are looked at too.
        const int timeout = std::min(until.poll_timeout(), 20);
        const int count = ::epoll_wait(epoll_.get(), ready, 512, timeout);
        if (count < 0 && errno != EINTR) throw_errno("epoll_wait");
        for (int i = 0; i < count; ++i) {
            client& each = *static_cast<client*>(ready[i].data.ptr);
            if (each.record.now == state::connecting)
                send_request(each);
            else
                receive(each);
        }
    }

    void send_request(client& each) {
        // The socket's buffer is empty and takes a small request whole, or the connection failed.
        const ssize_t sent =
            ::send(each.socket.get(), request_.data(), request_.size(), MSG_NOSIGNAL);
        if (sent != static_cast<ssize_t>(request_.size())) return lose(each, state::refused);
        each.record.now = state::head;
        watch(each, EPOLL_CTL_MOD, EPOLLIN);
    }

    // One read for each turn: a client with much to read must not keep the others waiting.
    void receive(client& each) {
        const ssize_t count = ::recv(each.socket.get(), buffer_, sizeof buffer_, 0);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (count <= 0)
            return lose(each,
                        each.record.now == state::open ? state::disconnected : state::refused);
        for (ssize_t i = 0; i < count && each.socket; ++i) take(each, each.parser.feed(buffer_[i]));
    }

    void take(client& each, number_parser::outcome outcome) {
        subscriber_record& record = each.record;
        if (outcome == number_parser::outcome::number) {
            const bool had_reached = target_ && record.last && *record.last >= *target_;
            record.saw(each.parser.number());
            ++events_;
            if (target_ && !had_reached && *record.last >= *target_) ++reached_;
        } else if (outcome == number_parser::outcome::malformed) {
            ++record.malformed;
        } else if (outcome == number_parser::outcome::head_complete) {
            record.status = each.parser.status();
            if (record.status != 200) return lose(each, state::refused);
            record.now = state::open;
            ++open_;
        }
    }

    void lose(client& each, state why) {
        if (each.record.now == state::open) --open_;
        each.record.now = why;
        each.socket.close();
        ++lost_;
    }

    static void make_close_a_reset(client& each) {
        const linger at_once{1, 0};
        ::setsockopt(each.socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }

    swarm_options options_;
    std::uint16_t port_;
    std::string request_;
    std::vector<client> clients_; // never resized: epoll holds pointers into it
    descriptor epoll_;
    std::size_t started_ = 0;
    std::size_t open_ = 0;
    std::size_t lost_ = 0;
    std::uint64_t events_ = 0;
    std::optional<std::uint64_t> target_;
    std::size_t reached_ = 0;
    char buffer_[64 * 1024];
};

} // namespace support
