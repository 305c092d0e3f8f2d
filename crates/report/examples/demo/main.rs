//! Writes a report of MADE-UP numbers, to look at the page without running anything:
//! `cargo run -p monosem-report --example demo -- FOLDER`.

mod causal;

use std::path::Path;

use monosem_report::{
    Extras, FeatureExample, Fragment, NodeInfo, Provenance, ResultRow, render, write_case_studies, write_circuits,
    write_features, write_results,
};

const HOOKS: [&str; 2] = ["blocks.9.hook_resid_post", "blocks.17.hook_resid_post"];
const ALPHAS: [f64; 5] = [1e-4, 3e-4, 8.577e-4, 2e-3, 5e-3];
const RATIOS: [f64; 3] = [1.0, 2.0, 4.0];
const WIDTH: f64 = 576.0;

/// A number in -0.5..0.5 that looks random and is the same every time.
fn wobble(i: usize) -> f64 {
    ((i as f64 * 12.9898).sin() * 43758.5453).rem_euclid(1.0) - 0.5
}

struct Rows(Vec<ResultRow>);

impl Rows {
    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        experiment: &str,
        method: &str,
        hook: &str,
        setting: &str,
        metric: &str,
        value: f64,
        ci: f64,
        n: u64,
    ) {
        let unit = match metric {
            "fvu" | "loss_recovered" => "fraction",
            "l0" | "dead_latents" | "alive_latents" | "n_latents" => "latents",
            "mmcs" => "cosine",
            "ce_loss" => "nats/token",
            "kl" => "nats",
            "logit_diff" => "nats",
            "agreement" | "agreement_rank" => "correlation",
            "unparsed_replies" | "refused_replies" => "replies",
            "auc" | "corrected_score" => "1",
            "scored_features" | "unscored_features" | "patched_features" | "features_for_half_kl" => "features",
            _ => "",
        };
        self.0.push(ResultRow {
            experiment: experiment.into(),
            method: method.into(),
            hook: hook.into(),
            setting: setting.into(),
            metric: metric.into(),
            value,
            ci_low: (ci > 0.0).then_some(value - ci),
            ci_high: (ci > 0.0).then_some(value + ci),
            n,
            unit: unit.into(),
        });
    }
}

/// (method, setting, FVU, L0, latents, dead) of every dictionary at a hook.
fn dictionaries(hook: usize) -> Vec<(String, String, f64, f64, f64, f64)> {
    let mut all = Vec::new();
    for (i, ratio) in RATIOS.iter().enumerate() {
        for (j, alpha) in ALPHAS.iter().enumerate() {
            let l0 = 0.11 / alpha.powf(0.85) * (1.0 + 0.1 * i as f64) * (1.0 + 0.06 * wobble(i * 7 + j));
            let fvu = (0.9 / (1.0 + l0.powf(0.72) / 7.0)) * (1.0 - 0.07 * i as f64) + 0.02 * hook as f64;
            let n = ratio * WIDTH;
            let dead = (n * (0.02 + 0.13 * i as f64 + 0.07 * j as f64)).round();
            all.push(("sae-tied".into(), format!("ratio={ratio},alpha={alpha}"), fvu, l0, n, dead));
        }
    }
    for k in [8.0, 32.0, 64.0, 128.0f64] {
        let fvu = |best: f64| 0.95 / (1.0 + k.powf(0.6) / best);
        all.push(("pca-topk".into(), format!("k={k}"), fvu(9.0), k, 2.0 * WIDTH, 3.0));
        all.push(("ica-topk".into(), format!("k={k}"), fvu(14.0), k, 2.0 * WIDTH, 0.0));
        all.push(("random-topk".into(), format!("k={k}"), 1.4 - 0.002 * k, k, 2.0 * WIDTH, 0.0));
    }
    all.push(("pca".into(), String::new(), 0.0003, WIDTH, WIDTH, 0.0));
    all.push(("ica".into(), String::new(), 0.0004, WIDTH, WIDTH, 0.0));
    all.push(("identity".into(), String::new(), 0.0, WIDTH, WIDTH, 0.0));
    all.push(("identity-relu".into(), String::new(), 0.63, 281.4, WIDTH, 0.0));
    all.push(("random-relu".into(), String::new(), 38.2, 290.2, WIDTH, 0.0));
    all
}

