//! What the kernel holds of a service, read from its maps: for people, and for whoever must know what really happens.

use std::collections::BTreeSet;

use weft_proto::v1;
use weft_shared::{
    balance::image::{Image, ImageBackend, ImageError},
    layout::service::FrontendKey,
    service::shares,
};

use super::State;
use crate::{
    balance::{service::Frontend, view},
    kernel::{Datapath, KernelError, links::Links},
};

#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    #[error("this node was told of no service \"{0}\"")]
    NoService(String),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the table in slot {slot}: {source}")]
    Image { slot: u32, source: ImageError },
}

impl<D: Datapath, L: Links> State<D, L> {
    pub(super) fn service_tables(&mut self, name: &str) -> Result<v1::ServiceTablesResponse, TablesError> {
        let rejected = self.desired.rejected().chain(self.unrealised.iter().cloned());
        let rejected = rejected
            .into_iter()
            .find(|resource| resource.r#type() == v1::ResourceType::Service && resource.name == name)
            .map(|resource| resource.reason);
        let Some(service) = self.desired.services().get(name).cloned() else {
            // One that was never understood has no frontends here.
            let rejected = rejected.ok_or_else(|| TablesError::NoService(name.to_owned()))?;
            return Ok(v1::ServiceTablesResponse { rejected, ..v1::ServiceTablesResponse::default() });
        };
        let held = self.datapath.read_services()?;
        let (mut frontends, mut slots) = (Vec::new(), BTreeSet::new());
        for frontend in &service.frontends {
            for v4 in [true, false] {
                let Some(key) = view::key(frontend, v4) else { continue };
                let row = held.frontends.get(&key);
                slots.extend(row.into_iter().flat_map(|row| [row.inside, row.outside]));
                let (inside, outside) = row.map_or((0, 0), |row| (row.inside, row.outside));
                let frontend = Some(as_written(frontend, &key));
                frontends.push(v1::TableFrontend { frontend, ipv6: !v4, inside, outside });
            }
        }
        let tables = slots.into_iter().filter_map(|slot| self.table(slot).transpose());
        let tables = tables.collect::<Result<_, _>>()?;
        Ok(v1::ServiceTablesResponse { frontends, tables, rejected: rejected.unwrap_or_default() })
    }

    fn table(&mut self, slot: u32) -> Result<Option<v1::ServiceTable>, TablesError> {
        let elements = self.datapath.read_table(slot)?;
        let image = Image::parse(&elements).map_err(|source| TablesError::Image { slot, source })?;
        Ok(image.map(|image| in_words(slot, &image)))
    }
}

fn as_written(frontend: &Frontend, key: &FrontendKey) -> v1::Frontend {
    let protocol = match frontend.protocol {
        6 => v1::Protocol::Tcp,
        17 => v1::Protocol::Udp,
        132 => v1::Protocol::Sctp,
        _ => v1::Protocol::Unspecified,
    };
    let kind = match (frontend.address, frontend.cluster) {
        (None, _) => v1::FrontendType::NodePort,
        (Some(_), true) => v1::FrontendType::Cluster,
        (Some(_), false) => v1::FrontendType::External,
    };
    v1::Frontend {
        address: frontend.address.map(|address| address.to_string()).unwrap_or_default(),
        port: u16::from_be(key.port).into(),
        protocol: protocol.into(),
        r#type: kind.into(),
    }
}

fn in_words(slot: u32, image: &Image) -> v1::ServiceTable {
    let algorithm = if image.random { v1::Algorithm::Random } else { v1::Algorithm::Maglev };
    let forwarding = if image.dsr { v1::ForwardingMode::Dsr } else { v1::ForwardingMode::Snat };
    v1::ServiceTable {
        slot,
        maglev_slots: image.slots.into(),
        algorithm: algorithm.into(),
        forwarding_mode: forwarding.into(),
        sources: image.sources,
        end_connections: image.ends_connections,
        affinity_seconds: image.affinity_seconds,
        backends: image.backends.iter().map(|backend| backend_in_words(backend, image.slots)).collect(),
    }
}

/// For people, with its part of so many slots.
pub fn backend_in_words(backend: &ImageBackend, slots: u16) -> v1::TableBackend {
    // There are no more of them than 16 bits count.
    let own = u16::try_from(backend.slots).unwrap_or(u16::MAX);
    v1::TableBackend {
        address: backend.address.to_string(),
        port: backend.port.into(),
        weight: backend.weight.into(),
        new_flows: backend.new_flows,
        local: backend.local,
        slots: backend.slots,
        share_basis_points: shares::basis_points(own, slots.into()),
    }
}
