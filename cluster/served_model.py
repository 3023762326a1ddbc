"""A model as the API serves it: an engine, and the words for its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from actors.detokenizer import Words
from cluster.encoder import Encoder
from cluster.engine_client import EngineClient, ModelFacts
from cluster.token_texts import TokenTexts
from cluster.tools import NO_TOOLS, ToolNotation


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Used from one event loop."""

    engine: EngineClient
    encoder: Encoder
    words: Words
    texts: TokenTexts
    created: int
    """When it was opened, in seconds since 1970."""
    tools: ToolNotation = NO_TOOLS

    @property
    def facts(self) -> ModelFacts:
        return self.engine.facts

    async def close(self) -> None:
        """What is under way ends with an error."""
        self.encoder.close()
        await self.engine.close()
