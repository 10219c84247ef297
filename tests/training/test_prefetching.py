"""Steps that are prepared ahead by a thread."""

import threading
import time

import pytest
from limits import HANG_S

from xnli_gpt.training.batches import prefetched


def test_prefetching_keeps_the_order_and_makes_few_ahead():
    made = []

    def items():
        for item in range(20):
            made.append(item)
            yield item

    for taken, item in enumerate(prefetched(items(), 3), start=1):
        assert item == taken - 1
        if taken in (1, 5):
            deadline = time.monotonic() + HANG_S
            while len(made) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)
        # Three that wait, and one in the hand of their maker.
        assert len(made) <= taken + 3 + 1
        if taken in (1, 5):
            assert len(made) >= taken + 3, "they must be made ahead"
    assert taken == 20


def test_what_a_prefetching_maker_raises_is_raised_at_the_consumer():
    def items():
        yield 1
        raise KeyError("row 7")

    threads = threading.active_count()
    taken = []
    with pytest.raises(KeyError, match="row 7"):
        for item in prefetched(items(), 2):
            taken.append(item)
    assert taken == [1]
    assert threading.active_count() == threads


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_a_prefetching_generator_stops_its_thread(taken):
    threads = threading.active_count()
    items = prefetched(iter(range(1000)), 2)
    for _ in range(taken):
        next(items)
    assert threading.active_count() == threads + 1
    items.close()
    assert threading.active_count() == threads
