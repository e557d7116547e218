"""What people read: text, progress and pictures.

- `paste`: The last lines of an answer: Python to paste into a script. Whatever a study holds, they are comments and
  assignments of constants.
- `plot`: Pictures of results, drawn with matplotlib without a display.
- `progress`: What is shown on stderr while bstune works: a line for what deserves it, and on a terminal a bar of the
  budget.
- `reasons`: Decisions in words: why a setting is recommended, and what to be wary of.
- `terminal`: What is printed to stdout and stderr: made harmless, and without failing where nobody reads it any more.
- `text`: Results as text for people; programs read `to_dict()`.
- `units`: Numbers with their units, for people.
"""
