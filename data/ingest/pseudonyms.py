"""Keyed pseudonyms: stable for a patient or study, and not reversible without the key."""

import hashlib
import hmac
import os
import secrets

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import read_bounded
from medunifier.shared.files.os_services import expand_home

DEFAULT_KEY_FILE = "~/.config/medunifier/pseudonym.key"
KEY_BYTES = 32


def load_key(path: str) -> bytes:
    """Return the user's key; create it, readable by its owner only, if the file is absent.

    It is never written to a shard or a manifest. Keeping it allows linking new studies to old ones; deleting it makes
    the pseudonyms irreversible.

    Raises:
        UserError: if the file cannot be created, or is not a key.
    """
    try:
        file = expand_home(path)
    except UserError as error:
        raise UserError(f"no place for the key of the pseudonyms: {error}; or pass --key_file FILE") from None
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as created:
                created.write(secrets.token_hex(KEY_BYTES) + "\n")
        key = bytes.fromhex(read_bounded(file, 4 * KEY_BYTES).decode("ascii").strip())
    except FileExistsError:
        return load_key(path)  # another process created it first
    except OSError as error:
        raise UserError(f"cannot use the key file {file}: {error.strerror}; pass another with --key_file") from None
    except ValueError:
        raise UserError(f"{file} is not a key file: expected {KEY_BYTES} bytes in hexadecimal") from None
    if len(key) != KEY_BYTES:
        raise UserError(f"{file} is not a key file: expected {KEY_BYTES} bytes, found {len(key)}")
    return key


def pseudonym(key: bytes, kind: str, name: str) -> str:
    """Return 16 hexadecimal digits for a patient or study (``kind``), by HMAC-SHA256."""
    return hmac.new(key, f"{kind}:{name}".encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:16]


def uniform(key: bytes, name: str) -> float:
    """Return a number in [0, 1) that depends only on the key and the name; it decides a patient's split."""
    digest = hmac.new(key, f"split:{name}".encode(errors="surrogatepass"), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
