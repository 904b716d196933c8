//! Runs one program on one packet.

use std::process::Command;

use aya::programs::{TestRun as _, TestRunOptions};
use nix::sched::{CloneFlags, unshare};
use weft_noded::{
    kernel::{
        Datapath as _,
        events::{Events, Switch},
        object::{Object, Options},
        probe,
    },
    plan::tables::{Step, Tables},
};
use weft_shared::layout::{Config, Event, FlowKey, Point, Reason};

use crate::{
    spoil::Spoiler,
    world::{self, World},
};

/// What the kernel is told to do with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To the node's stack, or on where it was going.
    Ok,
    Shot,
    Redirect,
}

/// What came of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) packet: Vec<u8>,
}

/// The loaded programs, and the tables that the tests gave them.
pub(crate) struct Datapath {
    pub(crate) object: Object,
    pub(crate) events: Events,
    pub(crate) switch: Switch,
    /// What was told of audited policies for the packet that was judged last.
    pub(crate) audited: Option<Event>,
    tables: Tables,
    world: World,
}

/// Where a packet comes in or goes out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) point: Point,
    pub(crate) ifindex: u32,
    /// Where it came into the node, for programs on egress; 0: it is the node's own.
    pub(crate) ingress_ifindex: u32,
}

pub(crate) const fn from_endpoint(ifindex: u32) -> Place {
    Place { point: Point::FromEndpoint, ifindex, ingress_ifindex: ifindex }
}

pub(crate) const fn to_endpoint(ifindex: u32, ingress_ifindex: u32) -> Place {
    Place { point: Point::ToEndpoint, ifindex, ingress_ifindex }
}

pub(crate) const FROM_OVERLAY: Place =
    Place { point: Point::FromOverlay, ifindex: world::OVERLAY, ingress_ifindex: world::OVERLAY };
pub(crate) const TO_OVERLAY: Place =
    Place { point: Point::ToOverlay, ifindex: world::OVERLAY, ingress_ifindex: 0 };
pub(crate) const FROM_UPLINK: Place =
    Place { point: Point::FromUplink, ifindex: world::UPLINK, ingress_ifindex: world::UPLINK };
pub(crate) const TO_UPLINK: Place =
    Place { point: Point::ToUplink, ifindex: world::UPLINK, ingress_ifindex: 0 };

/// Spoilt packets whose drops are told of before somebody reads: their events, from several places, fit the kernel's buffer.
const PACKETS_BEHIND: u32 = 500;

/// Flows of a test's table: few, because the kernel takes the memory at once.
const FLOWS: u32 = 16 * 1024;

impl Datapath {
    /// With the tables of [`world`], everything allowed.
    pub(crate) fn new() -> Self {
        Self::with_config(Config { overlay_ifindex: world::OVERLAY, tell_again_after: 0, ..Config::DEFAULT })
    }

    pub(crate) fn with_config(config: Config) -> Self {
        Self::with_rows(config, FLOWS)
    }

    /// With a flow table of so many rows.
    pub(crate) fn with_rows(config: Config, rows: u32) -> Self {
        enter_namespace();
        let options = Options { directory: None, config, flows_max: Some(rows) };
        let object = Object::load(&options).expect("the object loads (tests need root)");
        let events = object.events().unwrap();
        let switch = object.switch().unwrap();
        let (tables, world) = (Tables::default(), world::world());
        let mut datapath = Self { object, events, switch, audited: None, tables, world };
        datapath.change(|_| ());
        datapath
    }

    /// Makes the kernel's tables these, row by row in place: fast, but not atomic, and without a new epoch.
    pub(crate) fn set_tables(&mut self, wanted: Tables) {
        let steps = steps_between(&self.tables, &wanted);
        self.object.write(&steps).unwrap();
        self.tables = wanted;
    }

    /// Changes the tables with steps of one's own.
    pub(crate) fn write(&mut self, steps: &[Step]) {
        self.object.write(steps).unwrap();
        for step in steps {
            self.tables.apply(step);
        }
    }

    /// Changes the tables, and leaves remembered verdicts as they are.
    pub(crate) fn rewrite(&mut self, change: impl FnOnce(&mut World)) {
        change(&mut self.world);
        let tables = self.world.with_rulebooks(&self.tables);
        self.set_tables(tables);
    }

