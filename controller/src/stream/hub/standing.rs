//! How far each node is, wherever it is connected, and who waits for it.
use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use weft_proto::v1;

use super::{Hub, State};
use crate::{
    limits,
    progress::{Standing, own, waiters::Outlook},
    store::{Event, KeyValue},
};

impl Hub {
    // ---- What controllers wrote ----

    pub fn take_listed_records(&self, items: &[KeyValue]) {
        let mut state = self.lock();
        for item in items {
            state.records.take_item(item, self.now());
        }
    }

    pub fn take_records(&self, events: &[Event]) {
        let mut state = self.lock();
        for event in events {
            let Some(controller) = state.records.take_event(event, self.now()) else { continue };
            if controller != self.controller {
                self.look_at_nodes_of(&mut state, &controller);
            } else if state.records.run(&controller).is_some_and(|run| run != self.run) {
                state.namesake_heard = Some(self.now());
                tracing::error!(
                    controller,
                    "another controller calls itself the same: give each a name of its own (--name), or it will not be known \
                     where nodes are"
                );
            }
        }
    }

    /// The listing is whole; `changed` is when what is in it changed last.
    pub fn listed(&self, changed: u64) {
        let mut state = self.lock();
        state.fleet.note_changed(changed);
        self.remember_away(&mut state);
    }

    /// What this controller has to say of its nodes.
    pub fn own_record(&self) -> v1::ControllerProgress {
        let mut state = self.lock();
        self.remember_away(&mut state);
        for node in state.waiters.waited_for() {
            self.look(&mut state, &node);
        }
        let own = state.fleet.nodes().map(|(name, _)| name).filter(|name| !self.is_elsewhere(&state, name));
        let own = own.filter_map(|name| Some((name, self.standing_of(&state, name)?)));
        let mut record = own::record(&self.controller, &self.run, state.fleet.changed(), own);
        let waiting = state.waiting_for_adoption.list();
        record.waiting_for_adoption = waiting.iter().map(prost::Message::encode_to_vec).collect();
        record
    }

    // ---- Adoption ----

    /// The node was turned away. `true`: that is news.
    pub fn turned_away(&self, node: v1::WaitingNode) -> bool {
        let news = self.lock().waiting_for_adoption.note(node);
        self.tell_progress();
        news
    }

    /// Nodes that wait at any controller.
    pub fn waiting_for_adoption(&self) -> Vec<v1::WaitingNode> {
        let mut state = self.lock();
        let mut waiting = state.records.waiting_for_adoption(&self.controller, self.now());
        waiting.extend(state.waiting_for_adoption.list());
        // One that has asked several controllers says the same to each.
        waiting.sort_by(|left, right| left.name.cmp(&right.name));
        waiting.dedup_by(|later, earlier| later.name == earlier.name);
        let served = |node: &v1::WaitingNode| {
            self.standing_of(&state, &node.name).is_some_and(|standing| standing.connected)
        };
        waiting.retain(|node| !served(node));
        waiting
    }

    // ---- Nodes ----

    /// `None`: there is no such node.
    pub fn standing(&self, node: &str) -> Option<Standing> {
        self.standing_of(&self.lock(), node)
    }

    fn standing_of(&self, state: &State, node: &str) -> Option<Standing> {
        let facts = state.fleet.node(node)?;
        if self.is_elsewhere(state, node) {
            return state.records.standing(node, &facts.controller);
        }
        let seen = state.seen.get(node).map(|seen| seen.at);
        let remembered = || state.records.last_standing(node, &facts.controller)?.last_seen;
        Some(Standing {
            connected: state.fleet.is_connected(node) || self.is_a_namesakes(state, node),
            controller: facts.controller.clone(),
            realised: state.fleet.realised(node),
            answered: state.fleet.answered(node),
            rejections: state.fleet.rejections(node),
            last_seen: seen.or_else(remembered),
        })
    }

    /// Whether another controller, which lives, has it.
    fn is_elsewhere(&self, state: &State, node: &str) -> bool {
        let Some(facts) = state.fleet.node(node) else { return false };
        !state.fleet.is_connected(node)
            && facts.controller != self.controller
            && state.records.is_alive(&facts.controller, self.now())
    }

    /// Whether another controller of the same name lives, which may have the node: of the two that overwrite each other's
    /// record, neither can say that a node is away.
    fn is_a_namesakes(&self, state: &State, node: &str) -> bool {
        let lives = |heard: Duration| self.now().saturating_sub(heard) < limits::PROGRESS_STALE;
        state.namesake_heard.is_some_and(lives)
            && state.fleet.node(node).is_some_and(|facts| facts.controller == self.controller)
    }

    /// Takes over nodes that no controller has: what changes from here on is pending for them.
    fn remember_away(&self, state: &mut State) {
        let away = state.fleet.nodes().filter(|(name, _)| !state.fleet.is_remembered(name));
        let away = away.filter(|(name, _)| !self.is_elsewhere(state, name));
        let away: Vec<(String, u64)> = away
            .map(|(name, facts)| {
                let last = state.records.last_standing(name, &facts.controller);
                (name.to_owned(), last.map_or(0, |last| last.realised))
            })
            .collect();
        for (node, realised) in away {
            state.fleet.remember(&node, realised);
        }
    }

    // ---- Waiting ----

    /// Waits for what the fleet has taken in of this revision to be realised by the nodes there are now.
    pub fn wait(self: &Arc<Self>, revision: u64) -> Waiting {
        let mut state = self.lock();
        let target = revision.min(state.fleet.changed());
        let nodes: Vec<String> = state.fleet.nodes().map(|(name, _)| name.to_owned()).collect();
        let (number, news) = state.waiters.begin(target, nodes.iter().cloned().collect());
        for node in nodes {
            self.look(&mut state, &node);
        }
        Waiting { hub: Arc::clone(self), number, news }
    }

    /// Something may have changed about how far the node is.
    pub(super) fn look(&self, state: &mut State, node: &str) {
        if state.waiters.is_empty() {
            return;
        }
        if let Some(standing) = self.standing_of(state, node) {
            state.waiters.look(node, |target| standing.reached(node, target));
        }
    }

    fn look_at_nodes_of(&self, state: &mut State, controller: &str) {
        for node in state.waiters.waited_for() {
            if state.fleet.node(&node).is_some_and(|facts| facts.controller == controller) {
                self.look(state, &node);
            }
        }
    }
}

/// One who waits. Dropping it ends that.
#[derive(Debug)]
pub struct Waiting {
    hub: Arc<Hub>,
    number: u64,
    news: Arc<Notify>,
}

impl Waiting {
    pub fn outlook(&self) -> Outlook {
        self.hub.lock().waiters.outlook(self.number).unwrap_or_default()
    }

    /// Returns when the outlook may have changed.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.hub.lock().waiters.end(self.number);
    }
}
