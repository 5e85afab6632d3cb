"""One peer: makes batches of view pairs for as long as the runner (run.py) wants.

    peer.py PEER WORK --workers N --batch-size B

All image peers do what CropMAE's loader does: a random crop of area 0.1-1 (aspect 3/4-4/3) resized to 224 x 224, bilinear
with antialias; from that view a second crop of area 0.3-0.6, resized the same way; each flipped with p = 0.5; both float32,
normalised with ImageNet's mean and deviation, in batches [B, 3, 224, 224] (tf.data: [B, 224, 224, 3]). The clip peers do what SiamMAE's does: two
frames 4 to 47 apart, one crop of area 0.5-1 and one flip for both.

`go SECONDS` on standard input is answered by a line of JSON: pairs made and the seconds that took, after batches made ahead
were thrown away. The first line, `ready`, has the library's version and the mean and deviation of the values of some
batches, which must agree between peers.
"""

import argparse
import importlib.metadata
import io
import json
import os
import random
import sys
import time
from pathlib import Path

SIZE = 224
GLOBAL_AREA, LOCAL_AREA, FRAME_AREA = (0.1, 1.0), (0.3, 0.6), (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)
MIN_GAP, MAX_GAP = 4, 48
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREFETCH = 2  # batches ahead, for each worker where the library counts so


def pil_pair():
    """CropMAE's own transforms, on Pillow."""
    from torchvision import transforms as t

    crop = lambda area: t.RandomResizedCrop(SIZE, scale=area, ratio=ASPECT, interpolation=t.InterpolationMode.BILINEAR)
    whole, part = crop(GLOBAL_AREA), crop(LOCAL_AREA)
    finish = t.Compose([t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(MEAN, STD)])

    def pair(data):
        from PIL import Image

        view = whole(Image.open(io.BytesIO(data)).convert("RGB"))
        return finish(view), finish(part(view))

    return pair


