//! Patterns for names: `*` is any run of characters, `?` is any one, and `\` takes the next one as it is.

/// A pattern that a whole name must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Nothing in it is special.
    Exact(Box<str>),
    /// Something is.
    Glob(Box<[Token]>),
}

/// A piece of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// This character.
    Literal(char),
    /// Any one.
    One,
    /// Any number of them.
    Many,
}

impl Pattern {
    /// Reads a pattern. Every text is one.
    pub(crate) fn new(text: &str) -> Self {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            tokens.push(match char {
                '*' if tokens.last() == Some(&Token::Many) => continue,
                '*' => Token::Many,
                '?' => Token::One,
                // At the end it can only mean itself.
                '\\' => Token::Literal(chars.next().unwrap_or('\\')),
                other => Token::Literal(other),
            });
        }
        let literal = |token: &Token| match token {
            Token::Literal(char) => Some(*char),
            Token::One | Token::Many => None,
        };
        match tokens.iter().map(literal).collect::<Option<String>>() {
            Some(text) => Pattern::Exact(text.into()),
            None => Pattern::Glob(tokens.into()),
        }
    }

    /// Whether a name matches, in time of at most the product of both lengths.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let tokens = match self {
            Pattern::Exact(text) => return **text == *name,
            Pattern::Glob(tokens) => tokens,
        };
        let (mut at, mut rest) = (0, name.chars());
        // Where to go on when the last run has to be longer: only the last one matters.
        let mut retry = None;
        loop {
            let before = rest.clone();
            match (tokens.get(at), rest.next()) {
                (Some(Token::Many), _) => {
                    rest = before.clone();
                    retry = Some((at, before));
                    at += 1;
                }
                (Some(Token::One), Some(_)) => at += 1,
                (Some(Token::Literal(char)), Some(other)) if *char == other => at += 1,
                (None, None) => return true,
                _ => {
                    let Some((many, from)) = &mut retry else {
                        return false;
                    };
                    if from.next().is_none() {
                        return false;
                    }
                    at = *many + 1;
                    rest = from.clone();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_are_told_from_names() {
        for (pattern, yes, no) in [
            ("", &[""][..], &["a"][..]),
            ("free", &["free"], &["", "fre", "freed", "Free"]),
            ("eth*", &["eth", "eth0", "eth10"], &["et", "veth0", "Eth0"]),
            ("*", &["", "a", "été"], &[]),
            (
                "*-total",
                &["-total", "a-total-total"],
                &["total", "a-total "],
            ),
            ("eth?", &["eth0", "ethé"], &["eth", "eth10"]),
            (
                "a*b*c",
                &["abc", "a-b-b-c", "abbcc"],
                &["ab", "acb", "abcd"],
            ),
            ("**a", &["a", "aa"], &["", "b"]),
            ("[0-9]", &["[0-9]"], &["5"]),
            (r"\*", &["*"], &["", "a", r"\*"]),
            (r"a\?*", &["a?", "a?b"], &["ab", "a"]),
            (r"a\", &[r"a\"], &["a"]),
        ] {
            let parsed = Pattern::new(pattern);
            for name in yes {
                assert!(parsed.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!parsed.matches(name), "{pattern} {name}");
            }
        }
        assert_eq!(Pattern::new(r"a\*"), Pattern::Exact("a*".into()));
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = Pattern::new(&"a*".repeat(1000));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(999))));
    }

    /// The plainest evaluation there is.
    fn plain(tokens: &[Token], name: &[char]) -> bool {
        match (tokens.first(), name.first()) {
            (None, None) => true,
            (Some(Token::Many), _) => {
                plain(&tokens[1..], name) || (!name.is_empty() && plain(tokens, &name[1..]))
            }
            (Some(Token::One), Some(_)) => plain(&tokens[1..], &name[1..]),
            (Some(Token::Literal(char)), Some(other)) => {
                char == other && plain(&tokens[1..], &name[1..])
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_evaluation(pattern in r"[ab*?\\]{0,8}", name in r"[ab*é\\]{0,8}") {
            let parsed = Pattern::new(&pattern);
            let tokens: Vec<_> = match &parsed {
                Pattern::Exact(text) => text.chars().map(Token::Literal).collect(),
                Pattern::Glob(tokens) => tokens.to_vec(),
            };
            let chars: Vec<_> = name.chars().collect();
            prop_assert_eq!(parsed.matches(&name), plain(&tokens, &chars));
        }
    }
}
