//! Containers from their making to their removal.

use std::time::Duration;

use proto_engine as wire;
use strata_fault::code;

use crate::harness::{IMAGE, Stack, above_both, detached, fault, foreground, spec};

above_both! {
    async fn a_run_in_the_foreground(stack: &mut Stack) {
        let ran = stack.shell("echo out; echo err >&2; exit 7").await;
        assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice(), ran.code()), (&b"out\n"[..], &b"err\n"[..], 7));
        assert!(ran.started && ran.id.len() == 64 && !ran.name.is_empty());
        assert!(stack.list().await.is_empty(), "it is off the list when its end is told");
        stack.clean().await;
    }

    async fn what_a_container_is_given(stack: &mut Stack) {
        let mut open = foreground(&["sh", "-c", "id; env; pwd; hostname; cat /etc/hostname"]);
        let spec = spec(&mut open);
        spec.user = "web".to_owned();
        spec.env = vec!["A=1".to_owned()];
        spec.working_dir = "/tmp/../mnt".to_owned();
        spec.hostname = "box".to_owned();
        let text = stack.run(open).await.unwrap().text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("uid=101(web) gid=102(web) groups="), "{text}");
        assert!(lines[0].contains("102(web)") && lines[0].contains("4(adm)"), "{text}");
        for expected in ["A=1", "PATH=/bin", "HOME=/srv", "HOSTNAME=box", "/mnt", "box"] {
            assert!(lines.contains(&expected), "{expected} in {text}");
        }
        assert!(!text.contains("LEAK"), "an image's variable without a value is nobody's");
    }

    async fn a_container_that_goes_on(stack: &mut Stack) {
        let id = stack.detached("web", "sleep 1000").await;
        let state = stack.state("web").await;
        assert_eq!(state.status(), wire::state::Status::Running);
        assert!(state.pid > 0);
        let listed = stack.list().await;
        assert_eq!((listed.len(), listed[0].id.as_str(), listed[0].name.as_str()), (1, id.as_str(), "web"));
        assert_eq!(listed[0].labels["of"], "image");
        for wanted in [&id[..], "web", &id[..8]] {
            assert_eq!(stack.inspect(wanted).await.summary.unwrap().id, id);
        }
        let refused = stack.containers().remove(wire::RemoveRequest { container: id.clone(), force: false }).await;
        assert_eq!(fault(&refused.unwrap_err()).code, code::CONTAINER_RUNNING);
        let stop = wire::StopRequest { container: id.clone(), timeout_s: Some(1), signal: "KILL".to_owned() };
        stack.containers().stop(stop).await.unwrap();
        assert_eq!(stack.state("web").await.exit.unwrap().signal, 9);
        stack.remove("web").await.unwrap();
        assert!(stack.list().await.is_empty());
    }

    async fn made_then_started_then_started_again(stack: &mut Stack) {
        let spec = wire::ContainerSpec { name: "twice".to_owned(), ..foreground(&["sh", "-c", "echo run; exit 3"]).spec.unwrap() };
        let spec = wire::ContainerSpec { auto_remove: false, ..spec };
        let made = stack.containers().create(wire::CreateRequest { spec: Some(spec), ..Default::default() }).await.unwrap();
        assert_eq!(made.into_inner().name, "twice");
        assert_eq!(stack.state("twice").await.status(), wire::state::Status::Created);
        for _ in 0..2 {
            stack.containers().start(wire::StartRequest { container: "twice".to_owned() }).await.unwrap();
            assert_eq!(stack.wait("twice").await.code, 3);
        }
        let logs = stack.logs(wire::LogsRequest { container: "twice".to_owned(), ..Default::default() }).await;
        assert_eq!(logs, "run\nrun\n");
    }

    async fn name_and_port_are_free_when_the_end_is_told(stack: &mut Stack) {
        for _ in 0..8 {
            let mut open = foreground(&["true"]);
            let spec = spec(&mut open);
            spec.name = "same".to_owned();
            spec.network = Some(wire::Network {
                mode: wire::network::Mode::Bridge.into(),
                ports: vec![wire::PortMapping {
                    host_ip: "127.0.0.1".to_owned(),
                    host_port: 18_123,
                    container_port: 80,
                    ..Default::default()
                }],
            });
            assert_eq!(stack.run(open).await.unwrap().code(), 0);
        }
    }

    async fn restarts_by_policy(stack: &mut Stack) {
        let mut open = detached("again", &["sh", "-c", "exit 4"]);
        let spec = spec(&mut open);
        spec.auto_remove = false;
        spec.restart = Some(wire::RestartPolicy { kind: wire::restart_policy::Kind::OnFailure.into(), max_retries: 2 });
        stack.run(open).await.unwrap();
        let exit = stack.wait("again").await;
        let state = stack.state("again").await;
        assert_eq!((exit.code, state.restart_count, state.status()), (4, 2, wire::state::Status::Exited));
    }

    async fn stopped_at_last_by_a_kill(stack: &mut Stack) {
        stack.detached("stubborn", "trap '' TERM; while true; do sleep 0.1; done").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stop = wire::StopRequest { container: "stubborn".to_owned(), timeout_s: Some(1), ..Default::default() };
        stack.containers().stop(stop).await.unwrap();
        assert_eq!(stack.state("stubborn").await.exit.unwrap().code, 137);
    }

    async fn many_at_once(stack: &mut Stack) {
        let runs = (0..12).map(|number| {
            let line = format!("echo {number}; exit {number}");
            let stack = &*stack;
            async move { (number, stack.shell(&line).await) }
        });
        for (number, ran) in futures_util::future::join_all(runs).await {
            assert_eq!((ran.code(), ran.text()), (number, format!("{number}\n")));
        }
    }

    async fn limits_and_mounts(stack: &mut Stack) {
        let source = stack.path("source");
        let mut open = foreground(&["sh", "-c", "touch /data/made; touch /only 2>&1; cat /proc/self/limits | grep files; mount | grep ' /t '"]);
        let spec = spec(&mut open);
        spec.read_only_rootfs = true;
        spec.ulimits = vec![wire::Ulimit { name: "nofile".to_owned(), soft: 55, hard: 66 }];
        spec.mounts = vec![
            wire::Mount {
                kind: wire::mount::Kind::Bind.into(),
                source: source.to_string_lossy().into_owned(),
                target: "/data".to_owned(),
                create_source: true,
                ..Default::default()
            },
            wire::Mount { kind: wire::mount::Kind::Tmpfs.into(), target: "/t".to_owned(), tmpfs_size: 1 << 20, ..Default::default() },
        ];
        let text = stack.run(open).await.unwrap().text();
        assert!(source.join("made").exists());
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains("55") && text.contains("66"), "{text}");
        assert!(text.contains("size=1024k") && text.contains("noexec"), "{text}");
    }

    async fn an_out_of_memory_kill_is_told(stack: &mut Stack) {
        let mut open = foreground(&["sh", "-c", "head -c 60000000 /dev/zero | tail"]);
        spec(&mut open).resources = Some(wire::Resources { memory: 12 << 20, ..Default::default() });
        let exit = stack.run(open).await.unwrap().exit.unwrap();
        let problem = exit.problem.unwrap();
        assert!(exit.oom_killed);
        assert_eq!((problem.layer.as_str(), problem.code.as_str()), ("kernel", code::OOM_KILLED));
    }

    async fn an_image_in_use_stays(stack: &mut Stack) {
        stack.detached("user", "sleep 1000").await;
        let refused = stack.images().remove(wire::RemoveImageRequest { image: IMAGE.to_owned(), force: false }).await;
        assert_eq!(fault(&refused.unwrap_err()).code, code::IMAGE_IN_USE);
    }
}
