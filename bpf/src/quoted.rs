//! ICMP errors about connections to services. They quote a packet as it was where the error arose, and are to reach who sent it, who
//! knows it otherwise: the quoted packet gets the parties that its sender knows, and so does the error.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weft_shared::layout::{Address, ConnectionKey, Leg, Reason, connection_flags, service::Party};

use crate::{
    connections,
    frame::{ETHERNET, Frame, load, store},
    maps::ERROR,
    parse::{self, Packet, Service},
    related,
    service::{Side, direct},
    translate::{changed, difference, folded, growth},
    verdict::same,
};

/// What an error becomes: aside, because the stack has no room for it.
#[derive(Clone, Copy)]
pub struct Told {
    key: ConnectionKey,
    source: Address,
    destination: Address,
    quoted_source: Party,
    quoted_destination: Party,
}

/// Of the ICMP header, before the quoted packet.
const ICMP: u32 = 8;
const CHECKSUM: u32 = 2;

/// Tells the backend of its answer to a client, if the packet in hand is an error about one.
#[inline(always)]
pub fn call(ctx: &TcContext, packet: &Packet, side: Side) -> Result<(), Reason> {
    if !related::read(ctx, packet) {
        return Ok(());
    }
    if find_quoted(Leg::Question as u32) != 0 {
        put(ctx)?;
        parse::kept()?.service = Service::Question;
    } else if side == Side::OUTSIDE && direct::find_quoted() {
        // What the backend sent the client itself, it is told as it was.
        parse::kept()?.service = Service::Elsewhere;
    }
    Ok(())
}

/// Whether the packet in hand is an error about a client's question to a service.
#[inline(always)]
pub fn is_about_question(ctx: &TcContext, packet: &Packet) -> bool {
    related::read(ctx, packet) && find_quoted(Leg::Answer as u32) != 0
}

/// Tells the client, after [`is_about_question`].
#[inline(always)]
pub fn put(ctx: &TcContext) -> Result<(), Reason> {
    if put_error(ctx.skb.skb) == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

#[inline(always)]
fn in_hand() -> Option<&'static mut Told> {
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    ERROR.get_ptr_mut(0).map(|told| unsafe { &mut *told })
}

/// The connection to which the quoted packet belongs: it went the other way than the row of this leg is about.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_quoted(leg: u32) -> u32 {
    let (Ok(packet), Some(quoted), Some(told)) = (parse::kept(), related::quoted(), in_hand()) else {
        return 0;
    };
    // An error goes to who sent what it quotes. Another one is none about a connection: it was judged as what goes elsewhere.
    if !same(&packet.destination, &quoted.source) {
        return 0;
    }
    told.key.source = quoted.destination;
    told.key.destination = quoted.source;
    told.key.source_port = quoted.destination_port;
    told.key.destination_port = quoted.source_port;
    told.key.protocol = quoted.protocol;
    told.key.leg = leg as u8;
    told.key.zero = [0; 2];
    let Some(row) = connections::find(&told.key) else { return 0 };
    // SAFETY: the kernel's element: see `connections::find`.
    let row = unsafe { row.as_ref() };
    if row.flags & connection_flags::DSR != 0 {
        return 0;
    }
    told.quoted_source = row.destination;
    told.quoted_destination = row.source;
    told.destination = row.destination.address;
    // Routers on the way tell under their own names, but to a backend that knows nobody but this node.
    let by_receiver = same(&packet.source, &quoted.destination);
    let stands_in = leg == Leg::Question as u32 && row.flags & connection_flags::SNAT != 0;
    told.source = if by_receiver || stands_in { row.source.address } else { packet.source };
    1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put_error(skb: *mut __sk_buff) -> u32 {
    let (Ok(packet), Some(quoted), Some(told)) = (parse::kept(), related::quoted(), in_hand()) else {
        return 1;
    };
    put_all(&TcContext::new(skb), packet, quoted, told).is_err().into()
}

/// Bytes that are stored change no sum of the whole frame: for all of them, a checksum in it takes away what they add.
#[inline(always)]
fn put_all(ctx: &TcContext, packet: &mut Packet, quoted: &Packet, told: &Told) -> Result<(), Reason> {
    let outer = growth(packet, &told.source, &told.destination);
    let inner = growth(quoted, &told.quoted_source.address, &told.quoted_destination.address);
    let icmp = u32::from(packet.transport);
    let start = icmp + ICMP;
    let ports = [told.quoted_source.port, told.quoted_destination.port];
    let ports_grow = difference([quoted.source_port, quoted.destination_port], ports);
    let frame = Frame::of(ctx);
    let grows = if packet.v6 {
        frame.write(ETHERNET + 8, [told.source.words, told.destination.words])?;
        store(ctx, start + 8, &[told.quoted_source.address.words, told.quoted_destination.address.words])?;
        u64::from(outer) + u64::from(inner) + u64::from(ports_grow)
    } else {
        frame.write(ETHERNET + 12, [told.source.words[3], told.destination.words[3]])?;
        let checksum: u16 = frame.read(ETHERNET + 10)?;
        frame.write(ETHERNET + 10, changed(checksum, outer))?;
        let addresses = [told.quoted_source.address.words[3], told.quoted_destination.address.words[3]];
        store(ctx, start + 12, &addresses)?;
        // The quoted header's own checksum takes away what its addresses add.
        let checksum: u16 = load(ctx, start + 10)?;
        store(ctx, start + 10, &changed(checksum, inner))?;
        u64::from(ports_grow)
    };
    store(ctx, quoted.transport.into(), &ports)?;
    let checksum: u16 = load(ctx, icmp + CHECKSUM)?;
    store(ctx, icmp + CHECKSUM, &changed(checksum, folded(grows)))?;
    packet.source = told.source;
    packet.destination = told.destination;
    Ok(())
}
