//! A template's words as a tree.

use super::functions;
use super::lex::{Piece, Token, lex};

/// Deepest nesting of blocks and parentheses: the parser and the evaluation recurse.
const DEPTH_MAX: usize = 64;

/// A part of a template's body.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipe),
    If { condition: Pipe, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Pipe, then: Vec<Node>, otherwise: Vec<Node> },
    Range { over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
    Break,
    Continue,
}

/// Commands joined by `|`, whose value may go into variables.
#[derive(Debug)]
pub(super) struct Pipe {
    /// The names with their dollar; two of them only in a range.
    pub(super) variables: Vec<String>,
    /// `=` instead of `:=`.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

/// A word of a command: the first may be a function, the others are its arguments.
#[derive(Debug)]
pub(super) enum Operand {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// `.`, `.A.B`
    Field(Vec<String>),
    /// `$x.A.B`
    Variable(String, Vec<String>),
    /// `(pipe).A.B`
    Paren(Pipe, Vec<String>),
    Function(String),
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Vec<Node>, String> {
    let mut parser = Parser { pieces: lex(source)?.into_iter(), open: Vec::new() };
    let (nodes, ended_by) = parser.body()?;
    match ended_by {
        None => Ok(nodes),
        Some(end) => Err(format!("unexpected {{{{{}}}}}", end.word())),
    }
}

/// What ended a body.
enum End {
    End,
    /// The words after `else`.
    Else(Vec<Token>),
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            End::End => "end",
            End::Else(_) => "else",
        }
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// The blocks around the current place.
    open: Vec<&'static str>,
}

impl Parser {
    fn body(&mut self) -> Result<(Vec<Node>, Option<End>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            match piece {
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => nodes.push(Node::Text(text)),
                Piece::Action(tokens) => {
                    let tokens = without_outer_spaces(tokens);
                    match end_of_body(&tokens) {
                        Some(end) => return Ok((nodes, Some(end))),
                        None => nodes.push(self.action(&tokens)?),
                    }
                }
            }
        }
        Ok((nodes, None))
    }

    fn action(&mut self, tokens: &[Token]) -> Result<Node, String> {
        let Some(Token::Word(word)) = tokens.first() else { return Ok(Node::Print(pipe(tokens)?)) };
        match word.as_str() {
            "if" => {
                let (condition, then, otherwise) = self.block("if", &tokens[1..])?;
                Ok(Node::If { condition, then, otherwise })
            }
            "with" => {
                let (value, then, otherwise) = self.block("with", &tokens[1..])?;
                Ok(Node::With { value, then, otherwise })
            }
            "range" => {
                let (over, body, otherwise) = self.block("range", &tokens[1..])?;
                Ok(Node::Range { over, body, otherwise })
            }
            "break" | "continue" if !self.open.contains(&"range") => {
                Err(format!("{{{{{word}}}}} outside {{{{range}}}}"))
            }
            "break" => Ok(Node::Break),
            "continue" => Ok(Node::Continue),
            "define" | "template" | "block" => {
                Err(format!("{{{{{word}}}}} is not supported (if, else, with, range, break, continue and end are)"))
            }
            _ => Ok(Node::Print(pipe(tokens)?)),
        }
    }

    fn block(&mut self, word: &'static str, head: &[Token]) -> Result<(Pipe, Vec<Node>, Vec<Node>), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err("blocks are nested too deeply".to_owned());
        }
        let head = pipe(head)?;
        if word != "range" && head.variables.len() > 1 {
            return Err(format!("too many declarations in {{{{{word}}}}}"));
        }
        self.open.push(word);
        let parts = self.block_bodies(word);
        self.open.pop();
        let (then, otherwise) = parts?;
        Ok((head, then, otherwise))
    }

    fn block_bodies(&mut self, word: &'static str) -> Result<(Vec<Node>, Vec<Node>), String> {
        let (then, end) = self.body()?;
        match end {
            Some(End::End) => Ok((then, Vec::new())),
            // `else if` is an if in the else, which shares the end.
            Some(End::Else(tokens)) if !tokens.is_empty() => Ok((then, vec![self.action(&tokens)?])),
            Some(End::Else(_)) => match self.body()? {
                (otherwise, Some(End::End)) => Ok((then, otherwise)),
                (_, Some(End::Else(_))) => Err("unexpected {{else}}".to_owned()),
                (_, None) => Err(format!("{{{{{word}}}}} without {{{{end}}}}")),
            },
            None => Err(format!("{{{{{word}}}}} without {{{{end}}}}")),
        }
    }
}

fn end_of_body(tokens: &[Token]) -> Option<End> {
    match tokens {
        [Token::Word(word)] if word == "end" => Some(End::End),
        [Token::Word(word), rest @ ..] if word == "else" => Some(End::Else(without_outer_spaces(rest.to_vec()))),
        _ => None,
    }
}

