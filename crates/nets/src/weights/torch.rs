//! Torch checkpoints of every layout since 2017: zip archives (since 1.6), and the stream of pickles and storages before.
//!
//! Nothing in a file is executed. The stream's storages are little-endian, whatever machine wrote it: PyTorch converts them
//! on writing and on reading. An archive states its order in `byteorder`.

use std::{
    collections::HashMap,
    io::{self, Cursor},
    ops::Range,
    sync::Arc,
};

use super::{
    pickle::{self, Pickle},
    stored::{Kind, Numbers, Stored},
    tree::{Id, Item, Tree},
};

/// A tensor of a file and where it is.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// The keys that lead to its dictionary, with dots.
    pub nest: String,
    /// Its name there.
    pub name: String,
    pub stored: Stored,
}

/// Everything that a file holds of interest.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub tensors: Vec<Named>,
    /// Classes of modules that were pickled as a whole.
    pub modules: Vec<String>,
}

/// PyTorch's mark of a stream.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;

/// How deep tensors are looked for.
const DEPTH: usize = 8;

/// The storages of a file by their keys.
type Storages = HashMap<String, Storage>;

#[derive(Clone, Debug)]
struct Storage {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
    big_endian: bool,
}

/// Reads a checkpoint.
///
/// # Errors
/// If it is damaged, or of a layout that cannot be read as data; the text says why, and the mend.
pub(super) fn read(bytes: Vec<u8>) -> Result<Contents, String> {
    let bytes = Arc::new(bytes);
    if bytes.starts_with(b"PK") { archive(&bytes) } else { stream(&bytes) }
}

fn archive(bytes: &Arc<Vec<u8>>) -> Result<Contents, String> {
    let whole = |cause: zip::result::ZipError| format!("not a whole zip archive ({cause}): it may have been cut short");
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes.as_slice())).map_err(whole)?;
    if zip.file_names().any(|name| name.is_ok_and(|name| name.ends_with("/constants.pkl"))) {
        let mend = "in Python, torch.save(torch.jit.load(file).state_dict(), ...)";
        return Err(format!("a TorchScript program, not a state_dict; {mend}"));
    }
    let mut entries: HashMap<String, Range<usize>> = HashMap::new();
    let mut total = 0u64;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|cause| {
            format!("its entry {index} cannot be read ({cause}); if another program has zipped it, save it again")
        })?;
        let name = entry.name().map_err(whole)?.into_owned();
        total += entry.size();
        if entry.size() != entry.compressed_size() || total > bytes.len() as u64 {
            return Err(format!("its entry `{name}` is compressed or overlaps another: save it again with torch.save"));
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok()).ok_or("an entry is nowhere")?;
        // Reading to the end compares the checksum.
        io::copy(&mut entry, &mut io::sink()).map_err(|cause| format!("its entry `{name}` is damaged ({cause})"))?;
        entries.insert(name, start..start + entry.size() as usize);
    }
    let Some(main) = entries.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).cloned() else {
        return Err("a zip archive without data.pkl: no checkpoint of PyTorch".into());
    };
    let root = main.trim_end_matches("data.pkl");
    let part = |name: &str| entries.get(&format!("{root}{name}")).and_then(|range| bytes.get(range.clone()));
    let big_endian = part("byteorder").is_some_and(|order| order.trim_ascii() == b"big");
    let data = format!("{root}data/");
    let storages = entries.iter().filter_map(|(name, range)| {
        let storage = Storage { bytes: Arc::clone(bytes), range: range.clone(), big_endian };
        Some((name.strip_prefix(&data)?.to_owned(), storage))
    });
    let storages: Storages = storages.collect();
    let pickle = pickle::read(part("data.pkl").ok_or("its data.pkl is cut short")?)?;
    Walker { tree: &pickle.tree, storages: &storages }.contents(pickle.root)
}

