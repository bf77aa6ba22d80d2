"""The layers that the perception models share."""

from itertools import permutations

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn

from jettison.core.errors import UsageError
from jettison.domains.perception.layers.backbone import build_backbone
from jettison.domains.perception.layers.decoder import DecoderLayer
from jettison.domains.perception.layers.encodings import rotary_encoding, sine_encoding
from jettison.domains.perception.layers.losses import (
    corners,
    focal_cost,
    focal_loss,
    generalized_iou,
    line_iou,
    masked_l1,
)
from jettison.domains.perception.layers.matching import match
from jettison.domains.perception.layers.pyramid import Pyramid
from jettison.domains.perception.layers.sampling import deformable_sampling, sample_map
from jettison.domains.perception.layers.steps import Attention, DeformableAttention
from jettison.formats.onnx_file import check_onnx, write_onnx
from jettison.graph.families import families
from jettison.graph.own_models import Outputs
from jettison.graph.skeleton import read_anatomy

TINY = {"resnet": [8, 8, 16, 16], "bottleneck": [16, 16, 32, 32], "swin": [8, 16, 32, 64]}
ONES = [1, 1, 1, 1]


class Alone(nn.Module):
    """A model that is a backbone alone. It returns the last map."""

    main_input_name, config = "packed", None

    def __init__(self, kind):
        super().__init__()
        self.backbone = build_backbone(kind, TINY[kind], ONES)
        self.head = nn.Linear(self.backbone.channels[-1], 2)

    def forward(self, packed):
        return Outputs(self.head(self.backbone(packed)[-1].mean((-2, -1))))


