"""The model that MLflow serves, in this process; how it is loaded from a registry is in test_registry."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.package import ClassInfo, ModelSpec, save_package
from unetpp_workflows.mlflow_store import import_mlflow

TURNED = {
    "none": [(0, False)],
    "mirror": [(0, False), (0, True)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "d4": [(quarter, mirrored) for quarter in range(4) for mirrored in (False, True)],
}


def served() -> Any:
    import_mlflow()  # the first import in a process decides how much MLflow says in it
    from unetpp_workflows.pyfunc_model import SegmentationModel

    return SegmentationModel()


@pytest.mark.parametrize("tta", TURNED)
@pytest.mark.parametrize("classes", [1, 3])
def test_labels_are_of_the_mean_over_orientations(classes: int, tta: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 37, 53, 2)).astype(np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 64 - 2
    torch.manual_seed(0)
    network = UNetPlusPlus(GridConfig(bands=2, classes=classes, filters=(4, 6, 8))).eval()
    with torch.inference_mode():
        for head in network.head_convs.values():  # all classes are common, and orientations differ
            head.weight *= 5
            head.bias -= network(x.float()).mean((0, 2, 3))
    values = (0, 7, 3)[: max(2, classes)]
    info = tuple(ClassInfo(value=v, name=str(v), color=(v, v, v), background=v == 0) for v in values)
    spec = ModelSpec(name="toy", architecture=network.config, classes=info, bands=("a", "b"), mean=(128.0, 128.0),
                     std=(64.0, 64.0))  # fmt: skip
    model = served()
    model.load_context(
        SimpleNamespace(artifacts={"package": str(save_package(tmp_path / "toy", network, spec, "").folder)})
    )
    found = model.predict(None, images, {"tta": tta})

    # Sides that the network need not pad: turned, it would pad other ones.
    bottom, right = (-side % network.multiple for side in x.shape[2:])
    x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    network.double()
    total = torch.zeros(())
    with torch.inference_mode():
        for quarter, mirrored in TURNED[tta]:
            logits = network(torch.rot90(x.flip(3) if mirrored else x, quarter, (2, 3)))
            shares = logits.softmax(1) if classes > 1 else torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1)
            back = torch.rot90(shares, -quarter, (2, 3))
            total = total + (back.flip(3) if mirrored else back)
    expected = np.array(values)[total.argmax(1).numpy()][:, :37, :53]
    assert np.unique(expected, return_counts=True)[1].min() > 100 and len(np.unique(expected)) == len(values)
    assert (found == expected).mean() > 0.999  # in float32 and folded, ties may fall to the other side
