//! `planted-anchor-NAME`: a run of the paper's code whose figures are known, with several seeds, and how far ours are from theirs.

use anyhow::Result;
use monosem_dictionary::Estimate;
use monosem_graph::{Ctx, Node};
use monosem_report::ResultRow;
use serde_json::json;

use super::planted::{CODE, data_with, fresh_rows, measured, silent, train};
use super::{Label, node, save_rows};
use crate::profile::{Anchor, Planted};

const EXPERIMENT: &str = "anchor";

pub(super) fn nodes(planted: &Planted) -> Vec<Node<'_>> {
    let code = [&CODE[..], &["monosem/nodes/anchors"]].concat();
    let nodes = planted.anchors.iter().map(|anchor| {
        let size = (anchor.n_latents * anchor.d_in * anchor.batch * anchor.seeds.len()) as f64;
        let weight = anchor.steps as f64 * size / 2e8;
        let name = format!("planted-anchor-{}", anchor.name);
        node(name, Vec::new(), json!(anchor), &code, weight, move |ctx| run(anchor, ctx))
    });
    nodes.collect()
}

fn run(anchor: &Anchor, ctx: &Ctx<'_>) -> Result<()> {
    let method = format!("sae-{}", anchor.family.name());
    let label = Label::new(EXPERIMENT, &method, "", format!("anchor={}", anchor.name));
    let mut rows: Vec<ResultRow> = Vec::new();
    for seed in &anchor.seeds {
        let data = data_with(anchor.data_config(*seed), anchor.generator);
        let trained = train(&[anchor.train_config(*seed)], &data, &format!("checkpoint-{seed}"), ctx)?;
        let fresh = fresh_rows(&data, anchor.evaluate_batches, anchor.batch);
        let of_seed = label.with_setting(&format!("seed={seed}"));
        let dictionary = trained[0].dictionary();
        rows.extend(measured(&of_seed, &dictionary, &data, &fresh));
        rows.push(silent(&of_seed, &dictionary, &data, anchor.batch));
    }
    for (metric, theirs) in &anchor.theirs {
        let values: Vec<(f64, f64)> = rows
            .iter()
            .filter(|row| row.metric == *metric && row.method == method)
            .map(|row| (row.value, 1.0))
            .collect();
        let unit = rows.iter().find(|row| row.metric == *metric).map_or("", |row| row.unit.as_str()).to_owned();
        let n = values.len() as u64;
        // The mean of our seeds with the interval of a mean, and the one value of theirs.
        let mean = Estimate::of_ratio(&values);
        let ours = label.with_setting("of=seeds").estimate(metric, mean, n, &unit);
        let their_label = Label { method: "paper-code".into(), ..label.clone() };
        rows.extend([ours, their_label.row(metric, *theirs, 1, &unit)]);
    }
    save_rows(ctx, &rows)
}
