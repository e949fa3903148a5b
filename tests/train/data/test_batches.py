"""Batches made ahead of the network: the same ones in the same order, and no thread is left behind."""

import itertools
import threading
import time

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.train.data.ahead import ahead
from leanconv.train.data.batches import Order, augmented, batches


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "leanconv batches"]


def squares(step):
    if step == 7:
        raise BadInput("7.png: is cut off")
    return torch.full((2, 3, 4, 4), float(step)), torch.tensor([step, step + 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_they_come_in_order_and_stop_at_a_bad_file(workers):
    made = batches(squares, 3, 9, workers=workers)
    seen = [(float(images.mean()), truth.tolist()) for images, truth in itertools.islice(made, 4)]
    with pytest.raises(BadInput, match=r"^7\.png: is cut off$"):
        next(made)
    assert seen == [(float(step), [step, step + 1]) for step in range(3, 7)]
    assert not alive()
    assert list(batches(squares, 3, 3, workers=0)) == []


def test_two_are_ready_before_they_are_asked_for():
    made = []

    def counted():
        for number in range(9):
            made.append(number)
            yield number

    values = ahead(counted(), depth=2)
    assert next(values) == 0
    until = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert made == [0, 1, 2, 3]  # one was taken, two wait, one waits for room
    assert len(alive()) == 1
    values.close()
    assert not alive()
    assert list(ahead(iter(range(50)))) == list(range(50))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_network_keeps_its_threads_and_its_random_numbers(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        inside, later = [], []
        values = ahead(iter(lambda: inside.append(torch.get_num_threads()) or len(inside), 4))
        state = torch.get_rng_state()
        assert list(values) == [1, 2, 3]
        assert set(inside) == {1}
        assert torch.get_num_threads() == threads
        new = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        new.start()
        new.join()
        assert later == [threads]
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_a_batch_has_the_samples_and_seeds_of_its_step():
    order = Order(6, 3, seed=4)

    class Names:
        def batch(self, samples, seeds):
            return samples, seeds

    for step in range(4):
        samples, seeds = augmented("abcdef", Names(), order, step)
        assert [("abcdef".index(s), seed) for s, seed in zip(samples, seeds, strict=True)] == order.at(step)
