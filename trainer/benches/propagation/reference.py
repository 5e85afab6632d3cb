"""DAVIS label propagation in PyTorch, shaped as the reference does it.

Every frame goes through the encoder, n_context copies of the first one included; affinities to all patches of all context
frames are made as one tensor for 100 patches of two frames at a time, the radius is added to them as -1e10, and torch.topk
runs over all of it. Prints J and F as JSON; with --masks it keeps the label maps.
"""

import argparse
import json
import pathlib
import time

import numpy
import safetensors.torch
import timm
import torch
from PIL import Image
from torch.nn import functional

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
FEATURE_BATCH, FRAME_BATCH, PATCH_BATCH = 5, 2, 100


class Encoder(torch.nn.Module):
    """timm's vision transformer on any grid, its position table resampled by (cells + 0.1) / g."""

    def __init__(self, path, heads):
        super().__init__()
        state = safetensors.torch.load_file(path)
        width, _, self.patch, _ = state["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        self.grid = round((state["pos_embed"].shape[1] - 1) ** 0.5)
        self.vit = timm.models.vision_transformer.VisionTransformer(
            img_size=self.grid * self.patch, patch_size=self.patch, embed_dim=width, depth=depth,
            num_heads=heads, num_classes=0, global_pool="",
        )
        self.vit.load_state_dict({name: state[name] for name in self.vit.state_dict()})

    def forward(self, pixels):
        rows, columns = (side // self.patch for side in pixels.shape[-2:])
        table = self.vit.pos_embed
        patches = table[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        patches = functional.interpolate(patches, scale_factor=scale, mode="bicubic")
        x = self.vit.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = x + patches.permute(0, 2, 3, 1).flatten(1, 2)
        first = (self.vit.cls_token + table[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.vit.blocks:
            x = block(x)
        x = self.vit.norm(x)[:, 1:]
        return x.transpose(1, 2).unflatten(2, (rows, columns))


def read_frame(path, size):
    pixels = torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
    pixels = functional.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
    return (pixels - MEAN) / STD


def nearest(labels, size):
    """As OpenCV's INTER_NEAREST."""
    places = [
        numpy.minimum((numpy.arange(to) * (1 / (to / of))).astype(int), of - 1)
        for to, of in zip(size, labels.shape)
    ]
    return labels[places[0]][:, places[1]]


def radius_mask(rows, columns, radius):
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    squared = (y[None, None] - y[..., None, None]) ** 2 + (x[None, None] - x[..., None, None]) ** 2
    inside = squared.float().sqrt() < radius
    return torch.where(inside, 0.0, -1e10).flatten(2).flatten(0, 1)


def affinities(query, keys, mask, temperature, top_k):
    """query [C, T, P], keys [C, T, S, P]: weights and ids [T, k, P]; slot 0 is not masked."""
    all_weights, all_ids = [], []
    for t in range(0, keys.shape[1], FRAME_BATCH):
        some_keys, some_query = keys[:, t : t + FRAME_BATCH], query[:, t : t + FRAME_BATCH]
        weights, ids = [], []
        for p in range(0, query.shape[-1], PATCH_BATCH):
            affinity = torch.einsum("ctsm,ctn->tsmn", some_keys, some_query[..., p : p + PATCH_BATCH])
            affinity[:, 1:] += mask[:, p : p + PATCH_BATCH]
            affinity = affinity.flatten(1, 2) / temperature
            best, where = torch.topk(affinity, top_k, dim=1)
            weights.append(functional.softmax(best, dim=1))
            ids.append(where)
        all_weights.append(torch.cat(weights, dim=-1))
        all_ids.append(torch.cat(ids, dim=-1))
    return torch.cat(all_weights), torch.cat(all_ids)


def propagate(encoder, frames, labels, options):
    """Label maps of all frames at the input's size, from the first one's."""
    size = tuple(options.size)
    first = nearest(labels, size)
    palette = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    names = sorted(numpy.unique(first).tolist(), key=lambda label: palette[label][::-1])
    rows, columns = (side // encoder.patch for side in size)
    one_hot = torch.stack([torch.from_numpy(first == name) for name in names]).float()
    soft = functional.interpolate(one_hot[None], size=(rows, columns), mode="bilinear", align_corners=False)[0]

    copies = options.n_context
    order = [frames[max(0, i - copies)] for i in range(len(frames) + copies)]
    started = time.time()
    pixels = torch.stack([read_frame(path, size) for path in order])
    read = time.time()
    features = torch.cat([encoder(some) for some in pixels.split(FEATURE_BATCH)])
    features = functional.normalize(features, dim=1).transpose(0, 1).flatten(2)  # [C, T + copies, P]
    encoded = time.time()
    context = torch.arange(copies)[None] + torch.arange(len(frames))[:, None]
    sources = torch.cat([torch.zeros(len(frames), 1, dtype=torch.long), context], dim=1)
    mask = radius_mask(rows, columns, options.radius)
    weights, ids = affinities(features[:, copies:], features[:, sources], mask, options.temperature, options.top_k)

    known = torch.zeros(len(order), *soft.shape)
    known[: copies + 1] = soft
    maps = []
    for t in range(len(frames)):
        if t > 0:
            of_sources = known[sources[t]].flatten(2).transpose(0, 1).flatten(1)  # [L, S * P]
            carried = (of_sources[:, ids[t]] * weights[t]).sum(1)
            known[copies + t] = carried.view(-1, rows, columns)
        large = functional.interpolate(known[None, copies + t], size=size, mode="bilinear", align_corners=False)[0]
        maps.append(numpy.array(names, dtype=numpy.uint8)[large.argmax(0).numpy()])
    done = time.time()
    return maps, {"read": read - started, "encode": encoded - read, "propagate": done - encoded}


def contour(mask):
    edges = numpy.zeros_like(mask)
    edges[:-1, :-1] = (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1]) | (mask[:-1, :-1] ^ mask[1:, 1:])
    edges[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edges[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edges


def near(mask):
    radius = int(numpy.ceil(0.008 * numpy.linalg.norm(mask.shape)))
    padded = numpy.pad(mask, radius)
    out = numpy.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                out |= padded[radius + dy :, radius + dx :][: mask.shape[0], : mask.shape[1]]
    return out


def scores(truth, predicted):
    union = (truth | predicted).sum()
    region = (truth & predicted).sum() / union if union else 1.0
    of_truth, of_predicted = contour(truth), contour(predicted)
    if not of_truth.any() or not of_predicted.any():
        return region, float(of_truth.any() == of_predicted.any())
    precision = (of_predicted & near(of_truth)).sum() / of_predicted.sum()
    recall = (of_truth & near(of_predicted)).sum() / of_truth.sum()
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--sequences", nargs="+", required=True)
    parser.add_argument("--frames", type=int, help="only so many of each sequence")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 880])
    parser.add_argument("--n-context", type=int, default=20)
    parser.add_argument("--top-k", type=int, default=7)
    parser.add_argument("--radius", type=float, default=20)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--masks", type=pathlib.Path)
    parser.add_argument("--no-scores", action="store_true", help="time the propagation alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = Encoder(options.checkpoint, options.heads).eval()
    objects, times = [], {}
    for name in options.sequences:
        frames = sorted((options.data / "JPEGImages/480p" / name).iterdir())[: options.frames]
        annotations = sorted((options.data / "Annotations/480p" / name).glob("*.png"))[: options.frames]
        truth = [numpy.array(Image.open(path)) for path in annotations]
        with torch.no_grad():
            maps, spent = propagate(encoder, frames, truth[0], options)
        for part, seconds in spent.items():
            times[part] = times.get(part, 0) + seconds
        maps = [nearest(labels, truth[0].shape) for labels in maps]
        if options.masks:
            (options.masks / name).mkdir(parents=True, exist_ok=True)
            for path, labels in zip(annotations, maps):
                Image.fromarray(labels).save(options.masks / name / path.name)
        for label in range(1, 1 + int(truth[0].max())) if not options.no_scores else []:
            pairs = [scores(t == label, m == label) for t, m in zip(truth[1:-1], maps[1:-1])]
            region, edge = numpy.mean(pairs, axis=0).tolist()
            objects.append({"object": f"{name}_{label}", "J": region, "F": edge})
    result = {"seconds": times, "objects": objects}
    if objects:
        means = {part: float(numpy.mean([o[part] for o in objects])) for part in "JF"}
        result |= {"J-Mean": means["J"], "F-Mean": means["F"], "J&F-Mean": (means["J"] + means["F"]) / 2}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
