"""Direct tasks at every evaluation of a training run."""

from transformers import PreTrainedTokenizerBase

from quietstar.base.loading import evaluating
from quietstar.evaluation.direct import alphabet_of, encode, score_items
from quietstar.evaluation.scoring import Continuation, Speaker
from quietstar.evaluation.tasks import find_task, load_items, parse_data
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments


class TaskFigures:
    """The items of a run's tasks, loaded once, and a model's figures on them.

    Args:
        args: of the run: eval_tasks, eval_data and eval_limit say which items, think_fraction whether to think.
        tokenizer: of the model; None if there are no tasks.

    Raises:
        QuietStarError: a task is unknown, or its items cannot be loaded.
    """

    def __init__(self, args: QuietStarTrainingArguments, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.batch_size = args.per_device_eval_batch_size
        self.policy = ThinkPolicy.parse("always") if args.think_fraction > 0 else None
        self.sequences: dict[str, list[Continuation]] = {}
        paths = parse_data(args.eval_data)
        for name in args.eval_tasks if tokenizer is not None else ():
            task = find_task(name)
            items = load_items(task, paths.get(name), args.eval_limit, "--eval_data {}=FILE")
            self.sequences[name], _ = encode(items, tokenizer, alphabet_of(task, tokenizer))

    def figures(self, model: QuietStarForCausalLM, processes: Processes) -> dict[str, float]:
        """Return mean answer probability, share of exact matches, seconds and items a second of each task.

        Args:
            model: answers with greedy thoughts at the scored positions; or as the base model alone.
            processes: share the items; all of them get all figures.
        """
        figures: dict[str, float] = {}
        with evaluating(model):
            for name, sequences in self.sequences.items():
                found = score_items(Speaker(model, self.policy, processes=processes), sequences, self.batch_size)
                figures |= {
                    f"{name}_answer_probability": float(found.answer_probability.mean()),
                    f"{name}_exact_match": float(found.exact_match.double().mean()),
                    f"{name}_runtime": round(found.seconds, 4),
                    f"{name}_samples_per_second": round(len(sequences) / found.seconds, 3),
                }
        return figures
