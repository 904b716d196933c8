//! Which backend a packet to a service gets, from what the kernel holds: what its programs do (`bpf/src/service.rs`), in other words, for
//! people who ask why. Pure.

use std::time::Duration;

use weft_shared::{
    balance::image::{Image, ImageBackend},
    layout::{
        Connection,
        service::{Affinity, Party, TCP, packet_hash},
    },
};

/// A call, as its packets show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub client: Party,
    pub frontend: Party,
    /// IANA protocol number.
    pub protocol: u8,
}

/// What the kernel remembers of who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The row of the question.
    pub connection: Option<Connection>,
    pub affinity: Option<Affinity>,
    /// By the kernel's monotonic clock.
    pub now: Duration,
}

/// Why a backend gets the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Hash,
    /// The client had it last.
    Affinity,
    /// The connection is known.
    Connection,
}

/// The backend for a first packet; of TCP, that is one with SYN alone. `None`: nobody takes it.
pub fn choose<'a>(image: &'a Image, call: &Call, memory: &Memory) -> Option<(&'a ImageBackend, Why)> {
    // Datagrams go on where they went; of TCP, a new connection asks for a backend that takes new ones.
    let goes_on = |why| why == Why::Connection && call.protocol != TCP;
    let had = had(image, call, memory).filter(|(backend, why)| goes_on(*why) || backend.new_flows);
    had.or_else(|| {
        let hash = packet_hash(&call.client, &call.frontend, call.protocol);
        image.place(hash).map(|backend| (backend, Why::Hash))
    })
}

fn had<'a>(image: &'a Image, call: &Call, memory: &Memory) -> Option<(&'a ImageBackend, Why)> {
    let (party, why) = match (memory.connection, memory.affinity) {
        (Some(connection), _) => (connection.destination, Why::Connection),
        (None, Some(affinity)) => {
            let since = memory.now.saturating_sub(Duration::from_nanos(affinity.seen_at));
            let seconds = image.affinity_seconds;
            if seconds == 0 || since > Duration::from_secs(seconds.into()) {
                return None;
            }
            (affinity.backend, Why::Affinity)
        }
        (None, None) => return None,
    };
    let port = u16::from_be(party.port);
    // The table may leave the port to the frontend.
    let portless =
        || if party.port == call.frontend.port { image.find(party.address.into(), 0) } else { None };
    Some((image.find(party.address.into(), port).or_else(portless)?, why))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bytemuck::Zeroable as _;
    use weft_shared::{
        balance::table::{Backend, Manner, Table},
        layout::service::{UDP, slot_of},
    };

    use super::*;

    fn party(address: &str, port: u16) -> Party {
        Party { address: address.parse::<IpAddr>().unwrap().into(), port: port.to_be(), zero: 0 }
    }

    fn image() -> (Table, Image) {
        let backend = |last: u8, port, new_flows| Backend {
            address: IpAddr::from([10, 0, 0, last]),
            port,
            weight: 1,
            new_flows,
            local: false,
        };
        let manner = Manner { affinity_seconds: 60, ..Manner::plain(251) };
        let backends = vec![
            backend(1, 8080, true),
            backend(2, 8080, true),
            backend(3, 0, true),
            backend(4, 8080, false),
        ];
        let table = Table::new(manner, backends);
        let image = Image::parse(&table.elements()).unwrap().unwrap();
        (table, image)
    }

    fn call(port: u16, protocol: u8) -> Call {
        Call { client: party("10.1.0.1", port), frontend: party("10.96.0.1", 80), protocol }
    }

    fn connection(backend: Party) -> Connection {
        Connection { destination: backend, ..Connection::zeroed() }
    }

    #[test]
    fn a_new_client_gets_the_backend_in_the_slot_of_its_hash() {
        let (table, image) = image();
        let slots = table.slots();
        for port in 1024..2024 {
            let call = call(port, TCP);
            let slot = slot_of(packet_hash(&call.client, &call.frontend, TCP), 251);
            let due = table.backends()[usize::from(slots[slot as usize])];
            let (found, why) = choose(&image, &call, &Memory::default()).unwrap();
            assert_eq!((found.address, why), (due.address, Why::Hash));
        }
    }

    #[test]
    fn a_client_keeps_its_backend_while_that_is_not_too_long_ago_and_it_takes_new_flows() {
        let (_, image) = image();
        let chosen = |last: u8, since: u64| {
            let backend = party(&format!("10.0.0.{last}"), if last == 3 { 0 } else { 8080 });
            let affinity = Some(Affinity { backend, reserved: 0, seen_at: 1_000_000_000 });
            let now = Duration::from_secs(1 + since);
            let (found, why) =
                choose(&image, &call(1024, TCP), &Memory { affinity, now, connection: None }).unwrap();
            (found.address == IpAddr::from([10, 0, 0, last]), why)
        };
        for last in 1..=3 {
            assert_eq!(chosen(last, 60), (true, Why::Affinity));
            assert_eq!(chosen(last, 61).1, Why::Hash);
        }
        assert_eq!(chosen(4, 1), (false, Why::Hash), "it takes no new flows");
        assert_eq!(chosen(9, 1), (false, Why::Hash), "it is none");
    }

    #[test]
    fn datagrams_go_on_to_a_backend_that_is_one_and_a_new_connection_only_where_new_ones_go() {
        let (_, image) = image();
        let chosen = |backend, protocol| {
            let memory = Memory { connection: Some(connection(backend)), ..Memory::default() };
            let (found, why) = choose(&image, &call(1024, protocol), &memory).unwrap();
            (found.address.to_string(), why)
        };
        let terminating = party("10.0.0.4", 8080);
        assert_eq!(chosen(terminating, UDP), ("10.0.0.4".to_owned(), Why::Connection));
        assert_eq!(chosen(terminating, TCP).1, Why::Hash);
        assert_eq!(chosen(party("10.0.0.1", 8080), TCP), ("10.0.0.1".to_owned(), Why::Connection));
        assert_eq!(
            chosen(party("10.0.0.3", 80), UDP),
            ("10.0.0.3".to_owned(), Why::Connection),
            "its own port is open"
        );
        assert_eq!(chosen(party("10.0.0.3", 81), UDP).1, Why::Hash);
    }
}
