//! Many rows that the kernel takes in one call.

use weft_noded::{
    kernel::{
        Datapath as _,
        object::{Object, Options},
    },
    plan::tables::{Step, Tables},
};
use weft_shared::layout::{Address, Config, Peer, PeerKey};

fn object() -> Object {
    Object::load(&Options { directory: None, config: Config::DEFAULT, flows_max: Some(1024) })
        .expect("the kernel programs load (tests need root)")
}

fn row(peer: u32, number: u32) -> Step {
    Step::PeerRules { key: PeerKey { subject: 300, peer, direction: 1 }, rulebook: Some(number) }
}

fn address(last: u32, identity: u32) -> Step {
    let peer = Peer { identity, class: 3, node: 1, ifindex: 0 };
    Step::Ipcache { address: Address::from_v4((10 << 24) + last), peer: Some(peer) }
}

#[test]
fn thousands_of_rows_are_what_was_asked_for_and_of_two_the_later_one_counts() {
    let mut object = object();
    let mut steps: Vec<Step> = (0..10_000).map(|peer| row(1000 + peer, peer % 7 + 1)).collect();
    steps.push(row(1000, 99));
    steps.push(Step::PeerRules { key: PeerKey { subject: 300, peer: 1001, direction: 1 }, rulebook: None });
    steps.extend((0..10_000).map(|last| address(last, 1000 + last)));
    steps.push(address(5, 7));

    object.write(&steps).unwrap();

    let mut expected = Tables::default();
    expected.apply_all(&steps);
    let found = object.read_tables().unwrap();
    assert_eq!(found.peer_rules, expected.peer_rules);
    assert_eq!(found.ipcache, expected.ipcache);
}