fn language_model(rows: &mut Rows) {
    for (h, hook) in HOOKS.iter().enumerate() {
        let (none, mean, zero) = (3.31f64, 7.9 + 0.4 * h as f64, 9.6 + 0.2 * h as f64);
        for (ablation, loss) in [("none", none), ("mean", mean), ("zero", zero)] {
            let setting = format!("ablation={ablation}");
            rows.add("splice", "identity", hook, &setting, "ce_loss", loss, 0.03, 16_320);
            rows.add("splice", "identity", hook, &setting, "perplexity", loss.exp(), 0.0, 16_320);
        }
        for (i, (method, setting, fvu, l0, n, dead)) in dictionaries(h).into_iter().enumerate() {
            rows.add(
                "dictionary",
                &method,
                hook,
                &setting,
                "fvu",
                fvu,
                if fvu > 0.0 { 0.012 * fvu.min(1.0) } else { 0.0 },
                20_000,
            );
            rows.add("dictionary", &method, hook, &setting, "l0", l0, 0.0, 20_000);
            rows.add("dictionary", &method, hook, &setting, "n_latents", n, 0.0, 20_000);
            rows.add("dictionary", &method, hook, &setting, "dead_latents", dead, 0.0, 20_000);
            rows.add("dictionary", &method, hook, &setting, "alive_latents", n - dead, 0.0, 20_000);
            let loss = none + (zero - none) * fvu.min(1.4).powf(1.3) * (0.9 + 0.1 * wobble(i));
            rows.add("splice", &method, hook, &setting, "ce_loss", loss, 0.04, 16_320);
            rows.add("splice", &method, hook, &setting, "perplexity", loss.exp(), 0.02 * loss.exp(), 16_320);
            rows.add("splice", &method, hook, &setting, "loss_recovered", (zero - loss) / (zero - none), 0.0, 16_320);
        }
        for (from, to) in [("1", "2"), ("2", "4")] {
            let setting = format!("ratio={from},alpha=8.577e-4,to=ratio {to}");
            rows.add("dictionary", "sae-tied", hook, &setting, "mmcs", 0.71 + 0.1 * h as f64, 0.0, 576);
        }
        for (i, ratio) in RATIOS.iter().enumerate() {
            for (j, alpha) in ALPHAS.iter().enumerate() {
                for step in (0..=20).map(|s| s * 100) {
                    let t = 1.0 - (-(f64::from(step)) / 260.0).exp();
                    let setting = format!("ratio={ratio},alpha={alpha},seed=0,step={step}");
                    let end = 0.08 + 0.09 * j as f64 - 0.01 * i as f64;
                    let noise = 0.01 * wobble(i * 100 + j * 10 + step as usize);
                    rows.add("training", "sae-tied", hook, &setting, "fvu", 1.0 - (1.0 - end) * t + noise, 0.0, 4096);
                    let l0 = 280.0 * (1.0 - t) + 0.11 / alpha.powf(0.85) * t;
                    rows.add("training", "sae-tied", hook, &setting, "l0", l0, 0.0, 4096);
                    let loss = 2.0 * (1.0 - t) + alpha * 60.0 + end;
                    rows.add("training", "sae-tied", hook, &setting, "loss", loss, 0.0, 2048);
                    let dead = (ratio * WIDTH * t * t * (0.02 + 0.1 * i as f64 + 0.05 * j as f64)).round();
                    rows.add("training", "sae-tied", hook, &setting, "dead_latents", dead, 0.0, 4096);
                }
            }
        }
    }
}

