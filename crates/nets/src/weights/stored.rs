//! Tensors as a file stores them: numbers of one type, read by strides, when they are wanted.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

/// What the numbers of a tensor are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F16,
    Bf16,
    F32,
    F64,
    I64,
    /// What no network here is made of, in words.
    Other(String),
}

impl Kind {
    /// Whether weights may be of this kind.
    pub const fn is_float(&self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    const fn size(&self) -> Option<usize> {
        match self {
            Self::F16 | Self::Bf16 => Some(2),
            Self::F32 => Some(4),
            Self::F64 | Self::I64 => Some(8),
            Self::Other(_) => None,
        }
    }

    /// In words.
    pub fn name(&self) -> &str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::Other(name) => name,
        }
    }
}

/// Where numbers lie.
#[derive(Clone, Debug)]
pub(super) enum Numbers {
    /// In a storage: a range of bytes of a file, or of a part of it.
    Bytes { bytes: Arc<Vec<u8>>, range: Range<usize>, big_endian: bool },
    /// In memory already.
    Tensor(Tensor),
    /// Nowhere here, and why.
    Lacking(String),
}

/// A tensor: what its file says of it, checked when its numbers are read.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub kind: Kind,
    pub shape: Vec<usize>,
    /// Numbers from one index to the next, for each axis.
    pub strides: Vec<usize>,
    /// The first number's place in the storage, in numbers.
    pub offset: usize,
    pub numbers: Numbers,
}

impl Stored {
    /// A tensor in memory.
    pub fn of(tensor: &Tensor) -> Self {
        let kind = match tensor.dtype() {
            DType::F16 => Kind::F16,
            DType::BF16 => Kind::Bf16,
            DType::F32 => Kind::F32,
            DType::F64 => Kind::F64,
            DType::I64 => Kind::I64,
            other => Kind::Other(other.as_str().to_owned()),
        };
        let (shape, numbers) = (tensor.dims().to_vec(), Numbers::Tensor(tensor.clone()));
        Self { kind, shape, strides: vec![], offset: 0, numbers }
    }

    /// A tensor whose rows lie one after another.
    pub fn dense(kind: Kind, shape: Vec<usize>, numbers: Numbers) -> Self {
        let strides = contiguous(&shape);
        Self { kind, shape, strides, offset: 0, numbers }
    }

    /// The number of numbers, if it is one.
    pub fn len(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))
    }

    /// The tensor, row after row: f64 where it is that, i64 for whole numbers, otherwise f32.
    ///
    /// # Errors
    /// If its strides lead out of its storage, or its numbers are of no kind that can be read.
    pub fn tensor(&self) -> Result<Tensor, String> {
        let brief = |error: candle_core::Error| super::brief(&error);
        let (bytes, range, big_endian) = match &self.numbers {
            Numbers::Bytes { bytes, range, big_endian } => (bytes, range, *big_endian),
            Numbers::Lacking(why) => return Err(why.clone()),
            Numbers::Tensor(tensor) => {
                let dtype = if matches!(self.kind, Kind::F64 | Kind::I64) { tensor.dtype() } else { DType::F32 };
                return tensor.to_dtype(dtype).and_then(|tensor| tensor.contiguous()).map_err(brief);
            }
        };
        let storage = bytes.get(range.clone()).ok_or("the file ends before it")?;
        let walk = self.walk(storage.len())?;
        macro_rules! read {
            ($number:ty, $as:ty) => {
                walk.numbers(storage, |bytes| {
                    let bytes = bytes.try_into().expect("as many bytes as the number has");
                    let number =
                        if big_endian { <$number>::from_be_bytes(bytes) } else { <$number>::from_le_bytes(bytes) };
                    <$as>::from(number)
                })
            };
        }
        let shape = self.shape.as_slice();
        match self.kind {
            Kind::F16 => Tensor::from_vec(read!(f16, f32), shape, &Device::Cpu),
            Kind::Bf16 => Tensor::from_vec(read!(bf16, f32), shape, &Device::Cpu),
            Kind::F32 => Tensor::from_vec(read!(f32, f32), shape, &Device::Cpu),
            Kind::F64 => Tensor::from_vec(read!(f64, f64), shape, &Device::Cpu),
            Kind::I64 => Tensor::from_vec(read!(i64, i64), shape, &Device::Cpu),
            Kind::Other(_) => return Err(format!("it holds {}", self.kind.name())),
        }
        .map_err(brief)
    }

    /// The way through the storage, after a check that it stays inside.
    fn walk(&self, storage: usize) -> Result<Walk<'_>, String> {
        let Some(size) = self.kind.size() else { return Err(format!("it holds {}", self.kind.name())) };
        let absurd = || "its shape is absurd".to_owned();
        let len = self.len().ok_or_else(absurd)?;
        if self.strides.len() != self.shape.len() {
            return Err("it has not one stride for each axis".to_owned());
        }
        let reach = self.shape.iter().zip(&self.strides).try_fold(self.offset, |reach, (&side, &stride)| {
            side.saturating_sub(1).checked_mul(stride).and_then(|more| reach.checked_add(more))
        });
        let last = reach.ok_or_else(absurd)?;
        if len > 0 && last >= storage / size {
            return Err(format!("it reads beyond its storage, which has {} numbers", storage / size));
        }
        Ok(Walk { stored: self, len, size })
    }
}

