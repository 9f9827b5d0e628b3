# What the build, the demo and the tests want from Debian, as "command:package" or "file:package".
# Sourced by ensure.sh; a line that no code needs any more goes out.

wanted_packages='
cc:gcc
c++:g++
/usr/include/stdio.h:libc6-dev
protoc:protobuf-compiler
/usr/include/google/protobuf/empty.proto:libprotobuf-dev
etcd:etcd-server
etcdctl:etcd-client
openssl:openssl
fio:fio
nbdkit:nbdkit
nbdcopy:libnbd-bin
qemu-img:qemu-utils
qemu-storage-daemon:qemu-system-common
mke2fs:e2fsprogs
mkfs.xfs:xfsprogs
ip:iproute2
iptables:iptables
nsenter:util-linux
lsblk:util-linux
losetup:mount
git:git
/usr/bin/python3:python3
'

# For `npm run lab`.
lab_packages='
linux.uml:user-mode-linux
lvm:lvm2
thin_check:thin-provisioning-tools
modprobe:kmod
'

# For `npm run rpm` and `npm run deb`, and the tests of what they make.
package_packages='
rpmbuild:rpm
patchelf:patchelf
strip:binutils
gpg:gpg
gpg-agent:gpg-agent
/usr/bin/busybox:busybox-static
'

missing_packages() {
  for line in $wanted_packages; do
    thing=${line%%:*}
    case $thing in
      /*) [ -e "$thing" ] || printf '%s ' "${line#*:}" ;;
      *) command -v "$thing" >/dev/null 2>&1 || printf '%s ' "${line#*:}" ;;
    esac
  done
}

ensure_packages() {
  missing=$(missing_packages)
  [ -z "$missing" ] && return 0
  if [ "$(id -u)" != 0 ]; then
    say "These Debian packages are missing, and only root can install them:"
    say "  apt-get install --no-install-recommends $missing"
    say "etcd-server starts a service of its own when it is installed; weft needs only the program:"
    say "  systemctl disable --now etcd"
    exit 1
  fi
  if ! command -v apt-get >/dev/null 2>&1; then
    say "This machine has no apt-get. Install by hand, under your system's names: $missing"
    exit 1
  fi
  say "setup: apt-get install $missing"
  # A package that is being installed asks policy-rc.d whether it may start its service: 101 says no. Debian's
  # etcd-server would otherwise occupy ports 2379 and 2380 of the machine. A policy that is there stays in force.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM
  fi
  fresh_etcd=no
  case " $missing" in *' etcd-server '*) fresh_etcd=yes ;; esac
  DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  # It was not started now; it shall not be started at the next boot either. A service that was there before is not ours.
  if [ $fresh_etcd = yes ] && command -v systemctl >/dev/null 2>&1; then
    systemctl disable etcd.service >/dev/null 2>&1 || say "setup: etcd.service could not be disabled; it may start at the next boot"
  fi
  trap - EXIT INT TERM
  [ "$(cat $policy 2>/dev/null)" = "$(printf '#!/bin/sh\nexit 101\n')" ] && rm -f $policy
  missing=$(missing_packages)
  [ -z "$missing" ] && return 0
  say "Still missing after the installation: $missing"
  exit 1
}
