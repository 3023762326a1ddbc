"""Where texts end: against a search of the whole text, whatever pieces it comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.detokenizer import Words
from actors.sampling_params import SamplingParams
from actors.stops import Output, Piece, StopStrings
from builders.errors import UserError
from tests.actors.test_detokenizer import byte_level, byte_tokens
from tests.strategies import quick

few_letters = st.text(alphabet="ab", max_size=5)
stop_strings = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop that is complete first, the longest of those; by brute force."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@quick
@given(st.lists(few_letters, max_size=12), stop_strings)
def test_pieces_stop_where_the_whole_does(pieces: list[str], stops: list[str]) -> None:
    search, given_text, found = StopStrings(stops), "", None
    for index, piece in enumerate(pieces):
        text, found = search.add(piece)
        given_text += text
        if found is not None:
            break
        so_far = "".join(pieces[: index + 1])
        held = so_far[len(given_text) :]
        assert so_far.startswith(given_text)
        # What is held back is what may be the start of a stop string, and no more.
        starts = [
            n for n in range(len(so_far) + 1) for stop in stops if so_far.endswith(stop[:n]) and n < len(stop)
        ]
        assert len(held) == max(starts, default=0)
    if found is None:
        given_text += search.flush()
    assert (given_text, found) == first_stop("".join(pieces), stops)


@quick
@given(st.lists(few_letters, max_size=8), st.lists(few_letters, max_size=8), stop_strings)
def test_stops_that_end_too_early_are_text(early: list[str], late: list[str], stops: list[str]) -> None:
    """A stop string may begin where no end is allowed, but not end there."""
    search = StopStrings(stops)
    text = "".join(search.add(piece, may_end=False)[0] for piece in early)
    found = None
    for piece in late:
        more, found = search.add(piece)
        text += more
        if found is not None:
            break
    text += "" if found else search.flush()
    whole, floor = "".join(early + late), len("".join(early))
    expected = next(
        (
            (whole[: end - len(stop)], stop)
            for end in range(floor + 1, len(whole) + 1)
            for stop in sorted(stops, key=len, reverse=True)
            if whole[:end].endswith(stop)
        ),
        (whole, None),
    )
    assert (text, found) == expected


def output_of(text: str, **wanted: object) -> list[Piece]:
    """The pieces of a text, byte-level tokens, up to its end."""
    tokenizer = byte_level()
    params = SamplingParams(**{"max_tokens": 100, **wanted})  # type: ignore[arg-type]
    output, pieces = Output(params, Words(tokenizer), [tokenizer.eos_token_id]), []
    for token in tokenizer.encode(text):
        pieces.append(output.add(token))
        if pieces[-1].finish_reason:
            break
    assert output.num_tokens == len(pieces)
    return pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_end_of_text() -> None:
    pieces = output_of("the lazy dog</s>")
    assert text_of(pieces) == "the lazy dog"
    assert pieces[-1] == Piece(finish_reason="stop", stopped_by=byte_level().eos_token_id)
    assert {piece.finish_reason for piece in pieces[:-1]} == {None}


def test_end_of_text_ignored() -> None:
    pieces = output_of("the</s> lazy", ignore_eos=True)
    assert text_of(pieces) == "the lazy"
    assert pieces[-1].finish_reason is None


def test_stop_string_is_no_part_of_the_text() -> None:
    pieces = output_of("one two STOP three", stop=("STOP", "three"))
    assert (text_of(pieces), pieces[-1].finish_reason, pieces[-1].stopped_by) == ("one two ", "stop", "STOP")


def test_start_of_a_stop_string_comes_late_or_at_the_end() -> None:
    pieces = output_of("one STOmach", stop=("STOP",))
    assert text_of(pieces) == "one STOmach"
    cut = output_of("one STOmach"[:7], stop=("STOP",), max_tokens=len(byte_level().encode("one STO")))
    assert (text_of(cut), cut[-1].finish_reason) == ("one STO", "length")
    ended = output_of("one STO</s>", stop=("STOP",))
    assert (text_of(ended), ended[-1].finish_reason) == ("one STO", "stop")


def test_stop_token_ends_and_has_no_text() -> None:
    token = byte_level().encode(" lazy")[0]
    pieces = output_of("the lazy dog", stop_token_ids=(token,))
    assert (text_of(pieces), pieces[-1].stopped_by) == ("the", token)


def test_nothing_ends_before_there_are_enough_tokens() -> None:
    tokens = len(byte_level().encode("the lazy</s> dog"))
    pieces = output_of("the lazy</s> dog</s>", min_tokens=tokens)
    assert text_of(pieces) == "the lazy dog"
    assert (len(pieces), pieces[-1].finish_reason) == (tokens + 1, "stop")
    pieces = output_of("the lazy the dog", min_tokens=2, stop=("the", "dog"))
    assert (text_of(pieces), pieces[-1].stopped_by) == ("the lazy ", "the")


def test_a_stop_string_in_the_last_token_is_the_reason() -> None:
    tokens = len(byte_level().encode("one lazy"))
    pieces = output_of("one lazy", stop=("zy",), max_tokens=tokens)
    assert (text_of(pieces), pieces[-1].finish_reason) == ("one la", "stop")
    pieces = output_of("one lazy", max_tokens=tokens)
    assert (text_of(pieces), pieces[-1].finish_reason) == ("one lazy", "length")


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    tokens = byte_level().encode("a🦀")
    pieces = output_of("a🦀", max_tokens=len(tokens) - 1)
    assert (text_of(pieces), pieces[-1].finish_reason) == ("a�", "length")


def test_a_newline_that_is_a_byte_token_ends_at_once() -> None:
    tokenizer = byte_tokens()
    output = Output(SamplingParams(stop=("\n",)), Words(tokenizer), [])
    ids = tokenizer.convert_tokens_to_ids(["a", "<0x0A>"])
    assert [output.add(token) for token in ids] == [  # type: ignore[union-attr]
        Piece(text="a"),
        Piece(finish_reason="stop", stopped_by="\n"),
    ]


def test_without_a_tokenizer_there_are_tokens_only() -> None:
    output = Output(SamplingParams(max_tokens=2, stop_token_ids=(7,)), None, [])
    assert [output.add(5), output.add(6)] == [Piece(), Piece(finish_reason="length")]
    with pytest.raises(UserError, match="the model has no tokenizer; use stop_token_ids"):
        Output(SamplingParams(stop=("x",)), None, [])


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UserError, match="an empty string is everywhere"):
        Output(SamplingParams(stop=("",)), Words(byte_level()), [])
