"""Lightning, under whichever of its two names the script imports it, and every private name of it that we touch.

`choice` finds the package, `names` has its classes and functions, `loops`, `logs` and `trainer` do what needs more than
its public interface. Only `elastic/lightning/loops.py` and `strategy.py`, whose classes are Lightning's, reach into their
own objects besides. `tests/architecture/test_lightning_api.py` holds both: nobody else touches a private name, and each
private name is what it was when this was written.
"""
