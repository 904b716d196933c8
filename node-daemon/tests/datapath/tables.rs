//! The maps hold what they are told, outlive the object that wrote them, and say so when they can't.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};
use weft_noded::{
    kernel::{
        Attached, Datapath as _, Hook,
        object::{self, Object, Options},
    },
    plan::tables::{Step, Tables},
};
use weft_shared::layout::{Action, Address, Config, Direction, Reason, maps};

use crate::{
    harness::{Datapath, from_endpoint},
    packets::out_of,
    world::{
        self, API, DB_PARTY, Family, OVERLAY, UPLINK, WEB, WEB_PARTY, WEB_SLOT, deny_all, peer_row, rule,
        tables,
    },
};

/// A bpffs of the test's own.
struct Pins {
    directory: tempfile::TempDir,
}

impl Pins {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        object::ensure_bpffs(directory.path()).expect("a bpffs (tests need root)");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn load(&self) -> Object {
        self.try_load().unwrap()
    }

    fn try_load(&self) -> Result<Object, weft_noded::kernel::KernelError> {
        Object::load(&Options {
            directory: Some(self.path().to_owned()),
            config: Config::DEFAULT,
            flows_max: Some(1024),
        })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        umount2(self.path(), MntFlags::MNT_DETACH).ok();
    }
}

/// Everything that there is, step by step.
fn steps(tables: &Tables) -> Vec<Step> {
    let mut steps = vec![Step::IdentitiesThrough { identity: tables.identities_through }];
    steps.extend(
        tables
            .endpoints
            .iter()
            .map(|(ifindex, row)| Step::Endpoint { ifindex: *ifindex, endpoint: Some(*row) }),
    );
    steps.extend(
        tables.ipcache.iter().map(|(address, peer)| Step::Ipcache { address: *address, peer: Some(*peer) }),
    );
    steps.extend(
        tables.prefixes.iter().map(|(prefix, peer)| Step::Prefix { prefix: *prefix, peer: Some(*peer) }),
    );
    steps.extend(tables.nodes.iter().map(|(slot, node)| Step::Node { slot: *slot, node: Some(*node) }));
    steps.extend(
        tables
            .node_addresses
            .iter()
            .map(|(address, slot)| Step::NodeAddress { address: *address, slot: Some(*slot) }),
    );
    steps.extend(
        tables
            .subjects
            .iter()
            .map(|(slot, identity)| Step::Subject { slot: *slot, identity: Some(*identity) }),
    );
    steps.extend(
        tables
            .policies
            .iter()
            .map(|(slot, table)| Step::PolicyTable { slot: *slot, table: Some(table.clone()) }),
    );
    steps
}

#[test]
fn what_was_written_is_read_back_also_by_the_next_object() {
    let pins = Pins::new();
    let mut expected = tables();
    let mut first = pins.load();
    first.write(&steps(&expected)).unwrap();
    assert_eq!(first.read_tables().unwrap(), expected);
    drop(first);
    let mut second = pins.load();
    assert_eq!(second.read_tables().unwrap(), expected);
    // Every kind of removal, and changes in place.
    let key = peer_row(Direction::Egress, 400);
    let address = std::net::IpAddr::V4(DB_PARTY.v4).into();
    let prefix = *expected.prefixes.keys().next().unwrap();
    let changes = [
        Step::Endpoint { ifindex: API, endpoint: None },
        Step::Ipcache { address, peer: None },
        Step::Prefix { prefix, peer: None },
        Step::Node { slot: 2, node: None },
        Step::NodeAddress { address: expected.nodes[&2].address, slot: None },
        Step::Subject { slot: 3, identity: None },
        Step::PolicyTable { slot: 3, table: None },
        Step::PolicyRow { slot: WEB_SLOT, key, row: Some(rule(Action::Deny, 9)) },
        Step::PolicyRow { slot: 7, key, row: Some(rule(Action::Allow, 9)) },
        Step::Bump { subjects: vec![WEB_SLOT], nodes: vec![0] },
        Step::IdentitiesThrough { identity: 77 },
    ];
    second.write(&changes).unwrap();
    for step in &changes {
        expected.apply(step);
    }
    assert_eq!(second.read_tables().unwrap(), expected);
    drop(second);
    let mut third = pins.load();
    assert_eq!(third.read_tables().unwrap(), expected);
    third.write(&[Step::PolicyRow { slot: WEB_SLOT, key, row: None }]).unwrap();
    expected.apply(&Step::PolicyRow { slot: WEB_SLOT, key, row: None });
    assert_eq!(third.read_tables().unwrap(), expected);
}