    /// Changes the tables and makes remembered verdicts stale, as the daemon does.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut World)) {
        self.rewrite(change);
        let subjects = self.tables.subjects.keys().copied().collect();
        self.write(&[Step::Bump { subjects, nodes: Vec::new() }]);
    }

    /// Runs a program on a packet.
    pub(crate) fn run(&mut self, place: Place, packet: &[u8]) -> Outcome {
        let mut answer = vec![0; packet.len() + 256];
        let context = context(place);
        let program = self.object.program(place.point.name()).unwrap();
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut answer),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("{place:?}: {error:?}"));
        answer.truncate(result.data_size_out as usize);
        let verdict = match result.return_value {
            0 => Verdict::Ok,
            2 => Verdict::Shot,
            7 => Verdict::Redirect,
            other => panic!("{place:?}: verdict {other}"),
        };
        Outcome { verdict, packet: answer }
    }

    /// Runs a program on a packet and gives the drop's event, if it was dropped. Fast: this is for the many.
    pub(crate) fn judge(&mut self, place: Place, packet: &[u8]) -> Result<Outcome, Event> {
        while self.events.try_next().is_some() {}
        let outcome = self.run(place, packet);
        let event = self.events.try_next();
        self.audited = event.filter(|event| event.audit_action != 0);
        let dropped = event.filter(|event| event.allowed == 0);
        assert_eq!(outcome.verdict == Verdict::Shot, dropped.is_some(), "a drop has an event: {dropped:?}");
        dropped.map_or(Ok(outcome), Err)
    }

    /// Runs the programs of places on as many spoilt packets, each, and has looked at what is not dropped. Drops' events are read
    /// afterwards, many at a time: one that comes while nobody is behind with reading interrupts the CPU.
    pub(crate) fn judge_spoilt(
        &mut self,
        places: &[Place],
        spoiler: &mut Spoiler,
        packets: u32,
        mut check: impl FnMut(Place, &[u8], &Outcome),
    ) {
        while self.events.try_next().is_some() {}
        let mut dropped = Vec::new();
        for left in (0..packets).rev() {
            let packet = spoiler.packet();
            for place in places {
                let outcome = self.run(*place, packet);
                if outcome.verdict == Verdict::Shot {
                    dropped.push(place.point as u32);
                } else {
                    check(*place, packet, &outcome);
                }
            }
            if left % PACKETS_BEHIND == 0 {
                self.expect_drops(&mut dropped);
            }
        }
    }

    /// Each drop has an event, which says that it is one.
    fn expect_drops(&mut self, dropped: &mut Vec<u32>) {
        let mut dropped = dropped.drain(..);
        while let Some(event) = self.events.try_next() {
            if event.allowed == 0 {
                assert!(Reason::from_number(event.reason).is_some_and(Reason::is_drop), "{event:?}");
                assert_eq!(Some(event.point), dropped.next(), "{event:?}");
            }
        }
        assert_eq!(dropped.next(), None, "a drop has an event");
    }

    /// Runs a program on a packet and gives what the counters say of it.
    pub(crate) fn reason(&mut self, place: Place, packet: &[u8]) -> (Reason, Outcome) {
        let before = self.object.counters().unwrap();
        let outcome = self.run(place, packet);
        let after = self.object.counters().unwrap();
        let mut reasons = after.iter().filter(|row| !before.contains(row));
        let (point, reason, _) = *reasons.next().expect("nothing was counted");
        assert_eq!(reasons.next(), None, "more than one row was counted");
        assert_eq!(point, place.point);
        assert_eq!(outcome.verdict == Verdict::Shot, reason.is_drop(), "{reason:?} {outcome:?}");
        (reason, outcome)
    }

    /// The reason that the counters give, where the answer doesn't matter.
    pub(crate) fn fate(&mut self, place: Place, packet: &[u8]) -> Reason {
        self.reason(place, packet).0
    }

    pub(crate) fn forget_flows(&mut self) {
        let keys: Vec<FlowKey> = self.object.flows().unwrap().iter().map(|(key, _)| *key).collect();
        for key in keys {
            self.object.forget_flow(&key).unwrap();
        }
    }
}

pub(crate) fn context(place: Place) -> [u8; 192] {
    probe::context(place.ifindex, place.ingress_ifindex)
}

/// The thread's own network namespace, gone with it, with the interfaces that packets are said to be on.
fn enter_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests need root)");
    for index in world::INTERFACES {
        let (name, peer) = (format!("t{index}"), format!("p{index}"));
        let peer_index = index + world::PEER;
        let status = Command::new("ip")
            .args(["link", "add", &name, "index", &index.to_string(), "type", "veth"])
            .args(["peer", "name", &peer, "index", &peer_index.to_string()])
            .status()
            .expect("ip (iproute2)");
        assert!(status.success(), "ip link add {name}");
    }
}

fn steps_between(from: &Tables, to: &Tables) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut push = |step| steps.push(step);
    changes(&from.endpoints, &to.endpoints, |ifindex, endpoint| push(Step::Endpoint { ifindex, endpoint }));
    changes(&from.ipcache, &to.ipcache, |address, peer| push(Step::Ipcache { address, peer }));
    changes(&from.prefixes, &to.prefixes, |prefix, peer| push(Step::Prefix { prefix, peer }));
    changes(&from.nodes, &to.nodes, |slot, node| push(Step::Node { slot, node }));
    changes(&from.node_addresses, &to.node_addresses, |address, slot| {
        push(Step::NodeAddress { address, slot });
    });
    changes(&from.rulebooks, &to.rulebooks, |number, rows| push(Step::Rulebook { number, rows }));
    changes(&from.peer_rules, &to.peer_rules, |key, rulebook| push(Step::PeerRules { key, rulebook }));
    changes(&from.failsafe, &to.failsafe, |key, rulebook| push(Step::Failsafe { key, rulebook }));
    changes(&from.subjects, &to.subjects, |slot, subject| push(Step::Subject { slot, subject }));
    if from.host != to.host {
        push(Step::Host { host: to.host });
    }
    if from.identities_through != to.identities_through {
        push(Step::IdentitiesThrough { identity: to.identities_through });
    }
    steps
}

fn changes<K: Ord + Copy, V: Clone + PartialEq>(
    from: &std::collections::BTreeMap<K, V>,
    to: &std::collections::BTreeMap<K, V>,
    mut each: impl FnMut(K, Option<V>),
) {
    for key in from.keys().filter(|key| !to.contains_key(key)) {
        each(*key, None);
    }
    for (key, value) in to.iter().filter(|(key, value)| from.get(key) != Some(value)) {
        each(*key, Some(value.clone()));
    }
}
