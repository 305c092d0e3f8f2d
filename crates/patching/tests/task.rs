//! Prompts from tasks.

mod common;

use std::collections::HashSet;

use common::{TASK, encoder, task, vocabulary};
use monosem_patching::{Half, IoiPrompt, IoiTask, PatchingError};

fn draw(n: usize, seed: u64, half: Half) -> Vec<IoiPrompt> {
    common::prompts(n, seed, half).0
}

#[test]
fn prompts_are_what_they_say() {
    let vocabulary = vocabulary(&task());
    for prompt in draw(30, 1, Half::Choose) {
        let word = |token: u32| vocabulary[token as usize].as_str();
        assert!(prompt.io != prompt.s && prompt.s != prompt.third && prompt.third != prompt.io);
        assert_eq!(prompt.tokens[prompt.io_position], prompt.io);
        assert_eq!(prompt.tokens[prompt.s1_position], prompt.s);
        assert_eq!(prompt.tokens[prompt.s2_position], prompt.s);
        assert!(prompt.s1_position < prompt.s2_position && prompt.io_position < prompt.s2_position);
        let mut target = prompt.tokens.clone();
        target[prompt.io_position] = prompt.third;
        assert_eq!(target, prompt.target_tokens);
        assert_eq!(word(prompt.tokens[prompt.end()]), "to");
        assert!(prompt.text.contains(word(prompt.io)) && !prompt.text.contains('['), "{}", prompt.text);
    }
}

#[test]
fn halves_share_neither_names_nor_templates() {
    for seed in 0..5 {
        let [choose, report] = [Half::Choose, Half::Report].map(|half| draw(24, seed, half));
        let names = |ps: &[IoiPrompt]| -> HashSet<u32> { ps.iter().flat_map(|p| [p.io, p.s, p.third]).collect() };
        let templates = |ps: &[IoiPrompt]| -> HashSet<usize> { ps.iter().map(|p| p.template).collect() };
        assert!(names(&choose).is_disjoint(&names(&report)));
        assert!(templates(&choose).is_disjoint(&templates(&report)));
        // One of each order.
        assert_eq!((templates(&choose).len(), templates(&report).len()), (2, 2));
    }
}

#[test]
fn a_seed_is_all_that_a_draw_depends_on() {
    let few = draw(5, 3, Half::Report);
    assert_eq!(few[..], draw(12, 3, Half::Report)[..5]);
    assert_ne!(few, draw(5, 4, Half::Report));
    let texts: HashSet<(String, u32)> = draw(40, 3, Half::Choose).into_iter().map(|p| (p.text, p.third)).collect();
    assert_eq!(texts.len(), 40);
}

#[test]
fn the_shipped_task_is_valid() {
    let text = include_str!("../../../data/ioi/templates.toml");
    let task = IoiTask::parse(text, "templates.toml").unwrap();
    assert!(task.names.len() >= 100);
    assert_eq!(task.templates.len(), 30);
    let texts: HashSet<&str> = task.templates.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(texts.len(), 30);
    let prompts = task.prompts(50, 0, Half::Choose, &encoder(vocabulary(&task))).unwrap();
    assert_eq!(prompts.len(), 50);
}

#[test]
fn faults_of_a_task_are_named() {
    let fault = |from: &str, to: &str| IoiTask::parse(&TASK.replacen(from, to, 1), "x.toml").unwrap_err().to_string();
    for (from, to, expected) in [
        ("names", "nams", "unknown field `nams`"),
        ("ABBA", "AABB", "unknown variant `AABB`"),
        ("ABBA", "BABA", r#"the names stand in the order ["IO", "S", "S"], expected ["S", "IO", "S"]"#),
        ("[PLACE]", "[CITY]", "[CITY] is no slot"),
        ("[PLACE]", "[PLACE", "[PLACE, [S] is no slot"),
        ("When [IO]", "[IO]", "expected a space before [IO]"),
        ("a [OBJECT] to", "a [OBJECT] to ", "expected no space at the end"),
        ("\"Anna\", ", "\"Ben\", ", "names: \"Ben\" is named twice"),
        (r#"["park", "shop"]"#, "[]", "places: expected one or more"),
    ] {
        let message = fault(from, to);
        assert!(message.starts_with("x.toml: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn a_vocabulary_without_the_names_is_refused() {
    let bytes = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
    let error = task().prompts(3, 0, Half::Choose, &bytes).unwrap_err();
    assert!(matches!(error, PatchingError::NoSingleTokenName { n_tokens: 5, .. }), "{error}");
    assert!(error.to_string().starts_with("no name of the task is a single token"), "{error}");
}

#[test]
fn names_that_the_vocabulary_does_not_know_are_not_used() {
    let encode = encoder(vocabulary(&task()));
    let known = |text: &str| if text.contains("Anna") || text.contains("Hans") { Vec::new() } else { encode(text) };
    assert_eq!(
        task().single_token_names(&known).unwrap(),
        ["Ben", "Carl", "Dora", "Emil", "Fritz", "Gerd", "Ida", "Jan"]
    );
    let few = |n| task().with_names(n, 0, &known).unwrap().names;
    assert_eq!((few(3).len(), few(3)), (3, few(8)[..3].to_vec()));
    let error = task().single_token_names(&|_| Vec::new()).unwrap_err();
    assert!(matches!(error, PatchingError::NoSingleTokenName { n_tokens: 0, .. }), "{error}");
}

#[test]
fn names_that_share_a_token_are_not_used() {
    let encode = encoder(vocabulary(&task()));
    let unknown = encode("Anna Ben Carl Dora Emil Fritz Gerd");
    let folded = |text: &str| -> Vec<u32> {
        encode(text).into_iter().map(|t| if unknown.contains(&t) { 0 } else { t }).collect()
    };
    assert_eq!(task().single_token_names(&folded).unwrap(), ["Hans", "Ida", "Jan"]);
    let error = task().prompts(3, 0, Half::Choose, &folded).unwrap_err();
    assert_eq!(error, PatchingError::TooFewNames { found: 2, of: 3, listed: 10 });
}

#[test]
fn too_few_combinations_are_an_error() {
    let mut task = task();
    task.templates.truncate(2);
    task.names.truncate(6);
    let encode = encoder(vocabulary(&task));
    let error = task.prompts(1000, 0, Half::Choose, &encode).unwrap_err();
    assert!(error.to_string().contains("was drawn before"), "{error}");
    task.templates.truncate(1);
    let error = task.prompts(1, 0, Half::Report, &encode).unwrap_err();
    assert_eq!(error, PatchingError::TooFewTemplates { listed: 1 });
}
