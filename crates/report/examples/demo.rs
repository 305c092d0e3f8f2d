//! Writes a report of MADE-UP numbers, to look at the page without running anything:
//! `cargo run -p monosem-report --example demo -- FOLDER`.

use std::path::Path;

use monosem_report::{NodeInfo, Provenance, ResultRow, render, write_results};

const HOOKS: [&str; 2] = ["blocks.9.hook_resid_post", "blocks.17.hook_resid_post"];
const ALPHAS: [f64; 5] = [1e-4, 3e-4, 8.577e-4, 2e-3, 5e-3];
const RATIOS: [f64; 3] = [1.0, 2.0, 4.0];
const WIDTH: f64 = 576.0;

/// A number in -0.5..0.5 that looks random and is the same every time.
fn wobble(i: usize) -> f64 {
    ((i as f64 * 12.9898).sin() * 43758.5453).rem_euclid(1.0) - 0.5
}

struct Rows(Vec<ResultRow>);

impl Rows {
    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        experiment: &str,
        method: &str,
        hook: &str,
        setting: &str,
        metric: &str,
        value: f64,
        ci: f64,
        n: u64,
    ) {
        let unit = match metric {
            "fvu" | "loss_recovered" => "fraction",
            "l0" | "dead_latents" | "alive_latents" | "n_latents" => "latents",
            "mmcs" => "cosine",
            "ce_loss" => "nats/token",
            _ => "",
        };
        self.0.push(ResultRow {
            experiment: experiment.into(),
            method: method.into(),
            hook: hook.into(),
            setting: setting.into(),
            metric: metric.into(),
            value,
            ci_low: (ci > 0.0).then_some(value - ci),
            ci_high: (ci > 0.0).then_some(value + ci),
            n,
            unit: unit.into(),
        });
    }
}

/// (method, setting, FVU, L0, latents, dead) of every dictionary at a hook.
fn dictionaries(hook: usize) -> Vec<(String, String, f64, f64, f64, f64)> {
    let mut all = Vec::new();
    for (i, ratio) in RATIOS.iter().enumerate() {
        for (j, alpha) in ALPHAS.iter().enumerate() {
            let l0 = 0.11 / alpha.powf(0.85) * (1.0 + 0.1 * i as f64) * (1.0 + 0.06 * wobble(i * 7 + j));
            let fvu = (0.9 / (1.0 + l0.powf(0.72) / 7.0)) * (1.0 - 0.07 * i as f64) + 0.02 * hook as f64;
            let n = ratio * WIDTH;
            let dead = (n * (0.02 + 0.13 * i as f64 + 0.07 * j as f64)).round();
            all.push(("sae-tied".into(), format!("ratio={ratio},alpha={alpha}"), fvu, l0, n, dead));
        }
    }
    for k in [8.0, 32.0, 64.0, 128.0f64] {
        let fvu = |best: f64| 0.95 / (1.0 + k.powf(0.6) / best);
        all.push(("pca-topk".into(), format!("k={k}"), fvu(9.0), k, 2.0 * WIDTH, 3.0));
        all.push(("ica-topk".into(), format!("k={k}"), fvu(14.0), k, 2.0 * WIDTH, 0.0));
        all.push(("random-topk".into(), format!("k={k}"), 1.4 - 0.002 * k, k, 2.0 * WIDTH, 0.0));
    }
    all.push(("pca".into(), String::new(), 0.0003, WIDTH, WIDTH, 0.0));
    all.push(("ica".into(), String::new(), 0.0004, WIDTH, WIDTH, 0.0));
    all.push(("identity".into(), String::new(), 0.0, WIDTH, WIDTH, 0.0));
    all.push(("identity-relu".into(), String::new(), 0.63, 281.4, WIDTH, 0.0));
    all.push(("random-relu".into(), String::new(), 38.2, 290.2, WIDTH, 0.0));
    all
}

