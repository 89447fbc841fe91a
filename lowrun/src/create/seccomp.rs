//! From a seccomp profile to a filter program, compiled once and then kept.
//!
//! Compiling a profile of Docker's size takes milliseconds; reading the result of the last time takes microseconds. The
//! cache lies in a directory below `--root` whose name is no container's id; it must belong to lowrun's user and be
//! closed to everybody else, and so must each file, else the profile is compiled anew. Each file has, beside the filter,
//! the profile's text and all that its meaning depends on, and is compared with it byte by byte: a hash makes the name
//! alone. (A hash that could stand for the text takes longer than the comparison, most of all where a virtual machine
//! traps the question which instructions for it the processor has.)

mod bpf;
mod enosys;
mod ranges;

use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use rustix::fs::{AtFlags, Dir as Listing, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::fault::{Attempt, Code, Fault, Result};
use crate::rootless;
use crate::spec::{Operator, Seccomp, Syscall, SyscallArg};
use crate::state::Dir;
use crate::sys::seccomp as kernel;
use crate::sys::{self, Call, Failure};

/// The filter of a container, in its state directory.
pub const FILTER_FILE: &str = "seccomp.bpf";
/// Below `--root`; `@` is in no id.
const CACHE_DIR: &str = "@seccomp";
/// Most filters that are kept: a machine has few profiles, but a profile that is made for each container is new each time.
const CACHE_MAX: usize = 128;
/// What a profile becomes, beside libseccomp's part in it: to be raised with each change of it, so that nothing stays in
/// force that was made in another way.
const FORM: &str = "1";
/// Longest file of a filter that is read, with the profile that it comes of.
const FILE_MAX: u64 = 1 << 20;
/// A system call has six arguments, from 0 on.
const LAST_ARGUMENT: u32 = 5;

/// A filter ready to be installed.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
    pub listener: Option<Listener>,
}

/// Who gets the notifications of a filter.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Listener {
    pub path: String,
    pub metadata: String,
}

/// The filter of a profile; `None` if the section filters nothing. It is also put into the container's directory.
pub fn prepare(section: &RawValue, root: &Path, dir: &Dir) -> Result<Option<Filter>> {
    let origin = origin(section.get());
    let cache = Cache::open(root);
    if let Some(filter) = cache.as_ref().and_then(|cache| cache.take(&origin, dir)) {
        return Ok(Some(filter));
    }
    let Some(filter) = compile(section)? else { return Ok(None) };
    write_new(dir.fd(), FILTER_FILE, (&[], &filter)).attempt(Code::StateInvalid, || "store the seccomp filter")?;
    // A filter with a listener names a path of this one container, and what is too long to be read is not kept.
    let is_kept = filter.listener.is_none() && (origin.len() + filter.program.len()) as u64 <= FILE_MAX / 2;
    if let Some(cache) = cache.filter(|_| is_kept) {
        // The cache is a convenience: a full disk costs time only.
        let _ = cache.store(&name(&origin), (&origin, &filter)).and_then(|()| cache.shrink());
    }
    Ok(Some(filter))
}

/// The filter in a container's directory.
pub fn load(dir: &Dir, listener: Option<Listener>) -> Result<Filter> {
    let attempted = || format!("read the seccomp filter in {}", dir.path().display());
    let kept = read(dir.fd(), FILTER_FILE).attempt(Code::StateInvalid, attempted)?;
    let kept = kept.ok_or_else(|| Fault::new(Code::StateInvalid, attempted()).cause("it is damaged"))?;
    Ok(Filter { listener, ..kept.filter() })
}

/// What a filter comes of: the profile's text and all that its meaning depends on.
fn origin(profile: &str) -> Vec<u8> {
    let library = ScmpVersion::current().map(|version| version.to_string()).unwrap_or_default();
    let system = rustix::system::uname();
    let parts = [
        FORM.as_bytes(),
        env!("CARGO_PKG_VERSION").as_bytes(),
        library.as_bytes(),
        std::env::consts::ARCH.as_bytes(),
        system.release().to_bytes(),
        system.version().to_bytes(),
        profile.as_bytes(),
    ];
    let mut origin = Vec::with_capacity(profile.len() + 256);
    for part in parts {
        origin.extend((part.len() as u64).to_le_bytes());
        origin.extend(part);
    }
    origin
}

