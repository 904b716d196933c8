//! What somebody else changes in the kernel is found, mended and reported.

use std::{fs, net::IpAddr};

use aya::{
    maps::{Array, HashMap, Map, MapData, lpm_trie::LpmTrie},
    programs::{SchedClassifier, TcAttachType},
};
use weft_noded::daemon::{EndpointState, Target, VXLAN_DEVICE};
use weft_proto::v1;
use weft_shared::layout::{BOOK_ROWS_MAX, Book, Class, maps};

use crate::live::{Live, Machine, UPLINK, add_uplink, ifindex, ip};

/// A machine with a daemon that has the open endpoint `web`, and the name of its interface.
async fn with_web() -> (Machine, Live, String) {
    let machine = Machine::new();
    let live = machine.start().await;
    live.sync().await;
    let web = live.attach_web(machine.workload()).await;
    live.core.check().await.unwrap();
    assert_eq!(live.status().await.repairs, [], "nothing was changed by anybody");
    let interface = web.attachment.unwrap().interface;
    (machine, live, interface)
}

/// Names of the programs on an interface.
fn programs_on(interface: &str) -> Vec<String> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .iter()
        .flat_map(|direction| SchedClassifier::query_tcx(interface, *direction).unwrap().1)
        .map(|program| program.name_as_str().unwrap().to_owned())
        .collect()
}

