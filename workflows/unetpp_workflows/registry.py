"""Where models live: an MLflow registry, a package folder or the installation; knows no images and runs no model.

`segment` takes from a registry only the package's files (safetensors and JSON) and checks their digest; the code that
MLflow stores beside them is for `mlflow models serve` and is never run here.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetpp.errors import ConfigError, ModelNotFoundError, ModelPackageError, PromotionError, RegistryError
from unetpp.home import home
from unetpp.package import CARD, SPEC, WEIGHTS, bundled_names, bundled_package, load_package
from unetpp_workflows.logged_model import DIGEST_TAG, create_version
from unetpp_workflows.mlflow_store import (
    import_mlflow,
    init_store,
    locked,
    made_elsewhere,
    quoted,
    registry_errors,
    shown,
    store_uri,
)

CHAMPION, PREVIOUS = "champion", "previous"
LOCK_MARK = ".unetpp-lock."
"""In the name of a registered model that is no model but a lock; see `unetpp_workflows.registry_lock`."""
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class ResolvedModel:
    """A model reference turned into files.

    Attributes:
        folder: package folder on this machine.
        name: the model's name.
        version: registry version, None outside a registry.
        alias: the alias it was asked by, if it was.
        uri: the reference with the alias replaced by the version it meant: `models:/nuclei/3`, `bundled:nuclei`, or
            the folder as given.
        digest: of weights and `model.json`.
    """

    folder: Path
    name: str
    version: str | None
    alias: str | None
    uri: str
    digest: str

    def reference(self) -> dict[str, str | None]:
        """Return what a result says about its model."""
        return {"name": self.name, "version": self.version, "digest": self.digest, "uri": self.uri}


@dataclass(frozen=True)
class RegisteredVersion:
    """One row of the registry's listing."""

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]


def register_package(
    folder: Path | str,
    name: str | None = None,
    *,
    alias: str | None = None,
    tracking_uri: str | None = None,
    run_id: str | None = None,
) -> str:
    """Put a package into the registry and return its version; weights already there keep the version they have.

    Args:
        folder: package folder; it must load, a broken one is refused before anything is written.
        name: registered name, by default the package's own.
        alias: set on the version, whether new or found; `champion` only where no other version is it.
        tracking_uri: MLflow store, see `store_uri`.
        run_id: the run that trained it.

    Raises:
        ConfigError: the alias is none that can be given, see `set_alias`; nothing was registered.
        PromotionError: another version is the champion; nothing was registered.
    """
    _check_name(alias)
    package = load_package(folder)
    package.load_model()
    name = name or package.spec.name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"model name {name!r}: use letters, digits, _ and -")
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    with locked(uri), registry_errors(uri):
        same = client.search_model_versions(f"name = {quoted(name)} and tags.`{DIGEST_TAG}` = '{package.digest}'")
        if same:
            version = str(max(int(row.version) for row in same))
            _refuse_second_champion(client, name, alias, version)
        else:
            _refuse_second_champion(client, name, alias, None)
            if name not in _names(client):
                with made_elsewhere():
                    client.create_registered_model(name)
            version = create_version(client, uri, package, name, run_id)
    if alias:
        set_alias(name, alias, version, tracking_uri=uri)
    return version


def set_alias(name: str, alias: str, version: str, *, tracking_uri: str | None = None) -> None:
    """Point `models:/name@alias` at a version.

    Raises:
        ConfigError: MLflow or unetpp keeps that alias for itself; `previous` is the way back from a promotion.
        ModelNotFoundError: there is no such version.
        PromotionError: the alias is `champion` and another version has it: that one is replaced by `promote` only.
    """
    from unetpp_workflows.registry_lock import RegistryLock

    _check_name(alias)
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    with registry_errors(uri):
        model = _registered(client, uri, name)
        _version(client, model, str(version))
        if alias != CHAMPION:
            client.set_registered_model_alias(name, alias, str(version))
        elif dict(model.aliases).get(CHAMPION) != str(version):
            with RegistryLock(client, uri, name) as lock:
                _refuse_second_champion(client, name, alias, str(version))
                lock.check()
                client.set_registered_model_alias(name, alias, str(version))


def check_alias(name: str, alias: str | None, *, tracking_uri: str | None = None) -> None:
    """Raise what `set_alias` would if a new version of `name` were given the alias; for long work's beginning."""
    _check_name(alias)
    if alias == CHAMPION:
        uri = store_uri(tracking_uri)
        client = init_store(uri)
        with registry_errors(uri):
            _refuse_second_champion(client, name, alias, None)


