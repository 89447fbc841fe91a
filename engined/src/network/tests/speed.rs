//! How long connecting takes. Ignored: `cargo test --release -- --ignored --nocapture speed`.

use std::time::{Duration, Instant};

use super::harness::*;

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    eprintln!("{what}: median {:?}, 90% {:?}, worst {:?}", at(50), at(90), at(100));
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    times.push(start.elapsed());
    result
}

#[test]
#[ignore = "a measurement"]
fn prepared_ahead() {
    in_a_world(|world| {
        let network = world.open();
        let (mut plain, mut published, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..100 {
            let name = id(&format!("c{number}"));
            let ports = if number % 2 == 0 { vec![] } else { vec![publish_everywhere()] };
            eventually("a namespace is prepared", || network.prepared() > 0);
            std::thread::sleep(Duration::from_millis(5));
            let times = if ports.is_empty() { &mut plain } else { &mut published };
            timed(times, || network.attach(&name, &ports).unwrap());
            timed(&mut gone, || network.detach(&name).unwrap());
        }
        show("attach, prepared", plain);
        show("attach with a port, prepared", published);
        show("detach", gone);
    });
}

#[test]
#[ignore = "a measurement"]
fn one_after_the_other() {
    in_a_world(|world| {
        for prepared in [0, 2, 8] {
            let config = crate::network::Config { prepared, ..world.config() };
            let network = crate::network::Network::open(&config, &[], &[]).unwrap().0;
            let (mut attach, mut detach) = (Vec::new(), Vec::new());
            let start = Instant::now();
            for number in 0..200 {
                let name = id(&format!("c{number}"));
                timed(&mut attach, || network.attach(&name, &[publish_everywhere()]).unwrap());
                // What a short container does in between.
                std::thread::sleep(Duration::from_millis(5));
                timed(&mut detach, || network.detach(&name).unwrap());
            }
            eprintln!("{prepared} prepared: {:?} a round", start.elapsed() / 200);
            show("  attach", attach);
            show("  detach", detach);
        }
    });
}

/// A container that calls out at once must not wait for a lost first packet to be sent again.
#[test]
#[ignore = "a measurement"]
fn the_first_packet() {
    in_a_world(|world| {
        for prepared in [0, 2] {
            let config = crate::network::Config { prepared, ..world.config() };
            let network = crate::network::Network::open(&config, &[], &[]).unwrap().0;
            let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let (mut out, mut inward) = (Vec::new(), Vec::new());
            for number in 0..50 {
                let name = id(&format!("c{number}"));
                let endpoint = network.attach(&name, &[publish_everywhere()]).unwrap();
                let to = std::net::SocketAddr::from((endpoint.gateway, port));
                let start = Instant::now();
                let reached = inside_pin(&endpoint.namespace, || {
                    std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3)).is_ok()
                });
                assert!(reached);
                out.push(start.elapsed());
                network.detach(&name).unwrap();

                let name = id(&format!("d{number}"));
                let endpoint = network.attach(&name, &[publish_everywhere()]).unwrap();
                let _listener = inside_pin(&endpoint.namespace, || std::net::TcpListener::bind("0.0.0.0:80").unwrap());
                let to = std::net::SocketAddr::from((HOST_ON_LAN, endpoint.ports[0].host_port));
                let start = Instant::now();
                assert!(std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3)).is_ok());
                inward.push(start.elapsed());
                network.detach(&name).unwrap();
            }
            eprintln!("{prepared} prepared");
            show("  first call out", out);
            show("  first call in", inward);
        }
    });
}
