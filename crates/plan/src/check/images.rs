//! A source of images: every image is read, counted by class and size, and the first of each class drawn on a sheet.

use std::{fmt::Write as _, path::Path};

use serde_json::Value;
use stage::{Context, Unfit, Usage};
use stage_report::{Thumbnail, contact_sheet};
use stage_sample::Survey;

use crate::{Options, Sources, sources};

/// Pictures on a sheet, and classes in the list that have no image.
const MOST: usize = 100;

/// Reads all images of a source; what was understood, as text. The sheet goes to `sheet`.
///
/// # Errors
/// With exit codes as the stage `sample` has them.
pub fn check(sources: &Sources, name: &str, options: &Options, sheet: &Path) -> anyhow::Result<String> {
    let images = sources.images(name).map_err(Usage)?;
    let root = options.data_root.as_deref();
    let place = sources::first(&images.from, root)
        .ok_or_else(|| Unfit(format!("images `{name}` are not at hand: {}", sources::advice(&images.from, root))))?;
    let mut params = images.defaults();
    // As they are, for what they are is the question.
    params.shift_remove("resize");
    params.shift_remove("crop");
    params.insert("source".to_owned(), Value::Object(place.source));
    let params: stage_sample::Params = serde_path_to_error::deserialize(Value::Object(params))
        .map_err(|error| Usage(format!("images `{name}`: {error}")))?;
    let mut ctx = Context::new(sheet);
    ctx.data_root = options.data_root.clone();
    let survey = Survey::of(&params, &ctx)?;
    artifact::write_atomic(sheet, &drawn(&survey)?)?;
    Ok(told(name, &survey, place.count, sheet))
}

/// The first image of each class.
fn drawn(survey: &Survey) -> anyhow::Result<Vec<u8>> {
    let thumbnail = |(&label, png): (&u32, &Vec<u8>)| {
        let pixels = stage::images::decode(png)?;
        let (plane, name) = (pixels.height * pixels.width, &survey.classes[label as usize].0);
        let number = label.to_string();
        Ok(Thumbnail {
            rows: pixels.height as u32,
            columns: pixels.width as u32,
            rgb: (0..plane).flat_map(|at| [0, 1, 2].map(|channel| pixels.pixels[channel * plane + at])).collect(),
            caption: if *name == number { number } else { format!("{label} {name}") },
        })
    };
    contact_sheet(survey.first.iter().take(MOST).map(thumbnail).collect::<anyhow::Result<_>>()?)
}

/// What was understood, line by line.
fn told(name: &str, survey: &Survey, stated: Option<u64>, sheet: &Path) -> String {
    let images: u64 = survey.classes.iter().map(|(_, count)| count).sum();
    let mut text = format!("{name}: {images} images in {} classes\n", survey.classes.len());
    if let Some(stated) = stated.filter(|&stated| stated != images) {
        writeln!(text, "the source says {stated} images (`count`): correct it, or look for what is missing")
            .expect("a string takes all");
    }
    for note in &survey.notes {
        writeln!(text, "{note}").expect("as above");
    }
    let sizes: Vec<String> =
        survey.sizes.iter().take(8).map(|((rows, columns), count)| format!("{count} of {rows}x{columns}")).collect();
    let more =
        if survey.sizes.len() > 8 { format!(", and {} more sizes", survey.sizes.len() - 8) } else { String::new() };
    writeln!(text, "rows x columns: {}{more}", sizes.join(", ")).expect("as above");
    if survey.sizes.len() > 1 {
        writeln!(text, "images of several sizes need `resize` and `crop`").expect("as above");
    }
    writeln!(text, "{:>5}  {:<40} images", "class", "name").expect("as above");
    let empty = survey.classes.iter().filter(|(_, count)| *count == 0).count();
    for (class, (name, count)) in survey.classes.iter().enumerate().filter(|(_, (_, n))| *n > 0 || empty <= MOST) {
        writeln!(text, "{class:>5}  {name:<40} {count}").expect("as above");
    }
    if empty > MOST {
        writeln!(text, "{empty} more classes have no image").expect("as above");
    }
    writeln!(text, "{}: the first image of each class", sheet.display()).expect("as above");
    text
}
