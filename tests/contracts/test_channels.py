"""Images of more channels than PIL has, and .npy files of any: the same pixels in every program, and what is refused."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from config import load_config, pixel_statistics
from data import build_loader
from data.folders import CHANNEL_SUFFIXES, image_files, listing
from data.inputs import Preparation, picture_of
from data.loader import build_probe_loaders
from data.pixels import Rules
from data.reading import BadImage, examine, read_image
from data.transforms import eval_transform, finetune_transform, heldout_transform, mode_of, pretrain_transform, probe_transform
from inference import extract_feat, paths_of, reconstruct
from models import build_model
from recipes import Recipe
from utils.pictures import to_pil

from .test_pixels import _flat
from .tiny import make_config

SIZE, CHANNELS = (32, 64), 5
PLAIN = {"DATA.CROP_SCALE": [1.0, 1.0], "AUG.CROP_SCALE": [1.0, 1.0], "AUG.AUTO_AUGMENT": "none", "AUG.COLOR_JITTER": 0.0,
         "AUG.REPROB": 0.0, "DATA.BATCH_SIZE": 2, "DATA.NUM_WORKERS": 0, "DATA.DATASET": "folder", "PROBE.AUGMENT": True,
         "DATA.MAX_BAD_FRACTION": 0.0}


def config_of(channels=CHANNELS, **changes):
    base = make_config("vit", "no_tables", size=SIZE, channels=channels)
    opts = {key: value for key, value in _flat(base).items() if key in base.given} | PLAIN | changes
    return load_config(opts=[word for pair in opts.items() for word in pair])


def levels(channels=CHANNELS):
    """Share of white of each channel: all different."""
    return np.linspace(0.1, 0.9, channels)


def array(dtype, channels=CHANNELS, shape=(40, 60)):
    """Pixels of one colour, in the numbers of a dtype."""
    white = {"u": 2 ** (8 * np.dtype(dtype).itemsize) - 1, "f": 1}[np.dtype(dtype).kind]
    return np.broadcast_to((levels(channels) * white).astype(dtype), (*shape, channels))


def saved_array(values):
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def pages(kind=np.uint16, channels=CHANNELS):
    """A TIFF of grey pages."""
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in array(kind, channels).transpose(2, 0, 1)]
    out = io.BytesIO()
    planes[0].save(out, "TIFF", save_all=True, append_images=planes[1:])
    return out.getvalue()


FILES = {"uint8.npy": lambda: saved_array(array(np.uint8)), "uint16.npy": lambda: saved_array(array(np.uint16)),
         "big.npy": lambda: saved_array(array(np.uint16).astype(">u2")), "half.npy": lambda: saved_array(array(np.float16)),
         "double.npy": lambda: saved_array(array(np.float64)),
         "columns.npy": lambda: saved_array(np.asfortranarray(array(np.float32))),
         "8 bits.tif": lambda: pages(np.uint8), "16 bits.tiff": pages, "floats.tif": lambda: pages(np.float32)}


def tree(folder, name, content):
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
        (folder / "train" / label / name).write_bytes(content)
    return folder / "train" / "a" / name


def seen_by_all(config, path):
    """{program: (C, H, W) shares of white}."""
    pretrained, tuned, probed = build_loader(config, True), build_loader(config, False), build_probe_loaders(config)
    batches = {"pre-training": pretrained.train, "held out": pretrained.val, "fine-tuning": tuned.train,
               "evaluation": tuned.val, "probe": probed.train, "probe, plain": probed.plain, "probe, evaluation": probed.val}
    images = {name: next(iter(loader))[0][0] for name, loader in batches.items()}
    images["picture"] = pretrained.pictures[0][0]
    images |= {f"inference, {name}": Preparation(config, make(config))(source)
               for name, make in (("classes", eval_transform), ("reconstruction", heldout_transform))
               for source in (str(path), path.read_bytes())}
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixel_statistics(config))
    return {name: image * std + mean for name, image in images.items()}


def assert_all_see(config, path, expected, tolerance):
    for name, shares in seen_by_all(config, path).items():
        assert shares.shape == (len(expected), *SIZE), name
        assert (shares - torch.tensor(expected).view(-1, 1, 1)).abs().max() < tolerance, name


@pytest.mark.parametrize("name", FILES)
def test_five_channels_are_the_same_pixels_in_all_programs(name, tmp_path):
    path = tree(tmp_path, name, FILES[name]())
    statistics = {"DATA.MEAN": [0.1, 0.2, 0.3, 0.4, 0.5], "DATA.STD": [0.5, 0.4, 0.3, 0.2, 0.1]}
    config = config_of(**{"DATA.DATA_PATH": str(tmp_path), "DATA.VAL_PATH": str(tmp_path / "train")} | statistics)
    assert_all_see(config, path, levels(), 1 / 250)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_arrays_of_the_channels_of_pictures_are_read_where_there_are_no_pictures(channels, kind, tmp_path):
    path = tree(tmp_path, "a.npy", saved_array(array(kind, channels)))
    config = config_of(channels, **{"DATA.DATA_PATH": str(tmp_path), "DATA.VAL_PATH": str(tmp_path / "train")})
    assert_all_see(config, path, levels(channels), 1 / 250 if channels < 4 else 2 / 250)  # PIL resizes colours times opacity


def test_four_grey_pages_are_four_channels(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(pages(np.uint16, 4))
    assert np.allclose(read_image(path, "RGBA").getpixel((3, 3)), levels(4) * 255, atol=1)
    assert np.allclose(read_image(path, "L").getpixel((3, 3)), levels(4)[0] * 255, atol=1)  # the first, as said


def test_white_is_that_of_the_setting_in_arrays_and_pages(tmp_path):
    values = np.full((4, 6, 2), 2048, np.uint16)
    planes = [Image.fromarray(values[..., 0])] * 2
    planes[0].save(tmp_path / "a.tif", save_all=True, append_images=planes[1:])
    for source in (io.BytesIO(saved_array(values)), io.BytesIO(saved_array(values.astype(np.int32))), tmp_path / "a.tif"):
        assert torch.allclose(read_image(source, 2, rules=Rules(white=4095)), torch.tensor(2048 / 4095))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("content, said", [
    (saved_array(np.zeros((4, 6, 3), np.uint8)), r"shape \(4, 6, 3\), so 3 channels, and IN_CHANS is 5"),
    (saved_array(np.zeros((5, 4, 6), np.uint8)), r"expected \(H, W, 5\), with channels last: array\.transpose\(1, 2, 0\)"),
    (saved_array(np.zeros((5, 4, 6, 5), np.uint8)), r"shape \(5, 4, 6, 5\), expected \(H, W\) or \(H, W, 5\)"),
    (saved_array(np.zeros((0, 6, 5), np.uint8)), r"shape \(0, 6, 5\), expected"),
    (saved_array(np.zeros((4, 6, 5), np.complex64)), "complex64, expected whole numbers or floats"),
    (saved_array(np.zeros((4, 6, 5), np.int16)), "int16.*set DATA.WHITE"),
    (saved_array(np.full((4, 6, 5), 7.5)), "floats up to 7.5.*set DATA.WHITE"),
    (saved_array(np.full((4, 6, 5), Trap(), dtype=object)), "expected whole numbers or floats"),
    (saved_array(np.zeros((4, 6, 5)))[:-9], "can't be read"), (b"\x93NUMPY\x01\x00", "can't be read"),
    (saved_array(np.zeros((60, 60, 5), np.uint8)), "60 x 60 pixels, more than DATA.MAX_PIXELS=3000"),
    (pages(np.uint16, 4), "4 pages of 1 channel .*IN_CHANS is 5: expected a TIFF of 5 grey pages"),
    (pages(np.uint16, 2)[:60], "can't be read")], ids=range(13))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_file_that_is_no_image_of_the_channels_is_refused_by_name(content, said, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=rf"a\.npy can't be read.*{said}|a\.npy {said}"):
        read_image(path, 5, rules=Rules(max_pixels=3000))


def test_pages_of_other_sizes_are_no_channels(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (5, 3))])
    with pytest.raises(BadImage, match="2 pages differ in size"):
        read_image(tmp_path / "a.tif", 2)


def test_header_is_checked_before_anything_is_read(tmp_path):
    """The file says that 40 GB follow."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": (10 ** 5, 10 ** 4, 5)})
    (tmp_path / "a.npy").write_bytes(out.getvalue())
    with pytest.raises(BadImage, match="10000 x 100000 pixels, more than DATA.MAX_PIXELS"):
        read_image(tmp_path / "a.npy", 5)


