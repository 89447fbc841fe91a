//! Checkpoints: a container's processes saved as images, by the runtime and CRIU, and a container made of such.
//!
//! A container that is made of a checkpoint has no process until it is started: Create only mounts and opens what it
//! needs, and Start has the runtime restore it. Until then its pid is 0.

use std::fs;
use std::path::{Path, PathBuf};

use proto_shim::events::TaskCheckpointed;
use proto_shim::runc::CheckpointOptions;
use proto_shim::task::{CheckpointTaskRequest, CreateTaskRequest};
use proto_shim::topic;

use super::calls::{not_running, runc_options};
use super::container::{Container, read_pid};
use super::pending::{Completed, Job, KILLED, Purpose};
use super::process::{Exit, Key, Phase, timestamp};
use super::{Answer, Tasks};
use crate::error::Error;
use crate::server::Reply;
use crate::world::World;

/// Where CRIU works, in the bundle, unless the request says where.
const SAVE_WORK: &str = "criu-work";
const RESTORE_WORK: &str = "work";

/// The images that a container is to be made of.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    images: PathBuf,
    work: String,
}

/// How a container is to be saved.
#[derive(Debug)]
pub(crate) struct Save {
    images: String,
    options: CheckpointOptions,
}

/// The checkpoint that a request names, if it does.
pub(super) fn of(request: &CreateTaskRequest) -> Result<Option<Checkpoint>, Error> {
    if request.checkpoint.is_empty() {
        return Ok(None);
    }
    let work = runc_options(request)?.criu_work_path;
    Ok(Some(Checkpoint { images: PathBuf::from(&request.checkpoint), work }))
}

impl Tasks {
    pub(super) fn checkpoint(
        &mut self,
        request: CheckpointTaskRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        let container = self.container(&request.id)?;
        if container.init.phase != Phase::Running {
            return Err(not_running(&request.id));
        }
        let key = container.init.key;
        // The two would freeze and thaw the same processes, and write the same logs.
        if self.is_being_saved(key) {
            let what = format!("container {} is being saved already", request.id);
            return Err(Error::State { what, is_running: true });
        }
        let container = self.container(&request.id)?;
        let options = match request.options.as_ref().filter(|any| !any.type_url.is_empty()) {
            None => CheckpointOptions::default(),
            Some(any) => proto_shim::from_any(any)
                .map_err(|error| Error::Invalid { what: format!("options: {error}") })?
                .ok_or_else(|| Error::Invalid { what: format!("options of the type {}", any.type_url) })?,
        };
        let save = Save { images: request.path, options };
        let work = save.work(container);
        fs::create_dir_all(&work)
            .map_err(|source| Error::System { what: format!("make {}", work.display()), source })?;
        let job = Job { key, purpose: Purpose::Checkpoint(save), reply: reply.take(), spans: Vec::new() };
        self.run(job, world);
        Ok(Answer::Later)
    }

    /// The container is saved, or that failed; then CRIU's log stays in the bundle.
    pub(super) fn saved(&mut self, key: Key, save: Save, result: Result<(), Error>, world: &mut World) -> Completed {
        result?;
        if let Some(container) = self.container_of(key) {
            if save.options.work_path.is_empty() {
                // It holds logs and what else nobody needs any more.
                let _ = fs::remove_dir_all(save.work(container));
            }
            let event = TaskCheckpointed { container_id: container.id.clone(), checkpoint: save.images };
            world.publisher.publish(topic::TASK_CHECKPOINTED, timestamp(), &event);
        }
        Ok(Vec::new())
    }

    /// Whether a job is that of a container which its start makes.
    pub(super) fn is_made_later(&mut self, job: &Job) -> bool {
        matches!(job.purpose, Purpose::Create(_))
            && self.container_of(job.key).is_some_and(|container| container.checkpoint.is_some())
    }

    pub(super) fn restore(&mut self, id: &str, reply: &mut Option<Reply>, world: &mut World) -> Result<Answer, Error> {
        let container = self.container(id)?;
        container.init.phase = Phase::Starting(None);
        let key = container.init.key;
        self.run(Job { key, purpose: Purpose::Restore, reply: reply.take(), spans: Vec::new() }, world);
        Ok(Answer::Later)
    }

