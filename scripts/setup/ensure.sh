#!/bin/sh
# Runs one of our TypeScript scripts after making sure that the machine has what the script needs.
#
#   sh scripts/setup/ensure.sh NEEDS SCRIPT [ARGUMENT…]        NEEDS: node, system, lab, package, rust, native (comma separated)
#
# Must always hold:
# - it works before node_modules exists, under any /bin/sh, whatever Node it was that ran npm;
# - what is already there is not installed again; a second call costs a few milliseconds;
# - without root it changes nothing on the system: it names what is missing and ends with status 1.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"
# Debian keeps ip, iptables and mke2fs where an ordinary user's PATH does not look.
PATH="$PATH:/usr/sbin:/sbin"
needs=",$1,"
script=$2
shift 2

needs() {
  case $needs in *",$1,"*) return 0 ;; *) return 1 ;; esac
}

say() {
  printf '%s\n' "$*" >&2
}

if needs system; then
  . scripts/setup/packages.sh
  if needs lab; then
    case $(uname -m) in
      x86_64) wanted_packages="$wanted_packages $lab_packages" ;;
      *) say "The lab's guests are User-mode Linux, which there is for x86 only: not for $(uname -m)."; exit 1 ;;
    esac
  fi
  if needs package; then
    wanted_packages="$wanted_packages $package_packages"
  fi
  ensure_packages
fi

# The stamp holds the sums of what the installed tree was made from.
node_is_ready() {
  [ -x node_modules/.bin/node ] && [ "$(cat node_modules/.weft-stamp 2>/dev/null)" = "$stamp" ]
}

# npm leaves optional packages out whose "engines" exclude the Node that it runs under, and native parts of the linter,
# formatter and compiler are such packages: under Debian's Node 18 the install succeeds and they are missing. So npm runs
# under the Node that we are about to install.
npm_ci() {
  outer=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')
  if [ "${outer:-0}" -ge 22 ]; then
    npm ci --no-audit --no-fund --loglevel=error >&2
    return
  fi
  case $(uname -m) in aarch64) arch=arm64 ;; *) arch=x64 ;; esac
  version=$(sed -n 's/^ *"node": "\([0-9.]*\)".*/\1/p' package.json)
  scratch=$(mktemp -d)
  npm install --prefix "$scratch" --no-save --no-package-lock --no-audit --no-fund --loglevel=error \
    "node-linux-$arch@$version" >&2
  (PATH="$scratch/node_modules/node-linux-$arch/bin:$PATH" npm ci --no-audit --no-fund --loglevel=error >&2)
  rm -rf "$scratch"
}

ensure_node() {
  stamp=$(cat package-lock.json .taprc | cksum)
  node_is_ready && return 0
  # Two scripts started together install once: the lock is the directory itself.
  exec 9<"$root"
  flock 9
  if ! node_is_ready; then
    say "setup: npm ci"
    npm_ci
    node_modules/.bin/node node_modules/.bin/tap build >&2
    printf '%s\n' "$stamp" >node_modules/.weft-stamp
  fi
  exec 9<&-
}
ensure_node
PATH="$root/node_modules/.bin:$PATH"

if needs rust || needs native; then
  . scripts/setup/native.sh
  ensure_rust
fi
if needs native; then
  ensure_native
fi
export PATH

exec node_modules/.bin/node "$script" "$@"
