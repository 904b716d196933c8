//! Live: established connections stop when a policy is applied that no longer allows them.
use std::path::Path;

use anyhow::{Context, Result};
use tokio::time::Instant;
use weft_integration::{fleet::Fleet, traffic::Conversation};

use crate::say;

const PORT: u16 = 8081;
/// Messages that each side writes after the apply was realised, none of which may arrive.
const MESSAGES: u64 = 400;

/// What was seen.
#[derive(Debug)]
pub(crate) struct Revocation {
    /// From starting `weft apply --wait` to the last byte that got through on any of the connections, at least 0.
    pub(crate) milliseconds: f64,
    /// Nothing that was written after `weft apply --wait` had returned arrived, on either side.
    pub(crate) held: bool,
}

pub(crate) fn show(fleet: &Fleet, policies: &Path) -> Result<Revocation> {
    say(
        "web talks to api on established TCP connections, IPv4 and IPv6; api.yaml is replaced by later/api-closed.yaml",
    );
    let (web, api) = (fleet.party("web")?, fleet.party("api")?);
    let talk = |family| Conversation::establish(&web.namespace, &api.namespace, api.address(family)?, PORT);
    let talks = [talk(4)?, talk(6)?];
    for talk in &talks {
        talk.passes_after(talk.mark())?;
    }
    let start = Instant::now();
    fleet.apply_file(&policies.join("later/api-closed.yaml"))?;
    let marks = talks.each_ref().map(Conversation::mark);
    let returned = start.elapsed();
    for (talk, mark) in talks.iter().zip(marks) {
        talk.speaks_after(mark, MESSAGES)?;
    }
    let passed =
        talks.iter().zip(marks).filter(|(talk, mark)| talk.passed_since(*mark) != (false, false)).count();
    let last = talks.iter().filter_map(Conversation::last_arrival).max().context("nothing ever arrived")?;
    let milliseconds = last.saturating_duration_since(start).as_secs_f64() * 1e3;
    say(&format!(
        "  last byte {milliseconds:.1} ms after apply was started (it returned after {:.1} ms); of {MESSAGES} messages \
         each side wrote after that, {} arrived",
        returned.as_secs_f64() * 1e3,
        if passed == 0 { "none" } else { "SOME" },
    ));
    fleet.apply_file(&policies.join("api.yaml"))?;
    for talk in &talks {
        talk.passes_after(talk.mark())?;
    }
    say("  api.yaml is applied again: the same connections go on");
    Ok(Revocation { milliseconds, held: passed == 0 })
}
