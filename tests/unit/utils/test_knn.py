"""Nearest neighbours against a loop that is written out."""
import math

import pytest
import torch

from utils.knn import count_correct

QUERIES, BANK, WIDTH, CLASSES = 13, 37, 5, 7


def naive(queries, labels, bank, bank_labels, k, temperature):
    """(correct in the first place, correct among the first five)."""
    first = five = 0
    for query, label in zip(queries.double(), labels.tolist(), strict=True):
        similar = sorted(((float(query @ other / query.norm() / other.norm()), int(of)) for other, of in
                          zip(bank.double(), bank_labels, strict=True)), reverse=True)[:k]
        votes = {}
        for similarity, of in similar:
            votes[of] = votes.get(of, 0.0) + math.exp(similarity / temperature)
        ranking = sorted(votes, key=votes.get, reverse=True)
        first += ranking[0] == label
        five += label in ranking[:5]
    return [first, five]


@pytest.fixture
def data():
    return (torch.randn(QUERIES, WIDTH), torch.randint(CLASSES, (QUERIES,)), torch.randn(BANK, WIDTH),
            torch.randint(CLASSES, (BANK,)))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_counts_are_those_of_a_loop(data, temperature):
    ks = [1, 4, 20, 100]
    found = count_correct(*data[:2], [data[2]], data[3], ks, temperature, CLASSES)
    assert found.tolist() == [naive(*data, k, temperature) for k in ks]


def test_counts_do_not_depend_on_the_parts_of_the_bank(data):
    queries, labels, bank, bank_labels = data
    whole = count_correct(queries, labels, [bank], bank_labels, [3, 10], 0.07, CLASSES)
    parts = count_correct(queries, labels, bank.split(4), bank_labels, [3, 10], 0.07, CLASSES)
    assert torch.equal(whole, parts)


def test_counts_of_parts_of_the_queries_add_up(data):
    queries, labels, *bank = data
    whole = count_correct(queries, labels, [bank[0]], bank[1], [3], 0.07, CLASSES)
    parts = [count_correct(queries[own], labels[own], [bank[0]], bank[1], [3], 0.07, CLASSES)
             for own in (slice(0, None, 2), slice(1, None, 2), slice(0, 0))]
    assert torch.equal(whole, sum(parts))


def test_class_without_a_vote_is_not_found():
    bank = torch.eye(3)
    found = count_correct(bank[:1], torch.tensor([1]), [bank], torch.tensor([0, 1, 2]), [1], 0.07, 6)
    assert found.tolist() == [[0, 0]]
