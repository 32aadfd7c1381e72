//! The command `inkfast`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use inkfast_cli::Failure;
use inkfast_cli::commands::Arguments;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(if arguments.is_daemon() { "info,openraft=error" } else { "error" });
    let mut runtime = Builder::new_multi_thread();
    if arguments.is_server() {
        runtime.worker_threads(server_threads());
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::Failed(format!("cannot start: {error}"))),
    };
    let done = runtime.block_on(arguments.run());
    // A read of standard input may block for as long as it likes; nobody waits for it any more.
    runtime.shutdown_background();
    done.map_or_else(|failure| fail(&failure), |()| ExitCode::SUCCESS)
}

/// Tells how many threads a server takes for all but its disk: on half of the cores what arrives
/// gathers into larger batches with fewer wake-ups, which is worth more than the other half.
fn server_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

fn log_to_stderr(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn fail(failure: &Failure) -> ExitCode {
    let words = failure.to_string().replace('\n', " ");
    // If standard error is closed there is still the status.
    let _ = writeln!(std::io::stderr(), "error: {words}");
    ExitCode::from(failure.status())
}
