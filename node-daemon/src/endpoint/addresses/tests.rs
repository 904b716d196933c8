use proptest::prelude::*;

use super::*;

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn requested(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn one_address_of_each_family_comes_out_of_the_prefixes() {
    let prefixes = prefixes(&["10.200.3.0/24", "fd00:77:0:3::/64"]);
    let found = choose("web", &[], &prefixes, &Taken::new()).unwrap();
    assert!(prefixes[0].contains(&IpAddr::V4(found.v4.unwrap())));
    assert!(prefixes[1].contains(&IpAddr::V6(found.v6.unwrap())));
    assert_eq!(
        found,
        choose("web", &[], &prefixes, &Taken::new()).unwrap(),
        "the same name, the same addresses"
    );
}

#[test]
fn every_usable_address_is_given_once_and_then_the_prefix_is_exhausted() {
    let prefixes = prefixes(&["10.200.3.0/28"]);
    let mut taken = Taken::new();
    // 16 without the network, the first one and the broadcast address.
    for number in 0..13 {
        let name = format!("w{number}");
        let address = IpAddr::V4(choose(&name, &[], &prefixes, &taken).unwrap().v4.unwrap());
        assert_eq!(taken.insert(address, name), None, "{address} was given twice");
    }
    for reserved in ["10.200.3.0", "10.200.3.1", "10.200.3.15"] {
        assert!(!taken.contains_key(&reserved.parse().unwrap()), "{reserved} was given");
    }
    let error = choose("late", &[], &prefixes, &taken).unwrap_err();
    assert_eq!(error, AddressError::Exhausted { prefix: prefixes[0] });
}

#[test]
fn what_was_asked_for_is_checked_and_the_error_names_the_place() {
    let prefixes = prefixes(&["10.200.3.0/24", "fd00:77:0:3::/64"]);
    let taken = Taken::from([("10.200.3.9".parse().unwrap(), "db".to_owned())]);
    let error = |texts: &[&str]| choose("web", &requested(texts), &prefixes, &taken).unwrap_err().to_string();
    assert!(error(&["10.200.3.7", "10.200.4.7"]).starts_with("addresses[1]: 10.200.4.7 is outside"));
    assert!(error(&["10.200.3.9"]).contains("taken by the endpoint db"));
    assert!(error(&["10.200.3.0"]).contains("reserved"));
    assert!(error(&["10.200.3.255"]).contains("reserved"));
    assert!(error(&["10.200.3.7", "10.200.3.8"]).contains("addresses[1]: more than one"));
    assert!(error(&["10.200.3.7/24"]).contains("is not an address"));
}

#[test]
fn one_family_alone_may_be_asked_for() {
    let prefixes = prefixes(&["10.200.3.0/24", "fd00:77:0:3::/64"]);
    let found = choose("web", &requested(&["fd00:77:0:3::7"]), &prefixes, &Taken::new()).unwrap();
    assert_eq!(found, Addresses { v4: None, v6: Some("fd00:77:0:3::7".parse().unwrap()) });
}

#[test]
fn a_node_without_prefixes_gives_nothing() {
    assert_eq!(choose("web", &[], &[], &Taken::new()), Err(AddressError::NoPrefixes));
}

proptest! {
    #[test]
    fn a_given_address_can_always_be_asked_for(name in "[a-z]{1,12}", length in 20_u8..=29, v6_length in 48_u8..=120) {
        let prefixes = prefixes(&[&format!("10.200.0.0/{length}"), &format!("fd00:77::/{v6_length}")]);
        let given = choose(&name, &[], &prefixes, &Taken::new()).unwrap();
        let texts = vec![given.v4.unwrap().to_string(), given.v6.unwrap().to_string()];
        prop_assert_eq!(choose(&name, &texts, &prefixes, &Taken::new()), Ok(given));
    }
}
