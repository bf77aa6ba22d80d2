"""The OpenLane-V2 score: detection of lanes and traffic elements, and the topology between them.

- OLS = (DET_l + DET_t + √TOP_ll + √TOP_lt) / 4 (arXiv:2304.10440, section 4; docs/metrics.md of the official devkit).
- DET: average precision at 11 recalls. Lanes are matched by the Fréchet distance under 1, 2 and 3 m, which is averaged;
  traffic elements by an IoU above 0.25, averaged over 13 attributes.
- TOP: average precision of the edges at every vertex, in both directions, among matched vertices. Where a true vertex
  has no match, all of its wrong edges count as predicted with the lowest confidence.
- Rules v2.1 and v1.1 differ in curves that end where they begin (``distances.chamfer_distance``). Rule v1.0, that of
  the challenge of 2023, repeats TOP at ten recalls of each frame and lets missing vertices cost more: its scores cannot
  be compared with the others. They depended on the version of numpy, so ours are near them (0.01), not equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jettison.metrics.distances import box_distance, chamfer_distance, frechet_distance, relaxation

RULES = ("v1.0", "v1.1", "v2.1")
LANE_THRESHOLDS = (1.0, 2.0, 3.0)  # metres
BOX_THRESHOLD = 0.75  # of 1 − IoU
EDGE = 0.5  # an edge is predicted if its confidence is above
ATTRIBUTES = 13
FAR = 1024.0  # distance of pairs that are not measured
RECALLS = np.arange(0, 1.001, 0.1, dtype=np.float32)
PERCENTS = np.arange(10, 101, 10)  # of rule v1.0
EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class RoadGraph:
    """The lanes and traffic elements of one frame, true or predicted.

    lanes: arrays (points, 3), metres, the car at the origin.
    boxes: (elements, 2, 2), [[x1, y1], [x2, y2]] in pixels. attributes: (elements,), 0 to 12.
    lane_lane: (lanes, lanes). lane_element: (lanes, elements). True edges are 1, predicted ones confidences.
    lane_confidences: (lanes,), and element_confidences: (elements,), of predictions.
    """

    lanes: Sequence[np.ndarray]
    boxes: np.ndarray
    attributes: np.ndarray
    lane_lane: np.ndarray
    lane_element: np.ndarray
    lane_confidences: np.ndarray = field(default_factory=lambda: np.zeros(0))
    element_confidences: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self):
        lanes, elements = len(self.lanes), len(self.boxes)
        shapes = {
            "boxes": (elements, 2, 2), "attributes": (elements,), "lane_lane": (lanes, lanes),
            "lane_element": (lanes, elements),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}: {shape} is needed")


@dataclass(frozen=True)
class OpenLaneScore:
    """The scores of a set of frames, each from 0 to 1.

    lane_precisions: by threshold of 1, 2 and 3 m. element_precisions: by attribute; 1 for one that neither occurs nor
    is predicted. lane_matches: for every frame, by threshold, the true lane that every predicted one matches; −1 for
    none. element_matches: for every frame, likewise.
    """

    det_l: float
    det_t: float
    top_ll: float
    top_lt: float
    lane_precisions: tuple[float, ...] = field(repr=False)
    element_precisions: tuple[float, ...] = field(repr=False)
    lane_matches: list[list[np.ndarray]] = field(repr=False)
    element_matches: list[np.ndarray] = field(repr=False)

    @property
    def ols(self) -> float:
        """The OpenLane-V2 score."""
        return (self.det_l + self.det_t + self.top_ll**0.5 + self.top_lt**0.5) / 4


def openlanev2_score(truth: Sequence[RoadGraph], predicted: Sequence[RoadGraph], rule: str = "v2.1") -> OpenLaneScore:
    """Score the predictions of frames.

    truth, predicted: the graphs of the same frames in the same order.
    rule: of ``RULES``.
    Raises ValueError for another number of frames, an unknown rule, and predictions without their confidences.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r}; valid: {', '.join(RULES)}")
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(f"{len(truth)} true and {len(predicted)} predicted frames: the same frames are needed")
    for graph in predicted:
        if len(graph.lane_confidences) != len(graph.lanes) or len(graph.element_confidences) != len(graph.boxes):
            raise ValueError("every predicted lane and traffic element needs a confidence")
    pairs = list(zip(truth, predicted, strict=True))
    lane_distances = [_lane_distances(true, guess, drop_repeated=rule == "v2.1") for true, guess in pairs]
    box_distances = [_distances(true.boxes, guess.boxes, box_distance) for true, guess in pairs]
    lane_scores = [guess.lane_confidences for guess in predicted]
    lane_matches = [
        [_match(matrix, scores, limit) for limit in LANE_THRESHOLDS]
        for matrix, scores in zip(lane_distances, lane_scores, strict=True)
    ]
    lanes = sum(len(true.lanes) for true in truth)
    lane_precisions = [
        _average_precision([frame[index] for frame in lane_matches], lane_scores, lanes)
        for index in range(len(LANE_THRESHOLDS))
    ]
    element_precisions = [_attribute_precision(pairs, box_distances, attribute) for attribute in range(ATTRIBUTES)]
    element_matches = [
        _match(matrix, guess.element_confidences, BOX_THRESHOLD)
        for matrix, guess in zip(box_distances, predicted, strict=True)
    ]
    cuts = _every_match if rule != "v1.0" else _ten_recalls
    unknown = 1.0 if rule == "v1.0" else EDGE + EPS  # confidence of wrong edges at vertices without a match
    lane_edges, element_edges = [], []
    for index in range(len(LANE_THRESHOLDS)):
        for (true, guess), by_limit, elements in zip(pairs, lane_matches, element_matches, strict=True):
            rows = cuts(by_limit[index], guess.lane_confidences, len(true.lanes))
            columns = cuts(elements, guess.element_confidences, len(true.boxes))
            for row, column in zip(rows, columns, strict=True):
                lane_edges += _edge_precisions(true.lane_lane, guess.lane_lane, row, row, unknown)
                element_edges += _edge_precisions(true.lane_element, guess.lane_element, row, column, unknown)
    mean = lambda values: float(np.mean(values)) if len(values) else 0.0
    return OpenLaneScore(
        mean(lane_precisions), mean(element_precisions), mean(lane_edges), mean(element_edges),
        tuple(lane_precisions), tuple(element_precisions), lane_matches, element_matches,
    )  # fmt: skip


