"""What ranks are to be told with the next plan, as it comes up."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.kv_cache import Copy
from actors.messages import Admitted, Assigned, Fork, packed
from actors.sequences import Sequence


@dataclass(slots=True)
class Changes:
    """Lists of a plan to come, in the order in which they apply."""

    released: list[int] = field(default_factory=list)
    admitted: list[Admitted] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    assigned: list[Assigned] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    def release(self, slot: int) -> None:
        """Ranks forget a slot, or never hear of who had it."""
        unheard = [one for one in self.admitted if one.slot == slot]
        unborn = [fork for fork in self.forks if fork.target == slot]
        if unheard:
            self.admitted.remove(*unheard)
        elif unborn:
            self.forks.remove(*unborn)
        else:
            self.released.append(slot)
        self.assigned = [one for one in self.assigned if one.slot != slot]

    def admit(self, sequence: Sequence) -> None:
        """All that ranks must know of a sequence at its start."""
        assert sequence.table, "who is admitted has a table"
        self.admitted.append(
            Admitted(
                slot=sequence.slot,
                request=sequence.request.id,
                index=sequence.index,
                params=sequence.request.params,
                tokens=packed(sequence.tokens),
                num_prompt=sequence.num_prompt,
                blocks=tuple(sequence.table.blocks),
                namespace=sequence.request.namespace,
            )
        )

    def grow(self, sequence: Sequence, added: list[int]) -> None:
        """Blocks at the end of a table."""
        assert sequence.table, "who grows has a table"
        if added:
            first = len(sequence.table.blocks) - len(added)
            self.assigned.append(Assigned(sequence.slot, first, tuple(added)))

    def fork(self, source: Sequence, target: Sequence, copy: Copy | None) -> None:
        """The target shares all blocks of the source but the one that is copied."""
        assert target.table, "a fork has a table"
        self.forks.append(Fork(source.slot, target.slot, target.index))
        if copy:
            self.assigned.append(Assigned(target.slot, len(target.table.blocks) - 1, (copy.target,)))
            self.copies.append(copy)
