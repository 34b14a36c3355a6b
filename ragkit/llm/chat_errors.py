"""What goes wrong with a language model's server, as an `LLMError` that says what to do.

The API key is in no message.
"""

from __future__ import annotations

from ragkit.errors import (
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMTimeoutError,
)

__all__ = ["ChatErrors"]


class ChatErrors:
    """Makes the errors of one model on one server.

    Args:
        model: The model's name.
        base_url: The server's address, without credentials.
        key: What must not be shown, although servers repeat it.
        timeout_seconds: How long an answer may take.
    """

    def __init__(self, model: str, base_url: str, *, key: str, timeout_seconds: float) -> None:
        self.model = model
        self.base_url = base_url
        self._key = key
        self._timeout_seconds = timeout_seconds

    def explain(self, error: Exception, *, begun: bool) -> LLMError:
        """Say what an error of `openai` means, or one from reading what is no reply; `begun` if a part had come."""
        import openai

        said = self.quoted(getattr(error, "message", error))
        match error:
            case openai.APITimeoutError():
                return self.too_late()
            case openai.APIConnectionError() if begun:
                return self.cut()
            case openai.APIConnectionError():
                return self.error(
                    LLMConnectionError,
                    f"No language model server can be reached at {self.base_url} "
                    f"({self.quoted(error.__cause__ or said)}). Start it, or check base_url.",
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return self.error(
                    LLMAuthenticationError,
                    f"{self.base_url} does not accept the API key (HTTP {error.status_code}). Give the right one "
                    f"with api_key=... The server says: {said}",
                )
            case openai.RateLimitError():
                return self.slow_down(said)
            case openai.NotFoundError():
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} has no model '{self.model}', or is not the server's API. See what it has at "
                    f"{self.base_url}/models; base_url usually ends in /v1. The server says: {said}",
                )
            case openai.APIStatusError():
                hint = ""
                if "context" in said.lower():
                    hint = " If the passages are too long for the model, ask with a smaller k."
                elif getattr(error, "param", None) == "temperature":
                    hint = " Give temperature=None for a model that accepts none."
                return self.error(
                    LLMResponseError,
                    f"'{self.model}' at {self.base_url} failed with HTTP {error.status_code}. "
                    f"The server says: {said}{hint}",
                )
            case openai.APIError():
                return self.error(
                    LLMResponseError, f"'{self.model}' at {self.base_url} failed. The server says: {said}"
                )
            case _:
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} does not answer as an OpenAI-compatible server ({said}). "
                    "Check base_url: it usually ends in /v1.",
                )

    def too_late(self) -> LLMError:
        """Time was up."""
        return self.error(
            LLMTimeoutError,
            f"'{self.model}' at {self.base_url} had not finished after {self._timeout_seconds:g} seconds. "
            "Give it more with timeout_seconds=..., or ask for less with max_tokens=...",
        )

    def slow_down(self, said: str) -> LLMError:
        """The server wants fewer requests."""
        return self.error(
            LLMRateLimitError,
            f"{self.base_url} asks to slow down, or the account's quota is used up ({said}). "
            "Wait a little, or look at the account; max_retries=... and timeout_seconds=... say how long ragkit waits.",
        )

    def cut(self) -> LLMError:
        """The answer stops before its end."""
        return self.error(
            LLMConnectionError,
            f"{self.base_url} closed the connection in the middle of the answer. Ask again; "
            "if it happens again, look at the server's log.",
        )

    def error(self, kind: type[LLMError], message: str, *, billable: bool = True) -> LLMError:
        """Make an error of this model and server."""
        return kind(message, model=self.model, base_url=self.base_url, billable=billable)

    def quoted(self, said: object) -> str:
        """Return the beginning of what a server said, on one line and without the key."""
        words = " ".join(str(said).split()).replace(self._key, "***")
        return words if len(words) <= 300 else f"{words[:300]}…"
