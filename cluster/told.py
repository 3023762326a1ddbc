"""What callers were told of a request, so that another engine can go on with it."""

from __future__ import annotations

from msgspec.structs import replace

from actors.messages import Begun, Request, Tokens
from actors.sampling_params import with_seed


class Told:
    """One request, wherever it is worked on: `request` is what to send there first."""

    def __init__(self, request: Request) -> None:
        """A draw must be repeatable elsewhere, so whoever has no seed gets one."""
        self.request = replace(request, params=with_seed(request.params))
        count = 1 if request.params.num_beams > 1 else request.params.n
        begun = request.begun or Begun(((),) * count)
        self._texts = {place: [*text] for place, text in enumerate(begun.texts) if text is not None}
        self._count, self._cached = count, begun.cached_tokens

    def take(self, news: Tokens) -> None:
        """Of a beam search come all texts at once, and nothing is left."""
        if self.request.params.num_beams > 1:
            self._texts.clear()
        if news.index in self._texts:
            self._texts[news.index] += news.tokens
        if news.usage:
            self._cached = max(self._cached, news.usage.cached_tokens)
        if news.finish:
            self.cancel(news.index)

    def cancel(self, index: int | None = None) -> None:
        """Nobody wants a text any more, or any of them."""
        if index is None:
            self._texts.clear()
        else:
            self._texts.pop(index, None)

    def rest(self) -> Request | None:
        """What is to be done still."""
        if not self._texts:
            return None
        if self.request.params.num_beams > 1:
            return self.request
        texts = (self._texts.get(place) for place in range(self._count))
        known = tuple(None if text is None else tuple(text) for text in texts)
        return replace(self.request, begun=Begun(known, self._cached))
