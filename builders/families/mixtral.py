"""Mixtral: LLaMA's attention, experts in place of the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from builders.families import llama
from builders.families.fields import Fields
from builders.families.view import Family, View, view
from builders.spec import ModelSpec, MoeSpec


def _spec(fields: Fields) -> ModelSpec:
    experts = MoeSpec(
        num_experts=fields.size("num_local_experts"),
        top_k=fields.size("num_experts_per_tok"),
        renormalize=True,
    )
    return replace(llama.read_spec(fields), family="mixtral", moe=experts)


def _views(spec: ModelSpec) -> Mapping[str, View]:
    moe = "layers.{i}.block_sparse_moe"
    experts = {"gate": "w1", "up": "w3", "down": "w2"}
    shared = {name: place for name, place in llama.views(spec).items() if ".mlp." not in name}
    return {
        **shared,
        "layers.{i}.moe.router": view(f"{moe}.gate"),
        **{
            f"layers.{{i}}.moe.experts.{{e}}.{ours}": view(f"{moe}.experts.{{e}}.{theirs}")
            for ours, theirs in experts.items()
        },
    }


FAMILY = Family(
    name="mixtral",
    model_types=["mixtral"],
    spec=_spec,
    views=_views,
    prefixes=llama.FAMILY.prefixes,
    ignored=llama.FAMILY.ignored,
)
