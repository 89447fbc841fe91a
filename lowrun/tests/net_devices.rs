//! Network devices of the host that move into a container. The host here is a network namespace of the test's own.

mod stage;

use std::process::Command;

use serde_json::json;
use stage::{Outcome, Stage, stage};

/// A network namespace with a pair of devices, in which the runtime is started.
struct Host {
    stage: Stage,
    name: String,
}

impl Host {
    fn new() -> Option<Host> {
        let stage = stage()?;
        if stage.lacks("/linux/netDevices/enabled") {
            return None;
        }
        let name = stage.id().to_owned();
        let host = Host { stage, name };
        host.ip(&["netns", "add", &host.name]);
        host.inside("ip link add moved0 type veth peer name other0 && ip link set other0 up && ip link set moved0 mtu 1444 address 02:00:00:00:00:77 up");
        host.inside("ip addr add 10.9.8.7/24 dev moved0 && ip addr add 2001:db8::7/64 dev moved0 nodad");
        host.inside("ip addr add 127.0.0.33/32 scope host dev moved0");
        Some(host)
    }

    fn ip(&self, words: &[&str]) {
        assert!(Command::new("ip").args(words).status().unwrap().success(), "{words:?}");
    }

    fn inside(&self, script: &str) {
        self.ip(&["netns", "exec", &self.name, "sh", "-c", script]);
    }

    fn has(&self, device: &str) -> bool {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "link", "show", device]).stderr(std::process::Stdio::null());
        command.output().unwrap().status.success()
    }

    fn run(&self) -> Outcome {
        self.stage.write_config();
        let runtime = self.stage.command();
        // Not `ip netns exec`, which covers /sys and with it the cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(runtime.get_program()).args(runtime.get_args());
        command.args(["run", self.stage.id()]).current_dir(self.stage.bundle()).stdin(std::process::Stdio::null());
        self.stage.finish(command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

#[test]
fn a_device_keeps_its_attributes_and_its_lasting_addresses() {
    let Some(mut host) = Host::new() else { return };
    host.stage.config["linux"]["netDevices"] = json!({ "moved0": {} });
    host.stage.args(&["ip", "addr", "show", "dev", "moved0"]);
    let seen = host.run().ok().out;
    for words in ["mtu 1444", "02:00:00:00:00:77", "inet 10.9.8.7/24", "inet6 2001:db8::7/64", ",UP"] {
        assert!(seen.contains(words), "{words:?} is not in {seen}");
    }
    assert!(!seen.contains("127.0.0.33"), "{seen}");
    assert!(!host.has("moved0"));
}

#[test]
fn a_device_gets_another_name_in_a_user_namespace_too() {
    let Some(mut host) = Host::new() else { return };
    host.stage.config["linux"]["netDevices"] = json!({ "moved0": { "name": "inside%d" } });
    host.stage.namespace("user", Some(""));
    let map = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    host.stage.config["linux"]["uidMappings"] = map.clone();
    host.stage.config["linux"]["gidMappings"] = map;
    host.stage.own_rootfs(200_000);
    host.stage.args(&["ip", "addr", "show", "dev", "inside0"]);
    let seen = host.run().ok().out;
    assert!(seen.contains("inet 10.9.8.7/24") && seen.contains(",UP"), "{seen}");
}

#[test]
fn a_device_moves_into_a_joined_namespace_and_stays_there() {
    let Some(mut host) = Host::new() else { return };
    let joined = format!("{}-j", host.name);
    host.ip(&["netns", "add", &joined]);
    host.stage.namespace("network", Some(&format!("/run/netns/{joined}")));
    host.stage.config["linux"]["netDevices"] = json!({ "moved0": { "name": "renamed" } });
    host.stage.args(&["ip", "link", "show", "dev", "renamed"]);
    let outcome = host.run();
    let kept = Command::new("ip").args(["-n", &joined, "link", "show", "renamed"]).output().unwrap().status.success();
    host.ip(&["netns", "delete", &joined]);
    outcome.ok();
    assert!(kept);
}

#[test]
fn a_name_that_is_taken_is_refused_and_the_device_stays() {
    let Some(mut host) = Host::new() else { return };
    if host.stage.differs("runc leaves a device behind that it cannot rename") {
        return;
    }
    host.stage.config["linux"]["netDevices"] = json!({ "moved0": { "name": "lo" } });
    host.run().fails(1, "moved0");
    assert!(host.has("moved0"));
    host.stage.is_clean();
}
