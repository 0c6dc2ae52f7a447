"""What `dither train` refuses among its options before it reads a record."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dither.errors import ConfigError

if TYPE_CHECKING:
    from dither.config.train import TrainConfig

# How a run runs, not what it is: may differ from start to start.
RUNNING = frozenset(
    {
        *("nproc", "engine", "transport", "algorithm", "timeout", "max_restarts", "threads"),
        *("cluster_secret", "profile", "track", "track_private", "spark"),
    }
)
_OF_PRECISION = frozenset(
    {
        *("schedule", "quantized", "quantized_by", "rotate_every", "schedule_seed"),
        *("probe_every", "probe_share", "probe_clip"),
    }
)
_COUNTS = (
    *("steps", "batch_size", "checkpoint_every", "lease", "threads", "microbatch_size"),
    *("memory_limit", "nproc", "rotate_every", "probe_every"),
)
_TRUSTS = re.compile(r"central|local|distributed\(\d{1,4}\)")


def check_options(config: TrainConfig) -> None:
    """Refuse what needs no records to be seen as wrong.

    Raises:
        ConfigError: Names the option, what came and the fix.
    """
    if (config.out is None) == (config.resume is None):
        raise ConfigError(
            expected="either --out for a new run or --resume for an old one",
            got="both" if config.out else "neither",
            fix="give one of them",
        )
    if config.resume is not None:
        _check_resume(config)
        return
    if bool(config.data) == (config.store is not None):
        raise ConfigError(
            expected="either --data with raw files or --store with a record store",
            got="both" if config.store else "neither",
            fix="give one of them",
        )
    _check_promise(config)
    _check_ranges(config)
    _check_trust(config)
    if (config.relation == "add_remove") != (config.declared_records is not None):
        raise ConfigError(
            expected="--declared-records exactly under --relation add_remove",
            got=f"{config.relation} with declared records {config.declared_records}",
            fix="under add_remove n itself is private: declare a public one; else leave it out",
        )
    _check_clipping(config)
    _check_precision(config)


def _check_trust(config: TrainConfig) -> None:
    if not config.private and config.trust != "central":
        raise ConfigError(
            expected="--trust with private training, whose noise it shares out",
            got=f"--no-private --trust {config.trust}",
            fix="leave --trust out: without noise every rank's sums leave it in clear",
        )
    if not _TRUSTS.fullmatch(config.trust):
        raise ConfigError(
            expected="a --trust of central, local or distributed(t)",
            got=repr(config.trust),
            fix="name one of them, for instance 'distributed(1)', in quotes for the shell",
        )
    if config.cluster_secret is not None and not config.trust.startswith("distributed"):
        raise ConfigError(
            expected="--cluster-secret together with --trust distributed(t), whose masks it is for",
            got=f"--trust {config.trust}",
            fix="leave it out, or add --trust 'distributed(1)'",
        )


def _check_clipping(config: TrainConfig) -> None:
    if config.clip_quantile is not None and config.clipping != "adaptive":
        raise ConfigError(
            expected="--clip-quantile together with --clipping adaptive, which it is for",
            got=f"--clipping {config.clipping}",
            fix="add --clipping adaptive, or leave --clip-quantile out",
        )
    if config.clipping == "adaptive" and config.relation == "add_remove":
        raise ConfigError(
            expected="--clipping flat, automatic or per_layer under --relation add_remove",
            got="adaptive, whose count of gradients could jump by rounding there",
            fix="use one of these, or --relation zero_out",
        )


def _check_precision(config: TrainConfig) -> None:
    if config.precision is None:
        names = [name for name in config.told() if name in _OF_PRECISION]
        if names:
            raise ConfigError(
                expected="--precision together with options of it",
                got=f"--{names[0].replace('_', '-')} alone",
                fix="add --precision luq-fp4, for instance, or leave it out",
            )
        return
    if config.relation == "add_remove":
        raise ConfigError(
            expected="--relation zero_out or replace_one for --precision",
            got="add_remove, where a missing record moves the others' rows, and a quantiser "
            "turns what that rounds into a whole step",
            fix="use one of these relations, or leave --precision out",
        )
    if config.schedule == "dpquant" and not config.private:
        raise ConfigError(
            expected="a private run for --schedule dpquant, whose probe is charged",
            got="--no-private",
            fix="use --schedule random",
        )
    names = [name for name in config.told() if name.startswith("probe_")]
    if names and config.schedule != "dpquant":
        raise ConfigError(
            expected="options of the probe together with --schedule dpquant, which has one",
            got=f"--{names[0].replace('_', '-')} with --schedule {config.schedule}",
            fix="leave it out, or use --schedule dpquant",
        )


def _check_promise(config: TrainConfig) -> None:
    budget, noise = config.epsilon, config.noise_multiplier
    if (config.private and budget is None and noise is None) or (budget and noise):
        raise ConfigError(
            expected="either --epsilon, the budget, or --noise-multiplier",
            got="both" if budget else "neither: a budget is never guessed",
            fix="give one of them, for instance --epsilon 1",
        )
    for name, value in (("epsilon", budget), ("noise_multiplier", noise)):
        _require(value is None or 0.0 < value < float("inf"), f"a finite --{name} above 0", value)
    if config.sensitive is not None and config.store is not None:
        raise ConfigError(
            expected="--sensitive with --data only: a store says by itself whether it is",
            got=f"--sensitive {config.sensitive} with --store",
            fix="build the store again with --sensitive",
        )
    if config.account is not None and config.ledger is None:
        raise ConfigError(
            expected="--account together with the --ledger that holds it",
            got="no --ledger",
            fix="name the ledger file that the stores share",
        )


def _check_ranges(config: TrainConfig) -> None:
    for name in _COUNTS:
        value = getattr(config, name)
        _require(value is None or 1 <= value <= 10**8, f"--{name} in [1, 1e8]", value)
    for name in ("seed", "insecure_seed", "schedule_seed"):
        value = getattr(config, name)
        _require(value is None or 0 <= value < 2**63, f"a --{name} in [0, 2^63)", value)
    declared = config.declared_records
    _require(declared is None or declared >= 1, "--declared_records of at least 1", declared)
    _require(
        config.threads is None or config.threads <= 1024, "--threads up to 1024", config.threads
    )
    _require(config.nproc is None or config.nproc <= 256, "--nproc up to 256", config.nproc)
    _require(1.0 <= config.timeout <= 86_400.0, "a --timeout in [1, 86400] seconds", config.timeout)
    _require(0 <= config.max_restarts <= 1000, "--max_restarts in [0, 1000]", config.max_restarts)
    for name in ("l2_clip", "learning_rate", "probe_clip"):
        value = getattr(config, name)
        _require(0.0 < value < float("inf"), f"a finite --{name} above 0", value)
    _require(0.0 < config.delta < 1.0, "a --delta in (0, 1)", config.delta)
    _require(0.0 <= config.momentum < 1.0, "a --momentum in [0, 1)", config.momentum)
    quantile = config.clip_quantile
    _require(quantile is None or 0.0 < quantile < 1.0, "a --clip-quantile in (0, 1)", quantile)
    _require(0.0 <= config.quantized <= 1.0, "--quantized in [0, 1]", config.quantized)
    _require(0.0 < config.probe_share < 1.0, "a --probe-share in (0, 1)", config.probe_share)
    _require(0.0 < config.test_fraction < 1.0, "a --test_fraction in (0, 1)", config.test_fraction)
    _require(
        all(1 <= width <= 2**16 for width in config.hidden),
        "layer widths in [1, 65536]",
        config.hidden,
    )
    _check_launch(config)


def _check_launch(config: TrainConfig) -> None:
    if config.transport == "mpi" and (config.nproc or 1) > 1:
        raise ConfigError(
            expected="mpiexec, which --transport mpi needs",
            got=f"--nproc {config.nproc}, which starts processes itself",
            fix=f"leave --nproc out and start mpiexec -n {config.nproc} dither train ...; or "
            "leave --transport out: on one host sums go through shared memory",
        )


def _check_resume(config: TrainConfig) -> None:
    _check_ranges(config)
    changed = [name for name in config.told() if name not in {"resume", *RUNNING}]
    if changed:
        raise ConfigError(
            expected="--resume without options that say what the run is: it keeps its own",
            got=f"also {', '.join('--' + name.replace('_', '-') for name in changed)}",
            fix="leave them out, or start a new run with --out",
        )


def _require(holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(
            expected=expected.replace("_", "-"), got=repr(value), fix="change the option"
        )
