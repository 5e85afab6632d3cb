"""Loads exports into timm, PyTorch and transformers and compares their features with Pairquet's.

    python export_check.py EXPORT...

Each EXPORT is a folder that `pairquet export --probe` wrote. Its encoder must load with no key missing or left over and
give the features in `probe.safetensors` within TOLERANCE. What each library writes of it is put in EXPORT.back, so that
the way back can be checked too. Prints one line a comparison; ends with 1 if one fails, with 77 if a package is missing.
"""

import json
import pathlib
import sys

TOLERANCE = 1e-5
MISSING_PACKAGES = 77

try:
    import timm
    import torch
    import transformers
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer
except ImportError as missing:
    print(f"SKIPPED: {missing}; see requirements-torch.txt")
    sys.exit(MISSING_PACKAGES)

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")


def timm_model(sizes):
    return VisionTransformer(
        img_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        num_classes=0,
    )


def through_timm(state, sizes, images):
    """Features [B, 1 + N, D] and the model."""
    model = timm_model(sizes).eval()
    model.load_state_dict(state, strict=True)
    return model.forward_features(images), model


def check_timm(folder, card, images):
    features, model = through_timm(load_file(folder / "model.safetensors"), card["model"], images)
    yield "VisionTransformer", features
    torch.save(model.state_dict(), back(folder) / "timm.pth")
    presets = {
        (192, 12, 3, 16, 224): "vit_tiny_patch16_224",
        (384, 12, 6, 16, 224): "vit_small_patch16_224",
        (768, 12, 12, 16, 224): "vit_base_patch16_224",
    }
    sizes = tuple(card["model"][key] for key in ("embed_dim", "depth", "num_heads", "patch_size", "img_size"))
    if sizes in presets:
        model = timm.create_model(presets[sizes], num_classes=0, checkpoint_path=str(folder / "model.safetensors")).eval()
        yield presets[sizes], model.forward_features(images)


def check_torch(folder, card, images):
    (path,) = folder.glob("checkpoint*.pth")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.get("epoch") == card["checkpoint"]["epoch"], (checkpoint.get("epoch"), card["checkpoint"])
    state = checkpoint["model"]
    twin = load_file(folder / "model.safetensors")
    assert set(state) == set(twin), set(state) ^ set(twin)
    for name, tensor in state.items():
        assert tensor.equal(twin[name]), name
    encoder = {name: tensor for name, tensor in state.items() if name.startswith(ENCODER)}
    yield "torch.load", through_timm(encoder, card["model"], images)[0]
    wrapped = {f"module.{name}": torch.nn.Parameter(tensor) for name, tensor in state.items()}
    torch.save({"model": wrapped, "epoch": 3, "args": None}, back(folder) / "ddp.pth")


def check_hf(folder, card, images):
    is_mae = json.loads((folder / "config.json").read_text())["model_type"] == "vit_mae"
    name = "ViTMAEForPreTraining" if is_mae else "ViTModel"
    options = {} if is_mae else {"add_pooling_layer": False}
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    model.eval()
    if is_mae:
        # Nothing removed, nothing shuffled: the encoder sees all patches in their order.
        model.config.mask_ratio = 0.0
        n_patches = (card["model"]["img_size"] // card["model"]["patch_size"]) ** 2
        noise = torch.arange(n_patches, dtype=torch.float32).expand(len(images), -1)
        features = model.vit(images, noise=noise).last_hidden_state
    else:
        features = model(images).last_hidden_state
    yield name, features
    model.save_pretrained(back(folder) / "hf")


def back(folder):
    path = folder.with_name(folder.name + ".back")
    path.mkdir(exist_ok=True)
    return path


@torch.no_grad()
def main(folders):
    failed = False
    for folder in map(pathlib.Path, folders):
        card = json.loads((folder / "card.json").read_text())
        probe = load_file(folder / "probe.safetensors")
        check = {"timm": check_timm, "torch": check_torch, "hf": check_hf}[card["format"]]
        for name, features in check(folder, card, probe["images"]):
            assert features.shape == probe["features"].shape, (features.shape, probe["features"].shape)
            difference = (features - probe["features"]).abs().max().item()
            largest = probe["features"].abs().max().item()
            passed = difference <= TOLERANCE
            failed |= not passed
            verdict = "ok" if passed else f"FAILED, expected at most {TOLERANCE}"
            print(f"{folder.name}: {name}: largest difference {difference:.3g} (features up to {largest:.3g}): {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
