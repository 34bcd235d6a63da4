"""Decode text files that others wrote: one rule for reports, tables, lists and prompts."""

import codecs
import re

_MARKS = (  # UTF-32's little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MARK = "\ufeff"
_DAMAGED = re.compile("[\0\ufffd\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n|\r|\n")


def decode_text(content: bytes, damaged: bool = False) -> str:
    """Decode a text file by its byte-order mark, else as UTF-8, else as Windows-1252 (``cp1252``).

    Args:
        content: the bytes of the file.
        damaged: accept a text that is not :func:`intact`, for a caller that checks its parts.

    Returns:
        The text without U+FEFF, which the parts of a concatenated file leave inside it.

    Raises:
        ValueError: if the bytes fit none of these encodings, or the text is not :func:`intact`.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        if encoding is not None:
            raise
        text = content.decode("cp1252")
    text = without_marks(text)
    if not damaged and not intact(text):
        raise ValueError("it holds NUL or U+FFFD characters: save it as UTF-8")
    return text


def intact(text: str) -> bool:
    """Return whether a text holds no NUL, no lone surrogate and no U+FFFD, the trace of an earlier wrong decoding."""
    return not _DAMAGED.search(text)


def without_marks(text: str) -> str:
    """Return the text without U+FEFF."""
    return text.replace(_MARK, "")


def text_lines(text: str) -> list[str]:
    """Split at the line ends of text files: LF, CRLF, CR.

    ``str.splitlines`` also splits at U+0085, U+2028 and control characters that occur inside names and sentences.
    """
    return _LINE_END.split(text)
