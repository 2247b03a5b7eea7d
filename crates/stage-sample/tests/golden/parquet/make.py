"""Writes one small set as the field's programs write it: python make.py (in this folder).

Six images of 8x8 pixels in three classes: bird, cat, dog, in turn. Made with datasets 5.2.0, pandas 3.1.1, polars 2.1.0 and
DuckDB 2.0.1; the tests need no Python.
"""

import io
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
from PIL import Image

HERE = Path(__file__).parent
NAMES = ["bird", "cat", "dog"]


def png(index):
    pixels = np.full((8, 8, 3), 40 * index + 5, np.uint8)
    pixels[index, :, 0] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def main():
    for old in HERE.glob("*.parquet"):
        old.unlink()
    images = [png(index) for index in range(6)]
    labels = [index % 3 for index in range(6)]
    names = [NAMES[label] for label in labels]
    structs = [{"bytes": image, "path": f"{index}.png"} for index, image in enumerate(images)]
    path = lambda name: HERE / f"{name}.parquet"

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    data = datasets.Dataset.from_dict({"image": structs, "label": labels}, features=features)
    data.to_parquet(path("datasets"))
    turned = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES[::-1]))
    data = datasets.Dataset.from_dict({"image": structs, "label": [2 - label for label in labels]}, features=turned)
    data.to_parquet(path("datasets-turned"))
    unlabelled = datasets.Dataset.from_dict({"image": structs, "label": [-1] * 6}, features=features)
    unlabelled.to_parquet(path("datasets-unlabelled"))

    frame = pl.DataFrame({"image": images, "label": labels})
    for compression in ["zstd", "gzip", "lz4", "brotli", "snappy", "uncompressed"]:
        frame.write_parquet(path(f"polars-{compression}"), compression=compression)
    frame.with_columns(label=pl.Series(names)).write_parquet(path("polars-text"))
    frame.with_columns(label=pl.Series(names, dtype=pl.Categorical)).write_parquet(path("polars-categorical"))
    frame.with_columns(label=pl.Series(labels, dtype=pl.UInt8)).write_parquet(path("polars-u8"))
    frame.with_columns(image=pl.Series(structs)).write_parquet(path("polars-struct"))

    table = pd.DataFrame({"image": structs, "label": labels})
    table.to_parquet(path("pandas"))
    table.assign(label=pd.Categorical(names)).to_parquet(path("pandas-category"))
    table.assign(label=np.array(labels, np.float64)).to_parquet(path("pandas-float"))
    table.assign(image=images).to_parquet(path("pandas-brotli"), compression="brotli")
    missing = np.array(labels, np.float64)
    missing[4] = np.nan
    table.assign(label=missing).to_parquet(path("pandas-missing"))
    table.assign(label=np.array(labels) + 1).to_parquet(path("pandas-from-1"))

    flat = pd.DataFrame({"image": images, "label": labels, "name": names})
    connection = duckdb.connect()
    connection.register("flat", flat)
    for codec in ["gzip", "lz4_raw", "brotli", "zstd"]:
        query = f"COPY (SELECT image, label FROM flat) TO '{path('duckdb-' + codec)}' (FORMAT parquet, COMPRESSION {codec})"
        connection.execute(query)
    kind = "ENUM ('bird', 'cat', 'dog')"
    connection.execute(f"COPY (SELECT image, name::{kind} AS label FROM flat) TO '{path('duckdb-enum')}' (FORMAT parquet)")
    image = "{'bytes': image, 'path': NULL::VARCHAR}"
    connection.execute(f"COPY (SELECT {image} AS image, label FROM flat) TO '{path('duckdb-struct')}' (FORMAT parquet)")


if __name__ == "__main__":
    main()
