#!/usr/bin/env bash
# Runs every test, as root, and closes with one line that counts them: `N passed, N failed, N skipped`.
#
#   test.sh [FILTER]       a filter as cargo-nextest or the test harness takes it
#
# A test that finds that this machine lacks what it needs writes a line to $STRATA_SKIPS and is counted as skipped; the
# reasons are printed. Each test that starts a stack has a process to itself: with cargo-nextest they run two at a time,
# without it one after the other.
set -uo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export STRATA_SKIPS=$work/skips CARGO_TERM_COLOR=never
: >"$STRATA_SKIPS"
passed=0
failed=0

count_nextest() {
    local summary
    summary=$(grep -aE '^ *Summary ' "$work/tests" | tail -n 1)
    passed=$((passed + $(grep -oE '[0-9]+ passed' <<<"$summary" | awk '{ print $1 }' || echo 0)))
    failed=$((failed + $(grep -oE '[0-9]+ (failed|timed out)' <<<"$summary" | awk '{ n += $1 } END { print n + 0 }')))
}

count_cargo() {
    passed=$((passed + $(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$work/tests")))
    failed=$((failed + $(awk '/^test result:/ { n += $6 } END { print n + 0 }' "$work/tests")))
}

run_tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --workspace --no-fail-fast --test-threads 2 ${1:+"$1"} 2>&1 | tee "$work/tests"
        local status=${PIPESTATUS[0]}
        count_nextest
    else
        cargo test --locked --workspace --no-fail-fast --lib --bins --tests ${1:+"$1"} -- --test-threads 1 2>&1 | tee "$work/tests"
        local status=${PIPESTATUS[0]}
        count_cargo
    fi
    # A test program that did not compile, or died, counts too.
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
}

run_guest() {
    bash integration/vm/run.sh 2>&1 | tee "$work/guest"
    local line
    line=$(grep -aE '^vm: [0-9]+ passed, [0-9]+ failed$' "$work/guest" | tail -n 1)
    [ -n "$line" ] || line='vm: 0 passed, 1 failed'
    passed=$((passed + $(awk '{ print $2 }' <<<"$line")))
    failed=$((failed + $(awk '{ print $4 }' <<<"$line")))
}

# What README promises first is a test of its own.
run_demo() {
    if target/release/strata-lab demo; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

run_tests "${1:-}"
if [ -z "${1:-}" ]; then
    run_guest
    run_demo
fi
skipped=$(wc -l <"$STRATA_SKIPS")
if [ "$skipped" != 0 ]; then
    echo "skipped:"
    sed 's/^/  /' "$STRATA_SKIPS"
fi
echo "$((passed - skipped)) passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
