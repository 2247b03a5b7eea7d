//! What decides the weights.

use serde::{Deserialize, Serialize};
use stage::{
    Epoch,
    classes::{self, Classes},
};
use trained::Model;

/// Parameters of the stage `finetune`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The network.
    pub model: Model,
    /// The weights to start from.
    pub init: Init,
    /// The classes of these weights, in order of their logits, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    /// Those of `classes` that the network keeps, in this order: the last layer loses the rows of all others, and `model` has
    /// only these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_classes: Option<Classes>,
    /// How to train; without it the initial weights are stored as epoch 0.
    #[serde(default)]
    pub training: Option<Training>,
    /// The defense every training image passes, with one fresh draw per image and epoch.
    #[serde(default)]
    pub defense: Option<defenses::Spec>,
    /// Names the run's random numbers.
    #[serde(default)]
    pub seed: u64,
}

/// Where the first weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Init {
    /// Drawn from the seed.
    Fresh {},
    /// A program's own: it brings them with it, and the table has none.
    Own {},
    /// A local file: safetensors, or a torch checkpoint of any layout, read without executing code.
    File {
        /// Absolute, or below the data root.
        path: String,
        /// SHA-256 in hexadecimal that the file must have.
        #[serde(default)]
        sha256: Option<String>,
        /// What stands before the names of the network's tensors in the file, as `state_dict_ema` or `student`; `""` for
        /// nothing. Needed where the file holds several networks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// Whether the last layer starts fresh, as for other classes than those of the weights.
        #[serde(default)]
        new_head: bool,
    },
    /// A file on the Hugging Face hub.
    Hub {
        /// `owner/name` of the model.
        repo: String,
        /// A commit, branch or tag; a commit pins the content.
        revision: String,
        /// The file in the repository.
        file: String,
        /// SHA-256 in hexadecimal that the file must have.
        #[serde(default)]
        sha256: Option<String>,
        /// What stands before the names of the network's tensors in the file, as `state_dict_ema` or `student`; `""` for
        /// nothing. Needed where the file holds several networks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// Whether the last layer starts fresh, as for other classes than those of the weights.
        #[serde(default)]
        new_head: bool,
    },
    /// An epoch of the finetune table among the inputs.
    Finetuned {
        /// Which one.
        epoch: Epoch,
        /// Whether the last layer starts fresh, as for other classes than those of the weights.
        #[serde(default)]
        new_head: bool,
    },
}

impl Init {
    /// The file of the hub that it names, if it names one.
    #[must_use]
    pub fn hub_file(&self) -> Option<hub::File> {
        let Self::Hub { repo, revision, file, sha256, .. } = self else { return None };
        Some(hub::File {
            kind: hub::Kind::Model,
            repo: repo.clone(),
            revision: revision.clone(),
            path: file.clone(),
            sha256: sha256.clone(),
        })
    }
}

/// The training recipe; the defaults are those of the paper's fine-tuning (appendix D.2 and the authors' code).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Passes over the training images.
    pub epochs: u32,
    /// Images per optimiser step.
    pub batch: usize,
    /// AdamW's learning rate in the first epoch.
    pub learning_rate: f64,
    /// The cosine schedule's end, reached after the last epoch.
    pub min_learning_rate: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Random shifts, flips and crops.
    pub augment: Augment,
    /// Share of the images held out for validation, in `[0, 1)`.
    pub validation: f64,
    /// Whether validation images pass the defense (the authors' did not).
    pub defend_validation: bool,
    /// Which epochs' weights are kept.
    pub keep: Keep,
    /// Whether the images left over after the last full batch of an epoch are skipped.
    pub drop_last: bool,
    /// The attack that every training image undergoes against the network of that step, before it passes the defense:
    /// one fresh run per image and epoch, away from the true class (Madry et al. 2018). Its last iterate trains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<attacks::Spec>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch: 256,
            learning_rate: 1e-3,
            min_learning_rate: 0.0,
            weight_decay: 1e-2,
            augment: Augment::default(),
            validation: 0.1,
            defend_validation: false,
            keep: Keep::Best,
            drop_last: true,
            adversarial: None,
        }
    }
}

/// Random changes of a training image that keep its class, before any defense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Shift by up to this many pixels in each direction, filling with black (4 is customary for CIFAR-10).
    pub crop_padding: u32,
    /// Cut a square of this side at a random place; the validation images are cut at their centres.
    pub random_crop: Option<u32>,
    /// Mirror left and right with probability one half.
    pub flip: bool,
}

/// Which epochs' weights are kept beside the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The best by validation accuracy, and the last.
    #[default]
    Best,
    /// The last.
    Last,
    /// All of them.
    Every,
}

