//! Attach, from the request to the answer: asks the core, and waits until the endpoint is open, refused, or the caller's
//! deadline is there.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status, metadata::MetadataMap};
use weft_proto::v1::{self, attach_request};

use crate::{
    daemon::{AttachError, AttachSpec, Core, CoreGone, EndpointState, Target},
    endpoint::interface::parse_mac,
    limits::ATTACH_WAIT_SECONDS,
};

/// Before the caller's own deadline, so that it gets our reason and not just its own timeout.
const ANSWER_EARLY: Duration = Duration::from_millis(100);

pub(super) async fn attach(
    core: &Core,
    request: Request<v1::AttachRequest>,
) -> Result<v1::AttachResponse, Status> {
    let began = Instant::now();
    let deadline = began + wait(request.metadata());
    let request = request.into_inner();
    let must_be_ready = request.wait;
    let spec = spec(request)?;
    let name = spec.name.clone();
    let attached = attach_until(core, spec, deadline).await?;
    let endpoint = if must_be_ready { ready_until(core, &name, deadline).await? } else { attached };
    let took = prost_types::Duration::try_from(began.elapsed()).unwrap_or_default();
    Ok(v1::AttachResponse { endpoint: Some(endpoint), took: Some(took) })
}

/// A node that has just been started has no prefixes until its controller has spoken.
async fn attach_until(core: &Core, spec: AttachSpec, deadline: Instant) -> Result<v1::Endpoint, Status> {
    let mut changed = core.changed();
    loop {
        changed.mark_unchanged();
        let why = match core.attach(spec.clone()).await.map_err(gone)? {
            Ok(endpoint) => return Ok(endpoint),
            Err(AttachError::Invalid(text)) => return Err(Status::invalid_argument(text)),
            Err(AttachError::Taken(text)) => return Err(Status::already_exists(text)),
            Err(AttachError::Exhausted(text)) => return Err(Status::resource_exhausted(text)),
            Err(AttachError::Internal(text)) => return Err(Status::internal(text)),
            Err(AttachError::NotYet(text)) => text,
        };
        match timeout_at(deadline, changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(gone(CoreGone)),
            Err(_) => return Err(Status::deadline_exceeded(format!("not attached: {why}"))),
        }
    }
}

async fn ready_until(core: &Core, name: &str, deadline: Instant) -> Result<v1::Endpoint, Status> {
    let mut changed = core.changed();
    loop {
        changed.mark_unchanged();
        let why = match core.endpoint(name.to_owned()).await.map_err(gone)? {
            EndpointState::Ready(endpoint) => return Ok(endpoint),
            EndpointState::Refused(refusal) if refusal.taken => {
                return Err(Status::already_exists(refusal.reason));
            }
            EndpointState::Refused(refusal) => return Err(Status::invalid_argument(refusal.reason)),
            EndpointState::Gone => return Err(Status::aborted(format!("{name} was detached meanwhile"))),
            EndpointState::Init(endpoint) => endpoint.status.map(|status| status.reason).unwrap_or_default(),
        };
        match timeout_at(deadline, changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(gone(CoreGone)),
            Err(_) => {
                let text = format!("{name} is attached, but still in init: {why}");
                return Err(Status::deadline_exceeded(text));
            }
        }
    }
}

fn gone(error: CoreGone) -> Status {
    Status::unavailable(error.to_string())
}

fn spec(request: v1::AttachRequest) -> Result<AttachSpec, Status> {
    let mac = if request.mac.is_empty() {
        None
    } else {
        let wrong =
            || Status::invalid_argument(format!("mac: \"{}\" is not six octets as 02:00:…", request.mac));
        Some(parse_mac(&request.mac).ok_or_else(wrong)?)
    };
    let target = match request.target {
        Some(attach_request::Target::Netns(netns)) if !netns.is_empty() => Target::Netns(netns),
        Some(attach_request::Target::Interface(name)) if !name.is_empty() => Target::Interface { name, mac },
        _ => return Err(Status::invalid_argument("expected netns or interface")),
    };
    if mac.is_some() && matches!(target, Target::Netns(_)) {
        return Err(Status::invalid_argument(
            "mac: only with interface; in a namespace the daemon gives one",
        ));
    }
    let limits = request.limits.unwrap_or_default();
    if limits != v1::EndpointLimits::default() {
        return Err(Status::invalid_argument("limits: not supported yet"));
    }
    Ok(AttachSpec {
        name: request.name,
        labels: request.labels.into_iter().collect(),
        target,
        addresses: request.addresses,
        interface_name: if request.interface_name.is_empty() {
            "eth0".to_owned()
        } else {
            request.interface_name
        },
        container_id: request.container_id,
        ingress_bits_per_second: limits.ingress_bits_per_second,
        egress_bits_per_second: limits.egress_bits_per_second,
    })
}

/// How long the caller waits: gRPC sends it as a number and a unit.
fn wait(metadata: &MetadataMap) -> Duration {
    let given = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
    given.unwrap_or(Duration::from_secs(ATTACH_WAIT_SECONDS)).saturating_sub(ANSWER_EARLY)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_in_all_its_units() {
        assert_eq!(parse_timeout("2H"), Some(Duration::from_hours(2)));
        assert_eq!(parse_timeout("3M"), Some(Duration::from_mins(3)));
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_timeout("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse_timeout("5x"), None);
        assert_eq!(parse_timeout(""), None);
    }
}
