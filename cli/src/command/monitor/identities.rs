//! Labels of identities that this node's daemon has none for: those of other nodes' endpoints. The controller knows them;
//! without it, numbers are shown.
use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, timeout};
use weft_proto::v1::{self, monitor_party::Party, object::Kind};
use weft_shared::policy::{
    parse,
    selector::{Labels, Selector},
};

use crate::{client, command::get, failure::Failure, output::note};

/// What may hold up a line.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Between two questions: identities are made seldom.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Below: classes; from the second on: of prefixes, known to their node alone.
const GLOBAL: std::ops::Range<u32> =
    weft_shared::layout::FIRST_GLOBAL_IDENTITY..weft_shared::layout::FIRST_LOCAL_IDENTITY;

pub(super) struct Identities {
    server: String,
    known: BTreeMap<u32, BTreeMap<String, String>>,
    asked: Option<Instant>,
}

impl Identities {
    pub(super) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), known: BTreeMap::new(), asked: None }
    }

    /// Gives both parties the labels that their identities are made of, where the daemon gave none.
    pub(super) async fn label(&mut self, event: &mut v1::FlowEvent) {
        for party in [&mut event.source, &mut event.destination].into_iter().flatten() {
            if !party.labels.is_empty() || !GLOBAL.contains(&party.identity) {
                continue;
            }
            if !self.known.contains_key(&party.identity)
                && self.asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN)
            {
                // Who reads the line sees the number.
                let _ = self.ask().await;
            }
            party.labels = self.known.get(&party.identity).cloned().unwrap_or_default();
        }
    }

    /// The parties, with each selector also the identities that it selects now: the daemon knows its own endpoints'
    /// labels only.
    pub(super) async fn with_selected(&mut self, parties: Vec<v1::MonitorParty>) -> Vec<v1::MonitorParty> {
        let selectors: Vec<Selector> = parties
            .iter()
            .filter_map(|party| match &party.party {
                // What can't be parsed the daemon refuses, and says why.
                Some(Party::Selector(selector)) => parse::selector(selector, "selector").ok(),
                _ => None,
            })
            .collect();
        if selectors.is_empty() {
            return parties;
        }
        if let Err(why) = self.ask().await {
            note(&format!(
                "labels select endpoints of this node alone, because others' are not known: {why}"
            ));
        }
        let matches = |labels: &BTreeMap<String, String>| {
            let labels: Labels = labels.clone().into_iter().collect();
            selectors.iter().any(|selector| selector.matches(&labels))
        };
        let selected = self.known.iter().filter(|(_, labels)| matches(labels));
        let selected = selected.map(|(number, _)| v1::MonitorParty { party: Some(Party::Identity(*number)) });
        parties.into_iter().chain(selected).collect()
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let listed = timeout(ANSWER_MAX, list(&self.server)).await;
        self.asked = Some(Instant::now());
        let late = |_| Failure::TimedOut(format!("{} did not answer in time", self.server));
        self.known = listed.map_err(late)??;
        Ok(())
    }
}

async fn list(server: &str) -> Result<BTreeMap<u32, BTreeMap<String, String>>, Failure> {
    let mut operator = client::operator(server).await?;
    let what = v1::ListRequest { kind: v1::Kind::Identity.into(), ..v1::ListRequest::default() };
    let (objects, _) = get::list(&mut operator, what).await?;
    let identities = objects.into_iter().filter_map(|object| match object.kind {
        Some(Kind::Identity(identity)) => Some((identity.number, identity.security_labels)),
        _ => None,
    });
    Ok(identities.collect())
}
