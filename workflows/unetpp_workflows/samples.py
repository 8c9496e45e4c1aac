"""The images of the demo and the tests: public ones by hash, and drawn ones; knows where they are, segments nothing.

Public samples come from the folder in UNETPP_DATA, else from their public address into the user's unetpp folder. What
to do without them is the caller's choice: `fetch` answers with a path or with the reason why there is none.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unetpp.durable import file_sha256, output_errors
from unetpp.errors import ConfigError, DataError, ImageNotFoundError
from unetpp.home import home

DATA_VARIABLE = "UNETPP_DATA"
_CONNECT_SECONDS, _TOTAL_SECONDS = 8.0, 90.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A public image with a pinned hash.

    Attributes:
        path: relative to the folder in UNETPP_DATA.
        sha256: of the file.
        kind: "slide", "scene", or "labels" for a truth raster.
        licence: under which it is published, and by whom.
        url: where to download it; None where no stable public address of this very file is known.
        truth: name of the sample with its labels.
        classes: class name of the model -> value in those labels, where they differ from the model's own.
    """

    name: str
    path: str
    sha256: str
    kind: Literal["slide", "scene", "labels"]
    licence: str
    url: str | None = None
    truth: str | None = None
    classes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A synthetic image and its labels, which have the values of the model's classes."""

    path: Path
    truth: Path


@dataclass(frozen=True)
class Fetched:
    """Where a sample is, or why it is not there: exactly one of `path` and `reason` is set."""

    sample: Sample
    path: Path | None
    reason: str | None = None


_OAM = "imagery CC BY 4.0 by OpenAerialMap contributors"
_CATALOGUE = (
    Sample(
        name="cmu-1-small-region",
        path="slides/CMU-1-Small-Region.svs",
        sha256="ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
        kind="slide",
        licence="CC0-1.0, OpenSlide test data, Carnegie Mellon University",
        url="https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs",
    ),
    Sample(
        name="tcga-without-mpp",
        path="slides/TCGA-CR-7395-01A-01-TS1.svs",
        sha256="77da93f125bfc55570b9731af309b81904dc2648722103d7c3bf5db4f8a6a365",
        kind="slide",
        licence="TCGA open access, National Cancer Institute",
    ),
    Sample(
        name="kampala-z19",
        path="kampala/kampala_A_z19.tif",
        sha256="9187629a2e928a50daa8794ec312735f9bc1f8f2f6fa0a8527d35c2e1570dda2",
        kind="scene",
        licence=_OAM,
        truth="kampala-z19-buildings",
        classes=(("building", 1),),
    ),
    Sample(
        name="kampala-z19-buildings",
        path="kampala/kampala_A_z19_buildings.tif",
        sha256="ad0593af149db7e318466e02250da7c31190e3759edf976414c53563c20f4bd4",
        kind="labels",
        licence="ODbL, OpenStreetMap contributors",
    ),
    Sample(
        name="kampala-z20",
        path="kampala/kampala_A_z20.tif",
        sha256="d460b781985ccd908c95260f2d94c16d27a4bc1d68313cf9a30489d724cde893",
        kind="scene",
        licence=_OAM,
        truth="kampala-z20-buildings",
        classes=(("building", 1),),
    ),
    Sample(
        name="kampala-z20-buildings",
        path="kampala/kampala_A_z20_buildings.tif",
        sha256="158ae240066b90c4ea3b8e40ce1e9094e765295eac09d1367b86acb87679725c",
        kind="labels",
        licence="ODbL, OpenStreetMap contributors",
    ),
    Sample(
        name="dubai-t3-p6",
        path="dubai/images/t3_p6.jpg",
        sha256="9da49e80ec397c82871004cdec6e7fccd25e3f92467ff715f32916280c12779d",
        kind="scene",
        licence="CC0-1.0, Humans in the Loop and MBRSC",
        truth="dubai-t3-p6-labels",
    ),
    Sample(
        name="dubai-t3-p6-labels",
        path="dubai/masks/t3_p6.png",
        sha256="62900f4597976bc75cf1e41b2ee2c332f63e24efc676f8b45745474f2832608a",
        kind="labels",
        licence="CC0-1.0, Humans in the Loop and MBRSC",
    ),
)
"""A truth raster has its own entry, so that it is checked by hash like every image."""


def catalogue() -> tuple[Sample, ...]:
    """Return every sample, images before their truth."""
    return _CATALOGUE


def fetch(sample: Sample | str, *, cache: Path | None = None) -> Fetched:
    """Find a sample on this machine or download it.

    Args:
        sample: its name in the catalogue, or a sample of your own.
        cache: where downloads are kept, `home()/samples` by default.

    Raises:
        DataError: the file in UNETPP_DATA is another one than the catalogue's: the folder is wrong or damaged, and
            quietly taking a download instead would hide that.
        ConfigError: there is no sample of this name.
    """
    wanted = _named(sample) if isinstance(sample, str) else sample
    data = os.environ.get(DATA_VARIABLE)
    there = Path(data) / wanted.path if data else None
    if there is not None and there.is_file():
        found = file_sha256(there)
        if found != wanted.sha256:
            raise DataError(f"{there}: SHA-256 is {found[:12]}..., not {wanted.sha256[:12]}...; restore or remove it")
        return Fetched(wanted, there)
    looked = f"not in {DATA_VARIABLE}={data}" if data else f"{DATA_VARIABLE} is not set"
    if wanted.url is None:
        return Fetched(wanted, None, f"{wanted.name}: {looked}, and it has no public address to download")
    path, problem = _download(wanted, wanted.url, cache or home() / "samples")
    return Fetched(wanted, path, f"{wanted.name}: {looked}, and {problem}" if problem else None)


