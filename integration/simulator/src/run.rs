//! One run: things happen by chance, then all faults end, and the fleet must come to rest where the store says.
use std::time::Duration;

use crate::{chance::Chance, events::something_happens, rest, world::World};

/// Between the end of all faults and rest. The longest step is a back-off of 15 s behind a silence of 9 s.
const CONVERGES_WITHIN: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How much happens.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub events: usize,
}

/// What went wrong, and what had happened until then.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub why: String,
    pub history: Vec<String>,
}

/// What a run that went well was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub history: Vec<String>,
    pub revision: u64,
}

/// Runs a seed; equal seeds make equal runs.
pub fn run(seed: u64, size: Size) -> Result<Report, Failure> {
    let failed = |why: String, history: Vec<String>| Failure { seed, why, history };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| failed(error.to_string(), Vec::new()))?;
    runtime.block_on(async {
        let chance = Chance::new(seed);
        let (controllers, nodes) = (1 + chance.below(3), 2 + chance.below(2));
        let world = World::begin(chance, controllers, nodes).await;
        let mut world = world.map_err(|error| failed(error.to_string(), Vec::new()))?;
        let ended = live(&mut world, size).await;
        let history = world.history.lines();
        match ended.and(world.history.first_violation().map_or(Ok(()), Err)) {
            Ok(()) => Ok(Report { history, revision: world.shared.ledger().revision }),
            Err(why) => Err(failed(why, history)),
        }
    })
}

async fn live(world: &mut World, size: Size) -> Result<(), String> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..size.events {
        something_happens(world).await.map_err(|error| error.to_string())?;
        tokio::time::sleep(pause(&world.chance)).await;
        world.tend().await;
        look(world);
        if let Some(violation) = world.history.first_violation() {
            return Err(violation);
        }
    }
    world.heal().await;
    come_to_rest(world).await
}

fn pause(chance: &Chance) -> Duration {
    match chance.within(0..10) {
        0..5 => chance.milliseconds(0..30),
        5..9 => chance.milliseconds(30..600),
        _ => chance.milliseconds(600..7000),
    }
}

/// At the tables of a node that nobody writes.
fn look(world: &World) {
    let Some(node) = world.chance.pick(&world.nodes) else { return };
    let Some(daemon) = node.daemon.as_ref().filter(|daemon| daemon.power.is_at_rest()) else { return };
    let inspector = &daemon.inspector;
    if let Some(desired) = inspector.desired() {
        node.twin.with(|state| inspector.at_rest(&state.tables, &desired));
    }
}

async fn come_to_rest(world: &mut World) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + CONVERGES_WITHIN;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(violation) = world.history.first_violation() {
            return Err(violation);
        }
        match rest::at_rest(world).await {
            Ok(()) => return rest::right_verdicts(world).await,
            Err(why) if tokio::time::Instant::now() >= deadline => {
                return Err(format!("{CONVERGES_WITHIN:?} after all faults have ended: {why}"));
            }
            Err(_) => {}
        }
    }
}
