// sse.cpp - in a program of several files, all compiled with SSE_SEPARATE_COMPILATION, this one
// compiles the library for the others. A program of one file does not need it.
#define SSE_SOURCE
#include "sse.hpp"
