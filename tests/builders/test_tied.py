"""A head that is called tied and stored all the same: a copy is left out, another one is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from builders.errors import SourceError
from builders.mapping import Mapping
from builders.sources import tied
from builders.sources.hf import open_folder
from builders.sources.opened import open_source
from tests.builders.test_families import answers, check
from tests.convert_tools import convert_opened
from tests.nemo_writer import CORE, OLD, config_of, nemo_tensors, plain_gpt, write_nemo
from tests.oracle import bigcode, gpt2, llama, mistral, mixtral, mpt, random_model, starcoder2

ROOT = Path(__file__).parent.parent.parent
FAMILIES = {f.__name__: f for f in (llama, mistral, mixtral, starcoder2, gpt2, bigcode, mpt)}


def say_tied(folder: Path, flag: bool | None) -> None:
    """In the configuration alone; None leaves it to the class."""
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = flag
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def save_untied(folder: Path, config: PreTrainedConfig) -> None:
    random_model(config).save_pretrained(folder)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", FAMILIES)
def test_another_head_is_kept(name: str, tmp_path: Path) -> None:
    make: Callable[..., Any] = FAMILIES[name]
    save_untied(tmp_path / "model", make(tie_word_embeddings=False))
    say_tied(tmp_path / "model", True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    opened = open_folder(tmp_path / "model")
    assert not opened.spec.tied_embeddings
    wanted = answers(model, opened)
    check(wanted, convert_opened(opened, Mapping(), tmp_path / "one"))
    check(wanted, convert_opened(opened, Mapping(tp_size=2, pp_size=2), tmp_path / "four"))


def test_another_head_where_the_class_ties_by_default(tmp_path: Path) -> None:
    save_untied(tmp_path / "model", gpt2(tie_word_embeddings=False))
    say_tied(tmp_path / "model", None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    opened = open_folder(tmp_path / "model")
    check(answers(model, opened), convert_opened(opened, Mapping(), tmp_path / "out"))


@pytest.mark.parametrize("at", [0, 50, 100])
def test_one_number_makes_another_head(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever chunk it lies; and a whole copy is still one."""
    monkeypatch.setattr(tied, "_CHUNK_BYTES", 1024)
    random_model(gpt2()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["transformer.wte.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    assert open_folder(tmp_path).spec.tied_embeddings
    head[at, 47] += 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    assert not open_folder(tmp_path).spec.tied_embeddings


def test_a_copy_in_another_dtype_is_one(tmp_path: Path) -> None:
    random_model(gpt2()).bfloat16().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].float()
    save_file(tensors, tmp_path / "model.safetensors")
    assert open_folder(tmp_path).spec.tied_embeddings


@pytest.mark.parametrize("shape", [(102, 48), (101, 47), (48,), ()], ids=str)
def test_head_of_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    random_model(gpt2()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.zeros(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"lm_head\.weight of shape"):
        convert_opened(open_folder(tmp_path), Mapping(), tmp_path / "out")


def test_comparing_holds_little_in_memory(tmp_path: Path) -> None:
    """Of two tensors of 160 MB: all else that opening takes is in memory before it begins."""
    random_model(gpt2()).save_pretrained(tmp_path / "small")
    big = Path(shutil.copytree(tmp_path / "small", tmp_path / "big"))
    wide = torch.zeros(10**6, 40)
    tensors = load_file(big / "model.safetensors") | {"transformer.wte.weight": wide}
    save_file({**tensors, "lm_head.weight": wide.clone()}, big / "model.safetensors")
    code = (
        "import re, sys; from pathlib import Path; from builders.sources.hf import open_folder\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "open_folder(Path(sys.argv[1])); before = peak()\n"
        "assert open_folder(Path(sys.argv[2])).spec.tied_embeddings; print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "small"), str(big)]
    grown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(grown.stdout) * 1024 < wide.nbytes / 2


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("prefix", [CORE, OLD])
def test_nemo_says_shared_and_holds_another_head(prefix: str, pp: int, tmp_path: Path) -> None:
    model = random_model(llama(num_hidden_layers=4, vocab_size=104, rms_norm_eps=1e-6))
    tensors = nemo_tensors(model, core=prefix == CORE)
    config = config_of(model, "fast-swiglu", normalization="rmsnorm", layernorm_epsilon=1e-6)
    config["share_embeddings_and_output_weights"] = True
    folder = write_nemo(tmp_path / "model", config, tensors, prefix=prefix, tp=2, pp=pp)
    opened = open_source(folder, scratch=tmp_path / "scratch")
    assert not opened.spec.tied_embeddings
    check(answers(model, opened), convert_opened(opened, Mapping(tp_size=2), tmp_path / "out"))


@pytest.mark.parametrize("own", [False, True], ids=["copy", "own"])
def test_nemos_older_name_of_the_head(own: bool, tmp_path: Path) -> None:
    model = random_model(gpt2(vocab_size=104, n_layer=4, tie_word_embeddings=not own))
    config, tensors = plain_gpt(model)  # type: ignore[arg-type]
    tensors["word_embeddings.weight"] = model.state_dict()["lm_head.weight"]
    folder = write_nemo(tmp_path / "model", config, tensors, prefix=OLD, tp=2, pp=2)
    opened = open_source(folder, scratch=tmp_path / "scratch")
    assert opened.spec.tied_embeddings == (not own)
    check(answers(model, opened), convert_opened(opened, Mapping(pp_size=2), tmp_path / "out"))
