"""Image files on disk: which are found, how they are read, and that a sample depends on nothing but its key."""
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from data.class_folders import class_names, labelled_samples
from data.datasets import ImageDataset, MaskedImageDataset, per_class_subset, read_image, split_per_class
from data.folders import image_files, unlabelled_samples
from data.masks import MaskGenerator
from data.transforms import finetune_transform, pretrain_transform

from ..helpers import tiny_config, write_image


def names_below(root):
    return [str(path)[len(str(root)) + 1:] for path in image_files(root)]


# ---- which files --------------------------------------------------------------------------------------------------

def test_flat_and_nested_images_are_found_in_order(tmp_path):
    for name in ("b.png", "a/z.jpg", "a/b/c.PNG", "d.JPEG", "e.webp"):
        write_image(tmp_path / name)
    assert names_below(tmp_path) == ["a/b/c.PNG", "a/z.jpg", "b.png", "d.JPEG", "e.webp"]


def test_hidden_and_foreign_files_are_passed_over(tmp_path):
    for name in ("a.png", ".hidden.png", ".cache/b.png", "x/._c.jpg"):
        write_image(tmp_path / name)
    for name in ("notes.txt", "png", "a.png.part"):
        (tmp_path / name).write_text("no image")
    assert names_below(tmp_path) == ["a.png"]


def test_linked_files_and_folders_are_followed(tmp_path):
    write_image(tmp_path / "elsewhere/a.png")
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/sub/file.png").symlink_to(tmp_path / "elsewhere/a.png")
    assert names_below(tmp_path / "root") == ["link/a.png", "sub/file.png"]


def test_link_to_a_folder_above_does_not_repeat_images(tmp_path):
    write_image(tmp_path / "root/sub/a.png")
    (tmp_path / "root/sub/back").symlink_to(tmp_path / "root")
    assert names_below(tmp_path / "root") == ["sub/a.png"]


def test_missing_folder_is_named_with_the_flag(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent does not exist .* and holds no folder\): check --data-path"):
        image_files(tmp_path / "absent")


def test_file_instead_of_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png is a file, not a folder"):
        image_files(write_image(tmp_path / "a.png"))


def test_no_folder_at_all_names_the_flag():
    with pytest.raises(ValueError, match="--data-path"):
        image_files("")


def test_empty_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no images: it is empty"):
        image_files(tmp_path)


def test_folder_without_images_lists_what_it_holds(tmp_path):
    for name in "abcdefg":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(ValueError, match=r"holds no images: it holds a\.txt, b\.txt, c\.txt, d\.txt, e\.txt, \.\.\."):
        image_files(tmp_path)


def test_unlabelled_samples_have_no_label(tmp_path):
    path = write_image(tmp_path / "deep/er/a.png")
    assert unlabelled_samples(tmp_path) == [(str(path), -1)]


# ---- classes ------------------------------------------------------------------------------------------------------

def tree(root, **counts):
    """Class folders with so many images each; the classes' images are grey."""
    for name, count in counts.items():
        for index in range(count):
            write_image(root / name / f"{index}.png", (128, 128, 128), (8, 6))
    return root


def test_class_folders_are_sorted_and_empty_ones_are_no_classes(tmp_path):
    tree(tmp_path, mug=1, axe=2)
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / ".git/x.png")
    write_image(tmp_path / "loose.png")
    assert class_names(tmp_path) == ["axe", "mug"]


def test_labels_are_positions_in_the_given_names(tmp_path):
    tree(tmp_path, mug=1, axe=2)
    samples = labelled_samples(tmp_path, ["axe", "bow", "mug"])
    assert [(path.split("/")[-2], label) for path, label in samples] == [("axe", 0), ("axe", 0), ("mug", 2)]


def test_images_deep_inside_a_class_folder_belong_to_it(tmp_path):
    write_image(tmp_path / "axe/left/deep.png")
    write_image(tmp_path / "mug/a.png")
    assert [label for _, label in labelled_samples(tmp_path, class_names(tmp_path))] == [0, 1]


