//! Runs a command as a step that people can follow: one line each, with the time it took; its output goes to a log,
//! whose tail is printed when it fails.
use std::{
    fs::{self, File},
    io::{IsTerminal, Write, stderr},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{stopwatch::Stopwatch, workspace::Workspace};

/// Lines of a failed command's log that are printed.
const TAIL_LINES: usize = 80;
/// How often a running step says where it is: in place on a terminal, as lines of their own elsewhere.
const REDRAW: Duration = Duration::from_millis(250);
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What a step left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// Standard output and error, as they came.
    pub(crate) log: String,
}

/// Runs the command to its end; an error when it fails, after the tail of its log was printed.
pub(crate) fn step(workspace: &Workspace, label: &str, command: &mut Command) -> Result<Finished> {
    let finished = attempt(workspace, label, command)?;
    if !finished.status.success() {
        bail!("{label}: {} ({})", shown(command), finished.status);
    }
    Ok(finished)
}

/// Like [`step`], but the caller judges the exit status.
pub(crate) fn attempt(workspace: &Workspace, label: &str, command: &mut Command) -> Result<Finished> {
    let watch = Stopwatch::start();
    fs::create_dir_all(workspace.logs())?;
    let path =
        workspace.logs().join(format!("{}.log", label.replace(|c: char| !c.is_ascii_alphanumeric(), "-")));
    let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().with_context(|| format!("start {}", shown(command)))?;

    let (done, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let status = child.wait();
        // Nobody listens any more only if this thread's owner panicked.
        let _ = done.send(());
        status
    });
    follow(label, &watch, &path, &ended);
    let status = waiter.join().map_err(|_| anyhow::anyhow!("waiting for {} panicked", shown(command)))??;

    let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let mark = if status.success() { "ok" } else { "FAILED" };
    clear_line();
    eprintln!("  {label}: {mark} ({:.1} s)", watch.seconds());
    if !status.success() {
        eprintln!("    {}\n  the whole log: {}", tail(&log, TAIL_LINES), path.display());
    }
    Ok(Finished { status, log })
}

fn follow(label: &str, watch: &Stopwatch, log: &Path, ended: &mpsc::Receiver<()>) {
    let terminal = stderr().is_terminal();
    let pause = if terminal { REDRAW } else { HEARTBEAT };
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
        let last = last_line(log);
        if terminal {
            let line: String =
                format!("  {label} {:.0} s  {last}", watch.seconds()).chars().take(100).collect();
            eprint!("\r\x1b[K{line}");
            let _ = stderr().flush();
        } else {
            eprintln!("  {label} … {:.0} s  {last}", watch.seconds());
        }
    }
}

fn clear_line() {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().map(str::trim).find(|line| for_people(line)).unwrap_or_default().to_owned()
}

fn tail(log: &str, lines: usize) -> String {
    let all: Vec<_> = log.lines().filter(|line| for_people(line)).collect();
    all[all.len().saturating_sub(lines)..].join("\n    ")
}

/// Not cargo's messages for machines.
fn for_people(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("{\"reason\"")
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
