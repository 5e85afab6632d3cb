#!/bin/sh
# Runs every verb with credentials of all kinds, right and wrong, and searches all that was said and written for them.
set -u
cd "$(dirname "$0")/../../.." || exit 1
if tests/reliability/passes.sh secrets "${WORK:?}/secrets.log"; then
    echo '| 12 secrets in 12 forms, in all that over 90 runs said and wrote | 0 found | 0 | ok |'
else
    echo '| 12 secrets in 12 forms, in all that over 90 runs said and wrote | see above | 0 | FAILED |'
    exit 1
fi
