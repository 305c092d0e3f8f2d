//! Whole runs of the program: hit, resume, kill, and the paper's profile on a hub of our own.

mod support;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use support::{Hub, Place, succeeded};

/// A toy run small enough to be repeated: a few seconds in all.
const QUICK: &str = r#"
description = "Planted features, small enough to be run again and again"
[planted]
d_in = 24
n_features = 32
mean_active = 5.0
decay = 0.99
second_strength = false
noise = 0.0
lr = 1e-3
adam = "standard"
seed = 0
generators = ["uncorrelated"]
ratios = [1.0, 2.0]
alphas = [1e-3, 1e-2]
batch = 128
steps = 1200
evaluate_rows = 1024
[planted.grid]
ratios = [0.5, 1.0]
alphas = [0.1, 0.3]
lr = 1e-3
batch = 64
steps = 100
[[planted.anchors]]
name = "small"
d_in = 24
n_features = 32
mean_active = 3.0
decay = 0.99
generator = "independent"
second_strength = true
family = { kind = "tied" }
init = "aligned"
n_latents = 32
alpha = 1e-3
alpha_over_latents = false
lr = 1e-3
batch = 64
steps = 50
adam = "paper"
seeds = [0, 1]
evaluate_batches = 3
theirs = { mmcs = 0.5, fvu = 0.5 }
"#;

/// The paper's profile for Pythia, cut down to a model of two layers.
const TINY: &str = r#"
base = "pythia-70m"
[language]
model = "hf:tiny/neox-tiny"
text = "hf:datasets/tiny/text:text.jsonl"
[language.corpus]
context = 32
max_tokens = 8000
held_out = 0.2
interpretation = 0.1
[language.capture]
hooks = ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"]
batch_contexts = 4
rows_per_shard = 1000
[language.sae]
ratios = [1.0, 2.0]
alphas = [1e-3]
batch = 64
steps = 120
curve_every = 40
curve_rows = 300
[language.baselines]
top_k = [4]
ica_rows = 1500
ica_max_iter = 20
[language.baselines.nmf]
rows = 600
ratio = 0.5
max_iter = 20
tol = 1e-3
[[language.sweep]]
hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
family = { kind = "tied" }
ratios = [0.5, 1.0]
alphas = [0.0, 1e-3]
seeds = [0, 1]
steps = 120
lr_decay_steps = 0
curve_every = 60
[[language.sweep.families]]
family = { kind = "top-k", k = 1 }
ratio = 1.0
sparsities = [2, 4]
[language.evaluate]
rows = 800
[language.splice]
contexts = 6
batch_contexts = 4
top_k = [4]
[language.interp]
features = 4
pool = 16
fragment = 16
explain_min = 2
alpha = 1e-3
[language.interp.random_model]
tokens = 600
steps = 20
[language.circuits]
hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
ratio = 2.0
alpha = 1e-3
automatic = 1
occurrences = 2
[language.case_studies]
hooks = ["blocks.0.hook_resid_post"]
ratio = 2.0
alpha = 1e-3
named = [{ hook = "blocks.0.hook_resid_post", feature = 3, name = "no one knows" }]
automatic = 1
least_active = 5
dimensions = [5]
automatic_dimensions = 1
tokens = 3
contexts = 4
"#;

