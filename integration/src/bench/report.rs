//! What a bench measured: a table for people, and one JSON shape for every bench.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Of one bench.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    figures: Vec<Figure>,
}

/// One thing that was measured in several rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Dotted from general to particular.
    pub name: String,
    /// The median round's.
    pub value: f64,
    pub unit: &'static str,
    /// The median of the rounds' ratios, each to the reference of the same round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The name of the figure that the ratio is to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The tenth and the ninetieth of a hundred rounds: of the ratio where there is one, of the value otherwise.
    pub low: f64,
    pub high: f64,
}

impl Figure {
    /// A figure that stands for itself. There is at least one round.
    pub fn plain(name: impl Into<String>, unit: &'static str, rounds: &[f64]) -> Self {
        let Spread { low, median, high } = Spread::of(rounds);
        Self { name: name.into(), value: median, unit, ratio: None, to: None, low, high }
    }

    /// A figure beside a reference that was measured in the same rounds.
    pub fn paired(
        name: impl Into<String>,
        unit: &'static str,
        rounds: &[f64],
        to: impl Into<String>,
        reference: &[f64],
    ) -> Self {
        let ratios: Vec<f64> = rounds.iter().zip(reference).map(|(value, base)| value / base).collect();
        let Spread { low, median, high } = Spread::of(&ratios);
        Self {
            name: name.into(),
            value: Spread::of(rounds).median,
            unit,
            ratio: Some(median),
            to: Some(to.into()),
            low,
            high,
        }
    }
}

/// Of samples in any order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// One of ten is below.
    pub low: f64,
    pub median: f64,
    /// One of ten is above.
    pub high: f64,
}

impl Spread {
    /// All NaN where there are no samples.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |tenths: usize| {
            let last = sorted.len().saturating_sub(1);
            sorted.get((last * tenths + 5) / 10).copied().unwrap_or(f64::NAN)
        };
        Self { low: at(1), median: at(5), high: at(9) }
    }
}

impl Report {
    pub fn new(bench: &'static str, figures: Vec<Figure>) -> Self {
        Self { bench, figures }
    }

    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// For machines.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["figure", "value", "", "ratio", "low", "high", "to"]);
        for figure in &self.figures {
            let digits =
                |value: f64| if value.abs() < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
            table.add_row([
                figure.name.clone(),
                digits(figure.value),
                figure.unit.to_owned(),
                figure.ratio.map(digits).unwrap_or_default(),
                digits(figure.low),
                digits(figure.high),
                figure.to.clone().unwrap_or_default(),
            ]);
        }
        for column in table.column_iter_mut().filter(|column| [1, 3, 4, 5].contains(&column.index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleven_rounds_give_the_second_the_sixth_and_the_tenth() {
        let rounds: Vec<f64> = (0..11).rev().map(f64::from).collect();
        assert_eq!(Spread::of(&rounds), Spread { low: 1.0, median: 5.0, high: 9.0 });
        assert_eq!(Spread::of(&[7.0]), Spread { low: 7.0, median: 7.0, high: 7.0 });
    }

    #[test]
    fn a_ratio_is_of_each_round_and_not_of_the_medians() {
        // The machine slowed down for both in the second round.
        let figure = Figure::paired("a.b", "ns", &[10.0, 200.0, 30.0], "ref.a", &[5.0, 100.0, 10.0]);
        assert_eq!(figure.ratio, Some(2.0));
        assert!((figure.value - 30.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_json_has_the_shape_that_all_benches_share() {
        let figures =
            vec![Figure::paired("a.b", "ns", &[3.0], "ref.a", &[2.0]), Figure::plain("ref.a", "ns", &[2.0])];
        let json = serde_json::to_value(Report::new("a", figures)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"bench": "a", "figures": [
                {"name": "a.b", "value": 3.0, "unit": "ns", "ratio": 1.5, "to": "ref.a", "low": 1.5, "high": 1.5},
                {"name": "ref.a", "value": 2.0, "unit": "ns", "low": 2.0, "high": 2.0},
            ]})
        );
    }
}
