#!/usr/bin/env bash
# Boots a QEMU guest with Debian's kernel and systemd, and runs a runtime's checks in it, with both cgroup drivers.
#
#   run.sh [--whole] [--hybrid] [RUNTIME]      default: the lowrun that make has gathered
#
# The guest has cgroup v2 alone, or with --hybrid v1 beside it, as systemd sets that up. It is emulated in software, so it
# needs no /dev/kvm; it has no network. image.sh makes what it boots. Without --whole it runs guest/checks; with it, also
# the runtime's own tests (lowrun/tests), built here. The last line is `vm: N passed, N failed`; the exit status says
# the same. To look at a few tests only: VM_TESTS names test programs (all), VM_FILTER words of which a test's name must
# have one, VM_DRIVERS the drivers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
whole= hybrid=
while case "${1:-}" in --whole) whole=1 ;; --hybrid) hybrid=1 ;; *) false ;; esac; do shift; done
: "${VM_TESTS:=[a-z_]+}" "${VM_FILTER:=}" "${VM_DRIVERS:=cgroupfs systemd}"
runtime=${1:-$top/target/strata/bin/lowrun}
timeout_s=${VM_TIMEOUT:-${whole:+900}}

die() { echo "vm: $*" >&2; exit 1; }

# Puts a program and the shared libraries it names into the guest's root.
install_program() {
    local program=$1 to=$2 library
    install -D -m 755 "$program" "$payload$to"
    { ldd "$program" 2>/dev/null || true; } | { grep -oE '/[^ ]+' || true; } | while read -r library; do
        # As its own file system has them: /lib is a link to /usr/lib.
        install -D -m 755 "$library" "$payload/usr/${library#/usr}"
    done
}

# The test programs of lowrun, as cargo names them.
test_programs() {
    cargo test --no-run --locked --manifest-path "$top/Cargo.toml" -p lowrun --message-format json 2>/dev/null |
        grep -oE '"executable":"[^"]+/deps/[^"]+"' | cut -d'"' -f4 | { grep -E "/(${VM_TESTS// /|})-[^/]*$" || true; }
}

# Everything that is not Debian's goes into an archive of its own, behind the image's.
build_payload() {
    local program module programs
    payload=$work/payload
    mkdir -p "$payload"/{tests/programs,modules,bundle/rootfs/{bin,proc,sys,dev,tmp,etc}}
    install -m 755 "$(command -v busybox)" "$payload/bundle/rootfs/bin/busybox"
    ln -s busybox "$payload/bundle/rootfs/bin/sh"
    install_program "$runtime" /usr/bin/runtime
    install -m 644 "$here"/guest/{start,checks} "$payload/tests/"
    install -m 644 "$here/guest/config.json" "$payload/bundle/config.json"
    # What criu asks about sockets and devices, and stops the network with; devices to move.
    for module in overlay veth tun crc32c_generic libcrc32c nfnetlink nf_{tables,conntrack,conntrack_netlink,defrag_ipv4,defrag_ipv6} \
        x_tables xt_mark ip{,6}_tables ip{,6}table_filter {af_packet,inet,netlink,raw,tcp,udp,unix}_diag; do
        find "$image/modules" -name "$module.ko*" -exec install -m 644 {} "$payload/modules/" \;
    done
    # A guest with the checks alone would be green where the tests are not even built.
    [ -z "$whole" ] || programs=$(test_programs) || die "lowrun's tests cannot be built"
    [ -z "$whole" ] || for program in $programs; do
        install_program "$program" "/tests/programs/$(basename "$program")"
        # Nine tenths of it, and all of it is unpacked into the guest's memory.
        strip --strip-debug "$payload/tests/programs/$(basename "$program")"
    done
    # Where the tests that read them look, as they were compiled.
    [ -z "$whole" ] || { mkdir -p "$payload$top/lowrun/fuzz" && cp -r "$top"/lowrun/fuzz/{corpus,fuzz_targets} "$payload$top/lowrun/fuzz/"; }
    (cd "$payload" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/payload.cpio"
    cat "$image/root.cpio" "$work/payload.cpio" >"$work/initramfs"
}

boot() {
    local cgroup="cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1"
    [ -z "$hybrid" ] || cgroup="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0"
    timeout --foreground "${timeout_s:-240}" qemu-system-x86_64 -M q35 -cpu max -accel tcg,thread=multi -smp 2 -m 1536 \
        -nographic -no-reboot -nodefaults -serial stdio -kernel "$image/vmlinuz" -initrd "$work/initramfs" \
        -append "console=ttyS0 panic=-1 quiet $cgroup systemd.unit=checks.target systemd.show_status=0 systemd.log_target=console systemd.log_level=err vm.filter=${VM_FILTER// /,} vm.drivers=${VM_DRIVERS// /,} ${VM_APPEND:-}" </dev/null
}

for tool in qemu-system-x86_64 cpio busybox dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: run 'make setup'"
done
[ -x "$runtime" ] || die "no runtime at $runtime: run 'make build'"
busybox --help >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || die "busybox is not static: install busybox-static"

image=$("$here/image.sh" "$top/target/vm")
work=$(mktemp -d "${TMPDIR:-/tmp}/strata-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
build_payload
boot | sed -u 's|\r||' | tee "$work/console" | grep --line-buffered -aE "${VM_SHOW:-^(ok|FAIL|skip|     |vm:)}" || true
grep -aqE '^vm: [1-9][0-9]* passed, 0 failed$' "$work/console" || {
    grep -aq '^vm: ' "$work/console" || { tail -n 40 "$work/console"; echo "vm: 0 passed, 1 failed"; }
    exit 1
}
