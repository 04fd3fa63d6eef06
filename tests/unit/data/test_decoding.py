"""The fast decoder beside Pillow's: the same pixels, the same crops, the same verdict on what is broken."""
import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from data import decoding
from data.datasets import ImageDataset
from data.decoding import View, jpeg_view, read_frame
from data.pixels import DEFAULT, Rules
from data.reading import BadImage, read_view
from data.transforms import AreaCrop, finetune_transform, mode_of, pretrain_transform, probe_transform
from utils.seeding import seeded_globals

from ..helpers import tiny_config

pytest.importorskip("simplejpeg", reason="DATA.DECODER fast needs it")
FAST = Rules(decoder="fast")
LIMIT = 2.0  # of 255, mean absolute difference


def noise(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


@cache
def scene(height, width, seed=0):
    """Like a photograph: large shapes, fine texture, edges, some grain."""
    rng = np.random.RandomState(seed)
    layers = [Image.fromarray(rng.randint(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC) for cell in (150, 40, 9)]
    pixels = sum(np.asarray(layer, dtype=float) * share for layer, share in zip(layers, (0.6, 0.25, 0.15), strict=True))
    pixels[height // 3:, width // 4:width // 3] = (20, 200, 90)
    return (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels, mode=None, **options):
    out, picture = io.BytesIO(), Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(out, "JPEG", **{"quality": 92} | options)
    return out.getvalue()


def with_orientation(number):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = number
    return exif


def view_of(box, size, interpolation="bilinear"):
    top, left, height, width = box
    return lambda *whole: View(top, left, height, width, size, InterpolationMode(interpolation))


def both(content, choose, mode="RGB", rules=FAST):
    """(H, W, C) pixels of a view as both decoders read it."""
    images = [read_view(io.BytesIO(content), mode, choose, replace(rules, decoder=name)) for name in ("fast", "pillow")]
    return [image.permute(1, 2, 0).numpy().astype(int) if isinstance(image, torch.Tensor)
            else np.asarray(image).astype(int).reshape(*image.size[::-1], -1) for image in images]


def difference(*arguments, **named):
    one, other = both(*arguments, **named)
    assert one.shape == other.shape
    return np.abs(one - other).mean()


# ---- pixels -------------------------------------------------------------------------------------------------------

SMALL, LARGE = (375, 500), (1500, 2000)
CASES = {  # content, box (top, left, height, width), size
    "photograph": (lambda: jpeg(scene(*SMALL)), (11, 37, 301, 411), (192, 160)),
    "all of it": (lambda: jpeg(scene(*SMALL)), (0, 0, 375, 500), (192, 192)),
    "made larger": (lambda: jpeg(scene(*SMALL)), (301, 401, 61, 43), (192, 160)),
    "noise": (lambda: jpeg(noise(*SMALL), quality=95), (11, 37, 301, 411), (192, 160)),
    "noise in all colours": (lambda: jpeg(noise(*SMALL), quality=95, subsampling=0), (11, 37, 301, 411), (64, 48)),
    "progressive": (lambda: jpeg(scene(*SMALL), progressive=True), (11, 37, 201, 411), (192, 160)),
    "restart markers": (lambda: jpeg(scene(*SMALL), restart_marker_blocks=5), (11, 37, 201, 411), (192, 160)),
    "grey": (lambda: jpeg(scene(*SMALL), "L"), (11, 37, 201, 411), (192, 160)),
    "CMYK": (lambda: jpeg(scene(*SMALL), "CMYK"), (11, 37, 201, 411), (192, 160)),
    "a pixel": (lambda: jpeg(noise(1, 1)), (0, 0, 1, 1), (32, 48)),
    "a row": (lambda: jpeg(noise(1, 700)), (0, 30, 1, 600), (32, 48)),
    "a column": (lambda: jpeg(noise(700, 2)), (5, 0, 500, 2), (32, 48)),
    "halved": (lambda: jpeg(scene(*LARGE)), (101, 37, 1311, 1601), (192, 160)),
    "quartered": (lambda: jpeg(scene(*LARGE)), (103, 38, 1301, 1701), (96, 80)),
    "an eighth": (lambda: jpeg(scene(*LARGE)), (97, 33, 1301, 1701), (48, 40)),
    "halved noise": (lambda: jpeg(noise(*LARGE), quality=95), (103, 37, 1301, 1701), (208, 160)),
    "halved, grey": (lambda: jpeg(scene(*LARGE), "L"), (103, 38, 1301, 1701), (160, 192)),
    "halved, progressive": (lambda: jpeg(scene(*LARGE), progressive=True), (103, 38, 901, 1101), (110, 120)),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_differ_by_at_most_two_from_pillow(name):
    content, box, size = CASES[name]
    content = content()
    for interpolation, mode in (("bicubic", "RGB"), ("bilinear", "L")) if name.startswith(("halved", "quart", "an ")) else (
            ("bilinear", "RGB"), ("bicubic", "RGB"), ("lanczos", "RGB"), ("bilinear", "L")):
        assert difference(content, view_of(box, size, interpolation), mode=mode) <= LIMIT


@pytest.mark.parametrize("name, shape", [("photograph", (320, 500)), ("progressive", (375, 500)), ("halved", (707, 1000)),
                                         ("quartered", (352, 500)), ("an eighth", (175, 250)), ("all of it", (375, 500))])
def test_no_more_is_decoded_than_the_view_needs(name, shape, monkeypatch):
    content, box, size = CASES[name]
    decoded, seen = decoding._decoded, []
    monkeypatch.setattr(decoding, "_decoded", lambda *given: seen.append(decoded(*given)) or seen[-1])
    jpeg_view(io.BytesIO(content()), "RGB", DEFAULT, view_of(box, size))
    rows, columns, _ = seen[0].shape
    assert columns == shape[1] and shape[0] - 16 < rows <= shape[0]


@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX2"])
def test_without_fast_instructions_pillow_resizes(instructions, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    content, box, size = CASES["photograph"]
    assert difference(content(), view_of(box, size)) < 0.1
    assert decoding._by_torch(view_of(box, size)()) == (instructions == "AVX2")


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_turned_pictures_are_turned_by_both(orientation, upright):
    content = jpeg(scene(60, 90), exif=with_orientation(orientation))
    rules = Rules(decoder="fast", upright=upright)
    sizes = []
    assert difference(content, lambda *size: sizes.append(size) or View(5, 8, 40, 30, (32, 48), InterpolationMode.BILINEAR),
                      rules=rules) <= LIMIT
    assert set(sizes) == {(60, 90) if upright and orientation == 6 else (90, 60)}


def test_memory_is_used_again_without_mixing_pictures():
    contents = [jpeg(scene(50, 70, seed)) for seed in range(3)]
    whole = view_of((0, 0, 50, 70), (50, 70))
    images = [read_view(io.BytesIO(content), "RGB", whole, FAST) for content in contents]
    for content, image in zip(contents, images, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(content))))


# ---- what is left to Pillow ---------------------------------------------------------------------------------------

def several():
    out = io.BytesIO()
    Image.fromarray(scene(40, 60)).save(out, "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    return out.getvalue()


def test_other_files_are_left_to_pillow():
    small = scene(40, 60)
    png = io.BytesIO()
    Image.fromarray(small).save(png, "PNG")
    broken = jpeg(small)
    for content in (png.getvalue(), jpeg(small, "CMYK"), several(), broken[:-2], broken[:300], broken[:2] + b"\0" * 40,
                    b"\xff\xd8\xff" + b"\xff" * 50, broken.replace(b"\xff\xc0", b"\xff\xc9"), b"\xff\xd8\xff\xe0"):
        assert jpeg_view(io.BytesIO(content), "RGB", DEFAULT, view_of((0, 0, 9, 9), (9, 9))) is None
    for rules, mode in ((Rules(max_pixels=2399), "RGB"), (DEFAULT, "RGBA"), (DEFAULT, 5)):
        assert jpeg_view(io.BytesIO(broken), mode, rules, view_of((0, 0, 9, 9), (9, 9))) is None
    assert read_frame(broken).rows and not read_frame(jpeg(small, progressive=True)).rows


@pytest.mark.parametrize("harm", ["cut", "cut in the middle", "cut in the head", "zeros", "a byte", "too large"])
def test_broken_files_get_the_verdict_of_pillow(harm):
    content = bytearray(jpeg(scene(200, 300)))
    middle = len(content) // 2
    content = {"cut": content[:-40], "cut in the middle": content[:middle], "cut in the head": content[:200],
               "zeros": content[:middle] + bytes(len(content) - middle), "too large": content,
               "a byte": content[:middle] + b"\xff\xd4" + content[middle + 2:]}[harm]
    verdicts = []
    for decoder in ("fast", "pillow"):
        rules = Rules(max_pixels=100 if harm == "too large" else 10 ** 6, decoder=decoder)
        try:
            image = read_view(io.BytesIO(content), "RGB", view_of((0, 0, 200, 300), (100, 150)), rules)
            verdicts.append(image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.asarray(image))
        except BadImage as error:
            verdicts.append(error.reason)
    if harm == "a byte":
        assert np.abs(verdicts[0].astype(int) - verdicts[1]).mean() <= LIMIT
    else:
        assert verdicts[0] == verdicts[1]


def test_missing_library_is_said_and_pillow_reads(monkeypatch, caplog):
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert decoding.available("fast") == "pillow" and "pip install -r requirements.txt" in caplog.text
    assert jpeg_view(io.BytesIO(jpeg(noise(8, 8))), "RGB", DEFAULT, None) is None


# ---- the same draws -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i in range(3):
        (root / f"{i}.jpg").write_bytes(jpeg(scene(300 + i, 400 - i, i)))
    Image.fromarray(scene(70, 60)).save(root / "3.png")
    return [(str(path), 0) for path in sorted(root.iterdir())]


@pytest.mark.parametrize("make, change", [
    (pretrain_transform, {}), (pretrain_transform, {"DATA.CROP": "src"}), (probe_transform, {}),
    (finetune_transform, {"AUG.REPROB": 1.0, "AUG.RECOUNT": 2, "AUG.AUTO_AUGMENT": "none"})])
def test_samples_of_both_decoders_are_the_same_crop_flipped_alike(files, make, change):
    """Of the policy's changes none can be compared: they may enlarge a difference of one."""
    config = tiny_config("vit", {"DATA.IMG_SIZE": [32, 64]} | change)
    fast, pillow = (ImageDataset(files, make(config), mode_of(config), rules=rules) for rules in (FAST, DEFAULT))
    for epoch in range(2):
        for index in range(len(files)):
            one, other = fast[epoch, index][0], pillow[epoch, index][0]
            assert (one - other).abs().mean() < LIMIT / 255 / 0.22


def test_crop_has_the_draws_of_torchvision():
    """So runs of earlier versions go on with the crops that they would have had."""
    from torchvision.transforms import RandomResizedCrop

    crop = AreaCrop((32, 64), (0.2, 1.0), (3 / 4, 4 / 3))
    for number, (width, height) in enumerate([(500, 375), (20, 900), (900, 20), (64, 32)] * 5):
        with seeded_globals(number):
            expected = RandomResizedCrop.get_params(torch.empty(3, height, width), (0.2, 1.0), (3 / 4, 4 / 3))
            after = torch.rand(1)
        with seeded_globals(number):
            view = crop.view(width, height)
            assert (view.top, view.left, view.height, view.width) == expected and torch.rand(1) == after