/// The kernel lets go of a link some time after its pin.
async fn wait_until_nothing_is_on(interface: &str) {
    let gone = async {
        while !programs_on(interface).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("programs stay attached");
}

#[tokio::test]
async fn programs_that_were_taken_off_an_endpoint_are_back() {
    let (machine, live, interface) = with_web().await;
    assert_eq!(programs_on(&interface).len(), 2);
    for program in ["tc_from_endpoint", "tc_to_endpoint"] {
        fs::remove_file(machine.pin(&format!("links/{program}-{}", ifindex(&interface)))).unwrap();
    }
    wait_until_nothing_is_on(&interface).await;

    live.core.check().await.unwrap();

    assert_eq!(programs_on(&interface).len(), 2);
    assert_eq!(live.repairs("programs").await, 1);
}

#[tokio::test]
async fn rows_that_were_changed_or_removed_are_as_they_were() {
    let (machine, live, interface) = with_web().await;
    let endpoints = MapData::from_pin(machine.pin(&format!("maps/{}", maps::ENDPOINTS.pin))).unwrap();
    let mut endpoints = HashMap::<_, u32, [u8; 56]>::try_from(Map::HashMap(endpoints)).unwrap();
    let row = endpoints.get(&ifindex(&interface), 0).unwrap();
    endpoints.remove(&ifindex(&interface)).unwrap();

    live.core.check().await.unwrap();

    assert_eq!(endpoints.get(&ifindex(&interface), 0).unwrap(), row);
    assert_eq!(live.repairs("rows").await, 1);
}

#[tokio::test]
async fn rows_of_rulebooks_that_were_changed_or_removed_are_as_they_were() {
    type Rules = LpmTrie<MapData, [u8; 8], [u32; 4]>;
    let (machine, live, _) = with_web().await;
    let pinned = MapData::from_pin(machine.pin(&format!("maps/{}", maps::RULES.pin))).unwrap();
    let mut rules = Rules::try_from(Map::LpmTrie(pinned)).unwrap();
    let said = |rules: &Rules| {
        let rows =
            rules.iter().map(|row| row.map(|(key, row)| ((key.prefix_len(), key.data()), row)).unwrap());
        rows.collect::<std::collections::BTreeMap<_, _>>()
    };
    let verdicts = |rules: &Rules| said(rules).into_values().collect::<Vec<_>>();
    let before = verdicts(&rules);
    for (times, change) in (1..).zip([None, Some([1, 7, 1, 7])]) {
        let keys: Vec<_> = rules.keys().collect::<Result<_, _>>().unwrap();
        let key = keys.first().expect("rows of the rulebooks of web");
        match change {
            None => rules.remove(key).unwrap(),
            Some(row) => rules.insert(key, row, 0).unwrap(),
        }
        assert_ne!(verdicts(&rules), before);

        live.core.check().await.unwrap();

        // Under other numbers, perhaps: a number never stands for anything else.
        assert_eq!(verdicts(&rules), before);
        assert_eq!(live.repairs("rows").await, times);
    }
}

#[tokio::test]
async fn a_short_rulebook_that_was_changed_where_packets_find_it_is_as_it_was() {
    let (machine, live, _) = with_web().await;
    let pinned = MapData::from_pin(machine.pin(&format!("maps/{}", maps::BOOKS.pin))).unwrap();
    let mut places = Array::<_, [u32; size_of::<Book>() / 4]>::try_from(Map::Array(pinned)).unwrap();
    let policies = |places: &Array<MapData, [u32; size_of::<Book>() / 4]>| {
        let used = places.iter().map(Result::unwrap).filter(|words| words[0] != 0);
        used.map(|words| words[1..].to_vec()).collect::<Vec<_>>()
    };
    let before = policies(&places);
    let (place, mut words) =
        (0..).zip(places.iter().map(Result::unwrap)).find(|(_, words)| words[0] != 0).unwrap();
    // The action of the first row.
    words[2 + BOOK_ROWS_MAX] ^= 3;
    places.set(place, words, 0).unwrap();

    live.core.check().await.unwrap();

    assert_eq!(policies(&places), before);
    assert_eq!(live.repairs("rows").await, 1);
}

#[tokio::test]
async fn an_endpoint_that_was_cut_off_is_connected_again() {
    let (_machine, live, interface) = with_web().await;
    let route = || ip("route show 10.200.1.7");
    assert!(route().contains(&interface), "{}", route());
    ip("route del 10.200.1.7");
    live.core.check().await.unwrap();
    assert!(route().contains(&interface), "{}", route());
    assert_eq!(live.repairs("routes").await, 1);

    ip(&format!("link set {interface} down"));
    live.core.check().await.unwrap();

    assert!(route().contains(&interface), "{}", route());
    assert!(ip(&format!("link show {interface}")).contains(",UP"));
    assert!(ip(&format!("neigh show dev {interface}")).contains("10.200.1.7"));
    assert_eq!(live.repairs("routes").await, 2);
}

#[tokio::test]
async fn an_overlay_device_that_was_deleted_or_set_down_is_back_as_the_programs_know_it() {
    let (_machine, live, _) = with_web().await;
    let index = ifindex(VXLAN_DEVICE);
    ip(&format!("link del {VXLAN_DEVICE}"));
    live.core.check().await.unwrap();
    assert_eq!(ifindex(VXLAN_DEVICE), index);
    assert_eq!(programs_on(VXLAN_DEVICE), ["tc_from_overlay", "tc_to_overlay"]);
    assert_eq!(live.repairs("overlay").await, 1);

    ip(&format!("link set {VXLAN_DEVICE} down"));
    live.core.check().await.unwrap();

    assert!(ip(&format!("link show {VXLAN_DEVICE}")).contains(",UP"));
    assert_eq!(live.repairs("overlay").await, 2);
    assert_eq!(live.status().await.problems, [""; 0]);
}

#[tokio::test]
async fn routes_of_the_nodes_own_processes_to_the_pools_are_as_they_should_be() {
    let (_machine, live, _) = with_web().await;
    let pool = || ip("route show exact 10.200.0.0/16");
    let ours = format!("10.200.0.0/16 dev {VXLAN_DEVICE} proto 119 scope link src 192.0.2.11");
    assert_eq!(pool().trim(), ours);
    assert!(ip(&format!("link show {VXLAN_DEVICE}")).contains("NOARP"));
    // Another endpoint's address is on the node itself, by its own route.
    assert!(!ip("route get 10.200.1.7").contains(VXLAN_DEVICE));

    ip("route del 10.200.0.0/16");
    live.core.check().await.unwrap();
    assert_eq!((pool().trim(), live.repairs("routes").await), (ours.as_str(), 1));

    ip(&format!("route replace 10.200.0.0/16 dev {UPLINK}"));
    ip(&format!("route add 10.201.0.0/16 dev {VXLAN_DEVICE} proto 119"));
    live.core.check().await.unwrap();
    assert_eq!((pool().trim(), live.repairs("routes").await), (ours.as_str(), 2));
    assert_eq!(ip("route show 10.201.0.0/16"), "", "no pool of the fleet's");

    ip(&format!("link set {VXLAN_DEVICE} arp on"));
    ip(&format!("link set {VXLAN_DEVICE} down"));
    live.core.check().await.unwrap();
    assert_eq!(pool().trim(), ours);
    assert!(ip(&format!("link show {VXLAN_DEVICE}")).contains("NOARP"));
    assert_eq!((live.repairs("overlay").await, live.repairs("routes").await), (1, 2));

    ip(&format!("addr del 192.0.2.11/24 dev {UPLINK}"));
    ip(&format!("addr add 192.0.2.13/24 dev {UPLINK}"));
    live.core.check().await.unwrap();
    assert_eq!(pool().trim(), ours.replace("192.0.2.11", "192.0.2.13"));
    assert_eq!(live.repairs("routes").await, 2, "that was nobody's doing");
}

#[tokio::test]
async fn an_uplink_that_goes_is_a_problem_until_it_comes_again() {
    let (machine, live, _) = with_web().await;
    let before = ifindex(UPLINK);
    ip(&format!("link del {UPLINK}"));
    live.core.check().await.unwrap();
    let problems = live.status().await.problems;
    assert!(problems.iter().any(|problem| problem.contains(UPLINK)), "{problems:?}");

    add_uplink();
    assert_ne!(ifindex(UPLINK), before);
    live.core.check().await.unwrap();

    assert_eq!(programs_on(UPLINK).len(), 2);
    assert_eq!(live.status().await.problems, [""; 0]);
    assert!(machine.pin(&format!("links/tc_from_uplink-{}", ifindex(UPLINK))).exists());
    assert!(!machine.pin(&format!("links/tc_from_uplink-{before}")).exists());
}

#[tokio::test]
async fn addresses_that_the_host_gets_are_the_hosts() {
    let (_machine, live, _) = with_web().await;
    let is_host = async |address: &str| {
        let rows = live.core.dump("ipcache".to_owned()).await.unwrap().unwrap();
        let host = format!("class {}", Class::Host as u32);
        rows.iter()
            .any(|row| row.key.contains(address) && (row.value.contains("host") || row.value.contains(&host)))
    };
    assert!(!is_host("198.51.100.77").await);
    ip(&format!("addr add 198.51.100.77/24 dev {UPLINK}"));
    live.core.check().await.unwrap();
    assert!(is_host("198.51.100.77").await);
    assert!(
        !live.status().await.connected,
        "the controller is told of the node's addresses at a stream's beginning"
    );

    ip(&format!("addr del 198.51.100.77/24 dev {UPLINK}"));
    live.core.check().await.unwrap();
    assert!(!is_host("198.51.100.77").await);
}

#[tokio::test]
async fn endpoints_follow_the_mtu_of_the_uplink() {
    let (machine, live, interface) = with_web().await;
    assert!(ip(&format!("link show {interface}")).contains("mtu 1450"));
    ip(&format!("link set {UPLINK} mtu 9000"));

    live.core.check().await.unwrap();

    for shown in [ip(&format!("link show {interface}")), ip(&format!("link show {VXLAN_DEVICE}"))] {
        assert!(shown.contains("mtu 8950"), "{shown}");
    }
    assert!(machine.workload_mtu().contains("mtu 8950"), "{}", machine.workload_mtu());
    assert_eq!(live.status().await.repairs, [], "nobody changed what is ours");
}

#[tokio::test]
async fn forwarding_that_was_switched_off_is_on_again() {
    const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
    let (_machine, live, _) = with_web().await;
    fs::write(FORWARDING, "0").unwrap();

    live.core.check().await.unwrap();

    assert_eq!(fs::read_to_string(FORWARDING).unwrap().trim(), "1");
    assert_eq!(live.repairs("settings").await, 1);
}

#[tokio::test]
async fn an_interface_whose_attachment_nobody_remembers_is_down_before_its_programs_go() {
    let machine = Machine::new();
    ip("link add given0 type veth peer name inside0 address 02:00:00:00:00:77");
    ip("link set inside0 up");
    let live = machine.start().await;
    live.sync().await;
    let given = Target::Interface { name: "given0".to_owned(), mac: Some([2, 0, 0, 0, 0, 0x77]) };
    live.attach_web(given).await;
    assert!(ip("link show given0").contains(",UP"));
    live.kill().await;
    fs::remove_file(machine.attachments()).unwrap();

    let live = machine.start().await;
    assert_eq!(live.core.endpoint("web".to_owned()).await, Ok(EndpointState::Gone));
    assert_eq!(programs_on("given0").len(), 2, "nothing is swept before all was said");
    live.sync().await;

    wait_until_nothing_is_on("given0").await;
    let shown = ip("link show given0");
    assert!(!shown.contains(",UP") && shown.contains("state DOWN"), "{shown}");
    let endpoint = IpAddr::from([10, 200, 1, 7]);
    assert!(!ip("route show").contains(&endpoint.to_string()));
    let status: v1::StatusResponse = live.status().await;
    assert_eq!(status.endpoints, 0);
}
