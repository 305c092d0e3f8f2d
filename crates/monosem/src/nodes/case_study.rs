//! `case-study-HOOK`: the tokens behind the activations of single features and of single dimensions, and what removing each does to the next token.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result, ensure};
use monosem_activations::{HookStore, Store};
use monosem_assets::Assets;
use monosem_autointerp::{Moments, TokenHistogram, Vocabulary};
use monosem_corpus::Contexts;
use monosem_dictionary::{Dictionary as _, Estimate, LinearDictionary};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_lm::{LanguageModel, Tokenizer};
use monosem_patching::{Change, Intervention, Occurrence, TokenChange, logit_effect};
use monosem_report::{CaseStudy, LogitEffect, ResultRow, TokenCounts, write_case_studies};
use ndarray::{Array2, ArrayView2, Axis};
use serde_json::json;

use super::{CASE_STUDIES, Label, capture, corpus, model_inputs, model_params, sae, sae_name, sae_setting, save_rows};
use crate::fetch;
use crate::interpretation::vocabulary;
use crate::profile::{CaseStudies, Language};

/// Contexts read and encoded at once.
const BATCH: usize = 32;

/// Bins of a histogram, as in the paper; the report draws so many.
const BINS: usize = 10;

/// Tokens below this mean probability, both with the feature and without, are left out of the effects.
const LEAST_PROBABILITY: f64 = 1e-3;

pub(super) fn node<'a>(
    language: &'a Language,
    studies: &'a CaseStudies,
    hook: HookPoint,
    assets: &'a Assets,
) -> Node<'a> {
    let deps = vec![
        super::fetch::MODEL.into(),
        corpus::NAME.into(),
        capture::TRAIN.into(),
        capture::INTERPRETATION.into(),
        sae_name(hook, studies.ratio, studies.alpha),
    ];
    let CaseStudies { hooks: _, named: _, ratio, alpha, automatic, least_active, .. } = studies;
    let params = json!({
        "hook": hook,
        "model": model_params(&language.model, language.center_writing_weights),
        "max_norm": language.max_norm,
        "drop_positions": language.capture.drop_positions,
        "ratio": ratio,
        "alpha": alpha,
        "named": studies.named_at(hook).collect::<Vec<_>>(),
        "automatic": [automatic, least_active],
        "dimensions": studies.dimensions,
        "automatic_dimensions": studies.automatic_dimensions,
        "tokens": studies.tokens,
        "contexts": studies.contexts,
        "top_changes": studies.top_changes,
    });
    let code = [
        "patching",
        "autointerp",
        "dictionary",
        "lm",
        "activations",
        "monosem/nodes/case_study",
        "monosem/nodes/sae",
        "monosem/interpretation",
        "monosem/evaluation",
    ];
    let n_studies =
        studies.named_at(hook).count() + studies.automatic + studies.dimensions.len() + studies.automatic_dimensions;
    let weight = 5.0 + (n_studies * studies.contexts * language.corpus.context) as f64 / 900.0;
    let run = move |ctx: &Ctx<'_>| run(language, studies, hook, assets, ctx);
    let mut node = super::node(format!("case-study-{hook}"), deps, params, &code, weight, run);
    node.inputs = model_inputs(&language.model);
    node
}

/// What is studied: a feature of the autoencoder, or a dimension of the activation.
#[derive(Debug, Clone, PartialEq)]
struct Subject {
    is_dimension: bool,
    feature: usize,
    name: String,
    picked: String,
}

