"""Small corpora that tests share: a few pages whose answers are known."""

from __future__ import annotations

from pathlib import Path

PAGES = {
    "bm25.md": """# BM25

BM25 ranks documents by the words that they share with a query.

## How do I choose k1 and b?

Start with k1 = 1.2 and b = 0.75. The parameter k1 controls how fast repeated words stop counting. The parameter b
controls how much long documents are punished.

## Inverse document frequency

A rare word says more about a document than a common one, so its weight is higher.
""",
    "fusion.md": """# Rank fusion

Rank fusion joins several rankings into one.

## What is reciprocal rank fusion?

Reciprocal rank fusion adds one divided by sixty plus the rank of a document over all rankings.

## Weighted fusion of scores

Scores are scaled to the same range first, and then added with weights.
""",
    "fr/decoupage.md": """# Découpage des documents

Le découpage sépare un long document en passages que la recherche peut trouver.

## Quelle taille de passage choisir ?

Commencez par des passages de deux cents mots environ. Des passages trop courts perdent leur contexte.

## Le recouvrement entre passages

Un recouvrement répète la fin d'un passage au début du suivant, pour ne couper aucune phrase importante.
""",
    "fr/accents.md": """# Les accents dans la recherche

Beaucoup de gens écrivent leurs questions sans accents.

## Faut-il retirer les accents ?

Retirez les accents des documents et des questions de la même façon, avant la racinisation.
""",
}


def write_pages(folder: Path) -> Path:
    """Write the pages below a folder and return it."""
    for name, text in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
