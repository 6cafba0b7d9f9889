"""The report: a comparison as one HTML file that needs nothing else: tables, figures, provenance, the problem.

    results     what was given, and what follows from it          quantities    names of the page
    tables      distances, laws in width, losses                  problem       the problem and the provenance, in words
    pictures    figures of this package with their captions       numbers       of the interactive part
    section     what a section holds                              cells         numbers as text
    page        `report`, and the template page.html with its page.css and page.js

Sections are data; all markup is in the template.
"""

from figures.report.page import report

__all__ = ["report"]
