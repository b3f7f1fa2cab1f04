"""Where studies come from: the built-in ones, and files of users; an unknown key is refused with a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stratoscope.study.config import Profile, Study
from stratoscope.study.parts import StudyError
from stratoscope.study.texts import AtDistance

BUILTIN = "builtin"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader takes the last of two equal keys without a word; this one refuses."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise StudyError(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def builtin_studies() -> tuple[str, ...]:
    """Return the names of the studies that come with the package."""
    folder = files("stratoscope.study").joinpath(BUILTIN)
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def read_study(word: str | Path, *, profile: str | None = None) -> tuple[Study, Path | None]:
    """Read a study by the name of a built-in one, or from a ``.yaml`` file.

    Parameters
    ----------
    word
        Name, or path of a file.
    profile
        Name of one of the study's profiles, which is then applied.

    Returns
    -------
    study, folder
        `folder` is that of the file, against which it names its tables; ``None`` for a built-in study.

    Raises
    ------
    StudyError
        If there is no such study, or it cannot be used; every fault is told with its place.
    """
    if str(word) in builtin_studies():
        with as_file(files("stratoscope.study").joinpath(BUILTIN, f"{word}.yaml")) as path:
            return parse_study(path.read_text("utf-8"), str(word), profile=profile), None
    path = Path(word)
    if path.suffix not in (".yaml", ".yml"):
        raise StudyError(f"there is no built-in study {str(word)!r}; there are {', '.join(builtin_studies())}. "
                         "A study of your own is a .yaml file")  # fmt: skip
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None
    return parse_study(text, str(path), profile=profile), path.parent


def parse_study(text: str, source: str, *, profile: str | None = None) -> Study:
    """Parse a study.

    Parameters
    ----------
    text
        YAML.
    source
        Its name, for messages.
    profile
        As in `read_study`.

    Raises
    ------
    StudyError
        If it cannot be used.
    """
    try:
        content = yaml.load(text, _StrictLoader)  # noqa: S506 - derived from the safe loader
    except yaml.YAMLError as error:
        raise StudyError(f"{source} is not YAML: {error}") from None
    except StudyError as error:
        raise StudyError(f"{source}, {error}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{source} holds no study: it must be a mapping with the keys study, version, title ...")
    try:
        return with_profile(Study.model_validate(content), profile)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise StudyError("\n".join(_explain(fault, source) for fault in faults)) from None


def with_profile(study: Study, name: str | None) -> Study:
    """Apply a profile to a study; what is asked about experiments that it leaves out is not asked.

    Raises
    ------
    StudyError
        If there is no such profile.
    """
    if name is None:
        return study
    if name not in study.profiles:
        there = ", ".join(study.profiles) or "none"
        raise StudyError(f"study {study.study} has no profile {name!r}; there are: {there}")
    profile = study.profiles[name]
    content = study.model_dump(exclude={"profiles"}, exclude_unset=True)
    kept = profile.experiments or tuple(e.name for e in study.experiments)
    content["experiments"] = [_reduced(study, name, profile) for name in kept]
    content["reading"] = content.get("reading", {}) | _given(layers=profile.layers)
    content["statistics"] = content.get("statistics", {}) | _given(
        permutations=profile.permutations, splits=profile.splits, folds=profile.folds, shuffles=profile.shuffles,
        resamples=profile.resamples,
    )  # fmt: skip
    known = {word for e in content["experiments"] for word in _words(e)}
    for question in ("rise_fall_rise", "coordination", "transfer", "heads"):
        if question in content:
            content[question]["of"] = [word for word in content[question]["of"] if word in known]
            if not content[question]["of"]:
                del content[question]
    content["claims"] = [claim for claim in content.get("claims", ()) if known.issuperset(claim["experiments"])]
    return Study.model_validate({**content, "profile": name, **_given(n_groups=profile.n_groups)})


def _reduced(study: Study, name: str, profile: Profile) -> dict[str, Any]:
    experiment = study.experiment(name)
    content = experiment.model_dump(exclude_unset=True)
    if isinstance(experiment.texts, AtDistance) and profile.distances is not None:
        content["texts"]["distances"] = profile.distances
    titles = profile.targets.get(name)
    if titles is not None:
        for title in titles:
            study.expand(f"{name}/{title}")
        content["targets"] = [t.model_dump(exclude_unset=True) for t in experiment.targets if t.title in titles]
    return content


def _words(experiment: Mapping[str, Any]) -> list[str]:
    name = experiment["name"]
    return [name, *(f"{name}/{target.get('name', target['label'])}" for target in experiment["targets"])]


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _explain(fault: Mapping[str, Any], source: str) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][-1])
        close = difflib.get_close_matches(key, _keys(Study), n=1)
        message = f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    return f"{source}: {place}: {message}" if place else f"{source}: {message}"


def _keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model and of the models in it."""
    found = list(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            found += _keys(inner)
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
