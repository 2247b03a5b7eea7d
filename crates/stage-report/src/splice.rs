//! Tables of reports inside other documents: `<!-- BEGIN report: PATH -->` to `<!-- END report -->`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// What stands around the table in a report's Markdown.
pub(crate) const TABLE: [&str; 2] = ["<!-- table -->\n", "<!-- end of table -->\n"];
const BEGIN: &str = "<!-- BEGIN report: ";
const CLOSE: &str = " -->\n";
const END: &str = "<!-- END report -->";

/// Replaces every block of `document` by the table of the report it names; report paths are taken below the current
/// folder. Writes only if something changed.
///
/// # Errors
/// If a file cannot be read or written, a block has no end, or a report has no table.
pub fn splice(document: &Path) -> Result<()> {
    let name = document.display();
    let old = fs::read_to_string(document).with_context(|| format!("{name}: cannot read the document"))?;
    let new = spliced(&old, |path| {
        let text =
            fs::read_to_string(path).with_context(|| format!("{path}: cannot read the report; make it first"))?;
        let table = between(&text, TABLE[0], TABLE[1]).with_context(|| format!("{path}: no table in this report"))?;
        Ok(table.to_owned())
    });
    let new = new.with_context(|| name.to_string())?;
    if new != old {
        artifact::write_atomic(document, new.as_bytes())?;
    }
    Ok(())
}

fn spliced(document: &str, table: impl Fn(&str) -> Result<String>) -> Result<String> {
    let mut text = String::new();
    let mut rest = document;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let Some((path, block)) = after.split_once(CLOSE) else { bail!("a line `{BEGIN}PATH -->` is not complete") };
        let Some((_, after)) = block.split_once(END) else { bail!("`{BEGIN}{path} -->` has no `{END}`") };
        text += &format!("{before}{BEGIN}{path}{CLOSE}{}{END}", table(path)?);
        rest = after;
    }
    Ok(text + rest)
}

pub(crate) fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    Some(text.split_once(from)?.1.split_once(to)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_replaced_and_the_rest_is_kept() {
        let document = "a\n<!-- BEGIN report: x.md -->\nold\n<!-- END report -->\nb\n<!-- BEGIN report: y.md -->\n<!-- END report -->\n";
        let new = spliced(document, |path| Ok(format!("table of {path}\n"))).unwrap();
        assert_eq!(
            new,
            "a\n<!-- BEGIN report: x.md -->\ntable of x.md\n<!-- END report -->\nb\n<!-- BEGIN report: y.md -->\ntable of y.md\n<!-- END report -->\n"
        );
        assert_eq!(spliced(&new, |path| Ok(format!("table of {path}\n"))).unwrap(), new);
        assert!(
            spliced("<!-- BEGIN report: x.md -->\n", |_| Ok(String::new())).unwrap_err().to_string().contains("has no")
        );
    }
}
