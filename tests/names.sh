#!/usr/bin/env bash
# Whether the header's names are as .clang-tidy says.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit
command -v clang-tidy >/dev/null || { echo "no clang-tidy"; exit 77; }
exec clang-tidy --quiet sse.hpp -- -std=c++20 -x c++ -DSSE_SEPARATE_COMPILATION -DSSE_SOURCE