def test_only_loose_images_are_refused_for_fine_tuning(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    with pytest.raises(ValueError, match="holds 2 images but no class folders.*main_simmim"):
        class_names(tmp_path)


def test_class_that_the_training_data_lacks_is_named(tmp_path):
    tree(tmp_path, axe=1, zebra=1)
    with pytest.raises(ValueError, match="class folders that the training data has not: zebra"):
        labelled_samples(tmp_path, ["axe", "mug"])


def labels_of(samples):
    return [label for _, label in samples]


SAMPLES = [(f"{label}/{index}.png", label) for label, count in ((0, 10), (1, 4), (2, 1), (3, 2)) for index in range(count)]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.3, [0] * 3 + [1] + [3]), (0.01, [0, 1, 3]),
                                                    (0.9, [0] * 9 + [1] * 3 + [3])])
def test_split_holds_out_a_share_of_each_class_but_never_all(fraction, held_out):
    kept, held = split_per_class(SAMPLES, fraction, seed=0)
    assert labels_of(held) == held_out
    assert sorted(kept + held) == sorted(SAMPLES) and not set(kept) & set(held)


def test_split_depends_on_the_seed_and_keeps_the_order():
    held = [split_per_class(SAMPLES, 0.5, seed)[1] for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert held[0] == [sample for sample in SAMPLES if sample in held[0]]


def test_subset_takes_so_many_of_each_class():
    assert labels_of(per_class_subset(SAMPLES, 3, seed=0)) == [0] * 3 + [1] * 3 + [2] + [3] * 2
    assert per_class_subset(SAMPLES, 0, seed=0) == SAMPLES


def test_subset_depends_on_the_seed_and_grows_by_adding():
    small, large = (set(per_class_subset(SAMPLES, number, seed=0)) for number in (2, 3))
    assert small < large
    assert per_class_subset(SAMPLES, 2, seed=1) != per_class_subset(SAMPLES, 2, seed=0)


def test_subset_of_one_class_does_not_depend_on_the_others():
    alone = [sample for sample in SAMPLES if sample[1] == 1]
    assert per_class_subset(alone, 2, seed=0) == [s for s in per_class_subset(SAMPLES, 2, seed=0) if s[1] == 1]


@pytest.mark.parametrize("list_them", [unlabelled_samples, lambda root: labelled_samples(root, ["a"])])
def test_files_that_are_no_images_are_counted_in_one_line(tmp_path, caplog, list_them):
    write_image(tmp_path / "a" / "1.png")
    for name in ("x.txt", "y.TXT", "z.csv", "README", ".hidden"):
        (tmp_path / "a" / name).write_text("")
    with caplog.at_level("INFO"):
        assert len(list_them(tmp_path)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"4 other files below {tmp_path} are not read: 2 .txt, 1 .csv, 1 without suffix"]


# ---- reading ------------------------------------------------------------------------------------------------------

def test_grey_image_is_read_as_rgb(tmp_path):
    picture = read_image(write_image(tmp_path / "a.png", 77, mode="L"))
    assert picture.mode == "RGB" and picture.getpixel((3, 2)) == (77, 77, 77)


def test_image_with_alpha_is_read_as_rgb(tmp_path):
    picture = read_image(write_image(tmp_path / "a.png", (10, 20, 30, 255), mode="RGBA"))
    assert picture.mode == "RGB" and picture.getpixel((3, 2)) == (10, 20, 30)


def test_palette_image_is_read_as_its_colours(tmp_path):
    Image.new("RGB", (5, 4), (10, 200, 30)).quantize(4).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    picture = read_image(tmp_path / "a.png")
    assert picture.mode == "RGB" and np.allclose(picture.getpixel((3, 2)), (10, 200, 30), atol=4)


def test_cmyk_image_is_read_as_rgb(tmp_path):
    picture = read_image(write_image(tmp_path / "a.jpg", (0, 255, 255, 0), (16, 8), "CMYK"))
    assert picture.mode == "RGB" and np.allclose(picture.getpixel((3, 2)), (255, 0, 0), atol=6)


def test_16_bit_image_keeps_its_range_of_greys(tmp_path):
    """Medical and scientific images: the most significant 8 bits, not everything above 255 as white."""
    Image.fromarray(np.array([[0, 16384, 32768], [49152, 65535, 256]], dtype=np.uint16)).save(tmp_path / "a.png")
    pixels = np.asarray(read_image(tmp_path / "a.png"))
    assert pixels.shape == (2, 3, 3)
    assert np.allclose(pixels[..., 0], [[0, 64, 128], [192, 255, 1]], atol=1)


def test_image_is_read_in_the_wanted_mode(tmp_path):
    path = write_image(tmp_path / "a.png", (50, 50, 50))
    assert [read_image(path, mode).mode for mode in ("L", "RGB", "RGBA")] == ["L", "RGB", "RGBA"]


@pytest.mark.parametrize("content", [b"", b"no image at all", None], ids=["empty", "text", "truncated"])
def test_broken_image_is_named(tmp_path, content):
    path = write_image(tmp_path / "broken.png", size=(80, 60))
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=r"broken\.png can't be read as an image"):
        read_image(path)