/// The layout before 1.6: magic number, protocol, facts of the system, the pickle, the keys of the storages, the storages.
fn stream(bytes: &Arc<Vec<u8>>) -> Result<Contents, String> {
    let mut at = 0;
    let mut next = || -> Result<Pickle, String> {
        let pickle = pickle::read(&bytes[at..])?;
        at += pickle.len;
        Ok(pickle)
    };
    let first = next()?;
    if *first.tree.get(first.root) != Item::Int(MAGIC) {
        // A plain pickle: there are no storages, but there may be NumPy's arrays.
        return Walker { tree: &first.tree, storages: &Storages::new() }.contents(first.root);
    }
    let version = next()?;
    if *version.tree.get(version.root) != Item::Int(1001) {
        return Err("a stream of PyTorch of an unknown version: load it with PyTorch and save it again".into());
    }
    let system = next()?;
    let main = next()?;
    let keys = next()?;
    let is_big = states_big_endian(&system);
    let kinds = storage_kinds(&main.tree);
    let mut storages = Storages::new();
    for &key in keys.tree.elements(keys.root).ok_or("its list of storages is none")? {
        let key = keys.tree.text(key).ok_or("the key of a storage is no text")?;
        let &(size, count) = kinds.get(key).ok_or_else(|| format!("its storage {key} is of no known type"))?;
        let short = || format!("it ends within its storage {key}: it was cut short");
        let head: [u8; 8] = bytes.get(at..at + 8).and_then(|head| head.try_into().ok()).ok_or_else(short)?;
        // PyTorch writes little-endian numbers on any machine. Only where the length itself contradicts that, and the file
        // says that a big-endian machine wrote it, are its numbers taken for big-endian.
        let big_endian = match count as u64 {
            count if count == u64::from_le_bytes(head) => false,
            count if is_big && count == u64::from_be_bytes(head) => true,
            count => {
                return Err(format!("its storage {key} has {} numbers, not {count}", u64::from_le_bytes(head)));
            }
        };
        let end = count.checked_mul(size).and_then(|len| len.checked_add(at + 8));
        let end = end.filter(|end| *end <= bytes.len()).ok_or_else(short)?;
        storages.insert(key.to_owned(), Storage { bytes: Arc::clone(bytes), range: at + 8..end, big_endian });
        at = end;
    }
    Walker { tree: &main.tree, storages: &storages }.contents(main.root)
}

/// Whether the file says that it comes from a big-endian machine.
fn states_big_endian(system: &Pickle) -> bool {
    let entries = system.tree.entries(system.root).unwrap_or_default();
    let little = entries.iter().find(|(key, _)| system.tree.text(*key) == Some("little_endian"));
    little.is_some_and(|(_, value)| *system.tree.get(*value) == Item::Bool(false))
}

/// The bytes per number and the numbers of every storage that a pickle refers to.
fn storage_kinds(tree: &Tree) -> HashMap<String, (usize, usize)> {
    let persistent = tree.items().iter().filter_map(|item| match item {
        Item::Persistent(pid) => reference(tree, *pid),
        _ => None,
    });
    persistent.map(|reference| (reference.key, (reference.size, reference.count))).collect()
}

/// What a persistent identity says of a storage.
struct Reference {
    key: String,
    kind: Kind,
    /// Bytes per number.
    size: usize,
    /// Numbers.
    count: usize,
    /// The part that is meant, where the storage is a view of another: its first number and their count.
    view: Option<(usize, usize)>,
}

/// `("storage", type, key, place, count)`, and in a stream a view `(key, offset, count)` or `None`.
fn reference(tree: &Tree, pid: Id) -> Option<Reference> {
    let [what, class, key, _, count, rest @ ..] = tree.elements(pid)? else { return None };
    if tree.text(*what) != Some("storage") {
        return None;
    }
    let (kind, size) = storage_class(tree.name(*class)?);
    let view = rest.first().and_then(|view| tree.elements(*view));
    let view = match view {
        Some([_, offset, count]) => Some((tree.size(*offset)?, tree.size(*count)?)),
        _ => None,
    };
    Some(Reference { key: tree.text(*key)?.to_owned(), kind, size, count: tree.size(*count)?, view })
}

/// The numbers of a class of storages, and their bytes.
fn storage_class(name: &str) -> (Kind, usize) {
    match name.rsplit('.').next().unwrap_or(name) {
        "FloatStorage" => (Kind::F32, 4),
        "DoubleStorage" => (Kind::F64, 8),
        "HalfStorage" => (Kind::F16, 2),
        "BFloat16Storage" => (Kind::Bf16, 2),
        "LongStorage" => (Kind::I64, 8),
        other => {
            let size = match other {
                "IntStorage" | "QInt32Storage" => 4,
                "ShortStorage" => 2,
                "ComplexFloatStorage" => 8,
                "ComplexDoubleStorage" => 16,
                _ => 1,
            };
            (Kind::Other(format!("numbers of a {other}")), size)
        }
    }
}

