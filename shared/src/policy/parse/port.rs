//! Protocols and ports.

use weft_proto::v1;

use super::{super::model::PortRange, Errors, FieldError};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

pub(super) fn port(errors: &mut Errors, message: &v1::Port, path: &str) -> Option<PortRange> {
    let protocol = errors.take(protocol(message, path))?;
    let (has_ports, has_types) = (matches!(protocol, TCP | UDP | SCTP), matches!(protocol, ICMP | ICMPV6));
    if !has_ports && (message.port.is_some() || message.end_port.is_some()) {
        errors.add(format!("{path}.port"), "only TCP, UDP and SCTP have ports");
        return None;
    }
    if !has_types && (message.r#type.is_some() || message.code.is_some()) {
        errors.add(format!("{path}.type"), "only ICMP and ICMPv6 have types and codes");
        return None;
    }
    let range = if has_types { icmp_range(errors, message, path) } else { port_range(errors, message, path) };
    range.map(|(first, last)| PortRange { protocol, first, last })
}

fn protocol(message: &v1::Port, path: &str) -> Result<u8, FieldError> {
    let field = format!("{path}.protocol");
    let named = match v1::Protocol::try_from(message.protocol) {
        Ok(v1::Protocol::Tcp) => Some(TCP),
        Ok(v1::Protocol::Udp) => Some(UDP),
        Ok(v1::Protocol::Sctp) => Some(SCTP),
        Ok(v1::Protocol::Icmp) => Some(ICMP),
        Ok(v1::Protocol::Icmpv6) => Some(ICMPV6),
        Ok(v1::Protocol::Unspecified) => None,
        Err(_) => return Err(FieldError::new(field, "expected TCP, UDP, SCTP, ICMP or ICMPv6")),
    };
    match (named, message.protocol_number) {
        (Some(named), None) => Ok(named),
        (None, Some(number)) => u8::try_from(number).map_err(|_| {
            FieldError::new(
                format!("{path}.protocolNumber"),
                format!("{number} is out of range: expected 0 to 255"),
            )
        }),
        (None, None) => {
            Err(FieldError::new(field, "expected TCP, UDP, SCTP, ICMP or ICMPv6, or a protocolNumber"))
        }
        (Some(_), Some(_)) => {
            Err(FieldError::new(field, "expected either protocol or protocolNumber, not both"))
        }
    }
}

fn port_range(errors: &mut Errors, message: &v1::Port, path: &str) -> Option<(u16, u16)> {
    let number = |value: u32, field: &str| {
        let wrong = || {
            FieldError::new(
                format!("{path}.{field}"),
                format!("{value} is out of range: expected 1 to 65535"),
            )
        };
        u16::try_from(value).ok().filter(|port| *port != 0).ok_or_else(wrong)
    };
    match (message.port, message.end_port) {
        (None, None) => Some((0, u16::MAX)),
        (None, Some(_)) => {
            errors.add(format!("{path}.endPort"), "endPort goes with port");
            None
        }
        (Some(first), last) => {
            let first = errors.take(number(first, "port"));
            let last = last.map_or(first, |last| errors.take(number(last, "endPort")));
            let (first, last) = first.zip(last)?;
            if last < first {
                errors.add(format!("{path}.endPort"), format!("{last} is below port {first}"));
                return None;
            }
            Some((first, last))
        }
    }
}

fn icmp_range(errors: &mut Errors, message: &v1::Port, path: &str) -> Option<(u16, u16)> {
    let number = |value: u32, field: &str| {
        let wrong = |_| {
            FieldError::new(format!("{path}.{field}"), format!("{value} is out of range: expected 0 to 255"))
        };
        u8::try_from(value).map_err(wrong)
    };
    match (message.r#type, message.code) {
        (None, None) => Some((0, u16::MAX)),
        (None, Some(_)) => {
            errors.add(format!("{path}.code"), "code goes with type");
            None
        }
        (Some(kind), code) => {
            let kind = errors.take(number(kind, "type"))?;
            match code {
                None => Some((u16::from_be_bytes([kind, 0]), u16::from_be_bytes([kind, u8::MAX]))),
                Some(code) => {
                    let port = u16::from_be_bytes([kind, errors.take(number(code, "code"))?]);
                    Some((port, port))
                }
            }
        }
    }
}