#[test]
fn what_is_not_there_can_be_removed() {
    let mut datapath = Datapath::new();
    let before = datapath.object.read_tables().unwrap();
    let nowhere: Address = std::net::IpAddr::from([9, 9, 9, 9]).into();
    let key = peer_row(Direction::Egress, 400);
    datapath
        .object
        .write(&[
            Step::Endpoint { ifindex: 999, endpoint: None },
            Step::Ipcache { address: nowhere, peer: None },
            Step::Prefix {
                prefix: weft_shared::layout::PrefixKey { bits: 128, address: nowhere },
                peer: None,
            },
            Step::NodeAddress { address: nowhere, slot: None },
            Step::PolicyTable { slot: 99, table: None },
            Step::PolicyRow { slot: 99, key, row: None },
            Step::PolicyRow { slot: WEB_SLOT, key, row: None },
        ])
        .unwrap();
    assert_eq!(datapath.object.read_tables().unwrap(), before);
}

#[test]
fn the_counter_of_epochs_goes_on_where_the_last_daemon_left_it() {
    let pins = Pins::new();
    let way = out_of(WEB, WEB_PARTY, world::WORLD_PARTY, Family::V4);
    let mut datapath = Datapath::new();
    // In one life: a verdict after the bump is newer than the bump.
    datapath.write(&[Step::Bump { subjects: vec![WEB_SLOT], nodes: vec![] }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1, 2)), Reason::DeliveredStack);
    let first = datapath.object.flows().unwrap()[0].1.judged_at;
    datapath.write(&[Step::Bump { subjects: vec![WEB_SLOT], nodes: vec![] }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1, 2)), Reason::DeliveredStack);
    assert_eq!(datapath.object.flows().unwrap()[0].1.judged_at, first + 1);
    // Over two lives: what is pinned is not begun anew.
    let bump = [Step::Bump { subjects: vec![1], nodes: vec![1] }];
    pins.load().write(&bump).unwrap();
    pins.load().write(&bump).unwrap();
    let info = aya::maps::Array::<_, [u64; 2]>::try_from(aya::maps::Map::Array(
        aya::maps::MapData::from_pin(pins.path().join("maps").join(maps::RUNTIME.pin)).unwrap(),
    ))
    .unwrap();
    assert_eq!(info.get(&0, 0).unwrap()[0], 2);
}

#[test]
fn a_full_map_is_an_error_that_names_it() {
    let mut datapath = Datapath::new();
    let endpoint = tables().endpoints[&WEB];
    let count = u32::try_from(maps::ENDPOINTS_MAX).unwrap();
    let steps: Vec<_> = (0..=count)
        .map(|index| Step::Endpoint { ifindex: 10_000 + index, endpoint: Some(endpoint) })
        .collect();
    let error = datapath.object.write(&steps).unwrap_err();
    assert!(error.to_string().contains(maps::ENDPOINTS.pin), "{error}");
    let slot = u32::try_from(maps::SUBJECTS_MAX).unwrap();
    for step in
        [Step::Subject { slot, identity: Some(1) }, Step::PolicyTable { slot, table: Some(deny_all()) }]
    {
        assert!(datapath.object.write(&[step]).is_err());
    }
}

#[test]
fn a_table_that_overflows_is_refused_and_the_old_one_stays() {
    let mut datapath = Datapath::new();
    let rows = u32::try_from(maps::POLICY_ROWS_MAX).unwrap();
    let table = (0..=rows).map(|peer| (peer_row(Direction::Egress, peer), rule(Action::Deny, 1))).collect();
    let error =
        datapath.object.write(&[Step::PolicyTable { slot: WEB_SLOT, table: Some(table) }]).unwrap_err();
    assert!(error.to_string().contains(maps::POLICIES.pin), "{error}");
    assert_eq!(datapath.object.read_tables().unwrap().policies[&WEB_SLOT], world::allow_all());
}

#[test]
fn a_pin_of_another_layout_is_refused_with_its_path() {
    let pins = Pins::new();
    drop(pins.load());
    let maps_directory = pins.path().join("maps");
    let pin = maps_directory.join(maps::IPCACHE.pin);
    fs::remove_file(&pin).unwrap();
    fs::rename(maps_directory.join(maps::ENDPOINTS.pin), &pin).unwrap();
    let error = pins.try_load().unwrap_err().to_string();
    assert!(error.contains(pin.to_str().unwrap()) && error.contains("Remove"), "{error}");
    assert!(error.contains("values of 16, 524288 rows"), "what was expected: {error}");
}

