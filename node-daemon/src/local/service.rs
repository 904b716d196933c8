//! The service: each call is a question to the core.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use weft_proto::v1::{self, node_local_service_server::NodeLocalService};

use super::{attach, judge, monitor};
use crate::{
    daemon::{Core, CoreGone, TablesError},
    kernel::probe::Probe,
    observe::events::Events,
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Debug)]
pub(super) struct Local {
    core: Core,
    events: Events,
    probe: Option<Probe>,
}

impl Local {
    pub(super) fn new(core: Core, events: Events, probe: Option<Probe>) -> Self {
        Self { core, events, probe }
    }
}

fn gone(error: CoreGone) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl NodeLocalService for Local {
    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        attach::attach(&self.core, request).await.map(Response::new)
    }

    async fn detach(
        &self,
        request: Request<v1::DetachRequest>,
    ) -> Result<Response<v1::DetachResponse>, Status> {
        let name = request.into_inner().name;
        match self.core.detach(name.clone()).await.map_err(gone)? {
            Ok(true) => Ok(Response::new(v1::DetachResponse {})),
            Ok(false) => Err(Status::not_found(format!("this node has no endpoint {name}"))),
            Err(text) => Err(Status::internal(text)),
        }
    }

    async fn list_endpoints(
        &self,
        _: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let endpoints = self.core.endpoints().await.map_err(gone)?;
        Ok(Response::new(v1::ListEndpointsResponse { endpoints }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.core.status().await.map(Response::new).map_err(gone)
    }

    type DumpMapStream = Answers<v1::DumpMapResponse>;

    async fn dump_map(
        &self,
        request: Request<v1::DumpMapRequest>,
    ) -> Result<Response<Self::DumpMapStream>, Status> {
        let rows = self.core.dump(request.into_inner().map).await.map_err(gone)?;
        let rows = rows.map_err(Status::invalid_argument)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(rows).map(Ok))))
    }

    async fn service_tables(
        &self,
        request: Request<v1::ServiceTablesRequest>,
    ) -> Result<Response<v1::ServiceTablesResponse>, Status> {
        let tables = self.core.service_tables(request.into_inner().name).await.map_err(gone)?;
        tables.map(Response::new).map_err(|error| match error {
            TablesError::NoService(_) => Status::not_found(error.to_string()),
            TablesError::Kernel(_) | TablesError::Image { .. } => Status::internal(error.to_string()),
        })
    }

    async fn judge(&self, request: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeResponse>, Status> {
        let probe = self.probe.clone();
        let probe = probe.ok_or_else(|| Status::unimplemented("this node has no kernel programs"))?;
        judge::judge(&self.core, probe, request.into_inner()).await.map(Response::new)
    }

    type MonitorStream = Answers<v1::MonitorResponse>;

    async fn monitor(
        &self,
        request: Request<v1::MonitorRequest>,
    ) -> Result<Response<Self::MonitorStream>, Status> {
        let events = monitor::monitor(self.core.clone(), &self.events, request.into_inner()).await?;
        Ok(Response::new(Box::pin(events)))
    }
}
