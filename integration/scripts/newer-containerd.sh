#!/usr/bin/env bash
# Unpacks the containerd and the ctr of the next Debian release but one (2.x) into DIR/containerd.root, for the tests that
# ask for images by the transfer service, which Debian's own containerd has not.
#
#   newer-containerd.sh DIR
#
# apt is given lists, sources and a cache of its own, so that the machine's are left as they are. Where they cannot be had
# or do not start, this says so, and those tests skip themselves.
set -euo pipefail
dir=$1
suite=forky
if [ -d "$dir/containerd.root" ] || [ -e "$dir/containerd.none" ]; then exit 0; fi
dir=$(mkdir -p "$dir" && cd "$dir" && pwd)
note() { echo "setup: no containerd of $suite ($*): some tests will be skipped"; touch "$dir/containerd.none"; exit 0; }

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
(cd "$work" && "${apt[@]}" download "containerd/$suite" >/dev/null 2>&1) || note "it cannot be downloaded"
mkdir "$work/root"
dpkg-deb -x "$work"/containerd_*.deb "$work/root"
"$work/root/usr/bin/ctr" --version >/dev/null 2>&1 && "$work/root/usr/bin/containerd" --version >/dev/null 2>&1 ||
    note "it does not run here"
cp -a "$work/root" "$dir/containerd.new" && mv "$dir/containerd.new" "$dir/containerd.root"
echo "setup: $("$dir/containerd.root/usr/bin/ctr" --version) in $dir"
