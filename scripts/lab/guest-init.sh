#!/bin/sh
# The first process of a lab guest: makes of the machine's own files, which it can't change, a root of its own, and runs
# `run` of the directory that it shares with the script outside. `started` and `status` there tell how far it came.
set -u
shared=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

# Nothing may outlive a guest: whatever fails, it ends.
end() {
  sync
  mount -o remount,ro /mnt/shared 2>/dev/null
  echo o >/proc/sysrq-trigger
  # The kernel is gone within a second; if not, the death of this process ends it.
  sleep 10
}

mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/shared /mnt/upper /mnt/work /mnt/root
mount -t hostfs -o "$shared" none /mnt/shared
modules=$(dirname "$(find /usr/lib/uml/modules -maxdepth 2 -path "*/$(uname -r)/modules.dep")")
stty -onlcr 2>/dev/null
insmod "$modules/kernel/fs/overlayfs/overlay.ko" &&
  mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root &&
  cd /mnt/root &&
  mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t devtmpfs devtmpfs dev && mount -t tmpfs tmpfs run &&
  mkdir -p lib/modules run/lock/lvm run/lvm run/shared dev/shm dev/pts &&
  ln -sfn "$modules" "lib/modules/$(uname -r)" &&
  mount --bind /mnt/shared run/shared &&
  ln -sfn /proc/self/fd dev/fd && ln -sfn fd/0 dev/stdin && ln -sfn fd/1 dev/stdout && ln -sfn fd/2 dev/stderr ||
  end
ip link set lo up
# What the kernel has to complain of comes out, what it only mentions doesn't.
echo 4 >/proc/sys/kernel/printk
: >/mnt/shared/started
echo "weft-lab: begins"
chroot . /bin/sh /run/shared/run
echo $? >/mnt/shared/status
echo "weft-lab: ends"
end
