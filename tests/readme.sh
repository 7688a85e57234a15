#!/usr/bin/env bash
# Writes each whole program of a guide, such as the README (a ```cpp block with a main) to DIRECTORY/NN.cpp and
# prints the files' names.
#   tests/readme.sh GUIDE DIRECTORY
set -euo pipefail
directory=$2
mkdir -p "$directory"
rm -f "$directory"/*.cpp
awk -v directory="$directory" '
    /^```cpp$/ { inside = 1; text = ""; next }
    /^```$/ && inside {
        inside = 0
        if (text ~ /int main\(/) {
            file = sprintf("%s/%02d.cpp", directory, ++count)
            printf "%s", text > file
            close(file)
            print file
        }
        next
    }
    inside { text = text $0 "\n" }
' "$1"
