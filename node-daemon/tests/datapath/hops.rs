//! Next hops that the kernel keeps resolved for us, asked for on the real kernel.

use std::{collections::BTreeSet, net::IpAddr};

use weft_noded::kernel::{links::Links, netlink::Netlink};

use crate::live::{Machine, UPLINK, ifindex, ip};

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Neighbours of the uplink that are managed.
fn managed() -> BTreeSet<IpAddr> {
    let shown = ip(&format!("neigh show dev {UPLINK}"));
    let managed = shown.lines().filter(|line| line.contains(" managed ") && line.contains(" proto 119"));
    managed.map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn next_hops_are_kept_by_their_routes_and_let_go_and_permanent_ones_are_left_alone() {
    let _machine = Machine::new();
    ip(&format!("addr add 2001:db8:1::11/64 dev {UPLINK} nodad"));
    ip("route add 203.0.113.0/24 via 192.0.2.1");
    ip("route add 198.51.100.0/24 nexthop via 192.0.2.2 nexthop via inet6 2001:db8:1::2");
    ip("route add 2001:db8:2::/64 via 2001:db8:1::1");
    ip("route add unreachable 203.0.113.66");
    let links = Netlink::open().unwrap();
    let uplinks = BTreeSet::from([ifindex(UPLINK)]);
    let keep = async |places: &[&str]| links.keep_neighbours(&uplinks, &addresses(places)).await.unwrap();

    let places = [
        // A neighbour itself, by a router, by one of two routers, and of the other family.
        "192.0.2.12",
        "203.0.113.5",
        "203.0.113.6",
        "198.51.100.5",
        "2001:db8:2::5",
        // Nowhere, and here.
        "203.0.113.66",
        "8.8.8.8",
        "192.0.2.11",
    ];
    assert!(keep(&places).await);
    let hops = ["192.0.2.12", "192.0.2.1", "192.0.2.2", "2001:db8:1::2", "2001:db8:1::1"];
    assert_eq!(managed(), addresses(&hops));
    assert!(!keep(&places).await, "nothing to do");

    ip(&format!("neigh flush dev {UPLINK}"));
    assert_eq!(managed(), addresses(&[]));
    assert!(keep(&places).await, "somebody flushed them");
    assert_eq!(managed(), addresses(&hops));

    ip("route replace 203.0.113.0/24 via 192.0.2.3");
    assert!(keep(&places[..2]).await);
    assert_eq!(managed(), addresses(&["192.0.2.12", "192.0.2.3"]));

    // An operator's word stands, over ours and under it.
    for address in ["192.0.2.3", "192.0.2.4"] {
        ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:01 nud permanent dev {UPLINK}"));
    }
    assert!(!keep(&["192.0.2.12", "203.0.113.5", "192.0.2.4"]).await);
    assert!(keep(&[]).await);
    assert_eq!(managed(), addresses(&[]));
    let permanent = ip(&format!("neigh show nud permanent dev {UPLINK}"));
    assert_eq!(permanent.matches("02:00:00:00:00:01").count(), 2, "{permanent}");
}

#[tokio::test]
async fn a_neighbour_that_was_learnt_is_kept_from_then_on() {
    let _machine = Machine::new();
    ip(&format!("neigh replace 192.0.2.12 lladdr 02:00:00:00:00:01 nud reachable dev {UPLINK}"));
    let links = Netlink::open().unwrap();
    let uplinks = BTreeSet::from([ifindex(UPLINK)]);
    assert!(links.keep_neighbours(&uplinks, &addresses(&["192.0.2.12"])).await.unwrap());
    assert_eq!(managed(), addresses(&["192.0.2.12"]));
    assert!(ip("neigh show 192.0.2.12").contains("02:00:00:00:00:01"), "its MAC stays");
    // Other uplinks' are not asked for.
    assert!(links.keep_neighbours(&BTreeSet::new(), &addresses(&["192.0.2.12"])).await.unwrap());
    assert_eq!(managed(), addresses(&[]));
}
