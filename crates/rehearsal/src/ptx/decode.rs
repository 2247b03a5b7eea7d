//! A kernel's text to steps whose operands are numbered slots.

use std::collections::HashMap;

use super::{
    machine::Warp,
    steps,
    text::{self, Module, Source},
};
use crate::failure::{INVALID_PTX, Outcome, fail};

/// What computes.
pub type Compute = Box<dyn Fn(&mut Warp<'_>) + Send + Sync>;
/// What touches memory, or may fail in another way.
pub type Access = Box<dyn Fn(&mut Warp<'_>) -> Outcome + Send + Sync>;

/// What a step does.
pub enum Action {
    Compute(Compute),
    Access(Access),
    Branch(usize),
    /// To one of the steps, by the number in a slot.
    Table(usize, Vec<usize>),
    Exit,
    /// Once all lanes are there that the mask in a slot names.
    Meet(usize, Access),
    Barrier,
    Fail(u32, String),
}

/// One instruction, with the predicate (and whether it is negated) under which lanes take it.
pub struct Step {
    pub guard: Option<(usize, bool)>,
    pub action: Action,
    pub text: Box<str>,
}

/// A special register; numbers are axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    Warp,
    Warps,
    /// The masks of lanes: lt, le, eq, gt, ge.
    Before,
    UpTo,
    This,
    After,
    From,
    DynamicShared,
    Zero,
}

/// A kernel, ready to run.
pub struct Kernel {
    pub name: String,
    pub code: Vec<Step>,
    pub slots: usize,
    pub constants: Vec<(usize, u64)>,
    pub specials: Vec<(usize, Special)>,
    /// Bytes of shared memory of its own.
    pub shared: usize,
    /// Bytes of local memory of each thread.
    pub local: usize,
    /// Offset and bytes of each parameter.
    pub parameters: Vec<(usize, usize)>,
    pub most_threads: u64,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({}, {} steps, {} slots)", self.name, self.code.len(), self.slots)
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Name {
    /// A slot, and the bits of its numbers; 1 for a predicate.
    Register(usize, usize),
    /// Registers that differ in a number behind the name.
    Family(usize),
    Shared(u64),
    Local(u64),
    Parameter(u64),
}

/// Where an address begins, and what is added.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub slot: usize,
    /// The bits of the base that count.
    pub mask: u64,
    pub offset: u64,
    /// Whether a parameter of a function lies in local memory.
    pub passed: bool,
}

/// What is known while a kernel's text is read.
pub struct Builder<'a> {
    module: &'a Module,
    code: Vec<Step>,
    slots: usize,
    constants: Vec<(usize, u64)>,
    by_value: HashMap<u64, usize>,
    specials: Vec<(usize, Special)>,
    scopes: Vec<HashMap<String, Name>>,
    /// The first scope of the function that is being read.
    floor: usize,
    labels: HashMap<(usize, String), usize>,
    tables: HashMap<(usize, String), Vec<String>>,
    jumps: Vec<(usize, usize, Vec<String>)>,
    shared: usize,
    module_shared: HashMap<String, u64>,
    /// The slot for the address of what a launch adds to shared memory, and its alignment.
    dynamic: Option<(usize, usize)>,
    local: usize,
    instance: usize,
    instances: usize,
    depth: usize,
    carry: Option<usize>,
}

enum Token<'a> {
    Open,
    Close,
    Label(&'a str),
    Statement(&'a str),
}

fn tokens(body: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut start, mut depth, mut label) = (0, 0usize, false);
    for (at, c) in body.char_indices() {
        let so_far = body[start..at].trim();
        match c {
            '{' if so_far.is_empty() => {
                tokens.push(Token::Open);
                start = at + 1;
            }
            '}' if so_far.is_empty() => {
                tokens.push(Token::Close);
                start = at + 1;
            }
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ';' if depth == 0 => {
                tokens.push(Token::Statement(so_far));
                (start, label) = (at + 1, false);
            }
            ':' if !label
                && !so_far.is_empty()
                && !so_far.contains(char::is_whitespace)
                && !body[at + 1..].starts_with(':') =>
            {
                tokens.push(Token::Label(so_far));
                start = at + 1;
            }
            '\n' if so_far.starts_with(".loc") || so_far.starts_with(".file") => start = at + 1,
            _ => label = label || c == '.' && !so_far.is_empty() && so_far.ends_with(':'),
        }
    }
    tokens
}

