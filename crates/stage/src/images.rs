//! The images of a stage's sample inputs, decoded.
//!
//! A sample of `n` parts holds the image at position `p` (of the sample's own order) as row `p / n` of part `p % n`.
//! Both [`read`] and [`chunks`] walk the positions in order whatever the number of parts, so what follows cannot
//! depend on how the sample was split.

use std::{io::Cursor, path::PathBuf};

use anyhow::{Context as _, bail};
use artifact::{Reader, Row, SampleRow, Shard};
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::{Context, Input, Unfit};

const MEND: &str = "set `resize` and `crop` in the sample's parameters";

/// Decoded images of one size, in the order of the sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Positions in the source: they name each image's random keys.
    pub ids: Vec<u32>,
    /// True classes, from 0, below `classes.len()`.
    pub labels: Vec<u32>,
    /// 8-bit RGB, `(n, 3, height, width)` row-major.
    pub pixels: Vec<u8>,
    /// Rows of pixels of each image.
    pub height: usize,
    /// Columns of pixels of each image.
    pub width: usize,
    /// Names of the classes, in order of their labels.
    pub classes: Vec<String>,
}

impl Images {
    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Image `index` as bytes, `(3, height, width)`.
    ///
    /// # Panics
    /// If there is no such image.
    #[must_use]
    pub fn image(&self, index: usize) -> &[u8] {
        let size = 3 * self.height * self.width;
        &self.pixels[index * size..][..size]
    }

    /// All pixels as torchvision's `ToTensor` gives them: `x / 255` in f32, `(n, 3, height, width)`.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        self.pixels.iter().map(|&x| f32::from(x) / 255.0).collect()
    }

    /// The same as a tensor on the CPU.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn tensor(&self) -> candle_core::Result<Tensor> {
        Tensor::from_vec(self.to_f32(), (self.len(), 3, self.height, self.width), &Device::Cpu)
    }

    /// Some of the images.
    ///
    /// # Panics
    /// If they are not all there.
    #[must_use]
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        let size = 3 * self.height * self.width;
        Self {
            ids: self.ids[range.clone()].to_vec(),
            labels: self.labels[range.clone()].to_vec(),
            pixels: self.pixels[range.start * size..range.end * size].to_vec(),
            classes: self.classes.clone(),
            ..*self
        }
    }

    fn empty(of: &Parts) -> Self {
        let (ids, labels, pixels) = Default::default();
        Self { ids, labels, pixels, height: of.height, width: of.width, classes: of.classes.clone() }
    }
}

/// One decoded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// 8-bit RGB, `(3, height, width)` row-major.
    pub pixels: Vec<u8>,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

/// Decodes the PNG (8-bit RGB) of a sample's row.
///
/// # Errors
/// If the bytes are no PNG.
pub fn decode(png: &[u8]) -> anyhow::Result<Pixels> {
    let image = image::ImageReader::with_format(Cursor::new(png), image::ImageFormat::Png).decode()?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (packed, plane) = (image.as_raw(), width * height);
    let mut pixels = vec![0; packed.len()];
    for (at, rgb) in packed.chunks_exact(3).enumerate() {
        for (channel, &value) in rgb.iter().enumerate() {
            pixels[channel * plane + at] = value;
        }
    }
    Ok(Pixels { pixels, height, width })
}

/// All images of the sample inputs whose position in the sample is below `limit` and belongs to `shard`.
///
/// # Errors
/// As [`chunks`].
pub fn read(ctx: &Context, shard: Shard, limit: Option<u32>) -> anyhow::Result<Images> {
    let mut parts = Parts::open(ctx, shard, limit)?;
    parts.take(usize::MAX)
}

/// The same images as [`read`], `size` at a time (the last chunk may be smaller): memory does not grow with the sample.
///
/// # Errors
/// If the inputs are not all parts of one sample, if its images differ in size, or if a part is damaged.
///
/// # Panics
/// If `size` is zero.
pub fn chunks(
    ctx: &Context,
    shard: Shard,
    limit: Option<u32>,
    size: usize,
) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Images>>> {
    assert!(size > 0, "a chunk holds at least one image");
    let mut parts = Parts::open(ctx, shard, limit)?;
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        match parts.take(size) {
            Ok(images) if images.is_empty() => None,
            result => {
                failed = result.is_err();
                Some(result)
            }
        }
    }))
}

