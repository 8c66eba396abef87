"""A release as a package that Ray's workers can download, where it is stored, and its runtime environment."""

import hashlib
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared.messages import JsonObject
from worker.per_process import RecentlyUsed
from worker.plugins import store
from worker.plugins.errors import (
    PluginHostUnavailableError,
    RayDriverError,
    ReleaseChangedError,
    ReleaseInvalidError,
)
from worker.plugins.ray_driver import RayConnection, operations
from worker.plugins.requirements import installation
from worker.plugins.run_end import held
from worker.plugins.store import Release


def runtime_env(release: Release, package: str, env: dict[str, str]) -> JsonObject:
    """The `runtime_env` of config.yaml with the release's package, requirements and environment added."""
    declared = dict(release.config.runtime_env)
    variables = declared.pop("env_vars", None) or {}
    installs = installation(release.path, release.config)
    return {**declared, **installs, "working_dir": package, "env_vars": {**variables, **env}}


SCHEME = "gcs://"
"""Of the packages in Ray's own store."""
RECHECK_SECONDS = 60
"""Ray deletes a package that nothing refers to after ten minutes; each check keeps it for ten more."""
KEEP_TIMEOUT_SECONDS = 30.0
HANG_MARGIN_SECONDS = 15.0
MIN_UPLOAD_TIMEOUT_SECONDS = 30.0
MIN_UPLOAD_BYTES_PER_SECOND = 4_000_000

TOO_LARGE = "exceeds the maximum size"
"""In Ray's error for a package over its limit, which is the cluster's `RAY_max_grpc_message_size`."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_TEMPORARY = "synapse-package-"
"""Begins the names of packages that are being stored, before the number of the process."""
_MARKER = ".synapse-worker-package"
"""Two such entries at the top of a package: Ray drops the top folder of a `file://` package with only one."""


@dataclass(frozen=True)
class Package:
    """A release's files as a zip, whose bytes depend only on names and contents, and their checksum."""

    path: Path
    checksum: str

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.path.stat().st_size

    def hexdigest(self, algorithm: str) -> str:
        """The digest of the zip."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def zipped(root: Path) -> Iterator[Package]:
    """A package of the files in `root`, in a temporary file, as it may be larger than the free memory."""
    digest = store.ReleaseDigest()
    _remove_packages_of_ended()
    with tempfile.NamedTemporaryFile(prefix=f"{_TEMPORARY}{os.getpid()}-", suffix=".zip") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in (_MARKER, f"{_MARKER}-2"):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), b"")
            for relative, path in store.release_files(root):
                _add_file(archive, relative, path, digest)
        file.flush()
        yield Package(Path(file.name), digest.hexdigest())


def _remove_packages_of_ended() -> None:
    """Remove what processes have left that were killed while they zipped a release."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*.zip"):
        pid = path.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isascii() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                path.unlink()


