// client.hpp - a small blocking HTTP and event stream client for end-to-end tests. POSIX, loopback.
//
//   support::event_client client(port, "/subscribe");
//   server.broadcast({.data = "hello"});
//   CHECK(client.next().data == "hello");
//
// Nothing here waits without a deadline, and what fails throws with the bytes received so far: a
// test that hangs or says only "false" tells nobody anything. It shares no code with sse.hpp.
#pragma once

#include "event_stream.hpp"
#if defined(SSE_ENABLE_ZLIB)
#include "gzip_reader.hpp"
#endif
#include "sanitizers.hpp"
#if defined(SSE_ENABLE_TLS)
#include "tls_end.hpp"
#endif

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ; // POSIX wants the program to declare it

namespace support {

using namespace std::chrono_literals;

// ---- time ---------------------------------------------------------------------------------------

/// A point in time, made from a duration where it is passed: one budget for all steps of a call.
class deadline {
public:
    using clock = std::chrono::steady_clock;

    template <class Rep, class Period>
    deadline(std::chrono::duration<Rep, Period> budget) // implicit: next(5s)
        : at_(clock::now() + std::chrono::duration_cast<clock::duration>(budget)) {}

    bool passed() const { return clock::now() >= at_; }
    /// Rounded up: rounded down, poll() would spin through the last millisecond.
    int poll_timeout() const {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - clock::now());
        return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 3'600'000));
    }

private:
    clock::time_point at_;
};

/// Generous: a sanitizer build on a busy machine must not fail, and what passes does not wait.
inline constexpr std::chrono::seconds patience{30};

inline bool has(std::string_view text, std::string_view part) {
    return text.find(part) != text.npos;
}

/// Polls a condition that nothing announces, such as a counter. False: the deadline passed.
template <class Condition>
[[nodiscard]] bool eventually(Condition&& condition, deadline until = patience) {
    for (;;) {
        if (condition()) return true;
        if (until.passed())
            return static_cast<bool>(condition()); // we may have been off the processor till now
        std::this_thread::sleep_for(500us);
    }
}

/// Keeps the processor for a time so short. Who yields it has it back only once others have had
/// their turn, on a busy machine each time after milliseconds.
inline void spin_for(std::chrono::microseconds time) {
    const deadline until = time;
    while (!until.passed()) {}
}

// ---- failures -----------------------------------------------------------------------------------

struct timed_out : std::runtime_error {
    using runtime_error::runtime_error;
};
/// The peer ended the connection, or reset it, before what was waited for.
struct connection_ended : std::runtime_error {
    using runtime_error::runtime_error;
};
/// What was received is not what HTTP allows.
struct bad_response : std::runtime_error {
    using runtime_error::runtime_error;
};

/// Bytes as a C string literal; only the end of long ones.
inline std::string show(std::string_view bytes, std::size_t most = 600) {
    std::string shown = "\"";
    if (bytes.size() > most) {
        shown = "(" + std::to_string(bytes.size() - most) + " bytes) ... \"";
        bytes.remove_prefix(bytes.size() - most);
    }
    for (const char byte : bytes) {
        constexpr std::string_view digits = "0123456789abcdef";
        const auto code = static_cast<unsigned char>(byte);
        if (byte == '\r')
            shown += "\\r";
        else if (byte == '\n')
            shown += "\\n";
        else if (byte == '"' || byte == '\\')
            shown.append(1, '\\').append(1, byte);
        else if (code >= 0x20 && code < 0x7f)
            shown += byte;
        else
            shown.append("\\x").append(1, digits[code / 16]).append(1, digits[code % 16]);
    }
    return shown + '"';
}

[[noreturn]] inline void throw_errno(const std::string& what) {
    throw std::system_error(errno, std::generic_category(), what);
}

// ---- descriptor ---------------------------------------------------------------------------------

/// Owns a file descriptor.
class descriptor {
public:
    descriptor() = default;
    explicit descriptor(int fd) : fd_(fd) {}
    descriptor(descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    descriptor& operator=(descriptor&& other) noexcept {
        if (this != &other) {
            close();
            fd_ = std::exchange(other.fd_, -1);
        }
        return *this;
    }
    ~descriptor() { close(); }

    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    void close() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }

private:
    int fd_ = -1;
};

