//! Pins that earlier daemons left, looked at before anything is loaded. A map is used again only if it is what this
//! version's layout says; a pin of a later version means that a later daemon ran here. Either is refused, with the pin
//! named, and nothing is touched: what is attached goes on with the maps it has.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::maps::{MapData, MapError, MapInfo, MapType};
use weft_shared::layout::{
    Address, Book, ConnectionRow, Endpoint, FailsafeKey, FlowRow, Fragment, FragmentKey, Node, Peer, PeerKey,
    PolicyRow, PrefixKey, RuleKey, RuntimeState, Subject,
    maps::{self as names, Counter, MapName},
    prefilter::{BLOCK_ROWS, BlockRow, OPEN_WORDS, PrefilterNote},
    service::{
        Affinity, AffinityKey, Frontend, FrontendKey, Party, SERVED_WORDS, SocketFlowKey, SocketPeer,
        SourceKey, TableNote,
    },
    shaping::{BucketKey, PacedSocket, Pair, RoundTrips},
    table::{Line, ROWS_OF_A_LINE},
};

use super::KernelError;

/// Fails where a pin in the directory is not one that this version may use.
pub(crate) fn check(directory: &Path) -> Result<(), KernelError> {
    for map in names::ALL {
        check_shape(&directory.join(map.pin), map)?;
    }
    for (pin, ours) in others(directory)? {
        if let Some(ours) = ours.filter(|ours| version(&pin) > version(ours)) {
            return Err(KernelError::new(
                format!("use the maps in {}", directory.display()),
                format!(
                    "{pin} is of a later version of weft-noded, this one knows {ours}: run that version, or take \
                     everything down with weft-noded --cleanup"
                ),
            ));
        }
    }
    Ok(())
}

/// Takes away pins of earlier layouts: for after the programs have moved to the new maps.
pub(crate) fn remove_former(directory: &Path) -> Result<(), KernelError> {
    for (pin, _) in others(directory)? {
        let path = directory.join(pin);
        tracing::info!(pin = %path.display(), "nothing uses this map of an earlier layout any more");
        fs::remove_file(&path).map_err(|error| in_path("remove", &path, error))?;
    }
    Ok(())
}

/// Pins of our maps under other versions, with the version that is ours; `None`: this layout has no such map any more.
fn others(directory: &Path) -> Result<Vec<(String, Option<&'static str>)>, KernelError> {
    let failed = |error| in_path("list", directory, error);
    let mut others = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if version(&name).is_none() {
            continue;
        }
        match names::ALL.iter().find(|map| base(map.pin) == base(&name)) {
            Some(ours) if ours.pin != name => others.push((name, Some(ours.pin))),
            None if names::FORMER.contains(&base(&name)) => others.push((name, None)),
            _ => {}
        }
    }
    others.sort_unstable();
    Ok(others)
}

/// Pins are called `base_v1`.
fn base(pin: &str) -> &str {
    pin.rsplit_once("_v").map_or(pin, |(base, _)| base)
}

fn version(pin: &str) -> Option<u32> {
    pin.rsplit_once("_v")?.1.parse().ok()
}

fn in_path(what: &str, path: &Path, error: io::Error) -> KernelError {
    KernelError::new(format!("{what} {}", path.display()), error)
}

/// What a map must be like to be used again.
#[derive(Debug, PartialEq)]
struct Shape {
    kind: Option<MapType>,
    key_bytes: usize,
    value_bytes: usize,
    /// `None`: any.
    rows: Option<usize>,
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(formatter, "{kind:?}")?,
            None => formatter.write_str("a map of unknown type")?,
        }
        write!(formatter, " with keys of {} bytes, values of {}", self.key_bytes, self.value_bytes)?;
        match self.rows {
            Some(rows) => write!(formatter, ", {rows} rows"),
            None => Ok(()),
        }
    }
}

