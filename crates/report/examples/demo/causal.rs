//! Made-up rows and graphs of the causal experiments.

use monosem_report::{CaseStudy, Circuit, CircuitEdge, CircuitNode, LogitEffect, TokenCounts};

use super::{DICTIONARIES, HOOKS, Rows, joined, wobble};

const TASKS: [&str; 4] = ["gendered-pronoun", "greater-than", "subject-verb-agreement", "closing-bracket"];

/// Indirect objects and the other tasks.
pub(crate) fn behaviours(rows: &mut Rows) {
    model(rows, "ioi", "ioi_accuracy", "");
    patched(rows, "ioi", HOOKS[1], "", 1.0);
    // Of other layers the readings alone.
    for (hook, gain) in [(HOOKS[0], 0.8), ("blocks.5.hook_resid_post", 1.3), ("blocks.13.hook_resid_post", 0.7)] {
        for (method, setting, _, half) in dictionaries() {
            let setting = joined(&[setting, "prompts=report"]);
            readings(rows, "ioi", method, hook, &setting, gain * half);
        }
    }
    for (i, task) in TASKS.iter().enumerate() {
        let key = format!("task={task}");
        model(rows, "task", "task_accuracy", &key);
        patched(rows, "task", HOOKS[1], &key, 0.3 + 0.5 * i as f64);
    }
}

fn dictionaries() -> impl Iterator<Item = (&'static str, &'static str, f64, f64)> {
    DICTIONARIES.into_iter().filter(|d| d.0 != "pca-oriented")
}

fn model(rows: &mut Rows, experiment: &str, accuracy: &str, task: &str) {
    let setting = joined(&["prompts=report", task]);
    rows.add(experiment, "model", HOOKS[1], &setting, accuracy, 0.98, 0.02, 50);
    rows.add(experiment, "model", HOOKS[1], &setting, "logit_diff", 4.1, 0.3, 50);
}

fn patched(rows: &mut Rows, experiment: &str, hook: &str, task: &str, gain: f64) {
    for (method, setting, _, half) in dictionaries() {
        let half = half * gain * (1.0 + wobble(task.len() + method.len()));
        for prompts in ["choose", "report"] {
            let prompts = format!("prompts={prompts}");
            for step in 0..=40 {
                let (threshold, count) = match step {
                    0 => ("all".to_owned(), 2000.0),
                    40 => ("none".to_owned(), 0.0),
                    i => (format!("{:.3e}", 10f64.powf(f64::from(i) / 8.0 - 5.0)), (2000.0 * 0.82f64.powi(i)).round()),
                };
                let s = joined(&[setting, &prompts, "seed=0", &format!("threshold={threshold}"), task]);
                let kl = 0.25 + 2.9 / (1.0 + (count / half).powf(0.9));
                rows.add(experiment, method, hook, &s, "patched_features", count, 0.0, 50);
                rows.add(experiment, method, hook, &s, "kl", kl, 0.12 * kl, 50);
                rows.add(experiment, method, hook, &s, "logit_diff", 3.0 - 2.0 * kl, 0.4, 50);
                rows.add(experiment, method, hook, &s, "edit_norm", (count * half).sqrt() / 60.0, 0.05, 50);
            }
            readings(rows, experiment, method, hook, &joined(&[setting, &prompts, task]), half);
        }
    }
}

fn readings(rows: &mut Rows, experiment: &str, method: &str, hook: &str, setting: &str, half: f64) {
    rows.add(experiment, method, hook, setting, "features_for_half_kl", half, 0.2 * half, 50);
    rows.add(experiment, method, hook, setting, "kl_auc", 0.3 + 0.12 * half.ln() / 2.0, 0.03, 50);
}

