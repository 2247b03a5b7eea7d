//! The report's parameters, as `plan` writes them: what to tabulate, from which artifacts, beside which claims.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Figure;

/// Everything one report is made from; written by `plan` as `data/plan/<scale>/report--<pipeline>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The pipeline's name: its file's stem.
    pub pipeline: String,
    /// `demo`, `cifar10` or `paper`.
    pub scale: String,
    /// One line.
    pub title: String,
    /// Prose (Markdown) printed above the table.
    pub analysis: String,
    /// How the table is laid out.
    pub layout: Layout,
    /// The cells, axes crossed in their order (the last one fastest); labels are to be printed in order of appearance.
    pub cells: Vec<Cell>,
    /// Two points of one axis to compare in every remaining cell; null for no comparison.
    #[serde(default)]
    pub compare: Option<Comparison>,
    /// Cells of equal strength to compare; null for no comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal_strength: Option<EqualStrength>,
    /// Figures beside the table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<Figure>,
    /// What the paper claims.
    #[serde(default)]
    pub paper: Vec<Claim>,
    /// Sentences (Markdown) printed under the table: what each protocol changes, what was scaled.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The table of closed forms, for a pipeline of kind `theory`; it has no cells.
    #[serde(default)]
    pub theory: Option<TheoryTable>,
}

/// Rows and columns of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Layout {
    /// Axes down the side, outermost first.
    pub rows: Vec<String>,
    /// Axes along the top, outermost first.
    pub columns: Vec<String>,
    /// Axes of which the best point is taken, separately for each remaining cell: best for the adversary, chosen on the
    /// test images themselves (as the paper does, an optimistic choice), and beside it cross-fitted: chosen on the
    /// images at even positions and judged on those at odd ones, and the other way round, the counts added.
    pub best_over: Vec<String>,
    /// Axes along which the images that count are made the same: with some, [`Quantity::CommonAttackSuccessRate`] is
    /// reported, over the images that every point of these axes counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub common: Vec<String>,
}

/// How the votes of a cell are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    /// The printed number.
    pub value: Quantity,
    /// How the printed number aggregates the votes.
    pub rule: Rule,
    /// Further rules that go into the data files but not into the printed table.
    pub more_rules: Vec<Rule>,
}

/// Whose rules a cell follows where the paper's text, its code and good practice differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// The paper's text.
    PaperText,
    /// The authors' released code, with its departures from the text.
    AuthorsCode,
    /// What the text means, with known faults of both mended.
    #[default]
    Corrected,
}

impl Protocol {
    /// The name in the data files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PaperText => "paper-text",
            Self::AuthorsCode => "authors-code",
            Self::Corrected => "corrected",
        }
    }
}

/// A paired comparison on one axis: for every remaining cell, `other` against `base` over the same images.
///
/// Reported are the difference of the printed rates, other less base, and, where a share is given, the margin of the claim
/// that `other` reaches at least this share of `base`'s rate: other less `share` times base. The claim holds where the
/// margin's whole 95% interval is at or above 0, fails where all of it is below, and is undecided otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The axis.
    pub axis: String,
    /// The label of the point compared with.
    pub base: String,
    /// The label of the point that is compared.
    pub other: String,
    /// Which part of the base's rate the other is claimed to reach, in `(0, 1]`; null where nothing is claimed.
    #[serde(default)]
    pub share: Option<f64>,
}

/// A paired comparison along the diagonals of a grid of steps and draws: every cell of several draws per step against the
/// cell of one draw that takes as many gradients in all, over the same images. What is reported is as in [`Comparison`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EqualStrength {
    /// The axis of steps, whose labels are numbers.
    pub steps: String,
    /// The axis of draws per step, whose labels are numbers; one of them is 1.
    pub draws: String,
    /// Which part of the rate of several draws one draw is claimed to reach, in `(0, 1]`; null where nothing is claimed.
    #[serde(default)]
    pub share: Option<f64>,
}

/// What the printed table shows. An image that a detector flags is neither right nor has the adversary what it wants; flagged
/// after the attack, it is robust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Share of all images whose aggregated prediction is their class.
    BenignAccuracy,
    /// Among images that do not satisfy the objective before the attack, the share that does after it. Images of the target's
    /// class have nothing to lose: they are not among them.
    #[default]
    AttackSuccessRate,
    /// The same among the images that do not satisfy the objective before the attack at any point of the axes
    /// [`Layout::common`]: a denominator that does not change with the network. There is none without such axes.
    CommonAttackSuccessRate,
    /// Share of all images whose aggregated prediction satisfies the objective after the attack, those included that did
    /// so before it: an untargeted adversary is credited with the network's own errors, as robustml counts. Images of the
    /// target's class never do.
    AttackedError,
    /// Share of all images whose aggregated prediction is their class after the attack, whatever it was before; an image
    /// that a detector flags counts as right.
    AttackedAccuracy,
    /// Mean share of single draws that satisfy the objective after the attack.
    SoftAttackSuccessRate,
    /// Share of all images whose aggregated prediction is their class before and after the attack.
    RobustAccuracy,
    /// Mean share, over all images, of single draws of the defense before the attack that the network answers as it
    /// answers the image without the defense: the paper's Pr[F(t(x)) = F(x)]. Needs [`Cell::undefended`].
    InvarianceRate,
}

