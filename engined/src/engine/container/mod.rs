pub(crate) mod exit;
pub(crate) mod id;
pub(crate) mod state;
pub(crate) mod wanted;