def test_files_that_count_depend_on_the_channels(tmp_path):
    for name in ("a.npy", "b.tif", "c.png"):
        (tmp_path / name).touch()
    found = {}
    for mode in ("RGB", 5):
        with listing(mode, tmp_path):
            found[mode] = [path[-5:] for path in image_files(tmp_path)]
    assert found == {"RGB": ["b.tif", "c.png"], 5: ["a.npy", "b.tif"]}
    assert [path[-5:] for path in paths_of(str(tmp_path), 5)] == ["a.npy", "b.tif"]
    assert paths_of(str(tmp_path / "c.png"), 5) == [str(tmp_path / "c.png")]
    (tmp_path / "b.tif").unlink()
    (tmp_path / "c.png").unlink()
    with listing("RGB", "", None, tmp_path):
        assert [path[-5:] for path in image_files(tmp_path)] == ["a.npy"]
    with pytest.raises(ValueError, match="holds no images"):  # outside it is as ever
        image_files(tmp_path)
    (tmp_path / "a.npy").rename(tmp_path / "a.jpg")
    with listing(5, tmp_path), pytest.raises(ValueError, match=f"files ending in {' '.join(sorted(CHANNEL_SUFFIXES))}"):
        image_files(tmp_path)


@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_crops_flips_and_erasing_work_on_tensors(crop):
    config = config_of(**{"DATA.CROP": crop, "DATA.CROP_SCALE": [0.2, 1.0], "DATA.CROP_INTERPOLATION": "bicubic",
                          "AUG.CROP_SCALE": [0.08, 1.0], "AUG.REPROB": 1.0})
    image = (torch.arange(5 * 40 * 70).view(5, 40, 70) % 2).float()  # edges, over which bicubic shoots
    for make in (pretrain_transform, probe_transform, eval_transform, heldout_transform, finetune_transform):
        out = make(config)(image)
        assert out.shape == (5, *SIZE) and torch.isfinite(out).all()
        if make is not finetune_transform:  # erased boxes are noise
            assert out.abs().max() <= 1.0001  # of (0 or 1 - 0.5) / 0.5
    assert eval_transform(config)(torch.rand(5, 2, 4000)).shape == (5, *SIZE)


