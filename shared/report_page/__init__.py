"""HTML pages for people: one self-contained file from Jinja2 templates."""

from shared.report_page.page import PHANTOM, SYNTHETIC, Bar, Figure, Page

__all__ = ["PHANTOM", "SYNTHETIC", "Bar", "Figure", "Page"]
