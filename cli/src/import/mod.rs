//! `weft import`: policies of Kubernetes and Cilium → policies of Weft that judge every flow the same way.
//!
//! Nothing is dropped: what cannot be carried over is a problem at its line, and where there is one problem nothing is
//! printed at all. So the functions here go on after a problem, to find the others; what they return beside one is of no
//! use and never seen.
mod admin;
mod blocks;
mod cilium;
mod document;
mod labels;
mod names;
mod namespaces;
mod network_policy;
mod ports;
mod ranges;
mod selector;
mod view;

#[cfg(test)]
mod any_text;
#[cfg(test)]
mod semantics;

use std::sync::Arc;

use ipnet::IpNet;
use weft_proto::v1;

pub use namespaces::Namespaces;

use crate::manifest::{Place, Problem, Source, tree};
use names::Names;
use view::View;

/// How the words of Kubernetes are to be understood here.
#[derive(Debug, Clone)]
pub struct Options {
    /// The label of an endpoint that says in which namespace it is. `KEY` of the namespace's own labels is `LABEL.KEY`.
    pub namespace_label: String,
    /// Of a policy that does not name its namespace.
    pub default_namespace: String,
    /// Selectors of namespaces become the names of those that they select, where all namespaces are known.
    pub namespaces: Option<Namespaces>,
    /// `None`: not known yet.
    pub network: Option<Network>,
}

/// Which addresses are the fleet's own.
#[derive(Debug, Clone)]
pub struct Network {
    /// Of `FleetConfig`: the addresses that endpoints have.
    pub pools: Vec<IpNet>,
    /// Prefixes that hold the addresses of every node; `None`: not known.
    pub nodes: Option<Vec<IpNet>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Imported {
    /// In the order of the documents; to be used only where there are no problems.
    pub policies: Vec<v1::Policy>,
    pub problems: Vec<Problem>,
    /// The first address block whose meaning needs [`Options::network`], where that is not known.
    pub needs_network: Option<Place>,
}

/// All documents of all sources, and all that is wrong with any.
pub fn import(sources: impl IntoIterator<Item = Source>, options: &Options) -> Imported {
    let mut imported = Imported::default();
    let mut names = Names::default();
    for source in sources {
        let source = Arc::new(source);
        let documents = match tree::documents(&source) {
            Ok(documents) => documents,
            Err(problem) => {
                imported.problems.push(problem);
                continue;
            }
        };
        let mut view = View::new(&source, options);
        let mut drafts = Vec::new();
        for node in &documents {
            document::read(&mut view, node, &mut drafts);
        }
        // Fields are looked at in the order of their meaning.
        view.reader.problems.sort_by_key(|problem| problem.place.span.start);
        imported.problems.append(&mut view.reader.problems);
        if imported.needs_network.is_none() {
            imported.needs_network = view.needs_network;
        }
        for draft in drafts {
            match names.name(draft) {
                Ok(policy) => imported.policies.push(policy),
                Err(problem) => imported.problems.push(problem),
            }
        }
    }
    imported
}
