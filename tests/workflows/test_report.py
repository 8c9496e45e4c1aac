"""The report page: complete, self-contained, escaped, and drawn from the picture and the labels only."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetpp.errors import StoreError
from unetpp.package import ClassInfo
from unetpp.store import LABELS, LabelStore
from unetpp.tiling import make_plan
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.report import (
    PICTURE,
    VALIDITY,
    area_text,
    crs_name,
    preview_labels,
    to_rgb,
    write_picture,
    write_report,
)

CLASSES = (
    ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
    ClassInfo(value=1, name="nucleus", color=(220, 20, 60)),
    ClassInfo(value=2, name="<b>odd</b>", color=(0, 90, 200)),
)
EVIL = "<script>alert('x')</script>"


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = make_plan(96, 128, halo=0, multiple=16, core=64)
    store = LabelStore.create(tmp_path, plan, _Grid(), CLASSES)  # type: ignore[arg-type]
    labels = np.zeros((96, 128), np.uint8)
    labels[10:20, 10:20], labels[40:60, 90:120], labels[:, :5] = 1, 2, 255
    for shard in plan.shards():
        store.write_shard(shard, labels[shard.box.slices()])
    picture = np.full((96, 128, 3), 150, np.uint8)
    write_picture(tmp_path / PICTURE, picture, np.ones((96, 128), bool))
    Image.fromarray((labels != 255).astype(np.uint8) * 255).save(tmp_path / VALIDITY)
    return tmp_path


class _Grid:
    spacing = crs = transform = None
    step_y = step_x = 1.0


def _record(**changes: object) -> ImageRecord:
    record = ImageRecord(
        name="slide 1",
        status="done",
        input={"uri": "/data/slide 1.svs", "kind": "slide", "format": "aperio", "bands": ["R", "G", "B"]},
        model={"name": "nuclei", "version": "3", "classes": [dataclasses.asdict(c) for c in CLASSES]},
        plan={"height": 96, "width": 128, "useful_share": 0.56},
        shards={"total": 4, "invalid": 0, "valid_px": 2_000_000},
        seconds={"shards": 2.0, "compute": 1.5},
        figures={
            "valid_px": 11_808,
            "classes": [
                {**dataclasses.asdict(c), "px": px, "area": px / 1e4, "unit": "mm2", "objects": objects}
                for c, px, objects in zip(CLASSES, (11_108, 100, 600), (None, 1, 1234), strict=True)
            ],
        },
        iou={"nucleus": 0.8765},
        outputs={"labels": LABELS},
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def test_the_page_tells_figures_run_and_model(folder: Path) -> None:
    page = _Page(write_report(folder, _record()).read_text())
    text = " ".join(page.words)
    for fact in ("0.01 mm²", "1,234", "0.876", "1.33 Mpx/s", "56.0%", "nuclei", "MLflow", "aperio"):
        assert fact in text, fact
    assert "shown turned" not in text
    assert "96 px · pixel size unknown" in text
    changes = {"grid": {"spacing": {"y": 1.0, "x": 1.0, "unit": "m"}}, "input": {"spacing_override": "0.3 m/px"}}
    text = " ".join(_Page(write_report(folder, _record(**changes)).read_text()).words)
    assert "96 px · 1 m/px" in text, "pixels of the result have the size that they have there"
    assert "pixel size given 0.3 m/px" in text
    turned = _record(input={**_record().input, "orientation": 6})
    assert "orientation 6, not applied" in " ".join(_Page(write_report(folder, turned).read_text()).words)


def test_the_page_loads_nothing_from_anywhere(folder: Path) -> None:
    text = write_report(folder, _record()).read_text()
    for tag, attributes in _Page(text).tags:
        if tag in ("img", "script", "link", "iframe", "object"):
            source = attributes.get("src") or attributes.get("href") or ""
            assert source.startswith("data:image/") or (tag == "script" and not source), (tag, source[:80])
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_every_text_is_escaped(folder: Path) -> None:
    record = _record(name=EVIL, message=EVIL, status="partial", config={"x": EVIL}, software={"y": EVIL})
    record = dataclasses.replace(record, input={**record.input, "uri": EVIL}, outputs={"labels": LABELS, EVIL: EVIL})
    page = _Page(write_report(folder, record).read_text())
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "b" for tag, _ in page.tags)
    assert page.words.count(EVIL) >= 5


def test_overlay_has_one_layer_per_class_that_occurs_in_its_colour_at_its_place(folder: Path) -> None:
    page = _Page(write_report(folder, _record()).read_text())
    layers = [attrs for tag, attrs in page.tags if tag == "img" and "layer" in (attrs.get("class") or "")]
    assert [attrs["alt"] for attrs in layers] == [
        "Pixels of class nucleus",
        "Pixels of class <b>odd</b>",
        "Pixels that were not segmented",
    ]
    nucleus = _decode(layers[0]["src"])
    assert tuple(nucleus[15, 15]) == (220, 20, 60, 255)
    assert (nucleus[..., 3] > 0).sum() == 100
    assert (_decode(layers[2]["src"])[..., 3] > 0).sum() == 5 * 96


def test_missing_files_leave_their_part_out(folder: Path) -> None:
    (folder / PICTURE).unlink()
    (folder / VALIDITY).unlink()
    record = ImageRecord(name="broken", status="failed", message="slide.svs: no mpp in metadata")
    text = write_report(folder, record).read_text()
    assert "no mpp in metadata" in text
    assert "<img" not in text


@pytest.mark.parametrize("victim", ["classes/0/c/0/0", "classes/0/zarr.json", "classes/zarr.json"])
def test_damaged_labels_leave_the_overlay_out_and_are_named(folder: Path, victim: str) -> None:
    path = folder / LABELS / victim
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match=r"labels\.ome\.zarr is damaged .*; run `unetpp verify --repair`") as error:
        write_report(folder, _record())
    assert "\n" not in str(error.value)
    page = _Page((folder / "report.html").read_text())
    assert any(word.startswith("No labels are drawn: ") for word in page.words) and "1,234" in page.words
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img" and "layer" in (attrs.get("class") or "")] == []
    assert any(attrs.get("alt") == "Picture of slide 1" for tag, attrs in page.tags if tag == "img")


def test_labels_larger_than_the_side_are_thinned(folder: Path) -> None:
    preview = preview_labels(folder / LABELS, side=40)
    assert preview is not None
    assert preview.shape == (24, 32)
    assert preview_labels(folder / "absent") is None


def test_other_sample_types_are_stretched_over_their_valid_values() -> None:
    pixels = np.linspace(1000, 3000, 400).reshape(20, 20, 1).astype(np.uint16)
    pixels[0, 0] = 60_000
    valid = np.ones((20, 20), bool)
    valid[0, 0] = False
    rgb = to_rgb(pixels, valid)
    assert rgb.shape == (20, 20, 3)
    assert (rgb[..., 0] == rgb[..., 2]).all()
    assert rgb[0, 1].max() <= 5
    assert rgb[-1, -1].min() >= 250
    assert to_rgb(np.full((2, 2, 1), np.nan, np.float32), np.ones((2, 2), bool)).max() == 0


def test_areas_have_units() -> None:
    assert area_text(12.3456, "mm2") == "12.35 mm²"
    assert area_text(82_140.2, "m2") == "82,140 m²"
    assert area_text(17, "px") == "17 px"


def _decode(uri: str | None) -> np.ndarray:
    assert uri is not None
    data = base64.b64decode(re.sub("^data:image/png;base64,", "", uri))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_a_crs_is_named_with_its_code_where_it_has_one() -> None:
    pyproj = pytest.importorskip("pyproj")
    for version in ("WKT1_GDAL", "WKT2_2019"):
        assert crs_name(pyproj.CRS(3857).to_wkt(version)) == "WGS 84 / Pseudo-Mercator (EPSG:3857)"
    assert crs_name('LOCAL_CS["somewhere"]') == "somewhere"
    assert crs_name(None) == "none"