fn shape(map: MapName) -> Shape {
    fn of<K, V>(kind: MapType, rows: usize) -> Shape {
        Shape { kind: Some(kind), key_bytes: size_of::<K>(), value_bytes: size_of::<V>(), rows: Some(rows) }
    }
    match map {
        names::ENDPOINTS => of::<u32, Endpoint>(MapType::Hash, names::ENDPOINTS_MAX),
        names::IPCACHE => of::<Address, Peer>(MapType::Hash, names::IPCACHE_MAX),
        names::PREFIXES => of::<PrefixKey, Peer>(MapType::LpmTrie, names::PREFIXES_MAX),
        names::NODES => of::<u32, Node>(MapType::Array, names::NODES_MAX),
        names::NODE_ADDRESSES => of::<Address, u32>(MapType::Hash, names::NODE_ADDRESSES_MAX),
        names::SUBJECTS => of::<u32, Subject>(MapType::Array, names::SUBJECTS_MAX),
        names::PEER_RULES => of::<PeerKey, u32>(MapType::Hash, names::PEER_RULES_MAX),
        names::RULES => of::<RuleKey, PolicyRow>(MapType::LpmTrie, names::RULES_MAX),
        names::BOOKS => of::<u32, Book>(MapType::Array, names::BOOKS_MAX),
        names::FAILSAFE => of::<FailsafeKey, u32>(MapType::LpmTrie, names::FAILSAFE_MAX),
        names::RUNTIME => of::<u32, RuntimeState>(MapType::Array, 1),
        names::FLOWS => Shape { rows: None, ..of::<u32, FlowRow>(MapType::Array, 0) },
        names::FLOW_INDEX => Shape { rows: None, ..of::<u32, Line>(MapType::Array, 0) },
        names::FRAGMENTS => of::<FragmentKey, Fragment>(MapType::LruHash, names::FRAGMENTS_MAX),
        names::COUNTERS => of::<u32, Counter>(MapType::PerCpuArray, names::COUNTERS_MAX),
        names::EVENTS => of::<(), ()>(MapType::RingBuf, names::EVENTS_BYTES),
        names::FRONTENDS => of::<FrontendKey, Frontend>(MapType::Hash, names::FRONTENDS_MAX),
        names::SERVICES => of::<u32, u32>(MapType::ArrayOfMaps, names::SERVICES_MAX),
        names::TABLE_NOTES => of::<u32, TableNote>(MapType::Array, names::SERVICES_MAX),
        names::SOCKET_PEERS => of::<i32, SocketPeer>(MapType::SkStorage, 0),
        names::SOCKET_FLOWS => of::<SocketFlowKey, Party>(MapType::LruHash, names::SOCKET_FLOWS_MAX),
        names::AFFINITY => of::<AffinityKey, Affinity>(MapType::LruHash, names::AFFINITY_MAX),
        names::CONNECTIONS => of::<u32, ConnectionRow>(MapType::Array, names::CONNECTIONS_MAX),
        names::CONNECTION_INDEX => {
            of::<u32, Line>(MapType::Array, names::CONNECTIONS_MAX / ROWS_OF_A_LINE as usize)
        }
        names::SERVED_PORTS => of::<u32, u64>(MapType::Array, SERVED_WORDS as usize),
        names::OWN_ADDRESSES => of::<u32, Address>(MapType::Array, 2),
        names::SOURCES => of::<SourceKey, u32>(MapType::LpmTrie, 2 * names::SOURCE_PREFIXES_MAX),
        names::PREFILTER4 => of::<[u32; 2], u32>(MapType::LpmTrie, 2 * names::PREFILTER_PREFIXES_MAX),
        names::PREFILTER6 => of::<PrefixKey, u32>(MapType::LpmTrie, 2 * names::PREFILTER_PREFIXES_MAX),
        names::PREFILTER_SENDERS => of::<u32, u32>(MapType::Hash, 2 * names::PREFILTER_SENDERS_MAX),
        names::PREFILTER_OPEN => of::<u32, u64>(MapType::Array, OPEN_WORDS as usize),
        names::PREFILTER_BLOCKS => of::<u32, BlockRow>(MapType::Array, BLOCK_ROWS as usize),
        names::PREFILTER_LISTS => of::<u32, PrefilterNote>(MapType::Array, names::PREFILTER_SLOTS as usize),
        names::PREFILTER_COUNTERS => {
            of::<u32, Counter>(MapType::PerCpuArray, names::PREFILTER_SLOTS as usize)
        }
        names::BUCKETS => of::<BucketKey, u64>(MapType::Hash, names::BUCKETS_MAX),
        names::PACED_CGROUPS => of::<u64, u32>(MapType::Hash, names::PACED_CGROUPS_MAX),
        names::PACED_SOCKETS => of::<i32, PacedSocket>(MapType::SkStorage, 0),
        names::ROUND_TRIPS => of::<Pair, RoundTrips>(MapType::LruHash, names::ROUND_TRIPS_MAX),
        // `EVENTS_LOST`.
        _ => of::<u32, u64>(MapType::PerCpuArray, 1),
    }
}

