"""The whole command: published whole or not at all, reused when nothing changed, refused otherwise."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from builders.checkpoint import check_file, load_rank, read_manifest
from builders.errors import ArtifactError, LayoutError, SourceError, UserError
from cluster.convert import ConvertResult, convert
from cluster.convert_options import ConvertOptions
from cluster.progress import LineReporter
from tests.cluster.test_cli import one_line_error
from tests.disks import small_disk
from tests.nemo_writer import OLD, pack, plain_gpt, write_nemo
from tests.oracle import gpt2, llama, random_model
from tests.tiny import save_llama
from tests.writers import write_meta

ROOT = Path(__file__).parent.parent.parent


def go(model: Path, out: Path, **changes: Any) -> ConvertResult:
    options = ConvertOptions(model_dir=str(model), output_dir=out, **changes)
    return convert(options, LineReporter(io.StringIO(), as_json=False))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, byte by byte."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "model")


def test_tokenizer_and_generation_settings_travel(model: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )
    tokenizer.save_pretrained(model)
    go(model, tmp_path / "out")
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out" / "tokenizer")
    assert loaded.get_vocab() == {"a": 0, "b": 1}
    assert (tmp_path / "out/generation_config.json").read_bytes() == (
        model / "generation_config.json"
    ).read_bytes()
    assert set(read_manifest(tmp_path / "out").source.files) >= {"model.safetensors", "tokenizer.json"}


def test_again_is_reused_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    first = go(model, tmp_path / "out", tp_size=2)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    second = go(model, tmp_path / "out", tp_size=2)
    assert (first.reused, second.reused, second.key) == (False, True, first.key)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


def test_touched_sources_are_hashed_again_and_still_reused(model: Path, tmp_path: Path) -> None:
    go(model, tmp_path / "out")
    os.utime(model / "model.safetensors", (1, 1))
    assert go(model, tmp_path / "out").reused


def test_changed_weights_are_refused_then_overwritten(model: Path, tmp_path: Path) -> None:
    old = go(model, tmp_path / "out")
    save_llama(model, seed=1)
    before = content(tmp_path / "out")
    with pytest.raises(ArtifactError, match="other inputs; add --overwrite"):
        go(model, tmp_path / "out")
    assert content(tmp_path / "out") == before
    new = go(model, tmp_path / "out", overwrite=True)
    assert new.key != old.key and content(tmp_path / "out") != before


def test_other_weights_of_the_same_age_and_size_are_other_inputs(model: Path, tmp_path: Path) -> None:
    """A time that a program can set proves nothing."""
    go(model, tmp_path / "out")
    other = save_llama(tmp_path / "other", seed=1)
    same = (model / "model.safetensors").stat()
    for folder in (model, other):
        os.utime(folder / "model.safetensors", ns=(same.st_mtime_ns, same.st_mtime_ns))
    with pytest.raises(ArtifactError, match="other inputs"):
        go(other, tmp_path / "out")
    shutil.copy2(other / "model.safetensors", model / "model.safetensors")
    with pytest.raises(ArtifactError, match="other inputs"):
        go(model, tmp_path / "out")


@pytest.mark.parametrize("rank", [0, 1])
def test_every_file_of_an_unpacked_archive_counts(tmp_path: Path, rank: int) -> None:
    config, tensors = plain_gpt(random_model(gpt2(vocab_size=104)))  # type: ignore[arg-type]
    source = write_nemo(tmp_path / "unpacked", config, tensors, prefix=OLD, tp=2)
    files = [f"mp_rank_0{rank}/model_weights.ckpt" for rank in (0, 1)]
    done = go(source, tmp_path / "out")
    assert set(read_manifest(done.output_dir).source.files) >= set(files)
    changed = torch.load(source / files[rank], weights_only=True)
    next(iter(changed.values())).add_(1)
    torch.save(changed, source / files[rank])
    with pytest.raises(ArtifactError, match="other inputs"):
        go(source, tmp_path / "out")


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize(
    ("most", "few", "names"),
    [
        (torch.bfloat16, torch.float32, [HEAD]),
        (torch.float32, torch.bfloat16, [HEAD, EMBEDDING]),
        (torch.bfloat16, torch.float16, ["model.norm.weight"]),
        (torch.bfloat16, torch.float32, [f"model.layers.{i}.input_layernorm.weight" for i in range(3)]),
        (torch.float16, torch.float32, [ROTARY]),
    ],
)
def test_auto_keeps_what_most_of_the_model_is(
    most: torch.dtype, few: torch.dtype, names: list[str], model: Path, tmp_path: Path
) -> None:
    """By bytes, not by what comes first; the buffer of ROTARY is larger than the model and is not of it."""
    tensors = load_file(model / "model.safetensors") | {ROTARY: torch.ones(10**5)}
    mixed = {name: tensor.to(few if name in names else most) for name, tensor in tensors.items()}
    save_file(mixed, model / "model.safetensors")
    assert f"torch.{read_manifest(go(model, tmp_path / 'out').output_dir).dtype}" == str(most)


def test_auto_leaves_a_copy_of_the_embedding_out(tmp_path: Path) -> None:
    random_model(gpt2(n_layer=1, vocab_size=2000)).half().save_pretrained(tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, HEAD: tensors["transformer.wte.weight"].float()}, file)
    assert read_manifest(go(tmp_path / "model", tmp_path / "out").output_dir).dtype == "float16"


def test_auto_of_a_dtype_that_is_not_written(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    doubled = {name: tensor if name == HEAD else tensor.double() for name, tensor in tensors.items()}
    save_file(doubled, model / "model.safetensors")
    with pytest.raises(SourceError, match="weights are float64; choose --dtype float32, float16, bfloat16"):
        go(model, tmp_path / "out")
    assert read_manifest(go(model, tmp_path / "out", dtype="float32").output_dir).dtype == "float32"


def test_lost_tokenizer_file_is_damage(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    go(model, tmp_path / "out")
    (tmp_path / "out/tokenizer/tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="damaged"):
        go(model, tmp_path / "out")


def test_link_to_a_folder_stays_a_link(model: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk/out")
    first = go(model, tmp_path / "out")
    save_llama(model, seed=1)
    second = go(model, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink() and first.key != second.key
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["out"]


def test_other_layout_is_refused(model: Path, tmp_path: Path) -> None:
    go(model, tmp_path / "out")
    with pytest.raises(ArtifactError, match="--overwrite"):
        go(model, tmp_path / "out", tp_size=2)


def test_damaged_output_is_named_and_can_be_overwritten(model: Path, tmp_path: Path) -> None:
    go(model, tmp_path / "out")
    (tmp_path / "out/rank0.safetensors").unlink()
    with pytest.raises(ArtifactError, match="damaged"):
        go(model, tmp_path / "out")
    assert not go(model, tmp_path / "out", overwrite=True).reused


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_never_touched(model: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not a whole checkpoint of ours"):
        go(model, tmp_path / "out", overwrite=overwrite)
    assert content(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_empty_folder_is_filled(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert not go(model, tmp_path / "out").reused


def test_workers_write_the_same_bytes(model: Path, tmp_path: Path) -> None:
    go(model, tmp_path / "one", tp_size=2, pp_size=2)
    go(model, tmp_path / "four", tp_size=2, pp_size=2, workers=4)
    assert content(tmp_path / "one") == content(tmp_path / "four")


def test_nothing_is_left_behind(model: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    go(model, tmp_path / "made/out")
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(SourceError):
        go(model, tmp_path / "made/other")
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["out"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("moment_s", [0.0, 0.05, 0.3])
def test_killed_conversion_leaves_nothing_visible(tmp_path: Path, moment_s: float, workers: int) -> None:
    model = save_llama(tmp_path / "model", hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    command = [
        sys.executable,
        "-m",
        "cluster",
        "convert",
        "--model_dir",
        model,
        "--output_dir",
        tmp_path / "out",
    ]
    layout = ["--tp_size", "4", "--workers", str(workers)]
    process = subprocess.Popen([*map(str, command), *layout], cwd=ROOT, stderr=subprocess.DEVNULL)
    drafts = tmp_path / ".rankforge-drafts"
    while process.poll() is None and not list(drafts.glob("*/rank0.safetensors")):
        time.sleep(0.005)
    time.sleep(moment_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = (tmp_path / "out").exists()
    result = go(model, tmp_path / "out", tp_size=4)
    assert result.reused == finished
    assert not drafts.exists()
    assert len(load_file(tmp_path / "out/rank3.safetensors")) > 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment_s", [0.0, 0.3])
def test_interrupted_conversion_clears_up(tmp_path: Path, sent: signal.Signals, moment_s: float) -> None:
    """To the whole group, as a terminal does."""
    model = save_llama(tmp_path / "model", hidden_size=512, intermediate_size=4096, num_hidden_layers=8)
    command = [sys.executable, "-m", "cluster", "convert", "--model_dir", model, "--output_dir"]
    process = subprocess.Popen(
        [*map(str, command), str(tmp_path / "out"), "--tp_size", "4", "--workers", "2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (tmp_path / ".rankforge-drafts").exists():
        time.sleep(0.005)
    time.sleep(moment_s)
    os.killpg(process.pid, sent)
    _, errors = process.communicate()
    assert "Traceback" not in errors
    if (tmp_path / "out").exists():  # done before the signal came
        assert process.returncode in (0, 128 + sent)
        return
    assert process.returncode == 128 + sent
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


class Meddling(LineReporter):
    """Does something else when the work begins."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__(io.StringIO(), as_json=False)
        self._meddle = meddle

    def start(self, *args: Any, **kwargs: Any) -> None:
        super().start(*args, **kwargs)
        self._meddle()


