//! Circuits of features: from a target back through earlier dictionaries (arXiv 2309.08600, section 5.2).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;

use monosem_dictionary::{Dictionary as _, LinearDictionary};
use monosem_hooks::{DifferentiableModel, HookPoint, Readout, Site};
use ndarray::{Array2, Array3, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use crate::error::report;
use crate::pass::{check_hook, check_tokens};
use crate::{PatchingError, Progress};

/// Ablations in one pass, about, in positions.
const ROWS: usize = 2048;

/// A dictionary of the residual stream.
#[derive(Debug, Clone, Copy)]
pub struct CircuitLayer<'a> {
    /// Where it reads: after a block.
    pub hook: HookPoint,
    /// The dictionary.
    pub dictionary: &'a LinearDictionary,
}

/// A text at whose last token a feature is strongly active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Occurrence {
    /// The text from its beginning up to that token.
    pub tokens: Vec<u32>,
}

/// How far a circuit is traced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitConfig {
    /// Positions that are never ablated. Position 0 is an attention sink in most models.
    pub drop_positions: Vec<usize>,
    /// Edges kept into a node: those of the largest effect. The paper keeps 3.
    pub edges_per_node: usize,
    /// The least effect of an edge that is kept, a share of the node's activation. The paper drops what is below 0.01.
    pub least_effect: f64,
    /// Ablate only so many features for each node, those to which gradients attribute most; `None` ablates every active one, as the paper does.
    pub max_ablations: Option<usize>,
}

/// A feature in a circuit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitNode {
    /// Where its dictionary reads.
    pub hook: HookPoint,
    /// The latent.
    pub feature: usize,
    /// Its mean activation over the occurrences.
    pub mean_activation: f64,
    /// Occurrences on which it is active, over which effects on it are means.
    pub n_occurrences: usize,
}

/// What ablating a feature does to a later one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitEdge {
    /// The earlier feature, by its place among [`Circuit::nodes`].
    pub from: usize,
    /// The later one.
    pub to: usize,
    /// `(a - a') / a` for each occurrence of the later feature, whose activation is `a`, and `a'` where the earlier one is ablated at every
    /// position.
    pub effects: Vec<f64>,
    /// What the gradient attributes: the mean of `sum c (g . f) / a`, with the gradient `g` of `a` at every position.
    pub attribution: f64,
}

impl CircuitEdge {
    /// The mean effect: 0.3 where the later feature loses 30 % of its activation.
    #[must_use]
    pub fn effect(&self) -> f64 {
        self.effects.iter().sum::<f64>() / self.effects.len().max(1) as f64
    }
}

/// A feature that was ablated, kept or not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The later feature, by its place among [`Circuit::nodes`].
    pub to: usize,
    /// The earlier latent.
    pub feature: usize,
    /// Its mean effect.
    pub effect: f64,
    /// What the gradient attributes to it.
    pub attribution: f64,
}

/// A target feature and what it is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circuit {
    /// The features; the target is the first.
    pub nodes: Vec<CircuitNode>,
    /// The edges that were kept.
    pub edges: Vec<CircuitEdge>,
    /// Every feature that was ablated.
    pub candidates: Vec<Candidate>,
}