def _add_file(archive: zipfile.ZipFile, relative: str, path: Path, digest: store.ReleaseDigest) -> None:
    entry = zipfile.ZipInfo(relative, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
    with path.open("rb") as source:
        entry.file_size = os.fstat(source.fileno()).st_size
        digest.begin_file(relative, entry.file_size)
        with archive.open(entry, "w") as target:
            while chunk := source.read(store.CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)


@contextmanager
def package_of(release: Release) -> Iterator[Package]:
    """A package of the very files of the release's checksum.

    Raises `ReleaseChangedError` when there are others by now, which would be deployed under the checksum of
    those that the store has seen.
    """
    with zipped(release.path) as package:
        if package.checksum != release.checksum:
            raise ReleaseChangedError(f"the files of {release.name} are being changed")
        yield package


class Packages(Protocol):
    """A store of packages."""

    def ensure(self, release: Release) -> str:
        """The URI from which Ray's workers can download the release now; uploads it if it is not there."""

    def keep(self, uri: str) -> bool:
        """Keep a package from expiring; false when it is gone. One of another store is left to that store."""

    def restore(self, uri: str, release: Release) -> bool:
        """Store a package again that is gone; false when it is not that of the release as it is now."""


class RayPackages:
    """Ray's own store, over the driver's connection. It is not durable: see `RECHECK_SECONDS`."""

    def __init__(self, connection: RayConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._generation = 0
        self._checked: RecentlyUsed[str, tuple[str, float]] = RecentlyUsed()

    def ensure(self, release: Release) -> str:
        """See `Packages.ensure`; a release is checked at most every `RECHECK_SECONDS`, once a connection."""
        with held(self._lock):
            if self._generation != self._connection.generation:
                self._checked.clear()  # it may be another cluster
                self._generation = self._connection.generation
            uri, checked = self._checked.get(release.checksum) or ("", 0.0)
            if not uri or time.monotonic() - checked > RECHECK_SECONDS:
                try:
                    uri = self._ensure_uploaded(release, uri)
                except RayDriverError as error:
                    reason = f"Ray did not take the release's package ({error})"
                    raise PluginHostUnavailableError(reason) from None
                self._checked[release.checksum] = (uri, time.monotonic())
            return uri

    def keep(self, uri: str) -> bool:
        """See `Packages.keep`."""
        if not uri.startswith(SCHEME):
            return True
        try:
            return self._keep(uri)
        except RayDriverError as error:
            raise PluginHostUnavailableError(f"Ray did not keep a package ({error})") from None

    def restore(self, uri: str, release: Release) -> bool:
        """See `Packages.restore`."""
        with zipped(release.path) as package:
            if _uri_of(package) != uri:
                return False
            try:
                self._upload(uri, package)
            except RayDriverError as error:
                raise PluginHostUnavailableError(f"Ray did not take a package ({error})") from None
        return True

    def _ensure_uploaded(self, release: Release, uri: str) -> str:
        if uri and self._keep(uri):
            return uri
        with package_of(release) as package:
            expired, uri = uri, _uri_of(package)
            if uri != expired and self._keep(uri):
                return uri
            try:
                self._upload(uri, package)
            except RayDriverError as error:
                if TOO_LARGE not in error.text:
                    raise
                raise ReleaseInvalidError(
                    f"the package of {release.name} is larger than Ray's own store takes: set"
                    " WORKER_PACKAGE_STORE to a folder that all nodes can read, or leave large files out"
                ) from None
        return uri

    def _upload(self, uri: str, package: Package) -> None:
        seconds = MIN_UPLOAD_TIMEOUT_SECONDS + package.size / MIN_UPLOAD_BYTES_PER_SECOND
        self._call(operations.upload_package, uri, str(package.path), seconds=seconds)

    def _keep(self, uri: str) -> bool:
        return bool(self._call(operations.keep_package, uri, seconds=KEEP_TIMEOUT_SECONDS))

    def _call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """Call it with a timeout of its own, and end the driver process when it does not keep to that."""
        timeout = seconds + HANG_MARGIN_SECONDS
        return self._connection.call(function, *arguments, seconds, timeout=timeout)


def _uri_of(package: Package) -> str:
    return f"{SCHEME}_ray_pkg_{package.hexdigest('sha1')}.zip"


class FolderPackages:
    """WORKER_PACKAGE_STORE: a folder that every node of the cluster sees at the same path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: RecentlyUsed[str, Path] = RecentlyUsed()

    def ensure(self, release: Release) -> str:
        """See `Packages.ensure`; a package is written once, whole or not at all."""
        known = self._known.get(release.checksum)
        if known is None or not known.is_file():
            with package_of(release) as package:
                known = self._folder.resolve() / f"{package.hexdigest('sha256')[:40]}.zip"
                if not known.is_file():
                    self._write(known, package)
            self._known[release.checksum] = known
        return f"file://{known}"  # not percent-encoded, because Ray does not decode it

    def keep(self, uri: str) -> bool:
        """See `Packages.keep`; what is in the folder stays there."""
        path = Path(uri.removeprefix("file://"))
        return path.parent != self._folder.resolve() or path.is_file()

    def restore(self, uri: str, release: Release) -> bool:
        """See `Packages.restore`."""
        return self.ensure(release) == uri

    def _write(self, path: Path, package: Package) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.path, temporary)
            temporary.replace(path)
        except OSError as error:
            why = error.strerror or error
            raise PluginHostUnavailableError(f"WORKER_PACKAGE_STORE cannot be written: {why}") from None
        finally:
            temporary.unlink(missing_ok=True)
