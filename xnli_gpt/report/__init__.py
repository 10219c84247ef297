"""The report of a training run or an evaluation, from its numbers.

    write_report("out", ReportContent("Hindi XNLI, seed 1", results={"xnli_hi": metrics}))

leaves report.html (one file with everything inside, to open), report.md (to paste) and
figures/*.png and *.pdf (for a paper). Nothing in them depends on when or where they were written,
so the same numbers give the same files.
"""

from xnli_gpt.report.content import ReportContent
from xnli_gpt.report.curves import read_steps
from xnli_gpt.report.writing import write_report

__all__ = ["ReportContent", "read_steps", "write_report"]
