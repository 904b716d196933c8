//! What the kernel programs do with a made packet, tried without a trace: the very programs, loaded once more, with the
//! tables of those that are attached. The packet goes nowhere, and no flow, counter or event of the node's changes.

use std::{net::IpAddr, path::PathBuf};

use aya::programs::{TestRun as _, TestRunOptions};
use weft_shared::layout::{Address, Class, Config, Event, Peer, Point, Reason};

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
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// The program that judged.
    pub point: Point,
    /// Why the packet goes where it goes, or goes no further.
    pub reason: Reason,
    /// With the rules that decided.
    pub event: Option<Event>,
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
        let place = self.place(&object.read_tables()?, made)?;
        let packet = made::packet(made, place.source_mac, place.destination_mac)?;
        let mut events = object.events()?;
        object.switch()?.set_allowed(true)?;
        run(&mut object, &place, &packet)?;
        let counted = object.counters()?;
        let (_, reason, _) =
            counted.first().ok_or_else(|| KernelError::new("try a packet", "the program counted none"))?;
        Ok(Judged { point: place.point, reason: *reason, event: events.try_next() })
    }

    fn place(&self, tables: &Tables, made: &Made) -> Result<Place, ProbeError> {
        let lengths = Lengths::of([tables]);
        let who = Who::new(tables, &lengths);
        let [source, destination] =
            [made.source, made.destination].map(|address| who.is(Address::from(address)));
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
    fn comes_by(&self, source: Peer) -> u32 {
        match Class::from_number(source.class) {
            Some(Class::Fleet | Class::Unmanaged) => self.config.overlay_ifindex,
            // The node itself, and what the stack has routed.
            _ => 0,
        }
    }
}

fn run(object: &mut Object, place: &Place, packet: &[u8]) -> Result<(), KernelError> {
    let context = context(place.ifindex, place.ingress_ifindex);
    let program = object.program(place.point.name())?;
    let run = program.test_run(TestRunOptions {
        data_in: Some(packet),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    });
    run.map(drop)
        .map_err(|error| KernelError::new(format!("try a packet with {}", place.point.name()), error))
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
