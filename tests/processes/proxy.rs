//! A network between metastores whose links can be cut, each direction by itself.
//!
//! Every member is reached through a socket of ours, the address that it advertises, and answers
//! through it. It calls others from the socket that it listens on, so that one sees who calls. What
//! a member sends to another is its requests, which pass the other's socket, and its answers, which
//! pass its own: both are dropped when that direction is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// A caller that has been silent for this long is forgotten; connections do not last so long.
const CALLER_FORGOTTEN: Duration = Duration::from_secs(8);

/// More than any datagram has.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;

/// What members reach each other through.
pub(crate) struct Network {
    runtime: Runtime,
    links: Arc<Links>,
}

/// The directions in which a member can be cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    /// It does not hear the others.
    Inbound,
    /// The others do not hear it.
    Outbound,
    Both,
}

#[derive(Default)]
struct Links {
    /// Where the members listen.
    members: Mutex<Vec<SocketAddr>>,
    /// From which member to which nothing passes.
    cut: Mutex<BTreeSet<(usize, usize)>>,
}

/// One member's socket, and those that speak to the member for its callers.
struct Front {
    member: usize,
    listens_at: SocketAddr,
    socket: UdpSocket,
    callers: Mutex<BTreeMap<SocketAddr, Arc<UdpSocket>>>,
    links: Arc<Links>,
}

impl Network {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, links: Arc::default() }
    }

    /// Puts the next member, which listens here, behind an address of its own.
    pub(crate) fn add(&self, listens_at: SocketAddr) -> SocketAddr {
        let socket = self.runtime.block_on(UdpSocket::bind("127.0.0.1:0")).unwrap();
        let address = socket.local_addr().unwrap();
        let mut members = self.links.members.lock().unwrap();
        members.push(listens_at);
        let (member, links) = (members.len() - 1, Arc::clone(&self.links));
        let front = Front { member, listens_at, socket, callers: Mutex::default(), links };
        self.runtime.spawn(Arc::new(front).carry());
        address
    }

    /// Cuts a member off from all the other members. Clients reach it still.
    pub(crate) fn cut_off(&self, member: usize, direction: Direction) {
        let others = (0..self.links.members.lock().unwrap().len()).filter(|&m| m != member);
        let mut cut = self.links.cut.lock().unwrap();
        for other in others {
            if !matches!(direction, Direction::Outbound) {
                cut.insert((other, member));
            }
            if !matches!(direction, Direction::Inbound) {
                cut.insert((member, other));
            }
        }
    }

    /// Lets everything pass again.
    pub(crate) fn heal(&self) {
        self.links.cut.lock().unwrap().clear();
    }
}

impl Links {
    /// The member that calls from this address; none if it is a client or a bookie.
    fn member_at(&self, address: SocketAddr) -> Option<usize> {
        self.members.lock().unwrap().iter().position(|&member| member == address)
    }

    fn passes(&self, from: Option<usize>, to: Option<usize>) -> bool {
        let (Some(from), Some(to)) = (from, to) else { return true };
        !self.cut.lock().unwrap().contains(&(from, to))
    }
}

impl Front {
    /// Carries what callers send to the member.
    async fn carry(self: Arc<Self>) {
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // Errors are those of datagrams that nobody took: lost, as on any network.
            let Ok((bytes, caller)) = self.socket.recv_from(&mut datagram).await else { continue };
            let back = self.for_caller(caller).await;
            if self.links.passes(self.links.member_at(caller), Some(self.member)) {
                back.send(&datagram[..bytes]).await.ok();
            }
        }
    }

    /// The socket that speaks to the member for this caller.
    async fn for_caller(self: &Arc<Self>, caller: SocketAddr) -> Arc<UdpSocket> {
        let known = self.callers.lock().unwrap().get(&caller).cloned();
        if let Some(back) = known {
            return back;
        }
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        back.connect(self.listens_at).await.unwrap();
        self.callers.lock().unwrap().insert(caller, Arc::clone(&back));
        tokio::spawn(Arc::clone(self).carry_back(caller, Arc::clone(&back)));
        back
    }

    /// Carries what the member answers to a caller.
    async fn carry_back(self: Arc<Self>, caller: SocketAddr, back: Arc<UdpSocket>) {
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        while let Ok(received) = timeout(CALLER_FORGOTTEN, back.recv(&mut datagram)).await {
            // A member that does not run refuses; it may come back.
            let Ok(bytes) = received else { continue };
            if self.links.passes(Some(self.member), self.links.member_at(caller)) {
                self.socket.send_to(&datagram[..bytes], caller).await.ok();
            }
        }
        self.callers.lock().unwrap().remove(&caller);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// Panics unless the first datagram that comes is this one. Gives where it came from.
    fn hears(socket: &UdpSocket, expected: &[u8]) -> SocketAddr {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut datagram = [0; 100];
        let (bytes, from) = socket.recv_from(&mut datagram).unwrap();
        assert_eq!(&datagram[..bytes], expected);
        from
    }

    /// Panics if anything comes before long.
    fn hears_nothing(socket: &UdpSocket) {
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(socket.recv_from(&mut [0; 100]).is_err(), "something passed a cut link");
    }

    #[test]
    fn what_is_cut_passes_nothing_and_the_rest_passes() {
        let network = Network::new();
        let [here, there, client] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [to_here, to_there] =
            [&here, &there].map(|member| network.add(member.local_addr().unwrap()));
        here.send_to(b"from here", to_there).unwrap();
        let answer_here = hears(&there, b"from here");
        there.send_to(b"from there", to_here).unwrap();
        let answer_there = hears(&here, b"from there");
        there.send_to(b"answer", answer_here).unwrap();
        assert_eq!(hears(&here, b"answer"), to_there);

        network.cut_off(1, Direction::Inbound);
        here.send_to(b"lost", to_there).unwrap();
        here.send_to(b"lost answer", answer_there).unwrap();
        hears_nothing(&there);
        there.send_to(b"other way", to_here).unwrap();
        hears(&here, b"other way");
        there.send_to(b"answer", answer_here).unwrap();
        hears(&here, b"answer");
        client.send_to(b"from outside", to_there).unwrap();
        hears(&there, b"from outside");

        network.heal();
        here.send_to(b"again", to_there).unwrap();
        hears(&there, b"again");
        network.cut_off(1, Direction::Outbound);
        there.send_to(b"lost", to_here).unwrap();
        there.send_to(b"lost answer", answer_here).unwrap();
        hears_nothing(&here);
        here.send_to(b"answer", answer_there).unwrap();
        hears(&there, b"answer");

        network.heal();
        network.cut_off(0, Direction::Both);
        here.send_to(b"lost", to_there).unwrap();
        there.send_to(b"lost", to_here).unwrap();
        hears_nothing(&here);
        hears_nothing(&there);
    }
}
