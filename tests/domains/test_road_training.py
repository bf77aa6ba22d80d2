"""Separated RoadTopoFormer trained: losses, the schedule, evaluation, compression and export."""

import json
import re

import pytest
import torch
from roads import KIND, NAME, batch_of, changes, junctions, tiny

from jettison.core.errors import UsageError
from jettison.domains.domain import Sources
from jettison.domains.perception import learning
from jettison.domains.perception.learning import train
from jettison.domains.perception.modelling import stages_of
from jettison.graph.own_models import build_skeleton, make_config, make_model
from jettison.graph.skeleton import read_anatomy
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.exporting import export
from jettison.pipeline.perceiving import evaluate_perception, show_perception
from jettison.pipeline.showing import show
from jettison.recipe.recipe import load_recipe
from jettison.xr.variants import Variant, open_variant


@pytest.fixture(scope="module")
def world(made_once):
    return made_once("junctions", junctions)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("road") / "model"
    train(NAME, world, folder, batch=2, changes=changes(schedule="finetuned", finetune=0.5))
    return folder


def learned(model, network, batch, stage, steps, rate=3e-3):
    """Train a stage on one batch. Returns the losses before and after."""
    inputs, targets = batch
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    losses = []
    for _ in range(steps):
        loss = model.loss(network, inputs, targets, stage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize(("stage", "steps"), [("lanes", 40), ("elements", 30), ("joint", 25)])
def test_a_few_frames_are_overfitted(stage, steps, world):
    model, config = tiny(dimension=32)
    torch.manual_seed(0)
    network = make_model(config).train()
    before, after = learned(model, network, batch_of(model, config, world), stage, steps)
    assert after < 0.6 * before


def test_relations_are_learned_on_condensed_instances_and_leave_the_detectors_alone(world):
    model, config = tiny()
    torch.manual_seed(0)
    network = make_model(config).eval()
    inputs, targets = batch_of(model, config, world)
    with torch.no_grad():
        condensed = model.condense(network, inputs, "relations")
    assert model.condense(network, inputs, "lanes") is None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, last = learned(model, network, (condensed, targets), "relations", 40)
    assert last < 0.6 * first
    for name, parameter in network.named_parameters():
        if name.startswith("relations."):
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None or not parameter.grad.any(), name
            assert torch.equal(parameter, before[name]), name
    made = network.relations(condensed)
    whole = network.compute(**inputs)
    assert torch.allclose(made[0], whole["lane_lane"], atol=1e-4), "the cache holds what the heads read"
    joint = make_model(config).train()
    model.loss(joint, inputs, targets, "joint").backward()
    assert joint.lanes.queries.grad.any() and joint.elements.queries.grad.any()


@pytest.mark.parametrize("schedule", ["joint", "separated", "finetuned"])
def test_every_part_is_trained_equally_long_in_all_schedules(schedule):
    model, config = tiny(schedule=schedule, steps=100, finetune=0.2)
    stages = stages_of(model, config)
    for part in ("lanes.", "elements.", "relations."):
        assert sum(stage.steps for stage in stages if part.startswith(stage.trains)) == 100
    assert [stage.name for stage in stages] == {
        "joint": ["joint"],
        "separated": ["lanes", "elements", "relations"],
        "finetuned": ["lanes", "elements", "relations", "finetune"],
    }[schedule]


def test_a_stage_changes_its_own_part_only_and_a_killed_one_gives_the_same_bytes(world, tmp_path, monkeypatch):
    loop, states = learning.run_loop, []

    def watched(lesson, groups, fetch, plan, state, **options):
        states.append({name: value.clone() for name, value in lesson.network.state_dict().items()})
        return loop(lesson, groups, fetch, plan, state, **options)

    options = {"batch": 2, "changes": changes(schedule="separated")}
    monkeypatch.setattr(learning, "run_loop", watched)
    train(NAME, world, tmp_path / "whole", **options)
    for before, after, part in zip(states, states[1:], ("lanes.", "elements."), strict=False):
        different = {name for name in before if not torch.equal(before[name], after[name])}
        assert different and all(name.startswith(part) for name in different), "also the statistics of normalizations"

    def dies(lesson, groups, fetch, plan, state, **options):
        def stop(step, loss):
            options["record"](step, loss)
            if options["name"] == "relations" and step == 1:
                raise KeyboardInterrupt

        return loop(lesson, groups, fetch, plan, state, **options | {"record": stop, "save_every": 0})

    monkeypatch.setattr(learning, "run_loop", dies)
    with pytest.raises(KeyboardInterrupt):
        train(NAME, world, tmp_path / "killed", **options)
    monkeypatch.setattr(learning, "run_loop", loop)
    train(NAME, world, tmp_path / "killed", **options)
    whole, killed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


@pytest.mark.parametrize(
    "fields",
    [
        {"shared": True, "schedule": "joint", "proposals": False, "geometry": False, "element_encoder": 1},
        {"backbone": "swin", "widths": [8, 16, 32, 64], "smooth": True, "controls": 3, "lane_levels": 3},
    ],
)
def test_other_configs_learn(fields, world):
    model, config = tiny(**fields)
    network = make_model(config).train()
    inputs, targets = batch_of(model, config, world, (0, 1))
    loss = model.loss(network, inputs, targets, "joint")
    loss.backward()
    missing = [name for name, parameter in network.named_parameters()
               if parameter.grad is None and ".swin." not in name and "states_norms" not in name]  # fmt: skip
    assert loss.isfinite() and not missing


def test_evaluation_by_all_rules(world, trained):
    scores = {rule: evaluate_perception(trained, world, rule=rule) for rule in ("v1.0", "v1.1", "v2.1")}
    assert all(score.columns == ("OLS", "DET_l", "DET_t", "TOP_ll", "TOP_lt") for score in scores.values())
    with pytest.raises(UsageError, match="rule"):
        evaluate_perception(trained, world, rule="v3")
    summary = json.loads((trained / learning.RESULT).read_text())["stages"]
    assert [stage["stage"] for stage in summary] == ["lanes", "elements", "relations", "finetune"]


def test_compress_evaluate_show_export_and_xr(world, trained, tmp_path):
    compress(trained, "w8", tmp_path / "w8")
    result = evaluate(tmp_path / "w8", images=world)
    assert result["outputs"]["from the original"]["relative_error"] < 1e-2
    assert "OLS" in result["road"]["all"]
    sources = Sources(images=str(world))
    (exhibit,) = show(tmp_path / "w8", original=trained, sources=sources)["exhibits"]
    assert any("from above" in picture["caption"] for picture in exhibit["pictures"])
    show_perception([trained, tmp_path / "w8"], tmp_path / "page.html", data=world, frames=1)
    assert "true and predicted road, from above" in (tmp_path / "page.html").read_text()
    run = open_variant(Variant("road", tmp_path / "w8"))
    assert run().isfinite().all()


def test_presets_leave_pyramids_and_heads_as_they_are():
    """The share and the list that docs/how-to/perception.md states."""
    network, family = build_skeleton(make_config(KIND, {}, "test"))
    linears = read_anatomy(network, family).linears
    (where,) = [step.where.role for step in load_recipe("w4").steps]
    kept = {one.name: one.rows * one.columns for one in linears if not set(one.roles) & set(where)}
    assert 0.15 < sum(kept.values()) / sum(parameter.numel() for parameter in network.parameters()) < 0.155
    assert {re.sub(r"\.\d+", "", name) for name in kept} == {
        "lanes.backbone.model.embedder.embedder.convolution", "lanes.pyramid.narrow", "lanes.place", "lanes.curves",
        "lanes.scores", "elements.backbone.model.embedder.embedder.convolution", "elements.pyramid.narrow",
        "elements.place", "elements.propose", "elements.proposed", "elements.boxes", "elements.scores",
        "relations.lane_lane.from_side", "relations.lane_lane.to_side", "relations.lane_lane.classify",
        "relations.lane_element.from_side", "relations.lane_element.to_side", "relations.lane_element.classify",
        "relations.ends", "relations.boxes",
    }  # fmt: skip


def test_onnx_computes_the_same(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    made = export(trained, tmp_path / "road.onnx")
    assert made["difference"] <= 1e-3 * made["largest"]
