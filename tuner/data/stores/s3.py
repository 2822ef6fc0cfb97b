"""Objects of S3 stores (AWS, Cloudflare R2, Wasabi, MinIO ...). Endpoint, keys and region come from the environment."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .refs import Unreadable

ATTEMPTS = 4
PAUSE = 0.5
"""Seconds before the second attempt; doubles with each."""
CHUNK = 16 * 2**20
ANONYMOUS = "TUNER_S3_ANONYMOUS"

_T = TypeVar("_T")
_stores: dict[tuple[Any, ...], Any] = {}
_lock = threading.Lock()


def facts(ref: str) -> tuple[str, int]:
    """(etag, bytes) of an object, asked for now. Raises `Unreadable`."""
    bucket, key = parts(ref)
    head = _try(ref, lambda: _store().call_s3("head_object", Bucket=bucket, Key=key))
    return head["ETag"].strip('"'), head["ContentLength"]


def fetch(ref: str, etag: str, size: int, target: Path) -> None:
    """Write the bytes of this version of an object to a file, going on where a broken connection stopped."""
    done = 0
    with target.open("wb") as file:
        while done < size:
            end = min(done + CHUNK, size)
            done += file.write(_try(ref, lambda start=done, end=end: _chunk(ref, etag, start, end)))


def _chunk(ref: str, etag: str, start: int, end: int) -> bytes:
    """Bytes start to end of this version of an object."""
    from fsspec.asyn import sync  # noqa: PLC0415  (only S3 needs it)

    bucket, key = parts(ref)
    store = _store()
    answer = store.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=f'"{etag}"')
    data: bytes = sync(store.loop, answer["Body"].read)  # pyrefly: ignore[bad-assignment]
    if len(data) != end - start:
        raise ConnectionError(f"{len(data)} of {end - start} bytes arrived")
    return data


def below(ref: str) -> Iterator[tuple[str, str]]:
    """(reference, etag) of every object whose key starts with that of `ref` and a slash. Raises `Unreadable`."""
    bucket, key = parts(ref)
    more: dict[str, str] = {"Prefix": f"{key.rstrip('/')}/"} if key.strip("/") else {}
    while True:
        arguments = {"Bucket": bucket, **more}
        page = _try(ref, lambda a=arguments: _store().call_s3("list_objects_v2", **a))
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):
                yield f"s3://{bucket}/{found['Key']}", found["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        more["ContinuationToken"] = page["NextContinuationToken"]


def parts(ref: str) -> tuple[str, str]:
    """(bucket, key). Raises `Unreadable` when the bucket's name cannot be one."""
    bucket, _, key = ref.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", bucket):
        raise Unreadable(ref, "names no bucket; write it as s3://bucket/prefix")
    return bucket, key


def _store() -> Any:
    """The s3fs file system for this process and environment."""
    import s3fs  # noqa: PLC0415  (only S3 needs it)

    environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or k == ANONYMOUS))
    with _lock:
        key = os.getpid(), environment
        if key not in _stores:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            client = {k: v for k, v in (("region_name", region), ("endpoint_url", endpoint)) if v}
            store = s3fs.S3FileSystem(
                anon=os.environ.get(ANONYMOUS) == "1", client_kwargs=client, use_listings_cache=False,
                skip_instance_cache=True,
                config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}},
            )  # fmt: skip
            store.retries = 1  # `_try` counts the attempts
            _stores.clear()
            _stores[key] = store
        return _stores[key]


def _try(ref: str, call: Callable[[], _T]) -> _T:
    """The answer of a request; what may pass is tried again. Raises `Unreadable` with one sentence."""
    import aiohttp  # noqa: PLC0415  (only S3 needs these)
    from botocore import exceptions as boto  # noqa: PLC0415

    final = (
        boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound, boto.ParamValidationError,
        boto.NoRegionError, boto.InvalidRegionError, PermissionError, FileNotFoundError, ValueError,
    )  # fmt: skip
    last: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except final as error:
            raise Unreadable(ref, _refused(error)) from None
        except (OSError, aiohttp.ClientError, boto.BotoCoreError, boto.ClientError) as error:
            if "pre-condition" in str(error) or "PreconditionFailed" in str(error):
                what = "was changed while it was read; start again when nothing writes to it"
                raise Unreadable(ref, what) from None
            last = error
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE * 2**attempt)
    assert last is not None
    what = (
        f"could not be read in {ATTEMPTS} attempts ({_short(last)}); check the network and AWS_ENDPOINT_URL "
        f"({os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL') or 'not set: Amazon'})"
    )
    raise Unreadable(ref, what)


def _refused(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return (
            f"may not be read with these keys ({_short(error)}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "the rights of the key"
        )
    if isinstance(error, FileNotFoundError):
        return f"is not there ({_short(error)}); correct the bucket or the key, or AWS_ENDPOINT_URL"
    return (
        f"cannot be asked for ({_short(error)}); set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION or "
        f"AWS_PROFILE, or for a public bucket {ANONYMOUS}=1"
    )


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__


def _after_fork() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