def stained_tissue(folder: Path) -> Path:
    """Save the stained tissue that scikit-image carries as a TIFF without spacing and return its path.

    It is a 512 x 512 photograph of colonic glands, FHL2 protein in brown (DAB), nuclei counterstained in blue, acquired
    at the Center for Microscopy and Molecular Imaging, "no known copyright restrictions". It comes with the installed
    package; no network is used.

    Raises:
        ImageNotFoundError: this scikit-image does not carry it.
    """
    import numpy as np
    import skimage
    import tifffile
    from PIL import Image

    source = Path(skimage.__file__).parent / "data" / "ihc.png"
    if not source.is_file():
        raise ImageNotFoundError(f"{source} is not part of this scikit-image; install scikit-image >= 0.25")
    path = folder / "stained_tissue.tif"
    if path.is_file():  # the same file, with its time, so that a second demo recognises what it has segmented
        return path
    note = "Colonic glands, FHL2 immunohistochemistry (DAB) with hematoxylin; CMMI, by way of scikit-image"
    part = path.with_suffix(".part")
    with output_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(source).convert("RGB"))
        tifffile.imwrite(part, pixels, photometric="rgb", compression="deflate", description=note, metadata=None)
        part.replace(path)
    return path


def synthetic_slide(folder: Path, *, side: int = 4096, seed: int = 7) -> Drawn:
    """Draw `synthetic_slide.tif` and `synthetic_slide_truth.tif`, unless this very slide is there already.

    The files keep their time then, so that a second demo recognises what it has segmented.
    """
    from unetpp.drawing import draw_slide
    from unetpp.drawing.slide import description

    drawn = Drawn(folder / "synthetic_slide.tif", folder / "synthetic_slide_truth.tif")
    if not _is_there(drawn, description(side, seed)):
        draw_slide(drawn.path, drawn.truth, side=side, seed=seed)
    return drawn


def synthetic_scene(folder: Path, *, side: int = 2048, seed: int = 7) -> Drawn:
    """Draw `synthetic_scene.tif` and `synthetic_scene_truth.tif`, unless this very scene is there already."""
    from unetpp.drawing import draw_scene
    from unetpp.drawing.scene import description

    drawn = Drawn(folder / "synthetic_scene.tif", folder / "synthetic_scene_truth.tif")
    if not _is_there(drawn, description(side, seed)):
        draw_scene(drawn.path, drawn.truth, side=side, seed=seed)
    return drawn


def _is_there(drawn: Drawn, note: str) -> bool:
    """Say whether both files exist and the image is the one that `note` describes; else make their folder."""
    import tifffile

    with output_errors(drawn.path):
        drawn.path.parent.mkdir(parents=True, exist_ok=True)
    if not (drawn.path.is_file() and drawn.truth.is_file()):
        return False
    try:
        with tifffile.TiffFile(drawn.path) as file:
            return bool(file.pages.first.description == note)
    except (OSError, tifffile.TiffFileError):
        return False


def _named(name: str) -> Sample:
    for sample in _CATALOGUE:
        if sample.name == name:
            return sample
    raise ConfigError(f"no sample {name!r}; samples: {', '.join(sample.name for sample in _CATALOGUE)}")


def _download(sample: Sample, url: str, cache: Path) -> tuple[Path | None, str | None]:
    """Return the file in the cache, downloaded when it is not there intact, or why it could not be had."""
    import pooch
    import requests
    import urllib3

    name = Path(sample.path).name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        pooch.get_logger().setLevel("ERROR")
        path = pooch.retrieve(url, f"sha256:{sample.sha256}", fname=name, path=cache, downloader=_transfer)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return None, f"downloading {url} failed: {_short(error)}"
    except ValueError:  # pooch's word for another hash; it has deleted the file
        return None, f"what {url} sent is not the expected file (SHA-256 differs)"
    return Path(path), None


def _transfer(url: str, output_file: str, _pooch: Any) -> None:
    """Stream a URL into a file; a server that stalls or trickles is given up after a fixed time."""
    import requests

    deadline = time.monotonic() + _TOTAL_SECONDS
    with requests.get(url, stream=True, timeout=(_CONNECT_SECONDS, _CONNECT_SECONDS)) as answer:
        answer.raise_for_status()
        with Path(output_file).open("wb") as file:
            while piece := answer.raw.read1(65536):  # what is there now; `iter_content` would wait for a full piece
                file.write(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {_TOTAL_SECONDS:g} s")


def _short(error: BaseException) -> str:
    """Return the innermost reason of a network error in one line."""
    reason: Any = error
    while getattr(reason, "args", None) and isinstance(getattr(reason.args[0], "reason", None), BaseException):
        reason = reason.args[0].reason
    return " ".join(str(reason).split())[:160] or type(error).__name__
