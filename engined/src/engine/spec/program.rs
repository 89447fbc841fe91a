//! The program of a container: what the request and the image say together.

use serde::{Deserialize, Serialize};

use super::user::{User, UserSpec};
use crate::engine::container::wanted::{ContainerPath, EnvVar, Wanted};
use crate::engine::error::{Error, Field};
use crate::engine::image::RunConfig;
use crate::engine::signal::Signal;

/// Docker's search path for images that name none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What runs in a container, and as whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Entrypoint and command.
    pub(crate) args: Vec<String>,
    /// Each `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    /// As it was written, in the request or the image; empty is root.
    pub(crate) user_as_written: String,
    pub(crate) user: User,
    pub(crate) stop_signal: Signal,
}

/// Entrypoint and command. A new entrypoint leaves out the image's command, as that was written for the old one.
pub(crate) fn args(wanted: &Wanted, image: &RunConfig) -> Result<Vec<String>, Error> {
    let entrypoint = wanted.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    let command = match &wanted.entrypoint {
        None if wanted.command.is_empty() => &image.cmd,
        _ => &wanted.command,
    };
    let args: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::NoCommand { image: wanted.image.clone() });
    }
    match args.iter().find(|word| word.contains('\0')) {
        Some(word) => Err(Error::invalid(Field::Command, word, "words without a NUL")),
        None => Ok(args),
    }
}

/// The directory that the program begins in.
pub(crate) fn cwd(wanted: &Wanted, image: &RunConfig) -> Result<String, Error> {
    if let Some(path) = &wanted.working_dir {
        return Ok(path.as_str().to_owned());
    }
    // An image may say "app"; Docker takes it from the root.
    let path = ContainerPath::parse(Field::WorkingDir, &format!("/{}", image.working_dir))?;
    Ok(path.as_str().to_owned())
}

/// The user, as the request or the image writes it.
pub(crate) fn user(wanted: &Wanted, image: &RunConfig) -> Result<UserSpec, Error> {
    match &wanted.user {
        Some(user) => Ok(user.clone()),
        None => UserSpec::parse(&image.user),
    }
}

/// The signal that asks the program to end. An image that names nonsense gets the default, as in Docker.
pub(crate) fn stop_signal(wanted: &Wanted, image: &RunConfig) -> Signal {
    let of_image = || Signal::parse(Field::StopSignal, &image.stop_signal).ok();
    wanted.stop_signal.or_else(of_image).unwrap_or(Signal::TERM)
}

/// The environment: defaults, the image's, the request's; the later wins. Nothing of the engine's own is ever in it, also
/// when an image's entry has no `=` (CVE-2026-57231).
pub(crate) fn env(wanted: &Wanted, image: &RunConfig, hostname: &str, home: Option<&str>) -> Vec<String> {
    let mut env = Environment(vec![PATH.to_owned(), format!("HOSTNAME={hostname}")]);
    if wanted.tty {
        env.set("TERM=xterm".to_owned());
    }
    let of_image = image.env.iter().filter_map(|text| EnvVar::parse(text).ok());
    for var in of_image.chain(wanted.env.iter().cloned()) {
        env.set(var.into());
    }
    if !env.has("HOME") {
        env.set(format!("HOME={}", home.unwrap_or("/")));
    }
    env.0
}

/// The environment of one more program in a container: the container's, then what was asked for.
pub(crate) fn exec_env(container: &[String], asked: &[EnvVar], tty: bool, home: Option<&str>) -> Vec<String> {
    let mut env = Environment(container.to_vec());
    if tty && !env.has("TERM") {
        env.set("TERM=xterm".to_owned());
    }
    if let Some(home) = home {
        env.set(format!("HOME={home}"));
    }
    for var in asked {
        env.set(var.as_str().to_owned());
    }
    env.0
}

struct Environment(Vec<String>);

impl Environment {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|var| name_of(var) == name)
    }

    /// Replaces the variable of the same name where it stands, else adds it.
    fn set(&mut self, var: String) {
        match self.0.iter_mut().find(|known| name_of(known) == name_of(&var)) {
            Some(known) => *known = var,
            None => self.0.push(var),
        }
    }
}

fn name_of(var: &str) -> &str {
    var.split_once('=').map_or(var, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::container::wanted::tests::plain;

    fn image() -> RunConfig {
        RunConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: vec!["PATH=/bin".to_owned(), "A=1".to_owned(), "SECRET".to_owned(), "*".to_owned()],
            working_dir: "app".to_owned(),
            user: "web".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
            ..RunConfig::default()
        }
    }

    #[test]
    fn entrypoint_and_command_as_docker_joins_them() {
        let of = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let mut wanted = plain("x");
            wanted.entrypoint = entrypoint.map(|words| words.iter().map(|word| (*word).to_owned()).collect());
            wanted.command = command.iter().map(|word| (*word).to_owned()).collect();
            args(&wanted, &image()).map(|args| args.join(" ")).ok()
        };
        assert_eq!(of(None, &[]).as_deref(), Some("/entry serve"));
        assert_eq!(of(None, &["a", "b"]).as_deref(), Some("/entry a b"));
        assert_eq!(of(Some(&["/other"]), &[]).as_deref(), Some("/other"));
        assert_eq!(of(Some(&["/other"]), &["c"]).as_deref(), Some("/other c"));
        assert_eq!(of(Some(&[]), &["c"]).as_deref(), Some("c"));
        assert_eq!(of(Some(&[]), &[]), None);
    }

    #[test]
    fn the_later_variable_wins_and_nothing_leaks() {
        let mut wanted = plain("x");
        wanted.env = vec![EnvVar::parse("A=2").unwrap(), EnvVar::parse("B=").unwrap()];
        wanted.tty = true;
        let env = env(&wanted, &image(), "box", Some("/srv"));
        assert_eq!(env, ["PATH=/bin", "HOSTNAME=box", "TERM=xterm", "A=2", "B=", "HOME=/srv"]);
    }

    #[test]
    fn an_exec_inherits_the_containers_environment() {
        let container = ["A=1".to_owned(), "HOME=/".to_owned()];
        let env = exec_env(&container, &[EnvVar::parse("A=2").unwrap()], true, Some("/root"));
        assert_eq!(env, ["A=2", "HOME=/root", "TERM=xterm"]);
    }

    #[test]
    fn what_the_request_does_not_say_the_image_does() {
        let wanted = plain("x");
        assert_eq!(cwd(&wanted, &image()).unwrap(), "/app");
        assert_eq!(cwd(&wanted, &RunConfig::default()).unwrap(), "/");
        assert_eq!(String::from(user(&wanted, &image()).unwrap()), "web");
        assert_eq!(stop_signal(&wanted, &image()).to_string(), "SIGQUIT");
        let strange = RunConfig { stop_signal: "SIGNOPE".to_owned(), ..RunConfig::default() };
        assert_eq!(stop_signal(&wanted, &strange), Signal::TERM);
    }
}
