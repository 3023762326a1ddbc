"""NeMo checkpoints from strangers: damaged, incomplete or meant to harm, each is one clear line."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from builders.errors import SourceError, UserError
from builders.sources.opened import open_source
from builders.sources.pieces import locate
from builders.store import disk
from tests.builders.test_nemo import gpt_next
from tests.nemo_writer import OLD, config_of, nemo_tensors, pack, pack_members, write_nemo

SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
         "kv_channels", "max_position_embeddings")  # fmt: skip


def write(folder: Path, *, tp: int = 1, **changes: Any) -> Path:
    """A checkpoint to damage."""
    model = gpt_next()
    config = config_of(model, "relu", **changes)
    return write_nemo(folder, config, nemo_tensors(model, core=False), prefix=OLD, tp=tp)


def refusal(path: Path, scratch: Path, kind: type[UserError] = SourceError) -> str:
    """The complaint, which is one line without control characters."""
    with pytest.raises(kind) as caught:
        opened = open_source(path, scratch=scratch)
        locate(opened.family, opened.spec, opened.index)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700
    return message


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (info("../evil.txt"), "points outside"),
        (info("a/../../evil.txt"), "points outside"),
        (info("/evil.txt"), "points outside"),
        (info("model_config.yaml", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
        (info("model_config.yaml", tarfile.LNKTYPE, "x"), "neither a file nor a folder"),
        (info("pipe", tarfile.FIFOTYPE), "neither a file nor a folder"),
        (info("tty", tarfile.CHRTYPE), "neither a file nor a folder"),
        (info("model_weights/.metadata"), "export it with NeMo"),
        (info("x" * 300), "File name too long"),
    ],
    ids=[
        "parent",
        "through a folder",
        "absolute",
        "symbolic link",
        "hard link",
        "pipe",
        "device",
        "distributed",
        "long name",
    ],
)
def test_hostile_member_is_refused(member: tarfile.TarInfo, words: str, tmp_path: Path) -> None:
    archive = pack_members(tmp_path / "x.nemo", (member, b""))
    assert words in refusal(archive, tmp_path / "scratch")
    assert not (tmp_path / "evil.txt").exists() and not files_below(tmp_path / "scratch")


def test_member_twice_is_refused(tmp_path: Path) -> None:
    archive = pack_members(tmp_path / "x.nemo", (info("a"), b"1"), (info("a"), b"2"))
    assert "holds 'a' twice" in refusal(archive, tmp_path / "scratch")


@pytest.mark.parametrize("name", ["a\nb", "other/model_weights.ckpt", "mp_rank_00/optimizer.pt", ""])
def test_member_that_nobody_asked_for(name: str, tmp_path: Path) -> None:
    """It is not unpacked, and its name is not printed raw."""
    archive = pack_members(tmp_path / "x.nemo", (info(name), b"1"), (info(name), b"2"))
    message = refusal(archive, tmp_path / "scratch")
    assert "twice" in message or not name
    assert {file.name for file in files_below(tmp_path / "scratch")} <= {name}


def files_below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_member_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(write(tmp_path / "model"), tmp_path / "x.nemo")
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1000)
    with pytest.raises(UserError, match=r"model_config.yaml' needs [\d,]+ bytes and 1,000 are free"):
        open_source(archive, scratch=tmp_path / "scratch")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    folder = write(tmp_path / "model")
    torch.save({"x": Evil()}, folder / "model_weights.ckpt", pickle_module=pickle)
    assert "refused" in refusal(pack(folder, tmp_path / "x.nemo"), tmp_path / "scratch")
    assert not marker.exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_truncated_archive(share: float, mode: str, tmp_path: Path) -> None:
    archive = pack(write(tmp_path / "model"), tmp_path / "x.nemo", mode)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    refusal(archive, tmp_path / "scratch")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_damaged_compression(mode: str, tmp_path: Path) -> None:
    archive = pack(write(tmp_path / "model"), tmp_path / "x.nemo", mode)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    archive.write_bytes(content)
    assert "fetch it again" in refusal(archive, tmp_path / "scratch")


def test_archive_that_is_not_there(tmp_path: Path) -> None:
    assert "x.nemo: not a readable tar archive" in refusal(tmp_path / "x.nemo", tmp_path / "scratch")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"- a", b"a: [", b"[" * 3000, b"2001-99-99: 1", b"a: !!float abc", b"a: !!bool x",
        b"a: !!timestamp x", b"1: 2", b"a: \x01", b"\xff\xfe\x00", b"!!python/object/apply:os.abort []",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_configuration_that_is_none(content: bytes, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model_config.yaml").write_bytes(content)
    assert "model_config.yaml" in refusal(folder, tmp_path)


HUGE = "1" + 400 * "0"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tokenizer: foo", "tokenizer='foo'"),
        ("normalization: [rmsnorm]", "normalization=['rmsnorm']"),
        ("activation: {gelu: 1}", "activation={'gelu': 1}"),
        ("position_embedding_type: [[rope]]", "position_embedding_type=[['rope']]"),
        ("window_size: [a, 0]", "window_size=['a', 0]"),
        (f"window_size: [{HUGE}, 0]", "window_size=[1000"),
        ("rotary_percentage: 1e308", "rotary_percentage='1e308'"),
        ("rotary_percentage: 1.0e+308", "rotary_percentage=1e+308"),
        (f"rotary_percentage: {HUGE}", "rotary_percentage=1000"),
        (f"rotary_base: {HUGE}", "rotary_base=1000"),
        (f"layernorm_epsilon: -{HUGE}", "layernorm_epsilon=-1000"),
        *((f"{name}: {HUGE}", f"{name}=1000") for name in SIZES),
        *((f"{name}: '{HUGE}'", f"{name}='1000") for name in SIZES),
        *((f"{name}: 0x{HUGE * 20}", f"{name}=a number of thousands of digits") for name in SIZES),
        (f"spin: {HUGE}", "spin=1000"),
        (f"spin: [0x{HUGE * 20}]", "spin=[a number of thousands of digits]"),
        ("mcore_customization_config: {[1]: 2}", "unhashable"),
        ("spin: " + "{a: " * 3000 + "1" + "}" * 3000, "recursion"),
        ("spin: " + "[" * 200 + "]" * 200, "spin=[[[[["),
        ("spin: &a [*a]", "spin=[[[[["),
    ],
    ids=lambda value: value[:50],
)
def test_configuration_with_an_evil_line(line: str, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    file = folder / "model_config.yaml"
    name = line.split(":")[0]
    config = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != name}
    file.write_text(yaml.safe_dump(config) + line + "\n")
    assert words in refusal(folder, tmp_path / "scratch", UserError)


@pytest.mark.parametrize("member", ["gone", "", "..", "/etc/passwd", "sub/x", "a\0b", "a\nb", "x" * 400])
def test_tokenizer_that_is_not_there(member: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer={"model": f"nemo:{member}"})
    assert "no such file" in refusal(folder, tmp_path / "scratch", UserError)


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_missing_rank_is_named(rank: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tp=4)
    (folder / f"mp_rank_{rank:02d}/model_weights.ckpt").unlink()
    message = refusal(folder, tmp_path)
    assert "missing" in message and ("a rank's file" in message or rank == 3)


def test_rank_twice(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tp=2)
    (folder / "mp_rank_01").rename(folder / "tp_rank_00_pp_rank_000")
    assert "is the same rank as mp_rank_00" in refusal(folder, tmp_path)


@pytest.mark.parametrize("rows", [32, 40])
def test_ranks_of_two_checkpoints(rows: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tp=2)
    file, name = folder / "mp_rank_01/model_weights.ckpt", f"{OLD}encoder.layers.1.mlp.dense_h_to_4h.weight"
    content = torch.load(file, weights_only=True)
    torch.save({**content, name: torch.zeros(rows, 48)}, file)
    assert "the files are not of one checkpoint" in refusal(folder, tmp_path)


def test_distributed_checkpoint_has_a_remedy(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model_weights.ckpt").unlink()
    (folder / "model_weights").mkdir()
    assert "export it with NeMo" in refusal(folder, tmp_path)
