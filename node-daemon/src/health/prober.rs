//! Runs the probes: a task for each backend, spread over time, few of them at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::Rng as _;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use weft_proto::v1;

use super::{
    Probed,
    probe::{self, Failure},
    targets::{Place, Target, targets},
    verdict::Verdict,
};
use crate::{
    balance::service::Service,
    daemon::Core,
    limits::{HEALTH_TOLD_MILLISECONDS, LACK_TOLD_SECONDS, PROBES_AT_ONCE_MAX, PROBES_BEGIN_MILLISECONDS},
};

/// Probes what the core says on this node, and tells it what was found, for as long as it is there.
pub async fn run(core: Core, node: String) {
    let mut wanted = core.probed();
    wanted.mark_changed();
    let (outcomes, found) = mpsc::channel(PROBES_AT_ONCE_MAX);
    let prober = Prober {
        node,
        services: BTreeMap::new(),
        changed: BTreeSet::new(),
        next_task: 0,
        lack_told_at: Instant::now(),
        outcomes,
        permits: Arc::new(Semaphore::new(PROBES_AT_ONCE_MAX)),
    };
    prober.serve(core, wanted, found).await;
}

/// What a task found.
struct Outcome {
    task: u64,
    service: String,
    place: Place,
    found: Result<(), Failure>,
}

struct Prober {
    node: String,
    services: BTreeMap<String, Of>,
    /// Services of which there is something to tell.
    changed: BTreeSet<String>,
    next_task: u64,
    /// When operators may next be told that this node can't probe.
    lack_told_at: Instant,
    outcomes: mpsc::Sender<Outcome>,
    permits: Arc<Semaphore>,
}

/// What is probed of a service.
struct Of {
    service: Arc<Service>,
    backends: BTreeMap<Place, Backend>,
}

struct Backend {
    target: Target,
    verdict: Verdict,
    /// When the verdict became what it is.
    since: SystemTime,
    /// Of the probe that made it so.
    error: String,
    task: u64,
    /// Ends with the backend.
    _running: AbortOnDropHandle<()>,
}

