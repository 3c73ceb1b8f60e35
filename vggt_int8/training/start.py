"""Create a model to train from scratch, prepare any network for training, and build its optimizers and schedule.

The network's default initialization follows the reference, which starts from a pretrained encoder and has 24 blocks of
width 1024. A small network trained from scratch needs activations of order one instead: Xavier weights, residual
branches with an effect from the first step, distinct special tokens, and a camera head whose field of view does not
start in the zero region of its ReLU, where it would never get a gradient.
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
    """A model with random weights that only depend on `config.seed`."""
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
    """Set fp32 for the camera head and channels-last convolutions, and compile what `config.compile` names, in
    place.
    """
    if network.camera_head is not None:
        _without_autocast(network.camera_head)
    for head in dense_heads(network):
        head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if isinstance(network, VGGT) and network.track_head is not None:
        # No loss uses the tracks' confidence, and DDP waits for the gradients of all parameters that require them.
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
    """Apply `torch.compile` to the blocks of the encoder and the aggregator, in place."""
    aggregator = network.aggregator
    # The number of tokens differs between frame shapes.
    for block in [*aggregator.patch_embed.blocks, *aggregator.frame_blocks]:
        block.compile(dynamic=bool(config.data.shapes))
    # The number of scenes and tokens changes with the number of views: use one kernel for all.
    for block in blocks_between_frames(network):
        block.compile(dynamic=True)


def _without_autocast(head: nn.Module) -> None:
    """The camera head is small and its output is sensitive to rounding, so it runs in the precision of its
    parameters.
    """
    forward = head.forward

    def in_full_precision(tokens: Tensor) -> list[Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):
            return forward(tokens.to(next(head.parameters()).dtype))

    head.forward = in_full_precision


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon for the matrices of the blocks, if `config` sets its learning rate, and AdamW for everything else.

    Muon orthogonalizes the update of a whole matrix (Jordan et al., 2024; scaled to AdamW's step size as in Liu et al.,
    "Muon is Scalable for LLM Training", 2025). It is not suitable for first and last layers (9 wide here), convolutions
    and vectors. AdamW applies weight decay to matrices and kernels, but not to vectors, tokens and position embeddings.
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
    """Learning rate factor at a step: linear warmup, constant, then 1 - sqrt(progress of the decay)."""
    first, last = config.first_step, config.total_steps
    decay_steps = max(1, round(config.decay_share * (last - first)))
    progress = (step - (last - decay_steps)) / decay_steps
    warmup = min(1.0, (step - first + 1) / max(1, config.warmup_steps))
    return warmup * (1.0 if progress <= 0 else max(0.0, 1.0 - progress**0.5))


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, step: int) -> LambdaLR:
    """The schedule in its state before `step`."""
    return LambdaLR(optimizer, lambda done: rate_factor(step + done, config))
