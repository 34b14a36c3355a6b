"""Splitting passages into pieces, and selecting quotes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.engine.extractive import Quote, best_quotes, pieces


def quotable(passage: str, *, language: str = "en") -> list[str]:
    return [piece.text(passage) for piece in pieces(passage, language=language)]


def chosen(question: str, *passages: str, min_relevance: float = 0.1, max_quotes: int = 3) -> list[Quote]:
    return best_quotes(
        question,
        passages,
        embedder=HashEmbedder(dimension=4096),
        language="en",
        max_quotes=max_quotes,
        min_relevance=min_relevance,
    )


# ------------------------------------------------------------------------------------- pieces


def test_sentences() -> None:
    text = "BM25 ranks documents. Dr. Smith sets k1 to 1.2 for\nmost collections. It is fast!"
    assert quotable(text) == [
        "BM25 ranks documents.",
        "Dr. Smith sets k1 to 1.2 for\nmost collections.",
        "It is fast!",
    ]


def test_french_sentences() -> None:
    text = "M. Dupont a payé 25,50 €. Le maire, Mme Durand, l'a vu. Voir art. 5 du code civil."
    assert quotable(text, language="fr") == [
        "M. Dupont a payé 25,50 €.",
        "Le maire, Mme Durand, l'a vu.",
        "Voir art. 5 du code civil.",
    ]


@pytest.mark.parametrize("language", ["en", "fr", "und", "ja", "xx", ""])
def test_sentences_are_split_in_any_language(language: str) -> None:
    assert quotable("One short sentence. Another short one.", language=language)


def test_headings_and_questions_are_not_quoted() -> None:
    text = "# BM25\n\nWhat is k1 for?\n\nIt limits the weight of repeated words.\n\nSetext\n---\n\nMore words here."
    assert quotable(text) == ["It limits the weight of repeated words.", "More words here."]
    assert quotable("# Only a heading") == []


def test_a_line_that_looks_like_a_heading_in_plain_text_is_not_quoted() -> None:
    text = "Obligation de délivrer une facture\nL'hôtelier remet une facture à chaque client qui le demande.\nContenu"
    assert quotable(text, language="fr")[0] == "L'hôtelier remet une facture à chaque client qui le demande."
    assert "Obligation de délivrer une facture" not in quotable(text, language="fr")


def test_fragments_are_quoted_when_there_is_nothing_else() -> None:
    assert quotable("Paris 42") == ["Paris 42"]


@pytest.mark.parametrize("blank", ["", "\n"])
def test_code_is_quoted_with_its_introduction(blank: str) -> None:
    text = f"Install it first. Then run this:\n{blank}```bash\nragkit index docs\n```\n\nThat is all there is."
    assert quotable(text) == [
        "Install it first.",
        f"Then run this:\n{blank}```bash\nragkit index docs\n```",
        "That is all there is.",
    ]


def test_a_short_list_is_quoted_whole_with_its_introduction() -> None:
    text = "The defaults are:\n\n- k1 is 1.2\n- b is 0.75\n\nBoth can be set."
    assert quotable(text) == ["The defaults are:\n\n- k1 is 1.2\n- b is 0.75", "Both can be set."]


def test_an_item_of_a_long_list_is_quoted_with_the_introduction() -> None:
    items = [f"- item number {n} says something that takes some room on the page" for n in range(12)]
    found = quotable("The rules are:\n\n" + "\n".join(items))
    assert found == [f"The rules are:\n{item}" for item in items]


def test_a_list_in_plain_text_ends_with_its_full_stop() -> None:
    text = (
        "L'hôtelier remet une facture :\ndès que le montant atteint 25 €,\nou si le client la demande.\n"
        "La facture est établie en deux exemplaires."
    )
    assert quotable(text, language="fr") == [
        "L'hôtelier remet une facture :\ndès que le montant atteint 25 €,\nou si le client la demande.",
        "La facture est établie en deux exemplaires.",
    ]


def test_a_table_row_is_quoted_with_its_header() -> None:
    text = "| name | default |\n|---|---|\n| k1 | 1.2 |\n| b | 0.75 |"
    assert quotable(text) == [
        "| name | default |\n|---|---|\n| k1 | 1.2 |",
        "| name | default |\n|---|---|\n| b | 0.75 |",
    ]


LINES = """\
# Title
One sentence. Two of them.
Lead:
- item
  - nested:
1. first
```
code[1]
| a | b |
|---|---|

> quoted text
    indented
<div>html</div>
[x]: http://a
M. X.
é ?"""
MARKDOWN = st.lists(st.sampled_from(LINES.split("\n")), max_size=14).map("\n".join)


@example("\r0", "en")
@example("\x1f\n\u2028", "en")
@given(st.one_of(MARKDOWN, st.text(max_size=200)), st.sampled_from(["en", "fr", "und"]))
def test_pieces_are_in_order_within_the_passage(passage: str, language: str) -> None:
    found = pieces(passage, language=language)
    for piece in found:
        assert piece.spans
        for start, end in piece.spans:
            assert 0 <= start < end <= len(passage)
            assert passage[start:end] == passage[start:end].strip()
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(piece.spans))
    ends = [piece.spans[-1] for piece in found]
    assert ends == sorted(ends)


# ------------------------------------------------------------------------------------- choice


def test_the_best_piece_comes_first_and_names_its_passage() -> None:
    quotes = chosen(
        "How much does BM25 discount long documents?",
        "Cats sleep all day long.",
        "Dogs bark at night. The parameter b says how much BM25 discounts long documents.",
    )
    assert quotes[0].passage == 1
    assert quotes[0].text == "The parameter b says how much BM25 discounts long documents."
    assert quotes[0].cited(2) == "The parameter b says how much BM25 discounts long documents. [2]"
    assert [quote.relevance for quote in quotes] == sorted((quote.relevance for quote in quotes), reverse=True)


def test_at_most_max_quotes() -> None:
    passages = [f"BM25 discounts long documents in way {word}." for word in ("red", "green", "blue", "black")]
    assert len(chosen("How does BM25 discount long documents?", *passages, max_quotes=2)) == 2


def test_near_duplicates_are_quoted_once_but_not_those_that_differ_in_a_number() -> None:
    question = "What is the default of the parameter k1 of BM25 in this library?"
    first = "The default of the parameter k1 of BM25 in this library is 1.2."
    again = "The default of the parameter k1 of BM25 in this library is 1.2!"
    other = "The default of the parameter k1 of BM25 in this library is 1.5."
    assert [quote.text for quote in chosen(question, first, again, other)] == [first, other]


def test_without_a_relevant_piece_there_are_no_quotes() -> None:
    assert chosen("Who painted the Mona Lisa?", "Boil pasta for nine minutes.", min_relevance=0.5) == []
    assert chosen("Anything?") == []
    assert chosen("", "Boil pasta for nine minutes.", min_relevance=0.9) == []


def test_headings_add_to_relevance() -> None:
    """Both by shared words and by the embedding: a sentence rarely repeats the heading above it."""
    passages = ["It does sixty an hour.", "It does sixty in an hour."]
    for question, topic in (("How fast is a sports car?", "Cars"), ("How fast is an automobile?", "Cars")):
        for contexts in (["Bakeries", topic], [topic, "Bakeries"]):
            (quote,) = best_quotes(
                question,
                passages,
                contexts=contexts,
                embedder=SentenceTransformerEmbedder(),
                language="en",
                max_quotes=1,
                min_relevance=0.0,
            )
            assert contexts[quote.passage] == topic


def test_bracketed_numbers_in_the_source_are_not_citations() -> None:
    quote = Quote(passage=0, text="It was shown [12, 13] in 1994 [a].", block=False, relevance=1.0)
    assert quote.cited(2) == "It was shown (12, 13) in 1994 [a]. [2]"


def test_blocks_keep_their_lines_and_code_its_indices() -> None:
    code = "Run:\n```python\nx[1] = 2\n```"
    assert Quote(passage=0, text=code, block=True, relevance=1.0).cited(2) == f"{code}\n[2]"
    table = "| a |\n|---|\n| 1 |"
    assert Quote(passage=0, text=table, block=True, relevance=1.0).cited(2) == f"{table}\n[2]"


def test_a_quoted_item_loses_its_bullet_and_a_wrapped_sentence_its_line_ends() -> None:
    assert chosen("default of k1", "- the default of k1 is 1.2")[0].text == "the default of k1 is 1.2"
    assert chosen("default of k1", "The *default* of k1 is 1.2.")[0].text == "The *default* of k1 is 1.2."
    wrapped = "The default of k1 in this very useful library here\nis 1.2 for everyone."
    assert "\n" not in chosen("default of k1", wrapped)[0].text