/// True when `events` or a hang-up is pending; false when the deadline passed.
inline bool wait_for(int fd, short events, deadline until) {
    for (;;) {
        pollfd entry{fd, events, 0};
        const int ready = ::poll(&entry, 1, until.poll_timeout());
        if (ready > 0) return true;
        if (ready == 0 && until.passed()) return false;
        if (ready < 0 && errno != EINTR) throw_errno("poll");
    }
}

// ---- addresses ----------------------------------------------------------------------------------

/// A numeric IPv4 or IPv6 address with its port, as the socket functions want it.
class socket_address {
public:
    socket_address(const std::string& host, std::uint16_t port) {
        in_addr v4{};
        in6_addr v6{};
        if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) {
            sockaddr_in address{};
            address.sin_family = AF_INET;
            address.sin_port = htons(port);
            address.sin_addr = v4;
            keep(address);
        } else if (::inet_pton(AF_INET6, host.c_str(), &v6) == 1) {
            sockaddr_in6 address{};
            address.sin6_family = AF_INET6;
            address.sin6_port = htons(port);
            address.sin6_addr = v6;
            keep(address);
        } else {
            throw std::invalid_argument("not a numeric address: " + host);
        }
    }

    int family() const { return storage_.ss_family; }
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage_); }
    socklen_t size() const { return size_; }

private:
    template <class Address>
    void keep(const Address& address) {
        std::memcpy(&storage_, &address, sizeof address);
        size_ = sizeof address;
    }

    sockaddr_storage storage_{};
    socklen_t size_ = 0;
};

// ---- responses ----------------------------------------------------------------------------------

using header_list = std::vector<std::pair<std::string, std::string>>;

inline bool equal_ignoring_case(std::string_view a, std::string_view b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
        return std::tolower(static_cast<unsigned char>(x)) ==
               std::tolower(static_cast<unsigned char>(y));
    });
}

struct response {
    std::string version; ///< "HTTP/1.1"
    int status = 0;
    std::string reason;
    header_list headers;
    std::string body;

    /// Lines of the same name are joined by ", ", as HTTP does.
    std::optional<std::string> header(std::string_view name) const {
        std::optional<std::string> joined;
        for (const auto& [key, value] : headers)
            if (equal_ignoring_case(key, name)) joined = joined ? *joined + ", " + value : value;
        return joined;
    }
    std::size_t header_lines(std::string_view name) const {
        return static_cast<std::size_t>(
            std::count_if(headers.begin(), headers.end(),
                          [&](const auto& line) { return equal_ignoring_case(line.first, name); }));
    }
};

/// Parses a whole head, up to and including its blank line. As strict as a server has to be, and
/// so a test of each response: CR LF everywhere, a status of three digits with the space after it,
/// no space before a colon, no control characters, no folded lines.
inline response parse_response_head(std::string_view head) {
    const auto fail = [&](const std::string& why) {
        throw bad_response("bad response head, " + why + ": " + show(head));
    };
    std::string_view rest = head;
    const auto next_line = [&] {
        const std::size_t end = rest.find("\r\n");
        if (end == std::string_view::npos) fail("a line without its end");
        const std::string_view line = rest.substr(0, end);
        rest.remove_prefix(end + 2);
        for (const char byte : line)
            if ((static_cast<unsigned char>(byte) < 0x20 && byte != '\t') || byte == 0x7f)
                fail("a control character");
        return line;
    };
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };

    response parsed;
    const std::string_view line = next_line();
    if (line.size() < 13 || !line.starts_with("HTTP/1.") || !is_digit(line[7]) || line[8] != ' ' ||
        line[12] != ' ' || !std::all_of(line.begin() + 9, line.begin() + 12, is_digit))
        fail("status line");
    parsed.version = line.substr(0, 8);
    parsed.status = std::stoi(std::string(line.substr(9, 3)));
    parsed.reason = line.substr(13);

    for (std::string_view field = next_line(); !field.empty(); field = next_line()) {
        const std::size_t colon = field.find(':');
        if (colon == std::string_view::npos || colon == 0 ||
            field.substr(0, colon).find_first_of(" \t") != std::string_view::npos)
            fail("header line " + show(field));
        std::string_view value = field.substr(colon + 1);
        while (!value.empty() && (value.front() == ' ' || value.front() == '\t'))
            value.remove_prefix(1);
        while (!value.empty() && (value.back() == ' ' || value.back() == '\t'))
            value.remove_suffix(1);
        parsed.headers.emplace_back(field.substr(0, colon), value);
    }
    if (!rest.empty()) fail("bytes behind the blank line");
    return parsed;
}