/// How many images [`read`] would return, without decoding any.
///
/// # Errors
/// If a part is missing or damaged.
pub fn count(ctx: &Context, shard: Shard, limit: Option<u32>) -> anyhow::Result<u64> {
    let mut rows = 0;
    for input in ctx.of_kind(SampleRow::KIND) {
        rows += Reader::<SampleRow>::open(&input.path)?.rows();
    }
    let (rows, Shard { index, count }) = (rows.min(limit.map_or(u64::MAX, u64::from)), shard);
    Ok((rows + u64::from(count - 1 - index)) / u64::from(count))
}

/// The parts of one sample, read side by side.
struct Parts {
    parts: Vec<Part>,
    shard: Shard,
    limit: u64,
    position: u64,
    classes: Vec<String>,
    height: usize,
    width: usize,
}

impl Parts {
    fn open(ctx: &Context, shard: Shard, limit: Option<u32>) -> anyhow::Result<Self> {
        let mut tables = ctx.tables(SampleRow::KIND)?;
        let Some(inputs) = tables.pop() else { bail!(Unfit("no sample among the inputs: name its parts".into())) };
        unfit(tables.is_empty(), || "the inputs hold two samples: name the parts of one".into())?;
        let parts = inputs.iter().map(Part::open).collect::<anyhow::Result<_>>()?;
        // A part without images has no size.
        let has_size = |input: &&Input| input.provenance.facts.get("height").is_some_and(Value::is_u64);
        let first = inputs.iter().find(has_size).unwrap_or(&inputs[0]);
        let name = first.path.display();
        let facts = &first.provenance.facts;
        let side = |name: &str| facts.get(name).and_then(Value::as_u64).map(|side| side as usize);
        let (Some(height), Some(width)) = (side("height"), side("width")) else {
            bail!(Unfit(format!("{name}: the images differ in size: {MEND}")))
        };
        let classes = facts.get("classes").cloned().unwrap_or_default();
        let classes = serde_json::from_value(classes).with_context(|| format!("{name}: no class names"))?;
        let limit = limit.map_or(u64::MAX, u64::from);
        Ok(Self { parts, shard, limit, position: 0, classes, height, width })
    }

    /// The next `count` images, fewer at the end.
    fn take(&mut self, count: usize) -> anyhow::Result<Images> {
        let mut images = Images::empty(self);
        while images.len() < count && self.position < self.limit {
            let which = (self.position % self.parts.len() as u64) as usize;
            let part = &mut self.parts[which];
            let Some(row) = part.next()? else { break };
            let wanted = self.position % u64::from(self.shard.count) == u64::from(self.shard.index);
            self.position += 1;
            if !wanted {
                continue;
            }
            let place = || format!("{}, image {}", part.path.display(), row.id);
            let image = decode(&row.png).map_err(|e| Unfit(format!("{}: {e}: run `sample` again", place())))?;
            unfit((image.height, image.width) == (self.height, self.width), || {
                let (a, b) = ((image.height, image.width), (self.height, self.width));
                format!("{}: {}x{} pixels instead of {}x{}: {MEND}", place(), a.0, a.1, b.0, b.1)
            })?;
            unfit((row.label as usize) < self.classes.len(), || {
                format!("{}: label {} has no class name: run `sample` again", place(), row.label)
            })?;
            images.ids.push(row.id);
            images.labels.push(row.label);
            images.pixels.extend(image.pixels);
        }
        Ok(images)
    }
}

/// The rows of one file, one at a time.
struct Part {
    path: PathBuf,
    reader: Reader<SampleRow>,
    rows: std::vec::IntoIter<SampleRow>,
}

impl Part {
    fn open(input: &Input) -> anyhow::Result<Self> {
        let reader = Reader::open(&input.path)?;
        Ok(Self { path: input.path.clone(), reader, rows: Vec::new().into_iter() })
    }

    fn next(&mut self) -> anyhow::Result<Option<SampleRow>> {
        loop {
            if let Some(row) = self.rows.next() {
                return Ok(Some(row));
            }
            let Some(rows) = self.reader.next() else { return Ok(None) };
            self.rows = rows?.into_iter();
        }
    }
}

fn unfit(fits: bool, text: impl FnOnce() -> String) -> Result<(), Unfit> {
    if fits { Ok(()) } else { Err(Unfit(text())) }
}
