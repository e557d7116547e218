"""What people read: text, progress and pictures.

- `answer`: The answer of a search on one screen, and the table of the settings that no other one beats.
- `details`: What `--verbose` adds to an answer.
- `paste`: The last lines of an answer: Python to paste into a script. Whatever a study holds, they are comments and
  assignments of constants.
- `plot`: Pictures of results, drawn with matplotlib without a display.
- `progress`: What is shown on stderr while bstune works: a line for what deserves it, and on a terminal a bar of the
  budget.
- `reasons`: Decisions in words: why a setting is recommended, and what to be wary of.
- `study_text`: What a study knows, the answer first.
- `terminal`: What is printed to stdout and stderr: made harmless, and without failing where nobody reads it any more.
- `text`: Results as text for people; programs read `to_dict()`.
- `trials`: Trials as people read them, a line or a row each.
- `units`: Numbers with their units, for people.
- `view`: How wide text may be and whether in colours, and text that rich lays out for it.
"""
