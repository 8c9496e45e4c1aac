"""Makes OpenVINO graphs of a package's network through torch, in this process; knows no tile, no file and no engine."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from unetpp.engine.base import Output
from unetpp.engine.rewrite import split_concatenations
from unetpp.errors import ModelPackageError
from unetpp.model.margins import Margins
from unetpp.package import ModelSpec, Package, package_digest

if TYPE_CHECKING:
    from unetpp.engine.network import TileNetwork


class GraphKey(NamedTuple):
    """What tells the graphs of one package apart; see `TileNetwork.without`."""

    output: Output
    margins: Margins
    strips: int

    @property
    def name(self) -> str:
        return "-".join(map(str, (self.output, *self.margins, self.strips)))


class Exporter:
    """Makes graphs of one package; imports torch, and reads the weights, at the first of them.

    Raw values of uint8 are normalised in the graph, others before it: see `normalised_in_graph`.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._networks: dict[Output, TileNetwork] = {}

    def load(self) -> None:
        """Build the network.

        Raises:
            ModelPackageError: the weights are damaged, or the package changed or went since it was opened.
        """
        import torch

        from unetpp.engine.network import tile_networks

        spec, folder = self._package.spec, self._package.folder
        spec = spec if normalised_in_graph(spec) else _without_normalisation(spec)
        try:
            with torch.inference_mode(False):  # parameters made inside inference mode could not be traced
                networks = tile_networks(self._package.load_model(), spec)
            changed = package_digest(folder) != self._package.digest
        except OSError as error:
            raise ModelPackageError(f"{folder} cannot be read any more ({error}); run the command again") from error
        if changed:
            # Its graphs would be kept under the name of others.
            raise ModelPackageError(f"{folder} changed since it was opened; run the command again")
        self._networks = networks

    def graph(self, key: GraphKey) -> Any:
        """Trace the plain definition at a small size, then leave height and width open; raises what `load` does."""
        import torch

        if not self._networks:
            self.load()
        spec, (output, margins, strips) = self._package.spec, key
        multiple = spec.architecture.multiple
        whole = self._networks[output]
        network = whole.without(margins, strips) if any(margins) or strips > 1 else whole
        around = 2 * max(margins)
        rows = strips * max(16, multiple) if strips > 1 else 2 * multiple
        dtype = torch.uint8 if normalised_in_graph(spec) else torch.float32
        example = torch.zeros(rows + around, 3 * multiple + around, len(spec.bands), dtype=dtype)
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            # The tracer warns that Python branches on shapes are fixed: here they are, to "needs no padding".
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
            graph = converted(traced, example)
        split_concatenations(graph)
        return graph


def normalised_in_graph(spec: ModelSpec) -> bool:
    """Say whether graphs take raw values. In bf16 they would round them first: 10050 and 10000 become one number."""
    return spec.dtype == "uint8"


def converted(traced: Any, example: Any) -> Any:
    """Return a traced network of (height, width, bands) pixels as an OpenVINO graph with open height and width.

    It is the graph that `openvino.convert_model` returns, in half the time: more than half of that goes into preparing
    steps before the first and behind the last layer, where there are none.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Kept until the graph is whole; with memory shared it would have to live as long as the graph.
    decoder = TorchScriptPythonDecoder(traced, example_input=example, shared_memory=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.load(decoder)
    [pixels] = model.get_inputs()
    model.set_partial_shape(pixels, openvino.PartialShape([-1, -1, example.shape[2]]))
    model.set_element_type(pixels, openvino.Type(example.numpy().dtype))
    graph = frontend.convert(model)
    apply_moc_transformations(graph, cf=False, smart_reshape=True)
    return graph


def _without_normalisation(spec: ModelSpec) -> ModelSpec:
    bands = len(spec.bands)
    return dataclasses.replace(spec, mean=(0.0,) * bands, std=(1.0,) * bands)