impl Circuit {
    /// Traces a circuit back from latent `target` of the last layer, layer by layer in the order given. `occurrences(layer, feature)` gives
    /// texts that end where a feature is strongly active; those on which it turns out not to be are left out.
    ///
    /// A feature is ablated by taking `c f` away from the residual stream at every position that is not dropped, so what its dictionary does not
    /// explain stays. What follows is run up to the later dictionary, which then encodes the last position.
    ///
    /// # Errors
    /// If there are fewer than two layers, they are not in ascending order or not after blocks, a dictionary does not fit, the target is not in its
    /// dictionary or never active, a text cannot be run, or `progress` (ablations done, ablations known of) ended the work.
    pub fn trace(
        model: &dyn DifferentiableModel,
        layers: &[CircuitLayer<'_>],
        target: usize,
        occurrences: &mut dyn FnMut(usize, usize) -> Vec<Occurrence>,
        config: &CircuitConfig,
        progress: &mut Progress<'_>,
    ) -> Result<Self, PatchingError> {
        check_layers(model, layers, target)?;
        let mut circuit = Self { nodes: Vec::new(), edges: Vec::new(), candidates: Vec::new() };
        // Features by layer in the order in which they were found, which is that of the nodes.
        let mut found = vec![(layers.len() - 1, target)];
        let (mut done, mut known) = (0, 0);
        while let Some(&(layer, feature)) = found.get(circuit.nodes.len()) {
            let texts = occurrences(layer, feature);
            texts.iter().try_for_each(|text| check_tokens(model, &text.tokens))?;
            let tracer = Tracer { model, layers, config, layer, feature };
            let runs = tracer.run(&texts);
            let hook = layers[layer].hook;
            if runs.is_empty() && circuit.nodes.is_empty() {
                let problem = format!("feature {target} of {hook} is active at the end of no text given");
                return Err(PatchingError::Setting { setting: "target", problem });
            }
            let mean_activation = mean(runs.iter().map(|run| f64::from(run.activation)));
            let to = circuit.nodes.len();
            circuit.nodes.push(CircuitNode { hook, feature, mean_activation, n_occurrences: runs.len() });
            if layer == 0 || runs.is_empty() {
                continue;
            }
            let attributed = tracer.attribute(&runs);
            let ablated = strongest(&attributed, config.max_ablations);
            known += ablated.len();
            let mut edges = Vec::with_capacity(ablated.len());
            for source in ablated {
                report(progress, done, known)?;
                let effects = tracer.ablate(&runs, source);
                edges.push((source, CircuitEdge { from: 0, to, effects, attribution: attributed[&source] }));
                done += 1;
            }
            circuit.candidates.extend(edges.iter().map(|(feature, edge)| Candidate {
                to,
                feature: *feature,
                effect: edge.effect(),
                attribution: edge.attribution,
            }));
            edges.sort_by(|(a, edge_a), (b, edge_b)| {
                edge_b.effect().abs().total_cmp(&edge_a.effect().abs()).then(a.cmp(b))
            });
            edges.truncate(config.edges_per_node);
            edges.retain(|(_, edge)| edge.effect().abs() >= config.least_effect);
            for (source, edge) in edges {
                let from = found.iter().position(|known| *known == (layer - 1, source)).unwrap_or_else(|| {
                    found.push((layer - 1, source));
                    found.len() - 1
                });
                circuit.edges.push(CircuitEdge { from, ..edge });
            }
        }
        report(progress, done, known)?;
        Ok(circuit)
    }

    /// The graph in the DOT language of Graphviz, with `label(hook, feature)` under each feature's number.
    #[must_use]
    pub fn to_dot(&self, label: &dyn Fn(HookPoint, usize) -> String) -> String {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
        let mut dot = String::from("digraph circuit {\n  rankdir=LR;\n  node [shape=box];\n");
        for (i, node) in self.nodes.iter().enumerate() {
            let text = escaped(&label(node.hook, node.feature));
            let _ = writeln!(dot, "  n{i} [label=\"{} / {}\\n{text}\"];", node.hook, node.feature);
        }
        for edge in &self.edges {
            let (effect, width) = (edge.effect(), 0.5 + 6.0 * edge.effect().abs().min(1.0));
            let color = if effect < 0.0 { "firebrick" } else { "black" };
            let (from, to, percent) = (edge.from, edge.to, 100.0 * effect);
            let _ = writeln!(dot, "  n{from} -> n{to} [label=\"{percent:.0} %\", penwidth={width:.2}, color={color}];");
        }
        dot.push_str("}\n");
        dot
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = values.fold((0_u32, 0.0), |(n, sum), value| (n + 1, sum + value));
    sum / f64::from(n.max(1))
}

/// The features to which most is attributed, either way, ascending.
fn strongest(attributed: &BTreeMap<usize, f64>, most: Option<usize>) -> Vec<usize> {
    let mut features: Vec<(usize, f64)> = attributed.iter().map(|(feature, by)| (*feature, by.abs())).collect();
    features.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    features.truncate(most.unwrap_or(usize::MAX));
    let mut features: Vec<usize> = features.into_iter().map(|(feature, _)| feature).collect();
    features.sort_unstable();
    features
}

fn check_layers(
    model: &dyn DifferentiableModel,
    layers: &[CircuitLayer<'_>],
    target: usize,
) -> Result<(), PatchingError> {
    let setting = "layers";
    for layer in layers {
        check_hook(model, layer.hook, layer.dictionary.d_in())?;
        let d_out = layer.dictionary.w_dec.ncols();
        if layer.hook.site != Site::ResidPost || d_out != model.d_model() {
            let problem = format!("{}: expected dictionaries of the residual stream after a block", layer.hook);
            return Err(PatchingError::Setting { setting, problem });
        }
    }
    let hooks: Vec<HookPoint> = layers.iter().map(|layer| layer.hook).collect();
    if hooks.len() < 2 || !hooks.is_sorted_by(|a, b| a.layer < b.layer) {
        let problem = format!("expected two or more in ascending order, not {}", names(&hooks));
        return Err(PatchingError::Setting { setting, problem });
    }
    let n_latents = layers[hooks.len() - 1].dictionary.n_latents();
    if target >= n_latents {
        return Err(PatchingError::NoFeature { feature: target, n_latents });
    }
    Ok(())
}

fn names(hooks: &[HookPoint]) -> String {
    if hooks.is_empty() {
        return "none".into();
    }
    hooks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A text run up to the layer of a feature, on which the feature is active at the end.
struct Run {
    /// The residual stream `[position, d_model]` at the earlier layer.
    x: Array2<f32>,
    /// The earlier features active at each position, and their codes.
    codes: Vec<Vec<(usize, f32)>>,
    activation: f32,
}

/// One feature whose sources are looked for in the layer before its own.
struct Tracer<'a> {
    model: &'a dyn DifferentiableModel,
    layers: &'a [CircuitLayer<'a>],
    config: &'a CircuitConfig,
    layer: usize,
    feature: usize,
}

impl Tracer<'_> {
    fn here(&self) -> CircuitLayer<'_> {
        self.layers[self.layer]
    }

