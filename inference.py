"""Use a model: predict classes, extract features, look at reconstructions.

  python inference.py --model simmim_swin_base_100ep_ft192_mmpretrain bird.jpg photos/         # released weights, by name
  python inference.py --weights <checkpoint> bird.jpg --topk 3 --json                          # weights of your own
  python inference.py --model mae_vit_base_1600ep --features features.npz photos/
  python inference.py --weights <checkpoint> bird.jpg --reconstruct bird.png
  python inference.py --model <recipe.yaml> --weights <checkpoint> bird.jpg                    # which keeps no settings
  python inference.py --list "mae*"

From Python: get_model, inference_model, extract_feat, reconstruct, attention_maps, list_models, get_transform, labelled_images.
docs/inference.md shows them all.
"""
import argparse
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from utils.cli import add_ema, run
from utils.settings import TASKS

FEATURE_KINDS = ("map", "pooled", "tokens", "cls")


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders with images in or below them")
    parser.add_argument("--model", metavar="NAME|RECIPE", help="name from --list, or a YAML file (see configs/); default: what "
                                                          "the checkpoint keeps")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: the released weights of the name")
    parser.add_argument("--weights-dir", metavar="FOLDER", help="where released weights lie")
    parser.add_argument("--task", choices=TASKS, help="what a recipe is for, where it does not tell")
    parser.add_argument("--classes", metavar="FILE",
                        help="text file with a class name a line, the data folder of training, or imagenet")
    parser.add_argument("--topk", type=int, metavar="N", help="best classes to print (default: 5)")
    parser.add_argument("--json", action="store_const", const=True, help="print predictions as JSON")
    parser.add_argument("--features", metavar="OUT.npz", help="write features: arrays `features` and `paths`; of a "
                                                                     "folder of class folders `labels` and `classes`, too")
    parser.add_argument("--layer", metavar="N", help="block that features are of: from 1, or from the end -1; or last")
    parser.add_argument("--output", choices=FEATURE_KINDS, help="of what kind; see docs/inference.md")
    parser.add_argument("--reconstruct", metavar="OUT.png", help="draw reconstructions, a row an image; to a "
                                                                        ".npz file their numbers")
    parser.add_argument("--mask-ratio", type=float, metavar="SHARE", help="hidden share (default: the recipe's)")
    parser.add_argument("--seed", type=int, help="of the masks (default: 0)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    parser.add_argument("--list", nargs="?", const="", metavar="PATTERN", help="list the names that --model takes")
    add_ema(parser)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_weight

from config import pixel_statistics, with_values
from data.class_folders import class_names, labelled_samples
from data.folders import image_files, listing
from data.inputs import Preparation, as_list, picture_of
from data.masks import draw_masks
from data.reading import BadImage
from data.splits import find_splits, splits_read_as_one
from data.transforms import eval_transform, heldout_transform, mode_of, rules_of
from models.probe import numbered_block, numbered_layer
from models.weights import zoo
from models.weights.heads import read_head
from recipes import build, fit_head, load_into, open_recipe
from utils.kept import is_checkpoint
from utils.names import shown
from utils.pictures import picture_grid
from utils.precision import build_precision
from utils.registry import pick
from utils.seeding import MASK, rng_for
from utils.tables import aligned

IMAGENET_NAMES = "imagenet"  # --classes
IMAGENET = "ResNet50_Weights.IMAGENET1K_V2"  # of torchvision, whose metadata has the names of the 1000 classes
# of pre-trained models by MODEL.METHOD, as mmpretrain's users know them; of other methods a map
DEFAULT_OUTPUTS = {"mae": "tokens", "mixmim": "pooled"}


# ---- models -------------------------------------------------------------------------------------------------------

def list_models(pattern=None, task=None):
    """Names that get_model knows, sorted; `pattern` has shell wildcards. As models.weights.zoo.list_models."""
    return zoo.list_models(pattern, task)


def get_model(model, pretrained=False, device=None, weights_dir=None, task=None, classes=None, **overrides):
    """Build a model, in evaluation mode, with `model.recipe` on it.

    Args:
        model: name from list_models or an alias, path of a recipe, a Config, or a checkpoint that keeps its settings, as those
            of this repository do, which is then loaded.
        pretrained: True = the released weights of that name, downloaded once; or path or https address of a checkpoint.
        device: torch.device or its name; None = the CPU.
        weights_dir: folder of released weights, see models.weights.zoo.weights_file.
        task: pretrain, classification or probe; None = that of the name, or what the recipe is for (see task_of).
        classes: names of the classes, see read_classes.
        overrides: settings by their key, `**{"MODEL.DROP_RATE": 0.1}`, or a word of WORDS: `num_classes=10, img_size=192`.
    Returns: nn.Module: a method, an encoder with a head, or a LinearProbe.
    Raises: ValueError on unknown names and settings, or weights of another model; FileNotFoundError.
    """
    if weights_dir is not None and pretrained is not True:
        raise ValueError(f"weights_dir={weights_dir} is where released weights lie: it needs pretrained=True.")
    recipe, entry = open_recipe(model, task, overrides)
    if isinstance(pretrained, bool) and isinstance(model, (str, Path)) and is_checkpoint(model):
        pretrained = str(model)
    if pretrained is True and entry is None:
        raise ValueError(f"pretrained=True means released weights, and {recipe.name} is a recipe, which has none: pass "
                         f"pretrained=<checkpoint> (--weights), or a name from list_models().")
    device = _device(device)
    weights = zoo.weights_file(entry, weights_dir) if pretrained is True else pretrained  # building takes long, this may fail
    if weights:
        fit_head(recipe, weights)
    if classes is not None:
        recipe.classes = read_classes(classes, recipe)
    built = build(recipe)
    if weights:
        load_into(built, recipe, weights)
    if pretrained is True and recipe.classes is None and recipe.config.MODEL.NUM_CLASSES == 1000 and recipe.task != "pretrain":
        recipe.classes = imagenet_classes()  # all released heads are of ImageNet-1K; of other files nothing is known
    built.recipe = recipe
    return built.to(device).eval()


def read_classes(classes, recipe):
    """Names of classes.

    Args:
        classes: list of names, in the order of the labels; path of a text file with one a line; the data folder the model was
            trained on (that of the class folders, or the one with train/ in it); or "imagenet" for the names of ImageNet-1K.
        recipe: recipes.Recipe; says how many are expected.
    Raises: ValueError on another number of them; FileNotFoundError.
    """
    num_classes = recipe.config.MODEL.NUM_CLASSES
    if recipe.task == "pretrain":
        raise ValueError("classes= names the classes of a classifier, and this is a pre-training model: leave it out.")
    if isinstance(classes, (dict, set, frozenset)):
        raise ValueError(f"classes= is a {type(classes).__name__}: pass a list of names, in the order of the labels.")
    source = "classes="
    if classes == IMAGENET_NAMES and not os.path.exists(classes):
        source, classes = f"classes={classes} (--classes)", imagenet_classes()
    elif isinstance(classes, (str, Path)):
        source, path = f"classes={classes} (--classes)", Path(classes)
        if path.is_dir():
            splits = find_splits(path)
            classes = class_names(splits.train or splits.val or path, "classes=")
        elif not path.is_file():
            raise FileNotFoundError(f"classes={path} (--classes) does not exist: expected a text file with one name a line, "
                                    f"the data folder of the training, or imagenet.")
        else:
            classes = _lines(path)
    names = [str(name) for name in classes]
    if len(names) != num_classes:
        raise ValueError(f"{source} holds {len(names)} names, the model has {num_classes} classes.")
    return names


def _lines(path):
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"classes={path} (--classes) is not a text file in UTF-8 ({error}): expected one name a "
                         f"line.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _device(device):
    try:
        device = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} (--device) is unknown; use cpu, cuda, cuda:1 or mps.") from error
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    if backend is not None and (device.index or 0) >= backend.device_count():
        raise ValueError(f"device={device} (--device) is not available to this torch ({torch.__version__}): use cpu.")
    return device


