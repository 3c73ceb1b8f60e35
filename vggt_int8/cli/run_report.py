"""Report of a run: the model, its recipe and kernels, and how the last call was executed."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_int8.export import RunReport
    from vggt_int8.pretrained.int8_network import Int8Network


def report_of(
    network: "Int8Network",
    model: str,
    identity: dict[str, str | None],
    inputs: list[dict[str, Any]],
    settings: dict[str, Any],
    seconds: dict[str, float],
    outputs: dict[str, Any],
) -> "RunReport":
    """Report of a run; `network` is the model with that name and identity, after it ran."""
    from vggt_int8.export import RunReport

    return RunReport(
        model=model,
        recipe=recipe_of(network),
        backend=kernels_of(network),
        device=network.device,
        dtype=str(network.dtype).removeprefix("torch."),
        inputs=inputs,
        seconds=seconds,
        outputs=outputs,
        model_identity=identity,
        quantization=recipe_content(network),
        settings=settings,
        runtime=runtime_of(network),
    )


def runtime_of(network: "Int8Network") -> dict[str, Any]:
    """How the last call was executed: "fused" or "plain" and why, attention scope and kernels of the global blocks, and
    chunk sizes.
    """
    report = network.runtime_report()
    plan = None if report.plan is None else asdict(report.plan)
    attention = None if report.attention is None else str(report.attention)
    shards = {"frames_of_each_gpu": list(report.shards)} if report.shards else {}
    return {
        "mode": report.mode,
        "reason": report.reason or None,
        "global_attention": attention,
        "attention_kernels": list(report.attention_kernels),
        "plan": plan,
        **shards,
    }


def recipe_content(network: "Int8Network") -> dict[str, Any] | None:
    """The whole recipe of a quantized model, as in its config.json."""
    quantization: Any = getattr(network.config, "quantization_config", None)
    return None if quantization is None else dict(quantization.recipe)


def recipe_of(network: "Int8Network") -> str | None:
    """Recipe name of a quantized model; None for a plain network."""
    quantization: Any = getattr(network.config, "quantization_config", None)
    return None if quantization is None else str(quantization.recipe["name"])


def kernels_of(network: "Int8Network") -> str | None:
    """Kernels of the INT8 layers, most layers first: "native (VNNI u8·s8) x 344, …"; None for a plain network."""
    if recipe_of(network) is None:
        return None
    count = Counter(
        f"{row.backend} ({row.kernel})" for row in network.quantization_report() if row.backend != "pytorch"
    )
    return ", ".join(f"{kernel} x {number}" for kernel, number in count.most_common()) or None
