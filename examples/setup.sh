# Sourced by the scripts that build: installs what is missing (Debian, Ubuntu), configures.
# The folders build and build-* belong to them: one that is not as they would set it up now is set
# up anew. For your own use of meson take another name.

say() { printf '== %s\n' "$*"; }

have() { command -v "$1" >/dev/null 2>&1; }

# need PACKAGE CHECK...: notes the package unless the check succeeds.
missing=()
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

# The services that systemd starts at each boot.
services() { { find /etc/systemd/system -path '*.wants/*.service' -printf '%f\n' || true; } 2>/dev/null | sort -u; }

# Installs what need noted. Fails where it could not; what can be installed is installed even then.
# Debian starts a service when its package is installed, and at each boot. Neither is meant here.
install_missing() {
    [ ${#missing[@]} -eq 0 ] && return
    local before status=0 root=()
    before=$(services) # systemctl may come with what is installed
    install_packages || status=1
    ! have systemctl || comm -13 <(printf '%s\n' "$before") <(services) |
        xargs -r "${root[@]}" systemctl --quiet disable >/dev/null 2>&1 || true
    return $status
}

install_packages() {
    local packages package bad=0
    mapfile -t packages < <(printf '%s\n' "${missing[@]}" | sort -u)
    missing=()
    if ! have apt-get || { [ "$(id -u)" -ne 0 ] && ! have sudo; }; then
        say "missing: ${packages[*]}" >&2
        say "ask an administrator for: apt-get install ${packages[*]}" >&2
        return 1
    fi
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    say "installing ${packages[*]}"
    local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 apt-get)
    "${apt[@]}" update -qq || bad=1
    local install=(install -y -qq --no-install-recommends)
    "${apt[@]}" "${install[@]}" "${packages[@]}" >/dev/null && return
    for package in "${packages[@]}"; do # one that is unknown here does not keep the others out
        "${apt[@]}" "${install[@]}" "$package" >/dev/null 2>&1 || { bad=1; say "no $package" >&2; }
    done
    return $bad
}

need_to_build() {
    need g++ have g++
    need libc6-dev test -e /usr/include/stdio.h
    need meson have meson
    need ninja-build have ninja
    [ -n "${ASIO_DIR:-}" ] || need libasio-dev test -e /usr/include/asio.hpp
    need doctest-dev test -e /usr/include/doctest/doctest.h
}

# What a build folder was set up from. meson remembers for good that a header is missing, so the
# headers that the meson.build files look for are part of it.
settings() { # OPTION...
    local compiler=${CXX:-c++} header
    printf '%s\n' "$PWD" "meson $(meson --version)" "$compiler $($compiler --version | head -n 1)" \
        "${CPPFLAGS:-} ${CXXFLAGS:-} ${LDFLAGS:-}" "$@"
    for header in $(sed -n "s/.*\(has_headers\?\|check_header\)[(: ]*'\([^']*\)'.*/\2/p" \
        meson.build ./*/meson.build | sort -u); do
        printf '#if __has_include(<%s>)\n"has %s"\n#endif\n' "$header" "$header"
    done | $compiler -E -P -x c++ - | sort -u
}

# configure DIRECTORY OPTION...: once for the same settings. Anything else that is there (set up by
# other settings, for another place of the checkout, or half, since it was interrupted) goes.
# ASIO_DIR names the folder with another asio.hpp.
configure() {
    local directory=$1 options=() option arguments= wanted
    for option in "${@:2}"; do
        case $option in
        -Dcpp_args=*) arguments=${option#*=} ;;
        *) options+=("$option") ;;
        esac
    done
    [ -z "${ASIO_DIR:-}" ] || arguments="-isystem'$ASIO_DIR' $arguments"
    [ -z "$arguments" ] || options+=("-Dcpp_args=$arguments")
    wanted=$(settings "${options[@]}")
    [ -f "$directory/settings" ] && [ "$(cat "$directory/settings")" = "$wanted" ] && return
    say "configuring $directory"
    rm -rf "$directory"
    local said
    said=$(meson setup "$directory" "${options[@]}" 2>&1) || { printf '%s\n' "$said"; exit 1; }
    printf '%s\n' "$wanted" >"$directory/settings"
}

# Sources of a program are compiled some at a time, since each time costs the whole header again: so many
# that each processor has its share, and that there is a quarter of a gigabyte for each source.
some_at_a_time() {
    local quarters
    quarters=$(awk '/^MemTotal:/ { print int($2 / 262144) }' /proc/meminfo 2>/dev/null) || quarters=0
    local most=$(((quarters < 34 ? quarters : 34) / $(nproc 2>/dev/null || echo 4)))
    echo $((most > 7 ? most : 7))
}
unity=(--unity=on "-Dunity_size=$(some_at_a_time)")

# What the examples, the benchmarks and the tests of the optimized build share.
configure_release() { configure build "${unity[@]}" --buildtype=release; }
