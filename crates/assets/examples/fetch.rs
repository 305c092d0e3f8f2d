//! Fetches one model or text: `cargo run -p monosem-assets --example fetch -- model smollm2-135m`.

use std::ops::ControlFlow;

use monosem_assets::{AssetError, Assets, Progress};

fn main() -> Result<(), AssetError> {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    let source = arguments.next().unwrap_or_default();
    let assets = Assets::from_env()?;
    let mut print = |p: Progress| {
        eprint!("\r{}: {} of {} bytes, {}\x1b[K", p.asset, p.done_bytes, p.total_bytes.unwrap_or(0), p.note);
        ControlFlow::Continue(())
    };
    let path = match kind.as_str() {
        "text" => assets.text(&source.parse()?, &mut print)?,
        _ => assets.model(&source.parse()?, &mut print)?,
    };
    eprintln!();
    println!("{}", path.display());
    Ok(())
}
