"""One HTML page about runs."""

from gptjax.report.page import write_report

__all__ = ["write_report"]
