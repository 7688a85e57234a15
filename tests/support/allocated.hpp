// allocated.hpp - what a process has from its allocator. Of glibc.
#pragma once

#include <cstddef>

#include <malloc.h>

namespace support {

inline std::size_t allocated_bytes() {
    const auto all = ::mallinfo2();
    return all.uordblks + all.hblkhd;
}

} // namespace support