// ---- connection ---------------------------------------------------------------------------------

/// With SUPPORT_OVER=tls the servers and clients of the tests speak TLS, with SUPPORT_OVER=gzip
/// their streams are compressed, with SUPPORT_OVER=io_uring the servers use it: see
/// tests/README.md. Of these, what the program was not built for ends it.
inline bool is_over(std::string_view what) {
    constexpr std::string_view known[] = {
        "",
#if defined(SSE_ENABLE_TLS)
        "tls",
#endif
#if defined(SSE_ENABLE_ZLIB)
        "gzip",
#endif
#if defined(SSE_ENABLE_IO_URING)
        "io_uring",
#endif
    };
    const char* const over = std::getenv("SUPPORT_OVER");
    if (!over) return false;
    if (std::find(std::begin(known), std::end(known), over) == std::end(known)) {
        std::fprintf(stderr, "SUPPORT_OVER=%s: this program was not built for it\n", over);
        std::exit(2);
    }
    return over == what;
}
inline const bool tls_by_default = is_over("tls");
inline const bool gzip_by_default = is_over("gzip");
inline const bool io_uring_by_default = is_over("io_uring");

struct connect_options {
    std::string host = "127.0.0.1"; ///< Or "::1".
    std::string source = {};        ///< Local address, such as "127.0.0.2"; empty: any.
    int receive_buffer = 0;         ///< SO_RCVBUF, set before connecting; 0: as the system likes.
    bool tls = tls_by_default;
    deadline until = patience;
};

/// How the peer ended a connection, or a stream.
enum class ending {
    fin,        ///< In order: every byte it sent has arrived.
    reset,      ///< By RST: bytes may be lost.
    last_chunk, ///< By the last chunk of its body; the connection goes on.
};

/// One TCP connection. Received bytes that no read has consumed yet wait in a buffer.
class connection {
public:
    explicit connection(std::uint16_t port, connect_options options = {}) {
        const socket_address peer(options.host, port);
        socket_ = descriptor(
            ::socket(peer.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!socket_) throw_errno("socket");
        if (options.receive_buffer != 0) set(SOL_SOCKET, SO_RCVBUF, options.receive_buffer);
        set(IPPROTO_TCP, TCP_NODELAY, 1); // a test that sends byte by byte means it
        if (!options.source.empty()) {
            const socket_address source(options.source, 0);
            if (::bind(socket_.get(), source.get(), source.size()) != 0)
                throw_errno("bind to " + options.source);
        }
        if (::connect(socket_.get(), peer.get(), peer.size()) != 0)
            finish_connecting(options, port);
#if defined(SSE_ENABLE_TLS)
        if (options.tls) secure({}, options.until);
#endif
    }

    /// A connection that is there already, such as an accepted one. It must not block.
    explicit connection(descriptor socket) : socket_(std::move(socket)) {}

    int native_handle() const { return socket_.get(); }

#if defined(SSE_ENABLE_TLS)
    /// Speaks TLS from now on. Throws `tls_failure`, `connection_ended` or `timed_out`.
    void secure(const tls_wish& wish, deadline until = patience) {
        auto end = std::make_unique<tls_end>(wish);
        std::string came;
        for (;;) {
            std::string refused;
            try {
                came = end->open(came);
            } catch (const tls_failure& why) { refused = why.what(); }
            if (!try_send(end->take_output(), until) || !refused.empty()) {
                throw tls_failure(refused.empty() ? "the peer left in the handshake" : refused);
            }
            if (end->is_established()) break;
            receive_or_throw(until, "in the handshake");
            came = std::exchange(received_, {});
        }
        tls_ = std::move(end);
        received_ = std::move(came);
    }
    tls_end& tls() { return *tls_; }
#endif

    // Sending.

    /// Sends everything. Throws `connection_ended` when the peer is gone.
    void send(std::string_view bytes, deadline until = patience) {
        if (!try_send(bytes, until))
            throw connection_ended("the peer left while " + show(bytes, 100) +
                                   " was sent; received so far: " + show(received_));
    }

    /// The same, but false when the peer is gone: it may have refused what we were going to send.
    [[nodiscard]] bool try_send(std::string_view bytes, deadline until = patience) {
#if defined(SSE_ENABLE_TLS)
        if (tls_) return try_send_raw(tls_->seal(bytes), until);
#endif
        return try_send_raw(bytes, until);
    }

    /// Bytes as they are, below TLS.
    [[nodiscard]] bool try_send_raw(std::string_view bytes, deadline until = patience) {
        while (!bytes.empty()) {
            const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent >= 0) {
                bytes.remove_prefix(static_cast<std::size_t>(sent));
            } else if (errno == EAGAIN) {
                if (!wait_for(socket_.get(), POLLOUT, until))
                    throw timed_out(std::to_string(bytes.size()) + " bytes could not be sent");
            } else if (errno == EPIPE || errno == ECONNRESET) {
                return false;
            } else if (errno != EINTR) {
                throw_errno("send");
            }
        }
        return true;
    }