/// Splits at commas that no bracket encloses.
pub fn split(operands: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, c) in operands.char_indices() {
        match c {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(operands[start..at].trim());
                start = at + 1;
            }
            _ => (),
        }
    }
    if !operands[start..].trim().is_empty() {
        parts.push(operands[start..].trim());
    }
    parts
}

impl Kernel {
    /// Reads the text of a kernel.
    pub fn decode(module: &Module, name: &str, source: &Source) -> Outcome<Self> {
        let mut builder = Builder {
            module,
            code: Vec::new(),
            slots: 0,
            constants: Vec::new(),
            by_value: HashMap::new(),
            specials: Vec::new(),
            scopes: vec![HashMap::new()],
            floor: 0,
            labels: HashMap::new(),
            tables: HashMap::new(),
            jumps: Vec::new(),
            shared: 0,
            module_shared: HashMap::new(),
            dynamic: None,
            local: 0,
            instance: 0,
            instances: 1,
            depth: 0,
            carry: None,
        };
        let mut parameters = Vec::new();
        let mut end = 0usize;
        for parameter in &source.parameters {
            let offset = end.next_multiple_of(parameter.align);
            builder.scopes[0].insert(parameter.name.clone(), Name::Parameter(offset as u64));
            parameters.push((offset, parameter.bytes));
            end = offset + parameter.bytes;
        }
        if let Err(message) = builder.body(&source.body, None).and_then(|()| builder.finish()) {
            return fail(INVALID_PTX, message);
        }
        let Builder { code, slots, constants, specials, shared, local, .. } = builder;
        let most_threads = source.most_threads;
        let local = local.next_multiple_of(16);
        Ok(Self { name: name.to_owned(), code, slots, constants, specials, shared, local, parameters, most_threads })
    }
}

