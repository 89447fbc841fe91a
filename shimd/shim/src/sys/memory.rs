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
