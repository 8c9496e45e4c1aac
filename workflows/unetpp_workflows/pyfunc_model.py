"""A model package behind MLflow's generic predict call; knows the package folder and no tiles, engines or registry.

MLflow copies this file into the logged model and runs it at load time ("models from code"), so it imports nothing of
unetpp_workflows and nothing that a serving process does not need: unetpp, torch and numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class SegmentationModel(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """Whole-image inference in plain torch on the CPU: the definition that every faster engine is compared with."""

    def load_context(self, context: Any) -> None:
        """Read the safetensors package that was logged as artifact "package"."""
        import torch

        from unetpp.model.fold import fold
        from unetpp.package import load_package

        package = load_package(context.artifacts["package"])
        self._spec = package.spec
        model: Any = package.load_model()
        self._model = fold(model)
        self._mean = torch.tensor(self._spec.mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(self._spec.std).reshape(1, -1, 1, 1)

    def predict(
        self,
        context: Any,
        model_input: np.ndarray,  # MLflow knows this hint only without parameters
        params: dict[str, Any] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Segment images of any height and width.

        Args:
            context: unused; MLflow passes it.
            model_input: (N, H, W, C) in the sample type and band order that the package declares.
            params: "tta", over which orientations probabilities are averaged, as in `unetpp.model.turned`.

        Returns:
            Class values of the package, (N, H, W) uint8.

        Raises:
            BandsError: the number of bands or the sample type is another one.
            EngineError: "tta" is unknown.
            ShapeError: the array does not have four axes.
        """
        import torch

        from unetpp.errors import BandsError, EngineError, ShapeError
        from unetpp.model.layers import pad_to_multiple
        from unetpp.model.orientations import TTAS
        from unetpp.model.turned import averaged

        images = np.asarray(model_input)
        spec = self._spec
        if images.ndim != 4:
            raise ShapeError(f"images of shape {images.shape}: pass (N, H, W, C) with C={len(spec.bands)}")
        if images.shape[3] != len(spec.bands) or images.dtype != np.dtype(spec.dtype):
            raise BandsError(
                f"images have {images.shape[3]} bands of {images.dtype}; model {spec.name!r} takes "
                f"{len(spec.bands)} ({', '.join(spec.bands)}) of {spec.dtype}"
            )
        tta: Any = (params or {}).get("tta", "none")
        if tta not in TTAS:
            raise EngineError(f"tta {tta!r} is unknown; choose {', '.join(TTAS)}")
        values = np.array([c.value for c in spec.classes], np.uint8)
        labels = np.empty(images.shape[:3], np.uint8)
        for index, image in enumerate(images):  # one at a time: N large images must not share one batch's memory
            x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32))[None]
            x = pad_to_multiple((x - self._mean) / self._std, self._model.multiple)
            with torch.inference_mode():
                logits = averaged(self._model, x, tta)[0, :, : image.shape[0], : image.shape[1]]
            winner = logits[0] > 0 if len(logits) == 1 else logits.argmax(0)
            labels[index] = values[winner.numpy().astype(np.intp)]
        return labels


set_model(SegmentationModel())
