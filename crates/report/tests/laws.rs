//! The laws of the report: it never panics, never lets text become markup, and gives the same bytes for the same rows.

mod common;

use common::{HOSTILE, check_page, provenance, with};
use monosem_report::{
    CaseStudy, Circuit, CircuitEdge, CircuitNode, Extras, FeatureExample, Fragment, LogitEffect, ReportError,
    ResultRow, TokenCounts, read_case_studies, read_circuits, read_features, read_results, render, write_case_studies,
    write_circuits, write_features, write_results,
};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just(HOSTILE.to_owned()), Just(String::new()), "[a-z.=,<&\"]{0,12}"]
}

fn number() -> impl Strategy<Value = f64> {
    use prop::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![4 => 0.0..2.0, 2 => 0.0..5000.0, 1 => NORMAL | NEGATIVE | POSITIVE | SUBNORMAL | ZERO]
}

prop_compose! {
    fn any_row()(
        experiment in prop_oneof![Just("dictionary".to_owned()), Just("training".to_owned()), Just("splice".to_owned()), Just("sweep".to_owned()), Just("sweep-training".to_owned()), Just("claims".to_owned()), Just("planted".to_owned()), Just("interp".to_owned()), Just("autointerp".to_owned()), Just("ioi".to_owned()), Just("task".to_owned()), Just("attribution".to_owned()), Just("circuit".to_owned()), Just("case-study".to_owned()), Just("erasure".to_owned()), Just("properties".to_owned()), text()],
        method in prop_oneof![Just("model".to_owned()), Just("pca-oriented".to_owned()), Just("sae-tied".to_owned()), Just("pca-topk".to_owned()), Just("identity".to_owned()), text()],
        hook in prop_oneof![Just("blocks.3.hook_resid_post".to_owned()), Just(String::new()), text()],
        setting in prop_oneof![
            Just(String::new()),
            (0..4u32, number()).prop_map(|(r, a)| format!("ratio={r},alpha={a:e}")),
            (0..4u32, 0..9u32).prop_map(|(r, s)| format!("ratio={r},alpha=1e-3,seed={r},step={s}")),
            (1..99u32).prop_map(|k| format!("k={k}")),
            Just("ablation=none".to_owned()),
            (1..9u32, text()).prop_map(|(p, c)| format!("ratio=2,patterns={p},control={c}")),
            (1..9u32).prop_map(|p| format!("ratio=2,alpha=0.002,patterns={p}")),
            (0..4u32, 0..8usize, 0..5usize).prop_map(|(r, s, c)| {
                let scorer = ["patterns", "simulation", "detection", "fuzzing", "intruder", "surprisal", "", "<b>"][s];
                let control = ["", ",control=shuffled", ",control=random-directions", ",control=random-weights", ",control=<i>"][c];
                format!("ratio={r},explainer=windows{control},scorer={scorer}")
            }),
            (0..4u32, text()).prop_map(|(r, b)| format!("ratio={r},explainer=windows,scorers=fuzzing+{b}")),
            (1..3u32, 1..4u32, text()).prop_map(|(r, a, to)| format!("ratio={r},alpha=0.00{a},to={to}")),
            (1..3u32, 1..4u32, 0..2u32).prop_map(|(r, a, s)| format!("ratio={r},alpha=0.00{a},seed={s}")),
            text().prop_map(|t| format!("ratio=2,above={t}")),
            (1..999u32).prop_map(|b| format!("bits={b}")),
            Just("patterns=5,control=shuffled".to_owned()),
            (0..3u32, number()).prop_map(|(s, t)| format!("prompts=report,seed={s},threshold={t:e}")),
            text().prop_map(|p| format!("ratio=2,property={p}")),
            text().prop_map(|t| format!("ratio=2,prompts=report,task={t}")),
            (0..3u32, 0..3usize).prop_map(|(f, k)| format!("k=4,{}", [format!("feature={f}"), format!("k={f}"), "ranking=exact".to_owned()][k])),
            (0..3u32, text()).prop_map(|(f, c)| format!("ratio=2,feature={f},concept={c}")),
            (text(), 0..3usize).prop_map(|(p, l)| format!("k=4,property={p},latents={}", ["1", "all", "<b>"][l])),
            Just("generator=correlated,ratio=1,alpha=0".to_owned()),
            text(),
        ],
        metric in prop_oneof![
            Just("fvu".to_owned()), Just("l0".to_owned()), Just("dead_latents".to_owned()), Just("n_latents".to_owned()),
            Just("perplexity".to_owned()), Just("loss_recovered".to_owned()), Just("alive_latents".to_owned()), Just("capacity".to_owned()), Just("interp_score_difference".to_owned()), Just("mmcs".to_owned()), Just("loss".to_owned()), text(),
            Just("corrected_score".to_owned()), Just("score".to_owned()), Just("unscored_features".to_owned()),
            Just("unparsed_replies".to_owned()), Just("agreement_rank".to_owned()), Just("agreement".to_owned()),
            Just("interp_score".to_owned()), Just("kl".to_owned()), Just("patched_features".to_owned()), Just("edit_norm".to_owned()),
            Just("features_for_half_kl".to_owned()), Just("kl_auc".to_owned()), Just("best_auroc".to_owned()),
            Just("exact_effect".to_owned()), Just("attributed_effect".to_owned()), Just("accuracy".to_owned()), Just("transfer_accuracy".to_owned()),
            Just("probe_auroc".to_owned()), Just("probe_auroc_mean".to_owned()), Just("absorption_rate".to_owned()), Just("split_latents".to_owned()),
        ],
        value in number(),
        ci_low in prop::option::of(number()),
        ci_high in prop::option::of(number()),
        n in any::<u64>(),
        unit in text(),
    ) -> ResultRow {
        ResultRow { experiment, method, hook, setting, metric, value, ci_low, ci_high, n, unit }
    }
}

