//! What stands in front of an entry and changes it: PAX records, GNU long names.

use std::collections::BTreeMap;

use super::sparse::{self, Extent, Form};
use super::{Entry, Time, header, malformed};
use crate::error::Result;

/// Extended attributes, as star, GNU tar and Go write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// All that was said about the next entry.
#[derive(Default)]
pub(super) struct Extended {
    has_pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `.numbytes` of form 0.0, which repeat.
    sparse_pairs: Vec<u64>,
}

impl Extended {
    pub(super) fn is_empty(&self) -> bool {
        !self.has_pax && self.long_name.is_none() && self.long_link.is_none()
    }

    pub(super) fn add_pax(&mut self, bytes: &[u8]) -> Result<()> {
        if std::mem::replace(&mut self.has_pax, true) {
            return Err(malformed("two PAX headers stand before one entry"));
        }
        for record in Records(bytes) {
            let (key, value) = record?;
            self.set(key, value)?;
        }
        self.check_forms()
    }

    pub(super) fn set_long_name(&mut self, bytes: Vec<u8>) -> Result<()> {
        if self.long_name.replace(header::text(&bytes)).is_some() {
            return Err(malformed("two long names stand before one entry"));
        }
        self.check_forms()
    }

    pub(super) fn set_long_link(&mut self, bytes: Vec<u8>) -> Result<()> {
        if self.long_link.replace(header::text(&bytes)).is_some() {
            return Err(malformed("two long link names stand before one entry"));
        }
        self.check_forms()
    }

    /// Readers disagree on whether PAX or GNU wins.
    fn check_forms(&self) -> Result<()> {
        if self.path.is_some() && self.long_name.is_some() || self.link.is_some() && self.long_link.is_some() {
            return Err(malformed("an entry has a long name in two forms"));
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = named(value)?,
            b"linkpath" => self.link = named(value)?,
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = owner(value)?,
            b"gid" => self.gid = owner(value)?,
            b"mtime" => self.modified = Some(time(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.add_sparse_number(key, value)?,
            _ if key.starts_with(SPARSE) => drop(self.sparse.insert(key[SPARSE.len()..].to_vec(), value.to_vec())),
            _ if key.starts_with(XATTR) => drop(self.xattrs.insert(key[XATTR.len()..].to_vec(), value.to_vec())),
            // Times of access and change, names of owners and vendors' own keys change nothing here.
            _ => {}
        }
        Ok(())
    }

    fn add_sparse_number(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let is_offset = key.ends_with(b"offset");
        if is_offset != self.sparse_pairs.len().is_multiple_of(2) {
            return Err(malformed("the records of its sparse map are out of order"));
        }
        self.sparse_pairs.push(decimal(value)?);
        Ok(())
    }

    /// Changes `entry` by what was said.
    pub(super) fn apply(&mut self, entry: &mut Entry) {
        let path = self.path.take().or(self.long_name.take());
        entry.path = path.unwrap_or_else(|| std::mem::take(&mut entry.path));
        let link = self.link.take().or(self.long_link.take());
        entry.link = link.unwrap_or_else(|| std::mem::take(&mut entry.link));
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.modified = self.modified.unwrap_or(entry.modified);
        if let Some(name) = self.sparse.get(b"name".as_slice()) {
            entry.path = name.clone();
        }
        entry.xattrs = std::mem::take(&mut self.xattrs).into_iter().collect();
    }

    /// The sparse form of the entry, in one of GNU's three ways of writing it.
    pub(super) fn sparse(&self) -> Result<Option<Form>> {
        let get = |key: &str| self.sparse.get(key.as_bytes()).map(Vec::as_slice);
        let version = (get("major"), get("minor"));
        if version == (Some(b"1"), Some(b"0")) {
            let real_size = decimal(get("realsize").ok_or_else(|| malformed("a sparse file has no size"))?)?;
            return Ok(Some(Form { real_size, extents: None }));
        }
        if version != (None, None) && version != (Some(b"0"), Some(b"1")) && version != (Some(b"0"), Some(b"0")) {
            return Err(malformed("its sparse form is not known"));
        }
        let Some(size) = get("size") else { return Ok(None) };
        let extents = match get("map") {
            Some(map) => sparse::from_list(map)?,
            None => sparse::from_numbers(&self.sparse_pairs)?,
        };
        Ok(Some(Form { real_size: decimal(size)?, extents: Some(extents) }))
    }
}

/// A global header may comment; what would change entries is applied by some readers and not by others.
pub(super) fn check_global(bytes: &[u8]) -> Result<()> {
    const CHANGING: [&[u8]; 9] =
        [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"uname", b"gname", b"hdrcharset"];
    for record in Records(bytes) {
        let (key, _) = record?;
        if CHANGING.contains(&key) || key.starts_with(SPARSE) || key.starts_with(XATTR) {
            return Err(malformed(format!("a global header sets {:?}", String::from_utf8_lossy(key))));
        }
    }
    Ok(())
}

/// The records of a PAX header: `LENGTH KEY=VALUE\n`.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.split();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| malformed("a PAX record is malformed")))
    }
}

