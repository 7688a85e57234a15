# Varnish in front of a server of sse.hpp. Tried with Varnish 7.1. Start both, Varnish in this folder:
#   hub --trusted-proxy 127.0.0.1
#   varnishd -F -n /tmp/sse-varnish -a 127.0.0.1:8000 -f "$PWD/varnish.vcl"
#   curl -N http://localhost:8000/subscribe/
# It stays in the foreground. [1] to [3] mark what event streams need. While the server is away, a
# connection that would be piped is closed without a response: an EventSource tries again by itself.
vcl 4.1;

backend server_of_events {
    .host = "127.0.0.1";
    .port = "8080";
    .connect_timeout = 2s;
    .between_bytes_timeout = 60s; # above the server's heartbeat, which is 15 s
}

sub vcl_recv {
    # [1] Subscriptions are piped. Otherwise a client that leaves is noticed at the third heartbeat,
    # and for one that does not read Varnish takes all that the server sends.
    if (req.method == "GET" && req.url ~ "^/subscribe") {
        return (pipe);
    }
    # [2] Streams of handlers are passed. Piped, one that is cut would look whole. For pages that may be
    # kept, leave this out: then those of handlers need it by their paths.
    return (pass);
}

# [3] No `set beresp.do_gzip = true` for what is passed: what is compressed is held to its end.
