"""The shipped tables, and the rule by which a count agrees with a printed figure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanconv.papers import printed_rows, slugs
from leanconv.papers.printed import as_printed, prints_as


@pytest.mark.parametrize(
    ("ours", "printed", "alike"),
    [
        (7_764_064, "7.76M", True),
        (7_765_000, "7.76M", True),  # truncated
        (7_765_000, "7.77M", True),  # rounded
        (7_770_000, "7.76M", False),
        (7_755_000, "7.76M", True),
        (7_754_999, "7.76M", False),
        (3_648_056_320, "3.6G", True),
        (3_648_056_320, "3.60G", False),
        (3_602_944, "3.60M", True),
        (3_602_944, "3.33M", False),
        (589_999_999, "589M", True),
        (588_400_000, "589M", False),
        (12_403_507_200, "12.4G", True),
        (999_999, "1.0M", True),
        (7_764_064, "7.76G", False),
    ],
)
def test_prints_as_rounds_or_truncates_and_no_more(ours, printed, alike):
    assert prints_as(ours, printed) is alike


@given(st.integers(10, 10**14))
def test_a_number_prints_as_itself(value):
    assert prints_as(value, as_printed(value))


def test_a_figure_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no figure"):
        prints_as(3, "many")


def test_the_printed_text_and_the_number_are_the_same_figure():
    for row in printed_rows():
        assert set(row.printed) == set(row.values)
        for column, value in row.values.items():
            assert prints_as(value, row.printed[column]), (row, column)


def test_the_tables_are_the_known_ones():
    assert len(printed_rows()) == 92
    assert {"splconv/table1", "hetconv/table1", "fuseconv/mobilenet-v1", "odconv/resnet"} <= set(slugs())
    table = [row for row in printed_rows() if row.slug == "splconv/table1"]
    assert [row.fps for row in table] == [77, 74, 36, 49, 39, 39]
    assert [row.row for row in table if not row.expected] == ["SPLConv-UNet(encoder)"]
    assert table[2].printed == {"params": "3.27M", "flops": "11.08G", "madd": "24.5G"}