def resolve(reference: str | Path, *, tracking_uri: str | None = None, cache: Path | None = None) -> ResolvedModel:
    """Turn a model reference into a package folder on this machine.

    Args:
        reference: `models:/name@alias`, `models:/name/3`, the name of a bundled model, or a package folder. A bundled
            name wins over a folder of the same name in the working folder; write `./nuclei` for the folder.
        tracking_uri: MLflow store, see `store_uri`; not touched for folders and bundled models.
        cache: where registry packages are kept, `home()/models` by default, one folder per digest.

    Raises:
        ModelNotFoundError: nothing has that name, alias or version; the message lists what there is.
        ModelPackageError: the registry's files are not the ones that were registered.
    """
    text = str(reference)
    if text.startswith("models:"):
        return _resolve_registered(text, store_uri(tracking_uri), cache)
    if text in bundled_names():
        package = load_package(bundled_package(text))
        return ResolvedModel(package.folder, package.spec.name, None, None, f"bundled:{text}", package.digest)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        hint = f"; did you mean models:/{text}" if re.fullmatch(r"[\w-]+@[\w-]+", text) else ""
        raise ModelNotFoundError(
            f"no model {text!r}: no such folder, and bundled models are {', '.join(bundled_names()) or 'none'}; "
            f"registered models are written models:/name@alias or models:/name/3{hint}"
        )
    package = load_package(folder)
    return ResolvedModel(folder, package.spec.name, None, None, text, package.digest)


def list_models(*, tracking_uri: str | None = None) -> list[RegisteredVersion]:
    """List every registered version with its aliases, by name, newest version first."""
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    rows: list[RegisteredVersion] = []
    with registry_errors(uri):
        for name in sorted(_names(client)):
            # search_model_versions leaves `aliases` empty; only the registered model itself knows them.
            aliases = dict(client.get_registered_model(name).aliases)
            found = sorted(client.search_model_versions(f"name = {quoted(name)}"), key=lambda row: -int(row.version))
            for row in found:
                mine = tuple(sorted(a for a, version in aliases.items() if str(version) == str(row.version)))
                rows.append(RegisteredVersion(name, str(row.version), mine, dict(row.tags)))
    return rows


def aliases_of(client: Any, uri: str, name: str) -> dict[str, str]:
    """Return a registered model's aliases with their versions; raises `ModelNotFoundError`."""
    with registry_errors(uri):
        return {str(alias): str(version) for alias, version in dict(_registered(client, uri, name).aliases).items()}


def version_of(client: Any, uri: str, name: str, version: str | None) -> str:
    """Return the version if it exists, or the newest one for None; raises `ModelNotFoundError`."""
    with registry_errors(uri):
        model = _registered(client, uri, name)
        if version is not None:
            return str(_version(client, model, str(version)).version)
        found = [int(row.version) for row in client.search_model_versions(f"name = {quoted(name)}")]
    if not found:
        raise ModelNotFoundError(f"model {name!r} has no version; register one with `unetpp models register FOLDER`")
    return str(max(found))


def read_card(model: ResolvedModel, *, tracking_uri: str | None = None) -> str:
    """Return the text of a model's card, "" where it has none.

    Raises:
        RegistryError: the registry does not answer, or its artifacts cannot be read.
    """
    if model.version is None:
        path = model.folder / CARD
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    uri = store_uri(tracking_uri)
    client, mlflow = init_store(uri), import_mlflow()
    with registry_errors(uri), tempfile.TemporaryDirectory(prefix="unetpp-") as scratch:
        package = f"{client.get_model_version_download_uri(model.name, model.version)}/artifacts/package"
        listed = mlflow.artifacts.list_artifacts(artifact_uri=package, tracking_uri=uri)
        names = {file.path.rpartition("/")[2] for file in listed or []}
        if SPEC not in names:
            raise RegistryError(
                f"{model.uri}: nothing lies at {shown(package)}; the artifact store is away or has lost it"
            )
        if CARD not in names:
            return ""  # it was registered without one
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{package}/{CARD}", dst_path=scratch, tracking_uri=uri
        )
        return Path(found).read_text(encoding="utf-8")


def model_id(name: str, version: str, client: Any) -> str | None:
    """Return the id of the logged model behind a registered version, or None where it has none."""
    match = re.fullmatch(r"models:/(m-[0-9a-z]+)", client.get_model_version(name, version).source or "")
    return match[1] if match else None


