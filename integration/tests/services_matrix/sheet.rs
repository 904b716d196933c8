//! Trying cells, and the sheet on which is written what came of them.
use std::{
    fmt,
    io::{self, ErrorKind},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, anyhow, bail, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use weft_integration::{
    limits::DENIED,
    traffic::{Answered, Transport, exchange},
};

use crate::{
    setting::{Setting, service},
    table::{Expected, Row, rows},
};

/// A cell that has not come to an end by then has failed: the cells of a mode are tried all at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// The columns of a row.
const COLUMNS: [(Transport, u8); 6] = [
    (Transport::Tcp, 4),
    (Transport::Tcp, 6),
    (Transport::Udp, 4),
    (Transport::Udp, 6),
    (Transport::Sctp, 4),
    (Transport::Sctp, 6),
];

/// What came of each column of each row; `None`: not tried.
pub(crate) struct Sheet {
    rows: Vec<(Row, [Option<Result<()>>; COLUMNS.len()])>,
}

impl Sheet {
    pub(crate) fn new() -> Self {
        Self { rows: rows().into_iter().map(|row| (row, [const { None }; COLUMNS.len()])).collect() }
    }

    /// Tries all cells of these rows at once; how many there were.
    pub(crate) fn fill(&mut self, setting: &Setting, of: impl Fn(&Row) -> bool) -> Result<u64> {
        let transports: Vec<_> = Transport::available().collect();
        let mut tried = Vec::new();
        for (number, (row, _)) in self.rows.iter().enumerate() {
            let columns = COLUMNS.into_iter().enumerate().filter(|_| of(row));
            for (column, (transport, family)) in columns {
                let never = matches!(row.expected_of(transport), Expected::Never(_));
                if transports.contains(&transport) && !never {
                    tried.push((number, column, attempt(setting, row, transport, family)?));
                }
            }
        }
        let cells = tried.len() as u64;
        for (number, column, attempt) in tried {
            let answered = attempt.join().map_err(|_| anyhow!("a client panicked"))?;
            let (row, columns) = &mut self.rows[number];
            columns[column] = Some(judge(setting, row, COLUMNS[column].1, answered));
        }
        Ok(cells)
    }

    /// An error if there is a cell that was not as expected.
    pub(crate) fn is_as_expected(&self) -> Result<()> {
        let failed = self.rows.iter().flat_map(|(_, columns)| columns).flatten().filter(|cell| cell.is_err());
        let untried = self.rows.iter().filter(|(row, columns)| {
            !matches!(row.expected, Expected::Never(_)) && columns.iter().all(Option::is_none)
        });
        let (failed, untried) = (failed.count(), untried.count());
        ensure!(
            failed + untried == 0,
            "{failed} cells failed and {untried} rows were not tried: see the table"
        );
        Ok(())
    }
}

/// From a socket that is made now.
fn attempt(
    setting: &Setting,
    row: &Row,
    transport: Transport,
    family: u8,
) -> Result<JoinHandle<Result<Answered>>> {
    let service = service(row, family);
    let patience = if row.expected == Expected::Denied { DENIED } else { PATIENCE };
    Ok(setting.client(row.client)?.namespace.spawn(move || exchange(transport, service, patience)))
}

/// Of an answer, or none, in a cell.
fn judge(setting: &Setting, row: &Row, family: u8, answered: Result<Answered>) -> Result<()> {
    match (row.expected, answered) {
        (Expected::Seen(seen), answered) => {
            let (answered, source) = (answered?, setting.source(row, seen, family)?);
            let name = row.backend.name();
            ensure!(answered.by == name, "{} answers in place of {name}", answered.by);
            ensure!(answered.seen.ip() == source, "it is seen as {} and not as {source}", answered.seen);
            Ok(())
        }
        (_, Ok(answered)) => bail!("{} answers what policy denies", answered.by),
        (_, Err(error)) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(()),
            _ => Err(error),
        },
    }
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        let columns = COLUMNS.map(|(transport, family)| format!("{} {family}", transport.name()));
        let header = ["client", "mode", "backend", "expected"].map(str::to_owned);
        table.set_header(header.into_iter().chain(columns));
        let mut failures = Vec::new();
        for (row, cells) in &self.rows {
            let mut line: Vec<String> =
                vec![format!("{:?}", row.client), format!("{:?}", row.mode), format!("{:?}", row.backend)];
            line.push(match row.expected {
                Expected::Seen(seen) => format!("seen as {seen:?}"),
                Expected::Denied => "denied".to_owned(),
                Expected::Never(why) => why.to_owned(),
            });
            for cell in cells {
                line.push(match cell {
                    None => "-".to_owned(),
                    Some(Ok(())) => "ok".to_owned(),
                    Some(Err(error)) => {
                        failures.push(format!("{error:#}"));
                        format!("FAILED ({})", failures.len())
                    }
                });
            }
            table.add_row(line);
        }
        writeln!(f, "{table}")?;
        for (number, failure) in failures.iter().enumerate() {
            writeln!(f, "({}) {failure}", number + 1)?;
        }
        if Transport::available().all(|transport| transport != Transport::Sctp) {
            writeln!(f, "SCTP is not tried: this kernel has none.")?;
        }
        Ok(())
    }
}
