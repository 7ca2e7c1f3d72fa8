#!/bin/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The first process of the machine: mounts, modules, one test after the other, off.
# Lines that begin with `VM-` are for the task that started the machine; report.rs reads them.
export PATH=/sbin:/bin HOME=/ LB_AGENT=/tests/lb-agent LB_REQUIRE_BPF=1 LB_SLOW=@SLOW@ RUST_BACKTRACE=1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
uptime() { cut -d ' ' -f 1 /proc/uptime; }
while read -r module; do
    insmod "/modules/$module" || echo "VM-BROKEN insmod $module"
done < /modules/list
ip link set lo up
echo "VM-UP $(uptime) $(uname -r)"
cd /tests
while read -r program name; do
    echo "VM-BEGIN $program $name"
    begin=$(uptime)
    timeout -s KILL @LIMIT@ "./$program" --exact "$name" --nocapture < /dev/null 2>&1
    echo "VM-RESULT $program $name $? $begin $(uptime)"
done < /tests/list
dmesg | grep -E 'WARNING:|BUG:|Oops|Call Trace' | while read -r line; do
    echo "VM-BROKEN $line"
done
echo "VM-END $(uptime)"
poweroff -f
