//! Intel RDT: the container's class of service and monitoring group in the resctrl file system.
//!
//! Nothing here is looked at unless the spec has the section. What lowrun makes is in the state before it is made; a
//! group that somebody else made, or that the spec names, is never removed.

use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::{Attempt, Code, Fault, Result};
use crate::spec::IntelRdt;
use crate::sys::{self, Call, Failure};

const FIELD: &str = "linux.intelRdt";

/// A container's place in resctrl.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The class of service's directory.
    pub class: PathBuf,
    /// Whether the class is the container's own, made with it and removed with it.
    pub is_own: bool,
    /// The monitoring group's directory, always the container's own.
    pub monitor: Option<PathBuf>,
}

/// What can be wrong with a section by itself.
pub fn check(section: &IntelRdt) -> Result<()> {
    let invalid =
        |field: &str, cause: String| Err(Fault::new(Code::SpecInvalid, format!("{FIELD}.{field}")).cause(cause));
    let id = section.clos_id.as_str();
    if matches!(id, "." | "..") || id.len() > 1 && id.contains('/') || id.contains('\0') {
        return invalid("closID", format!("invalid intelRdt.ClosID {id:?}"));
    }
    if section.l3_cache_schema.contains('\n') {
        // Several lines are accepted as they always were; what is for another resource is left out later.
        return Ok(());
    }
    let bandwidth = section.mem_bw_schema.as_str();
    if !bandwidth.is_empty() && (!bandwidth.starts_with("MB:") || bandwidth.contains('\n')) {
        return invalid("memBwSchema", "must be one line that starts with MB:".to_owned());
    }
    match section.schemata.iter().find(|line| line.contains('\n')) {
        Some(line) => invalid("schemata", format!("{line:?} is more than one line")),
        None => Ok(()),
    }
}

/// Where the group of the container `id` is, or will be.
pub fn locate(section: &IntelRdt, id: &str) -> Result<Group> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").call("open");
    let mounts = mounts.attempt(Code::SystemError, || "read /proc/self/mountinfo")?;
    let root = mount_point(&mounts).ok_or_else(|| {
        Fault::new(Code::Unsupported, FIELD)
            .cause("intelRdt is specified in config, but Intel RDT is not enabled")
            .hint("no resctrl file system is mounted: it takes a processor, a kernel and a mount that have it")
    })?;
    locate_below(&root, section, id)
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mut lines = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let is_resctrl = |fields: &Vec<&str>| {
        fields.iter().position(|field| *field == "-").and_then(|at| fields.get(at + 1)) == Some(&"resctrl")
    };
    lines.find(is_resctrl).and_then(|fields| fields.get(4).map(PathBuf::from))
}

fn locate_below(root: &Path, section: &IntelRdt, id: &str) -> Result<Group> {
    let class = match section.clos_id.as_str() {
        "" => root.join(id),
        "/" => root.to_owned(),
        named => root.join(named),
    };
    if !section.clos_id.is_empty() && schemata(section).is_empty() && !class.is_dir() {
        return Err(Fault::new(Code::SpecInvalid, format!("{FIELD}.closID"))
            .cause(format!("clos {} does not exist, and no schema is given to make it", class.display())));
    }
    let monitor = section.enable_monitoring.then(|| class.join("mon_groups").join(id));
    Ok(Group { is_own: section.clos_id.is_empty() && !class.is_dir(), class, monitor })
}

/// Lines to write, in the order of the spec. Lines for another resource than its own have no place in `l3CacheSchema`.
fn schemata(section: &IntelRdt) -> Vec<&str> {
    let cache = section.l3_cache_schema.lines().filter(|line| !line.trim_start().starts_with("MB:"));
    let bandwidth = section.mem_bw_schema.lines();
    cache.chain(bandwidth).filter(|line| !line.is_empty()).chain(section.schemata.iter().map(String::as_str)).collect()
}

impl Group {
    /// Puts the process into its group, made and limited as the section says.
    pub fn enter(&self, section: &IntelRdt, pid: Pid) -> Result<()> {
        let lines = schemata(section);
        let is_new = !self.class.is_dir();
        if is_new {
            make_dir(&self.class)?;
        } else if !section.clos_id.is_empty() {
            self.check_schemata(&section.l3_cache_schema)?;
            self.check_schemata(&section.mem_bw_schema)?;
        }
        if is_new || self.is_own || !section.schemata.is_empty() {
            self.write_schemata(&lines)?;
        }
        enter_dir(&self.class, pid)?;
        if let Some(monitor) = &self.monitor {
            make_dir(monitor)?;
            enter_dir(monitor, pid)?;
        }
        Ok(())
    }

    /// Writes other schemas than those that it was made with.
    pub fn update(&self, section: &IntelRdt) -> Result<()> {
        self.write_schemata(&schemata(section))
    }

    /// A class that is there belongs to others too: it must be what the section says already.
    fn check_schemata(&self, schema: &str) -> Result<()> {
        if schema.is_empty() {
            return Ok(());
        }
        let file = self.class.join("schemata");
        let attempted = || format!("read {}", file.display());
        let present = std::fs::read_to_string(&file).call("open").attempt(Code::SystemError, attempted)?;
        let present: Vec<String> = present.lines().map(normalized).collect();
        let missing = schema.lines().map(normalized).find(|line| !line.is_empty() && !present.contains(line));
        match missing {
            None => Ok(()),
            Some(line) => Err(Fault::new(Code::SpecInvalid, format!("{FIELD}.closID"))
                .cause(format!("{} has other values than {line:?}", file.display()))),
        }
    }

