//! What a plain (unquoted) scalar stands for, by the core schema of YAML 1.2, and stricter where readers disagree.

/// The kind of thing that a plain scalar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    Null,
    Bool,
    Number,
    Text,
}

impl Plain {
    pub(super) const fn noun(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "text",
        }
    }
}

pub(super) fn classify(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Plain::Bool,
        _ if is_number(text) => Plain::Number,
        _ => Plain::Text,
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let radix = |prefix: &str, radix| {
        text.strip_prefix(prefix)
            .is_some_and(|digits| !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix)))
    };
    if radix("0x", 16) || radix("0o", 8) {
        return true;
    }
    let (mantissa, exponent) =
        unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent
}

/// Whether text needs quotes to be read back as the same text, by any reader of YAML 1.1 or 1.2.
pub(crate) fn needs_quotes(text: &str) -> bool {
    const WORDS: [&str; 10] = ["yes", "no", "on", "off", "y", "n", "true", "false", "null", "<<"];
    let first = text.chars().next();
    classify(text) != Plain::Text
        || WORDS.contains(&text.to_ascii_lowercase().as_str())
        // Sexagesimal numbers and timestamps of YAML 1.1 start with a digit or sign and hold ':' or '-'; a prefix or an
        // address is not among them, but quotes never hurt what looks like one.
        || (first.is_some_and(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
            && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b':' | b'.' | b'-' | b'_' | b'+'))
            && text.contains([':', '_', '-']))
        || !first.is_some_and(|c| c.is_alphanumeric() || matches!(c, '/' | '_' | '.' | '(' | '$' | '^' | '+'))
        || text.ends_with([' ', ':'])
        || text.contains(": ")
        || text.contains(" #")
        || text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{85}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_classified_by_the_core_schema() {
        for text in [
            "0", "-1", "+3", "8080", "0x1f", "0o17", "1.5", ".5", "1e3", "-1.5E-3", ".inf", "-.INF", ".nan",
            "012",
        ] {
            assert_eq!(classify(text), Plain::Number, "{text}");
        }
        for text in ["true", "False", "TRUE"] {
            assert_eq!(classify(text), Plain::Bool, "{text}");
        }
        for text in ["", "~", "null", "NULL"] {
            assert_eq!(classify(text), Plain::Null, "{text}");
        }
        for text in [
            "web",
            "10.0.0.1",
            "10.0.0.0/8",
            "1.2.3",
            "fd00::1",
            "02:00:00:00:00:01",
            "e3",
            ".",
            "-",
            "1e",
            "0x",
            "yes",
        ] {
            assert_eq!(classify(text), Plain::Text, "{text}");
        }
    }

    #[test]
    fn what_some_reader_takes_for_something_else_gets_quotes() {
        for text in [
            "",
            "1",
            "1.5",
            "true",
            "Null",
            "yes",
            "NO",
            "off",
            "12:30:00",
            "2026-11-22",
            "1_000",
            "- x",
            "a: b",
            "a #b",
            "*x",
            "&x",
            "!x",
            "'x",
            "x\ny",
            " x",
            "x ",
            "x:",
            "{x",
            "[x",
            "@x",
            "%x",
            "::1",
            "<<",
        ] {
            assert!(needs_quotes(text), "{text:?}");
        }
        for text in
            ["web", "10.0.0.1", "10.0.0.0/8", "fd00::/64", "fd00::1", "api-from-web", "a:b", "x y", "a#b"]
        {
            assert!(!needs_quotes(text), "{text:?}");
        }
    }
}
