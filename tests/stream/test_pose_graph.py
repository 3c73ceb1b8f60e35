"""The pose graph against the same sum of squares, written down once more and minimised by another method."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vggt_int8.similarity import Similarity
from vggt_int8.stream.pose_graph import ROTATION, SCALE, TRANSLATION, Edge, solve

NODES = 4


def a_similarity(generator: torch.Generator, size: float) -> Similarity:
    """size: of its turn (radians), of its shift, and of the logarithm of its scale."""
    turn, shift, log_scale = (size * torch.randn(n, generator=generator, dtype=torch.float64) for n in (3, 3, 1))
    return Similarity(log_scale.exp().item(), torch.linalg.matrix_exp(crossed(turn)), shift)


def crossed(v: Tensor) -> Tensor:
    """[..., 3] -> [..., 3, 3], the matrix of the cross product with it."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def a_closed_path() -> tuple[list[Similarity], list[Edge]]:
    """Windows in a row with errors at every seam, and two loops."""
    generator = torch.Generator().manual_seed(5)
    true = [Similarity.identity()]
    for _ in range(NODES - 1):
        true.append(true[-1].after(a_similarity(generator, 0.5)))
    ends = [*itertools.pairwise(range(NODES)), (0, NODES - 1), (1, NODES - 1)]
    edges = [
        Edge(i, j, true[i].inverse().after(true[j]).after(a_similarity(generator, 0.02)), reach=1 + 0.3 * i)
        for i, j in ends
    ]
    start = [Similarity.identity()]
    for edge in edges[: NODES - 1]:
        start.append(start[-1].after(edge.measured))
    return start, edges


def cost(x: Tensor, edges: list[Edge]) -> Tensor:
    """The sum of squares of the module's text. x: [n - 1, 7] absolute rotation vectors, translations, log scales."""
    x = torch.cat([x.new_zeros(1, 7), x])
    rotation, translation, log_scale = torch.linalg.matrix_exp(crossed(x[:, :3])), x[:, 3:6], x[:, 6]
    total = x.new_zeros(())
    for edge in edges:
        i, j, m = edge.i, edge.j, edge.measured
        # Where node j's world lies in that of i, and what is left of it behind the measurement, in j's world.
        turn = rotation[i].mT @ rotation[j]
        shift = rotation[i].mT @ (translation[j] - translation[i]) / log_scale[i].exp()
        left = m.rotation.mT @ turn
        angle = (0.5 * (left.trace() - 1)).clamp(-1 + 1e-12, 1 - 1e-12).acos()
        moved = m.rotation.mT @ (shift - m.translation) / m.scale
        unit = TRANSLATION * edge.reach / m.scale
        size = log_scale[j] - log_scale[i] - torch.tensor(m.scale, dtype=x.dtype).log()
        total = total + (angle / ROTATION).square() + (moved / unit).square().sum() + (size / SCALE).square()
    return total


def packed(nodes: list[Similarity]) -> Tensor:
    rows = []
    for node in nodes[1:]:
        axis = torch.linalg.eigh(node.rotation + node.rotation.mT).eigenvectors[:, -1]
        skew = node.rotation - node.rotation.mT
        sine = 0.5 * torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]])
        angle = torch.atan2(sine.norm(), 0.5 * (node.rotation.trace() - 1))
        axis = axis * torch.sign(axis @ sine)
        rows.append(torch.cat([angle * axis, node.translation, torch.tensor([node.scale]).double().log()]))
    return torch.stack(rows)


def test_the_graph_is_solved_as_another_method_solves_it() -> None:
    start, edges = a_closed_path()
    solved, off = solve(start, edges)
    assert off["after"] < off["before"]
    # The same sum of squares, so the same root mean square, before and after.
    for nodes, said in ((start, off["before"]), (solved, off["after"])):
        assert (cost(packed(nodes), edges).item() / (7 * len(edges))) ** 0.5 == pytest.approx(said, rel=1e-3, abs=1e-4)
    x = packed(start).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cost(x, edges)
        value.backward()
        return value

    optimizer.step(closure)
    wanted = x.detach()
    assert cost(packed(solved), edges).item() == pytest.approx(cost(wanted, edges).item(), rel=1e-4)
    torch.testing.assert_close(packed(solved), wanted, atol=1e-4, rtol=1e-3)
    assert torch.equal(solved[0].rotation, torch.eye(3, dtype=torch.float64))
    assert (solved[0].scale, solved[0].translation.norm().item()) == (1, 0)
