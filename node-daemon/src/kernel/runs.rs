//! Steps that follow on each other and set rows of one map: the kernel takes them in one call, which costs a fraction of a
//! call for each. Their order among themselves is kept, and nothing else is in between.

use weft_shared::layout::{Address, Peer, PeerKey};

use crate::plan::tables::Step;

/// Rows of one call: what the kernel copies at once stays small, and other threads get their turn.
const ROWS_MAX: usize = 4096;

/// What is written at once.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Run<'a> {
    Peers { keys: Vec<PeerKey>, rulebooks: Vec<u32> },
    Addresses { keys: Vec<Address>, peers: Vec<Peer> },
    One(&'a Step),
}

/// The steps, in their order.
pub(super) fn runs(steps: &[Step]) -> Vec<Run<'_>> {
    let mut found: Vec<Run<'_>> = Vec::new();
    for step in steps {
        match step {
            Step::PeerRules { key, rulebook: Some(number) } => match found.last_mut() {
                Some(Run::Peers { keys, rulebooks }) if keys.len() < ROWS_MAX => {
                    keys.push(*key);
                    rulebooks.push(*number);
                }
                _ => found.push(Run::Peers { keys: vec![*key], rulebooks: vec![*number] }),
            },
            Step::Ipcache { address, peer: Some(peer) } => match found.last_mut() {
                Some(Run::Addresses { keys, peers }) if keys.len() < ROWS_MAX => {
                    keys.push(*address);
                    peers.push(*peer);
                }
                _ => found.push(Run::Addresses { keys: vec![*address], peers: vec![*peer] }),
            },
            other => found.push(Run::One(other)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer: u32) -> PeerKey {
        PeerKey { subject: 300, peer, direction: 1 }
    }

    fn steps_of(runs: &[Run<'_>]) -> Vec<Step> {
        let steps = runs.iter().flat_map(|run| match run {
            Run::Peers { keys, rulebooks } => {
                let rows = keys.iter().zip(rulebooks);
                rows.map(|(key, number)| Step::PeerRules { key: *key, rulebook: Some(*number) }).collect()
            }
            Run::Addresses { keys, peers } => {
                let rows = keys.iter().zip(peers);
                rows.map(|(address, peer)| Step::Ipcache { address: *address, peer: Some(*peer) }).collect()
            }
            Run::One(step) => vec![(*step).clone()],
        });
        steps.collect()
    }

    #[test]
    fn rows_of_one_map_that_follow_on_each_other_are_one_run_and_the_order_is_kept() {
        let row = |peer, rulebook| Step::PeerRules { key: key(peer), rulebook };
        let address = |last: u32| Step::Ipcache {
            address: Address::from_v4(0x0a00_0000 + last),
            peer: Some(Peer { identity: 300, class: 3, node: 1, ifindex: 0 }),
        };
        let bump = Step::Bump { subjects: vec![1], nodes: Vec::new() };
        // The same row twice: the later one counts.
        let steps = [
            row(1, Some(7)),
            row(2, Some(7)),
            row(1, Some(8)),
            bump.clone(),
            row(2, None),
            address(1),
            address(2),
            row(3, Some(7)),
            bump,
        ];

        let runs = runs(&steps);

        assert_eq!(steps_of(&runs), steps);
        assert_eq!(runs.len(), 6);
        assert_eq!(runs[0], Run::Peers { keys: vec![key(1), key(2), key(1)], rulebooks: vec![7, 7, 8] });
    }

    #[test]
    fn a_long_run_is_cut() {
        let rows: Vec<Step> = (0..)
            .take(ROWS_MAX + 1)
            .map(|peer| Step::PeerRules { key: key(peer), rulebook: Some(1) })
            .collect();
        let runs = runs(&rows);
        assert_eq!((runs.len(), steps_of(&runs)), (2, rows));
    }
}
