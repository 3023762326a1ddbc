"""A process that tries grammars: llguidance cannot be stopped, and some schemas take it for ever."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from functools import cache

import msgspec
import numpy as np
from llguidance import LLTokenizer
from llguidance.numpy import fill_next_token_bitmask

from actors.grammar import Grammar
from actors.matchers import byte_words, check, matcher_of
from builders.errors import UserError
from cluster.tool_formats import FORMATS

_STEPS = 64
_START_S = 120.0
_SLOWER = 15
"""How much longer than its processor's time a grammar may take, on a machine that others use."""
_READY = b"ready\n"
_ENCODE, _DECODE = msgspec.json.encode, msgspec.json.decode


class GrammarChild:
    """Used by one thread. It is started for the first grammar, and again after one that it could not do."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None

    def mistake(self, grammar: Grammar) -> str | None:
        """Why no text can be held to it."""
        if self._child and self._child.poll() is not None:
            self.close()
        child = self._child = self._child or self._started()
        assert child.stdin and child.stdout, "they are pipes"
        child.stdin.write(_ENCODE(grammar) + b"\n")
        is_heard = select.select([child.stdout], [], [], self._limit_s * _SLOWER)[0]
        if is_heard and (line := child.stdout.readline()):
            return _DECODE(line, type=str | None)
        self.close()
        return f"{grammar.kind}: takes more than {self._limit_s:g} s to compile"

    def close(self) -> None:
        """From any thread."""
        if child := self._child:
            self._child = None
            child.kill()
            child.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        called = f"from cluster.grammar_child import main; main({self._limit_s})"
        program = f"import sys; sys.path[:] = {sys.path!r}; {called}"
        command = [sys.executable, "-c", program]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert child.stdout, "it is a pipe"
        is_there = select.select([child.stdout], [], [], _START_S)[0]
        if is_there and child.stdout.readline() == _READY:
            return child
        child.kill()
        child.communicate()
        raise RuntimeError("the process that tries grammars does not start")


def main(limit_s: float) -> None:
    """In it; it ends with its parent, or with a grammar that takes more of the processor."""
    _words()
    _write(_READY)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        _write(_ENCODE(_tried(_DECODE(line, type=Grammar))) + b"\n")


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _tried(grammar: Grammar) -> str | None:
    try:
        _begin(grammar)
    except UserError as error:
        return str(error)
    return None


@cache
def _words() -> LLTokenizer:
    """As no model has them, and quickly made."""
    return byte_words([mark for form in FORMATS.values() for mark in form.marks])


def _begin(grammar: Grammar) -> None:
    """As far as the first choice, where what is too wide shows."""
    words = _words()
    matcher = matcher_of(grammar, words)
    bits = np.zeros((1, -(-words.vocab_size // 32)), dtype=np.int32)
    for _ in range(_STEPS):
        fill_next_token_bitmask(matcher, bits)
        check(matcher, grammar)
        forced = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        if len(forced) != 1 or matcher.is_stopped():
            break
        matcher.consume_token(int(forced[0]))
