#!/usr/bin/env bash
# The two commands of the README on a Debian 12 with nothing installed, first in their order, then in
# the other: makes a root with debootstrap, puts a copy of the checkout into it and runs both there.
# It wants to be root. Packages come from where this machine's apt has them.
#   tests/bare.sh [ROOT]          ROOT: what debootstrap made before, copied
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "it takes root to make a root"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
base=${1:-$work/base}

if [ ! -e "$base" ]; then
    read -r uri suite < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' \
        'Created-By: Packages' 'Component: main' | grep -vE -- '-(security|updates|backports)$')
    eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
    export http_proxy
    debootstrap --variant=minbase "$suite" "$base" "$uri"
fi

# The README's commands, within the root: the hub until its page comes, and Ctrl-C.
cat >"$work/commands" <<'END_OF_COMMANDS'
set -eu
cd "/home/new comer/sse"
examples() {
    ./examples/run.sh --port 0 >hub.log 2>&1 &
    until grep -q http:// hub.log; do
        kill -0 $! || { cat hub.log; exit 1; }
        sleep 1
    done
    kill -INT $!
    wait $!
}
tests() { ./tests/run.sh; }
for command; do
    before=$(date +%s)
    $command
    after=$(date +%s)
    echo "BARE: $command ended with 0 after $((after - before)) s"
done
times
END_OF_COMMANDS

in_order() { # COMMAND...
    local root=$work/root kind
    rm -rf --one-file-system "$root"
    cp -a "$base" "$root"
    rm -f "$root/etc/apt/sources.list" # debootstrap's own; this machine's follow
    for kind in sources.list sources.list.d apt.conf.d preferences.d auth.conf.d keyrings trusted.gpg \
        trusted.gpg.d; do
        [ ! -e "/etc/apt/$kind" ] || { rm -rf "$root/etc/apt/$kind"; cp -aL "/etc/apt/$kind" "$root/etc/apt/"; }
    done
    [ ! -d /usr/share/keyrings ] || cp -aL /usr/share/keyrings "$root/usr/share/"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir -p "$root/home/new comer/sse"
    tar --exclude='./build*' --exclude=./.git --exclude=node_modules -cf - . |
        tar -xf - -C "$root/home/new comer/sse" --no-same-owner
    cp "$work/commands" "$root/commands"
    echo "== in the root: $*"
    # Namespaces of its own: what it mounts and starts is gone when it ends.
    timeout 3600 unshare --mount --pid --fork --kill-child sh -c 'mount -t proc proc "$0/proc" &&
        exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root bash /commands "$@"' \
        "$root" "$@" 2>&1 | tee "$work/log"
    tail -n 40 "$work/log" | grep -E '^[1-9][0-9]* passed, 0 failed, [0-9]+ not run$' >/dev/null
}

in_order examples tests
in_order tests examples
