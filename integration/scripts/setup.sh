#!/usr/bin/env bash
# Installs what building, the demo, the tests and the benchmarks need, with apt. Quick when everything is there.
#
#   setup.sh [PURPOSE...]      build test peers vm fuzz bench; default: all of them
#
# Nothing here starts a daemon: while packages are installed, Debian's policy-rc.d says no to their services.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)

# purpose: packages                                       what for
declare -A packages=(
    # compiling and linking; lowrun links libseccomp
    [build]="gcc libc6-dev pkg-config libseccomp-dev"
    # a registry, the shell of the images, a look at links and tables, failures at chosen system calls, a disk of
    # its own, an HTTP client
    [test]="ca-certificates dpkg docker-registry skopeo busybox-static iproute2 nftables strace util-linux e2fsprogs mount uidmap procps curl"
    # the programs that ours are measured by and put under and over
    [peers]="docker.io containerd runc crun iptables criu podman buildah uidmap"
    # a guest with cgroup v2 alone
    [vm]="qemu-system-x86 cpio"
    # libFuzzer is C++
    [fuzz]="g++ util-linux"
    # gives the newer crun, which is only unpacked aside, a C library of its own
    [bench]="patchelf"
)
purposes=("$@")
[ ${#purposes[@]} -gt 0 ] || purposes=(build test peers vm fuzz bench)

say() { echo "setup: $*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing_packages() {
    local purpose package
    for purpose in "${purposes[@]}"; do
        for package in ${packages[$purpose]?"unknown purpose $purpose"}; do
            is_installed "$package" || echo "$package"
        done
    done
}

# Debian's packages start their services when they are installed, unless this file exists and says no (policy-rc.d(8)).
forbid_services() {
    [ -e /usr/sbin/policy-rc.d ] && return
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod 755 /usr/sbin/policy-rc.d
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
}

install() {
    say "installing $*"
    [ "$(id -u)" = 0 ] || say "installing packages needs root, so sudo may ask for a password"
    forbid_services
    local options=(-qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y --no-install-recommends "$@" >/dev/null; then
        say "trying again with fresh package lists"
        as_root apt-get "${options[@]}" update
        as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y --no-install-recommends "$@" >/dev/null
    fi
}

mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -gt 0 ]; then install "${missing[@]}"; fi
command -v cargo >/dev/null || { say "no cargo: install Rust (rustup.rs) first"; exit 1; }
case " ${purposes[*]} " in *" peers "*) bash "$top/integration/scripts/newer-containerd.sh" "$top/target/peers" ;; esac
case " ${purposes[*]} " in *" bench "*) bash "$top/integration/scripts/newer-crun.sh" "$top/target/peers" ;; esac
say "all there (${purposes[*]})"