prop_compose! {
    fn any_feature()(
        experiment in prop_oneof![Just("interp".to_owned()), Just("autointerp".to_owned()), Just("ioi".to_owned()), text()],
        (method, hook, setting) in (text(), text(), text()),
        feature in any::<usize>(),
        explanation in text(),
        score in prop::option::of(number()),
        kurtosis in prop::option::of(number()),
        tokens in prop::collection::vec((text(), -1e30..1e30f32, 0.0..2.0f32), 0..6),
        with_prediction: bool,
    ) -> FeatureExample {
        let predicted = if with_prediction { tokens.iter().map(|t| t.2).collect() } else { Vec::new() };
        let activations = tokens.iter().map(|t| t.1).collect();
        let tokens = tokens.into_iter().map(|t| t.0).collect();
        let fragments = vec![Fragment { kind: "top".into(), tokens, activations, predicted }];
        FeatureExample {
            experiment, method, hook, setting, feature, explanation, score, skew: None, kurtosis, note: String::new(), fragments,
        }
    }
}

prop_compose! {
    /// Edges go from any node to any other that is later; some of the numbers are large.
    fn any_circuit()(
        (method, setting) in (text(), text()),
        found in prop::collection::vec((0..5u32, any::<usize>(), text(), number()), 1..14),
        target in any::<prop::sample::Index>(),
        ends in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), number(), any::<bool>()), 0..90),
    ) -> Circuit {
        let node = |(layer, feature, explanation, mean_activation): (u32, usize, String, f64)| CircuitNode {
            hook: format!("blocks.{layer}.hook_resid_post"), feature, explanation, mean_activation, n_contexts: 7,
        };
        let target = target.index(found.len());
        let layers: Vec<u32> = found.iter().map(|node| node.0).collect();
        let edges = ends
            .into_iter()
            .map(|(from, to, size, falls)| {
                let ablation = if falls { size } else { -size };
                CircuitEdge { from: from.index(layers.len()), to: to.index(layers.len()), ablation, ..CircuitEdge::default() }
            })
            .filter(|edge| layers[edge.from] < layers[edge.to])
            .collect();
        Circuit { method, setting, target, nodes: found.into_iter().map(node).collect(), edges }
    }
}

