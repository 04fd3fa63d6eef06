"""The number of classes comes from the data."""
import pytest

from config import load_config
from main_finetune import with_classes


def test_number_of_classes_is_taken_from_the_data():
    config = load_config()
    assert with_classes(config, ["axe", "bow", "mug"]).MODEL.NUM_CLASSES == 3
    assert config.MODEL.NUM_CLASSES == 1000


@pytest.mark.parametrize(("number", "fits"), [(3, True), (4, False), (1000, False)])
def test_number_that_the_user_set_must_be_that_of_the_data(number, fits):
    config = load_config(opts=["MODEL.NUM_CLASSES", number])
    if fits:
        assert with_classes(config, ["axe", "bow", "mug"]).MODEL.NUM_CLASSES == 3
    else:
        with pytest.raises(ValueError, match=rf"MODEL\.NUM_CLASSES={number} but the data has 3 classes \(axe, bow, mug\)"):
            with_classes(config, ["axe", "bow", "mug"])
