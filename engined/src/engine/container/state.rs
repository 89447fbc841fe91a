//! The states of a container, and what leads from one to another. Pure: what is to be done is an answer, not an act.
//!
//! ```text
//!                 Start                Started              Ended, and the policy
//!   ┌─────────┐ ───────► ┌──────────┐ ───────► ┌─────────┐  says again ┌────────────┐
//!   │ Created │          │ Starting │          │ Running │ ──────────► │ Restarting │
//!   └─────────┘          └──────────┘          └─────────┘             └────────────┘
//!        ▲    Refused       │  ▲  ▲                │ Ended                │    │
//!        └──────────────────┘  │  └────────────────│──── RestartDue ──────┘    │ Stop
//!          (first start)       │ Start             ▼                           │
//!                Refused       │              ┌────────┐                       │
//!          (any later start)   └───────────── │ Exited │ ◄─────────────────────┘
//!                └──────────────────────────► └────────┘
//!
//!   Remove leads from Created and Exited to Removing, with `force` also from Starting, Running and Restarting, by way of a
//!   kill. From Removing nothing leads back: what is being removed is on no list any more, and its removal is tried until
//!   it succeeds.
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exit::Exit;
use super::wanted::RestartPolicy;
use crate::engine::stamp::Stamp;

/// The first pause before a restart; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A run of this length shows that the program works: the next pause is the shortest again.
const RUN_LONG: Duration = Duration::from_secs(10);

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Created,
    Starting,
    Running { pid: u32 },
    Restarting,
    Exited,
    Removing,
}

impl Phase {
    /// Whether the container counts as running for those who wait, stop or remove.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, Phase::Starting | Phase::Running { .. } | Phase::Restarting)
    }
}

/// What happens to a container.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Somebody wants it started.
    Start,
    /// Its program runs.
    Started { pid: u32, at: Stamp },
    /// Its program could not be started.
    Refused(Exit),
    /// Its program ended.
    Ended(Exit),
    /// Somebody wants it to end.
    Stop,
    /// The pause before a restart is over.
    RestartDue,
    /// Somebody wants it gone.
    Remove { force: bool },
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// Start the program; `Started` or `Refused` follows.
    Begin,
    /// `RestartDue` follows after so long.
    RestartIn(Duration),
    /// Have the program end; `Ended` follows.
    End,
    /// Kill the program; `Ended` follows, and then the removal.
    Kill,
    /// Remove everything.
    Remove,
}

/// Why something cannot happen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    Running,
    BeingRemoved,
}

/// The life of a container so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) phase: Phase,
    /// When the last run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<Stamp>,
    /// How the last run ended, or why it did not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exit: Option<Exit>,
    /// Restarts by policy since somebody last started it.
    #[serde(default)]
    pub(crate) restart_count: u32,
    /// Somebody wanted it to end: the restart policy keeps still.
    #[serde(default)]
    pub(crate) stop_asked: bool,
    /// It goes as soon as it has ended.
    #[serde(default)]
    pub(crate) remove_asked: bool,
    /// The next pause before a restart; it is not worth keeping over a restart of the engine.
    #[serde(skip)]
    pause: Duration,
}

impl Default for Life {
    fn default() -> Life {
        Life {
            phase: Phase::Created,
            started: None,
            exit: None,
            restart_count: 0,
            stop_asked: false,
            remove_asked: false,
            pause: PAUSE_MIN,
        }
    }
}

impl Life {
    /// Lets `event` happen to a container with this policy. `auto_remove`: it goes when it has ended.
    pub(crate) fn on(&mut self, event: Event, policy: RestartPolicy, auto_remove: bool) -> Result<Then, Unfit> {
        match (event, self.phase) {
            (Event::Remove { .. } | Event::Start | Event::Stop, Phase::Removing) => Err(Unfit::BeingRemoved),
            (Event::Remove { force }, _) => self.remove(force),
            (Event::Start, Phase::Starting | Phase::Running { .. }) => Ok(Then::Nothing),
            (Event::Start, _) => Ok(self.begin(true)),
            (Event::RestartDue, Phase::Restarting) => Ok(self.begin(false)),
            (Event::Started { pid, at }, Phase::Starting) => {
                self.phase = Phase::Running { pid };
                self.started = Some(at);
                self.exit = None;
                Ok(if self.remove_asked { Then::Kill } else { Then::Nothing })
            }
            (Event::Refused(exit), Phase::Starting) => Ok(self.refused(exit, auto_remove)),
            (Event::Ended(exit), Phase::Starting | Phase::Running { .. }) => Ok(self.ended(exit, policy, auto_remove)),
            (Event::Stop, _) => Ok(self.stop()),
            // News of a run that is over already.
            (Event::Started { .. } | Event::Refused(_) | Event::Ended(_) | Event::RestartDue, _) => Ok(Then::Nothing),
        }
    }

