// fanout.cpp - what one delivery costs: sse.hpp beside the floor, a bare epoll loop with one send()
// for each client and message. From the folder of sse.hpp:
//
//   g++ -O2 -std=c++20 -pthread -I. bench/fanout.cpp -o fanout && ./fanout
//   ./fanout --clients 10000 --rate 2 --seconds 5             memory and latency of many clients
//   ./fanout --clients 100 --rate 5000 --json fanout.json     many messages: the library coalesces
//
// One run is a series of legs: floor, sse, floor, sse, ... In each leg this process is the client
// and forks a fresh server; the two talk over 127.0.0.1 and, for commands, over a socket pair:
//
//   client                                       server
//   connect all, read the response heads         accept, answer
//   start -------------------------------------> publish `<seq> <send_ns> <padding>` at the rate
//   warm up, sample, read for --seconds, sample  getrusage() and RSS at each sample
//   stop --------------------------------------> no more messages; the last seq is told
//   read until everybody has the last message
//
// Deliveries, latency and processor time are those of the window between the two samples; lost,
// duplicated and out of order messages are counted from the first message to the last.
#include "bench.hpp"

#include "sse.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <bit>
#include <exception>
#include <memory>
#include <optional>

namespace {

struct settings {
    std::uint64_t clients = 1000;
    std::uint64_t payload = 100;
    std::uint64_t rate = 20;
    double seconds = 3;
    double warmup = 0.5;
    std::uint64_t rounds = 3;
    std::uint64_t threads = 1;
    bool pin = true;
    bool spin = true;
    std::string json;

    std::vector<int> server_cores; // empty: not pinned
    std::vector<int> client_cores;
};

constexpr std::uint64_t clients_per_source = 5'000; // an address has some 28,000 ports to lend
constexpr double connect_limit = 60;                // seconds; every phase of a leg is bounded
constexpr double answer_limit = 10;
constexpr double drain_limit = 10;

std::uint64_t after(double seconds) {
    return bench::now_ns() + static_cast<std::uint64_t>(seconds * 1e9);
}

// Commands: one byte to the server, one sample back ///////////////////////////////////////////////

enum class command : char { sample = 'm', start = 's', stop = 'p', quit = 'q' };

struct sample {
    std::uint64_t published = 0;
    std::uint64_t resident = 0;
    bench::processor_time time;
    std::uint16_t port = 0;
};

/// What both servers do alike: obey the client and publish at the rate.
class conductor {
public:
    conductor(const settings& set, int commands)
        : commands_(commands), rate_(set.rate), line_(set.payload) {}

    int commands() const noexcept { return commands_; }
    int tick() const noexcept { return ticker_.descriptor(); }
    bool ended() const noexcept { return ended_; }

    /// Does nothing without a command: the one that epoll told of may have been taken by
    /// publish_due() since, and reading would then block the server.
    void obey() {
        if (!command_waits()) return;
        command next{};
        // A client that is gone is as good as one that says quit.
        ended_ = read(commands_, &next, sizeof next) != sizeof next || next == command::quit;
        if (next == command::start) ticker_.start(rate_);
        if (next == command::stop) ticker_.stop();
        publishing_ = !ended_ && (publishing_ || next == command::start) && next != command::stop;
        if (!ended_) answer();
    }

    void answer(std::uint16_t port = 0) {
        sample taken;
        taken.port = port;
        taken.published = seq_;
        taken.resident = bench::resident_bytes();
        taken.time = bench::process_time();
        send(commands_, &taken, sizeof taken, MSG_NOSIGNAL);
    }

    /// Publishes what is due: `publish(line)` says whether it did. A message that was not published
    /// leaves its number to the next one.
    template <class Publish>
    void publish_due(Publish publish) {
        for (std::uint64_t due = ticker_.due(); due > 0; --due) {
            obey(); // a sample must not wait for all that is overdue
            if (!publishing_) return;
            if (publish(line_.make(seq_ + 1))) ++seq_;
        }
    }

private:
    bool command_waits() const {
        pollfd waited{commands_, POLLIN, 0};
        return poll(&waited, 1, 0) > 0;
    }

