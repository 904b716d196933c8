//! A made packet before this node's kernel programs.

use tokio::task::spawn_blocking;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use weft_proto::v1;
use weft_shared::balance::image::ImageBackend;

use crate::{
    balance::choice::Why,
    daemon::{Core, backend_in_words},
    kernel::probe::{Called, Probe, ProbeError},
    observe::{
        made::{Made, SOURCE_PORT},
        words::{Epoch, in_words},
    },
};

pub(super) async fn judge(
    core: &Core,
    probe: Probe,
    request: v1::JudgeRequest,
) -> Result<v1::JudgeResponse, Status> {
    let made = made(&request)?;
    let judged = spawn_blocking(move || probe.judge(&made)).await;
    let judged =
        judged.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| status(&error))?;
    let event = judged.event.map(|event| in_words(&event, &core.names(), Epoch::now()));
    let outcome = judged.tried.map(|(_, reason)| reason.name().to_owned()).unwrap_or_default();
    Ok(v1::JudgeResponse { event, outcome, service: judged.service.map(|called| call(&called, &made)) })
}

fn call(called: &Called, made: &Made) -> v1::JudgedCall {
    let slots = called.image.as_ref().map_or(0, |image| image.slots);
    // The port that the packet gets.
    let backend = |one: &ImageBackend| {
        let port = if one.port == 0 { made.port } else { one.port };
        backend_in_words(&ImageBackend { port, ..*one }, slots)
    };
    let taking = called.image.iter().flat_map(|image| &image.backends).filter(|one| one.new_flows);
    let choice = match called.why {
        None => v1::BackendChoice::Unspecified,
        Some(Why::Hash) => v1::BackendChoice::Hash,
        Some(Why::Affinity) => v1::BackendChoice::Affinity,
        Some(Why::Connection) => v1::BackendChoice::Connection,
    };
    v1::JudgedCall {
        slot: called.slot,
        source_port: made.source_port.into(),
        backend: called.backend.as_ref().map(backend),
        choice: choice.into(),
        at_sockets: called.at_sockets,
        backends: taking.map(backend).collect(),
    }
}

fn status(error: &ProbeError) -> Status {
    match error {
        ProbeError::NobodyHere(..) => Status::failed_precondition(error.to_string()),
        ProbeError::Packet(_) => Status::invalid_argument(error.to_string()),
        ProbeError::Kernel(_) => Status::internal(error.to_string()),
    }
}

fn made(request: &v1::JudgeRequest) -> Result<Made, Status> {
    let address = |field, text: &str| {
        text.parse().map_err(|_| wrong(field, &format!("\"{text}\" is not an address such as 10.200.1.2")))
    };
    let port =
        |field, port: u32| port.try_into().map_err(|_| wrong(field, &format!("{port}, expected 0 to 65535")));
    Ok(Made {
        source: address("source", &request.source)?,
        destination: address("destination", &request.destination)?,
        protocol: request.protocol_number.try_into().map_err(|_| {
            wrong("protocolNumber", &format!("{}, expected 0 to 255", request.protocol_number))
        })?,
        port: port("port", request.port)?,
        source_port: port("sourcePort", request.source_port.unwrap_or(SOURCE_PORT.into()))?,
    })
}

fn wrong(field: &str, message: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, message);
    Status::with_error_details(tonic::Code::InvalidArgument, format!("{field}: {message}"), details)
}
