//! A filter that asks for ranges of system calls, in place of each call by itself.
//!
//! libseccomp compares the number of a call with every number of the profile, on each architecture: some 1,400
//! instructions for a profile of Docker's size, all of which the kernel checks, converts and compiles anew for each
//! container. But neighbours mostly share their fate, and a search among a hundred ranges says the same.
//!
//! ```text
//! what libseccomp made  --walk, per architecture-->  ranges of numbers, each with its fate
//!     fate: an answer, or the place where arguments are looked at
//! ranges  --search tree, then the code of those places, as it was-->  the new filter
//! ```
//!
//! Whatever is not understood leaves the filter as it was, and so does a new one that does not say the same in all
//! places where either changes its mind.

use std::collections::{BTreeMap, BTreeSet};

use super::bpf::{
    Instruction, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, JUMP_SET, LOAD_ABSOLUTE, OFFSET_ARCH,
    OFFSET_NUMBER, RETURN,
};

/// Most steps of a walk: a chain of 4096 comparisons takes the square of that at worst.
const STEPS_MAX: usize = 1 << 24;
/// In the place of an instruction that is not known yet: a jump to where the old filter looks at arguments.
const TO_ARGUMENTS: u16 = u16::MAX;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The answer of the filter.
    Answer(u32),
    /// The instruction where the arguments begin to be looked at.
    Arguments(usize),
}

/// The calls from a number on, up to the next range, and their fate.
type Range = (u32, Fate);

/// An equal filter that is shorter; `None` if there is none.
pub(super) fn merge(program: &[Instruction]) -> Option<Vec<Instruction>> {
    let mut arches = BTreeSet::new();
    let others = ranges(program, None, &mut arches)?;
    let arches: Vec<u32> = arches.into_iter().collect();
    let blocks: Option<Vec<_>> = arches.iter().map(|arch| ranges(program, Some(*arch), &mut BTreeSet::new())).collect();
    let blocks = blocks?;
    let all = blocks.iter().chain([&others]);
    let places = reachable(program, all.flatten().map(|(_, fate)| *fate))?;
    let merged = assemble(program, &arches, (&blocks, &others), &places)?;
    let moved = |fate: Fate| match fate {
        Fate::Arguments(at) => Fate::Arguments(merged.len() - places.len() + places.range(..at).count()),
        answer @ Fate::Answer(_) => answer,
    };
    (merged.len() < program.len() && say_the_same(program, &merged, &arches, moved)).then_some(merged)
}

/// What the accumulator holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Nothing,
    Arch,
    Number,
}

/// The ranges of one architecture, or of all that have no name in the filter; and what it compares that of a call with.
fn ranges(program: &[Instruction], arch: Option<u32>, named: &mut BTreeSet<u32>) -> Option<Vec<Range>> {
    let mut walk = Walk { program, arch, named, ranges: Vec::new(), steps: 0 };
    walk.from(0, Word::Nothing, (0, u32::MAX))?;
    walk.ranges.dedup_by_key(|(_, fate)| *fate);
    Some(walk.ranges)
}

struct Walk<'p> {
    program: &'p [Instruction],
    arch: Option<u32>,
    named: &'p mut BTreeSet<u32>,
    ranges: Vec<Range>,
    steps: usize,
}

impl Walk<'_> {
    /// Follows all numbers of a range from an instruction on; in their order, so that ranges come out in it.
    fn from(&mut self, mut at: usize, mut word: Word, numbers: (u32, u32)) -> Option<()> {
        loop {
            self.steps += 1;
            let &(code, yes, no, value) = self.program.get(at).filter(|_| self.steps < STEPS_MAX)?;
            at += 1;
            match code {
                RETURN => return self.end(numbers, Fate::Answer(value)),
                LOAD_ABSOLUTE if value == OFFSET_ARCH => word = Word::Arch,
                LOAD_ABSOLUTE if value == OFFSET_NUMBER => word = Word::Number,
                LOAD_ABSOLUTE => return self.end(numbers, Fate::Arguments(at - 1)),
                JUMP => at = at.checked_add(value as usize)?,
                JUMP_EQUAL if word == Word::Arch => {
                    self.named.insert(value);
                    at += usize::from(if self.arch == Some(value) { yes } else { no });
                }
                _ if word == Word::Number => {
                    for part in parts(code, value, numbers)? {
                        self.from(at + usize::from(if part.holds { yes } else { no }), word, part.numbers)?;
                    }
                    return Some(());
                }
                _ => return None,
            }
        }
    }

    fn end(&mut self, (first, _): (u32, u32), fate: Fate) -> Option<()> {
        self.ranges.push((first, fate));
        Some(())
    }
}

