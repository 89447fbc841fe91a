//! The default seccomp profile, as a table.
//!
//! It allows what Docker's default allows (the names are the kernel's), with one difference: `socketcall` cannot make a
//! socket. Argument filters cannot look behind its pointer, so a 32-bit program would reach AF_ALG and AF_VSOCK through
//! it, which the rules for `socket` close. 32-bit programs that were built for kernels before 4.3 want a profile of their
//! own.
//!
//! What is not named fails with EPERM. Not named are, for good reasons: `keyctl` and its kin (keyrings have no namespace),
//! `io_uring_setup`, `userfaultfd`, `kexec_load`, `swapon`, and, without the capability that each needs anyway, the calls
//! that make namespaces and mounts.

use super::seccomp::{Condition, Kernel, Op, Rule, Verdict};

/// `CLONE_NEW*` of all namespaces but the time namespace, whose bit clone(2) gives another meaning.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// `SYS_SOCKET` of socketcall(2).
const SOCKETCALL_SOCKET: u64 = 1;
const ENOSYS: u32 = 38;

const fn allow(names: &'static [&'static str]) -> Rule {
    Rule { names, verdict: Verdict::Allow, args: &[], condition: Condition::ALWAYS }
}

const fn allow_if(args: &'static [(u32, Op, u64)], names: &'static [&'static str]) -> Rule {
    Rule { args, ..allow(names) }
}

const fn on(arches: &'static [&'static str], names: &'static [&'static str]) -> Rule {
    Rule { condition: Condition { arches, ..Condition::ALWAYS }, ..allow(names) }
}

const fn with(cap: &'static [&'static str], names: &'static [&'static str]) -> Rule {
    Rule { condition: Condition { caps: cap, ..Condition::ALWAYS }, ..allow(names) }
}

/// Holds where the container lacks CAP_SYS_ADMIN.
const UNPRIVILEGED: Condition = Condition { not_caps: &["CAP_SYS_ADMIN"], ..Condition::ALWAYS };