def test_broken_image_is_named_when_a_worker_reads_it(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    dataset = ImageDataset([(str(tmp_path / "broken.png"), 0)], transforms.ToTensor())
    with pytest.raises(ValueError, match=r"broken\.png can't be read as an image"):
        next(iter(DataLoader(dataset, num_workers=1)))


# ---- purity -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Six noisy images of different sizes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for index in range(6):
        Image.fromarray(rng.randint(0, 255, (40 + index, 60 - index, 3), dtype=np.uint8)).save(root / f"{index}.png")
    return unlabelled_samples(root)


def datasets(files, seed=0):
    """A pre-training and a fine-tuning data set; timm's policy draws from all three global generators."""
    config = tiny_config("vit", {"AUG.REPROB": 1.0})
    masks = MaskGenerator((32, 64), 8, 8, 0.5)
    return (MaskedImageDataset(files, pretrain_transform(config), masks, seed=seed),
            ImageDataset(files, finetune_transform(config), seed=seed))


def equal(one, other):
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))


KEYS = [(epoch, index) for epoch in (0, 3) for index in range(6)]


@pytest.mark.parametrize("which", [0, 1], ids=["pretraining", "fine_tuning"])
def test_sample_depends_on_its_key_alone_whatever_order_and_state(files, which):
    dataset = datasets(files)[which]
    expected = {key: dataset[key] for key in KEYS}
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert all(equal(dataset[key], expected[key]) for key in reversed(KEYS))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("which", [0, 1], ids=["pretraining", "fine_tuning"])
def test_sample_does_not_depend_on_the_workers(files, which, num_workers):
    dataset = datasets(files)[which]
    loaded = list(DataLoader(dataset, sampler=KEYS, batch_size=None, num_workers=num_workers))
    assert len(loaded) == len(KEYS)
    assert all(equal(sample, dataset[key]) for key, sample in zip(KEYS, loaded, strict=True))


@pytest.mark.parametrize("which", [0, 1], ids=["pretraining", "fine_tuning"])
def test_sample_changes_with_seed_epoch_and_index(files, which):
    dataset, other_seed = datasets(files)[which], datasets(files, seed=1)[which]
    image = dataset[0, 0][0]
    for other in (dataset[1, 0], other_seed[0, 0], dataset[0, 1]):
        assert not torch.equal(image, other[0])


def test_mask_changes_with_seed_epoch_and_index(files):
    dataset, other_seed = datasets(files)[0], datasets(files, seed=1)[0]
    mask = dataset[0, 0][1]
    assert mask.dtype == torch.bool and mask.shape == (4, 8) and mask.sum() == 16
    for other in (dataset[1, 0], other_seed[0, 0], dataset[0, 1]):
        assert not torch.equal(mask, other[1])


@pytest.mark.parametrize("which", [0, 1], ids=["pretraining", "fine_tuning"])
def test_global_generators_are_as_before_after_a_sample(files, which):
    dataset = datasets(files)[which]
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    dataset[0, 0]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1]) and torch.equal(torch.get_rng_state(), before[2])


def test_plain_index_is_epoch_0(files):
    dataset = datasets(files)[0]
    assert equal(dataset[4], dataset[0, 4]) and len(dataset) == 6
