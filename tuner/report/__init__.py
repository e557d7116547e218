"""What people read: text, progress, pages and pictures.

- `answer`: The answer of a search on one screen, and the table of the settings that no other one beats.
- `details`: What `--verbose` adds to an answer.
- `brief`: The answer in a few short parts: how much sooner, why not larger, how sure, and what it cost.
- `card`: A search to share: some twenty lines of Markdown, and a picture with the landscape, the answer and the cost.
- `charts`: Charts, one function each, drawn with Altair.
- `comparison`: Two searches side by side, as a page.
- `diagnosis_text`: A diagnosis as text, and as a notebook shows it.
- `live`: The screen of a search while it runs on a terminal.
- `notebook`: Results as a notebook shows them.
- `notebook_progress`: The same screen below the cell of a notebook.
- `output_file`: A file that the user names: written whole or not at all, and never over another's.
- `page`: The page of a search: one HTML file with everything in it.
- `page_charts`: The sections of a page, with their charts and what these show in words.
- `page_told`: What a report tells of one study.
- `pictures`: What results show of themselves: charts, and HTML for notebooks.
- `paste`: The last lines of an answer: Python to paste into a script. Whatever a study holds, they are comments and
  assignments of constants.
- `plot`: The picture of a probe: `bstune probe --plot`.
- `progress`: What is said on stderr while bstune works, a line for what matters.
- `reasons`: Decisions in words: why a setting is recommended, and what to be wary of.
- `scene`: What that screen shows, and how it is laid out.
- `study_text`: What a study knows, the answer first.
- `study_table`: The studies of a storage as a table.
- `terminal`: What is printed to stdout and stderr: made harmless, and without failing where nobody reads it any more.
- `text`: Results as text for people; programs read `to_dict()`.
- `trials`: Trials as people read them, a line or a row each.
- `units`: Numbers with their units, for people.
- `wording`: The facts of an answer in words, in one place.
- `view`: How wide text may be and whether in colours, and text that rich lays out for it.
"""
