//! The flow table's collection, on entries that the programs made.

use std::time::Duration;

use tokio::time::Instant;
use weft_noded::kernel::Datapath as _;
use weft_shared::layout::{Config, Reason};

use crate::{
    harness::{Datapath, from_endpoint},
    packets::{SYN, out_of},
    world::{self, API_PARTY, FAMILIES, WEB, WEB_PARTY},
};

#[test]
fn flows_that_are_over_leave_the_table_and_those_that_are_not_stay() {
    let config = Config { overlay_ifindex: world::OVERLAY, timeout_other: 0, ..Config::DEFAULT };
    let mut datapath = Datapath::with_config(config);
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
        for port in 1..=100 {
            assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(port, 53)), Reason::DeliveredLocal);
        }
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.tcp(1, 80, SYN)), Reason::DeliveredLocal);
    }
    assert_eq!(datapath.object.flows().unwrap().len(), 202);

    // What has just been used has its time of grace.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut removed = 0;
    while removed < 200 {
        assert!(Instant::now() < deadline, "{removed} of 200 are collected");
        removed += datapath.object.collect_flows(u64::MAX).unwrap().removed;
    }

    let left = datapath.object.flows().unwrap();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|(key, _)| key.protocol == 6), "{left:?}");
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &way.udp(1, 53)),
            Reason::DeliveredLocal,
            "it comes anew"
        );
    }
}