/// The way through a storage, inside of it.
struct Walk<'a> {
    stored: &'a Stored,
    len: usize,
    size: usize,
}

impl Walk<'_> {
    /// The numbers row after row.
    fn numbers<T>(&self, storage: &[u8], number: impl Fn(&[u8]) -> T) -> Vec<T> {
        let Stored { shape, strides, offset, .. } = self.stored;
        let at = |place: usize| number(&storage[place * self.size..][..self.size]);
        if *strides == contiguous(shape) {
            return (*offset..offset + self.len).map(at).collect();
        }
        let mut numbers = Vec::with_capacity(self.len);
        let mut index = vec![0; shape.len()];
        let mut place = *offset;
        while numbers.len() < self.len {
            numbers.push(at(place));
            // The last axis runs fastest; one that is through goes back to its beginning.
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                place += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                place -= strides[axis] * shape[axis];
                index[axis] = 0;
            }
        }
        numbers
    }
}

/// The strides of rows that lie one after another.
fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(shape: &[usize], strides: &[usize], offset: usize, big_endian: bool) -> Stored {
        let number = |n: u8| if big_endian { f32::from(n).to_be_bytes() } else { f32::from(n).to_le_bytes() };
        let bytes = Arc::new((0..12).flat_map(number).collect::<Vec<u8>>());
        let range = 0..bytes.len();
        let numbers = Numbers::Bytes { bytes, range, big_endian };
        Stored { kind: Kind::F32, shape: shape.to_vec(), strides: strides.to_vec(), offset, numbers }
    }

    fn values(stored: &Stored) -> Vec<f32> {
        stored.tensor().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn strides_and_offsets_are_followed() {
        assert_eq!(values(&stored(&[2, 3], &[3, 1], 1, false)), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(values(&stored(&[2, 3], &[1, 2], 0, true)), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(values(&stored(&[3, 2], &[0, 4], 2, false)), [2.0, 6.0, 2.0, 6.0, 2.0, 6.0]);
        assert_eq!(values(&stored(&[], &[], 11, false)), [11.0]);
        assert!(values(&stored(&[0, 3], &[3, 1], 0, false)).is_empty());
        assert_eq!(values(&stored(&[1, 2], &[1000, 1], 10, false)), [10.0, 11.0], "an axis of one is not walked");
    }

    #[test]
    fn what_leads_out_of_the_storage_is_refused() {
        for (shape, strides, offset) in
            [(&[13][..], &[1][..], 0), (&[2], &[12], 0), (&[1], &[1], 12), (&[2, 2], &[usize::MAX, 2], 0)]
        {
            assert!(stored(shape, strides, offset, false).tensor().is_err(), "{shape:?} {strides:?} {offset}");
        }
        let absurd = stored(&[usize::MAX, 3], &[0, 0], 0, false).tensor().unwrap_err();
        assert!(absurd.contains("absurd"), "{absurd}");
    }
}
