//! Hard-wrapped text with chapters to one plain text per chapter.

/// The text of each chapter.
pub(super) type Chapters = Vec<String>;

/// Chapters shorter than this hold no prose: title pages, dedications, lists of contents.
const SHORTEST: usize = 1000;

/// Cuts the lines at headings, joins the lines of each paragraph, and drops the marks of emphasis (`_so_`, `**so**`).
///
/// Paragraphs are separated by a blank line, also in the result. What comes before the first heading is a chapter too.
pub(super) fn chapters<'a>(lines: impl Iterator<Item = &'a str>, is_heading: impl Fn(&str) -> bool) -> Chapters {
    let mut chapters = vec![Vec::new()];
    for line in lines {
        if is_heading(line) {
            chapters.push(Vec::new());
        }
        if let Some(chapter) = chapters.last_mut() {
            chapter.push(line.trim());
        }
    }
    let texts = chapters.iter().map(|lines| paragraphs(lines));
    texts.filter(|text| text.len() >= SHORTEST).collect()
}

fn paragraphs(lines: &[&str]) -> String {
    let mut text = String::new();
    for paragraph in lines.split(|line| line.is_empty()) {
        let plain = plain(&paragraph.join(" "));
        if !plain.is_empty() {
            if !text.is_empty() {
                text.push_str("\n\n");
            }
            text.push_str(&plain);
        }
    }
    text.push('\n');
    text
}

/// Without Markdown's marks: `#` and `>` at the start, `*` anywhere, `_` at the edge of a word.
fn plain(paragraph: &str) -> String {
    let paragraph = paragraph.trim_start_matches(['#', '>', ' ']);
    let mut out = String::with_capacity(paragraph.len());
    let mut characters = paragraph.chars().peekable();
    while let Some(c) = characters.next() {
        let inside_a_word =
            out.ends_with(char::is_alphanumeric) && characters.peek().is_some_and(|next| next.is_alphanumeric());
        match c {
            '*' => {}
            '_' if !inside_a_word => {}
            ' ' if out.ends_with(' ') => {}
            // "The Modern Crisis , p. 79": the space was before a mark of emphasis.
            ',' | '.' | ';' | ':' if out.ends_with(' ') && c != '.' => {
                out.pop();
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_are_cut_and_paragraphs_joined() {
        let long = "word ".repeat(250);
        let text = format!("EMMA\n\nCHAPTER I\n\nOne line\nand _another_.\n\n{long}\nCHAPTER II\n\n{long}");
        let chapters = chapters(text.lines(), |line| line.starts_with("CHAPTER"));
        assert_eq!(chapters.len(), 2, "the title page is too short to be a chapter");
        assert!(chapters[0].starts_with("CHAPTER I\n\nOne line and another.\n\nword word"), "{}", &chapters[0][..60]);
        assert!(chapters[1].starts_with("CHAPTER II\n\n"));
    }

    #[test]
    fn marks_of_emphasis_go_and_names_stay() {
        assert_eq!(
            plain("## A.1 [Murray Bookchin, **The Modern Crisis** , p. 79]"),
            "A.1 [Murray Bookchin, The Modern Crisis, p. 79]"
        );
        assert_eq!(plain("_\"the making of a_ snake_case name"), "\"the making of a snake_case name");
    }
}
