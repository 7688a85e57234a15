// header_twice.cpp - a second file for the first program of the README: whole in both, it links.
#include "sse.hpp"

asio::awaitable<void> handler_of_another_file(sse::stream& client) {
    co_await client.send({.data = "both files have this function of the header"});
}
