//! How backends are probed.

use weft_proto::v1;

use super::super::model::{HealthCheck, HttpCheck};
use crate::policy::parse::Errors;

const INTERVAL_DEFAULT_MILLISECONDS: u32 = 2_000;
const INTERVAL_MIN_MILLISECONDS: u32 = 100;
const INTERVAL_MAX_MILLISECONDS: u32 = 300_000;
/// Or the interval, where that is less.
const TIMEOUT_DEFAULT_MILLISECONDS: u32 = 1_000;
const TIMEOUT_MIN_MILLISECONDS: u32 = 10;
const UNHEALTHY_AFTER_DEFAULT: u32 = 3;
const HEALTHY_AFTER_DEFAULT: u32 = 2;
/// Probes in a row.
const AFTER_MAX: u32 = 10;
const PATH_BYTES_MAX: usize = 1024;
/// What a request can carry as it is beside letters and digits: of paths and queries (RFC 3986, sections 3.3 and 3.4).
const PATH_MARKS: &str = "-._~!$&'()*+,;=:@/?%";
const STATUS_DEFAULT: u32 = 200;

pub(super) fn health_check(errors: &mut Errors, message: &v1::HealthCheck) -> Option<HealthCheck> {
    let before = errors.count();
    let interval = or(message.interval_milliseconds, INTERVAL_DEFAULT_MILLISECONDS);
    within(errors, "intervalMilliseconds", interval, (INTERVAL_MIN_MILLISECONDS, INTERVAL_MAX_MILLISECONDS));
    let timeout = or(message.timeout_milliseconds, TIMEOUT_DEFAULT_MILLISECONDS.min(interval));
    if timeout < TIMEOUT_MIN_MILLISECONDS || timeout > interval {
        let text = format!(
            "{timeout} is out of range: expected {TIMEOUT_MIN_MILLISECONDS} to the interval, {interval}"
        );
        errors.add("healthCheck.timeoutMilliseconds", text);
    }
    let unhealthy_after = or(message.unhealthy_after, UNHEALTHY_AFTER_DEFAULT);
    within(errors, "unhealthyAfter", unhealthy_after, (1, AFTER_MAX));
    let healthy_after = or(message.healthy_after, HEALTHY_AFTER_DEFAULT);
    within(errors, "healthyAfter", healthy_after, (1, AFTER_MAX));
    let http = message.http.as_ref().map(|http| http_check(errors, http));
    let check = HealthCheck {
        interval_milliseconds: interval,
        timeout_milliseconds: timeout,
        unhealthy_after,
        healthy_after,
        http,
    };
    (errors.count() == before).then_some(check)
}

/// 0 stands for an absent value.
fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

fn within(errors: &mut Errors, field: &str, value: u32, (least, most): (u32, u32)) {
    if !(least..=most).contains(&value) {
        let text = format!("{value} is out of range: expected {least} to {most}");
        errors.add(format!("healthCheck.{field}"), text);
    }
}

fn http_check(errors: &mut Errors, message: &v1::HttpCheck) -> HttpCheck {
    let path = &message.path;
    let sendable =
        path.bytes().all(|byte| byte.is_ascii_alphanumeric() || PATH_MARKS.as_bytes().contains(&byte));
    if !path.starts_with('/') || !sendable || path.len() > PATH_BYTES_MAX {
        let text = format!(
            "\"{path}\" is not a path: expected '/' and then letters, digits and {PATH_MARKS}, at most {PATH_BYTES_MAX} bytes"
        );
        errors.add("healthCheck.http.path", text);
    }
    let expected_status = or(message.expected_status, STATUS_DEFAULT);
    within(errors, "http.expectedStatus", expected_status, (100, 599));
    HttpCheck { path: path.clone(), expected_status }
}
