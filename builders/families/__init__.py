"""The model families: one table each, and how a configuration finds its own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from builders.errors import ConfigError
from builders.families import dbrx, gpt2, gpt_bigcode, llama, mixtral, mpt, starcoder2
from builders.families.fields import HARMLESS, Fields
from builders.families.view import Family
from builders.spec import MOST_LAYERS, ModelSpec

FAMILIES: Mapping[str, Family] = {
    model_type: module.FAMILY
    for module in (gpt2, gpt_bigcode, starcoder2, llama, mpt, mixtral, dbrx)
    for model_type in module.FAMILY.model_types
}


def from_transformers(values: dict[str, Any], ignored: Collection[str] = ()) -> tuple[Family, ModelSpec]:
    """The family and the spec of a Hugging Face config.json; `ignored` fields are not complained about."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(f"config field model_type={model_type!r}: unknown; known: {', '.join(FAMILIES)}")
    quantization = values.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ConfigError(
            f"config field quantization_config={method!r}: quantized checkpoints are not read; "
            "convert the original one"
        )
    family = FAMILIES[model_type]
    _check_sizes(values, {*HARMLESS, *ignored})
    fields = Fields(values, _configuration(family, values))
    assert family.spec is not None, f"{family.name}: listed by model type, so it reads configurations"
    spec = family.spec(fields)
    _check_layer_types(fields, spec)
    fields.check_all_read({*family.harmless, *ignored})
    return family, spec


def _configuration(family: Family, values: dict[str, Any]) -> object:
    """The family's own configuration class, which knows the defaults."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[values["model_type"]]
    try:
        with _silence("transformers"):
            return cls.from_dict(_relevant(cls, family.prepare(values)) | _NO_TOKENS)
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        why = _one_line(error.__cause__ or error).split(". Errors:")[0]
        raise ConfigError(f"config of type {values['model_type']!r}: {why}") from error


@contextmanager
def _silence(name: str) -> Iterator[None]:
    """The class warns on the screen of what is understood here, or refused in one line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""Else the class says on the screen what it thinks of them."""


def _relevant(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the model, with 8.0 for 8 where the class takes nothing but floats."""
    nested: Mapping[str, Any] = getattr(cls, "sub_configs", {})
    found: dict[str, Any] = {}
    for name, value in values.items():
        declared = getattr(cls, "__dataclass_fields__", {}).get(name)
        if name in nested and isinstance(value, Mapping):
            found[name] = _relevant(nested[name], value)
        elif type(value) is int and declared and _only_float(declared.type):
            found[name] = float(value)
        elif name not in HARMLESS:
            found[name] = value
    return found


def _only_float(declared: Any) -> bool:
    options = get_args(declared) or (declared,)
    return float in options and int not in options


_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_SIZES = ("_size", "_embeddings", "_dim", "_len")


def _check_sizes(values: Mapping[str, Any], harmless: Collection[str]) -> None:
    """Before a configuration class divides by one of them, or makes a list of that many layers."""
    for name, value in values.items():
        if name in _LAYERS and type(value) is int and value > MOST_LAYERS:
            raise Fields(values).error(name, value, f"must be at most {MOST_LAYERS}")
        sized = name.startswith(("n_", "num_", "d_model")) or name.endswith(_SIZES)
        if sized and name not in harmless and type(value) is int and value < 1:
            raise Fields(values).error(name, value, "must be at least 1")


def _check_layer_types(fields: Fields, spec: ModelSpec) -> None:
    """They may say what the model is, and no more: all layers have the window, or none has."""
    kind = "full_attention" if spec.sliding_window is None else "sliding_attention"
    if fields.written("layer_types") not in (None, [kind] * spec.num_layers):
        known = f"{spec.num_layers} times {kind}, for sliding_window={spec.sliding_window}"
        why = f"layers of different kinds are not supported; known: {known}"
        raise fields.error("layer_types", fields.written("layer_types"), why)


def _one_line(error: BaseException) -> str:
    """What the class says; it repeats values of any length."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 250 else f"{words[:250]}..."
