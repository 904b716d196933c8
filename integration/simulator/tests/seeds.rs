//! Many seeds. `WEFT_SEEDS=N` runs N of them, `WEFT_FIRST_SEED=N` begins with another than 0; `WEFT_SEED=N` runs one and
//! prints what happens in it (with `RUST_LOG=info`, as controllers and daemons see it, too).
#![expect(clippy::panic, reason = "tests fail this way")]
use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use tracing_subscriber::EnvFilter;
use weft_simulator::{Failure, Size, run};

const SEEDS: u64 = 1000;
const SIZE: Size = Size { events: 25 };
/// Of the history of a seed that failed.
const LINES_SHOWN: usize = 400;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}: \"{text}\" is not a number")))
}

fn report(failure: &Failure) -> String {
    let Failure { seed, why, history } = failure;
    let hidden = history.len().saturating_sub(LINES_SHOWN);
    let lines = history[hidden..].join("\n");
    format!(
        "seed {seed}: {why}\n\nWhat happened ({hidden} earlier lines left out):\n{lines}\n\nseed {seed}: {why}\nTo run it \
         again: WEFT_SEED={seed} cargo test -p weft-simulator --test seeds -- --nocapture fleets_come_to_rest"
    )
}

#[test]
fn fleets_come_to_rest_after_any_faults_and_are_never_open_by_ignorance() {
    if let Some(seed) = number("WEFT_SEED") {
        tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).without_time().init();
        match run(seed, SIZE) {
            Ok(report) => println!("{}", report.history.join("\n")),
            Err(failure) => panic!("{}", report(&failure)),
        }
        return;
    }
    let first = number("WEFT_FIRST_SEED").unwrap_or(0);
    let (end, next) = (first + number("WEFT_SEEDS").unwrap_or(SEEDS), AtomicU64::new(first));
    let work = || {
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || !failures.is_empty() {
                return failures;
            }
            failures.extend(run(seed, SIZE).err());
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<Failure> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    if let Some(failure) = failures.iter().min_by_key(|failure| failure.seed) {
        panic!("{}", report(failure));
    }
}

#[test]
fn a_seed_makes_the_same_run_again() {
    for seed in 0..5 {
        let histories = [(); 2].map(|()| match run(seed, SIZE) {
            Ok(report) => report.history,
            Err(failure) => failure.history,
        });
        let [first, again] = histories;
        let differing = first.iter().zip(&again).find(|(first, again)| first != again);
        assert_eq!((first.len(), differing), (again.len(), None), "seed {seed}");
    }
}
