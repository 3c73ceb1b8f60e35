"""The scenes of a step follow from seed and step, and differ between processes."""

import pytest
import torch

from tests.training.runs import with_shapes
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.data import StepScenes


def test_steps_use_fresh_scenes_and_processes_different_ones(tiny_config: TrainingConfig) -> None:
    seen = []
    for rank in range(2):
        scenes = StepScenes(tiny_config.data, seed=0, first_step=3, last_step=9, rank=rank, world=2)
        assert len(scenes) == 6
        seen.append([scenes[i] for i in range(6)])
    assert [d.camera.shape for d in seen[0]] == [d.camera.shape for d in seen[1]]
    assert {d.camera.shape[1] for d in seen[0]} == {2, 4}
    seeds = torch.cat([d.seeds for d in seen[0] + seen[1]])
    assert len(seeds.unique()) == len(seeds)
    later = StepScenes(tiny_config.data, seed=0, first_step=5, last_step=9, rank=0, world=2)
    assert torch.equal(later[0].camera, seen[0][2].camera)


@pytest.mark.slow
def test_the_shape_of_a_step_follows_from_seed_and_step(tiny_config: TrainingConfig) -> None:
    data = with_shapes(tiny_config).data
    steps = 30
    scenes = StepScenes(data, seed=3, first_step=0, last_step=steps, rank=0, world=2)
    drawn = [scenes[step] for step in range(steps)]
    wide = [d for d in drawn if d.size == (16, 32)]
    assert {d.size for d in drawn} == {(32, 32), (16, 32)}
    assert 0.45 < len(wide) / steps < 0.9, "two of three, give or take 2.5 standard deviations"
    later = StepScenes(data, seed=3, first_step=20, last_step=steps, rank=1, world=2)
    assert [later[i].size for i in range(10)] == [d.size for d in drawn[20:]], "resumed, and on another process"
    other = StepScenes(data, seed=4, first_step=0, last_step=steps, rank=0, world=2)
    assert [other[i].size for i in range(10)] != [d.size for d in drawn[:10]]
    plain = StepScenes(tiny_config.data, seed=3, first_step=0, last_step=steps, rank=0, world=2)
    assert [plain[i].camera.shape for i in range(10)] == [d.camera.shape for d in drawn[:10]], "as without shapes"
    ratios = torch.cat([(d.intrinsic[..., 0, 0] / d.intrinsic[..., 1, 1])[:, 0] for d in wide])
    assert 0.9 <= ratios.min() < 0.93 < 1.07 < ratios.max() <= 1.1
