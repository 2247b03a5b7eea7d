//! What parameters of several attacks have in common.

use game::{Fraction, Norm, within_pixels};

/// Whether a parameter makes sense, or one sentence why not.
pub(crate) type Check = Result<(), String>;

/// The paper's budget, 8/255.
pub(crate) fn budget() -> Fraction {
    number("8/255")
}

/// A number as it is written.
pub(crate) fn number(text: &str) -> Fraction {
    text.parse().expect("a number")
}

/// Whether a budget makes sense; how large it may be in l2 depends on the images: [`crate::Spec::check_size`].
pub(crate) fn eps(norm: Norm, eps: &Fraction) -> Check {
    if eps.value() < 0.0 {
        return Err(format!("eps = {eps} must be at least 0"));
    }
    if norm == Norm::Linf { pixels("eps", eps) } else { Ok(()) }
}

/// Whether the length of a step makes sense, in the same units as the budget.
pub(crate) fn step(norm: Norm, step_size: &Fraction) -> Check {
    positive("step_size", step_size)?;
    if norm == Norm::Linf { pixels("step_size", step_size) } else { Ok(()) }
}

/// Whether a length is one that pixels in `[0, 1]` can differ by.
pub(crate) fn pixels(name: &str, length: &Fraction) -> Check {
    within_pixels(name, length.value(), length, 1.0)
}

/// Whether a parameter is greater than 0.
pub(crate) fn positive(name: &str, number: &Fraction) -> Check {
    if number.value() > 0.0 { Ok(()) } else { Err(format!("{name} = {number} must be greater than 0")) }
}

/// Whether a decay rate makes sense.
pub(crate) fn decay(name: &str, rate: f64) -> Check {
    if (0.0..1.0).contains(&rate) { Ok(()) } else { Err(format!("{name} = {rate} must be at least 0 and below 1")) }
}

/// Whether the steps of the snapshots make sense.
pub(crate) fn steps(steps: &[usize]) -> Check {
    if steps.is_empty() || steps[0] == 0 || !steps.is_sorted_by(|a, b| a < b) {
        return Err(format!("steps = {steps:?} must be numbers from 1 in ascending order, at least one"));
    }
    Ok(())
}

/// The number of steps.
pub(crate) fn last(steps: &[usize]) -> u64 {
    steps.last().map_or(0, |&steps| steps as u64)
}

/// A few letters for file names.
pub(crate) fn slug(name: &str, steps: &[usize], draws: usize) -> String {
    match draws {
        1 => format!("{name}-{}", last(steps)),
        draws => format!("{name}-{}-eot-{draws}", last(steps)),
    }
}
