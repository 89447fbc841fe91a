#!/usr/bin/env bash
# Boots a QEMU guest with Debian's kernel and nothing but cgroup v2, and runs a runtime's checks in it (guest/init).
#
#   run.sh [RUNTIME]      default: the lowrun that make has gathered
#
# The guest is an initramfs: a static busybox, the runtime with the libraries it is linked to, and the checks. It is
# emulated in software, so it needs no /dev/kvm; it has no network. The kernel is a Debian package, unpacked aside and
# kept in target/vm. The last line is `vm: N passed, N failed`; the exit status says the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
runtime=${1:-$top/target/strata/bin/lowrun}
cache=$top/target/vm
timeout_s=${VM_TIMEOUT:-240}

die() { echo "vm: $*" >&2; exit 1; }

# The kernel that Debian's linux-image-amd64 stands for today.
fetch_kernel() {
    local package
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ { print $2; exit }')
    [ -n "$package" ] || die "linux-image-amd64 is not known to apt: run 'apt-get update'"
    kernel=$cache/$package
    [ -e "$kernel/vmlinuz" ] && return
    mkdir -p "$kernel.part"
    (cd "$kernel.part" && apt-get -qq -o APT::Sandbox::User=root download "$package") || die "cannot download $package"
    dpkg-deb -x "$kernel.part"/*.deb "$kernel.part/root"
    mv "$kernel.part"/root/boot/vmlinuz-* "$kernel.part/vmlinuz"
    mv "$kernel.part/root/lib/modules" "$kernel.part/modules"
    rm -rf "$kernel.part/root" "$kernel.part"/*.deb
    mv "$kernel.part" "$kernel"
}

# Puts a program and the shared libraries it names into the guest's root.
install_program() {
    local program=$1 to=$2 library
    install -D -m 755 "$program" "$root$to"
    { ldd "$program" 2>/dev/null || true; } | { grep -oE '/[^ ]+' || true; } | while read -r library; do
        install -D -m 755 "$library" "$root$library"
    done
}

build_initramfs() {
    root=$work/root
    mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,etc,modules,bundle/rootfs/{bin,proc,sys,dev,tmp,etc}}
    install -m 755 "$(command -v busybox)" "$root/bin/busybox"
    install -m 755 "$(command -v busybox)" "$root/bundle/rootfs/bin/busybox"
    ln -s busybox "$root/bin/sh"
    ln -s busybox "$root/bundle/rootfs/bin/sh"
    install_program "$runtime" /bin/runtime
    install -m 755 "$here/guest/init" "$root/init"
    install -m 755 "$here/guest/checks" "$root/checks"
    install -m 644 "$here/guest/config.json" "$root/bundle/config.json"
    find "$kernel/modules" -name 'overlay.ko*' -exec install -m 644 {} "$root/modules/" \;
    local extra
    for extra in ${VM_PROGRAMS:-}; do install_program "$extra" "/tests/$(basename "$extra")"; done
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"
}

boot() {
    timeout --foreground "$timeout_s" qemu-system-x86_64 -M q35 -cpu max -accel tcg,thread=multi -smp 2 -m 1024 \
        -nographic -no-reboot -nodefaults -serial stdio -kernel "$kernel/vmlinuz" -initrd "$work/initramfs.gz" \
        -append "console=ttyS0 panic=-1 quiet cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1" </dev/null
}

for tool in qemu-system-x86_64 cpio busybox dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: run 'make setup'"
done
[ -x "$runtime" ] || die "no runtime at $runtime: run 'make build'"
busybox --help >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || die "busybox is not static: install busybox-static"

work=$(mktemp -d "${TMPDIR:-/tmp}/strata-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
fetch_kernel
build_initramfs
boot | tr -d '\r' | tee "$work/console" | grep -aE '^(ok|FAIL|skip|     |vm:)' || true
grep -aqE '^vm: [0-9]+ passed, 0 failed$' "$work/console" || {
    grep -aq '^vm: ' "$work/console" || { tail -n 40 "$work/console"; echo "vm: 0 passed, 1 failed"; }
    exit 1
}
