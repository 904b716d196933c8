//! `weft get`: resources as they are stored.
use serde_json::{Value, json};
use weft_proto::v1;

use super::Global;
use crate::{
    arguments::parse_selector,
    client::{self, Operator, request},
    failure::Failure,
    kind::{self, KindArgument},
    limits::PAGE_OBJECTS,
    manifest,
    output::{self, Format, note, print},
};

/// Show resources
///
/// JSON: {revision, items: [RESOURCE…]}, with NAME the resource itself, in the form of its manifest. YAML is what
/// `weft apply` reads.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// Such as policies, nodes, endpoints, services, identities, cidrsets, prefilters, shapings, fleetconfig
    #[arg(value_parser = kind::parse)]
    kind: KindArgument,
    /// All of the kind without it
    name: Option<String>,
    /// Only those with these labels, such as app=web,env!=dev,tier in (a,b),!legacy
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "name", value_parser = parse_selector)]
    selector: Option<v1::Selector>,
}

impl Get {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut operator = client::operator(&global.server).await?;
        match self.name {
            Some(name) => one(&mut operator, global.output, self.kind.0, name).await,
            None => all(&mut operator, global.output, self.kind.0, self.selector).await,
        }
    }
}

async fn one(operator: &mut Operator, format: Format, kind: v1::Kind, name: String) -> Result<(), Failure> {
    let message = v1::GetRequest { kind: kind.into(), name };
    let answer = operator.client.get(request(message)).await;
    let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
    let Some(object) = answer.object else {
        return Err(Failure::Failed("the server answered without the object".to_owned()));
    };
    format.write(|| output::objects(std::slice::from_ref(&object)), || manifest::object(&object))
}

async fn all(
    operator: &mut Operator,
    format: Format,
    kind: v1::Kind,
    selector: Option<v1::Selector>,
) -> Result<(), Failure> {
    let request = v1::ListRequest { kind: kind.into(), selector, ..v1::ListRequest::default() };
    let (objects, revision) = list(operator, request).await?;
    if objects.is_empty() {
        note(&format!("no {} found", kind::plural(kind)));
    }
    let values = || objects.iter().map(manifest::object).collect::<Vec<Value>>();
    match format {
        Format::Table => print(&output::objects(&objects)),
        Format::Json => print(&output::pretty(&json!({"revision": revision, "items": values()}))),
        Format::Yaml => print(&manifest::documents(&values())),
    }
}

/// All pages of a listing, and the revision that they show.
pub(super) async fn list(
    operator: &mut Operator,
    what: v1::ListRequest,
) -> Result<(Vec<v1::Object>, u64), Failure> {
    let mut objects = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = v1::ListRequest { page_size: PAGE_OBJECTS, page_token, ..what.clone() };
        let page = operator.client.list(request(message)).await;
        let page = page.map_err(|status| operator.remote.failure(&status))?.into_inner();
        objects.extend(page.objects);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok((objects, page.revision));
        }
    }
}
