//! What people and machines get to see: results on stdout, everything else on stderr.
mod columns;
mod diagnostics;
mod difference;
mod failsafe;
mod progress;

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::Value;

pub(crate) use columns::{endpoints, frontends, labels, objects, place};
pub(crate) use diagnostics::report;
pub(crate) use difference::difference;
pub(crate) use failsafe::failsafe;
pub(crate) use progress::Progress;

use crate::{failure::Failure, manifest};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For machines: one document (watch: one a line)
    Json,
    /// Resources as manifests, everything else field by field
    Yaml,
}

impl Format {
    /// Writes one result: `table` makes the text for people, `value` what machines read.
    pub(crate) fn write(
        self,
        table: impl FnOnce() -> String,
        value: impl FnOnce() -> Value,
    ) -> Result<(), Failure> {
        let text = match self {
            Self::Table => table(),
            Self::Json => pretty(&value()),
            Self::Yaml => manifest::document(&value()),
        };
        print(&text)
    }
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// To stdout, at once: results of a long-running command are not held back.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// `1 node`, `3 nodes`.
pub(crate) fn count(number: impl TryInto<u64>, one: &str, many: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A point in time to the second.
pub(crate) fn time(time: prost_types::Timestamp) -> String {
    prost_types::Timestamp { nanos: 0, ..time }.to_string()
}

/// A word to people that is no result, on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// A table without borders, as its columns are cut by other tools.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}
