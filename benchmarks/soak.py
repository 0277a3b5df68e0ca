"""Kills a training run again and again, resumes it each time, and compares its end with that of a run left alone.

    python benchmarks/soak.py                        200 kills; half an hour to two hours on two CPU cores
    python benchmarks/soak.py --kills 10             two minutes
    python benchmarks/soak.py --processes 2          as many, of a run of two processes (DDP over gloo)
    python benchmarks/soak.py --processes 2 --sharded     the same with FSDP2

A tiny model learns from 64 texts; a checkpoint is written every four of 40 steps. Each life of the run begins with
`--resume` and is killed (SIGKILL) at a moment drawn at random: between two operations on the file system or while one
batch is learned from (the n-th that happens), or after some time on the clock, whatever it is doing. Whenever a run has
come to its end, everything in its folder is compared bit by bit with the run that was left alone, and the next run
begins, until there were so many kills. Half of the runs stream their texts.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from cpu_shards import shard_on_cpus
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from quietstar.training import DataArguments, QuietStarTrainer, QuietStarTrainingArguments
from quietstar.training.arguments import ModelArguments
from quietstar.training.run import run_training

CLOCKS = ("runtime", "per_second", "seconds", "flos")
"""ends of the names of figures that say how long something took"""
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir")
"""operations on the file system, as Python's audit hooks name them"""


@dataclass(frozen=True)
class Kill:
    """When a life of a run ends."""

    kind: str
    """files: at an operation in the run's folder; batch: while a batch is learned from; clock: after some seconds"""
    moment: float
    """the number of that operation or batch in this life, or the seconds"""


def make_inputs(folder: Path) -> None:
    """A tiny model with a tokenizer, `base`, and texts in two files, `texts`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"</s>": 0} | {byte: 1 + i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # loud enough that thoughts change what is predicted
                parameter.copy_(torch.randn(parameter.shape) * 1.6 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder / "base")
    (folder / "texts").mkdir()
    for shard in range(2):
        texts = [f"{shard}.{i} " + "ab ba " * (1 + i % 5) for i in range(32)]
        texts[10:10] = texts[25:25] = [" "]  # too short for one prediction
        (folder / "texts" / f"{shard}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def live(inputs: str, folder: str, kill: Kill | None, settings: dict[str, Any], rank: int, world: list[int]) -> None:
    """One life of a run, in a process of its own."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if len(world) > 1:
        port, size = world
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    gc.freeze()  # modules stay, and a run of a trainer would search them for garbage
    log = open(f"{folder}.{rank}.out", "a")  # noqa: SIM115  (as long as the process)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if kill is not None:
        arm(kill, folder)
    streams = settings.pop("streaming", False)
    if settings.get("fsdp"):
        shard_on_cpus()
    chosen = {
        "output_dir": folder,
        "resume": True,
        "n_ahead": 4,
        "n_ahead_talk": 2,
        "max_steps": 40,
        "save_steps": 4,
        "save_total_limit": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2 // max(len(world), 1),
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "policy_weight": 1.0,
        "logging_steps": 3,
        "eval_steps": 10,
        "thoughts_shown": 0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    } | settings
    run_training(
        ModelArguments(model=f"{inputs}/base"),
        DataArguments(dataset=f"{inputs}/texts", eval_size=4, max_length=12, streaming=streams, shuffle_block=8),
        QuietStarTrainingArguments(**chosen),
    )


def arm(kill: Kill, folder: str) -> None:
    """Let this process, and those of its group, die at that moment."""
    seen = [0]

    def count() -> None:
        seen[0] += 1
        if seen[0] == kill.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill.kind == "files":

        def audit(event: str, args: tuple) -> None:
            if event in FILE_EVENTS and isinstance(args[0], (str, os.PathLike)) and str(args[0]).startswith(folder):
                count()

        sys.addaudithook(audit)
    elif kill.kind == "batch":
        compute = QuietStarTrainer.compute_loss

        def compute_and_count(self: QuietStarTrainer, *args: Any, **kwargs: Any) -> Any:
            loss = compute(self, *args, **kwargs)
            count()
            return loss

        QuietStarTrainer.compute_loss = compute_and_count  # type: ignore[method-assign]
    else:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, kill.moment)  # its default action ends the process at once