/// A part of a range, in which a comparison holds or does not.
struct Part {
    /// The first number and the last.
    numbers: (u32, u32),
    holds: bool,
}

/// A range cut where a comparison changes, in order.
fn parts(code: u16, value: u32, (first, last): (u32, u32)) -> Option<Vec<Part>> {
    // The numbers at which it turns from one to the other; it holds from the first of them on, from the second not.
    let turns: Vec<u64> = match code {
        JUMP_EQUAL => vec![u64::from(value), u64::from(value) + 1],
        JUMP_GREATER => vec![u64::from(value) + 1],
        JUMP_GREATER_OR_EQUAL => vec![u64::from(value)],
        // One high bit, as that of x32.
        JUMP_SET if value.is_power_of_two() && value >= 1 << 28 => {
            (1..=1_u64 << 32 >> value.trailing_zeros()).map(|turn| turn * u64::from(value)).collect()
        }
        _ => return None,
    };
    let mut parts = Vec::new();
    let (mut from, mut holds) = (u64::from(first), false);
    for turn in turns.into_iter().chain([u64::from(last) + 1]) {
        let until = turn.min(u64::from(last) + 1);
        if until > from {
            parts.push(Part { numbers: (from as u32, (until - 1) as u32), holds });
            from = until;
        }
        holds = !holds;
    }
    Some(parts)
}

/// The instructions that are reached from where arguments are looked at.
fn reachable(program: &[Instruction], fates: impl Iterator<Item = Fate>) -> Option<BTreeSet<usize>> {
    let mut todo: Vec<usize> = fates
        .filter_map(|fate| match fate {
            Fate::Arguments(at) => Some(at),
            Fate::Answer(_) => None,
        })
        .collect();
    let mut reached = BTreeSet::new();
    while let Some(at) = todo.pop() {
        if !reached.insert(at) {
            continue;
        }
        let &(code, yes, no, value) = program.get(at)?;
        match code {
            RETURN => {}
            JUMP => todo.push(at.checked_add(value as usize)? + 1),
            // Jumps on conditions are of class 5.
            _ if code & 7 == 5 => todo.extend([at + 1 + usize::from(yes), at + 1 + usize::from(no)]),
            _ => todo.push(at + 1),
        }
    }
    Some(reached)
}

/// The new filter: which architecture, which range, and what looks at arguments.
fn assemble(
    program: &[Instruction],
    arches: &[u32],
    (blocks, others): (&[Vec<Range>], &[Range]),
    places: &BTreeSet<usize>,
) -> Option<Vec<Instruction>> {
    let mut merged = vec![(LOAD_ABSOLUTE, 0, 0, OFFSET_ARCH)];
    for (arch, ranges) in arches.iter().zip(blocks) {
        let block = Search::of(ranges)?;
        merged.extend([(JUMP_EQUAL, 1, 0, *arch), (JUMP, 0, 0, u32::try_from(block.len()).ok()?)]);
        merged.extend(block);
    }
    merged.extend(Search::of(others)?);
    let end = merged.len();
    let index: BTreeMap<usize, usize> = places.iter().enumerate().map(|(new, old)| (*old, end + new)).collect();
    for (at, instruction) in merged.iter_mut().enumerate() {
        if instruction.0 == TO_ARGUMENTS {
            let place = index.get(&(instruction.3 as usize))?;
            *instruction = (JUMP, 0, 0, u32::try_from(place - at - 1).ok()?);
        }
    }
    for old in places {
        let (code, yes, no, value) = program[*old];
        let at = merged.len() + 1;
        let distance = |jump: usize| Some(index.get(&(old + 1 + jump))? - at);
        merged.push(match code {
            JUMP => (code, 0, 0, u32::try_from(distance(value as usize)?).ok()?),
            _ if code & 7 == 5 => {
                let (yes, no) = (distance(yes.into())?, distance(no.into())?);
                (code, u8::try_from(yes).ok()?, u8::try_from(no).ok()?, value)
            }
            _ => (code, yes, no, value),
        });
    }
    Some(merged)
}