def best_device():
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


# ---- classes, features, pictures ----------------------------------------------------------------------------------

def inference_model(model, images, batch_size=32, device=None, topk=5, classes=None, pretrained=None):
    """Predict the class of images.

    Args:
        model: from get_model; or what get_model takes, which is then built for this call.
        images: one image or a list: paths, also of folders, which stand for the images in and below them, PIL images, bytes of
            files, uint8 arrays (H, W, 3) in RGB order (OpenCV's is BGR), uint8 tensors (3, H, W), or float tensors (C, H, W),
            which count as normalised; or a 4-d array or tensor.
        batch_size: images that go through the model at once.
        device: where to; None = where the model is, or for a name a GPU if there is one.
        topk: number of the best classes in `pred_topk`.
        classes: names, see read_classes; None = those that the model's checkpoint keeps, ImageNet's of released weights.
        pretrained: with a name or recipe, as in get_model; None = the released weights.
    Returns: dict for one image, list of dicts for a list: pred_label (int), pred_score (float), pred_scores (float32 array of
        all classes, which add up to 1), pred_topk (list of {label, score, class}); pred_class (str) where names are known;
        image (str), the path of a file.
    Raises: ValueError on a model without classes, a file without a head for them, weights that predict NaN, or an image that
        can't be read; FileNotFoundError.
    """
    as_list(images, folders=True)  # says what is missing before a model is made
    model = _opened(model, device, pretrained, "head.")
    recipe = model.recipe
    images, single = _files(images, recipe)
    if not topk >= 1:
        raise ValueError(f"topk={topk} (--topk) must be at least 1.")
    names = read_classes(classes, recipe) if classes is not None else recipe.classes
    logits = _run(model, images, batch_size, eval_transform, _logits)
    if not torch.isfinite(logits).all():
        raise ValueError(f"predictions of {int((~torch.isfinite(logits)).any(dim=1).sum())} of {len(logits)} images are NaN or "
                         f"infinite: the weights are broken, or too large for the number format. Try other weights, or "
                         f"AMP_OPT_LEVEL O0 (--opts AMP_OPT_LEVEL O0).")
    results = [_prediction(scores, topk, names) | ({"image": str(image)} if isinstance(image, (str, Path)) else {})
               for image, scores in zip(images, logits.softmax(dim=1).numpy(), strict=True)]
    return results[0] if single else results