    /// The layer before; its own for a feature of the first, which has no sources.
    fn before(&self) -> CircuitLayer<'_> {
        self.layers[self.layer.saturating_sub(1)]
    }

    /// The feature's activation in one row of the residual stream.
    fn activation(&self, row: ArrayView2<'_, f32>) -> f32 {
        let codes = self.here().dictionary.encode(row);
        let (latents, values) = codes.row(0);
        latents.binary_search_by_key(&self.feature, |latent| *latent as usize).map_or(0.0, |i| values[i])
    }

    fn run(&self, texts: &[Occurrence]) -> Vec<Run> {
        let (from, to) = (self.before().hook, self.here().hook);
        let mut runs = Vec::new();
        for text in texts {
            let tokens = ArrayView2::from_shape((1, text.tokens.len()), &text.tokens).expect("a row of tokens");
            let (mut x, mut last) = (None, None);
            let _ = self.model.forward(tokens, &mut |point, activations| {
                let context = activations.index_axis(Axis(0), 0);
                if point == from {
                    x = Some(context.to_owned());
                }
                if point != to {
                    return ControlFlow::Continue(());
                }
                last = Some(context.slice(s![-1.., ..]).to_owned());
                ControlFlow::Break(())
            });
            let (x, last) = (x.expect("a pass visits the layer before"), last.expect("a pass visits the layer"));
            let activation = self.activation(last.view());
            if activation == 0.0 {
                continue;
            }
            let codes = self.before().dictionary.encode(x.view());
            let row = |position: usize| {
                if self.config.drop_positions.contains(&position) {
                    return Vec::new();
                }
                let (latents, values) = codes.row(position);
                latents.iter().zip(values).map(|(latent, value)| (*latent as usize, *value)).collect()
            };
            runs.push(Run { codes: (0..x.nrows()).map(row).collect(), x, activation });
        }
        runs
    }

    /// What the gradient of the feature's activation attributes to each earlier feature that is active, a mean over the runs.
    fn attribute(&self, runs: &[Run]) -> BTreeMap<usize, f64> {
        let (before, here) = (self.before(), self.here());
        let mut attributed: BTreeMap<usize, f64> = BTreeMap::new();
        for run in runs {
            // Where a latent is active, its activation is its pre-activation, up to a constant.
            let mut cotangent = |stream: ndarray::ArrayView3<'_, f32>| {
                let mut d = Array3::zeros(stream.dim());
                d.slice_mut(s![0, -1, ..]).assign(&here.dictionary.w_enc.row(self.feature));
                d
            };
            let stream = run.x.clone().insert_axis(Axis(0));
            let readout = Readout::Stream(here.hook.layer + 1);
            let gradient = self.model.backward(before.hook.layer + 1, stream, readout, &mut cotangent, &mut |_, _| {
                ControlFlow::Continue(())
            });
            let gradient = gradient.continue_value().expect("the hook never ends the walk");
            for (gradient, codes) in gradient.index_axis(Axis(0), 0).rows().into_iter().zip(&run.codes) {
                for &(feature, code) in codes {
                    let along = before.dictionary.w_dec.row(feature).dot(&gradient);
                    let share = f64::from(code * along) / f64::from(run.activation);
                    *attributed.entry(feature).or_default() += share / runs.len() as f64;
                }
            }
        }
        attributed
    }

    /// The relative fall of the feature's activation on each run where an earlier feature is ablated.
    fn ablate(&self, runs: &[Run], source: usize) -> Vec<f64> {
        let direction = self.before().dictionary.w_dec.row(source);
        let mut effects = vec![0.0; runs.len()];
        let code = |codes: &[(usize, f32)]| codes.iter().find(|(feature, _)| *feature == source).map(|(_, code)| *code);
        let active = |run: &Run| run.codes.iter().any(|codes| code(codes).is_some());
        let mut left: Vec<usize> = (0..runs.len()).filter(|&i| active(&runs[i])).collect();
        left.sort_by_key(|&i| runs[i].x.nrows());
        let mut left = &left[..];
        while !left.is_empty() {
            let fits = |n: &usize| n * runs[left[n - 1]].x.nrows() <= ROWS;
            let n = (1..=left.len()).take_while(fits).count().max(1);
            let (batch, after) = left.split_at(n);
            left = after;
            let longest = runs[batch[n - 1]].x.nrows();
            let mut streams = Array3::zeros((n, longest, direction.len()));
            for (mut stream, &i) in streams.outer_iter_mut().zip(batch) {
                let run = &runs[i];
                stream.slice_mut(s![..run.x.nrows(), ..]).assign(&run.x);
                for (mut row, codes) in stream.rows_mut().into_iter().zip(&run.codes) {
                    if let Some(code) = code(codes) {
                        row.scaled_add(-code, &direction);
                    }
                }
            }
            let to = self.here().hook;
            let _ = self.model.forward_from(self.before().hook.layer + 1, streams, &mut |point, activations| {
                if point != to {
                    return ControlFlow::Continue(());
                }
                for (context, &i) in activations.outer_iter().zip(batch) {
                    let end = runs[i].x.nrows();
                    let ablated = self.activation(context.slice(s![end - 1..end, ..]));
                    effects[i] = f64::from(runs[i].activation - ablated) / f64::from(runs[i].activation);
                }
                ControlFlow::Break(())
            });
        }
        effects
    }
}
