//! Images to a Parquet table: embedded, Parquet, ImageFolder, or the hub.
//!
//! Image `id` is image `id` of the source, in the source's own order. The sample keeps ids `offset`, `offset + every`,
//! ..., at most `limit` of them; a shard keeps every n-th of those.

pub mod embedded;
mod folder;
mod hub;
mod params;
mod parquet;
mod picture;
mod seen;

use std::collections::BTreeSet;

use anyhow::Context as _;
use artifact::{SampleRow, Writer};
pub use params::{Classes, HubFile, Params, Source};
pub use picture::{Picture, prepare};
use rayon::prelude::*;
pub use seen::stale;
use serde_json::json;
use stage::{Context, Stage, Unfit};

/// Images decoded at a time.
const CHUNK: usize = 64;

/// The stage `sample`.
#[derive(Debug)]
pub struct Sample;

/// One image as its source holds it.
struct Item {
    id: u32,
    /// The label, or why there is none.
    label: i64,
    /// A PNG or JPEG file.
    bytes: Vec<u8>,
    /// Where it came from, as the table tells it.
    path: String,
    /// Where it came from, as errors tell it.
    place: String,
}

/// A source of images: one file each.
trait Reader {
    /// Number of images.
    fn len(&self) -> usize;
    /// Names of the classes, where the source knows them.
    fn classes(&self) -> Option<Vec<String>>;
    /// SHA-256 by name of all that the images of these ids are read from.
    fn inputs(&self, ids: &[u32]) -> anyhow::Result<Vec<(String, String)>>;
    /// The files of these ids, where each is a file of a folder.
    fn listing(&self, _ids: &[u32]) -> Option<seen::Listing> {
        None
    }
    /// Hands over the images of these ids, which ascend, in their order.
    fn read(&self, ids: &[u32], each: &mut dyn FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()>;
}

impl Stage for Sample {
    const NAME: &'static str = "sample";
    const REVISION: u32 = 1;
    const ABOUT: &'static str = "Read images from a source, resize and crop them, and write them as one Parquet table";
    type Params = Params;
    type Row = SampleRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<SampleRow>) -> anyhow::Result<()> {
        params.check()?;
        let reader = params.source.open(ctx, params)?;
        let classes = params.classes(reader.classes())?;
        let kept = params.keep(reader.len());
        if kept.is_empty() {
            let text = format!("no image left of {}: lower `offset` or raise `limit`", reader.len());
            return Err(Unfit(text).into());
        }
        let of_shard = |&(position, _): &(usize, &u32)| position as u32 % ctx.shard.count == ctx.shard.index;
        let wanted: Vec<u32> = kept.iter().enumerate().filter(of_shard).map(|(_, &id)| id).collect();
        ctx.announce(&format!("{} of {} images, some milliseconds each", wanted.len(), reader.len()));
        out.provenance_mut().inputs.extend(reader.inputs(&kept)?);
        if let Some(listing) = reader.listing(&kept) {
            out.provenance_mut().record_folder(&listing.name, &listing.record(&ctx.out)?);
        }

        let progress = ctx.progress(wanted.len() as u64, "images");
        let mut sizes = BTreeSet::new();
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut write = |chunk: &mut Vec<Item>| -> anyhow::Result<()> {
            let done = chunk.par_drain(..).map(|item| row(item, params, classes.len())).collect::<Vec<_>>();
            for result in done {
                let (row, size) = result?;
                sizes.insert(size);
                out.push(&[row])?;
                progress.advance(1);
            }
            Ok(())
        };
        reader.read(&wanted, &mut |item| {
            chunk.push(item);
            if chunk.len() == CHUNK { write(&mut chunk) } else { Ok(()) }
        })?;
        write(&mut chunk)?;

        let size = if sizes.len() == 1 { sizes.first() } else { None };
        let facts = &mut out.provenance_mut().facts;
        facts.insert("classes".into(), json!(classes));
        facts.insert("height".into(), json!(size.map(|s| s.0)));
        facts.insert("width".into(), json!(size.map(|s| s.1)));
        Ok(())
    }
}

/// The row of an image, and its height and width.
fn row(item: Item, params: &Params, classes: usize) -> anyhow::Result<(SampleRow, (u32, u32))> {
    let label = u32::try_from(item.label).ok().filter(|&label| (label as usize) < classes);
    let label = label.with_context(|| {
        let text = "is outside the classes: name all classes in `classes`, or correct the label";
        Unfit(format!("{}: label {} {text} (there are {classes})", item.place, item.label))
    })?;
    let picture = prepare(item.bytes, params.resize.map(Into::into), params.crop.map(Into::into))
        .map_err(|error| Unfit(format!("{}: no whole PNG or JPEG: {error:#}: replace the image", item.place)))?;
    let size = (picture.height, picture.width);
    Ok((SampleRow { id: item.id, png: picture.png, path: item.path, label }, size))
}
