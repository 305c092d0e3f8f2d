//! `fetch-model` and `fetch-text`: what the run needs from outside, fetched and verified before anything is computed.

use monosem_assets::Assets;
use monosem_graph::Node;
use serde_json::json;

use super::{model_inputs, node, text_inputs, write_json};
use crate::fetch;
use crate::profile::Language;

pub(super) const MODEL: &str = "fetch-model";
pub(super) const TEXT: &str = "fetch-text";

pub(super) fn nodes<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let code = ["assets", "monosem/nodes/fetch"];
    let params = json!({ "source": language.model.identity() });
    let mut model = node(MODEL.into(), Vec::new(), params, &code, 10.0, |ctx| {
        let path = fetch::model(assets, &language.model, ctx)?;
        write_json(&ctx.out().join("asset.json"), &json!({ "source": language.model, "path": path }))
    });
    model.inputs = model_inputs(&language.model);
    let params = json!({ "source": language.text.to_string() });
    let mut text = node(TEXT.into(), Vec::new(), params, &code, 5.0, |ctx| {
        let paths = fetch::texts(assets, &language.text, ctx)?;
        let asset = json!({ "source": language.text, "paths": paths });
        write_json(&ctx.out().join("asset.json"), &asset)
    });
    text.inputs = text_inputs(&language.text);
    vec![model, text]
}
