"""The password check: bounded guesses per client and overall, bounded memory, the same work for every answer."""

import pytest

fastapi = pytest.importorskip("fastapi")

from medunifier.stage2_unified.app.security import login as module  # noqa: E402
from medunifier.stage2_unified.app.security.login import (  # noqa: E402
    CLIENT_ADDRESS,
    GUESSES_OVERALL,
    GUESSES_PER_CLIENT,
    WINDOW_SECONDS,
    Login,
)


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def login(clock):
    return Login("reader", "word", clock=lambda: clock[0])


def guess(login, address, password):
    """The answer to a client's guess; "later" where it is not checked."""
    CLIENT_ADDRESS.set(address)
    try:
        return login("reader", password)
    except fastapi.HTTPException as error:
        assert error.status_code == 429 and 0 < int(error.headers["Retry-After"]) <= WINDOW_SECONDS + 1
        return "later"


def test_a_client_has_some_guesses_in_a_window(login, clock):
    results = [guess(login, "a", "wrong") for _ in range(GUESSES_PER_CLIENT + 5)]
    assert results == [False] * GUESSES_PER_CLIENT + ["later"] * 5
    assert guess(login, "a", "word") == "later" and guess(login, "b", "word") is True
    clock[0] = WINDOW_SECONDS + 1
    assert guess(login, "a", "word") is True


def test_right_passwords_are_not_counted(login):
    assert all(guess(login, "a", "word") is True for _ in range(10 * GUESSES_OVERALL))


def test_all_clients_together_have_some_guesses_and_the_memory_is_bounded(login):
    results = [guess(login, f"client {number}", "wrong") for number in range(GUESSES_OVERALL * 20)]
    assert results.count(False) == GUESSES_OVERALL and results[-1] == "later"
    assert len(login._wrong) == GUESSES_OVERALL


def test_name_and_password_are_compared_in_constant_time_whichever_is_wrong(login, monkeypatch):
    compared = []

    def digest(a, b):
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(module.hmac, "compare_digest", digest)
    for user, password in (("reader", "word"), ("reader", "w" * 500), ("nobody", "word"), ("", "\ud800"), ("é", "é")):
        assert login(user, password) is ((user, password) == ("reader", "word"))
    assert len(compared) == 10 and set(compared) == {(32, 32)}
