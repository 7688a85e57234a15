// program.hpp - what main() of an example does besides its subject: --help, wrong arguments, and a
// line that says why it failed.
#pragma once

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

#if !defined(_WIN32)
#include <fcntl.h>
#include <unistd.h>
#endif

namespace program {

/// A program may be started with descriptors 0 to 2 closed. Its first sockets would then get these
/// numbers, and its output would go to them.
inline void keep_standard_descriptors() {
#if !defined(_WIN32)
    int opened = ::open("/dev/null", O_RDWR);
    while (opened >= 0 && opened <= 2) opened = ::open("/dev/null", O_RDWR);
    if (opened > 2) ::close(opened);
#endif
}

/// The reader of a server's output may close the pipe, or the output file may reach its size limit.
/// By default the system then ends the server, which cuts off all its clients.
inline void survive_closed_output() {
#if !defined(_WIN32)
    for (const int each : {SIGPIPE, SIGXFSZ}) std::signal(each, SIG_IGN);
#endif
}

/// Runs an example and returns its exit status: 0, 1 with a line about what failed, or 2 for wrong
/// arguments. `usage` is what --help prints, and says how many arguments there are: the name, then
/// a word for each, in brackets if it may be left out.
template <class Body>
int run(int argc, char** argv, std::string_view usage, Body body) {
    keep_standard_descriptors();
    survive_closed_output();
    const auto words = static_cast<int>(std::count(usage.begin(), usage.end(), ' '));
    const auto optional = static_cast<int>(std::count(usage.begin(), usage.end(), '['));
    const std::string name(usage.substr(0, usage.find(' ')));
    const auto is_flag = [](std::string_view text) { return text.starts_with('-'); };
    try {
        for (const std::string_view argument : {"-h", "--help"}) {
            if (std::count(argv + 1, argv + argc, argument) == 0) continue;
            std::cout << "usage: " << usage << std::endl;
            return 0;
        }
        const bool counts = argc - 1 <= words && argc - 1 >= words - optional;
        if (!counts || std::any_of(argv + 1, argv + argc, is_flag))
            throw std::invalid_argument("wrong arguments");
        body();
        return 0;
    } catch (const std::invalid_argument& wrong) {
        std::cerr << name << ": " << wrong.what() << "\nusage: " << usage << std::endl;
        return 2;
    } catch (const std::exception& failure) {
        std::cerr << name << ": " << failure.what() << std::endl;
        return 1;
    }
}

} // namespace program
