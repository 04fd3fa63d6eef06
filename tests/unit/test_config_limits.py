"""Absurd and hostile values: one line that names what is wrong, before anything is computed from it."""
import pytest

from config import flatten, load_config
from defaults import settings
from utils.settings import FLAG, LARGEST, PATH, TEXT, TEXTS

DIGITS = "9" * 400


def refusal(*opts, path=None):
    with pytest.raises(ValueError) as error:
        load_config(path, opts)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def name_of(value):
    """Of a test: some values are too long for one."""
    return value if isinstance(value, str) and len(value) < 60 else type(value).__name__


def written(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("key", "value", "words"), [
    ("TRAIN.BASE_LR", "1e400", "is not finite, expected a number"), ("TRAIN.BASE_LR", float("inf"), "is not finite"),
    ("TRAIN.BASE_LR", "inf", "expected a number"), ("TRAIN.BASE_LR", "nan", "expected a number"),
    ("TRAIN.BASE_LR", DIGITS, "is too large, expected a number"), ("TRAIN.BASE_LR", 1e7, "between|at most 1000000"),
    ("SEED", "nan", "expected a whole number"), ("SEED", "inf", "expected a whole number"),
    ("SEED", 2 ** 63, "between 0 and 9223372036854775807"), ("TRAIN.EPOCHS", DIGITS, "at most 1000000"),
    ("TRAIN.EPOCHS", "9" * 5000, "expected a whole number"), ("TRAIN.EPOCHS", 10 ** 5000, "thousands of digits"),
    ("TRAIN.EPOCHS", "9" * 100000, "expected a whole number"), ("DATA.NUM_WORKERS", 1000000, "between 0 and 1024"),
    ("DATA.BATCH_SIZE", 1e12, "at most 1000000"), ("VIS_IMAGES", 1e9, "between 1 and 1024"),
    ("DATA.IMG_SIZE", 10 ** 9, "between 1 and 16384"), ("DATA.IMG_SIZE", [224, 10 ** 9], "each value must be between"),
    ("DATA.MEAN", [0.5, float("nan"), 0.5], "not finite"), ("MODEL.VIT.INIT_VALUES", float("-inf"), "not finite"),
    ("MODEL.VIT.INIT_VALUES", -1e7, "at least 0"), ("MODEL.SWIN.DEPTHS", [2] * 1001, "has 1001 values"),
    ("MODEL.SWIN.DEPTHS", [2, 10 ** 6], "at most 1000"), ("MODEL.VIT.DEPTH", 10 ** 5, "between 1 and 1000"),
    ("MODEL.TYPE", "x" * 10 ** 5, "unknown; valid: "), ("TRAIN." + "X" * 10 ** 5, 1, "unknown key"),
    ("TRAIN.EPOCHS", "[" * 5000, "expected a whole number"), ("TRAIN.EPOCHS", "-" * 9000 + "1", "expected a whole number"),
], ids=name_of)
def test_absurd_value_is_refused_in_one_line(key, value, words):
    message = refusal(key, value)
    assert key[:20] in message and any(word in message for word in words.split("|"))


def test_image_size_is_looked_at_before_sizes_that_fit_are_searched(monkeypatch):
    monkeypatch.setattr("config.check_model", lambda config: pytest.fail("a search has begun"))
    assert "DATA.IMG_SIZE=1000000000" in refusal("DATA.IMG_SIZE", 10 ** 9)


@pytest.mark.parametrize("key", [key for key, setting in settings().items() if setting.kind not in (FLAG, PATH, TEXT, TEXTS)])
def test_every_number_has_an_end(key):
    setting = settings()[key]
    beyond = (setting.high if setting.high is not None else LARGEST) * 2
    default = setting.default or [1.0, 1.0]
    value = [beyond] * len(default) if isinstance(default, list) else beyond
    assert key in refusal(key, value)


@pytest.mark.parametrize(("key", "value"), [
    ("DATA.BATCH_SIZE", 65536), ("TRAIN.EPOCHS", 100000), ("TRAIN.BASE_LR", 1e5), ("SEED", 2 ** 63 - 1),
    ("PRINT_FREQ", 10 ** 9), ("SAVE_FREQ", 10 ** 8), ("TRAIN.NONFINITE_LIMIT", 10 ** 9), ("TRAIN.CLIP_GRAD", 1e9),
    ("DATA.NUM_WORKERS", 256), ("MODEL.NUM_CLASSES", 30000), ("MODEL.VIT.DEPTH", 1000)])
def test_unusual_value_of_a_real_run_is_accepted(key, value):
    assert flatten(load_config(opts=[key, value]))[key] == value


# ---- files --------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in
                               zip("abcdefghijk", "bcdefghijkl", strict=True))
MERGES = "a: &a {x: 1}\n" + "".join(f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in
                                    zip("abcdefghijk", "bcdefghijkl", strict=True))


@pytest.mark.parametrize(("content", "words"), [
    ("{a: " * 1000 + "1" + "}" * 1000, "not valid YAML"), ("TAG: " + "[" * 1000 + "]" * 1000, "not valid YAML"),
    ("{a: " * 150 + "1" + "}" * 150, "more than 100 levels"), (BOMB, "more than 100000 items"),
    (MERGES, "more than 100000 items"), (BOMB + "TAG: *l\n", "more than 100000 items"), ("a: &a {b: *a}", "holds itself"),
    ("a: &a [*a]", "holds itself"), ("TAG: " + "x" * 2 ** 17, "more than 128 kB"), ("TAG: 'Jürgen'".encode("latin-1"), "UTF-8"),
    (b"\xff\xfe\x00\x01", "UTF-8"), ("TAG: a\0b", "not valid YAML"), (f"SEED: {'9' * 5000}", "not valid YAML"),
    (f"SEED: {'1' + ':1' * 20000}", "40001 characters"), (f"SEED: 0x{'f' * 9000}", "SEED=a number of thousands of digits"),
    ("TAG: 2024-13-45", "not valid YAML"), ("TRAIN: {BASE_LR: .inf}", "TRAIN.BASE_LR=inf is not finite"),
    ("TRAIN: {BASE_LR: .nan}", "TRAIN.BASE_LR=nan is not finite"), ("BASE: 3", "BASE=3 is int"), ("BASE: {a: b}", "BASE="),
    ("BASE: [[a]]", "BASE="), ("? [a, b]\n: 1", "recipe.yaml"), ("a: !!bool perhaps", "not valid YAML")], ids=name_of)
def test_hostile_file_is_refused_in_one_line_that_names_it(content, words, tmp_path):
    message = refusal(path=written(tmp_path, content))
    assert "recipe.yaml" in message or message.startswith("SEED=")
    assert words in message


def test_anchors_are_still_of_use(tmp_path):
    text = "MODEL: {SWIN: {DEPTHS: &d [2, 2, 6, 2], NUM_HEADS: *d}}\nAUG: &aug {MIXUP: 0.0}\n"
    assert load_config(written(tmp_path, text)).MODEL.SWIN.NUM_HEADS == [2, 2, 6, 2]


def test_file_in_utf8_may_have_a_mark_of_its_encoding(tmp_path):
    assert load_config(written(tmp_path, "\ufeffTAG: Jürgen\n".encode())).TAG == "Jürgen"
