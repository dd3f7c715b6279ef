"""Inquiries: runs that are chosen by what they tell, over a farm or here: whose fault a failure is, and which commit brought it."""