    /// A request with Host and these headers. Empty body: no Content-Length.
    void send_request(std::string_view method, std::string_view target,
                      const header_list& headers = {}, std::string_view body = {}) {
        std::string request;
        request.append(method).append(" ").append(target).append(" HTTP/1.1\r\n");
        if (std::none_of(headers.begin(), headers.end(),
                         [](const auto& line) { return equal_ignoring_case(line.first, "Host"); }))
            request += "Host: localhost\r\n";
        for (const auto& [name, value] : headers)
            request.append(name).append(": ").append(value).append("\r\n");
        if (!body.empty())
            request.append("Content-Length: ").append(std::to_string(body.size())).append("\r\n");
        request.append("\r\n").append(body);
        send(request);
    }

    /// Ends our direction only, by FIN.
    void finish_sending() {
#if defined(SSE_ENABLE_TLS)
        if (tls_) static_cast<void>(try_send_raw(tls_->say_goodbye()));
#endif
        if (::shutdown(socket_.get(), SHUT_WR) != 0 && errno != ENOTCONN) throw_errno("shutdown");
    }

    // Receiving. `received()` is what has arrived and was not consumed by a read.

    const std::string& received() const { return received_; }
    /// Set once the peer has ended the connection and we have seen it.
    std::optional<ending> ended() const { return ended_; }

    /// Waits for bytes from the system, and takes at most so many. False: it ended. What is a part
    /// of a TLS record is not in received() yet. Throws `timed_out`.
    bool receive_piece(deadline until = patience, std::size_t most = 16 * 1024) {
        char bytes[16 * 1024];
        while (!ended_) {
            const ssize_t count = ::recv(socket_.get(), bytes, std::min(most, sizeof bytes), 0);
            if (count > 0) {
                keep(std::string_view(bytes, static_cast<std::size_t>(count)));
                return true;
            }
            if (count == 0)
                ended_ = ending::fin;
            else if (errno == ECONNRESET || errno == EPIPE)
                ended_ = ending::reset;
            else if (errno == EAGAIN && !wait_for(socket_.get(), POLLIN, until))
                throw timed_out("nothing more arrived; unread: " + show(received_));
            else if (errno != EAGAIN && errno != EINTR)
                throw_errno("recv");
        }
        return false;
    }

    /// Waits for more bytes or the end. False: it ended. Throws `timed_out`.
    bool receive_some(deadline until = patience) {
        const std::size_t before = received_.size();
        while (receive_piece(until)) {
            if (received_.size() > before) return true;
        }
        return false;
    }

    /// Receives until `condition(received())` holds; consumes and returns all that is there then.
    template <class Condition>
    std::string read_until(Condition&& condition, deadline until = patience) {
        while (!condition(std::as_const(received_)))
            receive_or_throw(until, "before the condition held");
        return std::exchange(received_, {});
    }

    /// Receives until `text` has come; consumes and returns everything up to its end.
    std::string read_through(std::string_view text, deadline until = patience) {
        std::size_t at = 0;
        while ((at = received_.find(text)) == std::string::npos)
            receive_or_throw(until, "before " + show(text) + " came");
        return consume(at + text.size());
    }

    std::string read_exactly(std::size_t size, deadline until = patience) {
        while (received_.size() < size)
            receive_or_throw(until, "before " + std::to_string(size) + " bytes came");
        return consume(size);
    }

    /// Receives until the peer ends the connection; consumes and returns all of it.
    std::string read_to_end(deadline until = patience) {
        while (receive_some(until)) {}
        return std::exchange(received_, {});
    }

    /// Waits until the peer has ended the connection. What came before stays in received().
    ending wait_for_close(deadline until = patience) {
        while (receive_some(until)) {}
        return *ended_;
    }