fn without_outer_spaces(mut tokens: Vec<Token>) -> Vec<Token> {
    while tokens.last() == Some(&Token::Space) {
        tokens.pop();
    }
    let leading = tokens.iter().take_while(|token| **token == Token::Space).count();
    tokens.drain(..leading);
    tokens
}

fn pipe(tokens: &[Token]) -> Result<Pipe, String> {
    pipe_at(tokens, 0)
}

fn pipe_at(tokens: &[Token], depth: usize) -> Result<Pipe, String> {
    if depth > DEPTH_MAX {
        return Err("parentheses are nested too deeply".to_owned());
    }
    let (variables, assigns, rest) = declarations(tokens)?;
    let mut commands = Vec::new();
    for command in split_at_bars(rest) {
        let operands = operands(command, depth)?;
        if operands.is_empty() {
            return Err("missing value for command".to_owned());
        }
        commands.push(operands);
    }
    Ok(Pipe { variables, assigns, commands })
}

/// The variables before `:=` or `=`, and what follows.
fn declarations(tokens: &[Token]) -> Result<(Vec<String>, bool, &[Token]), String> {
    let Some(at) = tokens.iter().position(|token| matches!(token, Token::Declare | Token::Assign)) else {
        return Ok((Vec::new(), false, tokens));
    };
    let mut variables = Vec::new();
    for token in &tokens[..at] {
        match token {
            Token::Variable(name) => variables.push(name.clone()),
            Token::Space | Token::Mark(',') => {}
            other => return Err(format!("unexpected {other:?} before :=")),
        }
    }
    if variables.is_empty() || variables.len() > 2 {
        return Err("a declaration has one variable, in a range two".to_owned());
    }
    Ok((variables, tokens[at] == Token::Assign, &tokens[at + 1..]))
}

fn split_at_bars(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0usize;
    tokens
        .split(|token| {
            match token {
                Token::Mark('(') => depth += 1,
                Token::Mark(')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && *token == Token::Mark('|')
        })
        .collect()
}

fn operands(tokens: &[Token], depth: usize) -> Result<Vec<Operand>, String> {
    let mut operands: Vec<Operand> = Vec::new();
    let mut at = 0;
    // Whether a `.Name` continues the operand before it.
    let mut joined = false;
    while at < tokens.len() {
        let token = &tokens[at];
        at += 1;
        if *token == Token::Space {
            joined = false;
            continue;
        }
        if let (Token::Field(name), true) = (token, joined) {
            extend(operands.last_mut(), name)?;
            continue;
        }
        let (operand, taken) = operand(token, &tokens[at..], depth)?;
        operands.push(operand);
        at += taken;
        joined = true;
    }
    Ok(operands)
}

fn operand(token: &Token, rest: &[Token], depth: usize) -> Result<(Operand, usize), String> {
    let plain = match token {
        Token::Dot => Operand::Field(Vec::new()),
        Token::Field(name) => Operand::Field(vec![name.clone()]),
        Token::Variable(name) => Operand::Variable(name.clone(), Vec::new()),
        Token::Text(text) => Operand::Text(text.clone()),
        Token::Int(number) => Operand::Int(*number),
        Token::Float(number) => Operand::Float(*number),
        Token::Word(word) => constant_or_function(word)?,
        Token::Mark('(') => {
            let end = closing(rest).ok_or("unclosed left parenthesis")?;
            return Ok((Operand::Paren(pipe_at(&rest[..end], depth + 1)?, Vec::new()), end + 1));
        }
        other => return Err(format!("unexpected {other:?} in command")),
    };
    Ok((plain, 0))
}

fn constant_or_function(word: &str) -> Result<Operand, String> {
    match word {
        "true" => Ok(Operand::Bool(true)),
        "false" => Ok(Operand::Bool(false)),
        "nil" => Ok(Operand::Nil),
        _ if functions::exists(word) => Ok(Operand::Function(word.to_owned())),
        "html" | "js" | "urlquery" | "call" => Err(format!("function \"{word}\" is not supported")),
        _ => Err(format!("function \"{word}\" not defined")),
    }
}

/// Where the parenthesis before `tokens` closes.
fn closing(tokens: &[Token]) -> Option<usize> {
    let mut depth = 1;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Mark('(') => depth += 1,
            Token::Mark(')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn extend(operand: Option<&mut Operand>, name: &str) -> Result<(), String> {
    match operand {
        Some(Operand::Field(chain) | Operand::Variable(_, chain) | Operand::Paren(_, chain)) => {
            chain.push(name.to_owned());
            Ok(())
        }
        _ => Err(format!("unexpected .{name} after a word that has no fields")),
    }
}
