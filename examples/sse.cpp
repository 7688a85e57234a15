// sse.cpp - in a program of many files, all compiled with SSE_SEPARATE_COMPILATION, the one that
// compiles the library for the others. A program of one file needs nothing of this.
#define SSE_SOURCE
#include "sse.hpp"
