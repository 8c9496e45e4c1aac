"""What holds for every streaming metric: however images are shared among workers, the state is the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unetpp.metrics import BoundaryF1, CalibrationError, Confusion, ObjectQuality, Temperature

Image = tuple[torch.Tensor, np.ndarray]


def images() -> list[Image]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(7):
        truth = random.integers(0, 3, (5, 6)).repeat(4, 0).repeat(4, 1)
        truth[random.random(truth.shape) < 0.05] = 255
        made.append((torch.from_numpy(random.normal(size=(3, 20, 24))), truth))
    return made


def on_labels(metric: Any, image: Image) -> None:
    metric.update(image[1], image[0].argmax(0).numpy())


def on_logits(metric: Any, image: Image) -> None:
    metric.update(image[0], image[1])


@pytest.mark.parametrize(
    ("make", "update"),
    [
        (lambda: Confusion(3), on_labels),
        (lambda: BoundaryF1(3), on_labels),
        (CalibrationError, on_logits),
        (Temperature, on_logits),
        (ObjectQuality, on_labels),
    ],
)
def test_any_order_and_partition_give_the_same_state(
    make: Callable[[], Any], update: Callable[[Any, Image], None]
) -> None:
    whole = make()
    for image in images():
        update(whole, image)
    assert whole.state().any() and whole.state().dtype == np.int64
    workers = [make() for _ in range(3)]
    for number, image in enumerate(reversed(images())):
        update(workers[number % 3], image)
    # As workers add them: in float64.
    total = np.sum([worker.state().astype(np.float64) for worker in workers], 0)
    np.testing.assert_array_equal(type(whole).from_state(total).state(), whole.state())
    workers[2].merge(workers[0])
    workers[1].merge(workers[2])
    np.testing.assert_array_equal(workers[1].state(), whole.state())
    kept = whole.state()
    kept += 1
    assert not np.array_equal(kept, whole.state())
