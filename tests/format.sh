#!/usr/bin/env bash
# Whether the code is formatted as .clang-format says. Each version of clang-format breaks lines in
# its own way: this is 14, of Debian 12.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit
clang-format --version 2>&1 | grep 'version 14\.' >/dev/null || { echo "no clang-format 14"; exit 77; }
exec clang-format --dry-run -Werror sse.hpp tests/*.cpp tests/support/*.hpp tests/fuzz/*.cpp \
    examples/*.[ch]pp examples/packaging/project/*.cpp bench/*.[ch]pp bench/rivals/*.cpp
