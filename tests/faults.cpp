// faults.cpp - covers >>worker: What the system may refuse is refused once, at each call in turn,
// as SQLite tests itself: whatever call of a server it hits, at most the one client that it was for
// loses its connection.
//
// A program of its own: it defines functions of the C library, which must stand in nobody else's
// way.
#include "support/handlers.hpp"
#include "support/server.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <dlfcn.h>
#include <execinfo.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(SSE_ENABLE_ZLIB)
#include <zlib.h>
#endif

namespace faults_test {

enum class call : int {
    none,
    socket,
    bind,
    listen,
    accept,
    receive, ///< recv and recvmsg
    send,    ///< send and sendmsg
    set_option,
    make_epoll,
    register_epoll, ///< EPOLL_CTL_ADD: to change what is registered needs nothing.
    wait_epoll,
    make_eventfd,
    make_timerfd,
    allocate, ///< operator new, and what Asio takes its memory from.
};

struct plan {
    std::atomic<call> what{call::none};
    std::atomic<int> error{0};
    std::atomic<long> countdown{0}; ///< The call that brings it to 0 fails.
    std::atomic<long> short_sends{0};
};
inline constinit plan the_plan;
inline constinit std::atomic<long> jump{0};       ///< Seconds that the wall clock is off.
inline constinit std::atomic<bool> swings{false}; ///< To and fro, each time that it is read.
/// Before the look at the steady clock that brings it to 0, the server is not run for a time.
inline constinit std::atomic<long> looks{0};
inline constinit std::atomic<long> held_up{0}; ///< How long until now: milliseconds.

/// Calls of these threads are not counted: those of the tests.
inline constinit thread_local int exempt = 0;
/// Whether a call is to fail; then errno says why.
inline bool fails(call what) noexcept {
    if (the_plan.what.load(std::memory_order_relaxed) != what || exempt != 0) return false;
    if (the_plan.countdown.fetch_sub(1, std::memory_order_relaxed) != 1) return false;
    errno = the_plan.error.load(std::memory_order_relaxed);
    return true;
}

/// The function of this name that would be called without this program.
template <class F>
F* next(const char* name) noexcept {
    return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name));
}

/// From where memory was asked for when there was none.
struct place {
    std::array<void*, 64> frames;
    int count = 0;
};
inline constinit place the_place{};

/// As `fails`, and remembers the place.
inline bool no_memory() noexcept {
    if (!fails(call::allocate)) return false;
    ++exempt;
    the_place.count = ::backtrace(the_place.frames.data(), 64);
    --exempt;
    return true;
}

} // namespace faults_test

