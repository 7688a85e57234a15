// load.hpp - the client of all streams: one epoll loop that connects, reads, counts, and tells the
// server what to do. Nothing is allocated for an event.
#pragma once

#include "servers.hpp"

#include <memory>

namespace bench {

constexpr double connect_limit = 60; // seconds; every phase is bounded
constexpr double answer_limit = 10;
constexpr double arrival_limit = 20;
constexpr double silence_limit = 3;
constexpr double return_limit = 300;

inline std::uint64_t after(double seconds) {
    return now_ns() + static_cast<std::uint64_t>(seconds * 1e9);
}

/// What arrived, of all clients: in the window and since the first message.
struct tally {
    bool in_window = false;
    std::uint64_t deliveries = 0;
    histogram latency;
    std::uint64_t received = 0;
    std::uint64_t duplicates = 0;
    std::uint64_t out_of_order = 0;
    std::uint64_t newest = 0; // latency of what arrived last

    void delivered(std::uint64_t send_ns, std::uint64_t now) {
        ++received;
        newest = now > send_ns ? now - send_ns : 0;
        if (!in_window) return;
        ++deliveries;
        latency.add(newest);
    }
};

/// The numbers one client got. It remembers the last 64, to tell late messages from repeated ones.
class sequence {
public:
    void got(std::uint64_t seq, std::uint64_t send_ns, std::uint64_t now, tally& all) {
        if (seq >= next_) {
            const std::uint64_t step = seq - next_ + 1; // more than 1: a gap, perhaps filled later
            recent_ = (step < 64 ? recent_ << step : 0) | 1;
            next_ = seq + 1;
            return all.delivered(send_ns, now);
        }
        const std::uint64_t back = next_ - 1 - seq;
        const std::uint64_t mark = back < 64 ? std::uint64_t{1} << back : 0;
        if (back >= 64 || (recent_ & mark) != 0) {
            ++all.duplicates;
            return;
        }
        recent_ |= mark;
        ++all.out_of_order;
        all.delivered(send_ns, now);
    }

    /// The highest number.
    std::uint64_t last() const noexcept { return next_ - 1; }

private:
    std::uint64_t next_ = 1;
    std::uint64_t recent_ = 0;
};

/// Reads one response by pieces of any size and keeps only numbers between them. Takes chunk sizes
/// for lines that say nothing, which they are as long as no server splits a line over chunks.
class response_reader {
public:
    enum class state : std::uint8_t { head, refused, line_start, seq, stamp, rest };

    state at() const noexcept { return state_; }
    std::uint64_t last() const noexcept { return sequence_.last(); }

    void read(std::string_view bytes, std::uint64_t now, tally& all) {
        const char* at = bytes.data();
        const char* const end = at + bytes.size();
        while (at != end) {
            if (state_ != state::rest) {
                step(*at++, now, all);
                continue;
            }
            const auto size = static_cast<std::size_t>(end - at);
            at = static_cast<const char*>(std::memchr(at, '\n', size));
            if (at == nullptr) return;
            ++at;
            start_line();
        }
    }

private:
    static constexpr std::string_view status = "HTTP/1.1 200 ";
    static constexpr std::string_view head_end = "\r\n\r\n";
    static constexpr std::string_view field = "data:";

    void step(char byte, std::uint64_t now, tally& all) {
        switch (state_) {
        case state::head: return head_byte(byte);
        case state::line_start: return field_byte(byte, now, all);
        case state::seq:
            if (byte == ' ' && !has_digits_) return; // the optional space after the colon
            has_digits_ = true;
            return number_byte(byte, seq_, state::stamp);
        case state::stamp: return number_byte(byte, send_ns_, state::rest);
        default: return;
        }
    }

    void head_byte(char byte) {
        if (head_size_ < status.size() && status[head_size_] != byte) state_ = state::refused;
        if (head_size_ < status.size()) ++head_size_;
        if (byte == head_end[matched_])
            ++matched_;
        else
            matched_ = byte == '\r';
        if (state_ == state::head && matched_ == head_end.size()) start_line();
    }

    void field_byte(char byte, std::uint64_t now, tally& all) {
        if (byte == '\n') {
            if (matched_ == 0 && complete_) sequence_.got(seq_, send_ns_, now, all); // a blank line
            if (matched_ == 0) complete_ = false;
            return start_line();
        }
        if (byte != field[matched_]) {
            state_ = state::rest;
        } else if (++matched_ == field.size()) {
            seq_ = send_ns_ = 0;
            has_digits_ = false;
            state_ = state::seq;
        }
    }

