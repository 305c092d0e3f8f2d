//! Rows of claims: a difference with its interval, the p-value of no difference, and that p-value corrected for the company it was measured in.

use monosem_autointerp::{Comparison, holm};
use monosem_dictionary::Estimate;
use monosem_report::ResultRow;

use crate::nodes::Label;

/// Resamples behind a claim. The smallest p-value is one over their number and one, which a family of hundreds could still be corrected for.
pub(crate) const RESAMPLES: usize = 9999;

/// A claim that was measured.
pub(crate) struct Claim {
    pub(crate) label: Label,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) comparison: Comparison,
}

impl Claim {
    /// What was measured, without what makes it a claim.
    pub(crate) fn row(&self) -> ResultRow {
        let Comparison { value, interval, n, .. } = self.comparison;
        self.label.estimate(self.metric, Estimate { value, interval }, n as u64, self.unit)
    }
}

/// The rows of a family of claims: those of one metric at one hook point, on one set of texts or prompts. `p_holm` is corrected for the
/// number of claims in the family that have a p-value; a reader who looks for the method that the autoencoder is above has that many chances
/// to find one.
pub(crate) fn family(claims: &[Claim]) -> Vec<ResultRow> {
    let p_values: Vec<f64> = claims.iter().filter_map(|claim| claim.comparison.p_value).collect();
    let mut corrected = holm(&p_values).into_iter();
    let mut rows = Vec::new();
    for claim in claims {
        rows.push(claim.row());
        if let Some(p_value) = claim.comparison.p_value {
            let label = claim.label.with_setting(&format!("of={}", claim.metric));
            let n = claim.comparison.n as u64;
            rows.push(label.row("p_value", p_value, n, "1"));
            rows.extend(corrected.next().map(|p_holm| label.row("p_holm", p_holm, n, "1")));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_corrected_for_those_that_were_tested() {
        let claim = |other: &str, p_value: Option<f64>| Claim {
            label: Label::new("claims", "sae-tied", "blocks.1.hook_resid_post", format!("ratio=2,above={other}")),
            metric: "interp_score_difference",
            unit: "correlation",
            comparison: Comparison { value: 0.1, interval: p_value.map(|_| (0.0, 0.2)), p_value, n: 20 },
        };
        let rows = family(&[claim("pca", Some(0.03)), claim("ica", None), claim("random-relu", Some(0.02))]);
        let of = |metric: &str| -> Vec<(&str, f64)> {
            rows.iter().filter(|row| row.metric == metric).map(|row| (row.setting.as_str(), row.value)).collect()
        };
        let (pca, random) = ("ratio=2,above=pca", "ratio=2,above=random-relu");
        let measure = "of=interp_score_difference";
        assert_eq!(
            of("interp_score_difference").iter().map(|(setting, _)| *setting).collect::<Vec<_>>(),
            [pca, "ratio=2,above=ica", random]
        );
        let named = |p: [f64; 2]| [(format!("{pca},{measure}"), p[0]), (format!("{random},{measure}"), p[1])];
        let owned = |rows: Vec<(&str, f64)>| rows.into_iter().map(|(s, p)| (s.to_owned(), p)).collect::<Vec<_>>();
        assert_eq!(owned(of("p_value")), named([0.03, 0.02]));
        assert_eq!(owned(of("p_holm")), named([0.04, 0.04]));
    }
}
