#!/usr/bin/env bash
# Tries the scripts where little is installed: stale and half build folders, missing headers,
# programs and packages. A line for each check, in the Test Anything Protocol.
#   tests/scripts.sh DIRECTORY          run by tests/run.sh scripts, in a copy of the checkout there
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
work=$1
rm -rf "$work"
copy="$work/a checkout in a path with spaces"
fakes=$work/fakes
mkdir -p "$copy" "$fakes/include" "$fakes/bin"
cp -r sse.hpp meson.build examples bench tests README.md "$copy"
cd "$copy"
. examples/setup.sh

number=0
expect() { # SENTENCE COMMAND...
    local said
    number=$((number + 1))
    if said=$("${@:2}" 2>&1); then
        printf 'ok %d - %s\n' $number "$1"
    else
        printf 'not ok %d - %s\n' $number "$1"
        printf '%s\n' "$said" >&2
    fi
}

has_target() { [[ $'\n'$(ninja -C "$1" -t targets all) == *$'\n'"$2:"* ]]; }
lacks_target() { ! has_target "$@"; }
said_configuring() { [[ $(configure "$@") == *configuring* ]]; }
said_nothing() { [[ -z $(configure "$@") ]]; }

# A compiler that sees the headers of the system but for those that a bare Debian lacks.
ln -s /usr/include/* "$fakes/include/"
rm -f "$fakes/include/boost" "$fakes/include/liburing" "$fakes/include/liburing.h" "$fakes/include/hiredis" "$fakes/include/openssl"
{
    printf '#!/bin/sh\nexec g++ -nostdinc'
    g++ -E -x c++ -v - </dev/null 2>&1 | sed -n 's/^ \(\/.*\)/\1/p' |
        sed "s|^/usr/include\$|$fakes/include|; s|.*| -isystem '&'|" | tr -d '\n'
    printf ' "$@"\n'
} >"$fakes/bin/bare-g++"
chmod +x "$fakes/bin/bare-g++"
export CXX=$fakes/bin/bare-g++

quick=("${unity[@]}" -Doptimization=0 -Ddebug=false)
release=("${unity[@]}" --buildtype=release)

# As an older examples/run.sh left it: without these headers, and without the unity that it has now.
meson setup build --buildtype=release >/dev/null
expect "the compiler without Boost and liburing is one" lacks_target build tests/tests_io_uring
if [ -e /usr/include/liburing.h ] && [ -e /usr/include/boost/beast.hpp ]; then
    export CXX=g++
    configure_release >/dev/null
    expect "a build folder of long ago gets the targets of what was installed since" \
        has_target build tests/tests_io_uring
    export CXX=$fakes/bin/bare-g++
    configure build "${release[@]}" >/dev/null
    for name in liburing.h boost; do ln -s /usr/include/$name "$fakes/include/"; done
    configure_release >/dev/null
    expect "what was installed after the folder was made is noticed" \
        has_target build tests/tests_io_uring
    expect "Boost too" has_target build examples/beast
fi
expect "a folder that fits is left alone" said_nothing build "${release[@]}"
expect "other settings are noticed" said_configuring build "${release[@]}" -Db_lto=true
rm build/build.ninja build/settings # interrupted
expect "an interrupted configuration is done anew" said_configuring build "${quick[@]}"
expect "and has its targets" has_target build tests/tests
mv "$copy" "$work/moved"
cd "$work/moved"
expect "a checkout that was moved is noticed" said_configuring build "${quick[@]}"
export ASIO_DIR="$work/an Asio"
mkdir "$ASIO_DIR"
ln -s /usr/include/asio* "$ASIO_DIR"
expect "another Asio goes along with the arguments of a variant" \
    said_configuring build "${quick[@]}" -Dcpp_args='-g1 -DVARIANT'
expect "both are there" sh -c 'grep -q "an.* Asio" build/build.ninja &&
    grep -q DVARIANT build/build.ninja'
unset ASIO_DIR CXX

# Only these programs, so that nothing can be installed.
for name in bash sh env awk basename cat cp cut date dirname grep head id mkdir mktemp mv nproc paste \
    printf rm sed seq sort tail tee test tr true uname xargs; do
    program=$(type -P $name) && ln -s "$program" "$fakes/bin/"
done
bare_run() { # STATUS LINE VARIANT...: how tests/run.sh ends
    local said status=0
    said=$(cd / && timeout 60 env PATH="$fakes/bin" HOME=/nowhere bash "$OLDPWD/tests/run.sh" "${@:3}" 2>&1) ||
        status=$?
    [ "$status" = "$1" ] && [ "$(tail -n 1 <<<"$said")" = "$2" ] && return
    printf 'status %s\n%s\n' "$status" "$said"
    return 1
}
expect "without a compiler the run says so and ends with its line" \
    bare_run 1 "0 passed, 0 failed, 1 not run"
expect "so do variants that want Node" bare_run 1 "0 passed, 0 failed, 2 not run" interop browser
for name in g++ c++ gcc meson ninja curl python3; do ln -s "$(type -P $name)" "$fakes/bin/"; done
# The name may be a link to the machine's own program, which must not be written through.
fake() {
    rm -f "$fakes/bin/$1"
    printf '#!/bin/sh\n%s\n' "$2" >"$fakes/bin/$1"
    chmod +x "$fakes/bin/$1"
}
export CHROMIUM=/bin/sh # it must not come to that
fake node 'echo v18.20.4'
fake npm 'echo the network is missing; exit 1'
fake apt-get 'exit 100'
if [ -e /usr/include/boost/beast.hpp ]; then
    expect "without a network npm's tests are not run" \
        bare_run 1 "0 passed, 0 failed, 2 not run" interop browser
fi
fake node 'echo v16.0.0'
expect "nor with a Node that no package is for" bare_run 1 "0 passed, 0 failed, 1 not run" browser
fake meson 'exit 1'
expect "a build that fails is a failure, with the line" \
    bare_run 1 "0 passed, 1 failed, 0 not run" quick
expect "an unknown variant is an error" \
    sh -c 'tests/run.sh bogus >/dev/null 2>&1; [ $? -eq 2 ]'
rm -rf "$work"
echo "1..$number"
