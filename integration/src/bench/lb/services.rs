//! Services at XDP, of which a node has several numbers: one with a hundred backends behind another node gets the packets.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use weft_noded::{
    balance::tables::{OwnAddresses, Step},
    kernel::{
        Datapath as _,
        object::{Object, Options},
        sysctl,
    },
    plan::tables::{NodeRow, Step as TableStep},
};
use weft_shared::{
    balance::table::{Backend, Manner, Table},
    layout::{
        Class, Config, Peer, Point, Reason,
        service::{Frontend, FrontendKey},
    },
};

use super::wrapper::{Flows, TX, Turns, Wrapper};
use crate::bench::datapath::packets::{GATEWAY_MAC, PEER, PORT, WORKLOAD, segment};

/// Services of the node.
pub(super) const SERVICES: [u32; 3] = [1, 100, 10_000];

/// The device on which packets come and go.
const UPLINK: u32 = 50;
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const NODE_SLOT: u32 = 1;
const TCP: u8 = 6;
/// Flows of a measurement of new ones: to forget them takes longer than to measure.
const NEW_FLOWS_MAX: u32 = 40_000;
/// Of the service that gets the packets.
const BACKENDS: u8 = 100;
const SLOTS: u16 = 16_381;
/// Others are small, so that ten thousand of them are made in a moment; no packet looks at their tables.
const SLOTS_OF_OTHERS: u16 = 251;

/// Who answers the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// The backend, an endpoint of another node.
    Dsr,
    /// This node, for the backend, which is outside of the fleet.
    Snat,
}

impl Mode {
    pub(super) const ALL: [Self; 2] = [Self::Dsr, Self::Snat];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Snat => "snat",
        }
    }

    fn backend(self, last: u8) -> IpAddr {
        match self {
            Self::Dsr => IpAddr::from([10, 202, 0, last]),
            Self::Snat => IpAddr::from([192, 0, 2, 100 + last]),
        }
    }
}

/// Whether the packets' connections are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// First packets, each of another connection.
    New,
    Established,
}

impl State {
    pub(super) const ALL: [Self; 2] = [Self::New, Self::Established];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
        }
    }
}

/// Programs with services, by how many there are.
#[derive(Debug)]
pub(super) struct Services {
    by_services: BTreeMap<(Mode, u32), Loaded>,
}

#[derive(Debug)]
struct Loaded {
    object: Object,
    wrapper: Wrapper,
}

impl Services {
    /// Loads and fills, in a namespace that has no uplink yet.
    pub(super) fn load(bench: &Path) -> Result<Self> {
        add_uplink(bench)?;
        let each = Mode::ALL.into_iter().flat_map(|mode| SERVICES.map(|services| (mode, services)));
        let loaded =
            each.map(|(mode, services)| Ok(((mode, services), Loaded::load(bench, mode, services)?)));
        Ok(Self { by_services: loaded.collect::<Result<_>>()? })
    }

    /// Nanoseconds of a packet, every one of which went on to a backend.
    pub(super) fn run(
        &mut self,
        mode: Mode,
        services: u32,
        state: State,
        flows: Flows,
        repeat: u32,
    ) -> Result<f64> {
        let loaded = self.by_services.get_mut(&(mode, services)).context("no such number of services")?;
        let packet = segment(WORKLOAD, PEER, state == State::New);
        if state == State::New {
            // Beside the reference of so many flows, it is always others.
            loaded.wrapper.prepare(&packet, &Turns::Ports(Flows::Many.ports()))?;
            return loaded.run_new(&packet, repeat);
        }
        loaded.wrapper.prepare(&packet, &Turns::Ports(flows.ports()))?;
        // What was not known before is now.
        loaded.run(&packet, u32::from(flows.number()))?;
        loaded.run(&packet, repeat)
    }
}

