//! Labels of Cilium have a source: `k8s:app`, `any:app`, and `app`, which is `any:app`. Those of a pod's namespace are
//! among the pod's.
use weft_proto::v1::{Entity, LabelOperator, LabelRequirement};

use super::entities;
use crate::import::{
    namespaces::NAME_LABEL,
    selector::{self, Meant, Written, in_namespace, namespace_label, pod_label, written},
    view::{Item, View},
};

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
const POLICY: &str = "io.cilium.k8s.policy.";

/// Who a selector of endpoints is about.
pub(super) enum Selected {
    Endpoints(Meant),
    Class(Entity),
}

/// Of the endpoints that a rule is for. In a policy of a namespace it never leaves it.
pub(super) fn subject<'a>(
    view: &mut View<'a>,
    item: Item<'a>,
    namespace: Option<&str>,
) -> Vec<LabelRequirement> {
    let mut requirements: Vec<_> = namespace.map(|name| in_namespace(view, name)).into_iter().collect();
    for one in written(view, item) {
        let item = one.item;
        let (requirement, of_namespace) = requirement(view, one);
        if of_namespace && !requirements.is_empty() && !requirements.contains(&requirement) {
            let help = "Cilium takes the policy's own namespace instead: take this requirement out";
            view.refuse(item, "a policy selects in its own namespace only", help);
        }
        requirements.push(requirement);
    }
    requirements
}

/// Of the other end. In a policy of a namespace it stays there, unless it speaks of namespaces.
pub(super) fn peer<'a>(view: &mut View<'a>, item: Item<'a>, namespace: Option<&str>) -> Selected {
    let mut written = written(view, item);
    if let [only] = written.as_slice()
        && let Some(name) = only.requirement.key.strip_prefix("reserved:")
        && let Some(class) = entities::reserved(name, &only.requirement)
    {
        return Selected::Class(class);
    }
    refuse_strangers(view, &written);
    let of_namespaces =
        written.extract_if(.., |one| is_of_namespace(&one.requirement.key)).collect::<Vec<_>>();
    let mut meant = if of_namespaces.is_empty() {
        Meant::These(namespace.map(|name| in_namespace(view, name)).into_iter().collect())
    } else {
        namespaces(view, of_namespaces)
    };
    for one in written {
        let requirement = requirement(view, one).0;
        meant = meant.and(vec![requirement]);
    }
    Selected::Endpoints(meant)
}

/// Cilium adds "of a namespace" where a selector says nothing of namespaces. One that does, and only says what is not,
/// fits whatever has no labels, too: the world, the nodes.
fn refuse_strangers(view: &mut View<'_>, written: &[Written<'_>]) {
    let negative = |one: &Written<'_>| {
        matches!(one.requirement.operator(), LabelOperator::NotIn | LabelOperator::DoesNotExist)
    };
    let about_namespaces = written.iter().find(|one| is_of_namespace(&one.requirement.key));
    if let Some(one) = about_namespaces.filter(|_| written.iter().all(negative)) {
        let help = format!("if pods are meant, demand that {NAMESPACE} exists");
        view.refuse(one.item, "this selector is also about parties that are no pods", &help);
    }
}

/// As `selector::namespaces`, for requirements that stand among those on pods.
fn namespaces(view: &mut View<'_>, written: Vec<Written<'_>>) -> Meant {
    let requirements: Vec<_> = written
        .into_iter()
        .map(|one| Written { requirement: as_namespaces(one.requirement), ..one })
        .collect();
    // Every namespace has a name: this is how "of any namespace" is written.
    let name_exists = |one: &Written<'_>| {
        one.requirement.key == NAME_LABEL
            && one.requirement.operator() == LabelOperator::Exists
            && one.requirement.values.is_empty()
    };
    let demanding: Vec<_> = requirements.into_iter().filter(|one| !name_exists(one)).collect();
    if demanding.is_empty() {
        return Meant::These(Vec::new());
    }
    if let Some(known) = &view.options.namespaces {
        let plain: Vec<_> = demanding.iter().map(|one| one.requirement.clone()).collect();
        let values = known.matching(&plain);
        for one in &demanding {
            selector::well_formed(view, one);
        }
        if values.is_empty() {
            return Meant::None;
        }
        let mut requirement = in_namespace(view, "");
        requirement.values = values;
        return Meant::These(vec![requirement]);
    }
    Meant::These(demanding.into_iter().map(|one| namespace_label(view, one)).collect())
}

pub(super) fn nodes<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<LabelRequirement> {
    let mut requirements = Vec::new();
    for mut one in written(view, item) {
        one.requirement.key = without_source(view, one.item, &one.requirement.key);
        requirements.push(selector::checked(view, one));
    }
    requirements
}

/// The requirement, and whether it is on the namespace.
fn requirement(view: &mut View<'_>, mut one: Written<'_>) -> (LabelRequirement, bool) {
    if is_of_namespace(&one.requirement.key) {
        let one = Written { requirement: as_namespaces(one.requirement), ..one };
        return (namespace_label(view, one), true);
    }
    one.requirement.key = without_source(view, one.item, &one.requirement.key);
    if let Some(what) = one.requirement.key.strip_prefix(POLICY) {
        let help = match what {
            "serviceaccount" => "Weft has no service accounts: give the endpoints a label of their own",
            _ => "it is of Cilium's making: give the endpoints a label of their own",
        };
        let message = format!("the label `{}` has no equivalent", one.requirement.key);
        view.refuse(one.item, message, help);
    }
    (pod_label(view, one), false)
}

fn kubernetes(key: &str) -> &str {
    key.strip_prefix("k8s:").or_else(|| key.strip_prefix("any:")).unwrap_or(key)
}

fn is_of_namespace(key: &str) -> bool {
    let key = kubernetes(key);
    key == NAMESPACE || key.starts_with(NAMESPACE_LABELS)
}

/// The requirement with the key that the label has on the namespace itself.
fn as_namespaces(mut requirement: LabelRequirement) -> LabelRequirement {
    let key = kubernetes(&requirement.key);
    let own = key.strip_prefix(NAMESPACE_LABELS).unwrap_or(NAME_LABEL);
    requirement.key = own.to_owned();
    requirement
}

fn without_source(view: &mut View<'_>, item: Item<'_>, key: &str) -> String {
    let plain = kubernetes(key);
    if let Some((source, _)) = plain.split_once(':') {
        let help = if source == "reserved" {
            "alone in a peer, reserved:host, reserved:remote-node, reserved:world and reserved:all are entities"
        } else {
            "labels of Weft have no source: import knows `k8s:` and `any:`"
        };
        view.refuse(item, format!("the label `{plain}` has no equivalent"), help);
        // So that it is not refused once more, as no label.
        return "refused".to_owned();
    }
    plain.to_owned()
}