    int commands_;
    std::uint64_t rate_;
    bench::ticker ticker_;
    bench::stamped_line line_;
    std::uint64_t seq_ = 0;
    bool publishing_ = false;
    bool ended_ = false;
};

// The floor: plain sockets, one thread, no library ////////////////////////////////////////////////

class floor_server {
public:
    floor_server(const settings& set, int commands) : conductor_(set, commands) {
        listener_ = bench::checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
        address_.sin_family = AF_INET;
        address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        bench::checked(bind(listener_, raw_address(), sizeof address_), "bind");
        bench::checked(listen(listener_, SOMAXCONN), "listen");
        socklen_t size = sizeof address_;
        bench::checked(getsockname(listener_, raw_address(), &size), "getsockname");
        epoll_ = bench::checked(epoll_create1(0), "epoll_create1");
        for (int fd : {listener_, conductor_.commands(), conductor_.tick()}) watch(fd);
    }

    void run() {
        conductor_.answer(ntohs(address_.sin_port));
        std::array<epoll_event, 256> events;
        while (!conductor_.ended()) {
            const int count =
                epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
            for (int at = 0; at < count; ++at) serve(events[static_cast<std::size_t>(at)].data.fd);
        }
    }

private:
    static constexpr std::string_view head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n";

    sockaddr* raw_address() { return reinterpret_cast<sockaddr*>(&address_); }

    void watch(int fd) {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.fd = fd;
        bench::checked(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    }

    void serve(int fd) {
        if (fd == listener_) return accept_all();
        if (fd == conductor_.commands()) return conductor_.obey();
        if (fd != conductor_.tick()) return read_from(fd);
        conductor_.publish_due([this](std::string_view line) { return publish(line); });
    }

    void accept_all() {
        for (;;) {
            const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK);
            if (fd < 0) return;
            const int on = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            watch(fd);
        }
    }

    // A request of our client is one small segment, so it is read whole or not at all.
    void read_from(int fd) {
        std::array<char, 4096> buffer;
        const ssize_t size = recv(fd, buffer.data(), buffer.size(), 0);
        if (size < 0 && errno == EAGAIN) return;
        if (size <= 0) return forget(fd);
        if (send(fd, head.data(), head.size(), MSG_NOSIGNAL) > 0) streams_.push_back(fd);
    }

    void forget(int fd) {
        const auto found = std::find(streams_.begin(), streams_.end(), fd);
        if (found != streams_.end()) {
            *found = streams_.back();
            streams_.pop_back();
        }
        close(fd);
    }

    bool publish(std::string_view line) {
        frame_.assign("data: ").append(line).append("\n\n");
        for (int fd : streams_) {
            const ssize_t sent = try_send(fd, 0);
            if (sent != static_cast<ssize_t>(frame_.size())) send_rest(fd, sent);
        }
        return true;
    }

    // Never here in a fair run: the client reads faster than one loop of send() writes. Waiting for
    // it keeps the floor without loss and without a queue; a client that is gone counts as lost.
    void send_rest(int fd, ssize_t result) {
        std::size_t sent = 0;
        for (;;) {
            if (result > 0) sent += static_cast<std::size_t>(result);
            pollfd writable{fd, POLLOUT, 0};
            if (sent == frame_.size() || poll(&writable, 1, 1000) <= 0) return;
            result = try_send(fd, sent);
            if (result < 0 && errno != EAGAIN) return;
        }
    }

    ssize_t try_send(int fd, std::size_t from) {
        return send(fd, frame_.data() + from, frame_.size() - from, MSG_NOSIGNAL | MSG_DONTWAIT);
    }

    conductor conductor_;
    sockaddr_in address_{};
    int listener_ = -1;
    int epoll_ = -1;
    std::vector<int> streams_;
    std::string frame_;
};

// The library /////////////////////////////////////////////////////////////////////////////////////

class library_server {
public:
    library_server(const settings& set, int commands)
        : conductor_(set, commands), server_(options_of(set)) {}