/// The name of the file for it.
fn name(origin: &[u8]) -> String {
    let mut hash = DefaultHasher::new();
    hash.write(origin);
    format!("{:016x}", hash.finish())
}

/// The directory of kept filters.
struct Cache(OwnedFd);

impl Cache {
    fn open(root: &Path) -> Option<Cache> {
        let path = root.join(CACHE_DIR);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)).ok()?;
                rustix::fs::open(&path, flags, Mode::empty()).ok()?
            }
            result => result.ok()?,
        };
        is_private(fd.as_fd()).then_some(Cache(fd))
    }

    /// The filter of an origin, put into the container's directory. It is compared there, under a name that is no one
    /// else's: what is kept under its own name here may be another's at the next look.
    fn take(&self, origin: &[u8], dir: &Dir) -> Option<Filter> {
        let name = name(origin);
        let filter = match rustix::fs::linkat(&self.0, &name, dir.fd(), FILTER_FILE, AtFlags::empty()) {
            Ok(()) => {
                let filter = same(read(dir.fd(), FILTER_FILE), origin);
                if filter.is_none() {
                    let _ = rustix::fs::unlinkat(dir.fd(), FILTER_FILE, AtFlags::empty());
                }
                filter
            }
            Err(Errno::NOENT) => None,
            // No more links, or another file system.
            Err(_) => same(read(self.0.as_fd(), &name), origin)
                .filter(|filter| write_new(dir.fd(), FILTER_FILE, (&[], filter)).is_ok()),
        };
        filter.inspect(|_| self.mark_used(&name))
    }

    /// Keeps a filter, whole or not at all.
    fn store(&self, name: &str, content: (&[u8], &Filter)) -> sys::Result<()> {
        let temporary = format!(".{name}.{}", rustix::process::getpid().as_raw_nonzero());
        write_new(self.0.as_fd(), &temporary, content)?;
        let renamed = rustix::fs::renameat(&self.0, &temporary, &self.0, name).call("renameat");
        if renamed.is_err() {
            let _ = rustix::fs::unlinkat(&self.0, &temporary, AtFlags::empty());
        }
        renamed
    }

    /// Its time is that of its last use. Where it cannot be set, the filter goes as if it were not used.
    fn mark_used(&self, name: &str) {
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = rustix::fs::utimensat(&self.0, name, &times, AtFlags::SYMLINK_NOFOLLOW);
    }

    /// Removes the filters that were not used for longest, down to [`CACHE_MAX`]; containers have links of their own.
    fn shrink(&self) -> sys::Result<()> {
        let mut kept = Vec::new();
        for entry in Listing::read_from(&self.0).call("getdents64")? {
            let name = entry.call("getdents64")?.file_name().to_owned();
            let stat = rustix::fs::statat(&self.0, &name, AtFlags::SYMLINK_NOFOLLOW);
            // What went meanwhile is none, and the directory itself neither.
            if let Ok(stat) = stat
                && stat.st_mode & libc::S_IFMT == libc::S_IFREG
            {
                kept.push(((stat.st_mtime, stat.st_mtime_nsec), name));
            }
        }
        kept.sort_unstable();
        let excess = kept.len().saturating_sub(CACHE_MAX);
        let mut oldest = kept.iter().take(excess);
        oldest.try_for_each(|(_, name)| rustix::fs::unlinkat(&self.0, name, AtFlags::empty()).call("unlinkat"))
    }
}

/// What was read, if it comes of the origin.
fn same(read: sys::Result<Option<Kept>>, origin: &[u8]) -> Option<Filter> {
    read.ok()?.filter(|kept| kept.origin() == origin).map(|kept| kept.filter())
}

/// Whether a file or directory is ours and closed to others.
fn is_private(fd: BorrowedFd<'_>) -> bool {
    let me = rustix::process::geteuid().as_raw();
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_uid == me && stat.st_mode & 0o077 == 0)
}

/// A file of a filter: `MAGIC`, the flags and the length of the origin (8 bytes each, little endian), the origin, the
/// program. Those of older containers have the flags and the program alone.
struct Kept {
    flags: u64,
    /// The origin is in these bytes, and the program after it.
    origin: std::ops::Range<usize>,
    bytes: Vec<u8>,
}

