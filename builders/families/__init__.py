"""The model families: one table each, and how a configuration finds its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from builders.errors import ConfigError
from builders.families import dbrx, gpt2, gpt_bigcode, llama, mixtral, mpt, starcoder2
from builders.families.fields import Fields
from builders.families.view import Family
from builders.spec import ModelSpec

FAMILIES: Mapping[str, Family] = {
    model_type: module.FAMILY
    for module in (gpt2, gpt_bigcode, starcoder2, llama, mpt, mixtral, dbrx)
    for model_type in module.FAMILY.model_types
}


def from_transformers(values: dict[str, Any], ignored: Collection[str] = ()) -> tuple[Family, ModelSpec]:
    """The family and the spec of a Hugging Face config.json; `ignored` fields are not complained about."""
    model_type = str(values.get("model_type"))
    if model_type not in FAMILIES:
        raise ConfigError(f"config field model_type={model_type!r}: unknown; known: {', '.join(FAMILIES)}")
    if values.get("quantization_config") is not None:
        method = values["quantization_config"].get("quant_method")
        raise ConfigError(
            f"config field quantization_config={method!r}: quantized checkpoints are not read; "
            "convert the original one"
        )
    family = FAMILIES[model_type]
    _refuse_empty_sizes(values)
    fields = Fields(values, _configuration(family, values))
    assert family.spec is not None, f"{family.name}: listed by model type, so it reads configurations"
    spec = family.spec(fields)
    fields.check_all_read({*family.harmless, *ignored})
    return family, spec


def _configuration(family: Family, values: dict[str, Any]) -> object:
    """The family's own configuration class, which knows the defaults."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[values["model_type"]].from_dict(family.prepare(values))
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"config of type {values['model_type']!r}: {_one_line(error)}") from error


def _refuse_empty_sizes(values: Mapping[str, Any]) -> None:
    """Before a configuration class divides by one of them."""
    for name, value in values.items():
        sized = name.startswith(("n_", "num_", "d_model")) or name.endswith(("_size", "_embeddings"))
        if sized and type(value) is int and value < 1:
            raise ConfigError(f"config field {name}={value}: must be at least 1")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
