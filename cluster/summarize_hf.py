"""Summaries by Transformers: the model that an engine was made from, and what users had before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.utils import logging

from actors.sampling_params import SamplingParams
from builders.errors import SourceError, UserError
from cluster.summaries import Prompt, Summary, Text


class HfSummarizer:
    """One model on one device, or spread over all that are there."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        params: SamplingParams,
        *,
        dtype: str,
        spread: bool,
        ends: Collection[int] | None = None,
        wants_logprobs: bool = False,
    ) -> None:
        """`ends` are the tokens that end a text; those of the model by default."""
        self._model = _load(folder, dtype, spread=spread)
        self._tokenizer, self._params, self._wants_logprobs = tokenizer, params, wants_logprobs
        self._ends = set(_ends_of(self._model) if ends is None else ends)
        # Its own settings, such as a temperature, would fill in what is not set here.
        self._model.generation_config = _settings(params, self._ends)
        torch.manual_seed(params.seed or 0)

    def close(self) -> None:
        """Give back the memory."""
        del self._model
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def summarize(self, prompts: Sequence[Prompt]) -> list[Summary]:
        """All at once, padded at their beginnings, with tokens that they have: a penalty finds no others."""
        self._refuse_long(prompts)
        longest = max(map(len, prompts))
        padded = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        found = self._model.generate(self._tensor(padded), attention_mask=self._tensor(mask))
        rows = found[:, longest:].tolist()
        each = self._params.n
        texts = [self._text(row) for row in rows]
        return [Summary(texts=tuple(texts[at : at + each])) for at in range(0, len(texts), each)]

    @torch.inference_mode()
    def scored(self, prompts: Sequence[Prompt], summaries: Sequence[Summary]) -> list[Summary]:
        """By one more pass over every text, alone: nothing is padded."""
        if not self._wants_logprobs:
            return list(summaries)
        pairs = zip(prompts, summaries, strict=True)
        return [self._scored(prompt, summary) for prompt, summary in pairs]

    def _scored(self, prompt: Prompt, summary: Summary) -> Summary:
        rows = [self._logprobs((*prompt, *text.tokens)) for text in summary.texts]
        known = len(prompt) - 1
        texts = zip(summary.texts, rows, strict=True)
        return Summary(
            texts=tuple(replace(text, logprob=float(row[known:].sum())) for text, row in texts),
            prompt_logprob=float(rows[0][:known].sum()),
        )

    def _logprobs(self, tokens: Sequence[int]) -> Tensor:
        """Of every token but the first."""
        ids = self._tensor([tokens])
        logits = self._model(ids).logits[0, :-1].float()
        chosen = logits.gather(1, ids[0, 1:, None])[:, 0]
        return (chosen - logits.logsumexp(-1)).double()

    def _text(self, row: list[int]) -> Text:
        """A row goes on with padding after its end."""
        end = next((at for at, token in enumerate(row) if token in self._ends), None)
        tokens = row if end is None else row[: end + 1]
        text = self._tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Text(tokens=tuple(tokens), text=str(text))

    def _tensor(self, rows: Any) -> Tensor:
        return torch.tensor(rows, device=self._model.device)

    def _refuse_long(self, prompts: Sequence[Prompt]) -> None:
        """A table of positions ends; past it PyTorch fails, on a GPU without a reason."""
        most = getattr(self._model.config, "n_positions", None)
        needed = max(map(len, prompts)) + self._params.max_tokens
        if most is not None and needed > most:
            raise UserError(
                f"--max_input_length and --output_len: an article and its summary take {needed} tokens, the "
                f"model has {most} positions; make them add up to {most} or less"
            )


def _load(folder: Path, dtype: str, *, spread: bool) -> Any:
    if spread and find_spec("accelerate") is None:
        raise UserError(
            "--hf_device_map_auto: takes the library accelerate; pip install accelerate, or leave it out"
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map="auto" if spread else None,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise SourceError(f"--hf_model_dir={folder}: Transformers cannot load it ({error})") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # for which it makes weights up
        raise SourceError(f"--hf_model_dir={folder}: {len(missing)} tensors are missing, first {missing[0]}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (model if spread else model.to(device)).eval()


def _ends_of(model: Any) -> list[int]:
    """A model has one end, several, or none."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _settings(params: SamplingParams, ends: Collection[int]) -> GenerationConfig:
    chances: dict[str, Any] = {
        "do_sample": True, "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p,
    }  # fmt: skip
    beams: dict[str, Any] = {
        "num_beams": params.num_beams, "length_penalty": params.length_penalty,
        "early_stopping": params.early_stopping,
    }  # fmt: skip
    by_beams = params.num_beams > 1
    return GenerationConfig(
        max_new_tokens=params.max_tokens,
        num_return_sequences=params.n,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
        **(beams if by_beams else {"do_sample": False} if params.is_greedy else chances),
    )
