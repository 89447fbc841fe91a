#!/usr/bin/env bash
# Unpacks the crun of the next Debian release but one into DIR/crun, for `make bench` alone.
#
#   newer-crun.sh DIR
#
# apt is given lists, sources and a cache of its own, so that the machine's are left as they are. Where the newer crun
# cannot be had or does not start, this says so and the benchmark goes without.
set -euo pipefail
dir=$1
suite=forky
if [ -x "$dir/crun" ] || [ -e "$dir/crun.none" ]; then exit 0; fi
dir=$(mkdir -p "$dir" && cd "$dir" && pwd)
note() { echo "setup: no crun of $suite ($*): make bench compares with this machine's"; touch "$dir/crun.none"; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The mirror that this machine uses already, for the other suite.
mirror=$(apt-cache policy | awk '$2 ~ /^https?:.*\/debian\/?$/ && $3 ~ /^[a-z]+\/main$/ { print $2; exit }')
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -n "$mirror" ] && [ -e "$keyring" ] || note "no mirror or no keyring"
mkdir -p "$work"/{lists/partial,cache/archives/partial,parts}
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
apt=(apt-get -qq -o APT::Sandbox::User=root -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts="$work/parts"
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Acquire::Languages=none -o Acquire::Retries=2)
"${apt[@]}" update >/dev/null 2>&1 || note "its package list cannot be fetched"
cache=(apt-cache -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts="$work/parts"
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache")
libraries=$("${cache[@]}" show "crun/$suite" 2>/dev/null | sed -n 's/^Depends: //p' | head -1 | tr ',' '\n' | awk '{ print $1 }')
for package in crun $libraries; do
    (cd "$work" && "${apt[@]}" download "$package/$suite" >/dev/null 2>&1) || note "$package cannot be downloaded"
done
mkdir "$work/root"
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
rm -rf "$dir/crun.root" && cp -a "$work/root" "$dir/crun.root"
crun=$dir/crun.root/usr/bin/crun
libraries=$(dirname "$(find "$dir/crun.root" -name 'libc.so.6' | head -1)")
# It wants a newer C library than this machine's: give it its own. Started through ld.so instead, crun would find ld.so
# behind /proc/self/exe when it executes itself again.
patchelf --set-interpreter "$(find "$dir/crun.root" -name 'ld-linux*.so.*' | head -1)" --force-rpath --set-rpath "$libraries" "$crun" \
    2>/dev/null || note "patchelf fails"
"$crun" --version >/dev/null 2>&1 || note "it does not run here"
ln -sfn crun.root/usr/bin/crun "$dir/crun"
echo "setup: $("$crun" --version | head -1) in $dir"
