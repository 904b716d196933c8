//! Who of a service's backends takes new flows. Nodes fill their tables by it, and controllers say so.

use super::model::BackendState;

/// Of the backends of one family that the traffic policy leaves, those that take new flows: the active ones, and of these those with
/// the preferred value of the topology label, if there are any. If none is active, *all that are quarantined*: probes that fail
/// everywhere say more about the probes than about the backends, and what is not there refuses by itself.
pub fn takers<T>(
    candidates: impl IntoIterator<Item = T>,
    preferred: Option<&str>,
    of: impl Fn(&T) -> (BackendState, &str),
) -> Vec<T> {
    let candidates: Vec<T> = candidates.into_iter().collect();
    let preferred = preferred.filter(|value| !value.is_empty());
    let is_preferred = |one: &T| {
        let (state, topology) = of(one);
        state == BackendState::Active && preferred == Some(topology)
    };
    if candidates.iter().any(is_preferred) {
        return candidates.into_iter().filter(is_preferred).collect();
    }
    let is_active = |one: &T| of(one).0 == BackendState::Active;
    let state =
        if candidates.iter().any(is_active) { BackendState::Active } else { BackendState::Quarantined };
    candidates.into_iter().filter(|one| of(one).0 == state).collect()
}

#[cfg(test)]
mod tests {
    use super::{BackendState::*, *};

    type Backend = (&'static str, BackendState, &'static str);

    const fn of(backend: &Backend) -> (BackendState, &str) {
        (backend.1, backend.2)
    }

    #[test]
    fn active_ones_take_new_flows_and_of_them_the_preferred_and_without_any_all_that_are_quarantined() {
        let some = [("a", Active, "x"), ("b", Active, "y"), ("c", Quarantined, "z"), ("d", Terminating, "z")];
        let names = |candidates: &[Backend], preferred| -> String {
            takers(candidates.to_vec(), preferred, of).into_iter().map(|(name, ..)| name).collect()
        };
        assert_eq!(names(&some, None), "ab");
        assert_eq!(names(&some, Some("y")), "b");
        assert_eq!(names(&some, Some("z")), "ab", "nobody active is there");
        assert_eq!(names(&some, Some("")), "ab", "no value is no preference");
        assert_eq!(names(&some[2..], Some("z")), "c");
        assert_eq!(names(&some[3..], None), "");
    }
}
