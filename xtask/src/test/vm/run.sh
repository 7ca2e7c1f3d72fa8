#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs what lies beside it, on whatever kernel this is, one test program after the other.
# `plan` has a line for each process: the program, the name of its one test or `-` for all of those in
# the file `PROGRAM.names`, and how long it may take.
cd "$(dirname "$0")" || exit 1
export LB_AGENT="$PWD/lb-agent" LB_REQUIRE_BPF=1 LB_SLOW=@SLOW@ @ENVIRONMENT@
uptime() { cut -d ' ' -f 1 /proc/uptime; }
echo "VM-UP $(uptime) $(uname -r)"
features=$(./lb-agent doctor -o json 2> /dev/null | tr -d '\n')
echo "VM-DOCTOR $features"
while read -r program name limit; do
    begin=$(uptime)
    if [ "$name" = - ]; then
        echo "VM-BEGIN $program -"
        # shellcheck disable=SC2046
        timeout -s KILL "$limit" "./$program" --test-threads 2 --exact $(cat "$program.names") < /dev/null 2>&1
    else
        echo "VM-BEGIN $program $name"
        timeout -s KILL "$limit" "./$program" --exact "$name" --nocapture < /dev/null 2>&1
    fi
    echo "VM-RESULT $program $name $? $begin $(uptime)"
done < plan
