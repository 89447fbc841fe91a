//! Refusals: layer, step and code are right, nothing is left, and the next run works.

use proto_engine as wire;
use strata_fault::{Layer, code};

use crate::harness::{Below, Stack, above_both, detached, fault, foreground, spec, words};

struct Case {
    what: &'static str,
    open: wire::RunOpen,
    layers: &'static [Layer],
    step: &'static str,
    code: &'static str,
}

fn case(
    what: &'static str,
    layers: &'static [Layer],
    step: &'static str,
    code: &'static str,
    change: impl FnOnce(&mut wire::ContainerSpec),
) -> Case {
    let mut open = foreground(&["true"]);
    change(spec(&mut open));
    Case { what, open, layers, step, code }
}

fn cases() -> Vec<Case> {
    const ENGINE: &[Layer] = &[Layer::Engine];
    const RUNTIME: &[Layer] = &[Layer::Runtime, Layer::Kernel];
    vec![
        case("a name that cannot be", ENGINE, "validate", code::INVALID_ARGUMENT, |spec| spec.name = "a b".to_owned()),
        case("an image that is not here", ENGINE, "validate", code::IMAGE_NOT_LOCAL, |spec| {
            spec.image = "localhost/other".to_owned();
        }),
        case("an image that cannot be", ENGINE, "validate", code::INVALID_ARGUMENT, |spec| {
            spec.image = "Upper/CASE:??".to_owned();
        }),
        case("a limit that cannot be", ENGINE, "validate", code::LIMIT_INVALID, |spec| {
            spec.resources = Some(wire::Resources { memory: 1, ..Default::default() });
        }),
        case("a source that is missing", ENGINE, "validate", code::MOUNT_SOURCE_MISSING, |spec| {
            spec.mounts = vec![wire::Mount {
                kind: wire::mount::Kind::Bind.into(),
                source: "/nowhere/at/all".to_owned(),
                target: "/x".to_owned(),
                ..Default::default()
            }];
        }),
        case("a user that is unknown", ENGINE, "configure", code::USER_UNKNOWN, |spec| spec.user = "nobody".to_owned()),
        case("a uid that would wrap", ENGINE, "validate", code::INVALID_ARGUMENT, |spec| {
            spec.user = "4294967296".to_owned();
        }),
        case("a command that is not there", RUNTIME, "create", code::COMMAND_NOT_FOUND, |spec| {
            spec.command = vec!["nope".to_owned()];
        }),
        case("a command that is no program", RUNTIME, "create", code::COMMAND_NOT_EXECUTABLE, |spec| {
            spec.command = vec!["/etc/plain".to_owned()];
        }),
    ]
}

above_both! {
    async fn each_refusal_says_who_when_and_what(stack: &mut Stack) {
        for Case { what, open, layers, step, code } in cases() {
            let refused = stack.run(open).await.expect_err(what);
            let fault = fault(&refused);
            assert!(layers.contains(&fault.layer), "{what}: {}", words(&refused));
            assert_eq!(fault.step.split(':').next(), Some(step), "{what}: {}", words(&refused));
            assert_eq!(fault.code, code, "{what}: {}", words(&refused));
            assert!(!fault.message.is_empty());
            stack.clean().await;
            assert_eq!(stack.shell("exit 0").await.code(), 0, "the run after {what}");
        }
    }

    async fn a_name_in_use(stack: &mut Stack) {
        stack.detached("taken", "sleep 1000").await;
        let refused = stack.run(detached("taken", &["true"])).await.unwrap_err();
        let fault = fault(&refused);
        assert_eq!((fault.layer, fault.code.as_str()), (Layer::Engine, code::NAME_IN_USE));
        assert!(fault.hint.is_some());
    }

    async fn a_port_in_use(stack: &mut Stack) {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut open = foreground(&["true"]);
        spec(&mut open).network = Some(wire::Network {
            mode: wire::network::Mode::Bridge.into(),
            ports: vec![wire::PortMapping {
                host_ip: "127.0.0.1".to_owned(),
                host_port: taken.local_addr().unwrap().port().into(),
                container_port: 80,
                ..Default::default()
            }],
        });
        let refused = stack.run(open).await.unwrap_err();
        let fault = fault(&refused);
        assert_eq!((fault.layer, fault.step.as_str(), fault.code.as_str()), (Layer::Network, "connect", code::PORT_IN_USE));
        stack.clean().await;
    }

    async fn a_crash_by_signal(stack: &mut Stack) {
        let exit = stack.shell("sh -c 'kill -SEGV $$'; exit $?").await.exit.unwrap();
        let problem = exit.problem.unwrap();
        assert_eq!((exit.code, exit.signal), (139, 11));
        assert_eq!((problem.layer.as_str(), problem.code.as_str()), ("application", code::KILLED_BY_SIGNAL));
    }

    async fn why_it_never_started_is_kept(stack: &mut Stack) {
        let mut open = detached("broken", &["nope"]);
        spec(&mut open).auto_remove = false;
        stack.run(open).await.unwrap_err();
        let state = stack.state("broken").await;
        let exit = state.exit.clone().unwrap();
        assert_eq!((state.status(), exit.code), (wire::state::Status::Created, 127));
        assert_eq!(exit.problem.unwrap().code, code::COMMAND_NOT_FOUND);
    }

    async fn a_shim_that_died(stack: &mut Stack) {
        let id = stack.detached("orphan", "sleep 1000").await;
        let state = match stack.below {
            Below::Stock => "run/containerd",
            Below::Ours => "run/shimd",
        };
        let bundle = format!("{state}/io.containerd.runtime.v2.task/strata/{id}");
        let name = if stack.below == Below::Stock { "work" } else { "shim.pid" };
        let shim = match stack.below {
            Below::Ours => std::fs::read_to_string(stack.path(&bundle).join(name)).unwrap().trim().parse::<i32>().unwrap(),
            Below::Stock => shim_of(&id),
        };
        let pid = rustix::process::Pid::from_raw(shim).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let exit = stack.wait("orphan").await;
        assert_ne!(exit.code, 0);
        if stack.below == Below::Ours {
            let problem = exit.problem.unwrap();
            assert_eq!((problem.layer.as_str(), problem.code.as_str()), ("shim", code::SHIM_DIED));
        }
        stack.remove("orphan").await.unwrap();
        assert_eq!(stack.shell("exit 0").await.code(), 0);
    }
}

/// The shim that has the container's id on its command line.
fn shim_of(id: &str) -> i32 {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_shim = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("containerd-shim") && line.contains(id)
    };
    pids.into_iter().find(is_shim).expect("the container has a shim")
}
