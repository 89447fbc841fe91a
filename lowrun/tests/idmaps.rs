//! Ids of mounts that are mapped, with and without a user namespace, and sources that a mapped root cannot reach.

mod stage;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stage::{Bound, Stage, stage};

/// Where the ids of the container are on the host.
const BASE: u32 = 200_000;

fn map(container: u32, host: u32, size: u32) -> Value {
    json!([{ "containerID": container, "hostID": host, "size": size }])
}

/// A stage whose runtime can map the ids of mounts.
fn mapping_stage() -> Option<Stage> {
    let stage = stage()?;
    if stage.lacks("/linux/mountExtensions/idmap/enabled") || is_old_tmpfs(stage.dir.path()) {
        return None;
    }
    Some(stage)
}

/// Whether the ids of a file system cannot be mapped because it is a tmpfs and the kernel older than 6.3; says so.
fn is_old_tmpfs(dir: &Path) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let is_old = version < (6, 3) && rustix::fs::statfs(dir).unwrap().f_type as i64 == libc::TMPFS_MAGIC;
    if is_old {
        eprintln!("skipped: {} is a tmpfs, whose ids Linux {release} cannot map (6.3 can)", dir.display());
    }
    is_old
}

/// A directory with a file of that owner.
fn source(stage: &Stage, name: &str, owner: (u32, u32)) -> PathBuf {
    let dir = stage.dir.path().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("file"), "").unwrap();
    chown(dir.join("file"), Some(owner.0), Some(owner.1)).unwrap();
    dir
}

/// Adds a bind mount with mappings.
fn mapped(stage: &mut Stage, destination: &str, source: &str, options: &[&str], maps: Option<(Value, Value)>) {
    stage.mount(destination, "bind", source, options);
    if let Some((uids, gids)) = maps {
        let mount = stage.config["mounts"].as_array_mut().unwrap().last_mut().unwrap();
        mount["uidMappings"] = uids;
        mount["gidMappings"] = gids;
    }
}

fn user_namespace(stage: &mut Stage) {
    stage.namespace("user", Some(""));
    stage.config["linux"]["uidMappings"] = map(0, BASE, 65_536);
    stage.config["linux"]["gidMappings"] = map(0, BASE, 65_536);
    stage.own_rootfs(BASE);
}

#[test]
fn ids_are_mapped_without_a_user_namespace() {
    let Some(mut stage) = mapping_stage() else { return };
    let dir = source(&stage, "source", (3, 4));
    let path = dir.to_str().unwrap();
    mapped(&mut stage, "/a", path, &["bind"], Some((map(0, 1000, 10), map(0, 2000, 10))));
    mapped(&mut stage, "/b", path, &["bind", "idmap"], Some((map(3, 77, 1), map(4, 88, 1))));
    stage.mount("/plain", "bind", path, &["bind"]);
    stage.config["process"]["user"] = json!({ "uid": 1005, "gid": 2006 });
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
    stage.script("stat -c '%n %u:%g' /a/file /b/file /plain/file; touch /a/made && stat -c '%n %u:%g' /a/made");
    assert_eq!(stage.output(), "/a/file 1003:2004\n/b/file 77:88\n/plain/file 3:4\n/a/made 1005:2006\n");
    let made = std::fs::metadata(dir.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 6), "as the file system has it");
}

#[test]
fn ids_are_mapped_in_a_user_namespace() {
    let Some(mut stage) = mapping_stage() else { return };
    user_namespace(&mut stage);
    let one = source(&stage, "one", (0, 0));
    let two = source(&stage, "two", (7, 8));
    let (one_path, two_path) = (one.to_str().unwrap(), two.to_str().unwrap());
    mapped(&mut stage, "/own", one_path, &["bind"], Some((map(0, BASE, 100), map(0, BASE, 100))));
    mapped(&mut stage, "/shifted", two_path, &["bind", "idmap"], Some((map(7, BASE + 20, 1), map(8, BASE + 30, 1))));
    mapped(&mut stage, "/implied", two_path, &["bind", "idmap", "ro"], None);
    stage.mount("/plain", "bind", two_path, &["bind"]);
    stage.script(
        "stat -c '%n %u:%g' /own/file /shifted/file /implied/file /plain/file; touch /own/made; \
         (touch /implied/x) 2>/dev/null || echo closed",
    );
    let nobody = "65534:65534";
    assert_eq!(
        stage.output(),
        format!("/own/file 0:0\n/shifted/file 20:30\n/implied/file 7:8\n/plain/file {nobody}\nclosed\n")
    );
    assert_eq!(std::fs::metadata(one.join("made")).unwrap().uid(), 0);
}

