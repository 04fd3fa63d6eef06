"""What images of each class were taken for: counted over all processes, as tables and in words."""
import csv
import io

import numpy as np
import torch

from utils import distributed
from utils.names import shown

BITS = 32  # a pair (label, prediction) as one whole number: the label above so many bits


class Confusion:
    """Counts of (label, prediction) of classified images. Of pairs that occur: those of 20,000 classes fill no memory.

    Attributes, known after `share`:
        labels, predictions, counts: int64 arrays of one length: each pair that occurs, in order, and how often it does.
    """

    def __init__(self):
        self.pairs = []  # of this process, on the device
        self.labels = self.predictions = self.counts = np.zeros(0, dtype=np.int64)

    def add(self, labels, predictions):
        """Count a batch: (B,) whole numbers each; does not wait for the device."""
        self.pairs.append(labels.long() << BITS | predictions.long())

    def share(self):
        """Put together what all processes have counted; all must call it."""
        own = torch.cat(self.pairs).cpu().numpy() if self.pairs else np.zeros(0, dtype=np.int64)
        pairs, self.counts = np.unique(np.concatenate(distributed.from_all(own)), return_counts=True)
        self.labels, self.predictions = pairs >> BITS, pairs & (1 << BITS) - 1
        self.pairs = []

    def images(self, num_classes):
        """(C,) images of each class."""
        return np.bincount(self.labels, self.counts, num_classes).astype(np.int64)

    def correct(self, num_classes):
        """(C,) images of each class that were taken for it."""
        hits = self.labels == self.predictions
        return np.bincount(self.labels[hits], self.counts[hits], num_classes).astype(np.int64)

    def balanced_accuracy(self):
        """Mean accuracy of the classes that have images, in percent; NaN without images."""
        if not len(self.labels):
            return float("nan")
        num_classes = self.labels.max() + 1
        images = self.images(num_classes)
        return float(100 * (self.correct(num_classes)[images > 0] / images[images > 0]).mean())

    def matrix(self, num_classes):
        """(C, C) counts: a row a label, a column a prediction."""
        found = np.zeros((num_classes, num_classes), dtype=np.int64)
        found[self.labels, self.predictions] = self.counts
        return found

    def worst(self, most=5):
        """[(label, images that were right, images), ...]: the least accurate classes, without those that are always right."""
        num_classes = self.labels.max(initial=0) + 1
        images, correct = self.images(num_classes), self.correct(num_classes)
        wrong = np.flatnonzero(correct < images)
        order = sorted(wrong, key=lambda label: (correct[label] / images[label], -images[label], label))
        return [(int(label), int(correct[label]), int(images[label])) for label in order[:most]]

    def mistakes(self, most=5):
        """[(label, prediction, count), ...]: the most frequent ones."""
        wrong = np.flatnonzero(self.labels != self.predictions)
        order = wrong[np.argsort(-self.counts[wrong], kind="stable")][:most]
        return [(int(self.labels[i]), int(self.predictions[i]), int(self.counts[i])) for i in order]

    def class_table(self, names):
        """CSV text: a line a class with its accuracy, precision (percent) and what it was most often taken for instead."""
        images, correct = self.images(len(names)), self.correct(len(names))
        predicted = np.bincount(self.predictions, self.counts, len(names)).astype(np.int64)
        taken_for = {}
        for label, prediction, count in self.mistakes(len(self.labels)):  # the most frequent first
            taken_for.setdefault(label, (names[prediction], count))
        rows = [[label, name, images[label], correct[label], _percent(correct[label], images[label]), predicted[label],
                 _percent(correct[label], predicted[label]), *taken_for.get(label, ("", 0))]
                for label, name in enumerate(names)]
        return _csv(["label", "class", "images", "correct", "accuracy", "predicted", "precision", "taken_for", "times"], rows)

    def matrix_table(self, names):
        """CSV text of the matrix: a row a label, a column a prediction, with their names."""
        return _csv(["label \\ prediction", *names],
                    ([name, *row] for name, row in zip(names, self.matrix(len(names)).tolist(), strict=True)))

    def in_words(self, names, most=5):
        """Lines for a log: the least accurate classes and the most frequent mistakes; none where all is right."""
        worst = [f"{shown(names[label])} {100 * correct / images:.1f}% of {images}"
                 for label, correct, images in self.worst(most)]
        mistakes = [f"{shown(names[label])} for {shown(names[prediction])} {count}x"
                    for label, prediction, count in self.mistakes(most)]
        return [f"least accurate: {', '.join(worst)}", f"most often mistaken: {', '.join(mistakes)}"] if worst else []


def _percent(part, whole):
    return f"{100 * part / whole:.2f}" if whole else ""


def _csv(head, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()
