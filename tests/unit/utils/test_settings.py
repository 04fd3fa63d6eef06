"""Declarations of settings: kinds, what is valid, joining, suggestions, words for tables."""
import pytest

from utils.settings import (
    FLAG,
    NUMBER,
    NUMBERS,
    PAIR,
    SIZE,
    TEXT,
    WHOLE,
    WHOLES,
    Setting,
    check,
    closest,
    convert,
    joined,
)


@pytest.mark.parametrize(("default", "kind"), [(True, FLAG), (3, WHOLE), (0.5, NUMBER), ("a", TEXT), ([1, 2], WHOLES),
                                               ([0.5], NUMBERS)])
def test_kind_is_that_of_the_default(default, kind):
    assert Setting(default, "meaning").kind == kind


def test_kind_must_be_named_where_the_default_does_not_tell():
    with pytest.raises((KeyError, IndexError)):
        Setting(None, "meaning")
    with pytest.raises(IndexError):
        Setting([], "meaning")
    assert Setting(None, "meaning", kind=PAIR).kind == PAIR


@pytest.mark.parametrize(("setting", "given", "expected"), [
    (Setting(1, ""), "3", 3), (Setting(1, ""), 3.0, 3), (Setting(1.0, ""), 3, 3.0), (Setting("", ""), 3, "3"),
    (Setting(1.0, "", optional=True), "none", None), (Setting(224, "", kind=SIZE), "[3, 4]", [3, 4]),
    (Setting(224, "", kind=SIZE), 5, 5), (Setting([0.0, 1.0], "", kind=PAIR), (0, 1), [0.0, 1.0]),
    (Setting([1], ""), "[2, 3.0]", [2, 3])])
def test_value_becomes_one_of_the_kind(setting, given, expected):
    value = convert("A.B", setting, given, "--opts")
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(("setting", "given", "message"), [
    (Setting(1, ""), 1.5, "A.B=1.5 is float, expected a whole number"),
    (Setting(True, ""), 1, "A.B=1 is int, expected True or False"),
    (Setting(1.0, "", optional=True), "much", "A.B='much' is str, expected a number or None"),
    (Setting([0.0, 1.0], "", kind=PAIR), [1], "expected two numbers"),
    (Setting(1, ""), None, "A.B is empty, expected a whole number")])
def test_value_of_another_kind_is_refused_with_its_source(setting, given, message):
    with pytest.raises(ValueError, match="^file.yaml: ") as error:
        convert("A.B", setting, given, "file.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(("setting", "value", "message"), [
    (Setting(1, "", low=0), -1, "A.B=-1 is out of range: it must be at least 0."),
    (Setting(0.5, "", low=0, high=1), 2.0, "A.B=2.0 is out of range: it must be between 0 and 1."),
    (Setting(0.5, "", low=0), float("nan"), "out of range"),
    (Setting("a", "", choices=("a", "b", "")), "c", "A.B='c' is unknown; valid: a, b, ''."),
    (Setting(1, "", rule=lambda value: "is odd" if value % 2 else None), 3, "A.B=3 is odd.")])
def test_value_that_is_not_valid_is_refused(setting, value, message):
    with pytest.raises(ValueError) as error:
        check("A.B", setting, value)
    assert message in str(error.value)


@pytest.mark.parametrize(("setting", "value"), [
    (Setting(1, "", low=0), 0), (Setting(0.5, "", low=0, high=1), 1.0), (Setting(0.5, "", low=1, optional=True), None),
    (Setting("a", "", choices=("a", "b")), "b"), (Setting(1, "", rule=lambda value: None), 3)])
def test_valid_value_passes(setting, value):
    assert check("A.B", setting, value) is None


def test_joined_sections_keep_their_order_and_their_own_jobs():
    found = joined({"B": Setting(1, "")}, {"A": Setting(2, "", jobs=("probe",))}, prefix="S.", jobs=("finetune",))
    assert [(key, setting.jobs) for key, setting in found.items()] == [("S.B", ("finetune",)), ("S.A", ("probe",))]


def test_setting_that_is_declared_twice_is_refused():
    with pytest.raises(ValueError, match="S.A is declared twice"):
        joined({"A": Setting(1, "")}, {"A": Setting(1, "")}, prefix="S.")


@pytest.mark.parametrize(("key", "expected"), [("DATA.SIZ", "DATA.SIZE"), ("data.size", "DATA.SIZE"), ("RATIO", "MASK.RATIO"),
                                               ("zzz", None)])
def test_closest_key(key, expected):
    assert closest(key, ["DATA.SIZE", "MASK.RATIO"]) == expected


@pytest.mark.parametrize(("setting", "row"), [
    (Setting(0.5, "share", "pixels", low=0, high=1), ["0.5", "number 0 to 1", "all", "share (pixels)"]),
    (Setting("", "name", jobs=("finetune", "probe")), ['""', "text", "finetune, probe", "name"]),
    (Setting("a", "which", choices=("a", "")), ["a", 'a | ""', "all", "which"]),
    (Setting(None, "ratio", kind=NUMBER, low=0, optional=True), ["None", "number >= 0 | None", "all", "ratio"])])
def test_row_of_a_table(setting, row):
    assert setting.row == row
