//! The Brown corpus as the package has it (`word/tag` tokens, one sentence a line) back to plain text.

/// Turns one tagged document into text: sentences joined into paragraphs, paragraphs separated by a blank line.
///
/// The tagged form puts every closing quote before the punctuation mark that follows (`'' ,`), where American print has
/// it after (`,"`), and doubles most marks other than the full stop (`? ?`); both are undone. Codes that stand for
/// formulas (`**zg`, `Af`) are the corpus's own and stay. A headline (tags ending in `-hl`) is a paragraph.
pub(crate) fn plain_text(tagged: &str) -> String {
    let mut paragraphs: Vec<String> = Vec::new();
    let mut paragraph = Paragraph::default();
    for line in tagged.lines().chain([""]) {
        // A word may itself hold a slash (`and/or/cc`): the tag follows the last one.
        let tokens = || line.split_whitespace().map(|token| token.rsplit_once('/').unwrap_or((token, "")));
        let is_heading = tokens().all(|(_, tag)| tag.ends_with("-hl"));
        if is_heading {
            // Also at an empty line.
            paragraphs.push(std::mem::take(&mut paragraph).text);
        }
        for (word, _) in tokens() {
            paragraph.push(word);
        }
        if is_heading {
            paragraphs.push(std::mem::take(&mut paragraph).text);
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs.join("\n\n") + "\n"
}

#[derive(Default)]
struct Paragraph {
    text: String,
    /// The next token follows without a space: the last one opened a quote or a bracket.
    glued: bool,
    /// A single quote was opened and not closed yet; both kinds are written alike in the source.
    in_single_quote: bool,
    /// Closing quotes at the end of `text`, which a mark that follows goes in front of.
    closers: usize,
    last_mark: Option<char>,
}

impl Paragraph {
    fn push(&mut self, word: &str) {
        match word {
            "``" => self.open('"'),
            "''" => self.close('"'),
            "'" if self.in_single_quote => {
                self.in_single_quote = false;
                self.close('\'');
            }
            "'" => {
                self.in_single_quote = true;
                self.open('\'');
            }
            "(" => self.open('('),
            "[" => self.open('['),
            ")" | "]" => {
                self.text.push_str(word);
                self.closers = 0;
                self.last_mark = None;
                self.glued = false;
            }
            "," | "." | ";" | ":" | "?" | "!" => self.mark(word.as_bytes()[0].into()),
            _ => {
                self.space();
                self.text.push_str(word);
                self.closers = 0;
                self.last_mark = None;
            }
        }
    }

    fn space(&mut self) {
        if !self.glued && !self.text.is_empty() {
            self.text.push(' ');
        }
        self.glued = false;
    }

    fn open(&mut self, quote: char) {
        self.space();
        self.text.push(quote);
        self.glued = true;
        self.closers = 0;
        self.last_mark = None;
    }

    fn close(&mut self, quote: char) {
        self.text.push(quote);
        self.closers += 1;
        self.glued = false;
        // An inner quote does not outlive the outer one, so a stray apostrophe spoils one quotation at most.
        self.in_single_quote &= quote != '"';
    }

    fn mark(&mut self, mark: char) {
        if self.last_mark == Some(mark) {
            return;
        }
        if self.glued && self.text.ends_with(" \"") {
            // The corpus has a few opening quotes where a closing one was meant.
            self.text.truncate(self.text.len() - 2);
            self.close('"');
        }
        let inside = self.text.len() - self.closers;
        let before = self.text[..inside].chars().next_back();
        // An abbreviation at the end of a sentence keeps one full stop (`Jr. .`).
        let stopped = mark == '.' && before.is_some_and(|c| matches!(c, '.' | '?' | '!'));
        if !stopped {
            let outside = matches!(mark, ';' | ':') || before.is_some_and(|c| matches!(c, ',' | '?' | '!' | ';' | ':'));
            self.text.insert(if outside { self.text.len() } else { inside }, mark);
            if outside {
                self.closers = 0;
            }
        }
        self.last_mark = Some(mark);
        self.glued = false;
    }
}

#[cfg(test)]
mod tests {
    use super::plain_text;

    #[test]
    fn one_paragraph_per_group_of_lines() {
        let tagged = "\n\n\tThe/at jury/nn said/vbd ./.\nIt/pps did/dod ./.\n\n\n\tMerger/nn-hl proposed/vbn-hl \nIt/pps was/bedz ./.";
        assert_eq!(plain_text(tagged), "The jury said. It did.\n\nMerger proposed\n\nIt was.\n");
    }

    #[test]
    fn quotes_and_punctuation_go_back_where_print_has_them() {
        let cases = [
            ("``/`` Uhhu/uh ''/'' ,/, she/pps said/vbd ./.", "\"Uhhu,\" she said."),
            ("about/in you/ppo ,/, Carla/np ''/'' ?/. ?/.\n``/`` Me/ppo ''/'' ?/. ?/.", "about you, Carla?\" \"Me?\""),
            ("stop/vb it/ppo !/. !/.\nNo/rb ;/. ;/. no/rb :/: :/: 2/cd ,/, ,/, 3/cd", "stop it! No; no: 2, 3"),
            ("the/at ``/`` manner/nn ''/'' ;/. ;/. and/cc", "the \"manner\"; and"),
            ("Ivan/np Allen/np Jr./np ./.", "Ivan Allen Jr."),
            ("(/( the/at Fed/np )/) ,/, and/or/cc [/( x/nn ]/)", "(the Fed), and/or [x]"),
            ("he/pps said/vbd ,/, ``/`` '/' Am/bem I/ppss '/' ''/'' ./.", "he said, \"'Am I.'\""),
            ("four/cd --/-- Siamese/jj $1,000/nns 1/4/cd", "four -- Siamese $1,000 1/4"),
            ("calm/jj disinterest/nn ``/`` ./. As/cs", "calm disinterest.\" As"),
            ("``/`` Why/wrb ?/. ?/. ''/'' ,/, he/pps", "\"Why?\", he"),
        ];
        for (tagged, plain) in cases {
            assert_eq!(plain_text(tagged).trim_end(), plain, "{tagged}");
        }
    }
}