/// The code of a binary search for the range of a number, written from its end, because jumps go forward alone: where
/// one leads is there before it. A place is counted from the end, too.
#[derive(Default)]
struct Search {
    /// The last instruction first.
    code: Vec<Instruction>,
    /// Where each fate is met, nearest.
    ends: Vec<(Fate, usize)>,
}

/// Where a branch of the search goes on.
#[derive(Clone, Copy)]
enum Branch {
    End(Fate),
    Node(usize),
}

impl Search {
    fn of(ranges: &[Range]) -> Option<Vec<Instruction>> {
        let mut search = Search::default();
        match search.node(ranges)? {
            Branch::End(fate) => search.push(instruction_of(fate)),
            // The node that was written last is the first.
            Branch::Node(_) => search.push((LOAD_ABSOLUTE, 0, 0, OFFSET_NUMBER)),
        }
        search.code.reverse();
        Some(search.code)
    }

    fn node(&mut self, ranges: &[Range]) -> Option<Branch> {
        if let [(_, fate)] = ranges {
            return Some(Branch::End(*fate));
        }
        let (low, high) = ranges.split_at_checked(ranges.len() / 2).filter(|(low, _)| !low.is_empty())?;
        let first_of_high = high[0].0;
        let (high, low) = (self.node(high)?, self.node(low)?);
        // What is written to make one branch near moves the other further away, by one instruction at most.
        let high = self.near(high, 1)?;
        let low = self.near(low, 0)?;
        let distance = |place: usize| u8::try_from(self.code.len() - 1 - place).ok();
        let jump = (JUMP_GREATER_OR_EQUAL, distance(high)?, distance(low)?, first_of_high);
        self.push(jump);
        Some(Branch::Node(self.code.len() - 1))
    }

    /// The place of a branch, brought near enough for a jump of the next instruction but `spare`.
    fn near(&mut self, branch: Branch, spare: usize) -> Option<usize> {
        let place = match branch {
            Branch::Node(place) => Some(place),
            Branch::End(fate) => self.ends.iter().find(|(end, _)| *end == fate).map(|(_, place)| *place),
        };
        let is_near = |place: &usize| self.code.len() - 1 - place + spare <= usize::from(u8::MAX);
        if let Some(place) = place.filter(is_near) {
            return Some(place);
        }
        match branch {
            Branch::Node(place) => self.push((JUMP, 0, 0, u32::try_from(self.code.len() - 1 - place).ok()?)),
            Branch::End(fate) => {
                self.push(instruction_of(fate));
                self.ends.retain(|(end, _)| *end != fate);
                self.ends.push((fate, self.code.len() - 1));
            }
        }
        Some(self.code.len() - 1)
    }

    fn push(&mut self, instruction: Instruction) {
        self.code.push(instruction);
    }
}

fn instruction_of(fate: Fate) -> Instruction {
    match fate {
        Fate::Answer(answer) => (RETURN, 0, 0, answer),
        Fate::Arguments(at) => (TO_ARGUMENTS, 0, 0, at as u32),
    }
}

