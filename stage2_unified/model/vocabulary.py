"""The one id space of text and image: text ``[0, V)``, specials ``[V, V + S)``, image codes from ``offset`` on."""

from dataclasses import dataclass

from medunifier.data.images.views import projection

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
BOI, EOI = "<boi>", "<eoi>"
UNCOND = "<uncond>"
EMB_IMG, EMB_TXT, MATCH = "<emb_img>", "<emb_txt>", "<match>"
VIEWS = ("pa", "ap", "lateral", "other")
SECTIONS = ("findings", "impression")
PRIOR = "<prior>"  # precedes the view token of an image of the prior study

SPECIALS: tuple[str, ...] = (
    *(BOS, EOS, PAD, BOI, EOI, UNCOND, EMB_IMG, EMB_TXT, MATCH),
    *(f"<view:{view}>" for view in VIEWS),
    *(f"<{section}>" for section in SECTIONS),
    PRIOR,
)

# Specials that never occur within a report.
NEVER_WRITTEN = (EMB_IMG, BOI, EOI, MATCH, PAD, BOS, UNCOND, EMB_TXT, PRIOR, *(f"<view:{view}>" for view in VIEWS))


def view_name(position: str) -> str:
    """Return the view of :data:`VIEWS` for a view position ("PA", "LL", "left lateral", "", …)."""
    return projection(position) or "other"


@dataclass(frozen=True)
class Vocabulary:
    """Map special tokens, views, sections and image codes to ids.

    Attributes:
        text_size: V, ids of the report tokenizer.
        codebook_size: K, entries of the image codebook.
    """

    text_size: int
    codebook_size: int

    @property
    def offset(self) -> int:
        """Id of the first image code; ids below it are text and specials."""
        return self.text_size + len(SPECIALS)

    def __len__(self) -> int:
        return self.offset + self.codebook_size

    def __getitem__(self, special: str) -> int:
        """Return the id of a special token."""
        return self.text_size + SPECIALS.index(special)

    def view(self, position: str) -> int:
        """Return the id of the view token for a DICOM ViewPosition."""
        return self[f"<view:{view_name(position)}>"]

    def section(self, name: str) -> int:
        """Return the id of the token that begins a section."""
        return self[f"<{name}>"]