/// The rules, in no order that matters.
pub(super) const RULES: &[Rule] = &[
    allow(&[
        "_llseek", "_newselect", "accept", "accept4", "access", "adjtimex", "alarm", "bind", "brk", "cachestat",
        "capget", "capset", "chdir", "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64", "clock_getres",
        "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64",
        "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create",
        "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old",
        "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64",
        "fadvise64_64", "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown",
        "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork",
        "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
        "ftruncate64", "futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake",
        "futimesat", "get_robust_list", "get_thread_area", "getcpu", "getcwd", "getdents", "getdents64", "getegid",
        "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getitimer",
        "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid",
        "getresgid32", "getresuid", "getresuid32", "getrlimit", "getrusage", "getsid", "getsockname", "getsockopt",
        "gettid", "gettimeofday", "getuid", "getuid32", "getxattr", "getxattrat", "inotify_add_watch",
        "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents",
        "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "ioctl", "ioprio_get", "ioprio_set", "ipc",
        "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown", "lchown32",
        "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr",
        "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "madvise", "map_shadow_stack", "membarrier",
        "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2",
        "mlockall", "mmap", "mmap2", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
        "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "mremap", "mseal", "msgctl",
        "msgget", "msgrcv", "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep",
        "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe", "pipe2",
        "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "ppoll_time64", "prctl", "pread64", "preadv",
        "preadv2", "prlimit64", "process_mrelease", "pselect6", "pselect6_time64", "pwrite64", "pwritev", "pwritev2",
        "read", "readahead", "readlink", "readlinkat", "readv", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64",
        "recvmsg", "remap_file_pages", "removexattr", "removexattrat", "rename", "renameat", "renameat2",
        "restart_syscall", "riscv_hwprobe", "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
        "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
        "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
        "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
        "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
        "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send",
        "sendfile", "sendfile64", "sendmmsg", "sendmsg", "sendto", "set_robust_list", "set_thread_area",
        "set_tid_address", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups",
        "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32", "setresgid", "setresgid32",
        "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid", "setsockopt", "setuid",
        "setuid32", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack",
        "signalfd", "signalfd4", "sigprocmask", "sigreturn", "socketpair", "splice", "stat", "stat64", "statfs",
        "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo",
        "tee", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
        "timer_gettime64", "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime",
        "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "times", "tkill", "truncate", "truncate64",
        "ugetrlimit", "umask", "uname", "unlink", "unlinkat", "uretprobe", "utime", "utimensat", "utimensat_time64",
        "utimes", "vfork", "vmsplice", "wait4", "waitid", "waitpid", "write", "writev",
    ]),
    // From 4.8 on a tracer cannot get around seccomp (kernel commit 93e35efb8de4).
    Rule {
        condition: Condition { min_kernel: Some(Kernel { major: 4, minor: 8 }), ..Condition::ALWAYS },
        ..allow(&["process_vm_readv", "process_vm_writev", "ptrace"])
    },
    allow_if(&[(0, Op::Less, AF_ALG)], &["socket"]),
    allow_if(&[(0, Op::Equal, AF_ALG + 1)], &["socket"]),
    allow_if(&[(0, Op::Greater, AF_VSOCK)], &["socket"]),
    allow_if(&[(0, Op::NotEqual, SOCKETCALL_SOCKET)], &["socketcall"]),
    // PER_LINUX, PER_LINUX32, both with UNAME26, and the question what it is.
    allow_if(&[(0, Op::Equal, 0x0)], &["personality"]),
    allow_if(&[(0, Op::Equal, 0x8)], &["personality"]),
    allow_if(&[(0, Op::Equal, 0x2_0000)], &["personality"]),
    allow_if(&[(0, Op::Equal, 0x2_0008)], &["personality"]),
    allow_if(&[(0, Op::Equal, 0xffff_ffff)], &["personality"]),
    on(&["ppc64le"], &["sync_file_range2", "swapcontext"]),
    on(
        &["arm", "arm64"],
        &["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"],
    ),
    on(&["amd64", "x32"], &["arch_prctl"]),
    on(&["amd64", "x32", "x86"], &["modify_ldt"]),
    on(&["s390", "s390x"], &["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"]),
    on(&["riscv64"], &["riscv_flush_icache"]),
    with(&["CAP_DAC_READ_SEARCH"], &["open_by_handle_at"]),
    with(
        &["CAP_SYS_ADMIN"],
        &[
            "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
            "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr", "move_mount",
            "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog",
            "umount", "umount2", "unshare",
        ],
    ),
    Rule {
        condition: Condition { not_arches: &["s390", "s390x"], ..UNPRIVILEGED },
        ..allow_if(&[(0, Op::MaskedEqual(NEW_NAMESPACES), 0)], &["clone"])
    },
    // There the first two parameters of clone(2) are the other way round.
    Rule {
        condition: Condition { arches: &["s390", "s390x"], ..UNPRIVILEGED },
        ..allow_if(&[(1, Op::MaskedEqual(NEW_NAMESPACES), 0)], &["clone"])
    },
    // Its flags lie behind a pointer; glibc falls back to clone(2) when it does not exist.
    Rule { names: &["clone3"], verdict: Verdict::Errno(ENOSYS), args: &[], condition: UNPRIVILEGED },
    with(&["CAP_SYS_BOOT"], &["reboot"]),
    with(&["CAP_SYS_CHROOT"], &["chroot"]),
    with(&["CAP_SYS_MODULE"], &["delete_module", "init_module", "finit_module"]),
    with(&["CAP_SYS_PACCT"], &["acct"]),
    with(
        &["CAP_SYS_PTRACE"],
        &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"],
    ),
    with(&["CAP_SYS_RAWIO"], &["iopl", "ioperm"]),
    with(&["CAP_SYS_TIME"], &["settimeofday", "stime", "clock_settime", "clock_settime64"]),
    with(&["CAP_SYS_TTY_CONFIG"], &["vhangup"]),
    with(&["CAP_SYS_NICE"], &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    with(&["CAP_SYSLOG"], &["syslog"]),
    with(&["CAP_BPF"], &["bpf"]),
    with(&["CAP_PERFMON"], &["perf_event_open"]),
];
