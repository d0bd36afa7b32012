"""Vidur's simulator on a given trace, with given affine execution times in the place of its profiles."""

import gc
import logging
import os
import tempfile
import time
import types
from typing import Any

os.environ.setdefault("WANDB_MODE", "disabled")
logging.disable(logging.INFO)

from vidur.config import (  # noqa: E402
    CacheConfig,
    ClusterConfig,
    LinearRegressionExecutionTimePredictorConfig,
    MetricsConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    SyntheticRequestGeneratorConfig,
    VllmSchedulerConfig,
)
from vidur.entities import Replica, Request  # noqa: E402
from vidur.execution_time_predictor import ExecutionTimePredictorRegistry  # noqa: E402
from vidur.request_generator import RequestGeneratorRegistry  # noqa: E402
from vidur.simulator import Simulator  # noqa: E402


def measure(
    arrived: list[float],
    prompt: list[int],
    output: list[int],
    prefill: list[float],
    decode: list[float],
    slots: int,
    tokens: int,
    chunk: int | None = None,
    memory: int = 1_000_000,
) -> dict[str, Any]:
    """Milliseconds per request, and when each had its first and its last token.

    Args:
      arrived: s.
      prompt: tokens.
      output: tokens.
      prefill: (a, b, c) of a + b sum l + c sum l^2, in s.
      decode: (u, v, w) of u + v context + w batch, in s.
      slots: of a replica.
      tokens: of a batch of prompts.
      chunk: tokens of an iteration, for Sarathi's scheduler; None: vLLM's.
      memory: tokens of keys and values.
    """
    rows = list(zip(arrived, prompt, output, strict=True))
    made: list[Request] = []

    class Given:
        """The trace."""

        def __init__(self, config: Any) -> None:
            pass

        def generate(self) -> list[Request]:
            made.extend(Request(*row) for row in rows)
            return made

    class Affine:
        """The execution times, of any mixture of chunks and answers."""

        def __init__(self, **options: Any) -> None:
            pass

        def get_execution_time(self, batch: Any, stage: int) -> Any:
            new, squares, answers, context = 0, 0, 0, 0
            for request, count in zip(batch.requests, batch.num_q_tokens, strict=True):
                before = request.num_processed_tokens
                if request.is_prefill_complete:
                    answers, context = answers + 1, context + before
                else:
                    new, squares = new + count, squares + (before + count) ** 2 - before**2
            seconds = 0.0
            if answers:
                seconds += decode[0] + decode[1] * context + decode[2] * answers
            if new:
                constant = 0.0 if answers else prefill[0]
                seconds += constant + prefill[1] * new + prefill[2] * squares
            return types.SimpleNamespace(total_time=seconds, model_time=seconds)

    predictor = LinearRegressionExecutionTimePredictorConfig()
    generator = SyntheticRequestGeneratorConfig()
    generator.max_tokens = max(p + o for _, p, o in rows)
    _put(ExecutionTimePredictorRegistry, predictor.get_type(), Affine)
    _put(RequestGeneratorRegistry, generator.get_type(), Given)
    if chunk is None:
        scheduler: Any = VllmSchedulerConfig(batch_size_cap=slots, max_tokens_in_batch=tokens)
    else:
        scheduler = SarathiSchedulerConfig(batch_size_cap=slots, chunk_size=chunk)
    with tempfile.TemporaryDirectory() as folder:
        config = SimulationConfig(
            cluster_config=ClusterConfig(
                # By default it has two stages, of which each would take the whole time.
                replica_config=ReplicaConfig(num_pipeline_stages=1),
                replica_scheduler_config=scheduler,
                cache_config=CacheConfig(
                    block_size=16, num_blocks=memory // 16, watermark_blocks_fraction=0.0
                ),
            ),
            request_generator_config=generator,
            execution_time_predictor_config=predictor,
            metrics_config=_quiet(folder),
        )
        # It numbers replicas over all simulations of a process, and looks for them from 0 on.
        Replica._id = -1
        simulator = Simulator(config)
        gc.collect()
        began = time.perf_counter()
        simulator.run()
        seconds = time.perf_counter() - began
    return {
        "ms": 1e3 * seconds / len(rows),
        "first": [one.prefill_completed_at for one in made],
        "last": [one.completed_at for one in made],
        "restarts": sum(one.num_restarts for one in made),
    }


def _put(registry: Any, key: Any, kind: type) -> None:
    """Its registries hold classes by their type."""
    registry.unregister(key)
    registry.register(key, kind)


def _quiet(folder: str) -> MetricsConfig:
    """Nothing but the simulation is timed: no metrics are kept or drawn."""
    switches = {
        name: False
        for name in MetricsConfig.__dataclass_fields__
        if name.startswith(("write_", "store_", "enable_", "keep_", "save_"))
    }
    return MetricsConfig(output_dir=folder, **switches)
