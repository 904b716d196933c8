//! One revision: no packet is judged by two revisions of a subject's policy (I2).
//!
//! The revisions differ in hundreds of rows and agree on the probes: each is judged by a row of its peer's identity and a
//! row of its class, and what the one revision says in the one, the other says in the other. The identity's rows of the
//! one with the class's rows of the other, which is what a program would see that looks up the two before and after a
//! change, allow what both deny and deny what both allow.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use weft_noded::{
    kernel::{
        Datapath as _,
        object::{self, Object},
    },
    plan::{
        diff::{Sweep, diff},
        tables::{PolicyTable, Step, Tables},
    },
};
use weft_shared::layout::{Action, Class, Config, Direction, PolicyRow};

use crate::{
    harness::{Datapath, Verdict, context, from_endpoint},
    packets::{SYN, TCP, Way, out_of},
    world::{
        self, API_IDENTITY, DB_IDENTITY, DB_PARTY, FAMILIES, WEB, WEB_PARTY, WEB_SLOT, deny_all, port_row,
    },
};

/// Ports that both revisions allow, then as many that both deny.
const PORTS_EACH: u16 = 200;
const CHANGES: u32 = 120;
/// Probes between which the writer must have gone on, for the test to have tested anything.
const PROBES_MIN: u64 = 10_000;

fn ports() -> impl Iterator<Item = (u16, Action)> {
    let allowed = (1..=PORTS_EACH).map(|port| (port, Action::Allow));
    allowed.chain((1..=PORTS_EACH).map(|port| (PORTS_EACH + port, Action::Deny)))
}

fn row(action: Action, precedence: u32) -> PolicyRow {
    PolicyRow { precedence, action: action as u32, rule: 1 }
}

/// Who has the word about a peer: the row of its identity, or that of its class. The other one says the opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Identity,
    Class,
}

fn opposite(action: Action) -> Action {
    match action {
        Action::Allow => Action::Deny,
        Action::Deny => Action::Allow,
    }
}

/// The rows of the peer's identity, and those of its class.
fn rows(word: Word, identity: u32) -> (PolicyTable, PolicyTable) {
    let (mut of_identity, mut of_class) = (PolicyTable::new(), PolicyTable::new());
    for (port, action) in ports() {
        let (by_identity, by_class) = match word {
            Word::Identity => (row(action, 10), row(opposite(action), 5)),
            Word::Class => (row(opposite(action), 5), row(action, 10)),
        };
        of_identity.insert(port_row(Direction::Egress, identity, TCP, port), by_identity);
        of_class.insert(port_row(Direction::Egress, Class::Fleet as u32, TCP, port), by_class);
    }
    (of_identity, of_class)
}

fn table(word: Word) -> PolicyTable {
    let (of_identity, of_class) = rows(word, DB_IDENTITY);
    deny_all().into_iter().chain(of_identity).chain(of_class).collect()
}

/// The world, with what the subject is judged by.
fn with_table(table: PolicyTable) -> Tables {
    let mut tables = world::tables();
    tables.policies.insert(WEB_SLOT, table);
    tables
}

/// Sends probes and compares.
struct Prober {
    program: SchedClassifier,
    ways: Vec<Way>,
    source_port: u16,
}

impl Prober {
    /// What the kernel does with the next first packet of a flow to this port.
    fn verdict(&mut self, way: usize, port: u16) -> Verdict {
        self.source_port = self.source_port.checked_add(1).unwrap_or(1024);
        let packet = self.ways[way].tcp(self.source_port, port, SYN);
        let mut answer = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut answer),
            ctx_in: Some(&context(from_endpoint(WEB))),
            ..TestRunOptions::default()
        };
        match self.program.test_run(options).unwrap().return_value {
            2 => Verdict::Shot,
            7 => Verdict::Redirect,
            other => panic!("verdict {other}"),
        }
    }

    /// One probe for each port and family; the wrong ones.
    fn round(&mut self) -> Vec<(u16, Verdict)> {
        let mut wrong = Vec::new();
        for (port, action) in ports() {
            let expected = if action == Action::Allow { Verdict::Redirect } else { Verdict::Shot };
            for way in 0..self.ways.len() {
                let verdict = self.verdict(way, port);
                if verdict != expected {
                    wrong.push((port, verdict));
                }
            }
        }
        wrong
    }
}

