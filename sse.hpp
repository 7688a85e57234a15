// sse.hpp - Server-Sent Events for C++20 coroutines on standalone Asio. Version 0.2.0
//
// SPDX-License-Identifier: MIT
//
// Copy this file next to your program and compile with: g++ -std=c++20 app.cpp -pthread
//
//     #include "sse.hpp"
//
//     int main() {
//         sse::server server;
//         server.start("127.0.0.1:8080");
//         for (int n = 0;; ++n) {
//             server.broadcast({.event = "tick", .data = std::to_string(n)});
//             std::this_thread::sleep_for(std::chrono::seconds(1));
//         }
//     }
//
// Contents. Search for the marker.
//
// The interface, in the order in which it is read:
//
//     >>config   compiler and Asio checks, settings by macro
//     >>error    errc: every failure by name, with its cause and remedy
//     >>message  what a program publishes
//     >>event    what a client receives, and the parser of event streams
//     >>request  what a client requests
//     >>cors     origin matcher and cross-origin settings (Fetch standard)
//     >>subscription  where a stream starts, what happens when it falls behind, gaps
//     >>bus      what orders and keeps messages for several servers and over restarts
//     >>redisbus Redis as the bus
//     >>files    a bus in the files of one machine: settings
//     >>natsbus  NATS JetStream as the bus: settings
//     >>tls      certificates, keys and trust of both ends: settings
//     >>options  every setting with its default
//     >>stream   one client, as its handler sees it
//     >>server   routes, start, publish, stop
//     >>job      work that keeps running while viewers come, leave and come back
//     >>client   receives events: connects, redirects, reconnects
//     >>testing  the test kit: a server, its clients and its clock in a unit test
//
// The machine room, from low to high; a section uses only what is above it:
//
//     >>system   what compilers and operating systems do differently
//     >>encoding the wire format of a message (WHATWG HTML 9.2)
//     >>parser   an event stream as a client reads it, no I/O
//     >>ring     lock-free broadcast ring: the one place where threads meet
//     >>frame    a message as immutable bytes, shared by all clients
//     >>head     HTTP/1.1 heads and bodies (RFC 9112), no I/O
//     >>origin   origin patterns and the CORS decision
//     >>peer     who a client is behind trusted proxies, no I/O
//     >>topic    topic paths and the tree of subscribers, no I/O
//     >>record   a message as bytes for a bus, no I/O
//     >>log      a worker's bounded history of frames, no I/O
//     >>ids      which id stands for which position in the log, no I/O
//     >>feed     from the log to the clients: fan-out, replay, gaps, lag policies, no I/O
//     >>wheel    who sleeps until when, no clock
//     >>secure   TLS over a socket that does not block, and where its certificates come from
//     >>seams    where a test puts a clock and clients of its own
//     >>hub      what the threads share: options, routes, ring, counters, waiters for room
//     >>connection  a stream with its state
//     >>worker   one thread: drains the ring, writes to its sockets, enforces deadlines
//     >>exchange a worker's coroutines, from accept to the end
//     >>cluster  what servers on one bus know of each other
//     >>relay    between a server and its bus
//     >>lifecycle  listens, accepts, spreads connections over the workers, drains, stops
//     >>joblog   what a job has sent, and its viewers
//     >>facade   the bodies of server
//     >>metrics  measurements as text for Prometheus
//     >>admin    who is there, as JSON, and routes that end streams
//     >>script   the page script: one stream for all tabs of an origin
//     >>fetch    what is inside a client
//     >>redis    the engine over Redis Streams
//     >>filelog  a bus in the files of one machine: format, writing, reading
//     >>nats     what is inside nats_bus
//     >>simulation  what is inside the test kit
//
// How a message travels:
//
//     any thread                        worker thread (one io_context each, no locks)
//     publish(topic, message)           drain: ring -> log, a bounded history
//       encode once -> frame            plan:  topic tree -> which streams are concerned
//       claim a place in the ring  ==>  fan out: all that a stream has not received, in one write
//       wake sleeping workers           would block? wait until writable; nothing is queued for it
//
// A subscription is a position in the log, not a queue: a slow client costs a number, not copies,
// and a client that comes back with its last event ID is just one that is behind. What the log can
// no longer supply is reported in the stream as a gap.

#ifndef SSE_HPP
#define SSE_HPP

// >>config ////////////////////////////////////////////////////////////////////////////////////////
// Compiler and Asio checks. Knows nothing of the rest. The only place that defines macros.
// Tests: tests/header_alone.cpp, tests/errors.sh

#define SSE_VERSION 200 // major * 10000 + minor * 100 + patch
#define SSE_VERSION_STRING "0.2.0"

// Compilers continue after #error, for a thousand lines. A missing include file stops them.
#define SSE_STOP "sse.hpp: stopped, see the error above"

#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#error "sse.hpp needs C++20: compile with -std=c++20 or later"
#include SSE_STOP
#endif

#if defined(__GNUC__) && !defined(__cpp_exceptions)
#error "sse.hpp needs exceptions: compile without -fno-exceptions"
#include SSE_STOP
#endif

#if defined(BOOST_ASIO_VERSION) && BOOST_ASIO_VERSION <= 101801
#error "sse.hpp and Boost.Asio 1.74 cannot be included in one source file: see examples/beast.cpp"
#include SSE_STOP
#endif

#if !__has_include(<asio/version.hpp>)
#error "sse.hpp needs standalone Asio 1.22.1 or newer: install libasio-dev, or add its include path"
#include SSE_STOP
#endif

#include <asio/version.hpp>

#if ASIO_VERSION < 102201
#error "sse.hpp needs Asio 1.22.1 or newer"
#include SSE_STOP
#endif

// Asio before 1.26 does not detect coroutines in clang with libstdc++.
#if defined(__clang__) && ASIO_VERSION < 102600
#if !defined(ASIO_HAS_CO_AWAIT)
#define ASIO_HAS_CO_AWAIT 1
#endif
#if !defined(ASIO_HAS_STD_COROUTINE)
#define ASIO_HAS_STD_COROUTINE 1
#endif
#endif

// Asio uses typeid unless this macro says that there is none.
#if defined(__GNUC__) && !defined(__GXX_RTTI) && !defined(ASIO_NO_TYPEID)
#define ASIO_NO_TYPEID 1
#endif

#include <asio/awaitable.hpp>

#if !defined(ASIO_HAS_CO_AWAIT) || (!defined(ASIO_HAS_STD_COROUTINE) && ASIO_VERSION < 102600)
#error "Asio found no coroutines: include sse.hpp before Asio, or compile with -fcoroutines"
#include SSE_STOP
#endif

// What SSE_ENABLE_IO_URING, SSE_ENABLE_TLS and SSE_TESTING change has other names, so that a file
// which defines one and a file which does not cannot pass each other a server: such a program does
// not link.
#if defined(SSE_ENABLE_IO_URING) && defined(SSE_ENABLE_TLS)
#define SSE_VARIANT with_io_uring_and_tls
#elif defined(SSE_ENABLE_IO_URING)
#define SSE_VARIANT with_io_uring
#elif defined(SSE_ENABLE_TLS)
#define SSE_VARIANT with_tls
#endif
#if defined(SSE_TESTING) && defined(SSE_VARIANT)
#define SSE_BEGIN                                                                                  \
    namespace sse {                                                                                \
    inline namespace SSE_VARIANT {                                                                 \
    inline namespace for_tests {
#define SSE_END                                                                                    \
    }                                                                                              \
    }                                                                                              \
    }
#elif defined(SSE_TESTING) || defined(SSE_VARIANT)
#if defined(SSE_TESTING)
#define SSE_VARIANT for_tests
#endif
#define SSE_BEGIN                                                                                  \
    namespace sse {                                                                                \
    inline namespace SSE_VARIANT {
#define SSE_END                                                                                    \
    }                                                                                              \
    }
#else
#define SSE_BEGIN namespace sse {
#define SSE_END }
#endif

// Each file that includes this header compiles all of it. A program of many files may define
// SSE_SEPARATE_COMPILATION in all of them, and also SSE_SOURCE in one, which then compiles what
// they share: the others see the interface alone. With SSE_INTERNALS they see what is in namespace
// detail too, for tests of it.
//
// SSE_DECL stands before definitions outside a class, and before virtual functions in it, too: else
// the first of these would be the class's key function (Itanium C++ ABI 5.2.3), and each file would
// compile the whole class and what it uses, although nothing in it asks for that.
#if !defined(SSE_SEPARATE_COMPILATION)
#if defined(SSE_SOURCE)
#error "SSE_SOURCE goes with SSE_SEPARATE_COMPILATION, which all files of the program must define"
#include SSE_STOP
#endif
#define SSE_DECL inline
#define SSE_BODIES
#else
#define SSE_DECL
#if defined(SSE_SOURCE)
#define SSE_BODIES
#if defined(__GNUC__) && !defined(__clang__) // it warns of lambdas kept by coroutines
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#endif
#endif
#endif

#if defined(SSE_ENABLE_IO_URING)
#if !__has_include(<liburing.h>)
#error "SSE_ENABLE_IO_URING needs liburing: install liburing-dev and link with -luring"
#include SSE_STOP
#endif
#include <liburing.h>
#endif

#if defined(SSE_ENABLE_TLS)
#if !__has_include(<openssl/ssl.h>)
#error "SSE_ENABLE_TLS needs OpenSSL 3: install libssl-dev and link with -lssl -lcrypto"
#include SSE_STOP
#endif
#include <openssl/opensslv.h>
#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "SSE_ENABLE_TLS needs OpenSSL 3.0 or newer: install libssl-dev and link with -lssl -lcrypto"
#include SSE_STOP
#endif
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#endif

#if defined(SSE_ENABLE_REDIS)
#if defined(_WIN32)
#error "SSE_ENABLE_REDIS needs a POSIX system: hiredis 0.14 has no Windows"
#include SSE_STOP
#endif
#if !__has_include(<hiredis/hiredis.h>)
#error "SSE_ENABLE_REDIS needs hiredis: install libhiredis-dev and link with -lhiredis"
#include SSE_STOP
#endif
#include <hiredis/hiredis.h>

#include <sys/socket.h>

#include <future>
#include <list>
#endif

#if defined(SSE_ENABLE_NATS)
#if !__has_include(<nats/nats.h>)
#error "SSE_ENABLE_NATS needs nats.c: install libnats-dev and link with -lnats"
#include SSE_STOP
#endif
#include <nats/nats.h>
#endif

#include <asio/any_io_executor.hpp>
#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/bind_executor.hpp>
#include <asio/buffer.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detail/signal_blocker.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/execution_context.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ip/v6_only.hpp>
#include <asio/post.hpp>
#include <asio/prefer.hpp>
#include <asio/redirect_error.hpp>
#include <asio/signal_set.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cassert>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(SSE_BODIES)
#include <filesystem>
#endif

#include <fcntl.h>
#include <sys/stat.h>
#if defined(_WIN32)
#include <direct.h>
#include <io.h>
#include <share.h>
#else
#include <poll.h>
#include <sys/file.h>
#include <unistd.h>
#endif

////////////////////////////////////////////////////////////////////////////////////////////////////
// The interface: all that a program uses. What is in namespace detail may change at any time.
////////////////////////////////////////////////////////////////////////////////////////////////////

// >>error /////////////////////////////////////////////////////////////////////////////////////////
// Every failure by name. Needs nothing.
// Tests: tests/message.cpp, tests/server.cpp
SSE_BEGIN

enum class errc {
    closed = 1,     ///< The client disconnected, or its stream was ended.
    stopped,        ///< The server was stopped: the message was not published.
    no_room,        ///< The ring is full because a worker is blocked: nothing was published.
    bad_event,      ///< The event name contains CR, LF or NUL.
    bad_id,         ///< The id is not one that a client can send back, see message::id.
    wrong_thread,   ///< A stream was used on a thread other than its worker's: nothing was done.
    reserved_id,    ///< The id looks like one of this server's own: nothing was published.
    bad_retry,      ///< The retry time is negative, or more than message::max_retry.
    empty_message,  ///< The message has no field at all.
    ephemeral_id,   ///< The message is ephemeral and has an id, but nobody could resume after it.
    bad_key,        ///< The key of a user is empty or has a control character.
    bad_topic,      ///< An empty or dot segment, a control character, or more than 32 segments.
    body_too_large, ///< The request body exceeds options::limits.body_bytes; the client gets 413.
    bad_body,     ///< The request body is cut short or its chunks are broken; the client gets 400.
    body_timeout, ///< The request body did not arrive in time; the client gets 408.
    not_acceptable,     ///< The client's Accept header excludes event streams; it gets 406.
    job_exists,         ///< A job of that name exists already, running or kept.
    too_many_jobs,      ///< As many jobs run as job_options::max_jobs allows.
    event_too_large,    ///< Received: an event is larger than client_options::max_event.
    bad_response,       ///< Received: the response is not valid HTTP, or was cut short.
    bad_status,         ///< Received: a status other than 200; the server opens no stream.
    bad_content_type,   ///< Received: a response that is not an event stream.
    too_many_redirects, ///< Received: more redirects than client_options::max_redirects.
    timed_out,          ///< Received: no connection or no response in time.
    over_limit,         ///< The client exceeds a connection limit; it gets 503 or 429, no stream.
    bus_down,           ///< The bus cannot be reached: nothing was published.
    bus_refused,        ///< The bus refused the message; its log entry says why.
    bus_timeout,        ///< The bus did not confirm the message: it may have been published.
    bad_certificate,    ///< Received: the server's certificate is not one to trust.
    tls_failed          ///< Received: there is no TLS with the server.
};

SSE_END

template <>
struct std::is_error_code_enum<sse::errc> : std::true_type {};

SSE_BEGIN

inline const std::error_category& error_category() noexcept {
    class category final : public std::error_category {
        const char* name() const noexcept override { return "sse"; }
        std::string message(int code) const override {
            switch (static_cast<errc>(code)) {
            case errc::closed: return "the client disconnected or its stream was ended";
            case errc::stopped: return "the server was stopped, nothing was published";
            case errc::no_room:
                return "no room in the ring, nothing was published: a worker's thread is blocked; "
                       "await room with async_publish, or do not block inside handlers";
            case errc::bad_event:
                return "the event name contains CR, LF or NUL, which would forge further fields; "
                       "remove them or put the text into data";
            case errc::bad_id:
                return "the id has a control character, a character that is not ASCII, a space at "
                       "its start or end, or more than 1024 bytes; clients could not send it back. "
                       "Write a short id of printable ASCII, percent-encoded if need be";
            case errc::wrong_thread:
                return "a stream was used on a thread other than its worker's; await blocking work "
                       "with "
                       "co_await asio::co_spawn(pool, work(), asio::use_awaitable), which comes "
                       "back to it, or use post_to";
            case errc::reserved_id:
                return "the id begins with this server's own epoch and would be taken for one of "
                       "its own; leave it out, or put a prefix of your own before it";
            case errc::bad_retry:
                return "the retry time is negative, or longer than JavaScript's timers allow; "
                       "use 0 to 2147483647 ms";
            case errc::empty_message: return "the message has no field; set at least data";
            case errc::ephemeral_id:
                return "the message is ephemeral and has an id, but nobody can resume after what "
                       "is not kept; leave one of the two out";
            case errc::bad_key:
                return "the key of a user is empty or contains a control character; use a name";
            case errc::bad_topic:
                return "the topic has an empty segment, a segment '.' or '..', a control character "
                       "or more than 32 segments; write it like /prices/gold";
            case errc::body_too_large: return "the request body is larger than limits.body_bytes";
            case errc::bad_body: return "the request body is cut short or its chunks are broken";
            case errc::body_timeout: return "the request body did not arrive in time";
            case errc::over_limit: return "over a connection limit";
            case errc::not_acceptable: return "the client's Accept header excludes event streams";
            case errc::job_exists:
                return "a job of that name is running or kept; finish it, or choose another name";
            case errc::too_many_jobs:
                return "too many jobs are running; raise job_options::max_jobs, or finish some";
            case errc::event_too_large:
                return "the server sent an event larger than max_event; raise it if such events "
                       "are expected";
            case errc::bad_response:
                return "the response is not valid HTTP/1.1, or it was cut short";
            case errc::bad_status:
                return "the server answered with a status that does not open an event stream";
            case errc::bad_content_type:
                return "the response is not an event stream: its Content-Type is not "
                       "text/event-stream";
            case errc::too_many_redirects:
                return "the server redirects more often than max_redirects allows, or in a circle";
            case errc::timed_out:
                return "the server did not accept the connection or respond in time";
            case errc::bus_down:
                return "the bus cannot be reached, nothing was published; the log says why, and "
                       "publishing works again once it is back";
            case errc::bus_refused:
                return "the bus refused the message, nothing was published; the log says why";
            case errc::bus_timeout:
                return "the bus did not confirm the message in time: it may have been published; "
                       "publish it again only if clients can tell that it is the same";
            case errc::bad_certificate:
                return "the server's certificate is not trusted; a CA of your own is named in "
                       "client_options::tls.ca";
            case errc::tls_failed: return "there is no TLS with the server";
            }
            return "unknown error " + std::to_string(code);
        }
    };
    static const category instance;
    return instance;
}

inline std::error_code make_error_code(errc code) noexcept {
    return {static_cast<int>(code), error_category()};
}

/// Whether the error only says that the client of a stream is gone, or that its stream was ended:
/// what a handler awaited has failed for this reason, or was cancelled for it. Nothing went wrong
/// then, and a handler that catches exceptions has nothing to report.
inline bool client_gone(const std::error_code& error) noexcept {
    return error == errc::closed || error == asio::error::operation_aborted;
}

/// An option that cannot work; what() says why, and what would.
class bad_option : public std::invalid_argument {
public:
    /// Begins with the member.
    explicit bad_option(const std::string& text)
        : std::invalid_argument("sse::options::" + text),
          size_(std::min(text.find_first_of(" :"), text.size())) {}

    /// Such as "limits.retry_after".
    std::string_view member() const noexcept { return text().substr(0, size_); }
    /// What follows the member.
    std::string_view reason() const noexcept {
        std::string_view rest = text().substr(size_);
        rest.remove_prefix(std::min(rest.find_first_not_of(" :"), rest.size()));
        return rest;
    }

private:
    std::string_view text() const noexcept {
        return std::string_view(what()).substr(std::string_view("sse::options::").size());
    }
    std::size_t size_;
};

class stream;
class server;

namespace detail {

struct arrival;
class client_core;
struct connection;
struct farewell;
class feed;
class frame;
enum class frame_kind : std::uint8_t;
template <class T>
class counted_ref;
using frame_ref = counted_ref<frame>;
struct group;
struct hub;
class job_log;
struct listing;
struct worker;

} // namespace detail

// >>message ///////////////////////////////////////////////////////////////////////////////////////
// What a program publishes. Needs >>error.
// Tests: tests/message.cpp

/// One event, or one comment. A trivially destructible aggregate of views: it is encoded before the
/// call that takes it returns or suspends, so it may refer to temporaries, even in `co_await`
/// expressions, where g++ 11 and 12 destroy aggregates that own memory twice.
/// One form is broken by these compilers nevertheless: `co_await client.send({.data = flag ? "a" :
/// text})` with a std::string destroys the temporary of `?:` twice. Put the data in a variable.
///
///     server.publish("/prices", {.event = "gold", .data = json});
///     co_await client.send({.event = "line", .data = make_text()});
struct message {
    std::string_view event = {};               ///< Event type; empty: browsers see "message".
    std::optional<std::string_view> data = {}; ///< Any text; its CR, LF and CRLF arrive as LF.
    /// Becomes the client's last event ID; "" resets it. A message published without an id gets one
    /// from the server, `<epoch>-<number>`. A program's own ids must be unique, or a client that
    /// resumes may miss what lies between two equal ones. A client sends the id back in a header
    /// field, so it must be printable ASCII without a space at its start or end, and at most 1024
    /// bytes long; else errc::bad_id. (Browsers also send UTF-8 back, but clients that use fetch
    /// cannot send a character above U+00FF at all, and stop.) A server refuses to publish an id
    /// of its own form (errc::reserved_id); it accepts ids of other servers, which a relay passes
    /// on. A handler's own message may carry one: it says that the client has everything up to
    /// there, as a snapshot with server::last_id() does.
    std::optional<std::string_view> id = {};
    /// The client's new reconnection time, from 0 to max_retry.
    std::optional<std::chrono::milliseconds> retry = {};
    /// 24.8 days: a JavaScript timer that is given more fires at once, so the client would
    /// reconnect without a pause.
    static constexpr std::chrono::milliseconds max_retry{0x7fff'ffff};
    std::string_view comment = {}; ///< Ignored by clients.
    /// A newer message with the same key and topic replaces this one for clients that are behind
    /// and follow with lag_policy::conflate. Not sent.
    std::string_view key = {};
    /// For current subscribers only: published without an id and never replayed.
    bool ephemeral = false;
};
static_assert(std::is_trivially_destructible_v<message> && std::is_aggregate_v<message>);

/// Returns what is wrong with the message, or a code that is false if it is valid.
std::error_code check(const message& m) noexcept;

/// The message as it is sent in an event stream. Throws std::system_error with the code of `check`.
std::string encode(const message& m);

// >>event /////////////////////////////////////////////////////////////////////////////////////////
// What a client receives, and the parser of event streams, without I/O (WHATWG HTML 9.2.5 and
// 9.2.6). Needs >>error.
// Tests: tests/parser.cpp

/// One event, as a client dispatches it.
struct event {
    std::string type;          ///< "message", unless the stream names another type.
    std::string data;          ///< Without the last line break.
    std::string last_event_id; ///< Its own, or that of an earlier event.
};

/// Parses the successive event streams of one event source: feed() takes bytes in any pieces,
/// next() returns the events in them. The same bytes give the same events however they were cut,
/// each as soon as its last byte has arrived. Lines end in LF, CR or CRLF; one byte order mark is
/// skipped at the start of each stream; what is not UTF-8 becomes U+FFFD.
///
/// Memory: what was fed and not yet parsed by next(), and a small multiple of max_event.
/// Events are made only when next() is called, since with a long id a few bytes make a large event.
/// Comments and unknown fields may have any length, they are not stored.
class event_parser {
public:
    struct limits {
        /// Data, type and id together, in bytes. A single line may be that long too.
        std::size_t max_event = 16 * 1024 * 1024;
    };

    event_parser() : event_parser(limits{}) {}
    /// `last_event_id` is the one that the stream resumes after: events have it until one comes
    /// with an id of its own.
    explicit event_parser(limits l, std::string last_event_id = {})
        : limits_(l), id_(std::move(last_event_id)), last_id_(id_) {}

    void feed(std::string_view bytes);

    /// Returns the next whole event, or nullopt until more is fed. Throws std::system_error
    /// (errc::event_too_large) when a limit is exceeded, and then on each call until finish() drops
    /// everything; the events before that have been returned.
    std::optional<event> next();

    /// The stream has ended: drops what was fed and not returned by next(), including an unfinished
    /// event. Ready for the next stream. The last event ID and the reconnection time are kept.
    void finish() noexcept;

    /// As of the last blank line: what a client sends to resume after it.
    const std::string& last_event_id() const noexcept { return last_id_; }

    /// The last reconnection time that the server sent; at most max_retry.
    std::optional<std::chrono::milliseconds> retry() const noexcept { return retry_; }

    /// Comment lines so far; many servers send them as heartbeats.
    std::uint64_t comments() const noexcept { return comments_; }

    /// Larger reconnection times count as this one: 30 years, which clocks can still represent.
    static constexpr std::chrono::milliseconds max_retry{std::chrono::hours(24 * 365 * 30)};

private:
    enum class skip : std::uint8_t { nothing, comment, field };

    static bool may_matter(std::string_view line, bool whole) noexcept;
    void check_line(std::string_view line);
    std::size_t find(char c, std::size_t& known) const noexcept;
    std::optional<std::string_view> take_line();
    void take_rest();
    void take_field(std::string_view line);
    void take_data(std::string_view value);
    void take_retry(std::string_view value) noexcept;
    void check_event();
    std::optional<event> dispatch();
    [[noreturn]] void refuse(const char* what);

    limits limits_;
    std::string input_;             // from at_ on not yet parsed
    std::size_t at_ = 0;            // where the next line begins
    std::size_t cr_ = 0;            // the first CR from at_ on, or where to continue the search
    std::size_t lf_ = 0;            // the same for LF
    bool at_start_ = true;          // of a stream: a byte order mark may come
    bool after_cr_ = false;         // an LF now belongs to the line break that the CR began
    skip skipping_ = skip::nothing; // the rest of the current line is to be ignored
    bool has_data_ = false;         // the current event has a data field
    const char* refused_ = nullptr; // why, once a limit was exceeded
    std::string data_;              // the three buffers of the standard
    std::string type_;
    std::string id_;
    std::string last_id_;
    std::optional<std::chrono::milliseconds> retry_;
    std::uint64_t comments_ = 0;
};

// >>request ///////////////////////////////////////////////////////////////////////////////////////
// What a client requests.
// Tests: tests/head.cpp

/// What a client requested. Views are valid as long as the request itself.
class request {
public:
    struct field {
        std::string_view name;
        std::string_view value;
    };

    request() = default;
    request(const request&) = delete;
    request& operator=(const request&) = delete;

    std::string_view method; ///< As sent; methods are case-sensitive (RFC 9110 9.1).
    std::string_view target; ///< As sent.
    std::string_view path;   ///< Percent-decoded once, without the query.
    std::string_view query;  ///< As sent, without the question mark.
    std::string_view rest;   ///< What the `*` of the route's pattern matched.
    /// The names in the route's pattern and what they matched, in order.
    std::vector<std::pair<std::string_view, std::string_view>> path_values;
    /// All topics that a request to options::prefix names, by its path, ?topic= or its body, in the
    /// form "/a/b"; "" for the root. A client that authorize admits is admitted to each of them.
    std::vector<std::string> topics;
    asio::ip::address client;  ///< The peer address, or the client that trusted proxies name.
    std::vector<field> fields; ///< Header fields in the order sent.
    std::uint64_t content_length = 0;
    std::string form_event_id; ///< The last event ID that a form posted to options::prefix names.
    bool chunked = false;      ///< Transfer-Encoding: chunked.
    bool keep_alive = false;   ///< The connection may carry another request after this one.
#if defined(SSE_ENABLE_TLS)
    /// Whom the client's certificate names, once options::tls.client_ca has vouched for it, such as
    /// "CN=sensor 7,O=Example" (RFC 4514, in ASCII). Empty: it showed none.
    std::string client_subject;
#endif
    bool is_head() const noexcept { return method == "HEAD"; }

    /// The target as sent, without the query. Fit for logs: it has no control characters, and
    /// secrets are in queries.
    std::string_view target_path() const noexcept { return target.substr(0, target.find('?')); }

    /// The values of a name in the query, in order, decoded as the URL standard decodes forms: "+"
    /// is a space, a broken escape is kept as it is.
    std::vector<std::string> query_values(std::string_view name) const;

    /// The first of them, or nullopt.
    std::optional<std::string> query_value(std::string_view name) const {
        auto all = query_values(name);
        return all.empty() ? std::nullopt : std::optional(std::move(all.front()));
    }

    /// What `{name}` in the route's pattern matched; never empty. Throws std::out_of_range if the
    /// pattern has no such name.
    std::string_view path_value(std::string_view name) const {
        for (const auto& [known, value] : path_values) {
            if (known == name) return value;
        }
        throw std::out_of_range("sse::request::path_value: the route's pattern has no {" +
                                std::string(name) + "}");
    }

    /// The value of the first field of that name, ignoring case, or nullopt.
    std::optional<std::string_view> header(std::string_view name) const noexcept;

    /// The value of a cookie as sent, neither decoded nor unquoted, or nullopt. Names are
    /// case-sensitive. If several cookies have the name, the first one counts: browsers send the
    /// one with the longest path first (RFC 6265 5.4).
    std::optional<std::string_view> cookie(std::string_view name) const noexcept;

    /// Whether the client understands Transfer-Encoding: chunked, as HTTP/1.1 must.
    bool accepts_chunked() const noexcept { return minor_version_ > 0; }

    /// The status to refuse a request with, and why; status 0 if the request is valid.
    struct verdict {
        int status = 0;
        std::string_view reason = {};
    };

    /// Parses a whole head, including the empty line at its end, as head_parser delimits it.
    verdict parse(std::string_view head, std::size_t max_fields = 100);

private:
    verdict parse_request_line(std::string_view line);
    verdict parse_target();
    verdict check_single() const;
    verdict check_host();
    std::string_view authority() const noexcept; // of a target in absolute-form
    verdict check_framing();
    bool has_connection_option(std::string_view option) const noexcept;

    std::string text_; // the head, followed by the decoded path
    int minor_version_ = 1;
};

// >>cors //////////////////////////////////////////////////////////////////////////////////////////
// Which origins may read responses (Fetch standard 3.2). Needs >>request.
// Tests: tests/cors.cpp, tests/origin.cpp

/// Decides whether pages of an origin, the value of an Origin header such as "https://app.example",
/// may read responses. Made from any callable `(std::string_view origin)` or `(std::string_view
/// origin, const sse::request&)` that returns bool or, to ask a database for example,
/// asio::awaitable<bool>. Called on worker threads, possibly on several at once; if it throws, the
/// response is 500. A default-constructed matcher matches every origin.
class origin_matcher {
public:
    origin_matcher() = default;

    template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, origin_matcher> &&
             (std::is_invocable_v<F&, std::string_view> ||
              std::is_invocable_v<F&, std::string_view, const request&>)) origin_matcher(F f) {
        // Stored in one form: the simpler signature is wrapped.
        auto call = [f = std::move(f)](std::string_view origin, const request& r) mutable {
            if constexpr (std::is_invocable_v<F&, std::string_view, const request&>) {
                return f(origin, r);
            } else {
                static_cast<void>(r);
                return f(origin);
            }
        };
        using result = decltype(call(std::string_view(), std::declval<const request&>()));
        if constexpr (std::is_convertible_v<result, bool>) {
            test_ = std::move(call);
        } else {
            ask_ = std::move(call);
        }
    }

    bool matches_any() const noexcept { return !test_ && !ask_; }
    bool is_coroutine() const noexcept { return static_cast<bool>(ask_); }

    /// For a matcher that is not a coroutine.
    bool test(std::string_view origin, const request& r) const {
        return matches_any() || test_(origin, r);
    }
    /// For a matcher that is a coroutine.
    asio::awaitable<bool> ask(std::string_view origin, const request& r) const {
        return ask_(origin, r);
    }

private:
    std::function<bool(std::string_view, const request&)> test_;
    std::function<asio::awaitable<bool>(std::string_view, const request&)> ask_;
};

/// Every origin. Responses then say "*", so they cannot allow credentials.
inline origin_matcher any_origin() { return {}; }

/// The origins in the list. An entry is an exact origin, or stands for every sub-domain, by whole
/// labels and without example.com itself: "*.example.com" (http and https) or
/// "https://*.example.com:8443". If "*" is among them, this is any_origin(). Throws
/// std::invalid_argument for what can never be an Origin header, such as one with a trailing slash.
origin_matcher origins(const std::vector<std::string>& allowed);

/// Pages that this machine itself serves, on any port: for development.
origin_matcher localhost_origins();

/// Cross-origin access, by the Fetch standard.
struct cors_options {
    /// The origins that may read. By default every origin.
    origin_matcher origin = {};
    /// What a cross-origin request that does not match gets. True: 403, before a stream begins.
    /// False: a response without permission, which the browser withholds from the page, although
    /// the stream occupies a slot.
    bool refuse = true;
    /// Methods that a preflight allows. Empty: those that the path serves.
    std::vector<std::string> methods = {};
    /// Request headers that a preflight allows.
    std::vector<std::string> headers = {"Authorization", "Cache-Control", "Content-Type",
                                        "Last-Event-ID"};
    /// Response headers that pages may read in addition to the safelisted ones.
    std::vector<std::string> exposed = {};
    /// Whether requests may carry credentials such as cookies. Needs a matcher: never together with
    /// every origin.
    bool credentials = false;
    /// How long a browser may cache a preflight response. 0: the browser decides.
    std::chrono::seconds max_age{7200};
};

// >>subscription //////////////////////////////////////////////////////////////////////////////////
// How a stream follows topics: where it starts, what happens when it falls behind, and how it is
// notified of what it missed. Needs >>message.
// Tests: tests/feed.cpp

/// Bounds of the history of a topic and of the topics below it.
struct topic_history {
    std::string topic = {};               ///< "" for the server's own history.
    std::size_t messages = 0;             ///< 0: none is kept.
    std::size_t bytes = 64 * 1024 * 1024; ///< Of these messages together.
    std::chrono::milliseconds age{0};     ///< Older ones are forgotten. 0: never by age.
};

/// What happens to a client that falls so far behind that the history moves past it.
enum class lag_policy : std::uint8_t {
    disconnect, ///< It is disconnected; it reconnects with its last event ID and is sent the gap.
    skip,       ///< It is sent the gap and continues live.
    conflate,   ///< While it is behind, it gets only the newest message of each topic and key.
    hold_back   ///< Publishers wait for it, at most options::timeouts.stall; then disconnect.
};

/// Where a subscription starts.
class start {
public:
    /// After the id with which the client reconnects: the Last-Event-ID header, or lastEventId in
    /// the query, in any letter case, also as last_event_id or Last-Event-ID. Without an id: now.
    static start resume() { return start(kind::resume); }
    /// As resume(), but as `otherwise` if there is no id: `resume_or(last(50))`. Only for
    /// subscriptions made while the handler runs; later ones start as `otherwise`.
    static start resume_or(start otherwise) {
        otherwise.or_resume_ = true;
        return otherwise;
    }
    /// With what is published from now on.
    static start now() { return start(kind::now); }
    /// With the oldest message that is kept.
    static start oldest() { return start(kind::oldest); }
    /// With the last n messages that are kept for it.
    static start last(std::size_t n) {
        start s(kind::last);
        s.count_ = n;
        return s;
    }
    /// With what was published at this time or later.
    static start since(std::chrono::system_clock::time_point time) {
        start s(kind::since);
        s.time_ = time;
        return s;
    }
    /// After the message with this id.
    static start after(std::string id) {
        start s(kind::after);
        s.id_ = std::move(id);
        return s;
    }

private:
    friend class detail::feed;
    friend struct detail::worker;
    friend struct detail::connection;
    enum class kind : std::uint8_t { resume, now, oldest, last, since, after };
    explicit start(kind k) : kind_(k) {}

    kind kind_;
    bool or_resume_ = false; // after the client's own id, if it has one
    std::size_t count_ = 0;
    std::chrono::system_clock::time_point time_{};
    std::chrono::milliseconds age_{0}; // how long ago that time was when subscribing
    std::string id_;
};

/// A message on its way to a client, as a filter sees it. Valid during the call.
class published {
public:
    explicit published(const detail::frame& f) noexcept : frame_(f) {}

    std::string_view topic() const noexcept; ///< "" for a broadcast.
    std::string_view event() const noexcept;
    std::string_view key() const noexcept;
    /// The data as clients get it, its lines joined by LF.
    std::string data() const;

private:
    const detail::frame& frame_;
};

/// Whether a client gets a message. Called on a worker thread, possibly several times per message;
/// must not block. An exception ends the stream.
using filter_function = std::function<bool(const published&)>;

struct subscribe_options {
    start from = start::resume();
    std::optional<lag_policy> lag = {}; ///< Without one: options::history.lag.
    filter_function filter = {};        ///< Without one: every message of the topic.
    /// Fixes the position, but delivers nothing until stream::resume(). Unless `from` is set, it
    /// starts now, even for a client that reconnects: a snapshot goes first.
    bool held = false;
};

enum class gap_reason : std::uint8_t {
    epoch,   ///< The id is from another run of the server, or its bus lost everything.
    unknown, ///< The id was never assigned, or is no longer known.
    too_old, ///< The history no longer reaches back to where the client was.
    lapped,  ///< The client was connected, but fell behind the history.
    rewound  ///< The bus lost the newest of what it had stored, as after a failover.
};

/// Messages after `from`, up to and including `to`, may be missing.
struct gap {
    gap_reason reason = gap_reason::unknown;
    std::string from;                         ///< An id; for epoch and unknown, the client's own.
    std::string to;                           ///< An id of this server.
    std::optional<std::uint64_t> missed = {}; ///< How many, if known.
};

/// How far a stream is behind what was published.
struct lag {
    std::uint64_t messages = 0;       ///< Still to be examined, also of other topics.
    std::uint64_t bytes = 0;          ///< Of these messages.
    std::chrono::milliseconds age{0}; ///< Since the first of them arrived.
};

/// Why a stream ended.
enum class end_reason : std::uint8_t {
    client_left, ///< The client closed or reset the connection.
    unreachable, ///< The system gave up on the peer: no acknowledgement, or no route.
    ended,       ///< Its handler ended it, or stream::close().
    expired,     ///< options::timeouts.stream_age, access::valid_for, stream::end_after().
    lagged,      ///< It fell behind the history.
    stalled,     ///< The client read nothing for options::timeouts.stall.
    revoked,     ///< server::revoke().
    drained,     ///< server::drain() closed it after sending all that was due.
    cut,         ///< The window of server::drain() ended before that.
    stopped,     ///< server::stop().
    failed       ///< Its handler, a filter or a hook threw.
};
inline constexpr std::size_t end_reasons = 11;

/// In words, such as "client left".
std::string_view to_string(end_reason reason) noexcept;
std::string_view to_string(gap_reason reason) noexcept;

// >>bus ///////////////////////////////////////////////////////////////////////////////////////////
// What orders, numbers and keeps the messages where one server's memory is not enough: several
// servers with the same topics, or a history that survives a restart. A program may bring its own.
// Needs >>error, >>subscription.
// Tests: tests/bus.cpp

/// Stores messages in one order for every server that is attached. A server publishes to it and
/// delivers only what comes back, its own messages too. So every server has the same order, and a
/// client may go on at another server, or after a restart, with the id that it has.
///
/// Each stored message has a number, from 1. Numbers rise within an epoch, and need not be dense.
/// The client's id is `<epoch>-<number>`. An epoch, eight characters of [0-9a-z], is a promise that
/// no number in it is ever given to two messages. A bus that cannot keep it, since it lost the end
/// of what it had stored, or all of it, begins a new one.
///
/// Thread safety: a server calls it from any thread, several at once. No call blocks for longer
/// than it takes to copy the message, except attach() and detach().
class bus {
public:
    /// What is stored. Views are valid during the call.
    struct record {
        std::uint64_t number = 0;
        std::chrono::system_clock::time_point time = {}; ///< When it was stored.
        std::string_view bytes = {};                     ///< What publish() was given.
    };

    /// What the bus tells its server. The calls come one at a time, from any thread but those of
    /// the server's calls. A call blocks while the server has no room, which is short.
    class sink {
    public:
        /// Says which epoch the records that follow are of, and that their numbers are above
        /// `after`. Comes first, and again before records of another epoch. Then `why` is reported
        /// to every client that passes from one to the other: `epoch` if the bus lost everything,
        /// `rewound` if it lost what it stored last, or may have. The same epoch again says only
        /// that no record that comes has a number up to `after`.
        virtual void epoch(std::string_view name, std::uint64_t after, gap_reason why) = 0;

        /// A stored record: first the history, oldest first, then what is new.
        virtual void message(const record& what) = 0;

        /// A record that is not stored: it reaches only servers that are attached now. Not before
        /// the first epoch().
        virtual void passing(std::string_view bytes) = 0;

        /// The bus has lost the records of this epoch above this number, which it had told. Comes
        /// before the next epoch. A publisher that repeats one of them is heard again.
        virtual void lost(std::uint64_t above) = 0;

        /// Records up to this number are lost to this server: the bus dropped them before it had
        /// read them. Clients that were connected are sent a gap, `too_old`.
        virtual void hole(std::uint64_t to) = 0;

        /// The history is complete. Comes once.
        virtual void ready() = 0;

        /// Whether the bus can be reached. The reason names the cause and the remedy. Comes at each
        /// change, and once at the start. With `up` it may be a warning: what was repaired, or
        /// cannot be read.
        virtual void health(bool up, std::string_view reason) = 0;

    protected:
        ~sink() = default;
    };

    /// How much of the history a server keeps: at the start it is told the newest records within
    /// these bounds.
    struct history {
        std::size_t messages = 0;
        std::size_t bytes = 0;
        std::chrono::milliseconds age{0}; ///< 0: of any age.
    };

    /// Called once, with the number of a stored record, or 0 for one that is not; or with
    /// - errc::bus_down, bus_refused, no_room or stopped: it was not published;
    /// - errc::bus_timeout: the bus did not confirm it. It may have been published, or be yet.
    using published = std::function<void(std::error_code, std::uint64_t number)>;

    /// Stored records, as read() found them.
    struct page {
        struct entry {
            std::uint64_t number = 0;
            std::chrono::system_clock::time_point time = {};
            std::string bytes = {};
        };
        std::error_code failed = {};     ///< If set, nothing else is.
        std::vector<entry> records = {}; ///< Oldest first; none: there is nothing after it.
        /// Whether none is missing between the number asked for and the first of them.
        bool whole = true;
    };

    virtual ~bus() = default;

    /// Begins to tell this sink, which outlives the time until detach(). Returns at once, also if
    /// the bus cannot be reached: then it is tried again and again. Throws if it can never work: no
    /// such folder, another process has it, a wrong password, a setting that loses messages. Called
    /// once.
    virtual void attach(sink& to, const history& kept) = 0;

    /// Stores these bytes, or only passes them on. `done` is called when that is certain, on any
    /// thread, perhaps during this call. While the bus is down, it is called with errc::bus_down
    /// after `patience` at the latest.
    virtual void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                         published done) = 0;

    /// Reads at most so many stored records of an epoch after a number, for a client that comes
    /// back with an older id than the server remembers; they may be ahead of what the sink was
    /// told. Of an epoch that is not kept there are none, and they are not whole. `done` is called
    /// once, on any thread.
    virtual void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
                      std::function<void(page)> done) = 0;

    /// Ends it. After its return the sink is not called any more; every `done` was called, with
    /// errc::stopped if it had to be. Any number of times.
    virtual void detach() noexcept = 0;
};

// >>redisbus //////////////////////////////////////////////////////////////////////////////////////
// Redis as the bus: for several servers, and for a history that survives their restarts. Where
// SSE_ENABLE_REDIS is defined; link with -lhiredis. Needs >>bus.
// Tests: tests/redis.cpp

#if defined(SSE_ENABLE_REDIS)

/// How a server uses Redis, from 6.2 on. There is no TLS in hiredis 0.14: for a Redis that is not
/// in a network of its own, put stunnel or another local proxy in between, and give its address.
struct redis_options {
    /// Each as host:port, or [address]:port. Tried in turn; a replica is skipped, so that after a
    /// failover the promoted one is found. At least one.
    std::vector<std::string> addresses = {"127.0.0.1:6379"};
    std::string user = {}; ///< Of Redis's access control list. Empty: the default user.
    std::string password = {};
    int database = 0; ///< 0 to 1,000,000. A channel has none: give each its own prefix.
    /// Before the names of the keys, `messages` and `epochs`, and of the channel, `passing`.
    std::string prefix = "sse:";
    /// Redis keeps at least so many of the newest messages, and not many more. From 1 to 10^12.
    std::uint64_t max_length = 100'000;
    /// For a connection, and for each response while it is set up. From 10 ms to a minute.
    std::chrono::milliseconds connect_timeout{2'000};
    /// A reader that heard nothing for so long looks whether its position is still there. 5 s more
    /// without a response, and the connection is taken for dead. From 10 ms to 10 s.
    std::chrono::milliseconds block{1'000};
    /// A message is published when so many replicas have it; else errc::bus_timeout. At most 100.
    unsigned wait_replicas = 0;
    std::chrono::milliseconds wait_time{500}; ///< How long they have. From 1 ms to a minute.
    /// Promises that a Redis that was restarted has all that it confirmed: it has `appendonly yes`
    /// and `appendfsync always`, which is checked, and no replica of it is ever promoted. Then a
    /// restart is not told to clients. Otherwise it is, as a gap `rewound`: what was lost, nobody
    /// knows. With one address only.
    bool keeps_all = false;
    /// What may wait to be sent; more gets errc::no_room. Each at least 1.
    std::size_t queue_messages = 65'536;
    std::size_t queue_bytes = std::size_t(64) * 1024 * 1024;
};

/// A bus for one server. Throws std::invalid_argument for an option that cannot work.
std::shared_ptr<bus> redis_bus(redis_options o);

#endif // SSE_ENABLE_REDIS

// >>files /////////////////////////////////////////////////////////////////////////////////////////
// A bus in the files of one machine: a history that survives a restart, without any server. Needs
// >>bus.
// Tests: tests/filelog.cpp

/// When a file_log forces what it wrote onto the disk. A program that ends, in whatever way, loses
/// nothing that was delivered; this is about a machine that goes down.
enum class file_sync : std::uint8_t {
    none,     ///< When a segment is full, and at the end. Else it is left to the system.
    interval, ///< Again and again while messages come. Does not delay them.
    each      ///< Before a message is delivered or confirmed. Those that wait share it.
};

struct file_log_options {
    file_sync sync = file_sync::interval;
    /// From a write to the disk, for file_sync::interval. 1 ms to 1 min.
    std::chrono::milliseconds interval{10};
    /// The log is a row of files of about this size, deleted one at a time. 4 KiB to 1 GiB.
    std::size_t segment_bytes = 64 * 1024 * 1024;
    /// Of all files. The oldest are deleted, never the one that is written. At least twice
    /// segment_bytes.
    std::uint64_t bytes = 1024 * 1024 * 1024;
    /// Files are deleted when all they hold is older. 0: never by age. At most ten years.
    std::chrono::milliseconds age{0};
    /// Of messages that wait to be written: beyond that, errc::no_room. 64 KiB to 1 GiB.
    std::size_t queue_bytes = 16 * 1024 * 1024;
};

/// A bus for one server in this folder, which is made if it is missing, readable by its owner and
/// group. Give it a folder of its own on a local disk. Throws std::invalid_argument if an option is
/// out of range; what is wrong with the folder is thrown by attach(), thus when the server starts.
///
/// After a restart the same epoch goes on. A new one, with a gap `rewound` for clients of the old
/// one, begins after the machine went down before all was on the disk (not with file_sync::each),
/// after the disk failed to take what it had been given, and if the folder is a copy, such as one
/// restored from a backup: then clients may have seen more than it holds. What cannot be noticed is
/// the snapshot of a whole file system or virtual machine: delete the folder when you go back to
/// one.
///
/// While the disk is full or fails, publishing gives errc::bus_refused, and works again once there
/// is room. A message of more than 256 MiB gives errc::bus_refused too. One that was refused can
/// come after a restart only if the disk also failed to take it back until the program ended.
std::shared_ptr<bus> file_log(std::string folder, file_log_options options = {});

// >>natsbus ///////////////////////////////////////////////////////////////////////////////////////
// NATS JetStream as the bus: for several servers, replicated if its servers are a cluster. Where
// SSE_ENABLE_NATS is defined; link with -lnats. Needs >>bus.
// Tests: tests/nats.cpp

#if defined(SSE_ENABLE_NATS)

/// Where the servers are, and the stream that keeps the messages. All servers that share topics
/// give the same `stream` and `prefix`.
struct nats_options {
    /// At least one, as `nats://host:port` or `tls://host:port`. Others of a cluster are learnt.
    std::vector<std::string> servers = {"nats://127.0.0.1:4222"};
    std::string user = {};        ///< With `password`; or
    std::string password = {};    ///< of `user`.
    std::string token = {};       ///< Instead of a user; or
    std::string credentials = {}; ///< a file of credentials (JWT and NKey).
    /// Its name: up to 200 letters, digits, `-` and `_`.
    std::string stream = "SSE";
    /// Stored messages go to the subject `<prefix>.log`, those that are not stored to
    /// `<prefix>.passing`, and `<prefix>.epoch` says which epochs there were. Up to 200 letters,
    /// digits, `-`, `_`, and single dots between them.
    std::string prefix = "sse";
    /// Whether to make the stream, as the next members say, if there is none. One that is there is
    /// left as it is: change its bounds with the tools of NATS.
    bool create = true;
    int replicas = 1;                       ///< 1, 3 or 5. One loses what its server loses.
    bool in_memory = false;                 ///< Instead of in files: lost when the servers stop.
    std::uint64_t max_messages = 1'000'000; ///< From 1,000; 0: no bound.
    std::uint64_t max_bytes = 0;            ///< From 1 MiB; reserved at once. 0: no bound.
    std::chrono::seconds max_age{0};        ///< From 60 s; 0: no bound.
    /// For each server that is tried; 10 ms to 60 s. attach() and detach() may take as long.
    std::chrono::milliseconds connect_timeout{2'000};
    /// Without a reply for so long a connection counts as dead; 100 ms to 60 s.
    std::chrono::milliseconds reply_timeout{5'000};
    /// How often it is checked whether the stream is still what has been read; 10 ms to 60 s.
    std::chrono::milliseconds check_interval{1'000};
    std::size_t max_pending = 65'536;                 ///< Messages that wait to be stored; from 1.
    std::size_t max_pending_bytes = 64 * 1024 * 1024; ///< And their bytes; from 64 KiB.
};

/// A bus for one server. Throws std::invalid_argument if a member is out of its range. attach()
/// throws std::runtime_error if a server can be reached, but refuses the user, has no JetStream, or
/// has a stream of that name which is another.
std::shared_ptr<bus> nats_bus(nats_options options);

#endif // SSE_ENABLE_NATS

// >>tls ///////////////////////////////////////////////////////////////////////////////////////////
// TLS: whom each end is to be, and whom it trusts. Where SSE_ENABLE_TLS is defined; link with -lssl
// -lcrypto. Needs >>error.
// Tests: tests/tls.cpp

#if defined(SSE_ENABLE_TLS)

enum class tls_version : std::uint8_t { tls_1_2, tls_1_3 };

/// A server with a certificate speaks https and nothing else. Every file is PEM, and is read by the
/// server's constructor, and again by server::reload_tls(). Not with proxy.protocol.
struct tls_options {
    /// The server's certificate, followed by those that lead to its CA. Empty: no TLS.
    std::string certificate = {};
    /// Its private key, without a password.
    std::string key = {};
    /// Clients that speak no such version are refused.
    tls_version oldest = tls_version::tls_1_2;
    /// The CAs of the clients that may connect; request::client_subject says who it is. Empty:
    /// clients are not asked for a certificate.
    std::string client_ca = {};
    /// With client_ca: a client without a certificate is served too.
    bool client_may_be_unknown = false;
    /// From accept to the end of the handshake; more than 0. It is part of timeouts.header.
    std::chrono::milliseconds handshake{10'000};
};

/// Whom a client trusts, for https URLs. Files are PEM.
struct client_tls_options {
    /// The CAs that are trusted instead of the system's, such as that of the company.
    std::string ca = {};
    /// The client's own certificate, for servers that ask for one, and its key.
    std::string certificate = {};
    std::string key = {};
    tls_version oldest = tls_version::tls_1_2;
    /// Talks to whoever answers, who may be anybody: for experiments alone.
    bool insecure_trust_anybody = false;
};

#endif

// >>options ///////////////////////////////////////////////////////////////////////////////////////
// Every setting with its default, and the counters. Needs >>message, >>request, >>cors,
// >>subscription, >>tls.
// Tests: tests/server.cpp

/// Where a trusted proxy writes the address of its client. Only one source is read: given several,
/// an attacker would use one that the proxy does not overwrite.
enum class forwarded_by : std::uint8_t {
    x_forwarded_for, ///< The usual one: a list, read from its end.
    forwarded,       ///< RFC 7239.
    x_real_ip,       ///< One address.
};

/// Serves one request of a route. Called on a worker's thread, which it must not block. The server
/// keeps the callable as long as it lives, so a lambda may capture.
using handler = std::function<asio::awaitable<void>(stream&)>;

/// What an authorize hook decides. There is none by default: a hook says grant() or refuse().
class access {
public:
    struct terms {
        std::vector<std::string> topics = {}; ///< To follow instead of those requested.
        std::string user =
            {}; ///< Also gets messages to this user. Must not come from client input.
        std::chrono::milliseconds valid_for{0}; ///< After this the stream ends. 0: never.
        std::vector<std::pair<std::string, std::string>> headers = {}; ///< Of the response.
    };

    /// Lets the request in.
    static access grant(terms t) { return {0, {}, std::move(t)}; }
    static access grant() { return grant(terms()); }

    /// Refuses it with this status, from 300 to 599, or 204, after which an EventSource does not
    /// come back. Throws std::invalid_argument for another.
    static access refuse(int status, std::string text = {},
                         std::vector<std::pair<std::string, std::string>> headers = {}) {
        if (status != 204 && (status < 300 || status > 599)) {
            throw std::invalid_argument("sse::access::refuse: the status must be 204, or from 300 "
                                        "to 599, not " +
                                        std::to_string(status));
        }
        terms t;
        t.headers = std::move(headers);
        return {status, std::move(text), std::move(t)};
    }

    bool granted() const noexcept { return status_ == 0; }

private:
    friend struct detail::connection;
    access(int status, std::string text, terms t)
        : status_(status), text_(std::move(text)), terms_(std::move(t)) {}

    int status_; // 0: it is granted
    std::string text_;
    terms terms_;
};

enum class log_level : std::uint8_t { debug, info, warning, error };

/// One event for the log. Views are valid during the call. `path` is as sent, but without the
/// query, so that secrets in it never reach a log.
struct log_entry {
    log_level level;
    std::string_view what; ///< "request", "stream closed", "refused", "handler failed" and others
    std::string_view method = {};
    std::string_view path = {};
    int status = 0;
    asio::ip::address client = {};
    /// The age of a stream. With "worker held": the least time that the worker's thread was
    /// blocked; reported from one second on, reliably from two.
    std::chrono::milliseconds duration{0};
    std::string_view detail = {}; ///< Why, if there is more to say.
};

/// An open stream, for listing, revoking and counting.
struct stream_info {
    std::uint64_t id = 0; ///< See stream::id().
    std::string user = {};
    std::vector<std::string> topics = {};
    asio::ip::address client = {};
    std::chrono::milliseconds age{0};
    sse::lag lag = {};
    std::string node = {}; ///< options::node of its server.
};

/// Which streams are listed: all, unless a member says less. Views, as those of a message: what
/// they refer to is copied before the call that takes them returns or suspends.
struct stream_filter {
    std::string_view user = {};  ///< Those of this user.
    std::string_view topic = {}; ///< Those that get what is published to this topic.
    bool here = false;           ///< With a bus: those of this server, and no other is asked.
};

/// The streams that server::streams() found.
struct stream_list : std::vector<stream_info> {
    using vector::vector;
    /// With a bus: servers that are there but have not told of all their streams in time.
    std::vector<std::string> missing = {};
    /// Whether all servers that are there have told of all their streams. Never within 2 s after
    /// this server has found the bus, or found it again: it does not know yet who is there.
    bool complete = true;
};

/// What a client over a connection limit gets.
enum class refusal : std::uint8_t {
    hard, ///< 503 or 429 with Retry-After. An EventSource gives up for good.
    soft, ///< Clients that accept event streams get 200, a jittered retry and the end: they return.
};

/// How long the server waits. Each is more than 0 unless it says otherwise.
struct timeout_options {
    /// From accept, or from the first byte of a later request, to the end of the head; then 408.
    std::chrono::milliseconds header{10'000};
    /// For a request's body; then 408.
    std::chrono::milliseconds body{30'000};
    /// A connection without a further request for this long is closed.
    std::chrono::milliseconds idle{60'000};
    /// A client that reads nothing for this long while bytes wait for it is disconnected.
    std::chrono::milliseconds stall{30'000};
    /// A stream ends at this age, or up to a tenth earlier, so that clients do not all reconnect at
    /// once. At most three weeks. 0: never.
    std::chrono::milliseconds stream_age{0};
    /// How long publish() and broadcast() wait for room in the ring before they throw. 0: they do
    /// not wait.
    std::chrono::milliseconds publish{1'000};
    /// How long handlers may continue after stop(); then their coroutines are destroyed. From 0.
    std::chrono::milliseconds shutdown{5'000};
};

/// What clients may use. Unless a member says otherwise, 0 means no limit.
struct limit_options {
    /// Open connections in total. Over it a stream gets 503; other requests are still served, one
    /// per connection, so that subscribers lock out neither publishers nor health checks. At most
    /// 256 connections are over a limit at a time; further ones are closed at once.
    std::size_t connections = 10'000;
    /// Open connections from one address, or one /64 of IPv6. Over it a stream gets 429; other
    /// requests are served as above.
    std::size_t connections_per_ip = 0;
    /// New connections per second from one address, and the largest burst; over it every request
    /// gets 429.
    std::size_t connect_rate_per_ip = 0;
    /// What clients over these limits get.
    refusal over = refusal::hard;
    /// When they may retry: Retry-After, or the shortest retry time of a soft refusal and of the
    /// streams that stop() ends. More than 0, at most a day.
    std::chrono::milliseconds retry_after{5'000};
    /// A larger request head gets 431 or 414. At least 256.
    std::size_t head_bytes = 16 * 1024;
    /// More header field lines get 431. At least 1.
    std::size_t header_lines = 100;
    /// A larger request body gets 413. 0: only empty ones are accepted.
    std::size_t body_bytes = 1024 * 1024;
    /// Topics that one request may name; more get 400. So do topics with more than four times as
    /// many path segments in total (or 32, if that is more): each costs memory. At least 1.
    std::size_t topics = 128;
    /// A client that is more than this many bytes of history behind, messages of other topics
    /// included, is treated as one that fell behind the history.
    std::size_t unsent_bytes = 0;
};

/// What is kept for clients that reconnect or are behind. Each worker keeps it once.
struct history_options {
    /// The same number again is kept of ephemeral messages, and of messages that are the newest of
    /// their key. At least 1.
    std::size_t messages = 16 * 1024;
    /// Bytes of these messages, with the same rule. At least 1.
    std::size_t bytes = 64 * 1024 * 1024;
    /// Messages older than this are forgotten. At most three weeks. 0: never by age.
    std::chrono::milliseconds age{0};
    /// Topics, each with all below it, that have bounds of their own. The nearest one applies.
    /// Fewer than 1,000.
    std::vector<topic_history> topics = {};
    /// What happens to a client that falls behind the history, unless its subscription decides.
    lag_policy lag = lag_policy::disconnect;
    /// With a bus: how many older messages one client is sent from there, if its id is older than
    /// what is kept here; a few clients at a time, the others wait. After that, a gap. 0: none.
    std::size_t from_bus = 100'000;
    /// The event that reports missed messages to a client. Not empty, without line breaks.
    std::string gap_event = "gap";
};

/// What is true of the proxy in front, if there is one.
struct proxy_options {
    /// Proxies whose forwarding headers are trusted: addresses, or CIDR blocks such as 10.0.0.0/8.
    std::vector<std::string> trusted = {};
    /// Which header field they use.
    forwarded_by forwarded = forwarded_by::x_forwarded_for;
    /// Every connection begins with a PROXY protocol header, version 1 or 2. It is accepted from
    /// `trusted`, or from every peer if that is empty: then nothing but the proxy may be able to
    /// reach the port.
    bool protocol = false;
};

/// What the program decides or learns. All are kept for as long as the server lives, so they may
/// capture, and are called on the server's threads, possibly on several at once.
struct hook_options {
    /// Decides who may open a stream of `<prefix>`, before its head is sent. For the program's own
    /// routes their handlers or their group's hook decide.
    std::function<asio::awaitable<access>(const request&)> authorize = {};
    /// Runs instead of the gap event, to send a snapshot; the topics' messages continue when it
    /// returns.
    std::function<asio::awaitable<void>(stream&, const gap&)> on_gap = {};
    /// A stream has begun, or has ended; each is called once per stream, on its worker's thread. An
    /// exception from on_connect ends the stream; on_disconnect must not throw.
    std::function<void(stream&)> on_connect = {};
    std::function<void(const stream_info&, end_reason)> on_disconnect = {};
    /// Receives log entries. Must not throw or block: each of these threads serves thousands of
    /// clients, and a pipe that nobody reads, or a slow disk, would stop them all. Pass the lines
    /// to a thread of your own through a bounded queue; hub_log.hpp among the examples has one to
    /// copy.
    std::function<void(const log_entry&)> log = {};
    /// Receives what a handler threw. Must not throw.
    std::function<void(std::exception_ptr)> on_error = {};
};

/// Every setting. Designated initializers follow the order of declaration, here and in each group:
///
///     sse::server server({.threads = 2,
///                         .limits = {.connections = 50'000},
///                         .history = {.messages = 1'000, .age = 10min},
///                         .hooks = {.authorize = check_token}});
///
/// A value out of range is refused by the server's constructor, with bad_option.
struct options {
    /// Where streams are: `<prefix>`, `<prefix>/` and `<prefix>/<topic>`.
    std::string prefix = "/subscribe";
    /// Path of the health check: 200, with the number of open streams. With /ready appended, it
    /// reports whether the server accepts more streams: 503 at limits.connections or while it is
    /// stopping; while draining it refuses new connections altogether. Not below the prefix. Empty:
    /// none.
    std::string health = "/health";
    /// Worker threads, each with its share of the clients; at most 1,024. 0: one per core.
    std::size_t threads = 0;
    /// A stream that was silent for this long gets a comment line. 0: never.
    std::chrono::milliseconds heartbeat{15'000};
    /// Heartbeats carry the newest id. A client that was sent nothing else then reconnects with a
    /// recent id: there is little history to search, and the history still reaches back to it.
    bool heartbeat_ids = true;
    /// How long a published message may wait for others, so that they share one write; the wait is
    /// shorter under load. At most a minute. 0: messages go out at once, along with all that were
    /// published in the meantime.
    std::chrono::milliseconds coalesce{0};
    /// Slots in the ring between publishers and workers; a power of two from 2 to 16,777,216.
    std::size_t ring_capacity = 16 * 1024;
    /// Messages for many clients go out through io_uring, if SSE_ENABLE_IO_URING is defined and the
    /// kernel allows it; otherwise, and whenever it refuses, through one send() per client.
    bool io_uring = true;
    timeout_options timeouts = {};
    limit_options limits = {};
    history_options history = {};
    /// Who may read from another origin. By default everyone.
    cors_options cors = {};
    /// Hosts that requests may name; others get 421. This keeps third-party pages whose DNS name
    /// resolves here from reading (DNS rebinding). "events.example", "*.example" for all names with
    /// this ending, or an address; the port does not matter. The host given to start() is served
    /// too. Empty: on a loopback address localhost, names ending in .localhost, and loopback
    /// addresses; otherwise any. "*": any. X-Forwarded-Host from a trusted proxy replaces Host.
    std::vector<std::string> hosts = {};
    proxy_options proxy = {};
#if defined(SSE_ENABLE_TLS)
    tls_options tls = {};
#endif
    /// What orders and keeps the messages, for several servers or over a restart: file_log(),
    /// redis_bus(), nats_bus(), or the program's own. It belongs to this server alone. Null: the
    /// server's own memory.
    std::shared_ptr<sse::bus> bus = {};
    /// What this server is called in listings, one of several with the same bus: at most 64
    /// printable characters of ASCII. Empty: eight that differ with each start.
    std::string node = {};
    hook_options hooks = {};
    /// SIGINT and SIGTERM call stop(). So does SIGHUP, which is sent when a terminal is closed,
    /// unless it is ignored or the program has taken it before start(), for example to reload its
    /// settings. Off by default: a library does not take signals unasked.
    bool handle_signals = false;
    /// Only with handle_signals: they call drain() with this window instead, and a second SIGINT or
    /// SIGTERM ends the program at once. At most a day. 0: stop() at once.
    std::chrono::milliseconds drain_window{0};
};

/// Settings for the routes of a group, and for the groups in it.
struct group_options {
    /// Who may read from another origin. Unset: as in the enclosing group.
    std::optional<cors_options> cors = {};
    /// Decides who may enter, before each handler and after the enclosing group's hook. The rest of
    /// what it returns applies to the stream. Kept for as long as the server lives, so it may
    /// capture.
    std::function<asio::awaitable<access>(const request&)> authorize = {};
    /// A larger request body gets 413. Unset: as in the enclosing group.
    std::optional<std::size_t> max_body_bytes = {};
    /// Requests and streams served at once, those of inner groups included; further ones get 503.
    /// 0: no limit.
    std::size_t max_requests = 0;
};

/// A snapshot of what happened, summed over the workers.
struct counters {
    std::uint64_t connections = 0; ///< Open now; this and streams are gauges.
    std::uint64_t streams = 0;     ///< Open event streams now.
    std::uint64_t accepted = 0;    ///< Connections accepted since the start.
    std::uint64_t refused = 0;     ///< Requests refused, or connections closed at once, by a limit.
    std::uint64_t accept_failures = 0; ///< Times accepting paused: file descriptors ran out.
    std::uint64_t published = 0;       ///< Messages that entered the ring.
    std::uint64_t no_room = 0;         ///< Attempts to publish into a full ring.
    std::uint64_t delivered = 0;       ///< Messages fully written to a client.
    std::uint64_t bytes = 0;           ///< Bytes written to clients, in all kinds of response.
    std::uint64_t lagged = 0;          ///< Streams ended because the client fell behind or stalled.
    std::uint64_t unreachable = 0;     ///< Connections whose peer the system gave up on.
    std::uint64_t tls_failures = 0;    ///< Connections that ended because of TLS; the log says why.
    std::uint64_t gaps = 0;            ///< Gaps reported to clients.
    std::uint64_t conflated = 0;       ///< Messages skipped for a newer one with the same key.
    std::array<std::uint64_t, end_reasons> ended = {}; ///< Streams, by end_reason.
};

/// What a server measures: counters, and what its workers are asked for.
struct measurements {
    sse::counters counters = {};
    std::size_t workers = 0;
    /// Open streams by how many messages they are behind, of all topics: none, up to 1, 10, 100,
    /// 1,000, 10,000, and more.
    static constexpr std::array<std::uint64_t, 6> lag_bounds{0, 1, 10, 100, 1'000, 10'000};
    std::array<std::uint64_t, lag_bounds.size() + 1> lag = {};
    std::uint64_t lag_sum = 0;
    std::size_t history_messages = 0; ///< The most that a worker keeps; they keep the same, once.
    std::size_t history_bytes = 0;
    std::size_t ring_capacity = 0;   ///< Messages.
    std::size_t ring_used = 0;       ///< Messages that a worker has yet to take.
    std::optional<bool> bus_up = {}; ///< Unset: there is no bus, or it was never reached.
};

/// How drain() disconnects the clients. Streams without a running handler end at random times
/// within the window, with a retry time and the farewell. A handler that writes a response or a
/// stream of its own has until the end of the window to return; it can ask stream::draining().
/// Whatever remains then is cut off.
struct drain_options {
    std::chrono::milliseconds window{5'000}; ///< Streams end spread over it; at most a day.
    std::optional<message> farewell = {}; ///< The last message of each stream that follows topics.
    /// When clients should reconnect: after this time or up to twice as much, at most a day. Unset:
    /// options::limits.retry_after.
    std::optional<std::chrono::milliseconds> retry = {};
};

/// What became of the streams.
struct drain_result {
    std::uint64_t closed = 0; ///< Streams that received everything, or all that their handler sent.
    std::uint64_t cut = 0;    ///< Those that had not when the window ended: no last chunk.
};

// >>stream ////////////////////////////////////////////////////////////////////////////////////////
// One client, as its handler sees it. Needs >>message, >>request, >>options.
// Tests: tests/handlers.cpp, tests/presence.cpp, tests/stream.cpp

/// One client's connection: its request and the response, plain or an event stream. A handler that
/// returns after subscribe() leaves a stream that lives on without a coroutine until the client
/// disconnects; the `stream&` is valid until the handler returns.
///
/// Thread safety: only the stream's own thread, where its handler runs; on another thread, calls
/// that change something or send throw std::system_error with errc::wrong_thread. A handler ends up
/// on another thread when it resumes on another executor, such as after
/// `co_await asio::post(asio::bind_executor(pool, asio::use_awaitable))`. Blocking work leaves the
/// handler on its thread in this form:
/// `auto rows = co_await asio::co_spawn(pool, query(x), asio::use_awaitable);`. What a handler
/// waits for belongs on get_executor(), or on a context that runs until the server has joined.
///
/// Cancellation: when the client disconnects, and when the server ends, the server cancels
/// (terminal) whatever the handler awaits, which then throws operation_aborted. A program may
/// cancel each awaited member too, terminal; what was to be sent may still be sent.
///
/// Errors of all members that send: errc::closed once the client has disconnected or the stream was
/// ended.
class stream {
public:
    using executor_type = asio::io_context::executor_type;

    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;

    /// The request. Only while the handler runs.
    const sse::request& request() const;

    /// The whole request body, by length or in chunks. Errors: errc::body_too_large,
    /// errc::bad_body, errc::body_timeout, errc::closed; if not handled, they become a response
    /// with 413, 400 or 408. Once a stream has begun: std::logic_error.
    asio::awaitable<std::string> body();

    /// The next piece of the body, of any size; empty at its end. For bodies that are processed as
    /// they arrive: options::timeouts.body applies to each piece. Errors: as body().
    asio::awaitable<std::string> body_some();

    /// Makes this an event stream now: its head is sent before the first message. Like a stream
    /// that begins with send(), it can end in a way that the client can tell from a broken
    /// connection: when the handler returns without having subscribed it, the last chunk is sent,
    /// and an HTTP/1.1 connection serves the next request. Errors: as send().
    void begin();

    /// Makes this an event stream that gets everything published to the topic or below it, and
    /// every broadcast. By default it continues after the last event ID that the client sent, else
    /// with what is published from now on; what can no longer be delivered is reported in one gap
    /// event. Subscribing to the same topic again changes nothing. For several topics call it
    /// several times, all before the first co_await; otherwise a later call may go back to an older
    /// id, and a client that reconnects meanwhile may receive duplicates. Errors: errc::bad_topic;
    /// errc::not_acceptable if the client does not accept event streams. After respond():
    /// std::logic_error.
    void subscribe(std::string_view topic, subscribe_options how = {});

    /// Unsubscribes. Returns false if it was not subscribed under exactly this topic.
    bool unsubscribe(std::string_view topic);

    /// Lets a subscription that was made with `held` continue, from the position that it fixed.
    /// What was sent in between, such as a snapshot, comes first: no loss and no duplicate.
    ///
    ///     client.subscribe("/prices", {.held = true});
    ///     co_await client.send({.event = "snapshot", .data = read_prices()});
    ///     client.resume();
    ///
    /// When the handler returns or throws, it continues on its own.
    void resume();

    /// Makes this an event stream and sends one message to this client alone; completes when the
    /// socket has taken it. The message is encoded before the call returns. Errors: those of
    /// `check`.
    asio::awaitable<void> send(const message& m);

    /// Several messages in one write, as far as the socket takes them.
    asio::awaitable<void> send(std::span<const message> several);

    /// The same without waiting. Returns false, and sends nothing, while earlier messages still
    /// wait for the client, and after it has disconnected. Throws the errors of `check`.
    bool try_send(const message& m);

    /// Waits, for up to half a millisecond longer than said. When the client disconnects this is
    /// cancelled, like all that the handler awaits. Only while the handler runs.
    asio::awaitable<void> sleep_for(std::chrono::nanoseconds time);

    /// Waits until the client has disconnected or the stream was ended. Only while the handler
    /// runs.
    asio::awaitable<void> closed();

    /// The handler is no longer cancelled when the client disconnects: open() then returns false,
    /// and send() throws errc::closed. The end of the server still cancels it. Only while the
    /// handler runs.
    void keep_running();

    /// Adds a header field to the response, before it begins. Throws std::invalid_argument for a
    /// name that is not a token, a value with a control character, and the fields that the server
    /// writes itself: Content-Length, Transfer-Encoding, Connection, Keep-Alive, Upgrade, Trailer,
    /// Date, Content-Type, Cache-Control, X-Accel-Buffering. Throws std::logic_error once the
    /// response has begun.
    void add_header(std::string_view name, std::string_view value);

    /// Responds with a whole body instead of a stream; the connection may serve further requests.
    /// After a response or a stream has begun: std::logic_error.
    asio::awaitable<void> respond(int status, std::string_view content_type, std::string_view body);

    /// Ends the stream once the client has everything meant for it. Does not wait for that.
    void close();

    /// For server::send_to() and others. Unique in its server, never 0. With a bus it names the
    /// server too, and is below 2^53, so that JSON can carry it.
    std::uint64_t id();

    /// Also delivers what server::send_to_user() sends to this user. Errors: errc::bad_key.
    void set_user(std::string_view key);
    std::string_view user() const noexcept;

    /// The topics that it is subscribed to.
    std::vector<std::string> topics() const;

    /// How far it is behind.
    sse::lag lag() const;

    /// What a listing reports about it.
    stream_info info();

    /// Ends the stream after this time; another call restarts the time. Throws
    /// std::invalid_argument for a time that is not positive or over three weeks.
    void end_after(std::chrono::milliseconds time);

    /// Whether the server is being drained. A handler that would never end should return then, so
    /// that its response is complete instead of being cut at the end of the window.
    bool draining() const noexcept;

    /// False once the client has disconnected or the stream was ended.
    bool open() const noexcept;

    executor_type get_executor() noexcept;

protected:
    stream() = default; // only as a detail::connection, which has all the state
    ~stream() = default;
};

// >>server ////////////////////////////////////////////////////////////////////////////////////////
// Routes, the life of a server, publishing, and who is there. Needs >>options, >>stream.
// Tests: tests/server.cpp

/// Adds routes to a group. Refers to its server.
class route_group {
public:
    /// Like server::route(), below the prefix; an empty pattern is the prefix itself.
    void route(std::string method, std::string pattern, handler run);

    /// A group inside this one.
    route_group group(std::string prefix, group_options o = {});

private:
    friend class server;
    route_group(server& s, detail::group& of) noexcept : server_(&s), group_(&of) {}

    server* server_;
    detail::group* group_;
};

#if defined(SSE_TESTING)
namespace testing {
class simulation;
}
#endif

/// An event-stream server with its own threads. A server runs once; several may run in one program.
///
/// Thread safety: any thread, including handlers, unless a member says otherwise. What comes before
/// the start, the start itself and the destructor belong to one thread.
///
/// Cancellation of what is awaited: terminal, unless a member says otherwise.
class server {
public:
    /// Throws std::invalid_argument for an option that cannot work.
    explicit server(sse::options o = {});

    /// Runs on contexts of the program instead of its own threads: one worker on each, whatever
    /// options::threads says. Each context must be run by one thread at a time, and must outlive
    /// the server. Its run() returns only after stop() and once all handlers have ended, whatever
    /// options::timeouts.shutdown says. Shared state lives until the contexts are destroyed.
    explicit server(asio::io_context& context, sse::options o = {});
    explicit server(std::span<asio::io_context* const> contexts, sse::options o = {});

    /// Stops and joins. Must not be called from a handler: its thread would wait for itself, so
    /// std::terminate is called. On contexts of the program, pending work ends when they are run,
    /// or with them.
    ~server();
    server(const server&) = delete;
    server& operator=(const server&) = delete;

    /// Serves a path of the program's own. Only before the server starts. A pattern is a path in
    /// which a segment `{name}` matches any one segment that is not empty (request::path_value),
    /// and a last segment `*` matches the whole rest (request::rest). It is compared with the
    /// decoded path, in which %2F is a slash. GET serves HEAD too. Earlier routes win, and all win
    /// over the built-in ones, which are `<prefix>`, `<prefix>/*`, `/health` and `/health/ready`.
    /// Over a limit of connections the handler still runs, but beginning a stream throws
    /// errc::over_limit. Throws std::invalid_argument, also for a route that an earlier one hides;
    /// std::logic_error after the start.
    void route(std::string method, std::string pattern, handler run);

    /// Serves paths that no route matches, with any method; without it they get 404. Only before
    /// the start.
    void fallback(handler run);

    /// Routes under a common prefix with rules of their own. Only before the start.
    route_group group(std::string prefix, group_options o = {});

    /// Listens on "127.0.0.1:8080", "[::1]:0", "localhost:8080" or ":8080" (every address; port 0:
    /// any free one) and returns at once. Throws std::invalid_argument for what is not an address,
    /// std::system_error if it cannot listen there, std::logic_error if it was started before.
    void start(const std::string& address);

    /// The same with a socket that is already listening. The server takes ownership of it, and
    /// child processes do not inherit it.
    void start(asio::ip::tcp::acceptor listener);

    /// The same without listening: for connections that adopt() brings.
    void start();

    /// Takes over a connection from which another server has begun to read: its socket, and
    /// everything read from it since the first byte of the request head. The head may be one
    /// rebuilt from a parsed request. The response closes the connection, since it does not return
    /// to the other server. All options apply to it, and child processes do not inherit it. Throws
    /// std::logic_error before start(), std::system_error if the socket cannot be taken over, or
    /// with errc::stopped; a socket passed as a handle then still belongs to the caller.
    void adopt(asio::ip::tcp::socket socket, std::string received);
    void adopt(asio::ip::tcp::socket::native_handle_type socket, std::string received);

    /// start() and join(): returns once the server has stopped.
    void serve(const std::string& address);
    void serve(asio::ip::tcp::acceptor listener);

    /// Ends the server: it accepts no more connections, writes what was published as far as the
    /// clients take it at once, cancels handlers and closes connections. Returns before that is
    /// done; join() waits. Any number of times; not from a signal handler.
    void stop() noexcept;

    /// Disconnects the clients, then stops. No more connections are accepted; publishing fails with
    /// errc::stopped at once; what was published before is delivered. The streams end one by one,
    /// at random within the window: each gets a reconnection time with jitter and the farewell, and
    /// its handler is cancelled. After the window, the remaining ones are cut. The farewell is
    /// encoded first. A second call waits for the first. Blocks until all is done and joined.
    /// Throws std::system_error (resource_deadlock_would_occur) on a thread of the server itself.
    drain_result drain(const drain_options& how = {});

    /// The same for coroutines. The server must outlive the wait. Cancellation: none.
    asio::awaitable<drain_result> async_drain(const drain_options& how = {});

    /// Waits for the end, at most options::timeouts.shutdown after stop(). Throws std::system_error
    /// (resource_deadlock_would_occur) on a thread of the server itself. Returns at once if the
    /// server has no threads of its own.
    void join();

    /// The address on which it listens. Throws std::logic_error if there is none (yet).
    asio::ip::tcp::endpoint endpoint() const;
    std::uint16_t port() const { return endpoint().port(); }

    /// Publishes to the subscribers of a topic and of its parents, by whole path segments: a
    /// subscriber of /pets gets /pets/cats, not /petshop. broadcast() reaches every subscriber. All
    /// messages are in one total order, which every client sees. The result is the position in it,
    /// from 1; it is also the last part of the message's id, unless the message has its own id or
    /// is ephemeral.
    ///
    /// Waits for room at most options::timeouts.publish, which happens only while a worker's thread
    /// is blocked, or a client that follows with lag_policy::hold_back is behind. Errors, thrown as
    /// std::system_error: errc::no_room, errc::stopped, errc::bad_topic, what `check` finds; then
    /// nothing was published. What is published while another thread calls stop() may reach nobody.
    /// A handler that publishes a lot should await async_publish: without a pause it delays the
    /// delivery of what it publishes.
    ///
    /// With a bus: returns the number that the bus gave the message, 0 for one that is ephemeral,
    /// once it is stored. It waits for that at most options::timeouts.publish, and throws
    /// errc::bus_down or bus_refused, nothing was published; or bus_timeout, it may have been.
    std::uint64_t publish(std::string_view topic, const message& m);
    std::uint64_t broadcast(const message& m);

    /// The same without waiting. The code is false if the message was published; with a bus, if it
    /// is on its way there, and a later failure is in the log.
    [[nodiscard]] std::error_code try_publish(std::string_view topic, const message& m);
    [[nodiscard]] std::error_code try_broadcast(const message& m);

    /// The same for coroutines (asio::awaitable on its default executor): suspends until there is
    /// room, or the bus has it. The message is encoded before the call returns. Once cancelled,
    /// nothing was published; with a bus it may have been.
    /// stop() ends the wait with errc::stopped. The server may be destroyed
    /// meanwhile; the coroutine's own context must not be.
    asio::awaitable<std::uint64_t> async_publish(std::string_view topic, const message& m);
    asio::awaitable<std::uint64_t> async_broadcast(const message& m);

    /// Publishes to one stream, by its stream::id(), in the same total order but without a message
    /// id; or to all streams of a user, with an id, so that clients that reconnect get what they
    /// missed. If there is no such stream, nobody gets it. Otherwise like publish(). Errors:
    /// errc::bad_key too.
    ///
    /// With a bus send_to() returns 0, and does not wait. A stream of another server gets it unless
    /// that is away from the bus just then; of what is published at the same time, either may come
    /// first.
    std::uint64_t send_to(std::uint64_t stream, const message& m);
    std::uint64_t send_to_user(std::string_view user, const message& m);

    /// The id of the newest message so far, or the one before the first. Call this, then take a
    /// snapshot, then open a stream with ?lastEventId= and this id: nothing is missed. With a bus,
    /// of the newest that came from it; empty while it has never been reached.
    std::string last_id() const;

    /// Calls `what` soon on the stream's own thread, unless the stream is gone by then, or of
    /// another server: to add topics, read its lag or close it. An exception from it ends that
    /// stream.
    void post_to(std::uint64_t stream, std::function<void(sse::stream&)> what);

    /// Ends one stream, or all of a user, or all for which the predicate is true, at once. Only
    /// authorize keeps their clients from reconnecting. The predicate is called on the server's
    /// threads, several at once.
    ///
    /// With a bus the first two end streams of other servers too, unless one is away from the bus
    /// just then. They do not wait for that; they throw errc::bus_down, no_room or stopped if the
    /// bus does not take it, after they have ended those of this server.
    void revoke(std::uint64_t stream);
    void revoke_user(std::string_view user);
    void revoke_if(std::function<bool(const stream_info&)> which);

    /// All open streams, each as it was at some moment during the call. streams() blocks: it throws
    /// std::system_error (resource_deadlock_would_occur) on a thread of the server itself. Errors:
    /// errc::bad_key, bad_topic.
    ///
    /// With a bus the other servers are asked, and waited for some 1 s: those that were heard of
    /// within the last 5 s and have not said that they end. Of a stream whose topics would fill 64
    /// KiB another server tells only the first ones.
    stream_list streams(const stream_filter& which = {}) const;
    asio::awaitable<stream_list> async_streams(const stream_filter& which = {}) const;

    sse::counters counters() const;

    /// The counters, and what each worker measures when it gets to it. Costs a worker some
    /// microseconds, and 0.1 ms for 10,000 streams.
    asio::awaitable<measurements> async_measure() const;

#if defined(SSE_ENABLE_TLS)
    /// Reads the files of options::tls again, or of other ones: who connects from now on gets the
    /// new certificate, open streams go on. Throws bad_option if something is wrong with them, and
    /// std::logic_error if the server speaks no TLS; then nothing changes. The time for the
    /// handshake stays.
    void reload_tls();
    void reload_tls(tls_options o);
#endif

private:
    friend class route_group;
#if defined(SSE_TESTING)
    friend class testing::simulation;
#endif

    using frame = detail::frame;
    using frame_ref = detail::frame_ref;

    static sse::options checked(sse::options o);
    static std::shared_ptr<detail::hub> make_hub(sse::options o,
                                                 std::span<asio::io_context* const> contexts);
    void add_route(detail::group& of, std::string method, const std::string& pattern, handler run);
    detail::group& add_group(detail::group& around, std::string prefix, group_options o);
    void add_builtin_routes();
    template <class... Where>
    void launch(Where&&... where);
    void attach_bus();
    void check_thread(const char* what) const;
    static asio::awaitable<void> serve_topics(detail::hub& hub, stream& s);
    static asio::awaitable<drain_result>
    wait_for_drain(std::shared_ptr<detail::hub> hub, std::shared_ptr<const detail::farewell> how);
    std::shared_ptr<detail::listing>
    ask_all(void (detail::worker::*what)(std::shared_ptr<detail::listing>),
            const stream_filter& which) const;
    static bool all_answered(const detail::hub& hub, detail::listing& all);
    static asio::awaitable<stream_list> wait_for(std::shared_ptr<detail::hub> hub,
                                                 std::shared_ptr<detail::listing> all);
    static asio::awaitable<measurements> measure(std::shared_ptr<detail::hub> hub,
                                                 std::shared_ptr<detail::listing> all);

    static std::error_code try_push(detail::hub& hub, frame_ref& f, std::uint64_t& sequence);
    std::uint64_t send(detail::frame_kind what, std::string_view topic, const message& m);
    std::error_code try_send(detail::frame_kind what, std::string_view topic, const message& m);
    asio::awaitable<std::uint64_t> async_send(detail::frame_kind what, std::string_view topic,
                                              const message& m);
    std::uint64_t push(frame_ref f);
    static asio::awaitable<std::uint64_t> async_push(std::shared_ptr<detail::hub> hub, frame_ref f);

    std::shared_ptr<detail::hub> hub_; // shared with coroutines that wait for room
    bool has_threads_ = true;          // of its own
    std::mutex joining_;
    std::vector<std::thread> threads_;
};

/// A handler that responds with a file of the program's own, such as its page. The file is read for
/// each request, on the worker's thread: it should be small and on a local disk. The content type
/// follows from the extension.
///
///     server.route("GET", "/", sse::file("page.html"));
SSE_DECL handler file(std::string path);

/// A handler that responds with what the server measures, in the text format of Prometheus, or as
/// OpenMetrics where the request accepts that. No name and no label comes from a request. Refers to
/// the server.
///
///     server.route("GET", "/metrics", sse::metrics(server));
SSE_DECL handler metrics(const server& of);

/// Where admin() is, and what its drain does.
struct admin_options {
    std::string prefix = "/admin";
    /// What a drain calls instead of server::async_drain(), for a program that has more to end. On
    /// the server's threads; must not block.
    std::function<void(std::chrono::milliseconds window)> drain = {};
};

/// Adds routes that tell who is there and end streams, for whom the guard admits; it is called for
/// each request, as group_options::authorize is. Pages of other origins are refused, so that none
/// can use a visitor's cookie; same origin means same host and port. Responses are JSON, errors
/// {"error":"..."}. Returns the group, for routes of the program's own behind the same guard. Only
/// before the start; refers to the server. Throws std::invalid_argument for a guard that is empty
/// and a prefix that is none.
///
///     sse::admin(server, [](const sse::request& r) -> asio::awaitable<sse::access> {
///         if (is_staff(r)) co_return sse::access::grant();
///         co_return sse::access::refuse(401);
///     });
///
///     GET    /admin/status          counters, lags, history, ring and bus, of this server
///     GET    /admin/streams         who is there, a page at a time, by id
///     GET    /admin/topics          what they follow, most streams first
///     GET    /admin/live            an event stream of all three: `status` each second, `streams`
///                                   and `topics` every other
///     DELETE /admin/streams/{id}    ends one stream
///     DELETE /admin/streams         ends those that the same query lists; it must name some
///     POST   /admin/drain           begins a drain of this server; ?window=SECONDS, 5 if not given
///
/// A query selects streams by ?user=, by ?topic= those that get what is published to it, by
/// ?follows= those that are subscribed to it under exactly this name, with ?here=1 those of this
/// server alone. ?limit= is from 1 to 1,000, 100 if not given; ?after= continues after the `next`
/// of the page before; with ?order=lag those furthest behind come first, without a next page. Names
/// that are unknown, given twice or empty get 400. With a bus a list is of all servers, as
/// server::streams() is, and takes up to 1 s: `missing` and `complete` are as there. 202 says that
/// streams have been told to end, `ending` how many; 503 that the bus did not take it for those of
/// other servers.
///
/// At most 32 of these requests are served at once, watchers of /admin/live included. A list costs
/// each worker what server::streams() does, however short the page is; the rest is done in steps.
SSE_DECL route_group admin(server& of, std::function<asio::awaitable<access>(const request&)> guard,
                           admin_options o = {});

/// A handler that responds with the page script, a JavaScript module without dependencies: one
/// event stream for all tabs of an origin, with headers of the page's own. Its types are in
/// examples/sse.d.ts. Browsers keep it, and ask each time whether it has changed.
///
///     server.route("GET", "/sse.js", sse::script());
SSE_DECL handler script();

// >>job ///////////////////////////////////////////////////////////////////////////////////////////
// Work that continues on its own while viewers attach, leave and resume by id. Each job has its own
// bounded log, apart from the history of a server. Needs >>message, >>stream.
// Tests: tests/jobs.cpp

struct job_options {
    /// Messages kept of each job for future viewers, and their bytes. A viewer that missed one is
    /// sent a gap event.
    std::size_t history = 4096;
    std::size_t history_bytes = 4 * 1024 * 1024;
    /// How long a finished job can still be viewed.
    std::chrono::milliseconds keep{600'000};
    /// Jobs at a time, kept ones included; those that finished first make room for new ones.
    std::size_t max_jobs = 10'000;
    /// The event that reports to a viewer what it missed.
    std::string gap_event = "gap";
};

/// The producer of a job. Thread safety: any thread. If it is destroyed before finish(), the job
/// ends with the event "abandoned", so that viewers do not wait forever.
class job {
public:
    job(job&&) noexcept = default;
    job& operator=(job&& other) noexcept {
        std::swap(name_, other.name_);
        std::swap(log_, other.log_);
        return *this;
    }
    ~job();

    const std::string& name() const noexcept { return name_; }

    /// Sends to all viewers, including future ones. A message replaces an older one with the same
    /// key for viewers that have not had that; an ephemeral one is only for viewers that are there
    /// now. Errors: errc::closed after finish(), what `check` finds; std::invalid_argument for a
    /// message with an id, since a job numbers its messages itself.
    void send(const message& m) { push(m, false); }

    /// The last message. Errors: as send().
    void finish(const message& last = {.event = "done"}) { push(last, true); }

    /// How many streams view it now. None is no reason to end: a viewer that left may come back.
    std::size_t viewers() const noexcept;

    /// Whether jobs::stop() was called: whoever wanted the job does not any more. The producer ends
    /// it as it sees fit, such as by finish({.event = "stopped"}).
    bool stop_requested() const noexcept;

    /// Waits for that. The job may be destroyed meanwhile; then it waits until it is cancelled.
    /// Cancellation: terminal.
    asio::awaitable<void> async_stop_requested() const { return wait_for_stop(log_); }

private:
    friend class jobs;
    static asio::awaitable<void> wait_for_stop(std::shared_ptr<detail::job_log> log);
    job(std::string name, std::shared_ptr<detail::job_log> log) noexcept
        : name_(std::move(name)), log_(std::move(log)) {}

    void push(const message& m, bool last);

    std::string name_;
    std::shared_ptr<detail::job_log> log_;
};

/// Jobs by name.
///
///     sse::jobs jobs;
///     server.route("GET", "/jobs/{id}", [&](sse::stream& s) {
///         return jobs.serve(s, s.request().path_value("id"));
///     });
///     sse::job job = jobs.start("42"); // then, on any thread: job.send(...), job.finish()
///
/// Thread safety: any thread. Independent of servers; what serve() returns does not refer to it.
class jobs {
public:
    /// Throws std::invalid_argument for an option that cannot work.
    explicit jobs(job_options o = {});

    /// Errors: errc::job_exists, errc::too_many_jobs.
    job start(std::string name);

    /// Asks the job's producer to stop, which is not the same as a viewer that leaves. Returns
    /// false if no job of this name runs. Any number of times.
    bool stop(std::string_view name) const;

    /// Whether the job runs or is still kept.
    bool known(std::string_view name) const { return find(name) != nullptr; }

    /// The name of the job that gave a message this id, while it runs or is kept; empty if there is
    /// none. For one address at which the viewers of all jobs resume by their Last-Event-ID.
    std::string name_of(std::string_view id) const;

    /// Serves a viewer until it leaves or has had the last message. It begins after the id with
    /// which the viewer reconnects, or else with the oldest message kept; a gap event reports what
    /// is lost. A viewer that has had the last message gets 204, which stops an EventSource from
    /// reconnecting. For an unknown job the response is 404.
    asio::awaitable<void> serve(stream& s, std::string_view name) const {
        return serve_log(s, find(name));
    }

private:
    using log_ref = std::shared_ptr<detail::job_log>;

    log_ref find(std::string_view name) const;
    bool is_over(const detail::job_log& log) const;
    static asio::awaitable<void> serve_log(stream& s, log_ref log);
    static asio::awaitable<void> tell(stream& s, const detail::job_log& log, gap g,
                                      std::uint64_t place);

    const job_options options_;
    mutable std::mutex mutex_;
    std::map<std::string, log_ref, std::less<>> logs_;
};

// >>client ////////////////////////////////////////////////////////////////////////////////////////
// An event source for programs (WHATWG HTML 9.2.3, RFC 9112, RFC 9110, redirects by the Fetch
// standard). Uses nothing of the server. Needs >>event.
// Tests: tests/client.cpp

struct client_options {
    std::string method = "GET"; ///< Any but HEAD and CONNECT, whose responses have no body.
    /// Added to each request. An Accept here replaces the client's own. After a redirect to another
    /// origin, only Accept, Accept-Language and User-Agent are sent.
    std::vector<std::pair<std::string, std::string>> headers = {};
    /// Returns headers for one connection, which replace those of the same name above: for a token
    /// that expires. Awaited before each connection, with 0; and once more, with 401, if the
    /// response was 401. If it throws, next() throws the same and the client is over. It is not
    /// cancelled: a next() that is given up does not wait for it.
    std::function<asio::awaitable<std::vector<std::pair<std::string, std::string>>>(int status)>
        fresh_headers = {};
    std::string body = {};
    /// Sends all headers and the body wherever a redirect leads. Otherwise another origin gets no
    /// body, and a 307 or 308 that would send it there is thrown as errc::bad_status. A different
    /// host, or a different port of the same host, is another origin. From https to http nothing
    /// of it is ever sent.
    bool trust_redirects = false;
    /// Resumes after this id. An id that a header field cannot carry is not sent: one with a
    /// control character, with a space or tab at either end, or over 4 KiB. The same holds for ids
    /// that a server gives: the client then reconnects without one, and starts where the server
    /// lets it.
    std::string last_event_id = {};
    /// Whether it connects again after a stream has ended or failed. If not set, GET does; other
    /// methods do not, since what they do would be done twice.
    std::optional<bool> reconnect = {};
    /// Resumes a stream after its last event ID by this method, without a body: "GET", where a POST
    /// makes a call whose stream can be resumed, as in MCP until 2025-11-25. What it calls is
    /// called once: it reconnects, unless `reconnect` is false, as soon as it has an id, and never
    /// before. With a last_event_id it begins by it. Empty: it resumes by the same request.
    std::string resume_method = {};
    std::chrono::milliseconds retry{3'000};      ///< Wait before reconnecting; a server may set it.
    std::chrono::milliseconds max_retry{60'000}; ///< Failures in a row double the wait, up to this.
    double jitter = 0.25; ///< Up to this fraction of the wait is added to it, at random.
    /// Failed connections in a row after which the last error is thrown. 0: it never gives up. A
    /// stream counts as failed too if it ends before its first event, unless it was open for longer
    /// than the wait before it. With the waits above, 5 attempts last 45 s, 10 last 5.5 minutes,
    /// and each further minute takes one more. Jitter adds up to a quarter, and the attempts
    /// themselves take time, up to the timeouts below.
    std::size_t max_attempts = 0;
    /// Statuses that count as a failed connection, so that the client survives a deployment or a
    /// full server. Each from 400 to 599. All others, except 200, 204 and redirects, are thrown at
    /// once and end the client; a browser's EventSource ends at these too, as the client does with
    /// {} here.
    std::vector<int> retry_statuses = {429, 502, 503, 504};
    /// A response with one of these statuses may give the minimum wait in Retry-After. More than
    /// this counts as this.
    std::chrono::milliseconds max_retry_after{3'600'000};
    /// To resolve the name, then for each of its addresses, of which the next one is tried in
    /// parallel after 250 ms, and for the handshake of TLS. 0: none.
    std::chrono::milliseconds connect_timeout{10'000};
    std::chrono::milliseconds head_timeout{30'000}; ///< From the request to the response's head.
    std::chrono::milliseconds silence_timeout{0};   ///< Without a byte of the stream. 0: none.
    std::size_t max_redirects = 20;                 ///< The Fetch standard's limit.
    std::size_t max_event = 16 * 1024 * 1024;       ///< Data, type and id of one event, in bytes.
    std::size_t max_head_bytes = 64 * 1024;         ///< Of a response, including any 1xx before it.
#if defined(SSE_ENABLE_TLS)
    client_tls_options tls = {};
#endif
};

/// Receives events: connects, follows redirects, and reconnects after the last event as an
/// EventSource does, waiting longer after each failure. Everything happens inside next(); between
/// its calls the connection stays open, and the system buffers what arrives. Only the work of a
/// call that was given up continues: it connects, or reads until it has one event, which the next
/// call returns.
///
///     sse::client source(io, "http://localhost:8080/subscribe/prices");
///     for (;;) {
///         const auto event = co_await source.next();
///         if (!event) break;
///         std::cout << event->data << '\n';
///     }
///
/// 200 with text/event-stream opens a stream; 204 ends the client for good; every other response is
/// thrown, at once or, for client_options::retry_statuses, after max_attempts.
///
/// Host names are resolved by the system on threads of the library, up to 16 per process; neither
/// io_context::run() nor a destructor waits for these. `localhost` and addresses need none. The
/// client may be destroyed after its io_context.
/// Thread safety: the client, its executor and the coroutine that awaits next() belong to one
/// thread or strand.
class client {
public:
    /// The URL is http://host[:port]/path?query, or https:// where SSE_ENABLE_TLS is defined; a
    /// fragment is dropped. Throws std::invalid_argument for any other URL, and for options that
    /// cannot work, such as a header with a line break: here and not in next(), since no attempt
    /// could succeed. If the URL comes from outside the program, construct the client inside the
    /// coroutine, in the try block around next():
    ///
    ///     try {
    ///         sse::client source(here, url);
    ///         for (;;) {
    ///             const auto event = co_await source.next();
    ///             ...
    ///         }
    ///     } catch (const std::exception& e) { // invalid_argument, system_error
    ///         std::cerr << e.what() << '\n';
    ///     }
    client(asio::any_io_executor where, const std::string& url, client_options o);
    // Not a default argument: g++ 11 and 12 cannot have one in the same expression as co_await.
    client(asio::any_io_executor where, const std::string& url);

    template <class Context>
    requires std::is_convertible_v<Context&, asio::execution_context&>
    client(Context& where, const std::string& url, client_options o = {})
        : client(asio::any_io_executor(where.get_executor()), url, std::move(o)) {}

    /// Closes the client. A waiting next() ends as with close().
    ~client();
    client(client&& other) noexcept = default;
    client& operator=(client&& other) noexcept {
        client before(std::move(other));
        std::swap(core_, before.core_);
        return *this;
    }

    /// Returns the next event, or nullopt if the client is over for good: after 204, close(), the
    /// end of a body without reconnecting, or a call that threw. One call at a time.
    ///
    /// Throws std::system_error, after which the client is over: errc::bad_status,
    /// errc::bad_content_type, errc::too_many_redirects, errc::event_too_large, errc::bad_response
    /// for a coding that was not asked for, errc::bad_certificate; and, if it does not reconnect or
    /// has given up: errc::bad_response, errc::timed_out, errc::tls_failed and network errors.
    /// Throws std::logic_error for a second call while one is waiting.
    ///
    /// Cancellation: in every phase, by throwing operation_aborted. After a terminal one the client
    /// is over; after a total or partial one, if the coroutine lets them through, the next call
    /// continues where this one stopped, and no event is lost. Asio's operators, as in `next() ||
    /// wait`, send a terminal one: use next_for() instead.
    asio::awaitable<std::optional<event>> next();

    /// Like next(), but waits at most this long. Returns nullopt if no event came within this time,
    /// which loses and interrupts nothing: the next call continues. Also nullopt if the client is
    /// over; over() tells the two apart.
    asio::awaitable<std::optional<event>> next_for(std::chrono::milliseconds time);

    /// Whether next() can return no further event.
    bool over() const noexcept;

    /// Ends the client for good; a waiting next() returns nullopt.
    void close();

    /// The status of the last response; 0 before the first.
    int status() const noexcept;
    /// The body of a response that was not an event stream, at most 64 KiB of it.
    const std::string& error_body() const noexcept;
    /// The first field of this name in the last response; valid until the next response.
    std::optional<std::string_view> header(std::string_view name) const noexcept;
    /// The id after which a reconnection resumes; store it to resume in another process.
    const std::string& last_event_id() const noexcept;
    /// The URL of the last response, after redirects. A reconnection begins after the permanent
    /// ones, 301 and 308, and follows the others again.
    std::string_view url() const noexcept;
    /// Event streams opened so far.
    std::uint64_t connections() const noexcept;

private:
    std::shared_ptr<detail::client_core> core_;
};

// >>testing ///////////////////////////////////////////////////////////////////////////////////////
// The test kit: a real server in a unit test, without sockets, ports, threads or sleeps. The test
// plays the clients, reads what they get as values, and moves the clock. Only with SSE_TESTING,
// which all files of the test program define that include this header. Needs >>event, >>server.
// Tests: tests/testing.cpp

#if defined(SSE_TESTING)

namespace testing {

/// What a client requests. Unless `headers` has them, it sends Host: localhost, and
/// Content-Length for a body.
struct client_request {
    std::string method = "GET";
    std::string target = "/"; ///< As it is sent: percent-encoded, with the query.
    std::vector<std::pair<std::string, std::string>> headers = {};
    std::string body = {};
    std::string last_event_id = {}; ///< Unless empty: the header Last-Event-ID.
    asio::ip::address address = asio::ip::address_v4::loopback(); ///< Whence it comes.
};

/// What has become of a response.
enum class outcome : std::uint8_t {
    open,     ///< It has not begun, or goes on.
    complete, ///< The client can tell that it has all of it.
    closed,   ///< The connection ended first. So end streams that are subscribed to a topic.
};

/// A client of a simulation, with its one request. Each member that tells something first lets the
/// simulation settle. Of an event stream it reads 1 MiB each time; what sends more than that waits,
/// as for any client. Movable; its destructor leaves.
///
/// Thread safety: the simulation's thread, outside handlers. Not used after the simulation, but for
/// its destructor.
class client {
public:
    client(client&& other) noexcept;
    client& operator=(client&& other) noexcept;
    ~client();

    /// The oldest event that was not returned yet, as an EventSource would dispatch it; nullopt if
    /// none has come, and none comes without a further step of the test.
    std::optional<event> next();
    /// All that have come.
    std::vector<event> events();
    /// The comments that were not returned yet, without colon and space. Heartbeats are such; an
    /// empty one begins each stream.
    std::vector<std::string> comments();
    /// The last reconnection time that it was sent.
    std::optional<std::chrono::milliseconds> retry();
    /// That of the last event that has come: what reconnect() resumes after.
    std::string last_event_id();

    /// Of the response; 0 before it has begun.
    int status();
    /// The first field of this name, ignoring case.
    std::optional<std::string> header(std::string_view name);
    /// The body so far, without the framing of its chunks; of an event stream too.
    const std::string& body();
    outcome state();

    /// It closes the connection, as a page that is closed.
    void leave();
    /// It vanishes: the connection is reset.
    void reset();
    /// It closes its sending side, and reads on.
    void half_close();
    /// From now on it takes this many bytes, then none: what is sent waits in the server. That it
    /// has fallen behind the history is noticed within half a second of the clock.
    void stop_reading(std::size_t bytes = 0);
    void read_on();
    /// Leaves, and requests the same again, with last_event_id() if there is one; at once, where an
    /// EventSource would wait retry(). Status and body are those of the new response; events that
    /// were not returned yet remain.
    void reconnect();
    /// Sends these bytes as they are: the rest of a body, or noise.
    void write(std::string_view bytes);

private:
    friend class simulation;
    struct link;
    explicit client(std::unique_ptr<link> l) noexcept;
    std::unique_ptr<link> link_;
};

/// A server whose clients and whose clock belong to a test: the code that serves them is the same
/// as over sockets.
///
///     sse::testing::simulation world;
///     world.server().route("GET", "/count", count);
///     sse::testing::client ann = world.get("/count");
///     CHECK(ann.next()->data == "1");
///     world.advance(100ms);
///     CHECK(ann.next()->data == "2");
///
/// The clock stands still but for advance() and await(). By it go stream::sleep_for(),
/// stream::end_after(), access::grant(), heartbeats, every timeout, ages of the history and of
/// jobs, and start::since(). Not by it: timers that the program makes, sse::client, a bus,
/// options::timeouts.publish, the field Date.
///
/// Of the options these do not apply: threads, io_uring, handle_signals, proxy.protocol, tls. A
/// limit on hosts does, see client_request. Calls of the server that block would wait for the test
/// itself: await() the others.
///
/// Thread safety: the thread that made it, outside handlers; what handlers call is as always. A
/// thread has one simulation at a time, others have theirs; servers with threads of their own are
/// not affected.
class simulation {
public:
    /// Throws std::invalid_argument for an option that cannot work; std::logic_error if the thread
    /// has a simulation.
    explicit simulation(options o = {});

    /// Stops the server, lets its handlers end, and moves the clock by options::timeouts.shutdown.
    /// Work on other threads that a handler awaits has as much of real time.
    ~simulation();
    simulation(const simulation&) = delete;
    simulation& operator=(const simulation&) = delete;

    /// The server, for routes and to publish. It starts with the first client. What is published
    /// reaches clients when the simulation settles; by then there must be room for it in the ring.
    sse::server& server() noexcept;

    /// Where everything runs; for timers and coroutines of the test's own.
    asio::io_context& context() noexcept;

    /// A client connects and sends its request.
    client open(client_request r);
    client get(std::string target); ///< The same with GET, and nothing else.

    /// Runs what can run without a step of the test: handlers go on until they wait for a client,
    /// the clock or another thread. Throws std::runtime_error if they do not come to rest, such as
    /// one that posts to itself for ever.
    void settle();

    /// Moves the clock by this much. What falls due on the way happens at its time, in order, and
    /// everything settles before the clock moves on. Throws std::invalid_argument for a negative
    /// time.
    void advance(std::chrono::nanoseconds time);

    /// How far the clock has been moved.
    std::chrono::nanoseconds elapsed() const noexcept;

    /// Settles, and then moves the clock, up to `within`, until the condition is true. If it is not
    /// by then, waits for it in real time, up to `real`: for what other threads do. Returns what it
    /// is in the end.
    bool run_until(const std::function<bool()>& condition, std::chrono::nanoseconds within = {},
                   std::chrono::milliseconds real = {});

    /// Runs a coroutine on the context, and returns or throws what it does. Moves the clock, and
    /// waits for other threads, as run_until() does. Throws std::runtime_error if it has not ended
    /// by then; it goes on.
    ///
    ///     auto here = world.await(world.server().async_streams());
    template <class T>
    T await(asio::awaitable<T> work, std::chrono::nanoseconds within = {},
            std::chrono::milliseconds real = std::chrono::seconds(10));

    /// What handlers and hooks have thrown since the last call, oldest first, as
    /// options::hooks.on_error gets it.
    std::vector<std::exception_ptr> take_failures();
    /// Throws the oldest of them, and takes only that; returns if there is none.
    void rethrow_failure();

private:
    friend class client;
    struct world;
    [[noreturn]] static void give_up();
    std::unique_ptr<world> world_;
};

template <class T>
T simulation::await(asio::awaitable<T> work, std::chrono::nanoseconds within,
                    std::chrono::milliseconds real) {
    struct result {
        bool ended = false;
        std::exception_ptr failure;
        std::conditional_t<std::is_void_v<T>, char, T> value{};
    };
    const auto made = std::make_shared<result>();
    if constexpr (std::is_void_v<T>) {
        asio::co_spawn(context(), std::move(work), [made](std::exception_ptr failure) {
            made->failure = failure;
            made->ended = true;
        });
    } else {
        asio::co_spawn(context(), std::move(work), [made](std::exception_ptr failure, T value) {
            made->failure = failure;
            made->value = std::move(value);
            made->ended = true;
        });
    }
    if (!run_until([&] { return made->ended; }, within, real)) give_up();
    if (made->failure) std::rethrow_exception(made->failure);
    if constexpr (!std::is_void_v<T>) return std::move(made->value);
}

} // namespace testing

#endif // SSE_TESTING

#if defined(SSE_BODIES) || defined(SSE_INTERNALS)

////////////////////////////////////////////////////////////////////////////////////////////////////
// The machine room: how it works. A section uses only what is above it.
////////////////////////////////////////////////////////////////////////////////////////////////////

// >>system ////////////////////////////////////////////////////////////////////////////////////////
// What compilers, operating systems and versions of Asio do differently.
// Tests: tests/header_alone.cpp

namespace detail {

#if defined(__GNUC__) && defined(__x86_64__)
// The builtin fetches the line for reading, unless -march promises prefetchw. Every x86-64 executes
// prefetchw, the oldest ones as a no-op.
inline void fetch_to_write(const void* at) noexcept {
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(at)));
}
inline void pause() noexcept { asm volatile("pause"); }
#elif defined(__GNUC__)
inline void fetch_to_write(const void* at) noexcept { __builtin_prefetch(at, 1); }
inline void pause() noexcept { asm volatile(""); }
#else
inline void fetch_to_write(const void*) noexcept {}
inline void pause() noexcept {}
#endif

#if defined(SSE_ENABLE_IO_URING)

/// Sends the same bytes to many sockets in one system call, which saves a trip into the kernel and
/// back for each of them. In measurements, ring flags and registered files gained nothing more;
/// without them it works on any thread, from Linux 5.7 on.
class send_ring {
public:
    static constexpr std::size_t max_sends = 64; // more at once gained nothing
    using handle = int;

    explicit send_ring(bool wanted) noexcept {
        if (!wanted) return;
        const int status = io_uring_queue_init(max_sends, &ring_, 0);
        open_ = status == 0;
        if (!open_) {
            refuse(status);
        } else if ((ring_.features & IORING_FEAT_FAST_POLL) == 0) { // Linux 5.6 or before
            refuse(-ENOSYS);
        }
    }
    ~send_ring() {
        if (open_) io_uring_queue_exit(&ring_);
    }
    send_ring(const send_ring&) = delete;
    send_ring& operator=(const send_ring&) = delete;

    bool is_open() const noexcept { return open_; }
    /// Why the kernel refused io_uring, at the start or later. Reported once.
    std::error_code take_refusal() noexcept { return std::exchange(refusal_, {}); }

    /// Sets in `taken` how many bytes each of at most max_sends sockets took at once; 0 on failure.
    void send(std::span<const int> sockets, std::string_view bytes,
              std::span<std::size_t> taken) noexcept {
        for (std::size_t i = 0; i < sockets.size(); ++i) {
            io_uring_sqe* const one = io_uring_get_sqe(&ring_); // not null: the ring is empty
            io_uring_prep_send(one, sockets[i], bytes.data(), bytes.size(),
                               MSG_NOSIGNAL | MSG_DONTWAIT);
            one->user_data = i;
            taken[i] = 0;
        }
        // A send that must not wait has its result once it is submitted. So none is under way when
        // a call returns, and a socket without a result, after a failure, has been sent nothing.
        for (std::size_t missing = sockets.size(); missing > 0;) {
            const int status = io_uring_submit_and_wait(&ring_, static_cast<unsigned>(missing));
            std::array<io_uring_cqe*, max_sends> results;
            const unsigned count = io_uring_peek_batch_cqe(&ring_, results.data(), max_sends);
            for (unsigned i = 0; i < count; ++i) {
                const int result = results[i]->res;
                if (result > 0) taken[results[i]->user_data] = static_cast<std::size_t>(result);
            }
            io_uring_cq_advance(&ring_, count);
            missing -= count;
            if (missing > 0 && status < 0 && status != -EINTR) return refuse(status);
        }
    }

private:
    void refuse(int status) noexcept {
        refusal_ = std::error_code(-status, std::system_category());
        if (std::exchange(open_, false)) io_uring_queue_exit(&ring_);
    }

    io_uring ring_{};
    bool open_ = false;
    std::error_code refusal_;
};

#else

/// Stands in where io_uring is not built in.
class send_ring {
public:
    static constexpr std::size_t max_sends = 64;
    struct handle { // made from whatever a socket is on this system
        handle() = default;
        template <class T>
        handle(const T&) noexcept {}
    };
    explicit send_ring(bool) noexcept {}
    static constexpr bool is_open() noexcept { return false; }
    static std::error_code take_refusal() noexcept { return {}; }
    template <class Sockets>
    static void send(const Sockets&, std::string_view, std::span<std::size_t>) noexcept {}
};

#endif

// --- sockets that are not inherited by programs that this one starts: such a program would keep
// the port in use after this one ends, and keep open connections whose clients wait for their end

/// For systems where the flag cannot be given when the descriptor is made.
inline void close_on_exec(asio::ip::tcp::socket::native_handle_type socket) noexcept {
#if defined(_WIN32)
    const SOCKET descriptor = socket; // Asio's type is a class there
    ::SetHandleInformation(reinterpret_cast<HANDLE>(descriptor), HANDLE_FLAG_INHERIT, 0);
#else
    ::fcntl(socket, F_SETFD, FD_CLOEXEC);
#endif
}

#if defined(__linux__)
/// Gives the descriptor to the socket, or closes it on failure.
template <class Socket>
void assign_socket(Socket& to, const asio::ip::tcp& protocol, int made, asio::error_code& failed) {
    try {
        to.assign(protocol, made, failed);
    } catch (...) { // out of memory
        ::close(made);
        throw;
    }
    if (failed) ::close(made);
}
#endif

/// Opens an acceptor or a socket that is closed on exec.
template <class Socket>
void open_socket(Socket& socket, const asio::ip::tcp& protocol, asio::error_code& failed) {
#if defined(__linux__) // Asio has no flag for it, and another thread may start a program in between
    const int made =
        ::socket(protocol.family(), protocol.type() | SOCK_CLOEXEC, protocol.protocol());
    failed =
        made < 0 ? asio::error_code(errno, asio::error::get_system_category()) : asio::error_code();
    if (!failed) assign_socket(socket, protocol, made, failed);
#else
    socket.open(protocol, failed);
    if (!failed) close_on_exec(socket.native_handle());
#endif
}

/// Accepts the next connection into `to`, which is not open.
template <class Acceptor, class Socket>
void accept_socket(Acceptor& from, Socket& to, asio::ip::tcp::endpoint& peer,
                   asio::error_code& failed) {
#if defined(__linux__)
    auto size = static_cast<socklen_t>(peer.capacity());
    const int made = ::accept4(from.native_handle(), peer.data(), &size, SOCK_CLOEXEC);
    failed =
        made < 0 ? asio::error_code(errno, asio::error::get_system_category()) : asio::error_code();
    if (failed) return;
    peer.resize(size);
    assign_socket(to, peer.protocol(), made, failed);
#else
    from.accept(to, peer, failed);
    if (!failed) close_on_exec(to.native_handle());
#endif
}

/// Opens a file for reading. Returns nullptr if that fails.
inline std::unique_ptr<std::FILE, int (*)(std::FILE*)> open_file(const std::string& path) {
#if defined(_WIN32)
    return {std::fopen(path.c_str(), "rbN"), &std::fclose};
#else
    return {std::fopen(path.c_str(), "rbe"), &std::fclose};
#endif
}

/// Whether the operation would block or was interrupted: not a failure of the socket.
inline bool would_block(const asio::error_code& code) noexcept {
    return code == asio::error::would_block || code == asio::error::try_again ||
           code == asio::error::interrupted;
}

#if defined(SSE_ENABLE_TLS)

// --- what a socket takes and gives at once, for a library that asks for bytes itself

using socket_handle = asio::ip::tcp::socket::native_handle_type;

inline std::size_t send_now(socket_handle socket, std::string_view bytes,
                            asio::error_code& failed) noexcept {
#if defined(_WIN32)
    const auto n = ::send(socket, bytes.data(), static_cast<int>(bytes.size()), 0);
    if (n < 0) failed.assign(::WSAGetLastError(), asio::error::get_system_category());
#else
#if defined(MSG_NOSIGNAL)
    constexpr int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
    constexpr int flags = MSG_DONTWAIT; // Asio has turned SIGPIPE off for the socket
#endif
    const auto n = ::send(socket, bytes.data(), bytes.size(), flags);
    if (n < 0) failed.assign(errno, asio::error::get_system_category());
#endif
    return n < 0 ? 0 : static_cast<std::size_t>(n);
}

/// Returns 0 without a failure at the end.
inline std::size_t receive_now(socket_handle socket, std::span<char> to,
                               asio::error_code& failed) noexcept {
    failed = {};
#if defined(_WIN32)
    const auto n = ::recv(socket, to.data(), static_cast<int>(to.size()), 0);
    if (n < 0) failed.assign(::WSAGetLastError(), asio::error::get_system_category());
#else
    const auto n = ::recv(socket, to.data(), to.size(), MSG_DONTWAIT);
    if (n < 0) failed.assign(errno, asio::error::get_system_category());
#endif
    return n < 0 ? 0 : static_cast<std::size_t>(n);
}

#endif

// --- peers that vanish

/// Has the system probe a silent peer after 30 s, and then every 10 s. A peer that does not respond
/// is given up after a minute; by default that takes more than two hours.
template <class Socket>
void probe_when_silent(Socket& socket) {
    asio::error_code ignored; // a dead socket shows it at the first read
    socket.set_option(asio::socket_base::keep_alive(true), ignored);
#if defined(TCP_KEEPIDLE)
    using idle = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPIDLE>;
    socket.set_option(idle(30), ignored);
#elif defined(__APPLE__) && defined(TCP_KEEPALIVE)
    using idle = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPALIVE>;
    socket.set_option(idle(30), ignored);
#endif
#if defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
    using interval = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPINTVL>;
    using count = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPCNT>;
    socket.set_option(interval(10), ignored);
    socket.set_option(count(3), ignored);
#endif
}

} // namespace detail

// >>encoding //////////////////////////////////////////////////////////////////////////////////////
// The bytes of a message in an event stream (WHATWG HTML 9.2.5 and 9.2.6). Knows nothing of rings,
// HTTP or Asio. Needs >>message.
// Tests: tests/message.cpp

namespace detail {

/// The size in bytes of the UTF-8 character that the text begins with (RFC 3629 4); 0 if none.
inline std::size_t utf8_size(std::string_view text) noexcept {
    const auto at = [&](std::size_t i) {
        return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
    };
    const auto tail = [&](std::size_t i) { return (at(i) & 0xc0) == 0x80; };
    const unsigned first = at(0);
    const unsigned second = at(1);
    if (first < 0x80) return 1;
    if (first < 0xc2 || first > 0xf4 || !tail(1)) return 0;
    if (first < 0xe0) return 2;
    if (!tail(2) || (first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
    if (first < 0xf0) return 3;
    if (!tail(3) || (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
    return 4;
}

inline bool is_ascii(std::string_view text) noexcept {
    std::uint64_t bits = 0; // eight bytes at once; compilers widen it further
    std::size_t at = 0;
    for (; at + sizeof bits <= text.size(); at += sizeof bits) {
        std::uint64_t word;
        std::memcpy(&word, text.data() + at, sizeof word);
        bits |= word;
    }
    for (; at < text.size(); ++at) bits |= static_cast<unsigned char>(text[at]);
    return (bits & 0x8080808080808080u) == 0;
}

/// C0 controls and DEL.
inline bool is_control(char c) noexcept { return (c >= 0 && c < ' ') || c == 0x7f; }

inline bool is_digits(std::string_view text) noexcept {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// The number that the whole text is, without a sign; nullopt for any other text, or one that is
/// too large.
template <class Number>
std::optional<Number> read_number(std::string_view text, int base = 10) noexcept {
    static_assert(std::is_unsigned_v<Number>); // from_chars takes a minus sign for others
    Number number{};
    const char* const end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, number, base);
    return read.ec == std::errc() && read.ptr == end ? std::optional(number) : std::nullopt;
}

/// Whether the id comes back in a client's Last-Event-ID as it was sent. With a control character
/// the head of that request is invalid, and a browser that gets 400 closes its EventSource for
/// good; an id that is too long for the head has the same effect. HTTP trims blanks. Browsers send
/// non-ASCII characters as UTF-8, but clients built on fetch send Latin-1, and throw for the rest.
inline bool is_returnable(std::string_view id) noexcept {
    constexpr std::size_t longest = 1024; // up to three times as long in a query
    return id.empty() || (id.size() <= longest && id.front() != ' ' && id.back() != ' ' &&
                          std::none_of(id.begin(), id.end(), is_control) && is_ascii(id));
}

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL std::error_code check(const message& m) noexcept {
    constexpr std::string_view breakers("\r\n\0", 3);
    if (m.event.find_first_of(breakers) != m.event.npos) return errc::bad_event;
    if (m.id && !detail::is_returnable(*m.id)) return errc::bad_id;
    if (m.retry && (m.retry->count() < 0 || *m.retry > message::max_retry)) return errc::bad_retry;
    if (m.event.empty() && !m.data && !m.id && !m.retry && m.comment.empty()) {
        return errc::empty_message;
    }
    if (m.ephemeral && m.id) return errc::ephemeral_id;
    return {};
}

#endif // SSE_BODIES

namespace detail {

/// Splits a text at LF, CR and CRLF. A bare CR ends a line too (9.2.6): unsplit, data could forge a
/// field. Each kind of break is searched for once, so a long line costs two passes of memchr.
class line_splitter {
public:
    explicit line_splitter(std::string_view text) noexcept
        : rest_(text), cr_(text.find('\r')), lf_(text.find('\n')) {}

    /// Returns the next line, or nullopt after the last one. An empty text is one empty line.
    std::optional<std::string_view> next() noexcept {
        if (done_) return std::nullopt;
        const std::size_t end = std::min(cr_, lf_);
        if (end == rest_.npos) {
            done_ = true;
            return rest_.substr(at_);
        }
        const std::string_view line = rest_.substr(at_, end - at_);
        at_ = end + (lf_ == end + 1 ? 2 : 1); // skip the break, perhaps CRLF
        if (cr_ < at_) cr_ = rest_.find('\r', at_);
        if (lf_ < at_) lf_ = rest_.find('\n', at_);
        return line;
    }

private:
    std::string_view rest_;
    std::size_t cr_;
    std::size_t lf_;
    std::size_t at_ = 0;
    bool done_ = false;
};

struct size_sink {
    std::size_t size = 0;
    void operator()(std::string_view text) noexcept { size += text.size(); }
};

struct copy_sink {
    char* at;
    void operator()(std::string_view text) noexcept {
        at = std::copy(text.begin(), text.end(), at);
    }
};

template <class Sink>
void write_lines(std::string_view field, std::string_view text, Sink& out) {
    line_splitter lines(text);
    while (const auto line = lines.next()) {
        out(field);
        out(*line);
        out("\n");
    }
}

/// The only place that describes the wire format; runs once to measure and once to copy.
template <class Sink>
void write_message(const message& m, Sink& out) {
    if (!m.comment.empty()) write_lines(": ", m.comment, out);
    if (!m.event.empty()) write_lines("event: ", m.event, out);
    if (m.id) write_lines("id: ", *m.id, out);
    if (m.retry) {
        char digits[24];
        const auto end = std::to_chars(digits, digits + sizeof digits, m.retry->count()).ptr;
        write_lines("retry: ", {digits, static_cast<std::size_t>(end - digits)}, out);
    }
    // Without a data line clients drop the whole event, so a named event always has one. The space
    // is needed: clients remove one, which would otherwise be the first one of the data.
    if (m.data || !m.event.empty()) write_lines("data: ", m.data.value_or(""), out);
    out("\n");
}

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL std::string encode(const message& m) {
    if (const auto wrong = check(m)) throw std::system_error(wrong, "sse::encode");
    detail::size_sink measure;
    detail::write_message(m, measure);
    std::string bytes(measure.size, '\0');
    detail::copy_sink copy{bytes.data()};
    detail::write_message(m, copy);
    return bytes;
}

#endif // SSE_BODIES

// >>parser ////////////////////////////////////////////////////////////////////////////////////////
// The bodies of event_parser: bytes in, events out. Knows nothing of HTTP or Asio. Needs >>event,
// >>encoding.
// Tests: tests/parser.cpp

namespace detail {

/// For a text that does not begin with a UTF-8 character: how many bytes become one U+FFFD, namely
/// as many as could begin one (Encoding standard 4.4, and the Unicode standard's "maximal
/// subparts").
inline std::size_t broken_utf8_size(std::string_view text) noexcept {
    const auto first = static_cast<unsigned char>(text[0]);
    if (first < 0xc2 || first > 0xf4) return 1;
    unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    std::size_t size = 1;
    for (; size < text.size(); ++size) { // being broken, it ends before a whole character
        const auto next = static_cast<unsigned char>(text[size]);
        if (next < low || next > high) break;
        low = 0x80;
        high = 0xbf;
    }
    return size;
}

/// Appends text, with U+FFFD for what is not UTF-8. A line break is ASCII, so a line can be decoded
/// on its own.
inline void append_utf8(std::string& out, std::string_view text) {
    if (is_ascii(text)) {
        out.append(text);
        return;
    }
    std::size_t valid = 0; // size of what is valid and not yet appended
    while (valid < text.size()) {
        if (const std::size_t size = utf8_size(text.substr(valid)); size != 0) {
            valid += size;
            continue;
        }
        const std::size_t broken = broken_utf8_size(text.substr(valid));
        out.append(text.substr(0, valid)).append("\xef\xbf\xbd");
        text.remove_prefix(valid + broken);
        valid = 0;
    }
    out.append(text);
}

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL void event_parser::feed(std::string_view bytes) {
    if (refused_) return;          // none of it would be read
    if (at_ > input_.size() / 2) { // not every time: the remaining bytes would be moved repeatedly
        input_.erase(0, at_);
        cr_ -= std::min(cr_, at_);
        lf_ -= std::min(lf_, at_);
        at_ = 0;
    }
    input_.append(bytes);
}

SSE_DECL void event_parser::finish() noexcept {
    std::string().swap(input_); // frees memory too: the next stream may have no large events
    std::string().swap(data_);
    type_.clear();
    id_.assign(last_id_); // it has been this long before: allocates nothing
    at_ = cr_ = lf_ = 0;
    at_start_ = true;
    after_cr_ = has_data_ = false;
    skipping_ = skip::nothing;
    refused_ = nullptr;
}

SSE_DECL std::optional<event> event_parser::next() {
    if (refused_) refuse(refused_);
    while (const auto line = take_line()) {
        if (!line->empty()) {
            take_field(*line);
        } else if (auto complete = dispatch()) {
            return complete;
        }
    }
    return std::nullopt;
}

/// The position of the next c, or the end of the input. No byte is searched twice, so a line in
/// many small pieces costs no more than one in a single piece.
SSE_DECL std::size_t event_parser::find(char c, std::size_t& known) const noexcept {
    return known = std::min(input_.find(c, std::max(known, at_)), input_.size());
}

/// Returns the next whole line that may matter, without its line break. Valid until more is fed.
SSE_DECL std::optional<std::string_view> event_parser::take_line() {
    constexpr std::string_view mark = "\xef\xbb\xbf";
    if (at_start_) {
        const std::string_view front = std::string_view(input_).substr(at_, mark.size());
        if (front != mark && mark.starts_with(front)) return std::nullopt; // not known yet
        if (front == mark) at_ += mark.size();
        at_start_ = false;
    }
    for (;;) {
        if (after_cr_ && at_ < input_.size()) {
            after_cr_ = false;
            if (input_[at_] == '\n') ++at_;
        }
        const std::size_t end = std::min(find('\r', cr_), find('\n', lf_));
        if (end == input_.size()) {
            take_rest();
            return std::nullopt;
        }
        const auto line = std::string_view(input_).substr(at_, end - at_);
        const skip skipped = std::exchange(skipping_, skip::nothing);
        const bool whole = skipped == skip::nothing;
        const bool matters = whole && (line.empty() || may_matter(line, true));
        if (matters) check_line(line);
        if (skipped == skip::comment || (whole && line.starts_with(':'))) ++comments_;
        after_cr_ = input_[end] == '\r';
        at_ = end + 1;
        if (matters) return line;
    }
}

/// Handles the beginning of a line that has not arrived completely: drops it as soon as it cannot
/// matter.
SSE_DECL void event_parser::take_rest() {
    const auto begun = std::string_view(input_).substr(at_);
    if (skipping_ == skip::nothing && may_matter(begun, false)) {
        check_line(begun);
        if (!begun.empty()) return;
    } else if (skipping_ == skip::nothing) {
        skipping_ = begun.front() == ':' ? skip::comment : skip::field;
    }
    input_.clear();
    at_ = cr_ = lf_ = 0;
}

/// Whether the line is a field that the standard defines, or begins like one. Names are compared
/// byte for byte: "Data" is a different field.
SSE_DECL bool event_parser::may_matter(std::string_view line, bool whole) noexcept {
    constexpr std::string_view names[] = {"data", "event", "id", "retry"};
    const auto front = line.substr(0, 6); // no name with its colon is longer
    const auto name = front.substr(0, front.find(':'));
    const bool named = whole || name.size() < front.size();
    return std::any_of(std::begin(names), std::end(names), [&](std::string_view known) {
        return named ? name == known : known.starts_with(name);
    });
}

SSE_DECL void event_parser::take_field(std::string_view line) {
    const std::size_t colon = std::min(line.find(':'), line.size());
    auto value = line.substr(std::min(colon + 1, line.size()));
    if (value.starts_with(' ')) value.remove_prefix(1); // one space only, no tab
    switch (line.front()) {                             // may_matter() has checked the whole name
    case 'd': take_data(value); break;
    case 'e':
        type_.clear();
        detail::append_utf8(type_, value);
        check_event();
        break;
    case 'i':
        if (value.find('\0') != value.npos) break;
        id_.clear();
        detail::append_utf8(id_, value);
        check_event();
        break;
    default: take_retry(value);
    }
}

SSE_DECL void event_parser::take_data(std::string_view value) {
    if (has_data_) data_ += '\n';
    has_data_ = true;
    detail::append_utf8(data_, value);
    check_event();
}

SSE_DECL void event_parser::take_retry(std::string_view value) noexcept {
    if (!detail::is_digits(value)) return;
    const auto most = static_cast<std::uint64_t>(max_retry.count());
    const auto time = detail::read_number<std::uint64_t>(value).value_or(most);
    retry_ = std::chrono::milliseconds(std::min(time, most));
}

/// Refuses an endless line before its end would show that the event is too large.
SSE_DECL void event_parser::check_line(std::string_view line) {
    constexpr std::string_view longest_name = "event: "; // of the fields that are counted
    if (line.size() > longest_name.size() &&
        line.size() - longest_name.size() > limits_.max_event) {
        refuse("an event is larger than max_event");
    }
}

SSE_DECL void event_parser::check_event() {
    if (data_.size() + type_.size() + id_.size() > limits_.max_event) {
        refuse("an event is larger than max_event");
    }
}

/// What a blank line does: the id takes effect, even without data, in which case no event is
/// dispatched.
SSE_DECL std::optional<event> event_parser::dispatch() {
    if (last_id_ != id_) last_id_ = id_;
    if (!std::exchange(has_data_, false)) {
        type_.clear();
        return std::nullopt;
    }
    event complete;
    complete.type = type_.empty() ? "message" : std::move(type_);
    complete.data = std::move(data_);
    complete.last_event_id = last_id_;
    type_.clear();
    data_.clear();
    return complete;
}

SSE_DECL void event_parser::refuse(const char* what) {
    refused_ = what;
    throw std::system_error(errc::event_too_large, std::string("sse::event_parser: ") + what);
}

#endif // SSE_BODIES

// >>ring //////////////////////////////////////////////////////////////////////////////////////////
// Broadcast ring: many publishers, every reader reads every value in one order, nothing is
// overwritten unread. Needs nothing, knows nothing of frames, HTTP or Asio.
// Tests: tests/ring.cpp, tests/ring_model.cpp. Bench: bench/ring.cpp
//
//     slot       0        1        2        3       capacity 4
//     sequence   5        6        3        4       tail_ = 6: the next place to claim
//     value    no. 4    no. 5    no. 2    no. 3     slowest reader at 2: no room until it moves on
//
// A publisher claims a place by advancing tail_, stores the value, then publishes it to the readers
// by storing the place's sequence. Readers take places in order and stop at the first that is not
// published. Publishers may not be more than the capacity ahead of the slowest reader; gate_
// remembers where that reader was last seen, so that the readers' cursors are read once per round,
// not for each value.
//
// Progress: no operation waits for another. A publisher that is stopped between claim and
// publication (a few stores apart, no user code) holds back the readers at its place, and nothing
// else, as in the Disruptor.
//
// Sleep: a reader that has read everything announces that it sleeps, checks for a value once more,
// then calls published(). A publisher claims, publishes, then checks which readers sleep. All but
// the publication is sequentially consistent: if the reader does not see the claim, the publisher
// sees that it sleeps. If the reader sees the claim but no value, that publisher may have checked
// too early, and the reader must check again on its own after a while. Ordering the check after the
// publication would avoid that, but double the cost of a publish. No fences: ThreadSanitizer does
// not see them.

namespace detail {

inline constexpr std::size_t cache_line = 128; // twice 64: adjacent lines are fetched in pairs

/// `T` is trivially copyable. `Atomic` lets a test replace the atomics to explore interleavings.
template <class T, template <class> class Atomic = std::atomic>
class broadcast_ring {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    /// Throws std::invalid_argument unless capacity is a power of two and there is a reader.
    broadcast_ring(std::size_t capacity, std::size_t readers);
    broadcast_ring(const broadcast_ring&) = delete;
    broadcast_ring& operator=(const broadcast_ring&) = delete;

    /// Publishes to all readers. Returns the value's sequence, counted from 0, or nullopt if there
    /// is no room. Thread safety: any number of threads at once.
    std::optional<std::uint64_t> try_publish(T value) noexcept {
        return try_publish(value, [](std::uint64_t) noexcept {});
    }

    /// The same; calls mark(sequence) between claim and publication, when the sequence is known and
    /// no reader has the value yet. It must be a few stores, since readers wait at this place.
    template <class Mark>
    std::optional<std::uint64_t> try_publish(T value, Mark&& mark) noexcept;

    /// Returns the next value for this reader, or nullopt if there is none yet. Thread safety: one
    /// thread per reader.
    std::optional<T> try_read(std::size_t reader) noexcept;

    /// Whether a publisher would have found no room at some time during the call. Thread safety:
    /// any thread.
    bool full() const noexcept {
        const std::uint64_t claimed = published();
        const std::uint64_t reached = slowest(); // may have passed `claimed` meanwhile
        return reached <= claimed && claimed - reached >= slots_.size();
    }

    /// How many places were claimed since the start. Thread safety: any thread.
    std::uint64_t published() const noexcept { return tail_.load(std::memory_order_seq_cst); }

    std::size_t capacity() const noexcept { return slots_.size(); }

    /// How many places wait for the slowest reader. Thread safety: any thread.
    std::size_t used() const noexcept {
        const std::uint64_t reached = slowest(); // first: it never passes what was claimed
        return static_cast<std::size_t>(
            std::min<std::uint64_t>(published() - reached, slots_.size()));
    }

private:
    struct slot {
        Atomic<std::uint64_t> sequence{0}; ///< n + 1 once the value is the one with sequence n.
        T value{};
    };
    struct alignas(cache_line) cursor {
        Atomic<std::uint64_t> next{0};
    };

    static constexpr std::uint64_t fetch_ahead = 16; // four cache lines of slots, about 100 ns

    static std::size_t checked(std::size_t capacity, std::size_t readers);
    static void back_off() noexcept;
    slot& at(std::uint64_t sequence) noexcept {
        return slots_[static_cast<std::size_t>(sequence & mask_)];
    }
    std::uint64_t slowest() const noexcept;
    void raise_gate(std::uint64_t to) noexcept;

    std::vector<slot> slots_;
    std::vector<cursor> cursors_;
    std::uint64_t mask_;
    alignas(cache_line) Atomic<std::uint64_t> tail_{0};
    alignas(cache_line) Atomic<std::uint64_t> gate_{0};
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

template <class T, template <class> class Atomic>
broadcast_ring<T, Atomic>::broadcast_ring(std::size_t capacity, std::size_t readers)
    : slots_(checked(capacity, readers)), cursors_(readers), mask_(capacity - 1) {}

template <class T, template <class> class Atomic>
std::size_t broadcast_ring<T, Atomic>::checked(std::size_t capacity, std::size_t readers) {
    if (capacity == 0 || (capacity & (capacity - 1)) != 0) {
        throw std::invalid_argument("sse::broadcast_ring: capacity must be a power of two, not " +
                                    std::to_string(capacity));
    }
    if (readers == 0) throw std::invalid_argument("sse::broadcast_ring: needs at least one reader");
    return capacity;
}

template <class T, template <class> class Atomic>
template <class Mark>
std::optional<std::uint64_t> broadcast_ring<T, Atomic>::try_publish(T value, Mark&& mark) noexcept {
    std::uint64_t claimed = tail_.load(std::memory_order_relaxed);
    for (;;) {
        if (claimed - gate_.load(std::memory_order_acquire) >= capacity()) {
            const std::uint64_t reached = slowest();
            if (claimed - reached >= capacity()) {
                // Full, unless `claimed` is an old value of the tail: then try again.
                const std::uint64_t seen =
                    std::exchange(claimed, tail_.load(std::memory_order_relaxed));
                if (claimed == seen) return std::nullopt;
                continue;
            }
            raise_gate(reached);
        }
        if (tail_.compare_exchange_weak(claimed, claimed + 1, std::memory_order_seq_cst,
                                        std::memory_order_relaxed)) {
            break;
        }
        back_off();
        claimed = tail_.load(std::memory_order_relaxed);
    }
    mark(claimed);
    slot& place = at(claimed);
    place.value = value; // the acquire of gate_ orders this after the last read of the slot
    place.sequence.store(claimed + 1, std::memory_order_release); // pairs with try_read
    // The cache lines of the slots are in the readers' cores: fetched ahead, nobody waits for them.
    detail::fetch_to_write(&at(claimed + fetch_ahead));
    return claimed;
}

/// Another publisher on another core was faster. Lets it continue for a microsecond: publishers
/// that pass the tail's cache line to and fro at every place pay five times as much.
template <class T, template <class> class Atomic>
void broadcast_ring<T, Atomic>::back_off() noexcept {
    for (int i = 0; i < 64; ++i) detail::pause();
}

template <class T, template <class> class Atomic>
std::optional<T> broadcast_ring<T, Atomic>::try_read(std::size_t reader) noexcept {
    auto& mine = cursors_[reader].next;
    const std::uint64_t next = mine.load(std::memory_order_relaxed); // only this thread stores it
    slot& place = at(next);
    if (place.sequence.load(std::memory_order_acquire) != next + 1) return std::nullopt;
    const T value = place.value;
    mine.store(next + 1, std::memory_order_release); // pairs with the acquire in slowest()
    return value;
}

template <class T, template <class> class Atomic>
std::uint64_t broadcast_ring<T, Atomic>::slowest() const noexcept {
    std::uint64_t least = cursors_.front().next.load(std::memory_order_acquire);
    for (std::size_t i = 1; i < cursors_.size(); ++i) {
        least = std::min(least, cursors_[i].next.load(std::memory_order_acquire));
    }
    return least;
}

template <class T, template <class> class Atomic>
void broadcast_ring<T, Atomic>::raise_gate(std::uint64_t to) noexcept {
    // Publishers that see this gate also see that the readers have left the slots below it,
    // whichever publisher read the cursors.
    std::uint64_t gate = gate_.load(std::memory_order_relaxed);
    while (gate < to && !gate_.compare_exchange_weak(gate, to, std::memory_order_release)) {}
}

/// Whether a reader sleeps. For how to sleep without missing a value, see the banner.
template <template <class> class Atomic = std::atomic>
class sleeper {
public:
    void prepare_to_sleep() noexcept { awake_.store(false, std::memory_order_seq_cst); }
    void wake() noexcept { awake_.store(true, std::memory_order_relaxed); }

    /// For a publisher, after the publication: whether it is the one that must wake the reader,
    /// which counts as awake from then on.
    bool must_wake() noexcept {
        return !awake_.load(std::memory_order_seq_cst) &&
               !awake_.exchange(true, std::memory_order_relaxed);
    }

private:
    Atomic<bool> awake_{true};
};

} // namespace detail

// >>frame /////////////////////////////////////////////////////////////////////////////////////////
// A message as immutable bytes, encoded once, shared by all clients of all workers. Needs
// >>encoding. Knows nothing of HTTP or Asio.
// Tests: tests/log.cpp
namespace detail {

/// For whom a frame is. The numbers are part of what is stored, see >>record.
enum class frame_kind : std::uint8_t {
    raw,      ///< Bytes of the server itself: a response head, a heartbeat.
    topic,    ///< A message for the subscribers of a topic and of its parents.
    user,     ///< A message for the streams of one user; its topic is that user's private one.
    stream,   ///< A message for one stream, by the stream's number.
    everyone, ///< A message for all streams.
    mark,     ///< What the bus told: an epoch, which is its topic; a loss, if its event says why.
};

/// Its names and bytes follow the object in the same allocation. The reference count is atomic
/// because each worker drops its own reference; a delivery does not touch it.
class frame {
public:
    using kind = frame_kind;

    struct names { ///< What a worker needs to know of a message without reading its bytes.
        std::string_view topic = {};
        std::string_view key = {};
        std::string_view event = {};
        std::string_view own_id = {};
    };

    static frame* make(kind what, const names& n, std::size_t size, bool wants_id) {
        const std::size_t room = wants_id ? id_room : 0;
        const std::size_t named = n.topic.size() + n.key.size() + n.event.size() + n.own_id.size();
        void* memory = ::operator new(sizeof(frame) + named + room + size);
        auto* made = new (memory) frame(what, n, named + room, size, wants_id);
        char* at = made->storage();
        for (const std::string_view text : {n.topic, n.key, n.event, n.own_id}) {
            at = std::copy(text.begin(), text.end(), at);
        }
        return made;
    }
    frame(const frame&) = delete;
    frame& operator=(const frame&) = delete;

    kind type() const noexcept { return kind_; }
    bool is_message() const noexcept { return kind_ != kind::raw; }
    /// A mark that says that messages before it may be lost.
    bool is_loss() const noexcept { return kind_ == kind::mark && event_size_ != 0; }
    std::string_view topic() const noexcept { return {storage(), topic_size_}; }
    std::string_view key() const noexcept { return {storage() + topic_size_, key_size_}; }
    std::string_view event() const noexcept {
        return {storage() + topic_size_ + key_size_, event_size_};
    }
    /// The id that the program gave; "" if it gave none, or gave "".
    std::string_view own_id() const noexcept {
        return {storage() + topic_size_ + key_size_ + event_size_, own_id_size_};
    }
    std::string_view bytes() const noexcept {
        return {storage() + begin_, static_cast<std::size_t>(end_ - begin_)};
    }
    std::string_view message() const noexcept { ///< The bytes without the server's own id.
        return {storage() + begin_ + id_size_, end_ - begin_ - id_size_};
    }
    char* writable() noexcept { return storage() + begin_; }
    std::uint64_t stream() const noexcept { return stream_; }
    /// In its epoch, once stamped. Without a bus it is one more than the place.
    std::uint64_t number() const noexcept { return number_; }
    /// How old it was when the bus brought it, in milliseconds.
    std::uint32_t age() const noexcept { return age_; }

    /// For current subscribers only.
    bool ephemeral() const noexcept { return ephemeral_; }
    /// Whether it has an id, which becomes the last event ID of its receivers.
    bool has_id() const noexcept { return id_size_ != 0 || own_id_size_ != 0; }

    // The setters may be called only before the frame is shared.
    void set_references(std::uint32_t count) noexcept {
        references_.store(count, std::memory_order_relaxed);
    }
    void set_ephemeral() noexcept { ephemeral_ = true; }
    void set_stream(std::uint64_t number) noexcept { stream_ = number; }
    void set_number(std::uint64_t number) noexcept { number_ = number; }
    void set_age(std::uint32_t milliseconds) noexcept { age_ = milliseconds; }

    /// Writes `id: <epoch>-<number>` in front of the bytes, into the room reserved for it.
    void stamp(std::string_view epoch, std::uint64_t number) noexcept {
        number_ = number;
        if (!wants_id_) return;
        char* at = storage() + begin_;
        *--at = '\n';
        for (; number != 0; number /= 10) *--at = static_cast<char>('0' + number % 10);
        *--at = '-';
        for (const std::string_view text : {epoch, std::string_view("id: ")}) {
            at -= text.size();
            std::copy(text.begin(), text.end(), at);
        }
        const auto begin = static_cast<std::size_t>(at - storage());
        id_size_ = static_cast<std::uint8_t>(begin_ - begin);
        begin_ = begin;
    }

    void add_reference() noexcept { references_.fetch_add(1, std::memory_order_relaxed); }
    void unref() noexcept {
        if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) destroy();
    }

private:
    // "id: ", eight characters of an epoch, "-", the digits of a number, "\n"
    static constexpr std::size_t id_room = 4 + 8 + 1 + 20 + 1;

    frame(kind what, const names& n, std::size_t begin, std::size_t size, bool wants_id) noexcept
        : kind_(what), wants_id_(wants_id), topic_size_(static_cast<std::uint32_t>(n.topic.size())),
          key_size_(static_cast<std::uint32_t>(n.key.size())),
          event_size_(static_cast<std::uint32_t>(n.event.size())),
          own_id_size_(static_cast<std::uint32_t>(n.own_id.size())), begin_(begin),
          end_(begin + size) {}
    ~frame() = default;

    // If it is inlined, g++ 12 mistakes the last of two references for a use after free.
    [[gnu::noinline]] void destroy() noexcept {
        this->~frame();
        ::operator delete(this);
    }
    char* storage() noexcept { return reinterpret_cast<char*>(this + 1); }
    const char* storage() const noexcept { return reinterpret_cast<const char*>(this + 1); }

    std::atomic<std::uint32_t> references_{1};
    kind kind_;
    bool wants_id_;
    bool ephemeral_ = false;
    std::uint8_t id_size_ = 0; // of the server's own id, once stamped
    std::uint32_t topic_size_;
    std::uint32_t key_size_;
    std::uint32_t event_size_;
    std::uint32_t own_id_size_;
    std::uint32_t age_ = 0;
    std::uint64_t stream_ = 0;
    std::uint64_t number_ = 0;
    std::size_t begin_; // of the bytes in the storage
    std::size_t end_;
};

/// Holds one reference to an object that counts them itself.
template <class T>
class counted_ref {
public:
    counted_ref() noexcept = default;
    explicit counted_ref(T* adopted) noexcept : object_(adopted) {}
    counted_ref(const counted_ref& other) noexcept : object_(other.object_) {
        if (object_) object_->add_reference();
    }
    counted_ref(counted_ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    counted_ref& operator=(counted_ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~counted_ref() {
        if (object_) object_->unref();
    }

    explicit operator bool() const noexcept { return object_ != nullptr; }
    T* operator->() const noexcept { return object_; }
    T& operator*() const noexcept { return *object_; }
    T* get() const noexcept { return object_; }
    T* detach() noexcept { return std::exchange(object_, nullptr); }

private:
    T* object_ = nullptr;
};

/// Encodes the message. Throws std::system_error with the code of `check`. If it is inlined, g++ 12
/// warns that an empty optional may be read, which never happens.
[[gnu::noinline]] inline frame_ref make_frame(frame::kind what, std::string_view topic,
                                              const message& m) {
    if (const auto wrong = check(m)) throw std::system_error(wrong, "sse: bad message");
    constexpr std::size_t most = 0xffff'ffff; // bytes in a name
    if (std::max(m.key.size(), m.event.size()) > most || (m.id && m.id->size() > most)) {
        throw std::length_error("sse: a name of the message is over 4 GiB");
    }
    size_sink measure;
    write_message(m, measure);
    const frame::names names{topic, m.key, m.event, m.id.value_or("")};
    // Nobody can resume after a message that goes to one stream only.
    const bool ephemeral = m.ephemeral || what == frame::kind::stream;
    frame_ref made(frame::make(what, names, measure.size, !ephemeral && !m.id));
    if (ephemeral) made->set_ephemeral();
    copy_sink copy{made->writable()};
    write_message(m, copy);
    return made;
}

inline frame_ref make_frame_of(frame::kind what, const frame::names& n, std::string_view bytes) {
    frame_ref made(frame::make(what, n, bytes.size(), false));
    std::copy(bytes.begin(), bytes.end(), made->writable());
    return made;
}

inline frame_ref make_raw_frame(std::string_view bytes) {
    return make_frame_of(frame::kind::raw, {}, bytes);
}

/// Says that the messages after it are of this epoch, with numbers above `after`. If there is a
/// reason, what lies between `from`, an id, and `after` may be lost to all that pass it.
inline frame_ref make_mark(std::string_view epoch, std::uint64_t after,
                           std::string_view reason = {}, std::string_view from = {}) {
    frame_ref made = make_frame_of(frame::kind::mark, {.topic = epoch, .event = reason}, from);
    made->set_number(after);
    made->set_age(~std::uint32_t{0}); // as old as what is before it
    return made;
}

} // namespace detail

// >>head //////////////////////////////////////////////////////////////////////////////////////////
// HTTP/1.1 request head: bytes in, values out (RFC 9112, RFC 9110). Strict: refuses what a proxy in
// front could read differently. Needs >>encoding, does no I/O (of Asio it uses only the parser of
// addresses).
// Tests: tests/body.cpp, tests/head.cpp
namespace detail {

inline bool is_token_char(char c) noexcept { // RFC 9110 5.6.2
    constexpr std::string_view others = "!#$%&'*+-.^_`|~";
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           others.find(c) != others.npos;
}

inline bool is_token(std::string_view text) noexcept {
    return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

/// Whether the text has a character that no field value may have (RFC 9110 5.5).
inline bool has_control(std::string_view text) noexcept {
    return std::any_of(text.begin(), text.end(), [](char c) { return is_control(c) && c != '\t'; });
}

inline char lower(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

inline bool equal_ignoring_case(std::string_view a, std::string_view b) noexcept {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](char x, char y) { return lower(x) == lower(y); });
}

inline std::string_view trim(std::string_view text) noexcept { // optional whitespace, 9110 5.6.3
    const std::size_t first = text.find_first_not_of(" \t");
    if (first == text.npos) return {};
    return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

/// Calls f with each element of a comma-separated list, trimmed, except empty ones.
template <class F>
void for_each_element(std::string_view list, F&& f) {
    while (!list.empty()) {
        const std::size_t comma = list.find(',');
        if (const auto element = trim(list.substr(0, comma)); !element.empty()) f(element);
        list = comma == list.npos ? std::string_view{} : list.substr(comma + 1);
    }
}

inline int hex_digit(char c) noexcept {
    if (c >= '0' && c <= '9') return c - '0';
    const char l = lower(c);
    return l >= 'a' && l <= 'f' ? l - 'a' + 10 : -1;
}

/// The byte that the percent escape at this place stands for, or a negative number without one.
inline int escaped_byte(std::string_view text, std::size_t at) noexcept {
    if (text[at] != '%' || at + 2 >= text.size()) return -1;
    const int high = hex_digit(text[at + 1]);
    const int low = hex_digit(text[at + 2]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/// Percent-decodes once, strictly: returns nullopt for a broken escape or a decoded NUL.
inline std::optional<std::string> percent_decode(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        const int byte = escaped_byte(text, i);
        if (byte == 0 || (byte < 0 && text[i] == '%')) return std::nullopt;
        out += byte < 0 ? text[i] : static_cast<char>(byte);
        if (byte > 0) i += 2;
    }
    return out;
}

/// Decodes application/x-www-form-urlencoded text (URL standard 5.1).
inline std::string form_decode(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        const int byte = escaped_byte(text, i);
        out += byte >= 0 ? static_cast<char>(byte) : text[i] == '+' ? ' ' : text[i];
        if (byte >= 0) i += 2;
    }
    return out;
}

/// The values of one name in such a text, in order.
inline std::vector<std::string> form_values(std::string_view text, std::string_view name) {
    std::vector<std::string> found;
    while (!text.empty()) {
        const std::string_view pair = text.substr(0, text.find('&'));
        text.remove_prefix(std::min(text.size(), pair.size() + 1));
        const std::size_t equals = std::min(pair.find('='), pair.size());
        if (pair.empty() || form_decode(pair.substr(0, equals)) != name) continue;
        found.push_back(form_decode(pair.substr(std::min(equals + 1, pair.size()))));
    }
    return found;
}

/// Whether it is a host of RFC 3986 3.2.2: a name, an IPv4 address, or an IPv6 address in brackets.
inline bool is_host_name(std::string_view text) {
    if (text.starts_with('[') && text.ends_with(']')) {
        const std::string inside(text.substr(1, text.size() - 2));
        asio::error_code failed;
        asio::ip::make_address_v6(inside, failed); // accepts a zone, ignores text after a NUL
        return !failed && inside.find_first_of(std::string_view("%\0", 2)) == inside.npos;
    }
    const auto allowed = [](char c) { // unreserved, sub-delims and "%" of RFC 3986
        return (is_token_char(c) && c != '#' && c != '^' && c != '`' && c != '|') ||
               std::string_view("(),;=").find(c) != std::string_view::npos;
    };
    return !text.empty() && std::all_of(text.begin(), text.end(), allowed) && percent_decode(text);
}

/// Splits "host:port" before the colon of the port; the second part begins with that colon or is
/// empty.
inline std::pair<std::string_view, std::string_view> split_port(std::string_view authority) {
    const std::size_t bracket = authority.find(']');
    const std::size_t from = bracket == authority.npos ? 0 : bracket;
    const std::size_t colon = std::min(authority.find(':', from), authority.size());
    return {authority.substr(0, colon), authority.substr(colon)};
}

/// Whether it is uri-host [":" port] of RFC 9110 7.2.
inline bool is_host(std::string_view text) {
    const auto [name, port] = split_port(text);
    return is_host_name(name) && (port.size() < 2 || is_digits(port.substr(1)));
}

} // namespace detail

namespace detail {

// Both directions: the fields of a request, and those of a response.
using field_list = std::vector<request::field>;

/// Calls f with the value of each field line of this name, in order.
template <class F>
void for_each_value(const field_list& fields, std::string_view name, F&& f) {
    for (const auto& [key, value] : fields) {
        if (equal_ignoring_case(key, name)) f(value);
    }
}

/// Calls f with each element of a list field. All its field lines are one list (RFC 9110 5.3).
template <class F>
void for_each_element(const field_list& fields, std::string_view name, F&& f) {
    for_each_value(fields, name, [&](std::string_view list) { for_each_element(list, f); });
}

/// Whether a list field has this element, ignoring case.
inline bool list_names(const field_list& fields, std::string_view name, std::string_view what) {
    bool named = false;
    for_each_element(fields, name, [&](std::string_view element) {
        named = named || equal_ignoring_case(element, what);
    });
    return named;
}

/// The value of the first field line of this name.
inline std::optional<std::string_view> find_value(const field_list& fields,
                                                  std::string_view name) noexcept {
    for (const auto& [key, value] : fields) {
        if (equal_ignoring_case(key, name)) return value;
    }
    return std::nullopt;
}

/// Removes a line from the front of a head and returns it, without its CR LF.
inline std::string_view take_line(std::string_view& head) noexcept {
    const std::size_t end = std::min(head.find("\r\n"), head.size());
    const auto line = head.substr(0, end < head.size() ? end : 0);
    head.remove_prefix(std::min(end + 2, head.size()));
    return line;
}

/// Reads field lines up to the empty line after them.
inline request::verdict read_fields(std::string_view lines, field_list& fields,
                                    std::size_t max_fields) {
    const auto count = static_cast<std::size_t>(std::count(lines.begin(), lines.end(), '\n'));
    fields.reserve(std::min(std::max(count, std::size_t{1}) - 1, max_fields)); // minus the last
    for (auto line = take_line(lines); !line.empty(); line = take_line(lines)) {
        const std::size_t colon = line.find(':');
        if (colon == line.npos) return {400, "a header line has no colon"};
        const request::field f{line.substr(0, colon), trim(line.substr(colon + 1))};
        // Also refuses white space before the colon and folded lines (RFC 9112 5.1 and 5.2).
        if (!is_token(f.name)) return {400, "a header name is not a token"};
        if (fields.size() == max_fields) return {431, "too many header lines"};
        fields.push_back(f);
    }
    return {};
}

/// What the fields say about where a body ends. Refuses whatever could make two parties disagree on
/// that (RFC 9112 6).
struct framing_fields {
    /// What a client accepts, since servers are known to send it. A server accepts none of it: a
    /// proxy in front could have read it differently.
    struct leniency {
        bool lists = false;         ///< A Content-Length that repeats one value, even in a list.
        bool other_codings = false; ///< Transfer codings besides chunked; they are only noted.
    };

    std::optional<std::uint64_t> length;
    bool chunked = false;
    const request::field* other_coding = nullptr; ///< Has a coding besides one "chunked".

    request::verdict read(const field_list& fields, int minor_version, leniency allowed);

private:
    request::verdict take_length(std::string_view value, leniency allowed);
    request::verdict take_codings(const request::field& f, leniency allowed);
};

inline request::verdict framing_fields::read(const field_list& fields, int minor_version,
                                             leniency allowed) {
    for (const request::field& f : fields) {
        request::verdict v;
        if (equal_ignoring_case(f.name, "Content-Length")) v = take_length(f.value, allowed);
        if (equal_ignoring_case(f.name, "Transfer-Encoding")) v = take_codings(f, allowed);
        if (v.status != 0) return v;
    }
    if (!chunked) return {};
    if (minor_version == 0) return {400, "HTTP/1.0 has no Transfer-Encoding"};
    if (length) return {400, "Content-Length and Transfer-Encoding together"};
    if (!other_coding || allowed.other_codings) return {};
    const std::string_view codings = other_coding->value;
    if (!equal_ignoring_case(trim(codings.substr(codings.rfind(',') + 1)), "chunked")) {
        return {400, "the final Transfer-Encoding is not chunked"};
    }
    return {501, "the only Transfer-Encoding supported is chunked"};
}

inline request::verdict framing_fields::take_length(std::string_view value, leniency allowed) {
    request::verdict v;
    bool any = false;
    const auto take = [&](std::string_view digits) {
        const auto number = read_number<std::uint64_t>(digits);
        if (!number || digits.size() > 18) {
            v = {400, "Content-Length is not a number"};
        } else if (length.value_or(*number) != *number) {
            v = {400, "two Content-Lengths differ"};
        }
        length = number;
        any = true;
    };
    allowed.lists ? for_each_element(value, take) : take(value);
    if (!any) take({});
    return v;
}

inline request::verdict framing_fields::take_codings(const request::field& f, leniency allowed) {
    bool again = false;
    const auto take = [&](std::string_view coding) {
        again = std::exchange(chunked, true);
        if (again || !equal_ignoring_case(coding, "chunked")) other_coding = &f;
    };
    allowed.lists ? for_each_element(f.value, take) : take(f.value);
    if (again && !allowed.other_codings) return {400, "more than one Transfer-Encoding"};
    return {};
}

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL std::optional<std::string_view> request::header(std::string_view name) const noexcept {
    return detail::find_value(fields, name);
}

SSE_DECL request::verdict request::parse(std::string_view head, std::size_t max_fields) {
    const std::size_t end_of_target = std::min(head.find("\r\n"), head.size());
    const bool is_encoded = head.substr(0, end_of_target).find('%') != head.npos;
    text_.reserve(head.size() + (is_encoded ? end_of_target : 0)); // keeps views of it valid
    text_ = head;
    std::string_view lines = text_;
    const std::string_view first = detail::take_line(lines);
    if (first.empty()) return {400, "the request line is missing"};
    if (const verdict v = parse_request_line(first); v.status != 0) return v;
    if (const verdict v = detail::read_fields(lines, fields, max_fields); v.status != 0) return v;
    if (const verdict v = check_single(); v.status != 0) return v;
    if (const verdict v = check_host(); v.status != 0) return v;
    if (const verdict v = check_framing(); v.status != 0) return v;
    keep_alive = minor_version_ == 0
                     ? has_connection_option("keep-alive") && !has_connection_option("close")
                     : !has_connection_option("close");
    return {};
}

SSE_DECL request::verdict request::parse_request_line(std::string_view line) {
    const std::size_t a = line.find(' ');
    const std::size_t b = line.rfind(' ');
    if (a == b) return {400, "the request line is not: method target version"};
    method = line.substr(0, a);
    target = line.substr(a + 1, b - a - 1);
    const auto version = line.substr(b + 1);
    if (!detail::is_token(method)) return {400, "the method is not a token"};
    const auto visible = [](char c) { return c > ' ' && c < 0x7f; };
    if (!std::all_of(target.begin(), target.end(), visible)) {
        return {400, "the target has a character that must be percent-encoded"};
    }
    if (version.size() != 8 || !version.starts_with("HTTP/") || version[6] != '.' ||
        !detail::is_digits(version.substr(5, 1)) || !detail::is_digits(version.substr(7))) {
        return {400, "the version is not HTTP/1.1"};
    }
    if (version[5] != '1') return {505, "only HTTP/1.1 and HTTP/1.0 are supported"};
    minor_version_ = version[7] == '0' ? 0 : 1;
    return parse_target();
}

SSE_DECL request::verdict request::parse_target() {
    std::string_view origin_form = target;
    if (target == "*") {
        if (method != "OPTIONS") return {400, "the target * is for OPTIONS"};
    } else if (!target.starts_with('/')) { // absolute-form, RFC 9112 3.2.2
        const std::size_t colon = target.find("://");
        const auto scheme = target.substr(0, colon);
        if (colon == target.npos || !(detail::equal_ignoring_case(scheme, "http") ||
                                      detail::equal_ignoring_case(scheme, "https"))) {
            return {400, "the target is neither a path nor an http URI"};
        }
        if (!detail::is_host(authority())) return {400, "the target's host is not valid"};
        origin_form = target.substr(colon + 3 + authority().size());
    }
    if (origin_form.find('#') != origin_form.npos) return {400, "the target has a fragment"};
    const std::size_t question = std::min(origin_form.find('?'), origin_form.size());
    if (question < origin_form.size()) query = origin_form.substr(question + 1);
    path = origin_form.substr(0, question);
    if (path.find('%') != path.npos) {
        const auto decoded = detail::percent_decode(path);
        if (!decoded) return {400, "the path has a broken percent escape"};
        const std::size_t at = text_.size();
        text_ += *decoded;
        path = std::string_view(text_).substr(at);
    }
    if (path.empty()) path = "/";
    return {};
}

SSE_DECL std::string_view request::authority() const noexcept {
    if (target == "*" || target.starts_with('/')) return {};
    const auto after = target.substr(target.find("://") + 3);
    return after.substr(0, after.find_first_of("/?#"));
}

/// A field that is not a list must have one field line: of two, a proxy in front may have used the
/// other one (RFC 9110 5.3).
SSE_DECL request::verdict request::check_single() const {
    constexpr std::pair<std::string_view, std::string_view> all[] = {
        {"Origin", "more than one Origin header"},
        {"Authorization", "more than one Authorization header"},
        {"Content-Type", "more than one Content-Type header"},
        {"Last-Event-ID", "more than one Last-Event-ID header"},
        {"Access-Control-Request-Method", "more than one Access-Control-Request-Method header"},
        {"Host", "more than one Host header"}};
    for (const auto& [name, refusal] : all) {
        int lines = 0;
        detail::for_each_value(fields, name, [&](std::string_view) { ++lines; });
        if (lines > 1) return {400, refusal};
    }
    return {};
}

SSE_DECL request::verdict request::check_host() {
    const auto host = header("Host");
    if (!host && minor_version_ == 1) return {400, "HTTP/1.1 needs a Host header"};
    if (host && !host->empty() && !detail::is_host(*host)) {
        return {400, "the Host header is not valid"};
    }
    if (authority().empty()) return {};
    if (!host) fields.push_back({"Host", {}});
    for (field& f : fields) { // RFC 9112 3.2.2: the target's host wins
        if (detail::equal_ignoring_case(f.name, "Host")) f.value = authority();
    }
    return {};
}

SSE_DECL request::verdict request::check_framing() {
    detail::framing_fields framing;
    const verdict v = framing.read(fields, minor_version_, {});
    content_length = framing.length.value_or(0);
    chunked = framing.chunked;
    return v;
}

SSE_DECL std::vector<std::string> request::query_values(std::string_view name) const {
    return detail::form_values(query, name);
}

SSE_DECL std::optional<std::string_view> request::cookie(std::string_view name) const noexcept {
    for (const field& f : fields) { // HTTP/2 may have split it into lines (RFC 9113 8.2.3)
        if (!detail::equal_ignoring_case(f.name, "Cookie")) continue;
        std::string_view remaining = f.value;
        while (!remaining.empty()) {
            const auto pair = remaining.substr(0, remaining.find(';'));
            remaining.remove_prefix(std::min(remaining.size(), pair.size() + 1));
            const std::size_t equals = pair.find('=');
            if (equals == pair.npos || detail::trim(pair.substr(0, equals)) != name) continue;
            return detail::trim(pair.substr(equals + 1));
        }
    }
    return std::nullopt;
}

SSE_DECL bool request::has_connection_option(std::string_view option) const noexcept {
    return detail::list_names(fields, "Connection", option);
}

#endif // SSE_BODIES

namespace detail {

/// Finds the end of a request head in bytes that arrive in any pieces. The same bytes give the same
/// verdict however they were cut.
class head_parser {
public:
    enum class progress { need_more, complete, refused };

    explicit head_parser(std::size_t max_bytes) noexcept : max_bytes_(max_bytes) {}

    /// Takes all bytes received since the start of this request; reads only the new ones.
    progress feed(std::string_view received) noexcept;

    std::string_view head(std::string_view received) const noexcept {
        return received.substr(start_, at_ - start_);
    }
    std::size_t size() const noexcept { return at_; }
    request::verdict refusal() const noexcept { return refusal_; }

private:
    progress refuse(int status, std::string_view reason) noexcept {
        refusal_ = {status, reason};
        return progress::refused;
    }

    std::size_t max_bytes_;
    std::size_t at_ = 0;    // the first byte not yet read
    std::size_t start_ = 0; // of the request line
    std::size_t line_start_ = 0;
    bool in_request_line_ = true;
    request::verdict refusal_{};
};

inline head_parser::progress head_parser::feed(std::string_view received) noexcept {
    if (refusal_.status != 0) return progress::refused;
    for (; at_ < received.size(); ++at_) {
        if (at_ >= max_bytes_) {
            return in_request_line_ ? refuse(414, "the request line is too long")
                                    : refuse(431, "the request head is too large");
        }
        const char c = received[at_];
        const bool after_cr = at_ > line_start_ && received[at_ - 1] == '\r';
        if (after_cr != (c == '\n')) {
            return refuse(400, "a line does not end in CR LF"); // RFC 9112 2.2: no bare CR or LF
        }
        if (c != '\n') {
            const bool control = is_control(c) && c != '\t' && c != '\r';
            if (control) return refuse(400, "the head contains a control character");
            continue;
        }
        const bool empty = at_ - line_start_ == 1;
        line_start_ = at_ + 1;
        if (!empty) {
            in_request_line_ = false;
        } else if (in_request_line_) {
            start_ = line_start_; // empty lines before a request are skipped (RFC 9112 2.2)
        } else {
            ++at_;
            return progress::complete;
        }
    }
    return progress::need_more;
}

/// What may follow the size of a chunk (RFC 9112 7.1.1):
///     *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )
inline bool is_chunk_extensions(std::string_view text) noexcept {
    const auto skip_blanks = [&] {
        text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
    };
    const auto take_token = [&] {
        const auto end = std::find_if_not(text.begin(), text.end(), is_token_char);
        const auto size = static_cast<std::size_t>(end - text.begin());
        text.remove_prefix(size);
        return size > 0;
    };
    const auto take_quoted = [&] { // control characters have been refused already
        for (std::size_t at = 1; at < text.size(); ++at) {
            if (text[at] == '\\') {
                ++at;
            } else if (text[at] == '"') {
                text.remove_prefix(at + 1);
                return true;
            }
        }
        return false;
    };
    while (!text.empty()) {
        skip_blanks();
        if (!text.starts_with(';')) return false;
        text.remove_prefix(1);
        skip_blanks();
        if (!take_token()) return false;
        const std::string_view after_name = text;
        skip_blanks();
        if (!text.starts_with('=')) {
            text = after_name;
            continue;
        }
        text.remove_prefix(1);
        skip_blanks();
        if (!(text.starts_with('"') ? take_quoted() : take_token())) return false;
    }
    return true;
}

/// Decodes a body that arrives in any pieces, sized or chunked (RFC 9112 7.1). Strict: chunk sizes
/// are hexadecimal digits only, lines end in CR LF, chunk extensions and trailer sections are
/// bounded and discarded.
class body_decoder {
public:
    enum class progress { need_more, complete, refused };

    /// The size of a body that ends with the connection, or the maximum of an unbounded one.
    static constexpr std::uint64_t endless = std::numeric_limits<std::uint64_t>::max();

    static body_decoder of_size(std::uint64_t size) noexcept { return {size, part::sized}; }
    static body_decoder of_chunks(std::uint64_t max_body) noexcept {
        return {max_body, part::size};
    }

    /// Removes from the front of `input` what belongs to the body.
    progress feed(std::string& input);

    bool is_complete() const noexcept { return part_ == part::end; }

    /// What was decoded since the last call.
    std::string take() noexcept { return std::exchange(body_, std::string()); }
    request::verdict refusal() const noexcept { return refusal_; }

private:
    enum class part : std::uint8_t { sized, size, data, data_end, trailer, end };

    static constexpr std::size_t max_line = 1024;      // a chunk size with extensions, a trailer
    static constexpr std::size_t max_overhead = 16384; // all of them, plus a quarter of the body

    body_decoder(std::uint64_t size, part first) noexcept
        : max_body_(size), remaining_(size), part_(first) {}
    progress refuse(int status, std::string_view reason) noexcept {
        refusal_ = {status, reason};
        return progress::refused;
    }
    progress take_line(std::string_view line);
    progress take_size(std::string_view line);

    std::uint64_t max_body_;
    std::uint64_t remaining_; // remaining bytes of the current chunk, or of the whole body
    std::uint64_t total_ = 0;
    std::uint64_t overhead_ = 0;
    part part_;
    std::string body_;
    request::verdict refusal_{};
};

inline body_decoder::progress body_decoder::feed(std::string& input) {
    if (refusal_.status != 0) return progress::refused;
    if (part_ == part::sized && remaining_ == 0) part_ = part::end;
    std::size_t at = 0;
    progress outcome = progress::need_more;
    while (part_ != part::end && outcome == progress::need_more && at < input.size()) {
        if (part_ == part::data || part_ == part::sized) {
            const auto n =
                static_cast<std::size_t>(std::min<std::uint64_t>(remaining_, input.size() - at));
            body_.append(input, at, n);
            at += n;
            total_ += n;
            remaining_ -= n;
            if (remaining_ == 0) part_ = part_ == part::data ? part::data_end : part::end;
            continue;
        }
        const std::size_t limit = std::min(input.size(), at + max_line);
        std::size_t end = at;
        while (end < limit && input[end] != '\n' && (end == at || input[end - 1] != '\r')) ++end;
        if (end == at + max_line) {
            outcome = refuse(400, "a line of the chunked body is too long");
        } else if (end == input.size()) {
            break;
        } else if (end == at || input[end] != '\n' || input[end - 1] != '\r') {
            outcome = refuse(400, "a line of the chunked body does not end in CR LF");
        } else {
            outcome = take_line(std::string_view(input).substr(at, end - 1 - at));
        }
        at = end + 1;
    }
    input.erase(0, std::min(at, input.size()));
    return part_ == part::end ? progress::complete : outcome;
}

inline body_decoder::progress body_decoder::take_line(std::string_view line) {
    if (max_body_ == endless && part_ == part::size) overhead_ = 0; // a stream may trickle
    overhead_ += line.size() + 2;
    if (overhead_ > max_overhead + total_ / 4) {
        return refuse(400, "the chunked body is mostly framing");
    }
    if (has_control(line)) {
        return refuse(400, "the chunked body's framing contains a control character");
    }
    switch (part_) {
    case part::size: return take_size(line);
    case part::data_end:
        if (!line.empty()) return refuse(400, "a chunk is longer than its size");
        part_ = part::size;
        return progress::need_more;
    default: // trailer fields are never merged into the head (RFC 9110 6.5.1)
        if (line.empty()) {
            part_ = part::end;
        } else if (const auto colon = line.find(':');
                   colon == line.npos || !is_token(line.substr(0, colon))) {
            return refuse(400, "a trailer of the chunked body is not a header line");
        }
        return progress::need_more;
    }
}

inline body_decoder::progress body_decoder::take_size(std::string_view line) {
    const auto digits = line.substr(0, line.find_first_not_of("0123456789abcdefABCDEF"));
    const auto extension = line.substr(digits.size());
    const auto size = read_number<std::uint64_t>(digits, 16);
    if (!size || digits.size() > 15) return refuse(400, "a chunk size is not a number");
    if (!is_chunk_extensions(extension)) {
        return refuse(400, "a chunk size is followed by something other than a chunk extension");
    }
    if (*size > max_body_ - total_) return refuse(413, "the request body is too large");
    remaining_ = *size;
    part_ = remaining_ == 0 ? part::trailer : part::data;
    return progress::need_more;
}

/// Puts a body into chunks while it is written, for a writer that may take only a part. Until the
/// rest of a chunk is written, its last byte counts as not taken, so that the caller calls again.
class chunked_encoder {
public:
    static constexpr std::string_view last_chunk = "0\r\n\r\n";

    /// The next bytes are not part of the body: the head of the response, or the last chunk.
    void pass(std::size_t bytes) noexcept { plain_ += bytes; }

    /// Whether the caller must now write the last chunk. Returns true only once.
    bool end() noexcept {
        if (std::exchange(ended_, true)) return false;
        pass(last_chunk.size());
        return true;
    }

    /// The body gets no last chunk: end() returns false from now on.
    void cut_short() noexcept { ended_ = true; }

    /// Passes buffers to `write`, which returns how many bytes it took, or nullopt if the
    /// connection broke: then this object may be destroyed. Returns how many bytes of `buffers`
    /// were taken.
    template <class Write>
    std::optional<std::size_t> write(std::span<const asio::const_buffer> buffers, Write&& write);

private:
    static constexpr std::size_t max_chunk = 64 * 1024; // bounds the rest that is kept here
    static constexpr std::size_t max_buffers = 64;      // that Asio passes to one system call

    struct portion;
    void assemble(portion& p, std::span<const asio::const_buffer> from,
                  std::size_t skip) const noexcept;
    void keep_rest(const portion& p, std::size_t gone);

    std::size_t plain_ = 0;
    std::string rest_; // of the chunk that a short write has cut
    bool ended_ = false;
};

/// What one call of the writer is given: bytes outside the body, see pass(), then one chunk.
struct chunked_encoder::portion {
    std::array<asio::const_buffer, max_buffers> buffers;
    std::size_t count = 0;
    std::size_t plain = 0;
    std::size_t payload = 0;
    std::array<char, 24> header;
    std::size_t header_size = 0;

    void add(asio::const_buffer one) noexcept { buffers[count++] = one; }
    std::size_t size() const noexcept {
        return plain + (payload == 0 ? 0 : header_size + payload + 2);
    }
};

/// Fills the portion from the buffers, after their first `skip` bytes.
inline void chunked_encoder::assemble(portion& p, std::span<const asio::const_buffer> from,
                                      std::size_t skip) const noexcept {
    std::size_t header_at = 0;
    for (const asio::const_buffer& whole : from) {
        // One buffer may need four: the end of the passed bytes, the header, data, the chunk's end.
        if (p.count + 4 > max_buffers || p.payload == max_chunk) break;
        asio::const_buffer remaining = whole + skip;
        skip -= std::min(skip, whole.size());
        if (remaining.size() == 0) continue;
        if (p.plain < plain_) {
            p.add(asio::buffer(remaining, plain_ - p.plain));
            p.plain += p.buffers[p.count - 1].size();
            remaining += p.buffers[p.count - 1].size();
        }
        if (remaining.size() == 0) continue;
        if (p.payload == 0) header_at = p.count++;
        p.add(asio::buffer(remaining, max_chunk - p.payload));
        p.payload += p.buffers[p.count - 1].size();
    }
    if (p.payload == 0) return;
    const auto digits = std::to_chars(p.header.begin(), p.header.end(), p.payload, 16).ptr;
    const auto end = std::copy_n("\r\n", 2, digits);
    p.header_size = static_cast<std::size_t>(end - p.header.data());
    p.buffers[header_at] = asio::buffer(p.header.data(), p.header_size);
    p.add(asio::buffer("\r\n", 2));
}

template <class Write>
std::optional<std::size_t> chunked_encoder::write(std::span<const asio::const_buffer> buffers,
                                                  Write&& write) {
    std::size_t taken = 0;
    if (!rest_.empty()) {
        const asio::const_buffer remaining = asio::buffer(rest_);
        const std::optional<std::size_t> n = write(std::span(&remaining, 1));
        if (!n) return std::nullopt;
        rest_.erase(0, *n);
        if (!rest_.empty()) return 0;
        rest_.shrink_to_fit();
        taken = 1; // the last byte of that chunk
    }
    for (;;) {
        portion p;
        assemble(p, buffers, taken);
        if (p.count == 0) return taken;
        const std::optional<std::size_t> n = write(std::span(p.buffers.data(), p.count));
        if (!n) return std::nullopt;
        plain_ -= std::min(p.plain, *n);
        if (*n < p.size() && *n <= p.plain) return taken + *n; // no byte of the chunk was written
        taken += p.plain + p.payload;
        if (*n == p.size()) continue;
        keep_rest(p, *n);
        return taken - 1;
    }
}

inline void chunked_encoder::keep_rest(const portion& p, std::size_t gone) {
    for (std::size_t i = 0; i < p.count; ++i) {
        const asio::const_buffer remaining = p.buffers[i] + gone;
        gone -= std::min(gone, p.buffers[i].size());
        rest_.append(static_cast<const char*>(remaining.data()), remaining.size());
    }
}

} // namespace detail

// >>origin ////////////////////////////////////////////////////////////////////////////////////////
// Matching of origins, and what responses say about them. No I/O. Needs >>cors, >>head.
// Tests: tests/cors.cpp, tests/origin.cpp

namespace detail {

struct origin_parts {
    std::string_view scheme;
    std::string_view host;
    std::string_view port; ///< With its colon; empty: the scheme's default.
};

/// Splits an Origin as browsers send it: a scheme, a host and, unless it is the scheme's default, a
/// port, in lower case, with nothing after them (HTML 7.1.1, URL standard). Else returns nullopt.
inline std::optional<origin_parts> split_origin(std::string_view text) {
    const std::size_t end = text.find("://");
    if (end == text.npos || text[0] < 'a') return std::nullopt; // a letter first, RFC 3986 3.1
    const auto scheme = text.substr(0, end);
    const auto in_scheme = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
    };
    if (!std::all_of(scheme.begin(), scheme.end(), in_scheme)) return std::nullopt;
    const auto [host, port] = split_port(text.substr(end + 3));
    const auto odd = [](char c) { return c == '%' || c == '*' || lower(c) != c; };
    if (!is_host_name(host) || std::any_of(host.begin(), host.end(), odd)) return std::nullopt;
    const origin_parts parts{scheme, host, port};
    if (port.empty()) return parts;
    const auto number = port.substr(1);
    const bool is_port = read_number<std::uint16_t>(number) && number[0] != '0';
    const bool own = (scheme == "http" && number == "80") || (scheme == "https" && number == "443");
    return is_port && !own ? std::optional(parts) : std::nullopt;
}

/// One entry of a list: an origin, or one whose host begins with "*.", with or without a scheme.
class origin_pattern {
public:
    /// Throws std::invalid_argument if the pattern can never match.
    explicit origin_pattern(std::string_view text) : text_(text) {
        const std::size_t star = text_.find("*.");
        any_scheme_ = star == 0;
        suffix_ = star != text_.npos && star + 2 < text_.size() && text_[star + 2] != ':' &&
                  (any_scheme_ || text_.substr(0, star).ends_with("://"));
        std::string plain = any_scheme_ ? "https://" + text_ : text_; // an origin to be checked
        if (suffix_) plain.replace(plain.find("*."), 1, "x");
        if (text_ != "null" && !split_origin(plain)) {
            throw std::invalid_argument(
                "sse::origins: '" + text_ +
                "' is not an origin as browsers send it; write scheme://host or "
                "scheme://host:port in lower case, without the scheme's own port, a path or a "
                "trailing slash; *.example.com and https://*.example.com stand for sub-domains");
        }
    }

    bool matches(std::string_view origin) const {
        if (!suffix_) return origin == text_;
        const auto parts = split_origin(origin);
        if (!parts) return false;
        const std::string own = any_scheme_ ? "https://" + text_ : text_;
        const std::size_t at = own.find("://");
        const auto [host, port] = split_port(std::string_view(own).substr(at + 3));
        const bool scheme = any_scheme_ ? parts->scheme == "https" || parts->scheme == "http"
                                        : parts->scheme == std::string_view(own).substr(0, at);
        const auto tail = host.substr(1); // ".example.com": whole labels, at least one before it
        return scheme && parts->port == port && parts->host.size() > tail.size() &&
               parts->host.ends_with(tail);
    }

private:
    std::string text_;
    bool any_scheme_ = false;
    bool suffix_ = false;
};

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL origin_matcher origins(const std::vector<std::string>& allowed) {
    std::vector<detail::origin_pattern> patterns;
    bool any = false;
    for (const std::string& one : allowed) {
        if (one == "*") {
            any = true;
        } else {
            patterns.emplace_back(one);
        }
    }
    if (any) return any_origin();
    return [patterns = std::move(patterns)](std::string_view origin) {
        return std::any_of(patterns.begin(), patterns.end(),
                           [&](const auto& one) { return one.matches(origin); });
    };
}

SSE_DECL origin_matcher localhost_origins() {
    return [](std::string_view origin) {
        const auto parts = detail::split_origin(origin);
        return parts && (parts->scheme == "http" || parts->scheme == "https") &&
               (parts->host == "localhost" || parts->host == "127.0.0.1" || parts->host == "[::1]");
    };
}

#endif // SSE_BODIES

namespace detail {

inline std::string join(const std::vector<std::string>& list) {
    std::string joined;
    for (const std::string& one : list) joined.append(joined.empty() ? "" : ", ").append(one);
    return joined;
}

/// Throws std::invalid_argument for options that cannot work.
inline void check_cors(const cors_options& cors) {
    const auto require = [](bool valid, const std::string& what) {
        if (!valid) throw bad_option("cors." + what);
    };
    require(!cors.credentials || !cors.origin.matches_any(),
            "credentials cannot go to every origin: name the origins that may have them");
    for (const auto& [list, name] :
         {std::pair(&cors.methods, "methods"), std::pair(&cors.headers, "headers"),
          std::pair(&cors.exposed, "exposed")}) {
        for (const std::string& one : *list) {
            require(is_token(one), std::string(name) + ": '" + one + "' is not a name");
            require(one != "*" || !cors.credentials,
                    std::string(name) + ": * means nothing when credentials are sent");
        }
    }
    require(cors.max_age.count() >= 0, "max_age must not be negative");
}

/// The CORS field lines of a response. `granted`: whether the matcher accepted the origin.
inline std::string cors_headers(const cors_options& cors, std::optional<std::string_view> origin,
                                bool granted) {
    std::string lines;
    if (cors.origin.matches_any()) {
        lines = "Access-Control-Allow-Origin: *\r\n";
    } else {
        // Also without an Origin: a cache must not give this response to a request that has one.
        lines = "Vary: Origin\r\n";
        if (!origin || !granted) return lines;
        lines.append("Access-Control-Allow-Origin: ").append(*origin).append("\r\n");
        if (cors.credentials) lines.append("Access-Control-Allow-Credentials: true\r\n");
    }
    if (!cors.exposed.empty()) {
        lines.append("Access-Control-Expose-Headers: ").append(join(cors.exposed)).append("\r\n");
    }
    return lines;
}

/// The additional field lines of a preflight response. `served`: the methods of the path.
inline std::string preflight_headers(const cors_options& cors, const std::string& served) {
    std::string lines = "Access-Control-Allow-Methods: ";
    lines.append(cors.methods.empty() ? served : join(cors.methods)).append("\r\n");
    if (!cors.headers.empty()) {
        lines.append("Access-Control-Allow-Headers: ").append(join(cors.headers)).append("\r\n");
    }
    if (cors.max_age.count() > 0) {
        lines.append("Access-Control-Max-Age: " + std::to_string(cors.max_age.count()) + "\r\n");
    }
    return lines;
}

} // namespace detail

// >>peer //////////////////////////////////////////////////////////////////////////////////////////
// The address of a client behind trusted proxies, and which hosts a Host header may name. Text in,
// values out, no I/O. Needs >>head.
// Tests: tests/authorize.cpp, tests/peer.cpp

namespace detail {

using address = asio::ip::address;

/// An IPv4-mapped IPv6 address becomes plain IPv4, so that one client is counted once.
inline address without_mapping(const address& a) {
    if (!a.is_v6() || !a.to_v6().is_v4_mapped()) return a;
    return asio::ip::make_address_v4(asio::ip::v4_mapped, a.to_v6());
}

/// What limits by address count as one client: an IPv4 address, or the /64 that an IPv6 customer
/// has. A link-local address counts whole: it is one machine, and all links share the prefix.
inline address counting_prefix(const address& a) {
    if (!a.is_v6() || a.to_v6().is_link_local()) return a;
    auto bytes = a.to_v6().to_bytes();
    std::fill(bytes.begin() + 8, bytes.end(), static_cast<unsigned char>(0));
    return asio::ip::address_v6(bytes);
}

/// A block of addresses, such as 10.0.0.0/8 or fd00::/8; one address is a block too.
class address_block {
public:
    /// Throws std::invalid_argument if the text is not one.
    explicit address_block(const std::string& text) {
        const std::size_t slash = std::min(text.find('/'), text.size());
        asio::error_code failed;
        address_ = asio::ip::make_address(text.substr(0, slash), failed);
        const unsigned most = address_.is_v4() ? 32 : 128;
        bits_ = most;
        bool valid = !failed &&
                     without_mapping(address_) == address_; // client addresses are without_mapping
        if (slash < text.size()) {
            const auto bits = read_number<unsigned>(std::string_view(text).substr(slash + 1));
            valid = valid && bits.value_or(most + 1) <= most;
            bits_ = bits.value_or(0);
        }
        if (!valid) {
            throw bad_option("proxy.trusted: '" + text +
                             "' is not an IP address or CIDR block; write 10.0.0.0/8 or ::1");
        }
    }

    bool contains(const address& a) const {
        if (a.is_v4() != address_.is_v4()) return false;
        return a.is_v4() ? same_bits(a.to_v4().to_bytes(), address_.to_v4().to_bytes())
                         : same_bits(a.to_v6().to_bytes(), address_.to_v6().to_bytes());
    }

private:
    template <class Bytes>
    bool same_bits(const Bytes& a, const Bytes& b) const {
        for (unsigned bit = 0; bit < bits_; ++bit) {
            const unsigned mask = 0x80u >> (bit % 8);
            if ((a[bit / 8] & mask) != (b[bit / 8] & mask)) return false;
        }
        return true;
    }

    address address_;
    unsigned bits_ = 0;
};

inline bool contained(const std::vector<address_block>& blocks, const address& a) {
    return std::any_of(blocks.begin(), blocks.end(),
                       [&](const address_block& one) { return one.contains(a); });
}

/// The address in "1.2.3.4", "1.2.3.4:80", "::1", "[::1]" or "[::1]:80".
inline std::optional<address> read_address(std::string_view text) {
    if (text.find('\0') != text.npos) return std::nullopt; // Asio parses a C string
    asio::error_code failed;
    auto whole = asio::ip::make_address(std::string(text), failed);
    if (!failed)
        return text.find('%') == text.npos ? std::optional(without_mapping(whole)) : std::nullopt;
    auto [host, port] = split_port(text);
    if (!port.empty() && !is_digits(port.substr(1))) return std::nullopt;
    const bool bracketed = host.starts_with('[') && host.ends_with(']');
    if (bracketed) host = host.substr(1, host.size() - 2);
    whole = asio::ip::make_address(std::string(host), failed);
    if (failed || host.find('%') != host.npos || bracketed != whole.is_v6()) return std::nullopt;
    return without_mapping(whole);
}

/// Removes from the front of a list what comes before the first separator outside quotes, and
/// returns it. Returns nullopt if a quote is not closed.
inline std::optional<std::string_view> take_unquoted(std::string_view& list, char separator) {
    bool quoted = false;
    std::size_t at = 0;
    for (; at < list.size() && (quoted || list[at] != separator); ++at) {
        if (quoted && list[at] == '\\') {
            ++at;
        } else if (list[at] == '"') {
            quoted = !quoted;
        }
    }
    const auto taken = list.substr(0, at);
    list.remove_prefix(std::min(list.size(), at + 1));
    return quoted ? std::nullopt : std::optional(taken);
}

/// The "for" of one element of a Forwarded header (RFC 7239 4).
inline std::string_view forwarded_for(std::string_view element) {
    while (!element.empty()) {
        const auto pair = take_unquoted(element, ';').value_or("");
        const std::size_t equals = std::min(pair.find('='), pair.size());
        if (!equal_ignoring_case(trim(pair.substr(0, equals)), "for")) continue;
        auto value = trim(pair.substr(std::min(equals + 1, pair.size())));
        if (value.starts_with('"')) value = value.substr(1, value.size() - 2); // quotes are closed
        return value;
    }
    return {};
}

/// The name of the header field that such a proxy writes.
inline std::string_view field_of(forwarded_by source) noexcept {
    return source == forwarded_by::forwarded   ? "Forwarded"
           : source == forwarded_by::x_real_ip ? "X-Real-IP"
                                               : "X-Forwarded-For";
}

/// The client's address: the peer address, unless that is a trusted proxy; then the nearest hop
/// that is not one, walking the header from its end. A hop that cannot be parsed ends the walk: the
/// result is the hop reached before it.
inline address client_address(const request& r, const address& peer,
                              const std::vector<address_block>& trusted, forwarded_by source) {
    address nearest = without_mapping(peer);
    const std::string_view name = field_of(source);
    std::vector<std::string_view> hops;
    for_each_value(r.fields, name, [&](std::string_view list) {
        if (source != forwarded_by::forwarded) {
            for_each_element(list, [&](std::string_view hop) { hops.push_back(hop); });
        }
        // Quoted text may be the client's own, such as its Host: separators in it do not count.
        while (source == forwarded_by::forwarded && !list.empty()) {
            const auto element = take_unquoted(list, ',');
            if (!element || !trim(*element).empty()) hops.push_back(trim(element.value_or("")));
        }
    });
    if (source == forwarded_by::x_real_ip && hops.size() > 1) return nearest;
    while (!hops.empty() && contained(trusted, nearest)) {
        const auto text =
            source == forwarded_by::forwarded ? forwarded_for(hops.back()) : hops.back();
        const auto hop = read_address(text);
        if (!hop) break;
        nearest = *hop;
        hops.pop_back();
    }
    return nearest;
}

/// The header that a proxy sends before a connection's first byte (PROXY protocol versions 1 and 2,
/// sections 2.1 and 2.2).
struct proxy_head {
    enum class progress { need_more, complete, refused } outcome = progress::need_more;
    std::size_t size = 0;        ///< Of the header, when complete.
    std::optional<address> from; ///< None: the proxy's own connection, or not known.
};

inline proxy_head read_proxy_head_v1(std::string_view received) {
    using progress = proxy_head::progress;
    const std::size_t end = received.substr(0, 107).find("\r\n"); // at most 107 bytes (2.1)
    if (end == received.npos) {
        return {received.size() < 107 ? progress::need_more : progress::refused, 0, {}};
    }
    std::array<std::string_view, 6> word{};
    std::string_view line = received.substr(0, end);
    for (std::string_view& one : word) {
        one = line.substr(0, line.find(' '));
        line.remove_prefix(std::min(line.size(), one.size() + 1));
    }
    if (word[1] == "UNKNOWN") return {progress::complete, end + 2, {}};
    const auto read = [&](std::string_view text) { // without port or brackets
        asio::error_code failed;
        const auto a = asio::ip::make_address(std::string(text), failed);
        const bool valid = !failed && word[1] == (a.is_v6() ? "TCP6" : "TCP4");
        return valid ? read_address(text) : std::nullopt;
    };
    const auto is_port = [](std::string_view text) {
        return read_number<std::uint16_t>(text) && (text[0] != '0' || text.size() == 1);
    };
    const auto from = read(word[2]);
    const bool valid = received[end - 1] != ' ' && line.empty() && from && read(word[3]) &&
                       is_port(word[4]) && is_port(word[5]);
    if (!valid) return {progress::refused, 0, {}};
    return {progress::complete, end + 2, from};
}

inline proxy_head read_proxy_head_v2(std::string_view received) {
    using progress = proxy_head::progress;
    if (received.size() < 16) return {};
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(received[i]); };
    const std::size_t length = byte(14) * 256u + byte(15);
    const unsigned command = byte(12);
    if ((command != 0x20 && command != 0x21) || length > 1024) return {progress::refused, 0, {}};
    if (command == 0x21) {
        const unsigned family = byte(13) >> 4, protocol = byte(13) & 15;
        const std::size_t least = byte(13) == 0x11 ? 12 : byte(13) == 0x21 ? 36 : 0;
        if (family > 3 || protocol > 2 || length < least) return {progress::refused, 0, {}};
    }
    if (received.size() < 16 + length) return {};
    proxy_head head{progress::complete, 16 + length, {}};
    if (command == 0x20) return head; // LOCAL: the proxy's own, such as a health check
    if (byte(13) == 0x11) {
        asio::ip::address_v4::bytes_type bytes{};
        std::copy_n(received.begin() + 16, bytes.size(), bytes.begin());
        head.from = asio::ip::address_v4(bytes);
    } else if (byte(13) == 0x21) {
        asio::ip::address_v6::bytes_type bytes{};
        std::copy_n(received.begin() + 16, bytes.size(), bytes.begin());
        head.from = without_mapping(asio::ip::address_v6(bytes));
    }
    return head;
}

inline proxy_head read_proxy_head(std::string_view received) {
    constexpr std::string_view v2("\r\n\r\n\0\r\nQUIT\n", 12);
    constexpr std::string_view v1 = "PROXY ";
    const auto begins_with = [&](std::string_view sign) {
        return received.substr(0, sign.size()) == sign.substr(0, received.size());
    };
    if (begins_with(v1)) return read_proxy_head_v1(received);
    if (begins_with(v2)) return read_proxy_head_v2(received);
    return {proxy_head::progress::refused, 0, {}};
}

/// The address in a Host header, if its host is written as one. No DNS name looks like an address.
inline std::optional<address> host_address(std::string_view host) {
    const bool bracketed = host.starts_with('[') && host.ends_with(']');
    if (bracketed) host = host.substr(1, host.size() - 2);
    if (host.find('%') != host.npos || host.find('\0') != host.npos) return std::nullopt;
    asio::error_code failed;
    const auto a = asio::ip::make_address(std::string(host), failed);
    if (failed || bracketed != a.is_v6()) return std::nullopt;
    return without_mapping(a);
}

/// Whether a Host header names one of the hosts, on any port. Names are compared whole:
/// localhost.evil is not localhost. "*.example" matches every name that ends in ".example"; an
/// address matches in every spelling.
inline bool is_one_of_hosts(const std::vector<std::string>& hosts, std::string_view header) {
    std::string_view host = split_port(header).first;
    if (host.ends_with('.')) host.remove_suffix(1); // the DNS root
    const auto named = host_address(host);
    return std::any_of(hosts.begin(), hosts.end(), [&](const std::string& one) {
        if (one.starts_with("*.")) {
            const auto end = std::string_view(one).substr(1);
            return host.size() > end.size() &&
                   equal_ignoring_case(host.substr(host.size() - end.size()), end);
        }
        return equal_ignoring_case(one, host) || (named && named == host_address(one));
    });
}

/// Whether a Host header names this machine: localhost (RFC 6761 6.3) or a loopback address.
inline bool is_loopback_host(std::string_view header) {
    static const std::vector<std::string> names = {"localhost", "*.localhost"};
    const auto named = host_address(split_port(header).first);
    return named ? named->is_loopback() : is_one_of_hosts(names, header);
}

/// An entry of options::hosts in the form that is compared: without a port, since every port is
/// served, and with an IPv6 address in brackets. Returns nullopt if no Host header could match it.
inline std::optional<std::string> read_host(std::string_view text) {
    asio::error_code failed;
    const auto a = asio::ip::make_address_v6(std::string(text), failed);
    if (!failed && text.find('%') == text.npos) return "[" + a.to_string() + "]";
    const auto [name, port] = split_port(text);
    if (port.size() == 1 || (!port.empty() && !is_digits(port.substr(1)))) return std::nullopt;
    std::string_view host = name;
    if (host == "*") return port.empty() ? std::optional<std::string>("*") : std::nullopt;
    if (host.ends_with('.')) host.remove_suffix(1);
    const auto rest = host.starts_with("*.") ? host.substr(2) : host;
    if (rest.empty() || rest.find('*') != rest.npos || !is_host_name(rest)) return std::nullopt;
    return std::string(host);
}

} // namespace detail

// >>topic /////////////////////////////////////////////////////////////////////////////////////////
// Topic paths, the subscribers of each, and what of it is forgotten. No I/O, no threads. Needs
// >>encoding, >>frame.
// Tests: tests/topic.cpp

namespace detail {

/// "/a/b" for "a/b", "/a/b" and "/a/b/"; "" for the root. Returns nullopt if the text is not a
/// topic.
inline std::optional<std::string> canonical_topic(std::string_view text) {
    constexpr int max_depth = 32; // clients choose topics, and each segment costs a tree node
    int depth = 0;
    std::string out;
    if (text.empty() || text == "/") return out;
    if (text.starts_with('/')) text.remove_prefix(1);
    if (text.ends_with('/')) text.remove_suffix(1);
    for (;;) {
        const std::size_t end = std::min(text.find('/'), text.size());
        const auto segment = text.substr(0, end);
        if (segment.empty() || segment == "." || segment == ".." || ++depth > max_depth ||
            std::any_of(segment.begin(), segment.end(), is_control)) {
            return std::nullopt;
        }
        out.append("/").append(segment);
        if (end == text.size()) return out;
        text.remove_prefix(end + 1);
    }
}

inline std::string checked_topic(std::string_view text) {
    auto topic = canonical_topic(text);
    if (!topic) throw std::system_error(errc::bad_topic, "sse: '" + std::string(text) + "'");
    return *std::move(topic);
}

/// The private topic of a user: one segment, whose name no client can ask for.
inline std::string user_topic(std::string_view key) {
    if (key.empty() || std::any_of(key.begin(), key.end(), is_control)) {
        throw std::system_error(errc::bad_key, "sse: '" + std::string(key) + "'");
    }
    std::string topic("\x1f");
    for (const char c : key) topic += c == '/' ? '\x1f' : c;
    return topic;
}

/// How many tree nodes canonical topics can need together.
inline std::size_t count_segments(const std::vector<std::string>& topics) {
    std::size_t sum = 0;
    for (const std::string& one : topics) {
        sum += static_cast<std::size_t>(std::count(one.begin(), one.end(), '/'));
    }
    return sum;
}

/// Whether a subscriber of one topic receives what is published to another: by whole path segments.
inline bool covers(std::string_view subscribed, std::string_view published) noexcept {
    return published.starts_with(subscribed) &&
           (published.size() == subscribed.size() || published[subscribed.size()] == '/');
}

/// What the log has forgotten of some messages: each mark is one past the last of its sort.
struct horizon {
    /// Which clients lose something when the log drops a frame.
    enum class loss : std::uint8_t {
        each,  ///< Those that want every message; others get or have a newer one of its key.
        anyone ///< Also those that want only the newest message of each key.
    };

    std::uint64_t forgotten = 0; ///< Of the messages that can be replayed,
    std::uint64_t dropped = 0;   ///< of those not even kept as the newest of their key,
    std::uint64_t passed = 0;    ///< and of the ephemeral ones.

    void raise(const frame& f, std::uint64_t sequence, loss kind) noexcept {
        raise(f.ephemeral() ? passed : forgotten, sequence + 1);
        if (kind == loss::anyone && !f.ephemeral()) raise(dropped, sequence + 1);
    }
    void raise(const horizon& other) noexcept {
        raise(forgotten, other.forgotten);
        raise(dropped, other.dropped);
        raise(passed, other.passed);
    }

    /// All that is lost to such a client lies before the position returned. What is never replayed
    /// is lost only to a client that was connected then; this one is live from that position on.
    std::uint64_t hides(loss kind, std::uint64_t live_from) const noexcept {
        if (kind == loss::anyone) return dropped;
        return passed > live_from ? std::max(forgotten, passed) : forgotten;
    }

private:
    static void raise(std::uint64_t& mark, std::uint64_t to) noexcept { mark = std::max(mark, to); }
};

/// Subscribers by topic. Ordered maps, not hash tables: clients choose the names, and could make
/// them collide.
template <class Subscriber>
class topic_tree {
public:
    struct node {
        node* parent = nullptr;
        std::string_view segment; ///< The parent's key for it.
        std::string path;         ///< The whole topic; set once somebody subscribes.
        std::map<std::string, std::unique_ptr<node>, std::less<>> children; ///< By segment.
        std::vector<Subscriber*> subscribers; ///< Dense: removal moves the last into its slot.
        std::vector<std::uint64_t> pending;   ///< Frames of the current pass; keep the node alive.
        horizon gone;                         ///< Of what its subscribers would have received.
        bool is_private = false;              ///< Whether it is the topic of one user.
    };

    /// The node of a canonical topic, created if there is none.
    node& find_or_add(std::string_view topic) {
        node* at = &root_;
        for_each_segment(topic, [&](std::string_view segment) {
            auto found = at->children.find(segment);
            if (found == at->children.end()) {
                found = at->children.emplace(std::string(segment), std::make_unique<node>()).first;
                found->second->parent = at;
                found->second->segment = found->first;
            }
            at = found->second.get();
            return true;
        });
        at->path = topic;
        return *at;
    }

    /// Calls f for each node that receives what is published to a canonical topic, the root first.
    template <class F>
    void for_each_concerned(std::string_view topic, F&& f) {
        node* at = &root_;
        if (!at->subscribers.empty()) f(*at);
        for_each_segment(topic, [&](std::string_view segment) {
            const auto found = at->children.find(segment);
            if (found == at->children.end()) return false;
            at = found->second.get();
            if (!at->subscribers.empty()) f(*at);
            return true;
        });
    }

    /// Frees the node, and then its parents, as long as nothing depends on them.
    void prune(node* at) {
        while (at->parent && at->subscribers.empty() && at->children.empty() &&
               at->pending.empty()) {
            node* const parent = at->parent;
            parent->children.erase(parent->children.find(at->segment));
            at = parent;
        }
    }

    bool empty() const noexcept { return root_.subscribers.empty() && root_.children.empty(); }

private:
    /// Calls f(segment) until it returns false.
    template <class F>
    static void for_each_segment(std::string_view topic, F&& f) {
        std::size_t at = 0;
        while (at < topic.size()) {
            const std::size_t end = std::min(topic.find('/', at + 1), topic.size());
            if (!f(topic.substr(at + 1, end - at - 1))) return;
            at = end;
        }
    }

    node root_;
};

} // namespace detail

// >>record ////////////////////////////////////////////////////////////////////////////////////////
// A message as bytes for a bus, and back; and what servers tell each other. Fields, not their
// encoding: what came over a bus is checked like what a program publishes. Needs >>options,
// >>encoding, >>frame, >>topic.
// Tests: tests/record.cpp
//
//     version (1)  kind  flags  node, 8 bytes  count, 8 bytes
//     topic  event  key  comment  [id]  [data]    each: its size, then its bytes
//     [retry]                                     numbers and sizes: 7 bits a byte, lowest first
//
//     version (1)  kind, from 16  node, 8 bytes  to, 8 bytes  number  part
//     name  user  topic  streams                  of each: id, age, three numbers of its lag, user,
//                                                 client, count of topics, topics

namespace detail {

/// Tells a message that the bus stored twice: a publisher that gets no confirmation repeats it.
struct token {
    std::uint64_t node = 0;  ///< A random number of each server.
    std::uint64_t count = 0; ///< Of its messages.
};

struct record {
    frame::kind what = frame::kind::topic;
    std::string_view topic = {};
    message content = {};
    token mark = {};
};

inline constexpr char record_version = 1;
enum : std::uint8_t { record_data = 1, record_id = 2, record_retry = 4, record_ephemeral = 8 };

inline void put_number(std::string& to, std::uint64_t n) {
    for (; n >= 0x80; n >>= 7) to += static_cast<char>(n | 0x80);
    to += static_cast<char>(n);
}

inline void put_fixed(std::string& to, std::uint64_t n) {
    for (int i = 0; i < 8; ++i, n >>= 8) to += static_cast<char>(n);
}

inline void put_text(std::string& to, std::string_view text) {
    put_number(to, text.size());
    to.append(text);
}

inline std::string encode_record(const record& r) {
    const message& m = r.content;
    unsigned flags = m.ephemeral ? record_ephemeral : 0;
    if (m.data) flags |= record_data;
    if (m.id) flags |= record_id;
    if (m.retry) flags |= record_retry;
    std::string out{record_version, static_cast<char>(r.what), static_cast<char>(flags)};
    out.reserve(40 + r.topic.size() + m.event.size() + m.key.size() + m.comment.size() +
                m.data.value_or("").size() + m.id.value_or("").size());
    for (const std::uint64_t n : {r.mark.node, r.mark.count}) put_fixed(out, n);
    for (const std::string_view text : {r.topic, m.event, m.key, m.comment}) put_text(out, text);
    if (m.id) put_text(out, *m.id);
    if (m.data) put_text(out, *m.data);
    if (m.retry) put_number(out, static_cast<std::uint64_t>(m.retry->count()));
    return out;
}

/// Reads the parts of a record in turn. Once one is missing, nothing more is read.
class record_reader {
public:
    explicit record_reader(std::string_view bytes) noexcept : rest_(bytes) {}

    bool is_whole() const noexcept { return !failed_ && rest_.empty(); }
    unsigned byte() noexcept { return static_cast<unsigned char>(take(1)[0]); }
    std::uint64_t fixed() noexcept {
        std::uint64_t n = 0;
        const std::string_view bytes = take(8);
        for (std::size_t i = 8; i > 0; --i) n = n << 8 | static_cast<unsigned char>(bytes[i - 1]);
        return n;
    }
    bool is_at_end() const noexcept { return failed_ || rest_.empty(); }
    std::uint64_t number() noexcept {
        std::uint64_t n = 0;
        for (unsigned shift = 0; shift < 63; shift += 7) {
            const unsigned next = byte();
            n |= std::uint64_t{next & 0x7f} << shift;
            if (next < 0x80) return n;
        }
        failed_ = true;
        return 0;
    }
    std::string_view text() noexcept {
        const std::uint64_t size = number();
        if (size > rest_.size()) {
            failed_ = true;
            return {};
        }
        const std::string_view out = rest_.substr(0, static_cast<std::size_t>(size));
        rest_.remove_prefix(out.size());
        return out;
    }

private:
    std::string_view take(std::size_t size) noexcept {
        static constexpr std::string_view zeros("\0\0\0\0\0\0\0\0", 8);
        failed_ = failed_ || rest_.size() < size;
        if (failed_) return zeros.substr(0, size);
        const std::string_view out = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return out;
    }

    std::string_view rest_;
    bool failed_ = false;
};

/// Ids of streams, where servers share a bus: the server's number, then the stream's in it.
inline constexpr unsigned stream_id_bits = 53, own_id_bits = 33;

inline bool is_stream_id(std::uint64_t id) noexcept { return id != 0 && id >> stream_id_bits == 0; }

/// Whether a message may have come over a bus for this topic. That of a message for one stream is
/// the stream's id.
inline bool fits_topic(frame::kind what, std::string_view topic) {
    if (what == frame::kind::everyone) return topic.empty();
    if (what == frame::kind::stream) {
        return is_stream_id(read_number<std::uint64_t>(topic).value_or(0));
    }
    if (what == frame::kind::topic) return canonical_topic(topic) == topic;
    return what == frame::kind::user && topic.size() > 1 && topic.front() == '\x1f' &&
           topic.find('/') == topic.npos;
}

/// Returns nullopt for bytes that are no record. The result views them.
inline std::optional<record> decode_record(std::string_view bytes) {
    record_reader in(bytes);
    record r;
    if (in.byte() != static_cast<unsigned char>(record_version)) return std::nullopt;
    r.what = static_cast<frame::kind>(in.byte());
    const unsigned flags = in.byte();
    r.mark.node = in.fixed();
    r.mark.count = in.fixed();
    message& m = r.content;
    for (std::string_view* const text : {&r.topic, &m.event, &m.key, &m.comment}) *text = in.text();
    if ((flags & record_id) != 0) m.id = in.text();
    if ((flags & record_data) != 0) m.data = in.text();
    if ((flags & record_retry) != 0) {
        const auto most = static_cast<std::uint64_t>(message::max_retry.count());
        m.retry = std::chrono::milliseconds(std::min(in.number(), most + 1));
    }
    m.ephemeral = (flags & record_ephemeral) != 0;
    if (!in.is_whole() || flags > 15 || !fits_topic(r.what, r.topic) || check(m) ||
        (r.what == frame::kind::stream && !m.ephemeral)) {
        return std::nullopt;
    }
    return r;
}

/// What servers tell each other over a bus. It is passed on, never stored.
struct notice {
    enum class kind : std::uint8_t { ///< Beside those of messages.
        here = 16,                   ///< Once a second, and when another one is heard first.
        gone,
        end_stream, ///< Its id is the number.
        end_user,
        ask,  ///< Which streams do you have? The number is that of the question.
        part, ///< Of the answer.
        last_part,
    };

    kind what = kind::here;
    std::uint64_t node = 0;     ///< Who tells it.
    std::uint64_t to = 0;       ///< Of a part: whose question it answers.
    std::uint64_t number = 0;   ///< Of a stream or a question.
    std::uint64_t part = 0;     ///< From 0.
    std::string_view name = {}; ///< options::node of who tells it.
    std::string_view user = {};
    std::string_view topic = {};
    std::string_view streams = {};
};

/// Whether a listing can have it: canonical, but "/" for the root.
inline bool is_shown_topic(std::string_view text) {
    return text == "/" || (!text.empty() && canonical_topic(text) == text);
}

inline bool is_notice(std::string_view bytes) noexcept {
    return bytes.size() > 1 && bytes[0] == record_version &&
           static_cast<unsigned char>(bytes[1]) >= static_cast<unsigned>(notice::kind::here);
}

/// Whether options::node may be this. Empty: a server finds a name itself.
inline bool is_node_name(std::string_view name) noexcept {
    return name.size() <= 64 &&
           std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

inline std::string encode_notice(const notice& n) {
    std::string out{record_version, static_cast<char>(n.what)};
    out.reserve(64 + n.name.size() + n.user.size() + n.topic.size() + n.streams.size());
    for (std::uint64_t number : {n.node, n.to}) put_fixed(out, number);
    for (const std::uint64_t number : {n.number, n.part}) put_number(out, number);
    for (const std::string_view text : {n.name, n.user, n.topic, n.streams}) put_text(out, text);
    return out;
}

/// Returns nullopt for bytes that are no notice. The result views them; its streams are not read.
inline std::optional<notice> decode_notice(std::string_view bytes) {
    record_reader in(bytes);
    notice n;
    if (in.byte() != static_cast<unsigned char>(record_version)) return std::nullopt;
    const unsigned what = in.byte();
    n.what = static_cast<notice::kind>(what);
    for (std::uint64_t* const number : {&n.node, &n.to}) *number = in.fixed();
    for (std::uint64_t* const number : {&n.number, &n.part}) *number = in.number();
    for (std::string_view* const text : {&n.name, &n.user, &n.topic, &n.streams}) *text = in.text();
    using kind = notice::kind;
    const bool is_part = n.what == kind::part || n.what == kind::last_part;
    const bool valid = in.is_whole() && what >= static_cast<unsigned>(kind::here) &&
                       what <= static_cast<unsigned>(kind::last_part) && is_node_name(n.name) &&
                       std::none_of(n.user.begin(), n.user.end(), is_control) &&
                       (n.topic.empty() || is_shown_topic(n.topic)) &&
                       (is_part || n.streams.empty()) &&
                       (n.what != kind::end_stream || is_stream_id(n.number)) &&
                       (n.what != kind::end_user || !n.user.empty());
    return valid ? std::optional(n) : std::nullopt;
}

/// How many bytes of streams are in one notice at most.
inline constexpr std::size_t max_part = 64 * 1024;

/// Appends a stream to what a notice holds. Its topics are cut where they would fill one.
inline void put_stream(std::string& to, const stream_info& s) {
    const auto put_time = [&](std::chrono::milliseconds time) {
        put_number(to, static_cast<std::uint64_t>(std::max<std::int64_t>(0, time.count())));
    };
    put_number(to, s.id);
    put_time(s.age);
    put_number(to, s.lag.messages);
    put_number(to, s.lag.bytes);
    put_time(s.lag.age);
    put_text(to, s.user);
    put_text(to, s.client.to_string());
    std::string topics;
    std::size_t count = 0;
    for (const std::string& topic : s.topics) {
        if (topics.size() + topic.size() > max_part - 8 * 1024) break; // the rest is for a user
        put_text(topics, topic);
        ++count;
    }
    put_number(to, count);
    to += topics;
}

inline std::optional<stream_info> take_stream(record_reader& in) {
    constexpr std::uint64_t longest = std::uint64_t{1} << 50; // milliseconds: clocks can tell it
    std::uint64_t age = 0, lag_age = 0;
    stream_info s;
    s.id = in.number();
    age = in.number();
    s.lag.messages = in.number();
    s.lag.bytes = in.number();
    lag_age = in.number();
    s.user = in.text();
    asio::error_code wrong;
    s.client = asio::ip::make_address(std::string(in.text()), wrong);
    bool valid = !wrong && is_stream_id(s.id) && age <= longest && lag_age <= longest &&
                 std::none_of(s.user.begin(), s.user.end(), is_control);
    for (std::uint64_t left = in.number(); left > 0 && valid;
         --left) { // what is missing is invalid
        s.topics.emplace_back(in.text());
        valid = is_shown_topic(s.topics.back());
    }
    s.age = std::chrono::milliseconds(age);
    s.lag.age = std::chrono::milliseconds(lag_age);
    return valid ? std::optional(std::move(s)) : std::nullopt;
}

/// Of a notice. Returns nullopt for bytes that are no streams.
inline std::optional<std::vector<stream_info>> decode_streams(std::string_view bytes,
                                                              std::string_view node) {
    record_reader in(bytes);
    std::vector<stream_info> all;
    while (!in.is_at_end()) {
        auto one = take_stream(in);
        if (!one) return std::nullopt;
        one->node = node;
        all.push_back(*std::move(one));
    }
    return in.is_whole() ? std::optional(std::move(all)) : std::nullopt;
}

/// Which messages were seen, by their tokens.
class seen_tokens {
public:
    /// Returns false if it was seen before, as far back as is remembered. The number is of the
    /// record; 0: none.
    bool insert(token t, std::uint64_t number = 0);

    /// Records of this epoch above this number count as not seen.
    void forget(std::uint64_t above);
    void next_epoch() noexcept { numbers_.clear(); }

private:
    static constexpr std::uint64_t window = 1 << 16; // of counts, from the highest down
    static constexpr std::size_t max_nodes = 256;    // each start of a server is one
    static constexpr std::size_t max_numbers = 1 << 16;

    struct node {
        std::uint64_t highest = 0;
        std::uint64_t used = 0; ///< When it was heard last.
        std::vector<bool> seen = std::vector<bool>(window);
    };

    std::map<std::uint64_t, node> nodes_;
    std::uint64_t now_ = 0;
    std::deque<std::pair<std::uint64_t, token>> numbers_; // of this epoch, the newest; they rise
};

inline void seen_tokens::forget(std::uint64_t above) {
    for (; !numbers_.empty() && numbers_.back().first > above; numbers_.pop_back()) {
        const token t = numbers_.back().second;
        const auto of = nodes_.find(t.node);
        const bool is_marked = of != nodes_.end() && of->second.highest - t.count < window;
        if (is_marked) of->second.seen[static_cast<std::size_t>(t.count % window)] = false;
    }
}

inline bool seen_tokens::insert(token t, std::uint64_t number) {
    auto found = nodes_.find(t.node);
    if (found == nodes_.end()) {
        if (nodes_.size() == max_nodes) {
            nodes_.erase(std::min_element(nodes_.begin(), nodes_.end(), [](auto& a, auto& b) {
                return a.second.used < b.second.used;
            }));
        }
        found = nodes_.try_emplace(t.node).first;
        found->second.highest = t.count;
    }
    node& of = found->second;
    of.used = ++now_;
    if (t.count < of.highest && of.highest - t.count >= window) return true; // nobody repeats that
    for (; of.highest < t.count; ++of.highest) {
        if (t.count - of.highest > window) of.highest = t.count - window;
        of.seen[static_cast<std::size_t>((of.highest + 1) % window)] = false;
    }
    const auto at = static_cast<std::size_t>(t.count % window);
    if (of.seen[at]) return false;
    if (number != 0) numbers_.emplace_back(number, t); // if this throws, it is not seen
    if (numbers_.size() > max_numbers) numbers_.pop_front();
    of.seen[at] = true;
    return true;
}

} // namespace detail

// >>log ///////////////////////////////////////////////////////////////////////////////////////////
// A worker's bounded history. One thread, no clock of its own. Needs >>frame, >>topic.
// Tests: tests/log.cpp
//
//     older_      a few frames, kept by a longer bound or as the newest of their key
//     window_     every sequence in [begin, end): a frame, or empty where a bound dropped it
//     shelves_    one for each set of bounds: the server's own, those of topics, ephemeral frames

namespace detail {

class frame_log {
public:
    using loss = horizon::loss;

    /// The first bounds are the server's own. Topics are canonical.
    explicit frame_log(std::vector<topic_history> bounds);

    std::uint64_t begin() const noexcept { return begin_; }
    std::uint64_t end() const noexcept { return begin_ + window_.size(); }

    /// The frame of a sequence that is not forgotten.
    const frame& operator[](std::uint64_t sequence) const { return *ref(sequence); }
    const frame_ref& ref(std::uint64_t sequence) const { return find(sequence)->what; }

    /// The first sequence at or after `from` that is kept, or end(). `newest`: even if it is kept
    /// only for its key.
    std::uint64_t next(std::uint64_t from, bool newest = false) const;

    /// The last sequence before this one that is kept.
    std::optional<std::uint64_t> previous(std::uint64_t from) const;

    /// Whether a newer message of the same topic and key has come.
    bool superseded(std::uint64_t sequence) const { return find(sequence)->superseded; }

    /// How many messages are kept, and their bytes.
    std::pair<std::size_t, std::size_t> kept() const noexcept {
        std::pair<std::size_t, std::size_t> sum{0, 0};
        for (const shelf& s : shelves_) sum = {sum.first + s.frames, sum.second + s.bytes};
        return sum;
    }

    /// The bytes of all messages from this sequence on, including forgotten ones.
    std::uint64_t bytes_from(std::uint64_t sequence) const {
        const entry* const e = nearest(sequence);
        return e ? end_offset_ - e->offset : 0;
    }

    /// When the first message from this sequence on was appended, in the milliseconds of
    /// push_from(). The sequence must be before end().
    std::uint32_t time_of(std::uint64_t sequence) const {
        const entry* const e = nearest(sequence);
        return static_cast<std::uint32_t>(e ? e->time : last_time_);
    }
    /// The first sequence that was appended at this time or later.
    std::uint64_t first_since(std::uint32_t time) const;

    /// The sequence of the message to which the program gave this id.
    std::optional<std::uint64_t> find_id(std::string_view id) const {
        const auto found = own_ids_.find(id);
        if (found == own_ids_.end()) return std::nullopt;
        return found->second;
    }

    /// What is forgotten of the messages for this topic, or below it, that could be replayed; or
    /// of some more.
    horizon horizon_of(std::string_view topic) const;

    /// Whether every message so far was for all subscribers of its topic, and none was ephemeral.
    bool is_plain() const noexcept { return plain_; }
    bool has_bounds_by_topic() const noexcept { return shelves_.size() > 2; }
    const topic_history& bounds() const noexcept { return shelves_.front().bounds; }

    /// Appends what take() returns, unless that is null. Memory is allocated first, so that nothing
    /// is taken that could not be kept. Returns the bytes appended, or nullopt for null.
    template <class Take>
    std::optional<std::size_t> push_from(Take&& take, std::uint32_t now);

    /// Forgets what exceeds its bounds, oldest first, but nothing from `keep` on. Calls
    /// forgot(frame, sequence, loss) just before each loss.
    template <class Forgot>
    void trim(std::uint64_t keep, std::uint32_t now, Forgot&& forgot);

private:
    static constexpr std::uint64_t none = ~std::uint64_t{0};
    static constexpr std::size_t window_factor = 4; // times the server's bound; older: in older_

    struct shelf {
        topic_history bounds;
        std::size_t frames = 0;
        std::size_t bytes = 0;
        std::uint64_t first = none;
        std::uint64_t last = none;
        horizon gone = {};
    };
    struct entry {
        frame_ref what = {};
        std::uint64_t offset = 0;  ///< The bytes of all frames before it.
        std::uint64_t next = none; ///< The next sequence on its shelf.
        std::uint64_t time = 0;
        std::uint16_t shelf = 0;
        bool shelved = false; ///< Within the bounds of its shelf.
        bool superseded = false;
    };
    /// What a message must share with an older one to supersede it, including who gets it.
    using full_key = std::tuple<frame::kind, bool, std::string_view, std::string_view>;
    static full_key key_of(const frame& f) noexcept {
        return {f.type(), f.ephemeral(), f.topic(), f.key()};
    }
    /// A message for one stream has no key that another message could share.
    static bool has_key(const frame& f) noexcept {
        return !f.key().empty() && f.type() != frame::kind::stream;
    }

    const entry& window(std::uint64_t sequence) const {
        return window_[static_cast<std::size_t>(sequence - begin_)];
    }
    const entry* find(std::uint64_t sequence) const {
        if (sequence >= begin_) return &window(sequence);
        const auto found = older_.find(sequence);
        return found == older_.end() ? nullptr : &found->second;
    }
    entry* find(std::uint64_t sequence) {
        return const_cast<entry*>(std::as_const(*this).find(sequence));
    }
    std::size_t shelf_for(const frame& f) const;
    bool is_over(const shelf& s) const;
    void put_on_shelf(entry& e, std::uint64_t sequence);
    void index(const frame& f, std::uint64_t sequence);
    template <class Forgot>
    void forget_first(shelf& s, Forgot& forgot);
    template <class Forgot>
    void drop_newest(Forgot& forgot);
    void forget_key(const frame& f, std::uint64_t sequence);
    void erase(std::uint64_t sequence);
    void advance_clock(std::uint32_t now) noexcept {
        clock_ += now - static_cast<std::uint32_t>(clock_);
    }
    /// The first entry known at or after this sequence, or null.
    const entry* nearest(std::uint64_t sequence) const {
        if (sequence < begin_) {
            const auto found = older_.lower_bound(sequence);
            if (found != older_.end()) return &found->second;
            sequence = begin_;
        }
        return sequence < end() ? &window(sequence) : nullptr;
    }

    std::vector<shelf> shelves_; // the server's own; topics', longest first; ephemeral frames
    std::deque<entry> window_;
    std::uint64_t begin_ = 0;
    std::map<std::uint64_t, entry> older_; // before begin_
    std::uint64_t end_offset_ = 0;         // of all frames ever
    std::map<std::string_view, std::uint64_t> own_ids_;
    std::map<full_key, std::uint64_t> newest_;       // of each key, while it is kept
    std::map<std::uint64_t, std::size_t> unshelved_; // bytes of those kept only for their key
    std::size_t unshelved_bytes_ = 0;
    // Does not wrap: a quiet history spans months. Not from 0: a bus brings what is older.
    std::uint64_t clock_ = std::uint64_t{1} << 40;
    std::uint64_t last_time_ = 0; // of the newest
    bool plain_ = true;
};

inline frame_log::frame_log(std::vector<topic_history> bounds) {
    std::sort(bounds.begin() + 1, bounds.end(), [](const auto& a, const auto& b) {
        return a.topic.size() > b.topic.size(); // the first match is the nearest
    });
    for (topic_history& each : bounds) shelves_.push_back({std::move(each)});
    shelves_.push_back({shelves_.front().bounds}); // separate, so that it pushes no others out
}

inline std::uint64_t frame_log::next(std::uint64_t from, bool newest) const {
    const auto fits = [&](const entry& e) { return e.what && (e.shelved || newest); };
    if (from < begin_) {
        for (auto at = older_.lower_bound(from); at != older_.end(); ++at) {
            if (fits(at->second)) return at->first;
        }
        from = begin_;
    }
    while (from < end() && !fits(window(from))) ++from;
    return std::min(from, end());
}

inline std::optional<std::uint64_t> frame_log::previous(std::uint64_t from) const {
    for (from = std::min(from, end()); from > begin_;) {
        if (window(--from).shelved) return from;
    }
    for (auto at = older_.lower_bound(from); at != older_.begin();) {
        if ((--at)->second.shelved) return at->first;
    }
    return std::nullopt;
}

inline std::uint64_t frame_log::first_since(std::uint32_t time) const {
    const auto since = static_cast<std::int32_t>(time - static_cast<std::uint32_t>(clock_));
    const auto before = [&, at = static_cast<std::int64_t>(clock_) + since](const entry& e) {
        return static_cast<std::int64_t>(e.time) < at;
    };
    if (!window_.empty() && before(window_.front())) {
        const auto found = std::partition_point(window_.begin(), window_.end(), before);
        return begin_ + static_cast<std::uint64_t>(found - window_.begin());
    }
    for (const auto& [sequence, e] : older_) {
        if (!before(e)) return sequence;
    }
    return begin_;
}

inline horizon frame_log::horizon_of(std::string_view topic) const {
    horizon gone;
    bool below_a_bound = false; // then the server's own bounds do not apply
    for (std::size_t i = 1; i + 1 < shelves_.size() && !below_a_bound; ++i) {
        const shelf& s = shelves_[i];
        below_a_bound = covers(s.bounds.topic, topic);
        if (!below_a_bound && !covers(topic, s.bounds.topic)) continue;
        gone.raise(s.gone);
    }
    if (!below_a_bound) gone.raise(shelves_.front().gone);
    return gone;
}

inline std::size_t frame_log::shelf_for(const frame& f) const {
    if (f.ephemeral()) return shelves_.size() - 1;
    if (f.type() != frame::kind::topic) return 0;
    for (std::size_t i = 1; i + 1 < shelves_.size(); ++i) {
        if (covers(shelves_[i].bounds.topic, f.topic())) return i;
    }
    return 0;
}

template <class Take>
std::optional<std::size_t> frame_log::push_from(Take&& take, std::uint32_t now) {
    window_.emplace_back();
    frame_ref taken(take());
    if (!taken) {
        window_.pop_back();
        return std::nullopt;
    }
    const frame& f = *taken;
    const std::size_t size = f.bytes().size();
    entry& made = window_.back();
    made.what = std::move(taken);
    made.offset = end_offset_;
    advance_clock(now);
    made.time = last_time_ = std::max(last_time_, clock_ - f.age());
    made.shelf = static_cast<std::uint16_t>(shelf_for(f));
    end_offset_ += size;
    put_on_shelf(made, end() - 1);
    plain_ = plain_ && !f.ephemeral() && f.type() != frame::kind::user && !f.is_loss();
    try {
        index(f, end() - 1);
    } catch (const std::bad_alloc&) {} // then its id is unknown, or older ones of its key stay
    return size;
}

inline void frame_log::put_on_shelf(entry& e, std::uint64_t sequence) {
    shelf& s = shelves_[e.shelf];
    e.shelved = true;
    ++s.frames;
    s.bytes += e.what->bytes().size();
    if (s.first == none) {
        s.first = sequence;
    } else {
        find(s.last)->next = sequence;
    }
    s.last = sequence;
}

/// The indexes hold views into the frame: they forget it before it is dropped.
inline void frame_log::index(const frame& f, std::uint64_t sequence) {
    // Of two with the same id the first counts: a client that resumes after it misses nothing.
    if (!f.own_id().empty() && !f.ephemeral()) own_ids_.emplace(f.own_id(), sequence);
    if (!has_key(f)) return;
    const full_key name = key_of(f);
    const auto found = newest_.find(name);
    if (found != newest_.end()) {
        const std::uint64_t old = found->second;
        auto node = newest_.extract(found);
        node.key() = name; // the old views end with the old frame
        node.mapped() = sequence;
        newest_.insert(std::move(node));
        entry* const replaced = find(old);
        replaced->superseded = true;
        if (!replaced->shelved) erase(old);
    } else {
        newest_.emplace(name, sequence);
    }
}

/// Drops a frame that was kept only for its key.
inline void frame_log::erase(std::uint64_t sequence) {
    const auto held = unshelved_.find(sequence);
    unshelved_bytes_ -= held->second;
    unshelved_.erase(held);
    if (sequence >= begin_) {
        find(sequence)->what = frame_ref();
    } else {
        older_.erase(sequence);
    }
}

inline bool frame_log::is_over(const shelf& s) const {
    if (s.frames > s.bounds.messages || s.bytes > s.bounds.bytes) return true;
    if (s.bounds.age.count() == 0) return false;
    return static_cast<std::int64_t>(clock_ - find(s.first)->time) >= s.bounds.age.count();
}

template <class Forgot>
void frame_log::trim(std::uint64_t keep, std::uint32_t now, Forgot&& forgot) {
    advance_clock(now);
    for (shelf& s : shelves_) {
        while (s.first < keep && is_over(s)) forget_first(s, forgot);
    }
    const shelf& own = shelves_.front();
    while (unshelved_.size() > own.bounds.messages || unshelved_bytes_ > own.bounds.bytes) {
        drop_newest(forgot);
    }
    const std::size_t most = own.bounds.messages * window_factor;
    while (begin_ < keep && begin_ < end()) {
        entry& oldest = window_.front();
        if (oldest.what) {
            if (window_.size() <= most) break;
            older_.emplace(begin_, std::move(oldest));
        }
        window_.pop_front();
        ++begin_;
    }
}

template <class Forgot>
void frame_log::forget_first(shelf& s, Forgot& forgot) {
    const std::uint64_t sequence = s.first;
    entry& e = *find(sequence);
    const frame& f = *e.what;
    const bool newest = has_key(f) && !e.superseded;
    const bool keyed = newest && !f.ephemeral();
    if (keyed) unshelved_.emplace(sequence, f.bytes().size()); // first, since it may throw
    s.first = e.next;
    if (s.first == none) s.last = none;
    --s.frames;
    s.bytes -= f.bytes().size();
    const loss kind = keyed || e.superseded ? loss::each : loss::anyone;
    s.gone.raise(f, sequence, kind);
    e.shelved = false;
    const auto known = own_ids_.find(f.own_id());
    if (known != own_ids_.end() && known->second == sequence) own_ids_.erase(known);
    if (keyed) unshelved_bytes_ += f.bytes().size();
    forgot(f, sequence, kind);
    if (keyed) return;
    if (newest) forget_key(f, sequence);
    if (sequence >= begin_) {
        e.what = frame_ref();
    } else {
        older_.erase(sequence);
    }
}

/// Removes its key from the index. Another frame may have it there, if memory was not available
/// when this one was appended.
inline void frame_log::forget_key(const frame& f, std::uint64_t sequence) {
    const auto found = newest_.find(key_of(f));
    if (found != newest_.end() && found->second == sequence) newest_.erase(found);
}

/// When over the bounds: forgets the oldest frame that is kept only for its key.
template <class Forgot>
void frame_log::drop_newest(Forgot& forgot) {
    const std::uint64_t sequence = unshelved_.begin()->first;
    const entry& e = *find(sequence);
    const frame& f = *e.what;
    shelves_[e.shelf].gone.raise(f, sequence, loss::anyone);
    forgot(f, sequence, loss::anyone);
    forget_key(f, sequence);
    erase(sequence);
}

} // namespace detail

// >>ids ///////////////////////////////////////////////////////////////////////////////////////////
// Which id stands for which position in the log. A position counts what came in, from 0; its id
// says "everything before it". Needs >>encoding, >>frame.
// Tests: tests/ids.cpp
namespace detail {

/// The id that clients get: `<epoch>-<number>`.
inline std::string make_id(std::string_view epoch, std::uint64_t number) {
    return std::string(epoch) + "-" + std::to_string(number);
}

/// The epoch and the number of such an id. Returns nullopt if it cannot be one.
inline std::optional<std::pair<std::string_view, std::uint64_t>> parse_id(std::string_view id) {
    const std::size_t dash = std::min(id.rfind('-'), id.size());
    const std::string_view digits = id.substr(std::min(dash + 1, id.size()));
    const auto number = read_number<std::uint64_t>(digits);
    if (!number) return std::nullopt;
    return std::pair(id.substr(0, dash), *number);
}

constexpr std::size_t epoch_size = 8;

/// Without a bus there is one epoch, and the number of a position is the position itself. A bus has
/// numbers of its own, and marks in the log say where an epoch begins.
class id_book {
public:
    explicit id_book(std::string epoch) : own_(std::move(epoch)) {}
    id_book() = default; ///< With a bus: append() tells it what is in the log.

    bool has_bus() const noexcept { return own_.empty(); }

    /// The frame is next in the log.
    void append(const frame& f);
    /// Positions before this one need not be known exactly any more. Their ids are older then.
    void trim(std::uint64_t begin);

    std::string id_at(std::uint64_t position) const; ///< Before the first epoch: "".

    enum class state : std::uint8_t {
        known,       ///< The client continues there.
        vague,       ///< After the last frame before there whose number is not larger.
        ahead,       ///< It has messages that have not come here yet.
        too_old,     ///< It lacks some that came before the log began.
        other_epoch, ///< Of another run of the server, or of its bus.
        unknown
    };
    struct found {
        state what;
        std::uint64_t position = 0;
        std::uint64_t number = 0;
        std::uint64_t end = 0; ///< Of its epoch, if it is vague: numbers begin anew there.
    };
    /// So many messages were published so far, which matters without a bus.
    found find(std::string_view id, std::uint64_t published) const;

private:
    struct era {
        std::string epoch;
        std::uint64_t begin; ///< The position after its mark
        std::uint64_t after; ///< stands for this number.
    };
    static constexpr std::size_t max_eras = 64;

    std::uint64_t end() const noexcept { return first_ + numbers_.size(); }
    std::uint64_t number_at(std::uint64_t place) const {
        return numbers_[static_cast<std::size_t>(place - first_)];
    }
    const era& era_of(std::uint64_t position) const;
    found find_in(const era& e, std::uint64_t end, std::uint64_t number) const;

    std::string own_; // the one epoch; empty: there is a bus
    std::vector<era> eras_;
    std::deque<std::uint64_t> numbers_; // of each place, or of the last before it that has one
    std::uint64_t first_ = 0;           // the place of the first of them
};

inline void id_book::append(const frame& f) {
    const std::uint64_t last = numbers_.empty() ? 0 : numbers_.back();
    numbers_.push_back(f.number() == 0 && f.type() != frame::kind::mark ? last : f.number());
    if (f.type() != frame::kind::mark) return;
    const bool goes_on = !eras_.empty() && eras_.back().epoch == f.topic() && !f.is_loss();
    if (goes_on) return;
    if (eras_.size() == max_eras) eras_.erase(eras_.begin());
    eras_.push_back({std::string(f.topic()), end(), f.number()});
}

inline void id_book::trim(std::uint64_t begin) {
    while (first_ + 1 < begin && numbers_.size() > 1) { // one more: the position `begin` needs it
        numbers_.pop_front();
        ++first_;
    }
}

inline const id_book::era& id_book::era_of(std::uint64_t position) const {
    const auto after =
        std::upper_bound(eras_.begin(), eras_.end(), position,
                         [](std::uint64_t at, const era& e) { return at < e.begin; });
    return after == eras_.begin() ? *after : *std::prev(after);
}

inline std::string id_book::id_at(std::uint64_t position) const {
    if (!has_bus()) return make_id(own_, position);
    if (eras_.empty()) return {};
    position = std::min(position, end()); // what is still in the ring has no number here
    const era& e = era_of(position);
    const bool is_known = position > e.begin && position > first_;
    return make_id(e.epoch, is_known ? number_at(position - 1) : e.after);
}

inline id_book::found id_book::find(std::string_view id, std::uint64_t published) const {
    const auto parts = parse_id(id);
    if (!parts || parts->first.size() != epoch_size) return {state::unknown};
    const auto [epoch, number] = *parts;
    if (!has_bus()) {
        if (epoch != own_) return {state::other_epoch};
        if (number > published) return {state::unknown};
        return {state::known, number, number};
    }
    std::uint64_t end_of_era = end();
    const era* oldest = nullptr; // of this epoch: a hole begins another era of it
    for (auto e = eras_.rbegin(); e != eras_.rend(); ++e) {
        if (e->epoch == epoch && number >= e->after) return find_in(*e, end_of_era, number);
        if (e->epoch == epoch) oldest = &*e;
        end_of_era = e->begin - 1; // the place of its mark
    }
    if (oldest) return {state::too_old, oldest->begin, number};
    return {state::other_epoch};
}

inline id_book::found id_book::find_in(const era& e, std::uint64_t end_of_era,
                                       std::uint64_t number) const {
    if (number == e.after) return {state::known, e.begin, number};
    const std::uint64_t from = std::max(e.begin, first_);
    if (from < end_of_era && number < number_at(from)) {
        return {from == e.begin ? state::known : state::vague, e.begin, number, end_of_era};
    }
    const bool is_newest = &e == &eras_.back();
    if (is_newest && (from >= end_of_era || number > number_at(end_of_era - 1))) {
        return {state::ahead, end_of_era, number};
    }
    if (from >= end_of_era) {
        if (first_ > e.begin) return {state::vague, e.begin, number, end_of_era};
        return {state::known, end_of_era, number};
    }
    const auto begin = numbers_.begin() + static_cast<std::ptrdiff_t>(from - first_);
    const auto end = numbers_.begin() + static_cast<std::ptrdiff_t>(end_of_era - first_);
    const auto above = std::upper_bound(begin, end, number);
    return {state::known, from + static_cast<std::uint64_t>(above - begin), number};
}

} // namespace detail

// >>feed //////////////////////////////////////////////////////////////////////////////////////////
// How a worker delivers its log to its clients: which are concerned, what each has not received
// yet, what happens to those that fall behind. No I/O, no clock, no thread: a receiver writes and
// the caller supplies the time, so that tests need neither. Needs >>topic, >>log, >>ids,
// >>subscription.
// Tests: tests/feed.cpp, tests/replay.cpp, tests/nothing_lost.pml
//
//     log      .. 40 41 42 | 43 44 45 46 | 47 48 ..
//                    |     fanned_       planned_     the current pass covers [fanned_, planned_)
//            next_ of a client that is behind: it continues on its own, in flush()
//
// A client that is not busy has received everything due before fanned_; its next_ may be stale.

#if defined(SSE_BODIES)

SSE_DECL std::string_view to_string(gap_reason reason) noexcept {
    switch (reason) {
    case gap_reason::epoch: return "epoch";
    case gap_reason::unknown: return "unknown";
    case gap_reason::too_old: return "too_old";
    case gap_reason::lapped: return "lapped";
    case gap_reason::rewound: return "rewound";
    }
    return "";
}

SSE_DECL std::string_view to_string(end_reason reason) noexcept {
    switch (reason) {
    case end_reason::client_left: return "client left";
    case end_reason::unreachable: return "unreachable";
    case end_reason::ended: return "ended";
    case end_reason::expired: return "expired";
    case end_reason::lagged: return "lagged";
    case end_reason::stalled: return "stalled";
    case end_reason::revoked: return "revoked";
    case end_reason::drained: return "drained";
    case end_reason::cut: return "cut";
    case end_reason::stopped: return "stopped";
    case end_reason::failed: return "failed";
    }
    return "";
}

SSE_DECL std::string_view published::topic() const noexcept { return frame_.topic(); }
SSE_DECL std::string_view published::event() const noexcept { return frame_.event(); }
SSE_DECL std::string_view published::key() const noexcept { return frame_.key(); }

SSE_DECL std::string published::data() const {
    std::string text;
    bool first = true;
    detail::line_splitter lines(frame_.message());
    while (const auto line = lines.next()) {
        if (!line->starts_with("data: ")) continue;
        if (!std::exchange(first, false)) text += '\n';
        text.append(line->substr(6));
    }
    return text;
}

#endif // SSE_BODIES

namespace detail {

/// A number that one thread adds to and any thread reads.
class tally {
public:
    void add(std::uint64_t n) noexcept {
        value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }
    std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> value_{0};
};

/// Bytes as a JSON string (RFC 8259 7), with U+FFFD for what is not UTF-8.
inline std::string json_string(std::string_view text) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string out = "\"";
    while (!text.empty()) {
        const std::size_t size = utf8_size(text);
        const auto code = static_cast<unsigned char>(text.front());
        if (size == 0) {
            out.append("\\ufffd");
        } else if (code == '"' || code == '\\') {
            out.append(1, '\\').append(1, text.front());
        } else if (code < 0x20) {
            out.append("\\u00").append(1, digits[code / 16]).append(1, digits[code % 16]);
        } else {
            out.append(text.substr(0, size));
        }
        text.remove_prefix(std::max<std::size_t>(size, 1));
    }
    return out + '"';
}

inline std::string to_json(const gap& g) {
    std::string out = R"({"reason":")" + std::string(to_string(g.reason)) + R"(","from":)" +
                      json_string(g.from) + R"(,"to":)" + json_string(g.to);
    if (g.missed) out += R"(,"missed":)" + std::to_string(*g.missed);
    return out + '}';
}

/// A stream's own frames, in order. Lives in the coroutine that sends them.
struct outbox {
    std::vector<frame_ref> waiting; ///< Not yet begun.
    std::uint64_t queued = 0;       ///< All so far.
    std::uint64_t written = 0;      ///< Of these, the fully written ones.

    void push(frame_ref f) {
        waiting.push_back(std::move(f));
        ++queued;
    }
};

/// One client, as its feed sees it.
class receiver {
public:
    using node = topic_tree<receiver>::node;

    receiver() = default;
    receiver(const receiver&) = delete;
    receiver& operator=(const receiver&) = delete;

    /// Writes bytes to the client without waiting, and returns how many it took. Returns nullopt if
    /// the connection is broken; its end is then already recorded.
    virtual std::optional<std::size_t> write_some(std::span<const asio::const_buffer> bytes) = 0;
    virtual void await_writable() = 0;                 ///< Calls feed::flush() once writable.
    virtual void yield() = 0;                          ///< Calls feed::flush() a little later.
    virtual void progressed() {}                       ///< Something was written.
    virtual void settled() {}                          ///< Nothing is pending any more.
    virtual bool is_streaming() const { return true; } ///< Its head is sent or on its way.
    /// Messages are missing. Returns true if the gap hook will send a substitute; feed::release()
    /// by_gap_hook follows then.
    virtual bool run_gap_hook(const gap&) { return false; }
    virtual void finished() {}            ///< All that feed::finish() asked for is sent.
    virtual void end(end_reason why) = 0; ///< Calls feed::remove(); may destroy the object.
    virtual void fail(std::exception_ptr what) = 0; ///< The same: a filter threw, or out of memory.

    // What the feed keeps of it.

    enum class origin : std::uint8_t { ///< Where bytes for it come from.
        cut,                           ///< The rest of a frame that a short write cut.
        control, ///< What the feed itself says: an id, a gap, a heartbeat, a farewell.
        own,     ///< Its own frames.
        replay,  ///< What the bus had of before the log.
        log
    };

    struct subscription {
        node* where = nullptr;
        std::uint64_t since = 0;                 ///< The position where it starts.
        std::uint64_t had = 0;                   ///< It has all that it wants before this.
        std::unique_ptr<filter_function> filter; ///< Null: everything.
        std::uint32_t index = 0;                 ///< In the node's subscribers.
        lag_policy lag = lag_policy::disconnect;
    };

    struct unplaced {
        node* where;
        start from;
    };

    /// Older messages than the log has, on their way from the bus.
    struct replayed {
        std::deque<frame_ref> frames; ///< Sent before what is in the log.
        std::size_t count = 0;        ///< Of messages read so far.
        bool asked = false;           ///< More is on its way.
        bool rests = false;           ///< Until overdue() tells of it.
        std::size_t empty_pages = 0;  ///< Of an epoch that is not known here.
        seen_tokens seen;
    };

    struct cold_state { ///< State that few clients need.
        std::vector<subscription> more;
        std::uint64_t reported_before =
            0;                       ///< What is missing before this position is already reported.
        std::uint64_t live_from = 0; ///< Before this position it gets no ephemeral messages.
        horizon gone;                ///< Of the messages to it alone.
        std::uint64_t conflated_before =
            0;                        ///< Messages that conflation left out are counted up to here.
        std::optional<gap> pending;   ///< Still to be reported.
        bool unknown_id = false;      ///< Its id was already found to be unknown.
        std::string own_id = {};      ///< It came with, where next_ has none that is as new,
        std::uint64_t own_id_at = 0;  ///< until next_ is another.
        std::vector<unplaced> starts; ///< Of subscriptions that wait for the bus.
        std::unique_ptr<replayed> replay; ///< What is older than the log, while it needs that.
        std::uint32_t waits_since = 0;    ///< For it.
        bool gave_up = false;             ///< Its id does not come.
        frame_ref last;                   ///< Its farewell, sent last.
        bool finishing = false;
        bool said_farewell = false;     ///< Nothing follows it.
        std::uint32_t behind_since = 0; ///< Has held publishers back since then.
        bool holds_back = false;
        std::uint64_t number = 0; ///< The stream's id, once it was asked for. 0: none yet.
        std::string user;
        receiver* before = nullptr; ///< In the queue of clients that are behind.
        receiver* after = nullptr;
    };

    static constexpr std::uint32_t nowhere = ~std::uint32_t{0};
    static constexpr std::uint8_t by_program = 1; // in held_
    static constexpr std::uint8_t by_gap_hook = 2;
    static constexpr std::uint8_t by_bus = 4; // until its position is known

    cold_state& cold() {
        if (!cold_) cold_ = std::make_unique<cold_state>();
        return *cold_;
    }
    bool follows() const noexcept { return index_in_feed_ != nowhere; }
    bool is_finishing() const noexcept { return cold_ && cold_->finishing; }
    bool conflates() const noexcept {
        bool any = false;
        for_each_subscription(
            [&](const subscription& one) { any = any || one.lag == lag_policy::conflate; });
        return any;
    }
    template <class F>
    void for_each_subscription(F&& f);
    template <class F>
    void for_each_subscription(F&& f) const;

    // First what a delivery touches; last what leaves no padding before the members of a stream.
    std::uint64_t next_ = 0;    // the first position that it may not have received
    std::uint64_t last_id_ = 0; // the position that its last event ID stands for
    std::unique_ptr<cold_state> cold_;
    bool busy_ = false;            // something is unfinished: flush() continues, fan-out skips it
    std::uint8_t held_ = 0;        // by whom: its position is kept, but nothing of the log is sent
    bool adds_framing_ = false;    // adds framing to its bytes: only write_some() knows how
    bool wants_plain_ : 1 = false; // gets all that its one topic gets: the block of a pass fits
    bool starts_in_past_ : 1 = false; // starts in the past, and has received nothing of the log yet
    bool has_id_ : 1 = false;         // has an id to reconnect with
    bool queued_ : 1 = false;         // waits for a turn of feed::catch_up()
    std::uint32_t index_in_feed_ = nowhere; // index in the feed's receivers_
    subscription first_;
    frame_ref cut_;          // the frame that a short write cut, or that comes next
    std::size_t cut_at_ = 0; // how much of it is written
    outbox* own_ = nullptr;
    origin cut_from_ = origin::control;

protected:
    ~receiver() = default;
};

template <class F>
void receiver::for_each_subscription(F&& f) {
    if (first_.where) f(first_);
    if (!cold_) return;
    for (subscription& one : cold_->more) f(one);
}
template <class F>
void receiver::for_each_subscription(F&& f) const {
    if (first_.where) f(first_);
    if (!cold_) return;
    for (const subscription& one : cold_->more) f(one);
}

class feed {
public:
    struct settings {
        std::vector<topic_history> histories; ///< The server's own bounds first.
        std::string epoch;                    ///< Empty: there is a bus, whose marks say it.
        std::string gap_event;
        bool heartbeat_ids = true;
        std::size_t max_unsent_bytes = 0;
        std::size_t run_bytes = 64 * 1024;         ///< The most that is copied at once for many.
        std::size_t turn_bytes = 64 * 1024;        ///< Of a client that is behind, and of a write.
        std::function<void(bool)> hold_publishers; ///< Whether they must wait for a client here.
        /// Asks the bus for what comes after an id, if there is one; bring() follows. Null: the log
        /// is all there is.
        std::function<void(receiver&, const std::string& id)> fetch;
        std::size_t max_fetched = 0; ///< Messages, for one client.
        /// A client is behind: catch_up() is due until it returns false. Must not throw.
        std::function<void()> begin_catch_up;
        /// Writes the same bytes to several clients without waiting, and reports what each took.
        /// Does nothing else: a broken client took nothing, which shows at its next write_some().
        std::function<void(std::span<receiver* const> to, std::string_view bytes,
                           std::span<std::size_t> taken)>
            write_block;
    };
    static constexpr std::size_t max_at_once = send_ring::max_sends; // clients of write_block()
    static constexpr std::size_t batch_frames = 4096;                // of one pass
    static constexpr std::size_t batch_bytes = 256 * 1024; // of one pass, and of one write

    struct totals {
        tally delivered, lagged, gaps, conflated;
    };

    explicit feed(settings s)
        : settings_(std::move(s)), log_(settings_.histories),
          ids_(settings_.epoch.empty() ? id_book() : id_book(settings_.epoch)),
          is_ready_(!ids_.has_bus()) {
        gathered_.pieces.reserve(max_buffers);
    }
    feed(const feed&) = delete;
    feed& operator=(const feed&) = delete;

    /// The time, in milliseconds of any origin; it wraps. Kept up to date by the caller.
    std::uint32_t now = 0;
    const totals& counted() const noexcept { return totals_; }

    // --- incoming frames

    /// Appends what take() returns, until that is null or a bound is reached. Returns the number of
    /// frames.
    template <class Take>
    std::size_t pull(Take&& take, std::size_t max_frames, std::size_t max_bytes);

    /// How many frames have come in altogether.
    std::uint64_t end() const noexcept { return log_.end(); }

    /// Forgets what is too old.
    void forget() {
        log_.trim(keep(), now, [this](auto&&... what) { forgot(what...); });
        if (ids_.has_bus()) ids_.trim(log_.begin());
    }

    // --- fan-out

    /// Whether any stream could receive a message.
    bool has_receivers() const noexcept { return !receivers_.empty() || !named_.empty(); }

    /// Begins a pass over what is new. Returns false if nothing is. An exception changes nothing.
    bool plan();

    /// Continues the pass, as far as the budget of writes reaches. Returns false once it is done.
    bool work(std::size_t& budget);

    // --- with a bus: clients wait until it is known where they start

    /// The history is complete: all that was told before is in the log.
    void set_ready();
    bool is_ready() const noexcept { return is_ready_; }
    /// Clients that have waited for this long for the message with their id, and the number that it
    /// stands for; 0: an id of the program's own.
    std::vector<std::pair<receiver*, id_book::found>> overdue(std::uint32_t time);
    std::string newest_id() const { return ids_.id_at(log_.end()); }
    /// The message does not exist, or cannot be had.
    void give_up_waiting(receiver& r);
    /// What follows in the order of the bus. `whole`: nothing is missing before the first.
    void bring(receiver& r, std::string_view epoch, bool whole,
               std::vector<std::pair<token, frame_ref>> frames);
    void ask_bus(receiver& r);       ///< For more of it, unless that is on its way.
    void rest(receiver& r) noexcept; ///< The bus could not say: overdue() tells of it in a while.

    /// Skips what came in, since nobody follows anything.
    void skip() {
        fanned_ = planned_ = log_.end();
        forget();
    }

    // --- clients that are behind: they wait in one queue, so that the cost of a turn does not grow
    // with their number

    /// Gives a turn to the client that has waited longest. Returns false once nobody waits.
    bool catch_up();
    bool is_anyone_behind() const noexcept { return first_behind_ != nullptr; }
    /// Whether these have received less of the log than was planned meanwhile. Unless they get that
    /// first, a publisher that never pauses moves the history past clients that do read.
    bool owes_turns() const noexcept { return owed_ > 0; }
    void cancel_owed_turns() noexcept { owed_ = 0; } ///< Others cannot wait any longer.

    /// Frees memory that nobody has needed since the last call.
    void give_back_memory();
    /// Adds how far each stream is behind, and what the history has.
    void measure(measurements& sum) const noexcept;

    std::size_t joined_bytes() const noexcept { ///< How much such memory there is.
        std::size_t sum = joined_.capacity() > std::string().capacity() ? joined_.capacity() : 0;
        for (const run& one : runs_) sum += one.joined.capacity();
        return sum;
    }

    // --- one client

    /// `published` is how many places of the ring are claimed so far: "now". It may exceed end().
    void subscribe(receiver& r, const std::string& topic, const start& from,
                   std::uint64_t published, lag_policy lag, filter_function filter,
                   bool is_private = false);
    bool unsubscribe(receiver& r, std::string_view topic, bool is_private = false);
    void remove(receiver& r);
    void name(receiver& r, std::uint64_t number);
    receiver* find(std::uint64_t number) const {
        const auto found = named_.find(number);
        return found == named_.end() ? nullptr : found->second;
    }
    void hold(receiver& r) noexcept { r.held_ |= receiver::by_program; }
    void release(receiver& r, std::uint8_t by = receiver::by_program);
    void enqueue(receiver& r, frame_ref f);
    void enqueue(receiver& r, std::vector<frame_ref> several);
    void enqueue_later(receiver& r, frame_ref f);
    void put(receiver& r, frame_ref f); ///< Before everything else; only while nothing is pending.
    /// Continues what is unfinished: at once, or when its turn to catch up comes.
    void flush(receiver& r);
    /// Continues at once. What remains after `most` bytes waits for its turn.
    void flush_now(receiver& r, std::size_t most);
    void flush_now(receiver& r) {
        flush_now(r, r.follows() ? settings_.turn_bytes : own_turn_bytes);
    }
    bool heartbeat(receiver& r); ///< Returns whether one could be sent.
    bool needs_id(const receiver& r) const;
    bool end_if_lagged(receiver& r, std::uint32_t longest_hold); ///< Only if it is too far behind.
    /// Ends it once it has received all that came before, and then this frame unless it is null.
    void finish(receiver& r, frame_ref last);
    sse::lag lag_of(const receiver& r) const;
    std::vector<std::string> topics_of(const receiver& r) const;

private:
    using node = receiver::node;
    using origin = receiver::origin;
    using subscription = receiver::subscription;

    /// What a write offers: whole frames, or the rest of one.
    struct batch {
        struct piece {
            origin from;
            std::uint64_t sequence; ///< Of a frame of the log; of an id, its position.
            std::size_t end;        ///< In bytes of the batch.
            std::uint64_t last_id;  ///< The position that the last id so far stands for; 0: none.
        };
        std::vector<piece> pieces;
        std::size_t size = 0;
        std::uint64_t upto = 0; ///< Where a client that has taken all of it continues.

        void clear() noexcept {
            pieces.clear();
            size = 0;
            upto = 0;
        }
        void push(origin from, std::uint64_t sequence, std::size_t bytes) {
            size += bytes;
            pieces.push_back({from, sequence, size, last_id()});
        }
        void push(std::uint64_t sequence, const frame& f) {
            push(origin::log, sequence, f.bytes().size());
            upto = sequence + 1;
            if (f.has_id()) pieces.back().last_id = upto;
        }
        std::uint64_t last_id() const noexcept {
            return pieces.empty() ? 0 : pieces.back().last_id;
        }
    };
    /// A stretch of the log, as clients that are behind get it for one topic: the first of them to
    /// need it collects and copies it, the others write it as it is. It keeps what the log forgets.
    struct run {
        std::string topic;
        std::uint64_t begin = 0;
        std::uint64_t common = 0; ///< From here on it is the same for all clients.
        bool full = false;
        std::string joined; ///< The bytes of the frames.
        batch frames;
    };
    struct share {   ///< A block and its receivers, from the last to the first.
        node* where; ///< Null: every receiver.
        std::size_t next = 0;
        bool started = false;
    };
    struct loss {                                 ///< What can no longer be sent to a client.
        std::uint64_t before = 0;                 ///< All of it lies before this position.
        lag_policy policy = lag_policy::conflate; ///< The strictest of the subscriptions concerned.
    };

    static constexpr std::size_t own_turn_bytes = 1024 * 1024; // of a stream that follows nothing
    static constexpr std::size_t max_buffers = 64;             // what Asio passes to one call
    static constexpr std::size_t max_looks = 4096;             // frames examined for one write
    static constexpr std::size_t max_runs = 128;
    static constexpr std::size_t max_empty_pages = 5;  // some seconds apart
    static constexpr std::size_t run_step = 32 * 1024; // little is copied if little is taken

    std::uint64_t keep() const;
    void forgot(const frame& f, std::uint64_t sequence, horizon::loss kind);
    topic_tree<receiver>& tree(bool is_private) noexcept { return is_private ? users_ : topics_; }
    void plan_shares();
    void finish_share(share& s);
    void assemble(const share& s);
    void deliver(receiver& r);
    void deliver_alone(receiver& r);
    void find_due(const receiver& r);
    std::uint64_t next_for(const receiver& r, std::uint64_t from, bool newest) const;
    void deliver_block();
    void continue_sending(receiver& r);
    bool is_behind(const receiver& r) const;
    void wait_for_turn(receiver& r);
    void leave_queue(receiver& r) noexcept;
    bool commit(receiver& r, const batch& from, std::size_t begin, std::size_t end);
    bool commit_part(receiver& r, const batch& from, std::size_t begin, std::size_t end);
    void pass(receiver& r, std::size_t frames, std::uint64_t next, std::uint64_t last_id);
    void begin_frame(receiver& r, const batch::piece& p);
    void end_frame(receiver& r);
    void settle(receiver& r) const noexcept;
    static void say(receiver& r, frame_ref f) noexcept;
    void place_waiting();
    bool place_all(receiver& r);
    void stop_waiting(receiver& r) noexcept;
    void meet_loss(receiver& r, std::uint64_t place);
    std::optional<std::uint64_t> place(receiver& r, node& where, const start& from,
                                       std::uint64_t published);
    std::optional<std::uint64_t> first_kept(node& where, std::uint64_t from) const;
    std::uint64_t position_of_last(node& where, std::size_t count) const;
    std::optional<std::uint64_t> position_of_id(receiver& r, node& where, const std::string& id,
                                                std::uint64_t published);
    bool is_at_hand(const node& where, const id_book::found& what) const;
    bool is_at_hand(const receiver& r) const;
    static bool is_replaying(const receiver& r) noexcept {
        return r.cold_ && r.cold_->replay && !r.cold_->replay->frames.empty();
    }
    static bool wants_replayed(const receiver& r, const frame& f);
    std::uint64_t position_after(const id_book::found& what) const;
    std::uint64_t enter(receiver& r, const std::string& id, const id_book::found& found) const;
    void remove_from(node& where, std::uint32_t index);
    const batch* run_for(receiver& r, std::size_t& from);
    void extend(run& one, std::size_t size) const;
    void gather(receiver& r, bool& looked_enough);
    bool wants(const receiver& r, std::uint64_t sequence, bool& left_out) const;
    static bool concerns(std::string_view topic, bool is_private, const frame& f) noexcept;
    loss missing(const receiver& r) const;
    bool is_gap_due(const receiver& r) const;
    bool announce(receiver& r);
    frame_ref gap_frame(const gap& g, const std::string& id) const;
    static bool has_own_id(const receiver& r, std::uint64_t place) noexcept;
    std::string id_of(const receiver& r, std::uint64_t place) const;
    const frame_ref& id_frame(const receiver& r, std::uint64_t place);
    void check_hold();

    const settings settings_;
    frame_log log_;
    id_book ids_;
    bool is_ready_;                  // clients can be placed
    bool passes_loss_ = false;       // the current pass is a mark alone
    bool met_loss_ = false;          // by the last gather()
    std::vector<receiver*> waiting_; // until they can be placed
    topic_tree<receiver> topics_;
    topic_tree<receiver> users_;
    std::vector<receiver*> receivers_; // those with a subscription
    std::vector<receiver*> holders_;   // those that publishers may have to wait for
    receiver* first_behind_ = nullptr; // has waited longest for a turn
    receiver* last_behind_ = nullptr;
    std::uint64_t behind_ = 0; // how many clients wait there
    std::uint64_t owed_ = 0;   // bytes, to all of them together
    std::unordered_map<std::uint64_t, receiver*> named_;
    std::uint64_t fanned_ = 0;  // every frame before it went to all that were ready
    std::uint64_t planned_ = 0; // and the current pass covers those before this
    horizon broadcasts_gone_;
    bool holding_ = false;
    std::vector<std::uint64_t> broadcasts_; // of the current pass
    std::vector<receiver*> direct_;         // get a message of the current pass alone
    std::vector<std::uint64_t> due_;        // frames of the current pass for due_for_,
    const receiver* due_for_ = nullptr;     // which is being written to; null: not known
    std::vector<share> shares_;             // of the current pass, done from the back
    batch block_;                           // frames for the same clients, in one piece of memory
    std::string_view block_bytes_;
    std::string joined_;                       // the bytes of a block of several frames
    bool joins_ = false;                       // whether it was used since give_back_memory()
    std::array<receiver*, max_at_once> ready_; // for the block; empty while anything else happens
    std::size_t ready_count_ = 0;
    std::vector<run> runs_;
    std::size_t oldest_run_ = 0; // once there are max_runs
    bool runs_used_ = false;     // whether any was used since give_back_memory()
    std::array<asio::const_buffer, max_buffers> buffers_;
    batch gathered_; // what is in buffers_
    frame_ref heartbeat_ = make_raw_frame(":\n\n");
    frame_ref id_frame_;
    std::uint64_t id_frame_place_ = 0;
    totals totals_;
};

// --- incoming frames, forgotten frames

template <class Take>
std::size_t feed::pull(Take&& take, std::size_t max_frames, std::size_t max_bytes) {
    std::size_t frames = 0;
    for (std::size_t bytes = 0; frames < max_frames && bytes < max_bytes; ++frames) {
        const auto size = log_.push_from(take, now);
        if (!size) break;
        bytes += *size;
        if (ids_.has_bus()) ids_.append(log_[log_.end() - 1]);
    }
    if (frames == 0) return 0;
    forget();
    check_hold();
    if (is_ready_ && !waiting_.empty()) place_waiting();
    return frames;
}

/// What must stay: what the current pass covers, and what hold_back clients have not received.
inline std::uint64_t feed::keep() const {
    std::uint64_t from = fanned_;
    for (const receiver* r : holders_) {
        if (r->busy_ || r->held_) from = std::min(from, r->next_);
    }
    return from;
}

/// The log drops a frame: clients that it concerns and that have not received it are sent a gap.
inline void feed::forgot(const frame& f, std::uint64_t sequence, horizon::loss kind) {
    if (f.type() == frame::kind::everyone || f.is_loss()) {
        broadcasts_gone_.raise(f, sequence, kind);
    } else if (f.type() == frame::kind::mark) {
        return;
    } else if (f.type() == frame::kind::stream) {
        if (receiver* const r = find(f.stream())) r->cold_->gone.raise(f, sequence, kind);
    } else {
        tree(f.type() == frame::kind::user).for_each_concerned(f.topic(), [&](node& where) {
            where.gone.raise(f, sequence, kind);
        });
    }
}

/// Publishers start to wait when a client is half of the history behind, and stop at a quarter.
inline void feed::check_hold() {
    bool any = false;
    for (receiver* r : holders_) {
        receiver::cold_state& rare = r->cold();
        const auto lag = lag_of(*r);
        const auto& most = log_.bounds();
        const std::uint64_t part = rare.holds_back ? 4 : 2;
        const bool over = lag.messages > most.messages / part || lag.bytes > most.bytes / part;
        if (over && !rare.holds_back) rare.behind_since = now;
        rare.holds_back = over;
        any = any || over;
    }
    if (any == holding_) return;
    holding_ = any;
    settings_.hold_publishers(any);
}

// --- fan-out: a pass finds the topics that new frames concern, up to a bound, and writes to their
// clients in slices, so that accepts, reads, timers and stops run in between. What comes meanwhile
// goes out together in the next pass: low latency when calm, high throughput when busy.

inline bool feed::plan() {
    if (!is_ready_) { // what comes now is the history, and everybody waits for the end of it
        skip();
        return false;
    }
    fanned_ = planned_;
    if (planned_ == log_.end()) {
        forget(); // what the pass kept alive
        return false;
    }
    try {
        plan_shares();
    } catch (...) { // out of memory: the next turn tries again from the same position
        for (share& s : shares_) {
            if (s.where) s.where->pending.clear();
        }
        shares_.clear();
        direct_.clear();
        planned_ = fanned_;
        throw;
    }
    return true;
}

/// Finds the receivers of the next frames, up to the bounds of a pass.
inline void feed::plan_shares() {
    broadcasts_.clear();
    passes_loss_ = false;
    shares_.push_back({nullptr}); // done last: node shares already include the broadcasts
    const std::size_t most = is_anyone_behind() ? settings_.turn_bytes : batch_bytes;
    std::size_t frames = 0;
    std::size_t bytes = 0;
    for (; planned_ != log_.end(); ++planned_, ++frames) {
        const frame& f = log_[planned_];
        bytes += f.bytes().size();
        if (frames == batch_frames || (frames > 0 && bytes > most)) break;
        if (f.type() == frame::kind::mark) {
            if (!f.is_loss()) continue;
            if (frames > 0) break; // it has a pass of its own
            passes_loss_ = true;
            broadcasts_.push_back(planned_++);
            break;
        }
        if (f.type() == frame::kind::everyone) {
            broadcasts_.push_back(planned_);
        } else if (f.type() == frame::kind::stream) {
            receiver* const r = find(f.stream());
            if (r && r->follows()) {
                direct_.push_back(r);
            } else if (r && r->own_ && r->is_streaming() && !r->is_finishing()) {
                enqueue_later(*r, log_.ref(planned_));
            }
        } else {
            tree(f.type() == frame::kind::user).for_each_concerned(f.topic(), [this](node& where) {
                if (where.pending.empty()) shares_.push_back({&where});
                where.pending.push_back(planned_);
            });
        }
    }
    if (broadcasts_.empty()) shares_.erase(shares_.begin());
    owed_ += behind_ * bytes;
}

inline bool feed::work(std::size_t& budget) {
    while (budget > 0) {
        if (!direct_.empty()) { // first, since a block would move them past their message
            receiver& r = *direct_.back();
            direct_.pop_back();
            --budget;
            deliver_alone(r);
            continue;
        }
        if (shares_.empty()) return false;
        share& s = shares_.back();
        auto& concerned = s.where ? s.where->subscribers : receivers_;
        if (!s.started) {
            assemble(s);
            s.next = concerned.size();
            s.started = true;
        }
        // From the last to the first: one that leaves is replaced by the last, which was served
        // already or is met again at its new index. Clients that come meanwhile start after the
        // pass.
        s.next = std::min(s.next, concerned.size());
        while (s.next > 0 && budget > 0) {
            --budget;
            deliver(*concerned[--s.next]);
            s.next = std::min(s.next, concerned.size());
        }
        deliver_block();
        if (s.next == 0) finish_share(s);
    }
    return true;
}

inline void feed::finish_share(share& s) {
    if (s.where) {
        s.where->pending.clear();
        tree(s.where->is_private).prune(s.where);
    }
    shares_.pop_back();
}

/// Joins the frames of a share, once for all clients that get them.
inline void feed::assemble(const share& s) {
    const auto& own = s.where ? s.where->pending : broadcasts_;
    std::vector<std::uint64_t> merged;
    if (s.where && !broadcasts_.empty()) {
        std::merge(own.begin(), own.end(), broadcasts_.begin(), broadcasts_.end(),
                   std::back_inserter(merged));
    }
    const auto& sequences = merged.empty() ? own : merged;
    joins_ = joins_ || sequences.size() > 1;
    block_.clear();
    joined_.clear();
    for (const std::uint64_t sequence : sequences) {
        const frame& f = log_[sequence];
        if (sequences.size() > 1) joined_.append(f.bytes());
        block_.push(sequence, f);
    }
    block_.upto = planned_;
    block_bytes_ = sequences.size() == 1 ? log_[sequences.front()].bytes() : joined_;
}

/// One client's share of a pass: usually the block that others get too.
inline void feed::deliver(receiver& r) {
    if (r.busy_ || r.held_ || r.next_ >= planned_) return;          // left to flush(), or has it
    const bool came_back = r.cold_ && fanned_ < r.cold_->live_from; // not all of a block is for it
    const bool alone = !r.wants_plain_ || r.next_ > fanned_ || came_back || passes_loss_;
    if (!alone && !r.adds_framing_) {
        ready_[ready_count_++] = &r;
        if (ready_count_ == ready_.size()) deliver_block();
        return;
    }
    deliver_block(); // nothing else may happen while clients are collected, not recorded
    if (alone) return deliver_alone(r);
    const asio::const_buffer whole = asio::buffer(block_bytes_);
    const auto n = r.write_some({&whole, 1});
    if (!n || commit(r, block_, 0, *n)) return;
    settle(r);
    r.busy_ = true;
    r.await_writable();
}

/// Writes the block to the clients collected in ready_.
inline void feed::deliver_block() {
    const std::size_t count = std::exchange(ready_count_, 0);
    if (count == 0) return;
    std::array<std::size_t, max_at_once> taken;
    settings_.write_block({ready_.data(), count}, block_bytes_, {taken.data(), count});
    std::size_t late = 0;
    for (std::size_t i = 0; i < count; ++i) {
        receiver& r = *ready_[i];
        if (commit(r, block_, 0, taken[i])) continue;
        settle(r);
        r.busy_ = true; // from here on flush() continues from the log
        ready_[late++] = &r;
    }
    while (late > 0) ready_[--late]->await_writable(); // may throw: all are recorded by now
}

/// For a client that has several topics or a filter, began within the pass or gets a message alone.
inline void feed::deliver_alone(receiver& r) {
    if (r.busy_ || r.held_ || r.next_ >= planned_) return;
    r.busy_ = true;
    settle(r);
    find_due(r);
    struct guard { // also if the flush throws, out of memory: another pass has other frames
        ~guard() { of.due_for_ = nullptr; }
        feed& of;
    } const forget_due{*this};
    flush_now(r, 2 * batch_bytes); // all of the pass, since what concerns it there is known
}

/// Finds the frames of the current pass that may be for a client, by its topics: to compare each
/// frame with each of many topics would cost their product.
inline void feed::find_due(const receiver& r) {
    if (r.cold_ && r.cold_->number != 0) return; // messages to it alone have no topic
    try {
        due_ = broadcasts_;
        r.for_each_subscription([this](const subscription& one) {
            due_.insert(due_.end(), one.where->pending.begin(), one.where->pending.end());
        });
    } catch (const std::bad_alloc&) { return; } // then it searches the log
    std::sort(due_.begin(), due_.end());
    due_.erase(std::unique(due_.begin(), due_.end()), due_.end());
    due_for_ = &r;
}

/// The next frame at or after `from` that has to be examined for a client.
inline std::uint64_t feed::next_for(const receiver& r, std::uint64_t from, bool newest) const {
    if (due_for_ != &r || from < fanned_ || from >= planned_) return log_.next(from, newest);
    const auto found = std::lower_bound(due_.begin(), due_.end(), from);
    return found == due_.end() ? log_.next(planned_, newest) : *found;
}

/// Records what a client took of a batch that it was offered from `begin` on. Returns whether that
/// was all of it.
inline bool feed::commit(receiver& r, const batch& from, std::size_t begin, std::size_t end) {
    const auto& all = from.pieces;
    if (end != from.size || begin != 0 || all.front().from != origin::log) {
        return commit_part(r, from, begin, end);
    }
    pass(r, all.size(), from.upto, from.last_id()); // most often
    return true;
}

[[gnu::noinline]] inline bool feed::commit_part(receiver& r, const batch& from, std::size_t begin,
                                                std::size_t end) {
    const auto ends_after = [](std::size_t size, const batch::piece& p) { return size < p.end; };
    const auto& all = from.pieces;
    auto at = std::upper_bound(all.begin(), all.end(), begin, ends_after);
    const auto stop = std::upper_bound(at, all.end(), end, ends_after);
    for (; at != stop && at->from != origin::log; ++at) {
        begin_frame(r, *at);
        end_frame(r);
    }
    if (at != stop) { // the rest is of the log
        const batch::piece& last = *std::prev(stop);
        const bool any_id = last.last_id > at->sequence;
        pass(r, static_cast<std::size_t>(stop - at), last.sequence + 1, any_id ? last.last_id : 0);
    }
    if (stop == all.end()) {
        r.next_ = std::max(r.next_, from.upto);
        return true;
    }
    const std::size_t reached = stop == all.begin() ? 0 : std::prev(stop)->end;
    // Framing may have taken a byte more than it says, and then the next frame has begun.
    if (end > reached || (r.adds_framing_ && end > begin)) {
        begin_frame(r, *stop);
        r.cut_at_ += end - reached;
    }
    return false;
}

/// It has received frames of the log, and needs none of the others before `next`.
inline void feed::pass(receiver& r, std::size_t frames, std::uint64_t next, std::uint64_t last_id) {
    totals_.delivered.add(frames);
    r.next_ = next;
    r.starts_in_past_ = false;
    if (last_id != 0) r.last_id_ = last_id;
}

/// The frame of a piece leaves its queue: nothing comes in between until it is written.
inline void feed::begin_frame(receiver& r, const batch::piece& p) {
    switch (p.from) {
    case origin::cut: return; // it has begun
    case origin::control:
        r.cut_ = id_frame(r, p.sequence);
        r.has_id_ = true;
        break;
    case origin::own:
        r.cut_ = std::move(r.own_->waiting.front());
        r.own_->waiting.erase(r.own_->waiting.begin());
        break;
    case origin::replay:
        r.cut_ = std::move(r.cold_->replay->frames.front());
        r.cold_->replay->frames.pop_front();
        r.has_id_ = true;
        break;
    case origin::log:
        r.cut_ = log_.ref(p.sequence);
        r.next_ = p.sequence + 1;
        break;
    }
    r.cut_from_ = p.from;
    r.cut_at_ = 0;
}

inline void feed::end_frame(receiver& r) {
    const frame_ref f = std::exchange(r.cut_, frame_ref());
    if (f->is_message()) totals_.delivered.add(1);
    if (r.cut_from_ == origin::own) {
        if (r.own_) ++r.own_->written;
    } else if (r.cut_from_ == origin::log) {
        r.starts_in_past_ = false;
        if (f->has_id()) r.last_id_ = r.next_;
    }
}

/// A client that has received everything so far may have a stale next_, if nothing concerned it for
/// long: nothing that lies before the current pass is waiting for it.
inline void feed::settle(receiver& r) const noexcept {
    if (!r.held_) r.next_ = std::max(r.next_, fanned_);
}

// --- one client's output, in this order: the frame that a short write cut, the stream's own
// frames, a gap, the log from its position on. So frames are never interleaved.

inline void feed::flush(receiver& r) {
    if (!r.busy_ || r.queued_) return; // it continued before this turn, or will
    if (is_behind(r)) return wait_for_turn(r);
    flush_now(r);
}

inline void feed::flush_now(receiver& r, std::size_t most) {
    if (!r.busy_) return;
    for (std::size_t budget = most; budget > 0;) {
        bool looked_enough = false;
        const batch* offered = nullptr;
        std::size_t from = 0; // offset in it
        try {
            if (!announce(r)) return;
            offered = run_for(r, from);
            if (!offered) {
                gather(r, looked_enough);
                offered = &gathered_;
            }
        } catch (...) { // a filter of the program threw, or out of memory
            return r.fail(std::current_exception());
        }
        const std::size_t count = offered == &gathered_ ? gathered_.pieces.size() : 1;
        if (count == 0) {
            if (std::exchange(met_loss_, false)) continue;
            if (looked_enough) break;
            if (r.cold_ && r.cold_->holds_back) check_hold();
            if (r.cold_ && r.cold_->replay) {
                place_waiting(); // or asks the bus for more
                if (r.cold_->starts.empty()) r.cold_->replay.reset();
                if (r.held_ == 0 && r.next_ < log_.end()) continue;
            }
            if (r.cold_ && r.cold_->last) {
                say(r, std::exchange(r.cold_->last, frame_ref()));
                r.cold_->said_farewell = true;
                continue;
            }
            r.busy_ = false;
            if (r.is_finishing()) return r.finished();
            return r.settled();
        }
        const auto n = r.write_some({buffers_.data(), count});
        if (!n) return;
        const bool whole = commit(r, *offered, from, from + *n);
        if (*n > 0) r.progressed();
        if (r.cold_ && r.cold_->holds_back) check_hold();
        if (!whole) return r.await_writable();
        budget -= std::min(budget, *n);
    }
    if (!r.follows()) return r.yield(); // its own frames only
    wait_for_turn(r);                   // the rest of a long catch-up
}

/// Whether it has more of the log to catch up on than one turn takes, not counting what nobody has
/// received yet.
inline bool feed::is_behind(const receiver& r) const {
    if (!r.follows() || r.held_ || r.next_ >= fanned_) return false;
    return log_.bytes_from(r.next_) - log_.bytes_from(fanned_) > settings_.turn_bytes;
}

inline void feed::wait_for_turn(receiver& r) {
    if (r.queued_) return;
    receiver::cold_state* rare = nullptr;
    try {
        rare = &r.cold();
    } catch (...) { return r.fail(std::current_exception()); } // out of memory
    r.queued_ = true;
    rare->before = last_behind_;
    (last_behind_ ? last_behind_->cold_->after : first_behind_) = &r;
    last_behind_ = &r;
    if (++behind_ == 1) settings_.begin_catch_up();
}

inline void feed::leave_queue(receiver& r) noexcept {
    if (!r.queued_) return;
    r.queued_ = false;
    receiver* const before = std::exchange(r.cold_->before, nullptr);
    receiver* const after = std::exchange(r.cold_->after, nullptr);
    (before ? before->cold_->after : first_behind_) = after;
    (after ? after->cold_->before : last_behind_) = before;
    if (--behind_ == 0) owed_ = 0;
}

inline bool feed::catch_up() {
    if (!first_behind_) return false;
    receiver& r = *first_behind_;
    leave_queue(r);
    owed_ -= std::min<std::uint64_t>(owed_, settings_.turn_bytes);
    flush_now(r);
    return is_anyone_behind();
}

inline void feed::give_back_memory() {
    if (!std::exchange(runs_used_, false)) {
        runs_ = std::vector<run>();
        oldest_run_ = 0;
    }
    if (!std::exchange(joins_, false) && shares_.empty()) {
        std::string().swap(joined_); // an assignment would keep its memory
        block_ = batch();
    }
}

/// Finds the run that holds what the client is sent next, and puts that into buffers_. Returns
/// nullptr if something else comes first, or if the client does not get the same as others.
inline const feed::batch* feed::run_for(receiver& r, std::size_t& from) {
    const receiver::cold_state* const rare = r.cold_.get();
    if (!r.wants_plain_ || !r.follows() || r.first_.lag == lag_policy::conflate) return nullptr;
    if (r.cut_ || r.held_ || (rare && rare->said_farewell)) return nullptr;
    if ((r.own_ && !r.own_->waiting.empty()) || (settings_.heartbeat_ids && !r.has_id_)) {
        return nullptr;
    }
    if (is_replaying(r)) return nullptr;
    const node& where = *r.first_.where;
    horizon gone = where.gone;
    gone.raise(broadcasts_gone_);
    if (r.next_ < gone.hides(horizon::loss::each, 0) || r.next_ >= log_.end()) return nullptr;
    const auto fits = [&](const run& one) {
        return one.begin <= r.next_ &&
               (one.full ? r.next_ < one.frames.upto : r.next_ <= one.frames.upto) &&
               one.topic == where.path;
    };
    runs_used_ = true;
    auto found = std::find_if(runs_.begin(), runs_.end(), fits);
    if (found == runs_.end()) {
        if (runs_.size() < max_runs) {
            runs_.emplace_back().joined.reserve(settings_.run_bytes);
            found = std::prev(runs_.end());
        } else {
            found = runs_.begin() + static_cast<std::ptrdiff_t>(oldest_run_);
            oldest_run_ = (oldest_run_ + 1) % max_runs;
        }
        found->joined.clear();
        found->frames.clear();
        found->begin = found->frames.upto = r.next_;
        found->common = 0;
        found->full = false;
        found->topic = where.path;
    }
    const auto& all = found->frames.pieces;
    const auto next =
        std::lower_bound(all.begin(), all.end(), r.next_,
                         [](const batch::piece& p, std::uint64_t at) { return p.sequence < at; });
    const std::size_t begin = next == all.begin() ? 0 : std::prev(next)->end;
    extend(*found, begin + run_step);
    const bool is_common =
        r.next_ >= found->common || !rare || (rare->number == 0 && r.next_ >= rare->live_from);
    if (!is_common) return nullptr;
    if (begin == found->joined.size()) {
        r.next_ = found->frames.upto;
        return nullptr;
    }
    buffers_[0] = asio::buffer(std::string_view(found->joined).substr(begin));
    from = begin;
    return &found->frames;
}

/// Appends what is next in the log to a run until it has `size` bytes, as far as there is room.
inline void feed::extend(run& one, std::size_t size) const {
    for (std::size_t looks = 0; one.joined.size() < size && looks < max_looks; ++looks) {
        const std::uint64_t at = log_.next(one.frames.upto);
        one.frames.upto = at;
        if (at == log_.end()) return;
        const frame& f = log_[at];
        if (f.is_loss()) {
            one.full = true;
            return;
        }
        if (f.type() == frame::kind::stream) {
            one.common = at + 1;
        } else if (concerns(one.topic, false, f)) {
            one.full = f.bytes().size() > settings_.run_bytes - one.joined.size();
            if (one.full) return;
            if (f.ephemeral()) one.common = at + 1;
            one.frames.push(at, f);
            one.joined.append(f.bytes()); // within what was reserved
        }
        one.frames.upto = at + 1;
    }
}

/// Puts what the client is sent next into buffers_ and gathered_.
inline void feed::gather(receiver& r, bool& looked_enough) {
    gathered_.clear();
    const auto add = [&](std::string_view text, origin from, std::uint64_t sequence = 0) {
        buffers_[gathered_.pieces.size()] = asio::buffer(text);
        gathered_.push(from, sequence, text.size());
    };
    const auto room_left = [&] {
        return gathered_.pieces.size() < max_buffers && gathered_.size < settings_.turn_bytes;
    };
    std::size_t own = 0;
    const auto add_own = [&](bool only_raw) {
        for (; r.own_ && own < r.own_->waiting.size() && room_left(); ++own) {
            const frame& f = *r.own_->waiting[own];
            if (only_raw && f.type() != frame::kind::raw) return;
            add(f.bytes(), origin::own);
        }
    };
    if (r.cut_) add(r.cut_->bytes().substr(r.cut_at_), origin::cut);
    const bool goes_on = r.follows() && !r.held_ && !(r.cold_ && r.cold_->said_farewell);
    const bool gap_is_due = goes_on && is_gap_due(r);
    // First, after the response head, an id to reconnect with, whatever happens to the client next.
    // Also for a client that has reconnected: by HTML 9.2.6 a block without an id, such as a
    // farewell or what its handler sends, would reset the last event ID that it had.
    const bool gap_has_it = gap_is_due && (r.starts_in_past_ || (r.cold_ && r.cold_->pending));
    const bool replays = is_replaying(r);
    if (goes_on && !replays && settings_.heartbeat_ids && !r.has_id_) {
        add_own(true);
        if (gap_has_it) return;
        const std::uint64_t next = ids_.has_bus() ? log_.next(r.next_) : log_.end();
        if (next < log_.end() && log_[next].is_loss()) { // it may have an id of what was lost
            if (gathered_.pieces.empty()) meet_loss(r, next);
            return;
        }
        if (room_left()) add(id_frame(r, r.next_)->bytes(), origin::control, r.next_);
    }
    add_own(false);
    if (replays && !r.cold_->said_farewell) {
        const auto& frames = r.cold_->replay->frames;
        for (auto f = frames.begin(); f != frames.end() && room_left(); ++f) {
            add((*f)->bytes(), origin::replay);
        }
        if (!room_left()) return;
    }
    if (!goes_on || gap_is_due) return;
    const bool newest = r.conflates();
    std::size_t looks = 0;
    std::uint64_t at = next_for(r, r.next_, newest);
    for (; at < log_.end() && room_left(); at = next_for(r, at + 1, newest)) {
        if (++looks > max_looks) break;
        if (log_[at].is_loss()) {
            if (gathered_.pieces.empty()) meet_loss(r, at);
            break;
        }
        bool left_out = false;
        if (wants(r, at, left_out)) {
            buffers_[gathered_.pieces.size()] = asio::buffer(log_[at].bytes());
            gathered_.push(at, log_[at]);
        } else if (left_out && at >= r.cold().conflated_before) {
            totals_.conflated.add(1);
            r.cold().conflated_before = at + 1;
        }
    }
    looked_enough = at < log_.end();
    if (gathered_.pieces.empty()) r.next_ = std::max(r.next_, at);
}

/// A mark says that messages before it may be lost: that is what the client is sent next.
inline void feed::meet_loss(receiver& r, std::uint64_t place) {
    const frame& f = log_[place];
    gap_reason why = gap_reason::epoch;
    for (const gap_reason one : {gap_reason::too_old, gap_reason::rewound}) {
        if (f.event() == to_string(one)) why = one;
    }
    r.cold().pending = gap{why, std::string(f.bytes()), ids_.id_at(place + 1)};
    r.next_ = place + 1;
    met_loss_ = true;
}

inline bool feed::wants(const receiver& r, std::uint64_t sequence, bool& left_out) const {
    const frame& f = log_[sequence];
    if (f.ephemeral() && r.cold_ && sequence < r.cold_->live_from) return false;
    if (f.type() == frame::kind::stream) {
        return f.stream() != 0 && r.cold_ && f.stream() == r.cold_->number;
    }
    if (f.type() == frame::kind::everyone && !r.first_.where) return true;
    bool wanted = false;
    bool known = false; // delivered for a subscription before another one went back
    r.for_each_subscription([&](const subscription& one) {
        if (sequence < one.since || !concerns(one.where->path, one.where->is_private, f)) return;
        if (one.lag == lag_policy::conflate && log_.superseded(sequence)) {
            left_out = true;
        } else if (!one.filter || (*one.filter)(published(f))) {
            wanted = true;
            known = known || sequence < one.had;
        }
    });
    left_out = left_out && !wanted;
    return wanted && !known;
}

inline bool feed::concerns(std::string_view topic, bool is_private, const frame& f) noexcept {
    if (f.type() == frame::kind::everyone) return true;
    const auto kind = is_private ? frame::kind::user : frame::kind::topic;
    return f.type() == kind && covers(topic, f.topic());
}

// --- what is missing

/// What concerns the client, lies after its position, and is forgotten.
inline feed::loss feed::missing(const receiver& r) const {
    const std::uint64_t from = std::max(r.next_, r.cold_ ? r.cold_->reported_before : 0);
    const std::uint64_t live_from = r.cold_ ? r.cold_->live_from : 0;
    loss out;
    const auto consider = [&](std::uint64_t before, const subscription& one, std::uint64_t since) {
        if (before <= std::max(from, since)) return;
        out.before = std::max(out.before, before);
        const bool may_stay = one.lag == lag_policy::skip || one.lag == lag_policy::conflate;
        out.policy = std::min(out.policy, may_stay ? one.lag : lag_policy::disconnect);
    };
    r.for_each_subscription([&](const subscription& one) {
        const bool newest = one.lag == lag_policy::conflate;
        horizon gone = one.where->gone;
        gone.raise(broadcasts_gone_);
        consider(gone.hides(newest ? horizon::loss::anyone : horizon::loss::each, live_from), one,
                 std::max(one.since, one.had));
    });
    // Broadcasts to a client without a topic, and messages to it alone, are of no subscription.
    if (!r.first_.where) consider(broadcasts_gone_.hides(horizon::loss::each, 0), r.first_, 0);
    if (r.cold_) consider(r.cold_->gone.hides(horizon::loss::each, live_from), r.first_, 0);
    return out;
}

inline void feed::measure(measurements& sum) const noexcept {
    for (const receiver* const r : receivers_) {
        const bool is_up_to_date = !r->busy_ && !r->held_; // its position is not kept then
        const std::uint64_t reached = is_up_to_date ? std::max(r->next_, fanned_) : r->next_;
        const std::uint64_t behind = planned_ > reached ? planned_ - reached : 0;
        const auto& bounds = measurements::lag_bounds;
        const auto at = std::lower_bound(bounds.begin(), bounds.end(), behind);
        ++sum.lag[static_cast<std::size_t>(at - bounds.begin())];
        sum.lag_sum += behind;
    }
    const auto [messages, bytes] = log_.kept();
    sum.history_messages = std::max(sum.history_messages, messages);
    sum.history_bytes = std::max(sum.history_bytes, bytes);
}

inline bool feed::is_gap_due(const receiver& r) const {
    return (r.cold_ && r.cold_->pending) || missing(r).before != 0;
}

/// If messages are missing and the gap is next: sends the gap, or leaves it to the gap hook, or
/// closes the connection. Returns false if it was closed: r may be destroyed.
inline bool feed::announce(receiver& r) {
    if (!r.follows() || r.held_ || r.cut_ || is_replaying(r)) return true;
    if (r.cold_ && r.cold_->said_farewell) return true;
    const bool pending = r.cold_ && r.cold_->pending;
    if (r.own_ && !r.own_->waiting.empty()) {
        const bool brings_id =
            settings_.heartbeat_ids && !r.has_id_ && (r.starts_in_past_ || pending);
        if (!brings_id || r.own_->waiting.front()->type() == frame::kind::raw) return true;
    }
    const loss lost = missing(r);
    if (!pending && lost.before == 0) return true;
    gap g;
    if (pending) {
        g = *std::exchange(r.cold_->pending, std::nullopt);
        if (g.reason == gap_reason::lapped) r.next_ = log_.end();
        if (g.to.empty()) {
            g.to = lost.before > r.next_ ? ids_.id_at(lost.before) : id_of(r, r.next_);
            r.cold().reported_before = lost.before;
        }
    } else if (r.starts_in_past_ || lost.policy != lag_policy::disconnect) {
        const bool skips = !r.starts_in_past_ && lost.policy == lag_policy::skip;
        const std::uint64_t to = skips ? log_.end() : lost.before;
        g = {r.starts_in_past_ ? gap_reason::too_old : gap_reason::lapped, id_of(r, r.next_),
             ids_.id_at(to)};
        const bool all_of_it = r.wants_plain_ && r.first_.where->path.empty() && log_.is_plain() &&
                               lost.policy != lag_policy::conflate &&
                               (skips || !log_.has_bounds_by_topic());
        if (all_of_it) g.missed = to - r.next_;
        if (skips) r.next_ = to;
        r.cold().reported_before = lost.before;
    } else {
        totals_.lagged.add(1);
        r.end(end_reason::lagged);
        return false;
    }
    totals_.gaps.add(1);
    if (r.run_gap_hook(g)) {
        r.held_ |= receiver::by_gap_hook;
        return true;
    }
    say(r, gap_frame(g, id_of(r, r.next_)));
    r.has_id_ = true;
    return true;
}

inline frame_ref feed::gap_frame(const gap& g, const std::string& id) const {
    return make_raw_frame(
        encode({.event = settings_.gap_event, .data = to_json(g), .id = std::string_view(id)}));
}

/// A block without data: dispatches no event, but sets the last event ID (HTML 9.2.6).
inline const frame_ref& feed::id_frame(const receiver& r, std::uint64_t place) {
    const bool is_own = has_own_id(r, place);
    if (!id_frame_ || is_own || id_frame_place_ != place) {
        id_frame_ = make_raw_frame(":\nid: " + id_of(r, place) + "\n\n");
        id_frame_place_ = is_own ? ~std::uint64_t{0} : place;
    }
    return id_frame_;
}

/// Where the numbers are forgotten, an id that a client came with is newer than what the log says.
inline bool feed::has_own_id(const receiver& r, std::uint64_t place) noexcept {
    return r.cold_ && !r.cold_->own_id.empty() && r.cold_->own_id_at == place;
}

inline std::string feed::id_of(const receiver& r, std::uint64_t place) const {
    return has_own_id(r, place) ? r.cold_->own_id : ids_.id_at(place);
}

inline bool feed::heartbeat(receiver& r) {
    if (r.busy_) return false;
    settle(r);
    frame_ref sign = heartbeat_;
    if (settings_.heartbeat_ids && r.follows() && !r.held_) {
        sign = id_frame(r, r.next_);
        r.last_id_ = r.next_;
        r.has_id_ = true;
    }
    put(r, std::move(sign));
    return true;
}

/// Whether half of the history has passed without a message for it.
inline bool feed::needs_id(const receiver& r) const {
    if (!settings_.heartbeat_ids || !r.follows() || r.busy_ || r.held_) return false;
    if (r.last_id_ >= fanned_) return false;
    const auto& most = log_.bounds();
    return fanned_ - r.last_id_ > most.messages / 2 || log_.bytes_from(r.last_id_) > most.bytes / 2;
}

inline sse::lag feed::lag_of(const receiver& r) const {
    if (!r.follows() || (!r.busy_ && !r.held_) || r.next_ >= log_.end()) return {};
    return {log_.end() - r.next_, log_.bytes_from(r.next_),
            std::chrono::milliseconds(now - log_.time_of(r.next_))};
}

/// Disconnects a client that cannot continue, without waiting until it is writable. Returns whether
/// it did.
inline bool feed::end_if_lagged(receiver& r, std::uint32_t longest_hold) {
    if (!r.follows() || (!r.busy_ && !r.held_)) return false;
    const bool held_too_long =
        r.cold_ && r.cold_->holds_back && now - r.cold_->behind_since >= longest_hold;
    const loss lost = r.held_ || r.starts_in_past_ ? loss() : missing(r);
    const bool too_much = settings_.max_unsent_bytes != 0 && !r.held_ &&
                          log_.bytes_from(r.next_) > settings_.max_unsent_bytes;
    const lag_policy policy = lost.before != 0 ? lost.policy : r.first_.lag;
    const bool may_stay = policy == lag_policy::skip || policy == lag_policy::conflate;
    if (held_too_long || ((lost.before != 0 || too_much) && !may_stay)) {
        totals_.lagged.add(1);
        r.end(end_reason::lagged);
        return true;
    }
    if (too_much && policy == lag_policy::skip && !r.cold().pending) { // sent once writable
        r.cold().pending = gap{gap_reason::lapped, id_of(r, r.next_), {}};
    }
    return false;
}

// --- subscriptions

inline void feed::subscribe(receiver& r, const std::string& topic, const start& from,
                            std::uint64_t published, lag_policy lag, filter_function filter,
                            bool is_private) {
    const bool first = !r.follows();
    node& where = tree(is_private).find_or_add(topic);
    bool known = false;
    r.for_each_subscription([&](const subscription& one) { known |= one.where == &where; });
    if (known) return;
    if (where.subscribers.empty()) {
        where.is_private = is_private;
        where.gone = log_.horizon_of(topic);
    }
    const std::uint64_t reached = r.busy_ || r.held_ ? r.next_ : std::max(r.next_, fanned_);
    subscription made;
    bool waits = false; // for the bus
    try {
        const auto position = place(r, where, from, published);
        waits = !position;
        made.since = position.value_or(published);
        if (waits) { // one gap, or one read from the bus, for all of them
            r.cold().starts.reserve(r.cold().starts.size() + 1);
            if ((r.held_ & receiver::by_bus) == 0) waiting_.push_back(&r);
        }
        if (made.since < published) r.cold().live_from = std::max(r.cold().live_from, published);
        if (filter) made.filter = std::make_unique<filter_function>(std::move(filter));
        if (r.first_.where) r.cold().more.reserve(r.cold().more.size() + 1); // few
        if (lag == lag_policy::hold_back) holders_.push_back(&r);
        where.subscribers.push_back(&r);
        if (first) receivers_.push_back(&r);
    } catch (...) {
        if (!where.subscribers.empty() && where.subscribers.back() == &r) {
            where.subscribers.pop_back();
        }
        std::erase(holders_, &r);
        if ((r.held_ & receiver::by_bus) == 0) std::erase(waiting_, &r);
        tree(is_private).prune(&where);
        throw;
    }
    if (waits) {
        r.held_ |= receiver::by_bus;
        r.cold_->starts.push_back({&where, from});
        r.cold_->waits_since = now;
        ask_bus(r);
    }
    if (first) {
        r.index_in_feed_ = static_cast<std::uint32_t>(receivers_.size() - 1);
        r.next_ = r.last_id_ = made.since;
        r.starts_in_past_ = made.since < published;
    } else if (made.since < reached) { // the others have received what lies between
        r.for_each_subscription([&](subscription& one) { one.had = std::max(one.had, reached); });
        r.next_ = made.since;
        r.starts_in_past_ = true;
    }
    made.where = &where;
    made.index = static_cast<std::uint32_t>(where.subscribers.size() - 1);
    made.lag = lag;
    r.wants_plain_ = first && !made.filter && !is_private;
    (r.first_.where ? r.cold().more.emplace_back() : r.first_) = std::move(made);
    // What the passes so far do not deliver, it gets on its own: what lies before them, a gap, its
    // first id.
    const bool has_more = r.next_ < planned_ || !r.has_id_ || is_gap_due(r);
    if (has_more && !std::exchange(r.busy_, true)) r.yield();
}

/// The position where a subscription starts, unless only the bus can tell.
inline std::optional<std::uint64_t> feed::place(receiver& r, node& where, const start& from,
                                                std::uint64_t published) {
    std::uint64_t at = published;
    if (!is_ready_) return std::nullopt;
    switch (from.kind_) {
    case start::kind::resume:
    case start::kind::now: return published;
    case start::kind::after: return position_of_id(r, where, from.id_, published);
    case start::kind::oldest: at = 0; break;
    case start::kind::last:
        if (from.count_ == 0) return published;
        at = position_of_last(where, from.count_);
        break;
    case start::kind::since:
        if (from.age_.count() <= 0) return published;
        at = log_.first_since(now - static_cast<std::uint32_t>(from.age_.count()));
        break;
    }
    // At a frame that is kept, so that nothing is missing after the start; or at one that has yet
    // to come out of the ring.
    return std::min(first_kept(where, at).value_or(log_.end()), published);
}

inline void feed::set_ready() {
    is_ready_ = true;
    skip();
    place_waiting();
}

/// Clients whose position is known now go on, on their own.
inline void feed::place_waiting() {
    std::erase_if(waiting_, [this](receiver* r) {
        if (!place_all(*r)) return false;
        r->held_ = static_cast<std::uint8_t>(r->held_ & ~receiver::by_bus);
        if (r->held_ == 0 && !std::exchange(r->busy_, true)) r->yield();
        return true;
    });
}

/// Returns false if the position of a subscription is still unknown.
inline bool feed::place_all(receiver& r) {
    if (is_replaying(r)) return false;
    auto& starts = r.cold_->starts;
    std::vector<std::uint64_t> positions;
    for (const receiver::unplaced& one : starts) {
        const auto position = place(r, *one.where, one.from, log_.end());
        if (!position) {
            ask_bus(r);
            return false;
        }
        positions.push_back(*position);
    }
    const std::uint64_t reached = r.next_;
    std::uint64_t least = ~std::uint64_t{0};
    r.for_each_subscription([&](subscription& one) {
        const auto found = std::find_if(starts.begin(), starts.end(),
                                        [&](const auto& each) { return each.where == one.where; });
        if (found == starts.end()) {
            one.had = std::max(one.had, reached);
        } else {
            one.since = positions[static_cast<std::size_t>(found - starts.begin())];
        }
        least = std::min(least, found == starts.end() ? reached : one.since);
    });
    r.next_ = r.last_id_ = least;
    r.starts_in_past_ = least < log_.end();
    starts.clear();
    return true;
}

inline void feed::stop_waiting(receiver& r) noexcept {
    if ((r.held_ & receiver::by_bus) != 0) std::erase(waiting_, &r);
}

inline std::vector<std::pair<receiver*, id_book::found>> feed::overdue(std::uint32_t time) {
    std::vector<std::pair<receiver*, id_book::found>> out;
    for (receiver* const r : waiting_) {
        if (!is_ready_ || now - r->cold_->waits_since < time) continue;
        r->cold_->waits_since = now;
        const std::string& id = r->cold_->starts.front().from.id_;
        out.emplace_back(r, ids_.find(id, log_.end()));
    }
    return out;
}

inline void feed::give_up_waiting(receiver& r) {
    if ((r.held_ & receiver::by_bus) == 0) return;
    r.cold().gave_up = true;
    place_waiting();
}

/// The first message at or after `from` that is kept for the subscribers of a topic.
inline std::optional<std::uint64_t> feed::first_kept(node& where, std::uint64_t from) const {
    for (std::uint64_t at = log_.next(from); at < log_.end(); at = log_.next(at + 1)) {
        if (concerns(where.path, where.is_private, log_[at]) && !log_[at].ephemeral()) return at;
    }
    return std::nullopt;
}

inline std::uint64_t feed::position_of_last(node& where, std::size_t count) const {
    std::uint64_t at = log_.end();
    while (count > 0) {
        const auto before = log_.previous(at);
        if (!before) return 0;
        at = *before;
        if (concerns(where.path, where.is_private, log_[at]) && !log_[at].ephemeral()) --count;
    }
    return at;
}

/// Unless the message with this id has yet to come from the bus.
inline std::optional<std::uint64_t>
feed::position_of_id(receiver& r, node& where, const std::string& id, std::uint64_t published) {
    using state = id_book::state;
    if (const auto own = log_.find_id(id)) return *own + 1;
    const id_book::found found = ids_.find(id, published);
    const bool is_here = found.what == state::known || found.what == state::vague;
    const bool fetches = settings_.fetch && !(r.cold_ && r.cold_->gave_up);
    if (is_here && (!ids_.has_bus() || is_at_hand(where, found))) return enter(r, id, found);
    receiver::cold_state& rare = r.cold();
    if (fetches && (is_here || found.what == state::too_old || found.what == state::other_epoch)) {
        if (!rare.replay) rare.replay = std::make_unique<receiver::replayed>();
        return std::nullopt;
    }
    const bool may_come =
        found.what == state::ahead || (found.what == state::unknown && ids_.has_bus());
    if (may_come && !rare.gave_up) return std::nullopt;
    if (!rare.unknown_id) {
        gap_reason why = gap_reason::unknown;
        if (found.what == state::other_epoch) why = gap_reason::epoch;
        if (found.what == state::too_old || is_here) why = gap_reason::too_old;
        rare.pending = gap{why, id, {}};
        rare.unknown_id = true; // one gap for all topics
    }
    return is_here ? enter(r, id, found) : found.position;
}

/// Its position, where it goes on with the id that it came with.
inline std::uint64_t feed::enter(receiver& r, const std::string& id,
                                 const id_book::found& found) const {
    const std::uint64_t at = position_after(found);
    if (found.what == id_book::state::vague) {
        r.cold().own_id = id;
        r.cold().own_id_at = at;
    }
    return at;
}

/// Whether the log has all that comes after it, and need not drop it before the client gets it.
inline bool feed::is_at_hand(const node& where, const id_book::found& what) const {
    if (what.what != id_book::state::known && what.what != id_book::state::vague) return false;
    const std::uint64_t at = position_after(what);
    horizon gone = where.gone;
    gone.raise(broadcasts_gone_);
    if (at < log_.end() && log_.end() - at > log_.bounds().messages) return false;
    return gone.hides(horizon::loss::each, log_.end()) <= at;
}

inline bool feed::is_at_hand(const receiver& r) const {
    const auto& starts = r.cold_->starts;
    return std::all_of(starts.begin(), starts.end(), [this](const receiver::unplaced& one) {
        return is_at_hand(*one.where, ids_.find(one.from.id_, log_.end()));
    });
}

inline void feed::ask_bus(receiver& r) {
    receiver::cold_state& rare = *r.cold_;
    if (!rare.replay || rare.replay->asked || rare.replay->rests || is_replaying(r)) return;
    rare.replay->asked = true;
    settings_.fetch(r, rare.starts.front().from.id_);
}

inline void feed::rest(receiver& r) noexcept {
    if (!r.cold_ || !r.cold_->replay) return;
    r.cold_->replay->asked = false;
    r.cold_->replay->rests = true;
    r.cold_->waits_since = now;
}

inline bool feed::wants_replayed(const receiver& r, const frame& f) {
    bool wanted = false;
    const auto& starts = r.cold_->starts;
    r.for_each_subscription([&](const subscription& one) {
        const bool waits = std::any_of(starts.begin(), starts.end(),
                                       [&](const auto& each) { return each.where == one.where; });
        wanted = wanted || (waits && concerns(one.where->path, one.where->is_private, f) &&
                            (!one.filter || (*one.filter)(published(f))));
    });
    return wanted;
}

inline void feed::bring(receiver& r, std::string_view epoch, bool whole,
                        std::vector<std::pair<token, frame_ref>> frames) {
    if (!r.cold_ || !r.cold_->replay || r.cold_->starts.empty()) return;
    receiver::cold_state& rare = *r.cold_;
    receiver::replayed& replay = *rare.replay;
    replay.asked = false;
    const std::string id = rare.starts.front().from.id_;
    const auto differs = [&](const receiver::unplaced& one) { return one.from.id_ != id; };
    rare.gave_up = !whole || replay.count > settings_.max_fetched ||
                   std::any_of(rare.starts.begin(), rare.starts.end(), differs);
    const id_book::found known = ids_.find(id, 0);
    if (!rare.gave_up && frames.empty() && known.what == id_book::state::ahead) {
        rare.replay.reset(); // it has all that is in the bus, and goes on once that has come here
        return place_waiting();
    }
    // It has all of an epoch. Either that has yet to be read here, or it has long ended.
    const bool may_come = frames.empty() && known.what == id_book::state::other_epoch;
    if (may_come) rare.gave_up = rare.gave_up || ++replay.empty_pages == max_empty_pages;
    if (may_come && !rare.gave_up) { return rest(r); }
    rare.gave_up = rare.gave_up || (frames.empty() && known.what != id_book::state::too_old);
    if (!rare.gave_up && frames.empty()) { // there is nothing between its id and the log
        for (receiver::unplaced& one : rare.starts) one.from.id_ = ids_.id_at(known.position);
    }
    for (auto& [mark, f] : frames) {
        if (rare.gave_up || is_at_hand(r)) break;
        ++replay.count;
        const std::string reached = make_id(epoch, f->number());
        if (replay.seen.insert(mark) && wants_replayed(r, *f)) replay.frames.push_back(f);
        for (receiver::unplaced& one : rare.starts) one.from.id_ = reached;
    }
    place_waiting();
    if (!std::exchange(r.busy_, true)) r.yield(); // sends them, then asks for more
}

inline std::uint64_t feed::position_after(const id_book::found& what) const {
    std::uint64_t at = what.position;
    if (what.what == id_book::state::known) return at;
    const std::uint64_t end = std::min(log_.end(), what.end);
    for (auto one = log_.next(at, true); one < end; one = log_.next(one + 1, true)) {
        if (log_[one].number() > what.number) break;
        at = one + 1;
    }
    return at;
}

inline bool feed::unsubscribe(receiver& r, std::string_view topic, bool is_private) {
    const auto is_it = [&](const subscription& one) {
        return one.where && one.where->is_private == is_private && one.where->path == topic;
    };
    subscription ended;
    if (is_it(r.first_)) {
        ended = std::exchange(r.first_, subscription());
        if (r.cold_ && !r.cold_->more.empty()) {
            r.first_ = std::move(r.cold_->more.back());
            r.cold_->more.pop_back();
        }
    } else if (r.cold_) {
        auto& more = r.cold_->more;
        const auto found = std::find_if(more.begin(), more.end(), is_it);
        if (found == more.end()) return false;
        std::swap(*found, more.back());
        ended = std::move(more.back());
        more.pop_back();
    } else {
        return false;
    }
    r.wants_plain_ = false; // it has not received the same as others of its topic
    if (r.cold_ && !r.cold_->starts.empty()) {
        std::erase_if(r.cold_->starts, [&](const auto& one) { return one.where == ended.where; });
        place_waiting();
    }
    if (ended.lag == lag_policy::hold_back) {
        holders_.erase(std::find(holders_.begin(), holders_.end(), &r));
        if (std::find(holders_.begin(), holders_.end(), &r) == holders_.end()) {
            r.cold().holds_back = false;
        }
        check_hold();
    }
    remove_from(*ended.where, ended.index);
    return true;
}

inline void feed::remove_from(node& where, std::uint32_t index) {
    receiver* const last = where.subscribers.back();
    last->for_each_subscription([&](subscription& one) {
        if (one.where == &where) one.index = index;
    });
    where.subscribers[index] = last;
    where.subscribers.pop_back();
    tree(where.is_private).prune(&where);
}

/// The client is gone.
inline void feed::remove(receiver& r) {
    if (r.queued_) { // its own frames continue without the log
        leave_queue(r);
        r.yield();
    }
    if (r.cold_ && r.cold_->number != 0) {
        named_.erase(r.cold_->number);
        std::erase(direct_, &r);
    }
    if (!r.follows()) return;
    stop_waiting(r);
    receiver* const last = receivers_.back();
    last->index_in_feed_ = r.index_in_feed_;
    receivers_[r.index_in_feed_] = last;
    receivers_.pop_back();
    r.index_in_feed_ = receiver::nowhere;
    r.for_each_subscription(
        [this](const subscription& one) { remove_from(*one.where, one.index); });
    r.first_ = subscription();
    if (r.cold_) {
        r.cold_->more.clear();
        r.cold_->pending.reset();
        r.cold_->starts.clear();
    }
    if (std::erase(holders_, &r) != 0) check_hold();
}

inline void feed::name(receiver& r, std::uint64_t number) {
    r.cold().number = number;
    named_.emplace(number, &r);
}

// --- what streams ask for

/// There is something for the client: it gets that now, or continues on its own if it is busy.
inline void feed::continue_sending(receiver& r) {
    if (std::exchange(r.busy_, true)) return;
    settle(r);
    flush(r);
}

/// The feed's own words come next. No frame may have begun.
inline void feed::say(receiver& r, frame_ref f) noexcept {
    assert(!r.cut_);
    r.cut_ = std::move(f);
    r.cut_from_ = origin::control;
    r.cut_at_ = 0;
}

inline void feed::put(receiver& r, frame_ref f) {
    r.busy_ = true;
    say(r, std::move(f));
    flush(r);
}

inline void feed::enqueue(receiver& r, frame_ref f) {
    r.own_->push(std::move(f));
    continue_sending(r);
}

inline void feed::enqueue(receiver& r, std::vector<frame_ref> several) {
    for (frame_ref& each : several) r.own_->push(std::move(each));
    continue_sending(r);
}

/// As enqueue(), but others get a turn first, so that what follows goes out in the same write.
inline void feed::enqueue_later(receiver& r, frame_ref f) {
    r.own_->push(std::move(f));
    if (std::exchange(r.busy_, true)) return;
    settle(r);
    r.yield();
}

inline void feed::release(receiver& r, std::uint8_t by) {
    if ((r.held_ & by) == 0) return;
    if (r.is_finishing()) return; // it reconnects for what was held
    r.held_ = static_cast<std::uint8_t>(r.held_ & ~by);
    if (r.held_ != 0) return;
    if (!std::exchange(r.busy_, true)) flush(r); // its position is unchanged
}

inline void feed::finish(receiver& r, frame_ref last) {
    receiver::cold_state& rare = r.cold();
    if (rare.finishing) return;
    rare.finishing = true;
    rare.last = std::move(last); // what is held is not sent: the client reconnects for it
    continue_sending(r);
}

inline std::vector<std::string> feed::topics_of(const receiver& r) const {
    std::vector<std::string> topics;
    r.for_each_subscription([&](const subscription& one) {
        if (!one.where->is_private)
            topics.push_back(one.where->path.empty() ? "/" : one.where->path);
    });
    return topics;
}

} // namespace detail

// >>wheel /////////////////////////////////////////////////////////////////////////////////////////
// Who sleeps until when: a hierarchical timing wheel (Varghese and Lauck 1987). The caller supplies
// the time, in ticks of any length. Needs nothing.
// Tests: tests/wheel.cpp
//
//     level 0   the next 64 ticks, a slot for each
//     level 1   the next 64 * 64, in slots of 64: moved to level 0 when their time has come
//     ..
//     level 5   longer than that, too: looked at again whenever their slot comes

namespace detail {

class deadline_wheel {
public:
    using tick = std::uint64_t;

    /// A ring of entries, and what each entry is linked by.
    struct link {
        link() = default;
        link(const link&) = delete;
        link& operator=(const link&) = delete;
        ~link() { unlink(); }

        bool is_alone() const noexcept { return after == this; }
        void unlink() noexcept {
            before->after = after;
            after->before = before;
            before = after = this;
        }
        void append(link& one) noexcept {
            one.unlink();
            one.before = before;
            one.after = this;
            before->after = &one;
            before = &one;
        }

        link* before = this;
        link* after = this;
    };

    /// Leaves the wheel when it is unlinked or destroyed.
    struct entry : link {
        tick due = 0;
    };

    /// At the earliest with the next tick.
    void add(entry& e, tick due) noexcept {
        e.due = std::max(due, now_ + 1);
        place(e);
    }

    /// Not later than the first entry is due; nothing if there is none.
    std::optional<tick> next() const noexcept {
        for (unsigned level = 0; level < levels; ++level) {
            if (used_[level] != 0) return next_of(level);
        }
        return std::nullopt;
    }

    /// Moves all that is due until then to the end of a ring, the earliest first.
    void advance(tick to, link& due) noexcept {
        for (unsigned level = 0; level < levels;) {
            if (used_[level] == 0) {
                ++level;
                continue;
            }
            const tick at = next_of(level);
            if (at > to) break;
            now_ = at;
            take(level, due);
            level = 0; // what was moved may be due first
        }
        now_ = std::max(now_, to);
    }

private:
    static constexpr unsigned bits = 6; // of a tick, for a level
    static constexpr unsigned levels = 6;
    static constexpr tick slots = tick{1} << bits;
    static constexpr tick span = tick{1} << (bits * levels);

    static std::size_t slot_of(unsigned level, tick t) noexcept {
        return static_cast<std::size_t>(t >> (bits * level)) % slots;
    }

    /// By the highest digit in which its tick is not that of now.
    void place(entry& e) noexcept {
        const tick differs = std::min((now_ ^ e.due) | (slots - 1), span - 1);
        const auto level = static_cast<unsigned>(std::bit_width(differs) - 1) / bits;
        const std::size_t slot = slot_of(level, e.due);
        slots_[level][slot].append(e);
        used_[level] |= std::uint64_t{1} << slot;
    }

    /// When the next slot of a level comes that is in use.
    tick next_of(unsigned level) const noexcept {
        const std::size_t here = slot_of(level, now_);
        const auto ahead = std::countr_zero(std::rotr(used_[level], static_cast<int>(here)));
        const tick round = slots << (bits * level);
        const std::size_t slot = (here + static_cast<std::size_t>(ahead)) % slots;
        const tick at = now_ / round * round + (tick{slot} << (bits * level));
        return at > now_ ? at : at + round; // only where it is beyond the span
    }

    void take(unsigned level, link& due) noexcept {
        const std::size_t slot = slot_of(level, now_);
        used_[level] &= ~(std::uint64_t{1} << slot);
        link moved; // places some of them in the same slot again, if they are beyond the span
        while (!slots_[level][slot].is_alone()) moved.append(*slots_[level][slot].after);
        while (!moved.is_alone()) {
            auto& e = static_cast<entry&>(*moved.after);
            if (e.due <= now_) {
                due.append(e);
            } else {
                place(e);
            }
        }
    }

    tick now_ = 0;
    std::array<std::uint64_t, levels> used_{}; // slots; may be empty since
    std::array<std::array<link, slots>, levels> slots_;
};

} // namespace detail

// >>secure ////////////////////////////////////////////////////////////////////////////////////////
// TLS over a socket that does not block, as either end, and where its certificates come from. Needs
// >>tls, >>options, >>system.
// Tests: tests/tls.cpp
namespace detail {

#if defined(SSE_ENABLE_TLS)

struct openssl_free {
    void operator()(SSL_CTX* p) const noexcept { SSL_CTX_free(p); }
    void operator()(SSL* p) const noexcept { SSL_free(p); }
    void operator()(BIO* p) const noexcept { BIO_free(p); }
    void operator()(BIO_METHOD* p) const noexcept { BIO_meth_free(p); }
};
using tls_context = std::unique_ptr<SSL_CTX, openssl_free>;

/// Reads and writes a socket as the socket itself does: what can be done at once, or would_block.
///
/// OpenSSL writes whole records. Of one that the socket takes only a part of, the rest is kept here
/// and goes out first; until then nothing further is sealed. So a slow client costs one record, and
/// what comes next may change meanwhile.
class tls_session {
public:
    /// As a server, or as a client of this host, an address or a name.
    tls_session(SSL_CTX& context, socket_handle socket);
    tls_session(SSL_CTX& context, socket_handle socket, const std::string& host);
    tls_session(const tls_session&) = delete;
    tls_session& operator=(const tls_session&) = delete;

    /// Returns whether the handshake is complete; it goes on in read_some() too.
    bool shake_hands(asio::error_code& failed);
    /// An end without close_notify is an end as well, but is_truncated() then.
    std::size_t read_some(asio::mutable_buffer to, asio::error_code& failed);
    std::size_t write_some(std::span<const asio::const_buffer> from, asio::error_code& failed);
    /// Sends close_notify: what was written is whole.
    void send_end() noexcept;

    bool is_established() const noexcept { return SSL_is_init_finished(ssl_.get()) == 1; }
    bool is_truncated() const noexcept { return ended_; }
    /// Whether reading goes on once the socket is writable, and not once it is readable.
    bool reads_when_writable() const noexcept {
        return wants_write_ || (!rest_.empty() && !writer_waits_);
    }
    /// Whether the socket took something in the last write_some(): a record may go out in parts.
    bool has_progressed() const noexcept { return progressed_; }
    std::string client_subject() const;
    /// Whether it failed because the other end has no certificate that is trusted.
    bool is_mistrusted() const noexcept { return mistrusted_; }
    /// Why it has failed, for people. Empty: it has not, or the connection was lost.
    const std::string& failure() const noexcept { return failure_; }
    void fail(std::string why) { failure_ = std::move(why); }

    /// Then TLS 1.3 goes on with another key: AES-GCM is safe for 2^24 of them (RFC 8446 5.5).
    static inline std::uint64_t records_of_a_key = std::uint64_t{1} << 23; // tests replace it

private:
    static constexpr std::size_t max_record = 16 * 1024; // of plain text
    static constexpr std::size_t max_rest = 4 * 1024;    // more to write has to wait
    static constexpr int reads_at_once = 128;            // two for a record
    static constexpr std::int64_t max_records = 1024;    // about the session itself

    static BIO_METHOD* method();
    static int on_write(BIO* from, const char* bytes, int size) noexcept;
    static int on_read(BIO* from, char* to, int size) noexcept;
    static void on_message(int written, int version, int type, const void* bytes, std::size_t size,
                           SSL* of, void* self) noexcept;

    bool flush(asio::error_code& failed);
    void resolve(int result, asio::error_code& failed);
    static std::string_view next_record(std::span<const asio::const_buffer> from, std::size_t skip,
                                        std::span<char> joined) noexcept;

    std::unique_ptr<SSL, openssl_free> ssl_;
    const socket_handle socket_;
    int reads_left_ = 0;
    std::string rest_; // sealed, and not yet taken by the socket
    std::string failure_;
    asio::error_code broken_;  // once it is: why
    std::int64_t records_ = 0; // received, without those that had data
    std::uint64_t sealed_ = 0; // records
    bool owes_byte_ = false;   // the last one that is in rest_ counts as not written
    bool writer_waits_ = false;
    bool wants_write_ = false;
    bool progressed_ = false;
    bool ended_ = false; // the socket has
    bool received_ = false;
    bool mistrusted_ = false;
};

/// What a server accepts connections with. Any thread.
class tls_acceptor {
public:
    explicit tls_acceptor(const options& o)
        : options_(o.tls), is_on_(!options_.certificate.empty()) {
        if (is_on_) context_ = make_context(options_);
    }

    bool is_on() const noexcept { return is_on_; }
    std::unique_ptr<tls_session> accept(socket_handle socket) const {
        const std::lock_guard lock(mutex_);
        return std::make_unique<tls_session>(*context_, socket);
    }
    /// Null: with the files of the last time. Throws bad_option, and stays as it was.
    void reload(const tls_options* changed);

private:
    static tls_context make_context(const tls_options& o);

    mutable std::mutex mutex_; // guards what follows
    tls_options options_;
    tls_context context_;
    const bool is_on_;
};

/// What a client connects with. Throws std::invalid_argument.
SSE_DECL tls_context make_client_context(const client_tls_options& o);

#else

/// Stands in where TLS is not built in.
struct tls_acceptor {
    explicit tls_acceptor(const options&) noexcept {}
    static constexpr bool is_on() noexcept { return false; }
};

#endif

#if defined(SSE_ENABLE_TLS) && defined(SSE_BODIES)

/// Takes the oldest error of this thread, which has the cause, and forgets the others.
SSE_DECL std::string take_openssl_error() {
    const unsigned long code = ERR_get_error();
    ERR_clear_error();
    if (ERR_SYSTEM_ERROR(code)) return std::generic_category().message(ERR_GET_REASON(code));
    const char* const reason = ERR_reason_error_string(code);
    return reason ? reason : "error " + std::to_string(code) + " of OpenSSL";
}

SSE_DECL tls_session::tls_session(SSL_CTX& context, socket_handle socket)
    : ssl_(SSL_new(&context)), socket_(socket) {
    BIO* const bio = ssl_ ? BIO_new(method()) : nullptr;
    if (!bio) throw std::bad_alloc();
    BIO_set_data(bio, this);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio); // which owns it now
    SSL_set_msg_callback(ssl_.get(), on_message);
    SSL_set_msg_callback_arg(ssl_.get(), this);
    SSL_set_accept_state(ssl_.get());
}

SSE_DECL tls_session::tls_session(SSL_CTX& context, socket_handle socket, const std::string& host)
    : tls_session(context, socket) {
    SSL_set_connect_state(ssl_.get());
    X509_VERIFY_PARAM* const wanted = SSL_get0_param(ssl_.get());
    std::string name = host;
    if (name.ends_with('.')) name.pop_back();
    if (X509_VERIFY_PARAM_set1_ip_asc(wanted, name.c_str()) == 1) return; // it is an address
    ERR_clear_error();
    X509_VERIFY_PARAM_set_hostflags(wanted, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (X509_VERIFY_PARAM_set1_host(wanted, name.c_str(), name.size()) != 1 ||
        SSL_set_tlsext_host_name(ssl_.get(), name.c_str()) != 1) {
        throw std::bad_alloc();
    }
}

/// The socket, as OpenSSL sees it. Its own would raise SIGPIPE.
SSE_DECL BIO_METHOD* tls_session::method() {
    static const std::unique_ptr<BIO_METHOD, openssl_free> made = [] {
        std::unique_ptr<BIO_METHOD, openssl_free> one(
            BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "sse"));
        if (!one) throw std::bad_alloc();
        BIO_meth_set_write(one.get(), on_write);
        BIO_meth_set_read(one.get(), on_read);
        BIO_meth_set_ctrl(one.get(), [](BIO*, int what, long, void*) {
            return what == BIO_CTRL_FLUSH ? 1L : 0L;
        });
        return one;
    }();
    return made.get();
}

SSE_DECL int tls_session::on_write(BIO* from, const char* bytes, int size) noexcept {
    tls_session& self = *static_cast<tls_session*>(BIO_get_data(from));
    BIO_clear_retry_flags(from);
    asio::error_code failed;
    std::string_view left(bytes, static_cast<std::size_t>(size));
    if (self.flush(failed)) {
        left.remove_prefix(send_now(self.socket_, left, failed));
        self.progressed_ = self.progressed_ || left.size() < static_cast<std::size_t>(size);
    }
    if (failed && !would_block(failed)) {
        self.broken_ = failed;
        return -1;
    }
    if (self.rest_.size() > max_rest) { // of what is read, and answered: the peer takes no answers
        BIO_set_retry_write(from);
        return -1;
    }
    try {
        self.rest_.append(left);
    } catch (...) { // out of memory
        self.broken_ = asio::error::no_memory;
        return -1;
    }
    return size;
}

SSE_DECL int tls_session::on_read(BIO* from, char* to, int size) noexcept {
    tls_session& self = *static_cast<tls_session*>(BIO_get_data(from));
    BIO_clear_retry_flags(from);
    asio::error_code failed = asio::error::would_block; // others have a turn
    std::size_t n = 0;
    if (self.reads_left_-- > 0) {
        n = receive_now(self.socket_, std::span(to, static_cast<std::size_t>(size)), failed);
    }
    self.received_ = self.received_ || n > 0;
    if (n > 0) return static_cast<int>(n);
    if (would_block(failed)) {
        BIO_set_retry_read(from);
    } else if (failed) {
        self.broken_ = failed;
    } else {
        self.ended_ = true;
    }
    return failed ? -1 : 0;
}

/// Counts records: a peer may send those that change keys, offer tickets or ask for another
/// handshake for ever.
SSE_DECL void tls_session::on_message(int written, int, int type, const void*, std::size_t, SSL*,
                                      void* self) noexcept {
    if (written == 0 && type == SSL3_RT_HEADER) ++static_cast<tls_session*>(self)->records_;
}

/// Sends what is left of a record. Returns whether nothing is.
SSE_DECL bool tls_session::flush(asio::error_code& failed) {
    std::size_t sent = 0;
    while (sent < rest_.size() && !failed) {
        sent += send_now(socket_, std::string_view(rest_).substr(sent), failed);
    }
    progressed_ = progressed_ || sent > 0;
    if (sent < rest_.size()) {
        rest_.erase(0, sent);
        return false;
    }
    if (sent > 0) std::string().swap(rest_); // an idle client needs no memory for it
    return true;
}

/// What it means that a function of OpenSSL did not succeed.
SSE_DECL void tls_session::resolve(int result, asio::error_code& failed) {
    const int why = SSL_get_error(ssl_.get(), result);
    wants_write_ = why == SSL_ERROR_WANT_WRITE;
    failed = asio::error::would_block;
    if (wants_write_ || why == SSL_ERROR_WANT_READ) return;
    const bool shakes_hands = !is_established();
    if (why == SSL_ERROR_ZERO_RETURN || ended_) {
        if (shakes_hands && received_) failure_ = "the connection ended during the handshake";
        ERR_clear_error();
        failed = asio::error::eof; // the other direction may go on
        return;
    }
    if (!broken_) {
        broken_ = asio::error::connection_aborted;
        mistrusted_ = ERR_GET_REASON(ERR_peek_error()) == SSL_R_CERTIFICATE_VERIFY_FAILED;
        failure_ = mistrusted_ ? X509_verify_cert_error_string(SSL_get_verify_result(ssl_.get()))
                               : take_openssl_error();
    }
    ERR_clear_error();
    failed = broken_;
}

SSE_DECL bool tls_session::shake_hands(asio::error_code& failed) {
    failed = broken_;
    if (failed) return false;
    if (is_established()) return true;
    ERR_clear_error();
    reads_left_ = reads_at_once;
    const int result = SSL_do_handshake(ssl_.get());
    if (result != 1) resolve(result, failed);
    return result == 1;
}

SSE_DECL std::size_t tls_session::read_some(asio::mutable_buffer to, asio::error_code& failed) {
    if (!shake_hands(failed)) return 0;
    asio::error_code later; // what an answer meets, reading meets too
    if (!writer_waits_) flush(later);
    ERR_clear_error();
    reads_left_ = reads_at_once;
    std::size_t taken = 0;
    // A record at a time, whole: of one that is half read, nothing would tell.
    while (taken == 0 || to.size() - taken >= max_record) {
        std::size_t n = 0;
        const int result =
            SSL_read_ex(ssl_.get(), static_cast<char*>(to.data()) + taken, to.size() - taken, &n);
        taken += n;
        if (result == 1) {
            --records_;
            continue;
        }
        resolve(result, failed);
        break;
    }
    if (records_ > max_records) {
        failure_ = "more than 1,000 records without data";
        failed = broken_ = asio::error::connection_aborted;
        return 0;
    }
    if (taken > 0) failed = {}; // the next call meets it again
    return taken;
}

/// The plain text of one record: that of all buffers, as far as it has room.
SSE_DECL std::string_view tls_session::next_record(std::span<const asio::const_buffer> from,
                                                   std::size_t skip,
                                                   std::span<char> joined) noexcept {
    std::size_t size = 0;
    for (const asio::const_buffer& whole : from) {
        const asio::const_buffer left = whole + skip;
        skip -= std::min(skip, whole.size());
        const std::size_t n = std::min(left.size(), joined.size() - size);
        const bool alone = size == 0 && (n == joined.size() || &whole == &from.back());
        if (alone) return {static_cast<const char*>(left.data()), n};
        if (n > 0) std::memcpy(joined.data() + size, left.data(), n);
        size += n;
        if (size == joined.size()) break;
    }
    return {joined.data(), size};
}

SSE_DECL std::size_t tls_session::write_some(std::span<const asio::const_buffer> from,
                                             asio::error_code& failed) {
    failed = broken_;
    progressed_ = false;
    if (failed || !flush(failed)) return 0;
    writer_waits_ = false;
    const std::size_t size = asio::buffer_size(from);
    std::size_t taken = std::exchange(owes_byte_, false) ? 1 : 0;
    std::array<char, max_record> joined;
    while (taken < size && rest_.empty()) {
        const std::string_view record = next_record(from, taken, joined);
        ERR_clear_error();
        std::size_t n = 0;
        const int result = SSL_write_ex(ssl_.get(), record.data(), record.size(), &n);
        taken += n;
        if (result != 1) {
            resolve(result, failed);
            return taken;
        }
        if (++sealed_ % records_of_a_key == 0 && SSL_version(ssl_.get()) == TLS1_3_VERSION) {
            SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED); // sent before the next one
        }
    }
    writer_waits_ = !rest_.empty();
    // All is sealed, but not all is gone: the caller has to come again, with the rest of what it
    // has begun. What it offers ends with a frame, which is longer than this byte.
    owes_byte_ = writer_waits_ && taken == size;
    return owes_byte_ ? taken - 1 : taken;
}

SSE_DECL void tls_session::send_end() noexcept {
    if (!is_established() || broken_ || !rest_.empty()) return;
    ERR_clear_error();
    SSL_shutdown(ssl_.get());
    ERR_clear_error();
}

SSE_DECL std::string tls_session::client_subject() const {
    const X509* const certificate = SSL_get0_peer_certificate(ssl_.get());
    if (!certificate) return {};
    const std::unique_ptr<BIO, openssl_free> text(BIO_new(BIO_s_mem()));
    if (!text) throw std::bad_alloc();
    X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
    const char* bytes = nullptr;
    const long size = BIO_get_mem_data(text.get(), &bytes);
    return size > 0 ? std::string(bytes, static_cast<std::size_t>(size)) : "(no subject)";
}

SSE_DECL tls_context make_context(const SSL_METHOD* of, tls_version oldest) {
    ERR_clear_error();
    tls_context made(SSL_CTX_new(of));
    if (!made) throw std::bad_alloc();
    SSL_CTX* const c = made.get();
    SSL_CTX_set_min_proto_version(c,
                                  oldest == tls_version::tls_1_3 ? TLS1_3_VERSION : TLS1_2_VERSION);
    // TLS 1.2 with nothing but forward secrecy and authenticated encryption, as TLS 1.3.
    SSL_CTX_set_cipher_list(c, "ECDHE+AESGCM:ECDHE+CHACHA20");
    SSL_CTX_set_options(c, SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                            SSL_MODE_AUTO_RETRY); // an idle connection has 14 KB instead of 48
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    // Otherwise OpenSSL asks at the terminal.
    SSL_CTX_set_default_passwd_cb(c, [](char*, int, int, void*) { return -1; });
    return made;
}

/// Loads a certificate with its chain, and its key. Returns what is wrong with them.
SSE_DECL std::string use_identity(SSL_CTX* c, const std::string& certificate,
                                  const std::string& key) {
    if (SSL_CTX_use_certificate_chain_file(c, certificate.c_str()) != 1) {
        return "certificate: '" + certificate + "' cannot be used: " + take_openssl_error() +
               "; give a PEM file with the certificate first, then those up to its CA";
    }
    if (key.empty()) return "key: give a PEM file with the private key of the certificate";
    if (SSL_CTX_use_PrivateKey_file(c, key.c_str(), SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(c) != 1) {
        return "key: '" + key + "' cannot be used: " + take_openssl_error() +
               "; give a PEM file with the private key of '" + certificate +
               "', without a password";
    }
    return {};
}

SSE_DECL tls_context tls_acceptor::make_context(const tls_options& o) {
    const auto check = [](const std::string& wrong) {
        if (!wrong.empty()) throw bad_option("tls." + wrong);
    };
    tls_context made = detail::make_context(TLS_server_method(), o.oldest);
    SSL_CTX* const c = made.get();
    check(use_identity(c, o.certificate, o.key));
    if (o.handshake.count() <= 0) check("handshake: must be more than 0 ms");
    const auto choose = [](SSL*, const unsigned char** chosen, unsigned char* size,
                           const unsigned char* offered, unsigned offered_size, void*) {
        constexpr std::string_view known("\x08http/1.1", 9);
        unsigned char* found = nullptr;
        const int result = SSL_select_next_proto(
            &found, size, reinterpret_cast<const unsigned char*>(known.data()),
            static_cast<unsigned>(known.size()), offered, offered_size);
        *chosen = found;
        return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
    };
    SSL_CTX_set_alpn_select_cb(c, choose, nullptr);
    if (o.client_ca.empty()) return made;
    const bool loaded = SSL_CTX_load_verify_locations(c, o.client_ca.c_str(), nullptr) == 1;
    STACK_OF(X509_NAME)* const names =
        loaded ? SSL_load_client_CA_file(o.client_ca.c_str()) : nullptr;
    if (!names) {
        check("client_ca: '" + o.client_ca + "' cannot be used: " + take_openssl_error() +
              "; give a PEM file with the certificates of the CAs");
    }
    SSL_CTX_set_client_CA_list(c, names);
    SSL_CTX_set_verify(
        c, SSL_VERIFY_PEER | (o.client_may_be_unknown ? 0 : SSL_VERIFY_FAIL_IF_NO_PEER_CERT),
        nullptr);
    // A session is resumed only where the same was asked for.
    SSL_CTX_set_session_id_context(c, reinterpret_cast<const unsigned char*>("sse"), 3);
    return made;
}

SSE_DECL void tls_acceptor::reload(const tls_options* changed) {
    if (!is_on_) throw std::logic_error("sse::server::reload_tls: the server speaks no TLS");
    std::unique_lock lock(mutex_);
    tls_options next = changed ? *changed : options_;
    lock.unlock();
    tls_context made = make_context(next);
    lock.lock();
    options_ = std::move(next);
    context_.swap(made);
}

SSE_DECL tls_context make_client_context(const client_tls_options& o) {
    const auto check = [](const std::string& wrong) {
        if (!wrong.empty()) throw std::invalid_argument("sse::client_options::tls." + wrong);
    };
    tls_context made = make_context(TLS_client_method(), o.oldest);
    SSL_CTX* const c = made.get();
    if (!o.certificate.empty()) check(use_identity(c, o.certificate, o.key));
    if (o.ca.empty()) {
        SSL_CTX_set_default_verify_paths(c);
#if defined(_WIN32) && OPENSSL_VERSION_NUMBER >= 0x30200000L
        SSL_CTX_load_verify_store(c, "org.openssl.winstore://");
#endif
    } else if (SSL_CTX_load_verify_locations(c, o.ca.c_str(), nullptr) != 1) {
        check("ca: '" + o.ca + "' cannot be used: " + take_openssl_error() +
              "; give a PEM file with the certificates of the CAs");
    }
    ERR_clear_error();
    SSL_CTX_set_verify(c, o.insecure_trust_anybody ? SSL_VERIFY_NONE : SSL_VERIFY_PEER, nullptr);
    constexpr unsigned char http[] = "\x08http/1.1";
    SSL_CTX_set_alpn_protos(c, http, 9);
    return made;
}

#endif // SSE_ENABLE_TLS && SSE_BODIES

} // namespace detail

// >>seams /////////////////////////////////////////////////////////////////////////////////////////
// Where a test puts a clock and clients of its own. Without SSE_TESTING: the system's, and nothing
// else. Needs >>options.
// Tests: tests/testing.cpp
namespace detail {

using io_executor = asio::io_context::executor_type;
using tcp_socket = asio::basic_stream_socket<asio::ip::tcp, io_executor>;

#if !defined(SSE_TESTING)

using steady_clock = std::chrono::steady_clock;
using steady_timer =
    asio::basic_waitable_timer<steady_clock, asio::wait_traits<steady_clock>, io_executor>;
inline std::chrono::system_clock::time_point wall_time() noexcept {
    return std::chrono::system_clock::now();
}

#else

/// The time of a simulation. It is that of the thread which made it.
class timeline {
public:
    using clock = std::chrono::steady_clock;

    timeline() {
        if (here()) {
            throw std::logic_error("sse::testing::simulation: this thread has another one");
        }
        here() = this;
    }
    ~timeline() { here() = nullptr; }
    timeline(const timeline&) = delete;
    timeline& operator=(const timeline&) = delete;

    static timeline*& here() noexcept {
        thread_local timeline* of_thread = nullptr;
        return of_thread;
    }
    clock::time_point now() const noexcept { return now_; }
    clock::duration elapsed() const noexcept { return now_ - began_; }
    std::chrono::system_clock::time_point wall_time() const noexcept {
        return wall_ + std::chrono::duration_cast<std::chrono::system_clock::duration>(elapsed());
    }

    /// A timer is due then, unless it is cancelled meanwhile: moving to that time does no harm.
    void note(clock::time_point at) {
        if (at > now_) due_.insert(at);
    }
    /// Moves to the next time that was noted, at most to this one. Returns false once there.
    bool step(clock::time_point limit) noexcept {
        const bool early = !due_.empty() && *due_.begin() <= limit;
        now_ = early ? *due_.begin() : limit;
        if (early) due_.erase(due_.begin());
        return early;
    }

private:
    const clock::time_point began_ = clock::now();
    const std::chrono::system_clock::time_point wall_ = std::chrono::system_clock::now();
    clock::time_point now_ = began_;
    std::set<clock::time_point> due_;
};

/// The system's clock, or that of this thread's simulation.
struct steady_clock {
    using rep = std::chrono::steady_clock::rep;
    using period = std::chrono::steady_clock::period;
    using duration = std::chrono::steady_clock::duration;
    using time_point = std::chrono::steady_clock::time_point;
    static constexpr bool is_steady = true;
    static time_point now() noexcept {
        const timeline* const simulated = timeline::here();
        return simulated ? simulated->now() : std::chrono::steady_clock::now();
    }
};

inline std::chrono::system_clock::time_point wall_time() noexcept {
    const timeline* const simulated = timeline::here();
    return simulated ? simulated->wall_time() : std::chrono::system_clock::now();
}

/// How long Asio waits before it looks at a timer again: no real time brings a simulated one.
struct wait_for_clock {
    static steady_clock::duration to_wait_duration(const steady_clock::duration& d) noexcept {
        if (!timeline::here() || d.count() <= 0) return d;
        return std::chrono::hours(1);
    }
    static steady_clock::duration to_wait_duration(const steady_clock::time_point& t) noexcept {
        return to_wait_duration(t - steady_clock::now());
    }
};

class steady_timer : public asio::basic_waitable_timer<steady_clock, wait_for_clock, io_executor> {
public:
    using basic_waitable_timer::basic_waitable_timer;

    template <class Token>
    auto async_wait(Token&& token) {
        if (timeline* const simulated = timeline::here()) simulated->note(expiry());
        return basic_waitable_timer::async_wait(std::forward<Token>(token));
    }
};

/// What stands for a connection between a server and a simulated client: what each has sent, and
/// how each has ended it, as TCP would have it. One thread.
struct wire {
    /// What the server waits for.
    struct waiting {
        virtual ~waiting() = default;
        virtual void complete(asio::error_code result) = 0; ///< Soon, not inside the call.
    };
    template <class Handler>
    struct waiting_handler final : waiting {
        waiting_handler(const io_executor& on, Handler h) : where(on), done(std::move(h)) {}
        void complete(asio::error_code result) override {
            asio::post(where, [h = std::move(done), result]() mutable { std::move(h)(result); });
        }
        io_executor where;
        Handler done;
    };

    static constexpr std::size_t unlimited = ~std::size_t{0};
    static constexpr std::size_t max_unread = 1024 * 1024; ///< Between two looks of the test.

    asio::ip::address peer;
    std::string to_server;
    std::string to_client;
    std::size_t room = unlimited; ///< Bytes that the client still takes.
    bool client_ended = false;    ///< Its FIN has come.
    bool client_gone = false;     ///< It reads nothing: what is sent to it is answered by a reset.
    bool was_reset = false;       ///< By the client.
    bool server_ended = false;
    std::unique_ptr<waiting> reader;
    std::unique_ptr<waiting> writer;

    bool is_readable() const noexcept { return was_reset || client_ended || !to_server.empty(); }
    bool is_writable() const noexcept { return was_reset || client_gone || window() > 0; }
    /// How many bytes the client takes now.
    std::size_t window() const noexcept {
        return std::min(room, max_unread - std::min(max_unread, to_client.size()));
    }

    /// Something has changed.
    void notify() {
        if (reader && is_readable()) std::exchange(reader, nullptr)->complete({});
        if (writer && is_writable()) std::exchange(writer, nullptr)->complete({});
    }
    std::size_t read(asio::mutable_buffer to, asio::error_code& failed) {
        failed = {};
        if (was_reset) {
            failed = asio::error::connection_reset;
        } else if (to_server.empty() && client_ended) {
            failed = asio::error::eof;
        } else if (to_server.empty()) {
            failed = asio::error::would_block;
        }
        if (failed) return 0;
        const std::size_t n = asio::buffer_copy(to, asio::buffer(to_server));
        to_server.erase(0, n);
        return n;
    }
    std::size_t write(std::span<const asio::const_buffer> from, asio::error_code& failed) {
        failed = {};
        if (was_reset) {
            failed = asio::error::connection_reset;
            return 0;
        }
        if (client_gone) { // the client's system answers it
            was_reset = true;
            notify();
            return asio::buffer_size(from);
        }
        std::size_t taken = 0;
        for (const asio::const_buffer& one : from) {
            const std::size_t n = std::min(one.size(), window());
            to_client.append(static_cast<const char*>(one.data()), n);
            if (room != unlimited) room -= n;
            taken += n;
            if (n < one.size()) break;
        }
        if (taken == 0 && asio::buffer_size(from) > 0) failed = asio::error::would_block;
        return taken;
    }
    /// What the client reads.
    std::string take() {
        std::string taken = std::exchange(to_client, {});
        notify();
        return taken;
    }
    /// The server has closed its socket.
    void close() {
        server_ended = true;
        if (reader) std::exchange(reader, nullptr)->complete(asio::error::operation_aborted);
        if (writer) std::exchange(writer, nullptr)->complete(asio::error::operation_aborted);
    }
};

#endif

} // namespace detail

// >>hub ///////////////////////////////////////////////////////////////////////////////////////////
// What a server serves, and what its threads share. Needs >>ring, >>frame, >>options, >>seams.
// Tests: tests/limits.cpp, tests/routes.cpp
namespace detail {

using tcp_acceptor = asio::basic_socket_acceptor<asio::ip::tcp, io_executor>;

// Our own coroutines name the executor: type-erased ones cost 200 bytes and 25 ns for each step.
template <class T>
using io_awaitable = asio::awaitable<T, io_executor>;
inline constexpr asio::use_awaitable_t<io_executor> use_io_awaitable{};

/// Takes "/segment" from the front of a path; the remainder begins with a slash or is empty.
inline std::string_view take_segment(std::string_view& path) noexcept {
    const std::size_t end = std::min(path.find('/', 1), path.size());
    const std::string_view segment = path.substr(1, end - 1);
    path.remove_prefix(end);
    return segment;
}

inline bool is_name_of_value(std::string_view segment) noexcept {
    return segment.size() > 2 && segment.front() == '{' && segment.back() == '}';
}

/// A path whose segments may be `{name}`, which matches any one segment that is not empty, and
/// whose last may be `*`, which matches the whole remainder.
class path_pattern {
public:
    /// Throws std::invalid_argument if the text is not a pattern.
    explicit path_pattern(std::string text);

    /// Whether the path matches. If so, `values` are those of the names and `rest` is what `*`
    /// matched; both view the two texts.
    bool matches(std::string_view path,
                 std::vector<std::pair<std::string_view, std::string_view>>& values,
                 std::string_view& rest) const;

    /// Whether every path that matches `other` matches this pattern too.
    bool covers(const path_pattern& other) const noexcept;

    const std::string& text() const noexcept { return text_; }

private:
    std::string text_;
};

inline path_pattern::path_pattern(std::string text) : text_(std::move(text)) {
    const auto require = [&](bool valid) {
        if (valid) return;
        throw std::invalid_argument("sse: the pattern of a route must be a path such as /news, "
                                    "/news/{id} with each name once, or end in /*, not '" +
                                    text_ + "'");
    };
    require(text_.starts_with('/'));
    std::vector<std::string_view> names;
    std::string_view remaining = text_;
    while (!remaining.empty()) {
        const std::string_view segment = take_segment(remaining);
        if (segment == "*") {
            require(remaining.empty());
        } else if (is_name_of_value(segment)) {
            const auto name = segment.substr(1, segment.size() - 2);
            require(is_token(name) && name.find_first_of("{}*") == name.npos &&
                    std::count(names.begin(), names.end(), name) == 0);
            names.push_back(name);
        } else {
            require(segment.find_first_of("{}*") == segment.npos);
        }
    }
}

inline bool
path_pattern::matches(std::string_view path,
                      std::vector<std::pair<std::string_view, std::string_view>>& values,
                      std::string_view& rest) const {
    values.clear();
    rest = {};
    std::string_view remaining = text_;
    while (!remaining.empty() && path.starts_with('/')) {
        if (remaining == "/*") {
            rest = path.substr(1);
            return true;
        }
        const std::string_view wanted = take_segment(remaining);
        const std::string_view given = take_segment(path);
        if (is_name_of_value(wanted)) {
            if (given.empty()) return false;
            values.emplace_back(wanted.substr(1, wanted.size() - 2), given);
        } else if (wanted != given) {
            return false;
        }
    }
    return remaining.empty() && path.empty();
}

inline bool path_pattern::covers(const path_pattern& other) const noexcept {
    std::string_view mine = text_;
    std::string_view theirs = other.text_;
    while (!mine.empty() && !theirs.empty()) {
        if (mine == "/*") return true;
        const std::string_view a = take_segment(mine);
        const std::string_view b = take_segment(theirs);
        if (b == "*") return false;
        if (is_name_of_value(a) ? b.empty() : a != b) return false;
    }
    return mine.empty() && theirs.empty();
}

/// The routes under a prefix. The first group is the server itself.
struct group {
    std::string prefix;
    group_options options;
    group* around = nullptr;
    std::uint32_t number = 0;            ///< Index in hub::groups.
    std::atomic<std::size_t> serving{0}; ///< Requests and streams.

    // Set here, or by an enclosing group; the server's own sets both.
    const cors_options& cors() const noexcept {
        return options.cors ? *options.cors : around->cors();
    }
    std::size_t max_body_bytes() const noexcept {
        return options.max_body_bytes ? *options.max_body_bytes : around->max_body_bytes();
    }
    bool is_guarded() const noexcept {
        return options.authorize || (around && around->is_guarded());
    }
    /// Returns false, and counts nothing, if this group or an enclosing one is at its limit.
    bool enter() noexcept {
        const std::size_t before = serving.fetch_add(1, std::memory_order_relaxed);
        const bool full = options.max_requests != 0 && before >= options.max_requests;
        if (!full && (!around || around->enter())) return true;
        serving.fetch_sub(1, std::memory_order_relaxed);
        return false;
    }
    void leave() noexcept {
        for (group* g = this; g; g = g->around) g->serving.fetch_sub(1, std::memory_order_relaxed);
    }
};

struct route {
    std::string method;
    path_pattern pattern;
    handler run;
    group* of;
    bool streams = false; ///< Known to serve streams only.

    bool serves(std::string_view asked) const noexcept {
        return method == asked || (method == "GET" && asked == "HEAD");
    }
    /// Whether no request could ever reach `other` if it were added after this route.
    bool hides(const route& other) const noexcept {
        return serves(other.method) && pattern.covers(other.pattern);
    }
};

/// The limit that a connection is over: it is refused what that limit is about.
enum class limit_reached : std::uint8_t {
    none,
    connections,
    per_address, ///< Connections.
    rate,        ///< Of connecting, per address: nothing is served.
};

/// Connections by address, for the limits on them.
class address_book {
public:
    using clock = steady_clock;
    struct entry {
        std::size_t open = 0;
        double tokens = 0;
        clock::time_point refilled{};
    };
    using place = std::map<asio::ip::address, entry>::value_type*;

    /// Counts a connection and returns its entry. Returns nullptr if the address has `limit`
    /// connections open, or opened too many just now; `over` says which. A limit or rate of 0:
    /// none.
    place enter(const asio::ip::address& who, std::size_t limit, std::size_t rate,
                clock::time_point now, limit_reached* over = nullptr) {
        const std::lock_guard lock(mutex_);
        if (entries_.size() >= next_clean_up_) clean_up(rate, now);
        const place here = &*entries_.try_emplace(who).first;
        entry& e = here->second;
        if (rate != 0) {
            const std::chrono::duration<double> since = now - e.refilled;
            const double most = static_cast<double>(rate);
            e.tokens = e.refilled == clock::time_point()
                           ? most
                           : std::min(most, e.tokens + since.count() * most);
            e.refilled = now;
            if (e.tokens < 1) {
                if (over) *over = limit_reached::rate;
                return nullptr;
            }
            e.tokens -= 1;
        }
        if (limit != 0 && e.open >= limit) {
            if (over) *over = limit_reached::per_address;
            return nullptr;
        }
        ++e.open;
        return here;
    }
    void leave(place here) {
        const std::lock_guard lock(mutex_);
        // Under a limited rate an entry is kept until its second is over; clean_up() removes it.
        if (--here->second.open == 0 && here->second.refilled == clock::time_point()) {
            entries_.erase(entries_.find(here->first));
        }
    }

private:
    /// Forgets addresses that have no connection and may connect at the full rate again.
    void clean_up(std::size_t rate, clock::time_point now) {
        std::erase_if(entries_, [&](const auto& one) {
            return one.second.open == 0 &&
                   (rate == 0 || now - one.second.refilled > std::chrono::seconds(1));
        });
        next_clean_up_ = std::max<std::size_t>(1024, entries_.size() * 2);
    }

    std::mutex mutex_;
    std::map<asio::ip::address, entry> entries_;
    std::size_t next_clean_up_ = 1024;
};

/// Callers that wait for room in the ring. Workers never wait for clients, so the wait is short
/// unless the program blocks a worker's thread. Only this slow path takes a lock: a worker once for
/// each batch that it takes from the ring, a publisher only when the ring was full.
class room {
public:
    /// A worker has taken from the ring, or the server was stopped.
    void notify() {
        std::vector<std::unique_ptr<waiter>> woken;
        {
            const std::lock_guard lock(mutex_);
            woken.swap(waiters_);
        }
        changed_.notify_all();
        for (auto& w : woken) w->complete();
    }

    /// Blocks until `attempt` returns true or the deadline has passed; returns its last result.
    template <class Attempt>
    bool wait_until(std::chrono::steady_clock::time_point deadline, Attempt attempt) {
        std::unique_lock lock(mutex_);
        return changed_.wait_until(lock, deadline, attempt);
    }

    /// Suspends the coroutine until the next notify(), or not at all if `must_wait` returns false.
    /// `must_wait` is called under the lock, so that a notify() in between is not missed.
    template <class MustWait>
    asio::awaitable<void> async_wait(MustWait must_wait) {
        return asio::async_initiate<const asio::use_awaitable_t<>&, void()>(
            [this, must_wait](auto done) { this->enlist(std::move(done), must_wait); },
            asio::use_awaitable);
    }

private:
    struct waiter {
        virtual ~waiter() = default;
        virtual void complete() = 0;
    };

    template <class Handler>
    struct waiting_handler final : waiter {
        explicit waiting_handler(Handler h) : work(asio::make_work_guard(h)), done(std::move(h)) {}
        void complete() override {
            const auto where = asio::get_associated_executor(done);
            asio::post(where, [done = std::move(done)]() mutable {
                asio::get_associated_cancellation_slot(done).clear();
                std::move(done)();
            });
        }
        asio::executor_work_guard<asio::associated_executor_t<Handler>> work;
        Handler done;
    };

    template <class Handler, class MustWait>
    void enlist(Handler done, MustWait must_wait) {
        auto w = std::make_unique<waiting_handler<Handler>>(std::move(done));
        auto slot = asio::get_associated_cancellation_slot(w->done);
        if (slot.is_connected()) {
            slot.assign([this, one = static_cast<waiter*>(w.get())](asio::cancellation_type) {
                wake(one);
            });
        }
        {
            const std::lock_guard lock(mutex_);
            if (must_wait()) {
                waiters_.push_back(std::move(w));
                return;
            }
        }
        w->complete();
    }

    /// For a waiter whose wait is cancelled: it checks again, and sees the cancellation.
    void wake(const waiter* one) {
        std::unique_ptr<waiter> woken;
        {
            const std::lock_guard lock(mutex_);
            const auto found = std::find_if(waiters_.begin(), waiters_.end(),
                                            [&](const auto& w) { return w.get() == one; });
            if (found == waiters_.end()) return;
            woken = std::move(*found);
            waiters_.erase(found);
        }
        woken->complete();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::unique_ptr<waiter>> waiters_;
};

struct worker;
class lifecycle;
class cluster;
class relay;
struct farewell;
struct listing;

/// Differs with each call.
inline std::uint64_t random_number() {
    std::random_device device; // if it gives a fixed sequence, the clock still differs
    const auto time = std::chrono::system_clock::now().time_since_epoch().count();
    return (std::uint64_t{device()} << 32 | device()) ^ static_cast<std::uint64_t>(time);
}

/// Eight characters of [0-9a-z] that differ with each start.
inline std::string make_epoch() {
    std::uint64_t bits = random_number();
    std::string epoch;
    for (int i = 0; i < 8; ++i, bits /= 36)
        epoch += "0123456789abcdefghijklmnopqrstuvwxyz"[bits % 36];
    return epoch;
}

/// A response that the server makes itself.
struct own_response {
    int status;
    std::string text = {};
    std::string lines = {};  ///< Whole field lines of its head.
    bool over_limit = false; ///< Counted; some clients get a stream that sends them away instead.
};

/// What a server serves, and to whom: decides what a request gets. Fixed once the server runs.
struct site {
    explicit site(sse::options o);

    /// Where a request belongs.
    struct target {
        group* of;                    ///< Of its route, or else of the first for its path.
        const handler* run = nullptr; ///< Null: nothing serves it.
        bool streams = false;         ///< It is known to serve streams only.
        std::string methods = {};     ///< Without a route: those of its path, each with ", ".
    };
    /// For a preflight, the group is that of the first route that serves the method it asks for.
    target find(request& r);

    /// The host that the client asked for. A trusted proxy reports it in a field of its own.
    std::optional<std::string_view> host_of(const request& r, const asio::ip::address& peer) const;
    bool serves_host(std::optional<std::string_view> host) const;

    /// The server's own response, unless there is none: then the target serves the request, which
    /// its group counts.
    std::optional<own_response> decide(const request& r, const asio::ip::address& peer,
                                       const target& to, bool granted, limit_reached over) const;
    own_response refusal_for(limit_reached over) const;
    /// To a request whose handler responded nothing: it returned, or threw this.
    static own_response response_after(bool threw, std::error_code code);

    /// Whether connections of this peer are made on behalf of others.
    bool speaks_for_others(const asio::ip::address& peer) const {
        return contained(trusted, peer) || (options.proxy.protocol && trusted.empty());
    }

    sse::options options;
    std::vector<address_block> trusted;
    std::deque<group> groups; ///< The server's own first.
    std::vector<route> routes;
    handler fallback;               ///< For paths that match no route.
    std::vector<std::string> hosts; ///< Those served; empty: any.
    bool serves_loopback = false;   ///< Names of loopback addresses as well.
};

struct hub : site {
    hub(sse::options o, std::span<asio::io_context* const> contexts);
    ~hub();

    /// The worker on whose thread the call is made, or nullptr.
    worker* worker_here() const noexcept;
    sse::counters count() const noexcept;
    void on_context_destroyed(
        const asio::execution_context& context) noexcept;               ///< Context is destroyed.
    void drop_waiters(const asio::execution_context& context) noexcept; ///< Context shuts down.

    const char* why_not_ready(std::size_t own) const noexcept;
    void open(); ///< See lifecycle::open().

    /// The worker that has this stream, if it is here.
    worker& worker_of(std::uint64_t stream) const noexcept;
    void revoke(std::uint64_t stream) const;

    /// Puts a frame into the ring, with its number unless the bus gave it one. Returns its place,
    /// or nullopt if there is no room. Any thread.
    std::optional<std::uint64_t> put(frame_ref& f) noexcept;

    void log(const log_entry& entry) const {
        if (options.hooks.log) options.hooks.log(entry);
    }
    /// A request whose response is decided.
    void log_request(const request& r, int status) const {
        log({.level = log_level::info,
             .what = "request",
             .method = r.method,
             .path = r.target_path(),
             .status = status,
             .client = r.client});
    }

    const std::string epoch = make_epoch(); ///< The first part of ids.
    broadcast_ring<frame*> ring;
    detail::room room;
    tls_acceptor tls;
    address_book addresses;
    std::atomic<bool> stopped{false};
    std::atomic<std::size_t> holding{0}; ///< Workers with a client that publishers wait for.
    std::atomic<std::uint64_t> names{0}; ///< Streams that were given an id.
    static constexpr std::uint64_t never = ~std::uint64_t{0};
    std::atomic<std::uint64_t> ready_at{never}; ///< Places of the ring with the bus's history.
    std::atomic<std::size_t> undrained{0};      ///< Workers that are still draining.
    std::function<void()> when_drained;         ///< Called once, by the last of these workers.
    std::atomic<std::uint64_t> drained{0};      ///< Streams that received everything.
    std::atomic<std::uint64_t> cut{0};          ///< Streams that a drain had to cut.
    std::atomic<std::uint64_t> accepted{0};
    std::atomic<std::uint64_t> refused{0};
    std::atomic<std::uint64_t> accept_failures{0};
    std::atomic<std::uint64_t> tls_failures{0};
    std::atomic<std::uint64_t> no_room{0};
    std::atomic<std::size_t> refusing{0}; ///< Open connections that are over a limit.
    std::atomic<bool> said_no_io_uring{false};
    std::atomic<bool> warned_missing_client{false}; ///< Logged that a trusted proxy names none.
    std::vector<std::unique_ptr<worker>> workers;   ///< They refer to the rest.
    std::unique_ptr<detail::relay> relay;           ///< To the bus, if there is one.
    std::unique_ptr<detail::lifecycle> life;        ///< Destroyed first: it refers to the workers.
};

/// Memory for one pending operation, inside an object that lives as long as the operation: a
/// waiting client then costs no further allocation. What does not fit, as with another version of
/// Asio, goes to the heap.
class operation_memory {
public:
    void* allocate(std::size_t size) {
        if (used_ || size > sizeof storage_) return ::operator new(size);
        used_ = true;
        return storage_;
    }
    void deallocate(void* memory) noexcept {
        if (memory == storage_) {
            used_ = false;
        } else {
            ::operator delete(memory);
        }
    }

private:
    alignas(void*) std::byte storage_[80];
    bool used_ = false;
};

template <class T>
class operation_allocator {
public:
    using value_type = T;
    explicit operation_allocator(operation_memory& memory) noexcept : memory_(&memory) {}
    template <class U>
    operation_allocator(const operation_allocator<U>& other) noexcept : memory_(other.memory_) {}
    T* allocate(std::size_t n) {
        static_assert(alignof(T) <= alignof(void*));
        return static_cast<T*>(memory_->allocate(n * sizeof(T)));
    }
    void deallocate(T* p, std::size_t) noexcept { memory_->deallocate(p); }
    template <class U>
    bool operator==(const operation_allocator<U>& other) const noexcept {
        return memory_ == other.memory_;
    }

private:
    template <class>
    friend class operation_allocator;
    operation_memory* memory_;
};

/// A handler whose pending operation is stored in such memory, so that posting it cannot fail.
template <class F>
struct placed {
    using allocator_type = operation_allocator<std::byte>;
    operation_memory* memory;
    F run;
    allocator_type get_allocator() const noexcept { return allocator_type(*memory); }
    void operator()() { run(); }
};
template <class F>
placed(operation_memory*, F) -> placed<F>;

#if defined(SSE_BODIES)

SSE_DECL site::site(sse::options o) : options(std::move(o)) {
    for (const std::string& one : options.proxy.trusted) trusted.emplace_back(one);
    for (const std::string& one : options.hosts) {
        const auto host = read_host(one);
        if (!host) {
            throw bad_option(
                "hosts: no Host header could match '" + one +
                "'; write a name or an address alone, such as events.example, *.example, "
                "127.0.0.1, [::1], or \"*\" for any");
        }
        hosts.push_back(*host);
    }
    group& own = groups.emplace_back();
    own.options.cors = options.cors;
    own.options.max_body_bytes = options.limits.body_bytes;
}

SSE_DECL site::target site::find(request& r) {
    const std::string_view asked = r.method == "OPTIONS" && r.header("Origin")
                                       ? r.header("Access-Control-Request-Method").value_or("")
                                       : std::string_view();
    target to{&groups.front()};
    bool is_of_asked = false;
    for (const route& one : routes) {
        if (!one.pattern.matches(r.path, r.path_values, r.rest)) continue;
        const bool serves_asked = !is_of_asked && one.serves(asked);
        if (to.methods.empty() || serves_asked) to.of = one.of;
        is_of_asked = is_of_asked || serves_asked;
        if (one.serves(r.method)) return {one.of, &one.run, one.streams};
        const auto add = [&](const std::string& method) {
            if ((", " + to.methods).find(", " + method + ", ") == std::string::npos) {
                to.methods += method + ", ";
            }
        };
        add(one.method);
        if (one.method == "GET") add("HEAD");
    }
    r.path_values.clear();
    r.rest = {};
    const bool of_server = r.method == "OPTIONS" && r.target == "*";
    if (to.methods.empty() && !of_server && fallback) to.run = &fallback;
    return to;
}

SSE_DECL std::optional<std::string_view> site::host_of(const request& r,
                                                       const asio::ip::address& peer) const {
    const auto host = r.header("Host");
    if (trusted.empty() || !contained(trusted, peer)) return host;
    const auto passed = r.header("X-Forwarded-Host");
    if (!passed) return host;
    std::string_view last; // added by the nearest proxy
    for_each_element(*passed, [&](std::string_view one) { last = one; });
    return last.empty() ? host : last;
}

SSE_DECL bool site::serves_host(std::optional<std::string_view> host) const {
    return hosts.empty() || !host || is_one_of_hosts(hosts, *host) ||
           (serves_loopback && is_loopback_host(*host));
}

/// Whether a page of this server sends the request: then no permission is needed.
SSE_DECL bool is_same_origin(const std::optional<std::string_view>& host,
                             std::string_view origin) noexcept {
    const std::size_t scheme = origin.find("://");
    return host && scheme != origin.npos && equal_ignoring_case(origin.substr(scheme + 3), *host);
}

/// What a client sent, for a message that helps to find the cause.
SSE_DECL std::string quoted(std::string_view text) {
    return '"' + std::string(text.substr(0, 100)) + (text.size() > 100 ? "...\"" : "\"");
}

SSE_DECL std::optional<own_response> site::decide(const request& r, const asio::ip::address& peer,
                                                  const target& to, bool granted,
                                                  limit_reached over) const {
    const auto host = host_of(r, peer);
    if (!serves_host(host)) {
        return own_response{
            421,
            "Host " + quoted(*host) +
                " is unknown here: add it to the server's options::hosts if it should be served\n"};
    }
    const cors_options& cors = to.of->cors();
    const auto origin = r.header("Origin");
    if (!granted && cors.refuse && !is_same_origin(host, *origin)) {
        return own_response{
            403, "Origin " + quoted(*origin) + " is not allowed here, at host " +
                     quoted(host.value_or("")) +
                     ": whoever runs this server can allow the origin, or, where a proxy "
                     "changed the host, have that pass it on\n"};
    }
    // Not earlier, since a page must be allowed to read a soft refusal. Requests other than streams
    // are served: subscribers must lock out neither publishers nor health checks.
    if (over == limit_reached::rate || (over != limit_reached::none && to.streams)) {
        return refusal_for(over);
    }
    if (!to.run && r.method == "OPTIONS" && (!to.methods.empty() || r.target == "*")) {
        const std::string allow = to.methods + "OPTIONS";
        const bool preflight = origin && r.header("Access-Control-Request-Method");
        if (!preflight) return own_response{204, {}, "Allow: " + allow + "\r\n"};
        return own_response{204, {}, granted ? preflight_headers(cors, allow) : ""}; // Fetch 4.8
    }
    if (!to.run && !to.methods.empty()) {
        return own_response{405, "Method not allowed here\n",
                            "Allow: " + to.methods + "OPTIONS\r\n"};
    }
    if (!to.run) return own_response{404, "Not found\n"};
    if (!to.of->enter()) return refusal_for(limit_reached::connections);
    return std::nullopt;
}

SSE_DECL own_response site::refusal_for(limit_reached over) const {
    const bool of_address = over == limit_reached::per_address || over == limit_reached::rate;
    const auto wait = std::chrono::ceil<std::chrono::seconds>(options.limits.retry_after).count();
    return {of_address ? 429 : 503,
            of_address ? "Too many connections from this address\n" : "Too many connections\n",
            "Retry-After: " + std::to_string(wait) + "\r\n", true};
}

SSE_DECL own_response site::response_after(bool threw, std::error_code code) {
    if (!threw) return {204}; // tells an EventSource to stop reconnecting (HTML 9.2.3)
    int status = 500;
    if (code == errc::bad_body || code == errc::bad_topic) status = 400;
    if (code == errc::not_acceptable) status = 406;
    if (code == errc::body_timeout) status = 408;
    if (code == errc::body_too_large) status = 413;
    return {status, (status == 500 ? "The request could not be served" : code.message()) + "\n"};
}

#endif // SSE_BODIES

// >>connection ////////////////////////////////////////////////////////////////////////////////////
// A stream with its state, and what it has while one of its requests is served. Needs >>feed,
// >>hub.
// Tests: tests/stream.cpp

struct exchange;

#if defined(SSE_ENABLE_TLS)

/// A client's socket, with TLS over it or without.
class system_socket : public tcp_socket {
public:
    explicit system_socket(tcp_socket s) noexcept : tcp_socket(std::move(s)) {}

    void secure(std::unique_ptr<tls_session> s) noexcept { tls_ = std::move(s); }
    tls_session* tls() const noexcept { return tls_.get(); }
    bool is_secure() const noexcept { return tls_ != nullptr; }

    std::size_t read_some(asio::mutable_buffer to, asio::error_code& failed) {
        return tls_ ? tls_->read_some(to, failed) : tcp_socket::read_some(to, failed);
    }
    std::size_t write_some(std::span<const asio::const_buffer> from, asio::error_code& failed) {
        return tls_ ? tls_->write_some(from, failed) : tcp_socket::write_some(from, failed);
    }
    std::size_t write_some(asio::const_buffer from, asio::error_code& failed) {
        return tls_ ? tls_->write_some({&from, 1}, failed) : tcp_socket::write_some(from, failed);
    }
    bool has_progressed() const noexcept { return tls_ && tls_->has_progressed(); }
    wait_type awaited_for_input() const noexcept {
        return tls_ && tls_->reads_when_writable() ? wait_write : wait_read;
    }
    void close(asio::error_code& failed) {
        tls_.reset(); // a handler may go on for long
        tcp_socket::close(failed);
    }
    /// Sends the end; of what is `whole`, a client can tell that nothing is missing.
    void send_end(bool whole) noexcept {
        if (tls_ && whole) tls_->send_end();
        asio::error_code ignored; // a lost connection fails at its next read
        shutdown(shutdown_send, ignored);
    }

private:
    std::unique_ptr<tls_session> tls_;
};

#else

class system_socket : public tcp_socket {
public:
    explicit system_socket(tcp_socket s) noexcept : tcp_socket(std::move(s)) {}
    static constexpr bool is_secure() noexcept { return false; }
    static constexpr bool has_progressed() noexcept { return false; }
    static constexpr wait_type awaited_for_input() noexcept { return wait_read; }
    void send_end(bool) noexcept {
        asio::error_code ignored; // a lost connection fails at its next read
        shutdown(shutdown_send, ignored);
    }
};

#endif

#if !defined(SSE_TESTING)

using client_socket = system_socket;

#else

/// A client's socket, or the wire to a simulated client.
class client_socket : public system_socket {
public:
    using system_socket::system_socket;

    void attach(std::shared_ptr<wire> w) noexcept { wire_ = std::move(w); }
    const wire* simulated() const noexcept { return wire_.get(); }

    std::size_t read_some(asio::mutable_buffer to, asio::error_code& failed) {
        return wire_ ? wire_->read(to, failed) : system_socket::read_some(to, failed);
    }
    std::size_t write_some(std::span<const asio::const_buffer> from, asio::error_code& failed) {
        return wire_ ? wire_->write(from, failed) : system_socket::write_some(from, failed);
    }
    std::size_t write_some(asio::const_buffer from, asio::error_code& failed) {
        return write_some(std::span<const asio::const_buffer>(&from, 1), failed);
    }
    template <class Handler>
    void async_wait(wait_type what, Handler done) {
        if (!wire_) return system_socket::async_wait(what, std::move(done));
        (what == wait_read ? wire_->reader : wire_->writer) =
            std::make_unique<wire::waiting_handler<Handler>>(get_executor(), std::move(done));
        wire_->notify();
    }
    endpoint_type remote_endpoint(asio::error_code& failed) const {
        return wire_ ? endpoint_type(wire_->peer, 0) : system_socket::remote_endpoint(failed);
    }
    void close(asio::error_code& failed) {
        if (wire_) wire_->close();
        system_socket::close(failed);
    }
    void send_end(bool whole) noexcept {
        if (!wire_) return system_socket::send_end(whole);
        wire_->server_ended = true;
    }

private:
    std::shared_ptr<wire> wire_;
};

#endif

/// Where a connection stands.
enum class phase : std::uint8_t {
    head,      ///< A request head is awaited.
    handling,  ///< A request is served; nothing, or a whole response, has been sent.
    body,      ///< The same, and its handler awaits the request's body.
    streaming, ///< The head of an event stream has been sent.
    lingering, ///< Everything is sent; the client's FIN is awaited.
    lost,      ///< Its handler was destroyed mid-run (out of memory): to be closed.
    closed,    ///< It is at its end, with its socket.
};

constexpr bool may_follow(phase now, phase next) noexcept {
    switch (next) {
    case phase::head: return now == phase::head || now == phase::handling;
    case phase::handling: // after a stream whose end the client can tell, too
        return now == phase::head || now == phase::body || now == phase::streaming;
    case phase::body: return now == phase::handling || now == phase::body;
    case phase::streaming: return now == phase::handling || now == phase::body;
    case phase::lingering: return now != phase::lost && now != phase::closed;
    case phase::lost: return now != phase::head && now != phase::lost && now != phase::closed;
    case phase::closed: return now != phase::closed;
    }
    return false;
}

/// A stream with its state: what its worker knows of it.
struct connection final : receiver, stream {
    struct log_context {
        std::string path;
        asio::ip::address client;
        bool reports_end = false; ///< Its end will be reported.
    };

    struct extra_state { ///< Rarely needed, but always with limits by address or a log.
        std::unique_ptr<chunked_encoder> chunks;  ///< If the body has its own end.
        address_book::place counted = nullptr;    ///< Where limits by address count it.
        std::optional<log_context> log;           ///< Of a stream, if it is wanted.
        limit_reached over = limit_reached::none; ///< Then counted separately.
        std::uint32_t discarded = 0;              ///< Bytes received on the open stream.
    };

    connection(worker& w, tcp_socket socket) noexcept : socket_(std::move(socket)), worker_(&w) {}

    void add_reference() noexcept { ++references_; }
    void unref() noexcept {
        if (--references_ == 0) delete this;
    }

    // What the feed asks of it.
    SSE_DECL std::optional<std::size_t>
    write_some(std::span<const asio::const_buffer> bytes) override;
    SSE_DECL void await_writable() override;
    SSE_DECL void yield() override;
    SSE_DECL void progressed() override;
    SSE_DECL void settled() override;
    bool is_streaming() const override { return phase_ == phase::streaming; }
    SSE_DECL bool run_gap_hook(const gap& g) override;
    SSE_DECL void finished() override;
    SSE_DECL void end(end_reason why) override;
    SSE_DECL void fail(std::exception_ptr what) override;

    asio::awaitable<bool> refused_by(access given);
    exchange& current_exchange(const char* asked) const;
    void check_thread() const;
    bool must_begin();
    void begin_streaming(bool finite);
    start resolved(const subscribe_options& how) const;
    template <class Frames>
    asio::awaitable<void> write(Frames frames);
    asio::awaitable<void> written();
    asio::awaitable<std::string> read_body(bool whole);

    extra_state& extra() {
        if (!extra_) extra_ = std::make_unique<extra_state>();
        return *extra_;
    }
    chunked_encoder* chunks() const noexcept { return extra_ ? extra_->chunks.get() : nullptr; }
    limit_reached over() const noexcept { return extra_ ? extra_->over : limit_reached::none; }
    bool is_over_limit() const noexcept { return over() != limit_reached::none; }
    bool is_connected() const noexcept { return phase_ != phase::closed; }
    bool has_response() const noexcept; ///< A response, or a stream, has begun.
    bool is_handled() const noexcept;   ///< By a handler, which has not returned.

    // Each waiting client costs one of these, so it has no padding.
    phase phase_ = phase::head;
    bool awaits_write_ = false;
    std::uint32_t stamp_ = 0; // when its phase began, or when bytes last went out; worker's ms
    client_socket socket_;
    worker* worker_;
    std::unique_ptr<extra_state> extra_;
    exchange* exchange_ = nullptr;  // while a coroutine serves it
    std::uint32_t index_ = nowhere; // in the worker's connections
    std::uint32_t began_ = 0;       // as a stream; worker's ms
    std::uint32_t ends_at_ = 0;     // worker's ms; 0: never
    std::uint32_t references_ = 0;
    [[no_unique_address]] operation_memory read_memory_;
    end_reason why_ = end_reason::ended;
    std::uint32_t group_ = nowhere; // that counts the current request, or this open stream
};

inline connection& connection_of(stream& s) noexcept { return static_cast<connection&>(s); }
inline const connection& connection_of(const stream& s) noexcept {
    return static_cast<const connection&>(s);
}

using stream_ref = counted_ref<connection>; // within one thread

/// Fetches what is about to be used into the cache.
inline void prefetch(const void* from, std::size_t bytes) noexcept {
#if defined(__GNUC__)
    const auto* const at = static_cast<const char*>(from);
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
#else
    static_cast<void>(from), static_cast<void>(bytes);
#endif
}

/// Keeps it in memory for as long as the reference lives.
inline stream_ref hold(connection& s) noexcept {
    s.add_reference();
    return stream_ref(&s);
}

inline frame_ref last_chunk_frame() { return make_raw_frame(chunked_encoder::last_chunk); }

/// What a coroutine of a stream waits for.
enum class awaited : std::uint8_t { change, end, time };

/// A coroutine that waits for something of its stream. A timer for each would do, at five times the
/// memory, and twice the time.
struct waiter {
    explicit waiter(awaited w) noexcept : what(w) {}
    virtual ~waiter() = default;
    virtual void no_longer_cancelled() noexcept = 0; ///< Clears its slot.
    virtual void complete() = 0;

    std::unique_ptr<waiter> next;
    const awaited what;
    bool cancelled = false;
};

/// One that sleeps.
struct sleeping : waiter, deadline_wheel::entry {
    explicit sleeping(exchange& e) noexcept : waiter(awaited::time), of(e) {}
    exchange& of;
};

template <class Handler, awaited What>
struct waiting_handler final : std::conditional_t<What == awaited::time, sleeping, waiter> {
    using base = std::conditional_t<What == awaited::time, sleeping, waiter>;
    template <class Context>
    waiting_handler(Handler h, Context&& context)
        : base(std::forward<Context>(context)), done(std::move(h)) {}
    void no_longer_cancelled() noexcept override {
        auto slot = asio::get_associated_cancellation_slot(done);
        if (slot.is_connected()) slot.clear();
    }
    void complete() override {
        const auto where = asio::get_associated_executor(done);
        auto resume = [done = std::move(done), stopped = this->cancelled]() mutable {
            if constexpr (What == awaited::change) {
                static_cast<void>(stopped); // it checks again
                std::move(done)();
            } else {
                std::move(done)(stopped ? asio::error_code(asio::error::operation_aborted)
                                        : asio::error_code());
            }
        };
        if (runs_on(where)) return resume();
        asio::dispatch(where, std::move(resume));
    }
    /// Whether that is the worker's own executor, under which complete() is called: dispatch()
    /// would do the same, but erase the type of what it calls.
    static bool runs_on(const io_executor&) noexcept { return false; }
    static bool runs_on(const asio::any_io_executor& where) noexcept {
        const auto* const own = where.target<io_executor>();
        return own && own->running_in_this_thread();
    }
    Handler done;
};

enum class input_state : std::uint8_t {
    open,
    paused, ///< There is enough of it for now.
    ended,  ///< The client has sent FIN.
};

/// What belongs to one request, and is new for the next one.
struct request_state {
    const handler* run = nullptr;       // that serves it: is to run, or runs
    std::string response_headers;       // from the CORS decision
    std::unique_ptr<body_decoder> body; // once reading it has begun
    bool asked_before_end = false;      // it was pipelined before a known end
    bool answered = false;
    bool keeps_running = false; // its handler does, whatever the client does
    bool resumable = false;     // its handler views a job, which its client can resume elsewhere
};

/// What a stream has only while its requests are served; whatever serves them owns this.
struct exchange : request_state {
    explicit exchange(connection& s);
    ~exchange();
    exchange(const exchange&) = delete;
    exchange& operator=(const exchange&) = delete;

    /// Suspends until wake(): input came or ended, a frame was written, a deadline passed. Wakes
    /// may be spurious, so callers check again what they wait for.
    template <class Executor>
    asio::awaitable<void, Executor> change() {
        return asio::async_initiate<const asio::use_awaitable_t<Executor>&, void()>(
            [this](auto done) { this->template enlist<awaited::change>(std::move(done)); },
            asio::use_awaitable_t<Executor>{});
    }
    /// Suspends until the client has disconnected or the stream was ended. Errors:
    /// operation_aborted.
    asio::awaitable<void> end() {
        return asio::async_initiate<const asio::use_awaitable_t<>&, void(asio::error_code)>(
            [this](auto done) { this->template enlist<awaited::end>(std::move(done)); },
            asio::use_awaitable);
    }
    /// Suspends for this time. Errors: operation_aborted.
    asio::awaitable<void> sleep(std::chrono::nanoseconds time) {
        return asio::async_initiate<const asio::use_awaitable_t<>&, void(asio::error_code)>(
            [this, time](auto done) {
                this->template enlist<awaited::time>(std::move(done), time);
            },
            asio::use_awaitable);
    }
    void wake() noexcept;
    /// Takes a waiter out, to complete it.
    std::unique_ptr<waiter> take(sleeping& which) noexcept;

    bool input_ended() const noexcept { return intake == input_state::ended; }
    bool ended() const noexcept { return !owner.open() || input_ended(); }
    /// No request has begun: empty lines before one are skipped (RFC 9112 2.2).
    bool is_blank() const noexcept { return input.find_first_not_of("\r\n") == input.npos; }
    template <awaited What, class Handler>
    void enlist(Handler done, std::chrono::nanoseconds time = {});
    template <class Which>
    void resume_matching(Which&& which) noexcept;

    bool body_is_left() const noexcept {
        const bool has_one = request->content_length > 0 || request->chunked;
        return has_one && !(body && body->is_complete());
    }
    bool may_serve_another() const noexcept {
        return request->keep_alive && !body_is_left() && (!input_ended() || !input.empty());
    }

    static constexpr std::uint64_t no_place = ~std::uint64_t{0};

    // Each waiting handler costs one of these, so it has no padding: the first follow those above.
    bool timed_out = false;
    bool keep = true; // the connection may serve another request
    input_state intake = input_state::open;
    connection& owner;
    std::unique_ptr<waiter> waiters;      // newest first
    std::string input;                    // received, not yet consumed
    std::optional<sse::request> request;  // the current one
    std::uint64_t begun = 0;              // box.queued once a stream's head was in it
    outbox box;                           // the stream's own frames
    std::uint64_t first_place = no_place; // what "now" means, until something is written
    asio::cancellation_signal cancel;     // ends the handler
    asio::cancellation_signal cancel_gap_hook;
    asio::ip::address peer;        // or the address that the PROXY protocol names
    std::uint32_t index = 0;       // in the worker's exchanges
    bool cancel_is_due = false;    // memory for it was not available
    bool served = false;           // an earlier request was served
    bool gap_hook_running = false; // options::hooks.on_gap runs
    bool lacks_tls = false;        // the client spoke plain HTTP where TLS is spoken
};

inline bool connection::is_handled() const noexcept { return exchange_ && exchange_->run; }
inline bool connection::has_response() const noexcept {
    return !exchange_ || exchange_->answered || phase_ == phase::streaming ||
           phase_ == phase::lingering;
}

/// Why a connection with a failed socket ended: the peer closed it, or the system gave it up.
inline end_reason reason_of(const asio::error_code& failed) noexcept {
    const bool given_up =
        failed == asio::error::timed_out || failed == asio::error::host_unreachable ||
        failed == asio::error::network_unreachable || failed == asio::error::network_down ||
        failed == asio::error::network_reset;
    return given_up ? end_reason::unreachable : end_reason::client_left;
}

/// As in IANA's registry of status codes.
inline std::string_view reason_phrase(int status) noexcept {
    switch (status) {
    case 100: return "Continue";
    case 101: return "Switching Protocols";
    case 102: return "Processing";
    case 103: return "Early Hints";
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 203: return "Non-Authoritative Information";
    case 204: return "No Content";
    case 205: return "Reset Content";
    case 206: return "Partial Content";
    case 207: return "Multi-Status";
    case 208: return "Already Reported";
    case 226: return "IM Used";
    case 300: return "Multiple Choices";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 303: return "See Other";
    case 304: return "Not Modified";
    case 305: return "Use Proxy";
    case 307: return "Temporary Redirect";
    case 308: return "Permanent Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 402: return "Payment Required";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 406: return "Not Acceptable";
    case 407: return "Proxy Authentication Required";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 410: return "Gone";
    case 411: return "Length Required";
    case 412: return "Precondition Failed";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 416: return "Range Not Satisfiable";
    case 417: return "Expectation Failed";
    case 421: return "Misdirected Request";
    case 422: return "Unprocessable Content";
    case 423: return "Locked";
    case 424: return "Failed Dependency";
    case 425: return "Too Early";
    case 426: return "Upgrade Required";
    case 428: return "Precondition Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 451: return "Unavailable For Legal Reasons";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    case 506: return "Variant Also Negotiates";
    case 507: return "Insufficient Storage";
    case 508: return "Loop Detected";
    case 511: return "Network Authentication Required";
    default: return "Status"; // the phrase carries no meaning (RFC 9112 4)
    }
}

/// A date in the format of RFC 9110 5.6.7. By hand, since strftime depends on the program's locale.
inline std::string http_date(std::time_t at) {
    using namespace std::chrono;
    static constexpr const char* days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static constexpr const char* months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                             "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const auto point = sys_seconds(seconds(at));
    const auto day = floor<std::chrono::days>(point);
    const year_month_day date(day);
    const hh_mm_ss time(point - day);
    const auto two = [](auto n) { return std::string(n < 10 ? "0" : "") + std::to_string(n); };
    return std::string(days[weekday(day).c_encoding()]) + ", " + two(unsigned(date.day())) + " " +
           months[unsigned(date.month()) - 1] + " " + std::to_string(int(date.year())) + " " +
           two(time.hours().count()) + ":" + two(time.minutes().count()) + ":" +
           two(time.seconds().count()) + " GMT";
}

/// The head of a response. `headers` are whole field lines.
inline std::string response_head(int status, std::string_view headers) {
    std::string head = "HTTP/1.1 " + std::to_string(status) + " ";
    head.append(reason_phrase(status)).append("\r\nDate: ");
    head.append(http_date(std::time(nullptr))).append("\r\n").append(headers).append("\r\n");
    return head;
}

/// Whether a name in a query or a form means the last event ID. Clients that cannot set the header
/// field write lastEventId, lastEventID, last_event_id, Last-Event-ID, evs_last_event_id.
inline bool means_last_event_id(std::string_view name) {
    std::string letters;
    for (const char c : name) {
        if (c != '-' && c != '_') letters += lower(c);
    }
    return letters == "lasteventid" || letters == "evslasteventid";
}

/// The first such value that is not empty.
inline std::string last_event_id_in(std::string_view form) {
    while (!form.empty()) {
        const std::string_view pair = form.substr(0, form.find('&'));
        form.remove_prefix(std::min(form.size(), pair.size() + 1));
        const std::size_t equals = pair.find('=');
        if (equals == pair.npos || equals + 1 == pair.size()) continue; // no value
        if (means_last_event_id(form_decode(pair.substr(0, equals)))) {
            return form_decode(pair.substr(equals + 1));
        }
    }
    return {};
}

/// The last event ID of a client that reconnects: from the header field, or the query, or the form
/// value that the route puts into the request.
inline std::string last_event_id(const request& r) {
    if (const auto id = r.header("Last-Event-ID"); id && !id->empty()) return std::string(*id);
    std::string id = last_event_id_in(r.query);
    return id.empty() ? r.form_event_id : id;
}

/// Whether the client's Accept field has a media range for which `takes` returns true (RFC 9110
/// 12.5.1). Its field lines form one list.
template <class Takes>
bool accepts_some(const request& r, Takes&& takes) {
    bool accepted = false;
    for_each_element(r.fields, "Accept", [&](std::string_view range) {
        accepted = accepted || takes(trim(range.substr(0, range.find(';'))));
    });
    return accepted;
}

/// Whether the client accepts event streams. A client that names no media range accepts all.
inline bool accepts_event_stream(const request& r) {
    if (!accepts_some(r, [](std::string_view) { return true; })) return true;
    return accepts_some(r, [](std::string_view type) {
        return type == "*/*" || equal_ignoring_case(type, "text/*") ||
               equal_ignoring_case(type, "text/event-stream");
    });
}

} // namespace detail

#if defined(SSE_BODIES)

// >>worker ////////////////////////////////////////////////////////////////////////////////////////
// One thread with its io_context, its feed and its share of the streams: drains the ring, writes to
// sockets, keeps deadlines. Nothing of it is shared, so nothing is locked. Its coroutines are
// below, in >>exchange. Needs >>feed, >>connection.
// Tests: tests/fanout.cpp, tests/faults.cpp, tests/io_uring.cpp, tests/network.cpp, tests/soak.cpp,
// tests/storm.cpp
namespace detail {

/// What drain() passes to the workers.
struct farewell {
    std::chrono::milliseconds window;
    std::chrono::milliseconds retry;
    std::string bytes; ///< The last message, encoded.
};

/// Streams, or measurements, of the workers that have responded so far, and streams of other
/// servers.
struct listing {
    struct server {
        std::string name;
        std::set<std::uint64_t> parts = {}; ///< Those that have come.
        std::uint64_t count = 0;            ///< Of parts; 0: not known yet.
        bool done = false;
    };

    std::string user = {}; ///< See stream_filter.
    std::string topic = {};
    std::function<void(const listing&)> when_whole = {}; ///< All workers have responded.
    std::mutex mutex;
    stream_list streams = {};
    measurements sum = {};
    std::vector<bool> answered = {};                     ///< By worker.
    std::map<std::uint64_t, server> others = {};         ///< By their number.
    bool may_lack_some = false;                          ///< That were not heard of yet.
    std::chrono::steady_clock::time_point deadline = {}; ///< When they are no longer waited for.

    /// Once nothing more is waited for.
    stream_list take() {
        const std::lock_guard lock(mutex);
        for (auto& [node, one] : others) {
            if (!one.done) streams.missing.push_back(std::move(one.name));
        }
        streams.complete = streams.missing.empty() && !may_lack_some;
        return std::move(streams);
    }
};

/// A connection on its way to its worker.
struct arrival {
    tcp_socket socket;
    asio::ip::address peer;
    limit_reached over = limit_reached::none;
    address_book::place counted = nullptr;    ///< Where the limits by address count it.
    std::optional<std::string> received = {}; ///< Adopted: read by the server that it came from.
#if defined(SSE_TESTING)
    std::shared_ptr<detail::wire> wire = {}; ///< Of a simulated client; then the socket is closed.
#endif
};

/// Sets a connection's socket options. A peer that vanished silently is found by probes while
/// nothing is sent, and by missing acknowledgements while something is.
template <class Socket>
void set_options(Socket& socket, [[maybe_unused]] const options& o) {
    asio::error_code ignored; // a dead socket fails at its first read
    socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    probe_when_silent(socket);
#if defined(TCP_USER_TIMEOUT)
    using user_timeout = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_USER_TIMEOUT>;
    // Much later than our own, since the kernel gives up without notifying the peer or us.
    const auto time = std::clamp<std::int64_t>(2 * o.timeouts.stall.count(), 10'000, 1 << 30);
    socket.set_option(user_timeout(static_cast<int>(time)), ignored);
#endif
}

/// Whether a connection inherits these options from its listener, as in Linux (tcp(7)).
#if defined(__linux__)
inline constexpr bool accepted_inherit_options = true;
#else
inline constexpr bool accepted_inherit_options = false;
#endif

/// Whether the client has sent FIN, or both directions are closed, while its bytes are unread. Asks
/// the system, since every other way reads the bytes.
inline bool has_hung_up(client_socket& socket, bool both_ends = false) noexcept {
#if defined(SSE_TESTING)
    if (const wire* const w = socket.simulated()) {
        return w->was_reset || (w->client_ended && !both_ends);
    }
#endif
#if defined(_WIN32)
    WSAPOLLFD one{socket.native_handle(), POLLRDNORM, 0};
    return !both_ends && ::WSAPoll(&one, 1, 0) > 0 && (one.revents & (POLLHUP | POLLERR)) != 0;
#elif defined(POLLRDHUP)
    pollfd one{socket.native_handle(), POLLRDHUP, 0};
    const int signs = POLLHUP | POLLERR | (both_ends ? 0 : POLLRDHUP);
    return ::poll(&one, 1, 0) > 0 && (one.revents & signs) != 0;
#else // POLLHUP is reported for the client's FIN
    pollfd one{socket.native_handle(), POLLIN, 0};
    const int signs = both_ends ? POLLERR : POLLHUP | POLLERR;
    return ::poll(&one, 1, 0) > 0 && (one.revents & signs) != 0;
#endif
}

struct worker {
    /// Without a context it creates its own, for run().
    worker(hub& shared, std::size_t index, asio::io_context* context);
    ~worker();
    worker(const worker&) = delete;
    worker& operator=(const worker&) = delete;

    // From any thread.
    void wake() noexcept;        ///< Something was published.
    void wake_always() noexcept; ///< Even without streams: the ring must not fill up.
    void shut_down() noexcept;
    /// Posts to its thread in memory reserved for that. One drain and one stop at a time.
    template <class F>
    void post_drain(F f) noexcept {
        asio::post(io_, detail::placed{&drain_memory_, std::move(f)});
    }
    template <class F>
    void post_stop(F f) noexcept {
        asio::post(io_, detail::placed{&stop_memory_, std::move(f)});
    }
    void send_away(std::shared_ptr<const farewell> how) noexcept;
    void list(std::shared_ptr<listing> all);
    void measure(std::shared_ptr<listing> all);
    void post_to(std::uint64_t name, std::function<void(stream&)> what);
    void revoke_if(std::function<bool(const stream_info&)> which);
    void revoke_user(std::string_view user);
    bool has_ended() const noexcept { return ended_.load(std::memory_order_acquire); }
    std::size_t load() const noexcept { return load_.load(std::memory_order_relaxed); }
    void reserve() noexcept { load_.fetch_add(1, std::memory_order_relaxed); }
    void count(counters& sum) const noexcept;
    asio::io_context& context() noexcept { return io_; }
    bool is_draining() const noexcept { return farewell_ != nullptr; }
    bool runs_here() const noexcept { return io_.get_executor().running_in_this_thread(); }

    // On the worker's own thread.
    void run();
    void begin() { arm_sweep(); } ///< Instead of run(), on a context of the program.
    void on_context_destroyed() noexcept;
    void drop_waiters() noexcept;
    void adopt(arrival one);
    void give_back(const arrival& one) noexcept;
    bool pull(std::size_t max_frames = ~std::size_t{0}, std::size_t max_bytes = ~std::size_t{0});
    void make_room();

    // The rest is for itself, its connections and their exchanges.

    using clock = steady_clock;
    /// What sleeps are rounded up to, so that many that end at about the same time share one look
    /// at the clock.
    using tick = std::chrono::duration<std::int64_t, std::ratio<1, 2'000>>;

    struct input_ready;
    struct unfinished {          ///< What comes before the next request.
        bool proxy_head = false; ///< The PROXY protocol's head is to be read.
        std::optional<own_response> response = {};
        bool last_chunk = false;
    };

    static constexpr std::size_t slice_writes = 64;     // then other work runs
    static constexpr std::size_t frames_per_write = 64; // looking at these costs one write
    // A turn of clients that are behind: during a pass, otherwise, and to keep up with publishers.
    static constexpr std::chrono::microseconds short_turn{100}, turn{500}, longest_turn{20'000};
    static constexpr std::size_t max_discarded = 64 * 1024; // read from a client at once
    static constexpr std::uint32_t linger_ms = 2'000;
    static constexpr std::size_t max_fetching = 16; // pages at once
    static constexpr std::size_t page_messages = 256;
    static constexpr std::uint32_t longest_lead_ms =
        3'000; // of another server, before it is checked
    static constexpr std::uint32_t max_uninvited = 256 * 1024; // bytes on an open stream, in total

    feed::settings feed_settings(hub& shared);
    void wake_after(std::chrono::milliseconds delay) noexcept;
    void fan_out();
    void catch_up_soon() noexcept;
    void catch_up();
    bool plan();
    void be_woken();
    void recheck_ring();
    void check_ring_after(std::chrono::milliseconds delay);

    // One stream
    void subscribe(connection& s, const std::string& topic, const start& from,
                   const subscribe_options& how, bool is_private);
    std::uint64_t name_of(connection& s);
    std::uint64_t new_name();
    bool is_listed(const connection& s, const listing& which) const;
    template <class Which>
    void post_revoke(Which which);
    std::optional<std::size_t> write_now(connection& s,
                                         std::span<const asio::const_buffer> buffers);
    void write_block(std::span<receiver* const> to, std::string_view bytes,
                     std::span<std::size_t> taken);
    void await_writable(connection& s);
    void watch(connection& s);
    void on_input(connection& s);
    void resume_reading(connection& s);
    enum class rest_of_input : std::uint8_t { cut, nothing, request };
    void cancel_if_ended(connection& s);
    rest_of_input pending_input(const connection& s) const;
    std::size_t max_body_bytes(const connection& s) const;
    body_decoder body_decoder_for(const connection& s) const;
    void poll_for_end(connection& s);
    void enter(connection& s, phase next) noexcept;
    void begin_life(connection& s);
    void end_after(connection& s, std::chrono::milliseconds time);
    void set_end(connection& s, std::uint32_t at);
    bool note_end(std::uint32_t at) noexcept;
    void finish(connection& s, end_reason why, frame_ref last = {});
    void depart(connection& s);
    void report_end(connection& s, end_reason why);
    void count_end(end_reason why) noexcept;
    void close(connection& s, end_reason why);
    void cancel(connection& s) noexcept;
    void resume_soon(std::unique_ptr<waiter> one) noexcept;
    void resume_soon() noexcept;
    void resume_waiters();
    stream_info info(connection& s);

    // Handlers that sleep
    void sleep(sleeping& one, std::chrono::nanoseconds time);
    void set_alarm();
    sleeping& first_rested() const noexcept;
    static void prefetch_sleeper(const sleeping& one) noexcept;
    void resume_sleepers();

    // Deadlines
    void arm_sweep();
    void begin_sweep();
    void sweep();
    void ask_for_overdue();
    void pulse();
    void fetch(connection& s, const std::string& id);
    void fetch_next();
    void fetched(std::uint64_t name, const std::string& epoch, bus::page p);
    void log_blocked_worker(clock::duration late);
    void log_no_io_uring(const std::error_code& why);
    std::size_t check_deadlines(connection& s);
    bool end_if_expired(connection& s);
    bool end_if_stalled(connection& s);
    void end_input_if_late(connection& s);
    std::size_t keep_alive(connection& s);
    void end_drain();
    void cut_leftovers();
    void dismiss();
    void schedule_farewell(connection& s);
    void send_farewell(connection& s);
    std::string retry_after(std::chrono::milliseconds least);
    static bool is_response(const connection& s) noexcept;

    // Coroutines
    void on_first_input(connection& s, const asio::ip::address& peer);
#if defined(SSE_ENABLE_TLS)
    void begin_tls(connection& s, asio::error_code& failed);
    void refuse_tls(connection& s);
    void note_tls_failure(const connection& s);
#endif
    void begin_serving(connection& s, const asio::ip::address& peer, std::string_view received,
                       bool adopted);
    void resume_serving(stream_ref s, std::unique_ptr<exchange> state, unfinished what);
    static asio::ip::address peer_of(const connection& s);
    void log_connection(std::string_view what, const asio::ip::address& peer) const;
    void log_client(connection& s, const asio::ip::address& client);
    void log_end(const connection& s) const;
    io_awaitable<void> serve(stream_ref s, std::unique_ptr<exchange> owned, unfinished what);
    io_awaitable<void> sent(connection& s, exchange& state);
    io_awaitable<void> serve_request(connection& s, exchange& state);
    io_awaitable<std::optional<own_response>> read_head(connection& s, exchange& state);
    bool end_request(connection& s, exchange& state);
    static bool is_unsent(const connection& s, const exchange& state);
    io_awaitable<void> answer_request(connection& s, exchange& state);
    io_awaitable<bool> read_proxy(connection& s, exchange& state);
    io_awaitable<bool> is_granted(connection& s, exchange& state, const origin_matcher& matcher,
                                  std::string_view origin);
    void warn_of_missing_field(const request& r, const asio::ip::address& peer) const;
    static asio::awaitable<void> authorized(connection& s, const group& of, const handler& run);
    void leave_group(connection& s) noexcept;
    void note_refusal(const request& r, int status);
    bool is_refused_softly(const request& r) const;
    void refuse_softly(connection& s);
    void count_proxied_client(connection& s, const asio::ip::address& client);
    void run_handler(stream_ref s, std::unique_ptr<exchange> owned);
    void handler_ended(stream_ref s, std::unique_ptr<exchange> owned, std::exception_ptr failure);
    unfinished after_handler(connection& s, exchange& state, std::exception_ptr failure);
    void send_response(connection& s, int status, std::string_view type, std::string_view text,
                       std::string_view headers = {});
    io_awaitable<void> answer(connection& s, const own_response& made);
    io_awaitable<void> end_chunks(connection& s, exchange& state);
    io_awaitable<void> linger(connection& s, exchange& state);
    void run_gap_hook(connection& s, gap g);
    io_awaitable<void> gap_hook_task(stream_ref s, gap g);
    void report(std::exception_ptr failure, const connection* of = nullptr) noexcept;
    void fail(connection& s, std::exception_ptr failure);
    /// Whatever is thrown here ends this one stream, which the caller holds.
    template <class F>
    void guarded(connection& s, F&& f) {
        try {
            f();
        } catch (...) { fail(s, std::current_exception()); }
    }
    void spawn(stream_ref s, io_awaitable<void> work);

    std::uint32_t milliseconds_now() const noexcept;
    void refresh() noexcept { feed_.now = now_ = milliseconds_now(); }
    std::uint32_t age(const connection& s) const noexcept { return now_ - s.stamp_; }

    std::vector<exchange*> exchanges_; // all; some end with the context
    detail::operation_memory drain_memory_;
    detail::operation_memory stop_memory_;
    std::unique_ptr<asio::io_context> own_; // declared early so that it is destroyed late
    asio::io_context& io_;                  // own_, or the program's
    std::optional<asio::executor_work_guard<io_executor>> guard_;
    hub& hub_;
    const std::size_t index_;
    const clock::time_point birth_ = clock::now();
    std::uint32_t now_ = 0; // ms since birth, refreshed by each callback; wraps after 49 days
    bool stopping_ = false;

    // A worker without streams never announces that it sleeps, so that publishing costs it nothing;
    // wake_always() then empties its ring.
    alignas(cache_line) sleeper<> sleep_;
    alignas(cache_line) std::atomic<std::size_t> load_{0};

    feed feed_;
    send_ring sends_;
    bool fanning_ = false;
    clock::time_point slice_ended_{}; // of the current pass
    bool catching_up_ = false;        // catch_up() is posted
    detail::operation_memory turn_memory_;
    std::vector<connection*> connections_;                      // all; holds a reference to each
    std::deque<std::pair<std::uint64_t, std::string>> fetches_; // streams that want a page, after
    std::size_t fetching_ = 0;                                  // pages on their way from the bus
    std::unique_ptr<waiter> woken_;                             // resumed in FIFO order
    waiter* last_woken_ = nullptr;
    bool resume_posted_ = false;  // resume_waiters() is posted
    deadline_wheel sleepers_;     // in ticks since birth
    deadline_wheel::link rested_; // whose time has come
    bool resuming_sleepers_ = false;
    deadline_wheel::tick alarm_ = 0;                       // 0: none is set
    bool cancels_are_due_ = false;                         // for some of exchanges_
    std::unique_ptr<std::array<char, 64 * 1024>> scratch_; // receives what clients send
    std::optional<steady_timer> alarm_timer_;              // for who sleeps
    std::optional<steady_timer> sweep_timer_;
    std::optional<steady_timer> look_timer_; // to look into the ring later
    std::optional<steady_timer> end_timer_;  // for an early sweep when a stream's time is over
    std::size_t sweep_at_ = 0;
    std::uint64_t names_ = 0;                  // with a bus, of streams; 0: none was given
    std::uint32_t next_end_ = 0;               // earliest ends_at_ that the sweep has seen; 0: none
    std::shared_ptr<const farewell> farewell_; // once a drain has begun
    std::uint32_t cut_at_ = 0;                 // the end of its window
    bool cuts_ = false;                        // this sweep closes what is left

    std::minstd_rand random_{std::random_device()()}; // spreads reconnects; not for secrets

    tally bytes_;
    tally stalled_;
    tally unreachable_;
    std::array<tally, end_reasons> ends_;
    std::atomic<std::uint64_t> streaming_{0};
    std::atomic<bool> ended_{false}; // its thread runs nothing any more
};

SSE_DECL exchange::exchange(connection& s) : owner(s) {
    std::vector<exchange*>& all = owner.worker_->exchanges_;
    index = static_cast<std::uint32_t>(all.size());
    all.push_back(this);
    owner.exchange_ = this;
    owner.own_ = &box;
}

SSE_DECL exchange::~exchange() {
    resume_matching([](waiter& w) { return w.cancelled = true; });
    if (run) owner.worker_->enter(owner, phase::lost);
    std::vector<exchange*>& all = owner.worker_->exchanges_;
    all.back()->index = index;
    all[index] = all.back();
    all.pop_back();
    owner.exchange_ = nullptr;
    owner.own_ = nullptr;
}

template <awaited What, class Handler>
void exchange::enlist(Handler done, [[maybe_unused]] std::chrono::nanoseconds time) {
    using made_type = waiting_handler<Handler, What>;
    std::unique_ptr<made_type> made;
    if constexpr (What == awaited::time) {
        made = std::make_unique<made_type>(std::move(done), *this);
        owner.worker_->sleep(*made, time);
    } else {
        made = std::make_unique<made_type>(std::move(done), What);
    }
    auto slot = asio::get_associated_cancellation_slot(made->done);
    if (slot.is_connected()) {
        slot.assign([this, one = static_cast<waiter*>(made.get())](asio::cancellation_type) {
            one->cancelled = true;
            resume_matching([one](const waiter& w) { return &w == one; }); // destroys this lambda
        });
    }
    made->next = std::move(waiters);
    waiters = std::move(made);
    if (What == awaited::end && ended()) wake();
}

/// Resumes the matching waiters on the next loop iteration.
template <class Which>
void exchange::resume_matching(Which&& which) noexcept {
    worker& there = *owner.worker_;
    for (std::unique_ptr<waiter>* at = &waiters; *at;) {
        if (!which(**at)) {
            at = &(*at)->next;
            continue;
        }
        std::unique_ptr<waiter> one = std::move(*at);
        *at = std::move(one->next);
        one->no_longer_cancelled();
        if (one->what == awaited::time) static_cast<sleeping&>(*one).unlink();
        there.resume_soon(std::move(one));
    }
}

SSE_DECL std::unique_ptr<waiter> exchange::take(sleeping& which) noexcept {
    std::unique_ptr<waiter>* at = &waiters;
    while (at->get() != &which) at = &(*at)->next;
    std::unique_ptr<waiter> one = std::move(*at);
    *at = std::move(one->next);
    one->no_longer_cancelled();
    which.unlink();
    return one;
}

SSE_DECL void exchange::wake() noexcept {
    resume_matching([this](const waiter& w) {
        return w.what == awaited::change || (w.what == awaited::end && ended());
    });
}

// Handlers of the two waits that a stream may have pending. Their operations live in the stream or,
// for the rare wait for writability, on the heap.

struct worker::input_ready {
    using allocator_type = operation_allocator<void>;
    stream_ref s;
    allocator_type get_allocator() const noexcept { return allocator_type(s->read_memory_); }
    void operator()(const asio::error_code& failed) {
        if (failed || !s->is_connected()) return;
        s->worker_->guarded(*s, [this] { s->worker_->on_input(*s); });
    }
};

SSE_DECL feed::settings worker::feed_settings(hub& shared) {
    const auto& o = shared.options;
    feed::settings made;
    made.histories.push_back({"", o.history.messages, o.history.bytes, o.history.age});
    made.histories.insert(made.histories.end(), o.history.topics.begin(), o.history.topics.end());
    if (!shared.options.bus) made.epoch = shared.epoch;
    made.gap_event = o.history.gap_event;
    made.heartbeat_ids = o.heartbeat_ids;
    made.max_unsent_bytes = o.limits.unsent_bytes;
    made.hold_publishers = [&shared](bool hold) {
        if (hold) {
            shared.holding.fetch_add(1, std::memory_order_relaxed);
        } else {
            shared.holding.fetch_sub(1, std::memory_order_relaxed);
            shared.room.notify();
        }
    };
    if (shared.options.bus && o.history.from_bus != 0) {
        made.fetch = [this](receiver& r, const std::string& id) {
            fetch(static_cast<connection&>(r), id);
        };
        made.max_fetched = o.history.from_bus;
    }
    made.begin_catch_up = [this] { catch_up_soon(); };
    made.write_block = [this](auto... what) { write_block(what...); };
    return made;
}

SSE_DECL worker::worker(hub& shared, std::size_t index, asio::io_context* context)
    : own_(context ? nullptr : std::make_unique<asio::io_context>(1)),
      io_(context ? *context : *own_), hub_(shared), index_(index), feed_(feed_settings(shared)),
      sends_(shared.options.io_uring), scratch_(std::make_unique<std::array<char, 64 * 1024>>()),
      alarm_timer_(io_), sweep_timer_(io_), look_timer_(io_), end_timer_(io_) {
    if (own_) guard_.emplace(io_.get_executor());
}

SSE_DECL worker::~worker() { on_context_destroyed(); }

/// Its context is being destroyed. Connections remain only if that comes before their end.
SSE_DECL void worker::on_context_destroyed() noexcept {
    for (connection* const s : connections_) {
        enter(*s, phase::closed);
        feed_.remove(*s);
        s->unref();
    }
    connections_.clear();
    alarm_timer_.reset();
    sweep_timer_.reset();
    look_timer_.reset();
    end_timer_.reset();
    drop_waiters();
}

/// Its context is shutting down, and nothing is resumed any more: what the waiters hold is
/// destroyed with it.
SSE_DECL void worker::drop_waiters() noexcept {
    for (exchange* const state : exchanges_) {
        while (state->waiters) state->waiters = std::move(state->waiters->next);
    }
    while (woken_) woken_ = std::move(woken_->next);
}

SSE_DECL std::uint32_t worker::milliseconds_now() const noexcept {
    return static_cast<std::uint32_t>(
        std::chrono::duration_cast<std::chrono::milliseconds>(clock::now() - birth_).count());
}

SSE_DECL void worker::count(counters& sum) const noexcept {
    sum.connections += load();
    sum.streams += streaming_.load(std::memory_order_relaxed);
    sum.delivered += feed_.counted().delivered.get();
    sum.bytes += bytes_.get();
    sum.lagged += feed_.counted().lagged.get() + stalled_.get();
    sum.unreachable += unreachable_.get();
    sum.gaps += feed_.counted().gaps.get();
    sum.conflated += feed_.counted().conflated.get();
    for (std::size_t i = 0; i < end_reasons; ++i) sum.ended[i] += ends_[i].get();
}

// --- life of the thread

SSE_DECL void worker::run() {
    const auto guarded = [this](auto&& loop) {
        for (;;) {
            try {
                return loop();
            } catch (...) {
                report(std::current_exception());
                asio::post(io_, [this] { fan_out(); }); // whatever it was, the rest continues
            }
        }
    };
    guarded([this] { // until shut_down() stops it
        arm_sweep();
        io_.run();
    });
    io_.restart();
    const auto deadline = std::chrono::steady_clock::now() + hub_.options.timeouts.shutdown;
    guarded([&] { io_.run_until(deadline); }); // until the handlers have ended
    ended_.store(true, std::memory_order_release);
    hub_.room.notify(); // wakes callers that wait for its response
}

/// Reports the failure, with the request that it belongs to, if any.
SSE_DECL void worker::report(std::exception_ptr failure, const connection* of) noexcept {
    if (hub_.options.hooks.on_error) hub_.options.hooks.on_error(failure);
    if (!hub_.options.hooks.log) return;
    log_entry entry{.level = log_level::error, .what = "handler failed"};
    if (of && of->exchange_ && of->exchange_->request) {
        entry.method = of->exchange_->request->method;
        entry.path = of->exchange_->request->target_path();
        entry.client = of->exchange_->request->client;
    } else if (of && of->extra_ && of->extra_->log) {
        entry.path = of->extra_->log->path;
        entry.client = of->extra_->log->client;
    }
    try {
        std::rethrow_exception(failure);
    } catch (const std::exception& e) {
        entry.detail = e.what();
        hub_.log(entry);
    } catch (...) { hub_.log(entry); }
}

SSE_DECL void worker::fail(connection& s, std::exception_ptr failure) {
    report(failure, &s);
    close(s, end_reason::failed);
}

/// What was published before still reaches the clients, as far as their sockets take it at once.
SSE_DECL void worker::shut_down() noexcept {
    post_stop([this] {
        stopping_ = true;
        try {
            if (!fanning_) fan_out();
            while (fanning_) fan_out();
            dismiss();
        } catch (...) { report(std::current_exception()); } // out of memory: end without it
        while (!connections_.empty()) close(*connections_.back(), end_reason::stopped);
        for (exchange* const state : exchanges_) {
            if (state->keeps_running) cancel(state->owner);
        }
        alarm_timer_->cancel();
        alarm_ = 0; // a handler that was cancelled may sleep again
        sweep_timer_->cancel();
        look_timer_->cancel();
        end_timer_->cancel();
        guard_.reset();
        if (own_) return io_.stop();
        ended_.store(true, std::memory_order_release);
        hub_.room.notify();
    });
}

/// Sends each stream its reconnection time, as far as its socket takes it at once. If a proxy is in
/// front, a client that reconnects while the server restarts gets 502, which ends an EventSource
/// for good: its first attempt should come after a usual restart.
SSE_DECL void worker::dismiss() {
    for (std::size_t i = connections_.size(); i > 0;) {
        connection& s = *connections_[--i];
        if (s.phase_ == phase::streaming && !is_response(s)) {
            const stream_ref held = hold(s);
            finish(s, end_reason::stopped,
                   make_raw_frame(retry_after(hub_.options.limits.retry_after)));
        }
        i = std::min(i, connections_.size());
    }
}

/// Takes over a connection that reserve() has counted, and that admit() may have counted too.
SSE_DECL void worker::adopt(arrival one) {
    refresh();
    connection* s = nullptr;
    try {
        if (connections_.size() == connections_.capacity()) {
            connections_.reserve(connections_.size() * 2 + 16);
        }
        s = new connection(*this, std::move(one.socket));
#if defined(SSE_TESTING)
        s->socket_.attach(one.wire);
#endif
        if (one.counted || one.over != limit_reached::none) {
            s->extra().counted = one.counted;
            s->extra().over = one.over;
        }
    } catch (...) { // out of memory: the connection ends and is no longer counted
        delete s;
        give_back(one);
        return report(std::current_exception());
    }
    s->index_ = static_cast<std::uint32_t>(connections_.size());
    connections_.push_back(s);
    s->add_reference();
    s->stamp_ = now_;
    const stream_ref held = hold(*s);
    if (stopping_) return close(*s, end_reason::stopped);
    asio::error_code ignored; // a dead socket fails at its first read
    s->socket_.non_blocking(true, ignored);
    if (one.received || !accepted_inherit_options) set_options(s->socket_, hub_.options);
    if (!hub_.speaks_for_others(one.peer)) log_connection("connected", one.peer);
    if (!one.received) return on_first_input(*s, one.peer);
    begin_serving(*s, one.peer, *one.received, true);
}

/// Uncounts a connection that has not become a stream. Any thread.
SSE_DECL void worker::give_back(const arrival& one) noexcept {
    if (one.counted) hub_.addresses.leave(one.counted);
    if (one.over != limit_reached::none) hub_.refusing.fetch_sub(1, std::memory_order_relaxed);
    load_.fetch_sub(1, std::memory_order_relaxed);
}

/// Nothing is prepared for a client that has not sent anything yet: its first bytes start the
/// coroutine. Often they have arrived before it is accepted.
SSE_DECL void worker::on_first_input(connection& s, const asio::ip::address& peer) {
    asio::error_code failed;
#if defined(SSE_ENABLE_TLS)
    if (hub_.tls.is_on() && !s.socket_.is_secure()) begin_tls(s, failed);
#endif
    const std::size_t n = failed ? 0 : s.socket_.read_some(asio::buffer(*scratch_), failed);
    if (would_block(failed)) return watch(s);
#if defined(SSE_ENABLE_TLS)
    if (failed && s.socket_.is_secure() && !s.socket_.tls()->failure().empty()) {
        return refuse_tls(s);
    }
#endif
    if (failed) return close(s, reason_of(failed));
    begin_serving(s, peer, {scratch_->data(), n}, false);
}

#if defined(SSE_ENABLE_TLS)

/// The first byte has come, or none. One of plain HTTP begins no session: the request is refused.
SSE_DECL void worker::begin_tls(connection& s, asio::error_code& failed) {
    char first = 0;
    const auto peek = tcp_socket::message_peek;
    if (s.socket_.receive(asio::buffer(&first, 1), peek, failed) == 0) return;
    if (first >= 'A' && first <= 'Z') return;
    try {
        s.socket_.secure(hub_.tls.accept(s.socket_.native_handle()));
        s.adds_framing_ = true;
    } catch (const std::bad_alloc&) { failed = asio::error::no_memory; }
}

/// The client is told why by an alert, which a reset would take from it: it may be sending on.
SSE_DECL void worker::refuse_tls(connection& s) {
    note_tls_failure(s);
    s.socket_.secure(nullptr);
    enter(s, phase::lingering);
    s.socket_.send_end(false);
    watch(s);
}

SSE_DECL void worker::note_tls_failure(const connection& s) {
    const bool lacks_it = s.exchange_ && s.exchange_->lacks_tls;
    if (!lacks_it && (!s.socket_.is_secure() || s.socket_.tls()->failure().empty())) return;
    hub_.tls_failures.fetch_add(1, std::memory_order_relaxed);
    hub_.log({.level = log_level::info,
              .what = "TLS failed",
              .client = lacks_it ? s.exchange_->peer : peer_of(s),
              .detail = lacks_it ? "plain HTTP" : s.socket_.tls()->failure()});
}

#endif

SSE_DECL void worker::begin_serving(connection& s, const asio::ip::address& peer,
                                    std::string_view received, bool adopted) {
    const stream_ref held = hold(s);
    guarded(s, [&] {
        auto state = std::make_unique<exchange>(s);
        state->peer = peer;
        state->input = received;
        state->keep = !adopted; // it is not returned to the server that it came from
        state->intake = input_state::paused;
        state->lacks_tls = hub_.tls.is_on() && !s.socket_.is_secure() && !adopted;
        resume_reading(s);
        resume_serving(held, std::move(state),
                       {.proxy_head = hub_.options.proxy.protocol && !adopted});
    });
}

SSE_DECL void worker::resume_serving(stream_ref s, std::unique_ptr<exchange> state,
                                     unfinished what) {
    spawn(s, serve(s, std::move(state), std::move(what)));
}

SSE_DECL void worker::spawn(stream_ref s, io_awaitable<void> work) {
    asio::co_spawn(io_, std::move(work), [this, s](std::exception_ptr failure) {
        if (failure) fail(*s, failure);
    });
}

SSE_DECL asio::ip::address worker::peer_of(const connection& s) {
    asio::error_code gone; // a lost connection fails at its next read
    return without_mapping(s.socket_.remote_endpoint(gone).address());
}

SSE_DECL void worker::log_connection(std::string_view what, const asio::ip::address& peer) const {
    hub_.log({.level = log_level::debug, .what = what, .client = peer});
}

/// All log lines of a client name the same address. So a proxy's connection is logged under its
/// client's address, once a request has named it.
SSE_DECL void worker::log_client(connection& s, const asio::ip::address& client) {
    if (!hub_.options.hooks.log || !hub_.speaks_for_others(peer_of(s))) return;
    const bool known = s.extra_ && s.extra_->log;
    s.extra().log = {{}, client, false};
    if (!known) log_connection("connected", client);
}

SSE_DECL void worker::log_end(const connection& s) const {
    if (s.extra_ && s.extra_->log) return log_connection("disconnected", s.extra_->log->client);
    asio::ip::address peer = peer_of(s);
    if (peer.is_unspecified() && s.exchange_) {  // its client has reset it
        if (hub_.options.proxy.protocol) return; // the exchange may have the client's address
        peer = s.exchange_->peer;
    }
    if (!hub_.speaks_for_others(peer)) log_connection("disconnected", peer);
}

// --- the ring

SSE_DECL void worker::wake() noexcept {
    if (sleep_.must_wake()) wake_after(hub_.options.coalesce);
}

SSE_DECL void worker::wake_always() noexcept { wake_after({}); }

SSE_DECL void worker::wake_after(std::chrono::milliseconds delay) noexcept {
    try {
        asio::post(io_, [this, delay] {
            if (delay.count() > 0 && !stopping_) return check_ring_after(delay);
            if (!fanning_) fan_out();
        });
    } catch (...) { // out of memory: the next publisher tries again, or the sweep does
        sleep_.prepare_to_sleep();
    }
}

/// Moves frames from the ring into the log, at most as many as the ring holds. Returns false if
/// there was none.
SSE_DECL bool worker::pull(std::size_t max_frames, std::size_t max_bytes) {
    const auto take = [this] { return hub_.ring.try_read(index_).value_or(nullptr); };
    const bool any = feed_.pull(take, std::min(max_frames, hub_.ring.capacity()), max_bytes) != 0;
    if (!feed_.is_ready() && feed_.end() >= hub_.ready_at) feed_.set_ready();
    if (any) hub_.room.notify();
    return any;
}

/// For a handler that publishes while the ring is full, or a caller that looks into the history.
SSE_DECL void worker::make_room() {
    if (pull()) wake_always(); // these are not planned yet
}

// --- fan-out, in slices, so that accepts, reads, timers and stops run in between

SSE_DECL void worker::fan_out() {
    refresh();
    const auto began = clock::now();
    // At least half of the time: however long other work takes between two slices, a pass takes at
    // most twice as long as alone, whatever its number of slices.
    const auto share = fanning_ ? std::min<clock::duration>(began - slice_ended_, longest_turn)
                                : clock::duration(0);
    std::size_t budget = stopping_ ? ~std::size_t{0} : slice_writes;
    const auto goes_on = [&] {
        if (budget == 0 && clock::now() - began < share) budget = slice_writes;
        return budget > 0;
    };
    for (bool planned = false; goes_on();) {
        if (feed_.work(budget)) continue;
        if (planned && feed_.is_anyone_behind()) break; // clients behind must not be lapped
        const std::uint64_t before = feed_.end();
        if (!plan()) return; // asleep
        planned = true;
        // Many frames count as writes too: clients that wait for a turn must not be lapped.
        const std::uint64_t writes = 1 + (feed_.end() - before) / frames_per_write;
        budget -= static_cast<std::size_t>(std::min<std::uint64_t>(budget, writes));
    }
    slice_ended_ = clock::now();
    asio::post(io_, [this] {
        if (fanning_) fan_out();
    });
}

SSE_DECL void worker::catch_up_soon() noexcept {
    if (std::exchange(catching_up_, true)) return;
    asio::post(io_, detail::placed{&turn_memory_, [this] { catch_up(); }});
}

/// The clients that are behind share a turn. Between two turns the context serves its sockets, and
/// a pass continues.
SSE_DECL void worker::catch_up() {
    struct guard { // also after an exception
        ~guard() {
            of.catching_up_ = false;
            if (of.feed_.is_anyone_behind()) of.catch_up_soon();
        }
        worker& of;
    } const next{*this};
    catching_up_ = true;
    refresh();
    const auto began = clock::now();
    const auto least = fanning_ ? short_turn : turn;
    for (;;) {
        if (!feed_.catch_up()) return;
        const auto taken = clock::now() - began;
        if (taken >= longest_turn) feed_.cancel_owed_turns();
        if (taken >= least && !feed_.owes_turns()) return;
    }
}

/// Starts a pass over what is new. Returns false, and the worker sleeps, if nothing is.
SSE_DECL bool worker::plan() {
    fanning_ = true;
    if (!feed_.has_receivers()) {
        pull();
        feed_.skip();
        fanning_ = false;
        recheck_ring();
        return false;
    }
    while (!feed_.plan()) {
        if (pull(feed::batch_frames, feed::batch_bytes)) continue;
        sleep_.prepare_to_sleep();
        if (!pull(feed::batch_frames, feed::batch_bytes)) {
            fanning_ = false;
            recheck_ring();
            return false;
        }
        sleep_.wake();
    }
    return true;
}

/// Publishers wake this worker from now on: it has a stream that could receive a message.
SSE_DECL void worker::be_woken() {
    if (feed_.has_receivers() || fanning_) return;
    sleep_.prepare_to_sleep();
    pull();
    feed_.skip();
    recheck_ring();
}

/// A publisher that has claimed a slot may have checked too early to see that this worker sleeps.
SSE_DECL void worker::recheck_ring() {
    if (stopping_ || feed_.end() == hub_.ring.published()) return;
    check_ring_after(std::chrono::milliseconds(1));
}

SSE_DECL void worker::check_ring_after(std::chrono::milliseconds delay) {
    look_timer_->expires_after(delay);
    look_timer_->async_wait([this](const asio::error_code& failed) {
        if (!failed && !fanning_) fan_out();
    });
}

// --- one stream

SSE_DECL void worker::subscribe(connection& s, const std::string& topic, const start& from,
                                const subscribe_options& how, bool is_private) {
    refresh();
    be_woken();
    if (from.kind_ != start::kind::now) make_room(); // what was published before counts
    std::uint64_t published = hub_.ring.published();
    if (s.exchange_) { // all topics subscribed before a write start at one position
        std::uint64_t& first = s.exchange_->first_place;
        if (first == exchange::no_place) first = published;
        published = first;
    }
    const lag_policy lag = how.lag.value_or(hub_.options.history.lag);
    if (hub_.relay && lag == lag_policy::hold_back) {
        throw std::invalid_argument("sse::subscribe_options::lag: hold_back makes publishers wait, "
                                    "but with a bus they are on other servers too");
    }
    feed_.subscribe(s, topic, from, published, lag, how.filter, is_private);
}

/// Its id; assigned when first asked for, since each costs an entry. See hub::worker_of().
SSE_DECL std::uint64_t worker::name_of(connection& s) {
    if (s.cold_ && s.cold_->number != 0) return s.cold_->number;
    const std::uint64_t name = new_name();
    s.cold().number = name;
    if (!s.is_connected()) return name; // closed: nobody can find it
    be_woken();
    feed_.name(s, name);
    return name;
}

SSE_DECL stream_info worker::info(connection& s) {
    stream_info made;
    made.id = name_of(s);
    made.user = s.user();
    made.topics = feed_.topics_of(s);
    made.client = s.extra_ && s.extra_->log ? s.extra_->log->client : peer_of(s);
    made.age = std::chrono::milliseconds(milliseconds_now() - s.began_);
    made.lag = feed_.lag_of(s);
    made.node = hub_.options.node;
    return made;
}

/// Writes what the socket takes at once, and returns how much. If the socket is broken, closes the
/// connection and returns nullopt.
SSE_DECL std::optional<std::size_t> worker::write_now(connection& s,
                                                      std::span<const asio::const_buffer> buffers) {
    // To copy a few bytes costs less than to have the kernel gather them.
    std::array<char, 2048> joined;
    asio::const_buffer one = buffers.front();
    bool is_one = buffers.size() == 1;
    if (!is_one && buffers.size() <= 16 && asio::buffer_size(buffers) <= joined.size()) {
        one = asio::buffer(joined, asio::buffer_copy(asio::buffer(joined), buffers));
        is_one = true;
    }
    asio::error_code failed;
    const std::size_t n =
        is_one ? s.socket_.write_some(one, failed) : s.socket_.write_some(buffers, failed);
    if (failed && !would_block(failed)) {
        close(s, reason_of(failed));
        return std::nullopt;
    }
    bytes_.add(n);
    if (n > 0 || s.socket_.has_progressed()) s.stamp_ = now_;
    return n;
}

/// Writes the same bytes to several streams.
SSE_DECL void worker::write_block(std::span<receiver* const> to, std::string_view bytes,
                                  std::span<std::size_t> taken) {
    const auto of = [&](std::size_t i) -> connection& { return static_cast<connection&>(*to[i]); };
    if (sends_.is_open() && to.size() > 1) { // a single one is cheaper without it
        std::array<send_ring::handle, feed::max_at_once> sockets;
        for (std::size_t i = 0; i < to.size(); ++i) sockets[i] = of(i).socket_.native_handle();
        sends_.send(std::span(sockets.data(), to.size()), bytes, taken);
    } else {
        for (std::size_t i = 0; i < to.size(); ++i) {
            asio::error_code ignored; // then it took nothing
            taken[i] = of(i).socket_.write_some(asio::buffer(bytes), ignored);
        }
    }
    for (std::size_t i = 0; i < to.size(); ++i) {
        bytes_.add(taken[i]);
        if (taken[i] > 0) of(i).stamp_ = now_;
    }
}

SSE_DECL void worker::await_writable(connection& s) {
    if (std::exchange(s.awaits_write_, true)) return;
    s.stamp_ = now_; // stalled from now on
    s.socket_.async_wait(tcp_socket::wait_write, [this, held = hold(s)](const asio::error_code&) {
        held->awaits_write_ = false;
        refresh();
        if (held->is_connected()) feed_.flush(*held);
    });
}

// --- one stream's input: a wait is always pending, the only prompt sign of a disconnect

SSE_DECL void worker::watch(connection& s) {
    s.socket_.async_wait(s.socket_.awaited_for_input(), input_ready{hold(s)});
}

SSE_DECL void worker::on_input(connection& s) {
    exchange* const state = s.exchange_;
    if (!state && s.phase_ == phase::head) return on_first_input(s, peer_of(s));
    const bool streaming = s.phase_ == phase::streaming;
    // After a stream that ends with its last chunk the next request may be in the input already.
    bool keep =
        state && s.phase_ != phase::lingering && (!streaming || (s.chunks() && state->keep));
    for (std::size_t discarded = 0; discarded < max_discarded;) {
        asio::error_code failed;
        const std::size_t n = s.socket_.read_some(asio::buffer(*scratch_), failed);
        if (would_block(failed)) break;
        if (failed == asio::error::eof && state && !streaming) {
            state->intake = input_state::ended;
            cancel_if_ended(s);
            return state->wake();
        }
        if (failed) return close(s, reason_of(failed));
        if (!keep) {
            discarded += n;
            if (streaming) s.extra().discarded += static_cast<std::uint32_t>(n);
        } else {
            const bool blank = s.phase_ == phase::head && state->is_blank();
            state->input.append(scratch_->data(), n);
            if (blank && !state->is_blank()) s.stamp_ = milliseconds_now();
            if (state->input.size() > hub_.options.limits.head_bytes && !streaming) {
                state->intake = input_state::paused;
                return state->wake();
            }
            if (state->input.size() > hub_.options.limits.head_bytes) {
                state->keep = false; // reading continues: it may disconnect
                state->input.clear();
                state->input.shrink_to_fit();
                keep = false;
            }
        }
        if (n < scratch_->size()) break;
    }
    if (s.extra_ && s.extra_->discarded > max_uninvited) return close(s, end_reason::client_left);
    if (state) state->wake();
    watch(s);
}

/// The client has sent FIN. Complete requests that came before are still served; otherwise nobody
/// wants what the handler waits for.
SSE_DECL void worker::cancel_if_ended(connection& s) {
    const exchange& state = *s.exchange_;
    if (!state.input_ended() || !state.request || s.phase_ != phase::handling) return;
    const rest_of_input rest = pending_input(s);
    if (rest == rest_of_input::cut || (rest == rest_of_input::nothing && !state.asked_before_end)) {
        cancel(s);
    }
}

/// What follows the current request in the input received so far.
SSE_DECL worker::rest_of_input worker::pending_input(const connection& s) const {
    const exchange& state = *s.exchange_;
    std::string remaining = state.input;
    if (state.body_is_left()) {
        body_decoder body = state.body ? *state.body : body_decoder_for(s);
        if (body.feed(remaining) != body_decoder::progress::complete) return rest_of_input::cut;
    }
    if (!state.request->keep_alive) return rest_of_input::nothing;
    head_parser next(hub_.options.limits.head_bytes);
    return next.feed(remaining) == head_parser::progress::complete ? rest_of_input::request
                                                                   : rest_of_input::nothing;
}

/// The limit of its group, which it has once its route is known.
SSE_DECL std::size_t worker::max_body_bytes(const connection& s) const {
    const bool known = s.group_ != receiver::nowhere;
    return (known ? hub_.groups[s.group_] : hub_.groups.front()).max_body_bytes();
}

SSE_DECL body_decoder worker::body_decoder_for(const connection& s) const {
    const request& r = *s.exchange_->request;
    return r.chunked ? body_decoder::of_chunks(max_body_bytes(s))
                     : body_decoder::of_size(r.content_length);
}

/// While a handler leaves its client's input unread, the FIN after it is not read either, so the
/// sweep asks for it. After a FIN no more comes, and what remains fits the socket's buffer.
SSE_DECL void worker::poll_for_end(connection& s) {
    exchange& state = *s.exchange_;
    if (state.input_ended()) { // a client that merely has no more requests still reads
        if (has_hung_up(s.socket_, true)) close(s, end_reason::client_left);
        return;
    }
    if (state.intake != input_state::paused || !state.request || !has_hung_up(s.socket_)) return;
    const std::size_t most = hub_.options.limits.head_bytes + max_body_bytes(s) + max_discarded;
    while (pending_input(s) != rest_of_input::request) {
        if (state.input.size() > most) return cancel(s); // the request will be refused
        asio::error_code failed;
        const std::size_t n = s.socket_.read_some(asio::buffer(*scratch_), failed);
        if (would_block(failed)) return;
        if (failed && failed != asio::error::eof) return close(s, reason_of(failed));
        if (failed) {
            state.intake = input_state::ended;
            cancel_if_ended(s);
            return state.wake();
        }
        state.input.append(scratch_->data(), n);
    }
}

SSE_DECL void worker::resume_reading(connection& s) {
    exchange& state = *s.exchange_;
    if (!s.is_connected() || state.intake != input_state::paused) return;
    if (state.input.size() > hub_.options.limits.head_bytes) return;
    state.intake = input_state::open;
    watch(s);
}

// --- phases, deadlines, end

SSE_DECL void worker::count_end(end_reason why) noexcept {
    streaming_.fetch_sub(1, std::memory_order_relaxed);
    ends_[static_cast<std::size_t>(why)].add(1);
}

SSE_DECL void worker::enter(connection& s, phase next) noexcept {
    if (!s.is_connected()) return; // whatever its coroutines still do
    assert(may_follow(s.phase_, next));
    if (next == phase::streaming) streaming_.fetch_add(1, std::memory_order_relaxed);
    if (s.phase_ == phase::streaming) count_end(s.why_);
    s.phase_ = next;
    refresh();
    s.stamp_ = now_;
}

/// Sets what applies while a stream is open: its maximum age, and how its end is reported.
SSE_DECL void worker::begin_life(connection& s) {
    const auto& o = hub_.options;
    const request& r = *s.exchange_->request;
    s.began_ = now_;
    if (o.timeouts.stream_age.count() > 0 && s.ends_at_ == 0) {
        std::uniform_int_distribution<std::int64_t> sooner(0, o.timeouts.stream_age.count() / 10);
        end_after(s, o.timeouts.stream_age - std::chrono::milliseconds(sooner(random_)));
    } else if (s.ends_at_ != 0) {
        set_end(s, s.ends_at_);
    }
    if (farewell_) schedule_farewell(s);
    hub_.log_request(r, 200);
    const bool told = o.hooks.log || o.hooks.on_connect || o.hooks.on_disconnect;
    if (!told && !o.proxy.protocol && r.client == s.exchange_->peer) return;
    s.extra().log = {std::string(r.target_path()), r.client, told};
    if (o.hooks.on_connect) o.hooks.on_connect(s);
}

SSE_DECL void worker::end_after(connection& s, std::chrono::milliseconds time) {
    set_end(s, milliseconds_now() + static_cast<std::uint32_t>(time.count()));
}

SSE_DECL void worker::set_end(connection& s, std::uint32_t at) {
    s.ends_at_ = at == 0 ? 1 : at; // 0 means never
    if (!note_end(s.ends_at_) || sweep_at_ != 0 || !end_timer_ || stopping_) return;
    try {
        const auto remaining = static_cast<std::int32_t>(s.ends_at_ - milliseconds_now());
        end_timer_->expires_after(std::chrono::milliseconds(std::max(remaining, 0)));
        end_timer_->async_wait([this](const asio::error_code& failed) {
            if (failed || stopping_ || sweep_at_ != 0) return;
            refresh();
            begin_sweep();
        });
    } catch (...) {} // out of memory: a later sweep sees it
}

/// Returns whether this end is now the next one.
SSE_DECL bool worker::note_end(std::uint32_t at) noexcept {
    if (next_end_ != 0 && static_cast<std::int32_t>(next_end_ - at) <= 0) return false;
    next_end_ = at;
    return true;
}

/// Ends the stream once its client has everything meant for it, and this frame after that.
SSE_DECL void worker::finish(connection& s, end_reason why, frame_ref last) {
    if (s.is_finishing()) return;
    s.why_ = why;
    // The last chunk marks the response as complete, which only its handler can do. A handler that
    // is still running has not done so, unless by close(), and may have returned by the time a slow
    // client has read what is queued.
    const bool cut = why != end_reason::ended && s.is_handled();
    if (cut && s.chunks()) s.chunks()->cut_short();
    make_room(); // what was published before counts
    const stream_ref held = hold(s);
    feed_.finish(s, std::move(last));
}

/// Everything has been written.
SSE_DECL void worker::depart(connection& s) {
    if (s.phase_ != phase::streaming) return;
    if (s.why_ == end_reason::drained) hub_.drained.fetch_add(1, std::memory_order_relaxed);
    report_end(s, s.why_);
    feed_.remove(s);
    enter(s, phase::lingering);
    // If the handler is still running, the stream is cut: its client is notified now, however long
    // the handler takes.
    const bool cut = s.is_handled() && s.why_ != end_reason::ended;
    if (!s.exchange_ || cut) s.socket_.send_end(!cut);
    if (!s.exchange_) return;
    cancel(s); // its coroutine continues from here once the handler has ended
    s.exchange_->wake();
}

SSE_DECL void worker::report_end(connection& s, end_reason why) {
    if (!s.extra_ || !s.extra_->log || !std::exchange(s.extra_->log->reports_end, false)) return;
    const auto& o = hub_.options;
    hub_.log({.level = log_level::info,
              .what = "stream closed",
              .path = s.extra_->log->path,
              .client = s.extra_->log->client,
              .duration = std::chrono::milliseconds(milliseconds_now() - s.began_),
              .detail = to_string(why)});
    if (o.hooks.on_disconnect) o.hooks.on_disconnect(info(s), why);
}

/// Ends a connection now. May destroy the stream unless the caller holds a reference.
SSE_DECL void worker::close(connection& s, end_reason why) {
    if (!s.is_connected()) return;
    const bool streamed = s.phase_ == phase::streaming;
    s.phase_ = phase::closed; // first: what follows calls hooks
    if (why == end_reason::unreachable) unreachable_.add(1);
    try {
        report_end(s, why);
    } catch (...) { report(std::current_exception()); } // out of memory: it ends anyway
    const bool whole = !streamed && !s.busy_;
    feed_.remove(s);
    if (streamed) count_end(why);
    try {
#if defined(SSE_ENABLE_TLS)
        note_tls_failure(s);
#endif
        if (hub_.options.hooks.log) log_end(s);
    } catch (...) { report(std::current_exception()); }
    asio::error_code ignored; // there is nobody left to notify
    // A client that reads nothing is reset, which needs no room: a FIN after data that it has not
    // taken might never reach it, since after a while the kernel drops both silently.
    if (why == end_reason::stalled) {
        s.socket_.set_option(asio::socket_base::linger(true, 0), ignored);
    }
    // Takes effect even if a child process has a copy of the socket.
    if (why != end_reason::client_left) s.socket_.send_end(whole);
    s.socket_.close(ignored);
    s.cut_ = {};
    if (s.exchange_) {
        s.exchange_->box.waiting.clear();
        s.exchange_->wake();
    }
    if (!s.is_handled()) leave_group(s);
    if (s.extra_ && s.extra_->counted) hub_.addresses.leave(s.extra_->counted);
    if (s.is_over_limit()) hub_.refusing.fetch_sub(1, std::memory_order_relaxed);
    load_.fetch_sub(1, std::memory_order_relaxed);
    connection* const last = connections_.back();
    last->index_ = s.index_;
    connections_[s.index_] = last;
    connections_.pop_back();
    cancel(s);
    if (farewell_ && connections_.empty()) end_drain();
    s.unref();
}

/// Cancels what the handler waits for. Posted, since the caller may be that handler.
SSE_DECL void worker::cancel(connection& s) noexcept {
    if (!s.exchange_) return;
    try {
        asio::post(io_, [this, held = hold(s)] {
            exchange* const state = held->exchange_;
            if (state && (!state->keeps_running || stopping_)) {
                state->cancel.emit(asio::cancellation_type::terminal);
            }
            if (held->exchange_) {
                held->exchange_->cancel_gap_hook.emit(asio::cancellation_type::terminal);
            }
        });
    } catch (...) { // out of memory: the sweep tries again
        s.exchange_->cancel_is_due = cancels_are_due_ = true;
    }
}

/// Resumes a coroutine on the next loop iteration, since what woke it may be in the middle of
/// something.
SSE_DECL void worker::resume_soon(std::unique_ptr<waiter> one) noexcept {
    waiter* const last = one.get();
    (woken_ ? last_woken_->next : woken_) = std::move(one);
    last_woken_ = last;
    if (!resume_posted_) resume_soon();
}

SSE_DECL void worker::resume_soon() noexcept {
    try {
        asio::post(io_, [this] { resume_waiters(); });
        resume_posted_ = true;
    } catch (...) { resume_posted_ = false; } // out of memory: the next call or the sweep tries
}

SSE_DECL void worker::resume_waiters() {
    const std::unique_ptr<waiter> one = std::move(woken_);
    woken_ = std::move(one->next);
    resume_posted_ = false;
    if (woken_) resume_soon();
    one->complete();
}

// --- handlers that sleep

SSE_DECL void worker::sleep(sleeping& one, std::chrono::nanoseconds time) {
    const std::chrono::nanoseconds age = clock::now() - birth_;
    const auto end = age + std::min(time, std::chrono::nanoseconds::max() - age);
    sleepers_.add(one, static_cast<deadline_wheel::tick>(std::chrono::ceil<tick>(end).count()));
    if (!resuming_sleepers_) set_alarm(); // else once all of them have run
}

/// Sets the alarm to when the first is due, if it would come later.
SSE_DECL void worker::set_alarm() {
    const auto first = sleepers_.next();
    if (!first || (alarm_ != 0 && alarm_ <= *first)) return;
    alarm_timer_->expires_at(birth_ + tick(*first));
    alarm_timer_->async_wait([this](const asio::error_code& failed) {
        if (failed) return; // it is set to another time
        alarm_ = 0;
        const auto now = std::chrono::floor<tick>(clock::now() - birth_);
        sleepers_.advance(static_cast<deadline_wheel::tick>(now.count()), rested_);
        resume_sleepers();
    });
    alarm_ = *first;
}

SSE_DECL void worker::prefetch_sleeper(const sleeping& one) noexcept {
    prefetch(&one.of, sizeof(exchange));
    prefetch(&one.of.owner, sizeof(connection));
}

SSE_DECL sleeping& worker::first_rested() const noexcept {
    return static_cast<sleeping&>(static_cast<deadline_wheel::entry&>(*rested_.after));
}

/// Resumes those whose time has come, in slices.
SSE_DECL void worker::resume_sleepers() {
    struct guard { // what resumes may throw, out of memory
        explicit guard(bool& b) : resuming(b) { resuming = true; }
        ~guard() { resuming = false; }
        bool& resuming;
    };
    {
        const guard until_all_have_run(resuming_sleepers_);
        for (std::size_t n = 0; n < slice_writes && !rested_.is_alone(); ++n) {
            auto& one = first_rested();
            const std::unique_ptr<waiter> taken = one.of.take(one);
            if (!rested_.is_alone()) prefetch_sleeper(first_rested()); // it has slept for long
            taken->complete();
        }
    }
    if (rested_.is_alone()) return set_alarm();
    asio::post(io_, [this] { resume_sleepers(); });
}

/// Runs for another thread what only the worker's own thread may do with a stream.
SSE_DECL void worker::post_to(std::uint64_t name, std::function<void(stream&)> what) {
    asio::post(io_, [this, name, what = std::move(what)] {
        refresh();
        receiver* const found = feed_.find(name);
        if (!found) return;
        const stream_ref held = hold(static_cast<connection&>(*found));
        guarded(*held, [&] { what(*held); });
    });
}

template <class Which>
void worker::post_revoke(Which which) {
    asio::post(io_, [this, which = std::move(which)] {
        refresh();
        // From last to first: when one is removed, the last takes its place.
        for (std::size_t i = connections_.size(); i > 0;) {
            connection& s = *connections_[--i];
            if (s.phase_ == phase::streaming && which(s)) close(s, end_reason::revoked);
            i = std::min(i, connections_.size());
        }
    });
}

SSE_DECL void worker::revoke_if(std::function<bool(const stream_info&)> which) {
    post_revoke([this, which = std::move(which)](connection& s) { return which(info(s)); });
}

SSE_DECL void worker::revoke_user(std::string_view user) {
    post_revoke([user = std::string(user)](connection& s) { return s.user() == user; });
}

SSE_DECL bool worker::is_listed(const connection& s, const listing& which) const {
    if (s.phase_ != phase::streaming || (!which.user.empty() && s.user() != which.user)) {
        return false;
    }
    if (which.topic.empty()) return true;
    const std::vector<std::string> topics = feed_.topics_of(s);
    return std::any_of(topics.begin(), topics.end(), [&](const std::string& one) {
        return one == "/" || which.topic == one || which.topic.starts_with(one + "/");
    });
}

SSE_DECL void worker::list(std::shared_ptr<listing> all) {
    asio::post(io_, [this, all] {
        refresh();
        std::vector<stream_info> mine;
        for (connection* const s : connections_) {
            if (is_listed(*s, *all)) mine.push_back(info(*s));
        }
        bool whole = false;
        {
            const std::lock_guard lock(all->mutex);
            std::move(mine.begin(), mine.end(), std::back_inserter(all->streams));
            all->answered[index_] = true;
            whole = std::count(all->answered.begin(), all->answered.end(), false) == 0;
        }
        if (whole && all->when_whole) all->when_whole(*all);
        hub_.room.notify();
    });
}

SSE_DECL void worker::measure(std::shared_ptr<listing> all) {
    asio::post(io_, [this, all] {
        {
            const std::lock_guard lock(all->mutex);
            feed_.measure(all->sum);
            all->answered[index_] = true;
        }
        hub_.room.notify();
    });
}

// --- drain

SSE_DECL void worker::send_away(std::shared_ptr<const farewell> how) noexcept {
    post_drain([this, how = std::move(how)] {
        if (connections_.empty() || stopping_) return end_drain();
        while (pull()) {} // all that was published: nothing comes after it
        wake_always();
        refresh();
        farewell_ = how;
        cut_at_ = now_ + static_cast<std::uint32_t>(how->window.count());
        for (connection* const s : connections_) schedule_farewell(*s);
        arm_sweep();
    });
}

SSE_DECL void worker::end_drain() {
    farewell_.reset();
    if (hub_.undrained.fetch_sub(1, std::memory_order_acq_rel) == 1) hub_.when_drained();
    hub_.room.notify();
}

/// At a random time, so that clients do not all reconnect at once. The last fifth of the window is
/// for receiving what remains.
SSE_DECL void worker::schedule_farewell(connection& s) {
    const auto window = static_cast<std::uint32_t>(farewell_->window.count());
    std::uniform_int_distribution<std::uint32_t> least(window / 5, window);
    set_end(s, cut_at_ - least(random_)); // by the end, however late this thread gets to run
}

SSE_DECL void worker::send_farewell(connection& s) {
    s.ends_at_ = 0;
    if (is_response(s)) return; // its handler ends it, or the end of the window
    if (s.phase_ == phase::streaming) {
        const stream_ref held = hold(s);
        finish(s, end_reason::drained,
               make_raw_frame(retry_after(farewell_->retry) + farewell_->bytes));
        cancel(s);
    } else if (s.phase_ == phase::head && (!s.exchange_ || s.exchange_->is_blank())) {
        close(s, end_reason::drained); // idle before its first request, or between two
    } else {
        // A handler that has not responded yet has as much time as streams have; the last fifth is
        // for the 503 that its cancellation turns into.
        const auto fifth = static_cast<std::uint32_t>(farewell_->window.count() / 5);
        const std::uint32_t last_call = cut_at_ - fifth;
        if (static_cast<std::int32_t>(now_ - last_call) >= 0) return cancel(s);
        set_end(s, last_call);
    }
}

/// A reconnection time from this to twice as much, so that clients do not all return at once.
SSE_DECL std::string worker::retry_after(std::chrono::milliseconds least) {
    std::uniform_int_distribution<std::int64_t> more(0, least.count());
    return encode({.retry = least + std::chrono::milliseconds(more(random_))});
}

/// Whether a running handler writes a response of its own, with an end: it follows no topic.
SSE_DECL bool worker::is_response(const connection& s) noexcept {
    return s.phase_ == phase::streaming && s.is_handled() && !s.exchange_->resumable &&
           !s.follows();
}

SSE_DECL void worker::cut_leftovers() {
    while (!connections_.empty()) {
        connection& s = *connections_.back();
        if (s.phase_ == phase::streaming) hub_.cut.fetch_add(1, std::memory_order_relaxed);
        close(s, end_reason::cut);
    }
}

// --- deadlines

SSE_DECL void worker::arm_sweep() {
    const auto& o = hub_.options;
    auto shortest =
        std::min({o.timeouts.header, o.timeouts.body, o.timeouts.idle, o.timeouts.stall});
    if (o.timeouts.stream_age.count() > 0) shortest = std::min(shortest, o.timeouts.stream_age);
    if (o.heartbeat.count() > 0) shortest = std::min(shortest, o.heartbeat);
#if defined(SSE_ENABLE_TLS)
    if (hub_.tls.is_on()) shortest = std::min(shortest, o.tls.handshake);
#endif
    if (farewell_) shortest = std::min(shortest, farewell_->window / 8);
    auto period =
        std::clamp(shortest / 8, std::chrono::milliseconds(5), std::chrono::milliseconds(500));
    if (next_end_ != 0) { // not to the millisecond, so that many near ends cost few sweeps
        const auto remaining = static_cast<std::int32_t>(next_end_ - milliseconds_now());
        period = std::min(period, std::chrono::milliseconds(std::max(remaining, 40)));
    }
    sweep_timer_->expires_after(period);
    sweep_timer_->async_wait([this](const asio::error_code& failed) {
        if (failed || stopping_) return;
        refresh();
        log_blocked_worker(clock::now() - sweep_timer_->expiry());
        if (const auto why = sends_.take_refusal()) log_no_io_uring(why);
        feed_.give_back_memory();
        if (!feed_.has_receivers() && !fanning_) { // nothing wakes us: keep time and the bounds
            pull();
            feed_.skip();
        } else {
            feed_.forget();
        }
        begin_sweep();
    });
}

/// The sweep is late when something blocked this thread. The cause cannot be seen from here, since
/// Asio resumes the handlers. Each sweep reports it once, so less than once per second.
SSE_DECL void worker::log_blocked_worker(clock::duration late) {
    if (late < std::chrono::seconds(1) || !hub_.options.hooks.log) return;
    hub_.log({.level = log_level::warning,
              .what = "worker held",
              .duration = std::chrono::duration_cast<std::chrono::milliseconds>(late),
              .detail = "a handler or a callback blocked the worker's thread, and all its clients "
                        "waited; move blocking work to a thread pool"});
}

SSE_DECL void worker::log_no_io_uring(const std::error_code& why) {
    if (!hub_.options.hooks.log || hub_.said_no_io_uring.exchange(true)) return;
    hub_.log({.level = log_level::info, .what = "no io_uring", .detail = why.message()});
}

SSE_DECL void worker::begin_sweep() {
    sweep_at_ = connections_.size();
    next_end_ = 0;
    cuts_ = farewell_ && static_cast<std::int32_t>(now_ - cut_at_) >= 0;
    sweep();
}

/// Looks at every connection, in slices: one timer for all of them.
SSE_DECL void worker::sweep() {
    refresh();
    if (woken_ && !resume_posted_) resume_soon();
    if (std::exchange(cancels_are_due_, false)) {
        for (exchange* const state : exchanges_) {
            if (std::exchange(state->cancel_is_due, false)) cancel(state->owner);
        }
    }
    if (!fanning_ && !stopping_) fan_out(); // in case waking was out of memory
    if (hub_.relay && !stopping_) {
        ask_for_overdue();
        if (index_ == 0) pulse();
    }
    sweep_at_ = std::min(sweep_at_, connections_.size());
    for (std::size_t writes = 0; sweep_at_ > 0;) {
        if (writes >= slice_writes) {
            return asio::post(io_, [this] {
                if (!stopping_) sweep();
            });
        }
        writes += check_deadlines(*connections_[--sweep_at_]);
        sweep_at_ = std::min(sweep_at_, connections_.size());
    }
    if (cuts_) cut_leftovers();
    arm_sweep();
}

/// Does what is due for a connection: the first of these that applies. Returns how many writes that
/// took.
SSE_DECL std::size_t worker::check_deadlines(connection& s) {
    if (s.phase_ == phase::lost) {
        close(s, end_reason::failed);
        return 1;
    }
    const stream_ref held = hold(s);
    const auto stall = static_cast<std::uint32_t>(hub_.options.timeouts.stall.count());
    if (end_if_expired(s) || end_if_stalled(s) || feed_.end_if_lagged(s, stall)) return 1;
    if (s.busy_) return 0; // it is sent something: neither idle nor silent
    switch (s.phase_) {
    case phase::head:
    case phase::body: end_input_if_late(s); return 0;
    case phase::handling:
        if (s.exchange_) poll_for_end(s);
        return 0;
    case phase::streaming: return keep_alive(s);
    case phase::lingering:
        if (age(s) >= linger_ms) close(s, s.why_);
        return 0;
    case phase::lost:
    case phase::closed: return 0;
    }
    return 0;
}

/// The time of a stream is over, or that of any connection before the server stops.
SSE_DECL bool worker::end_if_expired(connection& s) {
    const bool may_end = farewell_ || s.phase_ == phase::streaming;
    if (!may_end || s.ends_at_ == 0) return false;
    if (static_cast<std::int32_t>(now_ - s.ends_at_) < 0) {
        note_end(s.ends_at_);
        return false;
    }
    s.ends_at_ = 0;
    if (farewell_) {
        cuts_ = false; // the next sweep does, so that this takes effect
        send_farewell(s);
    } else {
        finish(s, end_reason::expired);
    }
    return true;
}

/// The client takes nothing of what it is sent.
SSE_DECL bool worker::end_if_stalled(connection& s) {
    const auto is_stalled = [&] {
        return s.busy_ && age(s) >= hub_.options.timeouts.stall.count();
    };
    if (!s.awaits_write_ || !is_stalled()) return false;
    // The system reports room only once a third of its buffer is free; a client that reads slowly
    // but steadily has made some by now.
    feed_.flush_now(s);
    if (s.is_connected() && is_stalled()) {
        if (s.phase_ == phase::streaming) stalled_.add(1);
        close(s, end_reason::stalled);
    }
    return true;
}

/// The client has not sent the rest of its request, or another one.
SSE_DECL void worker::end_input_if_late(connection& s) {
    const auto& limits = hub_.options.timeouts;
    const bool idle = s.exchange_ && s.exchange_->served && s.exchange_->is_blank();
    auto limit = s.phase_ == phase::body ? limits.body : idle ? limits.idle : limits.header;
#if defined(SSE_ENABLE_TLS)
    tls_session* const tls = s.socket_.tls();
    const bool shakes_hands = tls && !tls->is_established();
    if (shakes_hands) limit = std::min(limit, hub_.options.tls.handshake);
    if (shakes_hands && age(s) >= limit.count()) tls->fail("the handshake took too long");
#endif
    if (age(s) < limit.count()) return;
    if (!s.exchange_) return close(s, end_reason::ended); // it has not sent anything
    s.exchange_->timed_out = true;
    s.exchange_->wake();
}

/// Sends a sign of life on a silent stream. Returns how many writes that took.
SSE_DECL std::size_t worker::keep_alive(connection& s) {
    const auto silence = hub_.options.heartbeat.count();
    const bool silent = silence != 0 && age(s) >= silence;
    if (!silent && !feed_.needs_id(s)) return 0;
    return feed_.heartbeat(s) ? 1 : 0;
}

// --- what the feed asks of a connection

SSE_DECL std::optional<std::size_t>
connection::write_some(std::span<const asio::const_buffer> bytes) {
    if (!chunks()) return worker_->write_now(*this, bytes);
    return chunks()->write(bytes, [this](std::span<const asio::const_buffer> framed) {
        return worker_->write_now(*this, framed);
    });
}

SSE_DECL void connection::await_writable() { worker_->await_writable(*this); }

SSE_DECL void connection::yield() {
    if (!is_connected()) return;
    asio::post(worker_->io_, [held = hold(*this)] {
        held->worker_->refresh();
        if (held->is_connected()) held->worker_->feed_.flush(*held);
    });
}

SSE_DECL void connection::progressed() {
    if (!exchange_) return;
    exchange_->first_place = exchange::no_place;
    exchange_->wake();
}

SSE_DECL void connection::settled() {
    if (exchange_) exchange_->wake();
}

SSE_DECL bool connection::run_gap_hook(const gap& g) {
    if (!worker_->hub_.options.hooks.on_gap) return false;
    worker_->run_gap_hook(*this, g);
    return true;
}

SSE_DECL void connection::finished() {
    if (phase_ == phase::streaming && chunks() && chunks()->end()) {
        cold_->said_farewell = true;
        return worker_->feed_.put(*this, last_chunk_frame()); // then this is called again
    }
    worker_->depart(*this);
}

SSE_DECL void connection::end(end_reason why) { worker_->close(*this, why); }

SSE_DECL void connection::fail(std::exception_ptr what) { worker_->fail(*this, what); }

// >>exchange //////////////////////////////////////////////////////////////////////////////////////
// The worker's coroutines: one for each connection, from its first bytes to its end, or until its
// stream lives on without one. Needs >>worker.
// Tests: tests/authorize.cpp, tests/cors.cpp, tests/leave.cpp, tests/logging.cpp, tests/routes.cpp,
// tests/shapes.cpp

/// Waits until all of the stream's own frames are written, or it is closed.
SSE_DECL io_awaitable<void> worker::sent(connection& s, exchange& state) {
    while (s.is_connected() && state.box.written < state.box.queued)
        co_await state.change<io_executor>();
}

/// Whether something must still be sent or awaited before a stream can live on without a coroutine.
SSE_DECL bool worker::is_unsent(const connection& s, const exchange& state) {
    const bool leaving = s.is_finishing() && s.phase_ == phase::streaming;
    return state.gap_hook_running ||
           (s.is_connected() && (leaving || state.box.written < state.box.queued));
}

/// Serves requests, from the first one or from where a handler has ended. Returns when the next
/// handler runs, so that a handler that waits keeps only its own coroutine frames alive.
SSE_DECL io_awaitable<void> worker::serve(stream_ref s, std::unique_ptr<exchange> owned,
                                          unfinished what) {
    exchange& state = *owned;
    bool again = true;
    if (what.response) co_await answer(*s, *what.response);
    if (what.last_chunk) co_await end_chunks(*s, state);
    if (state.request) {
        again = end_request(*s, state);
    } else if (what.proxy_head) {
        const bool understood = co_await read_proxy(*s, state);
        again = understood;
    }
    while (again) {
        co_await serve_request(*s, state);
        if (state.run) {
            run_handler(std::move(s), std::move(owned));
            co_return;
        }
        again = end_request(*s, state);
        if (!state.input.empty()) { // pipelined: other connections run in between
            co_await asio::post(io_.get_executor(), use_io_awaitable);
        }
    }
    // The stream's own frames are sent first; live ones need no coroutine. Whatever still uses the
    // state must end before the state does, even if the stream is closed.
    while (is_unsent(*s, state)) co_await state.change<io_executor>();
    const bool lives_on = s->follows();
    if (s->is_connected() && !lives_on) {
        const bool whole = s->phase_ == phase::streaming && s->why_ == end_reason::ended;
        if (whole && farewell_) hub_.drained.fetch_add(1, std::memory_order_relaxed);
        report_end(*s, s->why_);
        co_await linger(*s, state);
        close(*s, s->why_);
    }
}

/// Reads the head of the PROXY protocol. Returns false if there is none; the connection then ends.
SSE_DECL io_awaitable<bool> worker::read_proxy(connection& s, exchange& state) {
    enter(s, phase::head);
    proxy_head head = read_proxy_head(state.input);
    while (head.outcome == proxy_head::progress::need_more && s.is_connected() &&
           !state.input_ended() && !state.timed_out) {
        co_await state.change<io_executor>();
        head = read_proxy_head(state.input);
    }
    if (head.outcome != proxy_head::progress::complete) {
        hub_.log({.level = log_level::warning,
                  .what = "refused",
                  .client = state.peer,
                  .detail = "no PROXY protocol header"});
        co_return false;
    }
    state.input.erase(0, head.size);
    if (head.from && hub_.speaks_for_others(state.peer)) state.peer = *head.from;
    co_return true;
}

/// Counts the connection for its client if the peer speaks for others: accept could not know the
/// client.
SSE_DECL void worker::count_proxied_client(connection& s, const asio::ip::address& client) {
    const auto& o = hub_.options;
    if (o.limits.connections_per_ip == 0 && o.limits.connect_rate_per_ip == 0) return;
    const auto key = counting_prefix(client);
    auto& counted = s.extra().counted;
    if (counted && counted->first == key) return;
    asio::error_code gone;
    const auto peer = without_mapping(s.socket_.remote_endpoint(gone).address());
    if (gone || !hub_.speaks_for_others(peer)) return;
    if (counted) hub_.addresses.leave(counted);
    counted = hub_.addresses.enter(key, o.limits.connections_per_ip, o.limits.connect_rate_per_ip,
                                   clock::now(), &s.extra().over);
    if (counted) return;
    hub_.refusing.fetch_add(1, std::memory_order_relaxed);
}

// Coroutines with small frames: Asio gives the memory of ended frames to new ones, and a new one
// that lives as long as its handler would keep a large block.

/// Reads one request and responds to it, or chooses the handler that will.
SSE_DECL io_awaitable<void> worker::serve_request(connection& s, exchange& state) {
    enter(s, phase::head);
    if (s.cold_) { // it belongs to the previous request
        feed_.remove(s);
        s.cold_.reset();
    }
    if (!farewell_) s.ends_at_ = 0;
    const std::optional<own_response> refused = co_await read_head(s, state);
    if (!state.request) co_return;
    log_client(s, state.request->client);
    enter(s, phase::handling);
    if (refused) {
        state.request->keep_alive = false;
        co_await answer(s, *refused);
        co_return;
    }
    if (!s.is_over_limit()) count_proxied_client(s, state.request->client);
    if (s.is_over_limit() || !state.keep) state.request->keep_alive = false;
    resume_reading(s);
    co_await answer_request(s, state);
}

SSE_DECL std::optional<own_response> response_of(const request::verdict& found) {
    if (found.status == 0) return std::nullopt;
    return own_response{found.status, std::string(found.reason) + "\n"};
}

/// Reads the head of a request. Afterwards there is a current request, unless none came. Returns
/// the response if the head is refused.
SSE_DECL io_awaitable<std::optional<own_response>> worker::read_head(connection& s,
                                                                     exchange& state) {
    head_parser parser(hub_.options.limits.head_bytes);
    auto progress = parser.feed(state.input);
    while (progress == head_parser::progress::need_more && s.is_connected() &&
           !state.input_ended() && !state.timed_out) {
        co_await state.change<io_executor>();
        progress = parser.feed(state.input);
    }
    const bool came = progress != head_parser::progress::need_more;
    if (!s.is_connected() || (!came && (state.is_blank() || !state.timed_out)))
        co_return std::nullopt;
    static_cast<request_state&>(state) = {};
    request& r = state.request.emplace();
    r.client = state.peer;
    request::verdict verdict;
    if (!came) verdict = {408, "the request head did not arrive in time"};
    if (progress == head_parser::progress::refused) verdict = parser.refusal();
    if (verdict.status != 0) co_return response_of(verdict);
    verdict = r.parse(parser.head(state.input), hub_.options.limits.header_lines);
    state.input.erase(0, parser.size());
    state.asked_before_end = state.served && state.input_ended();
    r.client = client_address(r, state.peer, hub_.trusted, hub_.options.proxy.forwarded);
    warn_of_missing_field(r, state.peer);
#if defined(SSE_ENABLE_TLS)
    if (s.socket_.is_secure()) r.client_subject = s.socket_.tls()->client_subject();
#endif
    if (verdict.status == 0 && state.lacks_tls) verdict = {400, "TLS is spoken here: use https"};
    co_return response_of(verdict);
}

/// Warns once about a trusted proxy that does not name its clients. Its own health checks have no
/// client to name.
SSE_DECL void worker::warn_of_missing_field(const request& r, const asio::ip::address& peer) const {
    const auto& o = hub_.options;
    if (hub_.trusted.empty() || !o.hooks.log || !contained(hub_.trusted, peer)) return;
    const std::string name(field_of(o.proxy.forwarded));
    const bool of_health = !o.health.empty() && r.path.starts_with(o.health);
    if (of_health || r.header(name) || hub_.warned_missing_client.exchange(true)) return;
    const std::string detail =
        "a request of a trusted proxy has no " + name +
        ": limits and logs count all its clients as one; have the proxy set it, or remove the "
        "proxy from options::proxy.trusted";
    hub_.log({.level = log_level::warning,
              .what = "client unknown",
              .path = r.target_path(),
              .client = peer,
              .detail = detail});
}

/// Returns whether the connection may carry another request.
SSE_DECL bool worker::end_request(connection& s, exchange& state) {
    if (!s.follows() || !s.is_connected())
        leave_group(s); // a stream that lives on leaves it at its end
    state.served = true;
    state.request.reset();
    return s.is_connected() && s.phase_ == phase::handling && state.keep;
}

SSE_DECL void worker::note_refusal(const request& r, int status) {
    hub_.refused.fetch_add(1, std::memory_order_relaxed);
    hub_.log({.level = log_level::warning,
              .what = "refused",
              .method = r.method,
              .path = r.target_path(),
              .status = status,
              .client = r.client,
              .detail = "over a connection limit"});
}

/// Whether a client that is over a limit gets a stream that tells it when to come back.
SSE_DECL bool worker::is_refused_softly(const request& r) const {
    const bool event_source = !r.is_head() && accepts_some(r, [](std::string_view type) {
        return equal_ignoring_case(type, "text/event-stream");
    });
    return hub_.options.limits.over == refusal::soft && event_source;
}

SSE_DECL void worker::refuse_softly(connection& s) {
    exchange& state = *s.exchange_;
    state.answered = true;
    state.keep = false;
    const std::string bytes =
        response_head(200, "Content-Type: text/event-stream\r\nCache-Control: no-cache, "
                           "no-transform\r\nConnection: close\r\n" +
                               state.response_headers) +
        retry_after(hub_.options.limits.retry_after);
    feed_.enqueue(s, make_raw_frame(bytes));
}

SSE_DECL io_awaitable<bool> worker::is_granted(connection& s, exchange& state,
                                               const origin_matcher& matcher,
                                               std::string_view origin) {
    if (!matcher.is_coroutine()) co_return matcher.test(origin, *state.request);
    cancel_if_ended(s);
    const bool granted = co_await asio::co_spawn(
        io_.get_executor(), matcher.ask(origin, *state.request),
        asio::bind_cancellation_slot(state.cancel.slot(), use_io_awaitable));
    co_return (granted && s.is_connected());
}

SSE_DECL io_awaitable<void> worker::answer_request(connection& s, exchange& state) {
    const site::target to = hub_.find(*state.request);
    const origin_matcher& matcher = to.of->cors().origin;
    const auto origin = state.request->header("Origin");
    const bool host_is_served = hub_.serves_host(hub_.host_of(*state.request, state.peer));
    bool granted = true;
    std::exception_ptr failure;
    try {
        if (origin && !matcher.matches_any() && host_is_served) {
            const bool allowed = co_await is_granted(s, state, matcher, *origin);
            granted = allowed;
        }
    } catch (...) { failure = std::current_exception(); }
    if (failure && (!s.is_connected() || state.input_ended())) { // nobody awaits a response
        state.keep = false;
        co_return;
    }
    std::optional<own_response> made;
    if (failure) {
        report(failure, &s);
        made = site::response_after(true, {});
    } else {
        if (host_is_served) state.response_headers = cors_headers(to.of->cors(), origin, granted);
        made = hub_.decide(*state.request, state.peer, to, granted, s.over());
    }
    if (made) {
        co_await answer(s, *made);
    } else {
        s.group_ = to.of->number;
        state.run = to.run;
    }
}

SSE_DECL void worker::leave_group(connection& s) noexcept {
    const std::uint32_t of = std::exchange(s.group_, receiver::nowhere);
    if (of != receiver::nowhere) hub_.groups[of].leave();
}

/// Asks the authorize hooks of the groups around a route first, the outermost first.
SSE_DECL asio::awaitable<void> worker::authorized(connection& s, const group& of,
                                                  const handler& run) {
    std::vector<const group*> groups;
    for (const group* g = &of; g; g = g->around) {
        if (g->options.authorize) groups.push_back(g);
    }
    for (; !groups.empty(); groups.pop_back()) {
        const access given = co_await groups.back()->options.authorize(s.request());
        const bool refused = co_await s.refused_by(given);
        if (refused) co_return;
    }
    co_await run(s);
}

SSE_DECL void worker::run_handler(stream_ref s, std::unique_ptr<exchange> owned) {
    exchange& state = *owned;
    const group& of = hub_.groups[s->group_];
    const handler& run = *state.run;
    asio::awaitable<void> work;
    try {
        work = of.is_guarded() ? authorized(*s, of, run) : run(*s);
    } catch (...) { return handler_ended(s, std::move(owned), std::current_exception()); }
    auto ended = [this, s, owned = std::move(owned)](std::exception_ptr failure) mutable {
        handler_ended(s, std::move(owned), failure);
    };
    guarded(*s, [&] {
        asio::co_spawn(io_.get_executor(), std::move(work),
                       asio::bind_cancellation_slot(
                           state.cancel.slot(),
                           asio::bind_executor( // otherwise a type-erased one, 48 bytes larger
                               io_.get_executor(), std::move(ended))));
        if (s->exchange_) cancel_if_ended(*s);
    });
}

SSE_DECL void worker::handler_ended(stream_ref s, std::unique_ptr<exchange> owned,
                                    std::exception_ptr failure) {
    exchange& state = *owned;
    state.run = nullptr;
    guarded(*s, [&] {
        unfinished remaining = after_handler(*s, state, failure);
        const bool goes_on = s->is_connected() && !s->follows();
        if (goes_on || remaining.response || remaining.last_chunk || is_unsent(*s, state)) {
            return resume_serving(s, std::move(owned), std::move(remaining));
        }
        end_request(*s, state);
    });
}

SSE_DECL worker::unfinished worker::after_handler(connection& s, exchange& state,
                                                  std::exception_ptr failure) {
    std::error_code code;
    try {
        if (failure) std::rethrow_exception(failure);
    } catch (const std::system_error& e) { code = e.code(); } catch (...) {
    }
    const bool going_down = farewell_ && code == asio::error::operation_aborted;
    own_response made = code == errc::over_limit ? hub_.refusal_for(s.over())
                                                 : site::response_after(failure != nullptr, code);
    const bool client_left = code == errc::closed || (code == asio::error::operation_aborted &&
                                                      (!s.open() || state.input_ended()));
    if (made.status == 500 && !client_left && !going_down) report(failure, &s);
    if (client_left) state.keep = false;
    if (!s.is_connected() || state.answered) return {};
    if (s.phase_ == phase::streaming) {
        if (!failure) feed_.release(s);
        if (failure && !s.is_finishing()) {
            s.why_ = client_left ? end_reason::ended : end_reason::failed;
            feed_.remove(s);
        } else if (s.chunks() && !s.follows() && !s.is_finishing()) {
            return {.last_chunk = true};
        } else if (!s.awaits_write_) { // write at once: then it needs no coroutine any more
            refresh();
            feed_.flush_now(s, 1); // the head; a long replay waits for its turn
        }
        return {};
    }
    if (s.phase_ == phase::lingering) return {}; // it was a stream, and had everything
    if (client_left && !going_down) return {};
    if (going_down) {
        const auto wait = std::chrono::ceil<std::chrono::seconds>(farewell_->retry).count();
        made = {503, "Going down\n", "Retry-After: " + std::to_string(wait) + "\r\n"};
    }
    return {.response = std::move(made)};
}

/// Ends a stream whose handler has completed it: the connection may serve another request.
SSE_DECL io_awaitable<void> worker::end_chunks(connection& s, exchange& state) {
    // Until nothing at all is pending: the last chunk would cut even a heartbeat in two.
    while (s.is_connected() && !s.is_finishing() && s.busy_) co_await state.change<io_executor>();
    if (!s.is_connected() || s.is_finishing()) co_return; // something else has ended it meanwhile
    report_end(s, end_reason::ended);
    feed_.remove(s);
    enter(s, phase::handling); // no stream data follows
    s.chunks()->end();
    feed_.put(s, last_chunk_frame());
    while (s.is_connected() && s.busy_) co_await state.change<io_executor>();
    if (s.is_connected() && farewell_) hub_.drained.fetch_add(1, std::memory_order_relaxed);
    s.extra().chunks.reset();
    s.adds_framing_ = s.socket_.is_secure();
    s.held_ = 0;
    s.has_id_ = false;
    if (farewell_) state.keep = false;
}

SSE_DECL frame_ref make_response(const exchange& state, int status, std::string_view type,
                                 std::string_view text, std::string_view headers) {
    const bool bodiless = status == 204 || status == 304 || status < 200;
    std::string lines(headers);
    if (!bodiless) {
        lines.append("Content-Type: ").append(type).append("\r\nContent-Length: ");
        lines.append(std::to_string(text.size())).append("\r\n");
    }
    lines.append(state.response_headers);
    if (lines.find("\nCache-Control: ") == lines.npos) lines.append("Cache-Control: no-store\r\n");
    if (!state.keep) {
        lines.append("Connection: close\r\n");
    } else if (!state.request->accepts_chunked()) { // HTTP/1.0 closes by default
        lines.append("Connection: keep-alive\r\n");
    }
    std::string bytes = response_head(status, lines);
    if (!bodiless && !state.request->is_head()) bytes.append(text);
    return make_raw_frame(bytes);
}

/// Sends a whole response to the current request, without waiting for it.
SSE_DECL void worker::send_response(connection& s, int status, std::string_view type,
                                    std::string_view text, std::string_view headers) {
    exchange& state = *s.exchange_;
    if (hub_.stopped || !state.may_serve_another()) state.keep = false;
    frame_ref made = make_response(state, status, type, text, headers);
    hub_.log_request(*state.request, status);
    refresh();
    feed_.enqueue(s, std::move(made));
    state.answered = true; // not earlier: if memory runs out above, that gets a response
}

/// Sends a response of the server's own.
SSE_DECL io_awaitable<void> worker::answer(connection& s, const own_response& made) {
    const request& r = *s.exchange_->request;
    if (made.over_limit) note_refusal(r, made.status);
    if (made.over_limit && is_refused_softly(r)) {
        refuse_softly(s);
    } else {
        send_response(s, made.status, "text/plain; charset=utf-8", made.text, made.lines);
    }
    co_await sent(s, *s.exchange_);
}

/// Closes our end and awaits the client's, so that unread input does not turn the close into a
/// reset that costs the client the response (RFC 9112 9.6).
SSE_DECL io_awaitable<void> worker::linger(connection& s, exchange& state) {
    enter(s, phase::lingering);
    s.socket_.send_end(s.why_ != end_reason::failed);
    state.input.clear();
    resume_reading(s);
    while (s.is_connected() && !state.input_ended()) co_await state.change<io_executor>();
}

/// Runs options::hooks.on_gap beside whatever else serves the stream, which the feed holds
/// meanwhile.
SSE_DECL void worker::run_gap_hook(connection& s, gap g) {
    asio::post(io_, [this, held = hold(s), g = std::move(g)]() mutable {
        if (!held->is_connected()) return;
        spawn(held, gap_hook_task(held, std::move(g)));
    });
}

SSE_DECL io_awaitable<void> worker::gap_hook_task(stream_ref s, gap g) {
    std::optional<exchange> lent; // a stream without a coroutine has no exchange
    if (!s->exchange_) lent.emplace(*s);
    exchange& state = *s->exchange_;
    state.gap_hook_running = true;
    std::exception_ptr failure;
    try {
        co_await asio::co_spawn(
            io_.get_executor(), hub_.options.hooks.on_gap(*s, g),
            asio::bind_cancellation_slot(state.cancel_gap_hook.slot(), use_io_awaitable));
    } catch (...) { failure = std::current_exception(); }
    if (failure && s->is_connected() && !s->is_finishing()) fail(*s, failure);
    if (s->is_connected()) feed_.release(*s, receiver::by_gap_hook);
    state.gap_hook_running = false;
    state.wake();
    if (lent) co_await sent(*s, state);
}

} // namespace detail

// --- what handlers call

SSE_DECL const sse::request& stream::request() const {
    auto& self = detail::connection_of(*this);
    if (!self.exchange_ || !self.exchange_->request) {
        throw std::logic_error("sse::stream::request: only while the handler runs");
    }
    return *self.exchange_->request;
}

/// Applies the result of an authorize hook. Returns true if it refused, with the response sent.
SSE_DECL asio::awaitable<bool> detail::connection::refused_by(access given) {
    access::terms& terms = given.terms_;
    for (const auto& [name, value] : terms.headers) add_header(name, value);
    if (!given.granted()) {
        co_await respond(given.status_, "text/plain; charset=utf-8", given.text_);
        co_return true;
    }
    if (terms.valid_for.count() > 0) end_after(terms.valid_for);
    if (!terms.user.empty()) set_user(terms.user);
    if (!terms.topics.empty()) exchange_->request->topics = std::move(terms.topics);
    co_return false;
}

SSE_DECL detail::exchange& detail::connection::current_exchange(const char* asked) const {
    if (!exchange_) {
        throw std::logic_error(std::string("sse::stream::") + asked +
                               ": only while the handler runs");
    }
    return *exchange_;
}

/// A worker has no locks. Once its context has stopped there is nothing to race with, and what the
/// program destroys then may still call.
SSE_DECL void detail::connection::check_thread() const {
    if (!worker_->runs_here() && !worker_->context().stopped()) {
        throw std::system_error(errc::wrong_thread, "sse::stream");
    }
}

/// Whether the head of an event stream is still to be sent. Throws if there can be no stream.
SSE_DECL bool detail::connection::must_begin() {
    check_thread();
    const bool first = phase_ != phase::streaming;
    if (first && exchange_ && exchange_->input_ended()) { // it has left
        worker_->close(*this, end_reason::client_left);
    }
    if (!open()) throw std::system_error(errc::closed, "sse::stream");
    if (first && (!exchange_ || exchange_->answered)) {
        throw std::logic_error("sse::stream: this request already has its response");
    }
    if (first && is_over_limit()) throw std::system_error(errc::over_limit, "sse::stream");
    return first;
}

/// Sends the head of an event stream. Its subscription is in effect already, so what is published
/// once the client sees the head reaches it. The head goes out on the next loop iteration, so that
/// replayed messages share its write.
SSE_DECL void detail::connection::begin_streaming(bool finite) {
    using detail::chunked_encoder;
    // If the end of the connection ends the body, Varnish holds back what comes with the head.
    const bool framed = finite || request().header("X-Varnish");
    const bool chunked = framed && request().accepts_chunked() && !request().is_head() &&
                         exchange_->may_serve_another() &&
                         exchange_->input.size() <= worker_->hub_.options.limits.head_bytes;
    worker_->enter(*this, phase::streaming);
    if (!chunked) exchange_->input.clear();
    if (exchange_->input.empty())
        exchange_->input.shrink_to_fit(); // perhaps nothing comes for long
    worker_->resume_reading(*this);
    // Otherwise the end of the connection ends the body, in HTTP/1.0 and in HTTP/1.1.
    const std::string head = detail::response_head(
        200, "Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
             "X-Accel-Buffering: no\r\n" +
                 std::string(chunked ? "Transfer-Encoding: chunked\r\n" : "") +
                 std::string(chunked && !worker_->farewell_ ? "" : "Connection: close\r\n") +
                 exchange_->response_headers);
    exchange_->response_headers.clear();
    exchange_->response_headers.shrink_to_fit();
    if (chunked) {
        extra().chunks = std::make_unique<chunked_encoder>();
        adds_framing_ = true;
        chunks()->pass(head.size());
    }
    worker_->feed_.enqueue_later(*this, detail::make_raw_frame(head));
    exchange_->begun = exchange_->box.queued;
    if (request().is_head()) { // no body follows (RFC 9110 9.3.2)
        worker_->hub_.log_request(request(), 200);
        worker_->finish(*this, end_reason::ended);
        throw std::system_error(errc::closed, "sse::stream: HEAD has no body");
    }
    worker_->begin_life(*this);
}

/// Resolves `since` and `resume`, which depend on the time and on the request.
SSE_DECL start detail::connection::resolved(const subscribe_options& how) const {
    using namespace std::chrono;
    start from = how.from;
    if (from.kind_ == start::kind::since) {
        const auto age = detail::wall_time() - from.time_;
        const milliseconds most(std::numeric_limits<std::int32_t>::max()); // 24 days
        from.age_ = age > most ? most : ceil<milliseconds>(age);
    }
    const bool resumes = from.kind_ == start::kind::resume;
    // A held subscription follows a snapshot, which makes earlier messages useless.
    if (resumes && how.held) return start::now();
    if ((!resumes && !from.or_resume_) || !exchange_ || !exchange_->request) return from;
    std::string id = detail::last_event_id(*exchange_->request);
    if (!id.empty()) return start::after(std::move(id));
    return resumes ? start::now() : from;
}

SSE_DECL void stream::subscribe(std::string_view topic, subscribe_options how) {
    auto& self = detail::connection_of(*this);
    const std::string canonical = detail::checked_topic(topic);
    const bool first = self.must_begin();
    if (first && !detail::accepts_event_stream(request())) {
        throw std::system_error(errc::not_acceptable, "sse::stream");
    }
    const bool head_only = first && request().is_head();
    if (!head_only) {
        const start from = self.resolved(how);
        if (!self.follows() && !user().empty()) {
            subscribe_options own; // no filter: it applies to the topic
            own.lag = how.lag;
            self.worker_->subscribe(self, detail::user_topic(self.cold_->user), from, own, true);
        }
        self.worker_->subscribe(self, canonical, from, how, false);
        if (how.held) self.worker_->feed_.hold(self);
    }
    if (first) self.begin_streaming(false);
}

SSE_DECL bool stream::open() const noexcept {
    auto& self = detail::connection_of(*this);
    return self.is_connected() && !self.is_finishing();
}

SSE_DECL std::string_view stream::user() const noexcept {
    auto& self = detail::connection_of(*this);
    return self.cold_ ? self.cold_->user : std::string_view();
}

SSE_DECL stream::executor_type stream::get_executor() noexcept {
    return detail::connection_of(*this).socket_.get_executor();
}

SSE_DECL bool stream::unsubscribe(std::string_view topic) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    return self.worker_->feed_.unsubscribe(self, detail::checked_topic(topic));
}

SSE_DECL void stream::resume() {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    self.worker_->feed_.release(self);
}

SSE_DECL void stream::close() {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    if (self.phase_ == detail::phase::streaming) self.worker_->finish(self, end_reason::ended);
}

SSE_DECL std::uint64_t stream::id() {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    return self.worker_->name_of(self);
}

SSE_DECL void stream::set_user(std::string_view key) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    const std::string topic = detail::user_topic(key);
    if (user() == key) return;
    const std::string old = std::exchange(self.cold().user, std::string(key));
    if (!self.follows()) return; // subscribe() will
    if (!old.empty()) self.worker_->feed_.unsubscribe(self, detail::user_topic(old), true);
    self.worker_->subscribe(self, topic, start::now(), {}, true);
}

SSE_DECL std::vector<std::string> stream::topics() const {
    auto& self = detail::connection_of(*this);
    return self.worker_->feed_.topics_of(self);
}

SSE_DECL sse::lag stream::lag() const {
    auto& self = detail::connection_of(*this);
    return self.worker_->feed_.lag_of(self);
}

SSE_DECL stream_info stream::info() {
    auto& self = detail::connection_of(*this);
    return self.worker_->info(self);
}

/// Suspends until everything now in the box is written.
SSE_DECL asio::awaitable<void> detail::connection::written() {
    const std::uint64_t mine = exchange_->box.queued;
    // A handler that never has to wait would monopolize its thread.
    if (mine % 64 == 0) co_await asio::post(socket_.get_executor(), asio::use_awaitable);
    while (is_connected() && exchange_->box.written < mine) {
        co_await exchange_->change<asio::any_io_executor>();
    }
    if (exchange_->box.written < mine) throw std::system_error(errc::closed, "sse::stream");
}

/// One frame, or several.
template <class Frames>
asio::awaitable<void> detail::connection::write(Frames frames) {
    if (!open()) throw std::system_error(errc::closed, "sse::stream");
    current_exchange("send");
    worker_->refresh();
    worker_->feed_.enqueue(*this, std::move(frames));
    co_await written();
}

SSE_DECL void stream::begin() {
    auto& self = detail::connection_of(*this);
    if (!self.must_begin()) return;
    self.begin_streaming(true);
    // Some proxies hold back a head until the first byte of its body.
    self.worker_->feed_.enqueue_later(self, detail::make_raw_frame(":\n"));
    self.exchange_->begun = self.exchange_->box.queued;
}

SSE_DECL asio::awaitable<void> stream::send(const message& m) {
    auto& self = detail::connection_of(*this);
    detail::frame_ref f = detail::make_frame(detail::frame::kind::stream, {}, m);
    if (self.must_begin()) self.begin_streaming(true);
    return self.write(std::move(f));
}

SSE_DECL asio::awaitable<void> stream::send(std::span<const message> several) {
    auto& self = detail::connection_of(*this);
    std::vector<detail::frame_ref> frames;
    for (const message& m : several) {
        frames.push_back(detail::make_frame(detail::frame::kind::stream, {}, m));
    }
    if (self.must_begin()) self.begin_streaming(true);
    return self.write(std::move(frames));
}

SSE_DECL bool stream::try_send(const message& m) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    detail::frame_ref f = detail::make_frame(detail::frame::kind::stream, {}, m);
    if (!open() || !self.exchange_) return false;
    try {
        if (self.must_begin()) self.begin_streaming(true);
    } catch (const std::system_error& e) {
        if (e.code() == errc::closed) return false;
        throw;
    }
    const detail::outbox& box = self.exchange_->box;
    if (box.written < box.queued && box.queued > self.exchange_->begun) return false;
    self.worker_->refresh();
    self.worker_->feed_.enqueue(self, std::move(f));
    return true;
}

SSE_DECL asio::awaitable<void> stream::sleep_for(std::chrono::nanoseconds time) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    if (time.count() <= 0) return asio::post(self.socket_.get_executor(), asio::use_awaitable);
    return self.current_exchange("sleep_for").sleep(time);
}

SSE_DECL asio::awaitable<void> stream::closed() {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    return self.current_exchange("closed").end();
}

SSE_DECL void stream::keep_running() {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    self.current_exchange("keep_running").keeps_running = true;
}

SSE_DECL bool stream::draining() const noexcept {
    auto& self = detail::connection_of(*this);
    return self.worker_->is_draining();
}

SSE_DECL void stream::end_after(std::chrono::milliseconds time) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    if (time.count() <= 0 || time > std::chrono::hours(21 * 24)) {
        throw std::invalid_argument("sse::stream::end_after: the time must be more than 0 and at "
                                    "most three weeks");
    }
    self.worker_->end_after(self, time);
}

SSE_DECL void stream::add_header(std::string_view name, std::string_view value) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    if (!detail::is_token(name) || detail::has_control(value)) {
        throw std::invalid_argument("sse::stream::add_header: '" + std::string(name) +
                                    "' is not a header name, or its value has a control character");
    }
    for (const std::string_view own :
         {"Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade", "Trailer",
          "Date", "Content-Type", "Cache-Control", "X-Accel-Buffering"}) {
        if (!detail::equal_ignoring_case(name, own)) continue;
        throw std::invalid_argument("sse::stream::add_header: " + std::string(own) +
                                    " is written by the server itself; the type of a plain "
                                    "response is an argument of respond()");
    }
    if (self.has_response()) {
        throw std::logic_error("sse::stream::add_header: the response has already begun");
    }
    self.exchange_->response_headers.append(name).append(": ").append(value).append("\r\n");
}

SSE_DECL asio::awaitable<void> stream::respond(int status, std::string_view content_type,
                                               std::string_view text) {
    auto& self = detail::connection_of(*this);
    self.check_thread();
    if (status < 200 || status > 599) {
        throw std::invalid_argument("sse::stream::respond: status must be 200 to 599, not " +
                                    std::to_string(status));
    }
    if (detail::has_control(content_type)) {
        throw std::invalid_argument(
            "sse::stream::respond: the content type has a control character");
    }
    if (!self.is_connected()) throw std::system_error(errc::closed, "sse::stream");
    if (self.has_response()) {
        throw std::logic_error("sse::stream::respond: this request already has its response");
    }
    self.worker_->send_response(self, status, content_type, text);
    return self.written();
}

SSE_DECL asio::awaitable<std::string> stream::body() {
    auto& self = detail::connection_of(*this);
    return self.read_body(true);
}

SSE_DECL asio::awaitable<std::string> stream::body_some() {
    auto& self = detail::connection_of(*this);
    return self.read_body(false);
}

/// The whole body, or what has arrived of it.
SSE_DECL asio::awaitable<std::string> detail::connection::read_body(bool whole) {
    using progress = detail::body_decoder::progress;
    check_thread();
    detail::exchange& state = current_exchange("body");
    if (!state.body_is_left()) co_return std::string();
    if (phase_ == phase::streaming || phase_ == phase::lingering) {
        throw std::logic_error("sse::stream::body: read it before the stream begins");
    }
    const std::size_t limit = worker_->max_body_bytes(*this);
    if (request().content_length > limit) {
        throw std::system_error(errc::body_too_large, "sse::stream::body");
    }
    if (!state.body) {
        state.body = std::make_unique<detail::body_decoder>(worker_->body_decoder_for(*this));
        const bool expects = detail::list_names(request().fields, "Expect", "100-continue");
        if (expects && request().accepts_chunked() && state.input.empty()) { // not HTTP/1.0
            worker_->feed_.enqueue(*this, detail::make_raw_frame("HTTP/1.1 100 Continue\r\n\r\n"));
            co_await written();
        }
    }
    worker_->enter(*this, phase::body);
    std::string piece;
    progress now = progress::need_more;
    for (;;) {
        now = state.body->feed(state.input);
        piece += state.body->take();
        if (now != progress::need_more || (!whole && !piece.empty())) break;
        if (!is_connected() || state.input_ended() || state.timed_out) break;
        worker_->resume_reading(*this);
        co_await state.change<asio::any_io_executor>();
    }
    if (!is_connected()) throw std::system_error(errc::closed, "sse::stream::body");
    worker_->resume_reading(*this);
    if (phase_ == phase::body) worker_->enter(*this, phase::handling);
    worker_->cancel_if_ended(*this); // until now, the read itself would notice the end
    if (now == progress::complete || (!whole && !piece.empty())) co_return piece;
    const bool too_large = state.body->refusal().status == 413;
    const errc why = too_large         ? errc::body_too_large
                     : state.timed_out ? errc::body_timeout
                                       : errc::bad_body;
    throw std::system_error(why, "sse::stream::body");
}

// >>cluster ///////////////////////////////////////////////////////////////////////////////////////
// What servers on one bus know of each other: who is there, whose a stream is, and lists of all
// streams. Nothing of it is stored. Needs >>bus, >>record, >>hub, >>worker.
// Tests: tests/bus.cpp
namespace detail {

class cluster {
public:
    static constexpr std::chrono::milliseconds greeting{1'000}; ///< From one "here" to the next.
    static constexpr std::chrono::milliseconds silence{5'000};  ///< Then it is taken for gone.
    static constexpr std::chrono::milliseconds answer_time{1'000};

    cluster(hub& shared, bus& engine, std::uint64_t node)
        : hub_(shared), engine_(engine), node_(node), number_(number_of(node)) {}

    // Any thread.
    std::uint64_t first_id() const noexcept { return number_ << own_id_bits; }
    bool is_here(std::uint64_t stream) const noexcept { return stream >> own_id_bits == number_; }
    bool may_be_elsewhere(std::uint64_t stream) const noexcept {
        return is_stream_id(stream) && (!is_here(stream) || has_twin_);
    }
    /// Asks the others for their streams, which come into the listing.
    void ask(const std::shared_ptr<listing>& all);
    void leave() noexcept; ///< Says good-bye. Any number of times.
    void await_farewell() noexcept;

    // On the bus's thread.
    bool hear(std::string_view bytes); ///< Returns false if it makes no sense.
    void begin();
    void note_health(bool up);

    void pulse(); ///< On the first worker's thread, now and then.

private:
    using clock = std::chrono::steady_clock;
    static constexpr std::size_t max_others = 1'000;

    struct other {
        std::string name;
        clock::time_point heard;
    };

    /// One of a million and more. Two servers with the same one are noticed: see has_twin_.
    static std::uint64_t number_of(std::uint64_t node) noexcept {
        constexpr unsigned bits = stream_id_bits - own_id_bits;
        const std::uint64_t mixed = node ^ node >> bits ^ node >> 2 * bits ^ node >> 3 * bits;
        return mixed % ((std::uint64_t{1} << bits) - 1) + 1;
    }
    bool is_there(const other& one) const noexcept {
        return !is_up_ || clock::now() - one.heard <= silence;
    }
    void tell(notice n);
    void meet(const notice& n);
    void miss(std::uint64_t node);
    void answer(const notice& n);
    void tell_streams(std::uint64_t to, std::uint64_t number, const stream_list& all);
    bool take(const notice& n);
    std::vector<std::shared_ptr<listing>> open_questions();
    static void give_up(listing& all);

    hub& hub_;
    bus& engine_;
    const std::uint64_t node_;
    const std::uint64_t number_;
    std::atomic<bool> has_twin_{false}; // another server gives ids like this one's
    std::atomic<bool> is_ready_{false};
    std::atomic<bool> has_new_{false}; // someone to whom this one is new
    std::atomic<bool> said_farewell_{false};
    clock::time_point greeted_{}; // of the first worker's thread
    std::mutex mutex_;            // of the rest
    std::map<std::uint64_t, other> others_;
    std::map<std::uint64_t, std::weak_ptr<listing>> questions_;
    std::uint64_t asked_ = 0;
    clock::time_point knows_all_from_ = clock::time_point::max(); // then all others were heard
    bool is_up_ = false;
    bool has_left_ = false;
};

#if defined(SSE_BODIES)

/// If it gets lost, the other servers do without.
SSE_DECL void cluster::tell(notice n) {
    n.node = node_;
    n.name = hub_.options.node;
    engine_.publish(encode_notice(n), false, answer_time, [](std::error_code, std::uint64_t) {});
}

SSE_DECL void cluster::pulse() {
    {
        const std::lock_guard lock(mutex_);
        if (has_left_ || !is_ready_) return;
    }
    const auto now = clock::now();
    if (has_new_.exchange(false) || now - greeted_ >= greeting) {
        greeted_ = now;
        tell({.what = notice::kind::here});
    }
    if (!open_questions().empty()) hub_.room.notify(); // a deadline may have passed
}

SSE_DECL void cluster::begin() {
    const std::lock_guard lock(mutex_);
    is_ready_ = true;
    knows_all_from_ = clock::now() + 2 * greeting;
}

SSE_DECL void cluster::note_health(bool up) {
    const std::lock_guard lock(mutex_);
    if (up && !is_up_) { // they were not heard meanwhile
        for (auto& [node, one] : others_) one.heard = clock::now();
        if (is_ready_) knows_all_from_ = clock::now() + 2 * greeting;
    }
    is_up_ = up;
}

SSE_DECL bool cluster::hear(std::string_view bytes) {
    const auto n = decode_notice(bytes);
    if (!n) return false;
    if (n->node == node_) return true;
    using kind = notice::kind;
    switch (n->what) {
    case kind::here: meet(*n); break;
    case kind::gone: miss(n->node); break;
    case kind::end_stream:
        if (is_here(n->number)) hub_.revoke(n->number);
        break;
    case kind::end_user:
        for (auto& w : hub_.workers) w->revoke_user(n->user);
        break;
    case kind::ask: answer(*n); break;
    case kind::part:
    case kind::last_part: return n->to != node_ || take(*n);
    }
    return true;
}

SSE_DECL void cluster::meet(const notice& n) {
    bool is_new = false;
    {
        const std::lock_guard lock(mutex_);
        const auto [found, made] = others_.try_emplace(n.node);
        is_new = made || !is_there(found->second);
        found->second = {std::string(n.name), clock::now()};
        if (others_.size() > max_others) {
            others_.erase(std::min_element(others_.begin(), others_.end(), [](auto& a, auto& b) {
                return a.second.heard < b.second.heard;
            }));
        }
    }
    if (number_of(n.node) == number_) has_twin_ = true;
    if (!is_new || has_new_.exchange(true)) return;
    asio::post(hub_.workers.front()->context(), [this] { pulse(); });
}

SSE_DECL void cluster::miss(std::uint64_t node) {
    const auto open = open_questions();
    {
        const std::lock_guard lock(mutex_);
        others_.erase(node);
    }
    for (const auto& all : open) {
        const std::lock_guard lock(all->mutex);
        const auto found = all->others.find(node);
        if (found != all->others.end()) found->second.done = true;
    }
    hub_.room.notify();
}

SSE_DECL std::vector<std::shared_ptr<listing>> cluster::open_questions() {
    std::vector<std::shared_ptr<listing>> open;
    const std::lock_guard lock(mutex_);
    std::erase_if(questions_, [&](const auto& one) {
        if (auto all = one.second.lock()) open.push_back(std::move(all));
        return one.second.expired();
    });
    return open;
}

SSE_DECL void cluster::ask(const std::shared_ptr<listing>& all) {
    notice n{.what = notice::kind::ask, .node = node_};
    {
        const std::lock_guard lock(mutex_);
        const std::lock_guard listing_lock(all->mutex);
        all->may_lack_some = has_left_ || !is_up_ || clock::now() < knows_all_from_;
        if (has_left_ || !is_ready_) return;
        for (const auto& [node, one] : others_) {
            if (is_there(one)) all->others[node].name = one.name;
        }
        if (all->others.empty() && !all->may_lack_some) return;
        all->deadline = clock::now() + answer_time;
        n.number = ++asked_;
        questions_[n.number] = all;
    }
    n.name = hub_.options.node;
    n.user = all->user;
    n.topic = all->topic;
    engine_.publish(encode_notice(n), false, answer_time,
                    [this, all](std::error_code failed, std::uint64_t) {
                        if (!failed) return;
                        give_up(*all);
                        hub_.room.notify();
                    });
}

SSE_DECL void cluster::give_up(listing& all) {
    const std::lock_guard lock(all.mutex);
    all.deadline = {};
}

SSE_DECL void cluster::answer(const notice& n) {
    auto all = std::make_shared<listing>();
    all->answered.resize(hub_.workers.size());
    all->user = n.user;
    all->topic = n.topic;
    all->when_whole = [this, to = n.node, number = n.number](const listing& found) {
        tell_streams(to, number, found.streams);
    };
    for (auto& w : hub_.workers) w->list(all);
}

SSE_DECL void cluster::tell_streams(std::uint64_t to, std::uint64_t number,
                                    const stream_list& all) {
    notice n{.what = notice::kind::part, .to = to, .number = number};
    std::string streams, next;
    for (const stream_info& one : all) {
        next.clear();
        put_stream(next, one);
        if (!streams.empty() && streams.size() + next.size() > max_part) {
            n.streams = streams;
            tell(n);
            ++n.part;
            streams.clear();
        }
        streams += next;
    }
    n.what = notice::kind::last_part;
    n.streams = streams;
    tell(n);
}

/// A part that comes twice is taken once.
SSE_DECL bool cluster::take(const notice& n) {
    std::shared_ptr<listing> all;
    {
        const std::lock_guard lock(mutex_);
        const auto found = questions_.find(n.number);
        if (found != questions_.end()) all = found->second.lock();
    }
    auto streams = decode_streams(n.streams, n.name);
    if (!streams || !all) return streams.has_value(); // nobody waits for it any more
    {
        const std::lock_guard lock(all->mutex);
        listing::server& from = all->others[n.node];
        from.name = n.name;
        if (from.done || !from.parts.insert(n.part).second) return true;
        if (n.what == notice::kind::last_part) from.count = n.part + 1;
        std::move(streams->begin(), streams->end(), std::back_inserter(all->streams));
        from.done = from.parts.size() == from.count;
    }
    hub_.room.notify();
    return true;
}

SSE_DECL void cluster::leave() noexcept {
    try {
        {
            const std::lock_guard lock(mutex_);
            if (std::exchange(has_left_, true) || !is_ready_) return;
        }
        for (const auto& all : open_questions()) give_up(*all);
        hub_.room.notify();
        const notice n{.what = notice::kind::gone, .node = node_};
        engine_.publish(encode_notice(n), false, std::chrono::milliseconds(0),
                        [this](std::error_code, std::uint64_t) {
                            said_farewell_ = true;
                            hub_.room.notify();
                        });
    } catch (const std::bad_alloc&) {} // they will notice
}

/// The bus may have it already; else it is not worth a longer wait.
SSE_DECL void cluster::await_farewell() noexcept {
    leave();
    if (!is_ready_) return;
    hub_.room.wait_until(clock::now() + std::chrono::milliseconds(200),
                         [this] { return said_farewell_.load(); });
}

#endif // SSE_BODIES

} // namespace detail

// >>relay /////////////////////////////////////////////////////////////////////////////////////////
// Between a server and its bus: what is published goes to the bus, and what comes from it goes into
// the ring. Needs >>bus, >>record, >>hub, >>worker, >>cluster.
// Tests: tests/bus.cpp
namespace detail {

/// What a publisher waits for. Shared with the bus, which may tell it after the publisher gave up.
struct confirmation {
    detail::room changed;
    std::mutex mutex;
    std::optional<std::pair<std::error_code, std::uint64_t>> told; // under the mutex

    bool is_told() {
        const std::lock_guard lock(mutex);
        return told.has_value();
    }
    void tell(std::error_code failed, std::uint64_t number) {
        {
            const std::lock_guard lock(mutex);
            told.emplace(failed, number);
        }
        changed.notify();
    }
};

class relay final : public bus::sink {
public:
    relay(hub& shared, std::shared_ptr<sse::bus> engine)
        : hub_(shared), engine_(std::move(engine)), others_(shared, *engine_, node_) {}

    void attach();
    void detach() noexcept;

    // Any thread.
    std::uint64_t publish(frame::kind what, std::string_view topic, const sse::message& m);
    std::error_code try_publish(frame::kind what, std::string_view topic, const sse::message& m);
    void tell(notice n); ///< To the other servers. Waits and throws as publish() does.
    /// What async_wait() awaits; the message is encoded here.
    std::shared_ptr<confirmation> begin_publish(frame::kind what, std::string_view topic,
                                                const sse::message& m);
    static asio::awaitable<std::uint64_t> async_wait(std::shared_ptr<hub> kept,
                                                     std::shared_ptr<confirmation> told);

    /// Of a page; nullopt if it is no record.
    static std::optional<std::pair<token, frame_ref>> decoded(const bus::page::entry& one,
                                                              std::string_view epoch);

    std::string last_id() const;
    std::string epoch_name() const {
        const std::lock_guard lock(mutex_);
        return epoch_;
    }
    bus& engine() noexcept { return *engine_; }
    cluster& others() noexcept { return others_; }
    std::string state() const; ///< For the health check.
    std::optional<bool> is_up() const {
        const std::lock_guard lock(mutex_);
        return up_;
    }

private:
    SSE_DECL void epoch(std::string_view name, std::uint64_t after, gap_reason why) override;
    SSE_DECL void message(const bus::record& what) override;
    SSE_DECL void passing(std::string_view bytes) override;
    SSE_DECL void lost(std::uint64_t above) override;
    SSE_DECL void hole(std::uint64_t to) override;
    SSE_DECL void ready() override;
    SSE_DECL void health(bool up, std::string_view reason) override;

    std::error_code check_publish(frame::kind what, std::string_view topic,
                                  const sse::message& m) const;
    void hand_over(frame::kind what, std::string_view topic, const sse::message& m,
                   bus::published done);
    frame_ref decoded(std::string_view bytes, std::uint64_t number);
    void log_unknown(std::uint64_t number) const;
    static std::uint32_t age_of(const bus::record& what);
    void mark(std::string_view epoch, std::uint64_t after, std::string_view reason);
    void push(frame_ref f);

    hub& hub_;
    const std::shared_ptr<sse::bus> engine_;
    const std::uint64_t node_ = random_number();
    cluster others_;
    std::mutex publishing_; // so that counts reach the bus in their order
    std::uint64_t count_ = 0;
    seen_tokens seen_;         // of the sink, whose calls come one at a time
    mutable std::mutex mutex_; // of the rest
    std::string epoch_;
    std::uint64_t last_ = 0; // number
    std::optional<bool> up_;
    std::string why_;
    bool attached_ = false;
};

#if defined(SSE_BODIES)

SSE_DECL void relay::attach() {
    const auto& kept = hub_.options.history;
    std::size_t messages = kept.messages;
    std::size_t bytes = kept.bytes;
    std::chrono::milliseconds age = kept.age;
    for (const topic_history& one : kept.topics) { // theirs are kept beside the server's own
        messages = one.messages > ~messages ? ~std::size_t{0} : messages + one.messages;
        bytes = one.bytes > ~bytes ? ~std::size_t{0} : bytes + one.bytes;
        if (one.age.count() == 0 || one.age > age) age = age.count() == 0 ? age : one.age;
    }
    engine_->attach(*this, {messages, bytes, age});
    const std::lock_guard lock(mutex_);
    attached_ = true;
}

SSE_DECL void relay::detach() noexcept {
    mutex_.lock();
    const bool was = std::exchange(attached_, false);
    mutex_.unlock();
    if (!was) return;
    others_.await_farewell();
    engine_->detach();
}

// --- to the bus

SSE_DECL std::error_code relay::check_publish(frame::kind what, std::string_view topic,
                                              const sse::message& m) const {
    if (const auto wrong = check(m)) return wrong;
    if (hub_.stopped) return errc::stopped;
    if (!fits_topic(what, topic)) return errc::bad_topic;
    const std::lock_guard lock(mutex_);
    if (!attached_) return errc::bus_down; // before the start
    if (m.id) {
        const auto parts = parse_id(*m.id);
        if (parts && !epoch_.empty() && parts->first == epoch_) return errc::reserved_id;
    }
    return {};
}

SSE_DECL void relay::hand_over(frame::kind what, std::string_view topic, const sse::message& m,
                               bus::published done) {
    record r{what, topic, m, {node_, 0}};
    const std::lock_guard lock(publishing_);
    r.mark.count = ++count_;
    engine_->publish(encode_record(r), !m.ephemeral, hub_.options.timeouts.publish,
                     std::move(done));
}

SSE_DECL std::shared_ptr<confirmation>
relay::begin_publish(frame::kind what, std::string_view topic, const sse::message& m) {
    if (const auto failed = check_publish(what, topic, m)) {
        throw std::system_error(failed, "sse::server::publish");
    }
    auto made = std::make_shared<confirmation>();
    hand_over(what, topic, m,
              [made](std::error_code failed, std::uint64_t number) { made->tell(failed, number); });
    return made;
}

SSE_DECL std::uint64_t relay::publish(frame::kind what, std::string_view topic,
                                      const sse::message& m) {
    const auto made = begin_publish(what, topic, m);
    using namespace std::chrono_literals;
    // The bus keeps to its patience. Twice that is for a bus that does not.
    const auto deadline = std::chrono::steady_clock::now() + 2 * hub_.options.timeouts.publish +
                          std::chrono::seconds(1);
    worker* const here = hub_.worker_here();
    const auto is_told = [&] { return made->is_told(); };
    for (auto now = std::chrono::steady_clock::now(); now < deadline;
         now = std::chrono::steady_clock::now()) {
        if (here) here->make_room(); // otherwise what comes from the bus would wait for this thread
        if (made->changed.wait_until(here ? std::min(deadline, now + 1ms) : deadline, is_told)) {
            break;
        }
    }
    const std::lock_guard lock(made->mutex);
    const auto [failed, number] =
        made->told.value_or(std::pair(make_error_code(errc::bus_timeout), std::uint64_t{0}));
    if (failed) throw std::system_error(failed, "sse::server::publish");
    return number;
}

SSE_DECL void relay::tell(notice n) {
    n.node = node_;
    n.name = hub_.options.node;
    std::error_code failed;
    if (hub_.stopped) failed = errc::stopped;
    mutex_.lock();
    if (!attached_ && !failed) failed = errc::bus_down;
    mutex_.unlock();
    if (failed) throw std::system_error(failed, "sse::server::revoke");
    const auto made = std::make_shared<confirmation>(); // what fails later is lost
    engine_->publish(
        encode_notice(n), false, hub_.options.timeouts.publish,
        [made](std::error_code code, std::uint64_t number) { made->tell(code, number); });
    const std::lock_guard lock(made->mutex);
    if (made->told && made->told->first) {
        throw std::system_error(made->told->first, "sse::server::revoke");
    }
}

SSE_DECL std::error_code relay::try_publish(frame::kind what, std::string_view topic,
                                            const sse::message& m) {
    if (const auto failed = check_publish(what, topic, m)) return failed;
    // What fails before this returns is its result; what fails later is in the log.
    struct attempt {
        std::mutex mutex;
        std::error_code failed;
        bool over = false;
    };
    const auto one = std::make_shared<attempt>();
    hand_over(what, topic, m, [this, one](std::error_code failed, std::uint64_t) {
        const std::lock_guard lock(one->mutex);
        one->failed = failed;
        if (!failed || !one->over) return;
        const std::string why = failed.message();
        hub_.log({.level = log_level::warning, .what = "not published", .detail = why});
    });
    const std::lock_guard lock(one->mutex);
    one->over = true;
    return one->failed;
}

/// Keeps the hub, not the server, which the program may destroy while this waits.
SSE_DECL asio::awaitable<std::uint64_t> relay::async_wait(std::shared_ptr<hub> kept,
                                                          std::shared_ptr<confirmation> told) {
    const auto goes_on = [of = told.get()] { return !of->is_told(); };
    while (goes_on()) co_await told->changed.async_wait(goes_on);
    const auto [failed, number] = *told->told;
    if (failed) throw std::system_error(failed, "sse::server::publish");
    kept.reset();
    co_return number;
}

// --- from the bus

SSE_DECL frame_ref relay::decoded(std::string_view bytes, std::uint64_t number) {
    const auto r = decode_record(bytes);
    const bool is_for_one = r && r->what == frame::kind::stream;
    if (!r || (is_for_one && number != 0)) { // which is never stored
        log_unknown(number);
        return {};
    }
    std::uint64_t stream = 0;
    if (is_for_one) {
        stream = read_number<std::uint64_t>(r->topic).value_or(0);
        if (!others_.is_here(stream) || r->mark.node == node_) return {}; // it has got its own
    }
    frame_ref made = make_frame(r->what, is_for_one ? "" : r->topic, r->content);
    made->set_stream(stream);
    if (!seen_.insert(r->mark, number)) return {}; // stored twice
    return made;
}

SSE_DECL void relay::log_unknown(std::uint64_t number) const {
    const std::string detail = "record " + std::to_string(number) +
                               " was written by something else, or by a newer version; it is "
                               "left out";
    hub_.log({.level = log_level::warning, .what = "bus", .detail = detail});
}

SSE_DECL std::optional<std::pair<token, frame_ref>> relay::decoded(const bus::page::entry& one,
                                                                   std::string_view epoch) {
    const auto r = decode_record(one.bytes);
    if (!r || r->what == frame::kind::stream) return std::nullopt;
    frame_ref f = make_frame(r->what, r->topic, r->content);
    f->stamp(epoch, one.number);
    return std::pair(r->mark, std::move(f));
}

SSE_DECL std::uint32_t relay::age_of(const bus::record& what) {
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::system_clock::now() - what.time);
    constexpr std::int64_t most = 0xffff'ffff;
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(age.count(), 0, most));
}

SSE_DECL void relay::message(const bus::record& what) {
    frame_ref f = decoded(what.bytes, what.number);
    if (f) {
        if (hub_.ready_at == hub::never) f->set_age(age_of(what)); // of the history
        f->stamp(epoch_, what.number); // only this thread changes the epoch
        push(std::move(f));
    }
    const std::lock_guard lock(mutex_);
    last_ = what.number;
}

SSE_DECL void relay::passing(std::string_view bytes) {
    if (is_notice(bytes)) {
        if (!others_.hear(bytes)) log_unknown(0);
        return;
    }
    if (frame_ref f = decoded(bytes, 0)) push(std::move(f));
}

SSE_DECL void relay::mark(std::string_view epoch, std::uint64_t after, std::string_view reason) {
    push(make_mark(epoch, after, reason, reason.empty() ? "" : last_id()));
    const std::lock_guard lock(mutex_);
    epoch_ = epoch;
    last_ = after;
}

SSE_DECL void relay::epoch(std::string_view name, std::uint64_t after, gap_reason why) {
    const bool is_word =
        name.size() == epoch_size && std::all_of(name.begin(), name.end(), [](char c) {
            return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z');
        });
    if (!is_word) {
        throw std::invalid_argument("sse::bus: an epoch has eight characters of [0-9a-z], not '" +
                                    std::string(name) + "'");
    }
    const bool is_next = !epoch_.empty() && epoch_ != name;
    if (is_next && why == gap_reason::epoch) seen_.forget(0); // all of it is lost
    mark(name, after, is_next ? to_string(why) : "");
    if (is_next) seen_.next_epoch();
}

SSE_DECL void relay::lost(std::uint64_t above) { seen_.forget(above); }

SSE_DECL void relay::hole(std::uint64_t to) {
    mark(std::string(epoch_), to, to_string(gap_reason::too_old));
}

SSE_DECL void relay::ready() {
    hub_.ready_at = hub_.ring.published();
    for (auto& w : hub_.workers) w->wake_always();
    others_.begin();
    hub_.open();
}

SSE_DECL void relay::health(bool up, std::string_view reason) {
    bool was_down = false;
    {
        const std::lock_guard lock(mutex_);
        was_down = up_ == false;
        up_ = up;
        why_ = reason;
    }
    others_.note_health(up);
    if (!up) hub_.open();
    const std::string detail =
        std::string(up ? "up" : "down") + (reason.empty() ? "" : ": ") + std::string(reason);
    const bool is_news = !up || was_down; // who sees that it is down sees that it is up again
    hub_.log(
        {.level = is_news ? log_level::warning : log_level::info, .what = "bus", .detail = detail});
}

// --- streams by id

SSE_DECL worker& hub::worker_of(std::uint64_t stream) const noexcept {
    if (relay) stream %= std::uint64_t{1} << own_id_bits;
    return *workers[static_cast<std::size_t>(stream % workers.size())];
}

SSE_DECL void hub::revoke(std::uint64_t stream) const {
    worker_of(stream).post_to(stream,
                              [](sse::stream& s) { connection_of(s).end(end_reason::revoked); });
}

/// See hub::worker_of(). With a bus the numbers begin anywhere, so that an id of an earlier server
/// names nobody; after 2^33 they come again, but none that is in use.
SSE_DECL std::uint64_t worker::new_name() {
    const std::uint64_t threads = hub_.options.threads;
    if (!hub_.relay) {
        return (hub_.names.fetch_add(1, std::memory_order_relaxed) + 1) * threads + index_;
    }
    if (names_ == 0) names_ = random_number();
    std::uint64_t name = 0;
    do {
        const std::uint64_t own = names_++ % ((std::uint64_t{1} << own_id_bits) / threads);
        name = hub_.relay->others().first_id() + own * threads + index_;
    } while (feed_.find(name));
    return name;
}

SSE_DECL void worker::pulse() { hub_.relay->others().pulse(); }

/// Waits for room: the bus keeps what is not read yet.
SSE_DECL void relay::push(frame_ref f) {
    while (!hub_.stopped && !hub_.put(f)) {
        hub_.room.wait_until(std::chrono::steady_clock::now() + std::chrono::seconds(1),
                             [&] { return hub_.stopped || !hub_.ring.full(); });
    }
}

SSE_DECL std::string relay::last_id() const {
    const std::lock_guard lock(mutex_);
    return epoch_.empty() ? std::string() : make_id(epoch_, last_);
}

SSE_DECL std::string relay::state() const {
    const std::lock_guard lock(mutex_);
    if (!up_) return "not reached yet";
    return std::string(*up_ ? "up" : "down") + (why_.empty() ? "" : ": " + why_);
}

/// Clients that bring an id from another server wait until that message comes here. It does not if
/// nothing follows what has come: the id was never given, or the bus has lost its message.
SSE_DECL void worker::ask_for_overdue() {
    using state = id_book::state;
    for (const auto& [who, what] : feed_.overdue(longest_lead_ms)) {
        if (who->cold_->replay) {
            who->cold_->replay->rests = false;
            feed_.ask_bus(*who);
            continue;
        }
        if (what.what != state::ahead) {
            feed_.give_up_waiting(*who);
            continue;
        }
        const std::uint64_t name = name_of(static_cast<connection&>(*who));
        const std::string end = feed_.newest_id();
        const auto newest = parse_id(end).value();
        hub_.relay->engine().read(newest.first, newest.second, 1, [=, this](bus::page p) {
            if (p.failed || !p.records.empty()) return; // there is more to come
            asio::post(io_, [this, name] {
                if (receiver* const r = feed_.find(name)) feed_.give_up_waiting(*r);
            });
        });
    }
}

/// A client needs what comes after an id, from the bus. It waits for its turn.
SSE_DECL void worker::fetch(connection& s, const std::string& id) {
    fetches_.emplace_back(name_of(s), id);
    fetch_next();
}

SSE_DECL void worker::fetch_next() {
    while (fetching_ < max_fetching && !fetches_.empty()) {
        const auto next = std::move(fetches_.front());
        fetches_.pop_front();
        const std::uint64_t name = next.first;
        const auto parts = parse_id(next.second);
        if (!parts || !feed_.find(name)) continue;
        const std::string epoch(parts->first);
        ++fetching_;
        hub_.relay->engine().read(
            epoch, parts->second, page_messages, [this, name, epoch](bus::page p) {
                asio::post(io_, [this, name, epoch, p = std::move(p)]() mutable {
                    --fetching_;
                    fetched(name, epoch, std::move(p));
                    fetch_next();
                });
            });
    }
}

SSE_DECL void worker::fetched(std::uint64_t name, const std::string& epoch, bus::page p) {
    receiver* const r = feed_.find(name);
    if (!r || stopping_) return;
    refresh();
    guarded(static_cast<connection&>(*r), [&] {
        if (p.failed) return feed_.rest(*r);
        std::vector<std::pair<token, frame_ref>> frames;
        for (const bus::page::entry& one : p.records) {
            if (auto made = relay::decoded(one, epoch)) frames.push_back(*std::move(made));
        }
        feed_.bring(*r, epoch, p.whole, std::move(frames));
    });
}

#endif // SSE_BODIES

} // namespace detail

// >>lifecycle /////////////////////////////////////////////////////////////////////////////////////
// The life of a server: it listens, accepts, spreads the connections over the workers, drains,
// stops. The hub owns it, so that it exists as long as one of its operations is pending. Needs
// >>worker.
// Tests: tests/drain.cpp, tests/embed.cpp, tests/server.cpp
namespace detail {

class lifecycle {
public:
    enum class stage : std::uint8_t { unused, running, draining, stopping };

    explicit lifecycle(hub& shared) noexcept : hub_(shared) {}

    mutable std::mutex state; ///< Callers of the following functions hold it.
    void start(const std::string& text);
    void start(asio::ip::tcp::acceptor listener);
    void start();
    void abandon_start() noexcept;
    /// With a bus: connections are accepted once the history is there, or the bus is known to be
    /// away. Any thread, any number of times.
    void open();
    bool has_started() const noexcept { return stage_ != stage::unused; }
    void require_unused(const char* what) const;
    std::chrono::steady_clock::time_point drained_by() const noexcept { return drained_by_; }

    /// Called when the context that it listens on is destroyed.
    void on_context_destroyed() noexcept {
        acceptor_.reset();
        signals_.reset();
    }

    // These lock it themselves. Any thread.
    void stop() noexcept;
    bool drain(std::shared_ptr<const farewell> how);
    asio::ip::tcp::endpoint endpoint() const;
    void adopt(tcp_socket::native_handle_type handle, std::string received);
#if defined(SSE_TESTING)
    void connect(std::shared_ptr<wire> client);
#endif

    std::shared_ptr<const farewell> checked(const drain_options& how) const;

private:
    static constexpr std::size_t max_refusing = 256; // further ones get no response
    static constexpr int max_accepts = 16; // in a row; each may bring a request to be served now

    void check_unused() const;
    void listen(const std::string& text);
    void launch(std::string_view given_host = {});
    void take_signals();
    static int hangup() noexcept;
    void accept();
    io_awaitable<void> accept_loop();
    asio::error_code accept_one();
    void take_in(worker& w, arrival one);
    bool admit(arrival& one);
    worker& least_loaded() noexcept;
    /// It starts once, and may drain before it stops.
    void enter(stage next) noexcept {
        assert(next > stage_ && (has_started() || next == stage::running));
        stage_ = next;
    }

    hub& hub_;
    std::optional<tcp_acceptor> acceptor_;
    std::optional<asio::basic_signal_set<io_executor>> signals_;
    std::optional<asio::ip::tcp::endpoint> endpoint_;
    stage stage_ = stage::unused;
    std::atomic<bool> opened_{false};
    std::chrono::steady_clock::time_point drained_by_{};
};

// Defined where its members' types are complete: C++23 checks at once what it may have to destroy.
SSE_DECL hub::hub(sse::options o, std::span<asio::io_context* const> contexts)
    : site(std::move(o)), ring(options.ring_capacity, options.threads), tls(options),
      life(std::make_unique<lifecycle>(*this)) {
    if (options.node.empty()) options.node = epoch;
    if (options.bus) relay = std::make_unique<detail::relay>(*this, options.bus);
    for (std::size_t i = 0; i < options.threads; ++i) {
        asio::io_context* const context = contexts.empty() ? nullptr : contexts[i];
        workers.push_back(std::make_unique<worker>(*this, i, context));
    }
}

SSE_DECL hub::~hub() {
    for (auto& w : workers) {
        while (w->pull()) {} // unread frames hold one reference for each worker
    }
}

SSE_DECL void hub::open() { life->open(); }

SSE_DECL std::optional<std::uint64_t> hub::put(frame_ref& f) noexcept {
    f->set_references(static_cast<std::uint32_t>(workers.size()));
    std::optional<std::uint64_t> place;
    if (holding.load(std::memory_order_relaxed) == 0) {
        place = ring.try_publish(f.get(), [&](std::uint64_t claimed) noexcept {
            if (!relay) f->stamp(epoch, claimed + 1);
        });
    }
    if (!place) {
        f->set_references(1);
        return std::nullopt;
    }
    f.detach(); // each worker drops one reference
    // Workers without a stream are not woken, but must empty their ring before it is full.
    const std::uint64_t quarter = std::max<std::uint64_t>(1, ring.capacity() / 4);
    const bool round = (*place & (quarter - 1)) == 0;
    for (auto& w : workers) round ? w->wake_always() : w->wake();
    return place;
}

SSE_DECL worker* hub::worker_here() const noexcept {
    for (const auto& w : workers) {
        if (w->runs_here()) return w.get();
    }
    return nullptr;
}

/// Returns nullptr if new streams are admitted. The asking client's `own` connections do not count.
SSE_DECL const char* hub::why_not_ready(std::size_t own) const noexcept {
    if (stopped) return "Going down\n";
    if (relay && ready_at == never) return "The bus has not been reached yet\n";
    if (options.limits.connections == 0) return nullptr;
    const std::size_t besides = refusing.load(std::memory_order_relaxed) + own;
    std::size_t open = 0;
    for (const auto& w : workers) open += w->load();
    return open >= options.limits.connections + besides ? "At the connection limit\n" : nullptr;
}

SSE_DECL sse::counters hub::count() const noexcept {
    sse::counters sum;
    sum.accepted = accepted.load(std::memory_order_relaxed);
    sum.refused = refused.load(std::memory_order_relaxed);
    sum.accept_failures = accept_failures.load(std::memory_order_relaxed);
    sum.tls_failures = tls_failures.load(std::memory_order_relaxed);
    sum.published = ring.published();
    sum.no_room = no_room.load(std::memory_order_relaxed);
    for (const auto& w : workers) w->count(sum);
    return sum;
}

SSE_DECL void hub::on_context_destroyed(const asio::execution_context& context) noexcept {
    for (const auto& w : workers) {
        if (&static_cast<const asio::execution_context&>(w->context()) != &context) continue;
        if (w == workers.front()) life->on_context_destroyed();
        w->on_context_destroyed();
    }
}

SSE_DECL void hub::drop_waiters(const asio::execution_context& context) noexcept {
    for (const auto& w : workers) {
        if (&static_cast<const asio::execution_context&>(w->context()) == &context) {
            w->drop_waiters();
        }
    }
}

/// Keeps what pending operations of an io_context refer to until they are destroyed. Services are
/// destroyed after pending operations, and the newest first: this one before those that it needs.
class keeper final : public asio::execution_context::service {
public:
    using key_type = keeper;
    static inline asio::execution_context::id id;

    explicit keeper(asio::execution_context& context) : service(context) {}
    ~keeper() override {
        for (const auto& each : held_) each->on_context_destroyed(context());
    }

    static void keep(asio::io_context& context, std::shared_ptr<hub> what) {
        // These create the services that it needs, which must be older.
        const tcp_socket socket(context);
        const steady_timer timer(context);
        const asio::signal_set signals(context);
        keeper& here = asio::use_service<keeper>(context);
        const std::lock_guard lock(here.mutex_);
        here.held_.push_back(std::move(what));
    }

private:
    void shutdown() override { // while the context still destroys what is posted to it
        for (const auto& each : held_) each->drop_waiters(context());
    }

    std::mutex mutex_;
    std::vector<std::shared_ptr<hub>> held_; // contexts may end one after the other
};

SSE_DECL void lifecycle::start(const std::string& text) {
    check_unused();
    try {
        listen(text);
    } catch (const std::system_error& e) {
        throw std::system_error(e.code(), "sse::server: cannot listen on '" + text + "'");
    }
    launch(std::string_view(text).substr(0, text.rfind(':')));
}

SSE_DECL void lifecycle::start(asio::ip::tcp::acceptor listener) {
    check_unused();
    const auto protocol = listener.local_endpoint().protocol();
    acceptor_.emplace(hub_.workers.front()->context(), protocol, listener.release());
    close_on_exec(acceptor_->native_handle()); // it now belongs to the library
    launch();
}

SSE_DECL void lifecycle::start() {
    check_unused();
    launch();
}

SSE_DECL void lifecycle::check_unused() const {
    if (has_started()) throw std::logic_error("sse::server::start: a server runs once");
    if (hub_.stopped) throw std::system_error(errc::stopped, "sse::server::start");
}

SSE_DECL void lifecycle::require_unused(const char* what) const {
    if (!has_started()) return;
    throw std::logic_error(std::string("sse::server::") + what + ": only before the start");
}

SSE_DECL asio::ip::tcp::endpoint lifecycle::endpoint() const {
    const std::lock_guard lock(state);
    if (!endpoint_) throw std::logic_error("sse::server::endpoint: it does not listen");
    return *endpoint_;
}

SSE_DECL void lifecycle::listen(const std::string& text) {
    const std::size_t colon = text.rfind(':');
    std::string host = text.substr(0, colon);
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    const auto port = colon == text.npos
                          ? std::nullopt
                          : read_number<std::uint16_t>(std::string_view(text).substr(colon + 1));
    if (!port) {
        throw std::invalid_argument("sse::server: '" + text +
                                    "' is not an address to listen on; write host:port, such as "
                                    "127.0.0.1:8080, [::1]:8080 or :8080");
    }
    tcp_acceptor acceptor(hub_.workers.front()->context());
    asio::ip::tcp::endpoint where;
    asio::error_code failed;
    if (host.empty()) { // every address: IPv6 accepts IPv4 too, unless this machine has no IPv6
        where = {asio::ip::tcp::v6(), *port};
        open_socket(acceptor, where.protocol(), failed);
        if (!failed) acceptor.set_option(asio::ip::v6_only(false), failed);
        if (failed) {
            where = {asio::ip::tcp::v4(), *port};
            acceptor.close();
            open_socket(acceptor, where.protocol(), failed);
        }
    } else {
        asio::ip::tcp::resolver resolver(hub_.workers.front()->context());
        where = *resolver.resolve(host, std::to_string(*port)).begin();
        open_socket(acceptor, where.protocol(), failed);
    }
    if (failed) throw std::system_error(failed);
#if !defined(_WIN32) // there it would let another program take over the port
    acceptor.set_option(asio::socket_base::reuse_address(true));
#endif
    acceptor.bind(where);
    acceptor.listen(4096); // for a crowd that reconnects; the kernel lowers it to its own limit
    acceptor_.emplace(std::move(acceptor));
}

/// Lets the workers serve. From now on connections may arrive.
SSE_DECL void lifecycle::launch(std::string_view given_host) {
    if (acceptor_) {
        acceptor_->non_blocking(true);
        // Otherwise Asio waits for the next connection if one was aborted, and blocks the thread.
        acceptor_->set_option(asio::socket_base::enable_connection_aborted(true));
        set_options(*acceptor_, hub_.options);
        endpoint_ = acceptor_->local_endpoint();
        const auto here = without_mapping(endpoint_->address());
        hub_.serves_loopback = hub_.hosts.empty() && here.is_loopback();
        if (!hub_.hosts.empty() || hub_.serves_loopback) { // the host of start() is served too
            if (const auto name = read_host(given_host)) hub_.hosts.push_back(*name);
            if (const auto own = read_host(here.to_string())) hub_.hosts.push_back(*own);
        }
    }
    if (std::count(hub_.hosts.begin(), hub_.hosts.end(), "*") > 0) hub_.hosts.clear();
    if (hub_.options.handle_signals) take_signals();
    if (acceptor_ && !hub_.relay) accept();
    enter(stage::running);
}

/// SIGHUP, or 0 if there is none or something else has decided what it does.
SSE_DECL int lifecycle::hangup() noexcept {
#if defined(SIGHUP)
    static std::atomic<bool> taken{false}; // perhaps by another server of this program
    struct sigaction now {
    }, term{};
    if (::sigaction(SIGHUP, nullptr, &now) != 0 || ::sigaction(SIGTERM, nullptr, &term) != 0)
        return 0;
    if (now.sa_handler != SIG_DFL && (!taken || now.sa_handler != term.sa_handler)) return 0;
    taken = true;
    return SIGHUP;
#else
    return 0;
#endif
}

SSE_DECL void lifecycle::take_signals() {
    signals_.emplace(hub_.workers.front()->context(), SIGINT, SIGTERM);
    const int hung_up = hangup();
    if (hung_up != 0) signals_->add(hung_up);
    signals_->async_wait([this, hung_up](const asio::error_code& failed, int) {
        if (failed) return;
        if (hub_.options.drain_window.count() == 0) return stop();
        asio::error_code ignored;
        signals_->clear(ignored);                          // a second Ctrl-C has its default effect
        if (hung_up != 0) signals_->add(hung_up, ignored); // a shell that ends sends it again
        drain_options how;
        how.window = hub_.options.drain_window;
        drain(checked(how));
    });
}

/// Called when a thread could not be started: all threads run, or none.
SSE_DECL void lifecycle::abandon_start() noexcept {
    hub_.stopped = true;
    enter(stage::stopping);
    for (auto& w : hub_.workers) w->shut_down();
    asio::error_code ignored;
    if (acceptor_) acceptor_->close(ignored);
}

SSE_DECL void lifecycle::open() {
    if (opened_.exchange(true)) return;
    asio::post(hub_.workers.front()->context(), [this] {
        if (acceptor_ && acceptor_->is_open()) accept();
    });
}

SSE_DECL void lifecycle::stop() noexcept {
    hub_.stopped = true;
    hub_.room.notify();
    const std::lock_guard lock(state);
    if (!has_started() || stage_ == stage::stopping) return;
    enter(stage::stopping);
    // The workers after the acceptor, so that none gets a connection after its end.
    hub_.workers.front()->post_stop([this] {
        asio::error_code ignored; // it is not used again
        if (acceptor_) acceptor_->close(ignored);
        if (signals_) {
            signals_->cancel(ignored);
            signals_->clear(ignored); // a second Ctrl-C has its default effect
        }
        if (hub_.relay) hub_.relay->others().leave();
        for (auto& w : hub_.workers) w->shut_down();
    });
}

SSE_DECL std::shared_ptr<const farewell> lifecycle::checked(const drain_options& how) const {
    const auto retry = how.retry.value_or(hub_.options.limits.retry_after);
    if (how.window.count() < 0 || how.window > std::chrono::hours(24)) {
        throw std::invalid_argument("sse::drain_options::window must be from 0 to a day");
    }
    if (retry.count() < 0 || retry > std::chrono::hours(24)) {
        throw std::invalid_argument("sse::drain_options::retry must be from 0 to a day");
    }
    auto made = std::make_shared<farewell>();
    made->window = how.window;
    made->retry = retry;
    if (how.farewell) made->bytes = encode(*how.farewell);
    return made;
}

/// Returns false if there is nothing to drain, or a drain has begun before.
SSE_DECL bool lifecycle::drain(std::shared_ptr<const farewell> how) {
    hub_.stopped = true;
    hub_.room.notify();
    const std::lock_guard lock(state);
    if (stage_ != stage::running) return false;
    enter(stage::draining);
    hub_.undrained = hub_.workers.size();
    drained_by_ = std::chrono::steady_clock::now() + how->window;
    hub_.when_drained = [this] { stop(); };
    hub_.workers.front()->post_drain([this, how = std::move(how)] {
        asio::error_code ignored; // it is not used again
        if (acceptor_) acceptor_->close(ignored);
        for (auto& w : hub_.workers) w->send_away(how);
    });
    return true;
}

// --- accept: one listener hands its sockets to the workers, since closing one of several that
// share a port resets the connections in its queue

SSE_DECL void lifecycle::accept() {
    asio::co_spawn(hub_.workers.front()->context(), accept_loop(),
                   [this](std::exception_ptr failed) {
                       if (!failed) return;
                       if (hub_.options.hooks.on_error) hub_.options.hooks.on_error(failed);
                       if (acceptor_->is_open()) accept(); // it was out of memory
                   });
}

SSE_DECL io_awaitable<void> lifecycle::accept_loop() {
    asio::error_code failed;
    steady_timer pause(hub_.workers.front()->context());
    while (acceptor_->is_open()) {
        co_await acceptor_->async_wait(tcp_acceptor::wait_read,
                                       asio::redirect_error(use_io_awaitable, failed));
        try {
            for (int i = 0; i < max_accepts && !failed; ++i) failed = accept_one();
        } catch (const std::exception&) {
            failed = asio::error::no_memory; // nothing else is thrown there
        }
        const bool passing =
            !failed || would_block(failed) || failed == asio::error::connection_aborted ||
            failed == std::errc::protocol_error || failed == asio::error::interrupted ||
            failed == asio::error::operation_aborted;
        if (passing || !acceptor_->is_open()) continue;
        const std::string why = failed.message();
        hub_.accept_failures.fetch_add(1, std::memory_order_relaxed);
        hub_.log({.level = log_level::warning, .what = "accept failed", .detail = why});
        // Out of descriptors or memory: wait for some to be released instead of spinning.
        pause.expires_after(std::chrono::milliseconds(100));
        co_await pause.async_wait(asio::redirect_error(use_io_awaitable, failed));
    }
}

SSE_DECL asio::error_code lifecycle::accept_one() {
    worker& w = least_loaded();
    asio::error_code failed;
    asio::ip::tcp::endpoint peer;
    tcp_socket socket(w.context());
    accept_socket(*acceptor_, socket, peer, failed);
    if (!failed) take_in(w, {std::move(socket), without_mapping(peer.address())});
    return failed;
}

/// Gives a connection to its worker, or closes it at once.
SSE_DECL void lifecycle::take_in(worker& w, arrival one) {
    hub_.accepted.fetch_add(1, std::memory_order_relaxed);
    if (!admit(one)) {
        hub_.refused.fetch_add(1, std::memory_order_relaxed);
#if defined(SSE_TESTING)
        if (one.wire) one.wire->close();
#endif
        return hub_.log({.level = log_level::warning,
                         .what = "refused",
                         .client = one.peer,
                         .detail = "over a connection limit, and too many others are being "
                                   "refused for it to get a response"});
    }
    w.reserve();
    // Not at once: a client could get its response and reconnect before its old connection is
    // uncounted.
    try {
        asio::post(w.context(), [&w, one = std::move(one)]() mutable { w.adopt(std::move(one)); });
    } catch (...) { // out of memory: what it counts for was copied, not moved
        w.give_back(one);
        throw;
    }
}

/// Takes over a connection from another server, with what that server has read from it.
SSE_DECL void lifecycle::adopt(tcp_socket::native_handle_type handle, std::string received) {
    const std::lock_guard lock(state); // stop() comes before or after
    if (!has_started()) throw std::logic_error("sse::server::adopt: start the server first");
    if (stage_ != stage::running) throw std::system_error(errc::stopped, "sse::server::adopt");
    worker& w = least_loaded();
    tcp_socket socket(w.context());
    socket.assign(asio::ip::tcp::v4(), handle); // the family is queried where it matters
    close_on_exec(handle);                      // it now belongs to the library
    asio::error_code gone;                      // the first read shows it
    const auto peer = without_mapping(socket.remote_endpoint(gone).address());
    take_in(w, {std::move(socket), peer, limit_reached::none, nullptr, std::move(received)});
}

#if defined(SSE_TESTING)

/// A simulated client connects. As without one, nobody is told why a server that stops accepts it
/// not.
SSE_DECL void lifecycle::connect(std::shared_ptr<wire> client) {
    const std::lock_guard lock(state);
    if (stage_ != stage::running) return client->close();
    worker& w = least_loaded();
    take_in(w, {.socket = tcp_socket(w.context()), .peer = client->peer, .wire = client});
}

#endif

/// Notes the limit that the connection is over, if any. Returns false if it is to be closed at
/// once: too many others are being refused.
SSE_DECL bool lifecycle::admit(arrival& one) {
    const auto& o = hub_.options;
    // Refused connections do not use up the limit. Read before the loads, which include them.
    const std::size_t refusing = hub_.refusing.load(std::memory_order_relaxed);
    std::size_t open = 0;
    for (const auto& w : hub_.workers) open += w->load();
    if (o.limits.connections != 0 && open >= o.limits.connections + refusing) {
        one.over = limit_reached::connections;
    } else if (o.limits.connections_per_ip == 0 && o.limits.connect_rate_per_ip == 0) {
        return true;
    } else if (!hub_.speaks_for_others(one.peer)) { // otherwise counted once the head is read
        one.counted =
            hub_.addresses.enter(counting_prefix(one.peer), o.limits.connections_per_ip,
                                 o.limits.connect_rate_per_ip, steady_clock::now(), &one.over);
    }
    if (one.over == limit_reached::none) return true;
    if (refusing >= max_refusing) return false;
    hub_.refusing.fetch_add(1, std::memory_order_relaxed);
    return true;
}

SSE_DECL worker& lifecycle::least_loaded() noexcept {
    return **std::min_element(hub_.workers.begin(), hub_.workers.end(),
                              [](const auto& a, const auto& b) { return a->load() < b->load(); });
}

} // namespace detail

#endif // SSE_BODIES

// >>joblog ////////////////////////////////////////////////////////////////////////////////////////
// What a job has sent, and how its viewers get it. Needs >>connection.
// Tests: tests/jobs.cpp

namespace detail {

/// What a job has sent. Places count from 0; the id `<epoch>-<n>` means "everything before place
/// n". Thread safety: any thread.
class job_log {
public:
    using clock = steady_clock;

    explicit job_log(const job_options& o)
        : max_frames_(o.history), max_bytes_(o.history_bytes), gap_event_(o.gap_event) {}

    /// Returns false and appends nothing after the last message.
    bool push(const message& m, bool last);

    /// Where a viewer begins, given the id with which it comes, if any.
    struct start_position {
        std::uint64_t place = 0;
        std::uint64_t live_from = 0; ///< It gets ephemeral messages from here on.
        bool has_all = false;        ///< It has had the last message too.
        std::optional<gap> missed{}; ///< Lost before that place.
    };
    start_position enter(const std::string& id) const;

    struct batch {
        std::vector<frame_ref> frames{};
        std::uint64_t from = 0;    ///< Where they begin.
        std::uint64_t next = 0;    ///< The place after them.
        bool ends = false;         ///< Nothing follows: the job is finished.
        std::optional<gap> lost{}; ///< Lost before them.
    };
    /// What a viewer at a place gets next.
    batch read(std::uint64_t place, std::uint64_t live_from) const;

    std::uint64_t end() const noexcept { return end_.load(std::memory_order_acquire); }
    std::string id_of(std::uint64_t place) const { return make_id(epoch_, place); }
    const std::string& gap_event() const noexcept { return gap_event_; }
    bool gave(std::string_view id) const {
        const auto parts = parse_id(id);
        return parts && parts->first == epoch_;
    }

    /// When its last message came; nullopt while it runs.
    std::optional<clock::time_point> finished_at() const {
        const std::lock_guard lock(mutex_);
        return finished_at_;
    }

    detail::room changed;                ///< Notified of every message.
    std::atomic<std::size_t> viewers{0}; ///< Streams that follow it now.

    /// Returns false if the last message has come.
    bool request_stop() {
        if (finished_at()) return false;
        stop_requested = true;
        stopping.notify();
        return true;
    }
    detail::room stopping;
    std::atomic<bool> stop_requested{false};

private:
    static constexpr std::size_t batch_frames = 64;

    void keep(std::uint64_t place, frame_ref f);

    struct shelf { // frames by place
        std::map<std::uint64_t, frame_ref> frames;
        std::size_t bytes = 0;

        void add(std::uint64_t place, frame_ref f) {
            bytes += f->bytes().size();
            frames.emplace_hint(frames.end(), place, std::move(f));
        }
        void remove(std::map<std::uint64_t, frame_ref>::iterator which) {
            bytes -= which->second->bytes().size();
            frames.erase(which);
        }
        bool is_over(std::size_t max_frames, std::size_t max_bytes) const noexcept {
            return frames.size() > max_frames || (bytes > max_bytes && frames.size() > 1);
        }
    };

    const std::size_t max_frames_;
    const std::size_t max_bytes_;
    const std::string gap_event_;
    const std::string epoch_ = make_epoch();
    mutable std::mutex mutex_;
    shelf kept_;
    shelf ephemeral_frames_;                                // ephemeral: they displace no others
    std::unordered_map<std::string, std::uint64_t> newest_; // in kept_, by key
    std::uint64_t forgotten_ = 0;                           // one past the last one dropped
    std::atomic<std::uint64_t> end_{0};
    std::optional<clock::time_point> finished_at_;
};

inline bool job_log::push(const message& m, bool last) {
    message kept = m;
    if (last) kept.ephemeral = false; // it is for all future viewers too
    frame_ref f = make_frame(frame::kind::topic, {}, kept);
    {
        const std::lock_guard lock(mutex_);
        if (finished_at_) return false;
        const std::uint64_t place = end_.load(std::memory_order_relaxed);
        f->stamp(epoch_, place + 1);
        if (kept.ephemeral) {
            ephemeral_frames_.add(place, std::move(f));
            while (ephemeral_frames_.is_over(max_frames_, max_bytes_)) {
                ephemeral_frames_.remove(ephemeral_frames_.frames.begin());
            }
        } else {
            keep(place, std::move(f));
        }
        if (last) finished_at_ = clock::now();
        end_.store(place + 1, std::memory_order_release);
    }
    changed.notify();
    return true;
}

inline void job_log::keep(std::uint64_t place, frame_ref f) {
    if (!f->key().empty()) {
        const auto [known, is_new] = newest_.try_emplace(std::string(f->key()), place);
        if (!is_new) kept_.remove(kept_.frames.find(std::exchange(known->second, place)));
    }
    kept_.add(place, std::move(f));
    while (kept_.is_over(max_frames_, max_bytes_)) {
        const auto oldest = kept_.frames.begin();
        forgotten_ = oldest->first + 1;
        if (const auto key = oldest->second->key(); !key.empty()) newest_.erase(std::string(key));
        kept_.remove(oldest);
    }
}

inline job_log::start_position job_log::enter(const std::string& id) const {
    const std::lock_guard lock(mutex_);
    start_position found;
    found.live_from = end_.load(std::memory_order_relaxed);
    const auto parts = parse_id(id);
    const bool known = parts && parts->first == epoch_ && parts->second <= found.live_from;
    if (known) found.place = parts->second;
    found.has_all = known && finished_at_ && found.place == found.live_from;
    if (!id.empty() && !known) {
        const bool other = parts && parts->first.size() == epoch_.size() && parts->first != epoch_;
        const auto reason = other ? gap_reason::epoch : gap_reason::unknown;
        found.missed = gap{reason, id, id_of(forgotten_)};
    } else if (found.place < forgotten_) {
        found.missed = gap{gap_reason::too_old, id_of(found.place), id_of(forgotten_)};
    }
    found.place = std::max(found.place, forgotten_);
    return found;
}

inline job_log::batch job_log::read(std::uint64_t place, std::uint64_t live_from) const {
    batch found;
    const std::lock_guard lock(mutex_);
    if (place < forgotten_) {
        found.lost = gap{gap_reason::lapped, id_of(place), id_of(forgotten_)};
    }
    found.from = found.next = std::max(place, forgotten_);
    const std::uint64_t end = end_.load(std::memory_order_relaxed);
    auto a = kept_.frames.lower_bound(found.from);
    auto b = ephemeral_frames_.frames.lower_bound(std::max(found.from, live_from));
    while (found.next < end && found.frames.size() < batch_frames) {
        const std::uint64_t of_a = a == kept_.frames.end() ? end : a->first;
        const std::uint64_t of_b = b == ephemeral_frames_.frames.end() ? end : b->first;
        found.next = std::min({of_a, of_b, end - 1}) + 1;
        if (of_a < of_b) {
            found.frames.push_back((a++)->second);
        } else if (of_b < of_a) {
            found.frames.push_back((b++)->second);
        }
    }
    found.ends = finished_at_ && found.next == end;
    return found;
}

/// Counts a viewer during its lifetime.
class viewer_count {
public:
    explicit viewer_count(std::atomic<std::size_t>& count) noexcept : count_(count) { ++count_; }
    ~viewer_count() { --count_; }
    viewer_count(const viewer_count&) = delete;
    viewer_count& operator=(const viewer_count&) = delete;

private:
    std::atomic<std::size_t>& count_;
};

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL job::~job() {
    if (!log_) return;
    try {
        log_->push({.event = "abandoned"}, true);
    } catch (...) {} // out of memory: its viewers wait until their streams end
}

SSE_DECL std::size_t job::viewers() const noexcept { return log_->viewers; }

SSE_DECL bool job::stop_requested() const noexcept { return log_->stop_requested; }

SSE_DECL asio::awaitable<void> job::wait_for_stop(std::shared_ptr<detail::job_log> log) {
    const auto goes_on = [l = log.get()] { return !l->stop_requested; };
    while (goes_on()) co_await log->stopping.async_wait(goes_on);
}

SSE_DECL bool jobs::stop(std::string_view name) const {
    const auto log = find(name);
    return log && log->request_stop();
}

SSE_DECL void job::push(const message& m, bool last) {
    if (m.id) {
        throw std::invalid_argument("sse::job: a job numbers its messages itself; leave the id "
                                    "out, or put it into data");
    }
    if (!log_->push(m, last)) throw std::system_error(errc::closed, "sse::job: finished");
}

SSE_DECL jobs::jobs(job_options o) : options_(std::move(o)) {
    const auto require = [](bool valid, const char* what) {
        if (!valid) throw std::invalid_argument(std::string("sse::job_options::") + what);
    };
    require(options_.history > 0, "history must be at least 1 message");
    require(options_.history_bytes > 0, "history_bytes must be at least 1");
    require(options_.keep.count() >= 0, "keep must not be negative");
    require(options_.max_jobs > 0, "max_jobs must be at least 1");
    require(!options_.gap_event.empty() && !check({.event = options_.gap_event}),
            "gap_event must be a name without line breaks");
}

SSE_DECL bool jobs::is_over(const detail::job_log& log) const {
    const auto finished = log.finished_at();
    return finished && detail::job_log::clock::now() - *finished >= options_.keep;
}

SSE_DECL job jobs::start(std::string name) {
    const std::lock_guard lock(mutex_);
    std::erase_if(logs_, [this](const auto& one) { return is_over(*one.second); });
    if (logs_.contains(name)) throw std::system_error(errc::job_exists, "sse::jobs '" + name + "'");
    if (logs_.size() >= options_.max_jobs) {
        auto oldest = logs_.end();
        for (auto at = logs_.begin(); at != logs_.end(); ++at) {
            const auto finished = at->second->finished_at();
            if (!finished) continue;
            if (oldest == logs_.end() || *finished < *oldest->second->finished_at()) oldest = at;
        }
        if (oldest == logs_.end()) throw std::system_error(errc::too_many_jobs, "sse::jobs");
        logs_.erase(oldest);
    }
    auto log = std::make_shared<detail::job_log>(options_);
    logs_.emplace(name, log);
    return {std::move(name), std::move(log)};
}

SSE_DECL jobs::log_ref jobs::find(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    const auto found = logs_.find(name);
    return found == logs_.end() || is_over(*found->second) ? nullptr : found->second;
}

SSE_DECL std::string jobs::name_of(std::string_view id) const {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, log] : logs_) {
        if (log->gave(id) && !is_over(*log)) return name;
    }
    return {};
}

SSE_DECL asio::awaitable<void> jobs::tell(stream& s, const detail::job_log& log, gap g,
                                          std::uint64_t place) {
    const std::string data = detail::to_json(g);
    const std::string id = log.id_of(place);
    return s.send({.event = log.gap_event(), .data = data, .id = std::string_view(id)});
}

SSE_DECL asio::awaitable<void> jobs::serve_log(stream& s, log_ref log) {
    if (!log) {
        co_await s.respond(404, "text/plain; charset=utf-8", "No such job, or it has expired\n");
        co_return;
    }
    const detail::viewer_count counted(log->viewers);
    const std::string id = detail::last_event_id(s.request());
    const detail::job_log::start_position begin = log->enter(id);
    std::uint64_t next = begin.place;
    if (begin.has_all) {
        co_await s.respond(204, {}, {});
        co_return;
    }
    s.begin();
    detail::connection_of(s).exchange_->resumable = true;
    if (begin.missed) co_await tell(s, *log, *begin.missed, next);
    const auto has_all = [&next, l = log.get()] { return l->end() == next; };
    for (;;) {
        detail::job_log::batch found = log->read(next, begin.live_from);
        if (found.lost) co_await tell(s, *log, *found.lost, found.from);
        if (!found.frames.empty()) co_await detail::connection_of(s).write(std::move(found.frames));
        next = found.next;
        if (found.ends) co_return;
        co_await log->changed.async_wait(has_all);
    }
}

#endif // SSE_BODIES

// >>facade ////////////////////////////////////////////////////////////////////////////////////////
// The bodies of server: it checks options, starts and stops, publishes, and asks the workers. Needs
// >>lifecycle.
// Tests: tests/server.cpp

#if defined(SSE_BODIES)

SSE_DECL sse::options server::checked(sse::options o) {
    const auto require = [](bool valid, const std::string& what) {
        if (!valid) throw bad_option(what);
    };
    const auto positive = [&](std::chrono::milliseconds value, const char* name) {
        require(value.count() > 0, std::string(name) + " must be more than 0 ms");
    };
    const auto prefix = detail::canonical_topic(o.prefix);
    require(prefix && o.prefix.starts_with('/'),
            "prefix must be a path such as /subscribe, not '" + o.prefix + "'");
    o.prefix = *prefix;
    require(o.health.empty() || detail::canonical_topic(o.health) == o.health,
            "health must be a path such as /health, or empty, not '" + o.health + "'");
    require(o.health.empty() || *detail::canonical_topic(o.health) != o.prefix,
            "health is '" + o.health + "', where streams are found; choose another path");
    require(o.prefix.empty() || !o.health.starts_with(o.prefix + "/"),
            "health is '" + o.health + "', below '" + o.prefix +
                "', where streams are found; choose another path");
    require(o.health.empty() || o.health + "/ready" != o.prefix,
            "prefix is '" + o.prefix + "', where readiness is reported; choose another path");
    require(o.threads <= 1024, "threads must be at most 1024");
    if (o.threads == 0) o.threads = std::max(1u, std::thread::hardware_concurrency());
    require(o.heartbeat.count() >= 0, "heartbeat must not be negative; 0 turns it off");
    require(!o.bus || o.history.lag != lag_policy::hold_back,
            "history.lag: hold_back makes publishers wait, but with a bus they are on other "
            "servers too; choose disconnect, skip or conflate");
    positive(o.timeouts.header, "timeouts.header");
    positive(o.timeouts.body, "timeouts.body");
    positive(o.timeouts.idle, "timeouts.idle");
    positive(o.timeouts.stall, "timeouts.stall");
    positive(o.limits.retry_after, "limits.retry_after");
    require(o.limits.retry_after <= std::chrono::hours(24),
            "limits.retry_after must be at most a day");
    require(o.timeouts.stream_age.count() >= 0 &&
                o.timeouts.stream_age <= std::chrono::hours(21 * 24),
            "timeouts.stream_age must be from 0 to three weeks");
    require(o.limits.header_lines > 0, "limits.header_lines must be at least 1");
    detail::check_cors(o.cors);
    require(o.coalesce.count() >= 0 && o.coalesce <= std::chrono::minutes(1),
            "coalesce must be from 0 to a minute");
    require(o.timeouts.publish.count() >= 0, "timeouts.publish must not be negative");
    require(o.timeouts.shutdown.count() >= 0, "timeouts.shutdown must not be negative");
    const std::chrono::milliseconds a_year =
        std::chrono::hours(24 * 365); // forever, without overflow
    o.timeouts.publish = std::min(o.timeouts.publish, a_year);
    o.timeouts.shutdown = std::min(o.timeouts.shutdown, a_year);
    require(o.history.age.count() >= 0 && o.history.age <= std::chrono::hours(21 * 24),
            "history.age must be from 0 to three weeks");
    require(o.history.topics.size() < 1'000, "history.topics must be fewer than 1000");
    std::vector<std::string> bounded;
    for (topic_history& each : o.history.topics) {
        const auto topic = detail::canonical_topic(each.topic);
        require(topic && !topic->empty(),
                "history.topics: '" + each.topic + "' is not a topic such as /prices");
        require(std::count(bounded.begin(), bounded.end(), *topic) == 0,
                "history.topics: '" + each.topic + "' has bounds twice");
        bounded.push_back(each.topic = *topic);
        require(each.age.count() >= 0 && each.age <= std::chrono::hours(21 * 24),
                "history.topics: the age must be from 0 to three weeks");
    }
    require(!o.history.gap_event.empty() && !check({.event = o.history.gap_event}),
            "history.gap_event must be a name without line breaks");
    require(o.limits.topics > 0, "limits.topics must be at least 1");
    require(o.drain_window.count() >= 0 && o.drain_window <= std::chrono::hours(24),
            "drain_window must be from 0 to a day");
    require(o.drain_window.count() == 0 || o.handle_signals,
            "drain_window is for handle_signals, which is off; set it, or call drain() yourself");
    require(o.limits.head_bytes >= 256, "limits.head_bytes must be at least 256");
    require(o.history.messages > 0, "history.messages must be at least 1");
    require(o.history.bytes > 0, "history.bytes must be at least 1");
#if defined(SSE_ENABLE_TLS)
    require(o.tls.certificate.empty() || !o.proxy.protocol,
            "proxy.protocol: its header comes before the handshake, which tls does not expect; let "
            "the proxy speak TLS instead");
    require(!o.tls.certificate.empty() || (o.tls.key.empty() && o.tls.client_ca.empty()),
            "tls.certificate: give the file with the certificate as well");
#endif
    const std::size_t ring = o.ring_capacity;
    require(detail::is_node_name(o.node),
            "node must be at most 64 printable characters of ASCII, not '" + o.node + "'");
    require(ring >= 2 && ring <= (1u << 24) && (ring & (ring - 1)) == 0,
            "ring_capacity must be a power of two from 2 to 16777216, not " + std::to_string(ring));
    return o;
}

SSE_DECL std::shared_ptr<detail::hub>
server::make_hub(sse::options o, std::span<asio::io_context* const> contexts) {
    for (asio::io_context* const one : contexts) {
        if (one && std::count(contexts.begin(), contexts.end(), one) == 1) continue;
        throw std::invalid_argument("sse::server: a context is null or given twice");
    }
    if (!contexts.empty()) o.threads = contexts.size();
    auto hub = std::make_shared<detail::hub>(checked(std::move(o)), contexts);
    for (asio::io_context* const one : contexts) detail::keeper::keep(*one, hub);
    return hub;
}

SSE_DECL server::server(sse::options o) : hub_(make_hub(std::move(o), {})) {}

SSE_DECL server::server(asio::io_context& context, sse::options o)
    : server(std::array{&context}, std::move(o)) {}

SSE_DECL server::server(std::span<asio::io_context* const> contexts, sse::options o)
    : hub_(make_hub(std::move(o), contexts)), has_threads_(contexts.empty()) {
    if (contexts.empty()) throw std::invalid_argument("sse::server: no context was given");
}

SSE_DECL server::~server() {
    stop();
    join();
    if (hub_->relay) hub_->relay->detach();
}

SSE_DECL void server::add_route(detail::group& of, std::string method, const std::string& pattern,
                                handler run) {
    if (!detail::is_token(method)) {
        throw std::invalid_argument("sse::server::route: '" + method + "' is not a method");
    }
    if (std::any_of(method.begin(), method.end(), [](char c) { return c >= 'a' && c <= 'z'; })) {
        throw std::invalid_argument("sse::server::route: '" + method +
                                    "' would match no client's method, which has upper case and "
                                    "is compared with it; write GET, POST and so on");
    }
    if (!run) throw std::invalid_argument("sse::server::route: the handler is empty");
    const std::string whole = pattern.empty() ? of.prefix : of.prefix + pattern;
    detail::route made{std::move(method), detail::path_pattern(whole), std::move(run), &of};
    const std::lock_guard lock(hub_->life->state);
    hub_->life->require_unused("route");
    for (const detail::route& earlier : hub_->routes) {
        if (!earlier.hides(made)) continue;
        throw std::invalid_argument("sse::server::route: " + made.method + " " + whole +
                                    " would never be reached, since " + earlier.method + " " +
                                    earlier.pattern.text() +
                                    " stands before it; add the narrower one first");
    }
    hub_->routes.push_back(std::move(made));
}

SSE_DECL void server::route(std::string method, std::string pattern, handler run) {
    add_route(hub_->groups.front(), std::move(method), pattern, std::move(run));
}

SSE_DECL void server::fallback(handler run) {
    const std::lock_guard lock(hub_->life->state);
    hub_->life->require_unused("fallback");
    hub_->fallback = std::move(run);
}

SSE_DECL detail::group& server::add_group(detail::group& around, std::string prefix,
                                          group_options o) {
    if (!prefix.starts_with('/') || prefix.ends_with('/') || prefix.ends_with("/*")) {
        throw std::invalid_argument("sse::server::group: the prefix must be a path such as /api, "
                                    "without a slash or star at its end, not '" +
                                    prefix + "'");
    }
    const detail::path_pattern whole(around.prefix + prefix);
    if (o.cors) detail::check_cors(*o.cors);
    const std::lock_guard lock(hub_->life->state);
    hub_->life->require_unused("group");
    detail::group& made = hub_->groups.emplace_back();
    made.prefix = whole.text();
    made.options = std::move(o);
    made.around = &around;
    made.number = static_cast<std::uint32_t>(hub_->groups.size() - 1);
    return made;
}

SSE_DECL route_group server::group(std::string prefix, group_options o) {
    return {*this, add_group(hub_->groups.front(), std::move(prefix), std::move(o))};
}

SSE_DECL void route_group::route(std::string method, std::string pattern, handler run) {
    server_->add_route(*group_, std::move(method), pattern, std::move(run));
}

SSE_DECL route_group route_group::group(std::string prefix, group_options o) {
    return {*server_, server_->add_group(*group_, std::move(prefix), std::move(o))};
}

/// Their handlers refer to the hub, which may outlive the server.
SSE_DECL void server::add_builtin_routes() {
    detail::hub& hub = *hub_;
    detail::group& own = hub_->groups.front();
    const auto add = [&](const char* method, const std::string& path, handler run,
                         bool streams = false) {
        hub_->routes.push_back({method, detail::path_pattern(path), std::move(run), &own, streams});
    };
    if (!hub_->options.health.empty()) {
        add("GET", hub_->options.health, [&hub](stream& s) {
            const std::uint64_t streams = hub.count().streams;
            std::string text = "Active connections: " + std::to_string(streams) + "\n";
            if (hub.relay) text += "Bus: " + hub.relay->state() + "\n";
            return s.respond(200, "text/plain; charset=utf-8", text);
        });
        add("GET", hub_->options.health + "/ready", [&hub](stream& s) {
            const char* const why =
                hub.why_not_ready(detail::connection_of(s).is_over_limit() ? 0 : 1);
            return s.respond(why ? 503 : 200, "text/plain; charset=utf-8", why ? why : "Ready\n");
        });
    }
    const handler subscribe = [&hub](stream& s) { return serve_topics(hub, s); };
    const std::string& prefix = hub_->options.prefix;
    for (const char* const method : {"GET", "POST"}) {
        if (!prefix.empty()) add(method, prefix, subscribe, true);
        add(method, prefix + "/*", subscribe, true);
    }
}

namespace detail {

SSE_DECL std::string_view media_type(std::string_view path) noexcept {
    constexpr std::pair<std::string_view, std::string_view> known[] = {
        {".html", "text/html; charset=utf-8"},
        {".css", "text/css; charset=utf-8"},
        {".js", "text/javascript; charset=utf-8"},
        {".mjs", "text/javascript; charset=utf-8"},
        {".json", "application/json"},
        {".txt", "text/plain; charset=utf-8"},
        {".svg", "image/svg+xml"},
        {".png", "image/png"},
        {".ico", "image/x-icon"},
        {".wasm", "application/wasm"},
    };
    for (const auto& [suffix, type] : known) {
        if (path.ends_with(suffix)) return type;
    }
    return "application/octet-stream";
}

SSE_DECL asio::awaitable<void> respond_file(stream& s, const std::string& path) {
    std::string text;
    bool known = false;
    if (const auto in = open_file(path)) {
        std::array<char, 16 * 1024> part;
        while (const std::size_t n = std::fread(part.data(), 1, part.size(), in.get())) {
            text.append(part.data(), n);
        }
        known = std::ferror(in.get()) == 0; // a directory can be opened, but not read
    }
    if (!known) text = "The server cannot read the file for this page\n";
    std::string_view type = "text/plain; charset=utf-8";
    if (known) type = media_type(path);
    co_await s.respond(known ? 200 : 404, type, text);
}

} // namespace detail

SSE_DECL handler file(std::string path) {
    return [path = std::move(path)](stream& s) { return detail::respond_file(s, path); };
}

namespace detail {

SSE_DECL bool is_plain_text(const request& r) noexcept {
    const auto type = r.header("Content-Type").value_or("");
    return equal_ignoring_case(trim(type.substr(0, type.find(';'))), "text/plain");
}

/// The topics that a request names: in its path, in ?topic=, or, for lists too long for a target,
/// in a body that is a form or has one on each line. The root if it names none.
SSE_DECL std::vector<std::string> topics_of(const request& r, std::string_view body) {
    std::vector<std::string> topics = r.query_values("topic");
    if (is_plain_text(r)) {
        line_splitter lines(body);
        while (const auto line = lines.next()) {
            if (!trim(*line).empty()) topics.emplace_back(trim(*line));
        }
    } else {
        for (std::string& each : form_values(body, "topic")) topics.push_back(std::move(each));
    }
    if (!r.rest.empty() || topics.empty()) topics.emplace_back(r.rest);
    return topics;
}

/// Where a request wants to start; an id that it brings wins. Returns nullopt if its query is not
/// valid.
SSE_DECL std::optional<start> start_of(const request& r) {
    const bool resumes = !last_event_id(r).empty();
    if (const auto from = r.query_value("from")) {
        if (*from == "now") return start::resume();
        if (*from != "oldest") return std::nullopt;
        return resumes ? start::resume() : start::oldest();
    }
    if (const auto last = r.query_value("last")) {
        const auto count = read_number<std::uint64_t>(*last);
        if (!count) return std::nullopt;
        if (resumes) return start::resume();
        return start::last(static_cast<std::size_t>(*count));
    }
    if (const auto since = r.query_value("since")) {
        const auto seconds = read_number<std::uint64_t>(*since);
        if (!seconds || *seconds > 100'000'000'000) return std::nullopt;
        if (resumes) return start::resume();
        return start::since(std::chrono::system_clock::time_point(
            std::chrono::seconds(static_cast<std::int64_t>(*seconds))));
    }
    return start::resume();
}

} // namespace detail

/// The built-in route. An EventSource reconnects with the same target, so an id wins over any other
/// start that the target names.
SSE_DECL asio::awaitable<void> server::serve_topics(detail::hub& hub, stream& s) {
    sse::request& asked = *detail::connection_of(s).exchange_->request;
    std::string body;
    if (asked.method == "POST") body = co_await s.body();
    if (!detail::is_plain_text(asked)) asked.form_event_id = detail::last_event_id_in(body);
    for (const std::string& topic : detail::topics_of(asked, body)) {
        asked.topics.push_back(detail::checked_topic(topic));
    }
    if (hub.options.hooks.authorize) {
        const access given = co_await hub.options.hooks.authorize(asked);
        const bool refused = co_await detail::connection_of(s).refused_by(given);
        if (refused) co_return;
    }
    const std::vector<std::string>& topics = asked.topics;
    const auto from = detail::start_of(asked);
    std::string wrong;
    if (!from) wrong = "Use from=oldest, from=now, last=20 or since=1764000000\n";
    if (topics.size() > hub.options.limits.topics) {
        wrong = "Too many topics; at most " + std::to_string(hub.options.limits.topics) + "\n";
    }
    // Each segment costs memory, whether or not anything is ever published there.
    const std::size_t most = std::max<std::size_t>(32, hub.options.limits.topics * 4);
    if (detail::count_segments(topics) > most) {
        wrong = "Topics too deep; at most " + std::to_string(most) + " segments in all\n";
    }
    if (!wrong.empty()) {
        co_await s.respond(400, "text/plain; charset=utf-8", wrong);
        co_return;
    }
    subscribe_options how;
    how.from = *from;
    for (const std::string& topic : topics) s.subscribe(topic, how);
}

// --- start and stop

/// Starts the life of the server and runs its workers.
template <class... Where>
void server::launch(Where&&... where) {
    detail::lifecycle& life = *hub_->life;
    const std::lock_guard lock(life.state);
    if (!life.has_started()) add_builtin_routes();
    life.start(std::forward<Where>(where)...);
    if (hub_->relay) attach_bus();
    if (!has_threads_) {
        for (auto& w : hub_->workers) {
            asio::post(w->context(), [worker = w.get()] { worker->begin(); });
            w->wake_always(); // for what was published before
        }
        return;
    }
    const std::lock_guard joining(joining_);
    try {
        for (auto& w : hub_->workers) {
            w->wake_always(); // for what was published before
            threads_.emplace_back([worker = w.get()] { worker->run(); });
        }
    } catch (...) { // no more threads available
        life.abandon_start();
        for (std::thread& t : threads_) t.join();
        throw;
    }
}

/// If it cannot work, nothing runs.
SSE_DECL void server::attach_bus() {
    try {
        hub_->relay->attach();
    } catch (...) {
        hub_->life->abandon_start();
        throw;
    }
}

SSE_DECL void server::start(const std::string& address) { launch(address); }

SSE_DECL void server::start(asio::ip::tcp::acceptor listener) { launch(std::move(listener)); }

SSE_DECL void server::start() { launch(); }

SSE_DECL void server::adopt(asio::ip::tcp::socket socket, std::string received) {
    const auto handle = socket.release();
    try {
        adopt(handle, std::move(received));
    } catch (...) {
        asio::error_code ignored; // the socket is closed by its owner
        socket.assign(asio::ip::tcp::v4(), handle, ignored);
        throw;
    }
}

SSE_DECL void server::adopt(asio::ip::tcp::socket::native_handle_type socket,
                            std::string received) {
    hub_->life->adopt(socket, std::move(received));
}

SSE_DECL void server::serve(const std::string& address) {
    start(address);
    join();
}

SSE_DECL void server::serve(asio::ip::tcp::acceptor listener) {
    start(std::move(listener));
    join();
}

SSE_DECL void server::stop() noexcept { hub_->life->stop(); }

SSE_DECL asio::awaitable<drain_result> server::async_drain(const drain_options& how) {
    return wait_for_drain(hub_, hub_->life->checked(how));
}

SSE_DECL asio::awaitable<drain_result>
server::wait_for_drain(std::shared_ptr<detail::hub> hub,
                       std::shared_ptr<const detail::farewell> how) {
    hub->life->drain(std::move(how));
    const auto goes_on = [h = hub.get()] { return h->undrained != 0; };
    while (goes_on()) co_await hub->room.async_wait(goes_on);
    co_return drain_result{hub->drained, hub->cut};
}

SSE_DECL drain_result server::drain(const drain_options& how) {
    check_thread("sse::server::drain");
    detail::lifecycle& life = *hub_->life;
    life.drain(life.checked(how));
    life.state.lock();
    const auto deadline =
        life.drained_by() + hub_->options.timeouts.shutdown + std::chrono::seconds(1);
    life.state.unlock();
    hub_->room.wait_until(deadline, [this] { return hub_->undrained == 0; });
    stop();
    join();
    return {hub_->drained, hub_->cut};
}

SSE_DECL void server::check_thread(const char* what) const {
    if (hub_->worker_here()) {
        throw std::system_error(std::make_error_code(std::errc::resource_deadlock_would_occur),
                                std::string(what) + ": called on a thread of the server itself");
    }
}

SSE_DECL void server::join() {
    if (!has_threads_) return; // there is nothing to wait for
    check_thread("sse::server::join");
    const std::lock_guard lock(joining_);
    for (std::thread& t : threads_) {
        if (t.joinable()) t.join();
    }
    if (hub_->relay) hub_->relay->detach();
}

SSE_DECL asio::ip::tcp::endpoint server::endpoint() const { return hub_->life->endpoint(); }

// --- publish

SSE_DECL std::error_code server::try_push(detail::hub& hub, frame_ref& f, std::uint64_t& sequence) {
    if (hub.stopped) return errc::stopped;
    if (!f->own_id().empty()) { // a client that reconnects with it would resume elsewhere
        const auto parts = detail::parse_id(f->own_id());
        if (parts && parts->first == hub.epoch) return errc::reserved_id;
    }
    const auto place = hub.put(f);
    if (!place) {
        hub.no_room.fetch_add(1, std::memory_order_relaxed);
        return errc::no_room;
    }
    sequence = *place + 1;
    return {};
}

SSE_DECL std::uint64_t server::push(frame_ref f) {
    using namespace std::chrono_literals;
    std::uint64_t sequence = 0;
    std::error_code failed = try_push(*hub_, f, sequence);
    const auto deadline = std::chrono::steady_clock::now() + hub_->options.timeouts.publish;
    if (!failed) return sequence;
    detail::worker* const here = hub_->worker_here();
    while (failed == errc::no_room && std::chrono::steady_clock::now() < deadline) {
        if (here) here->make_room(); // otherwise this thread would wait for itself
        const auto until =
            here ? std::min(deadline, std::chrono::steady_clock::now() + 1ms) : deadline;
        hub_->room.wait_until(until, [&] {
            failed = try_push(*hub_, f, sequence);
            return failed != errc::no_room;
        });
    }
    if (failed) throw std::system_error(failed, "sse::server::publish");
    return sequence;
}

/// Keeps the hub, not the server, which the program may destroy while this waits.
SSE_DECL asio::awaitable<std::uint64_t> server::async_push(std::shared_ptr<detail::hub> hub,
                                                           frame_ref f) {
    std::uint64_t sequence = 0;
    const auto full = [h = hub.get()] {
        return (h->ring.full() || h->holding != 0) && !h->stopped;
    };
    for (;;) {
        const std::error_code failed = try_push(*hub, f, sequence);
        if (!failed) co_return sequence;
        if (failed != errc::no_room) throw std::system_error(failed, "sse::server::publish");
        co_await hub->room.async_wait(full);
    }
}

SSE_DECL std::uint64_t server::send(frame::kind what, std::string_view topic, const message& m) {
    if (hub_->relay) return hub_->relay->publish(what, topic, m);
    return push(detail::make_frame(what, topic, m));
}

SSE_DECL std::error_code server::try_send(frame::kind what, std::string_view topic,
                                          const message& m) {
    if (hub_->relay) return hub_->relay->try_publish(what, topic, m);
    if (const auto wrong = check(m)) return wrong;
    frame_ref f = detail::make_frame(what, topic, m);
    std::uint64_t sequence = 0;
    return try_push(*hub_, f, sequence);
}

SSE_DECL asio::awaitable<std::uint64_t> server::async_send(frame::kind what, std::string_view topic,
                                                           const message& m) {
    if (hub_->relay) {
        return detail::relay::async_wait(hub_, hub_->relay->begin_publish(what, topic, m));
    }
    return async_push(hub_, detail::make_frame(what, topic, m));
}

SSE_DECL std::uint64_t server::publish(std::string_view topic, const message& m) {
    return send(frame::kind::topic, detail::checked_topic(topic), m);
}

SSE_DECL std::uint64_t server::broadcast(const message& m) {
    return send(frame::kind::everyone, {}, m);
}

SSE_DECL std::error_code server::try_publish(std::string_view topic, const message& m) {
    const auto canonical = detail::canonical_topic(topic);
    if (!canonical) return errc::bad_topic;
    return try_send(frame::kind::topic, *canonical, m);
}

SSE_DECL std::error_code server::try_broadcast(const message& m) {
    return try_send(frame::kind::everyone, {}, m);
}

SSE_DECL asio::awaitable<std::uint64_t> server::async_publish(std::string_view topic,
                                                              const message& m) {
    return async_send(frame::kind::topic, detail::checked_topic(topic), m);
}

SSE_DECL asio::awaitable<std::uint64_t> server::async_broadcast(const message& m) {
    return async_send(frame::kind::everyone, {}, m);
}

SSE_DECL std::uint64_t server::send_to(std::uint64_t stream, const message& m) {
    if (m.id) throw std::system_error(errc::ephemeral_id, "sse::server::send_to");
    frame_ref f = detail::make_frame(frame::kind::stream, {}, m);
    f->set_stream(stream);
    if (!hub_->relay) return push(std::move(f));
    if (hub_->relay->others().may_be_elsewhere(stream)) {
        message passing = m;
        passing.ephemeral = true;
        const auto failed =
            hub_->relay->try_publish(frame::kind::stream, std::to_string(stream), passing);
        if (failed) throw std::system_error(failed, "sse::server::send_to");
    }
    if (hub_->relay->others().is_here(stream)) push(std::move(f));
    return 0;
}

SSE_DECL std::uint64_t server::send_to_user(std::string_view user, const message& m) {
    return send(frame::kind::user, detail::user_topic(user), m);
}

// --- streams by id

SSE_DECL std::string server::last_id() const {
    if (hub_->relay) return hub_->relay->last_id();
    return detail::make_id(hub_->epoch, hub_->ring.published());
}

SSE_DECL void server::post_to(std::uint64_t stream, std::function<void(sse::stream&)> what) {
    if (!what) throw std::invalid_argument("sse::server::post_to: the function is empty");
    hub_->worker_of(stream).post_to(stream, std::move(what));
}

SSE_DECL void server::revoke(std::uint64_t stream) {
    hub_->revoke(stream);
    if (!hub_->relay || !hub_->relay->others().may_be_elsewhere(stream)) return;
    hub_->relay->tell({.what = detail::notice::kind::end_stream, .number = stream});
}

SSE_DECL void server::revoke_user(std::string_view user) {
    static_cast<void>(detail::user_topic(user)); // throws if it can be none
    for (auto& w : hub_->workers) w->revoke_user(user);
    if (hub_->relay) hub_->relay->tell({.what = detail::notice::kind::end_user, .user = user});
}

SSE_DECL void server::revoke_if(std::function<bool(const stream_info&)> which) {
    if (!which) throw std::invalid_argument("sse::server::revoke_if: the predicate is empty");
    for (auto& w : hub_->workers) w->revoke_if(which);
}

SSE_DECL std::shared_ptr<detail::listing>
server::ask_all(void (detail::worker::*what)(std::shared_ptr<detail::listing>),
                const stream_filter& which) const {
    auto all = std::make_shared<detail::listing>();
    all->user = which.user;
    all->topic = which.topic;
    if (!which.topic.empty() && which.topic != "/") {
        all->topic = detail::checked_topic(which.topic);
    }
    if (!which.user.empty()) static_cast<void>(detail::user_topic(which.user));
    all->answered.resize(hub_->workers.size());
    const std::lock_guard lock(hub_->life->state);
    if (!hub_->life->has_started()) {
        all->answered.flip();
        return all;
    }
    for (auto& w : hub_->workers) (w.get()->*what)(all);
    if (hub_->relay && !which.here) hub_->relay->others().ask(all);
    return all;
}

SSE_DECL bool server::all_answered(const detail::hub& hub, detail::listing& all) {
    const std::lock_guard lock(all.mutex);
    for (std::size_t i = 0; i < hub.workers.size(); ++i) {
        if (!all.answered[i] && !hub.workers[i]->has_ended()) return false;
    }
    const auto is_done = [](const auto& one) { return one.second.done; };
    return std::chrono::steady_clock::now() >= all.deadline ||
           (!all.may_lack_some && std::all_of(all.others.begin(), all.others.end(), is_done));
}

SSE_DECL stream_list server::streams(const stream_filter& which) const {
    using namespace std::chrono_literals;
    check_thread("sse::server::streams");
    const auto all = ask_all(&detail::worker::list, which);
    while (!hub_->room.wait_until(std::chrono::steady_clock::now() + 100ms,
                                  [&] { return all_answered(*hub_, *all); })) {}
    return all->take();
}

SSE_DECL asio::awaitable<stream_list> server::async_streams(const stream_filter& which) const {
    return wait_for(hub_, ask_all(&detail::worker::list, which));
}

SSE_DECL asio::awaitable<stream_list> server::wait_for(std::shared_ptr<detail::hub> hub,
                                                       std::shared_ptr<detail::listing> all) {
    const auto goes_on = [h = hub.get(), a = all.get()] { return !all_answered(*h, *a); };
    while (goes_on()) co_await hub->room.async_wait(goes_on);
    co_return all->take();
}

SSE_DECL sse::counters server::counters() const { return hub_->count(); }

#if defined(SSE_ENABLE_TLS)
SSE_DECL void server::reload_tls() { hub_->tls.reload(nullptr); }
SSE_DECL void server::reload_tls(tls_options o) { hub_->tls.reload(&o); }
#endif

SSE_DECL asio::awaitable<measurements> server::async_measure() const {
    return measure(hub_, ask_all(&detail::worker::measure, {.here = true}));
}

SSE_DECL asio::awaitable<measurements> server::measure(std::shared_ptr<detail::hub> hub,
                                                       std::shared_ptr<detail::listing> all) {
    co_await wait_for(hub, all);
    measurements sum = all->sum;
    sum.counters = hub->count();
    sum.workers = hub->workers.size();
    sum.ring_capacity = hub->ring.capacity();
    sum.ring_used = hub->ring.used();
    if (hub->relay) sum.bus_up = hub->relay->is_up();
    co_return sum;
}

#endif // SSE_BODIES

// >>metrics ///////////////////////////////////////////////////////////////////////////////////////
// Measurements as text: the formats of Prometheus and of OpenMetrics. Needs >>server, >>facade.
// Tests: tests/metrics.cpp

#if defined(SSE_BODIES)

namespace detail {

/// Writes families of metrics. In OpenMetrics a counter's family has its name without `_total`.
class metrics_text {
public:
    explicit metrics_text(bool open) : open_(open) {}

    void gauge(std::string_view name, std::string_view help, std::uint64_t value) {
        family(name, "gauge", help);
        sample(name, "", value);
    }
    void counter(std::string_view name, std::string_view help, std::uint64_t value) {
        counters(name, help);
        add(name, "", value);
    }
    /// The samples follow.
    void counters(std::string_view name, std::string_view help) {
        family(open_ ? std::string(name) : std::string(name) + "_total", "counter", help);
    }
    void add(std::string_view name, std::string_view labels, std::uint64_t value) {
        sample(std::string(name) + "_total", labels, value);
    }
    void info(std::string_view name, std::string_view help, std::string_view labels) {
        const std::string full = std::string(name) + "_info";
        open_ ? family(name, "info", help) : family(full, "gauge", help);
        sample(full, labels, 1);
    }
    /// Of values that are now, not of all that ever were: what OpenMetrics has a type for.
    void distribution(std::string_view name, std::string_view help, const measurements& m) {
        family(name, open_ ? "gaugehistogram" : "histogram", help);
        std::uint64_t count = 0;
        for (std::size_t i = 0; i < m.lag.size(); ++i) {
            count += m.lag[i];
            const bool is_last = i == m.lag_bounds.size();
            std::string bound = is_last ? "+Inf" : std::to_string(m.lag_bounds[i]);
            if (open_ && !is_last) bound += ".0"; // a number there, not a text
            sample(std::string(name) + "_bucket", "le=\"" + bound + "\"", count);
        }
        sample(std::string(name) + (open_ ? "_gsum" : "_sum"), "", m.lag_sum);
        sample(std::string(name) + (open_ ? "_gcount" : "_count"), "", count);
    }
    std::string take() {
        if (open_) text_ += "# EOF\n";
        return std::move(text_);
    }

private:
    void family(std::string_view name, std::string_view type, std::string_view help) {
        text_.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ");
        text_.append(name).append(" ").append(type).append("\n");
    }
    void sample(std::string_view name, std::string_view labels, std::uint64_t value) {
        text_.append(name);
        if (!labels.empty()) text_.append("{").append(labels).append("}");
        text_.append(" ").append(std::to_string(value)).append("\n");
    }

    const bool open_;
    std::string text_;
};

SSE_DECL std::string format_metrics(const measurements& m, bool open) {
    metrics_text out(open);
    const sse::counters& c = m.counters;
    out.info("sse_build", "The version of sse.hpp.", "version=\"" SSE_VERSION_STRING "\"");
    out.gauge("sse_workers", "Threads that serve clients.", m.workers);
    out.gauge("sse_connections", "Open connections.", c.connections);
    out.gauge("sse_streams", "Open event streams.", c.streams);
    out.counter("sse_connections_accepted", "Connections accepted.", c.accepted);
    out.counter("sse_requests_refused",
                "Requests refused, or connections closed at once, by a limit.", c.refused);
    out.counter("sse_accept_failures", "Times that accepting paused: file descriptors ran out.",
                c.accept_failures);
#if defined(SSE_ENABLE_TLS)
    out.counter("sse_tls_failures", "Connections that ended because of TLS.", c.tls_failures);
#endif
    out.counters("sse_streams_ended", "Streams that have ended, by reason.");
    for (std::size_t i = 0; i < end_reasons; ++i) {
        std::string reason(to_string(static_cast<end_reason>(i)));
        std::replace(reason.begin(), reason.end(), ' ', '_');
        out.add("sse_streams_ended", "reason=\"" + reason + "\"", c.ended[i]);
    }
    out.counter("sse_messages_published", "Messages published.", c.published);
    out.counter("sse_publish_no_room", "Attempts to publish for which the ring had no room.",
                c.no_room);
    out.counter("sse_messages_delivered", "Messages fully written to a client.", c.delivered);
    out.counter("sse_sent_bytes", "Bytes written to clients, in all kinds of response.", c.bytes);
    out.counter("sse_gaps", "Gaps reported to clients.", c.gaps);
    out.counter("sse_messages_conflated", "Messages skipped for a newer one with the same key.",
                c.conflated);
    out.distribution("sse_stream_lag_messages",
                     "Open streams by how many messages they are behind.", m);
    out.gauge("sse_history_messages", "Messages kept for clients that come back.",
              m.history_messages);
    out.gauge("sse_history_bytes", "Bytes of these messages.", m.history_bytes);
    out.gauge("sse_ring_capacity_messages", "Places between publishers and workers.",
              m.ring_capacity);
    out.gauge("sse_ring_used_messages", "Places that wait for the slowest worker.", m.ring_used);
    if (m.bus_up) out.gauge("sse_bus_up", "Whether the bus can be reached.", *m.bus_up ? 1 : 0);
    return out.take();
}

SSE_DECL asio::awaitable<void> respond_metrics(stream& s, const server& of) {
    const auto accepted = s.request().header("Accept").value_or("");
    const bool open = accepted.find("application/openmetrics-text") != std::string_view::npos;
    const std::string text = format_metrics(co_await of.async_measure(), open);
    co_await s.respond(200,
                       open ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                            : "text/plain; version=0.0.4; charset=utf-8",
                       text);
}

} // namespace detail

SSE_DECL handler metrics(const server& of) {
    return [&of](stream& s) { return detail::respond_metrics(s, of); };
}

#endif // SSE_BODIES

// >>admin /////////////////////////////////////////////////////////////////////////////////////////
// Who is there, as JSON, and routes that end streams. Needs >>server, >>facade, >>feed, >>head.
// Tests: tests/admin.cpp

#if defined(SSE_BODIES)

namespace detail {

/// What a request asks for, and why it cannot have it.
struct admin_error : std::runtime_error {
    explicit admin_error(const std::string& text, int answered = 400)
        : std::runtime_error(text), status(answered) {}
    int status;
};

struct admin_answer {
    int status = 200;
    std::string json = {};
};

SSE_DECL std::string admin_refusal(std::string_view text) {
    return R"({"error":)" + json_string(text) + "}\n";
}

/// The query of a request whose names are all known, each once and with a value: what is ignored in
/// one that ends streams could end more than was meant.
class admin_query {
public:
    admin_query(const request& r, std::initializer_list<std::string_view> known) : request_(r) {
        for (std::string_view rest = r.query; !rest.empty();) {
            const std::string_view pair = rest.substr(0, rest.find('&'));
            rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
            if (pair.empty()) continue;
            const std::string name = form_decode(pair.substr(0, pair.find('=')));
            if (std::find(known.begin(), known.end(), name) == known.end()) {
                throw admin_error("there is no ?" + name + "=");
            }
            const auto values = r.query_values(name);
            if (values.size() != 1) throw admin_error("?" + name + "= came twice; send it once");
            if (values.front().empty()) throw admin_error("?" + name + "= is empty");
        }
    }

    std::string text(std::string_view name) const {
        return request_.query_value(name).value_or("");
    }
    std::uint64_t number(std::string_view name, std::uint64_t otherwise, std::uint64_t least,
                         std::uint64_t most) const {
        const auto given = request_.query_value(name);
        if (!given) return otherwise;
        const auto value = read_number<std::uint64_t>(*given);
        if (value && *value >= least && *value <= most) return *value;
        throw admin_error("use ?" + std::string(name) + "= with a number from " +
                          std::to_string(least) + " to " + std::to_string(most));
    }
    std::string word(std::string_view name, std::string_view only) const {
        const std::string given = text(name);
        if (given.empty() || given == only) return given;
        throw admin_error("use ?" + std::string(name) + "=" + std::string(only) + ", or without");
    }

private:
    const request& request_;
};

/// Which streams, and which page of them.
struct admin_selection {
    static constexpr std::uint64_t max_limit = 1'000;

    std::string user, topic, follows;
    bool here = false;
    std::uint64_t limit = 100;
    std::uint64_t after = 0;
    bool by_lag = false;

    bool names_some() const noexcept { return !user.empty() || !topic.empty() || !follows.empty(); }
    /// Whoever is subscribed to a topic gets what is published there.
    stream_filter filter() const noexcept {
        return {.user = user, .topic = topic.empty() ? follows : topic, .here = here};
    }
    bool matches(const stream_info& one) const {
        return follows.empty() ||
               std::find(one.topics.begin(), one.topics.end(), follows) != one.topics.end();
    }
};

SSE_DECL admin_selection read_selection(const request& r, bool paged) {
    const admin_query query =
        paged ? admin_query(r, {"user", "topic", "follows", "here", "limit", "after", "order"})
              : admin_query(r, {"user", "topic", "follows", "here"});
    admin_selection all;
    all.user = query.text("user");
    all.topic = query.text("topic");
    const std::string follows = query.text("follows");
    if (!follows.empty()) {
        const std::string topic = checked_topic(follows);
        all.follows = topic.empty() ? "/" : topic;
    }
    all.here = !query.word("here", "1").empty();
    if (!paged) return all;
    all.limit = query.number("limit", all.limit, 1, all.max_limit);
    all.after = query.number("after", 0, 0, std::numeric_limits<std::uint64_t>::max());
    all.by_lag = !query.word("order", "lag").empty();
    return all;
}

SSE_DECL void put_json(std::string& out, std::string_view name, std::uint64_t value) {
    out.append(out.ends_with('{') ? "\"" : ",\"").append(name).append("\":");
    out.append(std::to_string(value));
}

/// Topics are as long as a client likes, so a list has as many of them as fit.
SSE_DECL void put_json(std::string& out, const stream_info& one) {
    constexpr std::size_t max_topics_bytes = 2 * 1024;
    out += '{';
    put_json(out, "id", one.id);
    out.append(",\"user\":").append(json_string(one.user)).append(",\"topics\":[");
    std::size_t shown = 0, bytes = 0;
    for (; shown < one.topics.size(); ++shown) {
        bytes += one.topics[shown].size();
        if (bytes > max_topics_bytes) break;
        out.append(shown > 0 ? "," : "").append(json_string(one.topics[shown]));
    }
    out += ']';
    if (shown < one.topics.size()) put_json(out, "topics_left_out", one.topics.size() - shown);
    out.append(",\"client\":").append(json_string(one.client.to_string()));
    out.append(",\"node\":").append(json_string(one.node));
    put_json(out, "age_ms", static_cast<std::uint64_t>(one.age.count()));
    put_json(out, "behind", one.lag.messages);
    put_json(out, "behind_bytes", one.lag.bytes);
    put_json(out, "behind_ms", static_cast<std::uint64_t>(one.lag.age.count()));
    out += '}';
}

/// Lets the worker that runs this serve others.
SSE_DECL asio::awaitable<void> take_turns() {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
}

inline constexpr std::size_t admin_step = 500; ///< Streams between two turns.

/// Refers to what it is given, which outlives it.
SSE_DECL asio::awaitable<std::string> json_of_streams(const stream_list& found,
                                                      const admin_selection& asked) {
    std::vector<const stream_info*> page;
    std::size_t total = 0;
    for (const stream_info& one : found) {
        if (++total % admin_step == 0) co_await take_turns();
        page.push_back(&one);
    }
    std::erase_if(page, [&](auto* one) { return !asked.by_lag && one->id <= asked.after; });
    const auto comes_first = [&](const stream_info* a, const stream_info* b) {
        if (asked.by_lag && a->lag.messages != b->lag.messages) {
            return a->lag.messages > b->lag.messages;
        }
        return a->id < b->id;
    };
    const std::size_t size = std::min<std::size_t>(page.size(), asked.limit);
    const bool more = page.size() > size;
    std::partial_sort(page.begin(), page.begin() + static_cast<std::ptrdiff_t>(size), page.end(),
                      comes_first);
    page.resize(size);
    std::string out = "{\"streams\":[";
    for (std::size_t i = 0; i < page.size(); ++i) {
        if (i % admin_step == admin_step - 1) co_await take_turns();
        if (i > 0) out += ',';
        put_json(out, *page[i]);
    }
    out += ']';
    put_json(out, "total", total);
    out += ",\"next\":";
    out += more && !asked.by_lag ? std::to_string(page.back()->id) : "null";
    out += ",\"missing\":[";
    for (const std::string& name : found.missing) {
        out.append(out.ends_with('[') ? "" : ",").append(json_string(name));
    }
    out.append("],\"complete\":").append(found.complete ? "true" : "false").append("}");
    co_return out;
}

SSE_DECL asio::awaitable<std::string> json_of_topics(const stream_list& found,
                                                     const admin_selection& asked) {
    struct followed {
        std::uint64_t streams = 0;
        std::uint64_t behind = 0; // of the stream furthest behind
    };
    std::unordered_map<std::string_view, followed> topics;
    std::size_t work = 0;
    for (const stream_info& one : found) {
        for (const std::string& topic : one.topics) {
            if (++work % admin_step == 0) co_await take_turns();
            followed& all = topics[topic];
            ++all.streams;
            all.behind = std::max(all.behind, one.lag.messages);
        }
    }
    std::vector<std::pair<std::string_view, followed>> page(topics.begin(), topics.end());
    const std::size_t size = std::min<std::size_t>(page.size(), asked.limit);
    std::partial_sort(page.begin(), page.begin() + static_cast<std::ptrdiff_t>(size), page.end(),
                      [](const auto& a, const auto& b) {
                          if (a.second.streams != b.second.streams) {
                              return a.second.streams > b.second.streams;
                          }
                          return a.first < b.first;
                      });
    constexpr std::size_t max_bytes = 1024 * 1024;
    std::string out = "{\"topics\":[";
    for (std::size_t i = 0; i < size && out.size() < max_bytes; ++i) {
        out.append(i > 0 ? ",{\"topic\":" : "{\"topic\":").append(json_string(page[i].first));
        put_json(out, "streams", page[i].second.streams);
        put_json(out, "behind", page[i].second.behind);
        out += '}';
    }
    out += ']';
    put_json(out, "total", page.size());
    co_return out + '}';
}

SSE_DECL std::string json_of_status(const measurements& m, stream& s) {
    const sse::counters& c = m.counters;
    std::string out =
        R"({"version":")" SSE_VERSION_STRING R"(","node":)" + json_string(s.info().node);
    put_json(out, "workers", m.workers);
    out.append(",\"draining\":").append(s.draining() ? "true" : "false");
    out.append(",\"bus_up\":").append(!m.bus_up ? "null" : *m.bus_up ? "true" : "false");
    constexpr std::pair<std::string_view, std::uint64_t sse::counters::*> shown[] = {
        {"connections", &sse::counters::connections},
        {"streams", &sse::counters::streams},
        {"accepted", &sse::counters::accepted},
        {"refused", &sse::counters::refused},
        {"accept_failures", &sse::counters::accept_failures},
        {"tls_failures", &sse::counters::tls_failures},
        {"published", &sse::counters::published},
        {"no_room", &sse::counters::no_room},
        {"delivered", &sse::counters::delivered},
        {"bytes", &sse::counters::bytes},
        {"lagged", &sse::counters::lagged},
        {"unreachable", &sse::counters::unreachable},
        {"gaps", &sse::counters::gaps},
        {"conflated", &sse::counters::conflated},
    };
    for (const auto& [name, member] : shown) put_json(out, name, c.*member);
    out += ",\"ended\":{";
    for (std::size_t i = 0; i < end_reasons; ++i) {
        put_json(out, to_string(static_cast<end_reason>(i)), c.ended[i]);
    }
    out += "},\"lag\":[";
    for (std::size_t i = 0; i < m.lag.size(); ++i) {
        out += i > 0 ? ",{" : "{";
        if (i < m.lag_bounds.size()) put_json(out, "up_to", m.lag_bounds[i]);
        put_json(out, "streams", m.lag[i]);
        out += '}';
    }
    out += ']';
    put_json(out, "history_messages", m.history_messages);
    put_json(out, "history_bytes", m.history_bytes);
    put_json(out, "ring_capacity", m.ring_capacity);
    put_json(out, "ring_used", m.ring_used);
    return out + '}';
}

SSE_DECL asio::awaitable<stream_list> select_streams(const server& of,
                                                     const admin_selection& asked) {
    stream_list all = co_await of.async_streams(asked.filter());
    std::size_t left = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (i % admin_step == admin_step - 1) co_await take_turns();
        if (!asked.matches(all[i])) continue;
        if (left != i) all[left] = std::move(all[i]);
        ++left;
    }
    all.resize(left);
    co_return all;
}

SSE_DECL asio::awaitable<admin_answer> admin_status(stream& s, const server& of) {
    const admin_query no_names(s.request(), {});
    const measurements now = co_await of.async_measure();
    co_return admin_answer{200, json_of_status(now, s) + "\n"};
}

using admin_text = asio::awaitable<std::string>(const stream_list&, const admin_selection&);

SSE_DECL asio::awaitable<admin_answer> admin_list(stream& s, const server& of, admin_text* text) {
    const admin_selection asked = read_selection(s.request(), true);
    const stream_list found = co_await select_streams(of, asked);
    const std::string json = co_await text(found, asked);
    co_return admin_answer{200, json + "\n"};
}

SSE_DECL asio::awaitable<admin_answer> admin_end_one(stream& s, server& of) {
    const admin_query no_names(s.request(), {});
    const auto id = read_number<std::uint64_t>(s.request().path_value("id"));
    if (!id || *id == 0) throw admin_error("the id of a stream is a number", 404);
    of.revoke(*id);
    co_return admin_answer{202, "{\"ending\":1}\n"};
}

SSE_DECL asio::awaitable<admin_answer> admin_end_some(stream& s, server& of) {
    const admin_selection asked = read_selection(s.request(), false);
    if (!asked.names_some()) {
        throw admin_error("say which, by ?user=, ?topic= or ?follows=; POST drain ends all");
    }
    const stream_list found = co_await select_streams(of, asked);
    // Those that come meanwhile, and those of servers that were not heard of.
    if (asked.topic.empty() && asked.follows.empty() && !asked.here) of.revoke_user(asked.user);
    std::exception_ptr failed;
    for (std::size_t i = 0; i < found.size(); ++i) {
        if (i % admin_step == admin_step - 1) co_await take_turns();
        try {
            of.revoke(found[i].id);
        } catch (const std::system_error&) { failed = std::current_exception(); }
    }
    if (failed) std::rethrow_exception(failed);
    std::string json = "{";
    put_json(json, "ending", found.size());
    co_return admin_answer{202, json + "}\n"};
}

/// The response comes first, so that no window is too short for it.
SSE_DECL asio::awaitable<void> begin_drain(stream& s, server& of, const admin_options& o,
                                           std::chrono::milliseconds window) {
    s.keep_running();
    std::string json = "{";
    put_json(json, "window_ms", static_cast<std::uint64_t>(window.count()));
    json += "}\n";
    try {
        co_await s.respond(202, "application/json", json);
    } catch (const std::system_error& failed) {
        if (!client_gone(failed.code())) throw;
    }
    if (o.drain) {
        o.drain(window);
        co_return;
    }
    asio::co_spawn(s.get_executor(), of.async_drain({.window = window}),
                   [](std::exception_ptr, drain_result) {}); // nobody waits for it
}

SSE_DECL asio::awaitable<void> send_live(stream& s, const server& of) {
    const admin_selection asked = read_selection(s.request(), true);
    for (bool with_streams = true;; with_streams = !with_streams) {
        stream_list found; // the first before the response begins: it may be a refusal
        if (with_streams) found = co_await select_streams(of, asked);
        const measurements now = co_await of.async_measure();
        const std::string status = json_of_status(now, s);
        co_await s.send({.event = "status", .data = status});
        if (s.draining()) co_return;
        if (with_streams) {
            const std::string streams = co_await json_of_streams(found, asked);
            co_await s.send({.event = "streams", .data = streams});
            const std::string topics = co_await json_of_topics(found, asked);
            co_await s.send({.event = "topics", .data = topics});
        }
        co_await s.sleep_for(std::chrono::seconds(1));
    }
}

/// What is wrong with a request becomes its response.
template <class Work> // returns an asio::awaitable<admin_answer>, or of nothing if it responds
asio::awaitable<void> admin_respond(stream& s, const Work& work) {
    admin_answer made;
    try {
        if constexpr (std::is_same_v<std::invoke_result_t<const Work&, stream&>,
                                     asio::awaitable<void>>) {
            co_return co_await work(s);
        } else {
            made = co_await work(s);
        }
    } catch (const admin_error& wrong) {
        made = {wrong.status, admin_refusal(wrong.what())};
    } catch (const std::system_error& failed) {
        const std::error_code code = failed.code();
        if (code == errc::bad_topic || code == errc::bad_key) {
            made = {400, admin_refusal(code.message())};
        } else if (code == errc::bus_down || code == errc::no_room || code == errc::stopped) {
            made = {503, admin_refusal(code.message())};
        } else {
            throw;
        }
    }
    co_await s.respond(made.status, "application/json", made.json);
}

template <class Work>
handler admin_handler(Work work) {
    return [work = std::move(work)](stream& s) { return admin_respond(s, work); };
}

} // namespace detail

SSE_DECL route_group admin(server& of, std::function<asio::awaitable<access>(const request&)> guard,
                           admin_options o) {
    using detail::admin_handler;
    if (!guard) throw std::invalid_argument("sse::admin: the guard is empty, and would let all in");
    group_options rules;
    rules.cors.emplace();
    rules.cors->origin = [](std::string_view) { return false; };
    rules.authorize = std::move(guard);
    rules.max_requests = 32;
    route_group all = of.group(o.prefix, std::move(rules));
    all.route("GET", "/status",
              admin_handler([&of](stream& s) { return detail::admin_status(s, of); }));
    all.route("GET", "/streams", admin_handler([&of](stream& s) {
                  return detail::admin_list(s, of, detail::json_of_streams);
              }));
    all.route("GET", "/topics", admin_handler([&of](stream& s) {
                  return detail::admin_list(s, of, detail::json_of_topics);
              }));
    all.route("GET", "/live", admin_handler([&of](stream& s) { return detail::send_live(s, of); }));
    all.route("DELETE", "/streams",
              admin_handler([&of](stream& s) { return detail::admin_end_some(s, of); }));
    all.route("DELETE", "/streams/{id}",
              admin_handler([&of](stream& s) { return detail::admin_end_one(s, of); }));
    all.route("POST", "/drain", admin_handler([&of, o](stream& s) {
                  const detail::admin_query query(s.request(), {"window"});
                  const std::uint64_t seconds = query.number("window", 5, 0, 24 * 60 * 60);
                  return detail::begin_drain(s, of, o, std::chrono::seconds(seconds));
              }));
    return all;
}

#endif // SSE_BODIES

// >>script ////////////////////////////////////////////////////////////////////////////////////////
// The page script, to be edited here, and the handler that responds with it. Gzipped it has at most
// 4 KiB. Needs >>request, >>stream, >>connection.
// Tests: tests/script.cpp

#if defined(SSE_BODIES)
namespace detail {

inline constexpr std::string_view page_script = R"js(
// sse.js of sse.hpp - one event stream for all tabs of an origin. SPDX-License-Identifier: MIT
//
// One tab holds a lock, reads the stream and posts what it gets to the others. Each knows the last
// id it delivered, drops what comes twice, and reads by itself while it is behind.

// HTML 9.2.6, for text cut anywhere. A block has o: an id of its own, p: the id before it, i: the
// id with it, e: [type, data] if it is an event.
function parser(last, setRetry) {
    let rest = "", cr = false, id = last, own = false, type = "", data = "";
    return text => {
        const blocks = [];
        if (!text) return blocks;
        if (cr && text[0] == "\n") text = text.slice(1);
        cr = text.endsWith("\r");
        const lines = text.split(/\r\n|[\r\n]/);
        lines[0] = rest + lines[0];
        rest = lines.pop();
        for (const line of lines) {
            const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s);
            if (!line) {
                const e = data && [type || "message", data.slice(0, -1)];
                if (own || e) blocks.push({ o: own, p: last, i: id, e });
                last = id;
                type = data = "";
                own = false;
            } else if (field == "data") data += value + "\n";
            else if (field == "event") type = value;
            else if (field == "id" && !value.includes("\0")) id = value, own = true;
            else if (field == "retry" && /^\d+$/.test(value)) setRetry(+value);
        }
        return blocks;
    };
}

export function connect(url, {
    topics = [], headers, credentials = "same-origin", lastEventId = "", heartbeat = 15000,
    shared = true, onmessage, ongap, onstate,
} = {}) {
    const stream = Object.assign(new EventTarget(),
                                 { state: "connecting", lastEventId, reads: false, close });
    const address = new URL(url, document.baseURI);
    for (const topic of topics) address.searchParams.append("topic", topic);
    const name = `sse ${shared} ${credentials} ${address}`;
    const beat = heartbeat || 15000, silence = 2.5 * beat, known = new Set();
    const life = new AbortController(), { signal } = life;
    const never = () => {};
    let locks = shared && globalThis.BroadcastChannel && navigator.locks;
    const channel = locks ? new BroadcastChannel(name) : null;
    let detail = {};            // of the state
    let term = 0;               // of the reading tab: a later one has a higher term
    let reader;                 // of this tab, if it is the one that reads for all
    let chaser, goal;           // reads for this tab alone, up to this id
    let heard = Date.now();     // when the reading tab was heard
    let doubt;                  // timer: it does not answer
    let turn;                   // this tab's request for the lock
    let release = never;

    // What an id after another is for this tab: 0 delivered before, 1 next, 2 too far ahead. Only
    // ids of sse.hpp have an order, within an epoch.
    function place(before, id) {
        const mine = stream.lastEventId;
        if (before == mine || !mine || !id) return 1;
        const [[a, now], [b, then], [c, prior]] = [id, mine, before].map(each => {
            const [, epoch, number] = each.match(/^(\w{8})-(\d+)$/) ?? [];
            return [epoch, epoch && BigInt(number)];
        });
        if (a && a == b) return now <= then ? 0 : c == b && prior <= then ? 1 : 2;
        return known.has(id) ? 0 : before && known.has(before) ? 1 : 2;
    }

    function take({ o: own, p: before, i: id, e: event }) {
        if (signal.aborted) return;
        const where = own ? place(before, id) : place(id, id) && 1;
        if (where == 2) {
            goal = id;
            chaser ??= read();
        }
        if (where == 1) {
            if (own) {
                stream.lastEventId = id;
                known.add(id);
                if (known.size > 500) known.delete(known.values().next().value);
            }
            if (event) stream.dispatchEvent(new MessageEvent(event[0], {
                data: event[1], lastEventId: id, origin: address.origin,
            }));
        }
        if (chaser && place(goal, goal) < 2) stopChaser();
    }

    function stopChaser() {
        chaser?.stop();
        chaser = null;
    }

    function tell(state, more = {}) {
        const { status, error } = detail;
        if (stream.state == state && status == more.status && error == more.error) return;
        stream.state = state;
        detail = more;
        if (reader) post([]);
        queueMicrotask(() => onstate?.(state, more));   // what it throws is the page's
    }

    function finish(more) {
        tell("closed", more);
        close();
    }

    // Reads the stream until it is stopped, for all tabs or as a chaser.
    function read(leads) {
        let last = stream.lastEventId, retry = 3000, failed = 0, refused = 0;
        let attempt, fresh, wake = never, stopped = false;

        // Returns how long to wait at least, negative: not at all.
        async function request() {
            const fields = new Headers(await headers?.(refused));
            fields.set("Accept", "text/event-stream");
            const bytes = new TextEncoder().encode(last);   // all that a field can have
            if (last) fields.set("Last-Event-ID", String.fromCharCode(...bytes));
            const response = await fetch(address, {
                headers: fields, credentials, cache: "no-store", signal: attempt.signal,
            });
            const { status } = response, field = name => response.headers.get(name) ?? "";
            if (status == 200 && /^text\/event-stream\s*(;|$)/i.test(field("Content-Type"))) {
                failed = refused = 0;
                if (leads) tell("open");
                const body = response.body.getReader(), decoder = new TextDecoder();
                const parse = parser(last, time => retry = time);
                for (;;) {
                    const { done, value } = await body.read();
                    if (done || stopped) return 0;
                    // If this tab was stopped, another may read by now.
                    if (heartbeat && Date.now() - fresh > silence) return -1;
                    fresh = Date.now();
                    const blocks = parse(decoder.decode(value, { stream: true }));
                    last = blocks.at(-1)?.i ?? last;
                    if (leads) post(blocks);
                    for (const block of blocks) if (leads || block.o) take(block);
                }
            }
            if (headers && !refused && (status == 401 || status == 403)) {
                refused = status;
                return -1;
            }
            if (status < 500 && ![408, 425, 429].includes(status)) {
                finish({ status });
                return 0;
            }
            failed++;
            if (leads) tell("connecting", { status });
            const after = field("Retry-After");
            return Math.max(after * 1000 || Date.parse(after) - Date.now() || 0, 0);
        }

        async function run() {
            while (!stopped) {
                let least;
                attempt = new AbortController();
                fresh = Date.now();
                try {
                    least = await request();
                    if (leads && stream.state == "open") tell("connecting");
                } catch (error) {
                    if (stopped) return;
                    least = attempt.signal.aborted ? -1 : 0;    // by check()
                    if (!least) failed++;
                    if (leads) tell("connecting", { error });
                } finally {
                    attempt.abort();    // some bodies are not read to their end
                }
                if (stopped || least < 0) continue;
                const pause = Math.max(retry, Math.min(retry * 2 ** failed / 2, 30000));
                const time = Math.max(pause, least) * (1 + Math.random() / 2);
                await new Promise(done => {
                    setTimeout(done, Math.min(time, 864e5));
                    wake = () => least || done();
                });
            }
        }

        run();
        return {
            place: () => last,
            stop() {
                stopped = true;
                attempt.abort();
                wake();
            },
            // Connects again after a silence of more than this, and now rather than later.
            check(most, now) {
                if (heartbeat && Date.now() - fresh > most) attempt.abort();
                if (now) wake();
            },
        };
    }

    function post(blocks) {
        const { status, error } = detail;
        channel?.postMessage({
            t: term, b: blocks, i: reader.place(), s: stream.state,
            d: { status, error: error && String(error) },
        });
    }

    function lead() {
        stopChaser();
        trust();
        term = Math.max(term + 1, Date.now());
        reader = read(stream.reads = true);
        post([]);
    }

    function follow() {
        reader?.stop();
        reader = null;
        stream.reads = false;
        release();
    }

    function seek(steal) {
        turn?.abort();
        const asked = turn = new AbortController();
        const current = () => turn == asked && !signal.aborted;
        locks.request(name, steal ? { steal } : { signal: asked.signal }, () => {
            if (!current()) return;
            lead();
            return new Promise(done => release = done);
        }).then(never, error => error).then(error => {
            if (!current()) return;
            follow();
            if (error && error.name != "AbortError") {  // no locks here
                locks = channel.onmessage = null;
                lead();
            } else {    // another tab has taken it
                seek();
                ask();
            }
        });
    }

    // If the reading tab does not answer, this one reads instead.
    function ask(now) {
        channel.postMessage({ ask: term, now });
        doubt ||= setTimeout(() => {
            doubt = 0;
            if (!reader) seek(true);
        }, Math.min(beat, 3000) * (1 + Math.random()));
    }

    function trust() {
        heard = Date.now();
        clearTimeout(doubt);
        doubt = 0;
    }

    function hear({ data: { ask: asks, now, t, b: blocks, i: id, s: state, d: more } }) {
        if (asks >= 0) {
            if (!reader) return;
            if (asks > term) term = asks + 1;
            if (now) reader.check(1.25 * beat, now);
            return post([]);
        }
        if (t < term || (reader && t == term)) return;
        if (reader) follow();
        term = t;
        trust();
        if (state == "closed") return finish(more);
        tell(state, more);
        blocks.forEach(take);
        take({ o: id, p: id, i: id });
    }

    function look(now) {
        for (const each of [reader, chaser]) each?.check(now ? 1.25 * beat : silence, now);
        if (locks && !turn) seek();
        if (locks && !reader && (now || Date.now() - heard > silence)) ask(now);
    }

    // Leaves the lock to tabs that are not frozen or put away.
    function rest() {
        if (!locks) return;
        turn?.abort();
        turn = null;
        trust();
        follow();
    }

    function close() {
        life.abort();
        clearInterval(pulse);
        stopChaser();
        rest();
        follow();
        channel?.close();
        stream.state = "closed";
    }

    const on = (types, act) => types.forEach(
        type => addEventListener(type, act, { signal, capture: true }));
    on(["freeze", "pagehide"], rest);
    on(["online"], () => look(true));
    on(["resume", "pageshow", "visibilitychange"], () => document.hidden || look(true));
    const pulse = setInterval(look, beat / 2);
    if (onmessage) stream.addEventListener("message", onmessage);
    if (ongap) stream.addEventListener("gap", event => ongap(JSON.parse(event.data), event));
    if (locks) {
        channel.onmessage = hear;
        seek();
        ask();
    } else lead();
    return stream;
}
)js";

/// Whether a response of 304 will do (RFC 9110 13.1.2).
SSE_DECL bool has_etag(const request& r, std::string_view etag) noexcept {
    const std::string_view known = r.header("If-None-Match").value_or("");
    return trim(known) == "*" || known.find(etag) != known.npos;
}

SSE_DECL asio::awaitable<void> respond_script(stream& s) {
    static const std::string etag = [] {
        std::uint64_t hash = 0xcbf29ce484222325; // FNV-1a
        for (const char c : page_script) {
            hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
        }
        return '"' + std::to_string(hash) + '"';
    }();
    s.add_header("ETag", etag);
    connection_of(s).exchange_->response_headers.append("Cache-Control: no-cache\r\n");
    const bool is_known = has_etag(s.request(), etag);
    co_await s.respond(is_known ? 304 : 200, media_type(".js"), is_known ? "" : page_script);
}

} // namespace detail

SSE_DECL handler script() { return detail::respond_script; }

#endif // SSE_BODIES

// >>fetch /////////////////////////////////////////////////////////////////////////////////////////
// What is inside a client: its connection, redirects and reconnections. Uses nothing of the server.
// Needs >>event, >>parser, >>head.
// Tests: tests/client.cpp

namespace detail {

/// An absolute http or https URL, without a fragment.
struct http_url {
    bool secure = false; ///< https
    std::string host;    ///< As in a Host header: an IPv6 address is in brackets.
    std::uint16_t port = 80;
    std::string target; ///< Path and query.

    std::uint16_t usual_port() const noexcept { return secure ? 443 : 80; }
    std::string scheme() const { return secure ? "https:" : "http:"; }
    std::string authority() const {
        return port == usual_port() ? host : host + ":" + std::to_string(port);
    }
    std::string text() const { return scheme() + "//" + authority() + target; }
    /// For messages: queries may hold secrets.
    std::string without_query() const { return text().substr(0, text().find('?')); }
    std::string host_to_resolve() const {
        return host.front() == '[' ? host.substr(1, host.size() - 2) : host;
    }
    bool same_origin(const http_url& other) const noexcept {
        return equal_ignoring_case(host, other.host) && port == other.port &&
               secure == other.secure;
    }
};

/// Parses such a URL; drops a fragment. Throws std::invalid_argument if the text is not one.
inline http_url read_http_url(std::string_view text) {
    const auto check = [&](bool valid, const char* what) {
        if (valid) return;
        std::string shown(text.substr(0, text.find('?'))); // a query may hold secrets,
        if (const auto at = shown.rfind('@'); at != shown.npos) shown.replace(0, at, "..."); // here
        throw std::invalid_argument("sse::client: the URL '" + shown + "' " + what);
    };
    const auto visible = [](char c) { return c > ' ' && c < 0x7f; };
    check(std::all_of(text.begin(), text.end(), visible),
          "has a character that must be percent-encoded");
    http_url url;
    url.secure = equal_ignoring_case(text.substr(0, 8), "https://");
#if !defined(SSE_ENABLE_TLS)
    check(!url.secure, "needs TLS: define SSE_ENABLE_TLS, and link with -lssl -lcrypto");
#endif
    check(url.secure || equal_ignoring_case(text.substr(0, 7), "http://"),
          "must begin with http:// or https:// and be absolute");
    const auto rest = text.substr(0, text.find('#')).substr(url.secure ? 8 : 7);
    const std::size_t slash = std::min(rest.find_first_of("/?"), rest.size());
    const auto authority = rest.substr(0, slash);
    check(authority.find('@') == authority.npos,
          "contains a user name; give it as a header, Authorization: Basic");
    const auto [host, colon_port] = split_port(authority);
    check(is_host_name(host) && host.find('%') == host.npos, "has no valid host");
    const auto digits = colon_port.substr(std::min<std::size_t>(1, colon_port.size()));
    url.port = digits.empty() ? url.usual_port() : read_number<std::uint16_t>(digits).value_or(0);
    check(url.port > 0, "has no valid port");
    url.host = host;
    url.target = rest.substr(slash);
    if (!url.target.starts_with('/')) url.target.insert(0, "/");
    return url;
}

/// Removes the segments "." and ".." from a path (RFC 3986 5.2.4).
inline std::string remove_dot_segments(std::string_view path) {
    std::string out;
    while (!path.empty()) { // begins with a slash
        const std::size_t end = std::min(path.find('/', 1), path.size());
        const auto segment = path.substr(0, end);
        const bool last = end == path.size();
        path.remove_prefix(end);
        if (segment == "/..") out.erase(std::min(out.rfind('/'), out.size()));
        if (segment != "/." && segment != "/..") {
            out.append(segment);
        } else if (last) {
            out += '/';
        }
    }
    return out;
}

/// Resolves the value of a Location header against the URL that was requested (RFC 3986 5.2).
inline std::string resolve_reference(const http_url& base, std::string_view reference) {
    reference = reference.substr(0, reference.find('#'));
    const std::size_t colon = reference.find(':');
    if (colon < reference.find_first_of("/?")) return std::string(reference);
    if (reference.starts_with("//")) return base.scheme() + std::string(reference);
    const auto base_path = std::string_view(base.target).substr(0, base.target.find('?'));
    const std::size_t question = std::min(reference.find('?'), reference.size());
    std::string path(reference.substr(0, question));
    auto query = reference.substr(question);
    if (path.empty()) {
        path = base_path;
        if (query.empty()) query = std::string_view(base.target).substr(base_path.size());
    } else if (!path.starts_with('/')) {
        path.insert(0, base_path.substr(0, base_path.rfind('/') + 1));
    }
    return base.scheme() + "//" + base.authority() + remove_dot_segments(path) + std::string(query);
}

/// Percent-encodes what a URL must not contain: servers put spaces and UTF-8 there.
inline std::string escape_url(std::string_view text) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    std::string out;
    for (const char c : text) {
        const auto code = static_cast<unsigned char>(c);
        if (code > ' ' && code < 0x7f) {
            out += c;
        } else {
            out.append(1, '%').append(1, digits[code >> 4]).append(1, digits[code & 15]);
        }
    }
    return out;
}

/// The head of a response (RFC 9112 4), as head_parser delimits it, and how the body is framed.
struct received_head {
    int status = 0;
    field_list fields;
    framing_fields framing;
    std::string unknown_coding; ///< A Content-Encoding or Transfer-Encoding not asked for.

    std::optional<std::string_view> header(std::string_view name) const noexcept {
        return find_value(fields, name);
    }
    /// Type and subtype of the Content-Type; empty without a valid one.
    std::string media_type() const;
    /// How long the server asks to wait before the next request; 0 if it does not.
    std::chrono::milliseconds retry_after() const noexcept;
    /// Returns false if it is not a head of HTTP/1.x, or one that two parties could read
    /// differently.
    bool parse(std::string_view head);
    /// Nothing else says where the body ends (RFC 9112 6.3).
    bool ends_with_connection() const noexcept { return !framing.chunked && !framing.length; }
    body_decoder decoder() const noexcept;

private:
    bool parse_status_line(std::string_view line);

    std::shared_ptr<const std::string> text_; // of the fields
    int minor_version_ = 1;
};

/// All Content-Type fields form one list, whose last valid element counts; "*/*" is not valid
/// (Fetch standard 3.4, "extract a MIME type").
inline std::string received_head::media_type() const {
    std::string list;
    for_each_value(fields, "Content-Type", [&](std::string_view value) {
        list.append(list.empty() ? "" : ",").append(value);
    });
    std::string found;
    for (std::size_t at = 0; at < list.size();) {
        std::size_t end = at;
        for (bool quoted = false; end < list.size() && (quoted || list[end] != ','); ++end) {
            if (quoted && list[end] == '\\') {
                ++end;
            } else if (list[end] == '"') {
                quoted = !quoted;
            }
        }
        end = std::min(end, list.size());
        const auto element = std::string_view(list).substr(at, end - at);
        const auto type = trim(element.substr(0, element.find(';')));
        const std::size_t slash = std::min(type.find('/'), type.size());
        const bool valid = is_token(type.substr(0, slash)) && slash < type.size() &&
                           is_token(type.substr(slash + 1));
        if (valid && type != "*/*") found = type;
        at = end + 1;
    }
    return found;
}

/// Reads a date in any of the three formats of HTTP (RFC 9110 5.6.7).
inline std::optional<std::chrono::sys_seconds> read_http_date(std::string_view text) noexcept {
    constexpr std::string_view months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    std::array<unsigned, 5> numbers{}; // day, year, hour, minute, second; or year last
    std::size_t count = 0;
    unsigned month = 0;
    bool year_last = true;
    while (!text.empty()) {
        const std::size_t size = std::min(text.find_first_of(" ,:-"), text.size());
        const auto word = text.substr(0, size);
        const bool before_colon = size < text.size() && text[size] == ':';
        text.remove_prefix(std::min(size + 1, text.size()));
        const auto number = read_number<unsigned>(word);
        if (number && word.size() <= 4) {
            if (count == numbers.size()) return std::nullopt;
            if (count == 1) year_last = before_colon; // "Nov 6 08:49:37 1994": this is the hour
            numbers[count++] = *number;
        } else if (word.size() == 3) {
            const std::size_t at = months.find(word);
            if (at != months.npos && at % 3 == 0) month = static_cast<unsigned>(at / 3 + 1);
        }
    }
    if (count != numbers.size() || month == 0) return std::nullopt;
    if (year_last) std::rotate(numbers.begin() + 1, numbers.end() - 1, numbers.end());
    auto [day, year, hour, minute, second] = numbers;
    if (year < 100) year += year < 70 ? 2000 : 1900;
    const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(year)),
                                           std::chrono::month(month), std::chrono::day(day)};
    if (day > 31 || !date.ok() || hour > 23 || minute > 59 || second > 60) return std::nullopt;
    return std::chrono::sys_days(date) + std::chrono::hours(hour) + std::chrono::minutes(minute) +
           std::chrono::seconds(second);
}

/// Seconds or a date (RFC 9110 10.2.3). A date counts from the Date of the response, so that a
/// difference between the two clocks does not matter.
inline std::chrono::milliseconds received_head::retry_after() const noexcept {
    using std::chrono::seconds;
    constexpr seconds most{1'000'000'000};
    const auto value = header("Retry-After").value_or("");
    if (is_digits(value)) {
        const auto count = read_number<std::uint32_t>(value);
        return count ? std::min(seconds(*count), most) : most;
    }
    const auto until = read_http_date(value);
    if (!until) return seconds(0);
    const auto now = std::chrono::floor<seconds>(std::chrono::system_clock::now());
    const auto from = read_http_date(header("Date").value_or("")).value_or(now);
    return std::clamp<seconds>(*until - from, seconds(0), most);
}

/// Joins each folded line to the one before it (RFC 9112 5.2).
inline std::string unfolded(std::string_view lines) {
    std::string joined;
    while (!lines.empty()) {
        auto line = take_line(lines);
        if (!joined.empty() && line.find_first_of(" \t") == 0) {
            joined.resize(joined.find_last_not_of(" \t\r\n") + 1);
            joined += ' ';
            line = trim(line);
        }
        joined.append(line).append("\r\n");
    }
    return joined;
}

inline bool received_head::parse(std::string_view head) {
    *this = {};
    if (!parse_status_line(take_line(head))) return false;
    text_ = std::make_shared<const std::string>(unfolded(head));
    if (read_fields(*text_, fields, fields.max_size()).status != 0) return false;
    const auto refusal =
        framing.read(fields, minor_version_, {.lists = true, .other_codings = true});
    const request::field* unknown = framing.other_coding;
    for (const request::field& f : fields) {
        if (!equal_ignoring_case(f.name, "Content-Encoding")) continue;
        for_each_element(f.value, [&](std::string_view coding) {
            if (!equal_ignoring_case(coding, "identity")) unknown = &f;
        });
    }
    if (unknown) unknown_coding.append(unknown->name).append(": ").append(unknown->value);
    return refusal.status == 0;
}

inline bool received_head::parse_status_line(std::string_view line) {
    const auto digits = line.substr(std::min<std::size_t>(line.size(), 9), 3);
    const auto code = read_number<std::uint16_t>(digits);
    if (!line.starts_with("HTTP/1.") || line.size() < 12 || !is_digits(line.substr(7, 1)) ||
        line[8] != ' ' || code.value_or(0) < 100) {
        return false;
    }
    if (line.size() > 12 && line[12] != ' ') return false; // some omit it if no reason follows
    minor_version_ = line[7] == '0' ? 0 : 1;
    status = *code;
    return true;
}

inline body_decoder received_head::decoder() const noexcept {
    // These have no body, whatever their Content-Length says.
    if (status < 200 || status == 204 || status == 304) return body_decoder::of_size(0);
    if (framing.chunked) return body_decoder::of_chunks(body_decoder::endless);
    return body_decoder::of_size(framing.length.value_or(body_decoder::endless));
}

/// Looks up the addresses of a host name by the system's resolver, which cannot be interrupted: on
/// a thread of its own, so that a slow name delays no other. Asio's resolver has one thread for all
/// names of a context, and its destructor waits for that thread.
///
/// Callers that need a name which is already being resolved share the result. Nothing waits for a
/// thread: neither io_context::run() nor a destructor.
class name_lookup {
public:
    using addresses = std::vector<asio::ip::address>;
    using function = addresses (*)(const std::string& host, asio::error_code& failed);
    static constexpr std::size_t max_threads = 16; // per process; further names wait for one

    explicit name_lookup(std::string host) : host_(std::move(host)) {}

    /// The running lookup of this host, or a new one.
    static std::shared_ptr<name_lookup> of(const std::string& host);
    /// The addresses if no resolver is needed, for an address or a name of this machine (RFC 6761
    /// 6.3); otherwise empty.
    static addresses known(const std::string& host);
    static addresses ask_system(const std::string& host, asio::error_code& failed);
    static inline std::atomic<function> ask{&ask_system}; // tests replace it

    const std::string& host() const noexcept { return host_; }
    /// Posts `that` to `where` when the lookup ends. Returns false if it has already ended.
    bool notify(const void* who, const asio::any_io_executor& where, std::function<void()> that);
    /// Afterwards, nothing that `who` passed to notify() is used.
    void forget(const void* who);
    /// The error code of the lookup, and its addresses in `found`; nullopt until it has ended.
    std::optional<asio::error_code> result(addresses& found) const;

private:
    struct table {
        std::mutex mutex;
        std::size_t threads = 0;
        std::deque<std::shared_ptr<name_lookup>> waiting;
        std::map<std::string, std::shared_ptr<name_lookup>> running; // including waiting ones
    };
    struct waiter {
        const void* who;
        asio::any_io_executor where;
        std::function<void()> that;
    };

    static void work(const std::shared_ptr<table>& all);
    void finish(const asio::error_code& failed, addresses found) noexcept;

    const std::string host_;
    mutable std::mutex mutex_; // guards what follows
    bool done_ = false;
    asio::error_code failed_;
    addresses found_;
    std::vector<waiter> waiters_;
};

/// What a client does.
enum class client_phase : std::uint8_t {
    asking,    ///< Connects, sends a request, reads the head of its response; follows redirects.
    streaming, ///< Reads an event stream.
    ended,     ///< A stream has ended, but its last events may not have been returned.
    failed,    ///< No stream could be opened.
    pausing,   ///< Waits before it asks again.
    over,      ///< It will not ask again.
    closed,    ///< The same, by the program or with its context: nothing is returned any more.
};

constexpr bool may_follow(client_phase before, client_phase after) noexcept {
    using enum client_phase;
    switch (after) {
    case asking: return before == pausing;
    case streaming:
    case failed: return before == asking;
    case ended: return before == streaming;
    case pausing: return before == ended || before == failed;
    case over: return before != closed;
    case closed: break;
    }
    return true;
}

class client_core;

/// Before a context is destroyed, takes from its clients what belongs to it, so that a client may
/// be destroyed after its io_context.
class client_registry final : public asio::execution_context::service {
public:
    using key_type = client_registry;
    static inline asio::execution_context::id id;

    explicit client_registry(asio::execution_context& context) : service(context) {}
    void add(client_core* one);
    void remove(client_core* one);

private:
    SSE_DECL void shutdown() override;

    std::mutex mutex_;
    std::vector<client_core*> clients_;
};

/// Shared state of a client. Operations that it has begun own it too, so it may outlive the client;
/// late completions are recognised by their operation number.
///
/// The work up to the next event is a coroutine of its own, step(), so that a next() can be given
/// up in any phase without losing progress. All its waits are in one place, wait(), on one timer:
/// for an operation, which ends the wait by cancelling the timer; for a deadline, which is the
/// timer's own; or for close().
class client_core : public std::enable_shared_from_this<client_core> {
public:
    using clock = std::chrono::steady_clock;

    client_core(const asio::any_io_executor& where, const std::string& url, client_options o);
    ~client_core();
    client_core(const client_core&) = delete;
    client_core& operator=(const client_core&) = delete;

    static asio::awaitable<std::optional<event>> next(std::shared_ptr<client_core> self,
                                                      clock::time_point until);
    void close();
    /// Called when the context is destroyed.
    void abandon() noexcept;
    static clock::time_point from_now(std::chrono::milliseconds time) noexcept;

    bool over() const noexcept {
        return phase_ == phase::closed || (is_over() && !working_ && !failure_);
    }

    const received_head& head() const noexcept { return head_; }
    const std::string& error_body() const noexcept { return error_body_; }
    const std::string& last_event_id() const noexcept { return parser_.last_event_id(); }
    const std::string& url() const noexcept { return url_; }
    std::uint64_t connections() const noexcept { return connections_; }

private:
    using phase = client_phase;

    /// What belongs to the context, except the sockets.
    struct timers {
        explicit timers(const asio::any_io_executor& where) : step(where), caller(where) {}
        asio::steady_timer step;
        asio::steady_timer caller; // of next()
    };

    /// One connection, kept alive by its operations until they have ended.
    struct link {
        explicit link(const asio::any_io_executor& where) : socket(where) {}
        asio::ip::tcp::socket socket;
#if defined(SSE_ENABLE_TLS)
        std::unique_ptr<tls_session> tls;
#endif
        std::optional<asio::error_code> connected; // the result, once known
        clock::time_point deadline;                // to connect
        std::string request;
        std::array<char, 16 * 1024> input;
    };

    /// What one attempt requests; redirects change it.
    struct target {
        http_url url;
        std::string method;
        bool with_body = true;
        bool foreign = false; // a redirect has led to another origin
    };

    /// The handler of all operations except connects.
    struct on_end {
        std::shared_ptr<client_core> core;
        std::shared_ptr<link> used;
        std::uint64_t operation;
        void operator()(const asio::error_code& failed, std::size_t size = 0) const {
            core->ended(operation, failed, size);
        }
    };

    /// The handler of a connect.
    struct on_connect {
        std::shared_ptr<client_core> core;
        std::shared_ptr<link> used;
        std::uint64_t operation;
        void operator()(const asio::error_code& failed) const {
            used->connected = failed;
            core->ended(operation, failed, 0);
        }
    };

    /// Refuses a second next() while one is waiting.
    class turn {
    public:
        explicit turn(client_core& core) : core_(core) {
            if (core.busy_) {
                throw std::logic_error("sse::client::next: another call is still waiting; await it "
                                       "first, or let one coroutine read");
            }
            core.busy_ = true;
        }
        ~turn() { core_.busy_ = false; }
        turn(const turn&) = delete;
        turn& operator=(const turn&) = delete;

    private:
        client_core& core_;
    };

    void enter(phase next) noexcept {
        assert(may_follow(phase_, next));
        phase_ = next;
    }
    bool is_over() const noexcept { return phase_ == phase::over || phase_ == phase::closed; }

    static client_options checked(client_options o);
    static void check_header(std::string_view name, std::string_view value);
    static bool fits_in_field(std::string_view id) noexcept;

    // Waiting.
    on_end begin() noexcept;
    void ended(std::uint64_t operation, const asio::error_code& failed, std::size_t size);
    asio::awaitable<std::error_code> wait(clock::time_point until);
    void disconnect() noexcept;

    // The work.
    void start();
    static asio::awaitable<std::optional<event>> step(std::shared_ptr<client_core> self);
    std::optional<event> take_event();
    void finished(std::exception_ptr failed, std::optional<event> found);

    // One response.
    asio::awaitable<std::error_code> open();
    asio::awaitable<void> renew(int status);
    asio::awaitable<std::error_code> ask(const target& what);
    asio::awaitable<std::error_code> resolve(const http_url& url);
    asio::awaitable<std::error_code> connect();
    void order_endpoints();
    void note_worked(const asio::ip::tcp::endpoint& where);
    asio::awaitable<std::error_code> send_request(clock::time_point until);
    asio::awaitable<std::error_code> read_head(clock::time_point until);
    asio::awaitable<std::error_code> read(clock::time_point until);
    bool is_truncated() const noexcept;
#if defined(SSE_ENABLE_TLS)
    SSL_CTX& context();
    asio::awaitable<std::error_code> shake_hands(const http_url& url);
    asio::awaitable<std::error_code> send_securely(clock::time_point until);
    asio::awaitable<std::error_code> read_securely(clock::time_point until);
    asio::awaitable<std::error_code> wait_for_input(clock::time_point until);
    std::error_code explain(const asio::error_code& failed);
#endif
    asio::awaitable<void> read_error_body();
    std::string request_text(const target& what) const;
    bool is_redirect() const noexcept;
    bool is_event_stream() const noexcept;
    void redirect(target& what) const;

    // Its body.
    asio::awaitable<void> receive();
    void take_stream();
    std::optional<std::error_code> decode_body();
    void end_attempt(phase next, std::error_code why) noexcept {
        enter(next);
        end_ = why;
    }
    void finish();
    bool may_reconnect() const;
    void prepare_to_resume();
    std::chrono::milliseconds next_pause();
    [[noreturn]] void fail(std::error_code why, const std::string& detail = {}) const;

    client_options options_;
#if defined(SSE_ENABLE_TLS)
    tls_context context_; // once it is needed
#endif
    bool reconnect_;
    http_url origin_;                     // only this one gets the secrets
    target target_;                       // where an attempt begins; permanent redirects change it
    std::string url_;                     // of the last response
    std::optional<timers> timers_;        // nullopt: the context is gone
    client_registry* registry_ = nullptr; // owned by the context
    std::vector<std::pair<std::string, std::string>>
        connection_headers_;              // headers of this connection
    std::shared_ptr<name_lookup> lookup_; // until its result is taken
    std::vector<asio::ip::tcp::endpoint> endpoints_;
    std::vector<asio::ip::tcp::endpoint> preferred_endpoints_; // the most recent first
    std::vector<std::shared_ptr<link>> connecting_;            // connecting
    std::shared_ptr<link> link_;

    std::uint64_t operation_ = 0;            // number of the one waited for
    std::optional<asio::error_code> result_; // of that, once it has ended
    std::size_t size_ = 0;

    std::string input_; // received, not yet parsed
    received_head head_;
    std::optional<body_decoder> body_;
    std::string error_body_;
    event_parser parser_;

    phase phase_ = phase::asking;
    std::error_code end_;        // in phase ended and failed: why
    bool busy_ = false;          // a next() is waiting
    bool working_ = false;       // a step() is running
    std::optional<event> found_; // by the last step, not yet returned
    std::exception_ptr failure_; // the same
    std::uint64_t connections_ = 0;
    std::size_t failures_ = 0;                        // in a row
    std::string detail_;                              // of the last failure, for its message
    bool had_event_ = false;                          // the stream has delivered an event
    clock::time_point opened_;                        // of the stream
    std::chrono::milliseconds pause_{0};              // the last one; initially options_.retry
    std::chrono::milliseconds retry_after_{0};        // the minimum that the server asked for
    std::minstd_rand random_{std::random_device()()}; // spreads reconnects; not for secrets
};

} // namespace detail

#if defined(SSE_BODIES)

namespace detail {

SSE_DECL client_core::client_core(const asio::any_io_executor& where, const std::string& url,
                                  client_options o)
    : options_(checked(std::move(o))),
      reconnect_(options_.reconnect.value_or(options_.method == "GET")),
      origin_(read_http_url(url)), target_{origin_, options_.method, true, false},
      url_(origin_.text()), timers_(where), parser_({options_.max_event}, options_.last_event_id),
      pause_(options_.retry) {
#if defined(SSE_ENABLE_TLS)
    const client_tls_options& tls = options_.tls;
    if (origin_.secure || !tls.ca.empty() || !tls.certificate.empty()) context();
#endif
    if (fits_in_field(last_event_id())) prepare_to_resume();
    registry_ = &asio::use_service<client_registry>(asio::query(where, asio::execution::context));
    registry_->add(this);
}

SSE_DECL client_core::~client_core() {
    if (timers_) registry_->remove(this);
}

SSE_DECL client_options client_core::checked(client_options o) {
    const auto need = [](bool valid, const std::string& what) {
        if (!valid) throw std::invalid_argument("sse::client_options::" + what);
    };
    need(is_token(o.method), "method: '" + o.method + "' is not a method");
    need(o.method != "HEAD" && o.method != "CONNECT",
         "method: the response to " + o.method + " has no body; ask by GET or POST");
    need(o.resume_method.empty() || is_token(o.resume_method),
         "resume_method: '" + o.resume_method + "' is not a method");
    need(o.resume_method != "HEAD" && o.resume_method != "CONNECT",
         "resume_method: the response to " + o.resume_method + " has no body; resume by GET");
    for (const auto& [name, value] : o.headers) check_header(name, value);
    need(o.last_event_id.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos,
         "last_event_id: contains CR, LF or NUL, which no id can");
    const std::pair<const char*, std::chrono::milliseconds> times[] = {
        {"retry", o.retry},
        {"max_retry", o.max_retry},
        {"max_retry_after", o.max_retry_after},
        {"connect_timeout", o.connect_timeout},
        {"head_timeout", o.head_timeout},
        {"silence_timeout", o.silence_timeout}};
    for (const auto& [name, time] : times) {
        need(time.count() >= 0 && time <= event_parser::max_retry,
             std::string(name) + ": must be from 0 to 30 years");
    }
    need(o.jitter >= 0 && o.jitter <= 10, "jitter: must be from 0 to 10");
    for (const int status : o.retry_statuses) {
        need(status >= 400 && status <= 599,
             "retry_statuses: " + std::to_string(status) + " is not from 400 to 599");
    }
    need(o.max_event > 0, "max_event: 0 lets no event through");
    need(o.max_head_bytes > 0, "max_head_bytes: 0 lets no response through");
    return o;
}

/// Whether a header field carries the id unchanged. A server may give any id without CR, LF and
/// NUL; if one made the next request fail, the client would be over for good.
SSE_DECL bool client_core::fits_in_field(std::string_view id) noexcept {
    constexpr std::size_t most = 4 * 1024; // many servers accept heads of 8 KiB
    return !id.empty() && id.size() <= most && trim(id) == id && !has_control(id);
}

/// Without this check, a value with a line break could add headers, or a whole request.
SSE_DECL void client_core::check_header(std::string_view name, std::string_view value) {
    const auto need = [&](bool valid, const char* what) {
        if (valid) return;
        throw std::invalid_argument("sse::client_options::headers: '" + std::string(name) + "' " +
                                    what);
    };
    need(is_token(name), "is not a header name; use only letters, digits and '-'");
    need(!has_control(value),
         "has a control character in its value, which could add headers; remove it");
    constexpr std::string_view own[] = {"Host",
                                        "Content-Length",
                                        "Transfer-Encoding",
                                        "Cache-Control",
                                        "Connection",
                                        "Upgrade",
                                        "Keep-Alive",
                                        "TE",
                                        "Accept-Encoding",
                                        "Expect",
                                        "Trailer"};
    need(std::none_of(std::begin(own), std::end(own),
                      [&](std::string_view o) { return equal_ignoring_case(o, name); }),
         "is the client's own; leave it out");
    need(!equal_ignoring_case(name, "Last-Event-ID"),
         "is the client's own; give client_options::last_event_id");
}

SSE_DECL asio::awaitable<std::optional<event>> client_core::next(std::shared_ptr<client_core> self,
                                                                 clock::time_point until) {
    const turn only_one(*self);
    const bool given = self->found_ || self->failure_; // by a call that was given up
    if (!given && !self->working_ && !self->is_over()) self->start();
    asio::error_code woken;
    while (self->working_ && self->phase_ != phase::closed) {
        self->timers_->caller.expires_at(until);
        co_await self->timers_->caller.async_wait(asio::redirect_error(asio::use_awaitable, woken));
        if (!self->working_ || self->phase_ == phase::closed) break;
        if (!woken) co_return std::nullopt; // timed out; the work continues
        const auto state = co_await asio::this_coro::cancellation_state;
        const bool terminal = (state.cancelled() & asio::cancellation_type::terminal) !=
                              asio::cancellation_type::none;
        if (terminal) self->close(); // nobody will ask for its result
        throw std::system_error(asio::error::operation_aborted, "sse::client");
    }
    if (const auto failed = std::exchange(self->failure_, nullptr)) std::rethrow_exception(failed);
    co_return std::exchange(self->found_, std::nullopt);
}

/// Works until there is an event or the client is over. An event that is already here needs no
/// coroutine.
SSE_DECL void client_core::start() {
    working_ = true;
    std::exception_ptr failed;
    std::optional<event> found;
    try {
        found = take_event();
    } catch (...) { failed = std::current_exception(); }
    if (found || failed) {
        finished(failed, std::move(found));
        return;
    }
    asio::co_spawn(timers_->step.get_executor(), step(shared_from_this()),
                   [self = shared_from_this()](std::exception_ptr why, std::optional<event> one) {
                       self->finished(std::move(why), std::move(one));
                   });
}

SSE_DECL void client_core::finished(std::exception_ptr failed, std::optional<event> found) {
    working_ = false;
    if (phase_ == phase::closed) return;
    if (failed) {
        enter(phase::over);
        disconnect();
    }
    failure_ = std::move(failed);
    found_ = std::move(found);
    timers_->caller.cancel();
}

SSE_DECL std::optional<event> client_core::take_event() {
    if (phase_ != phase::streaming && phase_ != phase::ended) return std::nullopt;
    std::optional<event> found = parser_.next();
    if (found) had_event_ = true;
    return found;
}

SSE_DECL asio::awaitable<std::optional<event>>
client_core::step(std::shared_ptr<client_core> self) {
    while (!self->is_over()) {
        std::optional<event> found = self->take_event();
        if (found) co_return std::move(found);
        if (self->phase_ == phase::ended || self->phase_ == phase::failed) {
            self->finish();
        } else if (self->phase_ == phase::streaming) {
            co_await self->receive();
        } else {
            const std::error_code failed = co_await self->open();
            if (failed && !self->is_over()) self->end_attempt(phase::failed, failed);
        }
    }
    co_return std::nullopt;
}

SSE_DECL void client_core::close() {
    enter(phase::closed);
    found_.reset();
    failure_ = nullptr;
    disconnect();
    if (!timers_) return;
    timers_->step.cancel();
    timers_->caller.cancel();
}

/// The context itself destroys coroutines and handlers.
SSE_DECL void client_core::abandon() noexcept {
    const auto self = shared_from_this(); // a waiter may hold the last reference
    enter(phase::closed);
    disconnect();
    timers_.reset();
}

/// Ends everything that belongs to the connection, including what is still under way.
SSE_DECL void client_core::disconnect() noexcept {
    ++operation_;
    if (lookup_) lookup_->forget(this);
    asio::error_code ignored;
    for (const auto& one : connecting_) one->socket.close(ignored);
    connecting_.clear();
#if defined(SSE_ENABLE_TLS)
    if (link_ && link_->tls) link_->tls->send_end();
#endif
    if (link_) link_->socket.close(ignored);
    link_.reset();
    input_.clear();
}

SSE_DECL client_core::on_end client_core::begin() noexcept {
    result_.reset();
    return {shared_from_this(), link_, ++operation_};
}

SSE_DECL void client_core::ended(std::uint64_t operation, const asio::error_code& failed,
                                 std::size_t size) {
    if (operation != operation_) return;
    result_ = failed;
    size_ = size;
    timers_->step.cancel();
}

/// Waits until the operation has ended and returns its result, or errc::timed_out at this time.
SSE_DECL asio::awaitable<std::error_code> client_core::wait(clock::time_point until) {
    asio::error_code woken;
    timers_->step.expires_at(until);
    co_await timers_->step.async_wait(asio::redirect_error(asio::use_awaitable, woken));
    if (is_over()) co_return make_error_code(errc::closed);
    if (result_) co_return *result_;
    co_return make_error_code(errc::timed_out);
}

SSE_DECL client_core::clock::time_point
client_core::from_now(std::chrono::milliseconds time) noexcept {
    return time.count() == 0 ? clock::time_point::max() : clock::now() + time;
}

// ---- names ----

SSE_DECL std::shared_ptr<name_lookup> name_lookup::of(const std::string& host) {
    // Threads may outlive main() and its statics, so each shares the table.
    static const auto all = std::make_shared<table>();
    const std::lock_guard lock(all->mutex);
    if (const auto at = all->running.find(host); at != all->running.end()) return at->second;
    const auto lookup = std::make_shared<name_lookup>(host);
    all->running.emplace(host, lookup);
    all->waiting.push_back(lookup);
    if (all->threads == max_threads) return lookup;
    try {
        const asio::detail::signal_blocker blocked; // this thread handles no signals
        std::thread([shared = all] { work(shared); }).detach();
        ++all->threads;
    } catch (const std::system_error& e) {
        if (all->threads > 0) return lookup; // one of them will do it
        all->waiting.clear();
        all->running.clear();
        lookup->finish(e.code(), {});
    }
    return lookup;
}

SSE_DECL void name_lookup::work(const std::shared_ptr<table>& all) {
    for (;;) {
        std::unique_lock lock(all->mutex);
        if (all->waiting.empty()) {
            --all->threads;
            return;
        }
        const auto one = std::move(all->waiting.front());
        all->waiting.pop_front();
        lock.unlock();
        asio::error_code failed;
        addresses found;
        try {
            found = ask.load()(one->host_, failed);
            if (found.empty() && !failed) failed = asio::error::host_not_found;
        } catch (const std::system_error& e) { failed = e.code(); } catch (...) {
            failed = asio::error::no_memory;
        }
        lock.lock();
        all->running.erase(one->host_); // later callers start a new one
        lock.unlock();
        one->finish(failed, std::move(found));
    }
}

SSE_DECL name_lookup::addresses name_lookup::ask_system(const std::string& host,
                                                        asio::error_code& failed) {
    asio::io_context io(1);
    addresses found;
    for (const auto& entry : asio::ip::tcp::resolver(io).resolve(host, "80", failed)) {
        found.push_back(entry.endpoint().address());
    }
    return found;
}

SSE_DECL name_lookup::addresses name_lookup::known(const std::string& host) {
    asio::error_code is_name;
    const auto numeric = asio::ip::make_address(host, is_name);
    if (!is_name) return {numeric};
    std::string name = host;
    if (name.ends_with('.')) name.pop_back();
    constexpr std::string_view local = "localhost";
    const std::size_t front = name.size() - std::min(name.size(), local.size());
    if (!equal_ignoring_case(std::string_view(name).substr(front), local) ||
        (front > 0 && name[front - 1] != '.')) {
        return {};
    }
    return {asio::ip::address_v6::loopback(), asio::ip::address_v4::loopback()};
}

SSE_DECL bool name_lookup::notify(const void* who, const asio::any_io_executor& where,
                                  std::function<void()> that) {
    const std::lock_guard lock(mutex_);
    if (!done_) waiters_.push_back({who, where, std::move(that)});
    return !done_;
}

SSE_DECL void name_lookup::forget(const void* who) {
    std::vector<waiter> gone; // destroyed unlocked: it may lead back here
    const std::lock_guard lock(mutex_);
    for (auto& one : waiters_) {
        if (one.who == who) gone.push_back(std::move(one));
    }
    waiters_.erase(std::remove_if(waiters_.begin(), waiters_.end(),
                                  [&](const waiter& one) { return one.who == who; }),
                   waiters_.end());
}

SSE_DECL std::optional<asio::error_code> name_lookup::result(addresses& found) const {
    const std::lock_guard lock(mutex_);
    if (!done_) return std::nullopt;
    found = found_;
    return failed_;
}

SSE_DECL void name_lookup::finish(const asio::error_code& failed, addresses found) noexcept {
    const std::lock_guard lock(mutex_); // held: a context being destroyed waits in forget()
    done_ = true;
    failed_ = failed;
    found_ = std::move(found);
    for (auto& one : waiters_) {
        try {
            asio::post(one.where, std::move(one.that));
        } catch (...) {} // out of memory: the waiter times out
    }
    waiters_.clear();
}

SSE_DECL void client_registry::add(client_core* one) {
    const std::lock_guard lock(mutex_);
    clients_.push_back(one);
}

SSE_DECL void client_registry::remove(client_core* one) {
    const std::lock_guard lock(mutex_);
    clients_.erase(std::remove(clients_.begin(), clients_.end(), one), clients_.end());
}

SSE_DECL void client_registry::shutdown() {
    for (;;) {
        std::unique_lock lock(mutex_);
        if (clients_.empty()) return;
        client_core* const one = clients_.back();
        clients_.pop_back();
        lock.unlock();
        one->abandon();
    }
}

// ---- one response ----

/// Connects, sends the request, follows redirects. Returns an error that is worth another attempt;
/// throws any other.
SSE_DECL asio::awaitable<std::error_code> client_core::open() {
    if (phase_ == phase::pausing) {
        begin(); // no operation that could end the wait early
        const std::error_code slept = co_await wait(clock::now() + pause_);
        detail_.clear();
        retry_after_ = {};
        if (slept != errc::timed_out) co_return slept; // closed
        enter(phase::asking);
    }
    co_await renew(0);
    target what = target_;
    bool permanent = true;
    bool renewed = !options_.fresh_headers;
    for (std::size_t redirects = 0;;) {
        const std::error_code failed = is_over() ? errc::closed : co_await ask(what);
        if (failed) co_return failed;
        if (head_.status == 401 && !std::exchange(renewed, true)) {
            co_await renew(401);
            continue;
        }
        if (!is_redirect()) break;
        if (redirects++ == options_.max_redirects) fail(errc::too_many_redirects);
        redirect(what);
        permanent = permanent && (head_.status == 301 || head_.status == 308);
        if (permanent) target_ = what;
    }
    if (head_.status == 204) {
        enter(phase::over);
        disconnect();
        co_return std::error_code();
    }
    const bool is_stream = head_.status == 200 && is_event_stream();
    if (!is_stream) co_await read_error_body();
    if (is_over()) co_return make_error_code(errc::closed);
    if (head_.status != 200) {
        const std::string status = "status " + std::to_string(head_.status);
        const auto& temporary = options_.retry_statuses;
        if (std::count(temporary.begin(), temporary.end(), head_.status) == 0) {
            fail(errc::bad_status, status);
        }
        detail_ = status;
        retry_after_ = std::min(head_.retry_after(), options_.max_retry_after);
        co_return make_error_code(errc::bad_status);
    }
    if (!is_stream) fail(errc::bad_content_type);
    if (!head_.unknown_coding.empty()) {
        fail(errc::bad_response, head_.unknown_coding + ", which was not asked for");
    }
    enter(phase::streaming);
    had_event_ = false;
    opened_ = clock::now();
    ++connections_;
    take_stream();
    co_return std::error_code();
}

SSE_DECL asio::awaitable<void> client_core::renew(int status) {
    if (!options_.fresh_headers) co_return;
    auto pending = options_.fresh_headers(status);
    auto headers = co_await std::move(pending);
    for (const auto& [name, value] : headers) check_header(name, value);
    connection_headers_ = std::move(headers);
}

/// Sends one request and reads the head of its response.
SSE_DECL asio::awaitable<std::error_code> client_core::ask(const target& what) {
    disconnect();
    std::error_code failed = co_await resolve(what.url);
    if (failed) co_return failed;
    failed = co_await connect();
    if (failed) co_return failed;
#if defined(SSE_ENABLE_TLS)
    if (what.url.secure) failed = co_await shake_hands(what.url);
    if (failed) co_return failed;
#endif
    const auto until = from_now(options_.head_timeout);
    link_->request = request_text(what);
    const std::error_code unsent = co_await send_request(until);
    if (unsent == errc::timed_out || is_over()) co_return unsent;
    // A server that refuses a large body may respond and close before it has read all of it.
    failed = co_await read_head(until);
    if (failed && unsent) co_return unsent;
    if (!failed) url_ = what.url.text();
    co_return failed;
}

SSE_DECL asio::awaitable<std::error_code> client_core::resolve(const http_url& url) {
    const std::string host = url.host_to_resolve();
    auto found = name_lookup::known(host);
    if (found.empty()) {
        // A lookup that still runs from an earlier attempt will do, and finishes sooner; one that
        // has failed since then will not.
        const auto before = lookup_ ? lookup_->result(found) : std::nullopt;
        if (!lookup_ || lookup_->host() != host || (before && *before)) {
            lookup_ = name_lookup::of(host);
        }
        const on_end end = begin();
        const bool waits =
            lookup_->notify(this, timers_->step.get_executor(), [end] { end(asio::error_code()); });
        if (waits) {
            const std::error_code failed = co_await wait(from_now(options_.connect_timeout));
            if (is_over()) co_return failed;
            lookup_->forget(this);
            if (failed) co_return failed;
        }
        const auto failed = lookup_->result(found);
        lookup_.reset();
        if (failed && *failed) co_return *failed;
    }
    endpoints_.clear();
    for (const auto& one : found) endpoints_.emplace_back(one, url.port);
    order_endpoints();
    co_return std::error_code();
}

/// First the endpoints that worked before, then the two address families alternately (RFC 8305 4):
/// if one family does not work, the second attempt uses the other.
SSE_DECL void client_core::order_endpoints() {
    std::vector<asio::ip::tcp::endpoint> families[2]; // that of the first address first
    for (const auto& one : endpoints_) {
        const bool other = one.address().is_v6() != endpoints_.front().address().is_v6();
        families[other ? 1 : 0].push_back(one);
    }
    std::vector<asio::ip::tcp::endpoint> mixed;
    for (std::size_t i = 0; mixed.size() < endpoints_.size(); ++i) {
        for (const auto& family : families) {
            if (i < family.size()) mixed.push_back(family[i]);
        }
    }
    for (auto good = preferred_endpoints_.rbegin(); good != preferred_endpoints_.rend(); ++good) {
        const auto at = std::find(mixed.begin(), mixed.end(), *good);
        if (at != mixed.end()) std::rotate(mixed.begin(), at, at + 1);
    }
    endpoints_ = std::move(mixed);
}

SSE_DECL void client_core::note_worked(const asio::ip::tcp::endpoint& where) {
    constexpr std::size_t most = 8; // redirects lead to many endpoints
    preferred_endpoints_.erase(
        std::remove(preferred_endpoints_.begin(), preferred_endpoints_.end(), where),
        preferred_endpoints_.end());
    preferred_endpoints_.insert(preferred_endpoints_.begin(), where);
    preferred_endpoints_.resize(std::min(preferred_endpoints_.size(), most));
}

/// Connects to the first address that accepts. The next attempt begins when an earlier one has
/// failed, or after 250 ms, so that a dead address does not cost its whole timeout (RFC 8305 5).
SSE_DECL asio::awaitable<std::error_code> client_core::connect() {
    constexpr std::chrono::milliseconds delay{250};
    std::error_code failed = make_error_code(errc::bad_response);
    std::size_t next = 0; // of endpoints_
    auto next_at = clock::now();
    begin(); // all attempts together are one operation
    while (!link_) {
        if (next < endpoints_.size() && (connecting_.empty() || clock::now() >= next_at)) {
            const auto one = std::make_shared<link>(timers_->step.get_executor());
            const auto& endpoint = endpoints_[next++];
            asio::error_code unopened;
            open_socket(one->socket, endpoint.protocol(), unopened);
            failed = unopened;
            if (failed) continue;
            one->deadline = from_now(options_.connect_timeout);
            connecting_.push_back(one);
            one->socket.async_connect(endpoint, on_connect{shared_from_this(), one, operation_});
            next_at = clock::now() + delay;
        }
        if (connecting_.empty()) co_return failed;
        auto until = next < endpoints_.size() ? next_at : clock::time_point::max();
        for (const auto& one : connecting_) until = std::min(until, one->deadline);
        result_.reset();
        const std::error_code woken = co_await wait(until);
        if (is_over()) co_return woken;
        const auto now = clock::now();
        for (std::size_t i = 0; i < connecting_.size() && !link_;) {
            const auto one = connecting_[i];
            if (one->connected && !*one->connected) {
                link_ = one;
            } else if (one->connected || now >= one->deadline) {
                failed = one->connected ? *one->connected : make_error_code(errc::timed_out);
                asio::error_code ignored;
                one->socket.close(ignored);
                connecting_.erase(connecting_.begin() + static_cast<std::ptrdiff_t>(i));
                next_at = now;
            } else {
                ++i;
            }
        }
    }
    asio::error_code ignored;
    for (const auto& one : connecting_) {
        if (one != link_) one->socket.close(ignored);
    }
    connecting_.clear();
    const auto peer = link_->socket.remote_endpoint(ignored);
    if (!ignored) note_worked(peer);
    // Only for speed, so errors do not matter.
    link_->socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    probe_when_silent(link_->socket);
    co_return std::error_code();
}

SSE_DECL std::string client_core::request_text(const target& what) const {
    std::string text =
        what.method + " " + what.url.target + " HTTP/1.1\r\nHost: " + what.url.authority() + "\r\n";
    const auto add = [&](std::string_view name, std::string_view value) {
        text.append(name).append(": ").append(value).append("\r\n");
    };
    const auto one_of = [](std::string_view name, std::initializer_list<std::string_view> names) {
        return std::any_of(names.begin(), names.end(),
                           [&](std::string_view n) { return equal_ignoring_case(n, name); });
    };
    auto headers = options_.headers;
    headers.erase(std::remove_if(headers.begin(), headers.end(),
                                 [&](const auto& old) {
                                     return std::any_of(
                                         connection_headers_.begin(), connection_headers_.end(),
                                         [&](const auto& fresh) {
                                             return equal_ignoring_case(old.first, fresh.first);
                                         });
                                 }),
                  headers.end());
    headers.insert(headers.end(), connection_headers_.begin(), connection_headers_.end());
    bool accept = false;
    for (const auto& [name, value] : headers) {
        // Lists what is harmless, not what is secret: a secret may be in a field of any name.
        if (what.foreign && !one_of(name, {"Accept", "Accept-Language", "User-Agent"})) continue;
        if (!what.with_body && one_of(name, {"Content-Type", "Content-Encoding", "Content-Language",
                                             "Content-Location"})) {
            continue; // Fetch standard 4.4: these are dropped along with the body
        }
        accept = accept || equal_ignoring_case(name, "Accept");
        add(name, value);
    }
    if (!accept) add("Accept", "text/event-stream");
    add("Accept-Encoding", "identity");
    add("Cache-Control", "no-cache"); // Fetch standard 4.6, so that no cache responds
    if (fits_in_field(last_event_id())) add("Last-Event-ID", last_event_id());
    const bool has_body = what.with_body && (!options_.body.empty() || what.method == "POST" ||
                                             what.method == "PUT" || what.method == "PATCH");
    if (has_body) add("Content-Length", std::to_string(options_.body.size()));
    text.append("\r\n");
    if (has_body) text.append(options_.body);
    return text;
}

/// Reads until the final head is complete; interim responses before it are skipped (RFC 9110 15.2).
SSE_DECL asio::awaitable<std::error_code> client_core::read_head(clock::time_point until) {
    std::size_t interim = 0; // bytes
    head_parser parser(options_.max_head_bytes);
    for (;;) {
        auto progress = parser.feed(input_);
        while (progress == head_parser::progress::need_more) {
            const std::error_code failed = co_await read(until);
            if (failed == asio::error::eof) co_return make_error_code(errc::bad_response);
            if (failed) co_return failed;
            progress = parser.feed(input_);
        }
        if (progress == head_parser::progress::refused || !head_.parse(parser.head(input_))) {
            co_return make_error_code(errc::bad_response);
        }
        input_.erase(0, parser.size());
        if (head_.status >= 200) break;
        interim += parser.size();
        if (head_.status == 101 || interim >= options_.max_head_bytes) {
            co_return make_error_code(errc::bad_response);
        }
        parser = head_parser(options_.max_head_bytes - interim);
    }
    error_body_.clear();
    body_ = head_.decoder();
    co_return std::error_code();
}

SSE_DECL asio::awaitable<std::error_code> client_core::send_request(clock::time_point until) {
#if defined(SSE_ENABLE_TLS)
    if (link_->tls) return send_securely(until);
#endif
    asio::async_write(link_->socket, asio::buffer(link_->request), begin());
    return wait(until);
}

#if defined(SSE_ENABLE_TLS)

SSE_DECL SSL_CTX& client_core::context() {
    if (!context_) context_ = make_client_context(options_.tls);
    return *context_;
}

/// What it means that TLS has failed. Throws if another attempt would fail in the same way.
SSE_DECL std::error_code client_core::explain(const asio::error_code& failed) {
    const std::string& why = link_->tls->failure();
    if (why.empty()) return failed;
    if (link_->tls->is_mistrusted()) fail(errc::bad_certificate, why);
    detail_ = why;
    return errc::tls_failed;
}

SSE_DECL asio::awaitable<std::error_code> client_core::shake_hands(const http_url& url) {
    const auto until = from_now(options_.connect_timeout);
    link_->tls = std::make_unique<tls_session>(context(), link_->socket.native_handle(),
                                               url.host_to_resolve());
    asio::error_code failed;
    while (!link_->tls->shake_hands(failed)) {
        if (failed == asio::error::eof) co_return make_error_code(errc::tls_failed);
        if (!would_block(failed)) co_return explain(failed);
        const std::error_code woken = co_await wait_for_input(until);
        if (woken) co_return woken;
    }
    co_return std::error_code();
}

SSE_DECL asio::awaitable<std::error_code> client_core::send_securely(clock::time_point until) {
    asio::const_buffer left = asio::buffer(link_->request);
    while (left.size() > 0) {
        asio::error_code failed;
        left += link_->tls->write_some({&left, 1}, failed);
        if (failed && !would_block(failed)) co_return explain(failed);
        if (left.size() == 0) break;
        link_->socket.async_wait(asio::ip::tcp::socket::wait_write, begin());
        const std::error_code woken = co_await wait(until);
        if (woken) co_return woken;
    }
    co_return std::error_code();
}

SSE_DECL asio::awaitable<std::error_code> client_core::read_securely(clock::time_point until) {
    for (;;) {
        const std::error_code woken = co_await wait_for_input(until);
        if (woken) co_return woken;
        asio::error_code failed;
        const std::size_t n = link_->tls->read_some(asio::buffer(link_->input), failed);
        input_.append(link_->input.data(), n);
        if (n > 0) co_return std::error_code();
        if (!would_block(failed)) co_return explain(failed);
    }
}

SSE_DECL asio::awaitable<std::error_code> client_core::wait_for_input(clock::time_point until) {
    using socket = asio::ip::tcp::socket;
    const bool writes = link_->tls->reads_when_writable();
    link_->socket.async_wait(writes ? socket::wait_write : socket::wait_read, begin());
    return wait(until);
}

#endif

/// Whether somebody may have cut the connection: its end does not say that the body is whole.
SSE_DECL bool client_core::is_truncated() const noexcept {
#if defined(SSE_ENABLE_TLS)
    if (link_->tls) return link_->tls->is_truncated();
#endif
    return false;
}

SSE_DECL asio::awaitable<std::error_code> client_core::read(clock::time_point until) {
#if defined(SSE_ENABLE_TLS)
    if (link_->tls) {
        const std::error_code failed = co_await read_securely(until);
        co_return failed;
    }
#endif
    link_->socket.async_read_some(asio::buffer(link_->input), begin());
    const std::error_code failed = co_await wait(until);
    if (!failed) input_.append(link_->input.data(), size_);
    co_return failed;
}

/// Reads the body of a response that is not a stream. It is for people, so errors do not matter.
SSE_DECL asio::awaitable<void> client_core::read_error_body() {
    constexpr std::size_t most = 64 * 1024;
    constexpr std::chrono::milliseconds patience{5'000};
    if (!head_.unknown_coding.empty()) co_return;
    const auto until = std::min(from_now(options_.head_timeout), from_now(patience));
    for (;;) {
        const bool ended = decode_body().has_value();
        error_body_ += body_->take();
        if (ended || error_body_.size() >= most) break;
        const std::error_code failed = co_await read(until);
        if (failed) break;
    }
    error_body_.resize(std::min(error_body_.size(), most));
}

SSE_DECL bool client_core::is_redirect() const noexcept {
    constexpr int redirects[] = {301, 302, 303, 307, 308};
    return std::count(std::begin(redirects), std::end(redirects), head_.status) != 0 &&
           head_.header("Location");
}

SSE_DECL bool client_core::is_event_stream() const noexcept {
    return equal_ignoring_case(head_.media_type(), "text/event-stream");
}

/// Fetch standard 4.4, "HTTP-redirect fetch".
SSE_DECL void client_core::redirect(target& what) const {
    try {
        const std::string location = escape_url(*head_.header("Location"));
        what.url = read_http_url(resolve_reference(what.url, location));
    } catch (const std::invalid_argument& e) {
        fail(errc::bad_status, "status " + std::to_string(head_.status) + ": " + e.what());
    }
    const bool to_get = head_.status == 303 || (head_.status < 303 && what.method == "POST");
    if (to_get && what.method != "GET") {
        what.method = "GET";
        what.with_body = false;
    }
    // Once withheld, secrets stay withheld: a foreign server must not choose what they are used
    // for.
    what.foreign = !options_.trust_redirects && (what.foreign || !what.url.same_origin(origin_));
    if (origin_.secure && !what.url.secure) what.foreign = true; // anybody could read them
    if (what.foreign && what.with_body && !options_.body.empty()) {
        fail(errc::bad_status, "status " + std::to_string(head_.status) + ": it redirects to " +
                                   what.url.without_query() +
                                   ", another origin, which the body is not sent to; ask that URL "
                                   "itself, or set client_options::trust_redirects");
    }
}

// ---- its body ----

SSE_DECL asio::awaitable<void> client_core::receive() {
    const std::error_code failed = co_await read(from_now(options_.silence_timeout));
    if (is_over()) co_return;
    if (!failed) {
        take_stream();
    } else if (failed == asio::error::eof && (!head_.ends_with_connection() || is_truncated())) {
        end_attempt(phase::ended, errc::bad_response); // cut short
    } else {
        end_attempt(phase::ended, failed == asio::error::eof ? std::error_code() : failed);
    }
}

SSE_DECL void client_core::take_stream() {
    if (const auto end = decode_body()) end_attempt(phase::ended, *end);
    parser_.feed(body_->take());
}

/// Removes what belongs to the body from the input. Returns how the body has ended, or nullopt.
SSE_DECL std::optional<std::error_code> client_core::decode_body() {
    const auto progress = body_->feed(input_);
    if (progress == body_decoder::progress::need_more) return std::nullopt;
    return progress == body_decoder::progress::complete ? std::error_code() : errc::bad_response;
}

/// Called when a stream has ended or could not be opened. Throws the error if there is no further
/// attempt.
SSE_DECL void client_core::finish() {
    // A server that accepts each connection and drops it must not be asked again forever, nor
    // without a growing pause. One that is merely quiet for a long time is fine, though.
    const bool succeeded =
        phase_ == phase::ended && (had_event_ || clock::now() - opened_ > pause_);
    failures_ = succeeded ? 0 : failures_ + 1;
    disconnect();
    parser_.finish();
    const bool enough = options_.max_attempts != 0 && failures_ >= options_.max_attempts;
    const bool may = may_reconnect();
    if (may && !enough) {
        prepare_to_resume();
        pause_ = next_pause();
        enter(phase::pausing);
        return;
    }
    enter(phase::over);
    if (may && !end_) {
        end_ = errc::bad_response;
        detail_ = "its streams end before their first event";
    }
    if (end_) fail(end_, detail_);
}

/// Without an id to resume after, another method would not resume but begin something else.
SSE_DECL bool client_core::may_reconnect() const {
    if (options_.resume_method.empty()) return reconnect_;
    return options_.reconnect.value_or(true) && fits_in_field(last_event_id());
}

/// From now on it asks by the method that resumes, if that is another one.
SSE_DECL void client_core::prepare_to_resume() {
    if (options_.resume_method.empty()) return;
    target_.method = options_.resume_method;
    target_.with_body = false;
}

/// The server's reconnection time, or the option's, doubled for each failure in a row after the
/// first.
SSE_DECL std::chrono::milliseconds client_core::next_pause() {
    auto wait = static_cast<double>(parser_.retry().value_or(options_.retry).count());
    if (failures_ > 0) wait = std::max(wait, 1.0); // "retry: 0" must not become a busy loop
    const double limit = std::max(wait, static_cast<double>(options_.max_retry.count()));
    const auto doublings = static_cast<int>(std::min<std::size_t>(failures_, 64));
    wait = std::min(limit, std::ldexp(wait, std::max(0, doublings - 1)));
    const double chance = static_cast<double>(random_() - random_.min()) /
                          static_cast<double>(random_.max() - random_.min());
    wait = std::max(wait, static_cast<double>(retry_after_.count()));
    wait += wait * options_.jitter * chance;
    const auto longest = static_cast<double>(event_parser::max_retry.count());
    return std::chrono::milliseconds(static_cast<std::int64_t>(std::min(wait, longest)));
}

SSE_DECL void client_core::fail(std::error_code why, const std::string& detail) const {
    std::string what = "sse::client: " + target_.url.without_query();
    if (!detail.empty()) what += ": " + detail;
    throw std::system_error(why, what);
}

} // namespace detail

SSE_DECL client::client(asio::any_io_executor where, const std::string& url, client_options o)
    : core_(std::make_shared<detail::client_core>(where, url, std::move(o))) {}

SSE_DECL client::client(asio::any_io_executor where, const std::string& url)
    : client(std::move(where), url, client_options()) {}

SSE_DECL client::~client() {
    if (core_) core_->close();
}

SSE_DECL asio::awaitable<std::optional<event>> client::next() {
    return detail::client_core::next(core_, std::chrono::steady_clock::time_point::max());
}

SSE_DECL asio::awaitable<std::optional<event>> client::next_for(std::chrono::milliseconds time) {
    const auto most = std::min(time, event_parser::max_retry); // the clock cannot overflow
    return detail::client_core::next(core_, std::chrono::steady_clock::now() + most);
}

SSE_DECL bool client::over() const noexcept { return core_->over(); }
SSE_DECL void client::close() { core_->close(); }
SSE_DECL int client::status() const noexcept { return core_->head().status; }
SSE_DECL const std::string& client::error_body() const noexcept { return core_->error_body(); }
SSE_DECL std::optional<std::string_view> client::header(std::string_view name) const noexcept {
    return core_->head().header(name);
}
SSE_DECL const std::string& client::last_event_id() const noexcept {
    return core_->last_event_id();
}
SSE_DECL std::string_view client::url() const noexcept { return core_->url(); }
SSE_DECL std::uint64_t client::connections() const noexcept { return core_->connections(); }

#endif // SSE_BODIES

// >>redis /////////////////////////////////////////////////////////////////////////////////////////
// The engine over Redis Streams. Four threads, each with a connection: the reader tells what is
// stored, the writer publishes, the listener hears what is only passed on, the fetcher serves
// read(). Where SSE_ENABLE_REDIS is defined. Needs >>bus, >>redisbus, >>system, >>hub.
// Tests: tests/redis.cpp
//
// In Redis, with the default prefix:
//
//     sse:messages  stream; an entry is a message {m: bytes} or a mark {e: epoch, b: base, w: why}
//     sse:epochs    list of the marks, newest first: "start base epoch why server", at most 256
//     sse:passing   channel of what is not stored
//
// A mark says how the entries after it are numbered, up to the next one:
//
//     number = (ms - base) << 24 | seq        of an entry whose id in Redis is ms-seq
//
// Ids are always given by Redis. Numbers of our own were given twice after a lost tail, and so
// could those of Redis be, if the clock of a promoted server is behind. Hence the script `join`,
// which every connection runs before it adds anything. In one step it looks and, if need be, adds a
// mark to the stream and to its list. Where
//
//   - the server is not the one of the newest mark (its run, or its replication id): a new epoch,
//     `rewound`. It may lack what the last one had told to another node, or confirmed: no node
//     knows what all others saw;
//   - the same, but redis_options::keeps_all says that it lacks nothing: a mark of the same epoch,
//     but with a base that is a day or two earlier. So numbers rise above all that were given,
//     wherever the clock is, up to a day back. Clients notice nothing;
//   - the stream or its list is gone: a new epoch, `epoch`. XADD has NOMKSTREAM, so that nothing is
//     added to a stream that was lost before this;
//   - the stream ends before its newest mark, or a reader asks for it, since an entry that it has
//     told, or that a publisher knows to be stored, is missing: a new epoch, `rewound`. Who asks
//     names the mark that it saw, so that several who find the same loss make one epoch;
//   - the clock stands still, and the seq of the last entry is large: a mark of the same epoch, in
//     the next millisecond, before the number has no room for it.
//
// As a mark is an entry, each reader meets it at the same place. What others added after the loss
// and before the new epoch has numbers of the old one that were never given before; a reader tells
// it once, in order, under the old one. It finds the last of what it has told that is still there,
// and goes on from it.
#if defined(SSE_ENABLE_REDIS)

namespace detail {

/// Says what happened, and what to do. A fault of the setup does not mend itself.
class redis_trouble : public std::runtime_error {
public:
    explicit redis_trouble(const std::string& text, bool is_of_setup = false)
        : std::runtime_error(text), of_setup(is_of_setup) {}
    const bool of_setup;
};

/// Thrown on the engine's own threads, to end them.
struct redis_stop {};

/// The id of an entry.
struct redis_id {
    std::uint64_t ms = 0;
    std::uint64_t seq = 0;

    auto operator<=>(const redis_id&) const = default;
    std::string text() const { return std::to_string(ms) + '-' + std::to_string(seq); }
    redis_id before() const noexcept;
    static std::optional<redis_id> parse(std::string_view text) noexcept;
};

/// How entries are numbered from its start on.
struct redis_mark {
    static constexpr int seq_bits = 24;
    static constexpr std::int64_t most_ms = (std::int64_t(1) << 40) - 1; // 34 years
    static constexpr std::int64_t most_base = std::int64_t(1) << 60;     // either way from 1970

    redis_id start = {};
    std::int64_t base = 0;
    std::string name = {};
    gap_reason why = gap_reason::epoch;

    /// 0 if the entry has none.
    std::uint64_t number(redis_id of) const noexcept;
    redis_id id(std::uint64_t number) const noexcept;
    static std::optional<redis_mark> parse(std::string_view line);
};

/// The mark that this entry follows, or nullptr. They are newest first.
const redis_mark* mark_of(const std::vector<redis_mark>& marks, redis_id entry) noexcept;

struct redis_free {
    void operator()(redisReply* r) const noexcept { freeReplyObject(r); }
    void operator()(redisContext* c) const noexcept { redisFree(c); }
};
using redis_reply = std::unique_ptr<redisReply, redis_free>;

inline std::string_view text_of(const redisReply& r) noexcept {
    return r.str ? std::string_view(r.str, r.len) : std::string_view();
}

/// The element at this place. Throws unless there is one: Redis, or who stands in for it, sent
/// something else than was asked for.
const redisReply& element_of(const redisReply& r, std::size_t at);

/// An entry of the stream. The views are valid as long as the reply.
struct redis_entry {
    explicit redis_entry(const redisReply& r);

    redis_id id = {};
    std::uint64_t hash = 0; ///< Of all its fields.
    std::optional<std::string_view> message = {};
    std::optional<redis_mark> mark = {}; ///< Neither: another program added it.
    std::size_t size = 0;
};

/// Tells contents apart, as far as accidents go.
std::uint64_t redis_hash(std::string_view bytes, std::uint64_t before = 1) noexcept;

/// How many entries to ask for at once, so that a response has some megabytes at most.
class redis_pace {
public:
    std::size_t count() const noexcept { return count_; }
    void note(std::size_t entries, std::size_t bytes) noexcept;

private:
    static constexpr std::size_t most = 1'000; // Redis serves nobody else meanwhile
    static constexpr std::size_t most_bytes = std::size_t(4) * 1024 * 1024;
    std::size_t count_ = 64;
};

/// Ends a poll() of another thread.
class redis_wake {
public:
    redis_wake();
    ~redis_wake();
    redis_wake(const redis_wake&) = delete;
    redis_wake& operator=(const redis_wake&) = delete;

    int handle() const noexcept { return ends_[0]; }
    void wake() noexcept;
    void clear() noexcept;

private:
    std::array<int, 2> ends_{-1, -1};
    std::atomic<bool> woken_{false};
};

/// What the threads share.
class redis_room {
public:
    enum part : std::uint8_t { reader, writer, listener, parts };

    explicit redis_room(redis_options o);

    /// Calls the sink, one call at a time.
    template <class F>
    void tell(F&& f) {
        {
            const std::lock_guard lock(sink_mutex_);
            f(*sink);
        }
        tell_health();
    }
    /// Says how one part is; the sink is told what changes for the whole. Does not wait for another
    /// call of the sink: the writer must not, as publishers count on its deadlines.
    void say(part of, bool up, std::string_view reason = {}) noexcept;

    const redis_options options;
    const std::string messages;
    const std::string epochs;
    const std::string passing;
    bus::sink* sink = nullptr;
    std::atomic<bool> begun{false}; ///< The sink knows the epoch.
    std::atomic<bool> stopped{false};
    /// Rises when the reader had to connect again. Then the others look at their server, too.
    std::atomic<unsigned> round{0};

    struct place {
        redis_id id = {};
        std::uint64_t hash = 0;
    };
    /// The newest entry whose publisher was told that it is stored.
    std::optional<place> confirmed();
    void confirm(std::optional<place> p);

private:
    void tell_health();
    std::optional<std::string> take_health();

    std::mutex sink_mutex_;
    std::atomic<bool> has_news_{false};
    std::mutex states_mutex_;
    std::array<std::optional<std::string>, parts> states_{}; // empty text: up
    std::optional<std::string> told_;
    std::mutex confirmed_mutex_;
    std::optional<place> confirmed_;
};

/// What `join` found.
struct redis_facts {
    std::optional<redis_id> first = {}; ///< The oldest entry kept.
    redis_id last = {};                 ///< The newest id ever given.
    std::vector<redis_mark> marks = {}; ///< Newest first; at least one.
};

/// A connection of one thread. Each wait ends when the engine is stopped.
class redis_link {
public:
    using clock = std::chrono::steady_clock;
    using arguments = std::initializer_list<std::string_view>;

    explicit redis_link(redis_room& room) : room_(room) {}

    /// Connects to the first address that is of a primary. Throws redis_trouble that names all.
    void open();
    void close() noexcept { context_.reset(); }
    bool is_open() const noexcept { return context_ != nullptr; }

    void append(arguments a);
    void append_wire(const std::string& commands); ///< Several, as they are sent.
    void flush(clock::time_point until);
    /// The next reply; it may be an error of Redis. Throws redis_trouble if there is none in time.
    redis_reply take(clock::time_point until);
    redis_reply take_if_there();
    void receive(); ///< What is there, once wait() said so.
    /// Sends and takes the reply. Throws redis_trouble if it is an error.
    redis_reply call(arguments a);
    void check_role();
    /// Runs the script. `replaced`: the start of the mark that a new epoch is to follow.
    redis_facts join(const std::string& replaced = {});

    enum class waited : std::uint8_t { readable, woken, late };
    waited wait(short events, clock::time_point until);

    /// Waits before the next attempt, longer each time until it worked.
    void pause();
    void worked() noexcept { failures_ = 0; }

    redis_wake wake;
    /// Called at each wait; says when it wants to be called again.
    std::function<clock::time_point()> meanwhile = {};

private:
    void connect(const std::string& where);
    void log_in();
    void check_server();
    void check_keeps_all(bool has_file);
    std::string broken() const;

    redis_room& room_;
    std::unique_ptr<redisContext, redis_free> context_;
    std::size_t address_ = 0; // the one to begin with
    unsigned failures_ = 0;
    std::minstd_rand random_{std::random_device()()};
};

/// Throws what an error of Redis means; its remedy is in the text.
[[noreturn]] void throw_redis_error(std::string_view text);
void expect_no_error(const redisReply& r);

/// Tells the sink what is stored.
class redis_reader {
public:
    redis_reader(redis_room& room, const bus::history& kept)
        : room_(room), link_(room), kept_(kept) {}

    void run() noexcept;
    void stop() noexcept { link_.wake.wake(); }
    /// Waits for the first attempt to connect. Returns what is wrong for good, or nothing.
    std::string first_attempt() { return first_.get_future().get(); }

private:
    /// Where it is in the stream: after an entry that it knows, or before one that comes next.
    struct position {
        redis_id id = {};
        std::optional<std::uint64_t> hash = {};
        std::optional<redis_id> next = {};
    };

    void attempt();
    void end_first(const std::string& fault);
    void begin(const redis_facts& found);
    bool in_history(const redis_entry& e, std::size_t& messages, std::size_t& bytes) const;
    void enter(const redis_mark& m, std::uint64_t after);
    void round();
    void read_page(const redisReply& page, const position& from);
    void tell(const redis_entry& e);
    void tell_message(const redis_entry& e);
    void next_is_missing();
    void quiet();
    void set_ready();
    void check(redis_facts found);
    bool is_there(redis_id id, std::uint64_t hash);
    bool lost_a_confirmed();
    static bool is_trimmed(const redis_facts& found, redis_id id) noexcept;
    redis_facts renew(redis_facts found);
    bool go_back_to_survivor(const redis_facts& found);
    void skip_to_first(const redis_facts& found);

    static constexpr std::size_t most_told = 65'536;

    redis_room& room_;
    redis_link link_;
    const bus::history kept_;
    std::promise<std::string> first_; // no exception: its count is invisible to ThreadSanitizer
    bool first_is_over_ = false;
    bool begun_ = false;
    bool ready_ = false;
    redis_id target_ = {}; // then the history is complete
    position position_ = {};
    redis_mark mark_ = {};
    std::uint64_t newest_ = 0;
    std::string renewed_ = {}; // the epoch for which a next one was asked
    std::deque<redis_room::place> told_;
    redis_pace pace_;
};

/// Publishes.
class redis_writer {
public:
    using clock = redis_link::clock;

    explicit redis_writer(redis_room& room);

    void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                 bus::published done);
    void run() noexcept;
    void stop() noexcept { link_.wake.wake(); }
    /// Completes all that is left, after the thread has ended.
    void finish() noexcept;

private:
    struct item {
        std::string bytes = {};
        bool store = false;
        bool sent = false;
        clock::time_point deadline = {};
        bus::published done = {};
        redis_id id = {};
        std::error_code failed = {};
    };
    using items = std::list<item>;
    struct batch {
        items all = {};
        items again = {}; // the stream was missing
        items::iterator next = {};
        bool waits = false;
        long long replicas = 0;
    };

    void attempt();
    void idle();
    void look_at_server();
    void fill();
    void send(batch& b);
    void handle(const redisReply& r);
    void handle_item(batch& b, const redisReply& r);
    void refuse(item& i, std::string_view text);
    void complete(const redisReply& marks);
    std::error_code number_of(const item& i, const batch& b, std::uint64_t& number);
    void put_back() noexcept;
    clock::time_point expire();
    void finish(item& i, std::error_code failed, std::uint64_t number = 0) noexcept;

    static constexpr std::size_t most_bytes = std::size_t(2) * 1024 * 1024; // of a batch

    redis_room& room_;
    redis_link link_;
    const std::string add_; // the commands, up to the bytes of the message
    const std::string pass_;
    std::string wire_;
    std::list<batch> flight_;
    std::vector<redis_mark> marks_;
    unsigned round_ = 0;
    bool must_look_ = false;
    bool refusing_ = false;
    clock::time_point looked_at_{}; // at the server, idle
    std::mutex mutex_;
    items queue_;
    std::size_t queued_bytes_ = 0;
    std::size_t queued_ = 0;
    bool over_ = false;
    bool idle_ = true; // it waits for a message
    clock::time_point next_expiry_ = clock::time_point::max();
};

/// Hears what is not stored.
class redis_listener {
public:
    explicit redis_listener(redis_room& room) : room_(room), link_(room) {}
    void run() noexcept;
    void stop() noexcept { link_.wake.wake(); }

private:
    void attempt();
    void handle(const redisReply& r);

    redis_room& room_;
    redis_link link_;
};

/// Serves read().
class redis_fetcher {
public:
    explicit redis_fetcher(redis_room& room) : room_(room), link_(room) {}
    void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
              std::function<void(bus::page)> done);
    void run() noexcept;
    void stop() noexcept { link_.wake.wake(); }
    void finish() noexcept;

private:
    struct request {
        std::string epoch;
        std::uint64_t after;
        std::size_t messages;
        std::function<void(bus::page)> done;
    };
    static constexpr std::size_t most_requests = 1'024;

    void serve(request& r) noexcept;
    bus::page fetch(const request& r);
    std::optional<request> next();

    redis_room& room_;
    redis_link link_;
    redis_link::clock::time_point retry_at_ = {};
    std::mutex mutex_;
    std::deque<request> requests_;
    bool over_ = false;
};

class redis_engine final : public bus {
public:
    explicit redis_engine(redis_options o) : room_(std::move(o)), writer_(room_), fetcher_(room_) {}
    ~redis_engine() { redis_engine::detach(); }

    SSE_DECL void attach(sink& to, const history& kept) override;
    void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                 published done) override {
        writer_.publish(std::move(bytes), store, patience, std::move(done));
    }
    void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
              std::function<void(page)> done) override {
        fetcher_.read(epoch, after, messages, std::move(done));
    }
    SSE_DECL void detach() noexcept override;

private:
    redis_room room_;
    redis_writer writer_;
    redis_fetcher fetcher_;
    std::optional<redis_listener> listener_;
    std::optional<redis_reader> reader_;
    std::vector<std::thread> threads_;
};

#if defined(SSE_BODIES)

// --- ids, marks, entries

SSE_DECL redis_id redis_id::before() const noexcept {
    if (seq > 0) return {ms, seq - 1};
    if (ms > 0) return {ms - 1, std::numeric_limits<std::uint64_t>::max()};
    return {};
}

SSE_DECL std::optional<redis_id> redis_id::parse(std::string_view text) noexcept {
    redis_id id;
    const char* const end = text.data() + text.size();
    const auto ms = std::from_chars(text.data(), end, id.ms);
    if (ms.ec != std::errc() || ms.ptr == end || *ms.ptr != '-') return std::nullopt;
    const auto seq = std::from_chars(ms.ptr + 1, end, id.seq);
    if (seq.ec != std::errc() || seq.ptr != end) return std::nullopt;
    return id;
}

SSE_DECL std::uint64_t redis_mark::number(redis_id of) const noexcept {
    if (of.ms > static_cast<std::uint64_t>(most_base + most_ms)) return 0;
    const auto ms = static_cast<std::int64_t>(of.ms) - base;
    if (ms < 0 || ms > most_ms || (of.seq >> seq_bits) != 0) return 0;
    return static_cast<std::uint64_t>(ms) << seq_bits | of.seq;
}

SSE_DECL redis_id redis_mark::id(std::uint64_t number) const noexcept {
    const auto ms = static_cast<std::int64_t>(number >> seq_bits) + base;
    return {static_cast<std::uint64_t>(std::max<std::int64_t>(ms, 0)),
            number & ((std::uint64_t(1) << seq_bits) - 1)};
}

SSE_DECL std::optional<redis_mark> redis_mark::parse(std::string_view line) {
    std::array<std::string_view, 4> words;
    for (auto& word : words) {
        const auto end = std::min(line.find(' '), line.size());
        word = line.substr(0, end);
        line.remove_prefix(std::min(end + 1, line.size()));
    }
    const auto start = redis_id::parse(words[0]);
    redis_mark m;
    const auto base = std::from_chars(words[1].data(), words[1].data() + words[1].size(), m.base);
    const auto is_wrong = [](char c) { return (c < '0' || c > '9') && (c < 'a' || c > 'z'); };
    const bool is_number = base.ec == std::errc() && base.ptr == words[1].data() + words[1].size();
    if (!start || !is_number || m.base < -most_base || m.base > most_base || words[2].size() != 8 ||
        std::any_of(words[2].begin(), words[2].end(), is_wrong)) {
        return std::nullopt;
    }
    m.start = *start;
    m.name = words[2];
    m.why = words[3] == "rewound" ? gap_reason::rewound : gap_reason::epoch;
    return m;
}

SSE_DECL const redis_mark* mark_of(const std::vector<redis_mark>& marks, redis_id entry) noexcept {
    const auto found = std::find_if(marks.begin(), marks.end(),
                                    [&](const redis_mark& m) { return m.start <= entry; });
    return found == marks.end() ? nullptr : &*found;
}

SSE_DECL const redisReply& element_of(const redisReply& r, std::size_t at) {
    if (r.type != REDIS_REPLY_ARRAY || at >= r.elements || !r.element[at]) {
        throw redis_trouble("Redis sent something else than was asked for; look at what stands "
                            "between it and this program");
    }
    return *r.element[at];
}

SSE_DECL std::uint64_t redis_hash(std::string_view bytes, std::uint64_t before) noexcept {
    const auto mix = [](std::uint64_t h, std::uint64_t word) {
        h = (h ^ word) * 0x9E3779B97F4A7C15U;
        return h ^ (h >> 29);
    };
    std::uint64_t h = mix(before, bytes.size());
    for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), sizeof(h)))) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data(), std::min(bytes.size(), sizeof(word)));
        h = mix(h, word);
    }
    return h;
}

SSE_DECL redis_entry::redis_entry(const redisReply& r) {
    const auto given = redis_id::parse(text_of(element_of(r, 0)));
    const redisReply& fields = element_of(r, 1);
    if (!given) throw redis_trouble("Redis sent an entry without an id");
    id = *given;
    for (std::size_t i = 0; i < fields.elements; ++i) {
        const auto text = text_of(element_of(fields, i));
        hash = redis_hash(text, hash + 1);
        size += text.size();
    }
    if (fields.elements < 2) return;
    const auto kind = text_of(element_of(fields, 0));
    if (kind == "m" && fields.elements == 2) message = text_of(element_of(fields, 1));
    if (kind != "e" || fields.elements != 6) return;
    std::string line = id.text();
    for (const std::size_t at : {3U, 1U, 5U})
        line.append(" ").append(text_of(element_of(fields, at)));
    mark = redis_mark::parse(line);
}

SSE_DECL void redis_pace::note(std::size_t entries, std::size_t bytes) noexcept {
    if (bytes > most_bytes) {
        count_ = std::max<std::size_t>(1, count_ / 2);
    } else if (entries >= count_ && bytes < most_bytes / 2) {
        count_ = std::min(most, count_ * 2);
    }
}

// --- what the threads share

SSE_DECL redis_wake::redis_wake() {
    if (::pipe(ends_.data()) != 0) {
        throw std::system_error(errno, std::system_category(), "sse::redis_bus: pipe");
    }
    for (const int end : ends_) {
        ::fcntl(end, F_SETFD, FD_CLOEXEC);
        ::fcntl(end, F_SETFL, O_NONBLOCK);
    }
}

SSE_DECL redis_wake::~redis_wake() {
    for (const int end : ends_) ::close(end);
}

SSE_DECL void redis_wake::wake() noexcept {
    if (woken_.exchange(true)) return;
    while (::write(ends_[1], "", 1) < 0 && errno == EINTR) {}
}

// The pipe first: who comes in between sees that it need not wake, and what it has added is seen.
SSE_DECL void redis_wake::clear() noexcept {
    std::array<char, 8> bytes; // there is one at most
    while (::read(ends_[0], bytes.data(), bytes.size()) < 0 && errno == EINTR) {}
    woken_.store(false);
}

/// Throws std::invalid_argument for options that cannot work.
SSE_DECL void check_redis_options(const redis_options& o) {
    const auto require = [](bool valid, const std::string& what) {
        if (!valid) throw std::invalid_argument("sse::redis_options::" + what);
    };
    using namespace std::chrono_literals;
    require(!o.addresses.empty(), "addresses: give at least one, like 127.0.0.1:6379");
    require(!o.keeps_all || o.addresses.size() == 1,
            "keeps_all: of several addresses one may be promoted, which lacks what it had not "
            "received; give one address");
    for (const auto& where : o.addresses) {
        const auto colon = where.rfind(':');
        int port = 0;
        const char* const end = where.data() + where.size();
        const char* const from = colon == std::string::npos ? end : where.data() + colon + 1;
        const auto parsed = std::from_chars(from, end, port);
        const bool bare_v6 = where.find(':') != colon && where.front() != '[';
        require(colon > 0 && from != end && parsed.ptr == end && port > 0 && port < 65'536 &&
                    !bare_v6,
                "addresses: '" + where + "' must be like host:6379 or [::1]:6379");
    }
    require(o.user.empty() || !o.password.empty(), "password: a user needs one");
    require(o.database >= 0 && o.database <= 1'000'000, "database must be from 0 to 1000000");
    require(!o.prefix.empty() && o.prefix.size() <= 1'024 &&
                o.prefix.find_first_of(std::string_view("\0\r\n ", 4)) == std::string::npos,
            "prefix must have 1 to 1024 bytes and no blanks, like sse:");
    require(o.max_length >= 1 && o.max_length <= 1'000'000'000'000,
            "max_length must be from 1 to 10^12");
    require(o.connect_timeout >= 10ms && o.connect_timeout <= 60s,
            "connect_timeout must be from 10 ms to a minute");
    require(o.block >= 10ms && o.block <= 10s, "block must be from 10 ms to 10 s");
    require(o.wait_replicas <= 100, "wait_replicas must be at most 100");
    require(o.wait_time >= 1ms && o.wait_time <= 60s, "wait_time must be from 1 ms to a minute");
    require(o.queue_messages >= 1, "queue_messages must be at least 1");
    require(o.queue_bytes >= 1, "queue_bytes must be at least 1");
}

SSE_DECL redis_room::redis_room(redis_options o)
    : options(std::move(o)), messages(options.prefix + "messages"),
      epochs(options.prefix + "epochs"), passing(options.prefix + "passing") {
    check_redis_options(options);
}

SSE_DECL void redis_room::say(part of, bool up, std::string_view reason) noexcept {
    try {
        {
            const std::lock_guard lock(states_mutex_);
            if (states_[of] && *states_[of] == (up ? std::string_view() : reason)) return;
            states_[of] = up ? std::string() : std::string(reason);
            has_news_ = true;
        }
        tell_health();
    } catch (const std::exception&) { // out of memory: the next attempt says it
    }
}

// Who finds the sink busy leaves it to the one that is with it, and looks again afterwards.
SSE_DECL void redis_room::tell_health() {
    while (has_news_) {
        const std::unique_lock lock(sink_mutex_, std::try_to_lock);
        if (!lock) return;
        const auto news = take_health();
        if (!news) continue;
        sink->health(news->empty(), news->empty() ? "connected to Redis" : std::string_view(*news));
    }
}

/// The reason why the whole is down, or empty; or nothing if it was told, or is not known yet.
SSE_DECL std::optional<std::string> redis_room::take_health() {
    const std::lock_guard lock(states_mutex_);
    has_news_ = false;
    const auto is_down = [](const auto& state) { return state && !state->empty(); };
    const auto down = std::find_if(states_.begin(), states_.end(), is_down);
    const bool known = std::all_of(states_.begin(), states_.end(), [](auto& one) { return !!one; });
    if (down == states_.end() && !known) return std::nullopt;
    auto now = down == states_.end() ? std::string() : **down;
    if (now == told_) return std::nullopt;
    told_ = now;
    return now;
}

SSE_DECL std::optional<redis_room::place> redis_room::confirmed() {
    const std::lock_guard lock(confirmed_mutex_);
    return confirmed_;
}

SSE_DECL void redis_room::confirm(std::optional<place> p) {
    const std::lock_guard lock(confirmed_mutex_);
    confirmed_ = p;
}

// --- a connection

struct redis_advice {
    std::string_view word;
    bool of_setup;
    std::string_view remedy;
};

inline constexpr std::array redis_advices{
    redis_advice{"WRONGPASS", true, "correct redis_options::user and password"},
    redis_advice{"NOAUTH", true, "set redis_options::password"},
    redis_advice{"invalid password", true, "correct redis_options::password"},
    redis_advice{"AUTH", true,
                 "this Redis asks for no password: leave redis_options::password empty"},
    redis_advice{"NOPERM", true,
                 "allow the user its keys, its channel and all commands: "
                 "ACL SETUSER name ~sse:* &sse:* +@all"},
    redis_advice{"no permissions", true, "allow the user its keys, its channel and all commands"},
    redis_advice{"script can't", true,
                 "allow the user its keys, its channel and all commands: "
                 "ACL SETUSER name ~sse:* &sse:* +@all"},
    redis_advice{"WRONGTYPE", true,
                 "another program uses this key: choose another redis_options::prefix"},
    redis_advice{"DB index", true, "correct redis_options::database"},
    redis_advice{"invalid DB", true, "correct redis_options::database"},
    redis_advice{"unknown command", true, "this is no Redis, or the command was renamed"},
    redis_advice{"MOVED", true, "a Redis Cluster is not supported: use a primary with replicas"},
    redis_advice{"CROSSSLOT", true,
                 "a Redis Cluster is not supported: use a primary with replicas"},
    redis_advice{"READONLY", false,
                 "this server is a replica now: list the new primary in "
                 "redis_options::addresses"},
    redis_advice{"LOADING", false, "Redis reads its files; wait"},
    redis_advice{"MASTERDOWN", false, "the replica has lost its primary: promote one"},
    redis_advice{"NOREPLICAS", false, "fewer replicas than min-replicas-to-write: start them"},
    redis_advice{"OOM", false,
                 "Redis has no memory left: raise maxmemory, or lower "
                 "redis_options::max_length"},
    redis_advice{"MISCONF", false, "Redis cannot write its files: look at its disk and its log"},
};

SSE_DECL void throw_redis_error(std::string_view text) {
    const auto known = std::find_if(redis_advices.begin(), redis_advices.end(), [&](const auto& a) {
        return text.find(a.word) != std::string_view::npos;
    });
    std::string what(text.substr(0, text.find(" script: "))); // it names a sum nobody knows
    if (known == redis_advices.end()) throw redis_trouble(what);
    throw redis_trouble(what.append("; ").append(known->remedy), known->of_setup);
}

SSE_DECL void expect_no_error(const redisReply& r) {
    if (r.type == REDIS_REPLY_ERROR) throw_redis_error(text_of(r));
}

SSE_DECL void redis_link::open() {
    close();
    std::string reasons;
    bool of_setup = false;
    for (std::size_t i = 0; i < room_.options.addresses.size(); ++i) {
        const auto& where = room_.options.addresses[address_];
        try {
            connect(where);
            log_in();
            check_role();
            check_server();
            return;
        } catch (const redis_trouble& e) {
            reasons.append(reasons.empty() ? "" : "; ").append(where).append(": ").append(e.what());
            of_setup |= e.of_setup;
            close();
        }
        address_ = (address_ + 1) % room_.options.addresses.size();
    }
    throw redis_trouble("Redis at " + reasons, of_setup);
}

SSE_DECL void redis_link::connect(const std::string& where) {
    const auto colon = where.rfind(':');
    std::string host = where.substr(0, colon);
    if (host.front() == '[') host = host.substr(1, host.size() - 2);
    context_.reset(redisConnectNonBlock(host.c_str(), std::atoi(where.c_str() + colon + 1)));
    if (!context_) throw std::bad_alloc();
    if (context_->err) throw redis_trouble(broken());
    close_on_exec(context_->fd);
    const auto until = clock::now() + room_.options.connect_timeout;
    for (waited w = waited::woken; w != waited::readable;) {
        w = wait(POLLOUT, until);
        if (w == waited::late)
            throw redis_trouble("no connection in time; is it the right address?");
    }
    int error = 0;
    socklen_t size = sizeof(error);
    ::getsockopt(context_->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        throw redis_trouble(std::system_category().message(error) +
                            "; start Redis there, or correct redis_options::addresses");
    }
    redisEnableKeepAlive(context_.get());
}

SSE_DECL void redis_link::log_in() {
    const auto& o = room_.options;
    if (!o.user.empty()) {
        call({"AUTH", o.user, o.password});
    } else if (!o.password.empty()) {
        call({"AUTH", o.password});
    }
    if (o.database != 0) call({"SELECT", std::to_string(o.database)});
}

SSE_DECL void redis_link::check_role() {
    const auto role = call({"ROLE"});
    if (text_of(element_of(*role, 0)) != "master") {
        throw redis_trouble("it is a replica; list the primary in redis_options::addresses");
    }
}

SSE_DECL void redis_link::check_server() {
    const auto info = call({"INFO"});
    const auto value = [&](std::string_view name) {
        const auto text = text_of(*info);
        const auto at = text.find(name);
        if (at == std::string_view::npos) return std::string_view();
        const auto rest = text.substr(at + name.size());
        return rest.substr(0, rest.find_first_of("\r\n"));
    };
    const auto policy = value("\nmaxmemory_policy:");
    if (!policy.empty() && policy != "noeviction") {
        throw redis_trouble("maxmemory-policy is " + std::string(policy) +
                                ", which loses messages; set it to noeviction",
                            true);
    }
    if (room_.options.keeps_all) check_keeps_all(value("\naof_enabled:") == "1");
    const auto version = value("redis_version:");
    int major = 0;
    int minor = 0;
    const auto end = version.data() + version.size();
    const auto dot = std::from_chars(version.data(), end, major).ptr;
    if (dot != end) std::from_chars(dot + 1, end, minor);
    if (major < 6 || (major == 6 && minor < 2)) {
        throw redis_trouble("Redis is " + std::string(version) + "; 6.2 or newer is needed", true);
    }
}

/// Whether what Redis confirmed is on its disk. If this user may not know, it is believed.
SSE_DECL void redis_link::check_keeps_all(bool has_file) {
    append({"CONFIG", "GET", "appendfsync"});
    const auto reply = take(clock::now() + room_.options.connect_timeout);
    const bool is_known = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2;
    if (has_file && (!is_known || text_of(element_of(*reply, 1)) == "always")) return;
    throw redis_trouble("redis_options::keeps_all is not true of it; set appendonly to yes and "
                        "appendfsync to always in Redis",
                        true);
}

SSE_DECL std::string redis_link::broken() const {
    return std::string(context_->errstr) + "; is Redis running there?";
}

SSE_DECL void redis_link::append(arguments a) {
    std::array<const char*, 16> text{};
    std::array<std::size_t, 16> size{};
    std::size_t count = 0;
    for (const auto word : a) {
        text[count] = word.data() ? word.data() : "";
        size[count++] = word.size();
    }
    if (redisAppendCommandArgv(context_.get(), static_cast<int>(count), text.data(), size.data()) !=
        REDIS_OK) {
        throw redis_trouble(broken());
    }
}

SSE_DECL void redis_link::append_wire(const std::string& commands) {
    if (redisAppendFormattedCommand(context_.get(), commands.data(), commands.size()) != REDIS_OK) {
        throw redis_trouble(broken());
    }
}

SSE_DECL void redis_link::flush(clock::time_point until) {
    for (int done = 0; !done;) {
        if (redisBufferWrite(context_.get(), &done) != REDIS_OK) throw redis_trouble(broken());
        if (!done && wait(POLLOUT, until) == waited::late) {
            throw redis_trouble("Redis takes nothing; is it stopped, or is the network gone?");
        }
    }
}

SSE_DECL redis_reply redis_link::take_if_there() {
    void* reply = nullptr;
    if (redisGetReplyFromReader(context_.get(), &reply) != REDIS_OK) throw redis_trouble(broken());
    return redis_reply(static_cast<redisReply*>(reply));
}

SSE_DECL redis_reply redis_link::take(clock::time_point until) {
    flush(until);
    for (;;) {
        if (auto reply = take_if_there()) return reply;
        const auto w = wait(POLLIN, until);
        if (w == waited::late) {
            throw redis_trouble("no response in time; is Redis stopped, or is the network gone?");
        }
        if (w == waited::readable) receive();
    }
}

SSE_DECL void redis_link::receive() {
    if (redisBufferRead(context_.get()) != REDIS_OK) throw redis_trouble(broken());
}

SSE_DECL redis_reply redis_link::call(arguments a) {
    append(a);
    auto reply = take(clock::now() + room_.options.connect_timeout);
    expect_no_error(*reply);
    return reply;
}

SSE_DECL redis_link::waited redis_link::wait(short events, clock::time_point until) {
    for (;;) {
        if (room_.stopped) throw redis_stop();
        const auto next = meanwhile ? std::min(until, meanwhile()) : until;
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - clock::now()).count();
        std::array<pollfd, 2> both{pollfd{wake.handle(), POLLIN, 0},
                                   pollfd{context_ ? context_->fd : -1, events, 0}};
        ::poll(both.data(), both.size(), static_cast<int>(std::clamp<long long>(left, 0, 60'000)));
        if (both[0].revents != 0) wake.clear();
        if (room_.stopped) throw redis_stop();
        if (both[1].revents != 0) return waited::readable;
        if (both[0].revents != 0) return waited::woken;
        if (clock::now() >= until) return waited::late;
    }
}

SSE_DECL void redis_link::pause() {
    const auto longest = std::min(5'000, 100 << std::min(failures_, 10U));
    ++failures_;
    std::uniform_int_distribution<int> jitter(longest / 2, longest);
    const auto until = clock::now() + std::chrono::milliseconds(jitter(random_));
    while (wait(0, until) != waited::late) {}
}

inline constexpr std::string_view redis_join = R"(
local function split(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function text(n) return string.format('%.0f', n) end
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
local server = '@' .. (string.match(info, 'run_id:(%w+)') or '') ..
  ':' .. (string.match(info, 'master_replid:(%w+)') or '')
local exists = redis.call('EXISTS', KEYS[1]) == 1
local first, last = '', '0-0'
if exists then
  local facts = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then last = facts[i + 1] end
    if facts[i] == 'first-entry' and facts[i + 1] then first = facts[i + 1][1] end
  end
end
local newest = redis.call('LINDEX', KEYS[2], 0)
local start, base, name, why, of
if exists and newest then
  start, base, name, why, of = string.match(newest, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
end
local ms, seq = split(last)
local at = '*'
if not start then
  redis.call('DEL', KEYS[2])
  name, why, base = ARGV[2], 'epoch', nil
else
  local start_ms, start_seq = split(start)
  local behind = ms < start_ms or (ms == start_ms and seq < start_seq)
  if ARGV[1] == start or behind then
    name, why, base = ARGV[2], 'rewound', nil
  elseif of ~= server then
    base = tonumber(base) - tonumber(ARGV[3])
    if ARGV[4] ~= 'keeps all' or ms - base > 1099000000000 then
      name, why, base = ARGV[2], 'rewound', nil
    end
  elseif seq >= 8388608 then
    base, at = tonumber(base), text(ms + 1) .. '-0'
  else
    at = nil
  end
end
if at then
  base = base or tonumber(redis.call('TIME')[1]) * 1000 - 1000
  last = redis.call('XADD', KEYS[1], at, 'e', name, 'b', text(base), 'w', why)
  if first == '' then first = last end
  redis.call('LPUSH', KEYS[2], last .. ' ' .. text(base) .. ' ' .. name .. ' ' .. why .. ' ' .. server)
  redis.call('LTRIM', KEYS[2], 0, 255)
end
return {first, last, redis.call('LRANGE', KEYS[2], 0, -1)}
)";

SSE_DECL std::vector<redis_mark> parse_marks(const redisReply& list) {
    std::vector<redis_mark> marks;
    for (std::size_t i = 0; i < list.elements; ++i) {
        if (auto m = redis_mark::parse(text_of(element_of(list, i))))
            marks.push_back(std::move(*m));
    }
    return marks;
}

SSE_DECL redis_facts redis_link::join(const std::string& replaced) {
    const std::string name = make_epoch();
    const auto jump = std::to_string(86'400'000 + random_number() % 86'400'000);
    const auto reply = call({"EVAL", redis_join, "2", room_.messages, room_.epochs, replaced, name,
                             jump, room_.options.keeps_all ? "keeps all" : ""});
    redis_facts found;
    found.first = redis_id::parse(text_of(element_of(*reply, 0)));
    found.last = redis_id::parse(text_of(element_of(*reply, 1))).value_or(redis_id());
    found.marks = parse_marks(element_of(*reply, 2));
    if (found.marks.empty()) {
        throw redis_trouble("the list " + room_.epochs +
                                " has what this program cannot read; "
                                "choose another redis_options::prefix",
                            true);
    }
    return found;
}

// --- the reader

SSE_DECL void redis_reader::end_first(const std::string& fault) {
    if (!std::exchange(first_is_over_, true)) first_.set_value(fault);
}

SSE_DECL void redis_reader::run() noexcept {
    for (;;) {
        try {
            try {
                attempt();
            } catch (const redis_trouble& e) {
                room_.say(redis_room::reader, false, e.what());
                end_first(e.of_setup ? e.what() : "");
            } catch (const std::exception& e) {
                room_.say(redis_room::reader, false, e.what());
                end_first("");
            }
            link_.close();
            link_.pause();
        } catch (const redis_stop&) {
            return end_first("");
        } catch (const std::exception&) { // out of memory
        }
    }
}

SSE_DECL void redis_reader::attempt() {
    link_.open();
    const auto found = link_.join();
    ++room_.round;
    end_first("");
    if (begun_) {
        check(found);
    } else {
        begin(found);
    }
    for (;;) {
        round();
        link_.worked();
    }
}

SSE_DECL bool redis_reader::in_history(const redis_entry& e, std::size_t& messages,
                                       std::size_t& bytes) const {
    if (!e.message) return true;
    const auto age =
        std::chrono::system_clock::now().time_since_epoch() - std::chrono::milliseconds(e.id.ms);
    if (messages >= kept_.messages || bytes + e.message->size() > kept_.bytes ||
        (kept_.age.count() > 0 && age > kept_.age)) {
        return false;
    }
    ++messages;
    bytes += e.message->size();
    return true;
}

// Backwards to the place where the history begins, then forwards like all else: never whole, since
// Redis serves nobody else meanwhile.
SSE_DECL void redis_reader::begin(const redis_facts& found) {
    std::optional<redis_room::place> edge; // the newest entry before the history
    std::optional<redis_id> from;          // the oldest in it
    const auto oldest = found.marks.back().start.text();
    std::string end = found.last.text();
    std::size_t messages = 0;
    std::size_t bytes = 0;
    redis_pace pace;
    for (bool more = true; more && !edge;) {
        const auto count = pace.count();
        const auto page =
            link_.call({"XREVRANGE", room_.messages, end, oldest, "COUNT", std::to_string(count)});
        std::size_t size = 0;
        for (std::size_t i = 0; i < page->elements && !edge; ++i) {
            const redis_entry e(element_of(*page, i));
            size += e.size;
            if (!in_history(e, messages, bytes)) {
                edge = {e.id, e.hash};
            } else {
                from = e.id;
            }
        }
        more = page->elements == count;
        if (from) end = "(" + from->text();
        pace.note(page->elements, size);
    }
    const redis_id first = edge ? edge->id : from.value_or(found.last);
    const redis_mark* const m = mark_of(found.marks, first);
    const redis_mark& mark = m ? *m : found.marks.back();
    if (edge) {
        position_ = {edge->id, edge->hash, {}};
    } else {
        position_ = {from ? from->before() : found.last, {}, from};
    }
    target_ = found.last;
    const auto number = mark.number(first);
    enter(mark, number > 0 && from && !edge ? number - 1 : number);
    begun_ = true;
    if (position_.id >= target_) set_ready();
    room_.say(redis_room::reader, true);
}

SSE_DECL void redis_reader::enter(const redis_mark& m, std::uint64_t after) {
    room_.tell([&](bus::sink& s) { s.epoch(m.name, after, m.why); });
    mark_ = m;
    newest_ = after;
    room_.begun = true;
}

// The read and the look at the own entry go together. If it is there after the read, it was there
// before, and nothing after it was trimmed in between.
SSE_DECL void redis_reader::round() {
    const position from = position_;
    const auto id = from.id.text();
    link_.append({"XREAD", "COUNT", std::to_string(pace_.count()), "BLOCK",
                  std::to_string(room_.options.block.count()), "STREAMS", room_.messages, id});
    if (from.hash) link_.append({"XRANGE", room_.messages, id, id});
    const auto until = redis_link::clock::now() + room_.options.block + std::chrono::seconds(5);
    const auto page = link_.take(until);
    const auto own = from.hash ? link_.take(until) : nullptr;
    expect_no_error(*page);
    if (own) {
        expect_no_error(*own);
        if (own->elements != 1 || redis_entry(element_of(*own, 0)).hash != from.hash) {
            return check(link_.join());
        }
    }
    if (page->type == REDIS_REPLY_NIL) return quiet();
    read_page(element_of(element_of(*page, 0), 1), from);
}

SSE_DECL void redis_reader::read_page(const redisReply& page, const position& from) {
    std::size_t bytes = 0;
    std::uint64_t largest = 0;
    for (std::size_t i = 0; i < page.elements; ++i) {
        const redis_entry e(element_of(page, i));
        if (i == 0 && from.next && e.id != *from.next) return next_is_missing();
        tell(e);
        bytes += e.size;
        largest = std::max(largest, e.id.seq);
    }
    pace_.note(page.elements, bytes);
    room_.say(redis_room::reader, true);
    if (!ready_ && position_.id >= target_) set_ready();
    if (largest >> (redis_mark::seq_bits - 1)) link_.join(); // makes room
}

SSE_DECL void redis_reader::next_is_missing() {
    const auto found = link_.join();
    if (!found.first || *found.first > position_.id) return skip_to_first(found);
    position_.next.reset(); // it alone was deleted, by another program
}

SSE_DECL void redis_reader::tell(const redis_entry& e) {
    if (e.mark && e.mark->name != mark_.name) {
        enter(*e.mark, e.mark->number(e.id));
    } else if (e.mark) {
        mark_ = *e.mark; // the same epoch goes on
    } else if (e.message) {
        tell_message(e);
    }
    told_.push_back({e.id, e.hash});
    if (told_.size() > most_told) told_.pop_front();
    position_ = {e.id, e.hash, {}};
}

SSE_DECL void redis_reader::tell_message(const redis_entry& e) {
    const auto number = mark_.number(e.id);
    if (number > newest_) {
        const std::chrono::system_clock::time_point time{std::chrono::milliseconds(e.id.ms)};
        room_.tell([&](bus::sink& s) { s.message({number, time, *e.message}); });
        newest_ = number;
    } else if (renewed_ != mark_.name) { // it has no number here: a new epoch says so to all
        renewed_ = mark_.name;
        renew(link_.join());
    }
}

SSE_DECL void redis_reader::quiet() {
    const auto found = link_.join();
    if (found.last < position_.id) return check(found);
    if (!ready_) set_ready();
    room_.say(redis_room::reader, true);
}

SSE_DECL void redis_reader::set_ready() {
    room_.tell([](bus::sink& s) { s.ready(); });
    ready_ = true;
}

SSE_DECL bool redis_reader::is_there(redis_id id, std::uint64_t hash) {
    const auto text = id.text();
    const auto found = link_.call({"XRANGE", room_.messages, text, text});
    return found->elements == 1 && redis_entry(element_of(*found, 0)).hash == hash;
}

SSE_DECL bool redis_reader::lost_a_confirmed() {
    const auto confirmed = room_.confirmed();
    if (!confirmed || confirmed->id <= position_.id) return false;
    if (is_there(confirmed->id, confirmed->hash)) return false;
    return !is_trimmed(link_.join(), confirmed->id);
}

SSE_DECL bool redis_reader::is_trimmed(const redis_facts& found, redis_id id) noexcept {
    return found.last >= id && (!found.first || *found.first > id);
}

/// After each connection, and when the own entry is missing.
SSE_DECL void redis_reader::check(redis_facts found) {
    const bool is_here =
        position_.hash ? is_there(position_.id, *position_.hash) : found.last >= position_.id;
    if (is_here && !lost_a_confirmed()) return;
    if (!is_here) found = link_.join(); // it may have been trimmed since
    room_.confirm(std::nullopt);
    const bool same = found.marks.front().name == mark_.name;
    if (same && !is_here && is_trimmed(found, position_.id)) return skip_to_first(found);
    const auto now = same ? renew(found) : found;
    if (is_here) return;
    const bool survives = go_back_to_survivor(now);
    const redis_mark* const m = survives ? mark_of(now.marks, position_.id) : nullptr;
    const bool of_this_epoch = m && m->name == mark_.name;
    const auto above = of_this_epoch ? m->number(position_.id) : 0;
    room_.tell([&](bus::sink& s) { s.lost(above); });
    if (!survives) skip_to_first(now);
}

/// Has a new epoch begin, unless another server has done so.
SSE_DECL redis_facts redis_reader::renew(redis_facts found) {
    for (int tries = 0; tries < 10; ++tries) { // others may add marks of the same epoch meanwhile
        if (found.marks.front().name != mark_.name) return found;
        found = link_.join(found.marks.front().start.text());
    }
    throw redis_trouble("no new epoch could be made");
}

// What was kept is a prefix of what was told, but for what was trimmed.
SSE_DECL bool redis_reader::go_back_to_survivor(const redis_facts& found) {
    if (!found.first) return false;
    const auto kept = std::partition_point(told_.begin(), told_.end(),
                                           [&](const auto& t) { return t.id < *found.first; });
    const auto lost = std::partition_point(kept, told_.end(),
                                           [&](const auto& t) { return is_there(t.id, t.hash); });
    if (lost == kept) return false;
    told_.erase(lost, told_.end());
    position_ = {told_.back().id, told_.back().hash, {}};
    return true;
}

SSE_DECL void redis_reader::skip_to_first(const redis_facts& found) {
    redis_id first = found.first.value_or(found.last);
    const redis_mark* m = mark_of(found.marks, first);
    if (!m) { // what is before the oldest mark has no number
        m = &found.marks.back();
        first = m->start;
    }
    const auto number = m->number(first);
    const auto to = found.first && number > 0 ? number - 1 : number;
    if (m->name != mark_.name) {
        enter(*m, to);
    } else if (to > newest_) {
        room_.tell([&](bus::sink& s) { s.hole(to); });
        newest_ = to;
    }
    mark_ = *m;
    if (found.first) {
        position_ = {first.before(), {}, found.first == first ? found.first : std::nullopt};
    } else {
        position_ = {first, {}, {}};
    }
}

// --- the writer

/// The words of a command of so many, as they are sent.
SSE_DECL std::string redis_wire(std::size_t words, redis_link::arguments first) {
    std::string wire = "*" + std::to_string(words) + "\r\n";
    for (const auto word : first) {
        wire.append("$").append(std::to_string(word.size())).append("\r\n");
        wire.append(word).append("\r\n");
    }
    return wire;
}

SSE_DECL redis_writer::redis_writer(redis_room& room)
    : room_(room), link_(room),
      add_(redis_wire(9, {"XADD", room.messages, "NOMKSTREAM", "MAXLEN", "~",
                          std::to_string(room.options.max_length), "*", "m"})),
      pass_(redis_wire(3, {"PUBLISH", room.passing})) {
    link_.meanwhile = [this] { return expire(); };
}

SSE_DECL void redis_writer::publish(std::string bytes, bool store,
                                    std::chrono::milliseconds patience, bus::published done) {
    using namespace std::chrono_literals;
    items one;
    one.emplace_back();
    item& i = one.back();
    i.bytes = std::move(bytes);
    i.store = store;
    i.deadline = clock::now() + std::clamp<std::chrono::milliseconds>(patience, 0ms, 24h);
    i.done = std::move(done);
    std::error_code failed;
    bool wake = false; // else it has replies to wait for, and looks after them
    {
        const std::lock_guard lock(mutex_);
        if (over_) {
            failed = errc::stopped;
        } else if (queued_ >= room_.options.queue_messages ||
                   (queued_ > 0 && queued_bytes_ + i.bytes.size() > room_.options.queue_bytes)) {
            failed = errc::no_room;
        } else {
            queued_bytes_ += i.bytes.size();
            ++queued_;
            wake = idle_ || i.deadline < next_expiry_;
            next_expiry_ = std::min(next_expiry_, i.deadline);
            queue_.splice(queue_.end(), one);
        }
    }
    if (failed) return finish(one.back(), failed);
    if (wake) link_.wake.wake();
}

SSE_DECL void redis_writer::finish(item& i, std::error_code failed, std::uint64_t number) noexcept {
    try {
        if (const auto done = std::exchange(i.done, nullptr)) done(failed, number);
    } catch (const std::exception&) { // the publisher's own
    }
}

SSE_DECL void redis_writer::run() noexcept {
    for (;;) {
        try {
            try {
                attempt();
            } catch (const std::exception& e) { room_.say(redis_room::writer, false, e.what()); }
            put_back();
            link_.close();
            link_.pause();
        } catch (const redis_stop&) { return; } catch (const std::exception&) { // out of memory
        }
    }
}

SSE_DECL void redis_writer::attempt() {
    link_.open();
    round_ = room_.round;
    look_at_server();
    room_.say(redis_room::writer, true);
    refusing_ = false;
    for (;;) {
        if (must_look_ && flight_.empty()) look_at_server();
        if (round_ != room_.round) {
            round_ = room_.round;
            must_look_ = true;
            continue;
        }
        fill();
        if (flight_.empty()) {
            idle();
            continue;
        }
        const auto until =
            clock::now() + std::chrono::seconds(5) +
            (room_.options.wait_replicas ? room_.options.wait_time : std::chrono::milliseconds(0));
        for (auto r = link_.take(until); r; r = flight_.empty() ? nullptr : link_.take_if_there()) {
            handle(*r);
        }
        link_.worked();
    }
}

SSE_DECL void redis_writer::look_at_server() {
    link_.check_role();
    looked_at_ = clock::now();
    marks_ = link_.join().marks;
    must_look_ = false;
}

/// Nothing is to be sent. The connection is looked at now and then, so that the next message does
/// not find it dead; more often after a refusal, which else would be known until the next message.
/// What is only passed on, as servers do each second, shows neither.
SSE_DECL void redis_writer::idle() {
    const auto until = looked_at_ + std::chrono::seconds(refusing_ ? 1 : 5);
    const auto w = link_.wait(POLLIN, until);
    if (w == redis_link::waited::readable) link_.call({"PING"}); // it is closed, and this fails
    if (w != redis_link::waited::late) return;
    looked_at_ = clock::now();
    link_.check_role();
    if (!refusing_) return;
    link_.call({"SETRANGE", room_.epochs + ":probe", "0", ""}); // writes nothing
    refusing_ = false;
    room_.say(redis_room::writer, true);
}

SSE_DECL void redis_writer::fill() {
    constexpr std::size_t most_items = 512;
    if (must_look_ || flight_.size() >= 2) return;
    std::list<batch> made(1);
    batch& b = made.back();
    {
        const std::lock_guard lock(mutex_);
        auto end = queue_.begin();
        std::size_t count = 0;
        std::size_t bytes = 0;
        for (; end != queue_.end() && count < most_items && bytes < most_bytes; ++end, ++count) {
            bytes += end->bytes.size();
        }
        idle_ = count == 0 && flight_.empty();
        if (count == 0) return;
        queued_ -= count;
        queued_bytes_ -= bytes;
        b.all.splice(b.all.end(), queue_, queue_.begin(), end);
    }
    b.next = b.all.begin();
    flight_.splice(flight_.end(), made);
    send(b);
}

// In the protocol's form, which takes hiredis half of its time otherwise.
SSE_DECL void redis_writer::send(batch& b) {
    wire_.clear();
    const auto end_with = [&](const std::string& bytes) {
        wire_.append("$").append(std::to_string(bytes.size())).append("\r\n");
        wire_.append(bytes).append("\r\n");
    };
    for (auto& i : b.all) {
        i.sent = true;
        b.waits |= i.store && room_.options.wait_replicas > 0;
        wire_.append(i.store ? add_ : pass_);
        end_with(i.bytes);
    }
    link_.append_wire(wire_);
    if (wire_.capacity() > 4 * most_bytes) wire_ = std::string(); // of a message that was large
    if (b.waits) {
        link_.append({"WAIT", std::to_string(room_.options.wait_replicas),
                      std::to_string(room_.options.wait_time.count())});
    }
    link_.append({"LRANGE", room_.epochs, "0", "7"});
}

/// The replies come in the order of the commands: of the messages, of WAIT, of the marks, by which
/// the numbers of these messages are known.
SSE_DECL void redis_writer::handle(const redisReply& r) {
    batch& b = flight_.front();
    if (b.next != b.all.end()) return handle_item(b, r);
    expect_no_error(r);
    if (std::exchange(b.waits, false)) {
        b.replicas = r.integer;
        return;
    }
    complete(r);
}

SSE_DECL void redis_writer::handle_item(batch& b, const redisReply& r) {
    const auto at = b.next++;
    item& i = *at;
    if (r.type == REDIS_REPLY_ERROR) return refuse(i, text_of(r));
    if (!i.store) return;
    if (const auto id = redis_id::parse(text_of(r))) {
        i.id = *id;
        return;
    }
    must_look_ = true; // the stream is gone: a new epoch first
    i.sent = false;
    b.again.splice(b.again.end(), b.all, at);
}

/// These errors pass, or not; but what is wrong is not this connection. Others end it, and what was
/// sent is sent again, to this server or another.
SSE_DECL void redis_writer::refuse(item& i, std::string_view text) {
    constexpr std::array elsewhere{"READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "UNBLOCKED"};
    try {
        throw_redis_error(text);
    } catch (const redis_trouble& e) {
        if (std::any_of(elsewhere.begin(), elsewhere.end(),
                        [&](const char* word) { return text.starts_with(word); })) {
            i.sent = false;
            throw;
        }
        i.failed = errc::bus_refused;
        refusing_ = true;
        room_.say(redis_room::writer, false, e.what());
    }
}

SSE_DECL std::error_code redis_writer::number_of(const item& i, const batch& b,
                                                 std::uint64_t& number) {
    if (i.failed) return i.failed;
    if (!i.store) return {};
    if (b.replicas < static_cast<long long>(room_.options.wait_replicas)) return errc::bus_timeout;
    const redis_mark* const m = mark_of(marks_, i.id);
    number = m ? m->number(i.id) : 0;
    return number > 0 ? std::error_code() : errc::bus_timeout;
}

SSE_DECL void redis_writer::complete(const redisReply& list) {
    if (auto marks = parse_marks(list); !marks.empty()) marks_ = std::move(marks);
    std::list<batch> over;
    over.splice(over.end(), flight_, flight_.begin());
    batch& b = over.front();
    const item* stored = nullptr;
    bool refused = false;
    for (auto& i : b.all) {
        std::uint64_t number = 0;
        const auto failed = number_of(i, b, number);
        if (i.store && !failed) stored = &i;
        refused |= !!i.failed;
        finish(i, failed, number);
    }
    if (stored)
        room_.confirm(
            redis_room::place{stored->id, redis_hash(stored->bytes, redis_hash("m", 1) + 1)});
    if (stored && !refused && std::exchange(refusing_, false)) room_.say(redis_room::writer, true);
    if (b.again.empty()) return;
    const std::lock_guard lock(mutex_);
    for (const auto& i : b.again) {
        queued_bytes_ += i.bytes.size();
        ++queued_;
    }
    queue_.splice(queue_.begin(), b.again);
    next_expiry_ = {};
}

/// What was sent and not confirmed is sent again, in the same order.
SSE_DECL void redis_writer::put_back() noexcept {
    const std::lock_guard lock(mutex_);
    while (!flight_.empty()) {
        batch& b = flight_.back();
        b.again.splice(b.again.end(), b.all);
        b.again.remove_if([](const item& i) { return !i.done; });
        for (auto& i : b.again) {
            i.id = {};
            i.failed = {};
            queued_bytes_ += i.bytes.size();
            ++queued_;
        }
        queue_.splice(queue_.begin(), b.again);
        flight_.pop_back();
    }
    next_expiry_ = {};
}

/// Gives up what has waited long enough. Returns when it has to be called again.
SSE_DECL redis_writer::clock::time_point redis_writer::expire() {
    const auto now = clock::now();
    items late;
    {
        const std::lock_guard lock(mutex_);
        if (next_expiry_ > now) return next_expiry_;
        next_expiry_ = clock::time_point::max();
        for (auto i = queue_.begin(); i != queue_.end();) {
            const auto at = i++;
            if (at->deadline > now) {
                next_expiry_ = std::min(next_expiry_, at->deadline);
                continue;
            }
            queued_bytes_ -= at->bytes.size();
            --queued_;
            late.splice(late.end(), queue_, at);
        }
    }
    for (auto& i : late) finish(i, i.sent ? errc::bus_timeout : errc::bus_down);
    auto next = clock::time_point::max();
    for (auto& b : flight_) {
        for (auto& i : b.all) {
            if (i.done && i.deadline <= now) finish(i, errc::bus_timeout);
            if (i.done) next = std::min(next, i.deadline);
        }
    }
    const std::lock_guard lock(mutex_);
    next_expiry_ = std::min(next_expiry_, next);
    return next_expiry_;
}

SSE_DECL void redis_writer::finish() noexcept {
    items left;
    {
        const std::lock_guard lock(mutex_);
        over_ = true;
        left.splice(left.end(), queue_);
        queued_ = 0;
        queued_bytes_ = 0;
    }
    for (auto& b : flight_) {
        left.splice(left.end(), b.all);
        left.splice(left.end(), b.again);
    }
    flight_.clear();
    for (auto& i : left) finish(i, errc::stopped);
}

// --- the listener

SSE_DECL void redis_listener::run() noexcept {
    for (;;) {
        try {
            try {
                attempt();
                continue;
            } catch (const std::exception& e) { room_.say(redis_room::listener, false, e.what()); }
            link_.close();
            link_.pause();
        } catch (const redis_stop&) { return; } catch (const std::exception&) { // out of memory
        }
    }
}

SSE_DECL void redis_listener::attempt() {
    link_.open();
    link_.call({"SUBSCRIBE", room_.passing});
    link_.worked();
    room_.say(redis_room::listener, true);
    const unsigned round = room_.round;
    auto heard = redis_link::clock::now();
    while (round == room_.round) { // else the server may be another
        const auto now = redis_link::clock::now();
        if (const auto r = link_.take_if_there()) {
            heard = now;
            handle(*r);
            continue;
        }
        if (now - heard > room_.options.block + std::chrono::seconds(5)) {
            throw redis_trouble("no response in time; is Redis stopped, or is the network gone?");
        }
        const auto w = link_.wait(POLLIN, now + room_.options.block);
        if (w == redis_link::waited::late) {
            link_.append({"PING"});
            link_.flush(now + room_.options.block + std::chrono::seconds(5));
        }
        if (w == redis_link::waited::readable) link_.receive();
    }
}

SSE_DECL void redis_listener::handle(const redisReply& r) {
    expect_no_error(r);
    if (r.type != REDIS_REPLY_ARRAY || r.elements != 3) return; // of PING
    if (text_of(element_of(r, 0)) != "message" || !room_.begun) return;
    room_.tell([&](bus::sink& s) { s.passing(text_of(element_of(r, 2))); });
}

// --- the fetcher

SSE_DECL void redis_fetcher::read(std::string_view epoch, std::uint64_t after, std::size_t messages,
                                  std::function<void(bus::page)> done) {
    std::error_code failed;
    {
        const std::lock_guard lock(mutex_);
        if (over_) {
            failed = errc::stopped;
        } else if (requests_.size() >= most_requests) {
            failed = errc::no_room;
        } else {
            requests_.push_back({std::string(epoch), after, messages, std::move(done)});
        }
    }
    if (!failed) return link_.wake.wake();
    bus::page p;
    p.failed = failed;
    done(std::move(p));
}

SSE_DECL std::optional<redis_fetcher::request> redis_fetcher::next() {
    const std::lock_guard lock(mutex_);
    if (requests_.empty()) return std::nullopt;
    std::optional<request> r(std::move(requests_.front()));
    requests_.pop_front();
    return r;
}

SSE_DECL void redis_fetcher::run() noexcept {
    for (;;) {
        try {
            if (auto r = next()) {
                serve(*r);
                continue;
            }
            const auto hour = redis_link::clock::now() + std::chrono::hours(1);
            const auto w = link_.wait(POLLIN, hour);
            if (w != redis_link::waited::woken) link_.close(); // by Redis, or unused
        } catch (const redis_stop&) { return; }
    }
}

SSE_DECL void redis_fetcher::serve(request& r) noexcept {
    bus::page p;
    try {
        if (redis_link::clock::now() < retry_at_) throw redis_trouble("Redis is away");
        if (!link_.is_open()) link_.open();
        p = fetch(r);
    } catch (const redis_stop&) { p.failed = errc::stopped; } catch (const std::exception&) {
        link_.close();
        retry_at_ = redis_link::clock::now() + std::chrono::milliseconds(200);
        p = bus::page();
        p.failed = errc::bus_down;
    }
    r.done(std::move(p));
}

/// The marks of an epoch stand together in the list. Their numbers rise from one to the next.
SSE_DECL bus::page redis_fetcher::fetch(const request& r) {
    constexpr std::size_t most_bytes = std::size_t(4) * 1024 * 1024;
    bus::page p;
    const auto marks = parse_marks(*link_.call({"LRANGE", room_.epochs, "0", "-1"}));
    const auto is_of = [&](const redis_mark& m) { return m.name == r.epoch; };
    const auto newest = std::find_if(marks.begin(), marks.end(), is_of);
    p.whole = newest != marks.end();
    if (!p.whole) return p;
    const auto oldest = std::find_if_not(newest, marks.end(), is_of) - 1;
    const auto holder = std::find_if(
        newest, oldest, [&](const redis_mark& m) { return m.number(m.start) <= r.after; });
    redis_id from = std::max(holder->id(r.after), oldest->start);
    if (holder != marks.begin()) from = std::min(from, (holder - 1)->start); // it was lost there
    const auto end =
        newest == marks.begin() ? std::string("+") : std::string("(") + (newest - 1)->start.text();
    std::string begin = std::string("(") + from.text();
    redis_pace pace;
    for (std::size_t bytes = 0; p.records.size() < r.messages && bytes < most_bytes;) {
        const auto count = std::min(pace.count(), r.messages - p.records.size());
        const auto found =
            link_.call({"XRANGE", room_.messages, begin, end, "COUNT", std::to_string(count)});
        std::size_t size = 0;
        for (std::size_t i = 0; i < found->elements; ++i) {
            const redis_entry e(element_of(*found, i));
            begin = std::string(1, '(') + e.id.text();
            size += e.size;
            const redis_mark* const m = mark_of(marks, e.id);
            if (!e.message || !m || m->number(e.id) <= r.after) continue;
            p.records.push_back(
                {m->number(e.id),
                 std::chrono::system_clock::time_point(std::chrono::milliseconds(e.id.ms)),
                 std::string(*e.message)});
        }
        bytes += size;
        pace.note(found->elements, size);
        if (found->elements < count) break;
    }
    const auto first = link_.call({"XRANGE", room_.messages, "-", "+", "COUNT", "1"});
    p.whole = first->elements == 1 && redis_entry(element_of(*first, 0)).id <= from;
    return p;
}

SSE_DECL void redis_fetcher::finish() noexcept {
    std::deque<request> left;
    {
        const std::lock_guard lock(mutex_);
        over_ = true;
        left.swap(requests_);
    }
    for (auto& r : left) {
        bus::page p;
        p.failed = errc::stopped;
        r.done(std::move(p));
    }
}

// --- the engine

SSE_DECL void redis_engine::attach(sink& to, const history& kept) {
    if (reader_)
        throw std::logic_error("sse::redis_bus: this bus belongs to another server, or to one that "
                               "has stopped; make a "
                               "new one for each server");
    room_.sink = &to;
    reader_.emplace(room_, kept);
    listener_.emplace(room_);
    const asio::detail::signal_blocker blocked; // these threads handle no signals, nor SIGPIPE
    threads_.reserve(4);
    threads_.emplace_back([this] { reader_->run(); });
    if (const auto fault = reader_->first_attempt(); !fault.empty()) {
        detach();
        throw std::runtime_error("sse::redis_bus: " + fault);
    }
    threads_.emplace_back([this] { writer_.run(); });
    threads_.emplace_back([this] { listener_->run(); });
    threads_.emplace_back([this] { fetcher_.run(); });
}

SSE_DECL void redis_engine::detach() noexcept {
    room_.stopped = true;
    writer_.stop();
    fetcher_.stop();
    if (listener_) listener_->stop();
    if (reader_) reader_->stop();
    for (auto& t : threads_) {
        if (t.joinable()) t.join();
    }
    threads_.clear();
    writer_.finish();
    fetcher_.finish();
}

#endif // SSE_BODIES

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL std::shared_ptr<bus> redis_bus(redis_options o) {
    return std::make_shared<detail::redis_engine>(std::move(o));
}

#endif // SSE_BODIES

#endif // SSE_ENABLE_REDIS

// >>filelog ///////////////////////////////////////////////////////////////////////////////////////
// A bus in the files of one machine. Needs >>files, >>system, >>hub.
// Tests: tests/filelog.cpp
//
// A log is a folder of segments, SERIAL-EPOCH-FIRST.log, and a file `lock`. Serials count from 1
// without a gap. A segment is a header, an `opened` mark, records with dense numbers and further
// marks. All integers are little-endian; a crc is CRC-32C; times are microseconds since 1970.
//
//     header    8 magic    4 version       4 its size     8 serial      8 number of first record
//               8 epoch    8 epoch before  8 its last     8 created    12 zeros   4 crc of the rest
//     record    4 length   4 crc of the bytes     8 number    8 time    4 crc of these    the bytes
//     mark      a record with number 0:    1 kind         1 file_sync   6 zeros   8 born   40 boot
//
// Marks tell the next start how the last one ended:
//     opened     A process writes from here on. It is on the disk before any record after it, so
//                what is before it was, too. Says which boot of the machine this is, and when the
//                file was made according to the file system: a copy of it was made later.
//     closed     The last in the file: all is on the disk.
//     continued  There is a next segment. So if that is gone, it is noticed.
// A segment other than the last is on the disk as a whole, up to where its successor begins (what
// follows there was never confirmed). So what is torn can only be the end of the last one.
//
// Threads: one writes, tells the sink and calls publishers; one reads pages; with
// file_sync::interval one syncs.

namespace detail {

// --- files, as systems have them. They return -1 and set errno

struct file_mode {
    enum kind : std::uint8_t { read, write, create };
};
int open_log_file(const std::string& path, file_mode::kind how) noexcept;
void close_log_file(int file) noexcept;
std::ptrdiff_t read_log_file(int file, char* to, std::size_t size, std::uint64_t at) noexcept;
std::ptrdiff_t write_log_file(int file, const char* from, std::size_t size,
                              std::uint64_t at) noexcept;
int sync_log_file(int file) noexcept;
int truncate_log_file(int file, std::uint64_t size) noexcept;
int lock_log_file(const std::string& path) noexcept; ///< As long as it is open.
int make_log_folder(const char* path) noexcept;
int sync_log_folder(const std::string& path) noexcept;
std::string boot_id();                          ///< "" if there is none.
std::uint64_t time_of_birth(int file) noexcept; ///< 0 if the file system does not know it.

/// What writes, for tests in which it fails.
struct file_calls {
    std::function<int(const std::string&)> create = [](const std::string& path) {
        return open_log_file(path, file_mode::create);
    };
    std::function<std::ptrdiff_t(int, const char*, std::size_t, std::uint64_t)> write =
        write_log_file;
    std::function<int(int)> sync = sync_log_file;
    std::function<int(int, std::uint64_t)> truncate = truncate_log_file;
    std::function<std::uint64_t(int)> born = time_of_birth;
    std::string boot = boot_id();
};

class file_handle {
public:
    explicit file_handle(int file = -1) noexcept : file_(file) {}
    ~file_handle() {
        if (file_ >= 0) close_log_file(file_);
    }
    file_handle(file_handle&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
    file_handle& operator=(file_handle&& other) noexcept {
        std::swap(file_, other.file_);
        return *this;
    }
    int get() const noexcept { return file_; }
    explicit operator bool() const noexcept { return file_ >= 0; }

private:
    int file_;
};

// --- the format: bytes in, values out

std::uint32_t crc32c(std::string_view bytes, std::uint32_t so_far = 0) noexcept;

template <class T>
T little_endian(std::string_view bytes, std::size_t at) noexcept {
    T value = 0;
    if constexpr (std::endian::native == std::endian::little) { // compilers miss what the loop is
        std::memcpy(&value, bytes.data() + at, sizeof(T));
    } else {
        for (std::size_t i = sizeof(T); i-- > 0;)
            value = static_cast<T>(value << 8 | static_cast<unsigned char>(bytes[at + i]));
    }
    return value;
}
template <class T>
void put_little_endian(char* to, T value) noexcept {
    for (std::size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<char>((value >> (8 * i)) & 255);
}

/// What the header of a segment says.
struct log_segment {
    static constexpr std::size_t header_size = 80;
    static constexpr std::uint32_t version = 1;
    enum class verdict : std::uint8_t { good, incomplete, foreign, newer, damaged };

    std::uint64_t serial = 1;
    std::uint64_t first = 1;         ///< The number of its first record.
    std::string epoch = {};          ///< Eight characters.
    std::string previous = {};       ///< The epoch before, or "".
    std::uint64_t previous_last = 0; ///< Its last number.
    std::int64_t created = 0;
    std::uint64_t size = 0; ///< Of the file; not in the header.

    std::string file_name() const;
    std::string header() const;
    verdict parse(std::string_view bytes);
};

struct log_record {
    static constexpr std::size_t head_size = 28;
    static constexpr std::size_t max_bytes = 256 * 1024 * 1024;

    std::size_t size = 0; ///< Of all of it; 0: no whole and sound record is there.
    std::uint64_t number = 0;
    std::int64_t time = 0;
    std::string_view bytes = {};

    static log_record parse(std::string_view bytes) noexcept;
    static void append(std::string& to, std::uint64_t number, std::int64_t time,
                       std::string_view bytes);
    /// How large the record is whose head this is; 0: there is no sound head. It has a checksum of
    /// its own, so that a record which is cut can be told from one with a damaged length.
    static std::size_t size_of(std::string_view head) noexcept;
};

struct log_mark {
    enum class kind : std::uint8_t { opened = 1, closed, continued };
    static constexpr std::size_t bytes_size = 56;
    static constexpr std::size_t size = log_record::head_size + bytes_size;

    kind what = kind::opened;
    file_sync sync = file_sync::none;
    std::uint64_t born = 0;
    std::string boot = {};

    std::string encode() const;
    static std::optional<log_mark> parse(const log_record& from);
};

/// What a file of a segment holds.
struct log_scan {
    std::uint64_t next = 0;              ///< The number after its last whole record.
    std::size_t end = 0;                 ///< Where its whole records and marks end.
    std::optional<log_mark> opened = {}; ///< The last.
    std::optional<log_mark> last = {};   ///< Unless a record follows.

    bool is(log_mark::kind what) const noexcept { return last && last->what == what; }
};

/// What follows the last whole record of a file.
struct log_tail {
    bool cut = false; ///< It begins like a record that is longer.
    bool more_records = false;
    bool more_marks = false;

    log_tail(std::string_view bytes, std::uint64_t next);
};

/// Bytes in memory, where others are in a file.
class bytes_source {
public:
    explicit bytes_source(std::string_view bytes) : left_(bytes) {}
    std::string_view peek(std::size_t) const noexcept { return left_; }
    void skip(std::size_t size) noexcept { left_.remove_prefix(size); }

private:
    std::string_view left_;
};

/// The record that comes next; of size 0 if there is no sound one.
template <class Source>
log_record next_record(Source& from) {
    const std::size_t size = log_record::size_of(from.peek(log_record::head_size));
    return size == 0 ? log_record() : log_record::parse(from.peek(size));
}

/// Calls f for each record of a segment before number `until`. The source is after the header.
template <class Source, class F>
log_scan scan_segment(Source& from, std::uint64_t first, std::uint64_t until, F&& f) {
    log_scan found{.next = first, .end = log_segment::header_size};
    while (found.next < until && !found.is(log_mark::kind::continued)) {
        const log_record one = next_record(from);
        if (one.size == 0 || (one.number != 0 && one.number != found.next)) break;
        if (one.number != 0) {
            ++found.next;
            found.last.reset();
            f(one);
        } else if (auto mark = log_mark::parse(one)) {
            found.last = std::move(mark);
            if (found.is(log_mark::kind::opened)) found.opened = found.last;
        } else {
            break;
        }
        found.end += one.size;
        from.skip(one.size);
    }
    return found;
}

// --- reading

/// An error of the system about a file, with its remedy.
std::string explain(const std::string& path, std::error_code why);

/// A segment is not as it was written.
class log_damaged : public std::runtime_error {
public:
    log_damaged(const std::string& path, std::uint64_t offset, bool newest);
};

/// The bytes of a file from an offset on.
class file_source {
public:
    explicit file_source(const std::string& path, std::uint64_t offset = log_segment::header_size);

    bool is_missing() const noexcept { return missing_; } ///< There is no such file.
    /// At least so many bytes, if there are. Valid until the next call.
    std::string_view peek(std::size_t size);
    void skip(std::size_t size) noexcept {
        at_ += size;
        offset_ += size;
    }
    std::uint64_t offset() const noexcept { return offset_; }
    std::uint64_t left() const noexcept { return size_ - std::min(size_, offset_); }

private:
    static constexpr std::size_t step = 256 * 1024;

    std::string path_;
    file_handle file_;
    bool missing_;
    std::uint64_t size_ = 0;
    std::uint64_t offset_; // of what comes next, in the file
    std::string buffer_;
    std::size_t at_ = 0; // of what comes next, in the buffer
};

/// Reads the records of a segment one after the other.
class segment_reader {
public:
    /// Begins with record `next`, at this offset, and ends before `until`.
    segment_reader(const std::string& path, std::uint64_t next, std::uint64_t offset,
                   std::uint64_t until)
        : path_(path), from_(path, offset), next_(next), until_(until) {}

    /// Valid until the next call. Nothing: the end. Throws if the file is damaged.
    std::optional<log_record> read();
    bool is_missing() const noexcept { return from_.is_missing(); } ///< Then it is not to be read.
    std::uint64_t next() const noexcept { return next_; }
    std::uint64_t offset() const noexcept { return from_.offset(); }

private:
    std::string path_;
    file_source from_;
    std::uint64_t next_;
    std::uint64_t until_;
};

/// The newest records of those that come, within bounds.
class newest_records {
public:
    newest_records(const bus::history& kept, std::chrono::system_clock::time_point now);
    void push(const log_record& one);
    std::size_t count() const noexcept { return sizes_.size(); }
    bool has_dropped() const noexcept { return dropped_; }
    /// For what is older than these.
    bus::history rest() const noexcept;

private:
    void drop();
    bus::history bounds_;
    std::int64_t oldest_; // time
    std::deque<std::size_t> sizes_;
    std::size_t bytes_ = 0;
    bool dropped_ = false;
};

class file_log_bus final : public bus {
public:
    file_log_bus(std::string folder, const file_log_options& options, file_calls calls = {});
    ~file_log_bus() override { detach(); }

    SSE_DECL void attach(sink& to, const history& kept) override;
    SSE_DECL void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                          published done) override;
    SSE_DECL void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
                       std::function<void(page)> done) override;
    SSE_DECL void detach() noexcept override;

    static constexpr std::size_t max_page = 1024 * 1024;     ///< Bytes; or one record.
    static constexpr std::chrono::milliseconds retry{1'000}; ///< While the disk fails.

private:
    struct order {
        std::string bytes;
        bool store;
        published done;
        std::uint64_t number = 0;
    };
    struct page_order {
        std::string epoch;
        std::uint64_t after;
        std::size_t messages;
        std::function<void(page)> done;
    };
    /// The file that is written.
    struct written_file {
        explicit written_file(int file) noexcept : handle(file) {}
        file_handle handle;
        std::mutex syncing;       // a system reports that a sync failed to one call only
        std::error_code failed{}; // for good: what was to be written may have been dropped
    };
    struct place {
        std::uint64_t number = 0; // the last record before it
        std::uint64_t offset = 0;
    };
    struct located {
        log_segment in;
        std::uint64_t until = 0;
    };

    // At the start, on the thread that attaches.
    void open(const history& kept);
    void open_folder();
    void list_segments();
    log_segment read_header(const std::string& name);
    void check_chain() const;
    void judge_end();
    void plan_history(const history& kept);
    void start_threads();

    // On the thread that writes; at the start on the one that attaches.
    template <class F>
    void insist(F&& f) noexcept;
    void complain(const char* text) noexcept;
    void write_loop() noexcept;
    void tell_history();
    bool write_once();
    void wait_for_work(std::unique_lock<std::mutex>& lock);
    std::size_t group_size(std::span<const order> orders) const;
    void write_group(std::span<order> group);
    std::error_code write_records(std::span<order> group, std::int64_t time);
    std::error_code store(std::string_view bytes, std::uint64_t next);
    void take_back();
    void deliver(std::span<order> group, std::int64_t time);
    bool make_ready(std::size_t size);
    bool is_full(std::size_t size) const;
    std::error_code prepare();
    std::error_code probe();
    std::error_code reopen();
    std::error_code begin_segment();
    void seal() noexcept;
    log_mark mark(log_mark::kind what, int file) const;
    std::error_code write_at(int file, std::string_view bytes, std::uint64_t at);
    void check_sync();
    void lose_unsynced(std::error_code why);
    void set_broken(std::error_code now);
    void tell_health();
    void trim();
    bool is_too_much() const;
    void close() noexcept;

    void sync_loop() noexcept;
    std::error_code sync(written_file& file); // any thread
    void warn(std::string text);              // any thread

    // On the thread that reads.
    void read_loop() noexcept;
    page read_page(const page_order& wanted);
    std::uint64_t read_some(page& found, std::size_t& bytes, const located& from,
                            std::uint64_t next, std::size_t messages);
    std::optional<located> locate(std::string_view epoch, std::uint64_t number) const;
    std::uint64_t end_of(std::size_t segment) const;
    place known_before(const log_segment& in, std::uint64_t number);
    std::uint64_t oldest_serial() const;
    void remember(std::uint64_t serial, place at);

    std::string path_of(const log_segment& one) const { return folder_ + '/' + one.file_name(); }
    static std::int64_t now() noexcept;
    static std::chrono::system_clock::time_point time_point_of(std::int64_t time) {
        using clock = std::chrono::system_clock;
        return clock::time_point(
            std::chrono::duration_cast<clock::duration>(std::chrono::microseconds(time)));
    }

    const std::string folder_;
    const file_log_options options_;
    const file_calls calls_;
    file_handle lock_file_;

    // Of the thread that writes, before that of attach().
    sink* sink_ = nullptr;
    std::uint64_t next_ = 1;     // the number of the next record
    std::uint64_t position_ = 0; // where it goes
    bool fresh_segment_ = false; // begin a segment before anything else is written
    bool fresh_epoch_ = false;   // and an epoch
    std::error_code broken_{};   // why nothing can be written now
    std::chrono::steady_clock::time_point next_try_{};
    std::size_t told_from_ = 0;    // the history begins, or goes on, in this segment
    std::uint64_t told_first_ = 0; // with this record; 0: none
    std::string told_epoch_;
    bool is_told_ = false;
    bool health_due_ = true;
    std::vector<order> taken_;
    std::size_t written_out_ = 0; // of taken_
    std::string buffer_;

    mutable std::mutex mutex_; // guards the following
    std::condition_variable writer_wakes_, reader_wakes_, syncer_wakes_;
    std::vector<log_segment> segments_; // changed by the writer alone
    std::shared_ptr<written_file> current_;
    std::vector<order> queue_;
    std::size_t queued_ = 0; // bytes, with what is being written
    std::deque<page_order> pages_;
    std::vector<std::string> warnings_;
    std::string last_warning_;
    place written_, synced_; // in the last segment
    std::error_code lost_{}; // why a sync failed
    bool running_ = false;
    bool stopping_ = false; // takes nothing more

    std::mutex detaching_;
    std::thread writer_, reader_, syncer_;

    // Of the thread that reads: places in segments, by serial.
    static constexpr std::uint64_t index_step = 256 * 1024;
    std::map<std::uint64_t, std::vector<place>> index_;
};

#if defined(SSE_BODIES)

// --- files, as systems have them

#if defined(_WIN32)

SSE_DECL int open_log_file(const std::string& path, file_mode::kind how) noexcept {
    const int flags = how == file_mode::read    ? _O_RDONLY
                      : how == file_mode::write ? _O_RDWR
                                                : _O_RDWR | _O_CREAT | _O_TRUNC;
    int file = -1;
    const int failed = _sopen_s(&file, path.c_str(), flags | _O_BINARY | _O_NOINHERIT, _SH_DENYNO,
                                _S_IREAD | _S_IWRITE);
    if (failed != 0) errno = failed;
    return failed != 0 ? -1 : file;
}
SSE_DECL void close_log_file(int file) noexcept { _close(file); }
SSE_DECL std::ptrdiff_t read_log_file(int file, char* to, std::size_t size,
                                      std::uint64_t at) noexcept {
    if (_lseeki64(file, static_cast<std::int64_t>(at), SEEK_SET) < 0) return -1;
    return _read(file, to, static_cast<unsigned>(std::min<std::size_t>(size, 1 << 30)));
}
SSE_DECL std::ptrdiff_t write_log_file(int file, const char* from, std::size_t size,
                                       std::uint64_t at) noexcept {
    if (_lseeki64(file, static_cast<std::int64_t>(at), SEEK_SET) < 0) return -1;
    return _write(file, from, static_cast<unsigned>(std::min<std::size_t>(size, 1 << 30)));
}
SSE_DECL int sync_log_file(int file) noexcept { return _commit(file); }
SSE_DECL int truncate_log_file(int file, std::uint64_t size) noexcept {
    const int failed = _chsize_s(file, static_cast<std::int64_t>(size));
    if (failed != 0) errno = failed;
    return failed != 0 ? -1 : 0;
}
SSE_DECL int lock_log_file(const std::string& path) noexcept { // nobody else can open it
    int file = -1;
    const int failed = _sopen_s(&file, path.c_str(), _O_RDWR | _O_CREAT | _O_BINARY | _O_NOINHERIT,
                                _SH_DENYRW, _S_IREAD | _S_IWRITE);
    if (failed != 0) errno = failed == EACCES ? EWOULDBLOCK : failed;
    return failed != 0 ? -1 : file;
}
SSE_DECL int make_log_folder(const char* path) noexcept { return _mkdir(path); }
SSE_DECL int sync_log_folder(const std::string&) noexcept { return 0; } // NTFS has a journal
SSE_DECL std::string boot_id() { return {}; }
SSE_DECL std::uint64_t time_of_birth(int) noexcept { return 0; }

#else

SSE_DECL int open_log_file(const std::string& path, file_mode::kind how) noexcept {
    const int flags = how == file_mode::read ? O_RDONLY
                      : how == file_mode::write ? O_RDWR
                                                : O_RDWR | O_CREAT | O_TRUNC;
    return ::open(path.c_str(), flags | O_CLOEXEC, 0640);
}
SSE_DECL void close_log_file(int file) noexcept { ::close(file); }
SSE_DECL std::ptrdiff_t read_log_file(int file, char* to, std::size_t size,
                                      std::uint64_t at) noexcept {
    std::ptrdiff_t got = 0;
    do got = ::pread(file, to, std::min<std::size_t>(size, 1 << 30), static_cast<off_t>(at));
    while (got < 0 && errno == EINTR);
    return got;
}
SSE_DECL std::ptrdiff_t write_log_file(int file, const char* from, std::size_t size,
                                       std::uint64_t at) noexcept {
    std::ptrdiff_t put = 0;
    do put = ::pwrite(file, from, std::min<std::size_t>(size, 1 << 30), static_cast<off_t>(at));
    while (put < 0 && errno == EINTR);
    return put;
}
SSE_DECL int sync_log_file(int file) noexcept {
#if defined(__linux__)
    return ::fdatasync(file);
#elif defined(F_FULLFSYNC) // fsync() of macOS leaves it in the disk's cache
    return ::fcntl(file, F_FULLFSYNC) == 0 ? 0 : ::fsync(file);
#else
    return ::fsync(file);
#endif
}
SSE_DECL int truncate_log_file(int file, std::uint64_t size) noexcept {
    return ::ftruncate(file, static_cast<off_t>(size));
}
SSE_DECL int lock_log_file(const std::string& path) noexcept {
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    if (file < 0 || ::flock(file, LOCK_EX | LOCK_NB) == 0) return file;
    const int why = errno;
    ::close(file);
    errno = why;
    return -1;
}
SSE_DECL int make_log_folder(const char* path) noexcept { return ::mkdir(path, 0750); }
SSE_DECL int sync_log_folder(const std::string& path) noexcept {
    const file_handle folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder) return -1;
    return ::fsync(folder.get()) == 0 || errno == EINVAL ? 0 : -1; // some file systems have none
}
SSE_DECL std::string boot_id() {
    std::array<char, 36> id{};
    const auto file = open_file("/proc/sys/kernel/random/boot_id");
    if (!file || std::fread(id.data(), 1, id.size(), file.get()) != id.size()) return {};
    return {id.data(), id.size()};
}
SSE_DECL std::uint64_t time_of_birth([[maybe_unused]] int file) noexcept {
#if defined(__linux__) && defined(STATX_BTIME)
    struct statx known {};
    if (::statx(file, "", AT_EMPTY_PATH, STATX_BTIME, &known) != 0) return 0;
    if ((known.stx_mask & STATX_BTIME) == 0) return 0;
    return static_cast<std::uint64_t>(known.stx_btime.tv_sec) * 1'000'000'000 +
           known.stx_btime.tv_nsec;
#elif defined(__APPLE__)
    struct stat known {};
    if (::fstat(file, &known) != 0) return 0;
    return static_cast<std::uint64_t>(known.st_birthtimespec.tv_sec) * 1'000'000'000 +
           static_cast<std::uint64_t>(known.st_birthtimespec.tv_nsec);
#else
    return 0;
#endif
}

#endif

inline std::error_code last_error() noexcept { return {errno, std::generic_category()}; }

// --- the format

/// Eight tables, to take eight bytes at a time: table k is for a byte with k more after it.
inline constexpr auto crc32c_tables = [] {
    std::array<std::array<std::uint32_t, 256>, 8> tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
        tables[0][byte] = crc;
    }
    for (std::size_t k = 1; k < 8; ++k) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = tables[k - 1][byte];
            tables[k][byte] = (before >> 8) ^ tables[0][before & 255];
        }
    }
    return tables;
}();

SSE_DECL std::uint32_t crc32c(std::string_view bytes, std::uint32_t so_far) noexcept {
    const auto& t = crc32c_tables;
    std::uint32_t crc = ~so_far;
    std::size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        const std::uint32_t low = little_endian<std::uint32_t>(bytes, at) ^ crc;
        const auto high = little_endian<std::uint32_t>(bytes, at + 4);
        crc = t[7][low & 255] ^ t[6][(low >> 8) & 255] ^ t[5][(low >> 16) & 255] ^ t[4][low >> 24] ^
              t[3][high & 255] ^ t[2][(high >> 8) & 255] ^ t[1][(high >> 16) & 255] ^
              t[0][high >> 24];
    }
    for (; at < bytes.size(); ++at) {
        crc = (crc >> 8) ^ t[0][(crc ^ static_cast<unsigned char>(bytes[at])) & 255];
    }
    return ~crc;
}

inline constexpr std::string_view log_magic = "\x89sselog\n";

SSE_DECL std::string log_segment::file_name() const {
    const auto padded = [](std::uint64_t number, std::size_t width) {
        const std::string digits = std::to_string(number);
        return std::string(width - std::min(width, digits.size()), '0') + digits;
    };
    return padded(serial, 10) + '-' + epoch + '-' + padded(first, 20) + ".log";
}

SSE_DECL std::string log_segment::header() const {
    std::string bytes(header_size, '\0');
    char* const to = bytes.data();
    log_magic.copy(to, 8);
    put_little_endian(to + 8, version);
    put_little_endian(to + 12, static_cast<std::uint32_t>(header_size));
    put_little_endian(to + 16, serial);
    put_little_endian(to + 24, first);
    epoch.copy(to + 32, 8);
    previous.copy(to + 40, 8);
    put_little_endian(to + 48, previous_last);
    put_little_endian(to + 56, static_cast<std::uint64_t>(created));
    put_little_endian(to + 76, crc32c(std::string_view(bytes).substr(0, 76)));
    return bytes;
}

SSE_DECL log_segment::verdict log_segment::parse(std::string_view bytes) {
    if (bytes.size() < header_size) return verdict::incomplete;
    if (!bytes.starts_with(log_magic)) return verdict::foreign;
    if (little_endian<std::uint32_t>(bytes, 8) > version) return verdict::newer;
    if (little_endian<std::uint32_t>(bytes, 76) != crc32c(bytes.substr(0, 76)))
        return verdict::damaged;
    serial = little_endian<std::uint64_t>(bytes, 16);
    first = little_endian<std::uint64_t>(bytes, 24);
    epoch = bytes.substr(32, 8);
    previous = bytes[40] == '\0' ? std::string_view() : bytes.substr(40, 8);
    previous_last = little_endian<std::uint64_t>(bytes, 48);
    created = static_cast<std::int64_t>(little_endian<std::uint64_t>(bytes, 56));
    return verdict::good;
}

SSE_DECL std::size_t log_record::size_of(std::string_view head) noexcept {
    if (head.size() < head_size) return 0;
    if (little_endian<std::uint32_t>(head, 24) != crc32c(head.substr(0, 24))) return 0;
    const std::size_t length = little_endian<std::uint32_t>(head, 0);
    return length <= max_bytes ? head_size + length : 0;
}

SSE_DECL log_record log_record::parse(std::string_view bytes) noexcept {
    const std::size_t size = size_of(bytes);
    if (size == 0 || size > bytes.size()) return {};
    const std::string_view what = bytes.substr(head_size, size - head_size);
    if (little_endian<std::uint32_t>(bytes, 4) != crc32c(what)) return {};
    return {size, little_endian<std::uint64_t>(bytes, 8),
            static_cast<std::int64_t>(little_endian<std::uint64_t>(bytes, 16)), what};
}

SSE_DECL void log_record::append(std::string& to, std::uint64_t number, std::int64_t time,
                                 std::string_view bytes) {
    std::array<char, head_size> head;
    put_little_endian(head.data(), static_cast<std::uint32_t>(bytes.size()));
    put_little_endian(head.data() + 4, crc32c(bytes));
    put_little_endian(head.data() + 8, number);
    put_little_endian(head.data() + 16, static_cast<std::uint64_t>(time));
    put_little_endian(head.data() + 24, crc32c({head.data(), 24}));
    to.append(head.data(), head.size()).append(bytes);
}

SSE_DECL std::string log_mark::encode() const {
    std::string bytes(bytes_size, '\0');
    bytes[0] = static_cast<char>(what);
    bytes[1] = static_cast<char>(sync);
    put_little_endian(bytes.data() + 8, born);
    boot.copy(bytes.data() + 16, 40);
    std::string out;
    log_record::append(out, 0, 0, bytes);
    return out;
}

SSE_DECL std::optional<log_mark> log_mark::parse(const log_record& from) {
    if (from.number != 0 || from.bytes.size() != bytes_size) return std::nullopt;
    const auto what = static_cast<unsigned char>(from.bytes[0]);
    const auto sync = static_cast<unsigned char>(from.bytes[1]);
    if (what < 1 || what > 3 || sync > 2) return std::nullopt;
    const std::string_view boot = from.bytes.substr(16);
    return log_mark{static_cast<kind>(what), static_cast<file_sync>(sync),
                    little_endian<std::uint64_t>(from.bytes, 8),
                    std::string(boot.substr(0, boot.find('\0')))};
}

SSE_DECL log_tail::log_tail(std::string_view bytes, std::uint64_t next) {
    const std::size_t size = log_record::size_of(bytes);
    cut = bytes.size() < log_record::head_size || size > bytes.size();
    if (cut) return; // whatever its bytes look like, which are the publisher's
    for (std::size_t at = std::max<std::size_t>(size, 1); at < bytes.size();) {
        const log_record one = log_record::parse(bytes.substr(at));
        if (one.size > 0 && one.number >= next) more_records = true;
        if (one.size > 0 && one.number == 0) more_marks = true;
        at += std::max<std::size_t>(one.size, 1);
    }
}

// --- reading

SSE_DECL std::string explain(const std::string& path, std::error_code why) {
    std::string remedy = "check the disk";
    if (why == std::errc::no_space_on_device)
        remedy = "free space, or lower file_log_options::bytes";
    else if (why == std::errc::permission_denied || why == std::errc::operation_not_permitted)
        remedy = "let the program's user read and write there";
    else if (why == std::errc::read_only_file_system)
        remedy = "choose a folder on a file system that can be written";
    else if (why == std::errc::not_a_directory || why == std::errc::file_exists)
        remedy = "give the path of a folder";
    else if (why == std::errc::too_many_files_open)
        remedy = "raise the limit of open files (ulimit -n)";
    return path + ": " + why.message() + "; " + remedy;
}

SSE_DECL log_damaged::log_damaged(const std::string& path, std::uint64_t offset, bool newest)
    : std::runtime_error(
          path + ": damaged at offset " + std::to_string(offset) +
          "; restore the file, or move it " +
          (newest ? "out of the folder: then a new epoch begins after what is before it"
                  : "and all before it out of the folder: then the history begins after it")) {}

SSE_DECL file_source::file_source(const std::string& path, std::uint64_t offset)
    : path_(path), file_(open_log_file(path, file_mode::read)), missing_(!file_ && errno == ENOENT),
      offset_(offset) {
    if (!file_ && !missing_) throw std::runtime_error(explain(path, last_error()));
    std::error_code failed;
    if (file_) size_ = std::filesystem::file_size(path, failed);
    if (failed) throw std::runtime_error(explain(path, failed));
}

SSE_DECL std::string_view file_source::peek(std::size_t size) {
    size = static_cast<std::size_t>(std::min<std::uint64_t>(size, left()));
    if (buffer_.size() - at_ < size) {
        buffer_.erase(0, std::exchange(at_, 0));
        std::size_t have = buffer_.size();
        buffer_.resize(std::max(size, step)); // what a damaged length claims is not in the file
        std::ptrdiff_t got = 1;
        while (have < size && got > 0) {
            got = read_log_file(file_.get(), buffer_.data() + have, buffer_.size() - have,
                                offset_ + have);
            if (got > 0) have += static_cast<std::size_t>(got);
        }
        const std::error_code failed = got < 0 ? last_error() : std::error_code();
        buffer_.resize(have);
        if (failed) throw std::runtime_error(explain(path_, failed));
    }
    return std::string_view(buffer_).substr(at_);
}

SSE_DECL std::optional<log_record> segment_reader::read() {
    while (next_ < until_) {
        const log_record one = next_record(from_);
        if (one.size == 0 || (one.number != 0 && one.number != next_))
            throw log_damaged(path_, offset(), false);
        from_.skip(one.size);
        if (one.number == 0) continue;
        ++next_;
        return one;
    }
    return std::nullopt;
}

SSE_DECL newest_records::newest_records(const bus::history& kept,
                                        std::chrono::system_clock::time_point now)
    : bounds_(kept), oldest_(std::numeric_limits<std::int64_t>::min()) {
    using std::chrono::microseconds;
    if (kept.age.count() > 0)
        oldest_ = std::chrono::floor<microseconds>(now.time_since_epoch() - kept.age).count();
}

SSE_DECL void newest_records::push(const log_record& one) {
    sizes_.push_back(one.bytes.size());
    bytes_ += one.bytes.size();
    if (one.time < oldest_) {
        while (!sizes_.empty()) drop();
    }
    while (!sizes_.empty() && (sizes_.size() > bounds_.messages || bytes_ > bounds_.bytes)) drop();
}

SSE_DECL void newest_records::drop() {
    dropped_ = true;
    bytes_ -= sizes_.front();
    sizes_.pop_front();
}

SSE_DECL bus::history newest_records::rest() const noexcept {
    return {bounds_.messages - sizes_.size(), bounds_.bytes - bytes_, bounds_.age};
}

// --- the start

SSE_DECL file_log_bus::file_log_bus(std::string folder, const file_log_options& options,
                                    file_calls calls)
    : folder_(std::move(folder)), options_(options), calls_(std::move(calls)) {
    const auto need = [](bool holds, const char* text) {
        if (!holds) throw std::invalid_argument(std::string("sse::file_log") + text);
    };
    using namespace std::chrono_literals;
    need(!folder_.empty(), ": the folder has no name");
    need(options.sync <= file_sync::each, "_options::sync: not one of file_sync");
    need(options.interval >= 1ms && options.interval <= 1min,
         "_options::interval: not from 1 ms to 1 min; for none use file_sync::each or none");
    need(options.segment_bytes >= 4 * 1024 && options.segment_bytes <= 1024 * 1024 * 1024,
         "_options::segment_bytes: not from 4 KiB to 1 GiB");
    need(options.bytes >= 2 * std::uint64_t{options.segment_bytes},
         "_options::bytes: less than twice segment_bytes; raise it, or lower segment_bytes");
    need(options.age >= 0ms && options.age <= 87'600h, "_options::age: not from 0 to ten years");
    need(options.queue_bytes >= 64 * 1024 && options.queue_bytes <= 1024 * 1024 * 1024,
         "_options::queue_bytes: not from 64 KiB to 1 GiB");
}

SSE_DECL std::int64_t file_log_bus::now() noexcept {
    const auto time = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::microseconds>(time).count();
}

SSE_DECL void file_log_bus::attach(sink& to, const history& kept) {
    if (sink_)
        throw std::logic_error(
            "sse::file_log: this bus belongs to another server, or to one that has stopped; make a "
            "new one for each server");
    sink_ = &to;
    try {
        open(kept);
    } catch (...) {
        current_.reset();
        lock_file_ = file_handle(); // another one may try
        throw;
    }
    start_threads();
}

SSE_DECL void file_log_bus::open(const history& kept) {
    open_folder();
    list_segments();
    if (segments_.empty()) {
        fresh_segment_ = fresh_epoch_ = true;
    } else {
        judge_end();
    }
    plan_history(kept);
    broken_ = prepare();
    if (broken_ && (segments_.empty() || broken_ != std::errc::no_space_on_device))
        throw std::runtime_error(explain(folder_, broken_));
}

SSE_DECL void file_log_bus::open_folder() {
    namespace fs = std::filesystem;
    fs::path made;
    std::error_code failed;
    for (const fs::path& part : fs::path(folder_)) {
        made /= part;
        if (fs::is_directory(made, failed)) continue;
        if (make_log_folder(made.string().c_str()) == 0) continue;
        const std::error_code why = last_error();
        if (!fs::is_directory(made, failed)) throw std::runtime_error(explain(folder_, why));
    }
    lock_file_ = file_handle(lock_log_file(folder_ + "/lock"));
    if (lock_file_) return;
    const std::error_code why = last_error();
    if (why == std::errc::operation_would_block)
        throw std::runtime_error(folder_ + ": another process or server has this log open; end "
                                           "it, or give each a folder of its own");
    throw std::runtime_error(explain(folder_, why));
}

/// Reads the first bytes of the segments.
SSE_DECL void file_log_bus::list_segments() {
    std::error_code failed;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator at(folder_, failed), end; !failed && at != end;
         at.increment(failed)) {
        std::string name = at->path().filename().string();
        if (name.size() == 44 && name.ends_with(".log")) names.push_back(std::move(name));
    }
    if (failed) throw std::runtime_error(explain(folder_, failed));
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
        log_segment one = read_header(name);
        if (one.epoch.empty() && name != names.back())
            throw log_damaged(folder_ + '/' + name, 0, false);
        if (!one.epoch.empty()) {
            segments_.push_back(std::move(one));
        } else if (std::remove((folder_ + '/' + name).c_str()) != 0) { // another may get its serial
            throw std::runtime_error(explain(folder_ + '/' + name, last_error()));
        }
    }
    check_chain();
}

/// Without an epoch: the file was being made when the machine or the program went down.
SSE_DECL log_segment file_log_bus::read_header(const std::string& name) {
    constexpr std::size_t start = log_segment::header_size + log_mark::size;
    const std::string path = folder_ + '/' + name;
    const file_handle file(open_log_file(path, file_mode::read));
    if (!file) throw std::runtime_error(explain(path, last_error()));
    std::string bytes(start + 1, '\0');
    const std::ptrdiff_t got = read_log_file(file.get(), bytes.data(), bytes.size(), 0);
    if (got < 0) throw std::runtime_error(explain(path, last_error()));
    bytes.resize(static_cast<std::size_t>(got));

    log_segment one;
    const auto verdict = one.parse(bytes);
    if (verdict == log_segment::verdict::newer)
        throw std::runtime_error(path + ": written by a newer version of the library; use that "
                                        "version, or another folder");
    // Nothing follows a header and its mark before they are on the disk.
    const bool marked =
        bytes.size() >= start && log_mark::parse(log_record::parse(std::string_view(bytes).substr(
                                     log_segment::header_size, log_mark::size)));
    if (bytes.size() <= start && !(verdict == log_segment::verdict::good && marked)) return {};
    if (verdict != log_segment::verdict::good || one.file_name() != name)
        throw std::runtime_error(path + ": its header is damaged, or the file was renamed; restore "
                                        "it, or move it and all before it out of the folder");
    one.size = std::filesystem::file_size(path);
    return one;
}

SSE_DECL void file_log_bus::check_chain() const {
    for (std::size_t i = 1; i < segments_.size(); ++i) {
        const log_segment& before = segments_[i - 1];
        const log_segment& after = segments_[i];
        const bool linked = after.epoch == before.epoch
                                ? after.first >= before.first
                                : after.previous == before.epoch && after.first == 1 &&
                                      after.previous_last + 1 >= before.first;
        if (after.serial != before.serial + 1 || !linked)
            throw std::runtime_error(path_of(after) +
                                     ": the segment before it is missing; restore it, or move all "
                                     "older ones out of the folder: then the history begins here");
    }
}

/// Decides how to go on after the last segment.
SSE_DECL void file_log_bus::judge_end() {
    using kind = log_mark::kind;
    const std::string path = path_of(segments_.back());
    file_source from(path);
    constexpr auto all = std::numeric_limits<std::uint64_t>::max();
    const log_scan found =
        scan_segment(from, segments_.back().first, all, [](const log_record&) {});
    if (!found.opened) throw log_damaged(path, found.end, true);
    // After a mark that there is a next segment, nothing counts.
    const auto rest = found.is(kind::continued) ? 0 : static_cast<std::size_t>(from.left());
    const log_tail tail(from.peek(rest).substr(0, rest), found.next);

    const file_handle file(open_log_file(path, file_mode::write));
    if (!file) throw std::runtime_error(explain(path, last_error()));
    const std::uint64_t born = calls_.born(file.get());
    const bool copied = born != 0 && found.opened->born != 0 && born != found.opened->born;
    const bool same_boot = !calls_.boot.empty() && calls_.boot == found.opened->boot;
    const bool closed = found.is(kind::closed);
    const bool synced = closed || found.opened->sync == file_sync::each;
    // A machine that goes down loses pages in any order; a program that ends loses an end.
    if (tail.more_marks || (tail.more_records && (closed || same_boot)))
        throw log_damaged(path, found.end, true);

    next_ = found.next;
    position_ = found.end;
    segments_.back().size = found.end;
    written_ = {next_ - 1, position_};
    // How far it is on the disk is known once it was synced: not at all, as yet.
    synced_ = {segments_.back().first - 1, log_segment::header_size};
    const bool odd = rest > 0 && (tail.more_records || (same_boot && !tail.cut) ||
                                  (closed && rest > log_mark::size));
    fresh_segment_ = fresh_epoch_ =
        copied || odd || found.is(kind::continued) || !(same_boot || synced);
    if (rest > 0)
        warnings_.push_back(path + ": cut off at offset " + std::to_string(found.end) + ": " +
                            std::to_string(rest) +
                            " bytes of a message that was not written to its end");
    if (!fresh_epoch_) return;
    if (calls_.sync(file.get()) != 0) throw std::runtime_error(explain(path, last_error()));
    warnings_.push_back(path + ": " +
                        (copied                      ? "is a copy, such as one from a backup"
                         : found.is(kind::continued) ? "the segment after it is missing"
                         : odd                       ? "its end is damaged"
                               : "the machine went down before all was on the disk") +
                        ", so messages after " + std::to_string(next_ - 1) +
                        " may be lost: a new epoch begins, and clients are sent a gap");
}

/// Finds where the history begins that the sink is told, and checks that it is sound.
SSE_DECL void file_log_bus::plan_history(const history& kept) {
    const auto time = std::chrono::system_clock::now();
    history left = kept;
    told_from_ = segments_.size();
    while (told_from_ > 0 && left.messages > 0 && left.bytes > 0) {
        const log_segment& one = segments_[told_from_ - 1];
        const std::uint64_t end = end_of(told_from_ - 1);
        newest_records newest(left, time);
        file_source from(path_of(one));
        const auto found =
            scan_segment(from, one.first, end, [&](const log_record& each) { newest.push(each); });
        if (found.next != end)
            throw log_damaged(path_of(one), found.end, told_from_ == segments_.size());
        if (newest.count() == 0 && newest.has_dropped()) break;
        --told_from_;
        told_first_ = end - newest.count();
        left = newest.rest();
        if (newest.has_dropped()) break;
    }
}

SSE_DECL void file_log_bus::start_threads() {
    const asio::detail::signal_blocker blocked; // signals are for the program's own threads
    {
        const std::lock_guard lock(mutex_);
        running_ = true;
    }
    try {
        writer_ = std::thread([this] { write_loop(); });
        reader_ = std::thread([this] { read_loop(); });
        if (options_.sync == file_sync::interval) syncer_ = std::thread([this] { sync_loop(); });
    } catch (...) {
        detach();
        throw;
    }
}

// --- what the server calls

SSE_DECL void file_log_bus::publish(std::string bytes, bool store, std::chrono::milliseconds,
                                    published done) {
    errc why{};
    {
        const std::lock_guard lock(mutex_);
        if (stopping_) {
            why = errc::stopped;
        } else if (!running_) {
            why = errc::bus_down;
        } else if (bytes.size() > log_record::max_bytes) {
            why = errc::bus_refused;
        } else if (queued_ > 0 && queued_ + bytes.size() > options_.queue_bytes) {
            why = errc::no_room; // one alone may be larger
        } else {
            const std::size_t size = bytes.size();
            queue_.push_back({std::move(bytes), store, std::move(done)});
            queued_ += size + log_record::head_size;
            if (queue_.size() == 1) writer_wakes_.notify_one();
            return;
        }
    }
    done(why, 0);
}

SSE_DECL void file_log_bus::read(std::string_view epoch, std::uint64_t after, std::size_t messages,
                                 std::function<void(page)> done) {
    page refused;
    {
        const std::lock_guard lock(mutex_);
        if (running_ && !stopping_) {
            pages_.push_back({std::string(epoch), after, messages, std::move(done)});
            reader_wakes_.notify_one();
            return;
        }
        refused.failed = stopping_ ? errc::stopped : errc::bus_down;
    }
    done(std::move(refused));
}

SSE_DECL void file_log_bus::detach() noexcept {
    const std::lock_guard one_at_a_time(detaching_);
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        writer_wakes_.notify_all();
        reader_wakes_.notify_all();
        syncer_wakes_.notify_all();
    }
    for (std::thread* each : {&syncer_, &reader_, &writer_}) {
        if (each->joinable()) each->join();
    }
    const std::lock_guard lock(mutex_);
    current_.reset();
    lock_file_ = file_handle();
}

// --- writing

/// What fails on this thread is for want of memory: in the sink, which then has not taken what it
/// was told, or here before anything was written. So it is tried again.
template <class F>
void file_log_bus::insist(F&& f) noexcept {
    for (;;) {
        try {
            return f();
        } catch (const std::exception& e) { complain(e.what()); } catch (...) {
            complain("unknown exception");
        }
        std::unique_lock lock(mutex_);
        if (writer_wakes_.wait_for(lock, retry / 10, [&] { return stopping_; })) return;
    }
}

SSE_DECL void file_log_bus::complain(const char* text) noexcept {
    health_due_ = true; // that it is well again
    try {
        sink_->health(false, text);
    } catch (...) {} // the next attempt says it
}

SSE_DECL void file_log_bus::write_loop() noexcept {
    insist([&] { tell_history(); });
    is_told_ = true;
    for (bool more = true; more;) {
        insist([&] { more = write_once(); });
    }
    close();
}

/// Begins where it was interrupted.
SSE_DECL void file_log_bus::tell_history() {
    if (told_from_ == segments_.size()) --told_from_; // only its epoch
    if (told_first_ == 0) told_first_ = end_of(told_from_);
    for (; told_from_ < segments_.size(); ++told_from_) {
        const log_segment& one = segments_[told_from_];
        told_first_ = std::max(told_first_, one.first);
        if (told_epoch_ != one.epoch) {
            if (!told_epoch_.empty()) told_first_ = one.first;
            const auto why = one.previous.empty() ? gap_reason::epoch : gap_reason::rewound;
            sink_->epoch(one.epoch, told_first_ - 1, why);
            told_epoch_ = one.epoch;
        }
        segment_reader from(path_of(one), one.first, log_segment::header_size, end_of(told_from_));
        while (const auto found = from.read()) {
            if (found->number < told_first_) continue;
            sink_->message({found->number, time_point_of(found->time), found->bytes});
            told_first_ = found->number + 1;
        }
    }
    sink_->ready();
    told_from_ = 0;
}

/// Returns whether there may be more to write.
SSE_DECL bool file_log_bus::write_once() {
    bool more = true;
    {
        std::unique_lock lock(mutex_);
        wait_for_work(lock);
        if (taken_.empty()) taken_.swap(queue_);
        more = !stopping_ || !taken_.empty();
    }
    check_sync();
    // What is published tries too; but perhaps nothing is.
    if (const auto time = std::chrono::steady_clock::now(); broken_ && time >= next_try_) {
        make_ready(0);
        next_try_ = time + retry;
    }
    tell_health();
    while (written_out_ < taken_.size()) {
        const auto left = std::span(taken_).subspan(written_out_);
        const auto group = left.first(group_size(left));
        write_group(group);
        written_out_ += group.size();
    }
    taken_.clear();
    written_out_ = 0;
    trim();
    return more;
}

SSE_DECL void file_log_bus::wait_for_work(std::unique_lock<std::mutex>& lock) {
    using std::chrono::milliseconds;
    const auto is_due = [&] {
        return stopping_ || !queue_.empty() || !taken_.empty() || lost_ || !warnings_.empty() ||
               health_due_;
    };
    if (broken_) {
        writer_wakes_.wait_for(lock, retry, is_due);
    } else if (options_.age.count() > 0) {
        const auto look = std::clamp(options_.age / 8, milliseconds(100), milliseconds(60'000));
        writer_wakes_.wait_for(lock, look, is_due);
    } else {
        writer_wakes_.wait(lock, is_due);
    }
}

/// How many of them go into one write.
SSE_DECL std::size_t file_log_bus::group_size(std::span<const order> orders) const {
    const std::size_t most = std::min<std::size_t>(options_.segment_bytes, 4 * 1024 * 1024);
    std::size_t count = 0, bytes = 0;
    for (; count < orders.size(); ++count) {
        bytes += orders[count].bytes.size() + log_record::head_size;
        if (bytes > most && count > 0) break;
    }
    return count;
}

SSE_DECL void file_log_bus::write_group(std::span<order> group) {
    std::size_t size = 0, bytes = 0;
    for (const order& each : group) {
        bytes += each.bytes.size() + log_record::head_size;
        if (each.store) size += each.bytes.size() + log_record::head_size;
    }
    const std::int64_t time = now();
    if (size > 0 && make_ready(size)) set_broken(write_records(group, time));
    insist([&] { tell_health(); }); // what is written must not be written twice
    deliver(group, time);
    if (buffer_.capacity() > 8 * 1024 * 1024) buffer_ = {}; // after an unusually large message
    const std::lock_guard lock(mutex_);
    queued_ -= bytes;
}

SSE_DECL std::error_code file_log_bus::write_records(std::span<order> group, std::int64_t time) {
    buffer_.clear();
    std::uint64_t number = next_;
    for (const order& each : group) {
        if (each.store) log_record::append(buffer_, number++, time, each.bytes);
    }
    if (const std::error_code failed = store(buffer_, number)) return failed;
    for (order& each : group) {
        if (each.store) each.number = next_++;
    }
    return {};
}

/// Appends records whose last has the number before `next`, all of them or none.
SSE_DECL std::error_code file_log_bus::store(std::string_view bytes, std::uint64_t next) {
    std::error_code failed = write_at(current_->handle.get(), bytes, position_);
    if (!failed && options_.sync == file_sync::each) failed = sync(*current_);
    if (failed) {
        take_back();
        return failed;
    }
    position_ += bytes.size();
    const std::lock_guard lock(mutex_);
    if (written_.offset == synced_.offset) syncer_wakes_.notify_one();
    written_ = {next - 1, position_};
    if (options_.sync == file_sync::each) synced_ = written_;
    return {};
}

/// Cuts off what a failed write has left. On the disk too, and before anything else is written: its
/// numbers go to other messages.
SSE_DECL void file_log_bus::take_back() {
    // If that fails, a fresh segment says where this one ends.
    if (calls_.truncate(current_->handle.get(), position_) != 0) fresh_segment_ = true;
    if (const std::error_code failed = sync(*current_)) return lose_unsynced(failed);
    const std::lock_guard lock(mutex_);
    synced_ = written_;
}

SSE_DECL void file_log_bus::deliver(std::span<order> group, std::int64_t time) {
    for (order& each : group) {
        std::error_code failed;
        if (!each.store) {
            insist([&] { sink_->passing(each.bytes); });
        } else if (each.number == 0) {
            failed = errc::bus_refused;
        } else {
            insist([&] { sink_->message({each.number, time_point_of(time), each.bytes}); });
        }
        try {
            each.done(failed, each.number);
        } catch (...) {} // the publisher's own
    }
}

/// Makes sure that there is a segment to which so many bytes can be appended; with 0, also that
/// there is room. Returns whether it is worth trying.
SSE_DECL bool file_log_bus::make_ready(std::size_t size) {
    check_sync();
    if (is_full(size)) {
        if (const std::error_code failed = sync(*current_)) lose_unsynced(failed);
        fresh_segment_ = true;
    }
    if (fresh_segment_ || !current_) {
        set_broken(prepare());
    } else if (broken_ && size == 0) {
        set_broken(probe());
    }
    return current_ && !fresh_segment_;
}

/// Whether there is room again, by a file of its own: the segment has nothing to write.
SSE_DECL std::error_code file_log_bus::probe() {
    const std::string path = folder_ + "/probe";
    std::error_code failed;
    if (const file_handle file(calls_.create(path)); file) {
        failed = write_at(file.get(), std::string(64 * 1024, '\0'), 0);
    } else {
        failed = last_error();
    }
    std::remove(path.c_str());
    return failed;
}

SSE_DECL bool file_log_bus::is_full(std::size_t size) const {
    const log_segment& last = segments_.back(); // an empty one stays
    if (size == 0 || fresh_segment_ || !current_ || next_ == last.first) return false;
    const std::int64_t age = std::chrono::microseconds(options_.age).count();
    return position_ + size > options_.segment_bytes || (age > 0 && now() - last.created > age / 4);
}

/// Begins to write, in a segment that is there or a fresh one.
SSE_DECL std::error_code file_log_bus::prepare() {
    const std::error_code failed = fresh_segment_ ? begin_segment() : reopen();
    if (failed) return failed;
    fresh_segment_ = false;
    if (std::exchange(fresh_epoch_, false) && is_told_)
        insist([&] { sink_->epoch(segments_.back().epoch, 0, gap_reason::rewound); });
    return {};
}

SSE_DECL std::error_code file_log_bus::reopen() {
    std::shared_ptr<written_file> file = current_;
    if (!file)
        file = std::make_shared<written_file>(
            open_log_file(path_of(segments_.back()), file_mode::write));
    const int descriptor = file->handle.get();
    if (descriptor < 0 || calls_.truncate(descriptor, position_) != 0) return last_error();
    const std::string opened = mark(log_mark::kind::opened, descriptor).encode();
    if (const std::error_code failed = write_at(descriptor, opened, position_)) return failed;
    if (const std::error_code failed = sync(*file)) {
        lose_unsynced(failed);
        return failed;
    }
    position_ += opened.size();
    const std::lock_guard lock(mutex_);
    current_ = std::move(file);
    written_ = synced_ = {next_ - 1, position_};
    return {};
}

SSE_DECL std::error_code file_log_bus::begin_segment() {
    log_segment made = segments_.empty() ? log_segment{.serial = 0} : segments_.back();
    if (fresh_epoch_) {
        made.previous = made.epoch;
        made.previous_last = made.epoch.empty() ? 0 : next_ - 1;
        made.epoch = make_epoch();
    }
    {
        const std::lock_guard lock(mutex_);
        segments_.reserve(segments_.size() + 1); // what is made is also noted
    }
    made.first = fresh_epoch_ ? 1 : next_;
    made.created = now();
    ++made.serial;
    const std::string path = path_of(made);
    auto file = std::make_shared<written_file>(calls_.create(path));
    const int descriptor = file->handle.get();
    if (descriptor < 0) return last_error();
    const std::string bytes = made.header() + mark(log_mark::kind::opened, descriptor).encode();
    std::error_code failed = write_at(descriptor, bytes, 0);
    if (!failed) failed = sync(*file);
    if (!failed && sync_log_folder(folder_) != 0) failed = last_error();
    if (failed) {
        file.reset();
        std::remove(path.c_str());
        return failed;
    }
    if (!segments_.empty()) seal();
    next_ = made.first;
    position_ = bytes.size();
    const std::lock_guard lock(mutex_);
    segments_.push_back(std::move(made));
    current_ = std::move(file);
    written_ = synced_ = {next_ - 1, position_};
    return {};
}

/// Says in the last segment that there is another, which exists already. Nothing depends on it as
/// long as that is so; thus failures do not matter.
SSE_DECL void file_log_bus::seal() noexcept try {
    const file_handle file(open_log_file(path_of(segments_.back()), file_mode::write));
    if (!file) return;
    const std::string bytes = mark(log_mark::kind::continued, file.get()).encode();
    if (calls_.truncate(file.get(), position_) == 0) write_at(file.get(), bytes, position_);
    const std::lock_guard lock(mutex_);
    segments_.back().size = position_ + bytes.size();
} catch (const std::bad_alloc&) {}

SSE_DECL log_mark file_log_bus::mark(log_mark::kind what, int file) const {
    return {what, options_.sync, calls_.born(file), calls_.boot};
}

SSE_DECL std::error_code file_log_bus::write_at(int file, std::string_view bytes,
                                                std::uint64_t at) {
    while (!bytes.empty()) {
        const std::ptrdiff_t put = calls_.write(file, bytes.data(), bytes.size(), at);
        if (put < 0) return last_error();
        if (put == 0) return std::make_error_code(std::errc::no_space_on_device);
        bytes.remove_prefix(static_cast<std::size_t>(put));
        at += static_cast<std::uint64_t>(put);
    }
    return {};
}

SSE_DECL std::error_code file_log_bus::sync(written_file& file) {
    const std::lock_guard lock(file.syncing);
    if (!file.failed && calls_.sync(file.handle.get()) != 0) file.failed = last_error();
    return file.failed;
}

SSE_DECL void file_log_bus::check_sync() {
    std::error_code failed;
    {
        const std::lock_guard lock(mutex_);
        failed = std::exchange(lost_, {});
    }
    if (failed) lose_unsynced(failed);
}

/// What was written since the last sync may not come onto the disk any more, whatever the next
/// sync says.
SSE_DECL void file_log_bus::lose_unsynced(std::error_code why) {
    const std::string path = path_of(segments_.back());
    place kept;
    {
        const std::lock_guard lock(mutex_);
        lost_ = {};
        current_.reset();
        kept = written_ = synced_;
    }
    fresh_segment_ = true;
    position_ = kept.offset;
    if (kept.number + 1 != next_) {
        fresh_epoch_ = true;
        warn(explain(path, why) + ": messages " + std::to_string(kept.number + 1) + " to " +
             std::to_string(next_ - 1) +
             " may be lost, so a new epoch begins, and clients are sent a gap");
    }
    next_ = kept.number + 1;
    set_broken(why);
}

SSE_DECL void file_log_bus::set_broken(std::error_code now) {
    if (static_cast<bool>(now) != static_cast<bool>(broken_)) health_due_ = true;
    broken_ = now;
}

SSE_DECL void file_log_bus::tell_health() {
    std::string text = broken_ ? explain(folder_, broken_) : std::string();
    {
        const std::lock_guard lock(mutex_);
        if (warnings_.empty() && !health_due_) return;
        for (const std::string& each : warnings_)
            text.append(text.empty() ? "" : "; ").append(each);
    }
    sink_->health(!broken_, text);
    const std::lock_guard lock(mutex_);
    warnings_.clear();
    health_due_ = false;
}

SSE_DECL void file_log_bus::warn(std::string text) {
    const std::lock_guard lock(mutex_);
    if (text == last_warning_) return; // each page of a damaged segment says it
    last_warning_ = text;
    warnings_.push_back(std::move(text));
    writer_wakes_.notify_one();
}

/// Deletes segments beyond the bounds, one after the other: if it is cut short, none is missing in
/// the middle.
SSE_DECL void file_log_bus::trim() {
    while (is_too_much()) {
        const std::string path = path_of(segments_.front());
        std::error_code failed;
        std::filesystem::remove(path, failed);
        if (!failed && sync_log_folder(folder_) != 0) failed = last_error();
        if (failed) return warn(explain(path, failed));
        const std::lock_guard lock(mutex_);
        segments_.erase(segments_.begin());
    }
}

SSE_DECL bool file_log_bus::is_too_much() const {
    if (segments_.size() < 2) return false;
    const std::int64_t age = std::chrono::microseconds(options_.age).count();
    if (age > 0 && now() - segments_[1].created > age) return true;
    std::uint64_t sum = position_;
    for (std::size_t i = 0; i + 1 < segments_.size(); ++i) sum += segments_[i].size;
    return sum > options_.bytes;
}

SSE_DECL void file_log_bus::close() noexcept {
    try {
        check_sync();
        if (!current_) return;
        const int file = current_->handle.get();
        if (fresh_segment_) { // once more what take_back() could not do
            calls_.truncate(file, position_);
            return;
        }
        std::error_code failed =
            write_at(file, mark(log_mark::kind::closed, file).encode(), position_);
        if (!failed) failed = sync(*current_);
        if (failed) calls_.truncate(file, position_);
    } catch (...) {} // the next start takes it for a crash
}

SSE_DECL void file_log_bus::sync_loop() noexcept {
    std::unique_lock lock(mutex_);
    const auto is_over = [&] { return stopping_; };
    for (;;) {
        syncer_wakes_.wait(lock, [&] {
            return stopping_ || (current_ && !lost_ && written_.offset != synced_.offset);
        });
        if (syncer_wakes_.wait_for(lock, options_.interval, is_over)) return;
        const std::shared_ptr<written_file> file = current_;
        const place until = written_;
        if (!file) continue;
        lock.unlock();
        const std::error_code failed = sync(*file);
        lock.lock();
        if (current_ != file) continue; // the writer has synced it
        if (!failed) {
            synced_ = until;
            continue;
        }
        lost_ = failed;
        writer_wakes_.notify_one();
    }
}

// --- pages

SSE_DECL void file_log_bus::read_loop() noexcept {
    std::unique_lock lock(mutex_);
    for (;;) {
        reader_wakes_.wait(lock, [&] { return stopping_ || !pages_.empty(); });
        if (pages_.empty()) return;
        const page_order wanted = std::move(pages_.front());
        pages_.pop_front();
        const bool is_over = stopping_;
        lock.unlock();
        page found;
        if (is_over) {
            found.failed = errc::stopped;
        } else {
            try {
                found = read_page(wanted);
            } catch (const std::exception& e) {
                found = {};
                found.failed = errc::bus_refused;
                try {
                    warn(e.what());
                } catch (...) {} // the publisher is told that it failed
            }
        }
        try {
            wanted.done(std::move(found));
        } catch (...) {} // the caller's own
        lock.lock();
    }
}

SSE_DECL bus::page file_log_bus::read_page(const page_order& wanted) {
    page found;
    std::size_t bytes = 0;
    std::uint64_t next = wanted.after + 1;
    found.whole = next != 0 || locate(wanted.epoch, 1).has_value(); // no record has more
    while (next != 0 && found.records.size() < wanted.messages && bytes < max_page) {
        const auto from = locate(wanted.epoch, next);
        if (!from || from->in.first > next) { // deleted
            if (!found.records.empty()) break;
            found.whole = false;
            if (!from) break;
            next = from->in.first;
        }
        if (next >= from->until) break;
        next = read_some(found, bytes, *from, next, wanted.messages);
    }
    return found;
}

/// Reads from one segment. Returns the next number.
SSE_DECL std::uint64_t file_log_bus::read_some(page& found, std::size_t& bytes, const located& from,
                                               std::uint64_t next, std::size_t messages) {
    const place start = known_before(from.in, next);
    segment_reader file(path_of(from.in), start.number + 1, start.offset, from.until);
    if (file.is_missing()) { // deleted meanwhile
        if (found.records.empty()) found.whole = false;
        return found.records.empty() ? from.until : 0;
    }
    while (found.records.size() < messages && bytes < max_page) {
        const auto one = file.read();
        if (!one) break;
        remember(from.in.serial, {file.next() - 1, file.offset()});
        if (one->number < next) continue;
        found.records.push_back({one->number, time_point_of(one->time), std::string(one->bytes)});
        bytes += one->bytes.size();
    }
    return file.next();
}

/// The segment with this record of the epoch, or with the oldest that is kept if that is newer.
SSE_DECL std::optional<file_log_bus::located> file_log_bus::locate(std::string_view epoch,
                                                                   std::uint64_t number) const {
    const std::lock_guard lock(mutex_);
    std::optional<std::size_t> found;
    for (std::size_t i = segments_.size(); i-- > 0;) {
        if (segments_[i].epoch != epoch) continue;
        found = i;
        if (segments_[i].first <= number) break;
    }
    if (!found) return std::nullopt;
    return located{segments_[*found], end_of(*found)};
}

/// The number after the last record of a segment.
SSE_DECL std::uint64_t file_log_bus::end_of(std::size_t segment) const {
    if (segment + 1 == segments_.size()) return written_.number + 1;
    const log_segment& after = segments_[segment + 1];
    return after.epoch == segments_[segment].epoch ? after.first : after.previous_last + 1;
}

SSE_DECL file_log_bus::place file_log_bus::known_before(const log_segment& in,
                                                        std::uint64_t number) {
    while (!index_.empty() && index_.begin()->first < oldest_serial()) index_.erase(index_.begin());
    const auto& places = index_[in.serial];
    const auto after = std::find_if(places.begin(), places.end(),
                                    [&](const place& each) { return each.number >= number; });
    return after == places.begin() ? place{in.first - 1, log_segment::header_size} : after[-1];
}

SSE_DECL std::uint64_t file_log_bus::oldest_serial() const {
    const std::lock_guard lock(mutex_);
    return segments_.front().serial;
}

SSE_DECL void file_log_bus::remember(std::uint64_t serial, place at) {
    auto& places = index_[serial];
    const std::uint64_t last = places.empty() ? 0 : places.back().offset;
    if (at.offset >= last + index_step) places.push_back(at);
}

#endif // SSE_BODIES

} // namespace detail

#if defined(SSE_BODIES)

SSE_DECL std::shared_ptr<bus> file_log(std::string folder, file_log_options options) {
    return std::make_shared<detail::file_log_bus>(std::move(folder), options);
}

#endif // SSE_BODIES

// >>nats //////////////////////////////////////////////////////////////////////////////////////////
// What is inside nats_bus. Needs >>bus, >>natsbus, >>hub.
// Tests: tests/nats.cpp
//
// A stream with two subjects, <prefix>.log and <prefix>.epoch. A message's number is its sequence.
// Messages that are not stored go by plain NATS, to <prefix>.passing.
//
// Epochs. A server may lose the end of a stream (no fsync, a backup that was restored, all replicas
// in memory), and a stream may be deleted and made anew: then sequences are given twice. So the
// stream itself says which epochs there were: the newest message of <prefix>.epoch lists their
// words, each with the sequence at which it begins. The list is written with the expected last
// sequence of its subject: of several nodes one wins, and all read the same. Since it is in the
// stream, what becomes of the stream becomes of it.
//   No list, nothing known      a new word, from 1
//   No list, ours is known      purged: ours again; made anew (another `created`): a new word
//   Another list                made anew by another node: everything from there
//   A list that goes on         another node found a loss: read again from where the epoch begins
//   Our position is gone, or
//   has other content           the end was lost: a new word from where it parts from what we read
// At each connection and at each check_interval it is looked whether what was read last is still
// there, with the same bytes and time. The list is written again before bounds of the stream drop
// it. What nobody was connected to see cannot be noticed: before a backup is restored while all
// nodes are down, purge <prefix>.epoch in it; they begin a new epoch then.
//
// One connection at a time. nats.c's own reconnecting is off: it keeps what is published meanwhile
// and sends it later. No callback of nats.c is used, so that nothing is called after detach():
// threads of ours wait in its synchronous subscriptions, and closing the connection ends all waits.

#if defined(SSE_ENABLE_NATS)

namespace detail {

/// An entry of the list of epochs.
struct nats_epoch {
    std::string word;
    std::uint64_t begin = 1; ///< Numbers from this one on are of it.
    bool rewound = false;    ///< Whether its predecessor lost its end, rather than all.
    bool operator==(const nats_epoch&) const = default;
};
using nats_epochs = std::vector<nats_epoch>;

inline constexpr std::string_view nats_epochs_title = "sse epochs 1\n";
inline constexpr std::size_t nats_epochs_kept = 16; // older ones cannot be read any more

std::string format_nats_epochs(const nats_epochs& list);
/// Empty if it is not a list.
nats_epochs parse_nats_epochs(std::string_view text);

/// What the server says of a message that was to be stored, such as {"stream":"SSE","seq":5} or
/// {"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},...}.
struct nats_ack {
    std::uint64_t number = 0; ///< 0: it was not stored.
    int error = 0;            ///< The server's err_code.
    std::string reason;
};
nats_ack parse_nats_ack(std::string_view json);

/// Tells two messages apart that were given the same number.
std::uint64_t nats_print(std::string_view bytes, std::int64_t time) noexcept;

/// Where a reader is: what it has read last, of which epoch.
class nats_place {
public:
    struct mark {
        std::uint64_t number;
        std::uint64_t print;
    };
    /// What the sink is to be told.
    struct opening {
        std::string word;
        std::uint64_t after;
        gap_reason why;
    };
    enum class change : std::uint8_t {
        none,
        reread, ///< The position went back.
        anew    ///< Nothing of what was known holds: restart() is next.
    };

    const nats_epochs& epochs() const noexcept { return epochs_; }
    std::uint64_t position() const noexcept { return position_; }
    /// The newest messages that were read, oldest first; to find where the stream parts from them.
    const std::deque<mark>& marks() const noexcept { return marks_; }
    /// Whether the sink knows an epoch.
    bool opened() const noexcept { return opened_; }
    const std::string& word() const { return epochs_[current_].word; } ///< Of that epoch.

    /// Takes over the stream's list.
    change adopt(const nats_epochs& list);
    /// Begins after this number.
    void restart(std::uint64_t position);
    /// The message at `number` was read.
    void pass(std::uint64_t number, std::uint64_t print);
    /// Nothing is left up to this number.
    void skip(std::uint64_t number) noexcept { position_ = std::max(position_, number); }
    /// Goes on to the epoch of `number`, the next to be told. Set if the sink does not know it.
    std::optional<opening> enter(std::uint64_t number);
    void close() noexcept { opened_ = false; } ///< The sink does not know the epoch after all.
    /// The list after the end of the stream was lost: only what is up to `common` is as before.
    nats_epochs cut(std::uint64_t common) const;

private:
    static constexpr std::size_t marks_kept = 4096;

    std::size_t find(std::string_view word) const noexcept;
    void rewind(std::uint64_t position);

    nats_epochs epochs_;
    std::size_t current_ = 0; ///< The epoch that the sink was told.
    bool opened_ = false;
    std::uint64_t position_ = 0;
    std::deque<mark> marks_;
};

/// What waits to be published, in order; or was sent and waits to be confirmed. Does no I/O; its
/// user locks. A letter is taken out by finish() or expire(), so that it is completed once.
class nats_outbox {
public:
    using clock = std::chrono::steady_clock;
    struct letter {
        std::uint64_t id = 0;
        std::string bytes;
        bool store = true;
        bus::published done;
        clock::time_point deadline = {};
        clock::time_point first_sent = {}; ///< Unset: never.
        clock::time_point last_sent = {};
        bool flying = false; ///< Sent by this connection and not yet confirmed.
        bool ever_sent() const noexcept { return first_sent != clock::time_point(); }
    };
    using letter_ref = std::shared_ptr<letter>;
    struct ending {
        letter_ref what;
        errc why;
    };

    nats_outbox(std::size_t letters, std::size_t bytes, std::chrono::milliseconds reply_timeout)
        : max_letters_(letters), max_bytes_(bytes), reply_timeout_(reply_timeout) {}

    bool add(letter_ref what); ///< False: there is no room.
    /// The next to send, marked as sent.
    std::vector<letter_ref> take(clock::time_point now);
    letter_ref finish(std::uint64_t id);         ///< Null if it is over already.
    void again(const letter& what, bool unsent); ///< It is to be sent once more.
    void again(std::uint64_t id, clock::time_point from);
    void again_all(); ///< The connection is another.
    /// Those whose time is over; `up`: those that were not sent will be.
    std::vector<ending> expire(clock::time_point now, bool up);
    letter_ref first() const { return letters_.empty() ? nullptr : letters_.begin()->second; }
    clock::time_point wake() const noexcept { return std::min(next_look_, not_before_); }
    /// For so long the server knows what it was given twice.
    void window(clock::duration time) noexcept { window_ = time; }
    std::size_t size() const noexcept { return letters_.size(); }

private:
    static constexpr std::size_t max_flying = 4096;
    static constexpr std::size_t max_flying_bytes = 8 * 1024 * 1024;
    static constexpr std::size_t max_taken = 256;

    void land(letter& what);
    bool late(letter& what, clock::time_point now, bool up);

    std::map<std::uint64_t, letter_ref> letters_;
    std::uint64_t next_id_ = 1;
    std::uint64_t unsent_from_ = 1; ///< Those below are all flying.
    std::size_t bytes_ = 0;
    std::size_t flying_ = 0;
    std::size_t flying_bytes_ = 0;
    clock::time_point next_look_ = clock::time_point::max();
    clock::time_point not_before_ = clock::time_point::max(); ///< Nothing is sent before; max: now.
    clock::duration window_ = std::chrono::minutes(2);
    std::size_t max_letters_;
    std::size_t max_bytes_;
    std::chrono::milliseconds reply_timeout_;
};

/// Why a connection does not work.
struct nats_failure : std::runtime_error {
    nats_failure(const std::string& text, bool for_good_)
        : std::runtime_error(text), for_good(for_good_) {}
    bool for_good; ///< It would not work later either.
};

template <auto Free>
struct nats_free {
    template <class T>
    void operator()(T* what) const noexcept {
        Free(what);
    }
};
using nats_message_ptr = std::unique_ptr<natsMsg, nats_free<natsMsg_Destroy>>;
using nats_subscription_ptr =
    std::unique_ptr<natsSubscription, nats_free<natsSubscription_Destroy>>;

inline std::string_view nats_bytes(const natsMsg& m) noexcept {
    return {natsMsg_GetData(&m), static_cast<std::size_t>(natsMsg_GetDataLength(&m))};
}

/// A connection. All functions may be called from several threads, but for next().
class nats_link {
public:
    struct state {
        std::uint64_t first = 0;
        std::uint64_t last = 0;
        std::uint64_t messages = 0;
        std::uint64_t bytes = 0;
        std::int64_t created = 0;
        std::chrono::nanoseconds window{0};
        bool replicated = false;
        std::string leader; ///< Of the servers that have the stream; empty if there is one.
    };
    struct listing {
        std::uint64_t number = 0; ///< 0: there is none.
        nats_epochs list;
    };
    /// A message of the stream.
    struct item {
        std::uint64_t number = 0;
        std::uint64_t order = 0;   ///< Counts what this subscription was sent, from 1.
        std::uint64_t pending = 0; ///< How many follow.
        std::int64_t time = 0;     ///< In nanoseconds.
        bool of_log = true;        ///< Otherwise a list of epochs.
        nats_message_ptr message;
    };
    struct reading {
        std::vector<item> items;
        bool more = false;
    };

    explicit nats_link(const nats_options& options); ///< Throws nats_failure.

    /// Ends all waits, also of other threads.
    void close() noexcept { natsConnection_Close(connection_.get()); }
    const std::string& url() const noexcept { return url_; }
    std::string last_error() const;

    /// Makes the stream if it is to be; throws nats_failure if it is not as it must be.
    state examine();
    listing epochs();
    /// False if another node was first.
    bool write_epochs(const nats_epochs& list, std::uint64_t expected);
    /// Unset if there is no message of this number.
    std::optional<std::uint64_t> print(std::uint64_t number);

    /// Reads what this server has, if it can be arranged.
    void follow(std::uint64_t from, const std::string& leader);
    /// Unset if nothing came.
    std::optional<item> next(std::chrono::milliseconds wait);
    bool idle() const noexcept;
    /// What is stored from `from` on, in at most one reply's time.
    reading read(std::uint64_t from, std::size_t messages, std::size_t bytes);

    natsStatus send(const nats_outbox::letter& what, const std::string& sender);
    /// These two wait; false: nothing came.
    bool next_ack(std::uint64_t& id, nats_ack& ack);
    bool next_passing(nats_message_ptr& message);

private:
    [[noreturn]] void fail(const char* doing, natsStatus status, jsErrCode code = {}) const;
    void make_stream();
    std::string wrong(const jsStreamConfig& config) const;
    nats_subscription_ptr subscribe(const std::string& subject);
    void subscribe_stream(std::uint64_t from);
    static item to_item(nats_message_ptr message, const std::string& epoch_subject);
    bool wait_for(natsSubscription& from, nats_message_ptr& message,
                  std::chrono::milliseconds wait);

    const nats_options& options_;
    const std::string log_ = options_.prefix + ".log";
    const std::string epoch_ = options_.prefix + ".epoch";
    const std::string passing_ = options_.prefix + ".passing";
    std::unique_ptr<natsConnection, nats_free<natsConnection_Destroy>> connection_;
    std::unique_ptr<jsCtx, nats_free<jsCtx_Destroy>> jetstream_;
    std::string url_;
    std::string inbox_;
    nats_subscription_ptr acks_;
    nats_subscription_ptr passings_;
    nats_subscription_ptr stream_;
};

class nats_engine final : public bus {
public:
    explicit nats_engine(nats_options options);
    ~nats_engine() override { detach(); }

    SSE_DECL void attach(sink& to, const history& kept) override;
    SSE_DECL void publish(std::string bytes, bool store, std::chrono::milliseconds patience,
                          published done) override;
    SSE_DECL void read(std::string_view epoch, std::uint64_t after, std::size_t messages,
                       std::function<void(page)> done) override;
    SSE_DECL void detach() noexcept override;

private:
    using link_ref = std::shared_ptr<nats_link>;
    using clock = std::chrono::steady_clock;
    struct request {
        std::string epoch;
        std::uint64_t after;
        std::size_t messages;
        std::function<void(page)> done;
    };
    enum class stage : std::uint8_t { fresh, attached, stopped };
    class session;

    // The reader's thread: connects, looks whether the stream is as before, reads.
    void run_reader(link_ref link);
    void serve(const link_ref& link);
    void read_on(nats_link& link);
    void take_item(nats_link::item item);
    void take_message(const nats_link::item& item);
    void told_number(std::uint64_t number);
    void check(nats_link& link);
    void look_for_silence(const nats_link::state& state);
    void settle(nats_link& link, const nats_link::state& state);
    bool settle_once(nats_link& link, const nats_link::state& state);
    nats_epochs next_list(nats_link& link, const nats_link::state& state,
                          const nats_link::listing& found);
    void adopt(const nats_epochs& list, const nats_link::state& state);
    std::optional<std::uint64_t> lost_after(nats_link& link, const nats_link::state& state);
    std::uint64_t history_start(const nats_link::state& state) const;
    void open(std::uint64_t number);
    void become_ready();
    void lost(const char* why) noexcept;
    void tell(bool up, const std::string& reason);
    void tell_up(nats_link& link);
    void pause();
    void sleep(std::chrono::milliseconds time);

    // Other threads: one sends; two more live as long as a connection; one reads for clients.
    void run_writer();
    void send(nats_link& link, const std::vector<nats_outbox::letter_ref>& letters);
    bool send_one(nats_link& link, const nats_outbox::letter& what);
    void run_acks(nats_link& link) noexcept;
    void take_ack(std::uint64_t id, const nats_ack& ack);
    void run_passing(nats_link& link) noexcept;
    void run_requests();
    page answer(const request& what);
    static void read_range(nats_link& link, std::uint64_t from, std::uint64_t to,
                           std::size_t messages, page& into);

    bool stopped();
    void refuse(std::string reason);
    void complete(std::uint64_t id, std::error_code error, std::uint64_t number);
    template <class F>
    void told(F&& f) {
        const std::lock_guard lock(sink_mutex_);
        f(*sink_);
    }

    const nats_options options_;
    const std::string sender_ = make_epoch() + make_epoch(); ///< First part of the tokens.
    sink* sink_ = nullptr;
    history kept_;
    std::mutex sink_mutex_; ///< Calls of the sink come one at a time.

    std::mutex mutex_; ///< For what follows, up to the reader's own.
    std::condition_variable to_send_, to_read_, ended_;
    stage stage_ = stage::fresh;
    link_ref link_;     ///< The connection, from when it is made.
    bool open_ = false; ///< The stream was found to be right: messages may be sent.
    nats_outbox outbox_;
    std::deque<request> requests_;
    nats_epochs known_; ///< A copy of the reader's, for read().
    std::string refusal_;

    nats_place place_;
    std::optional<bool> is_up_;
    std::string why_;
    std::int64_t created_ = 0; ///< When the stream was made.
    std::string leader_;       ///< Of the stream.
    std::uint64_t target_ = 0; ///< Where the history ends.
    std::uint64_t order_ = 0;  ///< Of the newest message of this subscription.
    bool ready_ = false;
    bool resubscribe_ = false;
    bool waited_ = false;
    int quiet_ = 0;  ///< Checks since something came.
    int behind_ = 0; ///< Checks that found the stream shorter than what was read.
    unsigned failures_ = 0;
    clock::time_point next_check_ = {};
    std::minstd_rand random_{std::random_device{}()};

    std::thread reader_, writer_, requester_;
};

#if defined(SSE_BODIES)

// ---- values in, values out ----

SSE_DECL std::string format_nats_epochs(const nats_epochs& list) {
    std::string text(nats_epochs_title);
    for (const auto& [word, begin, rewound] : list)
        text += word + ' ' + std::to_string(begin) + (rewound ? " rewound\n" : " epoch\n");
    return text;
}

/// The text up to `end`, which is taken off with it.
SSE_DECL std::string_view take_until(std::string_view& text, char end) {
    const auto size = std::min(text.find(end), text.size());
    const auto part = text.substr(0, size);
    text.remove_prefix(std::min(size + 1, text.size()));
    return part;
}

SSE_DECL bool to_number(std::string_view text, std::uint64_t& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

SSE_DECL nats_epochs parse_nats_epochs(std::string_view text) {
    if (!text.starts_with(nats_epochs_title)) return {};
    text.remove_prefix(nats_epochs_title.size());
    nats_epochs list;
    while (!text.empty()) {
        auto line = take_until(text, '\n');
        nats_epoch next;
        next.word = take_until(line, ' ');
        const bool is_word =
            next.word.size() == 8 && next.word.find_first_not_of("0123456789abcdefghijklmnopqrstuvw"
                                                                 "xyz") == std::string::npos;
        if (!is_word || !to_number(take_until(line, ' '), next.begin)) return {};
        const auto lowest = list.empty() ? 1 : list.back().begin;
        next.rewound = line == "rewound";
        if (next.begin < lowest || (!next.rewound && line != "epoch")) return {};
        list.push_back(std::move(next));
        if (list.size() > nats_epochs_kept) return {};
    }
    return list;
}

/// What follows `"name":`, or nothing.
SSE_DECL std::string_view json_value(std::string_view json, std::string_view name) {
    const auto key = '"' + std::string(name) + "\":";
    const auto at = json.find(key);
    if (at == std::string_view::npos) return {};
    json.remove_prefix(at + key.size());
    json.remove_prefix(std::min(json.find_first_not_of(' '), json.size()));
    return json;
}

SSE_DECL std::uint64_t json_number(std::string_view json, std::string_view name) {
    const auto value = json_value(json, name);
    std::uint64_t number = 0;
    to_number(value.substr(0, value.find_first_not_of("0123456789")), number);
    return number;
}

SSE_DECL nats_ack parse_nats_ack(std::string_view json) {
    nats_ack ack;
    if (json_value(json, "error").empty()) {
        ack.number = json_number(json, "seq");
        return ack;
    }
    ack.error = static_cast<int>(std::min<std::uint64_t>(json_number(json, "err_code"), 99'999));
    auto text = json_value(json, "description");
    if (text.starts_with('"')) text.remove_prefix(1);
    ack.reason = text.substr(0, std::min<std::size_t>(text.find('"'), 500));
    return ack;
}

SSE_DECL std::uint64_t nats_print(std::string_view bytes, std::int64_t time) noexcept {
    auto print = 0xcbf2'9ce4'8422'2325ull ^ static_cast<std::uint64_t>(time); // FNV-1a
    for (const char c : bytes) print = (print ^ static_cast<unsigned char>(c)) * 0x100'0000'01b3ull;
    return print;
}

// ---- nats_place ----

SSE_DECL std::size_t nats_place::find(std::string_view word) const noexcept {
    const auto found = std::find_if(epochs_.begin(), epochs_.end(),
                                    [&](const nats_epoch& e) { return e.word == word; });
    return static_cast<std::size_t>(found - epochs_.begin());
}

SSE_DECL void nats_place::rewind(std::uint64_t position) {
    position_ = position;
    while (!marks_.empty() && marks_.back().number > position) marks_.pop_back();
}

SSE_DECL nats_place::change nats_place::adopt(const nats_epochs& list) {
    std::size_t common = 0; // how many of the list are known, up to the last that is
    for (std::size_t i = 0; i < list.size(); ++i)
        if (find(list[i].word) < epochs_.size()) common = i + 1;
    if (common == 0) {
        epochs_ = list;
        return change::anew;
    }
    const auto word = epochs_[current_].word;
    epochs_ = list;
    current_ = std::min(find(word), common - 1);
    if (common == list.size() || list[common].begin > position_) return change::none;
    rewind(list[common].begin - 1);
    return change::reread;
}

SSE_DECL void nats_place::restart(std::uint64_t position) {
    position_ = position;
    marks_.clear();
    current_ = 0;
    opened_ = false;
}

SSE_DECL void nats_place::pass(std::uint64_t number, std::uint64_t print) {
    position_ = number;
    marks_.push_back({number, print});
    if (marks_.size() > marks_kept) marks_.pop_front();
}

SSE_DECL std::optional<nats_place::opening> nats_place::enter(std::uint64_t number) {
    const bool first = !opened_;
    for (; current_ + 1 < epochs_.size() && epochs_[current_ + 1].begin <= number; ++current_)
        opened_ = false;
    if (opened_) return std::nullopt;
    opened_ = true;
    const nats_epoch& now = epochs_[current_];
    if (first) return opening{now.word, number - 1, gap_reason::epoch};
    return opening{now.word, now.begin - 1, now.rewound ? gap_reason::rewound : gap_reason::epoch};
}

SSE_DECL nats_epochs nats_place::cut(std::uint64_t common) const {
    if (common == 0) return {{make_epoch(), 1, false}};
    auto list = epochs_;
    while (!list.empty() && list.back().begin > common + 1) list.pop_back();
    list.push_back({make_epoch(), common + 1, true});
    if (list.size() > nats_epochs_kept) list.erase(list.begin());
    return list;
}

// ---- nats_outbox ----

SSE_DECL bool nats_outbox::add(letter_ref what) {
    if (letters_.size() >= max_letters_ || what->bytes.size() > max_bytes_ - bytes_) return false;
    what->id = next_id_;
    const auto [deadline, size] = std::pair(what->deadline, what->bytes.size());
    letters_.emplace_hint(letters_.end(), what->id, std::move(what));
    ++next_id_;
    bytes_ += size;
    next_look_ = std::min(next_look_, deadline);
    return true;
}

SSE_DECL std::vector<nats_outbox::letter_ref> nats_outbox::take(clock::time_point now) {
    std::vector<letter_ref> taken;
    if (not_before_ != clock::time_point::max() && now < not_before_) return taken;
    not_before_ = clock::time_point::max();
    taken.reserve(max_taken);
    auto next = letters_.lower_bound(unsent_from_);
    for (; next != letters_.end() && taken.size() < max_taken; ++next) {
        letter& l = *next->second;
        if (l.flying) continue;
        if (flying_ >= max_flying || flying_bytes_ >= max_flying_bytes) break;
        if (!l.ever_sent()) l.first_sent = now;
        l.last_sent = now;
        l.flying = true;
        ++flying_;
        flying_bytes_ += l.bytes.size();
        taken.push_back(next->second);
    }
    unsent_from_ = next == letters_.end() ? next_id_ : next->first;
    if (!taken.empty()) next_look_ = std::min(next_look_, now + reply_timeout_ / 2);
    return taken;
}

SSE_DECL void nats_outbox::land(letter& what) {
    if (!std::exchange(what.flying, false)) return;
    --flying_;
    flying_bytes_ -= what.bytes.size();
    unsent_from_ = std::min(unsent_from_, what.id);
}

SSE_DECL nats_outbox::letter_ref nats_outbox::finish(std::uint64_t id) {
    const auto found = letters_.find(id);
    if (found == letters_.end()) return nullptr;
    letter_ref what = std::move(found->second);
    letters_.erase(found);
    bytes_ -= what->bytes.size();
    if (what->flying) --flying_, flying_bytes_ -= what->bytes.size();
    what->flying = false;
    return what;
}

SSE_DECL void nats_outbox::again(const letter& what, bool unsent) {
    const auto found = letters_.find(what.id);
    if (found == letters_.end()) return;
    letter& l = *found->second;
    land(l);
    if (unsent && l.first_sent == l.last_sent) l.first_sent = {};
}

SSE_DECL void nats_outbox::again(std::uint64_t id, clock::time_point from) {
    const auto found = letters_.find(id);
    if (found == letters_.end()) return;
    land(*found->second);
    not_before_ = from;
}

SSE_DECL void nats_outbox::again_all() {
    for (const auto& [id, what] : letters_) land(*what);
    not_before_ = clock::time_point::max();
    next_look_ = {};
}

/// Whether its time is over. One that was not confirmed in time is sent again, since a cluster may
/// have changed its leader; the server knows it by its token.
SSE_DECL bool nats_outbox::late(letter& what, clock::time_point now, bool up) {
    auto look = what.deadline;
    if (what.ever_sent()) {
        look = std::min(std::max(what.deadline, what.first_sent + reply_timeout_),
                        what.first_sent + window_ / 2);
        if (now >= look) return true;
        if (what.flying && now >= what.last_sent + reply_timeout_ / 2) land(what);
        look = std::min(look, now + reply_timeout_ / 2);
    } else if (now >= look) {
        if (!up) return true;
        look = now + reply_timeout_; // it waits for those before it
    }
    next_look_ = std::min(next_look_, look);
    return false;
}

SSE_DECL std::vector<nats_outbox::ending> nats_outbox::expire(clock::time_point now, bool up) {
    std::vector<ending> over;
    if (now < next_look_) return over;
    next_look_ = clock::time_point::max();
    std::vector<std::uint64_t> ids;
    for (const auto& [id, what] : letters_)
        if (late(*what, now, up)) ids.push_back(id);
    over.reserve(ids.size());
    for (const auto id : ids) {
        letter_ref what = finish(id);
        const errc why = what->ever_sent() ? errc::bus_timeout : errc::bus_down;
        over.push_back({std::move(what), why});
    }
    return over;
}

// ---- nats_link ----

/// In words, with what to do about it.
SSE_DECL std::string nats_advice(natsStatus status, int code) {
    switch (code) {
    case JSNotEnabledErr:
    case JSNotEnabledForAccountErr:
        return "; start nats-server with JetStream (-js), and enable it for the account";
    case JSStreamSubjectOverlapErr:
        return "; another stream has these subjects: choose another prefix, or that stream's name";
    case JSStreamReplicasNotSupportedErr:
    case JSClusterNoPeersErr: return "; fewer servers than replicas: start more, or set less";
    case JSStorageResourcesExceededErr:
    case JSMemoryResourcesExceededErr:
    case JSInsufficientResourcesErr: return "; give JetStream more room, or the stream fewer bytes";
    default: break;
    }
    if (status == NATS_CONNECTION_AUTH_FAILED)
        return "; set user and password, token or credentials";
    if (status == NATS_NO_SERVER) return "; is nats-server running, and the address right?";
    return {};
}

SSE_DECL bool nats_is_for_good(natsStatus status, int code) {
    switch (code) {
    case JSNotEnabledErr:
    case JSNotEnabledForAccountErr:
    case JSNoAccountErr:
    case JSStreamSubjectOverlapErr:
    case JSStreamReplicasNotSupportedErr:
    case JSStreamInvalidConfig:
    case JSStreamMaxBytesRequiredErr:
    case JSStorageResourcesExceededErr:
    case JSMemoryResourcesExceededErr: return true;
    default: return status == NATS_CONNECTION_AUTH_FAILED || status == NATS_NOT_PERMITTED;
    }
}

SSE_DECL void nats_link::fail(const char* doing, natsStatus status, jsErrCode code) const {
    std::string text = std::string("NATS: ") + doing + ": ";
    const char* const detail = nats_GetLastError(nullptr);
    text += detail != nullptr && *detail != '\0' ? detail : natsStatus_GetText(status);
    if (code != 0) text += " (" + std::to_string(static_cast<int>(code)) + ")";
    const auto said = last_error();
    if (!said.empty()) text += "; the server said: " + said;
    throw nats_failure(text + nats_advice(status, code), nats_is_for_good(status, code));
}

SSE_DECL std::string nats_link::last_error() const {
    const char* text = nullptr;
    if (!connection_) return {};
    // Something is said only while there is an error; the text lives as long as the connection.
    const auto status = natsConnection_GetLastError(connection_.get(), &text);
    return status != NATS_OK && text != nullptr ? text : "";
}

SSE_DECL std::unique_ptr<natsOptions, nats_free<natsOptions_Destroy>>
nats_connect_options(const nats_options& o) {
    natsOptions* made = nullptr;
    auto status = natsOptions_Create(&made);
    std::unique_ptr<natsOptions, nats_free<natsOptions_Destroy>> options(made);
    const auto set = [&](natsStatus next) { status = status == NATS_OK ? next : status; };
    std::vector<const char*> urls;
    for (const auto& url : o.servers) urls.push_back(url.c_str());
    const auto wait = [](std::chrono::milliseconds t) { return std::int64_t{t.count()}; };
    if (made != nullptr) {
        set(natsOptions_SetServers(made, urls.data(), static_cast<int>(urls.size())));
        set(natsOptions_SetAllowReconnect(made, false));
        set(natsOptions_SetTimeout(made, wait(o.connect_timeout)));
        // A frozen server must not block those that wait for the connection's lock.
        set(natsOptions_SetWriteDeadline(made, wait(std::min(o.reply_timeout, o.connect_timeout))));
        set(natsOptions_SetName(made, "sse.hpp"));
        // Else its own thread sends, up to 1 ms later: 0.3 ms to confirm a message became 1.0 ms.
        set(natsOptions_SetSendAsap(made, true));
        // The default one prints.
        set(natsOptions_SetErrorHandler(
            made, [](natsConnection*, natsSubscription*, natsStatus, void*) {}, nullptr));
        if (!o.user.empty()) set(natsOptions_SetUserInfo(made, o.user.c_str(), o.password.c_str()));
        if (!o.token.empty()) set(natsOptions_SetToken(made, o.token.c_str()));
        if (!o.credentials.empty())
            set(natsOptions_SetUserCredentialsFromFiles(made, o.credentials.c_str(), nullptr));
    }
    if (status != NATS_OK)
        throw nats_failure(std::string("NATS: options: ") + natsStatus_GetText(status), true);
    return options;
}

SSE_DECL nats_link::nats_link(const nats_options& options) : options_(options) {
    const auto settings = nats_connect_options(options);
    natsConnection* connection = nullptr;
    auto status = natsConnection_Connect(&connection, settings.get());
    connection_.reset(connection);
    if (status != NATS_OK) fail("connect", status);
    std::array<char, 512> url{};
    if (natsConnection_GetConnectedUrl(connection, url.data(), url.size()) == NATS_OK)
        url_ = url.data();
    jsOptions js;
    jsOptions_Init(&js);
    js.Wait = options.reply_timeout.count();
    jsCtx* context = nullptr;
    status = natsConnection_JetStream(&context, connection, &js);
    jetstream_.reset(context);
    if (status != NATS_OK) fail("JetStream", status);
    natsInbox* inbox = nullptr;
    status = natsInbox_Create(&inbox);
    if (status != NATS_OK) fail("inbox", status);
    const std::unique_ptr<natsInbox, nats_free<natsInbox_Destroy>> owner(inbox);
    inbox_ = std::string(inbox) + '.';
    acks_ = subscribe(inbox_ + '*');
    passings_ = subscribe(passing_);
}

SSE_DECL nats_subscription_ptr nats_link::subscribe(const std::string& subject) {
    natsSubscription* made = nullptr;
    auto status = natsConnection_SubscribeSync(&made, connection_.get(), subject.c_str());
    nats_subscription_ptr subscription(made);
    // In front of a slow program 64 MiB are kept; then what is not stored is lost.
    if (status == NATS_OK) status = natsSubscription_SetPendingLimits(made, -1, 64 * 1024 * 1024);
    if (status != NATS_OK) fail("subscribe", status);
    return subscription;
}

/// What makes the stream useless for us, or nothing.
SSE_DECL std::string nats_link::wrong(const jsStreamConfig& config) const {
    std::vector<std::string> subjects;
    for (int i = 0; i < config.SubjectsLen; ++i) subjects.emplace_back(config.Subjects[i]);
    std::sort(subjects.begin(), subjects.end());
    if (subjects != std::vector{epoch_, log_}) {
        std::string text = "it has other subjects than " + log_ + " and " + epoch_ + ":";
        for (const auto& subject : subjects) text += ' ' + subject;
        return text;
    }
    if (config.Retention != js_LimitsPolicy) return "its retention is not 'limits'";
    if (config.NoAck) return "it acknowledges nothing (no_ack)";
    if (config.Sealed) return "it is sealed";
    return {};
}

SSE_DECL void nats_link::make_stream() {
    if (!options_.create)
        throw nats_failure("NATS: there is no stream " + options_.stream +
                               ": make it with the subjects " + log_ + " and " + epoch_ +
                               ", or set nats_options::create",
                           true);
    std::array<const char*, 2> subjects{log_.c_str(), epoch_.c_str()};
    const auto bound = [](std::uint64_t n) { return n == 0 ? -1 : static_cast<std::int64_t>(n); };
    const std::int64_t age = std::chrono::nanoseconds(options_.max_age).count();
    const std::int64_t window = std::chrono::nanoseconds(std::chrono::minutes(2)).count();
    jsStreamConfig config;
    jsStreamConfig_Init(&config);
    config.Name = options_.stream.c_str();
    config.Subjects = subjects.data();
    config.SubjectsLen = static_cast<int>(subjects.size());
    config.MaxMsgs = bound(options_.max_messages);
    config.MaxBytes = bound(options_.max_bytes);
    config.MaxAge = age;
    config.Duplicates = age == 0 ? window : std::min(window, age);
    config.Storage = options_.in_memory ? js_MemoryStorage : js_FileStorage;
    config.Replicas = options_.replicas;
    jsErrCode code{};
    const auto status = js_AddStream(nullptr, jetstream_.get(), &config, nullptr, &code);
    // Another node may have been faster, with other bounds: examine() looks at what there is.
    if (status != NATS_OK && code != JSStreamNameExistErr) fail("make the stream", status, code);
}

SSE_DECL nats_link::state nats_link::examine() {
    jsStreamInfo* made = nullptr;
    jsErrCode code{};
    const auto ask = [&] {
        return js_GetStreamInfo(&made, jetstream_.get(), options_.stream.c_str(), nullptr, &code);
    };
    auto status = ask();
    if (status == NATS_NOT_FOUND) {
        make_stream();
        status = ask();
    }
    if (status != NATS_OK) fail("look at the stream", status, code);
    const std::unique_ptr<jsStreamInfo, nats_free<jsStreamInfo_Destroy>> info(made);
    const auto unfit = wrong(*info->Config);
    if (!unfit.empty())
        throw nats_failure("NATS: the stream " + options_.stream + " cannot be used, since " +
                               unfit + "; choose another name and prefix, or delete it",
                           true);
    return {info->State.FirstSeq,
            info->State.LastSeq,
            info->State.Msgs,
            info->State.Bytes,
            info->Created,
            std::chrono::nanoseconds(info->Config->Duplicates),
            info->Config->Replicas > 1,
            info->Cluster != nullptr && info->Cluster->Leader != nullptr &&
                    info->Config->Replicas > 1
                ? info->Cluster->Leader
                : ""};
}

SSE_DECL nats_link::listing nats_link::epochs() {
    natsMsg* made = nullptr;
    jsErrCode code{};
    const auto status = js_GetLastMsg(&made, jetstream_.get(), options_.stream.c_str(),
                                      epoch_.c_str(), nullptr, &code);
    if (status == NATS_NOT_FOUND && code == JSNoMessageFoundErr) return {};
    if (status != NATS_OK) fail("read the epochs", status, code);
    const nats_message_ptr message(made);
    return {natsMsg_GetSequence(made), parse_nats_epochs(nats_bytes(*made))};
}

SSE_DECL bool nats_link::write_epochs(const nats_epochs& list, std::uint64_t expected) {
    const auto text = format_nats_epochs(list);
    natsMsg* made = nullptr;
    auto status =
        natsMsg_Create(&made, epoch_.c_str(), nullptr, text.data(), static_cast<int>(text.size()));
    const nats_message_ptr message(made);
    if (status == NATS_OK)
        status = natsMsgHeader_Set(made, "Nats-Expected-Last-Subject-Sequence",
                                   std::to_string(expected).c_str());
    natsMsg* answer = nullptr;
    if (status == NATS_OK)
        status = natsConnection_RequestMsg(&answer, connection_.get(), made,
                                           options_.reply_timeout.count());
    if (status != NATS_OK) fail("write the epoch", status);
    const nats_message_ptr owner(answer);
    const auto ack = parse_nats_ack(nats_bytes(*answer));
    if (ack.number != 0) return true;
    if (ack.error == JSStreamWrongLastSequenceErr) return false;
    throw nats_failure("NATS: the stream refused to store the epoch: " + ack.reason, false);
}

SSE_DECL std::optional<std::uint64_t> nats_link::print(std::uint64_t number) {
    natsMsg* made = nullptr;
    jsErrCode code{};
    const auto status =
        js_GetMsg(&made, jetstream_.get(), options_.stream.c_str(), number, nullptr, &code);
    if (status == NATS_NOT_FOUND && code == JSNoMessageFoundErr) return std::nullopt;
    if (status != NATS_OK) fail("read a message", status, code);
    const nats_message_ptr message(made);
    return nats_print(nats_bytes(*made), natsMsg_GetTime(made));
}

/// A consumer that nobody needs to delete, with the memory of one server.
SSE_DECL jsSubOptions nats_consumer(const std::string& stream, std::uint64_t from) {
    jsSubOptions options;
    jsSubOptions_Init(&options);
    options.Stream = stream.c_str();
    options.Config.DeliverPolicy = js_DeliverByStartSequence;
    options.Config.OptStartSeq = from;
    options.Config.AckPolicy = js_AckNone;
    options.Config.MaxDeliver = 1;
    options.Config.MemoryStorage = true;
    options.Config.Replicas = 1;
    return options;
}

/// A consumer lives on any server of the stream, and reads what that one has. That of a leader that
/// was frozen for a while was seen to have other messages at the same sequences as the others, for
/// good (nats-server 2.9.10). So all nodes read what the leader has: they try until they are there.
SSE_DECL void nats_link::follow(std::uint64_t from, const std::string& leader) {
    constexpr int most_tries = 12; // of 3 servers: 1 % of nodes read from another one
    for (int i = 1; i <= most_tries; ++i) {
        subscribe_stream(from);
        if (leader.empty() || i == most_tries) return;
        jsConsumerInfo* made = nullptr;
        jsErrCode code{};
        const auto status = natsSubscription_GetConsumerInfo(&made, stream_.get(), nullptr, &code);
        if (status != NATS_OK) fail("follow the stream", status, code);
        const std::unique_ptr<jsConsumerInfo, nats_free<jsConsumerInfo_Destroy>> info(made);
        const char* const where = info->Cluster != nullptr ? info->Cluster->Leader : nullptr;
        if (where == nullptr || leader == where) return;
        natsSubscription_Unsubscribe(stream_.get()); // the consumer is deleted with it
    }
}

SSE_DECL void nats_link::subscribe_stream(std::uint64_t from) {
    stream_.reset();
    auto options = nats_consumer(options_.stream, from);
    options.Config.FlowControl = true; // bounds what waits here
    options.Config.Heartbeat = std::chrono::nanoseconds(std::chrono::seconds(5)).count();
    natsSubscription* made = nullptr;
    jsErrCode code{};
    auto status = js_SubscribeSync(&made, jetstream_.get(), ">", nullptr, &options, &code);
    stream_.reset(made);
    if (status == NATS_OK) status = natsSubscription_SetPendingLimits(made, -1, -1);
    if (status != NATS_OK) fail("follow the stream", status, code);
}

SSE_DECL nats_link::item nats_link::to_item(nats_message_ptr message,
                                            const std::string& epoch_subject) {
    jsMsgMetaData* made = nullptr;
    if (natsMsg_GetMetaData(&made, message.get()) != NATS_OK)
        throw nats_failure("NATS: a message of the stream without its sequence", false);
    const std::unique_ptr<jsMsgMetaData, nats_free<jsMsgMetaData_Destroy>> meta(made);
    const bool of_log = epoch_subject != natsMsg_GetSubject(message.get());
    return {
        meta->Sequence.Stream, meta->Sequence.Consumer, meta->NumPending, meta->Timestamp, of_log,
        std::move(message)};
}

/// False: nothing came. Throws if the connection is over.
SSE_DECL bool nats_link::wait_for(natsSubscription& from, nats_message_ptr& message,
                                  std::chrono::milliseconds wait) {
    natsMsg* made = nullptr;
    const auto status = natsSubscription_NextMsg(&made, &from, wait.count());
    message.reset(made);
    // What nats.c found out about heartbeats and order is looked into by ourselves.
    if (status == NATS_OK) return true;
    if (status == NATS_TIMEOUT || status == NATS_MISSED_HEARTBEAT || status == NATS_MISMATCH ||
        status == NATS_SLOW_CONSUMER)
        return false;
    fail("the connection is lost", status);
}

SSE_DECL std::optional<nats_link::item> nats_link::next(std::chrono::milliseconds wait) {
    nats_message_ptr message;
    if (!wait_for(*stream_, message, wait)) return std::nullopt;
    return to_item(std::move(message), epoch_);
}

SSE_DECL bool nats_link::idle() const noexcept {
    std::uint64_t waiting = 0;
    return natsSubscription_QueuedMsgs(stream_.get(), &waiting) == NATS_OK && waiting == 0;
}

SSE_DECL nats_link::reading nats_link::read(std::uint64_t from, std::size_t messages,
                                            std::size_t bytes) {
    auto options = nats_consumer(options_.stream, from);
    natsSubscription* made = nullptr;
    jsErrCode code{};
    auto status = js_PullSubscribe(&made, jetstream_.get(), ">", nullptr, nullptr, &options, &code);
    if (status != NATS_OK) fail("read the stream", status, code);
    const nats_subscription_ptr subscription(made);
    jsConsumerInfo* info = nullptr;
    status = natsSubscription_GetConsumerInfo(&info, made, nullptr, &code);
    if (status != NATS_OK) fail("read the stream", status, code);
    reading result;
    std::uint64_t left = info->NumPending;
    jsConsumerInfo_Destroy(info);
    while (left > 0 && result.items.size() < messages && bytes > 0) {
        natsMsgList list{};
        const auto batch = std::min<std::uint64_t>({64, left, messages - result.items.size()});
        status = natsSubscription_Fetch(&list, made, static_cast<int>(batch),
                                        options_.reply_timeout.count(), &code);
        const std::unique_ptr<natsMsgList, nats_free<natsMsgList_Destroy>> owner(&list);
        if (status != NATS_OK) fail("read the stream", status, code);
        for (int i = 0; i < list.Count; ++i) {
            nats_message_ptr message(std::exchange(list.Msgs[i], nullptr));
            bytes -= std::min(bytes, nats_bytes(*message).size());
            result.items.push_back(to_item(std::move(message), epoch_));
            left = result.items.back().pending;
        }
    }
    result.more = left > 0;
    return result;
}

SSE_DECL natsStatus nats_link::send(const nats_outbox::letter& what, const std::string& sender) {
    const auto size = static_cast<int>(what.bytes.size());
    if (!what.store)
        return natsConnection_Publish(connection_.get(), passing_.c_str(), what.bytes.data(), size);
    const auto id = std::to_string(what.id);
    natsMsg* made = nullptr;
    auto status =
        natsMsg_Create(&made, log_.c_str(), (inbox_ + id).c_str(), what.bytes.data(), size);
    const nats_message_ptr message(made);
    if (status == NATS_OK)
        status = natsMsgHeader_Set(made, "Nats-Msg-Id", (sender + '-' + id).c_str());
    if (status == NATS_OK) status = natsConnection_PublishMsg(connection_.get(), made);
    return status;
}

/// False: nothing came.
SSE_DECL bool nats_link::next_ack(std::uint64_t& id, nats_ack& ack) {
    nats_message_ptr message;
    if (!wait_for(*acks_, message, std::chrono::seconds(10))) return false;
    std::string_view subject = natsMsg_GetSubject(message.get());
    subject.remove_prefix(std::min(inbox_.size(), subject.size()));
    if (!to_number(subject, id)) return false;
    ack = parse_nats_ack(nats_bytes(*message));
    if (natsMsg_IsNoResponders(message.get())) ack = {0, JSClusterNotAvailErr, "no responders"};
    return true;
}

SSE_DECL bool nats_link::next_passing(nats_message_ptr& message) {
    return wait_for(*passings_, message, std::chrono::seconds(10));
}

// ---- nats_engine: the server's calls ----

/// A program's callback must not end a thread of ours.
template <class F>
void guarded(F&& f) noexcept {
    try {
        f();
    } catch (...) {}
}

/// Throws std::invalid_argument that names the member.
SSE_DECL void require_nats(bool fits, const char* member, const char* remedy) {
    if (!fits)
        throw std::invalid_argument(std::string("sse::nats_options::") + member + ": " + remedy);
}

/// Letters, digits, - and _; with dots, a subject of several parts.
SSE_DECL bool is_nats_name(std::string_view name, bool dots) {
    constexpr std::string_view good =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    if (name.empty() || name.size() > 200) return false;
    if (name.find_first_not_of(good) != std::string_view::npos) return false;
    if (!dots) return name.find('.') == std::string_view::npos;
    return name.front() != '.' && name.back() != '.' && name.find("..") == std::string_view::npos;
}

SSE_DECL nats_options check_nats(nats_options o) {
    using namespace std::chrono_literals;
    require_nats(!o.servers.empty(), "servers", "is empty; name at least one");
    for (const auto& url : o.servers)
        require_nats(!url.empty() && url.find_first_of(" ,\t\r\n") == std::string::npos, "servers",
                     "each is one URL without spaces, such as nats://127.0.0.1:4222");
    require_nats(o.password.empty() || !o.user.empty(), "password", "set `user` too");
    require_nats(
        (o.user.empty() ? 0 : 1) + (o.token.empty() ? 0 : 1) + (o.credentials.empty() ? 0 : 1) <= 1,
        "user", "set one of user, token and credentials");
    require_nats(is_nats_name(o.stream, false), "stream",
                 "use 1 to 200 letters, digits, '-' and '_'");
    require_nats(is_nats_name(o.prefix, true), "prefix",
                 "use 1 to 200 letters, digits, '-', '_' and single dots between them");
    require_nats(o.replicas == 1 || o.replicas == 3 || o.replicas == 5, "replicas",
                 "use 1, 3 or 5");
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    require_nats(o.max_messages == 0 || (o.max_messages >= 1'000 && o.max_messages <= most),
                 "max_messages", "use 1,000 or more, or 0 for no bound");
    require_nats(o.max_bytes == 0 || (o.max_bytes >= 1024 * 1024 && o.max_bytes <= most),
                 "max_bytes", "use 1 MiB or more, or 0 for no bound");
    require_nats(o.max_age == 0s || (o.max_age >= 60s && o.max_age <= 24h * 36'500), "max_age",
                 "use 60 s to 100 years, or 0 for no bound");
    const auto within = [](std::chrono::milliseconds t, std::chrono::milliseconds least) {
        return t >= least && t <= 60s;
    };
    require_nats(within(o.connect_timeout, 10ms), "connect_timeout", "use 10 ms to 60 s");
    require_nats(within(o.reply_timeout, 100ms), "reply_timeout", "use 100 ms to 60 s");
    require_nats(within(o.check_interval, 10ms), "check_interval", "use 10 ms to 60 s");
    require_nats(o.max_pending >= 1, "max_pending", "use 1 or more");
    require_nats(o.max_pending_bytes >= 64 * 1024, "max_pending_bytes", "use 64 KiB or more");
    return o;
}

SSE_DECL nats_engine::nats_engine(nats_options options)
    : options_(check_nats(std::move(options))),
      outbox_(options_.max_pending, options_.max_pending_bytes, options_.reply_timeout) {}

/// The first connection is made here, so that what can never work is told by an exception.
SSE_DECL void nats_engine::attach(sink& to, const history& kept) {
    const asio::detail::signal_blocker blocked; // also for the threads that nats.c starts
    sink_ = &to;
    kept_ = kept;
    link_ref link;
    try {
        link = std::make_shared<nats_link>(options_);
        link->examine();
    } catch (const nats_failure& failure) {
        if (failure.for_good) throw;
        link.reset(); // the reader tries again, and tells
    }
    {
        const std::lock_guard lock(mutex_);
        if (stage_ != stage::fresh)
            throw std::logic_error("sse::nats_bus: this bus belongs to another server, or to one "
                                   "that has stopped; make a "
                                   "new one for each server");
        stage_ = stage::attached;
    }
    try {
        reader_ = std::thread([this, link]() mutable { run_reader(std::move(link)); });
        writer_ = std::thread([this] { run_writer(); });
        requester_ = std::thread([this] { run_requests(); });
    } catch (...) {
        detach();
        throw;
    }
}

SSE_DECL void nats_engine::publish(std::string bytes, bool store,
                                   std::chrono::milliseconds patience, published done) {
    auto what = std::make_shared<nats_outbox::letter>();
    what->bytes = std::move(bytes);
    what->store = store;
    what->done = std::move(done);
    // A day is as good as for ever, and the clock cannot overflow.
    what->deadline = clock::now() +
                     std::min<std::chrono::milliseconds>(
                         std::max(patience, std::chrono::milliseconds(0)), std::chrono::hours(24));
    errc error{};
    {
        const std::lock_guard lock(mutex_);
        if (stage_ != stage::attached)
            error = stage_ == stage::fresh ? errc::bus_down : errc::stopped;
        else if (!outbox_.add(what))
            error = errc::no_room;
    }
    if (error == errc{})
        to_send_.notify_one();
    else
        what->done(error, 0);
}

SSE_DECL void nats_engine::read(std::string_view epoch, std::uint64_t after, std::size_t messages,
                                std::function<void(page)> done) {
    constexpr std::size_t most_requests = 256;
    errc error{};
    request wanted{std::string(epoch), after, messages, std::move(done)};
    {
        const std::lock_guard lock(mutex_);
        if (stage_ != stage::attached)
            error = stage_ == stage::fresh ? errc::bus_down : errc::stopped;
        else if (requests_.size() >= most_requests)
            error = errc::no_room;
        else
            requests_.push_back(std::move(wanted));
    }
    if (error == errc{})
        to_read_.notify_one();
    else
        wanted.done(page{error, {}, true});
}

SSE_DECL void nats_engine::detach() noexcept {
    link_ref link;
    {
        const std::lock_guard lock(mutex_);
        if (std::exchange(stage_, stage::stopped) == stage::stopped) return;
        link = link_;
    }
    for (auto* waiting : {&to_send_, &to_read_, &ended_}) waiting->notify_all();
    if (link) link->close();
    for (auto* thread : {&reader_, &writer_, &requester_})
        if (thread->joinable()) thread->join();
    while (const auto what = outbox_.first()) complete(what->id, errc::stopped, 0);
    for (const auto& wanted : requests_) guarded([&] { wanted.done({errc::stopped, {}, true}); });
    requests_.clear();
}

SSE_DECL bool nats_engine::stopped() {
    const std::lock_guard lock(mutex_);
    return stage_ == stage::stopped;
}

SSE_DECL void nats_engine::complete(std::uint64_t id, std::error_code error, std::uint64_t number) {
    nats_outbox::letter_ref what;
    {
        const std::lock_guard lock(mutex_);
        what = outbox_.finish(id);
    }
    if (!what) return;
    guarded([&] { what->done(error, number); });
    to_send_.notify_one(); // there may be room to send more
}

SSE_DECL void nats_engine::refuse(std::string reason) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(reason);
}

// ---- nats_engine: writing ----

SSE_DECL void nats_engine::run_writer() {
    std::unique_lock lock(mutex_);
    while (stage_ != stage::stopped) {
        const auto now = clock::now();
        std::vector<nats_outbox::ending> over;
        std::vector<nats_outbox::letter_ref> letters;
        const auto link = open_ ? link_ : nullptr;
        try {
            over = outbox_.expire(now, open_);
            if (link) letters = outbox_.take(now);
        } catch (...) { // no memory: nothing was taken
            ended_.wait_for(lock, std::chrono::milliseconds(100));
            continue;
        }
        if (over.empty() && letters.empty()) {
            const auto wake = outbox_.wake();
            if (wake == clock::time_point::max())
                to_send_.wait(lock);
            else
                to_send_.wait_until(lock, wake);
            continue;
        }
        lock.unlock();
        for (const auto& [what, why] : over) guarded([&, w = why] { what->done(w, 0); });
        if (link) send(*link, letters);
        lock.lock();
    }
}

SSE_DECL void nats_engine::send(nats_link& link,
                                const std::vector<nats_outbox::letter_ref>& letters) {
    for (auto next = letters.begin(); next != letters.end(); ++next) {
        bool sent = false;
        guarded([&] { sent = send_one(link, **next); });
        if (sent) continue;
        link.close();
        const std::lock_guard lock(mutex_);
        if (link_.get() == &link) open_ = false;
        for (; next != letters.end(); ++next) outbox_.again(**next, true);
        return;
    }
}

/// False: the connection is lost, the message was not sent.
SSE_DECL bool nats_engine::send_one(nats_link& link, const nats_outbox::letter& what) {
    const auto status = link.send(what, sender_);
    if (status == NATS_MAX_PAYLOAD) {
        refuse("it has " + std::to_string(what.bytes.size()) +
               " bytes, more than the server's max_payload: raise that, or send less");
        complete(what.id, errc::bus_refused, 0);
        return true;
    }
    if (status == NATS_OK && !what.store) complete(what.id, {}, 0);
    return status == NATS_OK;
}

SSE_DECL void nats_engine::run_acks(nats_link& link) noexcept {
    guarded([&] {
        for (std::uint64_t id = 0;;) {
            nats_ack ack;
            if (link.next_ack(id, ack)) take_ack(id, ack);
        }
    });
    link.close();
}

SSE_DECL void nats_engine::take_ack(std::uint64_t id, const nats_ack& ack) {
    const bool later = ack.error == JSClusterNotAvailErr || ack.error == JSClusterNotLeaderErr;
    if (ack.number != 0) return complete(id, {}, ack.number);
    if (ack.error != 0 && !later) {
        refuse(ack.reason + " (" + std::to_string(ack.error) + ")");
        return complete(id, errc::bus_refused, 0);
    }
    // There is no leader, or the first copy is still on its way through the cluster.
    const std::lock_guard lock(mutex_);
    outbox_.again(id, clock::now() + std::chrono::milliseconds(100));
    to_send_.notify_one();
}

SSE_DECL void nats_engine::run_passing(nats_link& link) noexcept {
    guarded([&] {
        for (nats_message_ptr message;;)
            if (link.next_passing(message)) told([&](sink& s) { s.passing(nats_bytes(*message)); });
    });
    link.close();
}

// ---- nats_engine: reading ----

/// What belongs to one connection.
class nats_engine::session {
public:
    session(nats_engine& engine, link_ref link) : engine_(engine), link_(std::move(link)) {
        const std::lock_guard lock(engine_.mutex_);
        engine_.link_ = link_;
        if (engine_.stage_ == stage::stopped) link_->close();
    }
    session(const session&) = delete;
    session& operator=(const session&) = delete;

    void open(std::chrono::nanoseconds window) {
        acks_ = std::thread([this] { engine_.run_acks(*link_); });
        passing_ = std::thread([this] { engine_.run_passing(*link_); });
        const std::lock_guard lock(engine_.mutex_);
        engine_.open_ = true;
        engine_.outbox_.window(std::chrono::duration_cast<clock::duration>(window));
        engine_.to_send_.notify_one();
    }

    ~session() {
        link_->close();
        for (auto* thread : {&acks_, &passing_})
            if (thread->joinable()) thread->join();
        const std::lock_guard lock(engine_.mutex_);
        engine_.open_ = false;
        engine_.link_ = nullptr;
        engine_.outbox_.again_all();
        engine_.to_send_.notify_one();
    }

private:
    nats_engine& engine_;
    link_ref link_;
    std::thread acks_, passing_;
};

SSE_DECL void nats_engine::run_reader(link_ref link) {
    while (!stopped()) {
        try {
            if (!link) link = std::make_shared<nats_link>(options_);
            serve(link);
        } catch (const std::exception& e) { lost(e.what()); } catch (...) {
            lost("NATS: an unknown exception");
        }
        link.reset();
        pause();
    }
}

SSE_DECL void nats_engine::lost(const char* why) noexcept {
    guarded([&] {
        if (!stopped()) tell(false, why);
    });
}

SSE_DECL void nats_engine::tell(bool up, const std::string& reason) {
    if (is_up_ == up && why_ == reason) return;
    told([&](sink& s) { s.health(up, reason); });
    is_up_ = up;
    why_ = reason;
}

SSE_DECL void nats_engine::tell_up(nats_link& link) {
    std::string refusal;
    {
        const std::lock_guard lock(mutex_);
        refusal = std::exchange(refusal_, {});
    }
    tell(true, refusal.empty() ? "NATS: connected to " + link.url()
                               : "NATS: a message was refused: " + refusal);
}

/// 0.1, 0.2 .. 5 s, and up to a half more by chance, so that nodes do not come all at once.
SSE_DECL void nats_engine::pause() {
    const auto doubled =
        std::min(std::ldexp(100.0, static_cast<int>(std::min(failures_, 10u))), 5e3);
    ++failures_;
    const auto wait = doubled * (1 + std::uniform_real_distribution<>(0, 0.5)(random_));
    sleep(std::chrono::milliseconds(static_cast<int>(wait)));
}

/// Unless it is stopped.
SSE_DECL void nats_engine::sleep(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, time, [&] { return stage_ == stage::stopped; });
}

SSE_DECL void nats_engine::serve(const link_ref& link) {
    session now(*this, link);
    const auto state = link->examine();
    settle(*link, state);
    resubscribe_ = true;
    now.open(state.window);
    tell_up(*link);
    failures_ = 0;
    next_check_ = clock::now() + options_.check_interval;
    if (!ready_ && place_.position() >= target_) become_ready();
    while (!stopped()) read_on(*link);
}

SSE_DECL void nats_engine::read_on(nats_link& link) {
    const auto now = clock::now();
    if (now >= next_check_) {
        check(link);
        next_check_ = clock::now() + options_.check_interval;
    }
    if (resubscribe_) {
        link.follow(place_.position() + 1, leader_);
        resubscribe_ = false;
        order_ = 0;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_check_ - now);
    auto item = link.next(std::max(left, std::chrono::milliseconds(1)));
    if (item) take_item(std::move(*item));
}

SSE_DECL void nats_engine::take_item(nats_link::item item) {
    quiet_ = 0;
    // Some were lost on their way, or the stream is another: nothing is skipped for that.
    if (item.order != order_ + 1 || item.number <= place_.position()) {
        resubscribe_ = true;
        next_check_ = {};
        return;
    }
    order_ = item.order;
    if (item.number > place_.position() + 1 && place_.opened()) {
        open(item.number);
        told([&](sink& s) { s.hole(item.number - 1); });
        place_.skip(item.number - 1);
    }
    if (item.of_log) {
        take_message(item);
    } else {
        if (place_.opened()) told_number(item.number);
        next_check_ = {}; // it looks what the newest list is
    }
    place_.pass(item.number, nats_print(nats_bytes(*item.message), item.time));
    if (!ready_ && (item.number >= target_ || item.pending == 0)) become_ready();
}

SSE_DECL void nats_engine::take_message(const nats_link::item& item) {
    using std::chrono::system_clock;
    const system_clock::time_point time(
        std::chrono::duration_cast<system_clock::duration>(std::chrono::nanoseconds(item.time)));
    const bool of_history = !ready_ && kept_.age.count() > 0;
    if (of_history && time < system_clock::now() - kept_.age) return;
    open(item.number);
    told([&](sink& s) { s.message({item.number, time, nats_bytes(*item.message)}); });
}

/// No message has a number up to this one any more: another node may have given it to a client.
SSE_DECL void nats_engine::told_number(std::uint64_t number) {
    told([&](sink& s) { s.epoch(place_.word(), number, gap_reason::epoch); });
}

SSE_DECL void nats_engine::open(std::uint64_t number) {
    const auto opening = place_.enter(number);
    if (!opening) return;
    try {
        told([&](sink& s) {
            if (opening->why == gap_reason::rewound) s.lost(opening->after);
            s.epoch(opening->word, opening->after, opening->why);
        });
    } catch (...) {
        place_.close(); // it was not told
        throw;
    }
}

SSE_DECL void nats_engine::become_ready() {
    open(place_.position() + 1);
    told([](sink& s) { s.ready(); });
    ready_ = true;
}

SSE_DECL void nats_engine::check(nats_link& link) {
    const auto state = link.examine();
    settle(link, state);
    tell_up(link);
    if (resubscribe_ || !link.idle()) return;
    ++quiet_;
    look_for_silence(state);
}

/// Nothing came for some time: because there is nothing, because it was dropped, or because the
/// server forgot the consumer.
SSE_DECL void nats_engine::look_for_silence(const nats_link::state& state) {
    if (quiet_ < 2) return;
    if (state.first > place_.position() + 1) {
        if (place_.opened()) told([&](sink& s) { s.hole(state.first - 1); });
        place_.skip(state.first - 1);
    }
    if (state.last > place_.position()) resubscribe_ = true;
    if (!ready_ && quiet_ > 3) become_ready(); // what is left was deleted one by one
}

SSE_DECL void nats_engine::settle(nats_link& link, const nats_link::state& state) {
    constexpr int most_tries = 10;
    for (int i = 0; i < most_tries; ++i) {
        if (!settle_once(link, state)) continue;
        created_ = state.created;
        if (leader_ != state.leader) resubscribe_ = true;
        leader_ = state.leader;
        return;
    }
    throw nats_failure("NATS: other nodes write new epochs without an end; have they all the same "
                       "stream?",
                       false);
}

/// Whether the list is nearer to what bounds of the stream drop next than to the newest message.
SSE_DECL bool is_worn_nats_list(std::uint64_t number, const nats_link::state& state) {
    constexpr std::uint64_t few = 100;
    return state.last > number + few && number - state.first < state.last - number;
}

/// False: another node wrote a list meanwhile.
SSE_DECL bool nats_engine::settle_once(nats_link& link, const nats_link::state& state) {
    const auto found = link.epochs();
    if (place_.epochs().empty() && found.list.empty() && state.last > 0 && !waited_) {
        waited_ = true; // after a purge: nodes that know the list are about to write it again
        sleep(2 * options_.check_interval);
        return false;
    }
    const auto list = next_list(link, state, found);
    if (list != found.list || is_worn_nats_list(found.number, state)) {
        if (!link.write_epochs(list, found.number)) return false;
    }
    adopt(list, state);
    return true;
}

/// What the list is to be: see the table in the banner.
SSE_DECL nats_epochs nats_engine::next_list(nats_link& link, const nats_link::state& state,
                                            const nats_link::listing& found) {
    const nats_epochs& ours = place_.epochs();
    const auto has = [](const nats_epochs& list, const nats_epoch& e) {
        return std::any_of(list.begin(), list.end(),
                           [&](const nats_epoch& other) { return other.word == e.word; });
    };
    if (ours.empty()) return found.list.empty() ? nats_place().cut(0) : found.list;
    if (found.list.empty()) {
        if (created_ != state.created) return place_.cut(0);
    } else if (found.list.back().word != ours.back().word) {
        const bool goes_on = has(found.list, ours.back());
        if (goes_on || !has(ours, found.list.back())) return found.list;
    }
    const auto common = lost_after(link, state);
    return common ? place_.cut(*common) : ours;
}

/// Up to where the stream is as it was read; unset if nothing of it was lost.
SSE_DECL std::optional<std::uint64_t> nats_engine::lost_after(nats_link& link,
                                                              const nats_link::state& state) {
    const auto& marks = place_.marks();
    const bool shorter = place_.position() > state.last;
    constexpr int patience = 6; // with the pauses between connections: 3 s
    if (shorter && state.replicated && ++behind_ < patience)
        throw nats_failure("NATS: the stream ends before what was read from it: a new leader may "
                           "not have caught up",
                           false);
    behind_ = 0;
    const auto is_kept = [&](const nats_place::mark& m) {
        if (m.number < state.first) return true; // dropped, as it may be
        if (m.number > state.last) return false;
        const auto print = link.print(m.number);
        return !print || *print == m.print;
    };
    if (!shorter && (marks.empty() || is_kept(marks.back()))) return std::nullopt;
    const auto parts = std::partition_point(marks.begin(), marks.end(), is_kept);
    if (parts == marks.end()) return state.last;
    return parts == marks.begin() ? 0 : std::prev(parts)->number;
}

SSE_DECL void nats_engine::adopt(const nats_epochs& list, const nats_link::state& state) {
    if (list == place_.epochs()) return;
    switch (place_.adopt(list)) {
    case nats_place::change::none: break;
    case nats_place::change::reread: resubscribe_ = true; break;
    case nats_place::change::anew:
        place_.restart(history_start(state) - 1);
        if (!ready_) target_ = state.last;
        resubscribe_ = true;
        break;
    }
    {
        const std::lock_guard lock(mutex_);
        known_ = list;
    }
    if (ready_ || place_.opened()) open(place_.position() + 1);
}

/// The first message of the history; its bytes are estimated.
SSE_DECL std::uint64_t nats_engine::history_start(const nats_link::state& state) const {
    std::uint64_t count = kept_.messages;
    if (kept_.bytes > 0 && state.messages > 0)
        count = std::min<std::uint64_t>(
            count, kept_.bytes / std::max<std::uint64_t>(1, state.bytes / state.messages));
    const auto from = state.last >= count ? state.last + 1 - count : 1;
    return std::max({from, state.first, place_.epochs().front().begin, std::uint64_t{1}});
}

// ---- nats_engine: for clients that come back ----

SSE_DECL void nats_engine::run_requests() {
    std::unique_lock lock(mutex_);
    while (stage_ != stage::stopped) {
        if (requests_.empty()) {
            to_read_.wait(lock);
            continue;
        }
        const request next = std::move(requests_.front());
        requests_.pop_front();
        lock.unlock();
        page found;
        try {
            found = answer(next);
        } catch (...) {
            found = {};
            found.failed = errc::bus_down;
        }
        lock.lock();
        if (found.failed && stage_ == stage::stopped) found.failed = errc::stopped;
        lock.unlock();
        guarded([&] { next.done(std::move(found)); });
        lock.lock();
    }
}

SSE_DECL bus::page nats_engine::answer(const request& what) {
    page found;
    link_ref link;
    nats_epochs known;
    {
        const std::lock_guard lock(mutex_);
        if (open_) link = link_;
        known = known_;
    }
    if (!link) {
        found.failed = errc::bus_down;
        return found;
    }
    const auto of = std::find_if(known.begin(), known.end(),
                                 [&](const nats_epoch& e) { return e.word == what.epoch; });
    if (of == known.end()) {
        found.whole = false;
        return found;
    }
    constexpr std::size_t most_messages = 1000;
    const auto to = std::next(of) == known.end() ? std::numeric_limits<std::uint64_t>::max()
                                                 : std::next(of)->begin - 1;
    read_range(*link, std::max(what.after + 1, of->begin), to,
               std::clamp<std::size_t>(what.messages, 1, most_messages), found);
    return found;
}

/// Ends before a number that is missing, so that the next page says so.
SSE_DECL void nats_engine::read_range(nats_link& link, std::uint64_t from, std::uint64_t to,
                                      std::size_t messages, page& into) {
    using std::chrono::system_clock;
    constexpr std::size_t most_bytes = 4 * 1024 * 1024;
    for (bool more = from <= to; more && into.records.empty();) {
        const auto reading = link.read(from, messages, most_bytes);
        more = reading.more;
        for (const auto& item : reading.items) {
            if (item.number > to) return;
            if (item.number != from && !into.records.empty()) return;
            if (item.number != from) into.whole = false;
            from = item.number + 1;
            if (!item.of_log) continue;
            const std::chrono::nanoseconds time(item.time);
            into.records.push_back(
                {item.number,
                 system_clock::time_point(std::chrono::duration_cast<system_clock::duration>(time)),
                 std::string(nats_bytes(*item.message))});
        }
        if (reading.items.empty() && link.examine().last >= from) into.whole = false;
    }
}

#endif // SSE_BODIES

} // namespace detail

#if defined(SSE_BODIES)
SSE_DECL std::shared_ptr<bus> nats_bus(nats_options options) {
    return std::make_shared<detail::nats_engine>(std::move(options));
}
#endif // SSE_BODIES

#endif // SSE_ENABLE_NATS

// >>simulation ////////////////////////////////////////////////////////////////////////////////////
// What is inside the test kit: an io_context without a thread of its own, and clients that read the
// other end of their wires. Needs >>testing, >>seams, >>lifecycle, >>fetch.
// Tests: tests/testing.cpp

#if defined(SSE_TESTING) && defined(SSE_BODIES)

namespace testing {

struct simulation::world {
    explicit world(options o) : shutdown(o.timeouts.shutdown) {
        o.handle_signals = false;
        o.drain_window = {};
        o.io_uring = false;
        o.proxy.protocol = false;
#if defined(SSE_ENABLE_TLS)
        o.tls = {};
#endif
        o.hooks.on_error = [this, tell = std::move(o.hooks.on_error)](std::exception_ptr what) {
            {
                const std::lock_guard lock(mutex);
                failures.push_back(what);
            }
            if (tell) tell(what);
        };
        server.emplace(io, std::move(o));
    }

    void settle();
    std::shared_ptr<detail::wire> connect(const client_request& r);

    static constexpr std::size_t most_handlers = 50'000; // at one moment

    detail::timeline time; // first: the others look at the clock
    const std::chrono::milliseconds shutdown;
    std::mutex mutex;                         // of the failures
    std::vector<std::exception_ptr> failures; // may come until the context is destroyed
    asio::io_context io{1};
    asio::executor_work_guard<detail::io_executor> work{io.get_executor()};
    detail::steady_timer look{io}; // makes Asio look at the clock
    bool looked = false;           // it has
    std::vector<std::weak_ptr<detail::wire>> wires;
    std::optional<sse::server> server;
    detail::lifecycle* life = nullptr; // once the server was started
};

/// Asio looks at its timers when one is set that is the first to be due. So each round sets one for
/// the beginning of time; in the last round there is nothing else to run.
SSE_DECL void simulation::world::settle() {
    if (io.stopped()) io.restart();
    std::size_t ran = 0;
    for (std::size_t before = ran;; before = ran) {
        looked = false;
        look.expires_at(detail::steady_clock::time_point::min());
        look.async_wait([this](const asio::error_code& failed) { looked = looked || !failed; });
        while (!looked) {
            io.run_one();
            if (!looked) ++ran;
            if (ran < most_handlers) continue;
            throw std::runtime_error("sse::testing: a handler does not come to rest; where it "
                                     "waits for something, await sleep_for(), not asio::post()");
        }
        ran += io.poll_one(); // what fell due comes after it
        if (ran == before) return;
    }
}

SSE_DECL std::shared_ptr<detail::wire> simulation::world::connect(const client_request& r) {
    const auto has = [&](std::string_view name) {
        return std::any_of(r.headers.begin(), r.headers.end(), [&](const auto& field) {
            return detail::equal_ignoring_case(field.first, name);
        });
    };
    auto made = std::make_shared<detail::wire>();
    made->peer = r.address;
    std::string& head = made->to_server;
    head.append(r.method).append(" ").append(r.target).append(" HTTP/1.1\r\n");
    if (!has("Host")) head += "Host: localhost\r\n";
    if (!r.last_event_id.empty()) head += "Last-Event-ID: " + r.last_event_id + "\r\n";
    if (!r.body.empty() && !has("Content-Length") && !has("Transfer-Encoding")) {
        head += "Content-Length: " + std::to_string(r.body.size()) + "\r\n";
    }
    for (const auto& [name, value] : r.headers) {
        head.append(name).append(": ").append(value).append("\r\n");
    }
    head.append("\r\n").append(r.body);
    std::erase_if(wires, [](const auto& old) { return old.expired(); });
    wires.push_back(made);
    life->connect(made);
    return made;
}

SSE_DECL simulation::simulation(options o) : world_(std::make_unique<world>(std::move(o))) {}

SSE_DECL simulation::~simulation() {
    world& w = *world_;
    w.server->stop();
    w.work.reset();
    try {
        advance(w.shutdown);
        w.io.restart();
        w.io.run_for(w.shutdown);
    } catch (...) {} // a handler does not come to rest: it ends with the context
    w.server.reset();
    for (const auto& one : w.wires) {
        const auto left = one.lock();
        if (!left) continue;
        left->reader.reset();
        left->writer.reset();
    }
}

SSE_DECL sse::server& simulation::server() noexcept { return *world_->server; }

SSE_DECL asio::io_context& simulation::context() noexcept { return world_->io; }

SSE_DECL void simulation::settle() { world_->settle(); }

SSE_DECL void simulation::advance(std::chrono::nanoseconds time) {
    if (time.count() < 0) throw std::invalid_argument("sse::testing: the clock cannot go back");
    run_until([] { return false; }, time);
}

SSE_DECL std::chrono::nanoseconds simulation::elapsed() const noexcept {
    return world_->time.elapsed();
}

SSE_DECL bool simulation::run_until(const std::function<bool()>& condition,
                                    std::chrono::nanoseconds within,
                                    std::chrono::milliseconds real) {
    world& w = *world_;
    const auto limit = w.time.now() + within;
    w.settle();
    for (bool more = true; more && !condition();) {
        more = w.time.step(limit);
        w.settle();
    }
    const auto deadline = std::chrono::steady_clock::now() + real;
    while (!condition() && std::chrono::steady_clock::now() < deadline) {
        w.io.run_one_for(std::chrono::milliseconds(1));
        w.settle();
    }
    return condition();
}

SSE_DECL void simulation::give_up() {
    throw std::runtime_error("sse::testing: the coroutine has not ended; if it waits for the "
                             "clock, give await() the time to move it by");
}

SSE_DECL std::vector<std::exception_ptr> simulation::take_failures() {
    settle();
    const std::lock_guard lock(world_->mutex);
    return std::exchange(world_->failures, {});
}

SSE_DECL void simulation::rethrow_failure() {
    settle();
    std::unique_lock lock(world_->mutex);
    if (world_->failures.empty()) return;
    const std::exception_ptr oldest = world_->failures.front();
    world_->failures.erase(world_->failures.begin());
    lock.unlock();
    std::rethrow_exception(oldest);
}

/// The client's end of a wire.
struct client::link {
    link(simulation::world& w, client_request r)
        : of(w), asked(std::move(r)), parser({.max_event = ~std::size_t{0}}, asked.last_event_id),
          wire(w.connect(asked)) {}
    ~link() { leave(); }
    link(const link&) = delete;
    link& operator=(const link&) = delete;

    void leave() {
        wire->client_ended = wire->client_gone = true;
        wire->notify();
    }
    void read();
    void understand(std::string_view bytes);
    void note_comments(std::string_view text);
    bool read_head();

    simulation::world& of;
    client_request asked;
    event_parser parser;
    std::deque<event> events;
    std::shared_ptr<detail::wire> wire;
    std::string input; // what was not understood yet
    detail::received_head head;
    std::optional<detail::body_decoder> decoder; // once the head is there
    bool is_stream = false;
    std::string body;
    std::string line; // of the stream, unfinished
    std::vector<std::string> comments;
};

/// Returns whether the head of the response is there.
SSE_DECL bool client::link::read_head() {
    while (!decoder) {
        detail::head_parser delimiter(~std::size_t{0});
        if (delimiter.feed(input) != detail::head_parser::progress::complete) return false;
        const bool valid = head.parse(delimiter.head(input));
        input.erase(0, delimiter.size());
        if (!valid) throw std::logic_error("sse::testing: the response is not valid HTTP");
        if (head.status < 200) continue; // such as 100 Continue
        decoder = asked.method == "HEAD" ? detail::body_decoder::of_size(0) : head.decoder();
        is_stream = head.media_type() == "text/event-stream";
    }
    return true;
}

/// Lets the simulation settle, and reads what has come.
SSE_DECL void client::link::read() {
    for (;;) {
        of.settle();
        const std::string taken = wire->take();
        understand(taken);
        if (taken.empty() || is_stream) return; // a stream may have no end
    }
}

SSE_DECL void client::link::understand(std::string_view bytes) {
    input += bytes;
    if (!read_head()) return;
    decoder->feed(input);
    const std::string text = decoder->take();
    body += text;
    if (!is_stream) return;
    note_comments(text);
    parser.feed(text);
    while (auto one = parser.next()) events.push_back(std::move(*one));
}

SSE_DECL void client::link::note_comments(std::string_view text) {
    line += text;
    for (std::size_t end; (end = line.find('\n')) != line.npos; line.erase(0, end + 1)) {
        if (!line.starts_with(':')) continue;
        const std::size_t begin = line.starts_with(": ") ? 2 : 1;
        comments.push_back(line.substr(begin, end - begin));
    }
}

SSE_DECL client::client(std::unique_ptr<link> l) noexcept : link_(std::move(l)) {}
SSE_DECL client::client(client&& other) noexcept = default;
SSE_DECL client& client::operator=(client&& other) noexcept = default;
SSE_DECL client::~client() = default;

SSE_DECL client simulation::open(client_request r) {
    world& w = *world_;
    if (!w.life) {
        detail::lifecycle& life = *w.server->hub_->life;
        std::unique_lock lock(life.state);
        const bool started = life.has_started();
        lock.unlock();
        if (!started) w.server->start();
        w.life = &life;
    }
    return client(std::make_unique<client::link>(w, std::move(r)));
}

SSE_DECL client simulation::get(std::string target) {
    client_request r;
    r.target = std::move(target);
    return open(std::move(r));
}

SSE_DECL std::optional<event> client::next() {
    if (link_->events.empty()) {
        link_->read();
    } else {
        link_->of.settle();
    }
    if (link_->events.empty()) return std::nullopt;
    std::optional<event> oldest(std::move(link_->events.front()));
    link_->events.pop_front();
    return oldest;
}

SSE_DECL std::vector<event> client::events() {
    link_->read();
    std::vector<event> all(std::move_iterator(link_->events.begin()),
                           std::move_iterator(link_->events.end()));
    link_->events.clear();
    return all;
}

SSE_DECL std::optional<std::chrono::milliseconds> client::retry() {
    link_->read();
    return link_->parser.retry();
}

SSE_DECL std::string client::last_event_id() {
    link_->read();
    return link_->parser.last_event_id();
}

SSE_DECL std::vector<std::string> client::comments() {
    link_->read();
    return std::exchange(link_->comments, {});
}

SSE_DECL int client::status() {
    link_->read();
    return link_->decoder ? link_->head.status : 0;
}

SSE_DECL std::optional<std::string> client::header(std::string_view name) {
    link_->read();
    const auto found = link_->head.header(name);
    return found ? std::optional<std::string>(*found) : std::nullopt;
}

SSE_DECL const std::string& client::body() {
    link_->read();
    return link_->body;
}

SSE_DECL outcome client::state() {
    link_->read();
    if (link_->decoder && link_->decoder->is_complete()) return outcome::complete;
    return link_->wire->server_ended ? outcome::closed : outcome::open;
}

SSE_DECL void client::leave() { link_->leave(); }

SSE_DECL void client::reset() {
    link_->wire->was_reset = true;
    link_->wire->notify();
}

SSE_DECL void client::half_close() {
    link_->wire->client_ended = true;
    link_->wire->notify();
}

SSE_DECL void client::stop_reading(std::size_t bytes) {
    link_->read(); // what was taken before
    link_->wire->room = bytes;
}

SSE_DECL void client::read_on() {
    link_->wire->room = detail::wire::unlimited;
    link_->wire->notify();
}

SSE_DECL void client::reconnect() {
    link_->read();
    link_->leave();
    client_request again = link_->asked;
    again.last_event_id = link_->parser.last_event_id();
    auto next = std::make_unique<link>(link_->of, std::move(again));
    next->parser = std::move(link_->parser);
    next->parser.finish();
    next->events = std::move(link_->events);
    next->comments = std::move(link_->comments);
    link_ = std::move(next);
}

SSE_DECL void client::write(std::string_view bytes) {
    link_->wire->to_server += bytes;
    link_->wire->notify();
}

} // namespace testing

#endif // SSE_TESTING && SSE_BODIES

#endif // SSE_BODIES || SSE_INTERNALS

SSE_END

#if defined(SSE_SOURCE) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#undef SSE_BEGIN
#undef SSE_BODIES
#undef SSE_DECL
#undef SSE_END
#undef SSE_STOP

#endif // SSE_HPP