fn language_model(rows: &mut Rows) {
    for (h, hook) in HOOKS.iter().enumerate() {
        let (none, mean, zero) = (3.31f64, 7.9 + 0.4 * h as f64, 9.6 + 0.2 * h as f64);
        for (ablation, loss) in [("none", none), ("mean", mean), ("zero", zero)] {
            let setting = format!("ablation={ablation}");
            rows.add("splice", "identity", hook, &setting, "ce_loss", loss, 0.03, 16_320);
            rows.add("splice", "identity", hook, &setting, "perplexity", loss.exp(), 0.0, 16_320);
        }
        for (i, (method, setting, fvu, l0, n, dead)) in dictionaries(h).into_iter().enumerate() {
            rows.add(
                "dictionary",
                &method,
                hook,
                &setting,
                "fvu",
                fvu,
                if fvu > 0.0 { 0.012 * fvu.min(1.0) } else { 0.0 },
                20_000,
            );
            rows.add("dictionary", &method, hook, &setting, "l0", l0, 0.0, 20_000);
            rows.add("dictionary", &method, hook, &setting, "n_latents", n, 0.0, 20_000);
            rows.add("dictionary", &method, hook, &setting, "dead_latents", dead, 0.0, 20_000);
            rows.add("dictionary", &method, hook, &setting, "alive_latents", n - dead, 0.0, 20_000);
            let loss = none + (zero - none) * fvu.min(1.4).powf(1.3) * (0.9 + 0.1 * wobble(i));
            rows.add("splice", &method, hook, &setting, "ce_loss", loss, 0.04, 16_320);
            rows.add("splice", &method, hook, &setting, "perplexity", loss.exp(), 0.02 * loss.exp(), 16_320);
            rows.add("splice", &method, hook, &setting, "loss_recovered", (zero - loss) / (zero - none), 0.0, 16_320);
        }
        for (from, to) in [("1", "2"), ("2", "4")] {
            let setting = format!("ratio={from},alpha=8.577e-4,to=ratio {to}");
            rows.add("dictionary", "sae-tied", hook, &setting, "mmcs", 0.71 + 0.1 * h as f64, 0.0, 576);
        }
        for (i, ratio) in RATIOS.iter().enumerate() {
            for (j, alpha) in ALPHAS.iter().enumerate() {
                for step in (0..=20).map(|s| s * 100) {
                    let t = 1.0 - (-(f64::from(step)) / 260.0).exp();
                    let setting = format!("ratio={ratio},alpha={alpha},seed=0,step={step}");
                    let end = 0.08 + 0.09 * j as f64 - 0.01 * i as f64;
                    let noise = 0.01 * wobble(i * 100 + j * 10 + step as usize);
                    rows.add("training", "sae-tied", hook, &setting, "fvu", 1.0 - (1.0 - end) * t + noise, 0.0, 4096);
                    let l0 = 280.0 * (1.0 - t) + 0.11 / alpha.powf(0.85) * t;
                    rows.add("training", "sae-tied", hook, &setting, "l0", l0, 0.0, 4096);
                    let loss = 2.0 * (1.0 - t) + alpha * 60.0 + end;
                    rows.add("training", "sae-tied", hook, &setting, "loss", loss, 0.0, 2048);
                    let dead = (ratio * WIDTH * t * t * (0.02 + 0.1 * i as f64 + 0.05 * j as f64)).round();
                    rows.add("training", "sae-tied", hook, &setting, "dead_latents", dead, 0.0, 4096);
                }
            }
        }
    }
}