/// Whether two filters have the same fate for every call: judged with each number around which one of them compares.
fn say_the_same(old: &[Instruction], new: &[Instruction], arches: &[u32], moved: impl Fn(Fate) -> Fate) -> bool {
    let mut numbers = BTreeSet::from([0, u32::MAX]);
    for (.., value) in old.iter().chain(new) {
        numbers.extend([value.wrapping_sub(1), *value, value.wrapping_add(1)]);
    }
    // Where single bits are asked for: see `parts`.
    numbers.extend((0..16).flat_map(|part: u32| [part << 28, (part << 28) | 0x0fff_ffff]));
    let unnamed = (0..).find(|arch| !arches.contains(arch) && !numbers.contains(arch)).unwrap_or(u32::MAX);
    let mut calls = arches.iter().chain([&unnamed]).flat_map(|arch| numbers.iter().map(move |number| (*arch, *number)));
    calls.all(|(arch, number)| {
        let fate = judge(old, arch, number).map(&moved);
        fate.is_some() && fate == judge(new, arch, number)
    })
}

/// The fate of one call.
fn judge(program: &[Instruction], arch: u32, number: u32) -> Option<Fate> {
    let (mut at, mut word) = (0, 0);
    loop {
        let &(code, yes, no, value) = program.get(at)?;
        at += 1;
        let holds = match code {
            RETURN => return Some(Fate::Answer(value)),
            LOAD_ABSOLUTE if value == OFFSET_ARCH || value == OFFSET_NUMBER => {
                word = if value == OFFSET_ARCH { arch } else { number };
                continue;
            }
            LOAD_ABSOLUTE => return Some(Fate::Arguments(at - 1)),
            JUMP => {
                at = at.checked_add(value as usize)?;
                continue;
            }
            JUMP_EQUAL => word == value,
            JUMP_GREATER => word > value,
            JUMP_GREATER_OR_EQUAL => word >= value,
            JUMP_SET => word & value != 0,
            _ => return None,
        };
        at += usize::from(if holds { yes } else { no });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bpf::{from_bytes, to_bytes};
    use super::*;
    use crate::spec::Seccomp;

    const X86_64: u32 = 0xc000_003e;
    const X86: u32 = 0x4000_0003;
    const X32_BIT: u32 = 0x4000_0000;

    /// Runs a filter on a whole call, as the kernel does.
    fn answer(program: &[Instruction], (arch, number, arguments): (u32, u32, [u64; 6])) -> u32 {
        let mut at = 0;
        let mut word = 0_u32;
        loop {
            let (code, yes, no, value) = program[at];
            at += 1;
            let holds = match code {
                RETURN => return value,
                LOAD_ABSOLUTE => {
                    let half = |offset: u32| (arguments[(offset / 8) as usize] >> (offset % 8 * 8)) as u32;
                    word = match value {
                        OFFSET_NUMBER => number,
                        OFFSET_ARCH => arch,
                        offset => half(offset - 16),
                    };
                    continue;
                }
                // And with the operand.
                0x54 => {
                    word &= value;
                    continue;
                }
                JUMP => {
                    at += value as usize;
                    continue;
                }
                JUMP_EQUAL => word == value,
                JUMP_GREATER => word > value,
                JUMP_GREATER_OR_EQUAL => word >= value,
                JUMP_SET => word & value != 0,
                other => panic!("{other:#x}"),
            };
            at += usize::from(if holds { yes } else { no });
        }
    }

    fn filter(profile: &str) -> Vec<Instruction> {
        let profile: Seccomp = serde_json::from_str(profile).unwrap();
        from_bytes(&super::super::unmerged(&profile).unwrap())
    }

    fn assert_same(old: &[Instruction], new: &[Instruction]) {
        let values = [0, 1, 8, 0x20_000, 0x7e02_0000, u64::from(u32::MAX), 1 << 32, u64::MAX];
        let number = |number: u32| [number, X32_BIT | number];
        for number in (0..700).flat_map(number).chain([0x7fff_ffff, 0x8000_0000, 0xc000_0001, u32::MAX]) {
            for arch in [X86_64, X86, 0xc000_00b7, 7] {
                for value in values {
                    let call = (arch, number, [value; 6]);
                    assert_eq!(answer(old, call), answer(new, call), "{call:x?}");
                }
            }
        }
    }

    /// Most calls, some of them by their arguments, on three architectures.
    fn large_profile(default: &str) -> String {
        let names: Vec<String> = (0..360)
            .filter(|number| number % 13 != 5)
            .filter_map(|number| libseccomp::ScmpSyscall::from(number).get_name().ok())
            .map(|name| format!("{name:?}"))
            .collect();
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":{default},
                "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[
                {{"names":[{}],"action":"SCMP_ACT_ALLOW"}},
                {{"names":["personality"],"action":"SCMP_ACT_ALLOW",
                  "args":[{{"index":0,"value":131072,"op":"SCMP_CMP_EQ"}}]}},
                {{"names":["clone"],"action":"SCMP_ACT_ALLOW",
                  "args":[{{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}}]}},
                {{"names":["socket"],"action":"SCMP_ACT_ERRNO","errnoRet":22,
                  "args":[{{"index":0,"value":8,"op":"SCMP_CMP_GT"}},{{"index":2,"value":1,"op":"SCMP_CMP_NE"}}]}}]}}"#,
            names.join(",")
        )
    }

    #[test]
    fn a_large_profile_shrinks_to_a_third_and_says_the_same() {
        // With the answer for new calls in front, and without.
        for default in ["1", "38"] {
            let old = filter(&large_profile(default));
            let new = merge(&old).unwrap();
            assert!(new.len() * 3 < old.len(), "{} of {}", new.len(), old.len());
            assert_same(&old, &new);
        }
    }

    #[test]
    fn what_is_not_understood_or_says_something_else_is_left() {
        let old = filter(&large_profile("1"));
        let mut unknown = old.clone();
        // A word of the scratch memory in the place of the number.
        let load = unknown.iter_mut().find(|(code, .., value)| (*code, *value) == (LOAD_ABSOLUTE, OFFSET_NUMBER));
        load.unwrap().0 = 0x60;
        assert_eq!(merge(&unknown), None);
        let new = merge(&old).unwrap();
        let same = |fate| fate;
        assert!(say_the_same(&new, &new, &[X86_64, X86], same));
        for at in 0..new.len() {
            let mut other = new.clone();
            if other[at].0 == JUMP_GREATER_OR_EQUAL {
                other[at].3 += 1;
                assert!(!say_the_same(&new, &other, &[X86_64, X86], same), "at {at}");
            }
        }
    }

    #[test]
    fn instructions_keep_their_bytes() {
        let program = filter(&large_profile("1"));
        assert_eq!(from_bytes(&to_bytes(&program)), program);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_profile_says_the_same(
            rules in proptest::collection::vec((0_i32..450, 0_u32..5, 0_u32..6, any::<u16>()), 1..120),
            allows in any::<bool>(),
        ) {
            let (default, action) = if allows { ("ALLOW", "ERRNO") } else { ("ERRNO", "ALLOW") };
            let rules: Vec<String> = rules
                .iter()
                .filter_map(|(number, kind, index, value)| {
                    let name = libseccomp::ScmpSyscall::from(*number).get_name().ok()?;
                    let op = ["EQ", "NE", "GE", "MASKED_EQ"].get(*kind as usize);
                    let condition = |op: &&str| format!(
                        r#","args":[{{"index":{index},"value":{value},"valueTwo":{},"op":"SCMP_CMP_{op}"}}]"#, value & 8
                    );
                    let args = op.map(condition).unwrap_or_default();
                    Some(format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_{action}"{args}}}"#))
                })
                .collect();
            let old = filter(&format!(
                r#"{{"defaultAction":"SCMP_ACT_{default}","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"],
                    "syscalls":[{}]}}"#,
                rules.join(",")
            ));
            if let Some(new) = merge(&old) {
                assert_same(&old, &new);
            }
        }
    }
}