impl<'a> Records<'a> {
    fn split(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&self.0[..space]).ok()?).ok()?;
        let (record, rest) = self.0.split_at_checked(length)?;
        let record = record.strip_suffix(b"\n")?.get(space + 1..)?;
        let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
        self.0 = rest;
        Some((&record[..equals], &record[equals + 1..]))
    }
}

/// A name; an empty one means that the header's own counts.
fn named(value: &[u8]) -> Result<Option<Vec<u8>>> {
    if value.contains(&0) {
        return Err(malformed("a name holds a NUL"));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn owner(value: &[u8]) -> Result<Option<u32>> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = i64::try_from(decimal(value)?).map_err(|_| malformed("an owner is out of range"))?;
    header::id(number).map(Some)
}

/// Digits and nothing else.
pub(super) fn decimal(value: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| malformed("a number in a PAX record is malformed"))
}

/// `[-]SECONDS[.FRACTION]`.
fn time(value: &[u8]) -> Result<Time> {
    let bad = || malformed("a time in a PAX record is malformed");
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes()).map_err(|_| bad())?).map_err(|_| bad())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    // Digits beyond nanoseconds are cut off.
    let nanoseconds: u32 = format!("{fraction:0<9}")[..9].parse().map_err(|_| bad())?;
    Ok(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        // The kernel counts nanoseconds forwards from the second before.
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// For `sparse`: the extents of a map.
pub(super) fn numbers(list: &[u8], separator: u8) -> Result<Vec<u64>> {
    list.split(|byte| *byte == separator).map(decimal).collect()
}

/// Kept here so that `sparse` needs no knowledge of records.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Extent>> {
    if !numbers.len().is_multiple_of(2) {
        return Err(malformed("its sparse map is cut off"));
    }
    Ok(numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length.to_string().len() + rest.len() != length {
            length += 1;
        }
        format!("{length}{rest}").into_bytes()
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in ["", "x", "5 a=b", "6 a=b", "6 =ab\n", "7 ab\n\n\n", "99 a=b\n", "-6 a=b\n", "6  a=b\n"] {
            let outcome: Result<Vec<_>> = Records(bad.as_bytes()).collect();
            assert!(bad.is_empty() || outcome.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"1350244992.023960108").unwrap(), Time { seconds: 1350244992, nanoseconds: 23960108 });
        assert_eq!(time(b"-0.5").unwrap(), Time { seconds: -1, nanoseconds: 500_000_000 });
        assert_eq!(time(b"7").unwrap(), Time { seconds: 7, nanoseconds: 0 });
        assert!(time(b"1e9").is_err());
    }

    #[test]
    fn one_entry_has_one_long_name() {
        let mut extended = Extended::default();
        extended.add_pax(&record("path", "a")).unwrap();
        assert!(extended.set_long_name(b"b\0".to_vec()).is_err());
        assert!(Extended::default().add_pax(&[record("size", "-1")].concat()).is_err());
        assert!(check_global(&record("size", "1")).is_err());
        assert!(check_global(&record("comment", "1")).is_ok());
    }

    proptest! {
        #[test]
        fn records_are_read_back(key in "[a-zA-Z.]{1,20}", value in "[^\\x00]{0,120}") {
            let bytes = [record(&key, &value), record("next", "1")].concat();
            let read: Vec<_> = Records(&bytes).collect::<Result<_>>().unwrap();
            prop_assert_eq!(read[0], (key.as_bytes(), value.as_bytes()));
            prop_assert_eq!(read.len(), 2);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Extended::default().add_pax(&bytes);
        }
    }
}
