#!/bin/sh
# A runtime without CRIU, for tests of checkpoints: REAL does what it is told, but `checkpoint` saves a word and kills the
# container, unless that goes on, and `restore` creates and starts it. DIR/calls tells how both were called. While DIR/hold
# is there, `checkpoint` takes its time; with DIR/lose-pid the pid of what is restored goes into DIR/lost.
global="--root $2 --log $4 --log-format json"
shift 6
command=$1; all="$*"
for last; do :; done
value() { echo "$all" | sed -n "s|.*--$1 \([^ ]*\).*|\1|p"; }
case $command in
checkpoint)
    echo "$all" >>DIR/calls
    mkdir -p "$(value image-path)"
    echo saved >"$(value image-path)/pages"
    [ -d "$(value work-path)" ] || exit 1
    while [ -e DIR/hold ]; do sleep 0.01; done
    case $all in *--leave-running*) exit 0 ;; *) exec REAL $global kill "$last" 9 ;; esac ;;
restore)
    echo "$all" >>DIR/calls
    grep -q saved "$(value image-path)/pages" || exit 1
    REAL $global create --bundle "$(value bundle)" --pid-file "$(value pid-file)" "$last" || exit 1
    [ ! -e DIR/lose-pid ] || mv "$(value pid-file)" DIR/lost
    exec REAL $global start "$last" ;;
*) exec REAL $global "$@" ;;
esac
