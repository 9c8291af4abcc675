#!/bin/sh
# Installs kernex-agent as a service of systemd, or brings an installed one to
# this version. Run as root; run it as often as you like.
#
#   install.sh --broker URL [--token-file FILE] [--ca FILE] [--binary FILE]
#
#   --broker URL       mqtts://HOST:PORT or tcp://HOST:PORT; may be left out later
#   --token-file FILE  holds the claim token; without one an operator approves
#                      the device
#   --ca FILE          PEM with the certificate authorities of broker and object
#                      store, instead of the system's
#   --binary FILE      kernex-agent; default: beside this script
#   --root DIR         install below DIR and start nothing: for images
#
# Settings stand in /etc/kernex/agent.env (0600); what is not named here is kept.
# The device's key and state are in /var/lib/kernex-agent and are never touched.
set -eu
umask 077

die() { echo "install.sh: $1" >&2; exit "${2:-1}"; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; }

here=$(cd "$(dirname "$0")" && pwd)
broker='' token_file='' ca='' root='' binary="$here/kernex-agent"
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --broker | --token-file | --ca | --binary | --root) [ $# -ge 2 ] || die "$1 needs a value" 2 ;;
    *) die "unknown argument $1; see --help" 2 ;;
  esac
  case $1 in
    --broker) broker=$2 ;;
    --token-file) token_file=$2 ;;
    --ca) ca=$2 ;;
    --binary) binary=$2 ;;
    --root) root=${2%/} ;;
  esac
  shift 2
done

bin=$root/usr/local/bin unit=$root/etc/systemd/system etc=$root/etc/kernex
env=$etc/agent.env

# Everything is checked before anything is written.
[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "must run as root"
if [ ! -f "$binary" ] || [ ! -x "$binary" ]; then die "$binary is not an executable file; see --binary"; fi
[ -f "$here/kernex-agent.service" ] || die "kernex-agent.service is missing beside this script"
case $broker in
  '') grep -qs '^KERNEX_BROKER=' "$env" || die "--broker is needed at the first installation" 2 ;;
  *[!0-9A-Za-z:/._\[\]-]*) die "--broker $broker is not a URL like mqtts://HOST:PORT" 2 ;;
  tcp://?* | mqtts://?*) ;;
  *) die "--broker $broker is not a URL like mqtts://HOST:PORT" 2 ;;
esac
token=''
if [ -n "$token_file" ]; then
  token=$(cat "$token_file") || die "cannot read the claim token"
  case $token in
    '' | *[!0-9A-Za-z_-]*) die "$token_file does not hold a claim token" ;; # never show it
  esac
fi
[ -z "$ca" ] || grep -q -e '-----BEGIN CERTIFICATE-----' "$ca" || die "$ca holds no certificate in PEM"

# put SOURCE TARGET MODE: a program that runs keeps its old file.
put() {
  cp "$1" "$2.new"
  chmod "$3" "$2.new"
  mv -f "$2.new" "$2"
}

# set_env NAME VALUE, keeping every other line.
set_env() {
  { grep -vs "^$1=" "$env" || :; echo "$1=$2"; } >"$env.new"
  mv -f "$env.new" "$env"
}

(umask 022 && mkdir -p "$bin" "$unit" "$etc")
put "$binary" "$bin/kernex-agent" 755
put "$here/kernex-agent.service" "$unit/kernex-agent.service" 644
if [ -n "$ca" ]; then
  put "$ca" "$etc/agent-ca.pem" 644
  set_env KERNEX_CA /etc/kernex/agent-ca.pem
fi
[ -z "$broker" ] || set_env KERNEX_BROKER "$broker"
[ -z "$token" ] || set_env KERNEX_ENROLL_TOKEN "$token"
chmod 600 "$env"

if [ -n "$root" ]; then
  mkdir -p "$unit/multi-user.target.wants"
  ln -sf ../kernex-agent.service "$unit/multi-user.target.wants/kernex-agent.service"
  echo "installed below $root"
elif [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl enable --quiet kernex-agent.service
  systemctl restart kernex-agent.service
  echo "kernex-agent runs; its words: journalctl -u kernex-agent"
else
  echo "installed; systemd does not run here, so nothing was started"
fi
