#!/bin/sh
# See tests/reliability/src/kills.rs.
set -eu
exec "$(dirname "$PAIRQUET")/pairquet-reliability" kills 200
