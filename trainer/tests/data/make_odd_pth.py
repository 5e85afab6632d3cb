"""Makes odd.pth and odd_legacy.pth: small checkpoints with everything unusual that torch.save can put in one.

Run with PyTorch installed: python make_odd_pth.py (made with PyTorch 2.9.1). The test that reads them states the
expected values.
"""

import argparse
import collections
import pathlib

import torch

HERE = pathlib.Path(__file__).parent


class Recipe:
    """An object of a class that exists nowhere but here."""

    def __init__(self):
        self.steps = [1, 2, 3]


base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
halves = torch.tensor([0.5, -1.5, 65504.0])
state = collections.OrderedDict()
state["base"] = base
state["transposed"] = base.t()  # shares the storage of base
state["every_second_column"] = base[1:, ::2]
state["expanded"] = base[0, :1].expand(3, 2)
state["cube"] = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 0, 1)
state["f16"] = halves.half()
state["bf16"] = halves.bfloat16()
state["f64"] = torch.tensor([0.1, 1e300], dtype=torch.float64)
state["i64"] = torch.tensor([-(2**40), 7])
state["bool"] = torch.tensor([True, False, True])
state["scalar"] = torch.tensor(3.25)
state["empty"] = torch.zeros(0, 5)
state["parameter"] = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
state["ein ungewöhnlicher Name.0/ω"] = torch.tensor([9.0])
state._metadata = collections.OrderedDict([("", {"version": 1})])
checkpoint = {
    "model": state,
    "args": argparse.Namespace(decoder_num_heads=2, betas=(0.9, 0.95), path=pathlib.Path("a/b"), device=torch.device("cpu")),
    "recipe": Recipe(),
    "names": {"a", "b"},
    "dtype": torch.float32,
    7: "seven",
    "big": 2**100,
}
torch.save(checkpoint, HERE / "odd.pth")
torch.save(checkpoint, HERE / "odd_protocol4.pth", pickle_protocol=4)
torch.save(checkpoint, HERE / "odd_legacy.pth", _use_new_zipfile_serialization=False)
