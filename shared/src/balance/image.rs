//! A service's table read back: from the elements that the kernel has to what they say. The inverse of
//! [`Table::elements`](super::table::Table::elements).

use std::net::IpAddr;

use crate::layout::service::{
    Element, SLOTS_PER_ELEMENT, ServiceBackend, ServiceHeader, SlotsElement, backend_flags, service_flags,
    slot_of,
};

/// What a table in the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the header, by itself")]
pub struct Image {
    pub digest: [u64; 2],
    pub random: bool,
    pub dsr: bool,
    /// Flows are judged by their source.
    pub sources: bool,
    /// Connections to backends that have gone are ended.
    pub ends_connections: bool,
    /// 0: none.
    pub affinity_seconds: u32,
    /// Of the Maglev table.
    pub slots: u16,
    /// In the order of their numbers.
    pub backends: Vec<ImageBackend>,
    /// The number of a backend for each slot.
    numbers: Vec<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageBackend {
    pub address: IpAddr,
    /// 0: the frontend's.
    pub port: u16,
    pub weight: u16,
    pub new_flows: bool,
    pub local: bool,
    /// How many slots say its number.
    pub slots: u32,
}

/// The elements are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("it has no header")]
    Empty,
    #[error("{found} elements, its header says {expected}")]
    Length { found: usize, expected: usize },
    #[error("slot {slot} is backend {number}'s, of {backends}")]
    NoBackend { slot: usize, number: u16, backends: u16 },
}

impl Image {
    /// `None`: a slot of services without a table, whose only element is zero.
    pub fn parse(elements: &[Element]) -> Result<Option<Self>, ImageError> {
        let (first, rest) = elements.split_first().ok_or(ImageError::Empty)?;
        let header: ServiceHeader = bytemuck::cast(*first);
        if header.digest == [0; 2] {
            return Ok(None);
        }
        let backends = usize::from(header.backends);
        let slot_elements = usize::from(header.slots).div_ceil(SLOTS_PER_ELEMENT as usize);
        let expected = 1 + backends + slot_elements;
        if elements.len() != expected {
            return Err(ImageError::Length { found: elements.len(), expected });
        }
        let (rows, slots) = rest.split_at(backends);
        let mut image = Self {
            digest: header.digest,
            random: header.flags & service_flags::RANDOM != 0,
            dsr: header.flags & service_flags::DSR != 0,
            sources: header.flags & service_flags::SOURCES != 0,
            ends_connections: header.flags & service_flags::END_CONNECTIONS != 0,
            affinity_seconds: header.affinity_seconds,
            slots: header.slots,
            backends: rows.iter().map(|row| backend(bytemuck::cast(*row))).collect(),
            numbers: Vec::with_capacity(header.slots.into()),
        };
        let numbers = slots.iter().flat_map(|element| bytemuck::cast::<_, SlotsElement>(*element));
        for (slot, number) in numbers.take(header.slots.into()).enumerate() {
            let backend = image.backends.get_mut(usize::from(number));
            let backend = backend.ok_or(ImageError::NoBackend { slot, number, backends: header.backends })?;
            backend.slots += 1;
            image.numbers.push(number);
        }
        Ok(Some(image))
    }

    /// The backend of a new flow with this hash; `None`: nobody takes it.
    pub fn place(&self, hash: u32) -> Option<&ImageBackend> {
        let number = self.numbers.get(slot_of(hash, self.slots) as usize)?;
        self.backends.get(usize::from(*number))
    }

    /// A backend that a flow or a client had, if it still is one.
    pub fn find(&self, address: IpAddr, port: u16) -> Option<&ImageBackend> {
        self.backends.iter().find(|backend| (backend.address, backend.port) == (address, port))
    }
}

fn backend(row: ServiceBackend) -> ImageBackend {
    ImageBackend {
        address: row.address.into(),
        port: u16::from_be(row.port),
        weight: row.weight,
        new_flows: row.flags & backend_flags::NEW_FLOWS != 0,
        local: row.flags & backend_flags::LOCAL != 0,
        slots: 0,
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;
    use crate::balance::table::{Backend, Manner, Sources, Table};

    fn table() -> Table {
        let backend = |address: &str, weight, new_flows, local| Backend {
            address: address.parse().unwrap(),
            port: 8080,
            weight,
            new_flows,
            local,
        };
        let manner = Manner {
            random: true,
            dsr: false,
            sources: Some(Sources { set: 1, denied: false, node: false }),
            end_connections: true,
            affinity_seconds: 9,
            slots: 251,
        };
        let backends = vec![
            backend("10.0.0.3", 2, true, false),
            backend("10.0.0.1", 1, false, true),
            backend("10.0.0.2", 1, true, true),
        ];
        Table::new(manner, backends)
    }

    #[test]
    fn what_is_read_back_is_what_was_written() {
        let table = table();
        let image = Image::parse(&table.elements()).unwrap().unwrap();
        assert_eq!((image.digest, image.slots, image.affinity_seconds), (table.digest(), 251, 9));
        assert_eq!((image.random, image.dsr, image.sources), (true, false, true));
        assert!(image.ends_connections);
        for (found, written) in image.backends.iter().zip(table.backends()) {
            assert_eq!(
                (found.address, found.port, found.weight, found.new_flows, found.local),
                (written.address, written.port, written.weight, written.new_flows, written.local)
            );
        }
        let slots: Vec<u32> = image.backends.iter().map(|backend| backend.slots).collect();
        assert_eq!(slots, [0, 84, 167], "by weight, to one");
        for (slot, number) in (0_u64..).zip(table.slots()) {
            // The least hash that leads to the slot.
            let hash = u32::try_from((slot << 32).div_ceil(251)).unwrap();
            assert_eq!(image.place(hash), image.backends.get(usize::from(number)));
        }
        assert_eq!(image.find("10.0.0.1".parse().unwrap(), 8080), image.backends.first());
        assert_eq!(image.find("10.0.0.1".parse().unwrap(), 80), None);
    }

    #[test]
    fn what_is_no_table_is_told_from_none() {
        assert_eq!(Image::parse(&[Element::zeroed()]), Ok(None));
        assert_eq!(Image::parse(&[]), Err(ImageError::Empty));
        let mut elements = table().elements();
        let last = elements.pop();
        let length = elements.len();
        assert_eq!(Image::parse(&elements), Err(ImageError::Length { found: length, expected: length + 1 }));
        elements.extend(last);
        elements[4] = Element { words: [u64::MAX; 4] };
        assert_eq!(
            Image::parse(&elements),
            Err(ImageError::NoBackend { slot: 0, number: u16::MAX, backends: 3 })
        );
    }
}