def extract_feat(model, images, output=None, batch_size=32, device=None, pretrained=None, layer=None):
    """Features of images.

    Args:
        model, images, batch_size, device, pretrained: as in inference_model.
        output: map (B, C, H/stride, W/stride); tokens (B, 1 + L, C), or (B, L, C) of an encoder without class token; pooled
            (B, C): what the head sees, or without a head the mean over the image; cls (B, C), the class token. None = pooled of
            a classifier, tokens of MAE and its relatives, pooled of MixMIM, else the map; with a layer pooled.
        layer: block whose output is taken instead, the mean of its patch tokens, cls or a map: from 1, or from the end -1, or
            "last", the normalised output; as main_linprobe.py counts. Or a list of them.
    Returns: tuple of one float32 tensor on the CPU for each layer, or of one; the images in their order.
    Raises: ValueError, as inference_model; on a layer that the encoder has not, or another output of a layer.
    """
    as_list(images, folders=True)
    model = _opened(model, device, pretrained)
    recipe = model.recipe
    images, _ = _files(images, recipe)
    if layer is not None:
        return _run(model, images, batch_size, eval_transform, _of_layers(model, layer, output))
    if output is None:
        output = DEFAULT_OUTPUTS.get(recipe.config.MODEL.METHOD, "map") if recipe.task == "pretrain" else "pooled"
    features = pick(FEATURES, output, "output")
    return (_run(model, images, batch_size, eval_transform, features),)


