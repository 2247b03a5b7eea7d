"""Reads one table of each kind with everything people read Parquet with, and compares with expected.json.

Usage: read.py FOLDER. Exit code 77 where a package is absent.
"""

import importlib
import json
import math
import os
import sys
from pathlib import Path

folder = Path(sys.argv[1])
os.environ["HF_HOME"] = str(folder / "cache")
os.environ["HF_HUB_OFFLINE"] = "1"

try:
    names = ["pyarrow.parquet", "pandas", "polars", "duckdb", "datasets", "PIL.Image"]
    parquet, pandas, polars, duckdb, datasets, _ = map(importlib.import_module, names)
except ImportError as error:
    print(error)
    sys.exit(77)


def plain(value):
    """Python's own types, whatever the reader returned."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def with_pyarrow(path, columns):
    return {name: parquet.read_table(path)[name].to_pylist() for name in columns}


def with_pandas(path, columns):
    table = pandas.read_parquet(path)
    return {name: table[name].tolist() for name in columns}


def with_polars(path, columns):
    table = polars.read_parquet(path)
    return {name: table[name].to_list() for name in columns}


def with_duckdb(path, columns):
    rows = duckdb.sql(f"select {', '.join(columns)} from '{path}'").fetchall()
    return {name: [row[place] for row in rows] for place, name in enumerate(columns)}


def with_datasets(path, columns):
    table = datasets.load_dataset("parquet", data_files=str(path), split="train")
    return {name: list(table[name]) for name in columns}


expected = json.loads((folder / "expected.json").read_text())
assert len(expected) == 7, expected.keys()
for kind, columns in expected.items():
    path = folder / f"{kind}.parquet"
    for reader in (with_pyarrow, with_pandas, with_polars, with_duckdb, with_datasets):
        found = {name: plain(values) for name, values in reader(path, columns).items()}
        assert found == columns, f"{kind} {reader.__name__}\n{found}\n{columns}"
    metadata = parquet.read_metadata(path)
    provenance = json.loads(metadata.metadata[b"provenance"])
    assert provenance["kind"] == kind and list(provenance["parameters"]) == ["zebra", "apple"], provenance
    if kind != "sample":
        assert set(parquet.read_schema(path).names) == set(columns), kind
    for place in range(metadata.num_columns):
        column = metadata.row_group(0).column(place)
        assert column.compression == "ZSTD", column
        if column.physical_type in ("FLOAT", "DOUBLE"):
            assert "BYTE_STREAM_SPLIT" in column.encodings and not column.has_dictionary_page, column
        if column.path_in_schema == "image.bytes":
            assert column.statistics is None and not column.has_dictionary_page, column

path = folder / "sample.parquet"
metadata = parquet.read_metadata(path)
features = json.loads(metadata.metadata[b"huggingface"])["info"]["features"]
assert parquet.read_schema(path).metadata[b"huggingface"] == metadata.metadata[b"huggingface"]
sample = datasets.load_dataset("parquet", data_files=str(path), split="train")
assert sample.features["label"].names == ["cat", "tench, a fish"], sample.features
assert isinstance(sample.features["image"], datasets.Image), sample.features
assert set(features) == set(sample.features)
image = sample[1]["image"].convert("RGB")
assert image.size == (2, 1) and [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
paths = duckdb.sql(f"select image.path from '{path}'").fetchall()
assert paths == [("test.parquet#0",), ("test.parquet#4000000000",)], paths
stored = duckdb.sql(f"select decode(value) from parquet_kv_metadata('{path}') where decode(key) = 'huggingface'")
assert json.loads(stored.fetchall()[0][0])["info"]["features"] == features
print("read by pyarrow, pandas, polars, duckdb and datasets")
