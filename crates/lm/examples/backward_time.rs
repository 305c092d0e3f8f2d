//! How long a backward pass takes beside a forward pass: `cargo run --release -p monosem-lm --example backward_time -- MODEL [BATCH] [POSITIONS]`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use monosem_hooks::{DifferentiableModel, HookPoint, HookedModel, Readout, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use ndarray::{Array2, Array3};

/// The median of some runs.
fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("which model? usage: backward_time MODEL [BATCH] [POSITIONS]")?;
    let number = |i: usize, default: usize| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let model = LanguageModel::load(Path::new(path), &LoadOptions::default())?;
    let (batch, positions) = (number(1, 16)?, number(2, 64)?.min(model.max_context()));
    let tokens =
        Array2::from_shape_fn((batch, positions), |(i, j)| ((i * 7919 + j * 104_729) % model.d_vocab()) as u32);
    let mut stream = None;
    let _ = model.forward(tokens.view(), &mut |_, activations| {
        stream = Some(activations.to_owned());
        ControlFlow::Break(())
    });
    let stream = stream.ok_or("a model without blocks has no gradient")?;

    let end = HookPoint::new(model.n_layers() - 1, Site::ResidPost);
    let blocks = median(|| {
        let _ = model.forward_from(0, stream.clone(), &mut |point, _| {
            if point == end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    });
    let forward = median(|| {
        let _ = model.forward_from(0, stream.clone(), &mut |_, _| ControlFlow::Continue(()));
    });
    let ends = vec![positions - 1; batch];
    let backward = |readout: Readout<'_>| {
        median(|| {
            let mut cotangent = |readout: ndarray::ArrayView3<'_, f32>| Array3::ones(readout.dim());
            let _ = model.backward(0, stream.clone(), readout, &mut cotangent, &mut |_, _| ControlFlow::Continue(()));
        })
    };
    let (from_stream, from_logits) = (backward(Readout::Stream(model.n_layers())), backward(Readout::Logits(&ends)));
    let ratio = |time: Duration| time.as_secs_f64() / blocks.as_secs_f64();
    println!("{batch} contexts of {positions} positions, medians of 15");
    println!("forward, blocks alone           {blocks:>12.2?}  1.00");
    println!("forward with logits everywhere  {forward:>12.2?}  {:.2}", ratio(forward));
    println!("backward from the last stream   {from_stream:>12.2?}  {:.2}", ratio(from_stream));
    println!("backward from logits at an end  {from_logits:>12.2?}  {:.2}", ratio(from_logits));
    Ok(())
}