def _of_layers(model, layer, output):
    """(model, images) -> tuple of features, one for each layer."""
    if output not in (None, "pooled", "cls", "map"):
        raise ValueError(f"output={output} (--output) is of the last layer: with layer={layer} (--layer) use pooled, cls or "
                         f"map.")
    blocks = len(_encoder(model).probed_blocks())
    layers = [numbered_layer(one, blocks) for one in (layer if isinstance(layer, (list, tuple)) else [layer])]
    feature = output if output in ("cls", "map") else "mean"
    return lambda model, images: tuple(_encoder(model).forward_layers(images, layers, feature))


def labelled_images(folder):
    """The images of a folder of class folders, to have labels beside features.

    Args:
        folder: with a folder for each class; of data with splits one of these, `data/val`.
    Returns: (paths, labels, classes): list of N paths, int64 array (N,), names in the order of the labels.
    Raises: ValueError if there are no class folders; FileNotFoundError.
    """
    with listing("RGB", folder):
        classes = class_names(folder, "folder")
        samples = labelled_samples(folder, classes, "folder")
    return [str(path) for path, _ in samples], np.array([label for _, label in samples], dtype=np.int64), classes


def get_transform(model):
    """What prepares an image for a model, as its evaluation does.

    Args:
        model: from get_model, or what get_model takes.
    Returns: function from an image, of any kind that inference_model takes, to a tensor (C, H, W) float32, normalised.
    """
    config = (model.recipe if isinstance(model, nn.Module) else open_recipe(model)[0]).config
    return Preparation(config, eval_transform(config))


def reconstruct(model, images, mask_ratio=None, mask=None, seed=0, device=None, pretrained=None, output="picture"):
    """See what a pre-trained model makes of what it can't see.

    Args:
        model, images, device, pretrained: as in inference_model; the model is a pre-training one.
        mask_ratio: share that is hidden; None = DATA.MASK_RATIO.
        mask: (h, w) on the encoder's patch grid, True or 1 = hidden, for all images, or (B, h, w); instead of random ones.
        seed: of the random masks.
        output: picture, columns, or tensors.
    Returns: PIL image, one row an image, with the columns that the method names: original, masked, prediction and so on. With
        `columns` a dict of these, (B, C, H, W) float32 on the CPU, normalised alike, NaN where nothing is seen. With
        `tensors` a dict of tensors on the CPU: images and prediction (B, C, H, W) float32, normalised alike; mask
        (B, h, w) bool, True = hidden; loss (B,) float32 of each image, which is that of pre-training.
    Raises: ValueError on a model that reconstructs nothing, or has no decoder from its file.
    """
    as_list(images, folders=True)
    model = _opened(model, device, pretrained, "decoder.")
    recipe = model.recipe
    images, _ = _files(images, recipe)
    show = pick({"picture": _sheet, "columns": _columns, "tensors": _reconstructions}, output, "output")
    if mask_ratio is not None and mask is not None:
        raise ValueError("mask and mask_ratio contradict each other: leave one out.")
    if mask_ratio is not None and not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} (--mask-ratio) must lie between 0, which hides nothing, and 1, which hides "
                         f"all: use e.g. 0.6.")
    if mask is not None:
        masks = _given_masks(mask, len(images))
    config = recipe.config if mask_ratio is None else with_values(recipe.config, DATA__MASK_RATIO=mask_ratio)
    if mask is None:
        masks = draw_masks(config, len(images), rng_for(seed, MASK))
    return _run(model, images, len(images), heldout_transform, lambda model, batch: show(model, batch, masks))


