//! Get and List.
use prost::Message as _;
use tonic::Status;
use weft_proto::v1::{self, Kind, Object, object::Kind as Of};
use weft_shared::policy::{
    model::Selector,
    parse::{self, FieldError},
};

use super::{Operator, errors};
use crate::{
    keys, limits, resource,
    store::{KeyValue, Range},
};

impl Operator {
    pub(super) async fn get_object(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Status> {
        let kind = known_kind(request.kind)?;
        let (item, revision) =
            self.store.get(&keys::object(kind, &request.name)).await.map_err(errors::store)?;
        let item = item.ok_or_else(|| not_found(kind, &request.name))?;
        Ok(v1::GetResponse { object: Some(self.read(&item)?), revision })
    }

    pub(super) async fn list_objects(&self, request: v1::ListRequest) -> Result<v1::ListResponse, Status> {
        let kind = known_kind(request.kind)?;
        let prefix = keys::prefix(kind).unwrap_or_default();
        let selector = match &request.selector {
            Some(selector) => {
                Some(parse::selector(selector, "selector").map_err(|wrong| errors::bad_request(&wrong))?)
            }
            None => None,
        };
        if !request.node.is_empty() && kind != Kind::Endpoint {
            return Err(errors::bad_field("node", "only endpoints are listed by their node"));
        }
        let size = page_size(request.page_size)?;
        let (mut after, mut revision) = match request.page_token.as_str() {
            "" => (None, None),
            token => {
                let (revision, after) = parse_token(token)?;
                (Some(format!("{prefix}{after}")), Some(revision))
            }
        };
        let mut objects = Vec::new();
        let mut bytes = 0;
        loop {
            let range = Range { prefix: prefix.clone(), after, limit: limits::LIST_CHUNK_OBJECTS, revision };
            let page = self.store.range(range).await.map_err(errors::store)?;
            let last = page.items.len();
            for (place, item) in page.items.iter().enumerate() {
                let object = self.read(item)?;
                if selects(selector.as_ref(), &object) && is_on(&request.node, &object) {
                    bytes += object.encoded_len();
                    objects.push(object);
                }
                let is_last = place + 1 == last && !page.more;
                if !is_last && (objects.len() == size || bytes >= limits::LIST_PAGE_MAX_BYTES) {
                    let next_page_token = format!("{}/{}", page.revision, &item.key[prefix.len()..]);
                    return Ok(v1::ListResponse { objects, next_page_token, revision: page.revision });
                }
            }
            if !page.more {
                return Ok(v1::ListResponse {
                    objects,
                    next_page_token: String::new(),
                    revision: page.revision,
                });
            }
            (after, revision) = (page.items.last().map(|item| item.key.clone()), Some(page.revision));
        }
    }

    /// The object, with what is known only here.
    fn read(&self, item: &KeyValue) -> Result<Object, Status> {
        let mut object = resource::decode(item).map_err(errors::store)?;
        if let Some(Of::Node(node)) = object.kind.as_mut() {
            let name = node.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
            let status = node.status.get_or_insert_default();
            let standing = self.hub.standing(&name).unwrap_or_default();
            status.realised_revision = standing.realised;
            status.last_seen = standing.last_seen.map(Into::into);
            status.controller = if standing.connected { standing.controller } else { String::new() };
        }
        Ok(object)
    }
}

/// A page's place in its listing: the revision that all pages show, and the last name sent.
fn parse_token(token: &str) -> Result<(u64, String), Status> {
    let parsed =
        token.split_once('/').and_then(|(revision, name)| Some((revision.parse().ok()?, name.to_owned())));
    parsed.ok_or_else(|| errors::bad_field("page_token", "not a token of List"))
}

pub(super) fn page_size(requested: u32) -> Result<usize, Status> {
    let most = limits::LIST_PAGE_MAX_OBJECTS;
    match usize::try_from(requested) {
        Ok(0) => Ok(limits::LIST_PAGE_DEFAULT_OBJECTS),
        Ok(size) if size <= most => Ok(size),
        _ => Err(errors::bad_field("page_size", format!("{requested}, the most is {most}"))),
    }
}

fn selects(selector: Option<&Selector>, object: &Object) -> bool {
    let labels = resource::metadata(object).map(|metadata| &metadata.labels);
    selector.is_none_or(|selector| labels.is_some_and(|labels| selector.matches(labels)))
}

/// Whether it is an endpoint of this node; an empty name takes all.
fn is_on(node: &str, object: &Object) -> bool {
    node.is_empty() || matches!(&object.kind, Some(Of::Endpoint(endpoint)) if endpoint.node == node)
}

pub(super) fn known_kind(number: i32) -> Result<Kind, Status> {
    let kind = Kind::try_from(number).unwrap_or(Kind::Unspecified);
    if kind == Kind::Unspecified {
        return Err(errors::bad_request(&[FieldError::new("kind", "expected a kind")]));
    }
    Ok(kind)
}

pub(super) fn not_found(kind: Kind, name: &str) -> Status {
    Status::not_found(format!("no {} \"{name}\"", resource::field(kind)))
}
