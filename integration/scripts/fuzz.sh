#!/usr/bin/env bash
# Builds lowrun's fuzz targets and runs each for a while, at idle priority; ends with 1 when one finds something.
#
#   fuzz.sh [SECONDS] [TARGET...]      default: 20 seconds, every target
#
# No nightly compiler and no cargo-fuzz is needed: the flags are those that `cargo fuzz` passes, without a sanitizer (the
# code under test is safe Rust) but with checks for overflow. New inputs go to target/fuzz/corpus, what fails to
# target/fuzz/failures; `fuzz.sh --minimise` keeps a small choice of the new ones in lowrun/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$PWD/target/fuzz
kept=$PWD/lowrun/fuzz/corpus
host=$(rustc -vV | sed -n 's/^host: //p')
# An input of any of the targets is read in well under a millisecond; what takes seconds, also at idle priority, hangs.
limits=(-timeout=20 -rss_limit_mb=1024 -max_len=8192)

# Not --locked: the lock file follows what lowrun depends on, which changes elsewhere.
build() {
    local coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares)
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg fuzzing ${coverage[*]}" CARGO_TARGET_DIR=$work \
        cargo build --release --quiet --manifest-path lowrun/fuzz/Cargo.toml --target "$host"
}

fuzz() {
    local target=$1 seconds=$2
    mkdir -p "$work/corpus/$target" "$work/failures"
    # At idle priority the clock says little of how much was tried: the processor's time is told beside it.
    local TIMEFORMAT='fuzz: %U user and %S system seconds of the processor'
    time chrt -i 0 nice -n 19 "$work/$host/release/$target" "${limits[@]}" -max_total_time="$seconds" \
        -print_final_stats=1 -artifact_prefix="$work/failures/$target-" "$work/corpus/$target" "$kept/$target" \
        >"$work/$target.log" 2>&1 ||
        { tail -n 40 "$work/$target.log"; echo "fuzz: $target failed, see $work/failures"; return 1; }
    echo "fuzz: $target: $(grep -aoE 'Done [0-9]+ runs in [0-9]+ second' "$work/$target.log")s," \
        "$(grep -aoE 'cov: [0-9]+' "$work/$target.log" | tail -n 1)"
}

# Beside the inputs that were written by hand (those with a name), 4 KiB of the shortest that the fuzzer found.
minimise() {
    local target=$1 found=$work/minimal/$1 left=4096 file
    mkdir -p "$work/corpus/$target" "$found"
    find "$found" "$kept/$target" -type f -regextype egrep -regex '.*/[0-9a-f]{40}' -delete
    "$work/$host/release/$target" -set_cover_merge=1 -use_counters=0 -max_len=4096 "$found" "$work/corpus/$target" \
        >"$work/$target.merge" 2>&1
    for file in $(find "$found" -type f -printf '%s %p\n' | sort -n | cut -d ' ' -f 2); do
        left=$((left - $(stat -c %s "$file")))
        [ $left -ge 0 ] || break
        install -m 644 "$file" "$kept/$target/"
    done
}

mapfile -t targets < <(basename -s .rs lowrun/fuzz/fuzz_targets/*.rs)
build
if [ "${1:-}" = --minimise ]; then
    for target in "${targets[@]}"; do minimise "$target"; done
    exit
fi
seconds=${1:-20}
[ $# -lt 2 ] || targets=("${@:2}")
status=0
for target in "${targets[@]}"; do fuzz "$target" "$seconds" || status=1; done
exit $status
