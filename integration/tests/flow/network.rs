//! `--network bridge`, `none`, `host`, and `-p`.

use integration::registry::free_port;
use integration::{Stack, flow, http, wait};

/// Starts busybox's web server with one page, published as `publish` says.
fn web(s: &Stack, publish: &str) -> String {
    let script = "mkdir -p /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www";
    s.detached(&["-p", publish, s.busybox(), "sh", "-c", script])
}

fn page(address: &str) -> Option<(u16, String)> {
    wait::poll(wait::PATIENCE, || http::get(address, "/"))
}

#[test]
fn an_interface_with_an_address_and_a_route() {
    flow(|s| {
        let script = "ip -4 -o addr show dev eth0 | grep -c inet; ip route | grep -c default; ip link show lo | grep -c LOWER_UP";
        assert_eq!(s.text(&["run", "--rm", s.busybox(), "sh", "-c", script]), "1\n1\n1");
    });
}

#[test]
fn none_is_a_loopback_alone() {
    flow(|s| {
        let text = s.text(&[
            "run",
            "--rm",
            "--network",
            "none",
            s.busybox(),
            "sh",
            "-c",
            "ls /sys/class/net; ip addr show lo | grep -c 127.0.0.1",
        ]);
        assert_eq!(text, "lo\n1");
    });
}

#[test]
fn host_is_the_hosts_network() {
    flow(|s| {
        let port = s.registry().port().to_string();
        let text = s.text(&["run", "--rm", "--network", "host", s.busybox(), "nc", "-w", "1", "127.0.0.1", &port]);
        assert_eq!(text, "");
        let inside = s.text(&[
            "run",
            "--rm",
            "--net",
            "host",
            s.busybox(),
            "sh",
            "-c",
            "tail -n +3 /proc/net/dev | cut -d: -f1 | sort",
        ]);
        let outside = std::fs::read_to_string("/proc/thread-self/net/dev").expect("the host's links");
        let mut outside: Vec<&str> = outside.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
        outside.sort_unstable();
        assert_eq!(inside.lines().collect::<Vec<_>>(), outside);
    });
}

#[test]
fn containers_reach_each_other_and_the_gateway() {
    flow(|s| {
        let port = free_port().to_string();
        let id = web(s, &format!("{port}:80"));
        let address = s.inspect(&id, "{{.NetworkSettings.IPAddress}}");
        let script = format!("wget -q -O - http://{address}/");
        wait::until_true("a page", || s.run(&["run", "--rm", s.busybox(), "sh", "-c", &script]).text() == "page");
        s.run(&["run", "--rm", s.busybox(), "sh", "-c", "ping -c 1 -W 2 $(ip route | awk '/default/ {print $3}')"])
            .ok();
    });
}

#[test]
fn a_published_port_answers_on_every_address() {
    flow(|s| {
        let port = free_port();
        let id = web(s, &format!("{port}:80"));
        assert_eq!(page(&format!("127.0.0.1:{port}")), Some((200, "page\n".to_owned())));
        let gateway = s.inspect(&id, "{{.NetworkSettings.Gateway}}");
        assert_eq!(page(&format!("{gateway}:{port}")), Some((200, "page\n".to_owned())));
        // A container reaches it too, also its own.
        let own = format!("wget -q -O - http://{gateway}:{port}/");
        assert_eq!(s.text(&["exec", &id, "sh", "-c", &own]), "page");
    });
}

#[test]
fn a_port_published_on_loopback_answers_there_alone() {
    flow(|s| {
        let port = free_port();
        let id = web(s, &format!("127.0.0.1:{port}:80"));
        assert_eq!(page(&format!("127.0.0.1:{port}")), Some((200, "page\n".to_owned())));
        let gateway = s.inspect(&id, "{{.NetworkSettings.Gateway}}");
        assert_eq!(http::get(&format!("{gateway}:{port}"), "/"), None);
    });
}

