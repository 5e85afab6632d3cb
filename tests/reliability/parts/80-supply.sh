#!/bin/sh
# Dependencies by `cargo deny` (advisories where its database is at hand), and the list of unsafe code by its test.
set -u
cd "$(dirname "$0")/../../.." || exit 1
log=${WORK:?}/supply.log
status=0
if command -v cargo-deny >/dev/null 2>&1; then
    for check in licenses bans sources; do
        if cargo deny --all-features --offline check "$check" >"$log" 2>&1; then
            echo "| cargo deny: $check | no fault | no fault | ok |"
        else
            cat "$log" >&2
            echo "| cargo deny: $check | see above | no fault | FAILED |"
            status=1
        fi
    done
    if cargo deny --all-features check advisories >"$log" 2>&1; then
        echo '| cargo deny: advisories | none | none | ok |'
    elif grep -q 'failed to fetch advisory database' "$log"; then
        echo '| cargo deny: advisories | - | none | skipped: no advisory database |'
    else
        cat "$log" >&2
        echo '| cargo deny: advisories | see above | none | FAILED |'
        status=1
    fi
else
    echo '| cargo deny | - | no fault | skipped: cargo-deny is not installed |'
fi
if tests/reliability/passes.sh unsafe_list "$log"; then
    echo '| unsafe code that is not listed | 0 | 0 | ok |'
else
    echo '| unsafe code that is not listed | see above | 0 | FAILED |'
    status=1
fi
exit $status
