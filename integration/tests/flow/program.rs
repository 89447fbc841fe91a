//! `run`: what program runs, with which arguments, environment, directory, user and name; and how it ends.

use integration::flow;

#[test]
fn the_exit_code_is_the_programs() {
    flow(|s| {
        let out = s.run(&["run", "--rm", s.busybox(), "sh", "-c", "exit 7"]);
        out.code(7);
    });
}

#[test]
fn stdout_and_stderr_stay_apart() {
    flow(|s| {
        let out = s.run(&["run", "--rm", s.busybox(), "sh", "-c", "echo one; echo two >&2"]).ok();
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
    });
}

#[test]
fn a_signal_that_ends_the_program_is_128_and_its_number() {
    flow(|s| {
        s.run(&["run", "--rm", s.busybox(), "sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"]).code(139);
        let id = s.detached(&[s.busybox(), "sleep", "100"]);
        s.run(&["kill", &id]).ok();
        assert_eq!(s.text(&["wait", &id]), "137");
    });
}

#[test]
fn a_command_that_is_not_there_is_127() {
    flow(|s| {
        let out = s.run(&["run", "--rm", s.busybox(), "no-such-program"]).code(127);
        assert!(out.errors().contains("no-such-program"), "{}", out.errors());
        s.run(&["run", "--rm", s.busybox(), "/no/such/program"]).code(127);
    });
}

#[test]
fn a_file_that_is_not_executable_is_126() {
    flow(|s| {
        s.run(&["run", "--rm", s.busybox(), "/etc/passwd"]).code(126);
        s.run(&["run", "--rm", s.busybox(), "/etc"]).code(126);
        s.run(&["run", "--rm", &s.image("noexec")]).code(126);
    });
}

#[test]
fn what_the_engine_refuses_is_125() {
    flow(|s| {
        s.run(&["run", "--rm", "--no-such-flag", s.busybox()]).code(125);
        s.run(&["run", "--rm", "--name", "not/a/name", s.busybox()]).code(125);
        s.run(&["run", "--rm", &s.image("no-such-image")]).code(125);
    });
}

#[test]
fn a_removed_container_is_off_the_list() {
    flow(|s| {
        s.run(&["run", "--rm", "--name", "gone", s.busybox(), "true"]).ok();
        assert_eq!(s.text(&["ps", "-aq"]), "");
        s.run(&["run", "--rm", "--name", "gone", s.busybox(), "true"]).ok();
    });
}

#[test]
fn names_are_unique_until_removed() {
    flow(|s| {
        s.run(&["run", "--name", "one", s.busybox(), "true"]).ok();
        let out = s.run(&["run", "--name", "one", s.busybox(), "true"]).code(125);
        assert!(out.errors().contains("one"), "{}", out.errors());
        s.run(&["rm", "one"]).ok();
        s.run(&["run", "--name", "one", s.busybox(), "true"]).ok();
    });
}

#[test]
fn flags_after_the_image_belong_to_the_command() {
    flow(|s| {
        let out = s.run(&["run", "--rm", s.busybox(), "echo", "--rm", "-d", "--name", "x"]).ok();
        assert_eq!(out.text(), "--rm -d --name x");
    });
}

#[test]
fn arguments_arrive_unchanged() {
    flow(|s| {
        let odd = ["", "a b", "$HOME", "*", "new\nline", "\u{e4}\u{20ac}", "--"];
        let mut arguments = vec!["run", "--rm", s.busybox(), "sh", "-c", "for a; do printf '<%s>' \"$a\"; done", "sh"];
        arguments.extend(odd);
        let expected: String = odd.iter().map(|argument| format!("<{argument}>")).collect();
        assert_eq!(s.text(&arguments), expected);
    });
}

