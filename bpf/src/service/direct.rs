//! Packets to services whose backends answer clients themselves, where XDP could not send them on: by another device, to a next hop
//! whose MAC is not known yet, in fragments, with options or extension headers. They go on inside others, as from XDP (see
//! `xdp::tunnel`). So do ICMP errors about what such a backend has answered: they come to whoever has the frontend's address.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::bpf_skb_adjust_room,
    programs::TcContext,
};
use weft_shared::layout::{
    Address, Class, Leg, Reason, connection_flags,
    service::{AffinityKey, ClientKind, FrontendKey, backend_flags, frontend_flags, packet_hash},
};

use super::{
    Call, FORMER, NO_PARTY, copy_address, copy_backend, copy_party, find_former, in_hand, known, party,
    too_long,
};
use crate::{
    balance::{self, Table},
    connections,
    deliver::{self, PACKET_HOST, TC_ACT_REDIRECT},
    events::Done,
    fragment,
    frame::{ETHERNET, Frame, IPV4, IPV6, load, meta},
    maps,
    parse::{self, Packet, protocol},
    related,
    route::{self, Way},
    xdp::{
        hop, rate,
        tunnel::{Around, mark_of},
    },
};

/// Whether the packet in hand, to a backend elsewhere, goes on inside another one.
#[inline(always)]
pub fn is_meant() -> bool {
    in_hand().is_some_and(|call| call.row.flags & connection_flags::DSR != 0)
}

/// Sends it, or tells the client that it is too long.
#[inline(always)]
pub fn send(ctx: &TcContext, now: u64) -> Result<Done, Reason> {
    // A frame for others was flooded to all, and they send it on.
    if meta(ctx).pkt_type != PACKET_HOST {
        return Ok(deliver::to_stack());
    }
    const FORWARDED: u64 = Reason::ServiceForwarded as u64;
    let number = match send_inside(ctx.skb.skb) {
        // From here, and not from there, for the stack's sake.
        FORWARDED => remember_direct(now),
        too_long if too_long & TOO_LONG != 0 => {
            too_long::tell_length(ctx.skb.skb, (too_long >> 16) as u16, too_long as u16)
        }
        number => number as u32,
    };
    match Reason::from_number(number).unwrap_or(Reason::KernelError) {
        reason if reason.is_drop() => Err(reason),
        reason => fragment::remember(parse::kept()?).map(|()| Done { reason, code: TC_ACT_REDIRECT as i32 }),
    }
}

/// What [`send_inside`] answers, if not the number of a reason: above the bytes that fit, those that the packet has.
const TOO_LONG: u64 = 1 << 32;

/// A function of its own, as those below: callers have no room on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_inside(skb: *mut __sk_buff) -> u64 {
    let (Ok(packet), Some(call)) = (parse::kept(), in_hand()) else { return Reason::KernelError as u64 };
    match try_send(&TcContext::new(skb), packet, call) {
        Ok(number) => number,
        Err(reason) => reason as u64,
    }
}

#[inline(always)]
fn try_send(ctx: &TcContext, packet: &Packet, call: &Call) -> Result<u64, Reason> {
    let (length, longest) = lengths(ctx, packet)?;
    // A copy: a map's key is on the stack (until kernel 6.2 it may not be what a function was given).
    let backend = call.row.destination.address;
    let peer = maps::peer_of(&backend);
    if peer.ifindex != 0 || peer.class == Class::Host as u32 {
        return Err(Reason::ServiceElsewhere);
    }
    let to = hop::receiver(&backend, &peer).ok_or(Reason::ServiceElsewhere)?;
    let v4 = to.is_v4();
    let around = Around {
        v6: packet.v6,
        length,
        tos: service_type(ctx, packet.v6)?,
        mark: mark_of(&bytemuck::cast(backend)),
        from: hop::own_address(v4).ok_or(Reason::KernelError)?,
        to: bytemuck::cast(to),
    };
    if around.from == hop::NOBODY || around.to == hop::NOBODY {
        return Err(Reason::ServiceElsewhere);
    }
    let header = if v4 { IPV4 } else { IPV6 } as u32;
    // What was put together on its way here must not outgrow the length's field.
    if length + header > u32::from(u16::MAX) {
        return Err(Reason::ServiceTooLong);
    }
    let own: Address = bytemuck::cast(around.from);
    let inside = if packet.v6 { protocol::IPV6 } else { protocol::IPIP };
    match route::look_up(ctx, &own, &to, !v4, inside, (longest + header) as u16) {
        Some(Way::By(device)) => {
            deliver::hop(ctx, packet.v6)?;
            wrap(ctx, v4, &around)?;
            if route::by(device) != TC_ACT_REDIRECT {
                return Err(Reason::KernelError);
            }
            Ok(Reason::ServiceForwarded as u64)
        }
        Some(Way::Short(mtu)) => {
            let fits = u64::from(mtu).saturating_sub(header.into());
            Ok(TOO_LONG | u64::from(longest as u16) << 16 | fits)
        }
        None => Err(Reason::NoRoute),
    }
}

