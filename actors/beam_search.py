"""Beam search, as far as slots and blocks go. What to keep is decided elsewhere, where the scores are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.messages import BeamDecision, Beams, Finish, Hypothesis, Tokens, Usage
from actors.sequences import Sequence

if TYPE_CHECKING:
    from actors.residents import Residents


@dataclass(frozen=True, slots=True)
class Found:
    """A finished text and what it is ranked by."""

    score: float
    output: tuple[int, ...]
    finish: Finish


@dataclass(eq=False, slots=True)
class BeamGroup:
    """The hypotheses of one request, all in one lane; a preempted search starts anew."""

    root: Sequence
    """What waits for the search to be admitted, and its first hypothesis."""
    width: int
    members: list[Sequence]
    scores: list[float]
    spare: list[int] = field(default_factory=list)
    """Slots held for hypotheses to come."""
    found: list[Found] = field(default_factory=list)
    busy: bool = False
    """A step is under way."""

    @classmethod
    def of(cls, root: Sequence) -> BeamGroup:
        return cls(root=root, width=root.request.params.num_beams, members=[root], scores=[0.0])

    @property
    def is_resident(self) -> bool:
        return self.members[0].table is not None

    def plan(self) -> Beams:
        """The step that its members are in."""
        self.busy = True
        slots = tuple(member.slot for member in self.members)
        return Beams(self.root.request.id, slots, tuple(self.scores))

    def leave(self, residents: Residents) -> None:
        """Give up everything."""
        lane = self.members[0].lane
        assert lane, "who leaves was there"
        for member in self.members:
            residents.leave(member)
        lane.free += self.spare
        self.spare = []

    def reset(self, residents: Residents) -> Sequence:
        """Give up everything; what is to wait."""
        self.leave(residents)
        root = self.root
        root.tokens = list(root.request.prompt)
        root.frozen = len(root.tokens)
        self.members, self.scores, self.found = [root], [0.0], []
        return root

    def apply(self, decision: BeamDecision, residents: Residents) -> list[Tokens]:
        """Fork and prune; the news, if that was the end."""
        at = {member.slot: member for member in self.members}
        self.found += [self._ended(at[one.slot], one) for one in decision.finished]
        kept = decision.kept
        if decision.done or not kept or len(self.members[0].tokens) + 1 >= self.root.limit:
            if not decision.done:
                self.found += [self._cut(at[one.slot], one) for one in kept]
            return self._news()
        self._prune({one.slot for one in kept}, residents)
        self._lengthen([(at[one.slot], one) for one in kept], residents)
        return []

    def _prune(self, parents: set[int], residents: Residents) -> None:
        """Those that nothing kept starts with; their slots are free for others."""
        for member in [one for one in self.members if one.slot not in parents]:
            assert member.lane, "a member has a slot"
            slot, lane = member.slot, member.lane
            self.members.remove(member)
            residents.leave(member)
            lane.free.remove(slot)
            self.spare.append(slot)

    def _lengthen(self, kept: list[tuple[Sequence, Hypothesis]], residents: Residents) -> None:
        """A parent's first continuation stays where it is, others get a slot each."""
        grown: list[tuple[Sequence, Hypothesis]] = []
        for parent, one in kept:
            member = parent
            if any(parent is other for other, _ in grown):
                member = self._child(parent)
                if not self._fork(parent, member, residents):
                    return
            grown.append((member, one))
        for member, one in grown:
            member.tokens.append(one.token)
            member.frozen = len(member.tokens)
            assert member.lane, "a member has a slot"
            member.lane.ready.append(member)
        self.members, self.scores = [one for one, _ in grown], [one.score for _, one in grown]

    def _child(self, parent: Sequence) -> Sequence:
        return Sequence(
            request=parent.request,
            index=parent.index,
            arrival=parent.arrival,
            tokens=list(parent.tokens),
            stops=parent.stops,
            limit=parent.limit,
            group=self,
            slot=self.spare.pop(),
            frozen=len(parent.tokens),
            num_cached=parent.num_cached,
        )

    def _fork(self, parent: Sequence, child: Sequence, residents: Residents) -> bool:
        """False where the search itself was sent back to wait for want of a block."""
        while not residents.fork(parent, child):
            self.spare.append(child.slot)
            residents.preempt()
            if not self.is_resident:
                return False
            self.spare.remove(child.slot)
        self.members.append(child)
        return True

    def _ended(self, parent: Sequence, one: Hypothesis) -> Found:
        output = (*parent.tokens[parent.num_prompt :], one.token)
        return Found(one.score, output, "stop" if one.token in parent.stops else "length")

    def _cut(self, parent: Sequence, one: Hypothesis) -> Found:
        """A hypothesis for which there is no more room."""
        output = (*parent.tokens[parent.num_prompt :], one.token)
        return Found(one.score / len(output) ** parent.request.params.length_penalty, output, "length")

    def _news(self) -> list[Tokens]:
        best = sorted(self.found, key=lambda one: -one.score)[: self.root.request.params.n]
        return [
            Tokens(
                request=self.root.request.id,
                index=index,
                tokens=one.output,
                finish=one.finish,
                usage=Usage(self.root.num_prompt, len(one.output), self.root.num_cached),
                score=one.score,
            )
            for index, one in enumerate(best)
        ]
