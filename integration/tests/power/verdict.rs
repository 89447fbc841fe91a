//! After the cut: is everything that is listed right, is nothing lost that was promised, and does a pull heal the rest?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;

use integration::Output;

use crate::bench::{Bench, Snapshotter};
use crate::image::{Tree, difference, digest, look};
use crate::story::{CONTAINER, Done};

/// What was wrong after one cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// The disk's file system is not to be mounted: the test itself would be wrong.
    Disk,
    /// The supervisor does not start.
    Store,
    /// An image that was told to be there is not, or one that was told to be gone is.
    Lost,
    /// An image is listed and its content is not there or not what it should be.
    Content,
    /// A snapshot is listed and its files are not those of its layers.
    Snapshot,
    /// A new pull does not make it right.
    Heal,
}

pub(crate) type Findings = Vec<(Wrong, String)>;

/// Looks at everything, pulls image `healing` again and looks at that.
pub(crate) fn examine(bench: &Bench, story: &[Done], cut: usize, healing: &str) -> Findings {
    let mut findings = Findings::new();
    let listed = list(bench, &mut findings);
    compare(&listed, story, cut, &mut findings);
    for name in &listed {
        findings.extend(content(bench, name).map(|why| (Wrong::Content, format!("{name}: {why}"))));
    }
    findings.extend(snapshots(bench).into_iter().map(|why| (Wrong::Snapshot, why)));
    findings.extend(heal(bench, healing).into_iter().map(|why| (Wrong::Heal, why)));
    findings
}

fn list(bench: &Bench, findings: &mut Findings) -> BTreeSet<String> {
    let out = bench.ctr(&["images", "ls", "-q"]);
    if out.code != 0 {
        findings.push((Wrong::Store, out.errors()));
    }
    out.text().lines().map(str::to_owned).collect()
}

/// What was there when the last step was over must be there, unless the next step takes it away; and nothing else, but
/// what the next one brings.
fn compare(listed: &BTreeSet<String>, story: &[Done], cut: usize, findings: &mut Findings) {
    let now = story.iter().rposition(|done| done.position <= cut).unwrap_or(0);
    let (is, will) = (&story[now].images, &story.get(now + 1).unwrap_or(&story[now]).images);
    for name in is.iter().filter(|name| will.contains(name) && !listed.contains(*name)) {
        findings.push((Wrong::Lost, format!("{name} is not listed")));
    }
    for name in listed.iter().filter(|name| !is.contains(name) && !will.contains(name)) {
        findings.push((Wrong::Lost, format!("{name} is listed again")));
    }
}

/// What is wrong with the content of an image: an export brings all of it.
fn content(bench: &Bench, name: &str) -> Option<String> {
    let out = bench.ctr(&["images", "export", "--platform", "linux/amd64", "-", name]);
    if out.code != 0 {
        return Some(out.errors());
    }
    let mut blobs = BTreeMap::new();
    let mut archive = tar::Archive::new(&out.stdout[..]);
    for entry in archive.entries().expect("an archive in memory") {
        let Ok(mut entry) = entry else { return Some("the export is no archive".to_owned()) };
        let path = entry.path().expect("a path").display().to_string();
        let mut bytes = Vec::new();
        if entry.read_to_end(&mut bytes).is_err() {
            return Some(format!("the export is cut off in {path}"));
        }
        if let Some(hex) = path.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
            if digest(&bytes) != format!("sha256:{hex}") {
                return Some(format!("{path} is damaged"));
            }
            blobs.insert(hex.to_owned(), bytes);
        }
    }
    // A manifest, a config and a layer at least.
    (blobs.len() < 3).then(|| format!("only {} blobs", blobs.len()))
}