fn planted(rows: &mut Rows) {
    for (g, generator) in ["correlated", "uncorrelated"].iter().enumerate() {
        for (i, ratio) in [0.5, 1.0, 2.0, 4.0].iter().enumerate() {
            for (j, e) in (-6..=2).enumerate() {
                let alpha = 10f64.powf(f64::from(e) / 4.0);
                let setting = format!("generator={generator},ratio={ratio},alpha={alpha:.3e}");
                let best = (-(f64::from(e) + 3.0 - 0.5 * g as f64).powi(2) / 14.0).exp();
                let mmcs = (0.3 + 0.66 * best) * if *ratio < 1.0 { 0.8 } else { 1.0 } + 0.01 * wobble(i * 9 + j);
                rows.add("planted", "sae-tied", "", &setting, "mmcs", mmcs, 0.012, 512);
                rows.add("planted", "sae-tied", "", &setting, "fvu", 0.4 * alpha / (alpha + 0.8) + 0.004, 0.0, 25_600);
                rows.add(
                    "planted",
                    "sae-tied",
                    "",
                    &setting,
                    "l0",
                    9.0 / (1.0 + 3.0 * alpha) + 0.5 * i as f64,
                    0.0,
                    25_600,
                );
                rows.add(
                    "planted",
                    "sae-tied",
                    "",
                    &setting,
                    "dead_latents",
                    (120.0 * alpha * ratio).round(),
                    0.0,
                    25_600,
                );
            }
        }
        for step in (0..=10).map(|s| s * 200) {
            let setting = format!("generator={generator},ratio=1,alpha=1e-1,step={step}");
            let t = 1.0 - (-f64::from(step) / 400.0).exp();
            rows.add("training", "sae-tied", "", &setting, "fvu", 1.0 - 0.96 * t, 0.0, 25_600);
            rows.add("training", "sae-tied", "", &setting, "mmcs", 0.2 + 0.7 * t, 0.0, 512);
        }
        let setting = format!("generator={generator}");
        rows.add("planted", "pca", "", &setting, "mmcs", 0.34, 0.0, 512);
        rows.add("planted", "random-relu", "", &setting, "mmcs", 0.21, 0.0, 512);
    }
}

/// (method, setting, score with a short explanation, features that halve the KL).
const DICTIONARIES: [(&str, &str, f64, f64); 9] = [
    ("sae-tied", "ratio=2,alpha=0.002", 0.31, 60.0),
    ("sae-tied", "ratio=4,alpha=0.002", 0.36, 34.0),
    ("sae-topk", "ratio=4,k=32", 0.33, 41.0),
    ("pca", "", 0.22, 260.0),
    ("pca-oriented", "", 0.26, 240.0),
    ("ica", "", 0.28, 170.0),
    ("ica-oriented", "", 0.39, 150.0),
    ("identity-relu", "", 0.19, 330.0),
    ("random", "", 0.2, 420.0),
];

/// Further kinds of autoencoder, that only the scores of explanations are shown of.
const KINDS: [(&str, &str, f64); 6] = [
    ("sae-relu", "ratio=2,alpha=0.002", 0.33),
    ("sae-gated", "ratio=2,alpha=0.002", 0.27),
    ("sae-jump-relu", "ratio=2,alpha=0.003", 0.32),
    ("sae-top-k", "ratio=2,k=32", 0.35),
    ("sae-batch-top-k", "ratio=2,k=32", 0.34),
    ("sae-matryoshka", "ratio=2,k=32", 0.29),
];

fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(",")
}

fn interpretability(rows: &mut Rows) {
    for (h, hook) in HOOKS.iter().enumerate() {
        let usual = DICTIONARIES.iter().map(|(method, setting, score, _)| (*method, *setting, *score));
        for (i, (method, setting, score)) in usual.chain(KINDS).enumerate() {
            let score = score * (1.0 - 0.15 * h as f64);
            for patterns in [1.0, 3.0, 5.0, 10.0, 30.0f64] {
                let s = joined(&[setting, &format!("patterns={patterns}")]);
                let gain = score * (1.0 + 0.28 * (patterns / 5.0).ln());
                rows.add("interp", method, hook, &s, "interp_score", gain, 0.03, 140);
                rows.add("interp", method, hook, &s, "interp_score_top", 1.1 * gain, 0.03, 140);
                rows.add("interp", method, hook, &s, "interp_score_random", 0.6 * gain, 0.03, 140);
                rows.add("interp", method, hook, &s, "interp_score_all", 0.93 * gain, 0.03, 150);
                rows.add("interp", method, hook, &s, "scored_features", 140.0, 0.0, 150);
                rows.add("interp", method, hook, &s, "unscored_features", 10.0, 0.0, 150);
            }
            for bits in [32.0, 64.0, 128.0, 256.0, 512.0f64] {
                let s = joined(&[setting, &format!("bits={bits}")]);
                let gain = score * (1.0 + 0.2 * (bits / 100.0).ln());
                rows.add("interp", method, hook, &s, "interp_score", gain, 0.03, 140);
            }
            let headline = joined(&[setting, "patterns=5"]);
            for (metric, value) in [("skew_correlation", 0.19), ("kurtosis_correlation", 0.15)] {
                rows.add("interp", method, hook, &headline, metric, value + 0.1 * wobble(i), 0.16, 140);
            }
            for (control, value) in [("shuffled", 0.02 * wobble(i)), ("random-weights", 0.14 + 0.06 * wobble(i + 3))] {
                let s = joined(&[setting, &format!("patterns=5,control={control}")]);
                rows.add("interp", method, hook, &s, "interp_score", value, 0.02, 140);
            }
        }
    }
}

