//! The maps hold what they are told, outlive the object that wrote them, and say so when they can't.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::mount::{MntFlags, umount2};
use weft_noded::{
    kernel::{
        Attached, Datapath as _, Hook,
        object::{self, Object, Options},
    },
    plan::tables::{HostRow, Step, Tables},
};
use weft_shared::{
    layout::{
        Action, Address, Config, Direction, FailsafeKey, PeerKey, PolicyRow, PortKey, PrefixKey, Reason, maps,
    },
    policy::compile::Rulebook,
};

use crate::{
    harness::{Datapath, from_endpoint},
    packets::out_of,
    world::{
        self, API, API_IDENTITY, DB_IDENTITY, DB_PARTY, Family, OVERLAY, UPLINK, WEB, WEB_IDENTITY,
        WEB_PARTY, WEB_SLOT, tables,
    },
};

/// A bpffs of the test's own.
pub(crate) struct Pins {
    directory: tempfile::TempDir,
}

impl Pins {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        object::ensure_bpffs(directory.path()).expect("a bpffs (tests need root)");
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn load(&self) -> Object {
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
            .rulebooks
            .iter()
            .map(|(number, rows)| Step::Rulebook { number: *number, rows: Some(rows.clone()) }),
    );
    steps.extend(
        tables.failsafe.iter().map(|(key, number)| Step::Failsafe { key: *key, rulebook: Some(*number) }),
    );
    steps.push(Step::Host { host: tables.host });
    steps.extend(
        tables.peer_rules.iter().map(|(key, number)| Step::PeerRules { key: *key, rulebook: Some(*number) }),
    );
    steps
        .extend(tables.subjects.iter().map(|(slot, row)| Step::Subject { slot: *slot, subject: Some(*row) }));
    steps
}

#[test]
fn what_was_written_is_read_back_also_by_the_next_object() {
    let pins = Pins::new();
    let mut expected = tables();
    expected.peer_rules.insert(key(API_IDENTITY), 1);
    let everyone = FailsafeKey::new(Direction::Ingress, PrefixKey { bits: 0, address: Address::UNSPECIFIED });
    let v4 = PrefixKey { bits: Address::MAPPED_PREFIX_BITS, address: Address::from_v4(0) };
    expected.failsafe = [(everyone, 1), (FailsafeKey::new(Direction::Egress, v4), 2)].into();
    expected.host = Some(HostRow { subject: 3, own_endpoints_free: true });
    let mut first = pins.load();
    first.write(&steps(&expected)).unwrap();
    assert_eq!(first.read_tables().unwrap(), expected);
    drop(first);
    let mut second = pins.load();
    assert_eq!(second.read_tables().unwrap(), expected);
    // Every kind of removal, and changes in place.
    let address = std::net::IpAddr::V4(DB_PARTY.v4).into();
    let prefix = *expected.prefixes.keys().next().unwrap();
    let changes = [
        Step::Endpoint { ifindex: API, endpoint: None },
        Step::Ipcache { address, peer: None },
        Step::Prefix { prefix, peer: None },
        Step::Node { slot: 2, node: None },
        Step::NodeAddress { address: expected.nodes[&2].address, slot: None },
        Step::Subject { slot: 3, subject: None },
        Step::Rulebook { number: 77, rows: Some(rulebook(&[(PortKey::EVERYTHING, 1), (HTTP, 2)])) },
        Step::Rulebook { number: 77, rows: Some(rulebook(&[(PortKey::EVERYTHING, 3), (HTTPS, 2)])) },
        Step::Rulebook { number: 78, rows: Some(rulebook(&[(PortKey::EVERYTHING, 1)])) },
        Step::PeerRules { key: key(API_IDENTITY), rulebook: Some(77) },
        Step::PeerRules { key: key(DB_IDENTITY), rulebook: Some(78) },
        Step::Failsafe { key: everyone, rulebook: None },
        Step::Failsafe { key: FailsafeKey::new(Direction::Egress, v4), rulebook: Some(77) },
        Step::Host { host: Some(HostRow { subject: 2, own_endpoints_free: false }) },
        Step::Settle,
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
    for step in
        [Step::PeerRules { key: key(DB_IDENTITY), rulebook: None }, Step::Rulebook { number: 78, rows: None }]
    {
        expected.apply(&step);
        third.write(&[step]).unwrap();
    }
    assert_eq!(third.read_tables().unwrap(), expected);
}

const HTTP: PortKey = PortKey::exact(6, 80);
const HTTPS: PortKey = PortKey::exact(6, 443);

fn key(peer: u32) -> PeerKey {
    PeerKey { subject: WEB_IDENTITY, peer, direction: Direction::Egress as u32 }
}

fn rulebook(rules: &[(PortKey, u32)]) -> Arc<Rulebook> {
    Arc::new(rules.iter().map(|(ports, number)| (*ports, PolicyRow::of(Action::Deny, *number))).collect())
}

#[test]
fn what_is_not_there_can_be_removed() {
    let mut datapath = Datapath::new();
    let before = datapath.object.read_tables().unwrap();
    let nowhere: Address = std::net::IpAddr::from([9, 9, 9, 9]).into();
    datapath
        .object
        .write(&[
            Step::Endpoint { ifindex: 999, endpoint: None },
            Step::Ipcache { address: nowhere, peer: None },
            Step::Prefix { prefix: PrefixKey { bits: 128, address: nowhere }, peer: None },
            Step::NodeAddress { address: nowhere, slot: None },
            Step::Rulebook { number: 9999, rows: None },
            Step::PeerRules { key: key(9999), rulebook: None },
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
    let subject = Some(tables().subjects[&WEB_SLOT]);
    assert!(datapath.object.write(&[Step::Subject { slot, subject }]).is_err());
}

#[test]
fn a_rulebook_that_does_not_fit_is_refused_and_what_was_there_stays() {
    let mut datapath = Datapath::new();
    let before = datapath.object.read_tables().unwrap();
    let ports: Vec<(PortKey, u32)> = (0..=u16::MAX).map(|port| (PortKey::exact(17, port), 1)).collect();
    let (books, rows) = (u32::try_from(maps::RULES_MAX / ports.len()).unwrap(), Some(rulebook(&ports)));
    let steps: Vec<Step> =
        (0..=books).map(|number| Step::Rulebook { number: 1000 + number, rows: rows.clone() }).collect();
    let error = datapath.object.write(&steps).unwrap_err();
    assert!(error.to_string().contains(maps::RULES.pin), "{error}");
    let after = datapath.object.read_tables().unwrap();
    assert_eq!((after.subjects, after.peer_rules), (before.subjects, before.peer_rules));
    assert!(before.rulebooks.iter().all(|(number, rows)| after.rulebooks.get(number) == Some(rows)));
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
    let ports: Vec<(PortKey, u32)> = (0..10_000).map(|port| (PortKey::exact(6, port), 1)).collect();
    datapath.object.write(&[Step::Rulebook { number: 1000, rows: Some(rulebook(&ports)) }]).unwrap();
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
    assert_eq!((before.len(), programs_on(OVERLAY).len(), programs_on(UPLINK).len()), (2, 2, 2));
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
