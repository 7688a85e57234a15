#!/usr/bin/env bash
# Whether there is one version: in the header, for Meson and vcpkg, and among the README's changes.
# CMake and Conan read that of the header.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
version=$(sed -n 's/^#define SSE_VERSION_STRING "\(.*\)"/\1/p' sse.hpp)
number=$(awk -F. '{ print $1 * 10000 + $2 * 100 + $3 }' <<<"$version")
head -n 1 sse.hpp | grep "Version $version\$"
grep "^#define SSE_VERSION $number " sse.hpp
grep "^project('sse'.* version: '$version'" meson.build
grep "^- $version:" README.md
grep "^    \"version\": \"$version\",\$" examples/packaging/vcpkg/sse/vcpkg.json
