#!/bin/sh
# Makes what compose.yaml mounts, below ./.kernex-compose: secrets, each a file of
# mode 0600, and folders; and ./.env. What is there stays as it is: run it as often
# as you like; remove a file to have a new one made.
#
#   deployments/docker/make-secrets.sh [--host NAME_OR_ADDRESS]...
#
# --host names this machine as devices outside of compose reach the broker; it
# goes into the broker's certificate, beside "broker", "localhost" and 127.0.0.1.
set -eu
umask 077

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; }

names='DNS:broker,DNS:localhost,IP:127.0.0.1'
while [ $# -gt 0 ]; do
  case $1 in
    --host)
      [ $# -ge 2 ] || { echo "--host needs a name or address" >&2; exit 2; }
      case $2 in
        '' | *[!0-9A-Za-z.:-]*) echo "--host $2 is no name or address" >&2; exit 2 ;;
        *:*) names="$names,IP:$2" ;;
        *[!0-9.]*) names="$names,DNS:$2" ;;
        *) names="$names,IP:$2" ;;
      esac
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "unknown argument $1; see --help" >&2; exit 2 ;;
  esac
done
command -v openssl >/dev/null || { echo "openssl is needed (Debian: apt-get install openssl)" >&2; exit 1; }

cd "$(dirname "$0")/../.."
dir=.kernex-compose
mkdir -p "$dir/admin" "$dir/objects" "$dir/metadata"

# keep FILE COMMAND...: the command's output becomes FILE, whole or not at all.
keep() {
  file=$1
  shift
  [ ! -s "$file" ] || return 0
  "$@" >"$file.new"
  mv "$file.new" "$file"
  echo "made $file"
}

pgpass() { echo "postgres:5432:kernex:kernex:$(cat "$dir/postgres.password")"; }

keep "$dir/postgres.password" openssl rand -hex 32
keep "$dir/pgpass" pgpass
keep "$dir/s3.secret" openssl rand -hex 32
keep "$dir/broker.secret" openssl rand -hex 32
# 32 bytes in base64. Devices pin its public half at enrolment: back it up.
keep "$dir/command.key" openssl rand -base64 32

# A certificate authority for these containers alone; its key is mounted nowhere.
keep "$dir/ca.key" openssl ecparam -name prime256v1 -genkey -noout
if [ ! -s "$dir/ca.pem" ]; then
  openssl req -x509 -new -sha256 -key "$dir/ca.key" -days 3650 -subj "/CN=Kernex compose CA" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$dir/ca.pem"
  echo "made $dir/ca.pem"
fi

# certificate NAME NAMES: a key and a certificate for a server, NAME.key and NAME.pem.
certificate() {
  keep "$dir/$1.key" openssl ecparam -name prime256v1 -genkey -noout
  [ ! -s "$dir/$1.pem" ] || return 0
  request=$dir/$1.request
  openssl req -new -key "$dir/$1.key" -subj "/CN=$1" -out "$request"
  printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName=%s\n' "$2" >"$request.ext"
  openssl x509 -req -sha256 -in "$request" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
    -days 825 -extfile "$request.ext" -out "$dir/$1.pem" 2>/dev/null
  rm "$request" "$request.ext"
  echo "made $dir/$1.pem for $2"
}
certificate broker "$names"
certificate orchestrator DNS:orchestrator-1,DNS:orchestrator-2
chmod 644 "$dir"/*.pem # public

# The programs refuse secrets that others can read, so the containers run as
# these files' owner. Root's files go to an account that exists nowhere.
uid=$(id -u)
gid=$(id -g)
if [ "$uid" = 0 ]; then
  uid=65532 gid=65532
  chown -R "$uid:$gid" "$dir"
fi
[ -e .env ] || : >.env
set_env() { grep -q "^$1=" .env || echo "$1=$2" >>.env; }
set_env KERNEX_UID "$uid"
set_env KERNEX_GID "$gid"
