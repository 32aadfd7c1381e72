//! A cluster of separate processes, and what a client does with one.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Heard, Outcome, Process, Signal};

/// One metastore and bookies, each a process, in a temporary directory.
pub(crate) struct Cluster {
    pub(crate) metastore: Daemon,
    pub(crate) bookies: Vec<Daemon>,
    pub(crate) client: Client,
    // Last: it goes when the processes are gone.
    home: TempDir,
}

/// A process that serves at an address, and can be started again there.
pub(crate) struct Daemon {
    home: PathBuf,
    args: Vec<String>,
    pub(crate) address: SocketAddr,
    /// The id of a bookie.
    id: Option<String>,
    pub(crate) process: Option<Process>,
}

/// Runs commands with a configuration.
pub(crate) struct Client {
    home: PathBuf,
    config: PathBuf,
}

/// An `inkfast ledger write --confirmations`.
pub(crate) struct Writer {
    process: Process,
    pub(crate) ledger: String,
    /// The last entry that it has told as confirmed, as far as that was waited for.
    pub(crate) confirmed: Option<u64>,
}

/// What the metadata says of a run of entries.
pub(crate) struct Fragment {
    pub(crate) first_entry: u64,
    /// The ensemble, as numbers of the cluster's bookies.
    pub(crate) bookies: Vec<usize>,
}

/// The usual sizes of a ledger.
pub(crate) const PLAIN: &[&str] = &["--ensemble", "3", "--write-quorum", "3", "--ack-quorum", "2"];

/// The sizes of a ledger that is spread over more bookies than an entry has copies.
pub(crate) const STRIPED: &[&str] =
    &["--ensemble", "5", "--write-quorum", "3", "--ack-quorum", "2"];

impl Cluster {
    pub(crate) fn start(bookies: usize) -> Self {
        Self::start_in_racks(&vec![None; bookies])
    }

    /// Starts a bookie in each of these racks.
    pub(crate) fn start_in_racks(racks: &[Option<&str>]) -> Self {
        let home = TempDir::new().unwrap();
        create_certs(home.path(), "certs");
        let metastore =
            Daemon::spawn(home.path(), &["metastore", "--dir", "metastore", "--certs", "certs"])
                .ready();
        let config = write_config(home.path(), "client.toml", &[metastore.address], "certs");
        let client = Client::new(home.path(), config);
        let mut cluster = Self { metastore, bookies: Vec::new(), client, home };
        let starting = racks.iter().enumerate().map(|(n, rack)| cluster.spawn_bookie(n, *rack));
        let starting: Vec<_> = starting.collect();
        cluster.bookies = starting.into_iter().map(Starting::ready).collect();
        cluster
    }

    /// Starts one more bookie and gives its number.
    pub(crate) fn add_bookie(&mut self) -> usize {
        self.add_bookie_in(None)
    }

    /// Starts one more bookie in a rack and gives its number.
    pub(crate) fn add_bookie_in(&mut self, rack: Option<&str>) -> usize {
        self.bookies.push(self.spawn_bookie(self.bookies.len(), rack).ready());
        self.bookies.len() - 1
    }

    /// The directory that the daemons' directories and logs are in.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn bookie_dir(&self, number: usize) -> PathBuf {
        self.home().join(format!("bookie-{number}"))
    }

    /// Kills every process of the cluster, then starts all again at their addresses.
    pub(crate) fn kill_and_restart(&mut self) {
        self.metastore.kill();
        self.bookies.iter_mut().for_each(Daemon::kill);
        self.metastore.restart();
        let starting: Vec<_> = self.bookies.iter_mut().map(Daemon::respawn).collect();
        self.bookies = starting.into_iter().map(Starting::ready).collect();
    }

    /// Starts the bookies that were killed.
    pub(crate) fn restart_killed(&mut self) {
        let killed = self.bookies.iter_mut().filter(|bookie| bookie.process.is_none());
        killed.for_each(Daemon::restart);
    }

    /// What the metadata says of where a ledger's entries are.
    pub(crate) fn fragments(&self, ledger: &str) -> Vec<Fragment> {
        let shown = self.client.run(&["ledger", "show", ledger, "-o", "json"]).succeeded();
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        let number = |id: &Value| {
            let is_it = |bookie: &Daemon| bookie.id.as_deref() == id.as_str();
            self.bookies.iter().position(is_it).unwrap_or_else(|| panic!("{id} is no bookie"))
        };
        let fragment = |fragment: &Value| Fragment {
            first_entry: fragment["first_entry"].as_u64().unwrap(),
            bookies: fragment["bookies"].as_array().unwrap().iter().map(number).collect(),
        };
        shown["fragments"].as_array().unwrap().iter().map(fragment).collect()
    }

    /// The bookies that a ledger's entries go to at present.
    pub(crate) fn ensemble(&self, ledger: &str) -> Vec<usize> {
        self.fragments(ledger).pop().expect("a ledger has a fragment").bookies
    }

    /// Panics unless these ledgers are read with these bytes whichever of the bookies that their
    /// metadata names is away. All of them run before, and after.
    pub(crate) fn assert_survive_any_loss(&mut self, ledgers: &[(String, Vec<u8>)]) {
        let fragments = ledgers.iter().flat_map(|(ledger, _)| self.fragments(ledger));
        let named: BTreeSet<usize> = fragments.flat_map(|fragment| fragment.bookies).collect();
        for bookie in named {
            self.bookies[bookie].kill();
            let read = |(ledger, _): &(String, _)| self.client.start(&["ledger", "read", ledger]);
            let reads: Vec<_> = ledgers.iter().map(read).collect();
            for (read, (ledger, bytes)) in reads.into_iter().zip(ledgers) {
                let is_equal = read.outcome().succeeded() == *bytes;
                assert!(is_equal, "ledger {ledger} without bookie {bookie}: other bytes came back");
            }
            self.bookies[bookie].restart();
        }
    }

    fn spawn_bookie(&self, number: usize, rack: Option<&str>) -> Starting {
        let (dir, metastore) = (format!("bookie-{number}"), self.metastore.address.to_string());
        let mut args = vec!["bookie", "--dir", &dir, "--metastore", &metastore, "--certs", "certs"];
        // However full the disk is that the tests run on.
        args.extend(["--min-free", "0"]);
        args.extend(rack.iter().flat_map(|rack| ["--rack", rack]));
        Daemon::spawn(self.home(), &args)
    }
}

