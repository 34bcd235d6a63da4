"""Report text: sections, the rule-based labeler, label names, redaction."""