#[test]
fn a_joined_user_namespace_gives_its_mappings() {
    let Some(mut first) = mapping_stage() else { return };
    let Some(mut second) = mapping_stage() else { return };
    user_namespace(&mut first);
    first.script("while :; do sleep 0.05; done");
    first.detached();
    let pid = first.state()["pid"].to_string();
    second.own_rootfs(BASE);
    second.namespace("user", Some(&format!("/proc/{pid}/ns/user")));
    let dir = source(&second, "source", (7, 8));
    mapped(&mut second, "/implied", dir.to_str().unwrap(), &["rbind", "ridmap"], None);
    second.args(&["stat", "-c", "%u:%g", "/implied/file"]);
    assert_eq!(second.output(), "7:8\n");
    first.delete();
}

#[test]
fn mounts_below_are_mapped_only_if_asked_for() {
    let Some(mut stage) = mapping_stage() else { return };
    let dir = source(&stage, "tree", (1, 1));
    let below = source(&stage, "below", (1, 1));
    std::fs::create_dir(dir.join("sub")).unwrap();
    let _bound = Bound::new(&below, &dir.join("sub"));
    let path = dir.to_str().unwrap();
    let maps = || Some((map(0, 500, 10), map(0, 600, 10)));
    mapped(&mut stage, "/all", path, &["rbind", "ridmap"], maps());
    mapped(&mut stage, "/top", path, &["rbind", "idmap"], maps());
    stage.script("stat -c '%n %u:%g' /all/file /all/sub/file /top/file /top/sub/file");
    assert_eq!(stage.output(), "/all/file 501:601\n/all/sub/file 501:601\n/top/file 501:601\n/top/sub/file 1:1\n");
}

#[test]
fn many_mapped_mounts_leave_no_descriptor_and_no_process() {
    let Some(mut stage) = mapping_stage() else { return };
    user_namespace(&mut stage);
    let dir = source(&stage, "source", (0, 0));
    for index in 0..20 {
        let maps = Some((map(0, BASE, 100 + index % 3), map(0, BASE, 100)));
        mapped(&mut stage, &format!("/m{index}"), dir.to_str().unwrap(), &["bind"], maps);
    }
    stage.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 40, "hard": 40 }]);
    stage.script(
        "stat -c %u /m0/file /m19/file; for f in /proc/self/fd/*; do [ -e $f ] && echo fd ${f##*/}; done; true",
    );
    let seen = stage.output();
    assert!(seen.starts_with("0\n0\n"), "{seen}");
    let open = seen.lines().filter_map(|line| line.strip_prefix("fd ")?.parse::<u32>().ok());
    assert!(!stage.is_ours() || open.into_iter().all(|number| number < 3), "{seen}");
}

#[test]
fn sources_that_the_mapped_root_cannot_reach_are_mounted_and_locked() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 refuses a source of another owner") {
        return;
    }
    user_namespace(&mut stage);
    let secret = stage.dir.path().join("closed");
    let inner = source(&stage, "closed/inner", (0, 0));
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).unwrap();
    let _bound = Bound::readonly(&inner, &inner);
    let path = inner.to_str().unwrap();
    stage.mount("/one", "bind", path, &["bind"]);
    stage.mount("/two", "bind", path, &["rbind"]);
    let caps = ["CAP_SYS_ADMIN"];
    stage.config["process"]["capabilities"] = json!({ "bounding": caps, "effective": caps, "permitted": caps });
    stage.script("ls /one /two; mount -o remount,bind,rw /one 2>/dev/null || echo locked; pwd");
    assert_eq!(stage.output(), "/one:\nfile\n\n/two:\nfile\nlocked\n/\n");
}

#[test]
fn mappings_that_mean_nothing_are_refused() {
    let Some(mut stage) = mapping_stage() else { return };
    let dir = source(&stage, "source", (0, 0));
    let path = dir.to_str().unwrap();
    let sound = stage.config.clone();
    for (kind, options, maps) in [
        ("bind", &["bind", "idmap"][..], None),
        ("bind", &["bind"], Some((map(0, 1, 1), json!([])))),
        ("tmpfs", &["idmap"], Some((map(0, 1, 1), map(0, 1, 1)))),
        ("bind", &["bind"], Some((map(0, 1, 0), map(0, 1, 1)))),
    ] {
        stage.config = sound.clone();
        mapped(&mut stage, "/m", path, options, maps);
        stage.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["type"] = json!(kind);
        let outcome = stage.run();
        assert_eq!(outcome.status, 1, "{options:?}: {outcome:?}");
        assert!(!stage.is_ours() || outcome.err.contains("mounts[7]"), "{outcome:?}");
        stage.is_clean();
    }
}
