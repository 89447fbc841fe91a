//! The size of a terminal.

use std::os::fd::BorrowedFd;

use proto_engine::WindowSize;
use rustix::termios;

/// The columns of the terminal on `fd`; `None` when it is no terminal. A terminal that does not say has 80.
pub(crate) fn columns(fd: BorrowedFd<'_>) -> Option<usize> {
    if !termios::isatty(fd) {
        return None;
    }
    let columns = termios::tcgetwinsize(fd).map_or(0, |size| size.ws_col);
    Some(if columns == 0 { 80 } else { columns.into() })
}

/// The lines of the terminal on `fd`, when it says.
pub(crate) fn rows(fd: BorrowedFd<'_>) -> Option<usize> {
    let rows = termios::tcgetwinsize(fd).map_or(0, |size| size.ws_row);
    (rows > 0).then_some(rows.into())
}

/// The size of the terminal on standard output (where the program's screen is); `None` when there is none or it does
/// not say.
pub(crate) fn window() -> Option<WindowSize> {
    let size = termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    let window = WindowSize { width: size.ws_col.into(), height: size.ws_row.into() };
    (window.width > 0 || window.height > 0).then_some(window)
}
