#!/bin/sh
# Runs in the new release's directory before the switch, while the version
# before still serves: it touches nothing that version needs.
set -eu

# A model that cannot be read or a threshold that is no number ends the
# deployment here, with the device unchanged.
./server check --model model.json

# Which version was installed when, and what it followed, for whoever stands in
# front of the device. A repeated run of the same deployment adds no line.
log=$KERNEX_STATE_DIR/deployments.log
if ! grep -q "^$KERNEX_DEPLOYMENT_ID " "$log" 2>/dev/null; then
    echo "$KERNEX_DEPLOYMENT_ID $(date -u +%Y-%m-%dT%H:%M:%SZ) $KERNEX_VERSION after ${KERNEX_PREVIOUS_VERSION:-nothing}" >>"$log"
fi
