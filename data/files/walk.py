"""The walk over a folder of images: links, kinds by content, and what was left out with the reason."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from medunifier.data.files.header import Identity, read_identity
from medunifier.data.files.kinds import GZIP, HEAD_BYTES, inflate_start, kind_of
from medunifier.data.files.names import has_image_ending
from medunifier.data.records import Problem
from medunifier.data.remote_paths import RemotePath, lies_under, open_file

_OPTION = "--options.outside_root"
OUTSIDE_ROOT = f"outside the archive's top folder; {_OPTION} true reads it"
"""Reason of a problem, after what it is."""

_NO_IMAGE = "not an image file"
_READ_ALREADY = "link to a file or folder that is read already"


@dataclass(frozen=True)
class ImageFile:
    """A file that holds an image, or should hold one by its name or header but is damaged."""

    path: Path
    kind: Literal["dicom", "png", "jpeg", "damaged"]
    identity: Identity = field(default_factory=Identity)
    """Of a DICOM file."""


def find_images(root: Path, left_out: list[Problem], outside_root: bool = False) -> Iterator[ImageFile]:
    """Yield the images below a folder in the order of their paths, DICOM, PNG and JPEG, whatever their names.

    A DICOMDIR, a DICOM object without pixels (a structured report) or a text file is no image. A file that is named
    like an image, or is DICOM, but cannot be recognized as an image is yielded as damaged.

    Args:
        root: the folder, local or remote.
        left_out: receives an entry for each file or folder that is not read.
        outside_root: follow links that leave ``root``.
    """
    for path in list_files(root, left_out, outside_root):
        try:
            with open_file(path) as file:
                found = _inspect(path, file)
        except OSError as error:
            found = f"file cannot be read: {error.strerror or type(error).__name__}"
        if isinstance(found, str):
            left_out.append(Problem(found, str(path)))
        else:
            yield found


def _inspect(path: Path, file: BinaryIO) -> ImageFile | str:
    """Return the image, or why there is none."""
    head = file.read(HEAD_BYTES)
    if head.startswith(GZIP):
        file.seek(0)
        head = inflate_start(file, HEAD_BYTES)
    kind = kind_of(head)
    if kind is None:
        return ImageFile(path, "damaged") if has_image_ending(path.name) else _NO_IMAGE
    if kind == "directory":
        return "DICOMDIR: the index of a medium, not an image"
    if kind != "dicom":
        return ImageFile(path, kind)
    identity = read_identity(file)
    if identity.other_object:
        return "DICOM object without an image"
    return ImageFile(path, "dicom" if identity.has_image else "damaged", identity)


def list_files(
    root: Path, left_out: list[Problem], outside_root: bool = False, aliases: bool = False
) -> Iterator[Path]:
    """Yield the files below a folder in the order of their paths; hidden files and folders are left out.

    Links are followed, each folder and file being read once however many links lead to it.

    Args:
        root: the folder, local or remote.
        left_out: receives an entry for each file, folder or link that is not read.
        outside_root: follow links that leave ``root``.
        aliases: also yield links to files that are yielded under their own name, for tables that name the link.
    """
    if isinstance(root, RemotePath):
        for path in sorted(root.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(root).parts):
                left_out.append(Problem("hidden file", str(path)))
            else:
                yield path
    else:
        yield from sorted(_LocalWalk(root, left_out, outside_root, aliases).files())


class _LocalWalk:
    """Read real folders before links, so that a file is found under its own path if it has one below the root."""

    def __init__(self, root: Path, left_out: list[Problem], outside_root: bool, aliases: bool) -> None:
        self._root, self._left_out, self._outside_root, self._aliases = root, left_out, outside_root, aliases
        self._seen: set[str] = set()  # real paths of folders and files
        self._links: list[Path] = []
        self._found: list[Path] = []

    def files(self) -> list[Path]:
        self._read(self._root)
        while self._links:
            links, self._links = self._links, []
            for link in links:
                self._follow(link)
        return self._found

    def _read(self, top: Path) -> None:
        pending = [(top, os.path.realpath(top))]
        while pending:
            folder, real = pending.pop()
            if real in self._seen:
                self._leave_out(_READ_ALREADY, folder)
                continue
            self._seen.add(real)
            try:
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError as error:
                self._leave_out(f"folder cannot be read: {error.strerror}", folder)
                continue
            for entry in entries:
                path, target = folder / entry.name, os.path.join(real, entry.name)
                if entry.name.startswith("."):
                    self._leave_out("hidden file or folder", path)
                elif entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir():
                    pending.append((path, target))
                else:
                    self._add(path, target)

    def _follow(self, link: Path) -> None:
        real = os.path.realpath(link)
        if not self._outside_root and not lies_under(link, self._root):
            self._leave_out(f"link {OUTSIDE_ROOT}", link)
        elif os.path.isdir(real):
            self._read(link)
        elif os.path.exists(real):
            self._add(link, real)
        else:
            self._leave_out("broken link", link)

    def _add(self, path: Path, real: str) -> None:
        if real in self._seen and not self._aliases:
            self._leave_out(_READ_ALREADY, path)
        else:
            self._seen.add(real)
            self._found.append(path)

    def _leave_out(self, reason: str, path: Path) -> None:
        self._left_out.append(Problem(reason, str(path)))


def summary(problems: Iterable[Problem], option: str = _OPTION) -> str:
    """Return the reasons with their counts, the most frequent first: "not an image file (3), broken link (1)".

    ``option`` is the name that the calling command gives to ``outside_root``.
    """
    counts = Counter(problem.reason.replace(_OPTION, option) for problem in problems)
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common())
