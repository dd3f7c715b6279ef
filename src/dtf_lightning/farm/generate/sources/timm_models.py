"""A model that timm has, with random weights."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.generate.description import Input, ModelDescription, Source
from dtf_lightning.farm.generate.families import family_of_timm
from dtf_lightning.farm.generate.sources.torch_modules import measure_first_that_fits


def has_timm(name: str) -> bool:
    """Say whether timm, which is installed, has a model of this name."""
    import timm

    return bool(timm.is_model(name))


def describe_timm(name: str, python_name: str, inputs: tuple[Input, ...] = ()) -> ModelDescription:
    """Return the description of a model of timm's. Raises `SettingsError` if it does not take what was tried."""
    import timm

    def build() -> Any:
        return timm.create_model(name, pretrained=False)

    config = timm.get_pretrained_cfg(name)
    size = tuple(config.input_size) if config is not None else (3, 224, 224)
    given = inputs or (Input(name="x", dtype="float32", shape=size),)
    chosen, measured = measure_first_that_fits(build, [given], name)
    return ModelDescription(
        name=python_name,
        given=name,
        source=Source.TIMM,
        family=family_of_timm(name),
        inputs=chosen,
        outputs=measured.outputs,
        cost=measured.cost,
        build={"timm": name},
        notes=() if inputs else ("Its inputs are those of its pretrained configuration.",),
    )