/// The programs, their prober, and the directory of pins that both have them by.
fn writer_and_prober() -> (Object, Prober, tempfile::TempDir) {
    let pins = tempfile::tempdir().unwrap();
    object::ensure_bpffs(pins.path()).expect("a bpffs (tests need root)");
    let config = Config { overlay_ifindex: world::OVERLAY, ..Config::DEFAULT };
    let mut writer = Datapath::with_config(config).object;
    let pin = pins.path().join("prober");
    writer.program("tc_from_endpoint").unwrap().pin(&pin).unwrap();
    let program = SchedClassifier::from_pin(&pin).unwrap();
    nix::mount::umount2(pins.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    let ways = FAMILIES.map(|family| out_of(WEB, WEB_PARTY, DB_PARTY, family)).into();
    (writer, Prober { program, ways, source_port: 1024 }, pins)
}

#[test]
fn a_mix_of_the_two_revisions_would_be_seen() {
    let (mut writer, mut prober, _pins) = writer_and_prober();
    let mut now = world::tables();
    for word in [Word::Identity, Word::Class] {
        let next = with_table(table(word));
        writer.write(&diff(&now, &next, Sweep::Remove)).unwrap();
        now = next;
        assert_eq!(prober.round(), []);
    }
    // The rows of the one revision for the identity, those of the other for the class.
    let mixed = rows(Word::Class, DB_IDENTITY).0.into_iter().chain(rows(Word::Identity, DB_IDENTITY).1);
    let table = deny_all().into_iter().chain(mixed).collect();
    writer.write(&[Step::PolicyTable { slot: WEB_SLOT, table: Some(table) }]).unwrap();
    assert_eq!(prober.round().len(), usize::from(PORTS_EACH) * 2 * 2, "all ports of both families");
}

#[test]
fn no_packet_is_judged_by_two_revisions_while_hundreds_of_rows_change() {
    let (mut writer, mut prober, _pins) = writer_and_prober();
    let revisions = [Word::Identity, Word::Class].map(|word| with_table(table(word)));
    // Between two of each, rows of an identity that had none come and go in place.
    let (others, _) = rows(Word::Identity, API_IDENTITY);
    let mut now = world::tables();
    let go_to = |writer: &mut Object, now: &mut Tables, next: &Tables| {
        writer.write(&diff(now, next, Sweep::Remove)).unwrap();
        now.clone_from(next);
    };
    go_to(&mut writer, &mut now, &revisions[0]);
    let done = AtomicBool::new(false);
    let (count, counted) = mpsc::channel();

    let (wrong, sent) = thread::scope(|scope| {
        let probing = scope.spawn(|| {
            let mut wrong = Vec::new();
            while !done.load(Ordering::Relaxed) && wrong.is_empty() {
                wrong.extend(prober.round());
                count.send(u64::from(PORTS_EACH) * 4).unwrap();
            }
            wrong
        });
        let mut sent = 0;
        let mut changes = 0;
        while (changes < CHANGES || sent < PROBES_MIN) && !probing.is_finished() {
            for revision in revisions.iter().rev() {
                go_to(&mut writer, &mut now, revision);
                let mut more = revision.clone();
                more.policies.entry(WEB_SLOT).or_default().extend(others.clone());
                go_to(&mut writer, &mut now, &more);
                go_to(&mut writer, &mut now, revision);
                changes += 1;
            }
            sent += counted.try_iter().sum::<u64>();
        }
        done.store(true, Ordering::Relaxed);
        (probing.join().unwrap(), sent)
    });

    println!("{sent} probes sent");
    assert_eq!(wrong, [], "ports and verdicts that neither revision gives");
    assert!(sent >= PROBES_MIN, "{sent} probes");
    assert_eq!(writer.read_tables().unwrap().policies[&WEB_SLOT], revisions[0].policies[&WEB_SLOT]);
}
