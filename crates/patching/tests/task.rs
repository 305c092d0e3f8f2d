//! Prompts from tasks.

mod common;

use std::collections::HashSet;

use common::{TASK, encoder, task, vocabulary};
use monosem_patching::{Half, IoiTask, MinimalPairs, PatchingError, Prompt, parse_task};

fn draw(n: usize, seed: u64, half: Half) -> Vec<Prompt> {
    common::prompts(n, seed, half).0
}

#[test]
fn prompts_are_what_they_say() {
    let vocabulary = vocabulary(&task());
    for prompt in draw(30, 1, Half::Choose) {
        let word = |token: u32| vocabulary[token as usize].as_str();
        let ([io], [third], [s]) = (&prompt.answers[..], &prompt.target_answers[..], &prompt.wrong[..]) else {
            panic!("one name each")
        };
        assert!(io != s && s != third && third != io);
        let [at_io, at_s1, at_s2] = ["IO", "S1", "S2"].map(|mark| prompt.position(mark).unwrap());
        assert_eq!([at_io, at_s1, at_s2].map(|at| prompt.tokens[at]), [*io, *s, *s]);
        assert!(at_s1 < at_s2 && at_io < at_s2);
        assert_eq!((prompt.first_change(), prompt.position("END")), (at_io, Some(prompt.end())));
        let mut target = prompt.tokens.clone();
        target[at_io] = *third;
        assert_eq!(target, prompt.target_tokens);
        assert_eq!(word(prompt.tokens[prompt.end()]), "to");
        assert!(prompt.text.contains(word(*io)) && !prompt.text.contains('['), "{}", prompt.text);
    }
}

#[test]
fn halves_share_neither_names_nor_templates() {
    for seed in 0..5 {
        let [choose, report] = [Half::Choose, Half::Report].map(|half| draw(24, seed, half));
        let of = |p: &Prompt| [p.answers[0], p.wrong[0], p.target_answers[0]];
        let names = |ps: &[Prompt]| -> HashSet<u32> { ps.iter().flat_map(of).collect() };
        let templates = |ps: &[Prompt]| -> HashSet<usize> { ps.iter().map(|p| p.template).collect() };
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
    let of = |p: Prompt| (p.text, p.target_text);
    let texts: HashSet<(String, String)> = draw(40, 3, Half::Choose).into_iter().map(of).collect();
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

/// Words, digits and marks, each a token; a space goes with what follows it.
fn by_words() -> impl Fn(&str) -> Vec<u32> {
    let known = std::cell::RefCell::new(Vec::<String>::new());
    move |text| {
        let mut pieces: Vec<String> = Vec::new();
        for c in text.chars() {
            let within = |piece: &String| {
                let last = piece.chars().last().expect("pieces are not empty");
                last == ' ' && c != ' ' || last.is_alphabetic() && c.is_alphabetic()
            };
            match pieces.last_mut().filter(|piece| within(piece)) {
                Some(piece) => piece.push(c),
                None => pieces.push(c.to_string()),
            }
        }
        let mut known = known.borrow_mut();
        let mut number = |piece: String| {
            known.iter().position(|k| *k == piece).unwrap_or_else(|| {
                known.push(piece);
                known.len() - 1
            }) as u32
        };
        pieces.into_iter().map(&mut number).collect()
    }
}

const SHIPPED: [(&str, &str); 8] = [
    ("pronoun", include_str!("../../../data/tasks/pronoun.toml")),
    ("agreement", include_str!("../../../data/tasks/agreement.toml")),
    ("greater-than", include_str!("../../../data/tasks/greater-than.toml")),
    ("closing", include_str!("../../../data/tasks/closing.toml")),
    ("gender", include_str!("../../../data/tasks/gender.toml")),
    ("toy-gender", include_str!("../../../data/tasks/toy-gender.toml")),
    ("toy-pronoun", include_str!("../../../data/tasks/toy-pronoun.toml")),
    ("toy-agreement", include_str!("../../../data/tasks/toy-agreement.toml")),
];

#[test]
fn shipped_tasks_give_prompts_of_two_halves() {
    for (name, text) in SHIPPED {
        let task = parse_task(text, name).unwrap();
        let encode = by_words();
        let [choose, report] = [Half::Choose, Half::Report].map(|half| task.prompts(50, 3, half, &encode));
        let (choose, report) = (choose.unwrap(), report.unwrap());
        assert_eq!(choose[..20], task.prompts(20, 3, Half::Choose, &encode).unwrap()[..], "{name}");
        let templates = |ps: &[Prompt]| -> HashSet<usize> { ps.iter().map(|p| p.template).collect() };
        assert!(templates(&choose).is_disjoint(&templates(&report)), "{name}");
        for prompt in choose.iter().chain(&report) {
            assert_eq!(prompt.tokens.len(), prompt.target_tokens.len());
            assert_eq!(prompt.position("CHANGED"), Some(prompt.first_change()));
            for answers in [&prompt.answers, &prompt.target_answers, &prompt.wrong] {
                assert_eq!(answers.iter().collect::<HashSet<_>>().len(), answers.len(), "{name}: {}", prompt.text);
            }
            assert!(prompt.answers.iter().all(|a| !prompt.target_answers.contains(a)), "{name}: {}", prompt.text);
            assert!(!prompt.text.contains(['[', ']']) && !prompt.target_text.contains(['[', ']']));
        }
        let texts: HashSet<(&str, &str)> = choose.iter().map(|p| (p.text.as_str(), p.target_text.as_str())).collect();
        assert_eq!(texts.len(), 50, "{name}");
        assert!(task.with_names(4, 0, &encode).is_err());
    }
}

#[test]
fn years_are_greater_by_digits_and_by_pairs_of_digits() {
    let task = parse_task(SHIPPED[2].1, SHIPPED[2].0).unwrap();
    // Each character is a token, or pairs of digits are.
    let characters = |text: &str| -> Vec<u32> { text.chars().map(u32::from).collect() };
    let pairs = |text: &str| -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let second = chars.next_if(|next| c.is_ascii_digit() && next.is_ascii_digit());
            tokens.push(second.map_or(u32::from(c), |second| 1000 + 128 * u32::from(c) + u32::from(second)));
        }
        tokens
    };
    for prompt in task.prompts(40, 0, Half::Report, &characters).unwrap() {
        let year = |text: &str| -> u32 {
            let digits: String = text.chars().skip_while(|c| !c.is_ascii_digit()).take(4).collect();
            digits[2..].parse().unwrap()
        };
        let [year, earlier] = [&prompt.text, &prompt.target_text].map(|text| year(text));
        let digit = |token: &u32| char::from_u32(*token).unwrap().to_digit(10).unwrap();
        assert!(prompt.answers.iter().map(digit).eq(year / 10 + 1..10));
        assert!(prompt.target_answers.iter().map(digit).eq(earlier / 10 + 1..year / 10));
        assert!(prompt.wrong.iter().map(digit).eq(0..year / 10));
    }
    let of_pairs = task.prompts(40, 0, Half::Report, &pairs).unwrap();
    assert!(of_pairs.iter().all(|prompt| prompt.answers.iter().all(|token| *token > 1000)));
    assert!(of_pairs.iter().any(|prompt| prompt.answers.len() > 10));
}

