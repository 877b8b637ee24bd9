"""Text in pieces: together they are what all tokens say at once, and nothing is told that is taken back."""

import random

import pytest

from luthier.core.generation import Token
from luthier.serve.text import Decoding, Piece, Writer, may_begin
from tests.data.families import SPECIAL, family


def ids_of(name: str, text: str) -> list[int]:
    return family(name).encode(text)


def written(name: str, ids: list[int], *stops: str, end: str = "length") -> list[Piece]:
    """Every piece of an answer of these tokens, the last of which ends it."""
    writer, pieces = Writer(decoding=Decoding(family(name)), stops=stops), []
    for place, id in enumerate(ids):
        last = place == len(ids) - 1
        pieces.append(writer.add(Token(id=id, logprob=-1.0, end=end if last else "")))  # type: ignore[arg-type]  # one of its words
        if pieces[-1].end:
            break
    return pieces


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", sorted(SPECIAL))
def test_pieces_are_together_what_evaluation_decodes_at_once(name: str) -> None:
    tokenizer, draw = family(name), random.Random(3)
    for _ in range(200):
        ids = [draw.randrange(len(tokenizer.pretrained)) for _ in range(draw.randrange(1, 40))]
        whole = tokenizer.pretrained.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert joined(written(name, ids)) == whole


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_character_of_several_tokens_is_told_once_it_is_whole(name: str) -> None:
    ids = ids_of(name, "größer: 日本 🎻!")
    pieces = written(name, ids)
    assert joined(pieces).strip() == "größer: 日本 🎻!"
    assert len(pieces) > 12 and all("�" not in piece.text for piece in pieces)


def test_a_character_that_was_cut_is_told_as_evaluation_tells_it() -> None:
    ids = ids_of("chatml", "so 🎻")[:-1]
    assert joined(written("chatml", ids)) == "so �"


def test_the_stop_token_is_counted_and_among_the_tokens_and_says_nothing() -> None:
    end = family("chatml").stop_ids[0]
    writer = Writer(decoding=Decoding(family("chatml")))
    pieces = [writer.add(Token(id=id, logprob=0.0)) for id in ids_of("chatml", "Paris")]
    pieces.append(writer.add(Token(id=end, logprob=0.0, end="stop")))
    assert (joined(pieces), pieces[-1].end, writer.num_tokens) == ("Paris", "stop", len(pieces))
    spoken = [each for piece in pieces for each in piece.spoken]
    assert (len(spoken), spoken[-1].token.id, spoken[-1].start) == (len(pieces), end, len("Paris"))


@pytest.mark.parametrize("stop", ["capital", "is the", "e capital of F", "The", "\n\nThe", "Pa", ". ", "xyz"])
def test_a_stop_text_cuts_exactly_wherever_tokens_end(stop: str) -> None:
    text = "Well.\n\nThe capital of France is the capital, Paris. "
    for name in ("chatml", "mistral"):
        pieces = written(name, ids_of(name, text), stop)
        wanted = text.partition(stop)[0]
        assert joined(pieces).lstrip() == wanted.lstrip()
        assert pieces[-1].end == ("stop" if stop in text else "length")


def test_no_piece_is_taken_back_by_a_stop_text() -> None:
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choices("ab", k=30))
        stops = tuple("".join(draw.choices("ab", k=draw.randrange(1, 5))) for _ in range(2))
        told = ""
        for piece in written("chatml", [id for each in text for id in ids_of("chatml", each)], *stops):
            told += piece.text
            assert not any(stop in told for stop in stops)
        first = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=0)
        ends = [stop for stop in stops if first and text[:first].endswith(stop)]
        assert told == (text[: first - max(map(len, ends))] if ends else text)


def test_tokens_go_with_the_piece_their_text_begins_in_and_those_behind_a_stop_text_go_nowhere() -> None:
    pieces = written("chatml", ids_of("chatml", "yes and the rest"), "d the")
    spoken = [each for piece in pieces for each in piece.spoken]
    assert joined(pieces) == "yes an"
    assert family("chatml").decode([each.token.id for each in spoken]).startswith("yes an")
    assert all(each.start < len("yes an") for each in spoken)
    starts = [each.start for each in spoken]
    assert starts == sorted(starts) and starts[0] == 0


def test_what_may_begin_a_stop_text_is_its_longest_beginning_at_the_end() -> None:
    assert may_begin("so <|im", ["<|im_end|>", "|imx"]) == 4
    assert may_begin("abab", ["abac"]) == 2
    assert may_begin("", ["a"]) == may_begin("xyz", []) == may_begin("stop", ["stop"]) == 0
