"""The one id space of text and image: text ``[0, V)``, specials ``[V, V + S)``, image codes from ``offset`` on."""

from dataclasses import dataclass

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
BOI, EOI = "<boi>", "<eoi>"
UNCOND = "<uncond>"
EMB_IMG, EMB_TXT, MATCH = "<emb_img>", "<emb_txt>", "<match>"
VIEWS = ("pa", "ap", "lateral", "other")
SECTIONS = ("findings", "impression")
PRIOR = "<prior>"  # before the view token of an image that was taken at an earlier visit

SPECIALS: tuple[str, ...] = (
    *(BOS, EOS, PAD, BOI, EOI, UNCOND, EMB_IMG, EMB_TXT, MATCH),
    *(f"<view:{view}>" for view in VIEWS),
    *(f"<{section}>" for section in SECTIONS),
    PRIOR,
)

# Specials that have no place inside a report.
NEVER_WRITTEN = (EMB_IMG, BOI, EOI, MATCH, PAD, BOS, UNCOND, EMB_TXT, PRIOR, *(f"<view:{view}>" for view in VIEWS))

# ViewPosition as MIMIC-CXR and Open-I have it, folded to what a model can learn.
_VIEW_OF_POSITION = {"PA": "pa", "AP": "ap", "LATERAL": "lateral", "LL": "lateral", "LARGE LATERAL": "lateral"}


def view_name(position: str) -> str:
    """DICOM ViewPosition ("PA", "LL", "", …) -> one of :data:`VIEWS`."""
    return _VIEW_OF_POSITION.get(position.strip().upper(), "other")


@dataclass(frozen=True)
class Vocabulary:
    """Where each kind of id begins.

    Attributes:
        text_size: V, ids of the report tokenizer.
        codebook_size: K, entries of the image codebook.
    """

    text_size: int
    codebook_size: int

    @property
    def offset(self) -> int:
        """First image code; ids below it are text and specials."""
        return self.text_size + len(SPECIALS)

    def __len__(self) -> int:
        return self.offset + self.codebook_size

    def __getitem__(self, special: str) -> int:
        """Id of a special token."""
        return self.text_size + SPECIALS.index(special)

    def view(self, position: str) -> int:
        """Id of the view token for a DICOM ViewPosition."""
        return self[f"<view:{view_name(position)}>"]

    def section(self, name: str) -> int:
        """Id of the token that opens a section."""
        return self[f"<{name}>"]
