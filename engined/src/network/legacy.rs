//! The rules of `iptables-legacy`, the firewall before nftables, where a host still has them.
//!
//! There a table is one block of bytes that is read whole, changed, and put back whole; rules name each other by their
//! offset in it. Here it is a list, in which rules name each other by number, so that adding and removing is plain; the
//! offsets are computed again at the end. Layouts: `linux/netfilter_ipv4/ip_tables.h` and
//! `linux/netfilter/x_tables.h`, 64 bit.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::error::{Attempt, Error, Refusal};
use super::sys::{self, COUNTER_BYTES, REPLACE_BYTES};

/// The tables that exist in the thread's namespace. To ask about one that does not would make it.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// What `iptables` holds while it changes a table, as two at once would lose one's changes.
const LOCK: &str = "/run/xtables.lock";
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

const TABLE: &str = "filter";
const DOCKER_USER: &[u8] = b"DOCKER-USER";
const FORWARD: usize = 2;
const HOOKS: usize = 5;

const NAME_BYTES: usize = 32;
const INFO_BYTES: usize = 84;
const GET_ENTRIES_BYTES: usize = 40;
const COUNTERS_INFO_BYTES: usize = 40;

/// Offsets in `struct ipt_entry`.
const IN_NAME: usize = 16;
const OUT_NAME: usize = 32;
const IN_MASK: usize = 48;
const OUT_MASK: usize = 64;
const TARGET_OFFSET: usize = 88;
const NEXT_OFFSET: usize = 90;
const ENTRY_BYTES: usize = 112;

/// Offsets in a match or a target.
const EXTENSION_NAME: usize = 2;
const EXTENSION_BYTES: usize = 32;
const STANDARD_TARGET_BYTES: usize = 40;
const COMMENT_MATCH_BYTES: usize = EXTENSION_BYTES + 256;

/// Verdicts are the negative of netfilter's, less one; what is not negative is the offset of a rule to jump to.
const VERDICT_ACCEPT: i32 = -2;
const VERDICT_DROP: i32 = -1;

/// Makes the rules tagged `tag` stand where they are needed, `wanted` at all, and nowhere else.
pub(super) fn ensure(tag: &str, bridge: &str, wanted: bool) -> Result<(), Error> {
    if !exists().attempt(|| format!("read {TABLES}"))? {
        return Ok(());
    }
    change(tag, bridge, wanted).attempt(|| format!("change the rules of iptables-legacy that are tagged {tag:?}"))
}

fn exists() -> Result<bool, Refusal> {
    match fs::read_to_string(TABLES) {
        Ok(names) => Ok(names.lines().any(|name| name == TABLE)),
        // A kernel without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn change(tag: &str, bridge: &str, wanted: bool) -> Result<(), Refusal> {
    let kernel = Kernel::open()?;
    // Looked at first without the lock: mostly nothing is to be done.
    if !kernel.read()?.make_right(tag, bridge, wanted)? {
        return Ok(());
    }
    let _lock = lock()?;
    let mut table = kernel.read()?;
    if table.make_right(tag, bridge, wanted)? { kernel.replace(&table) } else { Ok(()) }
}

fn lock() -> Result<File, Refusal> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(LOCK)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Err(errno) => return Err(Refusal::new(errno.raw_os_error(), Some(format!("lock {LOCK}")))),
        }
    }
}

/// The way to the kernel's table.
struct Kernel {
    socket: OwnedFd,
}

impl Kernel {
    fn open() -> Result<Kernel, Refusal> {
        let protocol = rustix::net::Protocol::from_raw(
            std::num::NonZeroU32::new(libc::IPPROTO_RAW as u32).ok_or_else(|| Refusal::garbled("no protocol"))?,
        );
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        Ok(Kernel { socket })
    }

    fn read(&self) -> Result<Table, Refusal> {
        let mut info = [0; INFO_BYTES];
        info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        sys::table_info(self.socket.as_fd(), &mut info)?;
        let size = u32_at(&info, 80)? as usize;
        let mut entries = vec![0; GET_ENTRIES_BYTES + size];
        entries[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        sys::table_entries(self.socket.as_fd(), &mut entries)?;
        Table::parse(&info, &entries[GET_ENTRIES_BYTES..])
    }

    /// Puts the table back, then the counts: a new table begins at zero.
    fn replace(&self, table: &Table) -> Result<(), Refusal> {
        let mut counters = vec![[0; COUNTER_BYTES]; table.old_count];
        sys::replace_table(self.socket.as_fd(), &mut table.serialize()?, &mut counters)?;
        let mut info = vec![0; COUNTERS_INFO_BYTES];
        info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        info[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(table.rules.len() as u32).to_ne_bytes());
        for rule in &table.rules {
            let count = rule.old_number.and_then(|number| counters.get(number)).unwrap_or(&[0; COUNTER_BYTES]);
            info.extend_from_slice(count);
        }
        sys::add_counters(self.socket.as_fd(), &info)
    }
}

/// A rule, or the head or the end of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    bytes: Vec<u8>,
    /// The number of the rule that this one jumps to.
    jump: Option<usize>,
    /// What its number was in the kernel's table.
    old_number: Option<usize>,
}

