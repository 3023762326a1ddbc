"""How much of what is known of a sequence a step computes."""

from __future__ import annotations

from dataclasses import dataclass

from actors.sequences import Sequence


@dataclass(slots=True)
class Room:
    """What is left of a step."""

    tokens: int
    rows: int
    """Of logits."""
    scored: int
    """Tokens that may be scored."""

    def begins(self, waiting: Sequence) -> bool:
        """Whether it may have a chunk, once it is admitted."""
        return self.tokens > 0 and self.rows > 0 and (self.scored > 0 or not waiting.scores_prompt)

    def take(self, one: Sequence) -> int:
        """Tokens of its next chunk; 0 where it has to wait for another step, or has none.

        Whoever comes first in a step gets a token at least: all slots that might sample fit into it.
        """
        left = one.target - one.computed
        count = min(left, self.tokens)
        if one.scores_prompt:
            count = min(count, self.scored, self.rows)
        if count == left and self._rows(one, count) > self.rows:
            count -= 1
        self.tokens -= count
        self.rows -= self._rows(one, count)
        self.scored -= count if one.scores_prompt else 0
        return count

    def _rows(self, one: Sequence, count: int) -> int:
        """For the texts that begin, and for tokens that others of the prompt follow."""
        ends = count == one.target - one.computed and not one.group
        scored = count - ends if one.scores_prompt else 0
        return scored + (1 + len(one.siblings) if ends else 0)
