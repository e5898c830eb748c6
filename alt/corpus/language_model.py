"""Answers of a language model behind an OpenAI-compatible endpoint, kept in a file so that none is asked for twice.

Nothing here runs by itself: a command must name the endpoint. Without one, the kept answers are replayed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alt.errors import one_line

from .kept_lines import KeptLines

__all__ = ["KEY_VARIABLE", "LanguageModel"]

KEY_VARIABLE = "ALT_LLM_KEY"
"""Environment variable with the endpoint's key. Without it "none" is sent, which local servers take."""
_LATER = {408, 409, 425, 429, 500, 502, 503, 504}


class LanguageModel:
    """Asks a language model, at most once for every prompt.

    Every answer is appended to ``answers`` and synced before it is used. So a killed run loses none, and the same run
    again asks only for the rest. Half a line at the end of the file, which a killed run may leave, is dropped.

    Args:
        model: its name at the endpoint. answers: a .jsonl file, one answer per line.
        endpoint: the base of its URLs, ``http://localhost:8000/v1``; None: only replay.
        per_minute: requests per minute at most. tries: of one prompt, while the endpoint is busy or away.
        temperature: of the sampling; answers of another one are not used.
        sleep, now: for tests.

    Raises:
        ValueError: a number is out of range, or ``answers`` is no such file.
    """

    def __init__(
        self,
        model: str,
        answers: str | os.PathLike[str],
        endpoint: str | None = None,
        *,
        per_minute: float = 60.0,
        tries: int = 5,
        temperature: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not per_minute > 0:
            raise ValueError(f"per_minute: expected more than 0 requests, got {per_minute}")
        if tries < 1:
            raise ValueError(f"tries: expected at least 1, got {tries}")
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: expected a URL such as http://localhost:8000/v1, got {endpoint!r}")
        self.model, self.endpoint, self.temperature = model, endpoint, temperature
        self.path = Path(answers)
        self.asked = 0
        self._tries, self._pause = tries, 60.0 / per_minute
        self._sleep, self._now, self._next = sleep, now, 0.0
        self._client: Any = None
        self._kept = KeptLines(answers, "answers")
        self._answers = dict(self._kept.read(lambda row: (str(row["key"]), str(row["answer"]))))

    def ask(self, prompt: str) -> str:
        """Returns the answer to a prompt, kept or new.

        Raises:
            LookupError: there is no endpoint, and no answer is kept.
            ConnectionError: the endpoint refuses, or stays away or busy for all tries. Earlier answers are kept.
        """
        key = self._key(prompt)
        if key not in self._answers:
            if self.endpoint is None:
                raise LookupError(
                    f"{self.path} has no answer of {self.model} to {prompt!r:.80}; name an endpoint to ask it"
                )
            self._keep(key, prompt, self._request(prompt))
        return self._answers[key]

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.model, self.temperature, prompt]).encode()).hexdigest()

    def _keep(self, key: str, prompt: str, answer: str) -> None:
        row = {"key": key, "model": self.model, "temperature": self.temperature, "prompt": prompt, "answer": answer}
        self._kept.append(row)
        self._answers[key] = answer

    def _request(self, prompt: str) -> str:
        if self._client is None:
            from huggingface_hub import InferenceClient

            # A key is always given: without one, the client would send the Hub's token to this endpoint.
            key = os.environ.get(KEY_VARIABLE) or "none"
            self._client = InferenceClient(base_url=self.endpoint, api_key=key, timeout=120)
        messages = [{"role": "user", "content": prompt}]
        for attempt in range(1, self._tries + 1):
            wait = self._next - self._now()
            if wait > 0:
                self._sleep(wait)
            self._next = self._now() + self._pause
            self.asked += 1
            try:
                found = self._client.chat_completion(
                    messages, model=self.model, temperature=self.temperature, max_tokens=400
                )
                answer = found.choices[0].message.content
                if not isinstance(answer, str) or not answer.strip():
                    raise ConnectionError(f"endpoint: {self.endpoint} gave an empty answer to {prompt!r:.80}")
                return answer
            except ConnectionError:
                raise
            except Exception as error:  # of huggingface_hub, and of whichever HTTP library it uses
                response = getattr(error, "response", None)
                status = getattr(response, "status_code", None)
                if (status is not None and status not in _LATER) or attempt == self._tries:
                    said = f"answered {status}" if status else f"does not answer ({one_line(error)})"
                    raise ConnectionError(
                        f"endpoint: {self.endpoint} {said}; answers so far are kept in {self.path}, and the same "
                        "command goes on"
                    ) from None
                self._next = max(self._next, self._now() + _read_wait(response, attempt))
        raise AssertionError("unreachable")


def _read_wait(response: Any, attempt: int) -> float:
    """Returns the seconds that a busy endpoint asks to wait, at most a minute; 1, 2, 4, ... if it does not say."""
    text = getattr(response, "headers", {}).get("retry-after", "")
    return min(60.0, float(text) if str(text).isdigit() else 2.0 ** (attempt - 1))
