//! A template applied to a value.

use super::super::value::Value;
use super::functions;
use super::parse::{Node, Operand, Pipe};

/// What a template is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Rows,
    /// Rows whose maps have other keys each: one that is not there is no error (Go's `missingkey=default`).
    Events,
    /// The names of columns, which functions do not change.
    Headings,
}

/// The text that `nodes` make of `data`.
pub(super) fn apply(nodes: &[Node], data: &Value, mode: Mode) -> Result<String, String> {
    let mut evaluation = Evaluation { text: String::new(), variables: vec![("$".to_owned(), data.clone())], mode };
    evaluation.nodes(nodes, data)?;
    Ok(evaluation.text)
}

/// How a body ended.
enum Flow {
    Through,
    Break,
    Continue,
}

struct Evaluation {
    text: String,
    /// The innermost last.
    variables: Vec<(String, Value)>,
    mode: Mode,
}

impl Evaluation {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        let outer = self.variables.len();
        for node in nodes {
            match self.node(node, dot)? {
                Flow::Through => {}
                left => {
                    self.variables.truncate(outer);
                    return Ok(left);
                }
            }
        }
        self.variables.truncate(outer);
        Ok(Flow::Through)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, String> {
        match node {
            Node::Text(text) => self.text.push_str(text),
            Node::Print(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if pipe.variables.is_empty() {
                    self.text.push_str(&functions::shown(&value));
                }
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::If { condition, then, otherwise } => {
                return self.scoped(|this| {
                    let chosen = if this.pipe(condition, dot)?.is_truthy() { then } else { otherwise };
                    this.nodes(chosen, dot)
                });
            }
            Node::With { value, then, otherwise } => {
                return self.scoped(|this| {
                    let inner = this.pipe(value, dot)?;
                    if inner.is_truthy() { this.nodes(then, &inner) } else { this.nodes(otherwise, dot) }
                });
            }
            Node::Range { over, body, otherwise } => {
                return self.scoped(|this| this.range(over, body, otherwise, dot));
            }
        }
        Ok(Flow::Through)
    }

    fn scoped(&mut self, inner: impl FnOnce(&mut Self) -> Result<Flow, String>) -> Result<Flow, String> {
        let outer = self.variables.len();
        let flow = inner(self);
        self.variables.truncate(outer);
        flow
    }

    fn range(&mut self, over: &Pipe, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<Flow, String> {
        let items = items(self.commands(over, dot)?)?;
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            let outer = self.variables.len();
            match over.variables.as_slice() {
                [value] => self.set(value, item.clone(), over.assigns)?,
                [index, value] => {
                    self.set(index, key, over.assigns)?;
                    self.set(value, item.clone(), over.assigns)?;
                }
                _ => {}
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(outer);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        Ok(Flow::Through)
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let value = self.commands(pipe, dot)?;
        if let [name] = pipe.variables.as_slice() {
            self.set(name, value.clone(), pipe.assigns)?;
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for command in &pipe.commands {
            last = Some(self.command(command, last, dot)?);
        }
        last.ok_or_else(|| "missing value for command".to_owned())
    }

    fn set(&mut self, name: &str, value: Value, assigns: bool) -> Result<(), String> {
        if !assigns {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        known.ok_or_else(|| format!("undefined variable \"{name}\""))?.1 = value;
        Ok(())
    }

    fn command(&mut self, command: &[Operand], piped: Option<Value>, dot: &Value) -> Result<Value, String> {
        let (first, rest) = command.split_first().ok_or("missing value for command")?;
        if let Operand::Function(name) = first {
            if let Some(value) = self.short_circuit(name, rest, piped.as_ref(), dot)? {
                return Ok(value);
            }
            let mut arguments = self.operands(rest, dot)?;
            arguments.extend(piped);
            return functions::call(name, &arguments, self.mode);
        }
        let mut arguments = self.operands(rest, dot)?;
        arguments.extend(piped);
        match (self.operand(first, dot)?, arguments.as_slice()) {
            (Value::Lookup(words), [Value::Text(word)]) => {
                Ok(Value::Text(words.get(word).cloned().unwrap_or_default()))
            }
            (Value::Lookup(_), _) => Err("a label is looked up by one word: .Label \"name\"".to_owned()),
            // A heading is a word where the row has a method.
            (value, [_]) if self.mode == Mode::Headings => Ok(value),
            (value, []) => Ok(value),
            (value, _) => Err(format!("a {} takes no arguments", value.kind())),
        }
    }

    /// `and` and `or`, which do not look at what cannot matter any more.
    fn short_circuit(
        &mut self,
        name: &str,
        arguments: &[Operand],
        piped: Option<&Value>,
        dot: &Value,
    ) -> Result<Option<Value>, String> {
        let stops_at = match name {
            "and" => false,
            "or" => true,
            _ => return Ok(None),
        };
        let mut last = None;
        for argument in arguments {
            let value = self.operand(argument, dot)?;
            if value.is_truthy() == stops_at {
                return Ok(Some(value));
            }
            last = Some(value);
        }
        piped
            .cloned()
            .or(last)
            .map(Some)
            .ok_or_else(|| format!("wrong number of arguments for {name}: want at least 1"))
    }

    fn operands(&mut self, operands: &[Operand], dot: &Value) -> Result<Vec<Value>, String> {
        operands.iter().map(|operand| self.operand(operand, dot)).collect()
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        match operand {
            Operand::Nil => Ok(Value::Null),
            Operand::Bool(yes) => Ok(Value::Bool(*yes)),
            Operand::Int(number) => Ok(Value::Int(*number)),
            Operand::Float(number) => Ok(Value::Float(*number)),
            Operand::Text(text) => Ok(Value::Text(text.clone())),
            Operand::Field(chain) => self.chained(dot, chain),
            Operand::Variable(name, chain) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                self.chained(&known.ok_or_else(|| format!("undefined variable \"{name}\""))?.1, chain)
            }
            Operand::Paren(pipe, chain) => {
                let value = self.pipe(pipe, dot)?;
                self.chained(&value, chain)
            }
            Operand::Function(name) => functions::call(name, &[], self.mode),
        }
    }

    /// The value at the end of a chain of fields.
    fn chained(&self, value: &Value, chain: &[String]) -> Result<Value, String> {
        let mut value = value;
        for name in chain {
            value = match value.field(name) {
                Some(inner) => inner,
                None if self.mode == Mode::Events && matches!(value, Value::Map(_)) => return Ok(Value::Null),
                None => return Err(no_field(value, name)),
            };
        }
        Ok(value.clone())
    }
}

fn no_field(value: &Value, name: &str) -> String {
    match value {
        Value::Struct(fields) => {
            let known: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
            format!("there is no field \"{name}\" (there are {})", known.join(", "))
        }
        Value::Map(_) => format!("map has no entry for key \"{name}\""),
        other => format!("{} has no field \"{name}\"", other.kind()),
    }
}

/// What a range goes over: keys with their values.
fn items(value: Value) -> Result<Vec<(Value, Value)>, String> {
    match value {
        Value::List(items) => {
            Ok(items.into_iter().enumerate().map(|(index, item)| (Value::Int(index as i64), item)).collect())
        }
        Value::Map(entries) => Ok(entries.into_iter().map(|(key, item)| (Value::Text(key), item)).collect()),
        Value::Int(count) => Ok((0..count.min(1 << 16)).map(|index| (Value::Int(index), Value::Int(index))).collect()),
        Value::Null => Ok(Vec::new()),
        other => Err(format!("range can't iterate over a {}", other.kind())),
    }
}