    // The program's own thread publishes, as programs do; the workers deliver.
    void run() {
        server_.start("127.0.0.1:0");
        conductor_.answer(server_.port());
        std::array<pollfd, 2> waited{
            {{conductor_.commands(), POLLIN, 0}, {conductor_.tick(), POLLIN, 0}}};
        while (!conductor_.ended() && poll(waited.data(), waited.size(), -1) >= 0) {
            conductor_.obey();
            conductor_.publish_due([this](std::string_view line) { return publish(line); });
        }
        server_.stop();
        server_.join();
    }

private:
    static sse::options options_of(const settings& set) {
        sse::options options;
        options.threads = set.threads;
        options.max_connections = 0;
        options.heartbeat = std::chrono::milliseconds(0);
        options.on_error = [](std::exception_ptr) { std::fputs("sse: handler failed\n", stderr); };
        return options;
    }

    bool publish(std::string_view line) {
        try {
            server_.publish("/bench", {.data = line});
            return true;
        } catch (const std::system_error&) { // no room for as long as publish() waits
            return false;
        }
    }

    conductor conductor_;
    sse::server server_;
};

// The server's process ////////////////////////////////////////////////////////////////////////////

template <class Server>
int serve(const settings& set, int commands) {
    try {
        if (!set.server_cores.empty()) bench::pin(set.server_cores);
        Server(set, commands).run();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "fanout: server: %s\n", error.what());
        return 1;
    }
}

enum class rival { floor, sse };

const char* name_of(rival who) { return who == rival::floor ? "floor" : "sse"; }

/// A forked server and the client's end of its command socket.
class server_process {
public:
    server_process(const settings& set, rival who) {
        int ends[2];
        bench::checked(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "socketpair");
        commands_ = ends[0];
        std::fflush(nullptr);
        const pid_t parent = getpid();
        process_ = bench::checked(fork(), "fork");
        if (process_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(1); // it died before the line above
            close(ends[0]);
            _exit(who == rival::floor ? serve<floor_server>(set, ends[1])
                                      : serve<library_server>(set, ends[1]));
        }
        close(ends[1]);
    }

    ~server_process() {
        if (process_ > 0) kill(process_, SIGKILL);
        if (process_ > 0) waitpid(process_, nullptr, 0);
        close(commands_);
    }

    server_process(const server_process&) = delete;
    server_process& operator=(const server_process&) = delete;

    int descriptor() const noexcept { return commands_; }

    void tell(command next) {
        if (send(commands_, &next, sizeof next, MSG_NOSIGNAL) != sizeof next)
            throw std::runtime_error("the server is gone");
    }

    sample receive() {
        sample taken;
        if (recv(commands_, &taken, sizeof taken, 0) != sizeof taken)
            throw std::runtime_error("the server is gone");
        return taken;
    }

    /// Lets the server end by itself; says whether it did so in time and well.
    bool end() {
        tell(command::quit);
        int status = 0;
        for (const std::uint64_t limit = after(answer_limit); bench::now_ns() < limit;) {
            if (waitpid(process_, &status, WNOHANG) == process_) {
                process_ = -1;
                return WIFEXITED(status) && WEXITSTATUS(status) == 0;
            }
            poll(nullptr, 0, 1);
        }
        return false;
    }

private:
    int commands_ = -1;
    pid_t process_ = -1;
};

// The client: one epoll loop, nothing allocated for an event //////////////////////////////////////

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

/// What arrived, of all clients: in the window and since the first message.
struct tally {
    bool in_window = false;
    std::uint64_t deliveries = 0;
    histogram latency;
    std::uint64_t received = 0;
    std::uint64_t duplicates = 0;
    std::uint64_t out_of_order = 0;

    void delivered(std::uint64_t send_ns, std::uint64_t now) {
        ++received;
        if (!in_window) return;
        ++deliveries;
        latency.add(now > send_ns ? now - send_ns : 0);
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

private:
    std::uint64_t next_ = 1;
    std::uint64_t recent_ = 0;
};

/// Reads one response by pieces of any size and keeps only numbers between them. Understands what
/// the two servers send: a close-delimited body with lines that end in LF.
class response_reader {
public:
    enum class state : std::uint8_t { head, refused, line_start, seq, stamp, rest };

