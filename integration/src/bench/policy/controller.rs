//! The controller's half: from the store's events to what each node is to be sent.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use tokio::time::Instant;
use weft_controller::{
    fleet::{Change, Delta, Fleet, Resource},
    stream::Chunks,
};

use super::{
    fleet::{Size, node_name, put},
    micros,
};
use crate::bench::Figure;

/// Length and flags in front of each message on a gRPC stream.
const FRAME_BYTES: usize = 5;
/// Joining endpoints are that far apart, so that they are of many kinds and on many nodes.
const SPREAD: u32 = 11;
/// Changes that are taken from the store at once.
const LISTED_AT_ONCE: usize = 1000;

/// A fleet with its nodes connected, so that changes are told to somebody.
pub(super) struct Running {
    pub(super) fleet: Fleet,
    size: Size,
    revision: u64,
}

impl Running {
    pub(super) fn fill(size: Size) -> Self {
        let mut running = Self { fleet: Fleet::default(), size, revision: 0 };
        let mut contents = size.contents().peekable();
        while contents.peek().is_some() {
            let some = contents.by_ref().take(LISTED_AT_ONCE).collect();
            running.apply(some);
        }
        running
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.revision += 1;
        self.fleet.apply(self.revision, Duration::from_secs(self.revision), changes);
    }

    /// Everything that one node is to have.
    pub(super) fn connect(&mut self, node: u32) -> Option<Delta> {
        self.fleet.connect(&node_name(node), None);
        let delta = self.fleet.drain(&node_name(node))?;
        self.fleet.acknowledge(&node_name(node), delta.nonce, Vec::new());
        Some(delta)
    }

    /// Sends what is pending, and what opens by that, until nothing is.
    fn settle(&mut self) -> Vec<(String, Delta)> {
        let mut sent = Vec::new();
        loop {
            let before = sent.len();
            for node in self.fleet.take_news() {
                while let Some(delta) = self.fleet.drain(&node) {
                    self.fleet.acknowledge(&node, delta.nonce, Vec::new());
                    sent.push((node.clone(), delta));
                }
            }
            if sent.len() == before {
                return sent;
            }
        }
    }

    /// The time of the change itself, and of it with the deltas of all nodes that have news.
    fn change(&mut self, change: Change) -> Cost {
        let began = Instant::now();
        self.apply(vec![change]);
        let applied = micros(began.elapsed());
        let mut sent: Vec<(String, Delta)> = Vec::new();
        for node in self.fleet.take_news() {
            sent.extend(self.fleet.drain(&node).map(|delta| (node, delta)));
        }
        let drained = micros(began.elapsed());
        let sizes: Vec<f64> = sent.iter().map(|(_, delta)| bytes(delta)).collect();
        for (node, delta) in &sent {
            self.fleet.acknowledge(node, delta.nonce, Vec::new());
        }
        self.settle();
        Cost { applied, drained, sizes }
    }
}