pub(crate) fn attribution(rows: &mut Rows) {
    for (d, (method, setting, score, _)) in dictionaries().take(5).enumerate() {
        let mut add = |more: &str, metric: &str, value: f64, ci: f64| {
            rows.add("attribution", method, HOOKS[1], &joined(&[setting, more]), metric, value, ci, 50);
        };
        add("", "rank_correlation", 0.95 - 0.1 * d as f64, 0.03);
        add("", "pearson", 0.9 - 0.12 * d as f64, 0.04);
        add("k=16", "top_overlap", 0.875 - 0.125 * d as f64, 0.08);
        add("ranking=exact", "kl_auc", 0.6 - 0.5 * score, 0.02);
        add("ranking=attribution", "kl_auc", 0.62 - 0.5 * score + 0.02 * d as f64, 0.02);
        for feature in 0..120 {
            let size = (0.04 * (1.0 + wobble(feature + 200 * d)) / (0.02 + 0.5 + wobble(7 * feature + d))).min(1.5);
            let noise = 0.05 * d as f64 * wobble(feature * 3 + d);
            let key = format!("feature={}", 7 * feature);
            add(&key, "exact_effect", size - 0.02, 0.02 * size.abs());
            add(&key, "attributed_effect", size * (1.0 - 0.15 * d as f64) + noise - 0.02, 0.02 * size.abs());
        }
    }
}

const MEANINGS: [&str; 7] = [
    "opening round brackets, and the first words after them",
    "words inside brackets, more so the longer the bracket has been open",
    "years between 1900 and 2020",
    "abbreviations of units after a number, such as km, kg or MHz",
    "commas in enumerations of names",
    "",
    "the second part of a quotation that began with \u{201C} and has not yet been closed, whatever its language",
];

/// One of so many features at each of three layers below the target, and its rows.
pub(crate) fn circuits(rows: &mut Rows) -> Vec<Circuit> {
    let mut all = Vec::new();
    for (target, per_layer, seed) in [(812, [9, 9, 9], 0usize), (77, [2, 3, 2], 500)] {
        let mut nodes = Vec::new();
        for (layer, count) in per_layer.iter().enumerate() {
            for i in 0..*count {
                nodes.push(node(
                    3 * layer + 2,
                    131 * i + 17 * layer + seed,
                    MEANINGS[(i + 2 * layer) % MEANINGS.len()],
                ));
            }
        }
        nodes.push(node(11, target, "closing round brackets after a year or a short remark"));
        let last = nodes.len() - 1;
        let mut edges = Vec::new();
        for from in 0..last {
            for to in from + 1..=last {
                let noise = wobble(97 * from + 31 * to + seed) + 0.5;
                let near = nodes[to].hook != nodes[from].hook;
                // To the target often, to others now and then.
                if near && (if to == last { noise > 0.35 } else { noise > 0.86 }) {
                    let ablation = if noise > 0.97 { -0.3 * noise } else { 0.6 * (noise - 0.3).powi(2) + 0.02 };
                    let (low, high) = (Some(ablation - 0.02), Some(ablation + 0.02));
                    let attribution = (noise < 0.95).then_some(ablation + 0.03 * wobble(to));
                    edges.push(CircuitEdge { from, to, ablation, ablation_low: low, ablation_high: high, attribution });
                }
            }
        }
        let setting = format!("ratio=4,alpha=0.002,target={target}");
        for (metric, value) in [
            ("circuit_nodes", nodes.len() as f64),
            ("circuit_edges", edges.len() as f64),
            ("attribution_correlation", 0.71),
            ("largest_edge", 0.31),
            ("target_activation", 3.4),
        ] {
            rows.add("circuit", "sae-tied", "blocks.11.hook_resid_post", &setting, metric, value, 0.0, 64);
        }
        all.push(Circuit { method: "sae-tied".into(), setting, target: last, nodes, edges });
    }
    all
}

fn node(layer: usize, feature: usize, explanation: &str) -> CircuitNode {
    CircuitNode {
        hook: format!("blocks.{layer}.hook_resid_post"),
        feature,
        explanation: explanation.into(),
        mean_activation: 1.5 + wobble(feature),
        n_contexts: 64,
    }
}

