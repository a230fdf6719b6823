//! A node with two pod addresses and an outside, as network namespaces of this test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

/// Runs a test on a thread of its own, in a network namespace of its own, which ends with it.
pub(crate) fn on_a_node<T: Send>(test: impl FnOnce(&Node) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test(&Node::new())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The namespace of the calling thread is the node.
pub(crate) struct Node {
    pod: Namespace,
    outside: Namespace,
}

/// A namespace that a sleeping process keeps alive.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        // `cat` waits for its end of a pipe that never gets anything, and ends with this process whatever happens to it.
        let child =
            Command::new("unshare").args(["-n", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", child.id());
        while std::fs::read_link(&theirs).is_ok_and(|namespace| namespace == own) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Self(child)
    }

    fn sh(&self, script: &str) {
        sh(&format!("nsenter -t {} -n sh -ec '{script}'", self.0.id()));
    }

    /// Does something on a thread in this namespace.
    fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                what()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Runs a script in the namespace of the calling thread and gives what it prints.
pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Node {
    fn new() -> Self {
        let node = Self { pod: Namespace::new(), outside: Namespace::new() };
        let (pod, outside) = (node.pod.0.id(), node.outside.0.id());
        sh(&format!(
            "ip link set lo up
             ip link add pod0 type veth peer name eth0 netns {pod}
             ip link add out0 type veth peer name eth0 netns {outside}
             ip addr add 10.48.0.1/24 dev pod0; ip link set pod0 up
             ip addr add 192.0.2.1/24 dev out0; ip link set out0 up
             ip route add 198.51.100.0/24 via 192.0.2.2
             echo 1 > /proc/sys/net/ipv4/ip_forward
             iptables -w -t nat -A POSTROUTING -o out0 -j MASQUERADE"
        ));
        node.pod.sh("ip link set lo up; ip link set eth0 up
             ip addr add 10.48.0.2/24 dev eth0; ip addr add 10.48.0.3/24 dev eth0
             ip route add default via 10.48.0.1");
        // 198.51.100.0/24 is where packets vanish without an answer: the outside does not forward.
        node.outside.sh("ip link set lo up; ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0");
        node
    }

    /// Connections from the pod to the outside; both ends.
    pub(crate) fn connect(&self, count: usize) -> Vec<(TcpStream, TcpStream)> {
        let listener = self.outside.inside(|| TcpListener::bind("192.0.2.2:443").unwrap());
        let connect = || TcpStream::connect("192.0.2.2:443").unwrap();
        self.pod.inside(|| (0..count).map(|_| (connect(), listener.accept().unwrap().0)).collect())
    }

    /// Sends one datagram from the same port of both pod addresses: the second one gets another port on the way out.
    pub(crate) fn send_from_both_pods(&self, to: SocketAddr) {
        self.pod.inside(|| {
            for from in ["10.48.0.2:40000", "10.48.0.3:40000"] {
                UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap();
            }
        });
    }

    /// A socket of the pod that sends where packets vanish.
    pub(crate) fn pod_socket(&self) -> UdpSocket {
        self.pod.inside(|| UdpSocket::bind("10.48.0.2:0").unwrap())
    }

    /// Makes the pod's own namespace track its connections, too.
    pub(crate) fn track_in_the_pod(&self) {
        self.pod.sh("iptables -w -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT");
    }

    /// Inode of the pod's namespace.
    pub(crate) fn pod_inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(format!("/proc/{}/ns/net", self.pod.0.id())).unwrap().ino()
    }

    /// Inode of the outside's namespace.
    pub(crate) fn outside_inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(format!("/proc/{}/ns/net", self.outside.0.id())).unwrap().ino()
    }
}

/// Sends one datagram each to many destinations where packets vanish: one conntrack entry each.
pub(crate) fn send(socket: &UdpSocket, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let host = u8::try_from(1 + number / 60_000).unwrap();
        let port = u16::try_from(1000 + number % 60_000).unwrap();
        // While the route's neighbour is looked up, a few datagrams are refused.
        while socket.send_to(b"x", (Ipv4Addr::new(198, 51, 100, host), port)).is_err() {}
    }
}
