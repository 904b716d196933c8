//! Services at tc, whose clients no socket program saw: packets of an endpoint to a service with backends behind another node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use weft_noded::{
    balance::tables::Step,
    kernel::{
        Datapath as _,
        object::{Object, Options},
    },
};
use weft_shared::{
    balance::table::{Backend, Manner, Table},
    layout::{
        Config, Point, Reason,
        service::{Frontend, FrontendKey},
    },
};

use super::wrapper::Flows;
use crate::bench::datapath::{
    packets::{PEER, PORT},
    reference::Reference,
    subject::{self, OVERLAY, Place, Way},
    wrapper::Wrapper,
};

/// Services of the node.
pub(super) const SERVICES: [u32; 2] = [1, 10_000];

const FIRST_PORT: u16 = 2000;
const TCP: u8 = 6;
const SLOTS: u16 = 251;
/// The first service's address.
pub(super) const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The reference of tc, and the program with services, by how many there are.
#[derive(Debug)]
pub(super) struct Endpoints {
    reference: Reference,
    by_services: BTreeMap<u32, Loaded>,
}

#[derive(Debug)]
struct Loaded {
    object: Object,
    wrapper: Wrapper,
}

impl Endpoints {
    /// Loads and fills, in a namespace that has the interfaces.
    pub(super) fn load(bench: &Path) -> Result<Self> {
        let loaded = SERVICES.map(|services| Ok((services, Loaded::load(bench, services)?)));
        let reference = Reference::load(bench, FIRST_PORT, Flows::Many.number())?;
        Ok(Self { reference, by_services: loaded.into_iter().collect::<Result<_>>()? })
    }

    /// Nanoseconds of a packet in the reference.
    pub(super) fn reference(&mut self, flows: Flows, repeat: u32) -> Result<f64> {
        Ok(self.reference.run(FIRST_PORT, flows.number(), repeat)?.nanoseconds)
    }

    /// Nanoseconds of a packet of known connections, every one of which went on to a backend.
    pub(super) fn run(&mut self, services: u32, flows: Flows, repeat: u32) -> Result<f64> {
        let loaded = self.by_services.get_mut(&services).context("no such number of services")?;
        loaded.run(flows, repeat)
    }
}

impl Loaded {
    fn load(bench: &Path, services: u32) -> Result<Self> {
        let timeout = Config::DEFAULT.timeout_established;
        // No connection is ever answered here, and none may time out.
        let config = Config { overlay_ifindex: OVERLAY, timeout_syn: timeout, ..Config::DEFAULT };
        let mut object = Object::load(&Options { directory: None, config, flows_max: None })?;
        object.write(&subject::node())?;
        object.write(&subject::endpoint(place()?))?;
        serve(&mut object, services, (PEER, PORT).into())?;
        let mut wrapper = Wrapper::load(bench)?;
        wrapper.aim(object.program(Point::FromEndpoint.name())?.fd()?)?;
        let mut loaded = Self { object, wrapper };
        let packet = place()?.packet_to(FRONTEND, FIRST_PORT, Flows::Many.number(), true);
        loaded.wrapper.run(&packet, Flows::Many.number().into())?;
        Ok(loaded)
    }

    fn run(&mut self, flows: Flows, repeat: u32) -> Result<f64> {
        let packet = place()?.packet_to(FRONTEND, FIRST_PORT, flows.number(), false);
        let (before, connections) = (self.sent()?, self.object.connections()?.len());
        let run = self.wrapper.run(&packet, repeat)?;
        let sent = self.sent()? - before;
        ensure!(sent == u64::from(repeat), "{sent} of {repeat} went to a backend ({run:?})");
        let more = self.object.connections()?.len() - connections;
        ensure!(more == 0, "{more} connections were new");
        Ok(run.nanoseconds)
    }

    fn sent(&mut self) -> Result<u64> {
        let of = |(point, reason, _): &(Point, Reason, _)| {
            (*point, *reason) == (Point::FromEndpoint, Reason::DeliveredOverlay)
        };
        Ok(self.object.counters()?.iter().find(|row| of(row)).map_or(0, |(_, _, counter)| counter.packets))
    }
}

/// The endpoint with the least policy, which allows the backend.
fn place() -> Result<Place> {
    Place::of(Way::Egress, 1)
}

/// Services of one backend, each with a table of its own: [`FRONTEND`] and the addresses behind it, at one port.
pub(super) fn serve(object: &mut Object, services: u32, backend: SocketAddr) -> Result<()> {
    let table = Arc::new(table(backend));
    let tables = (1..=services).map(|slot| (slot, Some(Arc::clone(&table)))).collect();
    object.write_services(&[Step::Tables { tables }])?;
    for slot in 1..=services {
        let address = Ipv4Addr::from(u32::from(FRONTEND) + slot - 1);
        let key = FrontendKey::address(IpAddr::V4(address).into(), PORT.to_be(), TCP);
        let frontend = Some(Frontend { inside: slot, outside: slot, flags: 0 });
        object.write_services(&[Step::Frontend { key, frontend }])?;
    }
    Ok(())
}

fn table(to: SocketAddr) -> Table {
    let backend = Backend { address: to.ip(), port: to.port(), weight: 1, new_flows: true, local: false };
    Table::new(Manner::plain(SLOTS), vec![backend])
}
