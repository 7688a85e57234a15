#!/usr/bin/env bash
# What packages make of the header: installs it by Meson and by CMake, and builds programs with what was
# installed; runs the steps of the Dockerfile; and reads the recipes. A line for each check, in the
# Test Anything Protocol. Not run: vcpkg, Conan and docker themselves, which Debian does not have all.
#   tests/packaging.sh DIRECTORY
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
for program in cmake pkg-config git file python3 make; do
    command -v $program >/dev/null || { echo "1..0 # SKIP no $program"; exit; }
done
checkout=$PWD
packaging=$checkout/examples/packaging
project=$packaging/project
work=$1
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)
version=$(sed -n 's/^#define SSE_VERSION_STRING "\(.*\)"/\1/p' sse.hpp)
compiler=${CXX:-g++}
[ -z "${ASIO_DIR:-}" ] || export CXXFLAGS="-isystem$ASIO_DIR"

number=0
expect() { # SENTENCE COMMAND...
    local status
    number=$((number + 1))
    set +e # which bash ignores where a failure is asked for
    (set -e; "${@:2}") >"$work/said" 2>&1
    status=$?
    set -e
    case $status in
    0) printf 'ok %d - %s\n' $number "$1" ;;
    77) printf 'ok %d - %s # SKIP %s\n' $number "$1" "$(tail -n 1 "$work/said")" ;;
    *)
        printf 'not ok %d - %s\n' $number "$1"
        cat "$work/said" >&2
        ;;
    esac
}
skip() { echo "$1"; exit 77; }
has_header() { echo "#include <$1>" | "$compiler" -fsyntax-only -x c++ - 2>/dev/null; }

# What there are libraries for, by the names of the components.
features=()
! has_header openssl/provider.h || features+=(tls)
! has_header hiredis/hiredis.h || features+=(redis)
! has_header nats/nats.h || features+=(nats)
! has_header liburing.h || features+=(io_uring)
! has_header zlib.h || features+=(zlib)
joined=$(IFS=';'; echo "${features[*]}")

