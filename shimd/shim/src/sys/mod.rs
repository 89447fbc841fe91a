//! The system calls that neither std nor rustix has in the form that the shim needs; the only unsafe code of the shim.

pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod signal;