    state at() const noexcept { return state_; }

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
    static constexpr std::string_view field = "data: ";

    void step(char byte, std::uint64_t now, tally& all) {
        switch (state_) {
        case state::head: return head_byte(byte);
        case state::line_start: return field_byte(byte, now, all);
        case state::seq: return number_byte(byte, seq_, state::stamp);
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
    bool complete_ = false; // a data line with both numbers was read; the blank line will count it
    std::uint64_t seq_ = 0;
    std::uint64_t send_ns_ = 0;
    sequence sequence_;
};

class load {
public:
    load(const settings& set, server_process& server)
        : spin_(set.spin), server_(server), buffer_(256 * 1024) {
        connections_.reserve(set.clients);
        epoll_ = bench::checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        watch(server_.descriptor(), command_mark, EPOLLIN);
    }

    ~load() {
        close_all();
        close(epoll_);
    }

    load(const load&) = delete;
    load& operator=(const load&) = delete;

    /// Opens the clients one after the other, with some response heads outstanding.
    void connect_all(std::uint64_t clients, std::uint16_t port) {
        const std::uint64_t limit = after(connect_limit);
        for (std::uint64_t at = 0; at < clients; ++at) {
            connect_one(at, port);
            if (!pump(limit, [&] { return connections_.size() - answered_ < outstanding; })) break;
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
        answered_ = closed_ = 0;
    }

    sample ask(command next) {
        answer_.reset();
        server_.tell(next);
        return answer();
    }

    sample answer() {
        if (!pump(after(answer_limit), [&] { return answer_.has_value(); }))
            throw std::runtime_error("the server does not answer");
        return *answer_;
    }

    void read_for(double seconds) {
        pump(after(seconds), [] { return false; });
    }

    /// Reads until everybody has got all messages, or nothing helps any more.
    void read_rest(std::uint64_t published) {
        const std::uint64_t all = published * connections_.size();
        pump(after(drain_limit), [&] { return tally_.received >= all; });
        read_for(0.05); // a duplicate would come now
    }

    std::uint64_t disconnected() const noexcept { return closed_; }
    tally& counts() noexcept { return tally_; }

private:
    struct connection {
        int fd = -1;
        response_reader reader;
    };

    static constexpr std::size_t outstanding = 64; // far below any listen backlog
    static constexpr std::uint32_t command_mark = UINT32_MAX;

    // Blocking, as the kernel completes a loopback handshake by itself. Closed by reset, so that no
    // thousands of ports are left waiting.
    void connect_one(std::uint64_t number, std::uint16_t port) {
        const int fd = bench::checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        connections_.push_back({fd, {}});
        const linger reset{1, 0};
        const timeval patience{5, 0};
        const int on = 1;
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        const auto source = static_cast<std::uint32_t>(number / clients_per_source);
        const sockaddr_in from = loopback(source, 0), to = loopback(0, port);
        bench::checked(bind(fd, reinterpret_cast<const sockaddr*>(&from), sizeof from), "bind");
        bench::checked(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), "connect");
        static constexpr std::string_view request =
            "GET /subscribe/bench HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n";
        if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0) bench::throw_errno("send");
        bench::checked(fcntl(fd, F_SETFL, O_NONBLOCK), "fcntl");
        watch(fd, static_cast<std::uint32_t>(number), EPOLLIN | EPOLLRDHUP | EPOLLET);
    }

    static sockaddr_in loopback(std::uint32_t offset, std::uint16_t port) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + offset);
        address.sin_port = htons(port);
        return address;
    }