    /// Head of a response; its body, if any, stays in the buffer.
    response read_head(deadline until = patience) {
        return parse_response_head(read_through("\r\n\r\n", until));
    }

    /// A whole response: with Content-Length the connection can be used again, otherwise the body
    /// lasts until the peer closes. The method decides whether there is a body at all.
    response read_response(std::string_view method = "GET", deadline until = patience) {
        response answer = read_head(until);
        if (answer.header("Transfer-Encoding"))
            throw bad_response("this client does not read Transfer-Encoding");
        const bool no_body =
            method == "HEAD" || answer.status < 200 || answer.status == 204 || answer.status == 304;
        if (no_body) return answer;
        if (const auto length = answer.header("Content-Length")) {
            std::size_t size = 0;
            const char* const last = length->data() + length->size();
            const auto [end, error] = std::from_chars(length->data(), last, size);
            if (error != std::errc{} || end != last)
                throw bad_response("Content-Length: " + *length);
            answer.body = read_exactly(size, until);
        } else {
            answer.body = read_to_end(until);
            if (ended_ == ending::reset)
                throw connection_ended("reset within a body that only its end delimits: " +
                                       show(answer.body));
        }
        return answer;
    }

    /// Sends a request and reads its answer. May be called again while the server keeps alive.
    response request(std::string_view method, std::string_view target,
                     const header_list& headers = {}, std::string_view body = {},
                     deadline until = patience) {
        send_request(method, target, headers, body);
        return read_response(method, until);
    }

    // Leaving.

    /// By FIN, or by RST if bytes are unread: so does the system.
    void close() { socket_.close(); }

    /// By RST.
    void reset() {
        const linger at_once{1, 0};
        if (::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) != 0)
            throw_errno("SO_LINGER");
        socket_.close();
    }

private:
    void keep(std::string_view bytes) {
#if defined(SSE_ENABLE_TLS)
        if (tls_) {
            received_ += tls_->open(bytes);
            static_cast<void>(try_send_raw(tls_->take_output())); // such as a response to new keys
            return;
        }
#endif
        received_ += bytes;
    }

    void set(int level, int option, int value) {
        if (::setsockopt(socket_.get(), level, option, &value, sizeof value) != 0)
            throw_errno("setsockopt");
    }

    void finish_connecting(const connect_options& options, std::uint16_t port) {
        const std::string what = "connect to " + options.host + " " + std::to_string(port);
        if (errno != EINPROGRESS) throw_errno(what);
        if (!wait_for(socket_.get(), POLLOUT, options.until)) throw timed_out(what);
        int error = 0;
        socklen_t size = sizeof error;
        ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0) throw std::system_error(error, std::generic_category(), what);
    }

    void receive_or_throw(deadline until, const std::string& what) {
        bool more = false;
        try {
            more = receive_some(until);
        } catch (const timed_out&) {
            throw timed_out("deadline passed " + what + "; unread: " + show(received_));
        }
        if (!more)
            throw connection_ended((ended_ == ending::reset ? "reset " : "closed ") + what +
                                   "; unread: " + show(received_));
    }

    std::string consume(std::size_t size) {
        std::string taken = received_.substr(0, size);
        received_.erase(0, size);
        return taken;
    }

    descriptor socket_;
    std::string received_;
    std::optional<ending> ended_;
#if defined(SSE_ENABLE_TLS)
    std::unique_ptr<tls_end> tls_;
#endif
};

/// One request on a connection of its own.
inline response http_request(std::uint16_t port, std::string_view method, std::string_view target,
                             const header_list& headers = {}, std::string_view body = {},
                             deadline until = patience) {
    connection peer(port);
    return peer.request(method, target, headers, body, until);
}

inline response http_get(std::uint16_t port, std::string_view target,
                         const header_list& headers = {}, deadline until = patience) {
    return http_request(port, "GET", target, headers, {}, until);
}

/// For what a client must do before a short time of the server is over. On a busy machine it may be
/// too late: where the attempt says so (false), or the server has ended its connection or refused
/// it, the next one may be in time.
template <class Attempt>
[[nodiscard]] bool in_time(Attempt&& attempt, deadline until = patience) {
    for (;;) {
        const bool last = until.passed();
        try {
            if (attempt()) return true;
            if (last) return false;
        } catch (const std::runtime_error&) {
            if (last) throw;
        }
    }
}

// ---- event client -------------------------------------------------------------------------------

