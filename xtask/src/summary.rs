//! Counts of what passed and failed, out of the closing lines of cargo-nextest and of cargo's own test runner.
use std::ops::AddAssign;

const NEXTEST_SUMMARY: &str = "Summary [";

/// How many checks and tests passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl Counts {
    /// One check, such as formatting.
    pub(crate) fn one(passed: bool) -> Self {
        if passed { Self { passed: 1, failed: 0 } } else { Self { passed: 0, failed: 1 } }
    }

    /// Everything that the log of a test run counts. A run that failed without a failed test (it did not compile, it
    /// was killed) is one failure.
    pub(crate) fn of_run(log: &str, success: bool) -> Self {
        let mut counts = Self::default();
        let lines = || log.lines().map(str::trim);
        // nextest shows what a failed test printed, and each of its tests is a run of cargo's runner.
        let by_nextest = lines().any(|line| line.starts_with(NEXTEST_SUMMARY));
        for line in lines().filter(|line| !by_nextest || line.starts_with(NEXTEST_SUMMARY)) {
            counts += of_line(line);
        }
        if !success && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// `Summary [  1.2s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 3 skipped` (nextest), or
/// `test result: FAILED. 5 passed; 1 failed; 0 ignored; …` (cargo).
fn of_line(line: &str) -> Counts {
    let counted = match (line.strip_prefix("test result:"), line.starts_with(NEXTEST_SUMMARY)) {
        (Some(rest), _) => rest,
        (None, true) => line.split_once("run:").map_or("", |(_, rest)| rest),
        (None, false) => return Counts::default(),
    };
    let mut counts = Counts::default();
    for part in counted.split([',', ';', '.']) {
        let part = part.trim();
        let Some((number, word)) = part.split_once(' ') else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        match word {
            _ if word.starts_with("passed") => counts.passed += number,
            _ if word.starts_with("failed")
                || word.starts_with("timed out")
                || word.starts_with("exec failed") =>
            {
                counts.failed += number;
            }
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn nextests_summary_is_counted_with_its_remarks() {
        let log = "  Summary [   1.234s] 9 tests run: 7 passed (1 slow, 1 flaky), 1 failed, 1 timed out, 3 skipped\n";
        assert_eq!(Counts::of_run(log, false), Counts { passed: 7, failed: 2 });
    }

    #[test]
    fn what_a_failed_test_printed_is_not_counted_again() {
        let log = "Summary [ 1.2s] 2 tests run: 1 passed, 1 failed, 0 skipped\n  test result: FAILED. 0 passed; 1 failed;\n";
        assert_eq!(Counts::of_run(log, false), Counts { passed: 1, failed: 1 });
    }

    #[test]
    fn an_interrupted_nextest_run_still_counts_what_ran() {
        let log = "  Summary [   0.3s] 2/9 tests run: 1 passed, 1 failed, 0 skipped\n";
        assert_eq!(Counts::of_run(log, false), Counts { passed: 1, failed: 1 });
    }

    #[test]
    fn cargos_summaries_of_several_binaries_add_up() {
        let log = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                   test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured\n";
        assert_eq!(Counts::of_run(log, false), Counts { passed: 7, failed: 3 });
    }

    #[test]
    fn a_run_that_failed_before_its_first_test_is_one_failure() {
        assert_eq!(Counts::of_run("error: could not compile\n", false), Counts { passed: 0, failed: 1 });
        assert_eq!(Counts::of_run("", true), Counts::default());
    }
}
