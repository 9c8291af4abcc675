#!/bin/sh
# Removes kernex-agent. Run as root.
#
#   uninstall.sh [--purge] [--root DIR]
#
#   --purge     also removes settings, the device's key, its releases and its
#               state: installed again it is a new device
#   --root DIR  what install.sh --root DIR installed
set -eu

die() { echo "uninstall.sh: $1" >&2; exit "${2:-1}"; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; }

purge='' root=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --purge) purge=yes ;;
    --root) [ $# -ge 2 ] || die "--root needs a value" 2; root=${2%/}; shift ;;
    *) die "unknown argument $1; see --help" 2 ;;
  esac
  shift
done
[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "must run as root"

unit=$root/etc/systemd/system
if [ -z "$root" ] && [ -d /run/systemd/system ] && [ -e "$unit/kernex-agent.service" ]; then
  systemctl disable --quiet --now kernex-agent.service
fi
rm -f "$unit/multi-user.target.wants/kernex-agent.service" "$unit/kernex-agent.service" "$root/usr/local/bin/kernex-agent"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
if [ -n "$purge" ]; then
  rm -rf "$root/var/lib/kernex-agent" "$unit/kernex-agent.service.d"
  rm -f "$root/etc/kernex/agent.env" "$root/etc/kernex/agent-ca.pem"
  rmdir "$root/etc/kernex" 2>/dev/null || : # other programs of Kernex may be here
  echo "removed, with settings and state"
else
  echo "removed; settings and state are kept"
fi
