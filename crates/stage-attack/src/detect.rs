//! The fitted detector of a detector table.

use artifact::DetectorRow;
use candle_core::Tensor;
use defenses::{Detector, Odds, Pair, Statistics, quantile};
use game::{Classifier, Key};
use serde_json::Value;
use stage::{Context, Epoch, Invalid, Table, Unfit};
use trained::Trained;

use crate::{Detection, Params};

/// A detector that knows clean images.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fitted {
    odds: Odds,
    statistics: Statistics,
    quantile: f64,
}

impl Fitted {
    /// The detector among the inputs, if the parameters ask for one; it must be fitted to the attacked network.
    pub fn open(params: &Params, trained: &Trained, ctx: &Context) -> anyhow::Result<Option<Self>> {
        let Some(Detection { false_positive_rate }) = params.detector else { return Ok(None) };
        let table = ctx.table::<DetectorRow>()?;
        let name = table.parts[0].path.display();
        let fitted = table.provenance().parameters.clone();
        let detector = serde_json::from_value(fitted.get("detector").cloned().unwrap_or(Value::Null));
        let foreign = |fault| Unfit(format!("{name}: does not name its detector ({fault}); run fit again"));
        let Detector::Odds(odds) = detector.map_err(foreign)?;
        same_network(params, trained, &table, &fitted)
            .map_err(|fault| Unfit(format!("{name}: {fault}; fit a detector to this network")))?;
        let statistics = statistics(trained.network.classes(), &table.rows)
            .map_err(|fault| Unfit(format!("{name}: {fault}; run fit again")))?;
        Ok(Some(Self { odds, statistics, quantile: quantile(false_positive_rate) }))
    }

    /// Forward evaluations of the network per image.
    pub fn draws(&self) -> u64 {
        self.odds.draws.into()
    }

    /// Which of the images `x`, whose logits are given, it takes for adversarial; `keys` are its own, one per image.
    pub fn flags(
        &self,
        net: &dyn Classifier,
        x: &Tensor,
        logits: &Tensor,
        keys: &[Key],
        batch: usize,
    ) -> anyhow::Result<Vec<bool>> {
        let erosions = self.odds.erosion(net, x, logits, keys, batch)?;
        if !erosions.iter().all(defenses::Erosion::is_finite) {
            let text = "the network answers the detector with logits that are no finite numbers";
            return Err(Invalid(format!("{text}: its weights are no good")).into());
        }
        Ok(erosions.iter().map(|erosion| self.statistics.flags(erosion, self.quantile)).collect())
    }
}

/// Whether the detector knows the network that is attacked.
fn same_network(params: &Params, trained: &Trained, table: &Table<DetectorRow>, fitted: &Value) -> Result<(), String> {
    let known = &table.provenance().inputs;
    if !trained.table.parts.iter().all(|part| known.values().any(|sha256| *sha256 == part.sha256)) {
        return Err(format!("fitted to another network than {}", trained.table.parts[0].path.display()));
    }
    let read = |key: &str| fitted.get(key).cloned().unwrap_or(Value::Null);
    let epoch: Epoch = serde_json::from_value(read("epoch")).map_err(|fault| format!("names no epoch ({fault})"))?;
    let (theirs, ours) = (epoch.choose(&trained.table.rows)?.epoch, params.epoch.choose(&trained.table.rows)?.epoch);
    if theirs != ours {
        return Err(format!("fitted to epoch {theirs}, not {ours}"));
    }
    let inside: Option<nets::Inside> = serde_json::from_value(read("inside")).map_err(|fault| fault.to_string())?;
    if inside != params.inside {
        return Err("fitted with other randomness inside the network".to_owned());
    }
    Ok(())
}

/// The statistics in the rows: one per predicted and other class, each once.
fn statistics(classes: usize, rows: &[DetectorRow]) -> Result<Statistics, String> {
    let mut statistics = Statistics::empty(classes);
    let mut seen = vec![false; classes * classes];
    for row in rows {
        let (predicted, other) = (row.predicted as usize, row.other as usize);
        let known = match (row.images, row.mean, row.standard_deviation) {
            (0, None, None) => Some((0.0, 0.0)),
            (1.., Some(mean), Some(deviation)) if mean.is_finite() && deviation >= 0.0 && deviation.is_finite() => {
                Some((mean, deviation))
            }
            _ => None,
        };
        let place = (predicted.max(other) < classes && predicted != other).then_some(predicted * classes + other);
        let (Some((mean, deviation)), Some(place)) = (known, place) else {
            return Err(format!("no statistics of a network of {classes} classes: {row:?}"));
        };
        if std::mem::replace(&mut seen[place], true) {
            return Err(format!("classes {predicted} and {other} stand there twice"));
        }
        *statistics.pair_mut(predicted, other) = Pair { images: row.images, mean, deviation };
    }
    if rows.len() == classes * classes.saturating_sub(1) {
        Ok(statistics)
    } else {
        Err(format!("{} rows, a network of {classes} classes has {}", rows.len(), classes * (classes - 1)))
    }
}
