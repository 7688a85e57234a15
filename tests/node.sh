#!/usr/bin/env bash
# Other people's programs against the examples, by Node: tests/NAME/NAME.mjs with the packages that
# tests/packages.txt names for it and this Node, in a folder of its own: another Node has another.
# Where they cannot be installed it says why, and ends with 77.
#   tests/node.sh NAME                 installs
#   tests/node.sh NAME EXAMPLES        runs it with the programs in that folder
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
name=$1

not_run() {
    echo "$1"
    exit 77
}

at_least() { # VERSION LOWEST
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

node=$(node --version 2>/dev/null) || not_run "node does not run"
directory=$PWD/build-npm/node-$node/$name
if [ ! -w "${HOME:-/nowhere}" ]; then # npm and Chromium keep things there
    export HOME=$PWD/build-npm/home
    mkdir -p "$HOME"
fi
wanted=$(while read -r program package version lowest; do
    if [ "$program" = "$name" ] && at_least "${node#v}" "$lowest"; then
        printf '"%s-%s": "npm:%s@%s"\n' "$package" "${version%%.*}" "$package" "$version"
    fi
done <tests/packages.txt | awk '{ all[$1] = $0 } # the last one counts
    END { for (name in all) print all[name] }' | sort | paste -sd ,)
[ -n "$wanted" ] || not_run "nothing in tests/packages.txt is for Node ${node#v}"
wanted="{\"private\": true, \"type\": \"module\", \"dependencies\": {$wanted}}"
mkdir -p "$directory"
if [ "$(cat "$directory/installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$directory/node_modules" "$directory/installed"
    printf '%s\n' "$wanted" >"$directory/package.json"
    (cd "$directory" && npm install --silent --no-audit --no-fund --no-package-lock \
        --ignore-scripts >npm.log 2>&1) ||
        not_run "npm could not install its packages: $(tail -n 3 "$directory/npm.log")"
    printf '%s\n' "$wanted" >"$directory/installed"
fi
[ $# -gt 1 ] || exit 0
cp "tests/$name"/*.mjs tests/support/authority.mjs "$directory/"
case $name in
interop) exec node "$directory/interop.mjs" "$2" ;;
browser) exec node "$directory/browser.mjs" "$2"/{hub,sysenv,chat} ;;
esac
