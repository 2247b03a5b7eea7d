//! Votes before and after an attack, one row per image and number of steps.
//!
//! An image's rows depend on the parameters, the network and the image alone: its keys derive from its id, and neither
//! the images beside it in a batch nor the shard that holds it matter.

pub mod calibrate;
mod cell;
mod detect;
mod metered;
mod params;
mod votes;

use artifact::{AttackRow, Shard, Writer};
use stage::{
    Context, Stage, Unfit, Usage,
    images::{self, Images},
};
use trained::Trained;

pub use params::{Detection, Goal, Params, Stop, Votes};

use crate::{cell::Cell, detect::Fitted};

/// The stage.
#[derive(Debug)]
pub struct Attack;

impl Stage for Attack {
    const NAME: &'static str = "attack";
    const REVISION: u32 = 1;
    const ABOUT: &'static str = "Votes of a defended network before and after an attack, one row per image";
    type Params = Params;
    type Row = AttackRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<AttackRow>) -> anyhow::Result<()> {
        params.check().map_err(Usage)?;
        let trained = Trained::open(params.epoch, params.inside.as_ref(), params.precision, ctx)?;
        let mut programs = trained.programs.clone();
        programs.start(&params.defense, ctx)?;
        programs.record(out.provenance_mut());
        run(params, &trained, ctx, out).map_err(|error| programs.blame(error))
    }
}

fn run(params: &Params, trained: &Trained, ctx: &Context, out: &mut Writer<AttackRow>) -> anyhow::Result<()> {
    // The first image tells the size, and with it how many make a batch.
    let Some(first) = images::chunks(ctx, ctx.shard, params.limit, 1)?.next().transpose()? else {
        ctx.announce("no image of the sample belongs to this part");
        return Ok(());
    };
    fits(params, trained, &first)?;
    let mut batch = trained.batch(&first)?;
    let images = images::count(ctx, ctx.shard, params.limit)?;
    let guides = params.attack.build().needs_guides().then(|| guides(ctx)).transpose()?;
    let detector = Fitted::open(params, trained, ctx)?;
    let cell = Cell { params, ctx, trained, detector: detector.as_ref(), guides: guides.as_ref() };
    cell.announce(images);
    let progress = ctx.progress(cell.evaluations(images), "evaluations");
    for images in images::chunks(ctx, ctx.shard, params.limit, batch)? {
        let images = images?;
        let attack = |part, batch| cell.attack(&images.part(part), batch, &progress);
        out.push(&trained::in_parts(images.len(), &mut batch, attack)?)?;
    }
    drop(progress);
    cell.report();
    Ok(())
}

/// The first image of each class of the whole sample, in the sample's order: the same for every shard.
fn guides(ctx: &Context) -> anyhow::Result<Images> {
    let mut guides: Option<Images> = None;
    for image in images::chunks(ctx, Shard::WHOLE, None, 1)? {
        let image = image?;
        match &mut guides {
            None => guides = Some(image),
            Some(guides) if !guides.labels.contains(&image.labels[0]) => {
                guides.ids.extend(image.ids);
                guides.labels.extend(image.labels);
                guides.pixels.extend(image.pixels);
            }
            Some(_) => {}
        }
    }
    guides.ok_or_else(|| Unfit("the sample holds no image to imitate".to_owned()).into())
}

/// Fails where labels or the target are no classes of the network.
fn fits(params: &Params, trained: &Trained, images: &Images) -> anyhow::Result<()> {
    let classes = trained.network.classes();
    if let Some(class) = params.goal.target().filter(|&class| class as usize >= classes) {
        return Err(Usage(format!("goal.class: the network has classes 0 to {}, and no {class}", classes - 1)).into());
    }
    params
        .attack
        .check_size(images.pixels.len() / images.len().max(1))
        .map_err(|fault| Usage(format!("attack: {fault}")))?;
    Ok(trained.fits(images)?)
}