/// All whose files are known. Layers that others stand on are seen through those; copies are looked at one by one.
fn snapshots(bench: &Bench) -> Vec<String> {
    let out = bench.snapshots(&["ls"]);
    let rows: Vec<Vec<&str>> = out.stdout_lines();
    let parents: BTreeSet<&str> = rows.iter().filter(|row| row.len() == 3).map(|row| row[1]).collect();
    let is_seen = |name: &str| bench.snapshotter == Snapshotter::Overlayfs && parents.contains(name);
    let wrong = rows.iter().filter_map(|row| match row[..] {
        [name, .., "Committed"] if !is_seen(name) => committed(bench, name),
        [CONTAINER, .., "Active"] => active(bench, CONTAINER),
        _ => None,
    });
    wrong.collect()
}

fn committed(bench: &Bench, name: &str) -> Option<String> {
    let Some(expected) = bench.trees.get(name) else { return Some(format!("{name}: nobody made it")) };
    let place = place(bench);
    let out = bench.snapshots(&["view", "-t", &place, "view", name]);
    if out.code != 0 {
        return refused(bench, name, &out);
    }
    let wrong = mounted(bench, &out.text(), &place, expected);
    // Whatever was seen: the next snapshot is to be seen under the same name. Nothing refers to the view: it, too, may have
    // been collected.
    let removed = bench.snapshots(&["rm", "view"]);
    let is_there = removed.code != 0 && !removed.errors().contains("not found");
    if wrong.is_some() && !is_there && removed.code != 0 {
        // It went in the middle of the look, and took its files along.
        return None;
    }
    let removed = is_there.then(|| removed.errors());
    wrong.or(removed).map(|what| format!("{name}: {what}"))
}

/// Of a container that never ran: it shows its image.
fn active(bench: &Bench, name: &str) -> Option<String> {
    let place = place(bench);
    let out = bench.snapshots(&["mounts", &place, name]);
    if out.code != 0 {
        return refused(bench, name, &out);
    }
    let wrong = mounted(bench, &out.text(), &place, &bench.trees[name])?;
    // It may have gone in the middle of the look, too.
    let is_there = bench.snapshots(&["info", name]).code == 0;
    is_there.then(|| format!("{name}: {wrong}"))
}

/// After its start the supervisor collects what nothing refers to: a snapshot may have gone since the list.
fn refused(bench: &Bench, name: &str, out: &Output) -> Option<String> {
    let has_gone = out.errors().contains("not found") && bench.snapshots(&["info", name]).code != 0;
    (!has_gone).then(|| format!("{name}: {}", out.errors()))
}

/// Where snapshots are mounted to be looked at.
fn place(bench: &Bench) -> String {
    let place = bench.path("tmp/view");
    fs::create_dir_all(&place).expect("a mount point");
    place.to_str().expect("text").to_owned()
}

/// What is wrong with the files that a command mounts at `place`.
fn mounted(bench: &Bench, command: &str, place: &str, expected: &Tree) -> Option<String> {
    let mounted = bench.host("sh", &["-c", command]);
    if mounted.code != 0 {
        return Some(mounted.errors());
    }
    let seen = look(place.as_ref());
    let unmounted = bench.host("umount", &[place]);
    match seen {
        Ok(_) if unmounted.code != 0 => Some(unmounted.errors()),
        Ok(seen) => difference(expected, &seen),
        Err(error) => Some(error.to_string()),
    }
}

fn heal(bench: &Bench, name: &str) -> Vec<String> {
    let out = bench.pull(name);
    let name = bench.image(name);
    if out.code != 0 {
        return vec![format!("pull {name}: {}", out.errors())];
    }
    let mut wrong: Vec<String> = content(bench, &name).into_iter().collect();
    wrong.extend(snapshots(bench));
    wrong
}

trait Lines {
    fn stdout_lines(&self) -> Vec<Vec<&str>>;
}

impl Lines for Output {
    /// The words of each line of a table, without its head.
    fn stdout_lines(&self) -> Vec<Vec<&str>> {
        let text = std::str::from_utf8(&self.stdout).unwrap_or_default();
        text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
    }
}
