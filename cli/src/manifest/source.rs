//! Text that a manifest was read from, and places in it.
use std::sync::Arc;

/// One file (or standard input), kept whole so that errors can show the line.
#[derive(Debug, Clone)]
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

impl Place {
    /// The longest of the lines that a snippet shows: the one before, its own, and the one after.
    pub fn widest_line_bytes(&self) -> usize {
        let text = &self.source.text;
        let line_start = |at: usize| text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let start = line_start(self.span.start);
        let start = line_start(start.saturating_sub(1));
        text[start..].lines().take(3).map(str::len).max().unwrap_or_default()
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (line, column) = self.position();
        write!(f, "{}:{line}:{column}", self.source.name)
    }
}