void* operator new(std::size_t size) {
    if (faults_test::no_memory()) throw std::bad_alloc();
    if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

// --- the C library's functions, as the server finds them

#define SSE_TEST_NEXT(name) static const auto real = faults_test::next<decltype(name)>(#name)

extern "C" {

void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
    SSE_TEST_NEXT(aligned_alloc);
    return faults_test::no_memory() ? nullptr : real(alignment, size);
}

#if defined(SSE_ENABLE_ZLIB)
int deflateInit2_(z_streamp state, int level, int method, int bits, int memory, int strategy,
                  const char* version, int size) {
    SSE_TEST_NEXT(deflateInit2_);
    if (faults_test::no_memory()) return Z_MEM_ERROR;
    return real(state, level, method, bits, memory, strategy, version, size);
}
#endif

int socket(int domain, int type, int protocol) noexcept {
    SSE_TEST_NEXT(socket);
    return faults_test::fails(faults_test::call::socket) ? -1 : real(domain, type, protocol);
}

int bind(int fd, const sockaddr* address, socklen_t size) noexcept {
    SSE_TEST_NEXT(bind);
    return faults_test::fails(faults_test::call::bind) ? -1 : real(fd, address, size);
}

int listen(int fd, int backlog) noexcept {
    SSE_TEST_NEXT(listen);
    return faults_test::fails(faults_test::call::listen) ? -1 : real(fd, backlog);
}

int accept(int fd, sockaddr* address, socklen_t* size) {
    SSE_TEST_NEXT(accept);
    return faults_test::fails(faults_test::call::accept) ? -1 : real(fd, address, size);
}

int accept4(int fd, sockaddr* address, socklen_t* size, int flags) {
    SSE_TEST_NEXT(accept4);
    return faults_test::fails(faults_test::call::accept) ? -1 : real(fd, address, size, flags);
}

ssize_t recv(int fd, void* to, size_t size, int flags) {
    SSE_TEST_NEXT(recv);
    return faults_test::fails(faults_test::call::receive) ? -1 : real(fd, to, size, flags);
}

ssize_t recvmsg(int fd, msghdr* to, int flags) {
    SSE_TEST_NEXT(recvmsg);
    return faults_test::fails(faults_test::call::receive) ? -1 : real(fd, to, flags);
}

ssize_t send(int fd, const void* from, size_t size, int flags) {
    SSE_TEST_NEXT(send);
    if (faults_test::fails(faults_test::call::send)) return -1;
    const bool cut = faults_test::exempt == 0 && faults_test::the_plan.short_sends > 0;
    if (cut) --faults_test::the_plan.short_sends;
    return real(fd, from, cut && size > 1 ? 1 : size, flags);
}

ssize_t sendmsg(int fd, const msghdr* from, int flags) {
    SSE_TEST_NEXT(sendmsg);
    if (faults_test::fails(faults_test::call::send)) return -1;
    const bool cut = faults_test::exempt == 0 && faults_test::the_plan.short_sends > 0;
    if (!cut) return real(fd, from, flags);
    --faults_test::the_plan.short_sends;
    for (std::size_t i = 0; i < from->msg_iovlen; ++i) {
        if (from->msg_iov[i].iov_len > 0) return ::send(fd, from->msg_iov[i].iov_base, 1, flags);
    }
    return 0;
}

int setsockopt(int fd, int level, int name, const void* value, socklen_t size) noexcept {
    SSE_TEST_NEXT(setsockopt);
    if (faults_test::fails(faults_test::call::set_option)) return -1;
    return real(fd, level, name, value, size);
}

int epoll_create1(int flags) noexcept {
    SSE_TEST_NEXT(epoll_create1);
    return faults_test::fails(faults_test::call::make_epoll) ? -1 : real(flags);
}

int epoll_ctl(int fd, int what, int of, epoll_event* event) noexcept {
    SSE_TEST_NEXT(epoll_ctl);
    if (what == EPOLL_CTL_ADD && faults_test::fails(faults_test::call::register_epoll)) return -1;
    return real(fd, what, of, event);
}

int epoll_wait(int fd, epoll_event* events, int most, int timeout) {
    SSE_TEST_NEXT(epoll_wait);
    return faults_test::fails(faults_test::call::wait_epoll) ? -1 : real(fd, events, most, timeout);
}

int eventfd(unsigned count, int flags) noexcept {
    SSE_TEST_NEXT(eventfd);
    return faults_test::fails(faults_test::call::make_eventfd) ? -1 : real(count, flags);
}

int timerfd_create(clockid_t clock, int flags) noexcept {
    SSE_TEST_NEXT(timerfd_create);
    return faults_test::fails(faults_test::call::make_timerfd) ? -1 : real(clock, flags);
}

int clock_gettime(clockid_t clock, timespec* now) noexcept {
    SSE_TEST_NEXT(clock_gettime);
    const int status = real(clock, now);
    if (clock == CLOCK_MONOTONIC) {
        if (faults_test::exempt == 0 && --faults_test::looks == 0) faults_test::held_up += 50;
        const long ms = now->tv_nsec / 1'000'000 + faults_test::held_up;
        now->tv_sec += ms / 1'000;
        now->tv_nsec = ms % 1'000 * 1'000'000 + now->tv_nsec % 1'000'000;
    }
    if (clock != CLOCK_REALTIME) return status;
    now->tv_sec += faults_test::jump.load(std::memory_order_relaxed);
    if (faults_test::swings) faults_test::jump = -faults_test::jump;
    return status;
}

} // extern "C"

