"""A kernel that is run again, and on more threads."""

import torch


def assert_same_bits(computed):
    """Of what `computed()` returns: on one thread and on two, twice each."""
    threads, runs = torch.get_num_threads(), []
    try:
        for each in (1, 1, 2, 2):
            torch.set_num_threads(each)
            runs.append(computed())
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