fn planted(rows: &mut Rows) {
    for (g, generator) in ["correlated", "uncorrelated"].iter().enumerate() {
        for (i, ratio) in [0.5, 1.0, 2.0, 4.0].iter().enumerate() {
            for (j, e) in (-6..=2).enumerate() {
                let alpha = 10f64.powf(f64::from(e) / 4.0);
                let setting = format!("generator={generator},ratio={ratio},alpha={alpha:.3e}");
                let best = (-(f64::from(e) + 3.0 - 0.5 * g as f64).powi(2) / 14.0).exp();
                let mmcs = (0.3 + 0.66 * best) * if *ratio < 1.0 { 0.8 } else { 1.0 } + 0.01 * wobble(i * 9 + j);
                rows.add("planted", "sae-tied", "", &setting, "mmcs", mmcs, 0.012, 512);
                rows.add("planted", "sae-tied", "", &setting, "fvu", 0.4 * alpha / (alpha + 0.8) + 0.004, 0.0, 25_600);
                rows.add(
                    "planted",
                    "sae-tied",
                    "",
                    &setting,
                    "l0",
                    9.0 / (1.0 + 3.0 * alpha) + 0.5 * i as f64,
                    0.0,
                    25_600,
                );
                rows.add(
                    "planted",
                    "sae-tied",
                    "",
                    &setting,
                    "dead_latents",
                    (120.0 * alpha * ratio).round(),
                    0.0,
                    25_600,
                );
            }
        }
        for step in (0..=10).map(|s| s * 200) {
            let setting = format!("generator={generator},ratio=1,alpha=1e-1,step={step}");
            let t = 1.0 - (-f64::from(step) / 400.0).exp();
            rows.add("training", "sae-tied", "", &setting, "fvu", 1.0 - 0.96 * t, 0.0, 25_600);
            rows.add("training", "sae-tied", "", &setting, "mmcs", 0.2 + 0.7 * t, 0.0, 512);
        }
        let setting = format!("generator={generator}");
        rows.add("planted", "pca", "", &setting, "mmcs", 0.34, 0.0, 512);
        rows.add("planted", "random-relu", "", &setting, "mmcs", 0.21, 0.0, 512);
    }
}

fn provenance() -> Provenance {
    let node = |name: &str, seconds: f64, cached: bool, sources: &[&str], experiments: &[&str]| NodeInfo {
        name: name.into(),
        key: "b3f0c1d2e3a4958677aabbccddeeff00112233445566778899aabbccddeeff00".into(),
        seconds,
        cached,
        folder: format!("nodes/{name}-b3f0c1d2e3a4"),
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        experiments: experiments.iter().map(|s| (*s).to_owned()).collect(),
    };
    Provenance {
        title: "A demonstration report (every number is made up)".into(),
        profile: "demo".into(),
        profile_toml: "# made up\nname = \"demo\"\n\n[sae]\nratios = [1, 2, 4]\nalphas = [1e-4, 3e-4, 8.577e-4, 2e-3, 5e-3]\n".into(),
        model: "an imaginary model of 135 M parameters (width 576)".into(),
        text: "an imaginary corpus".into(),
        nodes: vec![
            node("capture", 212.4, true, &["model.safetensors", "text.txt"], &[]),
            node("train-blocks.9", 388.1, false, &["capture"], &["training"]),
            node("train-blocks.17", 401.7, false, &["capture"], &["training"]),
            node("decompose", 96.3, false, &["capture"], &[]),
            node("evaluate", 74.0, false, &["train-blocks.9", "train-blocks.17", "decompose"], &["dictionary", "splice"]),
            node("planted", 55.5, false, &[], &["planted"]),
            node("report", 0.4, false, &["results.json"], &[]),
        ],
        version: "0.0.0-demo".into(),
        notes: vec![
            "Every number on this page is synthetic. It shows what a report looks like and says nothing about any model.".into(),
            "A real report lists here what differs from the paper, for example the model, the text, and how long training ran.".into(),
        ],
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = std::env::args_os().nth(1) else {
        return Err("usage: demo FOLDER".into());
    };
    let mut rows = Rows(Vec::new());
    language_model(&mut rows);
    planted(&mut rows);
    rows.add("tomorrow", "sae-tied", HOOKS[0], "ratio=2", "novelty", 0.42, 0.05, 50);
    let rendered = render(&rows.0, &provenance())?;
    rendered.write(Path::new(&folder))?;
    write_results(&Path::new(&folder).join("results.json"), &rows.0)?;
    println!("{} figures, {} KiB of HTML", rendered.figures.len(), rendered.html.len() / 1024);
    Ok(())
}