def tensor_pair():
    """The same on tensors: libjpeg-turbo through torchvision.io, resizing in 8 bits."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    crop = lambda area: v2.RandomResizedCrop(SIZE, scale=area, ratio=ASPECT, antialias=True)
    whole, part = crop(GLOBAL_AREA), crop(LOCAL_AREA)
    finish = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def pair(data):
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        view = whole(decode_jpeg(encoded, mode=ImageReadMode.RGB))
        return finish(view), finish(part(view))

    return pair


def torch_loader(dataset, args, loader=None):
    """A DataLoader, again and again, with workers that stay."""
    import torch

    torch.set_num_threads(1)
    kind = loader or torch.utils.data.DataLoader
    is_stream = isinstance(dataset, torch.utils.data.IterableDataset)
    extra = {} if is_stream else {"shuffle": True}
    made = kind(dataset, batch_size=args.batch_size, num_workers=args.workers, drop_last=True,
                persistent_workers=True, prefetch_factor=PREFETCH, **extra)
    while True:
        yield from made


def repeated(files):
    """The files so often that an epoch is long: workers start anew with each, which is not to be timed."""
    return files * max(1, -(-20_000 // len(files)))


def files_with(pair):
    """Peers that read plain files."""

    def batches(args):
        import torch

        class Files(torch.utils.data.Dataset):
            def __init__(self):
                self.files = repeated(jpegs(args))

            def __len__(self):
                return len(self.files)

            def __getitem__(self, index):
                if not hasattr(self, "pair"):
                    self.pair = pair()
                return self.pair(self.files[index].read_bytes())

        return torch_loader(Files(), args)

    return batches


def dali(args):
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=args.batch_size, num_threads=args.workers, device_id=None, seed=1, prefetch_queue_depth=PREFETCH)
    def pipeline():
        data, _ = fn.readers.file(files=[str(file) for file in jpegs(args)], random_shuffle=True)
        decoded = fn.decoders.image_random_crop(data, device="cpu", output_type=types.RGB, random_area=GLOBAL_AREA,
                                                random_aspect_ratio=ASPECT)
        resize = {"interp_type": types.INTERP_LINEAR, "antialias": True}
        whole = fn.resize(decoded, size=(SIZE, SIZE), **resize)
        part = fn.random_resized_crop(whole, size=(SIZE, SIZE), random_area=LOCAL_AREA, random_aspect_ratio=ASPECT, **resize)
        finish = lambda view: fn.crop_mirror_normalize(
            view, dtype=types.FLOAT, output_layout="CHW", mirror=fn.random.coin_flip(),
            mean=[255 * m for m in MEAN], std=[255 * s for s in STD])
        return finish(whole), finish(part)

    made = pipeline()
    made.build()
    while True:
        views = made.run()
        yield tuple(view.as_array() for view in views)


def tf_data(args):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tensorflow as tf

    mean, std = (tf.constant(values) * 255 for values in (MEAN, STD))

    def box(shape, area):
        nothing = tf.zeros([0, 0, 4])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, nothing, area_range=area, aspect_ratio_range=ASPECT, use_image_if_no_bounding_boxes=True)
        return begin[0], begin[1], size[0], size[1]

    resize = lambda view: tf.image.resize(view, [SIZE, SIZE], method="bilinear", antialias=True)
    finish = lambda view: (tf.image.random_flip_left_right(view) - mean) / std

    def pair(file):
        data = tf.io.read_file(file)
        window = tf.stack(box(tf.io.extract_jpeg_shape(data), GLOBAL_AREA))
        decoded = tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")
        whole = resize(decoded)
        top, left, height, width = box([SIZE, SIZE, 3], LOCAL_AREA)
        part = resize(whole[top:top + height, left:left + width])
        return finish(whole), finish(part)

    files = [str(file) for file in jpegs(args)]
    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    data = data.map(pair, num_parallel_calls=args.workers, deterministic=False)
    data = data.batch(args.batch_size, drop_remainder=True).prefetch(PREFETCH)
    options = tf.data.Options()
    options.threading.private_threadpool_size = args.workers
    options.threading.max_intra_op_parallelism = 1
    for views in data.with_options(options):
        yield tuple(view.numpy() for view in views)


def webdataset(args):
    import tarfile

    import webdataset as wds

    folder = args.work / "webdataset"
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(4):
            with tarfile.open(folder / f"{number}.tar", "w") as tar:
                for file in jpegs(args)[number::4]:
                    tar.add(file, f"{file.parent.name}_{file.stem}.jpg")
    pair = tensor_pair()
    shards = [str(shard) for shard in sorted(folder.glob("*.tar"))]
    data = wds.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(100).to_tuple("jpg")
    data = data.map(lambda sample: pair(sample[0])).batched(args.batch_size, partial=False)
    loader = wds.WebLoader(data, batch_size=None, num_workers=args.workers, prefetch_factor=PREFETCH)
    yield from loader


def mosaicml_streaming(args):
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    folder = args.work / "mosaicml"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"image": "bytes"}, size_limit=1 << 24) as writer:
            for file in repeated(jpegs(args))[:3000]:
                writer.write({"image": file.read_bytes()})

    class Pairs(StreamingDataset):
        def __getitem__(self, index):
            if not hasattr(self, "pair"):
                self.pair = tensor_pair()
            return self.pair(super().__getitem__(index)["image"])

    return torch_loader(Pairs(local=str(folder), shuffle=True, batch_size=args.batch_size), args)


def read_for_litdata(file):
    return {"image": Path(file).read_bytes()}


class PairOfLitdata:
    """LitData pickles its transforms, so what cannot be pickled comes into being in the worker."""

    def __call__(self, sample):
        if not hasattr(self, "pair"):
            self.pair = tensor_pair()
        return self.pair(sample["image"])

    def __getstate__(self):
        return {}


def litdata(args):
    import litdata as lit

    folder = args.work / "litdata"
    if not folder.exists():
        lit.optimize(fn=read_for_litdata, inputs=[str(f) for f in repeated(jpegs(args))[:3000]],
                     output_dir=str(folder), num_workers=1, chunk_bytes="16MB")

    data = lit.StreamingDataset(str(folder), shuffle=True, drop_last=True, transform=PairOfLitdata())
    return torch_loader(data, args, lit.StreamingDataLoader)


def clips_with(read_two):
    """Frame pairs of video files, a file a sample, as the reference draws them."""

    def batches(args):
        import torch
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.v2 import functional as f

        class Clips(torch.utils.data.Dataset):
            def __init__(self):
                self.files = repeated(listed(args.work / "clips.txt"))

            def __len__(self):
                return len(self.files)

            def __getitem__(self, index):
                frames = read_two(str(self.files[index]), draw_frames)  # [2, 3, H, W] u8
                box = RandomResizedCrop.get_params(frames, FRAME_AREA, ASPECT)
                frames = f.resized_crop(frames, *box, [SIZE, SIZE], antialias=True)
                if random.random() < 0.5:
                    frames = f.horizontal_flip(frames)
                frames = f.normalize(f.to_dtype(frames, torch.float32, scale=True), MEAN, STD)
                return frames[0], frames[1]

        return torch_loader(Clips(), args)

    return batches


def draw_frames(n_frames):
    gap = random.randint(min(MIN_GAP, n_frames - 1), min(MAX_GAP, n_frames) - 1)
    first = random.randint(0, n_frames - 1 - gap)
    return [first, first + gap]


def with_decord(file, draw):
    """As the reference: a reader for each sample, both frames in one call."""
    import decord
    import torch

    reader = decord.VideoReader(file, num_threads=1, ctx=decord.cpu(0))
    return torch.from_numpy(reader.get_batch(draw(len(reader))).asnumpy()).permute(0, 3, 1, 2)


def with_torchcodec(file, draw):
    from torchcodec.decoders import VideoDecoder

    # "approximate" would skip a scan of the packets, and fails where a container's number of frames is wrong.
    reader = VideoDecoder(file, num_ffmpeg_threads=1, seek_mode="exact")
    return reader.get_frames_at(draw(len(reader))).data


# name: (distribution whose version is told, batches, for pictures or clips)
PEERS = {
    "torchvision-pil": ("torchvision", files_with(pil_pair), "images"),
    "torchvision-v2": ("torchvision", files_with(tensor_pair), "images"),
    "dali": ("nvidia-dali-cuda120", dali, "images"),
    "tf.data": ("tensorflow-cpu", tf_data, "images"),
    "webdataset": ("webdataset", webdataset, "images"),
    "mosaicml-streaming": ("mosaicml-streaming", mosaicml_streaming, "images"),
    "litdata": ("litdata", litdata, "images"),
    "decord": ("decord", clips_with(with_decord), "clips"),
    "torchcodec": ("torchcodec", clips_with(with_torchcodec), "clips"),
}


def jpegs(args):
    return listed(args.work / "images.txt")


def listed(file):
    return [Path(line) for line in file.read_text().splitlines()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("work", type=Path, help="folder with images.txt and clips.txt, and for the peer's own formats")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    distribution, make, _ = PEERS[args.peer]
    version = importlib.metadata.version(distribution)
    batches = make(args)

    import numpy as np

    views = [np.asarray(view) for _ in range(4) for view in next(batches)]
    for view in views:
        assert view.dtype == np.float32 and view.shape in [(args.batch_size, 3, SIZE, SIZE), (args.batch_size, SIZE, SIZE, 3)]
    whole = np.concatenate([view.ravel() for view in views])
    say = lambda **answer: print(json.dumps(answer), file=answers, flush=True)
    say(ready=version, mean=float(whole.mean()), std=float(whole.std()))
    del views, whole
    for line in sys.stdin:
        seconds = float(line.split()[1])
        for _ in range(PREFETCH * args.workers + 1):
            next(batches)
        start, n_batches = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            next(batches)
            n_batches += 1
        say(pairs=n_batches * args.batch_size, seconds=time.monotonic() - start)
    os._exit(0)  # some libraries wait for threads that wait for them


if __name__ == "__main__":
    main()