def attention_maps(model, image, block=-1, token=None, device=None, pretrained=None):
    """Where a model looks: the attention of one block, head by head.

    Args:
        model, device, pretrained: as in inference_model; a probe shows its encoder.
        image: one image.
        block: from 1, or from the end -1; of Swin those of all stages in a row.
        token: (row, column) on the block's map, which in Swin halves from stage to stage; as floats, from 0 to 1, shares of it
            down and to the right; or "cls", the class token of a ViT; None = every token of the map.
    Returns: (heads, h, w) float32 on the CPU: what the token takes of each place, or (heads, h, w, h, w) of all tokens. In
        Swin it is 0 outside of the token's window. What a ViT gives to its class token is left out: the rest adds up to less
        than 1.
    Raises: ValueError on several images, a block or a token that there is not, or a block without attention.
    """
    as_list(image)
    model = _opened(model, device, pretrained)
    images, _ = _files(image, model.recipe)
    if len(images) > 1:
        raise ValueError(f"attention is that of one image, and {len(images)} were given: call it for each.")
    layer = numbered_block(block, len(_encoder(model).probed_blocks()), "block={} (--block)")
    return _run(model, images, 1, eval_transform, lambda model, batch: _encoder(model).attention_maps(batch, layer, token))[0]


def imagenet_classes():
    """Names of the classes of ImageNet-1K, in the order of the labels."""
    return get_weight(IMAGENET).meta["categories"]


def _opened(model, device, pretrained, part=None):
    """A model with a recipe that has a part (see check_task), on its device."""
    if not isinstance(model, nn.Module):
        check_task(open_recipe(model)[0], part)  # before anything is downloaded
        device = best_device() if device is None else device
        return check_part(get_model(model, True if pretrained is None else pretrained, device), part)
    if pretrained is not None:
        raise ValueError(f"pretrained={pretrained} is for names and recipes; this model is built: load weights with "
                         f"get_model(..., pretrained=...).")
    if not hasattr(model, "recipe"):
        raise ValueError(f"this {type(model).__name__} does not say how its images are prepared: make it with get_model, or "
                         f"set model.recipe = recipes.Recipe(config, task).")
    check_task(model.recipe, part)
    return model if device is None else model.to(_device(device))


def _files(images, recipe):
    """(list of images, whether it was a single one), with the images of folders in their place."""
    found, single = as_list(images, folders=True)
    folders = [isinstance(image, (str, Path)) and os.path.isdir(image) for image in found]
    files = [file for image, is_folder in zip(found, folders, strict=True)
             for file in (paths_of(image, mode_of(recipe.config)) if is_folder else [image])]
    return files, single and not any(folders)


def check_task(recipe, part):
    """Refuse a task whose models lack what is needed: `head.` to predict, `decoder.` to reconstruct, None for features."""
    if part == "head." and recipe.task == "pretrain":
        raise ValueError(f"{recipe.name} is a pre-training model and predicts no classes: use extract_feat (--features) or "
                         f"reconstruct (--reconstruct), or a fine-tuned model.")
    if part == "decoder." and recipe.task != "pretrain":
        raise ValueError(f"{recipe.name} is built for {recipe.task}, which reconstructs nothing: use a pre-training model.")


def check_part(model, part):
    """The model, unless weights were loaded but not those of the part, which is then random."""
    if part and model.recipe.lacks(part):
        report, wanted = model.recipe.report, model.recipe.config.MODEL.NUM_CLASSES
        size = read_head(report.path, model.recipe.config.PRETRAINED_KEY).size if part == "head." else None
        if size and size != wanted:
            raise ValueError(f"{report.path} has no head that fits: it is for {size} classes, and MODEL.NUM_CLASSES={wanted} "
                             f"is set. Use MODEL.NUM_CLASSES {size} (--opts MODEL.NUM_CLASSES {size}), or leave it out.")
        advice = {"head.": "a fine-tuned checkpoint", "decoder.": "a full checkpoint (ckpt_epoch_N.pth)"}[part]
        advice = (part == "decoder." and report.misfit) or f"Use {advice}."
        raise ValueError(f"{report.path} has no {part[:-1]} that fits: there is nothing to show. {advice}")
    return model


