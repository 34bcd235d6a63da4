"""The research-only notice: one sentence for pages, cards, commands and result rows."""

RESEARCH_ONLY = "Research software, not a medical device."


def research_notice(*details: str, markdown: bool = False) -> str:
    """Return the notice, followed by ``details``; in Markdown the notice itself is bold."""
    return " ".join([f"**{RESEARCH_ONLY}**" if markdown else RESEARCH_ONLY, *details])
