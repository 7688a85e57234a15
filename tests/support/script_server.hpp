// script_server.hpp - a server for tests of clients: plays exact bytes, and records what it is
// asked. POSIX, loopback.
//
//   support::script_server server({{.bytes = "HTTP/1.1 204 No Content\r\n\r\n"}});
//   ... a client asks for server.url("/events") ...
//   CHECK(server.requests().at(0).starts_with("GET /events HTTP/1.1\r\n"));
//
// One connection at a time, one scene for each. It shares no code with sse.hpp.
#pragma once

#include "client.hpp"

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace support {

/// What happens to one connection, once its request has come with its body.
struct scene {
    enum class then {
        close, ///< In order.
        hold,  ///< Nothing, until the client leaves.
        reset
    };

    std::string bytes = {};
    then end = then::close;
    std::size_t piece = 0;    ///< Sent in pieces of this size. 0: at once.
    bool read_request = true; ///< The head; otherwise it sends at once.
    bool read_body = true;    ///< And the body.
#if defined(SSE_ENABLE_TLS)
    std::optional<tls_wish> tls = {}; ///< With is_server.
    bool says_goodbye = true;         ///< Else it closes without close_notify.
    int key_updates = 0;              ///< Before the bytes.
#endif
};

class script_server {
public:
    /// Connections that no scene is left for are held, without a response.
    explicit script_server(std::vector<scene> scenes, const std::string& host = "127.0.0.1",
                           std::uint16_t port = 0)
        : host_(host), scenes_(std::move(scenes)) {
        const socket_address address(host, port);
        listener_ = descriptor(
            ::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!listener_) throw_errno("socket");
        if (::bind(listener_.get(), address.get(), address.size()) != 0) throw_errno("bind");
        if (::listen(listener_.get(), 16) != 0) throw_errno("listen");
        sockaddr_storage bound{};
        socklen_t size = sizeof bound;
        ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &size);
        port_ = ntohs(bound.ss_family == AF_INET6
                          ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                          : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
        thread_ = std::thread([this] { play(); });
    }

    ~script_server() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
            if (current_ >= 0) ::shutdown(current_, SHUT_RDWR);
        }
        ::shutdown(listener_.get(), SHUT_RDWR); // wakes accept
        thread_.join();
    }
    script_server(const script_server&) = delete;
    script_server& operator=(const script_server&) = delete;

    /// One more, before its connection comes.
    void add(scene one) {
        const std::lock_guard lock(mutex_);
        scenes_.push_back(std::move(one));
    }

    std::uint16_t port() const { return port_; }
    std::string authority() const {
        const bool v6 = host_.find(':') != std::string::npos;
        return (v6 ? "[" + host_ + "]" : host_) + ":" + std::to_string(port_);
    }
    std::string url(const std::string& target = "/") const {
        return "http://" + authority() + target;
    }

    /// Head and body of each request so far, as they came.
    std::vector<std::string> requests() const {
        const std::lock_guard lock(mutex_);
        return requests_;
    }
    std::size_t connections() const {
        const std::lock_guard lock(mutex_);
        return connections_;
    }
    [[nodiscard]] bool wait_for_requests(std::size_t count) const {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, patience, [&] { return requests_.size() >= count; });
    }

private:
    void play() {
        for (std::size_t n = 0;; ++n) {
            descriptor socket = accept_one();
            if (!socket) return;
            const scene one = scene_of(n);
            connection peer(std::move(socket));
            try {
                play(peer, one);
            } catch (const std::exception&) {} // the client left in the middle, or we stop
            const std::lock_guard lock(mutex_);
            current_ = -1;
        }
    }

    scene scene_of(std::size_t n) const {
        const std::lock_guard lock(mutex_);
        return n < scenes_.size() ? scenes_[n] : scene{.end = scene::then::hold};
    }

    descriptor accept_one() {
        for (;;) {
            const int fd =
                ::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
            {
                const std::lock_guard lock(mutex_);
                if (stopping_) {
                    if (fd >= 0) ::close(fd);
                    return descriptor();
                }
                if (fd >= 0) {
                    ++connections_;
                    current_ = fd;
                }
            }
            if (fd >= 0) break;
            if (errno == EAGAIN) {
                if (!wait_for(listener_.get(), POLLIN, std::chrono::hours(1))) return descriptor();
            } else if (errno != EINTR && errno != ECONNABORTED) {
                return descriptor();
            }
        }
        const int no_delay = 1;
        ::setsockopt(current_, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof no_delay);
        return descriptor(current_);
    }

    void play(connection& peer, const scene& one) {
#if defined(SSE_ENABLE_TLS)
        if (one.tls) peer.secure(*one.tls);
#endif
        if (one.read_request) read_request(peer, one);
#if defined(SSE_ENABLE_TLS)
        for (int n = 0; n < one.key_updates; ++n) {
            if (!peer.try_send_raw(peer.tls().change_keys())) return;
        }
#endif
        const std::size_t piece = one.piece == 0 ? one.bytes.size() : one.piece;
        for (std::size_t at = 0; at < one.bytes.size(); at += piece) {
            peer.send(std::string_view(one.bytes).substr(at, piece));
        }
        if (one.end == scene::then::hold) peer.wait_for_close(std::chrono::hours(1));
        if (one.end == scene::then::reset) peer.reset();
#if defined(SSE_ENABLE_TLS)
        if (!one.says_goodbye) ::shutdown(peer.native_handle(), SHUT_WR);
#endif
        if (one.end == scene::then::close) peer.finish_sending();
        // The client may still be at the last bytes: unread ones of its own would reset it.
        if (one.end == scene::then::close && one.read_body) peer.wait_for_close();
    }

    void read_request(connection& peer, const scene& one) {
        std::string text = peer.read_through("\r\n\r\n");
        const std::size_t at = text.find("Content-Length: ");
        if (at != std::string::npos && one.read_body) {
            text += peer.read_exactly(std::stoul(text.substr(at + 16)));
        }
        const std::lock_guard lock(mutex_);
        requests_.push_back(std::move(text));
        changed_.notify_all();
    }

    std::string host_;
    descriptor listener_;
    std::uint16_t port_ = 0;
    mutable std::mutex mutex_; // guards what follows
    std::vector<scene> scenes_;
    mutable std::condition_variable changed_;
    std::vector<std::string> requests_;
    std::size_t connections_ = 0;
    int current_ = -1; // the connection that plays
    bool stopping_ = false;
    std::thread thread_;
};

} // namespace support