/// A daemon that has not said `ready` yet.
pub(crate) struct Starting {
    home: PathBuf,
    args: Vec<String>,
    process: Process,
}

impl Starting {
    pub(crate) fn ready(mut self) -> Daemon {
        let line = self.process.line_with("ready");
        let address = line
            .split(|c: char| c.is_whitespace() || ",;()".contains(c))
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no address in `{line}`"));
        // `ready bookie ADDRESS ID`
        let id = line.split_whitespace().nth(3).map(str::to_owned);
        Daemon { home: self.home, args: self.args, address, id, process: Some(self.process) }
    }
}

impl Daemon {
    /// Starts `inkfast start ARGS` at a port that the system chooses.
    pub(crate) fn spawn(home: &Path, args: &[&str]) -> Starting {
        Self::spawn_at(home, args, "127.0.0.1:0")
    }

    pub(crate) fn spawn_at(home: &Path, args: &[&str], listen: &str) -> Starting {
        let process = run_daemon(home, args, listen);
        let args = args.iter().map(|&arg| arg.into()).collect();
        Starting { home: home.into(), args, process }
    }

    /// Panics unless these words name it.
    pub(crate) fn assert_named_in(&self, words: &str) {
        let id = self.id.as_deref().expect("a bookie has an id");
        let is_named = words.contains(id) || words.contains(&self.address.to_string());
        assert!(is_named, "bookie {id} at {} is not in: {words}", self.address);
    }

    pub(crate) fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("it has not been killed")
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    pub(crate) fn restart(&mut self) {
        *self = self.respawn().ready();
    }

    fn respawn(&mut self) -> Starting {
        assert!(self.process.is_none(), "it still runs");
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        Self::spawn_at(&self.home, &args, &self.address.to_string())
    }
}

impl Client {
    pub(crate) fn new(home: &Path, config: PathBuf) -> Self {
        Self { home: home.into(), config }
    }

    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&self.home, Some(&self.config), args)
    }

    /// Runs a command without input to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        let mut process = self.start(args);
        process.end_input();
        process.outcome()
    }

    /// Writes a ledger and gives its id. `args` are those of `ledger write`.
    pub(crate) fn write(&self, args: &[&str], input: impl Into<Vec<u8>>) -> String {
        let mut process = self.start(&[&["ledger", "write"], args].concat());
        process.send(input);
        process.end_input();
        let stdout = String::from_utf8(process.outcome().succeeded()).unwrap();
        let line = stdout.lines().next().unwrap_or_default();
        line.strip_prefix("ledger ").unwrap_or_else(|| panic!("no ledger in `{line}`")).to_owned()
    }

    /// Begins to write a ledger whose input stays open.
    pub(crate) fn writer(&self, args: &[&str]) -> Writer {
        let args = [&["ledger", "write", "--confirmations"], args].concat();
        let mut process = self.start(&args);
        let line = process.line_with("ledger ");
        let ledger = line["ledger ".len()..].trim_end().to_owned();
        Writer { process, ledger, confirmed: None }
    }

    /// Reads a whole ledger.
    pub(crate) fn read(&self, ledger: &str) -> Vec<u8> {
        self.run(&["ledger", "read", ledger]).succeeded()
    }

    /// Recovers a ledger and gives its last entry.
    pub(crate) fn recover(&self, ledger: &str) -> u64 {
        last_entry(self.start_to_recover(ledger).outcome())
    }

    /// Begins to recover a ledger; `last_entry` takes its outcome.
    pub(crate) fn start_to_recover(&self, ledger: &str) -> Process {
        self.start(&["ledger", "recover", ledger, "-o", "json"])
    }

    /// Gives what the cluster says of a ledger, in lower case.
    pub(crate) fn show(&self, ledger: &str) -> String {
        let shown = self.run(&["ledger", "show", ledger]).succeeded();
        String::from_utf8(shown).unwrap().to_lowercase()
    }
}

