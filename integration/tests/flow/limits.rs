//! Memory, processors, processes, ulimits: what the kernel is told, and that it holds.

use integration::flow;

/// A script that shows the value of a controller's file of its own cgroup, on version 1 and on version 2.
fn show(v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")
}

#[test]
fn a_memory_limit_is_set() {
    flow(|s| {
        let script = show("memory/memory.limit_in_bytes", "memory.max");
        assert_eq!(s.text(&["run", "--rm", "--memory", "64m", s.busybox(), "sh", "-c", &script]), "67108864");
        assert_eq!(s.text(&["run", "--rm", "-m", "100000k", s.busybox(), "sh", "-c", &script]), "102400000");
    });
}

#[test]
fn who_exceeds_the_memory_limit_is_killed() {
    flow(|s| {
        let script = "dd if=/dev/zero of=/dev/null bs=200M count=1";
        let id = s.text(&["create", "--memory", "16m", s.busybox(), "sh", "-c", &format!("exec {script}")]);
        s.run(&["start", "-a", &id]).code(137);
        assert_eq!(s.inspect(&id, "{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 137");
        s.run(&["run", "--rm", s.busybox(), "true"]).ok();
    });
}

#[test]
fn a_share_of_the_processors() {
    flow(|s| {
        let script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max";
        let text = s.text(&["run", "--rm", "--cpus", "0.5", s.busybox(), "sh", "-c", script]).replace('\n', " ");
        assert_eq!(text, "50000 100000");
    });
}

#[test]
fn a_number_of_processes() {
    flow(|s| {
        let script = show("pids/pids.max", "pids.max");
        assert_eq!(s.text(&["run", "--rm", "--pids-limit", "20", s.busybox(), "sh", "-c", &script]), "20");
        let fork = "for n in $(seq 40); do sleep 5 & done 2>/dev/null; echo unreached";
        let out = s.run(&["run", "--rm", "--pids-limit", "10", s.busybox(), "sh", "-c", fork]);
        assert!(out.code != 0 || !out.errors().is_empty(), "40 processes fitted into 10");
    });
}

#[test]
fn limits_that_cannot_be() {
    flow(|s| {
        for wrong in
            [["--memory", "1m"], ["--memory", "lots"], ["--cpus", "-1"], ["--cpus", "many"], ["--pids-limit", "x"]]
        {
            let out = s.run(&["run", "--rm", wrong[0], wrong[1], s.busybox(), "true"]);
            assert_eq!(out.code, 125, "{wrong:?}: {}", out.errors());
        }
    });
}

#[test]
fn ulimits() {
    flow(|s| {
        let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc";
        let text = s.text(&[
            "run",
            "--rm",
            "--ulimit",
            "nofile=100:200",
            "--ulimit",
            "core=0",
            s.busybox(),
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(text, "100\n200\n0");
        s.run(&["run", "--rm", "--ulimit", "nofile=200:100", s.busybox(), "true"]).code(125);
        s.run(&["run", "--rm", "--ulimit", "nosuch=1", s.busybox(), "true"]).code(125);
    });
}

#[test]
fn inspect_shows_the_limits() {
    flow(|s| {
        let id = s.detached(&["--memory", "64m", "--cpus", "1.5", "--pids-limit", "30", s.busybox(), "sleep", "100"]);
        let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}";
        assert_eq!(s.inspect(&id, format), "67108864 1500000000 30");
    });
}
