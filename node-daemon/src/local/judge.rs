//! A made packet before this node's kernel programs.

use tokio::task::spawn_blocking;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use weft_proto::v1;

use crate::{
    daemon::Core,
    kernel::probe::{Probe, ProbeError},
    observe::{
        made::Made,
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
    Ok(v1::JudgeResponse { event, outcome: judged.reason.name().to_owned() })
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
    Ok(Made {
        source: address("source", &request.source)?,
        destination: address("destination", &request.destination)?,
        protocol: request.protocol_number.try_into().map_err(|_| {
            wrong("protocolNumber", &format!("{}, expected 0 to 255", request.protocol_number))
        })?,
        port: request
            .port
            .try_into()
            .map_err(|_| wrong("port", &format!("{}, expected 0 to 65535", request.port)))?,
    })
}

fn wrong(field: &str, message: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, message);
    Status::with_error_details(tonic::Code::InvalidArgument, format!("{field}: {message}"), details)
}
