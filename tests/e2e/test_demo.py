"""The demo's own data, held against Hugging Face and against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from transformers import AutoModelForCausalLM, AutoTokenizer

from stratoscope import Run
from stratoscope.experiments import EXPERIMENTS, load_experiment
from stratoscope.probes import SweepResult, load

LAYERS = range(30)
SITES = ("resid_post", "attn_out", "mlp_out")


class FinishedDemo:
    """Stands for the fixture's type, which lives in conftest."""

    folder: Path
    stdout: str


@pytest.fixture(scope="module")
def runs(demo: FinishedDemo) -> dict[str, Run]:
    return {experiment.name: Run.open(demo.folder / experiment.name) for experiment in EXPERIMENTS}


def test_the_demo_holds_every_stimulus_at_every_layer_and_site(runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        assert run.missing == {}
        assert tuple(run.stimuli()["id"]) == load_experiment(name).ids
        assert [(column.site, column.layer) for column in run.columns] == [
            (s, layer) for s in SITES for layer in LAYERS
        ]
        assert run.activations()["resid_post", 29].shape == (len(load_experiment(name)), 576)


def test_the_demo_prints_a_peak_per_target_and_the_path_of_a_report_that_needs_no_other_file(
    demo: FinishedDemo,
) -> None:
    for experiment in EXPERIMENTS:
        for target in experiment.targets:
            assert demo.stdout.count(f"\n{experiment.name} {target.label} ") == len(SITES), demo.stdout
    report = Path(demo.stdout.rpartition("report: ")[2].strip())
    page = report.read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "<link" not in page
    assert len(list((demo.folder / "figures").glob("*.png"))) == sum(len(e.targets) for e in EXPERIMENTS)


def test_the_stored_activations_are_hugging_faces_own(runs: dict[str, Run]) -> None:
    from stratoscope_server.settings import Settings

    folder = next(Settings().cache_dir.glob("**/model.safetensors")).parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    added: dict[str, NDArray[np.float32]] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            added[name] = (output[0] if isinstance(output, tuple) else output)[0, -1].numpy().copy()

        return hook

    for layer, block in enumerate(model.model.layers):
        block.self_attn.register_forward_hook(keep(f"attn_out.{layer}"))
        block.mlp.register_forward_hook(keep(f"mlp_out.{layer}"))
        block.register_forward_hook(keep(f"resid_post.{layer}"))
    for run in runs.values():
        texts = run.stimuli()["text"].to_list()
        for index in (0, len(texts) // 2, len(texts) - 1):
            with torch.inference_mode():
                states = model(**tokenizer(texts[index], return_tensors="pt"), output_hidden_states=True).hidden_states
            for layer in range(29):
                assert (
                    relative_l2(run.activations()["resid_post", layer][index], states[layer + 1][0, -1].numpy()) <= 1e-5
                )
            for site in SITES:
                for layer in LAYERS:
                    ours = run.activations()[site, layer][index]
                    assert relative_l2(ours, added[f"{site}.{layer}"]) <= 1e-5, (texts[index], site, layer)


def relative_l2(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    difference = ours.astype(np.float64) - reference.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(reference.astype(np.float64)))


def column(result: SweepResult, site: str, layer: int) -> pl.DataFrame:
    chosen = (pl.col("site") == site) & (pl.col("layer") == layer) & (pl.col("control") == "none")
    return result.predictions.filter(chosen)


@pytest.mark.parametrize(("name", "label"), [("relation", "related"), ("item", "living"), ("analogy", "valid")])
def test_svm_labels_are_those_of_a_plain_scikit_learn_pipeline(name: str, label: str, runs: dict[str, Run]) -> None:
    run = runs[name]
    result = load(run.path)[label, "svm"]
    y = run.stimuli()[label].to_numpy()
    layers = range(0, 30, 3) if name == "relation" else (0, 14, 29)
    for site in SITES:
        for layer in layers:
            ours = column(result, site, layer)
            assert ours["stimulus_id"].to_list() == run.stimuli()["id"].to_list()
            X, fold_of = run.activations()[site, layer], ours["fold"].to_numpy()
            reference = np.empty(len(y))
            for fold in np.unique(fold_of):
                pipeline = make_pipeline(StandardScaler(), SVC(kernel="linear", C=1.0, tol=1e-6))
                pipeline.fit(X[fold_of != fold].astype(np.float64), y[fold_of != fold])
                reference[fold_of == fold] = pipeline.predict(X[fold_of == fold].astype(np.float64))
            assert (ours["prediction"].to_numpy() == reference).all(), (site, layer)


@pytest.mark.parametrize("layer", [0, 19])
def test_ridge_predictions_are_those_of_a_plain_scikit_learn_grid_search(layer: int, runs: dict[str, Run]) -> None:
    run = runs["item"]
    result = load(run.path)["log10_size_cm", "ridge"]
    y, groups = run.stimuli()["log10_size_cm"].to_numpy(), run.stimuli()["group"].to_numpy()
    alphas = result.provenance["settings"]["alpha"]
    for site in SITES:
        ours = column(result, site, layer)
        X, fold_of = run.activations()[site, layer].astype(np.float64), ours["fold"].to_numpy()
        reference = np.empty(len(y))
        for fold in np.unique(fold_of):
            train = fold_of != fold
            folds = GroupKFold(result.provenance["settings"]["inner_folds"])
            search = GridSearchCV(Ridge(), {"alpha": alphas}, scoring="neg_mean_squared_error", cv=folds)
            plain = make_pipeline(StandardScaler(), search)
            plain.fit(X[train], y[train], gridsearchcv__groups=groups[train])
            reference[~train] = plain.predict(X[~train])
        np.testing.assert_allclose(ours["prediction"].to_numpy(), reference, rtol=1e-6, atol=1e-6)


def test_items_are_at_chance_and_the_relation_is_read_above_its_shuffled_labels(runs: dict[str, Run]) -> None:
    scores = load(runs["relation"].path)["related", "svm"].scores.filter(
        (pl.col("metric") == "balanced_accuracy") & (pl.col("level") == "outer")
    )
    by_control = {key[0]: frame for key, frame in scores.group_by("control")}
    assert by_control["text"]["score"].to_list() == [0.5] * 5
    at_nine = (pl.col("site") == "resid_post") & (pl.col("layer") == 9)
    assert by_control["none"].filter(at_nine)["score"].mean() > 0.75  # type: ignore[operator]
    shuffled = by_control["shuffled"].filter(at_nine).group_by("repeat").agg(pl.col("score").mean())["score"]
    assert shuffled.is_between(0.38, 0.62).all()
