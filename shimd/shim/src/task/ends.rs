//! How processes end: the kernel says so, their output is taken to its end, then it is told.
//!
//! The order is a promise: a container's exec exits before its init, an OOM kill before the exit, the exit only when
//! the output is complete. The last has a bound: a process that outlives its container and keeps the pipe, or a disk
//! that stays full, must not keep an exit status from those who wait for it.

use std::time::Duration;

use prost::Message;
use proto_shim::events::{TaskExit, TaskOom};
use proto_shim::topic;
use rustix::process::{WaitOptions, WaitStatus};

use super::calls::wait_response;
use super::container::Container;
use super::pending::{Job, Purpose};
use super::process::{Exit, Key, Phase, timestamp};
use super::{Tasks, UNCLAIMED_MAX};
use crate::timers::Due;
use crate::world::World;

/// How long output may go on after the process has ended before its exit is told all the same.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

impl Tasks {
    /// Takes every child that has ended from the kernel.
    pub(crate) fn reap(&mut self, world: &mut World) {
        // An error says that there are no children.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.child_ended(pid.as_raw_nonzero().get().cast_unsigned(), exit_status(status), world);
        }
    }

    fn child_ended(&mut self, pid: u32, status: u32, world: &mut World) {
        if self.runtime_ended(pid, status, world) {
            return;
        }
        let exit = Exit::now(status);
        match self.alive(pid) {
            Some(key) => self.process_ended(key, exit, world),
            None if self.expects_a_pid() && self.unclaimed.len() < UNCLAIMED_MAX => self.unclaimed.push((pid, exit)),
            // An orphan of some container.
            None => {}
        }
    }

    fn alive(&self, pid: u32) -> Option<Key> {
        let mut processes = self.containers.iter().flat_map(Container::all);
        processes.find(|process| process.pid == pid && process.is_alive()).map(|process| process.key)
    }

    /// The kernel says that a process has ended.
    pub(super) fn process_ended(&mut self, key: Key, exit: Exit, world: &mut World) {
        let Some(process) = self.process(key) else { return };
        if let Phase::Starting(early) = &mut process.phase {
            // Its start is told first.
            *early = Some(exit);
            return;
        }
        process.phase = Phase::Ending(exit);
        world.timers.set(Due::Exit(key), DRAIN_PATIENCE);
        if let Some(io) = &mut process.io {
            io.process_ended(&mut world.poller);
            io.move_outputs(&mut world.poller, &mut world.timers, &mut world.scratch);
        }
        self.kill_rest(key, world);
        self.output_moved(key, world);
    }

    /// Without a pid namespace of its own a container's other processes do not end with its init.
    fn kill_rest(&mut self, key: Key, world: &mut World) {
        let Some(container) = self.container_of(key).filter(|container| container.init.key == key) else { return };
        if container.kernel.as_ref().is_some_and(|kernel| kernel.is_own_pid_namespace) {
            return;
        }
        self.run(Job { key, purpose: Purpose::KillRest, reply: None, spans: Vec::new() }, world);
    }

    /// Some output went on: perhaps that was the last.
    pub(super) fn output_moved(&mut self, key: Key, world: &mut World) {
        let Some(process) = self.process(key).filter(|process| process.is_drained()) else { return };
        if let Phase::Ending(_) = process.phase {
            self.tell_exit(key, world);
        } else if process.deleting.is_some() {
            self.delete_undrained(key, world);
        }
    }

    /// Goes on with a Delete that waited for output.
    pub(super) fn delete_undrained(&mut self, key: Key, world: &mut World) {
        if let Some(reply) = self.process(key).and_then(|process| process.deleting.take()) {
            self.delete_now(key, Some(reply), world);
        }
    }

    /// Tells everybody that a process has ended. The init's end waits for those of the execs.
    pub(super) fn tell_exit(&mut self, key: Key, world: &mut World) {
        let Some(container) = self.container_of(key) else { return };
        let is_init = container.init.key == key;
        if is_init && container.execs.iter().any(super::Process::is_busy) {
            return;
        }
        let container_id = container.id.clone();
        let Some(process) = container.processes().find(|process| process.key == key) else { return };
        let Phase::Ending(exit) = process.phase else { return };
        process.phase = Phase::Stopped(exit);
        let waiting = std::mem::take(&mut process.waiting);
        let id = if is_init { container_id.clone() } else { process.exec_id.clone() };
        let event = TaskExit { container_id, id, pid: process.pid, exit_status: exit.status, exited_at: Some(exit.at) };
        world.timers.clear(Due::Exit(key));
        if is_init {
            self.tell_kills(world);
        }
        world.publisher.publish(topic::TASK_EXIT, timestamp(), &event);
        for reply in waiting {
            world.server.answer(reply, Ok(wait_response(exit).encode_to_vec()), Vec::new(), &mut world.poller);
        }
        if !is_init {
            self.exec_gone(key, world);
        }
    }

    /// An exec has ended or could not be started: perhaps the init's end was waiting for that.
    pub(super) fn exec_gone(&mut self, key: Key, world: &mut World) {
        let Some(container) = self.container_of(key) else { return };
        let init = &container.init;
        if matches!(init.phase, Phase::Ending(_)) && (init.is_drained() || !world.timers.has(Due::Exit(init.key))) {
            let init = init.key;
            self.tell_exit(init, world);
        }
    }

    /// Tells of processes that the kernel killed because a container had no memory left.
    pub(super) fn tell_kills(&mut self, world: &mut World) {
        for container in &mut self.containers {
            let Some(kernel) = &mut container.kernel else { continue };
            kernel.cgroup.hear();
            if kernel.cgroup.new_kills() > 0 {
                let event = TaskOom { container_id: container.id.clone() };
                world.publisher.publish(topic::TASK_OOM, timestamp(), &event);
            }
        }
    }
}

/// A program's own status, or 128 and the number of the signal that ended it.
fn exit_status(status: WaitStatus) -> u32 {
    let status = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(255),
    };
    status.cast_unsigned()
}
