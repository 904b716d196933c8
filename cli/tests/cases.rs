//! What a property test of policies prints when it fails is what `weft apply` takes: read again, it is the same fleet.
#![expect(clippy::panic, reason = "a test that can't go on says why")]

use weft_cli::manifest::{Source, parse};
use weft_proto::v1::object::Kind;
use weft_shared::policy::{
    arbitrary::{self, Fleet},
    case,
    model::FleetConfig,
    parse as model,
};

fn read(yaml: &str) -> Fleet {
    let source = Source { name: "case.yaml".to_owned(), text: yaml.to_owned() };
    let objects = parse([source]).unwrap_or_else(|problems| panic!("{problems:#?}\n{yaml}")).objects;
    let mut fleet =
        Fleet { policies: Vec::new(), cidr_sets: Vec::new(), config: FleetConfig::of_pools(Vec::new()) };
    for object in objects {
        match object.kind {
            Some(Kind::FleetConfig(config)) => fleet.config = right(model::fleet_config(&config), yaml),
            Some(Kind::CidrSet(set)) => fleet.cidr_sets.push(right(model::cidr_set(&set), yaml)),
            Some(Kind::Policy(policy)) => fleet.policies.push(right(model::policy(&policy), yaml)),
            other => panic!("{other:?}\n{yaml}"),
        }
    }
    fleet
}

fn right<T>(parsed: Result<T, Vec<model::FieldError>>, yaml: &str) -> T {
    parsed.unwrap_or_else(|errors| panic!("{errors:#?}\n{yaml}"))
}

#[test]
fn the_manifests_of_a_failing_case_are_the_fleet_of_which_it_failed() {
    case::hold(500, &arbitrary::fleet(), |fleet| {
        let yaml = case::manifests(&fleet);
        let again = read(&yaml);
        let same = (again.config, again.cidr_sets, again.policies)
            == (fleet.config, fleet.cidr_sets, fleet.policies);
        if same { Ok(()) } else { Err(format!("something else is read:\n{yaml}")) }
    });
}
