//! Statistics of a detector on clean images, one row per predicted and other class.
//!
//! Images are taken as the network classifies them, right or wrong: a detector knows no labels. Their keys derive from
//! their ids, so batches and threads do not matter; the statistics are of all of them together, so there are no parts.

mod params;

use std::time::Instant;

use artifact::{DetectorRow, Shard, Writer};
use defenses::{Detector, Erosion, MIN_IMAGES, Odds, Statistics};
use game::{Key, Phase};
use nets::Precision;
use serde_json::json;
use stage::{
    Context, Invalid, Progress, Stage, Unfit, Usage,
    images::{self, Images},
};
use trained::Trained;

pub use params::Params;

/// Images whose noisy copies are evaluated together; changes no number.
const AT_ONCE: usize = 16;

/// The stage.
#[derive(Debug)]
pub struct Fit;

impl Stage for Fit {
    const NAME: &'static str = "fit";
    const REVISION: u32 = 1;
    const ABOUT: &'static str = "Statistics of a detector on clean images, one row per predicted and other class";
    type Params = Params;
    type Row = DetectorRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<DetectorRow>) -> anyhow::Result<()> {
        params.check().map_err(Usage)?;
        if ctx.shard != Shard::WHOLE {
            return Err(Usage("a fit has no parts: leave --shard out".to_owned()).into());
        }
        let trained = Trained::open(params.epoch, params.inside.as_ref(), Precision::F32, ctx)?;
        let Some(first) = images::chunks(ctx, Shard::WHOLE, params.limit, 1)?.next().transpose()? else {
            return Err(Unfit("the sample holds no image to fit to".to_owned()).into());
        };
        trained.fits(&first)?;
        let Detector::Odds(odds) = &params.detector;
        let fit = Job { params, odds, trained: &trained, batch: trained.batch(&first)? };
        trained.programs.record(out.provenance_mut());
        let statistics = fit.run(ctx).map_err(|error| trained.programs.blame(error))?;
        let untested = statistics.untestable();
        if !untested.is_empty() {
            let text = "will never be flagged: fewer than";
            tracing::warn!("predictions of the classes {untested:?} {text} {MIN_IMAGES} images here were given them");
        }
        out.provenance_mut().facts.insert("untested".to_owned(), json!(untested));
        Ok(out.push(&rows(&statistics))?)
    }
}

/// One run of the stage, its inputs opened.
struct Job<'a> {
    params: &'a Params,
    odds: &'a Odds,
    trained: &'a Trained,
    batch: usize,
}

impl Job<'_> {
    fn run(&self, ctx: &Context) -> anyhow::Result<Statistics> {
        let start = Instant::now();
        let (images, each) = (images::count(ctx, Shard::WHOLE, self.params.limit)?, 1 + u64::from(self.odds.draws));
        ctx.announce(&format!("{} on {images} images: {} evaluations", self.params.detector.name(), images * each));
        let progress = ctx.progress(images * each, "evaluations");
        let mut erosions = Vec::new();
        for images in images::chunks(ctx, Shard::WHOLE, self.params.limit, AT_ONCE)? {
            erosions.extend(self.erosions(&images?, &progress)?);
        }
        ctx.time("detector_queries", images * each, start.elapsed().as_secs_f64());
        Ok(Statistics::fit(self.trained.network.classes(), &erosions))
    }

    fn erosions(&self, images: &Images, progress: &Progress) -> anyhow::Result<Vec<Erosion>> {
        let key = Key::root(self.params.seed).phase(Phase::Fit);
        let keys: Vec<Key> = images.ids.iter().map(|&id| key.image(u64::from(id))).collect();
        let (x, network) = (images.tensor()?, self.trained.network.as_ref());
        // The network's own randomness on the image itself comes after that of the noisy copies.
        let last: Vec<Key> = keys.iter().map(|key| key.at(self.odds.draws.into()).at(1)).collect();
        let logits = network.logits(&x.to_device(network.device())?, &last)?;
        let erosions = self.odds.erosion(network, &x, &logits, &keys, self.batch)?;
        for (id, erosion) in images.ids.iter().zip(&erosions) {
            if !erosion.is_finite() {
                return Err(Invalid(format!("image {id}: the network's logits are no finite numbers")).into());
            }
        }
        progress.advance(images.len() as u64 * (1 + u64::from(self.odds.draws)));
        Ok(erosions)
    }
}

/// One row per predicted and other class, in their order.
fn rows(statistics: &Statistics) -> Vec<DetectorRow> {
    let classes = statistics.classes();
    let pairs = (0..classes).flat_map(|predicted| (0..classes).map(move |other| (predicted, other)));
    let row = |(predicted, other): (usize, usize)| {
        let pair = statistics.pair(predicted, other);
        let known = |value: f64| (pair.images > 0).then_some(value);
        DetectorRow {
            predicted: predicted as u32,
            other: other as u32,
            images: pair.images,
            mean: known(pair.mean),
            standard_deviation: known(pair.deviation),
        }
    };
    pairs.filter(|(predicted, other)| predicted != other).map(row).collect()
}