impl Params {
    /// Finds combinations that cannot work, so that a planner can refuse them before anything runs.
    ///
    /// # Errors
    /// With a sentence that names the parameter and the mend.
    pub fn check(&self) -> Result<(), String> {
        if let Init::File { sha256: Some(digest), .. } | Init::Hub { sha256: Some(digest), .. } = &self.init
            && (digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(format!("init.sha256: `{digest}` is no SHA-256; write 64 hexadecimal digits"));
        }
        self.model.check().map_err(|fault| format!("model: {fault}"))?;
        match (self.model.program(), &self.init) {
            (Some(_), Init::Own {}) if self.training.is_some() => {
                return Err("training: a program brings its own weights; leave `training` out".to_owned());
            }
            (Some(_), Init::Own {}) => {}
            (Some(_), _) => return Err("init: a program brings its own weights: init = { name = \"own\" }".to_owned()),
            (None, Init::Own {}) => {
                return Err(
                    "init: only a program brings its own weights; take fresh, file, hub or finetuned".to_owned()
                );
            }
            (None, _) => {}
        }
        if let Some(spec) = self.model.candle() {
            self.check_candle(spec)?;
        }
        self.check_classes()?;
        if let Some(defense) = &self.defense {
            defense.check().map_err(|fault| format!("defense: {fault}"))?;
        }
        match &self.training {
            Some(training) => training.check(),
            None if self.defense.is_some() => {
                Err("defense: without training nothing passes it; add `training` or leave `defense` out".to_owned())
            }
            None => Ok(()),
        }
    }
}

impl Params {
    /// A network of candle's library is imported as it is.
    fn check_candle(&self, spec: &zoo::Spec) -> Result<(), String> {
        let name = &spec.architecture;
        if self.training.is_some() {
            let text = "is attacked as it is imported, and not trained here; leave `training` out";
            return Err(format!("training: `{name}` {text}, or take an architecture of our own, as `resnet`"));
        }
        match self.init {
            Init::File { new_head: true, .. }
            | Init::Hub { new_head: true, .. }
            | Init::Finetuned { new_head: true, .. } => Err(format!(
                "init.new_head: `{name}` is not trained here, and a fresh last layer knows nothing; leave it out"
            )),
            _ => Ok(()),
        }
    }

    /// The classes of the network, where they are known.
    #[must_use]
    pub fn named(&self) -> Option<Vec<String>> {
        self.keep_classes.as_ref().or(self.classes.as_ref()).map(Classes::names)
    }

    /// The rows of the last layer that are kept; none where all are.
    ///
    /// # Errors
    /// If a class is not among those of the weights.
    pub fn rows(&self) -> Result<Option<Vec<u32>>, String> {
        let (Some(keep), Some(all)) = (&self.keep_classes, &self.classes) else { return Ok(None) };
        let rows = match keep {
            Classes::Count(_) => return Err("keep_classes: a number does not say which: name them".to_owned()),
            keep => classes::place(&keep.names(), &all.names()),
        };
        rows.map(Some).map_err(|fault| format!("keep_classes: {fault}; name some of `classes`"))
    }

    fn check_classes(&self) -> Result<(), String> {
        for (name, classes) in [("classes", &self.classes), ("keep_classes", &self.keep_classes)] {
            classes.as_ref().map_or(Ok(()), Classes::check).map_err(|fault| format!("{name}: {fault}"))?;
        }
        let Some(named) = self.named() else { return Ok(()) };
        if self.classes.is_none() {
            return Err("keep_classes: name the classes of the weights in `classes` too".to_owned());
        }
        let new_head = match self.init {
            Init::Fresh {} | Init::Own {} => true,
            Init::File { new_head, .. } | Init::Hub { new_head, .. } | Init::Finetuned { new_head, .. } => new_head,
        };
        if new_head {
            let text = "a fresh last layer has the classes of the images it is trained on; leave `classes` and `keep_classes` out";
            return Err(format!("classes: {text}"));
        }
        if self.keep_classes.is_some() && !matches!(self.model, Model::Graph(_)) {
            return Err("keep_classes: only of a network of our own; leave it out".to_owned());
        }
        if let Some(model) = self.model.classes().filter(|&model| model != named.len()) {
            let named = named.len();
            return Err(format!("model.classes: {named} classes are named and the network has {model}"));
        }
        self.rows().map(drop)
    }
}

impl Training {
    fn check(&self) -> Result<(), String> {
        if self.epochs == 0 {
            return Err("training.epochs: 0 trains nothing; leave `training` out to import weights".to_owned());
        }
        if self.batch < 2 {
            return Err("training.batch: batch normalisation needs at least 2 images".to_owned());
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Err(format!("training.learning_rate: {} is not positive", self.learning_rate));
        }
        if !(0.0..=self.learning_rate).contains(&self.min_learning_rate) {
            return Err(format!(
                "training.min_learning_rate: {} is not between 0 and the learning rate {}",
                self.min_learning_rate, self.learning_rate
            ));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(format!("training.weight_decay: {} is negative", self.weight_decay));
        }
        if !(0.0..1.0).contains(&self.validation) {
            return Err(format!("training.validation: {} is not a share in [0, 1)", self.validation));
        }
        if self.keep == Keep::Best && self.validation == 0.0 {
            return Err("training.keep: `best` needs validation images; set `validation` or keep `last`".to_owned());
        }
        if self.augment.random_crop == Some(0) {
            return Err("training.augment.random_crop: 0 pixels are no image".to_owned());
        }
        self.adversarial.as_ref().map_or(Ok(()), check_adversarial)
    }
}

/// Finds attacks that training cannot use.
fn check_adversarial(attack: &attacks::Spec) -> Result<(), String> {
    attack.check().map_err(|fault| format!("training.adversarial: {fault}"))?;
    if attack.build().needs_guides() {
        let name = attack.name();
        return Err(format!(
            "training.adversarial: `{name}` imitates other images, which training has not; take `pgd`"
        ));
    }
    if attack.steps().len() != 1 {
        let steps = attack.steps();
        return Err(format!("training.adversarial: of the snapshots after {steps:?} steps one can train; name one"));
    }
    Ok(())
}
