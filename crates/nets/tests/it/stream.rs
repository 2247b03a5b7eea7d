//! Writes checkpoints in PyTorch's layout of before 1.6, with anything in them.

use candle_core::{DType, Tensor};

/// What a checkpoint holds.
#[derive(Clone)]
pub enum Value {
    Int(u8),
    Text(String),
    Tensor(Tensor),
    /// A tensor of a storage, with any claims.
    Strided {
        of: Tensor,
        offset: u8,
        shape: Vec<u64>,
        strides: Vec<u64>,
    },
    Dict(Vec<(String, Value)>),
    Tuple(Vec<Value>),
    /// A call of a function.
    Call(String, Vec<Value>),
}

/// A dictionary.
pub fn dictionary<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Dict(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The bytes of a checkpoint.
pub fn stream(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.value(value);
    let mut bytes = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(b"\x80\x02}(X\x0d\x00\x00\x00little_endian\x88u.");
    bytes.extend(b"\x80\x02");
    bytes.extend(&writer.bytes);
    bytes.extend(b".\x80\x02](");
    let mut keys = Writer::default();
    (0..writer.storages.len()).for_each(|key| keys.text(&key.to_string()));
    bytes.extend(&keys.bytes);
    bytes.extend(b"e.");
    for storage in &writer.storages {
        bytes.extend((storage.elem_count() as u64).to_le_bytes());
        let flat = storage.flatten_all().unwrap();
        match storage.dtype() {
            DType::I64 => bytes.extend(flat.to_vec1::<i64>().unwrap().into_iter().flat_map(i64::to_le_bytes)),
            _ => bytes.extend(flat.to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes)),
        }
    }
    bytes
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    storages: Vec<Tensor>,
}

impl Writer {
    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn global(&mut self, name: &str) {
        let (module, name) = name.rsplit_once('.').unwrap();
        self.bytes.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    fn sizes(&mut self, sizes: &[u64]) {
        self.bytes.push(b'(');
        for size in sizes {
            self.bytes.extend([0x8a, 9]);
            self.bytes.extend(size.to_le_bytes());
            self.bytes.push(0);
        }
        self.bytes.push(b't');
    }

    fn tensor(&mut self, storage: &Tensor, offset: u8, shape: &[u64], strides: &[u64]) {
        self.global("torch._utils._rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.text("storage");
        self.global(if storage.dtype() == DType::I64 { "torch.LongStorage" } else { "torch.FloatStorage" });
        let key = self.storages.len().to_string();
        self.text(&key);
        self.text("cpu");
        self.bytes.push(b'J');
        self.bytes.extend((storage.elem_count() as u32).to_le_bytes());
        self.bytes.extend(b"NtQ");
        self.bytes.extend([b'K', offset]);
        self.sizes(shape);
        self.sizes(strides);
        self.bytes.push(0x89);
        self.global("collections.OrderedDict");
        self.bytes.extend(b")RtR");
        self.storages.push(storage.clone());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Int(number) => self.bytes.extend([b'K', *number]),
            Value::Text(text) => self.text(text),
            Value::Tensor(tensor) => {
                let wide = |sizes: &[usize]| sizes.iter().map(|&size| size as u64).collect::<Vec<u64>>();
                let (shape, strides) = (wide(tensor.dims()), wide(tensor.contiguous().unwrap().stride()));
                self.tensor(tensor, 0, &shape, &strides);
            }
            Value::Strided { of, offset, shape, strides } => self.tensor(of, *offset, shape, strides),
            Value::Dict(entries) => {
                self.bytes.extend(b"}(");
                for (name, value) in entries {
                    self.text(name);
                    self.value(value);
                }
                self.bytes.push(b'u');
            }
            Value::Tuple(values) => {
                self.bytes.push(b'(');
                values.iter().for_each(|value| self.value(value));
                self.bytes.push(b't');
            }
            Value::Call(name, arguments) => {
                self.global(name);
                self.value(&Value::Tuple(arguments.clone()));
                self.bytes.push(b'R');
            }
        }
    }
}