    void watch(int fd, std::uint32_t mark, std::uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u32 = mark;
        bench::checked(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    }

    template <class Done>
    bool pump(std::uint64_t limit, Done done) {
        std::array<epoll_event, 512> events;
        while (!done()) {
            const std::uint64_t now = bench::now_ns();
            if (now >= limit) return false;
            const auto left = static_cast<int>(std::min<std::uint64_t>(limit - now, 50'000'000));
            const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()),
                                         spin_ ? 0 : left / 1'000'000 + 1);
            for (int at = 0; at < count; ++at) handle(events[static_cast<std::size_t>(at)]);
        }
        return true;
    }

    void handle(const epoll_event& event) {
        if (event.data.u32 == command_mark)
            answer_ = server_.receive();
        else
            read_from(connections_[event.data.u32], (event.events & ~std::uint32_t{EPOLLIN}) != 0);
    }

    // The edge comes once: read until the socket has no more. A short read says so as well, unless
    // the server has hung up.
    void read_from(connection& from, bool hung_up) {
        while (from.fd >= 0) {
            const ssize_t size = recv(from.fd, buffer_.data(), buffer_.size(), 0);
            if (size < 0 && errno == EAGAIN) return;
            if (size <= 0) return lose(from);
            feed(from.reader, {buffer_.data(), static_cast<std::size_t>(size)});
            if (!hung_up && static_cast<std::size_t>(size) < buffer_.size()) return;
        }
    }

    void feed(response_reader& reader, std::string_view bytes) {
        const bool in_head = reader.at() == response_reader::state::head;
        reader.read(bytes, bench::now_ns(), tally_);
        if (in_head && reader.at() != response_reader::state::head) ++answered_;
        if (in_head && reader.at() == response_reader::state::refused)
            throw std::runtime_error("the server answered a client with another status than 200");
    }

    void lose(connection& from) {
        // Or connect_all() would wait for its response head.
        if (from.reader.at() == response_reader::state::head) ++answered_;
        ++closed_;
        close(from.fd);
        from.fd = -1;
    }

    bool spin_;
    server_process& server_;
    std::vector<char> buffer_;
    std::vector<connection> connections_;
    std::uint64_t answered_ = 0;
    std::uint64_t closed_ = 0;
    std::optional<sample> answer_;
    tally tally_;
    int epoll_ = -1;
};

// One leg /////////////////////////////////////////////////////////////////////////////////////////

struct leg {
    double published = 0, deliveries = 0;       // a second
    double p50 = 0, p99 = 0, p999 = 0;          // us
    double processor = 0, user = 0, system = 0; // us a delivery
    double memory = 0;                          // bytes a client
    double server_disturbed = 0;                // % of its cores that somebody else used
    double client_disturbed = 0;
    std::uint64_t lost = 0, duplicates = 0, out_of_order = 0, disconnected = 0;
    bool ended_well = false;

    bool sound() const {
        return lost + duplicates + out_of_order + disconnected == 0 && ended_well;
    }
};

/// What is known at an edge of the window.
struct edge {
    sample server;
    bench::processor_time client;
    double server_busy_us = 0; // of the cores, whoever used them
    double client_busy_us = 0;
    std::uint64_t at = 0;
};

edge reach_edge(const settings& set, load& client) {
    edge now;
    now.server_busy_us = bench::busy_us(set.server_cores);
    now.client_busy_us = bench::busy_us(set.client_cores);
    now.client = bench::process_time();
    now.server = client.ask(command::sample);
    now.at = bench::now_ns();
    return now;
}

// One client comes and goes first, so that code pages and allocator arenas which any first client
// makes resident are not charged to each of the clients.
std::uint64_t resident_before(load& client, std::uint16_t port) {
    client.connect_all(1, port);
    client.close_all();
    client.read_for(0.1);
    return client.ask(command::sample).resident;
}

void fill_figures(const settings& set, const edge& from, const edge& to, tally& counts,
                  leg& result) {
    const double seconds = static_cast<double>(to.at - from.at) / 1e9;
    const double deliveries = static_cast<double>(counts.deliveries);
    result.published = static_cast<double>(to.server.published - from.server.published) / seconds;
    result.deliveries = deliveries / seconds;
    result.p50 = counts.latency.quantile(0.50) / 1e3;
    result.p99 = counts.latency.quantile(0.99) / 1e3;
    result.p999 = counts.latency.quantile(0.999) / 1e3;
    const bench::processor_time own = to.server.time - from.server.time;
    result.user = own.user_us / deliveries;
    result.system = own.system_us / deliveries;
    result.processor = result.user + result.system;
    result.server_disturbed = bench::used_by_others(to.server_busy_us - from.server_busy_us, own,
                                                    seconds, set.server_cores.size());
    result.client_disturbed =
        bench::used_by_others(to.client_busy_us - from.client_busy_us, to.client - from.client,
                              seconds, set.client_cores.size());
}