/// No flags of a filter.
const MAGIC: [u8; 8] = *b"lowrun\0\xff";

impl Kept {
    /// `None` of what is no filter.
    fn parse(bytes: Vec<u8>) -> Option<Kept> {
        let number = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let (flags, origin) = if bytes.starts_with(&MAGIC) {
            let end = usize::try_from(number(16)?).ok()?.checked_add(24)?;
            (number(8)?, 24..end)
        } else {
            (number(0)?, 8..8)
        };
        let program = bytes.get(origin.end..)?;
        let is_whole = !program.is_empty() && program.len().is_multiple_of(kernel::INSTRUCTION_BYTES);
        is_whole.then_some(Kept { flags, origin, bytes })
    }

    fn origin(&self) -> &[u8] {
        &self.bytes[self.origin.clone()]
    }

    fn filter(&self) -> Filter {
        Filter { program: self.bytes[self.origin.end..].to_vec(), flags: self.flags, listener: None }
    }
}

fn read(dir: BorrowedFd<'_>, name: &str) -> sys::Result<Option<Kept>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")?;
    let size = rustix::fs::fstat(&file).call("fstat")?.st_size as u64;
    if !is_private(file.as_fd()) || size > FILE_MAX {
        return Err(Failure { call: "openat", errno: Errno::PERM });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    std::fs::File::from(file).take(FILE_MAX).read_to_end(&mut bytes).call("read")?;
    Ok(Kept::parse(bytes))
}

/// Makes the file of a filter; that of a container has no other name before: nobody reads it until a state tells of it.
fn write_new(dir: BorrowedFd<'_>, name: &str, (origin, filter): (&[u8], &Filter)) -> sys::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).call("openat")?;
    let (flags, length) = (filter.flags.to_le_bytes(), (origin.len() as u64).to_le_bytes());
    let bytes = [&MAGIC[..], &flags, &length, origin, &filter.program].concat();
    let written = std::fs::File::from(file).write_all(&bytes).call("write");
    if written.is_err() {
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
    written
}

fn invalid(cause: impl Into<String>) -> Box<Fault> {
    Fault::new(Code::SeccompFailed, "linux.seccomp").cause(cause)
}

/// Compiles a profile; public for the fuzz target.
pub fn compile(section: &RawValue) -> Result<Option<Filter>> {
    let profile: Seccomp =
        crate::spec::any_case::from_str(section.get()).map_err(|error| invalid(error.to_string()))?;
    if profile.default_action.is_empty() && profile.syscalls.is_empty() {
        return Ok(None);
    }
    if profile.listener_path.is_empty() && !profile.listener_metadata.is_empty() {
        return Err(invalid("listenerMetadata without a listenerPath"));
    }
    let mut flags = profile_flags(profile.flags.as_deref())?;
    let notifies = profile.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_NOTIFY");
    let listener = listener(&profile, notifies)?;
    match listener {
        Some(_) => flags |= kernel::FILTER_FLAG_NEW_LISTENER,
        // It is about waiting for a listener, and the kernel takes it with one only.
        None => flags &= !kernel::FILTER_FLAG_WAIT_KILLABLE_RECV,
    }
    let program = build(&profile)?;
    Ok(Some(Filter { program, flags, listener }))
}

fn listener(profile: &Seccomp, notifies: bool) -> Result<Option<Listener>> {
    if profile.default_action == "SCMP_ACT_NOTIFY" {
        return Err(invalid("SCMP_ACT_NOTIFY cannot be used as default action"));
    }
    if !notifies {
        return Ok(None);
    }
    if profile.listener_path.is_empty() {
        return Err(invalid("SCMP_ACT_NOTIFY needs a listenerPath"));
    }
    let notifies_of = |name: &str| {
        let mut rules = profile.syscalls.iter().filter(|rule| rule.action == "SCMP_ACT_NOTIFY");
        rules.any(|rule| rule.names.iter().any(|named| named == name))
    };
    if notifies_of("write") {
        // lowrun hands the listener over with write(2), which nobody could answer yet.
        return Err(invalid("SCMP_ACT_NOTIFY cannot be used for the write syscall"));
    }
    if rootless::is_unprivileged() && notifies_of("sendmsg") {
        return Err(invalid("SCMP_ACT_NOTIFY cannot be used for the sendmsg syscall without privilege"));
    }
    let (path, metadata) = (profile.listener_path.clone(), profile.listener_metadata.clone());
    Ok(Some(Listener { path, metadata }))
}

/// Names and bits of the flags that a profile may ask for.
pub const FLAGS: [(&str, u64); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", kernel::FILTER_FLAG_TSYNC),
    ("SECCOMP_FILTER_FLAG_LOG", kernel::FILTER_FLAG_LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", kernel::FILTER_FLAG_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", kernel::FILTER_FLAG_WAIT_KILLABLE_RECV),
];

fn profile_flags(names: Option<&[String]>) -> Result<u64> {
    let Some(names) = names else {
        // As runc: without a word about flags, no speculation barriers that cost time.
        let spec_allow = kernel::FILTER_FLAG_SPEC_ALLOW;
        return Ok(if kernel::knows_flags(spec_allow) { spec_allow } else { 0 });
    };
    names.iter().try_fold(0, |flags, name| match FLAGS.iter().find(|(known, _)| known == name) {
        // The filter is installed by the only thread there is.
        Some((_, kernel::FILTER_FLAG_TSYNC)) => Ok(flags),
        Some((_, bit)) if kernel::knows_flags(*bit) => Ok(flags | bit),
        Some(_) => Err(invalid(format!("seccomp flag {name:?} is not supported by the kernel"))),
        None => Err(invalid(format!("seccomp flag {name:?} is not known"))),
    })
}

fn build(profile: &Seccomp) -> Result<Vec<u8>> {
    let program = unmerged(profile)?;
    Ok(ranges::merge(&bpf::from_bytes(&program)).map_or(program, |merged| bpf::to_bytes(&merged)))
}

/// The filter as libseccomp makes it, and what stands before it.
fn unmerged(profile: &Seccomp) -> Result<Vec<u8>> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let library = |what: &str, error: libseccomp::error::SeccompError| invalid(format!("{what}: {error}"));
    let mut filter = ScmpFilterContext::new(default).map_err(|error| library("make a filter", error))?;
    filter.set_ctl_nnp(false).map_err(|error| library("set no_new_privs", error))?;
    for name in &profile.architectures {
        let arch = architecture(name).ok_or_else(|| invalid(format!("architecture {name:?} is not known")))?;
        filter.add_arch(arch).map_err(|error| library("add an architecture", error))?;
    }
    // A binary tree instead of a chain: the average call passes fewer comparisons, should the ranges not be merged.
    let _ = filter.set_ctl_optimize(2);
    for rule in &profile.syscalls {
        add_rule(&mut filter, rule, default)?;
    }
    let program = export(&filter)?;
    Ok(match default {
        // What lets calls through, and a tracer that knows them better.
        ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_) | ScmpAction::Errno(libc::ENOSYS) => program,
        _ => enosys::prepend(&program, profile),
    })
}

