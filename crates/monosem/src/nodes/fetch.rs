//! `fetch-model` and `fetch-text`: what the run needs from outside, fetched and verified before anything is computed.

use anyhow::Result;
use monosem_assets::Assets;
use monosem_graph::{Ctx, Node};
use serde_json::json;

use super::{model_inputs, node, text_inputs, write_json};
use crate::fetch;
use crate::profile::Language;

pub(super) const MODEL: &str = "fetch-model";
pub(super) const TEXT: &str = "fetch-text";

pub(super) fn nodes<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let code = ["assets", "monosem/nodes/fetch"];
    let params = json!({ "source": language.model.to_string() });
    let mut model = node(MODEL.into(), Vec::new(), params, &code, 10.0, |ctx| {
        let path = assets.model(&language.model, &mut |progress| fetch::tell(&progress, ctx));
        save(ctx, &language.model.to_string(), path)
    });
    model.inputs = model_inputs(&language.model);
    let params = json!({ "source": language.text.to_string() });
    let mut text = node(TEXT.into(), Vec::new(), params, &code, 5.0, |ctx| {
        let path = assets.text(&language.text, &mut |progress| fetch::tell(&progress, ctx));
        save(ctx, &language.text.to_string(), path)
    });
    text.inputs = text_inputs(&language.text);
    vec![model, text]
}

fn save(ctx: &Ctx<'_>, source: &str, path: Result<std::path::PathBuf, monosem_assets::AssetError>) -> Result<()> {
    if path.is_err() {
        ctx.check()?;
    }
    write_json(&ctx.out().join("asset.json"), &json!({ "source": source, "path": path? }))
}