/// Takes chunks apart, as they come. Strict: throws `bad_response` for what is not a chunk as a
/// server must write it: a size in hexadecimal digits alone, CR LF, the bytes, CR LF.
class chunk_reader {
public:
    std::string feed(std::string_view bytes) {
        std::string body;
        input_ += bytes;
        for (;;) {
            if (left_ > 0) {
                const std::size_t n = std::min(left_, input_.size());
                body.append(input_, 0, n);
                input_.erase(0, n);
                left_ -= n;
                if (left_ > 0) return body;
                behind_data_ = true;
            }
            const std::size_t end = input_.find("\r\n");
            if (end == input_.npos || ended_) return body;
            const std::string line = input_.substr(0, end);
            input_.erase(0, end + 2);
            if (behind_data_ || in_trailer_) {
                if (!line.empty()) throw bad_response("behind a chunk stands " + show(line));
                ended_ = in_trailer_;
                behind_data_ = in_trailer_ = false;
                continue;
            }
            if (line.empty() || line.find_first_not_of("0123456789abcdef") != line.npos)
                throw bad_response("no chunk size: " + show(line));
            left_ = std::stoul(line, nullptr, 16);
            in_trailer_ = left_ == 0;
        }
    }
    bool ended() const { return ended_; }
    const std::string& rest() const { return input_; } ///< What came behind the last chunk.

private:
    std::string input_;
    std::size_t left_ = 0;
    bool behind_data_ = false;
    bool in_trailer_ = false;
    bool ended_ = false;
};

/// Subscribes on construction: when it returns, the head has come and it is 200, text/event-stream.
/// Any other response throws `bad_response`; to look at a refusal use http_get().
class event_client {
public:
    explicit event_client(std::uint16_t port, std::string_view target = "/subscribe",
                          const header_list& headers = {}, const connect_options& options = {})
        : event_client(connection(port, options), target, headers, options.until) {}

    /// Over a connection that is there already.
    explicit event_client(connection over, std::string_view target = "/subscribe",
                          const header_list& headers = {}, deadline until = patience)
        : connection_(std::move(over)) {
        header_list all{{"Accept", "text/event-stream"}};
        if (gzip_by_default) all.emplace_back("Accept-Encoding", "gzip");
        all.insert(all.end(), headers.begin(), headers.end());
        connection_.send_request("GET", target, all);
        head_ = connection_.read_head(until);
        const std::string type = head_.header("Content-Type").value_or("");
        if (head_.status != 200 || !is_event_stream(type))
            throw bad_response("no event stream at " + std::string(target) + ": status " +
                               std::to_string(head_.status) + ", type \"" + type + "\", " +
                               show(connection_.received()));
        if (head_.header("Transfer-Encoding") == "chunked") chunks_.emplace();
#if defined(SSE_ENABLE_ZLIB)
        if (head_.header("Content-Encoding") == "gzip") gzip_ = std::make_unique<gzip_reader>();
#endif
    }

    const response& head() const { return head_; }
    connection& socket() { return connection_; }
    const event_stream_decoder& decoder() const { return decoder_; }

    /// The next event. Throws `timed_out`, or `connection_ended` when the stream ends before it.
    decoded next(deadline until = patience) {
        if (auto event = next_or_end(until)) return *std::move(event);
        throw connection_ended("the stream ended before an event" + seen());
    }

    /// The next event, or nothing when the stream has ended.
    std::optional<decoded> next_or_end(deadline until = patience) {
        return wait_for_one(events_, until, "an event");
    }

    std::vector<decoded> next(std::size_t count, deadline until = patience) {
        std::vector<decoded> all;
        while (all.size() < count) all.push_back(next(until));
        return all;
    }

    /// The next comment, such as a heartbeat. Events that pass meanwhile are kept for next().
    std::string next_comment(deadline until = patience) {
        if (auto comment = wait_for_one(comments_, until, "a comment")) return *std::move(comment);
        throw connection_ended("the stream ended before a comment" + seen());
    }

    /// Reads until the server ends the stream. Events that come meanwhile are kept for next().
    ending wait_for_close(deadline until = patience) {
        while (receive(until, "the end")) {}
        return chunks_ && chunks_->ended() ? ending::last_chunk : *connection_.ended();
    }

    void close() { connection_.close(); }
    void reset() { connection_.reset(); }