@pytest.mark.parametrize("kind", TINY)
class TestBackbones:
    def test_maps_have_the_stated_channels_and_strides(self, kind):
        torch.manual_seed(0)
        backbone = build_backbone(kind, TINY[kind], ONES).eval()
        for height, width in ((64, 96), (40, 100)):
            maps = backbone(torch.rand(2, 3, height, width))
            for stride, channels, features in zip((4, 8, 16, 32), backbone.channels, maps, strict=True):
                assert features.shape == (2, channels, -(-height // stride), -(-width // stride))

    def test_the_image_is_normalized_inside(self, kind):
        backbone, seen = build_backbone(kind, TINY[kind], ONES).eval(), []
        backbone.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        backbone(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
        assert seen[0].abs().max() < 1e-6

    def test_without_weights_it_has_blocks_and_roles(self, kind):
        with init_empty_weights():
            model = Alone(kind)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert not model.backbone.mean.is_meta
        anatomy = read_anatomy(model, families()["jettison_dense_anchors"])  # its blocks are those of its backbone
        assert anatomy.blocks == 4
        expected = {"q", "k", "v", "o", "up", "down"} if kind == "swin" else {"conv"}
        assert {linear.role for linear in anatomy if linear.block is not None} == expected
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(anatomy.linears) == len(matrices), "each matrix has a role"

    def test_onnx_computes_the_same(self, kind, tmp_path):
        pytest.importorskip("onnxruntime")
        torch.manual_seed(0)
        model, image = Alone(kind).eval(), torch.rand(1, 3, 40, 72)
        write_onnx(model, image, tmp_path / "m.onnx")
        assert check_onnx(tmp_path / "m.onnx", model, torch.rand(1, 3, 40, 72)) < 1e-4


def test_resnet_18_has_its_parameters():
    """ResNet-18 has 11,689,512 parameters, of which its classifier has 513,000 (arXiv:1512.03385)."""
    with init_empty_weights():
        backbone = build_backbone("resnet", [64, 128, 256, 512], [2, 2, 2, 2])
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 11_689_512 - 513_000


@pytest.mark.parametrize(
    ("kind", "widths", "depths", "words"),
    [
        ("resnot", [8] * 4, ONES, "did you mean 'resnet'"),
        ("resnet", [8] * 3, ONES, r"widths of a backbone are \[8, 8, 8\]: four"),
        ("resnet", [8] * 4, [1, 0, 1, 1], r"depths of a backbone are \[1, 0, 1, 1\]"),
        ("bottleneck", [8, 8, 10, 8], ONES, "multiples of 4"),
        ("swin", [8, 16, 24, 48], ONES, "twice the one before"),
    ],
)
def test_backbones_that_cannot_be_are_refused(kind, widths, depths, words):
    with pytest.raises(UsageError, match=words):
        build_backbone(kind, widths, depths)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sine_encodings_of_places_tell_them_apart():
    places = torch.rand(50, 2, generator=rng())
    codes = sine_encoding(places, 32)
    assert codes.shape == (50, 32) and codes.abs().max() <= 1
    near = (codes[:, None] - codes[None]).norm(dim=-1) + 9 * torch.eye(50)
    assert near.min() > 1e-2
    assert torch.equal(sine_encoding(places[:, :1], 16), codes[:, :16]), "each number has its own part"
    with pytest.raises(ValueError, match="a multiple of 4"):
        sine_encoding(places, 30)


def test_the_shortest_wave_of_a_sine_encoding_is_the_side_of_the_image():
    quarter = sine_encoding(torch.tensor([[0.25]]), 4)[0]  # of periods 1 and 100
    slow = 2 * torch.pi * 0.25 / 100
    assert torch.allclose(quarter, torch.tensor([1.0, slow, 0.0, 1.0]), atol=2e-4)


def test_products_of_rotary_encodings_depend_on_the_distance():
    query, key = torch.randn(2, 1, 16, generator=rng(), dtype=torch.float64)
    product = lambda a, b: float((rotary_encoding(query, at(a)) * rotary_encoding(key, at(b))).sum())
    at = lambda place: torch.tensor([place], dtype=torch.float64)
    assert product(3.0, 7.5) == pytest.approx(product(10.0, 14.5))
    assert product(3.0, 7.5) != pytest.approx(product(3.0, 9.5))
    turn = 2 * torch.pi  # on a circle, a full turn changes nothing
    assert torch.allclose(rotary_encoding(query, at(1.0), base=1), rotary_encoding(query, at(1.0 + turn), base=1))


def test_a_map_is_sampled_where_its_cells_lie():
    features = torch.arange(12.0).view(1, 1, 3, 4)
    middles = torch.tensor([[[[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)]]])
    assert torch.allclose(sample_map(features, middles).flatten(), torch.arange(12.0), atol=1e-5)
    between = sample_map(features, torch.tensor([[[[0.25, 0.5]]]]))
    assert between.item() == pytest.approx((features[0, 0, 1, 0] + features[0, 0, 1, 1]).item() / 2)
    assert sample_map(features, torch.tensor([[[[5.0, 5.0]]]])).item() == 0


def test_deformable_sampling_equals_its_sum_written_out():
    maps = [torch.randn(2, 6, *sides, generator=rng()) for sides in ((4, 5), (2, 3))]
    places = torch.rand(2, 7, 3, 2, 4, 2, generator=rng(1))
    weights = torch.rand(2, 7, 3, 2, 4, generator=rng(2))
    made = deformable_sampling(maps, places, weights)
    for b, q, head in ((0, 0, 0), (1, 6, 2), (1, 3, 1)):
        total = torch.zeros(2)
        for level in range(2):
            own = maps[level][b : b + 1, 2 * head : 2 * head + 2]
            for point in range(4):
                where = places[b, q, head, level, point].view(1, 1, 1, 2)
                total += weights[b, q, head, level, point] * sample_map(own, where).flatten()
        assert torch.allclose(made[b, q, 2 * head : 2 * head + 2], total, atol=1e-5)


def test_attention_equals_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
    x, memory, mask = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.rand(5, 9) < 0.6
    mask[:, 0] = True
    expected = ours.norm(x + theirs(x, memory, memory, attn_mask=~mask)[0])
    assert torch.allclose(ours(x, memory, mask=mask), expected, atol=1e-5)
    before = Attention(16, 4, before=True)
    before.load_state_dict(ours.state_dict())
    assert torch.allclose(before(x), x + theirs(*[before.norm(x)] * 3)[0], atol=1e-5)
    with pytest.raises(UsageError, match="3 heads for the width 16"):
        Attention(16, 3)


def test_deformable_attention_begins_beside_its_place_and_boxes_scale_it():
    step = DeformableAttention(8, 4, 1, 2)
    offsets = step.offsets.bias.view(4, 2, 2)
    assert torch.allclose(offsets[0], torch.tensor([[1.0, 0], [2, 0]]))
    assert torch.allclose(offsets[1], torch.tensor([[0.0, 1], [0, 2]]), atol=1e-6)
    with torch.no_grad():
        step.v_proj.weight.copy_(torch.eye(8))
        step.o_proj.weight.copy_(torch.eye(8))
    x, features = torch.zeros(1, 1, 8), torch.zeros(1, 8, 8, 8)
    features[0, 0, 4, 5] = features[0, 0, 4, 6] = 1  # one and two cells on the right of cell 4: the first head's
    at = torch.tensor([[[4.5 / 8, 4.5 / 8]]])
    for references in (at, torch.cat([at, torch.ones(1, 1, 2)], -1)):  # an eighth of the box is a cell
        step.norm = nn.Identity()
        assert torch.allclose(step(x, [features], references)[0, 0], torch.eye(8)[0], atol=1e-5)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("before", [False, True])
def test_a_decoder_layer_learns_and_is_written_as_onnx(levels, before, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.queries = (
                DecoderLayer(8, 2, 16, levels=levels, before=before),
                nn.Parameter(torch.randn(3, 8)),
            )
            self.pyramid = Pyramid([8, 8], 8)

        def forward(self, packed):
            maps = self.pyramid([packed, packed[..., ::2, ::2]])
            x = self.queries.expand(packed.shape[0], -1, -1)
            memory = maps if levels else maps[0].flatten(2).transpose(1, 2)
            return Outputs(self.layer(x, memory, references=x[..., :2].sigmoid()))

    model, image = Alone(), torch.randn(2, 8, 4, 6)
    with torch.no_grad():
        for parameter in model.parameters():  # some begin as zeros, behind which nothing learns
            parameter += 0.1 * torch.randn(parameter.shape)
    made = model(image).logits
    (made * torch.randn(made.shape)).sum().backward()
    silent = {"k_proj.bias"}  # the same for all keys, so that the softmax does not see it
    for name, parameter in model.layer.named_parameters():
        assert parameter.grad.abs().max() > 1e-7 or any(name.endswith(end) for end in silent), name
    write_onnx(model, image[:1], tmp_path / "m.onnx")
    assert check_onnx(tmp_path / "m.onnx", model, torch.randn(3, 8, 4, 6)) < 1e-4


def test_the_pyramid_carries_what_is_coarse_to_what_is_fine():
    pyramid = Pyramid([3, 5], 8, smooth=False)
    fine, coarse = torch.zeros(1, 3, 5, 7), torch.randn(1, 5, 3, 4)
    made = pyramid([fine, coarse])
    assert [tuple(part.shape) for part in made] == [(1, 8, 5, 7), (1, 8, 3, 4)]
    other = pyramid([fine, coarse + 1])
    assert not torch.allclose(made[0], other[0])


def test_matching_is_that_of_brute_force():
    for seed, (predictions, targets) in enumerate([(4, 3), (3, 4), (4, 4), (5, 1)]):
        costs = torch.randn(1, predictions, targets, generator=rng(seed))
        matched = match(costs, torch.ones(1, targets, dtype=torch.bool))[0]
        used = [int(index) for index in matched if index >= 0]
        assert len(used) == len(set(used)) == min(predictions, targets)
        total = sum(float(costs[0, row, column]) for column, row in enumerate(matched.tolist()) if row >= 0)
        small, large = sorted((predictions, targets))
        table = costs[0] if predictions >= targets else costs[0].T  # (large, small)
        best = min(
            sum(float(table[row, i]) for i, row in enumerate(rows)) for rows in permutations(range(large), small)
        )
        assert total == pytest.approx(best)


def test_padding_is_not_matched_and_costs_that_are_no_numbers_are_expensive():
    costs = torch.tensor([[[0.0, -9, 3], [1, -9, 2]], [[float("nan"), 0, 0], [5, 0, 0]]])
    valid = torch.tensor([[True, False, True], [True, False, False]])
    assert match(costs, valid).tolist() == [[0, -1, 1], [1, -1, -1]]
    assert match(costs, torch.zeros_like(valid)).tolist() == [[-1] * 3] * 2


def test_focal_loss_is_entropy_for_gamma_0_and_forgives_what_is_easy():
    logits, truth = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    assert torch.allclose(focal_loss(logits, truth, alpha=0.5, gamma=0), entropy / 2)
    likely = torch.where(truth > 0, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.where(truth > 0, 0.25, 0.75)
    assert torch.allclose(focal_loss(logits, truth), weight * (1 - likely) ** 2 * entropy)
    assert (focal_cost(logits).argsort() == (-logits).argsort()).all(), "the likelier, the cheaper"


def test_generalized_iou_of_boxes():
    a = corners(torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert a.tolist() == [0, 0, 1, 1]
    others = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [2.0, 0, 3, 1], [0.25, 0.25, 0.75, 0.75]])
    assert torch.allclose(generalized_iou(a, others), torch.tensor([1, 1 / 3, -1 / 3, 0.25]), atol=1e-6)
    assert generalized_iou(a[None], others[:, None]).shape == (4, 1)


def test_line_iou_of_a_lane_with_itself_is_1():
    lane = torch.linspace(0.2, 0.6, 9)
    others = torch.stack([lane, lane + 0.02, lane + 0.5])
    values = line_iou(lane[None], others, 1.0, 0.02)
    assert values[0] == pytest.approx(1) and values[1] == pytest.approx(1 / 3, abs=1e-4) and values[2] < -0.5
    outside = torch.full((1, 9), -1.0)
    assert line_iou(lane[None, None], torch.cat([others, outside])[None], 1.0, 0.02).shape == (1, 4)
    assert line_iou(lane, outside[0], 1.0, 0.02) == 0


def test_masked_l1_counts_what_is_valid():
    guess, truth = torch.tensor([[1.0, 5.0], [1.0, 5.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    valid = torch.tensor([[True, False], [False, False]])
    assert masked_l1(guess, truth, valid).tolist() == [1, 0]
