#!/bin/sh
# Runs on the device before the new version becomes current, in the directory
# of the new version. Exit 0: go on. Exit 75: try again later. Anything else:
# the deployment fails and the device stays on what it runs.
set -eu

echo "deploying $KERNEX_BUNDLE_NAME $KERNEX_VERSION over ${KERNEX_PREVIOUS_VERSION:-nothing} on $KERNEX_DEVICE_ID"

# Put data that must survive versions into $KERNEX_STATE_DIR. Replace this line
# with your installation.
printf '%s %s\n' "$KERNEX_VERSION" "${KERNEX_CONFIG_GREETING:-hello}" > "$KERNEX_STATE_DIR/deployed"
