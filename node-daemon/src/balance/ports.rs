//! Ports that the node sends from, where backends answer through it (`snat`). They are nobody else's: neither sockets' nor services'.

use std::{fmt, str::FromStr};

use weft_shared::layout::Config;

use super::Desired;

/// Fewer would be used up by a handful of clients of one backend.
const PORTS_MIN: u16 = 64;
/// Below are the well-known ones (RFC 6335, §6).
const PORT_MIN: u16 = 1024;

/// From one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub const DEFAULT: Self =
        Self { first: Config::DEFAULT.snat_first_port, last: Config::DEFAULT.snat_last_port };

    fn holds(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = String;

    /// As the flag has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once('-').and_then(|(first, last)| Some((port(first)?, port(last)?)));
        let (first, last) = ends.ok_or("expected FIRST-LAST, both 1024 to 65535, such as 61000-65535")?;
        if first < PORT_MIN {
            return Err(format!("expected ports of 1024 to 65535, and the first is {first}"));
        }
        if last < first {
            return Err(format!("expected FIRST-LAST, and the last, {last}, is below the first, {first}"));
        }
        let count = u32::from(last - first) + 1;
        if count < PORTS_MIN.into() {
            return Err(format!("expected {PORTS_MIN} ports or more, and these are {count}"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

fn port(text: &str) -> Option<u16> {
    text.trim().parse().ok()
}

/// Ports that the kernel gives to sockets that ask for any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketPorts {
    /// `None`: not known.
    range: Option<Ports>,
    /// Ports out of these it does not give.
    reserved: Vec<Ports>,
}

impl SocketPorts {
    /// From the words of `net.ipv4.ip_local_port_range` and `net.ipv4.ip_local_reserved_ports`, which hold for both families.
    pub fn read(range: &str, reserved: &str) -> Self {
        let range = range.split_once(char::is_whitespace);
        let range = range.and_then(|(first, last)| Some(Ports { first: port(first)?, last: port(last)? }));
        let reserved = reserved.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(Ports { first: port(first)?, last: port(last)? })
        });
        Self { range, reserved: reserved.collect() }
    }

    fn gives(&self, port: u16) -> bool {
        self.range.is_some_and(|range| range.holds(port))
            && !self.reserved.iter().any(|reserved| reserved.holds(port))
    }
}

/// Who else has ports of these, for people.
pub fn problems(ports: Ports, sockets: &SocketPorts, services: &Desired) -> Vec<String> {
    let given = (ports.first..=ports.last).find(|port| sockets.gives(*port));
    let given = given.map(|port| {
        format!(
            "SNAT ports {ports}: the kernel gives sockets port {port}, too: set other ports with --snat-ports, or take them out of \
             net.ipv4.ip_local_port_range or into net.ipv4.ip_local_reserved_ports"
        )
    });
    let node_ports = services.iter().flat_map(|(name, service)| {
        let of_nodes = service.frontends.iter().filter(|frontend| frontend.address.is_none());
        of_nodes.map(move |frontend| (name, frontend.port))
    });
    let taken = node_ports.into_iter().find(|(_, port)| ports.holds(*port));
    let taken = taken.map(|(name, port)| {
        format!("SNAT ports {ports}: {port} is a node port of service \"{name}\": set other ports with --snat-ports")
    });
    given.into_iter().chain(taken).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_refused_with_what_was_expected() {
        assert_eq!("61000-65535".parse(), Ok(Ports::DEFAULT));
        assert_eq!("1024-1087".parse(), Ok(Ports { first: 1024, last: 1087 }));
        for (text, expected) in [
            ("61000", "expected FIRST-LAST, both 1024 to 65535, such as 61000-65535"),
            ("61000-65536", "expected FIRST-LAST, both 1024 to 65535, such as 61000-65535"),
            ("a-b", "expected FIRST-LAST, both 1024 to 65535, such as 61000-65535"),
            ("1023-2000", "expected ports of 1024 to 65535, and the first is 1023"),
            ("3000-2000", "expected FIRST-LAST, and the last, 2000, is below the first, 3000"),
            ("2000-2062", "expected 64 ports or more, and these are 63"),
        ] {
            assert_eq!(text.parse::<Ports>().unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn ports_that_sockets_are_given_are_told_of_unless_they_are_reserved() {
        let told = |range: &str, reserved: &str| {
            problems(Ports::DEFAULT, &SocketPorts::read(range, reserved), &Desired::new())
        };
        assert_eq!(told("32768\t60999", "\n"), Vec::<String>::new());
        let problem = told("1024\t65535", "").pop().unwrap();
        assert!(problem.contains("61000-65535: the kernel gives sockets port 61000, too"), "{problem}");
        let problem = told("1024\t65535", "8080,61000-65534").pop().unwrap();
        assert!(problem.contains("port 65535, too"), "{problem}");
        assert_eq!(told("1024\t65535", "61000-65535"), Vec::<String>::new());
    }
}