def _resolve_registered(reference: str, uri: str, cache: Path | None) -> ResolvedModel:
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise ModelNotFoundError(f"model reference {reference!r}: write models:/name@alias or models:/name/3")
    name, alias = match["name"], match["alias"]
    client = init_store(uri)
    with registry_errors(uri):
        model = _registered(client, uri, name)
        version = match["version"] or dict(model.aliases).get(alias)
        if version is None:
            there = ", ".join(f"{a} -> {v}" for a, v in sorted(dict(model.aliases).items())) or "none"
            raise ModelNotFoundError(
                f"model {name!r} has no alias {alias!r}; aliases: {there}; set one with `models register`"
            )
        row = _version(client, model, str(version))
        digest = row.tags.get(DIGEST_TAG)
        if not digest:
            raise ModelPackageError(
                f"{reference} is not a unetpp package (no tag {DIGEST_TAG}); register it with `unetpp models register`"
            )
        folder = _fetch_package(client, uri, row, digest, cache or home() / "models")
    return ResolvedModel(folder, name, str(row.version), alias, f"models:/{name}/{row.version}", digest)


def _fetch_package(client: Any, uri: str, row: Any, digest: str, cache: Path) -> Path:
    """Copy the package's files to `cache`/digest unless they are there intact; never anything else of the model."""
    folder = cache / digest[:32]
    if _intact(folder, digest):
        return folder
    mlflow = import_mlflow()
    source = client.get_model_version_download_uri(row.name, row.version)
    wanted = f"models:/{row.name}/{row.version}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(uri), tempfile.TemporaryDirectory(prefix=".part-", dir=cache) as scratch:
        package = Path(scratch) / "package"
        for part in (WEIGHTS, SPEC):
            try:
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source}/artifacts/package/{part}", dst_path=str(package), tracking_uri=uri
                )
            except (OSError, mlflow.exceptions.MlflowException) as error:
                raise ModelPackageError(
                    f"{wanted}: {part} cannot be read from {shown(source)}; the artifact store is away or has lost it"
                ) from error
        if not _intact(package, digest):
            raise ModelPackageError(
                f"{wanted}: the stored files do not have the registered digest {digest[:12]}...; delete this version"
            )
        shutil.rmtree(folder, ignore_errors=True)
        package.rename(folder)
    return folder


def _intact(folder: Path, digest: str) -> bool:
    try:
        return load_package(folder).digest == digest
    except (ModelNotFoundError, ModelPackageError, OSError):
        return False


def _check_name(alias: str | None) -> None:
    if alias is None:
        return
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", alias) or re.fullmatch(r"v[0-9]+|latest", alias):
        raise ConfigError(f"alias {alias!r}: use letters, digits, _ and -, not v<number> or latest")
    if alias == PREVIOUS:
        raise ConfigError(
            f"alias {alias!r} is kept by promotions as the way back; move the champion with `unetpp promote`, "
            "`unetpp rollback --to VERSION` or `unetpp models alias NAME VERSION champion`"
        )


def _refuse_second_champion(client: Any, name: str, alias: str | None, version: str | None) -> None:
    """Only the gates, or a person by name, replace a champion; `version` None stands for one that is not there yet."""
    if alias != CHAMPION or name not in _names(client):
        return
    champion = dict(client.get_registered_model(name).aliases).get(CHAMPION)
    if champion is not None and str(champion) != version:
        raise PromotionError(
            f"version {champion} of {name!r} is @champion and is not replaced without gates: register with the alias "
            f"challenger, then run `unetpp promote {name}`; `unetpp models alias {name} VERSION champion` passes the "
            "gates by and records who did"
        )


def _names(client: Any) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        names += [str(model.name) for model in page if LOCK_MARK not in model.name]
        token = page.token
        if not token:
            return names


def _registered(client: Any, uri: str, name: str) -> Any:
    names = _names(client)
    if name not in names:
        bundled = f"the bundled one with `unetpp models register {name} --alias {CHAMPION}`"
        raise ModelNotFoundError(
            f"no model {name!r} in {shown(uri)}; registered: {', '.join(sorted(names)) or 'none'}; "
            f"add {bundled if name in bundled_names() else 'one with `unetpp models register FOLDER`'}"
        )
    return client.get_registered_model(name)


def _version(client: Any, model: Any, version: str) -> Any:
    found = client.search_model_versions(f"name = {quoted(model.name)}")
    for row in found:
        if str(row.version) == version:
            return row
    there = ", ".join(str(number) for number in sorted(int(row.version) for row in found)) or "none"
    raise ModelNotFoundError(f"model {model.name!r} has no version {version}; versions: {there}")