    void number_byte(char byte, std::uint64_t& number, state next) {
        if (byte >= '0' && byte <= '9') {
            number = number * 10 + static_cast<std::uint64_t>(byte - '0');
            return;
        }
        complete_ = next == state::rest && byte == ' ';
        if (byte == '\n') return start_line();
        state_ = byte == ' ' ? next : state::rest;
    }

    void start_line() {
        matched_ = 0;
        state_ = state::line_start;
    }

    state state_ = state::head;
    std::uint8_t matched_ = 0;
    std::uint8_t head_size_ = 0;
    bool has_digits_ = false;
    bool complete_ = false; // a data line with both numbers was read; the blank line will count it
    std::uint64_t seq_ = 0;
    std::uint64_t send_ns_ = 0;
    sequence sequence_;
};

class load {
public:
    load(const scenario& what, const contender& who, const placement& cores, server_process& server)
        : what_(what), who_(who), spin_(cores.spin), server_(server), buffer_(256 * 1024),
          tally_(std::make_unique<tally>()) {
        connections_.reserve(what.clients + std::max(what.behind, churners));
        epoll_ = checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        epoll_of_behind_ = checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        watch(epoll_, server_.descriptor(), command_mark, EPOLLIN, EPOLL_CTL_ADD);
    }

    ~load() {
        close_all();
        close(epoll_of_behind_);
        close(epoll_);
    }

    load(const load&) = delete;
    load& operator=(const load&) = delete;

    struct listening {
        std::uint16_t port = 0;
        pid_t process = 0;
    };

    /// Waits for the server's first line.
    listening meet() {
        std::istringstream words(answer());
        words >> at_.port >> at_.process;
        return at_;
    }

    /// Sends a command; the number of messages published so far.
    std::uint64_t ask(conductor::command next) {
        answer_.reset();
        server_.tell(next);
        std::istringstream words(answer());
        std::uint64_t published = 0;
        words >> published;
        std::getline(words >> std::ws, told_);
        return published;
    }

    /// What else it answered.
    const std::string& told() const noexcept { return told_; }

    /// Opens the clients one after the other, with some response heads outstanding.
    void connect_all(std::uint64_t clients, std::size_t at_once = outstanding) {
        const std::uint64_t limit = after(connect_limit);
        for (std::uint64_t at = 0; at < clients; ++at) {
            connections_.emplace_back();
            connect_one(connections_.size() - 1);
            if (returned_) read_ready(0); // or the steady ones wait for this process
            if (!pump(limit, [&] { return connections_.size() - answered_ < at_once; })) break;
        }
        if (!pump(limit, [&] { return connections_.size() == answered_; }) || closed_ != 0)
            throw std::runtime_error(
                "not every client got its event stream: " + std::to_string(answered_ - closed_) +
                " of " + std::to_string(clients));
    }

    void close_all() {
        for (const connection& each : connections_)
            if (each.fd >= 0) close(each.fd);
        connections_.clear();
        answered_ = closed_ = caught_up_ = left_with_ = 0;
        returned_ = false;
    }

    /// Those that are behind come, read until they have so many messages, and leave. Returns when
    /// the last one had them, or nothing.
    std::optional<std::uint64_t> let_return(std::uint64_t messages) {
        returned_ = true;
        wanted_ = messages;
        connect_all(what_.behind, 16 * outstanding);
        if (!pump(after(return_limit), [&] { return caught_up_ == what_.behind; }))
            return std::nullopt;
        return now_ns();
    }

    /// Others come and leave at the scenario's rate, from now on or no longer.
    void let_come_and_leave(bool on) {
        if (what_.churn == 0) return;
        if (on) connections_.resize(what_.clients + churners);
        churn_period_ = on ? 1'000'000'000 / what_.churn : 0;
        next_churn_ = now_ns();
    }

    void read_for(double seconds) {
        pump(after(seconds), [] { return false; });
    }

