"""Separated RoadTopoFormer: inputs and targets, geometry, configs, bad frames, pictures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from roads import KIND, NAME, batch_of, changes, junctions, perfect, tiny

from jettison.core.errors import UsageError
from jettison.domains.perception.learning import train
from jettison.domains.perception.modelling import Sample
from jettison.domains.perception.models.road_topoformer import PAPER
from jettison.domains.perception.models.road_topoformer.bezier import (
    curve_points,
    fit_curve,
    to_metres,
    to_shares,
)
from jettison.domains.perception.models.road_topoformer.reading import SLOTS
from jettison.domains.perception.models.road_topoformer.surround import project
from jettison.domains.perception.picturing import likely_part, picture_prediction
from jettison.domains.perception.samples import Samples
from jettison.domains.perception.scenes import Camera, Road, Scene
from jettison.domains.perception.scoring import road_graph
from jettison.graph.own_models import build_skeleton, make_config, make_model, pack
from jettison.metrics.openlanev2 import openlanev2_score


@pytest.fixture(scope="module")
def world(made_once):
    return made_once("junctions", junctions)


@pytest.mark.parametrize("rule", ["v1.0", "v1.1", "v2.1"])
def test_the_targets_as_outputs_have_score_one_and_shuffled_edges_cost_topology_alone(rule, world):
    model, config = tiny(lanes=SLOTS["lanes"], elements=SLOTS["elements"])
    samples = Samples(model, config, world, "train")
    true, made, shuffled = [], [], []
    for number in range(len(samples)):
        sample = samples.sample(number)
        outputs = perfect(model.targets(config, sample))
        true.append(road_graph(sample.frame.road))
        made.append(road_graph(model.predict(config, outputs, sample).road))
        outputs |= {name: outputs[name].roll(1, 0) for name in ("lane_lane", "lane_element")}
        shuffled.append(road_graph(model.predict(config, outputs, sample).road))
    score, worse = openlanev2_score(true, made, rule), openlanev2_score(true, shuffled, rule)
    assert score.ols > 0.99
    assert (worse.det_l, worse.det_t) == (score.det_l, score.det_t)
    assert worse.top_ll < score.top_ll - 0.1 and worse.top_lt < score.top_lt - 0.1


def test_curves_are_fitted_exactly_and_shares_are_turned_back():
    controls = np.array([[0.0, 0, 0], [10, 0, 0], [20, 5, 1], [20, 20, 1]])
    line = curve_points(torch.from_numpy(controls), 400).numpy()
    fitted = curve_points(torch.from_numpy(fit_curve(line, 5)), 400).numpy()
    assert np.linalg.norm(fitted[[0, -1]] - line[[0, -1]], axis=1).max() < 1e-9
    assert np.linalg.norm(fitted[:, None] - line[None], axis=2).min(1).max() < 0.1, "metres"
    assert np.allclose(fit_curve(line, 2), line[[0, -1]])
    points = torch.tensor([[10.0, 5, 1], [-50, -25, 0]])
    assert torch.allclose(to_metres(to_shares(points)), points, atol=1e-4)
    assert to_shares(points)[0, 0] < 0.5 and to_shares(points)[0, 1] < 0.5, "ahead is up, left is left"


def test_projections_are_those_of_the_cameras(world):
    model, config = tiny()
    sample = Samples(model, config, world, "train").sample(0)
    points = np.random.default_rng(0).uniform((-40, -20, -1), (40, 20, 2), (50, 3))
    inputs = model.read(config, sample)
    made = project(torch.from_numpy(points).float(), inputs["projection"][None])[0]  # (cameras, points, 2)
    for place, view in enumerate(sample.frame.views.values()):
        pixels, depths = view.camera.project(points)
        near = depths > 0.1
        expected = (pixels[near] + 0.5) / (view.camera.width, view.camera.height)
        assert np.allclose(made[place][near], expected, rtol=1e-3, atol=1e-3)
        assert (made[place][~near] == -1).all(), "behind the camera"


def test_the_order_of_cameras_does_not_matter_and_a_missing_one_is_as_if_it_saw_nothing(world):
    model, config = tiny()
    network = make_model(config).eval()
    inputs, _ = batch_of(model, config, world, (0, 1))
    with torch.no_grad():
        made = network.compute(**inputs)
        turned = network.compute(**inputs | {name: inputs[name].flip(1) for name in ("images", "projection")})
        blind = inputs | {"projection": torch.zeros_like(inputs["projection"])}
        nothing = [network.compute(**blind | {"images": images})["lanes"]
                   for images in (inputs["images"], torch.zeros_like(inputs["images"]))]  # fmt: skip
    for name, value in made.items():
        assert torch.allclose(value, turned[name], atol=1e-4), name
    assert torch.equal(*nothing) and not torch.allclose(nothing[0], made["lanes"], atol=1e-4)


def test_a_batch_is_as_its_samples_alone(world):
    model, config = tiny()
    network = make_model(config).eval()
    inputs, _ = batch_of(model, config, world, (0, 1, 2))
    with torch.no_grad():
        together = network(pack(inputs, network.inputs)).logits
        alone = [network(pack({name: x[[i]] for name, x in inputs.items()}, network.inputs)).logits for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def sample_of(world, **parts):
    """Return a sample of the world with other parts of its frame."""
    model, config = tiny()
    frame = replace(Samples(model, config, world, "train").sample(0).frame, **parts)
    return Sample(Scene("s", [frame]), 0, frame)


@pytest.mark.parametrize("stage", ["joint", "relations"])
def test_frames_without_lanes_or_elements(stage, world):
    model, config = tiny()
    whole = sample_of(world).frame.road
    roads = [Road(), Road(lanes=whole.lanes, lane_lane=whole.lane_lane), Road(elements=whole.elements)]
    samples = [sample_of(world, road=road) for road in roads]
    stacked = lambda parts: {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    inputs = stacked([model.read(config, one) for one in samples])
    targets = stacked([model.targets(config, one) for one in samples])
    for chosen in ([0], [0, 1], [0, 1, 2]):
        network = make_model(config).train()
        part = lambda table, chosen=chosen: {name: value[chosen] for name, value in table.items()}
        with torch.no_grad():
            read = model.condense(network, part(inputs), stage) or part(inputs)
        loss = model.loss(network, read, part(targets), stage)
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert loss.isfinite() and gradients and all(gradient.isfinite().all() for gradient in gradients)
    outputs = {name: torch.full(shape, -9.0) for name, shape in make_model(config).outputs.items()}
    made = model.predict(config, outputs, samples[0]).road
    assert not made.lanes and not made.elements and made.lane_element.shape == (0, 0)
    with pytest.raises(UsageError, match="no labels of its road"):
        model.targets(config, sample_of(world, road=None))


def test_more_instances_than_queries_and_than_slots(world):
    model, config = tiny(lanes=2, elements=1)
    network = make_model(config).train()
    inputs, targets = batch_of(model, config, world)
    assert targets["lane_there"].sum(1).min() > 2
    loss = model.loss(network, inputs, targets, "joint")
    loss.backward()
    assert loss.isfinite() and network.lanes.queries.grad.isfinite().all()
    road = sample_of(world).frame.road
    times = -(-(SLOTS["lanes"] + 1) // len(road.lanes))
    many = Road(list(road.lanes) * times, lane_lane=np.kron(np.eye(times), road.lane_lane))
    table = model.targets(config, sample_of(world, road=many))
    assert table["lane_there"].all() and table["lane_lane"].sum() > road.lane_lane.sum()


def test_broken_calibrations_and_cameras_are_refused(world):
    model, config = tiny(cameras=2)
    with pytest.raises(UsageError, match="has 6 cameras: this model has cameras = 2"):
        model.read(config, sample_of(world))
    model, config = tiny()
    views = dict(sample_of(world).frame.views)
    name = next(name for name in views if name.endswith("BACK"))
    with pytest.raises(UsageError, match=f"no calibration of camera {name}"):
        model.read(config, sample_of(world, views=views | {name: replace(views[name], camera=None)}))
    with pytest.raises(UsageError, match=f"no image of camera {name}"):
        model.read(config, sample_of(world, views=views | {name: replace(views[name], image=None)}))
    with pytest.raises(UsageError, match="one front camera is needed"):
        model.read(config, sample_of(world, views={name: views[name]}))
    with pytest.raises(UsageError, match="focal lengths"):
        Camera("c", 10, 10, np.diag([0.0, 1, 1]), np.eye(4))
    fewer = model.read(config, sample_of(world, views={key: view for key, view in views.items() if key != name}))
    assert not fewer["projection"][-1].any() and not fewer["images"][-1].any()


def test_a_broken_calibration_on_disk_is_refused_by_training(world, tmp_path):
    copy = shutil.copytree(world, tmp_path / "copy")
    for path in copy.glob("train/*/info/*.json"):
        info = json.loads(path.read_text())
        for sensor in info["sensor"].values():
            sensor["extrinsic"]["rotation"][0][0] = 7.0
        path.write_text(json.dumps(info))
    with pytest.raises(UsageError, match=r"orthonormal|has no rotation"):
        train(NAME, copy, tmp_path / "m", changes=changes(), layout="openlanev2")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shared": True}, "valid: schedule=joint"),
        ({"schedule": "together"}, "joint, separated, finetuned is needed"),
        ({"lane_stride": 7}, "4, 8, 16 or 32"),
        ({"backbone": "vgg"}, "bottleneck, resnet, swin"),
        ({"heads": 3}, "3 heads for the width 16"),
    ],
)
def test_a_config_that_is_wrong_is_refused(fields, words):
    with pytest.raises(UsageError, match=words):
        make_model(tiny(**fields)[1])


def test_the_configuration_of_the_paper_can_be_built():
    network, _ = build_skeleton(make_config(KIND, PAPER, "test"))
    quarters = (np.arange(4) + 0.5) / 4
    assert np.allclose(PAPER["heights"], -2.3 + quarters * 4.0), "the pillars of the official baseline"
    assert network.outputs["lanes"] == (100, 16) and network.inputs["images"][0] == 7
    assert 50e6 < sum(parameter.numel() for parameter in network.parameters()) < 90e6


def test_pictures_show_what_is_likely(world):
    model, config = tiny(lanes=SLOTS["lanes"], elements=SLOTS["elements"])
    sample = Samples(model, config, world, "train").sample(0)
    outputs = perfect(model.targets(config, sample))
    whole = model.predict(config, outputs, sample)
    outputs["lanes"][0, 0] = -1.0  # less likely than not
    without = model.predict(config, outputs, sample)
    assert len(without.road.lanes) == len(whole.road.lanes)
    assert len(likely_part(without.road).lanes) == len(whole.road.lanes) - 1
    pictures, others = (picture_prediction("road", sample, one) for one in (whole, without))
    assert set(pictures) == {"true and predicted road, from above", "true lanes and traffic elements",
                             "predicted lanes and traffic elements"}  # fmt: skip
    for name, image in pictures.items():
        assert np.array_equal(image, others[name]) == name.startswith("true lanes"), name
    bare = Sample(Scene("s", [frame := replace(sample.frame, road=None)]), 0, frame)
    assert "predicted road, from above" in picture_prediction("road", bare, whole)
