//! The outer structure of a PTX text: its variables, its kernels and its functions.

use std::collections::HashMap;

use super::decode::Kernel;
use crate::{
    failure::{INVALID_PTX, NOT_FOUND, Outcome, fail},
    memory,
};

/// A parameter of a kernel or function, or a variable: a name and where it lies in its space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    pub bytes: usize,
    pub align: usize,
}

/// A kernel or function whose body is not looked at before it is asked for.
#[derive(Clone, Debug)]
pub struct Source {
    pub parameters: Vec<Variable>,
    pub results: Vec<Variable>,
    pub body: String,
    /// Threads of a block, at most.
    pub most_threads: u64,
}

/// A loaded module.
#[derive(Debug, Default)]
pub struct Module {
    pub kernels: HashMap<String, Source>,
    pub functions: HashMap<String, Source>,
    /// Addresses and bytes of the variables in global and constant memory.
    pub globals: HashMap<String, (u64, usize)>,
    /// Variables in shared memory; of no bytes where the launch says how many.
    pub shared: HashMap<String, Variable>,
}

impl Drop for Module {
    fn drop(&mut self) {
        for (address, _) in self.globals.values() {
            let _ = memory::free(*address);
        }
    }
}

impl Module {
    /// Reads a text; bodies are read when their kernels are asked for.
    pub fn load(text: &str) -> Outcome<Self> {
        let mut module = Self::default();
        for item in items(&without_comments(text)) {
            let (head, body) = (item.head.trim(), item.body);
            if head.contains(".entry ") {
                let (name, source) = signature(head, ".entry ", body.unwrap_or_default())?;
                module.kernels.insert(name, source);
            } else if head.contains(".func ") {
                // A declaration says nothing that the definition does not.
                if let Some(body) = body {
                    let (name, source) = signature(head, ".func ", body)?;
                    module.functions.insert(name, source);
                }
            } else if let Some((space, variable, values)) = variable(head)? {
                match space {
                    ".shared" => _ = module.shared.insert(variable.name.clone(), variable),
                    _ => module.global(&variable, &values)?,
                }
            }
        }
        if module.kernels.is_empty() && module.functions.is_empty() && module.globals.is_empty() {
            return fail(INVALID_PTX, "the module is no PTX text, or an empty one");
        }
        Ok(module)
    }

    fn global(&mut self, variable: &Variable, values: &[u8]) -> Outcome {
        let address = memory::allocate(variable.bytes)?;
        let mut bytes = vec![0; variable.bytes];
        let given = values.len().min(bytes.len());
        bytes[..given].copy_from_slice(&values[..given]);
        // SAFETY: just allocated, with so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        self.globals.insert(variable.name.clone(), (address, variable.bytes));
        Ok(())
    }

    /// A kernel, ready to run.
    pub fn kernel(&self, name: &str) -> Outcome<Kernel> {
        match self.kernels.get(name) {
            Some(source) => {
                Kernel::decode(self, name, source).map_err(|failure| failure.within(&format!("kernel {name}")))
            }
            None => fail(NOT_FOUND, format!("the module has no kernel {name}")),
        }
    }
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
        } else {
            out.push('/');
            rest = &rest[1..];
        }
    }
    out + rest
}

struct Item<'a> {
    head: &'a str,
    body: Option<&'a str>,
}

/// The declarations and definitions at the outermost level.
fn items(text: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let (mut start, mut at) = (0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let head = &text[start..at];
        match bytes[at] {
            b'{' if head.contains('=') => at = close(text, at),
            b'{' => {
                let end = close(text, at);
                items.push(Item { head, body: Some(&text[at + 1..end]) });
                start = end + 1;
                at = end;
            }
            b';' => {
                items.push(Item { head, body: None });
                start = at + 1;
            }
            b'\n' if [".version", ".target", ".address_size"].iter().any(|word| head.trim().starts_with(word)) => {
                start = at
            }
            _ => (),
        }
        at += 1;
    }
    items
}

/// The place of the brace that closes the one at `open`.
fn close(text: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => (),
        }
    }
    text.len()
}

/// Name, parameters and results of `[.visible] .entry NAME(...)` or `.func (RESULT) NAME(...)`.
fn signature(head: &str, word: &str, body: &str) -> Outcome<(String, Source)> {
    let Some((_, mut rest)) = head.split_once(word) else { return fail(INVALID_PTX, head) };
    rest = rest.trim_start();
    let mut results = Vec::new();
    if let Some(list) = rest.strip_prefix('(') {
        let Some((list, after)) = list.split_once(')') else { return fail(INVALID_PTX, head) };
        (results, rest) = (parameters(list)?, after.trim_start());
    }
    let (name, list) = rest.split_once('(').unwrap_or((rest, ""));
    let (list, directives) = list.split_once(')').unwrap_or((list, ""));
    let threads = directives.split_once(".maxntid").map(|(_, rest)| rest.split('.').next().unwrap_or_default());
    let most_threads =
        threads.map_or(1024, |list| list.split(',').filter_map(|n| n.trim().parse::<u64>().ok()).product());
    let source = Source { parameters: parameters(list)?, results, body: body.to_owned(), most_threads };
    Ok((name.trim().to_owned(), source))
}

