//! One document: which kind of policy it is, and whose. A `List`, as `kubectl get -o yaml` prints it, is many.
use std::collections::BTreeMap;

use weft_proto::v1;
use weft_shared::policy::parse;

use super::{
    admin, cilium,
    labels::LabelMap,
    network_policy,
    view::{Fields, Item, View},
};
use crate::manifest::{
    Place, Problem, nearest, quoted,
    tree::{Node, Value},
};

/// A policy without its name, and what makes its name.
pub(super) struct Draft {
    pub(super) origin: Origin,
    /// Which of several policies of one document, from 1.
    pub(super) part: Option<usize>,
    pub(super) policy: v1::Policy,
}

/// Who a document is.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) kind: &'static str,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) place: Place,
}

/// A kind of policy: its API version, and whether it is in a namespace.
struct Kind {
    name: &'static str,
    version: &'static str,
    namespaced: bool,
}

const KINDS: [Kind; 6] = [
    Kind { name: "NetworkPolicy", version: "networking.k8s.io/v1", namespaced: true },
    Kind { name: "ClusterNetworkPolicy", version: "policy.networking.k8s.io/v1alpha2", namespaced: false },
    Kind { name: "AdminNetworkPolicy", version: "policy.networking.k8s.io/v1alpha1", namespaced: false },
    Kind {
        name: "BaselineAdminNetworkPolicy",
        version: "policy.networking.k8s.io/v1alpha1",
        namespaced: false,
    },
    Kind { name: "CiliumNetworkPolicy", version: "cilium.io/v2", namespaced: true },
    Kind { name: "CiliumClusterwideNetworkPolicy", version: "cilium.io/v2", namespaced: false },
];

/// The policies of a document.
pub(super) fn read<'a>(view: &mut View<'a>, node: &'a Node, drafts: &mut Vec<Draft>) {
    let Value::Mapping(entries) = &node.value else {
        view.reader.wrong_type(node, "a resource of Kubernetes", None);
        return;
    };
    let mut fields = Fields::new("a resource", entries);
    let version = fields.get("apiVersion");
    let Some(kind) = fields.get("kind") else {
        let place = view.place_of_node(node);
        return view.missing(place, "this document", "kind");
    };
    let word = view.text(kind);
    if word == "List" || (word.ends_with("List") && fields.get("items").is_some()) {
        return list(view, fields, drafts);
    }
    let Some(known) = KINDS.iter().find(|known| known.name == word) else {
        return unknown_kind(view, kind, &word);
    };
    let place = view.place_of_node(node);
    match version {
        Some(version) => {
            view.one_of(version, &[(known.version, ())]);
        }
        None => view.missing(place.clone(), &format!("this {word}"), "apiVersion"),
    }
    let origin = origin(view, &mut fields, known, place);
    // What the cluster reports about the policy.
    fields.leave(&["status"]);
    match known.name {
        "NetworkPolicy" => network_policy::read(view, &mut fields, origin, drafts),
        "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy" => {
            cilium::read(view, &mut fields, origin, drafts);
        }
        _ => admin::read(view, &mut fields, origin, drafts),
    }
    view.finish(&fields);
}

fn list<'a>(view: &mut View<'a>, mut fields: Fields<'a>, drafts: &mut Vec<Draft>) {
    fields.leave(&["metadata"]);
    if let Some(items) = fields.get("items") {
        for item in view.list(items) {
            read(view, item.node, drafts);
        }
    }
    view.finish(&fields);
}

fn unknown_kind(view: &mut View<'_>, item: Item<'_>, word: &str) {
    let names = KINDS.iter().map(|known| known.name);
    let label = nearest(word, names.clone())
        .map_or_else(|| "not a policy".to_owned(), |near| format!("did you mean `{near}`?"));
    let help = if word == "Namespace" {
        "namespaces are given by --namespaces FILE".to_owned()
    } else {
        format!("import reads {}", names.collect::<Vec<_>>().join(", "))
    };
    let place = view.place(item);
    view.push(
        Problem::new(place, format!("a `{}` cannot be imported", quoted(word))).label(label).help(help),
    );
}

fn origin<'a>(view: &mut View<'a>, fields: &mut Fields<'a>, kind: &Kind, place: Place) -> Origin {
    let mut origin =
        Origin { kind: kind.name, namespace: None, name: String::new(), labels: BTreeMap::new(), place };
    let Some(item) = fields.get("metadata") else {
        view.missing(origin.place.clone(), &format!("this {}", kind.name), "metadata");
        return origin;
    };
    let mut metadata = view.fields(item, "metadata");
    match metadata.get("name") {
        Some(name) => {
            origin.name = view.text(name);
            if let Err(error) = parse::name(&origin.name, "name") {
                view.wrong(name, error.message, "not a name");
            }
        }
        None => view.missing(origin.place.clone(), &format!("this {}", kind.name), "metadata.name"),
    }
    if kind.namespaced {
        let namespace = metadata.get("namespace");
        let name = namespace.map_or_else(|| view.options.default_namespace.clone(), |item| view.text(item));
        if let Some(item) = namespace
            && let Err(error) = parse::name(&name, "namespace")
        {
            view.wrong(item, error.message, "not a name");
        }
        if let Some(namespaces) = &view.options.namespaces
            && !namespaces.contains(&name)
        {
            let place = namespace.map_or_else(|| origin.place.clone(), |item| view.place(item));
            let message = format!("the namespace `{name}` is not among those of --namespaces");
            view.push(Problem::new(place, message).help("--namespaces must name all of them"));
        }
        origin.namespace = Some(name);
    }
    if let Some(labels) = metadata.get("labels") {
        let LabelMap(labels) = LabelMap::read(view, labels);
        origin.labels = labels;
    }
    // Of the API server and its clients; nothing in them is about flows.
    metadata.leave(&[
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ]);
    view.finish(&metadata);
    origin
}
