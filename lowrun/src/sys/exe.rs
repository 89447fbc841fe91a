//! Makes sure that nobody in a container can write to lowrun's own program file (CVE-2019-5736).
//!
//! While lowrun prepares a container it runs, for a moment, among the container's processes, and `/proc/PID/exe` then
//! leads to its file. A process of the container that is root on the host could open it and, once nobody executes it
//! any more, write to it. So `/proc/self/exe` must lead to a file that cannot be written: lowrun gives its own process
//! another program file, the same file seen through a read-only mount that is attached nowhere.
//!
//! The usual way is to execute lowrun again from there, which costs as much as a good part of its work. Here the
//! process stays: its program's pages are mapped anew from the read-only mount at the same addresses, and then
//! `prctl(PR_SET_MM)` (which refuses while the old file is mapped) exchanges the link. Where the kernel does not let
//! it (no privilege, no detached mounts), a sealed copy in memory is executed instead.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::process::PrctlMmMap;

use super::mount::{MOUNT_ATTR_RDONLY, MountAttr, clone_path, mount_setattr};
use super::process::{Strings, fexecve};
use super::{Call, Failure, Result, check};

const SELF: &str = "/proc/self/exe";
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Returns when the program file of this process cannot be written; the process may have been executed anew for it.
///
/// The mount that comes back is to be dropped when there is time: the kernel takes a detached mount apart on the last
/// close of its descriptor and waits for all CPUs with it, which costs more than all the rest here.
pub fn protect() -> Result<Option<OwnedFd>> {
    if is_protected()? {
        return Ok(None);
    }
    match exchange() {
        Ok(mount) => Ok(Some(mount)),
        Err(_) => execute_copy(&open_self()?).map(|()| None),
    }
}

fn open_self() -> Result<OwnedFd> {
    rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call("open")
}

/// On a read-only mount, or a sealed file in memory: a caller may have seen to it.
fn is_protected() -> Result<bool> {
    let stat = rustix::fs::statfs(SELF).call("statfs")?;
    // As statvfs(3) calls them; a file in memory is one of a tmpfs.
    if stat.f_flags as u64 & libc::ST_RDONLY != 0 {
        return Ok(true);
    }
    let is_in_memory = stat.f_type == libc::TMPFS_MAGIC;
    Ok(is_in_memory && rustix::fs::fcntl_get_seals(open_self()?).is_ok_and(|seals| seals.contains(SEALS)))
}

/// Exchanges the program file under the running process.
fn exchange() -> Result<OwnedFd> {
    let tree = clone_path(Path::new(SELF), false)?;
    mount_setattr(tree.as_fd(), false, &MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call("open")?;
    // Asked first, because once the pages are exchanged the rest must work too.
    let way = Way::open()?;
    for segment in segments() {
        segment.map_from(&file)?;
    }
    way.exchange(file.as_fd()).map(|()| tree)
}

/// How the kernel lets the link be exchanged.
enum Way {
    /// `PR_SET_MM_EXE_FILE`, with `CAP_SYS_RESOURCE`.
    Link,
    /// `PR_SET_MM_MAP`, with `CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE` in a kernel that can checkpoint: takes all
    /// addresses of the process with the file, which stay as they are.
    Map(PrctlMmMap),
}

impl Way {
    fn open() -> Result<Way> {
        const CAP_SYS_RESOURCE: u64 = 1 << 24;
        const CAP_CHECKPOINT: u64 = 1 << 21 | 1 << 40;
        let has = super::caps::capget()?.effective;
        if has & CAP_SYS_RESOURCE != 0 {
            return Ok(Way::Link);
        }
        let call = "prctl(PR_SET_MM_MAP_SIZE)";
        let size = rustix::process::virtual_memory_map_config_struct_size().call(call)?;
        if has & CAP_CHECKPOINT == 0 || size != size_of::<PrctlMmMap>() {
            return Err(Failure { call, errno: Errno::PERM });
        }
        addresses().map(Way::Map)
    }

    fn exchange(self, file: BorrowedFd<'_>) -> Result<()> {
        match self {
            Way::Link => rustix::process::set_executable_file(file).call("prctl(PR_SET_MM_EXE_FILE)"),
            Way::Map(mut map) => {
                map.exe_fd = file.as_raw_fd();
                // SAFETY: the addresses are those that the kernel has already; only the file is another.
                unsafe { rustix::process::configure_virtual_memory_map(&map) }.call("prctl(PR_SET_MM_MAP)")
            }
        }
    }
}

/// The addresses that the kernel keeps of this process, from fields 26 to 51 of `/proc/self/stat`.
fn addresses() -> Result<PrctlMmMap> {
    let damaged = Failure { call: "read(stat)", errno: Errno::INVAL };
    let text = super::read_kernel_file("/proc/self/stat")?;
    let text = String::from_utf8_lossy(&text);
    let after = text.rfind(')').ok_or(damaged)?;
    let fields: Vec<&str> = text[after + 1..].split_whitespace().collect();
    // The first field after the name is number 3.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).ok_or(damaged);
    // SAFETY: brk(0) changes nothing and gives the present end.
    let brk = unsafe { libc::syscall(libc::SYS_brk, 0) } as u64;
    Ok(PrctlMmMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: std::ptr::null_mut(),
        auxv_size: 0,
        exe_fd: -1,
    })
}

