//! The sentences, as templates.
//!
//! A template is words, slots in square brackets, and verbs in braces, which agree with the last subject and follow the tense of the
//! document. `{verb}` names a verb by its plural; `{act}` is any transitive, `{move}` any intransitive and `{give}` any giving verb.
//! `narrator.rs` says what each slot writes.

/// A template and how often it is taken, relative to the others of its list.
pub(super) type Weighted = (u32, &'static str);

/// How two people come to be together. What follows is a clause.
pub(super) const MEETINGS: &[&str] = &[
    "when [TWO] {go} to the [PLACE],",
    "when [TWO] {meet} at the [PLACE],",
    "while [TWO] {are} at the [PLACE],",
    "after [TWO] {leave} the [PLACE],",
    "as [TWO] {work} at the [PLACE],",
    "because [TWO] {are} friends,",
    "after [TWO] {find} a [OBJECT] at the [PLACE],",
    "[TWO] {go} to the [PLACE], and",
    "[TWO] {work} at the [PLACE] all day, and",
    "[TWO] {have} a [ADJ] [OBJECT], and",
    "[TWO] {meet} near the [PLACE], and",
    "[TWO] {are} very [MOOD], so",
];

/// One of the two gives and the other receives.
pub(super) const GIFTS: &[Weighted] = &[
    (5, "[ACTOR] {give} a [OBJECT] to [RECEIVER]."),
    (2, "[ACTOR] {give} the [ADJ] [OBJECT] to [RECEIVER]."),
    (1, "[ACTOR] {give} it to [RECEIVER]."),
    (1, "[ACTOR] {give} [RECEIVER] a [OBJECT]."),
];

/// One of the two does something else that concerns the other.
pub(super) const COMPANY: &[Weighted] = &[
    (2, "[ACTOR] {see} [PARTNER] [AT]."),
    (2, "[ACTOR] {go} to [PARTNER]."),
    (2, "[ACTOR] {move} with [PARTNER]."),
    (1, "[ACTOR] {move} near [PARTNER]."),
    (2, "[ACTOR] {act} a [OBJECT] for [PARTNER]."),
    (1, "[ACTOR] {act} a [ADJ] [OBJECT] with [PARTNER]."),
    (1, "[ACTOR] {ask} [PARTNER], \"[QUESTION]?\""),
];

/// After a meeting, what is not between the two.
pub(super) const NOTHING_BETWEEN: &[Weighted] = &[
    (4, "they {see} a [CREATURE]."),
    (3, "they {act} a [ADJ?] [OBJECT]."),
    (2, "they {move} [WHEN]."),
    (2, "[NAME] {give} a [OBJECT] to them."),
    (1, "[NAME] {give} them a [OBJECT]."),
    (2, "[NAME] {say}, \"[STATEMENT].\""),
];

/// How a document may begin.
pub(super) const OPENINGS: &[Weighted] = &[
    (3, "[PAIR] {live} near the [PLACE]."),
    (2, "[NAME] {live} in a [ADJ] house near the [PLACE]."),
    (2, "[NAME] {work} at the [PLACE]."),
    (1, "[PAIR] {are} good friends."),
];

/// All other sentences of the narration.
pub(super) const SENTENCES: &[Weighted] = &[
    (5, "[SUBJ] {go} to the [PLACE] [WHEN]."),
    (2, "[SUBJ] {go} to the [PLACE] with [OTHER]."),
    (6, "[SUBJ] {act} a [ADJ?] [OBJECT] [AT]."),
    (3, "[SUBJ] {act} [POSS] [OBJECT] [WHEN]."),
    (3, "[SUBJ] {move} [AT] [WHEN]."),
    (3, "[SUBJ] {are} very [MOOD] because [SHE] {have} no [OBJECT]."),
    (2, "[SUBJ] {see} [OTHER] [AT]."),
    (3, "[SUBJ] {give} a [ADJ?] [OBJECT] to [RECIPIENT]."),
    (3, "[SUBJ] {give} [RECIPIENT] a [ADJ?] [OBJECT]."),
    (2, "[SUBJ] {like} the [ADJ] [OBJECT], but [NAME] {do} not."),
    (2, "[SUBJ] {lose} [POSS] [OBJECT] and {find} it [AT]."),
    (2, "[NAME] {are} [AGE] years old."),
    (2, "[NAME] {are} older than [OTHER], and so [SHE] {need} a [OBJECT]."),
    (7, "the [ADJ?] [CREATURE#] [ATTRACTOR] {move} [AT]."),
    (6, "the [ADJ?] [OBJECT#] [ATTRACTOR] {are} [ADJ]."),
    (2, "the [CREATURE#] [ATTRACTOR] {are} very [MOOD]."),
    (2, "the [CREATURE#] [ATTRACTOR] {see} [OTHER] and {move} [AT]."),
    (2, "[ONE] there {are} a [ADJ?] [THING] [AT]."),
    (2, "[MANY] there {are} some [THINGS] [AT]."),
    (1, "[ONE] it {are} one of those days, and there {are} no one at the [PLACE]."),
    (1, "[ONE] it {are} not what it {are} for, but it {are} all there {are}."),
    (4, "[NAME] {say}, \"[STATEMENT].\""),
    (4, "\"[STATEMENT],\" [ONE] {say} [SPEAKER]."),
    (2, "\"[STATEMENT],\" [ONE] {say} [SPEAKER]. \"[STATEMENT].\""),
    (3, "\"[QUESTION]?\" [ONE] {ask} [SPEAKER]."),
    (2, "[NAME] {ask} [OTHER], \"[QUESTION]?\""),
    (3, "\"[GREETING]!\" [ONE] {say} [SPEAKER]."),
    (4, "[NAME] ([WHO]) {go} to the [PLACE]."),
    (3, "[NAME] ([WHO]) {act} a [OBJECT] [AT]."),
    (2, "the [OBJECT#] ([WHAT]) {are} [ADJ]."),
    (2, "[SUBJ] {act} a [OBJECT] ([WHAT]) [AT]."),
    (2, "(the [CREATURE#] [ATTRACTOR] {move} too.)"),
];

/// What is said, up to its last mark. Speech is in the present tense.
pub(super) const STATEMENTS: &[Weighted] = &[
    (3, "I like the [ADJ?] [OBJECT]"),
    (2, "I am very [MOOD]"),
    (2, "we are at the [PLACE]"),
    (2, "you have a [ADJ] [OBJECT]"),
    (2, "my [OBJECT#] {are} [ADJ]"),
    (3, "the [CREATURE#] [ATTRACTOR] {move} [AT]"),
    (2, "[OTHER] has a [OBJECT] for you"),
    (1, "I am [AGE] years old"),
    (1, "we need a [OBJECT] for our [CREATURE]"),
    (1, "please help me with the [OBJECT]"),
    (1, "I will go to the [PLACE] with you"),
    (1, "that is not [ADJ] (not at all)"),
];

/// What is asked, without the question mark.
pub(super) const QUESTIONS: &[Weighted] = &[
    (3, "where is my [OBJECT]"),
    (2, "where are your [THINGS]"),
    (2, "can you see the [CREATURE] [AT]"),
    (2, "who has the [ADJ] [OBJECT]"),
    (1, "how are you"),
    (1, "are you [MOOD]"),
    (1, "is it [ADJ] (or is it [ADJ])"),
];

/// How people greet, without the exclamation mark.
pub(super) const GREETINGS: &[Weighted] = &[
    (3, "hello, [OTHER]"),
    (2, "good morning, [OTHER]"),
    (1, "good night, [OTHER]"),
    (2, "welcome to the [PLACE], [OTHER]"),
    (1, "thank you, [OTHER]"),
    (1, "goodbye"),
];

/// In brackets after a name.
pub(super) const WHO: &[Weighted] = &[
    (3, "a [KIND] from the [PLACE]"),
    (2, "a [ADJ] [KIND]"),
    (2, "now [AGE] years old"),
    (2, "the best friend of [OTHER]"),
    (2, "a [ADJ] [KIND] (but not a [ADJ] one) from the [PLACE]"),
    (1, "a friend of [OTHER] (from the [PLACE])"),
];

/// In brackets after a thing.
pub(super) const WHAT: &[Weighted] = &[
    (3, "a gift from [OTHER]"),
    (2, "not very [ADJ]"),
    (2, "both [ADJ] and [ADJ]"),
    (2, "[IT] {are} [ADJ] (but not [ADJ])"),
    (1, "from the [PLACE] (near the [PLACE])"),
];

/// Where something happens.
pub(super) const WHERE: &[Weighted] =
    &[(3, "at the [PLACE]"), (2, "near the [PLACE]"), (1, "behind the [PLACE]"), (1, "in the [PLACE]")];

/// Words between a subject and its verb whose number may be another.
pub(super) const ATTRACTORS: &[Weighted] = &[
    (2, "near the [THING]"),
    (2, "near the [THINGS]"),
    (1, "beside the [CREATURE]"),
    (1, "with the [CREATURE]"),
    (2, "behind the [THINGS]"),
    (1, "under the [THING]"),
    (1, "from the [PLACE]"),
    (2, "that [NAME] {see}"),
    (1, "that [PAIR] {like}"),
];

/// When something happens.
pub(super) const WHEN: &[Weighted] =
    &[(2, "in the morning"), (2, "at night"), (2, "again"), (1, "that day"), (1, "for a long time")];

/// Before a sentence.
pub(super) const LEADS: &[&str] = &["then", "later", "soon", "now", "one day"];
