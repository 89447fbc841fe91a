//! The sandbox service: what the containers of a pod share, from before the first of them until after the last.
//!
//! A sandbox of this shim has no process: the namespaces of a pod are made, or pinned, by whoever asks for it. It is
//! the promise that this shim stays, and one handle on all of its containers.
//!
//! ```text
//!   CreateSandbox          StartSandbox         StopSandbox                     the last container has ended
//! ───────────────▶ Created ───────────▶ Ready ─────────────▶ Asked ─▶ Forced ─────────────────▶ Stopped
//!                                                          (SIGTERM)  (SIGKILL)
//! ```
//! ShutdownSandbox ends the shim, once there is no container in it.

use std::collections::HashMap;
use std::time::Duration;

use proto_shim::sandbox::{
    CreateSandboxRequest, PingRequest, PlatformRequest, PlatformResponse, SandboxMetricsRequest,
    SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, WaitSandboxRequest, WaitSandboxResponse,
};
use proto_shim::task::KillRequest;
use proto_shim::types::{Metric, Platform};

use super::calls::WAITING_MAX;
use super::container::Container;
use super::process::{Exit, Key, timestamp};
use super::{Answer, Tasks, decode};
use crate::error::Error;
use crate::server::Reply;
use crate::timers::Due;
use crate::world::World;

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// How long a process that was killed may take to end before it is killed again.
const KILL_PAUSE: Duration = Duration::from_secs(1);
/// The states that clients know, as the CRI names them.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Created,
    Ready,
    /// Its containers were asked to end.
    Asked,
    /// Its containers are killed, each as it comes up, and again after a pause.
    Forced,
    Stopped(Exit),
}

/// The one sandbox that a shim may have.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: String,
    phase: Phase,
    created_at: prost_types::Timestamp,
    /// Who called WaitSandbox.
    waiting: Vec<Reply>,
    /// Who called StopSandbox.
    stopping: Vec<Reply>,
    /// Inits that were killed since the last pause.
    killed: Vec<Key>,
}

impl Tasks {
    pub(super) fn dispatch_sandbox(
        &mut self,
        method: &str,
        payload: &[u8],
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        match method {
            "CreateSandbox" => self.create_sandbox(decode(payload)?),
            "StartSandbox" => self.start_sandbox(decode(payload)?),
            "Platform" => self.platform(decode(payload)?),
            "StopSandbox" => self.stop_sandbox(decode(payload)?, reply, world),
            "WaitSandbox" => self.wait_sandbox(decode(payload)?, reply, world),
            "SandboxStatus" => self.sandbox_status(decode(payload)?),
            "PingSandbox" => self.ping_sandbox(decode(payload)?),
            "ShutdownSandbox" => self.shutdown_sandbox(decode(payload)?, world),
            "SandboxMetrics" => self.sandbox_metrics(decode(payload)?),
            _ => Err(Error::Unimplemented { what: format!("method {method} is not known") }),
        }
    }

    fn create_sandbox(&mut self, request: CreateSandboxRequest) -> Result<Answer, Error> {
        if request.sandbox_id.is_empty() {
            return Err(Error::Invalid { what: "the sandbox has no id".to_owned() });
        }
        if let Some(sandbox) = &self.sandbox {
            return Err(Error::Exists { what: format!("this shim has the sandbox {}", sandbox.id) });
        }
        if !request.rootfs.is_empty() {
            return Err(Error::Invalid { what: "a sandbox without a process has no root file system".to_owned() });
        }
        self.sandbox = Some(Sandbox {
            id: request.sandbox_id,
            phase: Phase::Created,
            created_at: timestamp(),
            waiting: Vec::new(),
            stopping: Vec::new(),
            killed: Vec::new(),
        });
        Ok(Answer::empty())
    }

