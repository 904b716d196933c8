//! What the kernel programs do with a made packet, tried without a trace: the very programs, loaded once more, with the
//! tables of those that are attached. The packet goes nowhere, and no flow, counter or event of the node's changes.

mod call;

use std::{net::IpAddr, path::PathBuf};

use aya::programs::{TestRun as _, TestRunOptions};
use weft_shared::layout::{Address, Class, Config, Event, Peer, Point, Reason};

pub use self::call::Called;
use self::call::Side;
use super::{
    Datapath as _, KernelError,
    object::{Object, Options},
};
use crate::{
    observe::made::{self, Made, MadeError},
    plan::{
        tables::Tables,
        who::{Lengths, Who},
    },
};

/// Where the tables are.
#[derive(Clone, Debug)]
pub struct Probe {
    pub directory: PathBuf,
    pub config: Config,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The program that judged, and why the packet goes where it goes, or goes no further. `None`: none that can be tried sees it.
    pub tried: Option<(Point, Reason)>,
    /// With the rules that decided.
    pub event: Option<Event>,
    /// The destination is a service's frontend.
    pub service: Option<Called>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "neither {0} nor {1} is an endpoint of this node: no program of this node judges a flow between them"
    )]
    NobodyHere(IpAddr, IpAddr),
    #[error(transparent)]
    Packet(#[from] MadeError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Few: the packet's own.
const FLOWS_MAX: u32 = 64;
/// What a packet may grow by: an answer that says it was refused.
const ROOM: usize = 128;

/// Which program sees the packet, and where it came from.
struct Place {
    point: Point,
    ifindex: u32,
    ingress_ifindex: u32,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

impl Probe {
    /// Judges a flow's first packet. Takes some tenths of a second: the kernel verifies the programs anew.
    pub fn judge(&self, made: &Made) -> Result<Judged, ProbeError> {
        let options = Options {
            directory: Some(self.directory.clone()),
            config: Config { tell_again_after: 0, ..self.config },
            flows_max: Some(FLOWS_MAX),
        };
        let mut object = Object::load_beside(&options)?;
        let tables = object.read_tables()?;
        let lengths = Lengths::of([&tables]);
        let who = Who::new(&tables, &lengths);
        let [source, destination] =
            [made.source, made.destination].map(|address| who.is(Address::from(address)));
        let Some(mut called) = call::find(&mut object, made, [&source, &destination])? else {
            let place = self.place(&tables, [&source, &destination], made)?;
            return Ok(try_packet(&mut object, &place, made)?.0);
        };
        if called.side == Side::Socket {
            return Ok(Judged { tried: None, event: None, service: Some(called.answer) });
        }
        let place = match called.side {
            Side::Outside => OUTSIDE,
            _ => self.place(&tables, [&source, &destination], made)?,
        };
        let (judged, frame) = try_packet(&mut object, &place, made)?;
        called.found(judged.tried, made::destination(&frame));
        // XDP has sent it on before.
        let direct = called.goes_directly(judged.tried);
        let judged = if direct { Judged { tried: None, event: None, service: None } } else { judged };
        Ok(Judged { service: Some(called.answer), ..judged })
    }

    fn place(&self, tables: &Tables, ends: [&Peer; 2], made: &Made) -> Result<Place, ProbeError> {
        let [source, destination] = ends;
        if let Some(own) = tables.endpoints.get(&source.ifindex) {
            return Ok(Place {
                point: Point::FromEndpoint,
                ifindex: source.ifindex,
                ingress_ifindex: source.ifindex,
                source_mac: own.mac,
                destination_mac: own.gateway_mac,
            });
        }
        let own = tables.endpoints.get(&destination.ifindex);
        let own = own.ok_or(ProbeError::NobodyHere(made.source, made.destination))?;
        Ok(Place {
            point: Point::ToEndpoint,
            ifindex: destination.ifindex,
            ingress_ifindex: self.comes_by(source),
            source_mac: own.gateway_mac,
            destination_mac: own.mac,
        })
    }

    /// The interface by which packets of a party that is not an endpoint of this node come.
    fn comes_by(&self, source: &Peer) -> u32 {
        match Class::from_number(source.class) {
            Some(Class::Fleet | Class::Unmanaged) => self.config.overlay_ifindex,
            // The node itself, and what the stack has routed.
            _ => 0,
        }
    }
}

/// Some uplink: the programs don't ask which. A try that names no interface is at the loopback device, whose MAC is all zeros.
const OUTSIDE: Place = Place {
    point: Point::FromUplink,
    ifindex: 0,
    ingress_ifindex: 0,
    source_mac: [2, 0, 0, 0, 0, 1],
    destination_mac: [0; 6],
};

/// What became of the made packet, and how it was then.
fn try_packet(object: &mut Object, place: &Place, made: &Made) -> Result<(Judged, Vec<u8>), ProbeError> {
    let packet = made::packet(made, place.source_mac, place.destination_mac)?;
    let mut events = object.events()?;
    object.switch()?.set_allowed(true)?;
    let frame = run(object, place, &packet)?;
    let counted = object.counters()?;
    let (_, reason, _) =
        counted.first().ok_or_else(|| KernelError::new("try a packet", "the program counted none"))?;
    let judged = Judged { tried: Some((place.point, *reason)), event: events.try_next(), service: None };
    Ok((judged, frame))
}

fn run(object: &mut Object, place: &Place, packet: &[u8]) -> Result<Vec<u8>, KernelError> {
    let context = context(place.ifindex, place.ingress_ifindex);
    let program = object.program(place.point.name())?;
    let mut frame = vec![0; packet.len() + ROOM];
    let run = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut frame),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    });
    run.map_err(|error| KernelError::new(format!("try a packet with {}", place.point.name()), error))?;
    Ok(frame)
}

/// `struct __sk_buff` for a try, with the two fields that the kernel takes from there: where the program runs, and where the
/// packet came into the node.
pub fn context(ifindex: u32, ingress_ifindex: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
