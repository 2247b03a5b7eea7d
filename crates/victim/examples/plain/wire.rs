//! The protocol `victim` 1.0 in plain Rust: messages are safetensors blobs, each behind its length.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{self, Read, Write},
    os::fd::{FromRawFd, RawFd},
};

/// A tensor: its sides, and its 32-bit elements as they are on the wire.
#[derive(Clone, Default)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub words: Vec<u32>,
}

impl Tensor {
    pub fn new(shape: &[usize], numbers: &[f32]) -> Self {
        Self { shape: shape.to_vec(), words: numbers.iter().map(|x| x.to_bits()).collect() }
    }

    pub fn numbers(&self) -> Vec<f32> {
        self.words.iter().map(|&word| f32::from_bits(word)).collect()
    }
}

/// A request or a reply: what its metadata says, and its tensors.
#[derive(Clone, Default)]
pub struct Message {
    pub facts: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Message {
    pub fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("", String::as_str)
    }

    /// A reply to this request.
    pub fn reply(&self) -> Self {
        let facts = ["op", "id"].map(|name| (name.to_owned(), self.fact(name).to_owned()));
        Self { facts: facts.into(), tensors: BTreeMap::new() }
    }

    pub fn with(mut self, name: &str, text: &str) -> Self {
        self.facts.insert(name.to_owned(), text.to_owned());
        self
    }

    pub fn tensor(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.to_owned(), tensor);
        self
    }
}

/// The two ends of the pipes that `VICTIM_FDS` names.
pub struct Pipe {
    pub input: File,
    pub output: File,
}

impl Pipe {
    pub fn open() -> Self {
        let numbers = env::var("VICTIM_FDS").expect("VICTIM_FDS names the pipes: let the product start this program");
        let mut ends = numbers.split(',').map(|number| {
            let number: RawFd = number.parse().expect("a number of an open file");
            // SAFETY: the number is ours by the protocol, and nobody else's in this program.
            unsafe { File::from_raw_fd(number) }
        });
        Self { input: ends.next().expect("requests"), output: ends.next().expect("replies") }
    }

    /// The next request; nothing at the end.
    pub fn read(&mut self) -> Option<Message> {
        let mut length = [0; 8];
        self.input.read_exact(&mut length).ok()?;
        let mut blob = vec![0; u64::from_le_bytes(length) as usize];
        self.input.read_exact(&mut blob).ok()?;
        let head = 8 + u64::from_le_bytes(blob[..8].try_into().ok()?) as usize;
        let header = Json::parse(std::str::from_utf8(&blob[8..head]).ok()?);
        let (mut message, body) = (Message::default(), &blob[head..]);
        for (name, about) in header.table() {
            if name == "__metadata__" {
                message.facts = about.table().iter().map(|(name, text)| (name.clone(), text.text())).collect();
                continue;
            }
            let about: BTreeMap<&str, &Json> = about.table().iter().map(|(key, value)| (key.as_str(), value)).collect();
            let [from, to] = about["data_offsets"].list()[..] else { return None };
            let words = body[from..to].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            message.tensors.insert(name.clone(), Tensor { shape: about["shape"].list(), words: words.collect() });
        }
        Some(message)
    }

    pub fn write(&mut self, message: &Message) -> io::Result<()> {
        let quoted = |text: &str| format!("{text:?}");
        let facts: Vec<String> = message.facts.iter().map(|(k, v)| format!("{}:{}", quoted(k), quoted(v))).collect();
        let mut header = format!("{{\"__metadata__\":{{{}}}", facts.join(","));
        let mut body = Vec::new();
        for (name, tensor) in &message.tensors {
            let from = body.len();
            body.extend(tensor.words.iter().flat_map(|word| word.to_le_bytes()));
            let (shape, to) = (&tensor.shape, body.len());
            header +=
                &format!(",{}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{from},{to}]}}", quoted(name));
        }
        header += "}";
        while header.len() % 8 > 0 {
            header.push(' ');
        }
        self.output.write_all(&((8 + header.len() + body.len()) as u64).to_le_bytes())?;
        self.output.write_all(&(header.len() as u64).to_le_bytes())?;
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(&body)
    }
}

/// As much of JSON as headers have.
enum Json {
    Text(String),
    Number(usize),
    List(Vec<Json>),
    Table(Vec<(String, Json)>),
}

impl Json {
    fn parse(text: &str) -> Self {
        Self::value(&mut text.trim().chars().peekable())
    }

    fn value(from: &mut std::iter::Peekable<std::str::Chars>) -> Self {
        let skip = |from: &mut std::iter::Peekable<std::str::Chars>| {
            while from.next_if(|c| c.is_whitespace() || ",:".contains(*c)).is_some() {}
        };
        skip(from);
        match from.next() {
            Some('"') => {
                let mut text = String::new();
                while let Some(c) = from.next().filter(|c| *c != '"') {
                    text.push(match (c, if c == '\\' { from.next() } else { None }) {
                        (_, Some('n')) => '\n',
                        (_, Some('u')) => {
                            let code: String = from.by_ref().take(4).collect();
                            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or('?')
                        }
                        (_, Some(escaped)) => escaped,
                        (c, None) => c,
                    });
                }
                Self::Text(text)
            }
            Some('[') => {
                let mut items = Vec::new();
                skip(from);
                while from.next_if_eq(&']').is_none() {
                    items.push(Self::value(from));
                    skip(from);
                }
                Self::List(items)
            }
            Some('{') => {
                let mut items = Vec::new();
                skip(from);
                while from.next_if_eq(&'}').is_none() {
                    let key = Self::value(from).text();
                    items.push((key, Self::value(from)));
                    skip(from);
                }
                Self::Table(items)
            }
            first => {
                let mut digits: String = first.into_iter().collect();
                while let Some(digit) = from.next_if(char::is_ascii_digit) {
                    digits.push(digit);
                }
                Self::Number(digits.parse().expect("a number"))
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            _ => panic!("no text"),
        }
    }

    fn list(&self) -> Vec<usize> {
        let number = |item: &Self| if let Self::Number(number) = item { *number } else { panic!("no number") };
        if let Self::List(items) = self { items.iter().map(number).collect() } else { panic!("no list") }
    }

    fn table(&self) -> &[(String, Json)] {
        if let Self::Table(items) = self { items } else { panic!("no table") }
    }
}
