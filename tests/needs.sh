# Sourced by run.sh: the packages of Debian that each variant needs.

# wish PACKAGE CHECK...: installed like what need names, but a variant runs without it too, and says
# what it leaves out.
wish() { [ -n "$wishing" ] && need "$@" || true; }

needs() { # VARIANT: what it cannot do without, and what it would like
    need_to_build
    need python3 have python3
    case $1 in
    quick) wish curl have curl ;;
    bare)
        need debootstrap have debootstrap
        need curl have curl
        ;;
    mutants) need perl have perl ;;
    model)
        need spin have spin
        need gcc have gcc
        ;;
    valgrind) need valgrind have valgrind ;;
    esac
    case $1 in
    release | scripts | asan | tsan | coverage)
        wish curl have curl
        wish iproute2 have ip
        ;;&
    release)
        wish clang-format have clang-format
        wish busybox-static have busybox
        wish cmake have cmake
        wish file have file
        wish git have git
        wish make have make
        wish pkg-config have pkg-config
        ;;&
    asan) wish clang-tidy have clang-tidy ;;&
    release | scripts) wish liburing-dev test -e /usr/include/liburing.h ;;&
    asan | coverage | matrix) need liburing-dev test -e /usr/include/liburing.h ;;&
    release | scripts | tsan | judge) wish libhiredis-dev test -e /usr/include/hiredis/hiredis.h ;;&
    asan | coverage | fuzz | matrix) need libhiredis-dev test -e /usr/include/hiredis/hiredis.h ;;&
    release | scripts | tsan | interop | browser) wish zlib1g-dev test -e /usr/include/zlib.h ;;&
    asan | coverage | fuzz | matrix) need zlib1g-dev test -e /usr/include/zlib.h ;;&
    fuzz | matrix) need libnats-dev test -e /usr/include/nats/nats.h ;;&
    release | scripts | tsan | interop | browser) wish libssl-dev test -e /usr/include/openssl/provider.h ;;&
    asan | coverage | fuzz | matrix) need libssl-dev test -e /usr/include/openssl/provider.h ;;&
    release | scripts | tsan | judge) wish redis-server have redis-server ;;&
    asan | coverage) need redis-server have redis-server ;;&
    release | scripts | tsan | judge)
        wish libnats-dev test -e /usr/include/nats/nats.h
        wish nats-server have nats-server
        ;;&
    asan | coverage)
        need libnats-dev test -e /usr/include/nats/nats.h
        need nats-server have nats-server
        ;;&
    release | scripts | asan | tsan | coverage) wish nginx test -x /usr/sbin/nginx ;;&
    release | scripts | asan | tsan | coverage) # not in the place of elogind
        have loginctl || wish systemd have systemd-socket-activate
        ;;&
    release | scripts) wish valgrind test -e /usr/include/valgrind/callgrind.h ;;&
    release | scripts | interop | browser | asan | tsan | coverage | soak | judge)
        wish libboost-dev test -e /usr/include/boost/beast.hpp
        ;;&
    interop | browser)
        need nodejs have node
        need npm have npm
        need curl have curl
        ;;&
    interop | browser) wish openssl have openssl ;;&
    interop)
        need libboost-dev test -e /usr/include/boost/beast.hpp
        wish nginx test -x /usr/sbin/nginx
        wish libnginx-mod-nchan test -e /usr/lib/nginx/modules/ngx_nchan_module.so
        ;;
    proxies)
        wish nginx test -x /usr/sbin/nginx
        wish haproxy test -x /usr/sbin/haproxy
        wish varnish test -x /usr/sbin/varnishd
        wish apache2-bin test -x /usr/sbin/apache2
        wish caddy have caddy
        wish squid test -x /usr/sbin/squid
        wish lighttpd test -x /usr/sbin/lighttpd
        ;;
    browser)
        need chromium test -x "${CHROMIUM:-/usr/bin/chromium}"
        wish libnss3-tools have certutil
        ;;
    asan | fuzz | matrix | coverage)
        need clang-19 have clang++-19
        need libclang-rt-19-dev test -e /usr/lib/llvm-19/lib/clang/19/lib/linux
        ;;&
    matrix)
        need g++-multilib sh -c 'echo "int main() {}" | g++ -m32 -x c++ - -o /dev/null'
        need qemu-user have qemu-i386
        need g++-mingw-w64-x86-64-posix have x86_64-w64-mingw32-g++-posix
        ;;
    coverage) need llvm-19 have llvm-cov-19 ;;
    esac
}
