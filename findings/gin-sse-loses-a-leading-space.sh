#!/usr/bin/env bash
# Gin's encoder of event streams does not give back the text that it was given: each line loses a space
# at its start, a CR becomes two characters, and bytes become a string of base64.
#
# Library    gin-contrib/sse 0.1.0 (`golang-github-gin-contrib-sse-dev` 0.1.0-2 of Debian 12), with Go
#            1.19.8: what c.SSEvent() of Gin calls. Needs apt-get.
# Guess      An encoder writes any text so that an EventSource gets the same text: a space after the
#            colon, and CR, LF and CRLF as line breaks, each a `data` line (WHATWG HTML 9.2.6).
# Behaviour  It writes no space after the colon, and the client drops one that follows it. So a model's
#            tokens " is" and " up" arrive as "is" and "up", and the words of a reply run together. A CR
#            is written as a backslash and an r. Data of type []byte, as json.Marshal returns it, is
#            encoded as JSON once more: in quotes, by base64.
# Seen       " is"             data: is
#            "a\r\nb"          data:a\r, data:b
#            []byte(`{"a":1}`) data:"eyJhIjoxfQ=="
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install golang-1.19-go=1.19.8-2 golang-1.19-src=1.19.8-2 \
    golang-github-gin-contrib-sse-dev=0.1.0-2 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done

cat >try.go <<'GO'
package main

import (
	"fmt"
	"os"

	"github.com/gin-contrib/sse"
)

func show(data interface{}) {
	fmt.Printf("%q\n", data)
	sse.Encode(os.Stdout, sse.Event{Data: data})
}

func main() {
	show("It")
	show(" is")
	show("a\r\nb")
	show([]byte(`{"a":1}`))
}
GO
GOROOT=$dir/usr/lib/go-1.19 GOPATH=$dir/usr/share/gocode GO111MODULE=off GOCACHE=$dir/cache \
    usr/lib/go-1.19/bin/go run try.go | tee seen

diff seen - <<'END'
"It"
data:It

" is"
data: is

"a\r\nb"
data:a\r
data:b

"{\"a\":1}"
data:"eyJhIjoxfQ=="

END
echo "as described"
