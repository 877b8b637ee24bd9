"""A row shown is the row, no token lost, and no text taken for markup."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.inspect import InspectedRow, segments, to_html, to_rich
from luthier.data.store import TokenRow
from tests.data.families import family

CHATML = family("chatml")


def row(text: str, trained_from: int) -> TokenRow:
    ids = np.array(CHATML.encode(text), np.int32)
    return TokenRow(ids=ids, supervised=np.arange(len(ids)) >= trained_from)


def inspected(text: str, trained_from: int) -> InspectedRow:
    return InspectedRow(split="train", number=3, origin="log.jsonl:7", segments=segments(CHATML, row(text, trained_from)))


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_segments_are_the_rows_tokens_and_their_text(text: str) -> None:
    found = segments(CHATML, row(text, 0))
    assert "".join(segment.text for segment in found) == text
    assert [token for segment in found for token in segment.ids] == CHATML.encode(text)


def test_a_character_of_several_tokens_is_one_segment() -> None:
    (segment,) = segments(CHATML, row("🙂", 0))
    assert (segment.text, len(segment.ids)) == ("🙂", 4)


def test_the_title_counts_tokens() -> None:
    assert inspected("<|im_start|>user\nyes<|im_end|>", 3).title == "train row 3 (log.jsonl:7): 8 tokens, 5 trained on"


def test_the_terminal_shows_special_tokens_and_line_ends_and_what_is_trained_on() -> None:
    text = to_rich(inspected("<|im_start|>user\nyes<|im_end|>", 3))
    assert text.plain == "<|im_start|>user↵\nyes<|im_end|>"
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {"<|im_start|>us": "dim", "er↵\nyes<|im_end|>": "bold green"}


def test_the_page_escapes_what_rows_say_and_needs_no_other_file() -> None:
    page = to_html([inspected("<script>alert(1)</script>", 0), inspected("yes", 1)])
    assert "<script" not in page
    assert "2 rows" in page
    assert "http" not in page and " src=" not in page
