// SPDX-License-Identifier: MIT OR Apache-2.0
//! A filter of system calls like the one that container runtimes have as their default.
//!
//! Theirs lists what is allowed; this one lists what theirs leaves out of today's system calls, which
//! depends on capabilities as theirs does: `bpf` is for holders of `BPF` (from late releases of containerd 1.6, and Docker 23, on).
//! **Invariant:** what is refused is answered as there: EPERM, and ENOSYS for clone3, after which
//! libraries take clone. Read next: `mod.rs`.

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, ENOSYS, EPERM, c_long,
    sock_filter,
};

use super::capability::Capabilities;

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
/// Offsets within `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
/// The flags of clone that make namespaces.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// System calls that are refused, unless one of these capabilities is held.
const REFUSED: &[(&[&str], &[c_long])] = &[
    (
        &[],
        &[
            libc::SYS_add_key,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_io_uring_setup,
            libc::SYS_kexec_load,
            libc::SYS_keyctl,
            libc::SYS_migrate_pages,
            libc::SYS_move_pages,
            libc::SYS_nfsservctl,
            libc::SYS_pivot_root,
            libc::SYS_request_key,
            libc::SYS_swapoff,
            libc::SYS_swapon,
            libc::SYS_userfaultfd,
        ],
    ),
    (&["BPF", "SYS_ADMIN"], &[libc::SYS_bpf]),
    (&["PERFMON", "SYS_ADMIN"], &[libc::SYS_perf_event_open]),
    (
        &["SYS_ADMIN"],
        &[
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_quotactl,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    (&["DAC_READ_SEARCH"], &[libc::SYS_open_by_handle_at]),
    (&["SYS_BOOT"], &[libc::SYS_reboot]),
    (&["SYS_CHROOT"], &[libc::SYS_chroot]),
    (
        &["SYS_MODULE"],
        &[
            libc::SYS_delete_module,
            libc::SYS_finit_module,
            libc::SYS_init_module,
        ],
    ),
    (
        &["SYS_NICE"],
        &[
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
        ],
    ),
    (&["SYS_PACCT"], &[libc::SYS_acct]),
    (&["SYS_PTRACE"], &[libc::SYS_kcmp]),
    (
        &["SYS_TIME"],
        &[libc::SYS_clock_settime, libc::SYS_settimeofday],
    ),
    (&["SYS_TTY_CONFIG"], &[libc::SYS_vhangup]),
    (&["SYSLOG", "SYS_ADMIN"], &[libc::SYS_syslog]),
];

/// A program for the kernel to run before each system call.
#[derive(Debug)]
pub(super) struct Filter(Vec<sock_filter>);

impl Filter {
    /// The filter for a container that holds these capabilities.
    pub(super) fn for_container(held: Capabilities) -> Self {
        let (eperm, enosys) = (refuse(EPERM), refuse(ENOSYS));
        let mut program = vec![
            load(ARCH),
            jump(BPF_JEQ, ARCHITECTURE, 1, 0),
            // Another instruction set has other numbers.
            answer(libc::SECCOMP_RET_KILL_PROCESS),
            load(NUMBER),
        ];
        let refused = REFUSED.iter().filter(|(by, _)| !held.any(by));
        for number in refused.flat_map(|(_, numbers)| *numbers) {
            program.extend([jump(BPF_JEQ, syscall(*number), 0, 1), answer(eperm)]);
        }
        if !held.any(&["SYS_ADMIN"]) {
            program.extend([
                jump(BPF_JEQ, syscall(libc::SYS_clone3), 0, 1),
                answer(enosys),
                jump(BPF_JEQ, syscall(libc::SYS_clone), 0, 3),
                load(FIRST_ARGUMENT),
                jump(BPF_JSET, NAMESPACES.cast_unsigned(), 0, 1),
                answer(eperm),
            ]);
        }
        program.push(answer(libc::SECCOMP_RET_ALLOW));
        Self(program)
    }

    /// Puts it over this thread and all that it starts, for good. System calls and nothing else.
    pub(super) fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).unwrap_or(u16::MAX),
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads the program, which lives as long as `self`, and copies it.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "every code of the classic instruction set has fewer than 16 bits"
)]
const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

const fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

const fn jump(condition: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(BPF_JMP | condition | BPF_K, then, otherwise, value)
}

const fn answer(what: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, 0, 0, what)
}

const fn refuse(errno: libc::c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "system calls have small numbers"
)]
const fn syscall(number: c_long) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a system call with this first argument.
    fn judge(filter: &Filter, number: c_long, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let now = filter.0[at];
            at += 1;
            let code = u32::from(now.code);
            if code == BPF_RET | BPF_K {
                return now.k;
            }
            let holds = match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => {
                    value = match now.k {
                        NUMBER => syscall(number),
                        ARCH => ARCHITECTURE,
                        _ => argument,
                    };
                    continue;
                }
                _ if code == BPF_JMP | BPF_JEQ | BPF_K => value == now.k,
                _ => value & now.k != 0,
            };
            at += usize::from(if holds { now.jt } else { now.jf });
        }
    }

    #[test]
    fn capabilities_open_what_they_are_for_and_nothing_else() {
        let held = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            Filter::for_container(Capabilities::named(&names).unwrap())
        };
        let (none, ours, admin) = (held(&[]), held(&["BPF"]), held(&["SYS_ADMIN"]));
        let (allow, eperm) = (libc::SECCOMP_RET_ALLOW, refuse(EPERM));
        for (number, argument, expected) in [
            (libc::SYS_read, 0, [allow; 3]),
            (libc::SYS_bpf, 0, [eperm, allow, allow]),
            (libc::SYS_setns, 0, [eperm, eperm, allow]),
            (libc::SYS_reboot, 0, [eperm; 3]),
            (libc::SYS_clone, 0, [allow; 3]),
            (
                libc::SYS_clone,
                libc::CLONE_NEWUSER.cast_unsigned(),
                [eperm, eperm, allow],
            ),
            (libc::SYS_clone3, 0, [refuse(ENOSYS), refuse(ENOSYS), allow]),
        ] {
            let answers = [&none, &ours, &admin].map(|filter| judge(filter, number, argument));
            assert_eq!(answers, expected, "{number} {argument:#x}");
        }
    }
}
