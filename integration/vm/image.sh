#!/usr/bin/env bash
# Puts together what the guest boots: Debian's kernel, and Debian's systemd as process 1 on a root file system that is an
# initramfs. Everything is unpacked from Debian packages, chosen by apt with this machine's lists; nothing is installed
# and nothing started here. Built once and kept:
#
#   image.sh CACHE       prints the directory below CACHE with `vmlinuz`, `modules` and `root.cpio`
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=$(mkdir -p "$1" && cd "$1" && pwd)
# dbus for rootless: a user's manager has no other door that everybody may know. util-linux and uidmap become users and
# join namespaces, for the tests.
packages=(systemd dbus dbus-user-session bash dash coreutils procps grep sed libseccomp2 util-linux uidmap criu iproute2 iptables tar)
# Dependencies of package management and of things that the guest does not do: criu's Python reads images for people.
unwanted='^(python|libpython|media-types|perl|libperl|perl-modules|usrmerge|adduser|debconf|dpkg|passwd|libdb[0-9]|lib.*-perl|libgdbm)'

die() { echo "vm: $*" >&2; exit 1; }
kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ { print $2; exit }')
[ -n "$kernel" ] || die "linux-image-amd64 is not known to apt: run 'apt-get update'"

work=$(mktemp -d "${TMPDIR:-/tmp}/strata-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debs/partial" "$work/root"
: >"$work/status"

# apt as on a machine where nothing is installed: so it names the whole closure.
closure() {
    apt-get -qq -y -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Dir::State::Status="$work/status" -o Dir::Cache::Archives="$work/debs" -o Acquire::Retries=2 "$@"
}

names() { closure --print-uris install "${packages[@]}" | awk '{ print $2 }' | sort; }
listed=$(names) || die "apt does not know the guest's packages: run 'apt-get update'"
key=$({ echo "$kernel $listed"; find "$here/root" -type f | sort | xargs cat; cat "$0"; } | sha256sum | cut -c1-16)
image=$cache/$kernel-$key
if [ -e "$image/root.cpio" ]; then
    echo "$image"
    exit
fi

unpack_kernel() {
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=2 download "$kernel" >&2) || die "cannot download $kernel"
    mkdir -p "$work/kernel" "$work/image"
    dpkg-deb -x "$work/$kernel"_*.deb "$work/kernel"
    mv "$work"/kernel/boot/vmlinuz-* "$work/image/vmlinuz"
    mv "$work"/kernel/lib/modules "$work/image/modules"
}

unpack_root() {
    local dir deb
    for dir in bin sbin lib lib64; do
        mkdir -p "$work/root/usr/$dir"
        ln -s "usr/$dir" "$work/root/$dir"
    done
    closure --download-only install "${packages[@]}" >&2 || die "cannot download the guest's packages"
    for deb in "$work"/debs/*.deb; do
        grep -qE "$unwanted" <<<"$(basename "$deb")" && continue
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/root" --keep-directory-symlink --exclude='./usr/share/doc' \
            --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/share/bash-completion' \
            --exclude='./usr/lib/udev/hwdb.d' --exclude='./lib/udev/hwdb.d'
    done
}

# What the packages' scripts would have done, as far as the guest needs it.
configure_root() {
    local root=$work/root applet
    mkdir -p "$root"/{proc,sys,dev,run,tmp,root,new,etc/systemd/system,home/user,var/lib}
    install -m 755 "$(command -v busybox)" "$root/bin/busybox"
    # Not busybox's, which takes its own programs for those that are installed.
    ln -sf dash "$root/bin/sh"
    for applet in $(busybox --list); do
        [ -e "$root/bin/$applet" ] || [ -e "$root/sbin/$applet" ] || [ -L "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
    printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'messagebus:x:100:100::/nonexistent:/bin/false' \
        'user:x:1000:1000::/home/user:/bin/sh' 'nobody:x:65534:65534::/nonexistent:/bin/false' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'tty:x:5:' 'messagebus:x:100:' 'user:x:1000:' 'nogroup:x:65534:' >"$root/etc/group"
    for applet in ip{,6}tables{,-save,-restore}; do ln -sf xtables-legacy-multi "$root/usr/sbin/$applet"; done
    printf 'user:100000:65536\n' | tee "$root/etc/subuid" >"$root/etc/subgid"
    printf 'passwd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
    echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
    echo guest >"$root/etc/hostname"
    cp -r "$here"/root/. "$root/"
    chmod 755 "$root/init"
}

unpack_kernel
unpack_root
configure_root
(cd "$work/root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/image/root.cpio"
rm -rf "$image" && mv "$work/image" "$image"
# Those of other versions of this file are of no use any more.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -path "$image" -exec rm -rf {} +
echo "$image"