pub(crate) fn case_studies(rows: &mut Rows) -> Vec<CaseStudy> {
    let mut all = Vec::new();
    let picked = [
        ("sae-tied", "ratio=4,alpha=0.002", 556, "apostrophes", "named"),
        ("sae-tied", "ratio=4,alpha=0.002", 91, "", "largest skew"),
        ("identity", "", 21, "", "most apostrophes at the top"),
        ("identity", "", 300, "", "largest skew"),
        ("sae-topk", "ratio=4,k=32", 1204, "line breaks", "named"),
    ];
    for (i, (method, setting, feature, name, why)) in picked.into_iter().enumerate() {
        let basis = method == "identity";
        let bins: Vec<f64> =
            (0..=10).map(|edge| if basis { -4.0 + 1.1 * f64::from(edge) } else { 0.63 * f64::from(edge) }).collect();
        let total = |bin: usize| (60_000.0 * (-0.9 * bin as f64).exp()).ceil();
        let share = |token: usize, bin: usize| {
            let pure = if basis { (bin as f64 / 9.0).powi(4) } else { 0.55 + 0.045 * bin as f64 };
            pure * [0.6, 0.2, 0.1, 0.06, 0.04][token] * (1.0 + 0.4 * wobble(i + token))
        };
        let names = [["'", "\u{2019}", " '", "'s", "`"], ["\n", "\n\n", " \n", "\t", "."]][usize::from(i == 4)];
        let tokens: Vec<TokenCounts> = names
            .iter()
            .enumerate()
            .map(|(t, token)| TokenCounts {
                token: (*token).into(),
                counts: (0..10).map(|bin| (total(bin) * share(t, bin)) as u64).collect(),
            })
            .collect();
        let listed = |bin: usize| tokens.iter().map(|t| t.counts[bin]).sum::<u64>();
        let other = (0..10).map(|bin| (total(bin) as u64).saturating_sub(listed(bin))).collect();
        let effects = [
            ("s", -1.9),
            ("t", -0.8),
            ("re", -0.5),
            (" the", 0.11),
            ("ll", -0.41),
            ("\n", 0.2),
            (" and", 0.07),
            ("d", -0.3),
        ];
        let gain = if basis { 0.1 } else { 1.0 };
        let logit_effects =
            effects.map(|(token, change)| LogitEffect { token: token.into(), change: gain * change }).to_vec();
        let s = joined(&[setting, &format!("feature={feature}")]);
        for (metric, value) in [
            ("active_share", if basis { 0.5 } else { 0.009 }),
            ("top_token_share", if basis { 0.31 } else { 0.87 }),
            ("largest_logit_effect", 1.9 * gain),
        ] {
            rows.add("case-study", method, HOOKS[0], &s, metric, value, 0.0, 100_000);
        }
        all.push(CaseStudy {
            method: method.into(),
            hook: HOOKS[0].into(),
            setting: setting.into(),
            feature,
            name: name.into(),
            picked: why.into(),
            n_tokens: 10_000_000,
            n_active: 95_000 * (1 + 50 * u64::from(basis)),
            bins,
            tokens,
            other,
            logit_effects,
            n_contexts: 512,
        });
    }
    all
}

pub(crate) fn erasure(rows: &mut Rows) {
    for hook in HOOKS {
        for (method, setting, accuracy, norm, kl) in [
            ("none", "", 0.97, 0.0, 0.0),
            ("sae-tied", "ratio=4,alpha=0.002,feature=31", 0.62, 1.4, 0.004),
            ("sae-tied", "ratio=4,alpha=0.002,feature=907", 0.78, 0.9, 0.002),
            ("sae-topk", "ratio=4,k=32,feature=18", 0.6, 1.7, 0.006),
            ("class-mean", "", 0.55, 4.1, 0.03),
            ("leace", "", 0.51, 3.2, 0.02),
            ("random-direction", "", 0.965, 0.4, 0.001),
            ("identity", "feature=44", 0.93, 2.2, 0.05),
        ] {
            let s = joined(&[setting, "concept=gender"]);
            for (metric, value, ci) in [
                ("accuracy", accuracy, 0.03),
                ("p_correct", 0.9 * accuracy, 0.02),
                ("edit_norm", norm, 0.1 * norm),
                ("kl", kl, 0.2 * kl),
                ("transfer_accuracy", 0.5 * accuracy + 0.48, 0.04),
            ] {
                rows.add("erasure", method, hook, &s, metric, value, ci, 120);
            }
        }
    }
}