/// A pin of another layout under the same name would be read as what it is not: the kernel would only notice where sizes
/// differ in the programs' disfavour.
fn check_shape(path: &Path, map: MapName) -> Result<(), KernelError> {
    if !path.try_exists().map_err(|error| in_path("look for", path, error))? {
        return Ok(());
    }
    let expected = shape(map);
    let found = match info(path)? {
        None => "it is no map".to_owned(),
        Some(info) => {
            let found = Shape {
                kind: info.map_type().ok(),
                key_bytes: info.key_size() as usize,
                value_bytes: info.value_size() as usize,
                rows: expected.rows.map(|_| info.max_entries() as usize),
            };
            if found == expected {
                return Ok(());
            }
            format!("it is {found}")
        }
    };
    let directory = path.parent().unwrap_or(path).display();
    Err(KernelError::new(
        format!("use the pinned map {}", path.display()),
        format!(
            "{found}, this daemon needs {expected}: something else has pinned it. Nothing was changed. Remove {directory} \
             to go on: what is attached keeps the maps it has until this daemon has filled new ones"
        ),
    ))
}

/// `None`: what is pinned is no map. The kernel describes a program in the same words, so that the descriptor's own name
/// has to tell.
fn info(path: &Path) -> Result<Option<MapInfo>, KernelError> {
    let failed = |error: MapError| KernelError::new(format!("open the pin {}", path.display()), error);
    let map = MapData::from_pin(path).map_err(failed)?;
    let descriptor = format!("/proc/self/fd/{}", map.fd().as_fd().as_raw_fd());
    let name = fs::read_link(&descriptor).map_err(|error| in_path("read", Path::new(&descriptor), error))?;
    if !name.to_string_lossy().contains("bpf-map") {
        return Ok(None);
    }
    map.info().map(Some).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_maps_share_a_pin_or_its_base() {
        let mut pins: Vec<_> = names::ALL.iter().map(|map| base(map.pin)).collect();
        pins.sort_unstable();
        pins.dedup();
        assert_eq!(pins.len(), names::ALL.len());
        assert!(names::ALL.iter().all(|map| version(map.pin).is_some()));
    }

    #[test]
    fn the_last_shape_is_that_of_lost_events() {
        assert_eq!(names::ALL[names::ALL.len() - 1], names::EVENTS_LOST);
    }

    #[test]
    fn pins_of_other_versions_are_told_from_what_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let (flows, lost) = (names::FLOWS.pin, names::EVENTS_LOST.pin);
        for name in ["flows_v0", flows, "events_lost_v77", "flows_vx", "other_v1", "flows", "policies_v1"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let found = others(directory.path()).unwrap();
        let expected = [("events_lost_v77", Some(lost)), ("flows_v0", Some(flows)), ("policies_v1", None)];
        assert_eq!(found, expected.map(|(pin, ours)| (pin.to_owned(), ours)));
    }
}
