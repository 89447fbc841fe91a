//! Keeping the process small.

/// Bytes of free heap that malloc keeps at the top instead of giving them back.
const KEPT_BYTES: libc::c_int = 16 << 10;

/// Tells malloc to grow and to shrink the heap in small steps.
pub(crate) fn keep_heap_small() {
    // SAFETY: mallopt changes settings of malloc and is called before there is a second thread; there never is one.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TOP_PAD, KEPT_BYTES);
    }
}

/// Gives all free pages of the heap back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim looks at malloc's own lists only.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes of the stack that [`release_stack`] looks at; calls have never gone deeper.
const STACK_BYTES: usize = 128 << 10;

/// Gives back the pages of the stack that earlier calls have used and that nobody uses now. They are zeros when they
/// are used again.
#[inline(never)]
pub(crate) fn release_stack() {
    let here = 0_u8;
    let page = rustix::param::page_size();
    // One page more is left alone: the frame of madvise itself lies there.
    let end = (&raw const here).addr() / page * page - page;
    // SAFETY: below the frame of this call the stack holds nothing but the frames of what it calls, for which a page is
    // spared. There is no other thread, and signals have no handlers. Below the stack the kernel keeps a gap that is
    // wider than the range (stack_guard_gap), and says ENOMEM of what is not mapped.
    unsafe {
        libc::madvise(std::ptr::with_exposed_provenance_mut(end - STACK_BYTES), STACK_BYTES, libc::MADV_DONTNEED)
    };
}

unsafe extern "C" {
    /// The linker's names for the first byte of the program and the one after its code. What lies between is the
    /// program's file, mapped read-only.
    static __executable_start: u8;
    static etext: u8;
}

/// Gives back the pages of the program's code. They come again from the page cache when they are executed, which costs
/// a few microseconds after a long sleep; until then they are not counted.
pub(crate) fn release_code() {
    let begin = (&raw const __executable_start).addr();
    let length = (&raw const etext).addr() - begin;
    // SAFETY: the range is the read-only part of the program's file. Dropping its pages changes nothing that can be
    // read: each comes back from the file as it was. An error would only mean that they stay.
    unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(begin), length, libc::MADV_DONTNEED) };
}
