"""Layer curves as figures, and one self-contained page that shows them with their peaks, controls and provenance."""

from stratoscope.report.figure import draw_curves
from stratoscope.report.page import write_report
from stratoscope.report.section import Section, make_section

__all__ = ["Section", "draw_curves", "make_section", "write_report"]