#[test]
fn a_second_run_finds_all_done_and_threads_change_nothing() {
    let place = Place::new();
    place.write("quick.toml", QUICK);
    let run = |out: &str, threads: &str| {
        let args = ["reproduce", "--profile", "quick.toml", "--out", out];
        let output = place.command(&args).env("RAYON_NUM_THREADS", threads).output().unwrap();
        let page = succeeded(&output);
        let html = fs::read_to_string(place.folder.path().join(page.trim())).unwrap();
        for text in ["MMCS to the next larger dictionary", "Figures known of the code behind the paper", "</html>"] {
            assert!(html.contains(text), "the report has no {text:?}");
        }
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run("a", "2").contains("8 nodes ran, 0 were done before"));
    assert!(run("a", "2").contains("0 nodes ran, 8 were done before"));
    run("b", "1");
    let read = |out: &str| fs::read(place.path(out).join("quick/results.json")).unwrap();
    assert_eq!(read("a"), read("b"));

    // What is damaged is found with --verify, made again, and comes out the same.
    let nodes = place.path("a").join("quick/nodes");
    let node = fs::read_dir(&nodes).unwrap().next().unwrap().unwrap().path();
    let rows = node.join("rows.json");
    let whole = fs::read(&rows).unwrap();
    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    fs::write(&rows, damaged).unwrap();
    let args = ["reproduce", "--profile", "quick.toml", "--out", "a", "--verify"];
    let output = place.run(&args);
    succeeded(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 nodes ran, 7 were done before"));
    assert_eq!(fs::read(&rows).unwrap(), whole);
}

#[test]
fn a_killed_run_goes_on_and_ends_in_the_same_bytes() {
    let place = Place::new();
    place.write("quick.toml", QUICK);
    place.succeed(&["reproduce", "--profile", "quick.toml", "--out", "whole"]);
    for milliseconds in [150, 400, 700, 1100] {
        let args = ["reproduce", "--profile", "quick.toml", "--out", "killed"];
        let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        // It may have finished by then: a fast machine, and no less right.
        let _ = child.kill();
        child.wait().unwrap();
    }
    place.succeed(&["reproduce", "--profile", "quick.toml", "--out", "killed"]);
    let read = |out: &str| fs::read(place.path(out).join("quick/results.json")).unwrap();
    assert_eq!(read("whole"), read("killed"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_at_a_checkpoint_and_says_so() {
    let place = Place::new();
    place.write("long.toml", &QUICK.replace("steps = 1200", "steps = 200000"));
    let args = ["reproduce", "--profile", "long.toml"];
    let child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command goes on from there"), "{said}");
    let plan = place.succeed(&["reproduce", "--profile", "long.toml", "--dry-run"]);
    assert!(plan.lines().any(|line| line.starts_with("begun")), "{plan}");
}

#[test]
fn the_papers_profile_runs_on_a_model_from_a_hub() {
    let place = Place::new();
    place.write("tiny.toml", TINY);
    let hub = Hub::with_model("neox-tiny");
    let run = |args: &[&str]| place.command(args).env("HF_ENDPOINT", &hub.address).output().unwrap();

    let plan = succeeded(&run(&["reproduce", "--profile", "tiny.toml", "--dry-run"]));
    assert!(plan.contains("capture-train") && hub.asked.lock().unwrap().is_empty(), "{plan}");

    succeeded(&run(&["reproduce", "--profile", "tiny.toml"]));
    let rows = place.results("out", "tiny");
    let value = |experiment: &str, method: &str, setting: &str, metric: &str| -> f64 {
        let wanted = [
            ("hook", "blocks.0.hook_resid_post"),
            ("experiment", experiment),
            ("method", method),
            ("metric", metric),
            ("setting", setting),
        ];
        let mut found = rows.iter().filter(|row| wanted.iter().all(|(key, want)| row[*key] == **want));
        let row = found.next().unwrap_or_else(|| panic!("no row {experiment} {method} {setting} {metric}"));
        row["value"].as_f64().unwrap()
    };
    // Exact reconstructions, measured and spliced in, change nothing.
    for method in ["identity", "pca", "ica"] {
        assert!(value("dictionary", method, "", "fvu") < 1e-4, "{method}");
    }
    let clean = value("splice", "identity", "ablation=none", "ce_loss");
    assert!((value("splice", "pca", "", "ce_loss") - clean).abs() < 1e-3);
    assert!(value("splice", "identity", "ablation=zero", "loss_recovered").abs() < 1e-9);
    assert!((value("splice", "identity", "ablation=none", "loss_recovered") - 1.0).abs() < 1e-9);
    // The identity loses nothing, a penalty makes codes sparser, and the k largest are k.
    assert!(value("sweep", "identity", "", "fvu") < 1e-4);
    let swept = |setting: &str, metric: &str| value("sweep", "sae-tied", setting, metric);
    let l0 = |alpha: &str| swept(&format!("ratio=1,alpha={alpha},seed=0"), "l0");
    assert!(l0("0") > l0("0.001"), "{} {}", l0("0"), l0("0.001"));
    assert_eq!(value("sweep", "sae-top-k", "ratio=1,k=2", "l0"), 2.0);
    // Paired one to one, directions are at most as alike as each with its nearest.
    for to in ["seed 1", "blocks.1.hook_resid_post"] {
        let setting = format!("ratio=1,alpha=0.001,to={to}");
        let (nearest, paired) = (swept(&setting, "mmcs"), swept(&setting, "matched_cosine"));
        assert!(paired <= nearest + 0.05 && nearest < 0.999, "{to}: {paired} {nearest}");
    }
    let (nmf, nmf_topk) = (value("sweep", "nmf", "", "l0"), value("sweep", "nmf-topk", "k=4", "l0"));
    assert!(nmf > nmf_topk && nmf_topk <= 4.0, "{nmf} {nmf_topk}");
    // The model is random, so no loss is worth asserting; the reconstruction is not.
    assert!(value("dictionary", "sae-tied", "ratio=2,alpha=0.001", "fvu") < 0.9);

    let keys = ["experiment", "method", "hook", "setting", "metric", "value", "ci_low", "ci_high", "n", "unit"];
    // "model" are counts of what was looked at, of no dictionary.
    let families = ["sae", "pca", "ica", "nmf", "identity", "random", "model"];
    for row in &rows {
        let row = row.as_object().unwrap();
        assert!(row.len() == keys.len() && keys.iter().all(|key| row.contains_key(*key)), "{row:?}");
        assert!(families.iter().any(|family| row["method"].as_str().unwrap().starts_with(family)), "{row:?}");
    }
    // A named feature, one of large skew, a dimension, and one that goes with the named feature: every position is in one bin.
    let studies = fs::read(place.path("out").join("tiny/case-studies.json")).unwrap();
    let studies: Vec<serde_json::Value> = serde_json::from_slice(&studies).unwrap();
    let picked: Vec<&str> = studies.iter().map(|study| study["picked"].as_str().unwrap()).collect();
    let [named, by_skew, dimension, with_feature] = &picked[..] else { panic!("{picked:?}") };
    assert!(*named == "named" && studies[0]["name"] == "no one knows" && studies[0]["feature"] == 3);
    assert!(by_skew.starts_with("largest skew") && *dimension == "named", "{picked:?}");
    assert!(with_feature.starts_with("largest correlation with feature 3"), "{with_feature}");
    for study in &studies {
        let counts =
            |list: &serde_json::Value| list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
        let of_tokens: u64 = study["tokens"].as_array().unwrap().iter().map(|token| counts(&token["counts"])).sum();
        assert_eq!(of_tokens + counts(&study["other"]), study["n_active"].as_u64().unwrap(), "{study}");
        assert!(study["n_contexts"] == 4 && study["tokens"].as_array().unwrap().len() <= 3, "{study}");
        let everywhere = study["n_active"] == study["n_tokens"];
        assert_eq!(everywhere, study["method"] == "identity", "{study}");
    }
    let share = value("case-study", "sae-tied", "ratio=2,alpha=0.001,feature=3", "top_token_share");
    assert!(share > 0.0 && share <= 1.0, "{share}");

    // Nothing is fetched twice.
    let asked = hub.asked.lock().unwrap().len();
    succeeded(&run(&["reproduce", "--profile", "tiny.toml"]));
    assert_eq!(hub.asked.lock().unwrap().len(), asked);
}

#[test]
fn a_failing_node_is_told_and_the_rest_is_kept() {
    let place = Place::new();
    // Nothing listens where the hub should be; the planted part needs none.
    let profile = format!("{TINY}\n[planted]\n{}", QUICK.split("[planted]").nth(1).unwrap());
    place.write("both.toml", &profile.replace("steps = 1200", "steps = 50"));
    let said = place.fail(&["reproduce", "--profile", "both.toml"], 3);
    assert!(said.contains("fetch-model") && said.contains("--profile toy"), "{said}");
    let rows = place.results("out", "both");
    assert!(rows.iter().any(|row| row["experiment"] == "planted"));
    let page = fs::read_to_string(place.path("out").join("both/report.html")).unwrap();
    assert!(page.contains("This run is not complete"));
}
