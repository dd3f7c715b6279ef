"""Drawings of the page: numbers become places here, and templates draw them as SVG, the same on the page and in a file."""
