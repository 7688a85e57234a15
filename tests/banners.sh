#!/usr/bin/env bash
# Whether the banners of the header's sections are true: each is in the table of contents, in order;
# it needs only what is above it; and its tests are the files that say they cover it.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."

wrong=0
complain() {
    printf '%s\n' "$1"
    wrong=1
}

# One line for each: name, tab, the text of its banner.
banners=$(awk '
    /^\/\/ >>[a-z]+ \/+$/ { name = substr($2, 3); text = ""; next }
    name != "" && /^\/\/ / { text = text " " substr($0, 4); next }
    name != "" { print name "\t" text; name = "" }' sse.hpp)

listed=$(sed -n 's/^\/\/     >>\([a-z]*\)  *[^ ].*/\1/p' sse.hpp)
found=$(cut -f 1 <<<"$banners")
[ "$listed" = "$found" ] || complain "the table of contents and the banners differ:
$(diff <(echo "$listed") <(echo "$found"))"

# Which sections the test files cover: they say so in their first lines, up to the colon after the
# last section. A line for each: section, tab, file.
covers=$(for file in tests/*.cpp; do
    awk '!/^\/\//{ exit } { printf "%s ", substr($0, 4) }' "$file" |
        { grep -oE '^[a-z_]+\.cpp - covers (>>[a-z]+(, )?)+:' || true; } |
        { grep -oE '>>[a-z]+' || true; } | sed "s|>>\(.*\)|\1\t$file|"
done)
covered() { # SECTION
    awk -F'\t' -v section="$1" '$1 == section { print $2 }' <<<"$covers"
}

above=
while IFS=$'\t' read -r name text; do
    needs=$(grep -oE 'Needs (>>[a-z]+(, )?)+' <<<"$text" || true)
    for needed in $(grep -oE '>>[a-z]+' <<<"$needs" || true); do
        grep -qw -- "${needed#>>}" <<<"$above" || complain ">>$name needs $needed, which is not above it"
    done
    tests=$(grep -oE 'Tests: .*' <<<"$text" | grep -oE 'tests/[a-z_]+\.cpp' | sort || true)
    [ -n "$tests" ] || complain ">>$name names no tests"
    [ "$tests" = "$(covered "$name")" ] || complain ">>$name names other tests than cover it:
$(diff <(echo "$tests") <(covered "$name"))"
    above="$above $name"
done <<<"$banners"
exit $wrong
