//! pull, images, rmi, and `run --pull`.

use integration::registry::{Access, PASSWORD, Registry, USER, Variant};
use integration::{Stack, flow, programs};

#[test]
fn an_image_is_pulled_when_it_is_not_here() {
    flow(|s| {
        let image = s.image("stubborn");
        assert_eq!(s.text(&["run", "--rm", &image, "echo", "pulled"]), "pulled");
        assert!(s.text(&["images", "-q", &image]).len() >= 12);
    });
}

#[test]
fn a_second_run_downloads_nothing() {
    flow(|s| {
        let image = s.image("stubborn");
        s.run(&["run", "--rm", &image, "true"]).ok();
        let fetched = s.registry().blobs_served();
        assert!(fetched >= 3, "{fetched} blobs were fetched");
        s.run(&["run", "--rm", &image, "true"]).ok();
        s.run(&["pull", "-q", &image]).ok();
        assert_eq!(s.registry().blobs_served(), fetched);
    });
}

#[test]
fn layers_that_are_here_are_not_fetched_again() {
    flow(|s| {
        // Both images have the layer of busybox.
        let before = s.registry().blobs_served();
        s.run(&["pull", "-q", &s.image("nouser")]).ok();
        assert_eq!(s.registry().blobs_served() - before, 1, "only the config is new");
    });
}

#[test]
fn pull_policies() {
    flow(|s| {
        let image = s.image("stubborn");
        let out = s.run(&["run", "--rm", "--pull", "never", &image, "true"]).code(125);
        assert!(out.errors().contains("stubborn"), "{}", out.errors());
        s.run(&["run", "--rm", "--pull", "missing", &image, "true"]).ok();
        s.run(&["run", "--rm", "--pull", "never", &image, "true"]).ok();
        s.run(&["run", "--rm", "--pull", "always", &image, "true"]).ok();
        // Docker 20.10 takes any word; later ones refuse it.
        let sometimes = s.run(&["run", "--rm", "--pull", "sometimes", &image, "true"]);
        assert!(!s.is_ours() || sometimes.code == 125, "{}", sometimes.errors());
    });
}

#[test]
fn always_asks_the_registry() {
    flow(|s| {
        s.registry().stop();
        s.run(&["run", "--rm", s.busybox(), "true"]).ok();
        s.run(&["run", "--rm", "--pull", "always", s.busybox(), "true"]).code(125);
    });
}

#[test]
fn what_the_registry_does_not_have() {
    flow(|s| {
        let nowhere = s.run(&["pull", &s.image("nowhere")]).code(1);
        assert!(nowhere.errors().contains("nowhere"), "{}", nowhere.errors());
        s.run(&["pull", &format!("{}:nosuchtag", s.busybox())]).code(1);
        s.run(&["pull", "Not/A/Reference"]).code(1);
    });
}

#[test]
fn by_digest() {
    flow(|s| {
        let digests = s.text(&["inspect", "--format", "{{index .RepoDigests 0}}", s.busybox()]);
        assert!(digests.starts_with(&format!("{}@sha256:", s.busybox())), "{digests}");
        assert_eq!(s.text(&["run", "--rm", &digests, "echo", "by digest"]), "by digest");
        let wrong = format!("{}@sha256:{}", s.busybox(), "0".repeat(64));
        s.run(&["pull", &wrong]).code(1);
    });
}

#[test]
fn whiteouts_hide_files_of_lower_layers() {
    flow(|s| {
        let text =
            s.text(&["run", "--rm", &s.image("stubborn"), "sh", "-c", "ls /opt; test -e /etc/motd || echo gone"]);
        assert_eq!(text, "new\ngone");
    });
}

#[test]
fn containers_do_not_see_each_others_files() {
    flow(|s| {
        s.run(&["run", "--rm", s.busybox(), "touch", "/mine"]).ok();
        s.run(&["run", "--rm", s.busybox(), "test", "-e", "/mine"]).code(1);
    });
}

#[test]
fn the_list_of_images() {
    flow(|s| {
        let text = s.text(&["images"]);
        let mut lines = text.lines();
        let columns: Vec<&str> = lines.next().expect("a heading").split_whitespace().collect();
        assert_eq!(columns, ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
        let row: Vec<&str> = lines.next().expect("busybox").split_whitespace().collect();
        assert_eq!((row[0], row[1], row[2].len()), (s.busybox(), "latest", 12));
        assert_eq!(s.text(&["images", "-q"]), row[2]);
        let id = s.text(&["images", "-q", "--no-trunc"]);
        assert_eq!((id.len(), &id[7..19]), (71, row[2]));
        assert_eq!(s.text(&["images", "--format", "{{.Repository}}:{{.Tag}}"]), format!("{}:latest", s.busybox()));
    });
}

#[test]
fn removing_an_image() {
    flow(|s| {
        let image = s.image("stubborn");
        s.run(&["pull", "-q", &image]).ok();
        let text = s.text(&["rmi", &image]);
        assert!(text.contains(&format!("Untagged: {image}:latest")) && text.contains("Deleted: sha256:"), "{text}");
        s.run(&["rmi", &image]).code(1);
        assert_eq!(s.text(&["images", "-q", &image]), "");
        s.run(&["run", "--rm", s.busybox(), "true"]).ok();
    });
}

#[test]
fn an_image_that_a_container_uses_stays() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "1000"]);
        let out = s.run(&["rmi", s.busybox()]).code(1);
        let names = [id[..12].to_owned(), s.inspect(&id, "{{.Name}}").trim_start_matches('/').to_owned()];
        assert!(names.iter().any(|name| out.errors().contains(name)), "{}", out.errors());
        // By force it may lose its name, but not its files.
        s.run(&["rmi", "-f", s.busybox()]);
        assert_eq!(s.text(&["exec", &id, "echo", "alive"]), "alive");
    });
}

