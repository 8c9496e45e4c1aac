"""Ids against the standard library's, whatever the lengths of key and numbers: names end anywhere in a block of 64."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from unetpp.finalize.identities import Identities


@pytest.mark.parametrize("length", [*range(70), 100, 111, 112, 113, 300])
def test_ids_are_those_of_the_standard_library(length: int) -> None:
    key = "kµ" * length
    first = np.array([[0, 0], [9, 10], [99, 100], [2**31 - 1, 2**31], [12345, 2**62]], np.int64)
    labels = np.array([0, 1, 9, 100, 254], np.uint8)
    names = [f"{key}/{label}/{y}/{x}" for label, (y, x) in zip(labels.tolist(), first.tolist(), strict=True)]
    found = [bytes(row).decode() for row in Identities(key).of(labels, first)]
    assert found == [str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in names]


def test_no_objects_have_no_ids() -> None:
    assert Identities("key").of(np.zeros(0, np.uint8), np.zeros((0, 2), np.int64)).shape == (0, 36)
