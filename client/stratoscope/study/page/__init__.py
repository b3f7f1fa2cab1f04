"""The report of a study: one self-contained page, its figures and its tables, of one model or of several."""

from stratoscope.study.page.book import Book, Comparison
from stratoscope.study.page.comparison import write_comparison
from stratoscope.study.page.page import write_page

__all__ = ["Book", "Comparison", "write_comparison", "write_page"]
