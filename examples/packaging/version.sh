#!/usr/bin/env bash
# The version of what is checked out, as Debian writes and sorts them. It follows from the commit
# alone: two machines say the same of it at any time.
#   0.2.0                                 the commit tagged v0.2.0, or files without git
#   0.2.0~git20261130010203.ff5eb77d1a20  on the way to 0.2.0: sorts below it
#   0.2.0+git20261130010203.ff5eb77d1a20  after 0.2.0: sorts above it
#   ...+dirty                             with changes that are not committed
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/../.."
version=$(sed -n 's/^#define SSE_VERSION_STRING "\(.*\)"/\1/p' sse.hpp)
top=$(git rev-parse --show-toplevel 2>/dev/null || true)
if [ -z "$top" ] || ! [ sse.hpp -ef "$top/sse.hpp" ]; then # none, or that of a program around it
    echo "$version"
    exit
fi
commit=$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --abbrev=12 --format=%cd.%h)
tag=$(git rev-parse -q --verify "refs/tags/v$version^{commit}" || true)
if [ -z "$tag" ] || ! git merge-base --is-ancestor "$tag" HEAD; then
    version+="~git$commit"
elif [ "$tag" != "$(git rev-parse HEAD)" ]; then
    version+="+git$commit"
fi
git diff --quiet HEAD -- || version+="+dirty"
echo "$version"
