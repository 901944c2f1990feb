"""Object storage: a folder, the memory of this process or an S3 bucket, with one small interface.

This is the only module that uses object storage. Every fault becomes an error of ours, within
`s3_timeout_s`, and every object is written whole or not at all.
"""

import contextlib
import functools
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, MemoryStore, S3Store

from manybeam.addresses import unreached_hint
from manybeam.errors import (
    Conflict,
    InvalidInput,
    ManybeamError,
    NotAllowed,
    NotFound,
    StoreUnreachable,
    WriteFailed,
)
from manybeam.settings import settings

if TYPE_CHECKING:
    from obstore.store import S3Config
    from zarr.storage import StorePath

SCHEMES = "a folder, file:///folder, memory://name or s3://bucket/prefix"
Keys = list[str]  # inside Store, `list` is the method
_memories: dict[str, MemoryStore] = {}
_answered: set[tuple[object, ...]] = set()  # buckets, with endpoint and credentials


class Store:
    """One prefix of a folder, a memory or a bucket; made by `open_store`.

    Keys are relative to the prefix and use `/`. A Store is cheap, may be shared by threads, and
    is pickled as its URL.

    Args:
        url: URL of the prefix.
        root: the obstore store that holds it.
        prefix: the prefix inside that store, without a slash at either end.
    """

    def __init__(self, url: str, root: LocalStore | MemoryStore | S3Store, prefix: str) -> None:
        self.url, self._root, self._prefix = url, root, prefix

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return open_store, (self.url,)

    def get(self, key: str) -> bytes:
        """Return one object; raises NotFound."""
        with self.guard("read", key):
            return bytes(obstore.get(self._root, self._at(key)).bytes())

    def put(self, key: str, data: bytes) -> None:
        """Write one object, whole or not at all; an older object is replaced."""
        with self.guard("write", key):
            obstore.put(self._root, self._at(key), data)

    def create(self, key: str, data: bytes) -> None:
        """Write one object that must not exist yet; of several writers only one succeeds.

        Raises:
            Conflict: the key exists.
        """
        with self.guard("write", key):
            obstore.put(self._root, self._at(key), data, mode="create")

    def exists(self, key: str) -> bool:
        """Return whether there is an object with exactly this key."""
        try:
            with self.guard("read", key):
                obstore.head(self._root, self._at(key))
        except NotFound:
            return False
        return True

    def list(self, prefix: str = "", *, after: str = "") -> Keys:
        """Return the sorted keys under a prefix (a whole path segment), those past `after`."""
        offset = self._at(after) if after else None
        with self.guard("list", prefix):
            found = obstore.list(self._root, self._at(prefix), offset=offset, chunk_size=1000)
            return sorted(self._inside(meta["path"]) for batch in found for meta in batch)

    def folders(self, prefix: str = "") -> Keys:
        """Return the prefixes one level below a prefix, sorted."""
        with self.guard("list", prefix):
            level = obstore.list_with_delimiter(self._root, self._at(prefix) or None)
            return sorted(self._inside(path) for path in level["common_prefixes"])

    def delete(self, prefix: str) -> None:
        """Delete the object with this key and all under it, if there are any."""
        itself = {prefix} if prefix and self.exists(prefix) else set()
        self.delete_keys(sorted(itself.union(self.list(prefix))))

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Delete these objects; missing ones are ignored."""
        for key in keys if isinstance(self._root, LocalStore) else ():
            with contextlib.suppress(NotFound), self.guard("delete", key):
                obstore.delete(self._root, self._at(key))
        if not isinstance(self._root, LocalStore) and keys:
            with self.guard("delete", keys[0]):
                obstore.delete(self._root, [self._at(key) for key in keys])

    def age_s(self, key: str) -> float:
        """Return the age of an object, by the clock of the store.

        A probe is written and compared, because the clocks of two writers may differ.
        """
        probe = f"{key}.{uuid.uuid4().hex}.probe"
        self.put(probe, b"")
        try:
            with self.guard("read", key):
                now = obstore.head(self._root, self._at(probe))["last_modified"]
                then = obstore.head(self._root, self._at(key))["last_modified"]
        finally:
            self.delete_keys([probe])
        return float((now - then).total_seconds())

    def child(self, path: str) -> "Store":
        """Return the store of a prefix below this one; nothing is written."""
        path = path.strip("/")
        return Store(f"{self.url.rstrip('/')}/{path}", self._root, self._at(path)) if path else self

    def zarr(self, path: str = "", *, read_only: bool = False) -> "StorePath":
        """Return this prefix as a store for `zarr.open` and similar functions."""
        from zarr.storage import ObjectStore, StorePath

        return StorePath(ObjectStore(self._root, read_only=read_only), self._at(path))

    @contextlib.contextmanager
    def writing(self) -> Iterator["StorePath"]:
        """Give this prefix to Zarr for the block; all its writes end with the block.

        Zarr writes chunks in the background. When one fails, or at Ctrl-C, the others would go on
        and could overwrite what is written there next.
        """
        from zarr.storage import StorePath

        from manybeam.data.gate import GatedStore

        gate = GatedStore(self._root)
        try:
            with self.guard("write"):
                yield StorePath(gate, self._prefix)
        finally:
            gate.shut(settings().s3_timeout_s)

    @contextlib.contextmanager
    def guard(self, verb: str, key: str = "") -> Iterator[None]:
        """Turn errors of obstore inside the block, also through Zarr, into errors of ours."""
        try:
            yield
        except (BaseError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if isinstance(error, ManybeamError):
                raise
            raise self._ours(error, verb, f"{self.url.rstrip('/')}/{key}".rstrip("/")) from error

    def _ours(self, error: Exception, verb: str, place: str) -> ManybeamError:
        reason = str(error).split("\n", 1)[0][:300]
        if isinstance(error, AlreadyExistsError):
            return Conflict(f"{place} exists already", "another writer wrote it first", "")
        if isinstance(error, InvalidPathError):
            return InvalidInput(f"{place} is not a key: {reason}", "segments joined by /", "")
        if isinstance(error, OSError) or "NoSuchBucket" in str(error):
            return NotFound(f"there is nothing at {place}", reason, "")
        if not isinstance(self._root, S3Store):
            if isinstance(error, PermissionDeniedError):
                return NotAllowed(f"cannot {verb} {place}", reason, "check the owner of the folder")
            hint = "free some space, or set MANYBEAM_STORE to another folder"
            failed = WriteFailed if verb == "write" else StoreUnreachable
            return failed(f"cannot {verb} {place}", reason, hint)
        # A listing that is refused comes as a GenericError with the status in its text.
        is_refused = "status code: 403" in reason or "status code: 401" in reason
        if is_refused or isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            why = "the store refuses the credentials"
            hint = "set MANYBEAM_S3_ACCESS_KEY and MANYBEAM_S3_SECRET_KEY"
            return StoreUnreachable(f"cannot {verb} {place}", why, hint)
        hint = "check MANYBEAM_S3_ENDPOINT and that the server runs; then try again"
        endpoint = settings().s3_endpoint or "https://s3.amazonaws.com"
        hint = unreached_hint(endpoint, str(error), hint)
        return StoreUnreachable(f"cannot {verb} {place}", reason, hint)

    def _at(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key.strip("/")) if part)

    def _inside(self, path: str) -> str:
        return path[len(self._prefix) :].lstrip("/")


def open_store(url: str | Path, *, create: bool = True) -> Store:
    """Return the store of a URL.

    Args:
        url: a folder, `file:///folder`, `memory://name` (shared within this process) or
            `s3://bucket/prefix` (endpoint and credentials from the settings).
        create: make a missing folder; if False, a missing folder is NotFound.

    Raises:
        InvalidInput: the scheme is another one, or bucket or name is missing.
        NotFound: the folder is missing and must not be made, or the bucket is missing.
        StoreUnreachable: the S3 server does not answer in time or refuses the credentials.
        WriteFailed: the folder cannot be made.
    """
    scheme, rest = _split(url)
    if scheme == "file":
        return Store(rest, _folder(Path(rest), create=create), "")
    name, _, prefix = rest.partition("/")
    if scheme == "memory":
        return Store(f"memory://{rest}", _memories.setdefault(name, MemoryStore()), prefix)
    store = Store(f"s3://{rest}", _bucket(name, *_s3_settings()), prefix)
    _knock(store, name, *_s3_settings())
    return store


def arrow_filesystem(url: str | Path) -> tuple[Any, str]:
    """Return (filesystem, path) of a URL for Ray Train: storage_filesystem, storage_path.

    A folder needs no filesystem (None). A memory cannot be shared with workers.

    Raises:
        InvalidInput: a memory:// URL, or an unknown scheme.
    """
    scheme, rest = _split(url)
    if scheme == "file":
        return None, rest
    if scheme == "memory":
        raise InvalidInput(
            f"{url} cannot be shared with workers, which are other processes",
            "a folder or s3://bucket/prefix",
            "",
        )
    from pyarrow.fs import S3FileSystem

    endpoint, access_key, secret_key, region, timeout_s = _s3_settings()
    place = urlsplit(endpoint)
    given: dict[str, Any] = {"access_key": access_key, "secret_key": secret_key}
    if endpoint:
        given |= {"endpoint_override": place.netloc, "scheme": place.scheme}
    filesystem = S3FileSystem(
        region=region,
        connect_timeout=timeout_s / 2,
        request_timeout=timeout_s / 2,
        **{name: value for name, value in given.items() if value},
    )
    return filesystem, rest


def _split(url: str | Path) -> tuple[str, str]:
    """Return (scheme, rest): an absolute folder for file, else "name/prefix"."""
    text = str(url)
    scheme, mark, rest = text.partition("://")
    if isinstance(url, Path) or not mark:
        if not text:
            raise InvalidInput("'' is not a place for frames", SCHEMES, "")
        return "file", str(Path(text).expanduser().resolve())
    if scheme == "file" and rest.startswith("/"):
        return "file", str(Path(unquote(rest)).resolve())
    rest = rest.strip("/")
    if scheme not in ("memory", "s3") or not rest:
        raise InvalidInput(f"{text!r} is not a place for frames", SCHEMES, "")
    return scheme, rest


def _folder(path: Path, *, create: bool) -> LocalStore:
    if not path.is_dir() and not create:
        raise NotFound(f"there is no folder {path}", "", "")
    try:
        path.mkdir(parents=True, exist_ok=True)
        return LocalStore(prefix=path)
    except (OSError, BaseError) as error:
        raise WriteFailed(
            f"cannot make the folder {path}",
            getattr(error, "strerror", "") or str(error),
            "choose another folder, or correct its owner and its mode",
        ) from error


def _s3_settings() -> tuple[str, str, str, str, float]:
    here = settings()
    secret = here.s3_secret_key.get_secret_value()
    return here.s3_endpoint, here.s3_access_key, secret, here.s3_region, here.s3_timeout_s


@functools.lru_cache(maxsize=32)
def _bucket(
    name: str, endpoint: str, access_key: str, secret_key: str, region: str, timeout_s: float
) -> S3Store:
    """Return the store of a bucket; half of the timeout is for retries, half for the last one."""
    half = timedelta(seconds=timeout_s / 2)
    given = {"endpoint": endpoint, "access_key_id": access_key, "secret_access_key": secret_key}
    config = {key: value for key, value in given.items() if value} | {"region": region}
    return S3Store(
        name,
        config=cast("S3Config", config),
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "timeout": half,
            "connect_timeout": half / 2,
        },
        retry_config={
            "max_retries": 5,
            "retry_timeout": half,
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": half / 2,
                "base": 2.0,
            },
        },
    )


def _knock(store: Store, *place: object) -> None:
    """Call the server once for each bucket and credentials, so that wrong ones fail at once."""
    if place not in _answered:
        store.folders("manybeam-knocks")
        _answered.add(place)
