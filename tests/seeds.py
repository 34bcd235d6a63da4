"""Properties that are checked for many random inputs within one test case."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def for_seeds(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with ``seed=0`` to ``count - 1`` as one test case; a failure names its seed.

    The seed replaces the generated input of a property-based test where a reference implementation is compared with:
    the same inputs in every run, and a failing one is repeated by calling the test with its seed.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(**fixtures: Any) -> None:
            for seed in range(count):
                try:
                    test(seed=seed, **fixtures)
                except BaseException as error:
                    error.add_note(f"with seed {seed}")
                    raise

        signature = inspect.signature(test)
        others = [parameter for name, parameter in signature.parameters.items() if name != "seed"]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run

    return decorate
