//! Listens to what nodes acknowledge: at that moment their kernels must hold it.
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use prost::Message as _;
use weft_noded::kernel::twin::Twin;
use weft_proto::v1::{self, node_message::Message};

use crate::{chance::Chance, history::History, network::Observer, scratch, store::Shared};

/// Of the acknowledgements, how many are checked: that compiles a fleet from scratch.
const CHECKED_PERCENT: u64 = 12;
/// In front of each message of a stream: a flag and its length.
const FRAME_HEADER_BYTES: usize = 5;

/// Whose kernel is where.
pub(crate) type Kernels = Arc<Mutex<BTreeMap<String, (Twin, IpAddr)>>>;

pub(crate) fn observer(shared: Arc<Shared>, kernels: Kernels, chance: Chance, history: History) -> Observer {
    Arc::new(move |node, data| {
        let acks = acknowledgements(data);
        let kernel = kernels.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        let checked =
            acks.into_iter().filter(|ack| ack.rejected.is_empty() && chance.percent(CHECKED_PERCENT));
        let checked: Vec<v1::Ack> = checked.collect();
        let (shared, history, node) = (Arc::clone(&shared), history.clone(), node.to_owned());
        Box::pin(async move {
            let Some((twin, address)) = kernel else { return };
            for ack in checked {
                check(&shared, &history, &node, &twin, address, ack.revision).await;
            }
        })
    })
}

async fn check(shared: &Shared, history: &History, node: &str, twin: &Twin, address: IpAddr, revision: u64) {
    let Some(mut fleet) = scratch::fleet(&shared.memory, Some(revision)).await else { return };
    let mut found = twin.with(|state| state.tables.clone());
    let Some(desired) = scratch::desired(&mut fleet, node) else { return };
    let expected = scratch::tables(desired, node, address, &found, &shared.ledger().identities);
    // How far identities are known may have been told on the way: never further than there are any.
    if found.identities_through <= expected.identities_through {
        found.identities_through = expected.identities_through;
    }
    if let Some(difference) = scratch::difference(&found, &expected) {
        history.violated(format!(
            "{node} acknowledges revision {revision} and its kernel does not hold it:\n    {difference}"
        ));
    }
}

/// Streams send whole messages in a frame.
fn acknowledgements(mut data: Bytes) -> Vec<v1::Ack> {
    let mut found = Vec::new();
    while data.len() >= FRAME_HEADER_BYTES {
        data.advance(1);
        let length = data.get_u32() as usize;
        let message = v1::NodeMessage::decode(data.split_to(length.min(data.len())));
        if let Ok(Some(Message::Ack(ack))) = message.map(|message| message.message) {
            found.push(ack);
        }
    }
    found
}