fn add_rule(filter: &mut ScmpFilterContext, rule: &Syscall, default: ScmpAction) -> Result<()> {
    let action = action(&rule.action, rule.errno_ret)?;
    if rule.names.iter().any(String::is_empty) {
        return Err(invalid("a rule for a system call without a name".to_owned()));
    }
    if action == default {
        // Says nothing new, and libseccomp calls it an error.
        return Ok(());
    }
    if let Some(arg) = rule.args.iter().find(|arg| arg.index > LAST_ARGUMENT) {
        let names = rule.names.join(", ");
        return Err(invalid(format!("rule for {names}: there is no argument {}: a system call has six", arg.index)));
    }
    for name in &rule.names {
        // A name that this libseccomp does not know: newer than it, or of another architecture. runc skips it too.
        let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
        add_syscall(filter, action, syscall, &rule.args)
            .map_err(|error| invalid(format!("rule for {name}: {error}")))?;
    }
    Ok(())
}

/// libseccomp joins conditions on different arguments with "and" and takes one per argument: several on one argument
/// become rules of their own, as in runc.
fn add_syscall(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    args: &[SyscallArg],
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    let conditions: Vec<ScmpArgCompare> = args.iter().map(condition).collect();
    let twice = (0..args.len()).any(|at| args[..at].iter().any(|other| other.index == args[at].index));
    if twice {
        return conditions
            .into_iter()
            .try_for_each(|one| filter.add_rule_conditional(action, syscall, &[one]).map(drop));
    }
    filter.add_rule_conditional(action, syscall, &conditions).map(drop)
}

