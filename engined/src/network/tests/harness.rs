//! The world of a test: a host (this thread's namespaces) with a bridge, and a peer on its LAN.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::MountPropagationFlags;

use crate::network::endpoint::Mac;
use crate::network::namespace::Namespace;
use crate::network::rtnl::{FarAddress, Rtnl, VethPair};
use crate::network::{Config, Endpoint, EndpointId, Network, PortRequest, Protocol, Subnet};

/// The host's address on the LAN, and the peer's.
pub(super) const HOST_ON_LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const PEER_ON_LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The address that means every address.
pub(super) const EVERYWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub(super) const TABLE: &str = "strata-test";
pub(super) const BRIDGE: &str = "strata-test";

/// How long a probe that should fail waits; dropped packets cost this.
const PROBE: Duration = Duration::from_millis(400);
/// How long a call that should be answered waits.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs `test` in namespaces of its own, or says that it cannot.
pub(super) fn in_a_world(test: impl FnOnce(&World) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to make network namespaces");
        return;
    }
    // Made out here: what is mounted on it in there goes with the mount namespace, and leaves it empty.
    let directory = tempfile::Builder::new().prefix("strata-network-").tempdir().expect("create a directory");
    thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).expect("make / private");
                mount_memory(directory.path());
                // The lock of iptables is there.
                mount_memory(Path::new("/run"));
                test(&World::new(directory.path()));
            })
            .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

fn mount_memory(path: &Path) {
    rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mount a tmpfs");
}

/// The host and its LAN.
pub(super) struct World {
    pub(super) directory: PathBuf,
    pub(super) peer: Namespace,
}

impl World {
    fn new(directory: &Path) -> World {
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.bring_up(1, None).unwrap();
        let mut peer = Namespace::fresh().unwrap();
        // veth wants a bridge in our function, so the LAN is one too.
        rtnl.create_bridge("lan0", Mac::of(HOST_ON_LAN)).unwrap();
        let lan = rtnl.link("lan0").unwrap().unwrap().index;
        let subnet = Subnet::around(HOST_ON_LAN, 24).unwrap();
        rtnl.add_address(lan, HOST_ON_LAN, subnet).unwrap();
        rtnl.bring_up(lan, None).unwrap();
        let pair = VethPair {
            name: "lan-port",
            bridge: lan,
            far_name: "eth0",
            far_namespace: peer.as_fd(),
            far_mac: Mac::of(PEER_ON_LAN),
            mtu: 1500,
        };
        rtnl.create_veth(&pair).unwrap();
        let far = peer.rtnl.link("eth0").unwrap().unwrap().index;
        // The peer sends everything it knows no better way for to the host: also what is for the containers' subnet.
        peer.rtnl.configure(far, &FarAddress { address: PEER_ON_LAN, subnet, gateway: HOST_ON_LAN }).unwrap();
        World { directory: directory.to_owned(), peer }
    }

    pub(super) fn config(&self) -> Config {
        config_in(&self.directory)
    }

    pub(super) fn open(&self) -> Network {
        self.reopen(&[])
    }

    pub(super) fn reopen(&self, live: &[Endpoint]) -> Network {
        Network::open(&self.config(), live, &[]).unwrap_or_else(|error| panic!("{}", told(error))).0
    }
}

/// The configuration of the tests' instance.
pub(super) fn config_in(directory: &Path) -> Config {
    Config {
        bridge: BRIDGE.to_owned(),
        subnet: Some("10.88.0.0/16".parse().unwrap()),
        gateway: None,
        mtu: None,
        table: TABLE.to_owned(),
        namespaces: directory.join("netns"),
        ip_forward: true,
        prepared: 2,
    }
}

/// An error with all its causes.
pub(super) fn told(error: crate::network::Error) -> String {
    strata_fault::Fault::from(error).one_line()
}

pub(super) fn id(text: &str) -> EndpointId {
    text.parse().unwrap()
}

/// A pinned namespace with nothing but its loopback, which no endpoint record names.
pub(super) fn pinned(network: &Network, name: &str) -> PathBuf {
    network.shared.pins.pin(&id(name), Namespace::fresh().unwrap().as_fd()).unwrap()
}

/// Publishes container port 80 on `host_ip`, on a port of the kernel's choice.
pub(super) fn publish(host_ip: impl Into<IpAddr>, protocol: Protocol) -> PortRequest {
    PortRequest { host_ip: host_ip.into(), host_port: 0, container_port: 80, protocol }
}

pub(super) fn publish_everywhere() -> PortRequest {
    publish(EVERYWHERE, Protocol::Tcp)
}

/// Runs `work` in a network namespace.
pub(super) fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    let fd = namespace.try_clone_to_owned().unwrap();
    thread::scope(|scope| {
        let handle = scope.spawn(move || {
            setns(&fd, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `work` in the namespace pinned at `path`.
pub(super) fn inside_pin<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    inside(std::fs::File::open(path).unwrap().as_fd(), work)
}

/// A server in a container: it tells every caller where the call came from.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// On TCP and UDP port 80 of the endpoint.
    pub(super) fn start(endpoint: &Endpoint) -> Server {
        Server::at(&endpoint.namespace, 80)
    }

    pub(super) fn at(namespace: &Path, port: u16) -> Server {
        let (tcp, udp) = inside_pin(namespace, || {
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (one, two) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads =
            vec![thread::spawn(move || answer_tcp(&tcp, &one)), thread::spawn(move || answer_udp(&udp, &two))];
        Server { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_tcp(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, from)) => {
                let _ = stream.write_all(from.ip().to_string().as_bytes());
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn answer_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    }
}

/// Calls a TCP server that should answer: the address that it saw. A machine that is busy may take its time.
pub(super) fn call(to: Ipv4Addr, port: u16) -> Option<IpAddr> {
    call_within(ANSWER, to, port)
}

/// Calls a TCP server that should not be reached.
pub(super) fn call_in_vain(to: Ipv4Addr, port: u16) -> Option<IpAddr> {
    call_within(PROBE, to, port)
}

fn call_within(patience: Duration, to: Ipv4Addr, port: u16) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).ok()?;
    seen.parse().ok()
}

/// Calls a UDP server from a socket of its own, again and again until it answers.
pub(super) fn call_udp(to: impl Into<IpAddr>, port: u16) -> Option<IpAddr> {
    let (socket, to) = (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap(), to.into());
    (0..10).find_map(|_| call_udp_from(&socket, to, port))
}

/// Calls a UDP server once.
pub(super) fn call_udp_from(socket: &UdpSocket, to: impl Into<IpAddr>, port: u16) -> Option<IpAddr> {
    socket.set_read_timeout(Some(PROBE)).unwrap();
    socket.send_to(b"?", SocketAddr::new(to.into(), port)).ok()?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.parse().ok()
}

/// Waits until `condition` holds.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The names of the host's links.
pub(super) fn link_names() -> Vec<String> {
    Rtnl::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect()
}
