//! Keeping the heap small.

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
