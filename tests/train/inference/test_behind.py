"""Behind: the order of results and errors, what Ctrl-C leaves, and that the two works really overlap."""

import threading
from functools import partial

import pytest
import torch

from leanconv.train.inference.behind import behind


def test_results_come_in_order():
    assert list(behind(partial(pow, i, 2) for i in range(7))) == [i * i for i in range(7)]
    assert list(behind([])) == []


def test_a_function_runs_while_the_next_one_is_made():
    made = threading.Event()

    def steps():
        yield lambda: made.wait(30)  # true as soon as the second step is made
        made.set()
        yield lambda: "second"

    assert list(behind(steps())) == [True, "second"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_result_before_a_failure_is_given_first(error):
    def steps():
        yield lambda: "first"
        raise error

    given = behind(steps())
    assert next(given) == "first"
    with pytest.raises(error):
        next(given)


def test_a_functions_own_error_arrives_in_its_place():
    given = behind([lambda: 1, partial(int, "x"), lambda: 3])
    assert next(given) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        next(given)


def test_the_networks_threads_stay_and_the_helper_has_one():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = list(behind([torch.get_num_threads, torch.get_num_threads]))
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_closed_early_it_ends_the_thread():
    given = behind(partial(int, i) for i in range(100))
    assert next(given) == 0
    given.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("leanconv files")]