impl Loaded {
    fn load(bench: &Path, mode: Mode, services: u32) -> Result<Self> {
        let config = Config { connections_a_second: u64::MAX, ..Config::DEFAULT };
        let mut object = Object::load(&Options { directory: None, config, flows_max: Some(1024) })?;
        object.write(&node())?;
        let own = OwnAddresses { v4: Some(OWN), v6: None };
        object.write_services(&[Step::OwnAddresses(own)])?;
        let other = Arc::new(table(mode, 1, SLOTS_OF_OTHERS));
        let mut tables = vec![(1, Some(Arc::new(table(mode, BACKENDS, SLOTS))))];
        tables.extend((2..=services).map(|slot| (slot, Some(Arc::clone(&other)))));
        object.write_services(&[Step::Tables { tables }])?;
        for slot in 1..=services {
            let address = if slot == 1 { PEER } else { Ipv4Addr::from(0x0a60_0000 + slot) };
            let key = FrontendKey::address(IpAddr::V4(address).into(), PORT.to_be(), TCP);
            let frontend = Some(Frontend { inside: slot, outside: slot, flags: 0 });
            object.write_services(&[Step::Frontend { key, frontend }])?;
        }
        let mut wrapper = Wrapper::load(bench)?.on_device(UPLINK);
        wrapper.aim(object.uplink_program()?.fd()?)?;
        Ok(Self { object, wrapper })
    }

    /// As many at a time as can take turns, of which none is known.
    fn run_new(&mut self, packet: &[u8], repeat: u32) -> Result<f64> {
        let at_once = u32::from(Flows::Many.number());
        let batches = repeat.min(NEW_FLOWS_MAX).div_ceil(at_once);
        let mut sum = 0.0;
        for _ in 0..batches {
            for (key, _) in self.object.connections()? {
                self.object.forget_connection(&key)?;
            }
            sum += self.run(packet, at_once)?;
        }
        Ok(sum / f64::from(batches))
    }

    fn run(&mut self, packet: &[u8], repeat: u32) -> Result<f64> {
        let before = self.forwarded()?;
        let (verdict, nanoseconds) = self.wrapper.run(packet, repeat)?;
        let forwarded = self.forwarded()? - before;
        ensure!(
            (verdict, forwarded) == (TX, u64::from(repeat)),
            "verdict {verdict}, {forwarded} of {repeat} went on to a backend"
        );
        Ok(nanoseconds)
    }

    /// Those that left a row, or had one.
    fn forwarded(&mut self) -> Result<u64> {
        let of = |(point, reason, _): &(Point, Reason, _)| {
            (*point, *reason) == (Point::XdpUplink, Reason::ServiceForwarded)
        };
        Ok(self.object.counters()?.iter().find(|row| of(row)).map_or(0, |(_, _, counter)| counter.packets))
    }
}

fn table(mode: Mode, backends: u8, slots: u16) -> Table {
    let backend =
        |last| Backend { address: mode.backend(last), port: PORT, weight: 1, new_flows: true, local: false };
    let manner = Manner { dsr: mode == Mode::Dsr, ..Manner::plain(slots) };
    Table::new(manner, (1..=backends).map(backend).collect())
}

/// Another node, and its endpoints.
fn node() -> Vec<TableStep> {
    let node = |slot, address: Ipv4Addr| TableStep::Node {
        slot,
        node: Some(NodeRow { address: IpAddr::V4(address).into(), identity: 0 }),
    };
    let peer = Peer { identity: 300, class: Class::Fleet as u32, node: NODE_SLOT, ifindex: 0 };
    let endpoint = |last| TableStep::Ipcache { address: Mode::Dsr.backend(last).into(), peer: Some(peer) };
    [node(0, OWN), node(NODE_SLOT, NODE)].into_iter().chain((1..=BACKENDS).map(endpoint)).collect()
}

/// The uplink with the way to the other node. A device takes test runs only where some program is on it.
fn add_uplink(bench: &Path) -> Result<()> {
    let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let neighbours =
        [IpAddr::V4(NODE)].into_iter().chain((1..=BACKENDS).map(|last| Mode::Snat.backend(last)));
    let neighbours = neighbours
        .map(|address| format!("neighbour add {address} lladdr 02:09:09:09:09:09 dev uplink nud permanent"));
    let lines = [
        format!("link add uplink index {UPLINK} type veth peer name fabric"),
        format!("link set uplink address {mac} up"),
        "link set fabric up".to_owned(),
        format!("address add {OWN}/24 dev uplink"),
    ];
    for line in lines.into_iter().chain(neighbours) {
        let status = Command::new("ip").args(line.split(' ')).status().context("start ip (iproute2)")?;
        ensure!(status.success(), "ip {line} failed");
    }
    sysctl::set("net/ipv4/ip_forward", "1")?;
    Wrapper::load(bench)?.attach(UPLINK, XdpMode::Driver)
}
