//! How long a backward pass takes beside a forward pass: `cargo run --release -p monosem-lm --example backward_time -- MODEL [BATCH] [POSITIONS]`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use monosem_hooks::{DifferentiableModel, HookPoint, HookedModel, Readout, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use ndarray::{Array2, Array3, ArrayView3};

const ROUNDS: usize = 25;

/// The shortest time of each of some runs, taken in turn, so that whatever else the machine does falls on all of them alike.
fn shortest(runs: &mut [(&str, &mut dyn FnMut())]) -> Vec<Duration> {
    let mut best = vec![Duration::MAX; runs.len()];
    for _ in 0..ROUNDS {
        for (best, (_, run)) in best.iter_mut().zip(&mut *runs) {
            let start = Instant::now();
            run();
            *best = start.elapsed().min(*best);
        }
    }
    best
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
    let forward = |end: Option<HookPoint>| {
        let _ = model.forward_from(0, stream.clone(), &mut |point, _| {
            if Some(point) == end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    };
    let ends = vec![positions - 1; batch];
    let backward = |readout: Readout<'_>| {
        let mut cotangent = |readout: ArrayView3<'_, f32>| Array3::ones(readout.dim());
        let _ = model.backward(0, stream.clone(), readout, &mut cotangent, &mut |_, _| ControlFlow::Continue(()));
    };
    let mut runs: [(&str, &mut dyn FnMut()); 4] = [
        ("forward, blocks alone", &mut || forward(Some(end))),
        ("forward with logits everywhere", &mut || forward(None)),
        ("backward from the last stream", &mut || backward(Readout::Stream(model.n_layers()))),
        ("backward from logits at an end", &mut || backward(Readout::Logits(&ends))),
    ];
    let times = shortest(&mut runs);
    println!("{batch} contexts of {positions} positions, the shortest of {ROUNDS}");
    for ((name, _), time) in runs.iter().zip(&times) {
        println!("{name:<32}{time:>12.2?}{:>6.2}", time.as_secs_f64() / times[0].as_secs_f64());
    }
    Ok(())
}
