//! What a source holds, as the stage understands it: everything is read, and nothing written.

use std::collections::BTreeMap;

use stage::Context;

use crate::{Opened, Orientation, Params};

/// What was understood of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The classes in order of their labels, and how many images each has.
    pub classes: Vec<(String, u64)>,
    /// How many images there are of each number of rows and columns.
    pub sizes: BTreeMap<(u32, u32), u64>,
    /// What was left out, and what is worth a look.
    pub notes: Vec<String>,
    /// The first image of each label, as PNG.
    pub first: BTreeMap<u32, Vec<u8>>,
}

impl Survey {
    /// Reads all images that the parameters keep.
    ///
    /// # Errors
    /// As the stage: where an image or a label is not to be had, or the classes do not fit.
    pub fn of(params: &Params, ctx: &Context) -> anyhow::Result<Self> {
        let opened = Opened::open(params, ctx)?;
        let classes = opened.placement.classes.iter().map(|name| (name.clone(), 0)).collect();
        let mut survey = Self { classes, notes: opened.notes.clone(), ..Self::default() };
        let progress = ctx.progress(opened.kept.len() as u64, "images");
        let mut turned = 0_u64;
        opened.read(&opened.kept, &mut |image| {
            survey.classes[image.row.label as usize].1 += 1;
            *survey.sizes.entry(image.size).or_default() += 1;
            survey.first.entry(image.row.label).or_insert(image.row.png);
            turned += u64::from(image.turned);
            progress.advance(1);
            Ok(())
        })?;
        if opened.kept.len() < opened.reader.len() {
            survey.notes.push(format!("{} of {} images are kept", opened.kept.len(), opened.reader.len()));
        }
        if turned > 0 {
            let what = if params.orientation == Orientation::Apply { "applied" } else { "ignored" };
            survey.notes.push(format!("{turned} images have an orientation in their EXIF, which is {what}"));
        }
        Ok(survey)
    }
}
