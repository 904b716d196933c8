//! What is wrong with a manifest, at its place.
use std::{borrow::Cow, fmt};

use miette::{Diagnostic, LabeledSpan, SourceCode, SourceSpan, SpanContents};

use super::source::{Place, Span};
use crate::limits::QUOTED_CHARACTERS_MAX;

/// One thing wrong with a manifest: what, where, and what was expected instead.
#[derive(Debug, Clone)]
pub struct Problem {
    pub place: Place,
    pub message: String,
    /// Under the marked text.
    pub label: String,
    pub help: Option<String>,
    /// Another place that matters, such as the first of two.
    pub also: Option<Box<(Span, String)>>,
}

impl Problem {
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), label: "here".to_owned(), help: None, also: None }
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.also = Some(Box::new((span, label.into())));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        // A block of many lines is pointed at, not painted.
        let text = &self.place.source.text;
        let labelled = |span: Span, label: &str| {
            let span = span.first_line(text);
            (Some(label.to_owned()), SourceSpan::from(span.start..span.end))
        };
        let (label, span) = labelled(self.place.span, &self.label);
        let first = LabeledSpan::new_primary_with_span(label, span);
        let also = self.also.as_deref().map(|(span, label)| {
            let (label, span) = labelled(*span, label);
            LabeledSpan::new_with_span(label, span)
        });
        Some(Box::new(std::iter::once(first).chain(also)))
    }
}

impl SourceCode for Problem {
    // The text itself is a source, but one without a name.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, miette::MietteError> {
        let source = &self.place.source;
        let contents = source.text.read_span(span, context_lines_before, context_lines_after)?;
        Ok(Box::new(miette::MietteSpanContents::new_named(
            source.name.clone(),
            contents.data(),
            *contents.span(),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

/// Text of the manifest inside a message, cut where it is too long to help.
pub(crate) fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
