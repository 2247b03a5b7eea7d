//! Images that a Parquet file does not hold but names by their path, as `datasets` writes those of a folder.

use std::{fs, path::Path};

use parquet::file::metadata::RowGroupMetaData;
use sha2::{Digest, Sha256};
use stage::Unfit;

use super::{Images, Table};

/// What embeds the images of a data set of `datasets`.
const EMBED: &str = "embed the images before they are written: `from datasets.table import embed_table_storage`, then \
                     `ds.with_format(\"arrow\").map(embed_table_storage, batched=True).to_parquet(..)`";

/// The file at a path that stands in the place of an image's bytes.
pub(super) fn bytes(path: Option<&str>, place: &str, column: &str) -> Result<Vec<u8>, Unfit> {
    let Some(path) = path else {
        return Err(Unfit(format!("{place}: no `{column}`: fill it in or remove the row")));
    };
    if !Path::new(path).is_absolute() {
        let text = format!("{place}: holds no image, but the path `{path}`, and not below which folder");
        return Err(Unfit(format!("{text}: {EMBED}")));
    }
    fs::read(path).map_err(|error| {
        let text = format!("{place}: holds no image, but the path {path}, which cannot be read here ({error})");
        Unfit(format!("{text}: put the file there, or {EMBED}"))
    })
}

/// Name and digest of all images that these rows of a file name: that of the lines that `sha256sum` prints for them.
pub(super) fn digest(table: &Table, image: &str, rows: &[usize]) -> anyhow::Result<Option<(String, String)>> {
    let builder = table.open()?;
    let without = |group: &RowGroupMetaData| {
        let nulls =
            group.columns().iter().filter(|column| column.column_path().parts().first().is_some_and(|p| p == image));
        let none = |column: &parquet::file::metadata::ColumnChunkMetaData| {
            let path = column.column_path().parts();
            path.last().is_some_and(|last| last == "path")
                || column.statistics().and_then(|statistics| statistics.null_count_opt()) == Some(0)
        };
        nulls.into_iter().all(none)
    };
    if rows.is_empty() || builder.metadata().row_groups().iter().all(without) {
        return Ok(None);
    }
    drop(builder);
    let (mut lines, mut any) = (Sha256::new(), false);
    table.read(&[image], Some(rows), &mut |batch, done| {
        let images = Images::of(table, batch, image)?;
        for i in 0..batch.num_rows() {
            let path = images.path(i).filter(|_| images.bytes(i).is_none());
            if let Some(path) = path.filter(|path| Path::new(path).is_file()) {
                let place = format!("{}, row {}", table.name, rows[done + i]);
                let digest: String = Sha256::digest(bytes(Some(path), &place, image)?)
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                lines.update(format!("{digest}  {path}\n"));
                any = true;
            }
        }
        Ok(())
    })?;
    let digest: String = lines.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(any.then(|| (format!("{}, the images it names", table.name), digest)))
}
