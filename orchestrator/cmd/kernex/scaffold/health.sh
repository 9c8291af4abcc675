#!/bin/sh
# Asked again and again after the switch: exit 0 is healthy. When it does not
# become healthy within window_s, the device returns to the version it ran
# before and reports the last line printed here.
set -eu

# Replace this with a question to your program.
read -r version _ < "$KERNEX_STATE_DIR/deployed"
if [ "$version" != "$KERNEX_VERSION" ]; then
	echo "found $version, want $KERNEX_VERSION"
	exit 1
fi
