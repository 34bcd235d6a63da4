"""The password check: constant-time comparison and a bound on wrong guesses."""

import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from fastapi import HTTPException

WINDOW_SECONDS = 300.0
GUESSES_PER_CLIENT = 10
"""Wrong guesses per client address and window."""
GUESSES_OVERALL = 100
"""Wrong guesses of all clients per window; a botnet shares it. It bounds the memory of the check as well."""

CLIENT_ADDRESS: ContextVar[str] = ContextVar("client_address", default="")
"""Address of the client whose request is handled, set by the gate (:mod:`.gate`)."""


class Login:
    """Gradio's `auth` callable for one account.

    Gradio calls it synchronously in the event loop, so no two guesses are checked at the same time.

    Args:
        user, password: the account.
        clock: seconds, monotonic.
    """

    def __init__(self, user: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._account, self._clock = (_digest(user), _digest(password)), clock
        self._wrong: deque[tuple[float, str]] = deque()  # (time, address), at most GUESSES_OVERALL

    def __call__(self, user: str, password: str) -> bool:
        """Return whether name and password are right.

        Raises:
            HTTPException: 429 if this client, or all together, guessed wrong too often. The guess is not checked.
        """
        now, address = self._clock(), CLIENT_ADDRESS.get()
        while self._wrong and self._wrong[0][0] <= now - WINDOW_SECONDS:
            self._wrong.popleft()
        by_client = sum(guesser == address for _, guesser in self._wrong)
        if by_client >= GUESSES_PER_CLIENT or len(self._wrong) >= GUESSES_OVERALL:
            wait = str(int(self._wrong[0][0] + WINDOW_SECONDS - now) + 1)
            raise HTTPException(429, "too many wrong passwords: try again later", headers={"Retry-After": wait})
        # Both are compared, and over digests of one length: the time shows neither which was wrong nor a prefix.
        name_right = hmac.compare_digest(_digest(user), self._account[0])
        right = hmac.compare_digest(_digest(password), self._account[1]) and name_right
        if not right:
            self._wrong.append((now, address))
        return right


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
