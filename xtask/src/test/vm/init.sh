#!/bin/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The first process of the machine: mounts, modules, the tests, off.
# Lines that begin with `VM-` are for the task that started the machine; report.rs reads them.
export PATH=/sbin:/bin HOME=/
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
# Followed from the start: the kernel keeps only so much, and tests make it say a lot. Whoever reads too
# slowly is thrown out, and begins again with what there is.
while :; do
    cat /dev/kmsg
    sleep 1
done >> /tmp/kmsg 2> /dev/null &
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
while read -r module; do
    insmod "/modules/$module" || echo "VM-BROKEN insmod $module"
done < /modules/list
ip link set lo up
sh /tests/run.sh
# Each sentence once, without what the one or the other way of reading puts in front of it.
{ cat /tmp/kmsg; dmesg; } | sed -e 's/^[0-9]*,[0-9]*,[0-9]*,[^;]*;//' -e 's/^\[ *[0-9.]*\] //' |
    grep -E 'WARNING:|BUG:|Oops|Call Trace|general protection fault|unregister_netdevice: waiting for' |
    awk '!seen[$0]++' | while read -r line; do
        echo "VM-BROKEN $line"
    done
echo "VM-END $(cut -d ' ' -f 1 /proc/uptime)"
poweroff -f
