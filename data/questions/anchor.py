"""Update the offsets of the answer spans, and the judgements computed from them, after a page has changed.

Exits with status 1 and writes nothing if the text of a span does not occur exactly once in its page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HANDBOOK = HERE.parent / "handbook"


def main() -> int:
    lines = [json.loads(line) for line in (HERE / "spans.jsonl").read_text(encoding="utf-8").splitlines()]
    pages = {path.relative_to(HANDBOOK).as_posix(): path.read_text(encoding="utf-8") for path in HANDBOOK.rglob("*.md")}
    lost = []
    for line in lines:
        for span in line["spans"]:
            page = pages.get(span["document_id"], "")
            if page.count(span["text"]) != 1:
                lost.append(
                    f"{line['_id']}: {page.count(span['text'])} times in {span['document_id']}: {span['text']!r}"
                )
                continue
            span["start"] = page.index(span["text"])
            span["end"] = span["start"] + len(span["text"])
    if lost:
        print("\n".join(lost), file=sys.stderr)
        return 1
    (HERE / "spans.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    judged = [(line["_id"], page) for line in lines for page in dict.fromkeys(s["document_id"] for s in line["spans"])]
    (HERE / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{query}\t{page}\t1\n" for query, page in judged), encoding="utf-8"
    )
    print(f"{len(lines)} questions, {sum(len(line['spans']) for line in lines)} spans, {len(judged)} judgements")
    return 0


if __name__ == "__main__":
    sys.exit(main())
