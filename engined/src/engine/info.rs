//! What the engine says of itself and of its host.

use strata_fault::Fault;

use super::Engine;
use super::container::Container;
use crate::containerd::version::Version as Supervisor;

/// Who answers.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) kernel: String,
    /// `shimd`, or `containerd`.
    pub(crate) supervisor_name: &'static str,
    pub(crate) supervisor: Supervisor,
}

/// How it is.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub(crate) containers: usize,
    pub(crate) running: usize,
    pub(crate) images: usize,
    pub(crate) cgroup_version: &'static str,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) kernel: String,
    pub(crate) operating_system: String,
    pub(crate) hostname: String,
    pub(crate) subnet: String,
}

impl Engine {
    pub(crate) async fn version(&self) -> Version {
        // An engine whose supervisor is away still says who it is.
        let supervisor = self.means.client.supervisor_version().await.unwrap_or_default();
        // shimd marks its version, so that it can be told from the program whose API it speaks.
        let supervisor_name = if supervisor.version.ends_with("+strata") { "shimd" } else { "containerd" };
        Version { kernel: kernel(), supervisor_name, supervisor }
    }

    pub(crate) async fn info(&self) -> Result<Info, Fault> {
        let containers = self.means.roster.all();
        let is_running = |container: &&Container| {
            matches!(container.view().life.phase, super::container::state::Phase::Running { .. })
        };
        Ok(Info {
            containers: containers.len(),
            running: containers.iter().filter(is_running).count(),
            images: self.means.images.list().await?.len(),
            cgroup_version: if self.means.machine.is_cgroup2 { "2" } else { "1" },
            memory: memory(),
            kernel: kernel(),
            operating_system: operating_system(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            subnet: self.means.network.subnet().to_string(),
        })
    }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

/// `PRETTY_NAME` of os-release(5).
fn operating_system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    pretty_name(&text).unwrap_or_else(|| "Linux".to_owned())
}

fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_name_without_its_quotes() {
        assert_eq!(pretty_name("ID=x\nPRETTY_NAME=\"A System 1\"\n").as_deref(), Some("A System 1"));
        assert_eq!(pretty_name("ID=x"), None);
    }
}
