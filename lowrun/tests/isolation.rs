//! What the program in a container finds: identity, privileges, namespaces, limits.

mod stage;

use std::os::unix::fs::MetadataExt;

use serde_json::json;
use stage::{Stage, eventually, stage};

fn status_fields(stage: &Stage, prefix: &str) -> Vec<String> {
    let lines = stage.output();
    lines.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn capabilities_are_exactly_those_of_the_spec() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["cat", "/proc/self/status"]);
    let zero = "0000000000000000";
    let three = "0000000020000420";
    let fields = |inherited, permitted, effective, bounding| {
        vec![
            format!("CapInh:\t{inherited}"),
            format!("CapPrm:\t{permitted}"),
            format!("CapEff:\t{effective}"),
            format!("CapBnd:\t{bounding}"),
            format!("CapAmb:\t{zero}"),
        ]
    };
    assert_eq!(status_fields(&stage, "Cap"), fields(zero, three, three, three));
    stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    // Nothing of it survives execve for another user.
    assert_eq!(status_fields(&stage, "Cap"), fields(zero, zero, zero, three));
    stage.config["process"]["capabilities"] = json!({});
    stage.config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    assert_eq!(status_fields(&stage, "Cap"), fields(zero, zero, zero, zero));
}

#[test]
fn ambient_capabilities_reach_another_user() {
    let Some(mut stage) = stage() else { return };
    let set = ["CAP_NET_BIND_SERVICE"];
    stage.config["process"]["capabilities"] =
        json!({ "bounding": set, "effective": set, "permitted": set, "inheritable": set, "ambient": set });
    stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    stage.args(&["grep", "CapEff", "/proc/self/status"]);
    assert_eq!(stage.output(), "CapEff:\t0000000000000400\n");
}

#[test]
fn an_ambient_set_without_an_inheritable_one_is_passed_over_in_silence() {
    let Some(mut stage) = stage() else { return };
    let set = ["CAP_KILL", "CAP_CHOWN"];
    let sections = |inheritable: &[&str]| json!({ "bounding": set, "effective": set, "permitted": set, "inheritable": inheritable, "ambient": set });
    stage.args(&["grep", "CapAmb", "/proc/self/status"]);
    stage.config["process"]["capabilities"] = sections(&["CAP_KILL"]);
    let warned = stage.run().ok();
    assert_eq!(warned.out, "CapAmb:\t0000000000000020\n");
    assert!(warned.err.contains("can't raise ambient capability CAP_CHOWN: "), "{}", warned.err);
    // As Buildah 1.28 asks for it with every step of a build.
    stage.config["process"]["capabilities"] = sections(&[]);
    let silent = stage.run().ok();
    assert_eq!((silent.out.as_str(), silent.err.as_str()), ("CapAmb:\t0000000000000000\n", ""));
}

#[test]
fn exec_has_no_more_privilege_than_the_container() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["capabilities"] = json!({});
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let seen = stage.exec("grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status").ok().out;
    let zeros = seen.lines().filter(|line| line.starts_with("Cap")).all(|line| line.ends_with("\t0000000000000000"));
    assert!(zeros && seen.contains("NoNewPrivs:\t1"), "{seen}");
    stage.delete();
}

#[test]
fn user_groups_and_umask_are_set() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27 });
    stage.script("id -u; id -g; id -G; umask; echo $HOME");
    assert_eq!(stage.output(), "1000\n1001\n1001 5 6\n0027\n/home/u\n");
}

#[test]
fn limits_of_the_process_are_set() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 64, "hard": 128 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ]);
    stage.config["process"]["oomScoreAdj"] = json!(321);
    stage.script("ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj");
    assert_eq!(stage.output(), "64\n128\n0\n321\n");
}

#[test]
fn no_new_privs_is_as_asked() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["grep", "NoNewPrivs", "/proc/self/status"]);
    assert_eq!(stage.output(), "NoNewPrivs:\t1\n");
    stage.config["process"]["noNewPrivileges"] = json!(false);
    assert_eq!(stage.output(), "NoNewPrivs:\t0\n");
}