    /// Reads until so many messages have reached everybody they are for, for as long as any come,
    /// so that a slow machine is not taken for loss. Returns when the last one came, or nothing.
    std::optional<std::uint64_t> read_until(std::uint64_t published) {
        const std::uint64_t all = expected(published);
        const std::uint64_t limit = after(returned_ ? return_limit : arrival_limit);
        std::uint64_t seen = 0;
        do {
            seen = received();
            if (pump(std::min(limit, after(silence_limit)), [&] { return received() >= all; }))
                return now_ns();
        } while (received() != seen && now_ns() < limit);
        return std::nullopt;
    }

    /// How many messages clients receive of so many.
    std::uint64_t expected(std::uint64_t published) const {
        const std::uint64_t behind = returned_ ? what_.behind - caught_up_ : 0;
        return published * (what_.reach() + behind) + left_with_;
    }
    std::uint64_t received() const {
        return tally_->received + (returned_ ? others_->received : 0);
    }

    /// In how many segments what was received came: one for each write of the server, unless it had
    /// more than 64 KiB.
    std::uint64_t segments() const {
        constexpr std::size_t data_segs_in = 152 / 4; // of Linux's tcp_info; that of glibc is older
        std::uint64_t sum = 0;
        for (const connection& each : connections_) {
            std::array<std::uint32_t, 64> info{};
            socklen_t size = sizeof info;
            if (getsockopt(each.fd, IPPROTO_TCP, TCP_INFO, info.data(), &size) == 0)
                sum += info[data_segs_in];
        }
        return sum;
    }

    /// That the steady ones received.
    std::uint64_t bytes() const noexcept { return bytes_; }
    std::uint64_t disconnected() const noexcept { return closed_; }
    std::uint64_t churned() const noexcept { return churned_; }
    std::uint64_t unanswered() const noexcept { return unanswered_; }
    tally& counts() noexcept { return *tally_; }
    /// Of those that came back.
    tally& counts_of_behind() noexcept { return *others_; }

private:
    struct connection {
        int fd = -1;
        response_reader reader;
#if defined(SSE_ENABLE_TLS)
        tls_socket tls = {};
        bool asked = false;
#endif
#if defined(SSE_ENABLE_ZLIB)
        std::unique_ptr<gzip_reader> gzip = {};
#endif
    };

    static constexpr std::uint64_t clients_per_source = 5'000; // an address lends 28,000 ports
    static constexpr std::uint64_t churners = 1'024;           // at once, at most
    static constexpr std::size_t outstanding = 64;             // far below any listen backlog
    static constexpr std::uint32_t command_mark = UINT32_MAX;

    static constexpr int most_reads_behind = 8; // before the steady ones are looked at again
    static constexpr int window_behind = 64 * 1024;

    bool is_steady(std::uint64_t number) const { return number < what_.clients; }
    bool churns(std::uint64_t number) const { return !is_steady(number) && !returned_; }
    bool was_behind(std::uint64_t number) const { return !is_steady(number) && returned_; }
    bool reads(std::uint64_t number) const { return !is_steady(number) || number >= what_.unread; }
    tally& counts_of(std::uint64_t number) { return is_steady(number) ? *tally_ : *others_; }

    // Blocking, as the kernel completes a loopback handshake by itself. The steady ones are closed
    // by reset, so that no thousands of ports are left waiting.
    void connect_one(std::uint64_t number) {
        const int fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        connections_[number] = {};
        connections_[number].fd = fd;
        const linger reset{!churns(number), 0};
        const timeval patience{5, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
        if (!reads(number)) { // loopback's own sizes would swallow megabytes for a client
            set(fd, SOL_SOCKET, SO_RCVBUF, 4096);
            set(fd, IPPROTO_TCP, TCP_MAXSEG, 1460);
        }
        // Or what is on the way to thousands would take gigabytes of the kernel.
        if (was_behind(number)) set(fd, SOL_SOCKET, SO_RCVBUF, window_behind);
        const auto source = static_cast<std::uint32_t>(number / clients_per_source);
        const sockaddr_in from = loopback(source, 0), to = loopback(0, at_.port);
        checked(bind(fd, reinterpret_cast<const sockaddr*>(&from), sizeof from), "bind");
        checked(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), "connect");
        const std::string request = request_of(number);
        if (!who_.secure && send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0)
            throw_errno("send");
        checked(fcntl(fd, F_SETFL, O_NONBLOCK), "fcntl");
        const auto mark = static_cast<std::uint32_t>(number);
        if (was_behind(number))
            watch(epoll_of_behind_, fd, mark, EPOLLIN | EPOLLRDHUP, EPOLL_CTL_ADD);
        else
            watch(epoll_, fd, mark, EPOLLIN | EPOLLRDHUP | EPOLLET, EPOLL_CTL_ADD);
#if defined(SSE_ENABLE_TLS)
        if (!who_.secure) return;
        connections_[number].tls = tls_socket(fd, false);
        ask_securely(number);
#endif
    }

