"""An answer as the protocol tells it to its asker."""

from __future__ import annotations

from ragkit.engine.answer import Answer
from ragkit.live import messages

__all__ = ["response_content"]


def response_content(answer: Answer, index: str) -> messages.ResponseContent:
    """Return what the asker is sent, within the limits of the protocol.

    Args:
        answer: What was answered.
        index: From which index.
    """
    return messages.ResponseContent(
        answer=answer.text,
        sources=[
            messages.Source(
                number=c.number,
                document_id=c.document_id[-1024:],
                title=c.title[:1024],
                source=c.source[-1024:],
                text=c.text,
                start=c.start,
                end=c.end,
                quotes=list(c.quotes),
                heading=" › ".join(c.headings)[:1024] or None,
                page=c.page,
                score=c.score,
            )
            for c in answer.citations
        ],
        abstained=answer.abstained,
        index=index,
        model=answer.model,
        seconds=round(answer.seconds, 3),
    )
