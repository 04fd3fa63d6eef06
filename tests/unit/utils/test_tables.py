from utils.tables import aligned


def test_columns_are_as_wide_as_their_longest_cell():
    assert aligned([("name", "x"), ("a", "12.5"), ("longer", "")]) == ["name       x", "a       12.5", "longer"]


def test_columns_on_the_left_keep_their_blanks_on_the_right():
    assert aligned([("a", "bb", "c"), ("aaa", "b", "ccc")], num_left=2) == ["a    bb    c", "aaa  b   ccc"]
