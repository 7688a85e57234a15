// examples_in_one.cpp - all examples in one program, which does what the name says by which it is
// called; by its own it lists the others. For the sanitizers: each example by itself costs the
// whole header once more to compile.
#include "../examples/hub_demo.hpp"
#include "../examples/hub_page.hpp"
#include "../examples/json.hpp"
#include "sse.hpp"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/signal_set.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <ctime>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// What an example includes stands above already, so these bring its own code alone.
namespace clock_example {
#include "../examples/clock.cpp"
}
namespace sysenv_example {
#include "../examples/sysenv.cpp"
}
namespace hub_example {
#include "../examples/hub.cpp"
}
namespace tokens_example {
#include "../examples/tokens.cpp"
}
namespace mcp_example {
#include "../examples/mcp.cpp"
}
namespace job_example {
#include "../examples/job.cpp"
}
namespace tail_example {
#include "../examples/tail.cpp"
}
namespace chat_example {
#include "../examples/chat.cpp"
}
namespace embed_example {
#include "../examples/embed.cpp"
}
namespace client_example {
#include "../examples/client.cpp"
}

int main(int argc, char** argv) {
    struct example {
        std::string_view name;
        int (*run)(int, char**);
    };
    constexpr example examples[] = {
        {"clock", clock_example::main}, {"sysenv", sysenv_example::main},
        {"hub", hub_example::main},     {"tokens", tokens_example::main},
        {"mcp", mcp_example::main},     {"job", job_example::main},
        {"tail", tail_example::main},   {"chat", chat_example::main},
        {"embed", embed_example::main}, {"client", client_example::main},
    };
    const std::string_view called = argc > 0 ? argv[0] : "";
    const auto name = called.substr(called.rfind('/') + 1);
    for (const example& each : examples) {
        if (each.name == name) return each.run(argc, argv);
    }
    for (const example& each : examples) std::cout << each.name << '\n';
    return name == "examples_in_one" ? 0 : 2;
}