#[test]
fn a_port_of_the_engines_choice() {
    flow(|s| {
        let id = web(s, "80");
        let format = "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}";
        let port = s.inspect(&id, format);
        assert!(port.parse::<u16>().is_ok_and(|port| port > 1024), "{port}");
        assert_eq!(page(&format!("127.0.0.1:{port}")), Some((200, "page\n".to_owned())));
    });
}

#[test]
fn a_port_that_is_taken() {
    flow(|s| {
        let port = free_port().to_string();
        let id = web(s, &format!("{port}:80"));
        let out = s.run(&["run", "--rm", "-p", &format!("{port}:80"), s.busybox(), "true"]).code(125);
        assert!(out.errors().contains(&port), "{}", out.errors());
        // Free again as soon as its owner is removed.
        s.run(&["rm", "-f", &id]).ok();
        web(s, &format!("{port}:80"));
    });
}

#[test]
fn a_port_that_another_program_has() {
    flow(|s| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port().to_string();
        let out = s.run(&["run", "--rm", "-p", &format!("127.0.0.1:{port}:80"), s.busybox(), "true"]).code(125);
        assert!(out.errors().contains(&port), "{}", out.errors());
        drop(listener);
        s.run(&["run", "--rm", "-p", &format!("127.0.0.1:{port}:80"), s.busybox(), "true"]).ok();
    });
}

#[test]
fn udp() {
    flow(|s| {
        let echo = format!("{}:/echo", s.compiled("udp-echo"));
        let port = free_port();
        s.detached(&["-v", &echo, "-p", &format!("127.0.0.1:{port}:99/udp"), s.busybox(), "/echo"]);
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("a limit");
        wait::until_true("an answer", || {
            let mut answer = [0; 16];
            let sent = socket.send_to(b"hello", ("127.0.0.1", port)).is_ok();
            sent && socket.recv(&mut answer).is_ok_and(|count| &answer[..count] == b"hello")
        });
    });
}

#[test]
fn wrong_publications_are_refused() {
    flow(|s| {
        for wrong in ["80:0:0:0", "70000:80", "80:70000", "x:80", "80/icmp", "1-3:80-81"] {
            let out = s.run(&["run", "--rm", "-p", wrong, s.busybox(), "true"]);
            assert_eq!(out.code, 125, "-p {wrong}: {}", out.errors());
        }
        s.run(&["run", "--rm", "--network", "nosuch", s.busybox(), "true"]).code(125);
    });
}

#[test]
fn ports_in_the_list() {
    flow(|s| {
        let port = free_port();
        web(s, &format!("127.0.0.1:{port}:80"));
        assert_eq!(s.text(&["ps", "--format", "{{.Ports}}"]), format!("127.0.0.1:{port}->80/tcp"));
    });
}

#[test]
fn addresses_differ_and_come_back() {
    flow(|s| {
        let address = |id: &str| s.inspect(id, "{{.NetworkSettings.IPAddress}}");
        let ids: Vec<String> = (0..3).map(|_| s.detached(&[s.busybox(), "sleep", "100"])).collect();
        let mut addresses: Vec<String> = ids.iter().map(|id| address(id)).collect();
        addresses.dedup();
        assert_eq!(addresses.len(), 3);
        s.run(&["stop", "-t", "0", &ids[0]]).ok();
        s.run(&["start", &ids[0]]).ok();
        assert_ne!(address(&ids[0]), "");
    });
}

#[test]
fn nginx_serves_its_page() {
    flow(|s| {
        let port = free_port();
        let id = s.detached(&["-p", &format!("127.0.0.1:{port}:80"), &s.image("nginx")]);
        let (status, body) = page(&format!("127.0.0.1:{port}")).expect("an answer");
        assert!(status == 200 && body.contains("Hello from nginx"), "{status} {body}");
        wait::until_true("the access log", || s.text(&["logs", &id]).contains("GET / HTTP/1.0"));
        s.run(&["stop", &id]).ok();
        assert_eq!(s.inspect(&id, "{{.State.ExitCode}}"), "0");
    });
}
