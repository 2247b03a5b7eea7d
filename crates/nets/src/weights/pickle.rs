//! Pickles as data: an interpreter that builds a tree and calls nothing.
//!
//! What a pickle would have Python call stands in the tree as a name and its arguments. Every opcode makes at most one
//! item and every text is part of the file, so that memory is bounded by the file's size whatever it claims.

use std::collections::HashMap;

use super::tree::{Id, Item, Tree};

/// A pickle that has been read.
#[derive(Debug)]
pub(super) struct Pickle {
    pub tree: Tree,
    pub root: Id,
    /// How many bytes it took.
    pub len: usize,
}

/// Reads the first pickle of `bytes`, of any protocol.
///
/// # Errors
/// If it is damaged or ends early; the text says where.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine =
        Machine { bytes, at: 0, tree: Tree::default(), stack: vec![], marks: vec![], memo: HashMap::new() };
    loop {
        let start = machine.at;
        let opcode = machine.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle { tree: machine.tree, root, len: machine.at });
        }
        machine.step(opcode).map_err(|fault| format!("{fault}, at byte {start} of its pickle"))?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    tree: Tree,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// The result of one opcode.
type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    fn take(&mut self, len: u64) -> Step<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| "absurd length")?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len()).ok_or("the file ends early")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N as u64)?.try_into().map_err(|_| "the file ends early".into())
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Step<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Step<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Step<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Step<String> {
        let len = self.bytes[self.at..].iter().position(|&byte| byte == b'\n').ok_or("the file ends early")?;
        let line = String::from_utf8(self.take(len as u64)?.to_vec()).map_err(|_| "a line is no text")?;
        self.at += 1;
        Ok(line.trim_end_matches('\r').to_owned())
    }

    fn text(&mut self, len: u64) -> Step {
        let text = String::from_utf8(self.take(len)?.to_vec()).map_err(|_| "a text is no UTF-8")?;
        self.push(Item::Text(text));
        Ok(())
    }

    fn blob(&mut self, len: u64) -> Step {
        let bytes = self.take(len)?.to_vec();
        self.push(Item::Bytes(bytes));
        Ok(())
    }

    fn push(&mut self, item: Item) {
        let id = self.tree.push(item);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor { self.stack.pop() } else { None }.ok_or_else(|| "nothing on the stack".into())
    }

    fn top(&self) -> Step<Id> {
        self.stack.last().copied().ok_or_else(|| "nothing on the stack".into())
    }

    /// What lies above the last mark.
    fn marked(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn few(&mut self, count: usize) -> Step {
        let mut items = (0..count).map(|_| self.pop()).collect::<Step<Vec<Id>>>()?;
        items.reverse();
        self.push(Item::Tuple(items));
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Step {
        let id = *self.memo.get(&index).ok_or("it refers to what is not there")?;
        self.stack.push(id);
        Ok(())
    }

    fn remember(&mut self, index: u64) -> Step {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn append(&mut self, new: Vec<Id>) -> Step {
        let to = self.top()?;
        match &mut self.tree.items[to] {
            Item::List(list) | Item::Made { list, .. } => list.extend(new),
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, new: &[Id]) -> Step {
        if !new.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        let to = self.top()?;
        let pairs = new.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        match &mut self.tree.items[to] {
            Item::Dict(entries) => entries.extend(pairs),
            Item::Made { items, .. } => items.extend(pairs),
            _ => return Err("it sets keys of what is no dictionary".into()),
        }
        Ok(())
    }

    fn made(&mut self, by: Id, arguments: Id) {
        self.push(Item::Made { by, arguments, state: None, items: vec![], list: vec![] });
    }

    fn build(&mut self) -> Step {
        let given = self.pop()?;
        let to = self.top()?;
        if let Item::Made { state, .. } = &mut self.tree.items[to] {
            *state = Some(given);
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) {
        self.push(Item::Global(format!("{module}.{name}")));
    }

    /// A whole number of this many bytes, little-endian.
    fn long(&mut self, len: u64) -> Step {
        let bytes = self.take(len)?;
        let item = if bytes.len() <= 16 {
            let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
            let mut wide = [sign; 16];
            wide[..bytes.len()].copy_from_slice(bytes);
            Item::Int(i128::from_le_bytes(wide))
        } else {
            Item::None
        };
        self.push(item);
        Ok(())
    }

    fn number(&mut self) -> Step {
        let line = self.line()?;
        let item = match line.trim_end_matches('L') {
            // Protocol 0 has no opcodes for truth values.
            "00" => Item::Bool(false),
            "01" => Item::Bool(true),
            digits => digits.parse().map_or(Item::None, Item::Int),
        };
        self.push(item);
        Ok(())
    }

    fn step(&mut self, opcode: u8) -> Step {
        match opcode {
            0x80 => match self.byte()? {
                0..=5 => {}
                protocol => return Err(format!("the unknown protocol {protocol}")),
            },
            0x95 => drop(self.u64()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Item::None),
            0x88 | 0x89 => self.push(Item::Bool(opcode == 0x88)),
            b'I' | b'L' => self.number()?,
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Item::Int(number.into()));
            }
            b'K' => {
                let number = self.byte()?;
                self.push(Item::Int(number.into()));
            }
            b'M' => {
                let number = self.u16()?;
                self.push(Item::Int(number.into()));
            }
            0x8a => {
                let len = self.byte()?;
                self.long(len.into())?;
            }
            0x8b => {
                let len = self.u32()?;
                self.long(len.into())?;
            }
            b'F' => {
                let number = self.line()?.parse().map_err(|_| "a number is none")?;
                self.push(Item::Float(number));
            }
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.push(Item::Float(number));
            }
            _ => self.step_text(opcode)?,
        }
        Ok(())
    }

    /// Texts and bytes.
    fn step_text(&mut self, opcode: u8) -> Step {
        match opcode {
            b'S' => {
                let line = self.line()?;
                self.push(Item::Bytes(line.trim_matches(['\'', '"']).as_bytes().to_vec()));
                Ok(())
            }
            b'V' => {
                let line = self.line()?;
                self.push(Item::Text(line));
                Ok(())
            }
            b'T' | b'B' => {
                let len = self.u32()?;
                self.blob(len.into())
            }
            b'U' | b'C' => {
                let len = self.byte()?;
                self.blob(len.into())
            }
            0x8e | 0x96 => {
                let len = self.u64()?;
                self.blob(len)
            }
            b'X' => {
                let len = self.u32()?;
                self.text(len.into())
            }
            0x8c => {
                let len = self.byte()?;
                self.text(len.into())
            }
            0x8d => {
                let len = self.u64()?;
                self.text(len)
            }
            _ => self.step_many(opcode),
        }
    }

    /// Lists, tuples, dictionaries and the memo.
    fn step_many(&mut self, opcode: u8) -> Step {
        match opcode {
            b']' | 0x8f => self.push(Item::List(vec![])),
            b'l' | 0x91 => {
                let items = self.marked()?;
                self.push(Item::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.marked()?;
                self.append(items)?;
            }
            b')' => self.push(Item::Tuple(vec![])),
            b't' => {
                let items = self.marked()?;
                self.push(Item::Tuple(items));
            }
            0x85..=0x87 => self.few(usize::from(opcode - 0x84))?,
            b'}' => self.push(Item::Dict(vec![])),
            b'd' => {
                let items = self.marked()?;
                self.push(Item::Dict(vec![]));
                self.set(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.marked()?;
                self.set(&items)?;
            }
            b'g' => {
                let index = self.line()?.parse().map_err(|_| "a reference is none")?;
                self.recall(index)?;
            }
            b'h' => {
                let index = self.byte()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = self.u32()?;
                self.recall(index.into())?;
            }
            b'p' => {
                let index = self.line()?.parse().map_err(|_| "a reference is none")?;
                self.remember(index)?;
            }
            b'q' => {
                let index = self.byte()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = self.u32()?;
                self.remember(index.into())?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            _ => self.step_call(opcode)?,
        }
        Ok(())
    }

    /// What Python would call.
    fn step_call(&mut self, opcode: u8) -> Step {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.tree.text(module), self.tree.text(name)) else {
                    return Err("a name is no text".into());
                };
                let (module, name) = (module.to_owned(), name.to_owned());
                self.global(&module, &name);
            }
            b'R' | 0x81 => {
                let (arguments, by) = (self.pop()?, self.pop()?);
                self.made(by, arguments);
            }
            0x92 => {
                let (_, arguments, by) = (self.pop()?, self.pop()?, self.pop()?);
                self.made(by, arguments);
            }
            b'i' | b'o' => {
                if opcode == b'i' {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name);
                    let by = self.pop()?;
                    let arguments = self.marked()?;
                    let arguments = self.tree.push(Item::Tuple(arguments));
                    self.made(by, arguments);
                } else {
                    let mut arguments = self.marked()?;
                    if arguments.is_empty() {
                        return Err("it makes an object of no class".into());
                    }
                    let by = arguments.remove(0);
                    let arguments = self.tree.push(Item::Tuple(arguments));
                    self.made(by, arguments);
                }
            }
            b'b' => self.build()?,
            b'P' => {
                let line = self.line()?;
                let pid = self.tree.push(Item::Text(line));
                self.push(Item::Persistent(pid));
            }
            b'Q' => {
                let pid = self.pop()?;
                self.push(Item::Persistent(pid));
            }
            _ => return Err(format!("the unknown opcode {opcode:#04x}")),
        }
        Ok(())
    }
}