leg run_leg(const settings& set, rival who) {
    server_process server(set, who);
    load client(set, server);
    const std::uint16_t port = client.answer().port;
    const std::uint64_t before = resident_before(client, port);
    client.connect_all(set.clients, port);
    client.read_for(0.1);
    const sample connected = client.ask(command::start);
    client.read_for(set.warmup);

    const edge from = reach_edge(set, client);
    client.counts().in_window = true;
    client.read_for(set.seconds);
    const edge to = reach_edge(set, client);
    client.counts().in_window = false;

    const std::uint64_t published = client.ask(command::stop).published;
    client.read_rest(published);
    leg result;
    fill_figures(set, from, to, client.counts(), result);
    result.memory = (static_cast<double>(connected.resident) - static_cast<double>(before)) /
                    static_cast<double>(set.clients);
    result.lost = published * set.clients - client.counts().received;
    result.duplicates = client.counts().duplicates;
    result.out_of_order = client.counts().out_of_order;
    result.disconnected = client.disconnected();
    client.close_all();
    result.ended_well = server.end();
    return result;
}

// The report //////////////////////////////////////////////////////////////////////////////////////

struct figure {
    const char* key;
    const char* label;
    double leg::*value;
    int digits;
};

constexpr figure figures[] = {
    {"published_per_s", "messages /s", &leg::published, 1},
    {"deliveries_per_s", "deliveries /s", &leg::deliveries, 0},
    {"latency_p50_us", "latency p50, us", &leg::p50, 0},
    {"latency_p99_us", "latency p99, us", &leg::p99, 0},
    {"latency_p999_us", "latency p99.9, us", &leg::p999, 0},
    {"cpu_us_per_delivery", "server CPU, us a delivery", &leg::processor, 2},
    {"cpu_user_us_per_delivery", "  user", &leg::user, 2},
    {"cpu_system_us_per_delivery", "  system", &leg::system, 2},
    {"memory_bytes_per_client", "memory, bytes a client", &leg::memory, 0},
};

// How far to trust the others. No ratio: these are of the machine, not of the servers.
constexpr figure disturbances[] = {
    {"server_core_used_by_others_percent", "others on server's core, %", &leg::server_disturbed, 1},
    {"client_core_used_by_others_percent", "others on client's core, %", &leg::client_disturbed, 1},
};

struct count {
    const char* key;
    const char* label;
    std::uint64_t leg::*value;
};

constexpr count counts[] = {
    {"lost", "lost", &leg::lost},
    {"duplicates", "duplicates", &leg::duplicates},
    {"out_of_order", "out of order", &leg::out_of_order},
    {"disconnected", "disconnected", &leg::disconnected},
};

struct round {
    leg floor, sse;
};

std::vector<double> column(const std::vector<round>& rounds, leg round::*who, double leg::*what) {
    std::vector<double> values;
    for (const round& each : rounds) values.push_back(each.*who.*what);
    return values;
}

// The two legs of a round met the same machine, so their ratio says more than that of the medians.
double ratio(const std::vector<round>& rounds, double leg::*what) {
    std::vector<double> values;
    for (const round& each : rounds) values.push_back(each.sse.*what / (each.floor.*what));
    return bench::median(std::move(values));
}

std::uint64_t total(const std::vector<round>& rounds, leg round::*who, std::uint64_t leg::*what) {
    std::uint64_t sum = 0;
    for (const round& each : rounds) sum += each.*who.*what;
    return sum;
}

std::string spread(const std::vector<double>& values, int digits) {
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    return bench::grouped(*least, digits) + " - " + bench::grouped(*most, digits);
}

std::string cores_text(const std::vector<int>& cores) {
    std::string text;
    for (int core : cores) text += (text.empty() ? "" : ",") + std::to_string(core);
    return text.empty() ? "any core" : "core " + text;
}

