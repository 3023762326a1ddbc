"""URLs of shared homes: which driver they take, and how they are shown without their secrets."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from builders.errors import ArtifactError

_URL = re.compile("(?P<protocol>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)

EXTRAS: Mapping[str, str] = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of this project that brings a protocol's driver."""

LOCAL = frozenset({"file", "local"})

FLAT = frozenset({"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Where folders are only parts of names, and listing all below one is a single question."""


_RAISED: Mapping[str, tuple[str, ...]] = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "ftplib": ("Error",),
    "paramiko": ("SSHException",),
    "requests": ("RequestException",),
}
"""What drivers raise beside OSError, by module."""


def is_url(place: str) -> bool:
    """Whether it is a URL; everything else is a path."""
    return _URL.match(place) is not None


@dataclass(frozen=True)
class HomeUrl:
    """A URL that may hold a user and a password, which are never shown."""

    whole: str = field(repr=False)

    @property
    def protocol(self) -> str:
        """What comes before '://', in lower case."""
        return self._parts()[0]

    def __str__(self) -> str:
        protocol, _, rest = self._parts()
        return f"{protocol}://{rest.rstrip('/')}"

    def without_secrets(self, text: str) -> str:
        """A driver's message in which nothing is left of the user, the password and the query."""
        _, secret, _ = self._parts()
        known = {self.whole: str(self)}
        for part in (secret, *re.split("[:?&=]", secret)[1:]):
            known |= {part: "***", unquote(part): "***"}
        for part in sorted(known, key=len, reverse=True):
            text = text.replace(part, known[part]) if part else text
        return text

    def _parts(self) -> tuple[str, str, str]:
        """Protocol, what is secret, and what may be seen."""
        found = _URL.fullmatch(self.whole)
        assert found is not None, "made by home_url alone"
        protocol, rest = found["protocol"].lower(), found["rest"]
        if protocol in LOCAL or protocol == "memory":
            return protocol, "", rest
        seen, _, query = rest.partition("?")
        host, slash, path = seen.partition("/")
        user, _, host = host.rpartition("@")
        return protocol, f"{user}?{query}" if query else user, host + slash + path


def home_url(text: str) -> HomeUrl:
    """The URL, or why it cannot be a home."""
    protocol, _, rest = text.partition("://")
    url = HomeUrl(f"{protocol.lower()}://{rest}")
    if not text.isprintable():
        raise ArtifactError(f"{str(url)!r}: not a URL; it must be printable")
    if "::" in text:
        raise ArtifactError(
            f"{url}: a chain of file systems; give the storage itself, such as s3://bucket/store"
        )
    if not str(url).split("://", 1)[1].strip("/"):
        raise ArtifactError(f"{url}: names no place; give one, such as {url.protocol}://bucket/store")
    if url.protocol in LOCAL and not rest.startswith("/"):
        raise ArtifactError(f"{url}: a relative path; give a whole one: {url.protocol}:///folder/store")
    return url


def file_system(url: HomeUrl) -> Any:
    """The driver's file system, set up as the URL says."""
    import fsspec  # only where there is a URL
    from fsspec.core import url_to_fs

    try:
        fsspec.get_filesystem_class(url.protocol)
    except ValueError:
        raise ArtifactError(
            f"{url}: unknown protocol {url.protocol!r}; s3://, gs:// and file:// are known, "
            "and every other that fsspec has a driver for"
        ) from None
    except ImportError as error:
        raise ArtifactError(f"{url}: {_missing(url.protocol, error)}") from None
    try:
        # A listing that another thread asked for earlier must not answer for a new one.
        settings = {"use_listings_cache": False} if url.protocol in FLAT else {}
        found, _ = url_to_fs(url.whole, **settings)
        return found
    except (TypeError, ValueError, ImportError, *driver_errors()) as error:  # type: ignore[misc]
        why = url.without_secrets(" ".join(str(error).split()))[:300]
        raise ArtifactError(f"{url}: cannot be opened ({why}); check the URL") from None


def driver_errors() -> tuple[type[Exception], ...]:
    """What the drivers that are loaded raise."""
    classes = [
        getattr(sys.modules[module], name, OSError)
        for module, names in _RAISED.items()
        if module in sys.modules
        for name in names
    ]
    return (OSError, NotImplementedError, *classes)


def _missing(protocol: str, error: ImportError) -> str:
    """What to install."""
    extra = EXTRAS.get(protocol)
    if extra:
        return f"the driver for {protocol}:// is not installed; pip install 'rankforge[{extra}]'"
    return f"the driver for {protocol}:// is not installed ({' '.join(str(error).split())})"
