# Sourced by examples/run.sh and tests/run.sh: installs what is missing (Debian, Ubuntu), configures.

say() { printf '== %s\n' "$*"; }

have() { command -v "$1" >/dev/null 2>&1; }

# need PACKAGE CHECK...: notes the package unless the check succeeds.
missing=()
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

install_missing() {
    [ ${#missing[@]} -eq 0 ] && return
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! have sudo; then
            say "missing: ${missing[*]}" >&2
            say "ask an administrator for: apt-get install ${missing[*]}" >&2
            exit 1
        fi
        root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
    missing=()
}

need_to_build() {
    need g++ have g++
    need libc6-dev test -e /usr/include/stdio.h
    need meson have meson
    need ninja-build have ninja
    need libasio-dev test -e /usr/include/asio.hpp
    need doctest-dev test -e /usr/include/doctest/doctest.h
}

# configure DIRECTORY OPTION...: once; an Asio elsewhere is named by ASIO_DIR (the one with asio.hpp).
configure() {
    local directory=$1
    shift
    [ -f "$directory/build.ninja" ] && return
    local asio=()
    [ -n "${ASIO_DIR:-}" ] && asio=("-Dcpp_args=-isystem$ASIO_DIR")
    say "configuring $directory"
    meson setup "$directory" "${asio[@]}" "$@" >/dev/null ||
        { meson setup "$directory" "${asio[@]}" "$@"; exit 1; }
}
