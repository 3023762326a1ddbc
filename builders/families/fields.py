"""Reading a model's configuration so that no field is silently left out."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Collection, Mapping
from typing import Any

from builders.errors import ConfigError
from builders.spec import Activation

HARMLESS = frozenset(
    """
    architectures model_type dtype torch_dtype transformers_version use_cache initializer_range
    attention_dropout hidden_dropout residual_dropout embedding_dropout resid_pdrop embd_pdrop emb_pdrop
    attn_pdrop summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id
    output_attentions output_hidden_states output_router_logits return_dict id2label label2id num_labels
    problem_type task_specific_params _name_or_path auto_map name_or_path tokenizer_class
    chunk_size_feed_forward router_aux_loss_coef router_jitter_noise pretraining_tp
    gradient_checkpointing attn_implementation _attn_implementation use_flash_attn finetuning_task
    prefix torchscript pruned_heads unsloth_version unsloth_fixed model_max_length tokenizer_padding_side
    is_decoder use_bfloat16 tf_legacy_loss output_scores return_dict_in_generate remove_invalid_values
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences
    encoder_no_repeat_ngram_size decoder_start_token_id tie_encoder_decoder
    n_special predict_special_tokens output_past _num_labels
    """.split()
)
"""Fields of every family that do not change what the model computes when it is run."""

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}

LARGEST_SIZE = 2**31 - 1
"""Far above every model's sizes, and so low that no arithmetic on sizes overflows."""


class _Repr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print numbers of thousands of digits."""
        return super().repr_int(x, level) if x.bit_length() < 10000 else "a number of thousands of digits"


_REPR = _Repr()
_REPR.maxstring = _REPR.maxother = 80
"""Long values are shortened, so that a complaint stays a line."""


class Fields:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, values: Mapping[str, Any], config: object = None, prefix: str = "") -> None:
        self._values, self._config, self._prefix = values, config, prefix
        self._read: set[str] = set()
        self._children: list[Fields] = []
        self._without: dict[str, str] = {}

    def take(self, name: str, default: Any = None) -> Any:
        """A field's value: the configuration class's where there is one, else as written."""
        self._read.add(name)
        return getattr(self._config, name, self._values.get(name, default))

    def written(self, name: str) -> Any:
        """A field exactly as the file has it, None where it has not."""
        self._read.add(name)
        return self._values.get(name)

    def size(self, name: str, default: int | None = None) -> int:
        """A count, which must be a whole number of at least 1."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, value, "must be a whole number of at least 1")
        if value > LARGEST_SIZE:
            raise self.error(name, value, f"must be at most {LARGEST_SIZE}")
        return value

    def optional_size(self, name: str) -> int | None:
        """A count that may be left out."""
        return None if self.take(name) is None else self.size(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.take(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self.error(name, value, "must be a finite number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number that may be left out."""
        return None if self.take(name) is None else self.number(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(name, value, "must be true or false")
        return value

    def activation(self, name: str) -> Activation:
        """The activation under one of Transformers' names."""
        value = self.take(name)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(name, value, f"unknown activation; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def expect(self, name: str, *allowed: Any, why: str) -> None:
        """Refuse a field that asks for something this decoder does not do."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise self.error(name, value, why)

    def without(self, name: str, why: str) -> None:
        """Say why a field is not read; who gives it must ask for it to be ignored."""
        self._without[name] = why

    def sub(self, name: str) -> Fields:
        """A nested configuration; unread fields of it count too."""
        self._read.add(name)
        written = self._values.get(name)
        if written is not None and not _is_object(written):
            raise self.error(name, written, "must be an object")
        return self.child(name, written or {}, getattr(self._config, name, None))

    def child(self, name: str, values: Mapping[str, Any], config: object = None) -> Fields:
        """Values that belong to a field; those of them that nobody reads count too."""
        child = Fields(values, config, f"{self._prefix}{name}.")
        self._children.append(child)
        return child

    def error(self, name: str, value: object, why: str) -> ConfigError:
        """The one shape that every complaint about a field has."""
        shown = name if name.isprintable() else repr(name)
        return ConfigError(f"config field {self._prefix}{shown}={_REPR.repr(value)}: {why}")

    def check_all_read(self, harmless: Collection[str]) -> None:
        """Refuse fields that nobody read and that are not known to leave the model as it is."""
        for name, value in self._values.items():
            known = name in self._read or name in HARMLESS or f"{self._prefix}{name}" in harmless
            if not known and not self._is_default(name, value):
                why = self._without.get(name, "not understood; if it does not change the model")
                full = f"{self._prefix}{name if name.isprintable() else '...'}"
                raise self.error(name, value, f"{why}, add --ignore_config_field {full}")
        for child in self._children:
            child.check_all_read(harmless)

    def _is_default(self, name: str, value: object) -> bool:
        if value is None:
            return True
        declared = getattr(type(self._config), "__dataclass_fields__", {}).get(name)
        return declared is not None and declared.default == value


def _is_finite(value: float) -> bool:
    """As `math.isfinite`, which overflows on whole numbers beyond the floats."""
    return abs(value) <= sys.float_info.max


def _is_object(value: object) -> bool:
    """YAML's keys may be anything; a configuration's are names."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
