"""See what models make of images: reconstructions under any masks, where tokens look, features as colours.

  python tools/visualize.py photos --models <checkpoint> --out seen.png                        masks of its recipe
  python tools/visualize.py photos --models a.pth b.pth --ratios 0.4 0.6 0.8 --units 16 32 --out seen.html
  python tools/visualize.py bird.jpg --models <checkpoint> --object 40,30,180,200 --out bird.png     LEFT,TOP,RIGHT,BOTTOM
  python tools/visualize.py bird.jpg --models <checkpoint> --object bird_mask.png --hide whole --out bird.png
  python tools/visualize.py bird.jpg --models <checkpoint> --attention --blocks 1 -1 --token 0.5,0.5 --out looks.png
  python tools/visualize.py photos --models <checkpoint> --pca --blocks 2 -1 --out features.png

A model is a checkpoint, ours or an official one, a name of docs/models.md, whose released weights are then read, or
<recipe>=<checkpoint> where the file keeps no settings. Several stand side by side, a row each. --out is a picture, or one page
of HTML that needs no other file.

Columns of reconstructions: original; masked, what the model sees; prediction, of hidden places alone; pasted, that in the
visible image; full, all that the head gives, of visible places, too. Of a method or target without pixels those that it has.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run

MOST = 0.75  # of the units of an object, with --hide most
HIDES = ("random", "most", "whole")


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders with images in or below them")
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="see above")
    parser.add_argument("--out", metavar="FILE", help=".png or another picture, or .html; one that exists is replaced")
    parser.add_argument("--number", type=positive(int), default=4, metavar="N", help="images at most, from all over them "
                        "(default: %(default)s)")
    parser.add_argument("--cell", type=positive(int), default=128, metavar="PIXELS", help="of a picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    masks = parser.add_argument_group("masks")
    masks.add_argument("--kinds", nargs="+", metavar="KIND", help="of DATA.MASK_TYPE (all three: the recipe's)")
    masks.add_argument("--units", nargs="+", type=positive(int), metavar="PIXELS", help="sides of a unit")
    masks.add_argument("--ratios", nargs="+", type=float, metavar="SHARE", help="hidden shares")
    masks.add_argument("--object", metavar="BOX|FILE", help="of one image: LEFT,TOP,RIGHT,BOTTOM in its pixels, or a picture "
                                                            "or .npy array of its size, white or not 0 where the object is")
    masks.add_argument("--hide", nargs="+", choices=HIDES, metavar="WHAT", help="with --object: random (masks), most (75 %% of "
                       "the units of the object), whole; default: all three")
    looks = parser.add_argument_group("features")
    looks.add_argument("--attention", action="store_true", help="where a token looks, head by head; in Swin within its window")
    looks.add_argument("--pca", action="store_true", help="features as colours: their three main components over all images")
    looks.add_argument("--blocks", nargs="+", type=int, metavar="N", help="from 1, or from the end -1 (default: -1; --pca: the "
                                                                            "normalised output)")
    looks.add_argument("--token", metavar="PLACE", help="of --attention: DOWN,RIGHT as shares of the image, or cls (default: "
                                                        "0.5,0.5)")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np
import torch
from PIL import Image, ImageDraw

from config import named_recipe, pixel_statistics, with_values
from data.inputs import as_list
from data.masks import draw_masks
from data.object_masks import object_mask
from data.transforms import mode_of
from inference import (
    attention_maps,
    best_device,
    check_part,
    check_task,
    extract_feat,
    get_model,
    get_transform,
    paths_of,
    readable,
    reconstruct,
)
from models.layers import lift_mask
from recipes import open_recipe
from utils.kept import is_checkpoint, read_kept
from utils.pictures import as_pictures, to_pil
from utils.seeding import MASK, rng_for
from utils.sheets import check_sheet, write_sheet


def main(args):
    check_arguments(args)
    models = open_models(args.models, args.device, None if args.attention or args.pca else "decoder.")
    paths = list(dict.fromkeys(path for place in args.images for path in paths_of(place, mode_of(models[0][1].recipe.config))))
    paths = [paths[i * len(paths) // args.number] for i in range(args.number)] if len(paths) > args.number else paths
    paths, errors = readable(paths, models[0][1].recipe.config)
    if not paths:
        raise ValueError(f"none of the images can be read: {next(iter(errors.values()))}")
    if args.object and len(paths) != 1:
        raise ValueError(f"--object is of one image, and {len(paths)} were given: draw one at a time.")
    rows = (attention_rows if args.attention else pca_rows if args.pca else reconstruction_rows)(models, paths, args)
    write_sheet(args.out, rows, ", ".join(name for name, _ in models), args.cell)
    print(f"{args.out}: {len(rows)} row{'s' * (len(rows) > 1)} of {len(paths)} image{'s' * (len(paths) > 1)}")
    if errors:
        for error in errors.values():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def check_arguments(args):
    """Refuse what contradicts itself, before anything is loaded. Raises ValueError."""
    if not args.models or not args.images or not args.out:
        raise ValueError("nothing to see: pass images, --models <checkpoint or name> and --out <file.png or .html>.")
    if args.attention and args.pca:
        raise ValueError("--attention and --pca are two pictures: draw one, then the other.")
    looks = "--attention" if args.attention else "--pca" if args.pca else ""
    for name in ("kinds", "units", "ratios", "object", "hide"):
        if looks and getattr(args, name):
            raise ValueError(f"--{name} says nothing with {looks}, which hides nothing: leave it out.")
    if args.blocks and not looks:
        raise ValueError("--blocks is for --attention and --pca: add one of them.")
    if args.token and not args.attention:
        raise ValueError("--token is for --attention: add it.")
    if args.hide and not args.object and set(args.hide) != {"random"}:
        raise ValueError("--hide most or whole needs --object, a box or a mask of what is to be hidden.")
    if args.object and "random" not in (args.hide or HIDES) and (args.kinds or args.ratios):
        raise ValueError("--kinds and --ratios are of random masks: add random to --hide, or leave them out.")
    for kind in args.kinds or ():
        if kind == "file":
            raise ValueError("--kinds file: pass the mask as --object <file> --hide whole.")
    check_sheet(args.out)
    as_list(args.images, folders=True)  # says what is missing
    place_of(args.token)


def open_models(models, device=None, part="decoder."):
    """[(name, model)] of --models, on a device; None = a GPU if there is one. Raises ValueError on one that lacks a part."""
    opened = []
    for given in models:
        recipe, _, weights = given.rpartition("=") if not Path(given).exists() else ("", "", given)
        model = recipe or weights
        named = not recipe and not is_checkpoint(model)
        if named and (model.endswith((".yaml", ".yml")) or named_recipe(model)):
            raise ValueError(f"{given} is a recipe, which has no weights: pass {given}=<checkpoint>, or a checkpoint alone "
                             f"that keeps its settings.")
        task = (read_kept(weights).task or "pretrain") if recipe else None  # an encoder alone is of pre-training
        check_task(open_recipe(model, task)[0], part)  # before anything is downloaded
        built = get_model(model, True if named else weights, device or best_device(), task=task)
        opened.append((given, check_part(built, part)))
    stems = [Path(name.rpartition("=")[2]).stem for name, _ in opened]  # short where that is enough
    return [(stem if stems.count(stem) == 1 else name, model) for stem, (name, model) in zip(stems, opened, strict=True)]


# ---- reconstructions ----------------------------------------------------------------------------------------------

def reconstruction_rows(models, paths, args):
    """For each image a row for each mask and model, see utils.sheets."""
    rows = [[] for _ in paths]
    for name, model in models:
        for what, masks in masks_for(model, paths, args):
            columns = columns_under(model, paths, masks)
            for i, path in enumerate(paths):
                label = [Path(path).name] * (len(paths) > 1) + [name] * (len(models) > 1) + [what]
                rows[i].append(("\n".join(label), {column: pictures[i] for column, pictures in columns.items()}))
    per_model = len(rows[0]) // len(models)  # the same mask by every model stands together
    order = [m * per_model + i for i in range(per_model) for m in range(len(models))]
    same = all(len(of) == per_model * len(models) for of in rows)
    return [of[i] for of in rows for i in (order if same else range(len(of)))]


def masks_for(model, paths, args):
    """Yield (what is hidden, in words; masks (B, h, w) bool) for a model."""
    hides = args.hide or (HIDES if args.object else ("random",))
    config = model.recipe.config
    for unit in args.units or [config.DATA.MASK_PATCH_SIZE]:
        sized = with_values(config, DATA__MASK_PATCH_SIZE=unit)
        if "random" in hides:
            yield from random_masks(sized, len(paths), args)
        for what in (what for what in HIDES[1:] if what in hides):
            hidden = object_mask(sized, paths[0], args.object, MOST if what == "most" else 1.0, args.seed)
            yield f"{what} of the object, {unit} px, {hidden.float().mean():.0%}", hidden


def random_masks(config, number, args):
    """As masks_for, of the kinds and ratios asked for."""
    for kind in args.kinds or [config.DATA.MASK_TYPE]:
        of_kind = with_values(config, DATA__MASK_TYPE=kind)
        for ratio in args.ratios or [config.DATA.MASK_RATIO]:
            masks = draw_masks(with_values(of_kind, DATA__MASK_RATIO=ratio), number, rng_for(args.seed, MASK))
            yield f"{kind}, {config.DATA.MASK_PATCH_SIZE} px, {masks[0].float().mean():.0%}", masks


def columns_under(model, paths, masks):
    """{column: list of PIL images} of images under masks (B, h, w)."""
    seen = reconstruct(model, paths, mask=masks, output="columns")
    if "pasted" in seen:  # what the head gives of all places is `full`, of hidden ones the prediction
        full = seen["prediction"]
        hidden = lift_mask(masks, full.shape[-2:]).unsqueeze(1)
        seen = seen | {"prediction": full.masked_fill(~hidden, torch.nan), "full": full}
    return {name: as_pictures(images, *pixel_statistics(model.recipe.config)) for name, images in seen.items()}


# ---- features -----------------------------------------------------------------------------------------------------

def attention_rows(models, paths, args):
    """For each image, model and block a row: the token, the mean of the heads, and each head."""
    rows = []
    for path in paths:
        for name, model in models:
            image = picture_of_model(model, path)
            for block in args.blocks or [-1]:
                place = place_of(args.token)
                maps = attention_maps(model, path, block, place)
                grid = tuple(maps.shape[-2:])
                pictures = {"token": image if place == "cls" else marked(image, place, grid)}
                pictures |= {"mean": looked_at(image, maps.mean(dim=0))}
                pictures |= {f"head {head}": looked_at(image, one) for head, one in enumerate(maps, start=1)}
                label = [Path(path).name] * (len(paths) > 1) + [name] * (len(models) > 1)
                rows.append(("\n".join([*label, f"block {block}", f"{grid[0]} x {grid[1]} tokens"]), pictures))
    return rows


def pca_rows(models, paths, args):
    """For each image and model a row: the image, and its features as colours, block by block."""
    rows = [[] for _ in paths]
    for name, model in models:
        blocks = args.blocks or ["last"]
        colours = [as_colours(features) for features in extract_feat(model, paths, output="map", layer=blocks)]
        for i, path in enumerate(paths):
            image = picture_of_model(model, path)
            pictures = {"original": image}
            for block, maps in zip(blocks, colours, strict=True):
                column = "output" if block == "last" else f"block {block}"
                pictures[column] = to_pil(maps[i]).resize(image.size, Image.Resampling.NEAREST)
            label = [Path(path).name] * (len(paths) > 1) + [name] * (len(models) > 1)
            rows[i].append(("\n".join(label), pictures))
    return [row for of in rows for row in of]


def as_colours(features):
    """The three main components of feature vectors as red, green and blue.

    Args:
        features: (B, C, h, w) float.
    Returns: (B, 3, h, w) float in [0, 1]; components that there are not, in maps of few places or channels, are 0.5.
    """
    batch, channels, height, width = features.shape
    vectors = features.double().permute(0, 2, 3, 1).reshape(-1, channels)
    vectors = vectors - vectors.mean(dim=0)
    _, _, axes = torch.linalg.svd(vectors, full_matrices=False)
    axes = axes[:3]
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # of two directions always the same one
    found = vectors @ axes.T
    low, high = found.quantile(0.02, dim=0), found.quantile(0.98, dim=0)  # single odd tokens do not take all the contrast
    scaled = torch.full((len(found), 3), 0.5, dtype=torch.float64)
    spread = high > low
    scaled[:, :len(axes)][:, spread] = ((found - low) / (high - low).clamp(min=1e-12))[:, spread].clamp(0, 1)
    return scaled.view(batch, height, width, 3).permute(0, 3, 1, 2).float()


def picture_of_model(model, path):
    """An image as the model's evaluation sees it, PIL."""
    return as_pictures(get_transform(model)(path).unsqueeze(0), *pixel_statistics(model.recipe.config))[0]


