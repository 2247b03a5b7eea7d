//! A source of weights: the file is read, the network built, and asked about images.

use std::{fmt::Write as _, path::Path};

use artifact::FinetuneRow;
use serde_json::{Value, json};
use stage::{Context, Input, Unfit, Usage};
use stage_finetune::{Finetune, Understood};
use stage_sample::Sample;

use crate::{Options, Sources, sources, sources::Expect};

/// How many standard errors an accuracy may be away from what is expected.
const FAR: f64 = 3.0;

/// Reads the weights of a source, and asks the network about `images` where they are named; what was understood, as text.
///
/// # Errors
/// With exit codes as the stages have them; 3 too where the source expects another accuracy on these images.
pub fn check(sources: &Sources, name: &str, images: Option<&str>, options: &Options) -> anyhow::Result<String> {
    let weights = sources.weights(name).map_err(Usage)?;
    let root = options.data_root.as_deref();
    let place = sources::first(&weights.from, root)
        .ok_or_else(|| Unfit(format!("weights `{name}` are not at hand: {}", sources::advice(&weights.from, root))))?;
    let mut params = json!({"model": weights.model, "init": place.source});
    if let Some(classes) = &weights.classes {
        params["classes"] = classes.clone();
    }
    let params: stage_finetune::Params = typed(params).map_err(|fault| Usage(format!("weights `{name}`: {fault}")))?;
    let folder = tempfile::tempdir()?;
    let mut ctx = context(&folder.path().join("finetune/part.parquet"), options);
    let understood = Understood::of(&params, &ctx)?;
    let mut text = told(name, &params, understood.as_ref());
    let Some(images) = images else {
        writeln!(text, "no images: make check-source WEIGHTS={name} IMAGES=... asks the network").expect("a string");
        return Ok(text);
    };
    ctx.inputs = vec![sample(sources, images, options, &folder.path().join("sample/part.parquet"))?];
    stage::run::<Finetune>(&params, &ctx)?;
    let (_, rows) = artifact::read::<FinetuneRow>(&ctx.out)?;
    let counts = rows.first().and_then(|row| row.validation_correct.zip(row.validation_images));
    let (right, asked) = counts.ok_or_else(|| Unfit(format!("images `{images}`: there is none")))?;
    let accuracy = f64::from(right) / f64::from(asked);
    write!(text, "{images}: {right} of {asked} right, {:.1}%", 100.0 * accuracy).expect("a string");
    let Some(Expect { accuracy: expected, .. }) = weights.expect.iter().find(|expect| expect.images == images) else {
        text += "; the source expects nothing of these images\n";
        return Ok(text);
    };
    let error = (expected * (1.0 - expected) / f64::from(asked)).sqrt();
    write!(text, "; {:.1}% expected, with a standard error of {:.1}", 100.0 * expected, 100.0 * error)
        .expect("a string");
    if (accuracy - expected).abs() > FAR * error.max(0.5 / f64::from(asked)) {
        let mend = "look at the model's `mean` and `std`, its padding, the images' `resize`, and the order of classes";
        return Err(Unfit(format!("{text}: too far away; {mend}")).into());
    }
    text += "\n";
    Ok(text)
}

/// The images of a source as pipelines get them, as a table.
fn sample(sources: &Sources, name: &str, options: &Options, out: &Path) -> anyhow::Result<Input> {
    let images = sources.images(name).map_err(Usage)?;
    let root = options.data_root.as_deref();
    let place = sources::first(&images.from, root)
        .ok_or_else(|| Unfit(format!("images `{name}` are not at hand: {}", sources::advice(&images.from, root))))?;
    let mut params = images.defaults();
    params.insert("source".to_owned(), Value::Object(place.source));
    let params: stage_sample::Params =
        typed(Value::Object(params)).map_err(|fault| Usage(format!("images `{name}`: {fault}")))?;
    stage::run::<Sample>(&params, &context(out, options))?;
    Ok(Input::open(out)?)
}

fn context(out: &Path, options: &Options) -> Context {
    let mut ctx = Context::new(out);
    ctx.data_root.clone_from(&options.data_root);
    ctx
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| error.to_string())
}

/// What was understood of a file, line by line.
fn told(name: &str, params: &stage_finetune::Params, understood: Option<&Understood>) -> String {
    let mut text = format!("{name}: {}\n", json!(params.model));
    if let Some(spec) = params.model.graph() {
        let [mean, std] = <[[f64; 3]; 2]>::from(spec.normalisation()).map(|values| values.map(|v| format!("{v:.4}")));
        let (mean, std) = (mean.join(", "), std.join(", "));
        writeln!(text, "pixels in [0, 1], less [{mean}], over [{std}]; {} classes", spec.classes()).expect("a string");
    }
    let Some(Understood { path, sha256, taken: (tensors, numbers), prefix, left_out }) = understood else {
        text += "weights are drawn\n";
        return text;
    };
    writeln!(text, "{}, SHA-256 {sha256}", path.display()).expect("a string");
    let under = if prefix.is_empty() { String::new() } else { format!(" under `{prefix}`") };
    writeln!(text, "{tensors} tensors of {numbers} numbers{under}").expect("a string");
    if !left_out.is_empty() {
        let some = left_out.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let more = if left_out.len() > 3 { ", ..." } else { "" };
        writeln!(text, "{} tensors left out: {some}{more}", left_out.len()).expect("a string");
    }
    text
}
