"""Which image formats a test proves and which only should work; opens nothing.

A proven format names its test, which carries the mark `proves("<name>")`; tests/unetpp/io/test_formats.py holds both
lists equal, so neither can claim what the other does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Remote = Literal["ranges", "staged", "no"]


@dataclass(frozen=True)
class Format:
    """One format: who reads it, how it is read from afar, and the test below tests/unetpp/io that proves it, or ""."""

    name: str
    reader: str
    remote: Remote
    proof: str = ""


FORMATS = (
    Format("Aperio SVS", "openslide", "ranges", "test_openslide.py::test_level_0_equals_openslide"),
    Format("tiled RGB TIFF pyramid", "openslide", "ranges", "test_openslide.py::test_level_0_equals_openslide"),
    Format("DICOM whole slide", "openslide", "no", "test_dicom.py::test_every_level_has_the_pixels_of_its_tiles"),
    Format("Hamamatsu NDPI", "openslide", "staged"),
    Format("Hamamatsu VMS, VMU", "openslide", "no"),
    Format("3DHISTECH MRXS", "openslide", "no"),
    Format("Leica SCN", "openslide", "staged"),
    Format("Ventana BIF", "openslide", "staged"),
    Format("Philips TIFF", "openslide", "staged"),
    Format("Sakura SVSLIDE", "openslide", "staged"),
    Format("Trestle TIFF", "openslide", "staged"),
    Format("Zeiss CZI", "openslide", "staged"),
    Format("GeoTIFF, COG", "rasterio", "ranges", "test_geotiff.py::test_every_level_equals_rasterio"),
    Format("JPEG 2000", "rasterio", "staged", "test_geotiff.py::test_jpeg_2000_equals_other_decoders"),
    Format("VRT of local files", "rasterio", "no", "test_bands.py::test_a_vrt_stacks_its_files"),
    Format("OME-TIFF", "tifffile", "ranges", "test_plain.py::test_ome_spacing_and_nan"),
    Format("other TIFF", "tifffile", "ranges", "test_plain.py::test_pyramidal_tiff_equals_tifffile"),
    Format("PNG, JPEG", "pillow", "staged", "test_plain.py::test_real_photos_equal_pillow"),
    Format("BMP", "pillow", "staged", "test_plain.py::test_grey_becomes_rgb"),
    Format("WebP", "pillow", "staged"),
    Format("OME-Zarr 0.4 and 0.5", "zarr", "ranges", "test_zarr.py::test_ome_zarr_is_read_pixel_for_pixel"),
    Format("Zarr v2 and v3 arrays", "zarr", "ranges", "test_zarr.py::test_plain_array_in_every_axis_order"),
    Format(
        "xarray's Zarr with CRS",
        "zarr",
        "ranges",
        "test_cf.py::test_what_rioxarray_writes_is_read_as_rioxarray_reads_it",
    ),
    Format(
        "mosaics (.mosaic.toml)",
        "unetpp",
        "no",
        "test_mosaic.py::test_overlaps_follow_the_rule_and_nodata_never_wins",
    ),
    Format(
        "bands of several files (.bands.toml)",
        "unetpp",
        "no",
        "test_bands.py::test_bands_of_several_files_scaled_and_named",
    ),
    Format(
        "bands of STAC items (.bands.toml)",
        "unetpp",
        "no",
        "test_bands.py::test_each_item_of_a_collection_is_an_image",
    ),
    Format("frames of videos", "pyav", "no", "test_video.py::test_lossless_frames_come_back_bit_for_bit"),
    Format("at s3://", "obstore", "ranges", "test_remote_image.py::test_remote_equals_local_under_faults"),
    Format(
        "at http://, https://",
        "obstore",
        "ranges",
        "test_remote_image.py::test_remote_equals_local_under_faults",
    ),
    Format("at gs://", "obstore", "ranges"),
)
