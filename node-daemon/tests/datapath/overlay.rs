//! What comes out of the overlay. The kernel's test run can't give a packet tunnel metadata; what has them is tried
//! between real nodes, in `integration/`.

use weft_shared::layout::Reason;

use crate::{
    harness::{Datapath, FROM_OVERLAY},
    packets::{SYN, arriving},
    world::{DB_PARTY, FAMILIES, WEB_PARTY},
};

#[test]
fn without_tunnel_metadata_nothing_comes_out_of_the_overlay() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let packet = arriving(DB_PARTY, WEB_PARTY, family).tcp(1000, 80, SYN);
        assert_eq!(datapath.fate(FROM_OVERLAY, &packet), Reason::UnknownTunnelPeer);
    }
}