impl Builder<'_> {
    fn body(&mut self, body: &str, end: Option<&str>) -> Result<(), String> {
        let bottom = self.scopes.len();
        self.scopes.push(HashMap::new());
        let mut label = "";
        for token in tokens(body) {
            match token {
                Token::Open => self.scopes.push(HashMap::new()),
                Token::Close => {
                    self.scopes.pop();
                    if self.scopes.len() <= bottom {
                        return Err("a brace closes that was not opened".to_owned());
                    }
                }
                Token::Label(name) => {
                    label = name;
                    self.labels.insert((self.instance, name.to_owned()), self.code.len());
                }
                Token::Statement(text) => {
                    if let Some(list) = text.strip_prefix(".branchtargets") {
                        let targets = split(list).into_iter().map(str::to_owned).collect();
                        self.tables.insert((self.instance, label.to_owned()), targets);
                    } else if text.starts_with('.') {
                        self.declare(text)?;
                    } else if !text.is_empty() {
                        self.instruction(text, end).map_err(|message| format!("`{}`: {message}", one_line(text)))?;
                    }
                }
            }
        }
        self.scopes.truncate(bottom);
        match end {
            Some(end) => _ = self.labels.insert((self.instance, end.to_owned()), self.code.len()),
            None => self.code.push(Step { guard: None, action: Action::Exit, text: "the end".into() }),
        }
        Ok(())
    }

    fn name(&mut self, name: &str, meaning: Name) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), meaning);
        }
    }

    fn declare(&mut self, text: &str) -> Result<(), String> {
        if let Some(rest) = text.strip_prefix(".reg") {
            let rest = rest.trim_start();
            let (kind, names) = rest.split_once(char::is_whitespace).ok_or("no register is named")?;
            let kind = kind.trim_start_matches('.');
            let bits = match kind {
                "pred" => 1,
                kind => 8 * text::size_of(kind).ok_or_else(|| format!("the type {kind} is not known"))?,
            };
            for name in split(names) {
                match name.split_once('<') {
                    Some((family, _)) => self.name(family, Name::Family(bits)),
                    None => {
                        let slot = self.new_slot();
                        self.name(name, Name::Register(slot, bits));
                    }
                }
            }
            return Ok(());
        }
        if text.starts_with(".pragma") {
            return Ok(());
        }
        let (variable, _) = text::declaration(text).map_err(|failure| failure.message)?;
        let space = text.split_whitespace().next().unwrap_or_default();
        let meaning = match space {
            ".shared" => Name::Shared(place(&mut self.shared, &variable)),
            ".local" | ".param" => Name::Local(place(&mut self.local, &variable)),
            _ => return Err(format!("`{}` is not supported in a function", one_line(text))),
        };
        self.name(&variable.name, meaning);
        Ok(())
    }

    fn instruction(&mut self, text: &str, end: Option<&str>) -> Result<(), String> {
        let (guard, rest) = match text.strip_prefix('@') {
            Some(rest) => {
                let (predicate, rest) = rest.split_once(char::is_whitespace).ok_or("nothing follows the predicate")?;
                let (negated, name) = predicate.strip_prefix('!').map_or((false, predicate), |name| (true, name));
                (Some((self.predicate(name)?, negated)), rest.trim())
            }
            None => (None, text),
        };
        let (op, operands) = rest.split_once(|c: char| c.is_whitespace() || c == '{').unwrap_or((rest, ""));
        let operands = if rest[op.len()..].starts_with('{') { &rest[op.len()..] } else { operands };
        let operands = split(operands);
        let name = op.split('.').next().unwrap_or_default();
        let action = match (name, &operands[..]) {
            ("call", _) => {
                if guard.is_some() {
                    return Err("a call under a predicate is not supported".to_owned());
                }
                return self.call(&operands, text);
            }
            ("ret", _) if end.is_some() => {
                let end = end.unwrap_or_default().to_owned();
                self.jumps.push((self.code.len(), self.instance, vec![end]));
                Action::Branch(usize::MAX)
            }
            ("ret" | "exit", _) => Action::Exit,
            ("bra", [label]) => {
                self.jumps.push((self.code.len(), self.instance, vec![(*label).to_owned()]));
                Action::Branch(usize::MAX)
            }
            ("brx", [index, table]) => {
                let slot = self.read(index, "u32")?;
                let targets = self.tables.get(&(self.instance, (*table).to_owned())).cloned();
                self.jumps.push((self.code.len(), self.instance, targets.unwrap_or_else(|| vec![(*table).to_owned()])));
                Action::Table(slot, Vec::new())
            }
            _ => match steps::action(self, op, &operands)? {
                Some(action) => action,
                None => return Ok(()),
            },
        };
        self.code.push(Step { guard, action, text: one_line(text).into() });
        Ok(())
    }

    /// Puts a function's steps where it is called; its parameters are the caller's.
    fn call(&mut self, operands: &[&str], text: &str) -> Result<(), String> {
        let list = |text: &str| {
            split(text.trim_start_matches('(').trim_end_matches(')')).into_iter().map(str::to_owned).collect()
        };
        let (results, name, arguments): (Vec<String>, &str, Vec<String>) = match operands {
            [results, name, arguments] if results.starts_with('(') => (list(results), name, list(arguments)),
            [results, name] if results.starts_with('(') => (list(results), name, Vec::new()),
            [name, arguments] => (Vec::new(), name, list(arguments)),
            [name] => (Vec::new(), name, Vec::new()),
            _ => return Err("a call of this form is not supported".to_owned()),
        };
        let text: Box<str> = one_line(text).into();
        if name == "__assertfail" {
            let action = Action::Fail(crate::failure::ASSERT, "an assertion of the kernel does not hold".to_owned());
            self.code.push(Step { guard: None, action, text });
            return Ok(());
        }
        if name == "vprintf" {
            return Ok(());
        }
        let Some(source) = self.module.functions.get(name) else {
            return Err(format!("the function {name} has no body here"));
        };
        if self.depth == 16 {
            return Err("functions call each other too deep".to_owned());
        }
        let formals = source.parameters.iter().chain(&source.results);
        let actuals: Vec<&String> = arguments.iter().chain(&results).collect();
        if formals.clone().count() != actuals.len() {
            return Err(format!("{name} takes another number of parameters"));
        }
        let mut scope = HashMap::new();
        for (formal, actual) in formals.zip(actuals) {
            match self.find(actual) {
                Some(place @ Name::Local(_)) => scope.insert(formal.name.clone(), place),
                _ => return Err(format!("the argument {actual} is no parameter of the caller's")),
            };
        }
        let kept = (self.floor, self.instance);
        (self.floor, self.instance) = (self.scopes.len(), self.instances);
        self.instances += 1;
        self.depth += 1;
        self.scopes.push(scope);
        let body = source.body.clone();
        let done = self.body(&body, Some("$end$"));
        self.scopes.truncate(self.floor);
        self.depth -= 1;
        (self.floor, self.instance) = kept;
        done
    }

    fn finish(&mut self) -> Result<(), String> {
        for (step, instance, labels) in std::mem::take(&mut self.jumps) {
            let mut to = Vec::new();
            for label in labels {
                // A table may come behind the branch.
                let names = self.tables.get(&(instance, label.clone())).cloned().unwrap_or_else(|| vec![label]);
                for name in names {
                    let found = self.labels.get(&(instance, name.clone()));
                    to.push(*found.ok_or_else(|| format!("there is no label {name}"))?);
                }
            }
            match (&mut self.code[step].action, &to[..]) {
                (Action::Branch(target), [to]) => *target = *to,
                (Action::Table(_, targets), _) => *targets = to,
                _ => return Err("a branch has several targets".to_owned()),
            }
        }
        if let Some((slot, align)) = self.dynamic {
            self.shared = self.shared.next_multiple_of(align);
            self.constants.push((slot, self.shared as u64));
        }
        Ok(())
    }

    fn new_slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    fn find(&self, name: &str) -> Option<Name> {
        self.scopes[self.floor..].iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    /// The slot of a register and its bits.
    fn register(&mut self, name: &str) -> Option<(usize, usize)> {
        if let Some(Name::Register(slot, bits)) = self.find(name) {
            return Some((slot, bits));
        }
        let family = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let (place, bits) = (self.floor..self.scopes.len()).rev().find_map(|i| match self.scopes[i].get(family) {
            Some(Name::Family(bits)) => Some((i, *bits)),
            _ => None,
        })?;
        let slot = self.new_slot();
        self.scopes[place].insert(name.to_owned(), Name::Register(slot, bits));
        Some((slot, bits))
    }

    /// A slot that holds the same in all lanes.
    pub fn constant(&mut self, value: u64) -> usize {
        if let Some(&slot) = self.by_value.get(&value) {
            return slot;
        }
        let slot = self.new_slot();
        self.by_value.insert(value, slot);
        self.constants.push((slot, value));
        slot
    }

    /// The predicate that carries from one addition to the next.
    pub fn carry(&mut self) -> usize {
        match self.carry {
            Some(slot) => slot,
            None => {
                let slot = self.new_slot();
                *self.carry.insert(slot)
            }
        }
    }

    pub fn predicate(&mut self, name: &str) -> Result<usize, String> {
        match self.register(name) {
            Some((slot, 1)) => Ok(slot),
            _ => match text::number(name, "b32") {
                Some(value) => Ok(self.constant(if value == 0 { 0 } else { u32::MAX.into() })),
                None => Err(format!("{name} is no predicate")),
            },
        }
    }

    /// The slot to write a number of a type to; `_` is one that nobody reads.
    pub fn write(&mut self, name: &str, kind: &str) -> Result<usize, String> {
        if name == "_" {
            return Ok(self.new_slot());
        }
        let bits = 8 * text::size_of(kind).ok_or_else(|| format!("the type {kind} is not known"))?;
        match self.register(name) {
            // Loads and conversions may write to a wider register.
            Some((slot, width)) if width >= bits || kind == "pred" && width == 1 => Ok(slot),
            Some((_, width)) => Err(format!("{name} has {width} bits")),
            None => Err(format!("{name} is no register")),
        }
    }

    /// The slot to read a number of a type from.
    pub fn read(&mut self, text: &str, kind: &str) -> Result<usize, String> {
        if let Some((slot, width)) = self.register(text) {
            let bits = 8 * text::size_of(kind).unwrap_or(8);
            return if width >= bits { Ok(slot) } else { Err(format!("{text} has {width} bits")) };
        }
        if let Some(special) = special(text) {
            return Ok(self.special(special));
        }
        if let Some(value) = text::number(text, kind) {
            return Ok(self.constant(value));
        }
        if text == "WARP_SZ" {
            return Ok(self.constant(32));
        }
        self.symbol(text).map(|(slot, _)| slot)
    }

    fn special(&mut self, special: Special) -> usize {
        if let Some((slot, _)) = self.specials.iter().find(|(_, known)| *known == special) {
            return *slot;
        }
        let slot = self.new_slot();
        self.specials.push((slot, special));
        slot
    }

    /// The slot with a variable's address in its space, and whether that is a parameter passed in local memory.
    fn symbol(&mut self, name: &str) -> Result<(usize, bool), String> {
        match self.find(name) {
            Some(Name::Shared(at) | Name::Parameter(at)) => return Ok((self.constant(at), false)),
            Some(Name::Local(at)) => return Ok((self.constant(at), true)),
            _ => (),
        }
        let module = self.module;
        if let Some((address, _)) = module.globals.get(name) {
            return Ok((self.constant(*address), false));
        }
        let Some(variable) = module.shared.get(name) else { return Err(format!("{name} is not known")) };
        if variable.bytes == 0 {
            let slot = match self.dynamic {
                Some((slot, _)) => slot,
                None => self.new_slot(),
            };
            let align = self.dynamic.map_or(1, |(_, align)| align).max(variable.align);
            self.dynamic = Some((slot, align));
            return Ok((slot, false));
        }
        let at = match self.module_shared.get(name) {
            Some(&at) => at,
            None => {
                let at = place(&mut self.shared, variable);
                self.module_shared.insert(name.to_owned(), at);
                at
            }
        };
        Ok((self.constant(at), false))
    }

    /// `[BASE]`, `[BASE+NUMBER]` or `[NUMBER]`.
    pub fn address(&mut self, text: &str) -> Result<Address, String> {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).ok_or("no address")?.trim();
        let (base, offset) = match inner.find(['+']).or_else(|| inner.rfind('-').filter(|&at| at > 0)) {
            Some(at) => (inner[..at].trim(), inner[at..].trim_start_matches('+').trim()),
            None => (inner, "0"),
        };
        let offset = text::number(offset, "b64").ok_or_else(|| format!("{offset} is no number"))?;
        if let Some((slot, bits)) = self.register(base) {
            let mask = if bits == 64 { u64::MAX } else { u32::MAX.into() };
            return Ok(Address { slot, mask, offset, passed: false });
        }
        let (slot, passed) = match text::number(base, "b64") {
            Some(value) => (self.constant(value), false),
            None => self.symbol(base)?,
        };
        Ok(Address { slot, mask: u64::MAX, offset, passed })
    }
}

/// Makes room for a variable.
fn place(bytes: &mut usize, variable: &text::Variable) -> u64 {
    let at = bytes.next_multiple_of(variable.align);
    *bytes = at + variable.bytes;
    at as u64
}

fn special(name: &str) -> Option<Special> {
    let axis = |rest: &str| ["x", "y", "z"].iter().position(|axis| *axis == rest);
    Some(match name.strip_prefix('%')? {
        "laneid" => Special::Lane,
        "warpid" => Special::Warp,
        "nwarpid" => Special::Warps,
        "lanemask_lt" => Special::Before,
        "lanemask_le" => Special::UpTo,
        "lanemask_eq" => Special::This,
        "lanemask_gt" => Special::After,
        "lanemask_ge" => Special::From,
        "dynamic_smem_size" => Special::DynamicShared,
        "smid" | "clock" | "clock64" | "globaltimer" => Special::Zero,
        name => match name.split_once('.')? {
            ("tid", rest) => Special::Thread(axis(rest)?),
            ("ntid", rest) => Special::Threads(axis(rest)?),
            ("ctaid", rest) => Special::Block(axis(rest)?),
            ("nctaid", rest) => Special::Blocks(axis(rest)?),
            _ => return None,
        },
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
