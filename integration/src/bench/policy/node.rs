//! The daemon's half: from what a controller sent to the kernel's tables, without the stream and the disk.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use tokio::time::Instant;
use weft_controller::fleet::Delta;
use weft_noded::{
    desired::{
        Batch, Desired, Touched,
        attachments::{Attachment, Attachments},
        disk::Disk,
        journal::Change,
    },
    kernel::{
        Datapath as _,
        object::{Object, Options},
    },
    plan::{
        compile::{Input, Stale, compile},
        diff::{Sweep, diff},
        narrow::Standing,
        tables::{Step, Tables},
    },
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::{Config, PeerKey},
    policy::compile::IdentitySets,
};

use super::{
    controller::Running,
    fleet::{Size, node_name},
    micros,
};
use crate::bench::Figure;

const OWN_NODE: &str = "node-0";
const ROWS: u32 = 50_000;
const SUBJECTS: u32 = 500;
const FIRST_IDENTITY: u32 = 256;
const FIRST_SUBJECT: u32 = 1 << 20;
/// Sets that the many subjects' policies name in turn, and members of each: few, and many.
const SETS: u32 = 10;
const MEMBERS: [u32; 2] = [10, 100];

/// A daemon from its desired state on.
struct Daemon {
    desired: Desired,
    attachments: Attachments,
    former_sets: IdentitySets,
    actual: Tables,
    standing: Option<Standing>,
    /// `None`: the tables are only in memory.
    object: Option<Object>,
}

impl Daemon {
    fn new(endpoints: impl IntoIterator<Item = (String, IpAddr)>, object: Option<Object>) -> Self {
        let attached = endpoints.into_iter().zip(100..);
        let attached =
            attached.map(|((name, address), ifindex)| (name.clone(), attachment(name, address, ifindex)));
        Self {
            desired: Desired::default(),
            attachments: Attachments { endpoints: attached.collect(), ..Attachments::default() },
            former_sets: IdentitySets::default(),
            actual: Tables::default(),
            standing: None,
            object,
        }
    }

    /// As the daemon does. `true`: without looking at the whole.
    fn take(&mut self, batch: Batch) -> Result<bool> {
        let touched = Touched::by(&batch);
        self.desired.apply(batch);
        if let (Some(mut standing), Some(touched)) = (self.standing.take(), touched)
            && let Some(plan) = standing.plan(self.input(), &self.actual, &touched)
        {
            standing.note(&self.desired, &self.actual, &touched, &plan);
            self.write(&plan.steps)?;
            touched.copy_members(self.desired.sets(), &mut self.former_sets);
            self.standing = Some(standing);
            return Ok(true);
        }
        for stale in [Stale::Keep, Stale::Drop] {
            let compiled = compile(self.input(), &self.actual, stale);
            ensure!(compiled.problems.is_empty() && compiled.unfit.is_empty(), "{:?}", compiled.problems);
            self.write(&diff(&self.actual, &compiled.tables, Sweep::Remove))?;
            if !compiled.unfinished {
                break;
            }
        }
        self.former_sets.clone_from(self.desired.sets());
        self.standing = Standing::of(self.input(), &self.actual);
        Ok(false)
    }

    fn write(&mut self, steps: &[Step]) -> Result<()> {
        if let Some(object) = &mut self.object {
            object.write(steps)?;
        }
        self.actual.apply_all(steps);
        Ok(())
    }

    fn input(&self) -> Input<'_> {
        Input {
            node: OWN_NODE,
            own_addresses: &[],
            host_addresses: &[],
            desired: &self.desired,
            attachments: &self.attachments,
            departures: false,
            former_sets: &self.former_sets,
        }
    }
}

