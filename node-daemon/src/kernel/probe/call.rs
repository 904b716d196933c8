//! A made packet that calls a service: what the kernel holds of that, and which backend the programs put into the packet.

use std::{net::IpAddr, time::Duration};

use nix::time::{ClockId, clock_gettime};
use weft_shared::{
    balance::image::{Image, ImageBackend},
    layout::{
        Class, ConnectionKey, Leg, Peer, Point, Reason,
        service::{AffinityKey, ClientKind, Frontend, FrontendKey, Party, frontend_flags},
    },
};

use super::{KernelError, Object};
use crate::{
    balance::choice::{self, Call, Memory, Why},
    kernel::Datapath as _,
    observe::made::Made,
};

/// A call to a service.
#[derive(Clone, Debug)]
pub struct Called {
    /// Of the table in `SERVICES`.
    pub slot: u32,
    /// What the table says; `None`: there is none.
    pub image: Option<Image>,
    /// The backend that the programs put into the packet, with the port as in the table.
    pub backend: Option<ImageBackend>,
    /// Why that one, where what the kernel holds says so.
    pub why: Option<Why>,
    /// Sockets get a backend before there is a packet.
    pub at_sockets: bool,
}

/// Where a call is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// By the packets of an endpoint of this node.
    Inside,
    Outside,
    /// At the node's own sockets alone.
    Socket,
}

/// A call that is looked into.
pub(super) struct Asked {
    pub(super) side: Side,
    pub(super) answer: Called,
    call: Call,
    /// What is to be chosen by what the kernel holds.
    due: Option<(ImageBackend, Why)>,
}

/// The call, if the packet is one that this node balances.
pub(super) fn find(object: &mut Object, made: &Made, ends: [&Peer; 2]) -> Result<Option<Asked>, KernelError> {
    let [source, destination] = ends;
    let side = match Class::from_number(source.class) {
        Some(Class::Host) => Side::Socket,
        Some(Class::Fleet) if source.ifindex != 0 => Side::Inside,
        // Through the overlay come no calls.
        Some(Class::Fleet | Class::Unmanaged) => return Ok(None),
        _ => Side::Outside,
    };
    let Some(frontend) = frontend(object, made, destination)? else { return Ok(None) };
    if side == Side::Outside && frontend.flags & frontend_flags::CLUSTER != 0 {
        return Ok(None);
    }
    let slot = if side == Side::Outside { frontend.outside } else { frontend.inside };
    let odd = |error| KernelError::new(format!("table {slot} of services"), error);
    let image = Image::parse(&object.read_table(slot)?).map_err(odd)?;
    let call = Call {
        client: party(made.source, made.source_port),
        frontend: party(made.destination, made.port),
        protocol: made.protocol,
    };
    let memory = memory(object, slot, &call)?;
    let due = image.as_ref().and_then(|image| choice::choose(image, &call, &memory));
    let due = due.map(|(backend, why)| (*backend, why));
    // Sources of endpoints are judged by their packets.
    let by_packets = side == Side::Inside && image.as_ref().is_some_and(|image| image.sources);
    let at_sockets = side != Side::Outside && !by_packets && object.sockets_attached()?;
    let answer = Called { slot, image, backend: None, why: None, at_sockets };
    Ok(Some(Asked { side, answer, call, due }))
}

impl Asked {
    /// Whether the packet goes on inside another one. At XDP it does so before, by the same choice; what tc finds of the way from an
    /// interface that is none counts for nothing.
    pub(super) fn goes_directly(&self, tried: Option<(Point, Reason)>) -> bool {
        const SENT_ON: [Reason; 4] = [
            Reason::ServiceForwarded,
            Reason::ServiceUnremembered,
            Reason::ServiceElsewhere,
            Reason::NoRoute,
        ];
        let direct = self.side == Side::Outside && self.answer.image.as_ref().is_some_and(|image| image.dsr);
        direct && tried.is_some_and(|(_, reason)| SENT_ON.contains(&reason))
    }

    /// Takes note of where the programs sent the packet.
    pub(super) fn found(&mut self, tried: Option<(Point, Reason)>, to: Option<(IpAddr, u16)>) {
        let reason = tried.map(|(_, reason)| reason);
        if self.goes_directly(tried) {
            (self.answer.backend, self.answer.why) = self.due.unzip();
            return;
        }
        let rejected = reason.is_none_or(|reason| reason == Reason::ServiceRejected);
        let Some((address, port)) = to.filter(|_| !rejected) else { return };
        if party(address, port) == self.call.frontend {
            return;
        }
        let image = self.answer.image.as_ref();
        self.answer.backend =
            image.and_then(|image| image.find(address, port).or_else(|| image.find(address, 0))).copied();
        let is_due = |(due, _): &(ImageBackend, Why)| self.answer.backend == Some(*due);
        self.answer.why = self.due.filter(is_due).map(|(_, why)| why);
    }
}

/// As the programs look for it.
fn frontend(object: &Object, made: &Made, destination: &Peer) -> Result<Option<Frontend>, KernelError> {
    let port = made.port.to_be();
    let exact = object.frontend(&FrontendKey::address(made.destination.into(), port, made.protocol))?;
    if exact.is_some() || destination.class != Class::Host as u32 {
        return Ok(exact);
    }
    object.frontend(&FrontendKey::node_port(made.destination.is_ipv4(), port, made.protocol))
}

fn party(address: IpAddr, port: u16) -> Party {
    Party { address: address.into(), port: port.to_be(), zero: 0 }
}

fn memory(object: &mut Object, slot: u32, call: &Call) -> Result<Memory, KernelError> {
    let Call { client, frontend, protocol } = *call;
    let question = ConnectionKey {
        source: client.address,
        destination: frontend.address,
        source_port: client.port,
        destination_port: frontend.port,
        protocol,
        leg: Leg::Question as u8,
        zero: [0; 2],
    };
    let key = AffinityKey { service: slot, kind: ClientKind::Address as u32, client: client.address };
    let (connection, affinity) = object.recall(&question, &key)?;
    let now =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|error| KernelError::new("read the clock", error))?;
    Ok(Memory { connection, affinity, now: Duration::from(now) })
}
