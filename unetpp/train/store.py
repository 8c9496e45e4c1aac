"""Reads a training store that `unetpp prepare` wrote, as Zarr or as plain .npy files; knows patches, not image files.

    STORE.zarr/                  zarr.json: attributes.unetpp_training, see `PatchStore`
        pixels  (N, S, S, C)     the images' type; 0 where there is no data
        labels  (N, S, S)        uint8 class indices, 255 where a pixel does not count
        valid   (N, S, S)        bool, False where there is no data
        objects (N, S, S)        int32, unique within an image; only where labels tell objects apart
        image   (N,)             int32 index into the list of images
        box     (N, 4)           int32 y0, x0, y1, x1 on the image's training grid; what is outside is padding
        counts  (N, K)           int64 labelled pixels per class
        sizes   (shards, arrays) int64 bytes of every shard object: Zarr reads a lost one as fill values, silently

A folder that `export` writes holds the same arrays as NAME.npy and the attributes as store.json.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import StoreError, one_line
from unetpp.geometry import Box, Spacing
from unetpp.losses import IGNORE
from unetpp.missing import fill_values
from unetpp.package import ClassInfo
from unetpp.span import Span
from unetpp.train.source import Blocks, Crop, SourceImage

FORMAT = 1
ATTRIBUTES, DOCUMENT = "unetpp_training", "store.json"
PATCH_ARRAYS = ("pixels", "labels", "valid", "objects")
TABLES = ("image", "box", "counts")
_CACHE_BYTES = 2**26


class _Array(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class StoredImage:
    """One image of a store: `group` is what was not split, `stratum` what figures are given by.

    `picture` is the SHA-256 (hex) of the thumbnail of the whole image; "" where it does not tell images apart.
    `part`: labels count in a part of it only.
    """

    name: str
    group: str
    stratum: str
    split: str
    height: int
    width: int
    picture: str = ""
    part: bool = False


class PatchStore:
    """A finished training store.

    Attributes:
        classes: in the order of label indices. bands, dtype: of pixels. side: of a patch.
        mean, std: per band over the valid pixels of the training split.
        spacing: of one pixel on the ground; None where the images' differ or are unknown.
        frequencies: share of each class in the labelled pixels of the training split.
        fingerprint: SHA-256 (hex) of all content, whoever wrote it and wherever.
        images: of all splits. splits: their names.
        within_group: the splits are parts of one group, so figures on them are too good for anything else.
        guard: pixels without labels between such parts.
        fill: (C,) what pixels without data are read as: the store's mean, unless it was opened for a network that
            subtracts another one, see `filled`.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], arrays: Mapping[str, _Array]) -> None:
        self.path = path
        self.facts = facts
        self._arrays = arrays
        self.classes = tuple(ClassInfo(**{**c, "color": tuple(c["color"])}) for c in facts["classes"])
        self.bands: tuple[str, ...] = tuple(facts["bands"])
        self.dtype = str(facts["dtype"])
        self.side = int(facts["side"])
        self.mean: tuple[float, ...] = tuple(facts["mean"])
        self.std: tuple[float, ...] = tuple(facts["std"])
        self.spacing = Spacing(**facts["spacing"]) if facts["spacing"] else None
        self.frequencies: tuple[float, ...] = tuple(facts["frequencies"])
        self.fingerprint = str(facts["fingerprint"])
        self.within_group = bool(facts["within_group"])
        self.guard = int(facts["guard"])
        names = StoredImage.__dataclass_fields__
        self.images = tuple(StoredImage(**{k: v for k, v in i.items() if k in names}) for i in facts["images"])
        self.splits: tuple[str, ...] = tuple(facts["splits"])
        self.image, self.box, self.counts = (np.asarray(arrays[name][...], np.int64) for name in TABLES)
        self.fill = fill_values(self.mean, self.dtype)
        self._cache: OrderedDict[int, Crop] = OrderedDict()
        self._room = max(8, _CACHE_BYTES // (self.side**2 * (len(self.bands) * self.fill.itemsize + 1)))
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a .zarr store, or a folder of .npy files, which needs no zarr.

        Raises:
            StoreError: it is no training store, is not finished, is of another version, or lacks a shard.
        """
        path = Path(path)
        if not path.exists():
            raise StoreError(f"{path} is no training store: it does not exist; make one with unetpp prepare")
        if (path / DOCUMENT).is_file():
            return cls(path, *_exported(path))
        if not (path / "zarr.json").is_file():
            raise StoreError(f"{path} is no training store; make one with unetpp prepare")
        import zarr

        group = zarr.open_group(path, mode="r")
        found: Any = group.attrs.get(ATTRIBUTES)
        facts = _facts(path, found)
        tables: dict[str, Any] = {name: group[name] for name in (*TABLES, "sizes")}
        stored = [name for name in PATCH_ARRAYS if name in group]
        sizes = np.asarray(tables.pop("sizes")[...]).T
        shards = {name: _Shards(path / name, group[name], size) for name, size in zip(stored, sizes, strict=True)}
        return cls(path, facts, {**tables, **shards})

    def filled(self, mean: Sequence[float]) -> PatchStore:
        """Return the store as a network that subtracts `mean` (C,) is to see it: pixels without data are that mean."""
        other = PatchStore(self.path, self.facts, self._arrays)
        other.fill = fill_values(mean, self.dtype)
        return other

    def source(self, split: str) -> PatchSource:
        """Return the images of one split as training reads them; raises `StoreError` for a split without images."""
        if split not in self.splits:
            raise StoreError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}")
        return PatchSource(self, split)

    def patch(self, number: int) -> Crop:
        """Return a whole stored patch, its invalid and padded pixels at `fill`. Safe from several threads."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        found = self._decode(number)
        with self._lock:
            self._cache[number] = found
            while len(self._cache) > self._room:
                self._cache.popitem(last=False)
        return found

    def pixels(self, number: int) -> NDArray[Any]:
        """Return a patch's pixels as they are stored, invalid and padded ones 0."""
        return self._stored(number, ("pixels",))["pixels"]

    def _stored(self, number: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            return {name: np.asarray(self._arrays[name][number]) for name in names if name in self._arrays}
        except (ValueError, RuntimeError, OSError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StoreError(f"{self.path} is damaged at patch {number} ({why}); prepare it again") from error

    def _decode(self, number: int) -> Crop:
        parts = self._stored(number, PATCH_ARRAYS)
        pixels, valid = parts["pixels"], parts["valid"]
        if not valid.all():
            pixels = np.where(valid[..., None], pixels, self.fill)
        return Crop(pixels, parts["labels"], parts.get("objects"))

    def blank(self, height: int, width: int) -> Crop:
        """Return a crop without data or labels."""
        pixels = np.empty((height, width, len(self.bands)), self.dtype)
        pixels[...] = self.fill
        objects = np.zeros((height, width), np.int32) if "objects" in self._arrays else None
        return Crop(pixels, np.full((height, width), IGNORE, np.uint8), objects)


class _Shards:
    """One array of patches in the shards of a Zarr array: each patch is one chunk, found by the index at a shard's end.

    Reading them here takes a fifth of the time that zarr-python takes for one chunk. The layout is the one of the
    codec `sharding_indexed` of Zarr v3: 16 bytes per chunk, offset and length, and the index's checksum, 4 bytes. The
    bytes of a chunk carry a checksum of their own, which the decoder compares.

    Args:
        sizes: bytes of every shard object.

    Raises:
        StoreError: a shard is missing or cut short.
    """

    def __init__(self, path: Path, array: Any, sizes: NDArray[np.int64]) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.shards: tuple[int, ...] = tuple(array.shards)
        self._folder, self._rest = path / "c", "/".join(["0"] * (len(self.shape) - 1))
        self._sizes = sizes
        for shard, size in enumerate(sizes):
            file = self._file(shard)
            if not file.is_file() or file.stat().st_size != size:
                raise StoreError(f"{file} is missing or cut short; prepare the store again")

    def _file(self, shard: int) -> Path:
        return self._folder / str(shard) / self._rest

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return one patch by its number, or several by a slice."""
        if isinstance(key, slice):
            return np.stack([self._patch(number) for number in range(*key.indices(self.shape[0]))])
        return self._patch(int(key))

    def _patch(self, number: int) -> NDArray[Any]:
        from numcodecs.zstd import Zstd

        shard, position = divmod(number, self.shards[0])
        place = int(self._sizes[shard]) - 4 - 16 * (self.shards[0] - position)
        with self._file(shard).open("rb", buffering=0) as file:
            offset, length = struct.unpack("<QQ", os.pread(file.fileno(), 16, place))
            if offset + length > self._sizes[shard]:
                raise ValueError(f"the index of shard {shard} points outside it")
            content = Zstd().decode(os.pread(file.fileno(), length, offset))
        return np.frombuffer(content, self.dtype.newbyteorder("<")).reshape(self.shape[1:])


class PatchSource:
    """The images of one split of a store, as `unetpp.train.source.Source` has them; `side` is that of a patch.

    An image without a label is none of them: nothing is learnt from it or measured on it.
    """

    def __init__(self, store: PatchStore, split: str) -> None:
        self._store, self.side = store, store.side
        labels = set(store.image[store.counts.any(1)].tolist())
        numbers = [n for n, image in enumerate(store.images) if image.split == split and n in labels]
        chosen = [store.images[number] for number in numbers]
        self.images: Sequence[SourceImage] = tuple(
            SourceImage(i.name, i.group, i.stratum, i.height, i.width, i.picture, i.part) for i in chosen
        )
        self.span = Span.of(store.dtype, store.mean, store.std)
        self.fingerprint = str(store.facts["splits"][split]["fingerprint"])
        position = np.full(len(store.images), -1)
        position[numbers] = np.arange(len(numbers))
        mine = np.flatnonzero(position[store.image] >= 0)
        # Which patch lies at (row, column) of each image's grid of patches; -1 where none is stored.
        self._grids = [
            np.full((-(-i.height // self.side), -(-i.width // self.side)), -1, np.int64) for i in self.images
        ]
        for number in mine:
            row, col = store.box[number, :2] // self.side
            self._grids[position[store.image[number]]][row, col] = number
        self._labelled = labelled = mine[store.counts[mine].any(1)]
        self.blocks = Blocks(position[store.image[labelled]], store.box[labelled], store.counts[labelled])

    def surrounded(self, reach: int) -> bool:
        """Say whether all pixels of the images up to `reach` pixels around labelled blocks are stored.

        What a network with that halo predicts there is then what it predicts of the whole images.
        """
        rings = -(-reach // self.side)
        missing = [grid < 0 for grid in self._grids]
        for image, (y0, x0, *_) in zip(self.blocks.image, self.blocks.box, strict=True):
            row, col = y0 // self.side, x0 // self.side
            near = slice(max(0, row - rings), row + rings + 1), slice(max(0, col - rings), col + rings + 1)
            if missing[image][near].any():
                return False
        return True

    def content(self, block: int) -> NDArray[Any]:
        """See `Source`."""
        height, width = Box(*map(int, self.blocks.box[block])).shape
        return self._store.pixels(int(self._labelled[block]))[:height, :width]

    def read(self, image: int, box: Box) -> Crop:
        """Return a box that lies inside the image; where nothing is stored, labels are 255 and pixels the fill."""
        side, grid = self.side, self._grids[image]
        rows = range(box.y0 // side, -(-box.y1 // side))
        cols = range(box.x0 // side, -(-box.x1 // side))
        if len(rows) == len(cols) == 1 and grid[rows[0], cols[0]] >= 0:
            return _cut(self._store.patch(int(grid[rows[0], cols[0]])), box.shift(-rows[0] * side, -cols[0] * side))
        crop = self._store.blank(*box.shape)
        for row in rows:
            for col in cols:
                number = int(grid[row, col])
                if number >= 0:
                    place = Box(row * side, col * side, (row + 1) * side, (col + 1) * side)
                    part = box.intersect(place)
                    _paste(crop, part.slices(box), self._store.patch(number), part.slices(place))
        return crop


def export(store: str | Path, folder: str | Path) -> Path:
    """Write a store's arrays into `folder` as .npy files, for machines without zarr; returns the folder.

    Raises:
        StoreError: the store is not finished. OutputError: the folder cannot be written.
    """
    from unetpp.durable import output_errors, sync, write_file

    found, folder = PatchStore.open(store), Path(folder)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DOCUMENT).unlink(missing_ok=True)
        for name in (*PATCH_ARRAYS, *TABLES):
            if name not in found._arrays:
                continue
            source, path = found._arrays[name], folder / f"{name}.npy"
            target = np.lib.format.open_memmap(path, "w+", getattr(source, "dtype", None), source.shape)
            step = getattr(source, "shards", None) or source.shape
            for start in range(0, source.shape[0], max(1, step[0])):
                target[start : start + step[0]] = source[start : start + step[0]]
            target.flush()
            del target
            sync(path)
    write_file(folder / DOCUMENT, json.dumps(found.facts, indent=1).encode())
    return folder


def _exported(path: Path) -> tuple[Mapping[str, Any], dict[str, _Array]]:
    """Return the attributes and arrays of a folder that `export` wrote; raises `StoreError` where it is not whole."""
    try:
        facts = _facts(path, json.loads((path / DOCUMENT).read_bytes()))
        names = [name for name in (*PATCH_ARRAYS, *TABLES) if name != "objects" or facts["objects"]]
        return facts, {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except FileNotFoundError as error:
        raise StoreError(f"{path} lacks {Path(error.filename).name}; export the store again") from None
    except (ValueError, EOFError, OSError) as error:
        raise StoreError(f"{path} is damaged ({one_line(error)}); copy it, or export the store, again") from error


def _cut(crop: Crop, box: Box) -> Crop:
    part = box.slices()
    objects = None if crop.objects is None else crop.objects[part].copy()
    return Crop(crop.pixels[part].copy(), crop.labels[part].copy(), objects)


def _paste(crop: Crop, place: tuple[slice, slice], patch: Crop, part: tuple[slice, slice]) -> None:
    crop.pixels[place] = patch.pixels[part]
    crop.labels[place] = patch.labels[part]
    if crop.objects is not None and patch.objects is not None:
        crop.objects[place] = patch.objects[part]


def _facts(path: Path, found: Any) -> Mapping[str, Any]:
    if not isinstance(found, dict) or "format" not in found:
        raise StoreError(f"{path} is no training store; make one with unetpp prepare")
    if found["format"] != FORMAT:
        raise StoreError(f"{path} has format {found['format']}, this version reads {FORMAT}; prepare it again")
    if not found.get("complete"):
        raise StoreError(f"{path} is not finished; run the same unetpp prepare again")
    return found
