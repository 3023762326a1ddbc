"""Tiny checkpoints for tests that need one and not a particular one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def llama_config(**changes: object) -> LlamaConfig:
    """Three layers, four heads, odd vocabulary."""
    sizes = {
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**{**sizes, **changes})


def save_llama(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A random LLaMA in Hugging Face's layout."""
    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(**changes)).save_pretrained(folder)
    return folder