fn run(language: &Language, studies: &CaseStudies, hook: HookPoint, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
    let vocabulary = vocabulary(model.config().d_vocab, &tokenizer);
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("interpretation.safetensors"))?;
    let text = Text::open(language, hook, &contexts, ctx)?;
    let node = sae_name(hook, studies.ratio, studies.alpha);
    let dictionary = LinearDictionary::load(&ctx.dep(&node)?.join(sae::DICTIONARY))?;

    let features = features(studies, hook, &text, &dictionary, ctx)?;
    let dimensions = dimensions(studies, &text, &dictionary, &features, ctx)?;
    let basis = LinearDictionary::identity(dictionary.d_in());
    let studied = [(&dictionary, features), (&basis, dimensions)];
    let total = studied.iter().map(|(_, subjects)| subjects.len()).sum::<usize>() as u64;
    let (mut rows, mut shown) = (Vec::new(), Vec::new());
    for (dictionary, subjects) in studied {
        let active = text.active(dictionary, &subjects, ctx)?;
        for (subject, active) in subjects.into_iter().zip(active) {
            ctx.check()?;
            ctx.progress(shown.len() as u64, total, "studies");
            let study = Study { studies, hook, subject, active, text: &text };
            let (study, of_study) = study.conclude(&model, dictionary, &vocabulary)?;
            shown.push(study);
            rows.extend(of_study);
        }
    }
    write_case_studies(&ctx.out().join(CASE_STUDIES), &shown)?;
    save_rows(ctx, &rows)
}

/// The features to study: those that were named, then those of the largest skew.
fn features(
    studies: &CaseStudies,
    hook: HookPoint,
    text: &Text<'_>,
    dictionary: &LinearDictionary,
    ctx: &Ctx<'_>,
) -> Result<Vec<Subject>> {
    let n_latents = dictionary.n_latents();
    let mut subjects = Vec::new();
    for named in studies.named_at(hook) {
        let (feature, name) = (named.feature, named.name.clone());
        ensure!(
            feature < n_latents,
            "language.case_studies.named: there is no feature {feature} at {hook}, whose autoencoder has {n_latents}"
        );
        subjects.push(Subject { is_dimension: false, feature, name, picked: "named".into() });
    }
    if studies.automatic == 0 {
        return Ok(subjects);
    }
    let mut moments = vec![Moments::default(); n_latents];
    let mut tokens = 0;
    text.read(ctx, &mut |rows, places| {
        tokens += places.len() as u64;
        for (latents, values) in dictionary.encode(rows).rows() {
            latents.iter().zip(values).for_each(|(latent, value)| moments[*latent as usize].add(&[*value]));
        }
    })?;
    for of_latent in &mut moments {
        of_latent.add_silent(tokens - of_latent.n);
    }
    let named: Vec<usize> = subjects.iter().map(|subject| subject.feature).collect();
    let picked = format!("largest skew of those active on {} tokens", studies.least_active);
    let chosen = by_skew(&moments, studies.least_active as u64).filter(|latent| !named.contains(latent));
    let subject = |feature| Subject { is_dimension: false, feature, name: String::new(), picked: picked.clone() };
    subjects.extend(chosen.take(studies.automatic).map(subject));
    ensure!(
        !subjects.is_empty() || !studies.dimensions.is_empty(),
        "no feature of the autoencoder at {hook} is active on {} of the {tokens} tokens to interpret by: lower language.case_studies.least_active",
        studies.least_active
    );
    Ok(subjects)
}

/// Latents active on so many tokens, the largest skew first: centred, for the paper's is largest for what is always active.
fn by_skew(moments: &[Moments], least_active: u64) -> impl Iterator<Item = usize> {
    let often = |(_, moments): &(usize, &Moments)| moments.nonzero >= least_active;
    let mut latents: Vec<(usize, f64)> =
        moments.iter().enumerate().filter(often).filter_map(|(latent, m)| Some((latent, m.centred_skew()?))).collect();
    latents.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    latents.into_iter().map(|(latent, _)| latent)
}

