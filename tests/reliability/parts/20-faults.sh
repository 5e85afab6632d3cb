#!/bin/sh
# See tests/reliability/src/faults.rs.
set -eu
exec "$(dirname "$PAIRQUET")/pairquet-reliability" faults 3
