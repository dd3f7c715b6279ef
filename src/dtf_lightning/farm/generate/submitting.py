"""Submit the plan of generated tests: `generate_and_submit_tests`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.generate.generate import BATCH_SIZES, GeneratedTests, generate_tests
from dtf_lightning.farm.sources import pack
from dtf_lightning.settings.marked_yaml import parse_marked


@dataclass(frozen=True, kw_only=True)
class SubmittedTests:
    """Tests that were written and submitted."""

    generated: GeneratedTests
    plan_id: str


def generate_and_submit_tests(
    model_name: str,
    hardware_types: Sequence[str] = ("cpu",),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    farm: Client | None = None,
    project: str = "default",
    **options: Any,
) -> SubmittedTests:
    """Write the tests of a model, and submit them to a farm; they run on, whether this process does or not.

    Args:
        model_name, hardware_types, batch_sizes: as `generate_tests` has them.
        farm: `None`: the farm that is known here.
        project: whose share the tests count against.
        options: the others of `generate_tests`.

    Raises `SettingsError` for what cannot be tested, and what `Client` raises.
    """
    generated = generate_tests(model_name, hardware_types, batch_sizes, **options)
    if farm is not None:
        return SubmittedTests(generated=generated, plan_id=submit_tests(farm, generated, project=project))
    with Client() as own:
        return SubmittedTests(generated=generated, plan_id=submit_tests(own, generated, project=project))


def submit_tests(farm: Client, generated: GeneratedTests, *, project: str = "default") -> str:
    """Submit the plan of tests that were written, with this folder's files; returns its id.

    Raises `SettingsError` where the tests, or what they test, do not lie in these files.
    """
    here = Path.cwd()
    top = generated.folder.resolve()
    if not top.is_relative_to(here):
        raise SettingsError(f"the tests lie in {top}, and workers get the files of {here}: give an --output below it")
    source = pack(here)
    ignored = _left_behind(generated, source.archive, source.folder)
    if ignored:
        raise SettingsError(
            f"{ignored} is ignored by git or .dtfignore, so that workers would not get it: give another --output"
        )
    plan = generated.plan.read_text(encoding="utf-8")
    parse_marked(plan, str(generated.plan))  # a person may have changed it
    text = plan if project == "default" else f"{plan}project: {project}\n"
    digest = farm.send_source(source)
    return farm.submit_plan(text, source=digest, folder=source.folder)


def _left_behind(generated: GeneratedTests, archive: bytes, folder: str) -> str:
    """Return the first file of the tests that is not in an archive; "" if all are."""
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        names = {name.removeprefix("./") for name in packed.getnames()}
    relative = generated.folder.resolve().relative_to(Path.cwd())
    for file in generated.files:
        if (Path(folder) / relative / file).as_posix() not in names:
            return (relative / file).as_posix()
    return ""