/// A table as a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    valid_hooks: u32,
    /// The first rule of each of the kernel's own chains, and the last, which is its policy.
    first: [usize; HOOKS],
    policy: [usize; HOOKS],
    rules: Vec<Rule>,
    old_count: usize,
}

impl Table {
    fn parse(info: &[u8], blob: &[u8]) -> Result<Table, Refusal> {
        let (mut offsets, mut rules) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < blob.len() {
            let length = usize::from(u16_at(blob, at + NEXT_OFFSET)?);
            let bytes = blob.get(at..at + length).filter(|bytes| bytes.len() >= ENTRY_BYTES).ok_or_else(garbled)?;
            offsets.push(at);
            rules.push(Rule { bytes: bytes.to_vec(), jump: None, old_number: Some(rules.len()) });
            at += length;
        }
        let number_at = |offset: usize| offsets.binary_search(&offset).map_err(|_| garbled());
        for rule in &mut rules {
            rule.jump = match rule.verdict()? {
                Some(verdict) if verdict >= 0 => Some(number_at(verdict as usize)?),
                _ => None,
            };
        }
        let valid_hooks = u32_at(info, NAME_BYTES)?;
        let (mut first, mut policy) = ([0; HOOKS], [0; HOOKS]);
        for hook in (0..HOOKS).filter(|hook| valid_hooks & 1 << hook != 0) {
            first[hook] = number_at(u32_at(info, NAME_BYTES + 4 + hook * 4)? as usize)?;
            policy[hook] = number_at(u32_at(info, NAME_BYTES + 4 + (HOOKS + hook) * 4)? as usize)?;
        }
        let old_count = rules.len();
        Ok(Table { valid_hooks, first, policy, rules, old_count })
    }

    /// `struct ipt_replace` with the entries behind it.
    fn serialize(&self) -> Result<Vec<u8>, Refusal> {
        let mut offsets = Vec::with_capacity(self.rules.len());
        let mut size = 0;
        for rule in &self.rules {
            offsets.push(size);
            size += rule.bytes.len();
        }
        let offset = |number: usize| offsets.get(number).copied().ok_or_else(garbled);
        let mut bytes = vec![0; REPLACE_BYTES];
        bytes[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        put(32, self.valid_hooks);
        put(36, self.rules.len() as u32);
        put(40, size as u32);
        for hook in (0..HOOKS).filter(|hook| self.valid_hooks & 1 << hook != 0) {
            put(44 + hook * 4, offset(self.first[hook])? as u32);
            put(64 + hook * 4, offset(self.policy[hook])? as u32);
        }
        for rule in &self.rules {
            let start = bytes.len();
            bytes.extend_from_slice(&rule.bytes);
            if let Some(number) = rule.jump {
                let at = start + rule.target()? + EXTENSION_BYTES;
                bytes[at..at + 4].copy_from_slice(&(offset(number)? as i32).to_ne_bytes());
            }
        }
        Ok(bytes)
    }

    /// Removes tagged rules that are not needed and adds those that are; says whether anything changed.
    fn make_right(&mut self, tag: &str, bridge: &str, wanted: bool) -> Result<bool, Refusal> {
        let ours = accepting(bridge, tag);
        let wanted_at = if wanted { self.place()? } else { None };
        let found: Vec<usize> = (0..self.rules.len()).filter(|number| self.rules[*number].has_comment(tag)).collect();
        let right: Vec<usize> = wanted_at.map(|at| (at..at + ours.len()).collect()).unwrap_or_default();
        if found == right {
            return Ok(false);
        }
        for number in found.into_iter().rev() {
            self.remove(number);
        }
        if let Some(at) = if wanted { self.place()? } else { None } {
            self.insert(at, ours);
        }
        Ok(true)
    }

    /// Where our rules belong: first in Docker's chain for such rules, else first in a FORWARD chain that drops.
    fn place(&self) -> Result<Option<usize>, Refusal> {
        if let Some(head) = self.rules.iter().position(|rule| rule.is_head_of(DOCKER_USER)) {
            return Ok(Some(head + 1));
        }
        if self.valid_hooks & 1 << FORWARD == 0 {
            return Ok(None);
        }
        let policy = self.rules.get(self.policy[FORWARD]).ok_or_else(garbled)?;
        Ok((policy.verdict()? == Some(VERDICT_DROP)).then_some(self.first[FORWARD]))
    }

    /// Puts `new` rules at the beginning of the chain that begins at `at`: who went there meets them first.
    fn insert(&mut self, at: usize, new: Vec<Rule>) {
        let count = new.len();
        let moved = |number: &mut usize| *number += if *number > at { count } else { 0 };
        self.first.iter_mut().for_each(moved);
        self.rules.iter_mut().filter_map(|rule| rule.jump.as_mut()).for_each(moved);
        // A chain without rules begins with its policy: that moves too.
        self.policy.iter_mut().for_each(|number| *number += if *number >= at { count } else { 0 });
        self.rules.splice(at..at, new);
    }

    /// Who went to the removed rule meets the next.
    fn remove(&mut self, at: usize) {
        let moved = |number: &mut usize| *number -= usize::from(*number > at);
        self.first.iter_mut().for_each(moved);
        self.policy.iter_mut().for_each(moved);
        self.rules.remove(at);
        self.rules.iter_mut().filter_map(|rule| rule.jump.as_mut()).for_each(moved);
    }
}

impl Rule {
    /// Where its target begins.
    fn target(&self) -> Result<usize, Refusal> {
        let at = usize::from(u16_at(&self.bytes, TARGET_OFFSET)?);
        if at + EXTENSION_BYTES <= self.bytes.len() { Ok(at) } else { Err(garbled()) }
    }

