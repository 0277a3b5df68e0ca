"""Kills a training run again and again, resumes it each time, and compares the result with an uninterrupted run.

    python benchmarks/soak.py                        200 kills; half an hour to two hours on two CPU cores
    python benchmarks/soak.py --kills 10             two minutes
    python benchmarks/soak.py --processes 2          200 kills of a run with two processes (DDP over gloo)
    python benchmarks/soak.py --processes 2 --sharded     the same with FSDP2

A tiny model trains on 64 texts; of 40 steps, every fourth saves a checkpoint. Each life of the run begins with
`--resume` and is killed (SIGKILL) at a random moment: at the n-th file system operation, at the n-th batch, or after
some seconds. When a run completes, everything in its folder is compared bit by bit with the uninterrupted run, and the
next run begins, until the number of kills is reached. Half of the runs stream their texts.
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
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training

CLOCKS = ("runtime", "per_second", "seconds", "flos")
"""suffixes of figures that are timings"""
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir")
"""file system operations, by the names of Python's audit events"""


@dataclass(frozen=True)
class Kill:
    """The moment when a life of a run ends."""

    kind: str
    """files: at a file system operation in the run's folder; batch: after a batch's loss; clock: after some seconds"""
    moment: float
    """the number of that operation or batch in this life, or the seconds"""


def make_inputs(folder: Path) -> None:
    """Write a tiny model with a tokenizer to `base`, and texts to two files in `texts`."""
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
            if parameter.dim() > 1:  # large enough that thoughts change predictions
                parameter.copy_(torch.randn(parameter.shape) * 1.6 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder / "base")
    (folder / "texts").mkdir()
    for shard in range(2):
        texts = [f"{shard}.{i} " + "ab ba " * (1 + i % 5) for i in range(32)]
        texts[10:10] = texts[25:25] = [" "]  # too short for one prediction
        (folder / "texts" / f"{shard}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def live(inputs: str, folder: str, kill: Kill | None, settings: dict[str, Any], rank: int, world: list[int]) -> None:
    """Run one life of a run; the target of a process."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if len(world) > 1:
        port, size = world
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    gc.freeze()  # the garbage collector of a trainer would otherwise search all imported modules
    log = open(f"{folder}.{rank}.out", "a")  # noqa: SIM115  (open as long as the process)
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
    """Make this process die at that moment."""
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
    """Run one life of a run, whose first process may be killed, and return whether the run completed.

    Raises:
        RuntimeError: it ended with an error.
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
        if processes[0].exitcode:  # as a launcher does when one process dies
            process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    if codes[0] in (-signal.SIGKILL, -signal.SIGALRM):
        return False
    if any(codes):
        raise RuntimeError(f"a run ended with {codes}:\n{Path(f'{folder}.0.out').read_text()[-3000:]}")
    return True


def forkserver() -> ForkServerContext:
    """Return a context that forks processes from one that has imported the slow modules."""
    context = multiprocessing.get_context("forkserver")
    slow = ["quietstar.training.run", "transformers.models.llama.modeling_llama", "datasets", "torch", "deepspeed"]
    context.set_forkserver_preload(slow)
    return context


def free_port() -> int:
    """Return a free port for the rendezvous of a run's processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def remains(folder: Path) -> dict[str, Any]:
    """Return all files of a run by name, as bytes, tensors and numbers, without timings."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            found[name] = load_file(file)
        elif file.suffix in (".pt", ".pth"):
            found[name] = torch.load(file, weights_only=False)  # written by ourselves
        elif file.name == "log.jsonl":
            found[name] = [json.loads(line) for line in file.read_text().splitlines()]
        elif file.name == "README.md":  # a card names the folder
            lines = file.read_text().splitlines()
            found[name] = [line for line in lines if line not in (f"# {folder.name}", f"- name: {folder.name}")]
        elif file.suffix == ".json":
            found[name] = json.loads(file.read_text())
        else:
            found[name] = file.read_bytes()
    return {name: timeless(value) for name, value in found.items()}


def timeless(value: Any) -> Any:
    """Return a value without timings, and without sizes of files that contain timings."""
    if isinstance(value, dict):
        return {
            key: timeless(item)
            for key, item in value.items()
            if not (isinstance(key, str) and (key.endswith(CLOCKS) or key == "files"))
        }
    return [timeless(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return where two results differ, bit by bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        only = [f"{where}/{key} is in one only" for key in ours.keys() ^ theirs.keys()]
        both = [key for key in ours if key in theirs]
        return only + [found for key in both for found in differences(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{where}/{i}")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [f"{where} differs"]
    same = ours is theirs or str(ours) == str(theirs) if not hasattr(ours, "tobytes") else (ours == theirs).all()
    return [] if same else [f"{where}: {str(ours)[:40]} and {str(theirs)[:40]}"]


def random_kill(generator: random.Random) -> Kill:
    """Return a random moment."""
    kind = generator.choice(("files", "files", "batch", "clock"))
    highest = {"files": 400, "batch": 90, "clock": 4.0}[kind]
    return Kill(kind, generator.uniform(0.05, highest) if kind == "clock" else generator.randint(1, int(highest)))


def main() -> int:
    """Run the soak test, print a line for each run and a summary, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sharded", action="store_true", help="use FSDP2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file for the result")
    args = parser.parse_args()
    if args.sharded and args.processes == 1:
        parser.error("--sharded needs several processes; add --processes 2")
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
            kill: Kill | None = random_kill(generator)
            while not lives(inputs, folder, kill, args.processes, streaming=streaming, **sharded):
                assert kill is not None
                kills.append(kill)
                kill = random_kill(generator) if len(kills) < args.kills else None
            differing = differences(remains(folder), straight[streaming])
            found += differing
            runs += 1
            print(f"run {runs}: {len(kills) - n_before} kills, {'identical' if not differing else differing[:3]}")
            shutil.rmtree(folder)
    minutes = (time.perf_counter() - begin) / 60
    kinds = {kind: sum(kill.kind == kind for kill in kills) for kind in ("files", "batch", "clock")}
    print(
        f"{len(kills)} kills in {runs} runs of {args.processes} process(es){', sharded' * args.sharded}: {kinds}; "
        f"{'no bit differs' if not found else f'{len(found)} things differ'}; {minutes:.0f} minutes"
    )
    if args.output:
        result = {"kills": [asdict(kill) for kill in kills], "runs": runs, "differences": found, "minutes": minutes}
        settings = {"processes": args.processes, "sharded": args.sharded}
        Path(args.output).write_text(json.dumps(result | settings, indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
