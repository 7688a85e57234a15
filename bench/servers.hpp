// servers.hpp - what is measured: sse.hpp, the floor, and how rivals are started. Each serves in a
// process of its own and obeys by descriptors 0 and 1, see bench::conductor.
#pragma once

#include "bench.hpp"
#if defined(SSE_ENABLE_TLS)
#include "tls.hpp"
#endif
#if defined(SSE_ENABLE_ZLIB)
#include "zlib.hpp" // before sse.hpp, whose calls it times
#endif

#include "sse.hpp"

#include <asio/posix/stream_descriptor.hpp>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <atomic>
#include <exception>
#include <optional>
#include <span>
#include <unordered_map>

namespace bench {

/// What is done to a server, and for how long.
struct scenario {
    std::string_view name;
    std::uint64_t clients = 1'000;
    std::uint64_t payload = 100;
    std::uint64_t rate = 20;  // messages a second
    std::uint64_t burst = 0;  // messages at once, before those
    std::uint64_t bursts = 0; // how many, each awaited; 0: the rate is measured for `seconds`
    std::uint64_t unread = 0; // of the clients read nothing after the head
    std::uint64_t churn = 0;  // further clients a second that come, see the head and leave
    std::string_view churn_path = {}; // what they ask for; empty: what the others do
    std::uint64_t topics = 0;         // shared out among the clients; 0: all follow the same one
    std::uint64_t follows = 0;        // so many of them, the next ones, each client; 0: its share
    bool wants_replay = false;        // measured is how long these take:
    std::uint64_t behind = 0;         // further clients that come at once, and want the burst too
    std::uint64_t each = 0; // messages a second to each client, by a handler of its own that
                            // sends and sleeps
    content says = content::padding;
    bool ids = false;          // the floor sends some, too
    std::uint64_t threads = 1; // workers of sse.hpp
    double seconds = 3;
    double warmup = 0.5;

    /// How many of the clients that read get a message.
    std::uint64_t reach() const {
        if (each > 0) return 1;
        if (topics == 0) return clients - unread;
        if (follows > 0) return clients / topics * follows;
        return std::max<std::uint64_t>(1, clients / topics);
    }
};

/// Which cores are for whom; empty: not pinned.
struct placement {
    std::vector<int> server;
    std::vector<int> client;
    bool spin = true; // the client polls and never sleeps
};

/// One who is measured.
struct contender {
    std::string name;
    bool coalesces = false; // what waits goes out in one write
    std::string path = "/subscribe/bench";
    std::vector<std::string> program = {}; // of a rival; it is given flags, see execute()
    bool meets_others = true;              // who come, where the scenario has some
    bool secure = false;                   // clients speak TLS
    bool behind_nginx = false;             // which is measured with it
    bool compresses = false;               // clients accept gzip, and get it
    bool shares_thread = false;            // with the program, which publishes from it
};

inline std::string topic_name(std::uint64_t number) { return "/bench/" + std::to_string(number); }

// The floor: plain sockets, one thread, no library ////////////////////////////////////////////////

/// Keeps all that it published, and for each client a position: everything after that in one
/// send(). Without coalescing one send() for each message. Where there are topics, a send() to each
/// client that follows the message's; where each has a handler, a send() when it is due, rounded up
/// to a millisecond. Where it compresses, by a stream of zlib for each client.
class floor_server {
public:
    floor_server(const scenario& load, const contender& who)
        : conductor_(load.rate, load.burst, load.payload, load.says), coalesces_(who.coalesces),
          secure_(who.secure), compresses_(who.compresses), ids_(load.ids), followers_(load.topics),
          due_(load.each > 0 ? most_ms : 0), line_(load.payload) {
#if defined(SSE_ENABLE_ZLIB)
        conductor_.more = [] { return deflate_times::here().report(); };
#endif
        if (load.each > 0) {
            period_ns_ = 1'000'000'000 / load.each;
            conductor_.published = [this](bool go_on) {
                sends_ = go_on;
                return sent_;
            };
        }
        listener_ = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
        address_.sin_family = AF_INET;
        address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        checked(bind(listener_, raw_address(), sizeof address_), "bind");
        checked(listen(listener_, SOMAXCONN), "listen");
        socklen_t size = sizeof address_;
        checked(getsockname(listener_, raw_address(), &size), "getsockname");
        epoll_ = checked(epoll_create1(0), "epoll_create1");
        for (int fd : {listener_, conductor_.commands(), conductor_.tick()})
            watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }

    void run() {
        conductor_.announce(ntohs(address_.sin_port));
        std::array<epoll_event, 256> events;
        while (!conductor_.ended()) {
            const int patience = period_ns_ > 0 ? until_due() : conductor_.hurries() ? 0 : -1;
            const int count =
                epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), patience);
            for (int at = 0; at < count; ++at) serve(events[static_cast<std::size_t>(at)]);
            if (period_ns_ > 0) {
                send_due();
                continue;
            }
            conductor_.publish_due([this](std::string_view line, std::uint64_t seq) {
                return followers_.empty() ? publish_to_all(line, seq) : publish(line, seq);
            });
            if (coalesces_ && followers_.empty()) send_to_all();
        }
    }

private:
    static constexpr std::string_view head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n";
    static constexpr std::string_view head_of_gzip =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n";
    static constexpr std::size_t most_in_a_send = 64 * 1024;

    struct client {
        std::uint32_t place = 0; // in streams_, once it is one
        bool streams = false;
        bool blocked = false;
        std::size_t sent = 0;      // of published_
        std::uint64_t next_ns = 0; // when it is due
        std::uint64_t seq = 0;
#if defined(SSE_ENABLE_TLS)
        tls_socket tls = {};
#endif
#if defined(SSE_ENABLE_ZLIB)
        std::unique_ptr<gzip_writer> gzip = {};
#endif
    };

    sockaddr* raw_address() { return reinterpret_cast<sockaddr*>(&address_); }

    void watch(int fd, std::uint32_t events, int operation) {
        epoll_event event{};
        event.events = events;
        event.data.fd = fd;
        checked(epoll_ctl(epoll_, operation, fd, &event), "epoll_ctl");
    }

    void serve(const epoll_event& event) {
        const int fd = event.data.fd;
        if (fd == listener_) return accept_all();
        if (fd == conductor_.commands()) return conductor_.obey();
        if (fd == conductor_.tick()) return;
        if ((event.events & EPOLLOUT) != 0) {
            at(fd).blocked = false;
            watch(fd, EPOLLIN, EPOLL_CTL_MOD);
            send_to(fd);
        }
        if ((event.events & ~std::uint32_t{EPOLLOUT}) != 0) read_from(fd);
    }

    client& at(int fd) { return clients_[static_cast<std::size_t>(fd)]; }

    void accept_all() {
        for (;;) {
            const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK);
            if (fd < 0) return;
            const int on = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            const auto number = static_cast<std::size_t>(fd);
            if (number >= clients_.size()) clients_.resize(number + 1);
            at(fd) = {};
#if defined(SSE_ENABLE_TLS)
            if (secure_) at(fd).tls = tls_socket(fd, true);
#endif
#if defined(SSE_ENABLE_ZLIB)
            if (compresses_) at(fd).gzip = std::make_unique<gzip_writer>();
#endif
            watch(fd, EPOLLIN, EPOLL_CTL_ADD);
        }
    }

    ssize_t receive(int fd, std::span<char> to) {
#if defined(SSE_ENABLE_TLS)
        if (secure_) return at(fd).tls.receive(to.data(), to.size());
#endif
        return recv(fd, to.data(), to.size(), 0);
    }

    ssize_t send_now(int fd, std::string_view bytes) {
#if defined(SSE_ENABLE_TLS)
        if (secure_) return at(fd).tls.send(bytes.data(), bytes.size());
#endif
        return send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }

    // A request of our client is one small segment, so it is read whole or not at all.
    void read_from(int fd) {
        std::array<char, 4096> buffer;
        const ssize_t size = receive(fd, buffer);
        if (size < 0 && errno == EAGAIN) return;
        if (size <= 0) return forget(fd);
        if (at(fd).streams || send_now(fd, compresses_ ? head_of_gzip : head) <= 0) return;
        client& one = at(fd);
        one.place = static_cast<std::uint32_t>(streams_.size());
        one.streams = true;
        const std::string_view request(buffer.data(), static_cast<std::size_t>(size));
        one.sent = asks_for_all(request) ? 0 : published_.size();
        streams_.push_back(fd);
        if (!followers_.empty()) follow(fd, request);
        if (period_ns_ > 0) {
            at(fd).next_ns = now_ns() + streams_.size() * 7'919'000 % period_ns_;
            await(fd);
        }
    }

    static bool asks_for_all(std::string_view request) {
        return request.substr(0, request.find('\r')).find("?from=oldest") != request.npos;
    }

    /// The topics are named as topic_name() does.
    void follow(int fd, std::string_view request) {
        constexpr std::string_view before = "/bench/";
        const std::size_t end = request.find(' ', 4);
        for (std::size_t at = request.find(before); at < end; at = request.find(before, at + 1)) {
            const int number = std::atoi(request.data() + at + before.size());
            const std::size_t topic = static_cast<std::size_t>(number) % followers_.size();
            followers_[topic].push_back(fd);
            followed_[fd].push_back(topic);
        }
    }

    void unfollow(int fd) {
        for (const std::size_t topic : followed_[fd]) std::erase(followers_[topic], fd);
        followed_.erase(fd);
    }

    void await(int fd) { due_[ms_of(at(fd).next_ns) % most_ms].push_back(fd); }

    static std::uint64_t ms_of(std::uint64_t ns) { return (ns + 999'999) / 1'000'000; }

    /// Milliseconds to the next one.
    int until_due() {
        const std::uint64_t now = now_ns();
        if (served_ms_ == 0) served_ms_ = now / 1'000'000;
        std::uint64_t next = served_ms_ + 1;
        while (next < served_ms_ + most_ms && due_[next % most_ms].empty()) ++next;
        return next * 1'000'000 <= now ? 0 : static_cast<int>(ms_of(next * 1'000'000 - now));
    }

    void send_due() {
        for (const std::uint64_t now_ms = now_ns() / 1'000'000; served_ms_ < now_ms;) {
            ready_.swap(due_[++served_ms_ % most_ms]);
            for (const int fd : ready_) {
                client& to = at(fd);
                if (ms_of(to.next_ns) != served_ms_) continue; // the descriptor is another's now
                if (sends_ && !to.blocked) {
                    send_line(fd, line_.make(++to.seq, to.next_ns));
                    ++sent_;
                }
                to.next_ns += period_ns_;
                await(fd);
            }
            ready_.clear();
        }
    }

    /// It waits nowhere: such clients read.
    void send_line(int fd, std::string_view line) {
        event_.assign("data: ").append(line).append("\n\n");
        send(fd, event_.data(), event_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }

    bool publish(std::string_view line, std::uint64_t seq) {
        for (const int fd : followers_[seq % followers_.size()]) send_line(fd, line);
        return true;
    }

    void forget(int fd) {
        if (at(fd).streams) {
            streams_[at(fd).place] = streams_.back();
            at(streams_.back()).place = at(fd).place;
            streams_.pop_back();
        }
        if (!followers_.empty()) unfollow(fd);
        at(fd) = {};
        close(fd);
    }

    bool publish_to_all(std::string_view line, std::uint64_t seq) {
        if (ids_) // as long as those of sse.hpp
            published_.append("id: floor000-").append(std::to_string(seq)).append("\n");
        published_.append("data: ").append(line).append("\n\n");
        if (!coalesces_) send_to_all();
        return true;
    }

    void send_to_all() {
        for (int fd : streams_) send_to(fd);
    }

#if defined(SSE_ENABLE_ZLIB)
    void send_compressed(int fd) {
        client& to = at(fd);
        gzip_writer& out = *to.gzip;
        while (!to.blocked && (!out.waiting().empty() || to.sent < published_.size())) {
            if (out.waiting().empty()) {
                const std::size_t size = std::min(published_.size() - to.sent, most_in_a_send);
                out.write({published_.data() + to.sent, size});
                to.sent += size;
            }
            const ssize_t sent = send_now(fd, out.waiting());
            if (sent > 0) out.sent(static_cast<std::size_t>(sent));
            if (out.waiting().empty()) continue;
            to.blocked = true;
            watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
        }
    }
#endif

    void send_to(int fd) {
        client& to = at(fd);
#if defined(SSE_ENABLE_ZLIB)
        if (to.gzip) return send_compressed(fd);
#endif
        while (!to.blocked && to.sent < published_.size()) {
            const std::size_t size = std::min(published_.size() - to.sent, most_in_a_send);
            const ssize_t sent = send_now(fd, {published_.data() + to.sent, size});
            if (sent > 0) to.sent += static_cast<std::size_t>(sent);
            if (sent == static_cast<ssize_t>(size) || (secure_ && sent > 0)) continue;
            to.blocked = true; // a client that is gone is noticed by reading
            watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
        }
    }

    conductor conductor_;
    bool coalesces_;
    bool secure_;
    bool compresses_;
    bool ids_;
    sockaddr_in address_{};
    int listener_ = -1;
    int epoll_ = -1;
    std::vector<client> clients_; // by descriptor
    std::vector<int> streams_;
    std::string published_;
    std::vector<std::vector<int>> followers_;                    // by topic
    std::unordered_map<int, std::vector<std::size_t>> followed_; // topics, by descriptor

    static constexpr std::uint64_t most_ms = 4'096; // longer than any period
    std::uint64_t period_ns_ = 0;                   // of each client's handler; 0: they have none
    std::vector<std::vector<int>> due_;             // by milliseconds, modulo most_ms
    std::vector<int> ready_;
    std::uint64_t served_ms_ = 0;
    stamped_line line_;
    std::string event_;
    bool sends_ = false;
    std::uint64_t sent_ = 0;
};

// The library /////////////////////////////////////////////////////////////////////////////////////

class library_server {
public:
    library_server(const scenario& load, const contender& who)
        : conductor_(load.rate, load.burst, load.payload, load.says),
          behind_nginx_(who.behind_nginx), shares_thread_(who.shares_thread),
          server_(shares_thread_ ? sse::server(io_, options_of(load, who))
                                 : sse::server(options_of(load, who))) {
        for (std::uint64_t at = 0; at < load.topics; ++at) topics_.push_back(topic_name(at));
        if (topics_.empty()) topics_.push_back("/bench");
#if defined(SSE_ENABLE_ZLIB)
        conductor_.more = [] { return deflate_times::here().report(); };
#endif
        server_.route("GET", "/handler", [](sse::stream& client) -> asio::awaitable<void> {
            client.subscribe("/bench");
            co_await client.closed();
        });
        server_.route("GET", "/metrics", sse::metrics(server_));
        if (load.each == 0) return;
        server_.route("GET", "/tokens", [this, load](sse::stream& client) {
            return send_and_sleep(client,
                                  std::chrono::nanoseconds(std::chrono::seconds(1)) / load.each,
                                  load.payload);
        });
        conductor_.published = [this](bool go_on) { return sent_by_handlers(go_on); };
    }

    // The program's own thread publishes, as most programs do, and the workers deliver; or one
    // thread does both, as that of the floor.
    void run() {
        server_.start("127.0.0.1:0");
#if defined(SSE_ENABLE_TLS)
        std::optional<nginx_front> front;
        if (behind_nginx_) front.emplace(server_.port());
        if (front) conductor_.announce(front->port(), front->process());
#endif
        if (!behind_nginx_) conductor_.announce(server_.port());
        shares_thread_ ? run_in_one_thread() : run_beside_workers();
    }

private:
    void run_beside_workers() {
        std::array<pollfd, 2> waited{
            {{conductor_.commands(), POLLIN, 0}, {conductor_.tick(), POLLIN, 0}}};
        while (!conductor_.ended() &&
               poll(waited.data(), waited.size(), conductor_.hurries() ? 0 : -1) >= 0) {
            conductor_.obey();
            publish_due();
        }
        server_.stop();
        server_.join();
    }

    void run_in_one_thread() {
        asio::posix::stream_descriptor commands(io_, dup(conductor_.commands()));
        asio::posix::stream_descriptor ticks(io_, dup(conductor_.tick()));
        await(commands, [this] { conductor_.obey(); });
        await(ticks, [] {});
        while (!conductor_.ended()) {
            conductor_.hurries() ? io_.poll_one() : io_.run_one();
            publish_due();
        }
        server_.stop();
        commands.cancel();
        ticks.cancel();
        io_.run();
    }

    template <class Obey>
    void await(asio::posix::stream_descriptor& what, Obey obey) {
        what.async_wait(asio::posix::stream_descriptor::wait_read,
                        [this, &what, obey](const asio::error_code& failed) {
                            if (failed) return;
                            obey();
                            await(what, obey);
                        });
    }

    void publish_due() {
        conductor_.publish_due(
            [this](std::string_view line, std::uint64_t seq) { return publish(line, seq); });
    }

    static sse::options options_of(const scenario& load, const contender& who) {
        sse::options options;
        options.io_uring = who.name == "sse io_uring";
#if defined(SSE_ENABLE_TLS)
        if (who.secure && !who.behind_nginx) {
            options.tls.certificate = support::test_server().certificate;
            options.tls.key = support::test_server().key;
        }
#endif
#if defined(SSE_ENABLE_ZLIB)
        options.compress = who.compresses;
#endif
        options.threads = load.threads;
        options.limits.connections = 0;
        options.heartbeat = std::chrono::milliseconds(0);
        // A burst is published far faster than clients read it: what they have yet to get is kept.
        options.history.messages = std::max<std::size_t>(options.history.messages, load.burst * 2);
        options.history.bytes =
            std::max<std::size_t>(options.history.bytes, load.burst * 2 * (load.payload + 512));
        options.hooks.on_error = [](std::exception_ptr) {
            std::fputs("sse: handler failed\n", stderr);
        };
        return options;
    }

    /// What a handler of an LLM's tokens does.
    asio::awaitable<void> send_and_sleep(sse::stream& client, std::chrono::nanoseconds period,
                                         std::uint64_t payload) {
        using clock = std::chrono::steady_clock;
        const present here(handlers_);
        stamped_line line(payload);
        auto next = clock::now() + handlers_.load() * std::chrono::nanoseconds(7'919'000) % period;
        std::uint64_t seq = 0;
        for (int seen = 0;;) {
            co_await client.sleep_for(next - clock::now());
            if (const int turn = turn_; turn != seen) {
                seen = turn;
                ++know_;
            }
            if (seen % 2 == 1) {
                const auto stamp = static_cast<std::uint64_t>(next.time_since_epoch().count());
                co_await client.send({.data = line.make(++seq, stamp)});
                ++sent_;
            } else if (seq == 0) {
                client.begin();
            }
            next += period;
        }
    }

    struct present { // counts handlers
        explicit present(std::atomic<int>& all) : all_(all) { ++all_; }
        ~present() { --all_; }
        present(const present&) = delete;
        present& operator=(const present&) = delete;
        std::atomic<int>& all_;
    };

    std::uint64_t sent_by_handlers(bool go_on) {
        if (go_on == (turn_ % 2 == 1)) return sent_;
        know_ = 0;
        ++turn_;
        while (know_ < handlers_) poll(nullptr, 0, 1); // each looks at its next turn
        return sent_;
    }

    bool publish(std::string_view line, std::uint64_t seq) {
        try {
            message_.data = line;
            server_.publish(topics_[seq % topics_.size()], message_);
            return true;
        } catch (const std::system_error&) { // no room for as long as publish() waits
            return false;
        }
    }

    conductor conductor_;
    bool behind_nginx_;
    bool shares_thread_;
    asio::io_context io_{1}; // of that thread
    std::vector<std::string> topics_;
    sse::message message_; // of its own, or g++ 12 warns of members that it takes for uninitialized
    std::atomic<int> turn_ = 0; // odd: handlers send
    std::atomic<int> know_ = 0; // how many have seen it
    std::atomic<int> handlers_ = 0;
    std::atomic<std::uint64_t> sent_ = 0;
    sse::server server_;
};

// Their processes /////////////////////////////////////////////////////////////////////////////////

/// The server's process, and the client's end of its commands.
class server_process {
public:
    server_process(const scenario& load, const contender& who, const placement& cores) {
        int ends[2];
        checked(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
        commands_ = ends[0];
        std::fflush(nullptr);
        const pid_t parent = getpid();
        child_ = checked(fork(), "fork");
        if (child_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(1); // it died before the line above
            setpgid(0, 0);                     // so that what a program starts ends with it
            dup2(ends[1], STDIN_FILENO);
            dup2(ends[1], STDOUT_FILENO);
            close(ends[0]);
            _exit(serve(load, who, cores.server));
        }
        close(ends[1]);
    }

    ~server_process() {
        if (child_ > 0) {
            kill(-child_, SIGKILL);
            kill(child_, SIGKILL); // before it has a group of its own
            waitpid(child_, nullptr, 0);
        }
        close(commands_);
    }

    server_process(const server_process&) = delete;
    server_process& operator=(const server_process&) = delete;

    int descriptor() const noexcept { return commands_; }

    void tell(conductor::command next) {
        const char byte = next;
        if (send(commands_, &byte, 1, MSG_NOSIGNAL) != 1)
            throw std::runtime_error("the server is gone");
    }

    /// A line of it, once it is there whole.
    std::optional<std::string> receive() {
        std::array<char, 128> bytes;
        const ssize_t size = recv(commands_, bytes.data(), bytes.size(), 0);
        if (size <= 0) throw std::runtime_error("the server is gone");
        received_.append(bytes.data(), static_cast<std::size_t>(size));
        if (!received_.ends_with('\n')) return std::nullopt;
        return std::exchange(received_, {});
    }

    pid_t child() const noexcept { return child_; }

    /// Lets the server end by itself; says whether it did so in time and well.
    bool end() {
        tell(conductor::quit);
        int status = 0;
        for (int tries = 0; tries < 10'000; ++tries) {
            if (waitpid(child_, &status, WNOHANG) == child_) {
                child_ = -1;
                return WIFEXITED(status) && WEXITSTATUS(status) == 0;
            }
            poll(nullptr, 0, 1);
        }
        return false;
    }

private:
    static int serve(const scenario& load, const contender& who, const std::vector<int>& cores) {
        try {
            if (!cores.empty()) pin(cores);
            if (!who.program.empty()) return execute(load, who.program);
            if (who.name.starts_with("sse") || who.behind_nginx)
                library_server(load, who).run();
            else
                floor_server(load, who).run();
            return 0;
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s: %s\n", who.name.c_str(), error.what());
            return 1;
        }
    }

    static bool is_for_one(std::string_view flag) { return flag == "--each" || flag == "--topics"; }

    static int execute(const scenario& load, std::vector<std::string> words) {
        for (const auto& [flag, value] : {std::pair("--rate", load.rate),
                                          {"--burst", load.burst},
                                          {"--payload", load.payload},
                                          {"--each", load.each},
                                          {"--topics", load.topics}}) {
            if (value == 0 && is_for_one(flag)) continue; // not all know it
            words.emplace_back(flag);
            words.push_back(std::to_string(value));
        }
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        execvp(arguments.front(), arguments.data());
        throw_errno(words.front().c_str());
    }

    int commands_ = -1;
    pid_t child_ = -1;
    std::string received_;
};

} // namespace bench
