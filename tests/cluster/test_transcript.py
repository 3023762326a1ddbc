"""What people read: the old script's lines, whole or as texts come."""

from __future__ import annotations

from io import StringIO

from actors.messages import Usage
from actors.stops import Piece
from cluster.generation import Output, Result
from cluster.run_outputs import Generated
from cluster.transcript import Stream, prompt_line, transcript

USAGE = Usage(1, 1, 0)


def generated(texts: list[list[str | None]], prompts: list[str | None]) -> Generated:
    outputs = [
        [
            Output(tokens=(4, 2), text=text, finish="stop", score=None, logprobs=(), logits=None)
            for text in of_one
        ]
        for of_one in texts
    ]
    results = [Result(prompt=(7, 8), outputs=tuple(of_one), usage=USAGE) for of_one in outputs]
    return Generated(results=results, prompt_texts=prompts, fill=0, seconds={})


def test_beams() -> None:
    found = transcript(generated([["a", "b"], ["c", "d"]], ["x", "y"]), sampled=False)
    assert found.splitlines() == [
        'Input [Text 0]: "x"',
        'Output [Text 0 Beam 0]: "a"',
        'Output [Text 0 Beam 1]: "b"',
        'Input [Text 1]: "y"',
        'Output [Text 1 Beam 0]: "c"',
        'Output [Text 1 Beam 1]: "d"',
    ]


def test_samples() -> None:
    found = transcript(generated([["a", "b"]], ["x"]), sampled=True)
    assert found.splitlines()[1:] == [
        'Output [Text 0 Seq 0 Beam 0]: "a"',
        'Output [Text 0 Seq 1 Beam 0]: "b"',
    ]


def test_tokens_where_there_are_no_texts() -> None:
    found = transcript(generated([[None]], [None]), sampled=False)
    assert found == "Input [Text 0]: [7, 8]\nOutput [Text 0 Beam 0]: [4, 2]"


def streamed(pieces: list[tuple[int, str]], interval: int, *, ends: bool = True) -> str:
    """Pieces by text, each text of a prompt of its own; the last of each ends it."""
    out = StringIO()
    last = {number: place for place, (number, _) in enumerate(pieces)} if ends else {}
    lines = [prompt_line(number, name, ()) for number, name in enumerate("xy")]
    stream = Stream(out, lines, interval, sampled=False)
    for place, (number, text) in enumerate(pieces):
        stream.hear(number, 0, Piece(text=text, finish_reason="stop" if last.get(number) == place else None))
    stream.close()
    return out.getvalue()


def test_one_text_is_one_line_as_if_it_had_been_printed_at_once() -> None:
    for interval in (1, 2, 100):
        found = streamed([(0, "a"), (0, " b"), (0, "c")], interval)
        assert found == 'Input [Text 0]: "x"\nOutput [Text 0 Beam 0]: "a bc"\n'


def test_texts_take_turns_a_few_tokens_at_a_time() -> None:
    pieces = [(number, f"{number}{turn}") for turn in "abc" for number in (0, 1)]
    assert streamed(pieces, 2).splitlines() == [
        'Input [Text 0]: "x"',
        'Output [Text 0 Beam 0]: "0a0b"',
        'Input [Text 1]: "y"',
        'Output [Text 1 Beam 0]: "1a1b"',
        'Output [Text 0 Beam 0]: "0c"',
        'Output [Text 1 Beam 0]: "1c"',
    ]


def test_pieces_are_printed_before_the_end() -> None:
    out = StringIO()
    stream = Stream(out, ["Input"], 2, sampled=False)
    stream.hear(0, 0, Piece(text="a"))
    assert out.getvalue() == ""
    stream.hear(0, 0, Piece(text="b"))
    assert out.getvalue() == 'Input\nOutput [Text 0 Beam 0]: "ab'


def test_a_line_that_is_begun_is_ended() -> None:
    assert streamed([(0, "a")], 1, ends=False).endswith(': "a"\n')
    assert streamed([], 1) == ""
