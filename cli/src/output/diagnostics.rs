//! Failures for people, on stderr: with the lines of the manifest where there are some.
use std::{
    fmt::Write,
    io::{IsTerminal, stderr},
};

use miette::{GraphicalReportHandler, GraphicalTheme};

use super::note;
use crate::{
    failure::Failure,
    limits::{PROBLEMS_SHOWN_MAX, SNIPPET_LINE_BYTES_MAX},
    manifest::Problem,
};

/// Says what went wrong. Nothing is said when the reader of our output went away.
pub(crate) fn report(failure: &Failure) {
    let text = match failure {
        // The result has told of them.
        Failure::Differences => return,
        Failure::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return,
        Failure::Manifest(problems) => snippets(problems, Beyond::Counted) + ": nothing was applied",
        // Who imports wants to see at once how much there is to do by hand.
        Failure::Import(problems) => snippets(problems, Beyond::Named) + ": nothing was imported",
        Failure::Refused { message, fields, .. } => {
            let mut text = format!("error: {message}");
            let unsaid = |(field, description): &&(String, String)| {
                !message.contains(&format!("{field}: {description}"))
            };
            for (field, description) in fields.iter().filter(unsaid) {
                // Writing to a String never fails.
                let _ = write!(text, "\n  {field}: {description}");
            }
            text
        }
        Failure::Unreachable { message, help } => format!("error: {message}\n  {help}"),
        Failure::Usage(message) => format!("error: {message}\n\nFor more information, try '--help'."),
        other => format!("error: {other}"),
    };
    note(&text);
}

/// What is said of more problems than are shown.
#[derive(Clone, Copy)]
enum Beyond {
    Counted,
    Named,
}

fn snippets(problems: &[Problem], beyond: Beyond) -> String {
    let terminal = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let theme = if terminal { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    // What is read by machines or in logs is not wrapped.
    let handler = GraphicalReportHandler::new_themed(theme);
    let handler = if terminal { handler } else { handler.with_width(usize::from(u16::MAX)) };
    let mut text = String::new();
    for problem in problems.iter().take(PROBLEMS_SHOWN_MAX) {
        let _ = writeln!(text, "error: {problem}");
        if problem.place.widest_line_bytes() > SNIPPET_LINE_BYTES_MAX {
            let _ = writeln!(text, "  {}", problem.label);
            if let Some(help) = &problem.help {
                let _ = writeln!(text, "  help: {help}");
            }
            continue;
        }
        let mut snippet = String::new();
        // Should it fail, the line above says all that is needed.
        let _ = handler.render_report(&mut snippet, problem);
        // Its heading repeats that line.
        let heading = snippet.lines().position(|line| line.contains("╭─[")).unwrap_or_default();
        for line in snippet.lines().skip(heading) {
            text.push_str(line);
            text.push('\n');
        }
    }
    let rest = problems.get(PROBLEMS_SHOWN_MAX..).unwrap_or_default();
    match beyond {
        Beyond::Counted if !rest.is_empty() => {
            let _ = writeln!(text, "… and {} more", rest.len());
        }
        Beyond::Counted => {}
        Beyond::Named => rest.iter().for_each(|problem| {
            let _ = writeln!(text, "error: {problem}");
        }),
    }
    let count =
        if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    text.push_str(&count);
    text
}