    /// The verdict of a plain target; others have none.
    fn verdict(&self) -> Result<Option<i32>, Refusal> {
        let target = self.target()?;
        if !extension_name(&self.bytes, target).is_some_and(<[u8]>::is_empty) {
            return Ok(None);
        }
        Ok(Some(u32_at(&self.bytes, target + EXTENSION_BYTES)? as i32))
    }

    /// A chain begins with a rule whose target is ERROR and holds the chain's name.
    fn is_head_of(&self, chain: &[u8]) -> bool {
        let Ok(target) = self.target() else { return false };
        extension_name(&self.bytes, target) == Some(b"ERROR")
            && self.bytes.get(target + EXTENSION_BYTES..).map(until_zero) == Some(chain)
    }

    fn has_comment(&self, tag: &str) -> bool {
        let Ok(end) = self.target() else { return false };
        let mut at = ENTRY_BYTES;
        while at + EXTENSION_BYTES <= end {
            let Ok(length) = u16_at(&self.bytes, at) else { return false };
            let text = self.bytes.get(at + EXTENSION_BYTES..at + usize::from(length)).map(until_zero);
            if extension_name(&self.bytes, at) == Some(b"comment") && text == Some(tag.as_bytes()) {
                return true;
            }
            at += usize::from(length).max(EXTENSION_BYTES);
        }
        false
    }
}

/// `-i BRIDGE -j ACCEPT` and `-o BRIDGE -j ACCEPT`, tagged.
fn accepting(bridge: &str, tag: &str) -> Vec<Rule> {
    [(IN_NAME, IN_MASK), (OUT_NAME, OUT_MASK)]
        .map(|(name, mask)| Rule { bytes: accepting_bytes(bridge, name, mask, tag), jump: None, old_number: None })
        .to_vec()
}

fn accepting_bytes(bridge: &str, name: usize, mask: usize, tag: &str) -> Vec<u8> {
    let target = ENTRY_BYTES + COMMENT_MATCH_BYTES;
    let mut bytes = vec![0; target + STANDARD_TARGET_BYTES];
    let length = bytes.len() as u16;
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(name, bridge.as_bytes());
    // The closing zero is compared too, so that the name is not a prefix.
    put(mask, &vec![0xff; bridge.len() + 1]);
    put(TARGET_OFFSET, &(target as u16).to_ne_bytes());
    put(NEXT_OFFSET, &length.to_ne_bytes());
    put(ENTRY_BYTES, &(COMMENT_MATCH_BYTES as u16).to_ne_bytes());
    put(ENTRY_BYTES + EXTENSION_NAME, b"comment");
    put(ENTRY_BYTES + EXTENSION_BYTES, tag.as_bytes());
    put(target, &(STANDARD_TARGET_BYTES as u16).to_ne_bytes());
    put(target + EXTENSION_BYTES, &VERDICT_ACCEPT.to_ne_bytes());
    bytes
}

fn extension_name(bytes: &[u8], at: usize) -> Option<&[u8]> {
    bytes.get(at + EXTENSION_NAME..at + EXTENSION_BYTES - 1).map(until_zero)
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn garbled() -> Refusal {
    Refusal::garbled("the kernel's table is not laid out as expected")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Refusal> {
    let two = bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).ok_or_else(garbled)?;
    Ok(u16::from_ne_bytes(two))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Refusal> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).ok_or_else(garbled)?;
    Ok(u32::from_ne_bytes(four))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(verdict: i32) -> Rule {
        let mut bytes = vec![0; ENTRY_BYTES + STANDARD_TARGET_BYTES];
        bytes[TARGET_OFFSET..TARGET_OFFSET + 2].copy_from_slice(&(ENTRY_BYTES as u16).to_ne_bytes());
        let length = (bytes.len() as u16).to_ne_bytes();
        bytes[NEXT_OFFSET..NEXT_OFFSET + 2].copy_from_slice(&length);
        bytes[ENTRY_BYTES + EXTENSION_BYTES..ENTRY_BYTES + EXTENSION_BYTES + 4].copy_from_slice(&verdict.to_ne_bytes());
        Rule { bytes, jump: None, old_number: None }
    }

    fn head(chain: &str) -> Rule {
        let mut rule = plain(0);
        rule.bytes.resize(ENTRY_BYTES + EXTENSION_BYTES + 32, 0);
        let length = (rule.bytes.len() as u16).to_ne_bytes();
        rule.bytes[NEXT_OFFSET..NEXT_OFFSET + 2].copy_from_slice(&length);
        rule.bytes[ENTRY_BYTES + EXTENSION_NAME..][..5].copy_from_slice(b"ERROR");
        rule.bytes[ENTRY_BYTES + EXTENSION_BYTES..][..chain.len()].copy_from_slice(chain.as_bytes());
        rule
    }

    /// INPUT and OUTPUT accept, FORWARD drops after a jump to a chain of one rule.
    fn table(chain: &str) -> Table {
        let mut jump = plain(0);
        jump.jump = Some(5);
        let rules = vec![
            plain(VERDICT_ACCEPT),
            jump,
            plain(VERDICT_DROP),
            plain(VERDICT_ACCEPT),
            head(chain),
            plain(-5),
            head("ERROR"),
        ];
        Table { valid_hooks: 0b1110, first: [0, 0, 1, 3, 0], policy: [0, 0, 2, 3, 0], rules, old_count: 7 }
    }

    /// Through the bytes and back, as the kernel would give them.
    fn back(table: &Table) -> Table {
        let bytes = table.serialize().unwrap();
        let mut info = vec![0; INFO_BYTES];
        info[32..36].copy_from_slice(&bytes[32..36]);
        info[36..76].copy_from_slice(&bytes[44..84]);
        Table::parse(&info, &bytes[REPLACE_BYTES..]).unwrap()
    }

    #[test]
    fn rules_come_first_where_they_are_needed_and_go_without_a_trace() {
        for (chain, at) in [("DOCKER-USER", 5), ("OTHER", 1)] {
            let before = back(&table(chain));
            let mut table = before.clone();
            assert_eq!(table.make_right("tag", "br0", true), Ok(true));
            assert!(table.rules[at].has_comment("tag") && table.rules[at + 1].has_comment("tag"), "{chain}");
            assert_eq!(table.make_right("tag", "br0", true), Ok(false), "they stand already");
            let mut table = back(&table);
            assert_eq!(table.rules[table.policy[FORWARD]].verdict(), Ok(Some(VERDICT_DROP)));
            let jump = table.rules.iter().find_map(|rule| rule.jump).unwrap();
            assert_eq!(
                table.rules[jump].has_comment("tag"),
                chain == "DOCKER-USER",
                "who jumps there meets ours first"
            );
            assert_eq!(table.make_right("tag", "br0", false), Ok(true));
            assert_eq!(back(&table), before);
        }
    }

    #[test]
    fn a_chain_that_accepts_needs_nothing() {
        let mut table = table("OTHER");
        table.rules[2] = plain(VERDICT_ACCEPT);
        assert_eq!(table.make_right("tag", "br0", true), Ok(false));
    }

    #[test]
    fn nonsense_is_refused() {
        let table = table("OTHER");
        let bytes = table.serialize().unwrap();
        let blob = &bytes[REPLACE_BYTES..];
        for length in (1..blob.len()).filter(|length| length % ENTRY_BYTES != 0) {
            let _ = Table::parse(&[0; INFO_BYTES], &blob[..length]);
        }
        assert!(Table::parse(&[0; INFO_BYTES], &blob[..ENTRY_BYTES]).is_err());
    }
}
