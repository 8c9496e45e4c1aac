"""One picture in two splits: by its path, by its content; parts of one image are none."""

from __future__ import annotations

import pytest

from unetpp_workflows.prepare.duplicates import duplicates
from unetpp_workflows.prepare.rows import Row
from unetpp_workflows.prepare.survey import Survey

PICTURE = Survey(key="", grid={}, sha256="ab", print=bytes(range(256)).hex())


def row(name: str, split: str, image: str = "images/s0.tif", part: tuple[float, float] = (0.0, 1.0)) -> Row:
    return Row(name, image, ("labels.png",), group=name, stratum=name, split=split, part=part)


@pytest.mark.parametrize("image", ["images/s0.tif", "images/copy.tif"])
def test_a_picture_in_two_splits_is_an_error_whatever_its_path(image: str) -> None:
    found = duplicates([row("a", "train"), row("b", "val", image)], [PICTURE, PICTURE])
    assert [str(fault) for fault in found] == [
        "a (train) and b (val) are one picture in two splits; remove one, or give both one group"
    ]
    assert not duplicates([row("a", "train"), row("b", "train", image)], [PICTURE, PICTURE])


def test_parts_of_one_image_are_no_copies_but_those_of_another_are() -> None:
    parts = [row("a#train", "train", part=(0.0, 0.7)), row("a#val", "val", part=(0.7, 1.0))]
    assert not duplicates(parts, [PICTURE] * 2)
    copy = row("b#val", "val", "images/copy.tif", part=(0.7, 1.0))
    assert [fault.level for fault in duplicates([*parts, copy], [PICTURE] * 3)] == ["error"]
