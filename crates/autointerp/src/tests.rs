//! Laws of the whole: gathered, explained, simulated and scored.

use std::collections::HashSet;

use ndarray::{Array2, Array3, ArrayView3, Axis, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::*;

const LENGTH: usize = 24;

/// Words of one or two letters that are in no class but that of their first piece.
fn plain_vocabulary(n: usize) -> Vocabulary {
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    Vocabulary::new((0..n).map(|i| format!(" {}{}q", letter(i), letter(i / 26))).collect())
}

fn random_fragments(n: usize, n_tokens: u32, seed: u64) -> Fragments {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tokens = Array2::from_shape_simple_fn((n, LENGTH), || rng.random_range(0..n_tokens));
    Fragments { tokens, documents: (0..n as u32).map(|row| row / 3).collect() }
}

/// The activation at a position of a fragment.
type Activation<'a> = dyn Fn(&[u32], usize) -> f32 + 'a;

/// Gathers features given by their activation at a position of a fragment, from position 1 on.
fn gather(fragments: &Fragments, features: &[&Activation]) -> Vec<FeatureExamples> {
    let shape = (fragments.tokens.nrows(), LENGTH - 1, features.len());
    let activations = Array3::from_shape_fn(shape, |(row, at, feature)| {
        features[feature](fragments.tokens.row(row).to_slice().unwrap(), at + 1)
    });
    let mut gatherer = Gatherer::new(features.len(), &GatherConfig::default());
    gatherer.add(0, &fragments.documents, activations.view());
    gatherer.finish()
}

fn explain(vocabulary: &Vocabulary, fragments: &Fragments, feature: &FeatureExamples) -> PatternExplanation {
    let Ok(explanation) = PatternExplainer { vocabulary, config: PatternConfig::default() }
        .explain(&fragments.examples(&feature.explain));
    explanation
}

fn score(
    vocabulary: &Vocabulary,
    fragments: &Fragments,
    feature: &FeatureExamples,
    explanation: &PatternExplanation,
    patterns: usize,
) -> f64 {
    let (top, random) = (fragments.examples(&feature.score_top), fragments.examples(&feature.score_random));
    let simulator = PatternSimulator { vocabulary };
    score_curve(simulator, explanation, &top, &random, &[Budget::Patterns(patterns)])[0].score.combined
}

#[test]
fn planted_patterns_are_found_and_score_one() {
    let vocabulary = plain_vocabulary(100);
    let fragments = random_fragments(3000, 100, 1);
    let planted = [
        Pattern::Token(7),
        Pattern::After(8),
        Pattern::Within { token: 9, window: 4 },
        Pattern::Within { token: 10, window: 16 },
    ];
    let features = planted.map(|pattern| {
        let vocabulary = &vocabulary;
        move |tokens: &[u32], at: usize| if pattern.matches(vocabulary, tokens, at) { 3.0_f32 } else { -1.0 }
    });
    let features = gather(&fragments, &features.each_ref().map(|f| f as &Activation));
    for (feature, pattern) in features.iter().zip(planted) {
        assert!(feature.enough);
        let explanation = explain(&vocabulary, &fragments, feature);
        assert_eq!(explanation.rules.len(), 1, "{}", explanation.sentence(&vocabulary));
        assert_eq!((explanation.rules[0].pattern, explanation.rules[0].tenths), (pattern, 10));
        assert!(score(&vocabulary, &fragments, feature, &explanation, 1) > 0.999_999);
    }
}

#[test]
fn an_exception_beats_the_class_it_is_in() {
    let texts = [" Ann", " Bob", " Carl", " Dan", " Eve", " dog", " eat", " fig"];
    let vocabulary = Vocabulary::new(texts.map(String::from).to_vec());
    let fragments = random_fragments(2000, 8, 2);
    let feature = |tokens: &[u32], at: usize| [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5][tokens[at] as usize];
    let feature = &gather(&fragments, &[&feature])[0];
    let explanation = explain(&vocabulary, &fragments, feature);
    assert!(score(&vocabulary, &fragments, feature, &explanation, 3) > 0.999_999);
    let patterns: Vec<Pattern> = explanation.rules.iter().map(|rule| rule.pattern).collect();
    assert!(patterns.contains(&Pattern::Class(TokenClass::Capitalised)), "{patterns:?}");
    assert!(explanation.sentence(&vocabulary).contains(r#"less on " Carl" (0/10)"#));
}

#[test]
fn a_mixture_of_forty_tokens_needs_forty_patterns() {
    let vocabulary = plain_vocabulary(400);
    let fragments = random_fragments(6000, 400, 3);
    let mixture = |tokens: &[u32], at: usize| if tokens[at].is_multiple_of(10) { 1.0 } else { 0.0 };
    let feature = &gather(&fragments, &[&mixture])[0];
    let explainer = PatternExplainer {
        vocabulary: &vocabulary,
        config: PatternConfig { max_patterns: 40, ..PatternConfig::default() },
    };
    let Ok(explanation) = explainer.explain(&fragments.examples(&feature.explain));
    let score = |patterns| score(&vocabulary, &fragments, feature, &explanation, patterns);
    let (one, five, forty) = (score(1), score(5), score(40));
    assert!(one < 0.35 && five < 0.6 && forty > 0.98 && one < five, "{one} {five} {forty}");
}

#[test]
fn noise_is_not_explained() {
    let vocabulary = plain_vocabulary(300);
    let fragments = random_fragments(2000, 300, 4);
    // Depends on tokens in a way that no pattern sees.
    let noise = |tokens: &[u32], at: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(u64::from(tokens[at]) << 32 | u64::from(tokens[0]) << 16 | at as u64);
        rng.random::<f32>() - 0.5
    };
    let feature = &gather(&fragments, &[&noise])[0];
    let explanation = explain(&vocabulary, &fragments, feature);
    assert!(explanation.rules.len() <= 3, "{}", explanation.sentence(&vocabulary));
    assert!(score(&vocabulary, &fragments, feature, &explanation, 30).abs() < 0.15);
}

#[test]
fn explanations_of_other_features_score_about_nothing() {
    let vocabulary = plain_vocabulary(100);
    let fragments = random_fragments(3000, 100, 5);
    let features: Vec<_> = (0..20).map(|x| move |tokens: &[u32], at: usize| f32::from(tokens[at] == x)).collect();
    let features: Vec<&Activation> = features.iter().map(|f| f as _).collect();
    let features = gather(&fragments, &features);
    let explanations: Vec<_> = features.iter().map(|feature| explain(&vocabulary, &fragments, feature)).collect();
    let dealt = derangement(20, 6).unwrap();
    let scores: Vec<f64> = (features.iter().zip(dealt))
        .map(|(feature, other)| score(&vocabulary, &fragments, feature, &explanations[other], 5))
        .collect();
    let control = mean(&scores).unwrap().value;
    assert!(control.abs() < 0.05, "{control}");
}

#[test]
fn a_silent_feature_is_unscored_and_has_an_empty_explanation() {
    let vocabulary = plain_vocabulary(10);
    let fragments = random_fragments(50, 10, 7);
    let feature = &gather(&fragments, &[&|_: &[u32], _| -1.0])[0];
    assert!(!feature.enough && feature.explain.is_empty() && feature.moments.nonzero == 0);
    let explanation = explain(&vocabulary, &fragments, feature);
    assert_eq!((explanation.rules.len(), explanation.max), (0, 0.0));
    assert_eq!(score(&vocabulary, &fragments, feature, &explanation, 5), 0.0);
}

#[test]
fn the_rule_of_the_paper() {
    // Fragment i reaches 1000 - i: the strongest ones are 0, 1, 2, ...
    let activations =
        Array3::from_shape_fn((200, 2, 1), |(row, at, _)| if at == 0 { 1000.0 - row as f32 } else { -3.0 });
    let mut gatherer = Gatherer::new(1, &GatherConfig::paper(0));
    gatherer.add(0, &[0; 200], activations.view());
    let feature = gatherer.finish().remove(0);
    let fragments = |examples: &[Example]| examples.iter().map(|e| e.fragment).collect::<Vec<_>>();
    assert!(feature.enough);
    assert_eq!(fragments(&feature.explain), [0, 4, 8, 12, 16]);
    assert_eq!(fragments(&feature.score_top), [2, 6, 10, 14, 18]);
    assert_eq!(feature.score_random.len(), 5);
    assert!(fragments(&feature.score_random).iter().all(|fragment| *fragment >= 20));
    assert_eq!(feature.explain[1].activations, [996.0, 0.0]);
}

#[test]
#[should_panic(expected = "feature 1 is not finite on fragment 9")]
fn what_is_not_a_number_is_refused() {
    let mut activations = Array3::<f32>::zeros((1, 4, 2));
    activations[[0, 2, 1]] = f32::NAN;
    Gatherer::new(2, &GatherConfig::default()).add(9, &[0], activations.view());
}

#[test]
fn configs_are_checked_and_read() {
    assert_eq!(GatherConfig::default().validate(), Ok(()));
    assert_eq!(GatherConfig::paper(3).validate(), Ok(()));
    assert_eq!(PatternConfig::default().validate(), Ok(()));
    let bad = GatherConfig { explain_min: 6, ..GatherConfig::paper(0) }.validate().unwrap_err();
    assert_eq!(bad.to_string(), "`explain_min` is 6, expected 1 to 5, the fragments to explain from");
    let bad = PatternConfig { shrinkage: f64::NAN, ..PatternConfig::default() }.validate().unwrap_err();
    assert_eq!(bad.to_string(), "`shrinkage` is NaN, expected a number from 0 up");
    let json =
        r#"{"split": {"rule": "interleaved", "top": 20, "random": 20, "per_split": 5}, "explain_min": 5, "seed": 1}"#;
    assert_eq!(serde_json::from_str::<GatherConfig>(json).unwrap(), GatherConfig::paper(1));
    assert!(serde_json::from_str::<GatherConfig>(&json.replace("per_split", "per_spilt")).is_err());
}

/// Gathers in batches of the given size, on the given number of threads.
fn gather_in(config: &GatherConfig, x: ArrayView3<'_, f32>, batch: usize, threads: usize) -> Vec<FeatureExamples> {
    let documents: Vec<u32> = (0..x.dim().0 as u32).map(|row| row / 2).collect();
    let run = || {
        let mut gatherer = Gatherer::new(x.dim().2, config);
        for (index, chunk) in documents.chunks(batch).enumerate() {
            let first = index * batch;
            gatherer.add(first as u32, chunk, x.slice(s![first..first + chunk.len(), .., ..]));
        }
        gatherer.finish()
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gathering_forgets_batches_and_threads(seed: u64, n in 1usize..80, batch in 1usize..40, paper: bool, slack: bool) {
        let quiet_below = if slack { 0.4 } else { 0.0 };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let x = Array3::from_shape_simple_fn((n, 3, 20), || (rng.random::<f32>() - 0.7).max(-0.1));
        let split = SplitRule::Documents { explain_top: 5, explain_random: 5, score_top: 2, score_random: 2 };
        let config = if paper { GatherConfig { quiet: 4, quiet_below, ..GatherConfig::paper(seed) } } else { GatherConfig { split, explain_min: 5, quiet: 4, quiet_below, seed } };
        let features = gather_in(&config, x.view(), n, 1);
        prop_assert_eq!(&features, &gather_in(&config, x.view(), batch, 3));
        for feature in &features {
            let column = x.index_axis(Axis(2), feature.feature);
            let scored: Vec<&Example> = feature.score_top.iter().chain(&feature.score_random).collect();
            for example in feature.explain.iter().chain(scored.iter().copied()) {
                let truth = column.row(example.fragment as usize).mapv(|value| value.max(0.0));
                prop_assert_eq!(&example.activations, &truth.to_vec());
                prop_assert!(truth.iter().any(|value| *value > 0.0));
            }
            let side = |examples: &[&Example]| -> HashSet<u32> { examples.iter().map(|e| e.fragment / 2).collect() };
            let used: HashSet<u32> = feature.explain.iter().chain(scored.iter().copied()).map(|e| e.fragment).collect();
            for quiet in &feature.quiet {
                // What is called quiet is, by the activations themselves.
                let max = column.row(quiet.fragment as usize).iter().fold(0.0_f32, |max, x| max.max(*x));
                prop_assert_eq!(max, quiet.max);
                prop_assert!(max <= quiet_below * feature.moments.max && !used.contains(&quiet.fragment));
            }
            if !paper {
                let quiet: HashSet<u32> = feature.quiet.iter().map(|quiet| quiet.fragment / 2).collect();
                prop_assert!(quiet.is_disjoint(&side(&feature.explain.iter().collect::<Vec<_>>())));
                prop_assert!(side(&feature.explain.iter().collect::<Vec<_>>()).is_disjoint(&side(&scored)));
            }
        }
    }

    #[test]
    fn a_simulation_never_reads_ahead_and_explanations_are_nested(seed: u64, cut in 1usize..LENGTH, k in 0usize..8) {
        let vocabulary = pattern_vocabulary();
        let fragments = random_fragments(300, vocabulary.len() as u32, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let weights: Vec<f32> = (0..vocabulary.len()).map(|_| rng.random::<f32>() - 0.5).collect();
        let feature = |tokens: &[u32], at: usize| weights[tokens[at] as usize] + weights[tokens[at - 1] as usize];
        let feature = &gather(&fragments, &[&feature])[0];
        let examples = fragments.examples(&feature.explain);
        let config = |max_patterns| PatternConfig { max_patterns, bit_penalty: 0.1, ..PatternConfig::default() };
        let explain = |max_patterns| {
            let Ok(explanation) =
                PatternExplainer { vocabulary: &vocabulary, config: config(max_patterns) }.explain(&examples);
            explanation
        };
        let whole = explain(12);
        prop_assert_eq!(explain(k + 1), whole.first(k + 1));
        let simulator = PatternSimulator { vocabulary: &vocabulary };
        let tokens = fragments.tokens.row(0).to_vec();
        let (Ok(all), Ok(prefix)) = (simulator.simulate(&whole, &tokens), simulator.simulate(&whole, &tokens[..cut]));
        prop_assert_eq!(&all[..cut], &prefix[..]);
    }

    #[test]
    fn a_score_forgets_scale_and_offset_of_the_truth(seed: u64, scale in 0.1f32..10.0, offset in 0.0f32..5.0) {
        let vocabulary = pattern_vocabulary();
        let fragments = random_fragments(12, vocabulary.len() as u32, seed);
        let truth = |token: u32| (token % 5) as f32;
        let examples = |scale: f32, offset: f32| -> Vec<Example> {
            let row = |row: usize| fragments.tokens.row(row).iter().map(|t| truth(*t) * scale + offset).collect();
            (0..12).map(|fragment| Example { fragment, activations: row(fragment as usize) }).collect()
        };
        let (plain, moved) = (examples(1.0, 0.0), examples(scale, offset));
        let config = PatternConfig { max_patterns: 3, bit_penalty: 0.0, ..PatternConfig::default() };
        let Ok(explanation) =
            PatternExplainer { vocabulary: &vocabulary, config }.explain(&fragments.examples(&plain[..6]));
        let score = |examples: &[Example]| {
            let refs = fragments.examples(examples);
            let Ok(score) = CorrelationScorer { simulator: PatternSimulator { vocabulary: &vocabulary } }
                .score(&explanation, &refs[6..9], &refs[9..]);
            [score.top, score.random, score.combined]
        };
        for (plain, moved) in score(&plain).into_iter().zip(score(&moved)) {
            prop_assert!((plain - moved).abs() < 1e-4, "{plain} {moved}");
        }
    }
}

fn pattern_vocabulary() -> Vocabulary {
    crate::pattern::tests::small_vocabulary()
}
