//! Text tables: Markdown and LaTeX.

use std::fmt::Write as _;

/// A table of texts; the first `labels` columns are labels, the rest numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Grid {
    pub labels: usize,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    /// A pipe table, columns padded to equal width.
    pub(crate) fn markdown(&self) -> String {
        let cell = |text: &String| text.replace('|', "\\|").replace('\n', " ");
        let lines: Vec<Vec<String>> =
            std::iter::once(&self.header).chain(&self.rows).map(|line| line.iter().map(cell).collect()).collect();
        let width = |i: usize| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0).max(3);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for (row, line) in lines.iter().enumerate() {
            for (i, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let _ =
                    if i < self.labels { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
            }
            text.push_str("|\n");
            if row == 0 {
                for (i, &width) in widths.iter().enumerate() {
                    let rule = "-".repeat(width);
                    let _ =
                        if i < self.labels { write!(text, "| {rule} ") } else { write!(text, "| {}: ", &rule[1..]) };
                }
                text.push_str("|\n");
            }
        }
        text
    }

    /// A `tabular` for the package `booktabs`.
    pub(crate) fn latex(&self) -> String {
        let line = |line: &Vec<String>| {
            let cells: Vec<String> = line.iter().map(|text| escape(text)).collect();
            format!("{} \\\\\n", cells.join(" & "))
        };
        let columns = "l".repeat(self.labels) + &"r".repeat(self.header.len() - self.labels);
        let rows: String = self.rows.iter().map(line).collect();
        let header = line(&self.header);
        format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n{header}\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n")
    }
}

/// Text as LaTeX sets it: no character of it is a command.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            // After a line's end a bracket would be read as its optional argument.
            '[' => out.push_str("{[}"),
            ']' => out.push_str("{]}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '±' => out.push_str("$\\pm$"),
            '°' => out.push_str("$^\\circ$"),
            '×' => out.push_str("$\\times$"),
            '−' => out.push_str("$-$"),
            'ε' => out.push_str("$\\varepsilon$"),
            'σ' => out.push_str("$\\sigma$"),
            '∞' => out.push_str("$\\infty$"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let text = |text: &str| text.to_owned();
        Grid {
            labels: 1,
            header: vec![text("a|b"), text("100%")],
            rows: vec![vec![text("±90°"), text("[1]")], vec![text("x_y"), text("12.5")]],
        }
    }

    #[test]
    fn markdown_is_aligned_and_keeps_pipes_inside_cells() {
        let table = "| a\\|b | 100% |\n| ---- | ---: |\n| ±90° |  [1] |\n| x_y  | 12.5 |\n";
        assert_eq!(grid().markdown(), table);
    }

    #[test]
    fn latex_commands_are_no_text() {
        let table = "\\begin{tabular}{lr}\n\\toprule\na\\textbar{}b & 100\\% \\\\\n\\midrule\n\
                     $\\pm$90$^\\circ$ & {[}1{]} \\\\\nx\\_y & 12.5 \\\\\n\\bottomrule\n\\end{tabular}\n";
        assert_eq!(grid().latex(), table);
    }
}
