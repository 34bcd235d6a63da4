"""Report text: sections, the rule labeler, label names, redaction."""