def test_source_that_changes_while_it_is_read(model: Path, tmp_path: Path) -> None:
    options = ConvertOptions(model_dir=str(model), output_dir=tmp_path / "out")
    file = model / "model.safetensors"
    copy = shutil.copy2(file, tmp_path / "copy")
    with pytest.raises(SourceError, match=r"model.safetensors: changed while it was read; run again"):
        convert(options, Meddling(lambda: os.replace(copy, file)))
    assert not (tmp_path / "out").exists()


def test_same_conversion_twice_at_once(model: Path, tmp_path: Path) -> None:
    options = ConvertOptions(model_dir=str(model), output_dir=tmp_path / "out")
    assert convert(options, Meddling(lambda: go(model, tmp_path / "out"))).reused


def test_other_conversion_at_once(model: Path, tmp_path: Path) -> None:
    options = ConvertOptions(model_dir=str(model), output_dir=tmp_path / "out")
    with pytest.raises(ArtifactError, match="appeared meanwhile"):
        convert(options, Meddling(lambda: go(model, tmp_path / "out", tp_size=2)))
    assert read_manifest(tmp_path / "out").mapping.tp_size == 2


def test_number_that_float16_cannot_hold(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", dtype="float32")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = 1e5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"norm.weight: holds 100000, and --dtype float16 ends at 65504"):
        go(model, tmp_path / "out", dtype="float16")
    assert not go(model, tmp_path / "out", dtype="bfloat16").reused


def test_dtype_auto_keeps_and_explicit_casts(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", dtype="float32")
    assert read_manifest_dtype(go(model, tmp_path / "auto")) == "float32"
    assert read_manifest_dtype(go(model, tmp_path / "half", dtype="bfloat16")) == "bfloat16"
    wide, narrow = (load_file(tmp_path / name / "rank0.safetensors") for name in ("auto", "half"))
    assert all(torch.equal(wide[name].bfloat16(), narrow[name]) for name in wide)


def read_manifest_dtype(result: ConvertResult) -> str:
    return read_manifest(result.output_dir).dtype


def test_random_weights_need_a_config_alone(tmp_path: Path) -> None:
    config = save_llama(tmp_path / "model") / "config.json"
    results = [
        go(config, tmp_path / f"tp{n}", load_format="random", tp_size=n, dtype="float32") for n in (1, 2)
    ]
    assert sorted(content(tmp_path / "tp2")) == ["config.json"]
    whole = load_rank(tmp_path / "tp1", 0).state_dict()["layers.1.mlp.down.weight"]
    parts = [load_rank(tmp_path / "tp2", rank).state_dict()["layers.1.mlp.down.weight"] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts, dim=1), whole) and whole.std() > 0.01
    assert results[0].num_bytes == 0
    assert go(config, tmp_path / "tp1", load_format="random", dtype="float32").reused
    with pytest.raises(ArtifactError):
        go(config, tmp_path / "tp1", load_format="random", dtype="float32", seed=1)


def test_config_alone_without_random_is_refused(tmp_path: Path) -> None:
    config = save_llama(tmp_path / "model") / "config.json"
    with pytest.raises(SourceError, match="--load_format random"):
        go(config, tmp_path / "out")


def test_ignored_field(model: Path, tmp_path: Path) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "wheel_size": 26}))
    with pytest.raises(UserError, match=r"wheel_size=26.*--ignore_config_field wheel_size"):
        go(model, tmp_path / "out")
    assert not go(model, tmp_path / "out", ignore_config_field=["wheel_size"]).reused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tp_size": 3}, "sizes that work: 1, 2, 4"),
        ({"pp_size": 4}, "sizes that work: 1 to 3"),
        ({"tp_size": 0}, "at least 1"),
        ({"ep_size": 2}, "--ep_size=2"),
        ({"ep_size": 2, "tp_size": 2}, "no experts"),
        ({"moe_tp_mode": 1}, "no experts"),
        ({"moe_normalization_mode": 0}, "no experts"),
    ],
)
def test_layouts_that_cannot_be_made(
    model: Path, tmp_path: Path, changes: dict[str, int], words: str
) -> None:
    with pytest.raises(LayoutError, match=words) as error:
        go(model, tmp_path / "out", **changes)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file/out", "/proc/out", "x" * 300, f"{'x' * 300}/out", "loop/out"])
