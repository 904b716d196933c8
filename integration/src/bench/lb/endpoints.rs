//! Client and server as two endpoints of one node, with Weft's programs of tc on their interfaces.

use std::{net::IpAddr, sync::Arc};

use anyhow::Result;
use aya::programs::{TcAttachType, tc::qdisc_add_clsact};
use weft_noded::{
    kernel::{
        Datapath as _,
        object::{Object, Options as Load, has_tcx},
    },
    plan::tables::{Step, SubjectRow},
};
use weft_shared::{
    layout::{
        Action, Address, CLASS_RULEBOOKS, Class, Config, Endpoint, Peer, PolicyRow, PortKey, endpoint_flags,
    },
    policy::compile::Rulebook,
};

use super::{
    packets::serve,
    routed::{BACKEND, Place},
};
use crate::bench::datapath::packets::GATEWAY_MAC;

const ALLOW_ALL: u32 = 1;

/// Weft's programs on both interfaces of the node, whose namespace the thread is in.
pub(super) fn attach(services: u32) -> Result<Object> {
    let mut object = Object::load(&Load { directory: None, config: Config::DEFAULT, flows_max: None })?;
    object.write(&tables())?;
    serve(&mut object, services, BACKEND.into())?;
    for place in Place::ALL {
        let interface = place.interface();
        if !has_tcx() {
            qdisc_add_clsact(&interface)?;
        }
        object.program("tc_from_endpoint")?.attach(&interface, TcAttachType::Ingress)?;
        object.program("tc_to_endpoint")?.attach(&interface, TcAttachType::Egress)?;
    }
    Ok(object)
}

/// Two endpoints of the node, which may do everything.
fn tables() -> Vec<Step> {
    let allow = Rulebook::from([(PortKey::EVERYTHING, PolicyRow::of(Action::Allow, 0))]);
    let rest = Place::ALL.into_iter().flat_map(endpoint);
    let node = vec![
        Step::IdentitiesThrough { identity: 1 << 20 },
        Step::Rulebook { number: ALLOW_ALL, rows: Some(Arc::new(allow)) },
    ];
    node.into_iter().chain(rest).collect()
}

fn endpoint(place: Place) -> [Step; 4] {
    let (identity, ifindex) = (place.identity(), place.ifindex());
    let address = IpAddr::V4(place.address()).into();
    let endpoint = Endpoint {
        address4: address,
        address6: Address::UNSPECIFIED,
        identity,
        subject: ifindex,
        flags: endpoint_flags::OPEN | endpoint_flags::PEER,
        mac: place.mac(),
        gateway_mac: GATEWAY_MAC,
        ingress_rate: 0,
        egress_rate: 0,
        connection_rate: 0,
        zero: 0,
    };
    let peer = Peer { identity, class: Class::Fleet as u32, node: 0, ifindex };
    let subject = SubjectRow { identity, rulebooks: [ALLOW_ALL; CLASS_RULEBOOKS] };
    [
        Step::Subject { slot: ifindex, subject: Some(subject) },
        Step::Bump { subjects: vec![ifindex], nodes: Vec::new() },
        Step::Ipcache { address, peer: Some(peer) },
        Step::Endpoint { ifindex, endpoint: Some(endpoint) },
    ]
}
