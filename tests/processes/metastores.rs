//! Several metastores, each a process, that die, hang, are cut off, come and go.
//!
//! [`Metastores`] puts them together with their bookies, `status` reads what they say of
//! themselves, and `loads` keeps them busy through the library. The ports of all members are taken
//! beforehand and held while a member does not run, so that a client can know those that are still
//! to come and nobody else gets their place.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cluster::{Client, Daemon, create_certs, write_config};
use crate::load::until;
use crate::process::{Outcome, Process, Signal};
use crate::proxy::Network;

use library::Library;
use status::Status;

mod backups;
mod basics;
mod calls;
mod cuts;
mod histories;
mod leaders;
pub(crate) mod library;
mod loads;
mod majorities;
mod membership;
mod one_process;
mod promises;
mod refusals;
mod status;
mod wiped;

/// A cluster whose metastore has members; some of them may not have been started yet.
pub(crate) struct Metastores {
    pub(crate) members: Vec<Member>,
    pub(crate) bookies: Vec<Daemon>,
    /// Knows every member, also those that have not been started.
    pub(crate) client: Client,
    /// What the members reach each other through, if it is ours.
    network: Option<Network>,
    // Last: it goes when the processes are gone.
    home: TempDir,
}

/// A process of the metastore, which can be started again with its directory, at its address.
pub(crate) struct Member {
    home: PathBuf,
    dir: String,
    listen: SocketAddr,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
    /// Holds its port while it does not run.
    port: Option<UdpSocket>,
    join: Vec<SocketAddr>,
    process: Option<Process>,
}

impl Metastores {
    /// Starts a cluster with all of its members.
    pub(crate) fn start(members: usize, bookies: usize) -> Self {
        let mut cluster = Self::found(members, bookies);
        (1..members).for_each(|member| cluster.join(member));
        cluster
    }

    /// Starts a cluster of the first member; so many are planned.
    pub(crate) fn found(members: usize, bookies: usize) -> Self {
        Self::found_in(None, members, bookies)
    }

    /// Starts a cluster whose members reach each other, and are reached, through a network of ours.
    pub(crate) fn start_in_network(members: usize, bookies: usize) -> Self {
        let mut cluster = Self::found_in(Some(Network::new()), members, bookies);
        (1..members).for_each(|member| cluster.join(member));
        cluster
    }

    fn found_in(network: Option<Network>, members: usize, bookies: usize) -> Self {
        let home = TempDir::new().unwrap();
        create_certs(home.path(), "certs");
        let member = |number| Member::new(home.path(), number, network.as_ref());
        let mut members: Vec<_> = (0..members).map(member).collect();
        members[0].start(&[]);
        let addresses: Vec<_> = members.iter().map(|member| member.address).collect();
        let config = write_config(home.path(), "client.toml", &addresses, "certs");
        let client = Client::new(home.path(), config);
        let mut cluster = Self { members, bookies: Vec::new(), client, network, home };
        cluster.bookies = (0..bookies).map(|number| cluster.start_bookie(number)).collect();
        cluster
    }

    fn start_bookie(&self, number: usize) -> Daemon {
        let (dir, members) = (format!("bookie-{number}"), comma_separated(&self.addresses()));
        let mut args = vec!["bookie", "--dir", &dir, "--metastore", &members, "--certs", "certs"];
        // However full the disk is that the tests run on.
        args.extend(["--min-free", "0"]);
        Daemon::spawn(self.home(), &args).ready()
    }

    /// Starts a member with the addresses of all that run, and waits until it has a vote.
    pub(crate) fn join(&mut self, member: usize) {
        let running: Vec<_> = self.running().map(|member| self.members[member].address).collect();
        self.members[member].start(&running);
    }

