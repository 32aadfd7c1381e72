//! What commands print on standard output: lines for people, JSON for programs.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

#[derive(Clone, clap::Args)]
pub(crate) struct Output {
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Output {
    /// Prints `data` as one JSON object, or as it looks to people.
    pub(crate) fn print(&self, data: &(impl Serialize + fmt::Display)) -> io::Result<()> {
        match self.format {
            Format::Table => say(data),
            Format::Json => say(serde_json::to_string_pretty(data)?),
        }
    }
}

/// Prints a line at once.
pub(crate) fn say(line: impl fmt::Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
