#!/usr/bin/env bash
# A program with a client compiles nothing of the server: g++ says which functions it takes for needed.
# See share_new() in sse.hpp.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
compiler=${CXX:-g++}
[[ $("$compiler" --version) != *clang* ]] || { echo "clang does not say it"; exit 77; }
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

"$compiler" -std=c++20 -O1 -fdevirtualize -w -I. -fdump-tree-cfg="$folder/needed" -c -x c++ - -o /dev/null <<'END'
#include "sse.hpp"
asio::awaitable<void> follow(sse::client& events) { while (co_await events.next()) {} }
int main() {
    asio::io_context io;
    sse::client events(io, "http://localhost/");
    asio::co_spawn(io, follow(events), [](std::exception_ptr) {});
    io.run();
}
END
compiles() { # CLASS: whether it has functions of it
    grep -qE "^;; Function .*\(_ZNK?3sse6detail${#1}$1[0-9CD]" "$folder/needed"
}
compiles client_core || { echo "the client is not found in what $compiler says"; exit 1; }
for class in worker feed hub lifecycle exchange relay file_log_bus job_log post_office; do
    ! compiles "$class" || { echo "a program with a client compiles $class"; exit 1; }
done