#[test]
fn namespaces_are_new_joined_or_shared() {
    let Some(mut stage) = stage() else { return };
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    stage.namespace("cgroup", Some(""));
    stage.namespace("time", None);
    stage.script("for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done");
    let seen = stage.output();
    let seen: Vec<&str> = seen.lines().collect();
    for (index, kind) in ["mnt", "pid", "net", "ipc", "uts", "cgroup"].into_iter().enumerate() {
        assert_ne!(seen[index], own(kind));
    }
    assert_eq!(seen[6], own("user"), "a namespace that is not named is shared");
}

#[test]
fn a_network_namespace_is_joined_by_path() {
    let Some(mut first) = stage() else { return };
    let Some(mut second) = stage() else { return };
    first.script("while :; do sleep 0.05; done");
    first.detached();
    let pid = first.state()["pid"].to_string();
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
        second.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")));
    }
    second.script("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; echo $$; ps | grep -c 'while :'");
    let seen = second.output();
    let lines: Vec<&str> = seen.lines().collect();
    for (line, kind) in lines.iter().zip(["net", "ipc", "uts", "pid"]) {
        let expected = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(*line, expected.to_str().unwrap());
    }
    assert_ne!(lines[4], "1");
    first.delete();
}

#[test]
fn a_new_network_namespace_has_its_loopback_up() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["ip", "addr", "show", "lo"]);
    let seen = stage.output();
    assert!(seen.contains("127.0.0.1/8") && seen.contains("UP"), "{seen}");
}

#[test]
fn host_and_domain_name_are_the_containers() {
    let Some(mut stage) = stage() else { return };
    if stage.is_ours() {
        stage.config["domainname"] = json!("example.test");
    }
    stage.script("hostname; cat /proc/sys/kernel/domainname");
    let seen = stage.output();
    assert!(seen.starts_with("staged\n"), "{seen}");
    assert!(!stage.is_ours() || seen.ends_with("example.test\n"), "{seen}");
}

#[test]
fn sysctl_is_set_in_the_containers_namespaces() {
    let Some(mut stage) = stage() else { return };
    let host = std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    stage.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.shmmni": "97" });
    stage.script("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni");
    assert_eq!(stage.output(), "1\n97\n");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), host);
    stage.config["linux"]["sysctl"] = json!({ "vm.swappiness": "1" });
    assert_eq!(stage.run().status, 1);
    stage.is_clean();
    stage.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    stage.namespace("network", Some("/proc/self/ns/net"));
    stage.run().fails(1, "host network namespace");
    stage.is_clean();
}

#[test]
fn seccomp_denies_and_goes_for_exec_too() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
            { "names": ["sethostname"], "action": "SCMP_ACT_ERRNO" },
        ],
    });
    for no_new_privileges in [true, false] {
        stage.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        stage.script("mkdir /tmp/x; grep Seccomp: /proc/self/status");
        let outcome = stage.run().ok();
        assert!(outcome.err.contains("Operation not supported"), "{outcome:?}");
        assert_eq!(outcome.out, "Seccomp:\t2\n");
    }
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let outcome = stage.exec("mkdir /tmp/x; grep Seccomp: /proc/self/status");
    assert!(outcome.err.contains("Operation not supported") && outcome.out.contains("\t2"), "{outcome:?}");
    stage.delete();
}

#[test]
fn calls_newer_than_the_profile_are_enosys() {
    let Some(mut stage) = stage() else { return };
    // Everything up to a number of long ago; statx and faccessat2 are newer, and busybox falls back on ENOSYS only.
    let names: Vec<String> = allowed_calls();
    stage.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
    });
    stage.script("echo alive");
    assert_eq!(stage.output(), "alive\n");
}

