//! Backends that are listed by their addresses.

use std::collections::BTreeMap;

use weft_proto::v1;

use super::{
    super::{
        model::{Backend, BackendState},
        shares::{BACKENDS_MAX, WEIGHT_MAX},
    },
    frontend,
};
use crate::policy::parse::Errors;

pub(super) fn backends(errors: &mut Errors, messages: &[v1::Backend]) -> Vec<Backend> {
    // Of each family: how many a table carries is checked beside the weights.
    let (count, most) = (messages.len(), 2 * BACKENDS_MAX);
    if count > most {
        errors
            .add("backends", format!("{count} backends, at most {BACKENDS_MAX} of each family are allowed"));
        return Vec::new();
    }
    let mut seen = BTreeMap::new();
    let mut backends = Vec::with_capacity(count);
    for (index, message) in messages.iter().enumerate() {
        let path = format!("backends[{index}]");
        let Some(backend) = backend(errors, message, &path) else { continue };
        let place = (backend.address, backend.port);
        match seen.get(&place) {
            Some(first) => {
                errors.add(
                    path,
                    format!("has the address and port of backends[{first}]: give that one more weight"),
                );
            }
            None => drop(seen.insert(place, index)),
        }
        backends.push(backend);
    }
    backends.sort_unstable_by_key(|backend| (backend.address, backend.port));
    backends
}

fn backend(errors: &mut Errors, message: &v1::Backend, path: &str) -> Option<Backend> {
    let address = errors.take(frontend::address(&message.address, &format!("{path}.address")));
    // 0 stands for an absent one.
    let port = match message.port {
        0 => None,
        port => Some(errors.take(frontend::port(port, &format!("{path}.port")))?),
    };
    let weight = match message.weight {
        None => Some(1),
        Some(weight) => {
            let fits = u16::try_from(weight).ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
            if fits.is_none() {
                let text = format!("{weight} is out of range: expected 1 to {WEIGHT_MAX}");
                let hint = if weight == 0 { "; state: maintenance takes a backend out" } else { "" };
                errors.add(format!("{path}.weight"), text + hint);
            }
            fits
        }
    };
    let state = match v1::BackendState::try_from(message.state) {
        Ok(v1::BackendState::Unspecified | v1::BackendState::Active) => Some(BackendState::Active),
        Ok(v1::BackendState::Terminating) => Some(BackendState::Terminating),
        Ok(v1::BackendState::Quarantined) => Some(BackendState::Quarantined),
        Ok(v1::BackendState::Maintenance) => Some(BackendState::Maintenance),
        Err(_) => {
            errors.add(format!("{path}.state"), "expected active, terminating, quarantined or maintenance");
            None
        }
    };
    Some(Backend { address: address?, port, weight: weight?, state: state? })
}
