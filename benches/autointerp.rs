//! Examples of 150 features of 6 dictionaries gathered in one pass over 50,000 fragments of 64 tokens, then explained and scored by patterns.

use std::time::Instant;

use monosem_autointerp::Explainer as _;
use monosem_autointerp::{
    Budget, FeatureExamples, Fragments, GatherConfig, Gatherer, PatternConfig, PatternExplainer, PatternSimulator,
    Vocabulary, score_curve,
};
use monosem_dictionary::{Activation, LinearDictionary};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const D: usize = 576;
const LENGTH: usize = 64;
const D_VOCAB: usize = 4096;

/// Fragments that are encoded at once.
const BATCH: usize = 64;

#[derive(Clone, Copy)]
struct Case {
    fragments: usize,
    dictionaries: usize,
    features: usize,
}

/// Text as words come: the n-th most frequent token has probability proportional to 1 / n.
fn text(case: Case) -> Fragments {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let total: f64 = (1..=D_VOCAB).map(|n| 1.0 / n as f64).sum();
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=D_VOCAB)
        .map(|n| {
            sum += 1.0 / n as f64 / total;
            sum
        })
        .collect();
    let mut draw = || cumulative.partition_point(|below| *below < rng.random::<f64>()).min(D_VOCAB - 1) as u32;
    let tokens = Array2::from_shape_simple_fn((case.fragments, LENGTH), &mut draw);
    Fragments { tokens, documents: (0..case.fragments as u32).map(|fragment| fragment / 20).collect() }
}

/// Activations that a token and the one before it decide, with some noise: row `i` belongs to position `i % (LENGTH - 1) + 1`.
fn activations(tokens: &[u32], embedding: &Array2<f32>, noise: &Array2<f32>, out: &mut Array2<f32>) {
    let per_fragment = LENGTH - 1;
    out.axis_iter_mut(ndarray::Axis(0)).into_par_iter().enumerate().for_each(|(i, mut row)| {
        let at = i / per_fragment * LENGTH + i % per_fragment + 1;
        let (token, before) = (tokens[at] as usize, tokens[at - 1] as usize);
        let noise = noise.row((i * 31 + token) % noise.nrows());
        ndarray::Zip::from(&mut row)
            .and(embedding.row(token))
            .and(embedding.row(before))
            .and(noise)
            .for_each(|x, token, before, noise| *x = token + 0.5 * before + 0.3 * noise);
    });
}

fn measure(case: Case, json: bool) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut drawn = |rows| Array2::from_shape_simple_fn((rows, D), || rng.random::<f32>() - 0.5);
    let (embedding, noise) = (drawn(D_VOCAB), drawn(997));
    let fragments = text(case);
    let dictionaries: Vec<LinearDictionary> = (0..case.dictionaries)
        .map(|seed| {
            let mut dictionary = LinearDictionary::random(case.features, D, Activation::Relu, seed as u64);
            // Half of them sparse, as autoencoders are, half as dense as directions of a basis.
            dictionary.b_enc.fill(if seed % 2 == 0 { -0.8 } else { 0.0 });
            dictionary
        })
        .collect();
    let latents: Vec<usize> = (0..case.features).collect();
    let before = resident_mb();
    let started = Instant::now();
    let mut gatherers: Vec<Gatherer> =
        dictionaries.iter().map(|_| Gatherer::new(case.features, &GatherConfig::default())).collect();
    let mut rows = Array2::zeros((BATCH * (LENGTH - 1), D));
    for first in (0..case.fragments).step_by(BATCH) {
        let n = BATCH.min(case.fragments - first);
        let tokens = fragments.tokens.slice(s![first..first + n, ..]);
        if rows.nrows() != n * (LENGTH - 1) {
            rows = Array2::zeros((n * (LENGTH - 1), D));
        }
        activations(tokens.as_slice().expect("whole rows"), &embedding, &noise, &mut rows);
        for (dictionary, gatherer) in dictionaries.iter().zip(&mut gatherers) {
            let codes = dictionary.encode_latents(rows.view(), &latents);
            let codes = codes.into_shape_with_order((n, LENGTH - 1, case.features)).expect("a row a position");
            gatherer.add(first as u32, &fragments.documents[first..first + n], codes.view());
        }
    }
    let gathered: Vec<Vec<FeatureExamples>> = gatherers.into_iter().map(Gatherer::finish).collect();
    let gather_s = started.elapsed().as_secs_f64();
    let held_mb = resident_mb() - before;

    let vocabulary = Vocabulary::new((0..D_VOCAB).map(|token| format!(" w{token}")).collect());
    let explainer = PatternExplainer { vocabulary: &vocabulary, config: PatternConfig::default() };
    let simulator = PatternSimulator { vocabulary: &vocabulary };
    let started = Instant::now();
    let features: Vec<&FeatureExamples> = gathered.iter().flatten().filter(|feature| feature.enough).collect();
    let scored = features.par_iter().map(|feature| {
        let Ok(explanation) = explainer.explain(&fragments.examples(&feature.explain));
        let (top, random) = (fragments.examples(&feature.score_top), fragments.examples(&feature.score_random));
        score_curve(simulator, &explanation, &top, &random, &[Budget::Patterns(5)])[0].score.combined
    });
    let sum: f64 = scored.sum();
    let score_s = started.elapsed().as_secs_f64();
    let Case { fragments, dictionaries, features: of_each } = case;
    let (scored, threads) = (features.len(), rayon::current_num_threads());
    let tokens_per_s = (fragments * LENGTH) as f64 / gather_s;
    if json {
        let line = serde_json::json!({
            "bench": "autointerp", "fragments": fragments, "length": LENGTH, "dictionaries": dictionaries, "features": of_each,
            "threads": threads, "gather_s": gather_s, "tokens_per_s": tokens_per_s, "held_mb": held_mb, "scored": scored, "explain_and_score_s": score_s,
        });
        println!("{line}");
    } else {
        println!(
            "autointerp {dictionaries} dictionaries x {of_each} features, {fragments} fragments of {LENGTH}, {threads} threads: gathered (encoding included) \
             in {gather_s:.1} s, {tokens_per_s:.0} tokens/s, holding {held_mb:.0} MB; {scored} explained and scored in {score_s:.1} s, mean {:.2}",
            sum / scored.max(1) as f64
        );
    }
}

/// Memory in use, in MB; 0 where the system does not say.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).map_or(0.0, |kb| kb / 1e3)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |what: &str| arguments.iter().any(|argument| argument == what);
    let case = if given("--bench") {
        Case { fragments: 50_000, dictionaries: 6, features: 150 }
    } else {
        Case { fragments: 400, dictionaries: 2, features: 8 }
    };
    measure(case, given("--json"));
}
