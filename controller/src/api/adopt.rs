//! Letting nodes of another store, or of a later state of this one, take this store's word.
use tonic::Status;
use weft_proto::v1;

use super::{Operator, errors};
use crate::adoption;

impl Operator {
    pub(super) async fn adopt(
        &self,
        request: v1::FleetAdoptRequest,
    ) -> Result<v1::FleetAdoptResponse, Status> {
        if request.all != request.nodes.is_empty() {
            return Err(errors::bad_field("nodes", "expected names of nodes, or `all`"));
        }
        let waiting = self.hub.waiting_for_adoption();
        let names = if request.all {
            waiting.iter().map(|node| node.name.clone()).collect()
        } else {
            request.nodes.into_iter().collect()
        };
        let adopted = adoption::adopt(&self.store, &waiting, &names).await.map_err(errors::adoption)?;
        for node in &adopted {
            tracing::warn!(
                node = node.name,
                former_store = node.store_id,
                former_revision = node.revision,
                "adopted by an operator"
            );
        }
        Ok(v1::FleetAdoptResponse { adopted })
    }
}
