// header_alone.cpp - covers >>config, >>system: the header first and alone: it includes all that it
// needs.
#include "sse.hpp"

int main() {
    const sse::server server;
    return server.counters().published == 0 ? 0 : 1;
}
