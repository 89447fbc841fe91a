//! The wire format of D-Bus, as far as calls of systemd need it: values of the type system, messages, and nothing of
//! other byte orders, since both ends are on one machine.
//!
//! <https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol>

/// Longest message that is read: systemd's answers here are short.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Length of a message's part that says how long the rest is.
pub const HEAD: usize = 16;

const PROTOCOL: u8 = 1;
const LITTLE_ENDIAN: u8 = b'l';

/// A value; its signature follows from it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(String),
    ObjectPath(String),
    Signature(String),
    /// The signature of the elements, and the elements.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    /// A string.
    pub fn text(text: impl Into<String>) -> Value {
        Value::Str(text.into())
    }

    /// A list of strings.
    pub fn texts<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Value {
        Value::Array("s".to_owned(), texts.into_iter().map(Value::text).collect())
    }

    /// Bytes.
    pub fn bytes(bytes: &[u8]) -> Value {
        Value::Array("y".to_owned(), bytes.iter().copied().map(Value::Byte).collect())
    }

    /// The type, as D-Bus writes it.
    pub fn signature(&self) -> String {
        match self {
            Value::Byte(_) => "y".to_owned(),
            Value::Bool(_) => "b".to_owned(),
            Value::I16(_) => "n".to_owned(),
            Value::U16(_) => "q".to_owned(),
            Value::I32(_) => "i".to_owned(),
            Value::U32(_) => "u".to_owned(),
            Value::I64(_) => "x".to_owned(),
            Value::U64(_) => "t".to_owned(),
            Value::F64(_) => "d".to_owned(),
            Value::Str(_) => "s".to_owned(),
            Value::ObjectPath(_) => "o".to_owned(),
            Value::Signature(_) => "g".to_owned(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(fields) => format!("({})", fields.iter().map(Value::signature).collect::<String>()),
            Value::Variant(_) => "v".to_owned(),
        }
    }
}

/// Writes values one behind the other, each at its alignment.
#[derive(Debug, Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, bytes: &[u8]) {
        self.align(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.number(&(text.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(number) => self.bytes.push(*number),
            Value::Bool(is) => self.number(&u32::from(*is).to_le_bytes()),
            Value::I16(number) => self.number(&number.to_le_bytes()),
            Value::U16(number) => self.number(&number.to_le_bytes()),
            Value::I32(number) => self.number(&number.to_le_bytes()),
            Value::U32(number) => self.number(&number.to_le_bytes()),
            Value::I64(number) => self.number(&number.to_le_bytes()),
            Value::U64(number) => self.number(&number.to_le_bytes()),
            Value::F64(number) => self.number(&number.to_le_bytes()),
            Value::Str(text) | Value::ObjectPath(text) => self.text(text),
            Value::Signature(signature) => self.signature(signature),
            Value::Array(element, items) => self.array(element, items),
            Value::Struct(fields) => {
                self.align(8);
                fields.iter().for_each(|field| self.value(field));
            }
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.value(value);
            }
        }
    }

    /// The length counts from the first element on: the padding before it is not part of it.
    fn array(&mut self, element: &str, items: &[Value]) {
        self.number(&0_u32.to_le_bytes());
        let length_at = self.bytes.len() - 4;
        self.align(alignment(element));
        let begin = self.bytes.len();
        items.iter().for_each(|item| self.value(item));
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// A method call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

impl Call<'_> {
    /// The call as one message.
    pub fn to_bytes(self, serial: u32, arguments: &[Value]) -> Vec<u8> {
        const METHOD_CALL: u8 = 1;
        let mut body = Writer::default();
        arguments.iter().for_each(|argument| body.value(argument));
        let signature: String = arguments.iter().map(Value::signature).collect();
        let field = |code: u8, value: Value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
        let mut fields = vec![
            field(1, Value::ObjectPath(self.path.to_owned())),
            field(2, Value::text(self.interface)),
            field(3, Value::text(self.member)),
            field(6, Value::text(self.destination)),
        ];
        if !signature.is_empty() {
            fields.push(field(8, Value::Signature(signature)));
        }
        let mut message = Writer { bytes: vec![LITTLE_ENDIAN, METHOD_CALL, 0, PROTOCOL] };
        message.value(&Value::U32(body.bytes.len() as u32));
        message.value(&Value::U32(serial));
        message.array("(yv)", &fields);
        message.align(8);
        message.bytes.extend_from_slice(&body.bytes);
        message.bytes
    }
}

/// An answer to a call, as systemd would give it.
#[cfg(test)]
pub(super) fn returned(reply_serial: u32, arguments: &[Value]) -> Vec<u8> {
    let field = |code: u8, value: Value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
    let signature = arguments.iter().map(Value::signature).collect();
    let mut body = Writer::default();
    arguments.iter().for_each(|argument| body.value(argument));
    let mut message = Writer { bytes: vec![LITTLE_ENDIAN, 2, 0, PROTOCOL] };
    message.value(&Value::U32(body.bytes.len() as u32));
    message.value(&Value::U32(1));
    message.array("(yv)", &[field(5, Value::U32(reply_serial)), field(8, Value::Signature(signature))]);
    message.align(8);
    message.bytes.extend_from_slice(&body.bytes);
    message.bytes
}

