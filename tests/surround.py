"""Matches between neighbouring cameras from true depth, with mismatches of our own: no OpenCV is needed."""

import numpy as np
import torch

from jettison.domains.perception.surround.matching import Table, slots_of, there
from jettison.domains.perception.surround.rig import neighbours
from jettison.domains.perception.surround.triangulation import triangulate

COUNT = 60  # matches of a pair


class TrueMatcher:
    """Stands for a matcher; ``true_table`` makes its matches."""

    name = "true"


def true_table(frame, views, matcher, limits, wrong=0.2) -> Table:
    """Return matches of a frame whose depth is known; a share of them is wrong."""
    slots = [view if there(view) else None for view in slots_of(frame, views)]
    rng, rows = np.random.default_rng(5), []
    for one, other in neighbours([None if view is None else view.camera for view in slots]):
        camera, beside, depth = slots[one].camera, slots[other].camera, slots[one].depth()
        y, x = np.nonzero((depth > 0) & (depth < limits.most))
        pixels, depths = np.column_stack([x, y]).astype(float), depth[y, x].astype(float)
        arrived, ahead = beside.project(camera.lift(pixels, depths))
        with np.errstate(invalid="ignore"):
            seen = (ahead > 0) & (arrived >= 0).all(1) & (arrived < (beside.width - 1, beside.height - 1)).all(1)
        chosen = rng.permutation(np.flatnonzero(seen))[:COUNT]
        pixels, arrived = pixels[chosen], arrived[chosen]
        off = rng.random(len(chosen)) < wrong
        arrived[off] += rng.uniform(-25, 25, (off.sum(), 2)) * (1, 0.1)
        made = triangulate(pixels, camera, arrived, beside)
        near = made.in_range(limits.most)
        ends = np.broadcast_to([one, other], (len(pixels), 2))
        both = np.stack([pixels, arrived], 1).reshape(-1, 4)
        rows.append(np.column_stack([ends, both, made.depths, made.fits(limits)])[near])
    whole = torch.from_numpy(np.concatenate(rows))
    pixels = whole[:, 2:6].reshape(-1, 2, 2).float()
    return Table(whole[:, :2].long(), pixels, whole[:, 6:8].float(), whole[:, 8].bool())
