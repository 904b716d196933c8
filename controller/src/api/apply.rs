//! Apply: everything is checked before anything is written, and written in one transaction.
use std::collections::BTreeMap;

use ipnet::IpNet;
use prost::Message as _;
use tonic::Status;
use weft_proto::v1::{self, Change, Kind, Object, object::Kind as Of};
use weft_shared::policy::parse::{self, FieldError};

use super::{Operator, errors, frontends, warnings};
use crate::{
    fleet_config, keys, limits, nodes,
    plan::{Contended, Plan},
    resource,
    store::{Compare, StoreError},
};

/// One object of a request, checked by itself.
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) object: Object,
    /// In the request.
    pub(super) path: String,
}

/// What an Apply makes of one object.
pub(super) struct Planned {
    pub(super) applied: v1::AppliedObject,
    /// `None`: it is new.
    pub(super) before: Option<Object>,
    pub(super) after: Object,
}

impl Operator {
    pub(super) async fn apply_objects(&self, request: v1::ApplyRequest) -> Result<v1::ApplyResponse, Status> {
        check_size(&request)?;
        let (wanted, warnings) = self.checked(request.objects).await?;
        for _ in 0..limits::TRANSACTION_ATTEMPTS {
            let mut plan = Plan::default();
            let (read_at, planned) = self.plan_apply(&wanted, request.if_revision, &mut plan).await?;
            let objects: Vec<_> = planned.into_iter().map(|planned| planned.applied).collect();
            if request.dry_run || plan.changes_nothing() {
                return Ok(v1::ApplyResponse { revision: read_at, objects, warnings });
            }
            plan.put(keys::OPERATOR_CHANGE, "");
            if let Some(revision) = plan.commit(self.store.as_ref()).await.map_err(errors::store)? {
                for object in objects.iter().filter(|object| object.change() != Change::Unchanged) {
                    let (kind, name, change) = (object.kind(), &object.name, object.change());
                    tracing::info!(revision, ?kind, name, ?change, "applied");
                }
                return Ok(v1::ApplyResponse { revision, objects, warnings });
            }
        }
        Err(errors::contended(&Contended))
    }

    /// The objects, each checked by itself, and what can hardly be meant.
    pub(super) async fn checked(
        &self,
        objects: Vec<Object>,
    ) -> Result<(Vec<Wanted>, Vec<v1::Warning>), Status> {
        let (wanted, mut found) = check_objects(objects)?;
        let config =
            fleet_config::read(self.store.as_ref(), &mut Plan::default()).await.map_err(errors::store)?;
        found.extend(warnings::of_labels(&wanted, &config.identity_labels));
        Ok((wanted, found))
    }

    pub(super) async fn plan_apply(
        &self,
        wanted: &[Wanted],
        if_revision: Option<u64>,
        plan: &mut Plan,
    ) -> Result<(u64, Vec<Planned>), Status> {
        self.check_if_revision(if_revision, plan).await?;
        let mut planned = Vec::with_capacity(wanted.len());
        let mut wrong = self.check_references(wanted, plan).await?;
        wrong.extend(self.check_addresses(wanted, plan).await?);
        let mut speaks = false;
        for one in wanted {
            let Wanted { kind, name, object, path } = one;
            let key = keys::object(*kind, name);
            let (stored, _) = self.store.get(&key).await.map_err(errors::store)?;
            plan.expect(&key, stored.as_ref());
            let old = stored.as_ref().map(resource::decode).transpose().map_err(errors::store)?;
            let old_metadata = old.as_ref().and_then(resource::metadata);

            let mut new = object.clone();
            let Some(metadata) = resource::metadata_mut(&mut new) else { continue };
            let old_uid = old_metadata.map(|old| old.uid.clone());
            if !metadata.uid.is_empty() && Some(&metadata.uid) != old_uid.as_ref() {
                let found = old_uid.as_deref().unwrap_or("none, as there is no such object");
                wrong.push(FieldError::new(
                    format!("{path}.uid"),
                    format!("expected the object's own ({found})"),
                ));
                continue;
            }
            metadata.uid = old_uid.unwrap_or_else(resource::new_uid);
            metadata.revision = old_metadata.map_or(0, |old| old.revision);
            let uid = metadata.uid.clone();
            let change = match &old {
                None => Change::Created,
                Some(old) if *old == new => Change::Unchanged,
                Some(_) => Change::Configured,
            };
            if change != Change::Unchanged {
                if let (Some(Of::FleetConfig(new)), Some(Of::FleetConfig(old))) =
                    (&new.kind, old.as_ref().and_then(|old| old.kind.as_ref()))
                {
                    self.caught_up().await?;
                    self.check_config_change(old, new, plan)?;
                }
                plan.put(key, resource::encode(new.clone()));
                speaks |= frontends::speaks_for_addresses(one);
            }
            let applied =
                v1::AppliedObject { kind: (*kind).into(), name: name.clone(), change: change.into(), uid };
            planned.push(Planned { applied, before: old, after: new });
        }
        if !wrong.is_empty() {
            return Err(errors::bad_request(&wrong));
        }
        if speaks {
            plan.put(keys::ADDRESSES_SPOKEN_FOR, "");
        }
        let revision = self.store.revision().await.map_err(errors::store)?;
        Ok((revision, planned))
    }

