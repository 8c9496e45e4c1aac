"""Remember which finishing steps of a job are done; knows products by path, size and hash, not what is in them.

    finalize/<step>.json   token, products, figures: written after the products, in one rename
    finalize/work/         unfinished products; emptied at the start of every run
    finalize/<token>.*     what an interrupted step left to go on with; gone when all steps are done

The token names the labels that a product was made from. A step counts as done when its marker has the token and every
product still has its size; `changed` also hashes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unetpp.durable import discard_folder, file_sha256, output_errors, sync, write_file

FOLDER, WORK = "finalize", "work"


@dataclass(frozen=True, slots=True)
class Product:
    """One file: path below the image's folder, bytes, SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Marker:
    """Record of one finished step."""

    step: str
    token: str
    products: tuple[Product, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


class Markers:
    """The markers of one image's folder for labels named by `token`."""

    def __init__(self, out: Path, token: str) -> None:
        self.out = out
        self.folder = out / FOLDER
        self.work = self.folder / WORK
        self.token = token

    def prepare(self) -> None:
        """Make the folder, empty its work folder, delete what other labels left to go on with. Raises `OutputError`."""
        with output_errors(self.folder):
            self._sweep(keep_own=True)
            self.work.mkdir(parents=True)
            sync(self.out)

    def clean(self) -> None:
        """Delete everything but the markers. Raises `OutputError`."""
        with output_errors(self.folder):
            self._sweep(keep_own=False)

    def own(self, name: str) -> Path:
        """Return the path of something that only a run for the same labels may go on with."""
        return self.folder / f"{self.token[:32]}.{name}"

    def _sweep(self, *, keep_own: bool) -> None:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            own = path.name.startswith(f"{self.token[:32]}.")
            if path.suffix == ".json" or (keep_own and own):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def done(self, step: str) -> Marker | None:
        """Return the step's marker where the step need not run again."""
        marker = _read(self.folder / f"{step}.json")
        if marker is None or marker.token != self.token:
            return None
        return marker if all(_size(self.out / p.path) == p.size for p in marker.products) else None

    def revoke(self, step: str, products: Iterable[str] = ()) -> None:
        """Forget a step and delete files that it may have left for other labels. Raises `OutputError`."""
        with output_errors(self.folder):
            (self.folder / f"{step}.json").unlink(missing_ok=True)
            for name in products:
                _delete(self.out / name)

    def keep(self, names: Iterable[str]) -> tuple[Product, ...]:
        """Move finished files and folders from the work folder into the image's. Raises `OutputError`.

        Returns:
            One product per file.
        """
        products = []
        with output_errors(self.out):
            for name in names:
                path = self.work / name
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        found = file.relative_to(self.work).as_posix()
                        products.append(Product(found, file.stat().st_size, file_sha256(file)))
                if path.is_dir():
                    _delete(self.out / name)
                path.replace(self.out / name)
            sync(self.out)
        return tuple(products)

    def write(self, step: str, products: Iterable[Product] = (), figures: Mapping[str, Any] | None = None) -> Marker:
        """Record a step as done; its products are on the disk already. Raises `OutputError`."""
        marker = Marker(step, self.token, tuple(products), figures or {})
        write_file(self.folder / f"{step}.json", (json.dumps(asdict(marker), indent=1) + "\n").encode())
        return marker


def changed(out: Path, steps: Iterable[str]) -> dict[str, str]:
    """Hash every product that a marker names; returns what is wrong by path, empty when all is well."""
    faults = {}
    for step in steps:
        marker = _read(out / FOLDER / f"{step}.json")
        for product in () if marker is None else marker.products:
            path = out / product.path
            if not path.is_file():
                faults[product.path] = "file is missing"
            elif file_sha256(path) != product.sha256:
                faults[product.path] = f"content changed: expected sha256 {product.sha256}"
    return faults


def _read(path: Path) -> Marker | None:
    try:
        values = json.loads(path.read_bytes())
        return Marker(**{**values, "products": tuple(Product(**product) for product in values["products"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _delete(path: Path) -> None:
    if path.is_dir():
        discard_folder(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
