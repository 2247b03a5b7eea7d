//! Tables and figures from artifacts: Markdown, CSV, JSON, LaTeX, SVG, PNG, and the tidy Parquet.
//!
//! Attack tables hold every draw of every image. Here they are joined with their companions, reduced by the rules of
//! the layout, counted, laid out and drawn; a theory table is laid out as it is.

mod compare;
mod data;
mod decide;
mod document;
mod draw;
mod figures;
mod grid;
mod line;
mod outcome;
mod params;
mod programs;
mod sheet;
mod splice;
mod theory;
mod theory_figure;
mod tidy;

use std::path::Path;

use anyhow::Result;
use artifact::{ReportRow, TheoryRow, Writer, write_atomic};
use figures::Drawn;
pub use figures::{
    Along, Curves, Figure, FigureKind, HeatMap, Histogram, Intervals, Lines, MORE_AXES, Perturbations, Scatter,
};
pub use params::{
    Cell, Claim, Comparison, EqualStrength, Layout, Params, Protocol, QUERIES, Quantity, Reading, Rule, RuleName,
    TheoryTable,
};
pub use sheet::{Thumbnail, contact_sheet};
pub use splice::splice;
use stage::{Context, Stage, Unfit};

/// The stage `report`.
#[derive(Debug)]
pub struct Report;

impl Stage for Report {
    const NAME: &'static str = "report";
    const REVISION: u32 = 4;
    const ABOUT: &'static str =
        "Tables and figures from artifacts: Markdown, CSV, JSON, LaTeX, SVG and PNG beside the tidy Parquet";
    type Params = Params;
    type Row = ReportRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<ReportRow>) -> Result<()> {
        let report = Files::make(params, ctx)?;
        let file = |extension| ctx.out.with_extension(extension);
        write_atomic(&file("json"), tidy::json(&report.rows)?.as_bytes())?;
        write_atomic(&file("csv"), tidy::csv(&report.rows)?.as_bytes())?;
        write_atomic(&file("tex"), report.latex.as_bytes())?;
        write_atomic(&file("md"), report.markdown.as_bytes())?;
        for figure in &report.figures {
            figure.write(&ctx.out)?;
        }
        out.push(&report.rows)?;
        show(&report.table, &file("md"));
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "the table is what the user asked for")]
fn show(table: &str, path: &Path) {
    println!("\n{table}\n{}", path.display());
}

/// What a report writes.
struct Files {
    rows: Vec<ReportRow>,
    markdown: String,
    latex: String,
    table: String,
    figures: Vec<Drawn>,
}

impl Files {
    fn make(params: &Params, ctx: &Context) -> Result<Self> {
        if params.theory.is_some() { Self::theory(params, ctx) } else { Self::attacks(params, ctx) }
    }

    fn attacks(params: &Params, ctx: &Context) -> Result<Self> {
        let store = data::Store::read(ctx)?;
        let params = &Params { notes: [params.notes.clone(), programs::notes(&ctx.inputs)].concat(), ..params.clone() };
        let lines = line::lines(params, &store)?;
        let document = document::Document::new(params, &lines)?;
        let figures = figures::draw(params, &store, &lines)?;
        let mut rows = document.rows();
        rows.extend(figures::more_rows(&figures));
        Ok(Self {
            rows,
            markdown: document.markdown(&figures::markdown(&figures), &ctx.inputs),
            latex: document.latex(),
            table: document.table(),
            figures,
        })
    }

    fn theory(params: &Params, ctx: &Context) -> Result<Self> {
        let table = &params.theory.as_ref().map_or("", |theory| theory.table.as_str());
        let parts = ctx.read::<TheoryRow>()?;
        let own = |path: &Path| path.parent() == Some(Path::new(table));
        let rows: Vec<TheoryRow> =
            parts.into_iter().filter(|(input, _)| own(&input.path)).flat_map(|(_, rows)| rows).collect();
        if rows.is_empty() {
            return Err(Unfit(format!("{table}: no part of this table is among the inputs; make it first")).into());
        }
        let theory = theory::Theory::new(params, &rows)?;
        Ok(Self {
            rows: theory.report_rows(),
            markdown: theory.markdown(&ctx.inputs),
            latex: theory.latex(),
            table: theory.table(),
            figures: theory.figure().into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use artifact::AttackRow;

    /// A row with votes and nothing else of note.
    pub(crate) fn row(id: u32, label: u32, phase: &str, votes: &[u16]) -> AttackRow {
        AttackRow {
            id,
            label,
            target: None,
            phase: phase.to_owned(),
            step: 0,
            votes: votes.to_vec(),
            flags: None,
            mean_logits: None,
            mean_probabilities: None,
            loss: None,
            linf: 0.0,
            l2: 0.0,
            zero_gradient: None,
            non_finite: 0,
            forward_queries: 0,
            backward_queries: 0,
            delta: None,
        }
    }
}
