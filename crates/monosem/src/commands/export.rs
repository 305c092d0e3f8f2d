//! `monosem export`.

use anyhow::{Result, ensure};
use monosem_dictionary::{LinearDictionary, formats, metadata};
use serde_json::{Map, Value, json};

use crate::cli::{self, ExportFormat};
use crate::exit;
use crate::output::say;

/// Writes a dictionary of whatever format in another.
pub(crate) fn export(args: &cli::Export) -> Result<u8> {
    let dictionary = LinearDictionary::load_any(&args.dictionary)?;
    // Other formats say such things in ways of their own.
    let ours = metadata(&args.dictionary).unwrap_or(Value::Null);
    let transcoder = args.transcoder || ours["target_hook"].is_string();
    match args.format {
        ExportFormat::Saelens => {
            let form = match (args.gated, transcoder) {
                (true, _) => formats::saelens::Form::Gated,
                (_, true) => formats::saelens::Form::Transcoder,
                _ => formats::saelens::Form::Plain,
            };
            let mut metadata = Map::new();
            for (theirs, key) in [("model_name", "model"), ("hook_name", "hook"), ("dataset_path", "text")] {
                if let Some(value) = ours[key].as_str() {
                    metadata.insert(theirs.into(), value.into());
                }
            }
            formats::saelens::save(&dictionary, &args.out, &formats::saelens::Export { form, metadata })?;
        }
        ExportFormat::Sparsify => {
            ensure!(!args.gated, "--gated is for --format saelens");
            formats::sparsify::save(&dictionary, &args.out, transcoder)?;
        }
        ExportFormat::Monosem => {
            ensure!(!args.gated && !args.transcoder, "--gated and --transcoder are for the formats of others");
            let from = json!({ "from": args.dictionary.display().to_string() });
            dictionary.save(&args.out, if ours.is_null() { from } else { ours })?;
        }
    }
    say!("{} {}", args.out.display(), dictionary.describe());
    Ok(exit::OK)
}
