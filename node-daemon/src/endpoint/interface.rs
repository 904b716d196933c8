//! Names and MACs of endpoints' interfaces.

use siphasher::sip::SipHasher13;

use crate::desired::attachments::Mac;

/// What the names of all host's sides begin with.
const PREFIX: &str = "weft";
const DIGITS: usize = 8;

/// The host's side of an endpoint: `weft` and eight hexadecimal digits of a hash of its name.
pub fn host_name(endpoint: &str) -> String {
    let hash = SipHasher13::new().hash(endpoint.as_bytes()) & 0xffff_ffff;
    format!("{PREFIX}{hash:0DIGITS$x}")
}

/// Whether we made an interface of this name.
pub fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Six octets in colon notation.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut octets = text.split(':').map(|octet| {
        let hexadecimal = octet.len() == 2 && octet.bytes().all(|digit| digit.is_ascii_hexdigit());
        hexadecimal.then(|| u8::from_str_radix(octet, 16).ok()).flatten()
    });
    let mac = std::array::from_fn(|_| octets.next().flatten());
    if octets.next().is_some() || mac.contains(&None) {
        None
    } else {
        Some(mac.map(Option::unwrap_or_default))
    }
}

/// Six octets in colon notation.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_fits_the_kernel_is_stable_and_recognised() {
        let name = host_name("web-1.shop");
        assert_eq!(name, host_name("web-1.shop"));
        assert_ne!(name, host_name("web-2.shop"));
        assert!(name.len() < 16, "{name} is longer than IFNAMSIZ allows");
        assert!(is_ours(&name));
    }

    #[test]
    fn other_names_are_not_taken_for_ours() {
        for name in ["weft-vxlan", "weft", "weft0123456", "weft0123456g", "weft0123456A", "eth0"] {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn a_mac_survives_its_text() {
        let mac = [0x02, 0, 0xab, 0xcd, 0xef, 0x01];
        assert_eq!(parse_mac(&mac_text(mac)), Some(mac));
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "0g:00:00:00:00:00",
            "+1:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
