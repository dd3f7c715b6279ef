"""This room finds Lightning under either of its two package names, and is the only one that uses its private names.

`choice` finds the package, `names` has its classes and functions, and `loops`, `logs` and `trainer` do what needs more
than its public interface. The exceptions are `elastic/lightning/loops.py` and `strategy.py`, whose classes derive from
Lightning's and use private names of their own objects. `tests/architecture/test_lightning_api.py` checks that no other
file uses a private name, and that the code behind each private name has not changed since it was last read. Internal.
"""
