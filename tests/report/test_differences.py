"""What is marked in a sample's texts: what the other one lacks, nothing else, and no character is lost."""

import html
import random
import time

from synpro_engine.report import ReportData, Sample, render_report
from synpro_engine.report.differences import COMPARED_WORDS, compared, head
from tests.report.test_page import Reader, unmarked

SOURCE = "The Treasury took in $31,000,000 in 1834. Nothing is owed to the Bank."
TEXT = "In 1834 the Treasury took in 31000000 dollars. On 14 March James Monroe owed nothing to the bank's men."


def _marked(source: str, text: str) -> dict[str, list[str]]:
    found = compared(source, text)
    return {
        "source": [piece.text for piece in found.source if piece.mark],
        "text": [piece.text for piece in found.text if piece.mark == "alone"],
        "claims": [piece.text for piece in found.text if piece.mark == "claim"],
    }


def _sample(source: str, text: str) -> Sample:
    return Sample(operation="rephrase", source_id="d:0-9", source=source, text=text, accepted=True)


def _page(source: str, text: str) -> str:
    page = render_report(ReportData(title="One", samples=(_sample(source, text),)))
    return page.split('<details class="sample"')[1].split("</section>")[0]


def test_pieces_put_together_are_the_texts() -> None:
    odd = (("", TEXT), (TEXT, ""), ("\n a  b\n", " c\t1\n\n"), ("漢字", "字 2"))
    for source, text in ((SOURCE, TEXT), (TEXT, SOURCE), *odd):
        found = compared(source, text)
        assert "".join(piece.text for piece in found.source) == source
        assert "".join(piece.text for piece in found.text) == text
        assert "".join(piece.text for piece in head(found.text, 7)) == text[:7]


def test_words_that_both_have_in_order_are_not_marked_whatever_their_case() -> None:
    assert _marked("The bank's debt was paid", "the Bank debt, was paid!") == {"source": [], "text": [], "claims": []}
    assert _marked("it was paid late in full", "it was never paid in full") == {
        "source": ["late"],
        "text": ["never"],
        "claims": [],
    }


def test_claims_that_the_source_lacks_are_framed_and_counted_and_others_are_not() -> None:
    assert _marked(SOURCE, TEXT)["claims"] == ["14 March James Monroe"]
    assert _marked(SOURCE, "It took in 31 million, as Jackson said; by the 3rd of May, 1835.")["claims"] == [
        "31", "Jackson", "3rd", "May", "1835",
    ]  # fmt: skip
    assert _sample(SOURCE, TEXT).unsupported == "1 claim without support in the source"
    twice = _sample(SOURCE, "He met Adams in 1999, and to Adams it was 1999.")
    assert twice.unsupported == "2 claims without support in the source"
    assert _sample(SOURCE, "In 1834 nothing was owed to the Treasury.").unsupported == ""


def test_the_page_shows_the_marks_and_the_count() -> None:
    page = _page(SOURCE, TEXT)
    assert '<mark class="claim" title="not in the source">14 March James Monroe</mark>' in page
    source, made = page.split("<h4>")[1:]
    assert '<del class="alone">' in source and '<ins class="alone">' in made and "<ins" not in source
    assert "1 claim without support in the source" in page
    assert "<mark" not in _page(SOURCE, SOURCE) and "without support" not in _page(SOURCE, SOURCE)


def test_text_between_marks_stays_text_and_keeps_its_spaces() -> None:
    hostile = "Rates\n\n  <script>alert('x')</script> &amp; <mark>Pitt</mark> </div>\x00 9"
    page = _page("rates <del>fell</del> </details>", hostile)
    read = Reader(f"<details>{page[page.index('>') + 1 :]}")
    assert "script" not in read.tags and read.open == []
    made = page.split("Generated</h4>")[1].split(">", 1)[1].split("</div>")[0]
    assert '<mark class="claim" title="not in the source">9</mark>' in made
    assert html.unescape(unmarked(made)) == hostile.replace("\x00", "\ufffd")


def test_long_texts_are_compared_in_part_and_at_once() -> None:
    begin = time.perf_counter()
    words = random.Random(0).choices([f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiouybdfgklm"], k=20_000)
    source, text = " ".join(words[:10_000]), " ".join(words[10_000:]) + " by 1812"
    found = compared(source, text)
    assert time.perf_counter() - begin < 30  # minutes, where all of it were matched
    assert not found.whole and found.claims == 1
    assert len(found.text[-2].text.split()) > 10_000 - COMPARED_WORDS - 3 and found.text[-1].mark == "claim"
    assert "first 1,000 words are compared" in _page(source, text[:300])
    assert "words are compared" not in _page(SOURCE, TEXT)
