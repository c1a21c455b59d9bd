"""Result files to one self-contained HTML page.

inputs      what the page is made of: read, checked, nothing guessed
charts      small SVG charts: lines, bars, and rates with their intervals
html        elements with escaped text
sections    each part of the page
page        the page
dataset     another page: what demonstrations look like
comparison  and another: several evaluations side by side
"""