    std::string request_of(std::uint64_t number) const {
        // By 1.1 nginx makes chunks of its own, which split lines.
        const char* const version = who_.behind_nginx ? " HTTP/1.0" : " HTTP/1.1";
        return "GET " + target(number) + version +
               "\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n" +
               (who_.compresses ? "Accept-Encoding: gzip\r\n\r\n" : "\r\n");
    }

#if defined(SSE_ENABLE_TLS)
    /// Goes on with the handshake, and sends the request behind it.
    ssize_t ask_securely(std::uint64_t number) {
        connection& one = connections_[number];
        const int done = one.tls.shake_hands();
        if (done <= 0) return done;
        one.asked = true;
        const std::string request = request_of(number);
        return one.tls.send(request.data(), request.size());
    }
#endif

    ssize_t receive(std::uint64_t number) {
        connection& from = connections_[number];
#if defined(SSE_ENABLE_TLS)
        const ssize_t asked = who_.secure && !from.asked ? ask_securely(number) : 1;
        if (asked <= 0) return asked;
        if (who_.secure) return from.tls.receive(buffer_.data(), buffer_.size());
#endif
        return recv(from.fd, buffer_.data(), buffer_.size(), 0);
    }

    static void set(int fd, int level, int option, int value) {
        setsockopt(fd, level, option, &value, sizeof value);
    }

    std::string target(std::uint64_t number) const {
        if (churns(number) && !what_.churn_path.empty()) return std::string(what_.churn_path);
        if (was_behind(number)) return who_.path + "?from=oldest";
        if (what_.topics == 0) return who_.path;
        const std::uint64_t first = number % what_.topics;
        std::string text = "/subscribe" + topic_name(first);
        char before = '?';
        const auto add = [&](std::uint64_t topic) {
            text += std::exchange(before, '&') + ("topic=" + topic_name(topic));
        };
        for (std::uint64_t count = 1; count < what_.follows; ++count)
            add((first + count) % what_.topics);
        for (std::uint64_t next = first + what_.clients; next < what_.topics; next += what_.clients)
            if (what_.follows == 0) add(next);
        return text;
    }

    static sockaddr_in loopback(std::uint32_t offset, std::uint16_t port) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + offset);
        address.sin_port = htons(port);
        return address;
    }

    static void watch(int epoll, int fd, std::uint32_t mark, std::uint32_t events, int operation) {
        epoll_event event{};
        event.events = events;
        event.data.u32 = mark;
        checked(epoll_ctl(epoll, operation, fd, &event), "epoll_ctl");
    }

    std::string answer() {
        if (!pump(after(answer_limit), [&] { return answer_.has_value(); }))
            throw std::runtime_error("the server does not answer");
        return *std::exchange(answer_, {});
    }

    template <class Done>
    bool pump(std::uint64_t limit, Done done) {
        while (!done()) {
            const std::uint64_t now = now_ns();
            if (now >= limit) return false;
            if (churn_period_ != 0 && now >= next_churn_) come_and_leave();
            read_ready(spin_ || returned_ ? 0 : churn_period_ != 0 ? 1 : 10);
        }
        return true;
    }

    void read_ready(int patience) {
        std::array<epoll_event, 512> events;
        const int count =
            epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), patience);
        for (int at = 0; at < count; ++at) handle(events[static_cast<std::size_t>(at)]);
        if (returned_) read_behind();
    }

    // A few of them, so that the steady ones do not wait for this process.
    void read_behind() {
        std::array<epoll_event, most_reads_behind> events;
        const int count = epoll_wait(epoll_of_behind_, events.data(), most_reads_behind, 0);
        for (int at = 0; at < count; ++at) handle(events[static_cast<std::size_t>(at)]);
    }

    // One in each call. When the server does not follow, the places are taken and who waited
    // longest leaves without a response.
    void come_and_leave() {
        next_churn_ += churn_period_;
        const std::uint64_t number = what_.clients + churned_++ % churners;
        connection& place = connections_[number];
        if (place.fd >= 0) {
            ++unanswered_;
            close(place.fd);
        }
        connect_one(number);
    }

    void handle(const epoll_event& event) {
        if (event.data.u32 == command_mark)
            answer_ = server_.receive();
        else
            read_from(event.data.u32, (event.events & ~std::uint32_t{EPOLLIN}) != 0);
    }

    // The edge comes once: read until the socket has no more. A short read says so as well, unless
    // the server has hung up.
    void read_from(std::uint32_t number, bool hung_up) {
        connection& from = connections_[number];
        while (from.fd >= 0) {
            const ssize_t size = receive(number);
            if (size < 0 && errno == EAGAIN) return;
            if (size <= 0) return lose(number);
            feed(number, {buffer_.data(), static_cast<std::size_t>(size)});
            if (was_behind(number)) return; // its event comes again
            const bool is_short = static_cast<std::size_t>(size) < buffer_.size();
            if (!hung_up && is_short && !who_.secure) return;
        }
    }

