"""Pages for people: `page` is a run's report, `card` the data card of a curated set; each is read by its own name, so that
a card costs no torch.

A page is one HTML file that needs nothing else. `facts` reads the run and decides who is before and after, `evidence`
measures the kept answers, `claims`, `course` and `panels` turn that into sentences and figures, `tables` into text, `charts`
draws, `words` writes numbers, `page.html.j2` and `card.html.j2` lay out. What models and rows say is hostile: the templates
escape everything, and the pages forbid themselves scripts and any request.
"""
