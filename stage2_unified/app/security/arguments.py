"""Check what a request passes to an endpoint, by the kind of each argument, before Gradio touches it.

Gradio treats any JSON object that looks like its FileData, at any depth, as a file: it copies the file or downloads
the URL, and serves the result. So objects and lists are accepted only where an argument needs them, and a file only
if this client uploaded it or it is an example of the page.
"""

import copy
import functools
import math
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.app.security.clients import owner_of
from medunifier.stage2_unified.app.security.uploads import Owner, Uploads

_URL = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|data:|file:)")
_MAX_CELLS = 10_000  # of a table
_LARGEST = 2**53  # integers up to it are exact in JavaScript


class CheckedBlocks(gr.Blocks):
    """Gradio blocks that check the arguments of every event, on every route, and report errors as messages.

    If the event's function has an attribute ``refused``, the outputs that it returns for the error are the answer.
    """

    uploads: Uploads
    public_files: Collection[str] = ()
    """Files that every client may pass, besides its uploads."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """Process an event as Gradio does, after checking its arguments.

        Raises:
            gr.Error: for invalid arguments, for a `UserError`, and without details for an internal error.
        """
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        try:
            if function.fn is None:
                raise UserError("this event runs in the browser alone")
            if options.get("iterator") is None:  # later steps of a generator have no arguments
                try:
                    inputs = self._checked(function.inputs, inputs, options.get("request"))
                except UserError as error:
                    if not (refused := getattr(function.fn, "refused", None)):
                        raise
                    function, inputs = copy.copy(function), []
                    function.inputs, function.fn = [], functools.partial(refused, error)
                options["event_data"] = _checked_event(options.get("event_data"))
            return await super().process_api(function, inputs, *arguments, **options)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            # The message may contain user input, which must not be logged.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.name}, line {frame.lineno}"
            print(f"{function.name}: {type(error).__name__} in {place}", file=sys.stderr, flush=True)
            raise gr.Error("this failed on the server: a defect, not your file", print_exception=False) from None

    def _checked(self, components: Sequence[Component], values: list[Any], request: Any) -> list[Any]:
        if len(components) != len(values):
            raise UserError(f"expected {len(components)} arguments, got {len(values)}")
        if isinstance(request, list):  # for a batch request
            request = request[0] if request else None
        owner = None if request is None else owner_of(request.request.scope)
        return [self._argument(*pair, owner) for pair in zip(components, values, strict=True)]

    def _argument(self, component: Component, value: Any, owner: Owner | None) -> Any:
        name = getattr(component, "label", None) or type(component).__name__
        if isinstance(component, gr.State):
            return None  # its value is stored on the server
        if isinstance(component, gr.Dataset):
            if type(value) is int and 0 <= value < len(component.samples or ()):
                return value
        elif isinstance(component, gr.Number | gr.Slider):
            if value is None and not isinstance(component, gr.Slider):  # Gradio cannot process a slider's
                return None  # left empty: the handler states what to enter
            low = -_LARGEST if component.minimum is None else component.minimum
            high = _LARGEST if component.maximum is None else component.maximum
            if type(value) in (int, float) and low <= value <= high:  # false for NaN
                return value
            unbounded = component.minimum is None and component.maximum is None
            expected = "with at most 15 digits" if unbounded else f"from {low} to {high}"
            raise UserError(f"{name}: expected a number {expected}")
        elif isinstance(component, gr.CheckboxGroup):
            if isinstance(value, list) and all(_is_choice(component, one) for one in value):
                return value
        elif isinstance(component, gr.Dataframe):
            return _table(name, value)
        elif value is None:
            return None
        elif isinstance(component, gr.File):
            return self._file(value, owner)
        elif isinstance(component, gr.Textbox):
            if _is_text(value):
                return value
        elif isinstance(component, gr.Dropdown | gr.Radio) and _is_choice(component, value):
            return value
        # The page has no other input components.
        raise UserError(f"{name}: this value is refused; files and addresses are taken in the file box alone")

    def _file(self, value: Any, owner: Owner | None) -> dict[str, Any]:
        """Return a FileData that contains only the path."""
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or owner is None:
            raise UserError("a file is passed as it was uploaded, not by a path or an address")
        if path not in self.public_files and not self.uploads.owned(path, owner):
            raise UserError("this file was deleted or was not uploaded by you: upload it again")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _is_text(value: Any) -> bool:
    """Return whether it is a string that is no URL and can be encoded as UTF-8 (JSON may contain lone surrogates)."""
    if not isinstance(value, str) or _URL.match(value):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_choice(component: Any, value: Any) -> bool:
    return isinstance(value, str) and value in [choice for _, choice in component.choices]


def _table(name: str, value: Any) -> dict[str, Any]:
    """Return the headers and the cells of a table, without its metadata."""
    headers, rows = (value.get("headers"), value.get("data")) if isinstance(value, dict) else (None, None)
    if isinstance(headers, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows):
        cells = [cell for row in (headers, *rows) for cell in row]
        if len(cells) <= _MAX_CELLS and all(cell is None or _is_text(cell) or _is_number(cell) for cell in cells):
            return {"headers": headers, "data": rows, "metadata": None}
    raise UserError(f"{name}: this is not a table of texts and numbers")


def _is_number(value: Any) -> bool:
    return type(value) in (bool, int, float) and math.isfinite(value) and abs(value) <= _LARGEST


def _checked_event(event: Any) -> Any:
    """Return the event with only the index that was clicked; None without one."""
    if event is None or event._data is None:
        return gr.EventData(None, {"index": None, "value": None})
    index = event._data.get("index") if isinstance(event._data, dict) else None
    numbers = index if isinstance(index, list) and len(index) == 2 else [index]
    if index is not None and not all(type(number) is int and 0 <= number <= _LARGEST for number in numbers):
        raise UserError("the clicked index must be one or two integers")
    return gr.EventData(event.target, {"index": index, "value": None})