/// The dimensions to study: those that were named, then those that correlate with the first feature.
fn dimensions(
    studies: &CaseStudies,
    text: &Text<'_>,
    dictionary: &LinearDictionary,
    features: &[Subject],
    ctx: &Ctx<'_>,
) -> Result<Vec<Subject>> {
    let width = dictionary.d_in();
    let subject = |feature, picked| Subject { is_dimension: true, feature, name: String::new(), picked };
    let mut subjects = Vec::new();
    for &dimension in &studies.dimensions {
        ensure!(
            dimension < width,
            "language.case_studies.dimensions has {dimension}: activations at {} are {width} wide",
            text.store.hook()
        );
        subjects.push(subject(dimension, "named".to_owned()));
    }
    if let Some(feature) = features.first().map(|first| first.feature).filter(|_| studies.automatic_dimensions > 0) {
        let mut correlation = Correlation::new(width);
        text.read(ctx, &mut |rows, _| {
            correlation.add(rows, dictionary.encode_latents(rows, &[feature]).column(0).as_slice().unwrap_or_default());
        })?;
        let found = correlation.finish();
        let mut order: Vec<usize> = (0..width).filter(|dimension| !studies.dimensions.contains(dimension)).collect();
        order.sort_by(|a, b| found[*b].abs().total_cmp(&found[*a].abs()).then(a.cmp(b)));
        let picked = |dimension: usize| format!("largest correlation with feature {feature}: {:.2}", found[dimension]);
        subjects.extend(order.into_iter().take(studies.automatic_dimensions).map(|d| subject(d, picked(d))));
    }
    Ok(subjects)
}

/// Sums for the correlation of every column of some rows with one number a row.
struct Correlation {
    n: f64,
    y: [f64; 2],
    /// For each column the sums of `x`, `x^2` and `x y`.
    columns: Vec<[f64; 3]>,
}

impl Correlation {
    fn new(width: usize) -> Self {
        Self { n: 0.0, y: [0.0; 2], columns: vec![[0.0; 3]; width] }
    }

    fn add(&mut self, rows: ArrayView2<'_, f32>, values: &[f32]) {
        for (row, y) in rows.rows().into_iter().zip(values) {
            let y = f64::from(*y);
            self.n += 1.0;
            self.y = [self.y[0] + y, self.y[1] + y * y];
            for ([sum, squares, products], x) in self.columns.iter_mut().zip(row) {
                let x = f64::from(*x);
                *sum += x;
                *squares += x * x;
                *products += x * y;
            }
        }
    }

    /// The correlation of each column; 0 where nothing varies.
    fn finish(&self) -> Vec<f64> {
        let [sum_y, squares_y] = self.y;
        let of_column = |[sum, squares, products]: &[f64; 3]| {
            let covariance = self.n * products - sum * sum_y;
            // Differences of sums of rounded squares: what is left of a column that does not vary is rounding.
            let variance = |sum: f64, squares: f64| {
                let found = self.n * squares - sum * sum;
                if found > 1e-12 * self.n * squares { found } else { 0.0 }
            };
            let variances = variance(*sum, *squares) * variance(sum_y, squares_y);
            if variances > 0.0 { covariance / variances.sqrt() } else { 0.0 }
        };
        self.columns.iter().map(of_column).collect()
    }
}

/// Where in the text an activation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    context: u32,
    position: u32,
}

/// The activations to interpret by, and the text that they are of.
struct Text<'a> {
    contexts: &'a Contexts,
    store: HookStore,
    /// Positions of a context that are in the store.
    kept: Vec<usize>,
    norm_limit: f32,
}

impl<'a> Text<'a> {
    fn open(language: &Language, hook: HookPoint, contexts: &'a Contexts, ctx: &Ctx<'_>) -> Result<Self> {
        let store = Store::open(&ctx.dep(capture::INTERPRETATION)?.join(capture::STORE))?.hook(hook)?;
        let norm_limit = sae::rows(language, hook, capture::TRAIN, ctx)?.norm_limit();
        let dropped = &language.capture.drop_positions;
        let kept = (0..contexts.tokens.ncols()).filter(|position| !dropped.contains(position)).collect();
        Ok(Self { contexts, store, kept, norm_limit })
    }

