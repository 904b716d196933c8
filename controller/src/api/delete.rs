//! Delete: what operators wrote, and nodes that are gone.
use tonic::Status;
use weft_proto::v1::{self, Kind};

use super::{
    Operator, errors,
    read::{known_kind, not_found},
};
use crate::{
    keys, limits,
    plan::{Contended, Plan},
    removal,
};

impl Operator {
    pub(super) async fn delete_object(
        &self,
        request: v1::DeleteRequest,
    ) -> Result<v1::DeleteResponse, Status> {
        let kind = known_kind(request.kind)?;
        let refused = |why: &str| Err(Status::failed_precondition(format!("{why} (\"{}\")", request.name)));
        let revision = match kind {
            Kind::Node => self.delete_node(&request).await?,
            Kind::Endpoint => return refused("an endpoint ends with its attachment: remove it on its node"),
            Kind::Identity => return refused("identities belong to the controller"),
            Kind::FleetConfig => return refused("a fleet always has its configuration"),
            _ => self.delete_written(kind, &request).await?,
        };
        tracing::info!(revision, ?kind, name = request.name, "deleted");
        Ok(v1::DeleteResponse { revision })
    }

    async fn delete_node(&self, request: &v1::DeleteRequest) -> Result<u64, Status> {
        self.check_if_revision(request.if_revision, &mut Plan::default()).await?;
        let removed =
            removal::remove(self.store.as_ref(), &self.hub, &request.name, request.if_revision).await;
        removed.map_err(errors::node)
    }

    async fn delete_written(&self, kind: Kind, request: &v1::DeleteRequest) -> Result<u64, Status> {
        let key = keys::object(kind, &request.name);
        for _ in 0..limits::TRANSACTION_ATTEMPTS {
            let mut plan = Plan::default();
            self.check_if_revision(request.if_revision, &mut plan).await?;
            self.check_unused(kind, &request.name, &mut plan).await?;
            let (stored, _) = self.store.get(&key).await.map_err(errors::store)?;
            let stored = stored.ok_or_else(|| not_found(kind, &request.name))?;
            plan.expect(&key, Some(&stored));
            plan.delete(&*key);
            plan.put(keys::OPERATOR_CHANGE, "");
            if let Some(revision) = plan.commit(self.store.as_ref()).await.map_err(errors::store)? {
                return Ok(revision);
            }
        }
        Err(errors::contended(&Contended))
    }
}