    fn write_schemata(&self, lines: &[&str]) -> Result<()> {
        let file = self.class.join("schemata");
        // One by one: so an error is that of a line.
        lines.iter().try_for_each(|line| {
            std::fs::write(&file, format!("{line}\n"))
                .call("write")
                .attempt(Code::LimitInvalid, || format!("{FIELD}: write {line:?} to {}", file.display()))
        })
    }

    /// Removes what was made for the container.
    pub fn remove(&self) -> Result<()> {
        let own = self.is_own.then_some(&self.class);
        self.monitor.iter().chain(own).try_for_each(|dir| match rustix::fs::rmdir(dir) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => {
                let failure = Failure { call: "rmdir", errno };
                Err(Fault::of(Code::SystemError, format!("remove {}", dir.display()), failure))
            }
        })
    }
}

/// `L3:0=f; 1=f` and `L3:0=f;1=f` are the same; the kernel pads the name.
fn normalized(line: &str) -> String {
    line.split_whitespace().collect()
}

fn make_dir(dir: &Path) -> Result<()> {
    let made: sys::Result<()> = match rustix::fs::mkdir(dir, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(Failure { call: "mkdir", errno }),
    };
    made.attempt(Code::LimitInvalid, || format!("{FIELD}: make {}", dir.display()))
}

fn enter_dir(dir: &Path, pid: Pid) -> Result<()> {
    std::fs::write(dir.join("tasks"), pid.as_raw_nonzero().to_string())
        .call("write")
        .attempt(Code::SystemError, || format!("{FIELD}: enter {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in the place of resctrl, which has plain files where the kernel has its own.
    fn root() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn read(dir: &Path, file: &str) -> String {
        std::fs::read_to_string(dir.join(file)).unwrap()
    }

    #[test]
    fn a_class_of_its_own_is_made_and_removed() {
        let root = root();
        let section = IntelRdt {
            l3_cache_schema: "L3:0=f\nMB:0=99".to_owned(),
            mem_bw_schema: "MB:0=20".to_owned(),
            ..IntelRdt::default()
        };
        let group = locate_below(root.path(), &section, "c1").unwrap();
        assert!(group.is_own);
        group.enter(&section, Pid::from_raw(77).unwrap()).unwrap();
        assert_eq!(read(&group.class, "tasks"), "77");
        assert_eq!(read(&group.class, "schemata"), "MB:0=20\n", "the last line written");
        assert_eq!(schemata(&section), ["L3:0=f", "MB:0=20"]);
        group.update(&IntelRdt { mem_bw_schema: "MB:0=30".to_owned(), ..IntelRdt::default() }).unwrap();
        assert_eq!(read(&group.class, "schemata"), "MB:0=30\n");
        std::fs::remove_file(group.class.join("tasks")).unwrap();
        std::fs::remove_file(group.class.join("schemata")).unwrap();
        group.remove().unwrap();
        assert!(!group.class.exists());
    }

    #[test]
    fn a_named_class_must_be_there_or_be_described_and_stays() {
        let root = root();
        let named = |schema: &str| IntelRdt {
            clos_id: "shared".to_owned(),
            l3_cache_schema: schema.to_owned(),
            ..IntelRdt::default()
        };
        assert!(locate_below(root.path(), &named(""), "c1").unwrap_err().one_line().contains("closID"));
        std::fs::create_dir(root.path().join("shared")).unwrap();
        std::fs::write(root.path().join("shared/schemata"), "    L3:0=f;1=f\nMB:0=100\n").unwrap();
        let pid = Pid::from_raw(77).unwrap();
        for schema in ["", "L3:0=f; 1=f"] {
            let group = locate_below(root.path(), &named(schema), "c1").unwrap();
            assert!(!group.is_own);
            group.enter(&named(schema), pid).unwrap();
            group.remove().unwrap();
            assert!(group.class.exists());
        }
        let group = locate_below(root.path(), &named("L3:0=1"), "c1").unwrap();
        assert!(group.enter(&named("L3:0=1"), pid).is_err());
    }

    #[test]
    fn a_monitoring_group_is_the_containers() {
        let root = root();
        std::fs::create_dir(root.path().join("mon_groups")).unwrap();
        let section = IntelRdt { clos_id: "/".to_owned(), enable_monitoring: true, ..IntelRdt::default() };
        let group = locate_below(root.path(), &section, "c1").unwrap();
        assert_eq!(group.class, root.path());
        group.enter(&section, Pid::from_raw(5).unwrap()).unwrap();
        let monitor = group.monitor.as_ref().unwrap();
        assert_eq!(read(monitor, "tasks"), "5");
        std::fs::remove_file(monitor.join("tasks")).unwrap();
        group.remove().unwrap();
        assert!(!monitor.exists() && root.path().exists());
    }

    #[test]
    fn names_that_are_paths_and_lines_that_are_more_are_refused() {
        for section in [
            IntelRdt { clos_id: "..".to_owned(), ..IntelRdt::default() },
            IntelRdt { clos_id: "a/b".to_owned(), ..IntelRdt::default() },
            IntelRdt { mem_bw_schema: "L3:0=1".to_owned(), ..IntelRdt::default() },
            IntelRdt { schemata: vec!["L3:0=1\nMB:0=1".to_owned()], ..IntelRdt::default() },
        ] {
            assert!(check(&section).is_err(), "{section:?}");
        }
        assert!(check(&IntelRdt { clos_id: "/".to_owned(), ..IntelRdt::default() }).is_ok());
    }

    #[test]
    fn the_mount_is_found_by_its_type() {
        let text =
            "22 1 0:20 / /sys rw - sysfs sysfs rw\n30 22 0:30 / /sys/fs/resctrl rw shared:1 - resctrl resctrl rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/resctrl".into()));
        assert_eq!(mount_point("22 1 0:20 / /sys/fs/resctrl rw - tmpfs x rw\n"), None);
    }
}