fn condition(arg: &SyscallArg) -> ScmpArgCompare {
    let (operator, datum) = match arg.op {
        Operator::NotEqual => (ScmpCompareOp::NotEqual, arg.value),
        Operator::Less => (ScmpCompareOp::Less, arg.value),
        Operator::LessOrEqual => (ScmpCompareOp::LessOrEqual, arg.value),
        Operator::Equal => (ScmpCompareOp::Equal, arg.value),
        Operator::GreaterOrEqual => (ScmpCompareOp::GreaterEqual, arg.value),
        Operator::Greater => (ScmpCompareOp::Greater, arg.value),
        Operator::MaskedEqual => (ScmpCompareOp::MaskedEqual(arg.value), arg.value_two),
    };
    ScmpArgCompare::new(arg.index, operator, datum)
}

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction> {
    if errno.is_some() && !matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE") {
        return Err(invalid(format!("action {name:?} takes no errno")));
    }
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(errno as i32),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(errno as u16),
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        "SCMP_ACT_NOTIFY" => ScmpAction::Notify,
        other => return Err(invalid(format!("action {other:?} is not known"))),
    })
}

/// Architectures by their names in config.json.
pub const ARCHITECTURES: [(&str, ScmpArch); 20] = [
    ("SCMP_ARCH_X86", ScmpArch::X86),
    ("SCMP_ARCH_X86_64", ScmpArch::X8664),
    ("SCMP_ARCH_X32", ScmpArch::X32),
    ("SCMP_ARCH_ARM", ScmpArch::Arm),
    ("SCMP_ARCH_AARCH64", ScmpArch::Aarch64),
    ("SCMP_ARCH_MIPS", ScmpArch::Mips),
    ("SCMP_ARCH_MIPS64", ScmpArch::Mips64),
    ("SCMP_ARCH_MIPS64N32", ScmpArch::Mips64N32),
    ("SCMP_ARCH_MIPSEL", ScmpArch::Mipsel),
    ("SCMP_ARCH_MIPSEL64", ScmpArch::Mipsel64),
    ("SCMP_ARCH_MIPSEL64N32", ScmpArch::Mipsel64N32),
    ("SCMP_ARCH_PPC", ScmpArch::Ppc),
    ("SCMP_ARCH_PPC64", ScmpArch::Ppc64),
    ("SCMP_ARCH_PPC64LE", ScmpArch::Ppc64Le),
    ("SCMP_ARCH_S390", ScmpArch::S390),
    ("SCMP_ARCH_S390X", ScmpArch::S390X),
    ("SCMP_ARCH_PARISC", ScmpArch::Parisc),
    ("SCMP_ARCH_PARISC64", ScmpArch::Parisc64),
    ("SCMP_ARCH_RISCV64", ScmpArch::Riscv64),
    ("SCMP_ARCH_NATIVE", ScmpArch::Native),
];

