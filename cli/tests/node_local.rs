//! `weft node status`, `map` and `service`, on the node itself.
#![expect(clippy::unwrap_used, reason = "a test")]

mod fake;

use fake::{Daemon, LocalScript};
use weft_proto::v1;

fn status(problems: &[&str]) -> v1::StatusResponse {
    v1::StatusResponse {
        node: "node-1".to_owned(),
        connected: true,
        controller: "http://controller:7443".to_owned(),
        realised_revision: 41,
        problems: problems.iter().map(|problem| (*problem).to_owned()).collect(),
        maps: vec![v1::MapFill { name: "ipcache".to_owned(), entries: 131_072, capacity: 524_288 }],
        capabilities: Some(v1::NodeCapabilities {
            devices: vec![v1::Device {
                name: "eth0".to_owned(),
                xdp: v1::XdpMode::Generic.into(),
                mtu_bytes: 1500,
            }],
            ..v1::NodeCapabilities::default()
        }),
        prefilters: vec![v1::PrefilterDrops {
            name: "scanners".to_owned(),
            prefixes: 200_000,
            arp_senders: 1,
            packets: 12,
            bytes: 720,
        }],
        round_trips: vec![v1::RoundTrips {
            local_identity: 300,
            remote_identity: 5,
            samples: 12,
            mean_microseconds: 1042,
        }],
        drops: [("delivered_local", 7), ("policy_denied", 9), ("spoofed", 0)]
            .map(|(reason, packets)| v1::DropCount {
                reason: reason.to_owned(),
                point: "tc_to_endpoint".to_owned(),
                packets,
                bytes: 60 * packets,
            })
            .to_vec(),
        ..v1::StatusResponse::default()
    }
}

fn daemon(script: LocalScript) -> (tempfile::TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(script, directory.path());
    (directory, daemon)
}

#[tokio::test]
async fn the_status_shows_maps_and_drops_the_most_frequent_first() {
    let (_directory, daemon) = daemon(LocalScript { status: Some(status(&[])), ..LocalScript::default() });
    let ran = daemon.weft_node(&["status"]).await;
    ran.assert_code(0);
    let row = |words: &str| {
        let found = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") == words;
        ran.stdout.lines().position(found).unwrap_or_else(|| panic!("no line {words}:\n{}", ran.stdout))
    };
    row("realised revision 41");
    row("ipcache 131072 524288 25 %");
    row("uplink eth0, XDP: generic");
    row("scanners 200000 1 12 720");
    assert!(row("policy_denied tc_to_endpoint 9 540") < row("delivered_local tc_to_endpoint 7 420"));
    assert!(!ran.stdout.contains("spoofed"));

    let json = daemon.weft_node(&["status", "-o", "json"]).await.assert_code(0).json();
    assert_eq!(json["maps"][0]["entries"], 131_072);
}

