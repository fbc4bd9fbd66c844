"""The trace explorer: one HTML file that shows a run's curves and completions, offline.

python -m r1lab.trace report RUN

source.py     a run directory -> its completions, checked
findings.py   the first aha, the reward-hacking suspects
sampling.py   which groups a bounded page shows, and what each is compared with
groups.py     a group of completions -> what the page shows of it
shading.py    token ids and numbers -> compact strings
series.py     metrics -> curves and headline numbers
build.py      all of these -> the page's data
html.py       data and page/ -> one file
page/         template.html, report.css and the scripts
"""

from r1lab.trace.report.html import write_report

__all__ = ["write_report"]
