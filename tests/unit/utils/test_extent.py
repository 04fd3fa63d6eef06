"""How much a structure may hold."""
import pytest

from utils.extent import DEEPEST, check_extent


def items_of(value):
    return value if isinstance(value, list) else None


def nested(levels):
    found = []
    for _ in range(levels - 1):
        found = [found]
    return found


def test_limits_themselves_are_allowed():
    check_extent(nested(DEEPEST), items_of, DEEPEST)
    check_extent([[1, 2], 3], items_of, 5)


def test_more_items_are_refused():
    with pytest.raises(ValueError, match="more than 4 items"):
        check_extent([[1, 2], 3], items_of, 4)


def test_more_levels_are_refused_also_where_the_lower_ones_are_known():
    with pytest.raises(ValueError, match="more than 100 levels"):
        check_extent(nested(DEEPEST + 1), items_of, 1000)
    low = nested(60)
    high = low
    for _ in range(60):
        high = [high]
    with pytest.raises(ValueError, match="more than 100 levels"):
        check_extent([low, high], items_of, 1000)


def test_list_that_holds_itself_is_refused():
    circle = []
    circle += [circle, circle]
    with pytest.raises(ValueError, match="holds itself"):
        check_extent(circle, items_of, 10 ** 6)


def test_references_count_each_time_and_are_not_walked_through_each_time():
    doubled = [1]
    for _ in range(60):
        doubled = [doubled, doubled]
    with pytest.raises(ValueError, match="more than 1000000 items"):
        check_extent(doubled, items_of, 10 ** 6)