    /// The directory that all directories and logs are in.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("it was started in a network of ours")
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.address).collect()
    }

    /// The members whose processes run.
    pub(crate) fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|&member| self.members[member].process.is_some())
    }

    /// A client that knows only these members, in this order.
    pub(crate) fn client_of(&self, members: &[usize]) -> Client {
        let addresses: Vec<_> = members.iter().map(|&m| self.members[m].address).collect();
        self.client_at(&addresses)
    }

    fn client_at(&self, addresses: &[SocketAddr]) -> Client {
        let file = format!("client-{}.toml", comma_separated(addresses));
        Client::new(self.home(), write_config(self.home(), &file, addresses, "certs"))
    }

    /// The client library, which knows all members.
    pub(crate) fn library(&self) -> Library {
        Library::new(self.home().join("certs"), self.addresses())
    }

    /// Waits until it is told who leads.
    pub(crate) fn leader(&self) -> usize {
        let client = self.client_of(&self.running().collect::<Vec<_>>());
        let mut leader = None;
        until("led", || {
            leader = Status::ask(&client).and_then(|status| {
                // Whoever has died may still be followed for a moment.
                let address = status.leader().filter(|leader| leader.reachable)?.address;
                self.members.iter().position(|member| member.address == address)
            });
            leader.is_some()
        });
        leader.expect("it was waited for")
    }

    /// Members that run and do not lead.
    pub(crate) fn followers(&self) -> Vec<usize> {
        let leader = self.leader();
        self.running().filter(|&member| member != leader).collect()
    }

    /// Waits until these are the members, and all of them are reached, have a vote, follow one
    /// leader, and have applied what that one had applied when this was called.
    pub(crate) fn wait_settled(&self, members: &[usize]) -> Status {
        let addresses: Vec<_> = members.iter().map(|&m| self.members[m].address).collect();
        self.wait_settled_at(&addresses)
    }

    /// Waits until these are the addresses of the members, and all is well with them.
    pub(crate) fn wait_settled_at(&self, addresses: &[SocketAddr]) -> Status {
        let client = self.client_at(addresses);
        let (mut goal, mut settled) = (None, None);
        until("settled", || {
            settled = Status::ask(&client).filter(|status| {
                goal = goal.or_else(|| status.leader()?.applied);
                status.is_settled(addresses, goal)
            });
            settled.is_some()
        });
        settled.expect("it was waited for")
    }

    /// Waits until all members that run are settled, and there are no others.
    pub(crate) fn wait_all_settled(&self) -> Status {
        self.wait_settled(&self.running().collect::<Vec<_>>())
    }

    /// Runs `inkfast metastore COMMAND ADDRESS` with a member's address.
    pub(crate) fn change(&self, command: &str, member: usize) -> Outcome {
        let address = self.members[member].address.to_string();
        self.client.run(&["metastore", command, &address])
    }
}

impl Member {
    /// Plans a member at a port of its own.
    pub(crate) fn new(home: &Path, number: usize, network: Option<&Network>) -> Self {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = port.local_addr().unwrap();
        let address = network.map_or(listen, |network| network.add(listen));
        let dir = format!("metastore-{number}");
        let (home, join) = (home.into(), Vec::new());
        Self { home, dir, listen, address, port: Some(port), join, process: None }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.join(&self.dir)
    }

    /// Starts it to join these, or to found a cluster if there are none, and waits until it is
    /// ready.
    pub(crate) fn start(&mut self, join: &[SocketAddr]) {
        self.spawn(join);
        self.wait_ready();
    }

    /// Starts it without waiting for anything.
    pub(crate) fn spawn(&mut self, join: &[SocketAddr]) {
        assert!(self.process.is_none(), "it still runs");
        self.join = join.to_vec();
        let (listen, address) = (self.listen.to_string(), self.address.to_string());
        let join = comma_separated(join);
        let mut args = vec!["start", "metastore", "--dir", &self.dir, "--certs", "certs"];
        args.extend(["--listen", &listen]);
        if listen != address {
            args.extend(["--advertise", &address]);
        }
        if !join.is_empty() {
            args.extend(["--join", &join]);
        }
        self.port = None;
        self.process = Some(Process::start(&self.home, None, &args));
    }

    /// Waits for its line, which says where it is.
    pub(crate) fn wait_ready(&mut self) {
        let line = self.running().line_with("ready");
        let at = |address| format!("ready metastore {address}\n");
        assert!(line == at(self.address) || line == at(self.listen), "{line}");
    }

    pub(crate) fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("it has not been killed")
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.running().signal(signal);
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
        self.hold_port();
    }

    /// Waits until it ends by itself.
    pub(crate) fn outcome(&mut self) -> Outcome {
        let outcome = self.process.take().expect("it runs").outcome();
        self.hold_port();
        outcome
    }

    /// Starts it as it was started first.
    pub(crate) fn restart(&mut self) {
        self.respawn();
        self.wait_ready();
    }

    pub(crate) fn respawn(&mut self) {
        self.spawn(&self.join.clone());
    }

    /// Takes the place of a member that was planned, with a directory of its own.
    pub(crate) fn use_dir(&mut self, dir: &str) {
        dir.clone_into(&mut self.dir);
    }

    fn hold_port(&mut self) {
        self.port = Some(UdpSocket::bind(self.listen).unwrap());
    }
}

fn comma_separated(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(",")
}