#[test]
fn a_pin_that_is_no_map_or_of_a_later_version_is_refused_with_its_path() {
    let pins = Pins::new();
    let _namespace = Datapath::new();
    let mut object = pins.load();
    object.attach(WEB, Hook::Endpoint).unwrap();
    let before = programs_on(WEB);
    let maps_directory = pins.path().join("maps");
    let pin = maps_directory.join(maps::FLOWS.pin);
    fs::remove_file(&pin).unwrap();
    object.program("tc_from_overlay").unwrap().pin(&pin).unwrap();
    let error = pins.try_load().unwrap_err().to_string();
    assert!(error.contains(pin.to_str().unwrap()) && error.contains("it is no map"), "{error}");

    let later = maps_directory.join("flows_v999");
    fs::rename(&pin, &later).unwrap();
    let error = pins.try_load().unwrap_err().to_string();
    assert!(error.contains("flows_v999") && error.contains(maps::FLOWS.pin), "{error}");
    assert_eq!(programs_on(WEB), before, "what is attached stays");
    assert!(!pin.exists(), "nothing was loaded");

    // Of an earlier one: it stays until the programs have moved.
    let earlier = maps_directory.join("flows_v0");
    fs::rename(&later, &earlier).unwrap();
    let mut next = pins.load();
    assert!(earlier.exists());
    next.settle().unwrap();
    assert!(!earlier.exists() && pin.exists());
}

#[test]
fn memory_grows_with_rows() {
    let mut datapath = Datapath::new();
    let before = datapath.object.map_bytes().unwrap();
    let table = (0..10_000).map(|peer| (peer_row(Direction::Egress, peer), rule(Action::Deny, 1))).collect();
    datapath.object.write(&[Step::PolicyTable { slot: WEB_SLOT, table: Some(table) }]).unwrap();
    let after = datapath.object.map_bytes().unwrap();
    println!("{before} bytes, and {} for 10,000 rows", after - before);
    assert!(after > before + 10_000 * 24, "{before} {after}");
}

/// Program identities on an interface, ingress and egress.
fn programs_on(ifindex: u32) -> Vec<u32> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let name = format!("t{ifindex}");
    [TcAttachType::Ingress, TcAttachType::Egress]
        .iter()
        .flat_map(|direction| SchedClassifier::query_tcx(&name, *direction).unwrap().1)
        .map(|program| program.id())
        .collect()
}

/// The kernel lets go of a link some time after its pin.
fn wait_until_nothing_is_on(ifindex: u32) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !programs_on(ifindex).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "{:?} are still on {ifindex}", programs_on(ifindex));
        std::thread::yield_now();
    }
}

fn pinned_links(pins: &Pins) -> Vec<PathBuf> {
    let mut links: Vec<_> =
        fs::read_dir(pins.path().join("links")).unwrap().map(|entry| entry.unwrap().path()).collect();
    links.sort();
    links
}

#[test]
fn programs_stay_attached_and_are_replaced_in_place() {
    let pins = Pins::new();
    // For the interfaces of its network namespace.
    let _namespace = Datapath::new();
    let mut first = pins.load();
    for (ifindex, hook) in [(WEB, Hook::Endpoint), (OVERLAY, Hook::Overlay), (UPLINK, Hook::Uplink)] {
        first.attach(ifindex, hook).unwrap();
    }
    assert_eq!(
        first.attached().unwrap(),
        [(WEB, Hook::Endpoint), (OVERLAY, Hook::Overlay), (UPLINK, Hook::Uplink)]
    );
    let before = programs_on(WEB);
    assert_eq!((before.len(), programs_on(OVERLAY).len(), programs_on(UPLINK).len()), (2, 1, 2));
    let links = pinned_links(&pins);
    drop(first);
    assert_eq!(programs_on(WEB), before, "the programs outlive the daemon");

    let mut second = pins.load();
    assert_eq!(second.attach(WEB, Hook::Endpoint).unwrap(), Attached::InPlace);
    let after = programs_on(WEB);
    assert_eq!(after.len(), 2, "in place, not beside");
    assert!(after.iter().all(|id| !before.contains(id)));
    assert_eq!(pinned_links(&pins), links);

    second.detach(WEB).unwrap();
    wait_until_nothing_is_on(WEB);
    second.detach(WEB).unwrap();
    assert_eq!(second.attached().unwrap(), [(OVERLAY, Hook::Overlay), (UPLINK, Hook::Uplink)]);
    drop(second);
    object::cleanup(pins.path()).unwrap();
    wait_until_nothing_is_on(UPLINK);
}

#[test]
fn an_interface_that_took_the_index_of_one_that_went_gets_the_programs() {
    let pins = Pins::new();
    let _namespace = Datapath::new();
    let mut object = pins.load();
    object.attach(WEB, Hook::Endpoint).unwrap();
    let ip = |arguments: &str| {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    };
    ip(&format!("link del t{WEB}"));
    assert_eq!(object.attached().unwrap(), [(WEB, Hook::Endpoint)], "what is to be swept is listed");
    ip(&format!("link add t{WEB} index {WEB} type veth peer name p{WEB}"));
    assert_eq!(programs_on(WEB), [0; 0]);
    assert_eq!(object.attach(WEB, Hook::Endpoint).unwrap(), Attached::Anew);
    assert_eq!(programs_on(WEB).len(), 2);
    ip(&format!("link del t{WEB}"));
    object.detach(WEB).unwrap();
    assert_eq!(object.attached().unwrap(), []);
}
