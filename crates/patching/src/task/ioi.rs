use serde::{Deserialize, Serialize};

use super::{check_words, slots};
use crate::PatchingError;

/// Indirect object identification (Wang et al., arXiv 2211.00593): sentences with slots, and what goes into them.
///
/// ```
/// let task = monosem_patching::IoiTask::parse(
///     r#"
///     names = ["Anna", "Ben", "Carl", "Dora", "Emil", "Fritz"]
///     places = ["park"]
///     objects = ["book"]
///     templates = [
///         { order = "ABBA", text = "When [IO] and [S] went to the [PLACE], [S] gave a [OBJECT] to" },
///         { order = "BABA", text = "When [S] and [IO] went to the [PLACE], [S] gave a [OBJECT] to" },
///     ]
///     "#,
///     "example",
/// )?;
/// assert_eq!(task.templates[0].fill("Ben", "Anna", "park", "book"), "When Ben and Anna went to the park, Anna gave a book to");
/// # Ok::<(), monosem_patching::PatchingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoiTask {
    /// First names. Of those, the single tokens of a vocabulary are used with it.
    pub names: Vec<String>,
    /// What `[PLACE]` stands for; may be empty where no template has that slot.
    #[serde(default)]
    pub places: Vec<String>,
    /// What `[OBJECT]` stands for; may be empty where no template has that slot.
    #[serde(default)]
    pub objects: Vec<String>,
    /// Sentences that end before the answer.
    pub templates: Vec<Template>,
}

/// A sentence with slots, cut off before its last word, which is IO's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Who is named first.
    pub order: NameOrder,
    /// The text, with `[IO]` once, `[S]` twice, the second time after `[IO]`, and `[PLACE]` and `[OBJECT]` as often as it likes.
    /// A space stands before every name, so that a name is the same token wherever it stands; none stands at the end.
    pub text: String,
}

/// The order of the names A = IO and B = S in a template, the answer included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NameOrder {
    /// `[IO] .. [S] .. [S] ..`
    #[serde(rename = "ABBA")]
    Abba,
    /// `[S] .. [IO] .. [S] ..`
    #[serde(rename = "BABA")]
    Baba,
}

impl NameOrder {
    fn slots(self) -> [&'static str; 3] {
        match self {
            Self::Abba => ["IO", "S", "S"],
            Self::Baba => ["S", "IO", "S"],
        }
    }
}

impl Template {
    /// The sentence with its slots filled.
    #[must_use]
    pub fn fill(&self, io: &str, s: &str, place: &str, object: &str) -> String {
        let filled = self.text.replace("[IO]", io).replace("[S]", s);
        filled.replace("[PLACE]", place).replace("[OBJECT]", object)
    }

    fn uses(&self, slot: &str) -> bool {
        self.text.contains(slot)
    }

    fn validate(&self) -> Result<(), String> {
        let mut names = Vec::new();
        for (before, slot) in slots(&self.text)? {
            match slot {
                "IO" | "S" if !before.ends_with(' ') => return Err(format!("expected a space before [{slot}]")),
                "IO" | "S" => names.push(slot),
                "PLACE" | "OBJECT" => {}
                other => return Err(format!("[{other}] is no slot: expected [IO], [S], [PLACE] or [OBJECT]")),
            }
        }
        let expected = self.order.slots();
        if names != expected {
            return Err(format!("the names stand in the order {names:?}, expected {expected:?}"));
        }
        if self.text.ends_with(char::is_whitespace) {
            return Err("expected no space at the end: the answer brings its own".into());
        }
        Ok(())
    }
}

impl IoiTask {
    /// Reads a task from TOML; `origin` (a file's name) is for messages.
    ///
    /// # Errors
    /// If the text is not TOML of this form, a list is empty or names something twice, or a template's slots are not as
    /// [`Template::text`] says.
    pub fn parse(text: &str, origin: &str) -> Result<Self, PatchingError> {
        let problem = |e: toml::de::Error| PatchingError::Parse { origin: origin.into(), problem: e.to_string() };
        let task: Self = toml::from_str(text).map_err(problem)?;
        task.validate(origin)?;
        Ok(task)
    }

    /// The checks of [`Self::parse`], for a task that was made otherwise.
    ///
    /// # Errors
    /// As there.
    pub fn validate(&self, origin: &str) -> Result<(), PatchingError> {
        let error = |what: String, problem: String| PatchingError::Task { origin: origin.into(), what, problem };
        for (what, list, needed) in [
            ("names", &self.names, true),
            ("places", &self.places, self.templates.iter().any(|t| t.uses("[PLACE]"))),
            ("objects", &self.objects, self.templates.iter().any(|t| t.uses("[OBJECT]"))),
        ] {
            check_words(list, needed).map_err(|problem| error(what.into(), problem))?;
        }
        if self.templates.is_empty() {
            return Err(error("templates".into(), "expected one or more".into()));
        }
        for (i, template) in self.templates.iter().enumerate() {
            template.validate().map_err(|problem| error(format!("template {i}, {:?}", template.text), problem))?;
        }
        Ok(())
    }
}
