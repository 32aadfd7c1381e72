//! Processes whose lines and end can be awaited.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What takes longer than this hangs. The longest wait that may be right is that of a recovery
/// which gives up after 60 s.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running `inkfast`, killed and reaped when dropped.
///
/// Its log (stderr) is a file, which is shown if the process is dropped by a failing test.
pub(crate) struct Process {
    name: String,
    child: Child,
    input: Option<Sender<Vec<u8>>>,
    lines: Receiver<Vec<u8>>,
    log: PathBuf,
}

/// How a process ended and what it had said.
pub(crate) struct Outcome {
    name: String,
    /// The exit status; none if a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// What a process was heard to say.
pub(crate) enum Heard {
    /// A line with its newline.
    Line(Vec<u8>),
    /// Nothing for so long.
    Silence,
    /// Its output has ended.
    End,
}

/// The signals that a process is sent other than SIGKILL.
#[derive(Clone, Copy)]
pub(crate) enum Signal {
    Terminate,
    Interrupt,
    Stop,
    Continue,
}

impl Process {
    /// Starts the command with these arguments. Its log goes to `home`; `config` is what
    /// `INKFAST_CONFIG` says to it.
    pub(crate) fn start(home: &Path, config: Option<&Path>, args: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let log = home.join(format!("{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut command = Command::new(env!("CARGO_BIN_EXE_inkfast"));
        command.args(args).env_remove("INKFAST_CONFIG").current_dir(home);
        if let Some(config) = config {
            command.env("INKFAST_CONFIG", config);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = spawn(&mut command);

        let (input, to_feed) = channel();
        let stdin = child.stdin.take().unwrap();
        thread::spawn(move || feed(stdin, &to_feed));
        let (heard, lines) = channel();
        let stdout = child.stdout.take().unwrap();
        thread::spawn(move || listen(stdout, &heard));
        Self { name: format!("inkfast {}", args.join(" ")), child, input: Some(input), lines, log }
    }

    /// Puts bytes into its standard input, without waiting until they are taken. They are lost if
    /// the process has ended.
    pub(crate) fn send(&self, bytes: impl Into<Vec<u8>>) {
        let input = self.input.as_ref().expect("input is sent before it is ended");
        // The feeder is gone once the process is: whoever reads its outcome will see that.
        input.send(bytes.into()).ok();
    }

    /// Ends its standard input, after what has been sent.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    /// Waits for its next line, with the newline; none once its output has ended.
    pub(crate) fn next_line(&mut self) -> Option<Vec<u8>> {
        self.next_line_until(Instant::now() + DEADLINE)
    }

    /// Waits for a line that begins with `start`, passing over others.
    pub(crate) fn line_with(&mut self, start: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        while let Some(line) = self.next_line_until(deadline) {
            if line.starts_with(start.as_bytes()) {
                return String::from_utf8(line).unwrap();
            }
        }
        panic!("{} ended before a line `{start} ...`", self.name);
    }

    /// Waits until it ends by itself. Its input is left as it is.
    pub(crate) fn outcome(mut self) -> Outcome {
        let deadline = Instant::now() + DEADLINE;
        let mut stdout = Vec::new();
        while let Some(line) = self.next_line_until(deadline) {
            stdout.extend(line);
        }
        // Its output has ended, so that it is about to be gone: this does not block for long.
        let status = self.child.wait().unwrap().code();
        Outcome { name: self.name.clone(), status, stdout, stderr: self.log() }
    }

    /// Kills it (SIGKILL) and gives what it had said until then.
    pub(crate) fn kill(mut self) -> Outcome {
        self.child.kill().unwrap();
        self.outcome()
    }

    /// The number that the system knows it by.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => "-TERM",
            Signal::Interrupt => "-INT",
            Signal::Stop => "-STOP",
            Signal::Continue => "-CONT",
        };
        // Not reaped yet, so that the number is still its own.
        let mut kill = Command::new("kill");
        let mut kill = spawn(kill.arg(signal).arg(self.child.id().to_string()));
        assert!(kill.wait().unwrap().success(), "kill {signal} of {}", self.name);
    }

    /// Panics if it has ended.
    pub(crate) fn assert_runs(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "{} ended with {ended:?}", self.name);
    }

    /// Waits for its next line for no longer than this.
    pub(crate) fn hear(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Disconnected) => Heard::End,
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
        }
    }

    fn next_line_until(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        match self.hear(deadline.saturating_duration_since(Instant::now())) {
            Heard::Line(line) => Some(line),
            Heard::End => None,
            Heard::Silence => panic!("{} hangs", self.name),
        }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

impl Outcome {
    /// Panics unless it succeeded. Gives what it printed.
    pub(crate) fn succeeded(self) -> Vec<u8> {
        assert_eq!(self.status, Some(0), "{self}");
        self.stdout
    }

    /// Panics unless it ended with this status and with words. Gives the words.
    pub(crate) fn failed(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{self}");
        assert!(!self.stderr.trim().is_empty(), "no words: {self}");
        assert!(!self.stderr.contains("panicked"), "{self}");
        self.stderr
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, status, stdout, stderr } = self;
        write!(f, "{name}: status {status:?}, {} bytes of output; {stderr}", stdout.len())
    }
}

/// Starts a process, one at a time: until it is one of its own, it has all sockets of the tests, and
/// a port that was held for another would not be free yet.
fn spawn(command: &mut Command) -> Child {
    static SPAWNING: Mutex<()> = Mutex::new(());
    let _spawning = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

fn feed(mut stdin: ChildStdin, bytes: &Receiver<Vec<u8>>) {
    for bytes in bytes {
        if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn listen(stdout: ChildStdout, lines: &Sender<Vec<u8>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        match stdout.read_until(b'\n', &mut line) {
            Ok(1..) if lines.send(line).is_ok() => {}
            _ => return,
        }
    }
}