    fn begin(&mut self, is_by_hand: bool) -> Then {
        if is_by_hand {
            self.restart_count = 0;
            self.pause = PAUSE_MIN;
        } else {
            self.restart_count += 1;
        }
        self.stop_asked = false;
        self.phase = Phase::Starting;
        Then::Begin
    }

    fn refused(&mut self, exit: Exit, auto_remove: bool) -> Then {
        self.phase = if self.started.is_some() { Phase::Exited } else { Phase::Created };
        self.exit = Some(exit);
        self.removed_if(auto_remove)
    }

    fn ended(&mut self, exit: Exit, policy: RestartPolicy, auto_remove: bool) -> Then {
        let ran = self.started.map(|started| exit.at.since(started)).unwrap_or_default();
        let again = !self.stop_asked && !self.remove_asked && self.again(&exit, policy);
        self.exit = Some(exit);
        if again {
            self.phase = Phase::Restarting;
            return Then::RestartIn(self.next_pause(ran));
        }
        self.phase = Phase::Exited;
        self.removed_if(auto_remove)
    }

    fn again(&self, exit: &Exit, policy: RestartPolicy) -> bool {
        match policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure { max_retries } => {
                exit.is_failure() && (max_retries == 0 || self.restart_count < max_retries)
            }
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        }
    }

    fn next_pause(&mut self, ran: Duration) -> Duration {
        if ran >= RUN_LONG {
            self.pause = PAUSE_MIN;
        }
        let pause = self.pause.max(PAUSE_MIN);
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }

    fn removed_if(&mut self, auto_remove: bool) -> Then {
        if auto_remove || self.remove_asked {
            self.phase = Phase::Removing;
            return Then::Remove;
        }
        Then::Nothing
    }

    fn stop(&mut self) -> Then {
        match self.phase {
            Phase::Starting | Phase::Running { .. } => {
                self.stop_asked = true;
                Then::End
            }
            Phase::Restarting => {
                self.stop_asked = true;
                self.phase = Phase::Exited;
                Then::Nothing
            }
            Phase::Created | Phase::Exited | Phase::Removing => {
                // `unless-stopped` remembers this over a restart of the engine.
                self.stop_asked |= self.phase == Phase::Exited;
                Then::Nothing
            }
        }
    }

    fn remove(&mut self, force: bool) -> Result<Then, Unfit> {
        match self.phase {
            Phase::Starting | Phase::Running { .. } if force => {
                self.stop_asked = true;
                self.remove_asked = true;
                Ok(Then::Kill)
            }
            Phase::Starting | Phase::Running { .. } => Err(Unfit::Running),
            Phase::Restarting if !force => Err(Unfit::Running),
            Phase::Restarting | Phase::Created | Phase::Exited | Phase::Removing => {
                self.phase = Phase::Removing;
                Ok(Then::Remove)
            }
        }
    }

    /// Somebody sent the program a signal that is meant to end it: the restart policy keeps still.
    pub(crate) fn killed_by_hand(&mut self) {
        self.stop_asked |= self.phase.is_up();
    }

    /// Whether the engine starts this container when it starts itself, though it had ended before.
    pub(crate) fn starts_with_engine(&self, policy: RestartPolicy) -> bool {
        self.phase == Phase::Exited
            && match policy {
                RestartPolicy::Always => true,
                RestartPolicy::UnlessStopped => !self.stop_asked,
                RestartPolicy::No | RestartPolicy::OnFailure { .. } => false,
            }
    }

    /// After a start that the engine's end cut off was undone: whether it is tried again, and then waits for that. A
    /// restart by policy goes on, and counts once.
    pub(crate) fn tries_again(&mut self, policy: RestartPolicy, was_restart: bool) -> bool {
        let goes_on = was_restart && !self.stop_asked && policy != RestartPolicy::No && self.phase == Phase::Exited;
        if !goes_on && !self.starts_with_engine(policy) {
            return false;
        }
        if was_restart {
            self.restart_count = self.restart_count.saturating_sub(1);
        }
        self.phase = Phase::Restarting;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NO: RestartPolicy = RestartPolicy::No;

    fn exit(code: u32, at_s: u64) -> Exit {
        Exit::seen(code, Stamp::from_ns(at_s * 1_000_000_000), false, None)
    }

    fn started(at_s: u64) -> Event {
        Event::Started { pid: 1, at: Stamp::from_ns(at_s * 1_000_000_000) }
    }

    fn running(policy: RestartPolicy) -> Life {
        let mut life = Life::default();
        assert_eq!(life.on(Event::Start, policy, false), Ok(Then::Begin));
        assert_eq!(life.on(started(1), policy, false), Ok(Then::Nothing));
        life
    }

    #[test]
    fn a_start_that_was_cut_off_is_tried_again_by_policy() {
        let on_failure = RestartPolicy::OnFailure { max_retries: 1 };
        let cut_off = |policy| {
            let mut life = running(policy);
            assert!(matches!(life.on(Event::Ended(exit(1, 2)), policy, false), Ok(Then::RestartIn(_))));
            assert_eq!(life.on(Event::RestartDue, policy, false), Ok(Then::Begin));
            assert_eq!(life.on(Event::Refused(exit(128, 3)), policy, false), Ok(Then::Nothing));
            life
        };
        for policy in [on_failure, RestartPolicy::Always, RestartPolicy::UnlessStopped] {
            let mut life = cut_off(policy);
            assert!(life.tries_again(policy, true));
            assert_eq!((life.phase, life.restart_count), (Phase::Restarting, 0));
        }
        let mut stopped = cut_off(on_failure);
        stopped.stop_asked = true;
        assert!(!stopped.tries_again(on_failure, true), "somebody wanted it to end");
        assert!(!cut_off(on_failure).tries_again(on_failure, false), "its start was by hand");
        assert!(!Life::default().tries_again(RestartPolicy::Always, false), "it never ran");
    }

    #[test]
    fn a_plain_life() {
        let mut life = running(NO);
        assert_eq!(life.on(Event::Start, NO, false), Ok(Then::Nothing), "it runs already");
        assert_eq!(life.on(Event::Remove { force: false }, NO, false), Err(Unfit::Running));
        assert_eq!(life.on(Event::Ended(exit(0, 2)), NO, false), Ok(Then::Nothing));
        assert_eq!(life.phase, Phase::Exited);
        assert_eq!(life.on(Event::Start, NO, false), Ok(Then::Begin), "once more");
        assert_eq!(life.on(Event::Refused(exit(127, 3)), NO, false), Ok(Then::Nothing));
        assert_eq!(life.phase, Phase::Exited);
        assert_eq!(life.on(Event::Remove { force: false }, NO, false), Ok(Then::Remove));
        assert_eq!(life.on(Event::Start, NO, false), Err(Unfit::BeingRemoved));
    }

    #[test]
    fn what_never_started_stays_created() {
        let mut life = Life::default();
        life.on(Event::Start, NO, false).unwrap();
        assert_eq!(life.on(Event::Refused(exit(127, 1)), NO, false), Ok(Then::Nothing));
        assert_eq!((life.phase, life.exit.map(|exit| exit.code)), (Phase::Created, Some(127)));
    }

    #[test]
    fn rm_goes_when_it_has_ended() {
        let mut life = running(NO);
        assert_eq!(life.on(Event::Ended(exit(0, 2)), NO, true), Ok(Then::Remove));
        let mut life = Life::default();
        life.on(Event::Start, NO, true).unwrap();
        assert_eq!(life.on(Event::Refused(exit(127, 1)), NO, true), Ok(Then::Remove));
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_a_long_run_forgives() {
        let mut life = running(RestartPolicy::Always);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let Ok(Then::RestartIn(pause)) = life.on(Event::Ended(exit(1, 2)), RestartPolicy::Always, false) else {
                panic!("not restarted");
            };
            pauses.push(pause.as_millis());
            assert_eq!(life.on(Event::RestartDue, RestartPolicy::Always, false), Ok(Then::Begin));
            life.on(started(1), RestartPolicy::Always, false).unwrap();
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(life.restart_count, 12);
        let then = life.on(Event::Ended(exit(0, 100)), RestartPolicy::Always, false);
        assert_eq!(then, Ok(Then::RestartIn(PAUSE_MIN)));
    }

    #[test]
    fn failures_are_retried_so_often() {
        let policy = RestartPolicy::OnFailure { max_retries: 2 };
        let mut life = running(policy);
        for _ in 0..2 {
            assert!(matches!(life.on(Event::Ended(exit(1, 2)), policy, false), Ok(Then::RestartIn(_))));
            life.on(Event::RestartDue, policy, false).unwrap();
            life.on(started(1), policy, false).unwrap();
        }
        assert_eq!(life.on(Event::Ended(exit(1, 2)), policy, false), Ok(Then::Nothing));
        let mut fine = running(policy);
        assert_eq!(fine.on(Event::Ended(exit(0, 2)), policy, false), Ok(Then::Nothing), "no failure");
    }

    #[test]
    fn a_stop_stills_the_policy() {
        let mut life = running(RestartPolicy::Always);
        assert_eq!(life.on(Event::Stop, RestartPolicy::Always, false), Ok(Then::End));
        assert_eq!(life.on(Event::Ended(exit(143, 2)), RestartPolicy::Always, false), Ok(Then::Nothing));
        assert!(life.starts_with_engine(RestartPolicy::Always));
        assert!(!life.starts_with_engine(RestartPolicy::UnlessStopped));
        let mut life = running(RestartPolicy::Always);
        life.on(Event::Ended(exit(1, 2)), RestartPolicy::Always, false).unwrap();
        assert_eq!(life.on(Event::Stop, RestartPolicy::Always, false), Ok(Then::Nothing), "during the pause");
        assert_eq!(life.phase, Phase::Exited);
        assert_eq!(life.on(Event::RestartDue, RestartPolicy::Always, false), Ok(Then::Nothing));
    }

    #[test]
    fn force_kills_and_then_removes() {
        let mut life = running(RestartPolicy::Always);
        assert_eq!(life.on(Event::Remove { force: true }, RestartPolicy::Always, false), Ok(Then::Kill));
        assert_eq!(life.on(Event::Ended(exit(137, 2)), RestartPolicy::Always, false), Ok(Then::Remove));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            (0..20u64).prop_map(started),
            (0..200u32).prop_map(|code| Event::Refused(exit(code, 1))),
            (0..200u32, 0..20u64).prop_map(|(code, at)| Event::Ended(exit(code, at))),
            Just(Event::Stop),
            Just(Event::RestartDue),
            any::<bool>().prop_map(|force| Event::Remove { force }),
        ]
    }

    fn any_policy() -> impl Strategy<Value = RestartPolicy> {
        prop_oneof![
            Just(RestartPolicy::No),
            (0..3u32).prop_map(|max_retries| RestartPolicy::OnFailure { max_retries }),
            Just(RestartPolicy::Always),
            Just(RestartPolicy::UnlessStopped),
        ]
    }

    proptest! {
        #[test]
        fn what_is_to_be_done_fits_the_phase(
            events in proptest::collection::vec(any_event(), 0..40), policy in any_policy(), auto_remove: bool,
        ) {
            let mut life = Life::default();
            for event in events {
                let before = life.clone();
                match life.on(event, policy, auto_remove) {
                    Err(_) => prop_assert_eq!(&life, &before, "a refusal changes nothing"),
                    Ok(Then::Begin) => prop_assert_eq!(life.phase, Phase::Starting),
                    Ok(Then::RestartIn(pause)) => {
                        prop_assert_eq!(life.phase, Phase::Restarting);
                        prop_assert!((PAUSE_MIN..=PAUSE_MAX).contains(&pause));
                        prop_assert!(policy != RestartPolicy::No);
                    }
                    Ok(Then::End) => prop_assert!(life.stop_asked && life.phase.is_up()),
                    Ok(Then::Kill) => prop_assert!(life.remove_asked),
                    Ok(Then::Remove) => prop_assert_eq!(life.phase, Phase::Removing),
                    Ok(Then::Nothing) => {}
                }
            }
        }

        #[test]
        fn a_life_is_read_back(events in proptest::collection::vec(any_event(), 0..10), policy in any_policy()) {
            let mut life = Life::default();
            for event in events {
                let _ = life.on(event, policy, false);
            }
            let text = serde_json::to_string(&life).unwrap();
            let mut back: Life = serde_json::from_str(&text).unwrap();
            back.pause = life.pause;
            prop_assert_eq!(back, life);
        }
    }
}
