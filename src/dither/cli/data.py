"""`dither data build|fetch|synth`."""

from __future__ import annotations

import json

from rich.console import Console

from dither.cli.progress import building
from dither.config import DataBuildConfig, DataFetchConfig, DataSynthConfig
from dither.data.build import build_with_counts
from dither.data.engines import find_engine
from dither.data.fetch import BASE_URL, fetch_states
from dither.data.synth import write_synthetic


def run(config: DataBuildConfig | DataFetchConfig | DataSynthConfig) -> None:
    """Do what the options say and print where the result is."""
    console = Console(stderr=True, highlight=False)
    if isinstance(config, DataBuildConfig):
        _build(config, console)
    elif isinstance(config, DataFetchConfig):
        paths = fetch_states(
            config.states,
            config.year,
            config.out,
            base_url=config.base_url or BASE_URL,
            checksums=config.checksums,
            timeout=config.timeout,
            retries=config.retries,
            console=console,
        )
        for path in paths:
            print(path)
    else:
        with building(console) as told:
            print(
                write_synthetic(
                    config.out,
                    config.rows,
                    seed=config.seed,
                    year=config.year,
                    progress=lambda done, total: told("writing", done, total),
                )
            )


def _build(config: DataBuildConfig, console: Console) -> None:
    with building(console) as told:
        built = build_with_counts(
            config.data,
            config.task,
            config.out,
            engine=find_engine(config.engine, master=config.master),
            on_invalid=config.on_invalid,
            sensitive=config.sensitive,
            progress=told,
        )
    store, manifest = built.store, built.store.manifest
    if config.json:
        facts = {
            "store": str(store.path),
            "task": store.task.name,
            "records": len(store),
            "units": store.units,
            "unit": manifest.unit,
            "sensitive": manifest.sensitive,
            "content_hash": store.id,
            "operator": built.record.to_json(),
        }
        print(json.dumps(facts, indent=1))
        return
    of = f" of {store.units} persons" if manifest.unit == "person" else ""
    print(f"{store.path}: {len(store)} records{of} for {store.task.name}; unit {manifest.unit}")
    print(f"sensitive: {manifest.sensitive}; content {store.id[:16]}")
    print(f"for your eyes only: {json.dumps(built.record.to_json())}")
