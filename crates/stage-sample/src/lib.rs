//! Images to a Parquet table: embedded, Parquet, ImageFolder, or the hub.
//!
//! Image `id` is image `id` of the source, in the source's own order. The sample keeps ids `offset`, `offset + every`,
//! ..., at most `limit` of them; a shard keeps every n-th of those.

mod column;
pub mod embedded;
mod folder;
mod hub;
mod jpeg;
mod params;
mod parquet;
mod picture;
mod placement;
mod seen;
mod survey;

use std::collections::BTreeSet;

use artifact::{SampleRow, Writer};
pub use params::{Classes, HubFile, Orientation, Params, Place, Source};
pub use picture::{Picture, prepare};
use placement::Placement;
use rayon::prelude::*;
pub use seen::stale;
use serde_json::json;
use stage::{Context, Stage, Unfit};
pub use survey::Survey;

/// Images decoded at a time.
const CHUNK: usize = 64;

/// The stage `sample`.
#[derive(Debug)]
pub struct Sample;

/// One image as its source holds it.
struct Item {
    id: u32,
    /// The label as the source numbers it.
    label: i64,
    /// A PNG or JPEG file.
    bytes: Vec<u8>,
    /// Where it came from, as the table tells it.
    path: String,
    /// Where it came from, as errors tell it.
    place: String,
}

/// A source of images: one file each.
trait Reader: Sync {
    /// Number of images.
    fn len(&self) -> usize;
    /// Names of the classes in order of the source's labels, where it knows them.
    fn classes(&self) -> Option<&[String]>;
    /// Whether classes that the sample does not have are simply left out.
    fn selects(&self) -> bool {
        false
    }
    /// Leaves out what the sample does not have, and puts its images into the sample's order.
    fn arrange(&mut self, _placement: &Placement) {}
    /// What was left out, and what is worth a look.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// The smallest and the largest label, where they are numbers without names.
    fn range(&self) -> anyhow::Result<Option<(i64, i64)>> {
        Ok(None)
    }
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
    const REVISION: u32 = 2;
    const ABOUT: &'static str = "Read images from a source, resize and crop them, and write them as one Parquet table";
    type Params = Params;
    type Row = SampleRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<SampleRow>) -> anyhow::Result<()> {
        let opened = Opened::open(params, ctx)?;
        opened.notes.iter().for_each(|note| tracing::info!("{note}"));
        let kept = &opened.kept;
        let of_shard = |&(position, _): &(usize, &u32)| position as u32 % ctx.shard.count == ctx.shard.index;
        let wanted: Vec<u32> = kept.iter().enumerate().filter(of_shard).map(|(_, &id)| id).collect();
        ctx.announce(&format!("{} of {} images, some milliseconds each", wanted.len(), opened.reader.len()));
        out.provenance_mut().inputs.extend(opened.reader.inputs(kept)?);
        if let Some(listing) = opened.reader.listing(kept) {
            out.provenance_mut().record_folder(&listing.name, &listing.record(&ctx.out)?);
        }

        let progress = ctx.progress(wanted.len() as u64, "images");
        let (mut sizes, mut turned) = (BTreeSet::new(), 0_u64);
        opened.read(&wanted, &mut |image| {
            sizes.insert(image.size);
            turned += u64::from(image.turned);
            out.push(&[image.row])?;
            progress.advance(1);
            Ok(())
        })?;
        if turned > 0 && params.orientation == Orientation::Ignore {
            let text = "have an orientation in their EXIF, which is ignored, as torchvision's ImageFolder does";
            tracing::warn!("{turned} images {text}; `orientation` = \"apply\" turns them, as `datasets` does");
        }

        let size = if sizes.len() == 1 { sizes.first() } else { None };
        let facts = &mut out.provenance_mut().facts;
        facts.insert("classes".into(), json!(opened.placement.classes));
        facts.insert("height".into(), json!(size.map(|s| s.0)));
        facts.insert("width".into(), json!(size.map(|s| s.1)));
        Ok(())
    }
}

/// A source, understood: what its classes are, and which images are kept.
struct Opened<'a> {
    params: &'a Params,
    reader: Box<dyn Reader>,
    placement: Placement,
    kept: Vec<u32>,
    /// What was left out, and what is worth a look.
    notes: Vec<String>,
}

/// An image of a sample.
struct Sampled {
    row: SampleRow,
    /// Rows and columns of pixels.
    size: (u32, u32),
    /// Whether its EXIF has an orientation that is not upright.
    turned: bool,
}

impl<'a> Opened<'a> {
    fn open(params: &'a Params, ctx: &Context) -> anyhow::Result<Self> {
        params.check()?;
        let mut reader = params.source.open(ctx, params)?;
        let placement = Placement::new(reader.classes(), params, reader.selects())
            .map_err(|unfit| Unfit(format!("{}: {unfit}", params.source.place())))?;
        let mut notes = Vec::new();
        if placement.is_by_number()
            && let Some(range) = reader.range()?
        {
            notes.extend(counted(params, range, placement.classes.len())?);
        }
        reader.arrange(&placement);
        notes.extend(reader.notes());
        if !placement.left_out.is_empty() {
            let names = stage::classes::few(&placement.left_out, "is", "are");
            notes.push(format!("{}: of its classes, {names} left out", params.source.place()));
        }
        let kept = params.keep(reader.len());
        if kept.is_empty() {
            let text = format!("no image left of {}: lower `offset` or raise `limit`", reader.len());
            return Err(Unfit(text).into());
        }
        Ok(Self { params, reader, placement, kept, notes })
    }

    /// Hands over the images of these ids, which ascend, in their order.
    fn read(&self, ids: &[u32], each: &mut dyn FnMut(Sampled) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut hand = |chunk: &mut Vec<Item>| -> anyhow::Result<()> {
            let done = chunk.par_drain(..).map(|item| self.sampled(item)).collect::<Vec<_>>();
            done.into_iter().try_for_each(|image| each(image?))
        };
        self.reader.read(ids, &mut |item| {
            chunk.push(item);
            if chunk.len() == CHUNK { hand(&mut chunk) } else { Ok(()) }
        })?;
        hand(&mut chunk)
    }

    fn sampled(&self, item: Item) -> anyhow::Result<Sampled> {
        let label = self.placement.label(item.label).map_err(|fault| Unfit(format!("{}: {fault}", item.place)))?;
        let Some(label) = label else { anyhow::bail!("{}: its class was left out", item.place) };
        let Params { orientation, resize, crop, .. } = self.params;
        let picture = prepare(item.bytes, *orientation, resize.map(Into::into), crop.map(Into::into))
            .map_err(|error| Unfit(format!("{}: no whole PNG or JPEG: {error:#}: replace the image", item.place)))?;
        let row = SampleRow { id: item.id, png: picture.png, path: item.path, label };
        Ok(Sampled { row, size: (picture.height, picture.width), turned: picture.turned })
    }
}

/// Refuses labels that seem to be counted from 1 where 0 is the first class, seen over the whole source, for the images that
/// are kept may not tell; a note where it may be so.
fn counted(params: &Params, (least, most): (i64, i64), classes: usize) -> Result<Option<String>, Unfit> {
    let place = params.source.place();
    if params.first_label != 0 || least != 1 {
        return Ok(None);
    }
    let text = format!("{place}: labels run from 1 to {most}, and there are {classes} classes");
    if most == classes as i64 {
        return Err(Unfit(format!("{text}: if the first class has the number 1, set `first_label` to 1")));
    }
    Ok(Some(format!("{text}: the first has no image; if its number is 1, set `first_label` to 1")))
}
