// Stands between a client and its server, and cuts, or answers itself.
#pragma once

#include "sse.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

class proxy {
public:
    explicit proxy(int to)
        : to_(asio::ip::address_v4::loopback(), static_cast<unsigned short>(to)) {
        accept();
        thread_ = std::thread([this] { io_.run(); });
    }
    ~proxy() {
        io_.stop();
        thread_.join();
    }

    int port() const { return acceptor_.local_endpoint().port(); }
    /// Each later connection ends after so many bytes of the server. 0: none does.
    void cut_after(std::size_t bytes) { cut_ = bytes; }
    void cut_all() {
        std::promise<void> over;
        asio::post(io_, [&] {
            for (auto& p : pairs_) {
                if (const auto one = p.lock()) one->close();
            }
            pairs_.clear();
            cuts_ = 0;
            over.set_value();
        });
        over.get_future().wait();
    }
    /// Waits, at most half a minute, until so many connections ended since cut_all().
    bool wait_for_cuts(int count) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (cuts_ < count && cut_ > 0) {
            if (std::chrono::steady_clock::now() > end) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return true;
    }
    /// From now on this is the reply to whatever is asked; empty: the server's.
    void answer_with(std::string reply) {
        const std::lock_guard lock(mutex_);
        reply_ = std::move(reply);
    }

private:
    using tcp = asio::ip::tcp;

    struct pair {
        explicit pair(asio::io_context& io) : client(io), server(io) {}
        void close() {
            asio::error_code ignored;
            client.close(ignored);
            server.close(ignored);
        }
        tcp::socket client;
        tcp::socket server;
        std::array<char, 16'384> from_client;
        std::array<char, 16'384> from_server;
        std::size_t left = 0;
    };

    void accept() {
        const auto p = std::make_shared<pair>(io_);
        acceptor_.async_accept(p->client, [this, p](asio::error_code failed) {
            if (failed) return;
            asio::error_code refused;
            p->server.connect(to_, refused);
            p->left = cut_;
            pairs_.push_back(p);
            if (refused) {
                p->close();
            } else {
                forward(p);
                back(p);
            }
            accept();
        });
    }
    void forward(const std::shared_ptr<pair>& p) {
        p->client.async_read_some(
            asio::buffer(p->from_client), [this, p](asio::error_code failed, std::size_t size) {
                if (failed) return p->close();
                const std::lock_guard lock(mutex_);
                asio::error_code gone;
                if (reply_.empty()) {
                    asio::write(p->server, asio::buffer(p->from_client, size), gone);
                } else {
                    asio::write(p->client, asio::buffer(reply_), gone);
                }
                if (gone) return p->close();
                forward(p);
            });
    }
    void back(const std::shared_ptr<pair>& p) {
        p->server.async_read_some(
            asio::buffer(p->from_server), [this, p](asio::error_code failed, std::size_t size) {
                if (failed) return p->close();
                const bool ends = p->left > 0 && size >= p->left;
                asio::error_code gone;
                asio::write(p->client, asio::buffer(p->from_server, ends ? p->left : size), gone);
                if (p->left > 0) p->left -= std::min(p->left, size);
                if (ends) ++cuts_;
                if (ends || gone) return p->close();
                back(p);
            });
    }

    asio::io_context io_;
    tcp::endpoint to_;
    tcp::acceptor acceptor_{io_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)};
    std::vector<std::weak_ptr<pair>> pairs_; // on the thread alone
    std::atomic<std::size_t> cut_{0};
    std::atomic<int> cuts_{0};
    std::mutex mutex_;
    std::string reply_;
    std::thread thread_;
};
