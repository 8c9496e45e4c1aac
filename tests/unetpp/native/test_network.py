"""What a network is made of, and what it leaves unmade."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.unetpp.native.machine import TARGETS, definition, lively, picture
from unetpp.errors import ModelPackageError
from unetpp.native import build, head, network, node
from unetpp.native.need import Region
from unetpp.native.network import Network
from unetpp.native.stream import Stream
from unetpp.package import SPEC, Package, load_package

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
MakePackage = Callable[..., Package]
TARGET = next(iter(TARGETS.values()), None)


def logits(made: Network, image: Any) -> Any:
    shape = image.shape[:2]
    return Stream(made, shape, Region(0, 0, *shape), ((0, made.config.last),)).logits(image)[0]


def test_every_node_has_a_function_and_weights(make_package: MakePackage) -> None:
    assert TARGET is not None
    made = Network(make_package(filters=(4, 8, 8, 8)), TARGET)
    assert len(made.steps) == 10
    assert set(made.functions) == {f"node_{step.key}" for step in made.steps} | {head.LABELS, head.LOGITS}
    assert list(made.heads) == [(0, 1), (0, 2), (0, 3)]
    for step in made.steps:
        names = {"bias1", "pointwise1", "pointwise2", "depthwise2", "bias2"}
        names |= {"depthwise1"} if step.sources else {"mean", "std"}
        names |= {"pointwise_low"} if step.low else set()
        assert made.arguments[step.node].keys() == names
        assert all(address and address % 64 == 0 for address in made.arguments[step.node].values())
    for arguments in made.heads.values():
        assert arguments.keys() == {"weights", "scale", "bias", "values"}


def test_places_of_arguments_do_not_overlap() -> None:
    assert sorted(node.SLOTS.values()) == list(range(len(node.SLOTS)))
    assert sorted(head.SLOTS.values()) == list(range(len(head.SLOTS)))
    assert node.SLOTS["source"] == max(node.SLOTS.values()) and node.SLOTS["source"] + 3 * 16 == node.ARGUMENTS


def test_two_networks_in_one_process(make_package: MakePackage) -> None:
    """Each has its own code, and two of the same shape share theirs but not their weights."""
    assert TARGET is not None
    first, other = lively(make_package()), lively(make_package(filters=(8, 4, 12), bands=2))
    same = lively(make_package(), lambda model: [p.mul_(0.7) for p in model.parameters()] and None)
    packages = [first, other, same]
    made = [Network(package, TARGET) for package in packages]
    for _ in range(2):
        for package, runner in zip(packages, made, strict=True):
            image = picture((16, 24, package.spec.architecture.bands))
            expected = definition(package, image)[-1]
            assert np.abs(logits(runner, image) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_threads_run_one_network_at_once(make_package: MakePackage) -> None:
    """On each of the targets: AMX's tiles belong to a thread."""
    images = [picture((32, 64, 3), seed=seed) for seed in range(8)]
    for target in TARGETS.values():
        made = Network(lively(make_package(filters=(32, 40))), target)
        expected = [logits(made, image) for image in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(partial(logits, made), images * 4))
        for some, wanted in zip(found, expected * 4, strict=True):
            np.testing.assert_array_equal(some, wanted)


def test_a_package_that_does_not_fit_is_refused_before_anything_is_compiled(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A width of millions would take LLVM for hours, and all memory."""
    package = lively(make_package())
    values = json.loads((package.folder / SPEC).read_text())
    values["architecture"]["filters"] = [4, 3_000_000, 8]
    (package.folder / SPEC).write_text(json.dumps(values))

    def never(*arguments: Any) -> Any:
        raise AssertionError("compiled")

    monkeypatch.setattr(network, "machine_code", never)
    assert TARGET is not None
    with pytest.raises(ModelPackageError, match="does not fit"):
        Network(load_package(package.folder), TARGET)


def test_code_depends_on_all_that_a_shape_says(make_package: MakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands, widths, classes, sample type, upsampling and block make other code; weights and values do not."""
    seen: list[str] = []

    def listen(facts: str, write: Any) -> build.Machine:
        seen.append(facts)
        raise RuntimeError

    monkeypatch.setattr(network, "machine_code", listen)
    changes: tuple[dict[str, Any], ...] = (
        {}, {"bands": 4}, {"filters": (4, 8, 24)}, {"filters": (4, 8)}, {"classes": 4}, {"upsample": "nearest"},
        {"spec": {"dtype": "uint16"}}, {"network": "unet"},
    )  # fmt: skip
    for package, target in itertools.product([make_package(**change) for change in changes], TARGETS.values()):
        with pytest.raises(RuntimeError):
            Network(package, target)
    assert len(set(seen)) == len(seen)
    count = len(seen)
    package = lively(make_package())
    renamed = dataclasses.replace(package.spec, mean=(1.0, 2.0, 3.0))
    assert TARGET is not None
    with pytest.raises(RuntimeError):
        Network(dataclasses.replace(package, spec=renamed), TARGET)
    assert seen[count] == seen[0]  # the first package's, on the first target
    monkeypatch.setattr(node, "_ROW", 4096)
    with pytest.raises(RuntimeError):
        Network(package, TARGET)
    assert seen[count + 1] not in seen[: count + 1]
