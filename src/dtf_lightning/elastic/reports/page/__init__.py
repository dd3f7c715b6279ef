"""The report as one page of HTML: its template, style and script."""
