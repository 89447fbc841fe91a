//! Names of one directory, in little more memory than they have bytes: there may be millions of them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

#[derive(Default)]
pub(super) struct Names {
    /// Each name with a zero behind it, which none has in it.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    given: usize,
}

impl Names {
    /// Bytes that holding `name` takes.
    pub(super) fn cost_of(name: &[u8]) -> usize {
        name.len() + 1 + size_of::<u32>()
    }

    /// Bytes that holding all of them takes.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + self.starts.len() * size_of::<u32>()
    }

    /// Whether there was room: names beyond 4 GiB cannot be held.
    pub(super) fn add(&mut self, name: &[u8]) -> bool {
        let Ok(start) = u32::try_from(self.bytes.len()) else { return false };
        self.starts.push(start);
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        true
    }

    /// Puts them in order; what is there several times is given once.
    pub(super) fn sort(&mut self) {
        let bytes = &self.bytes;
        self.starts.sort_unstable_by(|one, other| name_at(bytes, *one).cmp(name_at(bytes, *other)));
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<OsString> {
        let name = name_at(&self.bytes, *self.starts.get(self.given)?);
        self.given += 1;
        while self.starts.get(self.given).is_some_and(|again| name_at(&self.bytes, *again) == name) {
            self.given += 1;
        }
        Some(OsString::from_vec(name.to_vec()))
    }
}

fn name_at(bytes: &[u8], start: u32) -> &[u8] {
    let rest = &bytes[start as usize..];
    &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_order_and_once() {
        let (mut names, mut cost) = (Names::default(), 0);
        for name in ["b", "ab", "a", "b", "a.c", "ab"].map(str::as_bytes) {
            assert!(names.add(name));
            cost += Names::cost_of(name);
        }
        assert_eq!(names.cost(), cost);
        names.sort();
        assert_eq!(std::iter::from_fn(|| names.next()).collect::<Vec<_>>(), ["a", "a.c", "ab", "b"]);
    }
}
