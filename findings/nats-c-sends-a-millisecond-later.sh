#!/usr/bin/env bash
# natsConnection_Publish leaves a message in a buffer for about a millisecond, even where nothing else is
# on its way, and so does js_PublishAsync.
#
# Library    nats.c 3.4.1, Debian 12's packages `libnats3.4` and `libnats-dev` 3.4.1-1+b1, with
#            `nats-server` 2.9.10-1+b3. Needs apt-get, gcc and libc6-dev.
# Guess      What is published on an idle connection is sent at once, and the buffer only takes what
#            comes meanwhile, as in the Go client, whose flusher is woken and writes.
# Behaviour  The thread that flushes sleeps a millisecond before it writes, to collect more, also on a
#            connection that was idle. natsOptions_SetSendAsap(options, true) sends within the call.
# Seen       medians of 200, each after a pause of 5 ms, on a busy machine:
#            until a message is there: 921 us, with SendAsap 172 us
#            until js_PublishAsync is acknowledged: 920 us, with SendAsap 278 us
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install libnats-dev=3.4.1-1+b1 libnats3.4=3.4.1-1+b1 nats-server=2.9.10-1+b3 \
    >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
multi=$(gcc -print-multiarch)
export LD_LIBRARY_PATH=$PWD/usr/lib/$multi

cat >try.c <<'C'
#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>

static void check(natsStatus status, const char* what) {
    if (status == NATS_OK) return;
    fprintf(stderr, "%s: %s\n", what, natsStatus_GetText(status));
    exit(2);
}

enum { tries = 200 };

static int compare(const void* a, const void* b) {
    return (*(const long*)a > *(const long*)b) - (*(const long*)a < *(const long*)b);
}

/* Microseconds, the median. */
static long typical(const char* url, int asap, int jetstream) {
    natsOptions* options;
    natsConnection *from, *to;
    natsSubscription* subscription;
    jsCtx* js;
    jsPubOptions wait;
    long took[tries];
    check(natsOptions_Create(&options), "options");
    check(natsOptions_SetURL(options, url), "url");
    check(natsOptions_SetSendAsap(options, asap), "asap");
    check(natsConnection_Connect(&from, options), "connect");
    check(natsConnection_Connect(&to, options), "connect");
    check(natsConnection_SubscribeSync(&subscription, to, "a"), "subscribe");
    check(natsConnection_Flush(to), "flush");
    check(natsConnection_JetStream(&js, from, NULL), "jetstream");
    jsPubOptions_Init(&wait);
    wait.MaxWait = 5000;
    if (jetstream) { /* the first also subscribes to acknowledgements */
        check(js_PublishAsync(js, "kept", "x", 1, NULL), "publish");
        check(js_PublishAsyncComplete(js, &wait), "complete");
    }
    for (int i = 0; i < tries; ++i) {
        nats_Sleep(5);
        const int64_t begin = nats_NowInNanoSeconds();
        if (jetstream) {
            check(js_PublishAsync(js, "kept", "x", 1, NULL), "publish");
            check(js_PublishAsyncComplete(js, &wait), "complete");
        } else {
            natsMsg* message;
            check(natsConnection_Publish(from, "a", "x", 1), "publish");
            check(natsSubscription_NextMsg(&message, subscription, 5000), "next");
            natsMsg_Destroy(message);
        }
        took[i] = (long)((nats_NowInNanoSeconds() - begin) / 1000);
    }
    qsort(took, tries, sizeof *took, compare);
    jsCtx_Destroy(js);
    natsSubscription_Destroy(subscription);
    natsConnection_Destroy(from);
    natsConnection_Destroy(to);
    natsOptions_Destroy(options);
    return took[tries / 2];
}

int main(int count, char** arguments) {
    const char* url = arguments[1];
    natsOptions* options;
    natsConnection* connection;
    jsCtx* js;
    jsStreamConfig config;
    const char* subjects[] = {"kept"};
    int right = count == 2;
    printf("nats.c %s\n", nats_GetVersion());
    check(natsOptions_Create(&options), "options");
    check(natsOptions_SetURL(options, url), "url");
    check(natsConnection_Connect(&connection, options), "connect");
    check(natsConnection_JetStream(&js, connection, NULL), "jetstream");
    jsStreamConfig_Init(&config);
    config.Name = "KEPT";
    config.Subjects = subjects;
    config.SubjectsLen = 1;
    config.Storage = js_MemoryStorage;
    check(js_AddStream(NULL, js, &config, NULL, NULL), "stream");
    for (int jetstream = 0; jetstream < 2; ++jetstream) {
        const long usual = typical(url, 0, jetstream), asap = typical(url, 1, jetstream);
        printf("%s: %ld us, with SendAsap %ld us\n",
               jetstream ? "until js_PublishAsync is acknowledged" : "until a message is there", usual,
               asap);
        right = right && usual > 2 * asap;
    }
    jsCtx_Destroy(js);
    natsConnection_Destroy(connection);
    natsOptions_Destroy(options);
    return right ? 0 : 1;
}
C
gcc -O1 -Wall -I usr/include try.c -L "usr/lib/$multi" -lnats -o try
usr/sbin/nats-server -a 127.0.0.1 -p -1 -js -sd "$PWD/store" --ports_file_dir "$PWD" >log 2>&1 &
for ((i = 0; i < 3000; ++i)); do
    if ls nats-server_*.ports >/dev/null 2>&1 && grep -q 'Server is ready' log; then break; fi
    sleep 0.01
done
url=$(grep -Eo 'nats://[0-9.:]+' nats-server_*.ports | head -1)
timeout 60 ./try "$url" || { echo "the behaviour has changed" >&2; exit 1; }