/// One of a fleet's nodes, in memory.
pub(super) fn measure_compile(size: Size, rounds: usize, say: &impl Fn(&str)) -> Result<Vec<Figure>> {
    say("a node of that fleet");
    let mut running = Running::fill(size);
    let delta = running.connect(0).context("a node that connects is sent everything")?;
    let fleet = &running.fleet;
    let own = node_name(0);
    let names = fleet.endpoints_of(&own).map(str::to_owned);
    let endpoints: Vec<(String, IpAddr)> =
        names.filter_map(|name| Some((name.clone(), *fleet.endpoint(&name)?.addresses.first()?))).collect();
    let everything = everything(&delta);
    let (mut scratch, mut identity) = (Vec::new(), Vec::new());
    for _ in 0..rounds.clamp(1, 11) {
        let mut daemon = Daemon::new(endpoints.clone(), None);
        let batch = everything.clone();
        let began = Instant::now();
        daemon.take(batch)?;
        scratch.push(micros(began.elapsed()) / 1e3);
    }
    let mut daemon = Daemon::new(endpoints, None);
    let set = everything.upserts.iter().find(|upsert| upsert.r#type() == ResourceType::IdentitySetMember);
    let set = set.and_then(|upsert| Some(upsert.name.split_once('/')?.0.to_owned()));
    let set = set.context("the node is told of no set")?;
    let mut everything = everything;
    let plain = make_plain(&mut everything.upserts).context("the node is told of no policy")?;
    daemon.take(everything)?;
    for (round, number) in (0..rounds).zip(FIRST_SUBJECT..) {
        let batch = arrival(&daemon, &set, number);
        let began = Instant::now();
        ensure!(daemon.take(batch)?, "round {round} looked at the whole");
        identity.push(micros(began.elapsed()));
    }
    let (mut join, mut policy) = (Vec::new(), Vec::new());
    for (round, number) in (0..rounds).zip(FIRST_SUBJECT..) {
        // One more endpoint of an identity that is known by now.
        let upserts = vec![address(peer_address(number + FIRST_SUBJECT), number)];
        let batch = Batch { upserts, ..next(&daemon) };
        let began = Instant::now();
        ensure!(daemon.take(batch)?, "round {round} looked at the whole");
        join.push(micros(began.elapsed()));
        let upserts = vec![on_port(&plain, if round % 2 == 0 { 8081 } else { 8082 })];
        let batch = Batch { upserts, ..next(&daemon) };
        let began = Instant::now();
        ensure!(daemon.take(batch)?, "round {round} looked at the whole");
        policy.push(micros(began.elapsed()));
    }
    Ok(vec![
        Figure::plain(format!("policy.compile.scratch.in_node.{}", size.name()), "ms", &scratch),
        Figure::plain(format!("policy.compile.identity.in_node.{}", size.name()), "us", &identity),
        Figure::plain(format!("policy.compile.join.in_node.{}", size.name()), "us", &join),
        Figure::plain(format!("policy.compile.policy.in_node.{}", size.name()), "us", &policy),
    ])
}

/// Takes the rules about prefixes, which a node looks at whole, out of one policy. Its name, and what it is then.
fn make_plain(upserts: &mut [v1::Upsert]) -> Option<(String, v1::NodePolicy)> {
    let of_prefixes = |rule: &v1::NodeRule| {
        let mut peers = rule.peers.iter().flat_map(|peers| &peers.items);
        peers.any(|peer| matches!(peer.peer, Some(v1::node_peer::Peer::Cidr(_))))
    };
    let place = upserts.iter_mut().find(|upsert| upsert.r#type() == ResourceType::Policy)?;
    let mut policy = v1::NodePolicy::decode(place.bytes.clone()).ok()?;
    for rules in policy.ingress.iter_mut().chain(&mut policy.egress) {
        rules.items.retain(|rule| !of_prefixes(rule));
    }
    place.bytes = policy.encode_to_vec().into();
    Some((place.name.clone(), policy))
}

/// The same with another first port of its first rule.
fn on_port((name, policy): &(String, v1::NodePolicy), port: u32) -> v1::Upsert {
    let mut policy = policy.clone();
    let rules = policy.ingress.iter_mut().flat_map(|rules| &mut rules.items);
    let mut ports = rules.filter_map(|rule| rule.ports.as_mut()).flat_map(|ports| &mut ports.items);
    if let Some(range) = ports.next() {
        (range.first, range.last) = (port, port);
    }
    upsert(ResourceType::Policy, name.clone(), &policy)
}

fn everything(delta: &Delta) -> Batch {
    let upserts = delta.upserts.iter().map(|resource| v1::Upsert {
        r#type: resource.key.kind.into(),
        name: resource.key.name.to_string(),
        requires: resource.requires.to_vec(),
        bytes: resource.bytes.clone(),
    });
    Batch {
        revision: delta.revision,
        identities_through: delta.identities_through,
        upserts: upserts.collect(),
        in_sync: true,
        ..Batch::default()
    }
}

/// The real maps.
pub(super) fn measure_kernel(rounds: usize, say: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let mut figures = join(rounds, say)?;
    for members in MEMBERS {
        figures.extend(subjects(members, rounds, say)?);
    }
    Ok(figures)
}

/// One more identity, with an endpoint of its own, for a subject that takes from 50,000.
fn join(rounds: usize, say: &impl Fn(&str)) -> Result<Vec<Figure>> {
    say(&format!("a node with {ROWS} rows, in the kernel"));
    let mut daemon = Daemon::new([("workload-0".to_owned(), own_address(0))], Some(load()?));
    let mut upserts = base();
    upserts.extend([member("own", FIRST_SUBJECT), word(0), policy(0, "own", "peers", 8080)]);
    upserts.extend((0..ROWS).map(|number| member("peers", FIRST_IDENTITY + number)));
    upserts.extend((0..ROWS).map(|number| address(peer_address(number), FIRST_IDENTITY + number)));
    let began = Instant::now();
    daemon.take(Batch { upserts, in_sync: true, ..next(&daemon) })?;
    let scratch = micros(began.elapsed()) / 1e3;
    ensure!(daemon.actual.peer_rules.len() == ROWS as usize, "{} rows", daemon.actual.peer_rules.len());
    let (mut joins, mut leaves, mut reference) = (Vec::new(), Vec::new(), Vec::new());
    for number in (ROWS..).take(rounds) {
        let key = PeerKey { subject: FIRST_SUBJECT + 1, peer: number, direction: 1 };
        let row = [Step::PeerRules { key, rulebook: Some(1) }, bump()];
        let began = Instant::now();
        daemon.object.as_mut().context("it is loaded")?.write(&row)?;
        reference.push(micros(began.elapsed()));
        let batch = arrival(&daemon, "peers", FIRST_IDENTITY + number);
        let began = Instant::now();
        ensure!(daemon.take(batch)?, "a joining identity made the daemon look at the whole");
        joins.push(micros(began.elapsed()));
    }
    for number in (ROWS..).take(rounds) {
        let removes = [
            (ResourceType::Address, peer_address(FIRST_IDENTITY + number).to_string()),
            (ResourceType::IdentitySetMember, format!("peers/{}", FIRST_IDENTITY + number)),
        ];
        let began = Instant::now();
        for (kind, name) in removes {
            let removes = vec![v1::Remove { r#type: kind.into(), name }];
            ensure!(daemon.take(Batch { removes, ..next(&daemon) })?, "looked at the whole");
        }
        leaves.push(micros(began.elapsed()));
    }
    let to = "ref.map.row".to_owned();
    let mut figures = save(&daemon, rounds)?;
    figures.extend([
        Figure::plain(format!("policy.node.scratch.rows_{ROWS}"), "ms", &[scratch]),
        Figure::paired(format!("policy.node.join.rows_{ROWS}"), "us", &joins, &to, &reference),
        Figure::plain(format!("policy.node.leave.rows_{ROWS}"), "us", &leaves),
        Figure::plain(to, "us", &reference),
    ]);
    Ok(figures)
}

/// The same to the disk: what the kernel waits for.
fn save(daemon: &Daemon, rounds: usize) -> Result<Vec<Figure>> {
    let directory = tempfile::tempdir()?;
    let disk = Disk::open(directory.path())?;
    let (mut whole, mut changes) = (Vec::new(), Vec::new());
    for number in (ROWS..).take(rounds) {
        let change = Change::of(&arrival(daemon, "peers", FIRST_IDENTITY + number));
        let change = change.context("an arrival is a change of few resources")?;
        let began = Instant::now();
        let mut journal = disk.store_desired(&daemon.desired)?;
        whole.push(micros(began.elapsed()));
        // The first record makes the file.
        for time in 0..2 {
            let began = Instant::now();
            ensure!(journal.append(&daemon.desired, &change)?, "the journal has no room");
            if time == 1 {
                changes.push(micros(began.elapsed()));
            }
        }
    }
    let to = format!("policy.node.save.whole.rows_{ROWS}");
    Ok(vec![
        Figure::paired(format!("policy.node.save.change.rows_{ROWS}"), "us", &changes, &to, &whole),
        Figure::plain(to, "us", &whole),
    ])
}

/// Each of many subjects has a policy of its own, and all of these change at once.
fn subjects(members: u32, rounds: usize, say: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let rows = SUBJECTS * members;
    say(&format!("a node with {SUBJECTS} subjects and {rows} rows, in the kernel"));
    let endpoints = (0..SUBJECTS).map(|number| (format!("workload-{number}"), own_address(number)));
    let mut daemon = Daemon::new(endpoints, Some(load()?));
    let peers = |number: u32| format!("peers-{}", number % SETS);
    let policies = |port: u32| -> Vec<v1::Upsert> {
        let one = |number: u32| policy(number, &format!("own-{number}"), &peers(number), port + number);
        (0..SUBJECTS).map(one).collect()
    };
    let mut upserts = base();
    upserts.extend((0..SUBJECTS).map(word));
    upserts.extend((0..SUBJECTS).map(|number| member(&format!("own-{number}"), FIRST_SUBJECT + number)));
    for set in 0..SETS {
        let identity = |number: u32| FIRST_IDENTITY + set * members + number;
        upserts.extend((0..members).map(|number| member(&peers(set), identity(number))));
    }
    upserts.extend(policies(10_000));
    daemon.take(Batch { upserts, in_sync: true, ..next(&daemon) })?;
    ensure!(daemon.actual.subjects.len() == SUBJECTS as usize, "{} subjects", daemon.actual.subjects.len());
    let (mut changed, mut joined) = (Vec::new(), Vec::new());
    for round in 0..rounds.clamp(1, 21) {
        let port = if round % 2 == 0 { 20_000 } else { 10_000 };
        let batch = Batch { upserts: policies(port), ..next(&daemon) };
        let began = Instant::now();
        daemon.take(batch)?;
        changed.push(micros(began.elapsed()) / 1e3);
    }
    for number in (SETS * members..).take(rounds) {
        let upserts = (0..SETS).map(|set| member(&peers(set), FIRST_IDENTITY + number)).collect();
        let batch = Batch { upserts, ..next(&daemon) };
        let began = Instant::now();
        ensure!(daemon.take(batch)?, "a joining identity made the daemon look at the whole");
        joined.push(micros(began.elapsed()) / 1e3);
    }
    Ok(vec![
        Figure::plain(format!("policy.node.subjects_{SUBJECTS}.rows_{rows}"), "ms", &changed),
        Figure::plain(format!("policy.node.subjects_{SUBJECTS}.join.rows_{rows}"), "ms", &joined),
    ])
}

fn load() -> Result<Object> {
    Ok(Object::load(&Options { directory: None, config: Config::DEFAULT, flows_max: None })?)
}

fn bump() -> Step {
    Step::Bump { subjects: vec![1], nodes: Vec::new() }
}

fn next(daemon: &Daemon) -> Batch {
    Batch { revision: daemon.desired.revision + 1, identities_through: FIRST_SUBJECT, ..Batch::default() }
}

/// A new identity, and its first endpoint.
fn arrival(daemon: &Daemon, set: &str, identity: u32) -> Batch {
    let upserts = vec![member(set, identity), address(peer_address(identity), identity)];
    Batch { upserts, ..next(daemon) }
}

fn own_address(number: u32) -> IpAddr {
    Ipv4Addr::from((10 << 24) + number + 1).into()
}

fn peer_address(number: u32) -> IpAddr {
    Ipv4Addr::from((10 << 24) + (128 << 16) + number).into()
}

fn upsert(kind: ResourceType, name: String, message: &impl Message) -> v1::Upsert {
    v1::Upsert { r#type: kind.into(), name, requires: Vec::new(), bytes: message.encode_to_vec().into() }
}

/// The fleet, and two nodes.
fn base() -> Vec<v1::Upsert> {
    let fleet = v1::NodeFleet {
        pools: vec!["10.0.0.0/8".to_owned()],
        unknown_pool_address: v1::Entity::Fleet.into(),
        ..v1::NodeFleet::default()
    };
    let node = |last: u32| v1::NodeRoute {
        addresses: vec![format!("192.0.2.{}", last + 1)],
        endpoint_cidrs: vec![format!("10.{}.0.0/16", last * 128)],
        identity: 0,
    };
    let mut upserts = vec![upsert(ResourceType::Fleet, "fleet".to_owned(), &fleet)];
    upserts.extend([0, 1].map(|last| upsert(ResourceType::Node, format!("node-{last}"), &node(last))));
    upserts
}

fn member(set: &str, identity: u32) -> v1::Upsert {
    v1::Upsert {
        r#type: ResourceType::IdentitySetMember.into(),
        name: format!("{set}/{identity}"),
        ..v1::Upsert::default()
    }
}

fn address(address: IpAddr, identity: u32) -> v1::Upsert {
    let message = v1::NodeAddress { identity, node: "node-1".to_owned() };
    upsert(ResourceType::Address, address.to_string(), &message)
}

fn word(number: u32) -> v1::Upsert {
    let message =
        v1::NodeEndpoint { identity: FIRST_SUBJECT + number, open: true, ..v1::NodeEndpoint::default() };
    upsert(ResourceType::Endpoint, format!("workload-{number}"), &message)
}

fn policy(number: u32, subject: &str, peers: &str, port: u32) -> v1::Upsert {
    let peer = v1::NodePeer { peer: Some(v1::node_peer::Peer::EndpointSet(peers.to_owned())) };
    let rule = v1::NodeRule {
        name: "0".to_owned(),
        action: v1::Action::Allow.into(),
        peers: Some(v1::NodePeerList { items: vec![peer] }),
        ports: Some(v1::NodePortList {
            items: vec![v1::NodePortRange { protocol: 6, first: port, last: port }],
        }),
    };
    let policy = v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        mode: v1::PolicyMode::Enforce.into(),
        subject_set: subject.to_owned(),
        default_deny_ingress: true,
        ingress: Some(v1::NodeRuleList { items: vec![rule] }),
        ..v1::NodePolicy::default()
    };
    upsert(ResourceType::Policy, format!("policy-{number}"), &policy)
}

fn attachment(name: String, address: IpAddr, ifindex: u32) -> Attachment {
    Attachment {
        name,
        instance: String::new(),
        labels: BTreeMap::new(),
        interface: format!("weft{ifindex:08x}"),
        ifindex,
        netns: String::new(),
        ours: true,
        peer: true,
        container_id: String::new(),
        address4: match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        },
        address6: None,
        mac: [2, 0, 0, 0, 0, 1],
        gateway_mac: [2, 0, 0, 0, 0, 2],
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
        accepted: Some(1),
        lent_identity: None,
    }
}