def place_of(token):
    """--token as (down, right), shares of the image, or "cls". Raises ValueError."""
    if token == "cls":
        return token
    try:
        down, right = (float(part) for part in (token or "0.5,0.5").split(","))
    except ValueError as error:
        raise ValueError(f"--token {token} is no place: DOWN,RIGHT as shares of the image, e.g. 0.5,0.5, or cls.") from error
    if not (0 <= down <= 1 and 0 <= right <= 1):
        raise ValueError(f"--token {token} lies outside of the image: both shares are from 0 to 1.")
    return down, right


def marked(image, place, grid):
    """An image with a frame around the token of a grid at a place, shares down and to the right."""
    image, (height, width) = image.copy(), (side / number for side, number in zip(image.size[::-1], grid, strict=True))
    row, column = (min(int(share * number), number - 1) for share, number in zip(place, grid, strict=True))
    left, top = column * width, row * height
    ImageDraw.Draw(image).rectangle((left, top, max(left + width - 1, left + 1), max(top + height - 1, top + 1)), outline="red")
    return image


def looked_at(image, shares):
    """An image in grey, red to yellow where shares (h, w) of attention go; the largest is yellow."""
    heat = (shares / shares.max().clamp(min=1e-12)).numpy()
    heat = Image.fromarray((heat * 255).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    heat = np.asarray(heat, dtype=np.float32)[..., None] / 255
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.6
    colour = np.concatenate([np.full_like(heat, 255), 255 * heat ** 2, np.zeros_like(heat)], axis=-1)
    strength = np.sqrt(heat) * 0.8
    return Image.fromarray((grey * (1 - strength) + colour * strength).round().astype(np.uint8))


if __name__ == "__main__":
    run(main, ARGUMENTS)
