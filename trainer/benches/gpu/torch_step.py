"""Training steps of CropMAE in PyTorch on a GPU, for timing beside ours: bf16 autocast, SDPA, fused AdamW.

The model is `torch_reference/step.py`'s. A batch of bytes goes to the GPU from page-locked memory and is normalised
there, as ours does. Prints one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torch_reference"))
import step as reference  # noqa: E402

ENCODERS = {"vit_s16": (384, 6), "vit_b16": (768, 12)}
WARM_UP = 5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder", choices=ENCODERS, default="vit_b16")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch_step: no GPU that PyTorch can use")
    torch.manual_seed(0)
    reference.WIDTH, reference.HEADS = ENCODERS[args.encoder]
    model = reference.Siamese(True, reference.DROPOUT).cuda()
    forward = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    side = reference.SIDE
    pixels = torch.randint(0, 256, (args.batch, 2, side, side, 3), dtype=torch.uint8).pin_memory()
    mean = torch.tensor([0.485, 0.456, 0.406], device="cuda").view(1, 1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device="cuda").view(1, 1, 3, 1, 1)

    def one_step():
        planes = pixels.to("cuda", non_blocking=True).permute(0, 1, 4, 2, 3).float()
        views = ((planes / 255.0 - mean) / std).contiguous()
        noise = torch.rand(args.batch, reference.N_PATCHES, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(views[:, 0], views[:, 1], noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(WARM_UP):
        one_step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(args.steps):
        loss = one_step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / args.steps
    report = {
        "ms": seconds * 1e3,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "loss": loss.item(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
