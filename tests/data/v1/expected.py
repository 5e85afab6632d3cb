"""What the files beside this one hold, read by other programs: `expected.py > expected.json`, with pyarrow and Pillow."""

import hashlib
import io
import json
import pathlib
import struct

import pyarrow.parquet
from PIL import Image

HERE = pathlib.Path(__file__).parent


def sha256(data):
    return hashlib.sha256(data).hexdigest()[:12]


def rows(name, split):
    for path in sorted((HERE / name).glob(f"{split}-*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            image = row.pop("image")
            row["bytes"] = sha256(image["bytes"])
            row["pixels"] = sha256(Image.open(io.BytesIO(image["bytes"])).convert("RGB").tobytes())
            yield row


def tensors(path):
    data = (HERE / path).read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    for name, tensor in sorted(header.items()):
        start, end = (8 + header_bytes + at for at in tensor["data_offsets"])
        yield [name, tensor["shape"], sha256(data[start:end])]


step = "run/checkpoints/step-00000003"
print("{")
for name, split in [("images", "train"), ("images", "val"), ("clips", "train")]:
    lines = ",\n".join(json.dumps(row) for row in rows(name, split))
    print(f'"{name}/{split}": [\n{lines}\n],')
for number, path in enumerate([f"{step}/model.safetensors", f"{step}/ema.safetensors", "imported/model.safetensors"]):
    lines = ",\n".join(json.dumps(tensor) for tensor in tensors(path))
    print(f'{"," if number else ""}"{path}": [\n{lines}\n]')
print("}")
