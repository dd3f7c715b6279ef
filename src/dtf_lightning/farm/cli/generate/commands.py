"""The command that writes tests, and the list of its templates."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table

if TYPE_CHECKING:
    from dtf_lightning.farm.generate.generate import GeneratedTests


def add_generate(actions: Commands) -> None:
    """Add the command to those of `dtf farm`."""
    generate = add_farm_command(
        actions, "generate", _generate, "write tests and benchmarks of a model, with a plan that runs them"
    )
    generate.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="package.module:Class or file.py:Class (or a function without arguments that makes one), config.json of "
        "transformers, file.onnx, or the name of a type or a model",
    )
    for name, metavar, default, text in (
        ("devices", "DEVICE", ["cpu"], "cpu, cuda, rocm, xpu, mps (default: cpu)"),
        ("checks", "CHECK", [], "only these (default: all that can be made for the model)"),
        ("precisions", "DTYPE", ["float32", "bfloat16"], "float32, bfloat16, float16 (default: the first two)"),
    ):
        generate.add_argument(f"--{name}", nargs="+", default=default, metavar=metavar, help=text)
    generate.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 4], metavar="N", help="in samples (default: 1 4)"
    )
    generate.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=DTYPE[SIZES]",
        help="what forward is given, without the batch, such as 'x=float32[3,224,224]' or 'ids=int64[128]<30522'; "
        "several times (default: found out)",
    )
    generate.add_argument("--family", default="", help="of the model, where the rules err")
    generate.add_argument("--name", dest="named", metavar="NAME", default="", help="of the folder and the files")
    generate.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("generated"), help="(default: %(default)s)"
    )
    generate.add_argument(
        "--templates", type=Path, metavar="DIR", help="whose files take the place of the package's, or add checks"
    )
    generate.add_argument("--list-templates", action="store_true", help="print what there is, and write no tests")
    generate.add_argument("--force", action="store_true", help="write over files that were changed, too")
    generate.add_argument("--python", default="python", metavar="WORDS", help="that start Python on workers")
    generate.add_argument("--submit", action="store_true", help="submit the plan to a farm, and print its id")
    generate.add_argument("--project", default="default", help="whose share it counts against (default: %(default)s)")
    add_json(generate)
    add_farm(generate)


def _generate(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.generate.generate import generate_tests

    if arguments.list_templates:
        return _list_templates(arguments)
    if arguments.model is None:
        raise SettingsError("which model? As in: dtf farm generate package.module:Class")
    generated = generate_tests(
        arguments.model,
        arguments.devices,
        arguments.batch_sizes,
        checks=arguments.checks,
        precisions=arguments.precisions,
        output=arguments.output,
        templates=arguments.templates,
        inputs=arguments.input,
        family=arguments.family,
        name=arguments.named,
        python=arguments.python,
        force=arguments.force,
    )
    plan_id = _submit(arguments, generated) if arguments.submit else None
    if arguments.json:
        print(json.dumps({**generated.to_json(), "plan_id": plan_id}))
        return DONE
    _tell(generated)
    if plan_id is not None:
        print(plan_id)
    else:
        print(f"run them here: pytest {generated.folder}; on a farm: dtf farm run {generated.plan}")
    return DONE


def _submit(arguments: argparse.Namespace, generated: GeneratedTests) -> str:
    from dtf_lightning.farm.generate.submitting import submit_tests

    with connect(arguments) as farm:
        return submit_tests(farm, generated, project=arguments.project)


def _tell(generated: GeneratedTests) -> None:
    model, family = generated.model, generated.model.family
    print(f"{model.given}: {family.family.value} ({family.confidence:.0%} sure), because {family.rule}")
    print(f"{model.cost.parameters:,} parameters; {model.cost.how}")
    for note in model.notes:
        print(note)
    rows = [
        (
            task.name,
            f"{task.request.memory} MiB",
            f"{task.request.device_memory} MiB" if task.request.device_memory else "",
            f"{task.request.seconds:.0f}",
            str(task.priority),
            " ".join(task.after),
        )
        for task in generated.tasks
    ]
    print_table(("TASK", "MEMORY", "OF DEVICE", "SECONDS", "PRIORITY", "AFTER"), rows)
    for check, why in generated.left_out.items():
        print(f"no {check}: {why}")
    for name in generated.kept:
        print(f"{generated.folder / name} was changed, and is left as it is (--force writes over it)", file=sys.stderr)
    print(f"{len(generated.files)} files in {generated.folder}")


def _list_templates(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.generate.index import TemplateIndex
    from dtf_lightning.farm.generate.templates import TemplateLibrary

    library = TemplateLibrary(arguments.templates)
    with TemplateIndex.of_this_machine() as index:
        index.update(library.templates.values())
        rows = index.rows()
    if arguments.json:
        print(json.dumps(rows))
        return DONE
    print_table(
        ("TEMPLATE", "VERSION", "DIGEST", "TAKES", "FILE"),
        [(row["id"], str(row["version"]), row["digest"][:12], " ".join(row["inputs"]), row["file"]) for row in rows],
    )
    return DONE
