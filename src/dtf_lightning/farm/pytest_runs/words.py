"""What pytest shows of the plugin. Imports nothing: every pytest reads it."""

MARK = (
    "farm(cpu=1, gpu=1, memory='4GiB', needs={'tpu': 1}, labels=['ssd'], exclusive=True, timeout=600, together='database'): "
    "with `pytest --farm`, what the test needs of its worker, how many seconds it may take, and with which tests it must stay"
)
"""The line of `pytest --markers`."""