impl Quantity {
    /// Every quantity, in the order of the data files.
    pub const ALL: [Self; 8] = [
        Self::BenignAccuracy,
        Self::AttackSuccessRate,
        Self::CommonAttackSuccessRate,
        Self::AttackedError,
        Self::AttackedAccuracy,
        Self::SoftAttackSuccessRate,
        Self::RobustAccuracy,
        Self::InvarianceRate,
    ];

    /// Whether it counts single draws, rather than images.
    #[must_use]
    pub const fn counts_draws(self) -> bool {
        matches!(self, Self::SoftAttackSuccessRate | Self::InvarianceRate)
    }

    /// Whether it is about what happens before any attack: it has no baselines and no queries.
    #[must_use]
    pub const fn is_before(self) -> bool {
        matches!(self, Self::BenignAccuracy | Self::InvarianceRate)
    }

    /// The name in the data files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BenignAccuracy => "benign_accuracy",
            Self::AttackSuccessRate => "attack_success_rate",
            Self::CommonAttackSuccessRate => "common_attack_success_rate",
            Self::AttackedError => "attacked_error",
            Self::AttackedAccuracy => "attacked_accuracy",
            Self::SoftAttackSuccessRate => "soft_attack_success_rate",
            Self::RobustAccuracy => "robust_accuracy",
            Self::InvarianceRate => "invariance_rate",
        }
    }
}

/// How the draws of one image become one prediction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which rule.
    pub name: RuleName,
    /// Use the first `n` draws; null for all of them. Refused where fewer were drawn and the outcome is not settled.
    #[serde(default)]
    pub n: Option<u32>,
}

/// The rules of aggregation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleName {
    /// The most frequent class, the smallest one on ties.
    #[default]
    Majority,
    /// The objective counts as satisfied if any draw satisfies it.
    Any,
    /// The objective counts as satisfied if every draw satisfies it.
    All,
    /// The class with the largest mean logit; needs `keep_logits` in the attack's parameters, and `n` must be null.
    MeanLogits,
    /// The class with the largest mean probability; needs `keep_logits` too, and `n` must be null.
    MeanSoftmax,
}

impl RuleName {
    /// The name in the data files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Majority => "majority",
            Self::Any => "any",
            Self::All => "all",
            Self::MeanLogits => "mean-logits",
            Self::MeanSoftmax => "mean-softmax",
        }
    }
}

/// One cell: a network, a defense, an attack, a goal, and where their rows are.
///
/// Folders are the artifacts' folders as they stand on the report's command line (`data/attack/rotation--pgd--3f5d509e`),
/// so an input belongs to the cell whose folder is its path's parent. Several cells may name one folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Axis to label of the point.
    pub at: BTreeMap<String, String>,
    /// Everything that defines the cell, flattened: `attack.epsilon` to `"8/255"`, `defense.degrees` to `90`, ...
    pub parameters: BTreeMap<String, Value>,
    /// Whose rules it follows.
    pub protocol: Protocol,
    /// How its votes are read.
    #[serde(default)]
    pub reading: Reading,
    /// Folder of the votes after the attack.
    pub attack: String,
    /// The step of the attack to read; null for the last one.
    #[serde(default)]
    pub step: Option<u32>,
    /// Folder of the companion with no perturbation: `before` votes and baseline zero.
    pub none: String,
    /// Folder of the companion with uniform noise in the same ball: baseline noise.
    pub noise: String,
    /// Folder of the same network's answers about the clean images without any defense; where it is given, the
    /// invariance rate is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undefended: Option<String>,
    /// Folder of the network's table.
    pub finetune: String,
}

/// One number the paper reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The cells it is about: those whose labels include all of these. For a theory table, columns of its rows to
    /// their values as text (`k` to `"1"`, absent for the undefended classifier).
    pub at: BTreeMap<String, String>,
    /// Which number of those cells: a quantity's name, or one of [`QUERIES`]; null for the one that is printed.
    #[serde(default)]
    pub quantity: Option<String>,
    /// The number: a rate in `[0, 1]`, or evaluations of the network per image.
    pub value: f64,
    /// Where it stands and what to mind.
    #[serde(default)]
    pub note: String,
}

/// Numbers that a claim may be about beside the rates: evaluations of the network per image by the attack.
pub const QUERIES: [&str; 2] = ["forward_queries", "backward_queries"];

/// A table of closed forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TheoryTable {
    /// Folder of the `theory` artifact.
    pub table: String,
}
