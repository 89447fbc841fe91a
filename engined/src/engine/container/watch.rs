//! Waiting for the end of a program, whatever happens to the supervisor meanwhile.

use std::time::{Duration, SystemTime};

use strata_fault::{Fault, GrpcCode, Layer, code};

use super::exit::Problem;
use crate::containerd::Client;
use crate::containerd::tasks::Ended;

/// The first pause before the supervisor is asked again.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How a run ended, as far as anybody knows.
#[derive(Clone, Debug)]
pub(super) enum End {
    Seen(Ended),
    /// Nobody saw it; at that time it was noticed.
    Unseen {
        at: SystemTime,
        problem: Problem,
    },
}

impl End {
    fn unseen(problem: Problem) -> End {
        End::Unseen { at: SystemTime::now(), problem }
    }
}

/// Returns when the program of `container` has ended. A supervisor that is restarted is asked again: the shim keeps the
/// exit code until then.
pub(super) async fn until_end(client: &Client, container: &str) -> End {
    let mut pause = PAUSE_MIN;
    loop {
        match client.wait_task(container, "").await {
            Ok(ended) => return End::Seen(ended),
            Err(fault) if is_final(&fault) => return End::unseen(why_unseen(&fault)),
            Err(fault) => tracing::debug!(%fault, container, "the supervisor is asked again for the end"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// How a run ended of which the supervisor knows nothing any more.
pub(super) fn lost(boot_is_same: bool) -> End {
    End::unseen(if boot_is_same { vanished() } else { rebooted() })
}

fn is_final(fault: &Fault) -> bool {
    fault.code == code::SHIM_DIED || fault.grpc == GrpcCode::NotFound
}

fn why_unseen(fault: &Fault) -> Problem {
    if fault.code == code::SHIM_DIED { Problem::from(fault) } else { vanished() }
}

fn vanished() -> Problem {
    let message = "the supervisor knows nothing of the container's program any more: its exit code is unknown";
    Problem::new(Layer::Supervisor, "watch", "TASK_VANISHED", message)
}

fn rebooted() -> Problem {
    Problem::new(Layer::Kernel, "watch", "HOST_RESTARTED", "the host was restarted while the container ran")
}
