#!/bin/sh
# The first process of one host of a cluster on this machine: starts the host's services, and takes leave of what
# they leave behind (etcd is a grandchild: the agent starts it detached).
#
#   host-init.sh SERVICES      a shell fragment that starts each service in the background
#
# Must always hold: when it dies, everything of the host dies with it. In a PID namespace the kernel sees to that.
. "$1"
# Waiting for a child that never ends collects all the others, adopted ones included.
sleep infinity &
wait $!