/// Names of old calls that a shell, and a runtime on its last steps, needs.
fn allowed_calls() -> Vec<String> {
    let text = "read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask \
        rt_sigreturn ioctl pread64 access pipe select sched_yield mremap dup dup2 nanosleep getpid clone fork vfork \
        execve exit wait4 kill uname fcntl getcwd chdir umask getrlimit getuid getgid setuid setgid geteuid getegid \
        setpgid getppid getpgrp setsid setgroups setresuid setresgid capget capset arch_prctl prctl gettid futex \
        getdents64 set_tid_address exit_group openat newfstatat readlinkat faccessat set_robust_list dup3 pipe2 \
        prlimit64 getrandom execveat readlink close_range epoll_pwait epoll_ctl epoll_create1 tgkill madvise sigaltstack \
        rseq sendmsg recvmsg sendto recvfrom socket connect fchown getsockopt setsockopt getpeername getsockname \
        getpgid sched_getaffinity clone3 nanosleep clock_gettime clock_nanosleep restart_syscall pidfd_open waitid fstatfs \
        statfs eventfd2 fchdir setregid setreuid fsetxattr unlinkat timer_create timer_settime timer_delete getgroups";
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn masked_and_protected_paths_hide_and_refuse() {
    let Some(mut stage) = stage() else { return };
    std::fs::create_dir_all(stage.rootfs().join("secret/dir")).unwrap();
    std::fs::write(stage.rootfs().join("secret/file"), "secret\n").unwrap();
    std::fs::write(stage.rootfs().join("secret/dir/file"), "secret\n").unwrap();
    std::fs::write(stage.rootfs().join("etc/fixed"), "fixed\n").unwrap();
    stage.config["linux"]["maskedPaths"] =
        json!(["/secret/file", "/secret/dir", "/proc/kcore", "/missing", "/sys/firmware"]);
    stage.config["linux"]["readonlyPaths"] = json!(["/etc/fixed", "/proc/sys", "/missing"]);
    stage.script(
        "cat /secret/file; ls /secret/dir; cat /proc/kcore; ls /sys/firmware; \
         (echo x > /etc/fixed) 2>/dev/null || echo kept; (touch /secret/dir/x) 2>/dev/null || echo empty; \
         (echo x > /proc/sys/kernel/shmmax) 2>/dev/null || echo closed; stat -c '%F %t:%T' /secret/file",
    );
    assert_eq!(stage.output(), "kept\nempty\nclosed\ncharacter special file 1:3\n");
}

#[test]
fn devices_are_the_usual_ones_and_those_of_the_spec() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["devices"] = json!([
        { "path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4 },
        { "path": "/dev/sub/pipe", "type": "p", "fileMode": 0o622 },
        { "path": "/dev/block", "type": "b", "major": 7, "minor": 99 },
    ]);
    stage.script(
        "cd /dev; stat -c '%n %F %t:%T %a %u:%g' null zero full random urandom tty own sub/pipe block; \
         for l in ptmx fd stdin; do readlink $l; done; head -c 3 zero | wc -c; (head -c 1 block) 2>/dev/null || echo denied",
    );
    let seen = stage.output();
    for line in [
        "null character special file 1:3 666 0:0",
        "zero character special file 1:5 666 0:0",
        "full character special file 1:7 666 0:0",
        "random character special file 1:8 666 0:0",
        "urandom character special file 1:9 666 0:0",
        "tty character special file 5:0 666 0:0",
        "own character special file 1:5 640 3:4",
        "sub/pipe fifo 0:0 622 0:0",
        "block block special file 7:63 666 0:0",
        "pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n3\ndenied",
    ] {
        assert!(seen.contains(line), "{line:?} is not in {seen}");
    }
}

#[test]
fn no_descriptor_of_the_host_is_open() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc hands pipes instead of its stdin") {
        return;
    }
    stage.script("for f in /proc/self/fd/*; do [ -e $f ] && echo fd ${f##*/}; done; stat -c %d /dev/null; stat -Lc %d /proc/self/fd/0");
    let seen = stage.output();
    let numbers: Vec<u32> = seen.lines().filter_map(|line| line.strip_prefix("fd ")?.parse().ok()).collect();
    assert!(numbers.iter().all(|number| *number < 3), "{seen}");
    // Its stdin was the host's null device: now it is the container's.
    let devices: Vec<&str> = seen.lines().filter(|line| !line.contains(' ')).collect();
    assert_eq!(devices[0], devices[1], "{seen}");
    assert_ne!(devices[0], std::fs::metadata("/dev/null").unwrap().dev().to_string());
}

#[test]
fn the_environment_is_that_of_the_spec() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["env"] = json!(["PATH=/bin", "A=1", "A=2", "B=x=y"]);
    stage.args(&["env"]);
    let seen = stage.output();
    let mut lines: Vec<&str> = seen.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=2", "B=x=y", "HOME=/root", "PATH=/bin"]);
}