std::vector<bench::fact> describe_run(const settings& set) {
    std::vector<bench::fact> facts = bench::describe_machine();
    facts.emplace_back("placement",
                       "server on " + cores_text(set.server_cores) + ", client on " +
                           cores_text(set.client_cores) + "; client " +
                           (set.spin ? "polls: the server never pays for waking it"
                                     : "sleeps: the server's send() pays for waking it"));
    facts.emplace_back("servers", "floor: 1 thread, one send() a client and message; sse: " +
                                      std::to_string(set.threads) + " worker(s) and 1 publisher");
    facts.emplace_back("load", std::to_string(set.clients) + " clients, " +
                                   std::to_string(set.rate) + " messages/s of " +
                                   std::to_string(set.payload) + " bytes and stamp");
    facts.emplace_back("window",
                       bench::shortest(set.seconds) + " s after " + bench::shortest(set.warmup) +
                           " s, rounds: " + std::to_string(set.rounds) + ", floor and sse in turn");
    return facts;
}

std::vector<std::string> figure_row(const std::vector<round>& rounds, const figure& what) {
    const auto floor = column(rounds, &round::floor, what.value);
    const auto sse = column(rounds, &round::sse, what.value);
    return {what.label, bench::grouped(bench::median(floor), what.digits),
            spread(floor, what.digits), bench::grouped(bench::median(sse), what.digits),
            spread(sse, what.digits)};
}

bool disturbed(const std::vector<round>& rounds) {
    const auto is_disturbed = [](const leg& each) {
        return each.server_disturbed > bench::tolerable || each.client_disturbed > bench::tolerable;
    };
    return std::any_of(rounds.begin(), rounds.end(), [&](const round& each) {
        return is_disturbed(each.floor) || is_disturbed(each.sse);
    });
}

void print_table(const settings& set, const std::vector<round>& rounds) {
    bench::table table;
    table.row({"", "floor", "least - most", "sse", "least - most", "sse/floor"});
    for (const figure& each : figures) {
        auto row = figure_row(rounds, each);
        row.push_back(bench::grouped(ratio(rounds, each.value), 2));
        table.row(std::move(row));
    }
    for (const count& each : counts)
        table.row({each.label, std::to_string(total(rounds, &round::floor, each.value)), "",
                   std::to_string(total(rounds, &round::sse, each.value))});
    for (const figure& each : disturbances)
        if (!set.server_cores.empty()) table.row(figure_row(rounds, each));
    std::printf("\n");
    table.print();
}

/// Whether fewer messages were published than asked for.
bool fell_behind(const settings& set, const std::vector<round>& rounds, leg round::*who) {
    return bench::median(column(rounds, who, &leg::published)) <
           0.97 * static_cast<double>(set.rate);
}

void print_remarks(const settings& set, const std::vector<round>& rounds) {
    std::printf(
        "\nMedians over the rounds; counts are sums; the ratio is the median of the rounds' "
        "ratios.\n");
    if (fell_behind(set, rounds, &round::floor))
        std::printf("The floor fell behind the rate. It publishes when its loop is free, so its "
                    "latency leaves\nout how long messages were overdue.\n");
    if (fell_behind(set, rounds, &round::sse)) std::printf("The library fell behind the rate.\n");
    if (disturbed(rounds)) bench::print_disturbed();
}

void write_leg(bench::json& out, const char* key, const leg& from) {
    out.open(key);
    for (const figure& each : figures) out.field(each.key, from.*each.value);
    for (const count& each : counts) out.field(each.key, from.*each.value);
    for (const figure& each : disturbances) out.field(each.key, from.*each.value);
    out.close();
}

void write_json(const settings& set, const std::vector<bench::fact>& facts,
                const std::vector<round>& rounds, bool sound) {
    bench::json out;
    out.field("benchmark", "fanout").field("sound", sound).field("disturbed", disturbed(rounds));
    bench::write_facts(out, facts);
    out.open("settings").field("clients", set.clients).field("payload", set.payload);
    out.field("rate", set.rate).field("seconds", set.seconds).field("warmup", set.warmup);
    out.field("threads", set.threads).field("pinned", !set.server_cores.empty());
    out.field("client_polls", set.spin).close();
    out.open("median");
    for (const figure& each : figures) {
        out.open(each.key);
        out.field("floor", bench::median(column(rounds, &round::floor, each.value)));
        out.field("sse", bench::median(column(rounds, &round::sse, each.value)));
        out.field("ratio", ratio(rounds, each.value)).close();
    }
    out.close().open("rounds", '[');
    for (const round& each : rounds) {
        out.open("");
        write_leg(out, "floor", each.floor);
        write_leg(out, "sse", each.sse);
        out.close();
    }
    out.close().write(set.json);
}

