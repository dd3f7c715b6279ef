"""`pytest --farm`: a repository's tests run by the pool, with results as if they had run here."""