#if defined(SSE_ENABLE_ZLIB)
    /// What follows the head is a stream of gzip; throws where it is none.
    void expand(connection& from, std::string_view bytes) {
        const std::uint64_t now = now_ns();
        for (; !bytes.empty() && from.reader.at() == response_reader::state::head;
             bytes.remove_prefix(1))
            from.reader.read(bytes.substr(0, 1), now, *tally_);
        if (!from.gzip) from.gzip = std::make_unique<gzip_reader>();
        from.gzip->read(bytes,
                        [&](std::string_view text) { from.reader.read(text, now, *tally_); });
    }
#endif

    void feed(std::uint32_t number, std::string_view bytes) {
        connection& from = connections_[number];
        const bool in_head = from.reader.at() == response_reader::state::head;
        const std::uint64_t had = from.reader.last();
        if (is_steady(number)) bytes_ += bytes.size();
#if defined(SSE_ENABLE_ZLIB)
        if (who_.compresses)
            expand(from, bytes);
        else
#endif
            from.reader.read(bytes, now_ns(), counts_of(number));
        if (was_behind(number) && had < wanted_ && from.reader.last() >= wanted_) catch_up(from);
        if (!in_head || from.reader.at() == response_reader::state::head) return;
        if (from.reader.at() == response_reader::state::refused)
            throw std::runtime_error("the server answered a client with another status than 200");
        if (churns(number)) return leave(from);
        ++answered_;
        if (!reads(number)) watch(epoll_, from.fd, number, 0, EPOLL_CTL_DEL);
    }

    /// It leaves: ten times as many live clients would be another load, and more than one core can
    /// write to one by one.
    void catch_up(connection& one) {
        ++caught_up_;
        left_with_ += one.reader.last();
        leave(one);
    }

    void leave(connection& one) {
        close(one.fd);
        one.fd = -1;
#if defined(SSE_ENABLE_TLS)
        one.tls = {};
#endif
    }

    void lose(std::uint32_t number) {
        connection& from = connections_[number];
        // Or connect_all() would wait for its response head.
        if (from.reader.at() == response_reader::state::head) ++answered_;
        ++closed_;
        leave(from);
    }

    const scenario& what_;
    const contender& who_;
    bool spin_;
    server_process& server_;
    listening at_;
    std::vector<char> buffer_;
    std::vector<connection> connections_; // the steady ones, then those that come
    std::uint64_t answered_ = 0;
    std::uint64_t closed_ = 0;
    std::uint64_t churn_period_ = 0; // ns; 0: nobody comes
    std::uint64_t next_churn_ = 0;
    std::uint64_t churned_ = 0;
    std::uint64_t unanswered_ = 0;
    std::uint64_t bytes_ = 0;
    std::optional<std::string> answer_;
    std::string told_;
    std::unique_ptr<tally> tally_;                              // each has a large histogram
    std::unique_ptr<tally> others_ = std::make_unique<tally>(); // of those that come
    bool returned_ = false;                                     // those that were behind
    std::uint64_t wanted_ = 0;                                  // messages, by each of them
    std::uint64_t caught_up_ = 0;                               // of them have those
    std::uint64_t left_with_ = 0;                               // messages, those
    int epoll_ = -1;
    int epoll_of_behind_ = -1;
};

} // namespace bench
