//! Medians, their spread, and ratios of rounds that belong together.

use serde::Serialize;

/// The middle of some values, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    /// The middle value; of an even number, the mean of the middle two.
    pub(super) median: f64,
    /// The smallest value.
    pub(super) min: f64,
    /// The largest value.
    pub(super) max: f64,
}

impl Summary {
    /// Of these values; none if there are none, or one of them is not a finite number.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self {
            median,
            min: values[0],
            max: values[values.len() - 1],
        })
    }

    /// Of `numerator / denominator`, round by round: what drifts from one round to the next hits
    /// both alike and falls out. Rounds that one of them lacks are left out.
    pub(super) fn of_ratios(
        numerator: &[(usize, f64)],
        denominator: &[(usize, f64)],
    ) -> Option<Self> {
        let ratios = numerator.iter().filter_map(|(round, above)| {
            let (_, below) = denominator.iter().find(|(other, _)| other == round)?;
            (*below > 0.0).then_some(above / below)
        });
        Self::of(ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(median: f64, min: f64, max: f64) -> Option<Summary> {
        Some(Summary { median, min, max })
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0]), summary(2.0, 1.0, 3.0));
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]), summary(2.5, 1.0, 4.0));
        assert_eq!(Summary::of([7.0]), summary(7.0, 7.0, 7.0));
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([1.0, f64::NAN]), None);
    }

    #[test]
    fn a_ratio_pairs_the_same_rounds() {
        // Of medians the ratio would be 20 / 10 = 2; round by round it is 2, 4 and 1.
        let above = [(1, 20.0), (2, 40.0), (3, 10.0)];
        let below = [(3, 10.0), (1, 10.0), (2, 10.0), (4, 1.0)];
        assert_eq!(Summary::of_ratios(&above, &below), summary(2.0, 1.0, 4.0));
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        assert_eq!(Summary::of_ratios(&[(1, 1.0)], &[(1, 0.0)]), None);
        assert_eq!(Summary::of_ratios(&[(1, 1.0)], &[(2, 1.0)]), None);
    }
}