    /// Hands over all rows but those of extreme norm, some contexts at a time, with the place of each.
    fn read(&self, ctx: &Ctx<'_>, each: &mut dyn FnMut(ArrayView2<'_, f32>, &[Place])) -> Result<()> {
        let n = self.contexts.tokens.nrows();
        for first in (0..n).step_by(BATCH) {
            ctx.check()?;
            ctx.progress(first as u64, n as u64, "contexts");
            let batch = first..n.min(first + BATCH);
            let mut rows = Array2::zeros((batch.len() * self.kept.len(), self.store.width()));
            self.store.rows(first * self.kept.len(), rows.view_mut())?;
            let place = |context: usize, position: usize| -> Result<Place> {
                Ok(Place { context: u32::try_from(context)?, position: u32::try_from(position)? })
            };
            let places: Vec<Place> = batch
                .flat_map(|context| self.kept.iter().map(move |position| place(context, *position)))
                .collect::<Result<_>>()?;
            let counts: Vec<usize> =
                (0..places.len()).filter(|row| rows.row(*row).dot(&rows.row(*row)).sqrt() <= self.norm_limit).collect();
            if counts.len() == places.len() {
                each(rows.view(), &places);
            } else {
                let places: Vec<Place> = counts.iter().map(|row| places[*row]).collect();
                each(rows.select(Axis(0), &counts).view(), &places);
            }
        }
        Ok(())
    }

    /// Where each subject, a feature of the dictionary, is active and how much. A dimension is active everywhere.
    fn active(&self, dictionary: &LinearDictionary, subjects: &[Subject], ctx: &Ctx<'_>) -> Result<Vec<Active>> {
        let features: Vec<usize> = subjects.iter().map(|subject| subject.feature).collect();
        let mut active = vec![Active::default(); subjects.len()];
        if subjects.is_empty() {
            return Ok(active);
        }
        self.read(ctx, &mut |rows, places| {
            let codes = dictionary.encode_latents(rows, &features);
            for ((subject, active), column) in subjects.iter().zip(&mut active).zip(codes.columns()) {
                for (value, place) in column.iter().zip(places) {
                    let of_document = active.documents.entry(self.document(*place)).or_default();
                    of_document.1 += 1.0;
                    if subject.is_dimension || *value > 0.0 {
                        of_document.0 += 1.0;
                        active.values.push(*value);
                        active.places.push(*place);
                    }
                }
            }
        })?;
        Ok(active)
    }

    fn token(&self, place: Place) -> u32 {
        self.contexts.tokens[[place.context as usize, place.position as usize]]
    }

    fn document(&self, place: Place) -> u32 {
        self.contexts.documents[[place.context as usize, place.position as usize]]
    }

    /// The text that ends at the largest activation of each of the `n` contexts with the largest ones, the largest first.
    fn strongest(&self, active: &Active, n: usize) -> Vec<Occurrence> {
        let mut order: Vec<usize> = (0..active.values.len()).collect();
        order.sort_by(|a, b| active.values[*b].total_cmp(&active.values[*a]).then(a.cmp(b)));
        let mut seen = HashSet::new();
        let places = order.into_iter().map(|i| active.places[i]).filter(|place| seen.insert(place.context));
        let text = |place: Place| {
            let row = self.contexts.tokens.row(place.context as usize);
            Occurrence { tokens: row.iter().take(place.position as usize + 1).copied().collect() }
        };
        places.take(n).map(text).collect()
    }
}

/// Positions on which a feature is active, in the order of the text.
#[derive(Debug, Clone, Default, PartialEq)]
struct Active {
    values: Vec<f32>,
    places: Vec<Place>,
    /// For each document the positions on which it is active, and all.
    documents: BTreeMap<u32, (f64, f64)>,
}

/// One subject, and where it is active.
struct Study<'a> {
    studies: &'a CaseStudies,
    hook: HookPoint,
    subject: Subject,
    active: Active,
    text: &'a Text<'a>,
}

