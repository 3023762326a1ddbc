"""Calls of tools in a text as it grows: what is said, what is called, and arguments piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.call_scan import CallScan
from cluster.tool_formats import ToolFormat


@dataclass(frozen=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Called:
    """A call begins."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """What is new of a call's arguments, as JSON."""

    index: int
    text: str


News = Said | Called | Arguments


@dataclass
class ToolReader:
    """One text. What might be a call is held back until it is clear; what is none is said."""

    form: ToolFormat
    most: int | None = None
    """Calls that are told; those after them are left out."""
    num_calls: int = 0
    _text: str = ""
    """Not yet told, nor part of a call."""
    _scan: CallScan | None = None
    _held: str = ""
    """Of a call whose name is not known yet."""
    _is_told: bool = False
    """The call that is read has been told."""
    _has_said: bool = False
    _news: list[News] = field(default_factory=list)

    def add(self, text: str, *, is_last: bool = False) -> list[News]:
        """What follows from more of the text."""
        self._text += text
        while self._text and (self._in_call() if self._scan else self._outside(is_last)):
            pass
        if is_last:
            self._end()
        news, self._news = self._news, []
        return news

    def _outside(self, is_last: bool) -> bool:
        """Whether there is more to look at."""
        start = self._start()
        if start is None:
            held = 0 if is_last else self._may_begin()
            self._say(self._text[: len(self._text) - held])
            self._text = self._text[len(self._text) - held :]
            return False
        before, after = start
        self._say(self._text[:before])
        self._text, self._scan, self._held = self._text[after:], CallScan(self.form.arguments), ""
        self._held, self._is_told = self.form.begin if self.form.always_marked else "", False
        return True

    def _start(self) -> tuple[int, int] | None:
        """Where a call's mark begins, and where its object does."""
        place = self._text.find(self.form.begin)
        if place >= 0:
            return place, place + len(self.form.begin)
        if self.form.always_marked or self._has_said:
            return None
        bare = len(self._text) - len(self._text.lstrip(" \n\t;" if self.num_calls else " \n\t"))
        return (0, bare) if self._text[bare : bare + 1] == "{" else None

    def _may_begin(self) -> int:
        """Characters at the end that may be the beginning of a mark."""
        if not self.form.always_marked and not self._has_said and not self._text.strip(" \n\t;"):
            return len(self._text)
        longest = min(len(self.form.begin) - 1, len(self._text))
        fits = (size for size in range(longest, 0, -1) if self.form.begin.startswith(self._text[-size:]))
        return next(fits, 0)

    def _in_call(self) -> bool:
        scan = self._scan
        assert scan, "who is in a call reads it"
        used = scan.add(self._text)
        self._held += "" if self._is_told else self._text[:used]
        self._text = self._text[used:]
        if scan.is_wrong:
            return self._no_call()
        self._tell(scan)
        if not scan.is_done:
            return False
        if not self._is_told:
            return self._no_call()
        return self._after_call()

    def _tell(self, scan: CallScan) -> None:
        if scan.name is not None and (scan.has_begun or scan.is_done) and not self._is_told:
            self._is_told, self._held = True, ""
            self.num_calls += 1
            self._put(Called(self.num_calls - 1, scan.name))
        if not self._is_told:
            return
        if piece := scan.taken() if scan.has_begun or not scan.is_done else scan.nothing():
            self._put(Arguments(self.num_calls - 1, piece))

    def _after_call(self) -> bool:
        """The mark at its end, if it has one, may still be on its way: then it is said to nobody."""
        rest = self._text.lstrip(" \n\t")
        if self.form.end and self.form.end.startswith(rest) and rest != self.form.end:
            return False
        self._text = rest.removeprefix(self.form.end) if self.form.end else self._text
        self._scan = None
        return True

    def _no_call(self) -> bool:
        """Text, after all. A call that was told already stays as it is."""
        if not self._is_told:
            held, self._held = self._held, ""
            self._say(held)
            self._has_said = True
        self._scan = None
        return True

    def _say(self, text: str) -> None:
        """Not the space around calls."""
        if text and (text.strip() or not self.num_calls):
            self._has_said = self._has_said or bool(text.strip())
            self._put(Said(text))

    def _put(self, news: News) -> None:
        left_out = self.most is not None and not isinstance(news, Said) and news.index >= self.most
        if not left_out:
            self._news.append(news)

    def _end(self) -> None:
        if self._scan and not self._is_told:
            self._say(self._held)
        self._scan, self._text = None, ""


def whole(news: list[News]) -> tuple[str | None, list[tuple[str, str]]]:
    """The text, if there is any, and every call's name and arguments."""
    said = "".join(one.text for one in news if isinstance(one, Said))
    calls: list[tuple[str, str]] = [(one.name, "") for one in news if isinstance(one, Called)]
    for one in news:
        if isinstance(one, Arguments):
            name, before = calls[one.index]
            calls[one.index] = name, before + one.text
    return said if said.strip() or not calls else None, calls
