//! A progress bar on stderr, for long work, when a person is watching.
use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    /// `what` is said before the bar, `unit` after the counts.
    pub(crate) fn new(what: &str, unit: &str) -> Self {
        if !stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(0);
        let template = format!("{what} [{{bar:30}}] {{pos}}/{{len}} {unit} {{wide_msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(Some(bar))
    }

    pub(crate) fn set(&self, done: u64, of: u64, message: String) {
        if let Some(bar) = &self.0 {
            bar.set_length(of);
            bar.set_position(done);
            bar.set_message(message);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
