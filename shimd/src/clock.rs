//! Wall-clock time as the protocols carry it.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// Now.
pub(crate) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// `time`; what lies before 1970 becomes 1970.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
}
