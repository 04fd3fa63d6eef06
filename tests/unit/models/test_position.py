"""Relative position indices and the resizing of position tables. Recorded tables are in tests/parity."""
import pytest
import torch

from models.position import (
    num_table_rows,
    relative_position_index,
    relative_position_index_with_class_token,
    resize_bias_table,
    resize_position_embedding,
    source_grid,
    source_window,
)


def test_relative_position_index_of_a_2x3_window():
    """By hand: row = (dy + 1) * 5 + (dx + 2), d = query - key, tokens in reading order."""
    assert relative_position_index((2, 3)).tolist() == [
        [7, 6, 5, 2, 1, 0],
        [8, 7, 6, 3, 2, 1],
        [9, 8, 7, 4, 3, 2],
        [12, 11, 10, 7, 6, 5],
        [13, 12, 11, 8, 7, 6],
        [14, 13, 12, 9, 8, 7],
    ]


@pytest.mark.parametrize("window", [(2, 3), (1, 4), (3, 1), (1, 1)])
def test_relative_position_index_uses_each_row_of_the_table(window):
    index = relative_position_index(window)
    assert index.unique().tolist() == list(range(num_table_rows(window)))


def test_index_with_class_token_keeps_three_rows_for_it():
    index = relative_position_index_with_class_token((2, 3))
    assert torch.equal(index[1:, 1:], relative_position_index((2, 3)))
    assert index[0, 1:].unique().tolist() == [15] and index[1:, 0].unique().tolist() == [16] and index[0, 0] == 17


# ---- bias tables --------------------------------------------------------------------------------------------------

def table_of(window, heads=2, seed=0):
    return torch.randn(num_table_rows(window), heads, generator=torch.Generator().manual_seed(seed))


def as_grid(table, window):
    """(2h-1, 2w-1, heads)."""
    return table.view(2 * window[0] - 1, 2 * window[1] - 1, -1)


SIZES = [((2, 3), (4, 3)), ((4, 3), (3, 5)), ((3, 5), (2, 2)), ((2, 2), (3, 2)), ((1, 3), (2, 3)), ((1, 1), (3, 2)),
         ((3, 4), (1, 2)), ((2, 1), (1, 2))]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resized_table_has_the_size_of_the_target(source, target):
    table = table_of(source).to(torch.float64)
    resized = resize_bias_table(table, source, target)
    assert resized.shape == (num_table_rows(target), 2) and resized.dtype == torch.float64
    assert resized.isfinite().all()


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resized_table_keeps_the_middle(source, target):
    """Offset 0 lies at the same place in both."""
    before, after = table_of(source), resize_bias_table(table_of(source), source, target)
    middle = as_grid(before, source)[source[0] - 1, source[1] - 1]
    torch.testing.assert_close(as_grid(after, target)[target[0] - 1, target[1] - 1], middle)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resizing_commutes_with_transposition(source, target):
    table = table_of(source)
    turned = as_grid(table, source).transpose(0, 1).reshape(len(table), -1)
    expected = as_grid(resize_bias_table(table, source, target), target).transpose(0, 1)
    actual = as_grid(resize_bias_table(turned, source[::-1], target[::-1]), target[::-1])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_resizing_one_axis_treats_each_column_alike():
    """A table that depends on dy only still does."""
    rows = torch.randn(5, 1, 2).expand(5, 7, 2).reshape(35, 2)  # window 3x4
    resized = as_grid(resize_bias_table(rows, (3, 4), (5, 4)), (5, 4))
    torch.testing.assert_close(resized, resized[:, :1].expand_as(resized), atol=1e-6, rtol=0)


def test_table_of_one_token_fills_a_larger_window_with_its_value():
    resized = resize_bias_table(torch.tensor([[2.0, -3.0]]), (1, 1), (2, 3))
    torch.testing.assert_close(resized, torch.tensor([[2.0, -3.0]]).expand(15, 2))


