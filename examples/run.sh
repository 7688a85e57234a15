#!/usr/bin/env bash
# Sets up, builds and starts the hub with its live page and a demo feed. Arguments go to the hub:
#   ./examples/run.sh --port 9000
#   ./examples/run.sh --tls           by https, with a certificate for localhost made on the spot
#   ./examples/run.sh --help
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
. examples/setup.sh

arguments=()
tls=
for argument; do
    [ "$argument" = --tls ] && tls=build/tls || arguments+=("$argument")
done

need_to_build
[ -z "$tls" ] || need libssl-dev test -e /usr/include/openssl/provider.h
[ -z "$tls" ] || need openssl have openssl
install_missing || exit 1
configure_release
say "building (the first time takes a minute)"
ninja -C build --quiet examples/hub

# It signs itself: whoever trusts it trusts this hub alone.
if [ -n "$tls" ]; then
    mkdir -p "$tls"
    openssl x509 -in "$tls/certificate.pem" -noout -checkend 86400 >/dev/null 2>&1 ||
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
            -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1 \
            -keyout "$tls/key.pem" -out "$tls/certificate.pem" 2>/dev/null
    arguments+=(--tls-cert "$tls/certificate.pem" --tls-key "$tls/key.pem")
    say "its certificate, for curl --cacert: $tls/certificate.pem"
fi
exec build/examples/hub --demo "${arguments[@]}"
