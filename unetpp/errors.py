"""Every error a user of unetpp can meet; knows meanings and nothing about where they are raised.

Each class is a `UnetppError` and the builtin it refines, so callers may catch either. A message is one line:
what is wrong, the value, and what to do.
"""


class UnetppError(Exception):
    """Any error that unetpp raises on purpose."""


class ImageNotFoundError(UnetppError, FileNotFoundError):
    """The image's path or URI does not exist."""


class ImageFormatError(UnetppError, ValueError):
    """No reader knows this file, or its layout is one we refuse."""


class CorruptImageError(UnetppError, OSError):
    """The file opened, but some of its bytes do not decode."""


class RemoteError(UnetppError, ConnectionError):
    """A remote store refuses, or gives no complete answer however often it is asked."""


class ImageTooLargeError(UnetppError, ValueError):
    """A format that must be decoded whole is larger than memory safely allows."""


class SpacingError(UnetppError, ValueError):
    """The physical size of a pixel is unknown or makes no sense, and the model needs it."""


class BandsError(UnetppError, ValueError):
    """The image's bands or sample type are not the ones the model was trained on."""


class MaskError(UnetppError, ValueError):
    """The user's validity mask does not fit the image."""


class RegionError(UnetppError, ValueError):
    """A region that does not read, has no place in the image's CRS or misses the image."""


class PlanError(UnetppError, ValueError):
    """Tile, halo or shard sizes that cannot tile the image exactly."""


class ArchitectureError(UnetppError, ValueError):
    """A network configuration that cannot be built."""


class ShapeError(UnetppError, ValueError):
    """A tensor or array whose shape the callee cannot take."""


class ModelPackageError(UnetppError, ValueError):
    """A model package folder that is incomplete, inconsistent or unsafe."""


class ModelNotFoundError(UnetppError, LookupError):
    """A model reference that names nothing in the registry or on disk."""


class RegistryError(UnetppError, RuntimeError):
    """The MLflow store does not answer, or its database is damaged or from another version."""


class PromotionError(UnetppError, RuntimeError):
    """An alias that must not be moved now: another promotion is at work, or moved it meanwhile, or it is in use."""


class EngineError(UnetppError, RuntimeError):
    """An inference engine that is not available, or failed to run."""


class StoreError(UnetppError, RuntimeError):
    """An output store that is damaged or belongs to another run."""


class VersionError(StoreError):
    """A file of an output that another version of unetpp wrote: not damaged, and not ours to mend."""


class OutputError(UnetppError, OSError):
    """The output could not be written: disk full, permission, or a path outside the output folder."""


class ConfigError(UnetppError, ValueError):
    """A configuration key or value that is unknown or out of range."""


class DataError(UnetppError, ValueError):
    """Training images and labels that do not fit together."""


class TrainingError(UnetppError, ArithmeticError):
    """A training that cannot go on: its loss or gradient is no number any more, or a step needs too much memory."""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, with its type where the error is not one of ours."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return first if isinstance(error, UnetppError) else f"{type(error).__name__}: {first}"