    /// The runtime has restored the container, which runs; one that it could not restore may be tried again, or
    /// deleted.
    pub(super) fn restored(&mut self, key: Key, result: Result<(), Error>, world: &mut World) -> Completed {
        if result.is_ok()
            && let Err(error) = self.take_restored(key, world)
        {
            self.give_restored_up(key, world);
            return Err(error);
        }
        self.started(key, result, world)
    }

    /// The container runs, and the shim can neither watch nor serve it: it is killed, and said to have been.
    fn give_restored_up(&mut self, key: Key, world: &mut World) {
        let Some(container) = self.container_of(key) else { return };
        container.checkpoint = None;
        // Whatever the pid is, nobody waits for it.
        container.init.pid = 0;
        container.init.phase = Phase::Ending(Exit::now(KILLED));
        self.run(Job { key, purpose: Purpose::GiveUp, reply: None, spans: Vec::new() }, world);
        self.tell_exit(key, world);
    }

    fn take_restored(&mut self, key: Key, world: &mut World) -> Result<(), Error> {
        let gone = || Error::NotFound { what: "the container was removed".to_owned() };
        let container = self.container_of(key).ok_or_else(gone)?;
        container.init.pid = read_pid(&container.pid_file(""))?;
        container.checkpoint = None;
        // It runs already: it may have ended, and then there is nothing to look at.
        container.init.phase = Phase::Created;
        if let Err(error) = container.look() {
            world.warn("look at the container's cgroup", &error);
        }
        container.init.phase = Phase::Starting(None);
        if let Some(io) = &mut container.init.io {
            io.begin(&mut world.poller, &mut world.timers, &mut world.scratch)?;
            io.begin_input(&mut world.poller, &mut world.timers, &mut world.scratch)?;
        }
        Ok(())
    }
}

impl Save {
    fn work(&self, container: &Container) -> PathBuf {
        work(&container.bundle, &self.options.work_path, SAVE_WORK)
    }

    /// The runtime's command line, without the global flags and the id.
    pub(super) fn command(&self, container: &Container) -> Vec<String> {
        let options = &self.options;
        let mut command = vec!["checkpoint".to_owned()];
        let mut option = |flag: &str, value: &str| {
            if !value.is_empty() {
                command.extend([flag.to_owned(), value.to_owned()]);
            }
        };
        option("--image-path", &self.images);
        option("--work-path", &self.work(container).display().to_string());
        option("--parent-path", &options.parent_path);
        option("--manage-cgroups-mode", &options.cgroups_mode);
        options.empty_namespaces.iter().for_each(|kind| option("--empty-ns", kind));
        let switches = [
            (!options.exit, "--leave-running"),
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
        ];
        command.extend(switches.iter().filter(|(is_on, _)| *is_on).map(|(_, flag)| (*flag).to_owned()));
        command
    }
}

/// The same for a container that is made of a checkpoint.
pub(super) fn restore_command(container: &Container) -> Vec<String> {
    let mut command = vec!["restore".to_owned()];
    let mut option = |flag: &str, value: &str| command.extend([flag.to_owned(), value.to_owned()]);
    if let Some(Checkpoint { images, work: named }) = &container.checkpoint {
        option("--image-path", &images.display().to_string());
        option("--work-path", &work(&container.bundle, named, RESTORE_WORK).display().to_string());
    }
    option("--bundle", &container.bundle.display().to_string());
    option("--pid-file", &container.pid_file("").display().to_string());
    if let Some(console) = container.init.io.as_ref().and_then(crate::stdio::Io::console_socket) {
        option("--console-socket", console);
    }
    command.extend(["--detach".to_owned(), "--no-subreaper".to_owned()]);
    command.extend(container.runtime.options().no_pivot_root.then(|| "--no-pivot".to_owned()));
    command
}

fn work(bundle: &Path, named: &str, own: &str) -> PathBuf {
    if named.is_empty() { bundle.join(own) } else { PathBuf::from(named) }
}
