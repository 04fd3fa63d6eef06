"""One picture in training, evaluation, probing and inference, whatever file it comes from: brightness, sides, background.

Files are left half one colour, right half another or transparent; each program's own transforms bring them to a size at which
the halves are still seen, and are undone to pixels.
"""
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from config import load_config, pixel_statistics
from data import build_loader
from data.inputs import Preparation, picture_of
from data.loader import build_probe_loaders
from data.pixels import Rules
from data.reading import BadImage, read_image
from data.transforms import eval_transform, heldout_transform, mode_of, rules_of

from .tiny import make_config

SIZE = (32, 64)  # of what the models see
LEFT, RIGHT = 200, 60  # grey, of 255
GREY = np.repeat([[LEFT] * 32 + [RIGHT] * 32], 32, axis=0).astype(np.uint8)


def config_of(folder, **data):
    """Crops of the whole picture, and no augmentation that changes colours or turns sides."""
    plain = {"DATA.CROP_SCALE": [1.0, 1.0], "AUG.CROP_SCALE": [1.0, 1.0], "AUG.AUTO_AUGMENT": "none", "AUG.COLOR_JITTER": 0.0,
             "AUG.REPROB": 0.0, "DATA.BATCH_SIZE": 2, "DATA.NUM_WORKERS": 0, "DATA.DATASET": "folder", "PROBE.AUGMENT": True,
             "DATA.MAX_BAD_FRACTION": 0.0, "DATA.DATA_PATH": str(folder), "DATA.VAL_PATH": str(folder / "train")}
    base = make_config("vit", "no_tables", size=SIZE)
    opts = plain | {f"DATA.{key}": value for key, value in data.items()}
    given = {key: value for key, value in _flat(base).items() if key in base.given}
    return load_config(opts=[word for pair in (given | opts).items() for word in pair])


def _flat(node, prefix=""):
    found = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key: value}
    return found


def seen_by_all(folder, path, **data):
    """{program: (H, W, 3) pixels of 255} of the file that is in both classes of a folder, in each program's own way."""
    config = config_of(folder, **data)
    pretrained, tuned, probed = build_loader(config, True), build_loader(config, False), build_probe_loaders(config)
    batches = {"pre-training": pretrained.train, "held out": pretrained.val,
               "fine-tuning": tuned.train, "evaluation": tuned.val,
               "probe": probed.train, "probe, plain": probed.plain, "probe, evaluation": probed.val}
    images = {name: next(iter(loader))[0][0] for name, loader in batches.items()}
    images["picture"] = pretrained.pictures[0][0]
    images |= {f"inference, {name}": Preparation(config, transform(config))(source)
               for name, transform in (("classes", eval_transform), ("reconstruction", heldout_transform))
               for source in (str(path), path.read_bytes())}
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixel_statistics(config))
    return {name: ((image * std + mean) * 255).permute(1, 2, 0).numpy() for name, image in images.items()}


def assert_all_see(folder, path, left, right, tolerance=3, **data):
    for name, pixels in seen_by_all(folder, path, **data).items():
        sides = pixels[8:24, 4:12].mean(axis=(0, 1)), pixels[8:24, -12:-4].mean(axis=(0, 1))
        if abs(sides[0] - left).max() > tolerance:
            sides = sides[::-1]  # training flips
            assert name in ("pre-training", "fine-tuning", "probe"), (name, sides)
        assert abs(sides[0] - left).max() <= tolerance and abs(sides[1] - right).max() <= tolerance, (name, sides)


