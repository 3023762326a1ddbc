"""Prompts and texts for people to read, whole or as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from actors.stops import Piece
from cluster.generation import Output
from cluster.run_outputs import Generated


def label(number: int, index: int, *, sampled: bool) -> str:
    """Which text of which prompt: of several beams, or of several samples."""
    return f"Text {number} Seq {index} Beam 0" if sampled else f"Text {number} Beam {index}"


def transcript(generated: Generated, *, sampled: bool) -> str:
    """As the old script printed it; tokens where there is no text."""
    lines = []
    for number, (text, result) in enumerate(zip(generated.prompt_texts, generated.results, strict=True)):
        lines.append(prompt_line(number, text, result.prompt))
        for index, output in enumerate(result.outputs):
            lines.append(f"Output [{label(number, index, sampled=sampled)}]: {_shown(output)}")
    return "\n".join(lines)


def prompt_line(number: int, text: str | None, tokens: Sequence[int]) -> str:
    return f"Input [Text {number}]: " + (f"{list(tokens)}" if text is None else f'"{text}"')


def _shown(output: Output) -> str:
    return f"{list(output.tokens)}" if output.text is None else f'"{output.text}"'


class Stream:
    """Texts as they come: on one line while it is the same one, a few tokens at a time."""

    def __init__(self, stream: TextIO, prompt_lines: Sequence[str], interval: int, *, sampled: bool) -> None:
        self._stream, self._interval, self._sampled = stream, interval, sampled
        self._prompt_lines = dict(enumerate(prompt_lines))
        """Those that are not printed yet."""
        self._held: dict[tuple[int, int], list[Piece]] = {}
        self._open: tuple[int, int] | None = None

    def hear(self, number: int, index: int, piece: Piece) -> None:
        """The next piece of a text."""
        held = self._held.setdefault((number, index), [])
        held.append(piece)
        if piece.finish_reason or len(held) >= self._interval:
            self._print(number, index, "".join(one.text for one in held))
            held.clear()
        if piece.finish_reason:
            self.close()

    def close(self) -> None:
        """End the line that is begun, if one is."""
        if self._open:
            print('"', file=self._stream, flush=True)
        self._open = None

    def _print(self, number: int, index: int, text: str) -> None:
        if self._open != (number, index):
            self.close()
            if line := self._prompt_lines.pop(number, None):
                print(line, file=self._stream)
            start = f'Output [{label(number, index, sampled=self._sampled)}]: "'
            print(start, end="", file=self._stream)
            self._open = (number, index)
        print(text, end="", file=self._stream, flush=True)