struct Cost {
    applied: f64,
    drained: f64,
    /// Bytes on the wire for each node with news.
    sizes: Vec<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^52")]
fn bytes(delta: &Delta) -> f64 {
    Chunks::new(delta.clone(), None).map(|message| FRAME_BYTES + message.encoded_len()).sum::<usize>() as f64
}

/// All figures of one size.
pub(super) fn measure(size: Size, rounds: usize, say: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    say(&format!("controller, from scratch: {}", size.name()));
    let (mut scratch, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..rounds.clamp(1, 3) {
        reference.push(micros(encode_once(size)) / 1e3);
        let contents: Vec<Change> = size.contents().collect();
        let mut fleet = Fleet::default();
        let began = Instant::now();
        fleet.apply(1, Duration::ZERO, contents);
        scratch.push(micros(began.elapsed()) / 1e3);
    }
    let to = format!("ref.encode.{}", size.name());
    figures.push(Figure::paired(name("scratch", size), "ms", &scratch, &to, &reference));
    figures.push(Figure::plain(to, "ms", &reference));

    say(&format!("controller, {} nodes connect", size.nodes()));
    let mut running = Running::fill(size);
    let mut connects = Vec::new();
    for node in 0..size.nodes() {
        let began = Instant::now();
        running.connect(node).context("a node that connects is sent everything")?;
        connects.push(micros(began.elapsed()));
    }
    running.settle();
    figures.push(Figure::plain(name("scratch.of_node", size), "us", &connects));

    say("controller, changes");
    let mut join = Changes::default();
    for round in 0..count(rounds) {
        join.add(running.change(size.endpoint(size.endpoints + round * SPREAD)));
    }
    figures.extend(join.figures("join", size));
    // Where there are more nodes than endpoints of an identity, so that most have none of it.
    if size.nodes() > size.endpoints / size.identities {
        let mut first = Changes::default();
        for round in 0..count(rounds) {
            let number = size.endpoints + round * SPREAD + 1;
            let identity = (round * SPREAD + 7) % size.identities;
            first.add(running.change(size.endpoint_of(number, identity)));
        }
        figures.extend(first.figures("join.first_on_node", size));
    }
    let mut identity = Changes::default();
    for round in 0..count(rounds) {
        identity.add(running.change(size.identity(size.identities + round)));
    }
    ensure!(identity.sizes.iter().any(|bytes| *bytes > 0.0), "no node is told of a new identity");
    figures.extend(identity.figures("identity", size));
    let mut policy = Changes::default();
    for round in 0..count(rounds) {
        // Of the applications, not the administrator's.
        policy.add(running.change(put(size.policy(round * 20 % size.policies, 8081))));
    }
    figures.extend(policy.figures("policy", size));
    running.change(size.identity(size.identities + count(rounds)));
    // Of a small fleet every node hosts somebody of every kind.
    if let Some(bytes) = progress_bytes(&mut running) {
        let name = format!("policy.bytes.identity.not_selecting.{}", size.name());
        figures.push(Figure::plain(name, "B", &[bytes]));
    }
    Ok(figures)
}

/// What a node is sent that has no other news than that there is a further identity.
fn progress_bytes(running: &mut Running) -> Option<f64> {
    let mut nodes = (0..running.size.nodes()).map(node_name);
    let told = nodes.find_map(|node| running.fleet.drain_identities_through(&node))?;
    Some(bytes(&told))
}

#[derive(Default)]
struct Changes {
    applied: Vec<f64>,
    drained: Vec<f64>,
    sizes: Vec<f64>,
}

impl Changes {
    fn add(&mut self, cost: Cost) {
        self.applied.push(cost.applied);
        self.drained.push(cost.drained);
        self.sizes.extend(cost.sizes);
    }

    fn figures(&self, what: &str, size: Size) -> Vec<Figure> {
        let mut figures = vec![
            Figure::plain(name(what, size), "us", &self.applied),
            Figure::plain(name(&format!("{what}.with_deltas"), size), "us", &self.drained),
        ];
        if !self.sizes.is_empty() {
            let name = format!("policy.bytes.{what}.selecting.{}", size.name());
            figures.push(Figure::plain(name, "B", &self.sizes));
        }
        figures
    }
}

fn name(what: &str, size: Size) -> String {
    format!("policy.compile.{what}.{}", size.name())
}

fn count(rounds: usize) -> u32 {
    u32::try_from(rounds).unwrap_or(u32::MAX)
}

/// What no compiler can do without: each endpoint's address and word made once as they are sent.
fn encode_once(size: Size) -> Duration {
    let began = Instant::now();
    let mut resources = Vec::new();
    for change in size.contents() {
        let Change::Endpoint { name, facts: Some(facts) } = change else { continue };
        let node = facts.node.clone();
        let address = weft_proto::v1::NodeAddress { identity: facts.identity, node }.encode_to_vec();
        let word = weft_proto::v1::NodeEndpoint {
            identity: facts.identity,
            uid: facts.uid,
            open: true,
            ..weft_proto::v1::NodeEndpoint::default()
        };
        let word = word.encode_to_vec();
        for (kind, name, bytes) in [
            (weft_proto::v1::ResourceType::Address, facts.addresses[0].to_string(), address),
            (weft_proto::v1::ResourceType::Endpoint, name, word),
        ] {
            resources.push(Resource::new(weft_controller::fleet::Key::new(kind, name), bytes.into(), 1));
        }
    }
    std::hint::black_box(&resources);
    began.elapsed()
}
