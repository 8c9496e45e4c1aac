"""Texts in words against Python's own bytes."""

from __future__ import annotations

import numpy as np

from unetpp.finalize.texts import WORD, Texts


def test_texts_of_every_length_lie_where_it_is_said() -> None:
    rng = np.random.default_rng(0)
    some = [bytes(rng.integers(1, 256, length, np.uint8)) for length in range(1, 41)]
    ids = rng.integers(0, 256, (9, 36), np.uint8)
    values = [0.1, 1 / 3, 12.0, 1e30, 0.1, 123456789.0123, -2.5]
    texts = Texts()
    places = np.concatenate([texts.all(some[:5]), texts.all(some[5:]), texts.rows(ids), texts.numbers(values)])
    expected = [*some, *(row.tobytes() for row in ids), *(repr(float(f"{value:.12g}")).encode() for value in values)]
    whole = texts.joined().tobytes()
    assert [whole[WORD * first : WORD * first + length] for first, length in places.tolist()] == expected