def _run(model, images, batch_size, transform, compute):
    """`compute(model, batch)` over all images as the model's evaluation does it: same transform, same number format.

    The model ends in the mode it was in. A model that was cast, by `model.bfloat16()` say, gets its images in that format.
    Tensors, and tuples of them, come back float32, on the CPU, and may take part in training.
    """
    config, weight = model.recipe.config, next(model.parameters())
    precision = build_precision(config.AMP_OPT_LEVEL, "native", weight.device)
    outputs = []
    with _evaluating(model), precision.autocast():
        for batch in Preparation(config, transform(config)).batches(images, batch_size):
            output = compute(model, batch.to(weight.device, weight.dtype))
            outputs.append(tuple(part.float().cpu() for part in output) if isinstance(output, tuple) else
                           output.float().cpu() if isinstance(output, torch.Tensor) else output)
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(outputs) if isinstance(outputs[0], torch.Tensor) else outputs[0]


@contextmanager
def _evaluating(model):
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _logits(model, images):
    """(B, classes)."""
    logits = model(images)
    if isinstance(logits, torch.Tensor):
        return logits
    if len(logits) > 1:
        raise ValueError(f"this probe has heads on {len(logits)} layers (PROBE.SWEEP): set PROBE.LAYER to one.")
    return logits[0]


def _prediction(scores, topk, names):
    order = np.argsort(-scores, kind="stable")
    best = [{"label": int(i), "score": float(scores[i])} | ({"class": names[i]} if names else {}) for i in order[:topk]]
    result = {"pred_label": best[0]["label"], "pred_score": best[0]["score"], "pred_scores": scores, "pred_topk": best}
    return result | ({"pred_class": best[0]["class"]} if names else {})


def _encoder(model):
    return getattr(model, "encoder", model)


def _pooled(model, images):
    if model.recipe.task == "probe":
        return model.features(images)[0]
    return model.forward_pooled(images) if model.recipe.task == "classification" else model.encoder.forward_last(images)


FEATURES = {"map": lambda model, images: _encoder(model).forward_map(images),
            "tokens": lambda model, images: _encoder(model).forward_tokens(images), "pooled": _pooled,
            "cls": lambda model, images: _encoder(model).forward_last(images, "cls")}


def _given_masks(mask, number):
    """(B, h, w) bool of one mask for all images, or one of each. Raises ValueError if one hides none or all patches."""
    masks = torch.as_tensor(mask).bool()
    masks = torch.stack([masks] * number) if masks.ndim == 2 else masks
    if masks.ndim != 3 or len(masks) != number:
        raise ValueError(f"mask has shape {tuple(masks.shape)}, expected (h, w), or (B, h, w) of {number} images.")
    for one in masks:
        if not 0 < one.sum() < one.numel():
            raise ValueError(f"mask hides {int(one.sum())} of {one.numel()} patches: none are left to reconstruct, or to do "
                             f"it from. Hide some, e.g. 60 %.")
    return masks


def _columns(model, images, masks):
    """The pictures that a method shows of (B, C, H, W) under (B, h, w), by name."""
    return {name: pictures.float().cpu() for name, pictures in model.pictures(images, masks.to(images.device)).items()}


def _sheet(model, images, masks):
    """The pictures that a method shows of (B, C, H, W) under (B, h, w), as one PIL image."""
    return picture_grid(_columns(model, images, masks), *pixel_statistics(model.recipe.config))


def _reconstructions(model, images, masks):
    """The numbers behind `_sheet`, see reconstruct."""
    masks = masks.to(images.device).bool()
    prediction, target = model.reconstruct(images, masks), model.target(images)
    losses = [model.loss(prediction[i:i + 1], target[i:i + 1], masks[i:i + 1]) for i in range(len(images))]
    viewed = model.target.denormalize(prediction, images)
    return {"images": images.float().cpu(), "prediction": viewed.float().cpu(), "mask": masks.cpu(),
            "loss": torch.stack(losses).float().cpu()}