/// (scorer, unit, chance, corrected score where others have 1, asks a model).
const SCORERS: [(&str, &str, f64, f64, bool); 7] = [
    ("patterns", "correlation", 0.0, 0.8, false),
    ("simulation", "correlation", 0.0, 1.0, true),
    ("chat-simulation", "correlation", 0.0, 0.7, true),
    ("detection", "balanced accuracy", 0.5, 1.3, true),
    ("fuzzing", "balanced accuracy", 0.5, 1.1, true),
    ("intruder", "accuracy", 0.25, 1.6, true),
    ("surprisal", "AUC", 0.5, 0.9, true),
];

/// Scores of explanations, most of them by a language model.
fn explanations(rows: &mut Rows) {
    let scored =
        [("sae-tied", "ratio=2,alpha=0.002", 0.45), ("sae-top-k", "ratio=2,k=32", 0.5), ("ica-oriented", "", 0.3)];
    for (h, hook) in HOOKS.iter().enumerate() {
        for (d, (method, setting, worth)) in scored.into_iter().enumerate() {
            for (s, (scorer, unit, chance, gain, asks)) in SCORERS.into_iter().enumerate() {
                let explainer = if asks { "explainer=windows" } else { "explainer=patterns" };
                let i = 100 * h + 10 * d + s;
                let unscored = if scorer == "chat-simulation" { 9.0 } else { (3.0 * wobble(i)).round().max(0.0) };
                let mut add = |method: &str, setting: &str, control: &str, corrected: f64, n: u64| {
                    let s = joined(&[setting, explainer, control, &format!("scorer={scorer}")]);
                    let score = chance + (1.0 - chance) * corrected;
                    let interval = 0.06 * (1.0 - chance);
                    let first = rows.0.len();
                    rows.add("autointerp", method, hook, &s, "score", score, interval, n - unscored as u64);
                    if scorer != "intruder" {
                        rows.add(
                            "autointerp",
                            method,
                            hook,
                            &s,
                            "score_top",
                            score + 0.04,
                            interval,
                            n - unscored as u64,
                        );
                        rows.add(
                            "autointerp",
                            method,
                            hook,
                            &s,
                            "score_random",
                            score - 0.06,
                            interval,
                            n - unscored as u64,
                        );
                    }
                    rows.0[first..].iter_mut().for_each(|row| row.unit = unit.into());
                    rows.add("autointerp", method, hook, &s, "corrected_score", corrected, 0.06, n - unscored as u64);
                    if matches!(scorer, "detection" | "fuzzing") {
                        rows.add(
                            "autointerp",
                            method,
                            hook,
                            &s,
                            "auc",
                            (score + 0.07).min(1.0),
                            0.03,
                            n - unscored as u64,
                        );
                    }
                    rows.add("autointerp", method, hook, &s, "unscored_features", unscored, 0.0, n);
                    if asks {
                        rows.add(
                            "autointerp",
                            method,
                            hook,
                            &s,
                            "unparsed_replies",
                            (8.0 * unscored).round(),
                            0.0,
                            10 * n,
                        );
                        rows.add("autointerp", method, hook, &s, "refused_replies", (i % 3) as f64, 0.0, 10 * n);
                    }
                };
                add(method, setting, "", (worth * gain * (1.0 - 0.1 * h as f64) + 0.1 * wobble(i)).min(0.97), 40);
                if scorer != "intruder" {
                    add(method, setting, "control=shuffled", 0.06 * wobble(i + 7), 20);
                }
                if d == 0 {
                    add("random-relu", "", "control=random-directions", 0.12 * gain + 0.05 * wobble(i + 1), 20);
                    add(method, setting, "control=random-weights", 0.17 * gain + 0.05 * wobble(i + 2), 20);
                }
            }
            let asking: Vec<&str> = SCORERS.iter().filter(|s| s.4).map(|s| s.0).collect();
            for (i, a) in asking.iter().enumerate() {
                for (j, b) in asking.iter().enumerate().skip(i + 1) {
                    let s = joined(&[setting, "explainer=windows", &format!("scorers={a}+{b}")]);
                    let close = 0.45 + 0.7 * wobble(31 * i + 7 * j + d);
                    rows.add("autointerp", method, hook, &s, "agreement_rank", close, 0.18, 31 + (i + j) as u64);
                    rows.add("autointerp", method, hook, &s, "agreement", close + 0.03, 0.18, 31 + (i + j) as u64);
                }
            }
        }
    }
}

