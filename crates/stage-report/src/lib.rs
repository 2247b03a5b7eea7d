//! Tables and figures from artifacts: Markdown, CSV, JSON and LaTeX.

mod params;

pub use params::{Cell, Claim, Layout, Params, Quantity, Rule, RuleName, TheoryTable};
