"""A model to train from scratch, what is done to any network before training, and its optimizers and schedule.

The network's own initialisation follows the reference, which starts from a pretrained encoder and at 24 blocks of
width 1024. A small network trained from nothing needs signals of order one instead: Xavier weights, residual branches
that matter from the first step, special tokens that differ, and a camera head whose field of view does not start
under its ReLU, where no gradient would ever reach it.
"""

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vggt_int8.model.families import AnyNetwork, blocks_between_frames, dense_heads, network_class, pose_output
from vggt_int8.model.vggt import VGGT
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.muon import StackedMuon
from vggt_int8.training.sections import OptimizerConfig, RunConfig

TOKEN_STD = 0.05
BRANCH_SCALE = 0.2  # LayerScale of aggregator and camera head
START_FOV = 1.0  # radians of the poses at the start, which are without rotation
START_REFINEMENTS = 4  # of a camera head, in which these are shared out
MUON_LEAST_WIDTH = 32
RECOMPILE_LIMIT = 64  # shapes and module variants of one compiled function; the default of 8 is for servers


def fresh_model(config: TrainingConfig) -> AnyNetwork:
    """A model with random weights that depend on `config.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sizes = config.network()
        model: AnyNetwork = network_class(sizes)(sizes)
        with torch.no_grad():
            _initialise(model)
    return model


def _initialise(model: AnyNetwork) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma")) and "patch_embed" not in name:
            parameter.fill_(BRANCH_SCALE)
        elif name.endswith(("camera_token", "register_token", "cls_token", "register_tokens", "storage_tokens")):
            parameter.normal_(std=TOKEN_STD)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    if (last := pose_output(model)) is not None:
        share = 1 / START_REFINEMENTS if isinstance(model, VGGT) else 1.0  # each refinement adds its part
        last.weight.mul_(0.1)
        last.bias.copy_(share * torch.tensor([0.0] * 6 + [1.0, START_FOV, START_FOV]))


def prepare_network(network: AnyNetwork, config: RunConfig) -> None:
    """fp32 for the camera head, channels-last convolutions, and what `config.compile` names, in place."""
    if network.camera_head is not None:
        _without_autocast(network.camera_head)
    for head in dense_heads(network):
        head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if isinstance(network, VGGT) and network.track_head is not None:
        # No loss reads the tracks' confidence, and DDP waits for the gradient of whatever asks for one.
        network.track_head.tracker.conf_predictor.requires_grad_(False)
    if not config.compile:
        return
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    if "blocks" in config.compile:
        compile_blocks(network, config)
    if "heads" in config.compile:
        for head in dense_heads(network):
            head.scratch.compile(dynamic=False)


def compile_blocks(network: AnyNetwork, config: RunConfig) -> None:
    """`torch.compile` for the blocks of encoder and aggregator, in place."""
    aggregator = network.aggregator
    # Frames of several shapes have several numbers of tokens.
    for block in [*aggregator.patch_embed.blocks, *aggregator.frame_blocks]:
        block.compile(dynamic=bool(config.data.shapes))
    # The number of scenes and tokens changes with the number of views: one kernel for all.
    for block in blocks_between_frames(network):
        block.compile(dynamic=True)


def _without_autocast(head: nn.Module) -> None:
    """The camera head is tiny and its output most sensitive: it runs in the parameters' own precision."""
    forward = head.forward

    def in_full_precision(tokens: Tensor) -> list[Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):
            return forward(tokens.to(next(head.parameters()).dtype))

    head.forward = in_full_precision


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon for the matrices of the blocks, where `config` gives it a rate, and AdamW for everything else.

    Muon orthogonalises the update of a whole matrix (Jordan et al., 2024; scaled to AdamW's step size as in Liu et
    al., "Muon is Scalable for LLM Training", 2025). It is not for first and last layers, which here are 9 wide, nor
    for convolutions and vectors. AdamW decays matrices and kernels only, not vectors, tokens and position embeddings.
    """
    matrices = _block_matrices(model) if config.muon_learning_rate else []
    in_muon = set(matrices)
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    scales: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("log_input_scale"):
            scales.append(parameter)
        elif parameter.requires_grad and parameter not in in_muon:
            matrix = parameter.dim() >= 2 and not name.endswith(("token", "tokens", "pos_embed"))
            (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
        {"params": scales, "weight_decay": 0.0, "lr": config.scale_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    on_cuda = next(model.parameters()).is_cuda
    optimizers: list[Optimizer] = [AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=on_cuda)]
    if matrices:
        decay, rate = config.muon_weight_decay, config.muon_learning_rate
        optimizers.append(StackedMuon(matrices, lr=rate, weight_decay=decay))
    return optimizers


def _block_matrices(model: nn.Module) -> list[Tensor]:
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    return [linear.weight for linear in linears if min(linear.weight.shape) >= MUON_LEAST_WIDTH]


def rate_factor(step: int, config: OptimizerConfig) -> float:
    """Share of the learning rate at a step: linear warmup, constant, then 1 - sqrt(progress of the decay)."""
    first, last = config.first_step, config.total_steps
    decay_steps = max(1, round(config.decay_share * (last - first)))
    progress = (step - (last - decay_steps)) / decay_steps
    warmup = min(1.0, (step - first + 1) / max(1, config.warmup_steps))
    return warmup * (1.0 if progress <= 0 else max(0.0, 1.0 - progress**0.5))


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, step: int) -> LambdaLR:
    """The schedule as it stands before `step`."""
    return LambdaLR(optimizer, lambda done: rate_factor(step + done, config))