fn parameters(list: &str) -> Outcome<Vec<Variable>> {
    list.split(',').filter(|text| !text.trim().is_empty()).map(|text| Ok(declaration(text)?.0)).collect()
}

/// Bytes of a fundamental type.
pub fn size_of(kind: &str) -> Option<usize> {
    let bits: usize = match kind {
        "pred" => 1,
        "f16x2" | "bf16x2" | "b32" => 32,
        _ => kind.trim_start_matches(char::is_alphabetic).parse().ok()?,
    };
    kind.starts_with(['b', 'u', 's', 'f', 'p']).then_some(bits.div_ceil(8))
}

/// A variable from `.SPACE [.align N] .TYPE NAME[COUNT]...`, and its type.
pub fn declaration(text: &str) -> Outcome<(Variable, &str)> {
    let text = text.trim();
    let (mut bytes, mut align, mut kind, mut name) = (0, None, "", "");
    let mut words = text.split_whitespace().flat_map(split_dots);
    while let Some(word) = words.next() {
        match word {
            ".align" => {
                let stated = words.next().and_then(|word| word.parse().ok());
                align = if kind.is_empty() { stated } else { align };
            }
            // What a pointer points at says nothing about the pointer.
            ".ptr" => _ = words.by_ref().take_while(|word| *word != ".align").count(),
            word if word.starts_with('.') => {
                if let Some(size) = size_of(&word[1..]).filter(|_| kind.is_empty()) {
                    (bytes, kind) = (size, &word[1..]);
                }
            }
            word if word.starts_with(|c: char| c.is_ascii_digit()) => (),
            word => name = word,
        }
    }
    if kind.is_empty() || name.is_empty() {
        return fail(INVALID_PTX, format!("`{text}` declares nothing that is known"));
    }
    let (name, extents) = name.split_once('[').map_or((name, None), |(name, rest)| (name, Some(rest)));
    let mut count = 1;
    for extent in extents.unwrap_or_default().split(['[', ']']).filter(|_| extents.is_some()) {
        if !extent.is_empty() {
            count *= extent.parse::<usize>().unwrap_or(0);
        }
    }
    if extents.is_some_and(|text| text.starts_with(']')) {
        count = 0;
    }
    Ok((Variable { name: name.to_owned(), bytes: bytes * count, align: align.unwrap_or(bytes).max(1) }, kind))
}

/// `.reg.b32` is two words.
fn split_dots(word: &str) -> impl Iterator<Item = &str> {
    let dotted = word.starts_with('.');
    let mut parts = Vec::new();
    if dotted {
        let mut start = 0;
        for (at, _) in word.match_indices('.').skip(1) {
            parts.push(&word[start..at]);
            start = at;
        }
        parts.push(&word[start..]);
    } else {
        parts.push(word);
    }
    parts.into_iter()
}

/// A variable outside every function: its space, and its bytes where they are given.
fn variable(head: &str) -> Outcome<Option<(&'static str, Variable, Vec<u8>)>> {
    let words: Vec<&str> = head.split_whitespace().flat_map(split_dots).collect();
    let Some(space) = [".shared", ".global", ".const"].into_iter().find(|space| words.contains(space)) else {
        return Ok(None);
    };
    let (head, values) = head.split_once('=').unwrap_or((head, ""));
    let (variable, kind) = declaration(head)?;
    let size = size_of(kind).unwrap_or(1);
    let mut bytes = Vec::new();
    for value in values.split([',', '{', '}']).map(str::trim).filter(|value| !value.is_empty()) {
        let Some(value) = number(value, kind) else {
            return fail(
                INVALID_PTX,
                format!("the variable {} has the value `{value}`, which is not supported", variable.name),
            );
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..size]);
    }
    Ok(Some((space, variable, bytes)))
}

/// The bits of a literal, as a type has them.
pub fn number(text: &str, kind: &str) -> Option<u64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest.trim()));
    if let Some(hex) = digits.strip_prefix("0f").or_else(|| digits.strip_prefix("0F")) {
        let value = f32::from_bits(u32::from_str_radix(hex, 16).ok()?);
        let value = if negative { -value } else { value };
        return Some(if kind == "f64" { f64::from(value).to_bits() } else { value.to_bits().into() });
    }
    if let Some(hex) = digits.strip_prefix("0d").or_else(|| digits.strip_prefix("0D")) {
        let value = f64::from_bits(u64::from_str_radix(hex, 16).ok()?);
        let value = if negative { -value } else { value };
        return Some(if kind == "f32" { (value as f32).to_bits().into() } else { value.to_bits() });
    }
    if digits.contains('.') {
        let value: f64 = digits.parse().ok()?;
        let value = if negative { -value } else { value };
        return Some(if kind == "f32" { (value as f32).to_bits().into() } else { value.to_bits() });
    }
    let digits = digits.trim_end_matches('U');
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}