    /// Refuses when something that operators write has changed after `if_revision`, now or until the commit.
    pub(super) async fn check_if_revision(
        &self,
        if_revision: Option<u64>,
        plan: &mut Plan,
    ) -> Result<(), Status> {
        let Some(if_revision) = if_revision else { return Ok(()) };
        let (changed, current) = self.store.get(keys::OPERATOR_CHANGE).await.map_err(errors::store)?;
        let changed = changed.map_or(0, |item| item.mod_revision);
        if if_revision > current {
            let error = StoreError::Future { requested: if_revision, current };
            return Err(errors::store(error));
        }
        if changed > if_revision {
            return Err(Status::failed_precondition(format!(
                "if_revision {if_revision} is stale: objects were changed at revision {changed}, the store is at \
                 {current}"
            )));
        }
        plan.compare(Compare::not_changed_after(keys::OPERATOR_CHANGE, if_revision));
        Ok(())
    }

    /// What stands on the configuration must not lose its ground.
    fn check_config_change(
        &self,
        old: &v1::FleetConfig,
        new: &v1::FleetConfig,
        plan: &mut Plan,
    ) -> Result<(), Status> {
        let pools: Vec<IpNet> = new.pools.iter().filter_map(|pool| pool.cidr.parse().ok()).collect();
        let (seen_at, in_use) = self.hub.ask(|fleet| {
            let in_use = fleet.nodes().find_map(|(name, facts)| {
                let cidrs: Vec<IpNet> = nodes::parse_all(&facts.endpoint_cidrs);
                let outside = cidrs.into_iter().find(|cidr| !pools.iter().any(|pool| pool.contains(cidr)))?;
                Some((name.to_owned(), outside))
            });
            (fleet.revision(), in_use)
        });
        plan.compare(Compare::not_changed_after(keys::ENDPOINT_CIDR_GIVEN, seen_at));
        if let Some((node, cidr)) = in_use {
            let text =
                format!("node {node} has {cidr}, which is outside the new pools: remove the node first");
            return Err(Status::failed_precondition(text));
        }
        let endpoints = self.hub.ask(|fleet| fleet.endpoints().count());
        if old.identity_labels != new.identity_labels && endpoints > 0 {
            let text = format!(
                "identityLabels cannot change while there are endpoints ({endpoints}): their identities would not \
                 follow yet"
            );
            return Err(Status::failed_precondition(text));
        }
        Ok(())
    }
}

pub(super) fn check_size(request: &v1::ApplyRequest) -> Result<(), Status> {
    let (count, most) = (request.objects.len(), limits::APPLY_MAX_OBJECTS);
    if count == 0 || count > most {
        return Err(errors::bad_field("objects", format!("{count} objects, expected 1 to {most}")));
    }
    let (bytes, most) = (request.encoded_len(), limits::APPLY_MAX_BYTES);
    if bytes <= most {
        return Ok(());
    }
    let largest = request.objects.iter().enumerate().max_by_key(|(_, object)| object.encoded_len());
    let largest = largest.map_or(String::new(), |(index, object)| {
        format!("; objects[{index}] ({}) alone has {}", resource::name(object), object.encoded_len())
    });
    Err(errors::bad_field("objects", format!("{bytes} bytes, the limit is {most}{largest}")))
}

fn check_objects(objects: Vec<Object>) -> Result<(Vec<Wanted>, Vec<v1::Warning>), Status> {
    let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
    let mut seen: BTreeMap<(i32, String), usize> = BTreeMap::new();
    let mut wanted = Vec::with_capacity(objects.len());
    for (index, object) in objects.into_iter().enumerate() {
        let kind = resource::kind(&object);
        let path = format!("objects[{index}].{}", resource::field(kind));
        let within = |error: FieldError| {
            let field = if error.path.is_empty() { path.clone() } else { format!("{path}.{}", error.path) };
            FieldError::new(field, error.message)
        };
        match parse::object(&object) {
            Ok(warned) => warnings.extend(warned.into_iter().map(|warning| v1::Warning {
                field: format!("{path}.{}", warning.path),
                message: warning.message,
            })),
            Err(errors) => {
                wrong.extend(errors.into_iter().map(within));
                continue;
            }
        }
        if resource::has_status(&object) {
            wrong.push(within(FieldError::new("status", "is written by the controller alone")));
        }
        let name = resource::name(&object).to_owned();
        if let Some(first) = seen.insert((kind.into(), name.clone()), index) {
            wrong.push(within(FieldError::new("name", format!("\"{name}\" is objects[{first}] already"))));
        }
        wanted.push(Wanted { kind, name, object, path });
    }
    if wrong.is_empty() { Ok((wanted, warnings)) } else { Err(errors::bad_request(&wrong)) }
}