impl Writer {
    pub(crate) fn send(&self, bytes: impl Into<Vec<u8>>) {
        self.process.send(bytes);
    }

    pub(crate) fn end_input(&mut self) {
        self.process.end_input();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it has told that this entry is confirmed.
    pub(crate) fn wait_confirmed(&mut self, entry: u64) {
        while self.confirmed < Some(entry) {
            let line = self.process.next_line();
            let line = line.unwrap_or_else(|| panic!("the writer ended before entry {entry}"));
            self.confirmed = Some(confirmed_in(&line, self.confirmed));
        }
    }

    /// Waits until it has confirmed nothing for so long. It runs still.
    pub(crate) fn wait_silent(&mut self, time: Duration) {
        loop {
            match self.process.hear(time) {
                Heard::Line(line) => self.confirmed = Some(confirmed_in(&line, self.confirmed)),
                Heard::Silence => return,
                Heard::End => panic!("the writer ended after {:?}", self.confirmed),
            }
        }
    }

    /// Waits until it ends by itself; gives how, and the last entry that it told as confirmed.
    pub(crate) fn outcome(self) -> (Outcome, Option<u64>) {
        Self::last_words(self.process.outcome(), self.confirmed)
    }

    /// Kills it; gives the last entry that it told as confirmed.
    pub(crate) fn kill(self) -> Option<u64> {
        Self::last_words(self.process.kill(), self.confirmed).1
    }

    fn last_words(outcome: Outcome, confirmed: Option<u64>) -> (Outcome, Option<u64>) {
        // What is cut by a kill has not been told.
        let lines = outcome.stdout.split_inclusive(|&b| b == b'\n').filter(|l| l.ends_with(b"\n"));
        let confirmed = lines.fold(confirmed, |before, line| Some(confirmed_in(line, before)));
        (outcome, confirmed)
    }
}

/// The entry of a line `confirmed ENTRY`, which is higher than the one before.
fn confirmed_in(line: &[u8], before: Option<u64>) -> u64 {
    let line = str::from_utf8(line).unwrap();
    let entry = line.strip_prefix("confirmed ").and_then(|entry| entry.trim_end().parse().ok());
    let entry = entry.unwrap_or_else(|| panic!("`{line}` confirms nothing"));
    assert!(before < Some(entry), "{entry} confirmed after {before:?}");
    entry
}

/// Starts `inkfast start ARGS --listen ADDRESS` without waiting for anything.
pub(crate) fn run_daemon(home: &Path, args: &[&str], listen: &str) -> Process {
    Process::start(home, None, &[&["start"], args, &["--listen", listen]].concat())
}

/// Makes the certificates of a cluster in a directory of this name.
pub(crate) fn create_certs(home: &Path, name: &str) {
    Process::start(home, None, &["certs", "create", "--dir", name]).outcome().succeeded();
}

/// Writes a client's configuration and gives its path.
pub(crate) fn write_config(
    home: &Path,
    file: &str,
    metastores: &[SocketAddr],
    certs: &str,
) -> PathBuf {
    let config = home.join(file);
    let certs = home.join(certs);
    let metastores: Vec<_> = metastores.iter().map(SocketAddr::to_string).collect();
    // Debug is how TOML writes these as well.
    fs::write(&config, format!("metastore = {metastores:?}\ncerts = {certs:?}\n")).unwrap();
    config
}

/// Numbered lines: the input of most tests, of which each prefix can be told.
pub(crate) fn lines(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(|n| format!("line {n}\n").into_bytes()).collect()
}

/// The last entry that a recovery printed, in JSON.
pub(crate) fn last_entry(recovery: Outcome) -> u64 {
    let closed: Value = serde_json::from_slice(&recovery.succeeded()).unwrap();
    closed["last_entry"].as_u64().unwrap_or_else(|| panic!("no last entry in {closed}"))
}

/// Panics unless these are the first `lines` to the one of the last entry, and all that was
/// confirmed is among them.
pub(crate) fn assert_keeps(bytes: &[u8], confirmed: Option<u64>, last: u64) {
    let entries = bytes.iter().filter(|&&b| b == b'\n').count() as u64;
    assert!(bytes == lines(0..entries), "{entries} entries are not what was written first");
    assert_eq!(entries, last + 1, "what is read is not what was recovered");
    assert!(confirmed <= Some(last), "{confirmed:?} was confirmed, but the end is {last}");
}

/// Panics unless a writer ended because it was fenced, and said so.
pub(crate) fn assert_fenced(outcome: Outcome) {
    let words = outcome.failed(1);
    assert!(words.contains("fenced"), "{words}");
}
