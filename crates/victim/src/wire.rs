//! Messages: one safetensors blob each, with the operation and its number in the metadata.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::File,
    os::unix::fs::FileExt as _,
};

use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Value, json};

#[cfg(not(target_endian = "little"))]
compile_error!("messages hold little-endian numbers, and so does memory");

/// Numbers of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// Pixels, logits, gradients.
    F32(Vec<f32>),
    /// Words of keys.
    U32(Vec<u32>),
}

/// A tensor of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub numbers: Numbers,
}

impl Array {
    /// A tensor of pixels, logits or gradients.
    #[must_use]
    pub fn f32(shape: &[usize], numbers: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), numbers: Numbers::F32(numbers) }
    }

    /// A tensor of words of keys.
    #[must_use]
    pub fn u32(shape: &[usize], numbers: Vec<u32>) -> Self {
        Self { shape: shape.to_vec(), numbers: Numbers::U32(numbers) }
    }

    fn bytes(&self) -> &[u8] {
        match &self.numbers {
            Numbers::F32(numbers) => bytemuck::cast_slice(numbers),
            Numbers::U32(numbers) => bytemuck::cast_slice(numbers),
        }
    }

    /// From a type's name in safetensors, a shape, and so many bytes.
    fn new(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Self, String> {
        let elements = shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
        if elements.and_then(|n| n.checked_mul(4)) != Some(bytes.len()) {
            return Err(format!("`{name}` of {shape:?} has {} bytes", bytes.len()));
        }
        let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let numbers = match dtype {
            Dtype::F32 => Numbers::F32(words.map(f32::from_le_bytes).collect()),
            Dtype::U32 => Numbers::U32(words.map(u32::from_le_bytes).collect()),
            other => return Err(format!("`{name}` is of {other}: numbers are F32, keys U32")),
        };
        Ok(Self { shape: shape.to_vec(), numbers })
    }
}

impl View for &Array {
    fn dtype(&self) -> Dtype {
        match self.numbers {
            Numbers::F32(_) => Dtype::F32,
            Numbers::U32(_) => Dtype::U32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes())
    }

    fn data_len(&self) -> usize {
        self.bytes().len()
    }
}

/// A request or a reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// What is asked or answered.
    pub op: String,
    /// The request's number; its reply has the same.
    pub id: u64,
    /// Everything else the metadata says, by name.
    pub facts: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Array>,
}

/// Bytes by which tensors in shared memory are aligned.
const ALIGNMENT: usize = 64;

impl Message {
    /// A request without facts and tensors.
    #[must_use]
    pub fn new(op: &str, id: u64) -> Self {
        Self { op: op.to_owned(), id, ..Self::default() }
    }

    /// The same with a fact.
    #[must_use]
    pub fn with(mut self, name: &str, text: impl ToString) -> Self {
        self.facts.insert(name.to_owned(), text.to_string());
        self
    }

    /// The same with a tensor.
    #[must_use]
    pub fn tensor(mut self, name: &str, array: Array) -> Self {
        self.tensors.insert(name.to_owned(), array);
        self
    }