prop_compose! {
    fn any_case_study()(
        (method, hook, setting) in (prop_oneof![Just("identity".to_owned()), text()], text(), text()),
        (name, picked) in (text(), text()),
        feature in any::<usize>(),
        (n_active, inactive) in (any::<u32>(), any::<u32>()),
        (low, step) in (-1e3..1e3f64, 1e-3..1e3f64),
        tokens in prop::collection::vec((text(), prop::array::uniform10(any::<u64>())), 0..14),
        other in prop::array::uniform10(0..5u64),
        effects in prop::collection::vec((text(), number()), 0..20),
        n_contexts in any::<u64>(),
    ) -> CaseStudy {
        CaseStudy {
            method, hook, setting, feature, name, picked, n_contexts,
            n_tokens: u64::from(n_active) + u64::from(inactive),
            n_active: n_active.into(),
            bins: (0..=10).map(|edge| low + step * f64::from(edge)).collect(),
            tokens: tokens.into_iter().map(|(token, counts)| TokenCounts { token, counts: counts.to_vec() }).collect(),
            other: other.to_vec(),
            logit_effects: effects.into_iter().map(|(token, change)| LogitEffect { token, change }).collect(),
        }
    }
}

fn any_rows() -> impl Strategy<Value = (Vec<ResultRow>, Vec<ResultRow>)> {
    prop::collection::vec(any_row(), 0..40).prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_rows_make_a_sound_page((rows, shuffled) in any_rows(), features in prop::collection::vec(any_feature(), 0..6), note in text(), seconds in prop::num::f64::ANY) {
        let finite = rows.iter().all(|r| [Some(r.value), r.ci_low, r.ci_high].iter().flatten().all(|v| v.is_finite()));
        let scores = features.iter().flat_map(|f| [f.score, f.kurtosis]).flatten();
        let finite = finite && scores.into_iter().all(f64::is_finite);
        let mut p = provenance();
        p.notes.push(note);
        p.nodes[0].seconds = seconds;
        let rendered = render(&rows, with(&features), &p);
        prop_assert_eq!(rendered.is_ok(), finite);
        if let Ok(rendered) = rendered {
            check_page(&rendered);
            prop_assert!(rendered == render(&shuffled, with(&features), &p).unwrap(), "the order of the rows shows");
        }
    }

    #[test]
    fn any_circuits_and_studies_make_a_sound_page(
        circuits in prop::collection::vec(any_circuit(), 0..3),
        case_studies in prop::collection::vec(any_case_study(), 0..4),
    ) {
        let finite = circuits.iter().flat_map(|c| &c.nodes).all(|node| node.mean_activation.is_finite());
        prop_assume!(finite);
        let extras = Extras { circuits: &circuits, case_studies: &case_studies, ..Extras::default() };
        let rendered = render(&[], extras, &provenance()).unwrap();
        check_page(&rendered);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.json");
        write_circuits(&path, &circuits).unwrap();
        prop_assert_eq!(read_circuits(&path).unwrap(), circuits);
        write_case_studies(&path, &case_studies).unwrap();
        prop_assert_eq!(read_case_studies(&path).unwrap(), case_studies);
    }

    #[test]
    fn features_come_back_to_the_last_bit(features in prop::collection::vec(any_feature(), 0..6)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.json");
        prop_assume!(features.iter().all(|f| [f.score, f.kurtosis].iter().flatten().all(|v| v.is_finite())));
        write_features(&path, &features).unwrap();
        prop_assert_eq!(read_features(&path).unwrap(), features);
    }

    #[test]
    fn results_come_back_to_the_last_bit((rows, shuffled) in any_rows()) {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a.json"), folder.path().join("b.json"));
        match write_results(&first, &rows) {
            Err(ReportError::NonFinite { .. }) => prop_assert!(!first.exists()),
            Err(e) => return Err(TestCaseError::fail(e.to_string())),
            Ok(()) => {
                let back = read_results(&first).unwrap();
                prop_assert_eq!(back.len(), rows.len());
                for row in &rows {
                    prop_assert!(back.contains(row));
                }
                write_results(&second, &shuffled).unwrap();
                prop_assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
            }
        }
    }
}
