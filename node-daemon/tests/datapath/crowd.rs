//! More flows than the table has room for, on all CPUs at once.

use std::thread;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use weft_noded::{kernel::Datapath as _, plan::tables::Step};
use weft_shared::layout::{Action, Config, Direction};

use crate::{
    harness::{Datapath, context, from_endpoint},
    packets::{UDP, out_of},
    world::{
        self, API_IDENTITY, API_PARTY, FAMILIES, WEB, WEB_PARTY, WEB_SLOT, allow_all, for_all, port_row, rule,
    },
};

const ROWS: u32 = 64;
const PORTS: u16 = 300;
const ROUNDS: u32 = 20;
const ALLOWED: u16 = 53;
const DENIED: u16 = 54;
const REDIRECT: u32 = 7;
const SHOT: u32 = 2;

/// CPUs that this process may run on.
fn cpus() -> Vec<usize> {
    let may = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| may.is_set(*cpu).unwrap_or(false)).collect()
}

fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

fn run(program: &SchedClassifier, packet: &[u8]) -> u32 {
    let context = context(from_endpoint(WEB));
    let options =
        TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::default() };
    program.test_run(options).unwrap().return_value
}

/// Rows are written and read by all CPUs: none is ever taken for another's.
#[test]
fn a_full_table_judges_every_flow_as_what_it_is() {
    let config = Config { overlay_ifindex: world::OVERLAY, ..Config::DEFAULT };
    let mut datapath = Datapath::with_rows(config, ROWS);
    datapath.change(|tables| {
        for_all(tables, &allow_all());
        let mut table = allow_all();
        table.insert(port_row(Direction::Egress, API_IDENTITY, UDP, DENIED), rule(Action::Deny, 1));
        tables.policies.insert(WEB_SLOT, table);
    });
    // Each packet is judged anew now and then, too.
    datapath.write(&[Step::Bump { subjects: vec![WEB_SLOT], nodes: Vec::new() }]);
    let program: &SchedClassifier = datapath.object.program("tc_from_endpoint").unwrap();
    thread::scope(|scope| {
        for cpu in cpus() {
            scope.spawn(move || {
                stay_on(cpu);
                for round in 0..ROUNDS {
                    for family in FAMILIES {
                        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
                        for port in 1..PORTS {
                            let (to, expected) =
                                if port % 3 == 0 { (DENIED, SHOT) } else { (ALLOWED, REDIRECT) };
                            let verdict = run(program, &way.udp(1000 + port, to));
                            assert_eq!(verdict, expected, "{family:?} {port} in round {round} on {cpu}");
                        }
                    }
                }
            });
        }
    });
    let flows = datapath.object.flows().unwrap();
    let counted = datapath.object.count_flows().unwrap();
    assert_eq!(flows.len() as u64, counted.entries);
    assert!(
        flows
            .iter()
            .all(|(key, _)| u16::from_be(key.high_port) != DENIED && u16::from_be(key.low_port) != DENIED)
    );
    assert!(flows.len() > ROWS as usize * 9 / 10, "{} rows are taken", flows.len());
    datapath.forget_flows();
    assert_eq!(datapath.object.flows().unwrap(), Vec::new(), "each row is found by its key");
}
