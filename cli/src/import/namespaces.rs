//! The namespaces of a cluster, where `--namespaces` names them all.
use std::{collections::BTreeMap, sync::Arc};

use weft_proto::v1;
use weft_shared::policy::{parse, selector::Labels};

use super::{
    Options,
    labels::LabelMap,
    view::{Fields, View},
};
use crate::manifest::{
    Problem, Source,
    tree::{self, Node, Value},
};

/// Kubernetes gives every namespace this label with its name.
pub(super) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Labels of each namespace, by its name.
#[derive(Debug, Clone, Default)]
pub struct Namespaces(BTreeMap<String, Labels>);

impl Namespaces {
    /// From `Namespace` documents, also in lists.
    pub fn read(sources: impl IntoIterator<Item = Source>) -> Result<Self, Vec<Problem>> {
        let mut namespaces = Self::default();
        let mut problems = Vec::new();
        let options = Options {
            namespace_label: String::new(),
            default_namespace: String::new(),
            namespaces: None,
            network: None,
        };
        for source in sources {
            let source = Arc::new(source);
            match tree::documents(&source) {
                Ok(documents) => {
                    let mut view = View::new(&source, &options);
                    for node in &documents {
                        namespaces.document(&mut view, node);
                    }
                    problems.append(&mut view.reader.problems);
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(namespaces) } else { Err(problems) }
    }

    fn document<'a>(&mut self, view: &mut View<'a>, node: &'a Node) {
        let Value::Mapping(entries) = &node.value else {
            return view.reader.wrong_type(node, "a Namespace of Kubernetes", None);
        };
        let mut fields = Fields::new("a Namespace", entries);
        let kind = fields.get("kind");
        let word = kind.map(|item| view.text(item)).unwrap_or_default();
        if matches!(word.as_str(), "List" | "NamespaceList") {
            let items = fields.get("items").map(|items| view.list(items)).unwrap_or_default();
            return items.into_iter().for_each(|item| self.document(view, item.node));
        }
        let place = kind.map_or_else(|| view.place_of_node(node), |item| view.place(item));
        if word != "Namespace" {
            return view
                .push(Problem::new(place, "this is no Namespace").help("--namespaces reads those alone"));
        }
        let Some(metadata) = fields.get("metadata") else {
            return view.missing(place, "this Namespace", "metadata");
        };
        let mut metadata = view.fields(metadata, "metadata");
        let Some(name) = metadata.get("name") else {
            return view.missing(place, "this Namespace", "metadata.name");
        };
        let name = view.text(name);
        let mut labels = metadata.get("labels").map(|item| LabelMap::read(view, item).0).unwrap_or_default();
        labels.insert(NAME_LABEL.to_owned(), name.clone());
        if self.0.insert(name.clone(), labels).is_some() {
            view.push(Problem::new(place, format!("Namespace `{name}` is defined twice")));
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Names of those that meet all requirements, which are about the namespaces' own labels.
    pub(super) fn matching(&self, requirements: &[v1::LabelRequirement]) -> Vec<String> {
        let message = v1::Selector { match_expressions: requirements.to_vec(), ..v1::Selector::default() };
        // What is not a selector was refused where it was read.
        let Ok(selector) = parse::selector(&message, "") else { return Vec::new() };
        let matching = self.0.iter().filter(|(_, labels)| selector.matches(labels));
        matching.map(|(name, _)| name.clone()).collect()
    }
}