#[test]
fn names_erased_with_are_not_those_transferred_to() {
    // Halves are drawn by place, so that lists of the same names in the same order are halved alike.
    for (task, transfer) in [("gender", "pronoun"), ("toy-gender", "toy-pronoun")] {
        let [names, others] = [task, transfer].map(|wanted| {
            let (_, text) = SHIPPED.iter().find(|(name, _)| *name == wanted).unwrap();
            let rest: String = text.lines().filter(|line| !line.starts_with("kind")).collect::<Vec<_>>().join("\n");
            let task: MinimalPairs = toml::from_str(&rest).unwrap();
            task.classes.into_iter().map(|class| (class.name, class.changed)).collect::<Vec<_>>()
        });
        assert_eq!(names, others, "{task} and {transfer}");
    }
}

#[test]
fn faults_of_minimal_pairs_are_named() {
    let good = SHIPPED[1].1;
    for (from, to, expected) in [
        (
            "minimal-pairs",
            "minimal-pair",
            r#"kind = "minimal-pair": expected kind = "minimal-pairs" or kind = "greater-than""#,
        ),
        (r#"kind = "minimal-pairs""#, "kind = 3", "kind = 3: expected kind"),
        (r#"kind = "minimal-pairs""#, "", r#"others begin with kind = "minimal-pairs""#),
        ("name = \"singular\"", "nam = \"singular\"", "unknown field `nam`"),
        ("name = \"plural\"", "name = \"singular\"", "classes: \"singular\" is named twice"),
        ("[words]", "[words]\nCITY = [\"Rome\"]", "words: no template has the slot [CITY]"),
        ("[ATTRACTOR]", "[CITY]", "nothing fills [CITY] in class \"singular\""),
        ("The [HEAD] near", "The near", "expected the slot [HEAD]"),
        ("\"key\", ", "", "expected the slots and numbers of words of class \"singular\""),
        ("\"key\", ", "\"book\", ", "\"book\" is named twice"),
        ("\" is\", ", "\" was\", ", "class \"singular\", answers: \" was\" is named twice"),
        ("near the [ATTRACTOR]\"", "near the [ATTRACTOR] \"", "expected no space at the end"),
    ] {
        let message = parse_task(&good.replacen(from, to, 1), "x.toml").err().unwrap().to_string();
        assert!(message.starts_with("x.toml: ") && message.contains(expected), "{message}");
    }
    let error = parse_task(&SHIPPED[2].1.replacen("[YEAR]", "[YEARS]", 1), "x.toml").err().unwrap().to_string();
    assert!(error.contains("template 0") && error.contains("expected [EVENT], [CENTURY][YEAR]"), "{error}");
    // Where it stands in the file, too.
    let error = parse_task(&good.replacen("templates", "template", 1), "x.toml").err().unwrap().to_string();
    let line = 1 + good.lines().position(|line| line.starts_with("templates")).unwrap();
    assert!(error.contains(&format!("line {line}, column 1")), "{error}");
    // What a vocabulary cannot express is refused with the last try.
    let task = parse_task(good, "agreement").unwrap();
    let letters = |text: &str| -> Vec<u32> { text.chars().map(u32::from).collect() };
    let error = task.prompts(1, 0, Half::Choose, &letters).unwrap_err().to_string();
    assert!(error.contains("tokens, its counterfactual") || error.contains("is not one token"), "{error}");
    let error = task.prompts(1, 0, Half::Choose, &|_| Vec::new()).unwrap_err().to_string();
    assert!(error.contains("the vocabulary lacks a word of \"The "), "{error}");
    // An answer that is right either way is told in words.
    let both = parse_task(&good.replacen("answers = [", "answers = [\" both\", ", 2), "x.toml").unwrap();
    let error = both.prompts(1, 0, Half::Choose, &by_words()).unwrap_err().to_string();
    assert!(error.contains("the answer \" both\" is right after both \"The "), "{error}");
}