#[test]
fn a_missing_working_directory_is_made_and_a_forbidden_one_told() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["cwd"] = json!("/made/by/runtime");
    stage.args(&["pwd"]);
    assert_eq!(stage.output(), "/made/by/runtime\n");
    std::fs::write(stage.rootfs().join("file"), "").unwrap();
    stage.config["process"]["cwd"] = json!("/file");
    assert_eq!(stage.run().status, 1);
    stage.is_clean();
}

#[test]
fn a_user_namespace_maps_root_to_somebody_else() {
    let Some(mut stage) = stage() else { return };
    stage.namespace("user", Some(""));
    let map = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    stage.config["linux"]["uidMappings"] = map.clone();
    stage.config["linux"]["gidMappings"] = map;
    stage.own_rootfs(200_000);
    stage.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 99 }]);
    stage.script(
        "id -u; cat /proc/self/uid_map; touch /tmp/made; ulimit -n; echo x > /dev/null; hostname; ls -ln /dev/null",
    );
    let seen = stage.output();
    assert!(seen.starts_with("0\n") && seen.contains("200000      65536") && seen.contains("\n99\nstaged\n"), "{seen}");
    assert_eq!(std::fs::metadata(stage.rootfs().join("tmp/made")).unwrap().uid(), 200_000);
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let pid = stage.state()["pid"].to_string();
    assert_eq!(std::fs::metadata(format!("/proc/{pid}/root")).map_or(200_000, |m| m.uid()), 200_000);
    let outcome = stage.exec("id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user").ok().out;
    let lines: Vec<&str> = outcome.lines().collect();
    assert_eq!((lines[0], lines[1]), ("0", lines[2]));
    stage.delete();
}

#[test]
fn a_user_namespace_can_be_joined_with_others() {
    let Some(mut first) = stage() else { return };
    let Some(mut second) = stage() else { return };
    let map = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    for stage in [&mut first, &mut second] {
        stage.namespace("user", Some(""));
        stage.config["linux"]["uidMappings"] = map.clone();
        stage.config["linux"]["gidMappings"] = map.clone();
        stage.own_rootfs(200_000);
    }
    first.script("while :; do sleep 0.05; done");
    first.detached();
    let pid = first.state()["pid"].to_string();
    for (kind, file) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        second.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")));
    }
    second.config["linux"]["uidMappings"] = json!(null);
    second.config["linux"]["gidMappings"] = json!(null);
    second.script("id -u; for n in user net ipc; do readlink /proc/self/ns/$n; done");
    let seen = second.output();
    let expected = |kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string();
    assert_eq!(seen, format!("0\n{}\n{}\n{}\n", expected("user"), expected("net"), expected("ipc")));
    first.delete();
}

#[test]
fn a_time_namespace_has_its_offsets() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("needs runc 1.2") {
        return;
    }
    stage.namespace("time", Some(""));
    stage.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000, "nanosecs": 0 } });
    stage.script("cat /proc/uptime; readlink /proc/self/ns/time");
    let seen = stage.output();
    let uptime: f64 = seen.split_whitespace().next().unwrap().parse().unwrap();
    assert!(uptime > 1e9, "{seen}");
    assert_ne!(seen.lines().last().unwrap(), std::fs::read_link("/proc/self/ns/time").unwrap().to_str().unwrap());
}

#[test]
fn a_container_that_shares_pids_is_killed_whole() {
    let Some(mut stage) = stage() else { return };
    stage.namespace("pid", None);
    stage.script("sleep 1000 & sleep 1000 & wait");
    stage.detached();
    eventually("three processes", || {
        let pids: Vec<i32> = serde_json::from_str(&stage.call(&["ps", "-f", "json", stage.id()]).ok().out).unwrap();
        pids.len() == 3
    });
    stage.delete();
    stage.is_clean();
}

#[test]
fn personality_and_scheduler_are_set() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("needs runc 1.2") {
        return;
    }
    stage.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    stage.config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    stage.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    stage.script("cat /proc/self/personality; cut -d' ' -f19,41 /proc/self/stat; uname -m");
    std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin/cut")).unwrap();
    std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin/uname")).unwrap();
    let seen = stage.output();
    assert!(seen.starts_with("00000008\n5 3\n"), "{seen}");
}