namespace faults_test {

using namespace std::chrono_literals;
using namespace support;

namespace {

/// What this thread calls from here on is not counted.
struct uncounted {
    uncounted() { ++exempt; }
    ~uncounted() { --exempt; }
    uncounted(const uncounted&) = delete;
    uncounted& operator=(const uncounted&) = delete;
};

/// What it calls in here is, though the test around it is not.
template <class F>
decltype(auto) counted(F&& f) {
    struct back {
        int before = std::exchange(exempt, 0);
        ~back() { exempt = before; }
    } const on_return;
    return f();
}

void arm(call what, int error, long nth) {
    the_plan.error = error;
    the_plan.countdown = nth;
    the_plan.what = what;
}

/// Whether it has struck.
bool disarm() {
    the_plan.what = call::none;
    return the_plan.countdown <= 0;
}

constexpr int messages = 6;
const std::string large = support::incompressible(40'000);
bool by_gzip = false; ///< All that follow a stream accept it, where the server has it.

/// Where streams can be coded so, once without and once with that.
template <class F>
void in_each_coding(F&& f) {
#if defined(SSE_ENABLE_ZLIB)
    constexpr bool codings[] = {false, true};
#else
    constexpr bool codings[] = {false};
#endif
    for (const bool gzip : codings) {
        CAPTURE(gzip);
        by_gzip = gzip;
        f();
    }
    by_gzip = false;
}

/// One client at a time may lose its connection: then it tries once more.
class patient {
public:
    explicit patient(int& lost) : lost_(lost) {}

    template <class F>
    auto operator()(F&& f) {
        for (;;) {
            try {
                return f();
            } catch (const connection_ended& e) { note(e); } catch (const bad_response& e) {
                note(e);
            }
        }
    }

private:
    void note(const std::exception& e) {
        if (++lost_ > 1) FAIL("a second client lost its connection: ", std::string(e.what()));
    }
    int& lost_;
};

/// A client that follows a stream, and comes back with the last id when it loses that.
class follower {
public:
    follower(std::uint16_t port, std::string target, std::string last_id, int& lost)
        : port_(port), target_(std::move(target)), last_id_(std::move(last_id)), keep_(lost) {
        connect();
    }

    decoded next() {
        return keep_([this] {
            if (!client_) connect_now();
            try {
                decoded event = client_->next();
                last_id_ = event.id;
                return event;
            } catch (...) {
                client_.reset();
                throw;
            }
        });
    }
    /// What comes until the end of the stream.
    std::vector<decoded> rest() {
        std::vector<decoded> all;
        while (client_) {
            auto event = client_->next_or_end();
            if (!event) break;
            all.push_back(*std::move(event));
        }
        return all;
    }
    void leave() { client_.reset(); }

private:
    void connect() {
        keep_([this] { connect_now(); });
    }
    void connect_now() {
        header_list headers;
        if (!last_id_.empty()) headers.emplace_back("Last-Event-ID", last_id_);
        if (by_gzip) headers.emplace_back("Accept-Encoding", "gzip");
        client_.emplace(port_, target_, headers);
        CHECK(client_->head().header("Content-Encoding").has_value() == by_gzip);
    }

    std::uint16_t port_;
    std::string target_;
    std::string last_id_;
    patient keep_;
    std::optional<event_client> client_;
};

/// How many handlers of `/mine` run.
std::atomic<int> running{0};

void add_routes(sse::server& server) {
    server.route("GET", "/count", [](sse::stream& client) -> handler_result {
        for (int n = 0; n < 3; ++n) co_await client.send({.data = std::to_string(n)});
    });
    server.route("GET", "/mine", [](sse::stream& client) -> handler_result {
        struct counted {
            counted() { ++running; }
            ~counted() { --running; }
        } const here;
        client.subscribe("/a");
        co_await client.closed();
    });
    server.route("POST", "/echo", [](sse::stream& client) -> handler_result {
        const std::string body = co_await client.body();
        co_await client.respond(200, "text/plain", body);
    });
}

/// A finite stream, and another request after it on the same connection.
void count_and_go_on(std::uint16_t port) {
    connection peer(port);
    peer.send_request("GET", "/count");
    const response head = peer.read_head();
    if (head.status != 200) throw bad_response("status " + std::to_string(head.status));
    chunk_reader chunks;
    event_stream_decoder decoder;
    while (!chunks.ended()) {
        if (peer.received().empty() && !peer.receive_some()) {
            throw connection_ended("within a finite stream");
        }
        decoder.feed(chunks.feed(peer.read_until([](const std::string&) { return true; })));
    }
    const auto events = decoder.take_events();
    REQUIRE(events.size() == 3);
    for (int n = 0; n < 3; ++n)
        CHECK(events[static_cast<std::size_t>(n)].data == std::to_string(n));
    if (peer.request("GET", "/nowhere").status != 404) throw bad_response("not 404");
    if (peer.request("GET", "/health").status != 200) throw bad_response("not 200");
}

void echo(std::uint16_t port) {
    connection peer(port);
    peer.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhello");
    peer.send("world");
    const response answer = peer.read_response();
    if (answer.status != 200) throw bad_response("status " + std::to_string(answer.status));
    CHECK(answer.body == "helloworld");
}

/// What the program itself calls says when there was no memory, and has done nothing then.
template <class F>
void try_twice(F&& f) {
    try {
        counted(f);
    } catch (const std::bad_alloc&) { counted(f); }
}

void publish(sse::server& server, const std::string& text, bool is_large = false) {
    const std::string data = is_large ? text + large : text;
    try_twice([&] { server.publish("/a", {.data = data}); });
}

/// The whole life of a server: how many clients lost their connection. Nothing: it could not begin.
std::optional<int> live(bool drains) {
    sse::options o = with_threads(1);
    o.heartbeat = 10s;
#if defined(SSE_ENABLE_ZLIB)
    o.compress = by_gzip;
#endif
    running = 0;
    std::optional<sse::server> server;
    // Asio does not look whether epoll takes its own two descriptors.
    if (the_plan.what == call::register_epoll) server.emplace(o);
    try {
        counted([&] {
            if (!server) server.emplace(o);
            add_routes(*server);
            server->start("127.0.0.1:0");
        });
    } catch (const std::system_error&) { return std::nullopt; } catch (const std::bad_alloc&) {
        return std::nullopt;
    }
    const std::uint16_t port = server->port();
    int lost = 0;
    publish(*server, "before");
    const std::string first = server->last_id();
    for (int n = 0; n < messages / 2; ++n) publish(*server, std::to_string(n));

    follower resumes(port, "/subscribe/a", first, lost);
    follower by_handler(port, "/mine", first, lost);
    follower leaves(port, "/subscribe/a", first, lost);
    follower leaves_handler(port, "/mine", first, lost);
    patient tries(lost);
    tries([&] { count_and_go_on(port); });
    tries([&] { echo(port); });
    for (int n = messages / 2; n < messages; ++n) publish(*server, std::to_string(n), true);
    // Each message once and in order, whoever lost its connection in between.
    const auto check_next = [&](follower& one, int n) {
        const decoded event = one.next();
        CHECK(event.type == "message");
        const std::string text = std::to_string(n);
        CHECK(event.data.substr(0, text.size()) == text);
        CHECK(event.data.size() == text.size() + (n < messages / 2 ? 0 : large.size()));
    };
    for (int n = 0; n < messages; ++n) {
        check_next(resumes, n);
        check_next(by_handler, n);
        if (n < messages / 2) check_next(leaves, n);
        if (n < messages / 2) check_next(leaves_handler, n);
    }
    leaves.leave();
    leaves_handler.leave();
    publish(*server, "again");
    CHECK(resumes.next().data == "again");
    CHECK(by_handler.next().data == "again");
    CHECK(eventually([] { return running == 1; })); // of those whose client is gone none

    // A browser would remember the id that its stream begins with.
    follower fresh(port, "/subscribe/a", server->last_id(), lost);
    publish(*server, "to the fresh one too");
    CHECK(fresh.next().data == "to the fresh one too");
    CHECK(resumes.next().data == "to the fresh one too");
    if (drains) {
        try_twice(
            [&] { server->drain({.window = 40ms, .farewell = sse::message{.data = "bye"}}); });
        int ended_early = 0;
        for (follower* const one : {&resumes, &by_handler, &fresh}) {
            const auto rest = one->rest();
            ended_early += rest.empty() || rest.back().data != "bye" ? 1 : 0;
        }
        CHECK(ended_early + lost <= 1);
    } else {
        counted([&] { server->stop(); });
        server->join();
    }
    CHECK(server->counters().connections == 0);
    CHECK(server->counters().streams == 0);
    return lost;
}

/// Refuses a kind of call with an error at each place where the whole life has one.
void refuse_everywhere(call what, int error) {
    const bool passes = error == EAGAIN || error == EINTR; // nobody is to notice it
    for (const bool drains : {false, true}) {
        long struck = 0;
        int untouched = 0; // in a row: how often a call is made differs a little between runs
        for (long nth = 1; untouched < 3 && nth < 5'000; ++nth) {
            CAPTURE(drains);
            CAPTURE(error);
            CAPTURE(nth);
            const std::size_t descriptors = open_descriptors();
            arm(what, error, nth);
            const std::optional<int> lost = live(drains);
            const bool lived = lost.has_value();
            if (lived && passes) CHECK(*lost == 0);
            const bool hit = disarm();
            struck += hit ? 1 : 0;
            untouched = hit ? 0 : untouched + 1;
            CHECK(open_descriptors() == descriptors);
            CHECK((lived || hit));
        }
        CHECK(struck > 0);
        CHECK(untouched == 3);
    }
}

/// What became of a process in which one allocation failed.
enum class fate : int {
    untouched, ///< So many there are not.
    survived,
    not_begun,     ///< The server could not be made or started, and said so.
    ended_by_asio, ///< std::terminate, in a function of Asio that is noexcept, see below.
    wrong = 9,
};

/// Asio begins what a coroutine awaits in a function that may not throw, though it allocates: then
/// the program ends. No caller of Asio can help that.
[[noreturn]] void tell_who_ended_it() {
    ++exempt;
    for (int i = 0; i < the_place.count; ++i) {
        Dl_info found{};
        const void* const at = the_place.frames[static_cast<std::size_t>(i)];
        if (::dladdr(at, &found) != 0 && found.dli_sname != nullptr &&
            std::strstr(found.dli_sname, "await_suspend") != nullptr) {
            ::_exit(static_cast<int>(fate::ended_by_asio));
        }
    }
    ::backtrace_symbols_fd(the_place.frames.data(), the_place.count, STDERR_FILENO);
    ::_exit(static_cast<int>(fate::wrong));
}

/// In a process of its own, since the worst that may happen is its end.
fate live_without_memory(bool drains, long nth) {
    std::cout.flush(); // else both print it
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        std::set_terminate(tell_who_ended_it);
        ::alarm(60);
        // Any check that fails throws from here on.
        const_cast<doctest::ContextOptions*>(doctest::getContextOptions())->abort_after = 1;
        fate end = fate::wrong;
        the_plan.short_sends = by_gzip ? 3'000 : 0; // what is left of a block needs memory too
        arm(call::allocate, ENOMEM, nth);
        try {
            const std::optional<int> lost = live(drains);
            end = !disarm() ? fate::untouched : lost ? fate::survived : fate::not_begun;
        } catch (const std::exception& e) { std::fprintf(stderr, "%s\n", e.what()); } catch (...) {
        } // a check, which has said what is wrong
        std::cout.flush();
        ::_exit(static_cast<int>(end));
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    INFO("status ", status);
    CHECK(WIFEXITED(status));
    return WIFEXITED(status) ? static_cast<fate>(WEXITSTATUS(status)) : fate::wrong;
}

} // namespace

TEST_SUITE("faults") {
    TEST_CASE("without a fault nothing is lost and nothing left") {
        const uncounted here;
        in_each_coding([] {
            REQUIRE(live(false));
            REQUIRE(live(true));
            const std::size_t descriptors = open_descriptors();
            REQUIRE(live(false));
            REQUIRE(live(true));
            CHECK(open_descriptors() == descriptors);
        });
    }

    TEST_CASE("accept fails") {
        const uncounted here;
        for (const int error :
             {EINTR, EAGAIN, ECONNABORTED, EPROTO, EMFILE, ENFILE, ENOMEM, ENOBUFS})
            refuse_everywhere(call::accept, error);
    }

    TEST_CASE("recv fails") {
        const uncounted here;
        for (const int error : {EINTR, EAGAIN, ECONNRESET, ETIMEDOUT, ENOMEM})
            refuse_everywhere(call::receive, error);
    }

    TEST_CASE("send fails") {
        const uncounted here;
        in_each_coding([] {
            for (const int error : {EINTR, EAGAIN, ECONNRESET, EPIPE, ENOBUFS, ENOMEM})
                refuse_everywhere(call::send, error);
        });
    }

    TEST_CASE("setsockopt fails") {
        const uncounted here;
        for (const int error : {ENOMEM, EINVAL}) refuse_everywhere(call::set_option, error);
    }

    TEST_CASE("epoll fails") {
        const uncounted here;
        for (const int error : {ENOMEM, ENOSPC}) refuse_everywhere(call::register_epoll, error);
        refuse_everywhere(call::wait_epoll, EINTR);
    }

    TEST_CASE("no descriptor is left at the start") {
        const uncounted here;
        for (const call what : {call::make_epoll, call::make_eventfd, call::make_timerfd,
                                call::socket, call::bind, call::listen})
            refuse_everywhere(what, what == call::bind ? EADDRINUSE : EMFILE);
    }

    TEST_CASE("there is no memory") {
        const uncounted here;
        void* once[1];
        ::backtrace(once, 1); // loads what it needs, which allocates
        in_each_coding([] {
            // By gzip there are more of them, and under a sanitizer each life takes longer.
            const long step = by_gzip && !memory_is_meaningful ? 3 : 1;
            for (const bool drains : {false, true}) {
                CAPTURE(drains);
                std::map<fate, int> seen;
                for (long nth = 1; seen[fate::untouched] < 3 && nth < 5'000; nth += step) {
                    CAPTURE(nth);
                    const fate end = live_without_memory(drains, nth);
                    CHECK(end != fate::wrong);
                    ++seen[end];
                }
                CHECK(seen[fate::untouched] == 3);
                CHECK(seen[fate::survived] > 100);
                CHECK(seen[fate::not_begun] > 10);
                MESSAGE("survived: ", seen[fate::survived], ", not begun: ", seen[fate::not_begun],
                        ", ended by Asio: ", seen[fate::ended_by_asio]);
            }
        });
    }

    TEST_CASE("a client takes one byte at a time") {
        const uncounted here;
        in_each_coding([] {
            for (const bool drains : {false, true}) {
                CAPTURE(drains);
                the_plan.short_sends = 20'000;
                CHECK(live(drains) == std::optional<int>(0));
                CHECK(the_plan.short_sends.exchange(0) == 0);
            }
        });
    }

    TEST_CASE("the wall clock jumps by a day at each look") {
        const uncounted here;
        jump = 24 * 3'600;
        swings = true;
        for (const bool drains : {false, true}) CHECK(live(drains) == std::optional<int>(0));
        swings = false;
        jump = 0;
    }

    TEST_CASE("a worker that is held up for longer than a drain's window still says farewell") {
        const uncounted here;
        for (long nth = 1; nth <= 40; ++nth) {
            CAPTURE(nth);
            running_server server(with_threads(1));
            std::vector<std::unique_ptr<event_client>> clients;
            for (int n = 0; n < 4; ++n) {
                clients.push_back(std::make_unique<event_client>(server.port(), "/subscribe/a"));
            }
            server.publish("/a", {.data = "last"});
            looks = nth;
            const sse::drain_result all =
                server.drain({.window = 40ms, .farewell = sse::message{.data = "bye"}});
            CHECK(all.closed == clients.size());
            CHECK(all.cut == 0);
            for (const auto& client : clients) {
                CHECK(client->next().data == "last");
                CHECK(client->next().data == "bye");
                CHECK(!client->next_or_end());
            }
        }
        looks = 0;
        held_up = 0;
    }

    TEST_CASE("a time to start from is one of the clock as it stands, wherever it has jumped to") {
        const uncounted here;
        sse::options o = with_threads(1);
        o.history.age = 1h;
        running_server server(o);
        event_client before(server.port(), "/subscribe/a");
        for (const long hours : {0, 30, -30, 0}) {
            CAPTURE(hours);
            jump = hours * 3'600;
            const std::string text = std::to_string(hours);
            server.publish("/a", {.data = text});
            CHECK(before.next().data == text);
            const auto ago = std::chrono::system_clock::now() - 600s;
            const auto since = std::chrono::system_clock::to_time_t(ago);
            event_client late(server.port(), "/subscribe/a?since=" + std::to_string(since));
            while (late.next().id != server.last_id()) {}
            CHECK(server.counters().gaps == 0);
        }
        jump = 0;
    }
}

} // namespace faults_test
