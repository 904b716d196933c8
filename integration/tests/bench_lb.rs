//! The bench of services and prefilters measures what its figures say: every packet of every run goes where it should, every
//! connection comes to its backend, and all services are loaded. What it costs is no test's business.
use std::{collections::BTreeSet, env, path::PathBuf};

use anyhow::Result;
use weft_integration::bench::lb::{Options, run};

/// The benches' own kernel programs.
fn object() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/weft-bench.o");
    env::var_os("WEFT_BENCH_OBJECT").map_or_else(built, PathBuf::from)
}

#[test]
fn every_figure_is_measured_on_packets_and_connections_that_went_where_it_says() -> Result<()> {
    // What went elsewhere is an error of the run.
    let options = Options { rounds: 1, repeat: 500, connects: 20, services: 20, only: String::new() };
    let report = run(&object(), &options, |_| {})?;
    let names: BTreeSet<String> = report.figures().iter().map(|figure| figure.name.clone()).collect();
    assert_eq!(names, packets().chain(connections()).chain(loads()).collect());
    Ok(())
}

const SERVICES: [u32; 2] = [1, 10_000];

fn packets() -> impl Iterator<Item = String> {
    let mut names = Vec::new();
    for flows in ["1_flows", "10k_flows"] {
        names.extend(["xdp", "tc"].map(|program| format!("ref.{program}.{flows}")));
        names.extend(SERVICES.map(|services| format!("tc.lb.established.{flows}.services_{services}")));
        for services in [1, 100, 10_000] {
            for mode in ["dsr", "snat"] {
                let of = |state| format!("xdp.lb.{mode}.{state}.{flows}.services_{services}");
                names.extend(["new", "established"].map(of));
            }
        }
    }
    for family in ["prefilter", "prefilter6"] {
        for sources in ["hit", "miss"] {
            let of = |prefixes| format!("xdp.{family}.{sources}.prefixes_{prefixes}");
            names.extend([1, 10_000, 200_000].map(of));
        }
    }
    names.into_iter()
}

fn connections() -> impl Iterator<Item = String> {
    let mut names: Vec<String> = ["ref.connect", "ref.connect.routed"].map(str::to_owned).into();
    for way in ["sock.connect.service", "sock.connect.other", "sock.connect.routed", "tc.connect"] {
        names.extend(SERVICES.map(|services| format!("{way}.services_{services}")));
    }
    for way in ["rules", "map"] {
        names.extend([1, 100, 10_000].map(|number| format!("nft.dnat.{way}_{number}")));
    }
    names.into_iter()
}

fn loads() -> impl Iterator<Item = String> {
    ["", ".processors", ".maps"].into_iter().map(|what| format!("services.load.20x100{what}"))
}
