import pytest

from utils.registry import pick

TABLE = {"swin": 1, "vit": 2, "convnext": 3}


def test_known_name_gives_its_entry():
    assert pick(TABLE, "vit", "MODEL.TYPE") == 2


def test_unknown_name_gives_key_valid_names_and_the_closest_one():
    with pytest.raises(ValueError) as caught:
        pick(TABLE, "swinn", "MODEL.TYPE")
    assert str(caught.value) == "MODEL.TYPE='swinn' is unknown; valid: convnext, swin, vit. Did you mean 'swin'?"


def test_name_in_other_letters_is_another_name():
    with pytest.raises(ValueError, match="MODEL.TYPE='Swin' is unknown.*Did you mean 'swin'"):
        pick(TABLE, "Swin", "MODEL.TYPE")


@pytest.mark.parametrize("name", ["resnet50", None, 3])
def test_name_unlike_any_gives_no_hint(name):
    with pytest.raises(ValueError, match="is unknown; valid: convnext, swin, vit.$"):
        pick(TABLE, name, "MODEL.TYPE")
