//! Text from outside becomes text on the page, never markup.

/// Escapes for HTML text and for quoted attributes alike. Control characters, which neither HTML nor XML may hold,
/// become U+FFFD.
pub(crate) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(clean_char(c)),
        }
    }
    out
}

/// Replaces what XML forbids; the SVG writer escapes the rest itself.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { clean_char(c) }).collect()
}

fn clean_char(c: char) -> char {
    let forbidden = (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{FFFE}' | '\u{FFFF}');
    // Bidirectional overrides could make a label read as something it is not.
    let reorders = matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    if forbidden || reorders { '\u{FFFD}' } else { c }
}

/// A name that is safe as a file name and as an id: lower case letters, digits, dots and hyphens.
pub(crate) fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(120) {
        let c = if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
        if !(matches!(c, '-' | '.') && (out.is_empty() || out.ends_with(['-', '.']))) {
            out.push(c);
        }
    }
    let trimmed = out.trim_end_matches(['-', '.']);
    if trimmed.is_empty() { "unnamed".to_owned() } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_inert() {
        assert_eq!(html("<script>\"'&\0"), "&lt;script&gt;&quot;&#39;&amp;\u{FFFD}");
        assert_eq!(clean("a\nb\u{7}\u{202E}"), "a b\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn slugs_are_file_names() {
        assert_eq!(slug("blocks.3.hook_resid_post"), "blocks.3.hook-resid-post");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("\u{1F600}"), "unnamed");
    }
}
