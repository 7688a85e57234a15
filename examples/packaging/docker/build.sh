#!/usr/bin/env bash
# Fills a folder with what the image holds: the hub and busybox, which checks its health, both static.
# The same sources and compiler give the same bytes, wherever the folders are.
#   examples/packaging/docker/build.sh FOLDER      CXXFLAGS has further flags
set -euo pipefail
mkdir -p "$1"
image=$(cd "$1" && pwd)
CDPATH='' cd -- "$(dirname -- "$0")/../../.."
cp "$(command -v busybox)" "$image/busybox"
# glibc warns of the resolver, which loads its parts at run time. Those of files and DNS are in it.
${CXX:-g++} -std=c++20 -O2 -DNDEBUG -static -s -ffile-prefix-map="$PWD"=. ${ASIO_DIR:+"-isystem$ASIO_DIR"} \
    ${CXXFLAGS:-} -DSSE_ENABLE_TLS -DSSE_ENABLE_REDIS -I. examples/hub.cpp -o "$image/hub" \
    -lssl -lcrypto -lhiredis -pthread
