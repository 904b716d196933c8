//! The bench of the datapath measures what its figures say: every packet of every run goes where it should. What it
//! costs is no test's business.
use std::{collections::BTreeSet, env, path::PathBuf};

use anyhow::Result;
use weft_integration::bench::datapath::{Options, run};

/// The benches' own kernel programs.
fn object() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/weft-bench.o");
    env::var_os("WEFT_BENCH_OBJECT").map_or_else(built, PathBuf::from)
}

#[test]
fn every_figure_of_the_datapath_is_measured_on_packets_that_went_where_it_says() -> Result<()> {
    let options = Options { rounds: 1, repeat: 500, new_flows: 500, only: String::new() };
    // A packet that went elsewhere is an error of the run.
    let report = run(&object(), &options, |_| {})?;
    let mut expected: BTreeSet<String> = ["ref.tc.1_flows", "ref.tc.10k_flows"].map(str::to_owned).into();
    for way in ["tc.egress.overlay", "tc.ingress"] {
        for state in ["new", "established"] {
            for flows in ["1_flows", "10k_flows"] {
                for entries in ["1", "1000", "50000", "50000_to_1"] {
                    expected.insert(format!("{way}.{state}.{flows}.entries_{entries}"));
                }
            }
        }
    }
    let names: BTreeSet<String> = report.figures().iter().map(|figure| figure.name.clone()).collect();
    assert_eq!(names, expected);
    for figure in report.figures() {
        assert!(figure.value > 0.0 && figure.ratio.is_none_or(f64::is_finite), "{figure:?}");
        assert_eq!(figure.ratio.is_none(), figure.name.starts_with("ref."), "{figure:?}");
    }
    Ok(())
}
