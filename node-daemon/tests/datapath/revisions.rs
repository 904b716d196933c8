//! One revision: no packet is judged by two revisions of a subject's policy (I2).
//!
//! The revisions differ in hundreds of rows and agree on the probes. Each probe is judged by what is said of its peer's
//! identity, or of its class; what the one revision says in the one, the other says in the other. The rulebook of the one's
//! class with the peers' rows of the other, which is what a program would see that looks up the two before and after a
//! change, allows what both deny and denies what both allow.

use std::{
    sync::{
        Arc,
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
        tables::{Step, Tables},
    },
};
use weft_shared::{
    layout::{Action, Class, Config, Direction, PeerKey, PolicyRow, PortKey, class_rulebook},
    policy::compile::Rulebook,
};

use crate::{
    harness::{Datapath, Verdict, context, from_endpoint},
    packets::{SYN, TCP, Way, out_of},
    world::{self, API_IDENTITY, DB_IDENTITY, DB_PARTY, FAMILIES, WEB, WEB_IDENTITY, WEB_PARTY, WEB_SLOT},
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

/// Who has the word about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// The rulebook of its identity; its class's says the opposite.
    Identity,
    /// The same, by other rules.
    IdentityAgain,
    /// Its class's rulebook, because there is none of its identity.
    Class,
}

const WORDS: [Word; 3] = [Word::Identity, Word::Class, Word::IdentityAgain];

fn opposite(action: Action) -> Action {
    match action {
        Action::Allow => Action::Deny,
        Action::Deny => Action::Allow,
    }
}

fn rulebook(says: impl Fn(Action) -> Action, number: u32) -> Arc<Rulebook> {
    let everything = (PortKey::EVERYTHING, PolicyRow::of(Action::Deny, 0));
    let ports =
        ports().map(|(port, action)| (PortKey::exact(TCP, port), PolicyRow::of(says(action), number)));
    Arc::new([everything].into_iter().chain(ports).collect())
}

fn key(peer: u32) -> PeerKey {
    PeerKey { subject: WEB_IDENTITY, peer, direction: Direction::Egress as u32 }
}

/// The world, with what the subject is judged by.
fn revision(word: Word) -> Tables {
    const RIGHT: u32 = 1001;
    const OPPOSITE: u32 = 1002;
    const RIGHT_AGAIN: u32 = 1003;
    let mut tables = world::tables();
    let (of_class, of_identity) = match word {
        Word::Identity => (OPPOSITE, Some(RIGHT)),
        Word::IdentityAgain => (OPPOSITE, Some(RIGHT_AGAIN)),
        Word::Class => (RIGHT, None),
    };
    let subject = tables.subjects.get_mut(&WEB_SLOT).unwrap();
    subject.rulebooks[class_rulebook(Direction::Egress, Class::Fleet)] = of_class;
    tables.peer_rules.extend(of_identity.map(|number| (key(DB_IDENTITY), number)));
    let library = [
        (RIGHT, rulebook(|action| action, 1)),
        (OPPOSITE, rulebook(opposite, 1)),
        (RIGHT_AGAIN, rulebook(|action| action, 2)),
    ];
    tables.rulebooks.extend(library);
    let used = tables.used_rulebooks();
    tables.rulebooks.retain(|number, _| used.contains(number));
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
    for word in WORDS {
        let next = revision(word);
        writer.write(&diff(&now, &next, Sweep::Remove)).unwrap();
        now = next;
        assert_eq!(prober.round(), []);
    }
    // The class's rulebook of the one revision, the rows of the other.
    writer.write(&[Step::PeerRules { key: key(DB_IDENTITY), rulebook: None }]).unwrap();
    assert_eq!(prober.round().len(), usize::from(PORTS_EACH) * 2 * 2, "all ports of both families");
}

#[test]
fn no_packet_is_judged_by_two_revisions_while_hundreds_of_rows_change() {
    let (mut writer, mut prober, _pins) = writer_and_prober();
    let revisions = WORDS.map(revision);
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
                // Between two of each, the rows of another peer come and go.
                let mut more = revision.clone();
                let number = more.peer_rules.get(&key(DB_IDENTITY)).copied();
                more.peer_rules.extend(number.map(|number| (key(API_IDENTITY), number)));
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
    assert_eq!(writer.read_tables().unwrap(), now);
}
