"""The research-only notice of pages, model cards, commands and result rows."""

RESEARCH_ONLY = "Research software, not a medical device."
MODEL_LIMITS = (
    "It may overlook findings and invent others; a generated radiograph shows no patient. "
    "It must not be used for the care of a person."
)
TOKENIZER_LIMITS = "A reconstruction can lose or invent a finding."
CARD_FINDINGS = "- findings: "
"""Begin of the line of a model card that lists the findings of the training data, separated by commas."""


def research_notice(*details: str, markdown: bool = False) -> str:
    """Return the notice followed by the sentences ``details``; with ``markdown`` the notice itself is bold."""
    return " ".join([f"**{RESEARCH_ONLY}**" if markdown else RESEARCH_ONLY, *details])