fn properties(rows: &mut Rows) {
    for (i, property) in ["inside_quote", "after_name", "indirect_object_slot", "plural_subject"].iter().enumerate() {
        for (j, (method, setting, score, _)) in DICTIONARIES.iter().enumerate() {
            let s = joined(&[setting, &format!("property={property}")]);
            let auroc = (0.55 + score + 0.2 * wobble(10 * i + j)).min(0.998);
            rows.add("properties", method, HOOKS[0], &s, "best_auroc", auroc, 0.01, 4000);
            rows.add("properties", method, HOOKS[0], &s, "f1", 0.9 * auroc - 0.2, 0.03, 4000);
            for (latents, more) in [("1", -0.02), ("2", 0.0), ("5", 0.03)] {
                let s = joined(&[&s, &format!("latents={latents}")]);
                rows.add("properties", method, HOOKS[0], &s, "probe_auroc", (auroc + more).min(0.999), 0.01, 4000);
            }
            if method.starts_with("sae") {
                let rate = 0.1 + 0.1 * wobble(10 * j + i);
                rows.add("properties", method, HOOKS[0], &s, "absorption_rate", rate.max(0.0), 0.02, 900);
                rows.add("properties", method, HOOKS[0], &s, "split_latents", 1.0 + i as f64, 0.0, 900);
            }
        }
        let s = format!("property={property},latents=all");
        rows.add("properties", "identity", HOOKS[0], &s, "probe_auroc", 0.99 - 0.01 * i as f64, 0.01, 4000);
    }
}

/// Text that the invented features are active on.
const STORY: [&str; 4] = [
    "\n\nThe captain said that the harbour would be closed until Mary came back from the village, and nobody asked her why.",
    "When John and Mary went to the shop, John gave a drink to Mary. \u{201C}That is all,\u{201D} he said,  and left the keys.",
    "for (i = 0; i < n; i++) {\n\ttotal += price[i] * 1.19; // <b>not</b> rounded\n}\nThat line said nothing that matters here.",
    "It has been said that the council, after a long debate that lasted until midnight, had voted against the plan.",
];

fn features() -> Vec<FeatureExample> {
    let mut all = Vec::new();
    for (i, (method, setting, score, _)) in DICTIONARIES.iter().enumerate() {
        for (h, hook) in HOOKS.iter().enumerate() {
            for feature in 0..12 {
                let dense = !method.starts_with("sae");
                let fragments =
                    (0..6).map(|f| fragment(if f < 3 { "top" } else { "random" }, f + feature, dense)).collect();
                let noise = wobble(100 * i + 10 * feature + h);
                let mut example = FeatureExample {
                    experiment: "interp".into(),
                    method: (*method).into(),
                    hook: (*hook).into(),
                    setting: (*setting).into(),
                    feature: feature * 7,
                    explanation: "fires on \" that\" (7/10), after \" said\" (5/10), on capitalised words (2/10); otherwise about 0.1/10".into(),
                    score: (feature != 3).then_some(score + 0.5 * noise),
                    skew: Some(9.0 + 10.0 * noise),
                    kurtosis: Some(10f64.powf(if dense { 0.8 } else { 2.2 } + noise)),
                    note: String::new(),
                    fragments,
                };
                all.push(example.clone());
                if *method == "sae-tied" && feature < 6 {
                    let mut explained = example.clone();
                    explained.experiment = "autointerp".into();
                    explained.explanation =
                        "the word \"that\" where it opens a subordinate clause, mostly after a verb of saying".into();
                    explained.note = "fuzzing: 0.81; intruder: 0.70; chat-simulation: unscored, of 10 replies 4 could not be read and 0 were refused".into();
                    explained.fragments.iter_mut().for_each(|f| f.predicted.clear());
                    all.push(explained);
                }
                if h == 1 && feature < 4 {
                    example.experiment = "ioi".into();
                    example.note = "acts at S2, END; edit 0.8".into();
                    all.push(example);
                }
            }
        }
    }
    all
}