/// A part of the program that is mapped from its file.
struct Segment {
    address: usize,
    length: usize,
    offset: u64,
    protection: i32,
    /// Pages at the start of a writable part that became read-only after relocation.
    relro: Option<(usize, usize)>,
}

impl Segment {
    fn map_from(&self, file: &OwnedFd) -> Result<()> {
        if self.protection & libc::PROT_WRITE == 0 { self.map_readonly(file) } else { self.copy() }
    }

    /// The same bytes of the same file at the same place, through another mount.
    fn map_readonly(&self, file: &OwnedFd) -> Result<()> {
        // SAFETY: replaces pages of this program that nobody can have changed (they are not writable) by the same
        // pages of the same file, which the kernel keeps from being written while it is executed. The exchange is
        // atomic for the only thread, which goes on in equal code.
        let mapped = unsafe {
            libc::mmap(
                self.address as *mut libc::c_void,
                self.length,
                self.protection,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                file.as_raw_fd(),
                self.offset as libc::off_t,
            )
        };
        check("mmap", if mapped == libc::MAP_FAILED { -1 } else { 0 }).map(drop)
    }

    /// Variables may have changed: they move to memory that belongs to no file.
    fn copy(&self) -> Result<()> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // All of it will be written at once: one fault in place of one for each page.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping anywhere.
        let copy = unsafe { libc::mmap(std::ptr::null_mut(), self.length, protection, flags, -1, 0) };
        check("mmap", if copy == libc::MAP_FAILED { -1 } else { 0 })?;
        let place = self.address as *mut libc::c_void;
        // SAFETY: both ranges are mapped and `length` long. Between the copy and the move nothing of this program
        // writes to its variables: the only thread makes one system call, whose failure would store errno in
        // thread-local memory that lies elsewhere.
        let moved = unsafe {
            std::ptr::copy_nonoverlapping(place.cast::<u8>(), copy.cast::<u8>(), self.length);
            libc::mremap(copy, self.length, self.length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place)
        };
        check("mremap", if moved == libc::MAP_FAILED { -1 } else { 0 })?;
        match self.relro {
            None => Ok(()),
            Some((address, length)) => {
                // SAFETY: the range is a part of what was just mapped, and was read-only before.
                let result = unsafe { libc::mprotect(address as *mut libc::c_void, length, libc::PROT_READ) };
                check("mprotect", result.into()).map(drop)
            }
        }
    }
}

/// The parts of this program that the kernel mapped from its file, from the program's own headers.
fn segments() -> Vec<Segment> {
    const PAGE: usize = 4096;
    // SAFETY: the kernel gives these two values to every program; they describe headers that stay mapped.
    let headers: &[libc::Elf64_Phdr] = unsafe {
        let first = libc::getauxval(libc::AT_PHDR) as *const libc::Elf64_Phdr;
        std::slice::from_raw_parts(first, libc::getauxval(libc::AT_PHNUM) as usize)
    };
    // A program that is not bound to an address is shifted by the distance of its headers from where they say they are.
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let shift = own.map_or(0, |own| headers.as_ptr() as usize - own.p_vaddr as usize);
    let relro = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO).map(|header| {
        let start = (shift + header.p_vaddr as usize) & !(PAGE - 1);
        let end = (shift + (header.p_vaddr + header.p_memsz) as usize) & !(PAGE - 1);
        (start, end.saturating_sub(start))
    });
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_filesz > 0);
    loaded
        .map(|header| {
            let lead = header.p_vaddr as usize & (PAGE - 1);
            let address = shift + header.p_vaddr as usize - lead;
            let length = (lead + header.p_filesz as usize).next_multiple_of(PAGE);
            let has = |flag: u32, protection: i32| if header.p_flags & flag != 0 { protection } else { 0 };
            Segment {
                address,
                length,
                offset: header.p_offset - lead as u64,
                protection: has(libc::PF_R, libc::PROT_READ)
                    | has(libc::PF_W, libc::PROT_WRITE)
                    | has(libc::PF_X, libc::PROT_EXEC),
                relro: relro.filter(|(start, length)| *length > 0 && *start >= address),
            }
        })
        .collect()
}

/// Executes a sealed copy in memory, with the same arguments and environment.
fn execute_copy(program: &OwnedFd) -> Result<()> {
    let copy =
        rustix::fs::memfd_create("lowrun", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).call("memfd_create")?;
    let size = rustix::fs::fstat(program).call("fstat")?.st_size as usize;
    let mut sent = 0;
    while sent < size {
        match rustix::fs::sendfile(&copy, program, None, size - sent).call("sendfile")? {
            0 => return Err(Failure { call: "sendfile", errno: Errno::IO }),
            count => sent += count,
        }
    }
    std::fs::File::from(copy.try_clone().call("fcntl")?).flush().call("write")?;
    rustix::fs::fcntl_add_seals(&copy, SEALS).call("fcntl(F_ADD_SEALS)")?;
    let words = |all: Vec<Vec<u8>>| Strings::new(all.into_iter().filter_map(|word| CString::new(word).ok()).collect());
    let arguments = words(std::env::args_os().map(OsStringExt::into_vec).collect());
    let environment =
        words(std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect());
    Err(fexecve(copy.as_fd(), &arguments, &environment))
}
