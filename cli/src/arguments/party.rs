//! Who is at an end of a flow: `web`, `app=web,env=prod`, `203.0.113.0/24`, `identity:256`, `world`.
use std::net::IpAddr;

use weft_proto::v1::{self, monitor_party::Party};

use super::parse_selector;

/// Classes of parties, as policies name them.
const ENTITIES: [&str; 5] = ["host", "remote-node", "fleet", "unmanaged", "world"];

pub(crate) fn parse_monitor_party(text: &str) -> Result<v1::MonitorParty, String> {
    Ok(v1::MonitorParty { party: Some(party(text)?) })
}

fn party(text: &str) -> Result<Party, String> {
    if let Some(number) = text.strip_prefix("identity:") {
        return number
            .parse()
            .map(Party::Identity)
            .map_err(|_| format!("`{number}` is not an identity's number"));
    }
    if let Some(name) = text.strip_prefix("endpoint:") {
        return Ok(Party::Endpoint(name.to_owned()));
    }
    if ENTITIES.contains(&text) {
        return Ok(Party::Entity(text.to_owned()));
    }
    if text.split('/').next().is_some_and(|address| address.parse::<IpAddr>().is_ok()) {
        return Ok(Party::Prefix(text.to_owned()));
    }
    if text.contains(['=', '!', '(', ',']) {
        return parse_selector(text).map(Party::Selector);
    }
    if text.is_empty()
        || text.contains(|letter: char| letter.is_whitespace() || letter == '/' || letter == ':')
    {
        return Err("expected an endpoint's name, labels such as app=web, an address or prefix, identity:NUMBER, or one \
                    of host, remote-node, fleet, unmanaged, world"
            .to_owned());
    }
    Ok(Party::Endpoint(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_are_told_apart_by_how_they_are_written() {
        assert_eq!(party("web"), Ok(Party::Endpoint("web".to_owned())));
        assert_eq!(party("endpoint:world"), Ok(Party::Endpoint("world".to_owned())));
        assert_eq!(party("world"), Ok(Party::Entity("world".to_owned())));
        assert_eq!(party("identity:256"), Ok(Party::Identity(256)));
        for prefix in ["203.0.113.5", "203.0.113.0/24", "2001:db8::1", "::/0", "203.0.113.0/99"] {
            assert_eq!(party(prefix), Ok(Party::Prefix(prefix.to_owned())));
        }
        for selector in ["app=web", "app!=web,env=prod", "!legacy", "app in (a,b)"] {
            assert!(matches!(party(selector), Ok(Party::Selector(_))), "{selector}");
        }
        for wrong in ["", "a b", "identity:x", "a/b", "=x", "tcp:80"] {
            assert!(party(wrong).is_err(), "{wrong}");
        }
    }
}