def place(folder, name, content):
    """The same file in two classes; the path of one."""
    paths = [folder / "train" / label / name for label in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return paths[0]


def saved(picture, format, **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def png(depth, colours, rows, **chunks):
    """A PNG of 64 x 32 pixels: bits of a sample, colour type, bytes of a row (the same 32 times), other chunks."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 32, depth, colours, 0, 0, 0))
    others = b"".join(chunk(kind.encode(), content) for kind, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", zlib.compress((b"\0" + rows) * 32)) + chunk(b"IEND", b"")


def tiff(bits, row, photometric=1, sample_format=1, samples=1):
    """A TIFF of 64 x 32 pixels with a row 32 times."""
    data, start = row * 32, 8 + 2 + 10 * 12 + 4
    many = struct.pack(f"<{samples}H", *[bits] * samples) + struct.pack(f"<{samples}H", *[sample_format] * samples)
    tags = [(256, 3, 1, 64), (257, 3, 1, 32), (258, 3, samples, bits if samples == 1 else start), (259, 3, 1, 1),
            (262, 3, 1, photometric), (273, 4, 1, start + len(many)), (277, 3, 1, samples), (278, 3, 1, 32),
            (279, 4, 1, len(data)), (339, 3, samples, sample_format if samples == 1 else start + 2 * samples)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + many + data


def halves(kind, left, right, repeat=1):
    return struct.pack(f"{kind[0]}{64 * repeat}{kind[1]}", *[left] * 32 * repeat, *[right] * 32 * repeat)


def jpeg2000(depth, left, right, boxed=True):
    """A JPEG 2000 file of `depth` bits a channel, which Pillow writes with 8 or 16: values are around the middle of the range,
    so that another depth in the header moves them.
    """
    Image.init()
    if "JPEG2000" not in Image.SAVE:
        pytest.skip("this Pillow has no JPEG 2000")
    values = np.repeat([[left] * 32 + [right] * 32], 32, axis=0) + (1 << 15) - (1 << depth - 1)
    content = bytearray(saved(Image.frombytes("I;16", (64, 32), values.astype("<u2").tobytes()), "JPEG2000", no_jp2=not boxed))
    content[content.index(b"\xff\x4f\xff\x51") + 42] = depth - 1
    if boxed:
        content[content.index(b"ihdr") + 14] = depth - 1
    return bytes(content)


# ---- every mode that a format can hold ----------------------------------------------------------------------------

def in_pillows_mode(mode):
    if mode.startswith("I;16"):
        values = GREY.astype(">u2" if mode.endswith("B") else "<u2") * 257
        return Image.frombytes(mode, (64, 32), values.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    if mode == "1":
        return Image.fromarray((GREY > 128) * np.uint8(255)).convert("1")
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    if mode == "I":
        return Image.fromarray(GREY.astype(np.int32) * 257)
    if mode == "LAB":
        lightness = np.where(GREY == LEFT, 206, 64).astype(np.uint8)  # 100 L* / 255
        flat = Image.new("L", (64, 32), 128)
        return Image.merge("LAB", (Image.fromarray(lightness), flat, flat))
    picture = Image.merge("RGB", [Image.fromarray(GREY)] * 3)
    return picture.quantize(4).convert(mode) if mode in ("P", "PA") else picture.convert(mode)


HELD = {"PNG": ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "GIF": ["L", "P", "RGB", "RGBA"],
        "TIFF": ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "F"],
        "WEBP": ["RGB", "RGBA"], "BMP": ["1", "L", "P", "RGB", "RGBA"], "TGA": ["1", "L", "P", "RGB", "RGBA", "LA"],
        "PPM": ["1", "L", "RGB", "I", "F"], "JPEG2000": ["L", "LA", "RGB", "RGBA", "I;16"]}


@pytest.mark.parametrize("format, mode", [(format, mode) for format, modes in HELD.items() for mode in modes])
def test_every_mode_is_the_same_picture_in_all_programs(format, mode, tmp_path):
    if format == "JPEG2000":
        Image.init()
        if format not in Image.SAVE:
            pytest.skip("this Pillow has no JPEG 2000")
    lossy = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    suffix = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(format, f".{format.lower()}")
    path = place(tmp_path, f"a{suffix}", saved(in_pillows_mode(mode), format, **lossy))
    left, right = (255, 0) if mode == "1" else (LEFT, RIGHT)
    assert_all_see(tmp_path, path, left, right)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "RGBA", "LA", "La", "PA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
                                  "I;16", "I;16L", "I;16B", "F"])
def test_every_mode_of_a_pil_image_is_the_same_picture_in_inference(mode):
    picture = in_pillows_mode({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    pixels = np.asarray(picture_of(picture, "RGB"), dtype=float)
    left, right = (255, 0) if mode == "1" else (LEFT, RIGHT)
    assert abs(pixels[:, :32] - left).max() <= 1 and abs(pixels[:, 32:] - right).max() <= 1


# ---- files that Pillow does not write -----------------------------------------------------------------------------

def bits(values, depth):
    number = sum(value << depth * i for i, value in enumerate(reversed(values)))
    return number.to_bytes(len(values) * depth // 8, "big")


PALETTE = bytes([200, 200, 200, 0, 250, 0, 60, 60, 60, 9, 9, 9])
SPECIAL = {  # name: (content, left, right)
    "4 bits.png": (png(4, 0, bits([12] * 32 + [4] * 32, 4)), 204, 68),
    "2 bits.png": (png(2, 0, bits([2] * 32 + [1] * 32, 2)), 170, 85),
    "1 bit with a key.png": (png(1, 0, bits([0] * 32 + [1] * 32, 1), tRNS=struct.pack(">H", 1)), 0, 90),
    "2 bits with a key.png": (png(2, 0, bits([2] * 32 + [1] * 32, 2), tRNS=struct.pack(">H", 1)), 170, 90),
    "4 bits with a key.png": (png(4, 0, bits([12] * 32 + [5] * 32, 4), tRNS=struct.pack(">H", 5)), 204, 90),
    "8 bits with a key.png": (png(8, 0, bits([200] * 32 + [5] * 32, 8), tRNS=struct.pack(">H", 5)), 200, 90),
    "16 bits with a key.png": (png(16, 0, halves(">H", 51400, 300), tRNS=struct.pack(">H", 300)), 200, 90),
    "colour with a key.png": (png(8, 2, bytes([200, 200, 200] * 32 + [0, 250, 0] * 32), tRNS=struct.pack(">HHH", 0, 250, 0)),
                              200, 90),
    "colours of 16 bits.png": (png(16, 2, halves(">H", 51400, 15420, 3)), 200, 60),
    "colours of 16 bits with a key.png": (png(16, 2, halves(">H", 51400, 300, 3), tRNS=struct.pack(">HHH", 300, 300, 300)), 200,
                                          90),
    "palette of several transparencies.png": (
        png(2, 3, bits([0] * 32 + [1, 3] * 16, 2), PLTE=PALETTE, tRNS=bytes([255, 0, 255, 0])), 200, 90),
    "inverted.tif": (tiff(8, bytes([55] * 32 + [195] * 32), photometric=0), 200, 60),
    "16 bits inverted.tif": (tiff(16, halves("<H", 65535 - 51400, 65535 - 15420), photometric=0), 200, 60),
    "packed 12 bits.tif": (tiff(12, bits([3212] * 32 + [964] * 32, 12)), 200, 60),
    "colours of 16 bits.tif": (tiff(16, halves("<H", 51400, 15420, 3), photometric=2, samples=3), 200, 60),
    "shares inverted.tif": (tiff(32, halves("<f", 55 / 255, 195 / 255), photometric=0, sample_format=3), 200, 60),
    "12 bits.pgm": (b"P5 64 32 4095\n" + halves(">H", 3212, 964) * 32, 200, 60),
    "plain 12 bits.pgm": (b"P2 64 32 4095\n" + b" ".join([b"3212"] * 32 + [b"964"] * 32 + [b"\n"]) * 32, 200, 60),
    "12 bits.ppm": (b"P6 64 32 4095\n" + halves(">H", 3212, 964, 3) * 32, 200, 60),
    "16 bits.bmp": (b"BM" + struct.pack("<IHHI", 54 + 4096, 0, 0, 54)
                    + struct.pack("<IiiHHIIiiII", 40, 64, 32, 1, 16, 0, 4096, 0, 0, 0, 0)
                    + halves("<H", 24 << 10 | 24 << 5 | 24, 7 << 10 | 7 << 5 | 7) * 32, 197, 58)}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_files_are_the_same_picture_in_all_programs(name, tmp_path):
    content, left, right = SPECIAL[name]
    assert_all_see(tmp_path, place(tmp_path, name, content), left, right, BACKGROUND="#5a5a5a")


@pytest.mark.parametrize("name", ["16 bits.png", "16 bits.tif", "packed 12 bits.tif", "12 bits.pgm", "plain 12 bits.pgm",
                                  "signed.tif", "unsigned 32.tif", "32.tif", "float.tif", "12 bits.ppm", "12 bits.jp2",
                                  "12 bits.j2k", "16 bits.jp2"])
def test_white_that_is_given_is_that_of_every_file(name, tmp_path):
    """Also of formats that say their own, of which Pillow has scaled the values."""
    if name.endswith(("jp2", "j2k")):
        content = jpeg2000(int(name[:2]), 3212, 964, boxed=name.endswith("jp2"))
        return assert_all_see(tmp_path, place(tmp_path, name, content), 200, 60, WHITE=4095.0)
    content = {"16 bits.png": png(16, 0, halves(">H", 3212, 964)), "16 bits.tif": tiff(16, halves("<H", 3212, 964)),
               "signed.tif": tiff(16, halves("<h", 3212, 964), sample_format=2),
               "unsigned 32.tif": tiff(32, halves("<I", 3212, 964)),
               "32.tif": tiff(32, halves("<i", 3212, 964), sample_format=2),
               "float.tif": tiff(32, halves("<f", 3212, 964), sample_format=3)}.get(name) or SPECIAL[name][0]
    assert_all_see(tmp_path, place(tmp_path, name, content), 200, 60, WHITE=4095.0)


@pytest.mark.parametrize("name, content, white, said", [
    ("a.png", png(16, 2, halves(">H", 3212, 964, 3)), 4095, "DATA.WHITE=4095"),
    ("a.tif", tiff(16, halves("<H", 3212, 964, 3), photometric=2, samples=3), 4095, "DATA.WHITE=4095"),
    ("a.tif", tiff(8, halves("<b", 100, -5), sample_format=2), 0, "signed numbers of 8 bits"),
    ("a.tif", tiff(16, halves("<h", 3212, -9), sample_format=2), 0, "set DATA.WHITE")])
def test_what_can_not_be_read_right_is_refused_by_name(name, content, white, said, tmp_path):
    path = place(tmp_path, name, content)
    with pytest.raises(BadImage, match=rf"{name} can't be read.*{said}"):
        read_image(path, rules=Rules(white=white))


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("depth", [10, 12, 14, 16])
def test_bits_of_jpeg_2000_are_as_its_header_says(depth, boxed):
    top = 2 ** depth - 1
    pixels = np.asarray(read_image(io.BytesIO(jpeg2000(depth, top * LEFT // 255, top * RIGHT // 255, boxed))))
    assert abs(pixels[0, [0, -1], 0].astype(int) - [LEFT, RIGHT]).max() <= 1


def test_jpeg_2000_that_pillow_reads_wrong_is_refused():
    with pytest.raises(BadImage, match="JPEG 2000 of 9 bits"):
        read_image(io.BytesIO(jpeg2000(9, 511, 9)))
    colours = bytearray(saved(in_pillows_mode("RGB"), "JPEG2000"))
    for channel in range(3):
        colours[colours.index(b"\xff\x4f\xff\x51") + 42 + 3 * channel] = 15
    with pytest.raises(BadImage, match="colours have 16 bits each.*DATA.WHITE=4095"):
        read_image(io.BytesIO(bytes(colours)), rules=Rules(white=4095))


@pytest.mark.parametrize("upright", [False, True])
def test_numbers_of_32_bits_above_2_to_the_31_are_light(upright):
    content = tiff(32, halves("<I", 4_000_000_000, 1_000_000_000))
    pixels = np.asarray(read_image(io.BytesIO(content), rules=Rules(white=2 ** 32, upright=upright)))
    assert abs(pixels[0, [0, -1], 0].astype(int) - [237, 59]).max() <= 1


@pytest.mark.parametrize("content, said", [
    (tiff(16, halves("<H", 4095, 9)), "none is above 4095 of 65535"), (png(16, 0, halves(">H", 4095, 9)), "set DATA.WHITE"),
    (png(16, 2, halves(">H", 4095, 9, 3)), "set DATA.WHITE"), (tiff(16, halves("<H", 8300, 9)), None),
    (tiff(12, bits([400] * 64, 12)), None), (b"P5 64 32 4095\n" + halves(">H", 400, 9) * 32, None),
    (lambda: jpeg2000(12, 400, 9), None), (lambda: jpeg2000(16, 4095, 9), "none is above 4095 of 65535"),
    (tiff(32, halves("<f", np.nan, 1), sample_format=3), "no finite numbers"),
    (tiff(32, halves("<f", -1, 1), sample_format=3), "pixels below 0, down to -1")])
def test_pixels_that_come_out_dark_are_said_once(content, said, caplog, monkeypatch):
    monkeypatch.setattr("data.pixels._said", set())
    content = content() if callable(content) else content
    for _ in range(2):
        read_image(io.BytesIO(content), name="scan 7")
    assert [record.getMessage().startswith("scan 7") for record in caplog.records] == ([True] if said else [])
    assert (said or "") in caplog.text


# ---- transparency and turning -------------------------------------------------------------------------------------

@pytest.mark.parametrize("background, seen", [("white", 255), ("black", 0), ("#5a5a5a", 90), ("rgb(9,9,9)", 9), ("mean", None)])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_background_is_the_one_that_is_set_in_all_programs(format, background, seen, tmp_path):
    picture = Image.new("RGBA", (64, 32), (200, 200, 200, 255))
    picture.paste((0, 250, 0, 0), (32, 0, 64, 32))
    path = place(tmp_path, f"a.{format.lower()}", saved(picture, format, **({"lossless": True} if format == "WEBP" else {})))
    right = [124, 116, 104] if background == "mean" else seen
    assert_all_see(tmp_path, path, 200, right, BACKGROUND=background)


@pytest.mark.parametrize("format, seen", [("TGA", 200), ("DDS", 200), ("SGI", 200), ("PNG", 255), ("TIFF", 255)])
def test_fourth_channel_of_zeros_is_no_transparency_where_writers_leave_it_so(format, seen, caplog, monkeypatch):
    """Viewers show the colours of the first ones. A PNG means what it says, and the log says so."""
    monkeypatch.setattr("data.pixels._said", set())
    content = saved(Image.new("RGBA", (64, 32), (200, 200, 200, 0)), format)
    assert read_image(io.BytesIO(content), name="x").getpixel((5, 5)) == (seen,) * 3
    assert ("x is transparent everywhere" in caplog.text) == (seen == 255)


def test_fourth_channel_of_a_tiff_that_does_not_say_what_it_is_hides_nothing():
    content = tiff(8, bytes([200, 200, 200, 0] * 64), photometric=2, samples=4)
    assert read_image(io.BytesIO(content)).getpixel((5, 5)) == (200,) * 3


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_sides_are_those_that_the_setting_says_in_all_programs(orientation, upright, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = place(tmp_path, "a.png", saved(Image.fromarray(GREY), "PNG", exif=exif))
    turned = upright and orientation in (2, 3)
    seen = seen_by_all(tmp_path, path, EXIF=upright)
    for name in seen.keys() - {"pre-training", "fine-tuning", "probe"}:
        assert abs(seen[name][16, 5] - (RIGHT if turned else LEFT)).max() <= 3, name


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_lying_pictures_stand_up_in_all_programs_where_that_is_set(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    standing = Image.fromarray(GREY.T.copy())  # light above, dark below
    path = place(tmp_path, "a.jpg", saved(standing, "JPEG", exif=exif, quality=95))
    left, right = (LEFT, RIGHT) if orientation in (5, 8) else (RIGHT, LEFT)
    assert_all_see(tmp_path, path, left, right, EXIF=True)


def test_arrays_and_tensors_with_transparency_are_on_the_background():
    pixels = np.full((4, 6, 4), (0, 250, 0, 0), dtype=np.uint8)
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert np.asarray(picture_of(image, "RGB", rules=Rules(background=(9, 8, 7))))[0, 0].tolist() == [9, 8, 7]


def test_grey_encoder_sees_the_brightness_of_colours(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 32), (250, 0, 0)).save(path)
    config = make_config("vit", "no_tables", size=SIZE, channels=1)
    image = Preparation(config, eval_transform(config))(str(path))
    assert mode_of(config) == "L" and image.shape == (1, *SIZE)
    assert abs((image * 0.5 + 0.5) * 255 - 250 * 0.299).max() < 1.5
    assert read_image(path, "L", rules=rules_of(config)).getpixel((0, 0)) in (74, 75)


def test_pil_image_that_can_not_be_read_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    for picture, said in ((Image.open(tmp_path / "a.png"), "image 3 can't be read"),
                          (Image.new("RGB", (0, 5)), "image 3 is a PIL image of 0 x 5 pixels"),
                          (Image.fromarray(np.int32([[9]])), "image 3 can't be read.*set DATA.WHITE")):
        with pytest.raises(ValueError, match=said):
            picture_of(picture, "RGB", "image 3")
