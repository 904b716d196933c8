//! Prefixes, such as the pools of a fleet.
use ipnet::IpNet;

/// A prefix without host bits.
pub(crate) fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("expected a prefix such as 10.200.0.0/16 or fd00:77::/48, not `{text}`"))?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!("host bits are set: did you mean {}?", net.trunc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_a_length_and_no_host_bits() {
        assert_eq!(parse_prefix("10.200.0.0/16"), Ok("10.200.0.0/16".parse().unwrap()));
        assert_eq!(parse_prefix("fd00:77::/48"), Ok("fd00:77::/48".parse().unwrap()));
        assert!(parse_prefix("10.200.0.0").unwrap_err().contains("expected a prefix"));
        assert!(parse_prefix("10.200.0.1/16").unwrap_err().contains("did you mean 10.200.0.0/16?"));
    }
}
