//! Numbers and words for people: significant digits, intervals, durations, names of metrics and hooks.

/// U+2212, as wide as a plus sign.
const MINUS: &str = "\u{2212}";

/// Four significant digits; whole numbers in full with thousands separators; very large and very small ones with an
/// exponent.
pub(crate) fn value(v: f64) -> String {
    significant(v, 4)
}

pub(crate) fn significant(v: f64, digits: i32) -> String {
    if v == 0.0 {
        return "0".to_owned();
    }
    let magnitude = v.abs().log10().floor();
    if v.fract() == 0.0 && v.abs() < 1e7 {
        return group(&format!("{v:.0}"));
    }
    if !(-3.0..7.0).contains(&magnitude) {
        // Three digits in tables; a bare power of ten where an axis asks for one.
        return exponent(v, digits.min(3));
    }
    // Within -3..7, so the cast is exact.
    let decimals = (digits - 1 - magnitude as i32).max(0) as usize;
    group(&format!("{v:.decimals$}"))
}

/// Two decimals: a share, where a hundredth is all that is worth telling.
pub(crate) fn share(v: f64) -> String {
    if (-1e3..1e3).contains(&v) { group(&format!("{v:.2}")) } else { value(v) }
}

fn exponent(v: f64, digits: i32) -> String {
    let text = format!("{v:.*e}", (digits - 1).max(0) as usize);
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    format!("{mantissa}e{power}").replace('-', MINUS)
}

/// Thousands separators and a true minus sign.
fn group(text: &str) -> String {
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |r| (MINUS, r));
    // Nothing is left of a number that rounds to zero, not even its sign.
    let sign = if rest.contains(|c: char| matches!(c, '1'..='9')) { sign } else { "" };
    let (whole, fraction) = rest.split_once('.').map_or((rest, None), |(w, f)| (w, Some(f)));
    let mut out = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A value with its interval: as many decimals as the interval deserves (two significant digits of its half width).
pub(crate) fn with_interval(v: f64, low: Option<f64>, high: Option<f64>) -> String {
    let (Some(low), Some(high)) = (low, high) else {
        return value(v);
    };
    let largest = v.abs().max(low.abs()).max(high.abs());
    let half = (high / 2.0 - low / 2.0).abs();
    if half == 0.0 || !(1e-3..1e6).contains(&largest) {
        return format!("{} [{}, {}]", value(v), value(low), value(high));
    }
    let most = (5 - largest.log10().floor() as i32).max(0);
    let decimals = (1 - half.log10().floor().max(-300.0) as i32).clamp(0, most) as usize;
    let show = |x: f64| group(&format!("{x:.decimals$}"));
    format!("{} [{}, {}]", show(v), show(low), show(high))
}

/// Whole counts with thousands separators.
pub(crate) fn count(n: u64) -> String {
    group(&n.to_string())
}

/// `0.42 s`, `12.3 s`, `3 min 20 s`, `1 h 02 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    if seconds < 59.95 {
        return if seconds < 9.995 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") };
    }
    // Saturates for absurd inputs, which is all that is asked of them.
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", count(whole / 3600), whole % 3600 / 60)
    }
}

/// Text of a setting's value: numbers are shortened to four digits without trailing zeros, words stay.
pub(crate) fn setting_value(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(v) if v != 0.0 && v.abs() < 0.01 => exponent(v, 4),
        Ok(v) if v.is_finite() => {
            let text = significant(v, 4);
            if text.contains('.') && !text.contains('e') {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            } else {
                text
            }
        }
        _ => text.to_owned(),
    }
}