says_how_it_was_built() { # PROGRAM FEATURE...
    local said feature
    said=$(timeout 60 "$1")
    echo "$said"
    [[ $said == "received by sse $version"* ]]
    for feature in "${@:2}"; do [[ $said == *", $feature"* ]]; done
    [ $# -gt 1 ] || [ "$said" = "received by sse $version" ]
}

# ---- installed by Meson --------------------------------------------------------------------------

# As a package is made: below a DESTDIR, then moved to where it is used.
installs() {
    cd "$checkout"
    meson setup "$work/meson" --prefix=/usr -Doptimization=0 >"$work/setup" || { cat "$work/setup"; return 1; }
    DESTDIR=$work/image meson install -C "$work/meson" --no-rebuild
    (cd "$work/image" && find . -type f | sort) >"$work/files"
    cat "$work/files"
    diff "$work/files" - <<END
./usr/include/sse.hpp
./usr/share/cmake/sse/sse-config-version.cmake
./usr/share/cmake/sse/sse-config.cmake
./usr/share/cmake/sse/sse-targets.cmake
./usr/share/pkgconfig/sse-io_uring.pc
./usr/share/pkgconfig/sse-nats.pc
./usr/share/pkgconfig/sse-redis.pc
./usr/share/pkgconfig/sse-tls.pc
./usr/share/pkgconfig/sse-zlib.pc
./usr/share/pkgconfig/sse.pc
END
    cmp sse.hpp "$work/image/usr/include/sse.hpp"
    mv "$work/image/usr" "$work/moved"
}
expect "meson install without a build installs the header, for pkg-config and CMake" installs

# The hub's executable stands in for itself: what is asked is whether what was built is installed.
installs_the_hub() {
    local tags
    ninja -C "$work/meson" -t query examples/packaging/sse-hub | grep 'examples/hub$'
    printf '#!/bin/sh\necho hub\n' >"$work/meson/examples/packaging/sse-hub"
    for tags in devel runtime; do
        DESTDIR=$work/$tags meson install -C "$work/meson" --no-rebuild --tags $tags
    done
    [ ! -e "$work/devel/usr/bin" ]
    [ -e "$work/devel/usr/include/sse.hpp" ]
    [ -e "$work/devel/usr/share/pkgconfig/sse.pc" ]
    [ "$(cd "$work/runtime" && find . -type f)" = ./usr/bin/sse-hub ]
}
expect "the hub is installed if it was built, and each alone by its tag" installs_the_hub

# ---- pkg-config ----------------------------------------------------------------------------------

pkg() { PKG_CONFIG_PATH=$work/moved/share/pkgconfig pkg-config --define-prefix "$@"; }
by_pkg_config() {
    local feature packages=(sse)
    for feature in "${features[@]}"; do packages+=("sse-$feature"); done
    cp -r "$project" "$work/by pkg-config"
    cd "$work/by pkg-config"
    [ "$(pkg --modversion sse)" = "$version" ]
    [[ $(pkg --cflags sse) == *"-I$work/moved/include"* ]]
    for feature in "${features[@]}"; do [[ $(pkg --cflags "sse-$feature") == *-DSSE_ENABLE_${feature^^}* ]]; done
    mkdir bin # --define-prefix is for folders that were moved
    printf '#!/bin/sh\nexec %s --define-prefix "$@"\n' "$(type -P pkg-config)" >bin/pkg-config
    chmod +x bin/pkg-config
    PATH=$PWD/bin:$PATH PKG_CONFIG_PATH=$work/moved/share/pkgconfig \
        make CXX="$compiler" CXXFLAGS="-std=c++20 ${CXXFLAGS:-}" PACKAGES="${packages[*]}"
    says_how_it_was_built ./app "${features[@]}"
}
expect "a program is built by pkg-config, with all features" by_pkg_config

# ---- CMake ---------------------------------------------------------------------------------------

configure() { # SOURCE OPTION...: in ./out
    CXX=$compiler cmake -S "$1" -B out ${ASIO_DIR:+-DSSE_ASIO_INCLUDE_DIR="$ASIO_DIR"} "${@:2}"
}
by_find_package() {
    mkdir "$work/find_package"
    cd "$work/find_package"
    configure "$project" -DCMAKE_PREFIX_PATH="$work/moved" -DCOMPONENTS="$joined"
    cmake --build out
    says_how_it_was_built out/app "${features[@]}"
}
expect "find_package finds what Meson installed, with all features" by_find_package
without_pkg_config() { # it compiles, and is linked with the same
    local made=out/CMakeFiles/app.dir
    mkdir "$work/without"
    cd "$work/without"
    configure "$project" -DCMAKE_PREFIX_PATH="$work/moved" -DCOMPONENTS="$joined" \
        -DPKG_CONFIG_EXECUTABLE=/nonexistent
    make -C out app.cpp.o CXX_FLAGS="$(sed -n 's/^CXX_FLAGS = //p' $made/flags.make) -fsyntax-only"
    diff "$work/find_package/$made/link.txt" $made/link.txt
}
expect "without pkg-config too" without_pkg_config

installs_by_cmake() {
    cd "$work"
    CXX=$compiler cmake -S "$packaging/cmake" -B cmake --install-prefix "$work/by cmake" \
        ${ASIO_DIR:+-DSSE_ASIO_INCLUDE_DIR="$ASIO_DIR"}
    cmake --install cmake
    diff -r -x pkgconfig "$work/moved" "$work/by cmake"
}
expect "CMake installs the same, as vcpkg has it do" installs_by_cmake

refuses() { # TEXT LINE...: of a CMakeLists.txt
    local said
    rm -rf "$work/refuses"
    mkdir "$work/refuses"
    cd "$work/refuses"
    printf '%s\n' 'cmake_minimum_required(VERSION 3.18)' 'project(refused CXX)' "${@:2}" >CMakeLists.txt
    if said=$(configure . -DCMAKE_PREFIX_PATH="$work/moved" 2>&1); then
        echo "it was configured"
        return 1
    fi
    echo "$said"
    [[ $said == *"$1"* ]]
}
expect "a component that is unknown is named" refuses "there is no component 'h3'" \
    'find_package(sse REQUIRED COMPONENTS h3)'
expect "what is missing for a component is said" refuses 'install libnats-dev' \
    'set(PKG_CONFIG_EXECUTABLE /nonexistent)' 'set(CMAKE_FIND_LIBRARY_PREFIXES none)' \
    'find_package(sse REQUIRED COMPONENTS nats)'
expect "another minor version is not taken" refuses 'version: ' 'find_package(sse 0.1 REQUIRED)'
expect "nor a newer one" refuses 'version: ' 'find_package(sse 0.2.999 REQUIRED)'
expect "nor one beyond a range" refuses 'version: ' 'find_package(sse 0.1...<0.2 REQUIRED)'

takes_versions() {
    mkdir "$work/versions"
    cd "$work/versions"
    printf '%s\n' 'cmake_minimum_required(VERSION 3.19)' 'project(versions CXX)' \
        'find_package(sse 0.1...0.3 REQUIRED)' 'set(sse_DIR sse_DIR-NOTFOUND CACHE PATH "" FORCE)' \
        "find_package(sse $version EXACT REQUIRED)" 'set(sse_DIR sse_DIR-NOTFOUND CACHE PATH "" FORCE)' \
        'find_package(sse COMPONENTS h3)' 'if(sse_h3_FOUND OR sse_FOUND)' 'message(FATAL_ERROR h3)' \
        'endif()' 'find_package(sse OPTIONAL_COMPONENTS h3)' 'if(NOT sse_FOUND)' \
        'message(FATAL_ERROR none)' 'endif()' >CMakeLists.txt
    configure . -DCMAKE_PREFIX_PATH="$work/moved"
}
expect "a range, the exact version and optional components are taken" takes_versions

# The README's lines as they stand, with a repository of what is checked out here.
by_fetch_content() {
    local upstream=$work/upstream
    mkdir "$upstream" "$work/fetch_content"
    cp -r sse.hpp examples LICENSE "$upstream"
    git -C "$upstream" init -q -b main
    git -C "$upstream" add .
    git -C "$upstream" -c user.name=n -c user.email=e@example.com -c commit.gpgsign=false commit -q -m m
    cd "$work/fetch_content"
    cp "$project/app.cpp" .
    printf '%s\n' 'cmake_minimum_required(VERSION 3.18)' 'project(app CXX)' >CMakeLists.txt
    awk '/^```cmake$/ { inside = 1; next } /^```$/ { inside = 0 } inside' "$checkout/README.md" >>CMakeLists.txt
    grep -q SOURCE_SUBDIR CMakeLists.txt
    configure . -DSSE_REPOSITORY="$upstream"
    cmake --build out
    says_how_it_was_built out/app
    cmake --install out --prefix "$work/nothing"
    [ ! -e "$work/nothing" ] # what is installed is the parent's business
}
expect "FetchContent as the README has it" by_fetch_content

# ---- the image -----------------------------------------------------------------------------------

# read_dockerfile INSTRUCTION: the last one's words in brackets, one a line.
read_dockerfile() {
    python3 - "$packaging/docker/Dockerfile" "$1" <<'END'
import json, re, sys
text = re.sub(r"\\\n", " ", open(sys.argv[1]).read())
lines = [line for line in text.splitlines() if line.startswith(sys.argv[2] + " ")]
print("\n".join(json.loads(re.search(r"\[.*\]", lines[-1])[0])))
END
}
builds_the_image() {
    local program
    command -v busybox >/dev/null || skip 'no busybox-static'
    has_header openssl/provider.h || skip 'no libssl-dev'
    has_header hiredis/hiredis.h || skip 'no libhiredis-dev'
    CXX=$compiler CXXFLAGS="-O0 ${CXXFLAGS:-}" "$packaging/docker/build.sh" "$work/root" # half of the time
    for program in hub busybox; do
        file "$work/root/$program"
        file "$work/root/$program" | grep 'statically linked' || skip "$program is not static"
        if ldd "$work/root/$program"; then return 1; fi
    done
    [ "$("$work/root/hub" --version)" = "hub $version" ]
}
expect "the image's programs are static" builds_the_image

# In a root of their own, as the Dockerfile's user, with the Dockerfile's commands.
runs_the_image() {
    [ -x "$work/root/hub" ] || skip 'there is no image'
    [ "$(id -u)" -eq 0 ] || skip 'it takes root to change the root'
    unshare --net true || skip 'no network namespaces'
    command -v ip >/dev/null || skip 'no iproute2'
    local user
    user=$(sed -n 's/^USER //p' "$packaging/docker/Dockerfile")
    [ "${user%:*}" -gt 0 ]
    read_dockerfile ENTRYPOINT >"$work/entrypoint"
    read_dockerfile HEALTHCHECK >"$work/healthcheck"
    chmod -R go+rX "$work/root"
    cat >"$work/container" <<'END'
set -eu
work=$1 user=$2
ip link set lo up
within() { chroot --userspec="$user" "$work/root" "$@"; }
mapfile -t entrypoint <"$work/entrypoint"
mapfile -t healthcheck <"$work/healthcheck"
if within "${healthcheck[@]}" 2>/dev/null; then echo "healthy before it runs"; exit 1; fi
exec 3< <(exec chroot --userspec="$user" "$work/root" "${entrypoint[@]}" --host events.example)
hub=$!
read -r line <&3
echo "$line"
[ "$(stat -c %u "/proc/$hub")" = "${user%:*}" ]
within "${healthcheck[@]}"
kill "$hub"
cat <&3
wait "$hub"
if within "${healthcheck[@]}" 2>/dev/null; then echo "healthy after it ended"; exit 1; fi
END
    timeout 60 unshare --net bash "$work/container" "$work" "$user"
}
expect "as the image's user the hub starts, is healthy, and ends by SIGTERM" runs_the_image

# ---- recipes and version -------------------------------------------------------------------------

reads_the_recipes() {
    python3 - "$packaging" "$version" "$work" <<'END'
import ast, json, os, re, sys, types
packaging, version, work = sys.argv[1:]
port = json.load(open(f"{packaging}/vcpkg/sse/vcpkg.json"))
assert port["name"] == "sse" and port["version"] == version, port
assert set(port["features"]) == {"tls", "redis", "nats", "io-uring", "zlib"}

# The recipe's own methods, with the few functions of Conan that they use in its place.
class ConanFile: pass
def module(name, **members):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(members)
copied = []
def copy(recipe, pattern, src, dst):
    assert os.path.exists(os.path.join(src, pattern)), (pattern, src)
    copied.append((pattern, dst))
module("conan", ConanFile=ConanFile)
module("conan.tools")
module("conan.tools.build", check_min_cppstd=lambda recipe, standard: None)
module("conan.tools.files", copy=copy, load=lambda recipe, path: open(path).read())
module("conan.tools.layout", basic_layout=lambda recipe: None)
names = {}
exec(compile(open(f"{packaging}/conan/conanfile.py").read(), "conanfile.py", "exec"), names)
recipe = names["SseConan"]()
recipe.recipe_folder = f"{packaging}/conan"
recipe.set_version()
assert recipe.version == version, recipe.version
recipe.export_sources_folder = "exported"
recipe.export_sources()
recipe.source_folder, recipe.package_folder = recipe._checkout(), "package"
recipe.package()
assert ("sse.hpp", "exported") in copied and ("sse.hpp", "package/include") in copied, copied
class options(dict):
    get_safe = dict.get
recipe.options = options({name: True for name in recipe.options})
required = []
recipe.requires = lambda reference, **traits: required.append(reference.split("/")[0])
recipe.requirements()
assert required == ["asio", "openssl", "hiredis", "cnats", "liburing", "zlib"], required
class component:
    def __init__(self): self.said = {}
    def set_property(self, name, value): self.said[name] = value
class cpp_info(component):
    components = type("d", (dict,), {"__missing__": lambda self, k: self.setdefault(k, component())})()
recipe.cpp_info = cpp_info()
recipe.settings = types.SimpleNamespace(os="Linux")
recipe.package_info()
targets = {c.said["cmake_target_name"] for c in recipe.cpp_info.components.values()}
assert targets == {"sse::" + n for n in ("sse", "tls", "redis", "nats", "io_uring", "zlib")}, targets
END
}
expect "the port of vcpkg and Conan's recipe name the header's version and the targets" reads_the_recipes

# In a repository of its own, which knows the order of its commits.
numbers_commits() {
    local there=$work/numbered one two three
    mkdir "$there"
    cp -r sse.hpp examples "$there"
    cd "$there"
    say() { examples/packaging/version.sh; }
    commit() { # TIME
        git add .
        GIT_COMMITTER_DATE="$1 +0900" git -c user.name=n -c user.email=e@example.com \
            -c commit.gpgsign=false commit -q --allow-empty --date "$1 +0900" -m m
    }
    sorts() { dpkg --compare-versions "$1" lt "$2"; }
    GIT_CEILING_DIRECTORIES=$work
    export GIT_CEILING_DIRECTORIES
    [ "$(say)" = "$version" ] # without git
    git init -q -b main
    commit 2026-01-01T00:00:00
    one=$(say)
    [[ $one =~ ^"$version"~git20251231150000\.[0-9a-f]{12}$ ]] # in UTC
    [ "$one" = "$(TZ=Asia/Tokyo LANG=de_DE examples/packaging/version.sh)" ]
    git clone -q . ../cloned
    [ "$one" = "$(../cloned/examples/packaging/version.sh)" ]
    echo >>sse.hpp
    [ "$(say)" = "$one+dirty" ]
    commit 2026-01-02T00:00:00
    two=$(say)
    git tag "v$version"
    [ "$(say)" = "$version" ]
    commit 2026-01-03T00:00:00
    three=$(say)
    [[ $three =~ ^"$version"\+git20260102150000\.[0-9a-f]{12}$ ]]
    command -v dpkg || skip 'no dpkg'
    sorts "$one" "$two"
    sorts "$two" "$version"
    sorts "$version" "$three"
    sorts "$three" "$version.1"
}
expect "each commit has a version of its own, the same everywhere, and they sort" numbers_commits

rm -rf "$work"
echo "1..$number"