def lives(inputs: Path, folder: Path, kill: Kill | None, n_processes: int = 1, **settings: Any) -> bool:
    """Let a run live once; whether it came to its end. The first of its processes is the one that is killed.

    Raises:
        RuntimeError: it ended by an error.
    """
    context = forkserver()
    world = [1] if n_processes == 1 else [free_port(), n_processes]
    processes = [
        context.Process(
            target=live, args=(str(inputs), str(folder), kill if rank == 0 else None, settings, rank, world)
        )
        for rank in range(n_processes)
    ]
    for process in processes:
        process.start()
    processes[0].join()
    for process in processes[1:]:
        if processes[0].exitcode:  # as a launcher does when one is gone
            process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    if codes[0] in (-signal.SIGKILL, -signal.SIGALRM):
        return False
    if any(codes):
        raise RuntimeError(f"a run ended with {codes}:\n{Path(f'{folder}.0.out').read_text()[-3000:]}")
    return True


def forkserver() -> ForkServerContext:
    """Forks processes from one that has imported what takes seconds to import."""
    context = multiprocessing.get_context("forkserver")
    slow = ["quietstar.training.run", "transformers.models.llama.modeling_llama", "datasets", "torch", "deepspeed"]
    context.set_forkserver_preload(slow)
    return context


def free_port() -> int:
    """On which the processes of a run find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def remains(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without what a clock says: name -> bytes, tensors, numbers."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            found[name] = load_file(file)
        elif file.suffix in (".pt", ".pth"):
            found[name] = torch.load(file, weights_only=False)  # our own
        elif file.name == "log.jsonl":
            found[name] = [json.loads(line) for line in file.read_text().splitlines()]
        elif file.suffix == ".json":
            found[name] = json.loads(file.read_text())
        else:
            found[name] = file.read_bytes()
    return {name: timeless(value) for name, value in found.items()}


def timeless(value: Any) -> Any:
    """A value without what a clock says, and without sizes of files that hold such."""
    if isinstance(value, dict):
        return {
            key: timeless(item)
            for key, item in value.items()
            if not (isinstance(key, str) and (key.endswith(CLOCKS) or key == "files"))
        }
    return [timeless(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two such things differ, bit by bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        only = [f"{where}/{key} is in one alone" for key in ours.keys() ^ theirs.keys()]
        both = [key for key in ours if key in theirs]
        return only + [found for key in both for found in differences(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{where}/{i}")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [f"{where} differs"]
    same = ours is theirs or str(ours) == str(theirs) if not hasattr(ours, "tobytes") else (ours == theirs).all()
    return [] if same else [f"{where}: {str(ours)[:40]} and {str(theirs)[:40]}"]


def draw_kill(generator: random.Random) -> Kill:
    """A moment within the life of a run."""
    kind = generator.choice(("files", "files", "batch", "clock"))
    highest = {"files": 400, "batch": 90, "clock": 4.0}[kind]
    return Kill(kind, generator.uniform(0.05, highest) if kind == "clock" else generator.randint(1, int(highest)))


def main() -> int:
    """Soak, print a line for each run, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sharded", action="store_true", help="by FSDP2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file for what was found")
    args = parser.parse_args()
    if args.sharded and args.processes == 1:
        parser.error("--sharded was given for one process; add --processes 2")
    sharded = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}} if args.sharded else {}
    generator = random.Random(args.seed)
    begin, kills, runs, found = time.perf_counter(), [], 0, []
    with tempfile.TemporaryDirectory() as place:
        inputs = Path(place) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        straight = {}
        for streaming in (False, True):
            folder = Path(place) / f"straight-{streaming}"
            lives(inputs, folder, None, args.processes, streaming=streaming, **sharded)
            straight[streaming] = remains(folder)
        while len(kills) < args.kills:
            streaming, folder, n_before = bool(runs % 2), Path(place) / f"run-{runs}", len(kills)
            kill: Kill | None = draw_kill(generator)
            while not lives(inputs, folder, kill, args.processes, streaming=streaming, **sharded):
                assert kill is not None
                kills.append(kill)
                kill = draw_kill(generator) if len(kills) < args.kills else None
            differing = differences(remains(folder), straight[streaming])
            found += differing
            runs += 1
            print(f"run {runs}: {len(kills) - n_before} kills, {'as the other' if not differing else differing[:3]}")
            shutil.rmtree(folder)
    minutes = (time.perf_counter() - begin) / 60
    kinds = {kind: sum(kill.kind == kind for kill in kills) for kind in ("files", "batch", "clock")}
    print(
        f"{len(kills)} kills in {runs} runs of {args.processes} process(es){', sharded' * args.sharded}: {kinds}; "
        f"{'no bit differs' if not found else f'{len(found)} things differ'}; {minutes:.0f} minutes"
    )
    if args.output:
        told = {"kills": [asdict(kill) for kill in kills], "runs": runs, "differences": found, "minutes": minutes}
        of = {"processes": args.processes, "sharded": args.sharded}
        Path(args.output).write_text(json.dumps(told | of, indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
