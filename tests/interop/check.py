"""Opens shard sets with pyarrow, DuckDB and Hugging Face `datasets`, and decodes pictures from each."""

import glob
import io
import json
import sys

import datasets
import duckdb
import pyarrow.parquet as pq
from PIL import Image

datasets.disable_progress_bars()


def decoded_size(data):
    """Decodes a stored picture whole and returns (width, height)."""
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB").size


def check(root):
    manifest = json.load(open(f"{root}/manifest.json"))
    split, parts = next(iter(manifest["splits"].items()))
    rows = sum(shard["rows"] for shard in parts["shards"])
    files = sorted(glob.glob(f"{root}/{split}-*.parquet"))
    assert len(files) == len(parts["shards"]), (files, len(parts["shards"]))
    key = "key" if manifest["kind"] == "images" else "clip"

    table = pq.read_table(files)
    assert table.num_rows == rows, (table.num_rows, rows)
    first = table.slice(0, 1).to_pylist()[0]
    assert decoded_size(first["image"]["bytes"]) == (first["width"], first["height"])
    group = pq.ParquetFile(files[0]).metadata.row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image.bytes")
    assert column.has_offset_index, "the picture column has no offset index"

    count, keys = duckdb.sql(f"select count(*), count(distinct {key}) from read_parquet({files!r})").fetchone()
    assert count == rows, (count, rows)
    data, width, height = duckdb.sql(
        f"select image.bytes, width, height from read_parquet({files!r}) using sample 1 rows"
    ).fetchone()
    assert decoded_size(data) == (width, height)

    dataset = datasets.load_dataset("parquet", data_files=files, split="train")
    assert len(dataset) == rows
    assert isinstance(dataset.features["image"], datasets.Image), dataset.features
    assert isinstance(dataset.features["label"], datasets.ClassLabel), dataset.features
    row = dataset[rows // 2]
    assert row["image"].convert("RGB").size == (row["width"], row["height"])
    name = dataset.features["label"].int2str(row["label"])
    print(f"{root}: {len(files)} shards, {rows} rows, {keys} {key}s; row {rows // 2} is of class {name}: "
          "pyarrow, DuckDB and datasets agree")


for root in sys.argv[1:]:
    check(root)