    std::size_t body_bytes() const { return body_bytes_; } ///< Without chunks, before decoding.
#if defined(SSE_ENABLE_ZLIB)
    bool is_gzip() const { return gzip_ != nullptr; }
    bool gzip_ended() const { return gzip_ && gzip_->ended(); }
#endif

private:
    // Parameters may follow, "text/event-stream; charset=utf-8"; case does not matter.
    static bool is_event_stream(std::string_view type) {
        const std::string_view essence = type.substr(0, type.find_first_of("; \t"));
        return equal_ignoring_case(essence, "text/event-stream");
    }

    template <class Item>
    std::optional<Item> wait_for_one(std::deque<Item>& queue, deadline until, const char* what) {
        while (queue.empty())
            if (!receive(until, what)) return std::nullopt;
        Item front = std::move(queue.front());
        queue.pop_front();
        return front;
    }

    // False at the end of the stream. Bytes that came with the head are there without receiving.
    bool receive(deadline until, const char* what) {
        if (chunks_ && chunks_->ended()) return false;
        if (connection_.received().empty()) {
            bool more = false;
            try {
                more = connection_.receive_some(until);
            } catch (const timed_out&) {
                throw timed_out(std::string("deadline passed before ") + what + seen());
            }
            if (!more) return false;
        }
        std::string bytes = connection_.read_until([](const std::string&) { return true; });
        if (chunks_) bytes = chunks_->feed(bytes);
        body_bytes_ += bytes.size();
#if defined(SSE_ENABLE_ZLIB)
        if (gzip_) bytes = gzip_->read(bytes);
#endif
        decoder_.feed(bytes);
        for (decoded& event : decoder_.take_events()) events_.push_back(std::move(event));
        for (std::string& comment : decoder_.take_comments())
            comments_.push_back(std::move(comment));
        total_ += bytes.size();
        tail_ =
            (tail_ + bytes)
                .substr(tail_.size() + bytes.size() > 600 ? tail_.size() + bytes.size() - 600 : 0);
        return true;
    }

    std::string seen() const {
        return "; " + std::to_string(total_) + " bytes came, at last " + show(tail_);
    }

    connection connection_;
    response head_;
    std::optional<chunk_reader> chunks_; // when the body comes in such
#if defined(SSE_ENABLE_ZLIB)
    std::unique_ptr<gzip_reader> gzip_; // when it is coded so
#endif
    std::size_t body_bytes_ = 0;
    event_stream_decoder decoder_;
    std::deque<decoded> events_;
    std::deque<std::string> comments_;
    std::size_t total_ = 0;
    std::string tail_; // the last bytes, for messages; a long test must not keep them all
};

// ---- process ------------------------------------------------------------------------------------

struct exit_status {
    std::optional<int> code;   ///< Set when it returned or called exit().
    std::optional<int> signal; ///< Set when a signal ended it.

    friend bool operator==(const exit_status&, const exit_status&) = default;
    friend std::ostream& operator<<(std::ostream& out, const exit_status& status) {
        return status.code ? out << "exit code " << *status.code
                           : out << "signal " << status.signal.value_or(0);
    }
};

/// A child program whose stdout is read by lines; stderr stays ours. The destructor kills it.
class process {
public:
    /// The first string is the path of the program; nothing is looked up and no shell is involved.
    explicit process(std::vector<std::string> command) {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno("pipe2");
        output_ = descriptor(ends[0]);
        const descriptor child_end(ends[1]);
        if (::fcntl(output_.get(), F_SETFL, O_NONBLOCK) != 0) throw_errno("O_NONBLOCK");

        std::vector<char*> arguments;
        for (std::string& argument : command) arguments.push_back(argument.data());
        arguments.push_back(nullptr);

        // The child starts with default signals, whatever a test or a library has done to ours.
        sigset_t all;
        sigset_t none;
        ::sigfillset(&all);
        ::sigemptyset(&none);
        posix_spawnattr_t attributes;
        ::posix_spawnattr_init(&attributes);
        ::posix_spawnattr_setsigdefault(&attributes, &all);
        ::posix_spawnattr_setsigmask(&attributes, &none);
        ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
        posix_spawn_file_actions_t actions;
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawn_file_actions_adddup2(&actions, child_end.get(), STDOUT_FILENO);
        const int error =
            ::posix_spawn(&pid_, arguments[0], &actions, &attributes, arguments.data(), environ);
        ::posix_spawn_file_actions_destroy(&actions);
        ::posix_spawnattr_destroy(&attributes);
        if (error != 0)
            throw std::system_error(error, std::generic_category(), "start " + command[0]);
    }

