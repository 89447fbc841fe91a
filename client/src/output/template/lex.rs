//! A template's text and the words of its actions.

/// A word of an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// `.Name`, without the dot. A chain is several.
    Field(String),
    /// `.` alone.
    Dot,
    /// `$` or `$name`, with the dollar.
    Variable(String),
    /// A function, keyword or constant.
    Word(String),
    Text(String),
    Int(i64),
    Float(f64),
    /// `|`, `(`, `)`, `,`.
    Mark(char),
    /// `:=`
    Declare,
    /// `=`
    Assign,
    /// White space, which tells `.A .B` from `.A.B`.
    Space,
}

/// A part of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action(Vec<Token>),
}

/// Cuts a template into text and actions.
pub(super) fn lex(source: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut trim_next = false;
    while let Some(start) = rest.find("{{") {
        let (text, after) = (&rest[..start], &rest[start + 2..]);
        let (after, trim_before) = strip_left_trim(after);
        let text = if trim_next { text.trim_start() } else { text };
        pieces.push(Piece::Text(if trim_before { text.trim_end() } else { text }.to_owned()));
        let (inside, following) = action_text(after)?;
        let (inside, trim_after) = strip_right_trim(inside);
        if !inside.trim_start().starts_with("/*") {
            pieces.push(Piece::Action(tokens(inside)?));
        }
        (rest, trim_next) = (following, trim_after);
    }
    pieces.push(Piece::Text(if trim_next { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

fn strip_left_trim(after: &str) -> (&str, bool) {
    match after.strip_prefix('-') {
        Some(cut) if cut.starts_with(char::is_whitespace) => (cut, true),
        _ => (after, false),
    }
}

fn strip_right_trim(inside: &str) -> (&str, bool) {
    match inside.strip_suffix('-') {
        Some(cut) if cut.ends_with(char::is_whitespace) => (cut, true),
        _ => (inside, false),
    }
}

/// What stands before the action's closing braces, and what follows them; braces within a string do not close.
fn action_text(after: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    let mut escaped = false;
    for (at, character) in after.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if character == '"' || character == '`' => quote = Some(character),
            None if after[at..].starts_with("}}") => return Ok((&after[..at], &after[at + 2..])),
            None => {}
        }
    }
    Err(if quote.is_some() { "unterminated string in action".to_owned() } else { "unclosed action".to_owned() })
}

fn tokens(inside: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = inside;
    while let Some(first) = rest.chars().next() {
        let (token, length) = token(rest, first)?;
        tokens.push(token);
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn token(rest: &str, first: char) -> Result<(Token, usize), String> {
    match first {
        _ if first.is_whitespace() => Ok((Token::Space, rest.len() - rest.trim_start().len())),
        '|' | '(' | ')' | ',' => Ok((Token::Mark(first), 1)),
        ':' if rest.starts_with(":=") => Ok((Token::Declare, 2)),
        '=' => Ok((Token::Assign, 1)),
        '.' => {
            let name = word(&rest[1..]);
            Ok(if name.is_empty() { (Token::Dot, 1) } else { (Token::Field(name.to_owned()), 1 + name.len()) })
        }
        '$' => {
            let name = word(&rest[1..]);
            Ok((Token::Variable(format!("${name}")), 1 + name.len()))
        }
        '"' => quoted(rest),
        '`' => {
            let end = rest[1..].find('`').ok_or("unterminated raw string")?;
            Ok((Token::Text(rest[1..=end].to_owned()), end + 2))
        }
        '0'..='9' | '+' | '-' => number(rest),
        _ if first == '_' || first.is_alphabetic() => {
            let name = word(rest);
            Ok((Token::Word(name.to_owned()), name.len()))
        }
        other => Err(format!("unexpected {other:?} in action")),
    }
}

/// The identifier that `rest` begins with.
fn word(rest: &str) -> &str {
    let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
    &rest[..end]
}

fn number(rest: &str) -> Result<(Token, usize), String> {
    let end = rest[1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '.').map_or(rest.len(), |at| at + 1);
    let digits = &rest[..end];
    if let Ok(number) = digits.parse::<i64>() {
        return Ok((Token::Int(number), end));
    }
    match digits.parse::<f64>() {
        Ok(number) => Ok((Token::Float(number), end)),
        Err(_) => Err(format!("bad number syntax: {digits:?}")),
    }
}

/// A string in double quotes with Go's escapes.
fn quoted(rest: &str) -> Result<(Token, usize), String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((Token::Text(text), at + 1)),
            '\\' => text.push(escape(&mut characters)?),
            other => text.push(other),
        }
    }
    Err("unterminated quoted string".to_owned())
}

fn escape(characters: &mut impl Iterator<Item = (usize, char)>) -> Result<char, String> {
    let digits = match characters.next().map(|(_, character)| character) {
        Some('n') => return Ok('\n'),
        Some('t') => return Ok('\t'),
        Some('r') => return Ok('\r'),
        Some('a') => return Ok('\u{7}'),
        Some('b') => return Ok('\u{8}'),
        Some('f') => return Ok('\u{c}'),
        Some('v') => return Ok('\u{b}'),
        Some(same @ ('"' | '\\' | '\'')) => return Ok(same),
        Some('x') => 2,
        Some('u') => 4,
        Some(other) => return Err(format!("unknown escape \\{other} in string")),
        None => return Err("unterminated quoted string".to_owned()),
    };
    let code: String = characters.take(digits).map(|(_, digit)| digit).collect();
    u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).ok_or_else(|| format!("bad escape {code:?} in string"))
}
