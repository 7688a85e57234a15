# The targets of CMake, for what is installed and for FetchContent alike:
#   sse::sse                                     the header, Asio, threads
#   sse::tls sse::redis sse::nats sse::io_uring  it with what a macro of the header turns on
# SSE_INCLUDE_DIR is the folder of sse.hpp; SSE_SCOPE is GLOBAL or nothing. Sets SSE_FOUND_<name> for
# each target made, and SSE_MISSING_<name> to the remedy for each other.
set(SSE_FOUND_sse TRUE)
foreach(name tls redis nats io_uring)
    set(SSE_FOUND_${name} FALSE)
endforeach()

find_package(Threads QUIET)
find_package(asio CONFIG QUIET) # of vcpkg and Conan; Debian has the header alone
if(NOT TARGET asio::asio)
    find_path(SSE_ASIO_INCLUDE_DIR asio.hpp)
endif()
if(NOT TARGET Threads::Threads)
    set(SSE_FOUND_sse FALSE)
    set(SSE_MISSING_sse "there are no threads: enable_language(CXX) comes first")
elseif(NOT TARGET asio::asio AND NOT SSE_ASIO_INCLUDE_DIR)
    set(SSE_FOUND_sse FALSE)
    set(SSE_MISSING_sse "there is no asio.hpp: install libasio-dev, or set SSE_ASIO_INCLUDE_DIR")
endif()

if(SSE_FOUND_sse AND NOT TARGET sse::sse)
    add_library(sse::sse INTERFACE IMPORTED ${SSE_SCOPE})
    set_target_properties(sse::sse PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${SSE_INCLUDE_DIR}"
        INTERFACE_COMPILE_FEATURES cxx_std_20)
    target_link_libraries(sse::sse INTERFACE Threads::Threads)
    if(TARGET asio::asio)
        target_link_libraries(sse::sse INTERFACE asio::asio)
    else()
        target_include_directories(sse::sse SYSTEM INTERFACE "${SSE_ASIO_INCLUDE_DIR}")
    endif()
    if(WIN32)
        target_link_libraries(sse::sse INTERFACE ws2_32 mswsock)
    endif()
endif()

# sse_feature(NAME MACRO LIBRARY...): a target with the macro and these libraries.
function(sse_feature name macro)
    if(NOT TARGET sse::${name})
        add_library(sse::${name} INTERFACE IMPORTED ${SSE_SCOPE})
        target_compile_definitions(sse::${name} INTERFACE ${macro})
        target_link_libraries(sse::${name} INTERFACE sse::sse ${ARGN})
    endif()
    set(SSE_FOUND_${name} TRUE PARENT_SCOPE)
endfunction()

# sse_library(NAME MACRO PACKAGE HEADER LIBRARY): the feature with what pkg-config knows, else with what
# lies in the usual places. Debian's own file for CMake of nats.c names a library that is not there.
find_package(PkgConfig QUIET)
function(sse_library name macro package header library)
    string(TOUPPER ${name} upper)
    if(PKG_CONFIG_FOUND)
        pkg_check_modules(SSE_PC_${upper} QUIET IMPORTED_TARGET ${SSE_SCOPE} ${package})
        if(SSE_PC_${upper}_FOUND)
            sse_feature(${name} ${macro} PkgConfig::SSE_PC_${upper})
            set(SSE_FOUND_${name} TRUE PARENT_SCOPE)
            return()
        endif()
    endif()
    find_path(SSE_${upper}_INCLUDE_DIR ${header})
    find_library(SSE_${upper}_LIBRARY ${library})
    if(SSE_${upper}_INCLUDE_DIR AND SSE_${upper}_LIBRARY)
        sse_feature(${name} ${macro} "${SSE_${upper}_LIBRARY}")
        target_include_directories(sse::${name} SYSTEM INTERFACE "${SSE_${upper}_INCLUDE_DIR}")
        set(SSE_FOUND_${name} TRUE PARENT_SCOPE)
    endif()
endfunction()

if(SSE_FOUND_sse)
    find_package(OpenSSL 3 QUIET)
    if(TARGET OpenSSL::SSL)
        sse_feature(tls SSE_ENABLE_TLS OpenSSL::SSL OpenSSL::Crypto)
    endif()
    sse_library(redis SSE_ENABLE_REDIS hiredis hiredis/hiredis.h hiredis)
    sse_library(nats SSE_ENABLE_NATS libnats nats/nats.h nats)
    sse_library(io_uring SSE_ENABLE_IO_URING liburing liburing.h uring)
endif()
set(SSE_MISSING_tls "there is no OpenSSL 3: install libssl-dev")
set(SSE_MISSING_redis "there is no hiredis: install libhiredis-dev")
set(SSE_MISSING_nats "there is no nats.c: install libnats-dev")
set(SSE_MISSING_io_uring "there is no liburing: install liburing-dev")
