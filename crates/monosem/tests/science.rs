//! The toy profile from end to end, and what it has to find: both claims of the paper, on a model and a language where they can be tested in two
//! minutes.

mod support;

use serde_json::Value;
use support::Place;

struct Results(Vec<Value>);

impl Results {
    /// Value and interval of the one row with this setting.
    fn row(&self, experiment: &str, method: &str, setting: &str, metric: &str) -> (f64, f64, f64) {
        let wanted = [("experiment", experiment), ("method", method), ("setting", setting), ("metric", metric)];
        let row = self.0.iter().find(|row| wanted.iter().all(|(key, want)| row[*key] == **want));
        let row = row.unwrap_or_else(|| panic!("no row {experiment} {method} {setting} {metric}"));
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        (number("value"), number("ci_low"), number("ci_high"))
    }
}

#[test]
fn the_toy_profile_bears_out_both_claims() {
    let place = Place::new();
    place.succeed(&["reproduce", "--profile", "toy"]);
    let results = Results(place.results("out", "toy"));
    let sae = "ratio=8,alpha=0.008";

    // The model does what is to be explained.
    assert!(results.row("ioi", "model", "prompts=report", "ioi_accuracy").0 >= 0.95);

    // Features of the autoencoder are more interpretable than random directions, the residual basis and principal components.
    let score = |method: &str, setting: &str| results.row("interp", method, setting, "interp_score");
    let (_, low, _) = score("sae-tied", &format!("{sae},patterns=5"));
    for method in ["random-relu", "identity-relu", "pca"] {
        let (value, _, high) = score(method, "patterns=5");
        assert!(low > high, "{method}: {value}, up to {high}; the autoencoder from {low}");
    }
    // The score is about the features: another feature's explanation is worth nothing, and a random model's features are worth less.
    let (_, _, shuffled) = score("sae-tied", &format!("{sae},control=shuffled,patterns=5"));
    assert!(shuffled < 0.15, "{shuffled}");
    let (_, _, random_weights) = score("sae-tied", &format!("{sae},control=random-weights,patterns=5"));
    assert!(low > random_weights, "random weights up to {random_weights}");
    // The same as differences, after correction for the number of methods.
    let corrected = |setting: &str, metric: &str| {
        let (p_holm, ..) = results.row("claims", "sae-tied", &format!("{setting},of={metric}"), "p_holm");
        let (p_value, ..) = results.row("claims", "sae-tied", &format!("{setting},of={metric}"), "p_value");
        assert!(p_value <= p_holm, "{setting}: {p_value} became {p_holm}");
        p_holm
    };
    for other in ["random-relu", "identity-relu", "pca", "random-weights", "shuffled"] {
        let setting = format!("{sae},above={other}");
        let (value, low, _) = results.row("claims", "sae-tied", &setting, "interp_score_difference");
        assert!(low > 0.0 && low < value, "{other}: {value}, from {low}");
        let p_holm = corrected(&setting, "interp_score_difference");
        assert!(p_holm < 0.05, "{other}: p {p_holm} after correction");
    }
    // What that rests on is told.
    let told = |metric: &str| results.row("interp", "model", "", metric).0;
    assert!(told("fragments") > 1000.0 && told("fragment_tokens") == 32.0 && told("documents") > 100.0);

    // Fewer features than principal components undo half of the difference between a prompt and its counterfactual, by a smaller edit.
    let against_pca = |metric: &str| results.row("claims", "sae-tied", &format!("{sae},against=pca"), metric);
    let (ratio, _, high) = against_pca("features_for_half_kl_ratio");
    assert!(ratio < 1.0 && high < 1.0, "{ratio}, up to {high}");
    assert!(against_pca("edit_for_half_kl_ratio").2 < 1.0);
    assert!(against_pca("kl_auc_difference").2 < 0.0);
    for metric in ["features_for_half_kl_ratio", "edit_for_half_kl_ratio", "kl_auc_difference"] {
        let p_holm = corrected(&format!("{sae},against=pca"), metric);
        assert!(p_holm < 0.05, "{metric}: p {p_holm} after correction");
    }

    // Gradients find the features that patching one by one finds, of this task and of another; and the model does that one, too.
    let agreement =
        |setting: &str| results.row("attribution", "sae-tied", &format!("{sae},steps=1{setting}"), "rank_correlation");
    assert!(agreement("").1 > 0.5 && agreement(",task=toy-pronoun").1 > 0.5, "{:?}", agreement(""));
    assert!(results.row("task", "model", "prompts=report,task=toy-agreement", "task_accuracy").0 >= 0.9);
    for method in ["sae-tied", "pca"] {
        let dictionary = if method == "pca" { String::new() } else { format!("{sae},") };
        let setting = format!("{dictionary}prompts=report,task=toy-agreement");
        let (value, _, high) = results.row("task", method, &setting, "kl_auc");
        assert!(value < 1.0 && high < 1.0, "{method}: {value}, up to {high}");
    }

    // Features are made of earlier ones, and what gradients attribute to those is what ablating them does.
    let circuits = std::fs::read_to_string(place.path("out").join("toy/circuits.json")).expect("circuits.json");
    let circuits: Vec<Value> = serde_json::from_str(&circuits).expect("a list of circuits");
    assert_eq!(circuits.len(), 2);
    for circuit in &circuits {
        let (nodes, edges) = (circuit["nodes"].as_array().unwrap(), circuit["edges"].as_array().unwrap());
        assert!(nodes.len() > 3 && edges.len() + 1 >= nodes.len(), "{} nodes, {} edges", nodes.len(), edges.len());
        let setting = circuit["setting"].as_str().unwrap();
        assert!(results.row("circuit", "sae-tied", setting, "attribution_correlation").1 > 0.5, "{setting}");
        let target = setting.rsplit('=').next().unwrap();
        assert!(place.path("out").join(format!("toy/circuits/circuit-{target}.dot")).is_file());
    }

    // One latent tells that a name is the giver's, named again: a property of the context. Another tells the receiver.
    let told =
        |property: &str| results.row("properties", "sae-tied", &format!("{sae},property={property}"), "best_auroc");
    assert!(told("repeated_name").1 > 0.99, "{:?}", told("repeated_name"));
    assert!(told("indirect_object").0 > 0.9, "{:?}", told("indirect_object"));

    // What the activations tell of a token's kind, a dense probe finds. Five latents tell more than one, and less than the whole activation.
    let probe = |method: &str, setting: &str, metric: &str| results.row("properties", method, setting, metric);
    for property in ["name", "place", "adjective"] {
        let dense = probe("identity", &format!("property={property},latents=all"), "probe_auroc");
        assert!(dense.1 > 0.95, "{property}: {dense:?}");
    }
    let mean = |latents: u32| probe("sae-tied", &format!("{sae},latents={latents}"), "probe_auroc_mean");
    let dense = probe("identity", "latents=all", "probe_auroc_mean");
    assert!(mean(5).0 > mean(1).2 && dense.0 > mean(5).2, "{:?} {:?} {dense:?}", mean(1), mean(5));
    // Directions of properties are absorbed by other latents where sparsity pays for it; random directions absorb next to nothing.
    let (_, low, high) = probe("sae-tied", sae, "absorption_rate_mean");
    let random = probe("random-relu", "", "absorption_rate_mean");
    assert!(low > random.2 && high < 1.0, "from {low} to {high}, random directions {random:?}");

    // What someone lost is his or hers: LEACE takes that away where the answer is asked for, also with names it was not fitted to. A random direction
    // does not, and leaves other text alone, as does no edit at all.
    let left = |method: &str, setting: &str, metric: &str| {
        let setting = format!("{setting}concept=toy-gender");
        results.row("erasure", method, &setting, metric)
    };
    let before = left("none", "", "accuracy");
    assert!(before.1 > 0.9 && left("none", "", "kl").0 == 0.0, "{before:?}");
    let (leace, class_means) = (left("leace", "", "accuracy"), left("class-mean", "", "accuracy"));
    assert!(leace.2 < 0.65 && class_means.2 < before.1, "{leace:?} {class_means:?}");
    assert!(left("leace", "", "fitted_accuracy").2 < 0.75, "{:?}", left("leace", "", "fitted_accuracy"));
    let random = left("random-direction", "directions=5,", "accuracy");
    assert!(random.1 > 0.85, "{random:?}");
    let kl = |method: &str, setting: &str| left(method, setting, "kl").0;
    assert!(kl("random-direction", "directions=5,") < 0.05 && kl("leace", "") > kl("class-mean", ""));

    // The strongest feature of its kind is active on one token over the upper half of its range; no dimension of the activation is.
    let studies: Vec<Value> =
        serde_json::from_slice(&std::fs::read(place.path("out/toy/case-studies.json")).unwrap()).unwrap();
    let share = |study: &Value| {
        let setting = [study["setting"].as_str().unwrap(), &format!("feature={}", study["feature"])]
            .iter()
            .filter(|part| !part.is_empty())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        results.row("case-study", study["method"].as_str().unwrap(), &setting, "top_token_share").0
    };
    let shares =
        |method: &str| studies.iter().filter(|study| study["method"] == method).map(share).collect::<Vec<f64>>();
    let (features, dimensions) = (shares("sae-tied"), shares("identity"));
    assert_eq!((features.len(), dimensions.len()), (3, 2));
    assert!(
        features.iter().any(|share| *share > 0.8) && dimensions.iter().all(|share| *share < 0.5),
        "{features:?} {dimensions:?}"
    );

    // Planted directions are found again.
    let planted = results.row("planted", "sae-tied", "generator=uncorrelated,ratio=2,alpha=0.004", "mmcs").0;
    assert!(planted > 0.9, "MMCS {planted}");

    // By the paper's own toy autoencoder too, and a larger dictionary finds the same directions again.
    let grid = |ratio: &str, metric: &str| {
        results.row("planted-grid", "sae-relu", &format!("generator=correlated,ratio={ratio},alpha=1"), metric).0
    };
    assert!(grid("2", "mmcs") > 0.9, "MMCS {}", grid("2", "mmcs"));
    assert!(grid("1", "mmcs_next_larger") > 0.8, "{}", grid("1", "mmcs_next_larger"));

    let page = std::fs::read_to_string(place.path("out/toy/report.html")).unwrap();
    let parts = [
        "Did the claims of the paper hold here?",
        "Interpretability scores",
        "Looked at were",
        "Indirect objects",
        "fires on",
    ];
    for text in parts.into_iter().chain([
        "dense probe",
        "Absorption rate",
        "Erasing toy-gender",
        "The tokens behind activations",
    ]) {
        assert!(page.contains(text), "the report has no {text:?}");
    }

    // A second run computes nothing and gives the same bytes.
    let before = std::fs::read(place.path("out/toy/results.json")).unwrap();
    let said = place.run(&["reproduce", "--profile", "toy"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("0 nodes ran"), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(before, std::fs::read(place.path("out/toy/results.json")).unwrap());
}
