"""The sections of the page, each in one place: NAME.py has records and figures, NAME.html.j2 beside it the template.

Knows what a section shows and how it is drawn; does not know where its numbers come from. The fields of `ReportData`
name the sections, in the page's order. Yields and diversity are tables of records that `synth` and `evaluate` define,
so they are templates alone.
"""
