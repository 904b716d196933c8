//! The bench of XDP measures what its figures say: every packet of every run goes where it should. What it costs is no test's
//! business.
use std::{collections::BTreeSet, env, path::PathBuf};

use anyhow::Result;
use weft_integration::bench::lb::{Options, run};

/// The benches' own kernel programs.
fn object() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/weft-bench.o");
    env::var_os("WEFT_BENCH_OBJECT").map_or_else(built, PathBuf::from)
}

#[test]
fn every_figure_of_xdp_is_measured_on_packets_that_went_where_it_says() -> Result<()> {
    // A packet that went elsewhere is an error of the run.
    let report = run(&object(), &Options { rounds: 1, repeat: 500, only: String::new() }, |_| {})?;
    let mut expected: BTreeSet<String> =
        ["ref.xdp.1_flows".to_owned(), "ref.xdp.10k_flows".to_owned()].into();
    for mode in ["dsr", "snat"] {
        for state in ["new", "established"] {
            for flows in ["1_flows", "10k_flows"] {
                for services in [1, 100, 10_000] {
                    expected.insert(format!("xdp.lb.{mode}.{state}.{flows}.services_{services}"));
                }
            }
        }
    }
    for sources in ["hit", "miss"] {
        for prefixes in [1, 10_000, 200_000] {
            expected.insert(format!("xdp.prefilter.{sources}.prefixes_{prefixes}"));
        }
    }
    let names: BTreeSet<String> = report.figures().iter().map(|figure| figure.name.clone()).collect();
    assert_eq!(names, expected);
    Ok(())
}