impl Study<'_> {
    /// Counts tokens, removes the feature where it is most active, and puts both in rows and for the report.
    fn conclude(
        self,
        model: &LanguageModel,
        dictionary: &LinearDictionary,
        vocabulary: &Vocabulary,
    ) -> Result<(CaseStudy, Vec<ResultRow>)> {
        let Self { studies, hook, subject, active, text } = self;
        let feature = subject.feature;
        let tokens: Vec<u32> = active.places.iter().map(|place| text.token(*place)).collect();
        let least = active.values.iter().copied().fold(f32::INFINITY, f32::min);
        let low = if subject.is_dimension { least } else { 0.0 };
        let histogram = (!tokens.is_empty())
            .then(|| TokenHistogram::new(&tokens, &active.values, low, BINS, studies.tokens))
            .flatten()
            .with_context(|| {
                let n: f64 = active.documents.values().map(|(_, all)| all).sum();
                format!("feature {feature} at {hook} has one and the same value on all {n} tokens to interpret by: name another in language.case_studies")
            })?;

        let mean = active.values.iter().map(|v| f64::from(*v)).sum::<f64>() / active.values.len() as f64;
        let change = if subject.is_dimension { Change::Set(mean as f32) } else { Change::Ablate };
        let removal = Intervention { hook, features: vec![feature], change };
        let effect = logit_effect(model, dictionary, &removal, &text.strongest(&active, studies.contexts))?;
        let changes = effect.largest(studies.top_changes, LEAST_PROBABILITY);

        let (method, setting) = match subject.is_dimension {
            true => ("identity", String::new()),
            false => ("sae-tied", sae_setting(studies.ratio, studies.alpha)),
        };
        let label = Label::new("case-study", method, hook, setting.clone()).with_setting(&format!("feature={feature}"));
        let groups: Vec<(f64, f64)> = active.documents.values().copied().collect();
        let (n_active, n_tokens) = (tokens.len() as u64, groups.iter().map(|(_, all)| all).sum::<f64>() as u64);
        let mut rows = Vec::new();
        if !subject.is_dimension {
            rows.push(label.estimate("active_share", share(&groups), n_tokens, "1"));
        }
        let found = top_token_share(histogram.middle(), &tokens, &active, |place| text.document(place));
        rows.extend(found.map(|(share, n)| label.estimate("top_token_share", share, n, "1")));
        if let Some(largest) = changes.first() {
            let size = (largest.steered - largest.base).abs();
            rows.push(label.row("largest_logit_effect", size, effect.n_texts as u64, "nats"));
        }
        let in_words = |token: u32| vocabulary.text(token).to_owned();
        let effect_of = |c: &TokenChange| LogitEffect { token: in_words(c.token), change: c.steered - c.base };
        let counted = |(token, counts): (u32, Vec<u64>)| TokenCounts { token: in_words(token), counts };
        let study = CaseStudy {
            method: method.into(),
            hook: hook.to_string(),
            setting,
            feature,
            name: subject.name,
            picked: subject.picked,
            n_tokens,
            n_active,
            bins: histogram.edges,
            tokens: histogram.tokens.into_iter().map(counted).collect(),
            other: histogram.other,
            logit_effects: changes.iter().map(effect_of).collect(),
            n_contexts: effect.n_texts as u64,
        };
        Ok((study, rows))
    }
}

/// Of the positions above `middle` the share of their most frequent token, with its interval over documents, and their number.
///
/// The token is that of the other half of the documents, so that it is not chosen where it is counted. None where only one half has
/// positions.
fn top_token_share(
    middle: f64,
    tokens: &[u32],
    active: &Active,
    document: impl Fn(Place) -> u32,
) -> Option<(Estimate, u64)> {
    let mut upper: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for ((token, value), place) in tokens.iter().zip(&active.values).zip(&active.places) {
        if f64::from(*value) > middle {
            upper.entry(document(*place)).or_default().push(*token);
        }
    }
    let (even, odd): (Vec<_>, Vec<_>) = upper.into_values().enumerate().partition(|(i, _)| i % 2 == 0);
    let mut groups = Vec::new();
    for (chosen_on, counted_on) in [(&even, &odd), (&odd, &even)] {
        let top = most_frequent(chosen_on.iter().flat_map(|(_, tokens)| tokens))?;
        let hits = |tokens: &[u32]| tokens.iter().filter(|token| **token == top).count() as f64;
        groups.extend(counted_on.iter().map(|(_, tokens)| (hits(tokens), tokens.len() as f64)));
    }
    let n = groups.iter().map(|(_, all)| all).sum::<f64>() as u64;
    Some((share(&groups), n))
}