@pytest.mark.parametrize("change, said", [
    ({"AUG.AUTO_AUGMENT": "rand-m9-mstd0.5-inc1"}, "AUG.AUTO_AUGMENT=rand-m9-mstd0.5-inc1.*--opts AUG.AUTO_AUGMENT none "),
    ({"AUG.COLOR_JITTER": 0.4}, "AUG.COLOR_JITTER=0.4.*IN_CHANS=5.*AUG.COLOR_JITTER 0"),
    ({"DATA.INTERPOLATION": "lanczos"}, "DATA.INTERPOLATION=lanczos.*Use --opts DATA.INTERPOLATION bicubic")])
def test_what_works_on_pictures_alone_is_refused_with_what_to_type(change, said):
    with pytest.raises(ValueError, match=said):
        finetune_transform(config_of(**change))


def test_wrong_number_of_statistics_is_refused():
    with pytest.raises(ValueError, match=r"DATA\.MEAN has 3 values for IN_CHANS=5"):
        config_of(**{"DATA.MEAN": [0.5] * 3})


def test_model_of_five_channels_trains_reconstructs_and_gives_features(tmp_path):
    path = tree(tmp_path, "a.npy", saved_array(np.random.RandomState(0).randint(0, 255, (40, 60, 5), dtype=np.uint8)))
    config = config_of(**{"DATA.DATA_PATH": str(tmp_path)})
    model = build_model(config)
    images, masks = next(iter(build_loader(config, True).train))
    assert torch.isfinite(model(images, masks))
    model.recipe = Recipe(config, "pretrain")
    memory = np.load(path)
    (features,) = extract_feat(model, [str(path), memory, torch.from_numpy(memory).permute(2, 0, 1)])
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[2])
    assert reconstruct(model, str(path)).mode == "RGB"


def test_arrays_in_memory_of_other_channels_are_refused_by_name():
    with pytest.raises(ValueError, match=r"image 4 can't be read.*shape \(4, 6, 3\)"):
        picture_of(np.zeros((4, 6, 3), np.uint8), 5, "image 4")
    with pytest.raises(ValueError, match=r"image 4 is a tensor.*with 5 channels"):
        picture_of(torch.zeros(3, 4, 6, dtype=torch.uint8), 5, "image 4")


def test_first_three_channels_are_shown():
    shares = torch.rand(5, 4, 6)
    assert np.array_equal(np.asarray(to_pil(shares)), (shares[:3] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    assert mode_of(config_of()) == 5


def test_kind_of_a_file_of_channels_is_told(tmp_path):
    (tmp_path / "a.npy").write_bytes(saved_array(array(np.uint16)))
    (tmp_path / "a.tif").write_bytes(pages())
    assert examine(tmp_path / "a.npy", 5) == ("uint16 x 5", 60, 40) and examine(tmp_path / "a.tif", 5) == ("I;16", 60, 40)
