"""The number of classes comes from the data; labels are smoothed once."""
import pytest
import torch

from config import load_config
from data.loader import build_mixup, with_classes
from main_finetune import finetuning_loss


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


def test_loss_smooths_labels_by_itself_only_where_mixup_does_not():
    config = load_config(opts=["MODEL.LABEL_SMOOTHING", 0.3])
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])

    def model(images):
        return images.mean(dim=(2, 3))

    plain = finetuning_loss(model, (images, labels), None, 0.3)
    smooth = torch.full((4, 3), 0.1).scatter(1, labels[:, None], 0.8)
    assert plain.item() == pytest.approx(-(smooth * model(images).log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    mixup, mixed = build_mixup(config, 3), []

    def remembered(*batch):
        mixed.append(mixup(*batch))
        return mixed[-1]

    loss = finetuning_loss(model, (images.clone(), labels), remembered, 0.3)
    (pictures, soft), = mixed
    assert loss.item() == pytest.approx(-(soft * model(pictures).log_softmax(1)).sum(1).mean().item(), rel=1e-5)
