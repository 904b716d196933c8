//! What operators and CI call.
mod adopt;
mod apply;
mod delete;
pub mod errors;
mod explain;
mod frontends;
mod plan;
mod read;
mod references;
mod services;
mod status;
mod wait;
mod warnings;
mod watch;

use std::{fmt, pin::Pin, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weft_proto::v1::{self, operator_service_server::OperatorService};

use crate::{limits, store::Store, stream::Hub};

#[derive(Clone)]
pub struct Operator {
    store: Arc<dyn Store>,
    store_id: String,
    hub: Arc<Hub>,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
    /// Whose turn it is to work out a plan: it takes a processor.
    plans: Arc<Semaphore>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Operator {
    pub fn new(store: Arc<dyn Store>, store_id: String, hub: Arc<Hub>, stop: CancellationToken) -> Self {
        let streams = Arc::new(Semaphore::new(limits::OPERATOR_STREAMS_MAX));
        let plans = Arc::new(Semaphore::new(limits::PLANS_AT_ONCE));
        Self { store, store_id, hub, stop, streams, plans }
    }

    /// The store's revision, once the fleet shows it: whoever has written sees what they wrote.
    async fn caught_up(&self) -> Result<u64, Status> {
        let revision = self.store.revision().await.map_err(errors::store)?;
        self.hub.wait_applied(revision).await;
        Ok(revision)
    }

    fn room_for_a_stream(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let most = limits::OPERATOR_STREAMS_MAX;
            Status::resource_exhausted(format!("{most} watches and waits are open already"))
        })
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Operator")
    }
}

#[tonic::async_trait]
impl OperatorService for Operator {
    type WatchStream = Answers<v1::WatchResponse>;
    type WaitRealisedStream = Answers<v1::WaitRealisedResponse>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        self.apply_objects(request.into_inner()).await.map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.get_object(request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        self.list_objects(request.into_inner()).await.map(Response::new)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.watch_objects(request.into_inner()).await.map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.delete_object(request.into_inner()).await.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        self.explain_flow(&request.into_inner()).await.map(Response::new)
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        self.plan_objects(request.into_inner()).await.map(Response::new)
    }

    async fn service_status(
        &self,
        request: Request<v1::ServiceStatusRequest>,
    ) -> Result<Response<v1::ServiceStatusResponse>, Status> {
        self.services(request.into_inner()).await.map(Response::new)
    }

    async fn fleet_status(
        &self,
        _: Request<v1::FleetStatusRequest>,
    ) -> Result<Response<v1::FleetStatusResponse>, Status> {
        self.status().await.map(Response::new)
    }

    async fn fleet_adopt(
        &self,
        request: Request<v1::FleetAdoptRequest>,
    ) -> Result<Response<v1::FleetAdoptResponse>, Status> {
        self.adopt(request.into_inner()).await.map(Response::new)
    }

    async fn wait_realised(
        &self,
        request: Request<v1::WaitRealisedRequest>,
    ) -> Result<Response<Self::WaitRealisedStream>, Status> {
        self.wait(request.into_inner()).await.map(Response::new)
    }
}