// The run /////////////////////////////////////////////////////////////////////////////////////////

settings parse(int count, char** values) {
    settings set;
    bench::flags flags("fanout", "sse.hpp beside a bare epoll send() loop.\n"
                                 "Exits with 1 if a message was lost, duplicated or out of order.");
    flags.number<std::uint64_t>("--clients", set.clients, 1, 1'000'000, "event streams");
    flags.number<std::uint64_t>("--payload", set.payload, 0, 1 << 20, "bytes after the stamp");
    flags.number<std::uint64_t>("--rate", set.rate, 1, 1'000'000, "messages a second");
    flags.number("--seconds", set.seconds, 0.1, 600.0, "measured in each leg");
    flags.number("--warmup", set.warmup, 0.0, 60.0, "seconds published before that");
    flags.number<std::uint64_t>("--rounds", set.rounds, 1, 100, "each a floor leg and an sse leg");
    flags.number<std::uint64_t>("--threads", set.threads, 1, 256, "workers of the sse server");
    flags.toggle("--no-pin", set.pin, false, "leave the choice of cores to the kernel");
    flags.toggle("--no-spin", set.spin, false, "the client sleeps while nothing arrives");
    flags.text("--json", set.json, "also write all rounds to this file");
    flags.parse(count, values);

    const std::uint64_t files = bench::raise_file_limit();
    if (set.clients + 64 > files)
        flags.reject("--clients " + std::to_string(set.clients) +
                     " needs more open files than the " + std::to_string(files) +
                     " that the hard limit allows");
    return set;
}

/// The client on the last core, the server on as many others as it has workers. With one core
/// only, polling would starve the server.
void place(settings& set) {
    const std::vector<int> cores = bench::allowed_cores();
    if (cores.size() < 2) {
        set.spin = false;
        return;
    }
    if (!set.pin) return;
    const auto workers = std::min<std::size_t>(set.threads, cores.size() - 1);
    set.server_cores.assign(cores.begin(), cores.begin() + static_cast<std::ptrdiff_t>(workers));
    set.client_cores.assign(1, cores.back());
    bench::pin(set.client_cores);
}

leg run_leg(const settings& set, rival who, std::uint64_t number) {
    bench::progress("round " + std::to_string(number) + " of " + std::to_string(set.rounds) + ": " +
                    name_of(who));
    try {
        return run_leg(set, who);
    } catch (const std::exception& error) {
        throw std::runtime_error(std::string(name_of(who)) + ": " + error.what());
    }
}

int run(settings& set) {
    place(set);
    const std::vector<bench::fact> facts = describe_run(set);
    bench::print_facts(facts);
    std::vector<round> rounds;
    for (std::uint64_t number = 1; number <= set.rounds; ++number) {
        const leg floor = run_leg(set, rival::floor, number);
        rounds.push_back({floor, run_leg(set, rival::sse, number)});
    }
    bench::end_progress();
    print_table(set, rounds);
    print_remarks(set, rounds);
    const auto sound = [](const round& each) { return each.floor.sound() && each.sse.sound(); };
    const bool all_sound = std::all_of(rounds.begin(), rounds.end(), sound);
    if (!all_sound) std::printf("NOT SOUND: a message went astray or a server did not end well.\n");
    write_json(set, facts, rounds, all_sound);
    return all_sound ? 0 : 1;
}

} // namespace

int main(int count, char** values) {
    settings set = parse(count, values);
    try {
        return run(set);
    } catch (const std::exception& error) {
        bench::end_progress();
        std::fprintf(stderr, "fanout: %s\n", error.what());
        return 1;
    }
}
