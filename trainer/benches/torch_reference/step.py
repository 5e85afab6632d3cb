"""One training step of CropMAE ViT-S/16 in PyTorch, for timing beside ours: forward, backward, clip, AdamW.

Written from the architecture's description: a shared encoder (pre-norm blocks) sees one view whole and of the other the
kept patches alone; a decoder of post-norm blocks (cross-attention, feed-forward, self-attention, dropout 0.1) predicts
the normalised pixels of what was removed.

Reads lines from standard input: at `go` it makes one step and prints `{"ms": .., "cpu_ms": .., "loss": ..}`, at the end
of input `{"peak_mib": ..}`.
"""

import argparse
import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

SIDE, PATCH, WIDTH, DEPTH, HEADS = 224, 16, 384, 12, 6
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS, FEED_FORWARD, DROPOUT = 256, 4, 8, 2048, 0.1
N_PATCHES, N_KEPT, PATCH_VALUES = (SIDE // PATCH) ** 2, 2, PATCH * PATCH * 3


class Attend(nn.Module):
    """Multi-head attention of `x` to `memory` with one packed projection."""

    def __init__(self, width, heads, dropout, fused):
        super().__init__()
        self.heads, self.dropout, self.fused = heads, dropout, fused
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, memory=None):
        width = x.shape[-1]
        if memory is None:
            q, k, v = self.project(x).chunk(3, -1)
        else:
            weight, bias = self.project.weight, self.project.bias
            q = F.linear(x, weight[:width], bias[:width])
            k, v = F.linear(memory, weight[width:], bias[width:]).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        drop = self.dropout if self.training else 0.0
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
        else:
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
            y = F.dropout(weights, drop) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attend(WIDTH, HEADS, 0.0, fused)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DecoderBlock(nn.Module):
    def __init__(self, fused, dropout):
        super().__init__()
        self.dropout = dropout
        self.cross = Attend(DECODER_WIDTH, DECODER_HEADS, dropout, fused)
        self.itself = Attend(DECODER_WIDTH, DECODER_HEADS, dropout, fused)
        self.linear1 = nn.Linear(DECODER_WIDTH, FEED_FORWARD)
        self.linear2 = nn.Linear(FEED_FORWARD, DECODER_WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(DECODER_WIDTH, eps=1e-6) for _ in range(3))

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training)

    def forward(self, x, memory):
        x = self.norms[1](x + self.drop(self.cross(x, memory)))
        x = self.norms[2](x + self.drop(self.linear2(self.drop(F.gelu(self.linear1(x))))))
        return self.norms[0](x + self.drop(self.itself(x)))


class Siamese(nn.Module):
    def __init__(self, fused, dropout):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, DECODER_WIDTH))
        # Fixed tables; their values do not matter to the time.
        self.register_buffer("positions", torch.randn(1, 1 + N_PATCHES, WIDTH))
        self.register_buffer("decoder_positions", torch.randn(1, 1 + N_PATCHES, DECODER_WIDTH))
        self.blocks = nn.ModuleList(Block(fused) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.decoder_embed = nn.Linear(WIDTH, DECODER_WIDTH)
        self.decoder_blocks = nn.ModuleList(DecoderBlock(fused, dropout) for _ in range(DECODER_DEPTH))
        self.decoder_norm = nn.LayerNorm(DECODER_WIDTH, eps=1e-6)
        self.decoder_pred = nn.Linear(DECODER_WIDTH, PATCH_VALUES)

    def encode(self, view, ids_keep):
        x = self.embed(view).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        if ids_keep is not None:
            x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, WIDTH))
        first = (self.cls_token + self.positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, whole, masked, noise):
        ids_shuffle = noise.argsort(1)
        ids_restore = ids_shuffle.argsort(1)
        memory = self.decoder_embed(self.encode(whole, None))
        kept = self.decoder_embed(self.encode(masked, ids_shuffle[:, :N_KEPT]))
        x = torch.cat([kept[:, 1:], self.mask_token.expand(len(kept), N_PATCHES - N_KEPT, -1)], 1)
        x = x.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, DECODER_WIDTH))
        x = torch.cat([kept[:, :1], x], 1) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x, memory)
        pred = self.decoder_pred(self.decoder_norm(x)[:, 1:])
        grid = SIDE // PATCH
        patches = masked.reshape(-1, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(pred.shape)
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = (ids_restore >= N_KEPT).to(pred.dtype)
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--attention", choices=["explicit", "sdpa"], default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--dropout", type=float, default=DROPOUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Siamese(args.attention == "sdpa", args.dropout)
    forward = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    views = torch.randn(2, args.batch, 3, SIDE, SIDE)
    for line in sys.stdin:
        if line.strip() != "go":
            raise SystemExit(f"{line.strip()!r}, expected go")
        noise = torch.rand(args.batch, N_PATCHES)
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            loss = forward(views[0], views[1], noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before_step = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        report = {
            "ms": (end - start) * 1e3,
            "optimizer_ms": (end - before_step) * 1e3,
            "cpu_ms": (time.process_time() - cpu_start) * 1e3,
            "loss": loss.item(),
        }
        print(json.dumps(report), flush=True)
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


if __name__ == "__main__":
    main()
