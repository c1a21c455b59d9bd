"""Result files to self-contained HTML pages, and to tables in documents.

html        elements with escaped text
charts      small SVG charts: lines, bars, and rates with their intervals
table       a table, written once: HTML or Markdown
results     tables of a training and its evaluation
inputs      what the report of a run is made of: read, checked, nothing guessed
page        that report
comparison  several evaluations side by side: read, paired by init state, shown
dataset     what demonstrations look like
markdown    tables of committed figures in documents
"""