# ---- command line -------------------------------------------------------------------------------------------------

def main(args):
    if args.list is not None:
        return print_models(args)
    check_arguments(args)
    files = [place for place in args.images if not os.path.isdir(place)]
    if files:
        as_list(files)  # says which is missing, before anything is downloaded
    part = "decoder." if args.reconstruct else None if args.features else "head."
    settings = dict(zip(args.opts[::2], args.opts[1::2], strict=True)) | given(args, "PRETRAINED_KEY")
    args.model = args.model or args.weights
    recipe = open_recipe(args.model, args.task, settings)[0]
    check_task(recipe, part)  # before anything is downloaded
    paths = [path for place in args.images for path in paths_of(place, mode_of(recipe.config))]
    model = get_model(args.model, args.weights or True, args.device or best_device(), args.weights_dir, args.task,
                      args.classes, **settings)
    check_part(model, part)
    read, errors = readable(paths, model.recipe.config)
    if not read:
        raise ValueError(f"none of {len(paths)} images can be read: {next(iter(errors.values()))}")
    if args.features:
        (features,) = extract_feat(model, read, **given(args, "output", "batch_size", "layer"))
        labels = labels_of(read, args.images)
        write_whole(args.features, lambda path: np.savez(path, features=features.numpy(), paths=np.array(read), **labels))
        print(f"{args.features}: features {tuple(features.shape)} of {len(read)} images"
              + (f", with labels of {len(labels['classes'])} classes" if labels else ""))
    if args.reconstruct:
        write_reconstructions(model, read, args)
        print(f"{args.reconstruct}: reconstructions of {len(read)} images")
    if not args.features and not args.reconstruct:
        results = iter(inference_model(model, read, **given(args, "topk", "batch_size")))
        if model.recipe.classes is None:
            print("the weights keep no names of classes: numbers are shown. --classes <file with a name a line> names them, or "
                  "--classes imagenet", file=sys.stderr)
        print_predictions(paths, [None if path in errors else next(results) for path in paths], errors, args.json)
    if errors:
        for error in errors.values():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def paths_of(place, mode):
    """The images of a folder that a model of this mode reads, or the one file."""
    if not os.path.isdir(place):
        return [place]
    with listing(mode, place):
        files, note = image_files(place, "IMAGE"), splits_read_as_one(place)
    if note:
        print(note, file=sys.stderr)
    return files


def readable(paths, config):
    """The images among paths, and {path: what is wrong} of the others. Each is decoded, so that one does not cost the rest."""
    errors = {}
    for path in dict.fromkeys(paths):
        try:
            picture_of(path, mode_of(config), rules=rules_of(config))
        except (BadImage, FileNotFoundError) as error:
            errors[path] = str(error)
    return [path for path in paths if path not in errors], errors


def labels_of(paths, places):
    """{labels: (N,) int64, classes: (K,)} of images that lie in the class folders of one place, else {}."""
    if len(places) != 1 or not os.path.isdir(places[0]) or find_splits(places[0]):
        return {}
    inside = [Path(path).relative_to(places[0]).parts for path in paths]
    classes = sorted({parts[0] for parts in inside})
    if len(classes) < 2 or any(len(parts) < 2 for parts in inside):
        return {}
    return {"labels": np.array([classes.index(parts[0]) for parts in inside]), "classes": np.array(classes)}


def write_reconstructions(model, paths, args):
    """--reconstruct: a picture, or the tensors of `reconstruct` and the paths as .npz."""
    options = given(args, "mask_ratio", "seed")
    if not args.reconstruct.endswith(".npz"):
        return write_whole(args.reconstruct, reconstruct(model, paths, **options).save)
    arrays = {name: tensor.numpy() for name, tensor in reconstruct(model, paths, output="tensors", **options).items()}
    write_whole(args.reconstruct, lambda path: np.savez(path, **arrays, paths=np.array(paths)))


