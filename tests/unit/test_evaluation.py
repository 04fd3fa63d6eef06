"""Accuracy and held-out loss from numbers that can be counted by hand."""
import pytest
import torch
from torch.nn import functional as F

from evaluation import evaluate, heldout_loss, throughput
from utils.precision import build_precision

CPU = torch.device("cpu")
FP32 = build_precision("O0", "native", CPU)


class Given(torch.nn.Module):
    """The "images" are the logits."""

    def forward(self, images):
        return images


def batches(logits, labels, sizes):
    return list(zip(torch.tensor(logits).split(sizes), torch.tensor(labels).split(sizes), strict=True))


THREE = [[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 2.0, 3.0], [9.0, 0.0, 1.0], [0.0, 1.0, 2.0]]


@pytest.mark.parametrize("sizes", [[5], [4, 1], [2, 2, 1]])
def test_accuracy_counts_each_image_once_whatever_the_batches(sizes):
    """Best classes 0 1 2 0 2 against 0 1 0 1 2: three of five."""
    labels = [0, 1, 0, 1, 2]
    numbers = evaluate(Given(), batches(THREE, labels, sizes), CPU, FP32)
    assert numbers["top1"] == pytest.approx(60.0, rel=1e-12) and numbers["images"] == 5
    expected = F.cross_entropy(torch.tensor(THREE), torch.tensor(labels)).item()
    assert numbers["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5])
def test_top5_is_everything_with_at_most_five_classes(classes):
    """Old timm fails with fewer than five (quirk 42)."""
    logits, labels = torch.randn(7, classes), torch.randint(classes, (7,))
    assert evaluate(Given(), [(logits, labels)], CPU, FP32)["top5"] == 100.0


def test_top5_of_seven_classes_is_counted():
    """Scores fall from class 0 to 6: the labels 0, 4, 5, 6 give two of four in the first five, one at the top."""
    logits = torch.arange(7.0, 0.0, -1.0).expand(4, 7)
    numbers = evaluate(Given(), [(logits[:3], torch.tensor([0, 4, 5])), (logits[3:], torch.tensor([6]))], CPU, FP32)
    assert (numbers["top1"], numbers["top5"]) == (25.0, 50.0)


def test_evaluation_switches_dropout_off_and_keeps_no_gradient():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 4)).train()
    evaluate(model, [(torch.randn(2, 3), torch.tensor([0, 1]))], CPU, FP32)
    assert not model.training and model[1].weight.grad is None


def test_held_out_loss_weights_batches_by_their_images():
    """Losses 1 (three images) and 5 (one image): (3 + 5) / 4 = 2."""
    class Mean(torch.nn.Module):
        def forward(self, images, masks):
            return images.mean()

    loader = [(torch.ones(3, 1, 2, 3), torch.ones(3, 1, 1)), (torch.full((1, 1, 2, 3), 5.0), torch.ones(1, 1, 1))]
    numbers = heldout_loss(Mean(), loader, CPU, FP32)
    assert numbers == {"loss": pytest.approx(2.0), "images": 4}


def test_throughput_runs_the_asked_number_of_batches():
    shapes = []

    class Counting(torch.nn.Module):
        def forward(self, images):
            shapes.append(tuple(images.shape))

    assert throughput(Counting(), (2, 3, 4, 6), CPU, FP32, warmup=2, rounds=3) > 0
    assert shapes == [(2, 3, 4, 6)] * 5
