//! YAML as a tree that knows where each of its parts stands. Built from the parser's events, since no tree of the field
//! keeps the place of every key and value *and* refuses duplicate keys.
//!
//! Anchors, aliases and tags are refused: a manifest says the same thing to everyone who reads it from top to bottom.
use std::{collections::HashMap, sync::Arc};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};

use super::{
    problem::{Problem, quoted},
    source::{Place, Source, Span},
};
use crate::limits::MANIFEST_DEPTH_MAX;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// `plain`: without quotes, so that it may stand for something other than text.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) span: Span,
    pub(crate) text: String,
}

impl Node {
    /// Nothing was written, or one of YAML's words for nothing.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// The documents of a source; empty ones are left out.
pub(crate) fn documents(source: &Arc<Source>) -> Result<Vec<Node>, Problem> {
    let mut builder = Builder {
        source,
        events: Parser::new_from_str(&source.text),
        byte_of_char: byte_offsets(&source.text),
    };
    let mut documents = Vec::new();
    loop {
        match builder.next()? {
            (Event::StreamEnd, _) => return Ok(documents),
            (Event::DocumentStart(_), _) => {
                let (event, span) = builder.next()?;
                let node = builder.node(event, span, 0)?;
                if !node.is_null() {
                    documents.push(node);
                }
            }
            _ => {}
        }
    }
}

/// The parser counts characters; everything else here counts bytes. ASCII needs no table.
fn byte_offsets(text: &str) -> Option<Vec<usize>> {
    let end = std::iter::once(text.len());
    (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).chain(end).collect())
}

struct Builder<'a> {
    source: &'a Arc<Source>,
    events: Parser<'a, StrInput<'a>>,
    byte_of_char: Option<Vec<usize>>,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.events.next_event() {
            Some(Ok((event, span))) => {
                let span = Span { start: self.byte(span.start.index()), end: self.byte(span.end.index()) };
                Ok((event, span))
            }
            Some(Err(error)) => Err(self.syntax(&error)),
            // The parser says StreamEnd before it ends.
            None => {
                Ok((Event::StreamEnd, Span { start: self.source.text.len(), end: self.source.text.len() }))
            }
        }
    }

    fn byte(&self, index: usize) -> usize {
        let length = self.source.text.len();
        self.byte_of_char
            .as_ref()
            .map_or(index.min(length), |table| table.get(index).copied().unwrap_or(length))
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let at = self.byte(error.marker().index());
        let problem = self.problem(Span { start: at, end: at }, format!("not valid YAML: {}", error.info()));
        let indented_by_tab =
            self.source.text[..at].rsplit('\n').next().is_some_and(|line| line.contains('\t'));
        if indented_by_tab {
            problem.help("indent with spaces: YAML does not allow tabs there")
        } else {
            problem
        }
    }

    fn problem(&self, span: Span, message: impl Into<String>) -> Problem {
        Problem::new(Place { source: Arc::clone(self.source), span }, message)
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        if depth > MANIFEST_DEPTH_MAX {
            return Err(self.problem(span.first_line(&self.source.text), "nested too deeply for a manifest"));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_extras(span, anchor, tag.is_some())?;
                let plain = style == ScalarStyle::Plain;
                Ok(Node { span, value: Value::Scalar { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_extras(span, anchor, tag.is_some())?;
                self.sequence(span, depth)
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_extras(span, anchor, tag.is_some())?;
                self.mapping(span, depth)
            }
            Event::Alias(_) => Err(self
                .problem(span, "aliases (`*name`) are not supported in manifests")
                .help("write the value out")),
            _ => Err(self.problem(span, "expected a value")),
        }
    }

    fn refuse_extras(&self, span: Span, anchor: usize, tagged: bool) -> Result<(), Problem> {
        let span = span.first_line(&self.source.text);
        if anchor != 0 {
            return Err(self
                .problem(span, "anchors (`&name`) are not supported in manifests")
                .help("write the value out"));
        }
        if tagged {
            return Err(self.problem(span, "tags (`!name`) are not supported in manifests"));
        }
        Ok(())
    }

    fn sequence(&mut self, start: Span, depth: usize) -> Result<Node, Problem> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                let span = Span { start: start.start, end: span.end.max(start.end) };
                return Ok(Node { span, value: Value::Sequence(items) });
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn mapping(&mut self, start: Span, depth: usize) -> Result<Node, Problem> {
        let mut entries = Vec::new();
        let mut seen = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                let span = Span { start: start.start, end: span.end.max(start.end) };
                return Ok(Node { span, value: Value::Mapping(entries) });
            }
            let key = self.key(event, span)?;
            if let Some(first) = seen.insert(key.text.clone(), key.span) {
                let message = format!("`{}` is given twice", quoted(&key.text));
                return Err(self.problem(key.span, message).label("again here").also(first, "first here"));
            }
            let (event, span) = self.next()?;
            entries.push((key, self.node(event, span, depth + 1)?));
        }
    }

    fn key(&self, event: Event<'a>, span: Span) -> Result<Key, Problem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_extras(span, anchor, tag.is_some())?;
                if text == "<<" && style == ScalarStyle::Plain {
                    return Err(self.problem(span, "merge keys (`<<`) are not supported in manifests"));
                }
                Ok(Key { span, text: text.into_owned() })
            }
            _ => Err(self.problem(span.first_line(&self.source.text), "a key must be text")),
        }
    }
}
