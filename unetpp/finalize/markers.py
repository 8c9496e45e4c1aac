"""Remember which finishing steps of a job are done; knows products by path, size and hash, not what is in them.

    finalize/<step>.json   token, products, figures: written in one rename when the products are whole
    finalize/work/         unfinished products; emptied at the start of every run
    finalize/<token>.*     what an interrupted step left to go on with; gone when all steps are done

The token names the labels that a product was made from. A step counts as done when its marker has the token and every
product still has its size; `changed` also hashes them.

A product is named by its marker from before it leaves the work folder until after it is deleted. So a file of that name
without a marker is somebody else's: it is never deleted and never written over.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from unetpp.durable import discard_folder, file_sha256, output_errors, sync, write_file
from unetpp.errors import StoreError

FOLDER, WORK = "finalize", "work"
_UNFINISHED = re.compile(r"[0-9a-f]{32}\..+|\..+\.(tmp|discarded)")


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
        """Delete everything that is not finished. Raises `OutputError`."""
        with output_errors(self.folder):
            self._sweep(keep_own=False)

    def remove(self) -> None:
        """Delete the folder of revoked markers, but for what others put there. Raises `OutputError`."""
        self.clean()
        with output_errors(self.folder):
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def own(self, name: str) -> Path:
        """Return the path of something that only a run for the same labels may go on with."""
        return self.folder / f"{self.token[:32]}.{name}"

    def _sweep(self, *, keep_own: bool) -> None:
        for path in unfinished(self.folder):
            if keep_own and path.name.startswith(f"{self.token[:32]}."):
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

    def refuse_foreign(self, step: str, names: Iterable[str]) -> None:
        """Raise `StoreError` where something has the name of the step's product that no run of ours made."""
        for name in names:
            path = self.out / name
            if path.exists() and name not in self._named(step):
                raise StoreError(f"{path} exists and was not made by this job; move it away and run the same again")

    def revoke(self, step: str, products: Iterable[str] = ()) -> None:
        """Forget a step and delete those of `products` that its marker names. Raises `OutputError`."""
        with output_errors(self.folder):
            for name in self._named(step) & set(products):
                _delete(self.out / name)
                sync(self.out)
            (self.folder / f"{step}.json").unlink(missing_ok=True)

    def keep(
        self,
        step: str,
        names: Iterable[str],
        figures: Mapping[str, Any] | None = None,
        digests: Mapping[str, str | None] | None = None,
    ) -> None:
        """Record a step as done and move its files and folders from the work folder into the image's.

        Args:
            digests: SHA-256 (hex) of files by name; the others are read once more.

        Raises:
            OutputError: they cannot be written.
        """
        paths = [self.work / name for name in names]
        with output_errors(self.out):
            files = [(file, file.relative_to(self.work).as_posix()) for path in paths for file in _files(path)]
            known = digests or {}
            products = [
                Product(name, file.stat().st_size, known.get(name) or file_sha256(file)) for file, name in files
            ]
            # Until they are moved no product has its size, and the step is not done.
            self.write(step, products, figures)
            for path in paths:
                path.replace(self.out / path.name)
            sync(self.out)

    def write(self, step: str, products: Iterable[Product] = (), figures: Mapping[str, Any] | None = None) -> None:
        """Record a step as done; its products are on the disk already. Raises `OutputError`."""
        marker = Marker(step, self.token, tuple(products), figures or {})
        write_file(self.folder / f"{step}.json", (json.dumps(asdict(marker), indent=1) + "\n").encode())

    def _named(self, step: str) -> set[str]:
        """Return the names in the image's folder that hold the step's products, whatever labels they are of."""
        marker = _read(self.folder / f"{step}.json")
        return set() if marker is None else {PurePosixPath(product.path).parts[0] for product in marker.products}


def unfinished(folder: Path) -> Iterator[Path]:
    """Yield what runs leave in the folder of markers until they end, and dead ones for good."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == WORK or _UNFINISHED.fullmatch(path.name):
            yield path


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


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _delete(path: Path) -> None:
    if path.is_dir():
        discard_folder(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
