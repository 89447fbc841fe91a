pub(crate) mod container;
pub(crate) mod error;
pub(crate) mod image;
pub(crate) mod signal;
pub(crate) mod spec;
pub(crate) mod stamp;
