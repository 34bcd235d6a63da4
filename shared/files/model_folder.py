"""Load a Hugging Face folder that others wrote: its JSON files are checked before a loader parses them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medunifier.shared.artifacts import read_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import bare_name
from medunifier.shared.files.weights import check_weight_file

_LOADED = (".json", ".safetensors", ".bin", ".pth")


@contextmanager
def checked_model_folder(folder: str | Path, what: str) -> Iterator[None]:
    """Check the JSON files of ``folder``, and turn what a loader raises inside into one line.

    The loaders of ``transformers`` and ``tokenizers`` raise errors of many kinds, and join the file names of a weight
    index to the folder as they stand.

    Raises:
        UserError: if a file is a Git LFS pointer or cut off, a JSON file is damaged or nested too deeply, a weight
            index names a file outside the folder, or the folder cannot be loaded.
    """
    for path in sorted(Path(folder).glob("*")):
        if path.suffix in _LOADED and path.is_file():
            check_weight_file(path)
    for path in sorted(Path(folder).glob("*.json")):
        content = read_json(path, f"a part of {what}", (dict, list), any_text=True)  # a vocabulary may hold a NUL
        if path.name.endswith(".index.json"):
            names = content.get("weight_map") if isinstance(content, dict) else None
            for name in names.values() if isinstance(names, dict) else [None]:
                bare_name(name, str(path))
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic of Rust code (tokenizers) is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{folder} cannot be loaded as {what}: {reason}") from error
