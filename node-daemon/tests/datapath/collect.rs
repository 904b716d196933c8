//! Flows that are over: they are as good as absent, and their places go to others.

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
fn flows_that_are_over_count_no_more_and_those_that_are_not_stay() {
    let config = Config { overlay_ifindex: world::OVERLAY, timeout_other: 0, ..Config::DEFAULT };
    let mut datapath = Datapath::with_config(config);
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
        for port in 1..=100 {
            assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(port, 53)), Reason::DeliveredLocal);
        }
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.tcp(1, 80, SYN)), Reason::DeliveredLocal);
    }

    // Once the coarse clock has gone on.
    let deadline = Instant::now() + Duration::from_secs(10);
    let left = loop {
        let left = datapath.object.flows().unwrap();
        if left.len() == 2 {
            break left;
        }
        assert!(Instant::now() < deadline, "{} flows are left", left.len());
    };
    assert!(left.iter().all(|(key, _)| key.protocol == 6), "{left:?}");
    let mut entries = 0;
    loop {
        let slice = datapath.object.count_flows().unwrap();
        entries += slice.entries;
        if slice.finished {
            break;
        }
    }
    assert_eq!(entries, 2);
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &way.udp(1, 53)),
            Reason::DeliveredLocal,
            "it comes anew"
        );
    }
}
