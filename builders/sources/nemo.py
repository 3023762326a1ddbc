"""A .nemo archive or folder: model_config.yaml, and one checkpoint file for every rank that trained it."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from builders.errors import SourceError
from builders.families.fields import Fields
from builders.families.nemo import HARMLESS, family, read_spec
from builders.sources.opened import Opened
from builders.sources.stored import Index, Stored, index_file

_RANK_FOLDER = re.compile(r"(?:mp_rank_(?P<mp>\d+)|tp_rank_(?P<tp>\d+)_pp_rank_(?P<pp>\d+))")
_CONFIG, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"


def open_archive(
    path: Path, *, scratch: Path, ignored: Collection[str] = (), config_only: bool = False
) -> Opened:
    """Understand an archive or folder; what is in a tar is unpacked into `scratch`, member by member."""
    folder = path if path.is_dir() else _unpack(path, scratch, only_config=config_only)
    fields = Fields(_read_config(folder / _CONFIG))
    index = {} if config_only else _index(folder)
    spec = read_spec(fields, _vocab_size(fields, index))
    tokenizer = _tokenizer(fields, folder, scratch)
    fields.check_all_read({*HARMLESS, *ignored})
    return Opened(
        family=family(spec, index),
        spec=spec,
        index=index,
        weights=[path] if path.is_file() else sorted(folder.rglob("*.ckpt")),
        tokenizer=tokenizer,
        dtype="bfloat16",
    )


def _unpack(path: Path, scratch: Path, *, only_config: bool) -> Path:
    """Regular files with harmless names, one by one; anything else in the archive is refused."""
    folder = scratch / "nemo"
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = _safe_name(path, member)
                if name is None or (only_config and name.name != _CONFIG):
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None, f"{name}: a regular file has content"
                with content, target.open("xb") as out:
                    shutil.copyfileobj(content, out, 16 * 2**20)
    except FileExistsError as error:
        raise SourceError(f"{path}: holds {Path(error.filename).name} twice; refused") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: not a readable tar archive ({why}); fetch it again") from error
    return folder


def _safe_name(path: Path, member: tarfile.TarInfo) -> PurePosixPath | None:
    """Where a member belongs below the folder; None for the folders themselves."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(f"{path}: member {member.name!r} points outside the archive; refused")
    if not (member.isfile() or member.isdir()):
        raise SourceError(f"{path}: member {member.name!r} is neither a file nor a folder; refused")
    return name if member.isfile() else None


def _read_config(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise SourceError(f"{file.name}: missing; not a NeMo checkpoint") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"{file.name}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise SourceError(f"{file.name}: expected a mapping")
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
    files = {}
    for file in sorted(folder.glob(f"*/{_WEIGHTS}")):
        if match := _RANK_FOLDER.fullmatch(file.parent.name):
            files[int(match["mp"] or match["tp"] or 0), int(match["pp"] or 0)] = file
    if not files:
        hint = "a distributed checkpoint; export it with NeMo to one file per rank"
        found = hint if (folder / "model_weights").is_dir() else f"no {_WEIGHTS} in it"
        raise SourceError(f"{folder.name}: {found}")
    return files


def _vocab_size(fields: Fields, index: Index) -> int:
    """The rows of the embedding: NeMo writes down only the tokenizer's size, before padding."""
    for name, parts in index.items():
        if name.endswith("embedding.word_embeddings.weight"):
            return parts[0].shape[0] * len(parts)
    if index:
        raise SourceError("checkpoint lacks embedding.word_embeddings.weight")
    return fields.size("vocab_size", fields.take("override_vocab_size"))


def _tokenizer(fields: Fields, folder: Path, scratch: Path) -> list[Path]:
    """The files that the configuration names, under the names that tokenizers are looked for by."""
    wanted = {"model": "tokenizer.model", "vocab_file": "vocab.json", "merge_file": "merges.txt"}
    settings = fields.take("tokenizer") or {}
    found = []
    for field, name in wanted.items():
        member = str(settings.get(field) or "")
        if member.startswith("nemo:"):
            found.append(_copied(folder, member.removeprefix("nemo:"), scratch / "tokenizer" / name))
    return found


def _copied(folder: Path, member: str, target: Path) -> Path:
    if PurePosixPath(member).name != member or not (folder / member).is_file():
        raise SourceError(f"{_CONFIG}: names the tokenizer file {member!r}, which is not in the archive")
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / member, target)
    return target
