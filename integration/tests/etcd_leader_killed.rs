//! Promise: when etcd's leader is killed under writes through a controller, writes resume, nothing that was acknowledged
//! is lost, and no identity is given twice.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::Instant;
use weft_integration::{
    fleet::{Controller, Fleet, Store, scenario_on},
    limits::READY,
    wait,
};
use weft_proto::v1::{self, object::Kind, operator_service_client::OperatorServiceClient};

/// Policies applied one after the other; of each that was acknowledged, its name and when.
type Acknowledged = Arc<Mutex<Vec<(String, Instant)>>>;

fn policy(name: &str) -> v1::Object {
    let labels = [("app".to_owned(), "nobody".to_owned())].into();
    let subject = v1::Selector { match_labels: labels, ..v1::Selector::default() };
    let policy = v1::Policy {
        metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
        subject: Some(v1::Subject { endpoints: Some(subject), nodes: None }),
        ingress: Some(v1::RuleList::default()),
        ..v1::Policy::default()
    };
    v1::Object { kind: Some(Kind::Policy(policy)) }
}

/// Each of them until it is acknowledged: an answer that was lost leaves open whether it was done.
async fn write(server: String, end: Arc<AtomicBool>, acknowledged: Acknowledged) -> Result<()> {
    let mut operator = OperatorServiceClient::connect(server).await?;
    for number in 0_u32.. {
        let name = format!("p{number}");
        while !end.load(Ordering::Relaxed) {
            let objects = vec![policy(&name)];
            if operator.apply(v1::ApplyRequest { objects, ..v1::ApplyRequest::default() }).await.is_ok() {
                acknowledged.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.push((name, Instant::now()));
                break;
            }
        }
        if end.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    Ok(())
}

fn items(fleet: &Fleet, kind: &str) -> Result<Vec<Value>> {
    let listed = fleet.weft(&["get", kind, "-o", "json"])?.success()?.json()?;
    Ok(listed["items"].as_array().context("no items")?.clone())
}

fn no_identity_twice(fleet: &Fleet) -> Result<()> {
    let mut by_labels = BTreeMap::new();
    let mut numbers = BTreeSet::new();
    for identity in items(fleet, "identities")? {
        let labels = identity["securityLabels"].to_string();
        let number = identity["number"].as_u64().context("no number")?;
        ensure!(numbers.insert(number), "identity {number} is there twice");
        let other = by_labels.insert(labels.clone(), number);
        ensure!(other.is_none(), "{labels} has the identities {other:?} and {number}");
    }
    for endpoint in items(fleet, "endpoints")? {
        let number = endpoint["status"]["identity"].as_u64().context("no identity")?;
        let expected = by_labels.get(&endpoint["labels"].to_string());
        ensure!(expected == Some(&number), "{endpoint}: {by_labels:?}");
    }
    Ok(())
}

#[test]
fn writes_resume_nothing_acknowledged_is_lost_and_no_identity_is_given_twice() -> Result<()> {
    scenario_on(Store::Etcd { members: 3 }, "leader", 2, |fleet| {
        let acknowledged: Acknowledged = Arc::default();
        let end = Arc::new(AtomicBool::new(false));
        let count = || acknowledged.lock().map(|names| names.len()).unwrap_or_default();
        let writing = write(Controller::server(), Arc::clone(&end), Arc::clone(&acknowledged));
        let writer = fleet.controller().host().namespace()?.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(writing)
        });
        wait::until_true("writes are acknowledged", READY, || Ok(count() >= 10))?;

        let etcd = fleet.controller_mut().etcd()?;
        let leader = etcd.leader()?;
        etcd.kill(leader)?;
        let killed = Instant::now();
        // Labels that nobody has yet, and on both nodes the same.
        fleet.attach(1, "a1", &[("app", "a")])?;
        fleet.attach(2, "a2", &[("app", "a")])?;
        fleet.attach(2, "b2", &[("app", "b")])?;
        let before = count();
        wait::until_true("writes go on", READY, || Ok(count() >= before + 10))?;
        fleet.controller_mut().etcd()?.restart(leader)?;
        let before = count();
        wait::until_true("writes go on with all members", READY, || Ok(count() >= before + 10))?;
        end.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;

        let written = acknowledged.lock().map(|names| names.clone()).unwrap_or_default();
        let resumed = written.iter().map(|(_, at)| *at).filter(|at| *at > killed);
        let gap = written
            .windows(2)
            .map(|pair| pair[1].1.saturating_duration_since(pair[0].1))
            .max()
            .context("nothing was written")?;
        println!("{} writes after the leader was killed; the longest gap was {gap:?}", resumed.count());
        let stored: BTreeSet<String> = items(fleet, "policies")?
            .iter()
            .filter_map(|policy| policy["name"].as_str().map(str::to_owned))
            .collect();
        let lost: Vec<_> = written.iter().filter(|(name, _)| !stored.contains(name)).collect();
        assert!(lost.is_empty(), "acknowledged, and not there: {lost:?}");
        no_identity_twice(fleet)
    })
}
