"""Accuracy and held-out loss from numbers that can be counted by hand."""
import pytest
import torch
from torch.nn import functional as F

from config import load_config
from evaluation import accuracy_line, evaluate, heldout_loss, report_classes, throughput
from utils.confusion import Confusion
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
def test_top5_is_not_told_of_at_most_five_classes(classes):
    """It would be 100. Old timm fails with fewer than five (quirk 42)."""
    logits, labels = torch.randn(7, classes), torch.randint(classes, (7,))
    numbers = evaluate(Given(), [(logits, labels)], CPU, FP32)
    assert "top5" not in numbers and "top-5" not in accuracy_line(numbers)


def test_top5_of_seven_classes_is_counted():
    """Scores fall from class 0 to 6: the labels 0, 4, 5, 6 give two of four in the first five, one at the top."""
    logits = torch.arange(7.0, 0.0, -1.0).expand(4, 7)
    numbers = evaluate(Given(), [(logits[:3], torch.tensor([0, 4, 5])), (logits[3:], torch.tensor([6]))], CPU, FP32)
    assert (numbers["top1"], numbers["top5"]) == (25.0, 50.0)
    assert "top-1 25.000%, top-5 50.000%" in accuracy_line(numbers)


def test_balanced_accuracy_is_the_mean_over_classes_that_have_images():
    """Of class 0 three of four are right, of class 1 none of one; class 2 has no images: (75 + 0) / 2."""
    logits = [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    numbers = evaluate(Given(), batches(logits, [0, 0, 0, 0, 1], [3, 2]), CPU, FP32)
    assert numbers["balanced_accuracy"] == pytest.approx(37.5) and numbers["top1"] == pytest.approx(60.0)


def test_confidence_is_the_mean_probability_of_what_is_predicted():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    numbers = evaluate(Given(), [(probabilities.log(), torch.tensor([1, 2]))], CPU, FP32)
    assert numbers["confidence"] == pytest.approx(60.0)


# ---- each class ---------------------------------------------------------------------------------------------------

def counted(labels, predictions):
    confusion = Confusion()
    confusion.add(torch.tensor(labels), torch.tensor(predictions))
    confusion.share()
    return confusion


NUMBERS = {"balanced_accuracy": 50.0, "confidence": 50.0}


def test_evaluations_of_the_same_weights_write_over_nothing(tmp_path):
    config = load_config(opts=["OUTPUT", str(tmp_path), "MODEL.NAME", "m", "MODEL.RESUME", "https://x.org/a b?v=1.pth"])
    for predictions in ([0, 1], [1, 0], [1, 1]):
        report_classes(config, NUMBERS, counted([0, 1], predictions), ["bow", "axe"])
    folders = sorted((tmp_path / "m" / "default" / "eval").iterdir())
    assert [folder.name for folder in folders] == ["001_a_b_v_1", "002_a_b_v_1", "003_a_b_v_1"]
    tables = [(folder / "confusion.csv").read_text().splitlines()[1:] for folder in folders]
    assert tables == [["bow,1,0", "axe,0,1"], ["bow,0,1", "axe,1,0"], ["bow,0,1", "axe,0,1"]]


def test_last_epoch_writes_the_same_files_when_it_is_validated_again(tmp_path):
    config = load_config(opts=["OUTPUT", str(tmp_path), "MODEL.NAME", "m"])
    for _ in range(2):
        report_classes(config, NUMBERS, counted([0, 1], [0, 1]), ["bow", "axe"], "epoch_9")
    folder, = (tmp_path / "m" / "default" / "eval").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["classes.csv", "confusion.csv", "confusion.png"]


def test_matrix_of_very_many_classes_is_not_written(tmp_path):
    config = load_config(opts=["OUTPUT", str(tmp_path), "MODEL.NAME", "m"])
    report_classes(config, NUMBERS, counted([0, 20000], [20000, 20000]), [str(i) for i in range(20001)], "epoch_0")
    path, = (tmp_path / "m" / "default" / "eval" / "epoch_0").iterdir()
    lines = path.read_text().splitlines()
    assert len(lines) == 20002 and lines[1] == "0,0,1,0,0.00,0,,20000,1" and lines[-1] == "20000,20000,1,1,100.00,2,50.00,,0"


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