/// Looks for tensors.
struct Walker<'a> {
    tree: &'a Tree,
    storages: &'a Storages,
}

/// What has been found, and how much more may be looked at.
struct Search {
    found: Contents,
    left: usize,
}

impl Walker<'_> {
    fn contents(&self, root: Id) -> Result<Contents, String> {
        // Places may be shared: without a limit a small file could lead through them for ever.
        let mut search = Search { found: Contents::default(), left: 64 * self.tree.items().len() + 1024 };
        self.walk(root, &[], &mut search)?;
        Ok(search.found)
    }

    fn walk(&self, id: Id, path: &[String], search: &mut Search) -> Result<(), String> {
        search.left = search.left.checked_sub(1).ok_or("its dictionaries hold one another too often")?;
        if let Some(stored) = self.tensor(id) {
            if let Some((name, nest)) = path.split_last() {
                search.found.tensors.push(Named { nest: nest.join("."), name: name.clone(), stored });
            }
            return Ok(());
        }
        if let Some(class) = self.module(id) {
            search.found.modules.push(class);
            return Ok(());
        }
        if path.len() >= DEPTH {
            return Ok(());
        }
        let mut step = |name: String, id: Id| self.walk(id, &[path, &[name]].concat(), search);
        if let Some(entries) = self.tree.entries(id) {
            for (key, value) in entries {
                let name = match self.tree.get(key) {
                    Item::Int(number) => Some(number.to_string()),
                    _ => self.tree.text(key).map(str::to_owned),
                };
                if let Some(name) = name {
                    step(name, value)?;
                }
            }
        } else if let Some(elements) = self.tree.elements(id) {
            for (index, &element) in elements.iter().enumerate() {
                step(index.to_string(), element)?;
            }
        }
        Ok(())
    }

    /// The class of a module that was pickled as a whole.
    fn module(&self, id: Id) -> Option<String> {
        let Item::Made { by, state: Some(state), .. } = self.tree.get(id) else { return None };
        let entries = self.tree.entries(*state)?;
        let has = |name: &str| entries.iter().any(|(key, _)| self.tree.text(*key) == Some(name));
        (has("_modules") && has("_parameters")).then(|| self.tree.name(*by).unwrap_or("a class").to_owned())
    }

    /// A tensor, or NumPy's array.
    fn tensor(&self, id: Id) -> Option<Stored> {
        let (name, arguments) = self.tree.call(id)?;
        self.rebuilt(name, arguments, 0).or_else(|| self.array(id))
    }

    /// What one of torch's functions makes.
    fn rebuilt(&self, name: &str, arguments: &[Id], depth: usize) -> Option<Stored> {
        let inner = |id: Id| {
            let (name, arguments) = self.tree.call(id)?;
            if depth < DEPTH { self.rebuilt(name, arguments, depth + 1) } else { None }
        };
        match (name, arguments) {
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                [storage, offset, size, strides, ..],
            ) => Some(self.view(*storage, *offset, *size, *strides)),
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [tensor, ..]) => {
                inner(*tensor)
            }
            ("torch.nn.parameter.Parameter" | "torch.nn.parameter.Buffer", [tensor, ..]) => inner(*tensor),
            ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) if depth < DEPTH => {
                self.rebuilt(self.tree.name(*function)?, self.tree.elements(*arguments)?, depth + 1)
            }
            _ if name.starts_with("torch._utils._rebuild_") => {
                let what = name.trim_start_matches("torch._utils._rebuild_");
                let what = if what == "qtensor" { "a quantised tensor".to_owned() } else { format!("a torch {what}") };
                let shape = arguments.get(2).and_then(|size| self.sizes(*size)).unwrap_or_default();
                Some(lacking(what, shape))
            }
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        // Sizes of very old files are lists, and of some new ones torch.Size.
        let sizes = match self.tree.call(id) {
            Some(("torch.Size", [sizes])) => *sizes,
            _ => id,
        };
        self.tree.elements(sizes)?.iter().map(|&side| self.tree.size(side)).collect()
    }

    /// A tensor of a storage.
    fn view(&self, storage: Id, offset: Id, size: Id, strides: Id) -> Stored {
        let shape = self.sizes(size);
        let parts = (|| {
            let Item::Persistent(pid) = self.tree.get(storage) else { return None };
            Some((reference(self.tree, *pid)?, self.tree.size(offset)?, self.sizes(strides)?))
        })();
        let (Some((reference, offset, strides)), Some(shape)) = (parts, shape.clone()) else {
            return lacking("a tensor whose place is unclear".to_owned(), shape.unwrap_or_default());
        };
        let numbers = match self.storages.get(&reference.key) {
            None => Numbers::Lacking(format!("its storage {} is not in the file", reference.key)),
            Some(Storage { bytes, range, big_endian }) => {
                let bytes_of = |count: usize| count.saturating_mul(reference.size);
                let (first, count) = reference.view.unwrap_or((0, reference.count));
                let start = range.start.saturating_add(bytes_of(first));
                let end = start.saturating_add(bytes_of(count));
                if end > range.end {
                    Numbers::Lacking(format!("its storage {} is cut short", reference.key))
                } else {
                    Numbers::Bytes { bytes: Arc::clone(bytes), range: start..end, big_endian: *big_endian }
                }
            }
        };
        Stored { kind: reference.kind, shape, strides, offset, numbers }
    }

    /// NumPy's array: `_reconstruct` with the state `(version, shape, dtype, is_fortran, bytes)`.
    fn array(&self, id: Id) -> Option<Stored> {
        let Item::Made { state, .. } = self.tree.get(id) else { return None };
        let (name, arguments) = self.tree.call(id)?;
        let (shape, dtype, bytes, fortran) = match (name, arguments) {
            ("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct", _) => {
                let [_, shape, dtype, fortran, bytes] = self.tree.elements((*state)?)? else { return None };
                (*shape, *dtype, *bytes, *self.tree.get(*fortran) == Item::Bool(true))
            }
            ("numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer", [bytes, dtype, shape, order]) => {
                (*shape, *dtype, *bytes, self.tree.text(*order) == Some("F"))
            }
            _ => return None,
        };
        let shape = self.sizes(shape)?;
        let (kind, big_endian) = self.dtype(dtype);
        let numbers = match self.bytes(bytes) {
            Some(bytes) => {
                let range = 0..bytes.len();
                Numbers::Bytes { bytes: Arc::new(bytes), range, big_endian }
            }
            None => Numbers::Lacking("an array of objects".to_owned()),
        };
        if !fortran {
            return Some(Stored::dense(kind, shape, numbers));
        }
        // Columns lie one after another.
        let turned = Stored::dense(kind, shape.into_iter().rev().collect(), numbers);
        let reversed = |list: &[usize]| list.iter().rev().copied().collect();
        Some(Stored { shape: reversed(&turned.shape), strides: reversed(&turned.strides), ..turned })
    }

    /// The kind of NumPy's numbers, and whether they are big-endian: `dtype("f4")` with the state `(version, order, ...)`.
    fn dtype(&self, id: Id) -> (Kind, bool) {
        let name =
            self.tree.call(id).and_then(|(_, arguments)| self.tree.text(*arguments.first()?)).unwrap_or_default();
        let order = match self.tree.get(id) {
            Item::Made { state: Some(state), .. } => {
                self.tree.elements(*state).and_then(|state| self.tree.text(*state.get(1)?))
            }
            _ => None,
        };
        let kind = match name.trim_start_matches(['<', '>', '=', '|']) {
            "f2" => Kind::F16,
            "f4" => Kind::F32,
            "f8" => Kind::F64,
            "i8" => Kind::I64,
            other => Kind::Other(format!("NumPy's `{other}`")),
        };
        (kind, order == Some(">") || name.starts_with('>'))
    }

    /// Bytes, which protocol 2 writes as a text in Latin-1.
    fn bytes(&self, id: Id) -> Option<Vec<u8>> {
        match self.tree.get(id) {
            Item::Bytes(bytes) => Some(bytes.clone()),
            _ => match self.tree.call(id)? {
                ("_codecs.encode", [text, ..]) => {
                    self.tree.text(*text)?.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect()
                }
                ("builtins.bytes" | "__builtin__.bytes" | "builtins.bytearray", []) => Some(vec![]),
                ("builtins.bytearray" | "builtins.bytes", [bytes, ..]) => self.bytes(*bytes),
                _ => None,
            },
        }
    }
}

/// A tensor whose numbers cannot be read.
fn lacking(what: String, shape: Vec<usize>) -> Stored {
    let strides = vec![0; shape.len()];
    Stored { strides, offset: 0, numbers: Numbers::Lacking(format!("it is {what}")), kind: Kind::Other(what), shape }
}
