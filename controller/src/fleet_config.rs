//! The fleet's configuration in the store. There is always one: a new store starts with the default.
use weft_proto::v1::{self, object::Kind as Of};
use weft_shared::policy::{model::FleetConfig, parse};

use crate::{
    keys,
    plan::Plan,
    resource,
    store::{Store, StoreError},
};

/// The name of the one configuration.
pub const NAME: &str = "fleet";

pub fn key() -> String {
    keys::object(v1::Kind::FleetConfig, NAME)
}

/// What a new fleet starts with.
pub fn default() -> v1::FleetConfig {
    let pool = |cidr: &str, node_prefix_length| v1::Pool { cidr: cidr.to_owned(), node_prefix_length };
    v1::FleetConfig {
        metadata: Some(v1::Metadata {
            name: NAME.to_owned(),
            uid: resource::new_uid(),
            ..v1::Metadata::default()
        }),
        pools: vec![pool("10.200.0.0/16", 24), pool("fd00:77::/48", 64)],
        ..v1::FleetConfig::default()
    }
}

/// The configuration now; what is planned with it holds only while it stays so.
pub async fn read(store: &dyn Store, plan: &mut Plan) -> Result<FleetConfig, StoreError> {
    let key = key();
    let (item, _) = store.get(&key).await?;
    plan.expect(&key, item.as_ref());
    let item = item.ok_or(StoreError::Corrupt { key: key.clone() })?;
    let config = resource::decode_fleet_config(&item)?;
    parse::fleet_config(&config).map_err(|_| StoreError::Corrupt { key })
}

/// Gives a new store its id and the default configuration. Returns the id.
pub async fn initialise(store: &dyn Store) -> Result<String, StoreError> {
    let (id, _) = store.get(keys::STORE_ID).await?;
    if id.is_none() {
        let mut plan = Plan::default();
        plan.expect(keys::STORE_ID, None);
        plan.expect(keys::MOVING, None);
        plan.put(keys::STORE_ID, resource::new_uid());
        let config = resource::encode(resource::object(Of::FleetConfig(default())));
        plan.expect(&key(), None);
        plan.put(key(), config);
        // Someone else may be first; then theirs counts.
        plan.commit(store).await?;
    }
    let (id, _) = store.get(keys::STORE_ID).await?;
    let id = id.ok_or_else(|| StoreError::Refused { reason: "data is being moved into it".to_owned() })?;
    String::from_utf8(id.value.to_vec()).map_err(|_| StoreError::Corrupt { key: keys::STORE_ID.to_owned() })
}