def given(args, *names):
    """The values of flags that were given; for the others the functions have their defaults."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def write_whole(target, write):
    """Have `write(path)` write beside a new file's name, which it gets when it is complete."""
    part = Path(target).with_name(f".{os.getpid()}.{Path(target).name}")
    try:
        write(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def check_arguments(args):
    """Refuse what contradicts itself or says nothing, and files that can't be written. Raises ValueError."""
    if not (args.model or args.weights) or not args.images:
        raise ValueError("nothing to do: pass --model <name or recipe> or --weights <checkpoint>, and images, or --list for "
                         "the names.")
    for flag in ("--features", "--reconstruct"):
        check_target(flag, getattr(args, flag[2:]))
    predicts = not args.features and not args.reconstruct
    for names, counts, advice in (
            (["output", "layer"], args.features, "says nothing without --features"),
            (["mask_ratio", "seed"], args.reconstruct, "says nothing without --reconstruct"),
            (["topk", "classes", "json"], predicts, "is for predictions: leave out --features and --reconstruct"),
            (["batch_size"], predicts or args.features, "says nothing to --reconstruct, which takes all images at once")):
        unheard = {} if counts else given(args, *names)
        for name, value in unheard.items():
            raise ValueError(f"--{name.replace('_', '-')}{'' if value is True else f' {value}'} {advice}.")
    if len(args.opts) % 2:
        raise ValueError(f"--opts takes pairs KEY VALUE, but {len(args.opts)} words were given: {' '.join(args.opts)}.")


def check_target(flag, target):
    """Refuse a file that exists, can't be written, or has another kind of ending. Raises ValueError."""
    if target is None:
        return
    folder, ending, kinds = Path(target).parent, Path(target).suffix.lower(), Image.registered_extensions()
    fits = ending == ".npz" or (flag == "--reconstruct" and kinds.get(ending) in Image.SAVE)
    if os.path.exists(target):
        raise ValueError(f"{target} exists and is not written over: choose another name.")
    if not fits:
        raise ValueError(f"{flag} {target} must end in {'.npz' if flag == '--features' else '.png or as another image'}.")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{flag} {target}: {folder} is no folder that can be written to. Make it, or choose another.")


def print_models(args):
    """A table of the models whose names fit --list, of --task."""
    others = [name for name, value in vars(args).items() if value and name not in ("list", "task")]
    if others:
        raise ValueError(f"--list takes a pattern and --task alone: leave out {', '.join(others)}.")
    names = list_models(args.list or None, args.task)
    if not names:
        raise ValueError(f"no model is named like {args.list!r}: --list alone shows all names.")
    rows = [("name", "task", "parameters", "top-1")]
    for name in names:
        entry = zoo.find(name)
        rows.append((name, entry.task, f"{entry.params / 1e6:.1f} M" if entry.params else "-",
                     f"{entry.top1:.2f}" if entry.top1 else "-"))
    print("\n".join(aligned(rows, num_left=2)))


def print_predictions(paths, results, errors, as_json):
    """The best classes of each image: a table, or a list of objects as JSON. A result is None where there is an error."""
    pairs = list(zip(paths, results, strict=True))
    if as_json:
        found = [{"image": str(path)} | ({"error": errors[path]} if result is None else
                                         {key: value for key, value in result.items() if key != "pred_scores"})
                 for path, result in pairs]
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # a name that is no text, or a console of another alphabet
            text = json.dumps(found, indent=1, allow_nan=False)
        return print(text)
    rows = [("image", "class", "score")]
    for path, result in pairs:
        for i, best in enumerate(result["pred_topk"] if result else []):
            rows.append((shown(path) if i == 0 else "", shown(best.get("class", best["label"])), f"{best['score']:.4f}"))
    print("\n".join(aligned(rows, num_left=2)))


if __name__ == "__main__":
    run(main, ARGUMENTS)
