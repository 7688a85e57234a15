// sanitizers.hpp - whether this program is compiled with one, as macros and as constants. g++ has
// macros for it, clang has features.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define SUPPORT_ASAN
#endif
#if defined(__SANITIZE_THREAD__)
#define SUPPORT_TSAN
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SUPPORT_ASAN
#endif
#if __has_feature(thread_sanitizer)
#define SUPPORT_TSAN
#endif
#endif

namespace support {

#if defined(SUPPORT_ASAN)
inline constexpr bool with_address_sanitizer = true;
#else
inline constexpr bool with_address_sanitizer = false;
#endif
#if defined(SUPPORT_TSAN)
inline constexpr bool with_thread_sanitizer = true;
#else
inline constexpr bool with_thread_sanitizer = false;
#endif

} // namespace support
