//! A row of `ps`, and a container's state in docker's words.

use std::time::SystemTime;

use proto_engine::{ContainerSummary, State, state::Status};

use super::value::Value;
use super::{ports, quote, time};

/// docker's table.
pub(crate) const TABLE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
/// Widest command in a table.
const COMMAND_WIDTH: usize = 20;

/// The columns' headings.
pub(crate) fn headings() -> Value {
    Value::structure([
        ("Command", "COMMAND".into()),
        ("CreatedAt", "CREATED AT".into()),
        ("ID", "CONTAINER ID".into()),
        ("Image", "IMAGE".into()),
        ("Label", "LABEL".into()),
        ("Labels", "LABELS".into()),
        ("Names", "NAMES".into()),
        ("Ports", "PORTS".into()),
        ("RunningFor", "CREATED".into()),
        ("State", "STATE".into()),
        ("Status", "STATUS".into()),
    ])
}

/// One row, its fields in the order of their names, as docker's JSON has them.
pub(crate) fn row(container: &ContainerSummary, truncate: bool, now: SystemTime) -> Value {
    let command = quote::joined(&container.command);
    let command = if truncate { quote::ellipsis(&command, COMMAND_WIDTH) } else { command };
    let id = if truncate { quote::short_id(&container.id) } else { &container.id };
    let state = container.state.clone().unwrap_or_default();
    let created = container.created.as_ref();
    Value::structure([
        ("Command", quote::quoted(&command).into()),
        ("CreatedAt", created.map(time::go_string).unwrap_or_default().into()),
        ("ID", id.into()),
        ("Image", image(container, truncate).into()),
        ("Label", Value::Lookup(container.labels.clone())),
        ("Labels", labels(container).into()),
        ("Names", container.name.as_str().into()),
        ("Ports", ports::shown(&container.ports).into()),
        ("RunningFor", created.map(|at| format!("{} ago", time::age(at, now))).unwrap_or_default().into()),
        ("State", state_word(state.status()).into()),
        ("Status", status(&state, now).into()),
    ])
}

/// The image as it was asked for, in a table without its digest.
fn image(container: &ContainerSummary, truncate: bool) -> String {
    match container.image.as_str() {
        "" => "<no image>".to_owned(),
        image if truncate && image.starts_with("sha256:") => quote::short_id(image).to_owned(),
        image if truncate => image.split_once('@').map_or(image, |(name, _)| name).to_owned(),
        image => image.to_owned(),
    }
}

fn labels(container: &ContainerSummary) -> String {
    let mut labels: Vec<String> = container.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    labels.join(",")
}

/// docker's word for a state.
pub(crate) fn state_word(status: Status) -> &'static str {
    match status {
        Status::Unspecified => "",
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Restarting => "restarting",
        Status::Exited => "exited",
        Status::Removing => "removing",
        Status::Dead => "dead",
    }
}

/// docker's sentence about a state: `Up 5 minutes`, `Exited (137) 3 days ago`.
pub(crate) fn status(state: &State, now: SystemTime) -> String {
    let up = || state.started.as_ref().map(|at| time::age(at, now)).unwrap_or_default();
    let exit = state.exit.clone().unwrap_or_default();
    let ended = exit.at.as_ref().map(|at| time::age(at, now)).unwrap_or_default();
    match state.status() {
        Status::Unspecified => String::new(),
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", up()),
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Restarting => format!("Restarting ({}) {ended} ago", exit.code),
        Status::Exited => format!("Exited ({}) {ended} ago", exit.code),
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Timestamp;
    use proto_engine::{Exit, PortMapping};

    use super::super::format::Listing;
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn ago(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds: NOW_S as i64 - seconds, nanos: 0 })
    }

    fn web() -> ContainerSummary {
        ContainerSummary {
            id: "0123456789abcdef".repeat(4),
            name: "web".to_owned(),
            image: "localhost:5000/nginx@sha256:00".to_owned(),
            command: ["/docker-entrypoint.sh", "nginx", "-g", "daemon off;"].map(str::to_owned).into(),
            created: ago(180),
            state: Some(State { status: Status::Running.into(), started: ago(90), ..State::default() }),
            ports: vec![PortMapping {
                host_ip: "127.0.0.1".to_owned(),
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".to_owned(),
            }],
            labels: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            ..ContainerSummary::default()
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S)
    }

    #[test]
    fn the_table_is_dockers() {
        let listing = Listing { format: None, quiet: false, default_table: TABLE, headings: headings() };
        assert_eq!(
            listing.text(&[row(&web(), true, now())]).unwrap(),
            "CONTAINER ID   IMAGE                  COMMAND                  CREATED         STATUS              PORTS                    NAMES\n\
             0123456789ab   localhost:5000/nginx   \"/docker-entrypoint.…\"   3 minutes ago   Up About a minute   127.0.0.1:8080->80/tcp   web\n"
        );
    }

    #[test]
    fn nothing_is_cut_when_asked() {
        let row = row(&web(), false, now());
        assert_eq!(row.field("ID"), Some(&Value::Text(web().id)));
        assert_eq!(row.field("Command"), Some(&"\"/docker-entrypoint.sh nginx -g 'daemon off;'\"".into()));
        assert_eq!(row.field("Labels"), Some(&"a=1,b=2".into()));
    }

    #[test]
    fn states_in_dockers_words() {
        let exit = Some(Exit { code: 137, at: ago(259_200), ..Exit::default() });
        for (word, sentence) in [
            (Status::Created, "Created"),
            (Status::Exited, "Exited (137) 3 days ago"),
            (Status::Restarting, "Restarting (137) 3 days ago"),
            (Status::Paused, "Up 5 seconds (Paused)"),
            (Status::Removing, "Removal In Progress"),
            (Status::Dead, "Dead"),
        ] {
            let state = State { status: word.into(), exit: exit.clone(), started: ago(5), ..State::default() };
            assert_eq!(status(&state, now()), sentence);
        }
    }
}
