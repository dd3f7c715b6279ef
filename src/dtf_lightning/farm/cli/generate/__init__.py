"""`dtf farm generate`: writes the tests of a model, and submits them."""