impl Prober {
    async fn serve(
        mut self,
        core: Core,
        mut wanted: watch::Receiver<Arc<Probed>>,
        mut found: mpsc::Receiver<Outcome>,
    ) {
        let mut tell_at = Instant::now();
        loop {
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let probed = Arc::clone(&wanted.borrow_and_update());
                    self.take(&probed);
                }
                Some(outcome) = found.recv() => self.note(outcome),
                () = sleep_until(tell_at), if !self.changed.is_empty() => {
                    if core.found(self.news()).await.is_err() {
                        return;
                    }
                    tell_at = Instant::now() + Duration::from_millis(HEALTH_TOLD_MILLISECONDS);
                }
            }
        }
    }

    /// Services have changed.
    fn take(&mut self, probed: &Probed) {
        let gone: Vec<String> =
            self.services.keys().filter(|name| !probed.contains_key(*name)).cloned().collect();
        for name in gone {
            self.services.remove(&name);
            self.changed.insert(name);
        }
        let known = |name: &String, service| {
            self.services.get(name).is_some_and(|of| Arc::ptr_eq(&of.service, service))
        };
        let others: Vec<_> = probed.iter().filter(|(name, service)| !known(name, service)).collect();
        let wanted: Vec<_> =
            others.into_iter().map(|(name, service)| (name, service, targets(service, &self.node))).collect();
        let new = wanted.iter().map(|(name, _, targets)| {
            let former = self.services.get(*name).map(|of| &of.backends);
            targets.keys().filter(|place| former.is_none_or(|former| !former.contains_key(*place))).count()
        });
        let spread = Duration::from_millis(PROBES_BEGIN_MILLISECONDS)
            .saturating_mul(u32::try_from(new.sum::<usize>()).unwrap_or(u32::MAX));
        for (name, service, targets) in wanted {
            self.take_service(name, service, targets, spread);
        }
    }

    /// What is probed as before goes on; of what is probed in another way, what is known stays.
    fn take_service(
        &mut self,
        name: &str,
        service: &Arc<Service>,
        targets: BTreeMap<Place, Target>,
        spread: Duration,
    ) {
        let mut former = self.services.remove(name).map(|of| of.backends).unwrap_or_default();
        let same = former.keys().eq(targets.keys());
        let mut backends = BTreeMap::new();
        for (place, target) in targets {
            let backend = match former.remove(&place) {
                Some(before) if before.target == target => before,
                Some(before) => {
                    let verdict = before.verdict.begin_anew();
                    Backend {
                        verdict,
                        since: before.since,
                        error: before.error,
                        ..self.begin(name, place, target, spread)
                    }
                }
                None => self.begin(name, place, target, spread),
            };
            backends.insert(place, backend);
        }
        if !same {
            self.changed.insert(name.to_owned());
        }
        self.services.insert(name.to_owned(), Of { service: Arc::clone(service), backends });
    }

    fn begin(&mut self, service: &str, place: Place, target: Target, spread: Duration) -> Backend {
        self.next_task += 1;
        let task = self.next_task;
        let outcomes = self.outcomes.clone();
        let permits = Arc::clone(&self.permits);
        let interval = target.check.interval;
        let first = spread.min(interval).mul_f64(rand::rng().random());
        let (service, probing) = (service.to_owned(), target.clone());
        let running = tokio::spawn(async move {
            let tell = async |found| {
                let outcome = Outcome { task, service: service.clone(), place, found };
                // The prober ends with its tasks.
                drop(outcomes.send(outcome).await);
            };
            sleep(first).await;
            tell(once(&permits, place.0, &probing).await).await;
            // From here on anywhere in the interval, however many have begun together.
            let second = Instant::now() + interval.mul_f64(rand::rng().random());
            let mut ticks = interval_at(second, interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                tell(once(&permits, place.0, &probing).await).await;
            }
        });
        Backend {
            target,
            verdict: Verdict::default(),
            since: SystemTime::now(),
            error: String::new(),
            task,
            _running: AbortOnDropHandle::new(running),
        }
    }

    fn note(&mut self, outcome: Outcome) {
        let Outcome { task, service, place, found } = outcome;
        let of = self.services.get_mut(&service);
        // One that was ended may have told before.
        let backend = of.and_then(|of| of.backends.get_mut(&place)).filter(|backend| backend.task == task);
        let Some(backend) = backend else { return };
        let (answered, error) = match found {
            Ok(()) => (true, String::new()),
            Err(Failure::Backend(error)) => (false, error),
            Err(Failure::Own(error)) => {
                if Instant::now() >= self.lack_told_at {
                    self.lack_told_at = Instant::now() + Duration::from_secs(LACK_TOLD_SECONDS);
                    warn!(%error, "backends can't be probed; what was found out of them before holds");
                }
                return;
            }
        };
        if !backend.verdict.take(answered, &backend.target.check) {
            return;
        }
        (backend.since, backend.error) = (SystemTime::now(), error);
        let (address, port) = place;
        if answered {
            debug!(%service, %address, port, "the backend is healthy");
        } else {
            info!(%service, %address, port, error = %backend.error, "the backend is unhealthy");
        }
        self.changed.insert(service);
    }

    /// Of the services of which there is something to tell, all that is known.
    fn news(&mut self) -> Vec<v1::ServiceHealth> {
        let changed = std::mem::take(&mut self.changed);
        let health = changed.into_iter().map(|service| {
            let backends = self.services.get(&service).into_iter().flat_map(|of| &of.backends);
            let backends = backends.map(|(place, backend)| backend.word(*place)).collect();
            v1::ServiceHealth { service, backends }
        });
        health.collect()
    }
}

/// Boxed: the task has no room for it while it waits.
async fn once(permits: &Semaphore, address: IpAddr, target: &Target) -> Result<(), Failure> {
    // Never closed.
    let _permit = permits.acquire().await;
    Box::pin(probe::probe(address, target)).await
}

impl Backend {
    fn word(&self, (address, port): Place) -> v1::BackendHealth {
        let health = match self.verdict.healthy() {
            None => v1::Health::Unspecified,
            Some(true) => v1::Health::Healthy,
            Some(false) => v1::Health::Unhealthy,
        };
        v1::BackendHealth {
            address: address.to_string(),
            port: port.into(),
            health: health.into(),
            since: self.verdict.healthy().map(|_| self.since.into()),
            error: self.error.clone(),
        }
    }
}
