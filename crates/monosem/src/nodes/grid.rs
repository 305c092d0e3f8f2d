//! `planted-grid-GENERATOR-rRATIO`: the planted experiment of the code behind the paper, a size with every coefficient in one pass; and
//! `planted-next-GENERATOR`: each of these dictionaries against the next larger one.

use anyhow::Result;
use monosem_dictionary::{LinearDictionary, mmcs};
use monosem_graph::{Ctx, Node};
use serde_json::json;

use super::planted::{CODE, data_config, data_with, fresh_rows, measured, silent, train};
use super::{Label, node, sae_setting, save_rows};
use crate::profile::{Generator, Grid, Planted};

const EXPERIMENT: &str = "planted-grid";
const METHOD: &str = "sae-relu";

pub(super) fn nodes<'a>(planted: &'a Planted, grid: &'a Grid) -> Vec<Node<'a>> {
    let code = [&CODE[..], &["monosem/nodes/grid"]].concat();
    let mut nodes = Vec::new();
    for &generator in &planted.generators {
        for &ratio in &grid.ratios {
            let params = json!({
                "data": data_config(planted, generator),
                "train": grid.alphas.iter().map(|alpha| planted.grid_config(grid, ratio, *alpha)).collect::<Vec<_>>(),
                "evaluate_rows": planted.evaluate_rows,
            });
            let size = ratio * planted.n_features as f64 * planted.d_in as f64 * grid.alphas.len() as f64;
            let weight = grid.steps as f64 * grid.batch as f64 * size / 2e8;
            nodes.push(node(grid_name(generator, ratio), Vec::new(), params, &code, weight, move |ctx| {
                run(planted, grid, generator, ratio, ctx)
            }));
        }
        if grid.ratios.len() > 1 {
            let name = format!("planted-next-{}", generator.name());
            let deps = grid.ratios.iter().map(|ratio| grid_name(generator, *ratio)).collect();
            let params = json!({ "ratios": grid.ratios, "alphas": grid.alphas });
            let compare = move |ctx: &Ctx<'_>| compare(grid, generator, ctx);
            nodes.push(node(name, deps, params, &["dictionary", "monosem/nodes/grid"], 1.0, compare));
        }
    }
    nodes
}

fn grid_name(generator: Generator, ratio: f64) -> String {
    format!("planted-grid-{}-r{ratio}", generator.name())
}

/// The folder of one dictionary, inside that of its node.
fn folder(alpha: f32) -> String {
    format!("a{alpha}")
}

fn label(generator: Generator, ratio: f64, alpha: f32) -> Label {
    Label::new(EXPERIMENT, METHOD, "", format!("generator={},{}", generator.name(), sae_setting(ratio, alpha)))
}

fn run(planted: &Planted, grid: &Grid, generator: Generator, ratio: f64, ctx: &Ctx<'_>) -> Result<()> {
    let data = data_with(data_config(planted, generator), generator);
    let configs: Vec<_> = grid.alphas.iter().map(|alpha| planted.grid_config(grid, ratio, *alpha)).collect();
    let fresh = fresh_rows(&data, planted.evaluate_rows.div_ceil(grid.batch) as u64, grid.batch);
    let mut rows = Vec::new();
    for ((config, alpha), sae) in configs.iter().zip(&grid.alphas).zip(train(&configs, &data, "checkpoint", ctx)?) {
        let dictionary = sae.dictionary();
        let label = label(generator, ratio, *alpha);
        rows.extend(measured(&label, &dictionary, &data, &fresh));
        rows.push(silent(&label, &dictionary, &data, grid.batch));
        dictionary.save(&ctx.out().join(folder(*alpha)), json!({ "method": METHOD, "train": config }))?;
    }
    save_rows(ctx, &rows)
}

/// The mean, over the latents of each dictionary, of the largest cosine with one of the next larger.
fn compare(grid: &Grid, generator: Generator, ctx: &Ctx<'_>) -> Result<()> {
    let mut rows = Vec::new();
    for pair in grid.ratios.windows(2) {
        for alpha in &grid.alphas {
            let load = |ratio: f64| {
                LinearDictionary::load(&ctx.dep(&grid_name(generator, ratio))?.join(folder(*alpha)))
                    .map_err(anyhow::Error::from)
            };
            let (smaller, larger) = (load(pair[0])?, load(pair[1])?);
            let similarity = mmcs(smaller.w_dec.view(), larger.w_dec.view());
            let n = smaller.w_dec.nrows() as u64;
            rows.push(label(generator, pair[0], *alpha).estimate("mmcs_next_larger", similarity, n, "cosine"));
        }
    }
    save_rows(ctx, &rows)
}
