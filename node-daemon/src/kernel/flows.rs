//! Collection of the flow table: entries that are over leave it, so that a full table need not evict live ones. To the
//! kernel programs an entry that is over is absent already; nothing here changes a verdict.
//!
//! A packet may refresh an entry at any moment, so an entry is taken out and looked at in one step of the kernel: one that
//! turns out to be alive is put back, unless the flow's next packet has made a new one. A packet in the microseconds in
//! between is judged as the first of its flow, or, TCP without SYN, as in the middle of one.

use nix::time::{ClockId, clock_gettime};
use weft_shared::layout::{Config, Flow, FlowKey, maps as names, timeout_nanoseconds};

use super::{
    Collected, KernelError,
    trusted::{self, Plain, PlainHash},
};
use crate::limits::{FLOWS_BATCH_ROWS, FLOWS_GRACE_NANOSECONDS};

/// `BPF_NOEXIST`.
const ONLY_NEW: u64 = 1;

/// Whether an entry has been over for so long that no program may be in the middle of using it.
pub(crate) fn is_over(config: &Config, key: &FlowKey, flow: &Flow, now: u64) -> bool {
    let timeout = timeout_nanoseconds(config, key.protocol, flow.flags);
    now.saturating_sub(flow.seen_at) > timeout.saturating_add(FLOWS_GRACE_NANOSECONDS)
}

/// Where the collection is in the table.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    /// `None`: a pass begins.
    place: Option<u32>,
}

impl Collector {
    /// Goes on by about so many entries.
    pub(crate) fn slice(
        &mut self,
        flows: &mut PlainHash<FlowKey, Flow>,
        config: &Config,
        entries_max: u64,
    ) -> Result<Collected, KernelError> {
        let failed = |error| KernelError::new(format!("collect {}", names::FLOWS.pin), error);
        let now = now()?;
        let mut collected = Collected::default();
        while collected.seen < entries_max && !collected.finished {
            let (rows, rest) = trusted::read(flows, self.place, FLOWS_BATCH_ROWS).map_err(failed)?;
            self.place = rest;
            collected.finished = rest.is_none();
            for (key, flow) in rows {
                collected.seen += 1;
                if is_over(config, &key, &flow, now) && take_if_over(flows, config, &key, now)? {
                    collected.removed += 1;
                }
            }
        }
        Ok(collected)
    }
}

/// Whether it was over.
fn take_if_over(
    flows: &mut PlainHash<FlowKey, Flow>,
    config: &Config,
    key: &FlowKey,
    now: u64,
) -> Result<bool, KernelError> {
    let failed = |error| KernelError::new(format!("collect {}", names::FLOWS.pin), error);
    let Some(flow) = trusted::take(flows, key).map_err(failed)? else { return Ok(false) };
    if is_over(config, key, &flow, now) {
        return Ok(true);
    }
    // An error: the flow's next packet was here first, or the table is full. Either way the flow is judged again.
    drop(flows.insert(Plain(*key), Plain(flow), ONLY_NEW));
    Ok(false)
}

/// The clock of the flow table, in nanoseconds.
fn now() -> Result<u64, KernelError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| KernelError::new("read the clock", error);
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|error| failed(error.into()))?;
    u64::try_from(std::time::Duration::from(time).as_nanos()).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aya::maps::HashMap;
    use weft_shared::layout::Address;

    use super::*;

    const CONFIG: Config = Config::DEFAULT;

    fn table() -> PlainHash<FlowKey, Flow> {
        HashMap::create(16 * 1024, 0).expect("a map (tests need root)")
    }

    fn key(port: u16) -> FlowKey {
        let address = |last| Address::from(std::net::IpAddr::from([192, 0, 2, last]));
        FlowKey {
            low: address(1),
            high: address(2),
            low_port: port,
            high_port: 53,
            protocol: 17,
            asker: 0,
            zero: [0; 2],
        }
    }

    fn flow(seen_at: u64) -> Flow {
        Flow { seen_at, ..bytemuck::Zeroable::zeroed() }
    }

    fn ports(flows: &PlainHash<FlowKey, Flow>) -> BTreeSet<u16> {
        flows.keys().map(|key| key.unwrap().0.low_port).collect()
    }

    #[test]
    fn an_entry_is_over_when_its_timeout_and_the_grace_are() {
        let over_at = CONFIG.timeout_other + FLOWS_GRACE_NANOSECONDS;
        assert!(!is_over(&CONFIG, &key(1), &flow(1000), 1000 + over_at));
        assert!(is_over(&CONFIG, &key(1), &flow(1000), 1001 + over_at));
        assert!(!is_over(&CONFIG, &key(1), &flow(1000), 0), "a clock that another CPU is behind on");
    }

    #[test]
    fn an_entry_that_was_refreshed_since_it_was_read_stays() {
        let mut flows = table();
        let now = 1_000_000_000_000;
        flows.insert(Plain(key(1)), Plain(flow(now)), 0).unwrap();
        flows.insert(Plain(key(2)), Plain(flow(0)), 0).unwrap();

        assert!(!take_if_over(&mut flows, &CONFIG, &key(1), now).unwrap());
        assert!(take_if_over(&mut flows, &CONFIG, &key(2), now).unwrap());
        assert!(!take_if_over(&mut flows, &CONFIG, &key(3), now).unwrap(), "one that is gone already");

        assert_eq!(ports(&flows), BTreeSet::from([1]));
        assert_eq!(flows.get(&Plain(key(1)), 0).unwrap().0, flow(now));
    }

    #[test]
    fn a_pass_in_slices_takes_out_all_that_is_over_and_nothing_else() {
        const ALIVE: u16 = 3000;
        const OVER: u16 = 5000;
        let mut flows = table();
        let alive_at = now().unwrap();
        // The machine may have been up for less than a timeout.
        let config = Config { timeout_other: 0, timeout_syn: u64::MAX, ..CONFIG };
        for port in 0..ALIVE {
            let tcp = FlowKey { protocol: 6, ..key(port) };
            flows.insert(Plain(tcp), Plain(flow(alive_at)), 0).unwrap();
        }
        for port in ALIVE..ALIVE + OVER {
            flows.insert(Plain(key(port)), Plain(flow(0)), 0).unwrap();
        }

        let mut collector = Collector::default();
        let mut slices = Vec::new();
        while slices.last().is_none_or(|slice: &Collected| !slice.finished) {
            slices.push(collector.slice(&mut flows, &config, 1500).unwrap());
        }

        assert!(slices.len() > 3, "{slices:?}");
        assert!(slices.iter().all(|slice| slice.seen < 1500 + u64::from(FLOWS_BATCH_ROWS)), "{slices:?}");
        assert_eq!(slices.iter().map(|slice| slice.removed).sum::<u64>(), u64::from(OVER));
        assert_eq!(slices.iter().map(|slice| slice.seen).sum::<u64>(), u64::from(ALIVE + OVER));
        assert_eq!(ports(&flows), (0..ALIVE).collect());
    }
}