/// How a metric is written in headings; unknown ones keep their name.
pub(crate) fn metric(name: &str) -> &str {
    match name {
        "fvu" => "FVU",
        "l0" => "L0",
        "dead_latents" => "dead latents",
        "alive_latents" => "alive latents",
        "n_latents" => "latents",
        "mmcs" => "MMCS",
        "interp_score_difference" => "difference of scores",
        "features_for_half_kl_ratio" => "ratio of features for half of the KL",
        "edit_for_half_kl_ratio" => "ratio of edits for half of the KL",
        "kl_floor_difference" => "difference of KL with all patched",
        "matched_cosine" => "cosine of pairs",
        "matched_same" => "pairs above 0.9",
        "mmcs_next_larger" => "MMCS to the next larger",
        "silent_latents" => "silent latents",
        "ce_loss" => "cross-entropy",
        "loss_recovered" => "loss recovered",
        "interp_score" => "score",
        "interp_score_top" => "score on top",
        "interp_score_random" => "score on random",
        "interp_score_top_less_random" => "score on top less on random",
        "interp_score_all" => "score with unscored as 0",
        "scored_features" => "scored",
        "unscored_features" => "unscored",
        "skew_correlation" => "correlation with skew",
        "kurtosis_correlation" => "correlation with kurtosis",
        "corrected_score" => "chance-corrected score",
        "score_top" => "score on the strongest",
        "score_random" => "score on random",
        "auc" => "AUC",
        "unparsed_replies" => "unreadable replies",
        "refused_replies" => "refused replies",
        "agreement_rank" => "rank correlation",
        "agreement" => "plain correlation",
        "patched_features" => "patched features",
        "kl" => "KL",
        "kl_auc" => "area under KL",
        "features_for_half_kl" => "features for half the KL",
        "edit_for_half_kl" => "edit for half the KL",
        "kl_floor" => "KL with all patched",
        "edit_norm" => "edit norm",
        "ioi_accuracy" => "IOI accuracy",
        "logit_diff" => "logit difference",
        "task_accuracy" => "task accuracy",
        "rank_correlation" => "rank correlation",
        "pearson" => "plain correlation",
        "top_overlap" => "overlap of the largest",
        "exact_effect" => "exact effect",
        "attributed_effect" => "attributed effect",
        "circuit_nodes" => "features in the circuit",
        "circuit_edges" => "edges",
        "attribution_correlation" => "correlation with attribution",
        "largest_edge" => "largest edge",
        "target_activation" => "activation of the target",
        "active_share" => "share of active positions",
        "top_token_share" => "share of the top token",
        "largest_logit_effect" => "largest change of a log-probability",
        "p_correct" => "probability of the right answer",
        "transfer_accuracy" => "accuracy on other prompts",
        "best_auroc" => "best AUROC",
        "f1" => "best F1",
        "probe_auroc" => "probe AUROC",
        "probe_auroc_mean" => "mean probe AUROC",
        "probe_balanced_accuracy" => "probe balanced accuracy",
        "absorption_rate" => "absorption rate",
        "absorption_rate_mean" => "mean absorption rate",
        "main_silent_rate" => "share with main latents silent",
        "split_latents" => "main latents",
        "split_latents_mean" => "mean of main latents",
        other => other,
    }
}

/// How a key of a setting is written in labels.
pub(crate) fn setting_key(key: &str) -> &str {
    match key {
        "ratio" => "R",
        "alpha" => "α",
        other => other,
    }
}

/// `blocks.3.hook_resid_post` in words, where it is one of the known sites.
pub(crate) fn hook_in_words(hook: &str) -> Option<String> {
    let (layer, site) = hook.strip_prefix("blocks.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let words = match site {
        "hook_resid_pre" => "residual stream entering",
        "hook_resid_mid" => "residual stream between attention and MLP of",
        "hook_resid_post" => "residual stream leaving",
        "attn.hook_z" => "attention head outputs of",
        "hook_attn_out" => "attention output of",
        "mlp.hook_post" => "MLP neurons of",
        "hook_mlp_out" => "MLP output of",
        _ => return None,
    };
    Some(format!("{words} block {layer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sensible_digits() {
        assert_eq!(value(0.123456), "0.1235");
        assert_eq!(value(12345.0), "12,345");
        assert_eq!(value(-1234.56), "\u{2212}1,235");
        assert_eq!(value(8.577e-4), "8.58e\u{2212}4");
        assert_eq!(value(1e300), "1e300");
        assert_eq!([0.0032, 0.126, -0.001, 1e5].map(share), ["0.00", "0.13", "0.00", "100,000"]);
        assert_eq!(value(72.3), "72.30");
        assert_eq!(with_interval(0.12341, Some(0.12141), Some(0.12541)), "0.1234 [0.1214, 0.1254]");
        assert_eq!(with_interval(25.123, Some(24.0), Some(26.0)), "25.1 [24.0, 26.0]");
        assert_eq!(with_interval(0.5, None, None), "0.5000");
        assert_eq!(with_interval(0.16, Some(-0.001), Some(0.32)), "0.16 [0.00, 0.32]");
        let settings = ["8.577e-4", "0.002", "0.5", "2", "mean", "1e-4", "0"].map(setting_value);
        assert_eq!(settings, ["8.577e\u{2212}4", "2e\u{2212}3", "0.5", "2", "mean", "1e\u{2212}4", "0"]);
    }

    #[test]
    fn durations_read_naturally() {
        assert_eq!(duration(0.42), "0.42 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(59.99), "1 min 00 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
        assert_eq!(duration(f64::NAN), "unknown");
    }

    #[test]
    fn hooks_are_put_into_words() {
        assert_eq!(hook_in_words("blocks.3.hook_resid_post").unwrap(), "residual stream leaving block 3");
        assert_eq!(hook_in_words("somewhere"), None);
    }
}