def _lane_distances(true: RoadGraph, guess: RoadGraph, drop_repeated: bool) -> np.ndarray:
    """Fréchet distances (true, predicted), relaxed; only of pairs whose Chamfer distance is small enough."""
    matrix = np.full((len(true.lanes), len(guess.lanes)), FAR)
    for row, lane in enumerate(true.lanes):
        factor = relaxation(lane)
        for column, other in enumerate(guess.lanes):
            if chamfer_distance(lane, other, drop_repeated) * factor < LANE_THRESHOLDS[-1]:
                matrix[row, column] = frechet_distance(lane, other) * factor
    return matrix


def _distances(true, guess, distance) -> np.ndarray:
    return np.array([distance(one, other) for one in true for other in guess]).reshape(len(true), len(guess))


def _match(distances: np.ndarray, confidences: np.ndarray, limit: float) -> np.ndarray:
    """Match every prediction, in order of confidence, with its nearest true object, if that is near and free.

    distances: (true, predicted). Returns (predicted,): indices of true objects, −1 for no match.
    """
    match = np.full(distances.shape[1], -1)
    if not distances.size:
        return match
    nearest, least = distances.argmin(0), distances.min(0)
    for place in np.argsort(-confidences, kind="stable"):
        if least[place] < limit and nearest[place] not in match:
            match[place] = nearest[place]
    return match


def _average_precision(matches: list[np.ndarray], confidences: list[np.ndarray], count: int) -> float:
    """Average precision at 11 recalls over all frames. count: true objects. In float32, as in the devkit."""
    hits = np.concatenate(matches) >= 0
    if not len(hits) and not count:
        return 1.0
    hits = hits[np.argsort(-np.concatenate(confidences), kind="stable")]
    right = np.cumsum(hits, dtype=np.float32)
    recalls = right / np.float32(max(count, EPS))
    precisions = right / np.arange(1, len(hits) + 1, dtype=np.float32)
    best = [precisions[recalls >= recall].max(initial=0) for recall in RECALLS]
    return float(np.sum(best, dtype=np.float32) / 11)


def _attribute_precision(pairs, distances: list[np.ndarray], attribute: int) -> float:
    matches, confidences, count = [], [], 0
    for (true, guess), matrix in zip(pairs, distances, strict=True):
        rows, columns = true.attributes == attribute, guess.attributes == attribute
        confidences.append(guess.element_confidences[columns])
        matches.append(_match(matrix[rows][:, columns], confidences[-1], BOX_THRESHOLD))
        count += int(rows.sum())
    return _average_precision(matches, confidences, count)


def _every_match(match: np.ndarray, confidences: np.ndarray, count: int) -> list[np.ndarray]:
    return [match]


def _ten_recalls(match: np.ndarray, confidences: np.ndarray, count: int) -> list[np.ndarray]:
    """Rule v1.0: the matches above the confidences where the recall of the frame reaches its 10 %, 20 %, ... points.

    match: (predicted,), as ``_match`` returns it. count: true objects.
    """
    if not len(match):
        return [match] * len(PERCENTS)
    order = np.argsort(-confidences, kind="stable")
    recalls = np.cumsum(match[order] >= 0, dtype=np.float32) / np.float32(max(count, EPS))
    taken = np.percentile(recalls, PERCENTS, method="closest_observation")
    last = {recall: place for place, recall in enumerate(recalls)}
    limits = confidences[order][[last[recall] for recall in taken]]
    return [np.where(confidences >= limit, match, -1) for limit in limits]


def _edge_precisions(
    truth: np.ndarray, predicted: np.ndarray, rows: np.ndarray, columns: np.ndarray, unknown: float
) -> list[float]:
    """Average precisions of the edges of all true vertices, in both directions.

    truth: (true, true others). predicted: (predicted, predicted others), confidences.
    rows, columns: of every predicted vertex, the true one that it matches; −1 for none.
    """
    if not truth.size:
        return []
    moved = np.where(truth > 0, 0.0, unknown)
    matched_rows, matched_columns = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
    matched = np.ix_(matched_rows, matched_columns)
    moved[np.ix_(rows[matched_rows], columns[matched_columns])] = predicted[matched]
    edges = [*zip(truth, moved, strict=True), *zip(truth.T, moved.T, strict=True)]
    return [_vertex_precision(true > 0, confidences) for true, confidences in edges]


def _vertex_precision(true: np.ndarray, confidences: np.ndarray) -> float:
    """Average precision of the edges of one vertex. true: (others,) bool. confidences: (others,)."""
    order = np.argsort(-confidences, kind="stable")
    hits = true[order][confidences[order] > EDGE]
    if not true.any() or not len(hits):
        return float(not true.any() and not len(hits))
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].sum() / true.sum())
