//! Two texts line by line: what is gone, what is new, and what stayed around it.

/// Texts with more lines are shown whole, the old one and then the new one: a table of all pairs of lines would not fit.
const COMPARED_LINES_MAX: usize = 2000;
/// Lines that stayed, shown before and behind each change.
const CONTEXT_LINES: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Gone(&'a str),
    New(&'a str),
}

/// One line a line, marked `+`, `-` or nothing; `…` where lines that stayed are left out.
pub(crate) fn difference(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let lines = if before.len().max(after.len()) > COMPARED_LINES_MAX {
        before.iter().map(|line| Line::Gone(line)).chain(after.iter().map(|line| Line::New(line))).collect()
    } else {
        compare(&before, &after)
    };
    let near = |place: usize| {
        let from = place.saturating_sub(CONTEXT_LINES);
        lines
            .iter()
            .skip(from)
            .take(place - from + CONTEXT_LINES + 1)
            .any(|line| !matches!(line, Line::Same(_)))
    };
    let mut text = String::new();
    let mut left_out = false;
    for (place, line) in lines.iter().enumerate() {
        if !near(place) {
            if !left_out {
                text.push_str("  …\n");
            }
            left_out = true;
            continue;
        }
        left_out = false;
        let (mark, line) = match line {
            Line::Same(line) => (' ', line),
            Line::Gone(line) => ('-', line),
            Line::New(line) => ('+', line),
        };
        text.push(mark);
        text.push(' ');
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// By the longest common subsequence.
fn compare<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<Line<'a>> {
    // common[i][j]: of what begins at i and at j.
    let mut common = vec![vec![0_u32; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            common[i][j] = if before[i] == after[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            lines.push(Line::Same(before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len() || (i < before.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(Line::Gone(before[i]));
            i += 1;
        } else {
            lines.push(Line::New(after[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_marked_with_what_stayed_around_it() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\n"), "  a\n- b\n+ x\n  c\n");
        assert_eq!(difference("", "a\n"), "+ a\n");
        assert_eq!(difference("a\n", "a\n"), "  …\n");
        let before = "0\n1\n2\n3\n4\n5\n6\n7\n8\n";
        let after = before.replace("8\n", "8\n9\n");
        assert_eq!(difference(before, &after), "  …\n  7\n  8\n+ 9\n");
    }

    #[test]
    fn texts_that_are_too_long_to_compare_are_shown_whole() {
        let long = "line\n".repeat(COMPARED_LINES_MAX + 1);
        assert_eq!(difference(&long, &long).lines().count(), 2 * (COMPARED_LINES_MAX + 1));
    }
}
