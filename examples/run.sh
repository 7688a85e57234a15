#!/usr/bin/env bash
# Sets up, builds and starts the hub with its live page and a demo feed. Arguments go to the hub:
#   ./examples/run.sh --port 9000
#   ./examples/run.sh --help
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
. examples/setup.sh

need_to_build
install_missing || exit 1
configure_release
say "building (the first time takes a minute)"
ninja -C build --quiet examples/hub
exec build/examples/hub --demo "$@"
