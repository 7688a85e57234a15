#!/usr/bin/env bash
# Plants faults in the parsers of sse.hpp and in its CORS decision, one at a time, and looks whether
# a test notices: another comparison, a statement left out, a number off by one. One build has all
# of them (see mutants.hpp); the environment's MUTANT chooses. What no test notices is shown, unless
# mutants.txt says why none can. A fault that goes on for ever counts as noticed.
#   tests/mutants.sh DIRECTORY          all
#   tests/mutants.sh DIRECTORY NUMBER   that one of DIRECTORY/list: what the tests say of it
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

build() {
    "${CXX:-g++}" -std=c++20 -O1 -w -I. -I"$tests" all.cpp -o all -pthread
}

# The processor time is bounded, to three times what all tests take, and not the time on the clock: a
# busy machine must not look like a fault.
run() { # MUTANT OPTION...
    (ulimit -t 8 -v 4000000 && MUTANT=$1 ./all --abort-after=1 "${@:2}")
}

# One that is not noticed says its number: by the tests of its section first, then by all.
try() { # MUTANT reached|unreached FILE
    local own="*$3.cpp"
    [ "$3" != head ] || own+=",*body.cpp"
    if [ "$2" = unreached ] || { run "$1" --source-file="$own" && run "$1"; } >/dev/null 2>&1; then
        echo "$1"
    fi
}

case ${2-} in
'') ;;
try) try "${@:3}"; exit ;;
*) run "$2"; exit ;;
esac

{
    echo '#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN'
    for file in message parser head body origin peer; do echo "#include \"$tests/$file.cpp\""; done
} >all.cpp
perl "$tests/mutants.pl" "$tests/../sse.hpp" sse.hpp list
build
MUTANTS_REACHED=reached ./all >/dev/null || { ./all | tail -n 20; exit 1; }

# Constants that the compiler computes cannot be chosen at run time: they are left out.
awk -F"\t" 'NR == FNR { split($0, n, " "); state[n[1]] = n[2] ? n[2] : "unreached"; next }
    !($1 in state) || (state[$1] == "unreached" && $3 ~ /constexpr|std::array<|digits\[/) { next }
    { print $1, state[$1], $4 }' reached list >todo
xargs -P "$(nproc)" -L 1 "$tests/mutants.sh" . try <todo | sort -n >survivors
grep -v '^#' "$tests/mutants.txt" | sed '/^$/d' | sort >known
awk -F'\t' 'NR == FNR { alive[$1] = 1; next } alive[$1] { print $3 }' survivors list | sort >alive
comm -13 known alive >unknown
comm -23 known alive >noticed
while IFS= read -r fault; do
    awk -F'\t' -v fault="$fault" '$3 == fault { print "sse.hpp:" $2 ": mutant " $1 " survived: " $3 }' \
        FS='\t' list
done < <(sort -u unknown)
sed 's/^/not a survivor, or not there any more; take it out of mutants.txt: /' noticed
printf '%d mutants, %d survived, %d of them known\n' "$(wc -l <todo)" "$(wc -l <alive)" \
    "$(comm -12 known alive | wc -l)"
[ ! -s unknown ] && [ ! -s noticed ]