fn architecture(name: &str) -> Option<ScmpArch> {
    ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, arch)| *arch)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    let attempted = || "compile the seccomp filter";
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .call("memfd_create")
        .attempt(Code::SeccompFailed, attempted)?;
    filter.export_bpf(&memory).map_err(|error| invalid(format!("compile: {error}")))?;
    let mut program = Vec::new();
    rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(0)).call("lseek").attempt(Code::SeccompFailed, attempted)?;
    std::fs::File::from(memory).read_to_end(&mut program).call("read").attempt(Code::SeccompFailed, attempted)?;
    if program.len() / kernel::INSTRUCTION_BYTES > 4096 {
        return Err(invalid("the compiled filter has more than 4096 instructions"));
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str) -> Result<Option<Filter>> {
        compile(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn an_empty_section_filters_nothing() {
        assert!(compiled("{}").unwrap().is_none());
    }

    #[test]
    fn a_profile_becomes_whole_instructions() {
        let filter = compiled(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
                "syscalls":[{"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
        );
        let filter = filter.unwrap().unwrap();
        assert!(!filter.program.is_empty() && filter.program.len().is_multiple_of(kernel::INSTRUCTION_BYTES));
        assert!(filter.listener.is_none());
    }

    #[test]
    fn unknown_words_are_errors() {
        for text in [
            r#"{"defaultAction":"SCMP_ACT_MOON"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_MOON"]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_MOON"]}"#,
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":"SCMP_ACT_KILL","defaultErrnoRet":1}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"x"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["bpf"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        ] {
            assert_eq!(compiled(text).unwrap_err().code, Code::SeccompFailed, "{text}");
        }
    }

    #[test]
    fn the_cache_has_a_bound_and_keeps_what_was_used_last() {
        let (root, states) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, _file) = Dir::create(states.path(), "c").unwrap();
        let section = |number: usize| {
            let text = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":{number},"syscalls":[]}}"#);
            RawValue::from_string(text).unwrap()
        };
        let names = || -> Vec<String> {
            let entries = root.path().join(CACHE_DIR).read_dir().unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let used = root.path().join(CACHE_DIR).join(name(&origin(section(2).get())));
        let prepare_anew = |number: usize| {
            let _ = std::fs::remove_file(dir.path().join(FILTER_FILE));
            prepare(&section(number), root.path(), &dir).unwrap();
        };
        for number in 1..CACHE_MAX + 10 {
            prepare_anew(number);
            assert!(number < 2 || used.exists(), "it has gone after {number}");
            prepare_anew(2);
        }
        assert_eq!(names().len(), CACHE_MAX);
        assert!(names().contains(&name(&origin(section(CACHE_MAX + 9).get()))));
        assert!(!names().contains(&name(&origin(section(1).get()))));
    }

    #[test]
    fn a_cached_filter_comes_back_and_an_open_one_does_not() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let filter = Filter { program: vec![7; 16], flags: 4, listener: None };
        let put = |origin: &[u8], at: &[u8]| cache.store(&name(at), (origin, &filter)).unwrap();
        let states = tempfile::tempdir().unwrap();
        let take = |origin: &[u8], container: &str| {
            let (dir, _file) = Dir::create(states.path(), container).unwrap();
            let taken = cache.take(origin, &dir);
            assert_eq!(taken.is_some(), states.path().join(container).join(FILTER_FILE).exists());
            taken
        };
        put(b"key", b"key");
        assert_eq!(take(b"key", "a").unwrap().program, filter.program);
        // Under the name of another profile, as if two had one hash.
        put(b"key", b"other");
        assert!(take(b"other", "b").is_none());
        let path = root.path().join(CACHE_DIR).join(name(b"key"));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(take(b"key", "c").is_none());
    }

    #[test]
    fn a_profile_that_is_too_long_is_not_kept() {
        let (root, states) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, _file) = Dir::create(states.path(), "c").unwrap();
        let text = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{}]}}"#, " ".repeat(FILE_MAX as usize));
        assert!(prepare(&RawValue::from_string(text).unwrap(), root.path(), &dir).unwrap().is_some());
        assert!(root.path().join(CACHE_DIR).read_dir().unwrap().next().is_none());
        assert!(load(&dir, None).is_ok());
    }

    #[test]
    fn a_damaged_file_is_no_filter_and_an_older_one_is() {
        let whole = [&MAGIC[..], &4_u64.to_le_bytes(), &3_u64.to_le_bytes(), b"key", &[7; 16]].concat();
        let kept = Kept::parse(whole.clone()).unwrap();
        assert_eq!((kept.origin(), kept.filter().flags, kept.filter().program), (&b"key"[..], 4, vec![7; 16]));
        for length in 0..whole.len() {
            // Eight bytes less are a shorter program.
            assert_eq!(Kept::parse(whole[..length].to_vec()).is_some(), length == whole.len() - 8, "{length}");
        }
        let huge = [&MAGIC[..], &4_u64.to_le_bytes(), &u64::MAX.to_le_bytes(), &[7; 16]].concat();
        assert!(Kept::parse(huge).is_none());
        let old = Kept::parse([&4_u64.to_le_bytes()[..], &[7; 16]].concat()).unwrap();
        assert_eq!((old.origin(), old.filter().flags, old.filter().program), (&b""[..], 4, vec![7; 16]));
    }
}
