//! `monosem assets`.

use anyhow::{Result, bail};
use monosem_assets::Assets;

use super::Bar;
use crate::model::Model;
use crate::output::say;
use crate::text::Text;
use crate::{exit, interrupt};

/// Fetches each name and prints where it is. A name is a model's or a text's; the error for one that is neither lists both.
pub(crate) fn fetch(names: &[String]) -> Result<u8> {
    interrupt::listen()?;
    let assets = Assets::from_env()?;
    for name in names {
        let mut bar = Bar::new(name);
        let path = match (name.parse::<Model>(), name.parse::<Text>()) {
            (Ok(model), _) => model.obtain(&assets, &mut |progress| bar.fetch(&progress))?,
            (_, Ok(text)) => text.obtain(&assets, &mut |progress| bar.fetch(&progress))?,
            (Err(model), Err(text)) => bail!("{model}; {text}"),
        };
        drop(bar);
        say!("{name} {}", path.display());
    }
    Ok(exit::OK)
}
