#!/bin/sh
# A runtime without CRIU, for tests of checkpoints: REAL does what it is told, but `checkpoint` saves a word and kills the
# container, unless that goes on, and `restore` creates and starts it. DIR/calls tells how both were called.
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
    case $all in *--leave-running*) exit 0 ;; *) exec REAL $global kill "$last" 9 ;; esac ;;
restore)
    echo "$all" >>DIR/calls
    grep -q saved "$(value image-path)/pages" || exit 1
    REAL $global create --bundle "$(value bundle)" --pid-file "$(value pid-file)" "$last" || exit 1
    exec REAL $global start "$last" ;;
*) exec REAL $global "$@" ;;
esac
