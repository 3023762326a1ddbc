"""Random models and layouts for property tests."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from builders.errors import LayoutError
from builders.mapping import Mapping, check_mapping
from builders.spec import ModelSpec, MoeSpec, RopeSpec

quick = settings(deadline=None, max_examples=60)

SPLITS = st.sampled_from(["none", "vocab", "hidden"])


@st.composite
def specs(draw: DrawFn) -> ModelSpec:
    """Any model that the families could make, in sizes of a few."""
    kv_heads, group = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 4]))
    head_dim, position = 2 * draw(st.integers(1, 3)), draw(st.sampled_from(["learned", "rope", "alibi"]))
    moe = draw(st.none() | experts())
    bias = draw(st.booleans())
    return ModelSpec(
        family="llama",
        vocab_size=draw(st.integers(4, 200)),
        hidden_size=draw(st.integers(1, 12)),
        num_layers=draw(st.integers(1, 5)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=draw(st.sampled_from([4, 6, 8, 12, 16, 24])),
        max_positions=8,
        norm=draw(st.sampled_from(["layernorm", "layernorm1p", "rmsnorm"])),
        norm_eps=1e-5,
        norm_bias=draw(st.booleans()),
        position=position,
        rope=RopeSpec(rotary_dim=head_dim) if position == "rope" else None,
        activation="gelu",
        gated=draw(st.booleans()),
        moe=moe,
        qkv_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=bias and moe is None,
        attention_scale=1.0,
        qk_norm=draw(st.sampled_from([None, "whole", "head"])),
        tied_embeddings=draw(st.booleans()),
        head_bias=draw(st.booleans()),
    )


def experts() -> SearchStrategy[MoeSpec]:
    return st.builds(MoeSpec, num_experts=st.integers(1, 8), top_k=st.just(1), renormalize=st.booleans())


def mappings() -> SearchStrategy[Mapping]:
    """Any layout that can be written down, whether or not a model can be spread so."""
    sizes = st.sampled_from([1, 2, 3, 4, 6, 8])
    tp_and_ep = sizes.flatmap(
        lambda tp: st.tuples(st.just(tp), st.sampled_from([ep for ep in range(1, tp + 1) if tp % ep == 0]))
    )
    return st.builds(
        lambda tp_ep, pp, split: Mapping(
            tp_size=tp_ep[0], ep_size=tp_ep[1], pp_size=pp, embedding_split=split
        ),
        tp_and_ep,
        st.integers(1, 5),
        SPLITS,
    )


def is_legal(spec: ModelSpec, mapping: Mapping) -> bool:
    try:
        check_mapping(spec, mapping)
    except LayoutError:
        return False
    return True


@st.composite
def spread_models(draw: DrawFn) -> tuple[ModelSpec, Mapping]:
    """A model and any layout that it can have."""
    spec = draw(specs())
    sizes = [1, 2, 3, 4, 6, 8, 12, 16]
    legal = [
        mapping
        for tp in sizes
        for ep in range(1, tp + 1)
        if tp % ep == 0
        for split in ("none", "vocab", "hidden")
        if is_legal(spec, mapping := Mapping(tp_size=tp, ep_size=ep, embedding_split=split))  # type: ignore[arg-type]
    ]
    chosen = draw(st.sampled_from(legal))
    pp = draw(st.integers(1, spec.num_layers))
    return spec, Mapping(
        tp_size=chosen.tp_size, ep_size=chosen.ep_size, embedding_split=chosen.embedding_split, pp_size=pp
    )