/// Bytes of the packet, and of the longest that it is on the wire: the kernel puts together what belongs together, and takes it
/// apart again.
#[inline(always)]
fn lengths(ctx: &TcContext, packet: &Packet) -> Result<(u32, u32), Reason> {
    let frame = Frame::of(ctx);
    let field: u16 = if packet.v6 { frame.read(ETHERNET + 4)? } else { frame.read(ETHERNET + 2)? };
    let length = u32::from(u16::from_be(field)) + if packet.v6 { IPV6 as u32 } else { 0 };
    let part = meta(ctx).gso_size;
    if part == 0 {
        return Ok((length, length));
    }
    let transport = u32::from(packet.transport);
    let header = match packet.protocol {
        protocol::TCP => u32::from(load::<u8>(ctx, transport + 12)? >> 4) * 4,
        protocol::UDP => 8,
        _ => return Ok((length, length)),
    };
    Ok((length, length.min(transport - ETHERNET as u32 + header + part)))
}

/// Type of service, or traffic class.
#[inline(always)]
fn service_type(ctx: &TcContext, v6: bool) -> Result<u8, Reason> {
    let first = u16::from_be(Frame::of(ctx).read(ETHERNET)?);
    Ok(if v6 { first >> 4 } else { first } as u8)
}

#[inline(always)]
fn wrap(ctx: &TcContext, v4: bool, around: &Around) -> Result<(), Reason> {
    let (header, family) =
        if v4 { (IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) } else { (IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) };
    let flags = family | BPF_F_ADJ_ROOM_FIXED_GSO;
    // SAFETY: the kernel's context and plain numbers.
    let failed =
        unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast(), header as i32, BPF_ADJ_ROOM_MAC, flags.into()) };
    if failed != 0 {
        return Err(Reason::KernelError);
    }
    let frame = Frame::of(ctx);
    if v4 {
        around.write_v4(&frame.head().ok_or(Reason::KernelError)?);
    } else {
        around.write_v6(&frame.head().ok_or(Reason::KernelError)?);
    }
    Ok(())
}

/// Remembers the backend of a connection that was not known. Answers don't come back here: there is one row.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_direct(now: u64) -> u32 {
    let Some(call) = in_hand() else { return Reason::KernelError as u32 };
    let remembered = !call.fresh || rate::allows(now) && connections::put(&call.key, &call.row);
    let reason = if remembered { Reason::ServiceForwarded } else { Reason::ServiceUnremembered };
    reason as u32
}

/// Whether the error in hand, which has been read, is about what the backend of such a service has answered; then the backend is in hand:
/// that of the connection, or where this node does not know it, whom any node would give it.
#[inline(always)]
pub fn find_quoted() -> bool {
    find_direct() != 0
}

/// One step after the other, for the stack's sake.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_direct() -> u32 {
    (find_quoted_row() != 0 || find_quoted_service() != 0 && place_quoted(find_former(FORMER)) != 0).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_quoted_row() -> u32 {
    let (Some(quoted), Some(call)) = (related::quoted(), in_hand()) else { return 0 };
    call.fresh = false;
    call.row.flags = connection_flags::DSR;
    copy_address(&mut call.key.source, &quoted.destination);
    copy_address(&mut call.key.destination, &quoted.source);
    call.key.source_port = quoted.destination_port;
    call.key.destination_port = quoted.source_port;
    call.key.protocol = quoted.protocol;
    call.key.leg = Leg::Question as u8;
    call.key.zero = [0; 2];
    let Some(row) = known(&call.key).filter(|row| row.flags & connection_flags::DSR != 0) else { return 0 };
    copy_party(&mut call.row.destination, &row.destination);
    1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_quoted_service() -> u32 {
    let Some(call) = in_hand() else { return 0 };
    let Call { key, .. } = call;
    let frontend = FrontendKey::address(key.destination, key.destination_port, key.protocol);
    let Some(frontend) = balance::frontend(&frontend) else { return 0 };
    let Some(table) = Table::of(frontend.outside) else { return 0 };
    if frontend.flags & frontend_flags::CLUSTER != 0 || !table.is_dsr() || !table.admits(&key.source) {
        return 0;
    }
    call.row.table = frontend.outside;
    call.client =
        AffinityKey { service: frontend.outside, kind: ClientKind::Address as u32, client: call.key.source };
    call.former = NO_PARTY;
    if table.affinity_nanoseconds() != 0
        && let Some(kept) = balance::kept(&call.client, &table)
    {
        call.former = kept;
    }
    1
}

/// `found`: whether the client's last backend is in hand.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn place_quoted(found: u32) -> u32 {
    let Some(call) = in_hand() else { return 0 };
    if found == 0 {
        let client = party(call.key.source, call.key.source_port);
        let called = party(call.key.destination, call.key.destination_port);
        let hash = packet_hash(&client, &called, call.key.protocol);
        match Table::of(call.row.table).and_then(|table| table.place(hash)) {
            Some(backend) => copy_backend(&mut call.backend, backend),
            None => return 0,
        }
    }
    // Of what an endpoint of this node has answered, this node would know.
    if call.backend.flags & backend_flags::LOCAL != 0 {
        return 0;
    }
    copy_address(&mut call.row.destination.address, &call.backend.address);
    1
}