    process(const process&) = delete;
    process& operator=(const process&) = delete;

    ~process() {
        if (status_) return;
        ::kill(pid_, SIGKILL);
        while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {}
    }

    pid_t pid() const { return pid_; }

    /// The next line of stdout, without its end. Throws at the deadline and at the end of output.
    std::string read_line(deadline until = patience) {
        std::size_t end = 0;
        while ((end = unread_.find('\n')) == std::string::npos)
            if (!receive_some(until))
                throw connection_ended("stdout ended without a further line; unread: " +
                                       show(unread_));
        std::string line = unread_.substr(0, end);
        unread_.erase(0, end + 1);
        return line;
    }

    /// Skips lines until one contains `text`.
    std::string read_line_with(std::string_view text, deadline until = patience) {
        for (;;) {
            std::string line = read_line(until);
            if (line.find(text) != std::string::npos) return line;
        }
    }

    std::string read_to_end(deadline until = patience) {
        while (receive_some(until)) {}
        return std::exchange(unread_, {});
    }

    /// From now on nobody reads what it prints.
    void close_output() { output_.close(); }

    void signal(int number) {
        if (!status_ && ::kill(pid_, number) != 0) throw_errno("kill");
    }

    exit_status wait_for_exit(deadline until = patience) {
        if (!eventually([this] { return has_exited(); }, until))
            throw timed_out("the program still runs; its unread output: " + show(unread_));
        return *status_;
    }

private:
    bool receive_some(deadline until) {
        char bytes[4096];
        for (;;) {
            const ssize_t count = ::read(output_.get(), bytes, sizeof bytes);
            if (count >= 0) {
                unread_.append(bytes, static_cast<std::size_t>(count));
                return count > 0;
            }
            if (errno == EAGAIN && !wait_for(output_.get(), POLLIN, until))
                throw timed_out("the program printed nothing more; unread: " + show(unread_));
            if (errno != EAGAIN && errno != EINTR) throw_errno("read");
        }
    }

    bool has_exited() {
        int status = 0;
        if (!status_ && ::waitpid(pid_, &status, WNOHANG) == pid_) {
            status_.emplace();
            if (WIFEXITED(status))
                status_->code = WEXITSTATUS(status);
            else
                status_->signal = WTERMSIG(status);
        }
        return status_.has_value();
    }

    descriptor output_;
    pid_t pid_ = -1;
    std::string unread_;
    std::optional<exit_status> status_;
};

/// The port in "... http://127.0.0.1:8080/..." or "listening on [::1]:8080": the digits behind the
/// last colon that has some.
inline std::uint16_t port_in(std::string_view line) {
    for (std::size_t at = line.rfind(':'); at != std::string_view::npos;) {
        unsigned port = 0;
        const auto [end, error] =
            std::from_chars(line.data() + at + 1, line.data() + line.size(), port);
        if (error == std::errc{} && port > 0 && port <= 65'535)
            return static_cast<std::uint16_t>(port);
        at = at == 0 ? std::string_view::npos : line.rfind(':', at - 1);
    }
    throw std::invalid_argument("no port in " + show(line));
}

// ---- resources ----------------------------------------------------------------------------------

/// Open descriptors of a process; ours without the one that counting needs.
inline std::size_t open_descriptors(pid_t pid = ::getpid()) {
    DIR* const directory = ::opendir(("/proc/" + std::to_string(pid) + "/fd").c_str());
    if (directory == nullptr) throw_errno("list descriptors");
    std::size_t count = 0;
    while (const dirent* entry = ::readdir(directory))
        if (entry->d_name[0] != '.') ++count;
    ::closedir(directory);
    return pid == ::getpid() ? count - 1 : count;
}

// Sanitizers keep freed memory aside, to see who still uses it: then what a process holds says
// nothing of leaks, and AddressSanitizer looks for these itself.
inline constexpr bool memory_is_meaningful = !with_address_sanitizer && !with_thread_sanitizer;

/// Resident memory of a process in bytes.
inline std::size_t resident_bytes(pid_t pid = ::getpid()) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
    std::size_t total_pages = 0;
    std::size_t resident_pages = 0;
    if (!(file >> total_pages >> resident_pages)) throw std::runtime_error("cannot read statm");
    return resident_pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

/// Raises the soft limit of open files as far as the system lets us; returns it.
inline std::size_t raise_descriptor_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("setrlimit");
    return static_cast<std::size_t>(limit.rlim_cur);
}

} // namespace support