#[tokio::test]
async fn problems_make_the_status_fail_and_are_shown() {
    let problem = "the map ipcache is nearly full: 471860 of 524288 entries";
    let script = LocalScript { status: Some(status(&[problem])), ..LocalScript::default() };
    let (_directory, daemon) = daemon(script);
    let ran = daemon.weft_node(&["status"]).await;
    ran.assert_code(1);
    assert!(ran.stdout.contains(problem), "{}", ran.stdout);
    assert!(ran.stderr.contains("node node-1 has 1 problem"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_map_is_shown_row_by_row_and_a_wrong_name_is_answered_with_those_there_are() {
    let row = v1::DumpMapResponse { key: "10.200.1.2".to_owned(), value: "identity 256".to_owned() };
    let (_directory, daemon) = daemon(LocalScript { rows: vec![row], ..LocalScript::default() });
    let ran = daemon.weft_node(&["map", "ipcache"]).await;
    assert_eq!(ran.assert_code(0).stdout, "KEY         VALUE\n10.200.1.2  identity 256\n");
    let json = daemon.weft_node(&["map", "ipcache", "-o", "json"]).await.json();
    assert_eq!(json["items"][0]["value"], "identity 256");
    let ran = daemon.weft_node(&["map", "ipcach"]).await;
    ran.assert_code(1);
    assert!(ran.stderr.contains("there is ipcache"), "{}", ran.stderr);
}

fn tables(rejected: &str) -> v1::ServiceTablesResponse {
    let frontend = |address: &str, port, kind: v1::FrontendType, (ipv6, inside, outside)| v1::TableFrontend {
        frontend: Some(v1::Frontend {
            address: address.to_owned(),
            port,
            protocol: v1::Protocol::Tcp.into(),
            r#type: kind.into(),
        }),
        ipv6,
        inside,
        outside,
    };
    let backend = |address: &str, new_flows, slots, share_basis_points| v1::TableBackend {
        address: address.to_owned(),
        port: 8080,
        weight: 1,
        new_flows,
        local: !new_flows,
        slots,
        share_basis_points,
    };
    let table = v1::ServiceTable {
        slot: 5,
        maglev_slots: 16_381,
        algorithm: v1::Algorithm::Maglev.into(),
        forwarding_mode: v1::ForwardingMode::Snat.into(),
        affinity_seconds: 600,
        backends: vec![
            backend("10.200.0.5", false, 0, 0),
            backend("10.200.1.5", true, 8_190, 5_000),
            backend("10.200.2.5", true, 8_191, 5_000),
        ],
        ..v1::ServiceTable::default()
    };
    let rejecting = v1::ServiceTable {
        slot: 6,
        algorithm: v1::Algorithm::Random.into(),
        forwarding_mode: v1::ForwardingMode::Dsr.into(),
        sources: true,
        end_connections: true,
        ..v1::ServiceTable::default()
    };
    v1::ServiceTablesResponse {
        frontends: vec![
            frontend("10.96.0.1", 80, v1::FrontendType::Cluster, (false, 5, 6)),
            frontend("", 30_080, v1::FrontendType::NodePort, (true, 0, 0)),
        ],
        tables: vec![table, rejecting],
        rejected: rejected.to_owned(),
    }
}

#[tokio::test]
async fn a_service_is_shown_as_the_kernel_has_it() {
    let (_directory, daemon) = daemon(LocalScript { tables: tables(""), ..LocalScript::default() });
    let ran = daemon.weft_node(&["service", "api"]).await;
    let expected = "\
FRONTEND             FAMILY  FROM THIS NODE  FROM ELSEWHERE
10.96.0.1:80/TCP     IPv4    table 5         table 6
node port 30080/TCP  IPv6    none            none

table 5: maglev, snat, affinity 600 s, 16381 slots
BACKEND          WEIGHT  FLOWS            ON         SLOTS  SHARE
10.200.0.5:8080  1       keeps its flows  this node  0      0.00%
10.200.1.5:8080  1       takes new flows  elsewhere  8190   50.00%
10.200.2.5:8080  1       takes new flows  elsewhere  8191   50.00%

table 6: random, dsr, sources are judged, ends connections, rejecting: nobody takes new flows
";
    assert!(ran.assert_code(0).stdout.starts_with(expected), "{}", ran.stdout);
    let json = daemon.weft_node(&["service", "api", "-o", "json"]).await.assert_code(0).json();
    assert_eq!(json["tables"][0]["backends"][1]["slots"], 8190);
    assert_eq!(json["frontends"][0]["frontend"]["protocol"], "TCP");

    let ran = daemon.weft_node(&["service", "apj"]).await;
    ran.assert_code(1);
    assert!(ran.stderr.contains("this node was told of no service \"apj\""), "{}", ran.stderr);
}

#[tokio::test]
async fn a_service_that_the_node_could_not_realise_is_shown_and_fails() {
    let script = LocalScript { tables: tables("its frontend is another's"), ..LocalScript::default() };
    let (_directory, daemon) = daemon(script);
    let ran = daemon.weft_node(&["service", "api"]).await;
    ran.assert_code(1);
    assert!(ran.stdout.contains("table 5: maglev"), "{}", ran.stdout);
    assert!(
        ran.stderr.contains("service api is not what it should be: its frontend is another's"),
        "{}",
        ran.stderr
    );
}