#[test]
fn an_environment_of_the_images_and_the_callers() {
    flow(|s| {
        let script = "echo $A:$B:$C:$HOME:$PATH";
        let call =
            s.call(&["run", "--rm", "-e", "A=1", "-e", "B=two words", "-e", "C", s.busybox(), "sh", "-c", script]);
        let text = call.env("C", "callers").output().ok().text();
        assert_eq!(text, "1:two words:callers:/root:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    });
}

#[test]
fn nothing_of_the_hosts_environment_arrives() {
    flow(|s| {
        let text = s.call(&["run", "--rm", s.busybox(), "env"]).env("SECRET", "of the host").output().ok().text();
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "HOSTNAME", "PATH"]);
    });
}

#[test]
fn an_unset_variable_is_not_passed_on() {
    flow(|s| {
        let text = s.text(&["run", "--rm", "-e", "UNSET_HERE", s.busybox(), "sh", "-c", "echo ${UNSET_HERE-unset}"]);
        assert_eq!(text, "unset");
    });
}

#[test]
fn an_environment_file() {
    flow(|s| {
        let file = s.site().path("tmp/environment");
        std::fs::write(&file, "# a comment\nONE=1\n\nQUOTED=\"as it is\"\nFROM_CALLER\n").expect("write the file");
        let script = "echo \"$ONE|$QUOTED|$FROM_CALLER|$LAST\"";
        let path = file.display().to_string();
        let call = s.call(&["run", "--rm", "--env-file", &path, "-e", "LAST=x", s.busybox(), "sh", "-c", script]);
        assert_eq!(call.env("FROM_CALLER", "here").output().ok().text(), "1|\"as it is\"|here|x");
    });
}

#[test]
fn a_working_directory_is_made_when_it_is_missing() {
    flow(|s| {
        assert_eq!(s.text(&["run", "--rm", s.busybox(), "pwd"]), "/");
        assert_eq!(s.text(&["run", "--rm", "-w", "/etc", s.busybox(), "pwd"]), "/etc");
        assert_eq!(s.text(&["run", "--rm", "-w", "/new/one", s.busybox(), "pwd"]), "/new/one");
        s.run(&["run", "--rm", "-w", "relative", s.busybox(), "pwd"]).code(125);
    });
}

#[test]
fn users_by_number_and_by_name() {
    flow(|s| {
        let id = |user: &str| {
            s.text(&["run", "--rm", "-u", user, s.busybox(), "sh", "-c", "echo $(id -u):$(id -g):$(id -G)"])
        };
        assert_eq!(id("1000"), "1000:1000:1000 29 100");
        assert_eq!(id("user"), "1000:1000:1000 29 100");
        assert_eq!(id("user:www-data"), "1000:33:33");
        assert_eq!(id("4321:8765"), "4321:8765:8765");
        assert_eq!(id("4321"), "4321:0:0");
    });
}

#[test]
fn a_users_home_is_in_the_environment() {
    flow(|s| {
        assert_eq!(s.text(&["run", "--rm", "-u", "www-data", s.busybox(), "sh", "-c", "echo $HOME"]), "/var/www");
        assert_eq!(s.text(&["run", "--rm", "-u", "4321", s.busybox(), "sh", "-c", "echo $HOME"]), "/");
    });
}

#[test]
fn an_unknown_user_is_refused() {
    flow(|s| {
        let out = s.run(&["run", "--rm", "-u", "nosuchuser", s.busybox(), "true"]);
        assert!((125..=126).contains(&out.code), "{}", out.code);
        assert!(out.errors().contains("nosuchuser"), "{}", out.errors());
        let out = s.run(&["run", "--rm", &s.image("nouser"), "true"]);
        assert!((125..=126).contains(&out.code) && out.errors().contains("nosuchuser"), "{}", out.errors());
    });
}

#[test]
fn entrypoints_are_replaced_and_reset() {
    flow(|s| {
        let image = s.image("noexec");
        assert_eq!(s.text(&["run", "--rm", "--entrypoint", "echo", &image, "a", "b"]), "a b");
        // Docker drops the image's command with the entrypoint: with both gone there is nothing to run.
        s.run(&["run", "--rm", "--entrypoint", "", s.busybox()]).code(125);
        assert_eq!(s.text(&["run", "--rm", "--entrypoint", "", &image, "echo", "reset"]), "reset");
    });
}

#[test]
fn hostnames() {
    flow(|s| {
        let text = s.text(&[
            "run",
            "--rm",
            "--hostname",
            "box.example",
            s.busybox(),
            "sh",
            "-c",
            "hostname; cat /etc/hostname",
        ]);
        assert_eq!(text, "box.example\nbox.example");
        let id = s.detached(&[s.busybox(), "sleep", "100"]);
        assert_eq!(s.text(&["exec", &id, "hostname"]), id[..12]);
        assert!(s.text(&["exec", &id, "cat", "/etc/hosts"]).contains(&id[..12]));
    });
}

#[test]
fn labels_are_kept() {
    flow(|s| {
        let id = s.detached(&["--label", "a=1", "-l", "b", s.busybox(), "sleep", "100"]);
        assert_eq!(s.inspect(&id, "{{index .Config.Labels \"a\"}}|{{index .Config.Labels \"b\"}}"), "1|");
        assert_eq!(s.text(&["ps", "-q", "--no-trunc", "--filter", "label=a=1"]), id);
        assert_eq!(s.text(&["ps", "-q", "--filter", "label=a=2"]), "");
    });
}

#[test]
fn the_images_own_command_runs_with_its_directory() {
    flow(|s| {
        let id = s.detached(&[&s.image("stubborn")]);
        integration::wait::until_true("the image's command speaks", || s.text(&["logs", &id]) == "ready");
        assert_eq!(s.text(&["exec", &id, "pwd"]), "/opt");
        s.run(&["kill", &id]).ok();
    });
}

#[test]
fn a_file_of_the_container_id() {
    flow(|s| {
        let file = s.site().path("tmp/cid").display().to_string();
        s.run(&["run", "--cidfile", &file, "--name", "filed", s.busybox(), "true"]).ok();
        assert_eq!(std::fs::read_to_string(&file).expect("the id file"), s.inspect("filed", "{{.Id}}"));
    });
}