    fn start_sandbox(&mut self, request: StartSandboxRequest) -> Result<Answer, Error> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        if sandbox.phase != Phase::Created {
            let is_running = sandbox.phase == Phase::Ready;
            return Err(Error::State { what: format!("sandbox {} was started", sandbox.id), is_running });
        }
        sandbox.phase = Phase::Ready;
        Ok(Answer::message(&StartSandboxResponse { pid: 0, created_at: Some(sandbox.created_at), spec: None }))
    }

    fn platform(&mut self, request: PlatformRequest) -> Result<Answer, Error> {
        self.sandbox(&request.sandbox_id)?;
        Ok(Answer::message(&PlatformResponse { platform: Some(platform()) }))
    }

    fn stop_sandbox(
        &mut self,
        request: StopSandboxRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        if let Phase::Stopped(_) = sandbox.phase {
            return Ok(Answer::empty());
        }
        keep(&mut sandbox.stopping, reply, world)?;
        if request.timeout_secs == 0 {
            sandbox.phase = Phase::Forced;
        } else if sandbox.phase != Phase::Forced {
            sandbox.phase = Phase::Asked;
            world.timers.set(Due::StopSandbox, Duration::from_secs(request.timeout_secs.into()));
            let alive = self.alive_containers();
            self.signal_containers(&alive, SIGTERM, world);
        }
        // The rest is done with each event: see settle_sandbox.
        Ok(Answer::Later)
    }

    fn wait_sandbox(
        &mut self,
        request: WaitSandboxRequest,
        reply: &mut Option<Reply>,
        world: &World,
    ) -> Result<Answer, Error> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        if let Phase::Stopped(exit) = sandbox.phase {
            return Ok(Answer::message(&wait_response(exit)));
        }
        keep(&mut sandbox.waiting, reply, world)?;
        Ok(Answer::Later)
    }

    fn sandbox_status(&mut self, request: SandboxStatusRequest) -> Result<Answer, Error> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("shimPid".to_owned(), std::process::id().to_string());
        }
        Ok(Answer::message(&SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            pid: 0,
            state: if sandbox.phase == Phase::Ready { READY } else { NOT_READY }.to_owned(),
            info,
            created_at: Some(sandbox.created_at),
            exited_at: match sandbox.phase {
                Phase::Stopped(exit) => Some(exit.at),
                _ => None,
            },
            extra: None,
        }))
    }

    fn ping_sandbox(&mut self, request: PingRequest) -> Result<Answer, Error> {
        self.sandbox(&request.sandbox_id).map(|_| Answer::empty())
    }

    fn shutdown_sandbox(&mut self, request: ShutdownSandboxRequest, world: &mut World) -> Result<Answer, Error> {
        self.sandbox(&request.sandbox_id)?;
        if !self.has_no_container() {
            let what = format!("sandbox {} has containers", request.sandbox_id);
            return Err(Error::State { what, is_running: true });
        }
        self.stopped(world);
        self.sandbox = None;
        self.quit_if_empty();
        Ok(Answer::empty())
    }

    /// There is nothing of a sandbox itself to measure: what its containers use, they tell.
    fn sandbox_metrics(&mut self, request: SandboxMetricsRequest) -> Result<Answer, Error> {
        let id = self.sandbox(&request.sandbox_id)?.id.clone();
        let metrics = Metric { timestamp: Some(timestamp()), id, data: None };
        Ok(Answer::message(&SandboxMetricsResponse { metrics: Some(metrics) }))
    }

    fn sandbox(&mut self, id: &str) -> Result<&mut Sandbox, Error> {
        let found = self.sandbox.as_mut().filter(|sandbox| sandbox.id == id);
        found.ok_or_else(|| Error::NotFound { what: format!("sandbox {id} was not created") })
    }

    /// Whether the sandbox, where there is one, takes another container, or another program in one that it has.
    pub(super) fn check_sandbox_takes(&self) -> Result<(), Error> {
        match &self.sandbox {
            Some(Sandbox { id, phase: Phase::Asked | Phase::Forced | Phase::Stopped(_), .. }) => {
                Err(Error::State { what: format!("sandbox {id} is stopped"), is_running: false })
            }
            _ => Ok(()),
        }
    }

    /// The containers had their time to end, of themselves or after they were killed.
    pub(super) fn force_sandbox(&mut self) {
        let is_stopping = |sandbox: &&mut Sandbox| matches!(sandbox.phase, Phase::Asked | Phase::Forced);
        if let Some(sandbox) = self.sandbox.as_mut().filter(is_stopping) {
            sandbox.phase = Phase::Forced;
            sandbox.killed.clear();
        }
    }

    /// Goes on with stopping. A container that was being made when the sandbox was asked to stop comes up later: so
    /// this looks whenever something has happened.
    pub(super) fn settle_sandbox(&mut self, world: &mut World) {
        let phase = self.sandbox.as_ref().map(|sandbox| sandbox.phase);
        if !matches!(phase, Some(Phase::Asked | Phase::Forced)) {
            return;
        }
        if phase == Some(Phase::Forced) {
            self.kill_containers(world);
        }
        if self.containers.iter().all(has_ended) {
            self.stopped(world);
        }
    }

    /// Kills those that were not killed just now: a process may take its time to end, and the runtime, which kills a
    /// paused one, to be told again.
    fn kill_containers(&mut self, world: &mut World) {
        let alive = self.alive_containers();
        let Some(sandbox) = &mut self.sandbox else { return };
        let due: Vec<Key> = alive.into_iter().filter(|key| !sandbox.killed.contains(key)).collect();
        if due.is_empty() {
            return;
        }
        sandbox.killed.extend(&due);
        world.timers.set_once(Due::StopSandbox, KILL_PAUSE);
        self.signal_containers(&due, SIGKILL, world);
    }

    fn alive_containers(&self) -> Vec<Key> {
        let inits = self.containers.iter().map(|container| &container.init);
        inits.filter(|init| init.pid != 0 && init.is_alive()).map(|init| init.key).collect()
    }

    /// A paused process is killed by the runtime, one call at a time.
    fn signal_containers(&mut self, inits: &[Key], signal: u32, world: &mut World) {
        for key in inits.iter().filter(|key| !self.is_being_killed(**key)).copied().collect::<Vec<Key>>() {
            let Some(container) = self.container_of(key) else { continue };
            let request = KillRequest { id: container.id.clone(), exec_id: String::new(), signal, all: false };
            // It may just have ended.
            if let Err(error) = self.kill(request, &mut None, world)
                && !matches!(error, Error::NotFound { .. })
            {
                world.warn("end a container of a sandbox", &error);
            }
        }
    }

    fn stopped(&mut self, world: &mut World) {
        let Some(sandbox) = &mut self.sandbox else { return };
        world.timers.clear(Due::StopSandbox);
        if !matches!(sandbox.phase, Phase::Stopped(_)) {
            sandbox.phase = Phase::Stopped(Exit::now(0));
        }
        let Phase::Stopped(exit) = sandbox.phase else { return };
        let (stopping, waiting) = (std::mem::take(&mut sandbox.stopping), std::mem::take(&mut sandbox.waiting));
        for reply in stopping {
            world.server.answer(reply, Ok(Vec::new()), Vec::new(), &mut world.poller);
        }
        let exit = prost::Message::encode_to_vec(&wait_response(exit));
        for reply in waiting {
            world.server.answer(reply, Ok(exit.clone()), Vec::new(), &mut world.poller);
        }
    }
}

/// Whether a container has no process any more, or none yet: of one that is made of a checkpoint the start makes it,
/// and that is refused by now.
fn has_ended(container: &Container) -> bool {
    container.init.exit().is_some() || container.waits_to_be_restored()
}

/// Keeps a caller until it can be answered. Those whose connection is gone wait no longer.
fn keep(callers: &mut Vec<Reply>, reply: &mut Option<Reply>, world: &World) -> Result<(), Error> {
    callers.retain(|caller| world.server.reaches(caller));
    if callers.len() >= WAITING_MAX {
        return Err(Error::Busy { what: format!("{WAITING_MAX} callers wait for the sandbox already") });
    }
    callers.extend(reply.take());
    Ok(())
}

fn wait_response(exit: Exit) -> WaitSandboxResponse {
    WaitSandboxResponse { exit_status: exit.status, exited_at: Some(exit.at) }
}

/// This machine, in Go's names.
fn platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        other => (other, ""),
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}