/// What kind of message was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Return,
    Error,
    Signal,
    Other,
}

/// A message that was read.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: Kind,
    /// Of the call that is answered.
    pub reply_serial: u32,
    /// A signal's.
    pub member: String,
    /// An error's.
    pub error_name: String,
    signature: String,
    body: Vec<u8>,
}

/// How long the message is that begins with these bytes; `None` if it is none, or too long.
pub fn message_length(head: &[u8; HEAD]) -> Option<usize> {
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    if head[0] != LITTLE_ENDIAN || head[3] != PROTOCOL {
        return None;
    }
    let (body, fields) = (number(4), number(12));
    let is_small = body <= MESSAGE_MAX && fields <= MESSAGE_MAX;
    is_small.then(|| (HEAD + fields).next_multiple_of(8) + body)
}

impl Message {
    /// Reads a whole message; `None` if it is damaged.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let mut head = Reader { bytes, at: 12 };
        let end = head.u32()? as usize + HEAD;
        let kind = match bytes.get(1)? {
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Other,
        };
        let mut message = Message {
            kind,
            reply_serial: 0,
            member: String::new(),
            error_name: String::new(),
            signature: String::new(),
            body: bytes.get(end.next_multiple_of(8)..)?.to_vec(),
        };
        while head.at < end {
            head.align(8);
            message.field(&mut head)?;
        }
        Some(message)
    }

    fn field(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => self.member = reader.text()?,
            (4, "s") => self.error_name = reader.text()?,
            (5, "u") => self.reply_serial = reader.u32()?,
            (8, "g") => self.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
        Some(())
    }

    /// The strings of the body, object paths among them; numbers before and between them are passed over. What follows
    /// a type that is none of these is left out.
    pub fn texts(&self) -> Vec<String> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for letter in self.signature.chars() {
            let read = match letter {
                's' | 'o' => reader.text(),
                'u' | 'i' | 'b' => reader.u32().map(|_| String::new()),
                // A property's value, which the callers here want as text.
                'v' => reader.signature().filter(|inner| inner == "s").and_then(|_| reader.text()),
                _ => None,
            };
            let Some(text) = read else { break };
            if letter != 'u' && letter != 'i' && letter != 'b' {
                texts.push(text);
            }
        }
        texts
    }
}

/// Reads values one behind the other; `None` at the end or at nonsense.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let text = self.take(length.checked_add(1)?)?[..length].to_vec();
        String::from_utf8(text).ok()
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        let text = self.take(length + 1)?[..length].to_vec();
        String::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: &Value) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.value(value);
        writer.bytes
    }

    #[test]
    fn values_stand_at_their_alignment() {
        assert_eq!(written(&Value::text("ab")), [2, 0, 0, 0, b'a', b'b', 0]);
        let variant = Value::Variant(Box::new(Value::U64(1)));
        assert_eq!(written(&variant), [1, b't', 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        // The padding before the first element does not count in the length.
        let list = Value::Array("t".to_owned(), vec![Value::U64(7)]);
        assert_eq!(written(&list), [8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(written(&Value::Array("(ss)".to_owned(), vec![])), [0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn signatures_follow_from_values() {
        let property = Value::Struct(vec![Value::text("PIDs"), Value::Variant(Box::new(Value::bytes(b"x")))]);
        assert_eq!(property.signature(), "(sv)");
        assert_eq!(Value::Array("(sv)".to_owned(), vec![property]).signature(), "a(sv)");
    }

    #[test]
    fn a_message_that_was_written_is_read() {
        let call = Call { destination: "d.e", path: "/p", interface: "i.f", member: "Member" };
        let bytes = call.to_bytes(9, &[Value::U32(1), Value::ObjectPath("/job/1".to_owned()), Value::text("unit")]);
        let head: [u8; HEAD] = bytes[..HEAD].try_into().unwrap();
        assert_eq!(message_length(&head), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Other, "Member"));
        assert_eq!(message.texts(), ["/job/1", "unit"]);
    }

    #[test]
    fn damaged_messages_are_no_messages() {
        let call = Call { destination: "d.e", path: "/p", interface: "i.f", member: "Member" };
        let bytes = call.to_bytes(9, &[Value::text("unit")]);
        for length in 0..bytes.len() {
            // What is cut off is never read as something else, and never a panic.
            if let Some(message) = Message::parse(&bytes[..length]) {
                assert!(message.texts().is_empty());
            }
        }
        assert_eq!(message_length(&[b'B'; HEAD]), None);
        let mut long = [0xff; HEAD];
        (long[0], long[3]) = (LITTLE_ENDIAN, PROTOCOL);
        assert_eq!(message_length(&long), None);
    }
}
