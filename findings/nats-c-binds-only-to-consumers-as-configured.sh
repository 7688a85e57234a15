#!/usr/bin/env bash
# A subscription bound to a consumer by its name is refused where the consumer keeps its state in memory,
# unless the options of the subscription say so too. What is a number or a text need not be repeated.
#
# Library    nats.c 3.4.1, Debian 12's packages `libnats3.4` and `libnats-dev` 3.4.1-1+b1, with
#            `nats-server` 2.9.10-1+b3. Needs apt-get, gcc and libc6-dev.
# Guess      Stream and Consumer of jsSubOptions name a consumer that is there; how it is configured is
#            then the server's to say, and options left as jsSubOptions_Init() sets them ask for nothing.
# Behaviour  The configuration in the options is compared with the server's. Numbers and texts that are
#            not set are left out of that, but MemoryStorage is a bool, whose `false` asks for a consumer
#            that is not in memory. The function returns NATS_ERR, with no code of JetStream.
# Seen       stored as the stream, plain options: OK
#            in memory, plain options: Error
#            in memory, options that say so: OK
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

/* What comes of binding to a new consumer. */
static natsStatus bind_to(jsCtx* js, const char* inbox, int in_memory, int says_so) {
    jsConsumerConfig config;
    jsConsumerInfo* info;
    jsSubOptions options;
    natsSubscription* subscription = NULL;
    jsErrCode code = 0;
    jsConsumerConfig_Init(&config);
    config.DeliverSubject = inbox;
    config.MemoryStorage = in_memory;
    check(js_AddConsumer(&info, js, "KEPT", &config, NULL, NULL), "consumer");
    jsSubOptions_Init(&options);
    options.Stream = "KEPT";
    options.Consumer = info->Name;
    options.Config.MemoryStorage = says_so;
    const natsStatus status = js_SubscribeSync(&subscription, js, "kept", NULL, &options, &code);
    printf("%s, %s: %s\n", in_memory ? "in memory" : "stored as the stream",
           says_so ? "options that say so" : "plain options", natsStatus_GetText(status));
    if (code != 0) exit(1);
    natsSubscription_Destroy(subscription);
    jsConsumerInfo_Destroy(info);
    return status;
}

int main(int count, char** arguments) {
    natsOptions* options;
    natsConnection* connection;
    jsCtx* js;
    jsStreamConfig config;
    const char* subjects[] = {"kept"};
    if (count != 2) return 2;
    printf("nats.c %s\n", nats_GetVersion());
    check(natsOptions_Create(&options), "options");
    check(natsOptions_SetURL(options, arguments[1]), "url");
    check(natsConnection_Connect(&connection, options), "connect");
    check(natsConnection_JetStream(&js, connection, NULL), "jetstream");
    jsStreamConfig_Init(&config);
    config.Name = "KEPT";
    config.Subjects = subjects;
    config.SubjectsLen = 1;
    check(js_AddStream(NULL, js, &config, NULL, NULL), "stream");
    const int right = bind_to(js, "inbox.a", 0, 0) == NATS_OK &&
                      bind_to(js, "inbox.b", 1, 0) == NATS_ERR &&
                      bind_to(js, "inbox.c", 1, 1) == NATS_OK;
    jsCtx_Destroy(js);
    natsConnection_Destroy(connection);
    natsOptions_Destroy(options);
    return right ? 0 : 1;
}
C
gcc -O1 -Wall -I usr/include try.c -L "usr/lib/$multi" -lnats -o try
usr/sbin/nats-server -a 127.0.0.1 -p -1 -js -sd "$PWD/store" --ports_file_dir "$PWD" >log 2>&1 &
for ((i = 0; i < 3000; ++i)); do
    if ls nats-server_*.ports >/dev/null 2>&1 && grep 'Server is ready' log >/dev/null; then break; fi
    sleep 0.01
done
url=$(grep -Eo 'nats://[0-9.:]+' nats-server_*.ports | head -n 1)
timeout 60 ./try "$url" || { echo "the behaviour has changed" >&2; exit 1; }
