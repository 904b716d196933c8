//! Services at the packet: who is called, with checksums that another implementation finds right, and how answers come back.

mod directly;
mod elsewhere;
mod endpoints;
mod errors;
mod forwarded;
mod garbage;
mod outside;
mod packets;
mod refusals;
mod spread;

use std::{net::IpAddr, sync::Arc};

use weft_noded::{balance::tables::Step, kernel::Datapath as _};
use weft_shared::{
    balance::table::{Backend, Manner, Table},
    layout::service::{Frontend, FrontendKey},
};

use crate::{
    harness::Datapath,
    world::{Family, Party},
};

pub(super) const SCTP: u8 = 132;

/// Where clients call; nobody has the address.
pub(super) const FRONTEND: Party = Party {
    v4: std::net::Ipv4Addr::new(10, 96, 0, 10),
    v6: std::net::Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10),
};
/// Another one, with the same backends.
pub(super) const TWIN: Party = Party {
    v4: std::net::Ipv4Addr::new(10, 96, 0, 11),
    v6: std::net::Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x11),
};
pub(super) const PORT: u16 = 80;
pub(super) const TARGET: u16 = 8080;
pub(super) const SLOT: u32 = 1;

pub(super) const MANNER: Manner = Manner::plain(251);

pub(super) fn backend(party: Party, family: Family, port: u16) -> Backend {
    Backend { address: party.address(family), port, weight: 1, new_flows: true, local: false }
}

pub(super) fn table(parties: &[Party], family: Family) -> Table {
    Table::new(MANNER, parties.iter().map(|party| backend(*party, family, TARGET)).collect())
}

pub(super) fn key(party: Party, family: Family, protocol: u8) -> FrontendKey {
    FrontendKey::address(party.address(family).into(), PORT.to_be(), protocol)
}

impl Datapath {
    pub(super) fn put_table(&mut self, slot: u32, table: Option<&Table>) {
        let tables = vec![(slot, table.map(|table| Arc::new(table.clone())))];
        self.object.write_services(&[Step::Tables { tables }]).unwrap();
    }

    pub(super) fn put_frontend_row(&mut self, key: FrontendKey, frontend: Frontend) {
        self.object.write_services(&[Step::Frontend { key, frontend: Some(frontend) }]).unwrap();
    }

    pub(super) fn put_frontend(&mut self, key: FrontendKey, slot: Option<u32>) {
        let frontend = slot.map(|slot| Frontend { inside: slot, outside: slot, flags: 0 });
        self.object.write_services(&[Step::Frontend { key, frontend }]).unwrap();
    }

    /// The service at a frontend, for every protocol.
    pub(super) fn serve(&mut self, frontend: Party, family: Family, table: &Table) {
        self.put_table(SLOT, Some(table));
        for protocol in [crate::packets::TCP, crate::packets::UDP, SCTP] {
            self.put_frontend(key(frontend, family, protocol), Some(SLOT));
        }
    }
}

/// A service of these backends.
pub(super) fn served_by(parties: &[Party], family: Family) -> Datapath {
    let mut datapath = Datapath::new();
    datapath.serve(FRONTEND, family, &table(parties, family));
    datapath
}

/// An address and a port.
pub(super) type Place = (IpAddr, u16);

pub(super) fn at(party: Party, family: Family, port: u16) -> Place {
    (party.address(family), port)
}
