"""A page in the browser to hide parts of images by hand, and see what models make of them.

  python tools/playground.py --models output/demo/simmim_pretrain/swin_nano/ckpt_epoch_9.pth       on drawn images
  python tools/playground.py photos bird.jpg --models first.pth second.pth mae_vit_base_1600ep_mmpretrain
  python tools/playground.py photos --models <recipe.yaml>=<checkpoint> --mask mask.png --port 8000

Prints the address to open. Units are hidden and shown by the mouse, or drawn by any strategy, unit size and ratio; each model
that is ticked reconstructs at once. Images are those named here, and what is dropped on the page, which stays in memory.
No part of it comes from the network, and other machines and users do not see it; from a remote machine:
ssh -L 7860:localhost:7860 <machine>. Ctrl-C ends it.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders with images in or below them; default: "
                                                                   "drawn ones")
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="checkpoints, names of docs/models.md, or "
                                                                                    "<recipe>=<checkpoint>")
    parser.add_argument("--mask", metavar="FILE", help="offer the mask of a file, too (DATA.MASK_FILE)")
    parser.add_argument("--port", type=int, default=7860, help="of this machine; 0 = any that is free (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import base64
import json
import math
import threading
import time
from io import BytesIO

import numpy as np
import torch

from config import check_pretraining, encoder_config, image_size, pixel_statistics, with_values
from data.demo import CLASSES, draw_image
from data.inputs import Preparation, as_list, picture_of
from data.mask_generators import read_mask
from data.masks import MASKS, draw_masks
from data.transforms import heldout_transform, mode_of, rules_of
from inference import paths_of
from models.layers import lift_mask
from tools.visualize import columns_under, open_models
from utils.distances import average_distance
from utils.loopback import LoopbackServer, as_json
from utils.names import shown
from utils.pictures import as_pictures
from utils.registry import pick
from utils.seeding import MASK, rng_for

PAGE = {"": ("index.html", "text/html; charset=utf-8"), "page.js": ("page.js", "text/javascript; charset=utf-8"),
        "page.css": ("page.css", "text/css; charset=utf-8")}
MOST_NAMED, MOST_UPLOADED = 60, 20  # images on the page; of more uploads the oldest is forgotten
UPLOAD_SIZE, REQUEST_SIZE = 32 * 2 ** 20, 2 ** 20  # bytes


def main(args):
    if args.images:
        as_list(args.images, folders=True)  # says what is missing
    if args.mask:
        read_mask(args.mask)
    with LoopbackServer(args.port) as server:  # before the models, which take long to load
        models = open_models(args.models, args.device)
        playground = Playground(models, images_of(args.images, models[0][1].recipe.config), args.mask or "")
        server.routes = routes_of(playground)
        print(f"open {server.url} in a browser; Ctrl-C ends", flush=True)
        server.serve_forever()


def images_of(places, config):
    """[(name, path or PIL image)] of files and folders, or of none of them drawn images."""
    mode = mode_of(config)
    if not places:
        return [] if isinstance(mode, int) else [(f"drawn: {name}", draw_image(0, "val", name, 0)) for name in CLASSES]
    paths = list(dict.fromkeys(path for place in places for path in paths_of(place, mode)))
    if len(paths) > MOST_NAMED:
        print(f"{MOST_NAMED} of {len(paths)} images are on the page")
        paths = [paths[i * len(paths) // MOST_NAMED] for i in range(MOST_NAMED)]
    return [(Path(path).name, path) for path in paths]


def routes_of(playground):
    """What the page asks for, see LoopbackServer."""
    def constant(kind, content):
        return 0, lambda query, body: (kind, content)

    folder = Path(__file__).with_name("web")
    return {
        **{("GET", name): constant(kind, (folder / file).read_bytes()) for name, (file, kind) in PAGE.items()},
        ("GET", "state"): (0, lambda query, body: as_json(playground.state())),
        ("GET", "image"): (0, lambda query, body: ("image/png", playground.prepared(query))),
        ("POST", "upload"): (UPLOAD_SIZE, lambda query, body: as_json(playground.add(query.get("name", "upload"), body))),
        ("POST", "draw"): (REQUEST_SIZE, lambda query, body: as_json(playground.draw(asked(body)))),
        ("POST", "reconstruct"): (REQUEST_SIZE, lambda query, body: as_json(playground.reconstruct(asked(body)))),
    }


class Playground:
    """Answers what the page asks for; requests are dicts, and may hold anything. Threads may call it at the same time.

    Args:
        models: [(name, model)] of tools.visualize.open_models.
        images: [(name, path or PIL image)].
        mask_file: DATA.MASK_FILE of all models; "" = that of the recipe.
    """

    def __init__(self, models, images, mask_file=""):
        self.names, self.models = zip(*models, strict=True)
        given = {"DATA__MASK_FILE": str(mask_file)} if mask_file else {}
        self.configs = [with_values(model.recipe.config, **given) for model in self.models]
        self.grids = [grid_of(config) for config in self.configs]
        self.images = dict(enumerate(images))  # by a number that the page knows them by
        self.uploads = []
        self.computes, self.changes = threading.Lock(), threading.Lock()

    def state(self):
        """What the page begins with."""
        models = [{"name": shown(name), "about": about(config), "size": image_size(config), "grid": grid,
                   "units": units_of(config), "unit": config.DATA.MASK_PATCH_SIZE, "kinds": kinds_of(config),
                   "kind": config.DATA.MASK_TYPE, "ratio": config.DATA.MASK_RATIO}
                  for name, config, grid in zip(self.names, self.configs, self.grids, strict=True)]
        return {"models": models,
                "images": [{"id": number, "name": shown(name)} for number, (name, _) in self.images.items()]}

    def add(self, name, content):
        """Hold an uploaded file, bytes, as an image. Raises ValueError if it is none."""
        config, name = self.configs[0], shown(name)
        picture_of(content, mode_of(config), name, rules_of(config))
        with self.changes:
            number = max(self.images, default=-1) + 1
            self.uploads.append(number)
            forgotten = self.uploads.pop(0) if len(self.uploads) > MOST_UPLOADED else None
            images = {**self.images, number: (name, content)}
            self.images = {key: image for key, image in images.items() if key != forgotten}  # a new one: others read the old
        return {"id": number, "name": name}

    def prepared(self, request):
        """An image as a model gets it, bytes of a PNG."""
        config, (name, image) = self.configs[self._model(request)], self._images(request)[0]
        tensor = Preparation(config, heldout_transform(config))(image, name)
        return as_png(as_pictures(tensor.unsqueeze(0), *pixel_statistics(config))[0])

    def draw(self, request):
        """A mask on the patch grid of a model, rows of 0 and 1, by strategy (`kind`), `unit`, `ratio` and `seed`."""
        config, ratio = self.configs[self._model(request)], request.get("ratio")
        kind, unit = (pick({str(value): value for value in valid}, str(request.get(key)), name)
                      for key, name, valid in (("kind", "strategy", kinds_of(config)), ("unit", "unit", units_of(config))))
        if not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise ValueError(f"ratio={ratio!r} must lie between 0, which hides nothing, and 1, which hides all.")
        config = with_values(config, DATA__MASK_TYPE=kind, DATA__MASK_PATCH_SIZE=unit, DATA__MASK_RATIO=ratio)
        return {"mask": draw_masks(config, 1, rng_for(whole(request, "seed"), MASK))[0].int().tolist()}

    def reconstruct(self, request):
        """What a `model` makes of an `image` under a `mask`: rows of 0 and 1 on the patch grid of any of the models."""
        number, (image, partner) = self._model(request), self._images(request)
        model, config, mask = self.models[number], self.configs[number], fitted(self._mask(request), self.grids[number])
        seen = [image[1]] + [partner[1]] * (config.MODEL.METHOD == "mixmim")  # which mixes two
        masks = torch.from_numpy(np.stack([mask] * len(seen)))
        with self.computes:
            begin = time.perf_counter()
            columns = {name: pictures[0] for name, pictures in columns_under(model, seen, masks).items()}
            seconds = time.perf_counter() - begin
        numbers = [f"{mask.mean():.0%} hidden, AvgDist {average_distance(mask, encoder_config(config).PATCH_SIZE):.1f} px"]
        if "pasted" in columns:
            numbers.append(f"the prediction is off by {difference(columns['original'], columns['pasted'], mask):.1f} of 255")
        return {"numbers": "; ".join([*numbers, f"{1000 * seconds:.0f} ms"]),
                "columns": [(name, f"data:image/png;base64,{base64.b64encode(as_png(picture)).decode()}")
                            for name, picture in columns.items()]}

    def _model(self, request):
        number = whole(request, "model")
        if number >= len(self.models):
            raise ValueError(f"model={number}: there are {len(self.models)}, counted from 0.")
        return number

    def _images(self, request):
        """The (name, image) that is asked for, and the next one."""
        images, number = self.images, whole(request, "image")
        if number not in images:
            raise ValueError(f"image {number} is not held: of more than {MOST_UPLOADED} that were added, the first are "
                             f"forgotten. Add it again.")
        numbers = list(images)
        return images[number], images[numbers[(numbers.index(number) + 1) % len(numbers)]]

    def _mask(self, request):
        try:
            mask = np.array(request.get("mask"))
        except ValueError as error:
            raise ValueError("the rows of the mask are of different lengths.") from error
        if mask.shape not in self.grids or mask.dtype.kind not in "bi":
            grids = ", ".join(sorted({f"{rows}x{columns}" for rows, columns in self.grids}))
            raise ValueError(f"a mask of shape {mask.shape} does not fit: expected rows of 0 and 1, {grids}.")
        return mask != 0


# ---- masks --------------------------------------------------------------------------------------------------------

def grid_of(config):
    """(rows, columns) of patches, which masks are of."""
    return tuple(side // encoder_config(config).PATCH_SIZE for side in image_size(config))


def units_of(config):
    """Sides of units in pixels that a model can have hidden, more than one in an image; if none, that of its recipe."""
    height, width = image_size(config)
    patch = encoder_config(config).PATCH_SIZE
    units = [unit for unit in range(patch, max(height, width), patch) if height % unit == width % unit == 0]
    return [unit for unit in units if is_allowed(config, "random", unit)] or [config.DATA.MASK_PATCH_SIZE]


def kinds_of(config):
    """Strategies that a model can have drawn."""
    kinds = [kind for kind in MASKS if kind != "file" or config.DATA.MASK_FILE]
    return [kind for kind in kinds if is_allowed(config, kind, units_of(config)[0])]


def is_allowed(config, kind, unit):
    """Whether image, encoder and method take masks of a strategy and a unit size."""
    try:
        check_pretraining(with_values(config, DATA__MASK_TYPE=kind, DATA__MASK_PATCH_SIZE=unit))
    except ValueError:
        return False
    return True


def fitted(mask, grid):
    """A mask on another grid over the same image: (rows, columns) bool, both. Raises ValueError if it cuts cells of that."""
    fine = tuple(math.lcm(*pair) for pair in zip(mask.shape, grid, strict=True))
    mask = mask.repeat(fine[0] // mask.shape[0], axis=0).repeat(fine[1] // mask.shape[1], axis=1)
    share = mask.reshape(grid[0], fine[0] // grid[0], grid[1], fine[1] // grid[1]).mean(axis=(1, 3))
    cut = int(((share > 0) & (share < 1)).sum())
    if cut:
        raise ValueError(f"the mask hides {cut} of the {grid[0]}x{grid[1]} patches of this model in part: choose units of a "
                         f"multiple of 1/{grid[0]} of the height and 1/{grid[1]} of the width, or untick the models above.")
    return share == 1


# ---- words, pictures and requests ---------------------------------------------------------------------------------

def about(config):
    """A model in a few words."""
    height, width = image_size(config)
    return f"{config.MODEL.METHOD}, {config.MODEL.TYPE}, {height}x{width} pixels"


def difference(original, pasted, mask):
    """Mean difference of two PIL pictures where a mask hides, in steps of 255."""
    hidden = lift_mask(torch.from_numpy(mask).unsqueeze(0), original.size[::-1])[0].numpy()
    return float(np.abs(np.asarray(pasted, dtype=np.float32) - np.asarray(original, dtype=np.float32))[hidden].mean())


def as_png(picture):
    buffer = BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def asked(body):
    """The dict that a request holds as JSON."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the request is no JSON.") from error
    if not isinstance(request, dict):
        raise ValueError(f"the request is {type(request).__name__}, expected names and values.")
    return request


def whole(request, key):
    """A whole number, 0 or more, of a request."""
    value = str(request.get(key))
    if not value.isdecimal():
        raise ValueError(f"{key}={shown(value)[:50]} is no whole number.")
    return int(value)


if __name__ == "__main__":
    run(main, ARGUMENTS)
