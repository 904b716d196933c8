//! A subject's policy: for each peer a *rulebook*, and in the rulebook a row for the ports that a flow may go to.
//!
//! A flow finds its rulebook by the peer's exact identity (`PEER_RULES`), and where there is none, by the peer's class (in
//! the subject's own row). What is in a rulebook says all there is to say: whatever rules of whatever tier are about the
//! peer, the compiler has walked them. So a verdict takes one hash and one longest-prefix look-up, however many rules,
//! peers and tiers there are; where the rulebook is short, a walk through its rows instead of the second ([`Book`]).
//!
//! [`Book`]: super::Book

use bytemuck::{Pod, Zeroable};

use super::Class;

/// Which of a subject's verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    Ingress = 1,
    Egress = 2,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Action {
    Allow = 1,
    Deny = 2,
}

/// Rulebooks of classes in a subject's row: one for each direction and class.
pub const CLASS_RULEBOOKS: usize = Direction::ALL.len() * Class::ALL.len();

/// The place of a class's rulebook in a subject's row.
#[inline(always)]
pub const fn class_rulebook(direction: Direction, class: Class) -> usize {
    (direction as usize - 1) * Class::ALL.len() + class as usize - 1
}

/// Key of `PEER_RULES`: what a subject's policy says of a peer in one direction. No row: as of the peer's class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PeerKey {
    /// The subject's identity.
    pub subject: u32,
    /// The peer's identity: of endpoints, of nodes, or local (of a prefix). Never a class.
    pub peer: u32,
    /// A [`Direction`].
    pub direction: u32,
}

/// Ports of one protocol, all ports of one, or everything: what a row of a rulebook is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Significant bits of protocol and port: 0 (everything), 8 (a protocol), or up to 16 more.
    pub bits: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// The flow's destination port in its original direction; ICMP: type, then code; others: 0.
    pub port: u16,
}

impl PortKey {
    /// The row that each rulebook has, for what no other is about.
    pub const EVERYTHING: Self = Self { bits: 0, protocol: 0, port: 0 };
    /// Of one protocol, whatever port.
    pub const PROTOCOL_BITS: u8 = 8;
    /// All bits.
    pub const FULL_BITS: u8 = Self::PROTOCOL_BITS + 16;

    /// One port.
    pub const fn exact(protocol: u8, port: u16) -> Self {
        Self { bits: Self::FULL_BITS, protocol, port }
    }

    /// The same with fewer bits.
    #[must_use]
    pub const fn cut(self, bits: u8) -> Self {
        let whole = (self.protocol as u32) << 16 | self.port as u32;
        let [_, protocol, high, low] = (whole & !((1 << (Self::FULL_BITS - bits)) - 1)).to_be_bytes();
        Self { bits, protocol, port: u16::from_be_bytes([high, low]) }
    }
}

/// Key of `RULES`, a longest-prefix-match map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct RuleKey {
    /// Host order, as the kernel wants it.
    pub bits: u32,
    /// Network order, so that it is matched from its most significant byte.
    pub rulebook: [u8; 4],
    /// IANA protocol number.
    pub protocol: u8,
    /// Network order.
    pub port: [u8; 2],
    pub zero: u8,
}

impl RuleKey {
    /// Bits of the rulebook, which every key has.
    pub const RULEBOOK_BITS: u32 = 32;
    /// All bits: what a look-up uses.
    pub const FULL_BITS: u32 = Self::RULEBOOK_BITS + PortKey::FULL_BITS as u32;

    /// A rulebook's row.
    #[inline(always)]
    pub const fn new(rulebook: u32, port: PortKey) -> Self {
        Self {
            bits: Self::RULEBOOK_BITS + port.bits as u32,
            rulebook: rulebook.to_be_bytes(),
            protocol: port.protocol,
            port: port.port.to_be_bytes(),
            zero: 0,
        }
    }

    /// What the row is about; `None`: no key that [`RuleKey::new`] makes.
    pub const fn port_key(self) -> Option<PortKey> {
        let Some(bits) = self.bits.checked_sub(Self::RULEBOOK_BITS) else { return None };
        if bits > PortKey::FULL_BITS as u32 {
            return None;
        }
        let [bits, ..] = bits.to_le_bytes();
        Some(PortKey { bits, protocol: self.protocol, port: u16::from_be_bytes(self.port) })
    }
}

/// Value of `RULES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PolicyRow {
    /// An [`Action`]; anything else drops.
    pub action: u32,
    /// The number of the rule that decided; 0: none (the fleet's default, or what holds whatever policies say).
    pub rule: u32,
    /// What the action would be if audit policies were enforced, and by which rule; the same where none differs.
    pub audit_action: u32,
    pub audit_rule: u32,
}

impl PolicyRow {
    /// Enforced, and no audit policy differs.
    pub const fn of(action: Action, rule: u32) -> Self {
        Self { action: action as u32, rule, audit_action: action as u32, audit_rule: rule }
    }

    /// The same row, audited as the other one says: a rule is told where it decides otherwise.
    #[must_use]
    pub const fn audited_as(self, (action, rule): (u32, u32)) -> Self {
        let audit_rule = if action == self.action { self.rule } else { rule };
        Self { audit_action: action, audit_rule, ..self }
    }
}
