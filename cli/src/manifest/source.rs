//! Text that a manifest was read from, and places in it.
use std::sync::Arc;

/// One file (or standard input), kept whole so that errors can show the line.
#[derive(Debug)]
pub struct Source {
    /// As the operator named it; `<stdin>` for `-`.
    pub name: String,
    pub text: String,
}

/// Bytes of a source's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// From here to the end of its first line: enough to point at a block without painting all of it.
    #[must_use]
    pub fn first_line(self, text: &str) -> Self {
        let body = text.get(self.start..self.end).unwrap_or_default();
        let line = body.lines().next().unwrap_or_default().trim_end();
        Self { start: self.start, end: self.start + line.len() }
    }
}

/// A span and the source that it is in.
#[derive(Debug, Clone)]
pub struct Place {
    pub source: Arc<Source>,
    pub span: Span,
}

impl Place {
    /// Line and column, both from 1; the column counts characters.
    pub fn position(&self) -> (usize, usize) {
        let before = self.source.text.get(..self.span.start).unwrap_or(&self.source.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (line, column) = self.position();
        write!(f, "{}:{line}:{column}", self.source.name)
    }
}
