"""A .nemo archive or folder: model_config.yaml, and one checkpoint file for every rank that trained it."""

from __future__ import annotations

import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from builders.errors import SourceError
from builders.families.fields import Fields
from builders.families.nemo import HARMLESS, family, read_spec
from builders.sources.opened import Opened
from builders.sources.stored import Index, Stored, index_file
from builders.sources.tied import with_own_head
from builders.store import disk

_RANK_FOLDER = re.compile(r"(?:mp_rank_(?P<mp>\d+)|tp_rank_(?P<tp>\d+)_pp_rank_(?P<pp>\d+))")
_CONFIG, _WEIGHTS, _DISTRIBUTED = "model_config.yaml", "model_weights.ckpt", "model_weights"
_EXPORT_IT = "a distributed checkpoint; export it with NeMo to one file per rank"
_TOKENIZERS = {
    "model": "tokenizer.model",
    "tokenizer_model": "tokenizer.model",
    "vocab_file": "vocab.json",
    "merge_file": "merges.txt",
}
"""The configuration's fields, and the names that tokenizers are looked for by."""

_BAD_TAR = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
_BAD_YAML = (
    yaml.YAMLError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the readers raise for files that nobody meant to write."""


def open_archive(
    path: Path, *, scratch: Path, ignored: Collection[str] = (), config_only: bool = False
) -> Opened:
    """Understand an archive or folder; what is in a tar is unpacked into `scratch`, member by member."""
    folder = path if path.is_dir() else _unpack(path, scratch, config_only=config_only)
    fields = Fields(_read_config(path, folder / _CONFIG))
    index = {} if config_only else _index(folder)
    spec = read_spec(fields, _vocab_size(fields, index))
    tokenizer = _tokenizer(fields, folder, scratch / "tokenizer")
    fields.check_all_read({*HARMLESS, *ignored})
    opened = Opened(
        family=family(index),
        spec=spec,
        index=index,
        weights=[path] if path.is_file() else sorted(folder.rglob("*.ckpt")),
        tokenizer=tokenizer,
        dtype="bfloat16",
    )
    return with_own_head(opened)


def _unpack(path: Path, scratch: Path, *, config_only: bool) -> Path:
    """What is read of the archive, copied member by member."""
    folder = scratch / "nemo"
    folder.mkdir(parents=True)
    try:
        with disk.full_disk_refused(scratch, path.name, folder), tarfile.open(path) as archive:
            for member, name in _files(path, archive):
                if _is_read(path, name, config_only):
                    _copy_member(archive, member, folder / name)
            _read_to_the_end(archive)
    except _BAD_TAR as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: not a readable tar archive ({why}); fetch it again") from error
    return folder


def _read_to_the_end(archive: tarfile.TarFile) -> None:
    """A compressed archive's checksum follows its last member, and only who gets there checks it."""
    assert archive.fileobj is not None, "an archive that was opened has a file"
    while archive.fileobj.read(2**20):
        pass


def _files(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Regular files and where they belong; whatever could harm is refused, read or not."""
    seen: set[PurePosixPath] = set()
    for member in archive:
        name = _safe_name(path, member)
        if name in seen:
            raise SourceError(f"{path}: holds {member.name!r} twice; refused")
        if name is not None:
            seen.add(name)
            yield member, name


def _copy_member(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    disk.require_free(target.parents[1], repr(member.name), member.size)
    target.parent.mkdir(exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None, f"{member.name}: a regular file has content"
    with content, target.open("xb") as out:
        shutil.copyfileobj(content, out, 16 * 2**20)


def _safe_name(path: Path, member: tarfile.TarInfo) -> PurePosixPath | None:
    """Where a member belongs below the folder; None for the folders themselves."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(f"{path}: member {member.name!r} points outside the archive; refused")
    if not (member.isfile() or member.isdir()):
        raise SourceError(f"{path}: member {member.name!r} is neither a file nor a folder; refused")
    return name if member.isfile() and name.parts else None


def _is_read(path: Path, name: PurePosixPath, config_only: bool) -> bool:
    """The configuration and the tokenizer lie on top; weights do, or in the folder of their rank."""
    folder, *rest = name.parts
    if folder == _DISTRIBUTED and not config_only:
        raise SourceError(f"{path}: {_EXPORT_IT}")
    if name.name == _WEIGHTS:
        return not config_only and (not rest or _RANK_FOLDER.fullmatch(folder) is not None)
    return not rest


def _read_config(path: Path, file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise SourceError(f"{path}: has no {_CONFIG}; not a NeMo checkpoint") from None
    except _BAD_YAML as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: its {_CONFIG} is not readable as YAML ({why})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SourceError(f"{path}: its {_CONFIG} is not a mapping of names to values")
    return values


def _index(folder: Path) -> Index:
    """Every tensor with one part for each tensor parallel rank; pipeline stages renumbered."""
    ranks = _rank_files(folder)
    found: dict[str, dict[int, Stored]] = {}
    first_layer = 0
    for stage in sorted({pp for _tp, pp in ranks}):
        layers = 0
        for tp in sorted({tp for tp, pp in ranks if pp == stage}):
            for name, stored in index_file(ranks[tp, stage]).items():
                layer = re.search(r"\.layers\.(\d+)\.", name)
                layers = max(layers, int(layer[1]) + 1 if layer else 0)
                found.setdefault(_renumbered(name, first_layer), {})[tp] = stored
        first_layer += layers
    return _complete(found, folder)


def _renumbered(name: str, first_layer: int) -> str:
    return re.sub(r"\.layers\.(\d+)\.", lambda match: f".layers.{first_layer + int(match[1])}.", name)


def _complete(found: Mapping[str, Mapping[int, Stored]], folder: Path) -> Index:
    """The ranks are numbered without a gap, and each has every tensor of its stage."""
    sizes = {len(parts) for parts in found.values()}
    for name, parts in found.items():
        if len(parts) != max(sizes) or sorted(parts) != list(range(len(parts))):
            ranks = sorted(parts)
            raise SourceError(f"{folder.name}: only ranks {ranks} hold {name}; a rank's file is missing")
    return {name: tuple(parts[rank] for rank in sorted(parts)) for name, parts in found.items()}


def _rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """(tensor rank, pipeline stage) to file."""
    if (folder / _WEIGHTS).is_file():
        return {(0, 0): folder / _WEIGHTS}
    files: dict[tuple[int, int], Path] = {}
    for file in sorted(folder.glob(f"*/{_WEIGHTS}")):
        if match := _RANK_FOLDER.fullmatch(file.parent.name):
            rank = int(match["mp"] or match["tp"]), int(match["pp"] or 0)
            if rank in files:
                raise SourceError(f"{file}: is the same rank as {files[rank].parent.name}; remove one")
            files[rank] = file
    if not files:
        distributed = (folder / _DISTRIBUTED).is_dir()
        raise SourceError(f"{folder}: {_EXPORT_IT if distributed else f'no {_WEIGHTS} in it'}")
    return files


def _vocab_size(fields: Fields, index: Index) -> int:
    """The rows of the embedding: NeMo writes down only the tokenizer's size, before padding."""
    for name, parts in index.items():
        if name.endswith("embedding.word_embeddings.weight"):
            return sum(part.shape[0] for part in parts if part.shape)
    if index:
        raise SourceError("checkpoint lacks embedding.word_embeddings.weight")
    return fields.size("vocab_size", fields.take("override_vocab_size"))


def _tokenizer(fields: Fields, folder: Path, target: Path) -> list[Path]:
    """The files that the configuration names, copied under the names that tokenizers are looked for by."""
    settings = fields.take("tokenizer") or {}
    if not isinstance(settings, Mapping):
        raise fields.error("tokenizer", settings, "must be an object")
    members = {file.name for file in folder.iterdir() if file.is_file()}
    found: dict[str, Path] = {}
    for field, name in _TOKENIZERS.items():
        value = settings.get(field)
        if not isinstance(value, str) or not value.startswith("nemo:"):
            continue
        member = value.removeprefix("nemo:")
        if member not in members:
            raise fields.error(f"tokenizer.{field}", value, f"no such file beside {_CONFIG}")
        found.setdefault(_named(name, member), folder / member)
    return [_copied(file, target / name) for name, file in found.items()]


def _named(name: str, member: str) -> str:
    return "vocab.txt" if name == "vocab.json" and member.endswith(".txt") else name


def _copied(file: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    return target
