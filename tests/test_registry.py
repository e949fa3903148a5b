"""Operator strings: one syntax, literals only, and errors that say what to type."""

import pytest

from leanconv.errors import BadInput, UnknownName
from leanconv.registry import parse, unparse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("splconv", ("splconv", {})),
        (" splconv( alpha = 0.75 ) ", ("splconv", {"alpha": 0.75})),
        ("hetconv(part=2, arrangement='blocked')", ("hetconv", {"part": 2, "arrangement": "blocked"})),
        (
            "splconv(dilated_kernel_size=None, dilated=True)",
            ("splconv", {"dilated_kernel_size": None, "dilated": True}),
        ),
        ("hetconv()", ("hetconv", {})),
    ],
)
def test_reads(text, expected):
    import leanconv.nn  # noqa: F401

    assert parse(text) == expected
    assert parse(unparse(*expected)) == expected


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("splcnov", UnknownName, "did you mean 'splconv'"),
        ("splconv(alhpa=1)", UnknownName, "did you mean 'alpha'"),
        ("splconv(0.5)", BadInput, "name=value"),
        ("splconv(**{})", BadInput, "name=value"),
        ("splconv(alpha=__import__('os').system('true'))", BadInput, "plain value"),
        ("__import__('os').system('true')", BadInput, "not readable"),
        ("splconv(alpha=0.5", BadInput, "not readable"),
        ("", BadInput, "not readable"),
        ("conv(bias=False)", UnknownName, "no option 'bias'"),
        ("(" * 5000, BadInput, "not readable"),
        ("splconv(alpha=" + "-" * 100_000 + "1)", BadInput, "readable|plain"),
        ("a\0b", BadInput, "not readable"),
        ("splconv(alpha='0.5')", BadInput, "splconv: alpha='0.5' must be a number$"),
        ("hetconv(part=4.0)", BadInput, "part=4.0 must be a whole number$"),
        ("hetconv(ragged=1)", BadInput, "ragged=1 must be True or False$"),
        ("drconv(guide=[])", BadInput, r"guide=\[\] must be a word in quotes or None$"),
        ("topological(window=3)", BadInput, r"window=3 must be whole numbers such as \(4, 4\) or None$"),
    ],
)
def test_refuses(text, error, words):
    import leanconv.nn  # noqa: F401

    with pytest.raises(error, match=words):
        parse(text)
