#!/usr/bin/env bash
# g++ -O2 compiles what an Asio service's shutdown() calls in every program that has an io_context, even
# where the service is made nowhere, and throws the result away: the object shows nothing, only the time.
#
# Library    standalone Asio 1.22.1 (`libasio-dev` 1:1.22.1-1) and g++ 12.2 (`g++-12` 12.2.0-14+deb12u1),
#            both of Debian 12. Needs apt-get, g++ 12.
# Guess      An inline function of a header that nobody calls costs its parsing, and with optimization
#            nothing more; so do the classes that only it uses.
# Behaviour  io_context's destructor calls service::shutdown() by its virtual table. -fdevirtualize (on
#            from -O2) takes each override that the file defines for a target of that call and builds all
#            that it leads to. It is the same for what std::make_shared is used with in such functions
#            (by the destructor of any std::shared_ptr) and for lambdas given to a cancellation_slot.
#            What is reached by a function pointer instead is built where its address is taken.
# Seen       whether the compiler builds what shutdown() calls, and whether the object has it:
#            -O2: built, not in the object
#            -O2 -fno-devirtualize: not built, not in the object
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libasio-dev=1:1.22.1-1 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
case $(g++ -dumpversion) in
12 | 12.*) ;;
*) echo "this is about g++ 12, not $(g++ -dumpversion)"; exit 1 ;;
esac

cat >try.cpp <<'CPP'
#include <asio.hpp>
#include <map>
#include <string>

inline void much_work(std::map<int, std::string>& all) { all[1] += "x"; }

struct unused_service : asio::execution_context::service {
    using key_type = unused_service;
    static inline asio::execution_context::id id;
    explicit unused_service(asio::execution_context& context) : service(context) {}
    void shutdown() override { much_work(all); }
    std::map<int, std::string> all;
};
inline void never_called(asio::io_context& io) { asio::use_service<unused_service>(io); }

int main() {
    asio::io_context io;
    io.run();
}
CPP
seen=
for flags in -O2 "-O2 -fno-devirtualize"; do
    # shellcheck disable=SC2086
    g++ -std=c++17 $flags -I usr/include -fdump-tree-cfg=built -c try.cpp -o try.o
    built="not built" held="not in the object"
    grep -q '^;; Function much_work' built && built=built
    nm -C try.o | grep -q much_work && held="in the object"
    seen+="$flags: $built, $held"$'\n'
done
printf '%s' "$seen"
[ "$seen" = $'-O2: built, not in the object\n-O2 -fno-devirtualize: not built, not in the object\n' ] ||
    { echo "the behaviour has changed" >&2; exit 1; }