def test_output_that_cannot_be_written(model: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="choose another --output_dir"):
        go(model, tmp_path / place)
    assert {item.name for item in tmp_path.iterdir()} == {"model", "file", "loop"}


def test_model_that_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither a path nor a Hugging Face id"):
        go(Path("x" * 300), tmp_path / "out")


def test_new_folders_go_when_nothing_comes_of_it(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").chmod(0o644)
    (model / "config.json").write_text("{}")
    with pytest.raises(UserError):
        go(model, tmp_path / "new/er/out")
    assert not (tmp_path / "new").exists()


def test_full_disk_is_one_line(model: Path, tmp_path: Path) -> None:
    big = save_llama(tmp_path / "big", hidden_size=256, intermediate_size=2048)
    with small_disk(tmp_path / "disk", "4m") as disk:
        flags = ["--model_dir", big, "--output_dir", disk.folder / "out"]
        error = one_line_error(disk.run(sys.executable, "-m", "cluster", "convert", *flags))
        assert re.search(r"needs .* bytes and .* are free", error)
        assert list(disk.here.iterdir()) == []


def test_nemo_archive_is_unpacked_beside_and_cleared_away(tmp_path: Path) -> None:
    config, tensors = plain_gpt(random_model(gpt2(vocab_size=104)))  # type: ignore[arg-type]
    archive = pack(
        write_nemo(tmp_path / "unpacked", config, tensors, prefix=OLD, tp=2), tmp_path / "gpt.nemo"
    )
    (tmp_path / "made").mkdir()
    result = go(archive, tmp_path / "made/out", tp_size=2, workers=2)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["out"]
    assert list(read_manifest(result.output_dir).source.files) == ["gpt.nemo"]
    assert go(archive, tmp_path / "made/out", tp_size=2).reused


def test_meta_folder(tmp_path: Path) -> None:
    llama_model = random_model(llama(intermediate_size=128, num_key_value_heads=4, vocab_size=104))
    folder = write_meta(llama_model, tmp_path / "meta", shards=2, split_vocab=False)  # type: ignore[arg-type]
    result = go(folder, tmp_path / "out", pp_size=2, dtype="bfloat16")
    assert set(read_manifest(result.output_dir).source.files) == {
        "consolidated.00.pth",
        "consolidated.01.pth",
    }


def test_damaged_content_is_replaced_when_asked(model: Path, tmp_path: Path) -> None:
    go(model, tmp_path / "out")
    file = tmp_path / "out/rank0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert not go(model, tmp_path / "out", overwrite=True).reused
    check_file(file, read_manifest(tmp_path / "out").ranks[0], verify=True)