/// A fragment with activations on two words, and a little of everything where `dense`.
fn fragment(kind: &str, seed: usize, dense: bool) -> Fragment {
    let text = STORY[seed % STORY.len()];
    let mut tokens: Vec<String> = Vec::new();
    for c in text.chars() {
        match tokens.last_mut() {
            Some(last) if c.is_alphanumeric() && last.ends_with(|l: char| l.is_alphanumeric() || l == ' ') => {
                last.push(c);
            }
            _ => tokens.push(c.to_string()),
        }
    }
    let of = |token: &str| match token.trim() {
        "that" | "That" => 6.5,
        "said" => 3.0,
        _ => 0.0,
    };
    let activation = |(i, t): (usize, &String)| {
        let noise = if dense { 2.5 * (wobble(i + 17 * seed) + 0.1).max(0.0) } else { 0.0 };
        (of(t) * (0.8 + 0.4 * wobble(i + seed)) + noise) as f32
    };
    let activations = tokens.iter().enumerate().map(activation).collect();
    let predicted = tokens.iter().map(|t| 0.7 * of(t) as f32).collect();
    Fragment { kind: kind.into(), tokens, activations, predicted }
}

fn provenance() -> Provenance {
    let node = |name: &str, seconds: f64, cached: bool, sources: &[&str], experiments: &[&str]| NodeInfo {
        name: name.into(),
        key: "b3f0c1d2e3a4958677aabbccddeeff00112233445566778899aabbccddeeff00".into(),
        seconds,
        cached,
        folder: format!("nodes/{name}-b3f0c1d2e3a4"),
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        experiments: experiments.iter().map(|s| (*s).to_owned()).collect(),
    };
    Provenance {
        title: "A demonstration report (every number is made up)".into(),
        profile: "demo".into(),
        profile_toml: "# made up\nname = \"demo\"\n\n[sae]\nratios = [1, 2, 4]\nalphas = [1e-4, 3e-4, 8.577e-4, 2e-3, 5e-3]\n".into(),
        model: "an imaginary model of 135 M parameters (width 576)".into(),
        text: "an imaginary corpus".into(),
        nodes: vec![
            node("capture", 212.4, true, &["model.safetensors", "text.txt"], &[]),
            node("train-blocks.9", 388.1, false, &["capture"], &["training"]),
            node("train-blocks.17", 401.7, false, &["capture"], &["training"]),
            node("decompose", 96.3, false, &["capture"], &[]),
            node("evaluate", 74.0, false, &["train-blocks.9", "train-blocks.17", "decompose"], &["dictionary", "splice"]),
            node("interpret", 120.5, false, &["evaluate"], &["interp"]),
            node("ioi", 340.0, false, &["evaluate"], &["ioi", "task", "attribution"]),
            node("circuit", 210.0, false, &["evaluate"], &["circuit", "case-study"]),
            node("erase", 65.0, false, &["evaluate"], &["erasure"]),
            node("planted", 55.5, false, &[], &["planted"]),
            node("report", 0.4, false, &["results.json"], &[]),
        ],
        version: "0.0.0-demo".into(),
        notes: vec![
            "Every number on this page is synthetic. It shows what a report looks like and says nothing about any model.".into(),
            "A real report lists here what differs from the paper, for example the model, the text, and how long training ran.".into(),
        ],
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = std::env::args_os().nth(1) else {
        return Err("usage: demo FOLDER".into());
    };
    let mut rows = Rows(Vec::new());
    language_model(&mut rows);
    planted(&mut rows);
    interpretability(&mut rows);
    explanations(&mut rows);
    causal::behaviours(&mut rows);
    causal::attribution(&mut rows);
    let circuits = causal::circuits(&mut rows);
    let case_studies = causal::case_studies(&mut rows);
    causal::erasure(&mut rows);
    properties(&mut rows);
    rows.add("tomorrow", "sae-tied", HOOKS[0], "ratio=2", "novelty", 0.42, 0.05, 50);
    let folder = Path::new(&folder);
    let features = features();
    let extras = Extras { features: &features, circuits: &circuits, case_studies: &case_studies };
    let rendered = render(&rows.0, extras, &provenance())?;
    rendered.write(folder)?;
    write_results(&folder.join("results.json"), &rows.0)?;
    write_features(&folder.join("features.json"), &features)?;
    write_circuits(&folder.join("circuits.json"), &circuits)?;
    write_case_studies(&folder.join("case-studies.json"), &case_studies)?;
    println!("{} figures, {} KiB of HTML", rendered.figures.len(), rendered.html.len() / 1024);
    Ok(())
}
