//! The daemons that are killed, and started again.

use integration::{Stack, wait};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Engined,
    Supervisor,
}

impl Victim {
    pub(crate) fn pid(self, s: &mut Stack) -> i32 {
        match self {
            Victim::Engined => s.daemons().engined().pid(),
            Victim::Supervisor => s.daemons().supervisor().pid(),
        }
    }

    pub(crate) fn is_dead(self, s: &mut Stack) -> bool {
        match self {
            Victim::Engined => s.daemons().engined().is_over(),
            Victim::Supervisor => s.daemons().supervisor().is_over(),
        }
    }

    /// Kills it, if it is not dead yet, and starts another.
    pub(crate) fn replace(self, s: &mut Stack) {
        match self {
            Victim::Engined => {
                s.daemons().engined().kill();
                s.daemons().restart_engined();
            }
            Victim::Supervisor => {
                s.daemons().supervisor().kill();
                s.daemons().restart_supervisor();
            }
        }
        wait::until_true("engined answers", || s.run(&["ps", "-aq"]).code == 0);
    }

    /// SIGKILL without another daemon.
    pub(crate) fn kill(self, s: &mut Stack) {
        match self {
            Victim::Engined => s.daemons().engined().kill(),
            Victim::Supervisor => s.daemons().supervisor().kill(),
        }
    }
}
