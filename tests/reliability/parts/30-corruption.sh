#!/bin/sh
# See tests/reliability/src/corruption.rs.
set -eu
exec "$(dirname "$PAIRQUET")/pairquet-reliability" corruption 600