#[test]
fn what_inspect_says_of_an_image() {
    flow(|s| {
        let image = s.image("stubborn");
        s.run(&["pull", "-q", &image]).ok();
        let format =
            "{{json .Config.Cmd}} {{.Config.WorkingDir}} {{index .Config.Labels \"org.example.kind\"}} {{.Os}}";
        assert_eq!(s.text(&["inspect", "--format", format, &image]), "[\"stubborn\"] /opt stubborn linux");
        assert_eq!(s.text(&["inspect", "--format", "{{len .RootFS.Layers}}", &image]), "2");
    });
}

/// Writes the credentials where docker's `login` would.
fn log_in(s: &Stack, host: &str, user: &str, password: &str) {
    let directory = s.site().path("home/.docker");
    std::fs::create_dir_all(&directory).expect("the client's configuration");
    let output = std::process::Command::new("base64")
        .arg("-w0")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = output.expect("run base64");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), format!("{user}:{password}").as_bytes())
        .expect("write");
    let auth = String::from_utf8(child.wait_with_output().expect("base64 ends").stdout).expect("base64 is ASCII");
    let config = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"{auth}\"}}}}}}");
    std::fs::write(directory.join("config.json"), config).expect("write the credentials");
}

#[test]
fn a_registry_that_wants_credentials() {
    flow(|s| {
        let locked = Registry::start(s.site(), "locked", Access::WithPassword).expect("a locked registry");
        locked.add(&programs::images().join("stubborn"), "team/app", "v1").expect("an image");
        let image = format!("{}/team/app:v1", locked.host());
        s.run(&["pull", "-q", &image]).code(1);
        log_in(s, &locked.host(), USER, "wrong");
        s.run(&["pull", "-q", &image]).code(1);
        log_in(s, &locked.host(), USER, PASSWORD);
        s.run(&["pull", "-q", &image]).ok();
        assert_eq!(s.text(&["run", "--rm", &image, "echo", "let in"]), "let in");
    });
}

#[test]
fn several_pulls_at_once() {
    flow(|s| {
        let image = s.image("nginx");
        let pulls: Vec<_> = (0..4).map(|_| s.call(&["pull", "-q", &image]).start()).collect();
        for pull in pulls {
            pull.end().ok();
        }
        assert_eq!(s.text(&["run", "--rm", &image, "test", "-x", "/usr/sbin/nginx"]), "");
    });
}

/// Places a form of the image stubborn at the registry and returns its name.
fn variant(s: &mut Stack, variant: Variant) -> String {
    let name = format!("form-{variant:?}").to_lowercase();
    s.registry().add_variant(&programs::images().join("stubborn"), &name, variant).expect("another form of the image");
    s.image(&name)
}

#[test]
fn images_come_in_several_forms() {
    flow(|s| {
        let mut forms = vec![Variant::Index, Variant::Docker, Variant::Plain];
        if s.is_ours() {
            // Docker 20.10 cannot read it.
            forms.push(Variant::Zstd);
        }
        for form in forms {
            let image = variant(s, form);
            let text =
                s.text(&["run", "--rm", &image, "sh", "-c", "cat /opt/new; ls /etc/motd 2>/dev/null || echo hidden"]);
            assert_eq!(text, "new\nhidden", "{form:?}");
            s.run(&["rmi", &image]).ok();
        }
    });
}

#[test]
fn images_that_are_not_right_are_refused() {
    flow(|s| {
        for form in [Variant::ForeignIndex, Variant::WrongDiffId, Variant::Garbage] {
            let image = variant(s, form);
            let out = s.run(&["pull", "-q", &image]);
            assert_eq!(out.code, 1, "{form:?}: {}", out.errors());
            assert_eq!(s.text(&["images", "-q", &image]), "", "{form:?} is listed");
        }
        if s.is_ours() {
            // Docker does not look at the sizes.
            let image = variant(s, Variant::WrongSize);
            s.run(&["pull", "-q", &image]).code(1);
        }
        s.run(&["run", "--rm", &s.image("stubborn"), "true"]).ok();
    });
}

#[test]
fn a_pull_without_a_terminal_draws_no_bars() {
    flow(|s| {
        let out = s.run(&["pull", &s.image("stubborn")]).ok();
        let text = out.text() + &out.errors();
        assert!(!text.contains('\u{1b}') && text.contains("Pull complete"), "{text}");
        assert!(text.lines().count() < 40, "a line for each change of a layer's state: {text}");
        let mut terminal = s.terminal(&["pull", &s.image("nginx")]);
        assert_eq!(terminal.end(), 0);
        assert!(terminal.screen().contains('\u{1b}'), "{}", terminal.screen());
    });
}