    /// The message as it travels: the length of the blob in 8 bytes, little-endian, and the blob.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut facts: HashMap<String, String> = self.facts.clone().into_iter().collect();
        facts.insert("op".to_owned(), self.op.clone());
        facts.insert("id".to_owned(), self.id.to_string());
        let blob = safetensors::serialize(&self.tensors, Some(facts)).expect("shapes fit their numbers");
        let mut frame = Vec::with_capacity(8 + blob.len());
        frame.extend_from_slice(&(blob.len() as u64).to_le_bytes());
        frame.extend_from_slice(&blob);
        frame
    }

    /// A message from its blob.
    ///
    /// # Errors
    /// With a sentence about what is no message.
    pub fn read(blob: &[u8]) -> Result<Self, String> {
        let fault = |fault: safetensors::SafeTensorError| format!("its message is no safetensors blob ({fault})");
        let (_, header) = SafeTensors::read_metadata(blob).map_err(fault)?;
        let mut facts: BTreeMap<String, String> = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let op = facts.remove("op").ok_or("its message has no `op` in the metadata")?;
        let id = facts.remove("id").and_then(|id| id.parse().ok()).ok_or("its message has no number `id`")?;
        let found = SafeTensors::deserialize(blob).map_err(fault)?;
        let array = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            Ok((name.to_owned(), Array::new(name, view.dtype(), view.shape(), view.data())?))
        };
        let tensors = found.iter().map(array).collect::<Result<_, String>>()?;
        Ok(Self { op, id, facts, tensors })
    }

    /// Bytes of all its tensors.
    pub(crate) fn size(&self) -> usize {
        self.tensors.values().map(|array| array.bytes().len()).sum()
    }

    /// Moves the tensors into shared memory from its start on, and says where they are; leaves room for `room` bytes of the
    /// reply behind them.
    pub(crate) fn share(mut self, memory: &File, room: usize) -> std::io::Result<Self> {
        let mut places = Vec::new();
        let mut end = 0;
        for (name, array) in &self.tensors {
            memory.write_all_at(array.bytes(), end as u64)?;
            let dtype = (&array).dtype().to_string();
            places.push(json!({"name": name, "dtype": dtype, "shape": array.shape, "offset": end}));
            end = (end + array.bytes().len()).next_multiple_of(ALIGNMENT);
        }
        let needed = (end + room) as u64;
        if memory.metadata()?.len() < needed {
            memory.set_len(needed)?;
        }
        self.tensors.clear();
        Ok(self.with("shared", Value::from(places)).with("room", format!("{end},{room}")))
    }

    /// Takes the tensors that a reply has left in shared memory.
    pub(crate) fn unshare(mut self, memory: &File) -> Result<Self, String> {
        let Some(text) = self.facts.remove("shared") else { return Ok(self) };
        let fault = || format!("its `shared` is no list of tensors: {text:.80}");
        let places: Vec<Value> = serde_json::from_str(&text).map_err(|_| fault())?;
        for place in &places {
            let name = place["name"].as_str().ok_or_else(fault)?;
            let offset = place["offset"].as_u64().ok_or_else(fault)?;
            let shape: Vec<usize> = serde_json::from_value(place["shape"].clone()).map_err(|_| fault())?;
            let dtype: Dtype = serde_json::from_value(place["dtype"].clone()).map_err(|_| fault())?;
            let size = shape.iter().try_fold(4usize, |size, &side| size.checked_mul(side)).ok_or_else(fault)?;
            let length = memory.metadata().map_err(|error| error.to_string())?.len();
            if offset.checked_add(size as u64).is_none_or(|end| end > length) {
                return Err(format!("its tensor `{name}` ends outside the shared memory"));
            }
            let mut bytes = vec![0; size];
            memory.read_exact_at(&mut bytes, offset).map_err(|error| error.to_string())?;
            self.tensors.insert(name.to_owned(), Array::new(name, dtype, &shape, &bytes)?);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let x = Array::f32(&[2, 1, 1, 3], vec![0.0, 0.25, 1.0, -1.5, f32::MIN_POSITIVE, 7.0]);
        let keys = Array::u32(&[2, 1, 4], vec![1, 2, 3, 4, u32::MAX, 0, 9, 8]);
        Message::new("logits", 7).with("keep", true).tensor("x", x).tensor("keys", keys)
    }

    #[test]
    fn a_message_comes_back_as_it_went() {
        let frame = message().frame();
        assert_eq!(u64::from_le_bytes(frame[..8].try_into().unwrap()) as usize, frame.len() - 8);
        assert_eq!(Message::read(&frame[8..]).unwrap(), message());
    }

    #[test]
    fn shared_tensors_come_back_as_they_went() {
        let memory = tempfile::tempfile().unwrap();
        let shared = message().share(&memory, 1000).unwrap();
        assert!(shared.tensors.is_empty());
        let room = shared.facts["room"].split_once(',').unwrap();
        assert_eq!((room.1, memory.metadata().unwrap().len()), ("1000", room.0.parse::<u64>().unwrap() + 1000));
        let mut back = Message::read(&shared.frame()[8..]).unwrap().unshare(&memory).unwrap();
        back.facts.remove("room");
        assert_eq!(back, message());
    }

    #[test]
    fn what_is_no_message_is_told() {
        let read = |blob: &[u8]| Message::read(blob).unwrap_err();
        assert!(read(b"hello").contains("no safetensors blob"));
        assert!(read(&[0xff; 64]).contains("no safetensors blob"));
        let bare: BTreeMap<String, &Array> = BTreeMap::new();
        assert!(read(&safetensors::serialize(bare, None).unwrap()).contains("no `op`"));
        let memory = tempfile::tempfile().unwrap();
        for place in [
            r#"[{"name": "x", "dtype": "F32", "shape": [1000], "offset": 0}]"#,
            r#"[{"name": "x", "dtype": "F32", "shape": [4294967296, 4294967296], "offset": 0}]"#,
            r#"[{"name": "x", "dtype": "F32", "shape": [1], "offset": 18446744073709551615}]"#,
        ] {
            let fault = Message::new("logits", 1).with("shared", place).unshare(&memory).unwrap_err();
            assert!(fault.contains("outside the shared memory") || fault.contains("no list of tensors"), "{fault}");
        }
    }
}
