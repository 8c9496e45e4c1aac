"""Writes a DICOM whole-slide image by hand: one file per level, JPEG tiles, and a patient who must not be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

PATIENT = "Doe^Jane"
TILE = 256


def write_slide(folder: Path, levels: list[np.ndarray], spacing_um: float) -> list[np.ndarray]:
    """Write levels (H, W, 3) uint8 as `level0.dcm` ...; returns the pixels that the JPEG tiles decode to."""
    from pydicom.uid import generate_uid

    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    decoded = []
    for number, pixels in enumerate(levels):
        scale = levels[0].shape[0] / pixels.shape[0]
        tiles, truth = _tiles(pixels)
        dataset = _dataset(pixels.shape[:2], len(tiles), spacing_um * scale, number == 0)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        _save(dataset, tiles, folder / f"level{number}.dcm")
        decoded.append(truth)
    return decoded


def _tiles(pixels: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    height, width = pixels.shape[:2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.pad(pixels, ((0, rows * TILE - height), (0, columns * TILE - width), (0, 0)), mode="edge")
    tiles, truth = [], np.empty_like(padded)
    for y in range(0, rows * TILE, TILE):
        for x in range(0, columns * TILE, TILE):
            part = np.ascontiguousarray(padded[y : y + TILE, x : x + TILE])
            tiles.append(imagecodecs.jpeg8_encode(part, level=90, colorspace="RGB", outcolorspace="YCBCR"))
            truth[y : y + TILE, x : x + TILE] = imagecodecs.jpeg8_decode(tiles[-1])
    return tiles, truth[:height, :width]


def _dataset(shape: tuple[int, ...], frames: int, spacing_um: float, is_top: bool) -> Any:
    from pydicom.dataset import Dataset

    height, width = shape
    measures = Dataset()
    measures.PixelSpacing = [spacing_um / 1000, spacing_um / 1000]
    measures.SliceThickness = 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 0, 0
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    organization = Dataset()
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT, "4711", "19700101"
    dataset.ImageType = ["ORIGINAL" if is_top else "DERIVED", "PRIMARY", "VOLUME", "NONE" if is_top else "RESAMPLED"]
    dataset.Modality = "SM"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.Rows = dataset.Columns = TILE
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.NumberOfFrames = frames
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = width, height
    dataset.TotalPixelMatrixFocalPlanes = 1
    dataset.TotalPixelMatrixOriginSequence = [origin]
    dataset.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = width * spacing_um / 1000, height * spacing_um / 1000
    dataset.ImagedVolumeDepth = 0.001
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.DimensionOrganizationSequence = [organization]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.OpticalPathSequence = [path]
    dataset.NumberOfOpticalPaths = 1
    dataset.SpecimenLabelInImage, dataset.BurnedInAnnotation = "NO", "NO"
    dataset.LossyImageCompression = "01"
    return dataset


def _save(dataset: Any, tiles: list[bytes], path: Path) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    dataset.SOPClassUID, dataset.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = generate_uid()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.file_meta = meta
    dataset.PixelData = encapsulate(tiles)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
