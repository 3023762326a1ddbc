"""Fetching a model: a local path as it is; a Hugging Face id pinned to a commit, and no file too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from builders.errors import SourceError, UserError
from builders.sources.hf import TOKENIZER_PATTERNS

_COMPANIONS = ("config.json", "generation_config.json", *TOKENIZER_PATTERNS)
_WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("consolidated.*.pth", "params.json"),
    ("*.nemo",),
)
"""In order of preference; only the first kind that a repository has is fetched."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A model that lies on this machine."""

    path: Path
    revision: str | None
    """The commit that a Hugging Face id was pinned to."""


def fetch(
    model: str,
    *,
    revision: str | None,
    offline: bool,
    config_only: bool = False,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Fetched:
    """Resolve what the user named; `endpoint` and `cache_dir` default to Hugging Face's own settings."""
    if _is_here(model):
        if revision is not None:
            raise UserError(
                f"--revision={revision}: {model} is a local path; revisions are of Hugging Face ids"
            )
        return Fetched(path=Path(model), revision=None)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise SourceError(f"{model}: no such folder or file")
    return _Hub(model, revision, endpoint, cache_dir).fetch(offline=offline, config_only=config_only)


def _is_here(model: str) -> bool:
    try:
        return Path(model).exists()
    except OSError as error:
        raise SourceError(f"{model}: neither a path nor a Hugging Face id ({error.strerror})") from error


class _Hub:
    """One repository at one revision, through huggingface_hub."""

    def __init__(
        self, model: str, revision: str | None, endpoint: str | None, cache_dir: Path | None
    ) -> None:
        self._model, self._revision = model, revision or "main"
        self._endpoint, self._cache_dir = endpoint, cache_dir

    def fetch(self, *, offline: bool, config_only: bool) -> Fetched:
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        transport: type[Exception] = HfHubHTTPError.__bases__[0]  # the HTTP library's own error
        offline = offline or constants.HF_HUB_OFFLINE
        try:
            return self._cached(config_only) if offline else self._downloaded(config_only)
        except HFValidationError as error:
            raise SourceError(f"{self._model}: neither a folder nor a Hugging Face id") from error
        except LocalEntryNotFoundError as error:
            raise SourceError(self._not_here(offline)) from error
        except HfHubHTTPError as error:
            raise SourceError(self._refused(error)) from error
        except (OSError, transport) as error:
            why = " ".join(str(error).split())
            raise SourceError(f"{self._model}: download failed ({why}); run again to resume") from error

    def _cached(self, config_only: bool) -> Fetched:
        """Whatever an earlier download left; nothing is asked of the network."""
        if config_only:
            path = self._snapshot(_COMPANIONS, offline=True)
            return Fetched(path=path, revision=path.name)
        for patterns in _WEIGHTS:
            path = self._snapshot([*_COMPANIONS, *patterns], offline=True)
            names = [file.name for file in path.iterdir()]
            if any(_matches(name, patterns[:1]) for name in names):
                return Fetched(path=self._archive(path, names), revision=path.name)
        raise SourceError(
            f"{self._model}: the local cache holds no weights of it; run once without --offline"
        )

    def _downloaded(self, config_only: bool) -> Fetched:
        """The client pins the commit before it fetches the first file, and names the folder after it."""
        from huggingface_hub import HfApi

        info = HfApi(endpoint=self._endpoint).model_info(self._model, revision=self._revision)
        wanted = needed_files([file.rfilename for file in info.siblings or ()], config_only=config_only)
        path = self._snapshot(wanted, offline=False)
        return Fetched(path=self._archive(path, wanted), revision=path.name)

    def _snapshot(self, patterns: Sequence[str], *, offline: bool) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self._model,
            revision=self._revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # for the client's patterns, a folder is part of a name
            local_files_only=offline,
            endpoint=self._endpoint,
            cache_dir=self._cache_dir,
        )
        return Path(str(folder))

    def _archive(self, path: Path, wanted: Sequence[str]) -> Path:
        """A repository may be one NeMo archive."""
        archives = [name for name in wanted if name.endswith(".nemo")]
        return path / archives[0] if archives else path

    def _not_here(self, offline: bool) -> str:
        if offline:
            return f"{self._model}: not in the local cache; run once without --offline and HF_HUB_OFFLINE"
        return f"{self._model}: the hub cannot be reached; check the network, or use --offline"

    def _refused(self, error: Exception) -> str:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if isinstance(error, GatedRepoError):
            return f"{self._model}: gated; accept its terms on the hub, then log in with `hf auth login`"
        if isinstance(error, RepositoryNotFoundError):
            return f"{self._model}: no such model on the hub, or it is private; log in with `hf auth login`"
        if isinstance(error, RevisionNotFoundError):
            return f"--revision={self._revision}: {self._model} has no such branch, tag or commit"
        return f"{self._model}: the hub refused ({' '.join(str(error).split())}); try again later"


def needed_files(names: Sequence[str], *, config_only: bool) -> list[str]:
    """The files to fetch: no subfolders, no code, and weights of one kind only."""
    top = [name for name in names if "/" not in name]
    wanted = [name for name in top if _matches(name, _COMPANIONS)]
    for patterns in () if config_only else _WEIGHTS:
        if weights := [name for name in top if _matches(name, patterns[:1])]:
            return sorted({*wanted, *weights, *(name for name in top if _matches(name, patterns))})
    return sorted(wanted)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
