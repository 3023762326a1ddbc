"""A model of every family with its engines, and all that a scenario asks of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from builders.mapping import Mapping
from builders.sources.opened import Opened, open_source
from tests.actors.scenario import LIMITS
from tests.actors.wishes import EOS, Wish, wishes_of
from tests.builders.test_engine import build
from tests.builders.test_nemo import gpt_next
from tests.convert_tools import convert_opened
from tests.cuda_engines import build_untimed
from tests.nemo_writer import CORE, config_of, nemo_tensors, write_nemo
from tests.oracle import MODELS, random_model

FAMILIES = (
    "gpt2",
    "gpt_bigcode-multi-query",
    "starcoder2",
    "nemo",
    "llama2-gqa",
    "mpt",
    "mixtral",
    "dbrx",
)
"""One of each; starcoder2 has a window."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and what it says."""

    model: PreTrainedModel
    saved: Path
    opened: Opened
    wishes: tuple[Wish, ...]

    @classmethod
    def of(cls, name: str, folder: Path) -> Subject:
        model = gpt_next() if name == "nemo" else random_model(MODELS[name]())
        saved = folder / "model"
        if name == "nemo":
            tensors = nemo_tensors(model, core=True)
            write_nemo(saved, config_of(model, "squared-relu"), tensors, prefix=CORE)
        else:
            model.save_pretrained(saved)
        opened = open_source(saved, scratch=folder / "scratch")
        return cls(model=model, saved=saved, opened=opened, wishes=wishes_of(model))

    @classmethod
    def saved_before(cls, folder: Path) -> Subject:
        """What `of` left there, perhaps on another machine."""
        saved = folder / "model"
        model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
        opened = open_source(saved, scratch=folder / "scratch")
        return cls(model=model, saved=saved, opened=opened, wishes=wishes_of(model))

    def engine(self, mapping: Mapping, out: Path) -> Path:
        """Interpreted: compiling takes longer than all that is tested here."""
        return _ending(build(convert_opened(self.opened, mapping, out), compiled=False, limits=LIMITS))

    def cuda_engine(self, mapping: Mapping, out: Path, target: str, workers: int | None = None) -> Path:
        """With kernels."""
        return _ending(build_untimed(self.saved, mapping, LIMITS, out, target, workers))


def _ending(engine: Path) -> Path:
    """With the model's own end."""
    (engine / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return engine