def test_table_of_one_row_is_constant_along_the_new_axis():
    table = table_of((1, 3))
    resized = as_grid(resize_bias_table(table, (1, 3), (2, 3)), (2, 3))
    torch.testing.assert_close(resized, table.view(1, 5, 2).expand(3, 5, 2), atol=1e-6, rtol=0)


def test_extra_rows_are_kept_when_a_table_is_resized():
    table = torch.cat([table_of((2, 3)), torch.full((3, 2), 7.0)])
    resized = resize_bias_table(table, (2, 3), (3, 4), num_extra=3)
    assert resized.shape == (35 + 3, 2) and torch.equal(resized[-3:], table[-3:])


def test_table_of_equal_windows_is_a_copy():
    table = table_of((2, 3))
    same = resize_bias_table(table, (2, 3), (2, 3))
    assert torch.equal(same, table) and same.data_ptr() != table.data_ptr()


def test_table_that_does_not_fit_its_window_is_refused():
    with pytest.raises(ValueError, match=r"16 rows is not one for a window of 2x3 \(15 \+ 0 rows\)"):
        resize_bias_table(torch.zeros(16, 2), (2, 3), (3, 3))


@pytest.mark.parametrize(("window", "like"), [((7, 7), (6, 6)), ((2, 3), (4, 6)), ((3, 2), (9, 6)), ((1, 8), (2, 16))])
def test_source_window_is_found_from_the_rows_and_the_aspect_of_the_target(window, like):
    assert source_window(num_table_rows(window), like=like) == window


def test_source_window_is_found_from_the_index_where_the_aspect_misleads():
    """105 = 7 * 15 = 15 * 7 = 5 * 21 = ... rows: only the index can tell."""
    for window in ((4, 8), (8, 4), (3, 11), (2, 18)):
        assert source_window(105, relative_position_index(window), like=(1, 1)) == window


@pytest.mark.parametrize("like", [(7, 14), (16, 8), (4, 16), (5, 9)])
@pytest.mark.parametrize("side", [8, 14])
def test_source_that_can_be_square_is_square(side, like):
    """14 * 14 tokens are also 7 * 28, nearer to a wide target; but released models are square."""
    assert source_grid(side * side, like) == source_window(num_table_rows((side, side)), like=like) == (side, side)


def test_source_grid_is_found_from_the_index_where_the_aspect_misleads():
    for grid in ((4, 8), (8, 4), (2, 16)):
        assert source_grid(32, (1, 1), relative_position_index(grid)) == grid


def test_source_window_is_none_when_no_window_has_that_many_rows():
    assert source_window(16) is None


# ---- absolute embeddings ------------------------------------------------------------------------------------------

def test_position_embedding_keeps_a_constant_and_the_class_token():
    embedding = torch.cat([torch.full((1, 1, 3), 9.0), torch.full((1, 6, 3), 2.0)], dim=1)
    resized = resize_position_embedding(embedding, (2, 3), (4, 5), num_extra=1)
    assert resized.shape == (1, 21, 3) and torch.equal(resized[:, :1], embedding[:, :1])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 20, 3), 2.0))


def test_position_embedding_grows_along_the_right_axis():
    """A ramp down the rows does not leak into the columns."""
    ramp = torch.arange(4.0).view(4, 1, 1).expand(4, 3, 2).reshape(1, 12, 2)
    grid = resize_position_embedding(ramp, (4, 3), (8, 5)).view(8, 5, 2)
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid))
    assert (grid.diff(dim=0) > 0).all()


@pytest.mark.parametrize(("num_tokens", "like", "expected"), [(196, (12, 12), (14, 14)), (32, (2, 4), (4, 8)),
                                                            (32, (4, 2), (8, 4)), (7, (1, 1), (1, 7))])
def test_source_grid_has_the_aspect_of_the_target(num_tokens, like, expected):
    assert sorted(source_grid(num_tokens, like)) == sorted(expected)
    if like[0] != like[1]:
        assert source_grid(num_tokens, like) == expected
