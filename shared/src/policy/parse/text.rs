//! Names, labels and prefixes as text.

use ipnet::IpNet;

use super::{super::selector::Labels, FieldError};

const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;
const LABELS_MAX: usize = 64;

/// A resource's name: RFC 1123 subdomain.
pub fn name(text: &str, path: &str) -> Result<(), FieldError> {
    if text.is_empty() {
        return Err(FieldError::new(path, "expected a name"));
    }
    if is_subdomain(text) {
        return Ok(());
    }
    let message = format!(
        "\"{text}\" is not a name: expected lower-case letters, digits, '-' and '.', beginning and ending with a letter \
         or digit, at most {NAME_BYTES_MAX} bytes"
    );
    Err(FieldError::new(path, message))
}

/// Labels in the syntax of Kubernetes.
pub fn labels(labels: &Labels, path: &str) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    if labels.len() > LABELS_MAX {
        errors.push(FieldError::new(
            path,
            format!("{} labels, at most {LABELS_MAX} are allowed", labels.len()),
        ));
    }
    for (key, value) in labels {
        let path = format!("{path}.{key}");
        errors.extend(label_key(key, &path).err());
        errors.extend(label_value(value, &path).err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

pub(crate) fn label_key(key: &str, path: &str) -> Result<(), FieldError> {
    let valid = match key.split_once('/') {
        Some((prefix, rest)) => is_subdomain(prefix) && is_label_text(rest) && !rest.is_empty(),
        None => is_label_text(key) && !key.is_empty(),
    };
    let message = || {
        format!(
            "\"{key}\" is not a label key: expected letters, digits, '-', '_' and '.', beginning and ending with a \
             letter or digit, at most {LABEL_BYTES_MAX} bytes, after an optional DNS prefix and '/'"
        )
    };
    if valid { Ok(()) } else { Err(FieldError::new(path, message())) }
}

pub(crate) fn label_value(value: &str, path: &str) -> Result<(), FieldError> {
    let message = || {
        format!(
            "\"{value}\" is not a label value: expected letters, digits, '-', '_' and '.', beginning and ending with a \
             letter or digit, at most {LABEL_BYTES_MAX} bytes, or nothing"
        )
    };
    if is_label_text(value) { Ok(()) } else { Err(FieldError::new(path, message())) }
}

/// A prefix without host bits.
pub(crate) fn prefix(text: &str, path: &str) -> Result<IpNet, FieldError> {
    let expected = "expected a prefix such as 198.51.100.0/24 or 2001:db8::/32";
    let net: IpNet =
        text.parse().map_err(|_| FieldError::new(path, format!("\"{text}\" is not one: {expected}")))?;
    if net.trunc() != net {
        return Err(FieldError::new(
            path,
            format!("\"{text}\" has host bits set: did you mean {}?", net.trunc()),
        ));
    }
    if matches!(net, IpNet::V6(v6) if v6.network().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96) {
        return Err(FieldError::new(
            path,
            format!("\"{text}\" is an IPv4 prefix dressed as IPv6: write it as IPv4"),
        ));
    }
    Ok(net)
}

fn is_subdomain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= NAME_BYTES_MAX
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(allowed)
                && bytes.last().copied().is_some_and(allowed)
                && bytes.iter().all(|&byte| allowed(byte) || byte == b'-')
        })
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let outer = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    text.len() <= LABEL_BYTES_MAX && bytes.iter().all(inner) && outer(bytes.first()) && outer(bytes.last())
}
