//! What a flow is aimed at: `tcp/443`, `udp/53`, `sctp/7`, `icmp/8`, `icmpv6/128`, `icmp/3/1`, `proto/47`.
use weft_proto::v1::{FlowPort, MonitorPort};

const TCP: u32 = 6;
const UDP: u32 = 17;
const SCTP: u32 = 132;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;

pub(crate) fn parse_port(text: &str) -> Result<FlowPort, String> {
    let (protocol, rest) = text.split_once('/').ok_or_else(expected)?;
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" => with_port(TCP, rest),
        "udp" => with_port(UDP, rest),
        "sctp" => with_port(SCTP, rest),
        "icmp" => with_type(ICMP, rest),
        "icmpv6" => with_type(ICMPV6, rest),
        "proto" => {
            let number: u8 =
                rest.parse().map_err(|_| format!("`{rest}` is not a protocol number from 0 to 255"))?;
            match u32::from(number) {
                TCP | UDP | SCTP => {
                    Err(format!("protocol {number} has ports: give tcp/PORT, udp/PORT or sctp/PORT"))
                }
                ICMP | ICMPV6 => Err(format!("protocol {number} has types: give icmp/TYPE or icmpv6/TYPE")),
                protocol_number => Ok(FlowPort { protocol_number, port: 0 }),
            }
        }
        _ => Err(expected()),
    }
}

/// The same, or a protocol without its port.
pub(crate) fn parse_monitor_port(text: &str) -> Result<MonitorPort, String> {
    let any = [("tcp", TCP), ("udp", UDP), ("sctp", SCTP), ("icmp", ICMP), ("icmpv6", ICMPV6)];
    if let Some((_, protocol_number)) = any.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name)) {
        return Ok(MonitorPort { protocol_number, port: None });
    }
    let FlowPort { protocol_number, port } = parse_port(text)?;
    Ok(MonitorPort { protocol_number, port: Some(port) })
}

fn expected() -> String {
    "expected tcp/PORT, udp/PORT, sctp/PORT, icmp/TYPE[/CODE], icmpv6/TYPE[/CODE] or proto/NUMBER".to_owned()
}

fn with_port(protocol_number: u32, text: &str) -> Result<FlowPort, String> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| format!("`{text}` is not a port from 1 to 65535"))?;
    Ok(FlowPort { protocol_number, port: u32::from(port) })
}

/// Type and code share the field that holds the port, see `FlowPort`.
fn with_type(protocol_number: u32, text: &str) -> Result<FlowPort, String> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    let octet =
        |text: &str| text.parse::<u8>().map_err(|_| format!("`{text}` is not a number from 0 to 255"));
    Ok(FlowPort { protocol_number, port: u32::from(octet(kind)?) * 256 + u32::from(octet(code)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_types_and_bare_protocols_are_told_apart() {
        let parsed = |text: &str| parse_port(text).map(|port| (port.protocol_number, port.port));
        assert_eq!(parsed("tcp/443"), Ok((6, 443)));
        assert_eq!(parsed("UDP/53"), Ok((17, 53)));
        assert_eq!(parsed("icmp/8"), Ok((1, 8 * 256)));
        assert_eq!(parsed("icmp/3/1"), Ok((1, 3 * 256 + 1)));
        assert_eq!(parsed("icmpv6/128"), Ok((58, 128 * 256)));
        assert_eq!(parsed("proto/47"), Ok((47, 0)));
        for wrong in [
            "443",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/65536",
            "icmp/256",
            "icmp/8/256",
            "proto/256",
            "proto/6",
            "http/80",
        ] {
            assert!(parse_port(wrong).is_err(), "{wrong}");
        }
    }
}