/// The lowest of the most frequent.
fn most_frequent<'a>(tokens: impl Iterator<Item = &'a u32>) -> Option<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for token in tokens {
        *counts.entry(*token).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(token, n)| (*n, Reverse(*token))).map(|(token, _)| token)
}

/// A share over documents, each given as its hits and its positions. Of few documents the interval would reach beyond what a share can be.
fn share(groups: &[(f64, f64)]) -> Estimate {
    let Estimate { value, interval } = Estimate::of_ratio(groups);
    Estimate { value, interval: interval.map(|(low, high)| (low.max(0.0), high.min(1.0))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn place(context: u32, position: u32) -> Place {
        Place { context, position }
    }

    #[test]
    fn features_are_picked_by_skew_among_those_that_are_active_often() {
        let of = |values: &[f32], silent: u64| {
            let mut moments = Moments::default();
            moments.add(values);
            moments.add_silent(silent);
            moments
        };
        // Active on 2, on 4, on 3, on 3 and on all of ten tokens; the rarer and the more uneven, the more skewed.
        let always = of(&[9.0, 9.0, 9.0, 9.0, 9.0, 8.0, 8.0, 8.0, 8.0, 8.0], 0);
        let moments = [of(&[1.0; 2], 8), of(&[1.0; 4], 6), of(&[1.0; 3], 7), of(&[1.0, 1.0, 9.0], 7), always];
        assert_eq!(by_skew(&moments, 3).collect::<Vec<_>>(), [3, 2, 1, 4]);
        assert_eq!(by_skew(&moments, 11).count(), 0);
    }

    #[test]
    fn correlations_are_those_of_the_columns() {
        let rows = array![[1.0_f32, 0.1, 2.0], [2.0, 0.1, 0.0], [3.0, 0.1, 1.0], [4.0, 0.1, 0.0]];
        let mut correlation = Correlation::new(3);
        // In two parts.
        correlation.add(rows.slice(ndarray::s![..1, ..]), &[2.0]);
        correlation.add(rows.slice(ndarray::s![1.., ..]), &[4.0, 6.0, 8.0]);
        let found = correlation.finish();
        assert!((found[0] - 1.0).abs() < 1e-12 && found[1] == 0.0, "{found:?}");
        // Deviations -1.5, -0.5, 0.5, 1.5 with 1.25, -0.75, 0.25, -0.75.
        let expected = (-1.875 + 0.375 + 0.125 - 1.125) / (5.0_f64 * 2.75).sqrt();
        assert!((found[2] - expected).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn the_share_of_the_top_token_is_of_the_upper_half_and_chosen_elsewhere() {
        let of = |places: &[(u32, f32)]| Active {
            values: places.iter().map(|(_, value)| *value).collect(),
            places: (0..).zip(places).map(|(i, (context, _))| place(*context, i)).collect(),
            documents: BTreeMap::new(),
        };
        let shared = |active: &Active, tokens: &[u32]| top_token_share(5.0, tokens, active, |place| place.context);
        // Above 5 the documents 0 and 2, which are one half, have 7 7 8 and 7, and documents 1 and 3, the other, have 8 8 7 and 8.
        let active = of(&[(0, 9.0), (0, 9.0), (0, 6.0), (0, 1.0), (1, 9.0), (1, 9.0), (1, 9.0), (2, 8.0), (3, 8.0)]);
        let (share, n) = shared(&active, &[7, 7, 8, 8, 8, 8, 7, 7, 8]).unwrap();
        // Each half's token is counted in the other: one 8 of four, and one 7 of four.
        assert!((share.value - 0.25).abs() < 1e-12 && share.interval.is_some(), "{share:?}");
        assert_eq!(n, 8);
        // With the same token in both halves nothing is lost by that.
        let (share, _) = shared(&active, &[7, 7, 7, 8, 7, 7, 7, 7, 8]).unwrap();
        assert!((share.value - 7.0 / 8.0).abs() < 1e-12, "{share:?}");
        assert!(shared(&of(&[(4, 9.0), (4, 9.0)]), &[7, 7]).is_none());
    }
}
